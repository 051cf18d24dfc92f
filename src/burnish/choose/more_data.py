"""Would more images help? A learning curve of the frozen head, carried on by a power law, with its uncertainty."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from burnish.choose.material import Material
from burnish.labels import leading, right
from burnish.measure.grouped import count_of
from burnish.methods.base import Fitted
from burnish.runtime import draws

_SHARES = (0.125, 0.25, 0.5, 1.0)  # of the training images
_REPEATS = 3  # draws of each share but the whole
_FACTORS = (2.0, 4.0)  # times as many images
_FEWEST = 40  # training images, and validation images, from which a curve says something
# Groups among either; of 6 to 20 among the validation images the range holds the truth 87 to 97 % of the time
_FEWEST_SETS = 6
_FEWEST_WRONG = 3.0  # validation images that all of the training images leave wrong
_SHARE_OF_TIME = 0.03
_DRAWS = 500  # of the validation images, for the uncertainty


def learning_curve(
    features: np.ndarray,
    material: Material,
    refit: Callable[[np.ndarray], Fitted],
    whole: np.ndarray,
    *,
    seed: int,
    seconds_left: float | None,
) -> dict[str, Any] | None:
    """Validation error of heads on shares of the training images, and what 2 and 4 times as many would give: plain values.

    features [n d] of the fitting images; refit: rows of them to a head; whole: how right the head of all training images is
    on the val images, bool [v] or 0 to 1. The error is taken to fall as b · n^-c (Hestness et al. 2017, arXiv:1712.00409),
    without a floor, so it is a hopeful view; its range comes from redrawing validation images, whole groups of them, and
    repeats. None where there are too few images or groups, less than three of the val ones are wrong, or there is no time
    (seconds_left: None for no limit).
    """
    train, val, labels = material.train_rows, material.val_rows, material.labels
    tied, of_val = material.sets(train), material.sets(val)
    few = min(count_of(tied), count_of(of_val)) < _FEWEST_SETS
    if len(train) < _FEWEST or len(val) < _FEWEST or few or seconds_left == 0.0:
        return None

    def wrong(rows: np.ndarray) -> np.ndarray:
        return 1.0 - right(refit(rows).logits(features[val]), labels[val]).astype(np.float64)

    kinds = leading(labels[train])
    began = time.monotonic()  # a small one tells what all would cost
    wrong(_part(train, kinds, tied, _SHARES[0], seed, 0))
    cost = (time.monotonic() - began) * sum(_SHARES[:-1]) / _SHARES[0] * _REPEATS
    if seconds_left is not None and cost > _SHARE_OF_TIME * seconds_left:
        return None
    points: list[tuple[int, list[np.ndarray]]] = []
    for share in _SHARES[:-1]:
        parts = [_part(train, kinds, tied, share, seed, repeat) for repeat in range(_REPEATS)]
        parts = [part for part in parts if len(np.unique(leading(labels[part]))) > 1]
        if parts:
            points.append((round(float(np.mean([len(part) for part in parts]))), [wrong(part) for part in parts]))
    points.append((len(train), [1.0 - whole.astype(np.float64)]))
    if float(points[-1][1][0].sum()) < _FEWEST_WRONG:  # nothing to carry on: of no error none can be taken away
        return None
    if len({size for size, _ in points}) < 3:  # of one image a class all shares are the same images
        return None
    return _curve_of(points, of_val, seed)


def _curve_of(points: list[tuple[int, list[np.ndarray]]], tied: np.ndarray, seed: int) -> dict[str, Any]:
    """The curve and where it leads, from (training images, wrong [v] of each repeat); tied [v]: equal where drawn together."""
    n, count = len(tied), count_of(tied)
    sizes = np.log([size for size, _ in points])
    reached = points[-1][0]
    goals = np.log([factor * reached for factor in _FACTORS])
    rng, ahead = draws(seed, "learning curve"), []
    for _ in range(_DRAWS):
        rows = np.repeat(np.arange(n), np.bincount(rng.integers(0, count, count), minlength=count)[tied])
        errors = [float(np.mean(repeats[rng.integers(len(repeats))][rows])) for _, repeats in points]
        ahead.append(carried_on(sizes, np.array(errors), goals, n))
    means = np.array([float(np.mean([one.mean() for one in repeats])) for _, repeats in points])
    found, spread = carried_on(sizes, means, goals, n), np.quantile(np.array(ahead), [0.025, 0.975], axis=0)
    return {
        "n_val": n,
        "points": [
            {"images": size, "accuracy": float(1.0 - error)} for (size, _), error in zip(points, means, strict=True)
        ],
        "ahead": [
            {
                "images": round(factor * reached),
                "factor": factor,
                "accuracy": float(1.0 - found[at]),
                "low": float(1.0 - spread[1, at]),
                "high": float(1.0 - spread[0, at]),
            }
            for at, factor in enumerate(_FACTORS)
        ],
    }


def carried_on(sizes: np.ndarray, errors: np.ndarray, goals: np.ndarray, n: int) -> np.ndarray:
    """Errors at `goals` by a line through the logarithms; it never rises, and larger sizes weigh more."""
    logs = np.log(np.maximum(errors, 0.5 / n))
    weights = np.exp(0.5 * (sizes - sizes[-1]))
    slope, _ = np.polyfit(sizes, logs, 1, w=weights)
    # Through the last point, which is the one that was reached; the slope is that of all.
    return np.exp(logs[-1] + min(float(slope), 0.0) * (goals - sizes[-1]))


def _part(train: np.ndarray, kinds: np.ndarray, tied: np.ndarray, share: float, seed: int, repeat: int) -> np.ndarray:
    """A share of the training rows, of each class about as much, and one image at the least; tied [n]: of whole sets of them."""
    taken = np.zeros(count_of(tied), bool)
    for kind in np.unique(kinds):
        members = draws(seed, "learning curve", str(share), repeat, int(kind)).permutation(tied[kinds == kind])
        sets, first, sizes = np.unique(members, return_index=True, return_counts=True)
        order = np.lexsort((first, ~taken[sets]))  # what other classes have taken counts first
        wanted = max(1, round(share * len(members)))
        taken[sets[order[: int(np.searchsorted(np.cumsum(sizes[order]), wanted)) + 1]]] = True
    return train[taken[tied]]
