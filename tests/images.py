"""Small test images: factories, so that no binary file lies in the repository; and how they are read."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from burnish.data.cache import Pixels, read_pixels
from burnish.data.catalog import Catalog
from burnish.data.store import PixelStore
from burnish.terms import Preprocess

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)
SMALL = Preprocess(size=32, crop=1.0, interpolation="nearest")


def noise(width: int = 16, height: int = 16, *, seed: int = 0) -> Image.Image:
    """An RGB image of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def quarters(size: int = 32) -> Image.Image:
    """Red top left, green top right, blue bottom left, white bottom right: shows every turn and mirror."""
    image = Image.new("RGB", (size, size))
    half = size // 2
    for at, colour in (((0, 0), RED), ((half, 0), GREEN), ((0, half), BLUE), ((half, half), WHITE)):
        image.paste(colour, (*at, at[0] + half, at[1] + half))
    return image


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    """The bytes of an image file."""
    content = io.BytesIO()
    image.save(content, format, **options)
    return content.getvalue()


def write_images(root: Path, counts: Iterable[tuple[str, int]] | dict[str, int], *, suffix: str = ".png") -> Path:
    """`root`/<folder>/<number><suffix> for each (folder, count), all different and tiny."""
    for folder, count in dict(counts).items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            seed = sum(map(ord, folder)) * 1000 + number
            noise(4, 4, seed=seed).save(root / folder / f"{number:03d}{suffix}")
    return root


def read(catalog: Catalog, *, workers: int = 1, store: PixelStore | None = None) -> Pixels:
    """The pixels of all images of a catalogue, in small squares."""
    return read_pixels(catalog, np.arange(len(catalog)), preprocess=SMALL, workers=workers, store=store)


def png(seed: int) -> bytes:
    """The bytes of a tiny PNG."""
    return encoded(noise(8, 8, seed=seed), "PNG")
