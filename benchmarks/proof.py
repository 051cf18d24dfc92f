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
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from burnish import api
from burnish.choose.more_data import carried_on
from burnish.measure.bootstrap import limits, resampled
from burnish.measure.intervals import paired, wilson
from burnish.measure.scores import Statistics
from burnish.reports.page import render
from burnish.result import read_pictures

DATA = ("signs", "caltech101")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--budget", default="2m")
    parser.add_argument("--seeds", type=int, default=1)
    told = parser.parse_args()
    data = Path(os.environ["BURNISH_TEST_DATA"])
    rows = []
    with tempfile.TemporaryDirectory(prefix="burnish-proof-") as home:
        for seed in range(told.seeds):
            for name in DATA:
                rows.append(one_run(name, seed, told.budget, data, Path(home)))
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
    }
    print(json.dumps({"machine": machine, "runs": rows, "intervals": intervals()}, indent=1))


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
        "strangers": api.ood(run.folder, data / f"{name}.csv", data / f"{other}.csv"), "other": other,
        "learning_curve": carried(facts["more_data"]), "cost": facts["cost"],
        "page_bytes": len(page.encode()), "render_seconds": rendered, "browser_seconds": browser(run.folder / "report.html"),
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


def browser(page: Path) -> float | None:
    """Seconds from the start of navigation until the page is loaded, by the browser's own clock; None without one."""
    if shutil.which("chromium") is None:
        return None
    with tempfile.TemporaryDirectory() as home:
        probe = Path(home) / "timed.html"
        text = page.read_text(encoding="utf-8")
        script = "addEventListener('load', () => setTimeout(() => { document.title = 'ms=' + performance.now() }, 0))"
        text = text.replace('<meta http-equiv="Content-Security-Policy"', '<meta name="was"', 1)
        probe.write_text(text.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        command += [f"--user-data-dir={home}/profile", "--virtual-time-budget=20000", "--dump-dom", probe.as_uri()]
        dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    return float(dom.split("<title>ms=", 1)[1].split("<", 1)[0]) / 1000


def intervals(runs: int = 1000, n: int = 300) -> dict[str, Any]:
    """How often 95 % intervals hold the truth over simulated test sets; that of the bootstrap is taken from 20,000 images."""
    rng = np.random.default_rng(0)
    found: dict[str, list[bool]] = {"wilson": [], "newcombe, paired": [], "bootstrap, AUROC": [], "bootstrap, macro F1": [],
                                    "bootstrap, log loss": []}  # fmt: skip

    def images(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = rng.integers(0, 4, count)
        logits = rng.standard_normal((count, 4))
        logits[np.arange(count), labels] += 1.5
        chances = np.exp(logits)
        return chances / chances.sum(1, keepdims=True), labels

    everything = Statistics(*images(20_000))
    once = np.ones((1, 20_000), np.float32)
    true = {name: float(value[0]) for name, value in everything(once).items()}
    for _ in range(runs):
        hits = rng.binomial(n, 0.9)
        one = wilson(hits, n)
        found["wilson"].append(one.low <= 0.9 <= one.high)
        first = rng.random(n) < 0.8
        second = np.where(rng.random(n) < 0.7, first, rng.random(n) < 0.9)
        pair = paired(first, second)
        found["newcombe, paired"].append(pair.low <= 0.3 * 0.9 - 0.3 * 0.8 <= pair.high)
    for _ in range(runs // 2):
        chances, labels = images(n)
        again = resampled(Statistics(chances, labels), n, times=400)
        for key, name in (
            ("bootstrap, AUROC", "auroc"),
            ("bootstrap, macro F1", "macro_f1"),
            ("bootstrap, log loss", "log_loss"),
        ):
            low, high = limits(again[name])
            found[key].append(low <= true[name] <= high)
    return {
        "n": n,
        "covered": {name: {"runs": len(held), "share": float(np.mean(held))} for name, held in found.items()},
    }


if __name__ == "__main__":
    main()
