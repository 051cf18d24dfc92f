"""Only the head learns; the pretrained trunk stays bit for bit as it was."""

from __future__ import annotations

from dataclasses import dataclass

from burnish.backbones.spec import Backbone
from burnish.methods.base import Head, Tunable, assembled
from burnish.recipe import Recipe


@dataclass(frozen=True)
class Probe:
    """A linear head on frozen features: shrinkage LDA or L2 logistic regression, chosen by cross-validation.

    The baseline that every tuned model must beat. Features are computed once an image.
    """

    name: str = "probe"
    summary: str = "frozen trunk, linear head (LDA or logistic, cross-validated)"
    when: str = "few images, a domain close to the pretraining, or seconds to spend"
    paper: str = "Kornblith et al. 2019, arXiv:1805.08974"
    trains: bool = False

    def prepare(self, backbone: Backbone, head: Head, recipe: Recipe) -> Tunable:
        """The frozen trunk with the fitted head; nothing is left to train."""
        return Tunable(assembled(backbone, head), backbone, groups=(), peak_learning_rate=0.0)


@dataclass(frozen=True)
class MultiProbe:
    """A linear head on frozen features of all depths: mean and maximum of what each block gives.

    Head2Toe, Evci et al. 2022, arXiv:2201.03529, with principal coordinates and cross-validated shrinkage in place of
    its group lasso. It costs one pass as the probe does; of networks wider than 10,240 features in all, every second,
    third, … block is used.
    """

    name: str = "multiprobe"
    summary: str = "frozen trunk, linear head on the outputs of all its blocks"
    when: str = "a domain unlike the pretraining, and seconds to spend"
    paper: str = "Evci et al. 2022, arXiv:2201.03529"
    trains: bool = False

    def prepare(self, backbone: Backbone, head: Head, recipe: Recipe) -> Tunable:
        """The frozen trunk with the fitted head; nothing is left to train."""
        return Tunable(assembled(backbone, head), backbone, groups=(), peak_learning_rate=0.0)
