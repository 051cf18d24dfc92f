"""Linear heads on features in principal coordinates: shrinkage LDA in closed form, logistic regression by L-BFGS."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from burnish.labels import several
from burnish.methods.base import Head
from burnish.runtime import evenly
from burnish.uncompiled import LBFGS

# Penalties on the mean loss for unit-variance features, strong to weak: warm starts go along the path.
PENALTIES = (1.0, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001, 0.00003, 0.00001)
SHRINKAGES = (0.8, 0.5, 0.2, 0.1, 0.03)
_SCORING = PENALTIES[:4]  # the path to the head that features are chosen by
_COORDINATES = 2048  # of 6,176 dimensions, 101 classes: 94.1 % on test with 2,048, 93.9 with 1,024, 94.0 with all
_LDA_COORDINATES = 1024  # its decompositions are cubic in them, and 2,048 tell no more (LOG.md)
_SAMPLE = 4096  # images that the coordinates are found from
ANSWERS = 2**24  # images times classes that heads are compared by: by all of 14,000 of 5,000 it was half of the time
_AT_ONCE = 8192  # images whose centred features are in memory together: of 100,000 they would be gigabytes
# Steps a penalty. The path is stopped early on purpose: 8 steps from the stronger penalty's head have a lower
# cross-validated loss than 20 (0.268 against 0.276 nats on 101 classes), and take a third of the time.
_ITERATIONS = 8
_PRODUCTS, _PRODUCTS_SECONDS = 3, 0.04  # timed for what an operation takes: at least so many, for about so long


@dataclass(frozen=True)
class Principal:
    """Coordinates of features: centred, scaled by one common spread, rotated to falling variance, cut at 2,048.

    One common spread, not one a feature: near-constant features must not be blown up to matter. The rotation changes
    neither kind of head (both see features through inner products), only how fast they are found.
    """

    mean: torch.Tensor  # [d]
    std: float
    directions: torch.Tensor  # [d r], orthonormal
    variances: torch.Tensor  # [r], falling

    @classmethod
    def of(cls, features: torch.Tensor, *, quick: bool = False) -> Principal:
        """Of features [n d]; labels play no part. quick: half as many of half as many images, in a sixth of the time."""
        mean = features.mean(0)
        squares = [(part - mean).square().mean().item() * len(part) for part in features.split(_AT_ONCE)]
        std = math.sqrt(math.fsum(squares) / len(features)) + 1e-12
        sample, columns = (_SAMPLE // 2, _COORDINATES // 2) if quick else (_SAMPLE, _COORDINATES)
        rows = evenly(len(features), sample)
        centred = (features[torch.from_numpy(rows)] - mean) / std
        values, directions = spectrum(centred, len(centred), most=columns)
        values, directions = values.flip(0), directions.flip(1)
        return cls(mean, std, directions.contiguous(), values)

    @classmethod
    def of_some(cls, features: torch.Tensor, chosen: torch.Tensor) -> Principal:
        """Of the features [n d] at these places [c] alone; it is applied to all d, and has no eye for the others."""
        own, d = cls.of(features[:, chosen]), features.shape[1]
        mean, directions = torch.zeros(d), torch.zeros(d, own.directions.shape[1])
        mean[chosen], directions[chosen] = own.mean, own.directions
        return cls(mean, own.std, directions, own.variances)

    def apply(self, features: torch.Tensor) -> torch.Tensor:
        """[n r] of features [n d]."""
        parts = [((part - self.mean) / self.std) @ self.directions for part in features.split(_AT_ONCE)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def undo(self, weight: torch.Tensor, bias: torch.Tensor) -> Head:
        """The head on plain features that equals (weight [k r], bias) on coordinates."""
        plain = weight @ self.directions[:, : weight.shape[1]].T / self.std
        return Head(plain.float().numpy(), (bias - plain @ self.mean).float().numpy())


def relevant(x: torch.Tensor, y: torch.Tensor, classes: int, keep: float) -> torch.Tensor:
    """Places, rising, of the share `keep` of features [n d] that a logistic regression on all of them leans on most.

    A feature's score is the length of its weights over the classes, times its spread (Head2Toe, Evci et al. 2022,
    arXiv:2201.03529, section 3.2, with an L2 penalty in place of the group lasso).
    """
    axes = Principal.of(x)
    *_, (weight, _) = logistic_path(axes.apply(x), y, classes, _SCORING, axes.variances)
    score = (weight @ axes.directions.T).norm(dim=0) * x.std(0)
    return score.argsort(descending=True, stable=True)[: max(1, round(keep * x.shape[1]))].sort().values


def lda_path(
    x: torch.Tensor,
    y: torch.Tensor,
    classes: int,
    shrinkages: tuple[float, ...] = SHRINKAGES,
    unbiased: Sequence[bool] = (False,),
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Linear discriminants (weight [k c], bias [k]) on the first c of x [n r], for each shrinkage of the pooled covariance
    towards a multiple of 1 (Ledoit & Wolf 2004), and for that as many as `unbiased` has.

    The mean of few images is far out by chance, which counts against its class: by tr(S⁻¹ Σ) / 2n, S the shrunk covariance.
    Unbiased discriminants are without it (Moran & Murphy 1979, Applied Statistics 28:223).
    """
    x = x[:, :_LDA_COORDINATES].double()
    counts = torch.bincount(y, minlength=classes).double()
    means = torch.zeros(classes, x.shape[1], dtype=x.dtype).index_add_(0, y, x) / counts.clamp(min=1).unsqueeze(1)
    freedom = len(x) - int((counts > 0).sum())
    # Of one image a class nothing is known of the spread within one; that of all images is the most it can be.
    centred = x - (means[y] if freedom > 0 else x.mean(0))
    covariance = centred.T @ centred / max(1, freedom or len(x) - 1)
    level = covariance.diagonal().mean() + 1e-9
    spread = torch.linalg.eigvalsh(covariance) if any(unbiased) else None
    prior = torch.log(counts.clamp(min=0.5) / len(x))
    out = []
    for shrinkage in shrinkages:
        shrunk = (1 - shrinkage) * covariance
        shrunk.diagonal().add_(shrinkage * level)
        weight = torch.cholesky_solve(means.T, torch.linalg.cholesky(shrunk)).T
        bias = prior - 0.5 * (weight * means).sum(1)
        trace = 0.0 if spread is None else (spread / ((1 - shrinkage) * spread + shrinkage * level)).sum()  # tr(S⁻¹ Σ)
        for corrected in unbiased:
            chance = trace / (2 * counts.clamp(min=1)) if corrected else 0.0
            out.append((weight.float(), (bias + chance).float()))
    return out


def spectrum(centred: torch.Tensor, freedom: int, *, most: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `most` largest variances [r], rising, and directions [d r] of centred rows [n d]; through the smaller Gram matrix."""
    n, d = centred.shape
    if n >= d:
        values, vectors = _eigen(centred.T @ centred / freedom)
        return values.clamp(min=0)[-most:], vectors[:, -most:]
    values, rows = _eigen(centred @ centred.T / freedom)
    kept = values > values.max() * (1e-10 if values.dtype == torch.float64 else 1e-6)
    kept[-1] = True
    values, rows = values[kept].clamp(min=1e-30)[-most:], rows[:, kept][:, -most:]
    return values, centred.T @ (rows / (values * freedom).sqrt())


def _eigen(gram: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a symmetric matrix; in float64 while that is quick (3,000 rows: 4.3 s, float32 1.3 s on 2 cores)."""
    values, vectors = torch.linalg.eigh(gram.double() if len(gram) <= 1024 else gram)
    return values.to(gram.dtype), vectors.to(gram.dtype)


def logistic_path(
    x: torch.Tensor,
    y: torch.Tensor,
    classes: int,
    penalties: tuple[float, ...],
    variances: torch.Tensor,
    seconds_left: Callable[[], float] = lambda: float("inf"),
    iterations: int = _ITERATIONS,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Softmax regression (weight [k r], bias [k]) for each L2 penalty in turn, started from the stronger one before it.

    y: int64 [n]; or float [n k], 0 or 1, for a logistic regression of each class against the rest.
    variances [r]: of the columns of x. They and the penalty say about how curved the loss is along each column; divided
    by that, L-BFGS needs a fifth of the steps.
    """
    weight, bias = torch.zeros(classes, x.shape[1]), torch.zeros(classes)
    scale = classes if y.ndim == 2 else 1  # the sum over the classes, so that the penalty weighs the same on each
    for penalty in penalties:
        pace = (variances / classes + penalty).rsqrt()
        scaled = x * pace
        free, shift = (weight / pace).requires_grad_(), bias.clone().requires_grad_()
        optimiser = LBFGS(
            [free, shift], max_iter=iterations, tolerance_grad=1e-5, tolerance_change=1e-7,
            history_size=10, line_search_fn="strong_wolfe",
        )  # fmt: skip

        def closure(
            penalty: float = penalty,
            optimiser: torch.optim.LBFGS = optimiser,
            scaled: torch.Tensor = scaled,
            pace: torch.Tensor = pace,
            free: torch.Tensor = free,
            shift: torch.Tensor = shift,
        ) -> torch.Tensor:
            if seconds_left() <= 0:
                raise Late
            optimiser.zero_grad()
            loss = loss_of(scaled @ free.T + shift, y) * scale + 0.5 * penalty * (free * pace).square().sum()
            loss.backward()
            return loss

        optimiser.step(closure)
        weight, bias = (free * pace).detach(), shift.detach()
        yield weight, bias


def truth_of(labels: np.ndarray) -> torch.Tensor:
    """Labels as `loss_of` takes them."""
    return torch.from_numpy(labels.astype(np.float32) if several(labels) else labels)


def loss_of(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The mean cross-entropy, nats: of classes int64 [n], or of labels float [n k] over images and classes."""
    return F.binary_cross_entropy_with_logits(logits, y) if y.ndim == 2 else F.cross_entropy(logits, y)


def loss_and_a_mistake(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The mean cross-entropy with one more answer, which takes the likeliest wrong class of an image for the true one.

    As Platt (1999) smooths targets by the rule of succession; of labels [n k] the plain loss.
    """
    if y.ndim == 2:
        return loss_of(logits, y)
    told = F.log_softmax(logits, 1)
    wrong = told.scatter(1, y.unsqueeze(1), float("-inf")).max(1).values
    return (len(y) * loss_of(logits, y) - wrong.mean()) / (len(y) + 1)


def seconds_a_flop() -> float:
    """What a multiplication or an addition takes here, within a product of two matrices timed on the spot.

    The mean of several, without the first: where other programs want the processor the best one may be a third of it.
    """
    matrix = torch.full((1024, 1024), 0.5)
    _ = matrix @ matrix
    began, count = time.monotonic(), 0
    while count < _PRODUCTS or (time.monotonic() - began < _PRODUCTS_SECONDS and count < 10 * _PRODUCTS):
        _ = matrix @ matrix
        count += 1
    return (time.monotonic() - began) / (count * 2 * 1024**3)


def least_seconds(n: int, widths: Sequence[int], flop: float, *, classes: int = 1) -> float:
    """What finding a head on n images takes at the least, by LDA alone, for features of each of these widths.

    flop: `seconds_a_flop` of this machine.
    """
    total = 0.0
    for width in widths:
        among = min(n, width, _LDA_COORDINATES)
        # Three to five folds, all images, the training images; in float64, which takes twice as long. A decomposition of
        # among**3 / 3 operations runs at a third of a product's rate.
        solving = among**3 + 2.0 * classes * among**2
        total += 6 * 2 * (2.0 * n * among**2 + len(SHRINKAGES) * solving)
        # Logits of each shrinkage, and their losses at nine temperatures, 20 operations each.
        total += min(n * classes, ANSWERS) * (6 * len(SHRINKAGES) * 2.0 * among + 9 * len(SHRINKAGES) * 20.0)
    return total * flop + sum(seconds_of_coordinates(n, width, flop, quick=True) for width in widths)


def seconds_of_coordinates(n: int, width: int, flop: float, *, quick: bool = False) -> float:
    """What `Principal.of` and its `apply` take for n images of so many features."""
    sample = min(n, _SAMPLE // 2 if quick else _SAMPLE)
    side = min(sample, width)
    columns = min(side, _COORDINATES // 2 if quick else _COORDINATES)
    return flop * (4.0 * sample * side * width + 10.0 * side**3 + 2.0 * n * width * columns)


class Late(Exception):
    """The clock ran out within a fit."""
