"""Layouts and images as people bring them: what is meant is said, where it is not what would be learnt."""

from __future__ import annotations

import io
import struct
import zipfile

import numpy as np
import pytest
from PIL import Image

from burnish import api
from burnish.data.audit.classes import class_findings, divided_by
from burnish.data.audit.findings import in_words
from burnish.data.sources import open_source
from burnish.errors import DataError, NotEnoughData
from burnish.ship.images import expand
from conftest import write_shapes
from images import write_images

TINY = {"model": "random:test_resnet", "image_size": 32, "budget": None, "method": "probe", "cache": "off"}


def _kinds(catalog):
    return [one.kind for one in class_findings(catalog, None)]


@pytest.mark.parametrize("name", ["labels.csv", "labels.tsv", "labels.jsonl"])
def test_a_table_that_says_other_classes_than_the_folders_is_named(name, tmp_path):
    write_shapes(tmp_path / "data", images=4, classes=("images", "masks"))
    rows = [(f"images/{number:03d}.png", "cat" if number % 2 else "dog") for number in range(4)]
    if name.endswith("jsonl"):
        text = "\n".join(f'{{"path": "{path}", "label": "{label}"}}' for path, label in rows)
    else:
        text = "path,label\n" + "\n".join(f"{path},{label}" for path, label in rows)
        text = text.replace(",", "\t") if name.endswith("tsv") else text
    (tmp_path / "data" / name).write_text(text)
    with pytest.raises(DataError, match=rf"holds {name}, which calls images/000.png 'dog'"):
        open_source(tmp_path / "data")
    assert open_source(tmp_path / "data" / name, for_training=False).classes == ("cat", "dog")


def test_a_table_that_says_what_the_folders_say_is_no_matter(tmp_path):
    write_shapes(tmp_path / "data", images=4)
    rows = [f"{name}/000.png,{name}" for name in ("blue", "green", "red")]
    (tmp_path / "data" / "labels.csv").write_text("path;label\nx;y\n")
    (tmp_path / "data" / "list.csv").write_text("path,label\n" + "\n".join(rows))
    (tmp_path / "data" / "odd.csv").write_bytes(b"\xff\xfepath,label\0")
    assert len(open_source(tmp_path / "data")) == 12


@pytest.mark.parametrize(
    "line", ["0.5", "null", '"path"', '["path", "label"]', "true", '{"path": {"a": 1}, "label": []}']
)
def test_json_lines_of_anything_beside_the_folders_are_no_table(line, tmp_path):
    write_shapes(tmp_path / "data", images=4)
    (tmp_path / "data" / "scores.jsonl").write_text(f"{line}\n{line}\n")
    assert len(open_source(tmp_path / "data")) == 12


@pytest.mark.parametrize(
    "said", [{"blue": "0", "green": "1", "red": "2"}, {"blue": "Blue", "green": "tench", "red": "a|b"}]
)
def test_a_table_that_calls_the_folders_otherwise_is_no_matter(said, tmp_path):
    write_shapes(tmp_path / "data", images=4)
    rows = [f"{name}/{number:03d}.png,{word}" for name, word in said.items() for number in range(4)]
    (tmp_path / "data" / "labels.csv").write_text("path,label\n" + "\n".join(rows))
    rows = [f"blue/{number:03d}.png,{'xy'[number % 2]},0.9" for number in range(4)]
    (tmp_path / "data" / "answers.csv").write_text("path,label,probability\n" + "\n".join(rows))
    assert len(open_source(tmp_path / "data")) == 12


def test_classes_that_hold_the_same_folders_are_told(tmp_path):
    for top in ("color", "grayscale"):
        write_shapes(tmp_path / top, images=3)
    catalog = open_source(tmp_path)
    assert catalog.classes == ("color", "grayscale")
    assert "classes_within" in _kinds(catalog)
    write_shapes(tmp_path / "color" / "other", images=3)
    assert "classes_within" not in _kinds(open_source(tmp_path))


@pytest.mark.parametrize(
    ("separator", "labels", "expected"),
    [
        (";", ["cat", "cat;dog", "dog;bird"], ["cat;dog", "dog;bird"]),
        (",", ["cat, red", "dog, red"], ["cat, red", "dog, red"]),
        (",", ["['a', 'b']", "['a']", "['b', 'c']"], ["['a', 'b']", "['b', 'c']"]),
        (",", ["Pepper,_bell", "Pepper,_other", "Tomato"], []),
        (",", ["Pepper,_bell", "Pepper,_other", "Pepper"], ["Pepper,_bell", "Pepper,_other"]),
        (",", ["tench, Tinca tinca", "goldfish, Carassius auratus", "cock"], []),
        (",", ["maillot", "maillot, tank suit", "corn", "ear, spike, capitulum", "lynx, catamount"], []),
    ],
)
def test_labels_that_may_be_several_classes_are_told(separator, labels, expected):
    assert divided_by(separator, labels) == expected


def test_missing_values_and_numbers_that_are_one_are_told(tmp_path):
    write_shapes(tmp_path, images=3, classes=("1", "001", "nan", "N-A", "None"))
    found = {one.subject: one.kind for one in class_findings(open_source(tmp_path), None) if one.kind != "thin_class"}
    assert found == {"nan": "missing_label", "None": "missing_label", "001": "twin_class"}


def test_an_audit_of_one_class_says_so(tmp_path):
    write_shapes(tmp_path / "photos", images=3)
    found = api.audit(tmp_path, model=None)
    (one,) = [one for one in found.findings if one.kind == "one_class"]
    assert str(tmp_path / "photos") in one.evidence


def test_deep_images_that_look_black_are_not_proposed_for_removal(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        for number in range(4):
            grey = rng.integers(0, 256, (32, 32)).astype(np.uint16) * (8 if name != "c" else 256)
            Image.fromarray(grey).save(tmp_path / name / f"{number}.png")
    Image.new("L", (32, 32), 7).save(tmp_path / "c" / "blank.png")
    found = api.audit(tmp_path, model=None).findings
    kinds = {
        (one.kind, path.partition("/")[0]) for one in found for path in one.paths if one.kind in ("blank", "narrow")
    }
    assert kinds == {("narrow", "a"), ("narrow", "b"), ("blank", "c")}


def test_most_of_a_class_is_not_proposed_for_removal_as_blank(tmp_path):
    write_shapes(tmp_path, images=4)
    for number in range(4):
        Image.new("RGB", (32, 32), (number, number, number)).save(tmp_path / "red" / f"{number:03d}.png")
    found = [one for one in api.audit(tmp_path, model=None).findings if one.kind in ("blank", "narrow")]
    assert {one.kind for one in found} == {"narrow"} and len(found) == 4
    assert not any("12 bits" in one.evidence for one in found)


def test_photos_in_a_format_that_is_not_read_are_not_called_no_images(tmp_path):
    write_shapes(tmp_path, images=4)
    (tmp_path / "red" / "a.jxl").write_bytes(b"\x00\x00\x00\x0cJXL " + bytes(40))
    (tmp_path / "red" / "b.jpg").write_bytes(b"\x00\x00\x00\x0cJXL " + bytes(40))
    found = api.audit(tmp_path, model=None)
    assert [one.paths for one in found.of("unread_format")] == [("red/a.jxl",), ("red/b.jpg",)]
    assert all("JPEG XL is not read" in one.evidence for one in found.of("unread_format")) and not found.of(
        "not_an_image"
    )
    assert in_words({"unread_format": 2}) == "2 files in a format that is not read"


def test_what_is_fine_is_not_blank(tmp_path):
    """In a small square a texture and a scratch are gone."""
    rng = np.random.default_rng(0)
    for name, level in (("a", 90), ("b", 180)):
        (tmp_path / name).mkdir()
        for number in range(4):
            grain = (level + rng.normal(0, 12, (100, 2000))).clip(0, 255).astype(np.uint8)
            Image.fromarray(grain).save(tmp_path / name / f"grain{number}.png")
            plate = Image.new("L", (600, 600), level)
            plate.paste(level // 2, (10 + number, 20, 11 + number, 80))
            plate.save(tmp_path / name / f"scratch{number}.png")
    Image.fromarray((90 + rng.normal(0, 1, (300, 300))).round().astype(np.uint8)).save(tmp_path / "a" / "lid.png")
    found = [one for one in api.audit(tmp_path, model=None).findings if one.kind in ("blank", "narrow")]
    assert [(one.kind, one.paths) for one in found] == [("blank", ("a/lid.png",))]


def test_images_without_a_suffix_are_named(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "0", "JPEG")
    with pytest.raises(NotEnoughData, match="a JPEG without its suffix: rename it"):
        open_source(tmp_path)


def test_a_held_out_folder_beside_train_is_to_be_renamed(tmp_path):
    for name in ("train", "dev"):
        write_shapes(tmp_path / name, images=3)
    with pytest.raises(DataError, match="rename it to val/ or test/"):
        open_source(tmp_path)


def test_a_folder_of_train_without_classes_speaks_of_tables(tmp_path):
    write_shapes(tmp_path / "x", images=3, classes=("train", "test"))
    with pytest.raises(DataError, match="columns path,label,split"):
        open_source(tmp_path / "x")


def test_columns_of_zeros_and_ones_are_explained(tmp_path):
    (tmp_path / "t.csv").write_text("path,cat,dog\na.png,1,0\n")
    with pytest.raises(DataError, match="into one column label, separated by"):
        open_source(tmp_path / "t.csv")


@pytest.mark.parametrize("address", ["https://example.com/x.zip", "s3://bucket/x", "file:///tmp/x"])
def test_an_address_as_data_is_told_to_be_one(address):
    with pytest.raises(DataError, match="is an address, and data is not fetched"):
        open_source(address)


def test_a_spreadsheet_is_told_to_be_one(tmp_path):
    with zipfile.ZipFile(tmp_path / "t.xlsx", "w") as out:
        out.writestr("[Content_Types].xml", "<x/>")
        out.writestr("xl/workbook.xml", "<x/>")
    with pytest.raises(DataError, match="office program"):
        open_source(tmp_path / "t.xlsx")


def _tiff(channels):
    """An uncompressed TIFF of so many channels of 8 bits."""
    pixels = bytes(16 * 16 * channels)
    tags = (
        (256, 4, 16), (257, 4, 16), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, channels), (278, 4, 16),
        (279, 4, len(pixels)),
    )  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize("channels", [4, 5, 13])
def test_a_tiff_of_many_channels_is_named(channels, tmp_path):
    write_shapes(tmp_path, images=3)
    (tmp_path / "red" / "many.tif").write_bytes(_tiff(channels))
    found = [one for one in api.audit(tmp_path, model=None).findings if one.paths == ("red/many.tif",)]
    assert f"a TIFF of {channels} channels is not read" in found[0].evidence and found[0].kind == "unread_format"


def test_pages_of_a_tiff_are_told(tmp_path):
    write_shapes(tmp_path, images=3)
    pages = [Image.fromarray(np.random.default_rng(n).integers(0, 256, (40, 40), np.uint8)) for n in range(3)]
    pages[0].save(tmp_path / "red" / "pages.tif", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "red" / "page.tif")
    found = [one.paths for one in api.audit(tmp_path, model=None).findings if one.kind == "animated"]
    assert found == [("red/pages.tif",)]


def test_lists_of_images_and_bytes_are_data(tmp_path):
    rng = np.random.default_rng(1)
    arrays = [rng.integers(0, 256, (30 + n, 40, 3), np.uint8) for n in range(12)]
    pictures = [Image.fromarray(array) for array in arrays]
    files = []
    for picture in pictures:
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        files.append(buffer.getvalue())
    pictures[0].save(tmp_path / "0.png")
    mixed = [tmp_path / "0.png", *pictures[1:6], *files[6:9], *arrays[9:]]
    labels = ["a", "b"] * 6
    catalogs = [open_source((images, labels)) for images in (arrays, pictures, files, mixed)]
    result = api.fit((pictures, labels), out=tmp_path / "run", **TINY)
    assert result.facts["counts"]["train"] > 0
    for catalog in catalogs:
        for row in range(12):
            source = catalog.image(row)
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                assert np.array_equal(np.asarray(image.convert("RGB")), arrays[int(catalog.paths[row])])
    with pytest.raises(DataError, match="Image 1 is an int"):
        open_source(([arrays[0], 3], ["a", "b"]))


def test_floats_are_told_what_to_do():
    with pytest.raises(DataError, match=r"Give them as uint8: images \* 255 if 1 is white"):
        open_source((np.zeros((4, 8, 8, 3), np.float32), list("abab")))
    items = [(np.full((3, 8, 8), -1.0, np.float32), label) for label in "aabbaabb"]
    with pytest.raises(
        DataError, match=r"from -1 to -1, expected floats from 0 to 1, or uint8; give it as it is before Normalize"
    ):
        api.fit(items, **TINY)


def test_predict_follows_links_to_images(tmp_path):
    write_shapes(tmp_path / "elsewhere", images=2)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").symlink_to(tmp_path / "elsewhere" / "red" / "000.png")
    (tmp_path / "in" / "folder").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "none.png").symlink_to(tmp_path / "nothing.png")
    found = expand([tmp_path / "in"])
    assert found[0] == tmp_path / "in" / "a.png"
    assert len(found) == 3 and all("symbolic link" in one.reason for one in found[1:])


# ---- which folders are classes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names", [("fold1", "fold2", "fold3"), ("2019", "2020"), ("site_a1", "site_a2"), ("Site 1", "Site 2")]
)
def test_folders_of_folds_and_years_are_not_taken_for_classes(tmp_path, names):
    for name in names:
        write_images(tmp_path / name, {"cat": 3, "dog": 3})
    if names[0] == "site_a1":  # a name that may be a class's
        assert set(open_source(tmp_path).classes) == set(names)
        return
    with pytest.raises(DataError, match=r"each with the same folders.*cat/ and dog/.*path,label,group"):
        open_source(tmp_path)


def test_classes_that_are_divided_alike_stay_classes(tmp_path):
    for name in ("cat", "dog"):
        write_images(tmp_path / name, {"indoor": 3, "outdoor": 3})
    assert open_source(tmp_path).classes == ("cat", "dog")


def test_a_folder_around_the_class_folders_is_named(tmp_path):
    write_images(tmp_path / "dataset", {"cat": 3, "dog": 3})
    with pytest.raises(NotEnoughData, match=r"one class 'dataset'.*Is it .*dataset that you mean\?"):
        open_source(tmp_path)


def test_splits_within_class_folders_are_not_mixed(images, tmp_path):
    for file in sorted(images.rglob("*.png")):
        inner = file.parent / ("test" if file.stem < "004" else "Train")
        inner.mkdir(exist_ok=True)
        file.rename(inner / file.name)
    with pytest.raises(DataError, match=r"splits within its folders \('blue' holds .*Put the splits outside"):
        open_source(images)
    for file in list(images.rglob("*.png")):
        inner = file.parent.parent / ("indoor" if file.parent.name == "test" else "Train")
        inner.mkdir(exist_ok=True)
        file.rename(inner / file.name)
    assert open_source(images).classes == ("blue", "green", "red"), "other folders in classes are theirs"


def test_a_state_of_another_tool_beside_class_folders_is_no_data_set(tmp_path):
    write_images(tmp_path, {"a": 3, "b": 3})
    (tmp_path / "state.json").write_text("{}")
    assert open_source(tmp_path).source == "folder"
