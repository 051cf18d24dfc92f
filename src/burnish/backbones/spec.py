"""A pretrained trunk with everything that must travel with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from burnish.terms import Preprocess


@dataclass(frozen=True)
class Stage:
    """A run of layers between input and output; `parameters` are names in the module's state dict."""

    name: str
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class Learnt:
    """Which of a user's images a network was tuned on, or chosen by, before: hashes of their files."""

    hashes: frozenset[str]
    known: bool  # whether these are all


@dataclass(frozen=True)
class Backbone:
    """A headless network: module maps [b 3 s s] to pooled features [b width]."""

    name: str  # what reports call it: a timm name, cifar_resnet20, keras_resnet50
    module: nn.Module
    width: int
    stages: tuple[Stage, ...]  # input to output; together they hold every parameter exactly once
    preprocess: Preprocess
    licence: str  # of the weights, "unknown" when it is not stated
    sha256: str  # of the weights file, "" for random weights
    source: str  # "embedded", "hub", "file PATH" or "random"
    architecture: dict[str, Any] = field(default_factory=dict)  # what `architectures.built` makes the module from
    one_size: bool = False  # whether it takes images of preprocess.size alone, as most transformers do
    changes: tuple[dict[str, Any], ...] = ()  # what was done to the architecture, as `changing.changes` reads it
    plain: Backbone | None = None  # the network before these changes; they share its weights
    uncut: nn.Module | None = None  # the network before layers were taken out or put in
    learnt: Learnt | None = None  # of a network that a run has tuned; None: as it was published
    notes: tuple[str, ...] = ()  # how loading went, a clause each, for the onlooker

    def blank(self) -> Tensor:
        """A grey image [1 3 s s] for the network, where its weights are."""
        size = self.preprocess.size
        return torch.zeros(1, 3, size, size, device=next(self.module.parameters()).device)
