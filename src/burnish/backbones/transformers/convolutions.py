"""Networks with convolutions under the names that Hugging Face transformers gives their weights, in timm's words.

RegNet, BiT, EfficientNet, MobileNet V1 and V2, MobileViT V1 and V2, LeViT, PVT V2, and the ConvNeXts of DINOv3.
"""

from __future__ import annotations

import re
from itertools import pairwise

import torch
from torch import Tensor

from burnish.backbones.torchvision.names import joined, renamed

State = dict[str, Tensor]
# Blocks of each stage of MobileNet V2 after the first stage, which is of the stem there; and of all stages of V1.
_STAGES_OF_V2, _STAGES_OF_V1 = (2, 3, 4, 3, 3, 1), (1, 2, 2, 6, 2)

_REGNET = (
    (r"embedder\.embedder\.", "stem."),
    (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.shortcut\.", r"s\1.b\2.downsample."),
    (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.0\.", r"s\1.b\2.conv1."),
    (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.1\.", r"s\1.b\2.conv2."),
    (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.2\.attention\.0\.", r"s\1.b\2.se.fc1."),
    (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.2\.attention\.2\.", r"s\1.b\2.se.fc2."),
    (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.[23]\.", r"s\1.b\2.conv3."),
)
_MOBILEVIT = (
    (r"conv_stem\.", "stem."),
    (r"conv_1x1_exp\.", "final_conv."),
    (r"encoder\.layer\.(\d+)\.layer\.(\d+)\.", r"stages.\1.\2."),
    (r"encoder\.layer\.(\d+)\.downsampling_layer\.", r"stages.\1.0."),
    (r"encoder\.layer\.(\d+)\.conv_1x1\.convolution\.", r"stages.\1.1.conv_1x1."),
    (r"encoder\.layer\.(\d+)\.conv_projection\.", r"stages.\1.1.conv_proj."),
    (r"encoder\.layer\.(\d+)\.fusion\.", r"stages.\1.1.conv_fusion."),
    (r"encoder\.layer\.(\d+)\.layernorm\.", r"stages.\1.1.norm."),
    (r"encoder\.layer\.(\d+)\.transformer\.layer\.(\d+)\.", r"stages.\1.1.transformer.\2."),
    (r"encoder\.layer\.(\d+)\.conv_kxk\.", r"stages.\1.1.conv_kxk."),
)
_WITHIN_MOBILEVIT = (
    (r"(.*)\.expand_1x1\.", r"\1.conv1_1x1."),
    (r"(.*)\.conv_3x3\.", r"\1.conv2_kxk."),
    (r"(.*)\.reduce_1x1\.", r"\1.conv3_1x1."),
    (r"(.*)\.attention\.attention\.(query|key|value)\.", r"\1.attn.\2."),
    (r"(.*)\.attention\.output\.dense\.", r"\1.attn.proj."),
    (r"(.*)\.attention\.(qkv|out)_proj\.convolution\.", r"\1.attn.\2_proj."),
    (r"(.*)\.layernorm_before\.", r"\1.norm1."),
    (r"(.*)\.layernorm_after\.", r"\1.norm2."),
    (r"(.*)\.(?:intermediate\.dense|ffn\.conv1\.convolution)\.", r"\1.mlp.fc1."),
    (r"(.*)\.(?:output\.dense|ffn\.conv2\.convolution)\.", r"\1.mlp.fc2."),
)
_DINO_CONVNEXT = (
    (r"(?:model\.)?stages\.0\.downsample_layers\.", "stem."),
    (r"(?:model\.)?stages\.(\d+)\.downsample_layers\.", r"stages.\1.downsample."),
    (r"(?:model\.)?stages\.(\d+)\.layers\.(\d+)\.depthwise_conv\.", r"stages.\1.blocks.\2.conv_dw."),
    (r"(?:model\.)?stages\.(\d+)\.layers\.(\d+)\.layer_norm\.", r"stages.\1.blocks.\2.norm."),
    (r"(?:model\.)?stages\.(\d+)\.layers\.(\d+)\.pointwise_conv(\d)\.", r"stages.\1.blocks.\2.mlp.fc\3."),
    (r"(?:model\.)?stages\.(\d+)\.layers\.(\d+)\.gamma$", r"stages.\1.blocks.\2.gamma"),
    (r"layer_norm\.", "head.norm."),
)
_PVT = (
    (r"encoder\.layers\.(\d+)\.patch_embedding\.proj\.", r"stages.\1.downsample.proj."),
    (r"encoder\.layers\.(\d+)\.patch_embedding\.layer_norm\.", r"stages.\1.downsample.norm."),
    (r"encoder\.layers\.(\d+)\.layer_norm\.", r"stages.\1.norm."),
    (r"encoder\.layers\.(\d+)\.blocks\.(\d+)\.layer_norm_(\d)\.", r"stages.\1.blocks.\2.norm\3."),
    (r"encoder\.layers\.(\d+)\.blocks\.(\d+)\.attention\.query\.", r"stages.\1.blocks.\2.attn.q."),
    (r"encoder\.layers\.(\d+)\.blocks\.(\d+)\.attention\.spatial_reduction\.", r"stages.\1.blocks.\2.attn.sr."),
    (r"encoder\.layers\.(\d+)\.blocks\.(\d+)\.attention\.layer_norm\.", r"stages.\1.blocks.\2.attn.norm."),
    (r"encoder\.layers\.(\d+)\.blocks\.(\d+)\.attention\.", r"stages.\1.blocks.\2.attn."),
    (r"encoder\.layers\.(\d+)\.blocks\.(\d+)\.mlp\.dense(\d)\.", r"stages.\1.blocks.\2.mlp.fc\3."),
    (r"encoder\.layers\.(\d+)\.blocks\.(\d+)\.mlp\.dwconv\.dwconv\.", r"stages.\1.blocks.\2.mlp.dwconv."),
)
_BIT = (
    (r"embedder\.convolution\.", "stem.conv."),
    (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.", r"stages.\1.blocks.\2."),
)


def is_regnet(state: State) -> bool:
    """A ResNet's first layer has a kernel of 7 pixels, and the same name."""
    kernel = state.get("embedder.embedder.convolution.weight")
    return kernel is not None and kernel.shape[2:] == (3, 3)


def is_efficientnet(state: State) -> bool:
    return "encoder.blocks.0.depthwise_conv.depthwise_conv.weight" in state


def is_mobilenet_v2(state: State) -> bool:
    return "conv_stem.first_conv.convolution.weight" in state


def is_mobilenet_v1(state: State) -> bool:
    return {"conv_stem.convolution.weight", "layer.0.convolution.weight"} <= state.keys()


def is_mobilevit(state: State) -> bool:
    return {"conv_stem.convolution.weight", "encoder.layer.2.conv_kxk.convolution.weight"} <= state.keys()


def is_levit(state: State) -> bool:
    return "patch_embeddings.embedding_layer_1.convolution.weight" in state


def is_dino_convnext(state: State) -> bool:
    return any(name.endswith("stages.0.layers.0.depthwise_conv.weight") for name in state)


def is_pvt_v2(state: State) -> bool:
    return "encoder.layers.0.blocks.0.mlp.dwconv.dwconv.weight" in state


def is_bit(state: State) -> bool:
    return {"embedder.convolution.weight", "encoder.stages.0.layers.0.norm1.weight"} <= state.keys()


def regnet(state: State) -> State:
    def counted(told: re.Match[str]) -> str:  # from one, as timm counts them
        return f"s{int(told[1]) + 1}.b{int(told[2]) + 1}."

    found = renamed(_plain(state), _REGNET)
    return {re.sub(r"^s(\d+)\.b(\d+)\.", counted, name): one for name, one in found.items()}


def efficientnet(state: State) -> State:
    """Blocks are counted through there; a stage begins where the number of channels changes."""
    count = 1 + max(int(told[1]) for name in state if (told := re.match(r"encoder\.blocks\.(\d+)\.", name)))
    widths = [len(state[f"encoder.blocks.{block}.projection.project_conv.weight"]) for block in range(count)]
    begins = [0, *(block for block, (one, other) in enumerate(pairwise(widths), 1) if one != other)]
    places = [(sum(first <= block for first in begins) - 1, block) for block in range(count)]
    outer = {"embeddings.convolution": "conv_stem", "embeddings.batchnorm": "bn1", "encoder.top_conv": "conv_head",
             "encoder.top_bn": "bn2"}  # fmt: skip
    found: State = {}
    for name, tensor in state.items():
        if told := re.fullmatch(r"encoder\.blocks\.(\d+)\.(?:\w+)\.(\w+)\.(\w+)", name):
            stage, block = places[int(told[1])]
            expands = f"encoder.blocks.{block}.expansion.expand_conv.weight" in state
            found[f"blocks.{stage}.{block - begins[stage]}.{_of_block(told[2], expands)}.{told[3]}"] = tensor
        else:
            layer, _, kind = name.rpartition(".")
            found[f"{outer[layer]}.{kind}" if layer in outer else name] = tensor
    return found


def _of_block(layer: str, expands: bool) -> str:
    """timm's name of a layer of EfficientNet's block; one that does not expand has a layer less, and counts them so."""
    squeezes = {"reduce": "se.conv_reduce", "expand": "se.conv_expand"}
    full = {"expand_conv": "conv_pw", "expand_bn": "bn1", "depthwise_conv": "conv_dw", "depthwise_norm": "bn2",
            "project_conv": "conv_pwl", "project_bn": "bn3"}  # fmt: skip
    short = {"depthwise_conv": "conv_dw", "depthwise_norm": "bn1", "project_conv": "conv_pw", "project_bn": "bn2"}
    return (squeezes | (full if expands else short))[layer]


def mobilenet_v2(state: State) -> State:
    places = [(stage, block) for stage, count in enumerate(_STAGES_OF_V2, 1) for block in range(count)]
    outer = {"conv_stem.first_conv": ("conv_stem", "bn1"), "conv_1x1": ("conv_head", "bn2"),
             "conv_stem.conv_3x3": ("blocks.0.0.conv_dw", "blocks.0.0.bn1"),
             "conv_stem.reduce_1x1": ("blocks.0.0.conv_pw", "blocks.0.0.bn2")}  # fmt: skip
    inner = {"expand_1x1": ("conv_pw", "bn1"), "conv_3x3": ("conv_dw", "bn2"), "reduce_1x1": ("conv_pwl", "bn3")}
    found: State = {}
    for name, tensor in state.items():
        told = re.fullmatch(r"(?:layer\.(\d+)\.)?(.*)\.(convolution|normalization)\.(\w+)", name)
        if told is None:
            found[name] = tensor
        elif told[1] is None:
            found[f"{outer[told[2]][told[3] == 'normalization']}.{told[4]}"] = tensor
        else:
            stage, block = places[int(told[1])]
            found[f"blocks.{stage}.{block}.{inner[told[2]][told[3] == 'normalization']}.{told[4]}"] = tensor
    return found


def mobilenet_v1(state: State) -> State:
    """Depthwise and pointwise layers take turns in one series."""
    places = [(stage, block) for stage, count in enumerate(_STAGES_OF_V1) for block in range(count)]
    layers = {("0", "convolution"): "conv_dw", ("0", "normalization"): "bn1", ("1", "convolution"): "conv_pw",
              ("1", "normalization"): "bn2"}  # fmt: skip
    outer = {"conv_stem.convolution": "conv_stem", "conv_stem.normalization": "bn1"}
    found: State = {}
    for name, tensor in state.items():
        if told := re.fullmatch(r"layer\.(\d+)\.(\w+)\.(\w+)", name):
            stage, block = places[int(told[1]) // 2]
            found[f"blocks.{stage}.{block}.{layers[str(int(told[1]) % 2), told[2]]}.{told[3]}"] = tensor
        else:
            layer, _, kind = name.rpartition(".")
            found[f"{outer[layer]}.{kind}" if layer in outer else name] = tensor
    return found


def mobilevit(state: State) -> State:
    return joined(_plain(renamed(renamed(state, _MOBILEVIT), _WITHIN_MOBILEVIT)))


def _plain(state: State) -> State:
    """A convolution and its BatchNorm in timm's words."""
    pairs = {name: name.replace(".convolution.", ".conv.").replace(".normalization.", ".bn.") for name in state}
    return {pairs[name]: one for name, one in state.items()}


def levit(state: State) -> State:
    """Attentions and MLPs take turns in a stage; what makes the map smaller stands at its end, which timm counts to the next."""
    ends = {stage: int(told[2]) for name in state
            if (told := re.match(r"encoder\.stages\.(\d+)\.layers\.(\d+)\.queries\.", name)) and (stage := told[1])}  # fmt: skip
    found: State = {}
    for name, tensor in state.items():
        if name.endswith("attention_bias_idxs"):  # they follow from the size
            continue
        place = re.match(r"encoder\.stages\.(\d+)\.layers\.(\d+)\.(?:module\.)?", name)
        if place is None:
            found[re.sub(r"^patch_embeddings\.embedding_layer_", "stem.conv", name)] = tensor
            continue
        stage, layer, rest = int(place[1]), int(place[2]), name[place.end() :]
        attends = "linear_up." not in rest and "linear_down." not in rest
        if layer >= (end := ends.get(place[1], len(state))):
            where = f"stages.{stage + 1}.downsample.{'attn_downsample' if layer == end else 'mlp'}"
        else:
            where = f"stages.{stage}.blocks.{layer // 2}.{'attn' if attends else 'mlp'}"
        found[f"{where}.{rest}"] = tensor
    words = {"queries_keys_values.": "qkv.", "keys_values.": "kv.", "queries.": "q.ln.", "projection.": "proj.ln.",
             "linear_up.": "ln1.", "linear_down.": "ln2.", ".batch_norm.": ".bn.", ".convolution.": ".linear."}  # fmt: skip
    for own, new in words.items():
        found = {name.replace(own, new): one for name, one in found.items()}
    return found


def dino_convnext(state: State) -> State:
    return renamed(state, _DINO_CONVNEXT)


def pvt_v2(state: State) -> State:
    """A stage's patches are its beginning; those of the first are the network's."""
    found = renamed(state, _PVT)
    found = {re.sub(r"^stages\.0\.downsample\.", "patch_embed.", name): one for name, one in found.items()}
    keys = {name: one for name, one in found.items() if ".attn.key." in name}
    pairs = {
        name.replace(".key.", ".kv."): torch.cat([one, found[name.replace(".key.", ".value.")]])
        for name, one in keys.items()
    }
    left = {
        name: one for name, one in found.items() if name not in keys and name.replace(".value.", ".key.") not in keys
    }
    return {**left, **pairs}


def bit(state: State) -> State:
    return renamed(state, _BIT)
