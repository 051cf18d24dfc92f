"""Several runs on the same test images, side by side: paired differences to the first, in one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from burnish.errors import NotEnoughData, shown
from burnish.labels import grouped
from burnish.measure.bootstrap import paired_shares, share
from burnish.measure.intervals import Interval, holm
from burnish.measure.verdict import ACCURACY, chance, difference_in_words
from burnish.record.answers import Answers
from burnish.reports.plain import plain_page


@dataclass(frozen=True)
class Compared:
    """One run beside the first, on the test images that all of them have."""

    name: str  # its folder
    kept: str  # the method
    model: str
    accuracy: Interval  # on the common images
    difference: dict[str, Any] | None  # to the first run: difference, low, high, p, …; None for the first
    p: float | None  # corrected for the number of comparisons (Holm)
    seconds: float
    parameters: int | None
    several: bool = False  # whether images have several classes: the accuracy is the Jaccard index


def side_by_side(runs: Sequence[tuple[str, Mapping[str, Any], Answers]]) -> tuple[list[Compared], int]:
    """(a row for each run, test images in common) of (name, facts, answers).

    Images are the same where path and label are, and what is in them, where all runs know that. NotEnoughData
    when the runs have no test image in common.
    """
    keys = [
        list(zip(answers.paths, answers.labels, answers.contents or answers.paths, strict=True)) for *_, answers in runs
    ]
    common = sorted(set.intersection(*(set(one) for one in keys)))
    if not common:
        raise NotEnoughData(
            f"{shown(runs[0][0])} and the others have no test image in common (same path, label and content), so "
            "nothing can be compared; give runs on the same data and splits"
        )
    right = []
    for own, (_, _, answers) in zip(keys, runs, strict=True):
        place = {key: row for row, key in enumerate(own)}
        right.append(answers.right[[place[key] for key in common]])
    if any(one.dtype != bool for one in right):
        right = [one.astype(np.float64) for one in right]
    groups = None
    for own, (*_, answers) in zip(keys, runs, strict=True):
        if groups is None and answers.groups is not None:
            named = dict(zip(own, answers.groups, strict=True))
            groups = grouped([named[key] for key in common])
    pairs = [paired_shares(right[0], one, groups) for one in right[1:]]
    corrected = [None, *holm([one.p for one in pairs])]
    rows = [
        Compared(
            name,
            str(facts.get("kept")),
            str((facts.get("model") or {}).get("name")),
            share(right[at], groups),
            None if at == 0 else asdict(pairs[at - 1]),
            corrected[at],
            float(facts.get("seconds") or 0.0),
            (facts.get("model") or {}).get("parameters"),
            (facts.get("verdict") or {}).get("score", ACCURACY) != ACCURACY,
        )
        for at, (name, facts, _) in enumerate(runs)
    ]
    return rows, len(common)


def sentence(row: Compared) -> str:
    """How a run stands to the first, in words."""
    if row.difference is None or row.p is None:
        return "the others are compared with it"
    facts = row.difference
    word = "not separable" if row.p >= 0.05 else "better" if facts["difference"] > 0 else "worse"
    return f"{difference_in_words(facts)}, {chance(row.p)}: {word}"


def page_of(rows: Sequence[Compared], n: int) -> str:
    """One self-contained HTML page."""
    low, high = min(row.accuracy.low for row in rows), max(row.accuracy.high for row in rows)
    span = max(high - low, 1e-9)
    told = [
        {
            **asdict(row),
            "sentence": sentence(row),
            "place": {key: 100 * (getattr(row.accuracy, key) - low) / span for key in ("low", "value", "high")},
        }
        for row in rows
    ]
    score = "Classes right by image (Jaccard)" if any(row.several for row in rows) else "Accuracy"
    return plain_page("runs.html").render(rows=told, n=n, low=low, high=high, score=score, corrected=len(rows) > 2)
