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

from burnish.backbones.frozen import fold_for_inference
from burnish.backbones.spec import Backbone
from burnish.backbones.taps import PYRAMID_AT_MOST, WIDTH_AT_MOST, flat_width, tapped
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
    catalog, splits, _ = dataset
    native = bench.backbone.preprocess
    bench.watcher.stage("survey")
    images, decoded_per_second = sample_views(
        catalog, splits.train, native, seconds=_SAMPLING * (bench.clock.budget_seconds or np.inf)
    )
    example = normalised(images[:_EXAMPLE], native).to(bench.device)
    half = takes_half(bench.recipe.precision, bench.device)
    backbone = _tapped(bench, example, images_fitted=len(splits.train) + len(splits.val))
    exact, trunk, scored, rate = _timed_trunks(backbone.module.to(bench.device), example[:2], images, bench, half=half)
    fitting, test, train = len(splits.train) + len(splits.val), len(splits.test), len(splits.train)
    count = fitting + test * rate / scored  # what is scored is seen in float32
    flop, widths = seconds_a_flop(), sorted({bench.backbone.width, backbone.width})
    asked = [backbone.width, flat_width(backbone)] if flat_width(backbone) < backbone.width else []
    comparing, decoding = _COMPARING * (bench.clock.budget_seconds or 0.0), 1.0 / (_BULK * decoded_per_second)

    def quick_head(n: int) -> float:
        return least_seconds(n, [bench.backbone.width], flop, classes=len(catalog.classes))

    def heads(n: int) -> float:
        first = quick_head(n) if bench.proves else 0.0  # saved before the others are looked for
        others = least_seconds(n, widths, flop, classes=len(catalog.classes))
        where = least_seconds(min(n, images_asked(len(catalog.classes))), asked, flop, classes=len(catalog.classes))
        return first + others + where + flop * distances(n, widths[-1])

    left = bench.clock.left() - comparing - decoding * (fitting + test) - heads(fitting)
    size = affordable_size(
        native.size,
        rate,
        seconds_left=left,
        images=round(count),
        train=train if trains else 0,
        one_size=bench.backbone.one_size,
        budget_seconds=bench.clock.budget_seconds,
    )
    size = next(one for one in sizes_up_to(native.size) if one >= size and (one == native.size or takes(bench, one)))
    rate_there = fit_rate = rate * (native.size / size) ** 2
    reason, part = "", None

    def seen(n: int) -> float:
        return n * (decoding + 1.0 / fit_rate)

    if size != native.size:
        reason = f"at {native.size} px all images would take {count / rate:.0f} s, and there are {max(0.0, left):.0f} s for them"
        bench.watcher.say(f"the probe sees {size} px: {reason}")
    if not thins and not bench.proves and count / rate_there > _LATE * max(1.0, left):
        raise RecipeError(
            f"to see all images once would take {count / rate_there:.0f} s, at {size} px, of the {max(0.0, left):.0f} s that a "
            "model has; it is too slow for this budget"
        )
    if thins and (size != native.size or count / rate_there > left - _LEAST_TAIL_SECONDS):
        small = _shrunk(images, size)
        fit_rate = images_per_second(trunk, small, bench, half=half)
        test_rate = images_per_second(exact, small, bench, half=False) if half else fit_rate
        allowed = bench.clock.left() - 2 * comparing - _LEAST_TAIL_SECONDS
        part = part_for(fitting, test, allowed, lambda n: seen(n) + heads(n), decoding + 1.0 / test_rate, trains=trains)
        budget = bench.clock.budget_seconds
        if part is not None and bench.proves and budget is not None and not is_late(part, len(catalog.classes)):
            part = with_more(part, test, decoding, budget_seconds=budget)
    early = early_for(bench.clock, fitting, lambda n: seen(n) + quick_head(n))
    return Surveyed(
        backbone=backbone,
        trunk=trunk,
        preprocess=replace(native, size=size),
        trains=trains,
        scored_share=scored / rate,
        size_reason=reason,
        part=part,
        early=early,
        decoded_per_second=1.0 / decoding,
    )


def _timed_trunks(
    module: nn.Module, example: torch.Tensor, images: np.ndarray, bench: Bench, *, half: bool
) -> tuple[nn.Module, nn.Module, float, float]:
    """(the trunk in float32, the trunk that makes features, images per second of the one and of the other)."""
    exact = fold_for_inference(module, example)
    scored = images_per_second(exact, images, bench, half=False)
    if not half:
        return exact, exact, scored, scored
    trunk = fold_for_inference(module, example, half=True)
    return exact, trunk, scored, images_per_second(trunk, images, bench, half=True)


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
