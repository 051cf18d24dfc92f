"""The proof: test images, looked at once, by the frozen probe and by the tuned model."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np

from burnish.backbones.classifier import Both, Classifier
from burnish.backbones.frozen import fold_for_inference
from burnish.backbones.spec import Backbone
from burnish.choose.material import Bench, Material
from burnish.choose.probing import plain_at
from burnish.choose.tuning import logits_of
from burnish.data.cache import Rows
from burnish.data.views import normalised
from burnish.labels import right, several
from burnish.measure.calibration import calibrated
from burnish.measure.held_out import HeldOut
from burnish.measure.ood import Familiarity
from burnish.terms import Preprocess
from burnish.train.features import batched, outputs

_BATCHES_AT_ONCE = 64  # whose features are in memory together


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
    familiarity: Familiarity | None = None  # what is like its training images


@dataclass(frozen=True)
class Tested:
    """One contender's probabilities on the test images."""

    contender: Contender
    probabilities: np.ndarray  # float64 [m k]
    right: np.ndarray  # bool [m]; or float64 [m], 0 to 1, where an image may have several classes
    strangeness: np.ndarray | None = None  # float64 [m], where the contender knows what is familiar


def put_to_test(contenders: list[Contender], material: Material, bench: Bench) -> list[Tested]:
    """Every contender on the same test images; nothing is chosen after this (P5)."""
    tested = []
    for contender in contenders:
        bench.watcher.stage(f"test, {contender.name}", total=len(material.test_labels))
        images: Rows = material.test.plain
        if contender.preprocess != material.preprocess:
            images = plain_at(material, material.test.ids, contender.preprocess, bench)
        logits, strangeness = _answers(contender, images, bench)
        found = calibrated(logits, contender.temperature, several=several(material.test_labels))
        bench.watcher.advance(len(images))
        cut = 0.5 if contender.thresholds is None else contender.thresholds
        tested.append(Tested(contender, found, right(found, material.test_labels, cut), strangeness))
    return tested


def _answers(contender: Contender, images: Rows, bench: Bench) -> tuple[np.ndarray, np.ndarray | None]:
    """(logits float64 [m k], strangeness float64 [m]) of plain images; features are held for some images at a time."""
    familiarity, classes = contender.familiarity, contender.classifier.classes
    if familiarity is None or not len(images):
        return logits_of(contender.classifier, images, contender.preprocess, bench).astype(np.float64), None
    example = normalised(images[:2], contender.preprocess).to(bench.device)
    fast = fold_for_inference(Both(contender.classifier.to(bench.device)), example)
    batches, logits, strangeness = batched(images), [], []
    settings = {"preprocess": contender.preprocess, "device": bench.device}
    while len(both := outputs(fast, islice(batches, _BATCHES_AT_ONCE), **settings)):
        logits.append(both[:, :classes].astype(np.float64))
        strangeness.append(familiarity.strangeness(both[:, classes:]))
    return np.concatenate(logits), np.concatenate(strangeness)
