"""The names that Hugging Face transformers gives weights, in timm's words; and how its preprocessor says images are prepared."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from burnish.backbones import clip_names
from burnish.backbones.torchvision_names import joined, renamed

State = dict[str, Tensor]
_MEAN, _STD, _HALF = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (0.5, 0.5, 0.5)
# What stands before all names of a model with a classifier; a bare one has none of them.
_PREFIXES = ("vit.", "deit.", "dinov2.", "dinov2_with_registers.", "swin.", "convnext.", "convnextv2.", "resnet.")
KINDS = (
    "vit", "vit_mae", "vit_msn", "deit", "dinov2", "dinov2_with_registers", "swin", "convnext", "convnextv2", "resnet",
    *clip_names.KINDS,
)  # fmt: skip
# Pillow's numbers; 1 is Lanczos, nearest to bicubic.
_RESAMPLE = {0: "nearest", 1: "bicubic", 2: "bilinear", 3: "bicubic"}

_VIT = (
    (r"embeddings\.cls_token$", "cls_token"),
    (r"embeddings\.distillation_token$", "dist_token"),
    (r"embeddings\.register_tokens$", "register_tokens"),
    (r"embeddings\.mask_token$", "mask_token"),
    (r"embeddings\.position_embeddings$", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"encoder\.layer\.(\d+)\.attention\.(?:attention\.)?(query|key|value)\.", r"blocks.\1.attn.\2."),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"blocks.\1.attn.proj."),
    (r"encoder\.layer\.(\d+)\.(?:layernorm_before|norm1)\.", r"blocks.\1.norm1."),
    (r"encoder\.layer\.(\d+)\.(?:layernorm_after|norm2)\.", r"blocks.\1.norm2."),
    (r"encoder\.layer\.(\d+)\.(?:intermediate\.dense|mlp\.fc1)\.", r"blocks.\1.mlp.fc1."),
    (r"encoder\.layer\.(\d+)\.(?:output\.dense|mlp\.fc2)\.", r"blocks.\1.mlp.fc2."),
    (r"encoder\.layer\.(\d+)\.layer_scale(\d)\.lambda1$", r"blocks.\1.ls\2.gamma"),
    (r"layernorm\.", "norm."),
)
_SWIN = (
    (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"embeddings\.norm\.", "patch_embed.norm."),
    (r"encoder\.(layers\.\d+\.blocks\.\d+)\.attention\.(?:self\.)?(query|key|value)\.", r"\1.attn.\2."),
    (r"encoder\.(layers\.\d+\.blocks\.\d+)\.attention\.(?:self\.)?relative_position_bias_table$",
     r"\1.attn.relative_position_bias_table"),
    (r"encoder\.(layers\.\d+\.blocks\.\d+)\.attention\.output\.dense\.", r"\1.attn.proj."),
    (r"encoder\.(layers\.\d+\.blocks\.\d+)\.layernorm_before\.", r"\1.norm1."),
    (r"encoder\.(layers\.\d+\.blocks\.\d+)\.layernorm_after\.", r"\1.norm2."),
    (r"encoder\.(layers\.\d+\.blocks\.\d+)\.intermediate\.dense\.", r"\1.mlp.fc1."),
    (r"encoder\.(layers\.\d+\.blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"layernorm\.", "norm."),
)  # fmt: skip
_CONVNEXT = (
    (r"embeddings\.patch_embeddings\.", "stem.0."),
    (r"embeddings\.layernorm\.", "stem.1."),
    (r"encoder\.(stages\.\d+)\.downsampling_layer\.(\d)\.", r"\1.downsample.\2."),
    (r"encoder\.(stages\.\d+)\.layers\.(\d+)\.dwconv\.", r"\1.blocks.\2.conv_dw."),
    (r"encoder\.(stages\.\d+)\.layers\.(\d+)\.layernorm\.", r"\1.blocks.\2.norm."),
    (r"encoder\.(stages\.\d+)\.layers\.(\d+)\.pwconv1\.", r"\1.blocks.\2.mlp.fc1."),
    (r"encoder\.(stages\.\d+)\.layers\.(\d+)\.pwconv2\.", r"\1.blocks.\2.mlp.fc2."),
    (r"encoder\.(stages\.\d+)\.layers\.(\d+)\.grn\.", r"\1.blocks.\2.mlp.grn."),
    (r"encoder\.(stages\.\d+)\.layers\.(\d+)\.layer_scale_parameter$", r"\1.blocks.\2.gamma"),
    (r"layernorm\.", "head.norm."),
)
_WORDS = {"q": "query", "k": "key", "v": "value"}
_QUERY = {f"encoder.layer.0.attention.{inner}query.weight" for inner in ("", "attention.")}
_QUERY_OF_SWIN = {f"encoder.layers.0.blocks.0.attention.{inner}query.weight" for inner in ("", "self.")}
_LEFT_OUT = (
    "classifier.",
    "cls_classifier.",
    "distillation_classifier.",
    "pooler.",
    "decoder.",
)


def translated(state: Mapping[str, Tensor]) -> tuple[State, str] | None:
    """(the weights under timm's names, the family); None for others.

    The families: "vit", "dino" (or DeiT), "swin", "convnext", "resnet", "clip".

    ViT, DeiT, DINOv2, Swin (V1), ConvNeXt (V1 and V2) and ResNet of transformers; CLIP of transformers and of OpenCLIP.
    """
    if (of_clip := clip_names.translated(state)) is not None:
        return of_clip, "clip"
    prefix = next((one for one in _PREFIXES if any(name.startswith(one) for name in state)), "")
    inside = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    bare = {_before_5(name): tensor for name, tensor in inside.items() if not name.startswith(_LEFT_OUT)}
    try:
        if _QUERY.intersection(bare) and "embeddings.patch_embeddings.projection.weight" in bare:
            own = any(word in name for name in state for word in ("layer_scale", "distillation_token", "decoder."))
            found = joined(renamed(bare, _VIT))
            if "register_tokens" in found:  # timm knows DINOv2's own layout by its mask token, and brings it to its own
                found.setdefault("mask_token", found["register_tokens"][:, :1])
            return found, "dino" if own else "vit"
        if _QUERY_OF_SWIN.intersection(bare):
            return _swin(bare), "swin"
        if "encoder.stages.0.layers.0.dwconv.weight" in bare:
            return _convnext(bare), "convnext"
        if "embedder.embedder.convolution.weight" in bare:
            return _resnet(bare), "resnet"
    except (KeyError, IndexError, ValueError, RuntimeError):
        return None  # looked like it, and is something else
    return None


def _before_5(name: str) -> str:
    """A name in memory since transformers 5 as the files have it, which kept those of before."""
    name = re.sub(r"^layers\.", "encoder.layer.", name)
    name = re.sub(r"\.attention\.([qkv])_proj\.", lambda told: f".attention.{_WORDS[told[1]]}.", name)
    name = name.replace(".attention.o_proj.", ".attention.output.dense.")
    if ".blocks." in name:
        name = name.replace(".mlp.fc1.", ".intermediate.dense.").replace(".mlp.fc2.", ".output.dense.")
    return name.replace(".relative_position_bias.relative_position_bias_table", ".relative_position_bias_table")


def images_of(told: Mapping[str, Any], family: str) -> dict[str, Any]:
    """How images are prepared, in the words of timm's config.json: as preprocessor_config.json says, else as is usual.

    told: what that file says, {} without one.
    """
    if not told:
        plain = {"crop_pct": 0.875, "crop_mode": "center", "interpolation": "bicubic", "mean": _MEAN, "std": _STD}
        whole = {"crop_pct": 1.0, "crop_mode": "squash", "interpolation": "bilinear", "mean": _HALF, "std": _HALF}
        of_clip = {**plain, "crop_pct": 1.0, "mean": clip_names.MEAN, "std": clip_names.STD}
        return {"vit": whole, "clip": of_clip}.get(family, plain)
    asked, cropped, share = _side(told.get("size")), _side(told.get("crop_size")), told.get("crop_pct")
    number = told.get("resample", 2)
    found: dict[str, Any] = {"interpolation": _RESAMPLE.get(number, "bicubic") if type(number) is int else "bilinear"}
    normalises = told.get("do_normalize", True)
    found["mean"] = told.get("image_mean", _MEAN) if normalises else (0.0,) * 3
    found["std"] = told.get("image_std", _STD) if normalises else (1.0,) * 3
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


def _side(value: Any) -> int | None:
    """Pixels a side of {"height": 224, "width": 224}, {"shortest_edge": 224} or 224."""
    if isinstance(value, Mapping):
        value = value.get("shortest_edge", value.get("height"))
    return value if type(value) is int and 1 <= value <= 4096 else None


def _swin(state: State) -> State:
    """A merging stands at the end of its stage, where timm counts it to the next."""
    plain = {name: tensor for name, tensor in state.items() if not name.endswith("relative_position_index")}
    found = joined(renamed(plain, _SWIN))
    return {
        re.sub(
            r"^encoder\.layers\.(\d+)\.downsample\.", lambda told: f"layers.{int(told[1]) + 1}.downsample.", name
        ): tensor
        for name, tensor in found.items()
    }


def _convnext(state: State) -> State:
    found = renamed(state, _CONVNEXT)
    return {name: one.reshape(-1) if ".mlp.grn." in name else one for name, one in found.items()}


def _resnet(state: State) -> State:
    kinds = {"convolution": ("conv", "downsample.0"), "normalization": ("bn", "downsample.1")}
    found: State = {}
    for name, tensor in state.items():
        stem = re.fullmatch(r"embedder\.embedder\.(convolution|normalization)\.(\w+)", name)
        side = re.fullmatch(
            r"encoder\.stages\.(\d+)\.layers\.(\d+)\.shortcut\.(convolution|normalization)\.(\w+)", name
        )
        main = re.fullmatch(
            r"encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.(\d)\.(convolution|normalization)\.(\w+)", name
        )
        if stem:
            found[f"{kinds[stem[1]][0]}1.{stem[2]}"] = tensor
        elif side:
            found[f"layer{int(side[1]) + 1}.{side[2]}.{kinds[side[3]][1]}.{side[4]}"] = tensor
        elif main:
            found[f"layer{int(main[1]) + 1}.{main[2]}.{kinds[main[4]][0]}{int(main[3]) + 1}.{main[5]}"] = tensor
        else:
            found[name] = tensor
    return found
