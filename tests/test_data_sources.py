"""What DATA is: folders, split folders, a CSV, the demo; scanned = used + named, and errors that say what to do."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from dataclasses import asdict
from itertools import product
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import pytest
from PIL import Image

import burnish.data.sources.demo as demo
from burnish.data.catalog import Catalog, Named
from burnish.data.sources import open_source, require_usable, without
from burnish.data.sources.folder import folders_within
from burnish.data.sources.scan import RUN_FILE, RUN_LOCK
from burnish.data.sources.table import _PLAIN_PATH
from burnish.errors import DataError, NotEnoughData
from burnish.recipe import Recipe
from burnish.record.folder import _LOCK, ASKED
from images import noise, png, write_images


def labelled(catalog: Catalog) -> dict[str, str]:
    """path -> class name."""
    return {path: catalog.classes[label] for path, label in zip(catalog.paths, catalog.labels, strict=True)}


def reasons(catalog: Catalog) -> dict[str, str]:
    """path -> why it is not used."""
    return {one.path: one.reason for one in catalog.named}


# --- class folders ---------------------------------------------------------------------------------------------


def test_class_folders_are_classes_in_code_point_order(tmp_path):
    catalog = open_source(write_images(tmp_path, {"b": 3, "a": 4, "B": 3, "é": 3}))
    assert catalog.classes == ("B", "a", "b", "é")
    assert catalog.labels.dtype == np.int64
    assert catalog.labels.tolist() == [0] * 3 + [1] * 4 + [2] * 3 + [3] * 3
    assert catalog.paths[:3] == ("B/000.png", "B/001.png", "B/002.png")
    assert set(catalog.splits) == {None}
    assert (catalog.groups, catalog.named, catalog.source, catalog.root) == (None, (), "folder", tmp_path)
    assert catalog.image(0).is_file()


def test_relative_data_gives_an_absolute_root(tmp_path, monkeypatch):
    write_images(tmp_path / "data", {"a": 3, "b": 3})
    monkeypatch.chdir(tmp_path)
    assert open_source("data").root == tmp_path / "data"


def test_order_does_not_depend_on_the_file_system(tmp_path, monkeypatch):
    write_images(tmp_path, {"a": 5, "b": 5, "c": 5})
    first = open_source(tmp_path)
    original = os.scandir

    class Backwards:
        def __init__(self, path):
            self.entries = sorted(original(path), key=lambda entry: entry.name, reverse=True)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(os, "scandir", Backwards)
    second = open_source(tmp_path)
    assert (first.paths, first.classes, first.named) == (second.paths, second.classes, second.named)


def test_deeper_files_belong_to_the_top_folder(tmp_path):
    write_images(tmp_path, {"a": 2, "a/deep/er": 2, "b": 3})
    assert labelled(open_source(tmp_path))["a/deep/er/001.png"] == "a"


def test_suffix_may_be_in_any_case(tmp_path):
    write_images(tmp_path, {"a": 3, "b": 3})
    noise(4, 4).save(tmp_path / "a" / "x.JPG")
    assert "a/x.JPG" in open_source(tmp_path).paths


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        (".hidden.png", "hidden"),
        ("a/._000.png", "hidden"),
        ("a/.DS_Store", "hidden"),
        ("a/Thumbs.db", "left by a system or tool"),
        ("desktop.ini", "left by a system or tool"),
        ("a/notes.txt", "not an image suffix"),
        ("a/noextension", "not an image suffix"),
        ("README.md", "not an image suffix"),
        ("loose.png", "beside the class folders"),
    ],
)
def test_files_that_are_not_used_are_named_with_the_reason(tmp_path, path, reason):
    write_images(tmp_path, {"a": 3, "b": 3})
    (tmp_path / path).write_bytes(b"x")
    catalog = open_source(tmp_path)
    assert list(reasons(catalog)) == [path]
    assert reason in reasons(catalog)[path]
    assert len(catalog) == 6


@pytest.mark.parametrize("folder", [".ipynb_checkpoints", "__MACOSX", "__pycache__", ".git"])
def test_stray_folders_never_become_classes(tmp_path, folder):
    write_images(tmp_path, {"a": 3, "b": 3, folder: 4})
    catalog = open_source(tmp_path)
    assert catalog.classes == ("a", "b")
    assert "ignored" in reasons(catalog)[folder]


def test_folder_without_images_is_named_and_no_class(tmp_path):
    write_images(tmp_path, {"a": 3, "b": 3, "empty": 0, "text": 0})
    (tmp_path / "text" / "a.txt").write_text("x")
    catalog = open_source(tmp_path)
    assert catalog.classes == ("a", "b")
    assert reasons(catalog)["empty"] == reasons(catalog)["text"] == "a folder without images"


def test_links_are_followed_only_to_files_inside(tmp_path):
    root = write_images(tmp_path / "data", {"a": 3, "b": 3})
    outside = write_images(tmp_path / "outside", {"x": 1})
    (root / "a" / "out.png").symlink_to(outside / "x" / "000.png")
    (root / "a" / "passwd.png").symlink_to("/etc/passwd")
    (root / "out").symlink_to(outside / "x")
    (root / "a" / "up").symlink_to("..")
    (root / "a" / "circle.png").symlink_to("circle.png")
    (root / "a" / "broken.png").symlink_to("none.png")
    (root / "a" / "inside.png").symlink_to("../b/000.png")
    catalog = open_source(root)
    assert "a/inside.png" in catalog.paths
    assert len(catalog) == 7
    assert {path: reason.removeprefix("a symbolic link ") for path, reason in reasons(catalog).items()} == {
        "a/out.png": "out of the data folder: not followed",
        "a/passwd.png": "out of the data folder: not followed",
        "out": "out of the data folder: not followed",
        "a/up": "to a folder: not followed",
        "a/circle.png": "that leads in a circle: not followed",
        "a/broken.png": "to nothing that is a file: not followed",
    }


def test_data_may_itself_be_a_link(tmp_path):
    write_images(tmp_path / "real", {"a": 3, "b": 3})
    (tmp_path / "link").symlink_to("real")
    catalog = open_source(tmp_path / "link")
    assert (len(catalog), catalog.root) == (6, tmp_path / "link")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_pipes_are_named(tmp_path):
    write_images(tmp_path, {"a": 3, "b": 3})
    os.mkfifo(tmp_path / "a" / "pipe.png")
    assert "not a regular file" in reasons(open_source(tmp_path))["a/pipe.png"]


def test_names_that_are_not_utf8_are_named_and_can_be_printed(tmp_path):
    write_images(tmp_path, {"a": 3, "b": 3})
    try:
        Path(os.fsdecode(os.fsencode(tmp_path / "a") + b"/\xff.png")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system refuses such names")
    (named,) = open_source(tmp_path).named
    assert named == Named("a/\\udcff.png", "its name is not UTF-8: rename it")
    assert named.path.encode()


def test_class_names_are_stored_in_nfc_and_paths_as_they_are(tmp_path):
    decomposed = unicodedata.normalize("NFD", "é")
    catalog = open_source(write_images(tmp_path, {decomposed: 3, "b": 3}))
    assert catalog.classes == ("b", "é")
    assert catalog.image(5).is_file()


def test_folders_that_differ_only_in_unicode_form_are_an_error_naming_both(tmp_path):
    write_images(tmp_path, {unicodedata.normalize("NFD", "é"): 3, "é": 3, "b": 3})
    with pytest.raises(DataError, match=r"'e\\u0301' and '\\xe9'\. Merge them into one\."):
        open_source(tmp_path)


def test_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    write_images(tmp_path, {"a": 3, "b": 3, "c": 3})
    original = os.scandir

    def refuse(path):
        if str(path).rstrip("/").endswith("c"):
            raise PermissionError(13, "Permission denied")
        return original(path)

    monkeypatch.setattr(os, "scandir", refuse)
    catalog = open_source(tmp_path)
    assert catalog.classes == ("a", "b")
    assert reasons(catalog) == {"c": "the folder cannot be listed: Permission denied"}


def test_the_data_folder_is_never_written(tmp_path):
    write_images(tmp_path / "data", {"a": 3, "b": 3})
    (tmp_path / "data" / "a" / "notes.txt").write_text("x")
    everything = sorted([tmp_path / "data", *(tmp_path / "data").rglob("*")])
    before = [(path, path.stat().st_mtime_ns) for path in everything]
    for path in reversed(everything):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert len(open_source(tmp_path / "data")) == 6
        assert [(path, path.stat().st_mtime_ns) for path in everything] == before
        assert sorted([tmp_path / "data", *(tmp_path / "data").rglob("*")]) == everything
    finally:
        for path in everything:
            path.chmod(0o755)


# --- DATA that cannot be used ----------------------------------------------------------------------------------


def test_missing_data_names_the_nearest(tmp_path):
    (tmp_path / "flowers").mkdir()
    (tmp_path / "zebras").mkdir()
    with pytest.raises(DataError, match=r"There is no .*/flower\. Nearest beside it: flowers\. Give a folder"):
        open_source(tmp_path / "flower")


def test_missing_parent_is_a_plain_sentence(tmp_path):
    with pytest.raises(DataError, match=r"There is no .*/x/y\. Give a folder of images"):
        open_source(tmp_path / "x" / "y")


def test_file_that_is_no_data_is_refused(tmp_path):
    (tmp_path / "notes.doc").write_bytes(b"hello")
    with pytest.raises(DataError, match=r"notes\.doc is no data that burnish knows\. Give a folder of images, a table"):
        open_source(tmp_path / "notes.doc")
    (tmp_path / "data.zip").write_bytes(b"PK\x03\x04")
    with pytest.raises(DataError, match=r"data\.zip: a damaged zip archive"):
        open_source(tmp_path / "data.zip")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_data_that_is_a_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "data.csv")
    with pytest.raises(DataError, match="neither a folder nor a file"):
        open_source(tmp_path / "data.csv")


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [
        ({}, r"holds no images\. Give a folder with one folder of images per class"),
        ({"a": 0, "b": 0}, r"holds no images\. Give a folder"),
        ({".": 5}, r"holds 5 images but no class folders\. Move each image .* or list them in a CSV"),
        ({"a": 5}, r"holds the one class 'a', expected at least two\. Give each class a folder"),
        (
            {"a": 5, "rare": 2},
            r"class 'rare' has 2; expected two classes of at least 3, one each for train, val and test\. Add images",
        ),
        ({"a": 5, "r1": 1, "r2": 2}, r"class 'r1' has 1, 'r2' has 2; expected"),
        ({f"r{i}": 1 for i in range(7)}, r"'r4' has 1, and 2 more classes; expected"),
    ],
    ids=["empty", "empty folders", "flat", "one class", "too few", "two too few", "many too few"],
)
def test_too_little_data_says_what_came_and_what_to_do(tmp_path, counts, sentence):
    with pytest.raises(NotEnoughData, match=sentence):
        open_source(write_images(tmp_path, counts))


def test_what_was_set_aside_is_part_of_the_error(tmp_path):
    write_images(tmp_path, {"a": 3, ".b": 3})
    with pytest.raises(NotEnoughData, match=r"Not used: 1 file or folder \(1 not an image: ignored, hidden\)"):
        open_source(tmp_path)


def test_data_to_evaluate_on_may_be_small(tmp_path):
    catalog = open_source(write_images(tmp_path, {"a": 1}), for_training=False)
    assert (catalog.classes, len(catalog)) == (("a",), 1)


# --- split folders ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_split_folders_give_the_splits(tmp_path, val):
    write_images(tmp_path, {"train/a": 3, "train/b": 1, f"{val}/a": 1, "test/a": 2, "test/b": 1})
    catalog = open_source(tmp_path)
    assert (catalog.source, catalog.classes) == ("split folders", ("a", "b"))
    assert dict(zip(catalog.paths, catalog.splits, strict=True)) == {
        **{f"train/a/00{i}.png": "train" for i in range(3)},
        "train/b/000.png": "train",
        f"{val}/a/000.png": "val",
        "test/a/000.png": "test",
        "test/a/001.png": "test",
        "test/b/000.png": "test",
    }
    assert labelled(catalog)["test/b/000.png"] == "b"


def test_unknown_class_in_test_is_an_error_naming_the_nearest(tmp_path):
    write_images(tmp_path, {"train/cat": 3, "train/dog": 3, "test/cats": 1})
    with pytest.raises(
        DataError, match=r"test holds the class 'cats' \(test/cats/000.png\), .* Nearest in train: cat\."
    ):
        open_source(tmp_path)


def test_empty_class_folder_of_train_is_no_class(tmp_path):
    write_images(tmp_path, {"train/a": 3, "train/b": 3, "train/c": 0, "test/a": 1})
    catalog = open_source(tmp_path)
    assert catalog.classes == ("a", "b")
    assert reasons(catalog) == {"train/c": "a folder without images"}


def test_empty_split_and_loose_images_are_named(tmp_path):
    write_images(tmp_path, {"train/a": 3, "train/b": 3, "test/a": 1, "val": 0, "notes": 0, "train": 1, ".": 1})
    assert set(reasons(open_source(tmp_path))) == {"val", "notes", "train/000.png", "000.png"}


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [
        ({"val/a": 3, "test/a": 3}, r"holds test/ and val/ but no train/\. Add train/"),
        ({"train": 3, "test": 3}, r"holds test/ and train/ with images but no class folders in them\. Give each class"),
        (
            {"train/a": 3, "test/a": 3, "more/a": 3},
            r"Beside test/ and train/ stands the folder 'more', which is no split",
        ),
        ({"train/a": 3, "val/a": 3, "valid/a": 3}, r"train/, val/ and valid/ name the same split twice"),
    ],
    ids=["no train", "unsorted", "a stranger", "val twice"],
)
def test_split_folders_that_are_not_whole_are_errors(tmp_path, counts, sentence):
    with pytest.raises(DataError, match=sentence):
        open_source(write_images(tmp_path, counts))


@pytest.mark.parametrize(
    "names", [("training_set", "test_set"), ("seg_train/seg_train", "seg_test/seg_test", "seg_pred/x")]
)
def test_folders_called_nearly_as_splits_are_not_taken_for_classes(tmp_path, names):
    write_images(tmp_path, {f"{name}/{inside}": 2 for name in names for inside in ("cat", "dog")})
    with pytest.raises(
        DataError, match=r"which look like splits .* Rename them to te?r?a?i?n?s?t?/ and te?r?a?i?n?s?t?/"
    ):
        open_source(tmp_path)


def test_classes_with_a_split_word_in_their_names_are_classes(tmp_path):
    write_images(tmp_path, {"test tube": 3, "train station": 3, "boat": 3})
    write_images(tmp_path / "nested", {"test tube/full": 3, "train station/day": 3, "boat/red": 3})
    assert open_source(tmp_path / "nested").classes == ("boat", "test tube", "train station")
    (tmp_path / "nested").rename(tmp_path.parent / f"{tmp_path.name}-nested")
    assert open_source(tmp_path).classes == ("boat", "test tube", "train station")
    write_images(tmp_path / "deep", {"test tube/full": 3, "boat/red": 3, "boat/white": 3})
    assert open_source(tmp_path / "deep").classes == ("boat", "test tube")


def test_blanks_around_bars_make_no_class_of_their_own(tmp_path):
    write_images(tmp_path, {"x": 4})
    lines = [f"x/{at:03d}.png,{label}" for at, label in enumerate(("cat | sofa", "sofa", "cat", "cat|sofa"))]
    (tmp_path / "data.csv").write_text("path,label\n" + "\n".join(lines))
    catalog = open_source(tmp_path / "data.csv")
    assert catalog.several and catalog.classes == ("cat", "sofa")


@pytest.mark.parametrize("row", [
    r'{"path": "a.png", "label": "x\ud83d"}', r'{"path": "a.png", "label": ["x", "y\ud83d"]}',
    r'{"path": "a.png", "label": "x", "group": "\ud83d"}',
])  # fmt: skip
def test_half_characters_are_refused_with_their_line(tmp_path, row):
    (tmp_path / "data.jsonl").write_text('{"path": "b.png", "label": "x"}\n' + row)
    with pytest.raises(DataError, match=r"line 2: .* holds half a character"):
        open_source(tmp_path / "data.jsonl")


def test_to_evaluate_a_test_folder_alone_is_enough(tmp_path):
    catalog = open_source(write_images(tmp_path, {"test/a": 1, "test/b": 1}), for_training=False)
    assert (catalog.classes, set(catalog.splits)) == (("a", "b"), {"test"})


def test_training_and_testing_are_splits(tmp_path):
    write_images(tmp_path, {"Training/a": 3, "Training/b": 3, "Testing/a": 2, "Testing/b": 2})
    catalog = open_source(tmp_path)
    assert catalog.classes == ("a", "b")
    assert (catalog.splits.count("train"), catalog.splits.count("test")) == (6, 4)


@pytest.mark.parametrize("beside", ["unlabelled", "eval/a", "test_images"])
def test_a_stranger_beside_the_only_split_folder_is_an_error_not_a_class(beside, tmp_path):
    write_images(tmp_path, {"train/a": 3, "train/b": 3, beside: 3})
    with pytest.raises(DataError, match=f"Beside train/ stands the folder '{beside.partition('/')[0]}'"):
        open_source(tmp_path)


@pytest.mark.parametrize("folder", ["train", "train/steam"])
def test_a_class_called_train_is_a_class(tmp_path, folder):
    catalog = open_source(write_images(tmp_path, {"car": 3, "plane": 3, folder: 3}))
    assert (catalog.classes, catalog.source) == (("car", "plane", "train"), "folder")


def test_the_same_class_in_two_unicode_forms_in_train_and_test_is_one(tmp_path):
    write_images(tmp_path, {"train/é": 3, "train/b": 3, f"test/{unicodedata.normalize('NFD', 'é')}": 1})
    assert open_source(tmp_path).classes == ("b", "é")


# --- CSV -------------------------------------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path):
    """Writes a CSV beside the images a/000.png … a/004.png and b/…, and returns its path."""
    write_images(tmp_path, {"a": 5, "b": 5})

    def write(*lines: str, encoding: str = "utf-8", newline: str = "\n") -> Path:
        (tmp_path / "list.csv").write_bytes(newline.join([*lines, ""]).encode(encoding))
        return tmp_path / "list.csv"

    return write


SIX = [f"{name}/00{number}.png,{name}" for name in "ab" for number in range(3)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_csv_lists_paths_and_labels(table, encoding, newline):
    file = table("path,label", *SIX, encoding=encoding, newline=newline)
    catalog = open_source(file)
    assert labelled(catalog) == dict(line.split(",") for line in SIX)
    assert (catalog.source, catalog.root, catalog.groups, set(catalog.splits)) == ("csv", file.parent, None, {None})


def test_csv_values_may_be_quoted_and_columns_in_any_order(table):
    lines = [f'"{name}, the ""first""", 7,{name}/00{number}.png' for name in "ab" for number in range(3)]
    catalog = open_source(table("Label,ignored, PATH ", *lines))
    assert catalog.classes == ('a, the "first"', 'b, the "first"')


def test_csv_paths_are_normalised_and_blank_lines_skipped(table):
    assert "a/000.png" in open_source(table("path,label", "./a//000.png,a", "", *SIX[1:])).paths


def test_csv_splits_and_groups_are_read(table):
    lines = [f"a/00{i}.png,a,{split},g{i % 2}" for i, split in enumerate(("train", "VALID", "validation", "test"))]
    catalog = open_source(table("path,label,split,group", *lines, "b/000.png,b,train,"))
    assert catalog.splits == ("train", "val", "val", "test", "train")
    assert catalog.groups == ("g0", "g1", "g0", "g1", "b/000.png")


def test_empty_split_and_group_columns_count_as_absent(table):
    catalog = open_source(table("path,label,split,group", *(f"{line},," for line in SIX)))
    assert (set(catalog.splits), catalog.groups) == ({None}, None)


def test_csv_labels_that_differ_in_unicode_form_are_one_class(table):
    decomposed = unicodedata.normalize("NFD", "é")
    lines = ["a/000.png,é", f"a/001.png,{decomposed}", "a/002.png,é", *SIX[3:]]
    assert open_source(table("path,label", *lines)).classes == ("b", "é")


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (["file,class", *SIX], r"list\.csv has the columns 'file', 'class'; expected path and label, .* Rename them"),
        (["path|label", "a/000.png|a"], r"has the columns 'path|label'; expected path and label, .* by commas"),
        ([""], r"has the columns none; expected path and label"),
        (["c," * 50_000 + "d" * 50_000], r"has the columns 'c', .*'c' and 49,981 more; expected path and label.{,90}$"),
        (
            ["path,label" + ",c" * 50_000, *SIX],
            r"has 2 cells, expected 50002 \(path, label(, c){18} and 49,982 more\).{,50}$",
        ),
        (["path,label,path", "a,b,c"], r"has the column 'path' more than once"),
        (
            ["path,label", *SIX, "a/003.png,"],
            r"list\.csv, line 8: the label is empty\. Fill it in or delete the line",
        ),
        (["path,label", *SIX, ",a"], r"line 8: the path is empty"),
        (["path,label", *SIX, "a/003.png,a,b"], r"line 8: it has 3 cells, expected 2 \(path, label\)"),
        (["path,label", '"a/000.png,a'], r"line 2: it is not CSV"),
        (["path,label", "../a.png,a"], r"line 2: the path '../a.png' is not allowed: .* without '\.\.'"),
        (["path,label", "a/../a/000.png,a"], r"line 2: the path .* is not allowed"),
        (["path,label", "a\\..\\..\\x.png,a"], r"line 2: the path .* is not allowed"),
        (["path,label", "/etc/passwd,a"], r"line 2: the path '/etc/passwd' is not allowed"),
        (["path,label", "C:\\a.png,a"], r"line 2: the path .* is not allowed"),
        (
            ["path,label,split", "a/000.png,a,tset"],
            r"line 2: the split 'tset' is unknown, nearest: test\. Use train, val",
        ),
        (["path,label,split", "a/000.png,a,train", "a/001.png,a,"], r"line 3: the split is empty, as in 1 of 2 lines"),
        (["path,label", *SIX, "a/000.png,b"], r"line 8: 'a/000\.png' is 'b' here and 'a' in line 2\. Keep one"),
        (
            ["path,label,split", "a/000.png,a,train", "./a/000.png,a,test"],
            r"is 'a', test here and 'a', train in line 2",
        ),
        (["path,label", "a/9.png,a"], r"lists 1 images and none of them is a file \(first: a/9.png: no such file"),
        (["path,label"], r"lists 0 images and none of them is a file\. Expected paths relative to"),
        (
            ["path,label", "a/000.png,a", "b/000.png,b"],
            r"class 'a' has 1, 'b' has 1; expected two classes of at least 3",
        ),
        (["path,label,split", "a/000.png,a,train", "a/001.png,a,train"], r"the one class 'a', expected at least two"),
        (
            ["path,label,split", *(f"{line},train" for line in SIX), "a/003.png,A,val"],
            r"val holds the class 'A' \(a/003",
        ),
    ],
)
def test_csv_mistakes_are_sentences_with_the_line(table, lines, sentence):
    with pytest.raises(DataError, match=sentence):
        open_source(table(*lines))


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_csv_that_is_not_utf8_is_refused(table, encoding):
    with pytest.raises(DataError, match=r"list\.csv is not UTF-8 .* Save it as 'CSV UTF-8'"):
        open_source(table("path,label", "a/000.png,é", encoding=encoding))


def test_listed_files_that_are_missing_or_no_files_are_named_with_the_line(table):
    file = table("path,label", *SIX, "a/9.png,a", "a,a", "b/x\0.png,b", "q\0q/a.png,b")
    assert reasons(open_source(file)) == {
        "a/9.png": "no such file (line 8)",
        "a": "not a regular file (line 9)",
        "b/x\0.png": "no such file (line 10)",
        "q\0q/a.png": "no such file (line 11)",
    }


def test_lines_that_say_the_same_again_are_named(table):
    catalog = open_source(table("path,label", *SIX, SIX[0]))
    assert len(catalog) == 6
    assert reasons(catalog) == {"a/000.png": "listed again, first in line 2 (line 8)"}


def test_scanned_is_used_plus_named_even_for_a_missing_file_listed_twice(table):
    catalog = open_source(table("path,label", *SIX, "a/9.png,a", "a/9.png,a"))
    assert (len(catalog), len(catalog.named)) == (6, 2)


@pytest.mark.parametrize("link", ["a/out.png", "out"])
def test_csv_paths_through_links_out_of_the_folder_are_errors(table, tmp_path_factory, link):
    outside = write_images(tmp_path_factory.mktemp("outside"), {"x": 1})
    file = table("path,label", *SIX, f"{'a/out.png' if link != 'out' else 'out/000.png'},a")
    (file.parent / link).symlink_to(outside / "x" if link == "out" else outside / "x" / "000.png")
    with pytest.raises(DataError, match=r"line 8: the path .* leads out of the table's folder .* Copy the image"):
        open_source(file)


def test_csv_paths_through_links_inside_the_folder_are_used(table):
    file = table("path,label", *SIX, "a/in.png,a")
    (file.parent / "a" / "in.png").symlink_to("../b/004.png")
    assert "a/in.png" in open_source(file).paths


# --- demo ------------------------------------------------------------------------------------------------------


def test_demo_is_written_once_and_is_all_the_digits(tmp_path, monkeypatch):
    monkeypatch.setenv("BURNISH_CACHE", str(tmp_path / "cache"))
    catalog = open_source("demo")
    assert (len(catalog), catalog.classes, catalog.source) == (1797, tuple("0123456789"), "demo")
    assert catalog.root.is_relative_to(tmp_path / "cache")
    assert [path.name for path in catalog.root.parent.iterdir()] == ["demo-digits"]
    monkeypatch.setattr(demo, "_write_images", lambda folder: pytest.fail("written again"))
    assert open_source("demo").paths == catalog.paths


def few_digits(folder: Path) -> None:
    """Stands in for the demo: 8 images, quickly."""
    write_images(folder, {"0": 4, "1": 4})


@pytest.fixture
def small_demo(tmp_path, monkeypatch):
    """The demo with 8 images."""
    monkeypatch.setenv("BURNISH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(demo, "_write_images", few_digits)
    monkeypatch.setattr(demo, "COUNT", 8)


def test_demo_means_the_demo_even_beside_a_folder_of_that_name(small_demo, tmp_path, monkeypatch):
    write_images(tmp_path / "demo", {"mine": 3, "yours": 3})
    monkeypatch.chdir(tmp_path)
    assert open_source("demo").source == "demo"
    assert open_source("./demo").classes == ("mine", "yours")
    assert open_source(Path("demo")).classes == ("mine", "yours")


def test_interrupted_writing_of_the_demo_leaves_nothing_behind(small_demo, tmp_path, monkeypatch):
    def interrupted(folder: Path) -> None:
        few_digits(folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "_write_images", interrupted)
    with pytest.raises(KeyboardInterrupt):
        open_source("demo")
    assert not list((tmp_path / "cache").rglob("*.png"))


def test_demo_written_by_another_process_meanwhile_is_used(small_demo, monkeypatch, tmp_path):
    def slow(folder: Path) -> None:
        few_digits(folder)
        few_digits(folder.parent / "demo-digits")

    monkeypatch.setattr(demo, "_write_images", slow)
    catalog = open_source("demo")
    assert len(catalog) == 8
    assert [path.name for path in catalog.root.parent.iterdir()] == ["demo-digits"]


def test_changed_demo_says_what_to_delete(small_demo):
    catalog = open_source("demo")
    catalog.image(0).unlink()
    with pytest.raises(DataError, match=r"holds 7 images, expected the 8 of the demo\. Delete the folder"):
        open_source("demo")


def test_demo_without_a_place_to_write_says_what_to_set(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BURNISH_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"cannot be written to .* Set BURNISH_CACHE to a folder that can be written"):
        open_source("demo")


# --- afterwards ------------------------------------------------------------------------------------------------


def test_without_moves_unreadable_files_to_named(tmp_path):
    catalog = open_source(write_images(tmp_path, {"a": 3, "b": 3, ".x": 1}))
    less = without(catalog, [Named("a/001.png", "truncated")])
    assert less.paths == ("a/000.png", "a/002.png", "b/000.png", "b/001.png", "b/002.png")
    assert less.labels.tolist() == [0, 0, 1, 1, 1]
    assert reasons(less) == {"a/001.png": "truncated", ".x": "not an image: ignored, hidden"}
    assert len(less) + len(less.named) == len(catalog) + len(catalog.named)
    assert (len(less.splits), less.classes) == (5, catalog.classes)


def test_without_keeps_the_groups_of_the_others(table):
    catalog = open_source(table("path,label,group", *(f"{line},g{i}" for i, line in enumerate(SIX))))
    assert without(catalog, [Named("a/000.png", "x")]).groups == ("g1", "g2", "g3", "g4", "g5")


def test_class_that_loses_all_its_images_is_named_with_the_first_reason(tmp_path):
    catalog = open_source(write_images(tmp_path, {"a": 3, "b": 3}))
    lost = [Named(f"b/00{number}.png", f"reason {number}") for number in (2, 0, 1)]
    sentence = r"All 3 images of class 'b' cannot be used \(first: b/000\.png: reason 0\)\. Replace the files or remove"
    with pytest.raises(NotEnoughData, match=sentence):
        without(catalog, lost)


def test_without_refuses_files_that_are_not_in_the_catalogue(tmp_path):
    catalog = open_source(write_images(tmp_path, {"a": 3, "b": 3}))
    with pytest.raises(ValueError, match=re.escape("['c/0.png']")):
        without(catalog, [Named("c/0.png", "x")])


def test_what_is_left_may_be_too_little_to_train_on(tmp_path):
    catalog = open_source(write_images(tmp_path, {"a": 3, "b": 3}))
    require_usable(catalog)
    with pytest.raises(NotEnoughData, match=r"class 'a' has 2; .* Not used: 1 file or folder \(1 truncated\)"):
        require_usable(without(catalog, [Named("a/001.png", "truncated")]))


def test_class_whose_training_images_are_all_lost_is_an_error(tmp_path):
    catalog = open_source(write_images(tmp_path, {"train/a": 2, "train/b": 2, "train/c": 1, "test/c": 2}))
    with pytest.raises(DataError, match=r"test holds the class 'c' .* which train does not\. Nearest in train: a, b\."):
        require_usable(without(catalog, [Named("train/c/000.png", "truncated")]))


def test_runs_inside_the_data_are_no_images_of_it(tmp_path):
    """`cd photos && burnish fit .` twice: the first run's pictures are not a class of the second."""
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(8):
            Image.new("RGB", (8, 8), (30 * number, len(name), 0)).save(tmp_path / name / f"{number}.png")
    before = open_source(tmp_path)
    for place in ("runs/photos-1", "own"):
        (tmp_path / place / "tensorboard").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / place / "tensorboard" / "thumbnails.png")
        (tmp_path / place / "run.json").write_text(json.dumps(asdict(Recipe())))
    after = open_source(tmp_path)
    assert (after.paths, after.classes, after.digest) == (before.paths, before.classes, before.digest)
    (tmp_path / "runs" / "photos-2").mkdir()
    (tmp_path / "runs" / "photos-2" / ".lock").touch()  # of the run that looks
    after = open_source(tmp_path)
    assert {one.path for one in after.named} == {"runs", "runs/photos-1", "runs/photos-2", "own"}
    assert all("a run of burnish" in one.reason for one in after.named)
    assert (RUN_FILE, RUN_LOCK) == (ASKED, _LOCK)


@pytest.mark.parametrize("text", ["{}", "[1]", "not JSON", '{"method": "mine", "speed": 3}'])
def test_a_file_of_that_name_of_ones_own_hides_no_class(text, tmp_path):
    catalog = open_source(write_images(tmp_path, {"cat": 8, "dog": 8}))
    (tmp_path / "cat" / "run.json").write_text(text)
    assert open_source(tmp_path).paths == catalog.paths


def test_images_of_kinds_that_are_not_read_are_told_as_such(tmp_path):
    (tmp_path / "cat").mkdir()
    for name in ("1.PSD", "2.jp2", "3.jxl"):
        (tmp_path / "cat" / name).write_bytes(b"content")
    with pytest.raises(NotEnoughData, match=r"cat/\S+ \([\w ]+ is not read: save it as JPEG"):
        open_source(tmp_path)


def test_paths_as_windows_writes_them_are_found(tmp_path):
    write_images(tmp_path, {"a": 3, "b": 3})
    rows = [f"{path.parent.name}\\{path.name},{path.parent.name}" for path in sorted(tmp_path.rglob("*.png"))]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows, "a\\none.png,a", "a/000.png,a"]))
    catalog = open_source(tmp_path / "list.csv")
    assert catalog.paths[0] == "a/000.png" and len(catalog) == 6
    assert [one.path for one in catalog.named] == ["a/000.png", "a\\none.png"]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_names_that_begin_or_end_with_blanks_are_found_and_blanks_around_others_do_no_harm(kind, tmp_path):
    write_images(tmp_path, {"a": 3, "b": 3})
    for number, name in enumerate((" .png", " x.png", "x.png ", "y.png")):
        (tmp_path / "a" / name).write_bytes(png(50 + number))
    (tmp_path / " a").mkdir()
    (tmp_path / " a" / "z.png").write_bytes(png(60))
    paths = ["a/ .png", "a/ x.png", "a/x.png ", " a/z.png", "  a/y.png ", "b/000.png", " b/001.png", "b\\002.png "]
    rows = [(path, path.strip()[0]) for path in paths]
    file = tmp_path / f"list.{kind}"
    if kind == "parquet":
        pa = pytest.importorskip("pyarrow")
        pq = pytest.importorskip("pyarrow.parquet")
        pq.write_table(pa.table({"path": paths, "label": [label for _, label in rows]}), file)
    elif kind == "jsonl":
        file.write_text("\n".join(json.dumps({"path": path, "label": label}) for path, label in rows))
    else:
        file.write_text("\n".join(["path,label", *(f"{path},{label}" for path, label in rows)]))
    catalog = open_source(file)
    found = {" a/z.png", "a/ .png", "a/ x.png", "a/x.png ", "a/y.png", "b/000.png", "b/001.png", "b/002.png"}
    assert set(catalog.paths) == found and not catalog.named


def test_a_path_is_within_the_folder_whatever_blanks_stand_before_it(table):
    with pytest.raises(DataError, match=r"line 2: the path '/etc/passwd' is not allowed"):
        open_source(table("path,label", " /etc/passwd,a", *SIX))
    with pytest.raises(DataError, match=r"line 2: the path '\.\./x\.png' is not allowed"):
        open_source(table("path,label", " ../x.png,a", *SIX))


def test_folders_within_classes_are_said(tmp_path):
    write_images(tmp_path / "one", {"fern/red": 2, "fern/blue": 2, "moss/blue": 4})
    said = "classes hold folders of their own (fern holds blue/ and red/); the outermost counts"
    assert folders_within(open_source(tmp_path / "one")) == said
    write_images(tmp_path / "two", {"train/fern/red": 2, "train/fern/blue": 2, "train/moss": 4, "test/fern": 1})
    assert folders_within(open_source(tmp_path / "two")) == said
    write_images(tmp_path / "three", {"fern/images": 4, "moss": 4})
    assert folders_within(open_source(tmp_path / "three")) == ""


def test_a_path_that_is_taken_as_it_stands_is_one_that_pathlib_would_not_change_nor_lead_out():
    parts = ["a", "..", ".", "", "b c", "...", ".a", "a.", "c:", "\\", "é\n"]
    paths = {sep.join(some) for sep in ("/", "\\") for count in (1, 2, 3) for some in product(parts, repeat=count)}
    plain = [path for path in paths if _PLAIN_PATH.fullmatch(path)]
    assert "a/b c/..." in plain and len(plain) > 50
    for path in plain:
        windows = PureWindowsPath(path)
        assert str(PurePosixPath(path)) == path and not PurePosixPath(path).is_absolute()
        assert not windows.anchor and ".." not in windows.parts
