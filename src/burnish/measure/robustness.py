"""What is left of a score where images are damaged, paired with the same images undamaged (P5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from burnish.labels import right, several
from burnish.measure.bootstrap import bootstrapped, paired_shares, share, share_among, times_for, widened
from burnish.measure.calibration import gaps_of_bins
from burnish.measure.grouped import count_of
from burnish.measure.intervals import Interval, Paired
from burnish.measure.several import hidden_precision, mean_average_precisions, rankings_of


@dataclass(frozen=True, eq=False)
class Told:
    """What a model says of n images in one state, in as few numbers as scores need."""

    right: np.ndarray  # bool [n], or with several classes an image float [n]: the Jaccard index
    confidence: np.ndarray  # float32 [n], of the likeliest class
    gaps: np.ndarray  # float32 [n bins], as `calibration.gaps_of_bins` has them
    probabilities: np.ndarray | None  # float32 [n k], kept with several classes an image alone
    strange: np.ndarray | None  # bool [n], unlike the training images; None where the package cannot tell

    @classmethod
    def of(
        cls,
        probabilities: np.ndarray,
        labels: np.ndarray,
        strange: np.ndarray | None = None,
        cut: np.ndarray | None = None,
    ) -> Told:
        """Of probabilities [n k] for labels int64 [n] or bool [n k]; cut [k]: from which probability on a class is said."""
        rows = np.asarray(probabilities, np.float64)
        return cls(
            right(rows, labels, 0.5 if cut is None else cut),
            rows.max(1).astype(np.float32),
            gaps_of_bins(rows, labels).astype(np.float32),
            rows.astype(np.float32) if several(labels) else None,
            strange,
        )

    @classmethod
    def joined(cls, parts: Sequence[Told]) -> Told:
        """Of all the images of several parts, in their order."""

        def all_of(values: Sequence[Any]) -> Any:
            return None if values[0] is None else np.concatenate(values)

        return cls(*(all_of([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))


@dataclass(frozen=True)
class Subjects:
    """The images that a model is asked about: what they show, and which were drawn together."""

    labels: np.ndarray  # int64 [n], or bool [n k]
    groups: np.ndarray | None  # int64 [n] from 0; None where each was drawn by itself

    @property
    def several(self) -> bool:
        """Whether an image may have any number of classes: then the score is the mean average precision, else accuracy."""
        return several(self.labels)


@dataclass(frozen=True)
class State:
    """How a model fares on images in one state, or on average over several; shares, 0 to 1, each with n and 95 % interval."""

    score: Interval  # accuracy, or mean average precision
    drop: Paired | None  # less the score of the same images undamaged; below 0 where it falls. None of those themselves
    ece: Interval  # expected calibration error; bootstrap
    unfamiliar: Interval | None  # told to be unlike the training images
    answered: Interval | None = None  # with a threshold: surer than that, and not unlike
    right_of_answered: Interval | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        intervals = ("score", "ece", "unfamiliar", "answered", "right_of_answered")
        told = {name: None if (one := getattr(self, name)) is None else one.to_json() for name in intervals}
        return {**told, "drop": None if self.drop is None else asdict(self.drop)}


def state_of(
    found: Sequence[Told], subjects: Subjects, *, clean: Told | None = None, threshold: float | None = None
) -> State:
    """Of what a model says in one state, or, where several are given, their mean; clean: of the same images undamaged.

    threshold: the confidence from which on answers are given. Images, or their groups, are what was drawn, whatever the number of
    states: a mean over states is first taken for each image.
    """
    answered = None if threshold is None else [_answered(one, threshold) for one in found]
    hits = None if answered is None else [one.right & given for one, given in zip(found, answered, strict=True)]
    strange = [one.strange for one in found if one.strange is not None]
    groups = subjects.groups
    return State(
        score=_score(found, subjects),
        drop=None if clean is None else _drop(clean, found, subjects),
        ece=_calibration_error(found, groups),
        unfamiliar=share(_mean(strange), groups) if strange else None,
        answered=None if answered is None else share(_mean(answered), groups),
        right_of_answered=None if answered is None or hits is None else _ratio(hits, answered, groups),
    )


def _answered(told: Told, threshold: float) -> np.ndarray:
    return (told.confidence >= threshold) & (True if told.strange is None else ~told.strange)


def _mean(values: Sequence[np.ndarray]) -> np.ndarray:
    """Image by image over the states; of a single one as it is, so that yes and no have their exact intervals."""
    return values[0] if len(values) == 1 else np.mean(values, axis=0)


def _score(found: Sequence[Told], subjects: Subjects) -> Interval:
    if not subjects.several:
        return share(_mean([one.right for one in found]), subjects.groups)
    labels, groups = subjects.labels, subjects.groups
    interval = _precisions({"score": found}, subjects)["score"].interval()
    rankings = rankings_of(np.mean([np.asarray(one.probabilities) for one in found], axis=0), labels)
    return widened(interval, hidden_precision(rankings, labels, groups))


def _drop(clean: Told, found: Sequence[Told], subjects: Subjects) -> Paired:
    if not subjects.several:
        return paired_shares(clean.right, _mean([one.right for one in found]), subjects.groups)
    paired = _precisions({"score": found, "clean": [clean]}, subjects)["drop"].paired()
    return paired if subjects.groups is None else replace(paired, groups=count_of(subjects.groups))


def _precisions(of: dict[str, Sequence[Told]], subjects: Subjects) -> dict[str, Any]:
    """Mean average precisions by name, averaged over states, and their difference, by bootstrap."""
    rankings = {
        name: [rankings_of(np.asarray(one.probabilities), subjects.labels) for one in found]
        for name, found in of.items()
    }

    def statistics(weights: np.ndarray) -> dict[str, np.ndarray]:
        told = {
            name: np.mean([mean_average_precisions(one, weights) for one in each], axis=0)
            for name, each in rankings.items()
        }
        return told if "clean" not in told else {**told, "drop": told["score"] - told["clean"]}

    n, k = subjects.labels.shape
    times = times_for(n, k * sum(map(len, of.values())))
    return bootstrapped(statistics, n, times=times, groups=subjects.groups)


def _calibration_error(found: Sequence[Told], groups: np.ndarray | None) -> Interval:
    """The mean over states of `calibration.ece`; its bootstrap limits reach down to what few images leave open."""

    def statistics(weights: np.ndarray) -> dict[str, np.ndarray]:
        whole = weights.sum(1)
        return {"ece": np.mean([np.abs(weights @ one.gaps).sum(1) / whole for one in found], axis=0)}

    n = len(found[0].right)
    times = times_for(n, found[0].gaps.shape[1] * len(found))
    return bootstrapped(statistics, n, times=times, groups=groups)["ece"].interval()


def _ratio(hits: Sequence[np.ndarray], of: Sequence[np.ndarray], groups: np.ndarray | None) -> Interval:
    """The share of `of` that are hits; over several states the images are drawn with what was said of them in each."""
    if len(of) == 1:
        return share_among(hits[0], of[0], groups)
    top, bottom = (np.array(one, np.float64).sum(axis=0, keepdims=True)[0] for one in (hits, of))
    if not bottom.any():
        return share_among(hits[0], np.zeros_like(of[0]), None)

    def statistics(weights: np.ndarray) -> dict[str, np.ndarray]:
        with np.errstate(invalid="ignore"):
            return {"ratio": (weights @ top) / (weights @ bottom)}

    return bootstrapped(statistics, len(top), groups=groups)["ratio"].interval()
