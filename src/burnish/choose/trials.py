"""Short whole runs, judged on the validation images, and a race of learning rates among them.

Not a range test: a rate that looks best over a few steps of a rising ramp is often too high for a run (the ramp sees no
decay). Each trial is a run in small, warm-up and cosine included.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from burnish.choose.decide import Decision
from burnish.choose.material import Bench, Material
from burnish.choose.plan import Plan, eased
from burnish.choose.probing import Probes
from burnish.choose.tuning import Tuning
from burnish.labels import cross_entropies
from burnish.measure.gains import gain_of
from burnish.methods.base import Head, Method
from burnish.recipe import Recipe
from burnish.train.loop import steps_an_epoch

FACTORS = (1.0, 0.3, 3.0)  # of the default rate; the default first, for the clock may end a race
_RACE_SHARE = 0.4  # of the time left for training
_SHARE = 1 / 10  # of the steps that the clock allows, for each trial
_LEAST = 12  # steps
_TIMES_AS_LONG = 2  # a run at the least, as all its trials
_MOST_LOSS = 1e6  # nats an image: of a trial that gave no numbers


@dataclass(frozen=True)
class Tried:
    """One short run, as the validation images see it."""

    losses: np.ndarray  # float64 [v], nats, at most `_MOST_LOSS`
    accuracy: float  # fraction
    values: dict[str, float]  # the settings tried

    @property
    def loss(self) -> float:
        """Mean, nats."""
        return float(self.losses.mean())


@dataclass(frozen=True)
class Trials:
    """What short runs of a method are made with."""

    method: Method
    made: Plan
    peak: float  # the default rate, for about a hundred steps
    head: Head
    probes: Probes
    material: Material
    bench: Bench
    length: int = 0  # steps of one trial, where an earlier sitting settled it
    pretrained: bool = True

    def rate(self, factor: float) -> float:
        """So many times the default rate of a trial."""
        return min(1.0, factor * eased(self.peak, self.steps, pretrained=self.pretrained))

    @property
    def steps(self) -> int:
        """Of one trial."""
        return self.length or max(_LEAST, int(self.made.steps * _SHARE))

    @property
    def views(self) -> int:
        """Of kept activations: no more than a trial sees."""
        passes = math.ceil(self.steps / steps_an_epoch(len(self.material.train_rows), self.made.batch))
        return min(self.made.views, passes)

    def run(self, recipe: Recipe, *, named: dict[str, float]) -> Tried:
        """A short run with these settings, on the validation images; the most loss where it diverges."""
        short = replace(
            self.made, sizes=((0.0, self.made.sizes[0][1]),), steps=self.steps, most=self.steps, timed=False,
            views=self.views,
        )  # fmt: skip
        bench = replace(self.bench, recipe=recipe)
        tuning = Tuning(
            self.method.prepare(bench.backbone, self.head, recipe), short, self.probes, self.material, bench
        )
        for _ in tuning.events():
            pass
        labels = self.material.labels[self.material.val_rows]
        if tuning.diverged is None:
            found = tuning.fresh or tuning.looked_at("trial", tuning.training.average.state(), short.final_size)
            if math.isfinite(found.loss):
                losses = np.minimum(cross_entropies(found.logits, labels).astype(np.float64), _MOST_LOSS)
                return Tried(losses, found.accuracy, named)
        return Tried(np.full(len(labels), _MOST_LOSS), 0.0, named)


def too_short(made: Plan, trials: int) -> Decision | None:
    """Why a run as it is planned has no time for so many trials besides; None where it has."""
    needed = trials * _LEAST * _TIMES_AS_LONG
    if not made.timed or made.steps >= needed:
        return None
    why = f"training has time for {made.steps} steps; {trials} trials of {_LEAST} steps pay from {needed} on"
    return Decision("settings: the usual ones", why)


def race(
    trials: Trials, *, known: dict[str, Any] | None, keep: Callable[[dict[str, Any]], None]
) -> tuple[float, Decision]:
    """The factor on the default rate whose trial has clearly the least validation loss, of those that the clock leaves time for.

    The default where no other is better by more than a standard error. known: what an earlier sitting kept; keep: is called after
    each trial.
    """
    clock = trials.bench.clock
    until = clock.elapsed() + _RACE_SHARE * (clock.left() - trials.made.reserve_seconds)
    state = known or {
        "until": until if math.isfinite(until) else None,
        "steps": trials.steps,
        "found": [],
        "longest": 0.0,
    }
    made = trials.made
    like = [made.sizes[0][1], made.freeze, made.batch]  # trials of another plan are no trials of this one
    state = {**state, "like": like, "found": state["found"] if state.get("like", like) == like else []}
    until, trials = math.inf if state["until"] is None else state["until"], replace(trials, length=state["steps"])
    found = [Tried(np.array(losses), *rest) for losses, *rest in state["found"]]
    for factor in FACTORS[len(found) :]:
        began = clock.elapsed()
        # A trial makes its own activations, and looks at the validation images.
        if found and began + state["longest"] > until:
            break
        rate = trials.rate(factor)
        one = trials.run(replace(trials.bench.recipe, learning_rate=rate), named={"factor": factor, "rate": rate})
        found.append(one)
        state["longest"] = max(state["longest"], clock.elapsed() - began)
        state["found"].append([one.losses.tolist(), one.accuracy, one.values])
        keep(state)
        trials.bench.watcher.say(f"rate {rate:.1e}: validation {one.accuracy:.1%}, {one.loss:.3f} nats")
    best = clearly_least(found, trials.material.val_groups)
    words = ", ".join(f"{one.values['rate']:.1e}: {one.loss:.3f} nats, {one.accuracy:.1%}" for one in found)
    why = f"{len(found)} trials of {trials.steps} steps on {len(trials.material.val_rows)} validation images ({words})"
    if best is found[0] and len(found) > 1:
        why += "; no other is better than the default by more than a standard error"
    factor = best.values["factor"]
    return factor, Decision(f"learning rate: {factor:g} times the default", why)


def clearly_least(tried: list[Tried], groups: np.ndarray | None = None) -> Tried:
    """The trial with the least loss, or the first, which has the usual settings, where its loss is not clearly higher.

    Of many trials one looks better by chance; the standard error is of their paired differences. groups: int64 [v] from 0, of
    validation images that are no independent draws.
    """
    usual, best = tried[0], min(tried, key=lambda one: one.loss)
    return best if gain_of(usual.losses - best.losses, groups=groups).clearly else usual
