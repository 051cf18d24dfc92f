"""The report: one HTML page from the facts of a run, complete in itself, calm to read, safe to open.

This module computes what is shown, `drawn` where it is drawn; page.html draws it. Every text passes through jinja2's
escaping and `burnish.errors.shown` on its way out (P10); no script or style runs but the page's own two, by their hash.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from burnish.errors import NotARun, shown
from burnish.measure.intervals import Interval, holm, percent
from burnish.measure.verdict import ACCURACY, Verdict, chance, points
from burnish.record.folder import plain
from burnish.reports.drawn import calibration, charts, confusion, coverage, finding, more_data
from burnish.reports.words import Say, verdict_in, words_in

_NAMED_SHOWN = 200
_BASELINES = {"majority": "Commonest class", "scratch": "Trained from scratch"}
_PICTURE = re.compile(r"data:image/(?:png|jpeg|webp);base64,[A-Za-z0-9+/]+={0,2}")


def render(facts: Mapping[str, Any], pictures: Mapping[str, Any] | None = None, *, lang: str = "en") -> str:
    """The page as HTML text; sections whose facts are missing are absent, only "verdict" must be there.

    facts: the content of result.json, as `burnish.record.facts.facts_of` makes it; values may be numpy's. pictures: of
    pictures.json, as `burnish.run.insights.pictures_of` makes it; each a data URI of a PNG, JPEG or WebP. lang: "en" or "zh";
    what the run itself wrote, such as its reasons, stays English. NotARun when the verdict is missing or damaged.
    """
    values = _lenient(plain(dict(facts)))
    try:
        verdict = Verdict.from_json(values["verdict"])
    except (KeyError, TypeError, ValueError) as error:
        raise NotARun(
            f"the run's facts hold no readable verdict ({shown(repr(error))}), expected those that burnish fit writes; "
            "run it again"
        ) from None
    template, policy = template_of("page.html", lang)
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
        charts=charts(values.get("history") or [], say),
        confusion=confusion(kept),
        mistakes=mistakes,
        unsure=[one for one in cases if one["kind"] == "unsure"],
        has_heat=any(one.get("heat") for one in cases),
        pictures=pictured,
        named=(values.get("named") or [])[:_NAMED_SHOWN],
        calibration=calibration(values.get("calibration"), say),
        coverage=coverage(values.get("declining"), say),
        finding_charts=finding(values.get("finding"), say),
        more_data=more_data(values.get("more_data"), say),
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
def template_of(name: str, lang: str, *more: str) -> tuple[Template, str]:
    """The compiled page and the content policy that lets its own style and script run, and nothing else but `more`."""
    source = files("burnish.reports").joinpath(name).read_text(encoding="utf-8")
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
    policy = ["default-src 'none'", *rules, "base-uri 'none'", *(more or ("img-src data:", "form-action 'none'"))]
    return room.get_template(name), "; ".join(policy)


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
        (
            say("Peak memory of the run"),
            f"{cost['peak_memory_bytes'] / 1e9:.2f} GB" if cost["peak_memory_bytes"] else None,
        ),
        (
            say("Energy of the run"),
            f"{cost['joules'] / 3600:.1f} Wh" if cost.get("joules") else say("not readable here"),
        ),
    ]
    return [(title, value) for title, value in rows if value is not None]


def _stages(seconds: Mapping[str, float]) -> list[dict[str, Any]]:
    """Where the time went: seconds and share of the longest stage."""
    longest = max([value for value in seconds.values() if value] or [1.0])
    return [
        {"name": name, "seconds": value, "share": value / longest}
        for name, value in seconds.items()
        if value is not None
    ]
