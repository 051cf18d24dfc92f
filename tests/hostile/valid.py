"""Sound files of each kind, to be damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from hostile.archives import valid_tar, zip_file
from hostile.keras import chained, conv, keras_file, layer
from hostile.smallest import smallest_bytes, smallest_network, valid_safetensors


def valid_torch(folder: Path) -> Path:
    torch.save({"state_dict": smallest_network(folder), "args": {"lr": 0.1}}, folder / "valid.pth")
    return folder / "valid.pth"


def valid_legacy(folder: Path) -> Path:
    torch.save(smallest_network(folder), folder / "legacy.pth", _use_new_zipfile_serialization=False)
    return folder / "legacy.pth"


def valid_keras(folder: Path) -> Path:
    keras_file(folder, chained(conv(), layer("GlobalAveragePooling2D", "pool"))).rename(folder / "valid.keras")
    return folder / "valid.keras"


def valid_h5(folder: Path) -> Path:
    import h5py

    with h5py.File(folder / "valid.h5", "w") as file:
        file.attrs["model_config"] = json.dumps(chained(conv(), layer("GlobalAveragePooling2D", "pool")))
        file.create_group("model_weights").attrs["layer_names"] = [b"conv"]
        group = file.create_group("model_weights/conv")
        group.attrs["weight_names"] = [b"conv/kernel:0", b"conv/bias:0"]
        group["conv/kernel:0"] = np.random.default_rng(0).normal(size=(3, 3, 3, 4)).astype(np.float32)
        group["conv/bias:0"] = np.zeros(4, np.float32)
    return folder / "valid.h5"


def valid_zip(folder: Path) -> Path:
    return zip_file(
        folder, [("net/model.safetensors", smallest_bytes(folder)), ("net/config.json", b"{}")], name="valid.zip"
    )


VALID: dict[str, Callable[[Path], Path]] = {
    "a file of torch.save": valid_torch, "an old file of torch.save": valid_legacy, "safetensors": valid_safetensors,
    "Keras's zip": valid_keras, "Keras's HDF5": valid_h5, "a zip": valid_zip, "a tar": valid_tar,
}  # fmt: skip
