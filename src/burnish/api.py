"""The verbs: what the command line does, as functions with the same names and defaults."""

# ruff: noqa: E402
from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal, Unpack

from burnish.imports import load_libraries

load_libraries()  # first: by themselves they load torch's compiler, a third of the seconds in which this is imported

from burnish.auditing import Audit
from burnish.backbones import zoo
from burnish.backbones.reading.hub import public
from burnish.choose.ledger import states_of_other_versions
from burnish.data.audit.quarantine import opened
from burnish.data.catalog import Catalog
from burnish.data.looks import changed, read_digests
from burnish.data.sources import Data, called
from burnish.data.sources.folder import folders_within
from burnish.disk import (
    expanded,
    read_plain_json,
    require_temporary_folder,
)
from burnish.errors import RecipeError, RunError, shown
from burnish.granted import cores
from burnish.looking import anatomy, audit, methods, models
from burnish.measure.verdict import Verdict
from burnish.methods.table import method_named
from burnish.recipe import SETTINGS, Recipe, Settings, parse_budget, recipe_from
from burnish.record.folder import (
    BOARD,
    COMPARED,
    IMAGES,
    LEADERBOARD,
    RESULT,
    TABLE,
    RunFolder,
    read_facts,
)
from burnish.reports.board import board_of_compare
from burnish.reports.leaderboard import Leaderboard, csv_of, page_of
from burnish.run.again import call_of, command_of, leaving_out, settings_of
from burnish.run.comparing import run_compare
from burnish.run.hardening import Hardened, harden
from burnish.run.job import finish, run_job
from burnish.run.outset import Facilities
from burnish.run.seeds import other_seeds, require_time_for_seeds, share_of
from burnish.run.tracking import track
from burnish.runtime import Clock, Watcher
from burnish.ship.answering import Prediction
from burnish.ship.predictor import Predictor
from burnish.train.around import enough_memory
from burnish.train.checkpoint import drop_checkpoints
from burnish.use.evaluating import Evaluation, evaluate, ood
from burnish.use.exporting import export
from burnish.use.finished import (
    Result,
    as_written,
    board,
    explain,
    open_run,
    predict,
    predict_stream,
    report,
    report_runs,
    write_predictions,
)
from burnish.use.serving import serve
from burnish.use.slimming import Slimmed, slim
from burnish.use.stressing import Robustness, robustness
from burnish.watching import Watching, settled_watcher, told_if_slow

# Verbs are made in `looking`, here, in `run.hardening`, and in the modules of `use`.
__all__ = [
    "Audit", "Data", "Evaluation", "Hardened", "Leaderboard", "Prediction", "Predictor", "Result", "Robustness", "Slimmed",
    "Verdict", "anatomy", "audit", "board", "called", "compare", "compare_catalog", "evaluate", "explain",
    "export", "fit", "fit_catalog", "fit_recipe", "harden", "methods", "models", "ood", "open_run", "opened",
    "predict", "predict_stream", "report", "report_runs", "robustness", "serve", "slim", "write_predictions",
]  # fmt: skip


def fit(
    data: Data,
    *,
    budget: str | float | None = "10m",
    out: str | os.PathLike[str] | RunFolder | None = None,
    cache: str | os.PathLike[str] = "auto",
    workers: int | Literal["auto"] = "auto",
    strict: bool = False,
    quarantine: str | os.PathLike[str] | None = None,
    watcher: Watching = "auto",
    clock: Clock | None = None,
    **settings: Unpack[Settings],
) -> Result:
    """Tune a pretrained network on a folder of labelled images; prove on images kept apart that it helped.

    data: class folders, train/val/test folders of class folders, a table path,label[,split][,group] (CSV, TSV, JSON lines,
    Parquet), a .zip or .tar of folders, WebDataset shards, "hf:ORG/NAME", "torchvision:NAME", "demo"; or in Python
    (images, labels), a map-style data set, or {"train": …, "val": …, "test": …} of any of these.
    budget: wall clock such as "90s" or "10m", or seconds, from now to the return; None for no limit (best with epochs). Where it
    has no time for all images, an even part of each class is used: `facts["counts"]["skipped"]` says how many were not.
    For speed, glibc is told to keep freed memory in this process (`runtime.keep_freed_memory`).
    out: the run folder, by default runs/NAME-N. A run there that died goes on where it stood, to the same bits; one that
    is finished is returned as it is; both only when asked for the same.
    cache: a folder for decoded pixels, kept between runs; "auto" is the user's cache folder, "off" keeps none.
    workers: threads that make training batches ahead. Neither cache nor workers changes the result.
    strict: stop when the audit finds an error, such as a leak or an unreadable file; by default it is said and dealt with.
    quarantine: a CSV with a column path (such as audit.csv) of images to leave out.
    settings: the fields of `Recipe` but budget_seconds: model, method, seed, epochs, …; `burnish fit --help` says what each does.
    watcher: told of stages and progress, such as `burnish.Lines()`, which prints them; "auto" does so in a notebook and at a
    prompt, and is silent in a script; None for nobody.
    Raises a BurnishError whose message says what came, what was expected and what to do.
    """
    seconds = parse_budget(budget)
    clock = clock or Clock.start(seconds, from_process_start=False)
    _refuse(settings, {"budget_seconds": "say budget"})
    recipe = recipe_from({**settings, "budget_seconds": seconds})
    return fit_recipe(
        data,
        recipe,
        out=out,
        cache=cache,
        workers=workers,
        strict=strict,
        quarantine=quarantine,
        watcher=watcher,
        clock=clock,
    )


def fit_recipe(
    data: Data,
    recipe: Recipe,
    *,
    out: str | os.PathLike[str] | RunFolder | None = None,
    cache: str | os.PathLike[str] = "auto",
    workers: int | Literal["auto"] = "auto",
    strict: bool = False,
    quarantine: str | os.PathLike[str] | None = None,
    watcher: Watching = "auto",
    clock: Clock | None = None,
) -> Result:
    """`fit` with a whole Recipe, e.g. one read back from a run's recipe.toml."""
    clock = clock or Clock.start(recipe.budget_seconds, from_process_start=False)
    folder = out if isinstance(out, RunFolder) else RunFolder.of(out, called(data))
    watcher = settled_watcher(watcher, clock)
    with folder:
        return fit_catalog(
            _read(data, quarantine, watcher),
            recipe,
            out=folder,
            cache=cache,
            workers=workers,
            strict=strict,
            watcher=watcher,
            clock=clock,
            data=called(data),
            quarantine=quarantine,
            again=None if isinstance(data, (str, os.PathLike)) else call_of(recipe),
        )


def fit_catalog(
    catalog: Catalog,
    recipe: Recipe,
    *,
    out: str | os.PathLike[str] | RunFolder,
    data: str,
    quarantine: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] = "auto",
    workers: int | Literal["auto"] = "auto",
    strict: bool = False,
    watcher: Watching = "auto",
    clock: Clock | None = None,
    again: str | None = None,
) -> Result:
    """`fit` on a catalogue made in Python; data, quarantine, again: what the report says it is of, and does it again."""
    clock = clock or Clock.start(recipe.budget_seconds, from_process_start=False)
    watcher = settled_watcher(watcher, clock)
    require_time_for_seeds(recipe)
    require_temporary_folder()
    _say_unused(catalog, watcher)
    facilities = Facilities.of(workers, cache, recipe.device, strict=strict)
    with out if isinstance(out, RunFolder) else RunFolder.open(expanded(out)) as folder:
        folder.begin(asdict(recipe), images=catalog.digest)

        def job(catalog: Catalog, recipe: Recipe, folder: RunFolder, clock: Clock, *, by_clock: bool = True) -> None:
            with enough_memory(recipe.model), states_of_other_versions(folder.path):
                run_job(
                    catalog, recipe, folder, clock=clock, watcher=watcher, facilities=facilities, data=data,
                    command=again or command_of(data, recipe, quarantine), by_clock=by_clock,
                )  # fmt: skip

        first = not folder.finished
        if first:
            job(catalog, recipe, folder, share_of(clock, recipe))
        else:
            _require_same_content(folder, catalog)
        facts = read_facts(folder.path)
        others = recipe.seeds > 1 and not facts.get("seeds")
        if others:
            facts["seeds"], facts["seconds"] = other_seeds(job, catalog, recipe, folder, facts, clock, watcher)
            folder.write_json(RESULT, facts)
        if not (first or others):
            watcher.say(f"{shown(str(folder.path))} is finished: nothing is left to do")
        if others or not first:  # the job has written the report of a first run
            with as_written(folder.path):
                finish(folder, facts)
        if first or others:
            track(folder.path, facts, watcher)
    return open_run(folder.path)


def _read(data: Data, quarantine: str | os.PathLike[str] | None, watcher: Watcher) -> Catalog:
    """The catalogue of the data, and a line where reading it lasts."""
    with told_if_slow(f"reading {called(data)}", watcher):
        return opened(data, quarantine)


def _say_unused(catalog: Catalog, watcher: Watcher) -> None:
    """That columns of a table, or folders within class folders, are not used: one of them may have been meant."""
    if within := folders_within(catalog):
        watcher.say(within)
    if catalog.unused:
        columns, known = ", ".join(map(shown, catalog.unused)), "path, label, split and group are known"
        groups = (
            ""
            if catalog.groups is not None
            else "; images of one group, such as a patient, stay on one side of a split"
        )
        watcher.say(f"not used, of the table's columns: {columns} ({known}{groups})")


def _require_same_content(folder: RunFolder, catalog: Catalog) -> None:
    """RunError where images of a finished run have another content now: what it found is not of these."""
    others, asked = changed(catalog, read_digests(folder.path / IMAGES), workers=cores())
    if others:
        raise RunError(
            f"{shown(str(folder.path))} holds a finished run, and of {asked} of its images that were looked at again "
            f"{len(others)} have changed since (first: {shown(others[0])}); name another folder with --out"
        )


def compare(
    data: Data,
    *,
    models: Sequence[str] = (zoo.DEFAULT_MODEL,),
    methods: Sequence[str] = ("probe", "multiprobe", "full"),
    budget: str | float | None = "30m",
    out: str | os.PathLike[str] | RunFolder | None = None,
    cache: str | os.PathLike[str] = "auto",
    workers: int | Literal["auto"] = "auto",
    strict: bool = False,
    quarantine: str | os.PathLike[str] | None = None,
    watcher: Watching = "auto",
    clock: Clock | None = None,
    **settings: Unpack[Settings],
) -> Leaderboard:
    """Race all combinations of models and methods under one budget; the leaderboard, a dictionary of plain values.

    models, methods: as for `fit`; local files too. What costs least is asked first, losers are cut on the validation
    images, and the finalists are scored once on the test images, with paired differences to the chosen one. The folder
    holds compare.json, leaderboard.csv, leaderboard.html and, under arms/, a package for each combination. A comparison
    that died goes on with the same call. out, cache, workers, strict, quarantine, watcher: as for `fit`. settings: fields of
    `Recipe` that all combinations share, such as seed, epochs, image_size, mixup; those that a comparison has no use for are a
    RecipeError, as are an unknown method and when nothing can run. The keys are those of compare.json: rows, chosen, decisions,
    counts, …; the packages lie under its attribute `folder`.
    """
    seconds = parse_budget(budget)
    clock = clock or Clock.start(seconds, from_process_start=False)
    _refuse(settings, {name: known.in_compare for name, known in SETTINGS.items() if known.in_compare})
    recipe = recipe_from({**settings, "budget_seconds": seconds})
    folder = out if isinstance(out, RunFolder) else RunFolder.of(out, called(data))
    watcher = settled_watcher(watcher, clock)
    with folder:
        return compare_catalog(
            _read(data, quarantine, watcher),
            recipe,
            models=models,
            methods=methods,
            out=folder,
            data=called(data),
            quarantine=quarantine,
            cache=cache,
            workers=workers,
            strict=strict,
            watcher=watcher,
            clock=clock,
        )


def compare_catalog(
    catalog: Catalog,
    recipe: Recipe,
    *,
    models: Sequence[str],
    methods: Sequence[str],
    out: RunFolder,
    data: str,
    clock: Clock,
    quarantine: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] = "auto",
    workers: int | Literal["auto"] = "auto",
    strict: bool = False,
    watcher: Watching = "auto",
) -> Leaderboard:
    """`compare` on a catalogue that is open; data, quarantine: what the page says it is of, and does it again."""
    for called_so, given in (("models", models), ("methods", methods)):
        if isinstance(given, str):  # whose letters would be the names
            raise RecipeError(
                f"{called_so} is {shown(repr(given))}, expected a list: {called_so}=[{shown(repr(given))}]"
            )
    names, kinds = list(dict.fromkeys(models)), list(dict.fromkeys(methods))
    if not names or not kinds:
        raise RecipeError("compare needs at least one model and one method; see: burnish models, burnish methods")
    if "auto" in names:
        raise RecipeError("compare takes networks by name; which one fits is what it tells (see: burnish models)")
    for kind in kinds:
        method_named(kind)
    watcher = settled_watcher(watcher, clock)
    _say_unused(catalog, watcher)
    with out as folder:
        asked = {**asdict(recipe), "compare_models": names, "compare_methods": kinds}
        folder.begin(asked, images=catalog.digest)
        if (folder.path / COMPARED).is_file():
            _require_same_content(folder, catalog)
            with as_written(folder.path, files=COMPARED):
                return _shown(folder, read_plain_json(folder.path / COMPARED))
        words = ["burnish", "compare", data, "--models", ",".join(map(public, names)), "--methods", ",".join(kinds)]
        facts = run_compare(
            catalog,
            recipe,
            folder,
            models=names,
            methods=kinds,
            clock=clock,
            watcher=watcher,
            facilities=Facilities.of(workers, cache, recipe.device, strict=strict),
            data=data,
            command=shlex.join([*words, *settings_of(recipe), *leaving_out(quarantine)]),
        )
        return _shown(folder, facts)


def _refuse(settings: Mapping[str, object], others: Mapping[str, str]) -> None:
    """RecipeError for a setting that would have no effect here."""
    for name in settings:
        if name in others:
            raise RecipeError(f"{name} is no setting of this call: {others[name]}")


def _shown(folder: RunFolder, facts: dict[str, Any]) -> Leaderboard:
    """What follows from a comparison's facts alone; its state is no longer needed."""
    folder.write(TABLE, csv_of(facts))
    folder.write(LEADERBOARD, page_of(facts))
    if not (folder.path / BOARD).exists():
        board_of_compare(folder.path / BOARD, facts)
    drop_checkpoints(folder.path)
    return Leaderboard(facts, folder.path)
