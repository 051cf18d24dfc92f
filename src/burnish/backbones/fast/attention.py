"""The gradient of attention in bfloat16 on the CPU, from whole matrix products.

torch's own (2.14) goes through queries and keys in small blocks and takes 2 to 8 times as long in bfloat16: for 32 images of
ViT-S/16 50 ms a layer where these products take 19, for Swin's windows 149 and 19 (2 cores with AMX; float32 gains nothing).
With P the weights of attention, dV = Pᵀ dO, dS = P ∘ (dO Vᵀ − δ), δ = rowsum(dO ∘ O) (Dao et al. 2022, arXiv:2205.14135, B.4).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from burnish.backbones.fast.kernels import Kernel, replaced

_AT_ONCE = 2**23  # weights of attention held at a time, 16 MB; one image's where it has more


@contextmanager
def fast_attention_gradients(*, half: bool) -> Iterator[None]:
    """Within, gradients of `scaled_dot_product_attention` on the CPU in bfloat16 are those of `attention_gradients`.

    It holds for the whole process, whoever calls it. half: otherwise nothing is changed. Other number formats, masks and dropout
    stay torch's.
    """
    if not half:
        yield
        return
    with replaced("_scaled_dot_product_flash_attention_for_cpu_backward", _of_products):
        yield


def _of_products(own: Kernel) -> Kernel:
    def gradients(*given: Any, **others: Any) -> tuple[Tensor, Tensor, Tensor]:
        *tensors, dropout, causal = given
        query = tensors[1]
        scale = query.shape[-1] ** -0.5 if others.get("scale") is None else others["scale"]
        if query.dtype != torch.bfloat16 or dropout or causal or others.get("attn_mask") is not None or scale <= 0:
            return own(*given, **others)
        return attention_gradients(*tensors, scale=scale)

    return gradients


def attention_gradients(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, logsumexp: Tensor, *, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query [b h n d], key [b h m d] and value [b h m e] from that of out [b h n e], all of them bfloat16.

    logsumexp: float32 [b h n], of the scaled scores. scale: above 0.
    """
    each = max(1, _AT_ONCE // (query.shape[1] * query.shape[2] * key.shape[2] or 1))
    places = [slice(start, start + each) for start in range(0, max(1, len(query)), each)]
    given = (gradient, query, key, value, out, logsumexp)
    found = [_gradients(*(one[place] for one in given), scale=scale) for place in places]
    if len(found) == 1:
        return found[0]
    of_query, of_key, of_value = (torch.cat(parts) for parts in zip(*found, strict=True))
    return of_query, of_key, of_value


def _gradients(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, logsumexp: Tensor, *, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    exact = 2.0 ** round(math.log2(scale))  # by which nothing is rounded
    scores = _product(query * exact, key, less=logsumexp * (exact / scale))
    weights = (scores if exact == scale else scores.mul_(scale / exact)).exp_()
    of_value = weights.transpose(-2, -1) @ gradient
    of_scores = _product(gradient, value, less=(gradient.float() * out.float()).sum(-1)).mul_(weights)
    return (of_scores @ key).mul_(scale), (of_scores.transpose(-2, -1) @ query).mul_(scale), of_value


def _product(rows: Tensor, columns: Tensor, *, less: Tensor) -> Tensor:
    """rows [… n d] times columns [… m d] transposed, less a number for each row [… n], rounded after that alone.

    The number goes in as three more columns, for products are summed in float32 and given back in bfloat16: a score of 30 less a
    logsumexp of 30 would otherwise be off by up to an eighth, and the weight by as much.
    """
    parts, rest = [rows], -less.unsqueeze(-1)
    for _ in range(3):
        part = rest.to(rows.dtype)
        parts.append(part)
        rest = rest - part
    return torch.cat(parts, -1) @ torch.cat([columns, columns.new_ones(*columns.shape[:-1], 3)], -1).transpose(-2, -1)
