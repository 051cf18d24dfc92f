"""Decoded pixels in files: kept between runs by content, bounded; or unnamed, for one run.

    FOLDER/<settings>-<set>.pixels      magic, length and hash of the table, table (JSON), then each rendering's rows, uint8

`settings` is the hash of how images were rendered, `set` that of which; a row is known by the hash of its image file's
bytes, so a set that has gained or changed some images takes the others from the files of before. Rows are checked by
their CRC when a file is opened: one that does not fit is decoded again. And when they are read: one that no longer fits, in a
file that was written over or cut short meanwhile, ends the run with a sentence.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import re
import shutil
import tempfile
import time
import zlib
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from burnish.errors import DataError
from burnish.positioned import BINARY, read_at, read_into, write_at

IN_MEMORY_BYTES = 64 * 2**20  # a larger array goes to a file, whose pages the system may drop
DISK_SHARE = 0.5  # of the free space at most, for unnamed files
KEPT_BYTES = 20 * 2**30  # of all kept files together, and never more than a quarter of the disk's free space and theirs
_MAGIC = b"burnish pixels 1"
_SUFFIX = ".pixels"
_OURS = re.compile(r"[0-9a-f]{8,64}-[0-9a-f]{8,64}\.pixels")
_DRAFT, _DRAFT_SECONDS = "burnish-draft-", 86400.0  # of a file being written where the system knows none without a name
_HEAD_BYTES = len(_MAGIC) + 8 + 32  # the length of the table and its hash
_PAGE = mmap.ALLOCATIONGRANULARITY
_MAX_TABLE_BYTES = 2**30


class OnDisk:
    """uint8 rows [n s s 3] in an open file, copied out when they are asked for: they never count as this process's.

    Not mapped: a file that is cut short meanwhile would end the process. Written row by row, from any thread.
    """

    def __init__(self, descriptor: _Descriptor, offset: int, shape: tuple[int, ...]) -> None:
        self.descriptor, self.offset, self.shape = descriptor, offset, shape
        self.crc: Sequence[int] | None = None  # of each row, once it is known

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        """DataError where the file was cut short or written over since it was opened, of rows whose CRC no longer fits."""
        places = np.arange(len(self))[rows]
        found = np.empty((places.size, *self.shape[1:]), np.uint8)
        # A photograph of 224 pixels takes 0.04 ms to read and 0.07 to check; copied out of a mapping it took 0.2 (2 cores).
        for row, place in zip(found, np.ravel(places).tolist(), strict=True):
            start = self.offset + place * row.nbytes
            if read_into(self.descriptor.number, row.data, start) < row.nbytes or (
                self.crc is not None and zlib.crc32(row) != self.crc[place]
            ):
                raise DataError(
                    "Pixels kept in the cache folder were changed or cut short while they were in use. Say the same again: those "
                    "that do not fit are decoded anew."
                )
        return found.reshape(*np.shape(places), *self.shape[1:])

    def __setitem__(self, row: int, pixels: np.ndarray, /) -> None:
        data = memoryview(np.ascontiguousarray(pixels, np.uint8).reshape(self.shape[1:]).tobytes())
        written, start = 0, self.offset + row * len(data)
        while written < len(data):
            written += write_at(self.descriptor.number, data[written:], start + written)

    def checksums(self, places: np.ndarray | None = None) -> list[int]:
        """The CRC-32 of these rows, by default of all."""
        places = np.arange(len(self)) if places is None else places
        found: list[int] = []
        for start in range(0, len(places), 64):
            found += [zlib.crc32(row) for row in self[places[start : start + 64]]]
        return found


@dataclass(frozen=True)
class Picked:
    """Some of other rows, by position."""

    rows: Any
    places: np.ndarray

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        return self.rows[self.places[rows]]


class Joined:
    """The rows of some others, one after the other."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = parts
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        places = np.arange(len(self))[rows]
        if np.ndim(places) == 0:
            return self[[places]][0]
        owner = np.searchsorted(self._ends, places, side="right")
        found: np.ndarray | None = None
        for number, part in enumerate(self.parts):
            own = np.flatnonzero(owner == number)
            held = part[places[own] - (self._ends[number] - len(part))] if len(own) or found is None else None
            if found is None:
                assert held is not None
                found = np.empty((len(places), *np.shape(held)[1:]), np.asarray(held).dtype)
            if held is not None:
                found[own] = held
        assert found is not None
        return found


class _Descriptor:
    """An open file, closed when nothing needs it."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self.number)


@dataclass(frozen=True)
class Entry:
    """One kept file, opened."""

    path: Path

    digests: tuple[str, ...]  # of the image files, "" where a row holds nothing
    sizes: np.ndarray  # int32 [n 2], width and height of the upright images
    rows: dict[str, OnDisk]  # by rendering

    def used(self) -> None:
        """Note it: the files used longest ago go first."""
        with contextlib.suppress(OSError):
            os.utime(self.path)


class PixelStore:
    """A folder of kept pixels."""

    def __init__(self, folder: Path, *, limit_bytes: int | None = None) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes

    def entries(self, settings: str, sides: Mapping[str, int], wanted: Set[str]) -> list[Entry]:
        """The sound files rendered so that hold any of the wanted rows, newest first; those rows alone are read and checked.

        sides: of each rendering, in pixels.
        """
        try:
            found = sorted(self.folder.glob(f"{settings}-*{_SUFFIX}"), key=lambda path: -path.stat().st_mtime)
        except OSError:
            return []
        return [entry for path in found if (entry := _opened(path, settings, sides, wanted)) is not None]

    def keep(self, draft: Draft, settings: str, digests: Sequence[str], sizes: np.ndarray) -> bool:
        """Give the draft a name, if there is room for it; False when there is none, or the disk refuses."""
        name = hashlib.sha256("\n".join(digests).encode()).hexdigest()[:20]
        path = self.folder / f"{settings}-{name}{_SUFFIX}"
        try:
            if not self._make_room(draft.bytes, instead_of=path):
                return False
            draft.finish(settings, digests, sizes)
            draft.link(path)
        except OSError:
            return False
        return True

    def room_for(self, size: int) -> bool:
        """Whether a file of so many bytes may be kept at all."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            return size <= self._limit() and size <= DISK_SHARE * shutil.disk_usage(self.folder).free
        except OSError:
            return False

    def _limit(self) -> int:
        if self.limit_bytes is not None:
            return self.limit_bytes
        own = sum(path.stat().st_size for path in self._kept())
        return min(KEPT_BYTES, (shutil.disk_usage(self.folder).free + own) // 4)

    def _kept(self) -> list[Path]:
        """The files that are of this kind: others may lie in the folder too."""
        return [path for path in self.folder.glob(f"*{_SUFFIX}") if _OURS.fullmatch(path.name)]

    def _make_room(self, size: int, *, instead_of: Path) -> bool:
        """Remove the files used longest ago until so many bytes fit."""
        limit = self._limit()
        if size > limit:
            return False
        others = (path for path in self._kept() if path != instead_of)
        files = sorted(others, key=lambda path: path.stat().st_mtime)
        total = sum(path.stat().st_size for path in files)
        for path in files:
            if total + size <= limit:
                break
            total -= path.stat().st_size
            path.unlink(missing_ok=True)
        return total + size <= limit


class Draft:
    """Rows being written: a file that is gone when the process is (or, where the system cannot, a day later), unless named."""

    def __init__(self, folder: Path, count: int, sides: Mapping[str, int], *, kept: bool = True) -> None:
        """kept: whether it may be given a name later. Raises OSError when there is no room."""
        shapes = {name: (count, side, side, 3) for name, side in sides.items()}
        # The table stands first, in a space that surely holds it.
        self.table_bytes = _rounded(_HEAD_BYTES + 4096 + count * (120 + 16 * len(sides)))
        offsets, end = {}, self.table_bytes
        for name, shape in shapes.items():
            offsets[name] = end
            end += _rounded(int(np.prod(shape)))
        self.bytes, self.sides, self.count = end, dict(sides), count
        number, self.named = _unnamed(folder, kept=kept)
        self.descriptor = _Descriptor(number)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(number, 0, end)  # a write to a hole on a full disk would end the process
        else:
            os.ftruncate(number, end)
        self.rows = {name: OnDisk(self.descriptor, offsets[name], shape) for name, shape in shapes.items()}

    def finish(self, settings: str, digests: Sequence[str], sizes: np.ndarray) -> None:
        """Write the table: how images were rendered, and what each row is."""
        crc = {name: rows.checksums() for name, rows in self.rows.items()}
        for name, rows in self.rows.items():
            rows.crc = crc[name]
        table = {
            "settings": settings,
            "sides": self.sides,
            "digests": list(digests),
            "sizes": sizes.tolist(),
            "crc": crc,
        }
        text = json.dumps(table, separators=(",", ":")).encode()
        head = _MAGIC + len(text).to_bytes(8, "little") + hashlib.sha256(text).digest() + text
        if len(head) > self.table_bytes:
            raise OSError("the table is larger than its space")
        write_at(self.descriptor.number, head, 0)
        os.fsync(self.descriptor.number)

    def __del__(self) -> None:
        named: Path | None = getattr(self, "named", None)
        if named is not None:  # it was not kept
            with contextlib.suppress(OSError):
                os.unlink(named)

    def link(self, path: Path) -> None:
        """Name the file, in one step; a file of that name is replaced."""
        if self.named is not None:
            os.replace(self.named, path)
            self.named = None
            return
        temporary = path.with_name(f".{os.getpid()}-{path.name}")
        folder = os.open(path.parent, os.O_RDONLY)
        try:  # with a folder's descriptor Python asks for linkat, which follows the link in /proc to the file itself
            os.link(f"/proc/self/fd/{self.descriptor.number}", temporary.name, dst_dir_fd=folder, follow_symlinks=True)
            os.replace(temporary, path)
        finally:
            os.close(folder)
            temporary.unlink(missing_ok=True)


def blank(shape: tuple[int, ...], dtype: Any = np.uint8) -> np.ndarray:
    """A zeroed array in memory, or in an unnamed file when it is large; OSError when the disk has no room."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if size <= IN_MEMORY_BYTES:
        return np.zeros(shape, dtype)
    with tempfile.TemporaryFile(prefix="burnish-") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
        return np.memmap(file, dtype, "r+", shape=shape)


def settings_key(settings: Mapping[str, Any]) -> str:
    """The hash that names a way of rendering."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:20]


def _unnamed(folder: Path, *, kept: bool) -> tuple[int, Path | None]:
    """A new file in that folder, without a name where it needs none or the system can give it one later; else a hidden one."""
    flag = getattr(os, "O_TMPFILE", None)
    if flag is not None and os.path.isdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            return os.open(folder, flag | os.O_RDWR | os.O_CLOEXEC, 0o600), None
    if not kept:
        number, path = tempfile.mkstemp(dir=folder)
        os.unlink(path)
        return number, None
    for left in folder.glob(f".{_DRAFT}*"):  # by a process that died
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _DRAFT_SECONDS:
                left.unlink()
    number, path = tempfile.mkstemp(dir=folder, prefix=f".{_DRAFT}")
    return number, Path(path)


def _opened(path: Path, settings: str, sides: Mapping[str, int], wanted: Set[str]) -> Entry | None:
    """The file's entry; wanted rows that fail their check are left out.

    None when it is not sound, rendered otherwise, or holds none of the wanted rows.
    """
    try:
        number = os.open(path, os.O_RDONLY | BINARY | getattr(os, "O_CLOEXEC", 0))
        descriptor = _Descriptor(number)
        head = read_at(number, _HEAD_BYTES, 0)
        length = int.from_bytes(head[len(_MAGIC) : len(_MAGIC) + 8], "little")
        if head[: len(_MAGIC)] != _MAGIC or not 0 < length <= _MAX_TABLE_BYTES:
            return None
        text = read_at(number, length, _HEAD_BYTES)
        if hashlib.sha256(text).digest() != head[len(_MAGIC) + 8 :]:
            return None
        table = json.loads(text)
        if table["settings"] != settings or table["sides"] != sides:
            return None
        count = len(table["digests"])
        places = np.flatnonzero([digest in wanted for digest in table["digests"]])
        if not len(places):
            return None
        draft_bytes = _rounded(_HEAD_BYTES + 4096 + count * (120 + 16 * len(sides)))
        rows, end = {}, draft_bytes
        for name, side in sides.items():
            shape = (count, side, side, 3)
            rows[name] = OnDisk(descriptor, end, shape)
            end += _rounded(int(np.prod(shape)))
        if os.fstat(number).st_size < end:
            return None
        sound = np.ones(count, bool)
        for name, held in rows.items():
            sound[places] &= np.array(held.checksums(places)) == np.array(table["crc"][name])[places]
            held.crc = table["crc"][name]
        digests = tuple(digest if fine else "" for digest, fine in zip(table["digests"], sound, strict=True))
        return Entry(path, digests, np.array(table["sizes"], np.int32).reshape(count, 2), rows)
    except (
        OSError,
        DataError,
        ArithmeticError,
        AttributeError,
        LookupError,
        MemoryError,
        RecursionError,
        TypeError,
        ValueError,
    ):
        return None


def _rounded(size: int) -> int:
    """Up to a whole number of pages."""
    return -(-size // _PAGE) * _PAGE
