"""Images given in Python: paths with labels, an array with labels, or a data set that can be indexed."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from burnish.data.catalog import SPLIT_WORDS, Catalog, Named
from burnish.data.contents import Contents, Drawn, plain_array
from burnish.data.sources.assemble import (
    Labelled,
    as_in_a_table,
    assemble,
    class_name,
    class_names,
    told_apart,
    with_several,
)
from burnish.data.sources.folder import SPLIT_FOLDERS
from burnish.data.sources.scan import is_utf8
from burnish.data.unit import FLOATS, require_units
from burnish.errors import DataError, NotEnoughData, nearest, shown, some

TARGETS = ("targets", "labels", "_labels", "y")  # where data sets keep all labels, so that no image need be loaded
_WORDS = "(images, labels): a list of paths or images, or an array [n h w 3] of uint8 or floats from 0 to 1, and a label for each"
_NUMBERS = ("uint8", "uint16", "bool")  # that arrays hold
_IMAGES, _LABELS = ("image", "img"), ("label", "labels")  # names of entries and columns
_MOST_BITS = 1024  # of a whole number that is a class
Label = str | tuple[str, ...]


def open_python(data: Any) -> Catalog:
    """The catalogue of (images, labels), of a table with the columns path and label, or of a map-style data set.

    Items of a data set are (image, label), or mappings with such names, as those of Hugging Face `datasets`.

    labels: a class name or number for each image, or, where it may have several, a list of them or a row of 0 and 1 [n k].
    images: paths, or uint8, uint16 or floats from 0 to 1, [n h w 3], [n 3 h w], [n h w], of NumPy or torch. Of a list or a data
    set each is a Pillow image, such an array, a path, or a file's bytes. DataError when it is something else.
    """
    if isinstance(data, tuple):
        if len(data) != 2:
            raise DataError(f"The data is a tuple of {len(data)}, expected {_WORDS}.")
        images, labels = (_without_index(part) for part in data)
        lacking = [what for what, part in (("images", images), ("labels", labels)) if not _is_listed(part)]
        if lacking:
            kinds = " and ".join(f"{what} are {_kind(images if what == 'images' else labels)}" for what in lacking)
            raise DataError(f"The {kinds}, expected {_WORDS}.")
        texts = _labels(labels, len(images), classes=None)
        if _is_array(images):
            return _drawn(texts, None, _hwc(images), source="array", fixed=True)
        if not isinstance(images, (list, tuple, np.ndarray)):
            raise DataError(f"The images are {_kind(images)}, expected {_WORDS}.")
        if any(_is_image(one) for one in images):
            return _drawn(texts, None, _one_of(images), source="list", fixed=True)
        return open_paths(images, texts)
    if hasattr(data, "columns") and hasattr(data, "__getitem__"):
        return _open_frame(data)
    by_name = isinstance(data, Mapping) or hasattr(data, "iloc")  # a dictionary, a column of pandas
    if hasattr(data, "__getitem__") and hasattr(data, "__len__") and not by_name:
        return open_dataset(data)
    if gives_batches(data):
        raise DataError(f"The data is {_kind(data)}, which gives batches. Give its data set: loader.dataset.")
    raise DataError(f"The data is {_kind(data)}, expected a path, {_WORDS}, or a data set with len() and items.")


def gives_batches(data: Any) -> bool:
    """Whether it is a data loader, torch's or one like it: what is drawn from it are many images at a time."""
    return hasattr(data, "dataset") and hasattr(data, "batch_size")


def _open_frame(table: Any) -> Catalog:
    """The catalogue of a table in memory, of pandas or another: path, label, and where wanted split and group."""
    names = {str(name).strip().lower(): name for name in table.columns}
    image = next((names[name] for name in _IMAGES if name in names), None)
    if "path" not in names and image is not None:  # AutoGluon's tables call it so
        names["path"] = image
    columns = {name: list(_without_index(table[names[name]])) for name in ("path", "split", "group") if name in names}
    said = next((names[name] for name in _LABELS if name in names), None)
    if "path" not in columns or said is None:
        raise DataError(
            f"The table has the columns {some(list(table.columns))}; expected path and label, and if wanted split and "
            "group. Rename them, or give (table.path, table.label)."
        )
    labels = _labels(_without_index(table[said]), len(columns["path"]), classes=None)
    splits = None
    if "split" in columns:
        words = ["" if _is_missing(word) else str(word).strip().lower() for word in columns["split"]]
        splits = [_split(word, at) for at, word in enumerate(words)] if any(words) else None
    groups = [None if _is_missing(one) else str(as_in_a_table(one)) for one in columns.get("group", [])] or None
    return open_paths(columns["path"], labels, source="table", splits=splits, groups=groups)


def paths_of(table: Any) -> list[Any]:
    """The column path, or image, of a table in memory. DataError where it has none."""
    names = {str(name).strip().lower(): name for name in table.columns}
    name = next((names[word] for word in ("path", *_IMAGES) if word in names), None)
    if name is None:
        raise DataError(
            f"The table has the columns {some(list(table.columns))}; expected path. Rename one, or give that column alone."
        )
    return list(_without_index(table[name]))


def image_of(data: Any, index: int) -> Any:
    """The image of an item of a data set, whether or not it has a label. DataError where it has no image."""
    item = data[index]
    if isinstance(item, Mapping):
        name = next((name for name in _IMAGES if name in item), None)
        if name is None:
            held = shown(", ".join(map(str, item)))[:120]
            raise DataError(f"Item {index} of the data set has the entries {held}; expected image.")
        return item[name]
    return item[0] if isinstance(item, tuple) and item else item


def _split(word: str, at: int) -> str:
    if word not in SPLIT_FOLDERS:
        came = f"'{shown(word)}', nearest: {nearest(word, SPLIT_WORDS)}" if word else "empty, and that of others is not"
        raise DataError(f"The split of row {at} is {came}. Use train, val or test for all, or leave the column out.")
    return SPLIT_FOLDERS[word]


def _without_index(part: Any) -> Any:
    """A column of pandas as a list."""
    return part.tolist() if hasattr(part, "iloc") and hasattr(part, "tolist") else part


def _is_listed(part: Any) -> bool:
    """Whether it has a length and can be gone through."""
    try:
        return len(part) >= 0 and not isinstance(part, (str, bytes))
    except TypeError:
        return False


def open_paths(
    paths: Sequence[Any] | np.ndarray,
    labels: Sequence[Label],
    *,
    source: str = "paths",
    splits: Sequence[str] | None = None,
    groups: Sequence[str | None] | None = None,
) -> Catalog:
    """The catalogue of image files anywhere on disk, with a class name for each; a path that is given again is named."""
    if len(paths) == 0:
        raise NotEnoughData("There are no images, expected some paths.")
    for at, path in enumerate(paths):
        if not isinstance(path, (str, os.PathLike)):
            raise DataError(f"Image {at} is {_kind(path)}, expected {_WORDS}.")
    files = [Path(os.path.abspath(path)) for path in paths]
    strange = next((file for file in files if not is_utf8(str(file))), None)
    if strange is not None:
        raise DataError(f"{shown(str(strange))}: its name is not UTF-8. Rename it.")
    root = Path(os.path.commonpath([file.parent for file in files]))
    found: dict[str, tuple[int, Labelled]] = {}
    named: list[Named] = []
    for at, (file, label) in enumerate(zip(files, labels, strict=True)):
        path = file.relative_to(root).as_posix()
        image = Labelled(path, label, splits[at] if splits else None, groups[at] if groups else None)
        place, first = found.setdefault(path, (at, image))
        if first.label != label:
            raise DataError(
                f"{shown(str(file))} is given twice, as {_said(first.label)} and as {_said(label)}. Keep one."
            )
        if first != image:
            raise DataError(f"{shown(str(file))} is given twice, with another split or group. Keep one.")
        if place != at:
            named.append(Named(path, f"given again, first as item {place} (item {at})"))
    images = with_several([image for _, image in found.values()])
    return assemble(root, images, named, source=source, counted=len(files))


def open_dataset(data: Any, *, splits: Sequence[str] | None = None, source: str = "data set") -> Catalog:
    """The catalogue of a map-style data set; its attribute `classes`, where it has one, names the label numbers."""
    column = next((name for name in _LABELS if name in (getattr(data, "column_names", None) or ())), None)
    classes = getattr(data, "classes", None) if column is None else _class_names(data, column)
    names = told_apart(map(str, classes)) if isinstance(classes, (list, tuple)) else None
    kept = next((getattr(data, name) for name in TARGETS if _is_list_of(getattr(data, name, None), len(data))), None)
    if column is not None:
        kept = list(data[column])
    if kept is None:
        kept = [_label_of(data, index) for index in range(len(data))]
    return _drawn(
        _labels(kept, len(data), classes=names), splits, lambda index: plain_array(_item(data, index)[0]), source=source
    )


def _class_names(data: Any, column: str) -> list[str] | None:
    """What a data set of Hugging Face's calls the numbers in a column; None where it calls them nothing."""
    kind = (getattr(data, "features", None) or {}).get(column)
    return getattr(kind, "names", None) or getattr(getattr(kind, "feature", None), "names", None)


def _drawn(
    labels: list[Label], splits: Sequence[str] | None, drawn: Callable[[int], Any], *, source: str, fixed: bool = False
) -> Catalog:
    if not labels:
        raise NotEnoughData("There are no images, expected some.")
    width = len(str(len(labels) - 1))
    paths = [f"{index:0{width}d}" for index in range(len(labels))]
    images = [
        Labelled(path, label, splits[at] if splits else None)
        for at, (path, label) in enumerate(zip(paths, labels, strict=True))
    ]
    contents: Contents = Drawn({path: index for index, path in enumerate(paths)}, drawn, fixed=fixed)
    root, counted = Path(f"<{source}>"), len(labels)
    return assemble(root, with_several(images), [], source=source, counted=counted, contents=contents)


def _label_of(data: Any, index: int) -> Any:
    """The label of an item; DataError where the data set gives none."""
    try:
        return _item(data, index)[1]
    except DataError:
        raise
    except Exception as error:  # somebody else's code
        said = " ".join(shown(str(error)).split())[:120]
        raise DataError(
            f"Item {index} of the data set cannot be had: {type(error).__name__}{': ' if said else ''}{said}. Expected (image, "
            "label) for every index from 0 to len() - 1."
        ) from error


def _item(data: Any, index: int) -> tuple[Any, Any]:
    item = data[index]
    if isinstance(item, Mapping):
        names = [next((name for name in some if name in item), None) for some in (_IMAGES, _LABELS)]
        if None in names:
            held = shown(", ".join(map(str, item)))[:120]
            raise DataError(f"Item {index} of the data set has the entries {held}; expected image and label.")
        return item[names[0]], item[names[1]]
    if not isinstance(item, (tuple, list)) or len(item) < 2:
        raise DataError(f"Item {index} of the data set is {_kind(item)}, expected (image, label).")
    return item[0], item[1]


def _labels(labels: Any, count: int, *, classes: list[str] | None) -> list[Label]:
    """A class name for each image, or several."""
    if getattr(labels, "ndim", 1) == 2:
        labels = _of_columns(labels)
    values = labels.tolist() if hasattr(labels, "tolist") else list(labels)
    if len(values) != count:
        raise DataError(f"There are {count} images and {len(values)} labels, expected one for each image.")
    return [_label(value, at, classes) for at, value in enumerate(values)]


def _of_columns(table: Any) -> list[Any]:
    """Class numbers of rows of 0 and 1 [n k]: one where each row has a single 1, else a list."""
    rows = np.asarray(table.detach().cpu() if hasattr(table, "detach") else table)
    if rows.ndim == 2 and rows.shape[1] == 1:  # a table of one column
        return rows[:, 0].tolist()
    if not np.isin(rows, (0, 1)).all():
        raise DataError(
            f"The labels are a table {list(rows.shape)} of other numbers than 0 and 1, expected [n] or 0 and 1."
        )
    found = [np.flatnonzero(row).tolist() for row in rows]
    return [row[0] for row in found] if all(len(row) == 1 for row in found) else found


def _label(value: Any, at: int, classes: list[str] | None) -> Label:
    if getattr(value, "ndim", 0) == 1:
        value = _of_columns(value[None])[0]  # a data set whose items carry a row of 0 and 1
    if isinstance(value, (list, tuple, set, frozenset)):
        if any(isinstance(one, (bool, np.bool_, float)) for one in value):
            raise DataError(
                f"Label {at} is a list of other things than class names or numbers. A row of 0 and 1 is given as an array."
            )
        return class_names(_name(one, at, classes) for one in value)
    return _name(value, at, classes)


def _name(value: Any, at: int, classes: list[str] | None) -> str:
    value = value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value
    if _is_missing(value):
        raise DataError(f"Label {at} is missing ({shown(str(value))}). Fill it in, or leave the image out.")
    if classes is None or not isinstance(value, bool):  # with names True is 1
        value = as_in_a_table(value)
    if not isinstance(value, (str, int, np.integer)) or value == "":
        kind = (
            "a fraction (burnish sorts into classes, it does not fit numbers)"
            if isinstance(value, float)
            else _kind(value)
        )
        raise DataError(f"Label {at} is {kind}, expected a class name or number.")
    if not isinstance(value, str) and int(value).bit_length() > _MOST_BITS:
        raise DataError(f"Label {at} is a number of over 300 digits, expected a class name or number.")
    if classes is not None and not isinstance(value, str):
        if not 0 <= int(value) < len(classes):
            raise DataError(f"Label {at} is {int(value)}, and the data set names {len(classes)} classes.")
        return classes[int(value)]
    if not is_utf8(str(value)):
        raise DataError(f"Label {at} is {shown(str(value))!r}, which holds half a character.")
    return class_name(str(value))


def _is_missing(value: Any) -> bool:
    """Whether it is what tables hold where there is nothing: None, NaN, and pandas' own."""
    return (
        value is None or type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and value != value)
    )


def _is_array(images: Any) -> bool:
    return hasattr(images, "ndim") and hasattr(images, "dtype") and images.ndim > 1


def _is_image(one: Any) -> bool:
    """Whether it holds an image itself, not a path to one."""
    return isinstance(one, (Image.Image, bytes)) or (hasattr(one, "ndim") and hasattr(one, "dtype") and one.ndim > 1)


def _one_of(images: Any) -> Callable[[int], Any]:
    """Item number -> that image; DataError where one is neither an image nor a path."""
    for at, one in enumerate(images):
        if not _is_image(one) and not isinstance(one, (str, os.PathLike)):
            raise DataError(f"Image {at} is {_kind(one)}, expected {_WORDS}.")
    require_units(map(_plain, images))
    return lambda index: plain_array(images[index])


def _hwc(images: Any) -> Callable[[int], np.ndarray]:
    """Item number -> [h w 3] or [h w], of an array of any layout."""
    shape, kind = tuple(images.shape), str(images.dtype).removeprefix("torch.")
    if kind not in (*_NUMBERS, *FLOATS) or len(shape) not in (3, 4):
        expected = "uint8, uint16 or float32 from 0 to 1, [n h w 3], [n 3 h w] or [n h w]"
        raise DataError(f"The images are {kind} {list(shape)}, expected {expected}.")
    if kind in FLOATS:
        require_units(map(_plain, images))
    return lambda index: plain_array(images[index])


def _plain(image: Any) -> Any:
    """`plain_array`; of what has no form in NumPy nothing: it is named when it is read."""
    try:
        return plain_array(image)
    except TypeError:
        return None


def _is_list_of(value: Any, count: int) -> bool:
    return (isinstance(value, (list, tuple, np.ndarray)) and len(value) == count) or (
        hasattr(value, "tolist") and getattr(value, "ndim", 0) in (1, 2) and len(value) == count
    )


def _said(label: Label) -> str:
    return shown(repr(label if isinstance(label, str) else "|".join(label)))


def _kind(value: Any) -> str:
    if value is None:
        return "None"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
