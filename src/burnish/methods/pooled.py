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
_MOST = 2**26  # images times classes, whose answers take 256 MiB a head
_LEAST = 1e-30  # a probability that rounds to less
_SUREST = 2.0**-24  # half of what float32 tells from 1


def pooled(
    simple: HeadChoice, deep: HeadChoice, labels: np.ndarray, *, shares: Sequence[float] = SHARES
) -> HeadChoice | None:
    """One head of two, where it has a lower cross-validated log loss and no fewer right than the one of lower loss; else None.

    Its log-probabilities are, up to what makes them sum to 1, a weighted mean of theirs: a logarithmic opinion pool (Genest &
    Zidek 1986, doi:10.1214/ss/1177013825), whose error is at most the mean of theirs (Heskes 1998, "Selecting weighting factors
    in logarithmic opinion pools"). Of linear heads it is a linear head, so it costs no more than deep. deep's features begin with
    those of simple; both were chosen with the same folds on the same labels [n] or [n k].
    """
    if any(one.how.kind == NEIGHBOURS or one.how.form == COSINE for one in (simple, deep)):
        return None
    if deep.probabilities is None or deep.probabilities.size > _MOST or not deep.asked:
        return None
    base = min(simple, deep, key=lambda one: one.loss)
    first, second = _logits_of(simple, labels), _logits_of(deep, labels)  # with the same folds
    assert deep.counted is not None and deep.judged is not None
    truth, asked = truth_of(labels[deep.judged]), torch.from_numpy(deep.judged)
    found = []
    for share in shares:
        logits = mixture(first, second, share)
        how = replace(deep.how, share=share)
        both = torch.from_numpy(logits)
        one = OutOfFold.of(how, loss_of(both[asked], truth).item(), both, labels, deep.counted, deep.judged)
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
    """Out-of-fold logits float32 [n k], those of one class an image up to a number the image's own."""
    assert choice.probabilities is not None
    if not several(labels):
        return np.log(np.maximum(choice.probabilities, np.float32(_LEAST)))
    chances = np.clip(choice.probabilities, np.float32(_SUREST), np.float32(1.0 - _SUREST))
    return np.log(chances) - np.log1p(-chances)
