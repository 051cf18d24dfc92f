"""Sources besides folders and CSV: whatever holds the images, they come out as from files, and every file is used or named."""

from __future__ import annotations

import io
import json
import os
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from burnish.archives import Zip
from burnish.data.cache import read_pixels
from burnish.data.catalog import Catalog
from burnish.data.pixels import decode, read_all
from burnish.data.sources import open_source
from burnish.errors import DataError, NotEnoughData
from burnish.terms import Preprocess
from images import encoded, noise, write_images

COUNTS = {"cat": 4, "dög": 5}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_images(tmp_path / "photos", COUNTS)


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def zipped(folder: Path, target: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for path in files_of(folder):
            archive.write(path, prefix + path.relative_to(folder).as_posix())
    return target


def tarred(folder: Path, target: Path, mode: str, prefix: str) -> Path:
    with tarfile.open(target, f"w:{mode}") as archive:
        archive.add(folder, prefix)
    return target


def pixels_of(catalog: Catalog) -> np.ndarray:
    found = read_pixels(catalog, np.arange(len(catalog)), preprocess=Preprocess(size=32), workers=2)
    assert not found.named
    return np.asarray(found.plain[:])


# ---- archives --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "photos/", "a/b/"])
@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz", "zip called .dat", "program before zip"])
def test_an_archive_gives_the_same_images_as_its_folder(kind, prefix, folder, tmp_path):
    target = tmp_path / ("set.dat" if "called" in kind else f"set.{kind.split()[-1]}")
    if "zip" in kind:
        zipped(folder, target, prefix)
    else:
        tarred(folder, target, kind.partition(".")[2], prefix or ".")
    if kind == "program before zip":
        target.write_bytes(b"#!/bin/sh\nexit 1\n" + target.read_bytes())
    plain, packed = open_source(folder), open_source(target)
    assert packed.classes == plain.classes == ("cat", "dög")
    assert [Path(path).name for path in packed.paths] == [Path(path).name for path in plain.paths]
    assert np.array_equal(packed.labels, plain.labels)
    assert np.array_equal(pixels_of(packed), pixels_of(plain))


def test_split_folders_in_an_archive_are_splits(tmp_path):
    for word in ("train", "val", "test"):
        write_images(tmp_path / "set" / word, {"a": 2, "b": 2})
    catalog = open_source(zipped(tmp_path / "set", tmp_path / "set.zip", "set/"))
    assert sorted(set(catalog.splits)) == ["test", "train", "val"] and catalog.classes == ("a", "b")


def test_nothing_of_an_archive_is_written_under_a_name(folder, tmp_path):
    target = tarred(folder, tmp_path / "set.tar.gz", "gz", "photos")
    opened: list[str] = []

    def watch(event: str, args: tuple[object, ...]) -> None:
        if event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+") and armed:
            opened.append(str(args[0]))

    armed = True
    sys.addaudithook(watch)
    before = sorted(tmp_path.rglob("*"))
    pixels_of(open_source(target))
    armed = False
    assert not opened
    assert sorted(tmp_path.rglob("*")) == before


def test_links_and_names_that_climb_out_are_named_and_not_followed(folder, tmp_path):
    target = tmp_path / "set.tar"
    with tarfile.open(target, "w") as archive:
        archive.add(folder, "photos")
        for name, link in (("photos/cat/link.png", "/etc/passwd"), ("photos/cat/inside.png", "000.png")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, link
            archive.addfile(info)
        info = tarfile.TarInfo("../outside.png")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    catalog = open_source(target)
    assert len(catalog) == 9
    reasons = {one.path: one.reason for one in catalog.named}
    assert "link" in reasons["photos/cat/link.png"] and "climbs out" in reasons["../outside.png"]


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("name", ["/".join(["0"] * 70), "/".join(["0" * 200] * 25)], ids=["deep", "long"])
def test_members_of_very_long_names_are_named_and_the_rest_is_used(name, kind, folder, tmp_path):
    (tmp_path / "deep.png").write_bytes(png(0))
    target = zipped(folder, tmp_path / "set.zip") if kind == "zip" else tarred(folder, tmp_path / "set.tar", "", ".")
    with zipfile.ZipFile(target, "a") if kind == "zip" else tarfile.open(target, "a") as archive:
        (archive.write if isinstance(archive, zipfile.ZipFile) else archive.add)(tmp_path / "deep.png", f"{name}/1.png")
    catalog = open_source(target)
    assert len(catalog) == sum(COUNTS.values()) and catalog.classes == tuple(COUNTS)
    assert [(one.path, "64 folders" in one.reason) for one in catalog.named] == [(f"{name}/1.png", True)]


def test_a_packed_tar_that_is_cut_within_an_image_is_a_sentence(tmp_path):
    target = tmp_path / "set.tar.gz"
    with tarfile.open(target, "w:gz") as archive:
        info = tarfile.TarInfo("photos/cat/1.png")
        info.size = 3_000_000
        archive.addfile(info, io.BytesIO(np.random.default_rng(0).bytes(3_000_000)))
    target.write_bytes(target.read_bytes()[:2_000_000])
    with pytest.raises(DataError, match="damaged tar archive"):
        open_source(target)


def test_of_one_shard_too_what_is_passed_over_is_named(folder, tmp_path):
    target = tmp_path / "train.tar"
    with tarfile.open(target, "w") as archive:
        for name, label in (("cat", b"cat"), ("dög", b"fox")):
            for at in range(3):
                archive.add(folder / name / f"{at:03d}.png", f"{name}{at}.png")
                info = tarfile.TarInfo(f"{name}{at}.cls")
                info.size = 3
                archive.addfile(info, io.BytesIO(label))
        info = tarfile.TarInfo("link.png")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
        archive.add(folder / "cat" / "000.png", "__MACOSX/cat9.png")
        info = tarfile.TarInfo("__MACOSX/cat9.cls")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"cat"))
    catalog = open_source(target)
    reasons = {one.path: one.reason for one in catalog.named}
    assert len(catalog) == 6
    assert "link" in reasons["train.tar/link.png"] and "left by a system" in reasons["train.tar/__MACOSX/cat9.png"]


def test_an_archive_of_nothing_that_is_read_says_why(folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "none.zip", "w"):
        pass
    with pytest.raises(NotEnoughData, match=r"none\.zip holds no images\. Expected"):
        open_source(tmp_path / "none.zip")
    with zipfile.ZipFile(tmp_path / "windows.zip", "w") as archive:
        for path in files_of(folder):
            archive.writestr(zipfile.ZipInfo(f"set\\{path.parent.name}\\{path.name}"), path.read_bytes())
    with pytest.raises(NotEnoughData, match="has a backslash in its name"):
        open_source(tmp_path / "windows.zip")


def test_litter_in_an_archive_is_named(folder, tmp_path):
    target = zipped(folder, tmp_path / "set.zip", "photos/")
    with zipfile.ZipFile(target, "a") as archive:
        for name in ("__MACOSX/photos/cat/._1.png", "photos/cat/Thumbs.db", "photos/.DS_Store", "photos/readme.txt"):
            archive.writestr(name, b"x")
    catalog = open_source(target)
    assert len(catalog) == 9 and len(catalog.named) == 4


@pytest.mark.parametrize("what", ["truncated", "twice", "encrypted", "empty", "bomb", "nothing in it", "no images"])
def test_an_archive_that_is_damaged_or_made_to_deceive_is_a_sentence(what, folder, tmp_path):
    target = zipped(folder, tmp_path / "set.zip")
    data = target.read_bytes()
    if what == "truncated":
        target.write_bytes(data[: len(data) // 2])
    elif what == "twice":
        with pytest.warns(UserWarning), zipfile.ZipFile(target, "a") as archive:
            archive.writestr("cat/000.png", b"another")
    elif what == "encrypted":
        at = data.index(b"PK\x01\x02") + 8
        target.write_bytes(data[:at] + b"\x01" + data[at + 1 :])
    elif what == "empty":
        target.write_bytes(b"")
    elif what == "bomb":
        with zipfile.ZipFile(target, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("cat/bomb.png", bytes(64 * 2**20))
    else:
        with zipfile.ZipFile(target, "w") as archive:
            if what == "no images":
                archive.writestr("a/notes.txt", b"x")
    with pytest.raises((DataError, NotEnoughData)) as caught:
        open_source(target)
    assert "\n" not in str(caught.value) and str(caught.value).count("set.zip") >= 1


def test_a_damaged_member_is_named_when_it_is_decoded(folder, tmp_path):
    target = zipped(folder, tmp_path / "set.zip")
    data = bytearray(target.read_bytes())
    at = data.index(b"\x89PNG") + 60
    data[at : at + 8] = b"\xff" * 8
    target.write_bytes(data)
    catalog = open_source(target)
    found = read_pixels(catalog, np.arange(len(catalog)), preprocess=Preprocess(size=32), workers=2)
    assert len(found.ids) == 8 and len(found.named) == 1 and "damaged" in found.named[0].reason


def test_a_zip_may_be_read_by_many_threads(folder, tmp_path):
    archive = Zip(zipped(folder, tmp_path / "set.zip").read_bytes(), "set.zip")
    assert len(archive.members) == 9
    catalog = open_source(tmp_path / "set.zip")
    many = read_pixels(catalog, np.tile(np.arange(9), 20), preprocess=Preprocess(size=32), workers=8)
    assert not many.named and len(many.ids) == 180


# ---- shards ----------------------------------------------------------------------------------------------------------


def shard(target: Path, samples: dict[str, dict[str, bytes]]) -> Path:
    with tarfile.open(target, "w") as archive:
        for key, parts in samples.items():
            for extension, data in parts.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return target


def png(seed: int) -> bytes:
    return encoded(noise(8, 8, seed=seed), "PNG")


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    root = tmp_path / "shards"
    root.mkdir()
    for number in range(3):
        word = "test" if number == 2 else "train"
        samples = {f"{number}{i}": {"png": png(10 * number + i), "cls": str(i % 2).encode()} for i in range(6)}
        shard(root / f"{word}-{number:03d}.tar", samples)
    return root


def test_shards_are_read_from_a_folder_and_by_a_pattern(shards):
    whole, part = open_source(shards), open_source(str(shards / "train-{000..001}.tar"))
    assert len(whole) == 18 and len(part) == 12 and whole.classes == ("0", "1")
    assert whole.splits.count("test") == 6 and pixels_of(whole).shape == (18, 32, 32, 3)
    assert len(open_source(shards / "train-000.tar", for_training=False)) == 6


def test_a_shard_that_is_no_plain_file_is_named_and_the_others_are_used(shards, tmp_path):
    shard(tmp_path / "outside.tar", {"0": {"png": png(0), "cls": b"0"}})
    os.mkfifo(shards / "train-100.tar")
    (shards / "train-101.tar").symlink_to("/dev/zero")
    (shards / "train-102.tar").symlink_to(tmp_path / "outside.tar")
    catalog = open_source(shards)
    reasons = {one.path: one.reason for one in catalog.named}
    assert len(catalog) == 18
    assert "not a regular file" in reasons["train-100.tar"]
    assert all("out of the data folder" in reasons[f"train-{number}.tar"] for number in (101, 102))


@pytest.mark.parametrize("link", [None, "/dev/zero", "/etc/passwd"])
def test_names_of_classes_that_are_no_plain_file_of_the_folder_are_not_read(link, shards):
    os.mkfifo(shards / "classes.txt") if link is None else (shards / "classes.txt").symlink_to(link)
    catalog = open_source(shards)
    assert catalog.classes == ("0", "1") and [one.path for one in catalog.named] == ["classes.txt"]


def test_a_file_of_class_names_without_end_is_a_sentence(shards):
    with open(shards / "classes.txt", "wb") as file:
        file.truncate(2**25)
    with pytest.raises(DataError, match=r"classes\.txt cannot be read .*larger than"):
        open_source(shards)


def test_class_numbers_are_named_by_the_file_beside_the_shards(shards):
    (shards / "classes.txt").write_text("left\nright\n", encoding="utf-8")
    assert open_source(shards).classes == ("left", "right")


def test_classes_of_one_name_stay_two_and_one_without_a_name_is_called_by_its_number(shards):
    (shards / "classes.txt").write_text("crane\ncrane\n", encoding="utf-8")
    assert open_source(shards).classes == ("crane (0)", "crane (1)")
    (shards / "classes.txt").write_text("\ncrane\n", encoding="utf-8")
    assert open_source(shards).classes == ("0", "crane")


def test_names_of_a_data_set_in_python_stay_apart_too():
    class Set:
        targets, classes = [0, 1, 2] * 4, [("crane",), ("kite",), ("crane",)]

        def __len__(self):
            return 12

        def __getitem__(self, row):
            return noise(8, 8, seed=row), self.targets[row]

    assert open_source(Set()).classes == ("('crane',) (0)", "('crane',) (2)", "('kite',)")


def test_shards_of_one_name_in_two_folders_keep_their_images(tmp_path):
    for part in (0, 1):
        (tmp_path / f"part-{part}").mkdir()
        samples = {f"{i}": {"png": png(100 * part + i), "cls": str(part).encode()} for i in range(4)}
        shard(tmp_path / f"part-{part}" / "train-0.tar", samples)
    catalog = open_source(str(tmp_path / "part-{0..1}" / "train-{0..0}.tar"))
    assert len(catalog) == len(set(catalog.paths)) == 8
    for row in range(8):
        part, key = int(catalog.classes[catalog.labels[row]]), int(Path(catalog.paths[row]).stem)
        assert catalog.image(row) == png(100 * part + key)


def test_samples_without_a_label_or_an_image_are_named(shards):
    shard(
        shards / "train-009.tar",
        {
            "a": {"png": png(1)}, "b": {"cls": b"1"}, "c": {"png": png(2), "jpg": png(3), "cls": b"0"},
            "d": {"png": png(4), "json": b'{"label": "0"}'}, "e": {"png": png(5), "json": b"[[["}, "f": {"png": png(6), "cls": b""},
        },
    )  # fmt: skip
    catalog = open_source(shards)
    assert len(catalog) == 19
    assert {Path(one.path).stem for one in catalog.named} == {"a", "b", "c", "e", "f"}


def test_a_pattern_with_a_missing_file_is_a_sentence(shards):
    with pytest.raises(DataError, match=r"means 5 files, and there is no .*Check the range"):
        open_source(str(shards / "train-{000..004}.tar"))


# ---- tables ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tsv", "jsonl", "semicolons", "bom", "crlf", "parquet"])
def test_tables_of_every_kind_are_the_same_catalogue(kind, folder, tmp_path):
    rows = [(f"photos/{path.relative_to(folder).as_posix()}", path.parent.name) for path in files_of(folder)]
    target = tmp_path / {"tsv": "t.tsv", "jsonl": "t.jsonl", "parquet": "t.parquet"}.get(kind, "t.csv")
    if kind == "jsonl":
        target.write_text(
            "\n".join(json.dumps({"path": path, "label": label}) for path, label in rows), encoding="utf-8"
        )
    elif kind == "parquet":
        pq.write_table(pa.table({"path": [row[0] for row in rows], "label": [row[1] for row in rows]}), target)
    else:
        between = {"tsv": "\t", "semicolons": ";"}.get(kind, ",")
        end = "\r\n" if kind == "crlf" else "\n"
        text = end.join(between.join(row) for row in [("path", "label"), *rows]) + end
        target.write_bytes(("\ufeff" if kind == "bom" else "").encode() + text.encode())
    catalog = open_source(target)
    assert catalog.classes == ("cat", "dög") and len(catalog) == 9
    assert np.array_equal(pixels_of(catalog), pixels_of(open_source(folder)))


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("[1]", r"line 1: it is a list, expected an object"),
        ('{"path": "a.png"}', r"line 1: it has no label"),
        ('{"path": "a.png", "label": null}', r"line 1: the label is empty"),
        ('{"path": "a.png", "label": 0.5}', r"line 1: the label is a fraction, expected text"),
        ('{"path": "../a.png", "label": "a"}', r"line 1: the path '\.\./a\.png' is not allowed"),
        ('{"path": "a.png"', r"line 1: it is not JSON"),
        ("[" * 100_000, r"line 1: it is not JSON"),
    ],
)
def test_mistakes_in_json_lines_are_sentences_with_the_line(line, sentence, tmp_path):
    (tmp_path / "t.jsonl").write_text(line, encoding="utf-8")
    with pytest.raises(DataError, match=sentence):
        open_source(tmp_path / "t.jsonl")


def hugging_face_table(folder: Path) -> pa.Table:
    names = sorted(COUNTS)
    files = files_of(folder)
    images = [{"bytes": path.read_bytes(), "path": path.name} for path in files]
    features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
    table = pa.table({"image": images, "label": [names.index(path.parent.name) for path in files]})
    return table.replace_schema_metadata({"huggingface": json.dumps(features)})


@pytest.mark.parametrize("kind", ["file", "folder", "data folder", "save_to_disk"])
def test_images_inside_parquet_and_arrow_files_come_out_as_from_files(kind, folder, tmp_path):
    table, root = hugging_face_table(folder), tmp_path / "set"
    (root / "data").mkdir(parents=True)
    target = root
    if kind == "file":
        target = root / "all.parquet"
        pq.write_table(table, target)
    elif kind == "save_to_disk":
        (root / "state.json").write_text("{}")
        (root / "dataset_info.json").write_text("{}")
        with (
            pa.OSFile(str(root / "data-00000-of-00001.arrow"), "wb") as sink,
            pa.ipc.new_stream(sink, table.schema) as writer,
        ):
            writer.write_table(table)
    else:
        inside = root / "data" if kind == "data folder" else root
        pq.write_table(table.slice(0, 7), inside / "train-00000-of-00001.parquet")
        pq.write_table(table.slice(7), inside / "test-00000-of-00001.parquet")
    catalog = open_source(target, for_training=False)
    assert catalog.classes == ("cat", "dög") and len(catalog) == 9
    assert (catalog.splits.count("test") == 2) == ("folder" in kind)
    found, wanted = (sorted(image.tobytes() for image in pixels_of(one)) for one in (catalog, open_source(folder)))
    assert found == wanted


def test_damaged_parquet_and_parquet_without_pyarrow_are_sentences(folder, tmp_path, monkeypatch):
    target = tmp_path / "t.parquet"
    pq.write_table(hugging_face_table(folder), target)
    (tmp_path / "cut.parquet").write_bytes(target.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"cut\.parquet: no sound Parquet"):
        open_source(tmp_path / "cut.parquet")
    pq.write_table(pa.table({"picture": [b"x"], "kind": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(DataError, match=r"has the columns picture, kind; expected label"):
        open_source(tmp_path / "other.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"pip install 'burnish\[data\]'"):
        open_source(target)


def written(target: Path, images: Any, kind: pa.DataType, labels: Any = None, **options: Any) -> Path:
    schema = pa.schema([("image", kind), ("label", pa.string())])
    table = pa.table({"image": images, "label": labels or (["a", "b"] * len(images))[: len(images)]})
    pq.write_table(table.cast(schema), target, compression="zstd", store_schema=False, **options)
    return target


def peak_of(look: Callable[[], object]) -> int:
    """Bytes that pyarrow had in hand, at the most, while it looked."""
    pool = pa.proxy_memory_pool(pa.default_memory_pool())
    before = pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        look()
    finally:
        pa.set_memory_pool(before)
    return pool.max_memory()


@pytest.mark.parametrize("dictionary", [True, False])
def test_parquet_of_a_few_bytes_that_unpacks_to_many_is_refused_before_it_is(dictionary, tmp_path):
    image = b"\xff\xd8" + b"\0" * 70_000_000
    target = written(tmp_path / "t.parquet", [image] * 2, pa.binary(), use_dictionary=dictionary)
    assert target.stat().st_size < 100_000

    def look() -> None:
        with pytest.raises(DataError, match=r"unpacks to .*a bomb"):
            open_source(target)

    assert peak_of(look) < 10_000_000


def test_one_image_in_many_rows_of_parquet_is_unpacked_row_by_row(tmp_path):
    image = np.random.default_rng(0).bytes(4_000_000)
    target = written(tmp_path / "t.parquet", [image] * 12, pa.binary(), use_dictionary=True)
    assert target.stat().st_size < 5_000_000
    assert peak_of(lambda: open_source(target)) < 40_000_000


def test_a_long_text_in_place_of_a_label_is_a_sentence(tmp_path):
    labels = [np.random.default_rng(0).bytes(600_000).hex(), "b"] * 4
    target = written(tmp_path / "t.parquet", [png(at) for at in range(8)], pa.binary(), labels)
    with pytest.raises(DataError, match=r"its column label holds a text of 1,200,000 bytes"):
        open_source(target)


def test_rows_of_parquet_without_an_image_are_named_with_what_they_hold(folder, tmp_path):
    images = [{"bytes": files_of(folder)[at].read_bytes(), "path": None} for at in range(4)]
    images += [{"bytes": None, "path": "/elsewhere/one.jpg"}, None]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(images, kind), "label": ["a", "b"] * 3})
    pq.write_table(table, tmp_path / "t.parquet")
    catalog = open_source(tmp_path / "t.parquet", for_training=False)
    found = read_all(catalog, np.arange(6), {}, {}, workers=1)
    assert [one.path for one in found.named] == ["t.parquet#000005", "t.parquet#000006"]
    assert "holds the path /elsewhere/one.jpg and no image" in found.named[0].reason
    assert found.named[1].reason == "the row holds no image"


# ---- Python ----------------------------------------------------------------------------------------------------------

ARRAY = np.random.default_rng(0).integers(0, 256, (8, 10, 12, 3), np.uint8)
LABELS = ["a", "b"] * 4


class Set:
    """A map-style data set."""

    classes: tuple[str, ...] = ("left", "right")

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[object, int]:
        return noise(12, 10, seed=index), index % 2


@pytest.mark.parametrize(
    "images",
    [ARRAY, torch.from_numpy(ARRAY), torch.from_numpy(ARRAY).permute(0, 3, 1, 2)],
    ids=["numpy", "torch", "chw"],
)
def test_arrays_of_any_layout_are_the_same_images(images):
    catalog = open_source((images, LABELS))
    assert catalog.classes == ("a", "b") and len(catalog) == 8
    row = catalog.paths.index("5")
    assert np.array_equal(np.asarray(decode(catalog.image(row))), ARRAY[5])


def test_a_data_set_that_fails_is_a_sentence():
    class Failing(Set):
        def __getitem__(self, index: int) -> tuple[object, int]:
            if index == 3:
                raise KeyError("three")
            return super().__getitem__(index)

    with pytest.raises(DataError, match=r"Item 3 of the data set cannot be had: KeyError: 'three'"):
        open_source(Failing())
    with pytest.raises(DataError, match="The data is a dictionary with 'a'; expected its splits"):
        open_source({"a": 1})


def test_a_data_set_and_paths_are_taken(folder):
    catalog = open_source(Set())
    assert catalog.classes == ("left", "right") and decode(catalog.image(0)).size == (12, 10)
    files = files_of(folder)
    catalog = open_source(([str(path) for path in files], [path.parent.name for path in files]))
    assert np.array_equal(pixels_of(catalog), pixels_of(open_source(folder)))


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ((ARRAY.astype(np.float32), LABELS), r"is float32 from 0 to 255, expected floats from 0 to 1, or uint8"),
        ((ARRAY.astype(np.int64), LABELS), r"int64 \[8, 10, 12, 3\], expected uint8"),
        ((ARRAY, LABELS[:3]), "8 images and 3 labels"),
        ((ARRAY, [0.5] * 8), "does not fit numbers"),
        ((ARRAY, LABELS, LABELS), "a tuple of 3"),
        (([1, 2], ["a", "b"]), "Image 0 is an int"),
        (3, "The data is an int"),
        ("torchvision:CIFAR10", "as pickles, which burnish does not open"),
        ("torchvision:Flower102", "Nearest: Flowers102"),
        ("hf:../../x", "is no name of a data set"),
    ],
)
def test_other_things_are_refused_in_a_sentence(data, sentence):
    with pytest.raises(DataError, match=sentence):
        open_source(data)


def test_a_snapshot_in_the_hubs_cache_is_read_through_its_links(folder, tmp_path):
    repository = tmp_path / "datasets--org--name"
    (repository / "blobs").mkdir(parents=True)
    snapshot = repository / "snapshots" / "0123"
    for number, file in enumerate(files_of(folder)):
        (repository / "blobs" / str(number)).write_bytes(file.read_bytes())
        link = snapshot / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(repository / "blobs" / str(number), link.parent))
    (snapshot / "cat" / "out.png").symlink_to(files_of(folder)[0])  # out of the repository
    catalog = open_source(snapshot)
    assert len(catalog) == sum(COUNTS.values()) and np.array_equal(pixels_of(catalog), pixels_of(open_source(folder)))
    assert [one.path for one in catalog.named] == ["cat/out.png"]


@pytest.mark.parametrize("kind", ["parquet", "save_to_disk"])
def test_tables_that_are_no_plain_files_are_named_and_the_others_are_used(kind, folder, tmp_path):
    table, root, suffix = hugging_face_table(folder), tmp_path / "set", "parquet" if kind == "parquet" else "arrow"
    root.mkdir()
    if kind == "parquet":
        pq.write_table(table, root / "train-0.parquet")
    else:
        (root / "state.json").write_text("{}")
        with pa.OSFile(str(root / "data-0.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    os.mkfifo(root / f"train-1.{suffix}")
    (root / f"train-2.{suffix}").symlink_to("/dev/zero")
    catalog = open_source(root)
    assert len(catalog) == sum(COUNTS.values())
    assert [one.path for one in catalog.named] == [f"train-1.{suffix}", f"train-2.{suffix}"]


def test_tables_and_shards_of_a_snapshot_are_read_through_its_links(folder, tmp_path):
    repository = tmp_path / "datasets--org--name"
    snapshot = repository / "snapshots" / "0123"
    (repository / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    pq.write_table(hugging_face_table(folder), repository / "blobs" / "0")
    (snapshot / "train-0.parquet").symlink_to("../../blobs/0")
    assert len(open_source(snapshot)) == sum(COUNTS.values())


def test_parquet_one_folder_down_is_found_and_several_data_sets_are_listed(folder, tmp_path):
    table, root = hugging_face_table(folder), tmp_path / "set"
    (root / "plain_text").mkdir(parents=True)
    pq.write_table(table, root / "plain_text" / "train-00000-of-00001.parquet")
    assert len(open_source(root)) == sum(COUNTS.values())
    (root / "other").mkdir()
    pq.write_table(table, root / "other" / "train-00000-of-00001.parquet")
    with pytest.raises(DataError, match=r"several folders \(other, plain_text\)"):
        open_source(root)


def test_labels_of_torchvisions_sets_are_known_without_an_image(monkeypatch, tmp_path):
    import torchvision.datasets

    class Food101:
        classes = ("soup", "cake")

        def __init__(self, root, *, download, split):
            self._labels = [0, 1] * (3 if split == "train" else 2)

        def __len__(self):
            return len(self._labels)

        def __getitem__(self, row):
            raise AssertionError("an image was decoded")

    monkeypatch.setattr(torchvision.datasets, "Food101", Food101)
    catalog = open_source("torchvision:Food101")
    assert len(catalog) == 10 and catalog.splits.count("test") == 4


def test_a_hub_that_cannot_be_reached_is_a_sentence(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DataError, match="not in the cache and cannot be fetched"):
        open_source("hf:nobody/nothing")


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [(["0.1", "0.25", "1.5", "2.0"], "fit numbers"), (["1e-3", ".5", "-2.25", "3.0"], "fit numbers")],
)
def test_labels_of_other_tasks_are_refused(labels, sentence, tmp_path):
    write_images(tmp_path, {"x": 12})
    rows = [f"x/{number:03d}.png,{labels[number % len(labels)]}" for number in range(12)]
    os.makedirs(tmp_path, exist_ok=True)
    (tmp_path / "t.csv").write_text("path,label\n" + "\n".join(rows), encoding="utf-8")
    with pytest.raises(DataError, match=sentence):
        open_source(tmp_path / "t.csv")
