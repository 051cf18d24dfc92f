"""Findings on classes: thin, unequal, missing in a split, or perhaps none at all."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from burnish.data.audit.findings import Finding
from burnish.data.catalog import SPLIT_WORDS, Catalog, Splits
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
    middle = float(np.median(counts)) if len(counts) else 0.0
    for label, name in enumerate(catalog.classes):
        if _STRAY.fullmatch(name.strip()) and len(catalog.classes) > 2:
            yield Finding(
                "stray_folder", (), f"the class '{name}' ({counts[label]} images) has a name for leftovers", name
            )
        elif 0 < counts[label] * _FAR_FEWER < middle:
            words = f"the class '{name}' has {counts[label]} images, the middle one {middle:.0f}"
            yield Finding("stray_folder", (), words, name)
    alike: dict[str, list[str]] = defaultdict(list)
    for name in catalog.classes:
        alike[_plainly(name)].append(name)
    for names in alike.values():
        if len(names) > 1:
            called = " and ".join(
                ascii(name) if len({shown(one) for one in names}) < len(names) else f"'{name}'" for name in names
            )
            yield Finding(
                "twin_class", (), f"{called} differ in case, blanks or characters that cannot be seen", names[0]
            )
    if splits is not None:
        yield from _gaps(catalog, splits)


def _plainly(name: str) -> str:
    """A class's name without what the eye passes over: case, blanks, characters without a form (Unicode's Cf)."""
    seen = "".join(char for char in unicodedata.normalize("NFKC", name) if unicodedata.category(char) != "Cf")
    return " ".join(re.sub(r"[\s_-]+", " ", seen).split()).casefold()


def _gaps(catalog: Catalog, splits: Splits) -> Iterator[Finding]:
    for word in SPLIT_WORDS:
        entries = getattr(splits, word)
        held = images_of_each(catalog.labels[entries], len(catalog.classes)) if len(entries) else None
        if held is None:
            continue
        for label in np.flatnonzero(held == 0):
            yield Finding("class_gap", (), f"{word} has no image of it", catalog.classes[label], float(word == "train"))
