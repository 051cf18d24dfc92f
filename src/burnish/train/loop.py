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
from torch import Tensor, nn

from burnish.errors import BurnishError
from burnish.methods.base import Tunable
from burnish.runtime import Watcher, draws
from burnish.train.averaging import Average
from burnish.train.inputs import Ahead, Inputs
from burnish.train.objective import Objective, backward, step
from burnish.train.recorded import Recordings
from burnish.uncompiled import AdamW

WARM_UP = 0.1  # fraction of the run over which the learning rate rises from zero


class Diverged(BurnishError):
    """The loss stopped being a number; the last good weights are kept."""


@dataclass(frozen=True)
class Schedule:
    """How the run spends its steps; progress goes from 0 to 1 over them."""

    batch: int  # images a step
    sizes: tuple[tuple[float, int], ...]  # (from this progress on, pixels), ascending
    balanced: bool = False  # whether each class is drawn equally often, instead of each image once an epoch

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
    size: int = 0  # pixels, of the latest step
    losses: list[float] = field(default_factory=list)  # of those batches, nats
    norms: list[float] = field(default_factory=list)  # of their gradients

    @classmethod
    def start(cls, tunable: Tunable, *, total: int, weight_decay: float, averages: bool = True) -> Training:
        """Before the first step. averages: else the "average" is the newest weights."""
        average = Average(tunable) if averages else Average(tunable, most=0.0)
        return cls(tunable, optimiser_for(tunable, weight_decay), average, total)

    @property
    def over(self) -> bool:
        """Whether the last step was made and its epoch told."""
        return self.steps >= self.total and not self.losses

    def stepped(self, loss: float, share: float) -> None:
        """A step was made, which was that share of the whole run."""
        self.average.follow(self.tunable)
        self.steps, self.position = self.steps + 1, self.position + 1
        self.progress = 1.0 if self.steps >= self.total else self.progress + share
        self.losses.append(loss)


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
    gradient_norm: float | None  # mean over its steps, before it is cut to 1
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
    objective: Objective,
    workers: int = 0,
    watcher: Watcher,
) -> Iterator[Step | Epoch]:
    """Train the movable parameters in place from where `training` stands to its total.

    module: what is run forward and backward on the inputs' batches; it shares its parameters with the tunable's
    classifier (it may be a faster form or the upper part of it). objective: its seed addresses the order of the images
    and all that is drawn for a step. workers: threads that make batches ahead; the result does not depend on them.
    Raises Diverged when the loss or a gradient is not finite; nothing has moved then.
    """
    peak = training.tunable.peak_learning_rate
    recordings = Recordings.on(device, watcher.say, of=training.tunable.backbone.name)
    with Ahead(inputs, device, workers) as ahead:
        feed = _Feed(ahead, inputs, schedule, objective.seed, device)
        while not training.over:
            batches = feed.batches(training.epoch)
            watcher.stage("tune", total=sum(map(len, batches)), detail=f"epoch {training.epoch}")
            watcher.advance(sum(map(len, batches[: training.position])))
            seconds, seen = 0.0, 0
            training.size = training.size or schedule.size_at(min(training.progress, 1.0))
            while training.position < len(batches) and training.steps < training.total:
                began, rows = time.monotonic() - recordings.seconds, batches[training.position]
                training.size = schedule.size_at(training.progress)
                share = (1.0 - training.progress) / (training.total - training.steps)
                # The rate of a step is the schedule's mean over it, so the last one is small but not zero.
                factor = learning_rate_factor(training.progress + 0.5 * share)
                views, labels = feed.due(training)
                _wake(training)
                if training.tunable.by_gradient and training.position == 0:
                    backward(module, training.optimiser, views, labels, objective, training.steps)
                    _follow_gradients(training.optimiser)
                for group in training.optimiser.param_groups:
                    group["lr"] = peak * group["rate"] * factor
                loss = step(
                    module, training.optimiser, views, labels, objective, training.steps, training.norms, recordings
                )
                if not math.isfinite(loss):
                    raise Diverged(_what_diverged(loss, training, peak * factor, inputs, rows))
                training.stepped(loss, share)
                taken = time.monotonic() - recordings.seconds - began
                seconds, seen = seconds + taken, seen + len(rows)
                watcher.advance(len(rows))
                yield Step(training.size, len(rows), taken)
            if training.steps >= training.total:
                training.progress = 1.0
            yield _end_epoch(training, peak, seconds, seen)


class _Feed:
    """What the steps are given; an epoch's first views are made while the network is validated after the one before."""

    def __init__(self, ahead: Ahead, inputs: Inputs, schedule: Schedule, seed: int, device: torch.device) -> None:
        self.ahead, self.inputs, self.schedule, self.seed, self.device = ahead, inputs, schedule, seed, device
        self._drawn: dict[int, list[np.ndarray]] = {}  # by epoch: the running one, and the next where it is begun

    def batches(self, epoch: int) -> list[np.ndarray]:
        """The batches of an epoch, in their order."""
        if epoch not in self._drawn:
            order = _order(self.inputs.labels, self.seed, epoch, balanced=self.schedule.balanced)
            self._drawn = {at: kept for at, kept in self._drawn.items() if at == epoch - 1}
            self._drawn[epoch] = _slices(order, self.schedule.batch)
        return self._drawn[epoch]

    def due(self, training: Training) -> tuple[Tensor, Tensor]:
        """Views and labels [b] of the step that is due, on the device."""
        batches, position = self.batches(training.epoch), training.position
        left = len(batches) - position - 1
        beyond = max(0, min(self.ahead.reach, training.total - training.steps - 1) - left)
        following = self.batches(training.epoch + 1)[:beyond] if beyond else []
        views = self.ahead.get(batches, position, epoch=training.epoch, size=training.size, following=following)
        labels = torch.from_numpy(self.inputs.labels[batches[position] % len(self.inputs)])
        # A few bytes, which CUDA has copied aside when it returns: no reason to wait for the card.
        return views, labels.to(self.device, non_blocking=self.device.type == "cuda")


def _order(labels: np.ndarray, seed: int, epoch: int, *, balanced: bool) -> np.ndarray:
    """The images of an epoch, int64 [n]: each once, or drawn so that the classes are equally frequent.

    The t-th time that an image comes within the epoch, counted from 0, it is its row + t · n: another view of it.
    """
    rng = draws(seed, "order", epoch)
    if not balanced:
        return rng.permutation(len(labels))
    classes = np.unique(labels)
    wanted = rng.permutation(np.resize(rng.permutation(classes), len(labels)))  # as many of each class, or one more
    order = np.empty(len(labels), np.int64)
    for label in classes:
        places, members = np.flatnonzero(wanted == label), np.flatnonzero(labels == label)
        rounds = -(-len(places) // len(members))  # a class is gone through whole before an image comes twice
        turns = [rng.permutation(members) + turn * len(labels) for turn in range(rounds)]
        order[places] = np.concatenate(turns)[: len(places)]
    return order


def _wake(training: Training) -> None:
    """Groups whose time has come learn; the others have no gradient, so that none is computed below them."""
    for group in training.optimiser.param_groups:
        awake = training.progress >= group["starts_at"]
        for parameter in group["params"]:
            parameter.requires_grad_(awake)


def _follow_gradients(optimiser: torch.optim.Optimizer) -> None:
    """Each group's rate becomes |gradient| / |weights|, as a share of the largest; the head's stays (auto-RGN)."""
    relative = []
    for group in optimiser.param_groups:
        with torch.no_grad():
            found = [one for one in group["params"] if one.grad is not None]
            slope = torch.stack([one.grad.norm() for one in found]).norm().item() if found else 0.0
            weight = torch.stack([one.norm() for one in group["params"]]).norm().item()
        relative.append(0.0 if group["is_head"] else slope / max(weight, 1e-12))
    most = max(relative)
    for group, share in zip(optimiser.param_groups, relative, strict=True):
        if not group["is_head"] and most > 0.0 and math.isfinite(most):
            group["rate"] = share / most


def _end_epoch(training: Training, peak: float, seconds: float, seen: int) -> Epoch:
    """The epoch's record; the training stands before the next one after it."""
    told = Epoch(
        training.epoch,
        training.progress,
        training.steps,
        training.size,
        peak * learning_rate_factor(training.progress),
        float(np.mean(training.losses)),
        seconds,
        seen / max(seconds, 1e-9),
        float(np.mean(training.norms)) if training.norms else None,
        training.steps >= training.total,
    )
    training.epoch, training.position, training.losses, training.norms = training.epoch + 1, 0, [], []
    return told


def _what_diverged(loss: float, training: Training, rate: float, inputs: Inputs, rows: np.ndarray) -> str:
    names = ", ".join(inputs.name(int(row) % len(inputs)) for row in rows[:4])
    more = ", …" if len(rows) > 4 else ""
    return f"the loss became {loss} at step {training.steps + 1} (learning rate {rate:.2g}; images {names}{more})"


def optimiser_for(tunable: Tunable, weight_decay: float) -> AdamW:
    """AdamW (arXiv:1711.05101) over the movable parameters; all others are frozen."""
    parameters = dict(tunable.classifier.named_parameters())
    movable = tunable.movable()
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in movable)
    groups = []
    for group in tunable.groups:
        members = [parameters[name] for name in group.parameters]
        is_head = all(name.startswith("head.") for name in group.parameters)
        pulled = tunable.pull > 0.0 and group.decays and not is_head
        groups.append(
            {
                "params": members,
                "rate": group.rate,
                "weight_decay": weight_decay if group.decays and not pulled else 0.0,
                "starts_at": group.starts,
                "is_head": is_head,
                "pull": tunable.pull,
                "starts": [one.detach().clone() for one in members] if pulled else [],
            }
        )
    return AdamW(groups, lr=0.0, betas=(0.9, 0.999), fused=True)


def training_step(tunable: Tunable, module: nn.Module, objective: Objective) -> Callable[..., float]:
    """A function (views, labels) -> loss that makes one optimiser step at rate zero: for timing."""
    optimiser = optimiser_for(tunable, 0.0)
    recordings = Recordings.on(next(module.parameters()).device, of=tunable.backbone.name)
    return lambda views, labels: step(module, optimiser, views, labels, objective, 0, None, recordings)


def steps_an_epoch(images: int, batch: int) -> int:
    """Optimiser steps in one pass."""
    return max(1, math.ceil(images / batch))


def _slices(order: np.ndarray, batch: int) -> list[np.ndarray]:
    """The order cut in batches of equal size ±1: no small last batch with a noisy gradient."""
    return np.array_split(order, steps_an_epoch(len(order), batch))
