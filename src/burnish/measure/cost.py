"""What a model costs: weights, multiply-adds, seconds, memory, energy."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_LATENCY_SECONDS, _LATENCY_RUNS, _LEAST_RUNS = 1.0, 100, 5
_IN_A_ROW = 4  # calls of a turn
_ENERGY = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Latency:
    """Seconds of one call, again and again."""

    p50_seconds: float
    p99_seconds: float
    runs: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def latency(call: Callable[[], object], *, seconds: float = _LATENCY_SECONDS, left: float = math.inf) -> Latency | None:
    """Of calls for about so many seconds, at least five and at most a hundred, after two to warm up.

    None where the first call tells that those would take longer than there is `left`.
    """
    began = time.perf_counter()
    call()
    first = time.perf_counter() - began
    if (_LEAST_RUNS + 2) * first > left:
        return None
    call()
    taken, until = [], time.perf_counter() + seconds
    while len(taken) < _LEAST_RUNS or (len(taken) < _LATENCY_RUNS and time.perf_counter() < until):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return Latency(float(np.quantile(taken, 0.5)), float(np.quantile(taken, 0.99)), len(taken))


def interleaved(
    calls: Mapping[str, Callable[[], object]], *, seconds: float = _LATENCY_SECONDS
) -> dict[str, np.ndarray]:
    """Seconds float64 [r] of several calls that take turns, so that what else the machine does meets all of them alike.

    Four calls of one in a row, after one that is not counted: it wakes its threads, and those of the one before fall asleep. Of
    about so many seconds for each; at least five turns, and at most a hundred calls, after two to warm up. Other work only ever
    makes a call slower: the least tells what is faster, the median what it takes.
    """
    for call in [*calls.values(), *calls.values()]:
        call()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    until, turns = time.perf_counter() + len(calls) * seconds, 0
    while turns < _LEAST_RUNS or (turns * _IN_A_ROW < _LATENCY_RUNS and time.perf_counter() < until):
        for name, call in calls.items():
            call()
            for _ in range(_IN_A_ROW):
                began = time.perf_counter()
                call()
                taken[name].append(time.perf_counter() - began)
        turns += 1
    return {name: np.array(each) for name, each in taken.items()}


def peak_memory_bytes() -> int | None:
    """The most resident memory that this process has had; None where the system does not tell (Windows)."""
    if resource is None:
        return None
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else found * 1024


class Energy:
    """Joules that the processor packages use from the making of this object on, where the machine lets them be read (RAPL)."""

    def __init__(self, root: Path = _ENERGY) -> None:
        self._counters = [one for one in sorted(root.glob("intel-rapl:[0-9]*")) if one.name.count(":") == 1]
        self._start = self._read()

    def joules(self) -> float | None:
        """Since the start; None where no counter can be read, as in most virtual machines."""
        now = self._read()
        if now is None or self._start is None:
            return None
        used = 0.0
        for counter, before, after in zip(self._counters, self._start, now, strict=True):
            most = int((counter / "max_energy_range_uj").read_text())
            used += (after - before if after >= before else after + most - before) / 1e6
        return used

    def _read(self) -> list[int] | None:
        try:
            found = [int((one / "energy_uj").read_text()) for one in self._counters]
        except (OSError, ValueError):
            return None
        return found or None
