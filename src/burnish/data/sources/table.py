"""Images listed in a CSV: the columns path and label, and where wanted split and group."""

from __future__ import annotations

import csv
import io
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

from burnish.data.catalog import SPLIT_WORDS, Catalog, Named
from burnish.data.sources.assemble import Labelled, assemble, class_name
from burnish.data.sources.scan import LINK_OUT, why_not_follow
from burnish.errors import DataError, NotEnoughData, nearest, shown

COLUMNS = ("path", "label", "split", "group")  # the first two are required; others are ignored
_SPLIT_WORDS = {word: word for word in SPLIT_WORDS} | {"valid": "val", "validation": "val"}


@dataclass(frozen=True)
class _Row:
    """One line of the table."""

    line: int
    image: Labelled


def open_table(file: Path) -> Catalog:
    """The catalogue of a CSV file; paths in it are relative to its folder and stay inside it.

    A listed file that is missing is named. Raises DataError, with the line, for all else that is not as it must be.
    """
    rows = _rows(file)
    _refuse_half_split(file, rows)
    check = _Check(file.parent, os.path.realpath(file.parent))
    first: dict[str, _Row] = {}
    usable, named = [], []
    for row in rows:
        path, earlier = row.image.path, first.setdefault(row.image.path, row)
        reason = check.why_not(path) if earlier is row else _said_again(file, earlier, row)
        if reason == LINK_OUT:
            came = f"the path '{shown(path)}' leads out of the CSV's folder through a symbolic link"
            raise _bad(file, row.line, came, "Copy the image into the folder.")
        if reason is None:
            usable.append(row.image)
        else:
            named.append(Named(path, f"{reason} (line {row.line})"))
    if not usable:
        first_reason = f" (first: {shown(named[0].path)}: {named[0].reason})" if named else ""
        raise NotEnoughData(
            f"{shown(file.name)} lists {len(rows)} images and none of them is a file{first_reason}. Expected paths "
            f"relative to {shown(str(file.parent))}, with forward slashes."
        )
    return assemble(file.parent, usable, named, source="csv")


@dataclass(frozen=True)
class _Check:
    """Whether listed paths are files inside the CSV's folder; what is found of a subfolder is remembered."""

    root: Path
    real_root: str
    inside: dict[str, bool] = field(default_factory=dict)

    def why_not(self, path: str) -> str | None:
        """Why a listed path is no image file; None when it is one."""
        full = os.path.join(self.root, path)
        parent = os.path.dirname(full)
        if parent not in self.inside:
            self.inside[parent] = os.path.commonpath((self.real_root, os.path.realpath(parent))) == self.real_root
        if not self.inside[parent]:
            return LINK_OUT
        try:
            mode = os.lstat(full).st_mode
        except (OSError, ValueError):
            return "no such file"
        if stat.S_ISLNK(mode):
            return why_not_follow(full, self.real_root)
        return None if stat.S_ISREG(mode) else "not a regular file"


def _rows(file: Path) -> list[_Row]:
    """All lines below the header, checked one by one."""
    reader = csv.reader(io.StringIO(_text(file), newline=""), strict=True)
    try:
        header = next(reader, [])
        where = _columns(file, header)
        rows = []
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                came = f"it has {len(cells)} cells, expected {len(header)} ({shown(', '.join(header))})"
                raise _bad(file, reader.line_num, came, "Quote values that hold a comma.")
            values = {name: cells[index].strip() for name, index in where.items()}
            rows.append(_Row(reader.line_num, _labelled(file, reader.line_num, values)))
        return rows
    except csv.Error as error:
        raise _bad(file, reader.line_num, f"it is not CSV: {error}", "Save the table as CSV again.") from None


def _text(file: Path) -> str:
    """The file as text, UTF-8 with or without a byte order mark."""
    try:
        return file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{shown(str(file))} cannot be read: {error.strerror}. Check its permissions.") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{shown(file.name)} is not UTF-8 (byte {error.start}). Save it as 'CSV UTF-8', comma-separated."
        ) from None


def _columns(file: Path, header: list[str]) -> dict[str, int]:
    """Which cell holds which of the known columns."""
    names = [name.strip().lower() for name in header]
    if not {"path", "label"} <= set(names):
        came = ", ".join(f"'{shown(name.strip())}'" for name in header) or "none"
        raise DataError(
            f"{shown(file.name)} has the columns {came}; expected path and label, and if wanted split and group, "
            "separated by commas. Rename them in the first line."
        )
    twice = [name for name in COLUMNS if names.count(name) > 1]
    if twice:
        raise DataError(f"{shown(file.name)} has the column '{twice[0]}' more than once. Keep one of them.")
    return {name: names.index(name) for name in COLUMNS if name in names}


def _labelled(file: Path, line: int, values: dict[str, str]) -> Labelled:
    """One line as a labelled file."""
    path, label, word = values["path"], values["label"], values.get("split", "").lower()
    for column in ("path", "label"):
        if not values[column]:
            raise _bad(file, line, f"the {column} is empty", "Fill it in or delete the line.")
    if PurePosixPath(path).is_absolute() or PureWindowsPath(path).anchor or ".." in PureWindowsPath(path).parts:
        came = f"the path '{shown(path)}' is not allowed: it must lie under the CSV's folder, without '..'"
        raise _bad(file, line, came, "Put the CSV into the folder that holds the images.")
    if word and word not in _SPLIT_WORDS:
        came = f"the split '{shown(word)}' is unknown, nearest: {nearest(word, _SPLIT_WORDS)}"
        raise _bad(file, line, came, "Use train, val (or valid, validation) or test.")
    split = _SPLIT_WORDS[word] if word else None
    group = values.get("group") or None
    return Labelled(str(PurePosixPath(path)), class_name(label), split, group)


def _refuse_half_split(file: Path, rows: list[_Row]) -> None:
    """DataError when some lines have a split and some do not."""
    empty = [row.line for row in rows if row.image.split is None]
    if empty and len(empty) < len(rows):
        raise _bad(
            file,
            empty[0],
            f"the split is empty, as in {len(empty)} of {len(rows)} lines",
            "Give every line a split, or none.",
        )


def _said_again(file: Path, first: _Row, again: _Row) -> str:
    """Why a line that repeats an earlier one is not used; DataError when it says something else."""
    if first.image != again.image:
        before, now = _said(first.image), _said(again.image)
        came = f"'{shown(first.image.path)}' is {now} here and {before} in line {first.line}"
        raise _bad(file, again.line, came, "Keep one of the two lines.")
    return f"listed again, first in line {first.line}"


def _said(image: Labelled) -> str:
    """What a line says of its image."""
    parts = [f"'{image.label}'", image.split, f"group '{image.group}'" if image.group else None]
    return shown(", ".join(part for part in parts if part))


def _bad(file: Path, line: int, came: str, remedy: str) -> DataError:
    """The error for one line of the table."""
    return DataError(f"{shown(file.name)}, line {line}: {came}. {remedy}")
