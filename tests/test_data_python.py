"""Data sets and arrays in Python: read by one thread at a time, each image its own pixels, and what is none is named."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import burnish
from burnish.data.pixels import decode
from burnish.data.sources import open_source
from burnish.errors import BurnishError, DataError, UnreadableImage
from burnish.ship.images import opened
from images import noise, png, read

QUICK = {"model": "random:test_resnet", "budget": None, "image_size": 64, "seed": 0, "cache": "off"}


# ---- data sets -------------------------------------------------------------------------------------------------------


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


# ---- images and their labels -----------------------------------------------------------------------------------------


PATHS = ["a.png", "b.png", "c.png"]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ((None, ["a", "b", "a"]), "The images are None, expected"),
        ((PATHS, None), "The labels are None, expected"),
        ((["a.png", None, "c.png"], ["a", "b", "a"]), "Image 1 is None, expected"),
        (((path for path in PATHS), ["a", "b", "a"]), "The images are a generator, expected"),
        ((PATHS, (label for label in "aba")), "The labels are a generator, expected"),
        ((PATHS, "aba"), "The labels are a str, expected"),
        ((PATHS, [0.0, 1.0, float("nan")]), r"Label 2 is missing \(nan\)"),
        ((PATHS, ["a", None, "b"]), r"Label 1 is missing \(None\)"),
        ((PATHS, [0.0, 0.5, 1.0]), "Label 1 is a fraction"),
        ((PATHS, [[True, False], ["a"], ["b"]]), "Label 0 is a list of other things than class names or numbers"),
        ((PATHS, ["a", "b", 10**400]), "Label 2 is a number of over 300 digits"),
        ((PATHS, ["a", "b", -(10**5000)]), "Label 2 is a number of over 300 digits"),
    ],
    ids=[
        "no images",
        "no labels",
        "no image",
        "generator",
        "generator of labels",
        "text",
        "nan",
        "none",
        "fraction",
        "flags",
        "large number",
        "very large number",
    ],
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


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([0.0, 1.0, 0.0], ("0", "1")),
        (np.array([0.0, 7.0, 7.0]), ("0", "7")),
        (torch.tensor([1.0, 2.0, 1.0]), ("1", "2")),
        ([True, False, True], ("False", "True")),
        (np.array([True, False, True]), ("False", "True")),
    ],
    ids=["floats", "float array", "float tensor", "bools", "bool array"],
)
def test_labels_are_taken_as_a_table_of_text_would_say_them(labels, classes):
    assert open_source((PATHS, labels), for_training=False).classes == classes


def test_json_lines_take_whole_floats_and_flags_as_a_csv_does(tmp_path):
    for name in PATHS:
        (tmp_path / name).write_bytes(png(1))
    for told, classes in (("0.0 1.0 0.0", ("0", "1")), ("true false true", ("False", "True"))):
        lines = [f'{{"path": "{path}", "label": {label}}}\n' for path, label in zip(PATHS, told.split(), strict=True)]
        (tmp_path / "list.jsonl").write_text("".join(lines))
        assert open_source(tmp_path / "list.jsonl", for_training=False).classes == classes
    (tmp_path / "list.jsonl").write_text('{"path": "a.png", "label": NaN}\n')
    with pytest.raises(DataError, match="the label is not a number"):
        open_source(tmp_path / "list.jsonl", for_training=False)


@pytest.mark.parametrize("names", [("image", "label"), ("img", "labels")])
def test_items_may_be_mappings_with_an_image_and_a_label(names):
    items = [dict(zip(names, (noise(8, 8, seed=at), at % 2), strict=True)) for at in range(8)]
    catalog = open_source(items)
    assert catalog.classes == ("0", "1") and len(read(catalog).ids) == 8
    with pytest.raises(DataError, match="has the entries picture, label; expected image and label"):
        open_source([{"picture": noise(8, 8), "label": 0}])


def test_a_data_set_with_columns_is_asked_for_its_labels_without_its_images():
    class Names:
        names = ("cat", "dog")

    class Set:
        column_names, features, asked = ["image", "label"], {"label": Names}, 0

        def __len__(self):
            return 8

        def __getitem__(self, at):
            if at == "label":
                return [0, 1] * 4
            self.asked += 1
            return {"image": noise(8, 8, seed=at), "label": at % 2}

    data = Set()
    assert open_source(data).classes == ("cat", "dog") and data.asked == 0


class Frame(dict):
    """As pandas has it, as far as it is asked."""

    columns = property(lambda self: list(self))


def test_a_table_in_memory_is_taken_as_one_in_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for at, name in enumerate(PATHS):
        (tmp_path / name).write_bytes(png(at))
    words = {"split": ["train", "valid", "test"], "group": ["p1", float("nan"), "p3"]}
    table = Frame({"path": PATHS, "Label": [0.0, 1.0, 0.0], **words})
    catalog = open_source(table, for_training=False)
    told = {path: (catalog.label(row), catalog.splits[row]) for row, path in enumerate(catalog.paths)}
    assert told == {"a.png": ("0", "train"), "b.png": ("1", "val"), "c.png": ("0", "test")}
    assert set(catalog.groups) == {"p1", "b.png", "p3"} and len(read(catalog).ids) == 3
    with pytest.raises(
        DataError, match=r"has the columns 'file', 'label'; expected path and label.*\(table.path, table.label\)"
    ):
        open_source(Frame(file=PATHS, label=[0, 1, 0]))
    assert open_source(Frame(image=PATHS, label=[0, 1, 0]), for_training=False).paths == ("a.png", "c.png", "b.png")
    with pytest.raises(DataError, match="The split of row 1 is empty"):
        open_source(Frame(path=PATHS, label=[0, 1, 0], split=["train", None, "test"]))


def test_a_tensor_of_other_numbers_is_told_with_the_shape_that_was_given():
    with pytest.raises(UnreadableImage, match=r"is int64 \[3, 20, 30\]"):
        opened(torch.zeros(3, 20, 30, dtype=torch.int64))


def test_a_data_set_without_a_single_image_is_refused_by_an_audit_as_by_a_run(tmp_path):
    class Set:
        targets = [0, 1] * 6

        def __len__(self):
            return 12

        def __getitem__(self, at):
            return torch.full((3, 8, 8), float("nan")), self.targets[at]

    with pytest.raises(BurnishError, match=r"All 6 images of class '0' cannot be used .*NaN"):
        burnish.audit(Set(), model=None)
