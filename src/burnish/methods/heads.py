"""Heads fitted to frozen features: linear in closed form or by L-BFGS, or neighbours; chosen by cross-validation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import torch

from burnish.backbones.head import LINEAR, NEIGHBOURS, seen_by
from burnish.errors import RecipeError
from burnish.labels import counts, cross_entropies, leading, probabilities, right, several
from burnish.methods.base import Fitted, Head
from burnish.methods.linear import (
    PENALTIES,
    SHRINKAGES,
    Late,
    Principal,
    lda_path,
    logistic_path,
    loss_and_a_mistake,
    loss_of,
    relevant,
    seconds_a_flop,
    seconds_of_coordinates,
    truth_of,
)
from burnish.methods.neighbours import Neighbours, crossed
from burnish.runtime import draws

LINEAR_KINDS = ("lda", "logistic")
KINDS = (*LINEAR_KINDS, NEIGHBOURS)
_Path = Iterator[tuple[torch.Tensor, torch.Tensor]]  # weight [k r] and bias [k] for each strength


@dataclass(frozen=True)
class HeadKind:
    """How a head is fitted."""

    kind: str  # of KINDS
    strength: float  # the penalty, the shrinkage, or how many neighbours
    temperature: float  # that logits, or neighbours' cosines, are divided by, so that the probabilities are about right
    form: str = LINEAR  # of the head that is started so, where it is linear
    keep: float = 1.0  # the share of the features that it looks at, where it is linear
    share: float = 1.0  # its say beside a head on the last layer alone, where both are averaged (`methods.pooled`)

    def fitted(self, features: np.ndarray, labels: np.ndarray, *, classes: int) -> Fitted:
        """The head on features float32 [n d] and labels int64 [n], or bool [n k]."""
        assert self.share == 1.0, "an average is fitted by `methods.pooled`"
        if self.kind == NEIGHBOURS:
            return Neighbours.of(
                features, labels, classes=classes, neighbours=int(self.strength), temperature=self.temperature
            )
        x, y = seen_by(self.form, torch.from_numpy(np.ascontiguousarray(features))), truth_of(labels)
        axes = _axes(x, y, classes, self.keep)
        return _fitted(self, axes, axes.apply(x), y, classes)


@dataclass(frozen=True)
class HeadChoice:
    """The head that cross-validation prefers, fitted to all the images given."""

    head: Fitted
    how: HeadKind
    accuracy: float  # cross-validated, fraction 0 to 1
    standard_error: float  # of that accuracy, over images
    loss: float  # cross-validated log loss, nats
    right: np.ndarray  # bool [n], out-of-fold; with several classes an image float64 [n], 0 to 1
    told: np.ndarray  # float64 [n], out-of-fold: the probability of what is true; of several classes the geometric mean
    probabilities: np.ndarray | None = None  # float32 [n k], out-of-fold; None once the run was taken up again
    # The same kind and strength on some of those images, by their places; what knows no labels is not found anew.
    refit: Callable[[np.ndarray], Fitted] | None = None


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
) -> HeadChoice:
    """The best of these kinds by k-fold cross-validated log loss: shrinkage LDA, L2 logistic regression, neighbours.

    features float32 [n d], labels int64 [n]. LDA comes first: it takes one decomposition a fold and is the
    safer one at few shots. The logistic path is given up when no seconds are left. Labels bool [n k], several an image, have
    a logistic regression of each class against the rest, and no LDA (RecipeError where nothing else is asked for).
    keep: linear heads look at this share of the features, chosen anew within each fold.
    """
    # Five folds leave few images with more to train on; from a thousand on, three say the same in half the time.
    folds = min(5 if len(labels) < 1000 else 3, max(2, int(counts(labels, classes).min())))
    fold = fold_numbers(leading(labels), folds=folds, seed=seed)
    found: list[HeadChoice] = []
    if NEIGHBOURS in kinds:
        found.append(_by_neighbours(features, labels, fold, classes))
    linear = tuple(kind for kind in kinds if kind in LINEAR_KINDS)
    if linear:
        usual = HeadKind("", 0.0, 1.0, form, keep)
        found.append(_linear(features, labels, fold, linear, usual, classes=classes, seconds_left=seconds_left))
    return min(found, key=lambda choice: choice.loss)


def head_from(form: str, arrays: Mapping[str, np.ndarray]) -> Fitted:
    """The inverse of `Fitted.arrays`."""
    return (Neighbours if form.startswith(NEIGHBOURS) else Head)(form=form, **arrays)


def _by_neighbours(features: np.ndarray, labels: np.ndarray, fold: np.ndarray, classes: int) -> HeadChoice:
    features = np.ascontiguousarray(features)
    best = crossed(features, labels, fold, classes=classes)
    how = HeadKind(NEIGHBOURS, best.neighbours, best.temperature)

    def refit(rows: np.ndarray) -> Fitted:
        return how.fitted(features[rows], labels[rows], classes=classes)

    return OutOfFold.of(how, best.loss, best.logits, labels).choice(refit, labels)


def _linear(
    features: np.ndarray,
    labels: np.ndarray,
    fold: np.ndarray,
    kinds: tuple[str, ...],
    usual: HeadKind,
    *,
    classes: int,
    seconds_left: Callable[[], float],
) -> HeadChoice:
    """The better of LDA and logistic regression, or the one that is asked for; usual: its form, and what it looks at."""
    x, y = seen_by(usual.form, torch.from_numpy(np.ascontiguousarray(features))), truth_of(labels)
    left = seconds_left()
    quick = left < float("inf") and left < seconds_of_coordinates(len(x), x.shape[1], seconds_a_flop())
    axes = _axes(x, y, classes, usual.keep, quick=quick)
    z = axes.apply(x)
    folds = [torch.from_numpy(np.flatnonzero(fold == number)) for number in range(int(fold.max()) + 1)]
    views = _views(x, y, z, axes, folds, classes, usual.keep)

    def logistic(left: Callable[[], float], penalties: tuple[float, ...] = PENALTIES) -> OutOfFold:
        def path(zs: torch.Tensor, ys: torch.Tensor, variances: torch.Tensor) -> _Path:
            return logistic_path(zs, ys, classes, penalties, variances, left)

        return _best("logistic", penalties, _crossed(views, y, folds, path, early=True), labels)

    if "logistic" not in kinds and several(labels):
        raise RecipeError("LDA needs one class an image; leave head=lda out")
    if "lda" not in kinds or several(labels):
        try:
            best = logistic(seconds_left)
        except Late:  # the shortest path there is
            best = logistic(lambda: float("inf"), PENALTIES[3:4])
    else:
        lda = _crossed(views, y, folds, lambda zs, ys, _: iter(lda_path(zs, ys, classes)))
        best = _best("lda", SHRINKAGES, lda, labels)
        if "logistic" in kinds:
            with suppress(Late):
                best = min(best, logistic(seconds_left), key=lambda choice: choice.loss)
    how = replace(best.how, form=usual.form, keep=usual.keep)

    def refit(rows: np.ndarray) -> Fitted:
        if how.keep < 1.0 and len(rows) < len(labels):  # the features are chosen by labels
            return how.fitted(features[rows], labels[rows], classes=classes)
        return _fitted(how, axes, z[rows], y[rows], classes)

    return replace(best, how=how).choice(refit, labels)


@dataclass(frozen=True)
class OutOfFold:
    """A kind of head and what it said of images that it had not learnt from."""

    how: HeadKind
    loss: float
    right: np.ndarray
    logits: torch.Tensor  # [n k], out-of-fold, at the temperature

    @classmethod
    def of(cls, how: HeadKind, loss: float, logits: torch.Tensor, labels: np.ndarray) -> OutOfFold:
        """With what is right of these logits."""
        return cls(how, loss, right(logits.numpy(), labels), logits)

    def choice(
        self, refit: Callable[[np.ndarray], Fitted], labels: np.ndarray, *, head: Fitted | None = None
    ) -> HeadChoice:
        """With the same kind and strength on all images, of these labels; head: that one, where it is known."""
        n, logits = len(labels), self.logits.numpy()
        known = probabilities(logits, several=several(labels)).astype(np.float32)
        told, error = np.exp(-cross_entropies(logits, labels)), float(self.right.std() / np.sqrt(n))
        head, accuracy = head or refit(np.arange(n)), float(self.right.mean())
        return HeadChoice(head, self.how, accuracy, error, self.loss, self.right, told, known, refit)


def _axes(x: torch.Tensor, y: torch.Tensor, classes: int, keep: float, *, quick: bool = False) -> Principal:
    """Coordinates of all features, or of the share of them that matters most for these labels."""
    return Principal.of(x, quick=quick) if keep == 1.0 else Principal.of_some(x, relevant(x, y, classes, keep))


def _views(
    x: torch.Tensor,
    y: torch.Tensor,
    z: torch.Tensor,
    axes: Principal,
    folds: Sequence[torch.Tensor],
    classes: int,
    keep: float,
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(coordinates [n r], their variances) for each fold.

    The same for all where no feature is chosen: coordinates know no labels, and what they leave out they leave out of all heads.
    """
    if keep == 1.0:
        return [(z, axes.variances)] * len(folds)
    rest = [np.setdiff1d(np.arange(len(x)), held) for held in folds]
    own = [_axes(x[rows], y[rows], classes, keep) for rows in map(torch.from_numpy, rest)]
    return [(one.apply(x), one.variances) for one in own]


def _fitted(how: HeadKind, axes: Principal, z: torch.Tensor, y: torch.Tensor, classes: int) -> Head:
    """One head on coordinates z [n r] and labels y [n]."""
    if how.kind == "lda":
        ((weight, bias),) = lda_path(z, y, classes, (how.strength,))
    else:
        path = PENALTIES[: PENALTIES.index(how.strength) + 1]
        *_, (weight, bias) = logistic_path(z, y, classes, path, axes.variances)
    return replace(axes.undo(weight / how.temperature, bias / how.temperature), form=how.form)


def fold_numbers(labels: np.ndarray, *, folds: int, seed: int) -> np.ndarray:
    """Stratified fold of each image, int64 [n], 0 to folds - 1."""
    number = np.empty(len(labels), np.int64)
    start = 0
    for label in np.unique(labels):
        members = draws(seed, "folds", int(label)).permutation(np.flatnonzero(labels == label))
        number[members] = (np.arange(len(members)) + start) % folds
        start += len(members)  # so that small classes do not all lack the same fold
    return number


@dataclass(frozen=True)
class _Folds:
    """Heads fitted without each fold, one a strength; answers are made when asked for: those of all may be gigabytes."""

    views: Sequence[tuple[torch.Tensor, torch.Tensor]]  # (coordinates [n r], their variances) for each fold
    held: Sequence[torch.Tensor]  # the images left out, by their places
    heads: Sequence[
        Sequence[tuple[torch.Tensor, torch.Tensor]]
    ]  # weight [k c] and bias [k]; the last stands for all after it

    def logits(self, place: int) -> torch.Tensor:
        """Out-of-fold [n k], of the strength at this place."""
        found: list[torch.Tensor] = []
        for held, (z, _), path in zip(self.held, self.views, self.heads, strict=True):
            part = _logits(z[held], *path[min(place, len(path) - 1)])
            if not found:
                found.append(torch.empty(len(z), part.shape[1]))
            found[0][held] = part
        return found[0]


def _crossed(
    views: Sequence[tuple[torch.Tensor, torch.Tensor]],
    y: torch.Tensor,
    folds: Sequence[torch.Tensor],
    fit: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], _Path],
    *,
    early: bool = False,
) -> _Folds:
    """A path of heads without each fold; views: (coordinates [n r], their variances) for each fold.

    A fold leaves the path when its left-out loss has risen for good; the strengths after that repeat the last head, so they
    are never chosen before it.
    """
    heads = []
    for held, (z, variances) in zip(folds, views, strict=True):
        rest = torch.ones(len(z), dtype=torch.bool)
        rest[held] = False
        left_out, path, least = z[held], [], float("inf")
        for weight, bias in fit(z[rest], y[rest], variances):
            path.append((weight, bias))
            if not early:
                continue
            loss = loss_of(_logits(left_out, weight, bias), y[held]).item()
            if loss > 1.1 * least:
                break
            least = min(least, loss)
        heads.append(path)
    return _Folds(views, folds, heads)


def _logits(z: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """[n k] of a head that sees the first c of r coordinates."""
    return z[:, : weight.shape[1]] @ weight.T + bias


def _best(kind: str, strengths: tuple[float, ...], folds: _Folds, labels: np.ndarray) -> OutOfFold:
    """The strength with the least out-of-fold loss, each at its own best temperature (LDA is over-sure by nature).

    Where one has every answer right the surest would be the best, however sure: then one more answer counts as wrong.
    """
    y = truth_of(labels)
    temperatures = [1.0] if kind == "logistic" else [0.5, 0.7, 1.0, 1.4, 2.0, 3.0, 5.0, 8.0, 12.0]

    def losses(asked: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Iterator[tuple[float, int, float, bool]]:
        for place in range(len(strengths)):
            logits = folds.logits(place)
            faultless = bool((right(logits.numpy(), labels) == 1).all())
            for t in temperatures:
                yield asked(logits / t, y).item(), place, t, faultless

    found = list(losses(loss_of))
    if any(faultless for *_, faultless in found):
        found = list(losses(loss_and_a_mistake))
    _, place, t, _ = min(found)
    logits = folds.logits(place)
    scaled = logits / t
    return OutOfFold(
        HeadKind(kind, strengths[place], t), loss_of(scaled, y).item(), right(logits.numpy(), labels), scaled
    )
