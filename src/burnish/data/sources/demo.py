"""The demo: scikit-learn's 1,797 handwritten digits as class folders of PNG files."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from burnish.data.catalog import Catalog
from burnish.data.sources.folder import open_folder
from burnish.disk import cache_folder
from burnish.errors import DataError, shown

COUNT = 1797
# The originals are 8 x 8. They are stored enlarged, as smooth strokes: enlarged by "nearest" every pixel would be a
# block, whose edges an ImageNet network sees as texture, and a person looking at the report cannot make out 8 x 8.
SIDE = 32


def open_demo() -> Catalog:
    """The catalogue of the demo images, which are written to the cache folder when they are not there yet.

    Raises DataError when the cache cannot be written or its content has been changed.
    """
    folder = cache_folder().absolute() / "demo-digits"
    if not folder.is_dir():
        _write(folder)
    catalog = replace(open_folder(folder, for_training=True), source="demo")
    if len(catalog) != COUNT:
        raise DataError(
            f"{shown(str(folder))} holds {len(catalog)} images, expected the {COUNT:,} of the demo. Delete the folder; "
            "it is written anew."
        )
    return catalog


def _write(folder: Path) -> None:
    """Write the demo beside its place, then move it there at once; whoever else was faster wins."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=".demo-digits-", dir=folder.parent))
        try:
            _write_images(unfinished)
            unfinished.chmod(0o755)
            os.replace(unfinished, folder)
        except OSError:
            if not folder.is_dir():
                raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        raise DataError(
            f"The demo images cannot be written to {shown(str(folder))}: {error.strerror}. Set BURNISH_CACHE to a "
            "folder that can be written."
        ) from None


def _write_images(folder: Path) -> None:
    """One PNG a digit, white on black, at folder/<digit>/<number>.png."""
    from PIL import Image
    from sklearn.datasets import load_digits

    values, digits = load_digits(return_X_y=True)  # [1797 64], 0 to 16
    grey = np.rint(values.reshape(-1, 8, 8) * (255.0 / 16.0)).astype(np.uint8)
    for number, (pixels, digit) in enumerate(zip(grey, digits, strict=True)):
        place = folder / str(digit)
        place.mkdir(exist_ok=True)
        Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(place / f"{number:04d}.png")
