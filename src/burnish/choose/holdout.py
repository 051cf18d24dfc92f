"""Which images a run has: a first look at the files, the splits drawn by it, and what those must hold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from burnish.data.catalog import Catalog, Named, Splits
from burnish.data.looks import Dataset, look_at, seconds_a_file
from burnish.data.sample import some_of
from burnish.data.split import make_splits
from burnish.errors import NotEnoughData, shown
from burnish.granted import cores
from burnish.labels import counts
from burnish.recipe import Recipe
from burnish.runtime import Watcher, evenly

_LOOK_SHARE = 0.12  # of the budget, for hashing files and reading their headers
_TIMED, _FEWEST_LOOKED_AT = 64, 256  # files


def first_splits(catalog: Catalog, recipe: Recipe, watcher: Watcher, *, known: int | None = None) -> Dataset:
    """The splits, by the content of the files, and what their headers say; files with the same bytes stay together.

    Of more files than can be looked at in a small part of the budget some are left out. known: how many an earlier sitting
    looked at.
    """
    watcher.stage("look", total=len(catalog))
    count = known or _looked_at_in_time(catalog, seconds_of_one_training(recipe))
    catalog = some_of(catalog, count, seed=recipe.seed)
    if catalog.skipped:
        watcher.stage("look", total=len(catalog))
        watcher.say(
            f"{catalog.skipped:,} images are left out: the budget has no time to look at more than {len(catalog):,}"
        )
    looks = look_at(catalog, np.arange(len(catalog)), workers=cores())
    watcher.advance(len(catalog))
    _, copies = np.unique(np.array(looks.digests), return_inverse=True)
    fractions = {"test_fraction": recipe.test_fraction, "val_fraction": recipe.val_fraction}
    splits = make_splits(catalog, seed=recipe.seed, content=looks.digests, together=copies, **fractions)
    require_test(catalog, splits)  # later it can only lose images
    return Dataset(catalog, splits, looks)


def seconds_of_one_training(recipe: Recipe) -> float | None:
    """The part of the budget that one of several trainings has, seconds; None where there is no budget."""
    return None if recipe.budget_seconds is None else recipe.budget_seconds / recipe.seeds


def _looked_at_in_time(catalog: Catalog, budget_seconds: float | None) -> int:
    """How many files to look at; timed on a few where there are many."""
    if budget_seconds is None or len(catalog) <= _FEWEST_LOOKED_AT:
        return len(catalog)
    look_at(catalog, evenly(len(catalog), cores()), workers=cores())  # the codecs are loaded by the first
    each = seconds_a_file(catalog, evenly(len(catalog), _TIMED), workers=cores())
    return min(len(catalog), max(_FEWEST_LOOKED_AT, int(_LOOK_SHARE * budget_seconds / each)))


def require_trainable(catalog: Catalog, splits: Splits, copied: Sequence[Named] = ()) -> None:
    """NotEnoughData unless every class has a training image and there is something to test on (`require_test`).

    copied: training images that were left out because test has their very bytes.
    """
    lacking = np.flatnonzero(counts(catalog.labels[splits.train], len(catalog.classes)) == 0)
    if len(lacking):
        name = shown(repr(catalog.classes[lacking[0]]))
        if copied:
            raise NotEnoughData(
                f"class {name} has no training image left: {len(copied)} of the training images are in test too, byte for byte "
                f"(first: {shown(copied[0].path)}); take them out of one of the two"
            )
        raise NotEnoughData(f"class {name} has no readable training image; add some, or remove the class")
    require_test(catalog, splits)


def require_test(catalog: Catalog, splits: Splits) -> None:
    """NotEnoughData unless there is something to test on."""
    if len(splits.test) == 0:
        raise NotEnoughData(
            "there is no readable test image that is not tied to the training images (the same picture, or the same group), "
            "so nothing could be proven; add other images"
            + (", or give no test split" if "test" in catalog.splits else "")
        )
    if catalog.several and not catalog.labels[splits.test].any():
        raise NotEnoughData(
            "none of the test images has a class, so nothing could be proven; label them, or give no test split"
        )
