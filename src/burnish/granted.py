"""What this process is given of the machine: cores it may use, and memory, within the limits of a container (cgroups, 1 and 2).

A container is shown all cores of its machine and given a part of their time. As many threads as it sees wait for each other
most of the time, and what the system takes for too much memory ends a process without a word.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

TRAINING_BYTES = 2e9  # a process of burnish at most, on a processor with the default network (docs/measured.md)

LITTLE_MEMORY = (
    "there is less than 2 GB of memory for this process: freed memory is given back at once, which is slower; if the system ends "
    "the run without a word, a smaller --image-size or --model takes less"
)

_GROUPS, _OWN, _MEMORY = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"), Path("/proc/meminfo")
_PAGES = Path("/proc/self/statm")
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def bound_cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores() -> int:
    """The processor cores this process may use: those it may run on, or as many as it is given the time of."""
    given = given_cores()
    return bound_cores() if given is None else max(1, min(bound_cores(), math.ceil(given)))


def given_cores(groups: Path = _GROUPS, own: Path = _OWN) -> float | None:
    """How many cores' time the container is given, None where that is not limited."""
    found = []
    for place in _places("cpu", groups, own):
        with suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = (place / "cpu.max").read_text().split()
            found.append(int(quota) / int(period))
        with suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = ((place / f"cpu.cfs_{what}_us").read_text() for what in ("quota", "period"))
            found.append(int(quota) / int(period))
    return min((one for one in found if one > 0), default=None)  # -1: no limit


def available_bytes(told: Path = _MEMORY, groups: Path = _GROUPS, own: Path = _OWN) -> int | None:
    """Memory that this process can have, with what holds files, which is given up when asked for; None: it cannot be told."""
    found = [left for place in _places("memory", groups, own) if (left := _left_in(place)) is not None]
    with suppress(OSError, ValueError, IndexError):
        line = next((one for one in told.read_text().splitlines() if one.startswith("MemAvailable:")), None)
        if line is not None:
            return min([1024 * int(line.split()[1]), *found])
    with suppress(ValueError, OSError, AttributeError):
        return min([os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *found])
    return min(found, default=None)


def has_little_memory() -> bool:
    """Whether this process, with what it has taken, can have less than a training takes."""
    left = available_bytes()
    return left is not None and left + _own_bytes() < TRAINING_BYTES


def _own_bytes() -> int:
    """Memory that is this process's alone; 0 where it cannot be told."""
    with suppress(OSError, ValueError, IndexError, AttributeError):
        resident, shared = map(int, _PAGES.read_text().split()[1:3])
        return (resident - shared) * os.sysconf("SC_PAGE_SIZE")
    return 0


def _left_in(place: Path) -> int | None:
    """Bytes that are left within the limit of one group, None where it has none."""
    for most, used, held in (
        ("memory.max", "memory.current", ("file", "shmem")),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_cache", "total_shmem")),
    ):
        with suppress(OSError, ValueError, KeyError):
            limit, taken = (int((place / name).read_text()) for name in (most, used))
            told = dict(line.split() for line in (place / "memory.stat").read_text().splitlines())
            return max(0, limit - taken + max(0, int(told[held[0]]) - int(told.get(held[1], "0"))))
    return None


def _places(kind: str, groups: Path, own: Path) -> Iterator[Path]:
    """The control groups of that kind around this process, from its own to the outermost that can be seen."""
    with suppress(OSError, ValueError):
        for line in own.read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds and kind not in kinds.split(","):
                continue
            parts = [] if ".." in path.split("/") else [part for part in path.split("/") if part]
            for top in (groups / kinds, groups / kind) if kinds else (groups, groups / "unified"):
                yield from (top.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1))


def threads_to_take(environment: Mapping[str, str]) -> int | None:
    """How many threads torch and linear algebra may have; None where the container sets no limit, or the user has set one."""
    limited = cores() < bound_cores() and not any(name in environment for name in _THREADS)
    return cores() if limited else None
