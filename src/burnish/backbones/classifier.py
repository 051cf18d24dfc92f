"""A trunk with a head: images in, one logit a class out."""

from __future__ import annotations

import copy

import torch
from torch import nn

from burnish.backbones.spec import Backbone


class Classifier(nn.Module):
    """`trunk` maps [b 3 s s] to features [b d]; `head` maps those to logits [b k].

    The state dict has the backbone's own names under "trunk." and the head's under "head.".
    """

    def __init__(self, trunk: nn.Module, width: int, classes: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.trunk = trunk
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, classes, device="meta")  # not drawn: no global generator is used (P7)
        self.head.weight = nn.Parameter(torch.zeros(classes, width))
        self.head.bias = nn.Parameter(torch.zeros(classes))

    @classmethod
    def over(cls, backbone: Backbone, classes: int) -> Classifier:
        """A classifier on a copy of the backbone, which stays as it is; in eval mode, the head zero."""
        classifier = cls(copy.deepcopy(backbone.module), backbone.width, classes)
        nn.init.zeros_(classifier.head.weight)
        nn.init.zeros_(classifier.head.bias)
        return classifier.eval()

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Pooled features [b d] of images [b 3 s s]."""
        return self.trunk(images)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.dropout(self.trunk(images)))
