"""Data whose splits are given apart, {"train": …, "val": …, "test": …}: each as data is given anywhere, also a DatasetDict."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from burnish.data.catalog import Catalog, Named
from burnish.data.contents import Joined
from burnish.data.sources.assemble import Labelled, assemble
from burnish.data.sources.folder import SPLIT_FOLDERS
from burnish.errors import DataError, shown
from burnish.labels import classes_of

_EXPECTED = 'expected its splits: {"train": …, "val": …, "test": …}'


def splits_of(data: Mapping[Any, Any]) -> dict[str, Any]:
    """Split -> what is given as it. DataError for a dictionary of other things."""
    found: dict[str, Any] = {}
    for name, part in data.items():
        split = SPLIT_FOLDERS.get(str(name).strip().lower())
        if split is None:
            came = ", ".join(shown(repr(one)) for one in list(data)[:5])
            raise DataError(
                f"The data is a dictionary with {came}; {_EXPECTED}. Images and labels apart are a tuple: (images, labels)."
            )
        if split in found:
            raise DataError(f"The data gives {split} twice, under two names. Keep one.")
        found[split] = part
    if not found:
        raise DataError(f"The data is an empty dictionary; {_EXPECTED}.")
    return found


def joined(parts: Mapping[str, Catalog]) -> Catalog:
    """One catalogue of the catalogues of the splits, classes matched by name; train alone is a set that is still to be split.

    Files keep their names below the folder that holds them all; what lies elsewhere is called "train/…" and so on. DataError
    where a part has splits of its own, or two parts hold one file.
    """
    for split, part in parts.items():
        if any(part.splits):
            raise DataError(
                f"What is given as {split} has splits of its own. Give it alone, or the images of one split as {split}."
            )
    files = all(part.contents is None for part in parts.values())
    root = (
        Path(os.path.commonpath([os.path.abspath(part.root) for part in parts.values()])) if files else Path("<parts>")
    )
    several = any(part.several for part in parts.values())
    images: dict[str, Labelled] = {}
    named: list[Named] = []
    for split, part in parts.items():
        before = Path(os.path.abspath(part.root)).relative_to(root).as_posix() if files else split
        before = "" if before == "." else f"{before}/"
        for row, path in enumerate(part.paths):
            image = Labelled(
                before + path,
                _label(part, row, several=several),
                None if set(parts) == {"train"} else split,
                _group(part, row),
            )
            first = images.setdefault(image.path, image)
            if first is not image:
                raise DataError(f"{shown(image.path)} is given as {first.split} and as {split}. Keep one.")
        named += [Named(before + one.path, one.reason) for one in part.named]
    return assemble(
        root,
        images.values(),
        named,
        source="parts",
        counted=sum(part.scanned for part in parts.values()),
        contents=None if files else Joined({split: (part.root, part.contents) for split, part in parts.items()}),
    )


def _label(part: Catalog, row: int, *, several: bool) -> str | tuple[str, ...]:
    """As `Labelled` has it: names where an image of any part may have several classes."""
    names = tuple(part.classes[index] for index in classes_of(part.labels, row))
    return names if several else names[0]


def _group(part: Catalog, row: int) -> str | None:
    """The group that the data names; None for an image that is a group of its own, under its path."""
    group = None if part.groups is None else part.groups[row]
    return None if group == part.paths[row] else group
