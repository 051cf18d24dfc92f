"""Does bfloat16 cost accuracy? Heads fitted on bfloat16 and on float32 features, both used on float32 ones; one JSON object.

usage: half.py SET.csv...        found in $BURNISH_TEST_DATA; needs a processor that multiplies bfloat16 in hardware
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch


def main() -> None:
    from burnish.record.facts import machine

    cases = [one(name) for name in sys.argv[1:]]
    print(json.dumps({"benchmark": "half", "machine": machine(), "cases": cases}, indent=1))


def one(name: str) -> dict:
    """Cross-validated and test accuracy by the precision of the features that the head was fitted on."""
    from burnish.backbones.fast.frozen import fold_for_inference, is_half
    from burnish.backbones.zoo import load_backbone
    from burnish.data.cache import read_pixels
    from burnish.data.sources import open_source
    from burnish.data.split import make_splits
    from burnish.data.views import normalised
    from burnish.measure.verdict import judge
    from burnish.methods.heads import choose_head
    from burnish.runtime import keep_freed_memory
    from burnish.train.features import batched, outputs

    keep_freed_memory()
    catalog = open_source(Path(os.environ["BURNISH_TEST_DATA"]) / name)
    splits, backbone = make_splits(catalog, seed=0, val_fraction=0.15), load_backbone("efficientnet_lite0")
    ids = splits.fitting
    read = [read_pixels(catalog, rows, preprocess=backbone.preprocess, workers=2) for rows in (ids, splits.test)]
    forms, features = {}, {}
    for half in (False, True):
        example = normalised(read[0].plain[:2], backbone.preprocess)
        forms[half] = fold_for_inference(backbone.module, example, half=half)
        features[half] = [
            outputs(forms[half], batched(p.plain), preprocess=backbone.preprocess, device=torch.device("cpu"))
            for p in read
        ]
    labels, truth = catalog.labels[read[0].ids], catalog.labels[read[1].ids]
    found, right = {}, {}
    for half in (False, True):
        choice = choose_head(
            features[half][0], labels, classes=len(catalog.classes), seed=0, seconds_left=lambda: float("inf")
        )
        right[half] = choice.head.logits(features[False][1]).argmax(1) == truth
        found["bfloat16" if half else "float32"] = {
            "head": [choice.how.kind, choice.how.strength],
            "cross_validated": choice.accuracy,
            "test": float(right[half].mean()),
        }
    difference = [
        np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(features[True], features[False], strict=True)
    ]
    return {
        "set": name,
        "used_half": is_half(forms[True]),
        "relative_difference_of_features": [round(float(one), 4) for one in difference],
        **found,
        "paired": judge(right[False], right[True], seconds=0.0).to_json()["paired"],
        "n_test": len(truth),
    }


if __name__ == "__main__":
    main()
