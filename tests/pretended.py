"""A CUDA device that is not there: its tensors hold real numbers on the CPU, and refuse what a real one refuses.

Tensors on it cannot be turned into arrays, nor meet tensors of the CPU in one operation, nor be written to files. So a whole
run shows, on a machine without an accelerator, whether every tensor is where it must be. It shows nothing of speed, of
CUDA's own kernels, nor of autocast, which torch switches off where there is no CUDA.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("cuda:0")
_BETWEEN = ("aten::copy_", "aten::_to_copy", "aten::to", "aten::index", "aten::index_put", "aten::index_put_",
            "aten::_index_put_impl_")  # fmt: skip


class There(torch.Tensor):
    """A tensor of the device; `held` has its numbers."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> There:
        return torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            layout=held.layout, device=held.device,
        )  # fmt: skip

    def __init__(self, held: torch.Tensor) -> None:
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _done(func, args, kwargs or {})

    @property
    def device(self) -> torch.device:
        return DEVICE  # torch's own code below Python takes it for a tensor of the CPU

    @property
    def is_cuda(self) -> bool:
        return True

    @property
    def is_cpu(self) -> bool:
        return False

    def cpu(self, memory_format: torch.memory_format = torch.preserve_format) -> torch.Tensor:
        assert not (self.requires_grad and torch.is_grad_enabled()), "gradients do not leave the pretended device"
        return self.held.detach().clone(memory_format=memory_format)

    def to(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        device, dtype, _, layout = torch._C._nn._parse_to(*args, **kwargs)
        keep = {} if layout is None else {"memory_format": layout}
        if device is None or device.type == "cuda":
            wanted = self if dtype is None or dtype == self.dtype else self.type(dtype)
            return wanted.contiguous(**keep) if keep else wanted
        return self.cpu().to(dtype or self.dtype, **keep)

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"There({self.held.detach()!r})"

    def numpy(self, *, force: bool = False) -> Any:
        if force:
            return self.cpu().numpy()
        raise TypeError("can't convert cuda:0 device type tensor to numpy; use Tensor.cpu() first")


def _done(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, torch.Tensor)]
    there = [one for one in tensors if isinstance(one, There)]
    strangers = [one for one in tensors if not isinstance(one, There) and one.ndim > 0]
    name = func._schema.name
    if there and strangers and name not in _BETWEEN:
        raise RuntimeError(f"{name}: expected all tensors to be on the same device, found cuda:0 and cpu")
    if name.startswith("aten::index") and strangers and any(one is args[0] for one in strangers) and there:
        raise RuntimeError(f"{name}: indices should be on the same device as the indexed tensor (cpu)")
    at = "cuda" if there else "cpu"
    if name == "aten::copy_":
        at = "cuda" if isinstance(args[0], There) else "cpu"
    inner = tree_map(lambda one: one.held if isinstance(one, There) else one, (args, kwargs))
    found = func(*inner[0], **inner[1])
    if at == "cpu":
        return args[0] if name == "aten::copy_" else found
    found = tree_map(lambda one: There(one) if isinstance(one, torch.Tensor) else one, found)
    return return_and_correct_aliasing(func, args, kwargs, found)


def _there(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _making(make: Any) -> Any:
    """A function of torch that makes tensors, on the device too."""

    def made(*args: Any, **kwargs: Any) -> Any:
        if not _there(kwargs.get("device")):
            return make(*args, **kwargs)
        held = make(*args, **{**kwargs, "device": "cpu", "requires_grad": False})
        return There(held).requires_grad_(kwargs.get("requires_grad", False))

    return made


@contextmanager
def pretended(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """Within it "cuda" is a device of this machine."""
    _device_constructors()  # which torch lists once, and by the functions that are there then
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self, *_: self)
    for name, value in {
        "is_available": lambda: True, "is_bf16_supported": lambda *_, **__: True, "synchronize": lambda *_: None,
        "device_count": lambda: 1, "manual_seed": lambda *_: None, "device": lambda *_: nullcontext(),
        "get_device_name": lambda *_: "a device that is not there",
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    fork = torch.random.fork_rng
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices=(), **_: fork(devices=[]))
    for name in ("empty", "zeros", "ones", "full", "tensor", "as_tensor", "arange", "linspace", "eye", "rand", "randn",
                 "randint", "randperm"):  # fmt: skip
        monkeypatch.setattr(torch, name, _making(getattr(torch, name)))
    stay = torch.Tensor.to

    def to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if "copy" in kwargs:  # which torchvision says, of tensors of the CPU
            return stay(self, *args, **kwargs)
        device, dtype, _, layout = torch._C._nn._parse_to(*args, **kwargs)
        if not _there(device):
            return stay(self, *args, **kwargs)
        held = self.detach().clone(memory_format=layout or torch.preserve_format)
        return There(held if dtype is None else stay(held, dtype))

    monkeypatch.setattr(torch.Tensor, "to", to)
    for name in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check"):
        monkeypatch.setattr(torch.optim.Optimizer, name, lambda self: None, raising=False)
    # Wrapped tensors have views that it does not allow.
    monkeypatch.setattr(torch, "inference_mode", lambda mode=True: torch.no_grad() if mode else nullcontext())
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        yield DEVICE
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
