"""Images in memory: what arrays and Pillow images are read as, and how soon."""

from __future__ import annotations

import io
import struct
import time
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from burnish.data.contents import file_of
from burnish.data.pixels import Need, decode
from burnish.data.sources import open_source
from burnish.errors import UnreadableImage
from burnish.ship.predictor import opened
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
    with pytest.raises(UnreadableImage, match=r"is int64 \[24, 24, 3\], expected uint8 or uint16.*astype\('uint8'\)"):
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
