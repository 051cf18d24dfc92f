"""What is made of a run beside it: a package in a folder of its own, which is whole or not there (P9)."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from burnish.disk import expanded, locked, plain_disk_errors, sync_folder
from burnish.errors import RunError, shown
from burnish.record.folder import HARDENED, IMAGES, LEARNT, SLIM, SPLITS, home_of, no_run

_LEARNT = (SPLITS, IMAGES, LEARNT)  # which tell what a model learnt from: a test on those images would prove nothing
_DRAFT = ".tmp"
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE, renameat2(2)


def place_beside(run: Path, out: str | os.PathLike[str] | None, suffix: str) -> Path:
    """The folder for what is made of a run: `out`, or the run's name and -suffix beside it; RunError where it is not free.

    Of an arm of a comparison COMPARISON-ARM-suffix beside the comparison, whose own the folder of its arms is.
    """
    if not run.exists():
        raise no_run(run)
    if out is not None and not os.fspath(out):
        raise RunError("the name of the folder is empty; name one with --out, or leave it out")
    run = run if run.name not in ("", "..") else run.resolve()
    home = home_of(run)
    name = run.name if home == run else f"{home.name}-{run.name}"
    return _free(home.with_name(f"{name}-{suffix}") if out is None else expanded(out))


@contextmanager
def made_whole(place: Path, *, replaces: Callable[[], None] | None = None) -> Iterator[Path]:
    """A folder to write in, which takes its place whole at the end; nothing is left of it after an error.

    replaces: asked, last of all, whether the folder that lies there may go, which it does in one step; it raises where not.
    Without it the place must be free. RunError, before anything is done, where no folder can be made there. Of a process that is
    killed a hidden folder stays, until the same is made again.
    """
    draft = place.with_name(_draft_of(place, str(os.getpid())))
    with plain_disk_errors(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        _clear_drafts(place)
        shutil.rmtree(draft, ignore_errors=True)  # of a process that had this number, and was killed
        draft.mkdir()
    held = _held(draft)
    try:
        yield draft
        with plain_disk_errors(place):
            sync_folder(draft)
            if replaces is not None and os.path.lexists(place):
                replaces()
                _exchange(draft, place)
            else:
                os.replace(draft, _free(place))
            sync_folder(place.parent)
    finally:
        if held is not None:
            os.close(held)
        shutil.rmtree(draft, ignore_errors=True)


def _exchange(draft: Path, place: Path) -> None:
    """Give each of two folders the other's name: in one step where the system can, else the old one is moved away first."""
    try:
        renamed = ctypes.CDLL(None, use_errno=True).renameat2  # of Linux, which Python does not have
        if not renamed(_HERE, os.fsencode(draft), _HERE, os.fsencode(place), _EXCHANGE):
            return
    except (AttributeError, OSError, TypeError):  # another system, or an older library of C
        pass
    aside = place.with_name(f"{draft.name}.before")
    os.rename(place, aside)
    try:
        os.rename(draft, place)
    except OSError:
        os.rename(aside, place)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _draft_of(place: Path, number: str) -> str:
    """The name of the hidden folder that the process with that number writes in."""
    return f".{place.name}.{number}{_DRAFT}"


def _clear_drafts(place: Path) -> None:
    """Remove what killed processes left of the same place: real folders alone, which no living process holds.

    Two signs must agree. The number may be another's by now, or of a machine or container that shares the disk; the lock, which
    ends with its process, may be missing where the disk has none.
    """
    begins, ends = _draft_of(place, "|").rsplit("|", 1)
    try:
        names = os.listdir(place.parent)
    except OSError:  # a folder that may be written to and not listed
        return
    for name in names:
        number = name.removeprefix(begins).removesuffix(ends)
        if name != _draft_of(place, number) or not (number.isascii() and number.isdigit()) or _lives(int(number)):
            continue
        draft = place.with_name(name)
        if draft.is_symlink() or (held := _held(draft)) is None:
            continue
        shutil.rmtree(draft, ignore_errors=True)  # follows no link, neither here nor inside
        os.close(held)


def _lives(number: int) -> bool:
    """Whether a process has that number, or it cannot be known."""
    if os.name == "nt":  # where signal 0 ends a process
        return True
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _held(folder: Path) -> int | None:
    """A descriptor of the folder, which is locked until it is closed; None where another holds it, or it cannot be opened so."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return None
    if locked(descriptor):
        return descriptor
    os.close(descriptor)
    return None


def copy_learnt(run: Path, folder: Path) -> None:
    """Copy what tells which images the run's model learnt from, so that whoever scores or tunes what was made of it knows."""
    for name in _LEARNT:
        if (home_of(run) / name).is_file():
            shutil.copyfile(home_of(run) / name, folder / name)


def _free(place: Path) -> Path:
    """The place, where nothing lies but perhaps an empty folder; RunError where something does: nothing is written over."""
    if os.path.lexists(place) and not (place.is_dir() and not any(place.iterdir())):
        made = next((kind for kind, name in (("slim", SLIM), ("hardened", HARDENED)) if (place / name).is_file()), "")
        what = f"holds an earlier {made} package" if made else "is there already"
        raise RunError(f"{shown(str(place))} {what}; name another folder with --out, or remove this one yourself")
    return place
