"""Whether mirroring keeps the label, asked of the probe: hands, digits and letters are other things in a mirror."""

from __future__ import annotations

import numpy as np

from burnish.choose.material import Bench, Material
from burnish.choose.survey import Surveyed
from burnish.labels import right
from burnish.measure.gains import beats
from burnish.measure.grouped import count_of
from burnish.methods.base import Fitted
from burnish.runtime import evenly
from burnish.train.features import batched, outputs, takes_half

_ASKED, _FEWEST_ASKED, _ASKING = 500, 64, 0.02  # val images, about mirroring, and the share of the budget for that
_GROUPS_ASKED = 10  # of val images; where there are fewer, images are asked one by one


def mirrored_at_most(rate: float, budget_seconds: float | None) -> int:
    """How many images may be asked about mirroring; rate: images per second."""
    return _ASKED if budget_seconds is None else int(min(_ASKED, max(_FEWEST_ASKED, _ASKING * budget_seconds * rate)))


def settle_flip(
    material: Material, surveyed: Surveyed, bench: Bench, head: Fitted, plain_right: np.ndarray, *, most: int
) -> tuple[bool, str]:
    """Whether mirroring keeps the label, asked of the probe: is it as right on mirrored val images as on plain ones?

    Mirrored hands, digits and letters lose far more than chance does; photographs of things lose nothing. most: images.
    """
    if bench.recipe.flip != "auto":
        return bench.recipe.flip == "on", "as the recipe says"
    asked, preprocess = evenly(len(material.val_rows), most), material.preprocess
    rows, plain_right = material.val_rows[asked], plain_right[asked]
    if len(rows) == 0:
        return False, "no validation images to ask"
    images = material.fitting.plain[rows]
    mirrored = (np.ascontiguousarray(chunk[:, :, ::-1]) for chunk in batched(images))
    half = takes_half(bench.recipe.precision, bench.device)
    features = outputs(surveyed.trunk, mirrored, preprocess=preprocess, device=bench.device, half=half)
    mirrored_right = right(head.logits(features[:, : head.width]), material.labels[rows])
    return told_of_mirroring(plain_right, mirrored_right, material.tied(rows))


def told_of_mirroring(plain: np.ndarray, mirrored: np.ndarray, groups: np.ndarray | None) -> tuple[bool, str]:
    """Whether mirroring keeps the label, by how right the probe is on plain and mirrored images, bool or 0 to 1, [n]; and why.

    A single image decides nothing: it refused mirroring where it was harmless 23 to 27 times of 100. Of few groups nothing is
    ever clear, and signs that are mirrored by mistake cost more than mirroring brings: then each image counts by itself.
    """
    many = groups is not None and count_of(groups) >= _GROUPS_ASKED
    changes = beats(plain, mirrored, groups=groups if many else None).clearly
    less = float(mirrored.mean()) < float(plain.mean())
    words = "changes the label" if changes else "is not shown to change the label" if less else "keeps the label"
    return (
        not changes,
        f"mirroring {words}: the probe is right on {mirrored.mean():.1%} of mirrored and {plain.mean():.1%} of plain val images",
    )
