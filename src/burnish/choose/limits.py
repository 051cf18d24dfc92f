"""What the kept model can know of its own limits before it meets the test images: what is familiar to it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from burnish.choose.answers import answers_in
from burnish.choose.familiar import FEWEST, set_apart
from burnish.choose.features import plain_at
from burnish.choose.material import Bench, Material
from burnish.choose.proof import Contender
from burnish.choose.rates import proof_seconds
from burnish.data.cache import Rows
from burnish.labels import leading
from burnish.measure.ood import Familiarity
from burnish.runtime import evenly

_SHARE = 0.03  # of the budget, for features of images that were trained on or chosen by
_MOST = 1000  # images whose features are taken
_LATE = 3 * FEWEST  # the same where the clock is behind
_HELD_OUT = 1 / 3  # of them at the most, that the model has not learnt from


def features_of(contender: Contender, images: Rows, bench: Bench) -> np.ndarray:
    """Features float32 [n d] of plain images, by the fast form of the network."""
    answers = contender.answers or answers_in(contender.classifier, contender.preprocess, bench)
    parts = [features for _, features in answers(images)]
    return np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)


@dataclass(frozen=True)
class Sample:
    """Features of some training images, to the kept model."""

    rows: np.ndarray  # int64 [n], of the fitting images
    features: np.ndarray  # float32 [n d]
    held_rows: np.ndarray  # int64 [m], of others: validation images where there are enough
    held_features: np.ndarray  # float32 [m d]


def room_for_familiar(kept: Contender, material: Material, bench: Bench, *, images_per_second: float) -> int:
    """How many images the sample of `familiar_to` may have: as many as a small share of the budget allows.

    images_per_second: forward, at the probe's size.
    """
    budget = bench.clock.budget_seconds
    rate = images_per_second * (material.preprocess.size / kept.preprocess.size) ** 2
    if kept.preprocess != material.preprocess:
        rate /= 2  # they are decoded again, which takes about as long
    most = _MOST if budget is None else int(min(_MOST, _SHARE * budget * rate))
    spare = bench.clock.left() - proof_seconds(material.due / rate, budget, material)
    return min(most, max(_LATE, int(min(_MOST, spare * rate))))


def familiar_to(
    kept: Contender, material: Material, bench: Bench, *, most: int
) -> tuple[Familiarity | None, Sample | None]:
    """What is like the training images, to the kept model, and a sample of `most` of those; None where there are too few.

    A frozen model knows already (`choose.familiar`). A tuned one learns it from the sample, with the limit of images that it has
    not learnt from.
    """
    train, learnt = material.train_rows, kept.role == "tuned"
    least = FEWEST // (4 if learnt else 2)
    apart = set_apart(material, kept.val_unsure, most=round(most * _HELD_OUT), least=least, learnt=learnt)
    if most < FEWEST or len(train) < FEWEST or apart is None:
        return kept.familiarity, None
    held, unsure = apart
    rest = np.setdiff1d(train, held)
    shown = rest[evenly(len(rest), most - len(held))]
    rows = np.concatenate([shown, held])
    bench.watcher.stage("what is familiar", total=len(rows))
    images: Rows = material.fitting.plain[rows]
    if kept.preprocess != material.preprocess:
        images = plain_at(material, material.fitting.ids[rows], kept.preprocess, bench)
    features = features_of(kept, images, bench)
    if not np.isfinite(features).all():
        return kept.familiarity, None
    theirs, others = features[: len(shown)], features[len(shown) :]
    sample = Sample(shown, theirs, held, others)
    if kept.familiarity is not None:  # of frozen features, as they were made for its head
        return kept.familiarity, sample
    return Familiarity.of(theirs, leading(material.labels[shown])).limited_by(others, unsure), sample
