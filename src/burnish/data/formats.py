"""The formats of image files: which are read, and what others are called."""

from __future__ import annotations

import io

from PIL import Image, TiffImagePlugin, features

FORMATS = (
    "JPEG",
    "PNG",
    "WEBP",
    "BMP",
    "GIF",
    "TIFF",
    "PPM",
    "AVIF",
)  # of each the first frame or page; JPEG includes MPO
FORMATS_IN_WORDS = "JPEG, PNG, WebP, BMP, GIF, TIFF, PPM or AVIF"

# Formats that people do have and that are not read: (bytes, where they stand, the name they go by).
_FOREIGN = (
    # Not through pi-heif (libheif 1.23): of 200 files with three bytes changed one ended the process.
    (b"ftyphei", 4, "HEIC"),
    (b"ftyphev", 4, "HEIC"),
    (b"ftypmif1", 4, "HEIC"),
    *(() if features.check("avif") else ((b"ftypavi", 4, "AVIF"),)),  # Pillow can be built without it
    (b"%PDF", 0, "PDF"),
    (b"8BPS", 0, "Photoshop"),
    (b"<svg", 0, "SVG"),
    (b"\x00\x00\x00\x0cjP  ", 0, "JPEG 2000"),
    (b"\xff\x0a", 0, "JPEG XL"),
    (b"\x00\x00\x00\x0cJXL ", 0, "JPEG XL"),
    (b"\x00\x00\x01\x00", 0, "Windows icon"),
    (b"PK\x03\x04", 0, "zip"),
)
# How the formats that are read begin, where that is distinctive.
_BEGINNINGS = (
    (b"\xff\xd8\xff", 0, "JPEG"),
    (b"\x89PNG\r\n\x1a\n", 0, "PNG"),
    (b"RIFF", 0, "WebP"),
    (b"GIF8", 0, "GIF"),
    (b"II*\x00", 0, "TIFF"),
    (b"MM\x00*", 0, "TIFF"),
    (b"ftypavi", 4, "AVIF"),
)


def image_of(data: bytes) -> Image.Image:
    """The first frame of an image file's content, not yet decoded: its size, mode and format are known.

    Whatever Pillow and its plugins raise, which may be anything.
    """
    return Image.open(io.BytesIO(data), formats=FORMATS)


def not_an_image(data: bytes) -> str:
    """Why content that no decoder claims is not read, naming what it is where that can be told."""
    foreign = _of(_FOREIGN, data)
    if foreign is not None:
        return f"{foreign} is not read: save it as {FORMATS_IN_WORDS}"
    what = begins_as(data)
    if what is None:
        return f"not an image: its content is not {FORMATS_IN_WORDS}"
    if what == "TIFF" and (channels := _channels_of_tiff(data)) > 3:
        return f"a TIFF of {channels} channels is not read: save it as {FORMATS_IN_WORDS}, with three of them"
    other = ", or has channels or a packing that are not read" if what == "TIFF" else ""
    return f"damaged or truncated{other}: it begins as {what} and cannot be read further"


def begins_as(data: bytes) -> str | None:
    """The format whose files begin so, where that is distinctive."""
    return _of(_BEGINNINGS, data)


def _of(known: tuple[tuple[bytes, int, str], ...], data: bytes) -> str | None:
    return next((what for signature, at, what in known if data.startswith(signature, at)), None)


def _channels_of_tiff(data: bytes) -> int:
    """How many numbers each pixel has, as the first directory says; 0 where it does not."""
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(data[:8])
        stream = io.BytesIO(data)
        stream.seek(tags.next)
        tags.load(stream)
        return int(tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1))
    except Exception:  # of damaged bytes
        return 0
