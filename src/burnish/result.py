"""The folder of one run: who holds it, what is in it, how each file is written."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from burnish.disk import plain_disk_errors, write_whole
from burnish.errors import NotARun, RunBusy, RunError, shown

try:
    import fcntl
except ImportError:  # Windows has no advisory locks of this kind; there two runs into one folder are not told apart
    fcntl = None  # type: ignore[assignment]

RECIPE, SPLITS, HISTORY, RESULT, REPORT, BOARD = (
    "recipe.toml",
    "splits.csv",
    "history.jsonl",
    "result.json",
    "report.html",
    "tensorboard",
)


class RunFolder:
    """A run folder held by this process until `close`."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path, self._lock = path, lock

    @classmethod
    def create(cls, path: Path) -> RunFolder:
        """A new run folder; RunError when one is there already, RunBusy when another process is at it."""
        with plain_disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
            lock = _hold(path)
        taken = [name for name in (RECIPE, RESULT, "package.json") if (path / name).exists()]
        foreign = [entry.name for entry in path.iterdir() if entry.name != ".lock"]
        if taken or foreign:
            os.close(lock)
            what = "holds a run already" if taken else f"is not empty ({shown(sorted(foreign)[0])} is in it)"
            raise RunError(f"{shown(str(path))} {what}; name another folder with --out, or remove this one yourself")
        return cls(path, lock)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let the folder go."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
            if [entry.name for entry in self.path.iterdir()] == [".lock"]:  # nothing came of it: leave no trace
                (self.path / ".lock").unlink()
                self.path.rmdir()

    def write(self, name: str, text: str) -> None:
        """Write one file whole: the old content or the new one is there, never half (P9)."""
        write_whole(self.path / name, text)

    def write_json(self, name: str, value: Any) -> None:
        """Write a value as JSON; not-a-number is written as null."""
        self.write(name, json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n")

    def append(self, name: str, row: dict[str, Any]) -> None:
        """Add one JSON line."""
        with plain_disk_errors(self.path), open(self.path / name, "a", encoding="utf-8") as file:
            file.write(json.dumps(plain(row), ensure_ascii=False, allow_nan=False) + "\n")


def read_facts(path: Path) -> dict[str, Any]:
    """The content of a finished run's result.json."""
    file = path / RESULT
    if not path.is_dir():
        raise NotARun(f"no run folder at {shown(str(path))}; expected a folder that burnish fit wrote")
    if not file.is_file():
        hint = (
            "it was stopped early: its package can still predict and evaluate"
            if (path / "package.json").exists()
            else ""
        )
        raise NotARun(f"{shown(str(path))} has no {RESULT}; {hint or 'expected a folder that burnish fit wrote'}")
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NotARun(f"{shown(str(file))} cannot be read: {shown(str(error))}") from None
    if not isinstance(facts, dict):
        raise NotARun(f"{shown(str(file))} holds no run: expected a JSON object")
    return facts


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


def _hold(path: Path) -> int:
    """An open, locked file descriptor on RUN/.lock; RunBusy names who holds it."""
    lock = os.open(path / ".lock", os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
    if fcntl is not None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(lock, 64).decode("ascii", "replace").strip()
            os.close(lock)
            raise RunBusy(
                f"{shown(str(path))} is in use by process {shown(holder) or '?'}; wait for it, or name another folder with --out"
            ) from None
    os.ftruncate(lock, 0)
    os.write(lock, str(os.getpid()).encode())
    return lock
