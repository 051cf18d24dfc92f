"""The work of one run, and of several, in the order the data flows.

outset     the network, the device, what makes it faster
fetching   a network that comes over the network: how long it takes, and when it is given up
further    the network of an earlier run, to be tuned further
probed     images looked at and checked, frozen heads fitted, the first model saved
planned    what a training is to do, settled once
trained    the training, the better model saved
packed     a model made the package of a run
job        all of it: probe, tune, choose, prove, report
baselines  what the result is held against: an earlier run, training from scratch
insights   pictures of single images, what predicting costs
journal    what a training tells while it runs: history, TensorBoard
seeds      the same training from other seeds
tracking   MLflow, where it is installed
comparing  a race of models and methods under one budget: race/
"""
