"""What the config in a Keras file says, brought to the plain description of `graph`; nothing of it is run (P8)."""

from __future__ import annotations

import heapq
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from burnish.backbones.keras.graph import INPUT
from burnish.backbones.keras.layers import KINDS, WITHOUT_EFFECT, inward
from burnish.backbones.keras.options import Unfit, activation
from burnish.errors import BadWeights, nearest, shown

_MODELS = ("Functional", "Model", "Sequential")
_MOST_LAYERS = 5000
_DEEPEST = 5
# Entries that say how a layer was trained or set up, not what it does.
_IGNORED = {
    "name", "trainable", "dtype", "kernel_initializer", "bias_initializer", "kernel_regularizer", "bias_regularizer",
    "activity_regularizer", "kernel_constraint", "bias_constraint", "beta_initializer", "gamma_initializer",
    "moving_mean_initializer", "moving_variance_initializer", "beta_regularizer", "gamma_regularizer",
    "beta_constraint", "gamma_constraint", "depthwise_initializer", "pointwise_initializer", "depthwise_regularizer",
    "pointwise_regularizer", "depthwise_constraint", "pointwise_constraint", "alpha_initializer", "alpha_regularizer",
    "alpha_constraint", "embeddings_initializer", "embeddings_regularizer", "embeddings_constraint", "batch_input_shape",
    "batch_shape", "input_length", "noise_shape", "seed", "renorm", "renorm_clipping", "renorm_momentum", "fused",
    "virtual_batch_size", "adjustment", "synchronized", "dropout", "flash_attention", "query_shape", "key_shape",
    "value_shape", "input_dtype", "lora_rank", "lora_alpha", "quantization_config", "mask_zero", "shape", "ragged",
    "sparse", "optional", "autocast", "supports_masking", "input_spec", "weights", "sparse_grad",
}  # fmt: skip
_SPELLINGS = {"alpha": {"LeakyReLU": "negative_slope"}}  # Keras 2's words for today's options
# Operators on tensors, as Keras 3 names their classes and as Keras 2 names TensorFlow's functions.
_OPERATORS = {
    "Add": "Add", "Subtract": "Subtract", "Multiply": "Multiply", "TrueDivide": "op:Divide", "Divide": "op:Divide",
    "Maximum": "Maximum", "Minimum": "Minimum", "Mean": "op:Mean", "Transpose": "op:Transpose", "Reshape": "op:Reshape",
}  # fmt: skip
_FUNCTIONS = {
    "math.add": "Add", "__operators__.add": "Add", "math.subtract": "Subtract", "math.multiply": "Multiply",
    "math.truediv": "op:Divide", "math.divide": "op:Divide", "math.reduce_mean": "op:Mean", "reshape": "op:Reshape",
    "transpose": "op:Transpose", "nn.relu": "relu", "nn.relu6": "relu6", "nn.silu": "silu", "nn.gelu": "gelu",
    "math.sigmoid": "sigmoid", "math.tanh": "tanh", "nn.bias_add": "Add", "cast": "Identity", "identity": "Identity",
}  # fmt: skip


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

    def plain(self) -> dict[str, Any]:
        """As `graph` takes it."""
        return {"name": self.name, "kind": self.kind, "options": self.options, "inputs": self.inputs}


@dataclass
class Parsed:
    """The network of a config."""

    nodes: list[Node]
    output: str
    image: list[int | None]  # height, width, channels
    constants: dict[str, Tensor] = field(default_factory=dict)


def parsed(config: Any, label: str) -> Parsed:
    """The layers of a model's config in an order in which they can run.

    BadWeights, naming it, where the config holds anything but layers that the table knows, joined as images to one output.
    """
    found = Parsed([], "", [])
    try:
        _Parser(found).model(config, [INPUT], "", depth=0)
    except Unfit as error:
        raise BadWeights(f"{label}: {shown(str(error))[:400]}") from None
    except (KeyError, TypeError, IndexError, AttributeError, ValueError, RecursionError, OverflowError) as error:
        reason = f"{type(error).__name__} {shown(str(error))[:100]}"
        raise BadWeights(f"{label}: its config is not one that Keras writes ({reason})") from None
    return found


class _Parser:
    def __init__(self, found: Parsed) -> None:
        self.found = found

    def model(self, entry: dict[str, Any], given: list[str], modern: str, *, depth: int, outer: str = "") -> str:
        """Take in a model whose input is what those names give; the name of what it gives. outer: as in `Node`."""
        if depth > _DEEPEST:
            raise Unfit("has models in models in models, too deep")
        kind = _class_of(entry)
        config = entry["config"]
        if kind not in _MODELS:
            raise Unfit(
                f"is a model of the class {kind}, whose code is not in the file; only Functional and Sequential are read"
            )
        layers = config["layers"] if isinstance(config, dict) else config  # Keras 2.2 wrote a list for Sequential
        if not isinstance(layers, list) or not layers or len(layers) > _MOST_LAYERS:
            raise Unfit("has no layers, or too many")
        places = _places(layers, modern)
        if kind == "Sequential":
            built = _dict(entry.get("build_config")).get("input_shape")
            self._note_image({"build_input_shape": built, **_dict(config)}, layers[0])
            for layer, place in zip(layers, places, strict=True):
                given = [self._layer(layer, given, place, depth, outer)]
            return self._ends(given[0], depth)
        inputs, outputs = _ends(config["input_layers"]), _ends(config["output_layers"])
        if len(inputs) != 1 or len(outputs) != 1:
            raise Unfit(f"has {len(inputs)} inputs and {len(outputs)} outputs, expected one each")
        names: dict[str, str] = {}
        for layer, place in _in_order(layers, places):
            own = _name_of(layer)
            if own in names:
                raise Unfit(f"has two layers called {own}")
            if own == inputs[0]:
                self._note_image({}, layer)
                names[own] = given[0]
            elif _class_of(layer) == "InputLayer":
                raise Unfit("has more than one input")
            else:
                names[own] = self._node(layer, names, place, depth, outer)
        return self._ends(names[outputs[0]], depth)

    def _ends(self, name: str, depth: int) -> str:
        if depth == 0:
            self.found.output = name
        return name

    def _node(self, layer: dict[str, Any], names: dict[str, str], place: str, depth: int, outer: str) -> str:
        """A layer of a Functional model, with what goes in as its one call says."""
        own, calls = _name_of(layer), layer.get("inbound_nodes") or []
        if not calls:
            raise Unfit(f"its layer {own} is called 0 times, expected once")
        if _class_of(layer) in _MODELS:
            inputs = [names[name] for name in _references(calls)]
            return self.model(layer, inputs, place, depth=depth + 1, outer=outer or own)
        kind, options = _kind_and_options(layer)
        order, extra = _arguments(calls[0], kind)
        if not order:
            raise Unfit(f"its layer {own} takes nothing")
        inputs = []
        for argument in order:
            if isinstance(argument, _Reference):
                inputs.append(names[argument.name])
            else:
                inputs.append(self._constant(own, argument))
        return self._add(own, kind, {**options, **extra}, inputs, place, outer or own)

    def _layer(self, layer: dict[str, Any], given: list[str], place: str, depth: int, outer: str) -> str:
        """A layer of a Sequential model."""
        kind, own = _class_of(layer), _name_of(layer)
        if kind == "InputLayer":
            return given[0]
        if kind in _MODELS:
            return self.model(layer, given, place, depth=depth + 1, outer=outer or own)
        name, options = _kind_and_options(layer)
        return self._add(own, name, options, given, place, outer or own)

    def _add(self, own: str, kind: str, options: dict[str, Any], inputs: list[str], place: str, outer: str) -> str:
        taken = {node.name for node in self.found.nodes} | set(self.found.constants) | {INPUT}
        name, number = own, 1
        while name in taken:
            number += 1
            name = f"{own}_{number}"
        if len(self.found.nodes) >= _MOST_LAYERS:
            raise Unfit("has too many layers")
        self.found.nodes.append(Node(name, kind, options, inputs, own, place, outer))
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


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _in_order(layers: list[Any], places: list[str]) -> Iterator[tuple[Any, str]]:
    """Layers with their places, each after those it takes from, else as the file has them.

    Unfit where one is called again: where it takes its own output, as in layer(layer(x)), there is no such order.
    """
    for layer in layers:
        if (times := len(layer.get("inbound_nodes") or [])) > 1:
            raise Unfit(f"its layer {_name_of(layer)} is called {times} times, expected once")
    needs = [set(_references(layer.get("inbound_nodes") or [])) for layer in layers]
    waiting: dict[str, list[int]] = {}
    for number, names in enumerate(needs):
        for name in names:
            waiting.setdefault(name, []).append(number)
    ready = [number for number, names in enumerate(needs) if not names]
    done = 0
    while ready:
        number = heapq.heappop(ready)
        yield layers[number], places[number]
        done += 1
        own = _name_of(layers[number])
        for other in waiting.pop(own, ()):
            needs[other].discard(own)
            if not needs[other]:
                heapq.heappush(ready, other)
    if done < len(layers):
        raise Unfit("has layers that take what none of them gives")


# ---- reading entries -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Reference:
    """The output of a layer."""

    name: str


def _class_of(entry: Any) -> str:
    """The class of an entry; Unfit when it is not one of Keras's own."""
    kind, module, registered = entry["class_name"], entry.get("module"), entry.get("registered_name")
    if not isinstance(kind, str):
        raise Unfit("has a layer without a class")
    own = isinstance(module, str) and (module.split(".")[0] in ("keras", "tf_keras"))
    if module is not None and not own:
        raise Unfit(f"asks for the class {kind} of the module {module}, which could be any code, so it was not built")
    if isinstance(registered, str) and registered not in (kind, f"keras>{kind}"):
        raise Unfit(f"asks for the registered class {registered}, whose code is not in the file, so it was not built")
    return kind


def _name_of(layer: dict[str, Any]) -> str:
    name = layer.get("name") or layer["config"]["name"]
    if not isinstance(name, str) or not re.fullmatch(r"[\w.\-/ ]{1,180}", name):
        raise Unfit(f"has a layer called {str(name)[:60]!r}")
    return name


def _kind_and_options(layer: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The table's kind of a layer, and those of its options that differ from Keras's defaults."""
    kind, config, own = _class_of(layer), layer["config"], _name_of(layer)
    if kind in ("Lambda", "TFOpLambda", "SlicingOpLambda", "OpLambda"):
        return _function(kind, config, own)
    if _is_operator(layer):
        if kind not in _OPERATORS:
            raise Unfit(f"its operator {own} is {kind}, which is not read (known: {', '.join(_OPERATORS)})")
        kind = _OPERATORS[kind]
        allowed = KINDS[kind].options
        return kind, {key: _plain(value, own) for key, value in config.items() if key in allowed}
    if kind not in KINDS or kind.startswith("op:"):
        close = nearest(kind, [known for known in KINDS if not known.startswith("op:")])
        raise Unfit(f"its layer {own} is of the class {kind}, which is not read (nearest: {close})")
    known, options = KINDS[kind].options, {}
    for key, value in config.items():
        key = _SPELLINGS.get(key, {}).get(kind, key)
        if key in known:
            options[key] = _plain_activation(value, own) if key == "activation" else _plain(value, own)
        elif (
            key not in _IGNORED
            and kind not in WITHOUT_EFFECT
            and value not in (None, False)
            and not (key == "groups" and value == 1)
        ):
            raise Unfit(f"its layer {own} ({kind}) has the option {key}, which is not known")
    policy = config.get("dtype")
    if isinstance(policy, dict):
        policy = (policy.get("config") or {}).get("name", policy.get("class_name"))
    if isinstance(policy, str) and ("int8" in policy or "int4" in policy or "float8" in policy):
        raise Unfit(f"its layer {own} is quantised ({policy}); save the model before that")
    return kind, {key: value for key, value in options.items() if value != known[key]}


def _is_operator(layer: dict[str, Any]) -> bool:
    """Whether it stands for an operator on tensors, not a layer."""
    kind, module = str(layer.get("class_name")), str(layer.get("module") or "")
    bare = kind in _OPERATORS and (
        kind not in KINDS or "newshape" in (layer.get("config") or {})
    )  # as .h5 files have them
    return ".ops." in f"{module}." or bare


def _function(kind: str, config: dict[str, Any], own: str) -> tuple[str, dict[str, Any]]:
    """A function of TensorFlow's that Keras 2 wrapped; a Lambda holds code and is refused."""
    function = config.get("function")
    if kind == "Lambda":
        raise Unfit(
            f"its layer {own} is a Lambda, which holds code, so it was not built; replace it by a layer of Keras"
        )
    if kind == "SlicingOpLambda":
        raise Unfit(f"its layer {own} slices a tensor (TensorFlow's getitem), which is not read")
    if not isinstance(function, str) or function not in _FUNCTIONS:
        raise Unfit(f"its layer {own} calls {str(function)[:80]!r}, which is not read (known: {', '.join(_FUNCTIONS)})")
    found = _FUNCTIONS[function]
    return (found, {}) if found in KINDS else ("Activation", {"activation": found})


def _plain_activation(value: Any, own: str) -> Any:
    """An activation's name, as a string or None."""
    try:
        activation(value)
    except Unfit as error:
        raise Unfit(f"its layer {own}: {error}") from None
    return value.get("config") if isinstance(value, dict) else None if value == "linear" else value


def _plain(value: Any, own: str, depth: int = 0) -> Any:
    """The value where it is numbers, words and lists of them; Unfit for anything that Keras would build."""
    if value is None or isinstance(value, (bool, int, float)) or (isinstance(value, str) and len(value) < 200):
        return value
    if isinstance(value, (list, tuple)) and depth < 5 and len(value) <= 65_536:
        return [_plain(one, own, depth + 1) for one in value]
    if isinstance(value, dict) and value.get("class_name") in ("__tuple__", "__numpy__", "__tensor__"):
        inner = value.get(
            "items", (value.get("config") or {}).get("value") if isinstance(value.get("config"), dict) else None
        )
        return _plain(inner, own, depth + 1)
    raise Unfit(f"its layer {own} has the option {str(value)[:80]!r}, which is not plain")


def _ends(value: Any) -> list[str]:
    """Names in input_layers or output_layers: [name, 0, 0], or a list of such."""
    if isinstance(value, list) and len(value) == 3 and isinstance(value[0], str):
        value = [value]
    elif isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list) or not all(isinstance(one, list) and isinstance(one[0], str) for one in value):
        raise Unfit("does not name its inputs and outputs")
    if any(one[2] != 0 for one in value):
        raise Unfit("takes the second output of a layer")
    return [one[0] for one in value]


def _references(calls: Any) -> list[str]:
    """Names of all layers that go into a call, in order."""
    return [one.name for one in _walk(calls) if isinstance(one, _Reference)]


def _walk(value: Any, depth: int = 0) -> Iterator[Any]:
    """References and constants in a call, as Keras 3 or Keras 2 writes them."""
    if depth > 8:
        raise Unfit("has a call that is nested too deeply")
    if isinstance(value, dict):
        kind = value.get("class_name")
        if kind == "__keras_tensor__":
            name, _, place = value["config"]["keras_history"]
            if place != 0:
                raise Unfit(f"takes output {place} of the layer {name}")
            yield _Reference(name)
        elif kind in ("__tensor__", "__numpy__"):
            yield value["config"]["value"]
        else:
            for inner in value.values():
                yield from _walk(inner, depth + 1)
    elif _is_old_constant(value):
        yield value[2]
        yield from _walk(_old_references(value), depth + 1)
    elif _is_old_reference(value):
        if value[2] != 0:
            raise Unfit(f"takes output {value[2]} of the layer {value[0]}")
        yield _Reference(value[0])
        yield from _walk(_old_references(value), depth + 1)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _walk(inner, depth + 1)


def _is_old_reference(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) in (3, 4)
        and isinstance(value[0], str)
        and type(value[1]) is int
        and type(value[2]) is int
        and (len(value) == 3 or isinstance(value[3], dict))
    )


def _is_old_constant(value: Any) -> bool:
    """Whether it is a number on the left of an operator, as Keras 2 writes 1.0 - x."""
    return (
        isinstance(value, list)
        and len(value) in (3, 4)
        and value[:2] == ["_CONSTANT_VALUE", -1]
        and type(value[2]) in (int, float)
        and (len(value) == 3 or isinstance(value[3], dict))
    )


def _old_references(value: list[Any]) -> dict[str, Any]:
    """The references among the words of a call of Keras 2."""
    return {key: one for key, one in value[3].items() if _is_old_reference(one)} if len(value) > 3 else {}


_MASKS = ("attention_mask", "use_causal_mask", "query_mask", "value_mask", "key_mask", "mask")
_UNSAID = ("training", "name", "return_attention_scores", *_MASKS)


def _arguments(call: Any, kind: str) -> tuple[list[Any], dict[str, Any]]:
    """(what goes in, in order; options that the call gives) of one call."""
    order: list[Any] = []
    words: dict[str, Any] = {}
    if isinstance(call, dict):  # Keras 3
        for argument in call.get("args", []):
            order += _items(argument)
        words = dict(call.get("kwargs") or {})
    else:  # Keras 2: [[name, node, tensor, words], ...]
        for one in [call] if _is_old_reference(call) or _is_old_constant(call) else call:
            if not _is_old_reference(one) and not _is_old_constant(one):
                raise Unfit("has a call that is not one of Keras's")
            order += [one[2] if _is_old_constant(one) else _Reference(one[0])]
            words |= one[3] if len(one) > 3 else {}
    for key in ("query", "value", "key", "x1", "x2", "x", "y", "inputs"):
        if key in words and words[key] is not None:
            order += _items(words.pop(key))
    for key in _MASKS:
        if words.get(key) not in (None, False):
            raise Unfit(f"calls a layer with {key}, which is not read")
    extra = {key: value for key, value in words.items() if key not in _UNSAID and value is not None}
    spelled = {"perm": "axes", "shape": "newshape"}
    extra = {spelled.get(key, key): value for key, value in extra.items() if key != "dtype"}
    unknown = set(extra) - set(KINDS[kind].options)
    if unknown:
        raise Unfit(f"calls a layer ({kind}) with {', '.join(sorted(unknown))}, which is not known")
    return order, extra


def _items(argument: Any) -> list[Any]:
    """References and numbers in one argument."""
    if isinstance(argument, (int, float)) and not isinstance(argument, bool):
        return [argument]
    if isinstance(argument, list) and _is_old_reference(argument):
        return [_Reference(argument[0])]
    if isinstance(argument, dict) or (
        isinstance(argument, list) and any(isinstance(one, (dict, list)) for one in argument)
    ):
        found = list(_walk(argument))
        if found:
            return found
    return [argument]


def _places(layers: list[Any], outer: str) -> list[str]:
    """Where a .weights.h5 file keeps each layer's weights: by class and number, as names may repeat."""
    used: Counter[str] = Counter()
    found = []
    for layer in layers:
        if _is_operator(layer):
            found.append("")  # an operator is no layer
            continue
        word = _snake(str(layer["class_name"]))
        used[word] += 1
        number = used[word]
        found.append(f"{outer}layers/{word}" + (f"_{number - 1}" if number > 1 else "") + "/")
    return found


def _snake(name: str) -> str:
    """From a class to the word that Keras files use: Conv2D → conv2d, BatchNormalization → batch_normalization."""
    word = "".join(char for char in name if char.isalnum() or char == "_")
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=.)(?=[A-Z][a-z])", "_", word).lower()
