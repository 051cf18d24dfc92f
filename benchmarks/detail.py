"""Whether asking pays where images are large: seen at the network's own size, finer, and what a run of its own chooses.

    BURNISH_TEST_DATA=… python benchmarks/detail.py [--draws 3] > benchmarks/results/detail.json

Squares of 900 pixels. In "small" the class is that of an image of Caltech-101 that is 90 pixels wide and lies anywhere on
another image, of no class of these; in "enlarged" an image of the class fills the square, so that nothing is gained by seeing
it finer. Eight classes, 40 images each, half of them tested; frozen heads, no clock. One JSON object on stdout.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from burnish import api
from burnish.data.sources import open_source
from burnish.recipe import Auto
from burnish.record.facts import machine
from burnish.runtime import draws
from burnish.ship.bundle import read_bundle

CLASSES, EACH, SIDE, SMALL = 8, 40, 900, 90
KINDS = ("small", "enlarged")
SIZES: dict[str, int | Auto] = {"own": 224, "finer": 448, "auto": "auto"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=3)
    asked = parser.parse_args()
    rows = [row for draw in range(asked.draws) for kind in KINDS for row in rows_of(kind, draw)]
    means = {
        f"{kind}, {size}": float(np.mean([row["accuracy"] for row in rows if (row["kind"], row["size"]) == (kind, size)]))
        for kind in KINDS for size in SIZES
    }  # fmt: skip
    print(json.dumps({"benchmark": "detail", "means": means, "rows": rows, "machine": machine()}, indent=1))


def rows_of(kind: str, draw: int) -> Iterator[dict[str, Any]]:
    """A row for each size, on one set of images."""
    with tempfile.TemporaryDirectory() as folder:
        make(kind, draw, Path(folder) / "data")
        for name, size in SIZES.items():
            run = api.fit(
                Path(folder) / "data", out=Path(folder) / name, image_size=size, method="multiprobe", budget=None,
                seed=draw, test_fraction=0.5, cache="off",
            )  # fmt: skip
            score = run.facts["scores"][run.facts["kept_role"]]["accuracy"]
            found = {"kind": kind, "draw": draw, "size": name, "accuracy": score["value"], "n": score["n"]}
            yield found | {"seen": read_bundle(run.folder).preprocess.size, "seconds": run.facts["seconds"]}


def make(kind: str, draw: int, folder: Path) -> None:
    """The images of one draw, a folder for each class."""
    catalog = open_source(os.path.join(os.environ["BURNISH_TEST_DATA"], "caltech101.csv"))
    rng = draws(draw, "detail")
    counts = np.bincount(catalog.labels, minlength=len(catalog.classes))
    background = next((label for label, name in enumerate(catalog.classes) if "BACKGROUND" in name.upper()), None)
    large = [label for label in np.flatnonzero(counts >= EACH) if label != background]
    chosen = rng.permutation(large)[:CLASSES]
    others = np.flatnonzero(~np.isin(catalog.labels, chosen))
    for label in chosen:
        (folder / catalog.classes[label]).mkdir(parents=True)
        for number, row in enumerate(rng.permutation(np.flatnonzero(catalog.labels == label))[:EACH]):
            picture = opened(catalog, row)
            if kind == "small":
                place = opened(catalog, rng.choice(others)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
                small = picture.resize(
                    (SMALL, max(1, SMALL * picture.height // picture.width)), Image.Resampling.BICUBIC
                )
                left, top = rng.integers(0, SIDE - SMALL), rng.integers(0, max(1, SIDE - small.height))
                place.paste(small, (int(left), int(top)))
                picture = place
            else:
                picture = picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            picture.save(folder / catalog.classes[label] / f"{number}.jpg", quality=92)


def opened(catalog: Any, row: int) -> Image.Image:
    """An image of the catalogue in RGB."""
    return Image.open(catalog.image(int(row))).convert("RGB")


if __name__ == "__main__":
    main()
