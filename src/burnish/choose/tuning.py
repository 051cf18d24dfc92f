"""The trained stage: a gradient method from the probe's head, on the clock, and the candidates it leaves."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from burnish.backbones.changing.lowrank import DOWN, merged
from burnish.backbones.classifier import Classifier
from burnish.backbones.fast.frozen import FastForm
from burnish.backbones.spec import Backbone
from burnish.choose.aim import objective_of
from burnish.choose.answers import logits_of
from burnish.choose.evidence import Evidence, clearly_best
from burnish.choose.features import plain_at
from burnish.choose.material import Bench, Material, views_of
from burnish.choose.pace import Pace
from burnish.choose.plan import Plan
from burnish.choose.probing import Probes
from burnish.data.cache import Rows
from burnish.data.store import Picked
from burnish.data.views import normalised
from burnish.labels import cross_entropies, right
from burnish.methods.base import Tunable
from burnish.terms import Preprocess
from burnish.train.activations import kept_or_live, live_activations, plain_activations
from burnish.train.averaging import State, between
from burnish.train.checkpoint import restore_training, training_state
from burnish.train.features import at_once, batched
from burnish.train.inputs import Inputs, batch_of
from burnish.train.loop import Diverged, Epoch, Step, Training, steps_an_epoch, tune
from burnish.train.objective import cuttable
from burnish.train.parts import NotDivided, Parts, UpperForm, let_drop, parts_for_training

_SOUP = 4  # epochs at most
_WISE_SHARES = (0.25, 0.5, 0.75)  # of the way from the pretrained weights to the tuned ones


@dataclass(frozen=True)
class Candidate:
    """One set of weights, looked at on the validation images."""

    name: str  # "tuned (EMA)", "tuned (last)", "WiSE 0.50"
    state: State  # of the movable parameters
    accuracy: float  # on val, fraction
    loss: float  # on val, nats
    preprocess: Preprocess  # at the size it was looked at, and is to be used at
    logits: np.ndarray  # float32 [v k]


@dataclass(frozen=True)
class Tuned:
    """The best of the trained candidates, as a classifier."""

    backbone: Backbone  # what it was made from, with the changes that travel with it
    classifier: Classifier
    best: Candidate
    candidates: tuple[Candidate, ...]
    moved: int = 0  # parameters that training could change


class Tuning:
    """The state of a tuning run: iterate it for steps and epochs, then ask for `best`. Only this object changes."""

    def __init__(self, tunable: Tunable, made: Plan, probes: Probes, material: Material, bench: Bench) -> None:
        self.plan, self.material, self.bench, self.flip = made, material, bench, probes.flip
        self.tunable = tunable
        self.half = bench.recipe.precision == "bfloat16" and not tunable.moves_statistics
        tunable.classifier.to(bench.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.start = {name: value.detach().clone() for name, value in tunable.moving().items()}
        self._fast, self._upper = FastForm(), UpperForm()
        self.shell = copy.deepcopy(tunable.classifier)  # evaluates other weights without touching those in training
        self.training = Training.start(
            tunable, total=made.steps, weight_decay=bench.recipe.weight_decay, averages=bench.recipe.average == "ema"
        )
        self.parts: Parts | None = None
        self.val: dict[int, Rows | list[torch.Tensor]] = {}  # plain images by size, or their activations
        self.diverged: str | None = None
        self.note = ""  # what had to give way to the machine's limits
        self.blended = ""  # why images are blended where patches of them were asked for
        self.held_views: int | None = None  # of kept activations; None before they are made
        self.latest: Candidate | None = None  # the moving average after the latest epoch
        self.latest_steps = -1  # made when that was
        self.latest_size: int | None = None  # pixels, of that epoch
        self.top: Candidate | None = None  # after the best epoch so far
        self.kept: list[Candidate] = []  # the best epochs, for a soup
        self.averaged = "EMA" if bench.recipe.average == "ema" else "last"

    # ---- training ----------------------------------------------------------------------------------------------------

    def pace(self) -> Pace:
        """What keeps the run on its deadline, from now on."""
        made, batch = self.plan, self.plan.batch
        return Pace(
            made.schedule,
            until=time.monotonic() + self.bench.clock.left() - made.reserve_seconds,
            most=made.most,
            step_seconds=made.step_seconds,
            epoch_seconds=made.epoch_seconds,
            epoch_steps=steps_an_epoch(len(self.material.train_rows), batch),
            reserve_seconds=made.reserve_seconds,
        )

    def divide(self) -> None:
        """Make the parts of the network that training takes, before `restore`: which fast forms give the same numbers is asked
        of the weights that it starts from, in every sitting (P7).
        """
        example = normalised(self.material.fitting.plain[:2], self.material.preprocess).to(self.bench.device)
        self.parts = parts_for_training(
            self.tunable.classifier,
            self.tunable.backbone,
            self.plan.freeze,
            example,
            half=self.half,
            moves_statistics=self.tunable.moves_statistics,
        )
        if self.bench.recipe.cutmix and self.parts.lower is not None:
            with torch.inference_mode():
                maps = cuttable(self.parts.lower(example))
            self.blended = (
                ""
                if maps
                else "what the frozen stages give has no rows and columns to cut from: it is blended, as by mixup"
            )

    def events(self) -> Iterator[Step | tuple[Epoch, Candidate]]:
        """Train on from where the training stands; with each epoch what the moving average is worth on validation."""
        recipe = self.bench.recipe
        if self.parts is None:
            self.divide()
        assert self.parts is not None
        let_drop(self.tunable.classifier, recipe.dropout, recipe.drop_path)
        # An earlier sitting made the last step; the parts are what candidates are looked at with
        if self.training.over:
            return
        inputs = self._inputs()
        if self.note:
            self.bench.watcher.say(self.note)
        try:
            for event in tune(
                self.training,
                inputs,
                self.plan.schedule,
                module=self.parts.trained,
                device=self.bench.device,
                objective=objective_of(
                    recipe,
                    self.material.labels[self.material.train_rows],
                    classes=len(self.material.catalog.classes),
                    half=self.half,
                ),
                workers=self.bench.workers,
                watcher=self.bench.watcher,
            ):
                yield self._candidate_of(event) if isinstance(event, Epoch) else event
        except Diverged as error:
            self.diverged = str(error)

    def _candidate_of(self, epoch: Epoch) -> tuple[Epoch, Candidate]:
        """The epoch with its candidate."""
        # At the size of its last steps: a network that has seen 128 px alone fails at 192.
        self.latest, self.latest_size = (
            self.looked_at(f"tuned ({self.averaged})", self.training.average.state(), epoch.size),
            epoch.size,
        )
        self.latest_steps = self.training.steps
        if not math.isfinite(self.latest.loss):
            return epoch, self.latest
        if self.top is None or self.latest.accuracy >= self.top.accuracy:
            self.top = replace(self.latest, name=f"epoch {epoch.number} ({self.averaged})")
        if self.bench.recipe.soup == "on":
            named = replace(self.latest, name=f"epoch {epoch.number}")
            same = [one for one in self.kept if one.preprocess == named.preprocess]  # sizes do not mix
            self.kept = sorted([*same, named], key=lambda one: (-one.accuracy, one.loss))[:_SOUP]
        return epoch, self.latest

    def _inputs(self) -> Inputs:
        """Views of the training images, or the activations of some."""
        assert self.parts is not None
        views = views_of(self.material, self.bench, flip=self.flip)
        if self.parts.lower is None:
            if self.plan.freeze:
                self.note = "the network cannot be divided there: its frozen stages run in each step"
            return views
        watcher, count = self.bench.watcher, self.plan.views
        watcher.stage(f"activations, {self.plan.final_size} px", total=count * len(views))
        inputs, self.held_views, self.note = kept_or_live(
            views,
            self.parts.lower,
            views=count,
            size=self.plan.final_size,
            device=self.bench.device,
            half=self.half,
            on_progress=watcher.advance,
            settled=self.held_views,
            workers=self.bench.workers,
        )
        watcher.stage("tune")
        return inputs

    def rates(self) -> dict[str, float]:
        """The learning rate of each group at the latest step, by its name."""
        groups = zip(self.tunable.groups, self.training.optimiser.param_groups, strict=True)
        return {group.name: float(held["lr"]) for group, held in groups}

    def sample(self, count: int) -> np.ndarray:
        """Some training images as the first epoch sees them, uint8 [n s s 3]."""
        views, preprocess = views_of(self.material, self.bench, flip=self.flip), self.bench.backbone.preprocess
        rows = np.arange(len(views))[:: max(1, len(views) // count)][:count]
        views = batch_of(views, rows, epoch=1, size=self.plan.final_size)
        mean, std = (torch.tensor(part).view(1, 3, 1, 1) for part in (preprocess.mean, preprocess.std))
        return ((views * std + mean) * 255).clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()

    # ---- candidates --------------------------------------------------------------------------------------------------

    def best(self) -> Tuned | None:
        """The moving average at the end, or the candidate that is clearly better on the validation images.

        Where a soup is asked for it stands in the average's place.

        None where no candidate gives finite numbers on the validation images, or there are none. Of many candidates one looks
        better by chance: on 31 to 304 validation images the one with the most right lost up to 4 points on test (LOG.md).
        An epoch before the end counts only when it is better by more than a standard error, but a run that went wrong late
        must not lose what it had.
        """
        end, size = self.training.average.state(), self.latest_size or self.plan.final_size
        candidates = [self.fresh or self.looked_at(f"tuned ({self.averaged})", end, size)]
        for share in _WISE_SHARES:
            candidates.append(self.looked_at(f"WiSE {share:.2f}", self._wise(end, share), size))
        if self.averaged == "EMA":
            last = {name: value.detach().clone() for name, value in self.tunable.moving().items()}
            candidates.append(self.looked_at("tuned (last)", last, size))
        if len(self.kept) > 1:
            candidates.insert(0, self._soup())  # it was asked for, so another must be clearly better than it
        candidates = [one for one in candidates if math.isfinite(one.loss)]
        if not candidates and self.top is not None:  # a run that went wrong late must not lose what it had
            candidates = [self.top]
        if not candidates or not len(self.material.val_rows):
            return None
        best = candidates[clearly_best([Evidence.of(one.logits, self.material) for one in candidates])]
        if self.top is not None and self.top.accuracy > best.accuracy + _standard_error(best):
            candidates.append(self.top)
            best = self.top
        moved = sum(one.numel() for one in self.tunable.moving().values())
        return Tuned(self.tunable.backbone, self.classifier(best), best, tuple(candidates), moved)

    @property
    def fresh(self) -> Candidate | None:
        """The moving average as it is, where validation has seen it: no steps were made since the latest epoch."""
        return self.latest if self.latest_steps == self.training.steps else None

    def _wise(self, end: State, share: float) -> State:
        """So far from the start to the end. A low-rank correction is a product that starts at zero: one factor goes the way, so
        that the weights it is merged into do.
        """
        found = between(self.start, end, share)
        return {name: end[name] if name.endswith(DOWN) else value for name, value in found.items()}

    def _soup(self) -> Candidate:
        """The best epochs averaged, each taken in while validation does not get worse (arXiv:2203.05482, greedy soup)."""
        first, *others = self.kept
        inside, best = [first], first
        for one in others:
            states = [*(member.state for member in inside), one.state]
            mixed = {name: torch.stack([state[name] for state in states]).mean(0) for name in one.state}
            found = self.looked_at("soup", mixed, first.preprocess.size)
            if (found.accuracy, -found.loss) >= (best.accuracy, -best.loss):
                inside, best = [*inside, one], found
        return replace(best, name=f"soup of {len(inside)} epochs")

    def classifier(self, candidate: Candidate) -> Classifier:
        """A classifier of its own with the candidate's weights, in eval mode, on the CPU."""
        made = copy.deepcopy(self.shell)
        made.load_state_dict({**made.state_dict(), **candidate.state})
        whole = merged(made.eval().cpu())
        assert isinstance(whole, Classifier)
        return whole

    def looked_at(self, name: str, state: State, size: int) -> Candidate:
        """The candidate of that name with its validation logits, accuracy and loss at `size` pixels."""
        preprocess = replace(self.bench.backbone.preprocess, size=size)
        labels = self.material.labels[self.material.val_rows]
        self.shell.load_state_dict({**self.shell.state_dict(), **state})
        try:
            logits = self._val_logits(preprocess)
        except NotDivided:  # weights so large that the network's parts give no numbers
            logits = np.full((len(labels), self.shell.classes), np.nan, np.float32)
        if not np.isfinite(logits).all():
            return Candidate(name, state, 0.0, float("inf"), preprocess, np.zeros_like(logits))
        loss = float(cross_entropies(logits, labels).mean())
        return Candidate(name, state, float(right(logits, labels).mean()), loss, preprocess, logits)

    def _val_logits(self, preprocess: Preprocess) -> np.ndarray:
        """The shell's logits of the validation images; what is frozen below has seen them once."""
        device, size = self.bench.device, preprocess.size

        def plain_of(images: Rows) -> Iterator[torch.Tensor]:
            chunks = batched(images, batch=at_once(device))  # bytes travel, a quarter of what they are as numbers
            return (normalised(torch.as_tensor(chunk).to(device), preprocess) for chunk in chunks)

        lower = self.parts.exact if self.parts is not None else None
        if size not in self.val:
            ids = self.material.fitting.ids[self.material.val_rows]
            seen = preprocess == self.material.preprocess
            fitting = self.material.fitting.plain
            images = (
                Picked(fitting, self.material.val_rows)
                if seen
                else plain_at(self.material, ids, preprocess, self.bench)
            )
            held = None if lower is None else plain_activations(lower, plain_of(images), device, count=len(ids))
            self.val[size] = images if held is None else held
        held, shell = self.val[size], merged(self.shell)
        assert isinstance(shell, Classifier)
        if lower is None:
            assert not isinstance(held, list)
            return logits_of(shell, held, preprocess, self.bench, self._fast)
        chunks = held if isinstance(held, list) else live_activations(lower, plain_of(held), device)
        example = normalised(self.material.fitting.plain[:2], self.material.preprocess).to(device)
        upper = self._upper.of(shell, self.tunable.backbone, self.plan.freeze, example)
        with torch.inference_mode():
            return np.concatenate([upper(chunk.to(device)).float().cpu().numpy() for chunk in chunks])

    # ---- to and from disk --------------------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """All that changes, between two steps."""
        facts, tensors = training_state(self.training)
        held = [*([self.top] if self.top is not None else []), *self.kept]
        places = {id(one.state): place for place, one in enumerate(held)}  # the best epoch may be held twice
        facts = {
            "training": facts,
            "latest_size": self.latest_size,
            "has_top": self.top is not None,
            "held_views": self.held_views,
        }
        facts["held"] = [[one.name, one.accuracy, one.loss, one.preprocess.size, places[id(one.state)]] for one in held]
        for place in places.values():
            tensors |= {f"held{place}/{name}": value for name, value in held[place].state.items()}
            tensors[f"held{place}-logits"] = torch.from_numpy(held[place].logits)
        return facts, tensors

    def restore(self, facts: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        """Stand where `state` was taken."""
        restore_training(self.training, facts["training"], tensors)
        self.latest_size, self.held_views, held = facts["latest_size"], facts.get("held_views"), []
        states = {
            place: {own: tensors[f"held{place}/{own}"].to(self.bench.device) for own in self.start}
            for place in {one[-1] for one in facts["held"]}
        }
        for name, accuracy, loss, size, place in facts["held"]:
            preprocess, logits = (
                replace(self.bench.backbone.preprocess, size=size),
                tensors[f"held{place}-logits"].numpy(),
            )
            held.append(Candidate(name, states[place], accuracy, loss, preprocess, logits))
        self.top = held[0] if facts["has_top"] else None
        self.kept = held[1:] if facts["has_top"] else held


def _standard_error(candidate: Candidate) -> float:
    """Of the candidate's accuracy, as if it were the middle of its rule-of-succession range: never zero."""
    n = len(candidate.logits)
    share = (candidate.accuracy * n + 1) / (n + 2)
    return float(np.sqrt(share * (1 - share) / n))
