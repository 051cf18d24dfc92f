"""Keras layers that multiply by a kernel, as torch modules: convolutions of all sorts, and the dense one.

Each function takes the options of a layer and the shapes of its inputs; Unfit where they do not go together.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from burnish.backbones.keras.modules import Conv2dSame, Separable, Shape, TokenConv
from burnish.backbones.keras.options import (
    Made,
    Options,
    Unfit,
    Variable,
    activation,
    channels,
    channels_last,
    pair,
    single,
    whole,
)
from burnish.backbones.layers import OnChannels


def conv(options: Options, shapes: list[Shape]) -> Made:
    channels_last(options)
    inside = single(shapes, 4)[1]
    outside, groups = whole(options["filters"], "filters"), whole(options["groups"], "groups")
    if inside % groups or outside % groups:
        raise Unfit(f"groups is {groups}, which does not divide {inside} and {outside} channels")
    kernel = pair(options["kernel_size"], "kernel_size")
    layer = _convolution(options, inside, outside, kernel, groups)
    shape = (*kernel, inside // groups, outside)
    variables = [Variable("kernel", "vars/0", "weight", shape, order=(3, 2, 0, 1))]
    return Made(layer, with_bias(variables, options, outside), activation(options["activation"]))


def conv_1d(options: Options, shapes: list[Shape]) -> Made:
    """Along the tokens."""
    channels_last(options)
    inside = single(shapes, 3)[2]
    outside, groups = whole(options["filters"], "filters"), whole(options["groups"], "groups")
    kernel, stride, dilation = (_one(options[name], name) for name in ("kernel_size", "strides", "dilation_rate"))
    if inside % groups or outside % groups:
        raise Unfit(f"groups is {groups}, which does not divide {inside} and {outside} channels")
    if options["padding"] not in ("valid", "same"):
        raise Unfit(f"padding is {str(options['padding'])[:40]!r}, expected valid or same")
    conv = nn.Conv1d(inside, outside, kernel, stride, 0, dilation, groups, bool(options["use_bias"]))
    variables = [Variable("kernel", "vars/0", "inner.weight", (kernel, inside // groups, outside), order=(2, 1, 0))]
    layer = TokenConv(conv, same=options["padding"] == "same")
    return Made(layer, with_bias(variables, options, outside, "inner.bias"), activation(options["activation"]))


def _one(value: Any, name: str) -> int:
    """A whole number, alone or in a list."""
    return whole(value[0] if isinstance(value, (list, tuple)) and len(value) == 1 else value, name, 1, 512)


def depthwise(options: Options, shapes: list[Shape]) -> Made:
    channels_last(options)
    inside, times = single(shapes, 4)[1], whole(options["depth_multiplier"], "depth_multiplier", 1, 64)
    kernel = pair(options["kernel_size"], "kernel_size")
    layer = _convolution(options, inside, inside * times, kernel, inside)
    variables = [Variable("depthwise_kernel|kernel", "vars/0", "weight", (*kernel, inside, times), order=(2, 3, 0, 1))]
    return Made(layer, with_bias(variables, options, inside * times), activation(options["activation"]))


def separable(options: Options, shapes: list[Shape]) -> Made:
    channels_last(options)
    inside, times = single(shapes, 4)[1], whole(options["depth_multiplier"], "depth_multiplier", 1, 64)
    kernel, outside = pair(options["kernel_size"], "kernel_size"), whole(options["filters"], "filters")
    first = _convolution({**options, "use_bias": False}, inside, inside * times, kernel, inside)
    layer = Separable(first, nn.Conv2d(inside * times, outside, 1, bias=bool(options["use_bias"])))
    variables = [
        Variable("depthwise_kernel", "vars/0", "depthwise.weight", (*kernel, inside, times), order=(2, 3, 0, 1)),
        Variable("pointwise_kernel", "vars/1", "pointwise.weight", (1, 1, inside * times, outside), order=(3, 2, 0, 1)),
    ]
    return Made(layer, with_bias(variables, options, outside, "pointwise.bias"), activation(options["activation"]))


def _convolution(options: Options, inside: int, outside: int, kernel: tuple[int, int], groups: int) -> nn.Conv2d:
    stride = pair(options["strides"], "strides", high=64)
    dilation = pair(options.get("dilation_rate", 1), "dilation_rate", high=64)
    bias, padding = bool(options["use_bias"]), options["padding"]
    if padding not in ("valid", "same"):
        raise Unfit(f"padding is {str(padding)[:40]!r}, expected valid or same")
    reach = ((kernel[0] - 1) * dilation[0] // 2, (kernel[1] - 1) * dilation[1] // 2)
    odd = all((size - 1) * step % 2 == 0 for size, step in zip(kernel, dilation, strict=True))
    if padding == "same" and stride == (1, 1) and odd:
        return nn.Conv2d(inside, outside, kernel, stride, reach, dilation, groups, bias)
    made = Conv2dSame if padding == "same" and max(*kernel, *stride) > 1 else nn.Conv2d
    return made(inside, outside, kernel, stride, 0, dilation, groups, bias)


def transposed(options: Options, shapes: list[Shape]) -> Made:
    channels_last(options)
    inside, outside = single(shapes, 4)[1], whole(options["filters"], "filters")
    kernel, stride = pair(options["kernel_size"], "kernel_size"), pair(options["strides"], "strides", high=64)
    if pair(options.get("dilation_rate", 1), "dilation_rate") != (1, 1):
        raise Unfit("a transposed convolution is read without dilation only")
    if options["padding"] != "valid" or options["output_padding"] is not None or min(
        size - step for size, step in zip(kernel, stride, strict=True)
    ) < 0:  # fmt: skip
        raise Unfit("a transposed convolution is read with padding valid and a kernel no smaller than its stride only")
    layer = nn.ConvTranspose2d(inside, outside, kernel, stride, bias=bool(options["use_bias"]))
    variables = [Variable("kernel", "vars/0", "weight", (*kernel, outside, inside), order=(3, 2, 0, 1))]
    return Made(layer, with_bias(variables, options, outside), activation(options["activation"]))


def with_bias(variables: list[Variable], options: Options, width: int, target: str = "bias") -> tuple[Variable, ...]:
    if not options["use_bias"]:
        return tuple(variables)
    return (*variables, Variable("bias", f"vars/{len(variables)}", target, (width,)))


def dense(options: Options, shapes: list[Shape]) -> Made:
    shape = single(shapes, 2, 3, 4)
    inside, outside = channels(shape), whole(options["units"], "units")
    linear = nn.Linear(inside, outside, bias=bool(options["use_bias"]))
    layer = OnChannels(linear, 1) if len(shape) == 4 else linear
    inner = "inner." if len(shape) == 4 else ""
    variables = [Variable("kernel", "vars/0", f"{inner}weight", (inside, outside), order=(1, 0))]
    return Made(layer, with_bias(variables, options, outside, f"{inner}bias"), activation(options["activation"]))
