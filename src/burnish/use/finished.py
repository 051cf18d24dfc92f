"""A finished run in use: its model on images, its report, what it looks at; the verbs that train nothing."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import TemplateError
from numpy.typing import NDArray

from burnish.data.looks import read_digests
from burnish.data.sources import Data
from burnish.disk import expanded, plain_disk_errors, replacing, write_whole
from burnish.elsewhere import attribute_elsewhere
from burnish.errors import Interrupted, NotARun, RecipeError, shown, spoilt
from burnish.measure.intervals import Interval
from burnish.measure.verdict import Verdict
from burnish.record.answers import read_answers
from burnish.record.folder import (
    IMAGES,
    PICTURES,
    REPORT,
    RESULT,
    is_of_a_run,
    read_facts,
    read_pictures,
)
from burnish.reports.cells import paragraph
from burnish.reports.explain import Sanity
from burnish.reports.page import render
from burnish.reports.runs import Compared, side_by_side
from burnish.reports.runs import page_of as page_of_runs
from burnish.ship.answering import LIKELIEST, Asked, Prediction
from burnish.ship.images import ImageLike, Images, Paths, expand, listed
from burnish.ship.predictor import Predictor, write_csv
from burnish.use.evaluating import Evaluation, evaluate
from burnish.use.explaining import Explained, explained

# TensorBoard as a program; while it starts it lets Ctrl-C through as a traceback.
_BOARD = f"""import runpy, sys
try:
    runpy.run_module("tensorboard.main", run_name="__main__", alter_sys=True)
except KeyboardInterrupt:
    sys.exit({Interrupted.exit_code})
"""


@dataclass(frozen=True)
class Result:
    """A finished run, opened: its facts and its model."""

    folder: Path
    facts: dict[str, Any]  # the content of result.json
    predictor: Predictor

    def __repr__(self) -> str:
        with as_written(self.folder):
            return (
                f"Result({shown(str(self.folder))}: {shown(str(self.facts['kept']))} kept. {self.verdict.sentence()})"
            )

    def _repr_html_(self) -> str:
        with as_written(self.folder):
            return paragraph(f"{self.facts['kept']} kept", self.verdict.sentence(), str(self.report))

    @property
    def verdict(self) -> Verdict:
        """Tuned against frozen probe on the same test images."""
        with as_written(self.folder):
            return Verdict.from_json(self.facts["verdict"])

    if not TYPE_CHECKING:  # for type checkers there is nothing of any name

        def __getattr__(self, name: str) -> Any:
            here = attribute_elsewhere(name)
            raise AttributeError(f"a Result has no {name!r}{f'; here: {here}' if here else ''}", name=name, obj=self)

    def __fspath__(self) -> str:
        """Its folder: what takes the path of a run takes a result."""
        return os.fspath(self.folder)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the probabilities."""
        return self.predictor.bundle.classes

    @property
    def scores(self) -> dict[str, Any]:
        """What the kept model came to on the test images, as result.json has it: accuracy, per_class, confusion, …"""
        with as_written(self.folder):
            return self.facts["scores"][self.facts["kept_role"]]

    @property
    def accuracy(self) -> Interval:
        """The share of test images that the kept model has right; with several classes an image the Jaccard index."""
        with as_written(self.folder):
            return Interval.from_json(self.scores["accuracy"])

    @property
    def history(self) -> list[dict[str, Any]]:
        """A row for each epoch of the training, as history.jsonl has them: plain values, for a table or a plot."""
        with as_written(self.folder):
            return self.facts["history"]

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.folder / REPORT

    def predict(
        self,
        images: Images,
        *,
        top: int = 1,
        reject: float | None = None,
        sets: float | None = None,
        find: Mapping[str, float] | None = None,
    ) -> list[Prediction]:
        """One Prediction an image: paths, folders, bytes, Pillow images, arrays, a data set; one alone too.

        See `burnish.predict`.
        """
        return predict(self.folder, images, top=top, reject=reject, sets=sets, find=find, predictor=self.predictor)

    def predict_proba(self, images: Images) -> NDArray[np.float64]:
        """float64 [n k], in the order of `classes`; raises UnreadableImage on the first bad image."""
        return self.predictor.probabilities(images)

    def features(self, images: Images) -> NDArray[np.float32]:
        """float32 [n d], what the kept model's head sees of each image; raises UnreadableImage on the first bad one."""
        return self.predictor.features(images)

    def evaluate(self, data: Data) -> Evaluation:
        """Scores on labelled images that were not part of the run."""
        return evaluate(self.folder, data, predictor=self.predictor)


def open_run(path: str | os.PathLike[str]) -> Result:
    """A finished run; NotARun when the folder is not one or was changed."""
    folder = expanded(path)
    facts = read_facts(folder)
    return Result(folder, facts, Predictor.open(folder))


def predict(
    run: str | os.PathLike[str],
    images: Images,
    *,
    top: int = 1,
    reject: float | None = None,
    sets: float | None = None,
    find: Mapping[str, float] | None = None,
    device: str = "cpu",
    predictor: Predictor | None = None,
) -> list[Prediction]:
    """The class of each image; folders, tables and archives stand for those in them. An unreadable one carries its `problem`.

    images: one or several, of those that `fit` takes: paths, bytes or open files, Pillow images, arrays or tensors of uint8,
    uint16 or floats from 0 to 1, [h w 3], [3 h w] or [h w]; a data set or a table too. A generator is drawn a batch at a time.
    device: what computes, of a predictor that is not given: "cpu", "auto", "cuda", …
    reject: the accuracy wanted of the answers, such as 0.99; what is less sure, or unlike the training images, is `declined`.
    sets: how often the `set` of classes must hold the true one, such as 0.95.
    find: which share of a class's images is to be found, such as {"crack": 0.95}: that class is then the answer from the
    probability on that held-out images say finds so many. RecipeError when the package cannot say so.
    """
    asked = listed(images)
    found = _found(asked)
    if hasattr(asked, "__len__"):  # that a file is missing is told before anything is looked at
        found = list(found)
    predictor = predictor or Predictor.open(expanded(run), device)
    return predictor.predict(found, top=top, reject=reject, sets=sets, find=find)


def _found(images: Iterable[Any]) -> Iterator[ImageLike]:
    """Images, and those that the folders, tables and archives among them hold."""
    for image in images:
        if isinstance(image, (str, os.PathLike)):
            yield from expand([image])
        else:
            yield image


def predict_stream(
    run: str | os.PathLike[str],
    images: Paths,
    *,
    asked: Asked = LIKELIEST,
    predictor: Predictor | None = None,
) -> Iterator[Prediction]:
    """`predict` one by one, in bounded memory; mistakes in the arguments are raised at once."""
    return (predictor or Predictor.open(expanded(run))).stream(expand(images), asked=asked)


def write_predictions(
    path: str | os.PathLike[str],
    predictor: Predictor,
    images: Sequence[str],
    *,
    asked: Asked = LIKELIEST,
) -> int:
    """Write predictions as CSV; returns how many images could not be read.

    A file is written whole or not at all; "-" is the standard output, line by line as they come.
    """
    if not os.fspath(path):
        raise RecipeError("the name of the CSV is empty; name a file, or - for the standard output")
    to_stdout = os.fspath(path) == "-"
    path, files, top = expanded(path), expand(images), min(asked.top, len(predictor.bundle.classes))
    if not to_stdout:
        refuse_others(path, b"path,", inputs=[*map(expanded, images), *(one for one in files if isinstance(one, Path))])
    unreadable, predictions = 0, predictor.stream(files, asked=asked)

    def counted() -> Iterator[Prediction]:
        nonlocal unreadable
        for prediction in predictions:
            unreadable += prediction.problem is not None
            yield prediction

    how = {"top": top, "several": predictor.bundle.several, "with_sets": asked.sets is not None}
    if to_stdout:
        write_csv(sys.stdout, counted(), **how)
        return unreadable
    with plain_disk_errors(path, "name another file"), replacing(path) as file:
        write_csv(file, counted(), **how)
    return unreadable


def report(run: str | os.PathLike[str], *, lang: str = "en", out: str | os.PathLike[str] | None = None) -> Path:
    """Write a finished run's report anew from its result.json, into its report.html or `out`; returns the path.

    lang: "en" or "zh", of the page's own words. RecipeError for another.
    """
    folder = expanded(run)
    with as_written(folder):
        page = render(read_facts(folder), read_pictures(folder), lang=lang)
    path = folder / REPORT if out is None else expanded(out)
    if path.name != REPORT:
        refuse_others(path, b"<!doctype html")
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
            f"{listed}: {files} is not as burnish writes it ({spoilt(error, ours=False)}); copy the folder again from where it "
            "was made"
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
    facts = [read_facts(folder) for folder in folders]  # first: what has no record is told by what it is
    contents = [read_digests(folder / IMAGES) for folder in folders]
    if all(contents):  # else they are known by their paths alone
        answers = [read_answers(folder).of_contents(known) for folder, known in zip(folders, contents, strict=True)]
    else:
        answers = [read_answers(folder) for folder in folders]
    named = list(zip([os.fspath(run) for run in runs], facts, answers, strict=True))
    with as_written(*folders):
        rows, n = side_by_side(named)
        page = page_of_runs(rows, n)
    refuse_others(expanded(out), b"<!doctype html")
    write_whole(expanded(out), page, follows=True)
    return expanded(out), rows, n


def refuse_others(path: Path, begins: bytes, *, inputs: Sequence[Path] = ()) -> None:
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
        what = "holds, lists or is one of the images" if among else "is there and is another file"
        raise RecipeError(f"{shown(str(path))} {what}; name another file, or remove it")


def explain(
    run: str | os.PathLike[str],
    images: Images,
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
    found = list(_found(listed(images)))
    return explained(predictor or Predictor.open(expanded(run)), found, expanded(out), target=target, how=how)


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
    # -P: without it a json.py in the working folder would be run for Python's own.
    return [sys.executable, "-P", "-c", _BOARD, *where, "--host", "127.0.0.1", "--port", str(port)]
