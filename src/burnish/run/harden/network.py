"""A run that tuned its network: trained further on perturbed views, from its own weights, at a small learning rate."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import zip_longest

import numpy as np
import torch
from torch import nn

from burnish.backbones.classifier import Classifier
from burnish.backbones.fast.frozen import FastForm
from burnish.choose.aim import objective_of
from burnish.choose.answers import answers_in, logits_of
from burnish.choose.limits import familiar_to
from burnish.choose.material import views_of
from burnish.choose.pace import Pace
from burnish.choose.plan import BATCH, eased
from burnish.choose.proof import Contender
from burnish.data.store import Picked
from burnish.data.views import normalised
from burnish.labels import several
from burnish.measure.ood import Familiarity, entropies
from burnish.measure.reading import Calibrated
from burnish.methods.base import Tunable, peak_of, stage_groups
from burnish.recipe import Recipe
from burnish.run.harden.chosen import (
    CONTROL,
    HARDENED,
    VIEWS,
    Control,
    Look,
    attacked_val,
    choose,
    name_of,
    perturbed_val,
)
from burnish.run.harden.ground import Ground
from burnish.runtime import Nobody
from burnish.train.adversary import Adversary
from burnish.train.averaging import State, between
from burnish.train.features import takes_half
from burnish.train.inputs import batch_of
from burnish.train.loop import Diverged, Epoch, Schedule, Step, Training, steps_an_epoch, training_step, tune
from burnish.train.objective import Objective
from burnish.train.parts import parts_for_training
from burnish.train.perturbed import Perturbed

_PEAK = 0.5  # of the rate for tuning a pretrained network: it is where it should be already
_EPOCHS, _MOST_EPOCHS = 10, 60  # without a budget; and with one, at most
_PROOF = 0.25  # of the budget, kept back for the proof
_AFTER_SECONDS = 1.5  # for what is familiar, and for writing
_LATE_SECONDS, _LATE_SHARE = 1.0, 0.01  # of the budget: a run later than both gets a shorter plan
_FAMILIAR = 300  # training images by which it is known what is familiar
_FEWEST_STEPS = 5
_SHARES = (0.0, 0.5, 1.0)  # of the way to the hardened weights: each is a pass over validation images
# In steps against attacks, that attacks on validation images of one set of weights take as long as
_ATTACKED_IMAGES = 150
_TIMED = 16  # images of a step that is timed
_FORWARD = 6  # times as fast as training: what only looks, in its fast form


class Network:
    """The run's network in training; ask for `looks`, then for what was chosen."""

    def __init__(self, ground: Ground, *, controlled: bool = False, plain: bool = False) -> None:
        """controlled: a second one is trained beside it, on plain views. plain: this is that one, and waits to be trained."""
        self.ground, self.plain = ground, plain
        self.twin = Network(ground, plain=True) if controlled else None
        bench = ground.bench
        recipe = bench.recipe
        self.half = takes_half(recipe.precision, bench.device)
        classifier = copy.deepcopy(ground.classifier).to(bench.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        groups = stage_groups(classifier, bench.backbone, freeze=0, decay=recipe.stage_decay)
        peak = _PEAK * peak_of(Recipe(), bench.backbone.module)
        self.tunable = Tunable(classifier, bench.backbone, groups, peak)
        self.start = {name: one.detach().clone() for name, one in self.tunable.moving().items()}
        views = views_of(ground.material, bench, flip=recipe.flip == "on")
        self.inputs = Perturbed(views) if ground.epsilon is None and not plain else views
        self.batch = min(BATCH, len(self.inputs))
        self.schedule = Schedule(self.batch, ((0.0, ground.bundle.preprocess.size),), recipe.balance == "sampling")
        self._shell, self._fast = copy.deepcopy(ground.classifier), FastForm()
        self.steps, self.end = 0, self.start
        if not plain:
            self._train()

    @property
    def note(self) -> str:
        """What was done, in words."""
        epsilon = self.ground.epsilon
        what = "perturbed views" if epsilon is None else f"views attacked within {epsilon:g} of 255"
        what = "plain views alone" if self.plain else what
        epochs = self.steps / steps_an_epoch(len(self.inputs), self.batch)
        return f"the whole network, {self.steps} steps or {epochs:.1f} epochs on {what}"

    # ---- training ----------------------------------------------------------------------------------------------------

    def _train(self) -> None:
        """As many steps as the clock leaves time for, from the run's own weights."""
        bench, material = self.ground.bench, self.ground.material
        per_epoch = steps_an_epoch(len(self.inputs), self.batch)
        example = normalised(material.fitting.plain[:2], self.ground.bundle.preprocess).to(bench.device)
        objective = objective_of(
            bench.recipe, self.inputs.labels, classes=len(self.ground.bundle.classes), half=self.half
        )
        total, pace = _EPOCHS * per_epoch, None
        if bench.clock.budget_seconds is not None:
            bench.watcher.stage("plan")
            pace = self._pace(sum(one._step_seconds(example) for one in self._all), per_epoch)
            total = self._affordable(pace)
        if total < _FEWEST_STEPS:
            bench.watcher.say("there is no time to train: the run's own weights stay")
            return
        trainings = [one._training(total) for one in self._all]
        courses = [one._course(made, example, objective) for one, made in zip(self._all, trainings, strict=True)]
        off = max(_LATE_SECONDS, _LATE_SHARE * (bench.clock.budget_seconds or 0.0))
        bench.watcher.stage("tune")
        # A step of each in turn: however busy the machine is now and later, they come to as many, at the same rates
        for events in zip_longest(*courses):
            steps = [event for event in events if isinstance(event, Step)]
            if pace is not None and steps:
                pace.saw_step(steps[0].size, sum(one.seconds for one in steps))
                if trainings[0].steps < trainings[0].total and pace.is_off(trainings[0], off):
                    total = pace.total(trainings[0])
                    for training in trainings:
                        training.total = total
        for one, training in zip(self._all, trainings, strict=True):
            one.steps, one.end = training.steps, training.average.state()

    @property
    def _all(self) -> list[Network]:
        return [self] if self.twin is None else [self, self.twin]

    def _training(self, total: int) -> Training:
        """Before the first of so many steps."""
        tunable = replace(self.tunable, peak_learning_rate=eased(self.tunable.peak_learning_rate, total))
        return Training.start(tunable, total=total, weight_decay=self.ground.bench.recipe.weight_decay)

    def _course(self, training: Training, example: torch.Tensor, objective: Objective) -> Iterator[Step | Epoch]:
        """Its steps and epochs, to its end or to where it diverges."""
        bench, tunable = self.ground.bench, training.tunable
        parts = parts_for_training(tunable.classifier, tunable.backbone, 0, example, half=self.half)
        try:
            yield from tune(
                training, self.inputs, self.schedule, module=self._trained(parts.trained), device=bench.device,
                objective=objective, workers=bench.workers, watcher=Nobody() if self.plain else bench.watcher,
            )  # fmt: skip
        except Diverged as error:
            bench.watcher.say(f"training{' of the control' if self.plain else ''} stopped early: {error}")

    def _trained(self, module: nn.Module) -> nn.Module:
        """What steps are made with: the network, or where it is hardened against attacks what attacks it first."""
        ground = self.ground
        if ground.epsilon is None or self.plain:
            return module
        return Adversary(
            module, ground.bundle.preprocess, epsilon=ground.epsilon, several=ground.material.several,
            seed=ground.bench.recipe.seed,
        )  # fmt: skip

    def _step_seconds(self, example: torch.Tensor) -> float:
        """Seconds of a training step, its views included: the better of two after a warm-up, on a copy."""
        bench = self.ground.bench
        twin = replace(self.tunable, classifier=copy.deepcopy(self.tunable.classifier), peak_learning_rate=0.0)
        parts = parts_for_training(twin.classifier, twin.backbone, 0, example, half=self.half)
        step = training_step(twin, self._trained(parts.trained), objective_of(bench.recipe, half=self.half))
        rows, taken = np.arange(min(_TIMED, self.batch)), list[float]()
        for _ in range(3):
            began = time.monotonic()
            views = batch_of(self.inputs, rows, epoch=0, size=self.schedule.size_at(0.0), device=bench.device)
            step(views, torch.from_numpy(self.inputs.labels[rows]).to(bench.device))
            taken.append(time.monotonic() - began)
        return min(taken[1:]) * self.batch / len(rows)

    def _pace(self, step_seconds: float, per_epoch: int) -> Pace:
        """What keeps training on its deadline; kept back are the looks at validation images, and the proof.

        step_seconds: of a step of each network.
        """
        clock = self.ground.bench.clock
        looked = len(self.ground.material.val_rows) * len(_SHARES) * (1 + VIEWS) + _FAMILIAR
        steps = looked / (_FORWARD * self.batch)
        if self.ground.epsilon is not None:  # whose steps take three times as long, and so do looks at attacked images
            steps = steps / 3 + len(_SHARES) * _ATTACKED_IMAGES / self.batch
        reserve = _PROOF * (clock.budget_seconds or 0.0) + _AFTER_SECONDS + steps * step_seconds
        return Pace(
            self.schedule, until=time.monotonic() + clock.left() - reserve, most=_MOST_EPOCHS * per_epoch,
            step_seconds={self.schedule.size_at(0.0): step_seconds}, epoch_seconds=0.0, epoch_steps=per_epoch,
            reserve_seconds=reserve,
        )  # fmt: skip

    def _affordable(self, pace: Pace) -> int:
        """Steps until the deadline, 0 where it is near."""
        ahead = (pace.deadline - time.monotonic()) / max(pace.step_seconds.values())
        return max(0, min(pace.most, math.floor(ahead)))

    # ---- candidates --------------------------------------------------------------------------------------------------

    def looks(self) -> list[Look]:
        """The run's own weights, the moving average at the end, and what lies between (WiSE-FT, arXiv:2109.01903)."""
        self.ground.bench.watcher.stage("validation")
        views = perturbed_val(self.ground) if self.ground.epsilon is None else None
        shares = _SHARES if self.steps else _SHARES[:1]
        looks = [self._look(share, views) for share in shares]
        finite = [look for look in looks if np.isfinite(look.plain).all() and np.isfinite(look.perturbed).all()]
        return [looks[0], *(look for look in finite if look is not looks[0])]

    def _look(self, share: float, views: np.ndarray | None) -> Look:
        self._shell.load_state_dict({**self._shell.state_dict(), **self._state(share)})
        material, bench, preprocess = self.ground.material, self.ground.bench, self.ground.bundle.preprocess
        plain = Picked(material.fitting.plain, material.val_rows)
        answers = logits_of(self._shell, plain, preprocess, bench, self._fast)
        name = name_of(share, end=CONTROL if self.plain else HARDENED)
        if views is None:
            return Look(name, share, answers, attacked_val(self.ground, self._shell))
        told = [logits_of(self._shell, view, preprocess, bench, self._fast) for view in views]
        return Look(name, share, answers, np.stack(told))

    def _state(self, share: float) -> State:
        return self.start if share == 0.0 else between(self.start, self.end, share)

    def classifier(self, look: Look) -> Classifier:
        """A classifier of its own with the weights that were looked at, in eval mode."""
        made = copy.deepcopy(self.ground.classifier).cpu()
        made.load_state_dict(
            {**made.state_dict(), **{name: one.cpu() for name, one in self._state(look.share).items()}}
        )
        return made.eval()

    def control(self, lose: float) -> Control | None:
        """What as many steps on plain views make of the run's own weights, at the same rates and by the same choice.

        Of the choice without that it be clearly better, so that the control is no weaker for few validation images.
        """
        if self.twin is None:
            return None
        looks = self.twin.looks()
        chosen, candidates = choose(looks, self.ground, lose=lose, clearly=False)
        facts = {"training": self.twin.note, "chosen": chosen.name, "candidates": candidates}
        return Control(self.twin.classifier(chosen), chosen.plain, facts)

    def held_out(self, look: Look) -> tuple[np.ndarray, np.ndarray]:
        """Answers to the validation images, from which it has not learnt."""
        return self.ground.material.val_rows, look.plain

    def familiarity(self, look: Look, classifier: Classifier) -> Familiarity | None:
        """What is like the training images to the new weights, from features of some of them."""
        ground, labels = self.ground, self.ground.val_labels
        read = Calibrated.of(look.plain, labels)
        kept = Contender(
            name=ground.bundle.method, role="tuned", backbone=ground.bench.backbone, classifier=classifier,
            preprocess=ground.bundle.preprocess, temperature=read.temperature, validation_accuracy=None,
            val_unsure=None if several(labels) else entropies(read.probabilities),
        )  # fmt: skip
        return familiar_to(kept, ground.material, ground.bench, most=_FAMILIAR)[0]

    def answering(self, classifiers: list[Classifier]) -> Callable[[np.ndarray], list[np.ndarray]]:
        """What gives each classifier's logits [b k] of views uint8 [b s s 3], by the fast forms of their networks."""
        preprocess, bench = self.ground.bundle.preprocess, self.ground.bench
        each = [answers_in(one, preprocess, bench) for one in classifiers]

        def answers(views: np.ndarray) -> list[np.ndarray]:
            return [np.concatenate([logits for logits, _ in one(views)]) for one in each]

        return answers
