"""What befalls photographs, in five severities (Hendrycks & Dietterich 2019, arXiv:1903.12261), and what cameras do besides.

Each takes a plain view and gives one of the same size, by random numbers with an address (P7): a pure function of seed, image,
corruption and severity, whatever the batch. The figures are the authors' own for 224 px, or nearly so. Lengths grow with
the side; what is of single pixels (noise, pixelate) grows with its square root, about where the authors' own figures for 32 px
lie (CIFAR-10-C: noise 0.26 to 0.5 of that at 224 px, 0.38 by this rule). Of their fifteen frost is not here: it is pasted from
photographs, which are not ours to ship, and nothing says that crystals which we draw would stand for those.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.fft import irfft2, next_fast_len, rfft2
from scipy.ndimage import gaussian_filter

from burnish.errors import NoSuchName, RecipeError, nearest, shown
from burnish.runtime import draws

SEVERITIES = (1, 2, 3, 4, 5)
_SIDE = 224  # pixels, what the authors' figures are for
_GAMMA = 2.2  # of display values against light, nearly that of sRGB
_WELL = 500.0  # photons of white at full exposure, in each pixel of 224 x 224: what low light leaves few of

# An image uint8 [s s 3], the severity's figure, its random numbers: the corrupted image, uint8 [s s 3]
Change = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Corruption:
    """One kind of damage: what it is to an eye, its figure at each severity, and what makes it."""

    name: str
    means: str  # of the figure
    figures: tuple[float, float, float, float, float]
    change: Change
    published: bool = True  # whether it is among the paper's; the others stand for cameras in use

    def __call__(self, images: np.ndarray, ids: Sequence[int | str], *, severity: int, seed: int = 0) -> np.ndarray:
        """uint8 [n s s 3] of plain views uint8 [n s s 3]; ids [n] are what the random numbers are drawn by.

        RecipeError for a severity that is not 1 to 5, ValueError where there are not as many ids as images.
        """
        if severity not in SEVERITIES:
            raise RecipeError(
                f"the severity of a corruption is {shown(repr(severity))}, expected 1 (least) to 5 (worst)"
            )
        figure, out = self.figures[severity - 1], np.empty_like(images)
        for row, (image, key) in enumerate(zip(images, ids, strict=True)):
            out[row] = self.change(image, figure, draws(seed, "corruption", self.name, severity, key))
        return out


def corruption_named(name: str) -> Corruption:
    """The corruption of that name; NoSuchName with the nearest ones."""
    if name not in CORRUPTIONS:
        raise NoSuchName(
            f"no corruption {shown(repr(name))} (nearest: {nearest(name, CORRUPTIONS)}); there are {', '.join(CORRUPTIONS)}"
        )
    return CORRUPTIONS[name]


def _gaussian_noise(image: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    noise = rng.standard_normal(image.shape, np.float32)
    return _bytes(image + noise * np.float32(255.0 * deviation * _of_pixels(image)))


def _shot_noise(image: np.ndarray, photons: float, rng: np.random.Generator) -> np.ndarray:
    white = photons / _of_pixels(image) ** 2  # the deviation goes with the root of their number
    return _bytes(rng.poisson(image * (white / 255.0)) * (255.0 / white))


def _impulse_noise(image: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    lot = rng.random(image.shape, np.float32)
    hit = min(share * _of_pixels(image), 1.0)
    return np.where(lot >= hit, image, np.where(lot < hit / 2, np.uint8(0), np.uint8(255)))


def _defocus_blur(image: np.ndarray, radius: float, rng: np.random.Generator) -> np.ndarray:
    """The mean over a disk. Its points are shared out among the pixels around, so that one smaller than a pixel blurs too."""
    radius *= _of_lengths(image)
    reach = math.ceil(radius) + 1
    across = np.linspace(-radius, radius, 8 * reach + 1)
    x, y = (one.ravel() for one in np.meshgrid(across, across))
    return _convolved(image, _shared(x, y, (np.hypot(x, y) <= radius).astype(np.float64), reach))


def _glass_blur(image: np.ndarray, reach: float, rng: np.random.Generator) -> np.ndarray:
    """Every pixel fetched from a drawn place near it, between two blurs, as through frosted glass.

    The authors swap neighbours one by one, some times over, which takes seconds an image; the figures are those at which
    photographs are changed by as much as by theirs (LOG.md), and the blurs nearly theirs.
    """
    scale, side = _of_lengths(image), image.shape[0]
    soft = (0.5 + 0.17 * reach) * scale
    field = rng.uniform(-reach * scale, reach * scale, (2, side, side)).astype(np.float32)
    return _softened(_moved(_softened(image, soft), np.eye(2), field), soft)


def _motion_blur(image: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    """Along a line of any direction within 45 degrees of level, fading from one end as half a normal distribution."""
    deviation *= _of_lengths(image)
    # 2.6 deviations: where the authors' own ends at the latest severities
    return _convolved(image, _streak(deviation, 2.6 * deviation, rng.uniform(-math.pi / 4, math.pi / 4)))


def _streak(deviation: float, length: float, angle: float) -> np.ndarray:
    """A kernel [k k] along a line of that length, pixels, and angle, fading as half a normal distribution."""
    reach = math.ceil(length) + 1
    along = np.linspace(0.0, length, 8 * reach)
    strength = np.exp(-0.5 * (along / deviation) ** 2)
    middle = float((along * strength).sum() / strength.sum())  # so that the whole does not move
    return _shared((along - middle) * math.cos(angle), (along - middle) * math.sin(angle), strength, reach)


def _shared(x: np.ndarray, y: np.ndarray, strength: np.ndarray, reach: int) -> np.ndarray:
    """A kernel [k k], k = 2 reach + 1, of points about its middle: each is shared out among the four pixels around it."""
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    x, y = x + reach, y + reach
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    for right in (0, 1):
        for below in (0, 1):
            part = (1 - abs(x - left - right)) * (1 - abs(y - top - below))
            np.add.at(kernel, (top + below, left + right), strength * part)
    return kernel


def _zoom_blur(image: np.ndarray, largest: float, rng: np.random.Generator) -> np.ndarray:
    picture, side = Image.fromarray(image), image.shape[0]
    total = image.astype(np.float32)
    factors = np.linspace(1.0, largest, 11)
    for factor in factors:
        margin = side * (1.0 - 1.0 / factor) / 2
        box = (margin, margin, side - margin, side - margin)
        total += np.asarray(picture.resize((side, side), Image.Resampling.BILINEAR, box=box))
    return _bytes(total / (len(factors) + 1))


# Of a flake's grid the mean and deviation, pixels of 224 of a cell, what is no flake, the deviation of its fall in pixels of 224,
# and the share of the picture's own colours: the authors' rows.
_SNOW = (
    (0.1, 0.3, 3.0, 0.5, 4.0, 0.8),
    (0.2, 0.3, 2.0, 0.5, 4.0, 0.7),
    (0.55, 0.3, 4.0, 0.9, 8.0, 0.7),
    (0.55, 0.3, 4.5, 0.85, 8.0, 0.65),
    (0.55, 0.3, 2.5, 0.85, 12.0, 0.55),
)
_FALL = 12.0  # pixels of 224 that a flake is drawn out to at most


def _snow(image: np.ndarray, row: float, rng: np.random.Generator) -> np.ndarray:
    """Flakes that fall within 45 degrees of straight down, two layers of them, over a picture that is paled towards grey."""
    mean, deviation, cell, least, fall, own = _SNOW[round(row) - 1]
    scale, side = _of_lengths(image), image.shape[0]
    across = max(1, round(_SIDE / cell))
    grid = torch.from_numpy(rng.normal(mean, deviation, (1, 1, across, across)).astype(np.float32))
    flakes = F.interpolate(grid, size=(side, side), mode="bilinear", antialias=True)[0, 0].numpy()
    flakes = np.where(flakes < least, 0.0, flakes.clip(0.0, 1.0))[:, :, None]
    angle = rng.uniform(math.pi / 4, 3 * math.pi / 4)
    streak = _streak(fall * scale, min(2.6 * fall, _FALL) * scale, angle)
    fallen = _convolved(_bytes(255.0 * np.repeat(flakes, 3, 2)), streak).astype(np.float32)
    grey = (image @ np.array([0.299, 0.587, 0.114], np.float32))[:, :, None]
    paled = own * image + (1.0 - own) * np.maximum(image, 1.5 * grey + 127.5)
    return _bytes(paled + fallen + fallen[::-1, ::-1])


# The fog's light beside white, and how many times each octave of its clouds is lower than the one before: the authors' rows.
# Their decay counts twice, for it divides both factors of what they draw.
_FOG = ((1.5, 2.0**2), (2.0, 2.0**2), (2.5, 1.7**2), (2.5, 1.5**2), (3.0, 1.4**2))


def _fog(image: np.ndarray, row: float, rng: np.random.Generator) -> np.ndarray:
    """Clouds of eight octaves, over an image whose light is dimmed by as much."""
    thickness, lower = _FOG[round(row) - 1]
    clouds = torch.zeros(1, 1, *image.shape[:2])
    for octave in range(1, 9):
        grid = torch.from_numpy(rng.random((1, 1, 2**octave + 1, 2**octave + 1), np.float32))
        clouds += F.interpolate(grid, size=image.shape[:2], mode="bilinear", antialias=True) / lower**octave
    clouds -= clouds.min()
    clouds /= clouds.max().clamp(min=1e-6)
    values = image / np.float32(255.0)
    brightest = float(values.max())
    dimmed = (values + thickness * clouds[0, 0, :, :, None].numpy()) * (brightest / (brightest + thickness))
    return _bytes(dimmed * 255.0)


def _brightness(image: np.ndarray, more: float, rng: np.random.Generator) -> np.ndarray:
    """More of the value of HSV: hue and saturation stay."""
    value = image.max(2, keepdims=True).astype(np.float32)
    raised = np.minimum(value + 255.0 * more, 255.0)
    return _bytes(np.where(value > 0, image * (raised / np.maximum(value, 1.0)), raised))


def _contrast(image: np.ndarray, left: float, rng: np.random.Generator) -> np.ndarray:
    means = image.mean((0, 1), keepdims=True, dtype=np.float32)
    return _bytes((image - means) * np.float32(left) + means)


def _elastic(image: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    """Every place moved by a smooth random field, whose parts are as wide as the paper's at severities 3 to 5 (0.011 s).

    The figure is the root mean square of the way, as a fraction of the side. At 1 and 2 the authors move the whole image about;
    here they are less of the same.
    """
    side = image.shape[0]
    field = rng.standard_normal((2, side, side), np.float32)
    field = np.stack([gaussian_filter(one, max(0.011 * side, 0.5), truncate=3.0, mode="reflect") for one in field])
    field *= deviation * side / max(float(np.sqrt((field**2).mean())), 1e-6)
    return _moved(image, np.eye(2), field)


def _pixelate(image: np.ndarray, left: float, rng: np.random.Generator) -> np.ndarray:
    side = image.shape[0]
    few = max(1, round(side * left ** _of_pixels(image)))
    small = Image.fromarray(image).resize((few, few), Image.Resampling.BOX)
    return np.asarray(small.resize((side, side), Image.Resampling.NEAREST))


def _jpeg(image: np.ndarray, quality: float, rng: np.random.Generator) -> np.ndarray:
    """The steps of its table grow with the side, so that what is lost is as large a part of the image."""
    steps = (5000.0 / quality if quality < 50 else 200.0 - 2 * quality) * _of_lengths(image)  # libjpeg's own scale
    scaled = round(5000.0 / steps if steps > 100 else 100.0 - steps / 2)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=max(1, scaled))
    return np.asarray(Image.open(file, formats=("JPEG",)))


def _low_light(image: np.ndarray, stops: float, rng: np.random.Generator) -> np.ndarray:
    """So many halvings of the light, and the noise of the photons that are left."""
    photons = _WELL * 2.0**-stops / _of_pixels(image) ** 2
    levels = (np.arange(256) / 255.0) ** _GAMMA * photons
    light = rng.poisson(levels[image]) / photons * 2.0**-stops
    return _bytes(255.0 * light ** (1 / _GAMMA))


def _colour_cast(image: np.ndarray, gain: float, rng: np.random.Generator) -> np.ndarray:
    """A white balance for other light: too warm or too cool by so much in red, and as much the other way in blue."""
    turned = gain if rng.random() < 0.5 else -gain
    return _bytes(image * np.array([1.0 + turned, 1.0, 1.0 - turned], np.float32))


def _rotation(image: np.ndarray, degrees: float, rng: np.random.Generator) -> np.ndarray:
    turned = math.radians(degrees if rng.random() < 0.5 else -degrees)
    matrix = np.array([[math.cos(turned), -math.sin(turned)], [math.sin(turned), math.cos(turned)]])
    return _moved(image, matrix)


def _occlusion(image: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """A square of one colour over so much of the area (Cutout, arXiv:1708.04552)."""
    side = image.shape[0]
    edge = max(1, round(side * math.sqrt(share)))
    top, left = rng.integers(0, side - edge + 1, 2)
    out = image.copy()
    out[top : top + edge, left : left + edge] = rng.integers(0, 256, 3)
    return out


def _of_lengths(image: np.ndarray) -> float:
    return image.shape[0] / _SIDE


def _of_pixels(image: np.ndarray) -> float:
    return math.sqrt(image.shape[0] / _SIDE)


def _bytes(values: np.ndarray) -> np.ndarray:
    """uint8 to the nearest of values 0 to 255 and what lies beyond."""
    return np.rint(values).clip(0.0, 255.0).astype(np.uint8)


def _softened(image: np.ndarray, deviation: float) -> np.ndarray:
    """Blurred by a normal distribution of that deviation, pixels."""
    return _bytes(gaussian_filter(image.astype(np.float32), (deviation, deviation, 0.0), mode="reflect"))


def _convolved(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """An image blurred by a kernel [k k], k odd, of any sum; mirrored at its edges."""
    reach, side = kernel.shape[0] // 2, image.shape[0]
    padded = np.pad(image.transpose(2, 0, 1).astype(np.float32), ((0, 0), (reach, reach), (reach, reach)), "symmetric")
    fast = next_fast_len(padded.shape[-1] + kernel.shape[0] - 1, real=True)
    weights = (kernel / kernel.sum()).astype(np.float32)
    spectrum = np.asarray(rfft2(padded, (fast, fast))) * np.asarray(rfft2(weights, (fast, fast)))
    whole = np.asarray(irfft2(spectrum, (fast, fast)))
    inside = slice(2 * reach, 2 * reach + side)
    return _bytes(whole[:, inside, inside].transpose(1, 2, 0))


def _moved(image: np.ndarray, matrix: np.ndarray, field: np.ndarray | None = None) -> np.ndarray:
    """Pixels fetched from where matrix [2 2] about the middle and a field [2 s s], pixels, say; mirrored at the edges."""
    side = image.shape[0]
    grid = F.affine_grid(torch.tensor(np.c_[matrix, [0, 0]][None], dtype=torch.float32), [1, 3, side, side], False)
    if field is not None:
        grid = grid + torch.from_numpy(field).permute(1, 2, 0)[None] * (2.0 / side)
    pixels = torch.tensor(image).permute(2, 0, 1)[None].float()  # a copy: kept pixels cannot be written to
    return _bytes(F.grid_sample(pixels, grid, "bilinear", "reflection", False)[0].permute(1, 2, 0).numpy())


CORRUPTIONS: dict[str, Corruption] = {
    one.name: one
    for one in (
        Corruption("gaussian_noise", "deviation, of 1", (0.08, 0.12, 0.18, 0.26, 0.38), _gaussian_noise),
        Corruption("shot_noise", "photons of white", (60, 25, 12, 5, 3), _shot_noise),
        Corruption("impulse_noise", "share of values black or white", (0.03, 0.06, 0.09, 0.17, 0.27), _impulse_noise),
        Corruption("defocus_blur", "radius, px of 224", (3, 4, 6, 8, 10), _defocus_blur),
        Corruption("glass_blur", "farthest way of a pixel, px of 224", (2.2, 2.5, 4.2, 4.8, 6.2), _glass_blur),
        Corruption("motion_blur", "deviation, px of 224", (3, 5, 8, 12, 15), _motion_blur),
        Corruption("zoom_blur", "largest zoom", (1.10, 1.15, 1.20, 1.25, 1.30), _zoom_blur),
        Corruption("snow", "row of the paper's table", (1, 2, 3, 4, 5), _snow),
        Corruption("fog", "row of the paper's table", (1, 2, 3, 4, 5), _fog),
        Corruption("brightness", "added, of 1", (0.1, 0.2, 0.3, 0.4, 0.5), _brightness),
        Corruption("contrast", "share left", (0.4, 0.3, 0.2, 0.1, 0.05), _contrast),
        Corruption("elastic", "way moved, of the side", (0.0012, 0.0024, 0.0036, 0.0051, 0.0087), _elastic),
        Corruption("pixelate", "share of the side's pixels left", (0.6, 0.5, 0.4, 0.3, 0.25), _pixelate),
        Corruption("jpeg", "quality", (25, 18, 15, 10, 7), _jpeg),
        Corruption("low_light", "stops of light lost", (1, 2, 3, 4, 5), _low_light, published=False),
        Corruption(
            "colour_cast", "gain of red against blue", (0.06, 0.12, 0.2, 0.3, 0.4), _colour_cast, published=False
        ),
        Corruption("rotation", "degrees", (2, 4, 6, 9, 12), _rotation, published=False),
        Corruption("occlusion", "share of the area", (0.02, 0.05, 0.1, 0.17, 0.25), _occlusion, published=False),
    )
}
