"""A finished run's model, made more robust against what befalls photographs; with the proof that it became so, and the price."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from burnish.data.sources import Data
from burnish.disk import expanded, require_temporary_folder
from burnish.errors import RecipeError, nearest, shown
from burnish.recipe import parse_budget
from burnish.record.made import made_whole, place_beside
from burnish.reports.hardening import sentence_of
from burnish.run.harden.job import run_harden
from burnish.run.outset import Facilities
from burnish.runtime import Clock
from burnish.ship.predictor import Predictor
from burnish.train.around import enough_memory
from burnish.watching import Watching, settled_watcher

LOSE_POINTS, EPSILON = 0.5, 1.0
_MOST_EPSILON = 16.0  # of 255; beyond that people see other images too
CORRUPTIONS, ATTACKS = "corruptions", "attacks"


@dataclass(frozen=True)
class Hardened:
    """What came of hardening: a package of its own, and the facts of its proof."""

    folder: Path
    facts: dict[str, Any]  # the content of hardened.json
    predictor: Predictor

    def __repr__(self) -> str:
        return f"Hardened({shown(str(self.folder))}: {self.sentence()})"

    def __fspath__(self) -> str:
        """Its folder: what takes the path of a run takes this too."""
        return os.fspath(self.folder)

    def sentence(self) -> str:
        """What was proven, with its numbers."""
        return sentence_of(self.facts)


def harden(
    run: str | os.PathLike[str],
    data: Data | None = None,
    *,
    budget: str | float | None = "5m",
    out: str | os.PathLike[str] | None = None,
    against: str = CORRUPTIONS,
    epsilon: float = EPSILON,
    lose: float = LOSE_POINTS,
    control: bool = False,
    seed: int | None = None,
    device: str = "cpu",
    cache: str | os.PathLike[str] = "auto",
    watcher: Watching = "auto",
    clock: Clock | None = None,
) -> Hardened:
    """A package like the run's whose answers withstand noise, blur, weather and poor files better; and the proof.

    The run's own images train it, on its own sides of the split: train and val views are perturbed (`data.perturbations`), val
    images choose between the run's weights, the hardened ones and what lies between, test images prove it, under kinds of
    corruption (`data.corruptions`) that neither training nor the choice has met.
    against: "corruptions", or "attacks": then a tuned network learns from images changed within epsilon (of 255, in each value)
    so that it errs, and the proof is by a stronger attack on either model; corruptions are looked at all the same.
    data: the images, by default where the run's record says they are. budget: wall clock, as for `fit`. out: a folder that is not
    there yet, by default the run's with "-hard" behind its name. lose: points of clean accuracy that the choice may cost.
    control: train a second time from the run's weights, as many steps on plain views alone, and prove what the perturbed ones did
    beyond that; the budget then holds for both. Of a run of frozen heads a head fitted anew to plain views is always there. seed:
    by default the run's. The run is only read. Where nothing is clearly better on the validation images, the package holds the
    run's own weights, and its word is "original stays".
    Raises a BurnishError: NotARun, DataError or RecipeError where the run, its images or its network are not fit for it.
    """
    seconds = parse_budget(budget)
    clock = clock or Clock.start(seconds, from_process_start=False)
    require_temporary_folder()
    folder = expanded(run)
    place = place_beside(folder, out, "hard")
    lost, within = _share_of(lose), _epsilon_of(against, epsilon)
    with enough_memory(str(run)), made_whole(place) as draft:
        facts = run_harden(
            folder, data, draft, lose=lost, epsilon=within, control=control, seed=seed, device=device, clock=clock,
            watcher=settled_watcher(watcher, clock), facilities=Facilities.of("auto", cache, device, strict=False),
        )  # fmt: skip
    return Hardened(place, facts, Predictor.open(place))


def _share_of(points: float) -> float:
    """As a fraction; RecipeError for what is no loss."""
    if isinstance(points, bool) or not isinstance(points, (int, float)) or not 0.0 <= points <= 100.0:
        raise RecipeError(f"lose is {shown(repr(points))}, expected percentage points from 0 to 100, such as 0.5")
    return points / 100.0


def _epsilon_of(against: str, epsilon: float) -> float | None:
    """The reach of attacks, None where it is not against those; RecipeError for what cannot be."""
    if against not in (CORRUPTIONS, ATTACKS):
        raise RecipeError(
            f"against is {shown(repr(against))}, expected {CORRUPTIONS} or {ATTACKS} "
            f"(nearest: {nearest(str(against), (CORRUPTIONS, ATTACKS))})"
        )
    if isinstance(epsilon, bool) or not isinstance(epsilon, (int, float)) or not 0.0 < epsilon <= _MOST_EPSILON:
        raise RecipeError(
            f"epsilon is {shown(repr(epsilon))}, expected more than 0 and at most {_MOST_EPSILON:g}, of 255"
        )
    return float(epsilon) if against == ATTACKS else None
