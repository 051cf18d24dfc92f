"""How logits become answers, as images that were not learnt from tell: by a temperature, and of several classes thresholds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from burnish.labels import several
from burnish.measure.calibration import calibrated, temperature
from burnish.measure.held_out import HeldOut
from burnish.measure.several import thresholds_for


@dataclass(frozen=True, eq=False)
class Calibrated:
    """What held-out images tell of a model; `probabilities` are theirs, read so."""

    temperature: float
    probabilities: np.ndarray  # float64 [n k]
    thresholds: (
        np.ndarray | None
    )  # float64 [k], where an image may have several classes: from which probability one is said
    held_out: HeldOut | None  # for declining and for sets of classes, where an image has one

    @classmethod
    def of(cls, logits: np.ndarray, labels: np.ndarray, groups: np.ndarray | None = None) -> Calibrated:
        """Of logits [n k] for labels int64 [n] or bool [n k]; groups: int64 [n], as `Catalog.grouped` has them."""
        t, many = temperature(logits, labels), several(labels)
        chances = calibrated(logits, t, several=many)
        if many:
            return cls(t, chances, thresholds_for(chances, labels), None)
        return cls(t, chances, None, HeldOut.of(chances, labels, groups))

    @property
    def cut(self) -> float | np.ndarray:
        """From which probability a class is said, as `labels.right` takes it; of one class an image nothing asks for it."""
        return 0.5 if self.thresholds is None else self.thresholds

    @property
    def kept_thresholds(self) -> tuple[float, ...] | None:
        """As a package keeps them."""
        return None if self.thresholds is None else tuple(map(float, self.thresholds))
