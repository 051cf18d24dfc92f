"""Low-rank corrections to frozen layers learn, and the head; afterwards they are merged away."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from burnish.backbones.changing.lowrank import LowRank
from burnish.backbones.layers import freeze as freeze_layers
from burnish.backbones.layers import replace
from burnish.backbones.spec import Backbone
from burnish.errors import RecipeError, nearest, shown
from burnish.methods.base import (
    Group,
    Head,
    Tunable,
    assembled,
    attends,
    frozen_stages,
    head_groups,
    peak_of,
    torch_draws,
)
from burnish.recipe import Recipe

# The rate of full tuning on transformers: 1e-3, as in the vision experiments of arXiv:2106.09685's followers
_TIMES = 5.0
_TIMES_CNN = 2.0


@dataclass(frozen=True)
class LoRA:
    """Freeze the backbone; learn a low-rank correction to chosen layers, and a head.

        y = W x + (alpha / rank) · B A x        A [rank in] random    B [out rank] zero

    Hu et al. 2021, arXiv:2106.09685. A convolution counts as the matrix [out, in · h · w]. rank: small for a domain near
    the pretraining, 32 and more far from it. where: shell pattern over layer names; linear layers and convolutions that
    match are corrected. The model that is saved has plain layers.
    """

    rank: int = 8
    alpha: float = 16.0
    where: str = "*"
    name: str = "lora"
    summary: str = "low-rank corrections to linear layers and convolutions, merged when saved"
    when: str = "transformers, and large networks on few images"
    paper: str = "Hu et al. 2021, arXiv:2106.09685"
    trains: bool = True

    def prepare(self, backbone: Backbone, head: Head, recipe: Recipe) -> Tunable:
        """The corrections and the head; before the first step the function is bit-equal to the probe's."""
        if not (isinstance(self.rank, int) and 1 <= self.rank <= 1024) or not 0.0 < self.alpha < math.inf:
            raise RecipeError(f"lora has rank {self.rank} and alpha {self.alpha:g}, expected 1 to 1024 and above 0")
        freeze, classifier = frozen_stages(recipe, backbone), assembled(backbone, head)
        freeze_layers(classifier.trunk)
        allowed = {name for stage in backbone.stages[freeze:] for name in stage.parameters}
        products = {
            name: layer
            for name, layer in classifier.trunk.named_modules()
            if isinstance(layer, (nn.Linear, nn.Conv2d)) and f"{name}.weight" in allowed
        }
        # One with a gain of its own is no plain product.
        layers = {name: one for name, one in products.items() if one._parameters.keys() <= {"weight", "bias"}}
        chosen = [name for name in layers if fnmatchcase(name, self.where)]
        if products and not layers:
            raise RecipeError(
                f"every linear layer and convolution of {backbone.name} that may learn has a gain of its own, which no low-rank "
                "correction can be merged into; choose full, top, bitfit or adapter"
            )
        if not chosen:
            raise RecipeError(
                f"no linear layer or convolution of {backbone.name} that may learn matches {shown(self.where)!r} "
                f"(nearest: {nearest(self.where, list(layers))}); lora would train nothing of it"
            )
        names = []
        for name in chosen:
            rng = torch_draws(recipe.seed, "lora", name)
            layer = layers[name]
            assert isinstance(layer, (nn.Linear, nn.Conv2d))
            replace(classifier.trunk, name, LowRank(layer, self.rank, self.alpha, rng).eval())
            names += [f"trunk.{name}.low_down", f"trunk.{name}.low_up"]
        groups = (Group("low rank", tuple(names), 1.0, False), *head_groups(classifier))
        peak = peak_of(recipe, backbone.module, _TIMES if attends(backbone.module) else _TIMES_CNN)
        note, without = "", len(products) - len(layers)
        if without:
            note = (
                f"{len(chosen)} of {len(products)} linear layers and convolutions are corrected; {without} have a gain of their "
                "own, and stay as they are"
            )
        return Tunable(classifier, backbone, groups, peak, freeze, note=note)
