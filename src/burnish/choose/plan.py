"""How the time is spent: sizes, epochs and what is kept back for the proof, from rates measured on this machine."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass, replace

import numpy as np
import torch

from burnish.backbones.fold import fold_trainable
from burnish.choose.material import Bench, Material
from burnish.data.views import normalised
from burnish.methods.base import Tunable
from burnish.recipe import Recipe
from burnish.train.averaging import Average
from burnish.train.loop import Schedule, training_step

BATCH = 32  # images a step: AdamW at 1e-3 is stable there, and 2 cores are busy
_EPOCHS_WANTED = 8.0  # before a larger image size is worth more than more passes
EPOCHS_AT_MOST = (
    60  # past this, further passes over the same images have stopped paying; the rest of a budget is given back
)
_LARGE_FROM = (
    0.6  # of the progress: small images first, the final size last (EfficientNetV2, arXiv:2104.00298, section 4)
)
_PIXELS_STEP = 32
# Seconds kept back for writing the report and leaving, measured at 1 to 2.5 on 2 cores.
_TAIL_SECONDS = 3.0
_STEPS_AT_PEAK = 100
_EASING = 0.65
_CANDIDATES = 4  # models looked at on the val images once training is over
_SAFETY = 1.08  # on every predicted second of the proof


@dataclass(frozen=True)
class Plan:
    """The settled schedule of the trained method."""

    schedule: Schedule | None  # None: no time for a useful run
    final_size: int  # pixels, of the last steps and of every use of the model
    epochs: float  # predicted
    steps: int  # predicted
    reserve_seconds: float  # kept back for choosing, proving and reporting
    step_seconds: dict[int, float]  # measured or scaled by area, by size
    reason: str


def plan(tunable: Tunable, material: Material, bench: Bench, *, forward_per_second: float, probe_size: int) -> Plan:
    """Measure a few training steps on real images, then fit sizes and epochs into what is left of the clock.

    forward_per_second: images per second of the frozen trunk at `probe_size` pixels.
    """
    recipe, native = bench.recipe, bench.backbone.preprocess.size
    n = len(material.train_rows)
    batch = min(n, BATCH if recipe.batch_size == "auto" else recipe.batch_size)
    steps_an_epoch = math.ceil(n / batch)
    sizes = [native] if bench.backbone.one_size else _sizes(native)
    if recipe.image_size != "auto":
        sizes = [recipe.image_size]
    measured = _step_seconds(tunable, material, bench, batch=batch, size=sizes[0])
    seconds = {size: measured * (size / sizes[0]) ** 2 for size in sizes}

    def left_for(size: int) -> tuple[float, float]:
        forward = {probe_size: forward_per_second, size: forward_per_second * (probe_size / size) ** 2}
        reserve = _reserve_seconds(material, forward, probe_size=probe_size, size=size)
        return bench.clock.left() - reserve, reserve

    final = sizes[0]
    for size in sizes:
        available, _ = left_for(size)
        mixed = _mixed_step(seconds, sizes, size)
        wanted = _EPOCHS_WANTED if recipe.epochs == "auto" else recipe.epochs
        if available >= wanted * steps_an_epoch * mixed:
            final = size
    available, reserve = left_for(final)
    most = (EPOCHS_AT_MOST if recipe.epochs == "auto" else recipe.epochs) * steps_an_epoch
    epochs = min(available / _mixed_step(seconds, sizes, final), most) / steps_an_epoch
    as_asked = recipe.epochs != "auto" and epochs >= recipe.epochs
    if not as_asked and (epochs * steps_an_epoch < 5 or epochs < 0.5):
        reason = f"training would have {max(0.0, available):.0f} s, less than half an epoch: the probe is kept"
        return Plan(None, final, max(0.0, epochs), 0, reserve, seconds, reason)
    smaller = _smaller(sizes, final)
    steps = None if recipe.epochs == "auto" and math.isfinite(available) and epochs < EPOCHS_AT_MOST else int(most)
    schedule = Schedule(
        batch=batch,
        sizes=((0.0, final),) if smaller == final else ((0.0, smaller), (_LARGE_FROM, final)),
        until=time.monotonic() + available if math.isfinite(available) else None,
        steps=steps,
        step_seconds=seconds,
    )
    how = f"{smaller} px, then {final} px" if smaller != final else f"{final} px"
    reason = f"about {epochs:.1f} epochs at {how}: one step of {batch} images takes {measured:.2f} s at {sizes[0]} px"
    return Plan(schedule, final, epochs, math.ceil(epochs * steps_an_epoch), reserve, seconds, reason)


def eased(peak: float, steps: int) -> float:
    """The peak learning rate for a run of so many steps: `peak` up to 100 steps, then falling, to a tenth at the least.

    AdamW moves a weight by about the rate at each step, whatever the gradient, so a run's reach grows with rate times
    steps, or with rate times their square root where gradients are noise. At one rate a long run leaves the pretrained
    weights behind and a short one does not get away from them (LOG.md); the exponent lies between the two cases.
    """
    return peak * min(1.0, max(0.1, (_STEPS_AT_PEAK / max(1, steps)) ** _EASING))


def settled(recipe: Recipe, made: Plan, *, flip: bool, peak: float, device: torch.device) -> Recipe:
    """The recipe with what the plan decided; peak: the method's own learning rate, for about a hundred steps."""
    schedule = made.schedule
    return replace(
        recipe,
        image_size=made.final_size,
        batch_size=schedule.batch if schedule else 32,
        flip="on" if flip else "off",
        learning_rate=eased(peak, made.steps) if recipe.learning_rate == "auto" else recipe.learning_rate,
        device=str(device),
    )


def _sizes(native: int) -> list[int]:
    """Sizes to train at, ascending, the network's own last."""
    lowest = max(_PIXELS_STEP, math.ceil(native * 0.57 / _PIXELS_STEP) * _PIXELS_STEP)
    return sorted({*range(lowest, native, _PIXELS_STEP), native})


def _smaller(sizes: list[int], final: int) -> int:
    """The size of the first steps: about 0.8 of the final one."""
    return max((size for size in sizes if size <= 0.8 * final), default=final)


def _mixed_step(seconds: dict[int, float], sizes: list[int], final: int) -> float:
    """Mean seconds of a step when the first part of the time goes to the smaller size."""
    small = seconds[_smaller(sizes, final)]
    return 1.0 / (_LARGE_FROM / small + (1.0 - _LARGE_FROM) / seconds[final])


def _reserve_seconds(material: Material, forward: dict[int, float], *, probe_size: int, size: int) -> float:
    """Seconds from the last training step to the exit: candidates on val, both models on test, report."""
    val, test = len(material.val_rows), len(material.test_labels)
    decode = test / material.decoded_per_second
    return _TAIL_SECONDS + _SAFETY * (
        _CANDIDATES * val / forward[size] + test / forward[size] + test / forward[probe_size] + decode
    )


def _step_seconds(tunable: Tunable, material: Material, bench: Bench, *, batch: int, size: int) -> float:
    """The better of two real training steps after a warm-up, on a copy of the model, seconds."""
    rows = material.train_rows[np.arange(batch) % len(material.train_rows)]
    assert material.fitting.stored is not None
    pixels = torch.from_numpy(material.fitting.stored[rows]).permute(0, 3, 1, 2).float()
    pixels = torch.nn.functional.interpolate(pixels, size=(size, size)).permute(0, 2, 3, 1)
    views = normalised(pixels, bench.backbone.preprocess).to(bench.device)
    labels = torch.from_numpy(material.labels[rows]).to(bench.device)
    twin = Tunable(copy.deepcopy(tunable.classifier).to(bench.device), tunable.groups, 0.0)
    step = training_step(twin, fold_trainable(twin.classifier, views[:2]), weight_decay=0.0, label_smoothing=0.0)
    average = Average(twin)
    times = []
    for _ in range(3):
        began = time.monotonic()
        step(views, labels)
        average.follow(twin)
        times.append(time.monotonic() - began)
    return 1.03 * min(times[1:])  # augmentation takes 2 to 3 % of a step
