"""The page of an audit: what was found, kind by kind, with thumbnails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined, Template

from burnish.data.audit.findings import Finding, by_kind
from burnish.errors import shown

_CASES, _FILES = 60, 6  # shown of a kind, and of a case


def page_of(facts: Mapping[str, Any], findings: Sequence[Finding], thumbnails: Mapping[str, str]) -> str:
    """audit.html: one self-contained page."""
    return _template().render(
        facts=facts,
        kinds=by_kind(findings, cases=_CASES),
        thumbnails=thumbnails,
        files_shown=_FILES,
        cases_shown=_CASES,
    )


@cache
def _template() -> Template:
    source = files("burnish.reports").joinpath("audit.html").read_text(encoding="utf-8")
    room = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    room.filters["count"] = "{:,}".format
    room.filters["name"] = lambda text: shown(str(text).encode("utf-8", "backslashreplace").decode())
    return room.from_string(source)
