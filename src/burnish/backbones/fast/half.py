"""bfloat16 on the CPU, where the processor multiplies it in hardware: which layers are fast, and what to do of the rest.

Twice the rate of float32 on matrix products (408 against 166 GFLOP/s on 2 Zen 4 cores), but oneDNN's gradients of
depthwise convolutions are slow: EfficientNet-Lite0 at 224 px trains at 34 images/s in float32, 18 under plain autocast,
57 with the gradients below. Weights, their moments and their averages stay float32 (arXiv:1710.03740).
"""

from __future__ import annotations

import functools
import platform
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from burnish.backbones.fast.fold import FoldedConv, fold_trainable, pads_like_tensorflow, same
from burnish.backbones.fast.reads import evaluated

# As fold.TOLERANCE, for bfloat16. Measured on photographs: EfficientNet-Lite0 0.06 to 0.11, with heads no worse for it
# (benchmarks/results/half.json); on noise ViT-S/16 0.014, ResNet-50 0.004.
HALF_TOLERANCE = 0.15


def has_half() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware; emulated it takes minutes."""
    return torch.backends.mkldnn.is_available() and _says("_is_avx512_bf16_supported")


def has_fast_half() -> bool:
    """Whether it does so faster than float32: with AMX, or as AMD does with AVX-512.

    Intel's AVX-512 does in a cycle as many products of bfloat16 as of float32, and converting comes besides. Virtual machines
    often hide AMX: on an Emerald Rapids without it ResNet-50 trains at two thirds of the speed of float32 (LOG.md).
    """
    return has_half() and (_says("_is_amx_tile_supported") or not _is_intel())


def _says(question: str) -> bool:
    known = getattr(torch.cpu, question, None)
    return known is not None and bool(known())


@functools.cache
def _is_intel(told: Path = Path("/proc/cpuinfo")) -> bool:
    with suppress(OSError, UnicodeDecodeError):
        return "GenuineIntel" in told.read_text()
    return "GenuineIntel" in platform.processor()


class Depthwise(torch.autograd.Function):
    """A depthwise convolution, square stride, dilation 1, whose gradients avoid oneDNN's slow kernels.

    Slow are (672 channels, 14 px, 5x5, batch 16, 2 cores) the weight gradient of kernels above 3x3, 8.5 ms in float32
    and 24.7 in bfloat16, and the input gradient with stride 2, 25.4 ms in bfloat16. Here the former is put together
    from 3x3 blocks, and the latter is a forward convolution with the flipped kernel over the gradient spread out.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(images, weight)
        ctx.stride, ctx.padding, ctx.has_bias = stride, padding, bias is not None
        return F.conv2d(images, weight, bias, stride, padding, 1, len(weight))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        images, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        for_images = _image_gradient(grad, images, weight, ctx.stride, ctx.padding) if ctx.needs_input_grad[0] else None
        for_weight = (
            _weight_gradient(grad, images, weight, ctx.stride, ctx.padding) if ctx.needs_input_grad[1] else None
        )
        for_bias = None
        if ctx.has_bias and ctx.needs_input_grad[2]:
            for_bias = grad.sum((0, 2, 3), dtype=torch.promote_types(grad.dtype, torch.float32)).to(grad.dtype)
        return for_images, for_weight, for_bias, None, None


def _image_gradient(grad: Tensor, images: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    kernel = weight.shape[-1]
    flipped = weight.flip(2, 3)
    height, width = images.shape[-2:]
    if stride > 1:
        shape = (*grad.shape[:2], height + 2 * padding - kernel + 1, width + 2 * padding - kernel + 1)
        spread = torch.empty(shape, dtype=grad.dtype, memory_format=torch.channels_last).zero_()
        spread[:, :, ::stride, ::stride] = grad
        grad = spread
    return F.conv2d(grad, flipped, None, 1, kernel - 1 - padding, 1, len(weight))


def _weight_gradient(grad: Tensor, images: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    kernel, channels = weight.shape[-1], len(weight)

    def block(inputs: Tensor, like: Tensor, pad: int) -> Tensor:
        return torch.ops.aten.convolution_backward(
            grad, inputs, like, None, [stride] * 2, [pad] * 2, [1, 1], False, [0, 0], channels, [False, True, False]
        )[1]

    if kernel != 5:
        return block(images, weight, padding)
    out = torch.empty_like(weight)
    high, wide = ((side - 1) * stride + 3 for side in grad.shape[-2:])
    height, width = images.shape[-2:]
    like = weight[:, :, :3, :3]
    for top in (0, 2):
        for left in (0, 2):
            up, aside = padding - top, padding - left
            # The window of the padded images that this block of the kernel sees: F.pad cuts where it is negative.
            seen = F.pad(images, (aside, wide - aside - width, up, high - up - height))
            out[:, :, top : top + 3, left : left + 3] = block(seen, like, 0)
    return out


class FoldedDepthwise(FoldedConv):
    """FoldedConv for the depthwise case; outside of autocast it is FoldedConv."""

    def forward(self, images: Tensor) -> Tensor:
        if images.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            # In float32 the copies cost what the kernels gain: 34.3 against 34.1 images/s
            return super().forward(images)
        conv, kind = self._conv[0], torch.get_autocast_dtype("cpu")
        weight, bias = self.folded()
        images, weight, bias, padding = images.to(kind), weight.to(kind), bias.to(kind), conv.padding
        if pads_like_tensorflow(conv):
            height, width = (
                max((-(-side // conv.stride[0]) - 1) * conv.stride[0] + conv.kernel_size[0] - side, 0)
                for side in images.shape[-2:]
            )
            if height == width and height % 2 == 0:
                padding = (height // 2, width // 2)
            else:
                images = F.pad(images, (width // 2, width - width // 2, height // 2, height - height // 2))
                padding = (0, 0)
        return Depthwise.apply(images, weight, bias, conv.stride[0], padding[0])


def fold_trainable_half(module: nn.Module, example: Tensor, *, inplace: bool = False) -> nn.Module:
    """`fold_trainable`, with depthwise convolutions that are fast under bfloat16 autocast on the CPU.

    They are taken back where the output is then not that of plain autocast within HALF_TOLERANCE.
    """
    folded = fold_trainable(module, example, inplace=inplace)
    if example.device.type != "cpu" or not has_half():
        return folded
    with torch.autocast("cpu", dtype=torch.bfloat16):  # without it FoldedDepthwise is FoldedConv: nothing to check
        expected = evaluated(folded, example)
        names = [name for name, layer in folded.named_modules() if _is_plain_depthwise(layer)]
        for name in names:
            folded.get_submodule(name).__class__ = FoldedDepthwise
        if not same(folded, example, expected, tolerance=HALF_TOLERANCE):
            for name in names:
                folded.get_submodule(name).__class__ = FoldedConv
    return folded


def _is_plain_depthwise(layer: nn.Module) -> bool:
    if not isinstance(layer, FoldedConv):
        return False
    conv = layer._conv[0]
    square = all(len(set(pair)) == 1 for pair in (conv.kernel_size, conv.stride) if not isinstance(pair, str))
    known = type(conv) is nn.Conv2d or pads_like_tensorflow(conv)
    padding = conv.padding
    # Only where the output follows from a padding below the kernel, so that the flipped convolution exists.
    small = not isinstance(padding, str) and len(set(padding)) == 1 and padding[0] < conv.kernel_size[0]
    depthwise = conv.groups == conv.in_channels == conv.out_channels > 1 and tuple(conv.dilation) == (1, 1)
    return known and square and small and depthwise and conv.padding_mode == "zeros"
