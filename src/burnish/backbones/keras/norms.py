"""Keras layers that shift and scale what they are given, as torch modules.

Each function takes the options of a layer and the shapes of its inputs; Unfit where they do not go together.
"""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from burnish.backbones.keras.modules import Call, LayerScale, Normalization, Scale, Shape, TokenNorm
from burnish.backbones.keras.options import Made, Options, Unfit, Variable, channels, real, single, whole
from burnish.backbones.layers import OnChannels


def batch_norm(options: Options, shapes: list[Shape]) -> Made:
    shape = single(shapes, 2, 3, 4)
    width = channels(shape)
    axis = options["axis"][0] if isinstance(options["axis"], list) and len(options["axis"]) == 1 else options["axis"]
    if axis not in (-1, len(shape) - 1):
        raise Unfit(f"axis is {str(axis)[:40]}, expected the last one")
    # Keras says how much of the old statistics stays, torch how much of the new ones comes in.
    eps, momentum = real(options["epsilon"], "epsilon"), 1 - real(options["momentum"], "momentum")
    norm = (nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d)(width, eps=eps, momentum=momentum)
    inner = "inner." if len(shape) == 3 else ""
    names, variables = [], []
    if options["scale"]:
        names.append(("gamma", "weight"))
    else:
        norm.register_parameter("weight", None)
    if options["center"]:
        names.append(("beta", "bias"))
    else:
        norm.register_parameter("bias", None)
    for number, (legacy, target) in enumerate(
        [*names, ("moving_mean", "running_mean"), ("moving_variance", "running_var")]
    ):
        variables.append(Variable(legacy, f"vars/{number}", inner + target, (width,)))
    return Made(TokenNorm(norm) if len(shape) == 3 else norm, tuple(variables))  # type: ignore[arg-type]


def layer_norm(options: Options, shapes: list[Shape]) -> Made:
    shape = single(shapes, 2, 3, 4)
    width = channels(shape)
    axis = options["axis"][0] if isinstance(options["axis"], list) and len(options["axis"]) == 1 else options["axis"]
    if axis not in (-1, len(shape) - 1) or options.get("rms_scaling"):
        raise Unfit("layer normalisation is read over the last axis only, without rms_scaling")
    if not (options["scale"] and options["center"]) and options["scale"] != options["center"]:
        raise Unfit("layer normalisation is read with both scale and center, or neither")
    norm = nn.LayerNorm(width, eps=real(options["epsilon"], "epsilon"), elementwise_affine=bool(options["scale"]))
    inner = "inner." if len(shape) == 4 else ""
    pairs = (("gamma", "weight"), ("beta", "bias")) if options["scale"] else ()
    variables = tuple(
        Variable(legacy, f"vars/{number}", inner + target, (width,)) for number, (legacy, target) in enumerate(pairs)
    )
    return Made(OnChannels(norm, 1) if len(shape) == 4 else norm, variables)


def rms_norm(options: Options, shapes: list[Shape]) -> Made:
    """Zhang & Sennrich 2019, arXiv:1910.07467."""
    shape = single(shapes, 2, 3, 4)
    width = channels(shape)
    if options["axis"] not in (-1, [-1], len(shape) - 1, [len(shape) - 1]):
        raise Unfit("RMSNormalization is read over the last axis only")
    norm = nn.RMSNorm(width, eps=real(options["epsilon"], "epsilon"))
    maps = len(shape) == 4
    variable = Variable("scale", "vars/0", "inner.weight" if maps else "weight", (width,))
    return Made(OnChannels(norm, 1) if maps else norm, (variable,))


def group_norm(options: Options, shapes: list[Shape]) -> Made:
    width = single(shapes, 4)[1]
    groups = width if options["groups"] == -1 else whole(options["groups"], "groups")
    if width % groups or options["axis"] not in (-1, 3) or not (options["scale"] and options["center"]):
        raise Unfit("group normalisation is read over the last axis, with scale and center, in groups that divide it")
    norm = nn.GroupNorm(groups, width, eps=real(options["epsilon"], "epsilon"))
    return Made(norm, (Variable("gamma", "vars/0", "weight", (width,)), Variable("beta", "vars/1", "bias", (width,))))


def normalization(options: Options, shapes: list[Shape]) -> Made:
    shape = single(shapes, 2, 3, 4)
    width = channels(shape)
    if options.get("invert") or options["axis"] not in (-1, [-1], [len(shape) - 1], len(shape) - 1):
        raise Unfit("Normalization is read over the last axis only, not inverted")
    if options["mean"] is not None or options["variance"] is not None:
        mean, variance = (_numbers(options[key], key, width) for key in ("mean", "variance"))
        scale = [1 / max(math.sqrt(value), 1e-7) for value in variance]
        offset = [-value * factor for value, factor in zip(mean, scale, strict=True)]
        return Made(Scale(scale, offset))
    variables = (
        Variable("mean", "vars/0", "mean", (width,)),
        Variable("variance", "vars/1", "variance", (width,)),
    )
    return Made(Normalization(width), variables)


def _numbers(value: Any, name: str, width: int) -> list[float]:
    """One number a channel, from a number or a nested list that ends in one a channel."""
    flat = [value]
    while any(isinstance(one, (list, tuple)) for one in flat):
        flat = [inner for one in flat for inner in (one if isinstance(one, (list, tuple)) else [one])]
        if len(flat) > 65_536:
            raise Unfit(f"{name} has more numbers than channels")
    numbers = [real(one, name) for one in flat]
    if len(numbers) not in (1, width):
        raise Unfit(f"{name} has {len(numbers)} numbers for {width} channels")
    return numbers if len(numbers) == width else numbers * width


def rescaling(options: Options, shapes: list[Shape]) -> Made:
    shape = single(shapes, 2, 3, 4)
    width = channels(shape)
    scale, offset = (_numbers(options[key], key, width) for key in ("scale", "offset"))
    return Made(Scale(scale, offset))


def unit_length(options: Options, shapes: list[Shape]) -> Made:
    shape = single(shapes, 2, 3, 4)
    if options["axis"] not in (-1, [-1], len(shape) - 1, [len(shape) - 1]):
        raise Unfit("UnitNormalization is read over the last axis only")
    return Made(Call(lambda x: nn.functional.normalize(x, dim=1 if len(shape) == 4 else -1), "to length 1"))


def layer_scale(options: Options, shapes: list[Shape]) -> Made:
    shape = single(shapes, 2, 3, 4)
    width = channels(shape)
    if options["projection_dim"] != width or options["init_values"] is None:
        raise Unfit(f"projection_dim is {str(options['projection_dim'])[:40]!r} for {width} channels")
    return Made(LayerScale(width), (Variable("gamma|variable|Variable", "vars/0", "weight", (width,)),))
