"""Test images that deserve a look: the worst mistakes of a model, and what it was least sure of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from burnish.choose.material import Material
from burnish.choose.proof import Tested
from burnish.labels import classes_of, log_losses, several

MISTAKES, UNSURE = 24, 12  # the most of each


@dataclass(frozen=True)
class Case:
    """One test image, and the class it is about."""

    row: int  # of the test images
    kind: Literal["mistake", "unsure"]
    about: int  # class: the answer; with several an image, the one that the answer is furthest off in


def cases_of(tested: Tested, labels: np.ndarray) -> list[Case]:
    """Mistakes, the surest first, then the answers that were nearest to another.

    With several classes an image: the images with a wrong class that cost most loss, and no unsure ones.
    """
    chances = tested.probabilities
    if several(labels):
        return _of_several(tested, labels)
    answers, order = chances.argmax(1), np.sort(chances, 1)
    wrong = np.flatnonzero(~tested.right)
    worst = wrong[np.argsort(-chances[wrong].max(1), kind="stable")][:MISTAKES]
    margin = order[:, -1] - order[:, -2] if chances.shape[1] > 1 else np.ones(len(chances))
    known = set(worst.tolist())
    unsure = [int(row) for row in np.argsort(margin, kind="stable") if int(row) not in known][:UNSURE]
    found = [Case(int(row), "mistake", int(answers[row])) for row in worst]
    return [*found, *(Case(row, "unsure", int(answers[row])) for row in unsure)]


def first_of_each(cases: list[Case], *, most: int) -> list[Case]:
    """So many of the cases, of mistakes and unsure ones the same share, each from the first on."""
    if len(cases) <= most:
        return cases
    mistakes = sum(case.kind == "mistake" for case in cases)
    kept = -(-most * mistakes // len(cases))
    return [*cases[:kept], *cases[mistakes : mistakes + most - kept]]


def told(case: Case, tested: Tested, material: Material) -> dict[str, Any]:
    """The case in names: {path, kind, label, predicted, about, confidence}; `about` is None where the answer says it."""
    chances, classes, labels = tested.probabilities[case.row], material.catalog.classes, material.test_labels
    many = several(labels)
    answered = np.flatnonzero(tested.said[case.row]).tolist() if many else [case.about]
    return {
        "path": material.catalog.paths[material.test.ids[case.row]],
        "kind": case.kind,
        "label": names_of(classes_of(labels, case.row), classes),
        "predicted": names_of(answered, classes),
        "about": classes[case.about] if many else None,
        "confidence": float(max(chances[case.about], 1.0 - chances[case.about]) if many else chances.max()),
    }


def names_of(found: list[int], classes: tuple[str, ...]) -> str:
    """Class names in a row."""
    return ", ".join(classes[one] for one in found) or "no class"


def _of_several(tested: Tested, labels: np.ndarray) -> list[Case]:
    chances, losses = tested.probabilities, log_losses(tested.probabilities, labels)
    wrong = np.flatnonzero((tested.said != labels).any(1))
    worst = wrong[np.argsort(-losses[wrong], kind="stable")][:MISTAKES]
    return [Case(int(row), "mistake", int(np.abs(chances[row] - labels[row]).argmax())) for row in worst]
