"""Which images train, which choose, which prove: given by the data, or drawn by class, by group and by content address.

An image's place in the draw depends on the seed and its own path alone (P7), so adding images moves few of the
others, and the order of the catalogue does not matter. Test is taken from the front of that order and val from the
back, so that a test split that grows by one takes its image from train.
"""

from __future__ import annotations

import csv
import hashlib
import io
import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from burnish.data.catalog import SPLIT_WORDS, Catalog, Splits
from burnish.disk import write_whole
from burnish.errors import DataError, RecipeError, shown
from burnish.runtime import address

HEADER = ("path", "label", "split")


@dataclass(frozen=True)
class _Unit:
    """Images that stay together: a group, or one image."""

    entries: tuple[int, ...]
    counts: dict[int, int]  # class -> images of it


def make_splits(catalog: Catalog, *, seed: int, test_fraction: float = 0.2, val_fraction: float = 0.2) -> Splits:
    """Train, val and test: splits that the data gives are kept, the others are drawn out of train, test first.

    test_fraction: of each class; val_fraction: of what is then left of each class; 0 to below 1, and 0 draws none.
    A class of three or more images is in every split, one of two in train and test; groups are never torn apart.
    Raises RecipeError for a fraction out of range, DataError when given splits tear a group apart.
    """
    _check_fractions(test_fraction, val_fraction)
    given = {word for word in catalog.splits if word is not None}
    _refuse_torn_groups(catalog)
    sides: list[str] = [word or "train" for word in catalog.splits]
    fractions = {"test": test_fraction, "val": val_fraction}
    drawn = [word for word in ("test", "val") if word not in given and fractions[word] > 0.0]
    order = _units(catalog, [row for row, side in enumerate(sides) if side == "train"], seed)
    for word in drawn:
        taken, order = _drawn(order if word == "test" else order[::-1], fractions[word], last=word == drawn[-1])
        for unit in taken:
            for row in unit.entries:
                sides[row] = word
    return _splits(catalog, sides, _how(catalog, sides, drawn, fractions, seed))


def restricted(splits: Splits, before: Catalog, after: Catalog) -> Splits:
    """The same splits for a catalogue that has lost some images; its hash is that of what is left."""
    side = {before.paths[row]: word for word in SPLIT_WORDS for row in getattr(splits, word)}
    return _splits(after, [side[path] for path in after.paths], splits.how)


def write_splits(path: Path, catalog: Catalog, splits: Splits) -> None:
    """Write `path,label,split` as CSV (RFC 4180, UTF-8), old or new but never torn; its sha256 is `splits.sha256`."""
    sides = [""] * len(catalog)
    for word in SPLIT_WORDS:
        for row in getattr(splits, word):
            sides[row] = word
    write_whole(path, _canonical(catalog, sides).decode())


def read_splits(path: Path, catalog: Catalog, *, sha256: str | None = None) -> Splits:
    """The splits in a file that `write_splits` wrote, for the same images.

    Raises DataError when the file is damaged, is not the one of that sha256, or does not match the catalogue.
    """
    try:
        content = path.read_bytes()
        table = list(csv.reader(io.StringIO(content.decode(), newline=""), strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{shown(str(path))} cannot be read as splits: {error}. Start a new run.") from None
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise DataError(
            f"{shown(str(path))} was changed since the splits were made (its sha256 differs). Start a new run."
        )
    if not table or tuple(table[0]) != HEADER or any(len(row) != len(HEADER) for row in table):
        raise DataError(f"{shown(str(path))} is damaged, expected the columns {','.join(HEADER)}. Start a new run.")
    sides = _matched(path, catalog, {row[0]: (row[1], row[2]) for row in table[1:]})
    return _splits(catalog, sides, f"read from {path.name}")


def _check_fractions(test_fraction: float, val_fraction: float) -> None:
    """RecipeError naming every fraction that is out of range."""
    fractions = (("test_fraction", test_fraction), ("val_fraction", val_fraction))
    wrong = [f"{name} is {value!r}" for name, value in fractions if not 0.0 <= value < 1.0]
    if wrong:
        raise RecipeError(f"{' and '.join(wrong)}, expected a fraction from 0 to below 1, such as 0.2.")


def _refuse_torn_groups(catalog: Catalog) -> None:
    """DataError when the given splits put images of one group on two sides."""
    first: dict[str, tuple[str, str]] = {}
    for group, word, path in zip(catalog.groups or (), catalog.splits, catalog.paths, strict=False):
        side, other = first.setdefault(group, (word or "train", path))
        if side != (word or "train"):
            raise DataError(
                f"The group '{shown(group)}' is in {side} ({shown(other)}) and in {word or 'train'} ({shown(path)}), "
                "expected all images of a group in one split. Move them to one, or leave the splits out to have them "
                "drawn."
            )


def _units(catalog: Catalog, rows: list[int], seed: int) -> list[_Unit]:
    """What can be drawn, in the order of its address."""
    members: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        members[catalog.groups[row] if catalog.groups is not None else catalog.paths[row]].append(row)
    keys = sorted(members, key=lambda key: (address(seed, "split", unicodedata.normalize("NFC", key)), key))
    labels = catalog.labels.tolist()
    return [_Unit(tuple(members[key]), dict(Counter(labels[row] for row in members[key]))) for key in keys]


def _drawn(order: list[_Unit], fraction: float, *, last: bool) -> tuple[list[_Unit], list[_Unit]]:
    """The units taken and those left: about `fraction` of the images of each class, at least one where that can be.

    Of a class, one unit is always left to train, and one more for the split drawn next unless this is the `last`.
    Single images fill each class to the count exactly; groups are taken while half of their images or more are wanted.
    """
    images, left = Counter[int](), Counter[int]()
    for unit in order:
        images.update(unit.counts)
        left.update(unit.counts.keys())
    wanted = {label: max(1, round(count * fraction)) for label, count in images.items()}
    kept = {label: 2 if units >= 3 and not last else 1 for label, units in left.items()}
    taken: set[int] = set()

    def take(position: int) -> None:
        taken.add(position)
        left.subtract(order[position].counts.keys())
        for label, count in order[position].counts.items():
            wanted[label] = max(0, wanted[label] - count)

    def free(unit: _Unit) -> bool:
        return all(left[label] > kept[label] for label in unit.counts)

    for position, unit in enumerate(order):
        useful = sum(min(count, wanted[label]) for label, count in unit.counts.items())
        if useful > 0 and 2 * useful >= len(unit.entries) and free(unit):
            take(position)
    for label in sorted(images):
        if not any(label in order[position].counts for position in taken):
            places = [at for at, unit in enumerate(order) if at not in taken and label in unit.counts and free(unit)]
            if places:
                take(min(places, key=lambda at: len(order[at].entries)))
    return [order[at] for at in sorted(taken)], [unit for at, unit in enumerate(order) if at not in taken]


def _splits(catalog: Catalog, sides: list[str], how: str) -> Splits:
    """The value, from the side of each entry."""
    rows = {word: np.array([row for row, side in enumerate(sides) if side == word], np.int64) for word in SPLIT_WORDS}
    return Splits(rows["train"], rows["val"], rows["test"], how, hashlib.sha256(_canonical(catalog, sides)).hexdigest())


def _canonical(catalog: Catalog, sides: list[str]) -> bytes:
    """splits.csv: the same bytes for the same splits, whatever the catalogue's order."""
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(HEADER)
    for row in sorted(range(len(catalog)), key=catalog.paths.__getitem__):
        table.writerow((catalog.paths[row], catalog.classes[catalog.labels[row]], sides[row]))
    return text.getvalue().encode()


def _matched(path: Path, catalog: Catalog, written: dict[str, tuple[str, str]]) -> list[str]:
    """The side of each catalogue entry; DataError unless file and catalogue hold the same images and labels."""
    here, remedy = set(catalog.paths), "Restore the data or start a new run."
    for problem, paths in (("no longer has", written.keys() - here), ("has anew", here - written.keys())):
        if paths:
            listed = f"{len(paths)} (first: {shown(min(paths))})"
            raise DataError(f"{shown(path.name)} is of other images; those that the data {problem}: {listed}. {remedy}")
    sides = []
    for name, label in zip(catalog.paths, catalog.labels, strict=True):
        (labelled, side), expected = written[name], catalog.classes[label]
        if labelled != expected:
            came = f"{shown(path.name)} has '{shown(labelled)}' for {shown(name)}"
            raise DataError(f"{came}, the data has '{shown(expected)}'. {remedy}")
        if side not in SPLIT_WORDS:
            came = f"{shown(path.name)} has the split '{shown(side)}'"
            raise DataError(f"{came}, expected {', '.join(SPLIT_WORDS)}. Start a new run.")
        sides.append(side)
    return sides


def _how(catalog: Catalog, sides: list[str], drawn: list[str], fractions: dict[str, float], seed: int) -> str:
    """The sentence that says where the splits come from, and which classes a split lacks."""
    given = [word for word in SPLIT_WORDS if word in catalog.splits]
    parts = [f"{' and '.join(given)} given by the data"] if given else []
    if drawn:
        of = {"test": "of each class", "val": "of what is left of each class"}
        shares = " and ".join(f"{word} ({fractions[word]:.0%} {of[word]})" for word in drawn)
        together = ", groups kept together" if catalog.groups is not None else ""
        parts.append(f"{shares} drawn from {'train' if given else 'all images'} with seed {seed}{together}")
    present = {
        word: {int(label) for label, side in zip(catalog.labels, sides, strict=True) if side == word}
        for word in SPLIT_WORDS
    }
    for word in SPLIT_WORDS:
        absent = [f"'{shown(name)}'" for label, name in enumerate(catalog.classes) if label not in present[word]]
        if absent and present[word]:
            parts.append(f"{word} has no image of {', '.join(absent[:5])}{' and others' if len(absent) > 5 else ''}")
    return "; ".join(parts)
