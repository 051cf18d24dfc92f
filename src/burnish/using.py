"""A finished run in use: its model on images, its report, what it looks at; the verbs that train nothing."""

from __future__ import annotations

import html
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import TemplateError

from burnish.answers import read_answers
from burnish.backbones.spec import Learnt
from burnish.data.catalog import Catalog
from burnish.data.contents import is_redrawn
from burnish.data.looks import look_at, read_digests
from burnish.data.sources import open_source
from burnish.data.sources.assemble import class_names
from burnish.data.sources.scan import SUFFIXES, scan
from burnish.disk import expanded, plain_disk_errors, read_plain_json, replacing, write_whole
from burnish.errors import DataError, NoSuchName, NotARun, NotEnoughData, RecipeError, nearest, shown
from burnish.explaining import Explained, explained, strangers
from burnish.labels import SEPARATOR, classes_of
from burnish.measure.grouped import count_of
from burnish.measure.scores import Scores, score
from burnish.measure.several import SeveralScores, score_several
from burnish.measure.verdict import Verdict, percent
from burnish.reports.explain import Sanity
from burnish.reports.page import render
from burnish.reports.runs import Compared, side_by_side
from burnish.reports.runs import page_of as page_of_runs
from burnish.result import (
    IMAGES,
    LEARNT,
    PICTURES,
    REPORT,
    RESULT,
    SPLITS,
    is_of_a_run,
    read_facts,
    read_pictures,
    sides_in,
)
from burnish.runtime import Nobody, Watcher, cores
from burnish.ship.bundle import Bundle, read_bundle
from burnish.ship.keras import export_keras
from burnish.ship.predictor import ImageLike, Prediction, Predictor, expand, listed, write_csv

_ALL_NAMED, _NAMED = 100, 5  # classes up to which `evaluate` keeps them all with each prediction; how many of more
# A path or name of labelled images, (images, labels), a map-style data set, or a Catalog: see `data.sources.open_source`.
Data = Any


@dataclass(frozen=True)
class Result:
    """A finished run, opened: its facts and its model."""

    folder: Path
    facts: dict[str, Any]  # the content of result.json
    predictor: Predictor

    def __repr__(self) -> str:
        return f"Result({shown(str(self.folder))}: {shown(str(self.facts['kept']))} kept. {self.verdict.sentence()})"

    def _repr_html_(self) -> str:
        lines = (f"{self.facts['kept']} kept", self.verdict.sentence(), str(self.report))
        return "<p>" + "<br>".join(html.escape(shown(line)) for line in lines) + "</p>"

    @property
    def verdict(self) -> Verdict:
        """Tuned against frozen probe on the same test images."""
        with as_written(self.folder):
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
    learnt: int = 0  # of the images, those with the path of one that the run was trained on or chosen by
    groups: int | None = None  # that the images are of, where the data names groups

    def __repr__(self) -> str:
        n, score = self.scores.n, self.scores.accuracy
        left_out = f", {len(self.named)} left out by name" if self.named else ""
        return (
            f"Evaluation({n:,} images{left_out}: accuracy {percent(score.value)}, 95 % interval {percent(score.low)} to "
            f"{percent(score.high)})"
        )


def called(data: Any) -> str:
    """What the report and the run folder call the data."""
    if isinstance(data, (str, os.PathLike)):
        return os.fspath(data)
    return data.source if isinstance(data, Catalog) else "images"


def open_run(path: str | os.PathLike[str]) -> Result:
    """A finished run; NotARun when the folder is not one or was changed."""
    folder = expanded(path)
    facts = read_facts(folder)
    return Result(folder, facts, Predictor.open(folder))


def predict(
    run: str | os.PathLike[str],
    images: Sequence[ImageLike | str | os.PathLike[str]],
    *,
    top: int = 1,
    reject: float | None = None,
    sets: float | None = None,
    device: str = "cpu",
    predictor: Predictor | None = None,
) -> list[Prediction]:
    """The class of each image; folders among `images` are searched. An unreadable image carries its `problem`.

    device: what computes, of a predictor that is not given: "cpu", "auto", "cuda", …
    reject: the accuracy wanted of the answers, such as 0.99; what is less sure, or unlike the training images, is `declined`.
    sets: how often the `set` of classes must hold the true one, such as 0.95. RecipeError when the package cannot say so.
    """
    found: list[ImageLike] = []
    for image in listed(images):
        found += expand([image]) if isinstance(image, (str, os.PathLike)) else [image]
    return (predictor or Predictor.open(expanded(run), device)).predict(found, top=top, reject=reject, sets=sets)


def evaluate(
    run: str | os.PathLike[str],
    data: Data,
    *,
    watcher: Watcher | None = None,
    device: str = "cpu",
    predictor: Predictor | None = None,
) -> Evaluation:
    """Score a run's model on labelled images; classes are matched by name, an unknown one is an error (P2).

    Of data with splits the test images are scored, else all of them. A model that tells several classes an image is scored as
    such, on data with one class an image too; DataError when it is the other way round. Predictions name every class, or of
    many the five likeliest. device: as for `predict`.
    """
    predictor, watcher = predictor or Predictor.open(expanded(run), device), watcher or Nobody()
    catalog = open_source(data, for_training=False)
    classes = predictor.bundle.classes
    parted = {name: _parts_known(name, predictor.bundle) for name in catalog.classes}
    unknown = [name for name in catalog.classes if any(part not in classes for part in parted[name])]
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
    every, predictions = np.zeros((len(rows), len(classes))), list[Prediction]()
    for one in predictor.stream(images, top=len(classes), names=names, on_progress=watcher.advance):
        if one.problem is None:
            every[len(predictions)] = _ordered(one, classes)
        if len(classes) > _ALL_NAMED:
            one = replace(one, classes=one.classes[:_NAMED], probabilities=one.probabilities[:_NAMED])
        predictions.append(one)
    good = [place for place, prediction in enumerate(predictions) if prediction.problem is None]
    if not good:
        raise NotEnoughData(f"{shown(called(data))}: none of its {len(rows)} images could be read")
    probabilities = every[good]
    names = tuple(catalog.label(rows[place]) for place in good)
    told = [[catalog.classes[one] for one in classes_of(catalog.labels, rows[place])] for place in good]
    held = [[part for name in one for part in parted[name]] for one in told]
    named = [{"path": named.path, "reason": named.reason} for named in catalog.named]
    named += [
        {"path": catalog.paths[row], "reason": prediction.problem}
        for row, prediction in zip(rows, predictions, strict=True)
        if prediction.problem is not None
    ]
    answers = [predictions[place] for place in good]
    groups = catalog.grouped([rows[place] for place in good])
    learnt = _learnt(expanded(run), catalog, np.array([rows[place] for place in good], np.int64))
    if predictor.bundle.thresholds is not None:
        truth = np.array([[name in one for name in classes] for one in held])
        scores = score_several(probabilities, truth, classes, np.array(predictor.bundle.thresholds), groups)
    else:
        labels = np.array([classes.index(one[0]) for one in held])
        scores = score(probabilities, labels, classes, groups)
    return Evaluation(scores, answers, names, named, learnt, None if groups is None else count_of(groups))


def learnt_from(run: Path, *, further: bool = False) -> tuple[set[str], Learnt]:
    """The images that a run's model was trained on or chosen by: paths, and hashes of their content.

    With those that the network had learnt from before the run, where it was itself an earlier run's (`further`: it was, so that
    there must be a note of them). Of an arm of a comparison the comparison's folder tells. NotARun where what tells is damaged.
    """
    home = run.parent.parent if run.parent.name == "arms" and not (run / SPLITS).is_file() else run
    paths = {path for path, side in sides_in(home / SPLITS).items() if side in ("train", "val")}
    digests = read_digests(home / IMAGES) if paths else {}
    before = _learnt_before(home, further=further)
    hashes = frozenset({digests[path] for path in paths if path in digests}) | before.hashes
    return paths, Learnt(hashes, before.known and bool(paths) and all(path in digests for path in paths))


def _learnt_before(home: Path, *, further: bool) -> Learnt:
    """What the network had learnt from when the run in this folder began; further: whether it had been tuned at all."""
    try:
        told = read_plain_json(home / LEARNT)
        hashes, known = told["hashes"], told["known"]
        if (
            not isinstance(hashes, list)
            or not all(isinstance(one, str) for one in hashes)
            or not isinstance(known, bool)
        ):
            raise ValueError("it is not what burnish wrote")
        return Learnt(frozenset(hashes), known)
    except FileNotFoundError:
        return Learnt(frozenset(), not further)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NotARun(f"{shown(str(home / LEARNT))} is damaged ({shown(str(error))[:80]})") from None


def _learnt(run: Path, catalog: Catalog, rows: np.ndarray) -> int:
    """How many of these entries the run's model was made from: by what is in them, or, where that is not known, by path."""
    paths, learnt = learnt_from(run)
    if not learnt.hashes or is_redrawn(catalog.contents):
        return sum(catalog.paths[row] in paths for row in rows)
    return sum(digest in learnt.hashes for digest in look_at(catalog, rows, workers=cores()).digests)


def _parts_known(name: str, bundle: Bundle) -> tuple[str, ...]:
    """The classes that a name says to a model of several an image: "a|b" may be two, where no other image shows it."""
    if not bundle.several or name in bundle.classes or SEPARATOR not in name:
        return (name,)
    parts = class_names(name.split(SEPARATOR))
    return parts if set(parts) <= set(bundle.classes) else (name,)


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
    return (predictor or Predictor.open(expanded(run))).stream(expand(images), top=top, reject=reject, sets=sets)


def write_predictions(
    path: str | os.PathLike[str],
    predictor: Predictor,
    images: Sequence[str],
    *,
    top: int,
    reject: float | None = None,
    sets: float | None = None,
) -> int:
    """Write predictions as CSV; returns how many images could not be read.

    A file is written whole or not at all; "-" is the standard output, line by line as they come.
    """
    if not os.fspath(path):
        raise RecipeError("the name of the CSV is empty; name a file, or - for the standard output")
    to_stdout = os.fspath(path) == "-"
    path, files, top = expanded(path), expand(images), min(top, len(predictor.bundle.classes))
    if not to_stdout:
        _refuse_others(path, b"path,", inputs=[one for one in files if isinstance(one, Path)])
    unreadable, predictions = 0, predictor.stream(files, top=top, reject=reject, sets=sets)

    def counted() -> Iterator[Prediction]:
        nonlocal unreadable
        for prediction in predictions:
            unreadable += prediction.problem is not None
            yield prediction

    how = {"top": top, "several": predictor.bundle.several, "with_sets": sets is not None}
    if to_stdout:
        write_csv(sys.stdout, counted(), **how)
        return unreadable
    with plain_disk_errors(path, "name another file"), replacing(path) as file:
        write_csv(file, counted(), **how)
    return unreadable


def export(
    run: str | os.PathLike[str], out: str | os.PathLike[str], *, to: str = "keras", input: str = "prepared"
) -> Path:
    """Write a run's model in another format; returns the file.

    to: "keras", for models that came from a Keras file: a .keras file that Keras and TensorFlow open, its classes and
    preprocessing in the .json beside it. input: what the file takes, "prepared" as the original did, or "pixels".
    """
    if to != "keras":
        raise RecipeError(f"export to {shown(to)!r} is not known; expected keras")
    return export_keras(read_bundle(expanded(run)), expanded(out), input=input)


def report(run: str | os.PathLike[str], *, lang: str = "en", out: str | os.PathLike[str] | None = None) -> Path:
    """Write a finished run's report anew from its result.json, into its report.html or `out`; returns the path.

    lang: "en" or "zh", of the page's own words. RecipeError for another.
    """
    folder = expanded(run)
    with as_written(folder):
        page = render(read_facts(folder), read_pictures(folder), lang=lang)
    path = folder / REPORT if out is None else expanded(out)
    if path.name != REPORT:
        _refuse_others(path, b"<!doctype html")
    write_whole(path, page, follows=out is not None)
    return path


@contextmanager
def as_written(*folders: Path, files: str = f"{RESULT} or {PICTURES}") -> Iterator[None]:
    """NotARun where what a run's folder says of the run cannot be shown: it came from elsewhere, or was changed by hand."""
    try:
        yield
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, TemplateError) as error:
        listed = ", ".join(shown(str(folder)) for folder in folders)
        raise NotARun(
            f"{listed}: {files} is not as burnish writes it ({type(error).__name__}: {shown(str(error))[:120]})"
        ) from error


def report_runs(
    runs: Sequence[str | os.PathLike[str]], *, out: str | os.PathLike[str] = "runs.html"
) -> tuple[Path, list[Compared], int]:
    """Finished runs side by side, on the test images that all have: (page, rows, images in common).

    Each run's kept model is paired with the first's, image by image. NotEnoughData when no test image is in common.
    """
    if len({expanded(run).resolve() for run in runs}) < 2:
        raise RecipeError("to compare runs, name at least two different ones: burnish report RUN RUN...")
    folders = [expanded(run) for run in runs]
    contents = [read_digests(folder / IMAGES) for folder in folders]
    if all(contents):  # else they are known by their paths alone
        answers = [read_answers(folder).of_contents(known) for folder, known in zip(folders, contents, strict=True)]
    else:
        answers = [read_answers(folder) for folder in folders]
    facts = [read_facts(folder) for folder in folders]
    named = list(zip([os.fspath(run) for run in runs], facts, answers, strict=True))
    with as_written(*folders):
        rows, n = side_by_side(named)
        page = page_of_runs(rows, n)
    _refuse_others(expanded(out), b"<!doctype html")
    write_whole(expanded(out), page, follows=True)
    return expanded(out), rows, n


def _refuse_others(path: Path, begins: bytes, *, inputs: Sequence[Path] = ()) -> None:
    """RecipeError where a file of that name is there and is none of this kind, or is one of the images.

    begins: what one of the kind begins with; an empty file is of any.
    """
    if is_of_a_run(path):
        raise RecipeError(f"{shown(str(path))} is the run's own; name another file")
    if not os.path.isfile(path):  # a pipe would be waited for
        return
    try:
        with open(path, "rb") as file:
            first = file.read(256).lstrip().lower()
        among = any(os.path.samefile(path, one) for one in inputs if os.path.exists(one))
    except OSError:  # what writes it says so
        return
    if among or (first and not first.startswith(begins)):
        what = "is one of the images" if among else "is there and is another file"
        raise RecipeError(f"{shown(str(path))} {what}; name another file, or remove it")


def explain(
    run: str | os.PathLike[str],
    images: Sequence[str | os.PathLike[str]],
    *,
    out: str | os.PathLike[str] = "explained",
    target: str | None = None,
    how: str = "grad-cam",
    predictor: Predictor | None = None,
) -> tuple[list[Explained], Sanity | None]:
    """Where the model looks: image and overlay side by side as PNG in the folder `out`, one for each image.

    target: the class to look for, by default the likeliest. how: "grad-cam", or "rollout" for the attention of a vision
    transformer. With the rows comes whether the maps change when the weights are
    shuffled, as maps that mean something must. NoSuchName for a class that the model does not have.
    """
    return explained(predictor or Predictor.open(expanded(run)), expand(images), expanded(out), target=target, how=how)


def ood(run: str | os.PathLike[str], data: Data, other: Data, *, predictor: Predictor | None = None) -> dict[str, Any]:
    """How well the package tells images of `other` from those of `data`, by what is unlike its training images.

    Of data with splits the test images are taken; labels play no part. AUROC and the share of each beyond the package's limit.
    """
    predictor = predictor or Predictor.open(expanded(run))
    inside, outside = (_images_of(one) for one in (data, other))
    return strangers(predictor, inside, outside)


def _images_of(data: Data) -> list[ImageLike]:
    """The test images of data that has splits, all of other data; a folder or file of images needs no labels."""
    if isinstance(data, (str, os.PathLike)) and (found := _bare_images(expanded(data))):
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
    found: dict[str, Path] = {}
    for run in dict.fromkeys(map(Path, runs)):
        if not list(run.rglob("events.out.tfevents.*")):
            raise NotARun(f"{shown(str(run))} holds no TensorBoard events; expected the folder of a run or of several")
        name = re.sub("[:,]", "-", run.absolute().name) or "run"
        if name in found:  # TensorBoard would show the last of them alone
            name = next(other for other in (f"{name} ({n})" for n in count(2)) if other not in found)
        found[name] = run
    if len(found) > 1 and any("," in str(run) for run in found.values()):
        raise NotARun("TensorBoard takes no commas in the folders of several runs; rename them, or show one at a time")
    spec = ",".join(f"{name}:{run}" for name, run in found.items())
    where = ["--logdir", str(next(iter(found.values())))] if len(found) == 1 else ["--logdir_spec", spec]
    return [sys.executable, "-m", "tensorboard.main", *where, "--host", "127.0.0.1", "--port", str(port)]


def _ordered(prediction: Prediction, classes: tuple[str, ...]) -> list[float]:
    """A full prediction's probabilities in the order of the classes."""
    found = dict(zip(prediction.classes, prediction.probabilities, strict=True))
    if len(found) != len(classes):
        raise NotARun("the model's answer does not name every class")
    return [found[name] for name in classes]
