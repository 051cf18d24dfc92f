"""The kernels of a gradient, recorded once for each shape of batch and then played as one (CUDA graphs).

A step of few images is hundreds of kernels that a card ends sooner than a processor launches them. What is recorded is
checked before it is used: where the card, the network or torch does not allow it, or what is played is not what was computed
without, each kernel is launched as usual, and that is said.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from burnish.errors import brief

VARIABLE = "BURNISH_CUDA_GRAPHS"  # "off": as usual, in each step
_SINCE = (2, 12)  # torch's version
_WARM_UPS = 3  # before recording: libraries choose and set up their kernels in the first ones
_REFUSALS = 3  # of so many networks, then none is tried any more
_KEPT = 2  # shapes; batches of one epoch differ by an image at the most
_TOLERANCE = 0.02  # of the gradient's length, which bfloat16 in another order may differ by

Play = Callable[[], None]
Work = Callable[[], Tensor]  # puts gradients in place and returns the loss, without waiting for either
Record = Callable[[Work], tuple[Play, Tensor]]  # what plays it again, into the same tensors, and the loss it plays into


@dataclass(frozen=True)
class _Recording:
    inputs: tuple[Tensor, ...]  # what is played reads them
    play: Play
    loss: Tensor
    gradients: tuple[tuple[nn.Parameter, Tensor], ...]  # and writes these


class Recordings:
    """Gradients of one network's batches, each shape of batch recorded when it first comes."""

    # Of which networks this process cannot, and why: each further try would cost memory that stays set apart.
    refused: ClassVar[dict[str, str]] = {}

    def __init__(
        self, record: Record | None, say: Callable[[str], None] = lambda text: None, *, of: str = "network"
    ) -> None:
        """record: how, None where nothing is recorded. say: takes the sentence when it turns out that it cannot be.

        of: the name of the network.
        """
        self._record, self._say, self._of = record, say, of
        self.seconds = 0.0  # that recording took, so that nobody takes them for those of a step
        self._kept: dict[tuple[object, ...], _Recording] = {}

    @classmethod
    def on(
        cls, device: torch.device, say: Callable[[str], None] = lambda text: None, *, of: str = "network"
    ) -> Recordings:
        """Of a device: only CUDA's can record.

        And only since torch 2.12: before, one that was refused left the device's generator as if it were still recording, so
        that nothing could be drawn any more (pytorch/pytorch#171263).
        """
        old = tuple(int(part) for part in torch.__version__.split(".")[:2]) < _SINCE
        if old or device.type != "cuda" or os.environ.get(VARIABLE, "").lower() in ("off", "0", "no"):
            return cls(None)
        found = cls(lambda work: cuda_graph(work, device), say, of=of)
        if of in cls.refused or len(cls.refused) >= _REFUSALS:
            found._stop(cls.refused.get(of) or next(iter(cls.refused.values())))
        return found

    @property
    def possible(self) -> bool:
        """Whether anything can be recorded, as far as is known."""
        return self._record is not None

    def gradient(
        self,
        module: nn.Module,
        learnt: Sequence[nn.Parameter],
        loss_of: Callable[..., Tensor],
        inputs: tuple[Tensor, ...],
    ) -> Tensor | None:
        """The loss `loss_of(*inputs)`, [1], the gradient of it in the learnt parameters; None where that is to be done as usual.

        loss_of must do the same work for inputs of the same shapes, draw nothing and wait for nothing.
        """
        if self._record is None:
            return None
        standing = _standing(module, inputs)
        found = self._kept.pop(standing, None)
        self._kept = dict(list(self._kept.items())[1 - _KEPT :])
        if found is None:
            began = time.monotonic()
            found = self._recorded(learnt, loss_of, inputs, self._record)
            self.seconds += time.monotonic() - began
            if found is None:
                return None
        self._kept[standing] = found
        for held, one in zip(found.inputs, inputs, strict=True):
            held.copy_(one)
        found.play()
        _put(learnt, found.gradients)
        return found.loss.reshape(1).clone()  # the next one that is played writes there

    def _recorded(
        self, learnt: Sequence[nn.Parameter], loss_of: Callable[..., Tensor], inputs: tuple[Tensor, ...], record: Record
    ) -> _Recording | None:
        """The work on copies of these inputs, played once and found right."""
        held = tuple(one.clone() for one in inputs)

        def work() -> Tensor:
            for parameter in learnt:
                parameter.grad = None  # so that the gradient is written, and not added to the last one
            loss = loss_of(*held)
            loss.backward()
            return loss.detach()

        try:
            expected = (work().item(), {id(one): one.grad for one in learnt if one.grad is not None})
            play, loss = record(work)
            found = _Recording(held, play, loss, tuple((one, one.grad) for one in learnt if one.grad is not None))
            play()
            same = _same(found, *expected)
        except torch.OutOfMemoryError:
            return self._stop("the device has no memory to record them")
        except RuntimeError as error:
            why = brief(error)
            self.refused[self._of] = why
            return self._stop(why)
        return found if same else self._stop("what was recorded gives another gradient")

    def _stop(self, why: str) -> None:
        self._record, self._kept = None, {}
        self._say(f"each step's kernels are launched one by one: {why}")


def cuda_graph(work: Work, device: torch.device) -> tuple[Play, Tensor]:
    """The work as a CUDA graph, warmed up and recorded in a stream of its own.

    Other threads go on pinning memory for the next batches meanwhile, which recording allows only of this thread's work. Where it
    fails all is as it was: `torch.cuda.graph` would leave its stream the current one, and the memory set apart for it.
    """
    with torch.cuda.device(device):
        stream, graph, pool = torch.cuda.Stream(device), torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                work()
            torch.cuda.synchronize(device)
            torch.cuda.empty_cache()  # what the warm-up held is asked for again by the recording
            graph.capture_begin(pool, capture_error_mode="thread_local")
            try:
                loss = work()
            except BaseException:
                with suppress(RuntimeError):  # it says again what is raised
                    _end(graph, pool)
                raise
            _end(graph, pool)
        torch.cuda.current_stream(device).wait_stream(stream)
    return graph.replay, loss


def _end(graph: torch.cuda.CUDAGraph, pool: tuple[int, int]) -> None:
    """The recording's end; where it failed, some versions of torch go on setting memory apart until they are told."""
    try:
        graph.capture_end()
    except RuntimeError:
        with suppress(RuntimeError, AttributeError):
            torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
        raise


def _standing(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[object, ...]:
    """All that a recording takes for granted: shapes, where weights lie in memory, and which of them learn."""
    shapes = tuple((one.shape, one.stride(), one.dtype) for one in inputs)
    weights = tuple((one.data_ptr(), one.requires_grad) for one in module.parameters())
    return (*shapes, *weights, *(one.data_ptr() for one in module.buffers()))


def _put(learnt: Sequence[nn.Parameter], gradients: tuple[tuple[nn.Parameter, Tensor], ...]) -> None:
    for parameter in learnt:
        parameter.grad = None
    for parameter, gradient in gradients:
        parameter.grad = gradient


def _same(found: _Recording, loss: float, gradients: dict[int, Tensor]) -> bool:
    """Whether what was played is what was computed; never so where that is not a number."""
    if {id(one) for one, _ in found.gradients} != set(gradients) or not gradients:
        return False
    apart = torch.stack([(one.float() - gradients[id(parameter)].float()).norm() for parameter, one in found.gradients])
    length = torch.stack([one.float().norm() for one in gradients.values()]).norm().item()
    close = abs(found.loss.item() - loss) <= _TOLERANCE * max(1.0, abs(loss))
    return close and apart.norm().item() <= _TOLERANCE * length
