"""A trunk that also gives what its blocks see: pooled outputs of several depths beside its own features.

    tapped(images) = [trunk(images), scale_1 · mean(block_1), scale_1 · max(block_1), scale_2 · mean(block_2), …]

Features of the last layer are made for the classes of the pretraining; what another task needs may lie deeper (Head2Toe,
Evci et al. 2022, arXiv:2201.03529). On hand signs a head on all depths has 97.8 % of the test images right, one on the last
layer 93; on 101 classes of photographs 94.1 against 92.8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from burnish.backbones.blocks import blocks_above
from burnish.backbones.fold import agree, evaluated
from burnish.backbones.graphs import channel_of, graphed, shapes_of
from burnish.backbones.spec import Backbone

KIND = "taps"
WIDTH_AT_MOST = 10_240  # features: the ends of the four stages of a ResNet-50 fit in


class Taps(nn.Module):
    """Features and block outputs joined; the scales give all parts the spread of the first."""

    scale: Tensor

    def __init__(self, channels: Sequence[int]) -> None:
        """channels: for each block the dimension of its output that holds the channels."""
        super().__init__()
        self.channels = tuple(channels)
        self.register_buffer("scale", torch.ones(2 * len(channels)))

    def forward(self, features: Tensor, *outputs: Tensor) -> Tensor:
        parts = [features]
        for index, (output, channel) in enumerate(zip(outputs, self.channels, strict=True)):
            last = output.movedim(channel, -1)  # a view: maps are channels last in memory
            mean, most = last.flatten(1, -2).mean(1), last
            while most.ndim > 2:  # a dimension at a time: over both at once amax takes 15 times as long
                most = most.amax(1)
            parts.append(mean * self.scale[2 * index])
            parts.append(most * self.scale[2 * index + 1])
        return torch.cat(parts, 1)


def tapped(
    backbone: Backbone, example: Tensor, *, width_at_most: int = WIDTH_AT_MOST, above: int = 0
) -> Backbone | None:
    """The backbone with wider features, at most so many: of all its blocks, or of every second, every third, …

    example: network inputs [b 3 s s] that the scales are taken from. above: only blocks in the stages from this one on.
    The trunk's own features come first. None where it has no blocks or its forward pass cannot be traced.
    """
    plain = backbone.plain or backbone
    blocks = blocks_above(plain, above)
    shapes = shapes_of(plain.module, blocks, example[:2])
    blocks = [name for name in blocks if len(shapes.get(name, ())) in (3, 4)]
    for step in range(1, len(blocks) + 1):
        chosen = blocks[::-1][::step][::-1]  # the last one always
        channels = [channel_of(shapes[name]) for name in chosen]
        width = plain.width + sum(2 * shapes[name][at] for name, at in zip(chosen, channels, strict=True))
        if width <= max(width_at_most, 0):
            break
    else:
        return None
    change = {"kind": KIND, "layers": chosen, "channels": channels}
    try:
        module = with_taps(plain.module, change)
        found = evaluated(module, example)
        # An accelerator may take another kernel for another number of images.
        expected = evaluated(plain.module, example[:2] if example.device.type == "cpu" else example)[:2]
    except torch.OutOfMemoryError:
        raise
    except Exception:  # tracing may meet anything in a foreign forward pass; all of it means: not here
        return None
    if found.shape != (len(example), width) or not agree(found[:2, : plain.width], expected):
        return None
    _spread(module, found, plain.width, [shapes[name][at] for name, at in zip(chosen, channels, strict=True)])
    return replace(backbone, module=module.eval(), width=width, changes=(change,), plain=plain)


def tapped_as(backbone: Backbone, change: dict[str, Any], scale: Tensor) -> Backbone:
    """The backbone with taps that were chosen before."""
    plain = backbone.plain or backbone
    module = with_taps(plain.module, change).eval()
    module.get_submodule("taps").load_state_dict({"scale": scale})
    width = plain.width + _added(plain, change)
    return replace(plain, module=module, width=width, changes=(change,), plain=plain)


def with_taps(trunk: nn.Module, change: dict[str, Any]) -> fx.GraphModule:
    """The trunk with taps at these layers, scales 1."""
    module, steps = graphed(trunk, change["layers"])
    module.add_module("taps", Taps(change["channels"]))
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    with module.graph.inserting_before(output):
        joined = module.graph.call_module("taps", (output.args[0], *steps.values()))
    output.args = (joined,)
    module.recompile()
    return module


def _added(plain: Backbone, change: dict[str, Any]) -> int:
    shapes = shapes_of(plain.module, change["layers"], plain.blank())
    return sum(2 * shapes[name][at] for name, at in zip(change["layers"], change["channels"], strict=True))


def _spread(module: nn.Module, found: Tensor, width: int, channels: Sequence[int]) -> None:
    """Set the scales: all parts get the spread that the trunk's own features [b width] have over the example."""

    def spread(part: Tensor) -> float:
        return (part - part.mean(0)).square().mean().sqrt().item()

    taps, start, own = module.get_submodule("taps"), width, spread(found[:, :width].float())
    assert isinstance(taps, Taps)
    for index, count in enumerate(count for count in channels for _ in range(2)):
        part = spread(found[:, start : start + count].float())
        taps.scale[index] = own / part if part > 1e-6 * own and own > 0 else 0.0 if part == 0 else 1.0
        start += count
