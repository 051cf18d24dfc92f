"""A package as an int8 ONNX file: weights and activations of 8 bits, which processors with VNNI and the like multiply directly.

ONNX Runtime's static quantization (Jacob et al. 2018, arXiv:1712.05877; Wu et al. 2020, arXiv:2004.09602): QuantizeLinear and
DequantizeLinear around each layer, weights int8 with a scale for each output channel, activations uint8 with the range that
calibration images show. Which layers had better stay in float32 depends on the network: forms are made from the fastest on.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from burnish.errors import RunError, brief, shown
from burnish.ship.exported import IN, OUT, quiet
from burnish.ship.onnx import onnx_runtime

_AT_ONCE = 16  # images of a calibration batch
_ALL = "all layers but the head"
_ENDS = "all layers but the first and the head"
_PRODUCTS = "convolutions and products of matrices but the first and the head"
_DENSE = "the same but depthwise convolutions"

Answers = Callable[[np.ndarray], np.ndarray]  # prepared images float32 [n 3 s s] to probabilities float32 [n k]


def int8_forms(data: bytes, calibration: np.ndarray, *, base_model: str) -> Iterator[tuple[str, bytes]]:
    """(which layers are int8, the bytes of the file) of a float32 ONNX file, from the fastest form to the safest.

    calibration: prepared images float32 [n 3 s s], of training. RunError where ONNX Runtime cannot make one.
    """
    onnx_runtime()
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        plain = _prepared(data, Path(folder), base_model)
        nodes = onnx.load(plain).graph.node
        products = [at for at, node in enumerate(nodes) if node.op_type in ("Conv", "Gemm", "MatMul")]
        # Of 8 bits probabilities would be multiples of 1/255, and logits near each other the same.
        head = [node.name for node in nodes[products[-1] :]]
        ends = [nodes[products[0]].name, *head]
        depthwise = [nodes[at].name for at in products if _groups_of(nodes[at]) > 1]
        kinds = sorted({nodes[at].op_type for at in products})
        forms: list[tuple[str, dict[str, Any]]] = [
            (_ALL, {"nodes_to_exclude": head}),
            (_ENDS, {"nodes_to_exclude": ends}),
            (_PRODUCTS, {"nodes_to_exclude": ends, "op_types_to_quantize": kinds}),
        ]
        if depthwise:
            forms.append((_DENSE, {"nodes_to_exclude": [*ends, *depthwise], "op_types_to_quantize": kinds}))
        for words, limits in forms:
            yield words, _quantized(plain, calibration, limits, base_model)


def session(data: bytes) -> Answers:
    """What answers with an ONNX file, on as many threads as torch has; RunError where it cannot be run."""
    runtime = onnx_runtime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    # Its threads would else keep the cores busy after each call, in which torch takes twice as long (9 ms alone, 22 in turn).
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        ready = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # it has classes of its own for each reason
        raise RunError(f"ONNX Runtime cannot run the file that it made ({brief(error)})") from error
    return lambda images: ready.run([OUT], {IN: images})[0]


class _Reader:
    """Calibration images, a batch at a time, as ONNX Runtime asks for them."""

    def __init__(self, images: np.ndarray) -> None:
        self._batches = iter(np.array_split(images, -(-len(images) // _AT_ONCE)))

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {IN: batch}

    def __iter__(self) -> _Reader:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        batch = self.get_next()
        if batch is None:
            raise StopIteration
        return batch


def _prepared(data: bytes, folder: Path, base_model: str) -> Path:
    """The file with BatchNorms folded and shapes told; ONNX Runtime's symbolic shapes fail on what PyTorch's exporter wrote."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    given, made = folder / "given.onnx", folder / "plain.onnx"
    given.write_bytes(data)
    with _told(base_model):
        quant_pre_process(given, made, skip_symbolic_shape=True)
    return made


def _quantized(plain: Path, calibration: np.ndarray, limits: dict[str, Any], base_model: str) -> bytes:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    made = plain.with_name("int8.onnx")
    with _told(base_model):
        quantize_static(
            plain, made, cast(Any, _Reader(calibration)), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            # Products of two activations, as in attention, stay in float32: softmax over 8 bits loses more than it saves.
            extra_options={"MatMulConstBOnly": True}, **limits,
        )  # fmt: skip
    return made.read_bytes()


@contextlib.contextmanager
def _told(base_model: str) -> Iterator[None]:
    """RunError in a sentence for whatever the library raises; what it prints of its steps goes nowhere."""
    try:
        with quiet(), open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            yield
    except (
        Exception
    ) as error:  # it has classes of its own for each reason, and TypeErrors for graphs that it does not know
        raise RunError(f"ONNX Runtime cannot make an int8 file of {shown(base_model)} ({brief(error)})") from error


def _groups_of(node: Any) -> int:
    """Groups of a convolution; 1 of anything else."""
    return next((one.i for one in node.attribute if one.name == "group"), 1)
