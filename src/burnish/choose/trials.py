"""Short whole runs, judged on the validation images: learning rates in a race, and a search over more settings.

Not a range test: a rate that looks best over a few steps of a rising ramp is often too high for a run (the ramp sees no
decay). Each trial is a run in small, warm-up and cosine included.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from burnish.choose.decide import Decision
from burnish.choose.material import Bench, Material
from burnish.choose.plan import Plan, eased
from burnish.choose.probing import Probes
from burnish.choose.tuning import Tuning
from burnish.disk import plain_disk_errors
from burnish.errors import RecipeError, RunError
from burnish.labels import cross_entropies
from burnish.measure.gains import gain_of
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
_MOST_LOSS = 1e6  # nats an image: of a trial that gave no numbers
SEARCHED = ("learning_rate", "stage_decay", "weight_decay", "label_smoothing", "mixup")
# Least, most, and whether in equal ratios, of what is searched besides the rate.
_RANGES = {
    "stage_decay": (0.5, 1.0, False),
    "weight_decay": (1e-3, 0.5, True),
    "label_smoothing": (0.0, 0.2, False),
    "mixup": (0.0, 0.4, False),
}


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


def require_optuna() -> None:
    """RecipeError where it is not installed."""
    if importlib.util.find_spec("optuna") is None:
        raise RecipeError("search needs Optuna; run: pip install 'burnish[search]'")


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


def _told(append: Callable[[Any], None], journal: Path, refused: list[RunError]) -> Callable[[Any], None]:
    """The same writing, that says in a sentence what the disk refused, and keeps it."""

    def told(logs: Any) -> None:
        try:
            with plain_disk_errors(journal):
                append(logs)
        except RunError as error:
            refused.append(error)
            raise

    return told


def _check_kept(study: Any, images: int) -> None:
    """ValueError unless what is kept of an earlier sitting's trials is what this one would have written."""
    settled = [study.user_attrs.get(key, 1) for key in ("steps", "until")]
    if not all(isinstance(one, int | float) for one in settled):
        raise ValueError
    for trial in study.trials:
        losses = np.asarray(trial.user_attrs.get("losses", np.zeros(images)), np.float64)
        if losses.shape != (images,) or not all(isinstance(one, float) for one in trial.params.values()):
            raise ValueError


def search(trials: Trials, journal: str, *, on_state: Callable[[], None]) -> tuple[dict[str, Any], Decision]:
    """Settings with the least validation loss among trials that a tree-structured Parzen estimator proposes.

    Bergstra et al. 2011; Optuna, arXiv:1907.10902. The defaults are the first trial. journal: a file that holds the trials, so
    that a search that died goes on. on_state: called after each trial. RecipeError when Optuna is not installed.
    """
    require_optuna()
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    bench, recipe = trials.bench, trials.bench.recipe
    clock = bench.clock
    until = clock.elapsed() + _SEARCH_SHARE * (clock.left() - trials.made.reserve_seconds)
    _mend(Path(journal))
    refused: list[RunError] = []

    def opened() -> optuna.Study:
        backend = JournalFileBackend(journal, lock_obj=_Held())  # type: ignore[arg-type]
        backend.append_logs = _told(backend.append_logs, Path(journal), refused)  # type: ignore[method-assign]
        return optuna.create_study(storage=JournalStorage(backend), study_name="burnish", load_if_exists=True)

    try:
        study = opened()
        _check_kept(study, len(trials.material.val_rows))
    except Exception:  # of many kinds, by what is damaged
        if refused:  # of which Optuna makes an assertion of its own
            raise refused[0] from None
        bench.watcher.say(f"the record of the search, {Path(journal).name}, is damaged: the search begins anew")
        Path(journal).unlink(missing_ok=True)
        study = opened()
    # A trial that a death cut short is no trial; those that count are as long as the first.
    trials = replace(trials, length=study.user_attrs.get("steps") or trials.steps)
    study.set_user_attr("steps", trials.steps)
    until = study.user_attrs.get("until", until)  # of the first sitting: a death gives the search no more of the clock
    study.set_user_attr("until", until)

    def finished() -> list[optuna.trial.FrozenTrial]:
        # Without the losses of each image they are of an earlier version.
        return [one for one in study.trials if one.value is not None and "losses" in one.user_attrs]

    free = isinstance(recipe.learning_rate, str)  # else the recipe names the rate, and it is not searched
    # What the recipe names otherwise than usual is not searched, nor what the method does not have.
    usual = {key: getattr(Recipe(), key) for key in _RANGES if getattr(recipe, key) == getattr(Recipe(), key)}
    if not learns_by_stage(trials.method):
        usual.pop("stage_decay", None)
    waiting = any(trial.state == optuna.trial.TrialState.WAITING for trial in study.trials)
    if not finished() and not waiting:  # nor when the first one died
        rate = {"rate": 1.0} if free else {}
        study.enqueue_trial({**usual, **rate})

    def settings(values: dict[str, float]) -> dict[str, Any]:
        rate = trials.rate(values["rate"]) if free else recipe.learning_rate
        return {**{key: values[key] for key in SEARCHED[1:]}, "learning_rate": rate}

    def one(trial: optuna.Trial) -> float:
        values = {"rate": trial.suggest_float("rate", 0.1, 10.0, log=True) if free else 1.0}
        for key, (low, high, log) in _RANGES.items():
            values[key] = trial.suggest_float(key, low, high, log=log) if key in usual else getattr(recipe, key)
        done = trials.run(replace(recipe, **settings(values)), named=values)
        trial.set_user_attr("losses", done.losses.tolist())
        bench.watcher.say(f"trial {len(finished()) + 1}: validation {done.accuracy:.1%}, {done.loss:.3f} nats")
        return done.loss

    longest = max((one.duration.total_seconds() for one in finished() if one.duration is not None), default=0.0)
    while (done := len(finished())) < _TRIALS_WITHOUT_BUDGET or math.isfinite(until):
        began = clock.elapsed()
        if done and began + longest > until:
            break
        # What is proposed depends on the trials before and on their number, not on how many sittings there were (P7).
        # Trials that a death cut short stay "running": no constant liar, which would count them.
        study.sampler = optuna.samplers.TPESampler(
            seed=int(draws(recipe.seed, "search", done).integers(2**32)), constant_liar=False
        )
        try:
            study.optimize(one, n_trials=1)
        except Exception:
            if refused:  # of which Optuna makes an assertion of its own
                raise refused[0] from None
            raise
        on_state()
        longest = max(longest, clock.elapsed() - began)
    made = [Tried(np.array(one.user_attrs["losses"]), 0.0, one.params) for one in finished()]
    best = clearly_least(made, trials.material.val_groups)
    of = f"{len(trials.material.val_rows)} validation images"
    if best is made[0]:
        least = min(one.loss for one in made)
        why = (
            f"of {len(made)} trials of {trials.steps} steps none is better than these, {best.loss:.3f} nats on {of}, by more "
            f"than a standard error (the least {least:.3f})"
        )
        return {"rate": 1.0, **best.values}, Decision("settings: the usual ones", why, dict(best.values))
    place = 1 + next(number for number, one in enumerate(made) if one is best)
    why = (
        f"trial {place} of {len(made)}, each of {trials.steps} steps: {best.loss:.3f} nats on {of}, against "
        f"{made[0].loss:.3f} with the usual ones"
    )
    words = ", ".join(f"{key} {value:.3g}" for key, value in best.values.items())
    return {"rate": 1.0, **best.values}, Decision(f"settings from a search: {words}", why, dict(best.values))
