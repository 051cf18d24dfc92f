"""The machine and the clock: process start, deadline, device, and random numbers with an address (P6, P7)."""

from __future__ import annotations

import ctypes
import hashlib
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar, cast

import numpy as np

import burnish
from burnish.errors import RecipeError
from burnish.granted import has_little_memory

T = TypeVar("T")

_START_SECONDS = 1.0  # for a disk that is slow to give Python


def process_age_seconds() -> float:
    """Seconds since this process became burnish; 0 where it cannot be told."""
    since = burnish.began
    return _process_age_seconds() if since is None else max(0.0, time.monotonic() - since)


def process_began(first_line: float, processor_seconds: float) -> float:
    """When this process began, by time.monotonic(), as a fork or as what a shell turned into at its end.

    first_line, processor_seconds: the clock and time.process_time() in its first line. `exec` changes neither the start that the
    system tells nor the processor's time; Python is up after a few hundredths of a second of that, and what a shell has waited
    for before is none of it.
    """
    age = _process_age_seconds() - (time.monotonic() - first_line)
    return first_line - max(0.0, min(age, processor_seconds + _START_SECONDS))


def _process_age_seconds() -> float:
    """Seconds since the operating system started this process; 0 where it cannot be told."""
    try:
        fields = Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()
        started_ticks = int(fields[19])  # field 22 of proc(5), counted from after the command name
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started_ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, IndexError, ValueError, AttributeError):
        return 0.0


@dataclass(frozen=True)
class Clock:
    """Wall-clock time of one run; `budget_seconds` None means no limit."""

    started: float  # time.monotonic() at the start
    budget_seconds: float | None

    @classmethod
    def start(cls, budget_seconds: float | None, *, from_process_start: bool) -> Clock:
        """A clock that starts now, or (for the command line) when the process did."""
        age = process_age_seconds() if from_process_start else 0.0
        return cls(time.monotonic() - age, budget_seconds)

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def left(self) -> float:
        """Seconds left of the budget, infinite without one; negative when overdrawn."""
        return float("inf") if self.budget_seconds is None else self.budget_seconds - self.elapsed()


def require_alone(environment: Mapping[str, str]) -> None:
    """RecipeError where a launcher such as torchrun has started this process beside others: each would do the whole work."""
    processes, rank = environment.get("WORLD_SIZE", ""), environment.get("RANK", "")
    if processes.isdecimal() and int(processes) > 1 and rank.isdecimal():
        raise RecipeError(
            f"this is one of {int(processes)} processes of a job (WORLD_SIZE and RANK are set, as by torchrun); burnish works in "
            "one, on one device: start it without a launcher; each of several cards can have a run of its own (--device cuda:1)"
        )


def minutes(seconds: float) -> str:
    """So many seconds in words."""
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    return (
        f"{whole // 60} min {whole % 60:02d} s" if whole < 6000 else f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    )


def address(seed: int, *parts: str | int) -> int:
    """A 128-bit number that depends on the seed and the named parts alone, the same on every machine."""
    text = "\x1f".join([str(seed), *map(str, parts)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def draws(seed: int, *parts: str | int) -> np.random.Generator:
    """The random numbers of one purpose, e.g. draws(seed, "order", epoch). No global generator is used (P7)."""
    return np.random.Generator(np.random.Philox(key=address(seed, *parts)))


def evenly(count: int, most: int) -> np.ndarray:
    """At most so many of the numbers 0 to count - 1, evenly spread, int64, each once."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).astype(np.int64)) if count else np.zeros(0, np.int64)


class Watcher(Protocol):
    """Whoever looks on while a run works: a terminal, a log, nobody."""

    def stage(self, name: str, *, total: int | None = None, detail: str = "") -> None:
        """A new stage begins, or a new part (`detail`) of the running one; `total` images are ahead when that is known."""

    def advance(self, count: int) -> None:
        """`count` more images of the current stage are done."""

    def say(self, text: str) -> None:
        """A finished fact worth a line."""


class Nobody:
    """The watcher that shows nothing."""

    def stage(self, name: str, *, total: int | None = None, detail: str = "") -> None:
        pass

    def advance(self, count: int) -> None:
        pass

    def say(self, text: str) -> None:
        pass


class Stopwatch:
    """A watcher that passes everything on and keeps the seconds of each stage, in order of first appearance."""

    def __init__(self, watcher: Watcher, clock: Clock) -> None:
        self.watcher, self.clock = watcher, clock
        self.seconds: dict[str, float] = {}
        self._current, self._since = "start", 0.0

    def stage(self, name: str, *, total: int | None = None, detail: str = "") -> None:
        self._book()
        self._current = name
        self.watcher.stage(name, total=total, detail=detail)

    def advance(self, count: int) -> None:
        self.watcher.advance(count)

    def say(self, text: str) -> None:
        self.watcher.say(text)

    def so_far(self) -> dict[str, float]:
        """Seconds by stage, the running one included."""
        self._book()
        return dict(self.seconds)

    def _book(self) -> None:
        now = self.clock.elapsed()
        self.seconds[self._current] = self.seconds.get(self._current, 0.0) + now - self._since
        self._since = now


def keep_freed_memory() -> None:
    """Let glibc keep large freed buffers for the next step instead of giving each back to the system at once.

    Without it every activation is mapped, page-faulted and unmapped again in each step: a third of the time on 2 cores
    (EfficientNet-Lite0 at 224 px, training 23.3 -> 34.6 images/s, forward 131 -> 164). Does nothing where there is no glibc, nor
    where memory is so short that the system would end the process for it.
    """
    if has_little_memory():
        return
    m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, 2**31 - 1)
    except (OSError, AttributeError):
        pass


class Silent(Exception):
    """Hardly anything comes any more."""


class TooMuch(Exception):
    """More comes than is read."""


def unless_silent(work: Callable[[], T], came: Callable[[], int], *, least: int, most: int, seconds: float) -> T:
    """What `work` gives or raises, in a thread that is not waited for once it has nothing to show.

    came: bytes so far. Silent where they are less than `least` more for so many seconds; TooMuch where they are over `most`.
    """
    answers: queue.Queue[tuple[T | None, Exception | None]] = queue.Queue()

    def answer() -> None:
        try:
            answers.put((work(), None))
        except Exception as error:
            answers.put((None, error))

    threading.Thread(target=answer, daemon=True).start()
    begun = before = came()
    last = time.monotonic()
    while True:
        try:
            found, error = answers.get(timeout=0.1)
        except queue.Empty:
            now = came()
            if now - begun > most:
                raise TooMuch from None
            if now - before >= least or now < before:  # or it begins anew
                before, last = now, time.monotonic()
            if time.monotonic() - last > seconds:
                raise Silent from None
            continue
        if error is not None:
            raise error
        return cast(T, found)
