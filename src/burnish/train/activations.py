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
from burnish.train.features import at_once, autocast
from burnish.train.inputs import Ahead, Inputs, Parts, batch_of

_NO_ROOM = "there is no room for activations: computed in each step"


@dataclass(frozen=True)
class KeptActivations:
    """Activations of some augmented views of each image; epoch e trains on view (e - 1) mod views, repetitions on the next."""

    views: np.ndarray  # float16 or float32 [v n ...], images with channels last
    inputs: Inputs

    @property
    def labels(self) -> np.ndarray:
        return self.inputs.labels

    def __len__(self) -> int:
        return len(self.inputs)

    def name(self, row: int, /) -> str:
        return self.inputs.name(row)

    def parts(self, rows: np.ndarray, /, *, epoch: int, size: int) -> Parts:
        turns, rows = np.divmod(rows, len(self))
        return (torch.from_numpy(self.views[(epoch - 1 + turns) % len(self.views), rows]),)

    def whole(self, parts: Parts, /) -> torch.Tensor:
        return _unpacked(parts[0])


@dataclass(frozen=True)
class LiveActivations:
    """The same, computed when they are asked for; views 0: of a new view in each epoch, and not rounded to float16."""

    inputs: Inputs
    lower: nn.Module
    device: torch.device
    half: bool
    views: int = 0

    @property
    def labels(self) -> np.ndarray:
        return self.inputs.labels

    def __len__(self) -> int:
        return len(self.inputs)

    def name(self, row: int, /) -> str:
        return self.inputs.name(row)

    def parts(self, rows: np.ndarray, /, *, epoch: int, size: int) -> Parts:
        if not self.views:
            return (_through(self.lower, self._images(rows, epoch, size), self.device, self.half),)
        turns, own = np.divmod(rows, len(self))
        wanted, found = (epoch - 1 + turns) % self.views, {}
        for view in np.unique(wanted):
            places = np.flatnonzero(wanted == view)
            images = self._images(own[places], int(view) + 1, size)
            each = _rounded(_packed(_through(self.lower, images, self.device, self.half)))
            found |= dict(zip(places.tolist(), each, strict=True))
        return (_unpacked(torch.from_numpy(np.stack([found[place] for place in range(len(rows))]))),)

    def whole(self, parts: Parts, /) -> torch.Tensor:
        return parts[0]

    def _images(self, rows: np.ndarray, epoch: int, size: int) -> torch.Tensor:
        return batch_of(self.inputs, rows, epoch=epoch, size=size, device=self.device)


def kept_or_live(
    inputs: Inputs,
    lower: nn.Module,
    *,
    views: int,
    size: int,
    device: torch.device,
    half: bool,
    on_progress: Callable[[int], None],
    settled: int | None = None,
    workers: int = 0,
) -> tuple[KeptActivations | LiveActivations, int, str]:
    """The activations of as many views as there is room for, how many those are, and what had to give ("" when nothing had).

    settled: how many views an earlier sitting trained on, whatever room there was; so that one that is taken up trains on
    the same. workers: threads that cut views ahead.
    """
    if settled == 0:
        return LiveActivations(inputs, lower, device, half), 0, _NO_ROOM
    chunks = np.array_split(np.arange(len(inputs)), max(1, math.ceil(len(inputs) / at_once(device))))
    first = batch_of(inputs, chunks[0][:1], epoch=1, size=size, device=device)
    shape = _packed(_through(lower, first, device, half)).shape[1:]
    each = len(inputs) * math.prod(shape) * 2  # bytes of one view of every image
    room = DISK_SHARE * shutil.disk_usage(tempfile.gettempdir()).free
    held = min(views, max(1 if each <= IN_MEMORY_BYTES else 0, int(room / max(1, each))))
    held = held if settled is None else settled if held >= settled else 0
    kept = _blank_views(held, (len(inputs), *shape))
    if kept is None:
        why = f"activations of one view of each image need {each / 1e9:.1f} GB and there is no room: computed in each step"
        return LiveActivations(inputs, lower, device, half, settled or 0), settled or 0, why
    with Ahead(inputs, device, workers) as ahead:
        for view in range(held):
            for place, rows in enumerate(chunks):
                images = ahead.get(chunks, place, epoch=view + 1, size=size)
                kept[view, rows] = _rounded(_packed(_through(lower, images, device, half)))
                on_progress(len(rows))
    why = f"room for the activations of {held} of {views} views" if held < views else ""
    return KeptActivations(kept, inputs), held, why


def plain_activations(
    lower: nn.Module, plain: Iterator[torch.Tensor], device: torch.device, *, count: int
) -> list[torch.Tensor] | None:
    """float32 activations of batches of network inputs, `count` in all, in memory or an unnamed file; None: no room."""
    kept, found, start = None, list[torch.Tensor](), 0
    for images in plain:
        packed = _packed(_through(lower, images, device, half=False))
        if kept is None:
            shape = (count, *packed.shape[1:])
            size = 4 * math.prod(shape)
            if size > max(IN_MEMORY_BYTES, DISK_SHARE * shutil.disk_usage(tempfile.gettempdir()).free):
                return None
            try:
                kept = blank(shape, np.float32)
            except OSError:
                return None
        kept[start : start + len(packed)] = packed
        found.append(_unpacked(torch.from_numpy(kept[start : start + len(packed)])))
        start += len(packed)
    return found


def live_activations(lower: nn.Module, plain: Iterator[torch.Tensor], device: torch.device) -> Iterator[torch.Tensor]:
    """What `plain_activations` gives, to the same bits, each batch when it is asked for."""
    return (_unpacked(torch.from_numpy(_packed(_through(lower, images, device, half=False)))) for images in plain)


def _rounded(activations: np.ndarray) -> np.ndarray:
    """As they are kept."""
    return np.clip(activations, -65504.0, 65504.0).astype(np.float16)


def _through(lower: nn.Module, images: torch.Tensor, device: torch.device, half: bool) -> torch.Tensor:
    """A batch that a device has no memory for goes through in parts."""
    try:
        with torch.no_grad(), autocast(device, half and device.type != "cpu"):
            return lower(images.to(device)).float()  # not in inference_mode: live activations are trained on
    except torch.OutOfMemoryError:
        if len(images) == 1:
            raise
    # After the error is let go of, for it holds what was computed.
    return torch.cat([_through(lower, part, device, half) for part in images.chunk(2)])


def _packed(activations: torch.Tensor) -> np.ndarray:
    """As they lie in memory: feature maps [b c h w] as [b h w c]."""
    found = activations.permute(0, 2, 3, 1) if activations.ndim == 4 else activations
    return found.cpu().contiguous().numpy()


def _unpacked(stored: torch.Tensor) -> torch.Tensor:
    found = stored.float()
    return found.permute(0, 3, 1, 2) if found.ndim == 4 else found


def _blank_views(count: int, shape: tuple[int, ...]) -> np.ndarray | None:
    if count < 1:
        return None
    try:
        return blank((count, *shape), np.float16)
    except OSError:  # the disk filled up in between
        return None
