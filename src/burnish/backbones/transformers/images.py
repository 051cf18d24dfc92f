"""How the preprocessor_config.json of a transformers model says that images are prepared, in timm's words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from burnish.backbones.transformers import clip

_MEAN, _STD, _HALF = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (0.5, 0.5, 0.5)
# Pillow's numbers; 1 is Lanczos, nearest to bicubic.
_RESAMPLE = {0: "nearest", 1: "bicubic", 2: "bilinear", 3: "bicubic"}
_PLAIN = {"crop_pct": 0.875, "crop_mode": "center", "interpolation": "bicubic", "mean": _MEAN, "std": _STD}
_WHOLE = {**_PLAIN, "crop_pct": 1.0, "crop_mode": "squash"}
# What is usual for a family, without a preprocessor_config.json; for the others it is _PLAIN.
_USUAL = {
    "vit": {**_WHOLE, "interpolation": "bilinear", "mean": _HALF, "std": _HALF},
    "clip": {**_PLAIN, "crop_pct": 1.0, "mean": clip.MEAN, "std": clip.STD},
    "siglip": {**_WHOLE, "mean": _HALF, "std": _HALF},
    "beit": {**_WHOLE, "interpolation": "bilinear", "mean": _HALF, "std": _HALF},
    "swinv2": _WHOLE,
    "ijepa": {**_WHOLE, "interpolation": "bilinear"},
    "bit": {**_PLAIN, "interpolation": "bilinear", "mean": _HALF, "std": _HALF},
    "pvt_v2": {**_WHOLE, "interpolation": "bilinear"},
    "dinov3": {**_WHOLE, "interpolation": "bilinear"},
    "dino_convnext": {**_WHOLE, "interpolation": "bilinear"},
    "efficientnet": _WHOLE,
    "mobilenet": {**_PLAIN, "interpolation": "bilinear", "mean": _HALF, "std": _HALF},
    "mobilevit": {**_PLAIN, "crop_pct": 256 / 288, "interpolation": "bilinear", "mean": (0.0,) * 3, "std": (1.0,) * 3},
}
# Whose tensors do not tell the size of their images: it is that of the config.json.
_SIZED = ("beit", "swinv2", "dinov3", "efficientnet", "mobilenet", "mobilevit")


def images_of(told: Mapping[str, Any], family: str, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """How images are prepared, in the words of timm's config.json: as preprocessor_config.json says, else as is usual.

    told: what that file says, {} without one. config: what the model's own config.json says.
    """
    if not told:
        side = _side((config or {}).get("image_size")) if family in _SIZED else None
        return {**_USUAL.get(family, _PLAIN), **({} if side is None else {"input_size": (3, side, side)})}
    asked, cropped, share = _side(told.get("size")), _side(told.get("crop_size")), told.get("crop_pct")
    number = told.get("resample", 2)
    found: dict[str, Any] = {"interpolation": _RESAMPLE.get(number, "bicubic") if type(number) is int else "bilinear"}
    found["mean"], found["std"] = _shift(told, family)
    if family == "levit" and asked is not None:  # whose preprocessor resizes to 8 / 7 of what it says
        asked = int(256 / 224 * asked)
    if told.get("do_center_crop", False) and asked is not None and cropped is not None:
        return {
            **found,
            "input_size": (3, cropped, cropped),
            "crop_mode": "center",
            "crop_pct": min(1.0, cropped / asked),
        }
    if isinstance(share, float) and asked is not None and asked < 384:  # ConvNeXt's own: from 384 on nothing is cut
        return {**found, "input_size": (3, asked, asked), "crop_mode": "center", "crop_pct": share}
    size = {} if asked is None else {"input_size": (3, asked, asked)}
    return {**found, **size, "crop_mode": "squash", "crop_pct": 1.0}


def sees_blue_first(told: Mapping[str, Any], family: str) -> bool:
    """Whether the network was given the colours of an image from blue to red, as MobileViT's preprocessor does."""
    return family == "mobilevit" and told.get("do_flip_channel_order", True) is not False


def _shift(told: Mapping[str, Any], family: str) -> tuple[Any, Any]:
    """(mean, std) of images of 0 to 1, of which the file may speak for another scale."""
    # MobileViT's does not normalise, whatever it says.
    normalises = told.get("do_normalize", True) and family != "mobilevit"
    mean = told.get("image_mean", _MEAN) if normalises else (0.0,) * 3
    std = told.get("image_std", _STD) if normalises else (1.0,) * 3
    if family == "efficientnet" and told.get("include_top", True):  # it divides once more
        own = _numbers(told.get("image_std", _HALF))
        std = std if own is None or _numbers(std) is None else [one * two for one, two in zip(std, own, strict=True)]
    factor = told.get("rescale_factor", 1 / 255) if told.get("do_rescale", True) else 1.0
    scale = 255 * factor if isinstance(factor, (int, float)) and factor > 0 else 1.0
    below = 1.0 if told.get("rescale_offset", False) else 0.0
    if (abs(scale - 1.0) < 1e-6 and not below) or _numbers(mean) is None or _numbers(std) is None:
        return mean, std
    return [(one + below) / scale for one in mean], [one / scale for one in std]


def _numbers(values: Any) -> Sequence[float] | None:
    """Three numbers, where they are just that."""
    fits = isinstance(values, (list, tuple)) and len(values) == 3
    return values if fits and all(isinstance(one, (int, float)) for one in values) else None


def _side(value: Any) -> int | None:
    """Pixels a side of {"height": 224, "width": 224}, {"shortest_edge": 224} or 224."""
    if isinstance(value, Mapping):
        value = value.get("shortest_edge", value.get("height"))
    return value if type(value) is int and 1 <= value <= 4096 else None
