"""How sure a share of right answers is, alone and against another one on the same images (P5)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import bdtr, ndtri

from burnish.errors import NotEnoughData


@dataclass(frozen=True, repr=False)
class Interval:
    """A share and the range it is known to; fractions, 0 to 1."""

    value: float  # nan when n is 0
    low: float
    high: float
    n: int  # images

    def __repr__(self) -> str:
        return f"Interval({self.value:.4f}, 95 % interval {self.low:.4f} to {self.high:.4f}, n = {self.n:,})"

    def to_json(self) -> dict[str, Any]:
        """Plain values; a value that is not a number becomes None."""
        return {**asdict(self), "value": None if math.isnan(self.value) else self.value}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Interval:
        """The inverse of `to_json`."""
        value = values["value"]
        known = math.nan if value is None else float(value)
        return cls(known, float(values["low"]), float(values["high"]), int(values["n"]))


@dataclass(frozen=True)
class Paired:
    """Second minus first score on the same images, and what chance alone could do."""

    difference: float  # fraction, -1 to 1; above 0 when the second is right more often
    low: float  # of the interval
    high: float
    p: float  # two-sided: exact McNemar, 1 when the two never disagree; or by paired bootstrap
    only_first: int | None  # images that only the first has right; None where that is no yes or no
    only_second: int | None
    n: int  # images
    groups: int | None = None  # that the images are of, where those were drawn and not images


def percent(share: float) -> str:
    """A fraction as '98.7 %'; only a whole 1 is shown as 100.0 %, only a whole 0 as 0.0 %."""
    rounded = round(100.0 * share, 1)
    if 0.0 < share < 1.0:
        rounded = min(max(rounded, 0.1), 99.9)
    return f"{rounded:.1f} %"


def wilson(hits: int, n: int, *, confidence: float = 0.95) -> Interval:
    """The share hits / n with Wilson's score interval (Wilson 1927, JASA 22:209).

    Nothing is known of a share of no images: n = 0 gives value nan, low 0 and high 1. ValueError unless 0 <= hits <= n.
    """
    if not 0 <= hits <= n:
        raise ValueError(f"{hits} hits of {n} images, expected 0 <= hits <= n")
    if n == 0:
        return Interval(math.nan, 0.0, 1.0, 0)
    low, high = wilson_limits(hits, n, quantile(confidence))
    return Interval(hits / n, low, high, int(n))


def paired(first_right: np.ndarray, second_right: np.ndarray, *, confidence: float = 0.95) -> Paired:
    """The difference of two accuracies on the same images; both arguments are bool [n], image by image.

    The interval is method 10 of Newcombe 1998 (Statistics in Medicine 17:2635): the two Wilson intervals, squared and
    added with the correlation of the pairs. Closed form, inside -1 to 1, and among those that Fagerland, Lydersen and
    Laake 2014 (Statistics in Medicine 33:2850) recommend. p is the binomial test on the images where the two disagree
    (McNemar 1947). NotEnoughData without images.
    """
    first, second = np.asarray(first_right, dtype=bool), np.asarray(second_right, dtype=bool)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"shapes {first.shape} and {second.shape}, expected two of the same [n]")
    if first.size == 0:
        raise NotEnoughData("no test images to compare two models on, expected one or more; give the data a test split")
    both, neither = int(np.sum(first & second)), int(np.sum(~first & ~second))
    only_first, only_second = int(np.sum(first & ~second)), int(np.sum(~first & second))
    difference = (only_second - only_first) / first.size
    low, high = paired_limits(both, only_second, only_first, neither, quantile(confidence))
    disagreements = only_first + only_second
    # Both tails, which are alike; scipy.stats has it too, and takes most of a second to import.
    p = min(1.0, 2.0 * float(bdtr(min(only_first, only_second), disagreements, 0.5))) if disagreements else 1.0
    return Paired(difference, low, high, p, only_first, only_second, int(first.size))


def holm(chances: Sequence[float]) -> list[float]:
    """p values of several comparisons, corrected so that none is called true by chance in more than 5 % (Holm 1979)."""
    order, corrected, most = sorted(range(len(chances)), key=lambda at: chances[at]), [0.0] * len(chances), 0.0
    for rank, at in enumerate(order):
        most = max(most, min(1.0, (len(chances) - rank) * chances[at]))
        corrected[at] = most
    return corrected


def quantile(confidence: float) -> float:
    """The normal quantile of a two-sided interval: 1.96 of 0.95."""
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence is {confidence!r}, expected a fraction above 0 and below 1")
    return float(-ndtri((1.0 - confidence) / 2.0))


def wilson_limits(hits: float, n: float, z: float) -> tuple[float, float]:
    """Wilson's limits of the share hits / n, which need not be whole numbers; z: the normal quantile."""
    share, spread = hits / n, z * z / n
    centre = (share + spread / 2.0) / (1.0 + spread)
    half = z * math.sqrt(share * (1.0 - share) / n + spread / (4.0 * n)) / (1.0 + spread)
    # at the ends the formula gives 0 and 1 but for rounding
    return (0.0 if hits == 0 else max(0.0, centre - half)), (1.0 if hits == n else min(1.0, centre + half))


def paired_limits(both: float, only_a: float, only_b: float, neither: float, z: float) -> tuple[float, float]:
    """Newcombe's limits of share(a) - share(b), of the four cells of the paired table; z: the normal quantile."""
    n = both + only_a + only_b + neither
    hits_a, hits_b = both + only_a, both + only_b
    low_a, high_a = wilson_limits(hits_a, n, z)
    low_b, high_b = wilson_limits(hits_b, n, z)
    a, b = hits_a / n, hits_b / n
    product = hits_a * (n - hits_a) * hits_b * (n - hits_b)
    determinant = both * neither - only_a * only_b
    if determinant > 0:
        determinant = max(determinant - n / 2.0, 0.0)  # Newcombe's continuity correction, method 10
    correlation = determinant / math.sqrt(product) if product else 0.0

    def reach(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one * one - 2.0 * correlation * one * other + other * other))

    return a - b - reach(a - low_a, high_b - b), a - b + reach(high_a - a, b - low_b)
