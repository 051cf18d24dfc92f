"""Headers of safetensors that say what cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hostile.kinds import kind, written
from hostile.pickles import line_of


def safetensors_file(
    folder: Path, header: bytes | dict[str, Any], data: bytes = b"", *, length: int | None = None
) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    return written(folder, "hostile.safetensors", size.to_bytes(8, "little") + text + data)


def tensor_entry(shape: list[int], begin: int, end: int, kind: str = "F32") -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}


@kind("header length is wrong")
def safetensors_with_a_header_of_a_million_terabytes(folder):
    return safetensors_file(folder, {"a.b": tensor_entry([1], 0, 4)}, bytes(4), length=2**60)


@kind("damaged safetensors file")
def safetensors_whose_tensors_overlap(folder):
    return safetensors_file(folder, {"a.b": tensor_entry([2], 0, 8), "a.c": tensor_entry([2], 4, 12)}, bytes(12))


@kind("damaged safetensors file")
def safetensors_with_a_negative_shape(folder):
    return safetensors_file(folder, {"a.b": tensor_entry([-1], 0, 4)}, bytes(4))


@kind("damaged safetensors file")
def safetensors_of_more_numbers_than_bytes(folder):
    return safetensors_file(folder, {"a.b": tensor_entry([10**6, 10**6], 0, 4)}, bytes(4))


@kind("damaged safetensors file")
def safetensors_whose_shape_overflows(folder):
    return safetensors_file(folder, {"a.b": tensor_entry([2**32, 2**32, 2**32], 0, 4)}, bytes(4))


@kind("damaged safetensors file")
def safetensors_nested_a_hundred_thousand_deep(folder):
    return safetensors_file(folder, b'{"a":' * 100_000 + b"1" + b"}" * 100_000)


@kind("damaged safetensors file")
def safetensors_of_an_unknown_kind_of_number(folder):
    return safetensors_file(folder, {"a.b": tensor_entry([1], 0, 4, "Q32")}, bytes(4))


@kind("fit none that burnish knows")
def safetensors_that_name_a_program_as_their_architecture(folder):
    metadata = {"architecture": "os.system", "__reduce__": line_of(folder)}
    return safetensors_file(
        folder, {"__metadata__": metadata, "a.b": tensor_entry([1], 0, 4), "a.c": tensor_entry([1], 4, 8)}, bytes(8)
    )
