"""What of a long image the network sees: the middle square, or all of it squashed to a square, as some of the images tell."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from burnish.backbones.frozen import fold_for_inference
from burnish.backbones.spec import Backbone
from burnish.choose.decide import Decision
from burnish.choose.material import Bench
from burnish.choose.survey import takes
from burnish.choose.where import images_asked, quick_choice, worse_by
from burnish.data.catalog import Catalog, Splits
from burnish.data.looks import Looks, share_seen
from burnish.data.pixels import decode, enough, one_by_one, view
from burnish.data.sample import in_turn
from burnish.errors import UnreadableImage
from burnish.labels import several
from burnish.runtime import cores
from burnish.terms import Preprocess
from burnish.train.features import outputs, takes_half

CENTER, SQUASH = "center", "squash"  # timm's words
_ASKED_BELOW = 0.5  # of its area that is seen of the middle image; of photographs of 4:3 it is 0.57, of 16:9 0.43
_SMALL = 0.57  # of the network's own size: what is asked is not how fine an image is
_SHARE = 0.08  # of the time left
_FEWEST, _ENOUGH = 64, 0.5  # images, or such a share of all where there are fewer
_AT_ONCE = 32  # images
_STEP = 32  # pixels, as between other sizes


@dataclass(frozen=True)
class Framing:
    """How long images are framed, and why where that was a choice."""

    crop_mode: str  # CENTER or SQUASH
    decision: Decision | None = None

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


def settle_framing(catalog: Catalog, splits: Splits, looks: Looks, bench: Bench) -> Framing:
    """What the recipe says; else the middle, unless it leaves out half of the images and a quick head tells that all is better.

    All is better where the mean difference of the cross-validated log losses is more than its standard error. Images are asked
    in turn while a small part of the time lasts; where that is not enough for 64 of them the middle stays, and it is said.
    """
    recipe, native = bench.recipe, bench.backbone.preprocess
    share = share_seen(looks.headers, native)
    if recipe.crop_mode != "auto":
        return Framing(recipe.crop_mode)
    if native.fit == "squash" or share >= _ASKED_BELOW:
        return Framing(SQUASH if native.fit == "squash" else CENTER)
    bench.watcher.stage("framing")
    rows, *features = _seen(catalog, splits, bench)
    asked, labels, classes = _comparable(catalog.labels[rows])
    if not all(np.isfinite(one).all() for one in features):  # which the first pass over all images refuses
        return Framing(CENTER)
    if len(asked) < min(_FEWEST, _ENOUGH * len(splits.fitting)) or not classes:
        bench.watcher.say(
            f"the network sees the middle square of an image, here {share:.0%} of its area as a rule, and there is no time to "
            "ask whether that is enough: where the ends tell the classes apart, say --crop-mode squash"
        )
        return Framing(CENTER)
    groups = catalog.grouped(rows[asked])
    middle, whole = (
        quick_choice(one[asked], labels, classes=classes, seed=recipe.seed, form=recipe.head, together=groups)
        for one in features
    )
    worse, error = worse_by(middle, whole, groups)
    mode = SQUASH if worse > error else CENTER
    seen = "all of it, squashed to a square" if mode == SQUASH else "its middle square"
    why = (
        f"the middle square is {share:.0%} of an image as a rule; a quick head has {middle.accuracy:.1%} right by it and "
        f"{whole.accuracy:.1%} by all, {middle.loss:.3f} and {whole.loss:.3f} nats, cross-validated on {len(asked)} images"
    )
    told = {"share": share, "middle": middle.loss, "whole": whole.loss, "error": error, "n": len(asked)}
    decision = Decision(f"of a long image the network sees {seen}", why, told)
    bench.watcher.say(f"{decision.what}: {why}")
    return Framing(mode, decision)


def _seen(catalog: Catalog, splits: Splits, bench: Bench) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Catalogue entries [n] and their features [n d] by the middle and by all of them, of as many as there is time for."""
    native = bench.backbone.preprocess
    small = round(_SMALL * native.size / _STEP) * _STEP
    size = small if not bench.backbone.one_size and 0 < small < native.size and takes(bench, small) else native.size
    ways = [replace(native, size=size, fit=fit) for fit in ("crop", "squash")]
    order = splits.fitting[in_turn(catalog, splits.fitting, seed=bench.recipe.seed)]
    order = order[: images_asked(len(catalog.classes))]
    half = takes_half(bench.recipe.precision, bench.device)
    example = torch.zeros(2, 3, size, size, device=bench.device)
    trunk = fold_for_inference(bench.backbone.module.to(bench.device), example, half=half)
    until, took, done = time.monotonic() + _SHARE * bench.clock.left(), 0.0, 0
    rows: list[int] = []
    features: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    while done < len(order) and time.monotonic() + took <= until:
        began, chunk = time.monotonic(), order[done : done + min(_AT_ONCE, max(2, done))]
        views = one_by_one(lambda at, chunk=chunk: _views(catalog, int(chunk[at]), ways), len(chunk), workers=cores())
        good = [(entry, both) for entry, both in zip(chunk.tolist(), views, strict=True) if both is not None]
        for place, way in enumerate(ways) if good else ():
            pixels = np.stack([both[place] for _, both in good])
            features[place].append(outputs(trunk, [pixels], preprocess=way, device=bench.device, half=half))
        rows += [entry for entry, _ in good]
        done += len(chunk)
        took = 2 * (time.monotonic() - began)  # the next may be twice as many
    middle, whole = (np.concatenate(one) if one else np.zeros((0, 1), np.float32) for one in features)
    return np.array(rows, np.int64), middle, whole


def _views(catalog: Catalog, entry: int, ways: list[Preprocess]) -> list[np.ndarray] | None:
    """An image framed in each of these ways, uint8 [s s 3]; None where it cannot be read, which is said when all are."""
    try:
        image = decode(catalog.image(entry), at_least=max(map(enough, ways)))
    except UnreadableImage:
        return None
    return [view(image, way) for way in ways]


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
