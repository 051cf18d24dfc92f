"""What others wrote, from a file, a hub or an address to named tensors; builds no network, and runs nothing (P8).

weights    safetensors, and those that come as a package      hub         the Hugging Face hub
addresses  plain web addresses                                opened      what a file is, by its content
pickles    PyTorch's own files                                instructions  what a pickle asks for
checkpoint what a training script saved                       parts       weights in parts, put together or refused
shards     weights in several files of a folder
authors    ConvNeXt, Swin, MobileOne in their authors' words maps        networks of timm that give maps alone
openmmlab  MMPretrain's networks in timm's words         arrays      NumPy's archives, of Google's JAX too
matching   how a file's weights meet those of a network       recognise   which architecture they are of
"""
