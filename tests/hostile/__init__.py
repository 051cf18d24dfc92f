"""Files that would run code, never end, or fill the memory, made one by one; each module adds its own to `kinds.KINDS`.

kinds     the table            pickles      PyTorch's files
archives  zip and tar          safetensors  their headers
keras     configs and layers   hdf5         links, references, sizes
others    what is no model     valid        sound files, to be damaged
smallest  the smallest network that is told by its tensors
"""
