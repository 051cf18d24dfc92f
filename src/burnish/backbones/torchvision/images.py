"""torchvision's own weights: where they are, and how images are prepared for them, which no .pth file says."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from typing import Any

from torchvision import models
from torchvision.models import get_model_weights, list_models

from burnish.terms import Preprocess

_HALF = (0.5, 0.5, 0.5)
_HASH = re.compile(r"-([0-9a-f]{8,})\.pth$")  # torchvision's files are named after the beginning of their SHA-256


def preprocess_of(name: str, sha256: str) -> Preprocess | None:
    """The settings of just this file, or else of torchvision's first weights for an architecture of that name; or None."""
    transforms = _by_hash().get(sha256[:8])
    if transforms is None and name in list_models():
        first = next(iter(get_model_weights(name)), None)
        transforms = first.transforms() if first is not None else None
    found = None if transforms is None else _preprocess(transforms)
    # Torchvision's own networks turn these images back into those of the original, whose weights it holds.
    return (
        replace(found, mean=_HALF, std=_HALF) if found is not None and name in ("inception_v3", "googlenet") else found
    )


def address_of(name: str) -> str | None:
    """Where torchvision's best weights of that name are, "https://…/NAME-HASH.pth#HASH"; None where it has none."""
    if name not in classifiers():
        return None
    match = _HASH.search(url := _best(name).url)
    return f"{url}#{match[1]}" if match else None


def cost_of(name: str) -> tuple[int, int]:
    """Multiply-adds of an image, and its side in pixels, of the weights at `address_of(name)`."""
    best = _best(name)
    return round(best.meta["_ops"] * 1e9), best.transforms().crop_size[0]


def _best(name: str) -> Any:
    return vars(get_model_weights(name))["DEFAULT"]


def classifiers() -> list[str]:
    """torchvision's names of all its image classifiers."""
    return list_models(module=models)


@cache
def _by_hash() -> dict[str, Any]:
    """SHA-256 beginning -> transforms, of all image classifiers that torchvision publishes."""
    found = {}
    for name in list_models():
        for weights in get_model_weights(name):
            match = _HASH.search(weights.url)
            if match and weights.meta.get("categories") and "ImageNet-1K" in weights.meta.get("_metrics", {}):
                found[match[1][:8]] = weights.transforms()
    return found


def _preprocess(transforms: Any) -> Preprocess | None:
    """torchvision's transforms in our words; None where they are no such (of detection, say)."""
    try:
        return Preprocess(
            size=transforms.crop_size[0],
            crop=transforms.crop_size[0] / transforms.resize_size[0],
            interpolation=transforms.interpolation.value,
            mean=tuple(transforms.mean),
            std=tuple(transforms.std),
        )
    except (AttributeError, TypeError, IndexError):
        return None
