"""The ordered stages of a network and the width of its features, read from one forward pass."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from burnish.backbones.spec import Stage
from burnish.errors import ModelError, shown


def steps_of(module: nn.Module, example: Tensor) -> tuple[dict[str, int], int]:
    """When each weight is first used in a forward pass (name → step), and the width of the features.

    Weights used without calling their own layer (a position embedding) have no step. ModelError where it cannot be run.
    """
    steps: dict[str, int] = {}
    handles = []
    for path, layer in module.named_modules():
        own = [f"{path}.{name}" if path else name for name in (*layer._parameters, *layer._buffers)]
        if path and own:
            handles.append(
                layer.register_forward_pre_hook(
                    lambda _layer, _inputs, own=own: [steps.setdefault(name, len(steps)) for name in own] and None
                )
            )
    try:
        with torch.no_grad():
            features = module(example)
    except (RuntimeError, IndexError, ValueError, AssertionError, TypeError) as error:
        side, reason = example.shape[-1], shown(" ".join(str(error).split()))[:160]
        raise ModelError(f"the network cannot be run on images of {side} pixels ({reason})") from None
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(features, Tensor) or features.ndim != 2:
        raise ModelError("the network does not give one vector of features an image; burnish cannot use it yet")
    return steps, int(features.shape[1])


def stages_of(module: nn.Module, groups: Sequence[Sequence[str]], steps: dict[str, int]) -> tuple[Stage, ...]:
    """All names of the state dict, in runs from input to output: these groups, merged until they follow execution."""
    shapes = {name: tensor.ndim for name, tensor in module.state_dict().items()}
    joined: list[list[str]] = []
    for names in groups:
        # A lone normalisation (a final norm, the BatchNorm of a VGG layer) belongs to what comes before it.
        if joined and all(shapes[name] <= 1 for name in names):
            joined[-1].extend(names)
        else:
            joined.append(list(names))
    merged: list[list[str]] = []
    labels: list[str] = []
    for names in joined:
        label = _label(names)
        begins = min((steps[name] for name in names if name in steps), default=math.inf)
        while merged and _ends(merged[-1], steps) > begins:
            names, label = merged.pop() + names, labels.pop()
        merged.append(names)
        labels.append(label)
    labels = ["stem" if index == 0 and len(labels) > 1 else label for index, label in enumerate(labels)]
    return tuple(Stage(label, tuple(names)) for label, names in zip(_unique(labels), merged, strict=True))


def by_layer(names: Sequence[str]) -> list[list[str]]:
    """One group for each top-level layer, and for each part of one that is a series ("stages.0", "stages.1")."""
    found: dict[str, list[str]] = {}
    for name in names:
        first, second, *_ = [*name.split("."), ""]
        found.setdefault(f"{first}.{second}" if second.isdigit() else first, []).append(name)
    return list(found.values())


def _ends(names: list[str], steps: dict[str, int]) -> float:
    return max((steps[name] for name in names if name in steps), default=-math.inf)


def _label(names: list[str]) -> str:
    """The dotted parts the names share, up to the first number ("blocks.3"); else their commonest first two parts."""
    parts = [name.split(".")[:-1] or [name] for name in names]
    shared: list[str] = []
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1 or any(part.isdigit() for part in shared):
            break
        shared.append(column[0])
    label = ".".join(shared)
    return label if re.search(r"\d", label) else Counter(".".join(part[:2]) for part in parts).most_common(1)[0][0]


def _unique(labels: list[str]) -> list[str]:
    seen: Counter[str] = Counter()
    out = []
    for label in labels:
        seen[label] += 1
        out.append(label if seen[label] == 1 else f"{label} ({seen[label]})")
    return out
