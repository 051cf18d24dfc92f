"""Heads fitted to frozen features: linear in closed form or by L-BFGS, or neighbours; chosen by cross-validation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from burnish.backbones.head import LINEAR, NEIGHBOURS, seen_by
from burnish.errors import RecipeError
from burnish.labels import cross_entropies, error_of_mean, grouped, probabilities, right, several
from burnish.methods.base import Fitted, Head
from burnish.methods.folds import Folds
from burnish.methods.left_out import LeftOut, Path, axes_of, left_out, parts_of, views_of
from burnish.methods.linear import (
    ANSWERS,
    PENALTIES,
    SHRINKAGES,
    Late,
    Principal,
    lda_path,
    logistic_path,
    loss_and_a_mistake,
    loss_of,
    seconds_a_flop,
    seconds_of_coordinates,
    truth_of,
)
from burnish.methods.neighbours import Neighbours, crossed
from burnish.runtime import evenly

LINEAR_KINDS = ("lda", "logistic")
KINDS = (*LINEAR_KINDS, NEIGHBOURS)
_WARMEST = 12.0  # of the temperatures that all strengths are looked at with
_FEW = 1000  # images, below which the two linear kinds may be averaged: from there on fitting both takes seconds


@dataclass(frozen=True)
class HeadKind:
    """How a head is fitted."""

    kind: str  # of KINDS
    strength: float  # the penalty, the shrinkage, or how many neighbours
    temperature: float  # that logits, or neighbours' cosines, are divided by, so that the probabilities are about right
    form: str = LINEAR  # of the head that is started so, where it is linear
    keep: float = 1.0  # the share of the features that it looks at, where it is linear
    unbiased: bool = False  # LDA: without what counts against classes of few images (`methods.linear.lda_path`)
    share: float = 1.0  # its say beside a head on the last layer alone, where both are averaged (`methods.pooled`)
    beside: HeadKind | None = None  # of the other linear kind on the same features, whose logits have as much say

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> HeadKind:
        """The inverse of `dataclasses.asdict`."""
        beside = facts.get("beside")
        return cls(**{**facts, "beside": None if beside is None else cls(**beside)})

    def fitted(self, features: np.ndarray, labels: np.ndarray, *, classes: int) -> Fitted:
        """The head on features float32 [n d] and labels int64 [n], or bool [n k]."""
        assert self.share == 1.0, "an average is fitted by `methods.pooled`"
        if self.kind == NEIGHBOURS:
            return Neighbours.of(
                features, labels, classes=classes, neighbours=int(self.strength), temperature=self.temperature
            )
        x, y = seen_by(self.form, torch.from_numpy(np.ascontiguousarray(features))), truth_of(labels)
        axes = axes_of(x, y, classes, self.keep)
        return _fitted(self, axes, axes.apply(x), y, classes)


# Where nothing can be left out to choose by: little is believed of single images.
_USUAL = {
    "lda": HeadKind("lda", 0.8, 3.0),
    "logistic": HeadKind("logistic", 0.1, 1.0),
    NEIGHBOURS: HeadKind(NEIGHBOURS, 1, 0.1),
}


@dataclass(frozen=True, kw_only=True)
class HeadChoice:
    """The head that cross-validation prefers, fitted to all the images given."""

    head: Fitted
    how: HeadKind
    accuracy: float  # cross-validated, fraction 0 to 1
    standard_error: float  # of that accuracy, over images, or over groups of them
    loss: float  # cross-validated log loss, nats
    right: np.ndarray  # bool [n], out-of-fold; with several classes an image float64 [n], 0 to 1
    told: np.ndarray  # float64 [n], out-of-fold: the probability of what is true; of several classes the geometric mean
    probabilities: np.ndarray | None = None  # float32 [n k], out-of-fold; None once the run was taken up again
    # The same kind and strength on some of those images, by their places; what knows no labels is not found anew.
    refit: Callable[[np.ndarray], Fitted] | None = None
    counted: np.ndarray | None = None  # bool [n], whose own answer is told (`methods.folds`); None once taken up again
    judged: np.ndarray | None = (
        None  # bool [n], what these numbers are of: those, and for whom another was asked; None as above
    )
    alone: int = 0  # images that they are not of: the only ones of their class, or of a group that has all of it
    instead: int = 0  # such images that they are of, as another image was asked whose class was cut to one

    @property
    def asked(self) -> int:
        """Images that the numbers are of; 0 where nothing could be left out, and the head is the usual one."""
        return len(self.right) - self.alone

    def by_groups(self, together: np.ndarray | None) -> HeadChoice:
        """With the standard error of images of which those of one number, int64 [n], are right and wrong together."""
        if together is None or self.judged is None or not self.asked:
            return self
        asked, groups = self.right[self.judged], grouped(together[self.judged].tolist())
        return replace(self, standard_error=error_of_mean(asked, groups))

    @property
    def words(self) -> str:
        """How right it is by cross-validation."""
        if not self.asked:
            return "not cross-validated: every class has a single image, or a single group of images"
        of = f", of the {self.asked:,} images whose class others show too" if self.alone else ""
        of += f", {self.instead:,} for classes of one image" if self.instead else ""
        return f"{self.accuracy:.1%} ± {self.standard_error:.1%} cross-validated{of}"


def choose_head(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    classes: int,
    seed: int,
    seconds_left: Callable[[], float],
    form: str = LINEAR,
    kinds: tuple[str, ...] = LINEAR_KINDS,
    keep: float = 1.0,
    together: np.ndarray | None = None,
    shrinkages: tuple[float, ...] = SHRINKAGES,
    seconds_to_end: Callable[[], float] = lambda: float("inf"),
) -> HeadChoice:
    """The best of these kinds by k-fold cross-validated log loss: shrinkage LDA, L2 logistic regression, neighbours.

    features float32 [n d], labels int64 [n]. LDA comes first: it takes one decomposition a fold and is the
    safer one at few shots. The logistic path is given up when no seconds are left, or when fitting its head to all images would
    take longer than `seconds_to_end`. Labels bool [n k], several an image, have
    a logistic regression of each class against the rest, and no LDA (RecipeError where nothing else is asked for).
    keep: linear heads look at this share of the features, chosen anew within each fold. together: int64 [n], equal for images
    that are left out together, as those of one group and near-duplicates must be. shrinkages: of LDA. Where every class has a
    single image, or a single group, nothing can be cross-validated, and the head is a usual one.
    """
    folds = Folds.drawn(labels, classes=classes, seed=seed, together=together)
    linear = tuple(kind for kind in kinds if kind in LINEAR_KINDS)
    if not folds.counted.any():
        return _usual(features, labels, linear or (NEIGHBOURS,), form, keep, classes=classes)
    found: list[HeadChoice] = []
    if linear:
        usual = HeadKind("", 0.0, 1.0, form, keep)
        seconds = Seconds(seconds_left, seconds_to_end)
        found.append(_linear(features, labels, folds, linear, usual, classes, shrinkages, seconds))
    if NEIGHBOURS in kinds:
        found.append(_by_neighbours(features, labels, folds, classes, seconds_left))
    return min(found, key=lambda choice: choice.loss).by_groups(together)


@dataclass(frozen=True)
class Seconds:
    """How long the search for a head may take, by the clock."""

    left: Callable[[], float]  # for the search
    to_end: Callable[
        [], float
    ]  # with what follows: the head that is found, fitted to all images, and to those to train on

    def searched_in(self, parts: int) -> Callable[[], float]:
        """Seconds left for a search that begins now, on so many parts of the images, each without 1 / parts of them."""
        began, follows = time.monotonic(), 2.0 / max(1, parts - 1)
        return lambda: min(self.left(), self.to_end() - follows * (time.monotonic() - began))


def _usual(
    features: np.ndarray, labels: np.ndarray, kinds: tuple[str, ...], form: str, keep: float, *, classes: int
) -> HeadChoice:
    """A head that nothing is known of, of the last of these kinds; what it says of images left out is that all is as likely."""
    how = replace(_USUAL[kinds[-1]], form=form if kinds[-1] in LINEAR_KINDS else LINEAR, keep=keep)

    def refit(rows: np.ndarray) -> Fitted:
        return how.fitted(features[rows], labels[rows], classes=classes)

    nothing = torch.zeros(len(labels), classes)
    none = np.zeros(len(labels), bool)
    one = OutOfFold.of(how, math.log(classes), nothing, labels, none, none)
    return replace(one, right=np.zeros(len(labels), bool)).choice(refit, labels)


def head_from(form: str, arrays: Mapping[str, np.ndarray]) -> Fitted:
    """The inverse of `Fitted.arrays`."""
    return (Neighbours if form.startswith(NEIGHBOURS) else Head)(form=form, **arrays)


def _by_neighbours(
    features: np.ndarray, labels: np.ndarray, folds: Folds, classes: int, seconds_left: Callable[[], float]
) -> HeadChoice:
    features = np.ascontiguousarray(features)
    best = crossed(features, labels, folds, classes=classes, seconds_left=seconds_left)
    how = HeadKind(NEIGHBOURS, best.neighbours, best.temperature)

    def refit(rows: np.ndarray) -> Fitted:
        return how.fitted(features[rows], labels[rows], classes=classes)

    return OutOfFold.of(how, best.loss, best.logits, labels, folds.counted, folds.counted).choice(refit, labels)


def _linear(
    features: np.ndarray,
    labels: np.ndarray,
    drawn: Folds,
    kinds: tuple[str, ...],
    usual: HeadKind,
    classes: int,
    shrinkages: tuple[float, ...],
    seconds: Seconds,
) -> HeadChoice:
    """The better of LDA, logistic regression and their average, or the one asked for; usual: its form, and what it looks at."""
    x, y = seen_by(usual.form, torch.from_numpy(np.ascontiguousarray(features))), truth_of(labels)
    left = seconds.left()
    quick = left < float("inf") and left < seconds_of_coordinates(len(x), x.shape[1], seconds_a_flop())
    axes = axes_of(x, y, classes, usual.keep, quick=quick)
    z = axes.apply(x)
    parts = parts_of(drawn)
    views = views_of(x, y, z, axes, parts, classes, usual.keep)

    def logistic(left: Callable[[], float], penalties: tuple[float, ...] = PENALTIES) -> OutOfFold:
        def path(zs: torch.Tensor, ys: torch.Tensor, variances: torch.Tensor) -> Path:
            return logistic_path(zs, ys, classes, penalties, variances, left)

        ways = [HeadKind("logistic", penalty, 1.0) for penalty in penalties]
        return _best(ways, left_out(views, y, parts, drawn, path, early=True), labels)

    if "logistic" not in kinds and several(labels):
        raise RecipeError("LDA needs one class an image; leave head=lda out")
    path: tuple[float, ...] | None = None  # of penalties to the head; None: all up to its own
    if "lda" not in kinds or several(labels):
        try:
            best = logistic(seconds.searched_in(len(parts)))
        except Late:  # the shortest path there is
            path = PENALTIES[3:4]
            best = logistic(lambda: float("inf"), path)
    else:
        unbiased = (False, True) if _uneven(labels) else (False,)
        ways = [HeadKind("lda", strength, 1.0, unbiased=one) for strength in shrinkages for one in unbiased]
        lda = left_out(views, y, parts, drawn, lambda zs, ys, _: iter(lda_path(zs, ys, classes, shrinkages, unbiased)))
        best = _best(ways, lda, labels)
        if "logistic" in kinds:
            with suppress(Late):
                best = _better(best, logistic(seconds.searched_in(len(parts))), labels)
    how = replace(best.how, form=usual.form, keep=usual.keep)

    def refit(rows: np.ndarray) -> Fitted:
        if how.keep < 1.0 and len(rows) < len(labels):  # the features are chosen by labels
            return how.fitted(features[rows], labels[rows], classes=classes)
        return _fitted(how, axes, z[rows], y[rows], classes, path)

    return replace(best, how=how).choice(refit, labels)


@dataclass(frozen=True)
class OutOfFold:
    """A kind of head and what it said of images that it had not learnt from."""

    how: HeadKind
    loss: float
    right: np.ndarray
    logits: torch.Tensor  # [n k], out-of-fold, at the temperature
    counted: np.ndarray  # bool [n], the images whose own answer is told
    judged: np.ndarray  # bool [n], the images that the loss is of

    @classmethod
    def of(
        cls,
        how: HeadKind,
        loss: float,
        logits: torch.Tensor,
        labels: np.ndarray,
        counted: np.ndarray,
        judged: np.ndarray,
    ) -> OutOfFold:
        """With what is right of these logits."""
        return cls(how, loss, right(logits.numpy(), labels), logits, counted, judged)

    def choice(
        self, refit: Callable[[np.ndarray], Fitted], labels: np.ndarray, *, head: Fitted | None = None
    ) -> HeadChoice:
        """With the same kind and strength on all images, of these labels; head: that one, where it is known."""
        n, logits = len(labels), self.logits.numpy()
        known, told, asked = np.empty(logits.shape, np.float32), np.empty(n), self.right[self.judged]
        for rows in np.array_split(
            np.arange(n), n * logits.shape[1] // ANSWERS + 1
        ):  # in float64, which takes twice as much
            part = slice(rows[0], rows[-1] + 1)
            known[part] = probabilities(logits[part], several=several(labels))
            told[part] = np.exp(-cross_entropies(logits[part], labels[part]))
        accuracy, error = (float(asked.mean()), error_of_mean(asked)) if len(asked) else (0.0, 0.0)
        head, alone = head or refit(np.arange(n)), n - len(asked)
        return HeadChoice(
            head=head,
            how=self.how,
            accuracy=accuracy,
            standard_error=error,
            loss=self.loss,
            right=self.right,
            told=told,
            probabilities=known,
            refit=refit,
            counted=self.counted,
            judged=self.judged,
            alone=alone,
            instead=int((self.judged & ~self.counted).sum()),
        )


def _uneven(labels: np.ndarray) -> bool:
    """Whether a class has more than twice the images of another, so that it matters how LDA takes few of them."""
    counts = np.bincount(labels)
    return bool(counts.max() > 2 * counts[counts > 0].min())


def _better(one: OutOfFold, other: OutOfFold, labels: np.ndarray) -> OutOfFold:
    """That of lower loss; of few images both in equal parts, where that has a lower loss still and no fewer right.

    LDA and logistic regression err differently; a logarithmic opinion pool, as in `methods.pooled`.
    """
    best, second = sorted((one, other), key=lambda choice: choice.loss)
    if len(labels) >= _FEW:
        return best
    logits = 0.5 * (best.logits + second.logits)
    loss = _mean_loss(logits, labels, torch.from_numpy(np.flatnonzero(best.judged)))
    how = replace(best.how, beside=second.how)
    both = OutOfFold.of(how, loss, logits, labels, best.counted, best.judged)
    return both if loss < best.loss and both.right.mean() >= best.right.mean() else best


def _fitted(
    how: HeadKind,
    axes: Principal,
    z: torch.Tensor,
    y: torch.Tensor,
    classes: int,
    path: tuple[float, ...] | None = None,
) -> Head:
    """One head on coordinates z [n r] and labels y [n]; path: of penalties to a logistic one, else all stronger ones first."""
    if how.beside is not None:
        one = _fitted(replace(how, beside=None), axes, z, y, classes, path)
        other = _fitted(how.beside, axes, z, y, classes, path)
        half = np.float32(0.5)
        return replace(one, weight=half * (one.weight + other.weight), bias=half * (one.bias + other.bias))
    if how.kind == "lda":
        ((weight, bias),) = lda_path(z, y, classes, (how.strength,), (how.unbiased,))
    else:
        path = path or PENALTIES[: PENALTIES.index(how.strength) + 1]
        *_, (weight, bias) = logistic_path(z, y, classes, path, axes.variances)
    return replace(axes.undo(weight / how.temperature, bias / how.temperature), form=how.form)


def _best(ways: Sequence[HeadKind], found: LeftOut, labels: np.ndarray) -> OutOfFold:
    """The way with the least out-of-fold loss, each at its own best temperature (LDA is over-sure by nature).

    Where one has every answer right the surest would be the best, however sure: then one more answer counts as wrong. Of many
    images of many classes an even part is asked, and all of the best.
    """
    folds, classes = found.folds, len(found.heads[0][0][1])
    judged = torch.from_numpy(np.flatnonzero(folds.judged))
    asked, among = judged, found
    if len(judged) * classes > ANSWERS:
        asked = judged[torch.from_numpy(evenly(len(judged), max(1, ANSWERS // classes)))]
        among = found.among(asked)
    y = truth_of(labels)[asked]
    temperatures = [1.0] if ways[0].kind == "logistic" else [0.5, 0.7, 1.0, 1.4, 2.0, 3.0, 5.0, 8.0, _WARMEST]

    def losses(of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Iterator[tuple[float, int, float, bool]]:
        for place in range(len(ways)):
            logits = among.logits(place)[asked]
            faultless = bool((right(logits.numpy(), labels[asked.numpy()]) == 1).all())
            for t in temperatures:
                yield of(logits / t, y).item(), place, t, faultless

    told = list(losses(loss_of))
    if any(faultless for *_, faultless in told):
        told = list(losses(loss_and_a_mistake))
    loss, place, t, _ = min(told)
    ask = loss_and_a_mistake if any(one[3] for one in told) else loss_of
    if t >= _WARMEST:  # LDA on very tight classes
        logits = among.logits(place)[asked]
        while t >= _WARMEST and (milder := ask(logits / (2 * t), y).item()) < loss:
            loss, t = milder, 2 * t
    scaled = found.logits(place).div_(t)
    how = replace(ways[place], temperature=t)
    return OutOfFold.of(how, _mean_loss(scaled, labels, judged), scaled, labels, folds.counted, folds.judged)


def _mean_loss(logits: torch.Tensor, labels: np.ndarray, judged: torch.Tensor) -> float:
    """`loss_of` these rows of logits [n k]; in parts where they are many."""
    y, parts = truth_of(labels), judged.split(max(1, ANSWERS // logits.shape[1]))
    return math.fsum(loss_of(logits[part], y[part]).item() * (len(part) / len(judged)) for part in parts)
