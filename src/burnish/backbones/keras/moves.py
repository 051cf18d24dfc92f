"""Keras layers and operators that move, join and take apart tensors, as torch functions; none has weights.

Axes are Keras's in the options, ours between layers: maps lie [b c h w], tokens [b n c].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from burnish.backbones.keras.modules import Call, Shape
from burnish.backbones.keras.options import Made, Options, Unfit, channels_last, pair, real, single

# ---- layers ----------------------------------------------------------------------------------------------------------


def flatten(options: Options, shapes: list[Shape]) -> Made:
    channels_last(options)
    rank = len(single(shapes, 2, 3, 4))
    if rank == 4:
        return Made(Call(lambda x: x.permute(0, 2, 3, 1).flatten(1), "as [h w c]"))
    return Made(nn.Flatten())


def reshape(options: Options, shapes: list[Shape]) -> Made:
    target = options["target_shape"]
    if not isinstance(target, (list, tuple)) or not all(type(one) is int and -1 <= one <= 2**24 for one in target):
        raise Unfit(f"target_shape is {str(target)[:60]!r}, expected whole numbers")
    if len(target) not in (1, 2, 3) or list(target).count(-1) > 1:
        raise Unfit("tensors of one to three axes besides the batch are read only")
    return Made(Call(lambda x: inward(outward(x).reshape(len(x), *target)), f"to {list(target)}"))


def permute(options: Options, shapes: list[Shape]) -> Made:
    axes = options["dims"]
    rank = len(single(shapes, 3, 4))
    if not isinstance(axes, (list, tuple)) or sorted(map(str, axes)) != sorted(str(one) for one in range(1, rank)):
        raise Unfit(f"dims is {str(axes)[:60]!r}, expected each of 1 to {rank - 1} once")
    return Made(Call(lambda x: inward(outward(x).permute(0, *axes)), f"to {list(axes)}"))


def outward(tensor: Tensor) -> Tensor:
    """As Keras has it."""
    return tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor


def inward(tensor: Tensor) -> Tensor:
    """As we have it."""
    return tensor.permute(0, 3, 1, 2) if tensor.ndim == 4 else tensor


def merge(function: Callable[[Tensor, Tensor], Tensor], words: str) -> Callable[[Options, list[Shape]], Made]:
    def make(options: Options, shapes: list[Shape]) -> Made:
        if len(shapes) < 2:
            raise Unfit("gets one input, expected two or more")

        alike = _alike(shapes)

        def merged(*inputs: Tensor) -> Tensor:
            total, *others = alike(*inputs)
            for other in others:
                total = function(total, other)
            return total

        return Made(Call(merged, words))

    return make


def _alike(shapes: list[Shape]) -> Callable[..., list[Tensor]]:
    """What gives inputs of these shapes the axes that some of them lack.

    One whose first axis is that of images, of which there is one while the network is made, is none of the constants.
    """
    rank, of_images = max(map(len, shapes)), [len(shape) > 1 and shape[0] == 1 for shape in shapes]
    return lambda *inputs: [_broadcast(one, rank, own) for one, own in zip(inputs, of_images, strict=True)]


def _broadcast(tensor: Tensor, rank: int, of_images: bool) -> Tensor:
    """With the axes that are missing, in our order: channels stay channels.

    Keras's merging layers add them behind that of the images, NumPy's rules, for constants, in front.
    """
    missing = rank - tensor.ndim
    if missing <= 0 or tensor.ndim == 0:
        return tensor
    ones = [1] * missing
    shape = [tensor.shape[0], *ones, *tensor.shape[1:]] if of_images else [*ones, *tensor.shape]
    tensor = tensor.reshape(shape)
    return inward(tensor) if rank == 4 else tensor


def average(options: Options, shapes: list[Shape]) -> Made:
    if len(shapes) < 2:
        raise Unfit("gets one input, expected two or more")
    alike = _alike(shapes)
    return Made(Call(lambda *inputs: torch.stack(torch.broadcast_tensors(*alike(*inputs))).mean(0), "mean"))


def concatenate(options: Options, shapes: list[Shape]) -> Made:
    axis = options["axis"]
    ranks = {len(shape) for shape in shapes}
    if len(ranks) != 1 or type(axis) is not int or not -max(ranks) <= axis < max(ranks):
        raise Unfit("concatenates tensors of one rank along one of their axes")
    rank = ranks.pop()
    axis %= rank
    where = {1: 2, 2: 3, 3: 1}.get(axis, axis) if rank == 4 else axis
    if where == 0:
        raise Unfit("concatenates images of a batch")
    return Made(Call(lambda *inputs: torch.cat(inputs, where), f"along {where}"))


# ---- functions, as keras.ops and TensorFlow's operators record them --------------------------------------------------


def ours(axis: int, rank: int) -> int:
    """Where we have that axis of Keras's."""
    return {1: 2, 2: 3, 3: 1}.get(axis % rank, 0) if rank == 4 else axis % rank


def op_reduced(function: Callable[..., Tensor], words: str) -> Callable[[Options, list[Shape]], Made]:
    """Over some axes, not that of the images."""

    def make(options: Options, shapes: list[Shape]) -> Made:
        rank = len(single(shapes, 2, 3, 4))
        axes = tuple(ours(one, rank) for one in _axes(options["axis"], rank))
        keeps = bool(options["keepdims"])
        if rank - len(axes) < 2 and not keeps:
            raise Unfit(f"makes one number an image, the {words} of all")
        if rank == 4 and len(axes) == 1 and axes != (1,) and not keeps:  # [b c w] are tokens in Keras's order
            return Made(Call(lambda x: function(x, axes).transpose(1, 2), words))
        return Made(Call(lambda x: function(x, axes, keepdim=keeps), words))

    return make


def _axes(value: Any, rank: int) -> list[int]:
    """The axes of an operator, from one or a list of them."""
    axes = [value] if type(value) is int else list(value) if isinstance(value, (list, tuple)) else []
    if not axes or not all(type(one) is int and -rank < one < rank and one for one in axes):
        raise Unfit(f"an operator over the axes {str(value)[:40]}, expected some besides the batch")
    return [one % rank for one in axes]


def op_normalize(options: Options, shapes: list[Shape]) -> Made:
    """To length 1."""
    rank, epsilon = len(single(shapes, 2, 3, 4)), options["epsilon"]
    axes = _axes(options["axis"], rank)
    if options["order"] != 2 or len(axes) != 1:
        raise Unfit("normalize is read with the order 2 over one axis only")
    eps = 1e-7 if epsilon is None else real(epsilon, "epsilon")
    return Made(Call(lambda x: nn.functional.normalize(x, dim=ours(axes[0], rank), eps=eps), "to length 1"))


LOWEST = "-inf"  # what no JSON has a number for: as a map is padded before its maxima are taken


def op_pad(options: Options, shapes: list[Shape]) -> Made:
    """Zeros around maps, or what is less than all numbers."""
    single(shapes, 4)
    widths, value = options["pad_width"], options["constant_values"]
    if (
        not isinstance(widths, list)
        or len(widths) != 4
        or options["mode"] != "constant"
        or value not in (None, 0, LOWEST)
    ):
        raise Unfit("pad is read with zeros, or what is less than all numbers, around maps only")
    batch, (top, bottom), (left, right), channel = (pair(one, "pad_width", low=0) for one in widths)
    if batch != (0, 0) or channel != (0, 0):
        raise Unfit("pad is read around the places of maps only")
    return Made(nn.ConstantPad2d((left, right, top, bottom), float(value or 0)))


def op_expand_dims(options: Options, shapes: list[Shape]) -> Made:
    rank, axis = len(single(shapes, 2, 3)), options["axis"]
    if type(axis) is not int or not -rank - 1 < axis <= rank or axis == 0:
        raise Unfit(f"a new axis {str(axis)[:40]}, expected one behind the batch")
    return Made(Call(lambda x: inward(outward(x).unsqueeze(axis)), f"a new axis {axis}"))


def op_squeeze(options: Options, shapes: list[Shape]) -> Made:
    """Without axes of one place."""
    shape = single(shapes, 3, 4)
    rank = len(shape)
    axes = _axes(options["axis"], rank)
    if any(shape[ours(one, rank)] != 1 for one in axes) or rank - len(axes) < 2:
        raise Unfit(f"takes away the axes {axes}, which are not of one place each")
    return Made(Call(lambda x: inward(outward(x).squeeze(tuple(axes))), f"without {axes}"))


def op_transpose(options: Options, shapes: list[Shape]) -> Made:
    axes = options["axes"]
    if not isinstance(axes, (list, tuple)) or not axes or axes[0] != 0:
        raise Unfit("a transposition moves the batch")
    return permute({"dims": list(axes[1:])}, shapes)


def op_reshape(options: Options, shapes: list[Shape]) -> Made:
    target = options["newshape"]
    if not isinstance(target, (list, tuple)) or not target or target[0] not in (-1, None):
        raise Unfit("a reshape changes the batch")
    return reshape({"target_shape": list(target[1:])}, shapes)


def op_bgr(options: Options, shapes: list[Shape]) -> Made:
    single(shapes, 4)
    return Made(Call(lambda x: x.flip(1), "channels in reverse"))


def op_get_item(options: Options, shapes: list[Shape]) -> Made:
    """x[..., ::-1], x[:, 0]: numbers and slices, none of which takes images out of the batch."""
    shape = single(shapes, 2, 3, 4)
    sizes = (shape[0], *shape[2:], shape[1]) if len(shape) == 4 else tuple(shape)  # in Keras's order
    cuts = _cuts(options["key"], sizes)
    if len(sizes) - sum(type(one) is int for one in cuts.values()) < 2:
        raise Unfit("slices a tensor to one number an image")

    def taken(tensor: Tensor) -> Tensor:
        tensor = outward(tensor)
        for axis, cut in sorted(cuts.items(), reverse=True):
            if type(cut) is int:
                tensor = tensor.select(axis, cut)
            elif isinstance(cut, range):
                backward = cut[::-1] if cut.step < 0 else cut
                tensor = tensor[(*[slice(None)] * axis, slice(backward.start, backward.stop, backward.step))]
                tensor = tensor.flip(axis) if cut.step < 0 else tensor
        return inward(tensor)

    return Made(Call(taken, "a part"))


def _cuts(key: Any, sizes: tuple[int, ...]) -> dict[int, int | range]:
    """What is taken along each axis that is cut: a place, or the places of a slice."""
    if not isinstance(key, list) or key.count("...") > 1 or len(key) - key.count("...") > len(sizes):
        raise Unfit(f"slices a tensor of {len(sizes)} axes by {str(key)[:60]}")
    at = key.index("...") if "..." in key else len(key)
    rest: list[Any] = [[None, None, None]] * (len(sizes) - len(key) + key.count("..."))
    cuts: dict[int, int | range] = {}
    for axis, (cut, size) in enumerate(zip([*key[:at], *rest, *key[at + 1 :]], sizes, strict=True)):
        if cut == [None, None, None]:
            continue
        if axis == 0:
            raise Unfit("slices the batch")
        if type(cut) is int and -size <= cut < size:
            cuts[axis] = cut % size
        elif isinstance(cut, list) and len(cut) == 3 and all(one is None or type(one) is int for one in cut):
            places = range(*slice(*cut).indices(size)) if cut[2] != 0 else range(0)
            if not places:
                raise Unfit(f"takes nothing of {size} by the slice {str(cut)[:60]}")
            cuts[axis] = places
        else:
            raise Unfit(f"takes {str(cut)[:60]} of an axis of {size}")
    return cuts


def op_stack(options: Options, shapes: list[Shape]) -> Made:
    """Tensors of one shape, along a new axis."""
    axis, rank = options["axis"], len(shapes[0])
    if len(set(shapes)) != 1 or rank not in (2, 3):
        raise Unfit("stacks tensors of other than one shape of two or three axes")
    if type(axis) is not int or not -rank - 1 <= axis <= rank or axis % (rank + 1) == 0:
        raise Unfit(f"stacks along the axis {str(axis)[:40]}")
    return Made(Call(lambda *inputs: inward(torch.stack(inputs, axis)), f"along {axis}"))


def scaled_sum(options: Options, shapes: list[Shape]) -> Made:
    """a + scale · b: InceptionResNetV2's residual (Szegedy et al. 2016, arXiv:1602.07261)."""
    if len(shapes) != 2 or shapes[0] != shapes[1]:
        raise Unfit("adds a scaled residual of another shape")
    scale = real(options["scale"], "scale")
    return Made(Call(lambda kept, added: kept + scale * added, f"sum, the second times {scale:g}"))
