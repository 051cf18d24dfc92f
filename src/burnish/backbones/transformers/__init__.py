"""Networks as Hugging Face transformers stores them, in timm's words.

names         which family weights are of; ViT, DeiT, DINOv2, Swin, ConvNeXt, ResNet
layers        what several families call alike
attention     further families with attention
convolutions  further convolutional families
clip          CLIP's image half, also OpenCLIP's
openclip      what OpenCLIP says of a network; its image halves that are timm's
siglip        SigLIP's image half
configs       what config.json says of the function, and what timm cannot compute
images        how its preprocessor says images are prepared
"""
