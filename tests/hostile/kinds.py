"""The table of hostile files: what makes one, and what the sentence that refuses it must name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MOST_SECONDS = 5.0
MOST_MEGABYTES = 500
SCALED_MEGABYTES = 100
SCALED = 0.4  # seconds: for files that are a part of what they could be, so that a hang costs this test little


@dataclass(frozen=True)
class Kind:
    """One way to make a hostile file."""

    name: str
    make: Callable[[Path], Path]  # writes it into a folder; what to load
    found: str  # pattern of what the sentence names
    seconds: float = MOST_SECONDS  # of the reader's processor time
    megabytes: float = MOST_MEGABYTES  # more than it had before


KINDS: list[Kind] = []


def kind(
    found: str, *, seconds: float = MOST_SECONDS, megabytes: float = MOST_MEGABYTES
) -> Callable[[Callable[[Path], Path]], Any]:
    def note(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
        name = make.__name__.strip("_").replace("_", " ")
        assert name not in {one.name for one in KINDS}
        KINDS.append(Kind(name, make, found, seconds, megabytes))
        return make

    return note


def preprocess_of(path: Path) -> str | None:
    return "none" if path.suffix in (".keras", ".h5") or "keras" in path.name else None


def written(folder: Path, name: str, data: bytes) -> Path:
    (folder / name).write_bytes(data)
    return folder / name
