"""What the config.json of a transformers model says of its function that no tensor tells, in timm's words.

Activations, pooling, padding, windows, the epsilon of norms, the number of heads; and, of timm's architectures with the
same tensors, which one computes the same. What timm cannot do is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from torch import Tensor

from burnish.backbones.reading import recognise
from burnish.backbones.transformers import clip, images, siglip
from burnish.errors import UnknownModel, shown

State = dict[str, Tensor]
_GELU = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh"}
# By family, the activations that timm's networks have; the first is taken where the config.json says none.
_ACTIVATIONS = {
    "vit": tuple(_GELU), "dino": tuple(_GELU), "siglip": ("gelu_pytorch_tanh", *_GELU), "beit": ("gelu",), "swin": ("gelu",),
    "swinv2": ("gelu",), "convnext": ("gelu",), "dino_convnext": ("gelu",), "resnet": ("relu",), "regnet": ("relu",),
    "efficientnet": ("swish", "silu"), "mobilenet": ("relu6",), "mobilevit": ("silu", "swish"),
    "bit": ("relu",), "pvt_v2": ("gelu",), "hiera": ("gelu",), "ijepa": ("gelu",),
}  # fmt: skip
# By family, settings that no tensor tells and timm's networks have so; the eps of norms only where it is no matter of rounding.
_ALWAYS: dict[str, dict[str, Any]] = {
    "resnet": {"downsample_in_first_stage": False, "downsample_in_bottleneck": False},
    "regnet": {"downsample_in_first_stage": True},
    "efficientnet": {"strides": [1, 2, 2, 2, 1, 2, 1], "pooling_type": "mean"},
    "mobilenet": {"output_stride": 32},
    "mobilevit": {"output_stride": 32, "patch_size": 2, "layer_norm_eps": 1e-5},
    "bit": {
        "layer_type": "preactivation",
        "global_padding": None,
        "num_groups": 32,
        "output_stride": 32,
        "embedding_dynamic_padding": False,
        "width_factor": 1,
    },
    "pvt_v2": {"strides": [4, 2, 2, 2], "linear_attention": False},
    "hiera": {
        "masked_unit_size": [8, 8],
        "query_stride": [2, 2],
        "num_query_pool": 3,
        "patch_stride": [4, 4],
        "patch_padding": [3, 3],
        "masked_unit_attention": [True, True, False, False],
    },
    "levit": {"kernel_size": 3, "stride": 2, "padding": 1},
    "siglip": {"layer_norm_eps": 1e-6},
    "swinv2": {"layer_norm_eps": 1e-5},
    "dinov3": {"layer_norm_eps": 1e-5, "rope_theta": 100.0},
}
# By setting, the largest epsilon of norms: of LayerNorms one up to it is a matter of rounding, of BatchNorms it is passed on.
_EPSILONS = {"layer_norm_eps": 1e-4, "batch_norm_eps": 0.1}
_BATCH_NORMED = ("mobilenet",)  # families whose BatchNorms have the epsilon that is called LayerNorm's
# Stages of EfficientNet whose first block halves its map.
_HALVING = (1, 2, 3, 5)


@dataclass(frozen=True)
class Read:
    """A network of transformers, understood."""

    weights: State  # under timm's names
    images: dict[str, Any]  # how they are prepared, in the words of timm's config.json
    options: dict[str, Any]  # that timm builds the network with
    name: str | None  # timm's, where more than the tensors tell it
    heads: int | None  # of each attention, where the config.json says it


def read(
    weights: State, family: str, *, config: Mapping[str, Any], preprocessor: Mapping[str, Any], named: bool, label: str
) -> Read:
    """What the files beside a network's weights say of it. UnknownModel for a function that timm has not.

    named: whether its architecture is told already, and is not to be chosen here.
    """
    inner = config.get("vision_config")
    told: Mapping[str, Any] = inner if isinstance(inner, Mapping) else config
    activation = _checked(family, told, label)
    if family == "siglip" and _takes_the_mean(config):
        weights = {name: one for name, one in weights.items() if not name.startswith(siglip.POOL)}
    if images.sees_blue_first(preprocessor, family):
        weights = _from_red_to_blue(weights)
    if family == "efficientnet":
        _check_padding(weights, told, label)
    heads = told.get("num_attention_heads")
    return Read(
        weights,
        images.images_of(preprocessor, family, told),
        _options(weights, family, told, activation),
        None if named else _named(weights, family, config, label),
        heads if type(heads) is int and family not in ("swin", "swinv2") else None,
    )


def _checked(family: str, told: Mapping[str, Any], label: str) -> Any:
    """The activation, "" where none is told of the family; UnknownModel where timm's networks have not what is asked for."""
    known = _ACTIVATIONS.get(family, ("",))
    activation = told.get("hidden_act", known[0]) if known != ("",) else ""
    settings = {key: (told[key], value) for key, value in _ALWAYS.get(family, {}).items() if key in told}
    wrong = next((one for one in settings.items() if one[1][0] != one[1][1]), None)
    if activation not in known:
        wrong = ("hidden_act", (activation, known[0]))
    for key, most in _EPSILONS.items():
        epsilon, most = told.get(key, 1e-6), _EPSILONS["batch_norm_eps"] if family in _BATCH_NORMED else most
        if not (type(epsilon) in (int, float) and 0 <= epsilon <= most):
            wrong = (key, (epsilon, f"a number of 0 to {most}"))
    if wrong is not None:
        key, (value, expected) = wrong
        raise UnknownModel(
            f"{label}: its config.json says {key} {shown(str(value))[:60]}, which no network of timm's has; expected {expected}"
        )
    return activation


def _options(weights: State, family: str, told: Mapping[str, Any], activation: Any) -> dict[str, Any]:
    """What timm's network is built with to compute what this one does."""
    if family == "siglip":
        return {"act_layer": _GELU[activation]}
    if family in ("vit", "dino"):
        return {"act_layer": "gelu_tanh"} if _GELU[activation] == "gelu_tanh" else {}
    if family == "dinov3" or (family == "beit" and _norms_tokens(weights)):
        return {"global_pool": "token"}  # the usual of timm's is the mean of the patches
    if family == "efficientnet" and (epsilon := told.get("batch_norm_eps", 1e-3)) != 1e-3:
        return {"bn_eps": epsilon}
    if family == "mobilenet":
        padding = {"pad_type": "same"} if told.get("tf_padding", True) is not False else {}
        return {"bn_eps": told.get("layer_norm_eps", 1e-3), **padding}
    return {}


def _named(weights: State, family: str, config: Mapping[str, Any], label: str) -> str | None:
    """timm's name of a network of a family in which several with the same tensors compute different features."""
    shapes = {name: tuple(one.shape) for name, one in weights.items()}
    if family == "beit" and _norms_tokens(weights):
        shapes = {re.sub(r"^norm\.", "fc_norm.", name): shape for name, shape in shapes.items()}
    choose = _CHOICES.get(family)
    names = recognise.recognised(shapes) if choose is not None else []
    if choose is None or not names:
        return None
    name = choose(names, config)
    if name is None:
        key = "window_size" if family == "swinv2" else "activation"
        what = f"has the {key} of its config.json" if config else "is told from the others without its config.json"
        raise UnknownModel(
            f"{label}: of timm's with these tensors ({', '.join(names[:6])}) none {what}; --arch can say which"
        )
    return name


def _first_with(word: str) -> Callable[[Sequence[str], Mapping[str, Any]], str | None]:
    """Of names of the same tensors that with a word in it, else the plainest."""
    return lambda names, config: next((name for name in names if word in name), names[0])


def _of_windows(names: Sequence[str], config: Mapping[str, Any]) -> str | None:
    """Of Swin V2's names that with these windows, which a table of biases was learnt for; None where there is none."""
    before = config.get("pretrained_window_sizes", (0,))
    first = before[0] if isinstance(before, (list, tuple)) and before else 0
    for name in names:
        told = re.search(r"_window(?:(\d+)to)?(\d+)_", name)
        if told is not None and (int(told[1] or 0), int(told[2])) == (first, config.get("window_size")):
            return name
    return None


_CHOICES: dict[str, Callable[[Sequence[str], Mapping[str, Any]], str | None]] = {
    "clip": clip.chosen,
    "siglip": _first_with("siglip"),
    "beit": _first_with("beit_"),
    "swinv2": _of_windows,
    "dinov3": _first_with("dinov3"),
    "efficientnet": _first_with("tf_"),  # whose padding is TensorFlow's
}


def _takes_the_mean(config: Mapping[str, Any]) -> bool:
    """Whether a classifier of SigLIP sits on the mean of the patches, beside the layer that pools by attention."""
    classes = config.get("architectures")
    return isinstance(classes, list) and "SiglipForImageClassification" in classes


def _norms_tokens(weights: State) -> bool:
    """Whether a BEiT's features are its class token after the norm, not the mean of its patches before it."""
    return "norm.weight" in weights and "fc_norm.weight" not in weights


def _from_red_to_blue(weights: State) -> State:
    """The same network for images whose colours stand from red to blue: its first kernels turned round."""
    first = weights.get("stem.conv.weight")
    turns = first is not None and first.ndim == 4 and first.shape[1] == 3
    return {**weights, "stem.conv.weight": first.flip(1)} if turns and first is not None else weights


def _check_padding(weights: State, told: Mapping[str, Any], label: str) -> None:
    """UnknownModel for an EfficientNet that pads otherwise than TensorFlow does at its size, as timm's do."""
    side, padded = told.get("image_size"), told.get("depthwise_padding")
    if type(side) is not int or not isinstance(padded, list):
        return
    places = {found.groups() for name in weights if (found := re.match(r"blocks\.(\d+)\.(\d+)\.", name))}
    counts = [sum(int(stage) == one for stage, _ in places) for one in range(7)]
    before, expected = [0, *accumulate(counts)], list[int]()
    odd, side = side % 2 == 1, (side + 1) // 2
    for stage in _HALVING:
        expected += [before[stage]] if side % 2 else []
        side = (side + 1) // 2
    if odd or padded != expected:
        raise UnknownModel(
            f"{label}: its config.json says depthwise_padding {shown(str(padded))[:60]} for {told['image_size']} pixels; "
            f"timm's networks pad as TensorFlow does, which would be {expected}"
        )


def matches_heads(module: Any, heads: int | None) -> bool:
    """Whether a network's attentions have so many heads; where either is not told, they are taken to."""
    counts = {one for layer in module.modules() if type(one := getattr(layer, "num_heads", None)) is int}
    return heads is None or not counts or heads in counts
