"""How often intervals hold the truth, and equal models are called unlike, where little was tested: images, groups, or of a class.

usage: few_tested.py [--times 300]        simulated answers; one JSON object on stdout
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from burnish.measure.bootstrap import paired_shares
from burnish.measure.scores import score
from burnish.measure.verdict import judge_several
from burnish.record.facts import machine

SCARCE = {  # images of each class, recall of each
    "300 + 5": ([300, 5], [0.95, 0.8]),
    "300 + 3": ([300, 3], [0.98, 0.8]),
    "300 + 10": ([300, 10], [0.95, 0.9]),
    "300 + 20 + 3 + 3 + 3": ([300, 20, 3, 3, 3], [0.95, 0.9, 0.8, 0.8, 0.8]),
    "20 of 3": ([3] * 20, [0.9] * 20),
    "10 of 30": ([30] * 10, [0.9] * 10),
    "4 of 75": ([75] * 4, [0.98] * 4),
}
AREAS = {
    "300 + 3": (3, 1.5),
    "300 + 5": (5, 1.5),
    "300 + 10": (10, 1.5),
    "300 + 5, nearly apart": (5, 3.0),
    "300 + 30": (30, 1.5),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=300)
    times = parser.parse_args().times
    rng = np.random.default_rng(0)
    found = {
        "benchmark": "few_tested",
        "times": times,
        "seed": 0,
        "machine": machine(),
        "mean recall holds the truth": {name: held_recall(*case, rng, times) for name, case in SCARCE.items()},
        "AUROC holds the truth": {name: held_area(*case, rng, times) for name, case in AREAS.items()},
        "mean recall of groups of 20 holds the truth": {
            str(n): held_groups(n, rng, times) for n in (1, 2, 3, 5, 10, 20)
        },
        "equal models called unlike, mAP, groups of 20": {
            str(n): unlike(20 * n, n, rng, times) for n in (1, 2, 3, 5, 8, 12, 20)
        },
        "equal models called unlike, mAP, images": {
            str(n): unlike(n, None, rng, times) for n in (3, 5, 8, 12, 20, 40, 80)
        },
        "equal models called unlike, Jaccard, images": {
            str(n): unlike_shares(n, rng, times) for n in (1, 2, 5, 10, 40, 100)
        },
        "better models found, mAP, groups of 20": {
            str(n): unlike(20 * n, n, rng, times, gain=0.15) for n in (5, 8, 12, 20)
        },
    }
    print(json.dumps(found, indent=1))


def held_recall(counts: list[int], recalls: list[float], rng: np.random.Generator, times: int) -> float:
    """Of mean recall with so many images of each class."""
    truth, k, within = np.repeat(np.arange(len(counts)), counts), len(counts), 0
    for _ in range(times):
        right = rng.random(len(truth)) < np.array(recalls)[truth]
        interval = score(answered(truth, right, k), truth, [str(at) for at in range(k)]).intervals["balanced_accuracy"]
        within += interval.low <= np.mean(recalls) <= interval.high
    return within / times


def answered(truth: np.ndarray, right: np.ndarray, k: int) -> np.ndarray:
    """Probabilities [n k] that are for the true class, or for the next one."""
    return 0.1 / k + 0.9 * np.eye(k)[np.where(right, truth, (truth + 1) % k)]


def held_area(positives: int, apart: float, rng: np.random.Generator, times: int) -> float:
    """Of the AUROC of two classes, whose scores are normal and so far apart, beside 300 negatives."""
    from scipy.stats import norm

    truth, within = np.repeat([1, 0], [positives, 300]), 0
    for _ in range(times):
        chance = 1.0 / (1.0 + np.exp(-(rng.standard_normal(len(truth)) + apart * truth)))
        interval = score(np.stack([1.0 - chance, chance], 1), truth, ("a", "b")).intervals["auroc"]
        within += interval.low <= norm.cdf(apart / np.sqrt(2.0)) <= interval.high
    return float(within / times)


def held_groups(count: int, rng: np.random.Generator, times: int) -> float:
    """Of mean recall of four classes in so many groups of 20 images whose recalls differ (intraclass correlation 0.2)."""
    groups, truth, within = np.repeat(np.arange(count), 20), np.tile(np.arange(4), 5 * count), 0
    for _ in range(times):
        right = rng.random(len(truth)) < rng.beta(0.85 * 4.0, 0.15 * 4.0, count)[groups]
        interval = score(answered(truth, right, 4), truth, "abcd", groups).intervals["balanced_accuracy"]
        within += interval.low <= 0.85 <= interval.high
    return within / times


def unlike(n: int, count: int | None, rng: np.random.Generator, times: int, gain: float = 0.0) -> float:
    """How often two models of five classes an image are not called alike, which differ by chance, and by `gain`."""
    called = 0
    groups = None if count is None else np.repeat(np.arange(count), n // count)
    for _ in range(times):
        labels = np.zeros((n, 5), bool)
        while not labels.any(0).all():
            labels = rng.random((n, 5)) < 0.4
        models = []
        for _ in range(2):
            noise = 1.2 * rng.standard_normal((n, 5))
            noise += 0.0 if groups is None else 1.2 * rng.standard_normal((groups.max() + 1, 5))[groups]
            models.append(1.0 / (1.0 + np.exp(-(2.0 * labels - 1.0 + noise))))
        second = np.clip(models[1] + gain * (labels - 0.5), 1e-6, 1.0 - 1e-6)
        called += judge_several(labels, models[0], second, seconds=1.0, groups=groups).word != "not proven"
    return called / times


def unlike_shares(n: int, rng: np.random.Generator, times: int) -> float:
    """The same of what is partly right, image by image."""
    called = 0
    for _ in range(times):
        apart = 0.1 * rng.standard_normal(n)
        found = paired_shares(np.clip(0.5 - apart / 2, 0, 1), np.clip(0.5 + apart / 2, 0, 1))
        called += found.p < 0.05 and not found.low <= 0.0 <= found.high
    return called / times


if __name__ == "__main__":
    main()
