"""Images to fit as a run sees them: in rounds of some seconds, a first model in time, no more than there is time for (P6)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from burnish.choose.features import Seen, features_of
from burnish.choose.material import Bench, Material
from burnish.choose.part import FIRST_SAVED, Done, Pace, first_model_due
from burnish.choose.probing import Probed, quick_head
from burnish.choose.survey import Surveyed
from burnish.data.cache import Pixels
from burnish.data.catalog import Catalog
from burnish.data.sample import Taken

_NEAR = 1 / 4  # of the time to a first model, after which a quick head is saved before the others are looked for
_MOVED_AT_ONCE = 1024  # rows of features


class Instalments:
    """What `gather` asks as it decodes; it keeps the features of images that were looked at, and saves a first model."""

    def __init__(
        self,
        taken: Taken,
        surveyed: Surveyed,
        bench: Bench,
        *,
        thins: bool,
        early: bool,
        save: Callable[[Probed, Material], None] | None,
    ) -> None:
        """thins: whether images may be left out. early: whether a model may be saved before all is decoded. save: None: never."""
        self.taken, self.surveyed, self.bench, self.early, self._save = taken, surveyed, bench, early, save
        self.seconds: float | None = None  # on the clock, when the first model was saved
        self.pace = Pace(surveyed.costs, bench.clock, thins=thins)
        self._ids = np.sort(taken.order.fitting)
        self._there, self._digests = np.zeros(len(self._ids), bool), np.full(len(self._ids), "", object)
        self._features: np.ndarray | None = None  # float32 [n d], a row for each of `_ids`
        self._rates: list[tuple[int, float]] = []  # of each round, its images and how many a second were seen

    def to_fit(self, looked: int) -> int:
        """How many images to fit are to be looked at by the end of the next round."""
        return self.pace.to_fit(self.taken, self._done(looked))

    def sees(self, catalog: Catalog, pixels: Pixels) -> None:
        """Ask the trunk about these images."""
        if len(pixels.ids):
            features, rate = features_of(pixels, catalog, self.surveyed, self.bench)
            if self._features is None:  # pages that are never written to take no memory
                self._features = np.empty((len(self._ids), features.shape[1]), np.float32)
            rows = np.searchsorted(self._ids, pixels.ids)
            self._features[rows], self._there[rows], self._digests[rows] = features, True, pixels.looks.digests
            self._rates.append((len(rows), rate))
        self.pace.took(self.surveyed.costs.seen(len(pixels.ids) + len(pixels.named)))

    def first_is_due(self, looked: int) -> bool:
        """Whether a first model would be late after one more round or, where there is none, the best head would be."""
        if self._save is None or not self.early or self.seconds is not None:
            return False
        if self.to_fit(looked) > looked:
            return self.pace.first_is_due(self.taken, self._done(looked))
        return self._is_late()

    def fits(self, material: Material) -> None:
        """Save a first model of the images that were looked at."""
        assert self._features is not None
        plain = self.surveyed.backbone.plain or self.surveyed.backbone
        self._saves(self._features[:, : plain.width][self._there], material)
        self.pace.took(self.surveyed.costs.quick_head(len(material.labels)) + FIRST_SAVED)

    def fits_all(self, material: Material, seen: Seen) -> Seen:
        """Save it where it was early then and is not now, of all images to fit; what was `seen` of them is given back."""
        if self._save is not None and self.seconds is None and self._is_late():
            self._saves(seen.features, material)
        return seen

    def to_test(self, looked: int, tested: int) -> int:
        """How many test images are to be decoded by the end of the next round."""
        return self.pace.to_test(self.taken, self._done(looked, tested))

    def tests(self, count: int) -> None:
        """So many more are decoded."""
        self.pace.took(self.surveyed.costs.decoding * count)

    def settled(self, looked: int, tested: int) -> Taken:
        """The images that are taken in the end; what is left out is said."""
        before = len(self.taken.dataset.catalog)
        self.taken = self.pace.settled(self.taken, self._done(looked, tested))
        if gone := before - len(self.taken.dataset.catalog):
            slower = f"all takes {self.pace.slower:.1f} times as long as when this machine was timed"
            self.bench.watcher.say(f"{gone:,} more images are left out: {slower}")
        return self.taken

    def seen(self) -> Seen | None:
        """What the trunk told, once: it is not held on to, as features may be gigabytes."""
        features, self._features = self._features, None
        if features is None:
            return None
        rows = np.flatnonzero(self._there)
        if len(rows) < len(features):  # in place, row by row to the front
            for start in range(0, len(rows), _MOVED_AT_ONCE):
                some = rows[start : start + _MOVED_AT_ONCE]
                features[start : start + len(some)] = features[some]
        return Seen(features[: len(rows)], tuple(self._digests[rows]), self._rate())

    def _rate(self) -> float:
        """Images a second that the trunk saw of late."""
        images = seconds = 0.0
        for count, rate in reversed(self._rates):
            images, seconds = images + count, seconds + count / rate
            if seconds >= self.pace.window:
                break
        return images / seconds

    def _saves(self, features: np.ndarray, material: Material) -> None:
        assert self._save is not None
        self.bench.watcher.stage("probe")
        self._save(quick_head(features, material, self.surveyed, self.bench), material)
        self.seconds = self.bench.clock.elapsed()
        self.bench.watcher.say(f"a first model is saved at {self.seconds:.0f} s")

    def _is_late(self) -> bool:
        """Whether so much time has passed that the best head may not be found by the time a first model is due."""
        return self.bench.clock.elapsed() > _NEAR * first_model_due(self.bench.clock.budget_seconds)

    def _done(self, looked: int, tested: int = 0) -> Done:
        return Done(looked, tested, self.seconds is not None)
