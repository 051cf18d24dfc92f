"""What a notebook shows of a result that ends a cell: HTML without scripts, in which every text is escaped (P10)."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from burnish.errors import shown


def escaped(text: object) -> str:
    """As text in HTML, on one line, whatever it holds."""
    return html.escape(shown(str(text)))


def paragraph(*lines: str) -> str:
    """A line under the other."""
    return f"<p>{'<br>'.join(map(escaped, lines))}</p>"


def table(names: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table with a row of headings."""
    return table_of_cells(names, (map(escaped, row) for row in rows))


def table_of_cells(names: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """The same of cells that are HTML already."""
    head = "".join(f"<th>{escaped(name)}</th>" for name in names)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"
