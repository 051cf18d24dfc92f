"""The formats that a model can be written in for other frameworks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from burnish.errors import RecipeError, shown
from burnish.ship.hub import SUFFIX, export_hub
from burnish.ship.keras import export_keras
from burnish.ship.onnx import export_onnx
from burnish.ship.openvino import export_openvino
from burnish.ship.pt2 import export_pt2


@dataclass(frozen=True)
class Format:
    """One of them."""

    suffix: str  # of a file's name, or what stands behind the run's in that of a folder
    write: Callable[..., Path]  # (bundle, path, *, input), the path of the file
    also: tuple[str, ...] = ()  # other suffixes that tell it
    recorded: bool = False  # whether it takes what the run's record says too, as `record`


FORMATS = {
    "onnx": Format(".onnx", export_onnx),
    "keras": Format(".keras", export_keras, also=(".h5",)),
    "pt2": Format(".pt2", export_pt2),
    "openvino": Format(".xml", export_openvino),
    "hub": Format(SUFFIX, export_hub, recorded=True),
}


# What others write, and of which of ours it is made, or what does the same.
_INSTEAD = {
    "onnx": ("engine", "mnn", "ncnn", "tensorrt", "tflite"),
    "pt2": ("coreml", "pth", "pytorch", "torch", "torchscript"),
    "hub": ("hf", "huggingface", "safetensors", "timm", "transformers"),
    "keras": ("h5", "saved_model", "tensorflow", "tf"),
}


def _listed(words: Iterable[str]) -> str:
    """As a, b or c."""
    *first, last = words
    return f"{', '.join(first)} or {last}"


_NAMES = _listed(FORMATS)


def format_for(to: str, out: Path | None) -> Format:
    """The format of that name; "auto": that which the name of the file tells. RecipeError where there is none."""
    if to in FORMATS:
        return FORMATS[to]
    if to != "auto":
        instead = next((f"; {name} is what leads there" for name, words in _INSTEAD.items() if to.lower() in words), "")
        raise RecipeError(f"export to {shown(to)!r} is not known; expected {_NAMES}{instead}")
    told = next((one for one in FORMATS.values() if out is not None and out.suffix in (one.suffix, *one.also)), None)
    if told is None:
        named = [suffix for one in FORMATS.values() for suffix in (one.suffix, *one.also)]
        suffixes = _listed(suffix for suffix in named if suffix.startswith("."))
        given = "neither --to nor --out is given" if out is None else f"{shown(str(out))} does not tell the format"
        raise RecipeError(f"{given}; say --to {_NAMES}, or a file name that ends in {suffixes}")
    return told
