"""Layers taken out of a network or put into it, by name; what was done is written down, so that a package re-opens."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace as with_fields
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from burnish.backbones.changing.blocks import blocks_of
from burnish.backbones.fast.graphs import Shape, channel_of, passed
from burnish.backbones.layers import OnChannels, replace
from burnish.backbones.spec import Backbone, Stage
from burnish.backbones.stages import steps_of
from burnish.errors import BurnishError, NoSuchName, RecipeError, brief, nearest, shown

DROP, INSERT = "drop", "insert"
_FUNCTIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}
LAYERS = f"dropout:0.2, batchnorm, layernorm, conv:3, linear, {', '.join(_FUNCTIONS)}"


class Followed(nn.Module):
    """A layer of the network, then one that was put in after it."""

    def __init__(self, layer: nn.Module, added: nn.Module) -> None:
        super().__init__()
        self.layer, self.added = layer, added

    def forward(self, inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.added(self.layer(inputs, *args, **kwargs))


class Gone(nn.Identity):
    """What stands where a layer was: its first input comes back, whatever else the layer was given (positions, a mask)."""

    def forward(self, inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return inputs


class InsertedDropout(nn.Dropout):
    """A dropout that somebody asked for: it acts while training, as those that came with a network do not."""


# ---- the changes, as `changes.KINDS` has them ------------------------------------------------------------------------


def without_layers(trunk: nn.Module, change: dict[str, Any]) -> nn.Module:
    """The trunk with these layers replaced by what gives its input back."""
    for name in change["layers"]:
        replace(trunk, name, Gone())
    return trunk


def with_layers(trunk: nn.Module, change: dict[str, Any]) -> nn.Module:
    """The trunk with a new layer after each of these; convolutions, linear layers and norms start as the identity.

    Layers inside a layer get theirs first.
    """
    for name, width, channel in zip(change["layers"], change["widths"], change["channels"], strict=True):
        replace(trunk, name, Followed(trunk.get_submodule(name), new_layer(change["layer"], width, channel)))
    return trunk


def new_layer(words: str, width: int, channel: int) -> nn.Module:
    """The layer of that description for so many channels; RecipeError when there is none."""
    kind, _, number = words.partition(":")
    try:
        if kind == "dropout" and 0 <= float(number) < 1:
            return InsertedDropout(float(number))
        if words == "batchnorm" and channel == 1:
            return nn.BatchNorm2d(width)
        if words == "layernorm":
            return OnChannels(nn.LayerNorm(width), channel)
        if kind == "conv" and channel == 1 and int(number) in (1, 3, 5, 7):
            conv = nn.Conv2d(width, width, int(number), padding=int(number) // 2, device="meta")
            conv.weight = nn.Parameter(nn.init.dirac_(torch.zeros(conv.weight.shape)))
            conv.bias = nn.Parameter(torch.zeros(width))
            return conv
        if words == "linear":
            linear = nn.Linear(width, width, device="meta")
            linear.weight, linear.bias = nn.Parameter(torch.eye(width)), nn.Parameter(torch.zeros(width))
            return OnChannels(linear, channel)
        if words in _FUNCTIONS:
            return _FUNCTIONS[words]()
    except ValueError:
        pass
    where = " (conv and batchnorm: after layers that give maps [b c h w] only)" if kind in ("conv", "batchnorm") else ""
    raise RecipeError(f"no layer {shown(words)!r} to insert; expected {LAYERS}{where}")


def numbers_in(words: str, width: int) -> int:
    """Weights of the layer of that description."""
    kind, _, number = words.partition(":")
    return width**2 * (int(number) ** 2 if kind == "conv" else 1) if kind in ("conv", "linear") else 2 * width


def is_layer(words: Any) -> bool:
    """Whether it describes a layer that can be inserted."""
    if not isinstance(words, str) or len(words) > 40:
        return False
    try:
        new_layer(words, 4, 1)
    except RecipeError:
        return False
    return True


# ---- the operation ---------------------------------------------------------------------------------------------------


@contextmanager
def _running(backbone: Backbone) -> Iterator[None]:
    """RecipeError where the changed network does not run."""
    try:
        yield
    except BurnishError:
        raise
    except Exception as error:  # whatever a layer says to an input that is not for it
        raise RecipeError(
            f"{backbone.name} does not run with these changes ({brief(error)}); take out or put in others"
        ) from None


def operated(backbone: Backbone, *, depth: str = "", remove: str = "", insert: str = "") -> Backbone:
    """The network with blocks or layers taken out and put in; the rest keeps its weights.

    depth: blocks to keep of each group, such as "2,2,4,1"; the last ones of a group go. remove: patterns of names, with
    commas. insert: PATTERN=LAYER, with commas, a new layer after each that matches. What is told of the network before is
    kept as `uncut`. NoSuchName or RecipeError, with what there is, where it cannot be done.
    """
    changes: list[dict[str, Any]] = []
    gone = [*_too_deep(backbone, depth), *_matching(backbone, remove)] if depth or remove else []
    if gone:
        names = _outermost(dict.fromkeys(gone))
        _check_removable(backbone, names)
        changes.append({"kind": DROP, "layers": names})
    module = without_layers(copy.deepcopy(backbone.module), changes[0]) if changes else backbone.module
    for part in [one.strip() for one in insert.split(",") if one.strip()]:
        pattern, equals, words = part.partition("=")
        if not equals:
            raise RecipeError(f"insert is {shown(part)!r}, expected PATTERN=LAYER, the layer one of {LAYERS}")
        found = _outermost(dict.fromkeys(_named_like(module, pattern)))
        with _running(backbone):
            shapes = _shapes(module, found, backbone.blank())
        usable = [name for name in found if len(shapes.get(name, (None, ()))[1]) in (3, 4)]
        if not usable:
            raise RecipeError(f"insert: {shown(pattern)!r} matches no layer that gives maps or tokens")
        channels = [channel_of(shapes[name][1]) for name in usable]
        widths = [shapes[name][1][channel] for name, channel in zip(usable, channels, strict=True)]
        for width, channel in zip(widths, channels, strict=True):
            new_layer(words, width, channel)
        change = {"kind": INSERT, "layers": usable, "channels": channels, "widths": widths, "layer": words}
        module = with_layers(copy.deepcopy(module), change).eval()
        changes.append(change)
    if not changes:
        return backbone
    before = backbone.architecture.get("changes", [])
    architecture = {**backbone.architecture, "changes": [*before, *changes]}
    with _running(backbone), torch.no_grad():
        stages = _stages(backbone.stages, module, changes, backbone.blank())
        width = module(backbone.blank()).shape[-1]
    return with_fields(
        backbone, module=module, width=width, stages=stages, architecture=architecture, uncut=backbone.module
    )


def depths(backbone: Backbone) -> list[list[str]]:
    """The network's blocks in groups: those in one series, or for a Keras network those of one stage."""
    names = blocks_of(backbone.module)
    flat = backbone.architecture.get("library") == "keras"
    stage_of = {name: stage.name for stage in backbone.stages for name in stage.parameters}
    groups: dict[str, list[str]] = {}
    for name in names:
        key = name.rpartition(".")[0]
        if flat:
            key = next((stage for one, stage in stage_of.items() if one.startswith(f"{name}.")), key)
        groups.setdefault(key, []).append(name)
    return list(groups.values())


def removable(backbone: Backbone) -> list[str]:
    """Blocks that can be taken out: what they give has the shape of what they get."""
    names = blocks_of(backbone.module)
    shapes = _shapes(backbone.module, names, backbone.blank())
    return [name for name in names if name in shapes and shapes[name][0] == shapes[name][1]]


def _too_deep(backbone: Backbone, depth: str) -> list[str]:
    """The last blocks of each group that are more than asked for."""
    if not depth:
        return []
    groups = depths(backbone)
    have = ",".join(str(len(group)) for group in groups)
    try:
        wanted = [int(one) for one in depth.split(",")]
    except ValueError:
        wanted = []
    if len(wanted) != len(groups) or not all(
        1 <= count <= len(group) for count, group in zip(wanted, groups, strict=False)
    ):
        raise RecipeError(
            f"depth is {shown(depth)}, but {backbone.name} has the depth {have or 'of no blocks'}: "
            "expected as many numbers, each from 1 to that"
        )
    return [name for count, group in zip(wanted, groups, strict=True) for name in group[count:]]


def _matching(backbone: Backbone, patterns: str) -> list[str]:
    found: list[str] = []
    for pattern in [one.strip() for one in patterns.split(",") if one.strip()]:
        found += _named_like(backbone.module, pattern)
    return found


def _named_like(module: nn.Module, pattern: str) -> list[str]:
    """Layers whose name matches; NoSuchName with the nearest, and the blocks there are."""
    names = [name for name, _ in module.named_modules() if name]
    found = [name for name in names if fnmatchcase(name, pattern)]
    if not found:
        blocks = blocks_of(module)
        listed = f"; its blocks: {', '.join(blocks[:12])}{', …' if len(blocks) > 12 else ''}" if blocks else ""
        raise NoSuchName(f"no layer matches {shown(pattern)!r} (nearest: {nearest(pattern, names)}){listed}")
    return found


def _outermost(names: Sequence[str] | dict[str, None]) -> list[str]:
    """Those that lie in none of the others."""
    return [name for name in names if not any(name.startswith(f"{other}.") for other in names)]


def _check_removable(backbone: Backbone, names: Sequence[str]) -> None:
    """RecipeError where a layer changes the shape, so that what follows could not do without it."""
    shapes = _shapes(backbone.module, names, backbone.blank())
    for name in names:
        given, found = shapes.get(name, ((), ()))
        if not found or given != found:
            fine = removable(backbone)
            raise RecipeError(
                f"{shown(name)} cannot be removed: it makes {list(found) or 'nothing that is one tensor'} of {list(given)}; "
                f"what can be: {', '.join(fine[:16]) or 'no block'}{', …' if len(fine) > 16 else ''}"
            )


def _shapes(module: nn.Module, names: Sequence[str], example: Tensor) -> dict[str, tuple[Shape, Shape]]:
    """(shape of its input, shape of its output) of each layer that takes and gives one tensor."""
    found = passed(module, names, example).items()
    return {name: (taken, given) for name, (taken, given) in found if taken is not None and given is not None}


def _stages(
    stages: Sequence[Stage], module: nn.Module, changes: Sequence[dict[str, Any]], example: Tensor
) -> tuple[Stage, ...]:
    """The same stages with the names that are left, and those of new layers beside the layer they follow."""
    wrapped = [name for change in changes if change["kind"] == INSERT for name in change["layers"]]
    left = list(module.state_dict())
    kept: list[Stage] = []
    taken: set[str] = set()
    for stage in stages:
        names = []
        for name in stage.parameters:
            for layer in wrapped:
                if name.startswith(f"{layer}."):
                    name = f"{layer}.layer.{name.removeprefix(f'{layer}.')}"
            names.append(name)
        beside = tuple(
            f"{layer}.added." for layer in wrapped if any(one.startswith(f"{layer}.layer.") for one in names)
        )
        members = [
            name for name in left if name not in taken and (name in set(names) or (beside and name.startswith(beside)))
        ]
        taken |= set(members)
        if members:
            kept.append(Stage(stage.name, tuple(members)))
    rest = [name for name in left if name not in taken]
    if rest:  # after layers without weights, such as a pooling: by when they run
        steps, _ = steps_of(module, example)
        begins = [min((steps[name] for name in stage.parameters if name in steps), default=0) for stage in kept]
        for name in rest:
            earlier = [place for place, begin in enumerate(begins) if begin <= steps.get(name, 0)]
            place = earlier[-1] if earlier else 0
            kept[place] = Stage(kept[place].name, (*kept[place].parameters, name))
    return tuple(kept)
