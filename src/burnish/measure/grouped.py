"""How sure a share of right answers is where images come in groups: patients, films, sites (P5).

Images of a group are right and wrong together, so that many of few groups tell less than as many apart. What is known is of
groups that were drawn, not of images. Where every group has one image, all is as in `measure.intervals`.
"""

from __future__ import annotations

import numpy as np
from scipy.special import stdtrit

from burnish.errors import NotEnoughData
from burnish.measure.intervals import Interval, Paired, paired, paired_limits, quantile, wilson_limits


def wilson_of_groups(right: np.ndarray, groups: np.ndarray, *, confidence: float = 0.95) -> Interval:
    """The share of right answers, bool [n], of groups int64 [n], with Wilson's interval of as many images as they are worth."""
    right = np.asarray(right, bool)
    z, worth = quantile(confidence), images_worth(right.astype(np.float64), groups, confidence=confidence)
    value = float(right.mean())
    return Interval(value, *wilson_limits(value * worth, worth, z), len(right))


def paired_of_groups(
    first_right: np.ndarray, second_right: np.ndarray, groups: np.ndarray, *, confidence: float = 0.95
) -> Paired:
    """The difference of two accuracies on the same images, bool [n] each, of groups int64 [n].

    The interval is Newcombe's of as many images as the groups are worth. p is exact: how often the sum of the groups'
    differences is as far from 0 when each of them may have either sign (Fisher 1935, The Design of Experiments); of groups of
    one image that is McNemar's. NotEnoughData without images.
    """
    first, second = np.asarray(first_right, bool), np.asarray(second_right, bool)
    found = paired(first, second)  # which looks at the shapes too
    gains = second.astype(np.int64) - first.astype(np.int64)
    share = images_worth(gains.astype(np.float64), groups, confidence=confidence) / len(gains)
    both, only_first = share * np.sum(first & second), share * np.sum(first & ~second)
    neither, only_second = share * np.sum(~first & ~second), share * np.sum(~first & second)
    low, high = paired_limits(both, only_second, only_first, neither, quantile(confidence))
    p = chance_of_signs(np.bincount(groups, gains).astype(np.int64))
    return Paired(found.difference, low, high, p, found.only_first, found.only_second, found.n, count_of(groups))


def images_worth(values: np.ndarray, groups: np.ndarray, *, confidence: float = 0.95) -> float:
    """Of how many independent images the mean of these values, float64 [n], is as sure; at most n.

    Korn and Graubard 1998 (Survey Methodology 24:193): n over the design effect, with Student's quantile for the number of
    groups. Values that are all equal show no spread, and count as one a group.
    """
    n, count = len(values), count_of(groups)
    if n == 0:
        raise NotEnoughData("no images to judge by, expected one or more; give the data a test split")
    apart = values - values.mean()
    alone = float(np.square(apart).sum())
    if count == 1 or alone == 0.0:
        return float(count)
    together = float(np.square(np.bincount(groups, apart)).sum()) * count / (count - 1)
    students = float(stdtrit(count - 1, 0.5 + confidence / 2.0))
    return min(float(n), n * alone / max(together, 1e-12) * (quantile(confidence) / students) ** 2)


def chance_of_signs(sums: np.ndarray) -> float:
    """How often the sum of whole numbers, int64 [g], is as far from 0 as it is when each may have either sign."""
    sizes = np.abs(sums[sums != 0])
    reach = int(sizes.sum())
    if not reach:
        return 1.0
    likely = np.zeros(2 * reach + 1)  # of each sum from -reach on
    likely[reach] = 1.0
    far = 0
    for size in sizes.tolist():
        inner = likely[reach - far : reach + far + 1].copy()
        far += size
        likely[reach - far : reach + far + 1] = 0.0
        likely[reach - far : reach - far + len(inner)] += 0.5 * inner
        likely[reach + far - len(inner) + 1 : reach + far + 1] += 0.5 * inner
    least = abs(int(sums.sum()))
    return min(1.0, float(likely[: reach - least + 1].sum() + likely[reach + least :].sum())) if least else 1.0


def count_of(groups: np.ndarray) -> int:
    """How many groups there are, numbered from 0 without gaps."""
    return int(groups.max(initial=-1)) + 1
