"""bfloat16 on the CPU, where the processor multiplies it in hardware: which layers are fast, and what to do of the rest.

Twice the rate of float32 on matrix products (408 against 166 GFLOP/s on 2 Zen 4 cores), but oneDNN's gradients of
depthwise convolutions are slow: EfficientNet-Lite0 at 224 px trains at 34 images/s in float32, 18 under plain autocast,
57 with the gradients of `convolved`. Weights, their moments and their averages stay float32 (arXiv:1710.03740).
"""

from __future__ import annotations

import functools
import platform
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from burnish.backbones.fast.fold import FoldedConv, fold_trainable, plainly_convolved, same
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


def fold_trainable_half(module: nn.Module, example: Tensor, *, inplace: bool = False) -> nn.Module:
    """`fold_trainable`, for training under bfloat16 autocast on the CPU.

    Convolutions are torch's own, one by one with their activations, where the output is otherwise not that of plain autocast
    within HALF_TOLERANCE.
    """
    folded = fold_trainable(module, example, inplace=inplace)
    if example.device.type != "cpu" or not has_half():
        return folded
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with plainly_convolved(folded):
            expected = evaluated(folded, example)
        if not same(folded, example, expected, tolerance=HALF_TOLERANCE):
            for layer in folded.modules():
                if isinstance(layer, FoldedConv):
                    layer.plain = True
    return folded
