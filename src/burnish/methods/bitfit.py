"""Only the biases learn, and the head."""

from __future__ import annotations

from dataclasses import dataclass

from burnish.backbones.spec import Backbone
from burnish.errors import RecipeError
from burnish.methods.base import Head, Tunable, assembled, by_decay, frozen_stages, head_groups, peak_of
from burnish.recipe import Recipe

_TIMES = 3.0  # the rate of full tuning: a thousandth of the parameters has the same way to go


@dataclass(frozen=True)
class BitFit:
    """Every bias of the trunk, the shifts of the normalisations included, and the head.

    Ben Zaken et al. 2021, arXiv:2106.10199. The networks burnish knows have a bias at every normalisation or layer.
    """

    name: str = "bitfit"
    summary: str = "all biases, and the head"
    when: str = "few images, transformers above all"
    paper: str = "Ben Zaken et al. 2021, arXiv:2106.10199"
    trains: bool = True

    def prepare(self, backbone: Backbone, head: Head, recipe: Recipe) -> Tunable:
        """The biases of the stages that learn; before the first step the function equals the probe's."""
        freeze, classifier = frozen_stages(recipe, backbone), assembled(backbone, head)
        parameters = dict(classifier.named_parameters())
        names = [
            f"trunk.{name}"
            for stage in backbone.stages[freeze:]
            for name in stage.parameters
            if (name == "bias" or name.endswith((".bias", "_bias"))) and f"trunk.{name}" in parameters
        ]
        if not names:
            raise RecipeError(
                f"{backbone.name} has no bias in the stages that learn, so bitfit would train nothing of it; "
                "choose full, norms or lora"
            )
        groups = (*by_decay("biases", names, classifier), *head_groups(classifier))
        return Tunable(classifier, backbone, groups, peak_of(recipe, backbone.module, _TIMES), freeze)
