"""Where labelled images come from: class folders, split folders, a CSV, the demo.

scan      what lies in a folder, nothing followed out of it
assemble  from labelled files to a Catalog, and the checks that every source shares
folder    DATA/class/*.jpg and DATA/train/class/*.jpg
table     a CSV with the columns path,label[,split][,group]
demo      scikit-learn's handwritten digits, written once as PNG files
"""

from __future__ import annotations

import os
from pathlib import Path

from burnish.data.catalog import Catalog
from burnish.data.sources.assemble import require_usable, without
from burnish.data.sources.demo import open_demo
from burnish.data.sources.folder import open_folder
from burnish.data.sources.table import open_table
from burnish.errors import DataError, nearest, shown

__all__ = ["open_source", "require_usable", "without"]


def open_source(data: str | os.PathLike[str], *, for_training: bool = True) -> Catalog:
    """The labelled images that DATA holds; no pixel is read and nothing is written beside them.

    data: a folder, a CSV file, or the word "demo" (a folder of that name is "./demo", or a Path).
    for_training: also ask for two classes and enough images of each to train, choose and prove; False to evaluate or
    audit, where a split folder may also stand without train.
    Raises DataError or NotEnoughData.
    """
    if data == "demo":
        catalog = open_demo()
    else:
        path = Path(os.path.abspath(Path(data).expanduser()))
        catalog = open_folder(path, for_training=for_training) if _is_folder(path) else open_table(path)
    if for_training:
        require_usable(catalog)
    return catalog


def _is_folder(path: Path) -> bool:
    """Whether DATA is a folder (True) or a CSV (False); DataError when it is neither."""
    if path.is_dir():
        return True
    if not os.path.lexists(path):
        raise DataError(
            f"There is no {shown(str(path))}.{_beside(path)} Give a folder of images, a .csv file, or demo."
        )
    if not path.is_file():
        raise DataError(
            f"{shown(str(path))} is neither a folder nor a CSV file. Give a folder of images, a .csv file, or demo."
        )
    if path.suffix.lower() != ".csv":
        raise DataError(
            f"{shown(str(path))} is a file, expected a folder or a .csv file. Unpack an archive first; "
            "a table of images needs the columns path,label and the suffix .csv."
        )
    return False


def _beside(path: Path) -> str:
    """A sentence with the names most like the one that is missing, or nothing."""
    try:
        names = [name for name in os.listdir(path.parent) if not name.startswith(".")]
    except OSError:
        return ""
    return f" Nearest beside it: {nearest(path.name, names)}." if names else ""
