"""A tuned model that came from Keras, written back as a .keras or .h5 file that Keras and TensorFlow open without burnish."""

from __future__ import annotations

import inspect
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from burnish.backbones.head import NEIGHBOURS, CosineHead, LinearHead, MlpHead
from burnish.backbones.keras import applications, graph, network
from burnish.backbones.keras.layers import DROPPING, KINDS, WITHOUT_EFFECT
from burnish.backbones.keras.options import OLD_HARD_SIGMOID
from burnish.disk import plain_disk_errors
from burnish.errors import RecipeError, RunError, brief, shown
from burnish.ship.bundle import Bundle
from burnish.ship.exported import (
    PIXELS,
    PREPARED,
    noise,
    quiet,
    require_equal,
    require_input,
    require_ours,
    require_place,
    write_meaning,
)
from burnish.ship.keras_changes import Changes, dense

SUFFIX, HDF5 = ".keras", ".h5"
_NAMES = ("images", "prepare", "taps", "hidden", "unit_length", "predictions")  # of the layers around the network
_BEGINNINGS = ("tap_", "adapter_", "prompts_", "inserted_")  # of those that were put into it
# What Keras calls operators, by itself
_OF_OPERATORS = re.compile(
    r"(add|subtract|multiply|maximum|minimum|(true_)?divide|mean|sum|max|transpose|reshape|stack|get_item|normalize|expand_dims"
    r"|squeeze|pad)(_\d+)?"
)
_MERGES = {"Add": "add", "Subtract": "subtract", "Multiply": "multiply", "Maximum": "maximum", "Minimum": "minimum",
           "op:Divide": "true_divide"}  # fmt: skip

_BY_ARGUMENTS = ("MultiHeadAttention", "GroupQueryAttention")  # their inputs are arguments, not a list
_REDUCING = {"op:Mean": "mean", "op:Sum": "sum", "op:Max": "max"}
_IN_PUBLIC_LAYERS = ("LayerScale", "CustomScaleLayer")


def export_keras(bundle: Bundle, path: Path, *, input: str = PREPARED) -> Path:
    """Write the model to `path`, a .keras or .h5 file, and what it means to the .json beside it; returns `path`.

    The file gives the probabilities that burnish gives, its temperature included. input "prepared": it takes what the
    original took, images prepared as by keras.applications; "pixels": RGB of 0 to 255, prepared inside by a 1 × 1
    convolution. RecipeError when the model did not come from Keras, or has changes or a head that Keras has no layers for;
    RunError when what Keras reads from the file gives other probabilities, or the disk refuses. Needs Keras.
    """
    if bundle.architecture["library"] != graph.LIBRARY:
        raise RecipeError(
            f"the model was made from {shown(bundle.base_model)}, not from a Keras file; only those are written as .keras "
            "(all are, with --to onnx or pt2; in PyTorch: burnish.open_run(RUN).predictor.bundle.classifier(), docs/models.md)"
        )
    if bundle.head.startswith(NEIGHBOURS):
        raise RecipeError(
            "a head of nearest neighbours is not written as Keras layers; make the run with a linear head"
        )
    require_input(input)
    require_place(path, HDF5 if path.suffix == HDF5 else SUFFIX)
    require_ours(path)
    with applications.generators_untouched():
        keras = applications.keras_module()
        model = _Writer(keras, bundle, pixels=input == PIXELS).model()
        with plain_disk_errors(path.parent), tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
            draft = Path(folder) / path.name
            with quiet():
                model.save(draft)
            _check(keras, _opened(keras, draft), bundle, pixels=input == PIXELS)
            # Before the file is there: without its .json it would not be known again as an export after a death in between.
            write_meaning(path, bundle, _words(bundle, input))
            os.replace(draft, path)
    return path


def _opened(keras: Any, path: Path) -> Any:
    """The model that Keras reads from the file."""
    try:
        with quiet():
            return keras.saving.load_model(path, compile=False)
    except Exception as error:  # whatever a Keras of another version says to what it wrote itself
        other = f"write a file that ends in {SUFFIX}" if path.suffix == HDF5 else "please report it"
        raise RunError(
            f"Keras does not open again what it wrote as {path.suffix} ({brief(error)}); nothing was written; {other}"
        ) from None


def _words(bundle: Bundle, input: str) -> str:
    """What the file takes."""
    if input == PIXELS:
        return "RGB, 0 to 255, resized as preprocess says; mean and std are applied inside"
    order = "BGR" if bundle.architecture["kwargs"]["bgr"] else "RGB"
    return f"(RGB / 255 - mean) / std, then channels in the order {order}, resized as preprocess says"


class _Writer:
    """Builds the Keras model, node by node."""

    def __init__(self, keras: Any, bundle: Bundle, *, pixels: bool) -> None:
        self.keras, self.bundle, self.pixels = keras, bundle, pixels
        self.kwargs: Mapping[str, Any] = bundle.architecture["kwargs"]
        net = graph.blank(bundle.architecture["name"], dict(self.kwargs))
        self.parts, self.places = net.parts, net.places
        trunk = {name.removeprefix("trunk."): one for name, one in bundle.state.items() if name.startswith("trunk.")}
        known = {name for places in self.places.values() for one in places for name in (one.layer, one.segment)}
        self.changes = Changes(keras, bundle.architecture.get("changes", []), trunk, known)
        self.state = self.changes.state
        self.operators = self.changes.prompted or any(
            node["kind"].startswith("op:") or not self.kwargs["constants"].keys().isdisjoint(node["inputs"])
            for node in self.kwargs["nodes"]
        )
        self.values: dict[str, Any] = {}  # what each node gives
        self.entered: dict[str, Any] = {}  # what is given to each segment that was begun

    def model(self) -> Any:
        """The whole model, with its weights."""
        keras, size = self.keras, self.bundle.preprocess.size
        images = keras.Input((size, size, 3), name="images")
        self.values[network.INPUT] = self._prepared(images) if self.pixels else images
        for node in self.kwargs["nodes"]:
            self.values[node["name"]] = self._node(node)
        features = self.changes.joined(self.values[self.kwargs["nodes"][-1]["name"]])
        return keras.Model(images, self._head(features), name="burnish")

    def _node(self, node: Mapping[str, Any]) -> Any:
        """What the node gives, with what was done to its layer, its activation and the segment that it ends."""
        first, *rest = places = self.places[node["name"]]
        if first.segment not in self.entered:
            self.entered[first.segment] = self.changes.entering(first.segment, self.values[first.enters])
        dropped, inputs = self.changes.dropped, [self._input(name, first) for name in node["inputs"]]
        if first.segment in dropped and first.layer != first.segment:  # what its inner nodes give is unused
            return self.values[first.enters] if places[-1].ends else None
        apart = bool(rest) and (
            node["options"]["activation"] == OLD_HARD_SIGMOID
            or not self.changes.touched.isdisjoint({first.layer, rest[0].layer})
        )
        value = inputs[0] if first.layer in dropped else self._made(node, inputs, apart=apart)
        value = self._after(first, value, inputs[0])
        if not rest:
            return value
        if apart and rest[0].layer not in dropped:
            value = self._activation(node["options"]["activation"], f"{self._own_name(node['name'])}_activation", value)
        return self._after(rest[0], value, value)

    def _after(self, place: network.Place, value: Any, source: Any) -> Any:
        """The value with what was put behind the layer there, and behind the segment where it ends. source: what made it."""
        if place.layer != place.segment:
            value, source = self.changes.after(place.layer, value, source), self.entered[place.segment]
        return self.changes.after(place.segment, value, source) if place.ends else value

    def _made(self, node: Mapping[str, Any], inputs: list[Any], *, apart: bool) -> Any:
        """What the node's layer makes of the inputs, its weights set. apart: without its activation."""
        options, kind, name = dict(node["options"]), node["kind"], node["name"]
        if kind.startswith("op:") or any(one in self.kwargs["constants"] for one in node["inputs"]):
            return self._operator(kind, options, inputs, name)
        if kind in WITHOUT_EFFECT or (kind in DROPPING and not options.get("rate")):
            return inputs[0]  # Keras wants settings of them that only training would use
        if kind in _IN_PUBLIC_LAYERS:
            return self._in_public_layers(kind, options, name, inputs)
        if kind == "Activation" and options.get("activation") == OLD_HARD_SIGMOID:
            return self._activation(OLD_HARD_SIGMOID, self._own_name(name), inputs[0])
        if apart:
            del options["activation"]
        layer = self._layer(kind, options, name)
        if kind in _BY_ARGUMENTS:
            result = layer(*inputs)
        else:
            result = layer(inputs if len(inputs) > 1 else inputs[0])
        if name in self.parts:
            arrays = [self._array(name, variable) for variable in self.parts[name].variables]
            layer.set_weights([*arrays, *layer.get_weights()[len(arrays) :]])  # Normalization keeps a count besides
            if kind == "Normalization":  # which computes with what it derives from them
                layer.finalize_state()
        return result

    def _activation(self, activation: str, name: str, value: Any) -> Any:
        """The activation of that name as a layer of its own; that of Keras 2 in layers of today's."""
        layers = self.keras.layers
        if activation == OLD_HARD_SIGMOID:
            return layers.ReLU(max_value=1.0, name=name)(layers.Rescaling(0.2, offset=0.5, name=f"{name}_line")(value))
        return layers.Activation(activation, name=name)(value)

    def _in_public_layers(self, kind: str, options: Mapping[str, Any], name: str, inputs: list[Any]) -> Any:
        """What classes inside keras.applications do, by layers that any Keras opens."""
        layers, own = self.keras.layers, self._own_name(name)
        if kind == "LayerScale":
            (factors,) = (self._array(name, variable) for variable in self.parts[name].variables)
            return layers.Rescaling(factors.tolist(), name=own)(inputs[0])
        scaled = layers.Rescaling(options.get("scale", 1.0), name=f"{own}_scale")(inputs[1])
        return layers.Add(name=own)([inputs[0], scaled])

    def _layer(self, kind: str, options: Mapping[str, Any], name: str) -> Any:
        """Keras's layer; RecipeError where it does not take these options."""
        options = {**({"activation": "linear"} if kind == "Activation" else {}), **options}
        axis = options.get("axis")
        if isinstance(axis, list) and len(axis) == 1:  # as Keras 2 wrote it
            options["axis"] = axis[0]
        made = getattr(self.keras.layers, kind)
        asked = (one.name for one in inspect.signature(made).parameters.values() if one.default is one.empty)
        usual = KINDS[kind].options
        options = {**{one: usual[one] for one in asked if one in usual}, **options}
        try:
            return made(**options, name=self._own_name(name))
        except (TypeError, ValueError) as error:
            why = shown(" ".join(str(error).split()))[:160]
            raise RecipeError(f"its layer {shown(name)} ({kind}) cannot be written for this Keras: {why}") from None

    def _own_name(self, name: str) -> str:
        """The layer's name in the file; not one that a layer has that is written around the network."""
        name = name.replace("/", "_")
        taken = name in _NAMES or name.startswith(_BEGINNINGS) or (self.operators and _OF_OPERATORS.fullmatch(name))
        return f"trunk_{name}" if taken else name

    def _input(self, name: str, place: network.Place) -> Any:
        """What the node of that name gives to one that runs there."""
        if name not in self.kwargs["constants"]:
            return self.entered[place.segment] if name == place.enters else self.values[name]
        value = next(one for key, one in self.state.items() if key.endswith(f"{network.plain_name(name)}.value"))
        return (value.permute(0, 2, 3, 1) if value.ndim == 4 else value).numpy()

    def _array(self, name: str, variable: Any) -> np.ndarray:
        part = self.parts[name]
        return variable.to_keras(self.state[f"{part.place}.{variable.target}"]).numpy()

    def _operator(self, kind: str, options: Mapping[str, Any], inputs: list[Any], name: str) -> Any:
        ops = self.keras.ops
        options = {**KINDS[kind].options, **options}
        if kind in _MERGES:
            if (line := _line(kind, inputs)) is not None:
                value, scale, offset = line
                return self.keras.layers.Rescaling(scale, offset=offset, name=self._own_name(name))(value)
            total = inputs[0]
            for other in inputs[1:]:
                total = getattr(ops, _MERGES[kind])(total, other)
            return total
        if kind in _REDUCING:
            return getattr(ops, _REDUCING[kind])(inputs[0], axis=options["axis"], keepdims=options["keepdims"])
        if kind == "op:Normalize":
            return ops.normalize(inputs[0], axis=options["axis"], epsilon=options["epsilon"])
        if kind == "op:Pad":
            return ops.pad(inputs[0], options["pad_width"], constant_values=float(options["constant_values"] or 0))
        if kind in ("op:ExpandDims", "op:Squeeze"):
            return (ops.squeeze if kind == "op:Squeeze" else ops.expand_dims)(inputs[0], axis=options["axis"])
        if kind == "op:Transpose":
            return ops.transpose(inputs[0], options["axes"])
        if kind == "op:Reshape":
            return ops.reshape(inputs[0], [-1, *options["newshape"][1:]])
        if kind == "op:Stack":
            return ops.stack(inputs, axis=options["axis"])
        if kind == "op:GetItem":
            return inputs[0][tuple(_cut(one) for one in options["key"])]
        raise RecipeError(f"the operator {kind} is not written as Keras layers yet")

    def _prepared(self, images: Any) -> Any:
        """Mean and standard deviation, and the order of the channels, as a convolution with the weights for it."""
        preprocess = self.bundle.preprocess
        scale = 1 / (255 * np.array(preprocess.std))
        shift = -np.array(preprocess.mean) / np.array(preprocess.std)
        kernel, bias = np.diag(scale), shift
        if self.kwargs["bgr"]:
            kernel, bias = kernel[:, ::-1], bias[::-1]
        layer = self.keras.layers.Conv2D(3, 1, name="prepare", trainable=False)
        result = layer(images)
        layer.set_weights([kernel.reshape(1, 1, 3, 3).astype(np.float32), bias.astype(np.float32)])
        return result

    def _head(self, features: Any) -> Any:
        """Features to probabilities; the temperature is in the last layer's weights."""
        layers, bundle = self.keras.layers, self.bundle
        head = bundle.classifier().head
        if isinstance(head, MlpHead):
            features = dense(self.keras, features, head.hidden.weight, head.hidden.bias, "gelu", "hidden")
            weight, bias = head.out.weight, head.out.bias
        elif isinstance(head, CosineHead):
            features = layers.UnitNormalization(name="unit_length")(features)
            weight, bias = torch.nn.functional.normalize(head.weight) * head.scale[:, None], head.bias
        else:
            assert isinstance(head, LinearHead)
            weight, bias = head.weight, head.bias
        answers = "sigmoid" if bundle.several else "softmax"
        return dense(
            self.keras, features, weight / bundle.temperature, bias / bundle.temperature, answers, "predictions"
        )


def _line(kind: str, inputs: list[Any]) -> tuple[Any, Any, Any] | None:
    """(what is scaled, the scale, the offset) of an operator on a tensor and numbers, one or one a channel; None of others.

    Keras does not open its own .h5 of operators on numbers, as MobileNetV3 has them (x + 3).
    """
    constants = [isinstance(one, np.ndarray) for one in inputs]
    if sorted(constants) != [False, True]:
        return None
    value, numbers, behind = inputs[constants.index(False)], inputs[constants.index(True)], constants[1]
    if numbers.ndim > 1 or (numbers.ndim and len(numbers) != value.shape[-1]):
        return None
    told = {"Add": (1.0, numbers), "Multiply": (numbers, 0.0)}
    told["Subtract"] = (1.0, -numbers) if behind else (-1.0, numbers)
    if behind and numbers.all():
        told["op:Divide"] = (1.0 / numbers, 0.0)
    return (value, *(np.asarray(one).tolist() for one in told[kind])) if kind in told else None


def _cut(one: Any) -> Any:
    """As Python slices."""
    return ... if one == "..." else slice(*one) if isinstance(one, list) else one


def _check(keras: Any, model: Any, bundle: Bundle, *, pixels: bool) -> None:
    """RunError unless Keras gives the probabilities that burnish gives, on images of noise."""
    raw, prepared, expected = noise(bundle)
    channels_last = prepared.transpose(0, 2, 3, 1)
    given = raw.astype(np.float32) if pixels else channels_last
    if bundle.architecture["kwargs"]["bgr"] and not pixels:
        given = channels_last[..., ::-1]
    found = keras.ops.convert_to_numpy(model(np.ascontiguousarray(given), training=False))
    require_equal("Keras", np.asarray(found), expected)
