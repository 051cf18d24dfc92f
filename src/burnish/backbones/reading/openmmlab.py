"""Networks of OpenMMLab's MMPretrain, of before and after it was called so, in timm's words.

Its ResNets have torchvision's names, but for those with a deep first layer or squeeze and excitation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate

from torch import Tensor

State = dict[str, Tensor]
Options = dict[str, float | str]
_Rules = tuple[tuple[str, str], ...]

_RESNET: _Rules = (
    (r"^stem\.2\.bn\.", "bn1."),  # in MMPretrain a convolution and its norm are one layer, in MMSegmentation two
    (r"^stem\.0\.bn\.", "conv1.1."),
    (r"^stem\.1\.bn\.", "conv1.4."),
    (r"^stem\.0\.conv\.", "conv1.0."),
    (r"^stem\.1\.conv\.", "conv1.3."),
    (r"^stem\.2\.conv\.", "conv1.6."),
    (r"^stem\.7\.", "bn1."),
    (r"^stem\.", "conv1."),
    (r"\.se_layer\.conv(\d)\.conv\.", r".se.fc\1."),
)
_VIT: _Rules = (
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"^layers\.(\d+)\.ln(\d)\.", r"blocks.\1.norm\2."),
    (r"^layers\.(\d+)\.ffn\.layers\.0\.0\.", r"blocks.\1.mlp.fc1."),
    (r"^layers\.(\d+)\.ffn\.layers\.1\.", r"blocks.\1.mlp.fc2."),
    (r"^layers\.(\d+)\.(?:attn|ffn)\.gamma(\d)\.weight$", r"blocks.\1.ls\2.gamma"),
    (r"^layers\.", "blocks."),
    (r"^ln1\.", "norm."),
    (r"^ln2\.", "fc_norm."),
)
_SWIN: _Rules = (
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"\.attn\.w_msa\.", ".attn."),
    (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
    (r"^stages\.", "layers."),
    (r"^norm3\.", "norm."),
)
# What its authors and OpenMMLab have in common.
CONVNEXT_PLACES: _Rules = (
    (r"^downsample_layers\.0\.", "stem."),
    (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
    (r"^(stages\.\d+)\.(\d+)\.", r"\1.blocks.\2."),
)
_CONVNEXT: _Rules = (
    *CONVNEXT_PLACES,
    (r"\.depthwise_conv\.", ".conv_dw."),
    (r"\.pointwise_conv(\d)\.", r".mlp.fc\1."),
    (r"\.grn\.gamma$", ".mlp.grn.weight"),
    (r"\.grn\.beta$", ".mlp.grn.bias"),
    (r"^norm3\.", "head.norm."),
)
_WIDTH_OF_TINY, _LINEAR = 96, re.compile(r"\.mlp\.fc\d\.weight$")
_MOBILENET_V2 = ("conv_pw", "conv_dw", "conv_pwl")
# Blocks of each stage of MobileNet V3 as timm counts them, by how many there are.
_MOBILENETS_V3 = {11: (1, 2, 3, 2, 3), 15: (1, 2, 3, 4, 2, 3)}


def translated(state: Mapping[str, Tensor]) -> tuple[State, Options] | None:
    """The weights under timm's names, and options the network then needs; None where they are no network of OpenMMLab's."""
    for signs, translate in _FAMILIES:
        # Some norm the mean of patches that were normed before, which no transformer of timm's does.
        if signs <= state.keys() and not {"ln1.weight", "ln2.weight"} <= state.keys():
            return translate({name: one for name, one in state.items() if not name.startswith(("head.", "neck."))})
    return None


def respelled(name: str, rules: Iterable[tuple[str, str | Callable[[re.Match[str]], str]]]) -> str:
    """The name after each of the rules (pattern, what comes in its place), one after the other."""
    for pattern, new in rules:
        name = re.sub(pattern, new, name)
    return name


def _renamed(state: State, rules: _Rules) -> State:
    return {respelled(name, rules): one for name, one in state.items()}


def _resnet(state: State) -> tuple[State, Options]:
    """Where shortcuts are pooled, timm counts the pooling of the first stage too, which pools nothing."""
    found = _renamed(state, _RESNET)
    if "layer2.0.downsample.2.weight" in found:
        pattern = r"^layer1\.0\.downsample\.(\d)\."
        later = {name: re.sub(pattern, lambda told: f"layer1.0.downsample.{int(told[1]) + 1}.", name) for name in found}
        found = {later[name]: one for name, one in found.items()}
    return found, {}


def _vit(state: State) -> tuple[State, Options]:
    return _renamed(state, _VIT), {}


def _swin(state: State) -> tuple[State, Options]:
    """What merges 2 × 2 places takes them channel by channel there, in timm place by place, column after column."""
    found: State = {}
    for name, one in _renamed(
        {name: one for name, one in state.items() if "relative_position_index" not in name}, _SWIN
    ).items():
        told = re.match(r"layers\.(\d+)\.downsample\.", name)
        if told is None:
            found[name] = one
            continue
        places = one.unflatten(-1, (-1, 4)).transpose(-1, -2)[..., [0, 2, 1, 3], :]
        found[f"layers.{int(told[1]) + 1}.downsample.{name[told.end() :]}"] = places.flatten(-2)
    return found, {}


def _convnext(state: State) -> tuple[State, Options]:
    return with_kernels(_renamed(state, _CONVNEXT)), {}


def with_kernels(state: State) -> State:
    """A ConvNeXt's linear layers as convolutions, which they are in timm's small ones."""
    narrow = state["stem.0.weight"].shape[0] < _WIDTH_OF_TINY
    layers = {name for name, one in state.items() if narrow and _LINEAR.search(name) and one.ndim == 2}
    return {name: one[:, :, None, None] if name in layers else one for name, one in state.items()}


def _mobilenet_v2(state: State) -> tuple[State, Options]:
    found: State = {}
    for name, one in state.items():
        if told := re.fullmatch(r"conv([12])\.(conv|bn)\.(\w+)", name):
            layer = {"1conv": "conv_stem", "1bn": "bn1", "2conv": "conv_head", "2bn": "bn2"}[told[1] + told[2]]
            found[f"{layer}.{told[3]}"] = one
        elif told := re.fullmatch(r"layer(\d)\.(\d+)\.conv\.(\d)\.(conv|bn)\.(\w+)", name):
            stage, number = int(told[1]) - 1, int(told[3])
            layers = _MOBILENET_V2 if stage else ("conv_dw", "conv_pw")
            layer = layers[number] if told[4] == "conv" else f"bn{number + 1}"
            found[f"blocks.{stage}.{told[2]}.{layer}.{told[5]}"] = one
        else:
            found[name] = one
    return found, {}


def _mobilenet_v3(state: State) -> tuple[State, Options]:
    """Its blocks are counted through, the layer after them among them; some do not expand.

    What is above the pooling lies in a head, of which nothing is read.
    """
    last = max(int(told[1]) for name in state if (told := re.match(r"layer(\d+)\.", name)))
    counts = _MOBILENETS_V3.get(last - 1, ())
    begins = [0, *accumulate(counts)]
    found: State = {}
    for name, one in state.items():
        told = re.match(r"layer(\d+)\.", name)
        if told is None or not counts:
            found[name] = one
            continue
        block, rest, kind = int(told[1]) - 1, name[told.end() :], name.rpartition(".")[2]
        if block < 0:
            found[f"{'conv_stem' if rest.startswith('conv.') else 'bn1'}.{kind}"] = one
        elif block == last - 1:
            found[f"blocks.{len(counts)}.0.{rest.replace('bn.', 'bn1.')}"] = one
        else:
            stage = sum(begin <= block for begin in begins) - 1
            expands = f"layer{told[1]}.expand_conv.conv.weight" in state
            layer = _layer_of_v3(rest, expands)
            found[f"blocks.{stage}.{block - begins[stage]}.{layer}.{kind}"] = one
    return found, {"bn_eps": 1e-3, "top": "none"}


def _layer_of_v3(rest: str, expands: bool) -> str:
    """timm's name of a layer within a block of MobileNet V3."""
    part, inner = rest.split(".")[:2]
    if part == "se":
        return f"se.conv_{'reduce' if inner == 'conv1' else 'expand'}"
    parts = ["expand_conv", "depthwise_conv", "linear_conv"] if expands else ["depthwise_conv", "linear_conv"]
    layers = ("conv_pw", "conv_dw", "conv_pwl") if expands else ("conv_dw", "conv_pw")
    place = parts.index(part)
    return layers[place] if inner == "conv" else f"bn{place + 1}"


_FAMILIES: tuple[tuple[set[str], Callable[[State], tuple[State, Options]]], ...] = (
    ({"stem.0.weight", "stem.7.running_mean", "layer1.0.conv1.weight"}, _resnet),
    ({"stem.0.conv.weight", "stem.2.bn.running_mean", "layer1.0.conv1.weight"}, _resnet),
    ({"conv1.weight", "layer1.0.se_layer.conv1.conv.weight"}, _resnet),
    ({"patch_embed.projection.weight", "layers.0.ffn.layers.0.0.weight", "layers.0.ln1.weight"}, _vit),
    ({"patch_embed.projection.weight", "stages.0.blocks.0.attn.w_msa.qkv.weight"}, _swin),
    ({"downsample_layers.0.0.weight", "stages.0.0.depthwise_conv.weight"}, _convnext),
    ({"conv1.conv.weight", "layer1.0.conv.0.conv.weight", "conv2.conv.weight"}, _mobilenet_v2),
    ({"layer0.conv.weight", "layer1.depthwise_conv.conv.weight"}, _mobilenet_v3),
)
