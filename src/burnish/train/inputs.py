"""What the loop trains on: batches of network inputs by address, so that they can be made ahead, or again.

A batch is made in two halves. Its parts are cut or read by the processor, in threads where those help; what the device does
better, colours and number formats, it does itself, so that bytes travel and not floats.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Protocol

import numpy as np
import torch

from burnish.data.cache import Rows
from burnish.data.views import Augmentation, Crops, Windows, coloured, cropped, cut, windows
from burnish.terms import Preprocess

Parts = tuple[torch.Tensor, ...]


class Inputs(Protocol):
    """Training images as the trained module takes them."""

    @property
    def labels(self) -> np.ndarray: ...  # int64 [n]
    def __len__(self) -> int: ...
    def name(self, row: int, /) -> str:
        """The file behind a row, for errors."""
        ...

    def parts(self, rows: np.ndarray, /, *, epoch: int, size: int) -> Parts:
        """What the batch of these rows in this epoch is made of; the same arguments give the same bits (P7).

        Row + t · n is the same image, seen in another view for the t-th time that it comes again within the epoch.
        """
        ...

    def whole(self, parts: Parts, /) -> torch.Tensor:
        """The batch [b ...] of those parts, on their device."""
        ...


def batch_of(
    inputs: Inputs, rows: np.ndarray, *, epoch: int, size: int, device: torch.device | None = None
) -> torch.Tensor:
    """The batch of these rows, made whole on the device, or where its parts are."""
    found = inputs.parts(rows, epoch=epoch, size=size)
    return inputs.whole(found if device is None else _on(device, found))


def _on(device: torch.device, parts: Parts) -> Parts:
    return tuple(one.to(device, non_blocking=device.type == "cuda") for one in parts)


@dataclass(frozen=True)
class PixelViews:
    """Augmented views [b 3 s s], cut from stored pixels."""

    stored: Rows  # uint8 [N S S 3], N >= n
    rows: np.ndarray  # int64 [n], where each training image lies in `stored`
    aspects: np.ndarray  # float32 [n], width / height of the originals
    labels: np.ndarray  # int64 [n]
    ids: np.ndarray  # int64 [n], the catalogue's; they address the random draws
    paths: tuple[str, ...]  # [n]
    how: Augmentation  # its size is the step's
    preprocess: Preprocess
    seed: int
    # Whether the device cuts the views, of whole images that it is sent: a processor's threads feed no fast card (docs/how.md)
    cuts_there: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, row: int, /) -> str:
        return self.paths[row]

    def parts(self, rows: np.ndarray, /, *, epoch: int, size: int) -> Parts:
        """Crops and how their colours change, or whole images and what is drawn for them."""
        if not self.cuts_there:
            found = self.crops(rows, epoch=epoch, size=size)
            return found.pixels, found.matrices, found.offsets
        images, aspects, ids = self._addressed(rows)
        drawn = windows(
            aspects, ids, side=images.shape[1], seed=self.seed, epoch=epoch, how=replace(self.how, size=size)
        )
        return torch.from_numpy(images), drawn.centres, drawn.spans, drawn.borders, drawn.matrices, drawn.offsets

    def crops(self, rows: np.ndarray, /, *, epoch: int, size: int) -> Crops:
        """The views before their colours change, cut by the processor."""
        images, aspects, ids = self._addressed(rows)
        return cropped(images, aspects, ids, seed=self.seed, epoch=epoch, how=replace(self.how, size=size))

    def whole(self, parts: Parts, /) -> torch.Tensor:
        crops = Crops(*parts) if not self.cuts_there else cut(parts[0], Windows(*parts[1:]))
        return coloured(crops, self.preprocess)

    def _addressed(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Stored images uint8 [b S S 3] of these rows, their aspects and the addresses of what is drawn."""
        turns, rows = np.divmod(rows, len(self))
        return self.stored[self.rows[rows]], self.aspects[rows], self.ids[rows] + (turns << 40)


class Ahead:
    """Batches on the device, the next ones made by threads while a step runs; with 0 workers each is made when asked."""

    def __init__(self, inputs: Inputs, device: torch.device, workers: int) -> None:
        self.inputs, self.device, self.workers = inputs, device, workers
        # Beside an accelerator each cuts alone: teams of as many threads as cores for each of them held each other up. On a
        # processor what is computed must not depend on whether a thread does it.
        beside = self._alone if device.type != "cpu" else None
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="views", initializer=beside) if workers else None
        self._waiting: dict[tuple[int, int, int], Future[Parts]] = {}

    def __enter__(self) -> Ahead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            if self.device.type != "cpu":  # what its threads asked for themselves is the default of new ones too
                torch.set_num_threads(torch.get_num_threads())

    def _alone(self) -> None:
        """Of a thread that makes batches: it computes alone, and pins memory for the card that the run is on."""
        torch.set_num_threads(1)
        if self.device.type == "cuda" and self.device.index is not None:
            torch.cuda.set_device(self.device)

    def get(
        self,
        batches: Sequence[np.ndarray],
        position: int,
        *,
        epoch: int,
        size: int,
        following: Sequence[np.ndarray] = (),
    ) -> torch.Tensor:
        """The batch at `position` of the epoch's batches; those after it are begun, at the same size.

        following: the first ones of the next epoch, made while the network is looked at between the two.
        """
        if self._pool is None:
            return self._sent(self._made(batches[position], epoch, size))
        here = enumerate(batches[position : position + 1 + self.reach], start=position)
        wanted = {(epoch, place, size): rows for place, rows in here}
        after = following[: 1 + self.reach - len(wanted)]
        wanted |= {(epoch + 1, place, size): rows for place, rows in enumerate(after)}
        for stale in self._waiting.keys() - wanted.keys():  # the size changed, or the epoch
            self._waiting.pop(stale).cancel()
        for key, rows in wanted.items():
            if key not in self._waiting:
                self._waiting[key] = self._pool.submit(self._made, rows, key[0], size)
        return self._sent(self._waiting.pop((epoch, position, size)).result())

    @property
    def reach(self) -> int:
        """How many batches are begun before they are asked for."""
        return 2 * self.workers

    def _made(self, rows: np.ndarray, epoch: int, size: int) -> Parts:
        """What a thread can do of a batch: on a processor all of it."""
        found = self.inputs.parts(rows, epoch=epoch, size=size)
        if self.device.type == "cpu":
            return (self.inputs.whole(found),)
        if self.device.type == "cuda":
            return tuple(one.pin_memory() if one.device.type == "cpu" else one for one in found)
        return found

    def _sent(self, made: Parts) -> torch.Tensor:
        if self.device.type == "cpu":
            return made[0]
        return self.inputs.whole(_on(self.device, made))
