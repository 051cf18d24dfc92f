"""Learning rates in a race: short whole runs at each, judged on the validation images.

Not a range test: a rate that looks best over a few steps of a rising ramp is often too high for a run (the ramp sees no
decay). Each trial is a run in small, warm-up and cosine included.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from burnish.choose.material import Bench, Material
from burnish.choose.plan import Plan, eased
from burnish.choose.probing import Probes
from burnish.choose.tuning import Tuning
from burnish.methods.base import Head, Method

FACTORS = (0.3, 1.0, 3.0)  # of the default rate
_SHARE = 1 / 10  # of the steps that the clock allows, for each trial
_LEAST = 12  # steps


@dataclass(frozen=True)
class Trial:
    """One rate's short run."""

    rate: float  # peak, of the trial
    accuracy: float  # on val, fraction
    loss: float  # on val, nats


def race(
    method: Method, made: Plan, peak: float, head: Head, probes: Probes, material: Material, bench: Bench
) -> tuple[float, list[Trial]]:
    """(the factor whose trial has the least validation loss, all trials). peak: the default for about a hundred steps."""
    steps = max(_LEAST, int(made.steps * _SHARE))
    short = replace(made, sizes=((0.0, made.sizes[0][1]),), steps=steps, most=steps, timed=False)
    trials = []
    for factor in FACTORS:
        rate = min(1.0, factor * eased(peak, steps))
        recipe = replace(bench.recipe, learning_rate=rate)
        tuning = Tuning(
            method.prepare(bench.backbone, head, recipe), short, probes, material, replace(bench, recipe=recipe)
        )
        for _ in tuning.events():
            pass
        if tuning.diverged is not None:
            trials.append(Trial(rate, 0.0, float("inf")))
            continue
        found = tuning.looked_at("trial", tuning.training.average.state(), short.final_size)
        trials.append(Trial(rate, found.accuracy, found.loss))
        bench.watcher.say(f"rate {rate:.1e}: validation {found.accuracy:.1%}, {found.loss:.3f} nats")
    best = min(range(len(trials)), key=lambda place: trials[place].loss)
    return FACTORS[best], trials
