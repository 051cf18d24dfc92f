"""What is made of a run beside it: a package in a folder of its own, which is whole or not there (P9)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from burnish.disk import expanded, plain_disk_errors, sync_folder
from burnish.errors import RunError, shown
from burnish.record.folder import HARDENED, IMAGES, LEARNT, SLIM, SPLITS, home_of, no_run

_LEARNT = (SPLITS, IMAGES, LEARNT)  # which tell what a model learnt from: a test on those images would prove nothing
_DRAFT = ".tmp"


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
def made_whole(place: Path) -> Iterator[Path]:
    """A folder to write in, which takes its place whole at the end; nothing is left of it after an error.

    RunError, before anything is done, where no folder can be made there. Of a process that is killed a hidden folder stays.
    """
    draft = place.with_name(f".{place.name}.{os.getpid()}{_DRAFT}")
    with plain_disk_errors(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(draft, ignore_errors=True)  # of a process that had this number, and was killed
        draft.mkdir()
    try:
        yield draft
        with plain_disk_errors(place):
            sync_folder(draft)
            os.replace(draft, _free(place))
            sync_folder(place.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


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
