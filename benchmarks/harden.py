"""What hardening a finished run comes to, and what it costs: clean and corrupted accuracy before and after, as proven on test.

    BURNISH_TEST_DATA=… python benchmarks/harden.py [--budget 2m] > benchmarks/results/harden.json

Hand signs with EfficientNet-Lite0: a run of frozen heads (multiprobe) and one of the whole network (full), each made once and
then hardened by `burnish harden --control` in a process of its own, whose wall time from start to exit is held against the
budget. The control is trained as long on plain views: what the hardened model has beyond it is what the perturbed views did. One
JSON object on stdout.
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

METHODS = {
    "multiprobe": ("--budget", "45s"),
    "full": ("--budget", "none", "--epochs", "6", "--image-size", "128"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", default="2m")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--against", default="corruptions", choices=("corruptions", "attacks"))
    parser.add_argument("--run", type=Path, help="harden this run of hand signs, and make none")
    asked = parser.parse_args()
    data = Path(os.environ["BURNISH_TEST_DATA"]) / "signs.csv"
    with tempfile.TemporaryDirectory() as folder:
        runs = (
            [made(method, data, Path(folder)) for method in asked.methods.split(",")]
            if asked.run is None
            else [asked.run]
        )
        rows = [row_of(run, asked, Path(folder) / f"{run.name}-hard") for run in runs]
    print(json.dumps({"benchmark": "harden", "rows": rows, "machine": machine()}, indent=1))


def made(method: str, data: Path, folder: Path) -> Path:
    """A run of this method."""
    told("fit", str(data), "--method", method, *METHODS[method], "--out", str(folder / method))
    return folder / method


def row_of(run: Path, asked: argparse.Namespace, out: Path) -> dict[str, Any]:
    """A run, hardened."""
    began = time.monotonic()
    facts = told(
        "harden", str(run), "--against", asked.against, "--control", "--budget", asked.budget, "--out", str(out)
    )
    seconds = time.monotonic() - began
    kept = (
        "method",
        "word",
        "control",
        "beyond_control",
        "training",
        "chosen",
        "candidates",
        "n",
        "views",
        "clean",
        "attacked",
        "corrupted",
        "kinds",
        "severities",
        "seconds",
    )
    told_of = {"budget": asked.budget, "against": asked.against, "wall_seconds": seconds}
    return {**told_of, **{name: facts[name] for name in kept if name in facts}}


def told(*words: str) -> dict[str, Any]:
    """What a verb of the command line prints as JSON."""
    command = [sys.executable, "-m", "burnish", *words, "--json", "--quiet"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


if __name__ == "__main__":
    main()
