"""The scores of one model on one set of images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from burnish.errors import DataError, ModelError, NotEnoughData
from burnish.labels import log_losses, several
from burnish.measure.bootstrap import (
    Ranking,
    bootstrapped,
    hidden_by_few,
    images_or_groups,
    mean_interval,
    mean_of_known,
    share,
    times_for,
    widened,
)  # fmt: skip
from burnish.measure.intervals import Interval, percent, wilson

_LARGEST_MATRIX = 500  # classes; of more, a record holds the cells that are not zero
_SUM_TOLERANCE = 1e-3  # of a row of probabilities; half precision sums to 1 within about this


@dataclass(frozen=True)
class ClassScore:
    """How one class fares."""

    name: str
    n: int  # images of the class
    hits: int  # of them, named rightly
    predicted: int  # images that were given this name
    recall: Interval  # hits / n; nan without images of the class
    precision: float  # hits / predicted, fraction 0 to 1; nan when never predicted

    def to_json(self) -> dict[str, Any]:
        """Plain values; not-a-number becomes None."""
        precision = None if math.isnan(self.precision) else self.precision
        return {
            "name": self.name,
            "n": self.n,
            "hits": self.hits,
            "predicted": self.predicted,
            "recall": self.recall.to_json(),
            "precision": precision,
        }


@dataclass(frozen=True, eq=False, repr=False)
class Scores:
    """All scores of one model on n images of k classes."""

    n: int
    accuracy: Interval
    balanced_accuracy: float  # mean recall of the classes that have images, fraction 0 to 1
    macro_f1: float  # mean F1 of the classes that have images or were predicted, 0 to 1
    top5: Interval | None  # the label is among the five likeliest; None up to five classes, where it says nothing
    log_loss: float  # mean, nats
    brier: float  # mean squared distance to the one-hot label over all classes, 0 to 2 (Brier 1950)
    auroc: float  # area under the ROC curve, mean of each class with images against the rest, 0 to 1; nan with one class alone
    per_class: tuple[ClassScore, ...]  # [k]
    confusion: np.ndarray  # int64 [k k]; row: the label, column: the prediction
    intervals: Mapping[str, Interval]  # of those that are plain numbers above, by name; bootstrap

    def __repr__(self) -> str:
        return (
            f"Scores({self.n:,} images of {len(self.per_class):,} classes: accuracy {percent(self.accuracy.value)}, "
            f"balanced accuracy {percent(self.balanced_accuracy)}, macro F1 {percent(self.macro_f1)}, "
            f"log loss {self.log_loss:.3f} nats)"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values, for result.json."""
        return {
            "n": self.n,
            "accuracy": self.accuracy.to_json(),
            "balanced_accuracy": self.balanced_accuracy,
            "macro_f1": self.macro_f1,
            "top5": None if self.top5 is None else self.top5.to_json(),
            "log_loss": self.log_loss,
            "brier": self.brier,
            "auroc": None if math.isnan(self.auroc) else self.auroc,
            "intervals": {name: one.to_json() for name, one in self.intervals.items()},
            "per_class": [one.to_json() for one in self.per_class],
            "confusion": _plain_matrix(self.confusion),
        }


def _plain_matrix(counts: np.ndarray) -> list[list[int]] | dict[str, Any]:
    """The matrix row by row; of very many classes, {"classes": k, "cells": [[row, column, count], …]}: most hold nothing."""
    if len(counts) <= _LARGEST_MATRIX:
        return counts.tolist()
    places = np.argwhere(counts)
    return {"classes": len(counts), "cells": np.column_stack([places, counts[tuple(places.T)]]).tolist()}


def matrix_from(plain: list[list[int]] | dict[str, Any]) -> np.ndarray:
    """int64 [k k], of what `to_json` made of it."""
    if isinstance(plain, list):
        return np.array(plain, np.int64)
    counts, cells = np.zeros((plain["classes"], plain["classes"]), np.int64), np.array(plain["cells"]).reshape(-1, 3)
    counts[cells[:, 0], cells[:, 1]] = cells[:, 2]
    return counts


def score(
    probabilities: np.ndarray, labels: np.ndarray, classes: Sequence[str], groups: np.ndarray | None = None
) -> Scores:
    """The scores of probabilities [n k] against labels [n], integers that point into the k class names.

    groups: int64 [n], from 0, of images that were drawn together; all intervals but those of single classes follow them.
    Classes without images count in no mean of recalls. NotEnoughData without images, DataError for labels that fit no
    class, ModelError for outputs that are not probabilities.
    """
    rows, truth = checked(probabilities, labels, classes=len(classes))
    predictions, n, k = rows.argmax(axis=1), *rows.shape
    confusion = np.bincount(truth * k + predictions, minlength=k * k).reshape(k, k)
    hits, counts, predicted = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    statistics = Statistics(rows, truth)
    found = bootstrapped(statistics, n, times=times_for(n, k), groups=groups)
    each = {"log_loss": statistics.losses, "brier": statistics.squares}
    means = {name: mean_interval(values, groups=groups) for name, values in each.items()}
    intervals = {name: one.interval() for name, one in found.items()}
    present = np.flatnonzero(counts)
    few = images_or_groups(truth[:, None] == present, groups)
    hidden = hidden_by_few(hits[present] / counts[present], few)
    areas = np.array([one.area(np.ones((1, n), np.float32))[0] for one in statistics.rankings])
    shown = {"balanced_accuracy": hidden, "macro_f1": hidden, "auroc": hidden_by_few(areas, few)}
    intervals |= {name: widened(intervals[name], shown[name]) for name in shown if np.isfinite(intervals[name].value)}
    return Scores(
        n=n,
        accuracy=share(predictions == truth, groups),
        top5=share(_ranks(rows, truth) < 5, groups) if k > 5 else None,
        **{name: one.value for name, one in (found | means).items()},
        intervals=intervals | means,
        per_class=tuple(
            _class_score(name, int(counts[i]), int(hits[i]), int(predicted[i])) for i, name in enumerate(classes)
        ),
        confusion=confusion,
    )


def in_brief(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float | None]:
    """AUROC (mean of each class against the rest), log loss in nats and Brier score of [n k], without their intervals.

    labels: int64 [n], or bool [n k] with several classes an image, where the last two are means over the classes too. The AUROC
    is None where all images are of one class.
    """
    rows = np.asarray(probabilities, np.float64)
    truth = labels if several(labels) else labels[:, None] == np.arange(rows.shape[1])
    squares, once = (rows - truth) ** 2, np.ones((1, len(rows)), np.float32)
    areas = [Ranking(rows[:, at], truth[:, at]).area(once)[0] for at in np.flatnonzero(truth.any(0))]
    known = [area for area in areas if np.isfinite(area)]
    return {
        "auroc": float(np.mean(known)) if known else None,
        "log_loss": float(log_losses(rows, labels).mean()),
        "brier": float(squares.mean() if several(labels) else squares.sum(1).mean()),
    }


class Statistics:
    """The scores for whose interval there is no formula, as functions of weights [c n]."""

    def __init__(self, rows: np.ndarray, truth: np.ndarray) -> None:
        n, k = rows.shape
        at_label, answers = rows[np.arange(n), truth], rows.argmax(axis=1)
        self.losses = log_losses(rows, truth)
        self.squares = np.sum(rows**2, axis=1) - 2.0 * at_label + 1.0
        self.truth, self.answers = _one_hot(truth, k), _one_hot(answers, k)
        self.hits = _one_hot(np.where(truth == answers, truth, k), k + 1)[:, :k]
        self.rankings = [Ranking(rows[:, label], truth == label) for label in np.unique(truth)]

    def __call__(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Each score [c]."""
        hits, counts, predicted = weights @ self.hits, weights @ self.truth, weights @ self.answers  # [c k]
        with np.errstate(invalid="ignore", divide="ignore"):
            recalls = np.where(counts > 0, hits / counts, np.nan)
            f1 = np.where(counts + predicted > 0, 2.0 * hits / (counts + predicted), np.nan)
        return {
            "balanced_accuracy": mean_of_known(recalls.T),
            "macro_f1": mean_of_known(f1.T),
            "auroc": mean_of_known(np.array([ranking.area(weights) for ranking in self.rankings])),
        }


def _one_hot(numbers: np.ndarray, k: int) -> np.ndarray:
    """float64 [n k]: sums of whole weights are exact."""
    return (numbers[:, None] == np.arange(k)).astype(np.float64)


def checked(probabilities: np.ndarray, labels: np.ndarray, *, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities as float64 [n k] and labels as int64 [n] or bool [n k], after a look at them; errors as in `score`."""
    rows, truth = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    if rows.ndim != 2 or truth.shape not in (rows.shape[:1], rows.shape) or rows.shape[1] != classes:
        raise ValueError(
            f"shapes {rows.shape} and {truth.shape} for {classes} classes, expected [n k] and [n] or [n k]"
        )
    if len(rows) == 0:
        raise NotEnoughData("no images to score, expected one or more; give the data a test split")
    if several(truth):
        _refuse_improbable(rows, np.any(~np.isfinite(rows) | (rows < 0) | (rows > 1), axis=1), "")
        return rows, truth.astype(bool)
    truth = truth.astype(np.int64)
    if truth.min() < 0 or truth.max() >= classes:
        found = f"labels go from {truth.min()} to {truth.max()}"
        raise DataError(f"{found}, expected 0 to {classes - 1}; name the classes the model was trained on")
    bad = ~np.isfinite(rows).all(axis=1) | (rows < 0).any(axis=1) | (np.abs(rows.sum(axis=1) - 1.0) > _SUM_TOLERANCE)
    _refuse_improbable(rows, bad, " that sum to 1")
    return rows, truth


def _refuse_improbable(rows: np.ndarray, bad: np.ndarray, more: str) -> None:
    """ModelError naming the first row that holds no probabilities."""
    if bad.any():
        raise ModelError(
            f"the outputs for {int(bad.sum())} of {len(rows)} images are not probabilities (the first is image "
            f"{int(bad.argmax())}), expected numbers of 0 to 1{more}; train with a lower learning rate if they "
            "are not numbers"
        )


def _ranks(rows: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """How many classes come before the label, int [n]; of equals, the earlier class comes first, as argmax has it."""
    at_label = rows[np.arange(len(rows)), truth][:, None]
    earlier = np.arange(rows.shape[1]) < truth[:, None]
    return np.sum((rows > at_label) | ((rows == at_label) & earlier), axis=1)


def _class_score(name: str, n: int, hits: int, predicted: int) -> ClassScore:
    return ClassScore(name, n, hits, predicted, wilson(hits, n), hits / predicted if predicted else math.nan)
