"""Heads where classes have unequal numbers of images, many of them one: how right they are, and how right they are said to be.

    python benchmarks/unequal.py [--size 128] [--seeds 0 1] > benchmarks/results/unequal.json

Of Caltech-101 (BURNISH_TEST_DATA) classes get 30, … 1 training images, their numbers falling by one factor from class to class;
of the test images either ten of each class, or of each class as many as fit its share. Heads on the last layer and on all depths,
chosen by cross-validation: as `choose_head` does, and without the classes that are cut to one image and without unbiased LDA.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from burnish.backbones.changing.taps import tapped
from burnish.backbones.fast.frozen import fold_for_inference
from burnish.backbones.spec import Backbone
from burnish.backbones.zoo import load_backbone
from burnish.data.cache import read_pixels
from burnish.data.sources import open_source
from burnish.data.views import normalised
from burnish.labels import cross_entropies
from burnish.methods import folds, heads
from burnish.methods.heads import choose_head
from burnish.record.facts import machine
from burnish.train.features import batched, outputs

MOST, SINGLES = 30, (0.0, 0.4)  # training images of the largest class; the share of classes that have one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    asked = parser.parse_args()
    catalog = open_source(Path(os.environ.get("BURNISH_TEST_DATA", ".")) / "caltech101.csv")
    split, labels = np.array(catalog.splits), catalog.labels
    features = features_of(catalog, asked.size)
    rows = []
    for seed in asked.seeds:
        for singles in SINGLES:
            train, even, shares = drawn(labels, split, len(catalog.classes), singles, np.random.default_rng(seed))
            for depth, found in features.items():
                for way in ("before", "now"):
                    with as_before(way == "before"):
                        choice = choose_head(
                            found[train], labels[train], classes=len(catalog.classes), seed=0, seconds_left=lambda: 1e9
                        )
                    row: dict[str, Any] = {
                        "seed": seed, "classes_of_one": singles, "depths": depth, "way": way, "images": len(train),
                        "head": [choice.how.kind, choice.how.strength, choice.how.unbiased],
                        "cross_validated": round(choice.accuracy, 4), "cross_validated_loss": round(choice.loss, 3),
                    }  # fmt: skip
                    for name, test in (("even", even), ("shares", shares)):
                        logits = choice.head.logits(found[test])
                        row[name] = round(float((logits.argmax(1) == labels[test]).mean()), 4)
                        row[f"{name}_loss"] = round(float(cross_entropies(logits, labels[test]).mean()), 3)
                        row[f"{name}_n"] = len(test)
                    rows.append(row)
    print(json.dumps({"benchmark": "unequal", "size": asked.size, "rows": rows, "machine": machine()}, indent=1))


def features_of(catalog: Any, size: int) -> dict[str, np.ndarray]:
    """Frozen features float32 [n d] of all images, on the last layer and on all depths."""
    backbone = load_backbone("efficientnet_lite0")
    preprocess = replace(backbone.preprocess, size=size)
    read = read_pixels(catalog, np.arange(len(catalog)), preprocess=preprocess, workers=2)
    example = normalised(read.plain[:32], preprocess)
    deep = tapped(backbone, example)
    assert deep is not None

    def features(one: Backbone) -> np.ndarray:
        trunk = fold_for_inference(one.module, example)
        return outputs(trunk, batched(read.plain), preprocess=preprocess, device=torch.device("cpu"))

    return {"last": features(backbone), "all": features(deep)}


def drawn(
    labels: np.ndarray, split: np.ndarray, classes: int, singles: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows to train on, ten test images a class, and as many of each class as fit its share of the training images."""
    several = round((1 - singles) * classes)
    counts = np.ones(classes, int)
    counts[:several] = np.round(MOST * (2 / MOST) ** (np.arange(several) / max(1, several - 1)))
    counts = rng.permutation(counts)
    train, even, shares = list[int](), list[int](), list[int]()
    for one in range(classes):
        own, test = (np.flatnonzero((labels == one) & (split == side)) for side in ("train", "test"))
        train += rng.permutation(own)[: counts[one]].tolist()
        test = rng.permutation(test)
        even += test[:10].tolist()
        wanted = 10 * counts[one] / MOST
        shares += test[: int(wanted) + (rng.random() < wanted % 1)].tolist()
    return np.array(train), np.array(even), np.array(shares)


@contextmanager
def as_before(wanted: bool) -> Iterator[None]:
    """Without classes cut to one image, and without unbiased LDA."""
    real = folds._cuts, heads._uneven
    if wanted:
        folds._cuts = lambda *_: ()  # type: ignore[assignment]
        heads._uneven = lambda _: False  # type: ignore[assignment]
    try:
        yield
    finally:
        folds._cuts, heads._uneven = real


if __name__ == "__main__":
    main()
