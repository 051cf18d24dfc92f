"""Decoded pixels, each file read once: in memory, in an unnamed file, or, when neither has room, decoded again when asked."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from burnish.data.catalog import Catalog, Named
from burnish.data.pixels import FORMATS, Rendering, decode, read_all, stored, view
from burnish.errors import UnreadableImage
from burnish.terms import Preprocess

IN_MEMORY_BYTES = 256 * 2**20  # a larger array goes to an unnamed file, whose pages the system may drop
DISK_SHARE = 0.5  # of the free space at most


class Rows(Protocol):
    """uint8 images [n s s 3] that can be cut by a slice or an index array."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: Any, /) -> np.ndarray: ...


@dataclass(frozen=True)
class Pixels:
    """The images of some catalogue entries; row i belongs to ids[i]. Only readable images have a row."""

    ids: np.ndarray  # int64 [n], catalogue entries
    plain: Rows  # uint8 [n s s 3], the plain view of the Preprocess they were read with
    stored: Rows | None  # uint8 [n S S 3], whole images squashed, for training crops
    aspects: np.ndarray  # float32 [n], width / height
    named: tuple[Named, ...]  # the unreadable ones


def read_pixels(
    catalog: Catalog,
    ids: np.ndarray,
    *,
    preprocess: Preprocess,
    stored_side: int | None = None,
    workers: int,
    on_progress: Callable[[int], None] | None = None,
) -> Pixels:
    """Decode the entries `ids` once; with `stored_side` also keep them for training crops.

    Raises nothing for a bad image: it is in `named` and has no row.
    """
    renderings: dict[str, Rendering] = {"plain": lambda image: view(image, preprocess)}
    sides = {"plain": preprocess.size}
    if stored_side is not None:
        renderings["stored"] = lambda image: stored(image, stored_side)
        sides["stored"] = stored_side
    out = _blanks(len(ids), sides)
    read = read_all(catalog, ids, renderings if out else {}, out, workers=workers, on_progress=on_progress)
    rows: dict[str, Rows] = {}
    for name, rendering in renderings.items():
        if out:
            array = read.views[name]
            rows[name] = array if read.good.all() else array[read.good]
        else:
            rows[name] = _Again(catalog, ids[read.good], rendering, sides[name], workers)
    size = read.sizes[read.good].astype(np.float32)
    aspects = size[:, 0] / np.maximum(size[:, 1], 1.0)
    return Pixels(ids[read.good], rows["plain"], rows.get("stored"), aspects, read.named)


def typical_side(catalog: Catalog, *, sample: int = 64) -> int:
    """The median of the long sides, pixels, over evenly spread readable headers; 0 when none can be read."""
    sides = []
    for index in np.linspace(0, len(catalog) - 1, min(sample, len(catalog))).astype(int):
        try:
            with Image.open(catalog.file(int(index)), formats=FORMATS) as image:
                sides.append(max(image.size))
        except Exception:  # a bad file is named when it is decoded
            continue
    return int(np.median(sides)) if sides else 0


def cache_folder() -> Path:
    """Where burnish may keep things: $BURNISH_CACHE, or burnish/ in the user's cache folder."""
    named = os.environ.get("BURNISH_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "burnish"


@dataclass(frozen=True)
class _Again:
    """Rows that are decoded each time they are asked for."""

    catalog: Catalog
    ids: np.ndarray
    rendering: Rendering
    side: int
    workers: int

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: slice | np.ndarray, /) -> np.ndarray:
        ids = self.ids[rows]
        with ThreadPoolExecutor(self.workers) as pool:
            images = list(pool.map(self._one, ids))
        return np.stack(images) if images else np.zeros((0, self.side, self.side, 3), np.uint8)

    def _one(self, index: int) -> np.ndarray:
        path = self.catalog.file(int(index))
        try:
            return self.rendering(decode(path))
        except UnreadableImage as error:
            raise UnreadableImage(
                path, f"it could be read at the start of the run and cannot now ({error.reason})"
            ) from None


def _blanks(count: int, sides: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Zeroed uint8 [count side side 3] by name; none at all when there is no room for them."""
    sizes = {name: count * side * side * 3 for name, side in sides.items()}
    in_file = sum(size for size in sizes.values() if size > IN_MEMORY_BYTES)
    if in_file > DISK_SHARE * shutil.disk_usage(tempfile.gettempdir()).free:
        return {}
    try:
        return {name: _blank((count, side, side, 3)) for name, side in sides.items()}
    except OSError:  # the disk filled up in between
        return {}


def _blank(shape: tuple[int, ...]) -> np.ndarray:
    """Zeroed uint8 of this shape, in memory or in a file."""
    size = int(np.prod(shape))
    if size <= IN_MEMORY_BYTES:
        return np.zeros(shape, np.uint8)
    # Without a name: gone when the process is, however it ends.
    with tempfile.TemporaryFile(prefix="burnish-pixels-") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)  # a write to a hole on a full disk would end the process
        else:
            file.truncate(size)
        return np.memmap(file, np.uint8, "r+", shape=shape)
