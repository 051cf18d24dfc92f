"""A network made another, each change a plain value that travels with the package.

anatomy  what a network is made of      blocks    its repeated blocks, by their place
surgery  layers taken out or put in     adapters  small layers between the blocks
lowrank  corrections to frozen weights  taps      features of several depths
changes  the table of what may be done, from which a package is opened again
"""
