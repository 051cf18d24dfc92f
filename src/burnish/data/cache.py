"""Decoded pixels, each file read once: from the store of earlier runs, in memory, in a file, or decoded again when asked."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import PIL
from PIL import Image

from burnish.data.catalog import Catalog, Named
from burnish.data.pixels import DECODER, FORMATS, MAX_BYTES, Rendering, Target, decode, enough, read_all, stored, view
from burnish.data.store import DISK_SHARE, IN_MEMORY_BYTES, Draft, Entry, Picked, PixelStore, settings_key
from burnish.errors import UnreadableImage
from burnish.terms import Preprocess


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
    content: str  # hash of all the image files' bytes


def read_pixels(
    catalog: Catalog,
    ids: np.ndarray,
    *,
    preprocess: Preprocess,
    stored_side: int | None = None,
    workers: int,
    store: PixelStore | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Pixels:
    """Decode the entries `ids` once; with `stored_side` also keep them for training crops.

    store: where the pixels of image files seen before are taken from, and new ones kept. Raises nothing for a bad image:
    it is in `named` and has no row.
    """
    forms: dict[str, tuple[int, Rendering]] = {"plain": (preprocess.size, lambda image: view(image, preprocess))}
    if stored_side is not None:
        forms["stored"] = (stored_side, lambda image: stored(image, stored_side))
    sides = {name: side for name, (side, _) in forms.items()}
    key = settings_key(
        {"preprocess": asdict(preprocess), "stored": stored_side, "pillow": PIL.__version__, "decoder": DECODER}
    )
    digests = _digests(catalog, ids, workers)
    known = _known(store.entries(key) if store is not None else [], digests)
    places = np.flatnonzero([digest not in known for digest in digests])
    read = partial(
        read_all, catalog, at_least=enough(preprocess, stored_side), workers=workers, on_progress=on_progress
    )
    if (whole := _same_set(known, digests)) is not None:
        bad = read(ids[places], {}, {}, done_before=len(ids) - len(places))  # to say why they cannot be read
        if not bad.good.any():
            good = np.isin(np.arange(len(ids)), places, invert=True)
            return _pixels(ids, whole.rows, whole.sizes, good, bad.named, digests)

    draft = _draft(store, len(ids), sides)
    rows: Mapping[str, Rows]
    if draft is not None:
        rows, out = draft.rows, dict(draft.rows)
    elif sum(_bytes(len(ids), side) for side in sides.values()) <= IN_MEMORY_BYTES:
        rows = out = {name: np.zeros((len(ids), side, side, 3), np.uint8) for name, side in sides.items()}
    else:
        again = partial(_Again, catalog, ids, workers=workers, at_least=enough(preprocess, stored_side))
        rows, out, known, places = (
            {name: again(form, side) for name, (side, form) in forms.items()},
            {},
            {},
            np.arange(len(ids)),
        )
    sizes, good = np.zeros((len(ids), 2), np.int32), np.ones(len(ids), bool)
    for place in np.setdiff1d(np.arange(len(ids)), places):
        entry, row = known[digests[place]]
        sizes[place] = entry.sizes[row]
        for name in out:
            out[name][place] = entry.rows[name][row]
    renderings = {name: form for name, (_, form) in forms.items() if name in out}
    scattered = {name: _Scattered(array, places) for name, array in out.items()}
    found = read(ids[places], renderings, scattered, done_before=len(ids) - len(places))
    sizes[places], good[places] = found.sizes, found.good
    if draft is not None and store is not None:
        store.keep(draft, key, [digest if fine else "" for digest, fine in zip(digests, good, strict=True)], sizes)
    return _pixels(ids, rows, sizes, good, found.named, digests)


def _pixels(
    ids: np.ndarray,
    rows: Mapping[str, Rows],
    sizes: np.ndarray,
    good: np.ndarray,
    named: tuple[Named, ...],
    digests: Sequence[str],
) -> Pixels:
    """The value; rows of unreadable images are left out."""
    if not good.all():
        rows = {name: Picked(held, np.flatnonzero(good)) for name, held in rows.items()}
    size = sizes[good].astype(np.float32)
    aspects = size[:, 0] / np.maximum(size[:, 1], 1.0)
    content = hashlib.sha256("\n".join(digests).encode()).hexdigest()
    return Pixels(ids[good], rows["plain"], rows.get("stored"), aspects, named, content)


def _digests(catalog: Catalog, ids: np.ndarray, workers: int) -> list[str]:
    """The hash of each image file's bytes; of one that cannot be read, its place: no other equals it."""

    def digest(index: int) -> str:
        path = catalog.file(index)
        try:
            if not path.is_file() or path.stat().st_size > MAX_BYTES:
                return f"unread {index}"
            return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
        except (OSError, ValueError):
            return f"unread {index}"

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(digest, ids.tolist(), chunksize=64))


def _known(entries: Sequence[Entry], digests: Sequence[str]) -> dict[str, tuple[Entry, int]]:
    """Where the wanted rows are kept."""
    wanted, found = set(digests), {}
    for entry in entries:
        for row, digest in enumerate(entry.digests):
            if digest in wanted and digest not in found:
                found[digest] = (entry, row)
    return found


def _same_set(known: dict[str, tuple[Entry, int]], digests: Sequence[str]) -> Entry | None:
    """The entry that holds just these rows in this order, with nothing where an image could not be read; if there is one."""
    wanted = [digest if digest in known else "" for digest in digests]
    entries = {id(entry): entry for entry, _ in known.values()}
    return next((entry for entry in entries.values() if list(entry.digests) == wanted), None)


def _draft(store: PixelStore | None, count: int, sides: Mapping[str, int]) -> Draft | None:
    """A file to decode into: one that may be kept, else one for this run; None when it fits in memory, or nowhere."""
    size = sum(_bytes(count, side) for side in sides.values())
    try:
        if store is not None and store.room_for(size):
            return Draft(store.folder, count, sides)
        temporary = Path(tempfile.gettempdir())
        if size > IN_MEMORY_BYTES and size <= DISK_SHARE * shutil.disk_usage(temporary).free:
            return Draft(temporary, count, sides)
    except OSError:  # the disk filled up in between
        pass
    return None


def _bytes(count: int, side: int) -> int:
    return count * side * side * 3


@dataclass(frozen=True)
class _Scattered:
    """Writes row i to place places[i] of an array."""

    array: Target
    places: np.ndarray

    def __setitem__(self, row: int, pixels: np.ndarray) -> None:
        self.array[self.places[row]] = pixels


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
    at_least: int  # pixels of the short side that decoding must leave

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
            return self.rendering(decode(path, at_least=self.at_least))
        except UnreadableImage as error:
            raise UnreadableImage(
                path, f"it could be read at the start of the run and cannot now ({error.reason})"
            ) from None
