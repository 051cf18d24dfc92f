"""A part of the images, where a budget has no time for all: of every class and split, by the address of their paths (P6, P7)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from burnish.data.catalog import SPLIT_WORDS, Catalog, Splits
from burnish.data.looks import Dataset
from burnish.data.split import restricted
from burnish.labels import leading, rank_within
from burnish.runtime import address

# Of a class, where it has so many: below that a model or a score would say little, so a budget is rather overrun; by a little
# (`Part.few`): of 5,000 classes these are 35,000 images.
_FEWEST = {"train": 5, "val": 2}
_FEWEST_OF_PART = {"train": 8, "val": 2}  # for the head that training starts from
_FEWEST_TESTED = 30  # in all
_FEWEST_AT_FIRST = {"train": 3, "val": 1}  # for a model that another one replaces soon


@dataclass(frozen=True)
class Part:
    """How many images there is time for."""

    fitting: int  # train and val together
    test: int  # that the plan counts on
    more: int = 0  # test images besides, for time that may be left over
    few: bool = False  # whether the fewest of each class are no more than a first model needs


@dataclass(frozen=True, eq=False)
class Order:
    """Entries of a data set in the order in which they are looked at: every beginning has an even part of each class."""

    fitting: np.ndarray  # int64 [n], train and val
    first: int  # so many of these are a few of each class, enough for a model that another one replaces soon
    least: int  # so many are the fewest that a run takes
    test: np.ndarray  # int64 [m]


@dataclass(frozen=True)
class Taken:
    """The images of a data set that a run takes."""

    whole: Dataset
    part: Part | None  # None: all
    seed: int

    @cached_property
    def dataset(self) -> Dataset:
        """Of these images alone."""
        return thinned(self.whole, self.part, seed=self.seed)

    @cached_property
    def order(self) -> Order:
        """Of these images, as entries of the whole; a smaller part of them is a beginning of it."""
        catalog, splits, _ = self.whole
        fitting, taken = splits.fitting, self.dataset.splits
        turns, first, least = _in_order(catalog, fitting, _words(splits), self.seed, _FEWEST)
        tests = in_turn(catalog, splits.test, seed=self.seed)
        return Order(fitting[turns][: len(taken.fitting)], first, least, splits.test[tests][: len(taken.test)])

    @property
    def spare(self) -> int:
        """How many of the test images plans do not count on."""
        return 0 if self.part is None else self.part.more


def some_of(catalog: Catalog, count: int, *, seed: int) -> Catalog:
    """About `count` of the images, before they have splits: even parts of every class, within the splits that are given."""
    if count >= len(catalog):
        return catalog
    words, share = np.array([word or "train" for word in catalog.splits]), count / len(catalog)
    fitting, test = np.flatnonzero(words != "test"), np.flatnonzero(words == "test")
    fitted = _drawn(catalog, fitting, words[fitting], round(share * len(fitting)), seed)
    tested = _tested(catalog, test, max(_FEWEST_TESTED, round(share * len(test))), seed)
    return only(catalog, np.sort(np.concatenate([fitted, tested])))


def thinned(dataset: Dataset, part: Part | None, *, seed: int) -> Dataset:
    """About so many of the images of each split, even parts of every class; all of them where `part` is None.

    Of train and val a few of each class at the least.
    """
    if part is None:
        return dataset
    catalog, splits, looks = dataset
    fitting, words = splits.fitting, _words(splits)
    fitted = _drawn(catalog, fitting, words, part.fitting, seed, few=part.few)
    tested = _tested(catalog, splits.test, part.test + part.more, seed)
    kept = np.sort(np.concatenate([fitted, tested]))
    left = only(catalog, kept)
    return Dataset(left, restricted(splits, catalog, left), looks.at(kept))


def is_late(part: Part, classes: int) -> bool:
    """Whether each class has few images in it, taken though the budget has no time for them."""
    return part.fitting < fewest_of(classes)[1]


def fewest_of(classes: int) -> tuple[int, int]:
    """The images of so many classes that a first model needs, and a run, where each class has as many."""
    return classes * sum(_FEWEST_AT_FIRST.values()), classes * sum(_FEWEST.values())


def part_of(catalog: Catalog, entries: np.ndarray, count: int, *, seed: int) -> np.ndarray:
    """About `count` places in `entries`, sorted: an even part of each class, of each a few."""
    taken = _drawn(catalog, entries, np.full(len(entries), "train"), count, seed, _FEWEST_OF_PART)
    return np.flatnonzero(np.isin(entries, taken))


def in_turn(catalog: Catalog, entries: np.ndarray, *, seed: int) -> np.ndarray:
    """Places in `entries`, in an order of which every beginning has an even part of each class, rare ones by chance.

    Systematic sampling (Cochran 1977, chapter 8) within each class from a start of its own, so that each image is equally likely
    to be among the first n.
    """
    strata = leading(catalog.labels)[entries]
    order, rank, sizes = _turns(catalog, entries, strata, seed)
    starts = {stratum: address(seed, "turn", int(stratum)) / 2**128 for stratum in np.unique(strata)}
    due = (rank + np.array([starts[stratum] for stratum in strata[order]])) / sizes
    return order[np.argsort(due, kind="stable")]


def _tested(catalog: Catalog, rows: np.ndarray, count: int, seed: int) -> np.ndarray:
    """So many of these test entries, each equally likely: with a few of each class the rare ones would count for too much."""
    return rows[in_turn(catalog, rows, seed=seed)[:count]]


def _words(splits: Splits) -> np.ndarray:
    """Which of both splits each of `splits.fitting` is in."""
    return np.where(np.isin(splits.fitting, splits.val), "val", "train")


def _drawn(
    catalog: Catalog,
    rows: np.ndarray,
    words: np.ndarray,
    count: int,
    seed: int,
    fewest: Mapping[str, int] = _FEWEST,
    *,
    few: bool = False,
) -> np.ndarray:
    """About `count` of these entries, sorted: an even part of each class and split word, but a few of each.

    Which they are follows from their paths, so those of a smaller count are among them. few: as of a `Part`.
    """
    if count >= len(rows):
        return rows
    order, first, least = _in_order(catalog, rows, words, seed, fewest)
    return np.sort(rows[order[: max(count, first if few else least)]])


def _in_order(
    catalog: Catalog, rows: np.ndarray, words: np.ndarray, seed: int, fewest: Mapping[str, int]
) -> tuple[np.ndarray, int, int]:
    """Places in `rows`: a few of each class and split word, what `fewest` asks for, then even parts; how many are of the first,
    and of the first and the second.
    """
    strata = leading(catalog.labels)[rows] * len(SPLIT_WORDS) + [SPLIT_WORDS.index(word) for word in words]
    order, rank, sizes = _turns(catalog, rows, strata, seed)
    first, few = (rank < [asked[word] for word in words[order]] for asked in (_FEWEST_AT_FIRST, fewest))
    # The share of its own stratum that must be taken for it to be among them.
    due = np.select([first, few], [-1.0, 0.0], (rank + 1) / sizes)
    return order[np.argsort(due, kind="stable")], int(first.sum()), int((first | few).sum())


def _turns(
    catalog: Catalog, rows: np.ndarray, strata: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The order that follows from the paths of these entries, as places in `rows`; along it, each one's place within its
    stratum, and how many that has."""
    places = np.array([address(seed, "sample", catalog.paths[row]) >> 65 for row in rows], np.int64)
    order = np.argsort(places, kind="stable")
    rank = rank_within(strata[order])
    _, own, sizes = np.unique(strata[order], return_inverse=True, return_counts=True)
    return order, rank, sizes[own]


def only(catalog: Catalog, rows: np.ndarray) -> Catalog:
    """These entries of the catalogue."""
    return replace(catalog.at(rows), skipped=catalog.skipped + len(catalog) - len(rows))
