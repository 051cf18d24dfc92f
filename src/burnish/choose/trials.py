"""Short whole runs, judged on the validation images: learning rates in a race, and a search over more settings.

Not a range test: a rate that looks best over a few steps of a rising ramp is often too high for a run (the ramp sees no
decay). Each trial is a run in small, warm-up and cosine included.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from burnish.choose.decide import Decision
from burnish.choose.material import Bench, Material
from burnish.choose.plan import Plan, eased
from burnish.choose.probing import Probes
from burnish.choose.tuning import Tuning
from burnish.errors import RecipeError
from burnish.methods.base import Head, Method
from burnish.methods.table import learns_by_stage
from burnish.recipe import Recipe
from burnish.runtime import draws
from burnish.train.loop import steps_an_epoch

FACTORS = (1.0, 0.3, 3.0)  # of the default rate; the default first, for the clock may end a race
_RACE_SHARE = 0.4  # of the time left for training
_SHARE = 1 / 10  # of the steps that the clock allows, for each trial
_LEAST = 12  # steps
_TIMES_AS_LONG = 2  # a run at the least, as all its trials
_SEARCH_SHARE = 0.6  # of the time left, for searching
_TRIALS_WITHOUT_BUDGET = 20
SEARCHED = ("learning_rate", "stage_decay", "weight_decay", "label_smoothing", "mixup")


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

    @property
    def steps(self) -> int:
        """Of one trial."""
        return self.length or max(_LEAST, int(self.made.steps * _SHARE))

    @property
    def views(self) -> int:
        """Of kept activations: no more than a trial sees."""
        passes = math.ceil(self.steps / steps_an_epoch(len(self.material.train_rows), self.made.batch))
        return min(self.made.views, passes)

    def run(self, recipe: Recipe) -> tuple[float, float]:
        """(accuracy, loss in nats) on the validation images; infinite loss when it diverges."""
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
        if tuning.diverged is not None:
            return 0.0, math.inf
        found = tuning.looked_at("trial", tuning.training.average.state(), short.final_size)
        return found.accuracy, found.loss


def too_short(made: Plan, trials: int) -> Decision | None:
    """Why a run as it is planned has no time for so many trials besides; None where it has."""
    needed = trials * _LEAST * _TIMES_AS_LONG
    if not made.timed or made.steps >= needed:
        return None
    why = f"training has time for {made.steps} steps; {trials} trials of {_LEAST} steps pay from {needed} on"
    return Decision("settings: the usual ones", why)


def race(trials: Trials) -> tuple[float, Decision]:
    """The factor on the default rate whose trial has the least validation loss, of those that the clock leaves time for."""
    clock, found, longest = trials.bench.clock, [], 0.0
    until = clock.elapsed() + _RACE_SHARE * (clock.left() - trials.made.reserve_seconds)
    for factor in FACTORS:
        began = clock.elapsed()
        if found and began + longest > until:  # a trial makes its own activations, and looks at the validation images
            break
        rate = min(1.0, factor * eased(trials.peak, trials.steps))
        accuracy, loss = trials.run(replace(trials.bench.recipe, learning_rate=rate))
        longest = max(longest, clock.elapsed() - began)
        found.append((loss, factor, rate, accuracy))
        trials.bench.watcher.say(f"rate {rate:.1e}: validation {accuracy:.1%}, {loss:.3f} nats")
    best = min(found)
    words = ", ".join(f"{rate:.1e}: {loss:.3f} nats, {accuracy:.1%}" for loss, _, rate, accuracy in found)
    why = f"{len(found)} trials of {trials.steps} steps on {len(trials.material.val_rows)} validation images ({words})"
    return best[1], Decision(f"learning rate: {best[1]:g} times the default", why)


class _Held:
    """The lock of a journal whose folder this process holds already: Optuna's own would be waited for after a death."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


def _mend(journal: Path) -> None:
    """Cut what a death or a full disk left of a line: what is written after it could not be read."""
    with suppress(FileNotFoundError), open(journal, "rb+") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)


def search(trials: Trials, journal: str, *, on_state: Callable[[], None]) -> tuple[dict[str, Any], Decision]:
    """Settings with the least validation loss among trials that a tree-structured Parzen estimator proposes.

    Bergstra et al. 2011; Optuna, arXiv:1907.10902. The defaults are the first trial. journal: a file that holds the trials, so
    that a search that died goes on. on_state: called after each trial. RecipeError when Optuna is not installed.
    """
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError:
        raise RecipeError("search needs Optuna; run: pip install 'burnish[search]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    bench, recipe = trials.bench, trials.bench.recipe
    until = time.monotonic() + _SEARCH_SHARE * (bench.clock.left() - trials.made.reserve_seconds)
    _mend(Path(journal))
    backend = JournalFileBackend(journal, lock_obj=_Held())  # type: ignore[arg-type]
    study = optuna.create_study(storage=JournalStorage(backend), study_name="burnish", load_if_exists=True)
    # A trial that a death cut short is no trial; those that count are as long as the first.
    trials = replace(trials, length=study.user_attrs.get("steps") or trials.steps)
    study.set_user_attr("steps", trials.steps)

    def finished() -> list[optuna.trial.FrozenTrial]:
        return [trial for trial in study.trials if trial.value is not None]

    free = isinstance(recipe.learning_rate, str)  # else the recipe names the rate, and it is not searched
    by_stage = learns_by_stage(trials.method)
    usual = {"weight_decay": max(1e-3, recipe.weight_decay)}
    usual |= {"stage_decay": recipe.stage_decay} if by_stage else {}
    waiting = any(trial.state == optuna.trial.TrialState.WAITING for trial in study.trials)
    if not finished() and not waiting:  # nor when the first one died
        rate = {"rate": 1.0} if free else {}
        study.enqueue_trial({**usual, **rate, "label_smoothing": recipe.label_smoothing, "mixup": recipe.mixup})

    def settings(values: dict[str, float]) -> dict[str, Any]:
        rate = min(1.0, values["rate"] * eased(trials.peak, trials.steps)) if free else recipe.learning_rate
        return {**{key: values[key] for key in SEARCHED[1:]}, "learning_rate": rate}

    def one(trial: optuna.Trial) -> float:
        values = {
            "rate": trial.suggest_float("rate", 0.1, 10.0, log=True) if free else 1.0,
            "stage_decay": trial.suggest_float("stage_decay", 0.5, 1.0) if by_stage else recipe.stage_decay,
            "weight_decay": trial.suggest_float("weight_decay", 1e-3, 0.5, log=True),
            "label_smoothing": trial.suggest_float("label_smoothing", 0.0, 0.2),
            "mixup": trial.suggest_float("mixup", 0.0, 0.4),
        }
        accuracy, loss = trials.run(replace(recipe, **settings(values)))
        bench.watcher.say(f"trial {len(finished()) + 1}: validation {accuracy:.1%}, {loss:.3f} nats")
        return min(loss, 1e6)

    longest = 0.0
    while (done := len(finished())) < _TRIALS_WITHOUT_BUDGET or math.isfinite(until):
        began = time.monotonic()
        if done and began + longest > until:
            break
        # What is proposed depends on the trials before and on their number, not on how many sittings there were (P7).
        # Trials that a death cut short stay "running": no constant liar, which would count them.
        study.sampler = optuna.samplers.TPESampler(
            seed=int(draws(recipe.seed, "search", done).integers(2**32)), constant_liar=False
        )
        study.optimize(one, n_trials=1)
        on_state()
        longest = max(longest, time.monotonic() - began)
    best = study.best_trial
    made = finished()
    place = next(number for number, trial in enumerate(made, start=1) if trial.number == best.number)
    why = (
        f"trial {place} of {len(made)}, each of {trials.steps} steps: {best.value:.3f} nats on "
        f"{len(trials.material.val_rows)} validation images, against {made[0].value:.3f} with the defaults"
    )
    words = ", ".join(f"{key} {value:.3g}" for key, value in best.params.items())
    return {"rate": 1.0, **best.params}, Decision(f"settings from a search: {words}", why, dict(best.params))
