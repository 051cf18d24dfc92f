"""What is left of the frozen probe and of the tuned network on corrupted and on attacked images; one JSON object on stdout.

usage: robust.py DATA [--corrupted 160] [--attacked 48] [--size 128] [--epochs 6] [--runs probe=FOLDER,tuned=FOLDER]
Both are fitted on DATA (Lite0: frozen heads on all depths; all of the network trained), unless --runs names two that were.
Each is then asked about the same even parts of the test images. A line a run on stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

FITS: dict[str, dict[str, Any]] = {"probe": {"method": "multiprobe"}, "tuned": {"method": "full"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--corrupted", type=int, default=160)
    parser.add_argument("--attacked", type=int, default=48)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--runs", default="")
    asked = parser.parse_args()
    from burnish import api
    from burnish.record.facts import machine

    given = dict(one.split("=", 1) for one in asked.runs.split(",") if one)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, how in FITS.items():
            run = Path(given.get(name) or Path(folder) / name)
            if name not in given:
                epochs = {"epochs": asked.epochs} if name == "tuned" else {}
                api.fit(
                    asked.data, budget=None, out=run, image_size=asked.size, model="efficientnet_lite0", **how, **epochs
                )
            facts = api.open_run(run).facts
            damaged = api.robustness(run, asked.data, most=asked.corrupted)
            attacked = api.robustness(run, asked.data, corrupted=False, attacked=True, most=asked.attacked)
            told = {"corrupted": damaged.to_json()["corrupted"], "attacked": attacked.to_json()["attacked"]}
            found[name] = {"kept": facts["kept"], **how, **told}
            mean = told["corrupted"]["mean"]["score"]["value"]
            print(name, facts["kept"], f"{mean:.3f}", [row["all"]["score"]["value"] for row in told["attacked"]["rows"]],
                  file=sys.stderr, flush=True)  # fmt: skip
    told = {
        "benchmark": "robust",
        "data": os.path.basename(asked.data),
        "model": "efficientnet_lite0",
        "size": asked.size,
    }
    print(json.dumps({**told, "epochs": asked.epochs, "machine": machine(), "runs": found}, indent=1))


if __name__ == "__main__":
    main()
