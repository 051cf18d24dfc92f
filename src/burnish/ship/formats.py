"""The formats that a model can be written in for other frameworks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from burnish.errors import RecipeError, shown
from burnish.ship.keras import export_keras
from burnish.ship.onnx import export_onnx


@dataclass(frozen=True)
class Format:
    """One of them."""

    suffix: str
    write: Callable[..., Path]  # (bundle, path, *, input), the path of the file


FORMATS = {"onnx": Format(".onnx", export_onnx), "keras": Format(".keras", export_keras)}


def format_for(to: str, out: Path | None) -> Format:
    """The format of that name; "auto": that which the name of the file tells. RecipeError where there is none."""
    if to in FORMATS:
        return FORMATS[to]
    if to != "auto":
        raise RecipeError(f"export to {shown(to)!r} is not known; expected {' or '.join(FORMATS)}")
    told = next((one for one in FORMATS.values() if out is not None and out.suffix == one.suffix), None)
    if told is None:
        suffixes = " or ".join(one.suffix for one in FORMATS.values())
        given = "neither --to nor --out is given" if out is None else f"{shown(str(out))} does not tell the format"
        raise RecipeError(f"{given}; say --to {' or '.join(FORMATS)}, or a file name that ends in {suffixes}")
    return told
