"""Layers with a learnt low-rank correction to frozen weights, and the plain layers they become again.

    W' = W + (alpha / rank) · B A       A [rank in] random, B [out rank] zero

A convolution's kernel is taken as the matrix [out, in · h · w].
"""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from burnish.backbones.fast.fold import convolved, emptied
from burnish.backbones.layers import replace

DOWN = ".low_down"  # how the names of A end


class LowRank(nn.Module):
    """A linear layer or convolution; `weight` and `bias` keep their names beside `low_down` A and `low_up` B.

    Some networks multiply by a layer's `weight` themselves and never call it (the queries, keys and values of SwinV2, BEiT
    and EVA), so that whoever reads `weight` gets the corrected one; the frozen one is the parameter of that name.
    """

    bias: nn.Parameter | None

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int, alpha: float, rng: torch.Generator) -> None:
        super().__init__()
        own = dict(layer.named_parameters(recurse=False))
        self._parameters["weight"] = own["weight"]
        self.register_parameter("bias", own.get("bias"))
        out, inner = self.frozen.shape[0], math.prod(self.frozen.shape[1:])
        self.rank = min(rank, out, inner)
        self.scale = alpha / rank
        self.low_down = nn.Parameter((torch.rand(self.rank, inner, generator=rng) * 2 - 1) / math.sqrt(inner))
        self.low_up = nn.Parameter(torch.zeros(out, self.rank))
        # In a tuple, so that it does not become a submodule and the state dict keeps its names.
        self._conv = (emptied(layer),) if isinstance(layer, nn.Conv2d) else ()

    def forward(self, given: Tensor) -> Tensor:
        if self._conv:
            return convolved(self._conv[0], given, self.whole(), self.bias)
        return F.linear(given, self.frozen, self.bias) + self.scale * F.linear(
            F.linear(given, self.low_down), self.low_up
        )

    @property
    def frozen(self) -> nn.Parameter:
        """The weight without the correction."""
        found = self._parameters["weight"]
        assert found is not None
        return found

    @property
    def weight(self) -> Tensor:
        """The corrected weight."""
        return self.whole()

    def whole(self) -> Tensor:
        """The corrected weight."""
        return self.frozen + self.scale * (self.low_up @ self.low_down).view_as(self.frozen)

    def plain(self) -> nn.Module:
        """The layer with the correction in its weight."""
        weight = nn.Parameter(self.whole().detach().clone(), requires_grad=self.frozen.requires_grad)
        if self._conv:
            conv = copy.copy(self._conv[0])
            conv.__dict__ = {**conv.__dict__, "_parameters": {"weight": weight, "bias": self.bias}}
            return conv
        linear = nn.Linear(self.frozen.shape[1], self.frozen.shape[0], bias=self.bias is not None, device="meta")
        linear.weight = weight
        linear.register_parameter("bias", self.bias)
        return linear


def merged(module: nn.Module) -> nn.Module:
    """The module with every correction merged: a copy where there is one, else the module itself."""
    if not any(isinstance(layer, LowRank) for layer in module.modules()):
        return module
    double = copy.deepcopy(module)
    for name, layer in list(double.named_modules()):
        if isinstance(layer, LowRank):
            replace(double, name, layer.plain().train(layer.training))
    return double
