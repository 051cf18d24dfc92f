"""Images changed by at most epsilon in each value so that a network errs: how far its answers rest on what no eye can see.

All is in pixel space, values 0 to 255, through the network's own normalisation. From epsilon 1 on what is found has whole values,
so that it could be a file, and is judged as that file; on the way there points are fractions, by which more images are lost than
from file to file (LOG.md). Below 1 no other file lies within reach, and what is found is fractions too.
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
# little where a network withstands little: of a hardened one 9 of 63 images are left (LOG.md).
STEPS, STARTS = 100, 2
CALLS = 8  # of a network that draws noise: so many are averaged
FAR = 32.0  # of 255: so much grey noise is plain to see, and no network withstands it whose gradients tell the way
_PIXELS_AT_ONCE = 8 * 224 * 224  # forward and backward: EfficientNet-Lite0 takes 0.14 GB for each image of 224 px
_MOMENTUM = 0.75  # of the way proposed; this and the next two are those of arXiv:2003.01690
_FIRST_MARK, _LESS, _LEAST = (
    0.22,
    0.03,
    0.06,
)  # fractions of the steps: where the step size is first looked at, and how often
_RISING = 0.75  # of the steps since the last look must have raised the loss
_SAME = 1e-3  # of an image's largest logit: sums in another order differ by less, noise that matters by more


@dataclass(frozen=True)
class Ball:
    """The images within epsilon of some clean ones [b s s 3], values 0 to 255."""

    clean: Tensor
    epsilon: float

    @property
    def whole(self) -> bool:
        """Whether other images of whole values lie within."""
        return self.epsilon >= 1.0

    @property
    def reach(self) -> float:
        """How far from the clean ones those are, at most, that are asked about: no file lies between two whole values."""
        return float(math.floor(self.epsilon)) if self.whole else self.epsilon

    def inside(self, points: Tensor) -> Tensor:
        """The nearest points within, fractions of values."""
        away = (points - self.clean).clamp(-self.reach, self.reach)
        return (self.clean + away).clamp(0.0, 255.0)

    def file(self, points: Tensor) -> Tensor:
        """The nearest points within that a file can hold; below epsilon 1, where there are none, the points as they are."""
        return self.inside(points.round()) if self.whole else points

    def at(self, rows: Tensor) -> Ball:
        """That of some of the images."""
        return Ball(self.clean[rows], self.epsilon)


class Target:
    """A network as what is attacked: its logits at points of pixel space, a loss to be raised, and which way that is.

    network: [b 3 s s] to logits [b k], plain, as gradients go through it; its weights get none. With one class an image the
    loss is how far the best other logit is above the label's own (Carlini & Wagner, arXiv:1608.04644): unlike cross-entropy it
    does not flatten out where the network is sure, which hides the way. With several, bool [n k], it is the sum of the classes'
    cross-entropies, and there is no point from which an image counts as lost. calls: of a network that draws noise, loss and
    slope are means over so many (expectation over transformation, arXiv:1802.00420).
    """

    def __init__(self, network: nn.Module, preprocess: Preprocess, device: torch.device, *, calls: int = 1) -> None:
        self.network = network.to(device).eval().requires_grad_(False)  # no gradient is asked of a weight
        self.preprocess, self.device, self.calls = preprocess, device, calls
        self.at_once = max(1, _PIXELS_AT_ONCE // preprocess.size**2)

    def over(self, calls: int) -> Target:
        """The same network, asked so often for each answer."""
        return Target(self.network, self.preprocess, self.device, calls=calls)

    def answer(self, points: Tensor) -> Tensor:
        """[b k] of points [b s s 3], of one call."""
        return self.network(normalised(points, self.preprocess)).float()

    def wavers(self, points: Tensor) -> Tensor:
        """Which images are answered otherwise when asked again, bool [b]: then the network draws noise."""
        with torch.no_grad():
            first, again = self.answer(points), self.answer(points)
        return (first - again).abs().amax(1) > _SAME * first.abs().amax(1)

    def logits(self, points: Tensor) -> Tensor:
        """[b k] of points [b s s 3]."""
        with torch.no_grad():
            return torch.stack([self.answer(points) for _ in range(self.calls)]).mean(0)

    def loss(self, points: Tensor, labels: Tensor) -> Tensor:
        """[b]; above 0 where an image of one class is named wrongly."""
        with torch.no_grad():
            return torch.stack([_loss(self.answer(points), labels) for _ in range(self.calls)]).mean(0)

    def look(self, points: Tensor, labels: Tensor, *, smooth: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """(the loss [b], the one to climb by [b], the slope of that [b s s 3]) at points [b s s 3].

        smooth: climb by how far the log of the sum of all others' exponentials is above the label's own logit. Its slope tells of
        every other class and does not jump where another one becomes the best.
        """
        told = list[tuple[Tensor, Tensor, Tensor]]()
        for _ in range(self.calls):
            asked = points.detach().clone().requires_grad_()
            with torch.enable_grad():
                logits = self.answer(asked)
                climbed = _loss(logits, labels, smooth=smooth)
                (slope,) = torch.autograd.grad(climbed.sum(), asked)
            told.append((_loss(logits.detach(), labels), climbed.detach(), torch.nan_to_num(slope)))
        loss, climbed, slope = (torch.stack(one).mean(0) for one in zip(*told, strict=True))
        return loss, climbed, slope


def _loss(logits: Tensor, labels: Tensor, *, smooth: bool = False) -> Tensor:
    if labels.ndim == 2:
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none").sum(1)
    own = logits.gather(1, labels[:, None])[:, 0]
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return (others.logsumexp(1) if smooth else others.amax(1)) - own


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
    _, _, slope = target.look(ball.clean, labels)
    return ball.file(ball.inside(ball.clean + ball.epsilon * slope.sign()))


def apgd(
    target: Target,
    ball: Ball,
    labels: Tensor,
    ids: Sequence[int | str],
    *,
    start: int = 0,
    smooth: bool = True,
    steps: int = STEPS,
    seed: int = 0,
) -> Tensor:
    """The points of the highest loss that a climb from a drawn one in each ball comes to.

    Projected gradient ascent (Madry et al. 2018, arXiv:1706.06083) with momentum and each image's step, at first twice epsilon,
    halved where it no longer helps, back from the best point (APGD; Croce & Hein 2020, arXiv:2003.01690). An image is lost, and
    left there, where the nearest file is. smooth: what is climbed by (`Target.look`).
    """
    drawn = [_drawn(ball, f"start {start}", key, seed).random(ball.clean.shape[1:], np.float32) for key in ids]
    here = ball.inside(ball.clean + ball.epsilon * (2.0 * _as(ball, drawn) - 1.0))
    climb = _Climb.begun(target, ball, labels, here, smooth=smooth)
    found, marks = climb.file.clone(), _marks(steps)
    for number in range(1, steps + 1):
        left = ~_lost(climb.file_loss, climb.labels)
        found[climb.rows] = climb.file
        if not left.any():
            break
        climb = climb.at(left)
        climb.step(target, number)
        if number in marks:
            climb.judge(number - max([mark for mark in marks if mark < number], default=0))
    climb.end(target)
    found[climb.rows] = climb.file
    return found


def strongest(
    target: Target,
    ball: Ball,
    labels: Tensor,
    ids: Sequence[int | str],
    worst: Tensor,
    *,
    starts: int = STARTS,
    steps: int = STEPS,
    seed: int = 0,
) -> Tensor:
    """The points of the highest loss, from several starts, or of `worst`: what smaller balls came to. [b s s 3]

    An image that is lost in a smaller ball is lost in this one, and is not attacked again. Every second start climbs by the loss
    itself, not by the smooth one: each finds some that the other does not.
    """
    found = ball.file(worst).clone()
    for start in range(starts):
        loss = target.loss(found, labels)
        left = torch.nonzero(~_lost(loss, labels))[:, 0]
        if not len(left):
            break
        rest, truth, own = ball.at(left), labels[left], [ids[row] for row in left.tolist()]
        points = apgd(target, rest, truth, own, start=start, smooth=start % 2 == 0, steps=steps, seed=seed)
        higher = target.loss(points, truth) > loss[left]
        found[left[higher]] = points[higher]
    return found


@dataclass
class _Climb:
    """Where each image of a climb is; rows that are lost leave it."""

    rows: Tensor  # int64 [b], of the images that it began with
    ball: Ball
    labels: Tensor
    smooth: bool
    here: Tensor  # [b s s 3], fractions of values
    before: Tensor
    loss: Tensor  # [b], the one that is climbed by
    slope: Tensor  # [b s s 3]
    best: Tensor  # [b s s 3]
    best_loss: Tensor
    best_slope: Tensor
    file: Tensor  # [b s s 3], of those that were asked about where the network is most wrong
    file_loss: Tensor  # [b], how wrong
    size: Tensor  # [b 1 1 1], of a step
    rises: Tensor  # [b], since the last look
    marked: Tensor  # [b], the best loss then
    halved: Tensor  # bool [b], whether the step was made smaller then

    @classmethod
    def begun(cls, target: Target, ball: Ball, labels: Tensor, here: Tensor, *, smooth: bool) -> _Climb:
        wrong, loss, slope = target.look(here, labels, smooth=smooth)
        nothing = torch.zeros_like(loss)
        size = torch.full_like(loss, 2.0 * ball.reach)[:, None, None, None]
        climb = cls(torch.arange(len(loss), device=loss.device), ball, labels, smooth, here, here, loss, slope, here, loss,
                    slope, ball.file(here), nothing - torch.inf, size, nothing, loss, nothing.bool())  # fmt: skip
        climb._ask(target, _lost(wrong, labels), here)
        return climb

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
        last = self.loss
        wrong, self.loss, self.slope = target.look(self.here, self.labels, smooth=self.smooth)
        self.rises = self.rises + (self.loss > last)
        self._keep(self.loss > self.best_loss)
        self._ask(target, _lost(wrong, self.labels), self.here)

    def end(self, target: Target) -> None:
        """Ask about the files nearest to the best points too: so far it was done where a point is lost."""
        self._ask(target, ~_lost(self.file_loss, self.labels), self.best)

    def _keep(self, better: Tensor) -> None:
        wide = better[:, None, None, None]
        self.best = torch.where(wide, self.here, self.best)
        self.best_slope = torch.where(wide, self.slope, self.best_slope)
        self.best_loss = torch.where(better, self.loss, self.best_loss)

    def _ask(self, target: Target, some: Tensor, points: Tensor) -> None:
        """Keep the files nearest to some of the points, bool [b], where the network is more wrong at those."""
        rows = torch.nonzero(some)[:, 0]
        if not len(rows):
            return
        files = self.ball.at(rows).file(points[rows])
        loss = target.loss(files, self.labels[rows])
        better = loss > self.file_loss[rows]
        self.file, self.file_loss = self.file.clone(), self.file_loss.clone()
        self.file[rows[better]], self.file_loss[rows[better]] = files[better], loss[better]

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
