"""NumPy's archives of arrays (.npz), read without pickle; and vision transformers as Google's JAX keeps them in such files."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from burnish.archives import Zip
from burnish.errors import BadWeights, shown

State = dict[str, Tensor]
# Kinds of numbers that torch has too.
_KINDS = ("float16", "float32", "float64", "int8", "uint8", "int16", "int32", "int64", "bool")
_HEADERS: Any = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_MOST_DIMENSIONS = 8
_TARGET = "opt/target/"  # where the weights lie that were saved with their optimiser
_BLOCK = re.compile(r"Transformer/encoderblock_(\d+)/")
_ATTENTION = "MultiHeadDotProductAttention_1/"
_VIT = {
    "cls": "cls_token",
    "Transformer/posembed_input/pos_embedding": "pos_embed",
    "embedding/": "patch_embed.proj.",
    "Transformer/encoder_norm/": "norm.",
    "LayerNorm_0/": "norm1.",
    "LayerNorm_2/": "norm2.",
    "MlpBlock_3/Dense_0/": "mlp.fc1.",
    "MlpBlock_3/Dense_1/": "mlp.fc2.",
    f"{_ATTENTION}out/": "attn.proj.",
}


def is_npz(archive: Zip) -> bool:
    return bool(archive.members) and all(name.endswith(".npy") for name in archive.members)


def read_npz(data: bytes, label: str, *, packed: int | None = None) -> State:
    """The arrays in an archive as tensors, under timm's names where they are a vision transformer of Google's.

    BadWeights where one is damaged, or holds Python's objects or a kind of number that torch has not.
    """
    archive = Zip(data, label, packed=packed)
    found = {
        name.removesuffix(".npy"): _array(archive.read(name), f"{label} ({shown(name)})") for name in archive.members
    }
    found = {name.removeprefix(_TARGET): one for name, one in found.items()}
    if {"embedding/kernel", "Transformer/encoder_norm/scale"} <= found.keys():
        with suppress(KeyError, RuntimeError, IndexError):  # it only looked like one
            return _vit(found, label)
    return found


def _array(data: bytes, label: str) -> Tensor:
    """The one array in the bytes of a .npy file."""
    stream = io.BytesIO(data)
    try:
        shape, by_columns, kind = _HEADERS[np.lib.format.read_magic(stream)](stream)
    except Exception as error:  # NumPy meets anything in a damaged header
        raise BadWeights(
            f"{label}: a damaged array of NumPy's ({shown(str(error))[:80]}); fetch the file again"
        ) from None
    if kind.name not in _KINDS:
        raise BadWeights(
            f"{label}: an array of {shown(str(kind))[:40]}, which is not read; save the weights in float32"
        )
    held, told = len(data) - stream.tell(), kind.itemsize * math.prod(shape)
    if held != told or len(shape) > _MOST_DIMENSIONS or min(shape, default=0) < 0:
        raise BadWeights(f"{label}: an array that claims {list(shape)[:9]} numbers and holds {held:,} bytes; damaged")
    flat = np.frombuffer(data, kind, offset=stream.tell())
    whole = flat.reshape(shape, order="F" if by_columns else "C")
    return torch.from_numpy(whole.astype(kind.newbyteorder("="), order="C"))  # a copy, which may be written to


def _vit(state: Mapping[str, Tensor], label: str) -> State:
    """timm's names and layouts: kernels there end in what comes out, and heads are a dimension of their own."""
    width, heads, _ = state[f"Transformer/encoderblock_0/{_ATTENTION}query/kernel"].shape
    if heads != (16 if width == 1280 else width // 64):
        raise BadWeights(
            f"{label}: a vision transformer of {heads} heads of attention, which none of its width ({width}) has"
        )
    found: State = {}
    for name, one in state.items():
        if name.startswith("pre_logits/"):  # a layer between features and classifier
            continue
        told = _BLOCK.match(name)
        begin, rest = (f"blocks.{told[1]}.", name[told.end() :]) if told is not None else ("", name)
        if rest.startswith(_ATTENTION) and not rest.startswith(f"{_ATTENTION}out/"):
            if "/query/" in rest:
                parts = [state[name.replace("/query/", f"/{word}/")] for word in ("query", "key", "value")]
                flat = [part.flatten(1).T if rest.endswith("kernel") else part.flatten() for part in parts]
                found[f"{begin}attn.qkv.{_end(rest)}"] = torch.cat(flat)
            continue
        place = next((key for key in _VIT if rest == key or (key.endswith("/") and rest.startswith(key))), None)
        new = f"{begin}{rest.replace('/', '.')}" if place is None else f"{begin}{_VIT[place]}"
        found[new + _end(rest) if new.endswith(".") else new] = _turned(one, rest)
    return found


def _end(name: str) -> str:
    return "bias" if name.endswith("bias") else "weight"


def _turned(one: Tensor, name: str) -> Tensor:
    if not name.endswith("kernel"):
        return one
    if name.startswith(f"{_ATTENTION}out/"):
        return one.flatten(0, 1).T
    return one.permute(3, 2, 0, 1) if one.ndim == 4 else one.T
