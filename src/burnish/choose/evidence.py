"""What models do on the validation images, and whether one is better than another there by more than chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from burnish.choose.material import Material
from burnish.choose.probing import Probed
from burnish.labels import cross_entropies, error_of_mean, right
from burnish.measure.calibration import temperature
from burnish.measure.gains import Beside, Gain, beats, gain_of


@dataclass(frozen=True)
class Difference:
    """How one model stands to a simpler one on the same validation images."""

    right: Gain  # in images right
    loss: Gain  # nats less

    @property
    def clear(self) -> bool:
        """By more than a standard error in images right or, with no fewer right, in log loss.

        With 80 images the loss tells apart what counting cannot. Within one error of both the simpler model stays (the
        one-standard-error rule, Breiman et al. 1984, section 3.4.3).
        """
        return self.right.clearly or (self.right.difference >= 0.0 and self.loss.clearly)


@dataclass(frozen=True)
class Evidence:
    """What a model does on the validation images."""

    right: np.ndarray  # bool [v]; or float64 [v], 0 to 1, where an image may have several classes
    losses: np.ndarray  # float64 [v], nats, at the temperature that makes their mean least
    beside: Beside | None = None  # what cross-validation tells of more images than these
    groups: np.ndarray | None = None  # int64 [v] from 0, equal for images that are no independent draws
    crossed: bool = False  # whether it is of the images to fit, each asked about by heads that had not learnt from it

    @classmethod
    def of(cls, logits: np.ndarray, material: Material, beside: Beside | None = None) -> Evidence:
        """Of logits [v k] of the val images."""
        labels = material.labels[material.val_rows]
        scaled = logits.astype(np.float64) / temperature(logits, labels)
        return cls(right(scaled, labels), cross_entropies(scaled, labels), beside, material.val_groups)

    @classmethod
    def of_frozen(cls, probed: Probed, material: Material) -> Evidence:
        """Of frozen heads that learnt from the train images alone.

        Where the val images were drawn they are a sample of all fitting images, and cross-validation has told how hard
        each of these is; given by the data they may be of another kind.
        """
        drawn = "val" not in material.catalog.splits or material.catalog.val_drawn
        beside = Beside(probed.choice.told, material.val_rows) if drawn else None
        return cls.of(probed.val_logits, material, beside)

    @classmethod
    def out_of_fold(cls, probed: Probed, material: Material) -> Evidence:
        """Of frozen heads where there are no validation images: by cross-validation, over all images to fit."""
        groups = material.tied(np.arange(len(material.labels)))
        return cls(probed.choice.right, -np.log(np.maximum(probed.choice.told, 1e-12)), groups=groups, crossed=True)

    def rank(self) -> tuple[float, float]:
        """The better model has the smaller."""
        if not len(self.right):
            return (0.0, 0.0)
        return (-float(self.right.mean()), float(self.losses.mean()))

    def against(self, simpler: Evidence) -> Difference:
        """The paired differences to a simpler model."""
        less, known = simpler.losses - self.losses, (simpler.beside, simpler.groups)
        return Difference(beats(self.right, simpler.right, *known), gain_of(less, *known))

    @property
    def error(self) -> float:
        """A standard error of the share of right answers."""
        return error_of_mean(self.right, self.groups)


def clearly_best(candidates: Sequence[Evidence]) -> int:
    """The place of the one to take: the first, or of those that are clearly better than it the best."""
    first, *others = candidates
    clear = [place for place, one in enumerate(others, start=1) if one.against(first).clear]
    return min(clear, key=lambda place: candidates[place].rank(), default=0)
