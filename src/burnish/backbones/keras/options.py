"""What a layer's description holds: its weights' places, its options, and the checks that they are what they must be."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from burnish.backbones.keras.modules import Call, Shape, Softmax

Options = dict[str, Any]


@dataclass(frozen=True)
class Variable:
    """One array of weights: where Keras keeps it, and how it lies in torch.

    torch = keras.reshape(flat).permute(order).reshape(shape of the target), and back the same way.
    """

    legacy: str  # "kernel", "query/kernel": in .h5 files of whole models; a|b where versions differ
    modern: str  # "vars/0", "query_dense/vars/0": in .keras and .weights.h5 files
    target: str  # in the torch module
    shape: Shape  # in Keras
    flat: Shape = ()  # before the axes are put in order; () for the shape itself
    order: tuple[int, ...] = ()  # () for as they are

    def to_torch(self, array: Tensor, like: Tensor) -> Tensor:
        """The array as the torch module holds it."""
        flat = array.reshape(self.flat or self.shape)
        return flat.permute(self.order or tuple(range(flat.ndim))).reshape(like.shape).contiguous()

    def to_keras(self, tensor: Tensor) -> Tensor:
        """The other way."""
        flat = self.flat or self.shape
        order = self.order or tuple(range(len(flat)))
        moved = tensor.reshape([flat[axis] for axis in order])
        return moved.permute([order.index(axis) for axis in range(len(order))]).reshape(self.shape).contiguous()


@dataclass(frozen=True)
class Made:
    """A layer in torch: modules run one after the other, the first with the inputs; only the first has weights."""

    module: nn.Module
    variables: tuple[Variable, ...] = ()
    activation: nn.Module | None = None


@dataclass(frozen=True)
class Kind:
    """One kind of Keras layer: the options that matter, with Keras's defaults, and how it is made."""

    make: Callable[[Options, list[Shape]], Made]
    options: Options = field(default_factory=dict)


class Unfit(ValueError):
    """What a layer cannot do here, one clause."""


def pair(value: Any, name: str, *, low: int = 1, high: int = 512) -> tuple[int, int]:
    both = [value, value] if type(value) is int else list(value) if isinstance(value, (list, tuple)) else []
    if len(both) != 2 or not all(type(one) is int and low <= one <= high for one in both):
        raise Unfit(f"{name} is {str(value)[:60]!r}, expected one or two whole numbers from {low} to {high}")
    return both[0], both[1]


def whole(value: Any, name: str, low: int = 1, high: int = 65_536) -> int:
    if type(value) is not int or not low <= value <= high:
        raise Unfit(f"{name} is {str(value)[:60]!r}, expected a whole number from {low} to {high}")
    return value


def real(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise Unfit(f"{name} is {str(value)[:60]!r}, expected a number")
    return float(value)


def channels_last(options: Options) -> None:
    if options.get("data_format") not in (None, "channels_last"):
        raise Unfit("data_format is channels_first; save the model with channels_last")


def channels(shape: Shape) -> int:
    """How many a tensor of that shape has: maps lie [b c h w], all else has them last."""
    return shape[1] if len(shape) == 4 else shape[-1]


def single(shapes: Sequence[Shape], *allowed: int) -> Shape:
    if len(shapes) != 1 or len(shapes[0]) not in allowed:
        ranks = ", ".join(str(len(shape)) for shape in shapes)
        raise Unfit(f"gets inputs of rank {ranks or 'none'}, expected one of rank {' or '.join(map(str, allowed))}")
    return shapes[0]


OLD_HARD_SIGMOID = "hard_sigmoid_2"  # what the hard sigmoid of Keras 2 is called here

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU, "relu6": nn.ReLU6, "elu": nn.ELU, "selu": nn.SELU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus, "softsign": nn.Softsign, "silu": nn.SiLU, "swish": nn.SiLU, "mish": nn.Mish,
    "gelu": nn.GELU, "leaky_relu": lambda: nn.LeakyReLU(0.2), "hard_sigmoid": nn.Hardsigmoid,
    "hard_swish": nn.Hardswish, "hard_silu": nn.Hardswish,
    OLD_HARD_SIGMOID: lambda: Call(lambda x: (0.2 * x + 0.5).clamp(0.0, 1.0), "hard sigmoid of Keras 2"),
    "exponential": lambda: Call(torch.exp, "exp"), "log_softmax": lambda: Softmax(log=True), "softmax": lambda: Softmax(),
}  # fmt: skip


def activation(value: Any) -> nn.Module | None:
    """The activation of that name; None for the linear one. Unfit for any other, such as a function of the user's."""
    if isinstance(value, dict) and value.get("class_name") == "function" and value.get("registered_name") in (
        None, value.get("config"),
    ):  # fmt: skip
        value = value.get("config")
    if value in (None, "linear"):
        return None
    if isinstance(value, dict) and value.get("class_name") == "function":
        # Keras writes tf.nn.swish and a function of the user's own of that name alike.
        called = str(value.get("config"))[:80]
        raise Unfit(
            f"activation is a function called {called!r}, whose code is not in the file; where Keras has it, say it by its "
            "name before saving, as in activation='swish'"
        )
    if not isinstance(value, str) or value not in _ACTIVATIONS:
        raise Unfit(f"activation is {str(value)[:80]!r}, expected one of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[value]()
