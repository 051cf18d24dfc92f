"""Only the upper stages learn; what lies below runs once an image."""

from __future__ import annotations

from dataclasses import dataclass

from burnish.backbones.spec import Backbone
from burnish.errors import RecipeError, nearest, shown
from burnish.methods.base import Head, Tunable, assembled, frozen_stages, peak_of, stage_groups
from burnish.recipe import Recipe


@dataclass(frozen=True)
class Top:
    """Fine-tuning from one stage up, from the probe's head.

    stage: its name or number, as `burnish models NAME --stages` lists them, from where on everything learns; "auto" is the last
    quarter of the stages. Lower layers are general, upper ones special to the task they were trained for (Yosinski et al. 2014,
    arXiv:1411.1792). Activations at the border are kept, so that the rest of the trunk is not run in each step.
    """

    stage: str = "auto"
    name: str = "top"
    summary: str = "the last stages and the head, from kept activations"
    when: str = "a domain near the pretraining with too little time for the whole network"
    paper: str = "Yosinski et al. 2014, arXiv:1411.1792"
    trains: bool = True

    def prepare(self, backbone: Backbone, head: Head, recipe: Recipe) -> Tunable:
        """All parameters of the upper stages; before the first step the function equals the probe's."""
        freeze = max(frozen_stages(recipe, backbone), self._freeze(backbone))
        classifier = assembled(backbone, head)
        groups = stage_groups(classifier, backbone, freeze=freeze, decay=recipe.stage_decay)
        return Tunable(classifier, backbone, groups, peak_of(recipe, backbone.module), freeze)

    def _freeze(self, backbone: Backbone) -> int:
        names = [stage.name for stage in backbone.stages]
        if self.stage == "auto":
            return len(names) - max(1, len(names) // 4)
        if self.stage in names:
            return names.index(self.stage)
        if self.stage.isascii() and self.stage.isdigit() and 1 <= int(self.stage) <= len(names):
            return int(self.stage) - 1
        raise RecipeError(
            f"{backbone.name} has no stage {shown(self.stage)!r} (nearest: {nearest(self.stage, names)}); "
            f"expected one of {', '.join(names)}, or a number from 1 to {len(names)}"
        )
