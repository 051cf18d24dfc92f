"""Stages begin to learn one after the other, the last one first."""

from __future__ import annotations

from dataclasses import dataclass

from burnish.backbones.spec import Backbone
from burnish.errors import RecipeError
from burnish.methods.base import Head, Tunable, assembled, frozen_stages, peak_of, stage_groups
from burnish.recipe import Recipe


@dataclass(frozen=True)
class Gradual:
    """Gradual unfreezing: the head and the last stage learn from the start, each stage below a little later.

    over: fraction of the run after which all stages learn. Howard & Ruder 2018 (ULMFiT), arXiv:1801.06146, unfreeze a
    layer an epoch with rates that fall with depth; here the stages follow in equal parts of `over`, with the recipe's
    `stage_decay`. Steps before all learn are cheaper, as no gradient goes below.
    """

    over: float = 0.5
    name: str = "gradual"
    summary: str = "the whole network, unfrozen stage by stage from the top"
    when: str = "few images, where early steps on everything would forget the pretraining"
    paper: str = "Howard & Ruder 2018, arXiv:1801.06146"
    trains: bool = True

    def prepare(self, backbone: Backbone, head: Head, recipe: Recipe) -> Tunable:
        """Groups by stage with the progress at which each begins; before the first step the function equals the probe's."""
        if not 0.0 <= self.over < 1.0:  # at 1 the first stage would begin when the run is over
            raise RecipeError(f"over is {self.over}, expected a fraction of the run, from 0 to below 1")
        freeze, classifier = frozen_stages(recipe, backbone), assembled(backbone, head)
        count = len(backbone.stages) - freeze
        starts = [self.over * (count - 1 - place) / max(1, count - 1) for place in range(count)]
        groups = stage_groups(classifier, backbone, freeze=freeze, decay=recipe.stage_decay, starts=starts)
        return Tunable(classifier, backbone, groups, peak_of(recipe, backbone.module), freeze)
