"""What stands around a run: the device, torch's own settings, and memory."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from burnish.errors import ModelError, RecipeError, brief, is_short_of_memory, shown
from burnish.granted import threads_to_take
from burnish.recipe import DEVICES, is_device

_NO_MEMORY = re.compile(r"(CUDA|CUDNN|CUBLAS|HIP|MPS|cuDNN|cuBLAS).*(out of memory|ALLOC_FAILED)", re.DOTALL)

_Setting = tuple[Any, str, Any]  # of torch: where it is, its name, its value
# What each that is within them found: all are of the whole process, so the first one's is put back by the last.
_SETTLING, _BEFORE, _TOLD = threading.Lock(), list[torch.dtype](), list[list[_Setting]]()


@contextmanager
def settled_torch(*, cuda: bool = True) -> Iterator[None]:
    """torch as a run needs it, whatever a notebook has set: gradients on, float32, tensors that begin on the CPU, and no more
    threads than a container has cores.

    On a CUDA device float32 is float32, and convolutions add in one order: TF32 keeps 10 bits of a number, so that scores
    would not be those of `predict`, and forms of a network that are the same would not be found so. cuda: whether one may
    be used at all; else its settings stay as they are.
    """
    begin = torch.get_default_device()
    plain = torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()
    here = torch.device("cpu") if begin.type != "cpu" else nullcontext()
    with _few_threads(), _float32(), plain, torch.enable_grad(), here, _exact_cuda() if cuda else nullcontext():
        yield


@contextmanager
def _few_threads() -> Iterator[None]:
    """Where torch was loaded before burnish could say how many it should have."""
    before, most = torch.get_num_threads(), threads_to_take(os.environ)
    if most is None or before <= most:
        yield
        return
    torch.set_num_threads(most)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _float32() -> Iterator[None]:
    """New tensors are float32 in all threads, until the last that asked for it has left."""
    with _SETTLING:
        _BEFORE.append(torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        with _SETTLING:
            torch.set_default_dtype(_BEFORE[0] if len(_BEFORE) == 1 else torch.float32)
            _BEFORE.pop()


@contextmanager
def _exact_cuda() -> Iterator[None]:
    """No TF32, and the same convolution each time, in all threads, until the last that asked for it has left."""
    with _SETTLING:
        _TOLD.append(_made_exact())
    try:
        yield
    finally:
        with _SETTLING:
            if len(_TOLD) == 1:
                for place, name, value in _TOLD[0]:
                    setattr(place, name, value)
            _TOLD.pop()


def _made_exact() -> list[_Setting]:
    """Set what makes CUDA exact; what was set before, in the order in which it is put back."""
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    wanted = [
        (convolutions, "allow_tf32", False), (products, "allow_tf32", False),
        (convolutions, "deterministic", True), (convolutions, "benchmark", False),
    ]  # fmt: skip
    # By their newer names too: a notebook that allows TF32 everywhere has it for convolutions whatever the older name says, and
    # what was "as everywhere" before is so again afterwards.
    kinds = (convolutions.conv, convolutions.rnn, products)
    told: list[_Setting] = [(kind, "fp32_precision", kind.fp32_precision) for kind in kinds]
    before: list[_Setting] = []
    for place, name, value in wanted:
        try:
            before.append((place, name, getattr(place, name)))
        except RuntimeError:  # a notebook has set it by its newer name, which the older one does not tell
            place, name, value = getattr(place, "conv", place), "fp32_precision", "ieee"
            before.append((place, name, getattr(place, name)))
        setattr(place, name, value)
    for kind in kinds:
        if kind.fp32_precision == "tf32":
            kind.fp32_precision = "ieee"
    return [*before, *told]


@contextmanager
def enough_memory(model: str) -> Iterator[None]:
    """ModelError with what helps, where an accelerator, or this process, has too little memory."""
    try:
        yield
    # torch.OutOfMemoryError is one, and the device's own libraries have others.
    except (RuntimeError, MemoryError) as error:
        if is_short_of_memory(error):
            raise ModelError(
                f"{shown(model)} needs more memory than this machine gives the process (ulimit -v tells a limit); take "
                "a smaller --image-size, --batch-size or model, or freeze more of it (--freeze N)"
            ) from None
        if not isinstance(error, torch.OutOfMemoryError) and not _NO_MEMORY.search(str(error)):
            raise
        raise ModelError(
            f"{shown(model)} needs more memory than the device has; take a smaller --image-size, --batch-size or model, "
            "freeze more of it (--freeze N), or take --device cpu"
        ) from None


def accelerated() -> bool:
    """Whether there is a device faster than the processor that is taken without being named."""
    return torch.cuda.is_available() and _computes(torch.device("cuda"))


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" takes a CUDA device that computes. RecipeError for a named one that does not.

    An Apple GPU must be named: torch has had errors there in what is used here (channels_last, copies beside the work), and no
    run on one has been compared with the processor's.
    """
    if name == "auto":
        return torch.device("cuda" if accelerated() else "cpu")
    if not is_device(name):
        raise RecipeError(f"device is {shown(name)!r}, expected {DEVICES}")
    try:
        device = torch.device(name)
        _try(device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise RecipeError(f"device {name!r} cannot be used ({brief(error)}); see: burnish doctor") from None
    return device


def _computes(device: torch.device) -> bool:
    """Whether torch can add there: it may see a card that it has no kernels for."""
    try:
        _try(device)
    except (RuntimeError, AssertionError) as error:
        # It is in use: what needs memory says so. Where not even a context has room, torch has no kind of error for that.
        return isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error)
    return True


def _try(device: torch.device) -> None:
    (torch.ones(2, device=device) + 1.0).sum().item()
