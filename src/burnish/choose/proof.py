"""The proof: test images, looked at once, by the frozen probe and by the tuned model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from burnish.backbones.classifier import Classifier
from burnish.backbones.spec import Backbone
from burnish.choose.material import Bench, Material
from burnish.choose.probing import plain_at
from burnish.choose.tuning import logits_of
from burnish.data.cache import Rows
from burnish.labels import right, several
from burnish.measure.calibration import calibrated
from burnish.measure.held_out import HeldOut
from burnish.terms import Preprocess


@dataclass(frozen=True)
class Contender:
    """A finished model, every choice about it made."""

    name: str  # the method: "probe", "full"
    role: Literal["probe", "tuned", "scratch", "against"]  # frozen, trained, from scratch, or of another run
    backbone: Backbone  # what the classifier was made from
    classifier: Classifier
    preprocess: Preprocess
    temperature: float  # logits are divided by it
    validation_accuracy: float  # fraction; the probe's is cross-validated when it is fitted to all images
    moved: int = 0  # parameters that were fitted
    held_out: HeldOut | None = None  # how sure and how right on held-out images, with one class an image
    thresholds: np.ndarray | None = None  # float64 [k], with several: from which probability on one is said


@dataclass(frozen=True)
class Tested:
    """One contender's probabilities on the test images."""

    contender: Contender
    probabilities: np.ndarray  # float64 [m k]
    right: np.ndarray  # bool [m]; or float64 [m], 0 to 1, where an image may have several classes


def put_to_test(contenders: list[Contender], material: Material, bench: Bench) -> list[Tested]:
    """Every contender on the same test images; nothing is chosen after this (P5)."""
    tested = []
    for contender in contenders:
        bench.watcher.stage(f"test, {contender.name}", total=len(material.test_labels))
        images: Rows = material.test.plain
        if contender.preprocess != material.preprocess:
            images = plain_at(material, material.test.ids, contender.preprocess, bench)
        logits = logits_of(contender.classifier, images, contender.preprocess, bench).astype(np.float64)
        found = calibrated(logits, contender.temperature, several=several(material.test_labels))
        bench.watcher.advance(len(images))
        cut = 0.5 if contender.thresholds is None else contender.thresholds
        tested.append(Tested(contender, found, right(found, material.test_labels, cut)))
    return tested
