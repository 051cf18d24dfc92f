"""A first look at image files: the hash of their bytes and what their headers say, before a pixel is decoded."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from burnish.data.catalog import Catalog, Splits
from burnish.data.contents import is_redrawn
from burnish.data.file import MAX_BYTES, UNREAD, content_of, digest_of, is_hash
from burnish.data.formats import FORMATS, image_of
from burnish.data.pixels import one_by_one, quiet
from burnish.data.slow import why_slow
from burnish.data.upright import orientation_of
from burnish.disk import text_of, write_whole
from burnish.errors import NotARun, UnreadableImage, cell, shown, spoilt, uncelled
from burnish.runtime import evenly
from burnish.terms import Preprocess

MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "I;16",
         "I;16B", "I;16L", "I;16N", "F")  # fmt: skip
_MAY_MOVE = ("GIF", "PNG", "WEBP", "TIFF", "AVIF")
# Files read by one thread and timed; where those were slow so many times that are then read by several, the next time twice that.
_BLOCK, _BLOCKS = 64, 8
_ENOUGH = 1.0  # seconds of timing with one thread
_DIGESTS = ("path", "blake2b")
_ASKED_AGAIN = 256  # images of a finished run, whether they are still the same
_SOON = 5e-4  # seconds a file; below it threads cost more, by handing Python's lock to and fro, than they bring
HEADER = np.dtype(
    [
        ("format", np.int8),  # place in FORMATS, -1: none of them
        ("mode", np.int8),  # place in MODES, -1: another
        ("frames", np.bool_),  # whether there are more than one
        ("orientation", np.int8),  # EXIF's, 1 to 8; 1 is upright
        ("width", np.int32),  # pixels, as stored; 0 where the header cannot be read
        ("height", np.int32),
        ("bytes", np.int64),  # of the file, -1 where it cannot be read
    ]
)


@dataclass(frozen=True)
class Looks:
    """What is known of image files without decoding them; row i is of entry i of those asked for."""

    digests: tuple[str, ...]  # hash of the file's bytes; of one that cannot be read its place: no other equals it
    headers: np.ndarray  # HEADER [n]

    def at(self, rows: np.ndarray) -> Looks:
        """Of some rows."""
        return Looks(tuple(self.digests[row] for row in rows), self.headers[rows])

    def __add__(self, other: Looks) -> Looks:
        return Looks(self.digests + other.digests, np.concatenate([self.headers, other.headers]))


class Dataset(NamedTuple):
    """The images of a run after a first look: which there are, on which side of the split each is, what their files told."""

    catalog: Catalog
    splits: Splits
    looks: Looks  # row i is of the catalogue's entry i


def look_at(catalog: Catalog, ids: np.ndarray, *, workers: int) -> Looks:
    """The hashes and headers of some catalogue entries; a bad file raises nothing.

    Files that are large or that a disk is waited for are read by several threads. Small ones in the system's memory are not:
    4,722 of 12 KB took one thread 0.6 s, two 1.8 s.
    """
    headers, count = np.zeros(len(ids), HEADER), len(ids)
    digests: list[str] = []

    def look(row: int) -> str:
        index = int(ids[row])
        digest, headers[row] = _look(catalog, index)
        return digest or f"{UNREAD}{index}"

    with quiet():
        together = _BLOCK * _BLOCKS
        while len(digests) < count:
            began, done = time.monotonic(), len(digests)
            digests += map(look, range(done, min(done + _BLOCK, count)))
            each, done = (time.monotonic() - began) / (len(digests) - done), len(digests)
            if each > _SOON and workers > 1:
                digests += one_by_one(
                    lambda row, done=done: look(done + row), min(together, count - done), workers=workers
                )
                together *= 2
    return Looks(tuple(digests), headers)


def write_digests(path: Path, dataset: Dataset) -> None:
    """Write `path,blake2b` of the images as CSV: by what is in them images are known again, under any name.

    Nothing is written for a data set in Python, which may draw its images anew each time.
    """
    catalog = dataset.catalog
    if is_redrawn(catalog.contents):
        return
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(_DIGESTS)
    known = zip(catalog.paths, dataset.looks.digests, strict=True)
    table.writerows((cell(name), digest) for name, digest in known if is_hash(digest))
    write_whole(path, text.getvalue())


def read_digests(path: Path) -> dict[str, str]:
    """Path -> hash, as `write_digests` wrote them; empty where there is no such file. NotARun where it is damaged."""
    try:
        text = text_of(path)
        table = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        found = {uncelled(row[_DIGESTS[0]]): row[_DIGESTS[1]] for row in table}
        if not text.endswith("\n") or not all(isinstance(one, str) and is_hash(one) for one in found.values()):
            raise ValueError("it was cut short")
        return found
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise NotARun(
            f"{shown(str(path))} is damaged ({spoilt(error)}), so that nobody can say whether the images are those of "
            "the run; remove that file to do without"
        ) from None


def changed(catalog: Catalog, known: Mapping[str, str], *, workers: int) -> tuple[list[str], int]:
    """(the images that have another content than is known, how many were looked at): of at most 256, evenly spread."""
    if is_redrawn(catalog.contents):
        return [], 0
    here = np.array([row for row, path in enumerate(catalog.paths) if path in known], np.int64)
    asked = here[evenly(len(here), _ASKED_AGAIN)]
    found = look_at(catalog, asked, workers=workers).digests
    paths = [catalog.paths[row] for row in asked]
    return [path for path, digest in zip(paths, found, strict=True) if digest != known[path]], len(asked)


def share_seen(headers: np.ndarray, preprocess: Preprocess) -> float:
    """The part of its area, 0 to 1, that a network sees of the middle one of these images, HEADER [n]; 1 where none is known."""
    known = headers[(headers["width"] > 0) & (headers["height"] > 0)]
    if preprocess.fit == "squash" or not len(known):
        return 1.0
    width, height = known["width"].astype(np.float64), known["height"].astype(np.float64)
    return float(np.median(np.minimum(width, height) / np.maximum(width, height))) * preprocess.crop**2


def short_side(headers: np.ndarray) -> float:
    """Pixels of the short side of the middle one of these images, HEADER [n]; 0 where none is known."""
    known = headers[(headers["width"] > 0) & (headers["height"] > 0)]
    return float(np.median(np.minimum(known["width"], known["height"]))) if len(known) else 0.0


def seconds_a_file(catalog: Catalog, ids: np.ndarray, *, workers: int) -> float:
    """What `look_at` takes for one of many files, timed on these: by one thread and, where that is slow, by several."""
    alone, together = ids[::2], ids[1::2]
    with quiet():
        began, done = time.monotonic(), 0
        while done < len(alone) and (done == 0 or time.monotonic() - began <= _ENOUGH):
            _look(catalog, int(alone[done]))
            done += 1
        each = (time.monotonic() - began) / max(1, done)
        if each <= _SOON or workers == 1 or not len(together):
            return each
        began = time.monotonic()
        for _ in one_by_one(lambda row: _look(catalog, int(together[row])), len(together), workers=workers):
            pass
        return (time.monotonic() - began) / len(together)


_NOTHING = (-1, -1, False, 1, 0, 0, -1)


def _look(catalog: Catalog, index: int) -> tuple[str, tuple[int, int, bool, int, int, int, int]]:
    try:
        source = catalog.image(index)
        data = content_of(source) if isinstance(source, Path) else source
    except UnreadableImage:
        return "", _NOTHING
    if len(data) > MAX_BYTES:
        return "", _NOTHING
    digest = digest_of(data)
    try:
        if why_slow(data) is not None:
            return digest, (-1, -1, False, 1, 0, 0, len(data))
        with image_of(data) as image:
            kind = image.format if image.format != "MPO" else "JPEG"
            place = FORMATS.index(kind) if kind in FORMATS else -1
            mode = MODES.index(image.mode) if image.mode in MODES else -1
            moves = kind in _MAY_MOVE and _has_more(image)
            # Of a PNG whose EXIF does not stand before its pixels Pillow would decode the pixels to look for it.
            turned = 1 if kind == "PNG" and "exif" not in image.info else orientation_of(image)
            return digest, (place, mode, moves, turned, *image.size, len(data))
    except Exception:  # a codec may raise anything on hostile bytes; decoding says what is wrong
        return digest, (-1, -1, False, 1, 0, 0, len(data))


def _has_more(image: Any) -> bool:
    """Whether there are frames or pages beside the first one; of a TIFF without going through them."""
    return image.tag_v2.next > 0 if image.format == "TIFF" else bool(getattr(image, "is_animated", False))
