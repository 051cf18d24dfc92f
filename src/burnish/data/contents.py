"""Where the bytes of a catalogue's images lie, when they are not files of a folder; nothing is extracted to a named file."""

from __future__ import annotations

import io
import os
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin

from burnish.archives import Zip
from burnish.data.unit import as_bytes, in_other_units, trouble_of
from burnish.errors import DataError, UnreadableImage, shown
from burnish.positioned import read_at

IN_MEMORY_BYTES = 2**28  # of unpacked archives and tables; what is more goes to an unnamed temporary file


class Contents(Protocol):
    """Gives what the decoder reads for a catalogue's path; may be asked by several threads at once."""

    def image(self, path: str) -> Path | bytes:
        """A file, or the bytes of one; raises UnreadableImage."""
        ...


class Zipped:
    """The members of a zip archive."""

    def __init__(self, archive: Zip, most: int) -> None:
        """most: bytes of one image."""
        self._archive, self._most = archive, most

    def image(self, path: str) -> bytes:
        try:
            return self._archive.read(path, at_most=self._most)
        except DataError as error:
            raise UnreadableImage(path, _last_clause(error, self._archive.label)) from None


class Spool:
    """Bytes that are written once, one after the other, and read in pieces: in memory, or in a file without a name."""

    def __init__(self) -> None:
        self._held, self._file, self.size = bytearray(), None, 0

    def add(self, data: bytes) -> tuple[int, int]:
        """(offset, length) under which the bytes can be read again; DataError when the disk has no room."""
        try:
            if self._file is None and self.size + len(data) > IN_MEMORY_BYTES:
                self._file = tempfile.TemporaryFile(prefix="burnish-", buffering=0)  # noqa: SIM115  # closed with the object
                _write(self._file, self._held)
                self._held = bytearray()
            if self._file is None:
                self._held += data
            else:
                _write(self._file, data)
        except OSError as error:
            raise DataError(
                f"unpacking to the temporary folder {shown(tempfile.gettempdir())} failed after {self.size:,} bytes "
                f"({error.strerror or error}); free some space, or set TMPDIR to a larger disk"
            ) from None
        self.size += len(data)
        return self.size - len(data), len(data)

    def read(self, offset: int, length: int) -> bytes:
        """Those bytes; by any number of threads."""
        if self._file is None:
            return bytes(self._held[offset : offset + length])
        return read_at(self._file.fileno(), length, offset)


def _write(file: Any, data: bytes | bytearray) -> None:
    """All of it: a disk may take a part first, and refuse the next."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


@dataclass(frozen=True)
class FileOnDisk:
    """A file on disk, read in pieces, and opened for each: a set has thousands of shards, and a process as many open files."""

    path: Path

    def read(self, offset: int, length: int) -> bytes:
        """Those bytes; by any number of threads. Raises OSError."""
        with open(self.path, "rb", buffering=0) as file:
            return read_at(file.fileno(), length, offset)


@dataclass(frozen=True)
class Place:
    """Where an image's bytes stand."""

    holder: Spool | FileOnDisk
    offset: int
    length: int

    def read(self) -> bytes:
        """The bytes; fewer where the file was cut short."""
        return self.holder.read(self.offset, self.length)


class Packed:
    """Images inside larger files: members of tar archives, cells of tables."""

    def __init__(self, places: Mapping[str, Place], most: int, absent: Mapping[str, str] | None = None) -> None:
        """most: bytes of one image. absent: path -> why there are no bytes."""
        self._places, self._most, self._absent = places, most, {} if absent is None else absent

    def image(self, path: str) -> bytes:
        if path in self._absent:
            raise UnreadableImage(path, self._absent[path])
        place = self._places[path]
        if place.length > self._most:
            raise UnreadableImage(path, f"larger than {self._most // 1_000_000} MB, the most that is read")
        try:
            data = place.read()
        except OSError as error:
            raise UnreadableImage(path, f"cannot be read: {error.strerror or error}") from None
        if len(data) != place.length:
            raise UnreadableImage(path, "truncated: the archive ends too early")
        return data


class Drawn:
    """Images that a function gives: arrays, or the items of a data set in Python."""

    def __init__(
        self,
        places: dict[str, int],
        drawn: Callable[[int], Image.Image | np.ndarray | str | os.PathLike[str]],
        *,
        fixed: bool = False,
    ):
        """drawn: item number -> a Pillow image, uint8 [h w 3], [h w 4] or [h w], the same of floats, a path, or a file's bytes.

        fixed: always the same, as of arrays.
        """
        self.fixed = fixed
        self._places, self._drawn, self._turn = places, drawn, threading.Lock()

    def image(self, path: str) -> Path | bytes:
        """As `Contents` has it; DataError where floats are in other units than 0 to 1, for then all are that the set gives."""
        try:
            # Nothing says that a data set may be asked by several threads: one that seeks in a file would mix its images up.
            with self._turn:
                item = self._drawn(self._places[path])
                if isinstance(item, Image.Image):
                    with suppress(Exception):  # which is told below
                        item.load()
        except Exception as error:  # somebody else's code
            raise UnreadableImage(path, f"the data set gives no image: {type(error).__name__}: {error}") from None
        if isinstance(item, (str, os.PathLike)):
            return Path(item)
        if isinstance(item, bytes):
            return item
        if trouble := in_other_units(item):
            raise DataError(f"Image {self._places[path]} {trouble}.")
        return file_of(item, path)


class Joined:
    """The images of several sets, called by the name of theirs before their own: "train/000"."""

    def __init__(self, parts: Mapping[str, tuple[Path, Contents | None]]) -> None:
        """parts: name -> the folder of its files, and what gives its images where they are no files."""
        self._parts = parts
        self.contents = [contents for _, contents in parts.values()]

    def image(self, path: str) -> Path | bytes:
        name, _, inside = path.partition("/")
        root, contents = self._parts[name]
        if contents is None:
            return root / inside
        try:
            return contents.image(inside)
        except UnreadableImage as error:
            raise UnreadableImage(path, error.reason) from None


def is_drawn(contents: Contents | None) -> bool:
    """Whether some of the images are given by a function."""
    return isinstance(contents, Drawn) or (isinstance(contents, Joined) and any(map(is_drawn, contents.contents)))


def is_redrawn(contents: Contents | None) -> bool:
    """Whether images may be others each time they are asked for, as those of a data set in Python."""
    if isinstance(contents, Joined):
        return any(map(is_redrawn, contents.contents))
    return isinstance(contents, Drawn) and not contents.fixed


_PNG_MODES = ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")
_TIFF_MODES = ("F", "I", "I;16B", "LAB")  # that PNG does not know


def file_of(image: Any, name: str) -> bytes:
    """A Pillow image, an array or a tensor as the bytes of a file, upright.

    So alpha, deep greys and palettes come out as from any file.

    UnreadableImage where it is no image, or a lazily opened one whose file cannot be read.
    """
    picture, buffer = picture_of(image, name), io.BytesIO()
    try:
        if picture.mode in _TIFF_MODES:
            picture.save(buffer, "TIFF")
        else:
            picture.save(buffer, "PNG", compress_level=1)
    except Exception as error:  # a codec may raise anything
        raise _unreadable(name, error) from None
    return buffer.getvalue()


def picture_of(image: Any, name: str) -> Image.Image:
    """A Pillow image, an array or a tensor, upright, in a mode that a file has. UnreadableImage as for `file_of`."""
    try:
        array = None if isinstance(image, Image.Image) else np.asarray(plain_array(image))
    except Exception as error:  # numbers of a kind that arrays have not, rows of unequal length
        raise UnreadableImage(name, f"is no array of numbers: {shown(str(error))[:120]}") from None
    picture = image if array is None else _from_array(array, name, list(getattr(image, "shape", array.shape)))
    try:
        tags = getattr(picture, "tag_v2", {})  # which the upright copy has no longer
        picture = plain_grey(ImageOps.exif_transpose(picture), tags)
        if picture.mode == "La":  # premultiplied grey leads to LA alone
            picture = picture.convert("LA")
        known = picture.mode in (*_TIFF_MODES, *_PNG_MODES)
        return picture if known else picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    except Exception as error:  # a codec may raise anything
        raise _unreadable(name, error) from None


def _unreadable(name: str, error: Exception) -> UnreadableImage:
    return UnreadableImage(name, f"cannot be read: {shown(str(error))[:120] or type(error).__name__}")


def plain_grey(image: Image.Image, tags: Mapping[int, Any]) -> Image.Image:
    """A deep grey image of a TIFF with these tags, 0 for black and 65535 for white; others, and larger numbers, as they are.

    Pillow gives 12 bits as they are stored, and 16 where white is zero.
    """
    twelve = tags.get(TiffImagePlugin.BITSPERSAMPLE) == (12,)
    negative = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
    if not image.mode.startswith("I") or not (twelve or negative):
        return image
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        return image
    values = values * 65535 // 4095 if twelve else values
    found = Image.fromarray((65535 - values if negative else values).clip(0, 65535).astype(np.uint16))
    found.info = image.info
    return found


def plain_array(image: Any) -> Any:
    """A torch tensor as an array, channels last and one of them left out; anything else as it is."""
    if hasattr(image, "detach"):
        image = image.detach().cpu().numpy()
    if isinstance(image, np.ndarray) and image.ndim == 3:
        if image.shape[2] not in (1, 3, 4) and image.shape[0] in (1, 3, 4):
            image = image.transpose(1, 2, 0)
        image = np.ascontiguousarray(image[:, :, 0] if image.shape[2] == 1 else image)
    return image


def _from_array(array: np.ndarray, name: str, given: list[int]) -> Image.Image:
    """given: its shape before the channels were laid last."""
    kind, colours = array.dtype.newbyteorder("="), array.ndim == 3 and array.shape[2] in (3, 4)
    if kind == np.uint8 and (array.ndim == 2 or colours):
        return Image.fromarray(array)
    if kind == np.uint16 and (array.ndim == 2 or colours):
        return Image.fromarray(_of_eight_bits(array, name) if colours else array.astype(np.uint16))
    if kind == np.bool_ and array.ndim == 2:
        return Image.fromarray(array)
    if kind.kind == "f" and (array.ndim == 2 or colours):
        if trouble := trouble_of(array):
            raise UnreadableImage(name, trouble)
        return Image.fromarray(as_bytes(array))
    more = " (numbers from 0 to 255 are made so by image.astype('uint8'))" if kind.kind == "i" else ""
    raise UnreadableImage(
        name,
        f"is {kind} {given}, expected uint8, uint16 or floats from 0 to 1, [h w 3], [3 h w], [h w 4] or [h w], or bool [h w]"
        f"{more}",
    )


def _of_eight_bits(colours: np.ndarray, name: str) -> np.ndarray:
    """The upper eight bits of uint16 colours: those that a file of 16 bits a colour is read by."""
    if 0 < colours.max(initial=0) < 256:  # which would all be black
        raise UnreadableImage(
            name, "is uint16 and holds no number over 255, as images of 8 bits do: give it as image.astype('uint8')"
        )
    return (colours >> 8).astype(np.uint8)


def _last_clause(error: DataError, label: str) -> str:
    return str(error).removeprefix(f"{label}: ")
