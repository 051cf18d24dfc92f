"""Images sorted into folders: DATA/class/… or DATA/{train,val,test}/class/…"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from burnish.data.catalog import Catalog, Named
from burnish.data.formats import begins_as
from burnish.data.sources.assemble import Labelled, assemble, class_name
from burnish.data.sources.header import KINDS, labels_in
from burnish.data.sources.scan import NO_SUFFIX, Scan, scan
from burnish.errors import DataError, NotEnoughData, shown

SPLIT_FOLDERS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test", "testing": "test",
}  # fmt: skip


_IMAGES = {"images", "image", "img", "imgs", "jpegimages"}
_MASKS = {"masks", "mask", "segmentations", "segmentation", "annotations", "segmentationclass", "segmentationobject"}
_YEAR = re.compile(r"(train|val|test|unlabeled)(20)?\d\d")  # COCO's
# Of a folder that holds a part of the images, not a class.
_PART = re.compile(
    r"(?:fold|split|part|batch|session|site|year|day|week|month|camera|cam|subject|patient|run|cv|round)[ _-]?\d+"
    r"|(?:19|20)\d\d",
    re.IGNORECASE,
)


_HELD_OUT = re.compile(r"(dev|eval|evaluation|hold[ _-]?out|held[ _-]?out)([ _-]?(set|data|images))?", re.IGNORECASE)
_LOOKED_INTO = 16  # files without the suffix of an image, where there is none with one


def open_folder(root: Path, *, for_training: bool) -> Catalog:
    """The catalogue of a folder; images deeper than their class folder belong to that class.

    Raises DataError, or NotEnoughData for a folder without images.
    """
    return sorted_into_classes(root, scan(root), for_training=for_training)


def folders_within(catalog: Catalog) -> str:
    """A sentence where class folders hold several folders with images, which might be the classes; "" where none does."""
    levels = {"folder": 1, "split folders": 2}.get(catalog.source)
    inside: dict[str, set[str]] = defaultdict(set)
    for path in catalog.paths:
        parts = path.split("/")[:-1]
        if levels is not None and len(parts) > levels:
            inside[parts[levels - 1]].add(parts[levels])
    name = next((name for name, folders in inside.items() if len(folders) > 1), None)
    if name is None:
        return ""
    such = f"{shown(name)} holds {_listed(sorted(inside[name])[:2])}"
    return f"classes hold folders of their own ({such}); the outermost counts"


def sorted_into_classes(root: Path, found: Scan, *, for_training: bool) -> Catalog:
    """The catalogue of what lies in a folder, or in an archive of one."""
    _refuse_unsorted(root, found)
    with_images = {_first(path) for path in found.images if "/" in path}
    splits = _split_folders(root, found, with_images)
    if for_training and splits and "train" not in splits.values():
        raise DataError(
            f"{shown(str(root))} holds {_listed(splits)} but no train/. Add train/ with one folder per class, "
            "or put the class folders directly into the data folder to have the splits drawn."
        )
    images, named = [], list(found.named)
    folders: dict[tuple[str | None, str], set[str]] = defaultdict(set)  # (split, class) -> the folders of that name
    for path in found.images:
        split, inside = _taken_off(path, splits)
        folder, slash, _ = inside.partition("/")
        if not slash:
            named.append(Named(path, "an image beside the class folders, in none of them"))
            continue
        images.append(Labelled(path, class_name(folder), split))
        folders[split, class_name(folder)].add(folder)
    _refuse_twins(folders.values())
    _refuse_other_labels(root, found, {image.path: str(image.label) for image in images})
    if not splits:
        _refuse_parts(root, found)
        _refuse_other_tasks(root, found)
        _refuse_splits_within(root, found)
    empty = _without_images(found, splits)
    counted = len(found.images) + len(found.named) + len(empty)
    return assemble(root, images, [*named, *empty], source="split folders" if splits else "folder", counted=counted)


def _refuse_unsorted(root: Path, found: Scan) -> None:
    """NotEnoughData for a folder without images or without class folders."""
    if not found.images:
        what = "other file or folder" if len(found.named) == 1 else "other files or folders"
        aside = f": {len(found.named)} {what}" if found.named else ""
        unread = next(
            (one for one in found.named if " is not read" in one.reason or "symbolic link" in one.reason), None
        )
        aside += f", such as {shown(unread.path)} ({unread.reason})" if unread is not None else _nameless(root, found)
        raise NotEnoughData(
            f"{shown(str(root))} holds no images{aside}. Give a folder with one folder of images per class: "
            "DATA/cat/1.jpg, DATA/dog/1.jpg."
        )
    if not any("/" in path for path in found.images):
        raise NotEnoughData(
            f"{shown(str(root))} holds {len(found.images)} images but no class folders. Move each image into a folder "
            "with the name of its class (DATA/cat/1.jpg, DATA/dog/1.jpg), or list them in a CSV with the columns "
            "path,label."
        )


def _nameless(root: Path, found: Scan) -> str:
    """A clause on images whose names do not say that they are some; "" where there are none."""
    for one in [one for one in found.named if one.reason == NO_SUFFIX][:_LOOKED_INTO]:
        try:
            with open(root / one.path, "rb") as file:
                start = file.read(16)
        except OSError:
            continue
        # Two letters are too few to tell a BMP among bytes of any file, but not among files beside images
        kind = begins_as(start) or ("BMP" if start.startswith(b"BM") else None)
        if kind is not None:
            return f", such as {shown(one.path)}, a {kind} without its suffix: rename it and its like"
    return ""


def _refuse_other_labels(root: Path, found: Scan, taken: Mapping[str, str]) -> None:
    """DataError where a table beside the folders divides most of its images otherwise than the folders do."""
    for one in found.named:
        if "/" in one.path or one.reason != NO_SUFFIX or not one.path.lower().endswith(KINDS):
            continue
        listed = {path: class_name(label) for path, label in labels_in(root / one.path).items() if path in taken}
        # By folder: numbers or other words for the same are no matter.
        said: dict[str, set[str]] = defaultdict(set)
        for path, label in listed.items():
            said[taken[path]].add(label)
        other = [path for path, label in listed.items() if label != taken[path] and len(said[taken[path]]) > 1]
        if 2 * len(other) > len(listed):
            first = other[0]
            raise DataError(
                f"{shown(str(root))} holds {shown(one.path)}, which calls {shown(first)} '{shown(listed[first])}', and folders, "
                f"which call it '{shown(taken[first])}'. Give {shown(str(root / one.path))} instead; or, if the folders are the "
                "classes, move the table elsewhere."
            )


def _split_folders(root: Path, found: Scan, with_images: set[str]) -> dict[str, str]:
    """Folder name -> split word, if the top folders are splits that hold class folders; {} if they are classes.

    A data set with a class called "train" (beside "car" and "plane") stays one of class folders; but a folder of that name
    that holds several folders of images and no images of its own is a split, whatever stands beside it.
    """
    splits = {name: SPLIT_FOLDERS[name.lower()] for name in sorted(with_images) if name.lower() in SPLIT_FOLDERS}
    nested = {_first(path) for path in found.images if path.count("/") >= 2}
    others = sorted(with_images - set(splits))
    unsorted = not nested & set(splits)
    if not splits:
        _refuse_near_splits(root, found, with_images)
    if not splits or (others and (unsorted or (len(splits) == 1 and not _sorted(next(iter(splits)), found)))):
        return {}
    if others:
        raise DataError(
            f"Beside {_listed(splits)} stands the folder '{shown(others[0])}', which is no split. "
            "Expected train/, val/ and test/ only: "
            + ("rename it to val/ or test/." if _HELD_OUT.fullmatch(others[0]) else "move it elsewhere.")
        )
    if unsorted:
        raise DataError(
            f"{shown(str(root))} holds {_listed(splits)} with images but no class folders in them. "
            "Give each class a folder of its own: train/cat/1.jpg, train/dog/1.jpg; or, if a table has the classes, give that: a "
            "CSV with the columns path,label,split."
        )
    if len(set(splits.values())) < len(splits):
        raise DataError(f"{_listed(splits)} name the same split twice. Keep one of them, or merge them.")
    return splits


def _refuse_near_splits(root: Path, found: Scan, with_images: set[str]) -> None:
    """DataError where folders are called nearly as splits are, such as training_set/ and test_set/, and hold folders of images.

    Taken for classes, a model would learn to tell them from each other.
    """
    flat = {_first(path) for path in found.images if path.count("/") < 2}
    alike: dict[str, dict[str, str]] = defaultdict(dict)  # what is left of the names -> name -> split word
    for name in sorted(with_images - flat):
        if (told := _split_within(name)) is not None:
            alike[told[1]][name] = told[0]
    near = next((names for names in alike.values() if len(set(names.values())) > 1), None)
    if near is not None:
        raise DataError(
            f"{shown(str(root))} holds {_listed(near)}, which look like splits and would be taken for classes. Rename "
            f"them to {_listed(dict.fromkeys(near.values()))}, each with one folder per class."
        )


def _refuse_splits_within(root: Path, found: Scan) -> None:
    """DataError where the class folders hold train/ and test/: taken for parts of one class, test images would be trained on."""
    inside: dict[str, set[str]] = defaultdict(set)
    for path in found.images:
        top, *folders = path.split("/")[:-1] or [""]
        inside[top].update(SPLIT_FOLDERS[one.lower()] for one in folders[:1] if one.lower() in SPLIT_FOLDERS)
    parted = sorted(top for top, words in inside.items() if len(words) > 1)
    if parted and 2 * len(parted) >= len(inside):
        raise DataError(
            f"{shown(str(root))} has splits within its folders ('{shown(parted[0])}' holds {_listed(inside[parted[0]])}), which "
            "would be mixed. Put the splits outside, each with one folder per class: train/cat/1.jpg, test/cat/2.jpg; or list "
            "the images in a CSV with the columns path,label,split."
        )


def _refuse_parts(root: Path, found: Scan) -> None:
    """DataError where all top folders are called fold1, site_2 or 2019, and hold the same folders of images.

    Taken for classes, a model would learn to tell those from each other.
    """
    inside: dict[str, set[str]] = defaultdict(set)
    for path in found.images:
        top, *folders = path.split("/")[:-1] or [""]
        if not folders:
            return
        inside[top].add(folders[0])
    kinds = list(inside.values())
    if len(kinds) < 2 or len(kinds[0]) < 2 or any(one != kinds[0] for one in kinds):
        return
    if not all(_PART.fullmatch(name) for name in inside):  # classes may be divided alike: cat/indoor, dog/indoor
        return
    raise DataError(
        f"{shown(str(root))} holds {_listed(sorted(inside)[:3])}, each with the same folders "
        f"({_listed(sorted(kinds[0])[:3])}), so these would be the classes and those be lost. Put the images of each class into "
        "one folder, or list them in a CSV with the columns path,label,group (the group keeps what belongs together on one side)."
    )


def _refuse_other_tasks(root: Path, found: Scan) -> None:
    """DataError where images lie beside their masks, or as COCO has them: there are no classes, but boxes or outlines."""
    tops = {path.split("/")[0].lower() for path in found.images if "/" in path}
    masked = tops & _MASKS and tops & _IMAGES and tops <= _MASKS | _IMAGES
    if masked or (tops and all(_YEAR.fullmatch(one) for one in tops)):
        raise DataError(
            f"{shown(str(root))} holds {_listed(sorted(tops)[:3])}, as data for detection or segmentation does; burnish tells "
            "what a whole image is. "
            "Put the images of each class into one folder, or list them in a CSV with the columns path,label."
        )


def _split_within(name: str) -> tuple[str, str] | None:
    """(the split word that is a part of a folder's name, the rest of it)."""
    parts = re.split(r"[^a-z]+", name.lower())
    at = next((at for at, part in enumerate(parts) if part in SPLIT_FOLDERS), None)
    return None if at is None else (SPLIT_FOLDERS[parts[at]], " ".join(parts[:at] + parts[at + 1 :]))


def _sorted(folder: str, found: Scan) -> bool:
    """Whether a top folder holds several folders with images, and no images of its own."""
    inside = [path.split("/")[1:] for path in found.images if _first(path) == folder]
    return all(len(parts) > 1 for parts in inside) and len({parts[0] for parts in inside}) > 1


def _taken_off(path: str, splits: dict[str, str]) -> tuple[str | None, str]:
    """The split word of an image and its path below the split folder; None and the whole path without splits."""
    if not splits:
        return None, path
    folder, slash, inside = path.partition("/")
    return (splits[folder], inside) if slash else (None, path)


def _without_images(found: Scan, splits: dict[str, str]) -> list[Named]:
    """The folders that stand where splits or classes do and hold no image."""
    deepest = 2 if splits else 1  # levels of folders that mean something
    full = {"/".join(path.split("/")[:level]) for path in found.images for level in range(1, path.count("/") + 1)}
    empty = [path for path in found.folders if path.count("/") < deepest and path not in full]
    outermost = [path for path in empty if path.rpartition("/")[0] not in empty]
    return [Named(path, "a folder without images") for path in outermost]


def _refuse_twins(folders: Iterable[set[str]]) -> None:
    """DataError when two folder names look alike and differ only in how accents are coded."""
    for names in folders:
        if len(names) > 1:
            first, second = sorted(names)[:2]
            raise DataError(
                f"Two folders are named '{shown(first)}' and differ only in their Unicode form: {first!a} and "
                f"{second!a}. Merge them into one."
            )


def _first(path: str) -> str:
    """The topmost folder of a path."""
    return path.partition("/")[0]


def _listed(names: Iterable[str]) -> str:
    """Folder names as 'a/, b/ and c/'."""
    *most, last = [f"{shown(name)}/" for name in names]
    return f"{', '.join(most)} and {last}" if most else last
