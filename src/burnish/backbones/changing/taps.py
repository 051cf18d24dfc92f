"""A trunk that also gives what its blocks see: pooled outputs of several depths beside its own features.

    tapped(images) = [trunk(images), scale_1 · mean(block_1), scale_1 · max(block_1), scale_2 · mean(block_2), …, where(block_n)]

Features of the last layer are made for the classes of the pretraining; what another task needs may lie deeper (Head2Toe,
Evci et al. 2022, arXiv:2201.03529). On hand signs a head on all depths has 97.8 % of the test images right, one on the last
layer 93; on 101 classes of photographs 94.1 against 92.8.

Means and maxima do not say where in the image something is. The last blocks are pooled in two rows and two columns besides, a
spatial pyramid (Lazebnik et al. 2006, doi:10.1109/CVPR.2006.68; of networks He et al. 2014, arXiv:1406.4729), of which only the
differences are new: left and right, top and bottom, the two diagonals, as Haar wavelets have them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from burnish.backbones.changing.blocks import blocks_above
from burnish.backbones.fast.fold import agree
from burnish.backbones.fast.graphs import channel_of, graphed, shapes_of
from burnish.backbones.fast.reads import evaluated
from burnish.backbones.spec import Backbone

KIND = "taps"
WIDTH_AT_MOST = 10_240  # features: the ends of the four stages of a ResNet-50 fit in
PYRAMID_AT_MOST = 20_480  # with those of the pyramid: the last stage of a ResNet-50 has one
# Of the other features' number, that those of the pyramid may have; the last block's are in any case.
_PYRAMID_SHARE = 0.5


class Taps(nn.Module):
    """Features and block outputs joined; the scales give all parts the spread of the first."""

    scale: Tensor

    def __init__(self, channels: Sequence[int], pyramid: Sequence[int] | None = None) -> None:
        """channels: for each block the dimension of its output that holds the channels.

        pyramid: of the blocks that are seen by halves and quarters too how many channels there are, 0 for the others.
        """
        super().__init__()
        self.channels = tuple(channels)
        self.pyramid = tuple(pyramid or [0] * len(channels))
        self.register_buffer("scale", torch.ones(2 * len(channels)))

    def forward(self, features: Tensor, *outputs: Tensor) -> Tensor:
        parts, where = [features], []
        for index, (output, channel) in enumerate(zip(outputs, self.channels, strict=True)):
            last = output.movedim(channel, -1)  # a view: maps are channels last in memory
            mean, most = last.flatten(1, -2).mean(1), last
            while most.ndim > 2:  # a dimension at a time: over both at once amax takes 15 times as long
                most = most.amax(1)
            parts.append(mean * self.scale[2 * index])
            parts.append(most * self.scale[2 * index + 1])
            if self.pyramid[index]:
                if last.ndim != 4 or last.shape[-1] != self.pyramid[index]:
                    raise ValueError(f"no maps of {self.pyramid[index]} channels: {tuple(last.shape)}")
                where += [part * self.scale[2 * index] for part in differences(last)]
        return torch.cat([*parts, *where], 1)


def differences(maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of maps [b h w c] what the left half has more than the right, the top than the bottom, one diagonal than the other: [b c].

    Halves of an odd side share its middle.
    """
    rows, columns = ((side + 1) // 2 for side in maps.shape[1:3])
    wide = torch.float32 if maps.dtype in (torch.bfloat16, torch.float16) else maps.dtype  # means are near each other
    top, bottom = maps[:, :rows].mean(1, dtype=wide), maps[:, -rows:].mean(1, dtype=wide)
    along = maps.mean(1, dtype=wide)
    across = along[:, :columns].mean(1) - along[:, -columns:].mean(1)
    down = top.mean(1) - bottom.mean(1)
    tilt = top - bottom
    diagonal = 0.5 * (tilt[:, :columns].mean(1) - tilt[:, -columns:].mean(1))
    return across.to(maps.dtype), down.to(maps.dtype), diagonal.to(maps.dtype)


def tapped(
    backbone: Backbone,
    example: Tensor,
    *,
    width_at_most: int = WIDTH_AT_MOST,
    pyramid_at_most: int = 0,
    above: int = 0,
) -> Backbone | None:
    """The backbone with wider features, at most so many: of all its blocks, or of every second, every third, …

    example: network inputs [b 3 s s] that the scales are taken from. above: only blocks in the stages from this one on.
    pyramid_at_most: features, all counted, up to which the last of those blocks are seen by halves and quarters besides.
    The trunk's own features come first, those of the pyramid last (`flat` is without them). None where it has no blocks or its
    forward pass cannot be traced.
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
    change: dict[str, Any] = {"kind": KIND, "layers": chosen, "channels": channels}
    pyramid = _pyramid([shapes[name] for name in chosen], channels, width, pyramid_at_most)
    if any(pyramid):
        change["pyramid"] = pyramid
        width += 3 * sum(pyramid)
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


def _pyramid(shapes: Sequence[tuple[int, ...]], channels: Sequence[int], width: int, at_most: int) -> list[int]:
    """The channels of the last blocks whose outputs are maps, of as many as their share of the features allows; 0 for the others.

    shapes, channels: of the blocks' outputs; width: of all features without a pyramid.
    """
    found = [0] * len(shapes)
    for place in reversed(range(len(shapes))):
        shape, at = shapes[place], channels[place]
        if len(shape) != 4 or min(side for axis, side in enumerate(shape) if axis not in (0, at)) < 2:
            break
        added = 3 * (sum(found) + shape[at])
        if width + added > at_most or (any(found) and added > _PYRAMID_SHARE * width):
            break
        found[place] = shape[at]
    return found


def flat_width(backbone: Backbone) -> int:
    """How many of its features are without the pyramid, which come first."""
    return backbone.width - 3 * sum(backbone.changes[-1].get("pyramid", []) if backbone.changes else [])


def flat(backbone: Backbone) -> Backbone:
    """The backbone with the same taps and no pyramid; its features are the first of the others."""
    if flat_width(backbone) == backbone.width:
        return backbone
    change = {key: value for key, value in backbone.changes[-1].items() if key != "pyramid"}
    return tapped_as(backbone, change, backbone.module.get_submodule("taps").state_dict()["scale"])


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
    module.add_module("taps", Taps(change["channels"], change.get("pyramid")))
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    with module.graph.inserting_before(output):
        joined = module.graph.call_module("taps", (output.args[0], *steps.values()))
    output.args = (joined,)
    module.recompile()
    return module


def _added(plain: Backbone, change: dict[str, Any]) -> int:
    shapes = shapes_of(plain.module, change["layers"], plain.blank())
    means = sum(shapes[name][at] for name, at in zip(change["layers"], change["channels"], strict=True))
    return 2 * means + 3 * sum(change.get("pyramid", []))


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
