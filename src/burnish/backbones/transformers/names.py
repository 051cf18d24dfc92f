"""The names that Hugging Face transformers gives weights, in timm's words: which family a file is of, and its weights renamed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import Tensor

from burnish.backbones.torchvision.names import joined, renamed
from burnish.backbones.transformers import attention, clip, convolutions, siglip
from burnish.backbones.transformers.layers import OF_SWIN, OF_VIT

State = dict[str, Tensor]
# What stands before all names of a model with a classifier; a bare one has none of them.
_PREFIXES = (
    "vit.", "deit.", "dinov2.", "dinov2_with_registers.", "swin.", "convnext.", "convnextv2.", "resnet.", "beit.",
    "data2vec_vision.", "swinv2.", "regnet.", "efficientnet.", "mobilenet_v1.", "mobilenet_v2.", "mobilevit.", "mobilevitv2.",
    "levit.", "bit.", "pvt_v2.", "hiera.", "ijepa.",
)  # fmt: skip
# What a config.json calls those that are read.
KINDS = (
    "vit", "vit_mae", "vit_msn", "deit", "dinov2", "dinov2_with_registers", "swin", "convnext", "convnextv2", "resnet",
    "beit", "data2vec-vision", "swinv2", "dinov3_vit", "dinov3_convnext", "regnet", "efficientnet", "mobilenet_v1",
    "mobilenet_v2", "mobilevit", "mobilevitv2", "levit", "bit", "pvt_v2", "hiera",
    "ijepa", *clip.KINDS, *siglip.KINDS,
)  # fmt: skip
READ = (
    "ViT, DeiT, DINOv2, DINOv3, I-JEPA, CLIP, SigLIP, BEiT, data2vec, Swin, Hiera, ConvNeXt, ResNet, RegNet, BiT, "
    "EfficientNet, MobileNet, MobileViT, LeViT and PVT V2"
)

_VIT = (
    *OF_VIT,
    (r"embeddings\.distillation_token$", "dist_token"),
    (r"embeddings\.register_tokens$", "register_tokens"),
    (r"embeddings\.mask_token$", "mask_token"),
    (r"embeddings\.position_embeddings$", "pos_embed"),
    (r"encoder\.layer\.(\d+)\.(?:layernorm_before|norm1)\.", r"blocks.\1.norm1."),
    (r"encoder\.layer\.(\d+)\.(?:layernorm_after|norm2)\.", r"blocks.\1.norm2."),
    (r"encoder\.layer\.(\d+)\.layer_scale(\d)\.lambda1$", r"blocks.\1.ls\2.gamma"),
)
_SWIN = (
    *OF_SWIN,
    (r"encoder\.(layers\.\d+\.blocks\.\d+)\.attention\.(?:self\.)?(query|key|value)\.", r"\1.attn.\2."),
    (r"encoder\.(layers\.\d+\.blocks\.\d+)\.attention\.(?:self\.)?relative_position_bias_table$",
     r"\1.attn.relative_position_bias_table"),
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
    "classifier_distill.",
    "pooler.dense.",
    "decoder.",
)


def translated(state: Mapping[str, Tensor]) -> tuple[State, str] | None:
    """(the weights under timm's names, the family); None for others.

    The families: "vit", "dino" (or DeiT), "swin", "convnext", "resnet", "clip", "siglip", "beit" (and data2vec), "swinv2",
    "dinov3", "dino_convnext", "regnet", "efficientnet", "mobilenet", "mobilevit", "levit", "bit", "pvt_v2", "hiera", "ijepa".
    CLIP's files may be OpenCLIP's, too.
    """
    if (of_clip := clip.translated(state)) is not None:
        return of_clip, "clip"
    if (of_siglip := siglip.translated(state)) is not None:
        return of_siglip, "siglip"
    prefix = next((one for one in _PREFIXES if any(name.startswith(one) for name in state)), "")
    inside = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    bare = {_before_5(name): tensor for name, tensor in inside.items() if not name.startswith(_LEFT_OUT)}
    for recognises, translate, family in _FAMILIES:
        if recognises(bare):
            try:
                found = translate(bare)
                return found, _pretrained_itself(state, found) if family == "vit" else family
            except (KeyError, IndexError, TypeError, ValueError, RuntimeError):
                return None  # looked like it, and is something else
    return None


def _pretrained_itself(state: Mapping[str, Tensor], found: State) -> str:
    """Whether a plain transformer is of those that saw images less ImageNet's mean: "dino", else "vit".

    "ijepa" where it has no class token: its features are the mean of its patches.
    """
    if "cls_token" not in found:
        return "ijepa"
    own = any(word in name for name in state for word in ("layer_scale", "distillation_token", "decoder."))
    return "dino" if own else "vit"


def _before_5(name: str) -> str:
    """A name in memory since transformers 5 as the files have it, which kept those of before."""
    name = re.sub(r"^layers\.", "encoder.layer.", name)
    name = re.sub(r"\.attention\.([qkv])_proj\.", lambda told: f".attention.{_WORDS[told[1]]}.", name)
    name = name.replace(".attention.o_proj.", ".attention.output.dense.")
    if ".blocks." in name:
        name = name.replace(".mlp.fc1.", ".intermediate.dense.").replace(".mlp.fc2.", ".output.dense.")
    return name.replace(".relative_position_bias.relative_position_bias_table", ".relative_position_bias_table")


def _is_vit(state: State) -> bool:
    return bool(_QUERY.intersection(state)) and "embeddings.patch_embeddings.projection.weight" in state


def _vit(state: State) -> State:
    found = joined(renamed(state, _VIT))
    if "register_tokens" in found:  # timm knows DINOv2's own layout by its mask token, and brings it to its own
        found.setdefault("mask_token", found["register_tokens"][:, :1])
    return found


def _swin(state: State) -> State:
    plain = {name: tensor for name, tensor in state.items() if not name.endswith("relative_position_index")}
    return attention.merging_first(joined(renamed(plain, _SWIN)))


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


# Later ones would take some of the earlier ones for theirs.
_FAMILIES: tuple[tuple[Callable[[State], bool], Callable[[State], State], str], ...] = (
    (attention.is_beit, attention.beit, "beit"),
    (_is_vit, _vit, "vit"),
    (attention.is_swin_v2, attention.swin_v2, "swinv2"),
    (convolutions.is_pvt_v2, convolutions.pvt_v2, "pvt_v2"),
    (lambda state: bool(_QUERY_OF_SWIN.intersection(state)), _swin, "swin"),
    (attention.is_dino_v3, attention.dino_v3, "dinov3"),
    (lambda state: "encoder.stages.0.layers.0.dwconv.weight" in state, _convnext, "convnext"),
    (convolutions.is_dino_convnext, convolutions.dino_convnext, "dino_convnext"),
    (convolutions.is_regnet, convolutions.regnet, "regnet"),
    (lambda state: "embedder.embedder.convolution.weight" in state, _resnet, "resnet"),
    (convolutions.is_efficientnet, convolutions.efficientnet, "efficientnet"),
    (convolutions.is_mobilenet_v2, convolutions.mobilenet_v2, "mobilenet"),
    (convolutions.is_mobilenet_v1, convolutions.mobilenet_v1, "mobilenet"),
    (convolutions.is_mobilevit, convolutions.mobilevit, "mobilevit"),
    (convolutions.is_levit, convolutions.levit, "levit"),
    (convolutions.is_bit, convolutions.bit, "bit"),
    (attention.is_hiera, attention.hiera, "hiera"),
)
