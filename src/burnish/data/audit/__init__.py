"""What is wrong with labelled images, told before anything is trained on them.

findings   the kinds, one finding, the list as CSV     files      of single files
sameness   copies, near-duplicates, leaks              twins      the search for pictures that are nearly the same
classes    thin, unequal, missing, stray               labels     likely errors, outliers (from arrays that are handed in)
whole      the audit of decoded images                 quarantine the list of images to leave out
"""
