"""Weights that a file keeps in parts from which the network would work them out anew: normed, pruned, parametrised."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from burnish.errors import BadWeights, shown

_LOW_RANK = re.compile(r"(^|\.)lora_(A|B|embedding_A|embedding_B|down|up)(\.|$)")
_PARTS = ("_g", "_v", "_orig", "_mask", "_u")  # of weight_norm, of pruning, of spectral_norm
State = dict[str, Tensor]


def folded(state: State) -> State:
    """The weights, those in parts as torch's weight_norm, spectral_norm and pruning work them out in use; others as they are."""
    found, together = dict(state), Counter(told[0] for name in state if (told := re.match(_PARAMETRISED, name)))
    for first in state:
        for pattern, ends, make in _KINDS:
            told, begin = re.fullmatch(pattern, first), first[: -len(ends[0])]
            if told is None or not all(f"{begin}{end}" in found for end in ends):
                continue
            if together.get(begin, len(ends)) != len(ends):  # more than that: it cannot be told what the others do
                continue
            whole = make(*(found[f"{begin}{end}"] for end in ends))
            if whole is not None:
                for end in ends:
                    del found[f"{begin}{end}"]
                found[f"{told[1]}{told[2]}"] = whole
                break
    return found


def _masked(weight: Tensor, mask: Tensor) -> Tensor | None:
    fits = weight.shape == mask.shape and bool(((mask == 0) | (mask == 1)).all())
    return weight * mask if fits else None


def _normed(lengths: Tensor, directions: Tensor) -> Tensor | None:
    """Directions [o i …] of these lengths: one number for all, or [o 1 …], one for each place of a single dimension."""
    if lengths.ndim not in (0, directions.ndim) or not directions.is_floating_point():
        return None
    own = [dim for dim in range(lengths.ndim) if lengths.shape[dim] != 1]
    if len(own) > 1 or any(lengths.shape[dim] != directions.shape[dim] for dim in own):
        return None
    others = [dim for dim in range(directions.ndim) if dim not in own]
    return directions * (lengths / directions.square().sum(others, keepdim=True).sqrt())


def _spectral(weight: Tensor, left: Tensor, right: Tensor) -> Tensor | None:
    """The weight [o i …] less its largest singular value, told by the singular vectors left [o] and right [i · …]."""
    if left.ndim != 1 or right.ndim != 1 or weight.ndim < 2 or len(left) * len(right) != weight.numel():
        return None
    dim = next((dim for dim in (0, 1) if weight.shape[dim] == len(left)), None)
    if dim is None:
        return None
    return weight / torch.dot(left, weight.movedim(dim, 0).reshape(len(left), -1) @ right)


# The name of the first part, what all are called after what they have in common, and how they are put together.
_OWN = r"((?:.+\.)?)(\w+)"
_PARAMETRISED = r"((?:.+\.)?)parametrizations\.(\w+)\."
_KINDS: tuple[tuple[str, tuple[str, ...], Callable[..., Tensor | None]], ...] = (
    (rf"{_OWN}_orig", ("_orig", "_mask"), _masked),
    (rf"{_OWN}_orig", ("_orig", "_u", "_v"), _spectral),
    (rf"{_OWN}_g", ("_g", "_v"), _normed),
    (rf"{_PARAMETRISED}original0", ("original0", "original1"), _normed),
    (rf"{_PARAMETRISED}original", ("original", "0._u", "0._v"), _spectral),
)


def refuse_corrections(names: Iterable[str], *, label: str) -> None:
    """BadWeights where corrections of low rank (LoRA) lie beside the weights, or alone: how large they are no tensor tells."""
    name = next((one for one in names if _LOW_RANK.search(one)), None)
    if name is not None:
        raise BadWeights(
            f"{label}: holds a LoRA ({shown(name[:120])}), a correction to the weights of another model, as peft keeps it; put "
            "both together first:  model.merge_and_unload().save_pretrained('merged')  (of a timm network: torch.save of its "
            "state_dict()), and give what comes out"
        )


def refuse_parts(missing: Iterable[str], unexpected: Iterable[str], *, label: str) -> None:
    """BadWeights where the parts of a weight stand where the weight itself should be; it would stay random."""
    found = dict.fromkeys(unexpected)
    for name in missing:
        layer, _, weight = name.rpartition(".")
        begin = f"{layer}." if layer else ""
        parts = [f"{name}{end}" for end in _PARTS if f"{name}{end}" in found]
        parts += [one for one in found if one.startswith(f"{begin}parametrizations.{weight}.")]
        if parts:
            listed = ", ".join(shown(one[:120]) for one in parts[:3])
            raise BadWeights(
                f"{label}: holds {shown(name[:120])} in parts ({listed}), as weight_norm, pruning and parametrizations keep "
                "it; fold them into one first (torch.nn.utils.remove_weight_norm, prune.remove, "
                "parametrize.remove_parametrizations), and save the weights again"
            )
