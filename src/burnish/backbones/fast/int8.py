"""Frozen features in whole numbers of 8 bits, where the processor multiplies those four times as fast as float32 (VNNI).

Weights and activations are rounded to 256 values (Jacob et al. 2018, arXiv:1712.05877): weights by output channel, what goes
into a layer between the smallest and largest value that some images show there. What only the next such layer reads stays bytes.
Two things keep the features near those of float32. The inputs of Linear layers, of whose channels a few are far larger than the
rest, are evened out by channel, and the weights take the factors (SmoothQuant, Xiao et al. 2023, arXiv:2211.10438). And the mean
of every output channel is put right on the same images (bias correction, Nagel et al. 2019, arXiv:1906.04721): it halves the
difference. Products are summed as whole numbers.

What is scored, and what `predict` answers, is computed in float32.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from burnish.backbones.fast.convolved import SCALARS, has_fused_kernel, padded_same, pads_like_tensorflow
from burnish.backbones.fast.fold import pairs_of
from burnish.backbones.fast.frozen import FrozenConv, PackedLinear, Packing, made_frozen
from burnish.backbones.fast.half import has_fast_half
from burnish.backbones.fast.reads import evaluated, read_once
from burnish.backbones.layers import replace

IMAGES = 12  # that ranges and means are taken from; 48 are no better (LOG.md)
# The difference of features from those of float32, over their spread about their mean, root mean squares.
TOLERANCE = 0.2
_POSITIONS = 4  # of an image; layers that see fewer, as gates of channels do, are not worth the rounding
_COLOURS = 3  # channels of images; the first layer is little work, and rounding images costs most
_MOST_INT8 = 127


def has_fast_int8() -> bool:
    """Whether this CPU multiplies bytes faster than any other numbers: AVX-512 with VNNI, and bfloat16 no faster than float32."""
    known = ("_is_avx512_supported", "_is_vnni_supported")
    return (
        torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.onednn, "qconv2d_pointwise")
        and hasattr(torch.ops.onednn, "qlinear_pointwise")
        and all(bool(getattr(torch.cpu, name, bool)()) for name in known)
        and not has_fast_half()
    )


def int8_form(module: nn.Module, images: Tensor) -> tuple[nn.Module, float] | None:
    """A frozen copy that computes convolutions and Linear layers in 8 bits, and how far its features are from those of float32.

    images [b 3 s s], network inputs of the kind that it will see; IMAGES of them are enough. Float32 goes in and comes out. None
    where the processor, or the network, has no such layers, or the features differ on these images by more than TOLERANCE.
    """
    if not has_fast_int8() or not has_fused_kernel(images):
        return None
    images = images.contiguous(memory_format=torch.channels_last)
    try:
        made = made_frozen(module, pairs_of(module, images[:2]), fused=True, packs=True)
        layers = {name: layer for name, layer in made.named_modules() if _can_be_int8(layer)}
        seen = _Seen(layers)
        readers, expected = read_once(made, layers, images, seen.told)
        chosen = {name for name in layers if seen.positions.get(name, 0) >= _POSITIONS * len(images)}
        if not chosen:
            return None
        _replaced(made, {name: layers[name] for name in layers if name in chosen}, readers, seen)
        found = _means_put_right(made, seen.means, images)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AttributeError, TypeError, NotImplementedError):  # it may look into a layer that was replaced
        return None
    apart = _spread_apart(found, expected)
    return (made, apart) if apart <= TOLERANCE else None


@dataclass(frozen=True)
class Grid:
    """The 256 values that bytes stand for: (byte − zero) · scale."""

    scale: float
    zero: int

    @classmethod
    def over(cls, least: float, most: float) -> Grid:
        """From the least value to the most; 0, which padding is, is one of them."""
        least, most = min(least, 0.0), max(most, 0.0)
        scale = max((most - least) / 255, 1e-12)
        return cls(scale, min(255, max(0, round(-least / scale))))

    def rounded(self, values: Tensor) -> Tensor:
        """The bytes [...] nearest to the values, in the same order in memory."""
        if not hasattr(torch, "quantize_per_tensor"):  # a single pass, that later versions of PyTorch may lack
            return (values / self.scale).round_().add_(self.zero).clamp_(0, 255).to(torch.uint8)
        made = torch.quantize_per_tensor(values, self.scale, self.zero, torch.quint8)
        plain = torch.empty(0, dtype=torch.uint8)
        return plain.set_(made.untyped_storage(), made.storage_offset(), made.size(), made.stride())


class _Int8(Packing):
    """A layer with weights in 8 bits; bytes or float32 go in, bytes where it has a grid for them or float32 come out."""

    weight: Tensor  # int8 [out ...]
    scale: Tensor  # float32 [out], of the weights
    zero: Tensor  # int32 [out], of the weights: none
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None, given: Grid, gives: Grid | None) -> None:
        super().__init__()
        each = (weight.abs().flatten(1).amax(1) / _MOST_INT8).clamp(min=1e-12)
        rounded = (weight / each.view(-1, *[1] * (weight.ndim - 1))).round().to(torch.int8)
        self.register_buffer("weight", rounded)
        self.register_buffer("scale", each)
        self.register_buffer("zero", torch.zeros(len(weight), dtype=torch.int32))
        self.register_buffer("bias", torch.zeros(len(weight)) if bias is None else bias.detach().clone())
        self.given, self.gives = given, gives

    def _written(self) -> tuple[float, int, torch.dtype]:
        """Scale, zero and type of what comes out."""
        return (1.0, 0, torch.float32) if self.gives is None else (self.gives.scale, self.gives.zero, torch.uint8)


class Int8Conv(_Int8):
    """A convolution, with the BatchNorm and the activation of a FrozenConv."""

    def __init__(self, layer: FrozenConv | nn.Conv2d, given: Grid, gives: Grid | None) -> None:
        super().__init__(layer.weight.detach(), layer.bias, given, gives)
        self._conv = (layer.settings if isinstance(layer, FrozenConv) else layer,)
        self.attribute = (layer.attribute if isinstance(layer, FrozenConv) else None) or "none"

    def forward(self, images: Tensor) -> Tensor:
        conv, weight = self._conv[0], self.weight
        padding = conv.padding
        if images.dtype != torch.uint8:
            images = self.given.rounded(images)
        if pads_like_tensorflow(conv):
            images, weight, padding = padded_same(images, weight, conv, zero=self.given.zero)
        where = (list(conv.stride), list(padding), list(conv.dilation), conv.groups)
        key = (images.shape[2:], weight.shape, min(len(images), torch.get_num_threads()))
        packed = self.kept.get(key)
        if packed is None:
            packed = self.keep(
                key,
                torch.ops.onednn.qconv_prepack(
                    weight, self.scale, self.given.scale, self.given.zero, *where, list(images.shape)
                ),
            )
        return torch.ops.onednn.qconv2d_pointwise(
            images, self.given.scale, self.given.zero, packed, self.scale, self.zero, self.bias, *where,
            *self._written(), self.attribute, SCALARS.get(self.attribute, []), "",
        )  # fmt: skip


class Int8Linear(_Int8):
    """A Linear layer, with the exact GELU of a PackedLinear; what goes in is divided by `even` by channel first."""

    even: Tensor | None

    def __init__(self, layer: PackedLinear, given: Grid, gives: Grid | None, even: Tensor | None) -> None:
        weight = layer.weight if even is None else layer.weight * even
        super().__init__(weight, layer.bias, given, gives)
        self.register_buffer("even", None if even is None else 1.0 / even)
        self.gelu = layer.gelu

    def forward(self, inputs: Tensor) -> Tensor:
        if inputs.dtype != torch.uint8:
            inputs = self.given.rounded(inputs if self.even is None else inputs * self.even)
        rows = inputs.numel() // inputs.shape[-1]
        packed = self.kept.get(rows)
        if packed is None:
            packed = self.keep(rows, torch.ops.onednn.qlinear_prepack(self.weight, [rows, inputs.shape[-1]]))
        return torch.ops.onednn.qlinear_pointwise(
            inputs, self.given.scale, self.given.zero, packed, self.scale, self.zero, self.bias,
            *self._written(), "gelu" if self.gelu else "none", [], "none" if self.gelu else "",
        )  # fmt: skip


def int8_count(module: nn.Module) -> int:
    """How many layers of a module from `int8_form` compute in 8 bits."""
    return sum(isinstance(layer, _Int8) for layer in module.modules())


@dataclass
class _Seen:
    """What the layers got and gave in float32 on some images, by their names."""

    layers: Mapping[str, nn.Module]
    given: dict[str, tuple[float, float]] = field(default_factory=dict)  # the least and the most
    gave: dict[str, tuple[float, float]] = field(default_factory=dict)
    most: dict[str, Tensor] = field(default_factory=dict)  # the largest of each channel that went into a Linear layer
    means: dict[str, Tensor] = field(default_factory=dict)  # of each channel that came out
    positions: dict[str, int] = field(default_factory=dict)  # of all images, that a weight met

    def told(self, name: str, given: Tensor, gave: Tensor) -> None:
        self.given[name], self.gave[name] = _range(given), _range(gave)
        linear = isinstance(self.layers[name], PackedLinear)
        if linear:
            self.most[name] = given.flatten(0, -2).abs().amax(0)
        self.means[name] = _means(gave, -1 if linear else 1)
        self.positions[name] = gave.numel() // len(self.means[name])


def _range(values: Tensor) -> tuple[float, float]:
    least, most = torch.aminmax(values)
    return least.item(), most.item()


def _means(values: Tensor, channel: int) -> Tensor:
    """The mean of each channel, float32 [c]."""
    return values.movedim(channel, -1).flatten(0, -2).mean(0)


def _can_be_int8(layer: nn.Module) -> bool:
    """Whether this layer of a packed form, or a plain convolution in it, has a twin here."""
    if layer._forward_hooks or layer._forward_pre_hooks:
        return False
    if isinstance(layer, PackedLinear):
        return True
    conv = layer.settings if isinstance(layer, FrozenConv) and layer.attribute is not None else layer
    if not isinstance(conv, nn.Conv2d) or not (type(conv) is nn.Conv2d or pads_like_tensorflow(conv)):
        return False
    plain = conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    return plain and conv.in_channels > _COLOURS


def _replaced(made: nn.Module, layers: Mapping[str, nn.Module], readers: Mapping[str, str], seen: _Seen) -> None:
    """Put the twins where these layers are; readers: as `read_once` gives them."""
    next_of = {name: reader for name, reader in readers.items() if name in layers and reader in layers}
    fed = set(next_of.values())
    grids = {reader: Grid.over(*seen.gave[name]) for name, reader in next_of.items()}
    evens: dict[str, Tensor] = {}
    for name, layer in layers.items():
        if name in fed:
            continue
        if isinstance(layer, PackedLinear):
            evens[name] = even = _evened(seen.most[name], layer.weight)
            most = (seen.most[name] / even).amax().item()
            grids[name] = Grid.over(-most, most)
        else:
            grids[name] = Grid.over(*seen.given[name])
    for name, layer in layers.items():
        gives = grids[next_of[name]] if name in next_of else None
        if isinstance(layer, PackedLinear):
            twin: nn.Module = Int8Linear(layer, grids[name], gives, evens.get(name))
        else:
            assert isinstance(layer, (FrozenConv, nn.Conv2d))
            twin = Int8Conv(layer, grids[name], gives)
        replace(made, name, twin)
    made.eval()


def _evened(most: Tensor, weight: Tensor) -> Tensor:
    """By what the channels [c] that go into weights [out c] are divided, so that both are as hard to round."""
    even = (most.clamp(min=1e-5) / weight.abs().amax(0).clamp(min=1e-5)).sqrt()
    return even / even.mean()


def _means_put_right(made: nn.Module, means: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """Move the biases until the means by channel are those of float32, layer after layer in one pass; the features then, [b d].

    Where an activation follows, or bytes come out, the bias is not what moves the mean.
    """

    def after(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        assert isinstance(layer, _Int8)
        channel = 1 if isinstance(layer, Int8Conv) else -1
        missing = means[names[layer]] - _means(output, channel)
        layer.bias += missing
        return output + (missing[:, None, None] if channel == 1 else missing)

    names = {layer: name for name, layer in made.named_modules() if isinstance(layer, _Int8) and layer.gives is None}
    names = {
        layer: name
        for layer, name in names.items()
        if not (isinstance(layer, Int8Linear) and layer.gelu) and getattr(layer, "attribute", "none") == "none"
    }
    handles = [layer.register_forward_hook(after) for layer in names]
    try:
        with (
            warnings.catch_warnings()
        ):  # that bytes with a scale may go, which `Grid.rounded` expects; said once a process
            warnings.simplefilter("ignore")
            return evaluated(made, images)
    finally:
        for handle in handles:
            handle.remove()


def _spread_apart(found: Tensor, expected: Tensor) -> float:
    """How far features [b d] are from those expected, over the spread of these about their mean; infinite where not numbers."""
    if found.shape != expected.shape or not bool(torch.isfinite(found).all()):
        return float("inf")
    spread = (expected - expected.mean(0)).norm().item()
    return (found - expected).norm().item() / max(spread, 1e-12)
