"""By how much one model looks better than another on validation images: for choices, not for proofs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

_FEWEST_ADJUSTED = 10  # compared images, for a slope to be worth the degree of freedom it costs
_MOST_SAY = 0.8  # of one image in the slope (its leverage), beyond which there is none to speak of


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


def beats(after: np.ndarray, before: np.ndarray, beside: Beside | None = None) -> Gain:
    """The paired difference between what two models have right, bool [n] or float [n] of 0 to 1, on the same images.

    With b images that only the first and c that only the second has right, the error is sqrt(b + c + 1) / n: one image more
    than the variance of McNemar's statistic, so that a single image decides nothing, however few there are. Of images that
    are partly right the squares of the differences are added instead. beside: see `gain_of`.
    """
    gains, n = np.asarray(after, np.float64) - np.asarray(before, np.float64), max(1, len(after))
    found = _gain(gains, beside, estimated=0)
    # About zero, not about the mean, as McNemar's: a few gains that are all alike prove nothing.
    return replace(found, error=math.sqrt(found.error**2 + found.difference**2 / n + 1.0 / n**2))


def gain_of(gains: np.ndarray, beside: Beside | None = None) -> Gain:
    """The mean of gains [n], image by image, and a standard error of it; (0, 0) of no images.

    beside: values of all N images that the compared ones were drawn from. Where gains go with them, the mean is moved by
    what the compared images are harder or easier than all, and its error is that of what is left: the regression estimator
    of double sampling (Cochran 1977, Sampling Techniques, section 12.6).
    """
    return _gain(np.asarray(gains, np.float64), beside, estimated=1)


def _gain(gains: np.ndarray, beside: Beside | None, *, estimated: int) -> Gain:
    """As `gain_of`; estimated: degrees of freedom that the spread of the gains has lost."""
    n = len(gains)
    if not n:
        return Gain(0.0, 0.0)
    mean = float(gains.mean())
    plain = Gain(mean, abs(mean) if n == estimated else float(gains.std(ddof=estimated)) / math.sqrt(n), mean)
    if beside is None or n < _FEWEST_ADJUSTED:
        return plain
    near = beside.values[beside.rows]
    off, easier = near - near.mean(), float(beside.values.mean() - near.mean())
    squares = float(off @ off)
    if squares == 0.0:
        return plain
    slope = float(off @ gains) / squares
    # What an image would be off by if it had no say in the slope: one image alone proves no slope (HC3, MacKinnon and
    # White 1985).
    say = 1.0 / n + off * off / squares
    if say.max() > _MOST_SAY:
        return plain
    left = (gains - mean - slope * off) / (1.0 - say)
    variance = float(left @ left) / (n * n) + slope * slope * float(beside.values.var()) / len(beside.values)
    return Gain(mean + slope * easier, math.sqrt(variance), mean)
