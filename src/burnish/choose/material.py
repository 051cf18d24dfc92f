"""What every stage of a run works on: labelled pixels by split, the backbone, the clock."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from burnish.backbones.spec import Backbone
from burnish.choose.aim import augmentation_of
from burnish.data.audit.findings import Finding
from burnish.data.cache import Pixels
from burnish.data.catalog import Catalog
from burnish.data.store import PixelStore
from burnish.labels import grouped
from burnish.recipe import Recipe
from burnish.runtime import Clock, Watcher
from burnish.terms import Preprocess
from burnish.train.inputs import PixelViews


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

    def sets(self, rows: np.ndarray) -> np.ndarray:
        """For these rows of `fitting`, int64 [r] from 0, equal for images that were drawn together; each may be by itself."""
        tied = self.tied(rows)
        return np.arange(len(rows)) if tied is None else tied

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
    fine: bool = False  # whether images were asked, and want to be seen at the network's whole size
    proves: bool = True  # whether the test images are to be looked at before this clock runs out
    asked: bool = True  # whether what is trained was asked for by name, rather than chosen
    # Of other models, besides the probe and the tuned one, that are to see the test images too: how they see them.
    rivals: tuple[Preprocess, ...] = ()


def views_of(material: Material, bench: Bench, *, flip: bool) -> PixelViews:
    """Augmented views of the training images, in the order of `material.train_rows`."""
    recipe, fitting, rows = bench.recipe, material.fitting, material.train_rows
    assert fitting.stored is not None
    how = augmentation_of(recipe, size=bench.backbone.preprocess.size, flip=flip, several=material.several)
    squashed = bench.backbone.preprocess.fit == "squash"  # where images are seen squashed they are learnt so
    return PixelViews(
        stored=fitting.stored,
        rows=rows,
        aspects=np.ones(len(rows), np.float32) if squashed else fitting.aspects[rows],
        labels=material.labels[rows],
        ids=rows,  # not the catalogue's numbers, which follow the labels of test images too (P5)
        paths=tuple(material.catalog.paths[index] for index in fitting.ids[rows]),
        how=how,
        preprocess=bench.backbone.preprocess,
        seed=recipe.seed,
        cuts_there=bench.device.type == "cuda" and not how.trivial,
    )
