"""Where labelled images come from.

scan        what lies in a folder, nothing followed out of it
assemble    from labelled files to a Catalog, and the checks that every source shares
folder      DATA/class/*.jpg and DATA/train/class/*.jpg
header      the first line of a table, and what a table among images says of a few
table       CSV, TSV, JSON lines with path,label[,split][,group]
columnar    Parquet, and what Hugging Face datasets saves
archive     class folders in a .zip or .tar, read in place
shards      WebDataset tar files
named       hf:ORG/NAME, torchvision:NAME
python      lists, arrays and data sets in Python
parts       a dictionary of splits, each any of these
unlabelled  what an archive or a table holds of images to be named
demo        scikit-learn's handwritten digits, written once as PNG files
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from burnish.data.catalog import Catalog
from burnish.data.sources import archive, columnar, parts, shards, table
from burnish.data.sources.assemble import require_usable, with_named, without
from burnish.data.sources.demo import open_demo
from burnish.data.sources.folder import open_folder
from burnish.data.sources.header import KINDS as TABLES
from burnish.data.sources.named import fetched, open_torchvision
from burnish.data.sources.python import open_python
from burnish.data.sources.scan import plain_files, require_listable
from burnish.disk import expanded
from burnish.errors import DataError, shown

__all__ = ["Data", "called", "open_source", "require_usable", "with_named", "without"]

# A path or name of labelled images, (images, labels), a map-style data set, a Catalog, or its splits: see `open_source`.
Data = Any

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_EXPECTED = "a folder of images, a table (.csv, .tsv, .jsonl, .parquet), an archive (.zip, .tar), or demo"


def open_source(data: Data, *, for_training: bool = True) -> Catalog:
    """The labelled images that DATA holds; nothing is written beside them.

    data: a path: a folder, a table, an archive, tar shards such as "shards/train-{000..003}.tar"; a name: "demo",
    "hf:ORG/NAME", "torchvision:NAME" (a folder of such a name is "./demo", or a Path); in Python also (images, labels), a
    map-style data set, a Catalog, or {"train": …, "val": …, "test": …} of any of these.
    for_training: also ask for two classes and enough images of each to train, choose and prove; False to evaluate or
    audit, where a split folder may also stand without train.
    Raises DataError or NotEnoughData.
    """
    if isinstance(data, Catalog):
        catalog = data
    elif isinstance(data, Mapping) and not hasattr(data, "columns"):  # which a table has, whatever it is besides
        given = parts.splits_of(data)
        catalog = parts.joined({split: open_source(part, for_training=False) for split, part in given.items()})
    elif not isinstance(data, (str, os.PathLike)):
        catalog = open_python(data)
    elif data == "":
        raise DataError(f"The name of the data is empty. Give {_EXPECTED}.")
    elif data == "demo":
        catalog = open_demo()
    elif isinstance(data, str) and _ADDRESS.match(data):
        raise DataError(
            f"{shown(data)} is an address, and data is not fetched. Download it first, and give {_EXPECTED}."
        )
    elif isinstance(data, str) and data.startswith("torchvision:"):
        catalog = open_torchvision(data.partition(":")[2])
    else:
        path = fetched(data[3:]) if isinstance(data, str) and data.startswith("hf:") else expanded(data)
        catalog = _open_path(Path(os.path.abspath(path)), for_training=for_training)
    if for_training:
        require_usable(catalog)
    return catalog


def _open_path(path: Path, *, for_training: bool) -> Catalog:
    if os.path.isdir(path):
        return _open_folder(path, for_training=for_training)
    if reason := _closed(path):
        raise DataError(f"{shown(str(path))} cannot be looked at: {reason}. Check the permissions of its folders.")
    if not os.path.lexists(path):
        if "{" in path.name:
            return shards.open_shards(shards.shards_in(str(path)))
        raise DataError(f"There is no {shown(str(path))}.{_beside(path)} Give {_EXPECTED}.")
    if not path.is_file():
        raise DataError(f"{shown(str(path))} is neither a folder nor a file. Give {_EXPECTED}.")
    suffix = path.suffix.lower()
    if suffix in TABLES:
        return table.open_table(path)
    if suffix in (".parquet", ".arrow"):
        return columnar.open_columnar(path, [path])
    if archive.is_packed_or_tar(path):  # by how it begins: at its end any zip may lie, as a member
        places, aside = archive.places_in_tar(path)
        if shards.is_shard(places, shown(path.name)):
            return shards.open_shards([path], {path: (places, aside)})
        return archive.open_tar(path, places, aside, for_training=for_training)
    if archive.is_zip(path):
        return archive.open_zip(path, for_training=for_training)
    raise DataError(f"{shown(str(path))} is no data that burnish knows. Give {_EXPECTED}.")


def _open_folder(path: Path, *, for_training: bool) -> Catalog:
    require_listable(path)
    if columnar.is_saved_by_datasets(path):
        files, others = plain_files(path, columnar.files_saved_by_datasets(path))
        if files or not _has_class_folders(path):  # any tool may leave a state.json
            return with_named(columnar.open_columnar(path, columnar.required(path, files)), others)
    rows, others = plain_files(path, columnar.parquet_files(path))
    if rows and not _has_class_folders(path):
        return with_named(columnar.open_columnar(path, rows), others)
    tars, others = ([], []) if rows else plain_files(path, sorted(path.glob("*.tar")))
    if tars and not _has_class_folders(path):
        return with_named(shards.open_shards(tars), others)
    return open_folder(path, for_training=for_training)


def _has_class_folders(path: Path) -> bool:
    """Whether some folder in it holds anything but tables."""

    def holds(folder: Path) -> bool:
        try:
            return any(inner.suffix not in (".parquet", ".arrow") for inner in folder.iterdir())
        except OSError:  # named when it is scanned
            return True

    return any(entry.is_dir() and not entry.name.startswith(".") and holds(entry) for entry in path.iterdir())


def _closed(path: Path) -> str | None:
    """Why the system does not tell what lies there, where it is there."""
    try:
        os.stat(path)
    except PermissionError as error:
        return error.strerror
    except (OSError, ValueError):
        pass
    return None


def _beside(path: Path) -> str:
    """A sentence with the names most like the one that is missing, or nothing."""
    try:
        names = [name for name in os.listdir(path.parent) if not name.startswith(".")]
    except (OSError, ValueError):
        return ""
    close = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    return f" Nearest beside it: {', '.join(map(shown, close))}." if close else ""


def called(data: Any) -> str:
    """What the report and the run folder call the data."""
    if isinstance(data, (str, os.PathLike)):
        return os.fspath(data)
    return data.source if isinstance(data, Catalog) else "images"
