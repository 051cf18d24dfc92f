"""What every stage of a run works on: labelled pixels by split, the backbone, the clock."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from burnish.backbones.spec import Backbone
from burnish.data.cache import Pixels, read_pixels, typical_side
from burnish.data.catalog import Catalog, Splits
from burnish.data.sources import without
from burnish.data.split import restricted
from burnish.data.store import PixelStore
from burnish.errors import NotEnoughData, shown
from burnish.recipe import Recipe
from burnish.runtime import Clock, Watcher, cores
from burnish.terms import Preprocess


@dataclass(frozen=True)
class Material:
    """Decoded images for fitting (train and val) and for the proof (test)."""

    catalog: Catalog
    fitting: Pixels  # train and val images, in catalogue order
    labels: np.ndarray  # int64 [n] of the fitting images
    is_val: np.ndarray  # bool [n]
    test: Pixels
    test_labels: np.ndarray  # int64 [m]; read once, by the proof
    preprocess: Preprocess  # of the plain views: that of the probe
    decoded_per_second: float  # images, from file to plain view

    @property
    def content(self) -> str:
        """Hash of all the image files' bytes."""
        return f"{self.fitting.content} {self.test.content}"

    @property
    def train_rows(self) -> np.ndarray:
        """Rows of `fitting` that are trained on."""
        return np.flatnonzero(~self.is_val)

    @property
    def val_rows(self) -> np.ndarray:
        """Rows of `fitting` that choices are made on."""
        return np.flatnonzero(self.is_val)


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
    proves: bool = True  # whether the test images are to be looked at before this clock runs out


def gather(
    catalog: Catalog, splits: Splits, bench: Bench, preprocess: Preprocess, *, trains: bool
) -> tuple[Material, Splits]:
    """Decode every image of the splits once; the unreadable are left out of the splits and named.

    preprocess: of the plain views. trains: whether to keep whole images for training crops as well.
    Raises NotEnoughData when a class loses all its images, or too many for training.
    """
    native = bench.backbone.preprocess
    ids = np.sort(np.concatenate([splits.train, splits.val]))
    bench.watcher.stage("decode", total=len(ids) + len(splits.test))
    side = stored_side(catalog, native.size / native.crop) if trains else None
    told = 0

    def on_progress(done: int) -> None:
        nonlocal told
        bench.watcher.advance(done - told if done > told else done)
        told = done

    read = partial(
        read_pixels,
        catalog,
        preprocess=preprocess,
        workers=cores(),
        store=bench.store,
        on_progress=on_progress,
    )
    began = time.monotonic()
    fitting, test = read(ids, stored_side=side), read(splits.test)
    rate = (len(ids) + len(splits.test)) / max(1e-3, time.monotonic() - began)
    named = (*fitting.named, *test.named)
    if named:
        left = without(catalog, named)
        splits, catalog, before = restricted(splits, catalog, left), left, catalog
        place = {path: row for row, path in enumerate(left.paths)}
        fitting, test = (
            replace(pixels, ids=np.array([place[before.paths[row]] for row in pixels.ids], np.int64))
            for pixels in (fitting, test)
        )
        bench.watcher.say(
            f"{len(named)} images cannot be read and are left out; first: {shown(named[0].path)}: {named[0].reason}"
        )
    require_trainable(catalog, splits)
    is_val = np.isin(fitting.ids, splits.val)
    labels, test_labels = catalog.labels[fitting.ids], catalog.labels[test.ids]
    return Material(catalog, fitting, labels, is_val, test, test_labels, preprocess, rate), splits


def require_trainable(catalog: Catalog, splits: Splits) -> None:
    """NotEnoughData unless every class has a training image and there is something to test on."""
    lacking = np.flatnonzero(np.bincount(catalog.labels[splits.train], minlength=len(catalog.classes)) == 0)
    if len(lacking):
        name = shown(repr(catalog.classes[lacking[0]]))
        raise NotEnoughData(f"class {name} has no readable training image; add some, or remove the class")
    if len(splits.test) == 0:
        raise NotEnoughData(
            "the data has no readable test image, so nothing could be proven; add some, or give no test split"
        )


def stored_side(catalog: Catalog, wanted: float) -> int:
    """Pixels a side of the images that training crops are cut from: no larger than the originals make sense of."""
    return int(max(64, min(round(wanted), typical_side(catalog) or round(wanted))))
