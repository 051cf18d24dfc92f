"""What every stage of a run works on: labelled pixels by split, the backbone, the clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from burnish.backbones.spec import Backbone
from burnish.choose.aim import augmentation_of
from burnish.data.audit.findings import Finding, in_a_sentence
from burnish.data.audit.sameness import Sameness, leaked
from burnish.data.audit.twins import Twins
from burnish.data.audit.whole import audited, same_pictures
from burnish.data.cache import Pixels, joined, read_pixels, typical_side
from burnish.data.catalog import Catalog, Named, Splits
from burnish.data.looks import Dataset, Looks, look_at, seconds_a_file
from burnish.data.sample import first_of, some_of
from burnish.data.sources import without
from burnish.data.split import held_together, make_splits, restricted, untorn
from burnish.data.store import PixelStore
from burnish.errors import NotEnoughData, shown
from burnish.labels import counts, grouped
from burnish.recipe import Recipe
from burnish.runtime import Clock, Watcher, cores, evenly
from burnish.terms import Preprocess
from burnish.train.inputs import PixelViews

_LOOK_SHARE = 0.12  # of the budget, for hashing files and reading their headers
_TIMED, _FEWEST_LOOKED_AT = 64, 256  # files


@dataclass(frozen=True, kw_only=True)
class Material:
    """Decoded images for fitting (train and val) and for the proof (test)."""

    catalog: Catalog
    fitting: Pixels  # train and val images, in catalogue order
    labels: np.ndarray  # int64 [n], or bool [n k] where an image may have several classes: of the fitting images
    is_val: np.ndarray  # bool [n]
    test: Pixels
    test_labels: np.ndarray  # int64 [m], or bool [m k]; read once, by the proof
    preprocess: Preprocess  # of the plain views: that of the probe
    decoded_per_second: float  # images, from file to plain view
    findings: tuple[Finding, ...]  # of the audit, without those that need a network
    leaky: np.ndarray  # bool [m]: test images that train or val nearly show too
    search_note: str  # why near-duplicates were not looked for, "" when they were
    due: int  # test images that plans count on; the others are for time that is left over
    # int64 [n], equal for images to fit that are left out together: of one group, or the same picture. None: each by itself.
    together: np.ndarray | None = None
    untested: int = 0  # test images besides, which the clock left no time to look at

    @property
    def several(self) -> bool:
        """Whether an image may have any number of classes."""
        return self.catalog.several

    @property
    def content(self) -> str:
        """Hash of all the image files' bytes."""
        return f"{self.fitting.content} {self.test.content}"

    @property
    def skipped(self) -> int:
        """Images that the budget had no time for."""
        return self.catalog.skipped + self.untested

    def tested_on(self, rows: np.ndarray) -> Material:
        """With these rows of `test` alone, in the order in which they lie there."""
        gone, rows = len(self.test.ids) - len(rows), np.sort(rows)
        if not gone:
            return self
        return replace(
            self, test=self.test.at(self.test.ids[rows]), test_labels=self.test_labels[rows], leaky=self.leaky[rows],
            due=min(self.due, len(rows)), untested=self.untested + gone,
        )  # fmt: skip

    @property
    def test_groups(self) -> np.ndarray | None:
        """int64 [m], equal for test images of one group; None where each is by itself."""
        return self.catalog.grouped(self.test.ids)

    def tied(self, rows: np.ndarray) -> np.ndarray | None:
        """For these rows of `fitting`, int64 [r] from 0, equal where images are of one group or nearly the same; None where none
        are.
        """
        return None if self.together is None else grouped(self.together[rows].tolist())

    @property
    def val_groups(self) -> np.ndarray | None:
        """int64 [v], of the val images, as `tied` has them."""
        return self.tied(self.val_rows)

    @property
    def train_rows(self) -> np.ndarray:
        """Rows of `fitting` that are trained on."""
        return np.flatnonzero(~self.is_val)

    @property
    def val_rows(self) -> np.ndarray:
        """Rows of `fitting` that choices are made on."""
        return np.flatnonzero(self.is_val)

    @property
    def val_ids(self) -> np.ndarray:
        """Catalogue entries of the validation images."""
        return self.fitting.ids[self.val_rows]


@dataclass(frozen=True)
class Bench:
    """Where the work is done: the settled recipe, the pretrained network, device, clock and onlooker.

    workers and store change how fast it goes, never what comes out.
    """

    recipe: Recipe
    backbone: Backbone
    device: torch.device
    clock: Clock
    watcher: Watcher
    workers: int = 0  # threads that make training batches ahead
    store: PixelStore | None = None  # where decoded pixels are kept between runs
    heads: tuple[str, ...] = ()  # frozen methods that name a kind of head, fitted besides the usual ones
    deep: bool = False  # whether heads on all depths were asked for by name, so that memory does not forbid them
    proves: bool = True  # whether the test images are to be looked at before this clock runs out
    # Of other models, besides the probe and the tuned one, that are to see the test images too: how they see them.
    rivals: tuple[Preprocess, ...] = ()


def first_splits(catalog: Catalog, recipe: Recipe, watcher: Watcher, *, known: int | None = None) -> Dataset:
    """The splits, by the content of the files, and what their headers say; files with the same bytes stay together.

    Of more files than can be looked at in a small part of the budget some are left out. known: how many an earlier sitting
    looked at.
    """
    watcher.stage("look", total=len(catalog))
    count = known or _looked_at_in_time(catalog, _share(recipe))
    catalog = some_of(catalog, count, seed=recipe.seed)
    if catalog.skipped:
        watcher.stage("look", total=len(catalog))
        watcher.say(
            f"{catalog.skipped:,} images are left out: the budget has no time to look at more than {len(catalog):,}"
        )
    looks = look_at(catalog, np.arange(len(catalog)), workers=cores())
    watcher.advance(len(catalog))
    _, copies = np.unique(np.array(looks.digests), return_inverse=True)
    fractions = {"test_fraction": recipe.test_fraction, "val_fraction": recipe.val_fraction}
    splits = make_splits(catalog, seed=recipe.seed, content=looks.digests, together=copies, **fractions)
    require_test(catalog, splits)  # later it can only lose images
    return Dataset(catalog, splits, looks)


def _share(recipe: Recipe) -> float | None:
    """The part of the budget that one of several trainings has, seconds; None where there is no budget."""
    return None if recipe.budget_seconds is None else recipe.budget_seconds / recipe.seeds


def _looked_at_in_time(catalog: Catalog, budget_seconds: float | None) -> int:
    """How many files to look at; timed on a few where there are many."""
    if budget_seconds is None or len(catalog) <= _FEWEST_LOOKED_AT:
        return len(catalog)
    look_at(catalog, evenly(len(catalog), cores()), workers=cores())  # the codecs are loaded by the first
    each = seconds_a_file(catalog, evenly(len(catalog), _TIMED), workers=cores())
    return min(len(catalog), max(_FEWEST_LOOKED_AT, int(_LOOK_SHARE * budget_seconds / each)))


def gather(
    dataset: Dataset,
    bench: Bench,
    preprocess: Preprocess,
    *,
    trains: bool,
    spare: int = 0,
    early: int | None = None,
    on_fitting: Callable[[Material], None] | None = None,
    decoded_per_second: float | None = None,
) -> tuple[Material, Splits]:
    """Decode every image of the splits once, audit them, and keep same pictures on one side.

    The unreadable are left out of the splits and named; so are training images whose very bytes are in a test split that the
    data gives. preprocess: of the plain views. trains: whether to keep whole images for training crops as well. spare: how
    many of the test images plans do not count on. on_fitting: called with images to fit alone, before the others are decoded
    and compared with them. early: with about so many of them; None: with all. decoded_per_second: images, as the survey timed it,
    for where most pixels are kept ones and none are decoded.
    Raises NotEnoughData when a class loses all its images, or too many for training.
    """
    catalog, splits, looks = dataset
    native = bench.backbone.preprocess
    side = stored_side(catalog, _largest_crop(native, bench.recipe) / native.crop) if trains else None
    reader = _Reader(catalog, looks, bench, preprocess, decoded_per_second)
    fitting = _fitting_images(reader, splits, side, early, on_fitting)
    test = reader.read(splits.test, None)
    seen = joined(fitting, test)
    same, note = same_pictures(seen, catalog.labels[seen.ids], budget_seconds=_share(bench.recipe))
    if note:
        bench.watcher.say(note)
    splits, moved = untorn(catalog, splits, same.together(catalog))
    away = np.intersect1d(moved, test.ids)
    if len(away):
        fitting = joined(fitting, reader.read(away, side))
        test = test.at(np.setdiff1d(test.ids, away))
    findings = audited(catalog, splits, same).findings
    unread = (*fitting.named, *test.named)
    if unread:
        first = f"{shown(unread[0].path)}: {unread[0].reason}"
        bench.watcher.say(f"{len(unread)} images cannot be read and are left out; first: {first}")
    copied = _copies_of_test(catalog, splits, same)
    if copied:
        bench.watcher.say(
            f"{len(copied)} training images are also in test and are left out; first: {shown(copied[0].path)}"
        )
    gone = np.flatnonzero(np.isin(catalog.paths, [one.path for one in copied])) if copied else np.zeros(0, np.int64)
    twins = {catalog.paths[entry] for entry in leaked(catalog, splits, same, besides=gone)}
    bound = dict(zip(fitting.ids, held_together(catalog, fitting.ids.tolist(), same.together(catalog)), strict=True))
    bound = {catalog.paths[entry]: number for entry, number in bound.items()}
    fitting, test, catalog, splits = _less([*unread, *copied], fitting, test, catalog, splits)
    require_trainable(catalog, splits, copied)
    if said := in_a_sentence(findings):
        bench.watcher.say(f"audit: {said}")
    is_val = np.isin(fitting.ids, splits.val)
    labels, test_labels = catalog.labels[fitting.ids], catalog.labels[test.ids]
    leaky = np.array([catalog.paths[entry] in twins for entry in test.ids], bool)
    material = Material(
        catalog=catalog,
        fitting=fitting,
        labels=labels,
        is_val=is_val,
        test=test,
        test_labels=test_labels,
        preprocess=preprocess,
        decoded_per_second=reader.rate,
        findings=findings,
        leaky=leaky,
        search_note=note,
        due=max(1, len(test.ids) - min(spare, len(test.ids) // 2)),
        together=_where_any(np.array([bound[catalog.paths[entry]] for entry in fitting.ids], np.int64)),
    )
    return material, splits


class _Reader:
    """Decodes images of a run and times it."""

    def __init__(
        self, catalog: Catalog, looks: Looks, bench: Bench, preprocess: Preprocess, usual: float | None
    ) -> None:
        """usual: images per second, where too few are decoded here to tell."""
        self.catalog, self.looks, self.bench, self.preprocess, self._usual = catalog, looks, bench, preprocess, usual
        self._seconds, self._images, self._decoded = 0.0, 0, 0

    @property
    def rate(self) -> float:
        """Images per second that decoding does; of pixels that were kept nothing is to be learnt."""
        if self._usual is not None and 2 * self._decoded < self._images:
            return self._usual
        return self._decoded / max(1e-3, self._seconds)

    def read(self, wanted: np.ndarray, side: int | None) -> Pixels:
        """Pixels of these catalogue entries; side: of the whole images kept for training crops, None for none."""
        bench = self.bench
        bench.watcher.stage("decode", total=len(wanted))
        began, told = time.monotonic(), 0

        def on_progress(done: int) -> None:
            nonlocal told
            bench.watcher.advance(done - told)
            told = done
            self._decoded += 1  # it is not called for kept ones

        found = read_pixels(
            self.catalog, wanted, preprocess=self.preprocess, stored_side=side, workers=cores(), store=bench.store,
            looks=self.looks.at(wanted), on_progress=on_progress,
        )  # fmt: skip
        self._seconds += time.monotonic() - began
        self._images += len(wanted)
        return found


def _fitting_images(
    reader: _Reader,
    splits: Splits,
    side: int | None,
    early: int | None,
    on_fitting: Callable[[Material], None] | None,
) -> Pixels:
    """The images to fit; `on_fitting` is told of about `early` of them before the rest is read."""
    catalog, ids = reader.catalog, splits.fitting

    def tell(pixels: Pixels) -> bool:
        if on_fitting is None:
            return True
        only = _fitting_alone(catalog, splits, pixels, reader.preprocess, reader.rate)
        if not counts(only.labels[only.train_rows], len(catalog.classes)).all():  # the caller says what is lacking
            return False
        on_fitting(only)
        return True

    soon = (
        ids if early is None or on_fitting is None else first_of(catalog, splits, early, seed=reader.bench.recipe.seed)
    )
    fitting = reader.read(soon, side)
    told = tell(fitting)
    if len(soon) < len(ids):
        fitting = joined(fitting, reader.read(np.setdiff1d(ids, soon), side))
        if not told:
            tell(fitting)
    return fitting


def _fitting_alone(catalog: Catalog, splits: Splits, fitting: Pixels, preprocess: Preprocess, rate: float) -> Material:
    """Material without test images, not audited."""
    none, labels = np.zeros(0, np.int64), catalog.labels[fitting.ids]
    is_val = np.isin(fitting.ids, splits.val)
    same = Sameness.of(fitting, Twins.none()).together(catalog)  # near-duplicates are not known yet
    return Material(
        catalog=catalog,
        fitting=fitting,
        labels=labels,
        is_val=is_val,
        test=fitting.at(none),
        test_labels=labels[none],
        preprocess=preprocess,
        decoded_per_second=rate,
        findings=(),
        leaky=np.zeros(0, bool),
        search_note="",
        due=0,
        together=_where_any(np.array(held_together(catalog, fitting.ids.tolist(), same), np.int64)),
    )


def _where_any(together: np.ndarray) -> np.ndarray | None:
    """None where no two images belong together."""
    return together if len(np.unique(together)) < len(together) else None


def _copies_of_test(catalog: Catalog, splits: Splits, same: Sameness) -> list[Named]:
    """Train and val images whose very bytes are in test: they can only be where the data gives the test split."""
    ids, copies = same.pixels.ids, same.copies
    tested = {int(copies[row]): catalog.paths[ids[row]] for row in np.flatnonzero(np.isin(ids, splits.test))}
    rows = np.flatnonzero(~np.isin(ids, splits.test))
    return [
        Named(
            catalog.paths[ids[row]],
            f"the same bytes as {tested[int(copies[row])]}, which is in test: left out of the rest",
        )
        for row in rows
        if int(copies[row]) in tested
    ]


def _less(
    named: list[Named], fitting: Pixels, test: Pixels, catalog: Catalog, splits: Splits
) -> tuple[Pixels, Pixels, Catalog, Splits]:
    """All four without these images."""
    if not named:
        return fitting, test, catalog, splits
    left = without(catalog, named)
    place, gone = {path: row for row, path in enumerate(left.paths)}, {one.path for one in named}

    def kept(pixels: Pixels) -> Pixels:
        pixels = pixels.at(np.array([entry for entry in pixels.ids if catalog.paths[entry] not in gone], np.int64))
        return replace(pixels, ids=np.array([place[catalog.paths[entry]] for entry in pixels.ids], np.int64))

    return kept(fitting), kept(test), left, restricted(splits, catalog, left)


def _largest_crop(native: Preprocess, recipe: Recipe) -> int:
    """Pixels a side of the largest views that training may see; a reduced JPEG holds twice the network's own size (`enough`)."""
    asked = 0 if recipe.image_size == "auto" else recipe.image_size
    return max(native.size, min(asked, 2 * native.size))


def views_of(material: Material, bench: Bench, *, flip: bool) -> PixelViews:
    """Augmented views of the training images, in the order of `material.train_rows`."""
    recipe, fitting, rows = bench.recipe, material.fitting, material.train_rows
    assert fitting.stored is not None
    squashed = bench.backbone.preprocess.fit == "squash"  # where images are seen squashed they are learnt so
    return PixelViews(
        stored=fitting.stored,
        rows=rows,
        aspects=np.ones(len(rows), np.float32) if squashed else fitting.aspects[rows],
        labels=material.labels[rows],
        ids=rows,  # not the catalogue's numbers, which follow the labels of test images too (P5)
        paths=tuple(material.catalog.paths[index] for index in fitting.ids[rows]),
        how=augmentation_of(recipe, size=bench.backbone.preprocess.size, flip=flip, several=material.several),
        preprocess=bench.backbone.preprocess,
        seed=recipe.seed,
    )


def require_trainable(catalog: Catalog, splits: Splits, copied: Sequence[Named] = ()) -> None:
    """NotEnoughData unless every class has a training image and there is something to test on (`require_test`).

    copied: training images that were left out because test has their very bytes.
    """
    lacking = np.flatnonzero(counts(catalog.labels[splits.train], len(catalog.classes)) == 0)
    if len(lacking):
        name = shown(repr(catalog.classes[lacking[0]]))
        if copied:
            raise NotEnoughData(
                f"class {name} has no training image left: {len(copied)} of the training images are in test too, byte for byte "
                f"(first: {shown(copied[0].path)}); take them out of one of the two"
            )
        raise NotEnoughData(f"class {name} has no readable training image; add some, or remove the class")
    require_test(catalog, splits)


def require_test(catalog: Catalog, splits: Splits) -> None:
    """NotEnoughData unless there is something to test on."""
    if len(splits.test) == 0:
        raise NotEnoughData(
            "there is no readable test image that is not tied to the training images (the same picture, or the same group), "
            "so nothing could be proven; add other images"
            + (", or give no test split" if "test" in catalog.splits else "")
        )
    if catalog.several and not catalog.labels[splits.test].any():
        raise NotEnoughData(
            "none of the test images has a class, so nothing could be proven; label them, or give no test split"
        )


def stored_side(catalog: Catalog, wanted: float) -> int:
    """Pixels a side of the images that training crops are cut from: no larger than the originals make sense of."""
    return int(max(64, min(round(wanted), typical_side(catalog) or round(wanted))))
