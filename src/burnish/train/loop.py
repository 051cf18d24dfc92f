"""The training loop as a generator: one `Epoch` after another; what happens between them is the caller's `for` body."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from burnish.data.cache import Rows
from burnish.data.views import Augmentation, augmented
from burnish.errors import BurnishError
from burnish.methods.base import Tunable
from burnish.runtime import Watcher, draws
from burnish.terms import Preprocess
from burnish.train.averaging import Average
from burnish.train.features import autocast

PIXELS_AT_ONCE = 16 * 224 * 224  # of a batch, forward and backward on a CPU: about 1.7 GB for EfficientNet-Lite0
WARM_UP = 0.1  # fraction of the run over which the learning rate rises from zero


class Diverged(BurnishError):
    """The loss stopped being a number; the last good weights are kept."""


@dataclass(frozen=True)
class TrainingImages:
    """What the loop cuts its views from."""

    stored: Rows  # uint8 [N S S 3], N >= n
    rows: np.ndarray  # int64 [n], where each training image lies in `stored`
    aspects: np.ndarray  # float32 [n], width / height of the originals
    labels: np.ndarray  # int64 [n]
    ids: np.ndarray  # int64 [n], the catalogue's; they address the random draws
    paths: tuple[str, ...]  # [n], to name images in errors


@dataclass(frozen=True)
class Schedule:
    """How the run spends its time. Progress goes from 0 to 1: by the clock when `until` is given, else by steps."""

    batch: int  # images a step
    sizes: tuple[tuple[float, int], ...]  # (from this progress on, pixels), ascending
    until: float | None  # when the last step ends, as time.monotonic() tells it
    steps: int | None  # exact number of steps; with `until` it is the most that may be made
    step_seconds: dict[int, float]  # measured, by size: for the first guess of the pace

    def size_at(self, progress: float) -> int:
        """Pixels, at this progress."""
        return [size for start, size in self.sizes if progress >= start][-1]


@dataclass(frozen=True)
class Epoch:
    """One pass over the training images, or the part of it that the clock allowed."""

    number: int  # from 1
    progress: float  # of the whole run after it, 0 to 1
    steps: int  # made since the start
    size: int  # pixels, at its end
    learning_rate: float  # the peak group's, after it
    train_loss: float  # mean, nats, with label smoothing
    seconds: float
    images_per_second: float
    last: bool


def learning_rate_factor(progress: float) -> float:
    """Linear warm-up, then a cosine (arXiv:1608.03983) that is exactly zero at progress 1."""
    if progress >= 1.0:
        return 0.0
    return min(1.0, progress / WARM_UP) * 0.5 * (1.0 + math.cos(math.pi * progress))


class Pace:
    """How much progress one step is worth, so that progress 1 falls on the deadline or on the last planned step."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.measured = dict(schedule.step_seconds)

    def share(self, progress: float, size: int, steps: int) -> float:
        """Progress of the next step, at most what is left."""
        left = 1.0 - progress
        shares = []
        if self.schedule.until is not None:
            seconds_left = self.schedule.until - time.monotonic()
            step = self.measured.get(size, 0.0)
            shares.append(left if seconds_left <= step else left * step / seconds_left)
        if self.schedule.steps is not None:
            steps_left = self.schedule.steps - steps
            shares.append(left if steps_left <= 1 else left / steps_left)
        return min(left, max(shares))

    def saw(self, size: int, seconds: float) -> None:
        """Learn from a step that was made: a moving mean, so that one slow step does not end a run early."""
        before = self.measured.get(size)
        self.measured[size] = seconds if before is None else 0.8 * before + 0.2 * seconds


def tune(
    tunable: Tunable,
    images: TrainingImages,
    schedule: Schedule,
    *,
    module: nn.Module,
    average: Average,
    preprocess: Preprocess,
    device: torch.device,
    seed: int,
    flip: bool,
    weight_decay: float,
    label_smoothing: float,
    watcher: Watcher,
) -> Iterator[Epoch]:
    """Train the movable parameters of `tunable` in place; yields after each epoch and after the last step.

    module: what is run forward and backward; it shares its parameters with tunable.classifier (it may be a faster form of it).
    average: follows the movable parameters after each step. Raises Diverged when the loss or a gradient is not finite.
    """
    optimiser = optimiser_for(tunable, weight_decay)
    pace, progress, steps, number = Pace(schedule), 0.0, 0, 0
    while progress < 1.0:
        number += 1
        order = draws(seed, "order", number).permutation(len(images.labels))
        began, losses, seen, size = time.monotonic(), [], 0, 0
        watcher.stage("tune", total=len(order), detail=f"epoch {number}")
        for rows in _slices(order, schedule.batch):
            tick = time.monotonic()
            size = schedule.size_at(progress)
            share = pace.share(progress, size, steps)
            # The rate of a step is the schedule's mean over it, so the last one is small but not zero.
            factor = learning_rate_factor(progress + 0.5 * share)
            for group in optimiser.param_groups:
                group["lr"] = tunable.peak_learning_rate * group["rate"] * factor
            how = Augmentation(size=size, flip=flip)
            views = augmented(
                images.stored[images.rows[rows]],
                images.aspects[rows],
                images.ids[rows],
                seed=seed,
                epoch=number,
                how=how,
                preprocess=preprocess,
            )
            loss = _step(
                module, optimiser, views.to(device), torch.from_numpy(images.labels[rows]).to(device), label_smoothing
            )
            if not math.isfinite(loss):
                names = ", ".join(images.paths[row] for row in rows[:4])
                rate = tunable.peak_learning_rate * factor
                raise Diverged(
                    f"the loss became {loss} at step {steps + 1} (learning rate {rate:.2g}; images {names}, …)"
                )
            average.follow(tunable)
            losses.append(loss)
            seen, steps, progress = seen + len(rows), steps + 1, progress + share
            pace.saw(size, time.monotonic() - tick)
            watcher.advance(len(rows))
            if progress >= 1.0 - 1e-9:
                progress = 1.0
                break
        seconds = time.monotonic() - began
        rate = tunable.peak_learning_rate * learning_rate_factor(progress)
        yield Epoch(
            number, progress, steps, size, rate, float(np.mean(losses)), seconds, seen / seconds, progress >= 1.0
        )


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
    tunable: Tunable, module: nn.Module, *, weight_decay: float, label_smoothing: float
) -> Callable[..., float]:
    """A function (views, labels) -> loss that makes one optimiser step at rate zero: for timing."""
    optimiser = optimiser_for(tunable, weight_decay)
    return lambda views, labels: _step(module, optimiser, views, labels, label_smoothing)


def _slices(order: np.ndarray, batch: int) -> Iterator[np.ndarray]:
    """The order cut in batches of equal size ±1: no small last batch with a noisy gradient."""
    yield from np.array_split(order, max(1, math.ceil(len(order) / batch)))


def _step(
    module: nn.Module,
    optimiser: torch.optim.Optimizer,
    views: torch.Tensor,
    labels: torch.Tensor,
    label_smoothing: float,
) -> float:
    """One optimiser step; the loss before it, nats. Nothing is changed when the loss or the gradient is not finite."""
    optimiser.zero_grad(set_to_none=True)
    loss = 0.0
    pieces = _pieces(views)
    for part, truth in zip(views.tensor_split(pieces), labels.tensor_split(pieces), strict=True):
        with autocast(views.device):
            share = F.cross_entropy(module(part).float(), truth, label_smoothing=label_smoothing, reduction="sum") / len(views)
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
