"""Names that torchvision and efficientnet_pytorch give weights, in timm's words; of ResNets and DenseNets they are timm's own."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

State = dict[str, Tensor]
Options = dict[str, float | str]
_BEGINS = (2, 3, 4)  # where a ResNet's stages begin among its children


def translated(state: Mapping[str, Tensor]) -> tuple[State, Options] | None:
    """The weights under timm's names with the options the network then needs; None when they are not torchvision's.

    Vision transformers, EfficientNets (V1 and V2), MobileNets (V2 and V3), ConvNeXt, Swin (V1), RegNet, VGG, DenseNets of
    before 2018, ResNets that are the children of one in a row, and those for images of 32 pixels;
    the EfficientNets of efficientnet_pytorch.
    """
    for recognises, translate in _FAMILIES:
        if recognises(state):
            try:
                return translate(dict(state))
            except (KeyError, IndexError, ValueError, RuntimeError):
                return None  # looked like it, and is something else
    return None


def renamed(state: Mapping[str, Tensor], rules: Sequence[tuple[str, str]]) -> State:
    """The weights, the beginnings of their names replaced by the first rule that fits, (pattern, what comes in its place)."""
    found: State = {}
    for name, tensor in state.items():
        rule = next((one for one in rules if re.match(one[0], name)), None)
        found[name if rule is None else re.sub(rule[0], rule[1], name, count=1)] = tensor
    return found


def joined(state: State, words: tuple[str, str, str] = ("query", "key", "value")) -> State:
    """Query, key and value of each block as timm's one layer."""
    first = words[0]
    found = {name: tensor for name, tensor in state.items() if not re.search(rf"\.attn\.({'|'.join(words)})\.", name)}
    for name, query in state.items():
        if f".attn.{first}." in name:
            parts = [state[name.replace(f".attn.{first}.", f".attn.{word}.")] for word in words]
            if any(one.shape != query.shape for one in parts):
                raise ValueError("a query of another shape than its key or value")
            found[name.replace(f".attn.{first}.", ".attn.qkv.")] = torch.cat(parts)
        elif any(f".attn.{word}." in name for word in words) and _among(name, words, first) not in state:
            raise ValueError("a key or value without its query")
    return found


def _among(name: str, words: Sequence[str], first: str) -> str:
    """A name with the first of these words in place of any."""
    return re.sub(rf"\.attn\.({'|'.join(words)})\.", f".attn.{first}.", name)


def _vit(state: State) -> tuple[State, Options]:
    rules = [
        (r"conv_proj\.", "patch_embed.proj."),
        (r"class_token$", "cls_token"),
        (r"encoder\.pos_embedding$", "pos_embed"),
        (r"encoder\.ln\.", "norm."),
        (r"encoder\.layers\.encoder_layer_(\d+)\.ln_1\.", r"blocks.\1.norm1."),
        (r"encoder\.layers\.encoder_layer_(\d+)\.ln_2\.", r"blocks.\1.norm2."),
        (r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_", r"blocks.\1.attn.qkv."),
        (r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.", r"blocks.\1.attn.proj."),
        (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)\.", r"blocks.\1.mlp.fc1."),
        (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)\.", r"blocks.\1.mlp.fc2."),
        (r"heads\.head\.", "head."),
    ]
    return renamed(state, rules), {}


def _children(state: State) -> tuple[State, Options]:
    """A ResNet without its names: nn.Sequential(*model.children()), as feature extractors and fastai's bodies are made.

    With a first layer of 3 × 3, as for CIFAR, what has no weights between that and the stages may be left out.
    """
    begin = next(place for place in _BEGINS if f"{place}.0.conv1.weight" in state)
    called = {
        "0": "conv1",
        "1": "bn1",
        f"{begin + 5}": "fc",
        **{f"{begin + one}": f"layer{one + 1}" for one in range(4)},
    }
    found: State = {}
    for name, tensor in state.items():
        first, _, rest = name.partition(".")
        found[f"{called[first]}.{rest}" if first in called else name] = tensor
    return _small_resnet(found) if _is_small_resnet(found) else (found, {})


def _is_of_children(state: Mapping[str, Tensor]) -> bool:
    first = state.get("0.weight")
    if first is None or first.shape[2:] not in ((7, 7), (3, 3)):
        return False
    places = (4,) if first.shape[2:] == (7, 7) else _BEGINS
    return any(f"{place}.0.conv1.weight" in state for place in places)


def _is_small_resnet(state: Mapping[str, Tensor]) -> bool:
    """Whether it is a ResNet of four stages whose first layer is 3 × 3, as people make them for CIFAR."""
    first = state.get("conv1.weight")
    return first is not None and first.shape[2:] == (3, 3) and "layer4.0.conv1.weight" in state


def _small_resnet(state: State) -> tuple[State, Options]:
    found = {name.replace(".shortcut.", ".downsample."): tensor for name, tensor in state.items()}
    return found, {"stem": "small"}


def _densenet(state: State) -> tuple[State, Options]:
    return renamed(state, [(r"(.*denselayer\d+\.(?:norm|relu|conv))\.((?:[12])\..*)$", r"\1\2")]), {}


def _efficientnet(state: State) -> tuple[State, Options]:
    """features.S.B.block.N.M: convolution and norm in turn, with squeeze and excitation where `fc1` is."""
    found: State = {}
    last = max(int(name.split(".")[1]) for name in state if name.startswith("features."))
    members: dict[tuple[str, str], set[int]] = {}
    for name in state:
        if parts := re.match(r"features\.(\d+)\.(\d+)\.block\.(\d+)\.", name):
            members.setdefault((parts[1], parts[2]), set()).add(int(parts[3]))
    for name, tensor in state.items():
        parts = name.split(".")
        if parts[0] == "classifier":
            found[f"classifier.{parts[-1]}"] = tensor
        elif parts[1] in ("0", str(last)):
            stem = parts[1] == "0"
            layer = (("conv_stem", "bn1") if stem else ("conv_head", "bn2"))[int(parts[2])]
            found[f"{layer}.{parts[-1]}"] = tensor
        else:
            stage, block, number = int(parts[1]) - 1, parts[2], int(parts[4])
            count = len(members[parts[1], parts[2]])
            squeezes = any(f"features.{parts[1]}.{block}.block.{place}.fc1.weight" in state for place in range(count))
            layer = _layer_of_block(number, count, squeezes, parts[5:])
            found[f"blocks.{stage}.{block}.{layer}.{parts[-1]}"] = tensor
    wide = any(name.startswith("features.1.0.block.0.0.") and state[name].shape[2:] == (3, 3) and state[name].shape[1] > 1
               for name in state if state[name].ndim == 4)  # fmt: skip
    widest = state[f"features.{last}.0.weight"].shape[0]
    # B5 to B7 (2,048 channels at the end and more) and all of V2 were trained with another epsilon.
    return found, {"bn_eps": 1e-3} if wide or widest >= 2048 else {}


def _efficientnet_pytorch(state: State) -> tuple[State, Options]:
    """The package efficientnet_pytorch, which counts blocks through; a stage begins where the number of channels changes."""
    count = 1 + max(int(told[1]) for name in state if (told := re.match(r"_blocks\.(\d+)\.", name)))
    widths = [state[f"_blocks.{block}._project_conv.weight"].shape[0] for block in range(count)]
    begins = [0, *(block for block in range(1, count) if widths[block] != widths[block - 1])]
    outer = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    squeezes = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
    first = squeezes | {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    rest = squeezes | {
        "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
        "_project_conv": "conv_pwl", "_bn2": "bn3",
    }  # fmt: skip
    found: State = {}
    for name, tensor in state.items():
        parts = name.split(".")
        if parts[0] != "_blocks":
            found[f"{outer[parts[0]]}.{parts[1]}"] = tensor
            continue
        block = int(parts[1])
        stage = sum(begin <= block for begin in begins) - 1
        layers = rest if f"_blocks.{block}._expand_conv.weight" in state else first
        found[f"blocks.{stage}.{block - begins[stage]}.{layers[parts[2]]}.{parts[3]}"] = tensor
    return found, {"pad_type": "same", "bn_eps": 1e-3}  # as TensorFlow, from where its weights are


def _layer_of_block(number: int, count: int, squeezes: bool, rest: list[str]) -> str:
    """timm's name of one layer in an EfficientNet block."""
    if squeezes and rest[0] in ("fc1", "fc2"):
        return f"se.{'conv_reduce' if rest[0] == 'fc1' else 'conv_expand'}"
    norm = rest[0] == "1"
    if squeezes:
        if count == 3:  # depthwise, squeeze, project
            return (("conv_dw", "bn1"), ("", ""), ("conv_pw", "bn2"))[number][norm]
        return (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("", ""), ("conv_pwl", "bn3"))[number][norm]
    if count == 1:
        return ("conv", "bn1")[norm]
    return (("conv_exp", "bn1"), ("conv_pwl", "bn2"))[number][norm]


def _mobilenet_v2(state: State) -> tuple[State, Options]:
    repeats = (1, 2, 3, 4, 3, 3, 1)
    places = [(stage, block) for stage, count in enumerate(repeats) for block in range(count)]
    found: State = {}
    for name, tensor in state.items():
        parts = name.split(".")
        if parts[0] == "classifier":
            found[f"classifier.{parts[-1]}"] = tensor
        elif parts[1] in ("0", "18"):
            layer = (("conv_stem", "bn1") if parts[1] == "0" else ("conv_head", "bn2"))[int(parts[2])]
            found[f"{layer}.{parts[-1]}"] = tensor
        else:
            stage, block = places[int(parts[1]) - 1]
            inner = ".".join(parts[3:-1])
            first = {"0.0": "conv_dw", "0.1": "bn1", "1": "conv_pw", "2": "bn2"}
            rest = {"0.0": "conv_pw", "0.1": "bn1", "1.0": "conv_dw", "1.1": "bn2", "2": "conv_pwl", "3": "bn3"}
            found[f"blocks.{stage}.{block}.{(first if stage == 0 else rest)[inner]}.{parts[-1]}"] = tensor
    return found, {}


def _mobilenet_v3(state: State) -> tuple[State, Options]:
    last = max(int(name.split(".")[1]) for name in state if name.startswith("features."))
    repeats = (1, 2, 3, 4, 2, 3) if last == 16 else (1, 2, 3, 2, 3)
    places = [(stage, block) for stage, count in enumerate(repeats) for block in range(count)]
    members = Counter(
        parts[1] for parts in {tuple(n.split(".")[:4]) for n in state if ".block." in n} if parts[2] == "block"
    )
    found: State = {}
    for name, tensor in state.items():
        parts = name.split(".")
        if parts[0] == "classifier":
            layer = "conv_head" if parts[1] == "0" else "classifier"
            whole = tensor[:, :, None, None] if layer == "conv_head" and tensor.ndim == 2 else tensor
            found[f"{layer}.{parts[-1]}"] = whole
        elif parts[1] == "0":
            found[f"{('conv_stem', 'bn1')[int(parts[2])]}.{parts[-1]}"] = tensor
        elif parts[1] == str(last):
            found[f"blocks.{len(repeats)}.0.{('conv', 'bn1')[int(parts[2])]}.{parts[-1]}"] = tensor
        else:
            stage, block = places[int(parts[1]) - 1]
            number, count, rest = int(parts[3]), members[parts[1]], parts[4:]
            squeezes = any(f"features.{parts[1]}.block.{place}.fc1.weight" in state for place in range(count))
            if squeezes and rest[0] in ("fc1", "fc2"):
                layer = f"se.{'conv_reduce' if rest[0] == 'fc1' else 'conv_expand'}"
            else:
                order = [place for place in range(count) if f"features.{parts[1]}.block.{place}.0.weight" in state]
                layers = (
                    (("conv_dw", "bn1"), ("conv_pw", "bn2"))
                    if len(order) == 2
                    else (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3"))
                )
                layer = layers[order.index(number)][int(rest[0])]
            found[f"blocks.{stage}.{block}.{layer}.{parts[-1]}"] = tensor
    return found, {"bn_eps": 1e-3}


def _convnext(state: State) -> tuple[State, Options]:
    found: State = {}
    for name, tensor in state.items():
        parts = name.split(".")
        if parts[0] == "classifier":
            found[f"head.{'norm' if parts[1] == '0' else 'fc'}.{parts[-1]}"] = tensor
        elif parts[1] == "0":
            found[f"stem.{parts[2]}.{parts[-1]}"] = tensor
        elif int(parts[1]) % 2 == 0:
            found[f"stages.{int(parts[1]) // 2}.downsample.{parts[2]}.{parts[-1]}"] = tensor
        else:
            stage = (int(parts[1]) - 1) // 2
            inner = {"block.0": "conv_dw", "block.2": "norm", "block.3": "mlp.fc1", "block.5": "mlp.fc2"}
            if parts[3] == "layer_scale":
                found[f"stages.{stage}.blocks.{parts[2]}.gamma"] = tensor.reshape(-1)
            else:
                found[f"stages.{stage}.blocks.{parts[2]}.{inner['.'.join(parts[3:5])]}.{parts[-1]}"] = tensor
    return found, {}


def _vgg(state: State) -> tuple[State, Options]:
    """The two hidden layers of the classifier are convolutions in timm: 7 × 7 over the last map, then 1 × 1."""
    found: State = {}
    for name, tensor in state.items():
        parts = name.split(".")
        if parts[0] == "classifier":
            layer = {"0": "pre_logits.fc1", "3": "pre_logits.fc2", "6": "head.fc"}[parts[1]]
            if tensor.ndim == 2 and parts[1] != "6":
                side = 7 if parts[1] == "0" else 1
                tensor = tensor.reshape(len(tensor), -1, side, side)
            found[f"{layer}.{parts[-1]}"] = tensor
        else:
            found[name] = tensor
    return found, {}


def _is_vgg(state: Mapping[str, Tensor]) -> bool:
    """Whether a VGG has the two hidden layers of its classifier, or convolutions that do the same."""
    shapes = [state[name].shape[0] if name in state else 0 for name in ("classifier.0.weight", "classifier.3.weight")]
    return "features.0.weight" in state and "classifier.6.weight" in state and shapes == [4096, 4096]


def _is_vgg_of_maps(state: Mapping[str, Tensor]) -> bool:
    """Whether it is the convolutions of a VGG, which as a child of their own have no name but numbers."""
    first = state.get("features.0.weight", state.get("0.weight"))
    numbered = all(re.match(r"(features\.)?\d+\.\w+$|classifier\.", name) for name in state)
    return first is not None and tuple(first.shape) == (64, 3, 3, 3) and numbered


def _vgg_of_maps(state: State) -> tuple[State, Options]:
    """What comes after the last map is left out: it is not there, or somebody's own."""
    plain = {re.sub(r"^(?=\d)", "features.", name): tensor for name, tensor in state.items()}
    return {name: tensor for name, tensor in plain.items() if not name.startswith("classifier.")}, {"top": "none"}


def _swin(state: State) -> tuple[State, Options]:
    """Stages and the mergings before them take turns in one series; timm counts a merging to the stage that it begins."""
    found: State = {}
    for name, tensor in state.items():
        parts = name.split(".")
        if parts[0] != "features":
            found[name.replace("head.", "head.fc.")] = tensor
        elif parts[1] == "0":
            found[f"patch_embed.{'proj' if parts[2] == '0' else 'norm'}.{parts[-1]}"] = tensor
        elif int(parts[1]) % 2 == 0:
            found[f"layers.{int(parts[1]) // 2}.downsample.{'.'.join(parts[2:])}"] = tensor
        else:
            inner = ".".join(parts[3:]).replace("mlp.0.", "mlp.fc1.").replace("mlp.3.", "mlp.fc2.")
            # timm makes the table of places itself, as a matrix.
            if not inner.endswith("relative_position_index"):
                found[f"layers.{int(parts[1]) // 2}.blocks.{parts[2]}.{inner}"] = tensor
    return found, {}


def _regnet(state: State) -> tuple[State, Options]:
    parts = {"a.0": "conv1.conv", "a.1": "conv1.bn", "b.0": "conv2.conv", "b.1": "conv2.bn", "c": "conv3.conv",
             "d": "conv3.bn", "proj.0": "downsample.conv", "proj.1": "downsample.bn"}  # fmt: skip
    rules = [(r"stem\.0\.", "stem.conv."), (r"stem\.1\.", "stem.bn."), (r"fc\.", "head.fc.")]
    block = r"trunk_output\.block(\d+)\.block\d+-(\d+)\."
    found: State = {}
    for name, tensor in renamed(state, rules).items():
        told = re.match(block, name)
        if told is None:
            found[name] = tensor
            continue
        rest = name[told.end() :].removeprefix("f.")
        rest = re.sub(r"^c\.0\.", "c.", re.sub(r"^c\.1\.", "d.", rest))
        for own, new in parts.items():
            if rest.startswith(f"{own}."):
                rest = new + rest[len(own) :]
                break
        found[f"s{told[1]}.b{int(told[2]) + 1}.{rest}"] = tensor
    return found, {}


_FAMILIES: list[tuple[Callable[[Mapping[str, Tensor]], bool], Callable[[State], tuple[State, Options]]]] = [
    (lambda state: "encoder.pos_embedding" in state and "conv_proj.weight" in state, _vit),
    (_is_of_children, _children),
    (_is_small_resnet, _small_resnet),
    (lambda state: {"_conv_stem.weight", "_blocks.0._se_reduce.weight"} <= set(state), _efficientnet_pytorch),
    (lambda state: any(re.match(r"features\.denseblock1\.denselayer1\.norm\.1\.", name) for name in state), _densenet),
    (lambda state: "features.1.0.block.0.0.weight" in state and "features.0.1.running_mean" in state, _efficientnet),
    (lambda state: "features.1.conv.0.0.weight" in state and "features.18.0.weight" in state, _mobilenet_v2),
    (lambda state: "features.1.block.0.0.weight" in state and "features.0.1.running_mean" in state, _mobilenet_v3),
    (lambda state: "features.1.0.layer_scale" in state, _convnext),
    (lambda state: "features.1.0.attn.relative_position_bias_table" in state and "features.0.0.weight" in state, _swin),
    (lambda state: "trunk_output.block1.block1-0.f.a.0.weight" in state, _regnet),
    (_is_vgg, _vgg),
    (_is_vgg_of_maps, _vgg_of_maps),
]
