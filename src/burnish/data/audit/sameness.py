"""Findings on images that are the same, and on what that does to splits and labels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from burnish.data.audit.findings import Finding
from burnish.data.audit.twins import ALL_BUT_EQUAL, Twins
from burnish.data.cache import Pixels
from burnish.data.catalog import SPLIT_WORDS, Catalog, Splits
from burnish.data.ties import clusters_of

# So many groups, if they also hold more than a quarter of all images, are not kept on one side because some pictures of theirs
# are the same: nothing would be left to choose and to prove by.
_FEW_GROUPS = 3


@dataclass(frozen=True)
class Sameness:
    """Which readable images show the same picture."""

    pixels: Pixels
    copies: np.ndarray  # int64 [n], the first row with the same bytes
    twins: Twins  # nearly the same, by rows of `pixels`

    @classmethod
    def of(cls, pixels: Pixels, twins: Twins) -> Sameness:
        """From the hashes of the files and the pairs that were found."""
        _, first, inverse = np.unique(np.array(pixels.looks.digests), return_index=True, return_inverse=True)
        return cls(pixels, first[inverse].astype(np.int64), twins)

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """(first, second) rows of all pairs: each copy with the first of its kind, and the twins."""
        again = np.flatnonzero(self.copies != np.arange(len(self.copies)))
        return np.concatenate([self.copies[again], self.twins.first]), np.concatenate([again, self.twins.second])

    def clusters(self) -> np.ndarray:
        """int64 [n]: equal for rows that are the same, directly or through others."""
        return clusters_of(*self.pairs(), len(self.copies))

    def together(self, catalog: Catalog) -> np.ndarray:
        """int64 [entries of the catalogue]: equal for entries that must stay on one side.

        Where the data names groups, what is the same in several of them joins them whole. Where that would make one of a large
        part of the set, groups are joined there by pictures that are all but equal, and if it is as large then by none.
        """
        found = np.arange(len(catalog))
        found[self.pixels.ids] = self.pixels.ids[clusters_of(*self._ties(catalog)[0], len(self.copies))]
        return found

    def parted(self, catalog: Catalog) -> int:
        """How many groups that show the same pictures are not joined, since that would make one of a large part of the set."""
        return self._ties(catalog)[1]

    def _ties(self, catalog: Catalog) -> tuple[tuple[np.ndarray, np.ndarray], int]:
        """(first, second) rows of the pairs that stay on one side, and `parted`."""
        first, second = self.pairs()
        groups, parted = catalog.grouped(self.pixels.ids), 0
        if groups is None:
            return (first, second), 0
        sure = np.concatenate([np.ones(len(first) - len(self.twins)), self.twins.likeness])
        for least in (ALL_BUT_EQUAL, np.inf):
            joined = clusters_of(groups[first], groups[second], int(groups.max()) + 1)
            members, images = np.bincount(joined), np.bincount(joined[groups])
            doubted = (members >= _FEW_GROUPS) & (images > len(groups) / 4)
            if not doubted.any():
                break
            parted = parted or int(members[doubted].sum())
            across = (groups[first] != groups[second]) & doubted[joined[groups[first]]]
            kept = ~across | (sure >= least)
            first, second, sure = first[kept], second[kept], sure[kept]
        return (first, second), parted


def sameness_findings(catalog: Catalog, same: Sameness) -> Iterator[Finding]:
    """Copies, near-duplicates, and those under different labels."""
    ids = same.pixels.ids
    for rows in _members(same.copies):
        yield _group("exact_duplicate", catalog, ids[rows], f"{len(rows)} files with the same bytes", len(rows))
    likeness: dict[int, float] = defaultdict(float)
    mirrored: dict[int, bool] = defaultdict(bool)
    clusters = clusters_of(same.twins.first, same.twins.second, len(ids))
    for first, value, mirror in zip(same.twins.first, same.twins.likeness, same.twins.mirrored, strict=True):
        key = int(clusters[first])
        likeness[key], mirrored[key] = max(likeness[key], float(value)), mirrored[key] or bool(mirror)
    for rows in _members(clusters):
        if len(np.unique(same.copies[rows])) < 2:
            continue  # told as copies
        key = int(clusters[rows[0]])
        words = ", some mirrored" if mirrored[key] else ""
        evidence = f"{len(rows)} files of one picture{words}; their detail correlates by up to {likeness[key]:.3f}"
        yield _group("near_duplicate", catalog, ids[rows], evidence, likeness[key])
    yield from _conflicts(catalog, same)


def _conflicts(catalog: Catalog, same: Sameness) -> Iterator[Finding]:
    """Sets in which a picture directly has a copy or twin under another label, and just those files."""
    ids = same.pixels.ids
    labels: dict[int, set[str]] = defaultdict(set)  # the first copy -> labels of all of them
    for row, first in enumerate(same.copies.tolist()):
        labels[first].add(catalog.label(ids[row]))
    pairs = [(first, first) for first, given in labels.items() if len(given) > 1]
    twins = zip(same.copies[same.twins.first].tolist(), same.copies[same.twins.second].tolist(), strict=True)
    pairs += [(one, other) for one, other in twins if labels[one] != labels[other]]
    ties = np.array(pairs, np.int64).reshape(-1, 2)
    sets = clusters_of(ties[:, 0], ties[:, 1], len(ids))
    tied, of_row = np.unique(sets[ties[:, 0]]), sets[same.copies]
    order = np.argsort(of_row, kind="stable")
    begins, ends = (np.searchsorted(of_row[order], tied, side) for side in ("left", "right"))
    for begin, end in zip(begins, ends, strict=True):
        rows = order[begin:end]
        names = sorted({catalog.label(entry) or "no class" for entry in ids[rows]})
        listed = ", ".join(f"'{name}'" for name in names[:4]) + (" and more" if len(names) > 4 else "")
        kind = "the same bytes" if len(np.unique(same.copies[rows])) == 1 else "nearly the same"
        yield _group("label_conflict", catalog, ids[rows], f"{kind}, labelled {listed}", len(rows))


def leak_findings(catalog: Catalog, splits: Splits, same: Sameness) -> Iterator[Finding]:
    """Pictures and groups that are on both sides of a split; the evaluated image comes first in `paths`."""
    side = sides_of(catalog, splits)
    ids = same.pixels.ids
    sure = {
        (int(a), int(b)): float(v)
        for a, b, v in zip(same.twins.first, same.twins.second, same.twins.likeness, strict=True)
    }
    for rows in _members(same.clusters()):
        words = side[ids[rows]]
        if len(set(words)) == 1:
            continue
        # Once a side, not once a picture: thousands of copies of one blank tile are not rare.
        leaking = {
            word: [other for other, there in zip(rows, words, strict=True) if _leaks(word, there)]
            for word in set(words)
        }
        copies = {word: _firsts(others, same.copies) for word, others in leaking.items()}
        for row, word in zip(rows, words, strict=True):
            sources = leaking[word]
            if not sources:
                continue
            exact = copies[word].get(int(same.copies[row]))
            best = exact
            if best is None:
                best = min(sources, key=lambda one: -sure.get((min(row, one), max(row, one)), 0.0))
            how = "the same bytes" if exact is not None else "nearly the same picture"
            there = str(side[ids[best]])
            evidence = f"{how}: in {word} and in {there}"
            rank = float(exact is not None)
            yield Finding("leak", (catalog.paths[ids[row]], catalog.paths[ids[best]]), evidence, rank=rank)
    yield from _torn_groups(catalog, side)


def _firsts(rows: list[int], copies: np.ndarray) -> dict[int, int]:
    """The first of these rows of each content."""
    found: dict[int, int] = {}
    for row in rows:
        found.setdefault(int(copies[row]), row)
    return found


def leaked(catalog: Catalog, splits: Splits, same: Sameness, *, besides: np.ndarray) -> np.ndarray:
    """int64, sorted: the entries of test that some of train or val show too, other than the entries `besides`."""
    side, ids = sides_of(catalog, splits), same.pixels.ids
    side[besides] = ""
    found: list[int] = []
    for rows in _members(same.clusters()):
        words = side[ids[rows]]
        if np.isin(words, ("train", "val")).any():
            found += ids[rows[words == "test"]].tolist()
    return np.sort(np.array(found, np.int64))


def sides_of(catalog: Catalog, splits: Splits) -> np.ndarray:
    """str [entries]: the split word of each."""
    side = np.full(len(catalog), "", "<U5")
    for word in SPLIT_WORDS:
        side[getattr(splits, word)] = word
    return side


def _leaks(word: str, there: str) -> bool:
    """Whether an image of split `word` must not be in `there` too."""
    return (word == "test" and there in ("train", "val")) or (word == "val" and there == "train")


def _torn_groups(catalog: Catalog, side: np.ndarray) -> Iterator[Finding]:
    places: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for entry, group in enumerate(catalog.groups or ()):
        places[group][str(side[entry])].append(entry)
    for group, found in places.items():
        if len(found) > 1:
            counts = ", ".join(f"{len(found[word])} in {word}" for word in SPLIT_WORDS if word in found)
            paths = tuple(catalog.paths[entries[0]] for entries in found.values())
            yield Finding(
                "group_leak", paths, f"the group '{group}' has {counts}", group, sum(map(len, found.values()))
            )


def _members(numbers: np.ndarray) -> Iterator[np.ndarray]:
    """The rows of each number that more than one has."""
    order = np.argsort(numbers, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1) if len(order) else ():
        if len(rows) > 1:
            yield rows


def _group(kind: str, catalog: Catalog, entries: Sequence[int] | np.ndarray, evidence: str, rank: float) -> Finding:
    return Finding(kind, tuple(sorted(catalog.paths[entry] for entry in entries)), evidence, rank=float(rank))
