"""Whether an image is like those that a model was trained on, told from its features and how sure the answer is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.spatial.distance import cdist
from scipy.special import entr

from burnish.runtime import evenly

AXES = 64  # principal directions of the features; 64, 128 and 256 tell strangers apart equally well (LOG.md)
_SHRINKAGE = 0.1  # of a covariance towards a multiple of 1: training images are few
_DIRECTED_BY = 1000  # images, for the directions
_ROUNDING = 1e-6  # of a squared distance: what float32 directions leave of one within them
_NOTHING, _LEAST_VARIANCE = 1e-10, 1e-9  # of the largest square; of a feature
FAMILIAR = 0.95  # of held-out images count as familiar
_DOUBT = 0.5  # how much doubt counts beside distance
_LEAST_SPREAD = 0.01  # nats: where no held-out answer is in doubt, not every shade of it counts
_BESIDE = 1.2  # so many times the squared distance from the directions that any held-out image has is strange by itself
_NUMBERS_AT_ONCE = 2**22  # distances from classes
_NAMES, _NUMBERS = ("mean", "axes", "centres", "within", "overall"), ("limit", "doubt", "usual", "beside")
_EARLIER = {"doubt": 0.0, "usual": math.inf, "beside": math.inf}  # what earlier versions did not keep


def entropies(probabilities: np.ndarray) -> np.ndarray:
    """How much in doubt each answer [n k] is, nats, float64 [n]."""
    return entr(np.asarray(probabilities, np.float64)).sum(1)


@dataclass(frozen=True, eq=False)
class Familiarity:
    """Relative Mahalanobis distance to the nearest class (Ren et al. 2021, arXiv:2106.09022), in principal directions, and how
    much in doubt the answer is.

    A stranger is far from what was seen, or lies between the classes and the network cannot decide: each tells some that the
    other does not. They are added, doubt with half the weight, in the units of how far each goes among held-out images.

    Being far from all images excuses being far from each class, which tells classes never seen. It excuses no more than it does
    for any held-out image: where classes are few, a blank page is as far from all as from each. And what lies clearly farther
    from the directions than any held-out image is a stranger whatever it looks like within them.
    """

    mean: np.ndarray  # float32 [d], of the first d features; others play no part
    axes: np.ndarray  # float32 [d r]
    centres: np.ndarray  # float32 [c r], of the classes that have training images
    within: np.ndarray  # float32 [r r], inverse covariance around them
    overall: np.ndarray  # float32 [r r], inverse covariance of all
    limit: float = float("inf")  # the strangeness from which an image counts as unlike the training images
    doubt: float = 0.0  # the strangeness that a nat of an answer's entropy adds
    usual: float = math.inf  # the most that the distance from all images takes away
    beside: float = math.inf  # the squared distance from the directions beyond which any image is strange

    @classmethod
    def of(cls, features: np.ndarray, labels: np.ndarray) -> Familiarity:
        """Of training features [n d] and a class number for each, int64 [n].

        Directions are those of at most 1,000 images, evenly spread; all count for the classes.
        """
        some = np.asarray(features[evenly(len(features), _DIRECTED_BY)], np.float64)
        mean = some.mean(0)
        axes = principal(some - mean)
        z = features @ axes.astype(np.float32) - mean @ axes
        present, place = np.unique(labels, return_inverse=True)
        centres = np.stack([z[place == at].mean(0) for at in range(len(present))])
        usual = float(z.var(0).mean())
        within = _inverse(z - centres[place], len(z) - len(present), usual)
        overall = _inverse(z - z.mean(0), len(z) - 1, usual)
        mean, axes, centres, within, overall = (
            part.astype(np.float32) for part in (mean, axes, centres, within, overall)
        )
        return cls(mean, axes, centres, within, overall)

    def limited_by(self, held_out: np.ndarray, unsure: np.ndarray | None = None) -> Familiarity:
        """With the limit that 95 % of new images like the held-out ones [m d] keep, as far as those can say.

        unsure: entropies of answers to them by a head that has not learnt from them, nats [m]; None where doubt plays no part.
        Split conformal: the limit is the ceil(0.95 (m + 1))-th smallest strangeness, or of fewer than 19 the largest.
        """
        each, every, beside = self._distances(held_out)
        far = each - every
        doubt = 0.0 if unsure is None else _DOUBT * _spread(far) / max(_spread(unsure), _LEAST_SPREAD)
        found = np.sort(far if unsure is None else far + doubt * unsure)
        limit = found[min(len(found), math.ceil(FAMILIAR * (len(found) + 1))) - 1]
        numbers = {"limit": limit, "doubt": doubt, "usual": every.max(), "beside": _BESIDE * beside.max()}
        # As a package and a state keep them: who opens the package, or takes the run up, draws the line where this one does.
        return replace(self, **{name: float(np.float32(value)) for name, value in numbers.items()})

    def strangeness(self, features: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
        """How unlike the training images features [n d] with answers [n k] are, float64 [n]; larger: stranger."""
        each, every, beside = self._distances(features)
        found = each - np.minimum(every, self.usual) + self.doubt * entropies(probabilities)
        outside = beside > self.beside
        found[outside] = np.maximum(found[outside], self.limit) + beside[outside] / max(self.beside, _NOTHING)
        return found

    def strange(self, features: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
        """Which features [n d] with answers [n k] are beyond the limit, bool [n]."""
        return self.strangeness(features, probabilities) > self.limit

    def _distances(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Squared distances of features [n d] from the nearest class, from all images and from the directions, float64 [n]."""
        moved = np.asarray(features[:, : len(self.mean)], np.float64) - self.mean
        z = moved @ self._directions
        at_once = max(1, _NUMBERS_AT_ONCE // len(self.centres))
        parts = [self._from_nearest(z[start : start + at_once]) for start in range(0, len(z), at_once)]
        each = np.concatenate(parts) if parts else np.zeros(0)
        every = np.einsum("nr,rs,ns->n", z, self.overall.astype(np.float64), z, optimize=True)
        return each, every, np.maximum(0.0, (1.0 - _ROUNDING) * (moved**2).sum(1) - (z**2).sum(1))

    def _from_nearest(self, z: np.ndarray) -> np.ndarray:
        """Squared distances of points [n r] from the nearest class, float64 [n]."""
        white, centres = self._whitened
        return cdist(z @ white, centres, "sqeuclidean").min(1)

    # What is the same for every image is made once: for one image at a time it takes a third as long as the network.
    @cached_property
    def _directions(self) -> np.ndarray:
        """`axes` in the numbers that are computed with, float64 [d r]."""
        return self.axes.astype(np.float64)

    @cached_property
    def _whitened(self) -> tuple[np.ndarray, np.ndarray]:
        """([r r], [c r]): what makes all directions within the classes alike, and the classes' centres under it."""
        values, vectors = _eigen(self.within.astype(np.float64))
        white = vectors * np.sqrt(np.maximum(values, 0.0))  # float32 may have left an inverse a little below zero
        return white, self.centres @ white

    def __getstate__(self) -> dict[str, Any]:
        """What a pickle holds: what a package keeps."""
        return {name: getattr(self, name) for name in (*_NAMES, *_NUMBERS)}

    def arrays(self) -> dict[str, np.ndarray]:
        """What a package keeps."""
        numbers = {name: np.array([getattr(self, name)], np.float32) for name in _NUMBERS}
        return {**{name: np.ascontiguousarray(getattr(self, name)) for name in _NAMES}, **numbers}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], width: int) -> Familiarity:
        """The inverse of `arrays`; ValueError when they are not of features of this width."""
        kept = {name: np.array([value], np.float32) for name, value in _EARLIER.items()} | dict(arrays)
        if set(kept) != {*_NAMES, *_NUMBERS}:
            raise ValueError(f"familiarity: holds {sorted(kept)}, expected {sorted((*_NAMES, *_NUMBERS))}")
        d = kept["mean"].size
        r = kept["axes"].size // max(1, d)
        shapes = {"mean": (d,), "axes": (d, r), "within": (r, r), "overall": (r, r), **dict.fromkeys(_NUMBERS, (1,))}
        wrong = [name for name, shape in shapes.items() if kept[name].shape != shape]
        wrong += ["mean"] * (d > width)
        if broken := [name for name in _NAMES if not np.isfinite(kept[name]).all()]:
            raise ValueError(f"familiarity: {', '.join(broken)} with NaN or infinite values")
        if wrong or kept["centres"].ndim != 2 or kept["centres"].shape[1] != r or not len(kept["centres"]):
            raise ValueError(f"familiarity: {', '.join(wrong) or 'centres'} of another shape than the features ask for")
        mean, axes, centres, within, overall = (np.asarray(kept[name], np.float32) for name in _NAMES)
        numbers = {name: kept[name].item() for name in _NUMBERS}
        if broken := [name for name, value in numbers.items() if np.isnan(value)]:
            raise ValueError(f"familiarity: {', '.join(broken)} is no number")
        return cls(mean, axes, centres, within, overall, **numbers)


def _spread(values: np.ndarray) -> float:
    """From the middle of some values [n] to where all but 5 % of them end."""
    middle, end = np.quantile(values, [0.5, FAMILIAR])
    return float(end - middle)


def _eigen(square: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues [n], rising, and vectors [n n] of a symmetric float64 matrix.

    Not by scipy, whose threads wait for each other: 1,000 rows take 0.1 s, and beside four busy programs up to 16 (torch: 0.9).
    """
    values, vectors = torch.linalg.eigh(torch.from_numpy(square))
    return values.numpy(), vectors.numpy()


def principal(centred: np.ndarray) -> np.ndarray:
    """Orthogonal directions float64 [d r] in which centred rows [n d] vary most, by the smaller of the two squares; r from 1."""
    n, d = centred.shape
    square = centred @ centred.T if n < d else centred.T @ centred
    values, vectors = (told[..., -AXES:] for told in _eigen(square))
    vectors = vectors[:, (values > _NOTHING * values[-1]) | (np.arange(len(values)) == len(values) - 1)]
    directions = (centred.T @ vectors if n < d else vectors)[:, ::-1]
    return directions / np.maximum(np.linalg.norm(directions, axis=0), _NOTHING)


def _inverse(rows: np.ndarray, freedom: int, usual: float) -> np.ndarray:
    """The inverse covariance [r r] of centred rows [n r], shrunk towards a multiple of 1.

    freedom: how many of the rows are free, images less what they were centred by. With as many as there are directions the
    covariance is believed but for a tenth, with fewer in proportion; without any, as where each class has one image, all that is
    known is the `usual` variance in a direction.
    """
    r = rows.shape[1]
    scatter = rows.T @ rows
    level = (np.trace(scatter) / r + usual) / (freedom + 1)
    shrinkage = max(_SHRINKAGE, 1.0 - freedom / r)
    covariance = (1.0 - shrinkage) * scatter / max(1, freedom) + (shrinkage * level + _LEAST_VARIANCE) * np.eye(r)
    return np.linalg.inv(covariance)
