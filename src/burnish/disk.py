"""Writing files so that the old content or the new one is there, and saying in a sentence what the system refused (P9)."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from burnish.errors import RunError, shown

try:
    import fcntl
except ImportError:  # Windows has no advisory locks of this kind; there two runs into one folder are not told apart
    fcntl = None  # type: ignore[assignment]

_NUMBERED = re.compile(r"\d{4,9}")
_DRAFT = re.compile(r"\.\d{4,9}\.tmp")
MAX_JSON_BYTES = 16 * 2**20  # 21,843 class names (ImageNet-21k) take about 1 MB
OTHER_FOLDER = "make room or name another folder with --out (what was saved is kept)"
_TEXT: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}
# What `write_whole` leaves when the process dies in it.
_LEFT_BEHIND = re.compile(r"\.(?P<name>.+)\.[a-z0-9_]{8}")


def cache_folder() -> Path:
    """Where burnish may keep things: $BURNISH_CACHE, or burnish/ in the user's cache folder; RunError without a home."""
    named = os.environ.get("BURNISH_CACHE")
    if named:
        return Path(named)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "burnish"
    except RuntimeError:
        raise RunError("this user has no home folder to keep things in: set BURNISH_CACHE to a folder") from None


def require_temporary_folder() -> None:
    """RunError where nothing temporary can be written anywhere."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        raise RunError(
            "there is no temporary folder that can be written to (TMPDIR, /tmp, this folder); set TMPDIR to one"
        ) from None


def expanded(path: str | os.PathLike[str]) -> Path:
    """The path with ~ and ~user replaced; as it is where there is no such user: a file may be called so."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def text_of(path: Path, *, at_most: int = 2**29) -> str:
    """The UTF-8 text of a file of somebody else's making. OSError, or ValueError where it is no plain file or larger."""
    if path.exists() and not path.is_file():  # a pipe would be waited for, a device read for ever
        raise ValueError("is not a plain file")
    with open(path, "rb") as file:
        data = file.read(at_most + 1)
    if len(data) > at_most:
        raise ValueError(f"is larger than {at_most:,} bytes")
    return data.decode()


def read_plain_json(path: str | Path, *, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The object in a JSON file; OSError, or ValueError (one clause) when it is too large, no object, or not plain JSON.

    NaN, infinities and repeated keys are refused: they are not JSON, or mean different things to different readers.
    """
    try:
        text = text_of(Path(path), at_most=max_bytes).removeprefix("\ufeff")
        value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unrepeated)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8 text") from None
    if not isinstance(value, dict):
        raise ValueError("holds no JSON object")
    return value


def _refuse_constant(text: str) -> float:
    raise ValueError(f"holds {text}, which is not JSON")


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("repeats a key")
    return values


def write_whole(path: Path, text: str, *, follows: bool = False) -> None:
    """Replace a file by a new one with this content, in one step; durable on return.

    follows: a link, as of a name that the user gives; else it is the link that is replaced: in a run folder that came from
    elsewhere it may lead anywhere.
    """
    with plain_disk_errors(path.parent), replacing(path, follows=follows) as file:
        file.write(text)


@contextmanager
def replacing(path: Path, *, follows: bool = True) -> Iterator[TextIO]:
    """A file to write UTF-8 text to, in the end in the place of the one at `path`, which stays until then; durable on return.

    Where that is a link the file it leads to is replaced; a device, a pipe or /dev/stdout is written to as it is. Where
    not `follows`, the link, device or pipe itself is replaced.
    """
    where = path.absolute().parts[1:3]
    special = where[:1] in (("dev",), ("proc",)) and where != ("dev", "shm")
    if follows and (special or (path.exists() and not path.is_file())):
        with open(path, "w", **_TEXT) as file:
            yield file
        return
    path = Path(os.path.realpath(path)) if follows and path.is_symlink() else path
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", **_TEXT) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, _mode_for(path))
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _mode_for(path: Path) -> int:
    """The permissions of the file that is there, or those that a new one would have."""
    try:
        found = path.lstat().st_mode
        return stat.S_IMODE(found) if stat.S_ISREG(found) else _usual_mode()
    except OSError:
        return _usual_mode()


def _usual_mode() -> int:
    """The permissions of a new file."""
    mask = os.umask(0o077)
    os.umask(mask)
    return 0o666 & ~mask


def locked(descriptor: int) -> bool:
    """Whether the open file is this process's alone now, until it is closed.

    Where there are no such locks (Windows, some file systems of clusters) everybody is told so.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)
    return True


def refuse_links(folder: Path, names: Iterable[str], *, within: Iterable[str] = ()) -> None:
    """RunError where an entry of the folder with one of these names is a link, a pipe or a device; `within`: or holds one.

    What is written to it would be written wherever a folder that came from elsewhere says.
    """
    waiting = [(folder / name, name in within) for name in names]
    while waiting:
        path, deep = waiting.pop()
        try:
            mode = path.lstat().st_mode
        except OSError:
            continue
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            what = "a link" if stat.S_ISLNK(mode) else "no plain file"
            raise RunError(
                f"{shown(str(path))} is {what}, which burnish did not make; remove it, or name another folder with --out"
            )
        if deep and stat.S_ISDIR(mode):
            waiting += [(one, True) for one in path.iterdir()]


def write_bytes_whole(path: Path, data: bytes) -> None:
    """Replace a file by a new one of these bytes, in one step. Raises OSError."""
    draft = path.parent / f".{path.name}.tmp"
    try:
        draft.unlink(missing_ok=True)  # what a death left, or a link that would be followed
        _write_durably(draft, data)
        os.replace(draft, path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def left_behind(name: str) -> str | None:
    """The file that was being written whole, when `name` is what a process that died in it left; else None."""
    found = _LEFT_BEHIND.fullmatch(name)
    return found["name"] if found else None


def write_version(folder: Path, members: Mapping[str, bytes], *, versions: str, pointer: str, keep: int = 1) -> Path:
    """Write the members as the next numbered folder FOLDER/VERSIONS/0001, then point to it; returns that folder.

    It is written under another name, made durable, renamed, and only then does one `os.replace` move the pointer, a
    JSON file {"current": "VERSIONS/0001"}: whoever reads finds the old version or the new one, never parts of both.
    All but the newest `keep` are removed, of what holds such members alone. Raises OSError; the version before stays the
    current one then.
    """
    home, draft, made = folder / versions, None, None
    try:
        if home.is_symlink():  # of a folder that came from elsewhere: it may lead anywhere
            raise OSError(errno.ELOOP, "it is a link, which burnish did not make", str(home))
        home.mkdir(parents=True, exist_ok=True)
        number = 1 + max((int(path.name) for path in home.iterdir() if path.name.isdigit()), default=0)
        final, draft = home / f"{number:04d}", home / f".{number:04d}.tmp"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        for name, data in members.items():
            _write_durably(draft / name, data)
        sync_folder(draft)
        os.rename(draft, final)
        draft, made = None, final
        sync_folder(home)
        _point_to(folder / pointer, f"{versions}/{final.name}")
        made = None
        sync_folder(folder)
    except OSError:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)
        # A network's file system may say that a rename failed which took effect.
        if made is not None and not _points_to(folder / pointer, made.name):
            shutil.rmtree(made, ignore_errors=True)
        raise
    _prune(home, set(members), keep=keep)
    return final


def _points_to(pointer: Path, name: str) -> bool:
    """Whether the pointer may name this version: it does, or cannot be read."""
    try:
        return name in pointer.read_text(encoding="utf-8")
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        return True


def versions_of(folder: Path, *, versions: str) -> list[Path]:
    """The numbered folders that `write_version` made, newest first."""
    home = folder / versions
    found = [path for path in home.iterdir() if _NUMBERED.fullmatch(path.name)] if home.is_dir() else []
    return sorted(found, key=lambda path: int(path.name), reverse=True)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    if os.name == "nt":  # Windows cannot open a folder
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _point_to(pointer: Path, current: str) -> None:
    write_bytes_whole(pointer, json.dumps({"current": current}).encode() + b"\n")


def _prune(home: Path, members: set[str], *, keep: int) -> None:
    """Remove older versions, and drafts that a killed process left; what cannot be removed does no harm.

    A folder that holds anything else is none of ours: photographs of a year have such names too.
    """
    with contextlib.suppress(OSError):
        old = versions_of(home.parent, versions=home.name)[keep:]
        for path in [*old, *(path for path in home.iterdir() if _DRAFT.fullmatch(path.name))]:
            with contextlib.suppress(OSError):
                if set(os.listdir(path)) <= members:
                    shutil.rmtree(path, ignore_errors=True)


def _write_durably(path: Path, data: bytes) -> None:
    """A new file, which must not be there: nothing is written through a link."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def no_folder(path: Path) -> RunError | None:
    """The error for a file, a device or a link to nothing where a folder was to be; None where there is none of them."""
    there = next((one for one in (path, *path.parents) if os.path.lexists(one) and not os.path.isdir(one)), None)
    if there is None:
        return None
    lies = "" if there == path else f", so {shown(str(path))} cannot lie in it"
    return RunError(
        f"{shown(str(there))} is {'a file' if os.path.isfile(there) else 'no folder'}{lies}; name a folder with --out"
    )


@contextmanager
def plain_disk_errors(path: Path, remedy: str = OTHER_FOLDER) -> Iterator[None]:
    """Say in a sentence what the operating system refused, and what to do."""
    try:
        yield
    except BrokenPipeError:  # /dev/stdout, and whoever read it has left
        raise
    except OSError as error:
        file = no_folder(path) if error.errno in (errno.EEXIST, errno.ENOTDIR) and "--out" in remedy else None
        if file is not None:
            raise file from None
        reasons = {
            errno.ENOSPC: "the disk is full",
            errno.EDQUOT: "the disk quota is used up",
            errno.EROFS: "it is read-only",
        }
        reason = reasons.get(error.errno or 0, error.strerror or str(error))
        raise RunError(f"cannot write to {shown(str(path))}: {reason}; {remedy}") from None
