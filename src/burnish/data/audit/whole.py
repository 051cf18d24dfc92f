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

_SECONDS_A_ROW = 0.8e-3  # of the search for twins on two cores, where most images resemble others
_SECONDS_A_PAIR_OF_ROWS = 2.5e-9
_SHARE = 0.05  # of a budget that the search may take


@dataclass(frozen=True)
class Audited:
    """What was found, and which images are the same."""

    findings: tuple[Finding, ...]
    same: Sameness


def same_pictures(
    pixels: Pixels, *, budget_seconds: float | None = None, on_progress: Callable[[int], None] | None = None
) -> tuple[Sameness, str]:
    """(copies and twins, why twins were not looked for); with a budget, only where that should take no more than 5 % of it.

    What is expected follows from the number of images alone, so that the same data and budget give the same splits.
    """
    twins, note = Twins.none(), ""
    expected = search_seconds(len(pixels.ids))
    if budget_seconds is not None and expected > _SHARE * budget_seconds:
        note = (
            f"near-duplicates are not looked for: among {len(pixels.ids):,} images that may take {expected:.0f} s of the "
            f"{budget_seconds:.0f} s; burnish audit does it"
        )
    else:
        sides = np.minimum(pixels.looks.headers["width"], pixels.looks.headers["height"])
        # One of each set of copies is looked at: an image that stands there many times would fill all neighbourhoods.
        _, rows = np.unique(np.array(pixels.looks.digests), return_index=True)
        rows = np.sort(rows)
        twins = find_twins(Picked(pixels.thumbs, rows), sides[rows], on_progress=on_progress).at(rows)
    return Sameness.of(pixels, without_chains(twins, len(pixels.ids))), note


def search_seconds(count: int) -> float:
    """What the search for twins among so many images is expected to take at most."""
    return _SECONDS_A_ROW * count + _SECONDS_A_PAIR_OF_ROWS * count**2


def audited(catalog: Catalog, splits: Splits | None, same: Sameness) -> Audited:
    """All findings; splits: as they were given or drawn, where there are some."""
    found = [*file_findings(catalog, same.pixels), *sameness_findings(catalog, same), *class_findings(catalog, splits)]
    if splits is not None:
        found += leak_findings(catalog, splits, same)
    return Audited(in_order(found), same)
