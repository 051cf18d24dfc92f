"""Images that are the same picture: resized, compressed again, mirrored, cropped a little, or slightly recoloured.

Candidates are neighbours in a small descriptor (the lowest frequencies of the grey picture, as in perceptual hashes, but
not rounded to bits). Each pair is then laid over the other, by scale and shift (Lucas and Kanade 1981), and compared in its
fine detail, which pictures that merely resemble each other do not share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from scipy.fft import dctn
from torch import Tensor

from burnish.data.cache import Rows
from burnish.data.ties import clusters_of

_NEIGHBOURS, _PAIRS_A_ROW = 16, 5  # of each image at most, and of all on average, compared in detail; the nearest first
_ALIKE = 0.7  # cosine of the descriptors; twins cropped by 5 % have 0.6 to 0.99, most above 0.85
_LEVELS = ((4, 4, 0.92), (2, 3, 0.88), (1, 2, 0.93))  # each: shrunk by, steps of laying over, correlation to go on
SAME = _LEVELS[-1][2]  # correlation of the detail from which two pictures are one: see benchmarks/audit.py
_SAME_TINY, _TINY = 0.97, 48  # the same for originals whose short side has fewer pixels
_MOST_OF_ONE, _MOST_SHARE_OF_ONE = 50, 0.02
ALL_BUT_EQUAL = 0.985
# So many pictures, if they are also more than a quarter of all, are rather a camera's that does not move than one picture; and
# so are those of which so many have another label than most.
_FEW_OF_ONE, _FEW_OF_ANOTHER_LABEL = 8, 3
_COLOUR = 14.0  # mean difference of the colour channels Cb and Cr, of 255, that "slightly recoloured" may reach
_FLAT = 4.0  # standard deviation of grey below which there is no detail to compare
_FREQUENCIES = 8
_MOST_WARP = 0.16  # of the side, in scale and shift
_BLOCK, _PAIRS = 2048, 2048  # rows and pairs at a time
_COSINES = 2**25  # of rows with all others, held at a time: 24 bytes each
_LUMA = torch.tensor([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class Twins:
    """Pairs of rows that show the same picture."""

    first: np.ndarray  # int64 [m], below `second`
    second: np.ndarray  # int64 [m]
    likeness: np.ndarray  # float32 [m], correlation of the detail, SAME to 1
    mirrored: np.ndarray  # bool [m]

    @classmethod
    def none(cls) -> Twins:
        """No pair."""
        return cls(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, bool))

    def __len__(self) -> int:
        return len(self.first)

    def at(self, rows: np.ndarray) -> Twins:
        """The same pairs, by the rows that theirs stand for."""
        return Twins(rows[self.first], rows[self.second], self.likeness, self.mirrored)

    def where(self, kept: np.ndarray) -> Twins:
        """Those pairs that are kept: bool [m]."""
        return Twins(self.first[kept], self.second[kept], self.likeness[kept], self.mirrored[kept])

    def clusters(self, count: int) -> np.ndarray:
        """int64 [n]: the smallest row that each of so many rows is a twin of, directly or through others; its own if of none."""
        return clusters_of(self.first, self.second, count)


def find_twins(
    thumbs: Rows,
    sides: np.ndarray,
    *,
    most_pairs: int | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> tuple[Twins, int]:
    """(all pairs among small squares, the number of pairs that were alike enough to be compared in detail).

    thumbs: uint8 [n s s 3], s divisible by 4; flat images are left out.

    sides: pixels of the originals' short sides [n]; of tiny ones, which have no fine detail, more likeness is asked.
    most_pairs: compared at most, the nearest first. on_progress is told the rows done, after each block. The same images
    give the same pairs, on any machine and clock.
    """
    if len(thumbs) < 2:
        return Twins.none(), 0
    grey, chroma, spread = _parts(thumbs)
    rows = np.flatnonzero(spread >= _FLAT)
    if len(rows) < 2:
        return Twins.none(), 0
    first, second, mirrored, alike = _candidates(grey, rows, on_progress)
    if most_pairs is not None and most_pairs < len(first):
        nearest = np.sort(np.argsort(-alike, kind="stable")[:most_pairs])
        first, second, mirrored = first[nearest], second[nearest], mirrored[nearest]
    first, second = rows[first], rows[second]
    likeness = np.zeros(len(first), np.float32)
    for start in range(0, len(first), _PAIRS):
        part = slice(start, start + _PAIRS)
        likeness[part] = _likeness(grey, first[part], second[part], mirrored[part])
    apart = (chroma[first] - chroma[second]).abs()
    flipped = (chroma[first] - chroma[second].flip(-1)).abs()
    apart[mirrored] = flipped[mirrored]
    least = np.where(np.minimum(sides[first], sides[second]) < _TINY, _SAME_TINY, SAME)
    found = (likeness >= least) & (apart.mean((1, 2, 3)).numpy() <= _COLOUR)
    order = np.lexsort((second[found], first[found]))
    twins = Twins(first[found][order], second[found][order], likeness[found][order], mirrored[found][order])
    return twins, len(alike)


def without_chains(twins: Twins, count: int, labels: np.ndarray | None = None) -> tuple[Twins, int]:
    """(the pairs, less those that tie many pictures into one; how many pictures those were): the same page with another number,
    the same scene, another piece under the same camera.

    Such pictures resemble each other more than small squares can tell. In a set of more than 50 of `count` pictures (or 2 %), of
    more than a quarter of them, or of which several have another label, only pairs that are all but equal are kept, and none
    where even those make such a set. labels: int64 [count], where each picture has one.
    """
    told = 0
    for least in (ALL_BUT_EQUAL, 2.0):
        clusters = twins.clusters(count)
        doubted = _doubted(clusters, labels)
        told = told or int(doubted[clusters].sum())
        if not doubted.any():
            break
        twins = twins.where(~doubted[clusters[twins.first]] | (twins.likeness >= least))
    return twins, told


def _doubted(clusters: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    """bool [n], by the number of a set: whether it is too large to be one picture, or has too many labels."""
    count = len(clusters)
    sizes = np.bincount(clusters, minlength=count)
    found = sizes > max(_MOST_OF_ONE, int(_MOST_SHARE_OF_ONE * count))
    found |= (sizes >= _FEW_OF_ONE) & (sizes > count / 4)
    if labels is not None:
        pairs, held = np.unique(np.stack([clusters, labels]), axis=1, return_counts=True)
        most = np.zeros(count, np.int64)
        np.maximum.at(most, pairs[0], held)
        found |= sizes - most >= _FEW_OF_ANOTHER_LABEL
    return found


def _parts(thumbs: Rows) -> tuple[Tensor, Tensor, np.ndarray]:
    """(grey float16 [n s s], colour difference channels [n 2 4 4], standard deviation of the grey [n]) of the squares.

    Of 300,000 squares the grey takes 2.5 GB, as float32 twice that; its steps are a thousandth of what it says.
    """
    count, side = len(thumbs), thumbs[:1].shape[1]
    grey, chroma = torch.empty(count, side, side, dtype=torch.float16), torch.empty(count, 2, 4, 4)
    spread = np.zeros(count, np.float32)
    for start in range(0, count, _BLOCK):
        pixels = torch.from_numpy(np.ascontiguousarray(thumbs[start : start + _BLOCK])).float()
        luma = pixels @ _LUMA
        blue, red = 0.564 * (pixels[..., 2] - luma), 0.713 * (pixels[..., 0] - luma)
        grey[start : start + len(luma)], spread[start : start + len(luma)] = luma, luma.std((1, 2)).numpy()
        chroma[start : start + len(luma)] = F.adaptive_avg_pool2d(torch.stack([blue, red], 1), 4)
    return grey, chroma, spread


def _candidates(
    grey: Tensor, rows: np.ndarray, on_progress: Callable[[int], None] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(first, second, mirrored, cosine): pairs of places in `rows`, of grey [n s s], that are near in their lowest
    frequencies.
    """
    k = _FREQUENCIES
    down, across = np.meshgrid(np.arange(k), np.arange(k), indexing="ij")
    weight = np.sqrt(1.0 + down + across).reshape(-1)[1:]  # pictures have less of high frequencies: level them
    turned = np.where(across % 2 == 1, -1.0, 1.0).reshape(-1)[1:].astype(np.float32)  # a mirror's sign of each
    spectra = [
        np.asarray(dctn(grey[part].float().numpy(), axes=(1, 2), norm="ortho"))[:, :k, :k].reshape(-1, k * k)[:, 1:]
        for part in (rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK))
    ]
    described = np.concatenate(spectra).astype(np.float32) * weight.astype(np.float32)
    described /= np.maximum(np.linalg.norm(described, axis=1, keepdims=True), 1e-6)
    most = min(_NEIGHBOURS, len(rows) - 1)
    pairs, cosines = list[np.ndarray](), list[np.ndarray]()
    size = max(64, min(_BLOCK, _COSINES // len(described)))
    for start in range(0, len(described), size):
        block = described[start : start + size]
        plain, mirror = block @ described.T, (block * turned) @ described.T
        alike = np.maximum(plain, mirror)
        own = np.arange(len(block))
        alike[own, start + own] = -1.0
        near = np.argpartition(-alike, most - 1, axis=1)[:, :most]
        cosine = np.take_along_axis(alike, near, 1)
        at, place = np.nonzero(cosine >= _ALIKE)
        other = near[at, place]
        pairs.append(np.stack([start + at, other, mirror[at, other] > plain[at, other]], 1))
        cosines.append(cosine[at, place])
        if on_progress is not None:
            on_progress(len(block))
    found, alike = np.concatenate(pairs).astype(np.int64), np.concatenate(cosines)
    found[:, :2] = np.sort(found[:, :2], axis=1)
    nearest = np.argsort(-alike, kind="stable")[: 2 * _PAIRS_A_ROW * len(rows)]  # each stands there twice
    found, first = np.unique(found[nearest], axis=0, return_index=True)
    return found[:, 0], found[:, 1], found[:, 2].astype(bool), alike[nearest][first]


def _likeness(grey: Tensor, first: np.ndarray, second: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
    """float32 [m]: correlation of the detail of each pair, laid over each other."""
    a, b = grey[first].float(), grey[second].float()
    b = torch.where(torch.from_numpy(mirrored)[:, None, None], b.flip(-1), b)
    left, warp, found = torch.arange(len(a)), torch.zeros(len(a), 4), torch.zeros(len(a))
    level = found
    for shrunk, steps, least in _LEVELS:  # most pairs are given up while they are small
        small_a, small_b = (_shrunk(image[left], shrunk) for image in (a, b))
        warp = _registered(small_a, small_b, warp, steps=steps)
        level = _correlation(small_a, small_b, warp)
        stays = level >= least
        left, warp, level = left[stays], warp[stays], level[stays]
    found[left] = level
    return found.numpy()


def _registered(a: Tensor, b: Tensor, warp: Tensor, *, steps: int) -> Tensor:
    """The warp [m 4] (scale and shift of x and y, fractions of half the side) that lays b over a, both [m s s]."""
    a, b = _levelled(_smooth(a)), _levelled(_smooth(b))
    side = a.shape[-1]
    line = torch.linspace(-1.0, 1.0, side)
    for _ in range(steps):
        seen, inside = _warped(b, warp)
        slopes = torch.zeros(len(a), 4, side, side)  # of the picture by each number of the warp
        slopes[:, 2, :, 1:-1] = (seen[..., 2:] - seen[..., :-2]) * ((side - 1) / 4)
        slopes[:, 3, 1:-1, :] = (seen[..., 2:, :] - seen[..., :-2, :]) * ((side - 1) / 4)
        slopes[:, 2:] *= inside[:, None]
        slopes[:, 0], slopes[:, 1] = slopes[:, 2] * line, slopes[:, 3] * line[:, None]
        flat = slopes.flatten(2)
        missing = (a - seen).flatten(1)[..., None]
        step = torch.linalg.solve(flat @ flat.transpose(1, 2) + 1e-2 * torch.eye(4), flat @ missing)[..., 0]
        warp = (warp + step).clamp(-_MOST_WARP, _MOST_WARP)
    return warp


def _warped(b: Tensor, warp: Tensor) -> tuple[Tensor, Tensor]:
    """(b as the warp shows it, 1 where that lies inside b and 0 elsewhere), both [m s s]."""
    side = b.shape[-1]
    at = (1.0 + warp[:, :2, None]) * torch.linspace(-1.0, 1.0, side) + warp[:, 2:, None]  # [m 2 s], x and y
    grid = torch.empty(len(b), side, side, 2)
    grid[..., 0], grid[..., 1] = at[:, 0, None, :], at[:, 1, :, None]
    seen = F.grid_sample(b[:, None], grid, align_corners=True, padding_mode="border")[:, 0]
    within = (at.abs() <= 1.0).float()
    return seen, within[:, 1, :, None] * within[:, 0, None, :]


def _correlation(a: Tensor, b: Tensor, warp: Tensor) -> Tensor:
    """float32 [m]: of what is left of a and the warped b without their coarse parts, where both are seen."""
    seen, inside = _warped(b, warp)
    count = inside.sum((1, 2), keepdim=True).clamp_min(1.0)
    parts = []
    for image in (a, seen):
        detail = _smooth(image - _averaged(image, 9))
        parts.append((detail - (detail * inside).sum((1, 2), keepdim=True) / count) * inside)
    one, other = parts
    size = (one.square().sum((1, 2)) * other.square().sum((1, 2))).sqrt()
    return (one * other).sum((1, 2)) / size.clamp_min(1e-6)


def _smooth(image: Tensor) -> Tensor:
    return _averaged(image, 3)


def _averaged(image: Tensor, width: int) -> Tensor:
    """Means over width × width pixels, the edges repeated; as two small matrix products, which are the fastest form."""
    means = _means(image.shape[-1], width)
    return means @ image @ means.T


def _shrunk(image: Tensor, times: int) -> Tensor:
    """Means over blocks of times × times pixels."""
    if times == 1:
        return image
    side = image.shape[-1] // times
    blocks = torch.eye(side).repeat_interleave(times, 1) / times
    return blocks @ image @ blocks.T


@cache
def _means(side: int, width: int) -> Tensor:
    """[s s]: the running mean along a line, its ends repeated."""
    means = torch.zeros(side, side)
    for offset in range(-(width // 2), width // 2 + 1):
        at = (torch.arange(side) + offset).clamp(0, side - 1)
        means[torch.arange(side), at] += 1.0 / width
    return means


def _levelled(image: Tensor) -> Tensor:
    """Mean 0 and spread 1, so that brightness and contrast do not count."""
    image = image - image.mean((-1, -2), keepdim=True)
    return image / image.square().mean((-1, -2), keepdim=True).sqrt().clamp_min(1e-3)
