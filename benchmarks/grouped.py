"""What an interval and a p are worth where test images come in groups, in simulation: by image and by group; JSON on stdout.

    python benchmarks/grouped.py [--runs 2000] > benchmarks/results/grouped.json

Groups of unlike size, in each of which a model is right with a probability of its own (a beta distribution, so that two images
of a group agree with an intraclass correlation `rho`). For the difference two models have the same accuracy, but each group suits
one of them: whoever calls them unlike is wrong, in no more than 5 of 100 sets of images if p is worth its name.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np

from burnish.measure.bootstrap import mean_interval, paired_shares, share
from burnish.record.facts import machine

SETS = ((20, 15), (60, 5), (10, 30), (200, 5))  # groups, images of each on average
RHOS = (0.0, 0.1, 0.5)
RIGHT = 0.9


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=2000)
    runs = parser.parse_args().runs
    rows = [case(count, size, rho, runs) for count, size in SETS for rho in RHOS]
    print(
        json.dumps({"benchmark": "grouped", "runs": runs, "right": RIGHT, "rows": rows, "machine": machine()}, indent=1)
    )


def case(count: int, size: int, rho: float, runs: int) -> dict[str, Any]:
    """How often intervals hold the truth, and how often equal models are called unlike."""
    rng = np.random.default_rng([count, size, round(100 * rho)])
    found: dict[str, list[bool]] = {}
    for _ in range(runs):
        sizes = 1 + rng.poisson(size - 1, count)
        groups = np.repeat(np.arange(count), sizes)
        chances = beta(rng, count, rho)
        right = rng.random(len(groups)) < chances[groups]
        losses = rng.exponential(1.0, len(groups)) * (2.0 - chances[groups])
        first = rng.random(len(groups)) < chances[groups]
        second = rng.random(len(groups)) < beta(rng, count, rho)[groups]
        for name, of in (("by image", None), ("by group", groups)):
            one, pair, loss = (
                share(right, of),
                paired_shares(first, second, of),
                mean_interval(losses, times=200, groups=of),
            )
            found.setdefault(f"accuracy {name}", []).append(one.low <= RIGHT <= one.high)
            found.setdefault(f"difference {name}", []).append(pair.low <= 0.0 <= pair.high)
            found.setdefault(f"mean loss {name}", []).append(loss.low <= 2.0 - RIGHT <= loss.high)
            found.setdefault(f"called unlike {name}", []).append(pair.p < 0.05 and not pair.low <= 0.0 <= pair.high)
    return {
        "groups": count,
        "images_each": size,
        "rho": rho,
        **{name: float(np.mean(held)) for name, held in found.items()},
    }


def beta(rng: np.random.Generator, count: int, rho: float) -> np.ndarray:
    """How probably each group's images are right: mean RIGHT, intraclass correlation rho."""
    if rho == 0.0:
        return np.full(count, RIGHT)
    total = 1.0 / rho - 1.0
    return rng.beta(RIGHT * total, (1.0 - RIGHT) * total, count)


if __name__ == "__main__":
    main()
