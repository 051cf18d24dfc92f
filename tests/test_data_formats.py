"""Deep greys, large images and images that would take minutes: decoded right, in part, or refused."""

from __future__ import annotations

import io
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from burnish import api
from burnish.data import pixels
from burnish.data.contents import file_of
from burnish.data.deep import white_of
from burnish.data.looks import look_at
from burnish.data.netpbm import whitened
from burnish.data.pixels import Need, decode, enough, view
from burnish.data.slow import why_slow
from burnish.data.sources import open_source
from burnish.errors import RecipeError, UnreadableImage
from burnish.terms import WHITES, Preprocess
from images import encoded, noise, quarters, read, write_images

# ---- which number is white -------------------------------------------------------------------------------------------


def saved_deep(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint16)).save(path)


def test_every_deep_grey_becomes_the_nearest_of_eight_bits(tmp_path):
    values = np.arange(65536).reshape(256, 256)
    for white in WHITES:
        saved_deep(tmp_path / "all.png", values)
        found = np.asarray(decode(tmp_path / "all.png", at_least=Need(256, white)))[..., 0]
        assert (found == np.floor(np.minimum(values, white) * 255 / white + 0.5)).all(), white
        assert white < 65535 or (found == (values + 128) // 257).all()


@pytest.mark.parametrize(("largest", "white"), [(200, 255), (1000, 1023), (4012, 4095), (16000, 16383), (40000, 65535)])
def test_the_most_that_as_many_bits_can_say_is_white(largest, white, tmp_path):
    rng = np.random.default_rng(0)
    for number in range(8):
        values = rng.integers(0, largest // 2, (40, 40))
        values[3, 4] = largest if number == 5 else 1  # the others are darker
        saved_deep(tmp_path / "ab"[number % 2] / f"{number}.png", values)
    catalog = open_source(tmp_path)
    every = np.arange(len(catalog))
    assert white_of(catalog, look_at(catalog, every, workers=2), every) == (white, largest, 8)


def test_what_a_header_says_of_its_bits_is_believed_and_colours_are_left_alone(tmp_path):
    write_images(tmp_path, {"a": 3, "b": 3})
    catalog = open_source(tmp_path)
    assert white_of(catalog, look_at(catalog, np.arange(6), workers=2), np.arange(6))[0] == 65535
    tiff = deep_tiff(np.array([[0, 2048, 4095, 1000]]), bits=12, white_is_zero=False, orientation=1)
    (tmp_path / "a" / "deep.tif").write_bytes(tiff)
    catalog = open_source(tmp_path)
    assert white_of(catalog, look_at(catalog, np.arange(7), workers=2), np.arange(7))[0] == 65535
    plain, asked = decode(tiff), decode(tiff, at_least=Need(1, 4095))
    assert np.array_equal(np.asarray(plain), np.asarray(asked)), "its twelve bits are scaled once"


def test_twelve_bits_in_files_of_sixteen_are_told_apart_by_a_run_and_its_package(tmp_path):
    """As a camera stores them nearly all was black: sixteen greys were left."""
    rng = np.random.default_rng(1)
    for number in range(60):
        base = 1200 + rng.normal(0, 20, (64, 64)) + (300 if number % 2 else 0)
        base[:2, :2] = 3900
        saved_deep(tmp_path / "data" / "ab"[number % 2] / f"{number}.png", base.clip(0, 4095))
    asked = {"model": "random:test_resnet", "method": "probe", "image_size": 64, "budget": None, "cache": "off"}
    run = api.fit(tmp_path / "data", out=tmp_path / "run", **asked)
    (decision,) = (one for one in run.facts["decisions"] if "is white" in one["what"])
    assert decision["what"] == "in greys of more than 8 bits 4095 is white" and decision["numbers"]["largest"] == 3900
    assert run.predictor.bundle.preprocess.white == 4095
    assert not run.facts["findings"]["found"].get("narrow"), "they are not dark"
    file = tmp_path / "data" / "a" / "0.png"
    by_path, by_image = run.predict([file, Image.open(file)])
    assert by_path.probabilities == by_image.probabilities
    pixels = run.predictor.pixels([file])[0]
    assert 70 < np.median(pixels) < 80, "1,200 of 4,095"
    again = api.fit(tmp_path / "data", out=tmp_path / "run", **asked)
    assert again.predictor.bundle.preprocess.white == 4095


def test_a_package_of_before_says_nothing_of_white():
    told = {key: value for key, value in Preprocess().to_json().items() if key != "white"}
    assert Preprocess.from_json(told) == Preprocess()
    for white in (0, 4096, "4095", True, 4095.0, 10**400):
        with pytest.raises(RecipeError, match="white is"):
            Preprocess.from_json({**told, "white": white})


# ---- deep greys of TIFF ----------------------------------------------------------------------------------------------


def deep_tiff(values, *, bits, white_is_zero, orientation):
    """A little-endian TIFF of integers [h w], written by hand: Pillow writes no such."""
    data = values.astype("<u2").tobytes()
    if bits == 12:  # two of them in three bytes, from the highest bit on
        data = b"".join(((a << 12) | b).to_bytes(3, "big") for a, b in values.reshape(-1, 2).tolist())
    height, width = values.shape
    tags = [(256, 3, width), (257, 3, height), (258, 3, bits), (259, 3, 1), (262, 3, 0 if white_is_zero else 1), (273, 4, 8),
            (274, 3, orientation), (277, 3, 1), (278, 3, height), (279, 4, len(data))]  # fmt: skip
    table = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, kind, 1, one) for tag, kind, one in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + table + struct.pack("<I", 0)


@pytest.mark.parametrize("orientation", [1, 2, 3, 6, 8])
@pytest.mark.parametrize(("bits", "white_is_zero"), [(12, False), (16, True), (16, False)])
def test_a_deep_grey_handed_over_by_pillow_is_what_its_file_is(bits, white_is_zero, orientation):
    """Opened from memory: turned ones of 16 bits that Pillow maps from the disk it gives in disorder."""
    values = np.random.default_rng(0).integers(0, 2**bits, (6, 8))
    values[0, :2] = 0, 2**bits - 1
    content = deep_tiff(values, bits=bits, white_is_zero=white_is_zero, orientation=orientation)
    upright = {1: values, 2: values[:, ::-1], 3: values[::-1, ::-1], 6: np.rot90(values, -1), 8: np.rot90(values)}
    expected = np.rint(upright[orientation] * 255 / (2**bits - 1))
    expected = 255 - expected if white_is_zero else expected
    found = np.asarray(decode(content))[:, :, 0].astype(int)
    assert found.shape == expected.shape and np.abs(found - expected).max() <= 1
    with Image.open(io.BytesIO(content)) as opened:
        assert np.array_equal(np.asarray(decode(file_of(opened, "a.tif")))[:, :, 0], found)


def test_an_ordinary_file_handed_over_by_pillow_is_what_it_is_on_disk(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(deep_tiff(np.array([[0, 2048, 4095, 1000]]), bits=12, white_is_zero=False, orientation=1))
    with Image.open(path) as opened:
        assert np.array_equal(np.asarray(decode(file_of(opened, "a.tif"))), np.asarray(decode(path)))


# ---- large JPEGs are decoded in part ---------------------------------------------------------------------------------


def photo(width, height, *, seed=0):
    """A smooth picture with some detail, as a camera gives."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    detail = rng.integers(-12, 13, (height, width, 1))
    return Image.fromarray((np.asarray(coarse).astype(int) + detail).clip(0, 255).astype(np.uint8))


def error_between(one, other):
    return float(np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).mean())


@pytest.mark.parametrize("size", [(1600, 1200), (1201, 1799), (3001, 1033)])
def test_a_large_jpeg_is_decoded_smaller_with_its_shape_and_its_view(size):
    preprocess = Preprocess(size=112)
    content = encoded(photo(*size), "JPEG", quality=92)
    whole, part = decode(content), decode(content, at_least=enough(preprocess))
    assert whole.size == size
    assert part.size[0] <= 0.51 * whole.size[0]
    assert min(part.size) >= 2 * enough(preprocess).side
    assert part.width / part.height == pytest.approx(size[0] / size[1], rel=0.01)
    assert error_between(view(part, preprocess), view(whole, preprocess)) < 1.5  # of 255
    stored = pixels.stored(part, 128), pixels.stored(whole, 128)
    assert error_between(*stored) < 1.5


def test_small_jpegs_and_other_formats_are_decoded_whole():
    for content in (
        encoded(photo(400, 300), "JPEG", quality=92),
        encoded(photo(1600, 1200), "PNG", compress_level=1),
        encoded(photo(1600, 1200), "BMP"),
        encoded(photo(1200, 900), "WEBP"),
    ):
        whole, part = decode(content), decode(content, at_least=Need(100))
        assert part.size == whole.size
        assert np.array_equal(np.asarray(part), np.asarray(whole))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_part_of_a_large_jpeg_is_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = quarters(1024).resize((1024, 1536))
    content = encoded(picture, "JPEG", exif=exif, quality=92)
    whole, part = decode(content), decode(content, at_least=Need(100))
    assert part.size == (whole.width // 4, whole.height // 4)
    assert error_between(part, whole.resize(part.size, Image.Resampling.BOX)) < 3
    assert whole.size == ((1536, 1024) if orientation >= 5 else (1024, 1536))


@pytest.mark.parametrize("mode", ["CMYK", "L"])
def test_a_large_jpeg_in_cmyk_or_grey_is_decoded_in_part_to_the_same_colours(mode):
    content = encoded(photo(1600, 1200).convert(mode), "JPEG", quality=92)
    whole, part = decode(content), decode(content, at_least=Need(100))
    assert part.mode == "RGB"
    assert part.size == (400, 300) == (whole.width // 4, whole.height // 4)
    assert error_between(part, whole.resize(part.size, Image.Resampling.BOX)) < 2


def test_a_large_jpeg_that_ends_too_early_is_refused_in_part_as_well():
    content = encoded(photo(1600, 1200), "JPEG", quality=92)[:20_000]
    with pytest.raises(UnreadableImage, match="truncated"):
        decode(content, at_least=Need(100))


# ---- files that would take minutes -----------------------------------------------------------------------------------


def refusal(data: bytes) -> str:
    with pytest.raises(UnreadableImage) as refused:
        decode(data)
    return refused.value.reason


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


@pytest.mark.parametrize("filler", [b"\xff", b"\xff\x00", b"\xff\xd0", b"\xff\xd8"])
def test_a_jpeg_of_megabytes_between_its_parts_is_refused(filler):
    plain = encoded(noise(16, 16), "JPEG")
    assert decode(plain[:2] + b"\xff" * 10_000 + plain[2:]).size == (16, 16)
    assert "belong to none of its parts" in refusal(plain[:20] + filler * 2**21 + plain[20:])
    assert "belong to none of its parts" in refusal(b"\xff\xd8\xff" + filler * 2**21)


def chunk(kind: bytes, content: bytes) -> bytes:
    """A part of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize("one", [chunk(b"IDAT", b""), chunk(b"tEXt", b"a\0b"), chunk(b"prVt", b"")])
def test_a_png_of_very_many_chunks_is_refused(one):
    plain = encoded(noise(16, 16), "PNG")
    assert decode(plain[:33] + chunk(b"tEXt", b"a\0b") * 3000 + plain[33:]).size == (16, 16)
    assert "over 100,000 chunks" in refusal(plain[:33] + one * 120_000 + plain[33:])
    assert "over 100,000 chunks" in refusal(plain[:-12] + one * 120_000 + plain[-12:])


@pytest.mark.parametrize("kind", [b"iCCP", b"zTXt", b"iTXt"])
def test_a_png_of_very_many_packed_texts_is_refused(kind):
    plain = encoded(noise(16, 16), "PNG")
    damaged = zlib.compress(bytes(1000))[:-4] + bytes(4)  # of a wrong checksum Pillow does not count what it unpacks
    one = chunk(kind, b"name\0" + (b"\1\0\0\0" if kind == b"iTXt" else b"\0") + damaged)
    assert decode(plain[:33] + one * 300 + plain[33:]).size == (16, 16)
    assert "over 1,000 texts and colour profiles" in refusal(plain[:33] + one * 1100 + plain[33:])
    assert "over 1,000 texts and colour profiles" in refusal(plain[:-12] + one * 1100 + plain[-12:])
    named = chunk(b"tEXt", b"a\0" + kind * 3000)  # the name alone is none
    assert decode(plain[:33] + named + plain[33:]).size == (16, 16)


@pytest.mark.parametrize("blocks", [b"!\xfe" + b"\1a" * 120_000 + b"\0", b"!\xfe\1a\0" * 60_000, bytes(120_000)])
def test_a_gif_of_very_many_blocks_before_its_picture_is_refused(blocks):
    plain = encoded(noise(16, 16).quantize(), "GIF")
    at = 13 + 768  # behind the palette
    comment = b"!\xfe" + (b"\xff" + b"," * 255) * 2000 + b"\0"
    assert decode(plain[:at] + comment + plain[at:]).size == (16, 16)
    assert decode(plain + blocks).size == (16, 16)  # behind the picture they are not read
    assert "over 100,000 blocks" in refusal(plain[:at] + blocks + plain[at:])


def tiff_of_strips(count: int, order: str, *, big: bool) -> bytes:
    """A grey TIFF of 20 x 40 pixels that says that it lies in so many strips."""
    number = "Q" if big else "I"
    tags = {256: 20, 257: 40, 258: 8, 259: 1, 262: 1, 273: 256, 277: 1, 278: 1, 279: 256}
    begin = (43, 8, 0, 16, len(tags)) if big else (42, 8, len(tags))
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + ("HHHQQ" if big else "HIH"), *begin)
    for kind, value in tags.items():
        many = count if kind in (273, 279) else 1
        head += struct.pack(order + "HH" + 2 * number, kind, 16 if big else 4, many, value)
    return head.ljust(256, b"\0") + bytes(8 * count)


@pytest.mark.parametrize(("order", "big"), [("<", False), ("<", True), (">", False)])
def test_a_tiff_of_very_many_strips_is_refused(order, big):
    assert decode(tiff_of_strips(40, order, big=big)).size == (20, 40)
    assert "over 400,000 strips or tiles" in refusal(tiff_of_strips(400_001, order, big=big))


def test_a_large_png_in_pieces_of_a_kilobyte_is_read():
    side = 1200
    rows = np.pad(np.asarray(noise(side, side)).reshape(side, -1), ((0, 0), (1, 0)))  # each begins with its filter, 0
    packed = zlib.compress(rows.tobytes(), 0)
    pieces = b"".join(chunk(b"IDAT", packed[at : at + 1024]) for at in range(0, len(packed), 1024))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    assert decode(b"\x89PNG\r\n\x1a\n" + head + pieces + chunk(b"IEND", b"")).size == (side, side)


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


@pytest.mark.parametrize("most", [1, 100, 254, 256, 1023, 4095, 65534, 65535])
@pytest.mark.parametrize("kind", ["P5", "P6"])
def test_netpbm_numbers_of_any_white_are_those_that_pillow_gives(kind, most):
    bands, width = 3 if kind == "P6" else 1, 1 if most < 256 else 2
    numbers = np.random.default_rng(0).integers(0, 256**width, (60, 70, bands))
    numbers.flat[: 256**width] = np.arange(256**width)[: numbers.size]
    head = f"{kind}\n# a comment\n70 60\n{most}\n".encode()
    data = head + numbers.astype(">u2" if width == 2 else np.uint8).tobytes()
    plain = Image.open(io.BytesIO(data))
    assert (np.asarray(whitened(plain, data)) == np.asarray(Image.open(io.BytesIO(data)))).all()
    assert np.asarray(decode(data)).shape == (60, 70, 3)
    assert "truncated" in refusal(data[:-1])


def test_a_netpbm_image_of_sixteen_bits_is_read_in_a_moment():
    data = b"P6\n3000 2000\n65535\n" + bytes(36_000_000)
    began = time.process_time()
    decode(data)
    assert time.process_time() - began < 4.0, "Pillow's own way takes 9 s and more"


def runs(width: int, height: int, rows: bytes, packing: int = 1) -> bytes:
    """A BMP of 8 bits whose pixels are told by runs."""
    colours = bytes(1024)
    sizes = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, packing, len(rows), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 14 + 40 + 1024 + len(rows), 0, 0, 14 + 40 + 1024) + sizes + colours + rows


def test_large_bmps_packed_by_runs_are_refused_and_others_are_read():
    row = bytes([200, 5]) + b"\0\0"
    assert decode(runs(200, 100, row * 100 + b"\0\1")).size == (200, 100)
    assert "packed by runs" in refusal(runs(3_276_840, 30, row * 30 + b"\0\1"))
    assert "packed by runs" in refusal(runs(100, 100, b"\0\2\0\0" * 2_200_000 + b"\0\1"))
    assert "packed by runs" not in refusal(runs(5000, 5000, row, packing=0))
    assert decode(encoded(noise(40, 40), "BMP")).size == (40, 40)


def test_what_is_refused_for_its_time_is_named_among_others(tmp_path):
    write_images(tmp_path, {"a": 3, "b": 3})
    (tmp_path / "a" / "scans.jpg").write_bytes(with_scans(200))
    found = read(open_source(tmp_path))
    assert len(found.ids) == 6 and [one.path for one in found.named] == ["a/scans.jpg"]
    assert "over 100 scans" in found.named[0].reason
