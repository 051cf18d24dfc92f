"""Attention rollout: which patches of an image reach a transformer's answer through all of its layers.

Abnar and Zuidema 2020, arXiv:2005.00928. It tells what the network looks at, whatever the class; Grad-CAM what speaks for one.
"""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from burnish.backbones.classifier import Classifier
from burnish.backbones.timmed import Attention
from burnish.errors import ModelError

_PREFIXES = (0, 1, 2, 4, 5)  # tokens that stand before the patches: class, distillation, registers


def rollout(classifier: Classifier, images: Tensor, targets: Tensor) -> np.ndarray:
    """How much of each place of images [b 3 s s] reaches the answer: float32 [b s s], 0 to 1. The targets [b] play no part.

    From the class token, or where there is none from the mean of all. ModelError unless the network is a vision transformer
    whose layers see all tokens at once.
    """
    layers = [layer for layer in classifier.trunk.modules() if isinstance(layer, Attention)]
    seen: list[Tensor] = []

    def watch(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(_weights(cast(Attention, layer), inputs[0]))

    handles = [layer.register_forward_pre_hook(watch) for layer in layers]
    try:
        with torch.no_grad():
            classifier(images)
    finally:
        for handle in handles:
            handle.remove()
    if not seen or len({tuple(one.shape) for one in seen}) > 1:
        raise ModelError(
            "attention rollout needs a vision transformer whose layers see all tokens at once (vit_*, deit_*, dinov2), and this "
            "network is none; use --how grad-cam, which any network of maps or tokens allows"
        )
    reached = torch.eye(seen[0].shape[-1], device=images.device).expand_as(seen[0])
    for one in seen:
        # Half of a token's answer is itself: the residual connection.
        reached = (0.5 * one + 0.5 * torch.eye(one.shape[-1], device=one.device)) @ reached
    found = patches_of(reached.shape[-1])
    if found is None:
        raise ModelError(
            f"the {reached.shape[-1]} tokens of this network are no square grid of patches; use --how grad-cam"
        )
    prefix, grid = found
    from_token = prefix > 0 and getattr(_transformer(classifier.trunk), "global_pool", "token") == "token"
    rows = reached[:, 0] if from_token else reached[:, prefix:].mean(1)
    heat = rows[:, prefix:].unflatten(1, (grid, grid))[:, None]
    heat = F.interpolate(heat.float(), size=images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    least, most = heat.amin((1, 2), keepdim=True), heat.amax((1, 2), keepdim=True)
    return ((heat - least) / (most - least).clamp(min=1e-12)).cpu().numpy()


def _weights(layer: Attention, tokens: Tensor) -> Tensor:
    """The attention of a layer to its input [b n c], mean over the heads, [b n n]; each row sums to 1."""
    b, n, _ = tokens.shape
    queries, keys, _ = layer.qkv(tokens).reshape(b, n, 3, layer.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    queries, keys = layer.q_norm(queries), layer.k_norm(keys)
    return (layer.scale * queries @ keys.transpose(-2, -1)).softmax(-1).mean(1)


def patches_of(count: int) -> tuple[int, int] | None:
    """(tokens before the patches, side of the grid of patches) of so many tokens; None where there is no square grid."""
    for prefix in _PREFIXES:
        grid = math.isqrt(max(0, count - prefix))
        if grid > 1 and grid * grid == count - prefix:
            return prefix, grid
    return None


def _transformer(trunk: nn.Module) -> nn.Module:
    """The module that holds the layers, which may lie inside others."""
    return next((one for one in trunk.modules() if isinstance(getattr(one, "global_pool", None), str)), trunk)
