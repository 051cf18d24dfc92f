"""Whether asking pays where images are long: the middle square, the whole squashed, and what a run of its own chooses.

    BURNISH_TEST_DATA=… python benchmarks/framing.py [--draws 3] > benchmarks/results/framing.json

Strips of four images of Caltech-101 side by side. In "ends" the class is that of the image at one end, left or right by chance,
and the others are of other classes; in "middle" that of the image laid over the middle. Five classes, 60 images each, half
of them tested; frozen heads, no clock. Also photographs as they are, cut to 16:9. One JSON object on stdout.
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
from burnish.recipe import Recipe
from burnish.record.facts import machine
from burnish.runtime import draws

CLASSES, EACH, SIDE, PARTS = 5, 60, 160, 4
MODES = ("center", "squash", "auto")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=3)
    asked = parser.parse_args()
    rows = [row for draw in range(asked.draws) for kind in KINDS for row in rows_of(kind, draw)]
    means = {
        f"{kind}, {mode}": float(np.mean([row["accuracy"] for row in rows if (row["kind"], row["mode"]) == (kind, mode)]))
        for kind in KINDS for mode in MODES
    }  # fmt: skip
    print(json.dumps({"benchmark": "framing", "means": means, "rows": rows, "machine": machine()}, indent=1))


def rows_of(kind: str, draw: int) -> Iterator[dict[str, Any]]:
    """A row for each mode, on one set of images."""
    with tempfile.TemporaryDirectory() as folder:
        make(kind, draw, Path(folder) / "data")
        for mode in MODES:
            run = api.fit(
                Path(folder) / "data", out=Path(folder) / mode, crop_mode=mode, method="multiprobe", budget=None,
                seed=draw, test_fraction=0.5, cache="off",
            )  # fmt: skip
            score = run.facts["scores"][run.facts["kept_role"]]["accuracy"]
            found = {"kind": kind, "draw": draw, "mode": mode, "accuracy": score["value"], "n": score["n"]}
            recipe = Recipe.from_toml((run.folder / "recipe.toml").read_text())
            yield found | {"chosen": recipe.crop_mode}


def make(kind: str, draw: int, folder: Path) -> None:
    """Class folders with long images of one kind."""
    catalog = open_source(Path(os.environ["BURNISH_TEST_DATA"]) / "caltech101.csv")
    rng = draws(draw, "strips", kind)
    largest = np.argsort(-np.bincount(catalog.labels), kind="stable")[:CLASSES]
    others = np.flatnonzero(~np.isin(catalog.labels, largest))
    for label in largest:
        own = np.flatnonzero(catalog.labels == label)
        (folder / catalog.classes[label]).mkdir(parents=True)
        for number, index in enumerate(rng.permutation(own)[:EACH]):
            picture = opened(catalog, int(index))
            beside = [
                opened(catalog, int(one)).resize((SIDE, SIDE)) for one in rng.choice(others, PARTS, replace=False)
            ]
            KINDS[kind](picture, beside, rng).save(folder / catalog.classes[label] / f"{number}.jpg", quality=90)


def opened(catalog: Any, index: int) -> Image.Image:
    """An image of the catalogue, as it is."""
    return Image.open(catalog.image(index)).convert("RGB")


def strip(beside: list[Image.Image]) -> Image.Image:
    """Images side by side."""
    whole = Image.new("RGB", (SIDE * len(beside), SIDE))
    for place, one in enumerate(beside):
        whole.paste(one, (SIDE * place, 0))
    return whole


def ends(picture: Image.Image, beside: list[Image.Image], rng: np.random.Generator) -> Image.Image:
    place = int(rng.choice([0, PARTS - 1]))
    return strip([picture.resize((SIDE, SIDE)) if at == place else one for at, one in enumerate(beside)])


def middle(picture: Image.Image, beside: list[Image.Image], rng: np.random.Generator) -> Image.Image:
    whole = strip(beside)
    whole.paste(picture.resize((SIDE, SIDE)), ((whole.width - SIDE) // 2, 0))
    return whole


def wide(picture: Image.Image, beside: list[Image.Image], rng: np.random.Generator) -> Image.Image:
    """The photograph alone, cut to 16:9."""
    width, height = picture.size
    short = min(height, width * 9 // 16)
    top = (height - short) // 2
    long = min(width, short * 16 // 9)
    left = (width - long) // 2
    return picture.crop((left, top, left + long, top + short))


KINDS = {"ends": ends, "middle": middle, "wide": wide}


if __name__ == "__main__":
    main()
