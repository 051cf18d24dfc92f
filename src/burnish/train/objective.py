"""What one step minimises, and the gradient of it: label smoothing, class weights, mixup, cutmix, SAM."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from burnish.backbones.fast.attention import fast_attention_gradients
from burnish.backbones.fast.fold import folded_once
from burnish.backbones.fast.kernels import sound_strides
from burnish.backbones.layers import is_drop_path
from burnish.runtime import draws
from burnish.train.features import autocast
from burnish.train.recorded import Recordings

# Of a batch, forward and backward on a CPU: takes EfficientNet-Lite0 0.5 GB, as do half as many again in bfloat16.
PIXELS_AT_ONCE = 8 * 224 * 224

_PIECE_FOR_STATISTICS = 16  # images


@dataclass(frozen=True)
class Objective:
    """The loss of a run; all that is drawn for a step follows from the seed and the step's number (P7)."""

    seed: int = 0
    label_smoothing: float = 0.0  # fraction, 0 to 1 (Szegedy et al. 2015, arXiv:1512.00567)
    half: bool = False  # compute in bfloat16, with float32 weights
    mixup: float = 0.0  # alpha of the Beta distribution, 0: never (Zhang et al. 2017, arXiv:1710.09412)
    cutmix: float = 0.0  # the same (Yun et al. 2019, arXiv:1905.04899); with both, a coin decides in each step
    sam: float = 0.0  # radius of the neighbourhood, 0: plain steps (Foret et al. 2020, arXiv:2010.01412)
    class_weights: tuple[float, ...] | None = None  # of each class's loss; their mean over images should be 1

    def mixed(self, views: Tensor, step: int) -> tuple[Tensor, np.ndarray | None, float]:
        """(views, partner of each, share of itself): the inputs of a step, mixed with each other where that is wanted."""
        if not (self.mixup or self.cutmix) or len(views) < 2:
            return views, None, 1.0
        rng = draws(self.seed, "mix", step)
        partner = rng.permutation(len(views))
        cut = bool(self.cutmix) and cuttable(views) and (not self.mixup or rng.random() < 0.5)
        alpha = self.cutmix if cut else self.mixup or self.cutmix
        share = float(rng.beta(alpha, alpha))
        other = views[torch.from_numpy(partner)]
        if not cut:
            return torch.lerp(other, views, share), partner, share
        height, width = views.shape[-2:]
        tall, wide = (round(side * math.sqrt(1.0 - share)) for side in (height, width))
        top, left = int(rng.integers(0, height - tall + 1)), int(rng.integers(0, width - wide + 1))
        views = views.clone()
        views[..., top : top + tall, left : left + wide] = other[..., top : top + tall, left : left + wide]
        return views, partner, 1.0 - tall * wide / (height * width)

    def loss(self, logits: Tensor, truth: Tensor) -> Tensor:
        """Summed over images, nats. truth: int64 [b], or [b k] where an image may have several classes.

        Then it is the binary cross-entropy summed over the classes, and smoothing takes that share of the label to all of them.
        """
        if truth.ndim == 2:
            goal, smoothing = truth.float(), self.label_smoothing
            goal = goal * (1.0 - smoothing) + smoothing / truth.shape[1] if smoothing else goal
            return F.binary_cross_entropy_with_logits(logits.float(), goal, reduction="sum")
        each = F.cross_entropy(logits.float(), truth, label_smoothing=self.label_smoothing, reduction="none")
        if self.class_weights is not None:
            # By each image's own class. torch's `weight` also weighs the share that smoothing takes to the other classes by
            # theirs: at 1 to 20 images the frequent class would be taught to be called the rare one.
            each = each * _weights(self.class_weights, logits.device)[truth]
        return each.sum()

    def shared(self, logits: Tensor, truth: Tensor, other: Tensor | None, own: float | Tensor) -> Tensor:
        """`loss`, of which `own` is that of an image's truth and the rest that of the `other` mixed into it."""
        loss = own * self.loss(logits, truth)
        return loss if other is None else loss + (1.0 - own) * self.loss(logits, other)


@functools.cache
def _weights(weights: tuple[float, ...], device: torch.device) -> Tensor:
    """On the device once, not in each step, and for good: a recorded step reads it where it lies."""
    return torch.tensor(weights, device=device)


def cuttable(views: Tensor) -> bool:
    """Whether a patch of one can stand in another: of images and maps, not of tokens, nor of maps with their channels last."""
    return views.ndim == 4 and views.shape[-1] == views.shape[-2]


def step(
    module: nn.Module,
    optimiser: torch.optim.Optimizer,
    views: Tensor,
    labels: Tensor,
    objective: Objective,
    number: int,
    norms: list[float] | None = None,
    recordings: Recordings | None = None,
) -> float:
    """One optimiser step; the loss before it, nats, the mean over classes where an image may have several.

    Nothing is changed when the loss or the gradient is not finite.

    number: of the step, the address of what is drawn for it. norms: takes the length of the gradient before it is cut to 1.
    recordings: of this network's gradients, where the device can play them.
    """
    statistics = _statistics(module)
    kept = [one.clone() for one in statistics]
    losses = backward(module, optimiser, views, labels, objective, number, recordings)
    first = [one.clone() for one in statistics] if objective.sam else []
    parameters = [one for group in optimiser.param_groups for one in group["params"] if one.grad is not None]
    if objective.sam:
        with _climbed(parameters, objective.sam) as finite:
            if not finite:
                return _undone(statistics, kept)
            backward(module, optimiser, views, labels, objective, number, recordings)
        # Those of the weights themselves, not of the climbed ones
        for one, value in zip(statistics, first, strict=True):
            one.copy_(value)
    norm = nn.utils.clip_grad_norm_(parameters, 1.0)
    # Read together: each reading waits until an accelerator has done all that it was given.
    *parts, length = torch.cat([losses, norm.detach().reshape(1).to(losses.device)]).cpu().tolist()
    loss = sum(parts)
    if not math.isfinite(length) or not math.isfinite(loss):
        return _undone(statistics, kept)
    if norms is not None:
        norms.append(length)
    optimiser.step()
    for group in optimiser.param_groups:  # L2-SP's decay towards the start, decoupled as AdamW's towards zero
        for parameter, start in zip(group["params"], group.get("starts", ()), strict=False):
            with torch.no_grad():
                parameter.lerp_(start, min(1.0, group["lr"] * group["pull"]))
    return loss / labels.shape[1] if labels.ndim == 2 else loss


def _statistics(module: nn.Module) -> list[Tensor]:
    """What BatchNorms that learn their statistics have of them."""
    norms = [layer for layer in module.modules() if layer.training and isinstance(layer, _BatchNorm)]
    return [one for layer in norms for one in layer.buffers()]


def _undone(statistics: list[Tensor], kept: list[Tensor]) -> float:
    """The statistics as they were before a step that gave no numbers; its loss, not a number."""
    for one, value in zip(statistics, kept, strict=True):
        one.copy_(value)
    return float("nan")


def backward(
    module: nn.Module,
    optimiser: torch.optim.Optimizer,
    views: Tensor,
    labels: Tensor,
    objective: Objective,
    number: int,
    recordings: Recordings | None = None,
) -> Tensor:
    """The gradient of the batch's mean loss, in place; returns the loss of each piece of it, nats, [p], whose sum is the batch's.

    Nothing is waited for: an accelerator may still be at it.
    """
    views, partner, own = objective.mixed(views, number)
    other = None if partner is None else labels[torch.from_numpy(partner)]
    first = optimiser.param_groups[0]  # which keeps how many pieces a device without memory for fewer has needed
    pieces = max(_pieces(module, views, half=objective.half), min(first.get("pieces", 1), len(views)))
    while True:
        if (
            recordings is not None
            and recordings.possible
            and pieces == 1
            and not (_draws(module) or _learns_statistics(module))
        ):
            played = _played(recordings, module, optimiser, views, labels, other, own, objective)
            if played is not None:
                return played
        optimiser.zero_grad(set_to_none=True)
        try:
            return _gradient_in(pieces, module, views, labels, other, own, objective, number)
        except torch.OutOfMemoryError:
            if pieces >= len(views) or _learns_statistics(module):
                raise
            pieces = first["pieces"] = min(2 * pieces, len(views))


def _gradient_in(
    pieces: int,
    module: nn.Module,
    views: Tensor,
    labels: Tensor,
    other: Tensor | None,
    own: float,
    objective: Objective,
    number: int,
) -> Tensor:
    """Add up the gradient of so many pieces of a batch; returns their losses, nats, [p]."""
    losses: list[Tensor] = []
    parts = np.array_split(np.arange(len(views)), pieces)
    here = views.device.type == "cpu"
    once = folded_once(module) if pieces > 1 else nullcontext()
    quick, sound = fast_attention_gradients(half=objective.half and here), sound_strides() if here else nullcontext()
    with addressed(module, objective.seed, number), once, quick, sound:
        for rows in parts:
            place = slice(int(rows[0]), int(rows[-1]) + 1)
            with autocast(views.device, objective.half):
                logits = module(views[place])
            share = objective.shared(logits, labels[place], None if other is None else other[place], own) / len(views)
            share.backward()
            losses.append(share.detach())
    return torch.stack(losses)


def _played(
    recordings: Recordings,
    module: nn.Module,
    optimiser: torch.optim.Optimizer,
    views: Tensor,
    labels: Tensor,
    other: Tensor | None,
    own: float,
    objective: Objective,
) -> Tensor | None:
    """The same by a recording of the batch in one piece; None where there is none."""

    def loss_of(views: Tensor, labels: Tensor, other: Tensor | None = None, own: float | Tensor = 1.0) -> Tensor:
        with autocast(views.device, objective.half):
            logits = module(views)
        return objective.shared(logits, labels, other, own) / len(views)

    learnt = [one for group in optimiser.param_groups for one in group["params"]]
    mixed = () if other is None else (other, torch.full((), own, device=views.device))
    return recordings.gradient(module, learnt, loss_of, (views, labels, *mixed))


@contextmanager
def addressed(module: nn.Module, seed: int, number: int) -> Iterator[None]:
    """Dropout and drop path draw from torch's own generator: for this step it starts at an address of its own (P7)."""
    if not _draws(module):
        yield
        return
    device = next(module.parameters()).device
    start = int(draws(seed, "dropout", number).integers(2**63 - 1))
    apples = torch.mps.get_rng_state() if device.type == "mps" else None
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(start)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(start)
        if apples is not None:
            torch.mps.manual_seed(start)
        try:
            yield
        finally:
            if apples is not None:
                torch.mps.set_rng_state(apples)


def _draws(module: nn.Module) -> bool:
    return any(layer.training and draws_in_training(layer) for layer in module.modules())


def draws_in_training(layer: nn.Module) -> bool:
    """Whether the layer drops at random while training."""
    return isinstance(layer, nn.modules.dropout._DropoutNd) or is_drop_path(layer)


@contextmanager
def _climbed(parameters: list[nn.Parameter], radius: float) -> Iterator[bool]:
    """The weights moved by `radius` along the gradient, and put back after; whether the gradient was finite."""
    with torch.no_grad():
        norm = torch.stack([one.grad.norm() for one in parameters if one.grad is not None]).norm()
        finite = bool(torch.isfinite(norm))
        before = [one.detach().clone() for one in parameters]
        if finite:
            step = radius / (norm.item() + 1e-12)
            for one in parameters:
                assert one.grad is not None
                one.add_(one.grad, alpha=step)
    yield finite
    with torch.no_grad():
        for one, value in zip(parameters, before, strict=True):
            one.copy_(value)


def _pieces(module: nn.Module, views: Tensor, *, half: bool = False) -> int:
    """In how many pieces a batch goes through the network one after the other, so that memory on a CPU stays small.

    Where BatchNorm is frozen images do not see each other: the gradient is that of the whole batch, up to rounding. Where it
    learns its statistics (from scratch) they are those of a piece, so pieces are not small.
    """
    images = views.shape[0]
    maps = views.ndim == 4 and views.shape[-1] == views.shape[-2]
    pixels = views.shape[-1] ** 2 if maps else views[0].numel() / 3  # of kept tokens, or Swin's maps, as much memory
    if views.device.type != "cpu":
        return 1
    most = max(1, images // _PIECE_FOR_STATISTICS) if _learns_statistics(module) else images
    return min(most, pieces_of(images, pixels, half=half))


def pieces_of(images: int, pixels: float, *, half: bool) -> int:
    """In how many pieces a CPU takes so many images of so many pixels each."""
    return math.ceil(images * pixels / (PIXELS_AT_ONCE * (1.5 if half else 1.0)))


def has_batch_norm(module: nn.Module) -> bool:
    """Whether any of its layers normalises by a batch's statistics, or by those it has kept."""
    return any(isinstance(layer, _BatchNorm) for layer in module.modules())


def _learns_statistics(module: nn.Module) -> bool:
    """Whether images of a batch see each other."""
    return any(layer.training and isinstance(layer, _BatchNorm) for layer in module.modules())
