"""Linear heads fitted to frozen features in closed form or by L-BFGS, chosen by cross-validation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from burnish.methods.base import Head
from burnish.runtime import draws

# Penalties on the mean loss for unit-variance features, strong to weak: warm starts go along the path.
PENALTIES = (1.0, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001, 0.00003)
SHRINKAGES = (0.8, 0.5, 0.2, 0.1, 0.03)


@dataclass(frozen=True)
class HeadChoice:
    """The head that cross-validation prefers, fitted to all the images given."""

    head: Head
    kind: str  # "logistic" or "lda"
    strength: float  # the penalty or the shrinkage
    accuracy: float  # cross-validated, fraction 0 to 1
    standard_error: float  # of that accuracy, over images
    loss: float  # cross-validated log loss, nats
    right: np.ndarray  # bool [n], out-of-fold
    temperature: float  # that the logits are divided by, so that the probabilities are about right

    def refitted(self, features: np.ndarray, labels: np.ndarray, *, classes: int) -> Head:
        """A head of the same kind and strength on other images."""
        x, y = torch.from_numpy(np.ascontiguousarray(features)), torch.from_numpy(labels)
        return _fitted(self.kind, self.strength, self.temperature, x, y, classes)


@dataclass(frozen=True)
class _Scale:
    """Centre and spread of features, so that one penalty suits every backbone."""

    mean: torch.Tensor
    std: torch.Tensor

    @classmethod
    def of(cls, features: torch.Tensor) -> _Scale:
        # One common spread, not one a feature: near-constant features must not be blown up to matter.
        mean = features.mean(0)
        return cls(mean, ((features - mean).square().mean().sqrt() + 1e-12).expand_as(mean))

    def apply(self, features: torch.Tensor) -> torch.Tensor:
        return (features - self.mean) / self.std

    def undo(self, weight: torch.Tensor, bias: torch.Tensor) -> Head:
        """The head on plain features that equals (weight, bias) on scaled ones."""
        plain = weight / self.std
        return Head(plain.float().numpy(), (bias - plain @ self.mean).float().numpy())


def choose_head(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    classes: int,
    seed: int,
    seconds_left: Callable[[], float],
) -> HeadChoice:
    """The best of shrinkage LDA and L2 logistic regression by k-fold cross-validated log loss.

    features float32 [n d], labels int64 [n]. LDA comes first: it takes one decomposition a fold and is the
    safer one at few shots. The logistic path is given up when no seconds are left.
    """
    x, y = torch.from_numpy(np.ascontiguousarray(features)), torch.from_numpy(labels)
    # Five folds leave few images with more to train on; from a thousand on, three say the same in half the time.
    folds = min(5 if len(labels) < 1000 else 3, max(2, int(np.bincount(labels, minlength=classes).min())))
    fold = fold_numbers(labels, folds=folds, seed=seed)
    lda = _crossed(x, y, fold, SHRINKAGES, lambda xs, ys: iter(_lda_path(xs, ys, classes)))
    best = _best("lda", SHRINKAGES, lda, y)
    try:
        logistic = _crossed(
            x, y, fold, PENALTIES, lambda xs, ys: _logistic_path(xs, ys, classes, PENALTIES, seconds_left), early=True
        )
        best = min(best, _best("logistic", PENALTIES, logistic, y), key=lambda choice: choice.loss)
    except _Late:
        pass
    return best.fitted(x, y, classes)


class _Late(Exception):
    """The clock ran out within a fit."""


@dataclass(frozen=True)
class _Crossed:
    kind: str
    strength: float
    loss: float
    temperature: float
    right: torch.Tensor

    def fitted(self, x: torch.Tensor, y: torch.Tensor, classes: int) -> HeadChoice:
        """The same kind and strength, on all images."""
        head = _fitted(self.kind, self.strength, self.temperature, x, y, classes)
        right = self.right.numpy()
        accuracy = float(right.mean())
        error = float(np.sqrt(accuracy * (1 - accuracy) / len(right)))
        return HeadChoice(head, self.kind, self.strength, accuracy, error, self.loss, right, self.temperature)


def _fitted(kind: str, strength: float, temperature: float, x: torch.Tensor, y: torch.Tensor, classes: int) -> Head:
    """One head on features x [n d] and labels y [n]."""
    scale = _Scale.of(x)
    if kind == "lda":
        ((weight, bias),) = _lda_path(scale.apply(x), y, classes, (strength,))
    else:
        *_, (weight, bias) = _logistic_path(scale.apply(x), y, classes, PENALTIES[: PENALTIES.index(strength) + 1])
    return scale.undo(weight / temperature, bias / temperature)


def fold_numbers(labels: np.ndarray, *, folds: int, seed: int) -> np.ndarray:
    """Stratified fold of each image, int64 [n], 0 to folds - 1."""
    number = np.empty(len(labels), np.int64)
    start = 0
    for label in np.unique(labels):
        members = draws(seed, "folds", int(label)).permutation(np.flatnonzero(labels == label))
        number[members] = (np.arange(len(members)) + start) % folds
        start += len(members)  # so that small classes do not all lack the same fold
    return number


def _crossed(
    x: torch.Tensor,
    y: torch.Tensor,
    fold: np.ndarray,
    strengths: tuple[float, ...],
    fit: Callable[[torch.Tensor, torch.Tensor], Iterator[tuple[torch.Tensor, torch.Tensor]]],
    *,
    early: bool = False,
) -> torch.Tensor:
    """Out-of-fold logits [strengths n k] of a path of heads.

    A fold leaves the path when its left-out loss has risen for good; the strengths after that repeat the last logits,
    so they are never chosen before it.
    """
    out: list[torch.Tensor] = []
    for number in range(int(fold.max()) + 1):
        held = torch.from_numpy(np.flatnonzero(fold == number))
        rest = torch.from_numpy(np.flatnonzero(fold != number))
        scale = _Scale.of(x[rest])
        left_out, path, least = scale.apply(x[held]), [], float("inf")
        for weight, bias in fit(scale.apply(x[rest]), y[rest]):
            path.append(left_out @ weight.T + bias)
            loss = F.cross_entropy(path[-1], y[held]).item()
            if early and loss > 1.1 * least:
                break
            least = min(least, loss)
        path += [path[-1]] * (len(strengths) - len(path))
        if not out:
            out.append(torch.empty(len(strengths), len(x), path[0].shape[1]))
        out[0][:, held] = torch.stack(path)
    return out[0]


def _best(kind: str, strengths: tuple[float, ...], logits: torch.Tensor, y: torch.Tensor) -> _Crossed:
    """The strength with the least out-of-fold loss, each at its own best temperature (LDA is over-sure by nature)."""
    found = []
    for strength, z in zip(strengths, logits, strict=True):
        temperatures = [1.0] if kind == "logistic" else [0.5, 0.7, 1.0, 1.4, 2.0, 3.0, 5.0, 8.0, 12.0]
        loss, temperature = min((F.cross_entropy(z / t, y).item(), t) for t in temperatures)
        found.append(_Crossed(kind, strength, loss, temperature, z.argmax(1) == y))
    return min(found, key=lambda crossed: crossed.loss)


def _lda_path(
    x: torch.Tensor, y: torch.Tensor, classes: int, shrinkages: tuple[float, ...] = SHRINKAGES
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Linear discriminants (weight [k d], bias [k]) for each shrinkage of the pooled covariance towards a multiple of 1."""
    x = x.double()
    counts = torch.bincount(y, minlength=classes).double()
    means = torch.zeros(classes, x.shape[1], dtype=x.dtype).index_add_(0, y, x) / counts.clamp(min=1).unsqueeze(1)
    values, vectors = _spectrum(x - means[y], max(1, len(x) - int((counts > 0).sum())))
    level = values.sum() / x.shape[1] + 1e-9
    prior = torch.log(counts.clamp(min=0.5) / len(x))
    within = means @ vectors  # [k r]; what of the means lies outside these directions meets zero variance
    out = []
    for shrinkage in shrinkages:
        floor = 1.0 / (shrinkage * level)
        inverse = 1.0 / ((1 - shrinkage) * values + shrinkage * level)
        weight = floor * means + (within * (inverse - floor)) @ vectors.T
        out.append((weight.float(), (prior - 0.5 * (weight * means).sum(1)).float()))
    return out


def _spectrum(centred: torch.Tensor, freedom: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Variances [r] and directions [d r] of rows [n d] about their class means; through the smaller Gram matrix."""
    n, d = centred.shape
    if n >= d:
        values, vectors = torch.linalg.eigh(centred.T @ centred / freedom)
        return values.clamp(min=0), vectors
    values, rows = torch.linalg.eigh(centred @ centred.T / freedom)
    kept = values > values.max() * 1e-10
    values, rows = values[kept], rows[:, kept]
    return values, centred.T @ rows / (values * freedom).sqrt()


def _logistic_path(
    x: torch.Tensor,
    y: torch.Tensor,
    classes: int,
    penalties: tuple[float, ...],
    seconds_left: Callable[[], float] = lambda: float("inf"),
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Softmax regression (weight [k d], bias [k]) for each L2 penalty in turn, started from the stronger one before it."""
    weight = torch.zeros(classes, x.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    for penalty in penalties:
        optimiser = torch.optim.LBFGS(
            [weight, bias],
            max_iter=40,
            history_size=10,
            tolerance_grad=1e-5,
            tolerance_change=1e-7,
            line_search_fn="strong_wolfe",
        )

        def closure(penalty: float = penalty, optimiser: torch.optim.LBFGS = optimiser) -> torch.Tensor:
            if seconds_left() <= 0:
                raise _Late
            optimiser.zero_grad()
            loss = F.cross_entropy(x @ weight.T + bias, y) + 0.5 * penalty * weight.square().sum()
            loss.backward()
            return loss

        optimiser.step(closure)
        yield weight.detach().clone(), bias.detach().clone()
