"""A search over settings by Optuna: trials in a file that outlives the process, proposed in an order that no death changes."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from burnish.choose.decide import Decision
from burnish.choose.trials import Trials, Tried, clearly_least
from burnish.disk import plain_disk_errors
from burnish.errors import RecipeError, RunError
from burnish.methods.table import learns_by_stage
from burnish.recipe import Recipe
from burnish.runtime import draws

if TYPE_CHECKING:
    import optuna

_SHARE = 0.6  # of the time left, for searching
_TRIALS_WITHOUT_BUDGET = 20
SEARCHED = ("learning_rate", "stage_decay", "weight_decay", "label_smoothing", "mixup")
# Least, most, and whether in equal ratios, of what is searched besides the rate.
_RANGES = {
    "stage_decay": (0.5, 1.0, False),
    "weight_decay": (1e-3, 0.5, True),
    "label_smoothing": (0.0, 0.2, False),
    "mixup": (0.0, 0.4, False),
}


def require_optuna() -> None:
    """RecipeError where it is not installed."""
    if importlib.util.find_spec("optuna") is None:
        raise RecipeError("search needs Optuna; run: pip install 'burnish[search]'")


def search(trials: Trials, journal: str, *, on_state: Callable[[], None]) -> tuple[dict[str, Any], Decision]:
    """Settings with the least validation loss among trials that a tree-structured Parzen estimator proposes.

    Bergstra et al. 2011; Optuna, arXiv:1907.10902. The defaults are the first trial. journal: a file that holds the trials, so
    that a search that died goes on. on_state: called after each trial. RecipeError when Optuna is not installed.
    """
    require_optuna()
    clock = trials.bench.clock
    until = clock.elapsed() + _SHARE * (clock.left() - trials.made.reserve_seconds)
    record = _Record(Path(journal), trials)
    # A trial that a death cut short is no trial; those that count are as long as the first, and a death gives the search no
    # more of the clock than the first sitting had.
    trials = replace(trials, length=record.settled("steps", trials.steps))
    until, space = record.settled("until", until), _Space.of(trials)
    if not record.begun:
        record.study.enqueue_trial(space.first())

    def one(trial: optuna.Trial) -> float:
        values, began = space.drawn(trial), clock.elapsed()
        done = trials.run(space.recipe(values), named=values)
        trial.set_user_attr("seconds", clock.elapsed() - began)
        trial.set_user_attr("losses", done.losses.tolist())
        number = len(record.finished()) + 1
        trials.bench.watcher.say(f"trial {number}: validation {done.accuracy:.1%}, {done.loss:.3f} nats")
        return done.loss

    longest = record.longest_seconds()
    while (done := len(record.finished())) < _TRIALS_WITHOUT_BUDGET or math.isfinite(until):
        began = clock.elapsed()
        if done and began + longest > until:
            break
        record.add(one, seed=int(draws(trials.bench.recipe.seed, "search", done).integers(2**32)))
        on_state()
        longest = max(longest, clock.elapsed() - began)
    return _chosen([Tried(np.array(one.user_attrs["losses"]), 0.0, one.params) for one in record.finished()], trials)


def _chosen(made: list[Tried], trials: Trials) -> tuple[dict[str, Any], Decision]:
    """The settings of the clearly best trial, and why; the first has the usual ones."""
    best = clearly_least(made, trials.material.val_groups)
    of = f"{len(trials.material.val_rows)} validation images"
    settings = {"rate": 1.0, **best.values}
    if best is made[0]:
        least = min(one.loss for one in made)
        why = (
            f"of {len(made)} trials of {trials.steps} steps none is better than these, {best.loss:.3f} nats on {of}, by more "
            f"than a standard error (the least {least:.3f})"
        )
        return settings, Decision("settings: the usual ones", why, dict(best.values))
    place = 1 + next(number for number, one in enumerate(made) if one is best)
    why = (
        f"trial {place} of {len(made)}, each of {trials.steps} steps: {best.loss:.3f} nats on {of}, against "
        f"{made[0].loss:.3f} with the usual ones"
    )
    words = ", ".join(f"{key} {value:.3g}" for key, value in best.values.items())
    return settings, Decision(f"settings from a search: {words}", why, dict(best.values))


@dataclass(frozen=True)
class _Space:
    """What is searched. What the recipe names otherwise than usual is not, nor what the method does not have."""

    trials: Trials
    free: bool  # whether the rate is searched; else the recipe names it
    usual: dict[str, float]  # values of the settings besides it that are

    @classmethod
    def of(cls, trials: Trials) -> _Space:
        """That of the trials' recipe and method."""
        recipe, defaults = trials.bench.recipe, Recipe()
        usual = {key: getattr(defaults, key) for key in _RANGES if getattr(recipe, key) == getattr(defaults, key)}
        if not learns_by_stage(trials.method):
            usual.pop("stage_decay", None)
        return cls(trials, isinstance(recipe.learning_rate, str), usual)

    def first(self) -> dict[str, float]:
        """The usual settings, which are tried before all others."""
        return {**self.usual, **({"rate": 1.0} if self.free else {})}

    def drawn(self, trial: optuna.Trial) -> dict[str, float]:
        """What the sampler proposes, and the recipe's own values of what is not searched; the rate as a factor."""
        recipe = self.trials.bench.recipe
        values = {"rate": trial.suggest_float("rate", 0.1, 10.0, log=True) if self.free else 1.0}
        for key, (low, high, log) in _RANGES.items():
            values[key] = trial.suggest_float(key, low, high, log=log) if key in self.usual else getattr(recipe, key)
        return values

    def recipe(self, values: dict[str, float]) -> Recipe:
        """That of a trial with these values."""
        recipe = self.trials.bench.recipe
        rate = self.trials.rate(values["rate"]) if self.free else recipe.learning_rate
        return replace(recipe, learning_rate=rate, **{key: values[key] for key in SEARCHED[1:]})


class _Record:
    """The trials so far, in Optuna's journal; it begins anew, and says so, where the file is damaged."""

    def __init__(self, file: Path, trials: Trials) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._file, self._refused = (
            file,
            list[RunError](),
        )  # what the disk refused, of which Optuna makes an error of its own
        _mend(file)
        try:
            self.study = self._opened()
            _check_kept(self.study, len(trials.material.val_rows))
        except Exception:  # of many kinds, by what is damaged
            if self._refused:
                raise self._refused[0] from None
            trials.bench.watcher.say(f"the record of the search, {file.name}, is damaged: the search begins anew")
            file.unlink(missing_ok=True)
            self.study = self._opened()

    @property
    def begun(self) -> bool:
        """Whether a trial was made, or the first one was asked for before a death."""
        import optuna

        return bool(self.finished()) or any(one.state == optuna.trial.TrialState.WAITING for one in self.study.trials)

    def settled(self, name: str, value: float) -> Any:
        """What the first sitting settled of that name, or this value from now on."""
        value = self.study.user_attrs.get(name) or value
        self.study.set_user_attr(name, value)
        return value

    def finished(self) -> list[optuna.trial.FrozenTrial]:
        """The trials that came to a loss."""
        return [one for one in self.study.trials if one.value is not None]

    def longest_seconds(self) -> float:
        """Of a trial so far, by the run's clock: Optuna takes its own from the system's, which may be set meanwhile."""
        return max((one.user_attrs.get("seconds", 0.0) for one in self.finished()), default=0.0)

    def add(self, one: Callable[[optuna.Trial], float], *, seed: int) -> None:
        """One more trial.

        What is proposed depends on the trials before and on their number, not on how many sittings there were (P7). Trials that a
        death cut short stay "running": no constant liar, which would count them.
        """
        import optuna

        self.study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=False)
        try:
            self.study.optimize(one, n_trials=1)
        except Exception:
            if self._refused:
                raise self._refused[0] from None
            raise

    def _opened(self) -> optuna.Study:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        backend = JournalFileBackend(str(self._file), lock_obj=_Held())  # type: ignore[arg-type]
        backend.append_logs = _saying_refusals(backend.append_logs, self._file, self._refused)  # type: ignore[method-assign]
        return optuna.create_study(storage=JournalStorage(backend), study_name="burnish", load_if_exists=True)


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


def _saying_refusals(append: Callable[[Any], None], journal: Path, refused: list[RunError]) -> Callable[[Any], None]:
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
        if not isinstance(trial.user_attrs.get("seconds", 0.0), int | float):
            raise ValueError
        if losses.shape != (images,) or not all(isinstance(one, float) for one in trial.params.values()):
            raise ValueError
