"""Few images a class: the frozen head that burnish chooses, against LDA and logistic regression on the last layer.

Those two with their strength by cross-validation, and with the one that is best on the test images, which nobody can know.

    python benchmarks/few_shots.py caltech101.csv [--shots 3 10] [--seeds 3] > benchmarks/results/few-shots.json

Data are looked for under BURNISH_TEST_DATA. Every draw of training images comes from the seed; the test images are all of
the set's own test split. No clock is involved: features are computed once.
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

from burnish.backbones.changing.taps import PYRAMID_AT_MOST, flat_width, tapped
from burnish.backbones.fast.frozen import fold_for_inference
from burnish.backbones.zoo import load_backbone
from burnish.choose.where import pyramid_stays
from burnish.data.cache import Rows, read_pixels
from burnish.data.sources import open_source
from burnish.data.split import make_splits
from burnish.data.views import normalised
from burnish.granted import cores
from burnish.measure.intervals import paired
from burnish.methods.heads import HeadChoice, HeadKind, choose_head
from burnish.methods.linear import PENALTIES, SHRINKAGES
from burnish.methods.pooled import pooled
from burnish.record.facts import machine
from burnish.runtime import draws, keep_freed_memory
from burnish.train.features import batched, outputs


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("--shots", type=int, nargs="+", default=[3, 10])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--model", default="efficientnet_lite0")
    options = parser.parse_args()
    keep_freed_memory()
    catalog = open_source(Path(os.environ["BURNISH_TEST_DATA"]) / options.data)
    splits = make_splits(catalog, seed=0, test_fraction=0.2, val_fraction=0.15)
    backbone = load_backbone(options.model)
    ids = splits.fitting
    fitting = read_pixels(catalog, ids, preprocess=backbone.preprocess, workers=cores()).plain
    test = read_pixels(catalog, splits.test, preprocess=backbone.preprocess, workers=cores()).plain
    seen = tapped(backbone, normalised(fitting[:12], backbone.preprocess), pyramid_at_most=PYRAMID_AT_MOST)
    assert seen is not None
    trunk = fold_for_inference(seen.module, normalised(fitting[:2], backbone.preprocess))

    def features(images: Rows) -> np.ndarray:
        return outputs(trunk, batched(images), preprocess=backbone.preprocess, device=torch.device("cpu"))

    x, z = features(fitting), features(test)
    y, truth, classes, widths = (
        catalog.labels[ids],
        catalog.labels[splits.test],
        len(catalog.classes),
        (backbone.width, flat_width(seen)),
    )
    rows = []
    for shots in options.shots:
        for seed in range(options.seeds):
            rng = draws(seed, "shots", shots)
            chosen = np.concatenate([rng.permutation(np.flatnonzero(y == c))[:shots] for c in range(classes)])
            rows.append(_row(x[chosen], y[chosen], z, truth, classes, widths, shots, seed))
            print(json.dumps(rows[-1]), file=sys.stderr)
    summary = {
        str(shots): {
            name: float(np.median([row["accuracy"][name] for row in rows if row["shots"] == shots]))
            for name in rows[0]["accuracy"]
        }
        for shots in options.shots
    }
    ahead = {
        str(shots): float(np.mean([row["auto_minus_better"][0] for row in rows if row["shots"] == shots]))
        for shots in options.shots
    }
    facts = {"data": options.data, "model": options.model, "test_images": len(truth), "seeds": options.seeds}
    print(
        json.dumps(
            {**facts, "median": summary, "mean_auto_minus_better": ahead, "rows": rows, "machine": machine()}, indent=1
        )
    )


def _row(
    x: np.ndarray,
    y: np.ndarray,
    z: np.ndarray,
    truth: np.ndarray,
    classes: int,
    widths: tuple[int, int],
    shots: int,
    seed: int,
) -> dict[str, object]:
    """One draw: what each head has right."""

    def right(choice: HeadChoice, features: np.ndarray) -> np.ndarray:
        return choice.head.logits(features).argmax(1) == truth

    width, plainer = widths

    def auto_of(width: int) -> tuple[HeadChoice, np.ndarray, np.ndarray]:
        """What is taken of heads on the last layer and on so many features, what it sees, and without averaging."""
        deep = choose_head(x[:, :width], y, classes=classes, seed=seed, seconds_left=lambda: 1e9)
        apart = right(deep, z[:, :width]) if deep.loss < last.loss else right(last, z[:, : last.head.width])
        deep = pooled(last, deep, y) or deep
        auto = deep if deep.loss < last.loss else last
        return auto, right(auto, z[:, : auto.head.width]), apart

    began = time.monotonic()
    last = choose_head(x[:, :width], y, classes=classes, seed=seed, seconds_left=lambda: 1e9)
    where, _ = pyramid_stays(x, y, plainer, classes=classes, seed=seed)
    auto, mine, apart = auto_of(x.shape[1] if where else plainer)
    taken = time.monotonic() - began
    without = auto_of(plainer)[1] if where else mine
    found = {"auto": mine, "auto, nothing averaged": apart, "auto, without pyramid": without}
    for kind in ("lda", "logistic"):  # as anybody can choose them: the strength by cross-validation
        one = choose_head(x[:, :width], y, classes=classes, seed=seed, seconds_left=lambda: 1e9, kinds=(kind,))
        found[f"{kind}, cross-validated"] = right(one, z[:, :width])
    for kind, strengths in (("lda", SHRINKAGES), ("logistic", PENALTIES)):
        for (
            strength
        ) in strengths:  # the best of each family on the TEST images: an upper bound no honest choice reaches
            head = HeadKind(kind, strength, 1.0).fitted(x[:, :width], y, classes=classes)
            mine = head.logits(z[:, :width]).argmax(1) == truth
            if kind not in found or mine.sum() > found[kind].sum():
                found[kind] = mine
    best = max(("lda", "logistic"), key=lambda name: found[name].sum())
    better = max(("lda, cross-validated", "logistic, cross-validated"), key=lambda name: found[name].sum())
    facts, fair = paired(found[best], found["auto"]), paired(found[better], found["auto"])
    return {
        "shots": shots,
        "seed": seed,
        "auto": [
            auto.how.kind,
            auto.how.strength,
            "last layer" if auto is last else f"{auto.how.share:.0%} all depths{', with pyramid' if where else ''}",
        ],
        "accuracy": {name: float(value.mean()) for name, value in found.items()},
        "auto_minus_best_on_test": [facts.difference, facts.low, facts.high, facts.p],
        "auto_minus_better": [fair.difference, fair.low, fair.high, fair.p],
        "seconds": taken,
    }


if __name__ == "__main__":
    main()
