"""What the frozen network tells of some images prepared in two ways: which of the two heads do better on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from burnish.backbones.changing.taps import tapped
from burnish.backbones.fast.frozen import fold_for_inference
from burnish.choose.material import Bench
from burnish.choose.where import images_asked, quick_choice, worse_by
from burnish.data.catalog import Catalog, Splits
from burnish.data.pixels import decode_aloud, enough, one_by_one, quiet, view
from burnish.data.sample import in_turn
from burnish.data.views import normalised
from burnish.errors import UnreadableImage
from burnish.granted import cores
from burnish.labels import several
from burnish.methods.heads import HeadChoice
from burnish.methods.linear import least_seconds, seconds_a_flop
from burnish.terms import Preprocess
from burnish.train.features import outputs, takes_half

_SHARE, _UTMOST = 0.08, 0.2  # of the time left, the second for as many images as are needed
_FEWEST, _ENOUGH = 64, 0.5  # images, or such a share of all where there are fewer
_AT_ONCE, _TELLING = 32, 8  # images; after how many it is known what one takes


@dataclass(frozen=True, eq=False)
class Seen:
    """What the frozen network told of some images, prepared both ways."""

    rows: np.ndarray  # int64 [n], catalogue entries
    first: np.ndarray  # float32 [n d]
    second: np.ndarray  # float32 [n d]
    late: bool  # whether time ended it
    until: float  # seconds on the clock, by when all is to be told
    seconds: float  # that an image takes the second way, once decoded

    @property
    def finite(self) -> bool:
        """Whether all features are numbers."""
        return bool(np.isfinite(self.first).all() and np.isfinite(self.second).all())


def needed(fitting: int) -> float:
    """How many images say something of so many."""
    return max(1, min(_FEWEST, _ENOUGH * fitting))


def seen_both_ways(
    catalog: Catalog,
    splits: Splits,
    bench: Bench,
    ways: tuple[Preprocess, Preprocess],
    *,
    most_images: int | None = None,
    most_seconds: float = math.inf,
    longer: bool = True,
    deep: bool = False,
) -> Seen:
    """Features of train and val images in turn, while a small part of the time lasts, or a larger one until there are enough.

    most_images: to ask, instead of the usual number. most_seconds: that an image may take the second way; where it takes longer,
    nothing more is asked. longer: whether the time may be extended. deep: of all depths, where heads may see them, not of
    the last layer alone.
    """
    classes = len(catalog.classes)
    order = splits.fitting[in_turn(catalog, splits.fitting, seed=bench.recipe.seed)]
    order = order[: images_asked(classes) if most_images is None else most_images]
    half, flop = takes_half(bench.recipe.precision, bench.device), seconds_a_flop()
    now, left, heads = bench.clock.elapsed(), bench.clock.left(), 0.0
    until, utmost = now + _SHARE * left, now + (_UTMOST if longer else _SHARE) * left
    trunk: nn.Module | None = None
    rows: list[int] = []
    found: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    done, late, taken = 0, False, math.inf
    while done < len(order) and not late:
        began, chunk = bench.clock.elapsed(), order[done : done + min(_AT_ONCE, max(2, done))]
        read, views = _views(catalog, chunk, ways)
        for place, (way, pixels) in enumerate(zip(ways, views, strict=False)):
            if trunk is None:  # on images, for its fast form is compared with the plain one on them
                example = normalised(pixels[np.arange(2) % len(pixels)], way).to(bench.device)
                trunk = fold_for_inference(_trunk(bench, example, deep=deep), example, half=half)
            start = bench.clock.elapsed()
            found[place].append(outputs(trunk, [pixels], preprocess=way, device=bench.device, half=half))
            if place == 1:  # the quickest, since the first ones also choose and pack
                taken = min(taken, (bench.clock.elapsed() - start) / len(pixels))
        rows += read
        done += len(chunk)
        now, few = bench.clock.elapsed(), len(rows) < needed(len(splits.fitting))
        took = (now - began) * min(_AT_ONCE, done) / len(chunk)  # by the next ones
        width = max((part.shape[1] for part in found[0]), default=bench.backbone.width)
        heads = 2 * least_seconds(len(rows) + _AT_ONCE, [width], flop, classes=classes)
        late = now + took + heads > (utmost if few else until) or (done >= _TELLING and taken > most_seconds)
    first, second = (np.concatenate(one) if one else np.zeros((0, 1), np.float32) for one in found)
    return Seen(np.array(rows, np.int64), first, second, late, until if now + 2 * heads < until else utmost, taken)


def compared(seen: Seen, catalog: Catalog, bench: Bench) -> tuple[HeadChoice, HeadChoice, float, float] | None:
    """The quick heads of both ways, by how much the first has the larger loss, nats, and the standard error of that.

    None where too little is left to be asked: of classes with one image, or one group of them, no other head knows.
    """
    asked, labels, classes = _comparable(catalog.labels[seen.rows])
    if not classes:
        return None
    groups = catalog.grouped(seen.rows[asked])
    first, second = (
        quick_choice(
            one[asked], labels, classes=classes, seed=bench.recipe.seed, form=bench.recipe.head, together=groups,
            seconds_left=lambda: seen.until - bench.clock.elapsed(),
        )
        for one in (seen.first, seen.second)
    )  # fmt: skip
    if min(first.asked, second.asked) < needed(len(seen.rows)):
        return None
    return first, second, *worse_by(first, second, groups)


def _trunk(bench: Bench, example: Tensor, *, deep: bool) -> nn.Module:
    """The network to its features; of all depths, where that is asked for and can be had."""
    module = bench.backbone.module.to(bench.device)
    with_depths = tapped(bench.backbone, example) if deep and bench.recipe.taps != "off" else None
    return module if with_depths is None else with_depths.module.to(bench.device)


def _views(
    catalog: Catalog, entries: np.ndarray, ways: tuple[Preprocess, Preprocess]
) -> tuple[list[int], list[np.ndarray]]:
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
