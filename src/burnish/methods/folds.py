"""Folds of cross-validation: stratified by class, with images that belong together on one side."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from burnish.labels import leading, several
from burnish.runtime import draws

# Five folds leave few images with more to train on; from a thousand on, three say the same in half the time.
_MOST, _MOST_OF_MANY, _MANY = 5, 3, 1000


@dataclass(frozen=True)
class Cut:
    """Classes that are cut to one image each, to see what becomes of classes that have no more: their other images are asked."""

    shown: np.ndarray  # int64, places of the images that heads are fitted to
    alone: np.ndarray  # int64 [m], places of images of which the others show nothing
    instead: np.ndarray  # int64 [m], the image that is asked in place of each: of a class that was cut


@dataclass(frozen=True)
class Folds:
    """Which images are left out together, and of which of them something can be told so."""

    number: np.ndarray  # int64 [n], from 0 on
    # bool [n]: whether the others show the image's class, and one class more: of the others nothing could have been learnt, so
    # they are no ground to choose a head by.
    counted: np.ndarray
    cuts: tuple[Cut, ...] = ()  # what tells about the others

    @classmethod
    def drawn(cls, labels: np.ndarray, *, classes: int, seed: int, together: np.ndarray | None = None) -> Folds:
        """For labels int64 [n], or bool [n k]; together: int64 [n], equal for images that stay on one side (P1)."""
        strata = leading(labels)
        number = fold_numbers(strata, folds=_count(strata, together), seed=seed, together=together)
        if several(labels):
            return cls(number, np.ones(len(labels), bool))
        counted = np.zeros(len(labels), bool)
        for fold in range(int(number.max()) + 1):
            held = number == fold
            present = np.bincount(labels[~held], minlength=classes) > 0
            counted[held] = present[labels[held]] & (present.sum() > 1)
        return cls(number, counted, _cuts(labels, counted, together, seed))

    @property
    def held(self) -> list[np.ndarray]:
        """The images of each fold, by their places."""
        return [np.flatnonzero(self.number == fold) for fold in range(int(self.number.max()) + 1)]

    @property
    def judged(self) -> np.ndarray:
        """bool [n]: the images that a head can be chosen by: the counted ones, and those that another stands for."""
        found = self.counted.copy()
        for cut in self.cuts:
            found[cut.alone] = True
        return found


def _cuts(labels: np.ndarray, counted: np.ndarray, together: np.ndarray | None, seed: int) -> tuple[Cut, ...]:
    """Half of the classes that have more images cut to one, then the other half; labels int64 [n]."""
    alone, several_shown = np.flatnonzero(~counted), np.unique(labels[counted])
    order = draws(seed, "classes cut to one image").permutation(several_shown)
    tied = np.arange(len(labels)) if together is None else together
    found = []
    for half in (order[::2], order[1::2]):
        one_each = np.array(
            [draws(seed, "its one image", int(one)).choice(np.flatnonzero(labels == one)) for one in half], int
        )
        shown = np.union1d(np.flatnonzero(~np.isin(labels, half)), one_each)
        left = np.setdiff1d(np.arange(len(labels)), shown)
        left = left[~np.isin(tied[left], tied[shown])]  # what belongs to an image that is shown is known
        if len(left):
            found.append((shown, draws(seed, "asked instead").permutation(left)))
    parts = [alone[place :: len(found)] for place in range(len(found))]
    return tuple(
        Cut(shown, own, np.resize(left, len(own))) for (shown, left), own in zip(found, parts, strict=True) if len(own)
    )


def _count(strata: np.ndarray, together: np.ndarray | None) -> int:
    """How many folds: as many as the middle class has images, or sets of them that belong together; 2 to 5.

    A few rare classes do not cut the folds of all others: of two images one is always left to learn from.
    """
    alone = strata if together is None else np.unique(np.stack([strata, together]), axis=1)[0]
    _, sizes = np.unique(alone, return_counts=True)
    enough = sizes[sizes > 1]
    middle = int(np.median(enough)) if len(enough) else 2
    return min(_MOST if len(strata) < _MANY else _MOST_OF_MANY, max(2, middle))


def fold_numbers(labels: np.ndarray, *, folds: int, seed: int, together: np.ndarray | None = None) -> np.ndarray:
    """Stratified fold of each image, int64 [n], 0 to folds - 1; labels int64 [n].

    together: int64 [n], equal for images of one fold. Sets of several images come first, the largest of them before all others,
    each to where there are the least of its classes; single images then level what they left.
    """
    classes, strata = np.unique(labels, return_inverse=True)
    number, total = np.full(len(labels), -1, np.int64), np.bincount(strata, minlength=len(classes)).tolist()
    held = [[0] * len(classes) for _ in range(folds)]  # images of each class in each fold
    filled = [0] * folds
    for rows in _sets(together, seed):
        own = Counter(strata[rows].tolist())
        shares = [sum(one[kind] / total[kind] * size for kind, size in own.items()) for one in held]
        fold = min(range(folds), key=lambda one: (shares[one], filled[one], one))
        number[rows] = fold
        filled[fold] += len(rows)
        for kind, size in own.items():
            held[fold][kind] += size
    have = np.array(held, np.int64)
    start = 0
    for place, label in enumerate(classes):
        members = np.flatnonzero((strata == place) & (number < 0))
        members = draws(seed, "folds", int(label)).permutation(members)
        number[members] = _levelled(have[:, place], len(members), start)
        start += len(members)  # so that small classes do not all lack the same fold
    return np.unique(number, return_inverse=True)[1].astype(np.int64)  # without empty ones


def _sets(together: np.ndarray | None, seed: int) -> list[np.ndarray]:
    """Places of images that belong to others, set by set, large ones first."""
    if together is None:
        return []
    order = np.argsort(together, kind="stable")
    _, first, sizes = np.unique(together[order], return_index=True, return_counts=True)
    found = [order[start : start + size] for start, size in zip(first, sizes, strict=True) if size > 1]
    shuffled = draws(seed, "sets of folds").permutation(len(found))
    return sorted((found[place] for place in shuffled), key=len, reverse=True)


def _levelled(have: np.ndarray, count: int, start: int) -> np.ndarray:
    """The folds [count] that so many images of a class go to, one after the other: always to one that has the least, by turns."""
    folds = len(have)
    turn = (np.arange(folds) - start) % folds
    level = (have[:, None] + np.arange(count)).ravel()
    fold = np.repeat(np.arange(folds), count)
    return fold[np.lexsort((turn[fold], level))][:count]
