"""Which weights are kept: by validation images, as they are and perturbed in ways that the proof does not use."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from burnish.backbones.classifier import Classifier
from burnish.data.cache import Rows
from burnish.data.perturbations import perturbed
from burnish.labels import right, several
from burnish.measure.attack import Ball, Target, strongest
from burnish.measure.calibration import calibrated
from burnish.measure.gains import beats
from burnish.measure.reading import Calibrated
from burnish.run.harden.ground import Ground
from burnish.runtime import evenly

VIEWS, _MOST = 3, 1000  # perturbed views of each validation image, and images at most
_ATTACKED, _STEPS = 64, 5  # images at most that are attacked, and steps: more than the one that was trained on
SHARES = (0.25, 0.5, 0.75)  # of the way from the run's weights to the hardened ones
ORIGINAL, HARDENED, CONTROL = "the run's own", "hardened", "the control"
_ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class Look:
    """What one set of weights says of the validation images."""

    name: str
    share: float  # of the way from the run's weights to the hardened ones; 0 is the run's own
    plain: np.ndarray  # float32 [v k], logits of the images as they are
    perturbed: np.ndarray  # float32 [views w k], logits of some of them, perturbed or attacked


def name_of(share: float, *, end: str = HARDENED) -> str:
    """What the weights so far from the run's own are called; end: those at the end of the way."""
    return ORIGINAL if share == 0.0 else end if share == 1.0 else f"{share:.2f} of the way"


def asked_of(ground: Ground) -> np.ndarray:
    """Places among the validation images, int64 [w], of those that are looked at perturbed."""
    return evenly(len(ground.material.val_rows), _MOST if ground.epsilon is None else _ATTACKED)


def perturbed_val(ground: Ground) -> np.ndarray:
    """Some validation images perturbed, plain views uint8 [VIEWS w s s 3]; drawn apart from training's perturbations."""
    rows = ground.material.val_rows[asked_of(ground)]
    plain = torch.from_numpy(np.ascontiguousarray(ground.material.fitting.plain[rows]))
    seed = ground.bench.recipe.seed
    return np.stack([perturbed(plain, rows, seed=seed, epoch=view, purpose="choose").numpy() for view in range(VIEWS)])


def attacked_val(ground: Ground, classifier: Classifier) -> np.ndarray:
    """What a network says of some validation images that were changed against itself, logits float32 [1 w k].

    By several steps: a network may have learnt to mislead the single one that it was trained on (catastrophic overfitting).
    """
    assert ground.epsilon is not None
    rows = ground.material.val_rows[asked_of(ground)]
    return attacked(
        classifier,
        ground,
        ground.material.fitting.plain,
        rows,
        ground.material.labels[rows],
        epsilon=ground.epsilon,
        starts=1,
        steps=_STEPS,
    )[None]


def attacked(
    classifier: Classifier,
    ground: Ground,
    plain: Rows,
    rows: np.ndarray,
    labels: np.ndarray,
    *,
    epsilon: float,
    starts: int,
    steps: int,
) -> np.ndarray:
    """Logits float32 [r k] of these plain views, changed within epsilon so that this very network errs (`measure.attack`)."""
    target = Target(copy.deepcopy(classifier), ground.bundle.preprocess, ground.bench.device)
    found = []
    for part in np.array_split(np.arange(len(rows)), math.ceil(len(rows) / target.at_once)):
        clean = torch.from_numpy(np.ascontiguousarray(plain[rows[part]])).float().to(ground.bench.device)
        truth = torch.from_numpy(labels[part]).to(ground.bench.device)
        seed = ground.bench.recipe.seed
        ball, ids = Ball(clean, epsilon), rows[part].tolist()
        points = strongest(target, ball, truth, ids, clean, starts=starts, steps=steps, seed=seed)
        found.append(target.logits(points).cpu().numpy())
    return np.concatenate(found)


@dataclass(frozen=True, eq=False)
class Control:
    """What plain views alone make of the run's model, for the hardened one to be held against."""

    classifier: Classifier
    plain: np.ndarray  # float32 [v k], its logits of the validation images, by which it is read
    facts: dict[str, Any]


def choose(
    looks: Sequence[Look], ground: Ground, *, lose: float, clearly: bool = True
) -> tuple[Look, list[dict[str, Any]]]:
    """The weights to keep, the first being the run's own; and what each does, as plain values.

    Of those that have no more than `lose` (a fraction) fewer of the images right as they are, the one with most right perturbed,
    where that is clearly more than the run's own: by more than a standard error of the paired difference (`measure.gains`).
    Images of a group count together. clearly=False: where it is more at all, or as many and more as they are, as a control has
    it, which is to be hard to beat: attacked, neither plain training nor the run's own weights may have any right.
    """
    scored = [_Scored.of(look, ground) for look in looks]
    first, groups = scored[0], ground.material.val_groups
    tied = None if groups is None else np.unique(groups[asked_of(ground)], return_inverse=True)[1]
    told, best = list[dict[str, Any]](), 0

    def worth(one: _Scored) -> tuple[float, float]:
        return float(one.perturbed.mean()), 0.0 if clearly else float(one.plain.mean())

    for place, (look, one) in enumerate(zip(looks, scored, strict=True)):
        gain = beats(one.perturbed, first.perturbed, groups=tied)
        allowed = bool(one.plain.mean() >= first.plain.mean() - lose - _ROUNDING)
        if place and allowed and (gain.clearly or not clearly) and worth(one) > worth(scored[best]):
            best = place
        told.append(
            {
                "name": look.name,
                "share": look.share,
                "clean": float(one.plain.mean()),
                "perturbed": float(one.perturbed.mean()),
                "gain": gain.difference,
                "standard_error": gain.error,
                "clear": gain.clearly,
                "allowed": allowed,
                "n": len(one.plain),
                "n_perturbed": len(one.perturbed),
            }
        )
    return looks[best], told


@dataclass(frozen=True, eq=False)
class _Scored:
    """How right one set of weights is."""

    plain: np.ndarray  # [v], bool or 0 to 1
    perturbed: np.ndarray  # float64 [w], the mean over the views of an image

    @classmethod
    def of(cls, look: Look, ground: Ground) -> _Scored:
        labels, some = ground.val_labels, asked_of(ground)
        read = Calibrated.of(look.plain, labels)
        views = [calibrated(one, read.temperature, several=several(labels)) for one in look.perturbed]
        of_views = np.mean([right(one, labels[some], read.cut) for one in views], axis=0)
        return cls(right(read.probabilities, labels, read.cut), of_views)
