"""From labelled files to a Catalog, and the checks that every source shares (P2, P4)."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from burnish.data.catalog import Catalog, Named
from burnish.data.contents import Contents, is_redrawn
from burnish.errors import DataError, NotEnoughData, nearest, shown
from burnish.labels import SEPARATOR, counts, having

_WHOLE = re.compile(r"[+-]?\d+\.0*")  # numbers of classes that passed through a table of floats
_FRACTION = re.compile(r"[+-]?(\d*\.\d+(e[+-]?\d+)?|\d+e[+-]?\d+)", re.IGNORECASE)
_MEND = {
    False: "Replace the files or remove the class.",
    True: "Mend what the data set gives, or remove the class.",
}
ENOUGH = 3  # images of a class: one each to train, to choose and to prove


@dataclass(frozen=True, slots=True)
class Labelled:
    """One image file with its label."""

    path: str  # relative to the source's root
    label: str | tuple[str, ...]  # one class, or any number of them
    split: str | None = None
    group: str | None = None


def class_name(text: str) -> str:
    """The name under which a class is stored and matched: Unicode NFC, so that two ways of typing é are one."""
    return unicodedata.normalize("NFC", text)


def as_in_a_table(value: object) -> object:
    """A label as a cell of a CSV has it: a whole number of a column of floats without its point, True as "True"."""
    if isinstance(value, bool):
        return str(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def told_apart(names: Iterable[str]) -> list[str]:
    """Names of numbered classes, by number; those that several have get their number: "crane (134)", "crane (517)".

    A name is what a class is known by, so two classes of one name would be one. A number without a name is called by itself.
    """
    given = [class_name(name.strip()) for name in names]
    times = Counter(given)
    return [f"{name} ({at})" if name and times[name] > 1 else name or str(at) for at, name in enumerate(given)]


def class_names(names: Iterable[str]) -> tuple[str, ...]:
    """The classes of one image, each once, in order."""
    return tuple(sorted({class_name(name.strip()) for name in names if name.strip()}))


def with_several(images: list[Labelled]) -> list[Labelled]:
    """The images with any number of classes each, where their labels say so; else just as they are.

    They do where one is given as a list, or where "a|b" stands for two classes: a part of it is found in another label too.
    No label is then an image of no class.
    """
    if not any(isinstance(image.label, tuple) for image in images) and not _bars_divide(
        {image.label for image in images if isinstance(image.label, str)}
    ):
        return images
    listed = any(isinstance(image.label, tuple) for image in images)
    known: dict[str, tuple[str, ...]] = {}

    def parts(label: str | tuple[str, ...]) -> tuple[str, ...]:
        if isinstance(label, tuple):
            return label
        if label not in known:
            known[label] = class_names([label] if listed else label.split(SEPARATOR))
        return known[label]

    return [replace(image, label=parts(image.label)) for image in images]


def _bars_divide(labels: set[str]) -> bool:
    """Whether a bar in these labels stands between classes."""
    divided = {label: set(class_names(label.split(SEPARATOR))) for label in labels if SEPARATOR in label}
    uses = Counter(part for label in labels for part in divided.get(label, {label}))
    return any(uses[part] > 1 for parts in divided.values() for part in parts)


def assemble(
    root: Path,
    images: Iterable[Labelled],
    named: Iterable[Named],
    *,
    source: str,
    counted: int | None = None,
    contents: Contents | None = None,
) -> Catalog:
    """The Catalog of labelled files, ordered by class and path; labels are taken as given.

    counted: files, rows or items that the source went through, images or not. Where one image has a group, an image without one
    is a group of its own.
    """
    ordered = sorted(images, key=lambda image: (image.label, image.path))
    classes, labels = _numbered([image.label for image in ordered])
    grouped = any(image.group for image in ordered)
    return Catalog(
        root=root,
        paths=tuple(image.path for image in ordered),
        labels=labels,
        classes=classes,
        splits=tuple(image.split for image in ordered),
        groups=tuple(image.group or image.path for image in ordered) if grouped else None,
        named=tuple(sorted(named, key=lambda one: (one.path, one.reason))),
        source=source,
        contents=contents,
        counted=counted,
    )


def _numbered(labels: list[str | tuple[str, ...]]) -> tuple[tuple[str, ...], np.ndarray]:
    """The classes in order, and int64 [n]; or, where labels are tuples, bool [n k]."""
    if not any(isinstance(label, tuple) for label in labels):
        classes = tuple(sorted({str(label) for label in labels}))
        number = {name: index for index, name in enumerate(classes)}
        return classes, np.array([number[str(label)] for label in labels], np.int64)
    classes = tuple(sorted({name for label in labels for name in label}))
    number = {name: index for index, name in enumerate(classes)}
    table = np.zeros((len(labels), len(classes)), bool)
    for row, label in enumerate(labels):
        table[row, [number[name] for name in label]] = True
    return classes, table


def require_usable(catalog: Catalog) -> None:
    """Nothing, if a classifier can be trained on the catalogue.

    Raises NotEnoughData when there are fewer than two classes, or fewer than two of three images where the splits are still
    to be drawn, and DataError when val or test hold a class that train does not.
    """
    if len(catalog.classes) < 2:
        only = f"the one class '{shown(catalog.classes[0])}'" if catalog.classes else "no class with images"
        raise NotEnoughData(
            f"{shown(str(catalog.root))} holds {only}, expected at least two. Give each class a folder of its own: "
            f"DATA/cat/1.jpg, DATA/dog/1.jpg.{around(catalog)}{_named_in_words(catalog.named)}"
        )
    _refuse_other_tasks(catalog)
    if "val" in catalog.splits or "test" in catalog.splits:
        _require_known_classes(catalog)
    else:
        _require_enough_of_each(catalog)


def without(catalog: Catalog, named: Sequence[Named]) -> Catalog:
    """The catalogue less the files in `named`, which move to its own `named`; the classes stay as they are.

    Raises NotEnoughData naming the class that has lost all of its images. `require_usable` judges what is left.
    """
    reasons = {one.path: one.reason for one in named}
    kept = [index for index, path in enumerate(catalog.paths) if path not in reasons]
    if len(kept) + len(reasons) != len(catalog):
        strangers = sorted(set(reasons) - set(catalog.paths))
        raise ValueError(f"not in the catalogue: {strangers[:3]}")
    before = counts(catalog.labels, len(catalog.classes))
    after = counts(catalog.labels[kept], len(catalog.classes))
    for index in np.flatnonzero((after == 0) & (before > 0)):
        first = catalog.paths[int(np.argmax(having(catalog.labels, int(index))))]
        raise NotEnoughData(
            f"All {before[index]} images of class '{shown(catalog.classes[index])}' cannot be used "
            f"(first: {shown(first)}: {reasons[first]}). {_MEND[is_redrawn(catalog.contents)]}"
        )
    return _naming(catalog.at(kept), named)


def with_named(catalog: Catalog, named: Sequence[Named]) -> Catalog:
    """The catalogue with these files, which are none of its images, among its named ones."""
    counted = None if catalog.counted is None else catalog.counted + len(named)
    return _naming(replace(catalog, counted=counted), named)


def _naming(catalog: Catalog, named: Sequence[Named]) -> Catalog:
    return replace(catalog, named=tuple(sorted((*catalog.named, *named), key=lambda one: (one.path, one.reason))))


def around(catalog: Catalog) -> str:
    """What to say where the class folders stand in a folder of their own."""
    inside = {path.split("/")[1] for path in catalog.paths if path.count("/") > 1}
    if len({path.partition("/")[0] for path in catalog.paths}) != 1 or len(inside) < 2:
        return ""
    return f" Is it {shown(str(Path(catalog.root) / catalog.paths[0].partition('/')[0]))} that you mean?"


def _refuse_other_tasks(catalog: Catalog) -> None:
    """DataError when the labels are numbers to be predicted."""
    names = catalog.classes
    fractions = [name for name in names if _FRACTION.fullmatch(name) and not _WHOLE.fullmatch(name)]
    if len(fractions) > 0.5 * len(names) and len(names) > 0.2 * len(catalog):
        raise DataError(
            f"Labels such as '{shown(fractions[0])}' are numbers to be predicted. burnish sorts images into classes, it does not "
            "fit numbers. Give class names, such as ranges of the number."
        )


def _require_known_classes(catalog: Catalog) -> None:
    """DataError when a class of val or test is not in train."""
    training = np.array([split in ("train", None) for split in catalog.splits])
    in_train = counts(catalog.labels[training], len(catalog.classes)) > 0
    known = [name for name, there in zip(catalog.classes, in_train, strict=True) if there]
    for index in np.flatnonzero(~in_train):
        unknown, row = catalog.classes[index], int(np.argmax(having(catalog.labels, int(index))))
        raise DataError(
            f"{catalog.splits[row]} holds the class '{shown(unknown)}' ({shown(catalog.paths[row])}), which train does not. "
            f"{_nearest_classes(unknown, known)} Rename it, remove it, or add training images of it."
        )
    if len(known) < 2:
        raise NotEnoughData(
            f"train holds {len(known)} class, expected at least two. Add training images of another class."
        )


def _nearest_classes(unknown: str, known: list[str]) -> str:
    """A sentence with the classes of train nearest to an unknown one."""
    return f"Nearest in train: {nearest(unknown, known)}." if known else "No class of train has usable images."


def _require_enough_of_each(catalog: Catalog) -> None:
    """NotEnoughData unless two classes have an image for each of the splits that are still to be drawn.

    Of sets of many classes some have one or two images: those are trained on, two are tested too, and the audit names them.
    """
    found = counts(catalog.labels, len(catalog.classes))
    scarce = [f"'{shown(catalog.classes[index])}' has {found[index]}" for index in np.flatnonzero(found < ENOUGH)]
    if len(found) - len(scarce) < 2:
        more = f", and {len(scarce) - 5} more classes" if len(scarce) > 5 else ""
        raise NotEnoughData(
            f"Too few images: class {', '.join(scarce[:5])}{more}; expected two classes of at least {ENOUGH}, one each "
            "for train, val and test. Add images, merge or remove the class, or give the splits yourself (folders train/ and "
            f"test/, or a split column).{_named_in_words(catalog.named)}"
        )


def _named_in_words(named: Sequence[Named]) -> str:
    """What was set aside, as a sentence by reason; nothing when nothing was."""
    if not named:
        return ""
    reasons = Counter(one.reason for one in named).most_common(3)
    return (
        f" Not used: {len(named)} {'file or folder' if len(named) == 1 else 'files or folders'} ("
        + "; ".join(f"{count} {reason}" for reason, count in reasons)
        + ")."
    )
