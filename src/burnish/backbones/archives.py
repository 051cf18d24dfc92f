"""Read a model out of a .zip or .tar archive in place; nothing is ever extracted to disk (P8).

What could fool one reader and not another is refused: members that overlap, share a name, are links, climb out of the
archive, are encrypted, or unpack to far more than they occupy.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO

from burnish.errors import BadWeights, shown

MAX_UNPACKED_BYTES = 8 * 2**30
_MAX_MEMBERS = 100_000  # a large checkpoint has some thousands
_MAX_RATIO = 200  # unpacked over packed; weights hardly shrink, and text seldom by more than 20
_RATIO_FROM_BYTES = 16 * 2**20  # below this nothing is a bomb
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz"}


@dataclass(frozen=True)
class Member:
    """One file in an archive."""

    name: str
    data: bytes


class Zip:
    """A checked zip archive in memory."""

    def __init__(self, data: bytes, label: str) -> None:
        """label: what errors call it. BadWeights when it is damaged or made to deceive."""
        self.label, self._data = label, data
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(data))
            self._infos = self._zip.infolist()
        except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, struct.error) as error:
            raise BadWeights(f"{label}: a damaged zip archive ({shown(str(error))[:120]}); fetch it again") from None
        self._check()
        self.members = {info.filename: info for info in self._infos if not info.is_dir()}

    def read(self, name: str, *, at_most: int = MAX_UNPACKED_BYTES) -> bytes:
        """A member's bytes, its checksum verified; BadWeights when it is larger than that, damaged or absent."""
        info = self.members.get(name)
        if info is None:
            raise BadWeights(f"{self.label}: holds no {shown(name)}")
        if info.file_size > at_most:
            raise BadWeights(
                f"{self.label}: its {shown(name)} has {info.file_size:,} bytes, expected at most {at_most:,}"
            )
        try:
            with self._zip.open(info) as file:
                data = file.read(info.file_size + 1)
        except (
            zipfile.BadZipFile,
            OSError,
            EOFError,
            NotImplementedError,
            RuntimeError,
            ValueError,
            zlib.error,
        ) as error:
            raise BadWeights(f"{self.label}: its {shown(name)} is damaged ({shown(str(error))[:120]})") from None
        if len(data) != info.file_size:
            raise BadWeights(f"{self.label}: its {shown(name)} is not as long as the archive says")
        return data

    def _check(self) -> None:
        infos, label = self._infos, self.label
        if len(infos) > _MAX_MEMBERS:
            raise BadWeights(f"{label}: an archive of {len(infos):,} members, expected at most {_MAX_MEMBERS:,}")
        seen: set[str] = set()
        for info in infos:
            check_name(info.filename, label)
            if info.filename in seen:
                raise BadWeights(f"{label}: an archive with two members called {shown(info.filename)!r}")
            seen.add(info.filename)
            if info.flag_bits & 0x1:
                raise BadWeights(f"{label}: its {shown(info.filename)} is encrypted; decrypt it first")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise BadWeights(f"{label}: its {shown(info.filename)} is packed in a way that is not read (method "
                                 f"{info.compress_type}); expected stored or deflated")  # fmt: skip
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise BadWeights(f"{label}: its {shown(info.filename)} is a link or a device, which is not followed")
        _check_ratio(sum(info.file_size for info in infos), len(self._data), label)
        self._check_places()

    def _check_places(self) -> None:
        """Members lie one after the other, under the same names in both of a zip's lists of contents."""
        end = 0
        for info in sorted(self._infos, key=lambda info: info.header_offset):
            begin = info.header_offset
            header = self._data[begin : begin + 30]
            if len(header) < 30 or header[:4] != b"PK\x03\x04":
                raise BadWeights(
                    f"{self.label}: a damaged zip archive ({shown(info.filename)} is not where it is said to be)"
                )
            name_length, extra_length = struct.unpack("<HH", header[26:30])
            own = self._data[begin + 30 : begin + 30 + name_length]
            encodings = ("utf-8",) if info.flag_bits & 0x800 else ("cp437", "utf-8")
            if begin < end:
                raise BadWeights(f"{self.label}: a zip archive whose members overlap (a bomb, or made to deceive)")
            if not any(_decoded(own, encoding) == info.orig_filename for encoding in encodings):
                raise BadWeights(
                    f"{self.label}: a zip archive with two names for one member ({shown(info.filename)!r}), made to deceive"
                )
            end = begin + 30 + name_length + extra_length + info.compress_size
        if end > len(self._data):
            raise BadWeights(f"{self.label}: a zip archive that was cut short; fetch it again")


def members_of_tar(data: bytes, label: str) -> Iterator[Member]:
    """The files in a tar archive, packed or not, one after the other.

    BadWeights on links, devices, names that climb out, and when it unpacks to far more than it occupies.
    """
    seen: set[str] = set()
    try:
        with _unpacked(data, label) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
            for info in tar:
                check_name(info.name, label)
                if info.isdir():
                    continue
                if not info.isreg() or info.issparse():
                    raise BadWeights(f"{label}: its {shown(info.name)} is a link or a device, which is not followed")
                if info.name in seen:
                    raise BadWeights(f"{label}: an archive with two members called {shown(info.name)!r}")
                seen.add(info.name)
                if len(seen) > _MAX_MEMBERS:
                    raise BadWeights(f"{label}: an archive of more than {_MAX_MEMBERS:,} members")
                file = tar.extractfile(info)
                assert file is not None
                content = file.read()
                if len(content) != info.size:
                    raise BadWeights(f"{label}: a tar archive that was cut short; fetch it again")
                yield Member(info.name, content)
    except (tarfile.TarError, OSError, EOFError, lzma.LZMAError, zlib.error, ValueError) as error:
        raise BadWeights(f"{label}: a damaged tar archive ({shown(str(error))[:120]}); fetch it again") from None


def is_tar(data: bytes) -> bool:
    """Whether the bytes are a tar archive, packed or not (any gzip, bzip2 or xz file is taken for one)."""
    return data[257:262] == b"ustar" or any(data.startswith(magic) for magic in _PACKED)


def check_name(name: str, label: str) -> None:
    """BadWeights unless a member's name stays inside its archive."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or name[1:2] == ":":
        raise BadWeights(f"{label}: has a member that climbs out of the archive ({shown(name)!r})")


class _Counted(io.RawIOBase):
    """Reads on, and gives up when too much has come out."""

    def __init__(self, inner: IO[bytes], packed: int, label: str) -> None:
        super().__init__()
        self.inner, self.packed, self.label, self.count = inner, packed, label, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        found = self.inner.read(len(buffer))
        buffer[: len(found)] = found
        self.count += len(found)
        _check_ratio(self.count, self.packed, self.label)
        return len(found)


def _unpacked(data: bytes, label: str) -> IO[bytes]:
    kind = next((name for magic, name in _PACKED.items() if data.startswith(magic)), None)
    raw = io.BytesIO(data)
    if kind is None:
        return raw
    opened = {"gzip": gzip.GzipFile, "bzip2": bz2.BZ2File, "xz": lzma.LZMAFile}[kind]
    inner = opened(fileobj=raw) if kind == "gzip" else opened(raw)
    return io.BufferedReader(_Counted(inner, len(data), label), 1 << 20)  # type: ignore[arg-type, return-value]


def _check_ratio(unpacked: int, packed: int, label: str) -> None:
    if unpacked > MAX_UNPACKED_BYTES or (unpacked > _RATIO_FROM_BYTES and unpacked > _MAX_RATIO * packed):
        raise BadWeights(f"{label}: unpacks to {unpacked:,} bytes or more from {packed:,} (a bomb), which is not read")


def _decoded(name: bytes, encoding: str) -> str | None:
    try:
        return name.decode(encoding)
    except UnicodeDecodeError:
        return None
