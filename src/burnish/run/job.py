"""The main job, stage by stage in the order the data flows: from a catalogue to a proven, saved model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from burnish.choose.aim import balance_for
from burnish.choose.answers import answers_in
from burnish.choose.decide import (
    Decision,
    idle_in,
    keep_tuned,
    part_decision,
    probe_contender,
    probe_decisions,
    tuned_contender,
)
from burnish.choose.ledger import Ledger
from burnish.choose.limits import Sample, familiar_to, room_for_familiar
from burnish.choose.material import Bench, Material
from burnish.choose.proof import Contender, Tested, put_to_test
from burnish.choose.rates import after_seconds
from burnish.choose.search import require_optuna
from burnish.choose.signals import NOTHING, Signals, worth_trying
from burnish.choose.sizes import takes
from burnish.data.audit.findings import in_order
from burnish.data.catalog import Catalog, Splits
from burnish.data.looks import Dataset, write_digests
from burnish.data.sample import only
from burnish.data.split import restricted, write_splits
from burnish.errors import RecipeError, shown
from burnish.granted import LITTLE_MEMORY, has_little_memory
from burnish.measure.cost import Energy
from burnish.methods.base import Method, blank_tunable
from burnish.methods.table import method_named
from burnish.recipe import Recipe
from burnish.record.answers import table_of
from burnish.record.facts import facts_of, verdict_of
from burnish.record.folder import (
    IMAGES,
    PICTURES,
    PREDICTIONS,
    RECIPE,
    REPORT,
    RESULT,
    SEARCH,
    SPLITS,
    RunFolder,
    read_pictures,
)
from burnish.record.learnt import note_learnt
from burnish.reports.page import render
from burnish.run.baselines import Earlier, earlier, earlier_baseline, earlier_contender, from_scratch, half_for
from burnish.run.further import tuned_before
from burnish.run.insights import cost_of, pictures_of
from burnish.run.journal import Record
from burnish.run.outset import Facilities, bench_for, detail_for, framing_for, taps_for, whitened
from burnish.run.packed import save
from burnish.run.probed import Looked, look, looked_at
from burnish.run.trained import tune_on_the_clock
from burnish.runtime import Clock, Stopwatch, Watcher, keep_freed_memory
from burnish.ship.bundle import package_folder
from burnish.train.around import settled_torch
from burnish.train.checkpoint import drop_checkpoints

_TESTED, _FAMILIAR = "tested", "familiar"  # how many images


@settled_torch()
def run_job(
    catalog: Catalog,
    recipe: Recipe,
    folder: RunFolder,
    *,
    clock: Clock,
    watcher: Watcher,
    facilities: Facilities,
    data: str,
    command: str,
    by_clock: bool = True,
) -> None:
    """Probe, save; tune, save when better; choose; prove on the test images; write the record and the report.

    A folder whose run died is taken up where its ledger stands, and comes to the same bits. by_clock: whether the clock says how
    many of the test images are looked at.
    """
    keep_freed_memory()
    energy = Energy()
    check_trials(recipe)
    recipe = replace(recipe, taps=taps_for(recipe))
    rival = earlier(recipe.against, catalog.classes, several=catalog.several) if recipe.against else None
    ledger = Ledger(folder.path, clock, watcher)
    watch = Stopwatch(watcher, ledger.clock)
    if has_little_memory():
        watch.say(LITTLE_MEMORY)
    if not ledger.resumed:  # what a run that could not be gone on with has searched was of it
        (folder.path / SEARCH).unlink(missing_ok=True)
    part = bool(catalog.skipped) or not by_clock  # an earlier run has settled which images there is time for
    dataset = looked_at(catalog, recipe, ledger, watch, all_of_them=part)
    bench, decisions, trains = begun(dataset, recipe, rival, ledger, watch, facilities)
    note_learnt(folder, [bench.backbone])
    looked = look(dataset, bench, folder, ledger, trains=trains, strict=facilities.strict, thins=not part)
    write_digests(folder.path / IMAGES, dataset)
    record = Record.of(folder, ledger, watch)
    chosen = choose(looked, record)
    chosen = replace(chosen, decisions=[*decisions, *chosen.decisions])
    folder.write(RECIPE, chosen.bench.recipe.to_toml())
    chosen, sample = with_limits(chosen, looked, ledger)
    save(folder, chosen.kept, looked.material)
    if sample is not None:
        record.journal.features(sample, looked.material)
    last = chosen.decisions[-1]
    if last.what != "schedule":  # which was said when it was made
        watch.say(f"{last.what}: {last.why}")
    facts = prove(chosen, rival, looked, sample, record, watch, data=data, command=command, by_clock=by_clock)
    facts["cost"] |= {"joules": energy.joules()}
    facts["seconds"] = ledger.clock.elapsed()
    folder.write_json(RESULT, facts)  # before all that only shows it
    record.journal.close(facts)
    finish(folder, facts)


def check_trials(recipe: Recipe) -> None:
    """RecipeError where settings are to be tried and nothing trains, or what tries them is not installed."""
    if not asked_of(recipe).trains and (recipe.search or recipe.learning_rate == "race"):
        raise RecipeError(
            f"{recipe.method} trains nothing, so there are no settings to try; leave --search and race out"
        )
    if recipe.search:
        require_optuna()


def asked_of(recipe: Recipe) -> Method:
    """The method that the recipe names; where it is to be chosen, the one that may be asked most of."""
    return method_named("full" if recipe.method == "auto" else recipe.method)


def begun(
    dataset: Dataset,
    recipe: Recipe,
    rival: Earlier | None,
    ledger: Ledger,
    watch: Stopwatch,
    facilities: Facilities,
) -> tuple[Bench, list[Decision], bool]:
    """The network and what else the work is done with, what was decided of it, and whether anything trains.

    RecipeError for what could not be done later, before time is spent: settings that do not fit the network or the labels.
    """
    watch.stage("model")
    method, catalog = asked_of(recipe), dataset.catalog
    bench, decisions = bench_for(dataset, recipe, ledger, watch, facilities)
    bench = replace(bench, rivals=() if rival is None else (rival.bundle.preprocess,))
    blank_tunable(method, bench.backbone, bench.recipe, classes=len(catalog.classes))
    balance_for(bench.recipe, catalog.labels, classes=len(catalog.classes))
    if recipe.image_size != "auto" and not takes(bench, recipe.image_size):
        raise RecipeError(
            f"{shown(bench.backbone.name)} does not take images of {recipe.image_size} pixels; say --image-size auto"
        )
    decisions = [*decisions, *tuned_before(bench.backbone, dataset, watch)]
    bench, white = whitened(dataset, bench, ledger)
    bench, framing = framing_for(dataset, bench, ledger)
    bench, detail = detail_for(dataset, bench, ledger)
    decisions = [*decisions, *white, *framing, *detail]
    trains = method.trains or recipe.baselines == "all"
    idle = idle_in(recipe, method)
    if idle is not None and (method.trains or not trains):
        decisions = [*decisions, idle]
        watch.say(f"{idle.what}: {idle.why}")
    return bench, decisions, trains


@dataclass(frozen=True)
class Chosen:
    """What was made before the test images are looked at, and which of it is kept."""

    kept: Contender
    contenders: list[Contender]  # the frozen probe first
    decisions: list[Decision]
    bench: Bench  # its recipe settled

    def keeping(self, kept: Contender) -> Chosen:
        """With more known of the kept model."""
        contenders = [kept if one is self.kept else one for one in self.contenders]
        return replace(self, kept=kept, contenders=contenders)


def choose(looked: Looked, record: Record) -> Chosen:
    """The probe, or the tuned model where validation shows that it is better."""
    probes, material, bench = looked.probes, looked.material, looked.bench
    recipe, clock = bench.recipe, bench.clock
    probed = probes.kept(recipe.taps, recipe.method)
    kept = probe_contender(probed)
    contenders, decisions = [kept], probe_decisions(probes, probed)
    asked = recipe.method  # with its options
    if asked == "auto" and not len(material.val_rows):
        asked, unproven = "probe", "there are no validation images to show that training helped"
        decisions.append(Decision(NOTHING, unproven))
    elif asked == "auto":
        asked, why = worth_trying(
            Signals.of(probes, probed, material, bench.backbone), recipe, fits=lambda name: fits(name, bench, material)
        )
        decisions.append(why)
        if method_named(asked).trains:  # else it is the last decision, which is said in any case
            bench.watcher.say(f"{why.what}: {why.why}")
    method = method_named(asked)
    if method.trains:
        bench = replace(bench, recipe=replace(recipe, method=asked))
        if recipe.baselines == "all" and record.ledger.get("scratch") is None:
            bench = replace(bench, clock=half_for(clock, reserve_seconds=after_seconds(clock.budget_seconds)))
        tuned, bench, reasons = tune_on_the_clock(method, replace(looked, bench=bench), record)
        decisions, bench = [*decisions, *reasons], replace(bench, clock=clock)
        if tuned is not None:
            contenders.append(tuned_contender(tuned, material, method=asked))
            keep, decision = keep_tuned(probed, tuned, material, method=asked, asked_for=recipe.method != "auto")
            decisions.append(decision)
            kept = contenders[-1] if keep else kept
    settled = replace(
        bench.recipe,
        method=kept.name,
        taps="on" if probed.on_all_depths else "off",
        epochs=len(record.journal.rows) or bench.recipe.epochs,
    )
    return Chosen(kept, contenders, decisions, replace(bench, recipe=settled))


def with_limits(chosen: Chosen, looked: Looked, ledger: Ledger) -> tuple[Chosen, Sample | None]:
    """What was chosen, its kept model knowing what is familiar to it, and the sample by which it does."""
    material, rate = looked.material, looked.probes.images_per_second
    answers = answers_in(chosen.kept.classifier, chosen.kept.preprocess, chosen.bench)
    kept = replace(chosen.kept, answers=answers)
    # By the clock, and settled once: the package depends on it (P7).
    most = ledger.noted(_FAMILIAR, of=material.content)
    most = most or room_for_familiar(kept, material, chosen.bench, images_per_second=rate)
    ledger.note(_FAMILIAR, most, of=material.content)
    familiarity, sample = familiar_to(kept, material, chosen.bench, most=most)
    return chosen.keeping(replace(kept, familiarity=familiarity)), sample


def fits(name: str, bench: Bench, material: Material) -> bool:
    """Whether this method finds something to train in the network."""
    try:
        blank_tunable(method_named(name), bench.backbone, bench.recipe, classes=len(material.catalog.classes))
    except RecipeError:
        return False
    return True


def prove(
    chosen: Chosen,
    rival: Earlier | None,
    looked: Looked,
    sample: Sample | None,
    record: Record,
    watch: Stopwatch,
    *,
    data: str,
    command: str,
    by_clock: bool,
) -> dict[str, Any]:
    """The facts of the run: all models on the test images, looked at once; answers and pictures are written on the way."""
    kept, bench, probes, folder, ledger = chosen.kept, chosen.bench, looked.probes, record.folder, record.ledger
    contenders, decisions = with_baselines(chosen, rival, looked, ledger)
    tested, material, splits = tested_once(contenders, looked, bench, record, by_clock=by_clock)
    if material.skipped:
        decisions = [part_decision(material), *decisions]
    of_kept = next(model for model in tested if model.contender is kept)
    folder.write(PREDICTIONS, table_of(tested, kept, material))
    watch.stage("scores")
    verdict = verdict_of(tested, material, seconds=bench.clock.elapsed())
    against = None if rival is None else earlier_baseline(rival, tested[-1], of_kept, material)
    facts = facts_of(
        tested=tested,
        kept=kept,
        verdict=verdict,
        decisions=decisions,
        history=record.journal.rows,
        first_model_seconds=ledger.parts["probed"]["first_model_seconds"],
        sittings=ledger.sittings,
        material=material,
        findings=in_order([*material.findings, *probes.findings]),
        baselines=[] if against is None else [against],
        more_data=probes.more_data,
        splits=splits,
        bench=bench,
        data=data,
        command=command,
    )
    watch.stage("report")
    rate = probes.images_per_second * (material.preprocess.size / kept.preprocess.size) ** 2
    folder.write_json(PICTURES, pictures_of(of_kept, material, bench, sample, images_per_second=rate))
    cost = cost_of(kept, bench, package=package_folder(folder.path))
    return {**facts, "cost": cost, "stages_seconds": watch.so_far()}


def with_baselines(
    chosen: Chosen, rival: Earlier | None, looked: Looked, ledger: Ledger
) -> tuple[list[Contender], list[Decision]]:
    """All that is to see the test images, the earlier run's model last where there is one, and what was decided so far."""
    contenders, decisions = [*chosen.contenders], [*chosen.decisions]
    bench, material = chosen.bench, looked.material
    if bench.recipe.baselines == "all":
        tuned = [contender.preprocess for contender in contenders[1:]]
        bench_of_scratch = replace(bench, rivals=(*bench.rivals, *tuned))
        scratch, reason = from_scratch(looked.probes, material, bench_of_scratch, ledger)
        decisions.append(reason)
        contenders += [] if scratch is None else [scratch]
    if rival is not None:
        contenders.append(earlier_contender(rival, bench, material.catalog.classes))
    return contenders, decisions


def tested_once(
    contenders: list[Contender], looked: Looked, bench: Bench, record: Record, *, by_clock: bool
) -> tuple[list[Tested], Material, Splits]:
    """What all contenders answer, and the images and splits without those that the clock left no time for (P5).

    A run that dies after it has the same proof: how many images were looked at is noted.
    """
    material, splits, ledger = looked.material, looked.splits, record.ledger
    whole = material.content
    known = ledger.noted(_TESTED, of=whole)
    tested, material = put_to_test(contenders, material, bench, by_clock=by_clock, known=known)
    ledger.note(_TESTED, len(material.test.ids), of=whole)
    if material.untested:
        seen = only(material.catalog, np.union1d(material.fitting.ids, material.test.ids))
        splits = restricted(splits, material.catalog, seen)
        write_splits(record.folder.path / SPLITS, seen, splits)
    return tested, material, splits


def finish(folder: RunFolder, facts: dict[str, Any]) -> None:
    """What follows from the result alone: the report; the state of the run is no longer needed."""
    folder.write(REPORT, render(facts, read_pictures(folder.path)))
    drop_checkpoints(folder.path)
