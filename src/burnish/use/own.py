"""The images that a run was made from, on the sides of the split that it drew: for what is made of its model afterwards."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from burnish.data.catalog import SPLIT_WORDS, Catalog, Splits
from burnish.data.looks import changed, read_digests
from burnish.data.sample import only
from burnish.data.sources import Data, called, open_source
from burnish.data.split import read_splits
from burnish.disk import expanded
from burnish.errors import DataError, NotARun, RecipeError, shown
from burnish.granted import cores
from burnish.labels import counts
from burnish.methods.table import method_named
from burnish.record.folder import HARDENED, IMAGES, SLIM, SPLITS, home_of, read_facts, sides_in
from burnish.ship.bundle import Bundle, read_bundle

_NAMES = ("demo", "hf:", "torchvision:")  # of data that is no path


def own_images(run: str | os.PathLike[str], data: Data | None = None) -> tuple[Catalog, Splits]:
    """(the images that a run used, its own split of them): train and val made its model, test has proved it.

    The classes are those of the model, in its order, and `Catalog.splits` says the side of each entry. What the run had no time
    for, or named as unusable, is left out. data: by default what the run's record names; images that were handed over in Python
    are handed over again. NotARun where the folder does not tell the split, as beside a package that was copied alone;
    DataError where images are gone, labelled otherwise or of other content (of 256 that are looked at) since; RecipeError where
    the record does not say where they are.
    """
    folder = expanded(run)
    classes, home = read_bundle(folder).classes, home_of(folder)
    sides = sides_in(home / SPLITS)
    if not sides:
        raise NotARun(
            f"{shown(str(folder))} holds no {SPLITS}, so that nobody can say which images its model learnt from; expected the "
            "whole folder of a run that burnish fit finished"
        )
    data = _recorded(folder) if data is None else data
    catalog = open_source(data, for_training=False)
    catalog = _in_classes(only(catalog, np.flatnonzero([path in sides for path in catalog.paths])), classes, data)
    splits = read_splits(home / SPLITS, catalog)
    others, asked = changed(catalog, read_digests(home / IMAGES), workers=cores())
    if others:
        raise DataError(
            f"{shown(called(data))}: of {asked} images of the run that were looked at again {len(others)} have another content "
            f"now (first: {shown(others[0])}); restore them, or fit anew"
        )
    side = {int(row): word for word in SPLIT_WORDS for row in getattr(splits, word)}
    return replace(catalog, splits=tuple(side[row] for row in range(len(catalog)))), splits


def is_frozen(bundle: Bundle) -> bool:
    """Whether its run fitted a head to a network that stayed as it was, so that the head can be fitted anew."""
    try:
        return not method_named(bundle.method).trains
    except RecipeError:  # of a version with other methods
        return False


def _recorded(folder: Path) -> str:
    """Where the run's record says that its images are."""
    for name, verb in ((SLIM, "slim"), (HARDENED, "harden")):
        if (folder / name).is_file():
            raise RecipeError(
                f"{shown(str(folder))} was made of a run by burnish {verb}, and does not say where its images are; name the data "
                "that its run was made from after it"
            )
    told = read_facts(folder).get("data")
    if isinstance(told, str) and (told.startswith(_NAMES) or os.path.exists(expanded(told))):
        return told
    raise RecipeError(
        f"{shown(str(folder))} was made from {shown(repr(told))}, which is not to be found from here; name the data "
        "after the run, or hand the images over again"
    )


def _in_classes(catalog: Catalog, classes: tuple[str, ...], data: Data) -> Catalog:
    """The catalogue with the model's classes (P2); DataError for an image of another one."""
    if catalog.classes == classes:
        return catalog
    place = {name: at for at, name in enumerate(classes)}
    used = np.flatnonzero(counts(catalog.labels, len(catalog.classes)))
    unknown = [catalog.classes[at] for at in used if catalog.classes[at] not in place]
    if unknown:
        raise DataError(
            f"{shown(called(data))} has the class {shown(repr(unknown[0]))}, which the run's model does not know; expected the "
            "data that the run was made from"
        )
    own = [place[catalog.classes[at]] for at in used]
    if catalog.several:
        labels = np.zeros((len(catalog), len(classes)), bool)
        labels[:, own] = catalog.labels[:, used]
    else:
        new = np.zeros(len(catalog.classes), np.int64)
        new[used] = own
        labels = new[catalog.labels]
    return replace(catalog, labels=labels, classes=classes)
