"""The frozen trunk over each image once, and logits of whole classifiers, in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import nn

from burnish.backbones.fast.half import has_fast_half
from burnish.backbones.fast.int8 import IMAGES, has_fast_int8, int8_form
from burnish.data.cache import Rows
from burnish.data.views import normalised
from burnish.terms import Preprocess

BATCH = 16  # images; on 2 cores 16, 32 and 64 run equally fast and 16 needs the least memory
_ROUNDED_FROM = 300  # images to see, from which making a form in 8 bits takes less time than it saves
_AT_ONCE = 64  # on an accelerator, which so few do not fill


def at_once(device: torch.device) -> int:
    """How many images go through a network at a time where none of it learns."""
    return BATCH if device.type == "cpu" else _AT_ONCE


def filled(images: np.ndarray, device: torch.device) -> np.ndarray:
    """The images, again and again where they are fewer than go through at a time: a rate is that of a full pass."""
    return _filled(images, at_once(device))


def _filled(images: np.ndarray, count: int) -> np.ndarray:
    return images[np.arange(max(len(images), count)) % len(images)]


def outputs(
    module: nn.Module,
    plain: Iterable[np.ndarray],
    *,
    preprocess: Preprocess,
    device: torch.device,
    half: bool = False,
    on_progress: Callable[[int], None] | None = None,
    together: int = _AT_ONCE,
) -> np.ndarray:
    """What `module` gives, float32 [n d], for batches of plain uint8 images [b s s 3], in their order.

    half: let an accelerator compute in bfloat16; what is scored is computed in float32, as `predict` does. together: images that
    an accelerator is given at a time. A batch that it has no memory for goes through in parts; fewer images than a full one are
    filled up, for it chooses its kernels anew for every number of them, which may take longer than they do.
    """
    found = []
    for pixels in plain if device.type == "cpu" else _gathered(plain, together):
        images = pixels if device.type == "cpu" else _filled(pixels, together)
        given = _given(module, images, preprocess, device, half=half and device.type != "cpu")
        found.append(np.concatenate(given)[: len(pixels)])
        if on_progress is not None:
            on_progress(len(pixels))
    return np.concatenate(found) if found else np.zeros((0, 0), np.float32)


def _given(
    module: nn.Module, pixels: np.ndarray, preprocess: Preprocess, device: torch.device, *, half: bool
) -> list[np.ndarray]:
    """What the module gives for one batch, float32 [b d], or for parts of it where the device has no memory for all."""
    try:
        with torch.inference_mode(), autocast(device, half):
            # Bytes travel, a quarter of what they are as numbers.
            out = module(normalised(torch.as_tensor(pixels).to(device), preprocess))
        return [out.float().cpu().numpy()]
    except torch.OutOfMemoryError:
        if len(pixels) == 1:
            raise
    # After the error is let go of, for it holds what was computed.
    parts = (_given(module, part, preprocess, device, half=half) for part in np.array_split(pixels, 2))
    return [one for part in parts for one in part]


def _gathered(parts: Iterable[np.ndarray], least: int) -> Iterator[np.ndarray]:
    """Batches put together until they have so many images."""
    held: list[np.ndarray] = []
    for part in parts:
        held.append(part)
        if sum(map(len, held)) >= least:
            yield np.concatenate(held)
            held = []
    if held:
        yield np.concatenate(held)


def batched(images: Rows, *, batch: int = BATCH) -> Iterator[np.ndarray]:
    """Slices of at most `batch` rows."""
    for start in range(0, len(images), batch):
        yield images[start : start + batch]


def autocast(device: torch.device, half: bool) -> torch.autocast:
    """bfloat16 for what gains by it, with float32 weights. On a CPU this is for training alone: see `backbones.fast.half`."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=half)


def takes_half(precision: str, device: torch.device) -> bool:
    """Whether bfloat16 may be used: asked for, or, with "auto", where the device is faster with it."""
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        with torch.cuda.device(device):  # it is asked of the current one
            return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and has_fast_half()


def takes_int8(precision: str, device: torch.device) -> bool:
    """Whether features of a frozen network may be computed in 8 bits: on a CPU that is fastest so, unless told otherwise."""
    return precision == "auto" and device.type == "cpu" and has_fast_int8()


def rounded_form(
    module: nn.Module, example: torch.Tensor, *, sees: int, precision: str, device: torch.device
) -> tuple[nn.Module, float] | None:
    """`int8_form` of a frozen network that will see so many images; None where it does not pay or is not to be had.

    example [b 3 s s]: network inputs spread over the set.
    """
    if sees < _ROUNDED_FROM or len(example) < IMAGES or not takes_int8(precision, device):
        return None
    return int8_form(module, example)
