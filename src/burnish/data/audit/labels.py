"""Labels that are likely wrong, and images unlike all others: told from probabilities and features that are handed in."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from burnish.data.audit.findings import Finding
from burnish.data.catalog import Catalog
from burnish.labels import counts as images_of_each
from burnish.runtime import evenly

# Of a class's images without the suspect ones, and so many times as many images. Of 30 fine scratches on grey among 1,000 images,
# of which 16 are recognised, 6 were called wrongly labelled, with this none
_RECOGNISED, _COMMONER = 0.7, 3
# Cohen's kappa of answers with labels, below which no label is doubted: on sets of 0.04 to 0.30 50 to 101 of 250 to 300 sound
# images were suspect, and with a tenth flipped 9 to 20 % of them were; from 0.38 on 1 to 22 of 80 to 300, and 11 to 93 % (the
# figure was set after looking at these five sets, and no other was tried)
_TOLD_APART = 1 / 3
_NEIGHBOURS = 5
_FAR = 6.0  # robust standard deviations of the distance to the neighbours
_REFERENCES = 4096  # images that neighbours are looked for among
_BLOCK = 2048


def label_findings(catalog: Catalog, ids: np.ndarray, probabilities: np.ndarray) -> Iterator[Finding]:
    """Entries that confident learning holds for wrongly labelled, the most certain first; none where `undoubted` says why.

    ids: catalogue entries [n]; probabilities: of each class [n k], from models that have not seen the image.
    """
    if catalog.several:
        yield from _several_findings(catalog, ids, probabilities)
        return
    if undoubted(catalog, ids, probabilities):
        return
    wrong, margin = suspects(catalog.labels[ids], probabilities)
    for row in np.flatnonzero(wrong):
        path, given = catalog.paths[ids[row]], int(catalog.labels[ids[row]])
        guess = int(probabilities[row].argmax())
        evidence = (
            f"labelled '{catalog.classes[given]}' ({probabilities[row, given]:.0%}), looks like "
            f"'{catalog.classes[guess]}' ({probabilities[row, guess]:.0%})"
        )
        yield Finding("label_error", (path,), evidence, catalog.classes[guess], rank=float(margin[row]))


def undoubted(catalog: Catalog, ids: np.ndarray, probabilities: np.ndarray) -> str:
    """Why no label is doubted where the models hardly tell the classes apart: what they say then tells of them; else ""."""
    if catalog.several or not len(ids):
        return ""
    found = agreement(catalog.labels[ids], probabilities)
    if found >= _TOLD_APART:
        return ""
    return f"labels are not doubted: the classes are hardly told apart (kappa {found:.2f} on images left out)"


def agreement(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Cohen's kappa (1960) of the likeliest classes of [n k] with labels int [n]: 0 as by chance, 1 where all agree."""
    n, k = probabilities.shape
    answers = probabilities.argmax(1)
    chance = float(np.bincount(labels, minlength=k) @ np.bincount(answers, minlength=k)) / n**2
    return 1.0 if chance >= 1.0 else (float((answers == labels).mean()) - chance) / (1.0 - chance)


def _several_findings(catalog: Catalog, ids: np.ndarray, probabilities: np.ndarray) -> Iterator[Finding]:
    """Of entries with several classes: those that lack a class, or have one, against what the images say."""
    wrong = suspects_of_several(catalog.labels[ids], probabilities)
    for row in np.flatnonzero(wrong.any(1)):
        given = catalog.labels[ids[row]]
        doubted = sorted(np.flatnonzero(wrong[row]), key=lambda index: -abs(probabilities[row, index] - given[index]))
        words = [
            f"{'labelled' if given[index] else 'not labelled'} '{catalog.classes[index]}' ({probabilities[row, index]:.0%})"
            for index in doubted
        ]
        right = np.where(wrong[row], ~given, given)
        suggestion = "|".join(catalog.classes[index] for index in np.flatnonzero(right))
        rank = float(np.abs(probabilities[row] - given)[doubted[0]])
        yield Finding("label_error", (catalog.paths[ids[row]],), ", ".join(words), suggestion, rank=rank)


def suspects_of_several(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Which labels bool [n k] are likely wrong, by confident learning for each class as against all others.

    A class claims an image as in `suspects`; an image that it has and does not claim, while not having it claims the image, is
    suspect, and the other way round.
    """
    have, chance = labels.astype(bool), np.asarray(probabilities, np.float64)
    with_it, without = images_of_each(have, 0), images_of_each(~have, 0)
    usual = np.where(with_it > 0, (chance * have).sum(0) / np.maximum(with_it, 1), np.inf)
    usual_without = np.where(without > 0, ((1 - chance) * ~have).sum(0) / np.maximum(without, 1), np.inf)
    claimed, spurned = chance >= usual, 1 - chance >= usual_without
    return (~have & claimed & ~spurned & (chance > 0.5)) | (have & spurned & ~claimed & (chance < 0.5))


def suspects(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(bool [n]: whether the label is likely wrong; float [n]: how much more probable another class is).

    Confident learning (Northcutt, Jiang and Chuang 2021, arXiv:1911.00068): a class claims an image whose probability of it
    is at least what images labelled so have on average; an image claimed by another class than its label's is suspect. But not
    while it resembles its label more than images of other classes do on average: where classes are hard to tell apart, most of
    what the models mistake is labelled rightly (of 700 sound images of 38 typefaces, 49 % recognised, 295 were suspect, with
    this 15). And not where it is a far commoner class that claims it, and the models miss many of the rare one's other images
    too: they take for common whatever is not clear, which tells of them and not of its label.
    labels int [n], probabilities [n k] out of fold.
    """
    n, k = probabilities.shape
    own = probabilities[np.arange(n), labels]
    counts = np.bincount(labels, minlength=k)
    usual = np.bincount(labels, weights=own, minlength=k) / np.maximum(counts, 1)
    usual[counts == 0] = np.inf
    elsewhere = (probabilities.sum(0) - np.bincount(labels, weights=own, minlength=k)) / np.maximum(n - counts, 1)
    spurned = own <= elsewhere[labels]
    claims = np.where(probabilities >= usual, probabilities, -1.0)
    claimed = claims.argmax(1)
    others = probabilities.copy()
    others[np.arange(n), labels] = -1.0
    margin = others.max(1) - own
    wrong = (claims.max(1) > 0) & (claimed != labels) & (margin > 0) & spurned
    # Of the images that are not suspect, so that many wrong labels in a class do not hide themselves.
    recall = np.bincount(labels, margin <= 0, k) / np.maximum(np.bincount(labels, ~wrong, k), 1)
    unclear = (recall < _RECOGNISED)[labels] & (counts[claimed] > _COMMONER * counts[labels])
    return wrong & ~unclear, margin


def outlier_findings(catalog: Catalog, ids: np.ndarray, features: np.ndarray) -> Iterator[Finding]:
    """Entries whose features [n d] are far from those of every other image."""
    score = strangeness(features)
    for row in np.flatnonzero(score > _FAR):
        words = f"its nearest neighbours are {score[row]:.1f} robust standard deviations farther than usual"
        yield Finding("outlier", (catalog.paths[ids[row]],), words, rank=float(score[row]))


def distances(n: int, width: int) -> float:
    """The multiplications and additions of `strangeness` for n images."""
    return 2.0 * n * min(n, _REFERENCES) * width


def strangeness(features: np.ndarray) -> np.ndarray:
    """float32 [n]: how much farther, in robust standard deviations, an image's 5th neighbour is than usual.

    By cosine of centred features (k-nearest-neighbour distance, Sun et al. 2022, arXiv:2204.06507).
    """
    if len(features) < 4 * _NEIGHBOURS:
        return np.zeros(len(features), np.float32)
    x = features.astype(np.float32) - features.mean(0, dtype=np.float64).astype(np.float32)
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    among = evenly(len(x), _REFERENCES)
    distance, columns = np.empty(len(x), np.float32), np.full(len(x), -1)
    columns[among] = np.arange(len(among))
    for start in range(0, len(x), _BLOCK):
        near = x[start : start + _BLOCK] @ x[among].T
        own = np.flatnonzero(columns[start : start + _BLOCK] >= 0)
        near[own, columns[start + own]] = -1.0  # not itself
        distance[start : start + _BLOCK] = 1.0 - np.partition(near, -_NEIGHBOURS, axis=1)[:, -_NEIGHBOURS]
    middle = np.median(distance)
    spread = 1.4826 * np.median(np.abs(distance - middle))
    return (distance - middle) / max(float(spread), 1e-6)
