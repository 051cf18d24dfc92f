"""Two linear heads as one: what the last layer says, and what all depths say, averaged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from burnish.backbones.head import COSINE, NEIGHBOURS
from burnish.labels import several
from burnish.methods.base import Fitted, Head
from burnish.methods.heads import HeadChoice, OutOfFold
from burnish.methods.linear import loss_of, truth_of

# The say of the head on all depths: half, or less, nearer to the simpler head; more would differ little from having it all.
SHARES = (0.25, 0.5)
_LEAST = 1e-30  # a probability that rounds to less


def pooled(
    simple: HeadChoice, deep: HeadChoice, labels: np.ndarray, *, shares: Sequence[float] = SHARES
) -> HeadChoice | None:
    """One head of two, where cross-validation gives it a lower log loss than either and it has no fewer right; else None.

    Its log-probabilities are, up to what makes them sum to 1, a weighted mean of theirs: a logarithmic opinion pool (Genest &
    Zidek 1986, doi:10.1214/ss/1177013825), whose error is at most the mean of theirs (Heskes 1998, "Selecting weighting factors
    in logarithmic opinion pools"). Of linear heads it is a linear head, so it costs nothing to use. deep's features begin with
    those of simple; both were chosen with the same folds on the same labels [n] or [n k].
    """
    if any(one.how.kind == NEIGHBOURS or one.how.form == COSINE or one.probabilities is None for one in (simple, deep)):
        return None
    base = min(simple, deep, key=lambda one: one.loss)
    first, second = _logits_of(simple, labels), _logits_of(deep, labels)
    truth = truth_of(labels)
    found = []
    for share in shares:
        logits = mixture(first, second, share).astype(np.float32)
        how = replace(deep.how, share=share)
        one = OutOfFold.of(how, loss_of(torch.from_numpy(logits), truth).item(), torch.from_numpy(logits), labels)
        if one.loss < base.loss and one.right.mean() >= base.right.mean():
            found.append(one)
    if not found:
        return None
    best = min(found, key=lambda one: one.loss)
    one_again, other_again = simple.refit, deep.refit
    assert one_again is not None and other_again is not None

    def refit(rows: np.ndarray) -> Fitted:
        return mixed(one_again(rows), other_again(rows), best.how.share)

    return best.choice(refit, labels, head=mixed(simple.head, deep.head, best.how.share))


def mixture(simple: np.ndarray, deep: np.ndarray, share: float) -> np.ndarray:
    """The mean of the logits [n k] of two, weighted by the say of the second."""
    return (1.0 - share) * simple + share * deep


def mixed(simple: Fitted, deep: Fitted, share: float) -> Head:
    """The linear head whose logits are the weighted mean of those of two; deep's features begin with those of simple."""
    assert isinstance(simple, Head) and isinstance(deep, Head)
    wide = np.zeros_like(deep.weight)
    wide[:, : simple.width] = simple.weight
    weight, bias = mixture(wide, deep.weight, share), mixture(simple.bias, deep.bias, share)
    return Head(weight.astype(np.float32), bias.astype(np.float32), deep.form)


def _logits_of(choice: HeadChoice, labels: np.ndarray) -> np.ndarray:
    """Out-of-fold logits float64 [n k], those of one class an image up to a number the image's own."""
    assert choice.probabilities is not None
    chances = choice.probabilities.astype(np.float64)
    logits = np.log(np.maximum(chances, _LEAST))
    return logits - np.log(np.maximum(1.0 - chances, _LEAST)) if several(labels) else logits
