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
_FEW_BAD = 0.2  # of the images


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
    reading = Reading(
        catalog, ids, preprocess=preprocess, stored_side=stored_side, workers=workers, store=store, looks=looks
    )
    reading.read(np.arange(len(ids)), on_progress)
    return reading.kept()


class Reading:
    """Entries of a catalogue that are decoded bit by bit, into one place."""

    def __init__(
        self,
        catalog: Catalog,
        ids: np.ndarray,
        *,
        preprocess: Preprocess,
        stored_side: int | None = None,
        workers: int,
        store: PixelStore | None = None,
        looks: Looks | None = None,
    ) -> None:
        """As for `read_pixels`; ids: int64 [n], of all that may be asked for."""
        self.forms: dict[str, Form] = {
            "plain": Form(preprocess.size, lambda image: view(image, preprocess)),
            "thumb": Form(THUMB, lambda image: stored(image, THUMB)),
            "contrast": Form(1, contrast),
        }
        if stored_side is not None:
            self.forms["stored"] = Form(stored_side, lambda image: stored(image, stored_side))
        self.catalog, self.ids, self.workers, self.store = catalog, ids, workers, store
        self.looks = looks or look_at(catalog, ids, workers=workers)
        self._at_least, self._key = enough(preprocess), _key(preprocess, stored_side)
        self._sizes, self._good = np.zeros((len(ids), 2), np.int32), np.ones(len(ids), bool)
        self._done, self._named = np.zeros(len(ids), bool), dict[int, Named]()
        sides = {name: form.side for name, form in self.forms.items()}
        # What could not be read at that look is never taken for another's pixels.
        hashes = set(filter(is_hash, self.looks.digests))
        self._known = _known(store.entries(self._key, sides, hashes) if store is not None else [], hashes)
        self._rows: Mapping[str, Any] = {}
        self._draft: Draft | None = None
        self._there = True  # whether all rows lie where they were kept, so that none need be written
        if (whole := _same_set(self._known, self.looks.digests)) is not None:
            self._rows, self._sizes = whole.rows, whole.sizes
        elif len(ids) and all(digest in self._known for digest in self.looks.digests):  # in several files
            self._rows, self._sizes = _in_pieces(self._known, self.looks.digests, tuple(self.forms))
        else:
            self._begin(_draft(store, len(ids), self.forms))

    def read(self, places: np.ndarray, on_progress: Callable[[int], None] | None = None) -> Pixels:
        """Those at these places of `ids`, decoded now; on_progress: told of how many of them are done, where they are decoded."""
        fitted = self._done.copy()
        fitted[places] = True
        if self._there and self._fills({}, places, on_progress):  # one that could not be read before can be now
            self._begin(_draft(self.store, len(self.ids), self.forms))
            places = np.flatnonzero(fitted)
        if not self._there:
            try:
                self._fills(self._rows, places, on_progress)
            except OSError:  # the disk refuses what it had promised: do without it
                self._begin(None)
                self._fills(self._rows, np.flatnonzero(fitted), on_progress)
        self._done = fitted
        return self.pixels(places)

    def pixels(self, places: np.ndarray) -> Pixels:
        """Those at these places, which were read."""
        rows: Mapping[str, Any] = self._rows or {
            name: _Again(self.catalog, self.ids, form, self.workers, self._at_least)
            for name, form in self.forms.items()
        }
        looks = self.looks
        if len(places) < len(self.ids) or (np.diff(places) != 1).any():
            rows, looks = {name: Picked(held, places) for name, held in rows.items()}, looks.at(places)
        named = tuple(self._named[place] for place in places.tolist() if place in self._named)
        return _pixels(self.ids[places], rows, self._sizes[places], self._good[places], named, looks)

    def kept(self) -> Pixels:
        """The same as `so_far`; the file that they were written to is kept in the store."""
        if self._draft is not None and self.store is not None:
            good = self._done & self._good
            held = [
                digest if fine and is_hash(digest) else ""
                for digest, fine in zip(self.looks.digests, good, strict=True)
            ]
            self.store.keep(self._draft, self._key, held, self._sizes)
        return self.so_far()

    def so_far(self) -> Pixels:
        """All that were read, in the order of `ids`."""
        return self.pixels(np.flatnonzero(self._done))

    def _begin(self, draft: Draft | None) -> None:
        """Write from now on: into this file, into memory, or nowhere."""
        self._draft, self._rows, self._there = draft, {} if draft is None else draft.rows, False
        count = len(self.ids)
        if draft is None and sum(form.bytes(count) for form in self.forms.values()) <= IN_MEMORY_BYTES:
            self._rows = {
                name: np.zeros((count, form.side, form.side, 3), np.uint8) for name, form in self.forms.items()
            }
        self._sizes = np.zeros((count, 2), np.int32)

    def _fills(self, out: Mapping[str, Any], places: np.ndarray, on_progress: Callable[[int], None] | None) -> bool:
        """Write every form of these images into `out`, from where it is kept or decoded; whether any could be decoded."""
        digests = self.looks.digests
        known = self._known if out or self._there else {}
        kept = np.array([digests[place] in known for place in places.tolist()], bool)
        for place in places[kept].tolist() if out else ():
            entry, row = known[digests[place]]
            self._sizes[place] = entry.sizes[row]
            for name in out:
                out[name][place] = entry.rows[name][row]
        new = places[~kept]
        if not len(new):
            return False
        renderings = {name: form.rendering for name, form in self.forms.items() if name in out}
        found = read_all(
            self.catalog, self.ids[new], renderings, {name: _Scattered(rows, new) for name, rows in out.items()},
            at_least=self._at_least, workers=self.workers, done_before=int(kept.sum()),
            digests=[digests[place] for place in new.tolist()], on_progress=on_progress,
        )  # fmt: skip
        if not self._there:
            self._sizes[new] = found.sizes
        self._good[new] = found.good
        self._named |= dict(zip(new[~found.good].tolist(), found.named, strict=True))
        return bool(found.good.any())


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
    """The entry that holds just these rows in this order, with nothing where a few images could not be read; if there is one."""
    wanted = [digest if digest in known else "" for digest in digests]
    if wanted.count("") > _FEW_BAD * len(wanted):  # some were never asked for
        return None
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
