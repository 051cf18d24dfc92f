"""From the probabilities of an image to the answer: what is asked of answers beside the likeliest class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from numbers import Integral
from typing import Any

import numpy as np

from burnish.errors import NoSuchName, RecipeError, nearest, shown
from burnish.labels import SEPARATOR
from burnish.measure.held_out import HeldOut
from burnish.measure.held_out import sets as sets_of
from burnish.measure.intervals import percent
from burnish.ship.bundle import Bundle


@dataclass(frozen=True, repr=False)
class Prediction:
    """The answer for one image, or why there is none."""

    path: str
    classes: tuple[str, ...]  # names, most probable first; with `find` the answer, then the others
    probabilities: tuple[float, ...]  # of those, each 0 to 1
    problem: str | None = None  # set when the image could not be read; then the other two are empty
    labels: tuple[str, ...] | None = None  # with several classes an image: those that are said, most probable first
    unfamiliar: bool | None = None  # whether it is unlike the training images; None where the package cannot tell
    declined: str | None = None  # with `reject`: why no answer is given
    # With `sets`: classes that hold the true one as often as was asked, likeliest first
    set: tuple[str, ...] | None = None

    def __repr__(self) -> str:
        """In short, for lists of many: what `to_json` tells, of what is there."""
        told = [f"{shown(name)} {percent(one)}" for name, one in zip(self.classes, self.probabilities, strict=True)]
        told += [] if self.labels is None else [f"said: {shown(SEPARATOR.join(self.labels)) or 'none'}"]
        told += [] if self.set is None else [f"set: {shown(SEPARATOR.join(self.set))}"]
        told += ["unlike the training images"] if self.unfamiliar and self.declined is None else []
        told += [f"declined, {self.declined}"] if self.declined is not None else []
        return f"Prediction({shown(self.path)}: {', '.join(told) or shown(str(self.problem))})"

    @property
    def label(self) -> str | None:
        """The most probable class, or the one to be found; of several classes those that are said, as a|b; None if declined."""
        if self.declined is not None:
            return None
        if self.labels is not None:
            return SEPARATOR.join(self.labels)
        return self.classes[0] if self.classes else None

    @property
    def probability(self) -> float | None:
        """Of the answered class: the most probable one, but with `find`."""
        return self.probabilities[0] if self.probabilities else None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Asked:
    """What is asked of the answers.

    top: how many classes are named. reject: the accuracy wanted of the answers, such as 0.99: images whose answer is less sure
    than held-out images of the run say it must be, or that are unlike the training images, are declined. sets: how often a set of
    classes must hold the true one, such as 0.95. find: which share of a class's images is to be found, such as
    {"crack": 0.95}: it is the answer from the probability on that held-out images say finds so many, likeliest or not.
    """

    top: int = 1
    reject: float | None = None
    sets: float | None = None
    find: Mapping[str, float] = field(default_factory=dict)

    def settled(self, bundle: Bundle) -> Answering:
        """The limits that this package's held-out images set; RecipeError when it cannot say so, NoSuchName for a class."""
        if not isinstance(self.top, Integral) or isinstance(self.top, bool) or self.top < 1:
            raise RecipeError(f"top is {self.top!r}, expected how many classes to name, such as 3")
        if not isinstance(self.find, Mapping):
            raise RecipeError(
                f'find is {self.find!r}, expected the share of each class to be found, as {{"crack": 0.95}}'
            )
        for name in self.find:
            if name not in bundle.classes:
                raise NoSuchName(f"find: there is no class {shown(name)!r} (nearest: {nearest(name, bundle.classes)})")
        held_out = self._held_out(bundle)
        if held_out is None:
            return Answering(bundle, int(self.top))
        at = {name: bundle.classes.index(name) for name in self.find}
        return Answering(
            bundle,
            int(self.top),
            least=None if self.reject is None else held_out.rejecting(self.reject),
            cut=None if self.sets is None else held_out.cut(self.sets),
            found_from={at[name]: held_out.finding(at[name], share, name) for name, share in self.find.items()},
        )

    def _held_out(self, bundle: Bundle) -> HeldOut | None:
        """None where nothing is asked of it."""
        asked = {"reject": self.reject is not None, "sets": self.sets is not None, "find": bool(self.find)}
        names = [name for name, wanted in asked.items() if wanted]
        if not names:
            return None
        if self.reject is not None and self.find:
            raise RecipeError(
                "reject and find exclude each other: one declines what is not sure, the other answers it; leave one out"
            )
        if bundle.several:
            raise RecipeError(
                f"{names[0]} cannot be had: the model tells several classes an image, each by its own threshold"
            )
        if bundle.held_out is None or (self.find and not len(bundle.held_out.label)):
            raise RecipeError(
                f"{names[-1]} cannot be had: the package holds no held-out images"
                f"{' with their classes' if bundle.held_out is not None else ''}; make it again with this version of burnish fit"
            )
        return bundle.held_out


LIKELIEST = Asked()


def shares(find: Sequence[str]) -> dict[str, float]:
    """The share wanted of each class, from CLASS=SHARE; RecipeError."""
    found: dict[str, float] = {}
    for one in find:
        name, _, text = one.rpartition("=")
        try:
            share = float(text)
        except ValueError:
            name, share = "", 0.0
        if not name:
            raise RecipeError(
                f"find is {shown(one)!r}, expected a class and the share of it to be found, as crack=0.95"
            )
        if name in found and found[name] != share:
            raise RecipeError(f"find names {shown(name)!r} twice, with {found[name]:g} and {share:g}; name it once")
        found[name] = share
    return found


@dataclass(frozen=True)
class Answering:
    """`Asked`, with the limits that the package's held-out images set."""

    bundle: Bundle
    top: int
    least: float | None = None  # confidence from which answers are given
    cut: float | None = None  # probability from which a class belongs to the set
    found_from: Mapping[int, float] = field(default_factory=dict)  # of a class that is to be found, its probability

    def prediction(self, name: str, row: np.ndarray, *, strange: bool | None) -> Prediction:
        """The answer from the probabilities [k] of one image."""
        classes, cuts = self.bundle.classes, self.bundle.thresholds
        likeliest = np.argsort(-row, kind="stable")
        order = self._answered_first(row, likeliest)
        best, declined = order[: self.top], None
        if self.least is not None and strange:
            declined = "unlike the training images"
        elif self.least is not None and row[likeliest[0]] < self.least:
            declined = f"unsure: {row[likeliest[0]]:.1%}, and {self.least:.1%} is asked for"
        said = None if cuts is None else tuple(classes[index] for index in order if row[index] >= cuts[index])
        inside = None if self.cut is None else sets_of(row[None], self.cut)[0]
        return Prediction(
            name,
            tuple(classes[index] for index in best),
            tuple(float(row[index]) for index in best),
            labels=said,
            unfamiliar=strange,
            declined=declined,
            set=None if inside is None else tuple(classes[at] for at in likeliest if inside[at]),
        )

    def _answered_first(self, row: np.ndarray, likeliest: np.ndarray) -> Sequence[int]:
        """The classes, likeliest first but for the answer: of those to be found the one that is farthest beyond its limit, else
        the likeliest of the others.
        """
        if not self.found_from:
            return likeliest.tolist()
        beyond = {at: row[at] / max(least, 1e-12) for at, least in self.found_from.items() if row[at] >= least}
        if beyond:
            answer = max(beyond, key=lambda at: (beyond[at], row[at]))
        else:
            rest = [at for at in likeliest.tolist() if at not in self.found_from]
            answer = rest[0] if rest else int(likeliest[0])
        return [answer, *(at for at in likeliest.tolist() if at != answer)]
