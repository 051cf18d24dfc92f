"""The repeated blocks of a trunk, found by their place: residual blocks, dense layers, transformer blocks."""

from __future__ import annotations

from collections import Counter

from torch import nn

from burnish.backbones.spec import Backbone

_SERIES = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def blocks_of(trunk: nn.Module) -> list[str]:
    """Names of the innermost layers in series that hold two or more convolutions or linear layers, in order.

    ResNet: layer1.0, layer1.1, …; DenseNet: its dense layers; EfficientNet: blocks.0.0, …; ConvNeXt, Swin: the blocks of
    their stages; ViT: blocks.0, …. Empty for networks without such layers (VGG).
    """
    return _walk(trunk, "", member=False)


def blocks_above(backbone: Backbone, freeze: int) -> list[str]:
    """Names of the blocks of the network, before any changes to it, with nothing in its first `freeze` stages."""
    plain = backbone.plain or backbone
    below = {name for stage in plain.stages[:freeze] for name in stage.parameters}
    return [name for name in blocks_of(plain.module) if not any(other.startswith(f"{name}.") for other in below)]


def _walk(module: nn.Module, prefix: str, *, member: bool) -> list[str]:
    """member: whether the module itself stands in a series; its own layers are then no series for being alike."""
    found: list[str] = []
    series = isinstance(module, _SERIES) or (not member and _has_twins(module))
    for name, child in module.named_children():
        inner = _walk(child, f"{prefix}{name}.", member=series and not isinstance(child, _SERIES))
        if inner:
            found += inner
        elif series and not isinstance(child, _SERIES) and _weighted(child) >= 2:
            found.append(f"{prefix}{name}")
    return found


def _has_twins(module: nn.Module) -> bool:
    """Whether several of its children are of one class, so that they follow each other (RegNet names them b1, b2, …)."""
    kinds = Counter(type(child) for child in module.children() if _weighted(child) >= 2)
    return any(count >= 2 for kind, count in kinds.items() if not issubclass(kind, _SERIES))


def _weighted(module: nn.Module) -> int:
    """How many convolutions and linear layers it holds."""
    return sum(isinstance(layer, (nn.Conv2d, nn.Linear)) for layer in module.modules())
