"""The report: one HTML page from the facts of a run, complete in itself, calm to read, safe to open.

This module computes what is shown, numbers and geometry; page.html draws it. Every text passes through jinja2's
escaping and `burnish.errors.shown` on its way out (P10); no script or style runs but the page's own two, by their hash.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from burnish.errors import NotARun, shown
from burnish.measure.intervals import Interval, holm, wilson
from burnish.measure.scores import matrix_from
from burnish.measure.verdict import ACCURACY, Verdict, chance, percent, points
from burnish.reports.words import Say, verdict_in, words_in
from burnish.result import plain

_LARGEST_TABLE = 25  # classes; beyond, the confusion matrix is a map and a list of pairs
_PAIRS_SHOWN, _NAMED_SHOWN = 20, 200
_LEVELS = 10  # of colour strength
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 360, 220, 54, 16, 14, 30  # of a chart and its margins, SVG units
_BASELINES = {"majority": "Commonest class", "scratch": "Trained from scratch"}
_PICTURE = re.compile(r"data:image/(?:png|jpeg|webp);base64,[A-Za-z0-9+/]+={0,2}")


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


def render(facts: Mapping[str, Any], pictures: Mapping[str, Any] | None = None, *, lang: str = "en") -> str:
    """The page as HTML text; sections whose facts are missing are absent, only "verdict" must be there.

    facts: the content of result.json, as `burnish.facts.facts_of` makes it; values may be numpy's. pictures: of pictures.json, as
    `burnish.run.insights.pictures_of` makes it; each picture a data URI of a PNG, JPEG or WebP. lang: "en" or "zh"; what the run
    itself wrote, such as its reasons, stays English. NotARun when the verdict is missing or damaged.
    """
    values = _lenient(plain(dict(facts)))
    try:
        verdict = Verdict.from_json(values["verdict"])
    except (KeyError, TypeError, ValueError) as error:
        raise NotARun(
            f"the run's facts hold no readable verdict ({shown(repr(error))}), expected those that burnish fit writes; "
            "run it again"
        ) from None
    template, policy = _template(lang)
    say = words_in(lang)
    scores = values.get("scores") or {}
    kept = scores.get(_kept_role(values)) or scores.get("probe")
    pictured = _lenient(plain(dict(pictures or {})))
    cases = [_safe(one) for one in pictured.get("cases") or []]
    mistakes = [one for one in cases if one["kind"] == "mistake"] or _mistakes(values.get("mistakes") or [])
    return template.render(
        lang="zh-Hans" if lang == "zh" else lang,
        facts=values,
        policy=policy,
        verdict=verdict,
        score=say("Accuracy") if verdict.score == ACCURACY else say("Mean average precision (mAP)"),
        several=verdict.score != ACCURACY,
        sentence=re.sub(r"(?<=[ (])-(?=\d)", "\N{MINUS SIGN}", verdict_in(lang, verdict)),
        bars=_bars(verdict, values.get("baselines") or [], say),
        baselines=_baselines(values.get("baselines") or [], say),
        kept=kept,
        kept_role=_kept_role(values),
        metrics=_metrics(scores, say),
        charts=_charts(values.get("history") or [], say),
        confusion=_confusion(kept),
        mistakes=mistakes,
        unsure=[one for one in cases if one["kind"] == "unsure"],
        has_heat=any(one.get("heat") for one in cases),
        pictures=pictured,
        named=(values.get("named") or [])[:_NAMED_SHOWN],
        calibration=_calibration(values.get("calibration"), say),
        coverage=_coverage(values.get("declining"), say),
        more_data=_more_data(values.get("more_data"), say),
        costs=_costs(values.get("cost"), say),
        stages=_stages(values.get("stages_seconds") or {}),
    )


def _kept_role(values: dict[str, Any]) -> str:
    """Which of the two models in the proof is used."""
    return str(values.get("kept_role") or ("probe" if values.get("kept") == "probe" else "tuned"))


def duration(seconds: float) -> str:
    """Seconds as a person says them: '0.42 s', '17.3 s', '1 min 54 s', '2 h 05 min'."""
    if seconds < 10:
        return f"{seconds:.2g} s" if seconds < 1 else f"{seconds:.1f} s"
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s" if rest else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min"


@cache
def _template(lang: str) -> tuple[Template, str]:
    """The compiled page and the content policy that lets its own style and script run, and nothing else."""
    source = files("burnish.reports").joinpath("page.html").read_text(encoding="utf-8")
    room = Environment(
        loader=PackageLoader("burnish", "reports"), extensions=["jinja2.ext.i18n"], autoescape=True,
        undefined=StrictUndefined, finalize=_text, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    say = words_in(lang)
    room.install_gettext_callables(say, lambda one, many, n: say(one if n == 1 else many), newstyle=True)  # type: ignore[attr-defined]
    forms = {
        "percent": percent,
        "points": lambda share: say("%(n)s points") % {"n": f"{100 * share:.1f}"},
        "duration": duration,
        "count": "{:,}".format,
        "words": _words,
    }
    room.filters |= {key: _or_dash(form) for key, form in forms.items()}
    rules = [f"{tag}-src '{_fingerprint(source, tag)}'" for tag in ("style", "script")]
    policy = ["default-src 'none'", *rules, "img-src data:", "base-uri 'none'", "form-action 'none'"]
    return room.get_template("page.html"), "; ".join(policy)


def _fingerprint(source: str, tag: str) -> str:
    """The hash by which a content policy knows the one block of that tag (CSP level 2)."""
    block = source.split(f"<{tag}>", 1)[1].split(f"</{tag}>", 1)[0]
    return "sha256-" + base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()


def _text(value: Any) -> Any:
    """What the template prints for a value; names come out with control characters escaped."""
    if isinstance(value, Markup):
        return value
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(str(_text(one)) for one in value)
    return shown(value) if isinstance(value, str) else shown(str(value))


def _or_dash(form: Callable[[Any], str]) -> Callable[[Any], str]:
    """The form of a value that may be absent."""
    return lambda value: "–" if value is None else form(value)


class _Lenient(dict[str, Any]):
    """Facts of which any may be absent: a missing key reads as None."""

    def __missing__(self, key: str) -> None:
        return None


def _lenient(value: Any) -> Any:
    if isinstance(value, dict):
        return _Lenient({key: _lenient(item) for key, item in value.items()})
    return [_lenient(item) for item in value] if isinstance(value, list) else value


def _words(key: str) -> str:
    """A setting's name as words."""
    return key.replace("_", " ")


def _bars(verdict: Verdict, baselines: Sequence[Mapping[str, Any]], say: Say) -> list[dict[str, Any]]:
    """The scores to draw one above the other: simpler answers first."""
    # With several classes an image their shares are not the mean average precision that is drawn.
    simpler = [one for one in baselines if one.get("key") in ("majority", "scratch") and verdict.score == ACCURACY]
    rows = [
        {"role": "probe", "name": say(_BASELINES[one["key"]]), "interval": Interval.from_json(one["accuracy"])}
        for one in simpler
    ]
    rows.append({"role": "probe", "name": say("Frozen probe"), "interval": verdict.probe})
    if verdict.tuned is not None:
        rows.append({"role": "tuned", "name": say("Fine-tuned"), "interval": verdict.tuned})
    return rows


def _baselines(baselines: Sequence[Mapping[str, Any]], say: Say) -> list[dict[str, Any]]:
    """The table of simpler answers: what the kept model has over each, with Holm's correction where they are many."""
    chances = holm([one["paired"]["p"] for one in baselines])
    rows = []
    for one, p in zip(baselines, chances, strict=True):
        facts = one["paired"]
        gain = f"{points(facts['difference'])} ({points(facts['low'])} … {points(facts['high'])})"
        title = say(_BASELINES[one["key"]]) if one["key"] in _BASELINES else one["name"]
        rows.append(
            {"name": title, "note": one["name"] if title != one["name"] else "", "accuracy": one["accuracy"],
             "gain": gain.replace("-", "\N{MINUS SIGN}"), "chance": chance(p).removeprefix("p ").removeprefix("= ")}
        )  # fmt: skip
    return rows


def _metrics(scores: Mapping[str, Any], say: Say) -> list[dict[str, Any]]:
    """The score table: one row a score, with a cell for each model that was tested."""

    def interval(one: Mapping[str, Any]) -> str:
        if one["value"] is None:  # such as the AUROC of a class that all test images have
            return "–"
        return f"{percent(one['value'])} ({percent(one['low'])} … {percent(one['high'])})"

    def plainly(value: Any, spread: Mapping[str, Any] | None) -> str:
        return f"{value:.3f}" + (f" ({spread['low']:.3f} … {spread['high']:.3f})" if spread else "")

    one_class = any("balanced_accuracy" in one for one in scores.values())
    names = {
        "mean_average_precision": say("Mean average precision (mAP)"),
        "accuracy": say("Accuracy") if one_class else say("Classes right by image (Jaccard)"),
        "exact": say("Images with every class right"),
        "top5": say("Label among the five likeliest"),
        "balanced_accuracy": say("Mean recall of the classes"),
        "macro_f1": say("Mean F1 of the classes"),
        "micro_f1": say("F1 of all classes together"),
        "auroc": say("AUROC, mean of each class against the rest"),
        "log_loss": say("Log loss, nats (lower is better)"),
        "brier": say("Brier score, 0 to %(most)s (lower is better)") % {"most": 2 if one_class else 1},
    }

    def cell(table: Mapping[str, Any], key: str) -> str:
        value, spread = table.get(key), (table.get("intervals") or {}).get(key)
        if value is None:
            return "–"
        if isinstance(value, dict):
            return interval(value)
        if key == "balanced_accuracy":
            return interval(spread) if spread else percent(value)
        return plainly(value, spread)

    tables = [scores[role] for role in ("probe", "tuned") if scores.get(role)]
    return [
        {"name": name, "cells": [cell(one, key) for one in tables]}
        for key, name in names.items()
        if any(one.get(key) is not None for one in tables)
    ]


def _charts(history: Sequence[Mapping[str, Any]], say: Say) -> list[Chart]:
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


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


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


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers, evenly spaced, from at or below `low` to at or above `high`."""
    low = low if high > low else high - (0.05 * abs(high) or 1.0)
    span = high - low
    rough = span / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= rough * (1 - 1e-9))
    start, end = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(start, max(end, start + 1) + 1)]


def _confusion(kept: Mapping[str, Any] | None) -> dict[str, Any] | None:
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


def _mistakes(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The mistakes of a run whose pictures are not there."""
    return [_safe({**row, "kind": "mistake"}) for row in rows]


def _safe(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A case with its pictures; what is not an inline picture is left out."""

    def picture(value: Any) -> str | None:
        return value if isinstance(value, str) and _PICTURE.fullmatch(value) else None

    near = [_Lenient({**one, "thumbnail": picture(one.get("thumbnail"))}) for one in row.get("near") or []]
    pictured = {"thumbnail": picture(row.get("thumbnail")), "heat": picture(row.get("heat")), "near": near}
    return _Lenient({**row, **pictured})


def _coverage(declining: Mapping[str, Any] | None, say: Say) -> Chart | None:
    """Accuracy of what is answered over the share that is, in percent."""
    if not declining or len(declining.get("curve") or []) < 2:
        return None
    curve = declining["curve"]
    title = say("Accuracy of the answers (%), by the share of images answered (%), surest first")
    ys = [100 * accuracy for _, accuracy in curve]
    return _chart(title, [100 * share for share, _ in curve], {"": ys}, from_zero=False, unit="")


def _more_data(facts: Mapping[str, Any] | None, say: Say) -> dict[str, Any] | None:
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


def _costs(cost: Mapping[str, Any] | None, say: Say) -> list[tuple[str, str]]:
    """What the model costs, a line each."""
    if not cost:
        return []
    latency = cost.get("latency") or {}
    rows = [
        (say("Parameters"), f"{cost['parameters']:,}"),
        (say("of them fitted here"), f"{cost['tuned_parameters']:,}"),
        (say("Multiply-adds of one image"), f"{cost['macs'] / 1e9:.2f} G" if cost.get("macs") else None),
        (say("Package"), f"{cost['package_bytes'] / 1e6:.1f} MB"),
        (
            say("One image through the network, p50 and p99"),
            f"{1e3 * latency['p50_seconds']:.1f} ms, {1e3 * latency['p99_seconds']:.1f} ms" if latency else None,
        ),
        (
            say("Images a second, in batches"),
            f"{cost['images_per_second']:.0f}" if cost.get("images_per_second") else None,
        ),
        (say("Peak memory of the run"), f"{cost['peak_memory_bytes'] / 1e9:.2f} GB"),
        (
            say("Energy of the run"),
            f"{cost['joules'] / 3600:.1f} Wh" if cost.get("joules") else say("not readable here"),
        ),
    ]
    return [(title, value) for title, value in rows if value is not None]


def _calibration(facts: Mapping[str, Any] | None, say: Say) -> dict[str, Any] | None:
    """Calibration with the dots of a reliability diagram on a 0 to 100 square, each with its 95 % interval."""
    if not facts:
        return None
    rows = [row for row in facts.get("reliability") or [] if row["n"]]
    most = max((row["n"] for row in rows), default=1)
    dots = []
    for row in rows:
        interval = wilson(round(row["accuracy"] * row["n"]), row["n"])
        dots.append(
            {
                "x": round(100 * row["confidence"], 2),
                "y": round(100 - 100 * row["accuracy"], 2),
                "top": round(100 - 100 * interval.high, 2),
                "bottom": round(100 - 100 * interval.low, 2),
                "radius": round(1.0 + 2.2 * math.sqrt(row["n"] / most), 2),
                "note": say("n = %(n)s: confidence %(confidence)s, right %(right)s")
                % {"n": f"{row['n']:,}", "confidence": percent(row["confidence"]), "right": percent(row["accuracy"])},
            }
        )
    return {"facts": facts, "dots": dots}


def _stages(seconds: Mapping[str, float]) -> list[dict[str, Any]]:
    """Where the time went: seconds and share of the longest stage."""
    longest = max([value for value in seconds.values() if value] or [1.0])
    return [
        {"name": name, "seconds": value, "share": value / longest}
        for name, value in seconds.items()
        if value is not None
    ]
