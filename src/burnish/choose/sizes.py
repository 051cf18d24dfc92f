"""At which sizes of images a network is asked and trained."""

from __future__ import annotations

import math

import torch

from burnish.choose.material import Bench

_LEAST = 0.57  # of the network's own size: 128 px of 224
_STEP = 32  # pixels: the stride of the usual trunks, so that no row of the last feature map is half padding


def sizes_up_to(native: int, *, one_size: bool = False) -> list[int]:
    """The network's own size and, unless it is the only one, the smaller ones that are worth a try; pixels, ascending."""
    least = math.ceil(_LEAST * native / _STEP) * _STEP
    return [native] if one_size else [*range(least, native, _STEP), native]


def takes(bench: Bench, size: int) -> bool:
    """Whether the network runs on images of this size: some want a multiple of a window of theirs."""
    try:
        module = bench.backbone.module.to(bench.device)  # not within: its weights would be no good for learning
        with torch.inference_mode():
            module(torch.zeros(1, 3, size, size, device=bench.device))
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except Exception:  # whatever a foreign forward pass says
        return False
    return True
