"""The same training from other seeds, on the same splits: how much of a result is the luck of a training."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from burnish.choose.signals import method_of
from burnish.data.catalog import SPLIT_WORDS, Catalog, Named
from burnish.data.sample import only
from burnish.data.sources import without
from burnish.data.split import read_splits
from burnish.errors import NotARun, RecipeError, RunError, shown
from burnish.recipe import Recipe
from burnish.record.folder import RESULT, SPLITS, RunFolder, read_facts, sides_in
from burnish.runtime import Clock, Watcher
from burnish.train.checkpoint import read_checkpoint

FOLDER = "seeds"
_LEAST_SECONDS = 5.0  # of the budget, for each training


class Job(Protocol):
    """A whole run; by_clock: whether the clock says which images it sees, and how many of them test it."""

    def __call__(
        self, catalog: Catalog, recipe: Recipe, folder: RunFolder, clock: Clock, /, *, by_clock: bool = True
    ) -> None: ...


def require_time_for_seeds(recipe: Recipe) -> None:
    """RecipeError where each of several trainings would have less than any of them takes."""
    budget, count = recipe.budget_seconds, recipe.seeds
    if budget is not None and count > 1 and budget / count < _LEAST_SECONDS:
        raise RecipeError(
            f"{count} trainings in {budget:g} s are {budget / count:.2g} s each, expected {_LEAST_SECONDS:g} s or more; ask for "
            f"fewer --seeds, or for --budget {math.ceil(count * _LEAST_SECONDS)}s"
        )


def share_of(clock: Clock, recipe: Recipe) -> Clock:
    """The part of the clock that the first training has."""
    if clock.budget_seconds is None or recipe.seeds == 1:
        return clock
    return replace(clock, budget_seconds=clock.elapsed() + clock.left() / recipe.seeds)


def _seconds_of(run: Path) -> float:
    """What a finished run took; NotARun where it does not say."""
    seconds = read_facts(run).get("seconds")
    if not isinstance(seconds, int | float) or not 0 <= seconds < 1e9:
        raise NotARun(
            f"{shown(str(run / RESULT))} does not say how long that run took; remove the folder to train again"
        )
    return seconds


def other_seeds(
    job: Job, catalog: Catalog, recipe: Recipe, folder: RunFolder, facts: dict[str, Any], clock: Clock, watcher: Watcher
) -> tuple[dict[str, Any], float]:
    """Train again with each further seed, in RUN/seeds; the accuracies with their mean and deviation, and seconds in all.

    Each is a run of its own, on the splits of the first and a share of what is left of the clock, and goes on when it died.
    """
    fixed = _with_splits(catalog, folder, facts)
    runs = [_score_of(recipe.seed, facts)]
    places = [folder.path / FOLDER / str(recipe.seed + number) for number in range(1, recipe.seeds)]
    done = [_seconds_of(path) for path in places if (path / RESULT).is_file()]
    # What earlier sittings spent is not given back.
    clock = replace(clock, started=min(clock.started, time.monotonic() - facts["seconds"] - sum(done)))
    for number in range(1, recipe.seeds):
        seed, left = recipe.seed + number, clock.left() / (recipe.seeds - number)
        budget = None if clock.budget_seconds is None else max(1.0, left)
        # What was left to the first. An address is taken from the recipe: the facts are without what is secret in it.
        model = facts["recipe"]["model"] if recipe.model == "auto" else recipe.model
        method = method_of(facts) if recipe.method == "auto" else recipe.method
        crop_mode = facts["recipe"]["crop_mode"] if recipe.crop_mode == "auto" else recipe.crop_mode
        own = replace(
            recipe, model=model, method=method, crop_mode=crop_mode, seed=seed, seeds=1, baselines="none", against=""
        )
        with folder.within(FOLDER, str(seed)) as place:
            place.begin(asdict(own))
            if not place.finished:
                watcher.say(f"seed {seed}: the same training again")
                begun = read_checkpoint(place.path)
                if begun is not None:  # what an earlier sitting spent on this seed
                    clock = replace(clock, started=clock.started - begun[0]["seconds"])
                job(fixed, own, place, Clock(time.monotonic(), budget), by_clock=False)
            own_facts = read_facts(place.path)
            if own_facts["model"]["sha256"] != facts["model"]["sha256"]:
                raise RunError(
                    f"the weights of the network changed since the first training, so that of seed {seed} is not the same again; "
                    f"restore them and remove {shown(str(place.path))} to go on, or name another folder with --out"
                )
            runs.append(_score_of(seed, own_facts))
    return summed_up(runs), clock.elapsed()


def summed_up(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """What the trainings came to, with mean and standard deviation over those of one kind: tuned models where two were tuned.

    A run that had no time to train is no training: the frozen heads' scores are summed up where at most one was tuned, and
    nothing is where two runs are of two kinds.
    """
    kinds = [one["model"] for one in runs]
    model = next((kind for kind in ("tuned", "probe") if kinds.count(kind) > 1), None)
    found = np.array([one["accuracy"] for one in runs if one["model"] == model])
    mean, sd = (float(found.mean()), float(found.std(ddof=1))) if len(found) > 1 else (None, None)
    return {"runs": runs, "model": model, "n": len(found), "mean": mean, "sd": sd}


def _score_of(seed: int, facts: dict[str, Any]) -> dict[str, Any]:
    """What one training came to: its tuned model's score, the probe's where nothing was tuned."""
    scores = facts["scores"]
    own = scores.get("tuned") or scores["probe"]
    score = own.get("mean_average_precision") or own["accuracy"]  # what the run's own verdict is about
    return {"seed": seed, "accuracy": score["value"], "model": "tuned" if "tuned" in scores else "probe"}


def _with_splits(catalog: Catalog, folder: RunFolder, facts: dict[str, Any]) -> Catalog:
    """The catalogue with the splits that the first run settled, without what it set aside."""
    here = set(catalog.paths)
    gone = [Named(one["path"], one["reason"]) for one in facts["named"] if one["path"] in here]
    catalog = without(catalog, gone) if gone else catalog
    if facts["counts"].get("skipped"):  # the others see the same part of the images
        used = sides_in(folder.path / SPLITS)
        catalog = only(catalog, np.flatnonzero([path in used for path in catalog.paths]))
    splits = read_splits(folder.path / SPLITS, catalog)
    side = {int(row): word for word in SPLIT_WORDS for row in getattr(splits, word)}
    drawn = "val" not in catalog.splits
    return replace(catalog, splits=tuple(side[row] for row in range(len(catalog))), val_drawn=drawn)
