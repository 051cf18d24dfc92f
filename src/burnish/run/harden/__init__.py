"""A finished run's model made more robust, by stages: what it stands on, training, the choice, the proof.

ground: the run's own images and its model. heads: frozen networks. network: tuned ones. chosen: which weights are kept, by
validation images. proven: what came of it on the test images. job: all of them in their order.
"""
