"""Data that is damaged, slow on purpose, half filled in or changed meanwhile: it is refused or named, and the rest is as it was."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import tarfile
import threading
import time
import unicodedata
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import burnish
from burnish.data.audit.quarantine import quarantined
from burnish.data.cache import Pixels, read_pixels, typical_side
from burnish.data.catalog import Catalog
from burnish.data.contents import Spool
from burnish.data.looks import look_at
from burnish.data.pixels import decode
from burnish.data.slow import why_slow
from burnish.data.sources import columnar, open_source
from burnish.data.store import PixelStore
from burnish.errors import DataError, UnreadableImage
from burnish.sklearn import ImageClassifier
from burnish.terms import Preprocess
from images import encoded, noise, write_images

QUICK = {"model": "random:test_resnet", "budget": None, "image_size": 64, "seed": 0, "cache": "off"}
SMALL = Preprocess(size=32, crop=1.0, interpolation="nearest")


@pytest.fixture(scope="module")
def run(shapes, tmp_path_factory):
    return burnish.fit(shapes, method="probe", out=tmp_path_factory.mktemp("runs") / "shapes", **QUICK)


def read(catalog: Catalog, *, workers: int = 1, store: PixelStore | None = None) -> Pixels:
    return read_pixels(catalog, np.arange(len(catalog)), preprocess=SMALL, workers=workers, store=store)


def png(seed: int) -> bytes:
    return encoded(noise(8, 8, seed=seed), "PNG")


def refusal(data: bytes) -> str:
    with pytest.raises(UnreadableImage) as refused:
        decode(data)
    return refused.value.reason


# ---- data sets in Python -----------------------------------------------------------------------------------------------


class Watched:
    """Counts the threads that are inside at once."""

    def __init__(self) -> None:
        self.inside, self.most, self.own = 0, 0, threading.Lock()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self.own:
            self.inside += 1
            self.most = max(self.most, self.inside)
        try:
            time.sleep(0.002)  # so that another thread has time to come in
            yield
        finally:
            with self.own:
                self.inside -= 1


class Records:
    """Images of one colour each, one after the other in one open file that is sought in."""

    side, count = 16, 40

    def __init__(self, file: Path) -> None:
        self.colours = np.random.default_rng(0).integers(0, 256, (self.count, 3), np.uint8)
        file.write_bytes(np.repeat(self.colours, self.side * self.side, axis=0).tobytes())
        self.file, self.watched, self.targets = open(file, "rb"), Watched(), [at % 2 for at in range(self.count)]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, at: int) -> tuple[np.ndarray, int]:
        size = self.side * self.side * 3
        self.file.seek(at * size)
        with self.watched():
            pixels = np.frombuffer(self.file.read(size), np.uint8)
        return pixels.reshape(self.side, self.side, 3), self.targets[at]


def test_a_data_set_that_seeks_in_one_file_gives_every_image_its_own_pixels(tmp_path):
    data = Records(tmp_path / "records.bin")
    with data.file:
        catalog = open_source(data)
        found = read(catalog, workers=4)
    assert not found.named and data.watched.most == 1
    wanted = [data.colours[int(catalog.paths[entry])] for entry in found.ids]
    assert (np.asarray(found.plain[:]) == np.array(wanted)[:, None, None]).all()


class Lazy:
    """Images that are opened by the data set and read from their file when their pixels are asked for."""

    def __init__(self) -> None:
        self.targets, self.watched = [0, 1] * 12, Watched()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, at: int) -> tuple[Image.Image, int]:
        image = Image.open(io.BytesIO(png(at)))
        read = image.load

        def first():
            image.load = read
            with self.watched():
                return read()

        image.load = first
        return image, self.targets[at]


def test_an_image_that_a_data_set_has_merely_opened_is_read_by_one_thread_at_a_time():
    data = Lazy()
    catalog = open_source(data)
    found = read(catalog, workers=4)
    assert not found.named and data.watched.most == 1
    assert np.array_equal(np.asarray(decode(catalog.image(7))), np.asarray(noise(8, 8, seed=int(catalog.paths[7]))))


def test_an_item_of_a_data_set_that_is_no_array_is_named():
    class Set:
        targets, items = [0, 1] * 4, [noise(8, 8, seed=at) for at in range(8)]

        def __len__(self):
            return 8

        def __getitem__(self, at):
            return self.items[at], self.targets[at]

    Set.items[2], Set.items[5] = [[[1, 2, 3]], [[1]]], torch.zeros(3, 8, 8, dtype=torch.bfloat16)
    found = read(open_source(Set()), workers=2)
    assert {one.path for one in found.named} == {"2", "5"} and len(found.ids) == 6
    reasons = {one.path: one.reason for one in found.named}
    assert "is no array of numbers" in reasons["2"] and "the data set gives no image" in reasons["5"]


def test_a_data_set_that_draws_its_images_anew_each_time_keeps_them_all():
    class Set:
        targets, draws = [0, 1] * 4, np.random.default_rng(0)

        def __len__(self):
            return 8

        def __getitem__(self, at):
            return self.draws.integers(0, 256, (8, 8, 3), np.uint8), self.targets[at]

    found = read(open_source(Set()), workers=2)
    assert not found.named and len(found.ids) == 8


PATHS = ["a.png", "b.png", "c.png"]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ((None, ["a", "b", "a"]), "The images are a NoneType, expected"),
        ((PATHS, None), "The labels are a NoneType, expected"),
        (((path for path in PATHS), ["a", "b", "a"]), "The images are a generator, expected"),
        ((PATHS, (label for label in "aba")), "The labels are a generator, expected"),
        ((PATHS, "aba"), "The labels are a str, expected"),
        ((PATHS, ["a", "b", 10**400]), "Label 2 is a number of over 300 digits"),
        ((PATHS, ["a", "b", -(10**5000)]), "Label 2 is a number of over 300 digits"),
    ],
    ids=["no images", "no labels", "generator", "generator of labels", "text", "large number", "very large number"],
)
def test_images_and_labels_that_are_none_are_a_sentence(data, sentence, tmp_path):
    with pytest.raises(DataError, match=sentence):
        burnish.fit(data, out=tmp_path / "run", **QUICK)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor])
def test_a_column_of_labels_is_one_class_an_image(kind):
    images = np.zeros((8, 4, 4, 3), np.uint8)
    for column, classes in (([0, 1] * 4, ("0", "1")), ([0, 7, 3, 7] * 2, ("0", "3", "7"))):
        catalog = open_source((images, kind(column).reshape(8, 1)), for_training=False)
        assert not catalog.several and catalog.classes == classes
        told = {catalog.paths[row]: catalog.label(row) for row in range(8)}
        assert told == {str(at): str(label) for at, label in enumerate(column)}
    assert open_source((images, kind([[0, 1], [1, 1]] * 4)), for_training=False).several


# ---- files that are waited for, or change --------------------------------------------------------------------------------


@contextmanager
def unstuck(pipe: Path, *, after: float) -> Iterator[list[float]]:
    """Lets go whoever waits for the pipe after so many seconds; the list is empty where nobody did."""
    over, waited = threading.Event(), []

    def let_go() -> None:
        if over.wait(after):
            return
        while not over.wait(0.05):
            with suppress(OSError):  # nobody waits
                os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
                waited.append(after)

    guard = threading.Thread(target=let_go, daemon=True)
    guard.start()
    try:
        yield waited
    finally:
        over.set()
        guard.join()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_among_the_paths_is_named_and_not_waited_for(shapes, tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    files = [*sorted(shapes.rglob("*.png")), tmp_path / "pipe.jpg"]
    labels = [*(file.parent.name for file in files[:-1]), "red"]
    with unstuck(tmp_path / "pipe.jpg", after=3) as waited:
        assert typical_side(open_source((files, labels))) == 40
        assert not waited
        run = burnish.fit((files, labels), method="full", epochs=1, out=tmp_path / "run", **QUICK)
    assert not waited
    (named,) = run.facts["named"]
    assert Path(named["path"]).name == "pipe.jpg" and named["reason"] == "a pipe, not an image file"


def test_a_file_that_changes_between_the_look_and_the_decode_is_named_and_not_kept(tmp_path):
    write_images(tmp_path / "data", {"a": 3, "b": 3})
    file = tmp_path / "data" / "a" / "000.png"
    catalog, store, before = open_source(tmp_path / "data"), PixelStore(tmp_path / "cache"), file.read_bytes()
    ids = np.arange(len(catalog))
    looks = look_at(catalog, ids, workers=1)
    Image.new("RGB", (4, 4), (0, 0, 255)).save(file)
    changed = read_pixels(catalog, ids, preprocess=SMALL, workers=1, store=store, looks=looks)
    assert [one.path for one in changed.named] == ["a/000.png"] and "changed while it was read" in changed.named[
        0
    ].reason
    assert 0 not in changed.ids and len(changed.ids) == 5
    file.write_bytes(before)
    again = read(catalog, store=store)
    assert not again.named
    assert np.array_equal(np.asarray(again.plain[:]), np.asarray(read(catalog).plain[:]))


def test_lines_of_a_list_that_name_nothing_are_named_with_the_reason(tmp_path):
    write_images(tmp_path / "data", {"a": 4, "b": 4})
    listed = tmp_path / "list.csv"
    listed.write_text("path,reason\na/000.png,blurred\nb/001.png,dark\na/gone.png,dark\n")
    left = quarantined(open_source(tmp_path / "data"), listed)
    assert len(left) == 6 and not {"a/000.png", "b/001.png"} & set(left.paths)
    assert {one.path: one.reason for one in left.named} == {
        "a/000.png": "left out by list.csv: blurred",
        "a/gone.png": "listed in list.csv, and not in the data",
        "b/001.png": "left out by list.csv: dark",
    }


# ---- files that would take minutes ---------------------------------------------------------------------------------------


def part(marker: int, content: bytes) -> bytes:
    """A part of a JPEG."""
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def with_scans(count: int) -> bytes:
    """A progressive JPEG of one grey block, in so many scans."""
    code = bytes([1] + [0] * 15)  # one code of one bit
    found = b"\xff\xd8" + part(0xDB, bytes([0] + [16] * 64))
    found += part(0xC2, struct.pack(">BHHB", 8, 8, 8, 1) + bytes([1, 0x11, 0]))
    found += part(0xC4, bytes([0x00]) + code + bytes([0])) + part(0xC4, bytes([0x10]) + code + bytes([0]))
    found += part(0xDA, bytes([1, 1, 0x00, 0, 0, 0])) + b"\x7f"
    return found + (part(0xDA, bytes([1, 1, 0x00, 1, 63, 0])) + b"\x7f") * (count - 1) + b"\xff\xd9"


def test_a_jpeg_of_very_many_scans_is_refused():
    assert decode(with_scans(12)).size == decode(with_scans(100)).size == (8, 8)
    assert "over 100 scans" in refusal(with_scans(200))
    before = part(0xE1, b"Exif\0\0" + b"\xff\xd9" * 100)  # what looks like an end within a part is none
    assert "over 100 scans" in refusal(b"\xff\xd8" + before + with_scans(200)[2:])


def test_a_jpeg_of_very_many_parts_is_refused():
    plain = encoded(noise(16, 16), "JPEG")
    for marker in (0xE1, 0xE2, 0xFE):
        parts = part(marker, b"Exif\0\0" + bytes(10))
        assert decode(plain[:2] + parts * 300 + plain[2:]).size == (16, 16)
        assert "over 4,000 parts" in refusal(plain[:2] + parts * 5000 + plain[2:])


def test_a_jpeg_of_very_many_parts_behind_a_mark_of_the_end_is_refused():
    plain = encoded(noise(16, 16), "JPEG")
    parts = b"\xff\xd9" + part(0xE1, b"Exif\0\0" + bytes(10)) * 5000
    assert "over 4,000 parts" in refusal(plain[:2] + parts + plain[2:])


@pytest.mark.parametrize("progressive", [False, True])
def test_ordinary_jpegs_are_read_whatever_stands_in_them_and_behind(progressive):
    plain = encoded(noise(200, 150), "JPEG", quality=95, progressive=progressive)
    many = b"\xff\xda" * 30_000
    large = encoded(noise(1500, 1000), "JPEG", quality=100, progressive=progressive, restart_marker_blocks=1)
    for data in (
        plain,
        large,
        plain + many * 10,
        plain[:2] + part(0xE1, (b"Exif\0\0" + many)[:60_000]) + plain[2:],
        plain[:2] + part(0xE1, (b"Exif\0\0" + many)[:60_000]) * 20 + plain[2:] + many,
    ):
        assert why_slow(data) is None
        assert np.array_equal(np.asarray(decode(data)), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_plain_netpbm_images_of_many_comments_or_megabytes_are_refused():
    numbers = b"1 " * 64
    assert "over 1,000 comments" in refusal(b"P2\n8 8\n255\n" + b"#\n" * 2000 + numbers)
    assert "over 1,000 comments" in refusal(b"P5\n" + b"#\n" * 2000 + b"8 8\n255\n" + bytes(64))
    side = 1500
    assert "over 8 MB of numbers written as text" in refusal(b"P3\n1500 1500\n255\n" + b"1 " * (3 * side * side))


def test_ordinary_netpbm_images_are_read():
    text = b"P3\n# a comment\n4 2\n# another\n255\n" + b" ".join(b"%d" % value for value in range(24))
    assert np.asarray(decode(text)).reshape(-1).tolist() == list(range(24))
    hashes = decode(b"P6\n# a comment\n300 300\n255\n" + b"#" * (300 * 300 * 3))
    assert (np.asarray(hashes) == ord("#")).all()
    assert decode(b"P5\n3000 3000\n255\n" + bytes(9_000_000)).size == (3000, 3000)


def test_what_is_refused_for_its_time_is_named_among_others(tmp_path):
    write_images(tmp_path, {"a": 3, "b": 3})
    (tmp_path / "a" / "scans.jpg").write_bytes(with_scans(200))
    found = read(open_source(tmp_path))
    assert len(found.ids) == 6 and [one.path for one in found.named] == ["a/scans.jpg"]
    assert "over 100 scans" in found.named[0].reason


# ---- Parquet and Arrow ---------------------------------------------------------------------------------------------------


def arrow_file(file: Path, at: int, offset: int, *, stream: bool) -> Path:
    """12 images of 16 bytes each, where offset `at` points elsewhere."""
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"image": pa.array([b"0123456789ABCDEF"] * 12, pa.binary()), "label": ["aaa", "bbb", "ccc"] * 4})
    written = pa.ipc.new_stream if stream else pa.ipc.new_file
    with pa.OSFile(str(file), "wb") as sink, written(sink, table.schema) as writer:
        writer.write_table(table)
    right = [16 * place for place in range(13)]
    wrong = [offset if place == at else value for place, value in enumerate(right)]
    data = file.read_bytes()
    assert data.count(struct.pack("<13i", *right)) == 1
    file.write_bytes(data.replace(struct.pack("<13i", *right), struct.pack("<13i", *wrong)))
    return file


@pytest.mark.parametrize(("at", "offset"), [(5, 2**30), (12, 2**30), (5, -(2**30)), (5, 8)])
def test_an_arrow_file_whose_offsets_are_wrong_is_a_sentence(at, offset, tmp_path):
    """In a process of its own, which what lies beyond the file's end would take with it."""
    files = [arrow_file(tmp_path / f"{kind}.arrow", at, offset, stream=kind == "stream") for kind in ("stream", "file")]
    code = (
        "import sys\n"
        "from burnish.data.sources import open_source\n"
        "from burnish.errors import DataError\n"
        "for file in sys.argv[1:]:\n"
        "    try:\n"
        "        catalog = open_source(file)\n"
        "        print([len(catalog.image(row)) for row in range(12)])\n"
        "    except DataError as error:\n"
        "        print('refused:', error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *map(str, files)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, (done.returncode, done.stderr)
    told = done.stdout.splitlines()
    assert [line.partition(".arrow")[0] for line in told] == ["refused: stream", "refused: file"], told
    assert all("damaged after row 0" in line and line.endswith("Fetch it again.") for line in told)


def parquet(file: Path, images: list[bytes], labels: list) -> Path:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"image": pa.array(images, pa.binary()), "label": labels}), file)
    return file


def test_one_image_in_very_many_rows_of_a_parquet_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(columnar, "_RATIO_FROM_BYTES", 2**20, raising=False)
    large = encoded(noise(80, 80), "PNG")
    file = parquet(tmp_path / "t.parquet", [large] * 300, ["a", "b", "c"] * 100)
    assert 300 * len(large) > 2**20 and 300 * len(large) > 100 * file.stat().st_size
    with pytest.raises(
        DataError, match=r"t\.parquet: its images are over 100 times as large as its files, .* again and again"
    ):
        open_source(file)
    few = parquet(tmp_path / "few.parquet", [large] * 30, ["a", "b", "c"] * 10)
    assert len(open_source(few)) == 30


def test_a_value_of_a_parquet_file_beyond_the_limit_is_named_and_not_held(tmp_path, monkeypatch):
    monkeypatch.setattr(columnar, "MAX_BYTES", 1_000_000)
    held, add = [], Spool.add
    monkeypatch.setattr(Spool, "add", lambda self, data: held.append(len(data)) or add(self, data))
    images = [png(at) for at in range(8)]
    images[3] = encoded(noise(600, 600), "PNG")
    assert len(images[3]) > 1_000_000
    catalog = open_source(parquet(tmp_path / "t.parquet", images, ["a", "b"] * 4))
    assert max(held) <= 1_000_000
    found = read(catalog)
    assert [(one.path, one.reason) for one in found.named] == [
        ("t.parquet#000004", "larger than 1 MB, the most that is read")
    ]
    assert len(found.ids) == 7


# ---- labels that are missing among several -------------------------------------------------------------------------------


def open_listed(folder: Path, kind: str, labels: list) -> Catalog:
    """The catalogue of a table of that kind that lists an image for each label."""
    file = folder / f"t.{kind}"
    if kind == "parquet":
        parquet(file, [png(at) for at in range(len(labels))], labels)
    else:
        write_images(folder, {"x": len(labels)})
        paths = [f"x/{at:03d}.png" for at in range(len(labels))]
        rows = list(zip(paths, labels, strict=True))
        if kind == "jsonl":
            lines = [json.dumps({"path": path, "label": label}) for path, label in rows]
        else:
            lines = ["path,label", *(f"{path},{label}" for path, label in rows)]
        file.write_text("\n".join(lines))
    return open_source(file, for_training=False)


@pytest.mark.parametrize(
    ("kind", "missing", "sentence"),
    [
        ("csv", "", r"t\.csv, line 4: the label is empty"),
        ("jsonl", None, r"t\.jsonl, line 3: the label is empty"),
        ("jsonl", [None], r"t\.jsonl, line 3: a label in its list is empty"),
        ("jsonl", [""], r"t\.jsonl, line 3: a label in its list is empty"),
        ("jsonl", ["a", " "], r"t\.jsonl, line 3: a label in its list is empty"),
        ("parquet", None, r"t\.parquet, row 3: the label is empty"),
        ("parquet", [None], r"t\.parquet, row 3: a label in its list is empty"),
        ("parquet", ["a", None], r"t\.parquet, row 3: a label in its list is empty"),
    ],
)
def test_a_label_that_is_missing_among_several_is_refused_with_its_line(kind, missing, sentence, tmp_path):
    several = ["a|b", "b", missing, "a"] if kind == "csv" else [["a", "b"], ["b"], missing, ["a"]]
    with pytest.raises(DataError, match=sentence):
        open_listed(tmp_path, kind, several)


@pytest.mark.parametrize(("kind", "none"), [("csv", "|"), ("jsonl", []), ("parquet", [])])
def test_a_bar_and_an_empty_list_mean_none_of_the_classes(kind, none, tmp_path):
    several = ["a|b", "b", none, "a"] if kind == "csv" else [["a", "b"], ["b"], none, ["a"]]
    catalog = open_listed(tmp_path, kind, several)
    assert catalog.several and catalog.classes == ("a", "b")
    assert sorted(catalog.label(row) for row in range(4)) == ["", "a", "a|b", "b"]


# ---- names in archives ---------------------------------------------------------------------------------------------------


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


def tar_of(file: Path, entries: list[tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(file, mode) as archive:
        for name, data in entries:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_tar_of_folders_with_and_without_a_dot_before_them_has_those_classes(mode, tmp_path):
    entries = [(f"{name}/{at}.png", png(at)) for name in ("./cat", "dog", "bird", "./cat/./deep") for at in range(3)]
    catalog = open_source(tar_of(tmp_path / "a.tar", entries, mode))
    assert catalog.classes == ("bird", "cat", "dog") and len(catalog) == 12 and not catalog.named
    assert not read(catalog).named


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


# ---- what a run is asked -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "kind", "count"),
    [
        ((3, 28, 28), np.asarray, 3),
        ((5, 28, 28), np.asarray, 5),
        ((28, 28, 3), np.asarray, 1),
        ((28, 28, 4), np.asarray, 1),
        ((3, 28, 28), torch.from_numpy, 1),
        ((4, 28, 28), torch.from_numpy, 1),
        ((28, 28, 3), torch.from_numpy, 1),
        ((2, 3, 28, 28), torch.from_numpy, 2),
    ],
)
def test_an_array_is_as_many_images_as_fit_takes_it_for(shape, kind, count, run):
    images = kind(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    found = run.predict(images)
    assert len(found) == count and all(one.problem is None for one in found)
    assert run.predict_proba(images).shape == (count, 3)


def test_what_is_no_array_has_a_problem_and_the_others_have_answers(run):
    good = noise(28, 28)
    odd = [
        torch.zeros(3, 8, 8, dtype=torch.bfloat16),
        torch.zeros(3, 8, 8, dtype=torch.uint8).to_sparse(),
        torch.zeros(3, 8, 8, dtype=torch.uint8, device="meta"),
        [[[1, 2, 3]], [[1]]],
    ]
    found = run.predict([good, *odd, good])
    assert [one.problem is None for one in found] == [True, False, False, False, False, True]
    assert all(one.problem and len(one.problem) < 200 and not one.classes for one in found[1:-1])
    assert found[0].label == found[-1].label == run.predict([good])[0].label


# ---- scikit-learn --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "y",
    [
        [1.0, 2.0, np.nan] * 4,
        np.array(["a", "b", np.nan] * 4, object),
        ["a", "b", None] * 4,
        ["a", "b", ""] * 4,
        [b"a", b"b", b"c"] * 4,
        np.array(["a", "b", "\ud800"] * 4, object),
        ["é", unicodedata.normalize("NFD", "é"), "b"] * 4,
    ],
    ids=["NaN", "NaN among names", "None", "empty", "bytes", "half a character", "two forms"],
)
def test_labels_that_are_no_classes_are_a_value_error_before_anything_runs(y, tmp_path, monkeypatch):
    monkeypatch.setattr("burnish.api.fit_catalog", lambda *_, **__: pytest.fail("it ran"))
    write_images(tmp_path, {"x": 12})
    with pytest.raises(ValueError, match=r"y holds .*, expected class names|y writes the class .* in two ways"):
        ImageClassifier(model="random:test_resnet").fit(sorted((tmp_path / "x").iterdir()), y)


def test_labels_that_are_classes_are_taken_as_they_are_written(tmp_path, monkeypatch):
    given = []

    class Enough(Exception):
        pass

    def fit(catalog, *_, **__):
        given.append(catalog)
        raise Enough

    monkeypatch.setattr("burnish.api.fit_catalog", fit)
    write_images(tmp_path, {"x": 12})
    decomposed = unicodedata.normalize("NFD", "é")
    for y, classes in (
        (["a", decomposed] * 6, ("a", "é")),
        ([2.0, 1.0] * 6, ("1.0", "2.0")),
        ([True, False] * 6, ("False", "True")),
    ):
        with pytest.raises(Enough):
            ImageClassifier(model="random:test_resnet").fit(sorted((tmp_path / "x").iterdir()), y)
        assert given[-1].classes == classes
