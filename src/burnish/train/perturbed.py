"""Training views that are perturbed besides, as another kind of inputs for the same loop."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from burnish.data.perturbations import perturbed
from burnish.data.views import Crops, coloured
from burnish.train.inputs import Parts, PixelViews


@dataclass(frozen=True)
class Perturbed:
    """Augmented views [b 3 s s] of which four of five are perturbed before their colours change (`data.perturbations`)."""

    views: PixelViews

    def __len__(self) -> int:
        return len(self.views)

    @property
    def labels(self) -> np.ndarray:
        """Of the views."""
        return self.views.labels

    def name(self, row: int, /) -> str:
        """The file behind a row."""
        return self.views.name(row)

    def parts(self, rows: np.ndarray, /, *, epoch: int, size: int) -> Parts:
        """Perturbed crops, and how their colours change."""
        found = self.views.crops(rows, epoch=epoch, size=size)
        turns, own = np.divmod(rows, len(self))
        ids = self.views.ids[own] + (turns << 40)
        return perturbed(found.pixels, ids, seed=self.views.seed, epoch=epoch), found.matrices, found.offsets

    def whole(self, parts: Parts, /) -> torch.Tensor:
        """The batch [b 3 s s] of those parts."""
        return coloured(Crops(*parts), self.views.preprocess)
