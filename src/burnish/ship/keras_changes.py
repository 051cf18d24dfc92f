"""What was taken out of a Keras network, put into it, or is read beside it, as Keras layers; of `ship.keras`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from burnish.backbones.changing.adapters import ADAPTERS, PROMPTS
from burnish.backbones.changing.surgery import DROP, INSERT
from burnish.backbones.changing.taps import KIND as TAPS
from burnish.errors import RecipeError, shown

_TORCH_EPSILON = 1e-5  # of BatchNorm and LayerNorm that were put in


class Changes:
    """The changes of a package's network, asked for by the names that its layers have in torch."""

    def __init__(
        self, keras: Any, changes: Sequence[Mapping[str, Any]], state: Mapping[str, Tensor], known: Collection[str]
    ) -> None:
        """state: of the changed trunk; known: the names of the layers that are written each by itself.

        RecipeError where another layer was changed.
        """
        self.keras, self.changes = keras, _by_old_names(changes)
        self.touched = {name for change in self.changes for name in change["layers"]}
        other = next((name for name in self.touched if name not in known), None)
        if other is not None:
            raise RecipeError(
                f"the network was changed at {shown(other)}, for which no Keras layer stands alone, so it is not written as "
                "Keras layers; --to onnx and --to pt2 write it"
            )
        self.prompted = any(change["kind"] == PROMPTS for change in self.changes)
        self.dropped = {name for change in self.changes if change["kind"] == DROP for name in change["layers"]}
        self.state, self._added = _apart(state, changes)
        self._given: dict[str, Any] = {}  # by layer, of those that were changed

    def entering(self, segment: str, value: Any) -> Any:
        """What a segment is given in place of the value: longer by the prompts."""
        for change in self.changes:
            if change["kind"] == PROMPTS and segment in change["layers"]:
                place = change["layers"].index(segment)
                tokens = self.state[f"{PROMPTS}.{place}.tokens"].numpy()[None]
                learnt = self.keras.ops.add(self.keras.ops.multiply(value[:, :1], 0.0), tokens)  # one set an image
                value = self.keras.layers.Concatenate(axis=1, name=f"prompts_{place}")([value, learnt])
        return value

    def after(self, layer: str, value: Any, source: Any) -> Any:
        """What the network goes on with, where the layer makes the value of the source."""
        for number, change in enumerate(self.changes):
            if layer not in change["layers"]:
                continue
            if change["kind"] == INSERT:
                value = self._inserted(number, change["layers"].index(layer), change["layer"], value)
            elif change["kind"] == ADAPTERS:
                value = self._adapted(change, layer, value, source)
            elif change["kind"] == PROMPTS:
                value = value[:, : -change["tokens"]]
        if layer in self.touched:
            self._given[layer] = value
        return value

    def joined(self, features: Any) -> Any:
        """Features and the pooled outputs of blocks, as `changing.taps` joins them; features alone where it does not."""
        for change in self.changes:
            if change["kind"] == TAPS:
                features = self._tapped(features, change)
        return features

    def _inserted(self, number: int, place: int, words: str, value: Any) -> Any:
        """The value behind a layer that was put in: by which change, and which of its layers."""
        layers, state = self.keras.layers, self._added[number, place]
        kind, _, size = words.partition(":")
        name = f"inserted_{number}_{place}"
        if kind == "dropout":
            return value
        if not state:
            return layers.Activation(kind, name=name)(value)
        weight, bias = state["weight"], state["bias"]
        if kind == "conv":
            conv = layers.Conv2D(len(bias), int(size), padding="same", name=name)
            return _with(conv, value, weight.permute(2, 3, 1, 0), bias)
        if kind == "linear":
            return dense(self.keras, value, weight, bias, "linear", name)
        if kind == "layernorm":
            return _with(layers.LayerNormalization(epsilon=_TORCH_EPSILON, name=name), value, weight, bias)
        norm = layers.BatchNormalization(epsilon=_TORCH_EPSILON, name=name)
        return _with(norm, value, weight, bias, state["running_mean"], state["running_var"])

    def _adapted(self, change: Mapping[str, Any], layer: str, value: Any, source: Any) -> Any:
        """The value and what a bottleneck makes of it, or of the source; its scale is in the last weights."""
        place = change["layers"].index(layer)
        name, own = (
            f"adapter_{place}",
            {
                key: self.state[f"{ADAPTERS}.{place}.{key}"]
                for key in ("down.weight", "down.bias", "up.weight", "up.bias", "scale")
            },
        )
        given = value if change["form"] == "post" else source
        inner = dense(self.keras, given, own["down.weight"], own["down.bias"], "gelu", f"{name}_down")
        scale = own["scale"]
        added = dense(
            self.keras, inner, scale[:, None] * own["up.weight"], scale * own["up.bias"], "linear", f"{name}_up"
        )
        return self.keras.layers.Add(name=name)([value, added])

    def _tapped(self, features: Any, taps: Mapping[str, Any]) -> Any:
        layers, parts, where = self.keras.layers, [features], []
        pyramid = taps.get("pyramid") or [0] * len(taps["layers"])
        scales = self.state["taps.scale"].tolist()
        for index, name in enumerate(taps["layers"]):
            output = self._given[name]
            flat = "1D" if len(output.shape) == 3 else "2D"
            for place, kind in enumerate(("Average", "Max")):
                pooled = getattr(layers, f"Global{kind}Pooling{flat}")(name=f"tap_{index}_{kind.lower()}")(output)
                scale = layers.Rescaling(scales[2 * index + place], name=f"tap_{index}_{kind.lower()}_scale")
                parts.append(scale(pooled))
            if pyramid[index]:
                where += self._differences(output, f"tap_{index}", scales[2 * index])
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


def dense(keras: Any, inputs: Any, weight: Tensor, bias: Tensor, activation: str, name: str) -> Any:
    """What a dense layer with these weights makes of the inputs; weight [out in]."""
    return _with(keras.layers.Dense(len(bias), activation=activation, name=name), inputs, weight.T, bias)


def _with(layer: Any, inputs: Any, *weights: Tensor) -> Any:
    """What the layer, with these weights, makes of the inputs."""
    result = layer(inputs)
    layer.set_weights([one.detach().contiguous().numpy() for one in weights])
    return result


def _by_old_names(changes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The changes with the names that layers had before others were put in, which wraps them."""
    found: list[dict[str, Any]] = []
    wrapped: list[str] = []
    for change in changes:
        names = change["layers"]
        for outer in reversed(wrapped):
            names = [name.replace(f"{outer}.layer.", f"{outer}.", 1) for name in names]
        found.append({**change, "layers": names})
        wrapped += change["layers"] if change["kind"] == INSERT else []
    return found


def _apart(
    state: Mapping[str, Tensor], changes: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Tensor], dict[tuple[int, int], dict[str, Tensor]]]:
    """(the weights by the old names; those of each layer that was put in, by its change and which of that it is)."""
    kept, added = dict(state), {}
    for number, change in reversed(list(enumerate(changes))):
        for place, layer in enumerate(change["layers"] if change["kind"] == INSERT else ()):
            new, old = f"{layer}.added.", f"{layer}.layer."
            own = {key: kept.pop(key) for key in list(kept) if key.startswith(new)}
            added[number, place] = {key.removeprefix(new).removeprefix("inner."): one for key, one in own.items()}
            kept = {
                f"{layer}.{key.removeprefix(old)}" if key.startswith(old) else key: one for key, one in kept.items()
            }
    return kept, added
