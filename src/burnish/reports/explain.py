"""Where in an image a classifier looks: Grad-CAM, for networks of maps and of tokens, and a check that it tells of the weights.

Selvaraju et al. 2017, arXiv:1610.02391. For transformers the maps are the patch tokens of the last layer that the class depends
on, laid out as the grid that they are.
"""

from __future__ import annotations

import copy
import io
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from burnish.backbones.classifier import Classifier
from burnish.errors import ModelError
from burnish.reports.rollout import patches_of, rollout
from burnish.runtime import draws

_LAST = 24  # layers from the end that are looked at
_PIXELS_AT_ONCE = 2 * 224 * 224  # forward and backward; each 224-px image takes EfficientNet-Lite0 0.14 GB
_CHECKED = 4  # images whose maps are compared with those of shuffled weights
_ALIKE = 0.5  # rank correlation, above which a map says too little of the weights
_COLOURS = np.array([[0, 0, 96], [31, 95, 200], [90, 200, 190], [250, 220, 90], [215, 48, 20]], np.float64)


@dataclass(frozen=True)
class Sanity:
    """Whether maps change when the weights do (Adebayo et al. 2018, arXiv:1810.03292)."""

    similarity: float  # mean rank correlation with the maps of the same network with shuffled weights, -1 to 1
    images: int

    @property
    def passed(self) -> bool:
        """Whether the maps tell of the weights."""
        return self.similarity < _ALIKE


def grad_cam(classifier: Classifier, images: Tensor, targets: Tensor) -> np.ndarray:
    """Where each image [b 3 s s] speaks for its target class [b]: float32 [b s s], 0 to 1, 0 everywhere where nothing does.

    ModelError when no layer of the network keeps places apart.
    """
    wanted = images.detach().clone().requires_grad_()
    with torch.enable_grad(), _watched(classifier.trunk) as seen:
        logits = classifier(wanted)
        picked = logits.gather(1, targets.to(logits.device)[:, None]).sum()
        layers = [layer for layer in seen if layer.requires_grad]
        slopes = torch.autograd.grad(picked, layers, allow_unused=True)
    silent: np.ndarray | None = None
    for layer, slope in zip(reversed(layers), reversed(slopes), strict=True):
        if slope is None:
            continue
        maps, gradients = _as_maps(layer.detach(), images.shape[-1]), _as_maps(slope, images.shape[-1])
        if maps is None or gradients is None:
            continue
        if not gradients.any():  # a single neighbour says the same of its class however near it is
            silent = np.zeros((len(images), *images.shape[-2:]), np.float32)
            continue
        heat = (gradients.mean((2, 3), keepdim=True) * maps).sum(1, keepdim=True).clamp(min=0)
        heat = F.interpolate(heat.float(), size=images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
        most = heat.amax((1, 2), keepdim=True)
        return (heat / most.clamp(min=1e-12)).cpu().numpy()
    if silent is not None:
        return silent
    raise ModelError("no layer of this network keeps places in the image apart, so there is nothing to show")


Way = Callable[[Classifier, Tensor, Tensor], np.ndarray]  # (classifier, images [b 3 s s], classes [b]) -> maps [b s s]
WAYS: dict[str, Way] = {"grad-cam": grad_cam, "rollout": rollout}


def maps(classifier: Classifier, images: Tensor, targets: Tensor, *, way: Way = grad_cam) -> np.ndarray:
    """Maps [b s s] of images [b 3 s s] for classes [b], so many at once as there is memory for."""
    count = max(1, _PIXELS_AT_ONCE // (images.shape[-1] * images.shape[-2]))
    parts = zip(images.split(count), targets.split(count), strict=True)
    return np.concatenate([way(classifier, some, theirs) for some, theirs in parts])


def sanity(classifier: Classifier, images: Tensor, targets: Tensor, *, seed: int = 0, way: Way = grad_cam) -> Sanity:
    """How alike the maps of the first images are to those of the same network with the numbers of each weight shuffled."""
    images, targets = images[:_CHECKED], targets[:_CHECKED]
    other, rng = copy.deepcopy(classifier), draws(seed, "shuffled weights")
    with torch.no_grad():
        for parameter in other.parameters():
            order = torch.from_numpy(rng.permutation(parameter.numel()))
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    pairs = zip(*(maps(one, images, targets, way=way) for one in (classifier, other)), strict=True)
    found = []
    for one, two in pairs:
        small = [part[:: max(1, len(part) // 16), :: max(1, len(part) // 16)].ravel() for part in (one, two)]
        flat = any(not part.std() > 0 for part in small)  # of shuffled weights, some maps are no numbers
        found.append(0.0 if flat else float(rank_correlation(*small)))
    return Sanity(float(np.mean(found)), len(found))


def overlay(pixels: np.ndarray, heat: np.ndarray, *, strength: float = 0.55) -> np.ndarray:
    """uint8 [s s 3]: the image [s s 3] with the map [s s] of 0 to 1 over it, from blue to red."""
    place = np.clip(heat, 0.0, 1.0)[..., None] * (len(_COLOURS) - 1)
    low = np.minimum(place.astype(int), len(_COLOURS) - 2)
    colour = _COLOURS[low[..., 0]] + (place - low) * (_COLOURS[low[..., 0] + 1] - _COLOURS[low[..., 0]])
    share = strength * (0.35 + 0.65 * np.clip(heat, 0.0, 1.0)[..., None])
    return np.clip((1.0 - share) * pixels + share * colour, 0, 255).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    """The bytes of a PNG of uint8 [h w 3]."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@contextmanager
def _watched(trunk: nn.Module) -> Iterator[deque[Tensor]]:
    """What the last layers below give in a forward pass within, in their order; later in-place changes do not reach it."""
    seen: deque[Tensor] = deque(maxlen=_LAST)

    def hook(layer: nn.Module, inputs: tuple[object, ...], out: object) -> object:
        if isinstance(out, Tensor) and out.ndim in (3, 4) and out.is_floating_point():
            seen.append(out)
            return out.clone()
        return None

    handles = [layer.register_forward_hook(hook) for layer in trunk.modules() if layer is not trunk]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _as_maps(tensor: Tensor, side: int) -> Tensor | None:
    """[b c h w] of what a layer gives: maps, channels last or first, or tokens; None where it has no places."""
    if tensor.ndim == 4:
        _, first, second, third = tensor.shape
        if second == third and 1 < second <= side:
            return tensor
        return tensor.permute(0, 3, 1, 2) if first == second and 1 < first <= side else None
    found = patches_of(tensor.shape[1])
    if found is None:
        return None
    prefix, grid = found
    return tensor[:, prefix:].transpose(1, 2).unflatten(2, (grid, grid))


def rank_correlation(one: np.ndarray, two: np.ndarray) -> float:
    """Spearman's, of two arrays [n] that are not constant."""
    return float(np.corrcoef(_ranks(one), _ranks(two))[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """From 1; equal values share the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[place.ravel()]
