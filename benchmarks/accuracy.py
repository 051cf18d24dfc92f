"""Accuracy and punctuality of `burnish fit` on the test rows of labelled sets; one JSON object on stdout.

usage: accuracy.py [--seeds 3] SET=BUDGET...        e.g. signs.csv=2m caltech101.csv=10m demo=2m
The CSVs are found in $BURNISH_TEST_DATA. Each run is a process of its own, timed from outside,
with no pixels kept from another; runs go one after another.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", nargs="+", metavar="SET=BUDGET")
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    cases = []
    for case in asked.sets:
        data, _, budget = case.partition("=")
        runs = [one_run(data, budget, seed) for seed in range(asked.seeds)]
        print(json.dumps({"set": data, "runs": runs}), file=sys.stderr, flush=True)
        cases.append({"set": data, "budget": budget, **summary(runs), "runs": runs})
    machine = cases[0]["runs"][0]["machine"] if cases else {}
    for case in cases:
        for run in case["runs"]:
            del run["machine"]
    print(
        json.dumps({"benchmark": "accuracy", "host": platform.machine(), "machine": machine, "cases": cases}, indent=1)
    )


def one_run(data: str, budget: str, seed: int) -> dict:
    """One `burnish fit` from process start to exit."""
    source = data if data == "demo" else str(Path(os.environ["BURNISH_TEST_DATA"]) / data)
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "burnish",
            "fit",
            source,
            "--budget",
            budget,
            "--seed",
            str(seed),
            "--json",
        ]
        began = time.monotonic()
        done = subprocess.run(
            [*command, "--out", f"{folder}/run", "--cache", f"{folder}/pixels"],
            capture_output=True,
            text=True,
            check=True,
        )
        seconds = time.monotonic() - began
    facts = json.loads(done.stdout)
    verdict = facts["verdict"]
    return {
        "seed": seed,
        "wall_seconds": round(seconds, 1),
        "first_model_seconds": round(facts["first_model_seconds"], 1),
        "kept": facts["kept"],
        "kept_accuracy": facts["scores"][facts["kept_role"]]["accuracy"]["value"],
        "probe_accuracy": verdict["probe"]["value"],
        "tuned_accuracy": None if verdict["tuned"] is None else verdict["tuned"]["value"],
        "difference": verdict["paired"],
        "n_test": verdict["probe"]["n"],
        "epochs": len(facts["history"]),
        "stages_seconds": facts["stages_seconds"],
        # The largest of all runs so far: the system tells no less of children.
        "peak_memory_mb_so_far": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024,
        "machine": facts["machine"],
    }


def summary(runs: list[dict]) -> dict:
    """Median and spread over the seeds."""
    out = {}
    for key in ("kept_accuracy", "probe_accuracy", "wall_seconds", "first_model_seconds"):
        values = [run[key] for run in runs]
        out[key] = {"median": statistics.median(values), "least": min(values), "most": max(values), "n": len(values)}
    return out


if __name__ == "__main__":
    main()
