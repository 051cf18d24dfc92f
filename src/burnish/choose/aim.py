"""From the recipe's words to what the training loop minimises."""

from __future__ import annotations

import numpy as np

from burnish.data.views import Augmentation
from burnish.recipe import Recipe
from burnish.train.objective import Objective

IMBALANCE = (
    10.0  # largest class over smallest from which classes are drawn equally often (the CIFAR-LT benchmarks begin there)
)


def objective_of(recipe: Recipe, labels: np.ndarray | None = None, *, classes: int = 0, half: bool) -> Objective:
    """The loss of a run. labels [n]: of the training images, for class weights; None when only time matters."""
    weights = None
    if recipe.balance == "loss" and labels is not None:
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


def augmentation_of(recipe: Recipe, *, size: int, flip: bool) -> Augmentation:
    """How training views differ from their images."""
    if recipe.augment == "none":
        return Augmentation(size=size, min_area=1.0, ratio=1.0, flip=flip, jitter=0.0, centred=True)
    return Augmentation(size=size, flip=flip, trivial=recipe.augment == "trivial")


def balance_for(recipe: Recipe, labels: np.ndarray, *, classes: int) -> str:
    """The recipe's balance, settled: "auto" draws classes equally often where the largest is ten times the smallest."""
    if recipe.balance != "auto":
        return recipe.balance
    counts = np.bincount(labels, minlength=classes).clip(min=1)
    return "sampling" if counts.max() >= IMBALANCE * counts.min() else "none"
