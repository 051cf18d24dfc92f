"""Images listed in a table: CSV, TSV or JSON lines with path and label, and where wanted split and group.

Several classes an image are written a|b, or as a list in JSON; none of them as | or an empty list. `labels` does for `label`.
"""

from __future__ import annotations

import csv
import json
import os
import re
import stat
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from burnish.data.catalog import SPLIT_WORDS, Catalog, Named
from burnish.data.contents import Contents
from burnish.data.sources.assemble import Labelled, as_in_a_table, assemble, class_name, class_names, with_several
from burnish.data.sources.folder import SPLIT_FOLDERS
from burnish.data.sources.header import names_path_and_label, separator_of
from burnish.data.sources.scan import LINK_OUT, is_utf8, why_not_follow
from burnish.errors import DataError, NotEnoughData, nearest, shown, some
from burnish.labels import SEPARATOR

COLUMNS = ("path", "label", "split", "group")  # the first two are required; others are named and not used
_MOST_UNUSED = 10  # of the others that are named
_MOST_CELL_BYTES = 2**20
_LONGEST = 4096  # characters of a path, a label or a group: as long as a path may be on Linux
# Paths in which nothing is to be looked at or set right, as nearly all are: taking each apart three times was most of the seconds
# in which a table of 150,000 is read.
_PLAIN_PATH = re.compile(r"(?!\.\.?(?:/|$))[^/\\:]+(?:/(?!\.\.?(?:/|$))[^/\\:]+)*")
Label = str | tuple[str, ...]
Values = dict[str, Any]  # column -> text, "" where there is none; a label may be a list of texts


def open_table(file: Path) -> Catalog:
    """The catalogue of a CSV, TSV or JSON-lines file; paths in it are relative to its folder and stay inside it.

    A listed file that is missing is named. Raises DataError, with the line, for all else that is not as it must be.
    """
    others: dict[str, None] = {}
    rows = _json_rows(file, others) if file.suffix.lower() in (".jsonl", ".ndjson") else _cell_rows(file, others)
    catalog = from_rows(file, rows, source=file.suffix.lower().removeprefix("."))
    return replace(catalog, unused=tuple(others))


def listed_in(file: Path) -> Iterator[Path | Named]:
    """The images that such a table lists in its column path, line by line; one that is no file there with the reason."""
    rows = _json_rows if file.suffix.lower() in (".jsonl", ".ndjson") else _cell_rows
    return listed(file, rows(file, {}, needed=("path",)))


def listed(file: Path, rows: Iterable[tuple[int, Values]], *, unit: str = "line") -> Iterator[Path | Named]:
    """The images that rows name by their paths; one that is no file with the reason. DataError where there are no rows."""
    check = _Check(file.parent, os.path.realpath(file.parent))
    line = 0
    for line, values in rows:
        path = check.meant(values["path"])
        reason = "the path is empty" if not path else _outside(path) or check.why_not(path)
        yield file.parent / path if reason is None else Named(path, f"{reason} ({shown(file.name)}, {unit} {line})")
    if not line:
        raise DataError(f"{shown(file.name)} lists no images.")


def from_rows(
    file: Path,
    rows: Iterable[tuple[int, Values]],
    *,
    source: str,
    unit: str = "line",
    contents: Contents | None = None,
) -> Catalog:
    """The catalogue of (line, values) rows. contents: where the images lie that the paths name, when they are no files."""
    check = _Check(file.parent, os.path.realpath(file.parent))
    place: dict[str, int] = {}
    images, lines, named, same = [], array("q"), [], sys.intern
    counted = 0
    for line, values in rows:
        counted += 1
        path = values["path"] if contents is not None else check.meant(values["path"])
        image = _labelled(file, unit, line, {**values, "path": path}, same)
        at = place.setdefault(image.path, len(images))
        if at < len(images):
            reason = _said_again(file, unit, images[at], lines[at], image, line)
            named.append(Named(image.path, f"{reason} ({unit} {line})"))
        else:
            images.append(image)
            lines.append(line)
    _refuse_half_split(file, unit, images, lines)
    empty = next((at for at, image in enumerate(images) if image.label == ""), None)
    if empty is not None:
        advice = "Fill it in or delete the line; an image of none of several classes has the label | or an empty list."
        raise _bad(file, unit, lines[empty], "the label is empty", advice)
    images = with_several(images)
    usable = images
    if contents is None:
        usable = []
        for image, line in zip(images, lines, strict=True):
            reason = check.why_not(image.path)
            if reason == LINK_OUT:
                came = f"the path '{shown(image.path)}' leads out of the table's folder through a symbolic link"
                raise _bad(file, unit, line, came, "Copy the image into the folder.")
            if reason is None:
                usable.append(image)
            else:
                named.append(Named(image.path, f"{reason} ({unit} {line})"))
    if not usable:
        first_reason = f" (first: {shown(named[0].path)}: {named[0].reason})" if named else ""
        raise NotEnoughData(
            f"{shown(file.name)} lists {len(images)} images and none of them is a file{first_reason}. Expected paths "
            f"relative to {shown(str(file.parent))}, with forward slashes."
        )
    return assemble(file.parent, usable, named, source=source, counted=counted, contents=contents)


@dataclass(frozen=True)
class _Check:
    """Whether listed paths are files inside the CSV's folder; what is found of a subfolder is remembered."""

    root: Path
    real_root: str
    inside: dict[str, bool] = field(default_factory=dict)

    def meant(self, path: str) -> str:
        """The listed path as it stands, less the blanks around it, or with forward slashes: the first that is a file."""
        plain = path.strip()
        slashed = plain.replace("\\", "/")  # as Windows writes it
        if path == slashed or not plain:
            return plain
        return next((one for one in (path, plain, slashed) if self.why_not(one) is None), plain)

    def why_not(self, path: str) -> str | None:
        """Why a listed path is no image file; None when it is one."""
        full = os.path.join(self.root, path)
        parent = os.path.dirname(full)
        if parent not in self.inside:
            try:
                self.inside[parent] = os.path.commonpath((self.real_root, os.path.realpath(parent))) == self.real_root
            except ValueError:  # no file can have such a name
                return "no such file"
        if not self.inside[parent]:
            return LINK_OUT
        try:
            mode = os.lstat(full).st_mode
        except (OSError, ValueError):
            return "no such file"
        if stat.S_ISLNK(mode):
            return why_not_follow(full, self.real_root)
        return None if stat.S_ISREG(mode) else "not a regular file"


def _cell_rows(
    file: Path, others: dict[str, None], *, needed: tuple[str, ...] = COLUMNS[:2]
) -> Iterator[tuple[int, Values]]:
    """All lines of a CSV or TSV below its header; others: takes some names of columns that are not used."""

    def fits(names: set[str]) -> bool:
        return names_path_and_label(names) or set(needed) <= names

    line = 1
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            first = stream.readline(_MOST_CELL_BYTES)
            if "\0" in first:  # every other byte of UTF-16
                raise _not_utf8(file)
            delimiter = "\t" if file.suffix.lower() == ".tsv" else separator_of(first, fits)
            stream.seek(0)
            reader = csv.reader(stream, strict=True, delimiter=delimiter)
            header = next(reader, [])
            where = _columns(file, header, needed)
            note_others(others, [name for at, name in enumerate(header) if at not in where.values()])
            for cells in reader:
                line = reader.line_num
                if not any(cell.strip() for cell in cells):
                    continue
                if len(cells) != len(header):
                    came = f"it has {len(cells)} cells, expected {len(header)} ({some(header, quote='')})"
                    raise _bad(file, "line", line, came, "Quote values that hold a comma.")
                yield (
                    line,
                    {name: cells[index] if name == "path" else cells[index].strip() for name, index in where.items()},
                )
    except csv.Error as error:
        raise _bad(file, "line", line + 1, f"it is not CSV: {error}", "Save the table as CSV again.") from None
    except OSError as error:
        raise DataError(f"{shown(str(file))} cannot be read: {error.strerror}. Check its permissions.") from None
    except UnicodeDecodeError:
        raise _not_utf8(file) from None


def _json_rows(
    file: Path, others: dict[str, None], *, needed: tuple[str, ...] = COLUMNS[:2]
) -> Iterator[tuple[int, Values]]:
    """All objects of a file with one a line; others: takes some names of entries that are not used."""
    try:
        with open(file, encoding="utf-8-sig") as stream:
            for line, text in enumerate(stream, start=1):
                if not text.strip():
                    continue
                if "\0" in text:
                    raise _not_utf8(file)
                try:
                    values = json.loads(text)
                except (ValueError, RecursionError) as error:
                    raise _bad(file, "line", line, f"it is not JSON ({shown(str(error))[:80]})", _JSON_ADVICE) from None
                if not isinstance(values, dict):
                    raise _bad(file, "line", line, f"it is {_kind(values)}, expected an object", _JSON_ADVICE)
                lowered = {str(key).strip().lower(): value for key, value in values.items()}
                if "label" not in lowered and "labels" in lowered:
                    lowered["label"] = lowered["labels"]
                note_others(others, [name for name in lowered if name not in (*COLUMNS, "labels")])
                lacking = [name for name in needed if name not in lowered]
                if lacking:
                    raise _bad(file, "line", line, f"it has no {' and no '.join(lacking)}", _JSON_ADVICE)
                yield line, {name: _value(file, line, name, lowered.get(name)) for name in COLUMNS}
    except OSError as error:
        raise DataError(f"{shown(str(file))} cannot be read: {error.strerror}. Check its permissions.") from None
    except UnicodeDecodeError:
        raise _not_utf8(file) from None


def note_others(others: dict[str, None], names: Iterable[str]) -> None:
    """Note some names of what is not used; one without letters is none."""
    for name in names:
        if name.strip() and len(others) < _MOST_UNUSED:
            others.setdefault(name.strip())


_JSON_ADVICE = 'Write one object a line: {"path": "cat/1.jpg", "label": "cat"}.'


def _value(file: Path, line: int, name: str, value: Any) -> str | list[str]:
    """A JSON value as the text of a cell, or a list of classes as texts."""
    if name == "label" and isinstance(value, list):
        if any(isinstance(one, bool) for one in value):
            raise _bad(file, "line", line, "a label in its list is true or false, expected text", _JSON_ADVICE)
        return [_text(file, line, name, one) for one in value]
    return _text(file, line, name, value)


def _text(file: Path, line: int, name: str, value: Any) -> str:
    """A JSON value as the text of a cell."""
    if value is None:
        return ""
    value = as_in_a_table(value) if name != "path" else value
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise _bad(file, "line", line, f"the {name} is {_kind(value)}, expected text", _JSON_ADVICE)
    return str(value) if name == "path" else str(value).strip()


def _kind(value: Any) -> str:
    """What a JSON value is, in words."""
    kinds = {
        bool: "true or false",
        float: "a fraction",
        int: "a number",
        list: "a list",
        dict: "an object",
        str: "text",
    }
    return "not a number (NaN)" if value != value else kinds.get(type(value), "null")


def _not_utf8(file: Path) -> DataError:
    """The error, with the first byte that is not, or that is zero."""
    data = file.read_bytes()
    try:
        data.decode("utf-8-sig")
        at = max(0, data.find(0))
    except UnicodeDecodeError as error:
        at = error.start
    return DataError(f"{shown(file.name)} is not UTF-8 (byte {at}). Save it as 'CSV UTF-8', comma-separated.")


def _columns(file: Path, header: list[str], needed: tuple[str, ...]) -> dict[str, int]:
    """Which cell holds which of the known columns."""
    names = [name.strip().lower() for name in header]
    if "label" not in names:
        names = ["label" if name == "labels" else name for name in names]
    if not set(needed) <= set(names):
        came = some([name.strip() for name in header])
        more = ", and if wanted split and group, separated by commas" if len(needed) > 1 else ""
        raise DataError(
            f"{shown(file.name)} has the columns {came}; expected {' and '.join(needed)}{more}. {_renaming(names)}"
        )
    twice = [name for name in COLUMNS if names.count(name) > 1]
    if twice:
        raise DataError(f"{shown(file.name)} has the column '{twice[0]}' more than once. Keep one of them.")
    return {name: names.index(name) for name in COLUMNS if name in names}


def _renaming(names: list[str]) -> str:
    """What to do about a header that lacks path or label."""
    if "path" in names and len(set(names) - set(COLUMNS)) > 1:
        return (
            "Rename them in the first line; or, if there is a column of 0 and 1 for each class, write the names of those that "
            "are 1 into one column label, separated by |."
        )
    return "Rename them in the first line."


def _labelled(file: Path, unit: str, line: int, values: Values, same: Callable[[str], str]) -> Labelled:
    """One line as a labelled file. same: the one object for equal texts, so that a million rows share their labels."""
    path, label, word = values["path"], values["label"], values.get("split", "").lower()
    if not path:
        raise _bad(file, unit, line, "the path is empty", "Fill it in or delete the line.")
    texts = [path, *(label if isinstance(label, list) else [label]), values.get("group") or ""]
    if odd := next((text for text in texts if not is_utf8(text)), None):
        came = f"'{shown(odd)}' holds half a character"
        raise _bad(file, unit, line, came, "Write it anew.")
    if long := next((text for text in texts if len(text) > _LONGEST), None):
        came = f"'{shown(long[:40])}…' has {len(long):,} characters, expected {_LONGEST:,} at most"
        raise _bad(file, unit, line, came, "Is it text for another column?")
    if isinstance(label, list) and any(not one.strip() for one in label):
        raise _bad(file, unit, line, "a label in its list is empty", "Fill it in or take it out of the list.")
    plain = _PLAIN_PATH.fullmatch(path) is not None
    if not plain and (reason := _outside(path)):
        came = f"the path '{shown(path)}' {reason}"
        raise _bad(
            file, unit, line, came, "Put the CSV into the folder that holds the images, and write paths from there."
        )
    if word and word not in SPLIT_FOLDERS:
        came = f"the split '{shown(word)}' is unknown, nearest: {nearest(word, SPLIT_WORDS)}"
        raise _bad(file, unit, line, came, "Use train, val (or valid, validation) or test.")
    split = SPLIT_FOLDERS[word] if word else None
    group = values.get("group")
    known: Label = class_names(label) if isinstance(label, list) else same(class_name(label))
    return Labelled(path if plain else str(PurePosixPath(path)), known, split, same(group) if group else None)


def _outside(path: str) -> str | None:
    """Why a path may not be followed, by how it reads."""
    if PurePosixPath(path).is_absolute() or PureWindowsPath(path).anchor or ".." in PureWindowsPath(path).parts:
        return "is not allowed: it must be relative to the CSV's folder, without '..'"
    return None


def _refuse_half_split(file: Path, unit: str, images: list[Labelled], lines: array[int]) -> None:
    """DataError when some lines have a split and some do not."""
    empty = [at for at, image in enumerate(images) if image.split is None]
    if empty and len(empty) < len(images):
        came = f"the split is empty, as in {len(empty)} of {len(images)} {unit}s"
        raise _bad(file, unit, lines[empty[0]], came, f"Give every {unit} a split, or none.")


def _said_again(file: Path, unit: str, first: Labelled, line: int, again: Labelled, here: int) -> str:
    """Why a line that repeats an earlier one is not used; DataError when it says something else."""
    if first != again:
        before, now = _said(first), _said(again)
        came = f"'{shown(first.path)}' is {now} here and {before} in {unit} {line}"
        raise _bad(file, unit, here, came, f"Keep one of the two {unit}s.")
    return f"listed again, first in {unit} {line}"


def _said(image: Labelled) -> str:
    """What a line says of its image."""
    label = image.label if isinstance(image.label, str) else SEPARATOR.join(image.label)
    parts = [f"'{label}'", image.split, f"group '{image.group}'" if image.group else None]
    return shown(", ".join(part for part in parts if part))


def _bad(file: Path, unit: str, line: int, came: str, remedy: str) -> DataError:
    """The error for one line of the table."""
    return DataError(f"{shown(file.name)}, {unit} {line}: {came}. {remedy}")
