"""The leaderboard of a comparison: rows for the terminal, CSV, and one HTML page with its plots."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from burnish.errors import cell, shown
from burnish.measure.intervals import Interval, percent
from burnish.measure.verdict import chance, difference_in_words
from burnish.record.folder import LEADERBOARD
from burnish.reports.cells import paragraph, table
from burnish.reports.plain import plain_page

_COLUMNS = (
    "name", "model", "method", "state", "chosen", "validation", "validation_n", "test", "test_low", "test_high", "test_n",
    "auroc", "log_loss", "brier", "difference", "difference_low", "difference_high", "p", "separable", "seconds",
    "images_per_second", "parameters", "package",
)  # fmt: skip
_WIDTH, _HEIGHT, _MARGIN = 460, 280, 46  # pixels, of a plot


class Leaderboard(dict[str, Any]):
    """The facts of a comparison, the content of compare.json; in a notebook a table of them. folder: where it was made."""

    def __init__(self, facts: Mapping[str, Any], folder: Path) -> None:
        super().__init__(facts)
        self.folder = folder

    def __repr__(self) -> str:
        chosen, rows = shown(str(self["chosen"])), len(self["rows"])
        return f"Leaderboard({shown(str(self.folder))}: {chosen} chosen, of {rows} combination{'s' * (rows != 1)})"

    def _repr_html_(self) -> str:
        names = ("model", "method", "test", "95 % interval", "against the chosen", "validation")
        rows = list[list[object]]()
        for row in self["rows"]:
            test, told = row["test"], row["validation"]
            score = (
                [percent(test["value"]), f"{percent(test['low'])} to {percent(test['high'])}"] if test else ["-", "-"]
            )
            rows.append([row["model"], row["method"], *score, sentence(row), "-" if told is None else percent(told)])
        return paragraph(f"{self['chosen']} was chosen", str(self.folder / LEADERBOARD)) + table(names, rows)


def csv_of(facts: Mapping[str, Any]) -> str:
    """The rows as CSV; text that a spreadsheet would run is quoted (P10)."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for row in facts["rows"]:
        flat = {key: row.get(key) for key in _COLUMNS}
        test, difference = row["test"] or {}, row["difference"] or {}
        flat |= {
            "test": test.get("value"),
            "test_low": test.get("low"),
            "test_high": test.get("high"),
            "test_n": test.get("n"),
        }
        flat["difference"] = difference.get("difference")
        if not row["chosen"]:  # whose difference to itself has no limits
            flat |= {"difference_low": difference.get("low"), "difference_high": difference.get("high")}
        writer.writerow([_cell(flat[key]) for key in _COLUMNS])
    return out.getvalue()


def sentence(row: Mapping[str, Any]) -> str:
    """How a row stands to the chosen one, in words."""
    if row["chosen"]:
        return "chosen on validation" if row["validation_n"] else "chosen by cross-validation"
    if row["test"] is None:
        return str(row["state"])
    facts = row["difference"]
    return f"{difference_in_words(facts)}, {chance(row['p'])}" + ("" if row["separable"] else ": not separable")


def page_of(facts: Mapping[str, Any]) -> str:
    """One self-contained HTML page."""
    rows = [
        {"decisions": [], **row, "number": number, "sentence": sentence(row)}
        for number, row in enumerate(facts["rows"], start=1)
    ]
    tested = [row for row in rows if row["test"] is not None]
    timed = [row for row in tested if row["images_per_second"] is not None]
    several = facts.get("several", False)
    score = "Classes right by image (Jaccard)" if several else "Accuracy"
    plots = [
        (f"{score} against seconds spent", "seconds", _plot(tested, lambda row: row["seconds"], "s")),
        (
            f"{score} against milliseconds an image",
            "milliseconds",
            _plot(timed, lambda row: 1000.0 / row["images_per_second"], "ms"),
        ),
    ]
    return plain_page("leaderboard.html").render(
        facts=facts, rows=rows, tested=tested, untimed=len(tested) - len(timed), plots=plots, several=several
    )


def _plot(rows: list[dict[str, Any]], across: Any, unit: str) -> dict[str, Any] | None:
    """Points with their intervals, in pixels."""
    if not rows:
        return None
    xs = [max(0.0, float(across(row))) for row in rows]
    most = max([*xs, 1e-9]) * 1.05
    intervals = [Interval.from_json(row["test"]) for row in rows]
    low, high = min(one.low for one in intervals), max(one.high for one in intervals)
    low, high = max(0.0, low - 0.01), min(1.0, high + 0.01)

    def x(value: float) -> float:
        return _MARGIN + value / most * (_WIDTH - 2 * _MARGIN)

    def y(value: float) -> float:
        return _HEIGHT - _MARGIN - (value - low) / max(1e-9, high - low) * (_HEIGHT - 2 * _MARGIN)

    points = [
        {
            "number": row["number"],
            "x": x(value),
            "y": y(one.value),
            "low": y(one.low),
            "high": y(one.high),
            "name": row["name"],
            "chosen": row["chosen"],
        }
        for row, value, one in zip(rows, xs, intervals, strict=True)
    ]
    ticks_x = [{"x": x(value), "label": f"{value:.6g} {unit}"} for value in round_numbers(0.0, most)]
    ticks_y = [{"y": y(value / 100), "label": f"{value:.6g}"} for value in round_numbers(100 * low, 100 * high)]
    return {
        "points": points, "ticks_x": ticks_x, "ticks_y": ticks_y, "width": _WIDTH, "height": _HEIGHT, "margin": _MARGIN,
    }  # fmt: skip


def round_numbers(low: float, high: float) -> list[float]:
    """Two to six numbers from low to high, such as people write on an axis: 1, 2 or 5 times a power of ten apart."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(one * power for one in (1, 2, 5, 10) if one * power >= rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [step * number for number in range(first, last + 1)]


def _cell(value: Any) -> Any:
    return cell(value) if isinstance(value, str) else "" if value is None else value
