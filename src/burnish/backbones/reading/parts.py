"""Weights that a file keeps in parts from which the network would work them out anew: normed, pruned, parametrised."""

from __future__ import annotations

from collections.abc import Iterable

from burnish.errors import BadWeights, shown

_PARTS = ("_g", "_v", "_orig", "_mask", "_u")  # of weight_norm, of pruning, of spectral_norm


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
