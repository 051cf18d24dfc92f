"""The arms of a race: a model with a method, what is known of it, and their leaderboard."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from burnish.backbones.reading.hub import public
from burnish.choose.decide import Decision
from burnish.choose.evidence import Evidence
from burnish.disk import read_plain_json
from burnish.measure.bootstrap import paired_shares, share
from burnish.measure.intervals import holm
from burnish.record.folder import OUTCOME, RunFolder

State = Literal["waiting", "frozen", "trained", "cut", "not tested", "failed"]


@dataclass
class Arm:
    """One model with one method, and what is known of it."""

    model: str
    method: str
    place: int
    evidence: Evidence | None = None  # of the model trained on the train images
    rounds: int = 0  # of training
    whole: bool = False  # whether its latest round made all the steps it may make, so that more time changes nothing
    seconds: float = 0.0  # what it would have taken alone: looking at the images, frozen heads, its rounds
    state: State = "waiting"
    why: str = ""  # it was cut, failed or not tested
    package: Path | None = None
    idle: list[Decision] = field(default_factory=list)  # settings that it has no use for
    reasons: list[Decision] = field(default_factory=list)  # of the round that its numbers are of

    @property
    def name(self) -> str:
        return f"{self.called} · {self.method}"

    @property
    def called(self) -> str:
        """The model's name as it may be written down."""
        return public(self.model)

    @property
    def slug(self) -> str:
        """What its folder is called."""
        return f"{self.place + 1:02d}-{self.called}-{self.method}"

    def becomes(self, state: State, why: str = "") -> None:
        """A new state; why: the reason, where it goes no further."""
        self.state, self.why = state, why

    @property
    def state_in_words(self) -> str:
        """Its state, and why where there is a reason: what the leaderboard says."""
        return f"{self.state}: {self.why}" if self.why else self.state

    @property
    def accuracy(self) -> float:
        """On val, fraction."""
        return -self.rank()[0]

    @property
    def unseen(self) -> bool:
        """Whether no validation image was asked about."""
        return self.evidence is None or self.evidence.crossed

    def rank(self) -> tuple[float, float]:
        """The better arm has the smaller; one without evidence the largest."""
        return self.evidence.rank() if self.evidence is not None else (0.0, math.inf)


@dataclass(frozen=True)
class Score:
    """A finalist on the test images."""

    right: np.ndarray  # bool [m]; or float64 [m] with several classes an image
    brief: dict[str, float | None]  # AUROC, log loss, Brier
    images_per_second: float | None  # None where no time was left to time it
    parameters: int


def leaderboard(
    arms: list[Arm], chosen: Arm, scores: dict[int, Score], home: Path, groups: np.ndarray | None
) -> list[dict[str, Any]]:
    """A row for each arm, plain values: the chosen one, the other finalists by validation, then the rest.

    scores: the finalists' by their places. groups: int64 [m], of the test images, where the data names some. p values of the
    differences to the chosen one are corrected for the number of comparisons (Holm).
    """
    reference = scores[chosen.place].right
    pairs = {place: paired_shares(reference, one.right, groups) for place, one in scores.items()}
    others = [place for place in pairs if place != chosen.place]
    corrected = dict(zip(others, holm([pairs[place].p for place in others]), strict=True))
    rows = []
    for arm in sorted(arms, key=lambda arm: (arm is not chosen, arm.place not in scores, *arm.rank())):
        row: dict[str, Any] = {
            "name": arm.name, "model": arm.called, "method": arm.method, "state": arm.state_in_words,
            "validation": None if arm.unseen else arm.accuracy,
            "validation_n": 0 if arm.evidence is None or arm.unseen else len(arm.evidence.right), "seconds": arm.seconds,
            "chosen": arm is chosen, "package": str(arm.package.relative_to(home)) if arm.package else None,
            "test": None, "difference": None, "p": None, "separable": None, "images_per_second": None, "parameters": None,
            "auroc": None, "log_loss": None, "brier": None,
            "decisions": [decision.to_json() for decision in (*arm.idle, *arm.reasons)],
        }  # fmt: skip
        if arm.place in scores:
            found = scores[arm.place]
            row |= {
                "test": share(found.right, groups).to_json(),
                "images_per_second": found.images_per_second,
                "parameters": found.parameters,
                "difference": asdict(pairs[arm.place]),
                "p": corrected.get(arm.place, 1.0),
                "separable": corrected.get(arm.place, 1.0) < 0.05,
                **found.brief,
            }
        rows.append(row)
    return rows


def simplest_of_the_best(arms: list[Arm]) -> Arm:
    """The arm with the best validation, or the best frozen one that it is not clearly better than."""
    best = arms[0]
    for arm in arms:
        if arm.state != "frozen" or best.state == "frozen" or arm.evidence is None or best.evidence is None:
            continue
        if not best.evidence.against(arm.evidence).clear:
            return arm
    return best


def why_chosen(chosen: Arm, alive: list[Arm]) -> Decision:
    """In words and numbers; alive: all arms that came to an end, the best on validation first."""
    seen = "cross-validation" if chosen.unseen else "validation"
    n = 0 if chosen.evidence is None else len(chosen.evidence.right)
    numbers: dict[str, Any] = {"accuracy": chosen.accuracy, "n": n}
    best = next((arm for arm in alive if arm is not chosen), None)
    if best is None:
        return Decision(
            f"{chosen.name} chosen", f"no other came to an end; {seen} {chosen.accuracy:.1%} of {n}", numbers
        )
    why = f"{seen} {chosen.accuracy:.1%} of {n} images, {best.name} {best.accuracy:.1%}"
    if chosen is not alive[0] and chosen.evidence is not None and best.evidence is not None:
        found = best.evidence.against(chosen.evidence)
        why += (
            f"; frozen heads are simpler, and that one is not better than them by more than a standard error: paired "
            f"{100 * found.right.difference:+.1f} ± {100 * found.right.error:.1f} points, "
            f"{-found.loss.difference:+.3f} ± {found.loss.error:.3f} nats"
        )
        numbers |= {"difference": found.right.difference, "standard_error": found.right.error}
    return Decision(f"{chosen.name} chosen", why, {**numbers, "next": best.name, "next_accuracy": best.accuracy})


@dataclass(frozen=True)
class Outcome:
    """What a round of an arm came to."""

    evidence: Evidence
    seconds: float
    whole: bool  # whether it made all the steps it may make
    reasons: list[Decision]  # why it was trained as it was

    def write(self, folder: RunFolder) -> None:
        """Into the round's folder: it is finished."""
        right = self.evidence.right
        told = {
            "right": right.astype(int) if right.dtype == bool else right, "losses": self.evidence.losses,
            "seconds": self.seconds, "whole": self.whole, "reasons": [one.to_json() for one in self.reasons],
        }  # fmt: skip
        folder.write_json(OUTCOME, told)

    @classmethod
    def read(cls, path: Path) -> Outcome | None:
        """What `write` wrote; None when the round is not finished."""
        try:
            values = read_plain_json(path / OUTCOME)
            right = np.array(values["right"])
            right = right.astype(bool) if right.dtype.kind == "i" else right
            evidence = Evidence(right, np.array(values["losses"], float))
            reasons = [Decision(**one) for one in values.get("reasons", [])]
            return cls(evidence, float(values["seconds"]), values.get("whole") is True, reasons)
        except (OSError, ValueError, KeyError, TypeError):
            return None
