"""How many heads of attention a small plain transformer has, where its file tells: no tensor's shape does."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from burnish.backbones import timmed
from burnish.backbones.reading import checkpoint

Table = Literal["moco", "mae"]
_SMALL = ("vit_small_patch", "deit_small_patch", "vit_tiny_patch", "deit_tiny_patch")
_HEADS_OF_MOCO = 12
_CLOSE = 2e-3  # of sines in float16


def table_in(saved: Any, state: Mapping[str, Tensor]) -> Table | None:
    """Whose fixed table of places the file's transformer has: MoCo v3's, MAE's, or None for one that was learnt.

    Both are sines and cosines; the first half tells rows in MoCo v3's (Chen et al. 2021, arXiv:2104.02057), columns in MAE's.
    """
    if checkpoint.is_moco_v3s(saved, state):
        return "moco"
    places = next((one for name, one in state.items() if name.rpartition(".")[2] == "pos_embed"), None)
    if places is None or places.ndim != 3 or places.shape[0] != 1 or places.shape[1] < 2:
        return None
    side = math.isqrt(places.shape[1] - 1)
    if side * side != places.shape[1] - 1 or bool(places[0, 0].any()):  # a class token, to which nothing is added
        return None
    steps = torch.arange(side, dtype=torch.float32).sin()
    first = places[0, 1:, 0].reshape(side, side)
    found: tuple[tuple[Table, Tensor], ...] = (("moco", steps[:, None]), ("mae", steps[None]))
    return next((kind for kind, sines in found if bool((first - sines).abs().max() < _CLOSE)), None)


def counted(name: str, description: dict[str, Any], table: Table | None) -> tuple[dict[str, Any], Iterable[str]]:
    """(the description of the network called `name` with as many heads as its table tells, clauses on that)."""
    if description["library"] != timmed.LIBRARY or not name.startswith(_SMALL) or table is None:
        return description, ()
    if table == "mae":
        usual = 6 if "_small_" in name else 3
        return description, (
            f"taken to have {usual} heads of attention, as most of its width; those of solo-learn's MAE and of MAE-Lite have "
            f"{_HEADS_OF_MOCO}, and no tensor tells",
        )
    note = f"with {_HEADS_OF_MOCO} heads of attention, as MoCo v3's transformers of its width have"
    return {**description, "kwargs": {**description["kwargs"], "num_heads": _HEADS_OF_MOCO}}, (note,)
