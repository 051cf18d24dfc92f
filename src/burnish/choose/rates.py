"""What this machine does in a second, timed on the run's own images before anything is planned (P6)."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import replace

import numpy as np
import torch

from burnish.backbones.fast.frozen import fold_for_inference
from burnish.backbones.spec import Backbone
from burnish.choose.aim import objective_of
from burnish.choose.material import Bench, Material, views_of
from burnish.data.views import normalised
from burnish.methods.base import Tunable
from burnish.train.averaging import Average
from burnish.train.features import BATCH, at_once, autocast, batched, filled, outputs, takes_half
from burnish.train.inputs import Ahead, Inputs
from burnish.train.loop import training_step
from burnish.train.objective import pieces_of
from burnish.train.parts import let_drop, parts_for_training

# Seconds kept back for writing the report and leaving, measured at 0.6 to 1 on 2 cores.
_TAIL_SECONDS = 1.5
_CANDIDATES = 5  # models looked at on the val images once training is over
_SAVING_SECONDS, _DISK = 0.3, 1.5e8  # bytes a second, made durable: 70 MB took 0.4 s
_COPIES = 5  # in a state: weights, average, two moments of the gradient, the best epoch
_FEW_BYTES = 1e8  # whose saving is within what is kept back anyway
_SAFETY = 1.03  # on every predicted second of the proof
# Of the budget, and at most, for timing the frozen trunk: in a moment a machine may be half as fast as in a minute, or twice.
_FROZEN_SHARE, _FROZEN_SECONDS = 0.01, 3.0
_FED_STEPS, _FED_SECONDS = 16, 1.0  # timed with threads beside them: at most so many, in about so long
# Of scores with their intervals, tables and their JSON: by images times classes, and of comparing images with each other, at most
# by images squared. 10,000 images of 10 classes take 1 s a model, 30,000 of 50 take 8.
_SECONDS_AN_ANSWER, _SECONDS_A_PAIR, _MOST_AN_ANSWER = 1.2e-6, 1e-8, 8e-6
_AFTER_SHARE, _AFTER_SECONDS = 0.06, 15.0  # of the budget, and at most
LEAST_TESTED = 0.5  # of the test images that a plan counts on, which are looked at in any case


def after_seconds(budget_seconds: float | None) -> float:
    """What is kept back for what comes beside the proof: what is familiar, explanations, what things cost."""
    return 0.0 if budget_seconds is None else min(_AFTER_SECONDS, _AFTER_SHARE * budget_seconds)


def proof_seconds(passes: float, budget_seconds: float | None, material: Material) -> float:
    """What is kept back from the last choice to the exit: so many seconds of passes over images, and what comes beside them.

    Scores with their intervals take time by test images and classes; few of both are within what is kept back anyway.
    """
    return page_seconds(material, material.due) + after_seconds(budget_seconds) + _SAFETY * passes


def page_seconds(material: Material, tested: int) -> float:
    """What scores of so many test images by two models, tables and the report take, and leaving."""
    answers = tested * len(material.catalog.classes)
    once = _SECONDS_AN_ANSWER * answers + min(_SECONDS_A_PAIR * tested**2, _MOST_AN_ANSWER * answers)
    return _TAIL_SECONDS + (4 if material.several else 2) * once  # of several labels the verdict is as much again


class Rates:
    """Rates of the network's parts; each is timed once and scaled by area to other sizes."""

    def __init__(
        self, material: Material, bench: Bench, *, forward_per_second: float, at: int, frozen: Backbone | None = None
    ) -> None:
        """forward_per_second: images per second of the whole frozen trunk at `at` pixels.

        frozen: that trunk, to be timed again when the first step is: a machine that changes its speed may have been twice as
        slow when it made the features, and what is planned from both must be of one moment.
        """
        self.material, self.bench, self._frozen = material, bench, frozen
        self.forward_per_second, self.at = forward_per_second, at
        self._package_bytes = self._state_bytes = 0  # what is written at an epoch's end, and at the run's; `step` tells
        self._readying = 0.0  # seconds: a network's fast form
        self.sizes: list[int] | None = None  # that the network takes, once they were asked for
        self._lower: dict[int, float] = {}  # images per second at `at` pixels, by freeze point
        self._making = 0.0  # seconds of one view of an image at `at` pixels, cut by a processor alone
        # Not settled by timing: two runs of one command must not differ in it (P7). Which processors are
        # faster with it is known, 1.5 to 1.9 times in training (docs/speed.md).
        self.half = takes_half(bench.recipe.precision, bench.device)

    @property
    def saving_seconds(self) -> float:
        """Of an epoch's package, which is written and made durable whenever the model has become better."""
        return _SAVING_SECONDS + self._package_bytes / _DISK

    def whole(self, size: int) -> float:
        """Images per second through the whole network."""
        return self.forward_per_second * (self.at / size) ** 2

    def lower(self, size: int, freeze: int) -> float:
        """Images per second through the frozen stages; `step` was called for this freeze point before."""
        return self._lower[freeze] * (self.at / size) ** 2

    def keeping(self, size: int, freeze: int) -> float:
        """Seconds in which a view of an image is made and goes through the frozen stages; `step` was called before."""
        making, lower = self._making * (size / self.at) ** 2, 1.0 / self.lower(size, freeze)
        if self.bench.device.type == "cpu" or not self.bench.workers:
            return making + lower
        return max(making / self.bench.workers, lower)

    def upper(self, size: int, freeze: int) -> float:
        """Images per second through what lies above the freeze point, forward."""
        if freeze == 0 or freeze not in self._lower:
            return self.whole(size)
        seconds = 1.0 / self.whole(size) - 1.0 / self.lower(size, freeze)
        return 1.0 / max(0.05 / self.whole(size), seconds)

    def steps(self, tunable: Tunable, freeze: int, *, batch: int, sizes: list[int]) -> dict[int, float]:
        """Seconds of a training step at each of these sizes, ascending.

        On a CPU the smallest is timed and the others are scaled by area. On an accelerator much of a step does not grow with the
        images: the largest is timed too, and those between lie on the line through both.
        """
        least, most = sizes[0], sizes[-1]
        first = self.step(tunable, freeze, batch=batch, size=least)
        if least == most or self.bench.device.type == "cpu":
            return {size: first * (size / least) ** 2 for size in sizes}
        try:
            last = max(first, self.step(tunable, freeze, batch=batch, size=most))
        except torch.OutOfMemoryError:  # which training meets in smaller pieces, or says
            return {size: first * (size / least) ** 2 for size in sizes}
        return {size: first + (last - first) * (size**2 - least**2) / (most**2 - least**2) for size in sizes}

    def step(self, tunable: Tunable, freeze: int, *, batch: int, size: int) -> float:
        """Seconds of a real training step on a copy of the model: the better of two after a warm-up."""
        material, bench = self.material, self.bench
        self._time_frozen()
        half = self.half and not tunable.moves_statistics
        # A CPU takes as much longer for more images: as many are timed as go through at a time.
        count = batch
        if bench.device.type == "cpu":
            count = min(batch, max(BATCH, math.ceil(batch / pieces_of(batch, size**2, half=half))))
        rows = material.train_rows[np.arange(count) % len(material.train_rows)]
        assert material.fitting.stored is not None
        pixels = torch.from_numpy(material.fitting.stored[rows]).permute(0, 3, 1, 2).float()
        pixels = torch.nn.functional.interpolate(pixels, size=(size, size)).permute(0, 2, 3, 1)
        views = normalised(pixels, bench.backbone.preprocess).to(bench.device)
        labels = torch.from_numpy(material.labels[rows]).to(bench.device)
        twin = replace(tunable, classifier=copy.deepcopy(tunable.classifier).to(bench.device), peak_learning_rate=0.0)
        twin.classifier.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        parts = parts_for_training(
            twin.classifier, twin.backbone, freeze, views[:2], half=half, moves_statistics=twin.moves_statistics
        )
        let_drop(twin.classifier, bench.recipe.dropout, bench.recipe.drop_path)
        if parts.lower is not None:
            lower = parts.lower
            many = views[torch.from_numpy(filled(np.arange(min(count, at_once(bench.device))), bench.device))]
            with torch.no_grad(), autocast(bench.device, half and bench.device.type != "cpu"):
                seconds = min(self._timed(lambda: lower(many)) for _ in range(3))
                views = lower(views).float()
            self._lower[freeze] = len(many) / seconds * (size / self.at) ** 2
            self._making = self._made(batch, size) / batch * (self.at / size) ** 2
        elif freeze:
            self._lower[freeze] = self.whole(self.at)
        moved = sum(one.numel() for one in twin.moving().values())
        self._package_bytes = 4 * sum(one.numel() for one in twin.classifier.parameters())
        self._state_bytes = 4 * _COPIES * moved
        step = training_step(twin, parts.trained, objective_of(bench.recipe, half=half))
        average = Average(twin)

        def once() -> None:
            step(views, labels)
            average.follow(twin)

        seconds = min([self._timed(once) for _ in range(3)][1:]) * batch / count
        if freeze:
            return seconds
        if bench.device.type == "cpu":
            return 1.03 * seconds  # augmentation takes 2 to 3 % of a step
        making = self._made(batch, size)
        if not bench.workers:
            return seconds + making
        given = views_of(material, bench, flip=False)
        return max(self._fed(lambda views: step(views, labels), given, batch, size), making / bench.workers)

    def _made(self, batch: int, size: int) -> float:
        """Seconds in which one thread makes a batch of views."""
        given = views_of(self.material, self.bench, flip=False)
        few = np.arange(min(batch, BATCH)) % len(given)
        making = min(self._timed(lambda: given.parts(few, epoch=0, size=size)) for _ in range(2))
        return making * batch / len(few)

    def _fed(self, step, given: Inputs, batch: int, size: int) -> float:
        """Seconds of a step while threads make the batches, as they will: they and it want one interpreter."""
        until, seconds = time.monotonic() + _FED_SECONDS, list[float]()
        late = until + _FED_SECONDS  # where steps are so slow that those begun together take longer
        with Ahead(given, self.bench.device, self.bench.workers) as ahead:
            first = (
                1 + ahead.reach
            )  # which were begun together: only those after them tell what is made in a step's time
            batches = [np.arange(batch) % len(given)] * (first + max(_FED_STEPS, ahead.reach))
            for place in range(len(batches)):
                seconds.append(self._timed(lambda at=place: step(ahead.get(batches, at, epoch=0, size=size))))
                if len(seconds) > 3 and time.monotonic() > (until if len(seconds) > first + 2 else late):
                    break
        settled = seconds[first:] or seconds[1:]
        return sum(settled) / len(settled)

    def _time_frozen(self) -> None:
        """The trunk's rate at this moment: of a small part of the budget, two passes at the least, after a warm-up."""
        if self._frozen is None:
            return
        images, preprocess = self.material.fitting.plain[:BATCH], self.material.preprocess
        if self.bench.device.type != "cpu":  # which gets more at once
            images = filled(images, self.bench.device)
        module = self._frozen.module.to(self.bench.device)
        began = time.monotonic()
        trunk = fold_for_inference(module, normalised(images[:2], preprocess).to(self.bench.device))
        self._readying = time.monotonic() - began

        def once() -> None:
            outputs(trunk, batched(images), preprocess=preprocess, device=self.bench.device)

        self._timed(once)
        seconds = [self._timed(once) for _ in range(2)]
        while sum(seconds) < min(_FROZEN_SECONDS, _FROZEN_SHARE * (self.bench.clock.budget_seconds or 0.0)):
            seconds.append(self._timed(once))
        self.forward_per_second = len(seconds) * len(images) / max(1e-9, sum(seconds))
        self._frozen = None

    def reserve_seconds(self, material: Material, size: int, freeze: int = 0) -> float:
        """Seconds from the last training step to the exit: candidates on val, both models on test, report."""
        val, test = len(material.val_rows), material.due
        passes = _CANDIDATES * val / self.upper(size, freeze)
        passes += max(0, self._package_bytes + self._state_bytes - _FEW_BYTES) / _DISK
        if not self.bench.proves:
            return 1.0 + _SAFETY * passes
        passes += test / self.forward_per_second + 2 * self._readying
        for how in (replace(material.preprocess, size=size), *self.bench.rivals):
            # Plain views as the probe sees them are there already; others are made from the files again.
            decode = 0.0 if how == material.preprocess else 1.0 / material.decoded_per_second
            passes += test * (1.0 / self.whole(how.size) + decode)
        return proof_seconds(passes, self.bench.clock.budget_seconds, material)

    def _timed(self, work) -> float:
        began = time.monotonic()
        work()
        if self.bench.device.type == "cuda":
            torch.cuda.synchronize(self.bench.device)
        elif self.bench.device.type == "mps":
            torch.mps.synchronize()
        return time.monotonic() - began
