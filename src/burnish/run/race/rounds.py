"""The training of a race, in rounds: after each the better half of the arms goes on, with twice the time.

Successive halving (Jamieson & Talwalkar 2015, arXiv:1502.07943).
"""

from __future__ import annotations

import math
import time
from dataclasses import replace

from burnish.backbones.reading.hub import public
from burnish.choose.decide import Decision, tuned_contender
from burnish.choose.evidence import Evidence
from burnish.choose.ledger import Ledger
from burnish.errors import DataError, RunError
from burnish.methods.table import method_named
from burnish.recipe import Recipe
from burnish.record.folder import RunFolder
from burnish.run.journal import Record
from burnish.run.packed import save
from burnish.run.planned import is_whole
from burnish.run.race.arms import Arm, Outcome
from burnish.run.race.state import ARMS, Race
from burnish.run.race.tested import FINALISTS, READYING, TAIL_SECONDS, TIMED_FOR_SPEED
from burnish.run.trained import tune_on_the_clock
from burnish.runtime import Clock
from burnish.train.around import enough_memory
from burnish.train.checkpoint import drop_checkpoints

_PROOF_SHARE = 0.5  # of what is left when training begins, at most, for the finalists' test images
_LEAST_SECONDS = 8.0  # an arm's round, below which nothing can be learnt
# What timing steps and their warm-ups take, and an image of a pass at the smallest size, in forward passes.
_TIMED_IMAGES, _EPOCH_COST = 800, 1.1
_HOPELESS_ERRORS = 3.0  # standard errors below the best frozen model: its network is not trained when time is short


def train(race: Race) -> None:
    """Rounds of training; after each the better half goes on, with twice the time."""
    field = [arm for arm in race.arms if arm.state == "waiting" and method_named(arm.method).trains]
    field = _by_promise(race, _without_hopeless(race, field))
    # Where the clock has no end a further round would train the same again.
    halves = len(field) > 2 and race.recipe.budget_seconds is not None
    rounds = math.ceil(math.log2(len(field))) if halves else 1
    for number in range(rounds):
        if not field:
            return
        seconds, count = _allotted(race, number, rounds, len(field))
        for arm in field[count:]:
            if not arm.rounds:
                # What is left is too little for any, or goes to those before it.
                arm.becomes(
                    "cut",
                    "no time was left to train it" if count else f"{seconds:.0f} s were left, too few to train it",
                )
        for arm in field[:count]:
            try:
                with enough_memory(arm.called):
                    _round(race, arm, number, seconds)
            except (DataError, RunError):  # no arm could go on
                raise
            except Exception as error:
                race.leave_out(arm.name, [] if arm.rounds else [arm], error)
        field = sorted((arm for arm in field[:count] if arm.rounds), key=Arm.rank)
        if all(arm.whole for arm in field):  # another round would train the same again
            return
        if number + 1 < rounds:
            field = _better_half(race, field, f"round {number + 1}", seconds)


def _better_half(race: Race, field: list[Arm], after: str, seconds: float) -> list[Arm]:
    """The arms that go on; field: all of the round, the best on validation first."""
    kept, cut = field[: math.ceil(len(field) / 2)], field[math.ceil(len(field) / 2) :]
    for arm in cut:
        arm.becomes("cut", f"behind after {after}")
    if cut:
        what = f"cut after {after}: {', '.join(arm.name for arm in cut)}"
        why = (
            f"validation below {kept[-1].accuracy:.1%} (the best has {kept[0].accuracy:.1%}) after {seconds:.0f} s each"
        )
        race.decisions.append(Decision(what, why))
        race.watcher.say(what)
    return kept


def _without_hopeless(race: Race, field: list[Arm]) -> list[Arm]:
    """Where time is limited, arms of models whose frozen heads are far behind the best model's are not trained."""
    if race.recipe.budget_seconds is None:
        return field
    scores: dict[str, tuple[float, float]] = {}
    for model, looked in race.looked.items():
        best = looked.probes.kept("auto").choice
        scores[model] = (best.accuracy, best.standard_error)
    top = max(scores, key=lambda model: scores[model][0])
    kept = []
    for arm in field:
        accuracy, error = scores[arm.model]
        behind = scores[top][0] - accuracy
        if behind > _HOPELESS_ERRORS * math.hypot(error, scores[top][1]) and arm.method != "scratch":
            arm.becomes(
                "cut", f"frozen heads of {arm.called} are {100 * behind:.1f} points behind those of {public(top)}"
            )
            why = f"cross-validated {accuracy:.1%} ± {error:.1%} against {scores[top][0]:.1%} ± {scores[top][1]:.1%}"
            race.decisions.append(Decision(f"{arm.name} is not trained", why))
        else:
            kept.append(arm)
    return kept


def _by_promise(race: Race, field: list[Arm]) -> list[Arm]:
    """In the order in which arms are trained where there is no time for all: networks by turns, the best frozen one first."""
    if race.recipe.budget_seconds is None:
        return field
    best = sorted(race.looked, key=lambda model: -race.looked[model].probes.kept("auto").choice.accuracy)
    turn = {arm.place: sum(other.model == arm.model for other in field[:at]) for at, arm in enumerate(field)}
    return sorted(field, key=lambda arm: (turn[arm.place], best.index(arm.model)))


def _seconds_left(race: Race) -> float:
    """For training: what remains when the finalists' test images and the page are paid for."""
    looked = list(race.looked.values())
    slowest = min(each.probes.images_per_second for each in looked)
    frozen = sum(arm.state == "frozen" for arm in race.arms)
    waiting = sum(arm.state in ("waiting", "trained") for arm in race.arms)
    count = min(FINALISTS, frozen + waiting)
    each = (len(looked[0].material.test_labels) + TIMED_FOR_SPEED) / slowest + READYING
    left = race.ledger.clock.left() - TAIL_SECONDS
    if math.isfinite(left):  # what is to be compared must be trained first; two are compared in any case
        count = min(count, max(2, int(_PROOF_SHARE * left / each)))
    return left - count * each


def _allotted(race: Race, number: int, rounds: int, count: int) -> tuple[float, int]:
    """(seconds for each arm of a round, how many arms); settled once, so that a race that died goes on as planned."""
    settled = race.ledger.get("allotted")
    values = list(settled[0]) if settled is not None else []
    if number == len(values):
        left = _seconds_left(race)
        seconds, least = left / (rounds - number) / count, _least_seconds(race)
        if seconds < least:  # one round for as many as it is worth anything to
            frozen = any(arm.state == "frozen" for arm in race.arms)  # else there would be no model
            count = max(0 if number or frozen else 1, min(count, int(max(0.0, left) / least)))
            seconds = max(1.0, left / max(1, count))
        values.append([seconds if math.isfinite(seconds) else None, count])
        race.ledger.put("allotted", values)
        race.ledger.write()
    seconds, count = values[number]
    return math.inf if seconds is None else seconds, count


def _least_seconds(race: Race) -> float:
    """An arm's round, below which nothing would be learnt: timing steps and a pass over the training images."""
    images = _TIMED_IMAGES + _EPOCH_COST * len(next(iter(race.looked.values())).material.train_rows)
    return max(_LEAST_SECONDS, images / min(each.probes.images_per_second for each in race.looked.values()))


def _round(race: Race, arm: Arm, number: int, seconds: float) -> None:
    """Train one arm for so many seconds from the start; what it is worth is kept in its folder."""
    looked = race.looked[arm.model]
    recipe = replace(race.recipe_of(arm), budget_seconds=seconds if math.isfinite(seconds) else None, taps="off")
    with race.subfolder(ARMS, arm.slug, recipe, end=f"-{number + 1}") as folder:
        outcome = Outcome.read(folder.path)
        if outcome is None:
            race.watcher.say(
                f"{arm.name}: round {number + 1}" + (f", {seconds:.0f} s" if recipe.budget_seconds else "")
            )
            outcome = _trained(race, arm, recipe, folder)
    race.ledger.write()  # so that a death later does not give back the seconds spent so far
    if outcome is None:
        return
    # What frozen heads took stands before all training: alone, the arm would have taken that too.
    arm.seconds += outcome.seconds if arm.rounds else outcome.seconds + race.known("looking").get(arm.model, 0.0)
    arm.rounds += 1
    arm.whole = outcome.whole
    arm.becomes("trained")
    evidence = replace(outcome.evidence, groups=looked.material.val_groups)
    if arm.evidence is None or evidence.rank() <= arm.rank():
        arm.evidence, arm.package, arm.reasons = evidence, folder.path, outcome.reasons
    race.watcher.say(f"{arm.name}: validation {arm.accuracy:.1%}")


def _trained(race: Race, arm: Arm, recipe: Recipe, folder: RunFolder) -> Outcome | None:
    """The round itself, or what is left of it after a death; None, with the reason in the arm, where nothing was trained."""
    looked = race.looked[arm.model]
    ledger = Ledger(folder.path, Clock(time.monotonic(), recipe.budget_seconds), race.watcher)
    # What a sitting that died in this round spent on it is known to the round alone.
    clock, counted = race.ledger.clock, race.known("counted")
    earlier = max(0.0, ledger.clock.elapsed() - counted.get(folder.path.name, 0.0))
    race.ledger.clock = replace(clock, started=clock.started - earlier)
    bench = replace(looked.bench, recipe=recipe, clock=ledger.clock)
    record = Record.of(folder, ledger, race.watcher)
    tuned, bench, reasons = tune_on_the_clock(method_named(arm.method), replace(looked, bench=bench), record)
    race.ledger.put("counted", {**counted, folder.path.name: ledger.clock.elapsed()})
    if tuned is None:
        arm.reasons = reasons
        if not arm.rounds:
            arm.becomes("cut", reasons[-1].why)
        return None
    save(folder, tuned_contender(tuned, looked.material, method=arm.method), looked.material)
    record.journal.close({})
    size = race.recipe.image_size
    wanted = looked.bench.backbone.preprocess.size if size == "auto" else size
    evidence = Evidence.of(tuned.best.logits, looked.material)
    outcome = Outcome(evidence, ledger.clock.elapsed(), is_whole(ledger, asked=wanted), reasons)
    outcome.write(folder)
    drop_checkpoints(folder.path)
    return outcome
