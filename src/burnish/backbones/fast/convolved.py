"""A convolution and the activation after it as one step of training on the CPU: oneDNN's fast kernels, forward and back.

Four things are slow as torch does them. An activation of its own reads and writes all that was just computed; ReLU and ReLU6 need
only their output for their gradient, so oneDNN applies them to what it is about to write. TensorFlow's uneven padding copies the
images into larger ones; a row and a column of zeros before a depthwise kernel do the same. And of depthwise kernels above 3x3
the gradient of the weights is slow, of those in bfloat16 with stride 2 that of the images (see `Convolution`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Activations whose gradient follows from what they give, as oneDNN calls them.
FROM_OUTPUT: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.ReLU6: "hardtanh"}
SCALARS = {"hardtanh": [0.0, 6.0]}  # what oneDNN's activations take besides the value


def pads_like_tensorflow(conv: nn.Conv2d) -> bool:
    """Whether this is timm's Conv2dSame: known by name, as only the zoo imports timm; the output is checked anyway."""
    return type(conv).__name__ == "Conv2dSame"


def has_fused_kernel(example: Tensor) -> bool:
    """Whether oneDNN can apply an activation to what a convolution of such images is about to write."""
    return (
        example.device.type == "cpu"
        and example.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    )


def padded_same(
    images: Tensor, weight: Tensor, conv: nn.Conv2d, *, zero: int = 0
) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Images, weight and padding that make the output side ceil(side / stride), as TensorFlow does.

    zero: what stands for 0 in the images.

    Where one side needs a pixel more than the other, a depthwise kernel gets a row or column of zeros instead, and the
    padding is even: copying the images into a larger tensor cost 5 times the convolution itself (96 channels, 112 px,
    batch 16, one core: 63 → 13 ms). With dense kernels the copy is cheaper.
    """
    height, width = _padding_in_all(conv, (images.shape[-2], images.shape[-1]))
    even = ((height + 1) // 2, (width + 1) // 2)
    if height % 2 == width % 2 == 0:
        return images, weight, even
    if conv.groups == conv.in_channels and tuple(conv.dilation) == (1, 1):
        return images, F.pad(weight, (width % 2, 0, height % 2, 0)), even
    return F.pad(images, (width // 2, even[1], height // 2, even[0]), value=zero), weight, (0, 0)


def _padding_in_all(conv: nn.Conv2d, size: tuple[int, int]) -> list[int]:
    """Rows and columns by which TensorFlow makes images larger."""
    axes = zip(size, conv.stride, conv.kernel_size, conv.dilation, strict=True)
    return [
        max((-(-side // stride) - 1) * stride + (kernel - 1) * dilation + 1 - side, 0)
        for side, stride, kernel, dilation in axes
    ]


@dataclass(frozen=True)
class How:
    """What a convolution does besides its weights. Padding is of rows and columns, before the images and behind them."""

    stride: tuple[int, int]
    before: tuple[int, int]
    behind: tuple[int, int]  # as many, or one more
    dilation: tuple[int, int]
    groups: int
    depthwise: bool
    act: str | None  # one of FROM_OUTPUT

    @property
    def uneven(self) -> tuple[int, int]:
        """How many rows and columns of zeros before the kernel make the padding even."""
        return self.behind[0] - self.before[0], self.behind[1] - self.before[1]


def how_of(conv: nn.Conv2d, act: nn.Module | None, size: tuple[int, int]) -> How | None:
    """How `conv`, and `act` after it, are done on images of this size; None where it takes more than `Convolution` knows."""
    attribute = None if act is None else FROM_OUTPUT.get(type(act))
    if (act is not None and attribute is None) or conv.padding_mode != "zeros":
        return None
    depthwise = is_depthwise(conv)
    if type(conv) is nn.Conv2d and not isinstance(conv.padding, str):
        padding = tuple(conv.padding)
        if not depthwise and attribute is None:
            return None  # nothing is gained
        if depthwise and any(pad >= kernel for pad, kernel in zip(padding, conv.kernel_size, strict=True)):
            return None
        before = behind = padding
    elif pads_like_tensorflow(conv) and depthwise:
        total = _padding_in_all(conv, size)
        before, behind = (total[0] // 2, total[1] // 2), ((total[0] + 1) // 2, (total[1] + 1) // 2)
    else:
        return None
    return How(
        _pair(conv.stride), _pair(before), _pair(behind), _pair(conv.dilation), conv.groups, depthwise, attribute
    )


def is_depthwise(conv: nn.Conv2d) -> bool:
    """Whether each channel has one kernel of its own, square, with one stride and no dilation."""
    square = len(set(conv.kernel_size)) == len(set(conv.stride)) == 1
    return square and conv.groups == conv.in_channels == conv.out_channels > 1 and tuple(conv.dilation) == (1, 1)


def _pair(values: Any) -> tuple[int, int]:
    first, second = values
    return int(first), int(second)


class Convolution(torch.autograd.Function):
    """A convolution and its activation; the gradients of a depthwise one avoid oneDNN's slow kernels.

    Slow are (672 channels, 14 px, 5x5, batch 16, 2 cores) the weight gradient of kernels above 3x3, 8.5 ms in float32
    and 24.7 in bfloat16, and the input gradient with stride 2, 25.4 ms in bfloat16. Here the former is put together
    from 3x3 blocks (in float32 with AVX-512 alone: without it they gain nothing), and the latter is a forward convolution
    with the flipped kernel over the gradient spread out.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, how: How) -> Tensor:  # type: ignore[override]
        out = _forward(images, _even(weight, how), bias, how)
        ctx.save_for_backward(images, weight, *([out] if how.act else []))
        ctx.how, ctx.has_bias = how, bias is not None
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        images, weight, *out = ctx.saved_tensors
        how: How = ctx.how
        wants = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.has_bias and ctx.needs_input_grad[2]]
        last = how.depthwise or images.is_contiguous(memory_format=torch.channels_last)
        grad = grad.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
        if how.act == "relu":
            grad = torch.ops.aten.threshold_backward(grad, out[0], 0)
        elif how.act == "hardtanh":
            grad = torch.ops.aten.hardtanh_backward(grad, out[0], *SCALARS["hardtanh"])
        if not how.depthwise:
            return *_aten(grad, images, weight, how.before, how, wants), None
        for_images = _image_gradient(grad, images, weight, how) if wants[0] else None
        for_weight = _weight_gradient(grad, images, weight, how) if wants[1] else None
        for_bias = None
        if wants[2]:
            for_bias = grad.sum((0, 2, 3), dtype=torch.promote_types(grad.dtype, torch.float32)).to(grad.dtype)
        return for_images, for_weight, for_bias, None


def _even(weight: Tensor, how: How) -> Tensor:
    """The kernel that gives the same with as much padding before the images as behind them."""
    rows, columns = how.uneven
    return F.pad(weight, (columns, 0, rows, 0)) if rows or columns else weight


def _forward(images: Tensor, weight: Tensor, bias: Tensor | None, how: How) -> Tensor:
    where = (how.stride, how.behind, how.dilation, how.groups)
    if how.act is None:
        return F.conv2d(images, weight, bias, *where)
    if images.dtype in (torch.float32, torch.bfloat16):
        stride, padding, dilation, groups = where
        return torch.ops.mkldnn._convolution_pointwise(
            images, weight, bias, padding, stride, dilation, groups, how.act, SCALARS.get(how.act, []), ""
        )
    out = F.conv2d(images, weight, bias, *where)
    return out.relu_() if how.act == "relu" else out.clamp_(*SCALARS[how.act])


def _aten(
    grad: Tensor, images: Tensor, weight: Tensor, padding: tuple[int, int], how: How, wants: list[bool]
) -> tuple[Tensor | None, ...]:
    where = (list(how.stride), list(padding), list(how.dilation), False, [0, 0], how.groups)
    return torch.ops.aten.convolution_backward(grad, images, weight, [len(weight)], *where, wants)


def _image_gradient(grad: Tensor, images: Tensor, weight: Tensor, how: How) -> Tensor:
    """Of a depthwise convolution."""
    if grad.dtype == torch.float32:
        gradient = _aten(grad, images, _even(weight, how), how.behind, how, [True, False, False])[0]
        assert gradient is not None
        return gradient
    kernel, stride = weight.shape[-1], how.stride[0]
    if stride > 1 or any(how.uneven):
        sides = [side + 2 * pad - kernel + 1 for side, pad in zip(images.shape[-2:], how.behind, strict=True)]
        spread = torch.empty((*grad.shape[:2], *sides), dtype=grad.dtype, memory_format=torch.channels_last).zero_()
        top, left = how.uneven
        spread[:, :, top::stride, left::stride][:, :, : grad.shape[-2], : grad.shape[-1]] = grad
        grad = spread
    padding = (kernel - 1 - how.behind[0], kernel - 1 - how.behind[1])
    return F.conv2d(grad, weight.flip(2, 3), None, 1, padding, 1, len(weight))


def _weight_gradient(grad: Tensor, images: Tensor, weight: Tensor, how: How) -> Tensor:
    """Of a depthwise convolution."""
    kernel, stride = weight.shape[-1], how.stride[0]
    (up, aside), (height, width) = how.before, images.shape[-2:]

    def block(inputs: Tensor, like: Tensor, padding: tuple[int, int]) -> Tensor:
        gradient = _aten(grad, inputs, like, padding, how, [False, True, False])[1]
        assert gradient is not None
        return gradient

    if kernel != 5 or (grad.dtype == torch.float32 and torch.backends.cpu.get_cpu_capability() != "AVX512"):
        if any(how.uneven):
            images = F.pad(images, (aside, how.behind[1], up, how.behind[0]))
        return block(images, weight, (0, 0) if any(how.uneven) else how.before)
    out = torch.empty_like(weight)
    high, wide = ((side - 1) * stride + 3 for side in grad.shape[-2:])
    like = weight[:, :, :3, :3]
    for top in (0, 2):
        for left in (0, 2):
            # The window of the padded images that this block of the kernel sees: F.pad cuts where it is negative.
            before, over = aside - left, up - top
            seen = F.pad(images, (before, wide - before - width, over, high - over - height))
            out[:, :, top : top + 3, left : left + 3] = block(seen, like, (0, 0))
    return out
