"""The page of a service: photographs dropped on it, classes with bars; served.html draws it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from burnish.measure.intervals import percent
from burnish.measure.verdict import ACCURACY
from burnish.reports.page import template_of
from burnish.reports.words import words_in

_FEW = 12  # classes that are listed
_SEVERAL = "Mean average precision (mAP)"  # the score where an image may have several


def page(model: Mapping[str, Any], most: Mapping[str, int], lang: str) -> str:
    """The page as HTML text. model: as GET /model tells it; most: the limits of a request; lang: "en" or "zh"."""
    record = model["record"]
    return _template(lang)[0].render(
        lang="zh-Hans" if lang == "zh" else lang,
        model=model,
        most=most,
        few=model["classes"][:_FEW],
        more=max(0, len(model["classes"]) - _FEW),
        score=words_in(lang)("Accuracy" if record is None or record["score"] == ACCURACY else _SEVERAL),
        right=None if record is None else percent(record["test"]["value"]),
        low=None if record is None else percent(record["test"]["low"]),
        high=None if record is None else percent(record["test"]["high"]),
    )


def page_policy() -> str:
    """The content policy of the page: its own style and script, by their hashes, pictures that it made, and its own service."""
    return _template("en")[1]


@cache
def _template(lang: str) -> Any:
    more = ("img-src blob:", "connect-src 'self'", "form-action 'self'", "frame-ancestors 'none'")
    return template_of("served.html", lang, *more)
