"""Pretrained networks: from a name, a file or an earlier package to a trunk with all that must travel with it.

Values, on which all else rests:
spec          the trunk and what travels with it       layers       found, replaced, frozen by name
stages        what is frozen, and learns, together     head         from features to logits
classifier    a trunk with a head

Rooms, each of which may know those before it:
reading       what others wrote, to named tensors      fast         the same function sooner
changing      one network made another                 torchvision  what its files and networks are called
transformers  the same of Hugging Face's               keras        networks that Keras wrote

timmed        timm's networks                          cifar        those for images of 32 pixels
architectures descriptions, and what is built of them  assembly     a module made a backbone
names         what models go by                        segmenting   networks that were made to segment
file_images   how a file's network wants its images    heads        how many heads of attention it has
files         the backbone in a file                   zoo          the backbone behind a name
"""
