"""Labels of images: one class each, int64 [n], or several, bool [n k]; and what they have in common.

Everything that differs between the two tasks is here, told apart by the number of dimensions alone: with one class an image
the probabilities are a softmax, with several each class has a sigmoid of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import expit, log_softmax, softmax

SEPARATOR = "|"  # between the classes of one image, in text
_SMALLEST = float(np.finfo(np.float64).eps)  # stands for a probability of 0: a wrong certainty costs 36 nats


def numbered(names: Sequence[str]) -> np.ndarray:
    """A number for each name, int64 [n], from 0 in the order in which they are first met; equal for equal ones."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names], np.int64)


def grouped(names: Sequence[str]) -> np.ndarray | None:
    """The groups of images that are called so, as `numbered` has them; None where no two images are of one."""
    numbers = numbered(names)
    return numbers if numbers.max(initial=-1) + 1 < len(numbers) else None


def error_about_zero(values: np.ndarray, groups: np.ndarray | None = None) -> float:
    """As `error_of_mean`, of values that would be 0 on average."""
    sums = np.asarray(values, np.float64) if groups is None else np.bincount(groups, values)
    return float(np.sqrt(sums @ sums) / len(values))


def error_of_mean(values: np.ndarray, groups: np.ndarray | None = None) -> float:
    """A standard error of the mean of values [n], of which those of a group, int64 [n] from 0, are no independent draws.

    The square root of the sum of the groups' squared deviations (Cochran 1977, section 9A.2); a single group is worth one image.
    """
    apart = np.asarray(values, np.float64) - np.mean(values)
    if groups is not None and not groups.any():
        return float(np.sqrt(np.mean(apart**2)))
    return error_about_zero(apart, groups)


def several(labels: np.ndarray) -> bool:
    """Whether an image may have any number of classes."""
    return labels.ndim == 2


def counts(labels: np.ndarray, classes: int) -> np.ndarray:
    """Images of each class, int64 [k]."""
    return labels.sum(0, dtype=np.int64) if several(labels) else np.bincount(labels, minlength=classes)


def having(labels: np.ndarray, index: int) -> np.ndarray:
    """Which images are of one class, bool [n]."""
    return labels[:, index] if several(labels) else labels == index


def leading(labels: np.ndarray) -> np.ndarray:
    """A number for each image to draw evenly by, int64 [n]: its class; of several the rarest, and k where it has none."""
    if not several(labels):
        return labels
    rarity = np.argsort(np.argsort(labels.sum(0), kind="stable"), kind="stable")
    ranked = np.where(labels, rarity, labels.shape[1])
    return np.where(labels.any(1), ranked.argmin(1), labels.shape[1]).astype(np.int64)


def rank_within(classes: np.ndarray) -> np.ndarray:
    """int64 [n]: how many of the same class, int64 [n], stand before each."""
    order = np.argsort(classes, kind="stable")
    _, first, sizes = np.unique(classes[order], return_index=True, return_counts=True)
    rank = np.empty(len(classes), np.int64)
    rank[order] = np.arange(len(classes)) - np.repeat(first, sizes)
    return rank


def classes_of(labels: np.ndarray, row: int) -> list[int]:
    """The classes of one image."""
    return np.flatnonzero(labels[row]).tolist() if several(labels) else [int(labels[row])]


def probabilities(logits: np.ndarray, *, several: bool) -> np.ndarray:
    """float64 [n k] of logits [n k]: each row sums to 1, or with several each number stands for itself."""
    values = np.asarray(logits, np.float64)
    return np.asarray(expit(values) if several else softmax(values, axis=1))


def right(scores: np.ndarray, labels: np.ndarray, cut: float | np.ndarray = 0.0) -> np.ndarray:
    """How right each answer is: bool [n], whether the largest score is the label's; or float64 [n], 0 to 1.

    With several classes an image it is what the answered classes (scores [n k] of at least `cut`, a number or [k]; 0 for logits)
    and the true ones have in common, as a share of all that are in either (the Jaccard index; 1 when both are none): the
    accuracy of several labels of Godbole and Sarawagi 2004.
    """
    if not several(labels):
        return np.asarray(scores).argmax(axis=1) == labels
    answered = np.asarray(scores) >= cut
    both, either = (answered & labels).sum(1), (answered | labels).sum(1)
    return np.where(either > 0, both / np.maximum(either, 1), 1.0)


def cross_entropies(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The negative log-likelihood of each image's label, float64 [n], nats; of several labels, the mean over the classes."""
    values = np.asarray(logits, np.float64)
    if not several(labels):
        return -np.asarray(log_softmax(values, axis=1))[np.arange(len(labels)), labels]
    return (np.logaddexp(0.0, values) - values * labels).mean(1)


def log_losses(chances: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """`cross_entropies` of probabilities [n k] instead of logits; 0, and with several labels 1, count as next to it."""
    values = np.clip(np.asarray(chances, np.float64), _SMALLEST, 1.0)
    if not several(labels):
        return -np.log(values[np.arange(len(labels)), labels])
    values = np.minimum(values, 1.0 - _SMALLEST)
    return cross_entropies(np.log(values) - np.log1p(-values), labels)
