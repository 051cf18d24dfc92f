"""What the page draws: line charts, the confusion matrix, the reliability diagram, as places in SVG units."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from burnish.measure.intervals import percent, wilson
from burnish.measure.scores import matrix_from
from burnish.reports.words import Say

_LARGEST_TABLE = 25  # classes; beyond, the confusion matrix is a map and a list of pairs
_PAIRS_SHOWN = 20
_LEVELS = 10  # of colour strength
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 360, 220, 54, 16, 14, 30  # of a chart and its margins, SVG units


@dataclass(frozen=True)
class Line:
    """One series of a chart, in SVG units."""

    name: str
    points: str  # "x,y x,y …"
    dots: tuple[tuple[float, float], ...]  # empty when there are too many to tell apart


@dataclass(frozen=True)
class Chart:
    """A line chart: ticks as (place, text), lines in SVG units."""

    title: str
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    lines: tuple[Line, ...]


def charts(history: Sequence[Mapping[str, Any]], say: Say) -> list[Chart]:
    """Loss, validation accuracy and learning rate over the epochs; those that were not recorded are left out."""
    epochs = [row["epoch"] for row in history]
    wanted = (
        (say("Loss, nats"), ((say("training"), "train_loss"), (say("validation"), "val_loss")), True, 1.0, ""),
        (say("Validation accuracy"), ((say("validation"), "val_accuracy"),), False, 100.0, " %"),
        (say("Learning rate at the end of the epoch"), ((say("learning rate"), "lr"),), True, 1.0, ""),
    )
    charts = []
    for title, series, from_zero, factor, unit in wanted:
        lines = {name: [_scaled(row.get(key), factor) for row in history] for name, key in series}
        known = {name: ys for name, ys in lines.items() if any(y is not None for y in ys)}
        if known:
            charts.append(_chart(title, epochs, known, from_zero=from_zero, unit=unit))
    return charts


def coverage(declining: Mapping[str, Any] | None, say: Say) -> Chart | None:
    """Accuracy of what is answered over the share that is, in percent."""
    if not declining or len(declining.get("curve") or []) < 2:
        return None
    curve = declining["curve"]
    title = say("Accuracy of the answers (%), by the share of images answered (%), surest first")
    ys = [100 * accuracy for _, accuracy in curve]
    return _chart(title, [100 * share for share, _ in curve], {"": ys}, from_zero=False, unit="")


def finding(facts: Mapping[str, Any] | None, say: Say) -> list[Chart]:
    """The ROC and the precision-recall curve of the class that is to be found, in percent."""
    if not facts or not facts.get("roc"):
        return []
    titles = {
        "roc": say("ROC: share of the class found (%), by share of the others taken for it (%)"),
        "precision_recall": say("Precision (%), by share of the class found (%)"),
    }
    curves = {title: [(100 * x, 100 * y) for x, y in facts[key]] for key, title in titles.items()}
    return [
        _chart(title, [x for x, _ in curve], {"": [y for _, y in curve]}, from_zero=True, unit="")
        for title, curve in curves.items()
    ]


def more_data(facts: Mapping[str, Any] | None, say: Say) -> dict[str, Any] | None:
    """The learning curve with where it leads, drawn over the number of images."""
    if not facts or not facts.get("points"):
        return None
    points, ahead = facts["points"], facts["ahead"]
    xs = [one["images"] for one in points] + [one["images"] for one in ahead]
    nothing: list[float | None] = [None] * (len(points) - 1)
    last = 100 * points[-1]["accuracy"]
    lines = {
        say("measured"): [*(100 * one["accuracy"] for one in points), *([None] * len(ahead))],
        say("carried on"): [*nothing, last, *(100 * one["accuracy"] for one in ahead)],
    }
    title = say("Accuracy of the frozen probe (%), by training images")
    return {**facts, "chart": _chart(title, xs, lines, from_zero=False, unit="")}


def calibration(facts: Mapping[str, Any] | None, say: Say) -> dict[str, Any] | None:
    """Calibration with the dots of a reliability diagram on a 0 to 100 square, each with its 95 % interval."""
    if not facts:
        return None
    rows = [row for row in facts.get("reliability") or [] if row["n"]]
    most = max((row["n"] for row in rows), default=1)
    dots = []
    for row in rows:
        low, high = _limits(row)
        dots.append(
            {
                "x": round(100 * row["confidence"], 2),
                "y": round(100 - 100 * row["accuracy"], 2),
                "top": round(100 - 100 * high, 2),
                "bottom": round(100 - 100 * low, 2),
                "radius": round(1.0 + 2.2 * math.sqrt(row["n"] / most), 2),
                "note": say("n = %(n)s: confidence %(confidence)s, right %(right)s")
                % {"n": f"{row['n']:,}", "confidence": percent(row["confidence"]), "right": percent(row["accuracy"])},
            }
        )
    return {"facts": facts, "dots": dots}


def _limits(row: Mapping[str, Any]) -> tuple[float, float]:
    """Of the share of right answers in one range of confidence; records of earlier versions do not tell them."""
    if row.get("limits") is not None:
        return row["limits"][0], row["limits"][1]
    interval = wilson(round(row["accuracy"] * row["n"]), row["n"])
    return interval.low, interval.high


def _chart(
    title: str, xs: Sequence[float], series: Mapping[str, Sequence[float | None]], *, from_zero: bool, unit: str
) -> Chart:
    """Series over the same x, laid out; None is a gap that the line bridges."""
    ys = [y for values in series.values() for y in values if y is not None]
    x_ticks = [tick for tick in _ticks(min(xs), max(xs), 6) if tick == round(tick) and min(xs) <= tick <= max(xs)]
    y_ticks = _ticks(0.0 if from_zero else min(ys), max(ys), 4)
    low, high, first, last = y_ticks[0], y_ticks[-1], min(xs), max(xs)

    def across(x: float) -> float:
        room = _WIDTH - _LEFT - _RIGHT
        return round(_LEFT + room * ((x - first) / (last - first) if last > first else 0.5), 1)

    def down(y: float) -> float:
        return round(_TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - y) / (high - low), 1)

    lines = []
    for name, values in series.items():
        dots = tuple((across(x), down(y)) for x, y in zip(xs, values, strict=True) if y is not None)
        lines.append(Line(name, " ".join(f"{x:g},{y:g}" for x, y in dots), dots if len(dots) <= 40 else ()))
    x_marks = tuple((across(x), f"{x:g}") for x in x_ticks)
    return Chart(title, x_marks, tuple((down(y), f"{y:g}{unit}") for y in y_ticks), tuple(lines))


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers, evenly spaced, from at or below `low` to at or above `high`."""
    low = low if high > low else high - (0.05 * abs(high) or 1.0)
    span = high - low
    rough = span / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= rough * (1 - 1e-9))
    start, end = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(start, max(end, start + 1) + 1)]


def confusion(kept: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The confusion matrix: as a table, or of many classes as a map and its most frequent confusions."""
    if not kept or not kept.get("confusion") or not kept.get("per_class"):
        return None
    counts, names = matrix_from(kept["confusion"]), [one["name"] for one in kept["per_class"]]
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    levels = np.ceil(_LEVELS * np.sqrt(share)).astype(int)  # the root keeps a few mistakes visible among many right
    large = len(names) > _LARGEST_TABLE
    return {
        "names": names,
        "counts": [] if large else counts.tolist(),
        "levels": [] if large else levels.tolist(),
        "map": _map(levels) if large else [],
        "pairs": _pairs(counts, share, names) if large else [],
        "wrong": int(counts.sum() - counts.trace()),
    }


def _map(levels: np.ndarray) -> list[dict[str, Any]]:
    """Squares of one colour as one SVG path each: 1000 classes stay small that way."""
    diagonal = np.eye(len(levels), dtype=bool)
    paths = []
    for kind, where in (("miss", ~diagonal), ("hit", diagonal)):
        for level in range(1, _LEVELS + 1):
            cells = np.argwhere(where & (levels == level))
            if len(cells):
                path = "".join(f"M{column} {row}h1v1h-1z" for row, column in cells)
                paths.append({"kind": kind, "level": level, "path": path})
    return paths


def _pairs(counts: np.ndarray, share: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """The most frequent confusions, most frequent first."""
    wrong = np.where(np.eye(len(counts), dtype=bool), 0, counts)
    order = np.lexsort((-share.ravel(), -wrong.ravel()))[:_PAIRS_SHOWN]
    cells = [divmod(int(place), len(counts)) for place in order if wrong.flat[place] > 0]
    return [
        {
            "label": names[row],
            "predicted": names[column],
            "count": int(wrong[row, column]),
            "share": float(share[row, column]),
        }
        for row, column in cells
    ]
