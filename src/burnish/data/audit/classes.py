"""Findings on classes: thin, unequal, missing in a split, or perhaps none at all, or not the classes that are meant."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from burnish.data.audit.findings import Finding
from burnish.data.catalog import SPLIT_WORDS, Catalog, Splits
from burnish.data.sources.assemble import around
from burnish.errors import shown
from burnish.labels import counts as images_of_each

_THIN = 10  # images
_UNEQUAL = 10.0  # largest over smallest
# Names that stand for no class in any set we know of: what is left over, and what tools make.
_STRAY = re.compile(
    r"(misc|others?|unsorted|unlabell?ed|unknown|new folder|untitled folder|neuer ordner|tmp|temp|backups?|bak|old|copy|"
    r"images?|photos?|pictures?|todo|trash|rejected|duplicates?|annotations?|labels?|outputs?|results?)([ _-]*\(?\d+\)?)?",
    re.IGNORECASE,
)
# What pandas and tables write for no value.
_MISSING = re.compile(r"nan|none|null|n/a|#n/a|<na>|nil|nat", re.IGNORECASE)
_NUMBER = re.compile(r"\d{1,9}(\.0*)?")
_UNSEEN = "in case, blanks or characters that cannot be seen"
_FAR_FEWER = 20  # times fewer images than the middle class, with a name like the above


def class_findings(catalog: Catalog, splits: Splits | None) -> Iterator[Finding]:
    """All findings on classes; splits: of the same catalogue, where they are known."""
    counts = images_of_each(catalog.labels, len(catalog.classes))
    for label in np.flatnonzero(counts < _THIN):
        name = catalog.classes[label]
        yield Finding("thin_class", (), f"{counts[label]} images", name, rank=-float(counts[label]))
    if len(counts) > 1 and counts.min() > 0 and counts.max() > _UNEQUAL * counts.min():
        most, least = catalog.classes[int(counts.argmax())], catalog.classes[int(counts.argmin())]
        words = f"{counts.max()} images of '{most}', {counts.min()} of '{least}'"
        yield Finding(
            "imbalance", (), words, f"1 : {counts.max() / counts.min():.0f}", float(counts.max() / counts.min())
        )
    yield from _stray(catalog, counts)
    yield from _twins(catalog)
    yield from _mistaken(catalog)
    if splits is not None:
        yield from _gaps(catalog, splits)


def _stray(catalog: Catalog, counts: np.ndarray) -> Iterator[Finding]:
    """Classes with names for what is left over, for what is missing, or with far fewer images than the others."""
    middle = float(np.median(counts)) if len(counts) else 0.0
    for label, name in enumerate(catalog.classes):
        if _MISSING.fullmatch(name.strip()):
            words = f"the class '{name}' ({counts[label]} images) may be what a table has where nothing is known"
            yield Finding("missing_label", (), words, name)
        elif _STRAY.fullmatch(name.strip()) and len(catalog.classes) > 2:
            yield Finding(
                "stray_folder", (), f"the class '{name}' ({counts[label]} images) has a name for leftovers", name
            )
        elif len(counts) > 2 and 0 < counts[label] * _FAR_FEWER < middle:  # of two, the rarer one is what is looked for
            words = f"the class '{name}' has {counts[label]} images, the middle one {middle:.0f}"
            yield Finding("stray_folder", (), words, name)


def _twins(catalog: Catalog) -> Iterator[Finding]:
    """Classes whose names a reader would take for one."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in catalog.classes:
        alike[_plainly(name)].append(name)
    for names in alike.values():
        if len(names) > 1:
            called = " and ".join(
                ascii(name) if len({shown(one) for one in names}) < len(names) else f"'{name}'" for name in names
            )
            how = "in how a number is written" if _NUMBER.fullmatch(_plainly(names[0])) else _UNSEEN
            yield Finding("twin_class", (), f"{called} differ {how}", names[0])


def _mistaken(catalog: Catalog) -> Iterator[Finding]:
    """Layouts in which something else than the classes was taken for them."""
    if len(catalog.classes) < 2:
        yield Finding("one_class", (), around(catalog).strip() or "there is nothing to tell it from", catalog.root.name)
        return
    if catalog.source.startswith("folder") and (inside := _in_all_classes(catalog)):
        words = f"each of {_some(catalog.classes)} holds the same {len(inside)} folders, {_some(sorted(inside))}"
        yield Finding("classes_within", (), f"{words}: are those the classes?", catalog.classes[0])
    if catalog.labels.ndim == 1:
        for separator in ";", ",":
            if divided := divided_by(separator, catalog.classes):
                words = f"'{divided[0]}' and {len(divided) - 1} more hold {separator} and parts of other labels"
                yield Finding("several_in_one", (), words, divided[0])


def _in_all_classes(catalog: Catalog) -> set[str]:
    """The folders that every class folder holds, and nothing else, where there are three or more."""
    inside: dict[str, set[str]] = defaultdict(set)
    for path in catalog.paths:
        top, *folders = path.split("/")[:-1] or [""]
        inside[top].add(folders[0] if folders else "")
    kinds = list(inside.values())
    same = len(kinds) > 1 and len(kinds[0]) >= 3 and "" not in kinds[0] and all(one == kinds[0] for one in kinds)
    return kinds[0] if same else set()


def divided_by(separator: str, labels: Sequence[str]) -> list[str]:
    """The labels that hold it, where most of those have a part that is found in another label too.

    One part that many begin with, and none is, is no class: Pepper, bell and Pepper, other.
    """
    parts = {
        label: [one.strip(" '\"") for one in label.strip("[]() ").split(separator)]
        for label in labels
        if separator in label
    }
    uses = Counter(part for label in labels for part in set(parts.get(label, [label.strip("[]() '\"")])))
    common = {part for own in parts.values() for part in own if part and uses[part] > 1}
    shared = [label for label, own in parts.items() if common.intersection(own)]
    first = Counter(own[0] for own in parts.values())
    if len(common) == 1 and all(uses[part] == first[part] for part in common):
        return []
    return sorted(parts) if 2 * len(shared) > len(parts) > 1 else []


def _some(names: Sequence[str]) -> str:
    """The first few, in a clause."""
    return ", ".join(f"'{shown(name)}'" for name in names[:3]) + (", …" if len(names) > 3 else "")


def _plainly(name: str) -> str:
    """A class's name without what the eye passes over: case, blanks, characters without a form (Unicode's Cf)."""
    seen = "".join(char for char in unicodedata.normalize("NFKC", name) if unicodedata.category(char) != "Cf")
    name = " ".join(re.sub(r"[\s_-]+", " ", seen).split()).casefold()
    return str(int(float(name))) if _NUMBER.fullmatch(name) else name


def _gaps(catalog: Catalog, splits: Splits) -> Iterator[Finding]:
    for word in SPLIT_WORDS:
        entries = getattr(splits, word)
        held = images_of_each(catalog.labels[entries], len(catalog.classes)) if len(entries) else None
        if held is None:
            continue
        for label in np.flatnonzero(held == 0):
            yield Finding("class_gap", (), f"{word} has no image of it", catalog.classes[label], float(word == "train"))
