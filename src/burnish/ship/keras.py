"""A tuned model that came from Keras, written back as a .keras file that Keras and TensorFlow open without burnish."""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from burnish.backbones.changing.surgery import DROP
from burnish.backbones.changing.taps import KIND as TAPS
from burnish.backbones.head import NEIGHBOURS, CosineHead, LinearHead, MlpHead
from burnish.backbones.keras import applications, graph, network
from burnish.backbones.keras.layers import DROPPING, KINDS, WITHOUT_EFFECT
from burnish.disk import plain_disk_errors
from burnish.errors import RecipeError, shown
from burnish.ship.bundle import Bundle
from burnish.ship.exported import (
    PIXELS,
    PREPARED,
    noise,
    require_equal,
    require_input,
    require_place,
    write_meaning,
)

_NAMES = ("images", "prepare", "taps", "hidden", "unit_length", "predictions")  # of the layers around the network
_MERGES = {"Add": "add", "Subtract": "subtract", "Multiply": "multiply", "Maximum": "maximum", "Minimum": "minimum",
           "op:Divide": "true_divide"}  # fmt: skip

_IN_PUBLIC_LAYERS = ("LayerScale", "CustomScaleLayer")


def export_keras(bundle: Bundle, path: Path, *, input: str = PREPARED) -> Path:
    """Write the model to `path`, a .keras file, and what it means to the .json beside it; returns `path`.

    The file gives the probabilities that burnish gives, its temperature included. input "prepared": it takes what the
    original took, images prepared as by keras.applications; "pixels": RGB of 0 to 255, prepared inside by a 1 × 1
    convolution. RecipeError when the model did not come from Keras, or was changed, or has a head, that Keras has no layers for;
    RunError when what Keras makes of it gives other probabilities, or the disk refuses. Needs Keras.
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
    require_place(path, ".keras")
    if path.is_file() and path.stat().st_size and not zipfile.is_zipfile(path):
        raise RecipeError(f"{shown(str(path))} is there and is no .keras file; name another file, or remove it")
    with applications.generators_untouched():
        keras = applications.keras_module()
        model = _Writer(keras, bundle, pixels=input == PIXELS).model()
        _check(keras, model, bundle, pixels=input == PIXELS)
        with plain_disk_errors(path.parent), tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
            draft = Path(folder) / path.name
            model.save(draft)
            os.replace(draft, path)
    write_meaning(path, bundle, _words(bundle, input))
    return path


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
        self.parts = graph.blank(bundle.architecture["name"], dict(self.kwargs)).parts
        self.state = {
            name.removeprefix("trunk."): one for name, one in bundle.state.items() if name.startswith("trunk.")
        }
        self.dropped: set[str] = set()  # layers that were taken out
        self.values: dict[str, Any] = {}  # what each node gives
        self.given = graph.segments_of(self.kwargs)

    def model(self) -> Any:
        """The whole model, with its weights."""
        keras, size = self.keras, self.bundle.preprocess.size
        taps = self._changes()
        images = keras.Input((size, size, 3), name="images")
        self.values[network.INPUT] = self._prepared(images) if self.pixels else images
        for node in self.kwargs["nodes"]:
            if node["name"] not in self.values:
                self.values[node["name"]] = self._node(node)
        features = self.values[self.kwargs["nodes"][-1]["name"]]
        if taps is not None:
            features = self._tapped(features, taps)
        return keras.Model(images, self._head(features), name="burnish")

    def _changes(self) -> dict[str, Any] | None:
        """The taps, if any; layers that were taken out become their input."""
        taps = None
        for change in self.bundle.architecture.get("changes", []):
            if change["kind"] == TAPS:
                taps = change
            elif change["kind"] == DROP:
                self.dropped |= set(change["layers"])
            else:
                raise RecipeError(
                    f"the network was changed by {change['kind']!r}, which is not written as Keras layers yet"
                )
        return taps

    def _node(self, node: Mapping[str, Any]) -> Any:
        """What the node's layer gives, its weights set."""
        place = self.given.get(node["name"])
        if place is not None and f"body.{place.segment}" in self.dropped:
            return self.values.get(place.enters)  # the last node of a segment that was taken out; inner ones are unused
        if place is not None and f"body.{place.segment}.{place.own}" in self.dropped:
            return self.values[node["inputs"][0]]
        inputs = [self._input(name) for name in node["inputs"]]
        options, kind = node["options"], node["kind"]
        if kind.startswith("op:") or any(name in self.kwargs["constants"] for name in node["inputs"]):
            return self._operator(kind, options, inputs)
        if kind in WITHOUT_EFFECT or (kind in DROPPING and not options.get("rate")):
            return inputs[0]  # Keras wants settings of them that only training would use
        if kind in _IN_PUBLIC_LAYERS:
            return self._in_public_layers(kind, options, node["name"], inputs)
        layer = self._layer(kind, options, node["name"])
        if kind == "MultiHeadAttention":
            result = layer(*inputs)
        else:
            result = layer(inputs if len(inputs) > 1 else inputs[0])
        if node["name"] in self.parts:
            arrays = [self._array(node["name"], variable) for variable in self.parts[node["name"]].variables]
            extra = len(layer.get_weights()) - len(arrays)  # Normalization keeps a count besides
            layer.set_weights([*arrays, *layer.get_weights()[len(arrays) :]] if extra else arrays)
            if kind == "Normalization":  # which computes with what it derives from them
                layer.finalize_state()
        return result

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
        try:
            return getattr(self.keras.layers, kind)(**options, name=self._own_name(name))
        except (TypeError, ValueError) as error:
            why = shown(" ".join(str(error).split()))[:160]
            raise RecipeError(f"its layer {shown(name)} ({kind}) cannot be written for this Keras: {why}") from None

    def _own_name(self, name: str) -> str:
        """The layer's name in the file; not one that a layer has that is written around the network."""
        name = name.replace("/", "_")
        return f"trunk_{name}" if name in _NAMES or name.startswith("tap_") else name

    def _input(self, name: str) -> Any:
        if name not in self.kwargs["constants"]:
            return self.values[name]
        value = next(one for key, one in self.state.items() if key.endswith(f"{network.plain_name(name)}.value"))
        return (value.permute(0, 2, 3, 1) if value.ndim == 4 else value).numpy()

    def _array(self, name: str, variable: Any) -> np.ndarray:
        part = self.parts[name]
        return variable.to_keras(self.state[f"{part.place}.{variable.target}"]).numpy()

    def _operator(self, kind: str, options: Mapping[str, Any], inputs: list[Any]) -> Any:
        ops = self.keras.ops
        options = {**KINDS[kind].options, **options}
        if kind in _MERGES:
            total = inputs[0]
            for other in inputs[1:]:
                total = getattr(ops, _MERGES[kind])(total, other)
            return total
        if kind == "op:Mean":
            return ops.mean(inputs[0], axis=options["axis"], keepdims=options["keepdims"])
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

    def _tapped(self, features: Any, taps: Mapping[str, Any]) -> Any:
        """Features and the pooled outputs of blocks, as `changing.taps` joins them."""
        layers, parts, where = self.keras.layers, [features], []
        by_segment = {place.segment: place.leaves for place in self.given.values()}
        pyramid = taps.get("pyramid") or [0] * len(taps["layers"])
        for index, name in enumerate(taps["layers"]):
            output = self.values[by_segment[name.removeprefix("body.")]]
            flat = "1D" if len(output.shape) == 3 else "2D"
            for place, kind in enumerate(("Average", "Max")):
                pooled = getattr(layers, f"Global{kind}Pooling{flat}")(name=f"tap_{index}_{kind.lower()}")(output)
                scale = float(self.state["taps.scale"][2 * index + place])
                parts.append(layers.Rescaling(scale, name=f"tap_{index}_{kind.lower()}_scale")(pooled))
            if pyramid[index]:
                where += self._differences(output, f"tap_{index}", float(self.state["taps.scale"][2 * index]))
        return layers.Concatenate(name="taps")([*parts, *where])

    def _differences(self, maps: Any, name: str, scale: float) -> list[Any]:
        """Halves and diagonals of maps [b h w c] against each other, as `changing.taps.differences` has them, times scale."""
        layers = self.keras.layers
        height, width = maps.shape[1:3]
        above, beside = (height // 2, width // 2)  # what is cut off: halves of an odd side share its middle
        cuts = {"l": (0, 0, 0, beside), "r": (0, 0, beside, 0), "t": (0, above, 0, 0), "b": (above, 0, 0, 0)}
        cuts |= {one + other: tuple(np.add(cuts[one], cuts[other]).tolist()) for one in "tb" for other in "lr"}
        mean = {}
        for part, (top, bottom, left, right) in cuts.items():
            cut = layers.Cropping2D(((top, bottom), (left, right)), name=f"{name}_{part}_cut")(maps)
            mean[part] = layers.GlobalAveragePooling2D(name=f"{name}_{part}")(cut)

        def less(one: Any, other: Any, what: str) -> Any:
            return layers.Subtract(name=f"{name}_{what}")([one, other])

        tilt = less(less(mean["tl"], mean["tr"], "top"), less(mean["bl"], mean["br"], "bottom"), "diagonal")
        pairs = (
            ("across", less(mean["l"], mean["r"], "across"), 1.0),
            ("down", less(mean["t"], mean["b"], "down"), 1.0),
        )
        return [
            layers.Rescaling(scale * share, name=f"{name}_{what}_scale")(one)
            for what, one, share in (*pairs, ("diagonal", tilt, 0.5))
        ]

    def _head(self, features: Any) -> Any:
        """Features to probabilities; the temperature is in the last layer's weights."""
        layers, bundle = self.keras.layers, self.bundle
        head = bundle.classifier().head
        if isinstance(head, MlpHead):
            features = self._dense(features, head.hidden.weight, head.hidden.bias, "gelu", "hidden")
            weight, bias = head.out.weight, head.out.bias
        elif isinstance(head, CosineHead):
            features = layers.UnitNormalization(name="unit_length")(features)
            weight, bias = torch.nn.functional.normalize(head.weight) * head.scale[:, None], head.bias
        else:
            assert isinstance(head, LinearHead)
            weight, bias = head.weight, head.bias
        answers = "sigmoid" if bundle.several else "softmax"
        return self._dense(features, weight / bundle.temperature, bias / bundle.temperature, answers, "predictions")

    def _dense(self, inputs: Any, weight: Tensor, bias: Tensor, activation: str, name: str) -> Any:
        layer = self.keras.layers.Dense(len(bias), activation=activation, name=name)
        result = layer(inputs)
        layer.set_weights([weight.detach().T.numpy(), bias.detach().numpy()])
        return result


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
