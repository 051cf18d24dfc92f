"""Zip and tar archives that are bombs, ambiguous or damaged."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
import zlib
from functools import partial
from pathlib import Path

import pytest

from hostile.kinds import KINDS, Kind, kind, written
from hostile.pickles import torch_zip
from hostile.smallest import smallest_bytes


def zip_file(
    folder: Path, entries: list[tuple[str, bytes]], *, name: str = "hostile.zip", packed: int = zipfile.ZIP_STORED
) -> Path:
    with zipfile.ZipFile(folder / name, "w", packed) as archive:
        for inner, data in entries:
            archive.writestr(zipfile.ZipInfo(inner), data, packed)
    return folder / name


@kind("a bomb")
def a_zip_of_zeros(folder):
    with (
        zipfile.ZipFile(folder / "hostile.zip", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a.pth", "w") as file,
    ):
        for _ in range(100):
            file.write(bytes(2**20))
    return folder / "hostile.zip"


@kind("a bomb")
def a_zip_bomb_in_a_file_of_torch_save(folder):
    return torch_zip(folder, b"\x80\x02" + b"N0" * 2**24 + b"N.")


@kind("members overlap")
def a_zip_whose_members_overlap(folder):
    """As David Fifield's (2019): the first one's bytes are the second one, its header included."""

    def entry(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(
                "<4s5H3I2H", b"PK\x03\x04", 20, 0, 0, 0, 33, zlib.crc32(data), len(data), len(data), len(name), 0
            )
            + name
        )

    kernel = smallest_bytes(folder)
    second = entry(b"b.bin", kernel)
    first = entry(b"a.bin", second + kernel)
    listed = b"".join(
        struct.pack(
            "<4s6H3I5H2I",
            b"PK\x01\x02",
            20,
            20,
            0,
            0,
            0,
            33,
            zlib.crc32(data),
            len(data),
            len(data),
            5,
            0,
            0,
            0,
            0,
            0,
            at,
        )
        + name
        for name, data, at in ((b"a.bin", second + kernel, 0), (b"b.bin", kernel, len(first)))
    )
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 2, 2, len(listed), len(first + second + kernel), 0)
    return written(folder, "hostile.zip", first + second + kernel + listed + end)


@kind("two members called 'a.safetensors'")
@pytest.mark.filterwarnings("ignore:Duplicate name")
def a_zip_with_two_members_of_one_name(folder):
    data = smallest_bytes(folder)
    path = zip_file(folder, [("a.safetensors", data), ("b.safetensors", data)])
    return written(folder, "hostile.zip", path.read_bytes().replace(b"b.safetensors", b"a.safetensors"))


for _inner in ("../x.pth", "a/../../x.pth", "/etc/x.pth", "C:/x.pth", "..\\x.pth"):
    KINDS.append(
        Kind(
            f"a zip with the member {_inner}",
            lambda folder, inner=_inner: zip_file(folder, [(inner, smallest_bytes(folder))]),
            "climbs out of the archive",
        )
    )


@kind("is a link or a device")
def a_zip_with_a_symbolic_link(folder):
    with zipfile.ZipFile(folder / "hostile.zip", "w") as archive:
        info = zipfile.ZipInfo("model.pth")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/hostname")
    return folder / "hostile.zip"


@kind("two names for one member")
def a_zip_with_another_name_in_its_second_list(folder):
    data = zip_file(folder, [("aa.safetensors", smallest_bytes(folder))]).read_bytes()
    return written(folder, "hostile.zip", data.replace(b"aa.safetensors", b"bb.safetensors", 1))


@kind("is encrypted")
def an_encrypted_zip(folder):
    data = bytearray(zip_file(folder, [("a.safetensors", smallest_bytes(folder))]).read_bytes())
    data[6] |= 1
    data[data.rindex(b"PK\x01\x02") + 8] |= 1
    return written(folder, "hostile.zip", bytes(data))


@kind("packed in a way that is not read")
def a_zip_packed_with_lzma(folder):
    return zip_file(folder, [("a.safetensors", smallest_bytes(folder))], packed=zipfile.ZIP_LZMA)


@kind("an archive in an archive")
def a_zip_in_a_zip(folder):
    inner = zip_file(folder, [("a.safetensors", smallest_bytes(folder))]).read_bytes()
    return zip_file(folder, [("inner.zip", inner)])


@kind("an archive in an archive")
def a_tar_in_a_zip(folder):
    return zip_file(folder, [("inner.tar.gz", valid_tar(folder).read_bytes())])


@kind("a damaged zip archive|cut short")
def a_truncated_zip(folder):
    data = zip_file(folder, [("a.safetensors", smallest_bytes(folder))]).read_bytes()
    return written(folder, "hostile.zip", data[: len(data) * 2 // 3])


@kind("is damaged")
def a_zip_whose_checksum_is_wrong(folder):
    data = bytearray(zip_file(folder, [("a.safetensors", smallest_bytes(folder))]).read_bytes())
    data[200_000] ^= 1
    return written(folder, "hostile.zip", bytes(data))


@kind("more than one model")
def a_zip_with_two_models(folder):
    return zip_file(folder, [("a.safetensors", smallest_bytes(folder)), ("b.safetensors", smallest_bytes(folder))])


@kind("has a name of over 4,096 characters")
def a_zip_with_two_models_of_names_without_end(folder):
    return zip_file(folder, [(f"{one * 60_000}.safetensors", smallest_bytes(folder)) for one in "ab"])


@kind("more than one model")
def a_zip_with_two_models_of_very_long_names(folder):
    return zip_file(folder, [(f"{one * 4_000}.safetensors", smallest_bytes(folder)) for one in "ab"])


@kind("an archive without a model")
def a_zip_without_a_model(folder):
    return zip_file(folder, [("payload.py", b"import os"), ("__init__.py", b"")])


@kind(r"members, expected at most 100,000")
def a_zip_of_too_many_members(folder):
    listed = b"".join(
        struct.pack("<4s6H3I5H2I", b"PK\x01\x02", 20, 20, 0, 0, 0, 33, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0)
        + f"{number:06d}".encode()
        for number in range(110_000)
    )
    count, size = 110_000, len(listed)
    far = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, 0)
    place = struct.pack("<4sIQI", b"PK\x06\x07", 0, size, 1)
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return written(folder, "hostile.zip", listed + far + place + end)


def tar_file(
    folder: Path, info: tarfile.TarInfo, data: bytes = b"", *, mode: str = "w", name: str = "hostile.tar"
) -> Path:
    with tarfile.open(folder / name, mode) as archive:
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return folder / name


def valid_tar(folder: Path) -> Path:
    data = smallest_bytes(folder)
    return tar_file(folder, tarfile.TarInfo("net/model.safetensors"), data, mode="w:gz", name="valid.tar.gz")


def _tar_of_type(kind: bytes, folder: Path) -> Path:
    info = tarfile.TarInfo("model.pth")
    info.type, info.linkname = kind, "/etc/hostname"
    return tar_file(folder, info)


for _what, _type in (
    ("a symbolic link", tarfile.SYMTYPE), ("a hard link", tarfile.LNKTYPE), ("a character device", tarfile.CHRTYPE),
    ("a block device", tarfile.BLKTYPE), ("a fifo", tarfile.FIFOTYPE),
):  # fmt: skip
    KINDS.append(Kind(f"a tar with {_what}", partial(_tar_of_type, _type), "model.pth is a link or a device"))
for _inner in ("../x.safetensors", "/tmp/x.safetensors"):
    KINDS.append(
        Kind(
            f"a tar with the member {_inner}",
            lambda folder, inner=_inner: tar_file(folder, tarfile.TarInfo(inner), smallest_bytes(folder)),
            "climbs out of the archive",
        )
    )


@kind("a bomb")
def a_gzip_of_zeros(folder):
    return tar_file(folder, tarfile.TarInfo("a.pth"), bytes(24 * 2**20), mode="w:gz", name="hostile.tar.gz")


@kind("a bomb")
def a_tar_of_zeros_packed_with_bzip2(folder):
    return tar_file(folder, tarfile.TarInfo("a.pth"), bytes(24 * 2**20), mode="w:bz2", name="hostile.tar")


@kind("damaged tar archive|cut short")
def a_truncated_tar(folder):
    data = valid_tar(folder).read_bytes()
    return written(folder, "hostile.tar.gz", data[: len(data) // 2])


@kind("two members called 'a.safetensors'")
def a_tar_with_two_members_of_one_name(folder):
    with tarfile.open(folder / "hostile.tar", "w") as archive:
        for _ in range(2):
            info = tarfile.TarInfo("a.safetensors")
            info.size = 4
            archive.addfile(info, io.BytesIO(b"abcd"))
    return folder / "hostile.tar"


@kind("damaged tar archive|cut short|link or a device")
def a_tar_whose_member_has_a_negative_size(folder):
    with tarfile.open(folder / "hostile.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("a.safetensors")
        info.size, info.pax_headers = 0, {"size": "-1024"}
        archive.addfile(info)
    return folder / "hostile.tar"


@kind("damaged tar archive")
def a_gzip_of_text(folder):
    return written(folder, "hostile.gz", gzip.compress(b"hello"))
