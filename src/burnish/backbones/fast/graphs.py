"""A trunk's forward pass as a graph (torch.fx) whose steps are chosen layers, to which others can be added.

The module that comes out holds the trunk's own layers under their own names, and what was added under new ones.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx, nn

from burnish.backbones.fast.reads import evaluated


class _Tracer(fx.Tracer):
    """Goes only into layers that hold a chosen one."""

    def __init__(self, layers: Sequence[str]) -> None:
        super().__init__()
        self.layers = tuple(layers)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not any(name.startswith(f"{module_qualified_name}.") for name in self.layers)


def graphed(trunk: nn.Module, layers: Sequence[str]) -> tuple[fx.GraphModule, dict[str, fx.Node]]:
    """The trunk as a graph in which each of these layers is a step, and those steps by name.

    ValueError where one is not run exactly once; whatever tracing meets in a foreign forward pass besides.
    """
    graph = _Tracer(layers).trace(trunk, concrete_args=defaults(trunk))
    module = fx.GraphModule(trunk, graph)
    steps: dict[str, list[fx.Node]] = {name: [] for name in layers}
    for node in module.graph.nodes:
        if node.op == "call_module" and node.target in steps:
            steps[str(node.target)].append(node)
    if bad := [name for name, found in steps.items() if len(found) != 1]:
        raise ValueError(f"{bad[0]} is not run exactly once")
    return module, {name: found[0] for name, found in steps.items()}


def defaults(trunk: nn.Module) -> dict[str, Any]:
    """Optional arguments of the forward pass, at their defaults."""
    parameters = inspect.signature(trunk.forward).parameters.values()
    return {one.name: one.default for one in parameters if one.default is not inspect.Parameter.empty}


Shape = tuple[int, ...]


def shapes_of(trunk: nn.Module, layers: Sequence[str], example: Tensor) -> dict[str, Shape]:
    """Shapes of what the layers give for the example, where that is one tensor, in the order they are run last."""
    return {name: given for name, (_, given) in passed(trunk, layers, example).items() if given is not None}


def passed(trunk: nn.Module, layers: Sequence[str], example: Tensor) -> dict[str, tuple[Shape | None, Shape | None]]:
    """(shape of what it takes, shape of what it gives) of each layer that runs, in the order they are run last.

    None where that is not one tensor.
    """
    shapes: dict[str, tuple[Shape | None, Shape | None]] = {}

    def noting(name: str) -> Any:
        def note(_layer: nn.Module, taken: tuple[Any, ...], given: Any) -> None:
            first = taken[0] if taken else None
            ends = (tuple(end.shape) if isinstance(end, Tensor) else None for end in (first, given))
            shapes.pop(name, None)
            shapes[name] = (next(ends), next(ends))

        return note

    handles = [trunk.get_submodule(name).register_forward_hook(noting(name)) for name in layers]
    try:
        evaluated(trunk, example)
    finally:
        for handle in handles:
            handle.remove()
    return shapes


def channel_of(shape: tuple[int, ...]) -> int:
    """Which dimension holds the channels: tokens [b n c], maps [b c h w], or [b h w c] as Swin has them."""
    if len(shape) == 3:
        return 2
    return 3 if shape[1] == shape[2] != shape[3] else 1
