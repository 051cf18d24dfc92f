"""Which images train, which choose, which prove: given by the data, or drawn by class, by group and by content address.

An image's side depends on the seed and its own bytes: they are hashed to a number from 0 to 1, and those below the test
fraction prove, those at the other end choose (P7). So adding images moves no old one, renaming a file moves nothing, and
the order of the catalogue does not matter. Only where a class would have far too few in a split are the nearest to its
border taken too. Images of one group, and pictures that are the same, stay on one side.
"""

from __future__ import annotations

import csv
import hashlib
import io
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from burnish.data.catalog import SPLIT_WORDS, Catalog, Splits
from burnish.data.ties import clusters_of
from burnish.disk import write_whole
from burnish.errors import DataError, RecipeError, cell, shown, uncelled
from burnish.labels import classes_of, counts, numbered
from burnish.runtime import address

HEADER = ("path", "label", "split")
_FEWEST_VAL = 3  # validation images of a class, where it has three times as many


@dataclass(frozen=True)
class _Unit:
    """Images that stay together: a group, or one image."""

    entries: tuple[int, ...]
    counts: dict[int, int]  # class -> images of it
    place: float  # 0 to 1, its address
    key: str  # what the address is of


def make_splits(
    catalog: Catalog,
    *,
    seed: int,
    test_fraction: float = 0.2,
    val_fraction: float = 0.2,
    content: Sequence[str] | None = None,
    together: np.ndarray | None = None,
) -> Splits:
    """Train, val and test: splits that the data gives are kept, the others are drawn out of train.

    test_fraction: of each class, about; val_fraction: of what is then left of each class; 0 to below 1, and 0 draws none.
    content: a hash of each image's bytes [n], by default its path. together: int64 [n], equal for images that must stay on
    one side, as groups must. A class of three or more such units is in every split, one of two in train and test.
    Raises RecipeError for a fraction out of range.
    """
    _check_fractions(test_fraction, val_fraction)
    given = {word for word in catalog.splits if word is not None}
    sides: list[str] = [word or "train" for word in catalog.splits]
    fractions = {"test": test_fraction, "val": val_fraction}
    drawn = [word for word in ("test", "val") if word not in given and fractions[word] > 0.0]
    rows = [row for row, side in enumerate(sides) if side == "train"]
    units = _units(catalog, rows, seed, content, together)
    shares = {"test": test_fraction if "test" in drawn else 0.0}
    shares["val"] = (1.0 - shares["test"]) * val_fraction if "val" in drawn else 0.0
    for word in drawn:
        taken, units = _drawn(units, shares[word], back=word == "val", last=word == drawn[-1])
        for unit in taken:
            for row in unit.entries:
                sides[row] = word
    tied = together is not None and len(np.unique(together)) < len(together)
    return _splits(catalog, sides, _how(catalog, sides, drawn, fractions, seed, tied=tied))


def untorn(catalog: Catalog, splits: Splits, together: np.ndarray) -> tuple[Splits, np.ndarray]:
    """The splits with entries of one number in `together` [n], or of one group, on one side; and the entries that moved.

    They go to train, or where none of them is there to val: so nothing comes into test that was fitted or chosen by. A split
    that the data gives stays as it is.
    """
    sides, given = _sides(catalog, splits), {word for word in catalog.splits if word is not None} - {"train"}
    rows = [row for row, word in enumerate(sides) if word not in given]
    before = list(sides)
    members: dict[int, list[int]] = defaultdict(list)
    for row, number in zip(rows, held_together(catalog, rows, together), strict=True):
        members[number].append(row)
    for entries in members.values():
        words = {sides[row] for row in entries}
        if len(words) > 1:
            for row in entries:
                sides[row] = "train" if "train" in words else "val"
    moved = np.array([row for row in rows if sides[row] != before[row]], np.int64)
    if not len(moved):
        return splits, moved
    return _splits(catalog, sides, f"{splits.how}; {len(moved)} moved to where their near-duplicates are"), moved


def restricted(splits: Splits, before: Catalog, after: Catalog) -> Splits:
    """The same splits for a catalogue that has lost some images; its hash is that of what is left."""
    side = {before.paths[row]: word for word in SPLIT_WORDS for row in getattr(splits, word)}
    return _splits(after, [side[path] for path in after.paths], splits.how)


def write_splits(path: Path, catalog: Catalog, splits: Splits) -> None:
    """Write `path,label,split` as CSV (RFC 4180, UTF-8), old or new but never torn; its sha256 is `splits.sha256`."""
    write_whole(path, _canonical(catalog, _sides(catalog, splits)).decode())


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
    sides = _matched(path, catalog, {uncelled(row[0]): (uncelled(row[1]), row[2]) for row in table[1:]})
    return _splits(catalog, sides, f"read from {path.name}")


def _check_fractions(test_fraction: float, val_fraction: float) -> None:
    """RecipeError naming every fraction that is out of range."""
    fractions = (("test_fraction", test_fraction), ("val_fraction", val_fraction))
    wrong = [f"{name} is {value!r}" for name, value in fractions if not 0.0 <= value < 1.0]
    if wrong:
        raise RecipeError(f"{' and '.join(wrong)}, expected a fraction from 0 to below 1, such as 0.2.")


def _units(
    catalog: Catalog, rows: list[int], seed: int, content: Sequence[str] | None, together: np.ndarray | None
) -> list[_Unit]:
    """What can be drawn, in the order of its address."""
    names = content if content is not None else [unicodedata.normalize("NFC", path) for path in catalog.paths]
    members: dict[int, list[int]] = defaultdict(list)
    for row, number in zip(rows, held_together(catalog, rows, together), strict=True):
        members[number].append(row)
    none, units = len(catalog.classes), []  # an image of no class is drawn as if that were a class too
    for entries in members.values():
        if catalog.groups is not None:
            key = min(unicodedata.normalize("NFC", catalog.groups[row]) for row in entries)
        else:
            key = min(names[row] for row in entries)
        held = Counter(label for row in entries for label in classes_of(catalog.labels, row) or [none])
        units.append(_Unit(tuple(entries), dict(held), address(seed, "split", key) / 2**128, key))
    return sorted(units, key=lambda unit: (unit.place, unit.key))


def held_together(catalog: Catalog, rows: list[int], together: np.ndarray | None) -> list[int]:
    """A number for each row, equal for those that stay on one side: by group, by `together`, or through both."""
    if catalog.groups is None:
        return list(rows) if together is None else together[rows].tolist()
    groups = numbered([catalog.groups[row] for row in rows])
    if together is None:
        return groups.tolist()
    others, count = together[rows], len(rows)
    first = np.concatenate([_first_of_each(groups), _first_of_each(others)])
    return clusters_of(first, np.tile(np.arange(count), 2), count).tolist()


def _first_of_each(numbers: np.ndarray) -> np.ndarray:
    """For each place the first place with the same number."""
    _, first, inverse = np.unique(numbers, return_index=True, return_inverse=True)
    return first[inverse]


def _drawn(order: list[_Unit], share: float, *, back: bool, last: bool) -> tuple[list[_Unit], list[_Unit]]:
    """The units taken and those left: those whose place is below `share`, or with `back` above 1 - share.

    Where a class has less than half of its share so, or fewer than a few, the units next to the border are taken too. Of a
    class, one unit is always left to train, and one more for the split drawn next unless this is the `last`. A group is
    taken while half of its images or more are wanted by their classes.
    """
    images, left = Counter[int](), Counter[int]()
    for unit in order:
        images.update(unit.counts)
        left.update(unit.counts.keys())
    few = _FEWEST_VAL if back else 1
    kept = {label: 2 if units >= 3 and not last else 1 for label, units in left.items()}
    least = {label: max(min(few, count // 3), 1, int(count * share / 2)) for label, count in images.items()}
    most = {label: max(least[label], round(count * share * 1.5)) for label, count in images.items()}
    taken: set[int] = set()
    has = Counter[int]()

    def take(position: int) -> None:
        taken.add(position)
        left.subtract(order[position].counts.keys())
        has.update(order[position].counts)

    def free(position: int) -> bool:
        return position not in taken and all(left[label] > kept[label] for label in order[position].counts)

    places = range(len(order) - 1, -1, -1) if back else range(len(order))
    for position in places:
        unit = order[position]
        within = unit.place >= 1.0 - share if back else unit.place < share
        fits = len(unit.entries) == 1 or all(has[label] + n <= most[label] for label, n in unit.counts.items())
        if within and fits and free(position):
            take(position)
    holding: dict[int, list[int]] = defaultdict(list)  # class -> places, in the order they are drawn in
    for position in places:
        for label in order[position].counts:
            holding[label].append(position)
    for label in sorted(images):
        for position in holding[label]:
            if has[label] >= least[label]:
                break
            unit = order[position]
            size = unit.counts[label]
            if (has[label] == 0 or has[label] + size <= most[label]) and free(position):
                if len(unit.entries) > 1 and has[label] == 0:
                    position = _smallest(order, holding[label], free)
                take(position)
    return [order[at] for at in sorted(taken)], [unit for at, unit in enumerate(order) if at not in taken]


def _smallest(order: list[_Unit], places: list[int], free: Callable[[int], bool]) -> int:
    """The smallest of these units that may be taken, the first of equals."""
    return min(filter(free, places), key=lambda at: len(order[at].entries))


def _sides(catalog: Catalog, splits: Splits) -> list[str]:
    """The split word of each entry."""
    sides = [""] * len(catalog)
    for word in SPLIT_WORDS:
        for row in getattr(splits, word):
            sides[row] = word
    return sides


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
        table.writerow((cell(catalog.paths[row]), cell(catalog.label(row)), sides[row]))
    return text.getvalue().encode()


def _matched(path: Path, catalog: Catalog, written: dict[str, tuple[str, str]]) -> list[str]:
    """The side of each catalogue entry; DataError unless file and catalogue hold the same images and labels."""
    here, remedy = set(catalog.paths), "Restore the data or start a new run."
    for problem, paths in (("no longer has", written.keys() - here), ("has anew", here - written.keys())):
        if paths:
            listed = f"{len(paths)} (first: {shown(min(paths))})"
            raise DataError(f"{shown(path.name)} is of other images; those that the data {problem}: {listed}. {remedy}")
    sides = []
    for row, name in enumerate(catalog.paths):
        (labelled, side), expected = written[name], catalog.label(row)
        if labelled != expected:
            came = f"{shown(path.name)} has '{shown(labelled)}' for {shown(name)}"
            raise DataError(f"{came}, the data has '{shown(expected)}'. {remedy}")
        if side not in SPLIT_WORDS:
            came = f"{shown(path.name)} has the split '{shown(side)}'"
            raise DataError(f"{came}, expected {', '.join(SPLIT_WORDS)}. Start a new run.")
        sides.append(side)
    return sides


def _how(
    catalog: Catalog, sides: list[str], drawn: list[str], fractions: dict[str, float], seed: int, *, tied: bool
) -> str:
    """The sentence that says where the splits come from, and which classes a split lacks."""
    given = [word for word in SPLIT_WORDS if word in catalog.splits]
    parts = [f"{' and '.join(given)} given by the data"] if given else []
    if drawn:
        of = {"test": "of each class", "val": "of what is left of each class"}
        shares = " and ".join(f"{word} ({fractions[word]:.0%} {of[word]})" for word in drawn)
        kinds = (["groups"] if catalog.groups is not None else []) + (["pictures that are the same"] if tied else [])
        together = f", {' and '.join(kinds)} kept together" if kinds else ""
        parts.append(f"{shares} drawn from {'train' if given else 'all images'} with seed {seed}{together}")
    for word in SPLIT_WORDS:
        rows = np.array([side == word for side in sides])
        held = counts(catalog.labels[rows], len(catalog.classes))
        absent = [f"'{shown(name)}'" for name, count in zip(catalog.classes, held, strict=True) if not count]
        if absent and rows.any():
            parts.append(f"{word} has no image of {', '.join(absent[:5])}{' and others' if len(absent) > 5 else ''}")
    return "; ".join(parts)
