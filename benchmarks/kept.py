"""How often the rule that chooses between frozen heads and tuned model takes the better one; one JSON object on stdout.

usage: kept.py SET:EPOCHS[:A_CLASS]... [--seeds 10] [--size 128]      e.g. signs.csv:10 signs.csv:10:15 caltech101.csv:3
Each run is a `burnish fit` without a clock in a process of its own, with validation images drawn by its seed; both models answer
all test images. A_CLASS: so many training images of each class, drawn by the seed. What the validation images said of both and
what the test images say is kept, and for some rules how much of what is there to be had they take.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

RULES = {
    "better by a standard error, in images right or in loss": lambda d: d["kept"] == "tuned",
    "more right, of equal ones less loss": lambda d: (d["right"], d["loss"]) > (0.0, 0.0),
    "more or as many right, and less loss": lambda d: d["right"] >= 0.0 and d["loss"] > 0.0,
    "less loss": lambda d: d["loss"] > 0.0,
    "less loss by half a standard error": lambda d: d["loss"] > 0.5 * d["loss_error"],
    "always tuned": lambda d: True,
    "never tuned": lambda d: False,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", metavar="SET:EPOCHS[:A_CLASS]")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--size", default="128")
    asked = parser.parse_args()
    from burnish.record.facts import machine

    rows = []
    for case in asked.sets:
        for seed in range(asked.seeds):
            rows.append({"set": case, **one_run(case, seed, asked.size)})
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    told = {case: by_rule([row for row in rows if row["set"] == case]) for case in asked.sets}
    print(json.dumps({"benchmark": "kept", "rules": told, "rows": rows, "machine": machine()}, indent=1))


def by_rule(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean test accuracy of what each rule keeps, and how often it keeps the tuned model."""
    found = {}
    for name, takes in RULES.items():
        kept = [row["test_tuned"] if takes(row) else row["test_frozen"] for row in rows]
        found[name] = {"right": statistics.mean(kept), "tuned": sum(map(takes, rows)), "of": len(rows)}
    found["the better one"] = {"right": statistics.mean(max(row["test_tuned"], row["test_frozen"]) for row in rows)}
    return found


def one_run(case: str, seed: int, size: str) -> dict[str, Any]:
    """What validation said of both models, and how right they are on test."""
    name, epochs, *few = case.split(":")
    source = Path(os.environ["BURNISH_TEST_DATA"]) / name
    with tempfile.TemporaryDirectory() as folder:
        table = source if not few else drawn(source, int(few[0]), seed, Path(folder))
        command = [
            sys.executable, "-m", "burnish", "fit", str(table), "--budget", "none", "--epochs", epochs, "--image-size", size,
            "--seed", str(seed), "--json", "--cache", "off", "--out", f"{folder}/run",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    facts = json.loads(done.stdout)
    numbers = next(one["numbers"] for one in facts["decisions"] if "loss_standard_error" in one["numbers"])
    scores = {role: facts["scores"][role]["accuracy"]["value"] for role in ("probe", "tuned")}
    return {
        "seed": seed,
        "n": numbers["n"],
        "kept": "tuned" if facts["kept_role"] == "tuned" else "probe",
        "right": numbers["difference"],
        "right_error": numbers["standard_error"],
        "loss": -numbers["loss_difference"],  # nats less
        "loss_error": numbers["loss_standard_error"],
        "test_frozen": scores["probe"],
        "test_tuned": scores["tuned"],
    }


def drawn(source: Path, count: int, seed: int, folder: Path) -> Path:
    """A table with so many training images of each class, and all test images; beside it a copy of the images."""
    with open(source, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    groups = defaultdict(list)
    for row in rows:
        if row["split"] == "train":
            groups[row["label"]].append(row)
    rng = random.Random(seed)
    kept = [row for label in sorted(groups) for row in rng.sample(groups[label], min(count, len(groups[label])))]
    home = folder / "data"
    home.mkdir()
    for top in {row["path"].split("/")[0] for row in rows}:
        subprocess.run(["cp", "-r", str(source.parent / top), str(home / top)], check=True)
    with open(home / "table.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["path", "label", "split"])
        writer.writeheader()
        writer.writerows({key: row[key] for key in ("path", "label", "split")} for row in kept)
        writer.writerows(
            {key: row[key] for key in ("path", "label", "split")} for row in rows if row["split"] == "test"
        )
    return home / "table.csv"


if __name__ == "__main__":
    main()
