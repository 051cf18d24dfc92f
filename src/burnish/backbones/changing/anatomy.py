"""What a network is made of: its stages, with widths, weights and cost, and the blocks that surgery can speak of."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from burnish.backbones.changing.surgery import depths, removable
from burnish.backbones.fast.graphs import shapes_of
from burnish.backbones.fast.reads import evaluated
from burnish.backbones.spec import Backbone
from burnish.uncompiled import DispatchMode


@dataclass(frozen=True)
class StageRow:
    """One stage of a network; the number is what `--freeze` counts."""

    number: int  # from 1
    name: str
    output: tuple[int, ...]  # of one image, as torch has it
    parameters: int
    macs: int  # multiply-adds of one image
    blocks: tuple[str, ...]  # names in it that `--remove` and `--depth` speak of


@dataclass(frozen=True)
class Anatomy:
    """A network without its head."""

    name: str
    source: str
    size: int  # pixels
    one_size: bool
    width: int  # of the features
    parameters: int
    macs: int
    depth: str  # blocks in each group, as `--depth` takes them
    stages: tuple[StageRow, ...]
    removable: tuple[str, ...]  # blocks that can be taken out
    notes: tuple[str, ...]  # how loading went

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def anatomy(backbone: Backbone) -> Anatomy:
    """Take the network apart; costs two forward passes of one image."""
    module, example = backbone.module, backbone.blank()
    outputs, order = _outputs(module, example)
    macs, total = _macs(module, example, backbone)
    groups = depths(backbone)
    blocks = [name for group in groups for name in group]
    counts = {name: one.numel() for name, one in module.named_parameters()}
    rows = []
    for number, stage in enumerate(backbone.stages, start=1):
        layers = {name.rpartition(".")[0] for name in stage.parameters}
        last = next((name for name in reversed(order) if name in layers), "")
        own = tuple(name for name in blocks if any(one.startswith(f"{name}.") for one in stage.parameters))
        parameters = sum(counts.get(name, 0) for name in stage.parameters)
        rows.append(StageRow(number, stage.name, outputs.get(last, ()), parameters, macs[stage.name], own))
    return Anatomy(
        backbone.name,
        backbone.source,
        backbone.preprocess.size,
        backbone.one_size,
        backbone.width,
        sum(counts.values()),
        total,
        ",".join(str(len(group)) for group in groups),
        tuple(rows),
        tuple(removable(backbone)),
        backbone.notes,
    )


def _outputs(module: nn.Module, example: Tensor) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """Shapes of what the layers with weights give, one image alone, and their order."""
    weighty = [name for name, layer in module.named_modules() if name and (layer._parameters or layer._buffers)]
    shapes = {name: shape[1:] for name, shape in shapes_of(module, weighty, example).items()}
    return shapes, list(shapes)


class _Counter(DispatchMode):
    """Counts multiplications and additions by torch's own table; unlike its `FlopCounterMode` not by layer."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        count = flop_registry.get(func._overloadpacket)
        if count is None:
            with self:  # what stands for several operations
                given = func.decompose(*args, **(kwargs or {}))
            if given is not NotImplemented:
                return given
        given = func(*args, **(kwargs or {}))
        self.flops += 0 if count is None else count(*args, **(kwargs or {}), out_val=given)
        return given


def macs_of(module: nn.Module, example: Tensor) -> int:
    """Multiply-adds of a module on `example`, in evaluation; 0 where they cannot be counted."""
    try:  # attention in plain steps: processors do it in one that is not counted
        with sdpa_kernel(SDPBackend.MATH), _Counter() as counter:
            evaluated(module, example)
        return counter.flops // 2
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        return 0


def _macs(module: nn.Module, example: Tensor, backbone: Backbone) -> tuple[Counter[str], int]:
    """Multiply-adds by stage, and of all; what a layer does beside its inner layers counts for its first stage."""
    try:  # without numbers: quick, and attention is counted, which some processors do in one uncounted step
        bare, image = copy.deepcopy(module).to("meta"), example.to("meta")
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            bare(image)
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            module(example)
    found = {path: sum(ops.values()) // 2 for path, ops in counter.get_flop_counts().items()}
    root = next((path for path in found if path not in ("Global", "") and "." not in path), "")
    names = {path.removeprefix(f"{root}."): count for path, count in found.items() if path.startswith(f"{root}.")}
    macs: Counter[str] = Counter()
    for name, count in names.items():
        inner = sum(other for path, other in names.items() if path.rpartition(".")[0] == name)
        stage = next(
            (one.name for one in backbone.stages if any(key.startswith(f"{name}.") for key in one.parameters)),
            backbone.stages[-1].name,
        )
        macs[stage] += count - inner
    return macs, found.get("Global", sum(macs.values()))
