"""From the recipe's words to what the training loop minimises."""

from __future__ import annotations

import numpy as np

from burnish.data.views import Augmentation
from burnish.errors import RecipeError
from burnish.labels import several
from burnish.recipe import Recipe
from burnish.train.objective import Objective

# Largest class over smallest from which classes are drawn equally often (the CIFAR-LT benchmarks begin there)
IMBALANCE = 10.0

# A crop that cuts away one of several things makes the label wrong: collages of four, one run of a minute, mAP 84.3 % with crops
# down to a third of the area against 98.9 % for the frozen probe.
_WHOLE_AREA = 0.8


def objective_of(recipe: Recipe, labels: np.ndarray | None = None, *, classes: int = 0, half: bool) -> Objective:
    """The loss of a run. labels [n]: of the training images, for class weights; None when only time matters."""
    weights = None
    if recipe.balance == "loss" and labels is not None and not several(labels):
        counts = np.bincount(labels, minlength=classes).clip(min=1)
        weights = tuple(float(weight) for weight in len(labels) / (classes * counts))
    return Objective(
        seed=recipe.seed,
        label_smoothing=recipe.label_smoothing,
        half=half,
        mixup=recipe.mixup,
        cutmix=recipe.cutmix,
        sam=recipe.sam,
        class_weights=weights,
    )


def augmentation_of(recipe: Recipe, *, size: int, flip: bool, several: bool = False) -> Augmentation:
    """How training views differ from their images; several: whether an image may have several classes."""
    if recipe.augment == "none":  # mirrored only where that was asked for
        asked = recipe.flip == "on"
        return Augmentation(size=size, min_area=1.0, ratio=1.0, flip=asked, jitter=0.0, centred=True)
    area = _WHOLE_AREA if several else Augmentation.min_area
    return Augmentation(size=size, min_area=area, flip=flip, trivial=recipe.augment == "trivial")


def balance_for(recipe: Recipe, labels: np.ndarray, *, classes: int) -> str:
    """The recipe's balance, settled: "auto" draws classes equally often where the largest is ten times the smallest.

    With several classes an image there is no such draw: RecipeError when it is asked for.
    """
    if several(labels):
        if recipe.balance in ("sampling", "loss"):
            raise RecipeError(
                f"balance is {recipe.balance}, which needs one class an image, and these have several; use auto or none"
            )
        return "none"
    if recipe.balance != "auto":
        return recipe.balance
    counts = np.bincount(labels, minlength=classes).clip(min=1)
    return "sampling" if counts.max() >= IMBALANCE * counts.min() else "none"
