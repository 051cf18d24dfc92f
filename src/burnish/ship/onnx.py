"""A tuned model as an ONNX file, which ONNX Runtime, OpenVINO, TensorRT and web browsers run without PyTorch and burnish."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from burnish.errors import ModelError, RunError, brief, shown
from burnish.ship.bundle import Bundle
from burnish.ship.exported import (
    IN,
    OUT,
    PIXELS,
    PREPARED,
    WORDS,
    Whole,
    as_utf8,
    asked,
    meaning,
    quiet,
    require_new,
    require_same,
    write_with_meaning,
)

_EXTRA = "pip install 'burnish[onnx]'"
_OPSET = 18  # that of ONNX 1.13 (December 2022), the first that PyTorch's exporter writes without converting
_MOST_BYTES = 2**31 - 2**20  # of one protobuf file


def export_onnx(bundle: Bundle, path: Path, *, input: str = PREPARED) -> Path:
    """Write the model to `path`, a .onnx file, and what it means into it and to the .json beside it; returns `path`.

    It takes any number of images as its input "images": "prepared" float32 [n 3 s s], or "pixels" uint8 [n s s 3]; its output
    "probabilities" [n k] is what burnish gives, the temperature included. RecipeError when the name or the input is none;
    RunError when PyTorch cannot write the network, ONNX Runtime gives other probabilities, or the disk refuses; ModelError
    without the packages for it. Nothing is written then.
    """
    require_new(path, ".onnx", input=input)
    write_onnx(path, onnx_of(bundle, input=input), bundle, input=input)
    return path


def onnx_of(bundle: Bundle, *, input: str = PREPARED) -> bytes:
    """The file's bytes, once ONNX Runtime gives the probabilities that burnish gives; errors as in `export_onnx`."""
    runtime = onnx_runtime()
    network = _taken_apart(Whole(bundle, pixels=input == PIXELS))
    images, expected = asked(bundle, input=input)
    data = _written(network, torch.from_numpy(images[:2]), bundle, json.dumps(meaning(bundle, WORDS[input])))
    require_same("ONNX Runtime", lambda few: _answers(runtime, data, few, bundle), images, expected)
    return data


def write_onnx(path: Path, data: bytes, bundle: Bundle, *, input: str = PREPARED) -> None:
    """The bytes to a file, and what they mean to the .json beside it. RunError where the disk refuses."""
    write_with_meaning(path, data, bundle, WORDS[input])


def _taken_apart(network: nn.Module) -> nn.Module:
    """The network with timm's attention as products of matrices: the fused one does not fit BEiT's when it is taken apart."""
    for module in network.modules():
        if isinstance(getattr(module, "fused_attn", None), bool):
            vars(module)["fused_attn"] = False
    return network


def onnx_runtime() -> Any:
    """ONNX Runtime; ModelError where it or what PyTorch's exporter needs is not installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ModelError(f"this needs {error.name}; run: {_EXTRA}") from None
    return onnxruntime


def _written(network: nn.Module, example: Tensor, bundle: Bundle, told: str) -> bytes:
    """The file's bytes; RunError where PyTorch cannot make one of the network."""
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                network, (example,), dynamo=True, dynamic_shapes=({0: torch.export.Dim("n")},), opset_version=_OPSET,
                input_names=[IN], output_names=[OUT], verbose=False,
            )  # fmt: skip
            assert program is not None
            model = program.model_proto
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        raise RunError(
            f"PyTorch's exporter cannot write {shown(bundle.base_model)} as ONNX ({brief(error.__cause__ or error)}); "
            "bundle.classifier() is a plain torch module, see docs/models.md"
        ) from error
    for name, value in (("burnish", told), ("licence", bundle.licence)):
        model.metadata_props.add(key=name, value=as_utf8(value))
    if model.ByteSize() > _MOST_BYTES:
        raise RunError(f"{shown(bundle.base_model)} has more than the 2 GB that one ONNX file can hold")
    return model.SerializeToString()


def _answers(runtime: Any, data: bytes, images: np.ndarray, bundle: Bundle) -> np.ndarray:
    """What ONNX Runtime makes of the images [n k]; RunError where it cannot run the file."""
    try:
        with quiet():
            session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
            return session.run([OUT], {IN: images})[0]
    except Exception as error:  # it has classes of its own for each reason
        raise RunError(
            f"ONNX Runtime cannot run what PyTorch's exporter made of {shown(bundle.base_model)} ({brief(error)}); nothing was "
            "written"
        ) from error
