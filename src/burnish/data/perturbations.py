"""What training views meet so that a network becomes robust: forms of noise, blur and tone, and mixed chains of operations.

None of them is a kind that robustness is measured by (`data.corruptions`): noise, blur and tone come in other forms than there.
A form may still help with its kin, so `UNLIKE` names the measured kinds of which nothing here is a relative.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F

from burnish.data.trivial import F as Operations
from burnish.data.trivial import affine
from burnish.runtime import draws

Perturbation = Callable[[torch.Tensor, float, np.random.Generator], torch.Tensor]
# Shares of views: left as they are, one perturbation, a chain, a chain and then a perturbation.
_SHARES = (0.2, 0.35, 0.25, 0.2)
_CHAINS, _LONGEST = 3, 3  # AugMix's width and depth (arXiv:1912.02781, section 3)


def _uniform(image: torch.Tensor, strength: float, rng: np.random.Generator) -> torch.Tensor:
    """Noise between two equal limits, each value by itself."""
    reach = 120.0 * strength
    return image + torch.from_numpy(rng.uniform(-reach, reach, image.shape).astype(np.float32))


def _laplace(image: torch.Tensor, strength: float, rng: np.random.Generator) -> torch.Tensor:
    """Noise with long tails, one value for all colours of a pixel, as a sensor's without colour filters."""
    spread = 45.0 * strength
    return image + torch.from_numpy(rng.laplace(0.0, spread, (1, *image.shape[1:])).astype(np.float32))


def _grain(image: torch.Tensor, strength: float, rng: np.random.Generator) -> torch.Tensor:
    """Noise in blotches of two or three pixels, as of film."""
    side, coarse = image.shape[-1], int(rng.integers(2, 4))
    few = torch.from_numpy(rng.uniform(-1.0, 1.0, (1, 3, -(-side // coarse), -(-side // coarse))).astype(np.float32))
    return image + 90.0 * strength * F.interpolate(few, size=(side, side), mode="bilinear")[0]


def _box(image: torch.Tensor, strength: float, rng: np.random.Generator) -> torch.Tensor:
    """The mean over a rectangle, as wide and as high as it is drawn."""
    most = 0.06 * image.shape[-1] * strength
    high, wide = (2 * math.ceil(float(rng.uniform(0.3, 1.0)) * most / 2) + 1 for _ in range(2))
    padded = F.pad(image[None], (wide // 2, wide // 2, high // 2, high // 2), mode="replicate")
    return F.avg_pool2d(padded, (high, wide), stride=1)[0]


def _small(image: torch.Tensor, strength: float, rng: np.random.Generator) -> torch.Tensor:
    """Made small and large again, smoothly."""
    side = image.shape[-1]
    less = max(4, round(side / (1.0 + 4.0 * strength)))
    few = F.interpolate(image[None], size=(less, less), mode="bilinear", antialias=True)
    return F.interpolate(few, size=(side, side), mode="bicubic")[0]


def _gamma(image: torch.Tensor, strength: float, rng: np.random.Generator) -> torch.Tensor:
    """Darker or brighter in the middle tones; black and white stay."""
    power = math.exp((1.0 if rng.random() < 0.5 else -1.0) * strength)
    return 255.0 * (image / 255.0) ** power


PERTURBATIONS: dict[str, Perturbation] = {
    "uniform noise": _uniform, "laplace noise": _laplace, "grain": _grain, "box blur": _box, "made small": _small,
    "gamma": _gamma,
}  # fmt: skip
# Of the measured kinds those without kin here or among the usual views (crops, scales, brightness, contrast, saturation): the
# others are noise and flakes beside noise, blur beside blur, pixels beside what was made small, shear beside rotation, tone
# beside tone.
UNLIKE = frozenset({"fog", "elastic", "jpeg", "occlusion"})
# AugMix's operations less those that measured kinds contain (contrast, colour, brightness and sharpness as there; rotation). Each
# takes uint8 [3 h w] and a strength from -1 to 1.
_OPERATIONS: tuple[Callable[[torch.Tensor, float], torch.Tensor], ...] = (
    lambda image, _: Operations.autocontrast(image),
    lambda image, _: Operations.equalize(image),
    lambda image, s: Operations.posterize(image, 8 - round(4 * abs(s))),
    lambda image, s: Operations.solarize(image, 255.0 * (1.0 - 0.6 * abs(s))),
    lambda image, s: affine(image, shear=(30.0 * s, 0.0)),
    lambda image, s: affine(image, shear=(0.0, 30.0 * s)),
    lambda image, s: affine(image, translate=(round(0.12 * image.shape[-1] * s), 0)),
    lambda image, s: affine(image, translate=(0, round(0.12 * image.shape[-2] * s))),
)


def perturbed(views: torch.Tensor, ids: np.ndarray, *, seed: int, epoch: int, purpose: str = "perturb") -> torch.Tensor:
    """Views uint8 [b s s 3], each changed in a way of its own; the same (seed, purpose, epoch, id) gives the same bits (P7)."""
    out = torch.empty_like(views)
    with _one_thread():
        for row, index in enumerate(ids):
            out[row] = _one(views[row].permute(2, 0, 1), draws(seed, purpose, epoch, int(index))).permute(1, 2, 0)
    return out


@contextmanager
def _one_thread() -> Iterator[None]:
    """Operations on one view are so small that two threads wait for each other: beside another program six times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _one(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """uint8 [3 h w], left as it is, or changed at a random strength."""
    way = int(rng.choice(len(_SHARES), p=_SHARES))
    if way >= 2:
        image = chained(image, rng)
    if way in (1, 3):
        name = list(PERTURBATIONS)[int(rng.integers(len(PERTURBATIONS)))]
        image = _bytes(PERTURBATIONS[name](image.float(), float(rng.uniform(0.05, 1.0)), rng))
    return image


def chained(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """AugMix (Hendrycks et al. 2020, arXiv:1912.02781) of uint8 [3 h w]: chains of operations, mixed with it."""
    shares, own = rng.dirichlet(np.ones(_CHAINS)), float(rng.beta(1.0, 1.0))
    mixed = torch.zeros(image.shape)
    for share in shares:
        chain = image
        for _ in range(int(rng.integers(1, _LONGEST + 1))):
            operation = _OPERATIONS[int(rng.integers(len(_OPERATIONS)))]
            chain = operation(chain, float(rng.uniform(-1.0, 1.0)))
        mixed += float(share) * chain
    return _bytes((1.0 - own) * image + own * mixed)


def _bytes(image: torch.Tensor) -> torch.Tensor:
    return image.round().clamp(0, 255).to(torch.uint8)
