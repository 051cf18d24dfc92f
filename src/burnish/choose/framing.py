"""What of a long image the network sees: the middle square, or all of it squashed to a square, as some of the images tell."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from burnish.backbones.frozen import fold_for_inference
from burnish.backbones.spec import Backbone
from burnish.choose.decide import Decision
from burnish.choose.material import Bench
from burnish.choose.sizes import sizes_up_to, takes
from burnish.choose.where import images_asked, quick_choice, worse_by
from burnish.data.catalog import Catalog, Splits
from burnish.data.looks import Dataset, share_seen
from burnish.data.pixels import decode_aloud, enough, one_by_one, quiet, view
from burnish.data.sample import in_turn
from burnish.data.views import normalised
from burnish.errors import UnreadableImage
from burnish.labels import several
from burnish.methods.heads import HeadChoice
from burnish.methods.linear import least_seconds, seconds_a_flop
from burnish.runtime import cores
from burnish.terms import Preprocess
from burnish.train.features import outputs, takes_half

CENTER, SQUASH = "center", "squash"  # timm's words
_ASKED_BELOW = 0.5  # of its area that is seen of the middle image; of photographs of 4:3 it is 0.57, of 16:9 0.43
_SHARE, _UTMOST = 0.08, 0.2  # of the time left, the second for as many images as are needed
_FEWEST, _ENOUGH = 64, 0.5  # images, or such a share of all where there are fewer
_AT_ONCE = 32  # images


@dataclass(frozen=True)
class Framing:
    """How long images are framed, and why where that was a choice."""

    crop_mode: str  # CENTER or SQUASH
    decision: Decision | None = None

    @classmethod
    def of(cls, preprocess: Preprocess) -> Framing:
        """As this preprocessing has it."""
        return cls(SQUASH if preprocess.fit == "squash" else CENTER)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Framing:
        """The inverse of `to_json`."""
        told = values["decision"]
        return cls(values["crop_mode"], None if told is None else Decision(**told))


def framed(backbone: Backbone, crop_mode: str) -> Backbone:
    """The backbone with this framing of long images."""
    fit = "squash" if crop_mode == SQUASH else "crop"
    return replace(backbone, preprocess=replace(backbone.preprocess, fit=fit))


def settle_framing(dataset: Dataset, bench: Bench) -> Framing:
    """What the recipe says; else as the network was made for, unless that is the middle, which is less than half of the middle
    image's area, and a quick head tells that all is better.

    All is better where the mean difference of the cross-validated log losses is more than its standard error. Train and val
    images are asked in turn while a small part of the time lasts, or a larger one until there are 64 or half of them; where so
    many cannot be, the middle stays, and it is said why.
    """
    catalog, splits, looks = dataset
    native = bench.backbone.preprocess
    if bench.recipe.crop_mode != "auto":
        return Framing(bench.recipe.crop_mode)
    share = share_seen(looks.at(splits.fitting).headers, native)
    if native.fit == "squash" or share >= _ASKED_BELOW:
        return Framing.of(native)
    bench.watcher.stage("framing")
    seen = _seen(catalog, splits, bench)
    if not seen.finite:  # weights that give no numbers are refused after the first pass
        return Framing(CENTER)
    compared = _compared(seen, catalog, bench) if len(seen.rows) >= _needed(len(splits.fitting)) else None
    if compared is None:
        late = seen.late or bench.clock.elapsed() > seen.until
        why = "there is no time to ask" if late else "there are too few images to ask"
        bench.watcher.say(
            f"the network sees the middle square of an image, here {share:.0%} of its area as a rule, and {why} whether that is "
            "enough: where the ends tell the classes apart, say --crop-mode squash"
        )
        return Framing(CENTER)
    middle, whole, worse, error = compared
    mode = SQUASH if worse > error else CENTER
    sees = "all of it, squashed to a square" if mode == SQUASH else "its middle square"
    why = (
        f"the middle square is {share:.0%} of an image as a rule; a quick head has {middle.accuracy:.1%} right by it and "
        f"{whole.accuracy:.1%} by all, {middle.loss:.3f} and {whole.loss:.3f} nats, cross-validated on {middle.asked} images"
    )
    told = {"share": share, "middle": middle.loss, "whole": whole.loss, "error": error, "n": middle.asked}
    decision = Decision(f"of a long image the network sees {sees}", why, told)
    bench.watcher.say(f"{decision.what}: {why}")
    return Framing(mode, decision)


@dataclass(frozen=True, eq=False)
class _Seen:
    """What the frozen network told of some images, framed both ways."""

    rows: np.ndarray  # int64 [n], catalogue entries
    middle: np.ndarray  # float32 [n d]
    whole: np.ndarray  # float32 [n d]
    late: bool  # whether time ended it
    until: float  # seconds on the clock, by when all is to be told

    @property
    def finite(self) -> bool:
        """Whether all features are numbers."""
        return bool(np.isfinite(self.middle).all() and np.isfinite(self.whole).all())


def _needed(fitting: int) -> float:
    """How many images say something of so many."""
    return max(1, min(_FEWEST, _ENOUGH * fitting))


def _seen(catalog: Catalog, splits: Splits, bench: Bench) -> _Seen:
    """Features by the middle and by all, of as many images as there is time for."""
    native, classes = bench.backbone.preprocess, len(catalog.classes)
    size = sizes_up_to(native.size, one_size=bench.backbone.one_size)[0]  # what is asked is not how fine an image is
    size = size if size == native.size or takes(bench, size) else native.size
    ways = [replace(native, size=size, fit=fit) for fit in ("crop", "squash")]
    order = splits.fitting[in_turn(catalog, splits.fitting, seed=bench.recipe.seed)][: images_asked(classes)]
    half, flop = takes_half(bench.recipe.precision, bench.device), seconds_a_flop()
    now, left, heads = bench.clock.elapsed(), bench.clock.left(), 0.0
    until, utmost = now + _SHARE * left, now + _UTMOST * left
    trunk: nn.Module | None = None
    rows: list[int] = []
    found: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    done, late = 0, False
    while done < len(order) and not late:
        began, chunk = bench.clock.elapsed(), order[done : done + min(_AT_ONCE, max(2, done))]
        read, views = _views(catalog, chunk, ways)
        for place, (way, pixels) in enumerate(zip(ways, views, strict=False)):
            if trunk is None:  # on images, for its fast form is compared with the plain one on them
                example = normalised(pixels[np.arange(2) % len(pixels)], way).to(bench.device)
                trunk = fold_for_inference(bench.backbone.module.to(bench.device), example, half=half)
            found[place].append(outputs(trunk, [pixels], preprocess=way, device=bench.device, half=half))
        rows += read
        done += len(chunk)
        now, few = bench.clock.elapsed(), len(rows) < _needed(len(splits.fitting))
        took = (now - began) * min(_AT_ONCE, done) / len(chunk)  # by the next ones
        heads = 2 * least_seconds(len(rows) + _AT_ONCE, [bench.backbone.width], flop, classes=classes)
        late = now + took + heads > (utmost if few else until)
    middle, whole = (np.concatenate(one) if one else np.zeros((0, 1), np.float32) for one in found)
    return _Seen(np.array(rows, np.int64), middle, whole, late, until if now + 2 * heads < until else utmost)


def _compared(seen: _Seen, catalog: Catalog, bench: Bench) -> tuple[HeadChoice, HeadChoice, float, float] | None:
    """The quick heads by the middle and by all, by how much the first has the larger loss, nats, and the standard error of that.

    None where too little is left to be asked: of classes with one image, or one group of them, no other head knows.
    """
    asked, labels, classes = _comparable(catalog.labels[seen.rows])
    if not classes:
        return None
    groups = catalog.grouped(seen.rows[asked])
    middle, whole = (
        quick_choice(
            one[asked], labels, classes=classes, seed=bench.recipe.seed, form=bench.recipe.head, together=groups,
            seconds_left=lambda: seen.until - bench.clock.elapsed(),
        )
        for one in (seen.middle, seen.whole)
    )  # fmt: skip
    if min(middle.asked, whole.asked) < _needed(len(seen.rows)):
        return None
    return middle, whole, *worse_by(middle, whole, groups)


def _views(catalog: Catalog, entries: np.ndarray, ways: list[Preprocess]) -> tuple[list[int], list[np.ndarray]]:
    """Which of the entries can be read, and the images of these framed in each of the ways, uint8 [n s s 3].

    Files that cannot be read are said when all are.
    """

    def framed_in_all(at: int) -> list[np.ndarray] | None:
        entry = int(entries[at])
        try:
            image = decode_aloud(catalog.image(entry), catalog.paths[entry], max(map(enough, ways)))
        except UnreadableImage:
            return None
        return [view(image, way) for way in ways]

    with quiet():
        views = list(one_by_one(framed_in_all, len(entries), workers=cores()))
    good = {int(entry): both for entry, both in zip(entries, views, strict=True) if both is not None}
    if not good:
        return [], []
    return list(good), [np.stack(each) for each in zip(*good.values(), strict=True)]


def _comparable(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Which of some images [n] heads can be compared on, their labels without classes that nothing is known of, and how many
    classes there are then; 0 where nothing is left to tell.
    """
    if several(labels):
        told = labels[:, labels.any(0) & ~labels.all(0)]
        return np.arange(len(labels)), told, told.shape[1]
    _, place, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    asked = np.flatnonzero(sizes[place] > 1)
    left, told = np.unique(place[asked], return_inverse=True)
    return asked, told, len(left) if len(left) > 1 else 0
