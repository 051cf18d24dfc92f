"""TrivialAugment: one random operation of random strength an image (Müller & Hutter 2021, arXiv:2103.10158)."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torchvision.transforms import InterpolationMode


class _Functional:
    """torchvision's functions on images, imported when one is first called: with them comes torch's compiler, two seconds."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module("torchvision.transforms.v2.functional"), name)


F = _Functional()
_BILINEAR = InterpolationMode.BILINEAR
# Each takes uint8 [3 h w] and a strength from -1 to 1; the ranges are the paper's "wide" ones.
_OPERATIONS: tuple[Callable[[torch.Tensor, float], torch.Tensor], ...] = (
    lambda image, _: image,
    lambda image, s: affine(image, shear=(99.0 * s, 0.0)),
    lambda image, s: affine(image, shear=(0.0, 99.0 * s)),
    lambda image, s: affine(image, translate=(round(32 / 224 * image.shape[-1] * s), 0)),
    lambda image, s: affine(image, translate=(0, round(32 / 224 * image.shape[-2] * s))),
    lambda image, s: affine(image, angle=135.0 * s),
    lambda image, s: F.adjust_brightness(image, 1.0 + 0.99 * s),
    lambda image, s: F.adjust_saturation(image, 1.0 + 0.99 * s),
    lambda image, s: F.adjust_contrast(image, 1.0 + 0.99 * s),
    lambda image, s: F.adjust_sharpness(image, 1.0 + 0.99 * s),
    lambda image, s: F.posterize(image, 8 - round(6 * abs(s))),
    lambda image, s: F.solarize(image, 255.0 * (1.0 - abs(s))),
    lambda image, _: F.autocontrast(image),
    lambda image, _: F.equalize(image),
)


def trivial(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """uint8 [3 h w] after one operation drawn from `rng`; rotation and shear leave black corners."""
    operation = _OPERATIONS[int(rng.integers(len(_OPERATIONS)))]
    return operation(image, float(rng.uniform(-1.0, 1.0)))


def affine(
    image: torch.Tensor,
    *,
    angle: float = 0.0,
    translate: tuple[int, int] = (0, 0),
    shear: tuple[float, float] = (0.0, 0.0),
) -> torch.Tensor:
    degrees = [float(np.degrees(np.arctan(value / 100.0))) for value in shear]  # given as a slope in hundredths
    return F.affine(image, angle=angle, translate=list(translate), scale=1.0, shear=degrees, interpolation=_BILINEAR)
