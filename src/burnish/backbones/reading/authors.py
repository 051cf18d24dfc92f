"""ConvNeXt, Swin and MobileOne under the names that their authors' files have, in timm's words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

State = dict[str, Tensor]
_CONVNEXT = (
    (r"^downsample_layers\.0\.", "stem."),
    (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
    (r"^(stages\.\d+)\.(\d+)\.", r"\1.blocks.\2."),
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
# Of Swin, tables that follow from the windows.
_TABLES = ("relative_position_index", "attn_mask")


def translated(state: Mapping[str, Tensor]) -> State | None:
    """The weights under timm's names; None where they are not of these authors.

    A merging stands at the end of its stage, where timm counts it to the next. Of Swin V2 no weight tells the windows.
    """
    if {"downsample_layers.0.0.weight", "stages.0.0.dwconv.weight"} <= state.keys():
        return {_renamed(name, _CONVNEXT): one.reshape(-1) if ".grn." in name else one for name, one in state.items()}
    if {"layers.0.downsample.reduction.weight", "layers.0.blocks.0.attn.relative_position_bias_table"} <= state.keys():
        kept = {name: one for name, one in state.items() if not name.endswith(_TABLES)}
        return {_counted_to_the_next(name): one for name, one in kept.items()}
    if {"stage0.rbr_conv.0.conv.weight", "stage1.0.rbr_conv.0.conv.weight"} <= state.keys():
        return {_renamed(name, _MOBILEONE): one for name, one in state.items()}
    return None


def _renamed(name: str, rules: Iterable[tuple[str, str | Callable[[re.Match[str]], str]]]) -> str:
    for pattern, new in rules:
        name = re.sub(pattern, new, name)
    return name


def _counted_to_the_next(name: str) -> str:
    later = re.sub(r"^layers\.(\d+)\.downsample\.", lambda told: f"layers.{int(told[1]) + 1}.downsample.", name)
    return re.sub(r"^head\.", "head.fc.", later)
