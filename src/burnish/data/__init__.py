"""Images and their labels: from a folder, a CSV or the demo to upright pixels and fixed splits.

catalog   the values: Catalog, Named, Splits       sources   open_source: what DATA is, read into a Catalog
pixels    the one decoder                          split     which images train, choose and prove
cache     decoded pixels, each file read once      views     augmented and plain network inputs
"""
