"""How torchvision prepares images for its own weights, which no .pth file says."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from typing import Any

from torchvision.models import get_model_weights, list_models

from burnish.terms import Preprocess

_HALF = (0.5, 0.5, 0.5)
_HASH = re.compile(r"-([0-9a-f]{8})\.pth$")  # torchvision's files are named after the beginning of their SHA-256


def preprocess_of(name: str, sha256: str) -> Preprocess | None:
    """The settings of just this file, or else of torchvision's first weights for an architecture of that name; or None."""
    transforms = _by_hash().get(sha256[:8])
    if transforms is None and name in list_models():
        first = next(iter(get_model_weights(name)), None)
        transforms = first.transforms() if first is not None else None
    found = None if transforms is None else _preprocess(transforms)
    # Torchvision's own network turns these images back into those of the original, whose weights it holds.
    return replace(found, mean=_HALF, std=_HALF) if found is not None and name == "inception_v3" else found


@cache
def _by_hash() -> dict[str, Any]:
    """SHA-256 beginning -> transforms, of all image classifiers that torchvision publishes."""
    found = {}
    for name in list_models():
        for weights in get_model_weights(name):
            match = _HASH.search(weights.url)
            if match and weights.meta.get("categories") and "ImageNet-1K" in weights.meta.get("_metrics", {}):
                found[match[1]] = weights.transforms()
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
