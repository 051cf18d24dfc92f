"""A race of models and methods under one clock, and one look at the test images for those that are left.

What costs least is asked first: every model's frozen heads by cross-validation; then short trainings of all that could
still win; then longer ones of the better half (successive halving, Jamieson & Talwalkar 2015, arXiv:1502.07943). Choices
are made on the validation images alone, which are the same for all.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from burnish.backbones.frozen import fold_for_inference
from burnish.backbones.hub import public
from burnish.backbones.weights import brief
from burnish.choose.aim import balance_for
from burnish.choose.decide import Decision, idle_in, part_decision, probe_contender, tuned_contender
from burnish.choose.evidence import Evidence
from burnish.choose.ledger import Ledger
from burnish.choose.material import Bench, Material
from burnish.choose.probing import Probes, check_heads, on_all_depths, special_heads
from burnish.choose.proof import Contender, put_to_test
from burnish.choose.survey import images_per_second, no_taps
from burnish.data.catalog import Catalog
from burnish.data.looks import write_digests
from burnish.data.sample import thinned
from burnish.data.split import write_splits
from burnish.data.views import normalised
from burnish.errors import BurnishError, DataError, NoKerasModel, RecipeError, RunError, shown
from burnish.facts import machine
from burnish.measure.scores import in_brief
from burnish.methods.base import blank_tunable
from burnish.methods.table import method_named
from burnish.recipe import Recipe
from burnish.result import COMPARED, IMAGES, SPLITS, RunFolder
from burnish.run.arms import Arm, Score, leaderboard, read_outcome, simplest_of_the_best, why_chosen, write_outcome
from burnish.run.further import note_learnt, tuned_before
from burnish.run.journal import Journal
from burnish.run.outset import Facilities, backbone_for, framing_for, taps_for
from burnish.run.probed import look, looked_at, part_in
from burnish.run.trained import is_whole, save, tune_on_the_clock
from burnish.runtime import Clock, Watcher, keep_freed_memory
from burnish.ship.bundle import read_bundle
from burnish.train.around import enough_memory, pick_device, settled_torch
from burnish.train.checkpoint import drop_checkpoints

ARMS, MODELS = "arms", "models"
FINALISTS = 6  # scored on the test images
_TAIL_SECONDS = 3.0  # for the page and leaving
# So that two are compared: what the page and leaving take at least, seconds, and how far beyond the budget, in budgets, the
# second arm's test images may end.
_LEAVING, _OVERRUN = 1.0, 0.04
# Seconds: a package is read and brought to its fast form twice, to be tested and to be timed; 1.7 to 3.9 were seen on 2 cores.
_READYING = 2.0
_TIMED_FOR_SPEED = 3 * 32  # images
_PROOF_SHARE = 0.5  # of what is left when training begins, at most, for the finalists' test images
_LEAST_SECONDS = 8.0  # an arm's round, below which nothing can be learnt
# What timing steps and their warm-ups take, and an image of a pass at the smallest size, in forward passes.
_TIMED_IMAGES, _EPOCH_COST = 800, 1.1
_TRAINING_SHARE, _LOOKING_SHARE = 1 / 2, 2 / 3  # of the time left, for frozen heads: before training, and without any
_HOPELESS_ERRORS = 3.0  # standard errors below the best frozen model: its network is not trained when time is short


@dataclass
class _Looked:
    """A model's frozen part, shared by its arms."""

    bench: Bench
    material: Material
    probes: Probes


@settled_torch()
def run_compare(
    catalog: Catalog,
    recipe: Recipe,
    folder: RunFolder,
    *,
    models: list[str],
    methods: list[str],
    clock: Clock,
    watcher: Watcher,
    facilities: Facilities,
    data: str,
    command: str,
) -> dict[str, Any]:
    """Race all combinations; the leaderboard as plain values, also written to the folder.

    An arm that cannot run (a method that fits no layer of the model) is told and left out; all failing is an error.
    """
    keep_freed_memory()
    balance_for(recipe, catalog.labels, classes=len(catalog.classes))  # what cannot be balanced is refused at once
    ledger = Ledger(folder.path, clock, watcher)
    arms = [Arm(model, method, place) for place, (model, method) in enumerate((m, x) for m in models for x in methods)]
    race = _Race(catalog, recipe, folder, ledger, watcher, facilities, arms)
    race.freeze()
    race.train()
    rows = race.score()
    facts = {
        "kind": "compare",
        "data": data,
        "command": command,
        "rows": rows,
        "chosen": next((row["name"] for row in rows if row["chosen"]), None),
        "decisions": [decision.to_json() for decision in race.decisions],
        "counts": race.counts(),
        "classes": len(catalog.classes),
        "several": catalog.several,
        "budget_seconds": recipe.budget_seconds,
        "seconds": ledger.clock.elapsed(),
        "machine": machine(),
    }
    folder.write_json(COMPARED, facts)
    return facts


class _Race:
    """The race as it stands; only this object changes."""

    def __init__(
        self,
        catalog: Catalog,
        recipe: Recipe,
        folder: RunFolder,
        ledger: Ledger,
        watcher: Watcher,
        facilities: Facilities,
        arms: list[Arm],
    ) -> None:
        self.recipe, self.folder, self.ledger = recipe, folder, ledger
        self.watcher, self.facilities, self.arms = watcher, facilities, arms
        self.catalog, self.splits, self.looks = looked_at(catalog, recipe, ledger, watcher)
        self.looked: dict[str, _Looked] = {}
        self.decisions: list[Decision] = []

    # ---- frozen ------------------------------------------------------------------------------------------------------

    def freeze(self) -> None:
        """Every model's frozen heads; one pass over the images a model, with and without taps."""
        for number, model in enumerate(dict.fromkeys(arm.model for arm in self.arms)):
            own = [arm for arm in self.arms if arm.model == model]
            spent, left_out, began = self._known("looking"), self._known("left out"), time.monotonic()
            try:
                if model in left_out:  # by an earlier sitting: what was too slow then is not tried anew
                    raise RecipeError(left_out[model])
                with enough_memory(model):
                    self.looked[model] = self._look(model, number)
            except (DataError, RunError):  # no model could be raced on them, or on a disk like this
                raise
            except Exception as error:  # whatever a foreign network does: the others are raced
                self._leave_out(model, own, error)
                if isinstance(error, BurnishError):  # else it may have been the machine's affair, and is asked again
                    self.ledger.put("left out", {**left_out, model: str(error)})
                continue
            spent.setdefault(model, time.monotonic() - began)  # by the sitting that looked
            self.ledger.put("looking", spent)
            self.ledger.write()  # the seconds spent are not given back by a death
            for arm in own:
                if not self._fits(arm):
                    continue
                if not method_named(arm.method).trains:
                    self._settle_frozen(arm, spent[model])
                self._tell_idle(arm)
        if not self.looked:
            raise RecipeError(f"none of the models can be used; the first: {self.arms[0].why}")
        write_digests(self.folder.path / IMAGES, self.catalog, self.looks)

    def _leave_out(self, name: str, arms: list[Arm], error: Exception) -> None:
        """Say why, and note it of these arms."""
        unforeseen = f"something unforeseen happened ({type(error).__name__}: {brief(error)})"
        why = str(error) if isinstance(error, BurnishError) else unforeseen
        for arm in arms:
            arm.becomes("failed", why)
        self.watcher.say(f"{shown(name)} is left out: {why}")

    def _known(self, part: str) -> dict[str, Any]:
        """A part of the ledger that is a table, to be added to."""
        found = self.ledger.get(part)
        return dict(found[0]) if found is not None else {}

    def _fits(self, arm: Arm) -> bool:
        """Whether the method can be used on its network: one that would train nothing of it has no part in the race."""
        bench, classes = self.looked[arm.model].bench, len(self.catalog.classes)
        try:
            check_heads(arm.method, several=self.catalog.several, taps=self.recipe.taps)
            if on_all_depths(arm.method, self._recipe(arm)) and self.looked[arm.model].probes.deep is None:
                raise RecipeError(no_taps(bench.backbone.name))
            blank_tunable(method_named(arm.method), bench.backbone, self._recipe(arm), classes=classes)
        except Exception as error:  # a method may meet anything in a foreign network
            self._leave_out(arm.name, [arm], error)
            return False
        return True

    def _tell_idle(self, arm: Arm) -> None:
        """Settings of the command that this arm has no use for."""
        idle = idle_in(
            self._recipe(arm), method_named(arm.method), one_size=self.looked[arm.model].bench.backbone.one_size
        )
        arm.idle = [] if idle is None else [idle]  # in its row: the other arms may have a use for them

    def _look(self, model: str, number: int) -> _Looked:
        """Survey, decode and probe with one model; in a folder of its own, taken up after a death."""
        own = [arm for arm in self.arms if arm.model == model]
        wanted = {taps_for(replace(self.recipe, method=arm.method)) for arm in own}
        recipe = replace(self.recipe, model=model, taps="off" if wanted == {"off"} else "auto")
        try:
            backbone = backbone_for(recipe)
        except NoKerasModel:  # what was said of the Keras files among the models
            recipe = replace(recipe, preprocess="")
            backbone = backbone_for(recipe)
        self.decisions += tuned_before(backbone, self.catalog, self.looks, self.watcher)
        note_learnt(self.folder, [backbone, *(one.bench.backbone for one in self.looked.values())])
        # A model's share of the clock: half of what is left is for training, or where there is none a third for the test
        # images; the rest for the models still to be seen.
        left, waiting = self.ledger.clock.left(), len({arm.model for arm in self.arms}) - number
        training = any(method_named(arm.method).trains for arm in self.arms)
        share = self.ledger.clock.elapsed() + left * (_TRAINING_SHARE if training else _LOOKING_SHARE) / waiting
        heads = special_heads([arm.method for arm in own], several=self.catalog.several)
        clock = replace(self.ledger.clock, budget_seconds=share if math.isfinite(left) else None)
        bench = Bench(
            recipe, backbone, pick_device(recipe.device), clock, self.watcher,
            self.facilities.workers, self.facilities.store, heads, proves=False, deep="on" in wanted,
        )  # fmt: skip
        self.ledger.write()  # which files are looked at, before there is anything that depends on it
        with self._subfolder(MODELS, f"{number + 1:02d}-{public(model)}", recipe) as folder:
            ledger = Ledger(folder.path, clock, self.watcher)
            ledger.clock = clock  # seconds of earlier sittings are counted once, by the race's own ledger
            bench, framing = framing_for(self.catalog, self.splits, self.looks, bench, ledger)
            self.decisions += [replace(one, what=f"{public(model)}: {one.what}") for one in framing]
            trains = any(method_named(arm.method).trains for arm in own)
            # All models see the same images: where there is no time for all of them, those that the first has time for.
            material, splits, probes = look(
                self.catalog, self.splits, self.looks, bench, folder, ledger,
                trains=trains, strict=self.facilities.strict, thins=not self.looked,
            )  # fmt: skip
            write_splits(self.folder.path / SPLITS, material.catalog, splits)  # which all models have
            if self.looked:
                self._require_same_sides(material)
            else:
                if material.catalog.skipped:
                    self.decisions.append(part_decision(material))
                part = part_in(ledger.parts["probed"])
                self.catalog, self.splits, self.looks = thinned(
                    self.catalog, self.splits, self.looks, part, seed=recipe.seed
                )
        return _Looked(bench, material, probes)

    def _require_same_sides(self, material: Material) -> None:
        """RecipeError for a model that is not asked about the very images that the others are.

        Large JPEGs are decoded as the network's size needs it, so two pictures may be the same to one and not to another.
        """
        first = next(iter(self.looked.values())).material
        for one, other in ((first.test.ids, material.test.ids), (_val_ids(first), _val_ids(material))):
            if [first.catalog.paths[row] for row in one] != [material.catalog.paths[row] for row in other]:
                raise RecipeError(
                    "at its image size other pictures count as the same, so its validation or test images are not those of "
                    "the other models; give the data splits of its own"
                )

    def _subfolder(self, kind: str, name: str, recipe: Recipe, *, end: str = "") -> RunFolder:
        """Hold a folder of the race's own; `end` stands at the end of its name, however long the model's is."""
        slug = "".join(char if char.isalnum() or char in "-_." else "-" for char in name)[:80]
        folder = self.folder.within(kind, slug + end)
        try:
            folder.begin(asdict(recipe))
        except BaseException:  # nobody else would let it go
            folder.close()
            raise
        return folder

    def _settle_frozen(self, arm: Arm, seconds: float) -> None:
        looked = self.looked[arm.model]
        probed = looked.probes.kept(taps_for(self._recipe(arm)), arm.method)
        known = len(looked.material.val_rows) > 0
        arm.evidence = (
            Evidence.of_frozen(probed, looked.material) if known else Evidence.out_of_fold(probed, looked.material)
        )
        arm.becomes("frozen")
        arm.seconds = seconds
        with self._subfolder(ARMS, f"{arm.place + 1:02d}-{arm.called}-{arm.method}", self._recipe(arm)) as folder:
            save(folder, probe_contender(probed), looked.material)
            arm.package = folder.path
        self.watcher.say(f"{arm.name}: {'validation' if known else 'cross-validation'} {arm.accuracy:.1%}")

    def _recipe(self, arm: Arm) -> Recipe:
        return replace(self.recipe, model=arm.model, method=arm.method)

    # ---- trained -----------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Rounds of training; after each the better half goes on, with twice the time."""
        field = [arm for arm in self.arms if arm.state == "waiting" and method_named(arm.method).trains]
        field = self._by_promise(self._without_hopeless(field))
        # Where the clock has no end a further round would train the same again.
        halves = len(field) > 2 and self.recipe.budget_seconds is not None
        rounds = math.ceil(math.log2(len(field))) if halves else 1
        for number in range(rounds):
            if not field:
                return
            seconds, count = self._allotted(number, rounds, len(field))
            for arm in field[count:]:
                if not arm.rounds:
                    arm.becomes("cut", "no time was left to train it")
            field = field[:count]
            for arm in field:
                try:
                    with enough_memory(arm.called):
                        self._round(arm, number, seconds)
                except (DataError, RunError):  # no arm could go on
                    raise
                except Exception as error:
                    self._leave_out(arm.name, [] if arm.rounds else [arm], error)
            field = sorted((arm for arm in field if arm.rounds), key=Arm.rank)
            if all(arm.whole for arm in field):  # another round would train the same again
                return
            if number + 1 < rounds:
                keep = math.ceil(len(field) / 2)
                for arm in field[keep:]:
                    arm.becomes("cut", f"behind after round {number + 1}")
                if field[keep:]:
                    names = ", ".join(arm.name for arm in field[keep:])
                    best, worst = field[0].accuracy, field[keep - 1].accuracy
                    why = f"validation below {worst:.1%} (the best has {best:.1%}) after {seconds:.0f} s each"
                    self.decisions.append(Decision(f"cut after round {number + 1}: {names}", why))
                    self.watcher.say(f"cut after round {number + 1}: {names}")
                field = field[:keep]

    def _without_hopeless(self, field: list[Arm]) -> list[Arm]:
        """Where time is limited, arms of models whose frozen heads are far behind the best model's are not trained."""
        if self.recipe.budget_seconds is None:
            return field
        scores: dict[str, tuple[float, float]] = {}
        for model, looked in self.looked.items():
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
                why = (
                    f"cross-validated {accuracy:.1%} ± {error:.1%} against {scores[top][0]:.1%} ± {scores[top][1]:.1%}"
                )
                self.decisions.append(Decision(f"{arm.name} is not trained", why))
            else:
                kept.append(arm)
        return kept

    def _by_promise(self, field: list[Arm]) -> list[Arm]:
        """In the order in which arms are trained where there is no time for all: networks by turns, the best frozen one first."""
        if self.recipe.budget_seconds is None:
            return field
        best = sorted(self.looked, key=lambda model: -self.looked[model].probes.kept("auto").choice.accuracy)
        turn = {arm.place: sum(other.model == arm.model for other in field[:at]) for at, arm in enumerate(field)}
        return sorted(field, key=lambda arm: (turn[arm.place], best.index(arm.model)))

    def _seconds_left(self) -> float:
        """For training: what remains when the finalists' test images and the page are paid for."""
        looked = list(self.looked.values())
        slowest = min(each.probes.images_per_second for each in looked)
        frozen = sum(arm.state == "frozen" for arm in self.arms)
        waiting = sum(arm.state in ("waiting", "trained") for arm in self.arms)
        count = min(FINALISTS, frozen + waiting)
        each = (len(looked[0].material.test_labels) + _TIMED_FOR_SPEED) / slowest + _READYING
        left = self.ledger.clock.left() - _TAIL_SECONDS
        if math.isfinite(left):  # what is to be compared must be trained first; two are compared in any case
            count = min(count, max(2, int(_PROOF_SHARE * left / each)))
        return left - count * each

    def _allotted(self, number: int, rounds: int, count: int) -> tuple[float, int]:
        """(seconds for each arm of a round, how many arms); settled once, so that a race that died goes on as planned."""
        settled = self.ledger.get("allotted")
        values = list(settled[0]) if settled is not None else []
        if number == len(values):
            left = self._seconds_left()
            seconds, least = left / (rounds - number) / count, self._least_seconds()
            if seconds < least:  # one round for as many as it is worth anything to
                frozen = any(arm.state == "frozen" for arm in self.arms)  # else there would be no model
                count = max(0 if number or frozen else 1, min(count, int(max(0.0, left) / least)))
                seconds = max(1.0, left / max(1, count))
            values.append([seconds if math.isfinite(seconds) else None, count])
            self.ledger.put("allotted", values)
            self.ledger.write()
        seconds, count = values[number]
        return math.inf if seconds is None else seconds, count

    def _least_seconds(self) -> float:
        """An arm's round, below which nothing would be learnt: timing steps and a pass over the training images."""
        images = _TIMED_IMAGES + _EPOCH_COST * len(next(iter(self.looked.values())).material.train_rows)
        return max(_LEAST_SECONDS, images / min(each.probes.images_per_second for each in self.looked.values()))

    def _round(self, arm: Arm, number: int, seconds: float) -> None:
        """Train one arm for so many seconds from the start; what it is worth is kept in its folder."""
        looked = self.looked[arm.model]
        method = method_named(arm.method)
        budget = seconds if math.isfinite(seconds) else None
        recipe = replace(self._recipe(arm), budget_seconds=budget, taps="off")
        with self._subfolder(
            ARMS, f"{arm.place + 1:02d}-{arm.called}-{arm.method}", recipe, end=f"-{number + 1}"
        ) as folder:
            known = read_outcome(folder.path)
            if known is None:
                self.watcher.say(f"{arm.name}: round {number + 1}" + (f", {seconds:.0f} s" if budget else ""))
                ledger = Ledger(folder.path, Clock(time.monotonic(), budget), self.watcher)
                # What a sitting that died in this round spent on it is known to the round alone.
                clock, counted = self.ledger.clock, self._known("counted")
                earlier = max(0.0, ledger.clock.elapsed() - counted.get(folder.path.name, 0.0))
                self.ledger.clock = replace(clock, started=clock.started - earlier)
                bench = replace(looked.bench, recipe=recipe, clock=ledger.clock)
                journal = Journal(folder, self.watcher, ledger)
                tuned, bench, reasons = tune_on_the_clock(
                    method, looked.probes, looked.material, bench, folder, journal, ledger
                )
                self.ledger.put("counted", {**counted, folder.path.name: ledger.clock.elapsed()})
                if tuned is None:
                    arm.reasons = reasons
                    if not arm.rounds:
                        arm.becomes("cut", reasons[-1].why)
                    self.ledger.write()
                    return
                contender = tuned_contender(tuned, looked.material, method=arm.method)
                save(folder, contender, looked.material)
                journal.close({})
                size = self.recipe.image_size
                wanted = looked.bench.backbone.preprocess.size if size == "auto" else size
                known = (
                    Evidence.of(tuned.best.logits, looked.material),
                    ledger.clock.elapsed(),
                    is_whole(ledger, asked=wanted),
                    reasons,
                )
                write_outcome(folder, *known)
                drop_checkpoints(folder.path)
            evidence, spent, arm.whole, reasons = known
            evidence = replace(evidence, groups=looked.material.val_groups)
            # What frozen heads took stands before all training: alone, the arm would have taken that too.
            arm.seconds += spent if arm.rounds else spent + self._known("looking").get(arm.model, 0.0)
            arm.rounds += 1
            arm.becomes("trained")
            if arm.evidence is None or evidence.rank() <= arm.rank():
                arm.evidence, arm.package, arm.reasons = evidence, folder.path, reasons
        self.ledger.write()  # so that a death later does not give back the seconds spent so far
        self.watcher.say(f"{arm.name}: validation {arm.accuracy:.1%}")

    # ---- the test images ---------------------------------------------------------------------------------------------

    def score(self) -> list[dict[str, Any]]:
        """The leaderboard: finalists with test accuracies and differences to the chosen one, then the rest."""
        alive = sorted((arm for arm in self.arms if arm.state in ("frozen", "trained") and arm.package), key=Arm.rank)
        if not alive:
            first = next((arm.why for arm in self.arms if arm.state == "failed"), "no time")
            raise RecipeError(f"no arm of the race came to an end; the first: {first}")
        chosen = simplest_of_the_best(alive)
        self.decisions.append(why_chosen(chosen, alive))
        ordered = [chosen, *(arm for arm in alive if arm is not chosen)][:FINALISTS]
        tests = self._timed(self._all_tested(ordered), ordered)
        finalists = [arm for arm in ordered if arm.place in tests]
        for arm in alive:
            if arm in ordered and arm not in finalists and arm.state != "failed":
                arm.becomes("not tested", "no time was left")
            elif arm not in finalists and arm.state != "failed":
                arm.becomes("cut", "others were better on validation")
        return leaderboard(self.arms, chosen, tests, self.folder.path, self._material.test_groups)

    def _all_tested(self, ordered: list[Arm]) -> dict[int, Score]:
        """The scores of the arms by their places: the first two in any case, the others while there is time."""
        tests: dict[int, Score] = {}
        taken = 0.0  # seconds, by the one that took longest
        for arm in ordered:
            if tests and not self._has_time(taken, second=len(tests) == 1):
                break
            began = time.monotonic()
            try:
                with enough_memory(arm.called):
                    tests[arm.place] = self._tested(arm)
            except (DataError, RunError):
                raise
            except Exception as error:
                if arm is ordered[0]:  # the chosen one
                    raise
                self._leave_out(arm.name, [arm], error)
            taken = max(taken, time.monotonic() - began)
        return tests

    def _has_time(self, seconds: float, *, second: bool) -> bool:
        """Whether so many seconds are left before the page: for the second arm, without which nothing is compared, with a
        little more than the budget has.
        """
        left = self.ledger.clock.left()
        if second:
            return seconds + _LEAVING <= left + _OVERRUN * (self.recipe.budget_seconds or 0.0)
        return seconds + _TAIL_SECONDS <= left

    def _tested(self, arm: Arm) -> Score:
        """The one look at the test images."""
        assert arm.package is not None
        looked, bundle = self.looked[arm.model], read_bundle(arm.package)
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

    def _timed(self, tests: dict[int, Score], ordered: list[Arm]) -> dict[int, Score]:
        """The scores with how fast the saved networks are, while there is time: no choice and no comparison needs it."""
        timed, taken = dict(tests), 0.0
        for arm in ordered:
            if arm.place not in tests:
                continue
            expected = _TIMED_FOR_SPEED / self.looked[arm.model].probes.images_per_second + _READYING / 2
            if not self._has_time(max(taken, expected), second=False):
                break
            began = time.monotonic()
            try:
                with enough_memory(arm.called):
                    timed[arm.place] = replace(tests[arm.place], images_per_second=self._speed(arm))
            except Exception as error:  # its score is there
                self.watcher.say(f"{shown(arm.name)} could not be timed ({type(error).__name__}: {brief(error)})")
            taken = max(taken, time.monotonic() - began)
        return timed

    def _speed(self, arm: Arm) -> float:
        """Images a second of the saved network, forward."""
        assert arm.package is not None
        looked, bundle = self.looked[arm.model], read_bundle(arm.package)
        images = looked.material.test.plain[:32]
        example = normalised(images[:2], looked.material.preprocess).to(looked.bench.device)
        fast = fold_for_inference(bundle.classifier().to(looked.bench.device), example)
        rate = images_per_second(fast, images, looked.bench, half=False)
        return rate * (looked.material.preprocess.size / bundle.preprocess.size) ** 2

    @property
    def _material(self) -> Material:
        """Of any of the networks: the images are the same."""
        return next(iter(self.looked.values())).material

    def counts(self) -> dict[str, int]:
        """Images by split."""
        material = self._material
        return {
            "train": len(material.train_rows),
            "val": len(material.val_rows),
            "test": len(material.test_labels),
            "skipped": material.catalog.skipped,
        }


def _val_ids(material: Material) -> np.ndarray:
    """Catalogue entries of the validation images."""
    return material.fitting.ids[material.val_rows]
