"""The image half of CLIP (arXiv:2103.00020) under the names of transformers and of OpenCLIP, in timm's words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from burnish.backbones import timmed
from burnish.backbones.torchvision.names import joined, renamed

State = dict[str, Tensor]
KINDS = ("clip", "clip_vision_model")  # what a config.json of transformers calls them
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_QUICK = "quickgelu"  # in timm's names of those whose activation is x · sigmoid(1.702 x)

_TRANSFORMERS = (
    (r"embeddings\.class_embedding$", "cls_token"),
    (r"embeddings\.position_embedding\.weight$", "pos_embed"),
    (r"embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"pre_layrnorm\.", "norm_pre."),  # so it is spelled there
    (r"encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.", r"blocks.\1.attn.\2."),
    (r"encoder\.layers\.(\d+)\.self_attn\.out_proj\.", r"blocks.\1.attn.proj."),
    (r"encoder\.layers\.(\d+)\.layer_norm(\d)\.", r"blocks.\1.norm\2."),
    (r"encoder\.layers\.(\d+)\.mlp\.", r"blocks.\1.mlp."),
    (r"post_layernorm\.", "norm."),
)
_OPENCLIP = (
    (r"class_embedding$", "cls_token"),
    (r"positional_embedding$", "pos_embed"),
    (r"conv1\.", "patch_embed.proj."),
    (r"ln_pre\.", "norm_pre."),
    (r"transformer\.resblocks\.(\d+)\.attn\.in_proj_", r"blocks.\1.attn.qkv."),
    (r"transformer\.resblocks\.(\d+)\.attn\.out_proj\.", r"blocks.\1.attn.proj."),
    (r"transformer\.resblocks\.(\d+)\.ln_(\d)\.", r"blocks.\1.norm\2."),
    (r"transformer\.resblocks\.(\d+)\.mlp\.c_fc\.", r"blocks.\1.mlp.fc1."),
    (r"transformer\.resblocks\.(\d+)\.mlp\.c_proj\.", r"blocks.\1.mlp.fc2."),
    (r"ln_post\.", "norm."),
)
_RESNET = (
    (r"(conv|bn)(\d)\.", r"stem.conv\2.\1."),
    (r"(stages\.\d+\.\d+)\.(conv|bn)2\.", r"\1.conv2_kxk.\2."),
    (r"(stages\.\d+\.\d+)\.(conv|bn)([13])\.", r"\1.conv\3_1x1.\2."),
    (r"(stages\.\d+\.\d+)\.downsample\.0\.", r"\1.shortcut.conv.conv."),
    (r"(stages\.\d+\.\d+)\.downsample\.1\.", r"\1.shortcut.conv.bn."),
    (r"attnpool\.positional_embedding$", "head.pos_embed"),
    (r"attnpool\.([qkv])_proj\.", r"head.\1."),
)

# Of texts, of the comparison with them, and of a head.
_TEXT = (
    "text_model.",
    "text_projection.",
    "visual_projection.",
    "logit_scale",
    "embeddings.position_ids",
    "classifier.",
)


def translated(state: Mapping[str, Tensor]) -> State | None:
    """The weights of the image half under timm's names; None where they are not CLIP's.

    What belongs to texts, and the projection that compares both, is left out.
    """
    prefix = next(
        (one for one in ("vision_model.", "model.vision_model.") if any(name.startswith(one) for name in state)), ""
    )
    of_transformers = _of(state, prefix)
    try:
        if "pre_layrnorm.weight" in of_transformers and "embeddings.class_embedding" in of_transformers:
            kept = {name: one for name, one in of_transformers.items() if not name.startswith(_TEXT)}
            return _shaped(joined(renamed(kept, _TRANSFORMERS), ("q", "k", "v")))
        of_openclip = _of(state, "visual." if any(name.startswith("visual.") for name in state) else "")
        if {"class_embedding", "ln_pre.weight", "transformer.resblocks.0.attn.in_proj_weight"} <= of_openclip.keys():
            return _shaped(renamed({name: one for name, one in of_openclip.items() if name != "proj"}, _OPENCLIP))
        if {"attnpool.positional_embedding", "layer1.0.conv1.weight", "conv3.weight"} <= of_openclip.keys():
            return _resnet(of_openclip)
    except (KeyError, IndexError, ValueError, RuntimeError):
        return None  # looked like it, and is something else
    return None


def chosen(names: Iterable[str], config: Mapping[str, Any]) -> str | None:
    """Of timm's names with the same tensors, that whose activation a config.json speaks of; None where there is none.

    Without a word of it: OpenAI's own where the file is of transformers, whose usual one that is, else GELU.
    """
    inner = config.get("vision_config")
    told = inner if isinstance(inner, Mapping) else config
    usual = "quick_gelu" if config.get("model_type") in KINDS else "gelu"
    quick = told.get("hidden_act", usual) == "quick_gelu"
    # Its ResNets have ReLU in the image half, whatever the half for words has.
    found = [name for name in names if (_QUICK in name) == quick or name.startswith("resnet")]
    return found[0] if found else None


def _resnet(state: State) -> State:
    """A ResNet whose last map is pooled by attention; the projection after that belongs to the comparison with texts."""
    staged = {
        re.sub(r"^layer(\d)\.", lambda told: f"stages.{int(told[1]) - 1}.", name): one
        for name, one in state.items()
        if not name.startswith("attnpool.c_proj.")
    }
    return renamed(staged, _RESNET)


def activation_taken(name: str) -> str:
    """A clause for a file that says nothing of its activation; "" where timm has a network of that name with one alone."""
    other = name.replace("_clip_", f"_clip_{_QUICK}_")
    if _QUICK in name or other == name or not timmed.is_known(other):
        return ""
    return f", its activation taken to be GELU (if it is QuickGELU, as OpenAI's and DFN's is, say --arch {other})"


def _of(state: Mapping[str, Tensor], prefix: str) -> State:
    return {name.removeprefix(prefix): one for name, one in state.items() if name.startswith(prefix)}


def _shaped(state: State) -> State:
    """Token [d] as [1 1 d], places [n d] as [1 n d]."""
    state["cls_token"] = state["cls_token"].reshape(1, 1, -1)
    state["pos_embed"] = state["pos_embed"].reshape(1, *state["pos_embed"].shape[-2:])
    return state
