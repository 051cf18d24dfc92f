"""What OpenCLIP says of a network, and its image half where that is a network of timm's; other halves are refused by name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from burnish.backbones.transformers import clip
from burnish.errors import UnknownModel

State = dict[str, Tensor]
CONFIG = "open_clip_config.json"  # where it says how a network is made
_TRUNK = "visual.trunk."  # where it has a network of timm's
_PLAIN = {
    "mean": list(clip.MEAN),
    "std": list(clip.STD),
    "crop_pct": 1.0,
    "crop_mode": "center",
    "interpolation": "bicubic",
}
_HALF = {**_PLAIN, "mean": [0.5] * 3, "std": [0.5] * 3, "crop_mode": "squash"}
# How OpenCLIP prepares images for its own weights, by what timm's names of their networks begin with.
_USUAL = (
    (r"vit_\w+_siglip_", _HALF),
    (r"vit_pe_core_", {**_HALF, "interpolation": "bilinear"}),
    (r"fastvit_mci[012]|vit_base_mci_", {**_PLAIN, "mean": [0.0] * 3, "std": [1.0] * 3, "interpolation": "bilinear"}),
    (r"fastvit_mci", {**_PLAIN, "interpolation": "bilinear"}),
)
_MODES = {"shortest": "center", "squash": "squash"}  # its words for how an image becomes square, and timm's


def told_by(config: Mapping[str, Any]) -> dict[str, Any]:
    """What its open_clip_config.json says of the activation and of images, in the words of transformers and of timm."""
    model, images = config.get("model_cfg"), config.get("preprocess_cfg")
    found: dict[str, Any] = {}
    if isinstance(model, Mapping) and model.get("quick_gelu") is True:
        found["vision_config"] = {"hidden_act": "quick_gelu"}
    if isinstance(images, Mapping):
        found["pretrained_cfg"] = {key: images[key] for key in ("mean", "std", "interpolation") if images.get(key)}
        if (mode := _MODES.get(str(images.get("resize_mode")))) is not None:
            found["pretrained_cfg"]["crop_mode"] = mode
    return found


def trunk(states: Sequence[State]) -> State | None:
    """The network of timm's that is the image half, out of one of these forms of a file's weights; None where there is none."""
    for state in states:
        found = {name.removeprefix(_TRUNK): one for name, one in state.items() if name.startswith(_TRUNK)}
        if found and "logit_scale" in state:
            return found
    return None


def images_of(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """How the images of such a network of that name are prepared, in timm's words: as the config says, else as OpenCLIP does."""
    usual = next((images for begin, images in _USUAL if re.match(begin, name)), _PLAIN)
    return {**usual, **told_of_images(config)}


def told_of_images(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config says of images in timm's words, {} where it says nothing."""
    told = config.get("pretrained_cfg")
    return dict(told) if isinstance(told, Mapping) else {}


def refuse_others(states: Sequence[State], label: str) -> None:
    """UnknownModel for image halves of OpenCLIP's own that no network here computes."""
    for state in states:
        if "visual.attn_pool.query" in state:
            count = state["visual.attn_pool.query"].shape[0]
            raise UnknownModel(
                f"{label}: is a CoCa of OpenCLIP, whose image half pools its patches by attention of {count} queries, which no "
                "network here computes; of OpenCLIP's those of CLIP and of timm (visual.trunk) are read"
            )
        if "visual.class_embedding" in state and "visual.ln_pre.weight" not in state:
            raise UnknownModel(
                f"{label}: is a CLIPA of OpenCLIP, or another without a norm before its blocks (visual.ln_pre), which no network "
                "here computes; of OpenCLIP's those of CLIP and of timm (visual.trunk) are read"
            )
