"""Heads that see where in the image something is (the pyramid of `backbones.changing.taps`), against heads that do not.

    python benchmarks/pyramid.py signs.csv caltech101.csv [--sizes 224 128] [--moved] > benchmarks/results/pyramid.json

Data are paths, or names under BURNISH_TEST_DATA. Of each set and image size what a head on the last layer, on all depths, and on
all depths with the pyramid has right on the test images, and which of the last two cross-validation on some of the training
images takes, three draws of them. --moved: the same with every image shrunk to half to three quarters of its side and put
somewhere on one colour, so that its place says nothing. No clock is involved. One JSON object on stdout.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from burnish.backbones.changing.taps import PYRAMID_AT_MOST, flat_width, tapped
from burnish.backbones.fast.frozen import fold_for_inference
from burnish.backbones.zoo import load_backbone
from burnish.choose.where import images_asked, pyramid_stays
from burnish.data.cache import Rows, read_pixels
from burnish.data.sample import part_of
from burnish.data.sources import open_source
from burnish.data.split import make_splits
from burnish.data.views import normalised
from burnish.granted import cores
from burnish.measure.intervals import paired
from burnish.methods.heads import choose_head
from burnish.record.facts import machine
from burnish.runtime import draws, keep_freed_memory
from burnish.train.features import batched, outputs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="+")
    parser.add_argument("--sizes", type=int, nargs="+", default=[224])
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--moved", action="store_true")
    asked = parser.parse_args()
    keep_freed_memory()
    rows = [
        row_of(data, asked.model, size, moved=moved)
        for data in asked.data
        for size in asked.sizes
        for moved in ([False, True] if asked.moved else [False])
    ]
    print(json.dumps({"benchmark": "pyramid", "model": asked.model, "rows": rows, "machine": machine()}, indent=1))


def row_of(data: str, model: str, size: int, *, moved: bool) -> dict[str, Any]:
    """One set at one size."""
    path = Path(data) if Path(data).exists() or data == "demo" else Path(os.environ["BURNISH_TEST_DATA"]) / data
    catalog, backbone = open_source(data if data == "demo" else path), load_backbone(model)
    splits, preprocess = (
        make_splits(catalog, seed=0, test_fraction=0.2, val_fraction=0.15),
        replace(backbone.preprocess, size=size),
    )
    ids, classes = splits.fitting, len(catalog.classes)
    fitting, test = (
        read_pixels(catalog, some, preprocess=preprocess, workers=cores()).plain for some in (ids, splits.test)
    )
    if moved:
        fitting, test = (somewhere(images, purpose) for images, purpose in ((fitting, "fit"), (test, "test")))
    deep = tapped(backbone, normalised(fitting[:12], preprocess), pyramid_at_most=PYRAMID_AT_MOST)
    assert deep is not None
    trunk = fold_for_inference(deep.module, normalised(fitting[:2], preprocess))

    def features(images: Rows) -> np.ndarray:
        return outputs(trunk, batched(images), preprocess=preprocess, device=torch.device("cpu"))

    x, z, y, truth = features(fitting), features(test), catalog.labels[ids], catalog.labels[splits.test]
    widths = {"last layer": backbone.width, "all depths": flat_width(deep), "with pyramid": deep.width}
    found, right = {}, {}
    for name, width in widths.items():
        began = time.monotonic()
        choice = choose_head(x[:, :width], y, classes=classes, seed=0, seconds_left=lambda: 1e9)
        seconds = time.monotonic() - began
        right[name] = choice.head.logits(z[:, :width]).argmax(1) == truth
        found[name] = {
            "width": width, "head": choice.how.kind, "test": float(right[name].mean()), "cross_validated": choice.accuracy,
            "loss": choice.loss, "seconds": round(seconds, 2),
        }  # fmt: skip
    told = []
    for seed in range(3):
        rows = part_of(catalog, ids, images_asked(classes), seed=seed)
        stays, losses = pyramid_stays(x[rows], y[rows], flat_width(deep), classes=classes, seed=0)
        told.append({"images": len(rows), **losses, "taken": stays})
    gain = paired(right["all depths"], right["with pyramid"])
    row = {
        "set": path.name, "size": size, "moved": moved, "fitted": len(y), "n": len(truth), "heads": found,
        "gain": [gain.difference, gain.low, gain.high, gain.p], "asked": told,
    }  # fmt: skip
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


def somewhere(images: Rows, purpose: str) -> np.ndarray:
    """Every image [n s s 3] smaller and somewhere on one colour."""
    out = np.concatenate(list(batched(images)))
    side = out.shape[1]
    for number, image in enumerate(out):
        rng = draws(0, "moved", purpose, number)
        own = int(side * rng.uniform(0.5, 0.75))
        places = np.linspace(0, side - 1, own).astype(np.int64)
        small, (top, left) = image[places][:, places].copy(), rng.integers(0, side - own + 1, 2)
        image[:] = rng.integers(0, 256, 3)
        image[top : top + own, left : left + own] = small
    return out


if __name__ == "__main__":
    main()
