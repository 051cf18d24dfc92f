"""What the proof is worth: calibration, declining, sets, strangers, intervals and the report, on real runs; JSON on stdout.

    BURNISH_TEST_DATA=… python benchmarks/proof.py [--budget 2m] [--seeds 1] > benchmarks/results/proof.json

For `signs` and `caltech101`: one run each and seed, then from its test images (seen once by the run): ECE before and after the
temperature, coverage of sets and accuracy of what is answered, AUROC against the other data set's images, what the learning
curve of an eighth to a half of the training images says of all, cost, and how long a browser takes to draw the report.
Intervals: how often they hold the truth, in simulation.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from burnish import api
from burnish.choose.more_data import carried_on
from burnish.measure.bootstrap import mean_interval
from burnish.measure.held_out import HeldOut, declining
from burnish.measure.intervals import paired, wilson
from burnish.measure.scores import Statistics, score
from burnish.measure.verdict import judge
from burnish.record.folder import read_pictures
from burnish.reports.page import render
from burnish.run.insights import data_uri

DATA = ("signs", "caltech101")
MIDDLING, SURE = 1.5, 5.0  # how far the true class's logit lies above the others: 68 and 99.9 % right
# Scores whose intervals are simulated, with their key; "" for the log loss of answers that are nearly all right and sure.
RESAMPLED = {"BCa, AUROC": "auroc", "BCa, macro F1": "macro_f1", "bootstrap-t, log loss": "log_loss",
             "bootstrap-t, Brier": "brier", "bootstrap-t, log loss of 99.9 % right": ""}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--budget", default="2m")
    parser.add_argument("--seeds", type=int, default=1)
    told = parser.parse_args()
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
    }
    data = Path(os.environ["BURNISH_TEST_DATA"])
    rows = []
    with tempfile.TemporaryDirectory(prefix="burnish-proof-") as home:
        for seed in range(told.seeds):
            for name in DATA:
                rows.append(one_run(name, seed, told.budget, data, Path(home)))
    print(json.dumps({"machine": machine, "runs": rows, "pages": pages(), "intervals": intervals()}, indent=1))


def one_run(name: str, seed: int, budget: str, data: Path, home: Path) -> dict[str, Any]:
    """Facts of one run, and what can be asked of its package afterwards."""
    began = time.monotonic()
    run = api.fit(
        data / f"{name}.csv", budget=budget, seed=seed, out=home / f"{name}-{seed}", cache=str(home / "cache")
    )
    seconds = time.monotonic() - began
    facts, other = run.facts, next(one for one in DATA if one != name)
    began = time.monotonic()
    page = render(facts, read_pictures(run.folder))
    rendered = time.monotonic() - began
    cut = {key: facts["calibration"][key] for key in facts["calibration"] if key != "reliability"}
    return {
        "data": name, "seed": seed, "budget": budget, "seconds": seconds, "kept": facts["kept"],
        "accuracy": facts["scores"][facts["kept_role"]]["accuracy"], "calibration": cut,
        "answers": facts["declining"]["answers"], "sets": facts["declining"]["sets"], "aurc": facts["declining"]["aurc"],
        "familiarity": facts["familiarity"],
        "strangers": api.ood(run.folder, data / f"{name}.csv", data / f"{other}.csv"), "other": other,
        "learning_curve": carried(facts["more_data"]), "cost": facts["cost"],
        "page_bytes": len(page.encode()), "render_seconds": rendered,
    }  # fmt: skip


def carried(more: dict[str, Any] | None) -> dict[str, Any] | None:
    """What the curve without its last point says of the last point."""
    if more is None:
        return None
    points = more["points"]
    sizes = np.log([one["images"] for one in points])
    errors = np.array([1 - one["accuracy"] for one in points])
    said = 1 - float(carried_on(sizes[:-1], errors[:-1], sizes[-1:], more["n_val"])[0])
    return {
        "images": points[-1]["images"],
        "from": points[-2]["images"],
        "said": said,
        "measured": points[-1]["accuracy"],
    }


def pages() -> list[dict[str, Any]] | None:
    """Seconds that a browser takes for a report more than for an empty page, start to printed tree; medians of 5."""
    if shutil.which("chromium") is None:
        return None
    rng, found = np.random.default_rng(0), []
    pixels = rng.integers(0, 256, (160, 160, 3), np.uint8)
    empty = opened("<!doctype html><title>empty</title>")
    for k, n in ((2, 400), (10, 1500), (101, 5000)):
        labels = rng.integers(0, k, n)
        chances = rng.dirichlet(np.full(k, 0.3), n)
        wrong = rng.random(n) < 0.7
        chances[np.flatnonzero(wrong), labels[wrong]] += 2.0
        chances /= chances.sum(1, keepdims=True)
        scores = score(chances, labels, [f"class {at}" for at in range(k)])
        right = chances.argmax(1) == labels
        facts = {
            "verdict": judge(right, right, seconds=1.0).to_json(), "kept_role": "tuned", "kept": "full",
            "scores": {"tuned": scores.to_json()}, "declining": declining(HeldOut.of(chances, labels), chances, labels),
        }  # fmt: skip
        case = {"kind": "mistake", "path": "a.jpg", "label": "class 0", "predicted": "class 1", "confidence": 0.9}
        near = [{"path": "b.jpg", "label": "class 1", "thumbnail": data_uri(pixels, 72)}] * 3
        pictures = {"thumbnail": data_uri(pixels, 160), "heat": data_uri(pixels, 160), "near": near}
        page = render(facts, {"cases": [{**case, **pictures}] * 36, "sanity": None, "looked_among": 100})
        found.append(
            {"classes": k, "test_images": n, "bytes": len(page.encode()), "seconds_more": opened(page) - empty}
        )
    return found


def opened(page: str) -> float:
    """Wall seconds of a browser that loads a page, lays it out and prints its tree; median of 5."""
    with tempfile.TemporaryDirectory() as home:
        file = Path(home) / "page.html"
        file.write_text(page, encoding="utf-8")
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        command += [f"--user-data-dir={home}/profile", "--dump-dom", file.as_uri()]
        taken = []
        for _ in range(5):
            began = time.monotonic()
            subprocess.run(command, capture_output=True, timeout=120, check=True)
            taken.append(time.monotonic() - began)
    return statistics.median(taken)


def intervals(runs: int = 2000, n: int = 300) -> dict[str, Any]:
    """How often 95 % intervals hold the truth over simulated test sets; that of the bootstrap is taken from 200,000 images."""
    rng = np.random.default_rng(0)
    found: dict[str, list[bool]] = {name: [] for name in ("wilson", "newcombe, paired", *RESAMPLED)}

    def images(count: int, sure: float) -> tuple[np.ndarray, np.ndarray]:
        labels = rng.integers(0, 4, count)
        logits = rng.standard_normal((count, 4))
        logits[np.arange(count), labels] += sure
        chances = np.exp(logits)
        return chances / chances.sum(1, keepdims=True), labels

    everything, losses = Statistics(*images(200_000, MIDDLING)), Statistics(*images(1_000_000, SURE)).losses
    true = {name: float(value[0]) for name, value in everything(np.ones((1, 200_000), np.float32)).items()}
    true |= {"log_loss": float(everything.losses.mean()), "brier": float(everything.squares.mean())}
    for _ in range(runs):
        hits = rng.binomial(n, 0.9)
        one = wilson(hits, n)
        found["wilson"].append(one.low <= 0.9 <= one.high)
        first = rng.random(n) < 0.8
        second = np.where(rng.random(n) < 0.7, first, rng.random(n) < 0.9)
        pair = paired(first, second)
        found["newcombe, paired"].append(pair.low <= 0.3 * 0.9 - 0.3 * 0.8 <= pair.high)
    for _ in range(runs):
        drawn = score(*images(n, MIDDLING), list("abcd")).intervals
        for key, name in RESAMPLED.items():
            one = drawn[name] if name else mean_interval(Statistics(*images(n, SURE)).losses)
            found[key].append(one.low <= (true[name] if name else losses.mean()) <= one.high)
    return {
        "n": n,
        "covered": {name: {"runs": len(held), "share": float(np.mean(held))} for name, held in found.items()},
    }


if __name__ == "__main__":
    main()
