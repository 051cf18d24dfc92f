"""Only the scales and shifts of the normalisations learn, and the head."""

from __future__ import annotations

from dataclasses import dataclass

from burnish.backbones.spec import Backbone
from burnish.errors import RecipeError
from burnish.methods.base import Head, Tunable, assembled, by_decay, frozen_stages, head_groups, peak_of
from burnish.recipe import Recipe

_TIMES = 3.0  # the rate of full tuning: a thousandth of the parameters has the same way to go


@dataclass(frozen=True)
class Norms:
    """The affine parameters of BatchNorm, LayerNorm and the like; statistics stay the pretrained ones.

    Frankle et al. 2020, arXiv:2003.00152: these alone can carry a task. Less than one in a hundred of the parameters
    learn, so little can be forgotten and little is to be stored.
    """

    name: str = "norms"
    summary: str = "scales and shifts of the normalisations, and the head"
    when: str = "few images, or many models of one trunk to store"
    paper: str = "Frankle et al. 2020, arXiv:2003.00152"
    trains: bool = True

    def prepare(self, backbone: Backbone, head: Head, recipe: Recipe) -> Tunable:
        """The normalisations of the stages that learn; before the first step the function equals the probe's."""
        freeze, classifier = frozen_stages(recipe, backbone), assembled(backbone, head)
        allowed = {f"trunk.{name}" for stage in backbone.stages[freeze:] for name in stage.parameters}
        names = [
            f"{layer}.{own}"
            for layer, module in classifier.named_modules()
            if "norm" in type(module).__name__.lower() and not any(list(one.parameters()) for one in module.children())
            for own, _ in module.named_parameters(recurse=False)
            if f"{layer}.{own}" in allowed
        ]
        if not names:
            kinds = sorted({type(module).__name__ for module in backbone.module.modules() if any(module._parameters)})
            raise RecipeError(
                f"{backbone.name} has no normalisation with a scale or shift in the stages that learn, so norms would train "
                f"nothing of it (layers with weights: {', '.join(kinds)}); choose full, lora or bitfit"
            )
        groups = (*by_decay("norms", names, classifier), *head_groups(classifier))
        return Tunable(classifier, backbone, groups, peak_of(recipe, backbone.module, _TIMES), freeze)
