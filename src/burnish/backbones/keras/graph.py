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
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from burnish.backbones.keras.layers import KINDS
from burnish.backbones.keras.modules import KerasAttention, Shape
from burnish.backbones.keras.options import Made, Unfit, Variable
from burnish.backbones.spec import Stage
from burnish.errors import UnknownModel, nearest, shown

LIBRARY = "keras"
INPUT = "input"  # what nodes call the images
_MOST_NODES = 5000
_MOST_VALUES, _MOST_A_PIXEL = 2**25, 256  # in what one layer gives: more than both is no network for images
_MOST_AT_ALL = 2**29  # and more than that, two gigabytes, is not computed; all that is needed at one time together
_MOST_WORK = 2e12  # multiply-adds of one image: EfficientNet-L2 at 800 pixels takes 0.6e12
_MOST_NUMBERS = 2**31  # eight gigabytes of float32
_NAME = re.compile(r"[\w.\-/ ]{1,200}")
_WORD = re.compile(r"[A-Za-z]+_?\d*")  # of "conv2_block1_1_conv", "block_3_expand"
_SEGMENT_WEIGHTS = (nn.Conv2d, nn.Linear, nn.ConvTranspose2d)


@dataclass(frozen=True)
class Part:
    """Where a node's weights lie in the module."""

    place: str  # dotted name of its layer
    variables: tuple[Variable, ...]


class _Constant(nn.Module):
    """A tensor of the graph that is neither an image nor a weight; it does not learn."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("value", torch.zeros(tuple(shape)))

    value: Tensor

    def forward(self) -> Tensor:
        return self.value


class _Reverse(nn.Module):
    """RGB to BGR, as models ported from Caffe expect."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flip(1)


class Segment(nn.Module):
    """Layers between two places where a single tensor passes; a residual block, say."""

    def __init__(self, steps: Sequence[_Step], given: str) -> None:
        super().__init__()
        names = {given: "images"}
        self.plan: list[tuple[str, tuple[str, ...]]] = []
        for step in steps:
            own = _identifier(step.name, set(names.values()) | {"plan", "over", "images"} | set(self._modules))
            names[step.name] = own
            self.add_module(own, step.module)
            self.plan.append((own, tuple(names[one] for one in step.inputs)))
        last_use = {one: place for place, (_, inputs) in enumerate(self.plan) for one in inputs}
        # What no later step takes
        self.over = [
            [one for one in dict.fromkeys(inputs) if last_use[one] == place]
            for place, (_, inputs) in enumerate(self.plan)
        ]

    def forward(self, images: Tensor) -> Tensor:
        values, last = {"images": images}, "images"
        for (last, inputs), over in zip(self.plan, self.over, strict=True):
            values[last] = self.get_submodule(last)(*(values[one] for one in inputs))
            for one in over:
                del values[one]
        return values[last]


class KerasNet(nn.Module):
    """Images [b 3 s s] to features [b d]; the layers of a Keras network, run by torch alone."""

    def __init__(self, body: dict[str, nn.Module], groups: list[list[str]], parts: dict[str, Part]) -> None:
        super().__init__()
        self.body = nn.Sequential()
        for name, module in body.items():
            self.body.add_module(name, module)
        self.groups, self.parts = groups, parts

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images)


@dataclass(frozen=True)
class _Step:
    """One torch layer of the graph."""

    name: str
    module: nn.Module
    inputs: tuple[str, ...]
    shape: Shape  # of its output, for one image


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
    module = blank(name, kwargs)
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
            module = _net(kwargs)
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


def takes_other_sizes(name: str, kwargs: Mapping[str, Any], width: int) -> bool:
    """Whether the same weights give as many features for larger images."""
    return takes_size(name, kwargs, width, kwargs["size"] + 32)


def takes_size(name: str, kwargs: Mapping[str, Any], width: int, size: int) -> bool:
    """Whether the same weights give as many features for images of that size."""
    try:
        other, own = blank(name, {**kwargs, "size": size}), blank(name, dict(kwargs))
        shapes = [{key: one.shape for key, one in net.state_dict().items()} for net in (other, own)]
        with torch.device("meta"):
            return shapes[0] == shapes[1] and other(torch.zeros(1, 3, size, size)).shape == (1, width)
    except (UnknownModel, RuntimeError, ValueError):
        return False


@dataclass(frozen=True)
class Place:
    """Where a node runs: the segment of the body, its own name there, and the nodes whose outputs enter and leave it."""

    segment: str
    own: str
    enters: str
    leaves: str


def segments_of(kwargs: Mapping[str, Any]) -> dict[str, Place]:
    """The place of each node, by its name; an activation of its own step belongs to its node."""
    with torch.device("meta"):
        steps, _ = _steps(kwargs)
    node_of = {step.name: step.name for step in steps}
    for node in kwargs["nodes"]:
        for step in steps:
            if step.inputs == (node["name"],) and step.name not in {one["name"] for one in kwargs["nodes"]}:
                node_of[step.name] = node["name"]
    found: dict[str, Place] = {}
    given, taken = INPUT, {"bgr"} if kwargs["bgr"] else set()
    for members in _segments(steps):
        name = _identifier(members[-1].name, taken)
        taken.add(name)
        for step in members:
            place = Place(name, plain_name(step.name), node_of.get(given, given), node_of[members[-1].name])
            found.setdefault(node_of[step.name], place)
        given = members[-1].name
    return found


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


# ---- building --------------------------------------------------------------------------------------------------------


def _net(kwargs: Mapping[str, Any]) -> KerasNet:
    """The module on the current device."""
    steps, variables = _steps(kwargs)
    segments = _segments(steps)
    body: dict[str, nn.Module] = {"bgr": _Reverse()} if kwargs["bgr"] else {}
    parts, shapes, given = {}, {}, INPUT
    for members in segments:
        name = _identifier(members[-1].name, set(body))
        single = len(members) == 1 and len(members[0].inputs) == 1
        body[name] = members[0].module if single else Segment(members, given)
        for place, step in enumerate(members):
            if step.name in variables:
                inner = "" if single else f".{list(body[name]._modules)[place]}"
                parts[step.name] = Part(f"body.{name}{inner}", variables[step.name])
        shapes[name] = members[-1].shape
        given = members[-1].name
    return KerasNet(body, _grouped(body, shapes), parts)


def _free(name: str, taken: set[str]) -> str:
    """The name, made longer until no other step has it."""
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _steps(kwargs: Mapping[str, Any]) -> tuple[list[_Step], dict[str, tuple[Variable, ...]]]:
    """All layers with the shapes of what they give, in order, and the weights of those that have some."""
    size = kwargs["size"]
    values: dict[str, Tensor] = {INPUT: torch.zeros(1, 3, size, size)}
    steps: list[_Step] = []
    taken = {node["name"] for node in kwargs["nodes"]}
    variables: dict[str, tuple[Variable, ...]] = {}
    outputs: dict[str, str] = {INPUT: INPUT}  # a node's activation is a step of its own
    last_use = {name: place for place, node in enumerate(kwargs["nodes"]) for name in node["inputs"]}
    work = 0.0
    for place, node in enumerate(kwargs["nodes"]):
        own = node["name"]
        try:
            for name in node["inputs"]:
                if name in kwargs["constants"] and name not in values:
                    constant = _Constant(kwargs["constants"][name])
                    steps.append(_Step(name, constant, (), tuple(constant.value.shape)))
                    values[name], outputs[name] = constant.value, name
            inputs = tuple(outputs[name] for name in node["inputs"])
            made = make(node, [tuple(values[name].shape) for name in node["inputs"]])
            work += _work(made.module, [values[name] for name in node["inputs"]])
            if work > _MOST_WORK:
                raise Unfit(
                    f"brings the work for one image to {work:.1g} multiply-adds, expected at most {_MOST_WORK:.0g}"
                )
            given = values[own] = made.module(*(values[name] for name in node["inputs"]))
            steps.append(_Step(own, made.module, inputs, tuple(given.shape)))
            outputs[own] = own
            if made.activation is not None:
                outputs[own] = _free(f"{own}_{type(made.activation).__name__.lower()}", taken)
                values[own] = made.activation(given)
                steps.append(_Step(outputs[own], made.activation, (own,), tuple(values[own].shape)))
        except (Unfit, RuntimeError, ValueError, TypeError, IndexError, OverflowError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise Unfit(f"its layer {own} ({node['kind']}) {reason[:200]}") from None
        if (
            not isinstance(values[own], Tensor)
            or values[own].ndim > 4
            or values[own].numel() > min(_MOST_AT_ALL, max(_MOST_VALUES, _MOST_A_PIXEL * size**2))
        ):
            raise Unfit(f"its layer {own} ({node['kind']}) gives a tensor of {values[own].numel():,} numbers")
        variables[own] = made.variables
        for name in [*node["inputs"], own]:  # what nothing takes any more
            if last_use.get(name, place) <= place and name in values and place + 1 < len(kwargs["nodes"]):
                del values[name]
        if sum(one.numel() for one in values.values()) > _MOST_AT_ALL:
            raise Unfit(f"its layer {own} ({node['kind']}) leaves over {_MOST_AT_ALL:,} numbers to be kept at one time")
    return steps, {name: some for name, some in variables.items() if some}


def _work(module: nn.Module, inputs: list[Tensor]) -> float:
    """Multiply-adds, at the most: each weight once for each place of the largest input, and what attention and pooling take."""
    if not inputs:
        return 0.0
    largest = max(inputs, key=torch.numel)
    places = math.prod(largest.shape[2:]) if largest.ndim == 4 else largest.shape[1] if largest.ndim == 3 else 1
    work = float(places) * sum(one.numel() for one in module.parameters())
    if any(isinstance(layer, KerasAttention) for layer in module.modules()):
        work += 2.0 * places**2 * largest.shape[-1]
    for layer in module.modules():
        sides = (
            None
            if any(True for _ in layer.parameters())
            else getattr(layer, "kernel_size", None) or getattr(layer, "size", None)
        )
        if isinstance(sides, (tuple, int)):  # of a pooling
            work += float(largest.numel()) * (math.prod(sides) if isinstance(sides, tuple) else sides**2)
    return work


def make(node: Mapping[str, Any], shapes: list[Shape]) -> Made:
    """The torch layer of a node whose inputs have these shapes."""
    kind = KINDS[node["kind"]]
    made = kind.make({**kind.options, **node["options"]}, shapes)
    made.module.eval()
    return made


def _segments(steps: list[_Step]) -> list[list[_Step]]:
    """The steps in runs, each of which a single tensor leaves."""
    last_use = {name: place for place, step in enumerate(steps) for name in step.inputs}
    live: set[str] = {INPUT}
    segments: list[list[_Step]] = [[]]
    for place, step in enumerate(steps):
        segments[-1].append(step)
        live.add(step.name)
        live = {name for name in live if last_use.get(name, -1) > place or name == step.name}
        if live == {step.name} and step.inputs and place + 1 < len(steps):
            segments.append([])
    return segments


def _grouped(body: dict[str, nn.Module], shapes: dict[str, Shape]) -> list[list[str]]:
    """Names of the body's members by stage: a stem, then a stage for each size of the maps, or each attention."""
    groups: list[list[str]] = [[]]
    smallest, stem = math.inf, True
    for name, module in body.items():
        shape = shapes.get(name, ())
        if stem and isinstance(module, Segment) and _weighted(module) > 1:
            stem, starts = False, bool(groups[-1])
        elif len(shape) == 3:
            starts = any(isinstance(layer, KerasAttention) for layer in module.modules())
        else:
            starts = len(shape) == 4 and shape[2] < smallest and not stem
        if starts and any(body[one].state_dict() for one in groups[-1]):
            groups.append([])
        groups[-1].append(name)
        smallest = min(smallest, shape[2]) if len(shape) == 4 else smallest
    if stem:  # a plain chain: by the size of the maps alone
        return _by_size(body, shapes)
    return groups


def _by_size(body: dict[str, nn.Module], shapes: dict[str, Shape]) -> list[list[str]]:
    groups: list[list[str]] = [[]]
    sizes: list[int] = []
    for name in body:
        shape = shapes.get(name, ())
        size = shape[2] if len(shape) == 4 else sizes[-1] if sizes else 0
        if sizes and size < sizes[-1] and any(body[one].state_dict() for one in groups[-1]):
            groups.append([])
        groups[-1].append(name)
        sizes.append(size)
    return groups


def _weighted(module: nn.Module) -> int:
    return sum(isinstance(layer, _SEGMENT_WEIGHTS) for layer in module.modules())


def plain_name(name: str) -> str:
    """A node's name as torch modules can have it."""
    return re.sub(r"\W", "_", name) or "layer"


def _identifier(name: str, taken: set[str]) -> str:
    """A name that a torch module can have among these."""
    plain = plain_name(name)
    if hasattr(nn.Sequential(), plain):  # an instance has more: `training`
        plain += "_"
    number, found = 1, plain
    while found in taken:
        number += 1
        found = f"{plain}_{number}"
    return found


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
