"""Splits that are given apart: {"train": …, "val": …, "test": …}."""

from __future__ import annotations

import numpy as np
import pytest

import burnish
from burnish.data.sources import open_source
from burnish.errors import DataError
from conftest import write_shapes

SMALL = {"model": "random:test_resnet", "image_size": 32, "budget": None, "method": "probe", "cache": "off"}


def arrays(each, names=("blue", "green")):
    rng = np.random.default_rng(each)
    return rng.integers(0, 255, (each * len(names), 24, 24, 3), np.uint8), [name for name in names for _ in range(each)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("parts")
    write_shapes(root / "here" / "mine", images=8)
    write_shapes(root / "there", images=4)
    return root


def test_folders_anywhere_are_the_splits_under_their_own_names(folders):
    catalog = open_source({"train": folders / "here" / "mine", "test": str(folders / "there")})
    assert catalog.root == folders and catalog.contents is None and len(catalog) == 36
    assert {path.split("/")[0]: split for path, split in zip(catalog.paths, catalog.splits, strict=True)} == {
        "here": "train", "there": "test",
    }  # fmt: skip
    assert all(catalog.image(row).is_file() for row in range(len(catalog)))
    assert catalog.label(0) == "blue" and "here/mine/blue/000.png" in catalog.paths


def test_data_sets_with_names_of_their_own_are_the_splits(tmp_path):
    class Items(list):
        """Items as torchvision's data sets have them."""

        def __init__(self, classes, each):
            self.classes = classes
            super().__init__((image, number // each) for number, image in enumerate(arrays(each, classes)[0]))

    parts = {
        "Train": Items(["cat", "dog"], 6),
        "validation": Items(["dog", "cat"], 2),
        "test": Items(["cat", "dog"], 3),
    }
    catalog = open_source(parts)
    assert catalog.classes == ("cat", "dog") and len(catalog) == 22
    assert [catalog.splits.count(name) for name in ("train", "val", "test")] == [12, 4, 6]
    row = catalog.paths.index("val/0")
    assert catalog.label(row) == "dog" and isinstance(catalog.image(row), bytes)


def test_files_and_arrays_may_be_parts_of_one_set_and_a_run_learns_from_it(folders, tmp_path):
    whole = {"train": folders / "here" / "mine", "test": arrays(4)}
    result = burnish.fit(whole, out=tmp_path / "run", **SMALL)
    assert result.facts["counts"]["test"] == 8 and result.classes == ("blue", "green", "red")
    assert result.evaluate(whole).scores.n == 8


def test_train_alone_is_split_as_any_other_data():
    assert set(open_source({"train": arrays(5)}).splits) == {None}


def test_groups_are_kept_and_an_image_without_one_is_its_own(tmp_path):
    write_shapes(tmp_path / "a", images=4, classes=("x", "y"))
    rows = [f"a/{name}/{number:03d}.png,{name},{'film' if number < 2 else ''}" for name in "xy" for number in range(4)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,group", *rows]))
    write_shapes(tmp_path / "b", images=2, classes=("x", "y"))
    catalog = open_source({"train": tmp_path / "list.csv", "test": tmp_path / "b"})
    groups = dict(zip(catalog.paths, catalog.groups, strict=True))
    assert groups["a/x/000.png"] == groups["a/y/001.png"] == "film"
    assert groups["a/x/002.png"] == "a/x/002.png" and groups["b/x/000.png"] == "b/x/000.png"


def test_several_classes_an_image_in_one_part_are_several_in_all():
    pictures = arrays(3, ("a", "b", "c"))[0]
    catalog = open_source(
        {"train": (pictures, [["a", "b"], ["b"], ["c"]] * 3), "test": (pictures[:3], ["a", "b", "c"])}
    )
    assert catalog.several and catalog.classes == ("a", "b", "c")


def test_a_bad_file_of_a_part_is_named_under_its_part(folders, tmp_path):
    write_shapes(tmp_path / "new", images=4)
    (tmp_path / "new" / "red" / "notes.txt").write_text("no image")
    catalog = open_source({"train": arrays(4, ("blue", "green", "red")), "test": tmp_path / "new"})
    assert [one.path for one in catalog.named] == ["test/red/notes.txt"]
    assert catalog.scanned == len(catalog) + 1


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"path": [1], "label": [2]}, r"a dictionary with 'path', 'label'; expected its splits: \{\"train\""),
        ({}, "an empty dictionary"),
        ({"val": arrays(3), "valid": arrays(3)}, "gives val twice"),
    ],
)
def test_a_dictionary_of_other_things_is_a_sentence(data, sentence):
    with pytest.raises(DataError, match=sentence):
        open_source(data)


def test_one_file_in_two_parts_and_splits_within_a_part_are_refused(folders, tmp_path):
    here = folders / "here" / "mine"
    with pytest.raises(DataError, match=r"000\.png is given as train and as test"):
        open_source({"train": here, "test": here})
    for name in ("train", "test"):
        write_shapes(tmp_path / "split" / name, images=4)
    with pytest.raises(DataError, match="given as train has splits of its own"):
        open_source({"train": tmp_path / "split", "test": here})
