"""WebDataset shards: tar files in which KEY.jpg stands beside KEY.cls, KEY.txt or KEY.json with its label."""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from burnish.data.catalog import Catalog, Named
from burnish.data.contents import Packed, Place, Spool
from burnish.data.file import MAX_BYTES
from burnish.data.sources.archive import places_in_tar
from burnish.data.sources.assemble import Labelled, assemble, class_name, class_names, told_apart, with_several
from burnish.data.sources.folder import SPLIT_FOLDERS
from burnish.data.sources.scan import SUFFIXES, is_utf8, plain_files, why_not_by_name
from burnish.disk import text_of
from burnish.errors import DataError, NotEnoughData, shown

CLASS_FILES = ("classes.txt", "classnames.txt")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_LABELS = ("cls", "json", "txt")  # in this order of trust
_KEYS = ("label", "labels", "cls", "class", "class_name")  # of a JSON label
_MOST_SHARDS, _MOST_LABEL_BYTES, _MOST_NAMES_BYTES = 100_000, 65_536, 16 * 2**20


def open_shards(
    files: list[Path], known: Mapping[Path, tuple[dict[str, Place], dict[str, str]]] | None = None
) -> Catalog:
    """The catalogue of such tar files; the split is the word their name begins with, if it is one.

    known: of files that were looked into before the members' places, and what was passed over and why.
    Class numbers are named by the lines of classes.txt or classnames.txt beside the shards. An image without a label, or a
    label without an image, is named. DataError when a shard is damaged.
    """
    root = Path(os.path.commonpath([os.path.abspath(file.parent) for file in files]))
    images, named, places = list[Labelled](), list[Named](), dict[str, Place]()
    homes = dict.fromkeys((root, Path(os.path.abspath(files[0].parent))))
    names = next(filter(None, (_class_names(root, home, named) for home in homes)), [])
    counted = len(named)  # files of class names that are none
    spool = Spool()  # one for all: each may hold much in memory, and one open file
    for file in files:
        found, aside = (known or {}).get(file) or places_in_tar(file, spool)
        counted += len(aside) + len({_parted(member)[0] for member in found})
        called = Path(os.path.abspath(file)).relative_to(root).as_posix()  # shards in two folders may have one name
        named += [Named(f"{called}/{name}", reason) for name, reason in aside.items()]
        for labelled, place in _samples(file, called, found, names, named):
            images.append(labelled)
            places[labelled.path] = place
    if not images:
        first = f" (first: {shown(named[0].path)}: {named[0].reason})" if named else ""
        raise NotEnoughData(
            f"{shown(str(root))}: {len(files)} shards hold no labelled image{first}. Expected KEY.jpg beside KEY.cls, "
            "KEY.txt or KEY.json."
        )
    contents = Packed(places, MAX_BYTES)
    return assemble(root, with_several(images), named, source="shards", counted=counted, contents=contents)


def is_shard(names: Iterable[str], label: str) -> bool:
    """Whether a tar with members of these names is a shard: images and their labels under one key.

    Where images lie in several folders the few that have such a file do not make it one. Where most have, and no .cls, the file
    may be a note or a caption and the folder the class: DataError, naming the archive by `label`, for nothing tells.
    """
    keys: dict[str, set[str]] = defaultdict(set)
    for name in names:
        key, extension = _parted(name)
        keys[key].add(extension)
    pictures = {key: parts for key, parts in keys.items() if any("." + one in SUFFIXES for one in parts)}
    labelled = [key for key, parts in pictures.items() if parts & set(_LABELS)]
    if not labelled:
        return False
    folders = {key.rpartition("/")[0].rpartition("/")[2] for key in pictures}
    if len(folders) < 2 or all(re.fullmatch(r"\d*", name) for name in folders):  # shards' own folders are numbered
        return True
    if 2 * len(labelled) < len(pictures):
        return False
    if not any("cls" in pictures[key] for key in labelled):
        first, other = sorted(folders)[:2]
        raise DataError(
            f"{label} holds images in folders ({shown(first)}, {shown(other)}, …), and beside most of them a .txt or .json: "
            "either may say the class. Leave those files out for the folders to be the classes, or call them .cls."
        )
    return True


def shards_in(pattern: str) -> list[Path]:
    """The files of a pattern such as shards/train-{000..003}.tar; DataError when one is missing or there are too many."""
    waiting, files = [pattern], []
    while waiting:
        one = waiting.pop()
        match = _RANGE.search(one)
        if match is None:
            files.append(Path(one).expanduser())
            continue
        low, high = int(match[1]), int(match[2])
        if high < low or high - low >= _MOST_SHARDS or len(waiting) > _MOST_SHARDS:
            raise DataError(
                f"{shown(pattern)}: the range {match[0]} is empty or too long. Expected such as {{000..012}}."
            )
        width = len(match[1])
        waiting += [f"{one[: match.start()]}{number:0{width}d}{one[match.end() :]}" for number in range(low, high + 1)]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise DataError(
            f"{shown(pattern)} means {len(files)} files, and there is no {shown(str(missing[-1]))}. Check the range."
        )
    return sorted(files)


def _samples(
    file: Path, called: str, found: Mapping[str, Place], names: list[str], named: list[Named]
) -> Iterable[tuple[Labelled, Place]]:
    """The labelled images of one shard; what is none goes to `named`."""
    keys: dict[str, dict[str, str]] = defaultdict(dict)  # key -> extension -> member
    for member in found:
        key, extension = _parted(member)
        keys[key][extension] = member
    split = SPLIT_FOLDERS.get(re.split(r"[^a-z]", file.name.lower(), maxsplit=1)[0])
    for key, parts in keys.items():
        pictures = [extension for extension in parts if "." + extension in SUFFIXES]
        where = f"{called}/{parts[pictures[0]] if pictures else key}"
        hidden = next(filter(None, map(why_not_by_name, PurePosixPath(key).parts)), None)
        if hidden is not None or len(pictures) != 1:
            why = f"{len(pictures)} images under one key" if pictures else "a key without an image"
            named.append(Named(where, hidden or why))
            continue
        label, reason = _label_of(parts, found, names)
        if label is None:
            named.append(Named(where, reason))
        else:
            known = class_names(label) if isinstance(label, list) else class_name(label)
            yield Labelled(where, known, split), found[parts[pictures[0]]]


def _label_of(
    parts: Mapping[str, str], found: Mapping[str, Place], names: list[str]
) -> tuple[str | list[str] | None, str]:
    """(label, "") of a key, (labels, "") where it is a JSON list, or (None, why it has none)."""
    extension = next((one for one in _LABELS if one in parts), None)
    if extension is None:
        return None, "an image without a label (.cls, .txt or .json)"
    place = found[parts[extension]]
    if place.length > _MOST_LABEL_BYTES:
        return None, f"its label has {place.length:,} bytes"
    try:
        value: Any = place.read().decode("utf-8-sig").strip()
        if extension == "json":
            values = json.loads(value)
            value = next((values[key] for key in _KEYS if key in values), None) if isinstance(values, dict) else values
    except (OSError, ValueError, RecursionError):
        return None, f"its label .{extension} cannot be read"
    if not isinstance(value, list):
        return _named_class(value, extension, names)
    told = [_named_class(one, extension, names) for one in value]
    bad = next((reason for label, reason in told if label is None), "")
    return (None, bad) if bad else ([label for label, _ in told if label is not None], "")


def _named_class(value: Any, extension: str, names: list[str]) -> tuple[str | None, str]:
    """(class, "") of a name or number, or (None, why it is none)."""
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        return None, f"its .{extension} holds no label"
    if str(value).isdecimal() and names:
        if len(str(value).lstrip("0")) > len(str(len(names))) or int(value) >= len(names):
            return None, f"its class is number {shown(str(value))[:20]}, and {len(names)} are named"
        return names[int(value)], ""
    return (str(value), "") if is_utf8(str(value)) else (None, f"its .{extension} holds half a character")


def _class_names(root: Path, folder: Path, named: list[Named]) -> list[str]:
    """The lines of the file of class names in a folder of the data; one that is none of its files goes to `named`."""
    files, others = plain_files(root, (folder / name for name in CLASS_FILES if os.path.lexists(folder / name)))
    named += others
    for file in files:
        try:
            return told_apart(text_of(file, at_most=_MOST_NAMES_BYTES).removeprefix("\ufeff").splitlines())
        except UnicodeDecodeError:
            raise DataError(f"{shown(str(file))} cannot be read as UTF-8 text. Save it so.") from None
        except (OSError, ValueError) as error:
            raise DataError(
                f"{shown(str(file))} cannot be read ({shown(str(error))}). Expected the name of a class a line."
            ) from None
    return []


def _parted(member: str) -> tuple[str, str]:
    """(key, extension) as WebDataset has it: the name is cut at its first dot."""
    folder, slash, name = member.rpartition("/")
    stem, _, extension = name.partition(".")
    return folder + slash + stem, extension.lower()
