"""Activations where the frozen stages end, computed once a view: what learns above never runs the trunk again.

Kept as float16, in memory or in an unnamed file as there is room; with no room for a single view of each image they are
computed anew in each step, which gives the same function and saves only the backward pass.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from burnish.data.store import DISK_SHARE, IN_MEMORY_BYTES, blank
from burnish.train.features import BATCH, autocast
from burnish.train.inputs import Inputs


@dataclass(frozen=True)
class KeptActivations:
    """Activations of some augmented views of each image; epoch e trains on view (e - 1) mod views."""

    views: np.ndarray  # float16 or float32 [v n ...], images with channels last
    inputs: Inputs

    @property
    def labels(self) -> np.ndarray:
        return self.inputs.labels

    def __len__(self) -> int:
        return len(self.inputs)

    def name(self, row: int, /) -> str:
        return self.inputs.name(row)

    def batch(self, rows: np.ndarray, /, *, epoch: int, size: int) -> torch.Tensor:
        return _unpacked(self.views[(epoch - 1) % len(self.views)][rows])


@dataclass(frozen=True)
class LiveActivations:
    """The same, computed when they are asked for."""

    inputs: Inputs
    lower: nn.Module
    device: torch.device
    half: bool

    @property
    def labels(self) -> np.ndarray:
        return self.inputs.labels

    def __len__(self) -> int:
        return len(self.inputs)

    def name(self, row: int, /) -> str:
        return self.inputs.name(row)

    def batch(self, rows: np.ndarray, /, *, epoch: int, size: int) -> torch.Tensor:
        return _through(self.lower, self.inputs.batch(rows, epoch=epoch, size=size), self.device, self.half)


def kept_or_live(
    inputs: Inputs,
    lower: nn.Module,
    *,
    views: int,
    size: int,
    device: torch.device,
    half: bool,
    on_progress: Callable[[int], None],
) -> tuple[KeptActivations | LiveActivations, str]:
    """The activations of as many views as there is room for, and what had to give ("" when nothing had).

    The bits depend on the inputs alone, so a resumed run that computes them again trains on the same ones.
    """
    chunks = np.array_split(np.arange(len(inputs)), max(1, math.ceil(len(inputs) / BATCH)))
    shape = _packed(_through(lower, inputs.batch(chunks[0][:1], epoch=1, size=size), device, half)).shape[1:]
    each = len(inputs) * math.prod(shape) * 2  # bytes of one view of every image
    room = DISK_SHARE * shutil.disk_usage(tempfile.gettempdir()).free
    held = min(views, max(1 if each <= IN_MEMORY_BYTES else 0, int(room / max(1, each))))
    kept = _blank_views(held, (len(inputs), *shape))
    if kept is None:
        why = f"activations of one view of each image need {each / 1e9:.1f} GB and there is no room: computed in each step"
        return LiveActivations(inputs, lower, device, half), why
    for view in range(held):
        for rows in chunks:
            found = _packed(_through(lower, inputs.batch(rows, epoch=view + 1, size=size), device, half))
            kept[view, rows] = np.clip(found, -65504.0, 65504.0)  # the range of float16
            on_progress(len(rows))
    why = f"room for the activations of {held} of {views} views" if held < views else ""
    return KeptActivations(kept, inputs), why


def plain_activations(lower: nn.Module, plain: Iterator[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """float32 activations of batches of network inputs, on the CPU."""
    return [_through(lower, images, device, half=False).cpu() for images in plain]


def _through(lower: nn.Module, images: torch.Tensor, device: torch.device, half: bool) -> torch.Tensor:
    with (
        torch.no_grad(),
        autocast(device, half and device.type != "cpu"),
    ):  # not inference_mode: live activations are trained on
        return lower(images.to(device, non_blocking=True)).float()


def _packed(activations: torch.Tensor) -> np.ndarray:
    """As they lie in memory: feature maps [b c h w] as [b h w c]."""
    found = activations.permute(0, 2, 3, 1) if activations.ndim == 4 else activations
    return found.cpu().contiguous().numpy()


def _unpacked(stored: np.ndarray) -> torch.Tensor:
    found = torch.from_numpy(stored.astype(np.float32))
    return found.permute(0, 3, 1, 2) if found.ndim == 4 else found


def _blank_views(count: int, shape: tuple[int, ...]) -> np.ndarray | None:
    if count < 1:
        return None
    try:
        return blank((count, *shape), np.float16)
    except OSError:  # the disk filled up in between
        return None
