"""The page of an audit: what was found, kind by kind, with thumbnails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from burnish.data.audit.findings import Finding, by_kind
from burnish.reports.plain import plain_page

_CASES, _FILES = 60, 6  # shown of a kind, and of a case


def page_of(facts: Mapping[str, Any], findings: Sequence[Finding], thumbnails: Mapping[str, str]) -> str:
    """audit.html: one self-contained page."""
    return plain_page("audit.html").render(
        facts=facts,
        kinds=by_kind(findings, cases=_CASES),
        thumbnails=thumbnails,
        files_shown=_FILES,
        cases_shown=_CASES,
    )
