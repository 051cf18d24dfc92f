"""Only the head learns; the pretrained trunk stays bit for bit as it was."""

from __future__ import annotations

from dataclasses import dataclass

from burnish.backbones.head import LINEAR, NEIGHBOURS
from burnish.backbones.spec import Backbone
from burnish.errors import RecipeError, nearest, shown
from burnish.methods.base import Head, Tunable, assembled
from burnish.methods.heads import KINDS, LINEAR_KINDS
from burnish.recipe import Recipe

_AUTO = "auto"


@dataclass(frozen=True)
class Probe:
    """A head on frozen features: shrinkage LDA or L2 logistic regression, chosen by cross-validation, or of few images both.

    The baseline that every tuned model must beat. Features are computed once an image. head: one kind alone, lda,
    logistic or knn (nearest neighbours weighted by cosine similarity, arXiv:1805.01978; their number and temperature
    are cross-validated, and the package then holds the features of all training images).
    """

    name: str = "probe"
    summary: str = "frozen trunk, a head on its features (LDA or logistic, cross-validated; or knn)"
    when: str = "few images, a domain close to the pretraining, or seconds to spend"
    paper: str = "Kornblith et al. 2019, arXiv:1805.08974"
    trains: bool = False
    head: str = _AUTO

    def __post_init__(self) -> None:
        _check(self.name, self.head)

    def prepare(self, backbone: Backbone, head: Head, recipe: Recipe) -> Tunable:
        """The frozen trunk with the fitted head; nothing is left to train."""
        return _untrained(self.name, self.head, backbone, head, recipe)


@dataclass(frozen=True)
class MultiProbe:
    """A head, of the kinds of `probe`, on frozen features of all depths: mean and maximum of what each block gives.

    Head2Toe, Evci et al. 2022, arXiv:2201.03529, with principal coordinates and cross-validated shrinkage in place of
    its group lasso. It costs one pass as the probe does; of networks wider than 10,240 features in all, every second,
    third, … block is used. The maps of the last blocks are also compared by halves and quarters, unless cross-validation on
    some of the images finds that clearly worse (`changing.taps`). It is averaged with the head of `probe` where cross-validation
    likes that better (`methods.pooled`). keep: a linear head looks at this share of the features, those that one on all of
    them leans on most; with shrinkage all of them have done better (docs/methods.md).
    """

    name: str = "multiprobe"
    summary: str = "frozen trunk, a head on the outputs of all its blocks"
    when: str = "a domain unlike the pretraining, and seconds to spend"
    paper: str = "Evci et al. 2022, arXiv:2201.03529"
    trains: bool = False
    head: str = _AUTO
    keep: float = 1.0

    def __post_init__(self) -> None:
        _check(self.name, self.head)
        if not 0.0 < self.keep <= 1.0:
            raise RecipeError(f"keep of {self.name} is {self.keep:g}, expected a share above 0, at most 1")
        if self.keep < 1.0 and self.head == NEIGHBOURS:
            raise RecipeError(f"keep is for linear heads; {self.name}:head={NEIGHBOURS} looks at all features")

    def prepare(self, backbone: Backbone, head: Head, recipe: Recipe) -> Tunable:
        """The frozen trunk with the fitted head; nothing is left to train."""
        return _untrained(self.name, self.head, backbone, head, recipe)


def heads_of(method: object) -> tuple[tuple[str, ...], float]:
    """(kinds of heads, share of the features) that a frozen method chooses among; for others what training may start from."""
    asked = method.head if isinstance(method, Probe | MultiProbe) else _AUTO
    return LINEAR_KINDS if asked == _AUTO else (asked,), method.keep if isinstance(method, MultiProbe) else 1.0


def _untrained(name: str, kind: str, backbone: Backbone, head: Head, recipe: Recipe) -> Tunable:
    if kind == NEIGHBOURS and recipe.head != LINEAR:
        raise RecipeError(f"head is {recipe.head}, but {name}:head={kind} keeps neighbours; leave one of the two out")
    return Tunable(assembled(backbone, head), backbone, groups=(), peak_learning_rate=0.0)


def _check(name: str, head: str) -> None:
    choices = (_AUTO, *KINDS)
    if head not in choices:
        raise RecipeError(
            f"the head of {name} is {shown(repr(head))}, expected {', '.join(choices)}; nearest: {nearest(head, choices)}"
        )
