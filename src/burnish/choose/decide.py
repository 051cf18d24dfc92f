"""Which model is kept, by validation; the simpler one unless the other is better."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from burnish.backbones.classifier import Classifier
from burnish.choose.material import Material
from burnish.choose.probing import Probed
from burnish.choose.proof import Contender
from burnish.choose.tuning import Tuned
from burnish.measure.calibration import temperature
from burnish.methods.base import assembled


@dataclass(frozen=True)
class Decision:
    """One choice the run made, with its reason and the numbers behind it."""

    what: str
    why: str
    numbers: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values for result.json."""
        return {"what": self.what, "why": self.why, "numbers": self.numbers}


def probe_contender(probed: Probed) -> Contender:
    """The frozen trunk under the head that was fitted to the train and val images."""
    classifier: Classifier = assembled(probed.backbone, probed.choice.head)
    # The head's own temperature is in its weights already: cross-validation chose it.
    return Contender(probed.name, "probe", probed.backbone, classifier, probed.preprocess, 1.0, probed.choice.accuracy)


def tuned_contender(tuned: Tuned, material: Material, *, method: str) -> Contender:
    """The best trained candidate, its temperature fitted on the validation images."""
    labels = material.labels[material.val_rows]
    return Contender(
        method,
        "tuned",
        tuned.backbone,
        tuned.classifier,
        tuned.best.preprocess,
        temperature(tuned.best.logits, labels),
        tuned.best.accuracy,
    )


def probe_decisions(probed: Probed) -> list[Decision]:
    """Why this image size, where it is not the network's own, and why this head."""
    choice = probed.choice
    head = Decision(
        f"head: {choice.how.kind}, strength {choice.how.strength:g}",
        f"least cross-validated loss; right on {choice.accuracy:.1%} ± {choice.standard_error:.1%} of images left out",
        {
            "accuracy": choice.accuracy,
            "standard_error": choice.standard_error,
            "loss": choice.loss,
            "n": len(choice.right),
        },
    )
    size = [Decision(f"probe at {probed.preprocess.size} px", probed.size_reason)] if probed.size_reason else []
    return [*size, head]


def keep_tuned(probed: Probed, tuned: Tuned, *, method: str, asked_for: bool) -> tuple[bool, Decision]:
    """Whether the tuned model replaces the probe: it has more val images right than the probe with the same training.

    asked_for: the user named the method, so it is kept all the same.
    """
    right = probed.val_right
    before, after, n = float(right.mean()), tuned.best.accuracy, len(right)
    better = after > before
    errors = [float(np.sqrt(value * (1 - value) / n)) for value in (before, after)]
    why = f"validation {after:.1%} ± {errors[1]:.1%} against {before:.1%} ± {errors[0]:.1%} for the probe ({n} images)"
    numbers = {
        "tuned": after,
        "probe": before,
        "n": n,
        "candidates": {c.name: [c.accuracy, c.loss] for c in tuned.candidates},
    }
    what = f"{method} kept, weights: {tuned.best.name}" if better else f"probe kept: {method} was not better"
    if asked_for and not better:
        what = f"{method} kept because it was asked for, weights: {tuned.best.name}; it was not better than the probe"
    return better or asked_for, Decision(what, why, numbers)
