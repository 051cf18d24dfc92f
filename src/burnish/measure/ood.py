"""Whether an image is like those that a model was trained on, told from its features."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

AXES = 64  # principal directions of the features; 64, 128 and 256 tell strangers apart equally well (LOG.md)
_SHRINKAGE = 0.1  # of a covariance towards a multiple of 1: training images are few
FAMILIAR = 0.95  # of held-out images count as familiar
_NAMES = ("mean", "axes", "centres", "within", "overall")


@dataclass(frozen=True, eq=False)
class Familiarity:
    """Relative Mahalanobis distance to the nearest class (Ren et al. 2021, arXiv:2106.09022), in principal directions."""

    mean: np.ndarray  # float32 [d]
    axes: np.ndarray  # float32 [d r]
    centres: np.ndarray  # float32 [c r], of the classes that have training images
    within: np.ndarray  # float32 [r r], inverse covariance around them
    overall: np.ndarray  # float32 [r r], inverse covariance of all
    limit: float = float("inf")  # the strangeness from which an image counts as unlike the training images

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

    def limited_by(self, held_out: np.ndarray) -> Familiarity:
        """With the limit that 95 % of new images like the held-out ones [m d] keep, as far as those can say.

        Split conformal: the limit is the ceil(0.95 (m + 1))-th smallest strangeness, or of fewer than 19 the largest.
        """
        found = np.sort(self.strangeness(held_out))
        return replace(self, limit=float(found[min(len(found), math.ceil(FAMILIAR * (len(found) + 1))) - 1]))

    def widened(self, width: int) -> Familiarity:
        """The same for features [n width] of which those that it was made of come first, and the others play no part."""
        missing = width - len(self.mean)
        return replace(self, mean=np.pad(self.mean, (0, missing)), axes=np.pad(self.axes, ((0, missing), (0, 0))))

    def strangeness(self, features: np.ndarray) -> np.ndarray:
        """How much farther features [n d] are from the nearest class than from all images, float64 [n]; larger: stranger."""
        z = (np.asarray(features, np.float64) - self.mean) @ self.axes
        apart = z[:, None, :] - self.centres[None]
        nearest = np.einsum("ncr,rs,ncs->nc", apart, self.within.astype(np.float64), apart, optimize=True).min(1)
        return nearest - np.einsum("nr,rs,ns->n", z, self.overall.astype(np.float64), z, optimize=True)

    def strange(self, features: np.ndarray) -> np.ndarray:
        """Which features [n d] are beyond the limit, bool [n]."""
        return self.strangeness(features) > self.limit

    def arrays(self) -> dict[str, np.ndarray]:
        """What a package keeps."""
        limit = np.array([self.limit], np.float32)
        return {**{name: np.ascontiguousarray(getattr(self, name)) for name in _NAMES}, "limit": limit}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], width: int) -> Familiarity:
        """The inverse of `arrays`; ValueError when they are not of features of this width."""
        if set(arrays) != {*_NAMES, "limit"}:
            raise ValueError(f"familiarity: holds {sorted(arrays)}, expected {sorted((*_NAMES, 'limit'))}")
        r = arrays["axes"].shape[-1]
        shapes = {"mean": (width,), "axes": (width, r), "within": (r, r), "overall": (r, r), "limit": (1,)}
        wrong = [name for name, shape in shapes.items() if arrays[name].shape != shape]
        if wrong or arrays["centres"].ndim != 2 or arrays["centres"].shape[1] != r or not len(arrays["centres"]):
            raise ValueError(f"familiarity: {', '.join(wrong) or 'centres'} of another shape than the features ask for")
        return cls(*(np.asarray(arrays[name], np.float32) for name in _NAMES), limit=float(arrays["limit"][0]))


def _inverse(rows: np.ndarray) -> np.ndarray:
    """The inverse covariance [r r] of centred rows [n r], shrunk."""
    covariance = rows.T @ rows / len(rows)
    level = np.trace(covariance) / len(covariance)
    return np.linalg.inv((1 - _SHRINKAGE) * covariance + (_SHRINKAGE * level + 1e-9) * np.eye(len(covariance)))
