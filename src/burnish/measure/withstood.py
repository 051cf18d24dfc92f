"""What a model withstood: the record of its scores on damaged and on attacked images, beside those undamaged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from burnish.data.corruptions import CORRUPTIONS, SEVERITIES
from burnish.data.handling import HANDLINGS
from burnish.errors import shown
from burnish.measure.attack import FAR, STARTS, STEPS
from burnish.measure.intervals import Interval, percent
from burnish.measure.robustness import State

_SUSPECT = (
    0.1  # of the images: so many whose slope is nothing, or that withstand FAR, and gradients do not tell the way
)


@dataclass(frozen=True)
class Corrupted:
    """What is left on images that are damaged as photographs are, in five severities."""

    of: int  # images there are; `clean.score.n` of them were asked about
    clean: State
    states: Mapping[tuple[str, int], State]  # by corruption and severity
    kinds: Mapping[str, State]  # by corruption, the mean over severities
    mean: State  # over all
    threshold: float | None  # of confidence, with `reject`
    seconds: float
    example: np.ndarray = field(repr=False)  # uint8 [s s 3], one of the images

    @property
    def worst(self) -> tuple[str, int]:
        """The corruption and severity with the lowest score."""
        return min(self.states, key=lambda one: self.states[one].score.value)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        name, severity = self.worst
        return {
            "images": self.clean.score.n,
            "of": self.of,
            "clean": self.clean.to_json(),
            "mean": self.mean.to_json(),
            "worst": {"corruption": name, "severity": severity},
            "kinds": {
                name: {
                    "figure": one.means, "figures": list(one.figures), "published": one.published, **self.kinds[name].to_json(),
                    "severities": [self.states[name, severity].to_json() for severity in SEVERITIES],
                }
                for name, one in CORRUPTIONS.items()
            },
            "threshold": self.threshold,
            "seconds": self.seconds,
        }  # fmt: skip


@dataclass(frozen=True)
class Handled:
    """What is left where files were handled as people and programs do, before the network's square was cut from them."""

    states: Mapping[tuple[str, float], State]  # by what was done and its figure
    kinds: Mapping[str, State]  # by what was done, the mean over its figures
    examples: np.ndarray = field(repr=False)  # uint8 [states s s 3], what the network sees of one of the images

    @property
    def worst(self) -> tuple[str, float]:
        """What was done, with its figure, where the score is lowest."""
        return min(self.states, key=lambda one: self.states[one].score.value)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        name, figure = self.worst
        return {
            "worst": {"handling": name, "figure": figure},
            "kinds": {
                name: {
                    "figure": one.means, "figures": list(one.figures), **self.kinds[name].to_json(),
                    "states": [self.states[name, figure].to_json() for figure in one.figures],
                }
                for name, one in HANDLINGS.items()
            },
        }  # fmt: skip


@dataclass(frozen=True)
class Struck:
    """How the model fares on images changed by at most epsilon in each value."""

    epsilon: float  # of 255
    whole: bool  # whether what was found could be a file; below 1 no other file lies within
    noise: State  # of that size: a control
    fgsm: State
    apgd: State
    all: State  # right under all three; with several classes that of apgd

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        told = {name: getattr(self, name).to_json() for name in ("noise", "fgsm", "apgd", "all")}
        return {"epsilon": self.epsilon, "whole": self.whole, **told}


@dataclass(frozen=True)
class Controls:
    """Signs that gradients do not tell the way, so that an attack finds less than there is (Athalye et al., arXiv:1802.00420).

    That the score falls from one epsilon to the next is none: what is lost at a smaller one stays lost. FAR is begun afresh.
    """

    flat: Interval  # images where the slope is nothing
    far: Interval | None  # images that withstand FAR, which none should; None with several classes
    by_less: int  # images that noise or one step loses and the climb does not, at the largest epsilon
    wavering: int = 0  # images answered otherwise when asked again, for noise is drawn: slopes are then means

    @property
    def passed(self) -> bool:
        """Whether none of them is there; else what the attack left is a bound from above and no more."""
        withstood = self.far is not None and bool(self.far.n) and self.far.value > _SUSPECT
        misled = self.flat.value > _SUSPECT or self.by_less > _SUSPECT * self.flat.n
        return not (misled or withstood or self.wavering)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        far = None if self.far is None else {"epsilon": FAR, **self.far.to_json()}
        return {**asdict(self), "flat": self.flat.to_json(), "far": far, "passed": self.passed}


@dataclass(frozen=True)
class Attacked:
    """What is left on images that are changed so that the model errs."""

    of: int  # images there are; `clean.score.n` of them were attacked
    clean: State  # of the plain network, which is the one that is attacked
    rows: tuple[Struck, ...]  # by epsilon, rising
    controls: Controls
    seconds: float
    example: tuple[np.ndarray, np.ndarray] = field(
        repr=False
    )  # uint8 [s s 3] each: an image, and at the largest epsilon

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "images": self.clean.score.n, "of": self.of, "norm": "Linf", "unit": "1/255", "steps": STEPS, "starts": STARTS,
            "clean": self.clean.to_json(), "rows": [row.to_json() for row in self.rows],
            "controls": self.controls.to_json(), "seconds": self.seconds,
        }  # fmt: skip


@dataclass(frozen=True, repr=False)
class Robustness:
    """What is left of a model's score where images are damaged; each part where it was asked for."""

    data: str
    score: str  # what the scores are: "accuracy", or with several classes an image "mAP"
    corrupted: Corrupted | None  # what is done to the squares that the network sees
    files: Handled | None  # what is done to the files of the same images, asked for together with it
    attacked: Attacked | None
    named: list[dict[str, str]]  # files that could not be used, with the reason
    groups: bool  # whether intervals are of groups that the data names
    reject: float | None = None  # the accuracy that was wanted of answers
    learnt: int = 0  # of all the images, those that the run is known to have learnt from

    def __repr__(self) -> str:
        told: list[str] = []
        if self.corrupted is not None:
            (kind, severity), score = self.corrupted.worst, self.corrupted.mean.score
            told += [
                f"{percent(self.corrupted.clean.score.value)} undamaged, {percent(score.value)} damaged on average"
            ]
            told += [f"least under {kind}, severity {severity}"]
        if self.attacked is not None:
            rows = self.attacked.rows
            told += [f"{percent(row.all.score.value)} attacked within {row.epsilon:g} of 255" for row in rows]
        return f"Robustness({shown(self.data)}, {self.score}: {'; '.join(told)})"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        told = {
            name: None if (one := getattr(self, name)) is None else one.to_json()
            for name in ("corrupted", "files", "attacked")
        }
        return {
            "data": self.data,
            "score": self.score,
            "groups": self.groups,
            "reject": self.reject,
            "learnt": self.learnt,
            **told,
            "named": self.named,
        }
