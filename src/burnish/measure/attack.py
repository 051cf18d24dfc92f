"""Images changed by at most epsilon in each value so that a network errs: how far its answers rest on what no eye can see.

All is in pixel space, values 0 to 255, through the network's own normalisation. From epsilon 1 on every point that is asked about
has whole values, so that what is found could be a file; below 1 no other file lies within reach, and points are fractions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from burnish.data.views import normalised
from burnish.runtime import draws
from burnish.terms import Preprocess

EPSILONS = (0.5, 1.0, 2.0, 4.0)  # of 255
# Of the iterated attack; a second start is for the images that withstood the first. What is lost leaves, so that many steps cost
# little where a network withstands little, and 20 left images that 100 find (LOG.md).
STEPS, STARTS = 100, 2
FAR = 32.0  # of 255: so much grey noise is plain to see, and no network withstands it whose gradients tell the way
_PIXELS_AT_ONCE = 8 * 224 * 224  # forward and backward: EfficientNet-Lite0 takes 0.14 GB for each image of 224 px
_MOMENTUM = 0.75  # of the way proposed; this and the next two are those of arXiv:2003.01690
_FIRST_MARK, _LESS, _LEAST = (
    0.22,
    0.03,
    0.06,
)  # fractions of the steps: where the step size is first looked at, and how often
_RISING = 0.75  # of the steps since the last look must have raised the loss


@dataclass(frozen=True)
class Ball:
    """The images within epsilon of some clean ones [b s s 3], values 0 to 255."""

    clean: Tensor
    epsilon: float

    @property
    def whole(self) -> bool:
        """Whether other images of whole values lie within."""
        return self.epsilon >= 1.0

    def inside(self, points: Tensor) -> Tensor:
        """The nearest points within, fractions of values."""
        away = (points - self.clean).clamp(-self.epsilon, self.epsilon)
        return (self.clean + away).clamp(0.0, 255.0)

    def file(self, points: Tensor) -> Tensor:
        """The nearest points within that a file can hold; below epsilon 1, where there are none, the points as they are."""
        if not self.whole:
            return points
        most = math.floor(self.epsilon)
        return (self.clean + (points - self.clean).round().clamp(-most, most)).clamp(0.0, 255.0)

    def at(self, rows: Tensor) -> Ball:
        """That of some of the images."""
        return Ball(self.clean[rows], self.epsilon)


class Target:
    """A network as what is attacked: its logits at points of pixel space, a loss to be raised, and which way that is.

    network: [b 3 s s] to logits [b k], plain, as gradients go through it; its weights get none. With one class an image the
    loss is how far the best other logit is above the label's own (Carlini & Wagner, arXiv:1608.04644): unlike cross-entropy it
    does not flatten out where the network is sure, which hides the way. With several, bool [n k], it is the sum of the classes'
    cross-entropies, and there is no point from which an image counts as lost.
    """

    def __init__(self, network: nn.Module, preprocess: Preprocess, device: torch.device) -> None:
        self.network = network.to(device).eval().requires_grad_(False)  # no gradient is asked of a weight
        self.preprocess, self.device = preprocess, device
        self.at_once = max(1, _PIXELS_AT_ONCE // preprocess.size**2)

    def logits(self, points: Tensor) -> Tensor:
        """[b k] of points [b s s 3]."""
        with torch.no_grad():
            return self.network(normalised(points, self.preprocess)).float()

    def loss(self, points: Tensor, labels: Tensor) -> Tensor:
        """[b]; above 0 where an image of one class is named wrongly."""
        return _loss(self.logits(points), labels)

    def look(self, points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(the loss [b], its slope [b s s 3]) at points [b s s 3]."""
        asked = points.detach().clone().requires_grad_()
        with torch.enable_grad():
            loss = _loss(self.network(normalised(asked, self.preprocess)).float(), labels)
            (slope,) = torch.autograd.grad(loss.sum(), asked)
        return loss.detach(), torch.nan_to_num(slope)


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    if labels.ndim == 2:
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none").sum(1)
    own = logits.gather(1, labels[:, None])[:, 0]
    return logits.scatter(1, labels[:, None], -torch.inf).amax(1) - own


def _lost(loss: Tensor, labels: Tensor) -> Tensor:
    """Which images are named wrongly, bool [b]; none where images have several classes."""
    return loss > 0.0 if labels.ndim == 1 else torch.zeros_like(loss, dtype=torch.bool)


def signs(ball: Ball, ids: Sequence[int | str], *, seed: int) -> Tensor:
    """Points at a corner of each ball that is drawn: the largest noise of that size. By seed, epsilon and image alone (P7)."""
    corners = [_drawn(ball, "noise", key, seed).integers(0, 2, ball.clean.shape[1:], np.int8) for key in ids]
    return ball.file(ball.inside(ball.clean + ball.epsilon * (2.0 * _as(ball, corners) - 1.0)))


def fgsm(target: Target, ball: Ball, labels: Tensor) -> Tensor:
    """One whole step along the sign of the slope (Goodfellow et al. 2015, arXiv:1412.6572), here that of the margin.

    By cross-entropy, as there, it finds no more: of 38 hand signs 27 withstand 0.5 of 255, by the margin 25 (LOG.md).
    """
    _, slope = target.look(ball.clean, labels)
    return ball.file(ball.inside(ball.clean + ball.epsilon * slope.sign()))


def apgd(
    target: Target,
    ball: Ball,
    labels: Tensor,
    ids: Sequence[int | str],
    *,
    start: int = 0,
    steps: int = STEPS,
    seed: int = 0,
) -> Tensor:
    """The points of the highest loss that a climb from a drawn one in each ball comes to.

    Projected gradient ascent (Madry et al. 2018, arXiv:1706.06083) with momentum and each image's step, at first twice epsilon,
    halved where it no longer helps, back from the best point (APGD; Croce & Hein 2020, arXiv:2003.01690). An image that is lost
    is left there.
    """
    drawn = [_drawn(ball, f"start {start}", key, seed).random(ball.clean.shape[1:], np.float32) for key in ids]
    here = ball.inside(ball.clean + ball.epsilon * (2.0 * _as(ball, drawn) - 1.0))
    climb = _Climb.begun(target, ball, labels, here)
    found, marks = climb.best.clone(), _marks(steps)
    for number in range(1, steps + 1):
        left = ~_lost(climb.best_loss, climb.labels)
        found[climb.rows] = climb.best
        if not left.any():
            break
        climb = climb.at(left)
        climb.step(target, number)
        if number in marks:
            climb.judge(number - max([mark for mark in marks if mark < number], default=0))
    found[climb.rows] = climb.best
    return found


def strongest(
    target: Target,
    ball: Ball,
    labels: Tensor,
    ids: Sequence[int | str],
    worst: Tensor,
    *,
    starts: int = STARTS,
    seed: int = 0,
) -> Tensor:
    """The points of the highest loss, from several starts, or of `worst`: what smaller balls came to. [b s s 3]

    An image that is lost in a smaller ball is lost in this one, and is not attacked again.
    """
    found = ball.file(worst).clone()
    for start in range(starts):
        loss = target.loss(found, labels)
        left = torch.nonzero(~_lost(loss, labels))[:, 0]
        if not len(left):
            break
        own = [ids[row] for row in left.tolist()]
        points = apgd(target, ball.at(left), labels[left], own, start=start, seed=seed)
        higher = target.loss(points, labels[left]) > loss[left]
        found[left[higher]] = points[higher]
    return found


@dataclass
class _Climb:
    """Where each image of a climb is; rows that are lost leave it."""

    rows: Tensor  # int64 [b], of the images that it began with
    ball: Ball
    labels: Tensor
    here: Tensor  # [b s s 3], fractions of values
    before: Tensor
    loss: Tensor  # [b], at the file nearest to here
    slope: Tensor  # [b s s 3]
    best: Tensor  # [b s s 3], as a file
    best_loss: Tensor
    best_slope: Tensor
    size: Tensor  # [b 1 1 1], of a step
    rises: Tensor  # [b], since the last look
    marked: Tensor  # [b], the best loss then
    halved: Tensor  # bool [b], whether the step was made smaller then

    @classmethod
    def begun(cls, target: Target, ball: Ball, labels: Tensor, here: Tensor) -> _Climb:
        point = ball.file(here)
        loss, slope = target.look(point, labels)
        nothing = torch.zeros_like(loss)
        size = torch.full_like(loss, 2.0 * ball.epsilon)[:, None, None, None]
        return cls(torch.arange(len(loss), device=loss.device), ball, labels, here, here, loss, slope, point, loss, slope, size,
                   nothing, loss, nothing.bool())  # fmt: skip

    def at(self, left: Tensor) -> _Climb:
        """That of the images which are left, bool [b]."""
        if left.all():
            return self
        tensors: dict[str, Any] = {name: one[left] for name, one in vars(self).items() if isinstance(one, Tensor)}
        return replace(self, ball=self.ball.at(left), **tensors)

    def step(self, target: Target, number: int) -> None:
        moved = self.ball.inside(self.here + self.size * self.slope.sign())
        if number > 1:
            moved = self.here + _MOMENTUM * (moved - self.here) + (1 - _MOMENTUM) * (self.here - self.before)
        self.before, self.here = self.here, self.ball.inside(moved)
        last, point = self.loss, self.ball.file(self.here)
        self.loss, self.slope = target.look(point, self.labels)
        self.rises = self.rises + (self.loss > last)
        self._keep(self.loss > self.best_loss, point)

    def _keep(self, better: Tensor, point: Tensor) -> None:
        wide = better[:, None, None, None]
        self.best = torch.where(wide, point, self.best)
        self.best_slope = torch.where(wide, self.slope, self.best_slope)
        self.best_loss = torch.where(better, self.loss, self.best_loss)

    def judge(self, since: int) -> None:
        """Halve the step where too few of so many raised the loss, or where nothing better came of an unchanged one."""
        halve = (self.rises < _RISING * since) | (~self.halved & (self.best_loss <= self.marked))
        wide = halve[:, None, None, None]
        self.size = torch.where(wide, self.size / 2, self.size)
        self.here, self.before = torch.where(wide, self.best, self.here), torch.where(wide, self.best, self.before)
        self.slope, self.loss = (
            torch.where(wide, self.best_slope, self.slope),
            torch.where(halve, self.best_loss, self.loss),
        )
        self.rises, self.marked, self.halved = torch.zeros_like(self.rises), self.best_loss, halve


def _marks(steps: int) -> list[int]:
    """After which steps their size is looked at: ever more often."""
    at, apart, found = _FIRST_MARK, _FIRST_MARK, []
    while at < 1.0:
        found.append(math.ceil(at * steps))
        apart = max(apart - _LESS, _LEAST)
        at += apart
    return found


def _drawn(ball: Ball, purpose: str, key: int | str, seed: int) -> np.random.Generator:
    return draws(seed, "attack", purpose, f"{ball.epsilon:g}", key)


def _as(ball: Ball, values: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(values)).to(ball.clean)
