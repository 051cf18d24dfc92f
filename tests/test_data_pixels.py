"""The one decoder: every kind of image is right or named, and the views are those the network was trained on."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import subprocess
import sys
import threading
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, TiffImagePlugin, features

import burnish.data.pixels as pixels
from burnish.data.looks import look_at
from burnish.data.pixels import decode, read_all, stored, view
from burnish.data.sources import open_source
from burnish.data.upright import as_rgb
from burnish.errors import UnreadableImage
from burnish.terms import INTERPOLATIONS, Preprocess
from images import BLACK, BLUE, GREEN, RED, WHITE, encoded, noise, quarters, write_images


def corners(image: Image.Image) -> list[tuple[int, ...]]:
    """The colours well inside the four quarters, rounded to full or none: JPEG is not exact."""
    last = image.width - 4
    at = [(3, 3), (last, 3), (3, last), (last, last)]
    return [tuple(255 * (channel > 127) for channel in image.getpixel(place)) for place in at]


# --- formats and modes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM", "GIF"])
def test_lossless_formats_are_decoded_exactly(format):
    original = quarters()
    assert np.array_equal(np.array(decode(encoded(original, format))), np.array(original))


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
def test_lossy_formats_are_decoded_nearly(format):
    image = decode(encoded(quarters(), format, quality=95))
    assert corners(image) == [RED, GREEN, BLUE, WHITE]


def test_webp_lossless_is_exact():
    assert np.array_equal(np.array(decode(encoded(noise(), "WEBP", lossless=True))), np.array(noise()))


def test_decoded_image_is_plain_rgb_without_metadata():
    for original in (quarters(), quarters().convert("P"), quarters().convert("L"), quarters().convert("RGBA")):
        image = decode(encoded(original, "PNG", dpi=(300, 300)))
        assert type(image) is Image.Image
        assert (image.mode, image.info) == ("RGB", {})


@pytest.mark.parametrize("format", ["GIF", "TIFF", "WEBP", "PNG", "MPO"])
def test_of_several_frames_the_first_is_read(format):
    first, second = Image.new("RGB", (8, 8), RED), Image.new("RGB", (8, 8), BLUE)
    content = encoded(first, format, save_all=True, append_images=[second])
    assert np.abs(np.array(decode(content)).astype(int) - np.array(RED)).max() <= 2


# EXIF orientation -> what the four corners of `quarters` show once it is applied (EXIF 2.3, tag 274).
TURNED = {
    1: [RED, GREEN, BLUE, WHITE],
    2: [GREEN, RED, WHITE, BLUE],
    3: [WHITE, BLUE, GREEN, RED],
    4: [BLUE, WHITE, RED, GREEN],
    5: [RED, BLUE, GREEN, WHITE],
    6: [BLUE, RED, WHITE, GREEN],
    7: [WHITE, GREEN, BLUE, RED],
    8: [GREEN, WHITE, RED, BLUE],
}


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", TURNED)
def test_exif_orientation_is_applied(format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert corners(decode(encoded(quarters(), format, exif=exif))) == TURNED[orientation]


@pytest.mark.parametrize("damage", [b"MM\x00\x2a\xff\xff\xff\xff", b"no TIFF header", b""])
def test_damaged_exif_counts_as_upright(damage):
    for format in ("JPEG", "PNG", "WEBP"):
        assert corners(decode(encoded(quarters(), format, exif=b"Exif\x00\x00" + damage))) == TURNED[1]


@pytest.mark.parametrize("orientation", [0, 77, 300, 65535])
def test_impossible_orientation_counts_as_upright(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(quarters(), "JPEG", exif=exif)
    assert corners(decode(content)) == TURNED[1]
    write_images(tmp_path, {"a": 3, "b": 3})
    (tmp_path / "a" / "odd.jpg").write_bytes(content)
    catalog = open_source(tmp_path)
    looks = look_at(catalog, np.arange(len(catalog)), workers=1)
    assert looks.headers["orientation"].tolist() == [1] * 7


def test_the_first_look_decodes_nothing(tmp_path, monkeypatch):
    """Of a PNG Pillow would, to find EXIF behind its pixels."""
    write_images(tmp_path, {"a": 3, "b": 3})
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "a" / "turned.png").write_bytes(encoded(quarters(), "PNG", exif=exif))
    catalog = open_source(tmp_path)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("it was decoded"))
    looks = look_at(catalog, np.arange(len(catalog)), workers=1)
    assert looks.headers["orientation"].tolist() == [1, 1, 1, 6, 1, 1, 1] and looks.headers["width"].all()


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_composited_over_white(format):
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    image.putpixel((1, 1), (0, 0, 255, 255))
    image.putpixel((2, 2), (0, 0, 0, 51))
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    decoded = decode(encoded(image, format, **options))
    assert [decoded.getpixel((at, at)) for at in range(3)] == [WHITE, BLUE, (204, 204, 204)]


def test_grey_with_alpha_is_composited_over_white():
    image = Image.new("LA", (2, 1), (0, 0))
    image.putpixel((1, 0), (100, 255))
    decoded = decode(encoded(image, "PNG"))
    assert [decoded.getpixel((at, 0)) for at in range(2)] == [WHITE, (100, 100, 100)]


def palette_image() -> Image.Image:
    """Two pixels: red, blue."""
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putpixel((1, 0), 1)
    return image


@pytest.mark.parametrize(
    ("transparency", "expected"),
    [(0, [WHITE, BLUE]), (b"\x00\xff", [WHITE, BLUE]), (b"\x33\x00", [(255, 204, 204), WHITE])],
    ids=["index", "bytes", "half"],
)
def test_transparent_palette_colours_are_composited_over_white(transparency, expected):
    decoded = decode(encoded(palette_image(), "PNG", transparency=transparency))
    assert [decoded.getpixel((at, 0)) for at in range(2)] == expected


def test_palette_without_transparency_keeps_its_colours():
    decoded = decode(encoded(palette_image(), "PNG"))
    assert [decoded.getpixel((at, 0)) for at in range(2)] == [RED, BLUE]


def test_transparent_gif_is_composited_over_white():
    decoded = decode(encoded(palette_image(), "GIF", transparency=0))
    assert [decoded.getpixel((at, 0)) for at in range(2)] == [WHITE, BLUE]


@pytest.mark.parametrize(
    ("mode", "key", "key_colour"), [("RGB", (0, 255, 0), (0, 255, 0)), ("L", 7, 7), ("I;16", 700, 700), ("1", 0, 0)]
)
def test_colour_key_of_png_is_transparent(mode, key, key_colour):
    image = Image.new(mode, (2, 1), 255 if mode == "1" else 0 if mode != "RGB" else (0, 0, 0))
    image.putpixel((1, 0), key_colour)
    decoded = decode(encoded(image, "PNG", transparency=key))
    assert decoded.getpixel((1, 0)) == WHITE
    assert decoded.getpixel((0, 0)) == (WHITE if mode == "1" else BLACK)


@pytest.mark.parametrize(
    ("depth", "key", "row", "expected"),
    [
        (1, 1, b"\x50", [0, 255, 0, 255]),
        (2, 1, b"\x1b", [0, 255, 170, 255]),
        (4, 3, b"\x03\xf1", [0, 255, 255, 17]),
        (4, 15, b"\x03\xf1", [0, 51, 255, 17]),
        (8, 3, bytes([0, 3, 255, 1]), [0, 255, 255, 1]),
    ],
)
def test_colour_keys_count_in_the_bits_of_the_file(depth, key, row, expected):
    before = chunk(b"tRNS", key.to_bytes(2, "big"))
    decoded = decode(png(4, 1, depth=depth, colour=0, rows=b"\x00" + row, before=before))
    assert [decoded.getpixel((at, 0))[0] for at in range(4)] == expected


def test_a_colour_key_of_sixteen_bits_is_transparent():
    before = chunk(b"tRNS", struct.pack(">3H", 257, 514, 771))
    row = struct.pack(">6H", 257, 514, 771, 60000, 60000, 60000)
    decoded = decode(png(2, 1, depth=16, colour=2, rows=b"\x00" + row, before=before))
    assert [decoded.getpixel((at, 0)) for at in range(2)] == [WHITE, (234, 234, 234)]


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_an_alpha_that_was_never_set_hides_nothing(format):
    image = quarters().convert("RGBA")
    image.putalpha(0)
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    assert decode(encoded(image, format, **options)).tobytes() == quarters().tobytes()


def test_premultiplied_alpha_is_undone():
    image = Image.new("LA", (1, 1), (100, 128)).convert("La")
    red, green, blue = as_rgb(image, 65535).getpixel((0, 0))
    assert red == green == blue
    assert abs(red - (100 * 128 + 255 * 127) / 255) <= 2


def test_palette_with_alpha_channel_is_composited_over_white():
    image = Image.new("PA", (2, 1))
    image.putpalette([*RED])
    image.putpixel((0, 0), (0, 0))
    image.putpixel((1, 0), (0, 255))
    assert [as_rgb(image, 65535).getpixel((at, 0)) for at in range(2)] == [WHITE, RED]


def test_sixteen_bit_grey_is_scaled_and_not_clipped():
    values = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    decoded = decode(encoded(Image.fromarray(values), "PNG"))
    assert [decoded.getpixel((at, 0))[0] for at in range(6)] == [0, 0, 1, 1, 128, 255]


def test_so_many_pixels_of_large_images_are_decoded_at_a_time_as_one_may_have():
    room, held, most, small = pixels._Room(), 0, 0, threading.Event()
    lock = threading.Lock()

    def work(count):
        nonlocal held, most
        with room(count):
            with lock:
                held += count
                most = max(most, held)
            time.sleep(0.002)
            with lock:
                held -= count

    sizes = [40_000_000, 90_000_000, 20_000_000, 100_000_000] * 6
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, sizes))
    assert 40_000_000 < most <= pixels.MAX_PIXELS and not room.held
    with room(pixels.MAX_PIXELS), ThreadPoolExecutor(1) as pool:  # a small one does not wait
        pool.submit(lambda: room(1_000_000).__enter__() or small.set()).result(timeout=10)
    assert small.is_set()
    with pytest.raises(OSError), room(pixels.MAX_PIXELS):
        raise OSError
    assert not room.held


@pytest.mark.parametrize("mode", ["RGBA", "RGB", "LA", "L", "1", "P", "CMYK"])
def test_bands_of_an_image_come_to_the_pixels_of_the_whole(mode, monkeypatch):
    image = noise(13, 11, seed=3)
    image.putalpha(noise(13, 11, seed=4).convert("L"))
    image = image.convert(mode) if mode != "P" else image.convert("RGB").quantize(16)
    if mode == "P":
        image.info["transparency"] = bytes(range(0, 256, 16))
    whole = np.asarray(as_rgb(image, 65535))
    monkeypatch.setattr("burnish.data.upright._BAND_PIXELS", 40)  # three rows
    assert (np.asarray(as_rgb(image, 65535)) == whole).all()


def test_an_alpha_that_is_set_in_the_last_rows_alone_counts_in_all(monkeypatch):
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[7, 7] = 255
    monkeypatch.setattr("burnish.data.upright._BAND_PIXELS", 16)
    assert as_rgb(Image.fromarray(pixels), 65535).getpixel((0, 0)) == WHITE


@pytest.mark.parametrize("packing", ["group3", "group4", "tiff_ccitt", "tiff_lzw", "raw"])
@pytest.mark.parametrize("white_is_zero", [True, False])
@pytest.mark.parametrize("reversed_bits", [False, True])
def test_faxes_are_black_where_they_are_black_in_whatever_order_their_bits_lie(packing, white_is_zero, reversed_bits):
    paper = np.ones((9, 21), bool)
    paper[2:5, 3:11] = paper[6:, 17:] = False
    tags = {TiffImagePlugin.PHOTOMETRIC_INTERPRETATION: int(not white_is_zero), TiffImagePlugin.FILLORDER: 1}
    data = encoded(Image.fromarray(paper), "TIFF", compression=packing, tiffinfo=tags)
    if reversed_bits:
        strip = next(iter(zip(*(Image.open(io.BytesIO(data)).tag_v2[tag] for tag in (273, 279)), strict=True)))
        inside = slice(strip[0], sum(strip))
        turned = bytes(int(f"{byte:08b}"[::-1], 2) for byte in data[inside])
        data = _with_tag(data[: strip[0]] + turned + data[sum(strip) :], TiffImagePlugin.FILLORDER, 2)
    assert (np.asarray(decode(data))[:, :, 0] == np.where(paper, 255, 0)).all()


def _with_tag(data, tag, value):
    """A little-endian TIFF in which the tag, a short number that is there, has another value or, at 0, another name."""
    at = data.index(struct.pack("<HHI", tag, 3, 1), struct.unpack("<I", data[4:8])[0])
    changed = struct.pack("<HHII", tag, 3, 1, value) if value else struct.pack("<H", tag + 1) + data[at + 2 : at + 12]
    return data[:at] + changed + data[at + 12 :]


def test_greys_of_which_nothing_says_what_is_black_are_refused_and_not_turned_round():
    tag = TiffImagePlugin.PHOTOMETRIC_INTERPRETATION
    for image in (noise(8, 8).convert("L"), noise(8, 8).convert("1")):
        data = _with_tag(encoded(image, "TIFF"), tag, 0)
        with pytest.raises(UnreadableImage, match="does not say whether 0 is black or white: save it again"):
            decode(data)
    white = np.ones((4, 8), bool)  # a fax is black on white
    fax = encoded(Image.fromarray(white), "TIFF", compression="group4", tiffinfo={tag: 0})
    assert decode(_with_tag(fax, tag, 0)).getpixel((0, 0)) == WHITE


@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_sixteen_bit_tiff_of_either_byte_order_is_scaled(byte_order):
    values = np.array([[0, 2570, 65535]], byte_order + "u2")
    mode = "I;16" if byte_order == "<" else "I;16B"
    decoded = decode(encoded(Image.frombytes(mode, (3, 1), values.tobytes()), "TIFF"))
    assert [decoded.getpixel((at, 0)) for at in range(3)] == [(v, v, v) for v in (0, 10, 255)]


def tiff_of_greys(values, *, bits, white_is_zero):
    """A little-endian TIFF of one line of integers, written by hand: Pillow writes no such."""
    line = np.array(values, "<u2").tobytes()
    if bits == 12:  # two of them in three bytes, from the highest bit on
        line = b"".join(((a << 12) | b).to_bytes(3, "big") for a, b in zip(values[::2], values[1::2], strict=True))
    tags = [(256, 3, len(values)), (257, 3, 1), (258, 3, bits), (259, 3, 1), (262, 3, 0 if white_is_zero else 1),
            (273, 4, 8), (277, 3, 1), (278, 3, 1), (279, 4, len(line))]  # fmt: skip
    table = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, kind, 1, one) for tag, kind, one in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(line)) + line + table + struct.pack("<I", 0)


@pytest.mark.parametrize(
    ("values", "bits", "white_is_zero", "expected"),
    [
        ([0, 2570, 65535], 16, False, [0, 10, 255]),
        ([0, 2570, 65535], 16, True, [255, 245, 0]),
        ([0, 2048, 4095, 4095], 12, False, [0, 128, 255, 255]),
    ],
)
def test_deep_greys_of_tiff_are_what_their_tags_say(values, bits, white_is_zero, expected):
    decoded = decode(tiff_of_greys(values, bits=bits, white_is_zero=white_is_zero))
    assert [decoded.getpixel((at, 0))[0] for at in range(len(values))] == expected


@pytest.mark.parametrize("bits", [8, 16])
def test_colours_that_lie_apart_are_right_or_refused(bits):
    """Pillow reads planes of 16 bits as if they had 8."""
    planes = [np.full(4, value, f"<u{bits // 8}").tobytes() for value in (1, 2, 3)]
    begins = [8 + len(planes[0]) * at for at in range(3)]
    lists = struct.pack("<3H", *[bits] * 3) + struct.pack("<3I", *begins) + struct.pack("<3I", *[len(planes[0])] * 3)
    at = 8 + sum(map(len, planes))
    tags = [(256, 3, 1, 4), (257, 3, 1, 1), (258, 3, 3, at), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 3, at + 6),
            (277, 3, 1, 3), (278, 3, 1, 1), (279, 4, 3, at + 18), (284, 3, 1, 2)]  # fmt: skip
    table = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *one) for one in tags) + bytes(4)
    content = b"II*\0" + struct.pack("<I", at + len(lists)) + b"".join(planes) + lists + table
    if bits == 8:
        assert [decode(content).getpixel((at, 0)) for at in range(4)] == [(1, 2, 3)] * 4
    else:
        assert "its colours lie apart, each of 16 bits" in reason_of(content)


def test_sixteen_bit_pgm_is_scaled():
    decoded = decode(b"P5 3 1 65535\n" + np.array([0, 2570, 65535], ">u2").tobytes())
    assert [decoded.getpixel((at, 0))[0] for at in range(3)] == [0, 10, 255]


def test_sixteen_bit_colour_png_is_scaled():
    rows = b"\x00" + np.array([65535, 32768, 0], ">u2").tobytes()
    assert decode(png(1, 1, depth=16, colour=2, rows=rows)).getpixel((0, 0)) == (255, 128, 0)


def test_integers_of_other_ranges_are_refused_with_their_range():
    content = encoded(Image.fromarray(np.array([[-5, 70000]], np.int32)), "TIFF")
    with pytest.raises(UnreadableImage, match="integer pixels from -5 to 70000, expected 0 to 65535"):
        decode(content)


def test_floats_from_0_to_1_are_scaled():
    decoded = decode(encoded(Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32)), "TIFF"))
    assert [decoded.getpixel((at, 0))[0] for at in range(3)] == [0, 128, 255]


@pytest.mark.parametrize("extreme", [-1.5, 255.0, float("nan")])
def test_floats_of_other_ranges_are_refused_with_their_range(extreme):
    content = encoded(Image.fromarray(np.array([[0.0, extreme]], np.float32)), "TIFF")
    with pytest.raises(UnreadableImage, match=r"float pixels from .* expected 0 to 1"):
        decode(content)


def test_cmyk_is_converted():
    content = encoded(Image.new("CMYK", (2, 2), (0, 255, 255, 0)), "TIFF")
    assert decode(content).getpixel((0, 0)) == RED


def test_inverted_cmyk_of_adobe_jpeg_is_converted():
    content = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100)
    assert b"Adobe" in content
    red, green, blue = decode(content).getpixel((8, 8))
    assert red > 250
    assert max(green, blue) < 5


def test_one_bit_is_black_and_white():
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    decoded = decode(encoded(image, "PNG"))
    assert [decoded.getpixel((at, 0)) for at in range(2)] == [BLACK, WHITE]


@pytest.mark.parametrize("mode", ["YCbCr", "HSV"])
def test_colour_spaces_are_converted(mode):
    image = Image.new("RGB", (1, 1), (200, 100, 50))
    converted = np.array(as_rgb(image.convert(mode), 65535)).astype(int)
    assert np.abs(converted - np.array([200, 100, 50])).max() <= 3


def test_lab_tiff_is_converted():
    content = encoded(Image.new("LAB", (4, 4), (255, 128, 128)), "TIFF")
    assert min(decode(content).getpixel((0, 0))) > 240


# --- what is not an image ----------------------------------------------------------------------------------------


def png(width: int, height: int, *, depth: int = 8, colour: int = 2, rows: bytes = b"", before: bytes = b"") -> bytes:
    """A PNG put together by hand, so that its header can lie."""
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([depth, colour, 0, 0, 0])
    body = chunk(b"IHDR", header) + before + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def chunk(kind: bytes, data: bytes) -> bytes:
    """One PNG chunk."""
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def reason_of(source: Path | bytes) -> str:
    """Why `decode` refuses."""
    with pytest.raises(UnreadableImage) as caught:
        decode(source)
    return caught.value.reason


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty (0 bytes)"),
        (b"hello world", "not an image: its content is not JPEG, PNG, WebP, BMP, GIF, TIFF, PPM or AVIF"),
        (b"%PDF-1.7", "PDF is not read: save it as JPEG, PNG"),
        (b"<svg xmlns=''/>", "SVG is not read"),
        (b"\x00\x00\x00\x18ftypheic", "HEIC is not read"),
        (b"\x89PNG\r\n\x1a\n", "damaged or truncated: it begins as PNG and cannot be read further"),
    ],
    ids=["empty", "text", "pdf", "svg", "heic", "only a signature"],
)
def test_what_is_no_image_is_refused_in_plain_words(content, reason):
    assert reason_of(content).startswith(reason)


def waves():
    """uint8 [48 64 3]: red grows to the right, green downward."""
    y, x = np.mgrid[:48, :64]
    return np.stack([x * 4, y * 5, np.full_like(x, 128)], 2).astype(np.uint8)


@pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF")
def test_avif_is_read_upright():
    turned = Image.Exif()
    turned[0x0112] = 6
    read = np.asarray(decode(encoded(Image.fromarray(waves()), "AVIF", exif=turned.tobytes(), quality=90)), np.int16)
    assert read.shape == (64, 48, 3)
    assert np.abs(read - np.rot90(waves(), -1).astype(np.int16)).mean() < 4.0


@pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF")
@pytest.mark.parametrize("seed", range(4))
def test_an_avif_cut_short_or_changed_is_read_or_refused(seed):
    sound = encoded(Image.fromarray(waves()), "AVIF", quality=60)
    assert reason_of(sound[: len(sound) // 2]) == "damaged or truncated: it begins as AVIF and cannot be read further"
    rng = np.random.default_rng(seed)
    for _ in range(200):
        changed = bytearray(sound)
        for at in rng.integers(12, len(changed), 3):
            changed[at] = rng.integers(256)
        with contextlib.suppress(UnreadableImage):
            assert decode(bytes(changed)).mode == "RGB"


@pytest.mark.parametrize("format", ["ICO", "TGA", "PCX", "SGI", "JPEG2000", "DDS"])
def test_formats_outside_the_list_are_refused(format):
    reason = reason_of(encoded(quarters(), format))
    assert "is not read: save it as" in reason or reason.startswith("not an image")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.95])
def test_truncated_images_are_errors_not_grey_pixels(format, kept):
    content = encoded(noise(64, 64), format)
    assert reason_of(content[: int(kept * len(content))])


def test_truncated_jpeg_is_called_truncated():
    content = encoded(noise(64, 64), "JPEG")
    assert reason_of(content[: len(content) // 2]) == "truncated: the image data ends too early"


def test_too_many_pixels_are_refused_from_the_header():
    assert reason_of(png(20_000, 6_000)) == "20000 x 6000 pixels, more than the 100,000,000 that are read"


def test_decompression_bombs_are_refused():
    assert "more pixels than the 100,000,000" in reason_of(png(60_000, 60_000))


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP"])
def test_compressed_text_bombs_are_refused_or_harmless(kind):
    bomb = chunk(kind, b"name\x00\x00" + zlib.compress(bytes(200_000_000), 9))
    content = png(1, 1, rows=b"\x00\xff\x00\x00", before=bomb)
    try:
        assert decode(content).getpixel((0, 0)) == RED
    except UnreadableImage as error:
        assert "too large" in error.reason or "damaged" in error.reason


def test_large_images_below_the_limit_print_no_warning(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(encoded(noise(12, 12), "PNG")).size == (12, 12)


def test_importing_changes_no_setting_of_pillow():
    printing = "print(Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)"
    code = f"from PIL import Image, ImageFile; import burnish.data.pixels; {printing}"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["89478485", "False"]


def test_too_large_a_file_is_refused(tmp_path):
    path = tmp_path / "huge.png"
    with path.open("wb") as file:
        file.truncate(pixels.MAX_BYTES + 1)
    assert reason_of(path) == "larger than 100 MB, the most that is read"


def test_missing_file_folder_and_zero_byte_names_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    assert reason_of(tmp_path / "none.jpg") == "no such file"
    assert reason_of(tmp_path / "file" / "a.jpg") == "no such file"
    assert reason_of(Path(str(tmp_path) + "/a\0b.jpg")) == "no such file"
    open_files = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    assert reason_of(tmp_path) == "a folder, not an image file"
    assert open_files is None or len(os.listdir("/proc/self/fd")) == open_files


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_pipes_and_devices_do_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    assert reason_of(tmp_path / "pipe.jpg") == "a pipe, not an image file"
    assert reason_of(Path("/dev/zero")) == "a device, not an image file"


def test_circular_link_is_refused(tmp_path):
    (tmp_path / "a.jpg").symlink_to("a.jpg")
    assert reason_of(tmp_path / "a.jpg") == "a symbolic link that leads in a circle"


def test_file_without_permission_is_refused(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    assert reason_of(tmp_path / "a.jpg") == "no permission to read it"


def test_error_carries_the_name_and_escapes_it(tmp_path):
    with pytest.raises(UnreadableImage) as caught:
        decode(b"", name="a\x1b[31m.jpg")
    assert caught.value.path == "a\x1b[31m.jpg"
    assert "\x1b" not in str(caught.value)
    with pytest.raises(UnreadableImage, match="image in memory: the file is empty"):
        decode(b"")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_no_damage_raises_anything_but_unreadable_image(format):
    content = encoded(noise(24, 24), format)
    draws = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(content)
        for at in draws.integers(0, len(content), 8):
            damaged[at] = draws.integers(0, 256)
        try:
            assert decode(bytes(damaged)).mode == "RGB"
        except UnreadableImage as error:
            assert error.reason


def test_private_tiff_tags_do_no_harm():
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[65000] = "x" * 100
    assert corners(decode(encoded(quarters(), "TIFF", tiffinfo=tags))) == TURNED[1]


# --- views ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size", [(300, 200), (200, 300), (257, 391), (500, 500), (31, 47), (224, 224), (256, 300), (20, 900)]
)
@pytest.mark.parametrize(("side", "crop"), [(224, 0.875), (224, 1.0), (111, 0.95)])
def test_plain_view_equals_torchvision_bit_for_bit(size, side, crop):
    transforms = pytest.importorskip("torchvision.transforms")
    image = noise(*size)
    expected = transforms.Compose(
        [
            transforms.Resize(round(side / crop), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(side),
        ]
    )(image)
    assert np.array_equal(view(image, Preprocess(size=side, crop=crop)), np.array(expected))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_squashed_view_equals_torchvision_bit_for_bit(interpolation):
    transforms = pytest.importorskip("torchvision.transforms")
    mode = transforms.InterpolationMode(interpolation)
    image = noise(90, 61)
    expected = transforms.Resize((48, 48), interpolation=mode)(image)
    assert np.array_equal(
        view(image, Preprocess(size=48, fit="squash", interpolation=interpolation)), np.array(expected)
    )


@pytest.mark.parametrize("size", [(1, 200_000), (200_000, 1), (1, 1)])
def test_strips_are_viewed_in_bounded_memory(size, monkeypatch):
    original = Image.Image.resize

    def bounded(image: Image.Image, to: tuple[int, int], how: int) -> Image.Image:
        assert to[0] * to[1] < 1_000_000
        return original(image, to, how)

    monkeypatch.setattr(Image.Image, "resize", bounded)
    assert view(Image.new("RGB", size, RED), Preprocess(size=32)).tolist() == [[list(RED)] * 32] * 32


def test_stored_is_the_whole_image_as_a_square():
    image = quarters(64).resize((64, 32))
    square = stored(image, 16)
    assert (square.shape, square.dtype) == ((16, 16, 3), np.uint8)
    assert [tuple(square[y, x]) for y, x in ((0, 0), (0, 15), (15, 0), (15, 15))] == [RED, GREEN, BLUE, WHITE]


# --- reading a catalogue ----------------------------------------------------------------------------------------


RENDERINGS = {"plain": partial(view, preprocess=Preprocess(size=8)), "stored": partial(stored, side=12)}


def blank(count: int) -> dict[str, np.ndarray]:
    """What `read_all` writes into."""
    return {"plain": np.zeros((count, 8, 8, 3), np.uint8), "stored": np.zeros((count, 12, 12, 3), np.uint8)}


@pytest.fixture
def catalog(tmp_path):
    """20 images of two classes, two of which are broken."""
    root = write_images(tmp_path / "data", {"a": 10, "b": 10})
    (root / "a" / "003.png").write_bytes(b"")
    (root / "b" / "007.png").write_bytes(b"no image")
    noise(30, 20).save(root / "a" / "000.png")
    return open_source(root)


def test_each_entry_is_decoded_once_and_rendered_in_every_form(catalog, monkeypatch):
    opened = []
    original = pixels._content
    monkeypatch.setattr(pixels, "_content", lambda path: opened.append(path) or original(path))
    read = read_all(catalog, np.arange(20), RENDERINGS, blank(20), workers=2)
    assert sorted(opened) == sorted(catalog.image(index) for index in range(20))
    image = decode(catalog.image(0))
    assert np.array_equal(read.views["plain"][0], view(image, Preprocess(size=8)))
    assert np.array_equal(read.views["stored"][0], stored(image, 12))
    assert read.sizes[0].tolist() == [30, 20]


def test_unreadable_images_are_named_and_their_rows_stay_zero(catalog):
    read = read_all(catalog, np.arange(20), RENDERINGS, blank(20), workers=3)
    assert [one.path for one in read.named] == ["a/003.png", "b/007.png"]
    assert read.named[0].reason == "the file is empty (0 bytes)"
    bad = [catalog.paths.index(one.path) for one in read.named]
    assert np.flatnonzero(~read.good).tolist() == bad
    assert not read.views["plain"][bad].any() and not read.sizes[bad].any()
    assert read.sizes[read.good].all()


@pytest.mark.parametrize("workers", [2, 5])
def test_result_does_not_depend_on_the_number_of_workers(catalog, workers):
    indices = np.array([19, 3, 3, 0, *range(5, 18)])
    one = read_all(catalog, indices, RENDERINGS, blank(len(indices)), workers=1)
    many = read_all(catalog, indices, RENDERINGS, blank(len(indices)), workers=workers)
    assert all(np.array_equal(one.views[name], many.views[name]) for name in RENDERINGS)
    assert np.array_equal(one.sizes, many.sizes) and np.array_equal(one.good, many.good)
    assert one.named == many.named


def test_progress_counts_every_file_and_can_stop_the_reading(catalog):
    done = []
    read_all(catalog, np.arange(20), RENDERINGS, blank(20), workers=2, on_progress=done.append)
    assert done == list(range(1, 21))

    def stop(count: int) -> None:
        if count == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read_all(catalog, np.arange(20), RENDERINGS, blank(20), workers=2, on_progress=stop)


def test_memory_mapped_arrays_are_written_in_place(catalog, tmp_path):
    out = {"plain": np.memmap(tmp_path / "plain", np.uint8, "w+", shape=(20, 8, 8, 3))}
    read = read_all(catalog, np.arange(20), {"plain": RENDERINGS["plain"]}, out, workers=2)
    assert read.views["plain"] is out["plain"]
    assert out["plain"].any()


def test_no_entries_are_no_rows(catalog):
    read = read_all(catalog, np.arange(0), RENDERINGS, blank(0), workers=2)
    assert (len(read.good), read.named, read.sizes.shape) == (0, (), (0, 2))


def test_data_does_not_import_torch_or_backbones():
    code = "import sys; import burnish.data.pixels, burnish.data.sources, burnish.data.split; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "burnish.data.split" in modules
    assert not {"torch", "sklearn", "burnish.backbones"} & set(modules)
