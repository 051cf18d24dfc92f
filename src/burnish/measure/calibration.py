"""Whether a confidence of 80 % is right 80 times of 100, and the one number that mends it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypedDict

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import softmax

from burnish.labels import cross_entropies, right, several
from burnish.labels import probabilities as probabilities_of
from burnish.measure.bootstrap import share_among
from burnish.measure.scores import checked

_COLDEST, _HOTTEST = 0.02, 50.0  # the range of temperatures searched; Guo et al. found 0.7 to 3 for trained networks
_AT_AN_END = 1e-2  # of log T: a minimum this close to the cold end of the range is none


class Bin(TypedDict):
    """The images whose confidence lies in one range, low < confidence <= high: a row for result.json."""

    low: float  # fractions, 0 to 1, here and below
    high: float
    n: int  # images
    confidence: float | None  # mean; None in an empty bin
    accuracy: float | None
    limits: list[float] | None  # of the 95 % interval of the accuracy


def temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The T by which to divide logits [n k] so that their softmax fits labels [n], or their sigmoids labels bool [n k], best.

    Minimises the negative log-likelihood over log T (Guo et al. 2017, arXiv:1706.04599). When every label has the
    largest logit that has no minimum, colder is always better; then T is where the confidences fit (n + 1) / (n + 2)
    right, the rule of succession. Where nothing can be fitted (no images, one class, outputs that are not numbers or
    say nothing) T is 1. Never a worse likelihood than T = 1 on these images.
    """
    scores, truth = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    truth = truth if several(truth) else truth.astype(np.int64)
    if scores.ndim != 2 or truth.shape not in (scores.shape[:1], scores.shape):
        raise ValueError(f"shapes {scores.shape} and {truth.shape}, expected [n k] and [n] or [n k]")
    if len(scores) == 0 or scores.shape[1] < 2 or not np.isfinite(scores).all():
        return 1.0

    def loss(log_t: float) -> float:
        return nats(scores / math.exp(log_t), truth)

    all_right = not several(truth) and bool(np.all(right(scores, truth)))
    found = _minimum((lambda log_t: _succession(scores / math.exp(log_t))) if all_right else loss)
    return math.exp(found) if found is not None and loss(found) < loss(0.0) else 1.0


def nats(logits: np.ndarray, labels: np.ndarray) -> float:
    """The mean negative log-likelihood of labels under logits [n k], nats: see `burnish.labels.cross_entropies`."""
    return float(cross_entropies(logits, labels).mean())


def calibrated(logits: np.ndarray, temperature: float = 1.0, *, several: bool = False) -> np.ndarray:
    """Probabilities, float64 [n k], from logits [n k] divided by the temperature."""
    return probabilities_of(np.asarray(logits, dtype=np.float64) / temperature, several=several)


def reliability(
    probabilities: np.ndarray, labels: np.ndarray, *, bins: int = 15, groups: np.ndarray | None = None
) -> list[Bin]:
    """The rows of a reliability diagram: `bins` ranges of confidence, equally wide, the empty ones included.

    probabilities [n k], labels [n]; errors as in `burnish.measure.scores.score`. With labels bool [n k] every pair of image and
    class counts, and what is right is that the image has the class; limits then count images, not pairs. groups: int64 [n], from
    0, of images that were drawn together, which limits count instead.
    """
    confidence, hit = _confidences_and_hits(probabilities, labels)
    edges, place = np.linspace(0.0, 1.0, bins + 1), _places(confidence, bins)
    pairs = len(hit) // len(labels)
    drawn = groups if groups is not None or pairs == 1 else np.arange(len(labels))
    drawn = None if drawn is None else np.repeat(drawn, pairs)
    return [_bin(edges[i], edges[i + 1], confidence, hit, place == i, drawn) for i in range(bins)]


def adaptive_ece(probabilities: np.ndarray, labels: np.ndarray, *, bins: int = 15) -> float:
    """The expected calibration error with bins of equally many images (Nixon et al. 2019, arXiv:1904.01685), a fraction."""
    confidence, hit = _confidences_and_hits(probabilities, labels)
    order = np.argsort(confidence, kind="stable")
    _, tied, counts = np.unique(confidence, return_inverse=True, return_counts=True)
    hit = (np.bincount(tied, hit) / counts)[tied]  # which of equals come first must not matter
    parts = [part for part in np.array_split(order, bins) if len(part)]
    gaps = [abs(float(hit[part].mean() - confidence[part].mean())) for part in parts]
    return float(np.average(gaps, weights=[len(part) for part in parts]))


def ece(probabilities: np.ndarray, labels: np.ndarray, *, bins: int = 15) -> float:
    """The expected calibration error, a fraction: |accuracy - confidence| of the bins, weighted by their images.

    Naeini et al. 2015 (AAAI); 15 bins as in arXiv:1706.04599. It is biased upwards when images are few.
    """
    confidence, hit = _confidences_and_hits(probabilities, labels)
    apart = np.bincount(_places(confidence, bins), hit - confidence)
    return float(np.abs(apart).sum() / len(hit))


def gaps_of_bins(probabilities: np.ndarray, labels: np.ndarray, *, bins: int = 15) -> np.ndarray:
    """What each image adds to the gaps of the bins, float64 [n bins]: `ece` is the sum over bins of |the mean over images|.

    So it can be computed for any weights of the images, as a bootstrap asks.
    """
    confidence, hit = _confidences_and_hits(probabilities, labels)
    n, place = len(labels), _places(confidence, bins)
    pairs = len(hit) // n
    cells = np.repeat(np.arange(n), pairs) * bins + place
    return np.bincount(cells, hit - confidence, minlength=n * bins).reshape(n, bins) / pairs


def _places(confidence: np.ndarray, bins: int) -> np.ndarray:
    """The range of each confidence, from 0; an edge belongs to the range it ends."""
    edges = np.linspace(0.0, 1.0, bins + 1)
    return np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)


def _confidences_and_hits(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(confidence, whether right) of each answer; with several classes an image, of each pair of image and class."""
    rows, truth = checked(probabilities, labels, classes=np.asarray(probabilities).shape[-1])
    if several(truth):
        return rows.ravel(), truth.ravel()
    return rows.max(axis=1), rows.argmax(axis=1) == truth


def _bin(
    low: float, high: float, confidence: np.ndarray, hit: np.ndarray, inside: np.ndarray, drawn: np.ndarray | None
) -> Bin:
    """Of answers [n], those that are inside, bool [n]."""
    n = int(inside.sum())
    if not n:
        return Bin(low=float(low), high=float(high), n=0, confidence=None, accuracy=None, limits=None)
    found, mean = share_among(hit, inside, drawn), float(confidence[inside].mean())
    limits = [found.low, found.high]
    return Bin(low=float(low), high=float(high), n=n, confidence=mean, accuracy=found.value, limits=limits)


def _minimum(loss: Callable[[float], float]) -> float | None:
    """The log T of the least loss, or None when it lies at the cold end of the range: at the hot one all is said by chance."""
    ends = (math.log(_COLDEST), math.log(_HOTTEST))
    result: Any = minimize_scalar(loss, bounds=ends, method="bounded", options={"xatol": 1e-5})
    found = float(result.x)
    return None if found - ends[0] < _AT_AN_END else found


def _succession(logits: np.ndarray) -> float:
    """How badly the confidences fit n + 1 right of n + 2, in nats."""
    n = len(logits)
    confidence = np.clip(softmax(logits, axis=1).max(axis=1), 1e-12, 1.0 - 1e-12)
    return float(-np.mean((n + 1) * np.log(confidence) + np.log1p(-confidence)) / (n + 2))
