"""A package's weights in fewer bytes, and back: int8 with a scale for each output channel, or float16.

    "int8.trunk.conv.weight" int8 [o …] and "scale.trunk.conv.weight" float32 [o]:   w = scale · q
    "float16.head.weight" float16 [k d]

Round to nearest, symmetric, a scale for each output channel: Krishnamoorthi 2018, arXiv:1806.08342, section 3. What is read
back is float32 again, so that a network computes as with any other weights, at the same speed.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from burnish.errors import BadWeights, shown

FULL, HALF, BYTE = "float32", "float16", "int8"
STORED = (FULL, HALF, BYTE)  # the ways, in the order of what they take
_HALF, _BYTE, _SCALE = f"{HALF}.", f"{BYTE}.", "scale."
_FEWEST = 2048  # numbers of a tensor; those of fewer are a hundredth of a network, and some are all that a layer has
_MOST = 127  # of an int8, in either direction
_HEAD = "head."
_LARGEST = float(torch.finfo(torch.float16).max)


def packed(state: Mapping[str, Tensor], stored: str) -> dict[str, Tensor]:
    """The tensors as they are written; stored: one of STORED.

    As int8: weights of two and more dimensions with 2,048 numbers or more. The head is float16 then: it is small, and its
    rounding would turn answers directly. BatchNorms, biases, positions and what is no float32 stay as they are.
    """
    if stored == FULL:
        return dict(state)
    made: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not _is_weight(tensor):
            made[name] = tensor
        elif stored == HALF or name.startswith(_HEAD) or len(tensor) == 1:  # positions are [1 n d]: one scale for all
            made |= _halved(name, tensor)
        else:
            made |= _rounded(name, tensor)
    return made


def unpacked(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `packed`, float32 again; BadWeights where a tensor lacks its scale or is of another kind than it says."""
    made: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith(_SCALE):
            if _BYTE + name.removeprefix(_SCALE) not in tensors:
                raise _damaged(name, "is the scale of no weights")
            continue
        kind = next((one for one in (_HALF, _BYTE) if name.startswith(one)), "")
        own = name.removeprefix(kind)
        if own in made or (kind and own in tensors):
            raise _damaged(own, "is there twice")
        made[own] = tensor if not kind else _widened(name, tensor) if kind == _HALF else _scaled(own, tensor, tensors)
    return made


def stored_as(tensors: Mapping[str, Tensor]) -> str:
    """How the weights of a package are stored, one of STORED; tensors: as they were read."""
    return next((kind for kind in (BYTE, HALF) if any(name.startswith(f"{kind}.") for name in tensors)), FULL)


def _is_weight(tensor: Tensor) -> bool:
    return tensor.dtype == torch.float32 and tensor.ndim >= 2 and tensor.numel() >= _FEWEST


def _halved(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """As float16, or as it is where a number is too large for that."""
    if float(tensor.abs().max()) > _LARGEST:
        return {name: tensor}
    return {_HALF + name: tensor.to(torch.float16)}


def _rounded(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """As int8, with the scale of each output channel; one whose weights are all 0 has the scale 1."""
    rows = tensor.flatten(1)
    scale = rows.abs().amax(1) / _MOST
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    whole = torch.round(rows / scale[:, None]).clamp(-_MOST, _MOST).to(torch.int8)
    return {_BYTE + name: whole.reshape(tensor.shape), _SCALE + name: scale}


def _widened(name: str, tensor: Tensor) -> Tensor:
    if tensor.dtype != torch.float16:
        raise _damaged(name, f"is {tensor.dtype}, expected torch.float16")
    return tensor.float()


def _scaled(own: str, tensor: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """float32 again, of int8 [o …]."""
    scale = tensors.get(_SCALE + own)
    if tensor.dtype != torch.int8 or tensor.ndim < 2:
        raise _damaged(own, f"is {tensor.dtype} {list(tensor.shape)}, expected torch.int8 of two dimensions or more")
    if scale is None or scale.dtype != torch.float32 or scale.shape != tensor.shape[:1]:
        found = "none" if scale is None else f"{scale.dtype} {list(scale.shape)}"
        raise _damaged(own, f"has the scale {found}, expected torch.float32 [{len(tensor)}]")
    return (tensor.flatten(1).float() * scale[:, None]).reshape(tensor.shape)


def _damaged(name: str, what: str) -> BadWeights:
    return BadWeights(f"the package's {shown(name[:120])} {what}; it is damaged, make it again with burnish slim")
