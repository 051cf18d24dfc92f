"""torch modules for what Keras layers do and torch has no layer for; maps lie [b c h w], tokens [b n c]."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Shape = tuple[int, ...]


class Conv2dSame(nn.Conv2d):
    """TensorFlow's "same" padding: as much as the stride asks for, the odd pixel at the end."""

    def forward(self, input: Tensor) -> Tensor:
        pads: list[int] = []
        for size, kernel, stride, dilation in zip(
            input.shape[:-3:-1], self.kernel_size[::-1], self.stride[::-1], self.dilation[::-1], strict=True
        ):
            pads += same_padding(size, kernel, stride, dilation)
        padded = F.pad(input, pads) if any(pads) else input
        return F.conv2d(padded, self.weight, self.bias, self.stride, (0, 0), self.dilation, self.groups)


def same_padding(size: int, kernel: int, stride: int, dilation: int = 1) -> list[int]:
    """Pixels before and after."""
    total = max((math.ceil(size / stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return [total // 2, total - total // 2]


class Call(nn.Module):
    """A function without weights as a layer."""

    def __init__(self, function: Callable[..., Tensor], words: str) -> None:
        super().__init__()
        self.function, self.words = function, words

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)

    def extra_repr(self) -> str:
        return self.words


class PoolSame(nn.Module):
    """Pooling with "same" padding; an average counts real pixels alone."""

    def __init__(self, size: Shape, stride: Shape, *, largest: bool) -> None:
        super().__init__()
        self.size, self.stride, self.largest = size, stride, largest

    def forward(self, images: Tensor) -> Tensor:
        pads = [
            *same_padding(images.shape[3], self.size[1], self.stride[1]),
            *same_padding(images.shape[2], self.size[0], self.stride[0]),
        ]
        if self.largest:
            return F.max_pool2d(F.pad(images, pads, value=-math.inf), self.size, self.stride)
        total = F.avg_pool2d(F.pad(images, pads), self.size, self.stride, divisor_override=1)
        ones = torch.ones(1, 1, *images.shape[2:], dtype=images.dtype, device=images.device)
        return total / F.avg_pool2d(F.pad(ones, pads), self.size, self.stride, divisor_override=1)


class Separable(nn.Module):
    """Depthwise, then pointwise."""

    def __init__(self, depthwise: nn.Module, pointwise: nn.Conv2d) -> None:
        super().__init__()
        self.depthwise, self.pointwise = depthwise, pointwise

    def forward(self, images: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(images))


class TokenNorm(nn.Module):
    """BatchNorm over tokens [b n c]."""

    def __init__(self, inner: nn.BatchNorm1d) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, tokens: Tensor) -> Tensor:
        return self.inner(tokens.transpose(1, 2)).transpose(1, 2)


class Scale(nn.Module):
    """x · scale + offset, each one number or one a channel; they are settings, not weights."""

    def __init__(self, scale: Sequence[float], offset: Sequence[float]) -> None:
        super().__init__()
        self.scale, self.offset = list(scale), list(offset)

    def forward(self, inputs: Tensor) -> Tensor:
        if len({*self.scale}) == len({*self.offset}) == 1:
            return inputs * self.scale[0] + self.offset[0]
        scale, offset = inputs.new_tensor(self.scale), inputs.new_tensor(self.offset)
        if inputs.ndim == 4:
            scale, offset = scale.reshape(-1, 1, 1), offset.reshape(-1, 1, 1)
        return inputs * scale + offset


class LayerScale(nn.Module):
    """A learnt factor for each channel (Touvron et al. 2021, arXiv:2103.17239)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * (self.weight.reshape(-1, 1, 1) if inputs.ndim == 4 else self.weight)


class DropPath(nn.Module):
    """Stochastic depth: a whole branch left out for some images while training (Huang et al. 2016, arXiv:1603.09382)."""

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.training or not self.drop_prob:
            return inputs
        kept = inputs.new_empty((len(inputs), *[1] * (inputs.ndim - 1))).bernoulli_(1 - self.drop_prob)
        return inputs * kept / (1 - self.drop_prob)


class Normalization(nn.Module):
    """(x − mean) / sqrt(variance), as Keras keeps them."""

    mean: Tensor
    variance: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))

    def forward(self, inputs: Tensor) -> Tensor:
        scale = self.variance.sqrt().clamp(min=1e-7)
        if inputs.ndim == 4:
            return (inputs - self.mean.reshape(-1, 1, 1)) / scale.reshape(-1, 1, 1)
        return (inputs - self.mean) / scale


class KerasAttention(nn.Module):
    """Keras's MultiHeadAttention (Vaswani et al. 2017, arXiv:1706.03762), and its grouped one, without masks."""

    def __init__(
        self, widths: tuple[int, int, int], heads: tuple[int, int], key: int, value: int, out: int, bias: bool
    ) -> None:
        """widths: of query, value and key; heads: of the query, and of key and value."""
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(widths[0], heads[0] * key, bias=bias)
        self.key = nn.Linear(widths[2], heads[1] * key, bias=bias)
        self.value = nn.Linear(widths[1], heads[1] * value, bias=bias)
        self.proj = nn.Linear(heads[0] * value, out, bias=bias)

    def forward(self, query: Tensor, value: Tensor, key: Tensor | None = None) -> Tensor:
        key = value if key is None else key
        many, few = self.heads
        q, k, v = (
            layer(tokens).unflatten(-1, (heads, -1)).transpose(1, 2)
            for layer, tokens, heads in ((self.query, query, many), (self.key, key, few), (self.value, value, few))
        )
        if many != few:
            k, v = (one.repeat_interleave(many // few, 1) for one in (k, v))
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class OnPlaces(nn.Module):
    """A layer for tokens, on the places of maps."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *maps: Tensor) -> Tensor:
        tokens = self.inner(*(one.flatten(2).transpose(1, 2) for one in maps))
        return tokens.transpose(1, 2).unflatten(2, maps[0].shape[2:])


class DotScores(nn.Module):
    """Products of each query with each key: [b n c], [b m c] to [b n m]."""

    def __init__(self, *, scaled: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(())) if scaled else None

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        scores = query @ key.transpose(1, 2)
        return scores if self.scale is None else scores * self.scale


class AdditiveScores(nn.Module):
    """Sums over the channels of tanh(query + key), each channel by its weight."""

    def __init__(self, width: int, *, scaled: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width)) if scaled else None

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        sums = torch.tanh(query[:, :, None] + key[:, None])
        return sums.sum(-1) if self.scale is None else sums @ self.scale


class WeightedMean(nn.Module):
    """For each query the mean of the values, weighted by the softmax of its scores."""

    def __init__(self, scores: nn.Module) -> None:
        super().__init__()
        self.scores = scores

    def forward(self, query: Tensor, value: Tensor, key: Tensor | None = None) -> Tensor:
        return self.scores(query, value if key is None else key).softmax(-1) @ value


class TokenConv(nn.Module):
    """A convolution along the tokens [b n c]; pads are zeros before and after them."""

    def __init__(self, inner: nn.Conv1d, *, same: bool) -> None:
        super().__init__()
        self.inner, self.same = inner, same

    def forward(self, tokens: Tensor) -> Tensor:
        rows, conv = tokens.transpose(1, 2), self.inner
        if self.same:
            pads = same_padding(rows.shape[2], conv.kernel_size[0], conv.stride[0], conv.dilation[0])
            rows = F.pad(rows, pads)
        return conv(rows).transpose(1, 2)


class PositionLookup(nn.Module):
    """An Embedding of fixed numbers: rows of a table."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(count, width))

    def forward(self, numbers: Tensor) -> Tensor:
        return F.embedding(numbers.long(), self.weight)


class Softmax(nn.Module):
    """Over the channels, or another axis [b c h w] or [b n c]."""

    def __init__(self, axis: int | None = None, *, log: bool = False) -> None:
        super().__init__()
        self.axis, self.log = axis, log

    def forward(self, inputs: Tensor) -> Tensor:
        axis = self.axis or (1 if inputs.ndim == 4 else -1)
        return inputs.log_softmax(axis) if self.log else inputs.softmax(axis)
