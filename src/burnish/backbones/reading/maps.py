"""Networks of timm that were made to give maps (features_only=True): encoders of detectors and of networks that segment.

What lies between the last map and the classifier is no part of them, so their tensors are not all of any architecture's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from burnish.backbones.reading import recognise

Shapes = Mapping[str, tuple[int, ...]]
TOP = {"top": "none"}  # the option of such a network: nothing comes after its last map
# Layers after the last map, by where timm's architectures have them; those of EfficientNets and MobileNets bring an activation.
LAYERS = (
    "conv_head", "norm_head", "bn2", "act2", "norm", "head.norm", "head.pre_logits", "head.last_conv", "final_conv",
    "pre_logits",
)  # fmt: skip
_NORM, _COUNTED = ("weight", "bias"), ("weight", "bias", "running_mean", "running_var")
# Channels of the convolution above the last map, of all EfficientNets and MobileNets of timm 1.0.
_WIDEST = (256, 1024, 1280, 1344, 1408, 1536, 1792, 1984, 2048, 2152, 2304, 2456, 2560, 2816, 5504)
_BLOCK = re.compile(r"blocks\.(\d+)\.")


def recognised(states: Iterable[Shapes]) -> list[str]:
    """Architectures of which one of these states holds all but what comes after the last map; the plainest first, or []."""
    tried = (recognise.recognised({**shapes, **top}) for shapes in states for top in _tops(shapes))
    return next((names for names in tried if names), [])


def _tops(shapes: Shapes) -> Iterator[dict[str, tuple[int, ...]]]:
    """What may come after a last map of the widths that the shapes speak of."""
    if "pos_embed" in shapes or any(name.startswith(LAYERS) for name in shapes):  # of tokens, or whole
        return
    if shapes.get("features.0.weight") == (64, 3, 3, 3):  # a VGG's hidden layers
        yield {"pre_logits.fc1.weight": (4096, 512, 7, 7), "pre_logits.fc1.bias": (4096,),
               "pre_logits.fc2.weight": (4096, 4096, 1, 1), "pre_logits.fc2.bias": (4096,)}  # fmt: skip
    if "conv_stem.weight" in shapes:
        yield from _of_efficientnets(shapes)
        return
    for width in sorted({shape[0] for shape in shapes.values() if len(shape) == 1}, reverse=True):
        for place, kinds in (("head.norm", _NORM), ("norm", _NORM), ("norm", _COUNTED)):
            yield _norm(place, width, kinds)
        # MaxViT's and CoAtNet's
        layer = {"head.pre_logits.fc.weight": (width, width), "head.pre_logits.fc.bias": (width,)}
        yield {**_norm("head.norm", width, _NORM), **layer}
        if "stem.0.conv_kxk.0.conv.weight" in shapes:
            yield _last_of_fastvit(2 * width)
        if any(
            name.startswith("stem.stem") for name in shapes
        ):  # HGNet's two kinds, one with a scale of its activation
            kernel = {"head.last_conv.0.weight": (2048, width, 1, 1)}
            yield kernel
            yield {**kernel, "head.last_conv.2.scale": (1,), "head.last_conv.2.bias": (1,)}


def _of_efficientnets(shapes: Shapes) -> Iterator[dict[str, tuple[int, ...]]]:
    """A convolution to one of the usual numbers of channels, with a norm or a bias, of EfficientNets and MobileNets."""
    places = [int(told[1]) for name in shapes if (told := _BLOCK.match(name))]
    last = f"blocks.{max(places, default=0)}."
    narrow = {shape[0] for name, shape in shapes.items() if name.startswith(last) and len(shape) == 4}
    for channels in sorted(narrow):
        for width in _WIDEST:
            kernel = {"conv_head.weight": (width, channels, 1, 1)}
            yield {**kernel, **_norm("bn2", width, _COUNTED)}
            yield {**kernel, "conv_head.bias": (width,)}
            yield {**kernel, **_norm("norm_head", width, _COUNTED)}


def _last_of_fastvit(width: int) -> dict[str, tuple[int, ...]]:
    """A depthwise convolution in two branches, and weights of its channels."""
    found = {
        "final_conv.conv_kxk.0.conv.weight": (width, 1, 3, 3),
        "final_conv.conv_scale.conv.weight": (width, 1, 1, 1),
    }
    for branch in ("conv_kxk.0", "conv_scale"):
        found |= _norm(f"final_conv.{branch}.bn", width, _COUNTED)
    for place, ends in (("fc1", (width // 16, width)), ("fc2", (width, width // 16))):
        found |= {f"final_conv.se.{place}.weight": (*ends, 1, 1), f"final_conv.se.{place}.bias": ends[:1]}
    return found


def _norm(place: str, width: int, kinds: Sequence[str]) -> dict[str, tuple[int, ...]]:
    return {f"{place}.{kind}": (width,) for kind in kinds}
