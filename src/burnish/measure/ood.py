"""Whether an image is like those that a model was trained on, told from its features and how sure the answer is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import entr

AXES = 64  # principal directions of the features; 64, 128 and 256 tell strangers apart equally well (LOG.md)
_SHRINKAGE = 0.1  # of a covariance towards a multiple of 1: training images are few
FAMILIAR = 0.95  # of held-out images count as familiar
_DOUBT = 0.5  # how much doubt counts beside distance
_LEAST_SPREAD = 0.01  # nats: where no held-out answer is in doubt, not every shade of it counts
_NAMES, _NUMBERS = ("mean", "axes", "centres", "within", "overall"), ("limit", "doubt")


def entropies(probabilities: np.ndarray) -> np.ndarray:
    """How much in doubt each answer [n k] is, nats, float64 [n]."""
    return entr(np.asarray(probabilities, np.float64)).sum(1)


@dataclass(frozen=True, eq=False)
class Familiarity:
    """Relative Mahalanobis distance to the nearest class (Ren et al. 2021, arXiv:2106.09022), in principal directions, and how
    much in doubt the answer is.

    A stranger is far from what was seen, or lies between the classes and the network cannot decide: each tells some that the
    other does not. They are added, doubt with half the weight, in the units of how far each goes among held-out images.
    """

    mean: np.ndarray  # float32 [d], of the first d features; others play no part
    axes: np.ndarray  # float32 [d r]
    centres: np.ndarray  # float32 [c r], of the classes that have training images
    within: np.ndarray  # float32 [r r], inverse covariance around them
    overall: np.ndarray  # float32 [r r], inverse covariance of all
    limit: float = float("inf")  # the strangeness from which an image counts as unlike the training images
    doubt: float = 0.0  # the strangeness that a nat of an answer's entropy adds

    @classmethod
    def of(cls, features: np.ndarray, labels: np.ndarray) -> Familiarity:
        """Of training features [n d] and a class number for each, int64 [n]."""
        x = np.asarray(features, np.float64)
        mean = x.mean(0)
        centred = x - mean
        _, _, directions = np.linalg.svd(centred, full_matrices=False)
        axes = directions[:AXES].T
        z = centred @ axes
        present, place = np.unique(labels, return_inverse=True)
        centres = np.stack([z[place == at].mean(0) for at in range(len(present))])
        parts = (mean, axes, centres, _inverse(z - centres[place]), _inverse(z))
        mean, axes, centres, within, overall = (part.astype(np.float32) for part in parts)
        return cls(mean, axes, centres, within, overall)

    def limited_by(self, held_out: np.ndarray, unsure: np.ndarray | None = None) -> Familiarity:
        """With the limit that 95 % of new images like the held-out ones [m d] keep, as far as those can say.

        unsure: entropies of answers to them by a head that has not learnt from them, nats [m]; None where doubt plays no part.
        Split conformal: the limit is the ceil(0.95 (m + 1))-th smallest strangeness, or of fewer than 19 the largest.
        """
        far = self._distances(held_out)
        doubt = 0.0 if unsure is None else _DOUBT * _spread(far) / max(_spread(unsure), _LEAST_SPREAD)
        found = np.sort(far if unsure is None else far + doubt * unsure)
        limit = found[min(len(found), math.ceil(FAMILIAR * (len(found) + 1))) - 1]
        return replace(self, limit=float(limit), doubt=float(doubt))

    def strangeness(self, features: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
        """How unlike the training images features [n d] with answers [n k] are, float64 [n]; larger: stranger."""
        return self._distances(features) + self.doubt * entropies(probabilities)

    def strange(self, features: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
        """Which features [n d] with answers [n k] are beyond the limit, bool [n]."""
        return self.strangeness(features, probabilities) > self.limit

    def _distances(self, features: np.ndarray) -> np.ndarray:
        """How much farther features [n d] are from the nearest class than from all images, float64 [n]."""
        z = (np.asarray(features[:, : len(self.mean)], np.float64) - self.mean) @ self.axes
        apart = z[:, None, :] - self.centres[None]
        nearest = np.einsum("ncr,rs,ncs->nc", apart, self.within.astype(np.float64), apart, optimize=True).min(1)
        return nearest - np.einsum("nr,rs,ns->n", z, self.overall.astype(np.float64), z, optimize=True)

    def arrays(self) -> dict[str, np.ndarray]:
        """What a package keeps."""
        numbers = {name: np.array([getattr(self, name)], np.float32) for name in _NUMBERS}
        return {**{name: np.ascontiguousarray(getattr(self, name)) for name in _NAMES}, **numbers}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], width: int) -> Familiarity:
        """The inverse of `arrays`; ValueError when they are not of features of this width."""
        kept: dict[str, np.ndarray] = {"doubt": np.zeros(1, np.float32), **arrays}  # not kept by earlier versions
        if set(kept) != {*_NAMES, *_NUMBERS}:
            raise ValueError(f"familiarity: holds {sorted(kept)}, expected {sorted((*_NAMES, *_NUMBERS))}")
        d = kept["mean"].size
        r = kept["axes"].size // max(1, d)
        shapes = {"mean": (d,), "axes": (d, r), "within": (r, r), "overall": (r, r), "limit": (1,), "doubt": (1,)}
        wrong = [name for name, shape in shapes.items() if kept[name].shape != shape]
        wrong += ["mean"] * (d > width)
        if wrong or kept["centres"].ndim != 2 or kept["centres"].shape[1] != r or not len(kept["centres"]):
            raise ValueError(f"familiarity: {', '.join(wrong) or 'centres'} of another shape than the features ask for")
        parts = (np.asarray(kept[name], np.float32) for name in _NAMES)
        return cls(*parts, limit=kept["limit"].item(), doubt=kept["doubt"].item())


def _spread(values: np.ndarray) -> float:
    """From the middle of some values [n] to where all but 5 % of them end."""
    middle, end = np.quantile(values, [0.5, FAMILIAR])
    return float(end - middle)


def _inverse(rows: np.ndarray) -> np.ndarray:
    """The inverse covariance [r r] of centred rows [n r], shrunk."""
    covariance = rows.T @ rows / len(rows)
    level = np.trace(covariance) / len(covariance)
    return np.linalg.inv((1 - _SHRINKAGE) * covariance + (_SHRINKAGE * level + 1e-9) * np.eye(len(covariance)))
