"""The entries of a Keras config, of layers and of their calls, brought to plain kinds, options and names."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from burnish.backbones.keras.layers import KINDS, WITHOUT_EFFECT
from burnish.backbones.keras.moves import LOWEST
from burnish.backbones.keras.options import Unfit, activation
from burnish.errors import nearest

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
    "sparse", "optional", "autocast", "supports_masking", "input_spec", "weights", "sparse_grad", "rng_type",
}  # fmt: skip
_SPELLINGS = {"alpha": {"LeakyReLU": "negative_slope"}}  # Keras 2's words for today's options
# Operators on tensors, as Keras 3 names their classes and as Keras 2 names TensorFlow's functions.
_OPERATORS = {
    "Add": "Add", "Subtract": "Subtract", "Multiply": "Multiply", "TrueDivide": "op:Divide", "Divide": "op:Divide",
    "Maximum": "Maximum", "Minimum": "Minimum", "Mean": "op:Mean",
    "Sum": "op:Sum", "Max": "op:Max", "Normalize": "op:Normalize", "ExpandDims": "op:ExpandDims", "Pad": "op:Pad",
    "Squeeze": "op:Squeeze", "Transpose": "op:Transpose", "Reshape": "op:Reshape",
    "GetItem": "op:GetItem", "Stack": "op:Stack", "Concatenate": "Concatenate", "Cast": "Identity", "Relu": "relu",
    "Relu6": "relu6", "Silu": "silu", "Gelu": "gelu", "Sigmoid": "sigmoid", "Tanh": "tanh", "Softmax": "Softmax",
    "HardSilu": "hard_silu", "HardSigmoid": "hard_sigmoid", "LeakyRelu": "LeakyReLU", "Elu": "ELU", "Selu": "selu",
    "Softplus": "softplus", "Softsign": "softsign", "Exp": "exponential",
}  # fmt: skip
_FUNCTIONS = {
    "math.add": "Add", "__operators__.add": "Add", "math.subtract": "Subtract", "math.multiply": "Multiply",
    "math.truediv": "op:Divide", "math.divide": "op:Divide", "math.reduce_mean": "op:Mean", "reshape": "op:Reshape",
    "transpose": "op:Transpose", "nn.relu": "relu", "nn.relu6": "relu6", "nn.silu": "silu", "nn.gelu": "gelu",
    "math.sigmoid": "sigmoid", "math.tanh": "tanh", "nn.bias_add": "Add", "cast": "Identity", "identity": "Identity",
    "stack": "op:Stack", "__operators__.getitem": "op:GetItem", "math.reduce_sum": "op:Sum", "math.reduce_max": "op:Max",
    "expand_dims": "op:ExpandDims", "squeeze": "op:Squeeze", "math.l2_normalize": "op:Normalize", "concat": "Concatenate",
    "math.maximum": "Maximum", "math.minimum": "Minimum", "math.softplus": "softplus", "nn.elu": "elu", "nn.selu": "selu",
}  # fmt: skip
_OF_KERAS_HUB = (
    "; of a backbone made of Keras's own layers (ResNet, VGG, DenseNet, Xception), save those:  "
    "keras.Model(backbone.input, backbone.output).save('model.keras')"
)
_LAYER_OF_KERAS_HUB = (
    "; keras_hub makes this network of layers of its own, so take it from timm by name instead (burnish models vit)"
)
_INSTEAD = "; make the network of Keras's own layers, copy the weights with set_weights, and save that"
_CUSTOM = f"whose code is not in the file, so it was not built{_INSTEAD}"
_OWN_NAMES = {"GroupQueryAttention": "GroupedQueryAttention"}  # what classes are called in Keras's own code
_WRAPPERS = ("SpectralNormalization",)  # of a layer, which in use do nothing but call it
_QUANTISED = re.compile(r"(?<!u)int8|int4|float8|gptq|awq")  # in a policy, or in a table of them


@dataclass(frozen=True)
class Reference:
    """What a layer gives, by the number of its call: a layer without weights may be called several times."""

    name: str
    call: int = 0


def class_of(entry: Any) -> str:
    """The class of an entry; Unfit when it is not one of Keras's own."""
    kind, module, registered = entry["class_name"], entry.get("module"), entry.get("registered_name")
    if not isinstance(kind, str):
        raise Unfit("has a layer without a class")
    if ">" in kind:  # as .h5 files have what was registered
        raise Unfit(f"asks for the registered class {kind}, {_CUSTOM}")
    own = isinstance(module, str) and (module.split(".")[0] in ("keras", "tf_keras"))
    if module is not None and not own:
        where = f"{kind} of the module {module[:100]}" if isinstance(module, str) else kind
        raise Unfit(
            f"asks for the class {where}, which could be any code, so it was not built{_hint(kind, module, registered)}"
        )
    if isinstance(registered, str) and registered not in (kind, f"keras>{kind}"):
        raise Unfit(f"asks for the registered class {registered}, {_CUSTOM}")
    return next((public for public, own in _OWN_NAMES.items() if kind == own), kind)


def _hint(kind: str, module: Any, registered: Any) -> str:
    """What to do about a class that is not Keras's."""
    if str(module).split(".")[0] == "keras_hub":
        return _OF_KERAS_HUB if kind.endswith(("Backbone", "ImageClassifier")) else _LAYER_OF_KERAS_HUB
    return _INSTEAD if registered else ""


def name_of(layer: dict[str, Any]) -> str:
    name = layer.get("name") or layer["config"]["name"]
    if not isinstance(name, str) or not re.fullmatch(r"[\w.\-/ ]{1,180}", name):
        raise Unfit(f"has a layer called {str(name)[:60]!r}")
    return name


def unwrapped(layer: dict[str, Any], place: str) -> tuple[dict[str, Any], str]:
    """The layer, or the one that it wraps, and where the weights of that are."""
    depth = 0
    while class_of(layer) in _WRAPPERS:
        layer, place, depth = layer["config"]["layer"], f"{place}layer/", depth + 1
        if depth > 3:
            raise Unfit("has layers in layers in layers, too deep")
    return layer, place


def kind_and_options(layer: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The table's kind of a layer, and those of its options that differ from Keras's defaults."""
    kind, config, own = class_of(layer), layer["config"], name_of(layer)
    if kind in ("Lambda", "TFOpLambda", "SlicingOpLambda", "OpLambda"):
        return _function(kind, config, own)
    if _is_operator(layer):
        if kind not in _OPERATORS:
            raise Unfit(f"its operator {own} is {kind}, which is not read (known: {', '.join(_OPERATORS)})")
        return _operator(kind, config, own)
    if kind not in KINDS and layer.get("registered_name") == kind:  # Keras's own are not registered
        raise Unfit(f"its layer {own} is of the class {kind}, {_CUSTOM}")
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
    return kind, {key: value for key, value in options.items() if value != known[key]}


def quantised(layer: dict[str, Any]) -> str:
    """How a layer's weights are quantised, "int8"; "" where they are not."""
    config = layer["config"]
    told = _QUANTISED.search(json.dumps(config.get("dtype"))) if isinstance(config, dict) else None
    return told[0] if told else ""


def _operator(kind: str, config: dict[str, Any], own: str) -> tuple[str, dict[str, Any]]:
    """The same for an operator of keras.ops."""
    if kind == "Cast" and "float" not in str(config.get("dtype", "float")):
        raise Unfit(f"its operator {own} makes numbers other than floating ones")
    if kind == "Gelu" and config.get("approximate") is not False:
        raise Unfit(f"its operator {own} is gelu by an approximation, which is not read")
    found = _OPERATORS[kind]
    if found not in KINDS:
        return "Activation", {"activation": found}
    allowed = KINDS[found].options
    return found, {key: _plain(value, own) for key, value in config.items() if key in allowed}


def _is_operator(layer: dict[str, Any]) -> bool:
    """Whether it stands for an operator on tensors, not a layer."""
    kind, module = str(layer.get("class_name")), str(layer.get("module") or "")
    # As .h5 files have them
    bare = kind in _OPERATORS and (kind not in KINDS or "newshape" in (layer.get("config") or {}))
    return ".ops." in f"{module}." or bare


def _function(kind: str, config: dict[str, Any], own: str) -> tuple[str, dict[str, Any]]:
    """A function of TensorFlow's that Keras 2 wrapped; a Lambda holds code and is refused."""
    function = config.get("function")
    if kind == "Lambda":
        raise Unfit(
            f"its layer {own} is a Lambda, which holds code, so it was not built; replace it by a layer of Keras"
        )
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


def ends_of(value: Any) -> list[Reference]:
    """What input_layers or output_layers name: [name, 0, 0], or a list of such."""
    if isinstance(value, list) and len(value) == 3 and isinstance(value[0], str):
        value = [value]
    elif isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list) or not all(isinstance(one, list) and isinstance(one[0], str) for one in value):
        raise Unfit("does not name its inputs and outputs")
    if any(one[2] != 0 for one in value):
        raise Unfit("takes the second output of a layer")
    return [Reference(one[0], one[1]) for one in value]


def references(calls: Any) -> list[Reference]:
    """What goes into a call of other layers, in order."""
    return [one for one in _walk(calls) if isinstance(one, Reference)]


def _walk(value: Any, depth: int = 0) -> Iterator[Any]:
    """References and constants in a call, as Keras 3 or Keras 2 writes them."""
    if depth > 8:
        raise Unfit("has a call that is nested too deeply")
    if isinstance(value, dict):
        kind = value.get("class_name")
        if kind == "__keras_tensor__":
            name, call, place = value["config"]["keras_history"]
            if place != 0:
                raise Unfit(f"takes output {place} of the layer {name}")
            yield Reference(name, call)
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
        yield Reference(value[0], value[1])
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


def arguments(call: Any, kind: str) -> tuple[list[Any], dict[str, Any]]:
    """(what goes in, in order; options that the call gives) of one call."""
    if kind == "op:GetItem":
        return _sliced(call)
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
            order += [one[2] if _is_old_constant(one) else Reference(one[0], one[1])]
            words |= one[3] if len(one) > 3 else {}
    if words.get("data_format") == "NHWC":  # of TensorFlow's bias_add
        words = {key: value for key, value in words.items() if key != "data_format"}
    for key in ("query", "value", "key", "x1", "x2", "x", "y", "bias", "inputs"):
        if key in words and words[key] is not None:
            order += _items(words.pop(key))
    for key in _MASKS:
        if words.get(key) not in (None, False):
            raise Unfit(f"calls a layer with {key}, which is not read")
    extra = {key: value for key, value in words.items() if key not in _UNSAID and value is not None}
    spelled = {"perm": "axes", "shape": "newshape"}
    extra = {spelled.get(key, key): value for key, value in extra.items() if key != "dtype"}
    extra = {key: LOWEST if value == -math.inf else value for key, value in extra.items()}
    unknown = set(extra) - set(KINDS[kind].options)
    if unknown:
        raise Unfit(f"calls a layer ({kind}) with {', '.join(sorted(unknown))}, which is not known")
    return order, extra


def _sliced(call: Any) -> tuple[list[Any], dict[str, Any]]:
    """The tensor that is sliced, and by what."""
    if isinstance(call, dict):  # Keras 3
        given = [*call.get("args", []), *(call.get("kwargs") or {}).values()]
    else:  # Keras 2: [[name, node, tensor, {"slice_spec": …}]]
        one = call if _is_old_reference(call) else call[0]
        given = [one[:3], one[3]["slice_spec"] if len(one) == 4 else None]
    if len(given) != 2 or len(order := references(given[0])) != 1:
        raise Unfit("slices other than one tensor")
    key = given[1]
    if isinstance(key, dict) and key.get("class_name") == "__tuple__":
        key = key["items"]
    cuts = key if isinstance(key, list) else [key]
    return order, {"key": [_cut(one) for one in cuts]}


def _cut(value: Any) -> Any:
    """A place along an axis, a slice as [start, stop, step], or "..."."""
    if type(value) is int:
        return value
    if isinstance(value, dict) and value.get("class_name") == "__ellipsis__":
        return "..."
    if isinstance(value, dict):
        value = value["config"] if value.get("class_name") == "__slice__" else value
        found = [value.get(key) for key in ("start", "stop", "step")]
        if set(value) <= {"start", "stop", "step"} and all(
            one is None or (type(one) is int and abs(one) < 2**20) for one in found
        ):
            return found
    raise Unfit(f"slices a tensor by {str(value)[:80]}, which is not read")


def _items(argument: Any) -> list[Any]:
    """References and numbers in one argument."""
    if isinstance(argument, (int, float)) and not isinstance(argument, bool):
        return [argument]
    if isinstance(argument, list) and _is_old_reference(argument):
        return [Reference(argument[0], argument[1])]
    if isinstance(argument, dict) or (
        isinstance(argument, list) and any(isinstance(one, (dict, list)) for one in argument)
    ):
        found = list(_walk(argument))
        if found:
            return found
    return [argument]


def places_of(layers: list[Any], outer: str) -> list[str]:
    """Where a .weights.h5 file keeps each layer's weights: by class and number, as names may repeat."""
    used: Counter[str] = Counter()
    found = []
    for layer in layers:
        if _is_operator(layer):
            found.append("")  # an operator is no layer
            continue
        kind = str(layer["class_name"])
        word = _snake(_OWN_NAMES.get(kind, kind))
        used[word] += 1
        number = used[word]
        found.append(f"{outer}layers/{word}" + (f"_{number - 1}" if number > 1 else "") + "/")
    return found


def _snake(name: str) -> str:
    """From a class to the word that Keras files use: Conv2D → conv2d, BatchNormalization → batch_normalization."""
    word = "".join(char for char in name if char.isalnum() or char == "_")
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=.)(?=[A-Z][a-z])", "_", word).lower()
