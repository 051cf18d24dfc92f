"""Networks that were made to segment: the last stages of some see their maps with holes in the kernels (dilated), not smaller.

No tensor tells of that, so a file would pass for the plain network; what lies beside the network in the file does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from burnish.backbones import timmed
from burnish.backbones.reading import recognise
from burnish.errors import UnknownModel

_STRIDE = {"output_stride": 8}  # timm's word for how torchvision dilates the last two stages
# torchvision's FCN, whose weights are at 0, 1 and 4, and DeepLab.
_TORCHVISIONS = (
    {"classifier.0.weight", "classifier.1.running_mean", "classifier.4.weight"},
    {"classifier.0.convs.0.0.weight"},
)
# DeepLab's head of other libraries, and heads of segmentation_models_pytorch and MMSegmentation, whose networks are dilated
# by settings that no tensor tells.
_OTHERS = re.compile(r"(^|.*\.)aspp\.|decoder\.fpa\.|decode_head\.")
# Networks whose first layers segmentation_models_pytorch gives a border, so that their maps halve evenly.
_PADDED = ("legacy_xception", "inception_v4", "inception_resnet_v2")


@dataclass(frozen=True)
class Made:
    """How a file's network is read, and a clause that says so."""

    description: dict[str, Any]
    note: str


def made(names: Iterable[str], description: dict[str, Any], label: str, *, named: bool) -> Made | None:
    """How the network is read that lies beside a head for segmentation; None where it is read as usual.

    names: of all the file's tensors. named: whether somebody said the architecture, which then is read as said.
    UnknownModel for one that segmentation_models_pytorch pads otherwise, unless it is named.
    """
    held, name = set(names), description["name"]
    if name in _PADDED and any(one.startswith("segmentation_head.") for one in held):
        if not named:
            raise UnknownModel(
                f"{label}: its {name} was made to segment, where segmentation_models_pytorch pads it otherwise than it was "
                f"published; --arch {name} reads it as published, and its features differ"
            )
        return Made(description, "was made to segment, padded otherwise; read as published, so its features differ")
    entry = recognise.index().get(description["name"]) if description["library"] == timmed.LIBRARY else None
    if entry is None or entry.family != "resnet":
        return None
    torchvisions = any(sign <= held for sign in _TORCHVISIONS)
    if torchvisions and not named:
        kwargs = {**description["kwargs"], **_STRIDE}
        note = (
            f"its last two stages dilated, as it was made to segment (plain, and several times as fast: --arch {name})"
        )
        return Made({**description, "kwargs": kwargs}, note)
    if torchvisions or any(_OTHERS.match(one) for one in held):
        return Made(
            description,
            "was made to segment, where the last stages are often dilated; read without, so its features may differ",
        )
    return None
