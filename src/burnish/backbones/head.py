"""What stands between features and logits: linear, with a hidden layer, or by the cosine of the angle."""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from burnish.errors import RecipeError, shown

LINEAR, COSINE, MLP = "linear", "cosine", "mlp"
FORMS = f"{LINEAR}, {MLP}:WIDTH (such as {MLP}:512) or {COSINE}"
_MLP = re.compile(rf"{MLP}:([1-9]\d{{0,4}})")


class LinearHead(nn.Linear):
    """logits = x W + b; zero until it is set, so that no generator is asked (P7)."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__(width, classes, device="meta")
        self.weight = nn.Parameter(torch.zeros(classes, width))
        self.bias = nn.Parameter(torch.zeros(classes))

    def start_as(self, weight: Tensor, bias: Tensor, draws: torch.Generator) -> None:
        """Give these logits: weight [k d], bias [k]."""
        with torch.no_grad():
            self.weight.copy_(weight)
            self.bias.copy_(bias)


class MlpHead(nn.Module):
    """Linear, GELU, linear. It starts as any linear head does, to rounding, and can learn what no linear head can.

    gelu(z) − gelu(−z) = z: two hidden units for each class carry its logit through the activation. The units that are
    left draw their inputs at random and have no say until they have learnt one.
    """

    def __init__(self, width: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.hidden, self.act, self.out = LinearHead(width, hidden), nn.GELU(), LinearHead(hidden, classes)

    def forward(self, features: Tensor) -> Tensor:
        return self.out(self.act(self.hidden(features)))

    def start_as(self, weight: Tensor, bias: Tensor, draws: torch.Generator) -> None:
        """Give the logits of the linear head of these: weight [k d], bias [k]."""
        classes, hidden = len(bias), self.hidden.weight
        spare = len(hidden) - 2 * classes
        with torch.no_grad():
            random = torch.randn(spare, hidden.shape[1], generator=draws) / hidden.shape[1] ** 0.5
            hidden.copy_(torch.cat([weight, -weight, random]))
            self.hidden.bias.zero_()
            one = torch.eye(classes)
            self.out.weight.copy_(torch.cat([one, -one, torch.zeros(classes, spare)], 1))
            self.out.bias.copy_(bias)


class CosineHead(nn.Module):
    """logits = scale · cos(x, w) + b for each class (Gidaris & Komodakis 2018, arXiv:1804.09458), with a scale each."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(classes, width))
        self.scale = nn.Parameter(torch.zeros(classes))
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * F.linear(F.normalize(features), F.normalize(self.weight)) + self.bias

    def start_as(self, weight: Tensor, bias: Tensor, draws: torch.Generator) -> None:
        """Give the logits of the linear head of these on features of length one: weight [k d], bias [k]."""
        with torch.no_grad():
            self.weight.copy_(weight)
            self.scale.copy_(weight.norm(dim=1))
            self.bias.copy_(bias)


def made(form: str, width: int, classes: int) -> LinearHead | MlpHead | CosineHead:
    """The head of that form, zero; RecipeError when there is none, or it is too narrow for the classes."""
    check_form(form)
    if form == COSINE:
        return CosineHead(width, classes)
    found = _MLP.fullmatch(form)
    if found is None:
        return LinearHead(width, classes)
    if int(found[1]) < 2 * classes:
        raise RecipeError(
            f"head is {form}, but {classes} classes need at least {2 * classes} hidden units; say mlp:{2 * classes} or more"
        )
    return MlpHead(width, int(found[1]), classes)


def check_form(form: Any) -> None:
    """RecipeError unless there is a head of that form."""
    if not is_form(form):
        raise RecipeError(f"head is {shown(repr(form))}, expected {FORMS}")


def is_form(form: Any) -> bool:
    """Whether there is a head of that form."""
    return isinstance(form, str) and (form in (LINEAR, COSINE) or _MLP.fullmatch(form) is not None)


def seen_by(form: str, features: Tensor) -> Tensor:
    """Features as a head of that form weighs them: a cosine head looks at directions alone."""
    return F.normalize(features) if form == COSINE else features
