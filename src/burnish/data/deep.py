"""Greys of more than 8 bits: which number is white. Cameras and scanners store 10, 12 or 14 bits in files of 16."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from burnish.data.catalog import Catalog
from burnish.data.file import content_of
from burnish.data.looks import MODES, Looks
from burnish.data.pixels import largest_grey
from burnish.errors import UnreadableImage
from burnish.runtime import evenly
from burnish.terms import WHITES

_ASKED = 64  # images of a set
_DEEP = [MODES.index(mode) for mode in MODES if mode.startswith("I")]


def white_of(catalog: Catalog, looks: Looks, entries: np.ndarray) -> tuple[int, int, int]:
    """(the number that is white, the largest number seen, images that were asked): the most that as many bits can say.

    One for a whole set: stretching each image to its own extremes would make brightness depend on the image. Of sets without
    such images, and of those that use all 16 bits, 65535.
    """
    deep = entries[np.isin(looks.headers["mode"][entries], _DEEP)]
    largest, asked = 0, 0
    for entry in deep[evenly(len(deep), _ASKED)].tolist():
        try:
            source = catalog.image(entry)
            found = largest_grey(content_of(source) if isinstance(source, Path) else source)
        except UnreadableImage:  # named when all are decoded
            continue
        largest, asked = max(largest, min(found, WHITES[-1])), asked + 1
    return next(white for white in WHITES if largest <= white) if largest else WHITES[-1], largest, asked
