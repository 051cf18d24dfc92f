"""Every layer learns, earlier stages more slowly, from the probe's head (LP-FT)."""

from __future__ import annotations

from dataclasses import dataclass

from burnish.backbones.spec import Backbone
from burnish.methods.base import Head, Tunable, assembled, frozen_stages, peak_of, stage_groups
from burnish.recipe import Recipe


@dataclass(frozen=True)
class Full:
    """Linear probing, then fine-tuning of the whole network.

    Kumar et al. 2022, arXiv:2202.10054: a head that starts fitted does not distort the features in the first steps.
    AdamW; each stage learns at `stage_decay` times the rate of the one after it; no weight decay on biases and norms;
    BatchNorm statistics stay the pretrained ones, its scale and shift learn. The recipe's `freeze` leading stages stay.
    """

    name: str = "full"
    summary: str = "LP-FT: head from the probe, then all layers, earlier ones more slowly"
    when: str = "a domain unlike the pretraining, or enough images and minutes"
    paper: str = "Kumar et al. 2022, arXiv:2202.10054"
    trains: bool = True

    def prepare(self, backbone: Backbone, head: Head, recipe: Recipe) -> Tunable:
        """All parameters that are not frozen, in groups by stage; before the first step the function equals the probe's."""
        classifier, freeze = assembled(backbone, head), frozen_stages(recipe, backbone)
        groups = stage_groups(classifier, backbone, freeze=freeze, decay=recipe.stage_decay)
        return Tunable(classifier, backbone, groups, peak_of(recipe, backbone.module), freeze)
