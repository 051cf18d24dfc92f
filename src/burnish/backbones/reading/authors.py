"""ConvNeXt, Swin, MobileOne and DINO's transformers under the names that their authors' files have, in timm's words."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from burnish.backbones.reading import openmmlab

State = dict[str, Tensor]
Options = dict[str, float | str]
_CONVNEXT = (
    *openmmlab.CONVNEXT_PLACES,
    (r"\.dwconv\.", ".conv_dw."),
    (r"\.pwconv(\d)\.", r".mlp.fc\1."),
    (r"\.grn\.gamma$", ".mlp.grn.weight"),
    (r"\.grn\.beta$", ".mlp.grn.bias"),
    (r"^norm\.", "head.norm."),
    (r"^head\.(?!norm\.)", "head.fc."),
)
_MOBILEONE = (
    (r"^stage0\.", "stem."),
    (r"^stage(\d)\.", lambda told: f"stages.{int(told[1]) - 1}."),
    (r"\.rbr_conv\.", ".conv_kxk."),
    (r"\.rbr_scale\.", ".conv_scale."),
    (r"\.rbr_skip\.", ".identity."),
    (r"\.se\.reduce\.", ".attn.fc1."),
    (r"\.se\.expand\.", ".attn.fc2."),
    (r"^linear\.", "head.fc."),
)
_DINO_V3 = (
    (r"^storage_tokens$", "reg_token"),
    (r"\.ls(\d)\.gamma$", r".gamma_\1"),
    (r"\.mlp\.w1\.", ".mlp.fc1_g."),
    (r"\.mlp\.w2\.", ".mlp.fc1_x."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
)
# Of Swin, tables that follow from the windows; of DINOv3, what follows from the size, or was for its training alone.
_TABLES = ("relative_position_index", "attn_mask")
_PERIODS = "rope_embed.periods"
_UNUSED = ("mask_token", "rope_embed.", "local_cls_norm.", "head.")
_CHUNKED = re.compile(r"^blocks\.\d+\.(?=\d+\.)")  # DINOv2's training keeps its blocks in groups, counted through


def translated(state: Mapping[str, Tensor]) -> tuple[State, Options] | None:
    """The weights under timm's names, and options the network then needs; None where they are not of these authors.

    A merging stands at the end of its stage, where timm counts it to the next. Of Swin V2 no weight tells the windows.
    """
    if (found := _translated(state)) is not None:
        return found, {}
    if {"storage_tokens", "blocks.0.attn.qkv.bias"} <= state.keys() and _turns_as_timms(state.get(_PERIODS)):
        return _dino_v3(state), {"global_pool": "token"}  # the usual of timm's is the mean of the patches
    return openmmlab.translated(state)


def _translated(state: Mapping[str, Tensor]) -> State | None:
    if {"downsample_layers.0.0.weight", "stages.0.0.dwconv.weight"} <= state.keys():
        kept = {
            name: one for name, one in state.items() if not name.startswith("norms.")
        }  # DINOv3's has its last twice
        found = {
            openmmlab.respelled(name, _CONVNEXT): one.reshape(-1) if ".grn." in name else one
            for name, one in kept.items()
        }
        return openmmlab.with_kernels(found)
    if "blocks.0.0.attn.qkv.weight" in state and "patch_embed.proj.weight" in state:
        return {_CHUNKED.sub("blocks.", name): one for name, one in state.items()}
    if {"layers.0.downsample.reduction.weight", "layers.0.blocks.0.attn.relative_position_bias_table"} <= state.keys():
        kept = {name: one for name, one in state.items() if not name.endswith(_TABLES)}
        return {_counted_to_the_next(name): one for name, one in kept.items()}
    if {"stage0.rbr_conv.0.conv.weight", "stage1.0.rbr_conv.0.conv.weight"} <= state.keys():
        return {openmmlab.respelled(name, _MOBILEONE): one for name, one in state.items()}
    return None


def _counted_to_the_next(name: str) -> str:
    later = re.sub(r"^layers\.(\d+)\.downsample\.", lambda told: f"layers.{int(told[1]) + 1}.downsample.", name)
    return re.sub(r"^head\.", "head.fc.", later)


def _turns_as_timms(periods: Tensor | None) -> bool:
    """Whether places are told by the periods that timm's DINOv3 has, 1 to 100; they may be kept in bfloat16."""
    if periods is None or periods.ndim != 1:
        return periods is None
    steps = torch.arange(len(periods)) / max(1, len(periods))
    return bool(torch.isclose(periods.float(), 100.0**steps, rtol=0.02).all())


def _dino_v3(state: Mapping[str, Tensor]) -> State:
    """Of the biases of queries, keys and values those of the keys are masked there, and timm has none."""
    found: State = {}
    for name, one in state.items():
        if name.startswith(_UNUSED) or name.endswith(".bias_mask"):
            continue
        if name.endswith(".qkv.bias"):
            query, _, value = one.chunk(3)
            found |= {name.replace("qkv.bias", "q_bias"): query, name.replace("qkv.bias", "v_bias"): value}
        else:
            found[openmmlab.respelled(name, _DINO_V3)] = one
    return found
