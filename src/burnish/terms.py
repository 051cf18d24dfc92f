"""The words shared by all rooms: shape names and how an image becomes a tensor.

Shapes in docstrings use these dimension names:
    n  images of a set      b  images of a batch     k  classes      d  width of the features
    s  side of the square image the network sees, pixels             p  parameters
    uint8 images are [n s s 3]; network inputs are float [b 3 s s]; features [n d]; logits [n k]
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from numbers import Real
from typing import Any

from burnish.errors import RecipeError

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
FITS = ("crop", "squash")
# Published networks keep 0.7 and more; an image is enlarged to size / crop, so a tiny one takes all memory
LEAST_CROP = 0.25
_MOST_SHIFT = 1e6  # of what is taken from pixel values of 0 to 1, or what they are divided by


WHITES = (255, 1023, 4095, 16383, 65535)  # the largest numbers of 8, 10, 12, 14, 16 bits


@dataclass(frozen=True)
class Preprocess:
    """How an upright RGB image becomes the tensor a backbone expects; it travels with the weights (P1).

    fit "crop": the short side is resized to round(size / crop), then the centre size × size is cut out.
    fit "squash": the whole image is resized to size × size, whatever its shape.
    Then x / 255, minus mean, divided by std, channel by channel.
    """

    size: int = 224  # pixels
    crop: float = 0.875  # fraction of the short side that is kept, LEAST_CROP to 1
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # of values 0 to 1
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    fit: str = "crop"
    white: int = WHITES[-1]  # of greys of more than 8 bits, the number that is white: one of WHITES (`data.deep`)

    def __post_init__(self) -> None:
        problems = []
        if not (type(self.size) is int and 1 <= self.size <= 4096):
            problems.append(f"size is {_cut(self.size)}, expected 1 to 4096 pixels")
        if not (_is_number(self.crop) and LEAST_CROP <= self.crop <= 1.0):
            problems.append(f"crop is {_cut(self.crop)}, expected a fraction of {LEAST_CROP} to 1")
        if self.interpolation not in INTERPOLATIONS:
            problems.append(f"interpolation is {_cut(self.interpolation)}, expected one of {', '.join(INTERPOLATIONS)}")
        if self.fit not in FITS:
            problems.append(f"fit is {_cut(self.fit)}, expected one of {', '.join(FITS)}")
        if not (_are_three(self.mean) and _are_three(self.std) and min(self.std) > 0.0):
            problems.append("mean and std need three numbers each, every std above 0")
        elif not (all(abs(one) < _MOST_SHIFT for one in (*self.mean, *self.std)) and min(self.std) >= 1 / _MOST_SHIFT):
            problems.append("mean and std are not those of pixels")
        if type(self.white) is not int or self.white not in WHITES:
            problems.append(f"white is {_cut(self.white)}, expected one of {', '.join(map(str, WHITES))}")
        if problems:
            raise RecipeError("Preprocess: " + "; ".join(problems))

    def to_json(self) -> dict[str, Any]:
        """A dictionary of plain values, for bundle.json."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Preprocess:
        """The inverse of `to_json`; RecipeError on an unknown or missing key. Earlier versions wrote no `white`."""
        names = {field.name for field in fields(cls)}
        if set(values) | {"white"} != names:
            raise RecipeError(f"Preprocess: has {sorted(values)}, expected {sorted(names)}")
        plain: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**plain)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _are_three(values: object) -> bool:
    """Whether these are a number for each of red, green and blue."""
    return isinstance(values, (tuple, list)) and len(values) == 3 and all(map(_is_number, values))


def _cut(value: object) -> str:
    """A value of anybody's making, short enough for a sentence."""
    return repr(value)[:40]
