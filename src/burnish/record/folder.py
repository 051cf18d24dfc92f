"""The folder of one run: who holds it, what is in it, how each file is written."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import math
import os
import platform
import re
import stat
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from burnish.disk import (
    expanded,
    left_behind,
    locked,
    plain_disk_errors,
    read_plain_json,
    refuse_links,
    text_of,
    write_whole,
)
from burnish.errors import NotARun, RunBusy, RunError, shown, spoilt, uncelled
from burnish.recipe import Recipe

ASKED, RECIPE, SPLITS, HISTORY, RESULT, REPORT, BOARD = (
    "run.json",
    "recipe.toml",
    "splits.csv",
    "history.jsonl",
    "result.json",
    "report.html",
    "tensorboard",
)
_SIDES = ("train", "val", "test")  # in splits.csv
SEARCH = "search.log"
HARDENED = "hardened.json"  # in a package that was made of a run by hardening it: the facts of that
AUDIT_TABLE, AUDIT_PAGE = "audit.csv", "audit.html"
PICTURES, PREDICTIONS, IMAGES, LEARNT = "pictures.json", "predictions.csv", "images.csv", "learnt.json"
SLIM = "slim.json"
COMPARED, OUTCOME, LEADERBOARD, TABLE = "compare.json", "outcome.json", "leaderboard.html", "leaderboard.csv"
_OURS = (
    ASKED,
    RECIPE,
    SPLITS,
    HISTORY,
    RESULT,
    REPORT,
    COMPARED,
    OUTCOME,
    LEADERBOARD,
    TABLE,
    AUDIT_TABLE,
    AUDIT_PAGE,
    PICTURES,
    PREDICTIONS,
    IMAGES,
    LEARNT,
)
_ARMS = "arms"
_FOLDERS = ("packages", "state", BOARD, "models", _ARMS, "seeds")
_READ_BACK = ("packages", "state")
_LOCK, _RUNS, _IMAGES = ".lock", "runs", "images"
_DEVICE = "device"  # where a run is done is not what it is asked to do; a state of another kind of device is refused by itself
_LOCKED_BY = re.compile(rb"(\d+( on .*)?)?", re.DOTALL)  # what burnish writes there, or nothing yet
_SAID = 120  # characters of a setting in a sentence
_HOLDER = 200  # bytes of the lock: the process and its machine


class RunFolder:
    """A run folder held by this process until `close`: a new one, one to go on with, or a finished one."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path, self._lock = path, lock
        with plain_disk_errors(path):
            self._place = os.stat(path)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Hold the folder, made when it is not there; RunBusy names the process that is at it.

        RunError when it holds anything else than a run that this version began.
        """
        with plain_disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
            was_there = os.path.lexists(path / _LOCK)
            lock = _hold(path)
        try:
            with plain_disk_errors(path):
                refuse_links(path, (*_FOLDERS, SEARCH), within=_READ_BACK)
                names = sorted(entry.name for entry in path.iterdir() if entry.name != _LOCK)
        except RunError:
            os.close(lock)
            raise
        foreign = [name for name in names if not _is_left_behind(name)]
        if foreign and not (path / ASKED).is_file():
            if not was_there:
                with contextlib.suppress(OSError):  # nothing of ours is left in it
                    os.unlink(path / _LOCK)
            os.close(lock)
            run = (path / RECIPE).exists() or (path / RESULT).exists()
            what = "holds a run that cannot be continued" if run else f"is not empty ({shown(foreign[0])} is in it)"
            raise RunError(f"{shown(str(path))} {what}; name another folder with --out, or remove this one yourself")
        try:
            with plain_disk_errors(path):
                _sign(lock)
        except RunError:  # a full disk; the lock would be held for as long as this process lives
            os.close(lock)
            raise
        return cls(path, lock)

    def within(self, kind: str, name: str) -> RunFolder:
        """`open` of a run of this one's, in its subfolder of that kind; a link there is refused."""
        refuse_links(self.path / kind, [name])
        return RunFolder.open(self.path / kind / name)

    @classmethod
    def of(cls, out: str | os.PathLike[str] | None, data: str | os.PathLike[str]) -> RunFolder:
        """`open`, or where no folder is named `free`."""
        if out is None:
            return cls.free(data)
        if not os.fspath(out):
            raise RunError(
                "the name of the run's folder is empty; name one with --out, or leave it out for one under runs/"
            )
        return cls.open(expanded(out))

    @classmethod
    def free(cls, data: str | os.PathLike[str]) -> RunFolder:
        """Hold runs/NAME-N, the first N that is not there yet, for a run on this data."""
        stem = (
            re.sub(r"^.*:", "", str(data))
            if re.match(r"demo$|hf:|torchvision:", str(data))
            else Path(data).absolute().stem
        )
        name = "".join(char if char.isalnum() or char in "-_" else "-" for char in stem)[:60] or "run"
        number = 1
        while True:
            path = Path(_RUNS) / f"{name}-{number}"
            number += 1
            if path.exists():
                continue
            try:
                return cls.open(path)
            except (RunBusy, RunError):
                if not path.exists():  # not taken by another run: it cannot be made
                    raise

    @property
    def finished(self) -> bool:
        """Whether the run's result is there."""
        return any((self.path / name).is_file() for name in (RESULT, COMPARED))

    def begin(self, asked: dict[str, Any], *, images: str | None = None) -> bool:
        """Note what the run is asked to do, or see that it is the same; returns whether it had begun before.

        images: `Catalog.digest` of what it is asked to be done with. A setting that the folder's run did
        not have, as one of an earlier version, had its usual value. RunError, naming each setting, when the folder's run was
        asked for something else, or is finished and was made from other images.
        """
        asked = plain(asked)
        for entry in list(self.path.iterdir()):  # what a death in the middle of a write left
            if _is_left_behind(entry.name) and entry.is_file():
                entry.unlink(missing_ok=True)
        file = self.path / ASKED
        if not file.is_file():
            self.write_json(ASKED, asked if images is None else {**asked, _IMAGES: images})
            return False
        try:
            was = read_plain_json(file)
        except (OSError, ValueError) as error:
            raise RunError(
                f"{shown(str(file))} cannot be read ({spoilt(error)}); name another folder with --out"
            ) from None
        known = was.pop(_IMAGES, None)
        was = {**{key: value for key, value in plain(asdict(Recipe())).items() if key in asked}, **was}
        differing = [
            f"{shown(key[:_SAID])} was {_told(was.get(key))} and is {_told(asked.get(key))}"
            for key in sorted(asked.keys() | was.keys())
            if was.get(key) != asked.get(key) and key != _DEVICE
        ]
        if differing:
            state = "holds a finished run" if self.finished else "holds a run that is not finished"
            raise RunError(
                f"{shown(str(self.path))} {state}, asked for otherwise: {'; '.join(differing)}; "
                "say the same again to go on with it, or name another folder with --out"
            )
        if images is not None and images != known:
            if self.finished and known is not None:  # of runs of older versions it is not known
                raise RunError(
                    f"{shown(str(self.path))} holds a finished run on other images, labels or splits; "
                    "name another folder with --out"
                )
            if not self.finished:  # whether it can go on with these, the run's own state tells
                self.write_json(ASKED, {**asked, _IMAGES: images})
        return True

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(value, KeyboardInterrupt) and self._lock >= 0 and (self.path / ASKED).is_file():
            # Without `out` a cell of a notebook that is run again would begin anew, in a folder of its own.
            value.add_note(f"burnish: the same call with out={os.fspath(self.path)!r} goes on where this one stopped")
        self.close()

    def close(self) -> None:
        """Let the folder go."""
        if self._lock < 0:
            return
        if not self._held:  # what has its name by now is none of this run's
            os.close(self._lock)
            self._lock = -1
            return
        # Held until the folder is gone, so that no other run takes it meanwhile. A working directory or a mount cannot be
        # removed; nor runs/ with runs in it.
        with contextlib.suppress(OSError):
            if {entry.name for entry in self.path.iterdir()} <= {_LOCK, ASKED}:  # nothing came of it: leave no trace
                (self.path / ASKED).unlink(missing_ok=True)
                (self.path / _LOCK).unlink(missing_ok=True)
                self.path.rmdir()
                if self.path.parent.name == _RUNS:
                    self.path.parent.rmdir()
        os.close(self._lock)
        self._lock = -1

    @property
    def _held(self) -> bool:
        """Whether what has the folder's name is still the folder that was taken; one that lost its lock alone is."""
        with contextlib.suppress(OSError):  # a disk that does not answer says nothing of it
            try:
                return os.path.samestat(os.fstat(self._lock), os.stat(self.path / _LOCK))
            except FileNotFoundError:
                return os.path.isdir(self.path) and os.path.samestat(self._place, os.stat(self.path))
        return True

    def require_held(self) -> None:
        """RunError where the folder was removed or renamed meanwhile: what has its name now may be another run's."""
        if not self._held:
            raise RunError(
                f"{shown(str(self.path))} was removed or renamed while this run was at work in it, which ends here; say the same "
                "again to begin anew, or give the folder its name back before, to go on"
            )

    def write(self, name: str, text: str) -> None:
        """Write one file whole: the old content or the new one is there, never half (P9). RunError where it is not held."""
        self.require_held()
        write_whole(self.path / name, text)

    def write_json(self, name: str, value: Any) -> None:
        """Write a value as JSON; not-a-number is written as null."""
        self.write(name, json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n")

    def write_rows(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Write rows as JSON lines."""
        self.write(name, "".join(json.dumps(plain(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def read_facts(path: Path) -> dict[str, Any]:
    """The content of a finished run's result.json."""
    file = path / RESULT
    if not path.is_dir():
        raise NotARun(f"no run folder at {shown(str(path))}; expected a folder that burnish fit wrote")
    if not file.is_file():
        hint = (
            "it was stopped early: its package can still predict and evaluate, and the same fit command goes on with it"
            if (path / "package.json").exists()
            else ""
        )
        if (path / SLIM).exists():
            hint = f"it is what burnish slim made of a run: its package can predict and evaluate, {SLIM} tells what it cost"
        if (path / HARDENED).exists():
            hint = f"it is a package that burnish harden made, and what that came to is in its {HARDENED}"
        raise NotARun(f"{shown(str(path))} has no {RESULT}; {hint or 'expected a folder that burnish fit wrote'}")
    try:
        facts = json.loads(text_of(file))
    except (OSError, ValueError, RecursionError) as error:
        raise NotARun(f"{shown(str(file))} cannot be read: {spoilt(error)}") from None
    if not isinstance(facts, dict):
        raise NotARun(f"{shown(str(file))} holds no run: expected a JSON object")
    return facts


def no_run(folder: Path, what: str = "no such folder") -> NotARun:
    """That a folder is not, or holds none of, what was asked for."""
    return NotARun(f"{shown(str(folder))}: {what}; expected the folder of a run that burnish fit finished or began")


def home_of(run: Path) -> Path:
    """Where what several arms share lies: of an arm of a comparison the comparison's folder, else the run's own."""
    return run.parent.parent if run.parent.name == _ARMS and not os.path.lexists(run / SPLITS) else run


def sides_in(splits: Path) -> dict[str, str]:
    """The split of each path in a run's splits.csv; empty where there is none, as beside a package that was copied alone.

    NotARun where it is damaged: of a part of it nobody could say which images the run learnt from.
    """
    try:
        text = text_of(splits)
        table = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        found = {uncelled(row["path"]): row["split"] for row in table}
        if not text.endswith("\n") or not found or not all(side in _SIDES for side in found.values()):
            raise ValueError("it was cut short or changed")
        return found
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, csv.Error, KeyError, AttributeError, TypeError) as error:
        raise NotARun(
            f"{shown(str(splits))} is damaged ({spoilt(error)}), so that nobody can say which images the run learnt "
            "from; remove that file to do without"
        ) from None


def read_pictures(path: Path) -> dict[str, Any]:
    """The pictures that a run's report shows; empty where it has none."""
    try:
        found = json.loads(text_of(path / PICTURES))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def plain(value: Any) -> Any:
    """The value in JSON's own types: numpy numbers as numbers, not-a-number and infinity as None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()  # file names may hold bytes that are not UTF-8
    if hasattr(value, "tolist") and not isinstance(value, (str, bytes)):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _told(value: Any) -> str:
    """A setting as it is said in a sentence; what somebody else wrote may have any length."""
    text = shown(repr(value))
    return text if len(text) <= _SAID else f"{text[:_SAID]}…"


def is_of_a_run(path: Path) -> bool:
    """Whether it is, or would be, one of the files that a run keeps in its folder."""
    return path.name in _OURS and (path.parent / ASKED).is_file()


def _is_left_behind(name: str) -> bool:
    """Whether a file is the half-written form of one of ours."""
    return left_behind(name) in _OURS


def _hold(path: Path) -> int:
    """An open, locked file descriptor on RUN/.lock; RunBusy names who holds it."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
    try:
        lock = os.open(path / _LOCK, flags, 0o644)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise RunError(
            f"{shown(str(path / _LOCK))} is a link, which burnish did not make; name another folder with --out"
        ) from None
    if not locked(lock):
        holder = os.read(lock, _HOLDER).decode("ascii", "replace").strip()
        os.close(lock)
        raise RunBusy(
            f"{shown(str(path))} is in use by process {shown(holder) or '?'}; wait for it, or name another folder with --out"
        )
    try:
        gone = os.fstat(lock).st_ino != os.stat(path / _LOCK).st_ino
    except FileNotFoundError:
        gone = True
    if gone:  # a run that came to nothing removed its folder just now
        os.close(lock)
        path.mkdir(parents=True, exist_ok=True)
        return _hold(path)
    if not stat.S_ISREG(os.fstat(lock).st_mode) or not _LOCKED_BY.fullmatch(os.read(lock, _HOLDER)):
        os.close(lock)
        raise RunError(
            f"{shown(str(path / _LOCK))} is no file of burnish; name another folder with --out, or remove it yourself"
        )
    return lock


def _sign(lock: int) -> None:
    """Write who holds it."""
    os.ftruncate(lock, 0)
    os.lseek(lock, 0, os.SEEK_SET)  # what was there has been read
    os.write(lock, f"{os.getpid()} on {platform.node() or 'this machine'}"[:_HOLDER].encode("ascii", "replace"))
