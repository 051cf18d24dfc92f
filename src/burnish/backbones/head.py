"""What stands between features and logits: linear, with a hidden layer, by the cosine of the angle, or by neighbours."""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from burnish.errors import RecipeError, shown

LINEAR, COSINE, MLP, NEIGHBOURS = "linear", "cosine", "mlp", "knn"
FORMS = f"{LINEAR}, {MLP}:WIDTH (such as {MLP}:512) or {COSINE}"
_MLP = re.compile(rf"{MLP}:([1-9]\d{{0,4}})")
# Neighbours asked, images kept, and whether those may have several classes; made by fitting, never asked for as a form.
_NEIGHBOURS = re.compile(rf"{NEIGHBOURS}:([1-9]\d{{0,4}}):([1-9]\d{{0,7}})(:several)?")
_LEAST_REACH = 1e-4  # of what cosines are divided by
_LEAST_WEIGHT = 1e-6  # of a neighbour: so that a crowd of copies, all equally near, still has a say


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


class NeighbourHead(nn.Module):
    """Each class's share of the nearest kept images, as log-odds (k nearest neighbours; nothing in it is learnt).

    Features are centred and brought to length one (SimpleShot, Wang et al. 2019, arXiv:1911.04623), neighbours weigh
    exp(cosine / temperature) (Wu et al. 2018, arXiv:1805.01978) less what the first one left out would weigh, so that no
    answer jumps when two images change places. Shares are drawn to the classes' frequencies by one image's worth.
    """

    mean: Tensor
    bank: Tensor
    votes: Tensor
    temperature: Tensor

    def __init__(self, width: int, classes: int, *, neighbours: int, images: int, several: bool) -> None:
        super().__init__()
        self.neighbours, self.several = neighbours, several
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("bank", torch.zeros(images, width))
        self.register_buffer("votes", torch.zeros(images, classes, dtype=torch.uint8))
        self.register_buffer("temperature", torch.ones(1))

    def forward(self, features: Tensor) -> Tensor:
        seen = F.normalize(features - self.mean.to(features.dtype))
        return logits_by_neighbours(
            seen @ self.bank.to(features.dtype).T,
            self.votes,
            neighbours=self.neighbours,
            # Not as a number of Python: that could not be exported.
            temperature=self.temperature.squeeze().clamp(min=_LEAST_REACH),
            several=self.several,
        )


def logits_by_neighbours(
    similarities: Tensor, votes: Tensor, *, neighbours: int, temperature: float | Tensor, several: bool
) -> Tensor:
    """[b k] of cosines [b m] to m images and their classes votes [m k], 0 or 1, as `NeighbourHead` weighs them."""
    count, likely = similarities.shape[1], votes.to(similarities.dtype)
    near, where = similarities.topk(min(neighbours + 1, count), 1)
    if count > neighbours:
        near, edge, where = near[:, :-1], near[:, -1:], where[:, :-1]
    else:
        edge = near.new_full((len(near), 1), -2.0)  # further than any
    reach = temperature if isinstance(temperature, Tensor) else max(temperature, _LEAST_REACH)
    nearest = near[:, :1]
    weights = ((near - nearest) / reach).exp() - ((edge - nearest) / reach).exp() + _LEAST_WEIGHT
    spread = torch.zeros_like(similarities).scatter(1, where, weights / weights.sum(1, keepdim=True))
    usual = (likely.sum(0) + 1.0) / (count + likely.shape[1])
    asked = near.shape[1]
    shares = ((asked * (spread @ likely) + usual) / (asked + 1.0)).clamp(1e-7, 1.0 - 1e-7)
    return shares.logit() if several else shares.log()


def made(form: str, width: int, classes: int) -> LinearHead | MlpHead | CosineHead | NeighbourHead:
    """The head of that form, zero; RecipeError when there is none, or it is too narrow for the classes."""
    check_form(form)
    kept = _NEIGHBOURS.fullmatch(form)
    if kept is not None:
        return NeighbourHead(width, classes, neighbours=int(kept[1]), images=int(kept[2]), several=kept[3] is not None)
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
    return isinstance(form, str) and (
        form in (LINEAR, COSINE) or _MLP.fullmatch(form) is not None or _NEIGHBOURS.fullmatch(form) is not None
    )


def neighbours_form(neighbours: int, images: int, *, several: bool) -> str:
    """The form of a head that asks so many of so many kept images."""
    return f"{NEIGHBOURS}:{neighbours}:{images}" + (":several" if several else "")


def seen_by(form: str, features: Tensor) -> Tensor:
    """Features as a head of that form weighs them: a cosine head looks at directions alone."""
    return F.normalize(features) if form == COSINE else features
