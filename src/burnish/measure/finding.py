"""Two classes of which one is to be found: how far it stands out, and what finding nearly all of it costs."""

from __future__ import annotations

from typing import Any

import numpy as np

from burnish.measure.bootstrap import (
    Ranking,
    bootstrapped,
    hidden_by_few,
    images_or_groups,
    share_among,
    times_for,
    widened,
)
from burnish.measure.held_out import HeldOut
from burnish.runtime import evenly

SENSITIVITIES = (0.8, 0.9, 0.95, 0.99)  # that a report shows
_POINTS = 100  # of a curve, and as many where it rises


def finding(
    probabilities: np.ndarray,
    labels: np.ndarray,
    *,
    sought: int,
    held_out: HeldOut | None = None,
    groups: np.ndarray | None = None,
) -> dict[str, Any]:
    """How well a class of two is found among test images: plain values for the report.

    probabilities [n 2], labels int64 [n]; sought: 0 or 1. held_out: what sets thresholds; groups: int64 [n], of images drawn
    together.

    "auroc" and "average_precision" with bootstrap intervals, None without images of both classes; "roc": [false alarms, found],
    "precision_recall": [found, precision], shares of 0 to 1, over all thresholds on these very images;
    "likeliest": what the likelier class as answer finds; "points": the same at the thresholds that held-out images set for each
    wanted sensitivity.
    """
    chances = np.asarray(probabilities, np.float64)[:, sought]
    shows = labels == sought
    found: dict[str, Any] = {
        "n": int(shows.sum()),
        "others": int((~shows).sum()),
        "auroc": None,
        "average_precision": None,
    }
    if shows.any() and not shows.all():
        found |= _ranked(chances, shows, groups)
        found |= _curves(chances, shows)
    found["likeliest"] = _operating_point(probabilities.argmax(1) == sought, shows, groups)
    found["points"], found["held_out"] = [], 0
    if held_out is None:
        return found
    for wanted in SENSITIVITIES:
        threshold = held_out.threshold_finding(sought, wanted)
        at = None if threshold is None else _operating_point(chances >= threshold, shows, groups)
        found["points"].append({"wanted": wanted, "threshold": threshold, "test": at})
    return {**found, "held_out": len(held_out.shown_of(sought))}


def _ranked(chances: np.ndarray, shows: np.ndarray, groups: np.ndarray | None) -> dict[str, Any]:
    """AUROC and average precision with their intervals."""
    ranking, n = Ranking(chances, shows), len(shows)

    def statistics(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {"auroc": ranking.area(weights), "average_precision": ranking.average_precision(weights)}

    found = bootstrapped(statistics, n, times=times_for(n, 2), groups=groups)
    few = images_or_groups(shows[:, None], groups)
    intervals = {
        name: widened(one.interval(), hidden_by_few(np.array([one.value]), few)) for name, one in found.items()
    }
    return {name: one.to_json() for name, one in intervals.items()}


def _curves(chances: np.ndarray, shows: np.ndarray) -> dict[str, Any]:
    """Points over falling thresholds, of equal probabilities the last."""
    order = np.argsort(-chances, kind="stable")
    falling, hits = chances[order], np.cumsum(shows[order])
    ends = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))
    told, hits = ends + 1.0, hits[ends]
    rises = np.flatnonzero(np.diff(hits, prepend=0))
    rises = rises[evenly(len(rises), _POINTS)]  # of few among many all else would fall between the points
    kept = np.unique([*evenly(len(ends), _POINTS), *rises, *np.maximum(rises - 1, 0)])
    recall, precision = hits / shows.sum(), hits / told
    alarms = (told - hits) / (~shows).sum()
    return {
        "roc": [[0.0, 0.0], *([float(alarms[at]), float(recall[at])] for at in kept)],
        "precision_recall": [[float(recall[at]), float(precision[at])] for at in kept],
    }


def _operating_point(said: np.ndarray, shows: np.ndarray, groups: np.ndarray | None) -> dict[str, Any]:
    """What answering the class for these images comes to: sensitivity, specificity and precision with their intervals."""
    return {
        "said": int(said.sum()),
        "hits": int((said & shows).sum()),
        "sensitivity": share_among(said, shows, groups).to_json(),
        "specificity": share_among(~said, ~shows, groups).to_json(),
        "precision": share_among(shows, said, groups).to_json(),
    }
