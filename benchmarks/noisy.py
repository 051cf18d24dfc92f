"""Few images with wrong labels: the log loss of the frozen heads that burnish takes, and of scikit-learn's logistic regression.

    python benchmarks/noisy.py [--size 128] [--shots 12] [--wrong 0 0.1 0.2] [--seeds 0 1 2] > benchmarks/results/noisy.json

Hand signs, twelve classes of Caltech-101 (BURNISH_TEST_DATA) and scikit-learn's digits; a share of the labels is changed to
another class, of training and test images alike. "before" never averages LDA and logistic regression. scikit-learn's sees the
last layer, plain or standardised, its C by cross-validated log loss. Features are computed once; no clock is involved.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegressionCV
from sklearn.preprocessing import StandardScaler

from burnish.backbones.changing.taps import PYRAMID_AT_MOST, flat_width, tapped
from burnish.backbones.fast.frozen import fold_for_inference
from burnish.backbones.zoo import load_backbone
from burnish.choose.where import pyramid_stays
from burnish.data.cache import read_pixels
from burnish.data.sources import open_source
from burnish.data.views import normalised
from burnish.granted import cores
from burnish.labels import cross_entropies
from burnish.methods import heads
from burnish.methods.heads import HeadChoice, choose_head
from burnish.methods.pooled import pooled
from burnish.record.facts import machine
from burnish.runtime import draws
from burnish.train.features import batched, outputs

_OF_A_CLASS, _CLASSES = 45, 12  # images, and classes of the larger set, that features are computed of
_CS, _STANDARDISED_CS = 10.0 ** np.arange(-4, 2), 10.0 ** np.arange(-6, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--shots", type=int, default=12)
    parser.add_argument("--wrong", type=float, nargs="+", default=[0.0, 0.1, 0.2])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    asked = parser.parse_args()
    rows = []
    for name, pixels, labels in sets(asked.size):
        x, widths = features_of(pixels, asked.size)
        for wrong in asked.wrong:
            for seed in asked.seeds:
                rows.append(
                    {"set": name, "wrong": wrong, "seed": seed} | _row(x, labels, widths, asked.shots, wrong, seed)
                )
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    facts = {"benchmark": "noisy", "size": asked.size, "shots": asked.shots, "machine": machine()}
    print(json.dumps({**facts, "rows": rows}, indent=1))


def sets(size: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, images uint8 [n size size 3] and labels [n] of each."""
    preprocess = replace(load_backbone("efficientnet_lite0").preprocess, size=size)
    for name in ("signs", "caltech101"):
        catalog = open_source(Path(os.environ["BURNISH_TEST_DATA"]) / f"{name}.csv")
        classes = draws(0, "classes").permutation(len(catalog.classes))[:_CLASSES]
        ids = _some(catalog.labels, classes)
        pixels = read_pixels(catalog, ids, preprocess=preprocess, workers=cores()).plain
        yield name, np.asarray(pixels), np.unique(catalog.labels[ids], return_inverse=True)[1]
    digits: Any = load_digits()
    ids = _some(digits.target, np.arange(10))
    grey = (digits.images[ids] * 255 / 16).astype(np.uint8)
    large = [
        np.asarray(Image.fromarray(one).resize((size, size), Image.Resampling.BICUBIC).convert("RGB")) for one in grey
    ]
    yield "digits", np.stack(large), digits.target[ids]


def _some(labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    found = [draws(0, "images", int(c)).permutation(np.flatnonzero(labels == c))[:_OF_A_CLASS] for c in classes]
    return np.sort(np.concatenate(found))


def features_of(pixels: np.ndarray, size: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Features [n d] of all depths, and how many are the last layer's, and without the pyramid."""
    backbone = load_backbone("efficientnet_lite0")
    preprocess = replace(backbone.preprocess, size=size)
    seen = tapped(backbone, normalised(pixels[:12], preprocess), pyramid_at_most=PYRAMID_AT_MOST)
    assert seen is not None
    trunk = fold_for_inference(seen.module, normalised(pixels[:2], preprocess))
    x = outputs(trunk, batched(pixels), preprocess=preprocess, device=torch.device("cpu"))
    return x, (backbone.width, flat_width(seen))


def _row(
    x: np.ndarray, labels: np.ndarray, widths: tuple[int, int], shots: int, wrong: float, seed: int
) -> dict[str, object]:
    """One draw."""
    rng, classes = draws(seed, "shots", shots), int(labels.max()) + 1
    order = [rng.permutation(np.flatnonzero(labels == c)) for c in range(classes)]
    train = np.concatenate([one[:shots] for one in order])
    test = np.concatenate([one[shots:] for one in order])
    told = np.where(rng.random(len(x)) < wrong, (labels + rng.integers(1, classes, len(x))) % classes, labels)
    found: dict[str, np.ndarray] = {}
    seconds: dict[str, float] = {}
    for way, few in (("before", 0), ("now", heads._FEW)):
        with patch.object(heads, "_FEW", few):
            began = time.process_time()
            choice = _auto(x[train], told[train], widths, classes, seed)
            seconds[way] = round(time.process_time() - began, 2)
        found[way] = choice.head.logits(np.ascontiguousarray(x[test][:, : choice.head.width]))
    last = x[:, : widths[0]]
    standardised = np.asarray(StandardScaler().fit(last[train]).transform(last))
    found["scikit-learn"] = _plain(last, train, test, told, _CS)
    found["scikit-learn, standardised"] = _plain(standardised, train, test, told, _STANDARDISED_CS)
    return {
        "images": len(train), "test_images": len(test), "cpu_seconds": seconds,
        "loss": {name: float(cross_entropies(logits, told[test]).mean()) for name, logits in found.items()},
        "loss_of_true_labels": {name: float(cross_entropies(one, labels[test]).mean()) for name, one in found.items()},
        "right": {name: float((logits.argmax(1) == labels[test]).mean()) for name, logits in found.items()},
    }  # fmt: skip


def _auto(x: np.ndarray, y: np.ndarray, widths: tuple[int, int], classes: int, seed: int) -> HeadChoice:
    """What burnish takes of heads on the last layer and on all depths."""

    def best(width: int) -> HeadChoice:
        own = np.ascontiguousarray(x[:, :width])
        return choose_head(own, y, classes=classes, seed=seed, seconds_left=lambda: 1e9)

    stays, _ = pyramid_stays(x, y, widths[1], classes=classes, seed=seed)
    last, deep = best(widths[0]), best(x.shape[1] if stays else widths[1])
    deep = pooled(last, deep, y) or deep
    return deep if deep.loss < last.loss else last


def _plain(x: np.ndarray, train: np.ndarray, test: np.ndarray, y: np.ndarray, strengths: np.ndarray) -> np.ndarray:
    """Logits of scikit-learn's, in coordinates as many as there are images: turned, features give the same heads."""
    mean = x[train].mean(0)
    turn = np.linalg.svd((x[train] - mean).astype(np.float64), full_matrices=False)[2][: len(train) - 1].T
    made: Any = LogisticRegressionCV
    model = made(
        Cs=strengths, cv=3, scoring="neg_log_loss", max_iter=300, l1_ratios=(0.0,), use_legacy_attributes=False
    )
    return model.fit((x[train] - mean) @ turn, y[train]).predict_log_proba((x[test] - mean) @ turn)


if __name__ == "__main__":
    main()
