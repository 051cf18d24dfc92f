"""By how much one model looks better than another on validation images: for choices, not for proofs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from burnish.labels import error_about_zero
from burnish.measure.grouped import count_of

_FEWEST_ADJUSTED = 10  # compared images or groups, for a slope to be worth the degree of freedom it costs
_MOST_SAY = 0.8  # of one of them in the slope (its leverage), beyond which there is none to speak of


@dataclass(frozen=True)
class Gain:
    """By how much one model is better than another, and how sure that is."""

    difference: float  # of means over images: of shares right, or of losses
    error: float  # a standard error of it
    paired: float = 0.0  # the same difference on the compared images alone

    @property
    def clearly(self) -> bool:
        """By more than a standard error; a single image that alone makes the difference makes as large an error."""
        return self.difference > self.error * (1.0 + 1e-9)


@dataclass(frozen=True, eq=False)
class Beside:
    """What is known of many images, of which the compared ones are an even draw: it tells how easy those happen to be."""

    values: np.ndarray  # float64 [N], 0 to 1
    rows: np.ndarray  # int64 [n], which of them are compared


def beats(
    after: np.ndarray, before: np.ndarray, beside: Beside | None = None, groups: np.ndarray | None = None
) -> Gain:
    """The paired difference between what two models have right, bool [n] or float [n] of 0 to 1, on the same images.

    With b images that only the first and c that only the second has right, the error is sqrt(b + c + 1) / n: one image more
    than the variance of McNemar's statistic, so that a single image decides nothing, however few there are. Of images that
    are partly right the squares of the differences are added instead. Of images that come in groups, int64 [n] from 0, the
    squares of the groups' sums are, and one group more. beside: see `gain_of`; here it never turns the sign of what the
    compared images show.
    """
    gains = np.asarray(after, np.float64) - np.asarray(before, np.float64)
    # About zero, not about the mean, as McNemar's: a few gains that are all alike prove nothing.
    found = _gain(gains, beside, groups, about=0.0)
    return replace(
        found, error=math.hypot(found.error, 1.0 / max(1, len(gains) if groups is None else count_of(groups)))
    )


def gain_of(gains: np.ndarray, beside: Beside | None = None, groups: np.ndarray | None = None) -> Gain:
    """The mean of gains [n], image by image, and a standard error of it; (0, 0) of no images.

    groups: int64 [n] from 0, of images that are no independent draws; the groups are (Cochran 1977, section 9A.2).

    beside: values of all N images that the compared ones were drawn from. Where gains go with them, the mean is moved by
    what the compared images are harder or easier than all, and its error is that of what is left: the regression estimator
    of double sampling (Cochran 1977, Sampling Techniques, section 12.6). Not where the compared images differ from all by
    more than they spread.
    """
    return _gain(np.asarray(gains, np.float64), beside, groups, about=None)


def _gain(gains: np.ndarray, beside: Beside | None, groups: np.ndarray | None, *, about: float | None) -> Gain:
    """As `gain_of`; about: what the gains would be if neither were better, None: their spread is about their mean."""
    n = len(gains)
    if not n:
        return Gain(0.0, 0.0)
    groups = np.arange(n) if groups is None else groups
    mean, count = float(gains.mean()), count_of(groups)
    if about is not None:
        error = error_about_zero(gains - about, groups)
    else:
        error = abs(mean) if count == 1 else error_about_zero(gains - mean, groups) * math.sqrt(count / (count - 1))
    plain = Gain(mean, error, mean)
    if beside is None or count < _FEWEST_ADJUSTED:
        return plain
    near = beside.values[beside.rows]
    off, easier = near - near.mean(), float(beside.values.mean() - near.mean())
    squares = float(off @ off)
    # A slope is not carried beyond where it was seen.
    if squares == 0.0 or abs(easier) > math.sqrt(squares / n):
        return plain
    slope = float(off @ gains) / squares
    # What an image would be off by if it had no say in the slope: one image alone proves no slope (HC3, MacKinnon and
    # White 1985). Nor does a group.
    say = 1.0 / n + off * off / squares
    if np.bincount(groups, say).max() > _MOST_SAY:
        return plain
    left, drawn = (gains - mean - slope * off) / (1.0 - say), float(beside.values.var()) / len(beside.values)
    found = mean + slope * easier
    # A count is made surer or less sure, never its contrary.
    if about is not None and (found - about) * (mean - about) < 0:
        return plain
    from_zero = 0.0 if about is None else error_about_zero(np.full(n, found - about), groups)
    # As many of all images are worth one as of the compared ones.
    error = math.hypot(error_about_zero(left, groups), slope * math.sqrt(drawn * n / count), from_zero)
    return Gain(found, error, mean)
