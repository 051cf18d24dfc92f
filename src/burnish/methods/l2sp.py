"""Every layer learns and is pulled back towards its pretrained weights."""

from __future__ import annotations

from dataclasses import dataclass

from burnish.backbones.spec import Backbone
from burnish.errors import RecipeError
from burnish.methods.base import Head, Tunable, assembled, frozen_stages, peak_of, stage_groups
from burnish.recipe import Recipe


@dataclass(frozen=True)
class L2SP:
    """LP-FT with weight decay towards the starting point instead of towards zero.

    Li et al. 2018, arXiv:1802.01483. pull: of the trunk's matrices and kernels, decoupled from the gradient as AdamW's
    weight decay is (a step moves a weight by rate x pull of the way back); the head decays to zero as elsewhere. There it is
    0.1, under SGD at a rate of 0.01: rate x pull x steps come to about 9. AdamW's rates and short runs add up to a hundredth.
    """

    pull: float = 10.0
    name: str = "l2sp"
    summary: str = "all layers, decaying towards the pretrained weights"
    when: str = "few images a class in a domain near the pretraining"
    paper: str = "Li et al. 2018, arXiv:1802.01483"
    trains: bool = True

    def prepare(self, backbone: Backbone, head: Head, recipe: Recipe) -> Tunable:
        """As full, with the pull; before the first step the function equals the probe's."""
        if not 0.0 < self.pull <= 100.0:
            raise RecipeError(f"pull is {self.pull:g}, expected a number above 0 and at most 100")
        freeze, classifier = frozen_stages(recipe, backbone), assembled(backbone, head)
        groups = stage_groups(classifier, backbone, freeze=freeze, decay=recipe.stage_decay)
        return Tunable(classifier, backbone, groups, peak_of(recipe, backbone.module), freeze, pull=self.pull)
