"""Which architecture a file of weights belongs to, told from the names and shapes of its tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from burnish.errors import BadWeights, shown

_INDEX = Path(__file__).with_name("index.json")  # written by scripts/index_architectures
_LARGE_NUMBERS = 100_000_000  # of an architecture: 0.4 GB when it is built
_COUNTERS = ("num_batches_tracked",)
# Tensors whose shape follows the size of the images: the same network may have others.
_LOOSE = ("pos_embed", "relative_position", "rel_pos", "attn_mask", "rope", "attn_biases")


@dataclass(frozen=True)
class Entry:
    """What is known of an architecture of timm without building it; all without the classifier."""

    name: str
    digest: str  # of its tensors' names and shapes, but for those that follow the size of the images
    exact: str  # of all of them
    family: str  # the module of timm that holds it: "resnet", "vision_transformer"
    parameters: int
    macs: int | None  # multiply-adds of one image of `size` pixels
    size: int
    fixed: bool  # whether it is built for one image size


def digest(shapes: Mapping[str, tuple[int, ...]], *, exact: bool = False) -> str:
    """16 hexadecimal digits that stand for these names and shapes, whatever their order."""
    left_out = _COUNTERS if exact else (*_COUNTERS, *_LOOSE)
    lines = sorted(
        f"{name}{list(shape)}" for name, shape in shapes.items() if not any(word in name for word in left_out)
    )
    return hashlib.sha256("\n".join(lines).encode("utf-8", "backslashreplace")).hexdigest()[:16]


@cache
def index() -> dict[str, Entry]:
    """All architectures that the index knows, by name."""
    values = json.loads(_INDEX.read_bytes())["architectures"]
    return {
        name: Entry(name, key, exact, family, parameters, macs, size, bool(fixed))
        for name, (key, exact, family, parameters, macs, size, fixed) in values.items()
    }


def recognised(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Architectures with just these names and shapes, the plainest name first; [] when there is none.

    Several architectures share their tensors and differ in function (padding, activation): all are given. Where none
    fits in every shape, those that differ in the size of their images alone.
    """
    key = digest(shapes)
    found = [entry for entry in index().values() if entry.digest == key]
    exact = digest(shapes, exact=True) if found else ""
    same = [entry for entry in found if entry.exact == exact]
    return sorted((entry.name for entry in same or found), key=_plainness)


def recognised_without_head(shapes: Mapping[str, tuple[int, ...]], heads: Iterable[str]) -> list[str]:
    """`recognised`, the tensors of a classification head under one of these beginnings, or some, left out."""
    # Files of DINOv2, iBOT and MAE hold what only their training needed; DINOv2's call its registers otherwise.
    shapes = {
        name.replace("register_tokens", "reg_token"): shape
        for name, shape in shapes.items()
        if name not in ("mask_token", "masked_embed") and not name.startswith("decoder_")
    }
    for beginnings in ((), *((head,) for head in sorted(heads, key=len, reverse=True)), tuple(heads)):
        left = {name: shape for name, shape in shapes.items() if not (beginnings and name.startswith(beginnings))}
        if (len(left) < len(shapes) or not beginnings) and (found := recognised(left)):
            return found
    return []


def require_numbers(name: str, held: int, label: str, *, times: int = 2) -> None:
    """BadWeights where a large architecture is named for weights that hold not even 1 / times of its numbers.

    To be asked before it is built: a few bytes must not make gigabytes of random weights.
    """
    entry = index().get(name.partition(".")[0])
    if entry is not None:
        refuse_few(name, held, entry.parameters, label, times=times)


def refuse_few(name: str, held: int, numbers: int, label: str, *, times: int) -> None:
    """BadWeights where a network of so many numbers is large, and weights hold not even 1 / times of them."""
    if numbers > _LARGE_NUMBERS and times * held < numbers:
        raise BadWeights(
            f"{label}: holds {held:,} numbers, and {shown(name)} has {numbers:,}; it is for another network"
        )


def _plainness(name: str) -> tuple[bool, int, str]:
    derived = name.startswith("tf_") or name.endswith(
        "_lingbot"
    )  # the latter are DINOv3's architectures, taught by others
    return derived, len(name), name
