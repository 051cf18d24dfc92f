"""The images that a verb works with: what DATA holds, less a list to leave out; nothing is deleted, nothing is moved."""

from __future__ import annotations

import csv
import io
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from burnish.data.catalog import Catalog, Named
from burnish.data.sources import open_source, require_usable, with_named, without
from burnish.data.sources.header import separator_of
from burnish.disk import expanded, text_of
from burnish.errors import DataError, nearest, shown, uncelled

_YES, _NO = ("yes", "y", "true", "1"), ("no", "n", "false", "0", "")


_LEFT_OUT = "left out by "


def opened(data: Any, quarantine: str | os.PathLike[str] | None = None, *, for_training: bool = True) -> Catalog:
    """The labelled images of `open_source`, less those in the list. DataError or NotEnoughData."""
    catalog = open_source(data, for_training=for_training)
    if quarantine is None:
        return catalog
    if not os.fspath(quarantine):  # as a path it is the working folder
        raise DataError("The name of the list of images to leave out is empty. Expected a file such as audit.csv.")
    catalog = quarantined(catalog, expanded(quarantine))
    if for_training:
        require_usable(catalog)
    return catalog


def left_out_in_words(catalog: Catalog, file: Path) -> str:
    """How many images a list has left out; of one that marks none too, which may have been meant otherwise."""
    gone = sum(one.reason.startswith(f"{_LEFT_OUT}{file.name}: ") for one in catalog.named)
    return (
        f"{gone:,} left out by {shown(file.name)}" if gone else f"{shown(file.name)} marks none of them to be left out"
    )


def read_quarantine(file: Path) -> dict[str, str]:
    """path -> why, of the CSV's lines; with a column `exclude` only those that say yes there. DataError when it is no list.

    audit.csv is such a list; so is any CSV with a column path, and where wanted evidence or reason.
    """
    try:
        with io.StringIO(text_of(file).removeprefix("\ufeff"), newline="") as stream:
            separator = separator_of(stream.readline(), lambda names: "path" in names)
            stream.seek(0)
            rows = csv.DictReader(stream, strict=True, delimiter=separator)
            names = {name.strip().lower(): name for name in rows.fieldnames or ()}
            if "path" not in names:
                came = ", ".join(map(shown, names)) or "none"
                raise DataError(f"{shown(file.name)} has the columns {came}; expected path. See: burnish audit --help")
            found = {}
            for row in rows:
                said = {key: (row.get(name) or "").strip() for key, name in names.items()}
                path = row.get(names["path"]) or ""
                word = said.get("exclude", "yes").lower()
                if word not in (*_YES, *_NO):
                    raise DataError(
                        f"{shown(file.name)}, line {rows.line_num}: exclude is '{shown(word)}'. Expected yes or no."
                    )
                if path.strip() and word in _YES:
                    found[uncelled(path)] = said.get("evidence") or said.get("reason") or said.get("kind") or "listed"
            return found
    except (OSError, csv.Error, ValueError) as error:
        raise DataError(f"{shown(str(file))} cannot be read as a list of images: {shown(str(error))}.") from None


def quarantined(catalog: Catalog, file: Path) -> Catalog:
    """The catalogue less the images in the list, which are named. DataError when most of the list is not there."""
    listed = read_quarantine(file)
    here = set(catalog.paths)
    known = here | {one.path for one in catalog.named}
    listed = {path if path in known else path.strip(): why for path, why in listed.items()}
    meant = {path: why for path, why in listed.items() if path in here}
    strangers = [path for path in listed if path not in known]
    if len(strangers) > 0.5 * len(listed):
        raise DataError(
            f"{shown(file.name)} lists {len(listed)} images, of which {len(strangers)} are not in the data (first: "
            f"{shown(strangers[0])}; nearest there: {nearest(strangers[0].strip(), catalog.paths[:5000], limit=2)}). "
            "Paths are those of burnish audit."
        )
    named = [Named(path, f"{_LEFT_OUT}{file.name}: {why}") for path, why in sorted(meant.items())]
    absent = [Named(path, f"listed in {file.name}, and not in the data") for path in sorted(strangers)]
    left = replace(without(catalog, named), source=catalog.source) if named else catalog
    return with_named(left, absent)
