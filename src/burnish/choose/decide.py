"""Which model is kept, by validation; the simpler one unless the other is better."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np

from burnish.backbones.classifier import Classifier
from burnish.backbones.head import NEIGHBOURS
from burnish.choose.evidence import Evidence
from burnish.choose.material import Material
from burnish.choose.probing import Probed, Probes
from burnish.choose.proof import Contender
from burnish.choose.tuning import Tuned
from burnish.labels import several
from burnish.measure.ood import entropies
from burnish.measure.reading import Calibrated
from burnish.methods.base import Method, assembled
from burnish.methods.heads import HeadChoice, HeadKind
from burnish.methods.table import learns_by_stage
from burnish.recipe import Recipe, unused_in

ASKED_FOR = "asked_for"  # among a decision's numbers: whether a method was kept that was not better
STOPPED = "training stopped early"


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
    return Contender(
        name=probed.name,
        role="probe",
        backbone=probed.backbone,
        classifier=classifier,
        preprocess=probed.preprocess,
        temperature=1.0,
        validation_accuracy=probed.choice.accuracy if probed.choice.asked else None,
        moved=sum(one.numel() for one in classifier.head.parameters()),
        held_out=probed.held_out,
        thresholds=probed.thresholds,
        familiarity=probed.familiarity,
    )


def tuned_contender(tuned: Tuned, material: Material, *, method: str) -> Contender:
    """The best trained candidate, its temperature fitted on the validation images."""
    labels, logits = material.labels[material.val_rows], tuned.best.logits
    read, best = Calibrated.of(logits, labels, material.catalog.grouped(material.val_ids)), tuned.best
    return Contender(
        name=method,
        role="tuned",
        backbone=tuned.backbone,
        classifier=tuned.classifier,
        preprocess=best.preprocess,
        temperature=read.temperature,
        validation_accuracy=best.accuracy,
        moved=tuned.moved,
        held_out=read.held_out,
        thresholds=read.thresholds,
        val_unsure=None if several(labels) else entropies(read.probabilities),
    )


def part_decision(material: Material) -> Decision:
    """That the budget had no time for all images."""
    used, skipped = len(material.labels) + len(material.test_labels), material.skipped
    why = f"of {used + skipped:,} images {used:,} are used, an even part of each class: the budget has no time for more"
    if material.untested:
        tested = len(material.test_labels)
        why += f"; the clock ended the proof at {tested:,} of {tested + material.untested:,} test images"
    return Decision("a part of the images", why, {"used": used, "skipped": skipped})


@dataclass(frozen=True)
class Settled:
    """A choice that is made once, before all that depends on it, and kept for when the run is taken up."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_json`."""
        told = values["decision"]
        return cls(**{**values, "decision": None if told is None else Decision(**told)})


def idle_in(recipe: Recipe, method: Method) -> Decision | None:
    """Settings of the recipe that its method has no use for."""
    if not method.trains:
        idle, why = unused_in(recipe), f"{recipe.method} trains nothing of the network"
    elif recipe.stage_decay != Recipe().stage_decay and not learns_by_stage(method):
        idle, why = ["--stage-decay"], f"{recipe.method} has one learning rate for all stages"
    else:
        return None
    return Decision(f"without effect: {', '.join(idle)}", why) if idle else None


def balance_decision(labels: np.ndarray, classes: int) -> Decision:
    """That classes are drawn equally often, and why; labels int64 [n], of the training images."""
    sizes = np.bincount(labels, minlength=classes)
    most, least = int(sizes.max()), int(max(1, sizes.min()))
    why = f"the largest class has {most:,} training images, the smallest {least:,}; each class is drawn equally often"
    return Decision("balance: sampling", why, {"largest": most, "smallest": least})


def probe_decisions(probes: Probes, probed: Probed) -> list[Decision]:
    """Why this image size, where it is not the network's own, and why this head."""
    choice, how = probed.choice, probed.choice.how
    head = Decision(
        f"head: {_head_in_words(how)}",
        _right_on(choice),
        {
            "accuracy": choice.accuracy,
            "standard_error": choice.standard_error,
            "loss": choice.loss,
            "n": choice.asked,
            "share_of_all_depths": how.share if probed.on_all_depths else 0.0,
        },
    )
    taps, last = [], probes.last.choice
    if probed.on_all_depths:
        layers = len(probed.backbone.changes[-1]["layers"])
        taps = [
            Decision(
                f"heads see {layers} depths of the network, not the last alone",
                f"cross-validated {choice.accuracy:.1%}, {choice.loss:.3f} nats, "
                f"against {last.accuracy:.1%}, {last.loss:.3f} nats",
                {"loss": choice.loss, "last_layer_loss": last.loss, "last_layer_accuracy": last.accuracy},
            )
        ]
    if probed.on_all_depths and probes.where is not None:
        taps.append(_where(probed, probes.where))
    size = [Decision(f"probe at {probed.preprocess.size} px", probes.size_reason)] if probes.size_reason else []
    return [*size, *([] if probes.rounded is None else [_rounded(probes.rounded)]), *taps, head]


def _rounded(told: dict[str, float]) -> Decision:
    """That frozen features are computed in 8 bits, and what that gains and costs."""
    why = (
        f"{told['images_per_second']:.0f} images/s against {told['float32_images_per_second']:.0f} in float32, of which they are "
        f"{told['apart']:.0%} of their spread apart; scores and answers are float32"
    )
    return Decision("frozen features in 8 bits", why, dict(told))


def _where(probed: Probed, told: dict[str, Any]) -> Decision:
    """Whether heads see where in an image something is, and why."""
    depths = sum(channels > 0 for channels in probed.backbone.changes[-1].get("pyramid", []))
    what = f"heads see where something is, at {depths} depths" if depths else "heads do not see where something is"
    if told["without"] is None:
        return Decision(what, "there was no time to ask whether it helps", dict(told))
    worse = told["with"] - told["without"]
    both = f"with halves and quarters {told['with']:.3f} nats, without {told['without']:.3f}"
    found = f"{both} ({worse:+.3f} ± {told['error']:.3f})"
    rule = "clearly worse" if not depths else "not clearly worse" if worse > 0 else "no worse"
    return Decision(what, f"{rule}: {found}, cross-validated on {told['n']} images", dict(told))


def _head_in_words(how: HeadKind) -> str:
    """A kind of head in words."""
    if how.kind == NEIGHBOURS:
        return f"{how.kind}, {how.strength:g} {'neighbours' if how.strength > 1 else 'neighbour'}"
    told = f"{how.kind}, strength {how.strength:g}"
    if how.beside is not None:
        told = f"half {told}, half {how.beside.kind}, strength {how.beside.strength:g}"
    told += f", on {how.keep:.0%} of the features" if how.keep < 1 else ""
    return told + (f", averaged with {1 - how.share:.0%} of the last layer's head" if how.share < 1 else "")


def _right_on(choice: HeadChoice) -> str:
    """How right a head is, in words."""
    if not choice.asked:
        return choice.words
    share = f"{choice.accuracy:.1%} ± {choice.standard_error:.1%}"
    told = f"right on {share} of images" if choice.right.dtype == bool else f"{share} of the classes right, of images"
    but = f"; {choice.alone} that are the only ones of their class, or of all its groups, are not counted"
    cut = (
        f"; for {choice.instead} that are the only ones of their class, or of all its groups, images of classes that were cut to "
        "one were asked"
    )
    return f"least cross-validated loss; {told} left out{but if choice.alone else ''}{cut if choice.instead else ''}"


def keep_tuned(
    probed: Probed, tuned: Tuned, material: Material, *, method: str, asked_for: bool
) -> tuple[bool, Decision]:
    """Whether the tuned model replaces the frozen one: by more than one standard error of their paired difference.

    Both learnt from the train images alone and are looked at on the same val images (`Evidence`). asked_for: the user named
    the method, so it is kept all the same.
    """
    frozen, trained = Evidence.of_frozen(probed, material), Evidence.of(tuned.best.logits, material)
    found, n = trained.against(frozen), len(material.val_rows)
    shares = [float(one.right.mean()) for one in (frozen, trained)]
    errors = [one.error for one in (frozen, trained)]
    why = (
        f"validation {shares[1]:.1%} ± {errors[1]:.1%} against {shares[0]:.1%} ± {errors[0]:.1%} for the frozen "
        f"{probed.name} ({n} images); their paired difference is {100 * found.right.difference:+.1f} ± "
        f"{100 * found.right.error:.1f} points, {-found.loss.difference:+.3f} ± {found.loss.error:.3f} nats"
    )
    if (found.right.paired, found.loss.paired) != (found.right.difference, found.loss.difference):
        why += f", for images as hard as all {len(probed.choice.told)} are to the frozen heads by cross-validation"
    numbers = {
        "tuned": shares[1],
        "probe": shares[0],
        "difference": found.right.difference,
        "standard_error": found.right.error,
        "difference_on_these": found.right.paired,
        "loss_difference": -found.loss.difference,
        "loss_standard_error": found.loss.error,
        "loss_difference_on_these": -found.loss.paired,
        "n": n,
        "candidates": {c.name: [c.accuracy, c.loss] for c in tuned.candidates},
        **({ASKED_FOR: True} if asked_for and not found.clear else {}),
    }
    what = (
        f"{method} chosen, weights: {tuned.best.name}"
        if found.clear
        else f"{probed.name} kept: {method} was not better"
    )
    if asked_for and not found.clear:
        what = (
            f"{method} kept because it was asked for, weights: {tuned.best.name}; it was not better than {probed.name}"
        )
    return found.clear or asked_for, Decision(what, why, numbers)
