"""Every layer learns, earlier stages more slowly, from the probe's head (LP-FT)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from burnish.backbones.classifier import Classifier
from burnish.backbones.spec import Backbone
from burnish.errors import RecipeError
from burnish.methods.base import Group, Head, Tunable, assembled
from burnish.recipe import Recipe

# "Never at or above 5e-4 on a whole ViT" (design, evidence): transformers lose their pretraining at rates that suit CNNs.
_PEAK_CNN = 1e-3
_PEAK_ATTENTION = 2e-4


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
        classifier = assembled(backbone, head)
        peak = recipe.learning_rate if recipe.learning_rate != "auto" else default_peak(backbone.module)
        depth = len(backbone.stages)
        groups: list[Group] = []
        frozen = 0 if recipe.freeze == "auto" else recipe.freeze
        if frozen > depth:
            names = ", ".join(stage.name for stage in backbone.stages)
            raise RecipeError(f"freeze is {frozen}, but {backbone.name} has {depth} stages: {names}")
        for index, stage in enumerate(backbone.stages[frozen:], start=frozen):
            names = [f"trunk.{name}" for name in stage.parameters]
            groups += _by_decay(stage.name, names, classifier, rate=recipe.stage_decay ** (depth - 1 - index))
        groups += _by_decay("head", ["head.weight", "head.bias"], classifier, rate=1.0)
        return Tunable(classifier, tuple(groups), float(peak))


def default_peak(trunk: nn.Module) -> float:
    """The peak learning rate for AdamW: lower for transformers, which are told by their attention."""
    attends = any("attention" in type(module).__name__.lower() for module in trunk.modules())
    return _PEAK_ATTENTION if attends else _PEAK_CNN


def _by_decay(name: str, names: list[str], classifier: Classifier, *, rate: float) -> list[Group]:
    """Two groups of the parameters among `names`: matrices and kernels decay, vectors do not."""
    parameters = dict(classifier.named_parameters())
    matrices = tuple(name for name in names if name in parameters and parameters[name].ndim > 1)
    vectors = tuple(name for name in names if name in parameters and parameters[name].ndim <= 1)
    groups = [Group(name, matrices, rate, True), Group(f"{name} (vectors)", vectors, rate, False)]
    return [group for group in groups if group.parameters]
