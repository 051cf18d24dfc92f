"""Images of floats: from 0 to 1 they are black to white, as torchvision's ToTensor gives them; other units are refused."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from burnish.errors import DataError

FLOATS = ("float16", "float32", "float64")
_NO_NUMBER = "holds what is no number (NaN or infinite)"


def trouble_of(values: np.ndarray) -> str | None:
    """Why these floats are not those of an image, as a clause, with what to do; None where they are."""
    if not values.size:
        return None  # whoever reads it says that it has no pixels
    low, high = float(values.min()), float(values.max())  # both are NaN where any is
    if not np.isfinite([low, high]).all():
        return _NO_NUMBER
    if low >= 0.0 and high <= 1.0:
        return None
    units = "divide by what is white: image / 255, or what it is there"
    advice = "give it as it is before Normalize" if low < 0.0 else units
    return f"is {values.dtype} from {low:.4g} to {high:.4g}, expected floats from 0 to 1, or uint8; {advice}"


def in_other_units(values: Any) -> str | None:
    """`trouble_of` an image that tells of all that it came with: one in other units does, one without a number does not."""
    trouble = trouble_of(values) if _is_float(values) else None
    return None if trouble == _NO_NUMBER else trouble


def require_units(images: Iterable[Any], *, settled: bool = False) -> None:
    """DataError unless all images of floats among these arrays are from 0 to 1: what one is in, all are.

    settled: whether 0 and 1 alone are black and white, as they are to a model that learnt from such images; else, of a whole set,
    they may as well be the two darkest of 256 greys, and are refused.
    """
    came = between = False
    for at, one in enumerate(images):
        if not _is_float(one):
            continue
        if trouble := trouble_of(one):
            raise DataError(f"Image {at} {trouble}.")
        came = came or one.size > 0
        between = between or bool(((one > 0) & (one < 1)).any())
    if came and not between and not settled:
        raise DataError(
            "The images hold the floats 0 and 1 alone: black and white, or the two darkest greys. Give them as uint8: images * "
            "255 if 1 is white."
        )


def as_bytes(values: np.ndarray) -> np.ndarray:
    """uint8 of floats from 0 to 1, to the nearest: what ToTensor made of bytes becomes those bytes again."""
    return np.rint(values.astype(np.float32) * 255.0).astype(np.uint8)


def _is_float(values: Any) -> bool:
    return isinstance(values, np.ndarray) and values.ndim > 1 and values.dtype.kind == "f"
