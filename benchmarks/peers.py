"""burnish against the recipes of other tools at about equal wall time, paired on the same test images; one JSON object on stdout.

usage: peers.py --script PEERS.py --python VENV/bin/python --save OUT.json SET=BUDGET PEER:EPOCHS...
e.g.   peers.py … signs.csv=2m fastai:1 timm:2 hf:2 torch:2

PEERS.py: trains one peer on a CSV (`PEERS[name](train, test, classes, epochs, batch)`); VENV: where the peers are installed.
The CSVs are found in $BURNISH_TEST_DATA. Peers are given whole epochs: choose them so that their wall time, from process start to
exit, is at least the budget. burnish starts without kept pixels. Runs go one after another; those that OUT.json holds already are
not made again. Which test images each tool has right is kept, as a string of 0 and 1 in the order of their paths.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", metavar="SET=BUDGET")
    parser.add_argument("peers", nargs="*", metavar="PEER:EPOCHS")
    parser.add_argument("--script", type=Path, required=True)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--save", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    data, _, budget = asked.case.partition("=")
    source = Path(os.environ["BURNISH_TEST_DATA"]) / data
    facts = json.loads(asked.save.read_text()) if asked.save.exists() else {"benchmark": "peers", "runs": []}

    def known(tool: str, effort: str | int) -> bool:
        return any((run["set"], run["tool"], run["effort"]) == (data, tool, effort) for run in facts["runs"])

    def keep(run: dict[str, Any]) -> None:
        facts["runs"].append(run)
        facts["pairs"] = pairs_of(facts["runs"])
        asked.save.write_text(json.dumps(facts, indent=1) + "\n")
        print(json.dumps({**run, "right": None}), file=sys.stderr, flush=True)

    if not known("burnish", budget):
        run, facts["machine"] = one_burnish(source, budget, asked.seed)
        keep({"set": data, "tool": "burnish", "effort": budget, **run})
    for peer in asked.peers:
        name, _, epochs = peer.partition(":")
        if not known(name, int(epochs)):
            keep({"set": data, "tool": name, "effort": int(epochs), **one_peer(asked, name, source, int(epochs))})
    print(json.dumps(facts, indent=1))


def one_burnish(source: Path, budget: str, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """One `burnish fit` from process start to exit, with a cache of its own."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["fit", str(source), "--budget", budget, "--seed", str(seed), "--json", "--cache", f"{folder}/cache"]
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "burnish", *words, "--out", f"{folder}/run"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        seconds = time.monotonic() - began
        with open(f"{folder}/run/predictions.csv", newline="") as file:
            right = {row["path"]: row["right"] for row in csv.DictReader(file)}
    facts = json.loads(done.stdout)
    told = {
        "wall_seconds": round(seconds, 1),
        "first_model_seconds": round(facts["first_model_seconds"], 1),
        "kept": facts["kept"],
    }
    return {**told, **answered(right)}, facts["machine"]


def one_peer(asked: argparse.Namespace, name: str, source: Path, epochs: int) -> dict[str, Any]:
    """One peer's own recipe from process start to exit."""
    began = time.monotonic()
    done = subprocess.run(
        [asked.python, __file__, "child", str(asked.script), name, str(source), str(epochs)],
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    seconds = time.monotonic() - began
    told = json.loads(done.stdout.splitlines()[-1])
    return {"wall_seconds": round(seconds, 1), "train_seconds": told["train_seconds"], "peak_mb": told["peak_mb"],
            "versions": told["versions"], **answered(told["right"])}  # fmt: skip


def answered(right: dict[str, str]) -> dict[str, Any]:
    """How right, of how many, and which, in the order of paths."""
    digits = "".join(right[path] for path in sorted(right))
    return {"accuracy": digits.count("1") / len(digits), "n": len(digits), "right": digits}


def pairs_of(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every burnish run against every peer's on the same images: the paired difference with its interval, and McNemar's p.

    A run whose budget had no time for all of them is not among the pairs.
    """
    import numpy as np

    from burnish.measure.intervals import paired

    found = []
    for own in (run for run in runs if run["tool"] == "burnish"):
        same = [run for run in runs if run["set"] == own["set"] and run["n"] == own["n"]]
        for other in (run for run in same if run["tool"] != "burnish"):
            told = paired(*(np.array([one == "1" for one in run["right"]]) for run in (other, own)))
            found.append({
                "set": own["set"], "burnish": own["effort"], "peer": other["tool"], "epochs": other["effort"],
                "seconds": [own["wall_seconds"], other["wall_seconds"]],
                "accuracy": [own["accuracy"], other["accuracy"]],
                "difference": told.difference, "low": told.low, "high": told.high, "p": told.p,
            })  # fmt: skip
    return found


# ---- in the peers' own environment -----------------------------------------------------------------------------------


def child(script: str, name: str, source: str, epochs: int) -> None:
    """Train and score one peer, keeping which test images it had right; needs nothing of burnish."""
    import torch

    spec = importlib.util.spec_from_file_location("peers", script)
    assert spec is not None and spec.loader is not None
    peers = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(peers)
    torch.manual_seed(0)
    root = Path(source).parent
    with open(source, newline="") as file:
        rows = [(row["path"], row["label"], row["split"]) for row in csv.DictReader(file)]
    classes = sorted({label for _, label, _ in rows})
    train = [(str(root / path), label) for path, label, split in rows if split == "train"]
    test = [(path, label) for path, label, split in rows if split == "test"]
    right: list[bool] = []

    def score(net: Any, given: Any, order: Any, transform: Any) -> float:
        net.eval()
        with torch.inference_mode():
            for x, y in peers._loader(given, order, transform, 64, False):
                right.extend((net(x).argmax(1) == y).tolist())
        return sum(right) / len(given)

    peers._score = score  # type: ignore[attr-defined]
    if name == "fastai":
        watch_fastai(right)
    placed = [(str(root / path), label) for path, label in test]
    batch = None if name == "torch" else _BATCH  # the tutorial's own batch of 4
    accuracy, seconds = peers.PEERS[name](train, placed, classes, epochs, batch)
    assert len(right) == len(test) and abs(sum(right) / len(test) - float(accuracy)) < 1e-6
    told = {
        "train_seconds": round(seconds, 1),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "versions": versions(),
        "right": {path: str(int(one)) for (path, _), one in zip(test, right, strict=True)},
    }
    print(json.dumps(told))


def watch_fastai(right: list[bool]) -> None:
    """Have fastai's own scoring say which images were right, by a metric beside its accuracy."""
    from fastai.learner import Learner, Metric  # type: ignore[import-not-found]

    class Which(Metric):
        def reset(self) -> None:
            right.clear()

        def accumulate(self, learn: Any) -> None:
            right.extend((learn.pred.argmax(-1) == learn.y).tolist())

        @property
        def value(self) -> float:
            return 0.0

        @property
        def name(self) -> str:
            return "which"

    validate = Learner.validate

    def watched(self: Any, *given: Any, **named: Any) -> Any:
        self.metrics = [*self.metrics, Which()]
        return validate(self, *given, **named)

    Learner.validate = watched


def versions() -> dict[str, str]:
    """Of what the peers are made of, as far as it is installed."""
    from importlib import metadata

    found = {}
    for package in ("torch", "torchvision", "timm", "fastai", "transformers", "accelerate"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5]))
    else:
        main()
