"""The fast frozen form of a network for the CPU: BatchNorm and activations inside convolutions, weights packed once.

EfficientNet-Lite0 at 224 px on 2 cores with AVX-512: 57 images/s in channels_last, 158 folded, 170 packed, 314 in
bfloat16 (docs/speed.md).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from burnish.backbones.fast.convolved import SCALARS, has_fused_kernel, padded_same, pads_like_tensorflow
from burnish.backbones.fast.fold import FUSED, Pair, convolved, emptied, folded_weight, pairs_of, same
from burnish.backbones.fast.half import HALF_TOLERANCE, has_half
from burnish.backbones.fast.reads import evaluated
from burnish.backbones.layers import replace

# Of a form that waits for other weights; making that of a larger network is little beside its answers.
_HELD_BYTES = 2**28
_SHAPES_KEPT = 4  # packed forms of one weight: it depends on the size of the images


def fold_for_inference(module: nn.Module, example: Tensor, *, half: bool = False) -> nn.Module:
    """A frozen copy, in channels_last and eval mode, of the same function and as fast as plain PyTorch makes it.

    The output agrees with the module's within TOLERANCE on the example [b 3 s s]; forms that fail this check are left
    for the next plainer one: weights packed, activations inside convolutions, BatchNorms folded, only channels_last. It
    shares nothing with `module`, learns nothing, and its state dict is its own.

    half: compute in bfloat16 where the processor does so in hardware and the output stays within HALF_TOLERANCE;
    float32 goes in and comes out all the same.
    """
    expected, pairs = evaluated(module, example), pairs_of(module, example)
    made, packs, _ = _fastest(module, pairs, example, expected)
    if half and packs and has_half():
        candidate = _Half(copy.deepcopy(made).to(torch.bfloat16)).eval()
        if same(candidate, example, expected, tolerance=HALF_TOLERANCE):
            return candidate
    return made


class FastForm:
    """`fold_for_inference`, in float32, of a network whose weights change: made once, after that given its weights.

    Looking for what can be folded, copying and packing anew takes longer than the answers to a hundred images.
    """

    def __init__(self) -> None:
        self._made: nn.Module | None = None
        self._pairs: Sequence[Pair] = ()

    def of(self, module: nn.Module, example: Tensor) -> nn.Module:
        """The fast form of a module of the same structure as the one before, whose form it takes the place of.

        The same bits as one made anew: where the weights cannot all be given to it, or it does not agree with the module on the
        example [b 3 s s], it is.
        """
        expected = evaluated(module, example)
        if (
            self._made is not None
            and _refilled(self._made, module, self._pairs)
            and same(self._made, example, expected)
        ):
            return self._made
        self._pairs = pairs_of(module, example)
        made, _, first = _fastest(module, self._pairs, example, expected)
        # A plainer form is made anew each time: with other weights a faster one may agree.
        size = sum(one.numel() * one.element_size() for one in (*made.parameters(), *made.buffers()))
        self._made = made if first and size <= _HELD_BYTES else None
        return made


def _fastest(
    module: nn.Module, pairs: Sequence[Pair], example: Tensor, expected: Tensor
) -> tuple[nn.Module, bool, bool]:
    """(a copy in the fastest form that gives what is expected, whether its weights are packed, whether no form is faster); the
    plainest where none gives it.
    """
    kernels = has_fused_kernel(example)
    forms = [(packs, folds, fused) for packs, folds, fused in _FORMS
             if (kernels or not (packs or fused)) and (pairs or not folds)]  # fmt: skip
    for packs, folds, fused in forms:
        made = made_frozen(module, pairs if folds else [], fused=fused, packs=packs)
        if same(made, example, expected):
            return made, packs, (packs, folds, fused) == forms[0]
    return made_frozen(module, [], fused=False, packs=False), False, not forms


def _refilled(made: nn.Module, module: nn.Module, pairs: Sequence[Pair]) -> bool:
    """Give a form the weights of a module of the structure that it was made from; False where it holds others than it finds."""
    folded, layers = {pair.conv: pair.norm for pair in pairs}, dict(module.named_modules())
    values = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    with torch.no_grad():
        for name, other in folded.items():
            conv, norm = layers.get(name), layers.get(other)
            if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
                return False
            weight, bias = folded_weight(conv, norm)
            values |= {f"{name}.weight": weight, f"{name}.bias": bias}
        held = {**dict(made.named_parameters()), **dict(made.named_buffers())}
        if any(name not in values or values[name].shape != one.shape for name, one in held.items()):
            return False
        for name, one in held.items():
            one.copy_(values[name])
    for layer in made.modules():
        if isinstance(layer, Packing):
            layer.kept = {}
    return True


def frozen_count(module: nn.Module) -> int:
    """How many BatchNorms are folded in a module from `fold_for_inference`; 0 if it fell back."""
    return sum(isinstance(layer, FrozenConv) for layer in module.modules())


def is_half(module: nn.Module) -> bool:
    """Whether a module from `fold_for_inference` computes in bfloat16."""
    return isinstance(module, _Half)


class Packing(nn.Module):
    """A layer with constant weights, kept in oneDNN's own order for each shape of input that it has met."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[Any, Tensor] = {}

    def keep(self, key: Any, packed: Tensor) -> Tensor:
        self.kept = {**dict(list(self.kept.items())[1 - _SHAPES_KEPT :]), key: packed}
        return packed

    def __deepcopy__(self, memo: dict[int, Any]) -> Packing:
        double = self.__class__.__new__(self.__class__)
        memo[id(self)] = double
        double.__dict__ = copy.deepcopy({**self.__dict__, "kept": {}}, memo)  # packed tensors cannot be copied
        return double

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "kept": {}}  # nor pickled

    def _apply(self, fn: Any, recurse: bool = True) -> nn.Module:  # to another device or number format
        self.kept = {}
        return super()._apply(fn, recurse)


class FrozenConv(Packing):
    """Convolution, BatchNorm and activation as one step with constant weights; takes no gradient.

    On the CPU the activation is applied inside the convolution by oneDNN; elsewhere one after the other.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d, act: nn.Module | None, *, fused: bool) -> None:
        super().__init__()
        with torch.no_grad():
            weight, bias = folded_weight(conv, norm)
        self.register_buffer("weight", weight.detach().clone())
        self.register_buffer("bias", bias.detach().clone())
        self._conv = (emptied(conv),)
        self.act = act or nn.Identity()
        self.attribute = FUSED.get(type(self.act)) if fused else None
        self.packs = False

    @property
    def settings(self) -> nn.Conv2d:
        """The convolution that it was, without its weights."""
        return self._conv[0]

    def forward(self, images: Tensor) -> Tensor:
        conv = self.settings
        if self.attribute is None or images.device.type != "cpu" or not self._kernel_takes(images):
            return self.act(convolved(conv, images, self.weight, self.bias))
        weight, padding = self.weight, conv.padding
        if pads_like_tensorflow(conv):
            images, weight, padding = padded_same(images, weight, conv)
        where = (list(padding), list(conv.stride), list(conv.dilation), conv.groups)
        if self.packs:
            # Of the batch only whether each core has an image of its own: there another order is fast. Any is right.
            key = (images.shape[2:], weight.shape, min(len(images), torch.get_num_threads()))
            packed = self.kept.get(key)
            if packed is None:
                packed = self.keep(
                    key, torch.ops.mkldnn._reorder_convolution_weight(weight, *where, list(images.shape))
                )
            weight = packed
        return torch.ops.mkldnn._convolution_pointwise(
            images, weight, self.bias, *where, self.attribute, SCALARS.get(self.attribute, []), ""
        )

    def _kernel_takes(self, images: Tensor) -> bool:
        return images.dtype == self.weight.dtype and images.dtype in (torch.float32, torch.bfloat16)

    def extra_repr(self) -> str:
        return self.settings.extra_repr() + ", with BatchNorm"


class PackedLinear(Packing):
    """A Linear with constant weights, and the exact GELU after it if asked; takes no gradient."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear, *, gelu: bool) -> None:
        super().__init__()
        self.register_buffer("weight", linear.weight.detach().clone())
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())
        self.gelu = gelu

    def forward(self, inputs: Tensor) -> Tensor:
        if inputs.device.type != "cpu" or inputs.dtype != self.weight.dtype:
            out = F.linear(inputs, self.weight, self.bias)
            return F.gelu(out) if self.gelu else out
        rows = inputs.numel() // inputs.shape[-1]
        packed = self.kept.get(rows)
        if packed is None:
            packed = self.keep(rows, torch.ops.mkldnn._reorder_linear_weight(self.weight, rows))
        return torch.ops.mkldnn._linear_pointwise(
            inputs, packed, self.bias, "gelu" if self.gelu else "none", [], "none" if self.gelu else ""
        )


class _Half(nn.Module):
    """A network in bfloat16 that takes and gives float32."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images.to(torch.bfloat16)).float()


# (weights packed, BatchNorms folded, activations inside the convolutions), the fastest first.
_FORMS = ((True, True, True), (False, True, True), (True, True, False), (False, True, False), (True, False, False))


def made_frozen(module: nn.Module, pairs: Sequence[Pair], *, fused: bool, packs: bool) -> nn.Module:
    """A frozen copy in one of the forms: these pairs folded, with packed weights or as they are."""
    made = copy.deepcopy(module).eval().requires_grad_(False).to(memory_format=torch.channels_last)
    for pair in pairs:
        _freeze_pair(made, pair, fused=fused)
    made.eval().to(memory_format=torch.channels_last)
    if packs:
        _pack(made)
    return made.eval()


def _pack(module: nn.Module) -> None:
    """Pack convolutions and Linear layers in place; a GELU straight after `fc1`, as in timm's Mlp, goes into it."""
    for name, layer in list(module.named_modules()):
        if isinstance(layer, FrozenConv):
            layer.packs = True
        elif type(layer) is nn.Linear and not layer._forward_hooks and not layer._forward_pre_hooks:
            parent, _, last = name.rpartition(".")
            act = module.get_submodule(parent)._modules.get("act") if last == "fc1" else None
            gelu = isinstance(act, nn.GELU) and act.approximate == "none"
            if gelu:
                replace(module, f"{parent}.act" if parent else "act", nn.Identity())
            replace(module, name, PackedLinear(layer, gelu=gelu))


def _freeze_pair(module: nn.Module, pair: Pair, *, fused: bool) -> None:
    """Put one FrozenConv where the convolution was, and nothing where BatchNorm and activation were."""
    conv, norm = module.get_submodule(pair.conv), module.get_submodule(pair.norm)
    assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    inner = norm._modules.get("act")
    drop = norm._modules.get("drop")
    act = inner
    if pair.act is not None and (inner is None or isinstance(inner, nn.Identity)):
        act = module.get_submodule(pair.act)
        replace(module, pair.act, nn.Identity())
    kernel = fused and (type(conv) is nn.Conv2d or pads_like_tensorflow(conv)) and conv.padding_mode == "zeros"
    kernel = kernel and not isinstance(conv.padding, str) and (drop is None or isinstance(drop, nn.Identity))
    if drop is not None and not isinstance(drop, nn.Identity):
        act = nn.Sequential(drop, act or nn.Identity())
    replace(module, pair.conv, FrozenConv(conv, norm, act, fused=kernel))
    replace(module, pair.norm, nn.Identity())
