"""What a model is asked about: images as paths, folders, bytes, pictures, arrays or data sets, one by one."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from burnish.data.catalog import Named
from burnish.data.contents import picture_of, plain_array
from burnish.data.pixels import Need, decode, decode_picture
from burnish.data.sources.python import gives_batches, image_of, paths_of
from burnish.data.sources.scan import LINK_OUT, NO_SUFFIX, has_image_suffix, scan
from burnish.data.sources.unlabelled import Inside, holds, images_of, is_archive, is_kept_by_datasets, lists
from burnish.data.unit import require_units
from burnish.disk import expanded
from burnish.errors import DataError, NotEnoughData, UnreadableImage, shown

_CHANNELS = (1, 3, 4)
_LONGEST_NAME = 4096  # bytes of a path, as Linux has it
_IMAGES = "a path, bytes, a Pillow image, or an array or tensor of uint8, uint16 or floats from 0 to 1"


class Readable(Protocol):
    """An open file, or what a web service gets instead of one."""

    def read(self) -> bytes: ...


class Items(Protocol):
    """A map-style data set, such as torch's: its items are images, or begin with one, or are mappings with an entry image."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


InMemory = bytes | bytearray | memoryview | Readable | Image.Image | np.ndarray | torch.Tensor
ImageLike = str | os.PathLike[str] | InMemory | Callable[[], Path | bytes]
Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]
Images = ImageLike | Iterable[ImageLike] | Items
Found = list["Path | Inside | NotRead"]


def opened(image: ImageLike, *, at_least: Need | None = None) -> Image.Image:
    """The upright RGB image of a path, of the bytes of a file, of a Pillow image, or of an array or tensor.

    Arrays are those that `fit` takes: uint8, uint16 or floats from 0 to 1, [h w 3], [h w 4], [h w 1], [h w] or [3 h w], bool
    [h w]. What they hold is read as a file of the same picture is.
    """
    if callable(image):
        image = image()
    if isinstance(image, io.BytesIO):
        image = image.getvalue()
    if isinstance(image, (bytearray, memoryview)):
        image = bytes(image)
    if (read := getattr(image, "read", None)) is not None:
        image = read()  # an open file
    if isinstance(image, np.ndarray) and image.ndim == 1 and image.dtype == np.uint8:
        image = image.tobytes()  # of a file
    if isinstance(image, bytes):
        return decode(image, at_least=at_least)
    if isinstance(image, (Image.Image, np.ndarray, torch.Tensor)):
        return decode_picture(picture_of(image, "array"), "array", at_least=at_least)
    if not isinstance(image, (str, os.PathLike)):
        more = "; of (image, label) give the image alone" if isinstance(image, (tuple, list)) else ""
        raise UnreadableImage("image in memory", f"{type(image).__name__}, expected {_IMAGES}{more}")
    return decode(Path(image), at_least=at_least)


@dataclass(frozen=True)
class NotRead:
    """A file of a folder, or a folder in it, that is not looked at, in an image's place: asked for one it says why (P4)."""

    path: str
    reason: str

    def __call__(self) -> bytes:
        raise UnreadableImage(self.path, self.reason)

    def __str__(self) -> str:
        return self.path


def listed(images: Any) -> Iterable[Any]:
    """The images one by one; a path, an array, an image or an open file alone is one. DataError where it is none of them.

    An array [3 h w] is one image in colour, though it might be three grey ones: those are given as a list. Of a table it is the
    column path; of a data set, which `fit` takes with its labels, the images. What is drawn as it is gone through stays so.
    """
    alone = isinstance(images, (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)) or (
        getattr(images, "read", None) is not None
    )
    if isinstance(images, (np.ndarray, torch.Tensor)):
        shape = images.shape
        alone = (
            len(shape) in (0, 2)
            or (len(shape) == 1 and images.dtype in (np.uint8, torch.uint8))
            or (len(shape) == 3 and (shape[2] in _CHANNELS or _has_channels_first(images)))
        )
    if alone:
        return [images]
    if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim > 2:
        require_units(map(plain_array, images), settled=True)
    if isinstance(images, (Sequence, np.ndarray, torch.Tensor)):
        return images
    if hasattr(images, "columns") and hasattr(images, "__getitem__"):
        return paths_of(images)
    by_name = isinstance(images, Mapping) or hasattr(images, "iloc")  # a dictionary, a column of pandas
    if hasattr(images, "__getitem__") and hasattr(images, "__len__") and not by_name:
        items: Any = images
        return (image_of(items, index) for index in range(len(items)))
    if gives_batches(images):
        raise DataError(
            f"The images are a {type(images).__name__}, which gives batches. Give its data set: loader.dataset."
        )
    if not isinstance(images, Iterable):
        raise DataError(f"The images are of the type {type(images).__name__}, expected {_IMAGES}, or several of them.")
    return images


def _has_channels_first(image: np.ndarray | torch.Tensor) -> bool:
    """Whether [c h w] is one image; of NumPy one of so few pixels is more likely a list of grey ones."""
    torches = isinstance(image, torch.Tensor)
    return image.shape[0] in _CHANNELS and (torches or min(image.shape[1:]) > max(_CHANNELS))


def expand(paths: Paths) -> Found:
    """Image files from files and folders (searched through, in order of name); DataError when one is not there.

    Of a table those that it lists, line by line; of an archive or a Parquet file, also of one in a folder, those in it.

    Links to image files are followed, as where they are named themselves. What a folder holds besides and might be an image,
    such as a link to a folder, stands there with the reason.
    """
    files: Found = []
    asked = list(listed(paths))
    if any(one == "" for one in asked if isinstance(one, str)):
        raise DataError("the name of an image or a folder is empty; expected image files or folders")
    for one in asked:
        if not isinstance(one, (str, os.PathLike)):
            raise DataError(f"An image is of the type {type(one).__name__}, expected the path of a file or a folder.")
        path = expanded(one)
        if os.path.isdir(path):
            files += _in_folder(path)
        elif (lists(path) or holds(path)) and os.path.isfile(path):
            files += _in_file(path)
        elif os.path.lexists(path):
            files.append(path)
        else:
            raise _absent(str(one))
    return files


def _in_folder(folder: Path) -> Found:
    """The image files of a folder, what its archives and Parquet files hold, and what else may be one; DataError for none."""
    inside = scan(folder)
    names, packed, tables, besides = list(inside.images), list[str](), list[str](), list[NotRead]()
    for left in inside.named:
        there = left.reason in (NO_SUFFIX, LINK_OUT) and os.path.isfile(folder / left.path)
        if there and has_image_suffix(left.path):
            names.append(left.path)
        elif there and holds(folder / left.path) and not is_kept_by_datasets(folder / left.path):
            packed.append(left.path)
        elif there and lists(folder / left.path):
            tables.append(left.path)
        elif _may_hold_images(left):
            besides.append(NotRead(str(folder / left.path), left.reason))
    images = [folder / name for name in sorted(names)]
    known = set(images)  # of which a Parquet file may be a list
    held = [one for name in sorted(packed) for one in _packed_in(folder / name) if one not in known]
    if not images and not held and not besides:
        more = f"; to have those named that {shown(tables[0])} lists, give it by itself" if tables else ""
        raise DataError(f"{shown(str(folder))} holds no image files{more}")
    return [*images, *held, *besides]


def _packed_in(file: Path) -> Found:
    """What an archive or a Parquet file among images holds of them; one that cannot be read stands there with the reason."""
    try:
        return _in_file(file)
    except NotEnoughData:
        return []
    except DataError as error:
        return [NotRead(str(file), str(error))]


def _in_file(file: Path) -> Found:
    """The images that a table lists, or that an archive or a Parquet file holds."""
    packed = is_archive(file)
    above = file if packed else file.parent
    return [
        NotRead(str(above / found.path), found.reason) if isinstance(found, Named) else found
        for found in images_of(file)
        if not isinstance(found, Named) or not packed or _may_hold_images(found)
    ]


def _absent(name: str) -> DataError:
    """What is wrong with the name of an image or a folder that is not there."""
    scheme, divided, _ = name.partition("://")
    if divided and scheme.lower() in ("http", "https", "ftp", "s3", "gs"):
        return DataError(f"{shown(name)}: web addresses are not fetched; download it first, and name the file")
    if len(name) > _LONGEST_NAME:
        return DataError(
            f"there is no {shown(name[:40])}… ({len(name):,} characters); expected image files or folders. The text of a file in "
            "base64 is given as its bytes: base64.b64decode(text)"
        )
    return DataError(f"there is no {shown(name)}; expected image files or folders")


def _may_hold_images(named: Named) -> bool:
    """Whether what is not looked at has the name of an image, or is or may be a folder of images."""
    if named.reason.startswith("not an image"):
        return False
    told = " is not read" in named.reason or named.reason.startswith("the folder")
    return told or has_image_suffix(named.path) or "." not in os.path.basename(named.path)


def name_of(image: ImageLike) -> str:
    """What an image is called: its path, or what it is."""
    if isinstance(image, (str, os.PathLike)):
        return os.fspath(image)
    if isinstance(image, (NotRead, Inside)):
        return str(image)
    return f"<{type(image).__name__}>"
