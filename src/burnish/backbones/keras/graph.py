"""A Keras network as a plain description, and the torch module built from it.

    {"nodes": [{"name": "conv1", "kind": "Conv2D", "options": {...}, "inputs": ["input"]}, ...],
     "constants": {"pos": [1, 196, 192]}, "size": 224, "bgr": false}

Nodes come in the order in which they can run; the last one's output is the features. The description is all that a package
keeps of a Keras file's config: kinds and options select from the table of `layers` (P8).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from burnish.backbones.keras.layers import KINDS
from burnish.backbones.keras.network import INPUT, KerasNet, network_of
from burnish.backbones.keras.options import Unfit
from burnish.backbones.spec import Stage
from burnish.errors import UnknownModel, nearest, shown

LIBRARY = "keras"
_MOST_NODES = 5000
_MOST_NUMBERS = 2**31  # eight gigabytes of float32
_NAME = re.compile(r"[\w.\-/ ]{1,200}")
_WORD = re.compile(r"[A-Za-z]+_?\d*")  # of "conv2_block1_1_conv", "block_3_expand"


# ---- the library of `architectures` ----------------------------------------------------------------------------------


def check(name: Any, kwargs: Any) -> None:
    """UnknownModel unless these describe a network of layers that the table knows."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UnknownModel(f"the Keras network's name is {shown(repr(name))[:80]}")
    entries = {"nodes", "constants", "size", "bgr"}
    if not isinstance(kwargs, dict) or set(kwargs) - {"img_size"} != entries:
        raise UnknownModel(f"{shown(name)}: a Keras network is described by {', '.join(sorted(entries))}")
    size = kwargs["size"]
    if type(size) is not int or not 1 <= size <= 4096 or kwargs.get("img_size", size) != size:
        raise UnknownModel(f"{shown(name)}: its images have {shown(repr(size))[:40]} pixels, expected 1 to 4096")
    if type(kwargs["bgr"]) is not bool:
        raise UnknownModel(f"{shown(name)}: bgr is {shown(repr(kwargs['bgr']))[:40]}, expected true or false")
    _check_nodes(name, kwargs["nodes"], kwargs["constants"])


def build(name: str, kwargs: dict[str, Any], *, drop_path: float = 0.0) -> nn.Module:
    """The headless module in eval mode, its weights drawn from the global generator.

    UnknownModel when its layers do not fit each other, or it would be too large to be meant.
    """
    if drop_path:
        raise UnknownModel(f"{name}: a Keras network has no drop path")
    return drawn(blank(name, kwargs))


def drawn(module: KerasNet) -> KerasNet:
    """The module that `blank` made, its weights drawn from the global generator."""
    for layer in module.modules():
        for key, parameter in list(layer._parameters.items()):
            if parameter is not None and parameter.is_meta:
                layer._parameters[key] = nn.Parameter(_drawn(layer, key, parameter))
        for key, buffer in list(layer._buffers.items()):
            if buffer is not None and buffer.is_meta:
                ones = key in ("running_var", "variance")
                make = torch.ones if ones else torch.zeros
                layer._buffers[key] = make(buffer.shape, dtype=buffer.dtype)
    return module


def blank(name: str, kwargs: dict[str, Any]) -> KerasNet:
    """The module without weights, on the meta device."""
    try:
        with torch.device("meta"):
            module = network_of(kwargs)
    except Unfit as error:
        raise UnknownModel(f"{shown(name)}: {shown(str(error))}") from None
    numbers = _numbers(module)
    if numbers > _MOST_NUMBERS:
        raise UnknownModel(f"{shown(name)}: would have {numbers:,} weights, expected at most {_MOST_NUMBERS:,}")
    return module.eval()


def numbers_of(name: str, kwargs: dict[str, Any]) -> int:
    """How many weights the module would have; UnknownModel where it cannot be built."""
    return _numbers(blank(name, kwargs))


def _numbers(module: nn.Module) -> int:
    return sum(one.numel() for one in module.state_dict().values())


def groups_of(module: nn.Module, names: list[str]) -> list[list[str]]:
    """Names of weights by stage."""
    assert isinstance(module, KerasNet)
    groups = []
    for members in module.groups:
        beginnings = tuple(f"body.{member}." for member in members)
        found = [name for name in names if name.startswith(beginnings)]
        if found:
            groups.append(found)
    return groups


def named_stages(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """The stages called by what their layers' names share."""
    renamed: list[Stage] = []
    for number, stage in enumerate(stages):
        layers = dict.fromkeys(name.split(".")[-2] for name in stage.parameters)
        words = Counter(found[0].rstrip("_") if (found := _WORD.match(layer)) else layer for layer in layers)
        label = "stem" if number == 0 and len(stages) > 1 else words.most_common(1)[0][0]
        taken = {one.name for one in renamed}
        renamed.append(replace(stage, name=label if label not in taken else f"{label} ({number})"))
    return tuple(renamed)


def takes_size(own: KerasNet, name: str, kwargs: Mapping[str, Any], size: int) -> bool:
    """Whether the same weights give as many features for images of that size; not where they are resized to another.

    own: the network that kwargs describe, blank or not.
    """
    if size != kwargs["size"] and any(node["kind"] == "Resizing" for node in kwargs["nodes"]):
        return False
    try:
        other = blank(name, {**kwargs, "size": size})
    except UnknownModel:
        return False
    shapes = [{key: one.shape for key, one in net.state_dict().items()} for net in (other, own)]
    return shapes[0] == shapes[1] and other.gives == own.gives


# ---- checking --------------------------------------------------------------------------------------------------------


def _check_nodes(name: str, nodes: Any, constants: Any) -> None:
    label = shown(name)
    if not isinstance(nodes, list) or not 0 < len(nodes) <= _MOST_NODES:
        raise UnknownModel(f"{label}: its layers are not a list of 1 to {_MOST_NODES}")
    if not isinstance(constants, dict) or len(constants) > 64 or not all(
        isinstance(key, str) and _NAME.fullmatch(key) and isinstance(shape, list) and len(shape) <= 4
        and all(type(one) is int and 1 <= one <= 2**20 for one in shape) and math.prod(shape) <= 2**24
        for key, shape in constants.items()
    ):  # fmt: skip
        raise UnknownModel(f"{label}: its constants are not names with shapes")
    known = {INPUT, *constants}
    for node in nodes:
        if not isinstance(node, dict) or set(node) != {"name", "kind", "options", "inputs"}:
            raise UnknownModel(f"{label}: a layer is described by name, kind, options and inputs")
        own, kind, options, inputs = node["name"], node["kind"], node["options"], node["inputs"]
        if not isinstance(own, str) or not _NAME.fullmatch(own) or own in known:
            raise UnknownModel(f"{label}: a layer is called {shown(repr(own))[:80]}, which is no name, or taken")
        if not isinstance(kind, str) or kind not in KINDS:
            close = nearest(str(kind), KINDS)
            raise UnknownModel(f"{label}: no layer of the kind {shown(repr(kind))[:80]} (nearest: {close})")
        if not isinstance(options, dict) or not set(options) <= set(KINDS[kind].options):
            raise UnknownModel(
                f"{label}: {shown(own)} ({kind}) has options other than {', '.join(KINDS[kind].options)}"
            )
        if (
            not isinstance(inputs, list)
            or len(inputs) > 512
            or not all(isinstance(one, str) and one in known for one in inputs)
        ):
            raise UnknownModel(f"{label}: {shown(own)} takes what no layer before it gives")
        known.add(own)


def _drawn(layer: nn.Module, key: str, like: Tensor) -> Tensor:
    """Random weights as is usual for the kind of layer (He et al. 2015, arXiv:1502.01852)."""
    weight = torch.zeros(like.shape)
    if key == "bias":
        return weight
    if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
        return nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")
    if isinstance(layer, nn.Linear):
        return nn.init.trunc_normal_(weight, std=0.02)
    return nn.init.normal_(weight, std=0.02) if like.ndim > 1 else weight + (0.25 if isinstance(layer, nn.PReLU) else 1)
