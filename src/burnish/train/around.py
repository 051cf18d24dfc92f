"""What stands around a run: torch's own settings, and an accelerator's memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from burnish.errors import ModelError, shown


@contextmanager
def settled_torch() -> Iterator[None]:
    """torch as a run needs it, whatever a notebook has set: gradients on, float32, tensors that begin on the CPU.

    On a CUDA device float32 is float32, and convolutions add in one order: TF32 keeps 10 bits of a number, so that scores
    would not be those of `predict`, and forms of a network that are the same would not be found so.
    """
    dtype, begin = torch.get_default_dtype(), torch.get_default_device()
    plain = torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()
    here = torch.device("cpu") if begin.type != "cpu" else nullcontext()
    torch.set_default_dtype(torch.float32)
    try:
        with plain, torch.enable_grad(), here, _exact_cuda():
            yield
    finally:
        torch.set_default_dtype(dtype)


@contextmanager
def _exact_cuda() -> Iterator[None]:
    """No TF32, and the same convolution each time."""
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    wanted = [
        (convolutions, "allow_tf32", False), (products, "allow_tf32", False),
        (convolutions, "deterministic", True), (convolutions, "benchmark", False),
    ]  # fmt: skip
    before = []
    for place, name, value in wanted:
        try:
            before.append((place, name, getattr(place, name)))
        except RuntimeError:  # a notebook has set the newer names, which the older do not tell
            continue
        setattr(place, name, value)
    try:
        yield
    finally:
        for place, name, value in before:
            setattr(place, name, value)


@contextmanager
def enough_memory(model: str) -> Iterator[None]:
    """ModelError with what helps, where an accelerator has too little memory."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise ModelError(
            f"{shown(model)} needs more memory than the device has; take a smaller --image-size, --batch-size or model, "
            "freeze more of it (--freeze N), or take --device cpu"
        ) from None
