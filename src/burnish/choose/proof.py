"""The proof: test images, looked at once, by the frozen probe and by the tuned model."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from burnish.backbones.classifier import Classifier
from burnish.backbones.spec import Backbone
from burnish.choose.answers import Answers, answers_in
from burnish.choose.features import plain_at
from burnish.choose.material import Bench, Material
from burnish.choose.rates import LEAST_TESTED, after_seconds, page_seconds
from burnish.data.cache import Rows
from burnish.data.sample import in_turn
from burnish.data.store import Picked
from burnish.labels import right, several
from burnish.measure.calibration import calibrated
from burnish.measure.held_out import HeldOut
from burnish.measure.ood import Familiarity
from burnish.terms import Preprocess

# Test images by the clock: how many at a time, and until when, in budgets, they are looked at: those that the plan counts on, and
# those besides.
_AT_A_TIME, _AT_A_TIME_SHARE, _DECODED_SHARE = 32, 0.02, 0.1
_END, _END_OF_MORE = 1.03, 1.0
_SURE = 2  # parts that are looked at in any case
# Of what is kept back for what comes beside the proof, of which a part came before: pictures make do with what is left of it, so
# for the images that plans count on little, for further ones all of it.
_BESIDE, _BESIDE_MORE = 0.25, 0.75


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A finished model, every choice about it made."""

    name: str  # the method: "probe", "full"
    role: Literal["probe", "tuned", "scratch", "against"]  # frozen, trained, from scratch, or of another run
    backbone: Backbone  # what the classifier was made from
    classifier: Classifier
    preprocess: Preprocess
    temperature: float  # logits are divided by it
    # Fraction; the probe's is cross-validated when it is fitted to all images. None where nothing could be left out.
    validation_accuracy: float | None
    moved: int = 0  # parameters that were fitted
    held_out: HeldOut | None = None  # how sure and how right on held-out images, with one class an image
    thresholds: np.ndarray | None = None  # float64 [k], with several: from which probability on one is said
    familiarity: Familiarity | None = None  # what is like its training images
    # With one class an image: entropies of the answers to val by a head that has not learnt from them, nats, float64 [v].
    val_unsure: np.ndarray | None = None
    answers: Answers | None = None  # to images of its preprocessing, where its fast form is there already

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


def put_to_test(
    contenders: list[Contender], material: Material, bench: Bench, *, by_clock: bool = False, known: int | None = None
) -> tuple[list[Tested], Material]:
    """Every contender on the same test images, and those images; nothing is chosen after this (P5).

    by_clock: within a budget on as many of them as it leaves time for, at least half of those that the plan counts on, an even
    part of each class; the clock alone settles how many, never an answer. known: so many were looked at in an earlier sitting.
    """
    parts = [_some(material, bench, known)]
    if by_clock and known is None and bench.clock.budget_seconds is not None:
        parts = _parts(material, bench, decodes=any(one.preprocess != material.preprocess for one in contenders))
    running = [_answers(one, parts, material, bench) for one in contenders]
    found: list[list[tuple[np.ndarray, np.ndarray | None]]] = [[] for _ in contenders]
    total = sum(map(len, parts))
    bench.watcher.stage(f"test, {', '.join(one.name for one in contenders)}", total=total)
    done, seconds_each = 0, 0.0
    for number, part in enumerate(parts):
        if number >= _SURE and not _in_time(done + len(part), seconds_each * len(part), material, bench):
            break
        began = bench.clock.elapsed()
        for held, answers in zip(found, running, strict=True):
            held.append(next(answers))
            if part is parts[-1]:
                answers.close()  # its form of the network is no longer needed
        seconds_each = (bench.clock.elapsed() - began) / max(1, len(part))
        done += len(part)
        bench.watcher.advance(len(part))
    looked_at = np.concatenate(parts)[:done]
    material, order = material.tested_on(looked_at), np.argsort(looked_at)
    return [_judged(*both, order, material) for both in zip(contenders, found, strict=True)], material


def _some(material: Material, bench: Bench, count: int | None) -> np.ndarray:
    """Rows of so many test images, those that come first; None: of all of them, as they stand."""
    rows = np.arange(len(material.test.ids))
    return rows if count is None or count >= len(rows) else _in_turn(material, bench)[:count]


def _in_turn(material: Material, bench: Bench) -> np.ndarray:
    """Rows of the test images, of which every beginning has an even part of each class."""
    return in_turn(material.catalog, material.test.ids, seed=bench.recipe.seed)


def _parts(material: Material, bench: Bench, *, decodes: bool) -> list[np.ndarray]:
    """Rows of the test images in the order in which they are looked at while there is time, the first two parts in any case.

    The first few are by themselves, as what makes the fast forms of the networks says nothing of the rate. decodes: whether
    images are read from their files again, which is done in larger parts.
    """
    order = _in_turn(material, bench)
    least = max(1, round(LEAST_TESTED * material.due))
    step = max(_AT_A_TIME, round((_DECODED_SHARE if decodes else _AT_A_TIME_SHARE) * len(order)))
    edges = [0, min(_AT_A_TIME, least) // 2, least, *range(least + step, len(order), step), len(order)]
    return [order[start:end] for start, end in pairwise(edges) if start < end]


def _in_time(count: int, seconds: float, material: Material, bench: Bench) -> bool:
    """Whether the budget has so many seconds left to come to so many test images."""
    budget = bench.clock.budget_seconds
    assert budget is not None, "without one all are looked at"
    share, end = (_BESIDE, _END) if count <= material.due else (_BESIDE_MORE, _END_OF_MORE)
    after = page_seconds(material, count) + share * after_seconds(budget)
    return bench.clock.elapsed() + seconds + after <= end * budget


def _answers(
    contender: Contender, parts: list[np.ndarray], material: Material, bench: Bench
) -> Generator[tuple[np.ndarray, np.ndarray | None]]:
    """(logits float64 [b k], strangeness float64 [b], where the contender knows what is familiar) of each part's images.

    Features are held for some images at a time.
    """
    familiarity, preprocess = contender.familiarity, contender.preprocess
    answering = contender.answers or answers_in(contender.classifier, preprocess, bench)

    def images(part: np.ndarray) -> Rows:
        if preprocess == material.preprocess:
            return Picked(material.test.plain, part)
        return plain_at(material, material.test.ids[part], preprocess, bench)

    for part in parts:
        both = []
        for logits, features in answering(images(part)):
            strange = None
            if familiarity is not None:
                chances = calibrated(logits, contender.temperature, several=several(material.test_labels))
                strange = familiarity.strangeness(features, chances)
            both.append((logits.astype(np.float64), strange))
        yield _joined(both, contender.classifier.classes)


def _joined(parts: list[tuple[np.ndarray, np.ndarray | None]], classes: int) -> tuple[np.ndarray, np.ndarray | None]:
    """(logits, strangeness) of several parts; strangeness is None where it is for any."""
    strange = [strangeness for _, strangeness in parts if strangeness is not None]
    logits = np.concatenate([logits for logits, _ in parts]) if parts else np.zeros((0, classes))
    return logits, np.concatenate(strange) if strange else None


def _judged(
    contender: Contender,
    parts: list[tuple[np.ndarray, np.ndarray | None]],
    order: np.ndarray,
    material: Material,
) -> Tested:
    """What a contender answered, in the order of the test images, and how right it is."""
    logits, strangeness = _joined(parts, contender.classifier.classes)
    found = calibrated(logits[order], contender.temperature, several=several(material.test_labels))
    return Tested(
        contender,
        found,
        right(found, material.test_labels, contender.cut),
        None if strangeness is None else strangeness[order],
    )
