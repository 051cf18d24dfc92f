"""What lies in a folder: image candidates, folders, and everything else with the reason it is not used (P4)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from burnish.data.catalog import Named
from burnish.errors import DataError, shown

SUFFIXES = (
    ".jpg", ".jpeg", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm",
    ".avif",
)  # fmt: skip
NO_SUFFIX = "not an image: ignored, not an image suffix"
NOT_REGULAR = "not an image: ignored, not a regular file"
# Images, but of kinds that are not read: who has them wants to know.
_UNREAD = {
    ".heic": "HEIC", ".heif": "HEIC", ".hif": "HEIC", ".jxl": "JPEG XL", ".jp2": "JPEG 2000", ".j2k": "JPEG 2000",
    ".psd": "Photoshop", ".dcm": "DICOM", ".exr": "OpenEXR",
}  # fmt: skip
RUN_FILE, RUN_LOCK = "run.json", ".lock"  # what every run's folder holds: what was asked, and who has it
_ASKED, _MOST_ASKED = {"method", "budget_seconds", "stage_decay"}, 1_000_000  # settings in it; bytes
A_RUN = "not an image: ignored, the folder of a run of burnish"
LINK_OUT = "a symbolic link out of the data folder: not followed"
_GLANCE = 50  # entries of a folder
# Left by systems and tools, lower case; names that begin with a dot are ignored as well.
_LITTER = ("__macosx", "__pycache__", "thumbs.db", "desktop.ini")


@dataclass(frozen=True)
class Scan:
    """The content of a folder, paths relative to it with forward slashes, in no promised order."""

    images: list[str]  # regular files with an image suffix; whether they are images, decoding tells
    folders: list[str]  # those that were looked into
    named: list[Named]


def holds_images(place: Path) -> bool:
    """Whether that is an image file, or a folder in which, or in whose folders, a glance finds one."""
    if place.is_file():
        return place.suffix.lower() in SUFFIXES
    first = list(_glance(place))
    inside = [entry for folder in first[:_GLANCE] if folder.is_dir() for entry in _glance(folder)]
    return any(entry.suffix.lower() in SUFFIXES for entry in [*first, *inside])


def _glance(folder: Path) -> list[Path]:
    """Some of what lies in a folder; nothing where it cannot be listed."""
    try:
        with os.scandir(folder) as listing:
            return [Path(entry.path) for entry in islice(listing, _GLANCE)]
    except OSError:
        return []


def scan(root: Path) -> Scan:
    """Everything under `root`, without following a link to a folder or out of it; DataError if `root` cannot be listed.

    An ignored folder is named once, not file by file. Symbolic links to image files inside `root` count as images.
    """
    real_root = _home(root)
    found, runs = Scan([], [], []), list[str]()
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(os.path.join(root, folder)) as listing:
                entries = list(listing)
        except OSError as error:
            if not folder:
                raise _unlisted(root, error) from None
            found.named.append(Named(folder, f"the folder cannot be listed: {error.strerror}"))
            continue
        new = [entry.name for entry in entries] == [RUN_LOCK]  # a run that has just begun: this one
        if folder and (new or any(map(_is_asked, entries))):
            found.named.append(Named(folder, A_RUN))
            runs.append(folder)
            continue
        if folder:
            found.folders.append(folder)
        for entry in entries:
            path = f"{folder}/{entry.name}" if folder else entry.name
            reason = _why_not(entry, real_root)
            if reason is not None:
                found.named.append(Named(path.encode("utf-8", "backslashreplace").decode(), reason))
            else:
                (waiting if entry.is_dir(follow_symlinks=False) else found.images).append(path)
    for folder in {run.rpartition("/")[0] for run in runs} & set(found.folders):  # runs/, which holds nothing else
        if not any(path.startswith(f"{folder}/") for path in (*found.images, *found.folders)):
            found.folders.remove(folder)
            found.named.append(Named(folder, A_RUN))
    return found


def require_listable(folder: Path) -> None:
    """DataError unless what lies in the folder may be listed and opened."""
    try:
        with os.scandir(folder):
            os.stat(os.path.join(folder, "."))
    except OSError as error:
        raise _unlisted(folder, error) from None


def _unlisted(folder: Path, error: OSError) -> DataError:
    return DataError(f"{shown(str(folder))} cannot be listed: {error.strerror}. Check the folder.")


def _home(root: Path) -> str:
    """The folder that links may lead into: `root`, or for a snapshot in the hub's cache the repository whose files it shows."""
    real = Path(os.path.realpath(root))
    repository = real.parent.parent
    return str(repository if real.parent.name == "snapshots" and (repository / "blobs").is_dir() else real)


def _why_not(entry: os.DirEntry[str], real_root: str) -> str | None:
    """Why an entry is neither a folder to look into nor an image candidate; None when it is one."""
    name = entry.name
    reason = why_not_by_name(name)
    if reason is not None:
        return reason
    if entry.is_symlink():
        reason = why_not_follow(entry.path, real_root)
        if reason is not None:
            return reason
    elif entry.is_dir(follow_symlinks=False):
        return None
    elif not entry.is_file(follow_symlinks=False):
        return NOT_REGULAR
    return why_not_by_suffix(name)


def _is_asked(entry: os.DirEntry[str]) -> bool:
    """Whether the file is what a run was asked, not someone's own of that name, nor a pipe that would be waited for."""
    try:
        if entry.name != RUN_FILE or not entry.is_file(follow_symlinks=False):
            return False
        with open(entry.path, "rb") as file:
            found = json.loads(file.read(_MOST_ASKED))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.keys() >= _ASKED


def why_not_by_suffix(name: str) -> str | None:
    """Why a file of that name is not taken for an image that can be read; None when it is."""
    if has_image_suffix(name):
        return None
    kind = _UNREAD.get(os.path.splitext(name)[1].lower())
    return NO_SUFFIX if kind is None else f"{kind} is not read: save it as JPEG, PNG or TIFF"


def why_not_by_name(name: str) -> str | None:
    """Why a file or folder of that name is not looked at, whatever it is."""
    if name.startswith("."):
        return "not an image: ignored, hidden"
    if name.lower() in _LITTER:
        return "not an image: ignored, left by a system or tool"
    if not name.isascii() and not is_utf8(name):
        return "its name is not UTF-8: rename it"
    return None


def has_image_suffix(name: str) -> bool:
    """Whether a file of that name is taken for an image."""
    return name.lower().endswith(SUFFIXES)


def why_not_follow(link: str, real_root: str) -> str | None:
    """Why a symbolic link is not used; None when it leads to a regular file inside `real_root`."""
    target = os.path.realpath(link)
    if os.path.islink(target):  # what is left of a circle
        return "a symbolic link that leads in a circle: not followed"
    if os.path.commonpath((real_root, target)) != real_root:
        return LINK_OUT
    if os.path.isdir(target):
        return "a symbolic link to a folder: not followed"
    return None if os.path.isfile(target) else "a symbolic link to nothing that is a file: not followed"


def plain_files(root: Path, files: Iterable[Path]) -> tuple[list[Path], list[Named]]:
    """Of these files below `root` the regular ones, as `scan` takes them, and the others by name: a pipe would be waited for.

    Links to files inside `root` count as files.
    """
    kept, named, real_root, home = list[Path](), list[Named](), os.path.realpath(root), _home(root)
    for file in files:
        below = os.path.relpath(file, root)
        if os.path.realpath(file) != os.path.join(real_root, below):
            reason = why_not_follow(os.fspath(file), home)
        else:
            reason = None if os.path.isfile(file) else NOT_REGULAR
        if reason is None:
            kept.append(file)
        else:
            named.append(Named(Path(below).as_posix().encode("utf-8", "backslashreplace").decode(), reason))
    return kept, named


def is_utf8(name: str) -> bool:
    """Whether a file name is text; bytes that are not UTF-8 reach Python as lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
