"""What stands around a run: torch's own settings, and an accelerator's memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from burnish.errors import ModelError, shown


@contextmanager
def settled_torch() -> Iterator[None]:
    """torch as a run needs it, whatever a notebook has set: gradients on, float32, tensors that begin on the CPU."""
    dtype, begin = torch.get_default_dtype(), torch.get_default_device()
    plain = torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()
    here = torch.device("cpu") if begin.type != "cpu" else nullcontext()
    torch.set_default_dtype(torch.float32)
    try:
        with plain, torch.enable_grad(), here:
            yield
    finally:
        torch.set_default_dtype(dtype)


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
