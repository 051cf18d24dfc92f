"""Images and their labels: from a folder, a table, an archive or the demo to upright pixels and fixed splits.

catalog   the values: Catalog, Named, Splits       sources   open_source: what DATA is, read into a Catalog
contents  where images lie that are no files       looks     hashes and headers of files
pixels    the one decoder                          split     which images train, choose and prove
cache     decoded pixels, each file read once      views     augmented and plain network inputs
audit     what is wrong with the images            ties      rows that belong together
corruptions  what befalls photographs, in severities
"""
