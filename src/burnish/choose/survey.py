"""A first look, before anything is decoded in bulk: what the machine does in a second, and what that allows (P6)."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from burnish.backbones.frozen import fold_for_inference
from burnish.backbones.spec import Backbone
from burnish.backbones.taps import WIDTH_AT_MOST, tapped
from burnish.choose.material import Bench
from burnish.data.catalog import Catalog, Splits
from burnish.data.pixels import decode, enough, view
from burnish.data.views import normalised
from burnish.errors import RecipeError, UnreadableImage
from burnish.methods.linear import least_seconds
from burnish.runtime import cores, evenly
from burnish.terms import Preprocess
from burnish.train.features import outputs, takes_half

# A probe at full size is worth more than a few epochs, and less than many: on photographs of 101 classes the probe
# gains 1.4 points from 160 to 224 px; on hand signs 8 epochs at 128 px gain 5 over the probe at 224 px (LOG.md).
_EPOCHS_WORTH_A_SMALLER_PROBE = 6.0
_TRAINING_COST = 3.2  # of a forward pass: forward, backward and step, measured 2.9 to 3.4 on Lite0 and ResNets
_TAIL_SECONDS = 10.0  # planning, what is familiar, report; fitting heads comes on top
_PROBE_TAIL_SECONDS = 8.0  # the same where nothing is trained
_MOST_OF_CLOCK = 0.95
# Of the rate at which images are decoded here, one after the other, the bulk of them reaches this share on every core: they are
# hashed, compared with each other and kept besides.
_BULK = 0.6
_COMPARING = 0.05  # of the budget, for pairs that look alike
_STEP = (
    32  # pixels between sizes: the stride of the usual trunks, so that no row of the last feature map is half padding
)
_SAMPLE = 32  # images
_EXAMPLE = 12  # images that the spread of each depth is taken from
_FEATURE_BYTES = 2**31  # of all fitting images


@dataclass(frozen=True)
class Surveyed:
    """What the first look found."""

    backbone: Backbone  # the network as it is looked through: with taps where they are wanted and can be had
    trunk: nn.Module  # its frozen trunk in the fast form
    preprocess: Preprocess  # of the probe
    trains: bool  # whether some training can follow, so that images are kept for it
    scored_share: float  # images per second in float32, as for scores, over those of `trunk`; 0 to 1
    size_reason: str  # why the probe sees smaller images than the network was made for, "" when it does not


def survey(catalog: Catalog, splits: Splits, bench: Bench, *, trains: bool) -> Surveyed:
    """Time decoding and the trunk on a few of the run's images; settle the probe's image size.

    trains: whether the method trains at all.
    """
    native = bench.backbone.preprocess
    bench.watcher.stage("survey")
    images, decoded_per_second = sample_views(catalog, splits.train, native)
    example = normalised(images[:_EXAMPLE], native).to(bench.device)
    half = takes_half(bench.recipe.precision, bench.device)
    backbone = _tapped(bench, example, images_fitted=len(splits.train) + len(splits.val))
    module = backbone.module.to(bench.device)
    example = example[:2]
    exact = fold_for_inference(module, example)
    trunk, rate, scored = exact, *(2 * [images_per_second(exact, images, bench, half=False)])
    if half:
        other = fold_for_inference(module, example, half=True)
        trunk, rate = other, images_per_second(other, images, bench, half=True)
    fitting, test, train = len(splits.train) + len(splits.val), len(splits.test), len(splits.train)
    count = fitting + test * rate / scored  # what is scored is seen in float32
    left = bench.clock.left() - (fitting + test) / (_BULK * decoded_per_second)
    left -= _COMPARING * (bench.clock.budget_seconds or 0.0)
    left -= least_seconds(fitting, sorted({bench.backbone.width, backbone.width}))
    size = affordable_size(
        native.size,
        rate,
        seconds_left=left,
        images=round(count),
        train=train if trains else 0,
        one_size=bench.backbone.one_size,
    )
    rate_there = rate * (native.size / size) ** 2
    reason = ""
    if count / rate_there > left:
        reason = (
            f"the budget is too small for a probe, which takes {count / rate_there:.0f} s more: it is made all the same"
        )
    elif size != native.size:
        reason = f"at {native.size} px all images would take {count / rate:.0f} s of the {left:.0f} s left"
    if reason:
        bench.watcher.say(f"the probe sees {size} px: {reason}")
    return Surveyed(backbone, trunk, replace(native, size=size), trains, scored / rate, reason)


def _tapped(bench: Bench, example: torch.Tensor, *, images_fitted: int) -> Backbone:
    """The backbone with taps, as far as the recipe wants them and the features fit in memory."""
    if bench.recipe.taps == "off":
        return bench.backbone
    bench.backbone.module.to(bench.device)
    most = min(WIDTH_AT_MOST, _FEATURE_BYTES // (4 * max(1, images_fitted)))
    found = tapped(bench.backbone, example, width_at_most=most)
    if found is None and bench.recipe.taps == "on":
        raise RecipeError(
            f"taps are on, but {bench.backbone.name} has no blocks to tap that its forward pass runs one after the other; "
            "say --taps off, or choose another model"
        )
    return found or bench.backbone


def images_per_second(form: nn.Module, images: np.ndarray, bench: Bench, *, half: bool) -> float:
    """What this form of the trunk sees, forward; the best of three."""
    seconds = []
    for _ in range(3):
        began = time.monotonic()
        outputs(form, [images], preprocess=bench.backbone.preprocess, device=bench.device, half=half)
        seconds.append(time.monotonic() - began)
    return len(images) / min(seconds)


def affordable_size(
    native: int, rate: float, *, seconds_left: float, images: int, train: int, one_size: bool = False
) -> int:
    """Pixels a side for the probe.

    The largest size, the network's own first, that leaves time for some epochs of training; if none does, the largest at
    which all images can be seen at all. rate: images per second forward at `native`; train: images to train on, 0 if none.
    """
    sizes = [size for size in range(native, 0, -_STEP) if size == native or (size >= 0.57 * native and not one_size)]
    smallest = sizes[-1]
    for size in sizes if train else ():
        left = seconds_left - _TAIL_SECONDS - images / (rate * (native / size) ** 2)
        if left * rate * (native / smallest) ** 2 / _TRAINING_COST >= _EPOCHS_WORTH_A_SMALLER_PROBE * train:
            return size
    for size in sizes:
        if images / (rate * (native / size) ** 2) <= _MOST_OF_CLOCK * seconds_left - _PROBE_TAIL_SECONDS:
            return size
    return smallest


def sample_views(catalog: Catalog, ids: np.ndarray, preprocess: Preprocess) -> tuple[np.ndarray, float]:
    """Plain views [b s s 3] of some images spread over the set, and the images per second that decoding does."""
    found = []
    began = time.monotonic()
    for index in ids[evenly(len(ids), _SAMPLE)]:
        try:
            found.append(view(decode(catalog.image(int(index)), at_least=enough(preprocess)), preprocess))
        except UnreadableImage:  # named when all are decoded
            continue
    if not found:  # all will be named, and judged, when they are decoded
        found = [np.zeros((preprocess.size, preprocess.size, 3), np.uint8)]
    return np.stack(found), cores() * len(found) / max(1e-6, time.monotonic() - began)
