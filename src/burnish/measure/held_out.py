"""What a model knows of its own limits, from images that it was not trained on: when to decline, and sets of classes.

Where those images come in groups that were drawn whole (patients, films, sites), each group counts as one, whose images share
its place: what is promised is then of images of new groups. Where each image is by itself it is its own group.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any

import numpy as np
from scipy.special import betainc

from burnish.errors import RecipeError, shown
from burnish.measure.bootstrap import share, share_among
from burnish.measure.grouped import count_of
from burnish.runtime import evenly

_MOST = 5000  # images kept, spread over all
_POINTS = 60  # of a curve
# One-sided, of each test of `threshold`. Where the confidence says nothing and answers are too seldom right, a threshold is then
# found in at most 6 % of draws; a lowest place at which enough are right was there in 23 to 53 % (simulated, 100 to 5,000)
_LEVEL = 0.1
_STEPS, _STARTS = 25, (0.0, 0.25, 0.5)
COVERAGES = (0.9, 0.95, 0.99)  # of sets of classes, that a report shows
ACCURACIES = (0.95, 0.98, 0.99)  # of what is answered, that a report shows


def is_share(value: object) -> bool:
    """Whether it is a number between 0 and 1."""
    return isinstance(value, Real) and not isinstance(value, bool) and 0.0 < float(value) < 1.0


@dataclass(frozen=True, eq=False)
class HeldOut:
    """How sure a model was, and how right, on held-out images; one class an image."""

    confidence: np.ndarray  # float64 [n], probability of the likeliest class
    right: np.ndarray  # bool [n], whether it is the true one
    own: np.ndarray  # float64 [n], probability of the true class
    # int64 [n], which class is the true one; empty in packages of before it was kept
    label: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    # int64 [n] from 0 without gaps, equal for images that were drawn together; empty where each is by itself
    groups: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    @classmethod
    def of(cls, probabilities: np.ndarray, labels: np.ndarray, groups: np.ndarray | None = None) -> HeldOut:
        """Of probabilities [n k], labels and groups int64 [n]; at most 5,000 images spread over all."""
        rows = evenly(len(labels), _MOST)
        chances, truth = np.asarray(probabilities, np.float64)[rows], np.asarray(labels, np.int64)[rows]
        own = chances[np.arange(len(rows)), truth]
        held = cls(chances.max(1), chances.argmax(1) == truth, own, truth)
        return held if groups is None else replace(held, groups=np.unique(groups[rows], return_inverse=True)[1])

    def __len__(self) -> int:
        return len(self.right)

    @property
    def by_group(self) -> np.ndarray:
        """int64 [n]: the group of each image, which may be of its own."""
        return self.groups if len(self.groups) else np.arange(len(self))

    def threshold(self, accuracy: float) -> float | None:
        """The least confidence from which answers are right so often; None when these images cannot show that.

        A fixed sequence of tests (Bauer 1991, Statistics in Medicine 10:871; Angelopoulos et al. 2021, arXiv:2110.01052): the
        surest images, as few as could show it if all were right, then more of them in 24 even steps, each time by a binomial
        test, up to the first that fails; what comes after a failure would be chance that was waited for. Begun anew at a quarter
        and at half of the steps, so that one wrong answer among the surest does not end it. 99 of 100 needs 230 images that are
        all right, or 230 groups. Of a group the share of its answers that is wrong is what the test counts: shares vary less
        than whole ones of the same mean, so that it errs to the careful side.
        """
        if not is_share(accuracy):
            raise RecipeError(f"reject is {accuracy!r}, expected the accuracy wanted of the answers, such as 0.99")
        order, n = np.argsort(-self.confidence, kind="stable"), len(self)
        falling, wrong, groups = self.confidence[order], ~self.right[order], self.by_group[order]
        fewest = _enough_for(groups, math.ceil(math.log(_LEVEL) / math.log(accuracy) - 1e-9))
        if fewest is None:
            return None
        counts = np.linspace(fewest, n, _STEPS).astype(np.int64)
        # Equals are answered together.
        counts = np.unique(np.searchsorted(-falling, -falling[counts - 1], side="right"))
        asked = [_by_groups(wrong[:count], groups[:count]) for count in counts]
        fails = np.array([_chance_of_so_few(*one, 1.0 - accuracy) > _LEVEL + 1e-9 for one in asked])
        proven = 0  # of the surest images, so many
        for start in (int(part * len(counts)) for part in _STARTS):
            failed = np.flatnonzero(fails[start:])
            end = start + int(failed[0]) if len(failed) else len(counts)
            proven = max(proven, int(counts[end - 1]) if end > start else 0)
        return float(falling[proven - 1]) if proven else None

    def rejecting(self, accuracy: float) -> float:
        """`threshold`, or RecipeError that says what these images can show."""
        found = self.threshold(accuracy)
        if found is None:
            thousandths = range(math.ceil(1e3 * accuracy) - 1, 0, -1)  # what is said can be asked for
            best = next((one / 1e3 for one in thousandths if self.threshold(one / 1e3) is not None), 0.0)
            most = "no share at all" if best <= 0.0 else f"{best:.1%} at the most"
            raise RecipeError(
                f"reject {accuracy:g}: the {_counted(self.by_group)} of this package can show {most}; ask for less, or "
                f"train with {'images of more groups' if len(self.groups) else 'more images'}"
            )
        return found

    def cut(self, coverage: float) -> float:
        """The probability from which a class belongs to the set, so that sets hold the true class so often.

        Split conformal prediction with the probability of the true class (Sadinle, Lei and Wasserman 2019, JASA 114:223; Vovk et
        al. 2005; of groups, Lee, Barber and Willett 2023, arXiv:2306.06342): 0 where the images, or their groups, are too few for
        the coverage, and every class is in the set.
        """
        if not is_share(coverage):
            raise RecipeError(f"sets is {coverage!r}, expected how often a set must hold the true class, such as 0.95")
        return _at_rank(self.own, self.by_group, coverage) or 0.0

    def shown_of(self, index: int) -> np.ndarray:
        """The probability of a class on the held-out images that show it, float64 [m]; m is 0 where that was not kept."""
        return self.own[: len(self.label)][self.label == index]

    def _groups_of(self, index: int) -> np.ndarray:
        """The groups of those images, int64 [m]."""
        return self.by_group[: len(self.label)][self.label == index]

    def threshold_finding(self, index: int, sensitivity: float) -> float | None:
        """The probability of a class from which on so large a share of its images is found; None where too few can show that.

        Split conformal within the class (Vovk 2012, arXiv:1209.2673): of the m held-out images that show it, the one at rank
        ceil((m + 1) · sensitivity) from the surest on. On average over draws of images a new one is found at least so often;
        0.95 needs 19 of them, or of the groups that show it.
        """
        if not is_share(sensitivity):
            raise RecipeError(f"find is {sensitivity!r}, expected the share of the class to be found, such as 0.95")
        return _at_rank(self.shown_of(index), self._groups_of(index), sensitivity)

    def finding(self, index: int, sensitivity: float, name: str) -> float:
        """`threshold_finding`, or RecipeError that says what share of that class these images can show."""
        found = self.threshold_finding(index, sensitivity)
        if found is None:
            groups = self._groups_of(index)
            count = len(np.unique(groups))
            best = math.floor(1e3 * count / (count + 1)) / 1e3  # what is said can be asked for
            most = f"{best:.1%} at the most" if best > 0 else "no share at all"
            raise RecipeError(
                f"find {shown(name)}={sensitivity:g}: the {_counted(groups, f' of {shown(name)}')} in this package can show "
                f"{most}; ask for less, or train with {'more groups that show' if len(self.groups) else 'more images of'} it"
            )
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain values, for the package."""
        return {
            # Rounded down, and never 1: an image as sure as one of these must not fall below a threshold that is one of them.
            "confidence": [_rounded_down(float(one)) for one in self.confidence],
            "right": [int(one) for one in self.right],
            "own": [_rounded_down(float(one)) for one in self.own],
            "label": self.label.tolist(),
            **({"groups": self.groups.tolist()} if len(self.groups) else {}),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any], *, classes: int) -> HeldOut:
        """The inverse of `to_json`; ValueError when it is not."""
        names = ("confidence", "right", "own")
        known = {"label": [], "groups": [], **values}  # older packages have neither
        if set(known) != {*names, "label", "groups"} or not all(isinstance(known[name], list) for name in known):
            raise ValueError(f"held_out: expected lists {', '.join(names)}, label, groups")
        try:
            columns = [np.array(values[name], np.float64) for name in names]
            label, groups = (np.array(known[name], np.float64) for name in ("label", "groups"))
        except (TypeError, ValueError, OverflowError):
            raise ValueError("held_out: expected numbers") from None
        if any(one.ndim != 1 or len(one) != len(columns[0]) for one in columns):
            raise ValueError("held_out: expected lists of one length")
        if any(((one < 0) | (one > 1) | ~np.isfinite(one)).any() for one in columns):
            raise ValueError("held_out: expected numbers of 0 to 1")
        if label.shape not in ((0,), columns[0].shape) or not np.isin(label, np.arange(classes)).all():
            raise ValueError(f"held_out: expected a label of 0 to {classes - 1} for each image")
        if groups.shape not in ((0,), columns[0].shape) or not np.isin(groups, np.arange(len(columns[0]))).all():
            raise ValueError("held_out: expected a group for each image, numbered from 0")
        numbered = np.unique(groups, return_inverse=True)[1]
        return cls(columns[0], columns[1] > 0.5, columns[2], label.astype(np.int64), numbered)


def _at_rank(values: np.ndarray, groups: np.ndarray, portion: float) -> float | None:
    """Of values float64 [m], the one at rank ceil((g + 1) · portion) of g groups from the largest on; None beyond the last.

    A group's values share its one place.
    """
    if not len(values):
        return None
    numbers, sizes = np.unique(groups, return_inverse=True)[1], np.unique(groups, return_counts=True)[1]
    order = np.argsort(-values, kind="stable")
    reached = np.cumsum(1.0 / sizes[numbers[order]])
    at = int(np.searchsorted(reached, (len(sizes) + 1) * portion - 1e-9))
    return float(values[order[at]]) if at < len(values) else None


def _enough_for(groups: np.ndarray, wanted: int) -> int | None:
    """How many of the first images, of groups int64 [n], are of so many groups; None where all are of fewer."""
    firsts = np.sort(np.unique(groups, return_index=True)[1])
    return int(firsts[wanted - 1]) + 1 if wanted <= len(firsts) else None


def _by_groups(wrong: np.ndarray, groups: np.ndarray) -> tuple[float, int]:
    """The sum of the groups' wrong shares, of bool [n], and how many groups there are."""
    sizes = np.bincount(groups)
    there = sizes > 0
    return float((np.bincount(groups, wrong)[there] / sizes[there]).sum()), int(there.sum())


def _chance_of_so_few(wrong: float, count: int, share: float) -> float:
    """How likely so few of a count are wrong, where so large a share is meant to be: binomial, parts of one in between."""
    return float(betainc(max(count - wrong, 1e-9), wrong + 1.0, 1.0 - share))


def _counted(groups: np.ndarray, of: str = "") -> str:
    """How many held-out images there are, of how many groups."""
    count = len(np.unique(groups))
    return f"{len(groups)} held-out images{of}{f' ({count} groups)' if count < len(groups) else ''}"


def _rounded_down(value: float) -> float:
    """To 7 digits, below 1."""
    near = round(value, 7)
    return min(near if near <= value else round(near - 1e-7, 7), 0.9999999)


def sets(probabilities: np.ndarray, cut: float) -> np.ndarray:
    """Which classes are in each set, bool [n k]: those of at least `cut`, and always the likeliest."""
    held = probabilities >= cut
    held[np.arange(len(held)), probabilities.argmax(1)] = True
    return held


def declining(
    held_out: HeldOut,
    probabilities: np.ndarray,
    labels: np.ndarray,
    *,
    strange: np.ndarray | None = None,
    groups: np.ndarray | None = None,
) -> dict[str, Any]:
    """What thresholds and sets from held-out images do on other ones [n k], [n]: plain values for the report.

    strange: bool [n], images unlike the training images, which are declined too. groups: int64 [n], of images drawn together.

    "answers": at each wanted accuracy the threshold, how many are answered and how many of those are right; "sets": at each
    wanted coverage how often the true class is inside, and the sizes; "curve": accuracy over the share answered, for thresholds
    on these very images; "aurc": the area over it, the mean error (Geifman and El-Yaniv 2017, arXiv:1705.08500).
    """
    chances, n = np.asarray(probabilities, np.float64), len(labels)
    sure, right = chances.max(1), chances.argmax(1) == labels
    answers = []
    for accuracy in ACCURACIES:
        threshold = held_out.threshold(accuracy)
        answered = sure >= threshold if threshold is not None else np.zeros(n, bool)
        answered &= np.ones(n, bool) if strange is None else ~strange
        count = int(answered.sum())
        found = None if threshold is None else share_among(right, answered, groups).to_json()
        answers.append({"wanted": accuracy, "threshold": threshold, "answered": count, "accuracy": found})
    sized = []
    for coverage in COVERAGES:
        held = sets(chances, held_out.cut(coverage))
        inside = held[np.arange(n), labels]
        sized.append(
            {
                "wanted": coverage,
                "covered": share(inside, groups).to_json(),
                "mean_size": float(held.sum(1).mean()),
                "single": float((held.sum(1) == 1).mean()),
            }
        )
    order = np.argsort(-sure, kind="stable")
    accuracy = np.cumsum(right[order]) / np.arange(1, n + 1)
    points = evenly(n, _POINTS)
    return {
        "held_out": len(held_out),
        "held_out_groups": count_of(held_out.groups) or None,
        "answers": answers,
        "sets": sized,
        "curve": [[float((at + 1) / n), float(accuracy[at])] for at in points],
        "aurc": float(1.0 - accuracy.mean()),
    }
