"""The end of a race: one look at the test images for the arms that are left, and their leaderboard."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np

from burnish.backbones.fast.frozen import fold_for_inference
from burnish.choose.proof import Contender, put_to_test
from burnish.choose.survey import images_per_second
from burnish.data.views import normalised
from burnish.errors import DataError, RecipeError, RunError, brief, shown
from burnish.measure.scores import in_brief
from burnish.run.race.arms import Arm, Score, leaderboard, simplest_of_the_best, why_chosen
from burnish.run.race.state import Race
from burnish.ship.bundle import read_bundle
from burnish.train.around import enough_memory

FINALISTS = 6  # scored on the test images
TAIL_SECONDS = 3.0  # for the page and leaving
# Seconds: a package is read and brought to its fast form twice, to be tested and to be timed; 1.7 to 3.9 were seen on 2 cores.
READYING = 2.0
TIMED_FOR_SPEED = 3 * 32  # images
# So that two are compared: what the page and leaving take at least, seconds, and how far beyond the budget, in budgets, the
# second arm's test images may end.
_LEAVING, _OVERRUN = 1.0, 0.04


def score(race: Race) -> list[dict[str, Any]]:
    """The leaderboard: finalists with test accuracies and differences to the chosen one, then the rest."""
    alive = sorted((arm for arm in race.arms if arm.state in ("frozen", "trained") and arm.package), key=Arm.rank)
    if not alive:
        first = next((arm.why for arm in race.arms if arm.state == "failed"), "no time")
        raise RecipeError(f"no arm of the race came to an end; the first: {first}")
    chosen = simplest_of_the_best(alive)
    race.decisions.append(why_chosen(chosen, alive))
    ordered = [chosen, *(arm for arm in alive if arm is not chosen)][:FINALISTS]
    tests = _timed(race, _all_tested(race, ordered), ordered)
    finalists = [arm for arm in ordered if arm.place in tests]
    for arm in alive:
        if arm in ordered and arm not in finalists and arm.state != "failed":
            arm.becomes("not tested", "no time was left")
        elif arm not in finalists and arm.state != "failed":
            arm.becomes("cut", "others were better on validation")
    return leaderboard(race.arms, chosen, tests, race.folder.path, race.material.test_groups)


def _all_tested(race: Race, ordered: list[Arm]) -> dict[int, Score]:
    """The scores of the arms by their places: the first two in any case, the others while there is time."""
    tests: dict[int, Score] = {}
    taken = 0.0  # seconds, by the one that took longest
    for arm in ordered:
        if tests and not _has_time(race, taken, second=len(tests) == 1):
            break
        began = time.monotonic()
        try:
            with enough_memory(arm.called):
                tests[arm.place] = _tested(race, arm)
        except (DataError, RunError):
            raise
        except Exception as error:
            if arm is ordered[0]:  # the chosen one
                raise
            race.leave_out(arm.name, [arm], error)
        taken = max(taken, time.monotonic() - began)
    return tests


def _has_time(race: Race, seconds: float, *, second: bool) -> bool:
    """Whether so many seconds are left before the page: for the second arm, without which nothing is compared, with a
    little more than the budget has.
    """
    left = race.ledger.clock.left()
    if second:
        return seconds + _LEAVING <= left + _OVERRUN * (race.recipe.budget_seconds or 0.0)
    return seconds + TAIL_SECONDS <= left


def _tested(race: Race, arm: Arm) -> Score:
    """The one look at the test images."""
    assert arm.package is not None
    looked, bundle = race.looked[arm.model], read_bundle(arm.package)
    classifier = bundle.classifier()
    contender = Contender(
        name=arm.name,
        role="tuned",
        backbone=looked.bench.backbone,
        classifier=classifier,
        preprocess=bundle.preprocess,
        temperature=bundle.temperature,
        validation_accuracy=arm.accuracy,
        thresholds=None if bundle.thresholds is None else np.array(bundle.thresholds),
    )
    (tested,), _ = put_to_test([contender], looked.material, looked.bench)
    parameters = sum(parameter.numel() for parameter in classifier.parameters())
    return Score(tested.right, in_brief(tested.probabilities, looked.material.test_labels), None, parameters)


def _timed(race: Race, tests: dict[int, Score], ordered: list[Arm]) -> dict[int, Score]:
    """The scores with how fast the saved networks are, while there is time: no choice and no comparison needs it."""
    timed, taken = dict(tests), 0.0
    for arm in ordered:
        if arm.place not in tests:
            continue
        expected = TIMED_FOR_SPEED / race.looked[arm.model].probes.images_per_second + READYING / 2
        if not _has_time(race, max(taken, expected), second=False):
            break
        began = time.monotonic()
        try:
            with enough_memory(arm.called):
                timed[arm.place] = replace(tests[arm.place], images_per_second=_speed(race, arm))
        except Exception as error:  # its score is there
            race.watcher.say(f"{shown(arm.name)} could not be timed ({type(error).__name__}: {brief(error)})")
        taken = max(taken, time.monotonic() - began)
    return timed


def _speed(race: Race, arm: Arm) -> float:
    """Images a second of the saved network, forward."""
    assert arm.package is not None
    looked, bundle = race.looked[arm.model], read_bundle(arm.package)
    images = looked.material.test.plain[:32]
    example = normalised(images[:2], looked.material.preprocess).to(looked.bench.device)
    fast = fold_for_inference(bundle.classifier().to(looked.bench.device), example)
    rate = images_per_second(fast, images, looked.bench, half=False)
    return rate * (looked.material.preprocess.size / bundle.preprocess.size) ** 2
