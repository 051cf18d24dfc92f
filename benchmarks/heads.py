"""Kinds of frozen heads on the same features: LDA, logistic, nearest neighbours, and linear ones on a share of the features.

usage: heads.py DATA.csv ... > benchmarks/results/heads.json      paths, or names under $BURNISH_TEST_DATA

Features of EfficientNet-Lite0 at its own size, computed once; of each head the cross-validated and the test accuracy. No clock is
involved. One JSON object on stdout.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch

from burnish.backbones.changing.taps import tapped
from burnish.backbones.fast.frozen import fold_for_inference
from burnish.backbones.zoo import load_backbone
from burnish.data.cache import Rows, read_pixels
from burnish.data.sources import open_source
from burnish.data.split import make_splits
from burnish.data.views import normalised
from burnish.granted import cores
from burnish.methods.heads import choose_head
from burnish.record.facts import machine
from burnish.runtime import keep_freed_memory
from burnish.train.features import batched, outputs

_KINDS: dict[str, tuple[str, ...]] = {
    "auto": ("lda", "logistic"),
    "lda": ("lda",),
    "logistic": ("logistic",),
    "knn": ("knn",),
}
_SHARES = (0.5, 0.25, 0.125)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="+")
    asked = parser.parse_args()
    keep_freed_memory()
    rows = [row for data in asked.data for row in rows_of(data)]
    print(json.dumps({"benchmark": "heads", "machine": machine(), "rows": rows}, indent=1))


def rows_of(data: str) -> list[dict[str, object]]:
    """All heads on one set."""
    path = Path(data) if Path(data).exists() else Path(os.environ["BURNISH_TEST_DATA"]) / data
    catalog, backbone = open_source(path), load_backbone("efficientnet_lite0")
    splits = make_splits(catalog, seed=0, test_fraction=0.2, val_fraction=0.15)
    ids = splits.fitting
    fitting, test = (
        read_pixels(catalog, some, preprocess=backbone.preprocess, workers=cores()).plain for some in (ids, splits.test)
    )
    seen = tapped(backbone, normalised(fitting[:12], backbone.preprocess))
    assert seen is not None
    trunk = fold_for_inference(seen.module, normalised(fitting[:2], backbone.preprocess))

    def features(images: Rows) -> np.ndarray:
        return outputs(trunk, batched(images), preprocess=backbone.preprocess, device=torch.device("cpu"))

    x, z, y, truth = features(fitting), features(test), catalog.labels[ids], catalog.labels[splits.test]
    cases = [(depth, kind, 1.0) for depth in ("last", "all") for kind in _KINDS]
    cases += [("all", "auto", share) for share in _SHARES]
    rows = []
    for depth, kind, share in cases:
        width, began = backbone.width if depth == "last" else x.shape[1], time.monotonic()
        found = choose_head(
            x[:, :width],
            y,
            classes=len(catalog.classes),
            seed=0,
            seconds_left=lambda: 1e9,
            kinds=_KINDS[kind],
            keep=share,
        )
        right = found.head.logits(z[:, :width]).argmax(1) == truth
        rows.append({
            "set": path.name, "depths": depth, "head": kind, "keep": share, "chosen": [found.how.kind, found.how.strength],
            "cross_validated": found.accuracy, "loss": found.loss, "test": float(right.mean()), "n": len(truth),
            "seconds": round(time.monotonic() - began, 2),
        })  # fmt: skip
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


if __name__ == "__main__":
    main()
