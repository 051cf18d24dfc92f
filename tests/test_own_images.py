"""The images that a run was made from are found again, on its own sides of the split; where they are not, that is said."""

import shutil

import numpy as np
import pytest
from PIL import Image

from burnish import api
from burnish.data.catalog import SPLIT_WORDS
from burnish.errors import DataError, NotARun, RecipeError
from burnish.record.folder import sides_in
from burnish.ship.bundle import package_folder
from burnish.use.own import own_images
from conftest import write_shapes

SETTINGS = {"model": "random:test_resnet", "image_size": 64, "budget": None, "cache": "off", "method": "probe"}


@pytest.fixture
def run(images, tmp_path):
    return api.fit(images, out=tmp_path / "run", **SETTINGS).folder


def test_each_image_is_on_the_side_where_the_run_had_it(run, images):
    write_shapes(images, images=14)  # two more of each class, which the run has not seen
    catalog, splits = own_images(run)
    sides = sides_in(run / "splits.csv")
    assert {path: side for path, side in zip(catalog.paths, catalog.splits, strict=True)} == sides
    for word in SPLIT_WORDS:
        assert {catalog.paths[row] for row in getattr(splits, word)} == {p for p, side in sides.items() if side == word}


def test_classes_are_the_models_own_in_its_order(run, images):
    (images / "amber").mkdir()
    Image.new("RGB", (40, 32), (200, 150, 0)).save(images / "amber/1.png")
    catalog, _ = own_images(run)
    assert catalog.classes == ("blue", "green", "red")
    assert all(catalog.label(row) == path.split("/")[0] for row, path in enumerate(catalog.paths))


def test_several_classes_an_image_keep_their_names(images, tmp_path):
    label = {"red": "red|warm", "green": "warm", "blue": "blue"}
    rows = [(path.relative_to(tmp_path), label[path.parent.name]) for path in sorted(images.glob("*/*"))]
    table = tmp_path / "table.csv"
    table.write_text("path,label\n" + "".join(f"{path},{label}\n" for path, label in rows))
    run = api.fit(table, out=tmp_path / "run", **SETTINGS)
    with table.open("a") as file:
        Image.new("RGB", (40, 32)).save(tmp_path / "more.png")
        file.write("more.png,also|warm\n")
    catalog, _ = own_images(run.folder)
    assert catalog.classes == run.classes and catalog.labels.shape == (len(rows), 3)
    assert {catalog.label(row) for row in range(len(catalog))} == {"red|warm", "warm", "blue"}


def test_images_that_are_gone_moved_or_changed_are_told(run, images, tmp_path):
    moved = tmp_path / "moved"
    shutil.move(images, moved)
    with pytest.raises(RecipeError, match="is not to be found from here; name the data after the run"):
        own_images(run)
    assert len(own_images(run, moved)[0]) == 36
    first = sorted(moved.glob("red/*"))[0]
    pixels = np.array(Image.open(first))
    Image.fromarray(255 - pixels).save(first)
    with pytest.raises(DataError, match=rf"have another content now \(first: red/{first.name}\)"):
        own_images(run, moved)
    first.unlink()
    with pytest.raises(DataError, match=r"those that the data no longer has: 1 \(first: red/"):
        own_images(run, moved)


def test_a_package_alone_does_not_know_its_images(run, images, tmp_path):
    shutil.copytree(package_folder(run), tmp_path / "alone")
    with pytest.raises(NotARun, match=r"holds no splits\.csv, so that nobody can say which images"):
        own_images(tmp_path / "alone", images)


def test_an_arm_of_a_comparison_has_the_comparisons_images(images, tmp_path):
    table = api.compare(images, models=["random:test_resnet"], methods=["probe"], out=tmp_path / "race",
                        budget=None, image_size=64, cache="off")  # fmt: skip
    arm = next((table.folder / "arms").iterdir())
    assert set(own_images(arm, images)[0].paths) == set(sides_in(table.folder / "splits.csv"))
