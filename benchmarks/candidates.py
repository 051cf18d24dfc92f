"""What each trained candidate is worth on test images beside what validation says of it; one JSON object on stdout.

usage: candidates.py DATA [--epochs 10] [--seeds 2] [--stage-decay 0.75 1.0] [--size 128] [--most 800]

DATA as of `burnish fit`, or a table under BURNISH_TEST_DATA. The network is tuned whole, for so many epochs; then every candidate
(the moving average, the last weights, WiSE interpolations) answers the validation images, as the choice sees them, and up to
`most` of the test images, which no choice sees. Nothing here is timed.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from burnish import api
from burnish.choose.evidence import Evidence
from burnish.choose.features import plain_at
from burnish.choose.tuning import Tuned, Tuning
from burnish.labels import right
from burnish.record.facts import machine
from burnish.run import trained
from burnish.runtime import evenly
from burnish.train.features import batched, outputs


class _Done(Exception):
    """The candidates are known; what follows in the run is not wanted."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--stage-decay", type=float, nargs="+", default=[0.75])
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--most", type=int, default=800)
    asked = parser.parse_args()
    there = Path(os.environ.get("BURNISH_TEST_DATA", ".")) / asked.data
    data, rows = str(there) if there.exists() else asked.data, []
    for seed in range(asked.seeds):
        for decay in asked.stage_decay:
            found = candidates(data, asked, seed=seed, stage_decay=decay)
            rows.append({"set": Path(asked.data).stem, "seed": seed, "stage_decay": decay, **found})
    print(json.dumps({"benchmark": "candidates", "epochs": asked.epochs, "runs": rows, "machine": machine()}, indent=1))


def candidates(data: str, asked: argparse.Namespace, *, seed: int, stage_decay: float) -> dict[str, Any]:
    """One run: accuracy on test and on validation, and the log loss there at the best temperature, by candidate."""
    found: dict[str, Any] = {}
    real = trained.Tuning.best

    def looking(tuning: Tuning) -> Tuned | None:
        tuned, material = real(tuning), tuning.material
        assert tuned is not None
        ids = material.test.ids[evenly(len(material.test.ids), asked.most)]
        labels, truth = material.labels[material.val_rows], material.catalog.labels[ids]
        for one in tuned.candidates:
            views = batched(plain_at(material, ids, one.preprocess, tuning.bench))
            logits = outputs(tuning.classifier(one), views, preprocess=one.preprocess, device=torch.device("cpu"))
            found[one.name] = {
                "test": float(right(logits, truth).mean()),
                "validation": one.accuracy,
                "validation_loss": float(Evidence.of(one.logits, material).losses.mean()),
            }
        found["taken"], found["n"] = tuned.best.name, {"test": len(ids), "validation": len(labels)}
        raise _Done

    settings = {"stage_decay": stage_decay, "epochs": asked.epochs, "image_size": asked.size, "seed": seed}
    trained.Tuning.best = looking  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as folder:
            api.fit(data, method="full", budget=None, out=f"{folder}/run", **settings)
    except _Done:
        pass
    finally:
        trained.Tuning.best = real
    return found


if __name__ == "__main__":
    main()
