"""The scores of one model on images of which each may have several classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from burnish.errors import NotEnoughData
from burnish.labels import log_losses, right
from burnish.measure.bootstrap import (
    Ranking,
    bootstrapped,
    hidden_by_few,
    images_or_groups,
    mean_of_known,
    share,
    times_for,
    widened,
)  # fmt: skip
from burnish.measure.intervals import Interval, percent, wilson
from burnish.measure.scores import checked

_EVEN = 0.5
_FEWEST = 10  # images with a class, and without it, from which its own threshold is fitted
_TINY = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class LabelScore:
    """How one class fares among several."""

    name: str
    n: int  # images that have it
    predicted: int  # images that were said to have it
    hits: int  # rightly
    threshold: float  # from which probability on it is said
    recall: Interval  # hits / n
    precision: float | None  # hits / predicted
    f1: float | None  # None where the class is neither there nor said
    average_precision: float | None  # None without images that have it

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "recall": self.recall.to_json()}


@dataclass(frozen=True, eq=False, repr=False)
class SeveralScores:
    """All scores of one model on n images of k classes, of which each may have any number."""

    n: int
    mean_average_precision: Interval  # macro mean over the classes that images have; bootstrap
    accuracy: Interval  # mean over images of what answered and true classes share (Jaccard); bootstrap
    exact: Interval  # images with every class right, neither more nor less; Wilson
    micro_f1: Interval  # of all pairs of image and class; bootstrap
    macro_f1: Interval  # mean over the classes; bootstrap
    auroc: Interval  # macro mean of each class against the rest; bootstrap
    log_loss: float  # mean binary cross-entropy over images and classes, nats
    brier: float  # mean squared distance of a probability to 0 or 1
    per_class: tuple[LabelScore, ...]  # [k]

    def __repr__(self) -> str:
        return (
            f"SeveralScores({self.n:,} images of {len(self.per_class):,} classes: mAP "
            f"{percent(self.mean_average_precision.value)}, macro F1 {percent(self.macro_f1.value)}, all classes right "
            f"{percent(self.exact.value)})"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values, for result.json."""
        intervals = ("mean_average_precision", "accuracy", "exact", "micro_f1", "macro_f1", "auroc")
        return {
            "n": self.n,
            **{name: getattr(self, name).to_json() for name in intervals},
            "log_loss": self.log_loss,
            "brier": self.brier,
            "per_class": [one.to_json() for one in self.per_class],
        }


def score_several(
    probabilities: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    thresholds: np.ndarray | None = None,
    groups: np.ndarray | None = None,
) -> SeveralScores:
    """The scores of probabilities [n k], each of its own, against labels bool [n k].

    thresholds [k]: from which probability on a class is said, 0.5 without. groups: as for `score`. NotEnoughData without images
    or without a single label; ModelError for outputs that are not probabilities.
    """
    rows, truth = checked(probabilities, labels, classes=len(classes))
    if not truth.any():
        raise NotEnoughData("none of the images has any of the classes, so nothing can be scored")
    n, k = rows.shape
    cut = np.full(k, _EVEN) if thresholds is None else np.asarray(thresholds, np.float64)
    said = rows >= cut
    statistics = Statistics(rows, truth, cut)
    found = bootstrapped(statistics, n, times=times_for(n, k), groups=groups)
    intervals = {name: one.interval() for name, one in found.items()}
    present, once = np.flatnonzero(truth.any(0)), np.ones((1, n), np.float32)
    few = images_or_groups(truth[:, present], groups)
    precisions = hidden_precision(statistics.rankings, truth, groups)
    areas = hidden_by_few(np.array([one.area(once)[0] for one in statistics.rankings]), few)
    recalls = hidden_by_few((said & truth).sum(0)[present] / truth.sum(0)[present], few)
    for name, hidden in (("mean_average_precision", precisions), ("auroc", areas), ("macro_f1", recalls)):
        if np.isfinite(intervals[name].value):
            intervals[name] = widened(intervals[name], hidden)
    return SeveralScores(
        n=n,
        exact=share((said == truth).all(1), groups),
        log_loss=float(log_losses(rows, truth).mean()),
        brier=float(((rows - truth) ** 2).mean()),
        per_class=tuple(
            _label_score(name, rows[:, at], truth[:, at], said[:, at], float(cut[at]))
            for at, name in enumerate(classes)
        ),
        **intervals,
    )


class Statistics:
    """The scores that are resampled, as functions of weights [c n]."""

    def __init__(self, probabilities: np.ndarray, labels: np.ndarray, thresholds: np.ndarray) -> None:
        self.said, self.truth = (probabilities >= thresholds).astype(np.float64), labels.astype(np.float64)
        self.both = self.said * self.truth
        self.similar = right(probabilities, labels, thresholds).astype(np.float64)
        self.rankings = rankings_of(probabilities, labels)

    def __call__(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Each score [c]."""
        hits, said, true = weights @ self.both, weights @ self.said, weights @ self.truth  # [c k]
        either = said + true
        with np.errstate(invalid="ignore", divide="ignore"):
            f1 = np.where(either > 0, 2.0 * hits / either, np.nan)
            micro = 2.0 * hits.sum(1) / either.sum(1)
        return {
            "accuracy": weights @ self.similar / weights.sum(1),
            "micro_f1": micro,
            "macro_f1": mean_of_known(f1.T),
            "mean_average_precision": mean_average_precisions(self.rankings, weights),
            "auroc": mean_of_known(np.array([one.area(weights) for one in self.rankings])),
        }


def mean_average_precisions(rankings: Sequence[Ranking], weights: np.ndarray) -> np.ndarray:
    """The macro mean average precision [c] of such rankings, for weights [c n]."""
    return mean_of_known(np.array([one.average_precision(weights) for one in rankings]))


def hidden_precision(rankings: Sequence[Ranking], labels: np.ndarray, groups: np.ndarray | None) -> tuple[float, float]:
    """What classes of few images leave open below and above the mean average precision, as `hidden_by_few`.

    rankings: of each class that any of the images has; labels bool [n k]; groups: int64 [n], of images drawn together.
    """
    once = np.ones((1, len(labels)), np.float32)
    own = np.array([one.average_precision(once)[0] for one in rankings])
    return hidden_by_few(own, images_or_groups(labels[:, labels.any(0)], groups))


def rankings_of(probabilities: np.ndarray, labels: np.ndarray) -> list[Ranking]:
    """The images in the order of each class's probability; of the classes that any of them has."""
    return [Ranking(probabilities[:, at], labels[:, at]) for at in np.flatnonzero(labels.any(0))]


def thresholds_for(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """From which probability on each class is said, float64 [k]: so that F1 is highest on these images.

    probabilities [n k] of images that were not trained on, labels bool [n k]. A class of which fewer than 10 images (or all but
    10) are there gets the threshold that is best for all pairs together: its own would follow the noise. Where the classes are
    well calibrated the best is half of the F1 reached (Lipton, Elkan and Narayanaswamy 2014, arXiv:1402.1892), so mostly below
    0.5. Without images: 0.5.
    """
    rows, truth = np.asarray(probabilities, np.float64), np.asarray(labels, bool)
    if not truth.any():
        return np.full(rows.shape[1], _EVEN)
    together = _best_cut(rows.ravel(), truth.ravel())
    found = truth.sum(0)
    own = (found >= _FEWEST) & (len(rows) - found >= _FEWEST)
    return np.array([_best_cut(rows[:, at], truth[:, at]) if own[at] else together for at in range(rows.shape[1])])


def _best_cut(scores: np.ndarray, positive: np.ndarray) -> float:
    """The middle between the two neighbouring scores at which F1 is highest."""
    order = np.argsort(-scores, kind="stable")
    falling, hits = scores[order], np.cumsum(positive[order])
    f1 = 2.0 * hits / (np.arange(1, len(falling) + 1) + hits[-1])
    f1[:-1][falling[:-1] == falling[1:]] = -1.0  # equals are said together
    best = int(f1.argmax())
    below = falling[best + 1] if best + 1 < len(falling) else 0.0
    return float(np.clip((falling[best] + below) / 2.0, _TINY, 1.0))


def _label_score(name: str, chances: np.ndarray, truth: np.ndarray, said: np.ndarray, threshold: float) -> LabelScore:
    n, predicted, hits = int(truth.sum()), int(said.sum()), int((truth & said).sum())
    average = Ranking(chances, truth).average_precision(np.ones((1, len(truth)), np.float32))[0]
    return LabelScore(
        name=name,
        n=n,
        predicted=predicted,
        hits=hits,
        threshold=threshold,
        recall=wilson(hits, n),
        precision=hits / predicted if predicted else None,
        f1=2.0 * hits / (n + predicted) if n + predicted else None,
        average_precision=None if math.isnan(average) else float(average),
    )
