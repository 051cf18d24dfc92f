"""From splits of files to labelled pixels: decode, compare, audit, keep the same pictures on one side."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np

from burnish.choose.holdout import require_trainable, seconds_of_one_training
from burnish.choose.material import Bench, Material
from burnish.data.audit.findings import in_a_sentence
from burnish.data.audit.sameness import Sameness, leaked
from burnish.data.audit.twins import Twins
from burnish.data.audit.whole import audited, same_pictures
from burnish.data.cache import Pixels, Reading, joined, typical_side
from burnish.data.catalog import Catalog, Named, Splits
from burnish.data.looks import Dataset
from burnish.data.sample import Taken
from burnish.data.sources import without
from burnish.data.split import held_together, restricted, untorn
from burnish.errors import shown
from burnish.granted import cores
from burnish.labels import counts
from burnish.runtime import Watcher
from burnish.terms import Preprocess

_SHARP = 224  # pixels a side of views, from which on images are kept no finer than the whole of them is seen


class Looking(Protocol):
    """Who looks at the images to fit as they come, and says how many are to come."""

    def to_fit(self, looked: int) -> int:
        """Of the order in which they are taken so many are next, those that were looked at included; no more than those: all."""
        ...

    def sees(self, catalog: Catalog, pixels: Pixels) -> None:
        """Look at the next ones; some may lie in there already."""
        ...

    def first_is_due(self, looked: int) -> bool:
        """Whether a first model is wanted of those that were looked at."""
        ...

    def fits(self, material: Material) -> None:
        """Make it, of these."""
        ...

    def to_test(self, looked: int, tested: int) -> int:
        """As `to_fit`, of the test images."""
        ...

    def tests(self, count: int) -> None:
        """So many more test images are decoded."""
        ...

    def settled(self, looked: int, tested: int) -> Taken:
        """What is taken in the end."""
        ...


class Gathered(NamedTuple):
    """What `gather` comes to."""

    material: Material
    splits: Splits  # of the images that can be used
    taken: Taken


def gather(
    taken: Taken,
    bench: Bench,
    preprocess: Preprocess,
    *,
    trains: bool,
    looking: Looking | None = None,
    decoded_per_second: float | None = None,
) -> Gathered:
    """Decode every image that is taken once, audit them, and keep same pictures on one side.

    The unreadable are left out of the splits and named; so are training images whose very bytes are in a test split that the
    data gives. preprocess: of the plain views. trains: whether to keep whole images for training crops as well. looking: looks at
    images to fit as they are decoded, before the test images are and all are compared; None: all are taken and nobody does.
    decoded_per_second: images, as the survey timed it, for where most pixels are kept ones and none are decoded.
    Raises NotEnoughData when a class loses all its images, or too many for training.
    """
    native, whole = bench.backbone.preprocess, taken.whole.catalog
    wanted = native.size if bench.recipe.image_size == "auto" else _sharp(native.size)
    # Of all images, however many of them there turn out to be time for: a run that is taken up again knows that before it.
    side = stored_side(whole, wanted / native.crop) if trains else None
    reader = _Reader(bench, preprocess, decoded_per_second)
    taken, decoded = _read(taken, reader, side, looking)
    pixels = joined(decoded.fitting, decoded.test)
    budget = seconds_of_one_training(bench.recipe)
    same, note = same_pictures(pixels, decoded.catalog.labels[pixels.ids], budget_seconds=budget)
    if note:
        bench.watcher.say(note)
    if parted := same.parted(decoded.catalog):
        bench.watcher.say(_parted_in_words(parted))
    decoded = decoded.untorn(same, reader, side)
    findings = audited(decoded.catalog, decoded.splits, same).findings
    unread, copied = decoded.unread, decoded.copies_of_test(same)
    _say_left_out(unread, copied, bench.watcher)
    ties = _Ties.of(decoded, same, copied)
    decoded = decoded.without([*unread, *copied])
    require_trainable(decoded.catalog, decoded.splits, copied)
    if said := in_a_sentence(findings):
        bench.watcher.say(f"audit: {said}")
    n_test = len(decoded.test.ids)
    due = max(1, n_test - min(taken.spare, n_test // 2))
    material = _material(decoded, ties, preprocess, reader.rate)
    return Gathered(replace(material, findings=findings, search_note=note, due=due), decoded.splits, taken)


def _read(taken: Taken, reader: _Reader, side: int | None, looking: Looking | None) -> tuple[Taken, _Decoded]:
    """The images that are taken in the end, decoded."""
    whole, order, watcher = taken.whole, taken.order, reader.bench.watcher
    fitting = _InTurn(reader, whole, order.fitting, side)
    if looking is None:
        watcher.stage("decode", total=len(order.fitting) + len(order.test))
        fitting.upto(len(order.fitting))
        test = _InTurn(reader, whole, order.test, None)
        test.upto(len(order.test))
        return taken, _Decoded(whole, fitting.kept(), test.kept()).within(taken.dataset)
    stage = f"images, {reader.preprocess.size} px"
    watcher.stage(stage, total=len(order.fitting))
    while (count := looking.to_fit(fitting.done)) > fitting.done:
        looking.sees(whole.catalog, fitting.upto(count, tells=False))
        if looking.first_is_due(fitting.done):
            soon = _Decoded.fitting_alone(whole, fitting.pixels()).within(taken.dataset)
            if soon.has_all_classes():  # else the caller says what is lacking
                looking.fits(soon.alone(reader))
                if left := len(order.fitting) - fitting.done:
                    watcher.stage(stage, total=left)
    decoded = fitting.kept()
    watcher.stage("decode", total=len(order.test))
    test = _InTurn(reader, whole, order.test, None)
    while (count := looking.to_test(fitting.done, test.done)) > test.done:
        before = test.done
        test.upto(count)
        looking.tests(count - before)
    taken = looking.settled(fitting.done, test.done)
    return taken, _Decoded(whole, decoded, test.kept()).within(taken.dataset)


class _InTurn:
    """Entries of a data set that are decoded in the order in which they are taken, some at a time."""

    def __init__(self, reader: _Reader, dataset: Dataset, order: np.ndarray, side: int | None) -> None:
        """side: of the whole images kept for training crops, pixels; None for none."""
        ids = np.sort(order)
        self.reader, self.reading, self.done = reader, reader.opened(dataset, ids, side), 0
        self._places = np.searchsorted(ids, order)

    def upto(self, count: int, *, tells: bool = True) -> Pixels:
        """The next ones, until so many are done; tells: whether the onlooker is told of each."""
        places, self.done = np.sort(self._places[self.done : count]), count
        return self.reader.timed(self.reading, places, tells=tells)

    def pixels(self) -> Pixels:
        """All that are done."""
        return self.reading.so_far()

    def kept(self) -> Pixels:
        """The same; the store keeps them."""
        return self.reading.kept()


@dataclass(frozen=True)
class _Decoded:
    """Decoded images of a data set."""

    dataset: Dataset
    fitting: Pixels  # train and val
    test: Pixels

    @classmethod
    def fitting_alone(cls, dataset: Dataset, fitting: Pixels) -> _Decoded:
        """No test images yet."""
        return cls(dataset, fitting, fitting.at(np.zeros(0, np.int64)))

    @property
    def catalog(self) -> Catalog:
        """Of the data set."""
        return self.dataset.catalog

    @property
    def splits(self) -> Splits:
        """Of the data set."""
        return self.dataset.splits

    @property
    def unread(self) -> list[Named]:
        """Files that could not be decoded."""
        return [*self.fitting.named, *self.test.named]

    def has_all_classes(self) -> bool:
        """Whether each class has images to train on."""
        train = np.intersect1d(self.fitting.ids, self.splits.train)
        return bool(counts(self.catalog.labels[train], len(self.catalog.classes)).all())

    def alone(self, reader: _Reader) -> Material:
        """Material of the images to fit, before near-duplicates are known."""
        same = Sameness.of(self.fitting, Twins.none())
        return _material(self, _Ties.of(self, same, []), reader.preprocess, reader.rate)

    def within(self, dataset: Dataset) -> _Decoded:
        """Those of them that are in a smaller data set, under its numbers."""
        if dataset.catalog is self.catalog:
            return self
        return _Decoded(
            dataset, *(_renumbered(one, self.catalog, dataset.catalog) for one in (self.fitting, self.test))
        )

    def untorn(self, same: Sameness, reader: _Reader, side: int | None) -> _Decoded:
        """With the same pictures on one side; those that leave test are read again, as whole images of `side` pixels too."""
        splits, moved = untorn(self.catalog, self.splits, same.together(self.catalog))
        fitting, test = self.fitting, self.test
        away = np.intersect1d(moved, test.ids)
        if len(away):
            fitting = joined(fitting, reader.read(self.dataset, away, side))
            test = test.at(np.setdiff1d(test.ids, away))
        return _Decoded(self.dataset._replace(splits=splits), fitting, test)

    def copies_of_test(self, same: Sameness) -> list[Named]:
        """Train and val images whose very bytes are in test: the data gives that split, or groups are parted."""
        paths, ids, copies = self.catalog.paths, same.pixels.ids, same.copies
        in_test = np.isin(ids, self.splits.test)
        tested = {int(copies[row]): paths[ids[row]] for row in np.flatnonzero(in_test)}
        return [
            Named(
                paths[ids[row]],
                f"the same bytes as {tested[int(copies[row])]}, which is in test: left out of the rest",
            )
            for row in np.flatnonzero(~in_test)
            if int(copies[row]) in tested
        ]

    def without(self, named: list[Named]) -> _Decoded:
        """Without these images; the others have new numbers in the smaller catalogue."""
        if not named:
            return self
        catalog, gone = without(self.catalog, named), {image.path for image in named}
        kept = np.array([row for row, path in enumerate(self.catalog.paths) if path not in gone], np.int64)
        splits = restricted(self.splits, self.catalog, catalog)
        return self.within(Dataset(catalog, splits, self.dataset.looks.at(kept)))


def _renumbered(pixels: Pixels, before: Catalog, after: Catalog) -> Pixels:
    """Those that are in a catalogue which has lost some images, under its numbers."""
    place = {path: row for row, path in enumerate(after.paths)}
    found = pixels.at(np.array([entry for entry in pixels.ids if before.paths[entry] in place], np.int64))
    named = tuple(image for image in found.named if image.path in place)
    return replace(found, ids=np.array([place[before.paths[entry]] for entry in found.ids], np.int64), named=named)


@dataclass(frozen=True)
class _Ties:
    """Which images show the same; by path, for leaving some out gives the others new numbers in the catalogue."""

    leaky: frozenset[str]  # test images that train or val nearly show too
    together: dict[str, int]  # of each image to fit, equal for those of one group, or of the same picture

    @classmethod
    def of(cls, decoded: _Decoded, same: Sameness, copied: list[Named]) -> _Ties:
        """copied: images that will be left out, so that nothing leaks through them."""
        catalog, ids = decoded.catalog, decoded.fitting.ids
        left_out = np.flatnonzero(np.isin(catalog.paths, [image.path for image in copied]))
        leaky = leaked(catalog, decoded.splits, same, besides=left_out)
        numbers = held_together(catalog, ids.tolist(), same.together(catalog))
        together = {catalog.paths[entry]: number for entry, number in zip(ids, numbers, strict=True)}
        return cls(frozenset(catalog.paths[entry] for entry in leaky), together)


def _material(decoded: _Decoded, ties: _Ties, preprocess: Preprocess, decoded_per_second: float) -> Material:
    """Material of these images, without findings; plans count on none of its test images yet."""
    catalog, fitting, test = decoded.catalog, decoded.fitting, decoded.test
    together = np.array([ties.together[catalog.paths[entry]] for entry in fitting.ids], np.int64)
    return Material(
        catalog=catalog,
        fitting=fitting,
        labels=catalog.labels[fitting.ids],
        is_val=np.isin(fitting.ids, decoded.splits.val),
        test=test,
        test_labels=catalog.labels[test.ids],
        preprocess=preprocess,
        decoded_per_second=decoded_per_second,
        findings=(),
        leaky=np.array([catalog.paths[entry] in ties.leaky for entry in test.ids], bool),
        search_note="",
        due=0,
        together=together if len(np.unique(together)) < len(together) else None,
    )


def _parted_in_words(groups: int) -> str:
    return (
        f"the same pictures are in {groups:,} groups and would make them one: groups are kept apart by their names alone, and "
        "test images that others show too are told as leaks"
    )


def _say_left_out(unread: list[Named], copied: list[Named], watcher: Watcher) -> None:
    if unread:
        first = f"{shown(unread[0].path)}: {unread[0].reason}"
        watcher.say(f"{len(unread)} images cannot be read and are left out; first: {first}")
    if copied:
        watcher.say(f"{len(copied)} training images are also in test and are left out; first: {shown(copied[0].path)}")


class _Reader:
    """Decodes images of a run and times it."""

    def __init__(self, bench: Bench, preprocess: Preprocess, usual: float | None) -> None:
        """usual: images per second, where too few are decoded here to tell."""
        self.bench, self.preprocess, self._usual = bench, preprocess, usual
        self._seconds, self._images, self._decoded = 0.0, 0, 0

    @property
    def rate(self) -> float:
        """Images per second that decoding does; of pixels that were kept nothing is to be learnt."""
        if self._usual is not None and 2 * self._decoded < self._images:
            return self._usual
        return self._decoded / max(1e-3, self._seconds)

    def opened(self, dataset: Dataset, ids: np.ndarray, side: int | None) -> Reading:
        """Entries of its catalogue, sorted; side: of the whole images kept for training crops, None for none."""
        return Reading(
            dataset.catalog, ids, preprocess=self.preprocess, stored_side=side, workers=cores(), store=self.bench.store,
            looks=dataset.looks.at(ids),
        )  # fmt: skip

    def timed(self, reading: Reading, places: np.ndarray, *, tells: bool) -> Pixels:
        """Those at these places, decoded; tells: whether the onlooker is told of each."""
        began, told = time.monotonic(), 0

        def on_progress(done: int) -> None:
            nonlocal told
            if tells:
                self.bench.watcher.advance(done - told)
            told = done
            self._decoded += 1  # it is not called for kept ones

        found = reading.read(places, on_progress)
        self._seconds += time.monotonic() - began
        self._images += len(places)
        return found

    def read(self, dataset: Dataset, wanted: np.ndarray, side: int | None) -> Pixels:
        """Pixels of these entries, sorted, at once."""
        self.bench.watcher.stage("decode", total=len(wanted))
        reading = self.opened(dataset, wanted, side)
        self.timed(reading, np.arange(len(wanted)), tells=True)
        return reading.kept()


def _sharp(size: int) -> int:
    """Pixels a side of whole images for views of a named size: of small ones twice as many, for a crop is a part of one."""
    return max(size, min(2 * size, _SHARP))


def stored_side(catalog: Catalog, wanted: float) -> int:
    """Pixels a side of the images that training crops are cut from: no larger than the originals make sense of."""
    return int(max(64, min(round(wanted), typical_side(catalog) or round(wanted))))
