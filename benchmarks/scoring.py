"""What the scores of many test images take, and whether limits without draws hold the truth as those with draws do.

usage: scoring.py [--repeats 200]
Seconds of `score` for answers of one model, drawn; and of so many drawn sets of 3,000 images how often the limits of each score
hold its value on 400,000 images, by leaving parts out and by draws. One JSON object on stdout.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np

from burnish.measure import bootstrap
from burnish.measure.scores import Statistics, score
from burnish.record.facts import machine

_SIZES = ((1_000, 10), (10_000, 10), (30_000, 10), (30_000, 50), (3_000, 1_000))
_SHARES = {"even": np.full(10, 0.1), "unequal": np.array([0.5, 0.2, 0.1, 0.05, 0.05, 0.04, 0.03, 0.01, 0.01, 0.01])}
_IMAGES, _WHOLE = 3_000, 20_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=200)
    asked = parser.parse_args()
    print(
        json.dumps(
            {
                "benchmark": "scoring",
                "machine": machine(),
                "seconds": [seconds(n, k) for n, k in _SIZES],
                "covered": {name: covered(share, asked.repeats) for name, share in _SHARES.items()},
            },
            indent=1,
        )
    )


def answers(n: int, share: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [n k] that are mostly right, and labels [n] in those shares."""
    labels = rng.choice(len(share), n, p=share)
    logits = 1.5 * rng.normal(size=(n, len(share))) + 5.0 * np.eye(len(share))[labels]
    chances = np.exp(logits - logits.max(1, keepdims=True))
    return chances / chances.sum(1, keepdims=True), labels


def seconds(n: int, k: int) -> dict[str, float]:
    """Of scoring so many images of so many classes once."""
    chances, labels = answers(n, np.full(k, 1 / k), np.random.default_rng(0))
    began = time.perf_counter()
    score(chances, labels, [str(at) for at in range(k)])
    return {"images": n, "classes": k, "seconds": time.perf_counter() - began}


def covered(share: np.ndarray, repeats: int) -> dict[str, dict[str, float]]:
    """Score -> how often its limits hold what it is on very many images, by way of finding them."""
    whole = [answers(_WHOLE, share, np.random.default_rng(10_000 + at)) for at in range(20)]
    values = [Statistics(*one)(np.ones((1, _WHOLE), np.float32)) for one in whole]
    truth = {name: float(np.mean([one[name] for one in values])) for name in values[0]}
    usual, found = bootstrap._PLENTY, {}
    for way, plenty in (("parts left out", usual), ("draws", 10**9)):
        bootstrap._PLENTY = plenty
        hits = dict.fromkeys(truth, 0)
        for seed in range(repeats):
            made = Statistics(*answers(_IMAGES, share, np.random.default_rng(seed)))
            for name, one in bootstrap.bootstrapped(made, _IMAGES).items():
                limits = one.interval()
                hits[name] += limits.low <= truth[name] <= limits.high
        found[way] = {name: count / repeats for name, count in hits.items()}
    bootstrap._PLENTY = usual
    return found


if __name__ == "__main__":
    main()
