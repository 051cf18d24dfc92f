"""What the config in a Keras file says, brought to the plain description of `graph`; nothing of it is run (P8)."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from burnish.backbones.keras.entries import (
    Reference,
    arguments,
    class_of,
    ends_of,
    kind_and_options,
    name_of,
    places_of,
    quantised,
    references,
    unwrapped,
)
from burnish.backbones.keras.moves import inward
from burnish.backbones.keras.network import INPUT
from burnish.backbones.keras.options import Unfit
from burnish.errors import BadWeights, shown

_MODELS = ("Functional", "Model", "Sequential")
_MOST_LAYERS = 5000
_DEEPEST = 5
NO_CHANNELS = 0  # of images [b h w]
ONE_END = (
    "expected one each; save the part from the images to the features alone:  "
    "keras.Model(model.inputs[0], model.get_layer(NAME).output).save('trunk.keras')"
)

_OF_OWN_CLASS = (
    "whose code is not in the file; only Functional and Sequential are read, so save its layers as one, where its call uses "
    "Keras's own:  images = keras.Input((224, 224, 3)); keras.Model(images, model.call(images)).save('model.keras')"
)


@dataclass
class Node:
    """One layer as the file has it: `inputs` are names of nodes and constants."""

    name: str
    kind: str
    options: dict[str, Any]
    inputs: list[str]
    own_name: str = ""  # in the file, where nested models may repeat it
    modern: str = ""  # where .weights.h5 files keep its weights
    outer: str = ""  # the outermost layer that it belongs to, itself or a model in the model: a group in .h5 files
    quantised: str = ""  # how its weights are, as "int8"

    def plain(self) -> dict[str, Any]:
        """As `graph` takes it."""
        return {"name": self.name, "kind": self.kind, "options": self.options, "inputs": self.inputs}


@dataclass
class Parsed:
    """The network of a config."""

    nodes: list[Node]
    outputs: list[str]
    image: list[int | None]  # height, width, channels, as `NO_CHANNELS` where that axis is left out
    constants: dict[str, Tensor] = field(default_factory=dict)


def parsed(config: Any, label: str) -> Parsed:
    """The layers of a model's config in an order in which they can run.

    BadWeights, naming it, where the config holds anything but layers that the table knows, joined as images to one output.
    """
    found = Parsed([], [], [])
    try:
        _Parser(found).model(config, [INPUT], "", depth=0)
    except Unfit as error:
        raise BadWeights(f"{label}: {shown(str(error))[:600]}") from None
    except (KeyError, TypeError, IndexError, AttributeError, ValueError, RecursionError, OverflowError) as error:
        reason = f"{type(error).__name__} {shown(str(error))[:100]}"
        raise BadWeights(f"{label}: its config is not one that Keras writes ({reason})") from None
    return found


class _Parser:
    def __init__(self, found: Parsed) -> None:
        self.found = found
        self.seen = 0  # layers, those of models within models at each call

    def model(self, entry: dict[str, Any], given: list[str], modern: str, *, depth: int, outer: str = "") -> str:
        """Take in a model whose input is what those names give; the name of what it gives. outer: as in `Node`."""
        if depth > _DEEPEST:
            raise Unfit("has models in models in models, too deep")
        own, of_hub = entry["class_name"], str(entry.get("module")).startswith("keras_hub")
        if own not in _MODELS and not depth and not of_hub:
            where = f" of the module {str(entry['module'])[:100]}" if entry.get("module") else ""
            raise Unfit(f"is a model of the class {str(own)[:100]}{where}, {_OF_OWN_CLASS}")
        kind, config = class_of(entry), entry["config"]
        if kind not in _MODELS:
            raise Unfit(f"holds a model of the class {kind}, {_OF_OWN_CLASS}")
        layers = config["layers"] if isinstance(config, dict) else config  # Keras 2.2 wrote a list for Sequential
        if not isinstance(layers, list) or not layers or len(layers) > _MOST_LAYERS:
            raise Unfit("has no layers, or too many")
        self.seen += len(layers)
        if self.seen > 2 * _MOST_LAYERS:
            raise Unfit("has too many layers")
        places = places_of(layers, modern)
        if kind == "Sequential":
            built = _dict(entry.get("build_config")).get("input_shape")
            self._note_image({"build_input_shape": built, **_dict(config)}, layers[0])
            for layer, place in zip(layers, places, strict=True):
                given = [self._layer(layer, given, place, depth, outer)]
            return self._ends(given, depth)
        inputs, outputs = ends_of(config["input_layers"]), ends_of(config["output_layers"])
        if len(inputs) != 1 or not outputs or (depth and len(outputs) > 1):
            raise Unfit(f"has {len(inputs)} inputs and {len(outputs)} outputs, {ONE_END}")
        names = _Given(layers, outputs)
        for layer, place, call in _in_order(layers, places, names):
            own = names.called(layer, call)
            if own in names:
                raise Unfit(f"has two layers called {own.name}")
            if own.name == inputs[0].name:
                self._note_image({}, layer)
                names[own] = given[0]
            elif class_of(layer) == "InputLayer":
                raise Unfit("has more than one input")
            else:
                names[own] = self._node(layer, names, place, call, depth, outer)
        return self._ends([names[one] for one in outputs], depth)

    def _ends(self, names: list[str], depth: int) -> str:
        if depth == 0:
            self.found.outputs = names
        return names[0]

    def _node(self, layer: dict[str, Any], names: _Given, place: str, call: int, depth: int, outer: str) -> str:
        """A layer of a Functional model, with what goes in as that call of it says."""
        own, calls = name_of(layer), layer.get("inbound_nodes") or []
        if not calls:
            raise Unfit(f"its layer {own} is called 0 times, expected once")
        if class_of(layer) in _MODELS:
            inputs = [names[one] for one in references(calls[call])]
            return self.model(layer, inputs, place, depth=depth + 1, outer=outer or own)
        layer, place = unwrapped(layer, place)
        kind, options = kind_and_options(layer)
        order, extra = arguments(calls[call], kind)
        if not order:
            raise Unfit(f"its layer {own} takes nothing")
        inputs = []
        for argument in order:
            if isinstance(argument, Reference):
                inputs.append(names[argument])
            else:
                inputs.append(self._constant(own, argument))
        return self._add(layer, kind, {**options, **extra}, inputs, place, outer or own)

    def _layer(self, layer: dict[str, Any], given: list[str], place: str, depth: int, outer: str) -> str:
        """A layer of a Sequential model."""
        kind, own = class_of(layer), name_of(layer)
        if kind == "InputLayer":
            return given[0]
        if kind in _MODELS:
            return self.model(layer, given, place, depth=depth + 1, outer=outer or own)
        layer, place = unwrapped(layer, place)
        name, options = kind_and_options(layer)
        return self._add(layer, name, options, given, place, outer or own)

    def _add(
        self, layer: dict[str, Any], kind: str, options: dict[str, Any], inputs: list[str], place: str, outer: str
    ) -> str:
        own = name_of(layer)
        taken = {node.name for node in self.found.nodes} | set(self.found.constants) | {INPUT}
        name, number = own, 1
        while name in taken:
            number += 1
            name = f"{own}_{number}"
        if len(self.found.nodes) >= _MOST_LAYERS:
            raise Unfit("has too many layers")
        self.found.nodes.append(Node(name, kind, options, inputs, own, place, outer, quantised(layer)))
        return name

    def _constant(self, own: str, value: Any) -> str:
        name, number = f"{own}_constant", 1
        while name in self.found.constants:
            number += 1
            name = f"{own}_constant_{number}"
        try:
            tensor = torch.tensor(value, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            tensor = torch.tensor(math.nan)
        if not tensor.isfinite().all():
            raise Unfit(f"its layer {own} takes {str(value)[:60]!r}, which is no number")
        if tensor.ndim > 4 or tensor.numel() > 2**24:
            raise Unfit(f"its layer {own} takes a constant of {tensor.numel():,} numbers")
        self.found.constants[name] = inward(tensor).contiguous()
        return name

    def _note_image(self, config: dict[str, Any], layer: dict[str, Any]) -> None:
        """The shape of the images, from an input layer or a first layer that says it."""
        if self.found.image:
            return
        inner = layer["config"] if isinstance(layer.get("config"), dict) else {}
        for shape in (
            inner.get("batch_shape"),
            inner.get("batch_input_shape"),
            (config or {}).get("build_input_shape"),
        ):
            if isinstance(shape, (list, tuple)) and len(shape) == 4:
                self.found.image = [one if type(one) is int else None for one in shape[1:]]
                return
            if isinstance(shape, (list, tuple)) and len(shape) == 3 and type(shape[1]) is int and shape[1] == shape[2]:
                self.found.image = [*shape[1:], NO_CHANNELS]
                return


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


class _Given:
    """The node that gives what a call refers to; calls are told apart where a layer has several."""

    def __init__(self, layers: list[Any], outputs: list[Reference]) -> None:
        self._several = {name_of(layer) for layer in layers if len(layer.get("inbound_nodes") or []) > 1}
        self._first: dict[str, int] = {}  # Keras 2 counts the calls of most models from 1
        for layer in layers if self._several else ():
            for one in [*outputs, *references(layer.get("inbound_nodes") or [])]:
                if one.name in self._several:
                    self._first[one.name] = min(one.call, self._first.get(one.name, one.call))
        self._names: dict[Reference, str] = {}

    def called(self, layer: dict[str, Any], call: int) -> Reference:
        """What others refer to a call of a layer by."""
        own = name_of(layer)
        return self.one(Reference(own, call + self._first.get(own, 0)))

    def one(self, wanted: Reference) -> Reference:
        """The same, as it is kept here: Keras counts the calls of others from elsewhere."""
        return wanted if wanted.name in self._several else Reference(wanted.name)

    def __contains__(self, wanted: Reference) -> bool:
        return self.one(wanted) in self._names

    def __getitem__(self, wanted: Reference) -> str:
        return self._names[self.one(wanted)]

    def __setitem__(self, wanted: Reference, name: str) -> None:
        self._names[self.one(wanted)] = name


def _in_order(layers: list[Any], places: list[str], given: _Given) -> Iterator[tuple[Any, str, int]]:
    """Calls of layers with the layers' places, each after those it takes from, else as the file has them."""
    calls = [
        (layer, place, call)
        for layer, place in zip(layers, places, strict=True)
        for call in range(max(1, len(layer.get("inbound_nodes") or [])))
    ]
    if len(calls) > _MOST_LAYERS:
        raise Unfit("has too many layers")
    needs = [
        {given.one(one) for one in references((layer.get("inbound_nodes") or [[]])[call])} for layer, _, call in calls
    ]
    waiting: dict[Reference, list[int]] = {}
    for number, wanted in enumerate(needs):
        for one in wanted:
            waiting.setdefault(one, []).append(number)
    ready = [number for number, wanted in enumerate(needs) if not wanted]
    done = 0
    while ready:
        number = heapq.heappop(ready)
        layer, place, call = calls[number]
        yield layer, place, call
        done += 1
        own = given.called(layer, call)
        for other in waiting.pop(own, ()):
            needs[other].discard(own)
            if not needs[other]:
                heapq.heappush(ready, other)
    if done < len(calls):
        raise Unfit("has layers that take what none of them gives")
