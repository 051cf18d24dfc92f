"""Greys of more than 8 bits: which number is white. Cameras and scanners store 10, 12 or 14 bits in files of 16."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from burnish.data.catalog import Catalog
from burnish.data.file import content_of
from burnish.data.looks import MODES, Looks
from burnish.data.pixels import largest_grey, one_by_one, quiet
from burnish.errors import UnreadableImage
from burnish.granted import cores
from burnish.runtime import evenly
from burnish.terms import WHITES

# Images of a set, and their pixels together (a second on two cores), of which a few are decoded however large they are.
_ASKED, _PIXELS, _FEWEST = 64, 2**25, 4
_DEEP = [MODES.index(mode) for mode in MODES if mode.startswith("I")]


def white_of(catalog: Catalog, looks: Looks, entries: np.ndarray) -> tuple[int, int, int]:
    """(the number that is white, the largest number seen, images that were asked): the most that as many bits can say.

    One for a whole set: stretching each image to its own extremes would make brightness depend on the image. Of sets without
    such images, and of those that use all 16 bits, 65535.
    """
    deep = entries[np.isin(looks.headers["mode"][entries], _DEEP)]
    deep = deep[evenly(len(deep), _ASKED)]
    sizes = looks.headers["width"][deep].astype(np.int64) * looks.headers["height"][deep]
    deep = deep[: max(_FEWEST, int(np.searchsorted(sizes.cumsum(), _PIXELS)))]

    def asked(place: int) -> int | None:
        try:
            source = catalog.image(int(deep[place]))
            return min(largest_grey(content_of(source) if isinstance(source, Path) else source), WHITES[-1])
        except UnreadableImage:  # named when all are decoded
            return None

    with quiet():
        found = [one for one in one_by_one(asked, len(deep), workers=cores()) if one is not None]
    largest = max(found, default=0)
    return next(white for white in WHITES if largest <= white) if largest else WHITES[-1], largest, len(found)
