"""Did fine-tuning help? One word, and the numbers that carry it (P5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from burnish.measure.bootstrap import bootstrapped, paired_shares, share, times_for, widened
from burnish.measure.grouped import count_of
from burnish.measure.intervals import Interval, Paired, percent
from burnish.measure.several import hidden_precision, mean_average_precisions, rankings_of

ACCURACY, MEAN_AP = "accuracy", "mAP"
Word = Literal["better", "worse", "not proven", "probe only"]
_OPENINGS = {
    "better": "Fine-tuning helped",
    "worse": "Fine-tuning hurt",
    "not proven": "Not proven that fine-tuning helped",
}


@dataclass(frozen=True, repr=False)
class Verdict:
    """The fine-tuned model against the frozen probe on the same test images."""

    word: Word  # of the fine-tuned model; "probe only" when there is none
    probe: Interval  # the score, fraction 0 to 1
    tuned: Interval | None
    paired: Paired | None  # tuned minus probe
    seconds: float  # wall clock of the run
    # What is compared: accuracy, or where an image may have several classes mean average precision
    score: str = ACCURACY
    groups: int | None = None  # that the test images are of, where the data has groups

    def __repr__(self) -> str:
        return f"Verdict({self.word}: {self.sentence()})"

    def __str__(self) -> str:
        return self.sentence()

    def sentence(self) -> str:
        """The verdict in plain words, ASCII only, so that every terminal and log can hold it."""
        images = tested_in_words(self.probe.n, self.groups)
        if self.tuned is None or self.paired is None:
            share = percent(self.probe.value)
            found = f"{share} of {images} right" if self.score == ACCURACY else f"{self.score} {share} on {images}"
            return (
                f"The frozen probe was kept: {found} "
                f"(95 % interval {percent(self.probe.low)} to {percent(self.probe.high)})."
            )
        facts = self.paired
        score, test = ("", "exact McNemar") if self.score == ACCURACY else (f"{self.score} ", "paired bootstrap")
        if self.groups is not None:
            test = "exact test of groups" if self.score == ACCURACY else f"{test} of groups"
        return (
            f"{_OPENINGS[self.word]}: {score}{percent(self.tuned.value)} against {percent(self.probe.value)} for the frozen "
            f"probe on the same {images} ({points(facts.difference)} points, 95 % interval {points(facts.low)} to "
            f"{points(facts.high)}, {test} {chance(facts.p)})."
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values, for result.json; the sentence is written along for readers without burnish."""
        return {
            "word": self.word,
            "sentence": self.sentence(),
            "probe": self.probe.to_json(),
            "tuned": None if self.tuned is None else self.tuned.to_json(),
            "paired": None if self.paired is None else asdict(self.paired),
            "seconds": self.seconds,
            "score": self.score,
            "groups": self.groups,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Verdict:
        """The inverse of `to_json`."""
        tuned, pairs = values["tuned"], values["paired"]
        return cls(
            word=values["word"],
            probe=Interval.from_json(values["probe"]),
            tuned=None if tuned is None else Interval.from_json(tuned),
            paired=None if pairs is None else Paired(**pairs),
            seconds=float(values["seconds"]),
            score=str(values.get("score", ACCURACY)),
            groups=values.get("groups"),
        )


def judge(
    probe_right: np.ndarray, tuned_right: np.ndarray | None, *, seconds: float, groups: np.ndarray | None = None
) -> Verdict:
    """The verdict from what each model has right, bool [n], image by image; `tuned_right` None: nothing was tuned.

    "better" and "worse" need both an exact McNemar p below 0.05 and a 95 % interval of the difference without 0.
    seconds: wall clock of the run. groups: int64 [n], from 0, of images that were drawn together (`measure.grouped`).
    NotEnoughData without images.
    """
    right = np.asarray(probe_right, dtype=bool)
    tuned = right if tuned_right is None else np.asarray(tuned_right, dtype=bool)
    facts, probe, count = paired_shares(right, tuned, groups), share(right, groups), _count(groups)
    if tuned_right is None:
        return Verdict("probe only", probe, None, None, float(seconds), groups=count)
    return Verdict(_word(facts), probe, share(tuned, groups), facts, float(seconds), groups=count)


def judge_several(
    labels: np.ndarray,
    probe: np.ndarray,
    tuned: np.ndarray | None,
    *,
    seconds: float,
    groups: np.ndarray | None = None,
) -> Verdict:
    """The verdict where an image may have several classes, by mean average precision: labels bool [m k], probabilities [m k].

    "better" and "worse" need a paired bootstrap p below 0.05 and a 95 % interval of the difference without 0.
    """
    given = {"probe": probe} if tuned is None else {"probe": probe, "tuned": tuned}
    models = {name: rankings_of(chances, labels) for name, chances in given.items()}

    def statistics(weights: np.ndarray) -> dict[str, np.ndarray]:
        found = {name: mean_average_precisions(rankings, weights) for name, rankings in models.items()}
        return found if tuned is None else {**found, "gain": found["tuned"] - found["probe"]}

    found, count = bootstrapped(statistics, len(labels), times=times_for(*labels.shape), groups=groups), _count(groups)
    shares = {
        name: widened(found[name].interval(), hidden_precision(rankings, labels, groups))
        for name, rankings in models.items()
    }
    if tuned is None:
        return Verdict("probe only", shares["probe"], None, None, float(seconds), MEAN_AP, count)
    facts = replace(found["gain"].paired(), groups=count)
    return Verdict(_word(facts), shares["probe"], shares["tuned"], facts, float(seconds), MEAN_AP, count)


def _count(groups: np.ndarray | None) -> int | None:
    return None if groups is None else count_of(groups)


def difference_in_words(facts: Mapping[str, Any]) -> str:
    """A paired difference, as plain values, as '+1.2 points (+0.5 to +2.0)'."""
    difference, low, high = (points(facts[key]) for key in ("difference", "low", "high"))
    return f"{difference} points ({low} to {high})"


def spread_in_words(facts: Mapping[str, Any]) -> str:
    """What several trainings came to, as plain values, as '3 trainings: 97.1 % on average, standard deviation 0.4 points'."""
    what = "trainings" if facts["model"] == "tuned" else "looks without a training"
    spread = points(facts["sd"]).removeprefix("+")
    return f"{facts['n']} {what}: {percent(facts['mean'])} on average, standard deviation {spread} points"


def tested_in_words(images: int, groups: int | None) -> str:
    """How many test images there were, and of how many groups where the data names them."""
    words = f"{images:,} test image{'' if images == 1 else 's'}"
    return words if groups is None else f"{words} of {groups:,} group{'' if groups == 1 else 's'}"


def chance(p: float) -> str:
    """A p value as 'p < 0.001', 'p = 0.0496' or 'p = 0.45'."""
    if p < 0.001:
        return "p < 0.001"
    return f"p = {p:.3g}" if p < 0.1 else f"p = {p:.2f}"


def points(share: float) -> str:
    """A difference as '+11.0' percentage points; one that is not 0 is not shown as 0."""
    places = next((places for places in (1, 2, 3) if round(100.0 * share, places)), 1)
    return f"{round(100.0 * share, places) + 0.0:+.{places}f}"  # + 0.0 turns -0.0 into 0.0


def _word(facts: Paired) -> Word:
    if facts.p >= 0.05 or facts.low <= 0.0 <= facts.high:
        return "not proven"
    return "better" if facts.difference > 0.0 else "worse"
