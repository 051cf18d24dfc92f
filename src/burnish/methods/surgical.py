"""Every layer learns at a rate that follows its relative gradient."""

from __future__ import annotations

from dataclasses import dataclass

from burnish.backbones.spec import Backbone
from burnish.methods.base import Head, Tunable, assembled, frozen_stages, peak_of, stage_groups
from burnish.recipe import Recipe


@dataclass(frozen=True)
class Surgical:
    """Auto-RGN: at the start of each epoch a stage's rate becomes |gradient| / |weights|, as a share of the largest.

    Lee et al. 2023, arXiv:2210.11466: which layers should move depends on how the data differ (noise: early ones, labels:
    late ones), and relative gradients tell. The head learns at the full rate.
    """

    name: str = "surgical"
    summary: str = "all layers, each at the rate its relative gradient asks for"
    when: str = "data that differ from the pretraining in a way you cannot name"
    paper: str = "Lee et al. 2023, arXiv:2210.11466"
    trains: bool = True

    def prepare(self, backbone: Backbone, head: Head, recipe: Recipe) -> Tunable:
        """As full, with rates by gradient; before the first step the function equals the probe's."""
        freeze, classifier = frozen_stages(recipe, backbone), assembled(backbone, head)
        groups = stage_groups(classifier, backbone, freeze=freeze, decay=1.0)
        return Tunable(classifier, backbone, groups, peak_of(recipe, backbone.module), freeze, by_gradient=True)
