"""A tuned model in OpenVINO's own form, a graph as .xml beside its weights as .bin, which runs without PyTorch and burnish."""

from __future__ import annotations

import json
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from burnish.disk import plain_disk_errors, replacing
from burnish.errors import ModelError, RunError, brief, shown
from burnish.ship.bundle import Bundle
from burnish.ship.exported import (
    PREPARED,
    WORDS,
    asked,
    meaning,
    require_new,
    require_ours,
    require_same,
    told_beside,
    write_meaning,
)
from burnish.ship.onnx import onnx_of

_EXTRA = "pip install 'burnish[openvino]'"
# By itself the CPU plugin computes in bfloat16 where the processor can, which is no 1e-4.
_EXACT = {"INFERENCE_PRECISION_HINT": "f32"}


def export_openvino(bundle: Bundle, path: Path, *, input: str = PREPARED) -> Path:
    """Write the model to `path`, an .xml file, its weights to the .bin and what it means to the .json beside it; returns `path`.

    Input "images", "prepared" or "pixels", and output "probabilities" are those of the ONNX file that it is made of; weights stay
    float32. RecipeError when a name or the input is none; RunError when OpenVINO cannot read or run it, gives other
    probabilities, or the disk refuses; ModelError without the packages for it. Nothing is written then.
    """
    require_new(path, ".xml", input=input)
    require_ours(weights := path.with_suffix(".bin"), beside=told_beside(path))
    openvino = _openvino()
    graph, data = _written(openvino, onnx_of(bundle, input=input), bundle, input=input)
    answers = partial(_answers, openvino, graph, data, bundle)
    require_same("OpenVINO", answers, *asked(bundle, input=input))
    with plain_disk_errors(path.parent), replacing(path) as of_graph, replacing(weights) as of_weights:
        for file, content in ((of_graph, graph), (of_weights, data)):
            file.buffer.write(content)
            file.flush()
            os.fsync(file.fileno())
        write_meaning(path, bundle, WORDS[input])
        # An earlier graph would not fit these weights. From here on only names are changed: the weights', then the graph's.
        Path(os.path.realpath(path)).unlink(missing_ok=True)
    return path


def _openvino() -> Any:
    """OpenVINO; ModelError where it is not installed."""
    try:
        import openvino  # pyright: ignore[reportMissingImports]  # an extra
    except ImportError as error:
        raise ModelError(f"this needs {error.name}; run: {_EXTRA}") from None
    return openvino


def _written(openvino: Any, onnx: bytes, bundle: Bundle, *, input: str) -> tuple[bytes, bytes]:
    """(the bytes of the .xml, those of the .bin); RunError where OpenVINO cannot make them of the ONNX file."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            # Not `convert_model`, which reports to OpenVINO's makers that it was called.
            model = openvino.Core().read_model(onnx)
            model.set_rt_info(json.dumps(meaning(bundle, WORDS[input])), ["burnish"])
            openvino.save_model(model, (place := Path(folder) / "model.xml"), compress_to_fp16=False)
            return place.read_bytes(), place.with_suffix(".bin").read_bytes()
    except Exception as error:  # its own classes, and those of its plugins
        raise _refused("cannot read what PyTorch's exporter made of", bundle, error) from error


def _answers(openvino: Any, graph: bytes, data: bytes, bundle: Bundle, images: np.ndarray) -> np.ndarray:
    """What the CPU plugin makes of the images [n k]; RunError where it cannot run the graph."""
    try:
        core = openvino.Core()
        return core.compile_model(core.read_model(graph, data), "CPU", _EXACT)(images)[0]
    except Exception as error:
        raise _refused("cannot run what it made of", bundle, error) from error


def _refused(what: str, bundle: Bundle, error: Exception) -> RunError:
    return RunError(
        f"OpenVINO {what} {shown(bundle.base_model)} ({brief(error)}); nothing was written; what --to onnx writes, ONNX "
        "Runtime runs"
    )
