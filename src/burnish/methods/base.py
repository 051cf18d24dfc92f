"""The contract of a fine-tuning method."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from burnish.backbones import head as heads
from burnish.backbones.classifier import Classifier
from burnish.backbones.spec import Backbone
from burnish.errors import RecipeError
from burnish.recipe import Recipe
from burnish.runtime import draws


class Fitted(Protocol):
    """A head that was fitted to features [n d], linear or not, for k classes."""

    @property
    def form(self) -> str: ...  # as `backbones.head` has them
    @property
    def classes(self) -> int: ...
    @property
    def width(self) -> int: ...  # d
    def logits(self, features: np.ndarray) -> np.ndarray:
        """float32 [n k] of features [n d]."""
        ...

    def fill(self, module: nn.Module) -> None:
        """Make a module of this form give these logits."""
        ...

    def arrays(self) -> dict[str, np.ndarray]:
        """All there is to it besides the form, by name."""
        ...


@dataclass(frozen=True)
class Head:
    """A linear head on features [n d]: logits = features @ weight.T + bias, of unit length for a cosine head."""

    weight: np.ndarray  # float32 [k d]
    bias: np.ndarray  # float32 [k]
    form: str = heads.LINEAR  # of the head that starts with these logits

    @property
    def classes(self) -> int:
        """k."""
        return len(self.bias)

    @property
    def width(self) -> int:
        """d."""
        return self.weight.shape[1]

    def fill(self, module: nn.Module) -> None:
        """Make a linear, hidden-layer or cosine head give these logits."""
        assert isinstance(module, heads.LinearHead | heads.MlpHead | heads.CosineHead)
        module.start_as(torch.from_numpy(self.weight), torch.from_numpy(self.bias), torch_draws(0, "head"))

    def arrays(self) -> dict[str, np.ndarray]:
        """Weight and bias."""
        return {"weight": self.weight, "bias": self.bias}

    def logits(self, features: np.ndarray) -> np.ndarray:
        """float32 [n k] of features [n d]."""
        seen = heads.seen_by(self.form, torch.from_numpy(features)).numpy()
        return seen @ self.weight.T + self.bias


@dataclass(frozen=True)
class Group:
    """Parameters that learn alike; names are those of the classifier's state dict."""

    name: str
    parameters: tuple[str, ...]
    rate: float  # fraction of the peak learning rate
    decays: bool  # whether weight decay applies
    starts: float = 0.0  # progress of the run, 0 to 1, before which they stay as they are


@dataclass(frozen=True)
class Tunable:
    """A classifier ready to be trained; a parameter in no group is frozen (P3)."""

    classifier: Classifier
    backbone: Backbone  # what the trained classifier is saved as; its module may lack what `merged` takes out again
    groups: tuple[Group, ...]
    peak_learning_rate: float
    freeze: int = 0  # leading stages in which nothing learns and which can run once an image
    pull: float = 0.0  # towards the start, as weight decay is towards zero, for what decays of the trunk (L2-SP)
    by_gradient: bool = False  # whether the groups' rates follow their relative gradients, anew each epoch (auto-RGN)
    note: str = ""  # what of the network the method leaves alone, where a user would not expect it
    from_scratch: bool = False  # whether the weights are random: then BatchNorm learns its statistics too

    @property
    def moves_statistics(self) -> bool:
        """Whether BatchNorm's running means and variances are learnt."""
        return self.from_scratch

    def movable(self) -> frozenset[str]:
        """The names of the parameters that training may change."""
        return frozenset(name for group in self.groups for name in group.parameters)

    def moving(self) -> dict[str, Tensor]:
        """All that training may change, by its name in the state dict, in the order of names."""
        movable = self.movable()
        found: dict[str, Tensor] = {n: p for n, p in self.classifier.named_parameters() if n in movable}
        if self.moves_statistics:
            found |= {n: b for n, b in self.classifier.named_buffers() if n.endswith(("running_mean", "running_var"))}
        return dict(sorted(found.items()))


class Method(Protocol):
    """One way of fine-tuning. `prepare` never changes the backbone it is given."""

    @property
    def name(self) -> str: ...
    @property
    def summary(self) -> str: ...
    @property
    def when(self) -> str: ...
    @property
    def paper(self) -> str: ...
    @property
    def trains(self) -> bool: ...  # False: `prepare` is all there is to do

    def prepare(self, backbone: Backbone, head: Head, recipe: Recipe) -> Tunable:
        """The classifier before its first step, bit-equal in function to backbone + head unless the method says other.

        RecipeError, naming what there is, when the network has nothing that the method could train.
        """
        ...


# "Never at or above 5e-4 on a whole ViT" (design, evidence): transformers lose their pretraining at rates that suit CNNs.
_PEAK_CNN = 1e-3
_PEAK_ATTENTION = 2e-4
# By class names, as timm's, torchvision's, transformers' and Keras's have them: Attention, ClassAttn, MHSA, GPSA.
_ATTENTION = re.compile(r"attention|attn|mhsa|gpsa", re.IGNORECASE)
_GATES = re.compile(
    r"^(Split|SelectiveKernel|Channel|LightChannel|Spatial|LightSpatial|Coord|SimpleCoord|EfficientLocal|Strip|(Bat)?NonLocal)"
    r"Att(n|ention)|BilinearAttn"
)


def assembled(backbone: Backbone, head: Fitted) -> Classifier:
    """Trunk and head as one new module in eval mode, on the CPU; shares nothing with the backbone."""
    classifier = Classifier.over(backbone, classes=head.classes, head=head.form).cpu()
    head.fill(classifier.head)
    return classifier.eval()


def blank_head(backbone: Backbone, recipe: Recipe, *, classes: int) -> Head:
    """A head of zeros."""
    return Head(np.zeros((classes, backbone.width), np.float32), np.zeros(classes, np.float32), recipe.head)


def blank_tunable(method: Method, backbone: Backbone, recipe: Recipe, *, classes: int) -> Tunable:
    """The method on a network with a head of zeros; RecipeError where it does not fit."""
    return method.prepare(backbone, blank_head(backbone, recipe, classes=classes), recipe)


def peak_of(recipe: Recipe, trunk: nn.Module, times: float = 1.0) -> float:
    """The recipe's peak learning rate; undecided, the default for AdamW on all of this trunk, so many times."""
    if isinstance(recipe.learning_rate, (int, float)):
        return recipe.learning_rate
    return times * (_PEAK_ATTENTION if attends(trunk) else _PEAK_CNN)


def attends(trunk: nn.Module) -> bool:
    """Whether it is a transformer, told by its attention; what convolutional networks weigh channels with is none."""
    names = {type(module).__name__ for module in trunk.modules()}
    return any(_ATTENTION.search(name) and not _GATES.search(name) for name in names)


def frozen_stages(recipe: Recipe, backbone: Backbone) -> int:
    """Leading stages that stay as they are; RecipeError with the stages there are when that is too many."""
    frozen = 0 if recipe.freeze == "auto" else recipe.freeze
    if frozen > len(backbone.stages):
        names = ", ".join(stage.name for stage in backbone.stages)
        raise RecipeError(f"freeze is {frozen}, but {backbone.name} has {len(backbone.stages)} stages: {names}")
    return frozen


def stage_groups(
    classifier: Classifier, backbone: Backbone, *, freeze: int, decay: float, starts: Sequence[float] | None = None
) -> tuple[Group, ...]:
    """Groups of all parameters above the first `freeze` stages: each stage at `decay` times the rate of the one after it.

    starts: for each stage that learns, the progress from which it does.
    """
    depth, groups = len(backbone.stages), []
    for index, stage in enumerate(backbone.stages[freeze:], start=freeze):
        names = [f"trunk.{name}" for name in stage.parameters]
        begin = starts[index - freeze] if starts is not None else 0.0
        groups += by_decay(stage.name, names, classifier, rate=decay ** (depth - 1 - index), starts=begin)
    return (*groups, *head_groups(classifier))


def _is_vector(parameter: nn.Parameter) -> bool:
    """Whether it has one number a channel, as [c], [1 1 c] or [c 1 1]."""
    return parameter.ndim <= 1 or (parameter.ndim > 2 and parameter.numel() == max(parameter.shape))


def head_groups(classifier: Classifier, rate: float = 1.0) -> list[Group]:
    """The head's own."""
    return by_decay(
        "head", [name for name, _ in classifier.named_parameters() if name.startswith("head.")], classifier, rate=rate
    )


def by_decay(
    name: str, names: Sequence[str], classifier: Classifier, *, rate: float = 1.0, starts: float = 0.0
) -> list[Group]:
    """Two groups of the parameters among `names`: matrices and kernels decay; vectors, tokens and positions do not."""
    parameters = dict(classifier.named_parameters())
    said: Any = getattr(classifier.trunk, "no_weight_decay", set)  # timm's networks tell
    kept = {f"trunk.{name}" for name in said()}
    vectors = tuple(name for name in names if name in parameters and (name in kept or _is_vector(parameters[name])))
    matrices = tuple(name for name in names if name in parameters and name not in set(vectors))
    groups = [Group(name, matrices, rate, True, starts), Group(f"{name} (vectors)", vectors, rate, False, starts)]
    return [group for group in groups if group.parameters]


def torch_draws(seed: int, *parts: str | int) -> torch.Generator:
    """The random numbers of one purpose, for torch's own functions; no global generator is used (P7)."""
    return torch.Generator().manual_seed(int(draws(seed, *parts).integers(2**63 - 1)))


def options_of(method: Method) -> dict[str, Any]:
    """What can be set in a method's name, as in lora:rank=4, with the values in force."""
    told = ("name", "summary", "when", "paper", "trains")
    return {key: value for key, value in vars(method).items() if key not in told}


def needs_linear(head: Fitted) -> Head:
    """The head, for what only a linear one can start; RecipeError for another."""
    if not isinstance(head, Head):
        raise RecipeError(f"training starts from a linear head, not from {head.form.partition(':')[0]}")
    return head
