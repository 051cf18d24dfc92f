"""A catalogue of labelled images: paths, labels, classes, no pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from burnish.data.contents import Contents
from burnish.labels import SEPARATOR, classes_of, grouped, several

SPLIT_WORDS = ("train", "val", "test")


@dataclass(frozen=True)
class Named:
    """A file that is not used, and why (P4)."""

    path: str  # relative to the catalogue's root
    reason: str


@dataclass(frozen=True)
class Catalog:
    """Labelled images under one folder, in a fixed order."""

    root: Path  # every path below is relative to it, with forward slashes
    paths: tuple[str, ...]  # [n]
    labels: np.ndarray  # int64 [n], index into classes; or bool [n k], where an image may have several
    classes: tuple[str, ...]  # [k], sorted
    splits: tuple[str | None, ...]  # [n], one of SPLIT_WORDS, or None: to be drawn
    groups: tuple[str, ...] | None  # [n], images of one group stay on one side of a split
    named: tuple[Named, ...]
    source: str  # what it was read from: "folder", "split folders", "csv", "zip", "demo", …
    contents: Contents | None = None  # of images that are no files under `root`
    skipped: int = 0  # images besides, that the budget has no time for
    unused: tuple[str, ...] = ()  # columns of its table of which nothing is made, some of them
    # Whether those of val that `splits` names were drawn by an earlier run, not given by the data
    val_drawn: bool = False
    counted: int | None = None  # files, rows or items, as its source went through them; None where nothing counted

    def __len__(self) -> int:
        return len(self.paths)

    def at(self, rows: Sequence[int] | np.ndarray) -> Catalog:
        """Some entries, in that order; the classes stay as they are."""
        return replace(
            self,
            paths=tuple(self.paths[row] for row in rows),
            labels=self.labels[rows],
            splits=tuple(self.splits[row] for row in rows),
            groups=None if self.groups is None else tuple(self.groups[row] for row in rows),
        )

    @cached_property
    def digest(self) -> str:
        """Of which images there are, under which labels and splits; not of their content, nor of the folder's own name."""
        splits, groups = self.splits, self.groups or ("",) * len(self)
        rows = sorted(
            f"{path}\x1f{self.label(row)}\x1f{splits[row]}\x1f{groups[row]}" for row, path in enumerate(self.paths)
        )
        return hashlib.blake2b("\x1e".join(rows).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()

    def image(self, index: int) -> Path | bytes:
        """The image file of one entry, or its bytes where it lies inside another file; UnreadableImage when it cannot be had."""
        if self.contents is not None:
            return self.contents.image(self.paths[index])
        return self.root / self.paths[index]

    def grouped(self, rows: Sequence[int] | np.ndarray) -> np.ndarray | None:
        """A number for each of these entries, int64 [r], from 0, equal within a group that the data names.

        None where it names none, or no two of them are of one.
        """
        return None if self.groups is None else grouped([self.groups[row] for row in rows])

    @property
    def scanned(self) -> int:
        """What its source went through, less what there is no time for: by P4 as many as are used and named.

        The source's own count, so that one which is lost on the way shows.
        """
        return len(self) + len(self.named) if self.counted is None else self.counted - self.skipped

    @property
    def several(self) -> bool:
        """Whether an image may have any number of classes."""
        return several(self.labels)

    def label(self, index: int) -> str:
        """The class of one entry, or its classes with a bar between them."""
        return SEPARATOR.join(self.classes[one] for one in classes_of(self.labels, index))

    def name(self, index: int) -> str:
        """What one entry is called: its file, or its place inside the file that holds it."""
        return str(self.root / self.paths[index])


@dataclass(frozen=True)
class Splits:
    """Which catalogue entries train, choose (val) and prove (test); int64 indices, disjoint, each sorted."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray
    how: str  # a sentence: given by the data, or drawn and how
    sha256: str  # of the canonical splits.csv content

    @property
    def fitting(self) -> np.ndarray:
        """The entries of train and val, sorted."""
        return np.sort(np.concatenate([self.train, self.val]))
