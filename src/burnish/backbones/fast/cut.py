"""Cut a trunk in two at a stage: what is frozen below runs once an image, what learns above runs each step.

    trunk(images) = upper(lower(images))

The trunk's own forward pass is traced (torch.fx), with each stage as one step, and divided where the only value that
passes from below to above is one tensor. Both parts hold the trunk's own layers, not copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from burnish.backbones.fast.fold import TOLERANCE
from burnish.backbones.fast.graphs import defaults
from burnish.backbones.spec import Stage


@dataclass(frozen=True)
class Cut:
    """The two parts of a trunk; they share its parameters."""

    lower: nn.Module  # images [b 3 s s] to activations [b ...]
    upper: nn.Module  # activations to features [b d]


def cut(trunk: nn.Module, stages: Sequence[Stage], at: int, example: Tensor) -> Cut | None:
    """The trunk in two, stages[:at] below; None where it cannot be divided there into the same function.

    example [b 3 s s]: the parts must agree with the whole on it. The parts take other sizes and batches too, as far as
    the trunk does.
    """
    below = {name for stage in stages[:at] for name in stage.parameters}
    above = {name for stage in stages[at:] for name in stage.parameters}
    if not below or not above:
        return None
    try:
        graph = _Tracer(below, above).trace(trunk, concrete_args=defaults(trunk))
        border = _border(trunk, graph, below)
        if border is None:
            return None
        parts = Cut(_lower(trunk, graph, border), _upper(trunk, graph, border))
        return parts if _agrees(parts, trunk, example) else None
    except torch.OutOfMemoryError:
        raise
    except Exception:  # tracing may meet anything in a foreign forward pass; all of it means: not here
        return None


class _Tracer(fx.Tracer):
    """Goes into a layer only where parts of both sides lie in it."""

    def __init__(self, below: set[str], above: set[str]) -> None:
        super().__init__()
        self.below, self.above = below, above

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        inside = f"{module_qualified_name}."
        return not all(any(name.startswith(inside) for name in side) for side in (self.below, self.above))


def _border(trunk: nn.Module, graph: fx.Graph, below: set[str]) -> fx.Node | None:
    """The last node before the first use of a weight not below whose value alone crosses over to what follows.

    What belongs to no stage (prompts, adapters) was put in to learn, so it counts as above.
    """
    nodes = list(graph.nodes)
    first = next((place for place, node in enumerate(nodes) if _weights_of(trunk, node) - below), None)
    if first is None:
        return None
    place_of = {node: place for place, node in enumerate(nodes)}
    for place in range(first - 1, 0, -1):
        before = [node for node in nodes[: place + 1] if node.op != "get_attr"]
        crossing = {node for node in before if any(place_of[user] > place for user in node.users)}
        if crossing == {nodes[place]} and nodes[place].op != "placeholder":
            return nodes[place]
    return None


def _weights_of(trunk: nn.Module, node: fx.Node) -> set[str]:
    """State-dict names a node uses."""
    target = str(node.target)
    if node.op == "get_attr":
        return {target}
    if node.op == "call_module":
        return {f"{target}.{name}" for name in trunk.get_submodule(target).state_dict()}
    return set()


def _lower(trunk: nn.Module, graph: fx.Graph, border: fx.Node) -> fx.GraphModule:
    """Everything up to the border."""
    part, copies = fx.Graph(), {}
    for node in graph.nodes:
        if node.op == "placeholder" and node.users == {}:
            continue
        copies[node] = part.node_copy(node, lambda old: copies[old])
        if node is border:
            break
    part.output(copies[border])
    return _module(trunk, part)


def _upper(trunk: nn.Module, graph: fx.Graph, border: fx.Node) -> fx.GraphModule:
    """Everything after it; its value is the input."""
    part = fx.Graph()
    copies = {border: part.placeholder("activations")}
    after = False
    for node in graph.nodes:
        if after or node.op == "get_attr":
            copies[node] = part.node_copy(node, lambda old: copies[old])
        after = after or node is border
    return _module(trunk, part)


def _module(trunk: nn.Module, part: fx.Graph) -> fx.GraphModule:
    """The part with the trunk's own layers, those it does not use left out."""
    module = fx.GraphModule(trunk, part)
    module.graph.eliminate_dead_code()
    return fx.GraphModule(trunk, module.graph)


def _agrees(parts: Cut, trunk: nn.Module, example: Tensor) -> bool:
    """Whether upper(lower(example)) is trunk(example), in eval mode, and what crosses is one tensor an image."""
    was_training = [layer for layer in trunk.modules() if layer.training]
    for module in (trunk, parts.lower, parts.upper):
        module.eval()
    try:
        with torch.no_grad():
            crossing = parts.lower(example)
            if not isinstance(crossing, Tensor) or crossing.shape[:1] != example.shape[:1]:
                return False
            found, expected = parts.upper(crossing), trunk(example)
            return bool((found - expected).abs().max() <= TOLERANCE * expected.abs().max().clamp(min=1e-6))
    finally:
        for layer in was_training:
            layer.training = True
