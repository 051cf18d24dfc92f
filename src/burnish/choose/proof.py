"""The proof: test images, looked at once, by the frozen probe and by the tuned model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from burnish.backbones.classifier import Classifier
from burnish.backbones.spec import Backbone
from burnish.choose.material import Bench, Material
from burnish.choose.probing import plain_at
from burnish.choose.tuning import logits_and_features, logits_of
from burnish.data.cache import Rows
from burnish.labels import right, several
from burnish.measure.calibration import calibrated
from burnish.measure.held_out import HeldOut
from burnish.measure.ood import Familiarity
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
    familiarity: Familiarity | None = None  # what is like its training images

    @property
    def cut(self) -> float | np.ndarray:
        """From which probability on one of several classes is said."""
        return 0.5 if self.thresholds is None else self.thresholds


@dataclass(frozen=True)
class Tested:
    """One contender's probabilities on the test images."""

    contender: Contender
    probabilities: np.ndarray  # float64 [m k]
    right: np.ndarray  # bool [m]; or float64 [m], 0 to 1, where an image may have several classes
    strangeness: np.ndarray | None = None  # float64 [m], where the contender knows what is familiar

    @property
    def said(self) -> np.ndarray:
        """Which of several classes an image were answered, bool [m k]."""
        return self.probabilities >= self.contender.cut


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
        tested.append(Tested(contender, found, right(found, material.test_labels, contender.cut), strangeness))
    return tested


def _answers(contender: Contender, images: Rows, bench: Bench) -> tuple[np.ndarray, np.ndarray | None]:
    """(logits float64 [m k], strangeness float64 [m]) of plain images; features are held for some images at a time."""
    familiarity, classifier = contender.familiarity, contender.classifier
    if familiarity is None or not len(images):
        return logits_of(classifier, images, contender.preprocess, bench).astype(np.float64), None
    parts = logits_and_features(classifier, images, contender.preprocess, bench)
    both = [(logits.astype(np.float64), familiarity.strangeness(features)) for logits, features in parts]
    logits, strangeness = (np.concatenate(column) for column in zip(*both, strict=True))
    return logits, strangeness
