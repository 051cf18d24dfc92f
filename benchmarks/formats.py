"""Do fewer bits cost accuracy? Heads fitted on float32, bfloat16 and 8-bit features, all used on float32 ones; one JSON object.

usage: formats.py [MODEL=efficientnet_lite0] SET.csv...     found in $BURNISH_TEST_DATA
Features of all depths, as `fit` takes them. Formats that the processor does not multiply in hardware are left out.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch

MODEL = "efficientnet_lite0"


def main() -> None:
    from burnish.record.facts import machine

    models = [word for word in sys.argv[1:] if not word.endswith(".csv")] or [MODEL]
    sets = [word for word in sys.argv[1:] if word.endswith(".csv")]
    cases = [one(model, name) for model in models for name in sets]
    print(json.dumps({"benchmark": "formats", "machine": machine(), "cases": cases}, indent=1))


def forms_of(module, example) -> dict:
    """The trunk's frozen forms by number format."""
    from burnish.backbones.fast.frozen import fold_for_inference, is_half
    from burnish.backbones.fast.int8 import int8_form

    found = {"float32": fold_for_inference(module, example[:2])}
    half, rounded = fold_for_inference(module, example[:2], half=True), int8_form(module, example)
    if is_half(half):
        found["bfloat16"] = half
    if rounded is not None:
        found["int8"] = rounded[0]
    return found


def one(model: str, name: str) -> dict:
    """Cross-validated and test accuracy by the number format of the features that the head was fitted on."""
    from burnish.backbones.changing.taps import PYRAMID_AT_MOST, WIDTH_AT_MOST, tapped
    from burnish.backbones.fast.int8 import IMAGES
    from burnish.backbones.zoo import load_backbone
    from burnish.data.cache import read_pixels
    from burnish.data.sources import open_source
    from burnish.data.split import make_splits
    from burnish.data.views import normalised
    from burnish.measure.verdict import judge
    from burnish.methods.heads import choose_head
    from burnish.runtime import evenly, keep_freed_memory
    from burnish.train.features import batched, outputs

    keep_freed_memory()
    catalog = open_source(Path(os.environ["BURNISH_TEST_DATA"]) / name)
    splits, plain = make_splits(catalog, seed=0, val_fraction=0.15), load_backbone(model)
    read = [
        read_pixels(catalog, rows, preprocess=plain.preprocess, workers=2) for rows in (splits.fitting, splits.test)
    ]
    example = normalised(read[0].plain[evenly(len(read[0].ids), IMAGES)], plain.preprocess)
    backbone = tapped(plain, example, width_at_most=WIDTH_AT_MOST, pyramid_at_most=PYRAMID_AT_MOST) or plain
    features = {
        kind: [
            outputs(form, batched(part.plain), preprocess=plain.preprocess, device=torch.device("cpu")) for part in read
        ]
        for kind, form in forms_of(backbone.module, example).items()
    }
    labels, truth = catalog.labels[read[0].ids], catalog.labels[read[1].ids]
    right, found = {}, {}
    for kind, (fitted, tested) in features.items():
        choice = choose_head(fitted, labels, classes=len(catalog.classes), seed=0, seconds_left=lambda: float("inf"))
        logits = torch.from_numpy(choice.head.logits(features["float32"][1]))
        right[kind] = logits.argmax(1).numpy() == truth
        exact = features["float32"][1]
        found[kind] = {
            "head": [choice.how.kind, choice.how.strength],
            "cross_validated": choice.accuracy,
            "test": float(right[kind].mean()),
            "test_loss": torch.nn.functional.cross_entropy(logits, torch.from_numpy(truth).long()).item(),
            "apart": round(float(np.linalg.norm(tested - exact) / np.linalg.norm(exact - exact.mean(0))), 4),
        }
        if kind != "float32":
            found[kind]["paired"] = judge(right["float32"], right[kind], seconds=0.0).to_json()["paired"]
    return {"model": model, "set": name, "features": backbone.width, "n_test": len(truth), **found}


if __name__ == "__main__":
    main()
