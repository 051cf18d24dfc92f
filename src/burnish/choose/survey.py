"""A first look, before anything is decoded in bulk: what the machine does in a second, and what that allows (P6)."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from burnish.backbones.changing.taps import PYRAMID_AT_MOST, WIDTH_AT_MOST, flat_width, tapped
from burnish.backbones.fast.frozen import fold_for_inference
from burnish.backbones.spec import Backbone
from burnish.choose.material import Bench
from burnish.choose.sizes import sizes_up_to, takes
from burnish.choose.where import images_asked
from burnish.data.audit.labels import distances
from burnish.data.catalog import Catalog
from burnish.data.looks import Dataset
from burnish.data.pixels import decode, enough, view
from burnish.data.sample import Part, is_late
from burnish.data.views import normalised
from burnish.errors import RecipeError, UnreadableImage
from burnish.methods.linear import least_seconds, seconds_a_flop
from burnish.runtime import Clock, cores, draws, evenly
from burnish.terms import Preprocess
from burnish.train.features import BATCH, filled, outputs, takes_half

# A probe at full size is worth more than a few epochs, and less than many: on photographs of 101 classes the probe
# gains 1.4 points from 160 to 224 px; on hand signs 8 epochs at 128 px gain 5 over the probe at 224 px (LOG.md).
_EPOCHS_WORTH_A_SMALLER_PROBE = 6.0
_TRAINING_COST = 3.2  # of a forward pass: forward, backward and step, measured 2.9 to 3.4 on Lite0 and ResNets
_TAIL_SECONDS = 10.0  # planning, what is familiar, report; fitting heads comes on top
# The same where nothing is trained: at the most, and of a budget so short that this would be a large part of it.
_PROBE_TAIL_SECONDS, _LEAST_PROBE_TAIL, _PROBE_TAIL_SHARE = 8.0, 2.0, 0.1
_MOST_OF_CLOCK = 0.95
_LATE = 2.0  # a further model of a race may need so many times its share
# Where there is no time for all images: what is kept for the rest, and the share of the time that test images may take.
_LEAST_TAIL_SECONDS, _TEST_SHARE = 4.0, 1 / 3
_FEWEST_TESTED = 100
_NEARLY_ALL = 0.97  # of the images: then all are taken, for what they take is not known as well as that
_MORE_SHARE = 0.02  # of the budget, for decoding test images that are looked at if time is left over
# Of the rate at which images are decoded here, one after the other, the bulk of them reaches this share on every core: they are
# hashed, compared with each other and kept besides.
_BULK = 0.6
_COMPARING = 0.05  # of the budget, for pairs that look alike
# By when a finished model is on disk (P6), or in half of a shorter budget; what its head and its saving take besides what LDA
# alone does; and how much later than planned images may be through.
_FIRST_SECONDS, _FIRST_SAVED, _FIRST_LATE = 60.0, 1.0, 1.4
_TIMING_SHARE = 0.02  # of the budget, for timing one form of the trunk
_SAMPLE, _SAMPLING = 32, 0.03  # images, and the share of the budget for decoding them
_EXAMPLE = 12  # images that the spread of each depth is taken from
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
    part: Part | None  # how many images there is time for; None: all
    early: int | None  # so many of the images to fit can be seen by the time a first model is due; None: all
    decoded_per_second: float  # images, as they are decoded in bulk


def survey(dataset: Dataset, bench: Bench, *, trains: bool, thins: bool = True) -> Surveyed:
    """Time decoding and the trunk on a few of the run's images; settle the probe's image size, and how many it sees.

    trains: whether the method trains at all. thins: whether images may be left out where there is no time for all.
    """
    native = bench.backbone.preprocess
    fitting, test = len(dataset.splits.train) + len(dataset.splits.val), len(dataset.splits.test)
    bench.watcher.stage("survey")
    images, decoded_per_second = sample_views(
        dataset.catalog, dataset.splits.train, native, seconds=_SAMPLING * (bench.clock.budget_seconds or np.inf)
    )
    example = normalised(images[:_EXAMPLE], native).to(bench.device)
    backbone = _tapped(bench, example, images_fitted=fitting)
    trunks = _Trunks.timed(backbone.module.to(bench.device), example[:2], images, bench)
    costs = _Costs.of(
        backbone, bench, classes=len(dataset.catalog.classes), decoding=1.0 / (_BULK * decoded_per_second)
    )
    count = fitting + test * trunks.rate / trunks.scored  # what is scored is seen in float32
    left = bench.clock.left() - costs.comparing - costs.decoding * (fitting + test) - costs.heads(fitting)
    size = _settled_size(
        bench, trunks.rate, count, left, train=len(dataset.splits.train) if trains and not bench.fine else 0
    )
    reason, spare = "", max(0.0, left)
    if size != native.size:
        reason = f"at {native.size} px all images would take {count / trunks.rate:.0f} s, and there are {spare:.0f} s for them"
        bench.watcher.say(f"the probe sees {size} px: {reason}")
    rate = trunks.rate * (native.size / size) ** 2
    if not thins and not bench.proves and count / rate > _LATE * max(1.0, left):
        raise RecipeError(
            f"to see all images once would take {count / rate:.0f} s, at {size} px, of the {spare:.0f} s that a "
            "model has; it is too slow for this budget"
        )
    part = None
    if thins and (size != native.size or count / rate > left - _LEAST_TAIL_SECONDS):
        rate, part = _settled_part(bench, trunks, costs, _shrunk(images, size), fitting, test, trains=trains)
    return Surveyed(
        backbone=backbone,
        trunk=trunks.trunk,
        preprocess=replace(native, size=size),
        trains=trains,
        scored_share=trunks.scored / trunks.rate,
        size_reason=reason,
        part=part,
        early=early_for(bench.clock, fitting, lambda n: costs.seen(n, rate) + costs.quick_head(n)),
        decoded_per_second=1.0 / costs.decoding,
    )


@dataclass(frozen=True, kw_only=True)
class _Costs:
    """What images and heads take on this machine, in seconds."""

    decoding: float  # of an image, in bulk
    comparing: float  # of pairs that look alike, in all
    flop: float
    classes: int
    last: int  # features of the last layer
    all: int  # features of all depths
    flat: int | None  # of all depths without where in the image they are, where that is asked
    proves: bool  # whether a first head is saved before the others are looked for

    @classmethod
    def of(cls, backbone: Backbone, bench: Bench, *, classes: int, decoding: float) -> _Costs:
        """backbone: with its taps."""
        flat, comparing = flat_width(backbone), _COMPARING * (bench.clock.budget_seconds or 0.0)
        return cls(
            decoding=decoding, comparing=comparing, flop=seconds_a_flop(), classes=classes, last=bench.backbone.width,
            all=backbone.width, flat=flat if flat < backbone.width else None, proves=bench.proves,
        )  # fmt: skip

    def seen(self, images: int, rate: float) -> float:
        """Decoding so many images and their features; rate: of those, images per second."""
        return images * (self.decoding + 1.0 / rate)

    def quick_head(self, images: int) -> float:
        """The head that is saved first."""
        return self._fitted(images, [self.last])

    def heads(self, images: int) -> float:
        """All heads that are asked, and what the audit asks of their features."""
        first = self.quick_head(images) if self.proves else 0.0
        where = [] if self.flat is None else [self.all, self.flat]
        asked = self._fitted(min(images, images_asked(self.classes)), where)
        return (
            first
            + self._fitted(images, sorted({self.last, self.all}))
            + asked
            + self.flop * distances(images, max(self.last, self.all))
        )

    def _fitted(self, images: int, widths: list[int]) -> float:
        return least_seconds(images, widths, self.flop, classes=self.classes)


@dataclass(frozen=True, kw_only=True)
class _Trunks:
    """The frozen trunk in its fast forms, timed at the network's own size."""

    exact: nn.Module  # in float32
    trunk: nn.Module  # that makes features
    scored: float  # images per second of the one
    rate: float  # and of the other
    half: bool  # whether they differ

    @classmethod
    def timed(cls, module: nn.Module, example: torch.Tensor, images: np.ndarray, bench: Bench) -> _Trunks:
        """Both, of a trunk; example [b 3 s s], images uint8 [n s s 3]."""
        half = takes_half(bench.recipe.precision, bench.device)
        exact = trunk = fold_for_inference(module, example)
        scored = rate = images_per_second(exact, images, bench, half=False)
        if half:
            trunk = fold_for_inference(module, example, half=True)
            rate = images_per_second(trunk, images, bench, half=True)
        return cls(exact=exact, trunk=trunk, scored=scored, rate=rate, half=half)


def _settled_size(bench: Bench, rate: float, count: float, left: float, *, train: int) -> int:
    """Pixels a side for the probe: `affordable_size` for so many images, or the next one that the network takes."""
    native = bench.backbone.preprocess.size
    least = affordable_size(
        native,
        rate,
        seconds_left=left,
        images=round(count),
        train=train,
        one_size=bench.backbone.one_size,
        budget_seconds=bench.clock.budget_seconds,
    )
    return next(one for one in sizes_up_to(native) if one >= least and (one == native or takes(bench, one)))


def _settled_part(
    bench: Bench, trunks: _Trunks, costs: _Costs, images: np.ndarray, fitting: int, test: int, *, trains: bool
) -> tuple[float, Part | None]:
    """(features per second of images [n s s 3] at their own size, how many of the images there is time for; None: all)."""
    rate = images_per_second(trunks.trunk, images, bench, half=trunks.half)
    scored = images_per_second(trunks.exact, images, bench, half=False) if trunks.half else rate
    allowed = bench.clock.left() - 2 * costs.comparing - _LEAST_TAIL_SECONDS

    def fitted(n: int) -> float:
        return costs.seen(n, rate) + costs.heads(n)

    part = part_for(fitting, test, allowed, fitted, costs.decoding + 1.0 / scored, trains=trains)
    budget = bench.clock.budget_seconds
    if part is not None and bench.proves and budget is not None and not is_late(part, costs.classes):
        part = with_more(part, test, costs.decoding, budget_seconds=budget)
    return rate, part


def early_for(clock: Clock, fitting: int, takes: Callable[[int], float]) -> int | None:
    """How many of the images to fit can be seen until a first model is due; None: all.

    takes: seconds for so many of them and the quickest head. Without a budget nothing may depend on the clock (P7): all.
    """
    if clock.budget_seconds is None:
        return None
    left = (first_model_due(clock.budget_seconds) - clock.elapsed()) / _FIRST_LATE - _FIRST_SAVED
    early = most_within(left, fitting, takes)
    return early if early < fitting else None


def first_model_due(budget_seconds: float | None) -> float:
    """Seconds by which a finished model is on disk."""
    return _FIRST_SECONDS if budget_seconds is None else min(_FIRST_SECONDS, 0.5 * budget_seconds)


def _shrunk(images: np.ndarray, size: int) -> np.ndarray:
    """Images uint8 [n s s 3] at another size, for timing: what they show does not matter."""
    step = np.linspace(0, images.shape[1] - 1, size).astype(np.int64)
    return np.ascontiguousarray(images[:, step][:, :, step])


def part_for(
    fitting: int, test: int, seconds: float, fitted: Callable[[int], float], tested: float, *, trains: bool
) -> Part | None:
    """How many of the images to fit and to test on can be seen in so many seconds, some of both at the least; None: (nearly) all.

    fitted: what so many images to fit take in all; tested: what a test image takes. trains: whether what is left is wanted for
    training, where test images alone are too many.
    """
    if fitted(fitting) + test * tested <= seconds:
        return None
    least = min(test, _FEWEST_TESTED)
    tests = min(test, max(least, int(_TEST_SHARE * seconds / tested)))
    most = most_within(seconds - tests * tested, fitting, fitted)
    if most == fitting and not trains:
        tests = min(test, max(tests, int((seconds - fitted(most)) / tested)))
    return Part(max(1, most), tests) if most + tests < _NEARLY_ALL * (fitting + test) else None


def with_more(part: Part, test: int, decoding: float, *, budget_seconds: float) -> Part:
    """With up to as many test images again, for a proof that is early, as far as decoding them takes little of the budget.

    test: how many there are; decoding: seconds an image.
    """
    return replace(part, more=min(test - part.test, part.test, int(_MORE_SHARE * budget_seconds / decoding)))


def most_within(seconds: float, count: int, takes: Callable[[int], float]) -> int:
    """The largest n up to `count` for which takes(n), which grows with n, is no more than so many seconds; 0 if there is none."""
    low, high = 0, count
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if takes(middle) <= seconds else (low, middle - 1)
    return low


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
    seconds_left: float,
    images: int,
    train: int,
    one_size: bool = False,
    budget_seconds: float | None = None,
) -> int:
    """Pixels a side for the probe.

    The largest size, the network's own first, that leaves time for some epochs of training; if none does, the largest at
    which all images can be seen at all. rate: images per second forward at `native`; train: images to train on, 0 if none.
    """
    sizes = sizes_up_to(native, one_size=one_size)
    smallest = sizes[0]
    for size in reversed(sizes) if train else ():
        left = seconds_left - _TAIL_SECONDS - images / (rate * (native / size) ** 2)
        if left * rate * (native / smallest) ** 2 / _TRAINING_COST >= _EPOCHS_WORTH_A_SMALLER_PROBE * train:
            return size
    tail = min(_PROBE_TAIL_SECONDS, _LEAST_PROBE_TAIL + _PROBE_TAIL_SHARE * (budget_seconds or math.inf))
    for size in reversed(sizes):
        if images / (rate * (native / size) ** 2) <= _MOST_OF_CLOCK * seconds_left - tail:
            return size
    return smallest


def sample_views(
    catalog: Catalog, ids: np.ndarray, preprocess: Preprocess, *, seconds: float = np.inf
) -> tuple[np.ndarray, float]:
    """Plain views [b s s 3] of some images spread over the set, and the images per second that decoding does.

    seconds: after which no more than the few that are needed are decoded.
    """
    found = []
    began = time.monotonic()
    for index in draws(0, "survey").permutation(ids[evenly(len(ids), _SAMPLE)]):
        if len(found) >= _EXAMPLE and time.monotonic() - began > seconds:
            break
        try:
            found.append(view(decode(catalog.image(int(index)), at_least=enough(preprocess)), preprocess))
        except UnreadableImage:  # named when all are decoded
            continue
    if not found:  # all will be named, and judged, when they are decoded
        found = [np.zeros((preprocess.size, preprocess.size, 3), np.uint8)]
    return np.stack(found), cores() * len(found) / max(1e-6, time.monotonic() - began)
