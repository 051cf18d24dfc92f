"""A finished model held against labelled images that were no part of its run, and against strangers."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from burnish.data.catalog import Catalog
from burnish.data.sources import Data, called, open_source
from burnish.data.sources.assemble import class_names
from burnish.data.sources.scan import SUFFIXES, scan
from burnish.disk import expanded
from burnish.errors import DataError, NoSuchName, NotARun, NotEnoughData, nearest, shown
from burnish.labels import SEPARATOR, classes_of
from burnish.measure.grouped import count_of
from burnish.measure.intervals import Interval, percent
from burnish.measure.scores import Scores, score
from burnish.measure.several import SeveralScores, score_several
from burnish.record.learnt import FURTHER, learnt_among
from burnish.reports.cells import paragraph, table
from burnish.runtime import Watcher
from burnish.ship.answering import Asked, Prediction
from burnish.ship.bundle import Bundle
from burnish.ship.images import ImageLike
from burnish.ship.predictor import Predictor
from burnish.use.explaining import strangers
from burnish.watching import Watching, settled_watcher, told_if_slow

_ALL_NAMED, _NAMED = 100, 5  # classes up to which `evaluate` keeps them all with each prediction; how many of more
_SHOWN = 10  # classes, and pairs of them, that a notebook shows


@dataclass(frozen=True)
class Evaluation:
    """A model's scores on a labelled set."""

    scores: Scores | SeveralScores
    predictions: list[Prediction]
    labels: tuple[str, ...]  # true class of each prediction; of several, a|b
    named: list[dict[str, str]]  # files that could not be used, with the reason
    learnt: int = 0  # of the images, those with the path of one that the run was trained on or chosen by
    groups: int | None = None  # that the images are of, where the data names groups
    learnt_known: bool = True  # whether the run tells all that it learnt from, by content; else `learnt` is the least

    def __repr__(self) -> str:
        n, score = self.scores.n, self.scores.accuracy
        left_out = f", {len(self.named)} left out by name" if self.named else ""
        left_out += f", careful: the run learnt from {self.learnt:,} of them" if self.learnt else ""
        return (
            f"Evaluation({n:,} images{left_out}: accuracy {percent(score.value)}, 95 % interval {percent(score.low)} to "
            f"{percent(score.high)})"
        )

    def _repr_html_(self) -> str:
        worst = sorted((one for one in self.scores.per_class if one.n), key=lambda one: (one.recall.value, one.name))
        recalls = [(one.name, f"{one.hits:,} of {one.n:,}", percent(one.recall.value)) for one in worst[:_SHOWN]]
        found = paragraph(repr(self)) + table(("class, lowest recall first", "right", "recall"), recalls)
        pairs = self.confused()[:_SHOWN]
        return found + (table(("class", "taken for", "images"), pairs) if pairs else "")

    @property
    def accuracy(self) -> Interval:
        """The share of images that the model has right; with several classes an image the Jaccard index."""
        return self.scores.accuracy

    def mistakes(self) -> list[tuple[str, Prediction]]:
        """(true class, answer) of the images that the model has wrong, the surest answers first."""
        pairs = [pair for pair in zip(self.labels, self.predictions, strict=True) if _is_wrong(*pair)]
        return sorted(pairs, key=lambda pair: (-(pair[1].probability or 0.0), pair[1].path))

    def confused(self) -> list[tuple[str, str, int]]:
        """(true class, answer, images) of what was taken for something else, the commonest first."""
        counts = Counter((label, str(answer.label)) for label, answer in self.mistakes())
        rows = sorted(counts.items(), key=lambda one: (-one[1], one[0]))
        return [(label, answer, images) for (label, answer), images in rows]


def _is_wrong(label: str, answer: Prediction) -> bool:
    """Whether the answer is another class than that, or of several, a|b, others."""
    if answer.labels is None:
        return answer.label != label
    return set(answer.labels) != {name for name in label.split(SEPARATOR) if name}


def evaluate(
    run: str | os.PathLike[str],
    data: Data,
    *,
    watcher: Watching = "auto",
    device: str = "cpu",
    predictor: Predictor | None = None,
) -> Evaluation:
    """Score a run's model on labelled images; classes are matched by name, an unknown one is an error (P2).

    Of data with splits the test images are scored, else all of them. A model that tells several classes an image is scored as
    such, on data with one class an image too; DataError when it is the other way round. Predictions name every class, or of
    many the five likeliest. device: as for `predict`.
    """
    predictor, watcher = predictor or Predictor.open(expanded(run), device), settled_watcher(watcher)
    bundle = predictor.bundle
    with told_if_slow(f"reading {called(data)}", watcher):
        catalog, rows, named = labelled(data, bundle)
    watcher.stage("evaluate", total=len(rows))
    probabilities, predictions = _answered(predictor, catalog, rows, watcher)
    used = [row for row, prediction in zip(rows, predictions, strict=True) if prediction.problem is None]
    if not used:
        first = f"first: {shown(catalog.name(rows[0]))}: {shown(str(predictions[0].problem))}"
        raise NotEnoughData(f"{shown(called(data))}: none of its {len(rows)} images could be read ({first})")
    unread = [
        {"path": catalog.paths[row], "reason": prediction.problem}
        for row, prediction in zip(rows, predictions, strict=True)
        if prediction.problem is not None
    ]
    groups = catalog.grouped(used)
    learnt, learnt_known = learnt_among(
        expanded(run), catalog, np.array(used, np.int64), further=bool(bundle.facts.get(FURTHER))
    )
    return Evaluation(
        scores=_scores(probabilities, numbers_of([named[row] for row in used], bundle), bundle, groups),
        predictions=[prediction for prediction in predictions if prediction.problem is None],
        labels=tuple(catalog.label(row) for row in used),
        named=[{"path": named.path, "reason": named.reason} for named in catalog.named] + unread,
        learnt=learnt,
        groups=None if groups is None else count_of(groups),
        learnt_known=learnt_known,
    )


def labelled(data: Data, bundle: Bundle) -> tuple[Catalog, list[int], dict[int, list[str]]]:
    """(the catalogue, its rows that are scored, by row the model's classes that are true); errors as `evaluate` has them."""
    catalog = open_source(data, for_training=False)
    parts = {name: _parts_known(name, bundle) for name in catalog.classes}
    _require_known(parts, bundle)
    if catalog.several and not bundle.several:
        raise DataError(
            f"{shown(called(data))} has several classes an image, and the model was trained to tell one; "
            "give images with one class each, or train a model on such data with burnish fit"
        )
    rows = _test_rows(catalog)
    given = {row: [catalog.classes[index] for index in classes_of(catalog.labels, row)] for row in rows}
    return catalog, rows, {row: [part for name in names for part in parts[name]] for row, names in given.items()}


def numbers_of(truth: list[list[str]], bundle: Bundle) -> np.ndarray:
    """The true classes of each image as the model numbers them: int64 [n], or bool [n k] where it tells several."""
    if bundle.several:
        return np.array([[name in names for name in bundle.classes] for names in truth])
    return np.array([bundle.classes.index(names[0]) for names in truth])


def _require_known(parts: dict[str, tuple[str, ...]], bundle: Bundle) -> None:
    """NoSuchName for a class of the data that the model does not have; parts: the model's classes that each stands for (P2)."""
    unknown = [name for name, own in parts.items() if not set(own) <= set(bundle.classes)]
    if unknown:
        raise NoSuchName(
            f"the data has a class {shown(repr(unknown[0]))} that the model does not know "
            f"(nearest: {nearest(unknown[0], bundle.classes)}); rename the folder or label, or leave those images out"
        )


def _test_rows(catalog: Catalog) -> list[int]:
    """The test images of data that has splits, all of other data."""
    return [row for row in range(len(catalog)) if catalog.splits[row] == "test"] or list(range(len(catalog)))


def _answered(
    predictor: Predictor, catalog: Catalog, rows: list[int], watcher: Watcher
) -> tuple[np.ndarray, list[Prediction]]:
    """Probabilities float64 [n k] of the images that can be read, and a prediction of every one, naming no more than it keeps."""
    classes = predictor.bundle.classes
    images, names = [partial(catalog.image, row) for row in rows], [catalog.name(row) for row in rows]
    probabilities, n = np.zeros((len(rows), len(classes))), 0
    predictions: list[Prediction] = []
    for prediction in predictor.stream(images, asked=Asked(top=len(classes)), names=names, on_progress=watcher.advance):
        if prediction.problem is None:
            probabilities[n] = _ordered(prediction, classes)
            n += 1
        if len(classes) > _ALL_NAMED:
            likeliest, chances = prediction.classes[:_NAMED], prediction.probabilities[:_NAMED]
            prediction = replace(prediction, classes=likeliest, probabilities=chances)
        predictions.append(prediction)
    return probabilities[:n], predictions


def _scores(
    probabilities: np.ndarray, labels: np.ndarray, bundle: Bundle, groups: np.ndarray | None
) -> Scores | SeveralScores:
    """Of probabilities [n k] against labels as `numbers_of` has them; groups: int64 [n], as `Catalog.grouped` has them."""
    if bundle.thresholds is not None:
        return score_several(probabilities, labels, bundle.classes, np.array(bundle.thresholds), groups)
    return score(probabilities, labels, bundle.classes, groups)


def _ordered(prediction: Prediction, classes: tuple[str, ...]) -> list[float]:
    """A full prediction's probabilities in the order of the classes."""
    found = dict(zip(prediction.classes, prediction.probabilities, strict=True))
    if len(found) != len(classes):
        raise NotARun("the model's answer does not name every class")
    return [found[name] for name in classes]


def _parts_known(name: str, bundle: Bundle) -> tuple[str, ...]:
    """The classes that a name says to a model of several an image: "a|b" may be two, where no other image shows it."""
    if not bundle.several or name in bundle.classes or SEPARATOR not in name:
        return (name,)
    parts = class_names(name.split(SEPARATOR))
    return parts if set(parts) <= set(bundle.classes) else (name,)


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
    return [partial(catalog.image, row) for row in _test_rows(catalog)]


def _bare_images(path: Path) -> list[ImageLike]:
    """The images of a folder that holds no folders of images, or a single image file; empty for anything else."""
    if path.is_dir() and not any(entry.is_dir() for entry in path.iterdir()):
        return [path / name for name in sorted(scan(path).images)]
    return [path] if path.is_file() and path.suffix.lower() in SUFFIXES else []
