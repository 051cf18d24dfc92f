"""Weights that lie in several files of one folder, told by the index that transformers writes beside them."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from burnish.backbones.reading import checkpoint, pickles, weights
from burnish.disk import read_plain_json
from burnish.errors import BadWeights, shown

_INDEX = ".index.json"
# One file that holds all, and the index of several; the safer first.
_NAMES = tuple((whole, f"{whole}{_INDEX}") for whole in ("model.safetensors", "pytorch_model.bin"))
_SHARD = re.compile(r"[\w\-][\w.\-]{0,120}\.(safetensors|bin)")  # a name in the same folder, no path
_NUMBERED = re.compile(r"(.+)-\d+-of-\d+(\.\w+)")


@dataclass(frozen=True)
class Together:
    """The tensors of all files that an index names."""

    tensors: dict[str, Tensor]
    sha256: str  # of their bytes, one file after another
    bytes: int  # on disk


def index_in(path: Path) -> Path | None:
    """The index of weights in several files that a folder holds, or that the path is; None where one file holds all."""
    if path.name.endswith(_INDEX):
        return path if os.path.isfile(path) else None
    if not os.path.isdir(path):  # which says no, too, where a name is too long for any file
        return None
    for whole, index in _NAMES:
        if (path / whole).is_file():
            return None
        if (path / index).is_file() and (whole.endswith(".safetensors") or not any(path.glob("*.safetensors"))):
            return path / index
    return None


def files_of(index: Path) -> list[str]:
    """The names of the files beside an index that hold the weights together; BadWeights where it does not say."""
    return sorted(set(_read(index).values()))


def refuse_one_of_several(path: Path) -> None:
    """BadWeights where the file is one of those that an index beside it names."""
    told = _NUMBERED.fullmatch(path.name)
    beside = (
        [path.with_name(name) for name in (f"{told[1]}{told[2]}{_INDEX}", *(one for _, one in _NAMES))] if told else []
    )
    index = next((one for one in beside if os.path.isfile(one)), None)
    if index is not None and path.name in (files := set(_read(index).values())):
        raise BadWeights(
            f"{shown(str(path))}: is one of {len(files)} files that hold the weights together; give their folder:  "
            f"--model {shown(str(path.parent))}"
        )


def together(index: Path) -> Together:
    """The weights that an index says lie in several files of its folder; BadWeights, with what is amiss.

    One file is in memory at a time beside the tensors of all.
    """
    label, told = shown(str(index.parent)), _read(index)
    files = files_of(index)
    _refuse_others(index, files)
    digest, tensors, size = hashlib.sha256(), dict[str, Tensor](), 0
    for name in files:
        path = index.with_name(name)
        if not path.is_file():
            raise BadWeights(
                f"{shown(str(path))}: no such file, and {shown(index.name)} names it as one of {len(files)} that hold the "
                "weights together; fetch it, under this name"
            )
        if (size := size + path.stat().st_size) > weights.MAX_WEIGHTS_BYTES:
            raise BadWeights(
                f"{label}: its files have more than {weights.MAX_WEIGHTS_BYTES:,} bytes, the most that is read"
            )
        data = weights.bytes_of(path)
        digest.update(data)
        held = _tensors_in(data, path)
        _refuse_unlike(index, path, held.keys(), {key for key, file in told.items() if file == name})
        tensors |= held
    return Together(tensors, digest.hexdigest(), size)


def _read(index: Path) -> dict[str, str]:
    """The file of each tensor, all in the folder of the index."""
    try:
        told = read_plain_json(index).get("weight_map")
    except (OSError, ValueError) as error:
        raise BadWeights(f"{shown(str(index))}: {error}; fetch it again") from None
    if not isinstance(told, dict) or not told or not all(isinstance(one, str) for one in told.values()):
        raise BadWeights(
            f"{shown(str(index))}: does not say in which files beside it the weights lie (weight_map); save the model again"
        )
    odd = next((one for one in told.values() if not _SHARD.fullmatch(one)), None)
    if odd is not None:
        raise BadWeights(
            f"{shown(str(index))}: does not say in which files beside it the weights lie, but speaks of {shown(odd[:120])!r}, "
            "expected the name of a .safetensors or .bin file in the same folder; save the model again"
        )
    return told


def _refuse_others(index: Path, files: list[str]) -> None:
    """BadWeights where files numbered like those of the index lie beside them: of two models in one folder, which is meant?"""
    kinds = {(told[1], told[2]) for one in files if (told := _NUMBERED.fullmatch(one))}
    named = (
        one.name for one in index.parent.iterdir() if (told := _NUMBERED.fullmatch(one.name)) and told.groups() in kinds
    )
    if more := sorted(set(named).difference(files)):
        raise BadWeights(
            f"{shown(str(index.parent))}: holds {shown(more[0])}, which {shown(index.name)} does not name; "
            "files of two models lie there, or the index is an old one: take out what does not belong to it"
        )


def _refuse_unlike(index: Path, path: Path, held: Collection[str], told: Collection[str]) -> None:
    """BadWeights where a file holds other tensors than the index says."""
    lacking, more = sorted(set(told).difference(held)), sorted(set(held).difference(told))
    if lacking or more:
        counts = [f"lacks {len(lacking)} ({shown(lacking[0][:120])}, …)"] if lacking else []
        counts += [f"holds {len(more)} others ({shown(more[0][:120])}, …)"] if more else []
        raise BadWeights(
            f"{shown(str(path))}: of the {len(told)} tensors that {shown(index.name)} says are in it, it {' and '.join(counts)}; "
            "it was renamed, or is of another model: fetch all of the files again"
        )


def _tensors_in(data: bytes, path: Path) -> Mapping[str, Tensor]:
    label = shown(str(path))
    if weights.is_safetensors(data):
        return weights.tensors_of(data, label)
    if data[:2] != b"PK" and data[:1] != b"\x80":
        raise BadWeights(f"{label}: {weights.what_it_is(data[:4096], len(data)) or 'is no file of weights'}")
    saved: Any = pickles.read_torch(data, label)
    if not isinstance(saved, Mapping) or not all(
        isinstance(key, str) and isinstance(one, Tensor) for key, one in saved.items()
    ):
        raise BadWeights(f"{label}: holds more than tensors by name, which none of several files with the weights does")
    # The older form packs nothing.
    if data[:2] != b"PK" and checkpoint.numbers_in(saved.values()) > len(data):
        raise BadWeights(f"{label}: claims more numbers than it holds; damaged, or made to deceive")
    return saved
