"""The first line of a table of images, and what a table that lies among them says of a few."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path

KINDS = (".csv", ".tsv", ".jsonl", ".ndjson")
_SEPARATORS = (",", ";", "\t")
_MOST_ROWS, _MOST_BYTES = 1000, 2**20


def separator_of(header: str, fits: Callable[[set[str]], bool]) -> str:
    """What separates the cells of a table: the first that makes column names of its first line that fit; else a comma."""
    for separator in _SEPARATORS:
        if fits({name.strip().strip('"').lower() for name in header.split(separator)}):
            return separator
    return ","


def names_path_and_label(names: set[str]) -> bool:
    """Whether these columns say which images there are, and of which class."""
    return "path" in names and bool(names & {"label", "labels"})


def labels_in(file: Path) -> dict[str, str]:
    """Path -> label, of the first thousand lines of a table of images; {} where it is none, or cannot be read."""
    try:
        if not file.is_file():
            return {}
        with open(file, encoding="utf-8-sig", newline="") as stream:
            text = stream.read(_MOST_BYTES).splitlines()
        if file.suffix.lower() in (".jsonl", ".ndjson"):
            rows = [json.loads(line) for line in islice(text, _MOST_ROWS) if line.strip()]
        else:
            separator = "\t" if file.suffix.lower() == ".tsv" else separator_of(text[0], names_path_and_label)
            rows = list(islice(csv.DictReader(text, delimiter=separator), _MOST_ROWS))
        # A file of plain numbers or lists; what a model answered
        if any(not isinstance(row, dict) or "probability" in row for row in rows):
            return {}
        said = [{str(key).strip().lower(): value for key, value in row.items()} for row in rows]
        labels = {str(row["path"]).removeprefix("./"): row.get("label", row.get("labels")) for row in said}
    except (OSError, ValueError, KeyError, IndexError, AttributeError, RecursionError, csv.Error):
        return {}
    return {path: label.strip() for path, label in labels.items() if isinstance(label, str)}
