"""The verbs: what the command line does, as functions with the same names and defaults."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal

from burnish.auditing import Audit, run_audit
from burnish.backbones import zoo
from burnish.backbones.anatomy import Anatomy
from burnish.backbones.anatomy import anatomy as taken_apart
from burnish.backbones.hub import public
from burnish.backbones.zoo import ModelRow
from burnish.choose.ledger import states_of_other_versions
from burnish.data.audit.findings import csv_of as csv_of_findings
from burnish.data.audit.quarantine import opened
from burnish.data.catalog import Catalog
from burnish.data.looks import changed, read_digests
from burnish.data.store import PixelStore
from burnish.disk import (
    cache_folder,
    expanded,
    left_behind,
    plain_disk_errors,
    read_plain_json,
    require_temporary_folder,
    write_whole,
)
from burnish.errors import RecipeError, RunError, shown
from burnish.methods.base import Method
from burnish.methods.table import METHODS, method_named
from burnish.recipe import Recipe, parse_budget, recipe_from
from burnish.reports.board import board_of_compare
from burnish.reports.findings import page_of as page_of_findings
from burnish.reports.leaderboard import csv_of, page_of
from burnish.result import (
    AUDIT_PAGE,
    AUDIT_TABLE,
    BOARD,
    COMPARED,
    IMAGES,
    LEADERBOARD,
    RESULT,
    TABLE,
    RunFolder,
    plain,
    read_facts,
)
from burnish.run.comparing import run_compare
from burnish.run.job import finish, run_job
from burnish.run.outset import Facilities, backbone_for
from burnish.run.seeds import other_seeds, require_time_for_seeds, share_of
from burnish.run.tracking import track
from burnish.runtime import Clock, Nobody, Watcher, cores
from burnish.train.around import accelerated, enough_memory, settled_torch
from burnish.train.checkpoint import drop_checkpoints
from burnish.using import (
    Data,
    Evaluation,
    Result,
    as_written,
    board,
    called,
    evaluate,
    explain,
    export,
    ood,
    open_run,
    predict,
    predict_stream,
    report,
    report_runs,
    write_predictions,
)

# The verbs that use a run are made in `burnish.using`.
__all__ = [
    "Data", "Evaluation", "Result", "anatomy", "audit", "board", "called", "command_of", "compare", "compare_catalog", "evaluate",
    "explain", "export", "fit", "fit_catalog", "fit_recipe", "methods", "models", "ood", "open_run", "opened", "predict",
    "predict_stream", "report", "report_runs", "settings_of", "store_of", "workers_of", "write_predictions",
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
    watcher: Watcher | None = None,
    clock: Clock | None = None,
    **settings: Any,
) -> Result:
    """Tune a pretrained network on a folder of labelled images; prove on images kept apart that it helped.

    data: class folders, train/val/test folders of class folders, a table path,label[,split][,group] (CSV, TSV, JSON lines,
    Parquet), a .zip or .tar of folders, WebDataset shards, "hf:ORG/NAME", "torchvision:NAME", "demo"; or in Python
    (images, labels) or a map-style data set.
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
    watcher: told of stages and progress; None for nobody.
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
    watcher: Watcher | None = None,
    clock: Clock | None = None,
) -> Result:
    """`fit` with a whole Recipe, e.g. one read back from a run's recipe.toml."""
    clock = clock or Clock.start(recipe.budget_seconds, from_process_start=False)
    folder = out if isinstance(out, RunFolder) else RunFolder.of(out, called(data))
    with folder:
        return fit_catalog(
            opened(data, quarantine),
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
    watcher: Watcher | None = None,
    clock: Clock | None = None,
    again: str | None = None,
) -> Result:
    """`fit` on a catalogue made in Python; data, quarantine, again: what the report says it is of, and does it again."""
    clock, watcher = clock or Clock.start(recipe.budget_seconds, from_process_start=False), watcher or Nobody()
    require_time_for_seeds(recipe)
    require_temporary_folder()
    _say_unused(catalog, watcher)
    facilities = Facilities(workers_of(workers, recipe.device), store_of(cache), strict)
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


def _say_unused(catalog: Catalog, watcher: Watcher) -> None:
    """That columns of a table are not used: one of them may have been meant."""
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
    watcher: Watcher | None = None,
    clock: Clock | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Race all combinations of models and methods under one budget; the leaderboard as plain values.

    models, methods: as for `fit`; local files too. What costs least is asked first, losers are cut on the validation
    images, and the finalists are scored once on the test images, with paired differences to the chosen one. The folder
    holds compare.json, leaderboard.csv, leaderboard.html and, under arms/, a package for each combination. A comparison
    that died goes on with the same call. out, cache, workers, strict, quarantine: as for `fit`. settings: fields of `Recipe` that
    all combinations share, such as seed, epochs, image_size, mixup; those that a comparison has no use for are a RecipeError,
    as are an unknown method and when nothing can run. The keys are those of compare.json: rows, chosen, decisions, counts, …
    """
    seconds = parse_budget(budget)
    clock = clock or Clock.start(seconds, from_process_start=False)
    _refuse(settings, _NOT_OF_COMPARE)
    recipe = recipe_from({**settings, "budget_seconds": seconds})
    folder = out if isinstance(out, RunFolder) else RunFolder.of(out, called(data))
    with folder:
        return compare_catalog(
            opened(data, quarantine),
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
    watcher: Watcher | None = None,
) -> dict[str, Any]:
    """`compare` on a catalogue that is open; data, quarantine: what the page says it is of, and does it again."""
    names, kinds = list(dict.fromkeys(models)), list(dict.fromkeys(methods))
    if not names or not kinds:
        raise RecipeError("compare needs at least one model and one method; see: burnish models, burnish methods")
    if "auto" in names:
        raise RecipeError("compare takes networks by name; which one fits is what it tells (see: burnish models)")
    for kind in kinds:
        method_named(kind)
    watcher = watcher or Nobody()
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
            facilities=Facilities(workers_of(workers, recipe.device), store_of(cache), strict),
            data=data,
            command=shlex.join([*words, *settings_of(recipe), *_leaving_out(quarantine)]),
        )
        return _shown(folder, facts)


# Fields of `Recipe` that a comparison has no use for, and what to say instead.
_NOT_OF_COMPARE = {
    "budget_seconds": "say budget", "model": "say models", "method": "say methods",
    "arch": "say NAME=FILE among the models", "taps": "say multiprobe or probe among the methods",
    **dict.fromkeys(("seeds", "against", "baselines", "search"), "it is of fit alone"),
}  # fmt: skip


def _refuse(settings: dict[str, Any], others: dict[str, str]) -> None:
    """RecipeError for a setting that would have no effect here."""
    for name in settings:
        if name in others:
            raise RecipeError(f"{name} is no setting of this call: {others[name]}")


def _shown(folder: RunFolder, facts: dict[str, Any]) -> dict[str, Any]:
    """What follows from a comparison's facts alone; its state is no longer needed."""
    folder.write(TABLE, csv_of(facts))
    folder.write(LEADERBOARD, page_of(facts))
    if not (folder.path / BOARD).exists():
        board_of_compare(folder.path / BOARD, facts)
    drop_checkpoints(folder.path)
    return facts


@settled_torch()
def audit(
    data: Data,
    *,
    model: str | None = zoo.DEFAULT_MODEL,
    arch: str = "",
    preprocess: str = "",
    out: str | os.PathLike[str] | None = None,
    quarantine: str | os.PathLike[str] | None = None,
    seed: int = 0,
    cache: str | os.PathLike[str] = "auto",
    watcher: Watcher | None = None,
) -> Audit:
    """What is wrong with labelled images: unreadable files, duplicates, leaks between splits, likely label errors, …

    Nothing is changed. model: whose features judge labels and outliers; None leaves those out, and is faster; arch and
    preprocess: of a file that does not say it. seed: of the cross-validation that doubts labels. cache: as for `fit`. out: one
    for audit.html, audit.csv (which `fit` takes as quarantine) and result.json: a new one, an empty one or that of an earlier
    audit whose table nobody edited, else RunError. Raises DataError when the data cannot be opened.
    """
    if out is not None:
        if not os.fspath(out):
            raise RunError("the name of the audit's folder is empty; name one, or leave it out")
        _require_audit_folder(expanded(out))
    backbone = (
        None
        if model in (None, "none")
        else backbone_for(recipe_from({"model": model, "arch": arch, "preprocess": preprocess}))
    )
    catalog = opened(data, quarantine, for_training=False)
    found = run_audit(
        catalog, backbone, data=called(data), seed=seed, store=store_of(cache), watcher=watcher or Nobody()
    )
    if out is not None:
        folder = expanded(out)
        with plain_disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        table = csv_of_findings(found.findings)
        facts = {
            **plain(found.facts),
            "table_sha256": hashlib.sha256(table.encode("utf-8", "backslashreplace")).hexdigest(),
        }
        write_whole(folder / AUDIT_TABLE, table)
        write_whole(folder / AUDIT_PAGE, page_of_findings(found.facts, found.findings, found.thumbnails))
        write_whole(folder / RESULT, json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return found


def _require_audit_folder(folder: Path) -> None:
    """RunError when the folder holds what no audit wrote: a run's record is not to be lost, nor the data written to.

    Nor a table in which somebody has chosen what to leave out.
    """
    try:
        names = {entry.name for entry in folder.iterdir()}
    except FileNotFoundError:
        return
    except OSError as error:
        raise RunError(
            f"cannot write to {shown(str(folder))}: {error.strerror}; name another folder with --out"
        ) from None
    own = {AUDIT_TABLE, AUDIT_PAGE, RESULT}
    strangers = (
        name for name in names - own if left_behind(name) not in own and name not in (".DS_Store", "Thumbs.db")
    )
    foreign = sorted(strangers, key=lambda name: (name.startswith("."), name))
    if RESULT in names and AUDIT_PAGE not in names:
        foreign.append(RESULT)
    if foreign:
        what = f"{shown(foreign[0])} is in it"
        raise RunError(f"{shown(str(folder))} holds no audit ({what}); name a new or empty folder with --out")
    if _was_edited(folder):
        raise RunError(
            f"{shown(str(folder / AUDIT_TABLE))} was edited since its audit; name another folder with --out, or remove it"
        )


def _was_edited(folder: Path) -> bool:
    """Whether the table of an earlier audit is another than that audit wrote."""
    try:
        table = (folder / AUDIT_TABLE).read_bytes()
    except FileNotFoundError:
        return False
    try:
        wrote = read_plain_json(folder / RESULT).get("table_sha256")
    except (OSError, ValueError):  # damaged: who knows what it wrote
        return True
    return wrote is not None and hashlib.sha256(table).hexdigest() != wrote


def store_of(cache: str | os.PathLike[str]) -> PixelStore | None:
    """Where decoded pixels are kept: "auto", "off", or a folder. RecipeError when that is a file."""
    if cache == "off":
        return None
    try:
        folder = cache_folder() / "pixels" if cache == "auto" else expanded(cache)
        is_file = folder.exists() and not folder.is_dir()
    except (RunError, OSError):  # no home, or one that this user may not look into
        if cache == "auto":
            return None
        raise RecipeError(f"cache is {shown(str(cache))}, which cannot be looked into") from None
    if is_file:
        raise RecipeError(f"cache is {shown(str(folder))}, which is a file; expected a folder, auto or off")
    return PixelStore(folder)


def workers_of(workers: int | Literal["auto"], device: str) -> int:
    """The number of threads; "auto": none where the processor itself trains, else as many as cores but one, 4 at most.

    More of them take the interpreter from the thread that feeds the accelerator.
    """
    if workers == "auto":
        return 0 if device == "cpu" or (device == "auto" and not accelerated()) else max(1, min(4, cores() - 1))
    if isinstance(workers, bool) or not isinstance(workers, int) or not 0 <= workers <= 256:
        raise RecipeError(f"workers is {shown(repr(workers))}, expected auto or a whole number from 0 to 256")
    return workers


def models(query: str = "") -> list[ModelRow]:
    """Pretrained networks whose name holds `query`; UnknownModel with the nearest names when there is none."""
    return zoo.models(query)


def anatomy(model: str, **settings: Any) -> Anatomy:
    """The stages of a network, their widths, weights and cost, and its blocks.

    settings: of the network alone, as for `fit`: arch, preprocess, image_size, pool, depth, remove, insert.
    """
    recipe = recipe_from({"model": model, **settings})
    return taken_apart(backbone_for(recipe, sized=True))


def methods(name: str | None = None) -> list[Method]:
    """All fine-tuning methods, or the one of that name; RecipeError for any other."""
    return list(METHODS.values()) if name is None else [method_named(name)]


def command_of(data: str | os.PathLike[str], recipe: Recipe, quarantine: str | os.PathLike[str] | None = None) -> str:
    """The command line that does this again."""
    return shlex.join(["burnish", "fit", str(data), *settings_of(recipe), *_leaving_out(quarantine)])


def call_of(recipe: Recipe) -> str:
    """The call that does this again with images that are handed over in Python."""
    default = Recipe()
    changed = [field.name for field in fields(Recipe) if getattr(recipe, field.name) != getattr(default, field.name)]
    words = [f"{name}={getattr(recipe, name)!r}" for name in changed if name != "budget_seconds"]
    return f"burnish.fit({', '.join(['images', f'budget={recipe.budget_seconds!r}', *words])})"


def _leaving_out(quarantine: str | os.PathLike[str] | None) -> list[str]:
    return [] if quarantine is None else ["--quarantine", str(quarantine)]


def settings_of(recipe: Recipe) -> list[str]:
    """The options that say what differs from the defaults."""
    words, default = [], Recipe()
    for name in (field.name for field in fields(Recipe) if field.name != "budget_seconds"):
        value = getattr(recipe, name)
        if name == "search" and value:
            words.append("--search")
        elif value != getattr(default, name):
            words += [f"--{name.replace('_', '-')}", str(value)]
    words += ["--budget", "none" if recipe.budget_seconds is None else f"{recipe.budget_seconds:.12g}s"]
    return words
