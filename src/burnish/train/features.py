"""The frozen trunk over each image once, and logits of whole classifiers, in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import nn

from burnish.data.cache import Rows
from burnish.data.views import normalised
from burnish.terms import Preprocess

BATCH = 32  # images; on 2 cores 32 and 64 run equally fast and 32 needs half the memory


def outputs(
    module: nn.Module,
    plain: Iterable[np.ndarray],
    *,
    preprocess: Preprocess,
    device: torch.device,
    on_progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """What `module` gives, float32 [n d], for batches of plain uint8 images [b s s 3], in their order."""
    found = []
    for pixels in plain:
        with torch.inference_mode(), autocast(device):
            out = module(normalised(pixels, preprocess).to(device, non_blocking=True))
        found.append(out.float().cpu().numpy())
        if on_progress is not None:
            on_progress(len(pixels))
    return np.concatenate(found) if found else np.zeros((0, 0), np.float32)


def batched(images: Rows, *, batch: int = BATCH) -> Iterator[np.ndarray]:
    """Slices of at most `batch` rows."""
    for start in range(0, len(images), batch):
        yield images[start : start + batch]


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 where the accelerator has it; on CPUs convolutions in bfloat16 fall off a cliff (see LOG.md), so off."""
    on = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=on)
