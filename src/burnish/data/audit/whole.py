"""The audit of decoded images: all that can be told without a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from burnish.data.audit.classes import class_findings
from burnish.data.audit.files import file_findings
from burnish.data.audit.findings import Finding, in_order
from burnish.data.audit.sameness import Sameness, leak_findings, sameness_findings
from burnish.data.audit.twins import Twins, find_twins, without_chains
from burnish.data.cache import Pixels
from burnish.data.catalog import Catalog, Splits
from burnish.data.store import Picked
from burnish.labels import several

_SECONDS_A_PAIR = 0.4e-3  # of the detailed comparison on two cores
_SECONDS_A_SQUARED_ROW = 2.0e-8  # of the search for pairs worth it
_SHARE = 0.05  # of a budget that each of both may take


@dataclass(frozen=True)
class Audited:
    """What was found, and which images are the same."""

    findings: tuple[Finding, ...]
    same: Sameness


def same_pictures(
    pixels: Pixels,
    labels: np.ndarray,
    *,
    budget_seconds: float | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> tuple[Sameness, str]:
    """(copies and twins, what was not looked at or not believed); with a budget, the nearest pairs that can be compared in 5 % of
    it. labels: of these pixels, int64 [n], or bool [n k].

    How many that are follows from the budget and the number of images, not from the clock: the same data and budget give
    the same splits.
    """
    # One of each set of copies is looked at: an image that stands there many times would fill all neighbourhoods.
    _, rows = np.unique(np.array(pixels.looks.digests), return_index=True)
    rows, most, note = np.sort(rows), None, ""
    if budget_seconds is not None:
        most = int(_SHARE * budget_seconds / _SECONDS_A_PAIR)
        if _SECONDS_A_SQUARED_ROW * len(rows) ** 2 > _SHARE * budget_seconds:
            note = (
                f"near-duplicates among {len(rows):,} images are not looked for in this budget; burnish audit does it"
            )
            return Sameness.of(pixels, Twins.none()), note
    sides = np.minimum(pixels.looks.headers["width"], pixels.looks.headers["height"])
    twins, alike = find_twins(Picked(pixels.thumbs, rows), sides[rows], most_pairs=most, on_progress=on_progress)
    if most is not None and alike > most:
        note = f"of {alike:,} pairs of images that resemble each other the nearest {most:,} were compared; burnish audit does all"
    found, doubted = without_chains(twins.at(rows), len(pixels.ids), None if several(labels) else labels)
    if doubted:
        said = (
            f"{doubted:,} images look as if they were one picture, as those of a camera that does not move: they are taken for "
            "different ones; where they are frames of a few scenes, name those in a column group"
        )
        note = f"{note}; {said}" if note else said
    return Sameness.of(pixels, found), note


def audited(catalog: Catalog, splits: Splits | None, same: Sameness) -> Audited:
    """All findings; splits: as they were given or drawn, where there are some."""
    found = [*file_findings(catalog, same.pixels), *sameness_findings(catalog, same), *class_findings(catalog, splits)]
    if splits is not None:
        found += leak_findings(catalog, splits, same)
    return Audited(in_order(found), same)
