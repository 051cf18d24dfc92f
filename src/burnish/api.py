"""The verbs: what the command line does, as functions with the same names and defaults."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from burnish.answers import read_answers
from burnish.auditing import Audit, run_audit
from burnish.backbones import zoo
from burnish.backbones.anatomy import Anatomy
from burnish.backbones.anatomy import anatomy as taken_apart
from burnish.backbones.weights import read_plain_json
from burnish.backbones.zoo import ModelRow
from burnish.comparing import run_compare
from burnish.data.audit.findings import csv_of as csv_of_findings
from burnish.data.audit.quarantine import quarantined
from burnish.data.catalog import Catalog
from burnish.data.sources import open_source, require_usable
from burnish.data.sources.scan import SUFFIXES, scan
from burnish.data.store import PixelStore
from burnish.disk import cache_folder, plain_disk_errors, write_whole
from burnish.errors import DataError, NoSuchName, NotARun, NotEnoughData, RecipeError, nearest, shown
from burnish.explaining import Explained, explained, strangers
from burnish.job import Facilities, accelerated, backbone_for, finish, run_job
from burnish.labels import classes_of
from burnish.measure.scores import Scores, score
from burnish.measure.several import SeveralScores, score_several
from burnish.measure.verdict import Verdict
from burnish.methods.base import Method
from burnish.methods.table import METHODS, method_named
from burnish.recipe import Recipe, parse_budget, recipe_from
from burnish.reports.board import board_of_compare
from burnish.reports.explain import Sanity
from burnish.reports.findings import page_of as page_of_findings
from burnish.reports.leaderboard import csv_of, page_of
from burnish.reports.page import render
from burnish.reports.runs import Compared, side_by_side
from burnish.reports.runs import page_of as page_of_runs
from burnish.result import (
    AUDIT_PAGE,
    AUDIT_TABLE,
    BOARD,
    COMPARED,
    LEADERBOARD,
    REPORT,
    RESULT,
    TABLE,
    RunFolder,
    plain,
    read_facts,
    read_pictures,
)
from burnish.runtime import Clock, Nobody, Watcher, cores
from burnish.seeds import other_seeds, share_of
from burnish.ship.bundle import read_bundle
from burnish.ship.keras import export_keras
from burnish.ship.predictor import ImageLike, Prediction, Predictor, expand, write_csv
from burnish.train.checkpoint import drop_checkpoints

# A path or name of labelled images, (images, labels), a map-style data set, or a Catalog: see `data.sources.open_source`.
Data = Any


@dataclass(frozen=True)
class Result:
    """A finished run, opened: its facts and its model."""

    folder: Path
    facts: dict[str, Any]  # the content of result.json
    predictor: Predictor

    @property
    def verdict(self) -> Verdict:
        """Tuned against frozen probe on the same test images."""
        return Verdict.from_json(self.facts["verdict"])

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the probabilities."""
        return self.predictor.bundle.classes

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.folder / REPORT

    def predict(
        self,
        images: Sequence[ImageLike | str | os.PathLike[str]],
        *,
        top: int = 1,
        reject: float | None = None,
        sets: float | None = None,
    ) -> list[Prediction]:
        """One Prediction an image: paths, folders, bytes, Pillow images or uint8 arrays [h w 3]; see `burnish.predict`."""
        return predict(self.folder, images, top=top, reject=reject, sets=sets, predictor=self.predictor)

    def predict_proba(self, images: Sequence[ImageLike]) -> np.ndarray:
        """float64 [n k], in the order of `classes`; raises UnreadableImage on the first bad image."""
        return self.predictor.probabilities(images)

    def evaluate(self, data: Data) -> Evaluation:
        """Scores on labelled images that were not part of the run."""
        return evaluate(self.folder, data, predictor=self.predictor)


@dataclass(frozen=True)
class Evaluation:
    """A model's scores on a labelled set."""

    scores: Scores | SeveralScores
    predictions: list[Prediction]
    labels: tuple[str, ...]  # true class of each prediction; of several, a|b
    named: list[dict[str, str]]  # files that could not be used, with the reason


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
    budget: wall clock such as "90s" or "10m", from now to the return; None for no limit (then give epochs).
    For speed, glibc is told to keep freed memory in this process (`runtime.keep_freed_memory`).
    out: the run folder, by default runs/NAME-N. A run there that died goes on where it stood, to the same bits; one that
    is finished is returned as it is; both only when asked for the same.
    cache: a folder for decoded pixels, kept between runs; "auto" is the user's cache folder, "off" keeps none.
    workers: threads that make training batches ahead; neither changes the result.
    strict: stop when the audit finds an error, such as a leak or an unreadable file; by default it is said and dealt with.
    quarantine: a CSV with a column path (such as audit.csv) of images to leave out.
    settings: the fields of `Recipe`: model, method, seed, epochs, …
    Raises a BurnishError whose message says what came, what was expected and what to do.
    """
    seconds = parse_budget(budget)
    clock = clock or Clock.start(seconds, from_process_start=False)
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
    folder = out if isinstance(out, RunFolder) else RunFolder.open(Path(out)) if out else RunFolder.free(called(data))
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
        )


def fit_catalog(
    catalog: Catalog,
    recipe: Recipe,
    *,
    out: str | os.PathLike[str] | RunFolder,
    data: str,
    cache: str | os.PathLike[str] = "auto",
    workers: int | Literal["auto"] = "auto",
    strict: bool = False,
    watcher: Watcher | None = None,
    clock: Clock | None = None,
) -> Result:
    """`fit` on a catalogue made in Python; `data` is what the report calls it."""
    clock, watcher = clock or Clock.start(recipe.budget_seconds, from_process_start=False), watcher or Nobody()
    facilities = Facilities(workers_of(workers, recipe.device), store_of(cache), strict)
    with out if isinstance(out, RunFolder) else RunFolder.open(Path(out)) as folder:
        folder.begin(asdict(recipe))

        def job(catalog: Catalog, recipe: Recipe, folder: RunFolder, clock: Clock) -> None:
            run_job(
                catalog, recipe, folder, clock=clock, watcher=watcher, facilities=facilities, data=data,
                command=command_of(data, recipe),
            )  # fmt: skip

        if not folder.finished:
            job(catalog, recipe, folder, share_of(clock, recipe))
        else:
            watcher.say(f"{shown(str(folder.path))} is finished: nothing is left to do")
        facts = read_facts(folder.path)
        if recipe.seeds > 1 and not facts.get("seeds"):
            facts["seeds"] = other_seeds(job, catalog, recipe, folder, facts, clock, watcher)
            facts["seconds"] = clock.elapsed()
            folder.write_json(RESULT, facts)
        finish(folder, facts)
    return open_run(folder.path)


def compare(
    data: Data,
    *,
    models: Sequence[str] = (zoo.DEFAULT_MODEL,),
    methods: Sequence[str] = ("probe", "multiprobe", "full"),
    budget: str | float | None = "30m",
    out: str | os.PathLike[str] | RunFolder | None = None,
    cache: str | os.PathLike[str] = "auto",
    workers: int | Literal["auto"] = "auto",
    watcher: Watcher | None = None,
    clock: Clock | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Race all combinations of models and methods under one budget; the leaderboard as plain values.

    models, methods: as for `fit`; local files too. What costs least is asked first, losers are cut on the validation
    images, and the finalists are scored once on the test images, with paired differences to the chosen one. The folder
    holds compare.json, leaderboard.csv, leaderboard.html and, under arms/, a package for each combination. A comparison
    that died goes on with the same call. RecipeError on an unknown method or when nothing can run.
    """
    seconds = parse_budget(budget)
    clock = clock or Clock.start(seconds, from_process_start=False)
    recipe = recipe_from({**settings, "budget_seconds": seconds})
    names, kinds = list(dict.fromkeys(models)), list(dict.fromkeys(methods))
    if not names or not kinds:
        raise RecipeError("compare needs at least one model and one method; see: burnish models, burnish methods")
    for kind in kinds:
        method_named(kind)
    folder = out if isinstance(out, RunFolder) else RunFolder.open(Path(out)) if out else RunFolder.free(called(data))
    with folder:
        folder.begin({**asdict(recipe), "compare_models": names, "compare_methods": kinds})
        if (folder.path / COMPARED).is_file():
            return _shown(folder, read_plain_json(folder.path / COMPARED))
        words = ["burnish", "compare", called(data), "--models", ",".join(names), "--methods", ",".join(kinds)]
        facts = run_compare(
            open_source(data),
            recipe,
            folder,
            models=names,
            methods=kinds,
            clock=clock,
            watcher=watcher or Nobody(),
            facilities=Facilities(workers_of(workers, recipe.device), store_of(cache)),
            data=called(data),
            command=shlex.join([*words, *settings_of(recipe)]),
        )
        return _shown(folder, facts)


def _shown(folder: RunFolder, facts: dict[str, Any]) -> dict[str, Any]:
    """What follows from a comparison's facts alone; its state is no longer needed."""
    folder.write(TABLE, csv_of(facts))
    folder.write(LEADERBOARD, page_of(facts))
    if not (folder.path / BOARD).exists():
        board_of_compare(folder.path / BOARD, facts)
    drop_checkpoints(folder.path)
    return facts


def opened(data: Data, quarantine: str | os.PathLike[str] | None, *, for_training: bool = True) -> Catalog:
    """The labelled images, less those in the list."""
    catalog = open_source(data, for_training=for_training)
    if quarantine is None:
        return catalog
    catalog = quarantined(catalog, Path(quarantine))
    if for_training:
        require_usable(catalog)
    return catalog


def audit(
    data: Data,
    *,
    model: str | None = zoo.DEFAULT_MODEL,
    out: str | os.PathLike[str] | None = None,
    quarantine: str | os.PathLike[str] | None = None,
    seed: int = 0,
    cache: str | os.PathLike[str] = "auto",
    watcher: Watcher | None = None,
) -> Audit:
    """What is wrong with labelled images: unreadable files, duplicates, leaks between splits, likely label errors, …

    Nothing is changed. model: whose features judge labels and outliers; None leaves those out, and is faster. out: a new or
    empty folder for audit.html, audit.csv (which `fit` takes as quarantine) and result.json. Raises DataError when the data
    cannot be opened.
    """
    backbone = None if model in (None, "none") else backbone_for(recipe_from({"model": model}))
    catalog = opened(data, quarantine, for_training=False)
    found = run_audit(
        catalog, backbone, data=called(data), seed=seed, store=store_of(cache), watcher=watcher or Nobody()
    )
    if out is not None:
        folder = Path(out)
        with plain_disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / AUDIT_TABLE, csv_of_findings(found.findings))
        write_whole(folder / AUDIT_PAGE, page_of_findings(found.facts, found.findings, found.thumbnails))
        write_whole(
            folder / RESULT, json.dumps(plain(found.facts), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        )
    return found


def called(data: Any) -> str:
    """What the report and the run folder call the data."""
    if isinstance(data, (str, os.PathLike)):
        return os.fspath(data)
    return data.source if isinstance(data, Catalog) else "images"


def store_of(cache: str | os.PathLike[str]) -> PixelStore | None:
    """Where decoded pixels are kept: "auto", "off", or a folder. RecipeError when that is a file."""
    if cache == "off":
        return None
    folder = cache_folder() / "pixels" if cache == "auto" else Path(cache)
    if folder.exists() and not folder.is_dir():
        raise RecipeError(f"cache is {shown(str(folder))}, which is a file; expected a folder, auto or off")
    return PixelStore(folder)


def workers_of(workers: int | Literal["auto"], device: str) -> int:
    """The number of threads; "auto": none where the processor itself trains, else as many as cores but one, 8 at most."""
    if workers == "auto":
        return 0 if device == "cpu" or (device == "auto" and not accelerated()) else max(1, min(8, cores() - 1))
    if isinstance(workers, bool) or not isinstance(workers, int) or not 0 <= workers <= 256:
        raise RecipeError(f"workers is {shown(repr(workers))}, expected auto or a whole number from 0 to 256")
    return workers


def open_run(path: str | os.PathLike[str]) -> Result:
    """A finished run; NotARun when the folder is not one or was changed."""
    folder = Path(path)
    facts = read_facts(folder)
    return Result(folder, facts, Predictor.open(folder))


def predict(
    run: str | os.PathLike[str],
    images: Sequence[ImageLike | str | os.PathLike[str]],
    *,
    top: int = 1,
    reject: float | None = None,
    sets: float | None = None,
    predictor: Predictor | None = None,
) -> list[Prediction]:
    """The class of each image; folders among `images` are searched. An unreadable image carries its `problem`.

    reject: the accuracy wanted of the answers, such as 0.99; what is less sure, or unlike the training images, is `declined`.
    sets: how often the `set` of classes must hold the true one, such as 0.95. RecipeError when the package cannot say so.
    """
    found: list[ImageLike] = []
    for image in images:
        found += expand([image]) if isinstance(image, (str, os.PathLike)) else [image]
    return (predictor or Predictor.open(Path(run))).predict(found, top=top, reject=reject, sets=sets)


def evaluate(
    run: str | os.PathLike[str],
    data: Data,
    *,
    watcher: Watcher | None = None,
    predictor: Predictor | None = None,
) -> Evaluation:
    """Score a run's model on labelled images; classes are matched by name, an unknown one is an error (P2).

    Of data with splits the test images are scored, else all of them. A model that tells several classes an image is scored as
    such, on data with one class an image too; DataError when it is the other way round.
    """
    predictor, watcher = predictor or Predictor.open(Path(run)), watcher or Nobody()
    catalog = open_source(data, for_training=False)
    classes = predictor.bundle.classes
    unknown = [name for name in catalog.classes if name not in classes]
    if unknown:
        raise NoSuchName(
            f"the data has a class {shown(repr(unknown[0]))} that the model does not know "
            f"(nearest: {nearest(unknown[0], classes)}); rename the folder or label, or leave those images out"
        )
    if catalog.several and not predictor.bundle.several:
        raise DataError(
            f"{shown(called(data))} has several classes an image, and the model was trained to tell one; "
            "give images with one class each, or train a model on such data with burnish fit"
        )
    rows = [row for row in range(len(catalog)) if catalog.splits[row] == "test"] or list(range(len(catalog)))
    watcher.stage("evaluate", total=len(rows))
    images = [partial(catalog.image, row) for row in rows]
    names = [catalog.name(row) for row in rows]
    predictions = list(predictor.stream(images, top=len(classes), names=names, on_progress=watcher.advance))
    good = [place for place, prediction in enumerate(predictions) if prediction.problem is None]
    if not good:
        raise NotEnoughData(f"{shown(called(data))}: none of its {len(rows)} images could be read")
    probabilities = np.array([_ordered(predictions[place], classes) for place in good])
    names = tuple(catalog.label(rows[place]) for place in good)
    held = [[catalog.classes[one] for one in classes_of(catalog.labels, rows[place])] for place in good]
    named = [{"path": named.path, "reason": named.reason} for named in catalog.named]
    named += [
        {"path": catalog.paths[row], "reason": prediction.problem}
        for row, prediction in zip(rows, predictions, strict=True)
        if prediction.problem is not None
    ]
    answers = [predictions[place] for place in good]
    if predictor.bundle.thresholds is not None:
        truth = np.array([[name in one for name in classes] for one in held])
        scores = score_several(probabilities, truth, classes, np.array(predictor.bundle.thresholds))
        return Evaluation(scores, answers, names, named)
    labels = np.array([classes.index(one[0]) for one in held])
    return Evaluation(score(probabilities, labels, classes), answers, names, named)


def predict_stream(
    run: str | os.PathLike[str],
    images: Sequence[str | os.PathLike[str]],
    *,
    top: int = 1,
    reject: float | None = None,
    sets: float | None = None,
    predictor: Predictor | None = None,
) -> Iterator[Prediction]:
    """`predict` one by one, in bounded memory; mistakes in the arguments are raised at once."""
    return (predictor or Predictor.open(Path(run))).stream(expand(images), top=top, reject=reject, sets=sets)


def write_predictions(
    path: Path,
    predictor: Predictor,
    images: Sequence[str],
    *,
    top: int,
    reject: float | None = None,
    sets: float | None = None,
) -> int:
    """Write predictions as CSV; returns how many images could not be read."""
    unreadable, predictions = 0, predictor.stream(expand(images), top=top, reject=reject, sets=sets)

    def counted() -> Iterator[Prediction]:
        nonlocal unreadable
        for prediction in predictions:
            unreadable += prediction.problem is not None
            yield prediction

    with plain_disk_errors(path), open(path, "w", encoding="utf-8", newline="") as file:
        write_csv(file, counted(), top=top, several=predictor.bundle.several, with_sets=sets is not None)
    return unreadable


def models(query: str = "") -> list[ModelRow]:
    """Pretrained networks whose name holds `query`; UnknownModel with the nearest names when there is none."""
    return zoo.models(query)


def anatomy(model: str, **settings: Any) -> Anatomy:
    """The stages of a network, their widths, weights and cost, and its blocks.

    settings: of the network alone, as for `fit`: arch, preprocess, image_size, pool, depth, remove, insert.
    """
    recipe = recipe_from({"model": model, **settings})
    return taken_apart(backbone_for(recipe, sized=True))


def export(
    run: str | os.PathLike[str], out: str | os.PathLike[str], *, to: str = "keras", input: str = "prepared"
) -> Path:
    """Write a run's model in another format; returns the file.

    to: "keras", for models that came from a Keras file: a .keras file that Keras and TensorFlow open, its classes and
    preprocessing in the .json beside it. input: what the file takes, "prepared" as the original did, or "pixels".
    """
    if to != "keras":
        raise RecipeError(f"export to {shown(to)!r} is not known; expected keras")
    return export_keras(read_bundle(Path(run)), Path(out), input=input)


def methods(name: str | None = None) -> list[Method]:
    """All fine-tuning methods, or the one of that name."""
    return list(METHODS.values()) if name is None else [method_named(name)]


def clock_for(budget: str | float | None) -> Clock:
    """A clock that has run since the process started: for command lines."""
    return Clock.start(parse_budget(budget), from_process_start=True)


def report(run: str | os.PathLike[str], *, lang: str = "en", out: str | os.PathLike[str] | None = None) -> Path:
    """Write a finished run's report anew from its result.json, into its report.html or `out`; returns the path.

    lang: "en" or "zh", of the page's own words. RecipeError for another.
    """
    folder = Path(run)
    page = render(read_facts(folder), read_pictures(folder), lang=lang)
    path = folder / REPORT if out is None else Path(out)
    write_whole(path, page)
    return path


def report_runs(
    runs: Sequence[str | os.PathLike[str]], *, out: str | os.PathLike[str] = "runs.html"
) -> tuple[Path, list[Compared], int]:
    """Finished runs side by side, on the test images that all have: (page, rows, images in common).

    Each run's kept model is paired with the first's, image by image. NotEnoughData when no test image is in common.
    """
    if len({Path(run).resolve() for run in runs}) < 2:
        raise RecipeError("to compare runs, name at least two different ones: burnish report RUN RUN...")
    named = [(os.fspath(run), read_facts(Path(run)), read_answers(Path(run))) for run in runs]
    rows, n = side_by_side(named)
    write_whole(Path(out), page_of_runs(rows, n))
    return Path(out), rows, n


def explain(
    run: str | os.PathLike[str],
    images: Sequence[str | os.PathLike[str]],
    *,
    out: str | os.PathLike[str] = "explained",
    target: str | None = None,
    predictor: Predictor | None = None,
) -> tuple[list[Explained], Sanity | None]:
    """Where the model looks (Grad-CAM): image and overlay side by side as PNG in the folder `out`, one for each image.

    target: the class to look for, by default the likeliest. With the rows comes whether the maps change when the weights are
    shuffled, as maps that mean something must. NoSuchName for a class that the model does not have.
    """
    return explained(predictor or Predictor.open(Path(run)), expand(images), Path(out), target=target)


def ood(run: str | os.PathLike[str], data: Data, other: Data, *, predictor: Predictor | None = None) -> dict[str, Any]:
    """How well the package tells images of `other` from those of `data`, by what is unlike its training images.

    Of data with splits the test images are taken; labels play no part. AUROC and the share of each beyond the package's limit.
    """
    predictor = predictor or Predictor.open(Path(run))
    inside, outside = (_images_of(one) for one in (data, other))
    return strangers(predictor, inside, outside)


def _images_of(data: Data) -> list[ImageLike]:
    """The test images of data that has splits, all of other data; a folder or file of images needs no labels."""
    if isinstance(data, (str, os.PathLike)) and (found := _bare_images(Path(data))):
        return found
    catalog = open_source(data, for_training=False)
    rows = [row for row in range(len(catalog)) if catalog.splits[row] == "test"] or list(range(len(catalog)))
    return [partial(catalog.image, row) for row in rows]


def _bare_images(path: Path) -> list[ImageLike]:
    """The images of a folder that holds no folders of images, or a single image file; empty for anything else."""
    if path.is_dir() and not any(entry.is_dir() for entry in path.iterdir()):
        return [path / name for name in sorted(scan(path).images)]
    return [path] if path.is_file() and path.suffix.lower() in SUFFIXES else []


def board(runs: Sequence[str | os.PathLike[str]], *, port: int = 6006) -> list[str]:
    """The command that shows runs in TensorBoard on this machine alone; NotARun when one has no event files."""
    found = []
    for run in map(Path, runs):
        if not list(run.rglob("events.out.tfevents.*")):
            raise NotARun(f"{shown(str(run))} holds no TensorBoard events; expected the folder of a run or of several")
        found.append((run.name or "run", run))
    where = (
        ["--logdir", str(found[0][1])] if len(found) == 1 else ["--logdir_spec", ",".join(f"{n}:{r}" for n, r in found)]
    )
    return [sys.executable, "-m", "tensorboard.main", *where, "--host", "127.0.0.1", "--port", str(port)]


def command_of(data: str | os.PathLike[str], recipe: Recipe) -> str:
    """The command line that does this again."""
    return shlex.join(["burnish", "fit", str(data), *settings_of(recipe)])


def settings_of(recipe: Recipe) -> list[str]:
    """The options that say what differs from the defaults."""
    words, default = [], Recipe()
    for name in (field.name for field in fields(Recipe) if field.name != "budget_seconds"):
        value = getattr(recipe, name)
        if name == "search" and value:
            words.append("--search")
        elif value != getattr(default, name):
            words += [f"--{name.replace('_', '-')}", str(value)]
    words += ["--budget", "none" if recipe.budget_seconds is None else f"{recipe.budget_seconds:g}s"]
    return words


def _ordered(prediction: Prediction, classes: tuple[str, ...]) -> list[float]:
    """A full prediction's probabilities in the order of the classes."""
    found = dict(zip(prediction.classes, prediction.probabilities, strict=True))
    if len(found) != len(classes):
        raise NotARun("the model's answer does not name every class")
    return [found[name] for name in classes]
