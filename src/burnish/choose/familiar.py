"""What is like the training images to the frozen network, from features that its heads were fitted to."""

from __future__ import annotations

import numpy as np

from burnish.choose.material import Material
from burnish.labels import leading, several
from burnish.measure.calibration import calibrated
from burnish.measure.grouped import count_of
from burnish.measure.ood import Familiarity, entropies
from burnish.runtime import evenly

FEWEST = 40  # images
# Of images that belong together; with a third of 10 held back up to 12 % of new ones look strange, of 15 8 %.
_FEWEST_SETS = 15
_MOST, _MOST_HELD = 4096, 1000  # images looked at, and those by which the limit is set


def frozen_familiarity(features: np.ndarray, val_logits: np.ndarray, material: Material) -> Familiarity | None:
    """Of features [n d] of the fitting images; val_logits [v k]: of a head that has not learnt from val images.

    The limit is that of val images, or where they are few of a third of the others, of whose answers nothing is known then. None
    where there are too few images.
    """
    unsure = None if several(material.labels) else entropies(calibrated(val_logits))
    apart = set_apart(material, unsure, most=_MOST_HELD, least=FEWEST // 2)
    if apart is None or len(material.train_rows) < FEWEST:
        return None
    held, unsure = apart
    rest = np.setdiff1d(material.train_rows, held)
    shown = rest[evenly(len(rest), _MOST)]
    ours, others = features[shown], features[held]
    if not (np.isfinite(ours).all() and np.isfinite(others).all()):
        return None
    return Familiarity.of(ours, leading(material.labels[shown])).limited_by(others, unsure)


def set_apart(
    material: Material, unsure: np.ndarray | None, *, most: int, least: int, learnt: bool = False
) -> tuple[np.ndarray, np.ndarray | None] | None:
    """At most so many fitting rows by which a limit is set, and what of `unsure` [v], of the val images, is theirs.

    They are val images where there are `least` of those, else of a third of the others: of whole sets that belong together
    (`Material.tied`), for images of a known patient look more familiar than those of a new one. None of too few sets. learnt:
    whether the network has learnt from the others; beside those any other image looks strange to it, so then None.
    """
    val = material.val_rows
    if len(val) >= least:
        some = evenly(len(val), most)
        return val[some], None if unsure is None else unsure[some]
    tied = None if learnt else material.tied(material.train_rows)
    if learnt or (tied is not None and count_of(tied) < _FEWEST_SETS):
        return None
    others = material.train_rows[material.sets(material.train_rows) % 3 == 1]
    return others[evenly(len(others), most)], None
