"""Linear heads fitted to parts of the images, and what they say of the others: cross-validation, fold by fold and cut by cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from burnish.methods.folds import Folds
from burnish.methods.linear import Principal, loss_of, relevant

Path = Iterator[tuple[torch.Tensor, torch.Tensor]]  # weight [k r] and bias [k] for each strength


@dataclass(frozen=True)
class Part:
    """A head's images, and those that it is asked about."""

    shown: torch.Tensor  # int64, places of the images that heads are fitted to
    asked: torch.Tensor  # int64 [m], of those that they are asked about
    instead_of: torch.Tensor | None = None  # int64 [m], of those that these stand for


def parts_of(folds: Folds) -> list[Part]:
    """All folds, and the cuts of classes."""
    every = np.arange(len(folds.number))
    found = [(np.setdiff1d(every, held), held) for held in folds.held]
    found += [(cut.shown, cut.instead, cut.alone) for cut in folds.cuts]
    return [Part(*map(torch.from_numpy, one)) for one in found]


def axes_of(x: torch.Tensor, y: torch.Tensor, classes: int, keep: float, *, quick: bool = False) -> Principal:
    """Coordinates of all features, or of the share of them that matters most for these labels."""
    return Principal.of(x, quick=quick) if keep == 1.0 else Principal.of_some(x, relevant(x, y, classes, keep))


def views_of(
    x: torch.Tensor,
    y: torch.Tensor,
    z: torch.Tensor,
    axes: Principal,
    parts: Sequence[Part],
    classes: int,
    keep: float,
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(coordinates [n r], their variances) for each part.

    The same for all where no feature is chosen: coordinates know no labels, and what they leave out they leave out of all heads.
    """
    if keep == 1.0:
        return [(z, axes.variances)] * len(parts)
    own = [axes_of(x[part.shown], y[part.shown], classes, keep) for part in parts]
    return [(one.apply(x), one.variances) for one in own]


@dataclass(frozen=True)
class LeftOut:
    """Heads fitted to each part, one a strength; answers are made when asked for: those of all may be gigabytes."""

    views: Sequence[tuple[torch.Tensor, torch.Tensor]]  # (coordinates [n r], their variances) for each part
    parts: Sequence[Part]
    # Weight [k c] and bias [k]; the last stands for all after it
    heads: Sequence[Sequence[tuple[torch.Tensor, torch.Tensor]]]
    labels: torch.Tensor
    folds: Folds

    def logits(self, place: int) -> torch.Tensor:
        """Out-of-fold [n k], of the strength at this place."""
        found: list[torch.Tensor] = []
        for part, (z, _), path in zip(self.parts, self.views, self.heads, strict=True):
            told = _logits(z[part.asked], *path[min(place, len(path) - 1)])
            if not found:
                found.append(torch.empty(len(z), told.shape[1]))
            if part.instead_of is None:
                found[0][part.asked] = told
            else:
                found[0][part.instead_of] = _renamed(told, self.labels[part.asked], self.labels[part.instead_of])
        return found[0]

    def among(self, rows: torch.Tensor) -> LeftOut:
        """Asked about these images alone; nothing is told of others."""
        parts = []
        for part in self.parts:
            kept = torch.isin(part.asked if part.instead_of is None else part.instead_of, rows)
            instead = None if part.instead_of is None else part.instead_of[kept]
            parts.append(Part(part.shown, part.asked[kept], instead))
        return replace(self, parts=parts)


def left_out(
    views: Sequence[tuple[torch.Tensor, torch.Tensor]],
    y: torch.Tensor,
    parts: Sequence[Part],
    folds: Folds,
    fit: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Path],
    *,
    early: bool = False,
) -> LeftOut:
    """A path of heads on each part; views: (coordinates [n r], their variances) for each part.

    A part leaves the path when its left-out loss has risen for good; the strengths after that repeat the last head, so they
    are never chosen before it. A class that the images shown do not have is answered of none: of it nothing was learnt.
    """
    heads, counted = [], torch.from_numpy(folds.counted)
    for part, (z, variances) in zip(parts, views, strict=True):
        asked = part.asked if part.instead_of is not None else part.asked[counted[part.asked]]
        asked_of, path, least = z[asked], [], float("inf")
        for weight, bias in fit(z[part.shown], y[part.shown], variances):
            if y.ndim == 1:
                bias = bias.masked_fill(torch.bincount(y[part.shown], minlength=len(bias)) == 0, float("-inf"))
            path.append((weight, bias))
            if not len(asked):
                break
            if not early:
                continue
            loss = loss_of(_logits(asked_of, weight, bias), y[asked]).item()
            if loss > 1.1 * least:
                break
            least = min(least, loss)
        heads.append(path)
    return LeftOut(views, parts, heads, y, folds)


def _renamed(told: torch.Tensor, classes: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Logits [m k] with each row's class under the name of another one, and that one under its name."""
    found, every = told.clone(), torch.arange(len(told))
    found[every, others], found[every, classes] = told[every, classes], told[every, others]
    return found


def _logits(z: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """[n k] of a head that sees the first c of r coordinates."""
    return z[:, : weight.shape[1]] @ weight.T + bias
