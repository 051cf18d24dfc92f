"""BEiT, data2vec, Swin V2, DINOv3 and Hiera under the names that transformers gives their weights, in timm's words."""

from __future__ import annotations

import re

from torch import Tensor

from burnish.backbones.torchvision.names import joined, renamed
from burnish.backbones.transformers.layers import OF_SWIN, OF_VIT

State = dict[str, Tensor]
_TABLE = "relative_position_bias_table"
_SHARED = (f"encoder.{_TABLE}", f"shared_position_bias.{_TABLE}", f"shared_position_bias_table.{_TABLE}")

_BEIT = (
    *OF_VIT,
    (r"encoder\.layer\.(\d+)\.(?:attention\.attention\.)?relative_position_bias_table$", rf"blocks.\1.attn.{_TABLE}"),
    (r"encoder\.layer\.(\d+)\.layernorm_before\.", r"blocks.\1.norm1."),
    (r"encoder\.layer\.(\d+)\.layernorm_after\.", r"blocks.\1.norm2."),
    (r"encoder\.layer\.(\d+)\.lambda_(\d)$", r"blocks.\1.gamma_\2"),
    (r"pooler\.layernorm\.", "fc_norm."),
)
_SWIN_V2 = (
    *OF_SWIN,
    (r"encoder\.(layers\.\d+\.blocks\.\d+)\.attention\.self\.(query|key|value)\.", r"\1.attn.\2."),
    (r"encoder\.(layers\.\d+\.blocks\.\d+)\.attention\.self\.logit_scale$", r"\1.attn.logit_scale"),
    (r"encoder\.(layers\.\d+\.blocks\.\d+)\.attention\.self\.continuous_position_bias_mlp\.", r"\1.attn.cpb_mlp."),
)
_DINO_V3 = (
    (r"embeddings\.cls_token$", "cls_token"),
    (r"embeddings\.register_tokens$", "reg_token"),
    (r"embeddings\.patch_embeddings\.", "patch_embed.proj."),
    (r"(?:model\.)?layer\.(\d+)\.attention\.(query|key|value)\.", r"blocks.\1.attn.\2."),
    (r"(?:model\.)?layer\.(\d+)\.attention\.output\.dense\.", r"blocks.\1.attn.proj."),
    (r"(?:model\.)?layer\.(\d+)\.norm(\d)\.", r"blocks.\1.norm\2."),
    (r"(?:model\.)?layer\.(\d+)\.layer_scale(\d)\.lambda1$", r"blocks.\1.gamma_\2"),
    (r"(?:model\.)?layer\.(\d+)\.mlp\.gate_proj\.", r"blocks.\1.mlp.fc1_g."),
    (r"(?:model\.)?layer\.(\d+)\.mlp\.down_proj\.", r"blocks.\1.mlp.fc2."),
)


_HIERA = (
    (r"embeddings\.position_embeddings$", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"encoder\.(stages\.\d+)\.layers\.(\d+)\.layernorm_before\.", r"\1.\2.norm1."),
    (r"encoder\.(stages\.\d+)\.layers\.(\d+)\.layernorm_after\.", r"\1.\2.norm2."),
    (r"encoder\.(stages\.\d+)\.layers\.(\d+)\.", r"\1.\2."),
    (r"pooler\.layernorm\.", "head.norm."),
)


def is_beit(state: State) -> bool:
    return "encoder.layer.0.lambda_1" in state


def is_swin_v2(state: State) -> bool:
    return "encoder.layers.0.blocks.0.attention.self.continuous_position_bias_mlp.0.weight" in state


def is_dino_v3(state: State) -> bool:
    return "embeddings.register_tokens" in state and "embeddings.patch_embeddings.weight" in state


def is_hiera(state: State) -> bool:
    return {"encoder.stages.0.layers.0.attn.qkv.weight", "embeddings.position_embeddings"} <= state.keys()


def beit(state: State) -> State:
    """BEiT's and data2vec's. A table of biases that all blocks share becomes one for each: the same function."""
    found = renamed(_without(state, "relative_position_index", "embeddings.mask_token", "lm_head."), _BEIT)
    shared = [found.pop(name) for name in _SHARED if name in found]
    blocks = {told[0] for name in found if (told := re.match(r"blocks\.\d+\.", name))} if shared else set()
    return _joined({**found, **{f"{block}attn.{_TABLE}": table.clone() for table in shared for block in blocks}})


def swin_v2(state: State) -> State:
    """A merging stands at the end of its stage, where timm counts it to the next."""
    left = _without(state, "relative_position_index", "relative_coords_table", "embeddings.mask_token", "decoder.")
    return _joined(merging_first(renamed(left, _SWIN_V2)))


def merging_first(state: State) -> State:
    """The mergings of a Swin, which transformers counts to the stage before, as timm counts them."""
    pattern = r"^encoder\.layers\.(\d+)\.downsample\."
    return {
        re.sub(pattern, lambda told: f"layers.{int(told[1]) + 1}.downsample.", name): tensor
        for name, tensor in state.items()
    }


def dino_v3(state: State) -> State:
    found = renamed(_without(state, "embeddings.mask_token", "rope_embeddings."), _DINO_V3)
    gated = any(".mlp.fc1_g." in name for name in found)
    rules = [(r"(?:model\.)?layer\.(\d+)\.mlp\.up_proj\.", rf"blocks.\1.mlp.{'fc1_x' if gated else 'fc1'}.")]
    return _joined(renamed(found, rules))


def hiera(state: State) -> State:
    """timm counts the blocks through."""
    found = renamed(state, _HIERA)
    pattern = r"stages\.(\d+)\.(\d+)\."
    places = sorted({(int(told[1]), int(told[2])) for name in found if (told := re.match(pattern, name))})

    def counted(told: re.Match[str]) -> str:
        return f"blocks.{places.index((int(told[1]), int(told[2])))}."

    return {re.sub(rf"^{pattern}", counted, name): one for name, one in found.items()}


def _without(state: State, *words: str) -> State:
    """What is left but for names that end in, or begin with, one of these words: tables that follow from the size, and heads."""
    return {name: one for name, one in state.items() if not (name.endswith(words) or name.startswith(words))}


def _joined(state: State) -> State:
    """Queries, keys and values as timm's one layer, its biases apart: their keys have none."""
    apart = {"query": "q_bias", "value": "v_bias"}
    pattern = r"(.*\.attn\.)(query|value)\.bias$"
    return joined({re.sub(pattern, lambda told: told[1] + apart[told[2]], name): one for name, one in state.items()})
