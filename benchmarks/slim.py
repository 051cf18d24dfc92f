"""What `burnish slim` saves and what it costs: bytes, milliseconds an image, accuracy before and after.

    BURNISH_TEST_DATA=… python benchmarks/slim.py [--cases lite0-frozen,vit-frozen] [--into FILE]

Hand signs, 500 training images, 1,562 test images; no clock, so that the models are the same on any machine of one kind. The
ResNet and the ViT begin with random weights: what is asked is what is lost, not how good they are. One JSON object on stdout;
with --into rows are added to those of an earlier call, one case after the other.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from burnish import api
from burnish.record.facts import machine

CASES: dict[str, dict[str, Any]] = {
    "lite0-frozen": {"method": "multiprobe"},
    "lite0-tuned": {"method": "full", "epochs": 6, "image_size": 128},
    "resnet18-tuned": {"model": "random:resnet18", "method": "full", "epochs": 8, "image_size": 96},
    "vit-frozen": {"model": "random:test_vit", "method": "probe"},
}
POINTS = 0.5  # that may be lost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--into", type=Path)
    asked = parser.parse_args()
    rows = json.loads(asked.into.read_text())["rows"] if asked.into is not None and asked.into.exists() else []
    for name in asked.cases.split(","):
        rows = [row for row in rows if row["case"] != name] + [row_of(name)]
        if asked.into is not None:
            asked.into.write_text(told(rows) + "\n")
    print(told(rows))


def told(rows: list[dict[str, Any]]) -> str:
    """The JSON object."""
    return json.dumps({"benchmark": "slim", "lose": POINTS, "rows": rows, "machine": machine()}, indent=1)


def row_of(name: str) -> dict[str, Any]:
    """What slim makes of one model."""
    with tempfile.TemporaryDirectory() as folder:
        data = os.path.join(os.environ["BURNISH_TEST_DATA"], "signs.csv")
        run = api.fit(data, out=Path(folder) / "run", budget=None, **CASES[name])
        facts = api.slim(run.folder, lose=POINTS).facts
    kept = ("bytes", "milliseconds", "threads", "slim", "proof", "onnx", "steps")
    return {"case": name, "settings": CASES[name], "from": facts["of"]["size"], **{key: facts[key] for key in kept}}


if __name__ == "__main__":
    main()
