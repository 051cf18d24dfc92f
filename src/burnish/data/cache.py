"""Decoded pixels, each file read once: from the store of earlier runs, in memory, in a file, or decoded again when asked."""

from __future__ import annotations

import contextlib
import hashlib
import io
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
from burnish.data.contrast import contrast
from burnish.data.file import content_of, is_hash
from burnish.data.formats import FORMATS
from burnish.data.looks import Looks, look_at
from burnish.data.pixels import (
    DECODER,
    Decoded,
    Need,
    Rendering,
    Target,
    decode,
    enough,
    quiet,
    read_all,
    stored,
    view,
)
from burnish.data.store import DISK_SHARE, IN_MEMORY_BYTES, Draft, Entry, Joined, Picked, PixelStore, settings_key
from burnish.errors import UnreadableImage
from burnish.runtime import evenly
from burnish.terms import Preprocess

THUMB = 64  # pixels, side of the small squares


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
    thumbs: Rows  # uint8 [n t t 3], whole images squashed, small: what twins are looked for in
    contrasts: Rows  # uint8 [n 1 1 3], whether each shows anything: see `contrast`
    looks: Looks  # hashes and headers of the files
    aspects: np.ndarray  # float32 [n], width / height
    named: tuple[Named, ...]  # the unreadable ones
    content: str  # hash of all the image files' bytes

    def at(self, ids: np.ndarray) -> Pixels:
        """Those of some catalogue entries, in the order of `ids`; entries without a row are left out."""
        place = {int(entry): row for row, entry in enumerate(self.ids)}
        rows = np.array([place[int(entry)] for entry in ids if int(entry) in place], np.int64)
        stored = None if self.stored is None else Picked(self.stored, rows)
        small, looks = (Picked(self.thumbs, rows), Picked(self.contrasts, rows)), self.looks.at(rows)
        return Pixels(self.ids[rows], Picked(self.plain, rows), stored, *small, looks, self.aspects[rows], self.named,
                      _content_of(looks.digests))  # fmt: skip


def read_pixels(
    catalog: Catalog,
    ids: np.ndarray,
    *,
    preprocess: Preprocess,
    stored_side: int | None = None,
    workers: int,
    store: PixelStore | None = None,
    looks: Looks | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Pixels:
    """Decode the entries `ids` once; with `stored_side` also keep them for training crops.

    looks: at the same entries, where they were taken before. store: where the pixels of image files seen before are taken
    from, and new ones kept. Raises nothing for a bad image: it is in `named` and has no row.
    """
    forms: dict[str, Form] = {
        "plain": Form(preprocess.size, lambda image: view(image, preprocess)),
        "thumb": Form(THUMB, lambda image: stored(image, THUMB)),
        "contrast": Form(1, contrast),
    }
    if stored_side is not None:
        forms["stored"] = Form(stored_side, lambda image: stored(image, stored_side))
    key = _key(preprocess, stored_side)
    looks = looks or look_at(catalog, ids, workers=workers)
    digests = looks.digests
    hashes = set(filter(is_hash, digests))  # what could not be read at that look is never taken for another's pixels
    sides = {name: form.side for name, form in forms.items()}
    known = _known(store.entries(key, sides, hashes) if store is not None else [], hashes)
    places = np.flatnonzero([digest not in known for digest in digests])
    at_least = enough(preprocess)
    read = partial(read_all, catalog, at_least=at_least, workers=workers, on_progress=on_progress)
    if (whole := _same_set(known, digests)) is not None:
        bad = read(ids[places], {}, {}, done_before=len(ids) - len(places))  # to say why they cannot be read
        if not bad.good.any():
            good = np.isin(np.arange(len(ids)), places, invert=True)
            return _pixels(ids, whole.rows, whole.sizes, good, bad.named, looks)

    if len(ids) and not len(places):  # several files have them all: nothing need be written
        rows, sizes = _in_pieces(known, digests, tuple(forms))
        return _pixels(ids, rows, sizes, np.ones(len(ids), bool), (), looks)

    draft = _draft(store, len(ids), forms)
    if draft is not None:
        try:
            sizes, good, named = _filled(draft.rows, forms, known, digests, read, ids)
            if store is not None:
                held = [digest if fine and is_hash(digest) else "" for digest, fine in zip(digests, good, strict=True)]
                store.keep(draft, key, held, sizes)
            return _pixels(ids, draft.rows, sizes, good, named, looks)
        except OSError:  # the disk refuses what it had promised: do without it
            pass
    rows: Mapping[str, Any] = {}
    if sum(form.bytes(len(ids)) for form in forms.values()) <= IN_MEMORY_BYTES:
        rows = {name: np.zeros((len(ids), form.side, form.side, 3), np.uint8) for name, form in forms.items()}
    sizes, good, named = _filled(rows, forms, known if rows else {}, digests, read, ids)
    again = {name: _Again(catalog, ids, form, workers, at_least) for name, form in forms.items()}
    return _pixels(ids, rows or again, sizes, good, named, looks)


def _key(preprocess: Preprocess, stored_side: int | None) -> str:
    """Of the settings that pixels depend on."""
    return settings_key(
        {
            "preprocess": asdict(preprocess),
            "stored": stored_side,
            "thumb": THUMB,
            "contrast": 1,  # counted up when it would tell something else
            "pillow": PIL.__version__,
            "decoder": DECODER,
        }
    )


@dataclass(frozen=True)
class Form:
    """What is made of each image: uint8 [side side 3]."""

    side: int
    rendering: Rendering

    def bytes(self, count: int) -> int:
        """Of so many images."""
        return count * self.side * self.side * 3


def _filled(
    out: Mapping[str, Any],
    forms: Mapping[str, Form],
    known: Mapping[str, tuple[Entry, int]],
    digests: Sequence[str],
    read: Callable[..., Decoded],
    ids: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, tuple[Named, ...]]:
    """Write every form of every image into `out`, from where it is kept or decoded; (sizes [n 2], good [n], the bad)."""
    sizes, good = np.zeros((len(ids), 2), np.int32), np.ones(len(ids), bool)
    for place, digest in enumerate(digests):
        if digest in known:
            entry, row = known[digest]
            sizes[place] = entry.sizes[row]
            for name in out:
                out[name][place] = entry.rows[name][row]
    places = np.flatnonzero([digest not in known for digest in digests])
    renderings = {name: form.rendering for name, form in forms.items() if name in out}
    scattered = {name: _Scattered(rows, places) for name, rows in out.items()}
    told = [digests[place] for place in places.tolist()]
    found = read(ids[places], renderings, scattered, done_before=len(ids) - len(places), digests=told)
    sizes[places], good[places] = found.sizes, found.good
    return sizes, good, found.named


def _pixels(
    ids: np.ndarray,
    rows: Mapping[str, Rows],
    sizes: np.ndarray,
    good: np.ndarray,
    named: tuple[Named, ...],
    looks: Looks,
) -> Pixels:
    """The value; rows of unreadable images are left out."""
    if not good.all():
        rows = {name: Picked(held, np.flatnonzero(good)) for name, held in rows.items()}
    size = sizes[good].astype(np.float32)
    aspects = size[:, 0] / np.maximum(size[:, 1], 1.0)
    content = _content_of(looks.digests)
    if not good.all():
        looks = looks.at(np.flatnonzero(good))
    small = rows["thumb"], rows["contrast"]
    return Pixels(ids[good], rows["plain"], rows.get("stored"), *small, looks, aspects, named, content)


def joined(one: Pixels, other: Pixels) -> Pixels:
    """Both, in the order of their entries; a form that one lacks is left out."""
    order = np.argsort(np.concatenate([one.ids, other.ids]), kind="stable")

    def rows(first: Rows, second: Rows) -> Rows:
        return Picked(Joined([first, second]), order)

    stored = None if one.stored is None or other.stored is None else rows(one.stored, other.stored)
    small = rows(one.thumbs, other.thumbs), rows(one.contrasts, other.contrasts)
    looks = (one.looks + other.looks).at(order)
    return Pixels(
        np.concatenate([one.ids, other.ids])[order], rows(one.plain, other.plain), stored, *small, looks,
        np.concatenate([one.aspects, other.aspects])[order], (*one.named, *other.named), _content_of(looks.digests),
    )  # fmt: skip


def _content_of(digests: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _known(entries: Sequence[Entry], wanted: set[str]) -> dict[str, tuple[Entry, int]]:
    """Where the wanted rows are kept."""
    found: dict[str, tuple[Entry, int]] = {}
    for entry in entries:
        for row, digest in enumerate(entry.digests):
            if digest in wanted and digest not in found:
                found[digest] = (entry, row)
    for entry in {id(entry): entry for entry, _ in found.values()}.values():
        entry.used()
    return found


def _same_set(known: dict[str, tuple[Entry, int]], digests: Sequence[str]) -> Entry | None:
    """The entry that holds just these rows in this order, with nothing where an image could not be read; if there is one."""
    wanted = [digest if digest in known else "" for digest in digests]
    entries = {id(entry): entry for entry, _ in known.values()}
    return next((entry for entry in entries.values() if list(entry.digests) == wanted), None)


def _in_pieces(
    known: Mapping[str, tuple[Entry, int]], digests: Sequence[str], names: Sequence[str]
) -> tuple[dict[str, Rows], np.ndarray]:
    """(rows by rendering, sizes int32 [n 2]) of images that lie in several kept files."""
    entries = list({id(entry): entry for entry, _ in known.values()}.values())
    begins = np.cumsum([0, *(len(entry.digests) for entry in entries)])
    begin = {id(entry): int(at) for entry, at in zip(entries, begins, strict=False)}
    places = np.array([begin[id(entry)] + row for entry, row in map(known.__getitem__, digests)], np.int64)
    rows: dict[str, Rows] = {name: Picked(Joined([entry.rows[name] for entry in entries]), places) for name in names}
    return rows, np.concatenate([entry.sizes for entry in entries])[places]


def _draft(store: PixelStore | None, count: int, forms: Mapping[str, Form]) -> Draft | None:
    """A file to decode into: one that may be kept, else one for this run; None when it fits in memory, or nowhere."""
    size = sum(form.bytes(count) for form in forms.values())
    sides = {name: form.side for name, form in forms.items()}
    with contextlib.suppress(OSError):  # the disk filled up in between, or the folder is not ours
        if store is not None and store.room_for(size):
            return Draft(store.folder, count, sides)
    temporary = Path(tempfile.gettempdir())
    with contextlib.suppress(OSError):
        if size > IN_MEMORY_BYTES and size <= DISK_SHARE * shutil.disk_usage(temporary).free:
            return Draft(temporary, count, sides, kept=False)
    return None


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
    for index in evenly(len(catalog), sample):
        try:
            source = catalog.image(int(index))
            data = source if isinstance(source, bytes) else content_of(source)
            with quiet(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
                sides.append(max(image.size))
        except Exception:  # a bad file is named when it is decoded
            continue
    return int(np.median(sides)) if sides else 0


@dataclass(frozen=True)
class _Again:
    """Rows that are decoded each time they are asked for."""

    catalog: Catalog
    ids: np.ndarray
    form: Form
    workers: int
    at_least: Need  # what decoding must leave

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: slice | np.ndarray, /) -> np.ndarray:
        ids = self.ids[rows]
        with ThreadPoolExecutor(self.workers) as pool:
            images = list(pool.map(self._one, ids))
        return np.stack(images) if images else np.zeros((0, self.form.side, self.form.side, 3), np.uint8)

    def _one(self, index: int) -> np.ndarray:
        path = self.catalog.paths[int(index)]
        try:
            return self.form.rendering(decode(self.catalog.image(int(index)), name=path, at_least=self.at_least))
        except UnreadableImage as error:
            raise gone(path, error.reason) from None


def gone(path: str, reason: str) -> UnreadableImage:
    """The error for an image that was there when the run began."""
    return UnreadableImage(path, f"it could be read at the start of the run and cannot now ({reason})")
