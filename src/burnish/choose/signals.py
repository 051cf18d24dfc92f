"""What the data and the frozen network say, before anything is trained, about whether to train and how (`auto`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from burnish.backbones.spec import Backbone
from burnish.choose.decide import Decision
from burnish.choose.material import Material
from burnish.choose.probing import Probed, Probes
from burnish.labels import counts
from burnish.methods.base import attends
from burnish.recipe import Recipe, unused_in

# Images in the middle class up to which low-rank corrections of a transformer are tried instead of all its weights: of the sets
# with so few, small corrections do better on nearly all (VTAB-1k, whose ten-class sets have 100 a class: ViT-B/16 all weights
# 75.9, 83.4, 47.6 % in its three groups, prompts 78.5, 82.4, 55.0; Jia et al. 2022, arXiv:2203.12119, table 1).
_FEW_A_CLASS = 100
NOTHING = "nothing is trained"  # what a decision of this page says
_TRIED = "method"  # among a decision's numbers: the name of the method that was worth trying
_NEAR_RANK, _FAR_DOUBLINGS = 4, 3  # a rank of 4 at distance 0, of 32 at distance 1


@dataclass(frozen=True)
class Signals:
    """What is cheap to know once the frozen heads are fitted."""

    images: int  # that would be trained on
    a_class: float  # of them, in the middle class
    least: int  # of them, in the smallest class
    left_out: int  # images that the frozen heads were asked about without having learnt from them
    # Of those, or of the val images where heads that learnt from the train images alone had more wrong (val images that the data
    # gives may be of another kind), how many; with several classes an image the sum of the shares.
    wrong: float
    distance: float | None  # of the domain: see `distance_of`; None where heads see the last layer alone
    transformer: bool

    @classmethod
    def of(cls, probes: Probes, probed: Probed, material: Material, backbone: Backbone) -> Signals:
        """probed: the frozen heads that training would have to beat; backbone: what would be trained."""
        trained = counts(material.labels[material.train_rows], len(material.catalog.classes))
        return cls(
            images=len(material.train_rows),
            a_class=float(np.median(trained)),
            least=int(trained.min()),
            left_out=len(probed.choice.right),
            wrong=max(float(np.sum(1.0 - asked)) for asked in (probed.choice.right, probed.val_right)),
            distance=distance_of(probes),
            transformer=attends(backbone.module),
        )

    @property
    def hopeless(self) -> str:
        """Why no training could be shown to help; "" where one could."""
        if self.wrong:
            return ""
        return f"the frozen heads were right on all {self.left_out} images, each asked about by heads that had not learnt from it"

    def sentence(self) -> str:
        """What they are, in words."""
        far = (
            "the distance of the domain is not known: heads see the last layer alone"
            if self.distance is None
            else f"the domain is {_how_far(self.distance)}: heads on all depths take {self.distance:.0%} off the log loss of the "
            "last layer's"
        )
        middle = f"{'about ' if self.a_class % 1 else ''}{self.a_class:.0f}"
        return (
            f"{self.images:,} images to train on, {middle} in the middle class and {self.least} in the smallest; {far}"
        )


def distance_of(probes: Probes) -> float | None:
    """How far the images lie from those of the pretraining, 0 to 1.

    The share of its cross-validated log loss that the last layer's head loses when it may see all depths. The further the
    domain, the less does the last layer keep of what a task needs, and the more do the layers before it tell (Evci et al.
    2022, arXiv:2201.03529, figure 2; Yosinski et al. 2014, arXiv:1411.1792). It needs no images of the pretraining.
    """
    if probes.deep_loss is None:
        return None
    return float(np.clip(1.0 - probes.deep_loss / max(1e-12, probes.last.choice.loss), 0.0, 1.0))


def worth_trying(signals: Signals, recipe: Recipe, *, fits: Callable[[str], bool]) -> tuple[str, Decision]:
    """The method to train with, by its name with options, and why; "probe", which trains nothing, where it is not worth it.

    Where the recipe has settings of training that are not the usual ones it is tried all the same. fits: whether the network
    can be trained so.
    """
    numbers = asdict(signals)
    named = unused_in(recipe) or recipe.search or recipe.image_size != "auto"
    if signals.hopeless and not named:
        return "probe", Decision(NOTHING, f"{signals.hopeless} ({signals.sentence()})", numbers)
    far = 1 / 3 if signals.distance is None else signals.distance
    low_rank = f"lora:rank={_NEAR_RANK * 2 ** round(_FAR_DOUBLINGS * far)}"
    by_stage = recipe.stage_decay != Recipe().stage_decay  # low-rank corrections have one rate for all stages
    if signals.transformer and signals.a_class <= _FEW_A_CLASS and not by_stage and fits(low_rank):
        name, why = (
            low_rank,
            "a transformer, and few images a class: small corrections, of a rank that follows the distance",
        )
    else:
        name = "full"
        why = "a transformer, and images enough to move all of it" if signals.transformer else "a convolutional network"
    return name, Decision(f"{name} is worth trying", f"{why} ({signals.sentence()})", {**numbers, _TRIED: name})


def method_of(facts: dict[str, Any]) -> str:
    """What `auto` came to in the run of these facts: what was tried or, where nothing was, what was kept."""
    tried = (one.get("numbers", {}).get(_TRIED) for one in facts["decisions"])
    return next((name for name in tried if name is not None), facts["kept"])


def _how_far(distance: float) -> str:
    return (
        "near the pretraining"
        if distance < 1 / 4
        else "far from the pretraining"
        if distance > 1 / 2
        else "some way off"
    )
