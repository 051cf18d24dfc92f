"""Pages without a script: one skeleton, names made safe on their way out (P10)."""

from __future__ import annotations

import re
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from burnish.errors import shown
from burnish.measure.intervals import percent
from burnish.reports.words import words_in


@cache
def plain_page(name: str, lang: str = "en") -> Template:
    """The template of that file in this folder, whose `_` gives words in that language.

    Filters: `count`, `percent` (without its sign), `name`, `broken`.
    """
    room = Environment(
        loader=PackageLoader("burnish", "reports"), extensions=["jinja2.ext.i18n"], autoescape=True,
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    say = words_in(lang)
    room.install_gettext_callables(say, lambda one, many, n: say(one if n == 1 else many), newstyle=True)  # type: ignore[attr-defined]
    room.filters["count"] = lambda value: "-" if value is None else f"{value:,.0f}"
    room.filters["percent"] = lambda value: "-" if value is None else percent(value).removesuffix(" %")
    room.filters["name"] = lambda text: shown(str(text).encode("utf-8", "backslashreplace").decode())
    room.filters["broken"] = _broken
    return room.get_template(name)


def _broken(name: str) -> Markup:
    """A long name that may be wrapped where its parts meet, not in a word."""
    return Markup(re.sub(r"([_/.:=])(?=\w)", r"\1<wbr>", str(escape(name))))
