"""Read the files in a .zip or .tar archive in place; nothing is ever extracted to disk (P8).

What could fool one reader and not another is refused: members that overlap, share a name, are links, climb out of the
archive, are encrypted, or unpack to far more than they occupy. Who reads many files may have links and names that climb
out put `aside`, with the reason, instead.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

from burnish.errors import BadWeights, BurnishError, shown
from burnish.positioned import read_at

MAX_UNPACKED_BYTES = 8 * 2**30  # of a model
MAX_DATA_BYTES = 2**40  # of images
_MAX_MEMBERS = 100_000  # a large checkpoint has some thousands
_MAX_RATIO = 200  # unpacked over packed; weights hardly shrink, and text seldom by more than 20
_RATIO_FROM_BYTES = 16 * 2**20  # below this nothing is a bomb
_REST = 1 << 20  # bytes read at once behind the end of a tar
_ReadError, _EmptyHeader = tarfile.ReadError, vars(tarfile)["EmptyHeaderError"]
_NO_HEADERS = (vars(tarfile)["InvalidHeaderError"], vars(tarfile)["TruncatedHeaderError"], _EmptyHeader)
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz"}


@dataclass(frozen=True)
class Member:
    """One file in an archive."""

    name: str
    data: bytes


Aside = MutableMapping[str, str]  # member -> why it is left out


class Zip:
    """A checked zip archive, in memory or on disk; its members may be read by several threads."""

    def __init__(
        self,
        data: bytes | OnDisk,
        label: str,
        *,
        error: type[BurnishError] = BadWeights,
        aside: Aside | None = None,
        most: int = _MAX_MEMBERS,
        packed: int | None = None,
    ) -> None:
        """label: what errors call it. `error` is raised when it is damaged or made to deceive, or has over `most` members.

        packed: bytes of the file on disk, where this was packed in another: what unpacks twice is measured by those.
        """
        self.label, self._data, self._error = label, data, error
        self._packed = len(data) if packed is None else min(packed, len(data))
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(data) if isinstance(data, bytes) else _Stream(data))
            self._infos = self._zip.infolist()
            for info in self._infos:
                info.filename = _plain(_named(info))
        except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, struct.error) as problem:
            raise self._error(f"{label}: a damaged zip archive ({shown(str(problem))[:120]}); fetch it again") from None
        self._check(aside, most)
        left_out = aside or {}
        self.members = {
            info.filename: info for info in self._infos if not info.is_dir() and info.filename not in left_out
        }

    def is_renamed(self, name: str) -> bool:
        """Whether a member has a second name in its extra field, by which some readers call it and others do not."""
        extra, at = self.members[name].extra, 0
        while at + 4 <= len(extra):
            kind, length = struct.unpack_from("<HH", extra, at)
            if kind == _UNICODE_PATH:
                return True
            at += 4 + length
        return False

    def read(self, name: str, *, at_most: int = MAX_UNPACKED_BYTES) -> bytes:
        """A member's bytes, its checksum verified; BadWeights when it is larger than that, damaged or absent."""
        info = self.members.get(name)
        if info is None:
            raise self._error(f"{self.label}: holds no {shown(name)}")
        if info.file_size > at_most:
            raise self._error(
                f"{self.label}: its {shown(name)} has {info.file_size:,} bytes, expected at most {at_most:,}"
            )
        with self._sound(name), self._zip.open(info) as file:
            data = file.read(info.file_size + 1)
        if len(data) != info.file_size:
            raise self._error(f"{self.label}: its {shown(name)} is not as long as the archive says")
        return data

    def refuse_damage(self) -> None:
        """An error where the checksum of a member is another than the archive says; nothing of them is kept."""
        for name, info in self.members.items():
            with self._sound(name), self._zip.open(info) as file:
                while file.read(_REST):
                    pass

    @contextmanager
    def _sound(self, name: str) -> Iterator[None]:
        """What reading a damaged member raises, as an error of the archive's."""
        try:
            yield
        except (
            zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, ValueError, zlib.error,
        ) as error:  # fmt: skip
            raise self._error(f"{self.label}: its {shown(name)} is damaged ({shown(str(error))[:120]})") from None

    def _check(self, aside: Aside | None, most: int) -> None:
        infos, label = self._infos, self.label
        if len(infos) > most:
            raise self._error(f"{label}: an archive of {len(infos):,} members, expected at most {most:,}")
        seen: set[str] = set()
        for info in infos:
            _put_aside_or_refuse(info.filename, _climbs(info.filename), aside, label, self._error)
            if info.filename in seen:
                raise self._error(f"{label}: an archive with two members called {shown(info.filename)!r}")
            seen.add(info.filename)
            if info.flag_bits & 0x1:
                raise self._error(f"{label}: its {shown(info.filename)} is encrypted; decrypt it first")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise self._error(f"{label}: its {shown(info.filename)} is packed in a way that is not read (method "
                                 f"{info.compress_type}); expected stored or deflated; pack it again")  # fmt: skip
            kind = stat.S_IFMT(info.external_attr >> 16)
            reason = None if kind in (0, stat.S_IFREG, stat.S_IFDIR) else _LINK
            _put_aside_or_refuse(info.filename, reason, aside, label, self._error)
        _check_ratio(sum(info.file_size for info in infos), self._packed, label, self._error)
        self._check_places()

    def _check_places(self) -> None:
        """Members lie one after the other, under the same names in both of a zip's lists of contents."""
        end = 0
        for info in sorted(self._infos, key=lambda info: info.header_offset):
            begin = info.header_offset
            header = self._data[begin : begin + 30]
            if len(header) < 30 or header[:4] != b"PK\x03\x04":
                raise self._error(
                    f"{self.label}: a damaged zip archive ({shown(info.filename)} is not where it is said to be)"
                )
            name_length, extra_length = struct.unpack("<HH", header[26:30])
            own = self._data[begin + 30 : begin + 30 + name_length]
            encodings = ("utf-8",) if info.flag_bits & 0x800 else ("cp437", "utf-8")
            if begin < end:
                raise self._error(f"{self.label}: a zip archive whose members overlap (a bomb, or made to deceive)")
            if not any(_decoded(own, encoding) == info.orig_filename for encoding in encodings):
                raise self._error(
                    f"{self.label}: a zip archive with two names for one member ({shown(info.filename)!r}), made to deceive"
                )
            end = begin + 30 + name_length + extra_length + info.compress_size
        if end > len(self._data):
            raise self._error(f"{self.label}: a zip archive that was cut short; fetch it again")


def _named(info: zipfile.ZipInfo) -> str:
    """A member's name. One without the flag for UTF-8 that is UTF-8 all the same is read so: macOS writes such archives."""
    if info.flag_bits & 0x800 or info.filename.isascii():
        return info.filename
    try:
        return info.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return info.filename


def _plain(name: str) -> str:
    """A member's name without the folder itself: `tar cf a.tar ./cat dog` writes ./cat/1.jpg and dog/1.jpg."""
    parts = [part for part in name.split("/") if part != "."]
    return "/".join(parts) if any(parts) else name


def members_of_tar(data: bytes, label: str) -> Iterator[Member]:
    """The files in a tar archive, packed or not, one after the other.

    BadWeights on links, devices, names that climb out, and when it unpacks to far more than it occupies.
    """
    with unpacked(io.BytesIO(data), len(data), label) as stream:
        for tar, info in entries_of_tar(stream, label):
            yield Member(info.name, read_member(tar, info, label))


def read_member(
    tar: tarfile.TarFile, info: tarfile.TarInfo, label: str, *, error: type[BurnishError] = BadWeights
) -> bytes:
    """The content of the regular file at which `entries_of_tar` stands; `error` when the archive is damaged there."""
    with _sound_tar(label, error):
        file = tar.extractfile(info)
        assert file is not None
        content = file.read()
    if len(content) != info.size:
        raise error(f"{label}: a tar archive that was cut short; fetch it again")
    return content


def entries_of_tar(
    stream: IO[bytes],
    label: str,
    *,
    error: type[BurnishError] = BadWeights,
    aside: Aside | None = None,
    most: int = _MAX_MEMBERS,
    skips: bool = False,
) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """The regular files of an unpacked tar stream, in order, each to be read before the next; folders are passed over.

    skips: over what is not read, in a stream that can; else all of it is read, of a large archive for minutes.
    """
    seen: set[str] = set()
    with (
        _sound_tar(label, error),
        tarfile.open(fileobj=stream, mode="r:" if skips else "r|", tarinfo=_Header) as tar,
    ):
        for info in tar:
            tar.members = []  # type: ignore[attr-defined]  # else it remembers each of a million
            if info.size < 0:
                raise tarfile.ReadError("a member of less than no bytes")
            if info.isdir():
                continue
            info.name = _plain(info.name)
            reason = _climbs(info.name) or (None if info.isreg() and not info.issparse() else _LINK)
            if _put_aside_or_refuse(info.name, reason, aside, label, error):
                continue
            if info.name in seen:
                raise error(f"{label}: an archive with two members called {shown(info.name)!r}")
            seen.add(info.name)
            if len(seen) > most:
                raise error(f"{label}: an archive of more than {most:,} members")
            yield tar, info
        assert tar.fileobj is not None
        while rest := tar.fileobj.read(_REST):  # of a packed one its checksum is asked for at the end
            if rest.strip(b"\0"):
                raise tarfile.ReadError("something stands behind its end")


class _Header(tarfile.TarInfo):
    """A header that is damaged, or is lacking, is not taken for the end of the archive, as tarfile does."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> _Header:
        try:
            return super().fromtarfile(tarfile)  # type: ignore[return-value]
        except _NO_HEADERS as problem:
            why = "it has no end" if isinstance(problem, _EmptyHeader) else "a header is damaged or cut short"
            raise _ReadError(f"{why}, at byte {tarfile.offset:,}") from None


@contextmanager
def _sound_tar(label: str, error: type[BurnishError]) -> Iterator[None]:
    """What reading a damaged tar archive raises, as `error`."""
    try:
        yield
    except (
        tarfile.TarError, OSError, EOFError, lzma.LZMAError, zlib.error, ValueError, LookupError, OverflowError, struct.error,
        RecursionError,  # headers of headers of headers
    ) as problem:  # fmt: skip
        raise error(f"{label}: a damaged tar archive ({shown(str(problem))[:120]}); fetch it again") from None


def is_tar(data: bytes) -> bool:
    """Whether the bytes are a tar archive, packed or not (any gzip, bzip2 or xz file is taken for one)."""
    return data[257:262] == b"ustar" or any(data.startswith(magic) for magic in _PACKED)


_UNICODE_PATH = 0x7075  # an extra field with a name that Python takes from 3.12 on (APPNOTE.TXT 4.6.9)
_SAID = 300  # characters of a name in an error
_LONGEST_NAME, _DEEPEST_NAME = 4096, 64  # characters, and folders; Linux opens no longer one
_LINK = "is a link or a device, which is not followed"


def _climbs(name: str) -> str | None:
    """Why a member of that name is not read, if so."""
    if name.startswith("/") or ".." in re.split(r"[/\\]", name) or "\0" in name or name[1:2] == ":":
        return "climbs out of the archive"
    if name.rpartition("/")[2] == ".":
        return "has no name"
    if len(name) > _LONGEST_NAME or name.count("/") > _DEEPEST_NAME:
        return f"has a name of over {_LONGEST_NAME:,} characters or {_DEEPEST_NAME} folders"
    if "\\" in name:
        return "has a backslash in its name, which parts folders on one system alone; pack it again with slashes"
    return None


def _put_aside_or_refuse(
    name: str, reason: str | None, aside: Aside | None, label: str, error: type[BurnishError]
) -> bool:
    """Whether the member was put aside for that reason; it is refused where nothing may be."""
    if reason is None:
        return False
    if aside is None:
        raise error(f"{label}: its {shown(name[:_SAID])} {reason}")
    aside[name] = reason
    return True


class OnDisk:
    """A file as bytes that are read when they are asked for.

    Unlike a mapping's, they end nobody's process when the file is cut short or its disk fails meanwhile.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._size = file, os.fstat(file.fileno()).st_size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        """Those bytes, fewer where the file is shorter by now; by any number of threads. Raises OSError."""
        begin, end, _ = part.indices(self._size)
        return read_at(self._file.fileno(), max(0, end - begin), begin)


class _Stream(io.RawIOBase):
    """A file on disk as what zipfile reads; each has a place of its own."""

    def __init__(self, data: OnDisk) -> None:
        super().__init__()
        self._data, self._at = data, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        at = offset + (0, self._at, len(self._data))[whence]
        if at < 0:
            raise OSError("a place before the beginning of the archive")  # which zipfile expects of an empty one
        self._at = at
        return at

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        found = self._data[self._at : self._at + len(buffer)]
        buffer[: len(found)] = found
        self._at += len(found)
        return len(found)


class _Counted(io.RawIOBase):
    """Reads on, and gives up when too much has come out."""

    def __init__(self, inner: IO[bytes], packed: int, label: str, error: type[BurnishError]) -> None:
        super().__init__()
        self.inner, self.packed, self.label, self.error, self.count = inner, packed, label, error, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        found = self.inner.read(len(buffer))
        buffer[: len(found)] = found
        self.count += len(found)
        _check_ratio(self.count, self.packed, self.label, self.error)
        return len(found)


def unpacked(raw: IO[bytes], size: int, label: str, *, error: type[BurnishError] = BadWeights) -> IO[bytes]:
    """The stream, unpacked where it is gzip, bzip2 or xz; `error` when far more comes out than its `size` in bytes."""
    beginning = raw.read(8)
    raw.seek(0)
    kind = next((name for magic, name in _PACKED.items() if beginning.startswith(magic)), None)
    if kind is None:
        return raw
    opened = {"gzip": gzip.GzipFile, "bzip2": bz2.BZ2File, "xz": lzma.LZMAFile}[kind]
    inner = opened(fileobj=raw) if kind == "gzip" else opened(raw)
    return io.BufferedReader(_Counted(inner, size, label, error), 1 << 20)  # type: ignore[arg-type, return-value]


def _check_ratio(unpacked: int, packed: int, label: str, error: type[BurnishError]) -> None:
    most = MAX_UNPACKED_BYTES if error is BadWeights else MAX_DATA_BYTES
    if unpacked > most or (unpacked > _RATIO_FROM_BYTES and unpacked > _MAX_RATIO * packed):
        raise error(f"{label}: unpacks to {unpacked:,} bytes or more from {packed:,} (a bomb), which is not read")


def _decoded(name: bytes, encoding: str) -> str | None:
    try:
        return name.decode(encoding)
    except UnicodeDecodeError:
        return None
