"""Networks as torchvision has them.

names     what it and efficientnet_pytorch call the weights of networks that timm has too, in timm's words
networks  the architectures that timm lacks
images    where its weights are, and how images are prepared for them
"""
