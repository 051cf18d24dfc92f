"""k nearest neighbours on frozen features: nothing is learnt but how many are asked and how fast their say falls off."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from burnish.backbones.head import NeighbourHead, logits_by_neighbours, made, neighbours_form
from burnish.methods.folds import Folds
from burnish.methods.linear import loss_of, truth_of
from burnish.runtime import evenly

# DINO (Caron et al. 2021, arXiv:2104.14294) asks 10 to 200 neighbours at 0.07 and finds 20 best; few-shot sets need fewer.
COUNTS = (1, 3, 5, 10, 20, 50)
TEMPERATURES = (0.02, 0.05, 0.1, 0.2)
_ROWS = 1024  # at once
_ASKED_FIRST = 1000  # images that all settings are tried on, and timed


@dataclass(frozen=True)
class Neighbours:
    """The training images' features and classes, asked by nearness (`backbones.head.NeighbourHead`)."""

    mean: np.ndarray  # float32 [d]
    bank: np.ndarray  # float32 [m d], centred and of length one
    votes: np.ndarray  # uint8 [m k], 0 or 1
    temperature: np.ndarray  # float32 [1]
    form: str

    @classmethod
    def of(
        cls, features: np.ndarray, labels: np.ndarray, *, classes: int, neighbours: int, temperature: float
    ) -> Neighbours:
        """Of features float32 [m d] and labels int64 [m], or bool [m k] where an image may have several."""
        votes = _votes(labels, classes)
        mean = features.mean(0)
        bank = F.normalize(torch.from_numpy(features - mean)).numpy()
        count = max(1, min(neighbours, len(features) - 1))
        form = neighbours_form(count, len(features), several=labels.ndim == 2)
        return cls(mean, bank, votes, np.array([temperature], np.float32), form)

    @property
    def classes(self) -> int:
        """k."""
        return self.votes.shape[1]

    @property
    def width(self) -> int:
        """d."""
        return self.bank.shape[1]

    def logits(self, features: np.ndarray) -> np.ndarray:
        """float32 [n k] of features [n d]."""
        module = made(self.form, self.width, self.classes)
        self.fill(module)
        with torch.inference_mode():
            parts = [module(part) for part in torch.from_numpy(np.ascontiguousarray(features)).split(_ROWS)]
        return torch.cat(parts).numpy() if parts else np.zeros((0, self.classes), np.float32)

    def fill(self, module: nn.Module) -> None:
        """Make a neighbour head give these logits."""
        assert isinstance(module, NeighbourHead)
        module.load_state_dict({name: torch.from_numpy(array) for name, array in self.arrays().items()})

    def arrays(self) -> dict[str, np.ndarray]:
        """The buffers of a neighbour head."""
        return {"mean": self.mean, "bank": self.bank, "votes": self.votes, "temperature": self.temperature}


@dataclass(frozen=True)
class Crossed:
    """Settings and what they do to images left out."""

    neighbours: int
    temperature: float
    loss: float  # nats
    logits: Tensor  # [n k], out-of-fold


def crossed(
    features: np.ndarray, labels: np.ndarray, folds: Folds, *, classes: int, seconds_left: Callable[[], float]
) -> Crossed:
    """The number of neighbours and the temperature with the least log loss on left-out images.

    Cosines are computed once for the losses of all settings, and once more for what the best of them says. Images are centred by
    the mean of all: it knows no labels. Losses are of a part of the images where the clock allows no more.
    """
    seen, several = F.normalize(torch.from_numpy(features - features.mean(0))), labels.ndim == 2
    votes, truth = torch.from_numpy(_votes(labels, classes)), truth_of(labels)
    settings = [(count, heat) for count in COUNTS for heat in TEMPERATURES if count == 1 or count < len(features) // 2]

    def asked(held: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """(rows, cosines to those of other folds, their votes), a part at a time."""
        for number in range(len(folds.held)):
            rest = torch.from_numpy(np.flatnonzero(folds.number != number))
            own = held[torch.from_numpy(folds.number[held.numpy()] == number)]
            for rows in own.split(_ROWS):
                yield rows, seen[rows] @ seen[rest].T, votes[rest]

    losses, began, left = np.zeros(len(settings)), time.monotonic(), seconds_left()
    counted = np.flatnonzero(folds.counted)
    few = counted[evenly(len(counted), _ASKED_FIRST)]
    told = 0
    for part in (few, np.setdiff1d(counted, few)):
        # The first few tell what the others would take; half of the time is for what the best of all says.
        spent = time.monotonic() - began
        if told and 2 * spent * len(counted) / told > left:
            break
        for rows, cosines, others in asked(torch.from_numpy(part)):
            for place, (count, heat) in enumerate(settings):
                logits = logits_by_neighbours(cosines, others, neighbours=count, temperature=heat, several=several)
                losses[place] += loss_of(logits, truth[rows]).item() * len(rows)
        told += len(part)
    best = int(np.argmin(losses))
    logits = torch.empty(len(features), classes)
    for rows, cosines, others in asked(torch.arange(len(features))):
        count, heat = settings[best]
        logits[rows] = logits_by_neighbours(cosines, others, neighbours=count, temperature=heat, several=several)
    right_ones = torch.from_numpy(folds.counted)
    return Crossed(*settings[best], loss_of(logits[right_ones], truth[right_ones]).item(), logits)


def _votes(labels: np.ndarray, classes: int) -> np.ndarray:
    return (labels if labels.ndim == 2 else labels[:, None] == np.arange(classes)).astype(np.uint8)
