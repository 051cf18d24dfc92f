"""Who reads what a layer gives: one pass of a network, watched."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from burnish.uncompiled import DispatchMode


@dataclass
class _Output:
    """A tensor that a watched layer gave, and who has read it since."""

    name: str
    tensor: Tensor
    version: int  # counts changes in place
    reads: int = 0
    reader: str | None = None  # a watched layer that got this very tensor as its input, unchanged


class _Reads(DispatchMode):
    """Counts the operations that read each watched tensor."""

    def __init__(self, outputs: dict[int, _Output]) -> None:
        super().__init__()
        self.outputs = outputs
        self.counts = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for argument in tree_leaves((args, kwargs or {})) if self.counts else ():
            if isinstance(argument, Tensor) and (output := self.outputs.get(id(argument))) is not None:
                output.reads += 1
        return func(*args, **(kwargs or {}))


def read_once(
    module: nn.Module,
    watched: Mapping[str, nn.Module],
    example: Tensor,
    told: Callable[[str, Tensor, Tensor], None] | None = None,
) -> tuple[dict[str, str], Tensor]:
    """For each watched layer of which one other alone reads what it gives, unchanged, that other; in the order they run.

    And what the module gives for the example [b 3 s s] in eval mode. watched: layers of the module by name; of those that run
    twice, or not at all, nothing is said. told: is given each watched layer's name, input and output.
    """
    calls: dict[str, int] = dict.fromkeys(watched, 0)
    seen: list[_Output] = []
    outputs: dict[int, _Output] = {}  # the latest by id(tensor); `seen` keeps the tensors alive, so ids stay theirs

    def before(name: str, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        calls[name] += 1
        given = outputs.get(id(inputs[0])) if inputs else None
        if given is not None and given.tensor._version == given.version:
            given.reader = name

    def after(name: str, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor):
            if told is not None and inputs and isinstance(inputs[0], Tensor):
                reads.counts = False
                told(name, inputs[0], output)
                reads.counts = True
            seen.append(_Output(name, output, output._version))
            outputs[id(output)] = seen[-1]

    reads, handles = _Reads(outputs), []
    for name, layer in watched.items():
        handles.append(layer.register_forward_pre_hook(partial(before, name)))
        handles.append(layer.register_forward_hook(partial(after, name)))
    try:
        with reads:
            given = evaluated(module, example)
    finally:
        for handle in handles:
            handle.remove()
    last = {output.name: output for output in seen}
    readers = {
        name: output.reader
        for name, output in last.items()
        if output.reads == 1 and output.reader is not None and calls[name] == calls[output.reader] == 1
    }
    return readers, given


def evaluated(module: nn.Module, example: Tensor) -> Tensor:
    """The module's output on the example in eval mode, no gradient; the modes are put back."""
    was_training = [layer for layer in module.modules() if layer.training]
    module.eval()
    try:
        with torch.no_grad():
            return module(example).clone()
    finally:
        for layer in was_training:
            layer.training = True
