"""Networks that Keras wrote, or has by name; nothing of a file is run (P8).

hdf5          reads HDF5 in a process of its own      arrays   its arrays, found by layer
configs       what the config says, as a description  entries  its layers and calls
graph         the description, and what it builds     network  the torch module, in segments
layers        the table of layers, made of:           options  what a layer's description holds
modules       what torch has no layer for             moves    layers without weights
convolutions  layers that multiply by a kernel        norms    layers that shift and scale
attention     layers that weigh tokens by each other
applications  the networks of keras.applications      trunk    what of it makes the features, of which images
loader        from a file, or a name, to a backbone
"""
