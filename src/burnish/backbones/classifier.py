"""A trunk with a head: images in, one logit a class out."""

from __future__ import annotations

import copy

import torch
from torch import nn

from burnish.backbones import head as heads
from burnish.backbones.spec import Backbone


class Classifier(nn.Module):
    """`trunk` maps [b 3 s s] to features [b d]; `head` maps those to logits [b k].

    The state dict has the backbone's own names under "trunk." and the head's under "head.".
    """

    def __init__(
        self, trunk: nn.Module, width: int, classes: int, *, head: str = heads.LINEAR, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.dropout = nn.Dropout(dropout)
        self.head = heads.made(head, width, classes)
        self.form, self.classes = head, classes

    @classmethod
    def over(cls, backbone: Backbone, classes: int, head: str = heads.LINEAR) -> Classifier:
        """A classifier on a copy of the backbone, which stays as it is; in eval mode, the head zero."""
        return cls(copy.deepcopy(backbone.module), backbone.width, classes, head=head).eval()

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Pooled features [b d] of images [b 3 s s]."""
        return self.trunk(images)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.dropout(self.trunk(images)))


class Both(nn.Module):
    """A classifier that gives its logits and its features side by side, [b k + d]."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier, self.classes = classifier, classifier.classes

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.classifier.features(images)
        return torch.cat([self.classifier.head(features), features], 1)
