"""What happens to image files on their way to a model: saved again, passed on, shrunk, turned, cropped, framed, without colour.

Each is done to the upright picture at the size of its file, before the network's square is cut from it; so it shows what the
damage of squares (`data.corruptions`) cannot: how much of a JPEG's loss survives the resizing, and what other framings put into
the square. The figures are ours, for what chat programs, screens, scanners and lost EXIF do; there is no standard for them.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from burnish.data.pixels import Need, decode_aloud, enough, view
from burnish.runtime import draws
from burnish.terms import Preprocess

# Pixels of the long side from which on a picture is made smaller first: all this for one of 12 million pixels takes five times as
# long (10.6 and 2.2 s beside other programs), and what JPEG does to single pixels of those is gone in a square of some hundred.
_LONGEST = 1600
_SHRINKING, _QUALITY = 0.9, 50  # of a picture that is passed on, each time

# An upright RGB picture, the figure, its random numbers, the side of the network's square: the picture, or a JPEG file's bytes
Change = Callable[[Image.Image, float, np.random.Generator, int], Image.Image | bytes]


@dataclass(frozen=True)
class Handling:
    """One thing that happens to files: what its figures mean, and what does it."""

    name: str
    means: str  # of the figures
    figures: tuple[float, ...]  # not always from least to worst: turned by 90 and by 270 degrees are as bad
    change: Change

    def __call__(
        self, picture: Image.Image, key: int | str, figure: float, *, side: int, seed: int = 0
    ) -> Image.Image | bytes:
        """The picture, or the bytes of a JPEG file, that comes of an upright RGB one; key: what random numbers are drawn by."""
        return self.change(picture, figure, draws(seed, "file", self.name, f"{figure:g}", key), side)


def whole(source: Path | bytes, name: str, *, white: int) -> Image.Image:
    """The upright RGB picture in a file, its long side 1,600 pixels at most; UnreadableImage where there is none."""
    picture = decode_aloud(source, name, Need(_LONGEST // 2, white))
    picture.thumbnail((_LONGEST, _LONGEST), Image.Resampling.BICUBIC)
    return picture


def handled_views(picture: Image.Image, key: int | str, preprocess: Preprocess, *, seed: int = 0) -> np.ndarray:
    """What the network sees of a picture after each of `STATES`: plain views uint8 [states s s 3]."""
    out = np.empty((len(STATES), preprocess.size, preprocess.size, 3), np.uint8)
    for row, (name, figure) in enumerate(STATES):
        changed = HANDLINGS[name](picture, key, figure, side=preprocess.size, seed=seed)
        if isinstance(changed, bytes):
            changed = decode_aloud(changed, str(key), enough(preprocess))
        out[row] = view(changed, preprocess)
    return out


def _saved_again(picture: Image.Image, quality: float, rng: np.random.Generator, side: int) -> bytes:
    return _jpeg(picture, round(quality))


def _passed_on(picture: Image.Image, times: float, rng: np.random.Generator, side: int) -> bytes:
    """Each time shrunk a little and compressed anew, so that the blocks of one time lie across those of the one before."""
    file = b""
    for _ in range(round(times)):
        picture = picture.resize([max(1, round(_SHRINKING * length)) for length in picture.size])
        file = _jpeg(picture, _QUALITY)
        picture = Image.open(io.BytesIO(file), formats=("JPEG",)).convert("RGB")
    return file


def _shrunk(picture: Image.Image, left: float, rng: np.random.Generator, side: int) -> Image.Image:
    """Small ones stay as they are."""
    factor = max(1.0, left * side) / min(picture.size)
    if factor >= 1.0:
        return picture
    return picture.resize([max(1, round(factor * length)) for length in picture.size], Image.Resampling.LANCZOS)


def _turned(picture: Image.Image, degrees: float, rng: np.random.Generator, side: int) -> Image.Image:
    turns = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
    return picture.transpose(turns[round(degrees)])


def _mirrored(picture: Image.Image, _: float, rng: np.random.Generator, side: int) -> Image.Image:
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def _cropped(picture: Image.Image, left: float, rng: np.random.Generator, side: int) -> Image.Image:
    """To a part at a drawn place, of the same shape."""
    width, height = (max(1, round(left * length)) for length in picture.size)
    x, y = int(rng.integers(picture.width - width + 1)), int(rng.integers(picture.height - height + 1))
    return picture.crop((x, y, x + width, y + height))


def _framed(picture: Image.Image, left: float, rng: np.random.Generator, side: int) -> Image.Image:
    """In the middle of a margin: black, grey or white."""
    width, height = (round(length / left) for length in picture.size)
    return _laid(picture, width, height, rng)


def _letterboxed(picture: Image.Image, tall: float, rng: np.random.Generator, side: int) -> Image.Image:
    """As on the screen of a telephone that is held upright: bars above and below, or beside a picture that is longer still."""
    width, height = picture.width, round(tall * picture.width)
    if height < picture.height:
        width, height = round(picture.height / tall), picture.height
    return _laid(picture, max(width, picture.width), height, rng)


def _greyscale(picture: Image.Image, levels: float, rng: np.random.Generator, side: int) -> Image.Image:
    """256, 16 or 2 greys; the last as a fax has them, by dots (Floyd and Steinberg)."""
    grey = picture.convert("L")
    if levels == 2:
        return grey.convert("1").convert("RGB")
    step = 255.0 / (levels - 1)
    return grey.point([round(round(value / step) * step) for value in range(256)]).convert("RGB")


def _laid(picture: Image.Image, width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """In the middle of an even ground."""
    ground = Image.new("RGB", (width, height), ((0,) * 3, (128,) * 3, (255,) * 3)[int(rng.integers(3))])
    ground.paste(picture, ((width - picture.width) // 2, (height - picture.height) // 2))
    return ground


def _jpeg(picture: Image.Image, quality: int) -> bytes:
    """With half the colour resolution, as nearly all programs save it."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return file.getvalue()


HANDLINGS: dict[str, Handling] = {
    one.name: one
    for one in (
        Handling("saved_again", "quality of the JPEG", (50, 20, 8), _saved_again),
        Handling("passed_on", "times shrunk to 0.9 and saved at quality 50", (1, 3, 6), _passed_on),
        Handling("shrunk", "short side, of what the network sees", (0.5, 0.35, 0.25), _shrunk),
        Handling("turned", "degrees, as where EXIF is lost", (90, 180, 270), _turned),
        Handling("mirrored", "left and right, as selfies are", (1,), _mirrored),
        Handling("cropped", "share of each side left, at a drawn place", (0.9, 0.75, 0.5), _cropped),
        Handling("framed", "share of each side inside a margin", (0.8, 0.6, 0.4), _framed),
        Handling("letterboxed", "height of an upright screen to its width", (1.33, 1.78, 2.17), _letterboxed),
        Handling("greyscale", "greys that are left", (256, 16, 2), _greyscale),
    )
}
STATES: tuple[tuple[str, float], ...] = tuple(
    (name, figure) for name, one in HANDLINGS.items() for figure in one.figures
)
