"""Images in zip and tar archives: what is meant is read, and what is damaged or cut short is no smaller data set."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
import tarfile
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from burnish import archives
from burnish.data.sources import open_source
from burnish.errors import DataError, UnreadableImage
from images import encoded, noise, png, read, write_images


def tar_of(file: Path, entries: list[tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(file, mode) as archive:
        for name, data in entries:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file


def members(folder: Path, counts: dict[str, int]) -> list[tuple[str, bytes]]:
    write_images(folder, counts)
    return [(path.relative_to(folder).as_posix(), path.read_bytes()) for path in sorted(folder.rglob("*.png"))]


def _zip_of(file: Path, entries: list[tuple[str, bytes]]) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return file


def packed(root, target, extra):
    """A tar of the images in class folders, and of texts beside them: name -> what it holds."""
    with tarfile.open(target, "w") as tar:
        for file in sorted(root.rglob("*.png")):
            tar.add(file, file.relative_to(root).as_posix())
        for name, text in extra.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    return target


# ---- which archive it is, and what in it is read ---------------------------------------------------------------------


def test_a_tar_that_ends_with_a_zip_is_a_tar(tmp_path):
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        for name, data in members(tmp_path / "old", {"x": 3, "y": 3}):
            archive.writestr(name, data)
    entries = [*members(tmp_path / "new", {"cat": 3, "dog": 3}), ("old.zip", inner.getvalue())]
    catalog = open_source(tar_of(tmp_path / "photos.tar", entries))
    assert catalog.classes == ("cat", "dog") and catalog.source.endswith("in a tar")
    assert open_source(_zip_of(tmp_path / "photos.zip", entries)).source.endswith("in a zip")


def test_an_archive_that_is_cut_short_during_a_run_ends_no_process(tmp_path):
    """A mapped file would end it with SIGBUS."""
    file = _zip_of(tmp_path / "a.zip", members(tmp_path / "new", {"cat": 3, "dog": 3}))
    catalog = open_source(file)
    assert catalog.image(0)
    os.truncate(file, 10)
    with pytest.raises(UnreadableImage):
        catalog.image(1)


def test_what_is_not_asked_for_in_a_tar_is_not_read(images, tmp_path):
    big = packed(images, tmp_path / "big.tar", {"notes/large.bin": "x" * 4_000_000})
    read = []

    class Counted(io.FileIO):
        def read(self, size=-1):
            data = super().read(size)
            read.append(len(data))
            return data

    with Counted(big) as file:
        names = [info.name for _, info in archives.entries_of_tar(file, "big.tar", skips=True)]
    assert len(names) == 37 and sum(read) < 100_000
    cut = tmp_path / "cut.tar"
    cut.write_bytes(big.read_bytes()[:-2_000_000])
    with pytest.raises(DataError, match=r"cut\.tar"):
        open_source(cut)


# ---- names in archives -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "name"),
    [
        ("Löwe".encode(), "Löwe"),
        (unicodedata.normalize("NFD", "Löwe").encode(), "Löwe"),
        ("猫".encode(), "猫"),
        ("Löwe".encode("cp437"), "Löwe"),
        ("½ñ".encode("cp437"), "½ñ"),
    ],
    ids=["UTF-8", "UTF-8 of macOS", "beyond cp437", "cp437", "cp437 that is no UTF-8"],
)
def test_names_in_a_zip_without_the_flag_are_read_as_they_were_meant(stored, name, tmp_path):
    other = "X" * len(stored)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for at in range(6):
            archive.writestr(f"{'Hund' if at % 2 else other}/{at}.png", png(at))
    data = (tmp_path / "a.zip").read_bytes()
    assert data.count(other.encode() + b"/") == 6  # before the content, and in the list at the end
    (tmp_path / "a.zip").write_bytes(data.replace(other.encode() + b"/", stored + b"/"))
    catalog = open_source(tmp_path / "a.zip")
    assert catalog.classes == tuple(sorted(("Hund", name)))
    assert {catalog.image(row) for row in range(6)} == {png(at) for at in range(6)}


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_tar_of_folders_with_and_without_a_dot_before_them_has_those_classes(mode, tmp_path):
    entries = [(f"{name}/{at}.png", png(at)) for name in ("./cat", "dog", "bird", "./cat/./deep") for at in range(3)]
    catalog = open_source(tar_of(tmp_path / "a.tar", entries, mode))
    assert catalog.classes == ("bird", "cat", "dog") and len(catalog) == 12 and not catalog.named
    assert not read(catalog).named


# ---- labels beside the images ----------------------------------------------------------------------------------------


def test_a_note_beside_an_image_in_a_tar_is_no_label(images, tmp_path):
    some = packed(images, tmp_path / "some.tar", {"blue/000.txt": "hello", "red/001.json": "{}"})
    found = open_source(some)
    assert found.classes == ("blue", "green", "red") and len(found) == 36
    names = [file.relative_to(images).with_suffix(".txt").as_posix() for file in images.rglob("*.png")]
    with pytest.raises(DataError, match=r"all\.tar holds images in folders \(blue, green, …\).*may say the class"):
        open_source(packed(images, tmp_path / "all.tar", dict.fromkeys(names, "a caption")))
    told = {name.replace(".txt", ".cls"): str(at % 2) for at, name in enumerate(sorted(names))}
    assert open_source(packed(images, tmp_path / "shard.tar", told)).classes == ("0", "1")
    for at, name in enumerate(sorted(path.name for path in images.iterdir())):
        (images / name).rename(images / f"{at:05d}")
    numbered = {f"{at:05d}/{number:03d}.json": '{"label": "x"}' for at in range(3) for number in range(12)}
    numbered |= {f"{0:05d}/{number:03d}.json": '{"label": "y"}' for number in range(12)}
    assert open_source(packed(images, tmp_path / "numbered.tar", numbered)).classes == ("x", "y")


def test_labels_of_packed_shards_are_read_whatever_the_case_of_their_suffix(tmp_path):
    entries = []
    for number in range(8):
        entries += [
            (f"{number:03d}.PNG", encoded(noise(seed=number), "PNG")),
            (f"{number:03d}.TXT", b"cat" if number % 2 else b"dog"),
        ]
    packed = open_source(tar_of(tmp_path / "a.tar.gz", entries, "w:gz"))
    plain = open_source(tar_of(tmp_path / "a.tar", entries))
    assert packed.classes == plain.classes == ("cat", "dog")
    assert packed.labels.tolist() == plain.labels.tolist()


def test_a_class_number_of_thousands_of_digits_is_named(tmp_path):
    (tmp_path / "classes.txt").write_text("left\nright\n")
    entries = []
    for at in range(8):
        label = b"9" * 5000 if at == 5 else b"7" if at == 6 else b"%d" % (at % 2)
        entries += [(f"{at}.png", png(at)), (f"{at}.cls", label)]
    tar_of(tmp_path / "train-0.tar", entries)
    catalog = open_source(tmp_path, for_training=False)
    assert catalog.classes == ("left", "right") and len(catalog) == 6
    reasons = {one.path: one.reason for one in catalog.named}
    assert reasons["train-0.tar/5.png"].startswith("its class is number 999") and len(reasons["train-0.tar/5.png"]) < 80
    assert reasons["train-0.tar/6.png"] == "its class is number 7, and 2 are named"


def test_class_numbers_with_zeros_before_them_are_named_by_the_file_beside_the_shards(tmp_path):
    (tmp_path / "classes.txt").write_text("left\nright\n")
    entries = [one for at in range(8) for one in ((f"{at}.png", png(at)), (f"{at}.cls", b"%03d" % (at % 2)))]
    tar_of(tmp_path / "train-0.tar", entries)
    catalog = open_source(tmp_path, for_training=False)
    assert catalog.classes == ("left", "right") and len(catalog) == 8


# ---- damage ----------------------------------------------------------------------------------------------------------


NAMES = [f"{name}/{number}.png" for name in ("cat", "dog") for number in range(6)]


def picture(number):
    found = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(found, "PNG")
    return found.getvalue()


def tar_of_pictures(names=NAMES, **pax):
    """A tar of small pictures, each a header of 512 bytes and 512 bytes of content."""
    found = io.BytesIO()
    with tarfile.open(fileobj=found, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for number, name in enumerate(names):
            info, content = tarfile.TarInfo(name), picture(number)
            info.size = len(content)
            if number == 5:
                info.pax_headers = pax
            tar.addfile(info, io.BytesIO(content))
    return bytearray(found.getvalue())


def flipped(data, place):
    data[place] ^= 1
    return data


def chained():
    info = tarfile.TarInfo("x")
    info.size, info.type = 5, b"L"
    return (info.tobuf(tarfile.GNU_FORMAT) + b"abcd\0".ljust(512, b"\0")) * 3000


DAMAGED = {
    "a bit of a header": lambda: flipped(tar_of_pictures(), 3 * 1024 + 20),
    "a bit of a packed one's header": lambda: gzip.compress(bytes(flipped(tar_of_pictures(), 3 * 1024 + 20))),
    "a packed one's checksum": lambda: flipped(bytearray(gzip.compress(bytes(tar_of_pictures()))), -6),
    "cut between two files": lambda: tar_of_pictures()[: 7 * 1024],
    "cut in a header": lambda: tar_of_pictures()[: 7 * 1024 + 100],
    "cut in a file": lambda: tar_of_pictures()[: 7 * 1024 + 530],
    "zeros in its midst": lambda: tar_of_pictures()[: 5 * 1024] + bytes(1024) + tar_of_pictures()[6 * 1024 :],
    "two of them": lambda: tar_of_pictures() + tar_of_pictures(),
    "a size below zero": lambda: tar_of_pictures(size="-600"),
    "a size that is no number": lambda: tar_of_pictures(size="abc"),
    "headers of headers": chained,
}


@pytest.mark.parametrize("how", DAMAGED)
def test_a_damaged_tar_is_no_smaller_data_set(how, tmp_path):
    (tmp_path / "a.tar").write_bytes(DAMAGED[how]())
    with pytest.raises(DataError, match=r"damaged tar archive|cut short"):
        open_source(tmp_path / "a.tar")


def test_a_sound_tar_may_end_in_one_block_of_zeros_or_many(tmp_path):
    whole = tar_of_pictures()
    for rest in (512, 1024, 100_000):
        (tmp_path / "a.tar").write_bytes(whole[: 12 * 1024] + bytes(rest))
        assert len(open_source(tmp_path / "a.tar").paths) == 12


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_names_that_begin_in_the_folder_itself_are_those_without(kind, tmp_path):
    def archive(names):
        if kind == "tar":
            (tmp_path / "a").write_bytes(tar_of_pictures(names))
        else:
            with zipfile.ZipFile(tmp_path / "a", "w") as file:
                for number, name in enumerate(names):
                    file.writestr(name, picture(number))
        return tmp_path / "a"

    mixed = open_source(archive([f"./{name}" if number % 2 else name for number, name in enumerate(NAMES)]))
    assert mixed.classes == ("cat", "dog") and sorted(mixed.paths) == sorted(NAMES)
    with pytest.raises(DataError, match=r"two members called 'cat/0\.png'"):
        open_source(archive([*NAMES, "./cat/0.png"]))
    for name in (".", "./."):
        assert len(open_source(archive([*NAMES, name])).paths) == 12


# ---- shards ----------------------------------------------------------------------------------------------------------

FEW_FILES = """
import resource, sys
from concurrent.futures import ThreadPoolExecutor
from burnish.data import contents
from burnish.data.sources import open_source
contents.IN_MEMORY_BYTES = 0
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
catalog = open_source(sys.argv[1])
with ThreadPoolExecutor(4) as pool:
    print(sum(map(len, pool.map(catalog.image, range(len(catalog))))))
"""


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_shards_may_be_many_more_than_files_that_a_process_may_open(mode, tmp_path):
    """Plain ones are opened when they are read; packed ones share one allowance of memory, and one file when it is used up."""
    picture = png(0)
    for number in range(60):
        label = str(number % 2).encode()
        tar_of(tmp_path / f"train-{number:03d}.tar", [("a.png", picture), ("a.cls", label)], mode)
    asked = [sys.executable, "-c", FEW_FILES, str(tmp_path)]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str(60 * len(picture)), done.stderr


def test_a_shard_that_is_gone_when_it_is_read_is_said_of_its_images(tmp_path):
    members = [(f"{key}.{part}", data) for key in "ab" for part, data in (("png", png(0)), ("cls", key.encode()))]
    catalog = open_source(tar_of(tmp_path / "train-0.tar", members), for_training=False)
    os.unlink(tmp_path / "train-0.tar")
    with pytest.raises(UnreadableImage, match=r"train-0\.tar/a\.png: cannot be read: No such file"):
        catalog.image(0)
