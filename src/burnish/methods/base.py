"""The contract of a fine-tuning method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from burnish.backbones.classifier import Classifier
from burnish.backbones.spec import Backbone
from burnish.recipe import Recipe


@dataclass(frozen=True)
class Head:
    """A linear head on features [n d]: logits = features @ weight.T + bias."""

    weight: np.ndarray  # float32 [k d]
    bias: np.ndarray  # float32 [k]

    def logits(self, features: np.ndarray) -> np.ndarray:
        """float32 [n k] of features [n d]."""
        return features @ self.weight.T + self.bias


@dataclass(frozen=True)
class Group:
    """Parameters that learn alike; names are those of the classifier's state dict."""

    name: str
    parameters: tuple[str, ...]
    rate: float  # fraction of the peak learning rate
    decays: bool  # whether weight decay applies


@dataclass(frozen=True)
class Tunable:
    """A classifier ready to be trained; a parameter in no group is frozen (P3)."""

    classifier: Classifier
    groups: tuple[Group, ...]
    peak_learning_rate: float

    def movable(self) -> frozenset[str]:
        """The names of the parameters that training may change."""
        return frozenset(name for group in self.groups for name in group.parameters)


class Method(Protocol):
    """One way of fine-tuning. `prepare` never changes the backbone it is given."""

    @property
    def name(self) -> str: ...
    @property
    def summary(self) -> str: ...
    @property
    def when(self) -> str: ...
    @property
    def paper(self) -> str: ...
    @property
    def trains(self) -> bool: ...  # False: `prepare` is all there is to do

    def prepare(self, backbone: Backbone, head: Head, recipe: Recipe) -> Tunable:
        """The classifier before its first step, bit-equal in function to backbone + head."""
        ...


def assembled(backbone: Backbone, head: Head) -> Classifier:
    """Trunk and head as one new module in eval mode; shares nothing with the backbone."""
    classifier = Classifier.over(backbone, classes=len(head.bias))
    with torch.no_grad():
        classifier.head.weight.copy_(torch.from_numpy(head.weight))
        classifier.head.bias.copy_(torch.from_numpy(head.bias))
    return classifier.eval()
