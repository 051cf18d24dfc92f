"""The training loop as a generator: after each step a `Step`, after each pass an `Epoch`; the rest is the caller's `for`.

All that changes lies in `Training`, which is whole at every `yield`: saved there and restored, the run goes on to the
same bits (`train.checkpoint`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from burnish.errors import BurnishError
from burnish.methods.base import Tunable
from burnish.runtime import Watcher, draws
from burnish.train.averaging import Average
from burnish.train.features import autocast
from burnish.train.inputs import Ahead, Inputs

PIXELS_AT_ONCE = 6 * 224 * 224  # of a batch, forward and backward on a CPU: about 0.6 GB for EfficientNet-Lite0
WARM_UP = 0.1  # fraction of the run over which the learning rate rises from zero


class Diverged(BurnishError):
    """The loss stopped being a number; the last good weights are kept."""


@dataclass(frozen=True)
class Schedule:
    """How the run spends its steps; progress goes from 0 to 1 over them."""

    batch: int  # images a step
    sizes: tuple[tuple[float, int], ...]  # (from this progress on, pixels), ascending

    def size_at(self, progress: float) -> int:
        """Pixels, at this progress."""
        return [size for start, size in self.sizes if progress >= start][-1]


@dataclass
class Training:
    """What changes while training. `total` may be set anew between steps: progress then goes to 1 over what is left."""

    tunable: Tunable
    optimiser: torch.optim.Optimizer
    average: Average  # follows the movable parameters after each step
    total: int  # steps the whole run is to have
    steps: int = 0  # made
    progress: float = 0.0  # of the whole run, 0 to 1
    epoch: int = 1  # the running one
    position: int = 0  # batches of it that are done
    losses: list[float] = field(default_factory=list)  # of those batches, nats

    @classmethod
    def start(cls, tunable: Tunable, *, total: int, weight_decay: float) -> Training:
        """Before the first step."""
        return cls(tunable, optimiser_for(tunable, weight_decay), Average(tunable), total)

    @property
    def over(self) -> bool:
        """Whether the last step was made and its epoch told."""
        return self.steps >= self.total and not self.losses


@dataclass(frozen=True)
class Step:
    """One optimiser step."""

    size: int  # pixels
    images: int
    seconds: float  # the step itself, its views included


@dataclass(frozen=True)
class Epoch:
    """One pass over the training images, or the part of it that the run's length allowed."""

    number: int  # from 1
    progress: float  # of the whole run after it, 0 to 1
    steps: int  # made since the start
    size: int  # pixels, at its end
    learning_rate: float  # the peak group's, after it
    train_loss: float  # mean, nats, with label smoothing
    seconds: float  # of its steps in this process
    images_per_second: float
    last: bool


def learning_rate_factor(progress: float) -> float:
    """Linear warm-up, then a cosine (arXiv:1608.03983) that is exactly zero at progress 1."""
    if progress >= 1.0:
        return 0.0
    return min(1.0, progress / WARM_UP) * 0.5 * (1.0 + math.cos(math.pi * progress))


def tune(
    training: Training,
    inputs: Inputs,
    schedule: Schedule,
    *,
    module: nn.Module,
    device: torch.device,
    seed: int,
    label_smoothing: float,
    half: bool = False,
    workers: int = 0,
    watcher: Watcher,
) -> Iterator[Step | Epoch]:
    """Train the movable parameters in place from where `training` stands to its total.

    module: what is run forward and backward on the inputs' batches; it shares its parameters with the tunable's
    classifier (it may be a faster form or the upper part of it). half: compute in bfloat16, with float32 weights.
    workers: threads that make batches ahead; the result does not depend on them. Raises Diverged when the loss or a
    gradient is not finite; nothing has moved then.
    """
    peak = training.tunable.peak_learning_rate
    with Ahead(inputs, device, workers) as ahead:
        while not training.over:
            order = draws(seed, "order", training.epoch).permutation(len(inputs))
            batches = _slices(order, schedule.batch)
            watcher.stage("tune", total=len(order), detail=f"epoch {training.epoch}")
            watcher.advance(sum(map(len, batches[: training.position])))
            seconds, seen, size = 0.0, 0, schedule.size_at(min(training.progress, 1.0))
            while training.position < len(batches) and training.steps < training.total:
                began, rows = time.monotonic(), batches[training.position]
                size = schedule.size_at(training.progress)
                share = (1.0 - training.progress) / (training.total - training.steps)
                # The rate of a step is the schedule's mean over it, so the last one is small but not zero.
                factor = learning_rate_factor(training.progress + 0.5 * share)
                for group in training.optimiser.param_groups:
                    group["lr"] = peak * group["rate"] * factor
                views = ahead.get(batches, training.position, epoch=training.epoch, size=size)
                labels = torch.from_numpy(inputs.labels[rows]).to(device)
                loss = _step(module, training.optimiser, views, labels, label_smoothing, half)
                if not math.isfinite(loss):
                    raise Diverged(_what_diverged(loss, training, peak * factor, inputs, rows))
                training.average.follow(training.tunable)
                training.steps, training.position = training.steps + 1, training.position + 1
                training.progress = 1.0 if training.steps >= training.total else training.progress + share
                training.losses.append(loss)
                taken = time.monotonic() - began
                seconds, seen = seconds + taken, seen + len(rows)
                watcher.advance(len(rows))
                yield Step(size, len(rows), taken)
            if training.steps >= training.total:
                training.progress = 1.0
            yield _end_epoch(training, peak, size, seconds, seen)


def _end_epoch(training: Training, peak: float, size: int, seconds: float, seen: int) -> Epoch:
    """The epoch's record; the training stands before the next one after it."""
    told = Epoch(
        training.epoch,
        training.progress,
        training.steps,
        size,
        peak * learning_rate_factor(training.progress),
        float(np.mean(training.losses)),
        seconds,
        seen / max(seconds, 1e-9),
        training.steps >= training.total,
    )
    training.epoch, training.position, training.losses = training.epoch + 1, 0, []
    return told


def _what_diverged(loss: float, training: Training, rate: float, inputs: Inputs, rows: np.ndarray) -> str:
    names = ", ".join(inputs.name(row) for row in rows[:4])
    more = ", …" if len(rows) > 4 else ""
    return f"the loss became {loss} at step {training.steps + 1} (learning rate {rate:.2g}; images {names}{more})"


def optimiser_for(tunable: Tunable, weight_decay: float) -> torch.optim.AdamW:
    """AdamW (arXiv:1711.05101) over the movable parameters; all others are frozen."""
    parameters = dict(tunable.classifier.named_parameters())
    movable = tunable.movable()
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in movable)
    groups = [
        {
            "params": [parameters[name] for name in group.parameters],
            "rate": group.rate,
            "weight_decay": weight_decay if group.decays else 0.0,
        }
        for group in tunable.groups
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999), fused=True)


def training_step(
    tunable: Tunable, module: nn.Module, *, weight_decay: float, label_smoothing: float, half: bool = False
) -> Callable[..., float]:
    """A function (views, labels) -> loss that makes one optimiser step at rate zero: for timing."""
    optimiser = optimiser_for(tunable, weight_decay)
    return lambda views, labels: _step(module, optimiser, views, labels, label_smoothing, half)


def steps_an_epoch(images: int, batch: int) -> int:
    """Optimiser steps in one pass."""
    return max(1, math.ceil(images / batch))


def _slices(order: np.ndarray, batch: int) -> list[np.ndarray]:
    """The order cut in batches of equal size ±1: no small last batch with a noisy gradient."""
    return np.array_split(order, steps_an_epoch(len(order), batch))


def _step(
    module: nn.Module,
    optimiser: torch.optim.Optimizer,
    views: torch.Tensor,
    labels: torch.Tensor,
    label_smoothing: float,
    half: bool,
) -> float:
    """One optimiser step; the loss before it, nats. Nothing is changed when the loss or the gradient is not finite."""
    optimiser.zero_grad(set_to_none=True)
    loss = 0.0
    pieces = _pieces(views)
    for part, truth in zip(views.tensor_split(pieces), labels.tensor_split(pieces), strict=True):
        with autocast(views.device, half):
            logits = module(part)
        share = F.cross_entropy(logits.float(), truth, label_smoothing=label_smoothing, reduction="sum") / len(views)
        share.backward()
        loss += share.item()
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, 1.0)
    if not torch.isfinite(norm):
        return float("nan")
    optimiser.step()
    return loss


def _pieces(views: torch.Tensor) -> int:
    """In how many pieces a batch goes through the network one after the other, so that memory on a CPU stays small.

    BatchNorm is frozen, so images do not see each other: the gradient is that of the whole batch, up to rounding.
    """
    images, side = views.shape[0], views.shape[-1]
    return 1 if views.device.type != "cpu" else min(images, math.ceil(images * side * side / PIXELS_AT_ONCE))
