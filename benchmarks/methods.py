"""`auto` against every method by name at equal budgets; one JSON object on stdout.

usage: methods.py --methods auto,multiprobe,probe,full,top --seeds 1 SET=BUDGET...     e.g. signs.csv=1m caltech101.csv=3m
The CSVs are found in $BURNISH_TEST_DATA. Each run is a process of its own, timed from outside, one after another, all of one
case before the next so that they meet the same machine. `cases` can be merged by hand with those of an earlier run (--with).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", nargs="+", metavar="SET=BUDGET")
    parser.add_argument("--methods", default="auto,multiprobe,probe,full,top,lora,norms")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--with", dest="earlier", type=Path, help="an earlier JSON whose runs are taken over")
    asked = parser.parse_args()
    runs, machine = [], {}
    if asked.earlier is not None:
        before = json.loads(asked.earlier.read_text())
        runs, machine = before["runs"], before["machine"]
    for case in asked.sets:
        data, _, budget = case.partition("=")
        for seed in range(asked.seeds):
            for method in asked.methods.split(","):
                if any((r["set"], r["budget"], r["seed"], r["method"]) == (data, budget, seed, method) for r in runs):
                    continue
                run, machine = one_run(data, budget, seed, method)
                runs.append(run)
                print(json.dumps(run), file=sys.stderr, flush=True)
    print(json.dumps({"benchmark": "methods", "machine": machine, "summary": summary(runs), "runs": runs}, indent=1))


def one_run(data: str, budget: str, seed: int, method: str) -> tuple[dict, dict]:
    """One `burnish fit` from process start to exit; the model it keeps, on the test images."""
    source = str(Path(os.environ["BURNISH_TEST_DATA"]) / data)
    with tempfile.TemporaryDirectory() as folder:
        words = ["fit", source, "--budget", budget, "--seed", str(seed), "--method", method, "--json"]
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "burnish", *words, "--out", f"{folder}/run"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        seconds = time.monotonic() - began
    facts = json.loads(done.stdout)
    kept = facts["scores"][facts["kept_role"]]["accuracy"]
    other = facts["scores"].get("tuned" if facts["kept_role"] == "probe" else "probe")
    return {
        "set": data, "budget": budget, "seed": seed, "method": method, "kept": facts["kept"],
        "accuracy": kept["value"], "n": kept["n"], "other": None if other is None else other["accuracy"]["value"],
        "seconds": round(seconds, 1), "first_model_seconds": round(facts["first_model_seconds"], 1),
        "decisions": [one["what"] for one in facts["decisions"]],
    }, facts["machine"]  # fmt: skip


def summary(runs: list[dict]) -> dict:
    """Medians over seeds by set, budget and method; how `auto` stands to the best single method of each case."""
    cases: dict[str, dict[str, list[float]]] = {}
    sizes = {}
    for run in runs:
        key = f"{run['set']} {run['budget']}"
        cases.setdefault(key, {}).setdefault(run["method"], []).append(run["accuracy"])
        sizes[key] = run["n"]
    out = {}
    for key, methods in cases.items():
        medians = {method: statistics.median(values) for method, values in methods.items()}
        single = {method: value for method, value in medians.items() if method != "auto"}
        best = max(single, key=lambda method: single[method]) if single else None
        row: dict = {"median": medians, "seeds": min(map(len, methods.values()))}
        if best is not None and "auto" in medians:
            error = math.sqrt(single[best] * (1 - single[best]) / sizes[key])
            row |= {"best_single": best, "auto_minus_best": medians["auto"] - single[best], "standard_error": error}
        out[key] = row
    shared = set.intersection(*(set(row["median"]) for row in out.values())) if out else set()
    means = {method: statistics.mean(row["median"][method] for row in out.values()) for method in sorted(shared)}
    return {"cases": out, "mean_over_cases": means}


if __name__ == "__main__":
    main()
