"""The baseline without pretraining: the same architecture from random weights."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from burnish.backbones import zoo
from burnish.backbones.spec import Backbone
from burnish.errors import RecipeError
from burnish.methods.base import Head, Tunable, assembled, peak_of, stage_groups
from burnish.recipe import Recipe
from burnish.runtime import draws

_PEAK = 2e-3  # AdamW without pretrained weights to lose


@dataclass(frozen=True)
class Scratch:
    """Training from random weights, BatchNorm statistics learnt too: what the pretraining is worth.

    He et al. 2018, arXiv:1811.08883: with enough images and epochs it catches up; with neither it does not.
    """

    name: str = "scratch"
    summary: str = "the same network from random weights: what pretraining is worth"
    when: str = "as a baseline, or for images unlike any photograph by the hundred thousand"
    paper: str = "He et al. 2018, arXiv:1811.08883"
    trains: bool = True

    def prepare(self, backbone: Backbone, head: Head, recipe: Recipe) -> Tunable:
        """All parameters, drawn from the seed; the pretrained weights and the probe's head play no part."""
        if recipe.freeze not in ("auto", 0):
            raise RecipeError(f"freeze is {recipe.freeze}, but from scratch nothing is worth freezing; leave it out")
        plain = backbone.plain or backbone
        module = zoo.rebuild(zoo.architecture_for_bundle(plain), seed=recipe.seed, drop_path=recipe.drop_path)
        fresh = replace(plain, module=module, source="random", sha256="")
        weight = draws(recipe.seed, "scratch head").normal(size=(len(head.bias), plain.width)) / plain.width**0.5
        classifier = assembled(fresh, Head(weight.astype(np.float32), np.zeros(len(head.bias), np.float32), head.form))
        groups = stage_groups(classifier, fresh, freeze=0, decay=1.0)
        peak = peak_of(recipe, module, _PEAK / peak_of(replace(recipe, learning_rate="auto"), module))
        return Tunable(classifier, fresh, groups, peak, from_scratch=True)
