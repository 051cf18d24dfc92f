"""Find, replace and freeze layers by name."""

from __future__ import annotations

from fnmatch import fnmatchcase

from torch import Tensor, nn

from burnish.errors import NoSuchName, nearest, shown

_DROP_PATHS = ("DropPath", "StochasticDepth")  # what timm and torchvision call stochastic depth


def is_drop_path(layer: nn.Module) -> bool:
    """Whether the layer drops whole branches at random while training."""
    return type(layer).__name__ in _DROP_PATHS


def find(module: nn.Module, pattern: str) -> list[tuple[str, nn.Module]]:
    """Layers whose dotted name matches a shell pattern ("blocks.*.attn"), in the module's order.

    "*" also spans dots. NoSuchName, with the nearest names, when nothing matches.
    """
    layers = [(name, layer) for name, layer in module.named_modules() if name]
    found = [(name, layer) for name, layer in layers if fnmatchcase(name, pattern)]
    if not found:
        names = [name for name, _ in layers]
        raise NoSuchName(f"no layer matches {shown(pattern)!r} (nearest: {nearest(pattern, names)})")
    return found


def replace(module: nn.Module, name: str, new: nn.Module) -> None:
    """Put `new` where the layer called `name` is; NoSuchName, with the nearest names, when there is none."""
    parent_name, _, child = name.rpartition(".")
    names = [other for other, _ in module.named_modules() if other]
    if name not in names:
        raise NoSuchName(f"no layer {shown(name)!r} (nearest: {nearest(name, names)})")
    setattr(module.get_submodule(parent_name), child, new)


def freeze(module: nn.Module) -> None:
    """Nothing in the module learns, and in eval mode, which it is put into, its BatchNorm statistics stay (P3).

    `train()` on a parent undoes the eval mode, not the rest.
    """
    module.requires_grad_(False)
    module.eval()


class OnChannels(nn.Module):
    """A layer for the last axis, on whichever axis holds the channels."""

    def __init__(self, inner: nn.Module, channel: int) -> None:
        super().__init__()
        self.inner, self.channel = inner, channel

    def forward(self, inputs: Tensor) -> Tensor:
        return self.inner(inputs.movedim(self.channel, -1)).movedim(-1, self.channel)
