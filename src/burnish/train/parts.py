"""A classifier made ready for steps: BatchNorm folded, and, where stages are frozen, cut so that only the rest runs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from burnish.backbones.changing.surgery import InsertedDropout
from burnish.backbones.classifier import Classifier
from burnish.backbones.fast.cut import cut
from burnish.backbones.fast.fold import fold_trainable
from burnish.backbones.fast.frozen import FastForm, fold_for_inference
from burnish.backbones.fast.half import fold_trainable_half
from burnish.backbones.layers import is_drop_path
from burnish.backbones.spec import Backbone


@dataclass(frozen=True)
class Parts:
    """What is trained, and the frozen part below it."""

    trained: nn.Module  # activations (or images, where nothing is below) to logits; shares the classifier's parameters
    lower: nn.Module | None  # images to activations, the fast frozen form
    exact: nn.Module | None  # the same in float32, for what is scored


def parts_for_training(
    classifier: Classifier,
    backbone: Backbone,
    freeze: int,
    example: torch.Tensor,
    *,
    half: bool,
    moves_statistics: bool = False,
) -> Parts:
    """Fold the classifier in place, on a CPU, and cut it after `freeze` stages; uncut where the trunk cannot be divided there.

    half: it will be trained under bfloat16 autocast. Where BatchNorm learns its statistics nothing is folded.
    """
    if moves_statistics:
        return Parts(classifier.train(), None, None)
    folded: nn.Module = classifier
    # Elsewhere a norm costs less than the many small kernels that fold it in each step
    if example.device.type == "cpu":
        folded = (fold_trainable_half if half else fold_trainable)(classifier, example, inplace=True)
    assert isinstance(folded, Classifier)
    backbone.module.to(example.device)  # in a run that is taken up nothing has moved it yet
    halves = cut(folded.trunk, backbone.stages, freeze, example)
    whole = cut(backbone.module, backbone.stages, freeze, example)
    if halves is None or whole is None:
        return Parts(folded, None, None)
    trained = nn.Sequential(halves.upper, folded.dropout, folded.head)
    exact = fold_for_inference(whole.lower, example)
    return Parts(trained, fold_for_inference(whole.lower, example, half=True) if half else exact, exact)


def let_drop(classifier: Classifier, dropout: float, drop_path: float) -> None:
    """Dropout before the head or put into the trunk, and its drop paths, act in training; all else stays in eval mode."""
    if dropout:
        classifier.dropout.p = dropout
        classifier.dropout.train()
    for layer in classifier.trunk.modules():
        if isinstance(layer, InsertedDropout) or (drop_path and is_drop_path(layer)):
            layer.train()


class NotDivided(Exception):
    """The parts of a network do not give what the whole does; for one that was divided before: its weights overflow."""


class UpperForm:
    """The part of a classifier above the cut, in its fast frozen form; `parts_for_training` was cut there."""

    def __init__(self) -> None:
        self._fast, self._cut = FastForm(), ()

    def of(self, classifier: Classifier, backbone: Backbone, freeze: int, example: torch.Tensor) -> nn.Module:
        """With the weights that the classifier has now; the same object as before is not divided anew.

        example: images [b 3 s s]. NotDivided where the parts do not give what the whole does.
        """
        if not self._cut or self._cut[0] is not classifier:
            halves = cut(classifier.trunk, backbone.stages, freeze, example)
            if halves is None:
                raise NotDivided
            upper = nn.Sequential(halves.upper, classifier.dropout, classifier.head)
            with torch.no_grad():
                self._cut = (classifier, upper, halves.lower(example))
        return self._fast.of(*self._cut[1:])
