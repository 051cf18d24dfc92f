"""A first look, before anything is decoded in bulk: what the machine does in a second, and what that allows (P6)."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from burnish.backbones.changing.taps import PYRAMID_AT_MOST, WIDTH_AT_MOST, tapped
from burnish.backbones.fast.frozen import fold_for_inference
from burnish.backbones.fast.int8 import IMAGES
from burnish.backbones.spec import Backbone
from burnish.choose.material import Bench
from burnish.choose.part import LEAST_TAIL_SECONDS, Costs, settled_part
from burnish.choose.plan import BATCH as BATCH_OF_STEP
from burnish.choose.plan import STEPS_TO_TIME, least_steps
from burnish.choose.sizes import sizes_up_to, takes
from burnish.data.catalog import Catalog
from burnish.data.looks import Dataset
from burnish.data.pixels import decode, enough, view
from burnish.data.sample import Part
from burnish.data.views import normalised
from burnish.errors import RecipeError, UnreadableImage
from burnish.granted import cores
from burnish.runtime import draws, evenly
from burnish.terms import Preprocess
from burnish.train.features import BATCH, filled, outputs, rounded_form, takes_half
from burnish.train.loop import steps_an_epoch

# A probe at full size is worth more than a few epochs, and less than many: on photographs of 101 classes the probe
# gains 1.4 points from 160 to 224 px; on hand signs 8 epochs at 128 px gain 5 over the probe at 224 px (LOG.md).
_EPOCHS_WORTH_A_SMALLER_PROBE = 6.0
_TRAINING_COST = 3.2  # of a forward pass: forward, backward and step, measured 2.9 to 3.4 on ResNets, up to 6 on Lite0
_TAIL_SECONDS = 10.0  # planning, what is familiar, report; fitting heads comes on top
# The same where nothing is trained: at the most, and of a budget so short that this would be a large part of it.
_PROBE_TAIL_SECONDS, _LEAST_PROBE_TAIL, _PROBE_TAIL_SHARE = 8.0, 2.0, 0.1
_MOST_OF_CLOCK = 0.95
_LATE = 2.0  # a further model of a race may need so many times its share
# Of the rate at which images are decoded here, one after the other, the bulk of them reaches this share on every core: they are
# hashed, compared with each other and kept besides.
_BULK = 0.6
_TIMING_SHARE = 0.02  # of the budget, for timing one form of the trunk
_SAMPLE, _SAMPLING = 32, 0.03  # images, and the share of the budget for decoding them
_SLOWLY, _LEAST_SAMPLE = 0.1, 4  # of the budget, after which so few images are enough: large ones take seconds each
_FAR_TOO_SLOW = 0.05  # of the budget, that two images take in a network of which all depths are not asked then
_EXAMPLE = max(12, IMAGES)  # images that the spread of each depth is taken from
_FEATURE_BYTES = 2**31  # of all fitting images


@dataclass(frozen=True, kw_only=True)
class Surveyed:
    """What the first look found."""

    backbone: Backbone  # the network as it is looked through: with taps where they are wanted and can be had
    trunk: nn.Module  # its frozen trunk in the fast form
    preprocess: Preprocess  # of the probe
    trains: bool  # whether some training can follow, so that images are kept for it
    scored_share: float  # images per second in float32, as for scores, over those of `trunk`; 0 to 1
    size_reason: str  # why the probe sees smaller images than the network was made for, "" when it does not
    rounded: dict[str, float] | None  # of a trunk in 8 bits, what that gains and costs
    part: Part | None  # how many images there is time for; None: all
    costs: Costs  # what images and heads take

    @property
    def decoded_per_second(self) -> float:
        """Images, as they are decoded in bulk."""
        return 1.0 / self.costs.decoding


def survey(dataset: Dataset, bench: Bench, *, trains: bool, thins: bool = True) -> Surveyed:
    """Time decoding and the trunk on a few of the run's images; settle the probe's image size, and how many it sees.

    trains: whether the method trains at all. thins: whether images may be left out where there is no time for all.
    """
    native = bench.backbone.preprocess
    fitting, test = len(dataset.splits.train) + len(dataset.splits.val), len(dataset.splits.test)
    bench.watcher.stage("survey")
    budget = bench.clock.budget_seconds or np.inf
    images, decoded_per_second = sample_views(
        dataset.catalog, dataset.splits.train, native, seconds=_SAMPLING * budget, utmost=_SLOWLY * budget
    )
    example = normalised(images[:_EXAMPLE], native).to(bench.device)
    slow = _is_far_too_slow(bench, example[:2])
    backbone = bench.backbone if slow else _tapped(bench, example, images_fitted=fitting)
    images = images[:2] if slow else images
    trunks = _Trunks.timed(backbone.module.to(bench.device), example, images, bench, sees=fitting)
    costs = Costs.of(backbone, bench, classes=len(dataset.catalog.classes), decoding=1.0 / (_BULK * decoded_per_second))
    count = fitting + test * trunks.rate / trunks.scored  # what is scored is seen in float32
    training = _least_training(bench, trunks.trained, train=len(dataset.splits.train)) if trains else math.inf
    left = bench.clock.left() - costs.comparing - costs.decoding * (fitting + test) - costs.heads(fitting)
    size = _settled_size(
        bench, trunks, count, left, train=len(dataset.splits.train) if trains and not bench.fine else 0
    )
    reason, spare = "", max(0.0, left)
    if size != native.size:
        there = f"there are {spare:.0f} s for them" if spare >= 1 else "decoding them and the heads take all there are"
        reason = f"at {native.size} px all images would take {count / trunks.rate:.0f} s, and {there}"
        bench.watcher.say(f"the probe sees {size} px: {reason}")
    larger = (native.size / size) ** 2
    costs = replace(
        costs, seeing=1.0 / (trunks.rate * larger), scoring=1.0 / (trunks.scored * larger), training=training
    )
    if not thins and not bench.proves and count * costs.seeing > _LATE * max(1.0, left):
        raise RecipeError(
            f"to see all images once would take {count * costs.seeing:.0f} s, at {size} px, of the {spare:.0f} s that a "
            "model has; it is too slow for this budget"
        )
    part = None
    if thins and (size != native.size or count * costs.seeing > left - LEAST_TAIL_SECONDS):
        costs = trunks.timed_again(costs, _shrunk(images, size), bench)
        part = settled_part(bench.clock, costs, fitting, test)
    return Surveyed(
        backbone=backbone,
        trunk=trunks.trunk,
        preprocess=replace(native, size=size),
        trains=trains,
        scored_share=trunks.scored / trunks.rate,
        size_reason=reason,
        rounded=trunks.rounded,
        part=part,
        costs=costs,
    )


@dataclass(frozen=True, kw_only=True)
class _Trunks:
    """The frozen trunk in its fast forms, timed at the network's own size."""

    exact: nn.Module  # in float32
    trunk: nn.Module  # that makes features
    scored: float  # images per second of the one
    rate: float  # and of the other
    half: bool  # whether the latter computes in bfloat16
    apart: float | None = None  # of one in 8 bits, how far its features are from those of float32

    @classmethod
    def timed(cls, module: nn.Module, example: torch.Tensor, images: np.ndarray, bench: Bench, *, sees: int) -> _Trunks:
        """Both, of a trunk that will see so many images; example [b 3 s s], images uint8 [n s s 3]."""
        half = takes_half(bench.recipe.precision, bench.device)
        exact = trunk = fold_for_inference(module, example[:2])
        scored = rate = images_per_second(exact, images, bench, half=False)
        if half:
            trunk = fold_for_inference(module, example[:2], half=True)
            rate = images_per_second(trunk, images, bench, half=True)
        made = rounded_form(module, example, sees=sees, precision=bench.recipe.precision, device=bench.device)
        if made is not None:
            rate = images_per_second(made[0], images, bench, half=False)
            return cls(exact=exact, trunk=made[0], scored=scored, rate=rate, half=False, apart=made[1])
        return cls(exact=exact, trunk=trunk, scored=scored, rate=rate, half=half)

    @property
    def trained(self) -> float:
        """Images per second of training, about. In bfloat16 it gains less than features do (LOG.md)."""
        return (math.sqrt(self.scored * self.rate) if self.half else self.scored) / _TRAINING_COST

    @property
    def rounded(self) -> dict[str, float] | None:
        """Of a trunk in 8 bits, what that gains and costs."""
        if self.apart is None:
            return None
        return {"images_per_second": self.rate, "float32_images_per_second": self.scored, "apart": self.apart}

    def timed_again(self, costs: Costs, images: np.ndarray, bench: Bench) -> Costs:
        """With what images [n s s 3] take at their own size."""
        rate = images_per_second(self.trunk, images, bench, half=self.half)
        scored = rate if self.trunk is self.exact else images_per_second(self.exact, images, bench, half=False)
        return replace(costs, seeing=1.0 / rate, scoring=1.0 / scored)


def _least_training(bench: Bench, rate: float, *, train: int) -> float:
    """Seconds that training on so many images needs at the least; rate: images per second at the network's own size."""
    native, batch = bench.backbone.preprocess.size, min(train, BATCH_OF_STEP)
    smallest = sizes_up_to(native, one_size=bench.backbone.one_size)[0]
    steps = STEPS_TO_TIME + least_steps(bench, steps_an_epoch(train, batch))
    return steps * batch / (rate * (native / smallest) ** 2)


def _settled_size(bench: Bench, trunks: _Trunks, count: float, left: float, *, train: int) -> int:
    """Pixels a side for the probe: `affordable_size` for so many images, or the next one that the network takes."""
    native = bench.backbone.preprocess.size
    least = affordable_size(
        native,
        trunks.rate,
        trained=trunks.trained,
        seconds_left=left,
        images=round(count),
        train=train,
        one_size=bench.backbone.one_size,
        budget_seconds=bench.clock.budget_seconds,
    )
    return next(one for one in sizes_up_to(native) if one >= least and (one == native or takes(bench, one)))


def _shrunk(images: np.ndarray, size: int) -> np.ndarray:
    """Images uint8 [n s s 3] at another size, for timing: what they show does not matter."""
    step = np.linspace(0, images.shape[1] - 1, size).astype(np.int64)
    return np.ascontiguousarray(images[:, step][:, :, step])


def _tapped(bench: Bench, example: torch.Tensor, *, images_fitted: int) -> Backbone:
    """The backbone with taps, as far as the recipe wants them and the features fit in memory."""
    if bench.recipe.taps == "off":
        return bench.backbone
    bench.backbone.module.to(bench.device)
    most = _FEATURE_BYTES // (4 * max(1, images_fitted))
    pyramid = min(PYRAMID_AT_MOST, most)
    found = tapped(bench.backbone, example, width_at_most=min(WIDTH_AT_MOST, most), pyramid_at_most=pyramid)
    if found is None and (bench.recipe.taps == "on" or bench.deep):
        found = tapped(bench.backbone, example, width_at_most=WIDTH_AT_MOST)
    if found is None and bench.recipe.taps == "on":
        raise RecipeError(f"{no_taps(bench.backbone.name)}; say --taps off, or choose another model")
    return found or bench.backbone


def _is_far_too_slow(bench: Bench, two: torch.Tensor) -> bool:
    """Whether a look at all depths, which nobody asked for by name, and at a batch of images would take most of the budget."""
    if bench.clock.budget_seconds is None or bench.deep or bench.recipe.taps == "on" or bench.device.type != "cpu":
        return False
    for _ in range(2):  # the first pass also makes buffers and chooses kernels
        began = time.monotonic()
        with torch.inference_mode():
            bench.backbone.module(two)
        if time.monotonic() - began <= _FAR_TOO_SLOW * bench.clock.budget_seconds:
            return False
    return True


def no_taps(model: str) -> str:
    """Why heads cannot see all depths of this network."""
    return (
        f"heads are to see all depths, but {model} has no blocks to tap that its forward pass runs one after the other"
    )


def images_per_second(form: nn.Module, images: np.ndarray, bench: Bench, *, half: bool) -> float:
    """What this form of the trunk sees, forward; the median of three, or of as many as a small part of the budget allows.

    Not the best: for a second a processor may run a fifth faster than it does for a minute. Of two the faster: the first of them
    also chooses and packs.
    """
    if bench.device.type == "cpu":
        images = images[:BATCH]  # at a time, as it will be
    else:  # whose first pass loads its kernels
        images = filled(images, bench.device)
        outputs(form, [images], preprocess=bench.backbone.preprocess, device=bench.device, half=half)
    seconds: list[float] = []
    while len(seconds) < 3 and sum(seconds) < _TIMING_SHARE * (bench.clock.budget_seconds or math.inf):
        began = time.monotonic()
        outputs(form, [images], preprocess=bench.backbone.preprocess, device=bench.device, half=half)
        seconds.append(time.monotonic() - began)
    return len(images) / statistics.median_low(seconds)


def affordable_size(
    native: int,
    rate: float,
    *,
    trained: float,
    seconds_left: float,
    images: int,
    train: int,
    one_size: bool = False,
    budget_seconds: float | None = None,
) -> int:
    """Pixels a side for the probe.

    The largest size, the network's own first, that leaves time for some epochs of training; if none does, the largest at
    which all images can be seen at all. rate, trained: images per second at `native`, forward and in training; train: images to
    train on, 0 if none.
    """
    sizes = sizes_up_to(native, one_size=one_size)
    smallest = sizes[0]
    for size in reversed(sizes) if train else ():
        left = seconds_left - _TAIL_SECONDS - images / (rate * (native / size) ** 2)
        if left * trained * (native / smallest) ** 2 >= _EPOCHS_WORTH_A_SMALLER_PROBE * train:
            return size
    tail = min(_PROBE_TAIL_SECONDS, _LEAST_PROBE_TAIL + _PROBE_TAIL_SHARE * (budget_seconds or math.inf))
    for size in reversed(sizes):
        if images / (rate * (native / size) ** 2) <= _MOST_OF_CLOCK * seconds_left - tail:
            return size
    return smallest


def sample_views(
    catalog: Catalog, ids: np.ndarray, preprocess: Preprocess, *, seconds: float = np.inf, utmost: float = np.inf
) -> tuple[np.ndarray, float]:
    """Plain views [b s s 3] of some images spread over the set, and the images per second that decoding does.

    seconds: after which no more than the few that are needed are decoded; utmost: after which even fewer will do.
    """
    found = []
    began = time.monotonic()
    for index in draws(0, "survey").permutation(ids[evenly(len(ids), _SAMPLE)]):
        took = time.monotonic() - began
        if (len(found) >= _EXAMPLE and took > seconds) or (len(found) >= _LEAST_SAMPLE and took > utmost):
            break
        try:
            found.append(view(decode(catalog.image(int(index)), at_least=enough(preprocess)), preprocess))
        except UnreadableImage:  # named when all are decoded
            continue
    if not found:  # all will be named, and judged, when they are decoded
        found = [np.zeros((preprocess.size, preprocess.size, 3), np.uint8)]
    return np.stack(found), cores() * len(found) / max(1e-6, time.monotonic() - began)
