"""Any picture as upright, plain RGB: turned as its EXIF says, transparency over white, deep greys scaled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageCms

from burnish.data.contents import plain_grey
from burnish.data.file import Refused
from burnish.terms import WHITES

# What the eight values of the EXIF orientation tag ask for; 1 is upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BAND_PIXELS = 2**22
_NARROW = {"1": 255, "L;2": 85, "L;4": 17}  # Pillow's word for how greys are packed -> white over the largest number


def widen_colour_key(image: Any) -> None:
    """The transparent colour of a PNG in 8 bits, as Pillow gives pixels of 1, 2 and 4 bits, and of 16 of each colour."""
    key = image.info.get("transparency")
    packing = str(image.tile[0].args) if image.format == "PNG" and image.tile else ""
    if isinstance(key, int) and packing in _NARROW:
        image.info["transparency"] = key * _NARROW[packing]
    elif isinstance(key, tuple) and packing == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in key)


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """An image turned as its EXIF says."""
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; damaged EXIF counts as upright, as in every viewer."""
    try:
        found = int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return 1
    return found if 1 <= found <= 8 else 1


def as_rgb(image: Image.Image, white: int) -> Image.Image:
    """Any mode as plain RGB, without metadata: transparency over white, deep greys scaled and not clipped."""
    plain = Image.new("RGB", image.size, "white")
    if image.mode == "F" or image.mode.startswith("I"):
        plain.paste(_grey_from_deep(image, white))
    elif image.mode == "LAB":
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        plain = ImageCms.buildTransform(*profiles, "LAB", "RGB").apply(image)
    elif image.has_transparency_data:
        # Where it is transparent everywhere, alpha is a byte that was never set, as many a BMP has it
        seen = any(_with_alpha(part).getchannel("A").getextrema() != (0, 0) for _, part in _bands(image))
        for top, part in _bands(image):
            colours = _with_alpha(part)
            white_below = Image.new("RGBA", colours.size, "white")
            plain.paste((Image.alpha_composite(white_below, colours) if seen else colours).convert("RGB"), (0, top))
    else:
        for top, part in _bands(image):
            plain.paste(part.convert("RGB"), (0, top))
    return plain


def _bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """(first row, those rows) of an image, a few million pixels at a time: each step on the way to RGB copies them."""
    rows = max(1, _BAND_PIXELS // max(1, image.width))
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _with_alpha(image: Image.Image) -> Image.Image:
    """As RGBA. La is grey with premultiplied alpha, which Pillow undoes only on the way to LA."""
    return image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")


def _grey_from_deep(image: Image.Image, white: int) -> Image.Image:
    """8-bit grey of integers 0 to 65535, of which `white` and what is above it are white, or of floats 0 to 1.

    Other ranges are refused: stretching each image to its own extremes would make brightness depend on the image.
    """
    values = np.asarray(image)
    lowest, highest = values.min(), values.max()
    if image.mode == "F":
        if not (lowest >= 0.0 and highest <= 1.0):  # also refuses not-a-number
            raise Refused(f"float pixels from {lowest:g} to {highest:g}, expected 0 to 1: save it with 8 or 16 bits")
        return Image.fromarray(np.rint(values * 255.0).astype(np.uint8))
    if lowest < 0 or highest > 65535:
        raise Refused(f"integer pixels from {lowest} to {highest}, expected 0 to 65535: save it with 8 or 16 bits")
    plain = plain_grey(image, getattr(image, "tag_v2", {}))
    white, values = white if plain is image else WHITES[-1], np.asarray(plain)  # which its header has told
    scaled = (np.minimum(values.astype(np.uint32), white) * 255 + white // 2) // white  # to the nearest
    grey = scaled.astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey)
