"""An operation of torch's computed otherwise for a while, whoever calls it; and one that has to be, for it spoils memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Kernel = Callable[..., Any]
_SAFE_FROM = 16  # input channels of a group: as many as AVX-512 takes at a time


@contextmanager
def replaced(name: str, made: Callable[[Kernel], Kernel]) -> Iterator[None]:
    """Within, the operation `aten::name` is `made(own)` on the CPU, in the whole process; `own` is torch's kernel.

    Nothing is replaced where this torch has no such operation, or does not give its kernel (before 2.9).
    """
    if not hasattr(torch.library, "get_kernel") or not hasattr(torch.ops.aten, name):
        yield
        return
    kernel = torch.library.get_kernel(f"aten::{name}", "CPU")
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
    library = torch.library.Library("aten", "IMPL")
    try:
        library.impl(name, made(lambda *given, **how: kernel.call_boxed(keys, *given, **how)), "CPU")
        yield
    finally:
        library._destroy()


@contextmanager
def sound_strides() -> Iterator[None]:
    """Within, gradients of 1x1 convolutions with a stride and few input channels are taken of the pixels that they see.

    oneDNN's gradient of such weights writes past its memory in float32 (3.12, that of PyTorch 2.14; oneDNN issue 6035: below 16
    channels with AVX-512, below 8 with AVX2), as in the first layers of MobileOne and RepVGG: sooner or later a signal ends the
    process.
    """
    with replaced("convolution_backward", _of_pixels_seen):
        yield


def _of_pixels_seen(own: Kernel) -> Kernel:
    def gradients(
        grad: Tensor,
        images: Tensor,
        weight: Tensor,
        bias_sizes: Sequence[int] | None,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        transposed: bool,
        output_padding: Sequence[int],
        groups: int,
        wants: Sequence[bool],
    ) -> tuple[Tensor | None, ...]:
        rest = (dilation, transposed, output_padding, groups, wants)
        pointwise = weight.ndim == 4 and weight.shape[2:] == (1, 1) and max(stride) > 1 and not any(padding)
        if not pointwise or transposed or weight.shape[1] >= _SAFE_FROM or not wants[1]:
            return own(grad, images, weight, bias_sizes, stride, padding, *rest)
        down, across = stride[0], stride[-1]
        seen = images[:, :, ::down, ::across]
        found = own(grad, seen.clone(), weight, bias_sizes, [1, 1], [0, 0], *rest)
        if not wants[0]:
            return found
        whole = torch.zeros_like(images)
        whole[:, :, ::down, ::across] = found[0]
        return whole, *found[1:]

    return gradients
