"""What hardening a finished run comes to, and what it costs: clean and corrupted accuracy before and after, as proven on test.

    BURNISH_TEST_DATA=… python benchmarks/harden.py [--budget 2m] > benchmarks/results/harden.json

Hand signs with EfficientNet-Lite0: a run of frozen heads (multiprobe) and one of the whole network (full), each made once and
then hardened by `burnish harden` in a process of its own, whose wall time from start to exit is held against the budget. One JSON
object on stdout.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from burnish.record.facts import machine

METHODS = {"multiprobe": "45s", "full": "3m"}  # and what the run itself is given


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", default="2m")
    parser.add_argument("--methods", default=",".join(METHODS))
    asked = parser.parse_args()
    data = Path(os.environ["BURNISH_TEST_DATA"]) / "signs.csv"
    with tempfile.TemporaryDirectory() as folder:
        rows = [row_of(method, data, asked.budget, Path(folder)) for method in asked.methods.split(",")]
    print(json.dumps({"benchmark": "harden", "budget": asked.budget, "rows": rows, "machine": machine()}, indent=1))


def row_of(method: str, data: Path, budget: str, folder: Path) -> dict[str, Any]:
    """A run of this method, hardened."""
    run = folder / method
    told("fit", str(data), "--method", method, "--budget", METHODS[method], "--out", str(run))
    began = time.monotonic()
    facts = told("harden", str(run), "--budget", budget)
    seconds = time.monotonic() - began
    kept = (
        "word",
        "training",
        "chosen",
        "candidates",
        "n",
        "views",
        "clean",
        "corrupted",
        "kinds",
        "severities",
        "seconds",
    )
    return {"method": method, "wall_seconds": seconds, **{name: facts[name] for name in kept if name in facts}}


def told(*words: str) -> dict[str, Any]:
    """What a verb of the command line prints as JSON."""
    command = [sys.executable, "-m", "burnish", *words, "--json", "--quiet"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


if __name__ == "__main__":
    main()
