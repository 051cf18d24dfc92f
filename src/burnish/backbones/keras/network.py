"""The torch module of a Keras network that `graph` describes: its layers in segments, between which a single tensor passes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from burnish.backbones.keras.layers import KINDS
from burnish.backbones.keras.modules import KerasAttention, Shape, WeightedMean
from burnish.backbones.keras.options import Made, Unfit, Variable
from burnish.errors import brief

INPUT = "input"  # what nodes call the images
_MOST_VALUES, _MOST_A_PIXEL = 2**25, 256  # in what one layer gives: more than both is no network for images
_MOST_AT_ALL = 2**29  # and more than that, two gigabytes, is not computed; all that is needed at one time together
_MOST_WORK = 2e12  # multiply-adds of one image: EfficientNet-L2 at 800 pixels takes 0.6e12
_ATTENTION = (KerasAttention, WeightedMean)
_SEGMENT_WEIGHTS = (nn.Conv2d, nn.Linear, nn.ConvTranspose2d)


@dataclass(frozen=True)
class Part:
    """Where a node's weights lie in the module."""

    place: str  # dotted name of its layer
    variables: tuple[Variable, ...]


@dataclass(frozen=True)
class Place:
    """Where one of a node's steps runs: its layer, or its activation."""

    layer: str  # dotted name of the module in the network
    segment: str  # that of the segment it belongs to, itself where that is a single layer
    ends: bool  # whether it is the segment's last one
    enters: str  # the node whose output enters the segment


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

    def __init__(self, steps: Sequence[LayerStep], given: str) -> None:
        super().__init__()
        names = {given: "images"}
        self.plan: list[tuple[str, tuple[str, ...]]] = []
        for step in steps:
            own = identifier(step.name, set(names.values()) | {"plan", "over", "images"} | set(self._modules))
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

    def __init__(
        self,
        body: dict[str, nn.Module],
        groups: list[list[str]],
        parts: dict[str, Part],
        places: dict[str, list[Place]],
        gives: Shape,
    ) -> None:
        """parts, places: by the names of nodes; a node's layer comes before its activation. gives: for one image."""
        super().__init__()
        self.body = nn.Sequential()
        for name, module in body.items():
            self.body.add_module(name, module)
        self.groups, self.parts, self.places, self.gives = groups, parts, places, gives

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images)


@dataclass(frozen=True)
class LayerStep:
    """One torch layer of the graph."""

    name: str
    node: str  # or constant that it is of
    module: nn.Module
    inputs: tuple[str, ...]
    shape: Shape  # of its output, for one image


def network_of(kwargs: Mapping[str, Any]) -> KerasNet:
    """The module on the current device."""
    steps, variables = steps_of(kwargs)
    segments = in_segments(steps)
    body: dict[str, nn.Module] = {"bgr": _Reverse()} if kwargs["bgr"] else {}
    parts, shapes, given, enters = {}, {}, INPUT, INPUT
    places: dict[str, list[Place]] = {}
    for members in segments:
        name = identifier(members[-1].name, set(body))
        single = len(members) == 1 and len(members[0].inputs) == 1
        body[name] = members[0].module if single else Segment(members, given)
        for place, step in enumerate(members):
            layer = f"body.{name}" + ("" if single else f".{list(body[name]._modules)[place]}")
            places.setdefault(step.node, []).append(Place(layer, f"body.{name}", step is members[-1], enters))
            if step.name in variables:
                parts[step.name] = Part(layer, variables[step.name])
        shapes[name] = members[-1].shape
        given, enters = members[-1].name, members[-1].node
    return KerasNet(body, _grouped(body, shapes), parts, places, steps[-1].shape)


def _free(name: str, taken: set[str]) -> str:
    """The name, made longer until no other step has it."""
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def steps_of(kwargs: Mapping[str, Any]) -> tuple[list[LayerStep], dict[str, tuple[Variable, ...]]]:
    """All layers with the shapes of what they give, in order, and the weights of those that have some."""
    size = kwargs["size"]
    values: dict[str, Tensor] = {INPUT: torch.zeros(1, 3, size, size)}
    steps: list[LayerStep] = []
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
                    steps.append(LayerStep(name, name, constant, (), tuple(constant.value.shape)))
                    values[name], outputs[name] = constant.value, name
            inputs = tuple(outputs[name] for name in node["inputs"])
            made = make(node, [tuple(values[name].shape) for name in node["inputs"]])
            work += _work(made.module, [values[name] for name in node["inputs"]])
            if work > _MOST_WORK:
                raise Unfit(
                    f"brings the work for one image to {work:.1g} multiply-adds, expected at most {_MOST_WORK:.0g}"
                )
            given = values[own] = made.module(*(values[name] for name in node["inputs"]))
            steps.append(LayerStep(own, own, made.module, inputs, tuple(given.shape)))
            outputs[own] = own
            if made.activation is not None:
                outputs[own] = _free(f"{own}_{type(made.activation).__name__.lower()}", taken)
                values[own] = made.activation(given)
                steps.append(LayerStep(outputs[own], own, made.activation, (own,), tuple(values[own].shape)))
        except (Unfit, RuntimeError, ValueError, TypeError, IndexError, OverflowError) as error:
            raise Unfit(f"its layer {own} ({node['kind']}) {brief(error)}") from None
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
    if any(isinstance(layer, _ATTENTION) for layer in module.modules()):
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


def in_segments(steps: list[LayerStep]) -> list[list[LayerStep]]:
    """The steps in runs, each of which a single tensor leaves."""
    last_use = {name: place for place, step in enumerate(steps) for name in step.inputs}
    live: set[str] = {INPUT}
    segments: list[list[LayerStep]] = [[]]
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
            starts = any(isinstance(layer, _ATTENTION) for layer in module.modules())
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


def identifier(name: str, taken: set[str]) -> str:
    """A name that a torch module can have among these."""
    plain = plain_name(name)
    if hasattr(nn.Sequential(), plain):  # an instance has more: `training`
        plain += "_"
    number, found = 1, plain
    while found in taken:
        number += 1
        found = f"{plain}_{number}"
    return found
