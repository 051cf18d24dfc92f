"""Whether a model that was made cheaper is as often right as before: a loss that is bounded, not only one that was not seen (P5).

That a difference is "not significant" says nothing of few images. So the question is turned round, as in trials of
non-inferiority (Piaggio et al. 2012, JAMA 308:2594): a loss beyond a margin is what must be ruled out, by the lower limit of
the 95 % interval of the paired difference, which is a one-sided test at 2.5 %.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from burnish.labels import error_of_mean
from burnish.measure.bootstrap import paired_shares, share
from burnish.measure.intervals import Interval, Paired, percent, quantile
from burnish.measure.verdict import chance, points, tested_in_words

Word = Literal["kept", "lost", "not proven"]


@dataclass(frozen=True)
class Kept:
    """A cheaper model against the original on the same test images."""

    word: Word
    original: Interval  # the share that is right; of several classes an image the mean Jaccard index
    slim: Interval
    paired: Paired  # slim minus original
    agreement: Interval  # the share of images on which both say the same
    lose: float  # the margin, a fraction
    few: bool  # whether these images could not rule out a loss beyond it even of a model of the very same answers

    def sentence(self) -> str:
        """The verdict in plain words, ASCII only."""
        images = tested_in_words(self.slim.n, self.paired.groups)
        margin = f"{points(self.lose).removeprefix('+')} points"
        opening = {
            "kept": f"Proven that no more than {margin} were lost",
            "lost": "Accuracy was lost",
            "not proven": "Not proven that nothing was lost",
        }[self.word]
        facts = self.paired
        few = f", and so few could not rule out {margin} of any model" if self.few and self.word == "not proven" else ""
        return (
            f"{opening}: {percent(self.slim.value)} against {percent(self.original.value)} for the original on the same "
            f"{images} ({points(facts.difference)} points, 95 % interval {points(facts.low)} to {points(facts.high)}, "
            f"{chance(facts.p)}); both say the same of {percent(self.agreement.value)}{few}."
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values; the sentence is written along for readers without burnish."""
        return {
            "word": self.word,
            "sentence": self.sentence(),
            "original": self.original.to_json(),
            "slim": self.slim.to_json(),
            "paired": asdict(self.paired),
            "agreement": self.agreement.to_json(),
            "lose": self.lose,
            "few": self.few,
        }


def judge_kept(
    original_right: np.ndarray,
    slim_right: np.ndarray,
    same: np.ndarray,
    *,
    lose: float,
    groups: np.ndarray | None = None,
) -> Kept:
    """The verdict from what each has right, bool [n] or float [n] of 0 to 1, and whether they say the same, bool [n].

    "kept": the lower limit of the difference is not below -lose, whatever p is; "lost": it is, and the model is worse with a
    p below 0.05 and an interval without 0. lose: fraction. groups: int64 [n], from 0, of images that were drawn together.
    NotEnoughData without images.
    """
    facts = paired_shares(original_right, slim_right, groups)
    word: Word = "not proven"
    if facts.low >= -lose:
        word = "kept"
    elif facts.p < 0.05 and facts.high < 0.0:
        word = "lost"
    few = paired_shares(original_right, original_right, groups).low < -lose
    return Kept(word, share(original_right, groups), share(slim_right, groups), facts, share(same, groups), lose, few)


@dataclass(frozen=True)
class Step:
    """Whether a cheaper model may be chosen, by images that it has not learnt from."""

    allowed: bool
    why: str
    paired: Paired  # cheaper minus original, of what is right
    told: float  # cheaper minus original, of the probability of what is true, on average; a fraction
    told_low: float  # the lower limit of its 95 % interval

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def may_take(
    right: tuple[np.ndarray, np.ndarray],
    losses: tuple[np.ndarray, np.ndarray],
    *,
    lose: float,
    groups: np.ndarray | None = None,
) -> Step:
    """Whether a cheaper model, the second of each pair, loses no more than `lose`, a fraction, against the original, the first.

    right: bool [n], or float [n] of 0 to 1; losses: float64 [n], nats. By the lower limit of the difference, as the proof.
    So few images that not even a model of the very same answers would pass (fewer than 765 that are all right, for half a point)
    rule nothing out by counting. Then the probability that is given to what is true speaks for them, whose average has the
    same unit and moves before answers turn: its lower limit must not be below -lose, nor what is counted.
    """
    before, after = right
    facts = paired_shares(before, after, groups)
    apart = np.exp(-losses[1]) - np.exp(-losses[0])
    told, reach = float(apart.mean()), quantile(0.95) * error_of_mean(apart, groups)
    low, margin = told - reach, f"{points(lose).removeprefix('+')} points"
    words = f"{points(facts.difference)} points ({points(facts.low)} to {points(facts.high)}) on {facts.n:,} images"
    if facts.low >= -lose:
        return Step(True, words, facts, told, low)
    if paired_shares(before, before, groups).low >= -lose:
        return Step(False, f"{words}: a loss of more than {margin} is not ruled out", facts, told, low)
    words += (
        f", too few to rule out {margin} by counting; probability of what is true {points(told)} ± {points(reach)[1:]}"
    )
    return Step(facts.difference >= -lose and low >= -lose, words, facts, told, low)
