"""Images in memory: what arrays and Pillow images are read as, and how soon."""

from __future__ import annotations

import io
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import burnish
from burnish.data.contents import file_of
from burnish.data.pixels import Need, decode
from burnish.data.sources import open_source
from burnish.errors import DataError, UnreadableImage
from burnish.ship.images import opened
from burnish.train.features import BATCH
from images import quarters, read

SIDE = 24


def file_holding(picture, suffix):
    file = io.BytesIO()
    picture.save(file, suffix)
    return file.getvalue()


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("white", [1023, 65535])
def test_an_array_of_deep_greys_is_read_as_its_file_is(kind, white):
    greys = np.random.default_rng(0).integers(0, white + 1, (SIDE, SIDE)).astype(np.uint16)
    need = Need(SIDE, white)
    expected = np.asarray(decode(file_holding(Image.fromarray(greys), "PNG"), at_least=need))
    for array in (greys, greys[:, :, None], greys[None]):
        assert np.array_equal(np.asarray(opened(kind(array), at_least=need)), expected)
    assert np.array_equal(np.asarray(opened(greys.astype(">u2"), at_least=need)), expected)


def png_of_16_bits(colours):
    """A PNG of uint16 [h w 3], which Pillow itself cannot write."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colours)
    height, width = colours.shape[:2]
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    chunks = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_an_array_of_deep_colours_is_read_as_its_file_is():
    colours = np.random.default_rng(0).integers(0, 65536, (SIDE, SIDE, 3)).astype(np.uint16)
    expected = np.asarray(decode(png_of_16_bits(colours)))
    for array in (colours, colours.transpose(2, 0, 1), torch.from_numpy(colours)):
        assert np.array_equal(np.asarray(opened(array)), expected)
    assert not np.asarray(opened(np.zeros_like(colours))).any()


def test_a_mask_is_black_and_white():
    mask = np.random.default_rng(0).random((SIDE, SIDE)) < 0.5
    for array in (mask, torch.from_numpy(mask)):
        assert np.array_equal(np.asarray(opened(array))[:, :, 0], mask * np.uint8(255))


def test_colours_of_8_bits_in_a_wider_type_are_not_taken_for_black():
    with pytest.raises(UnreadableImage, match=r"no number over 255.*astype\('uint8'\)"):
        opened(np.full((SIDE, SIDE, 3), 200, np.uint16))
    with pytest.raises(
        UnreadableImage,
        match=r"is int64 \[24, 24, 3\], expected uint8, uint16 or floats from 0 to 1.*astype\('uint8'\)",
    ):
        opened(np.full((SIDE, SIDE, 3), 200))


def test_arrays_of_deep_greys_are_trained_on_as_their_files_are():
    greys = np.random.default_rng(0).integers(0, 4096, (12, SIDE, SIDE)).astype(np.uint16)
    for images in (greys, list(greys), torch.from_numpy(greys)):
        catalog = open_source((images, ["a", "b"] * 6))
        assert not read(catalog).named
        image = catalog.image(catalog.paths.index("03"))
        assert np.array_equal(
            np.asarray(decode(image)), np.asarray(decode(file_holding(Image.fromarray(greys[3]), "PNG")))
        )


MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "LAB", "HSV", "I", "I;16", "F")


def pictures():
    """An image of each mode of Pillow's; of some with a colour that is transparent."""
    for mode in MODES:
        by = {"La": "LA", "RGBa": "RGBA", "PA": "P", "LAB": "RGB", "HSV": "RGB", "I;16": "I"}.get(mode, mode)
        if mode in ("La", "RGBa"):
            coloured = quarters().convert("RGBA")
            coloured.putalpha(Image.linear_gradient("L").resize(coloured.size))
            yield coloured.convert(by).convert(mode)
        elif mode == "F":
            yield Image.fromarray(np.linspace(0, 1, SIDE * SIDE, dtype=np.float32).reshape(SIDE, SIDE))
        else:
            yield (quarters().convert("L") if by == "I" else quarters()).convert(by).convert(mode)
    for mode, clear in (("L", 29), ("RGB", (255, 0, 0)), ("P", 3), ("I;16", 29)):
        keyed = (quarters().convert("L").convert("I") if mode == "I;16" else quarters()).convert(mode)
        keyed.info["transparency"] = clear
        yield keyed
    turned = quarters()
    turned.getexif()[0x0112] = 6
    yield turned


@pytest.mark.parametrize("picture", list(pictures()), ids=lambda one: f"{one.mode}{' with a key' * bool(one.info)}")
def test_an_image_in_memory_has_the_pixels_of_its_file(picture):
    assert np.array_equal(np.asarray(opened(picture)), np.asarray(decode(file_of(picture, "it"))))


def test_a_large_image_in_memory_is_not_packed_into_a_file_first():
    large = np.random.default_rng(0).integers(0, 256, (1500, 2000, 3), np.uint8)

    def seconds(read):
        began = time.perf_counter()
        read()
        return time.perf_counter() - began

    packed = min(seconds(lambda: file_of(large, "it")) for _ in range(3))
    assert min(seconds(lambda: opened(large)) for _ in range(5)) < packed / 2


def test_an_image_in_memory_that_is_too_large_or_has_no_pixels_is_a_sentence(monkeypatch):
    monkeypatch.setattr("burnish.data.pixels.MAX_PIXELS", SIDE * SIDE - 1)
    with pytest.raises(UnreadableImage, match="24 x 24 pixels, more than"):
        opened(np.zeros((SIDE, SIDE), np.uint8))
    with pytest.raises(UnreadableImage, match="no pixels"):
        opened(np.zeros((0, 5, 3), np.uint8))


# ---- what is given for images ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(shapes, tmp_path_factory):
    quick = {"model": "random:test_resnet", "method": "probe", "budget": None, "image_size": 64, "seed": 0}
    return burnish.fit(shapes, out=tmp_path_factory.mktemp("runs") / "shapes", cache="off", **quick)


class Set:
    """A map-style data set that never ends by itself, as torch's need not."""

    def __init__(self, files, item):
        self.files, self.item = files, item

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        return self.item(Image.open(self.files[index % len(self.files)]), index)


@pytest.mark.parametrize(
    "item",
    [lambda image, at: image, lambda image, at: (image, at), lambda image, at: {"image": image, "label": at}],
    ids=["image", "pair", "mapping"],
)
def test_a_data_set_that_a_run_learns_from_can_be_asked_about(run, shapes, item):
    files = sorted(shapes.rglob("*.png"))[:5]
    found = run.predict(Set(files, item))
    assert [one.probabilities for one in found] == [one.probabilities for one in run.predict(files)]


def test_a_table_is_asked_about_by_its_column_path(run, shapes):
    files = [str(file) for file in sorted(shapes.rglob("*.png"))[:3]]

    class Table(dict):
        columns = property(list)

    assert run.predict(Table(label=[0, 1, 2], Path=files)) == run.predict(files)
    with pytest.raises(DataError, match="has the columns 'file'; expected path"):
        run.predict(Table(file=files))


def test_images_that_come_one_by_one_are_asked_for_a_batch_at_a_time(run, shapes):
    given, seen = [], []

    def coming():
        for file in sorted(shapes.rglob("*.png")) * 3:
            given.append(file)
            yield Image.open(file)

    for answer in run.predictor.stream(coming()):
        seen.append(answer)
        assert len(given) - len(seen) < 2 * BATCH
    assert len(seen) == len(given) > 3 * BATCH
    asked = len(given)
    assert len(run.predict(coming())) == len(given) - asked == len(seen)


@pytest.mark.parametrize("wrong", [None, 3])
def test_what_is_no_image_at_all_is_a_sentence(run, wrong):
    with pytest.raises(DataError, match="expected a path, bytes, a Pillow image"):
        run.predict(wrong)
    with pytest.raises(UnreadableImage, match="give the image alone"):
        opened((Image.new("RGB", (8, 8)), 1))


def test_images_in_memory_are_explained(run, shapes, tmp_path):
    file = min(shapes.rglob("*.png"))
    rows, _ = burnish.explain(run.folder, [Image.open(file), file], out=tmp_path / "maps")
    assert rows[0].probability == pytest.approx(rows[1].probability, abs=1e-6)
    assert all(row.file and Path(row.file).is_file() for row in rows)


def test_a_file_as_text_is_a_short_sentence_and_a_home_is_found(run, shapes, tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"there is no A{40}… \(10,000 characters\).*base64.b64decode") as told:
        run.predict("A" * 10_000)
    assert len(str(told.value)) < 250
    monkeypatch.setenv("HOME", str(shapes))
    file = min(shapes.rglob("*.png"))
    assert run.predict(f"~/{file.relative_to(shapes)}")[0].label == run.predict(file)[0].label


def test_a_data_loader_is_refused_and_its_data_set_named(run):
    pictures, labels = torch.zeros(8, 3, 16, 16), torch.arange(8) % 2
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(pictures, labels), batch_size=4)
    for asked in (lambda: burnish.fit(loader), lambda: run.predict(loader)):
        with pytest.raises(DataError, match=r"DataLoader, which gives batches\. Give its data set: loader\.dataset"):
            asked()
    assert len(run.predict(loader.dataset)) == 8
