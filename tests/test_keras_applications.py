"""Networks of keras.applications: told by the names, the widths and the order of their layers."""

from __future__ import annotations

import os
import re
from typing import Any

import numpy as np
import pytest

from burnish.backbones import zoo
from burnish.backbones.keras import applications


def _needs_keras() -> None:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    pytest.importorskip("keras", reason="keras is not installed: pip install 'burnish[keras]'")


def _layers_of(name: str) -> list[str]:
    config = applications.config_of(applications.named(name), 240)
    weighted = ("Conv2D", "DepthwiseConv2D", "BatchNormalization", "Normalization", "Dense")
    return [layer["config"]["name"] for layer in config["config"]["layers"] if layer["class_name"] in weighted]


def _kernels(backbone: Any) -> dict[str, dict[str, tuple[int, ...]]]:
    """The shapes of each layer's arrays, in Keras's order of axes."""
    out: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, part in backbone.module.parts.items():
        out[name] = {f"{variable.legacy.split('|')[0]}:0": tuple(variable.shape) for variable in part.variables}
    return out


@pytest.mark.parametrize(("width", "name"), [(1280, "efficientnetb1"), (1408, "efficientnetb2")])
def test_networks_of_the_same_names_are_told_by_their_widths(width, name):
    _needs_keras()
    layers = _layers_of("efficientnetb1")
    found = applications.recognised(layers, has_width=lambda layer, asked: (layer, asked) == ("top_conv", width))
    assert found is not None and found.name == name


def test_layers_that_another_keras_numbered_are_told_by_their_order(tmp_path):
    """InceptionV3's official file begins with conv2d_1, as Keras 2 counted; today's network begins with conv2d."""
    h5py = pytest.importorskip("h5py")
    _needs_keras()
    config = applications.config_of(applications.named("inceptionv3"), 96)
    rng, first, counts = np.random.default_rng(0), None, {"conv2d": 0, "batch_normalization": 0}
    blank = zoo.load_backbone("random:keras:inceptionv3", image_size=96)
    order = [layer for layer in config["config"]["layers"] if layer["class_name"] in ("Conv2D", "BatchNormalization")]
    by_name = _kernels(blank)
    with h5py.File(tmp_path / "old.h5", "w") as file:
        names = []
        for layer in order:
            own = layer["config"]["name"]
            kind = re.sub(r"_\d+$", "", own)
            counts[kind] += 1
            name = f"{kind}_{counts[kind]}"
            group = file.create_group(name)
            names.append(name.encode())
            keys = ["kernel:0"] if kind == "conv2d" else ["beta:0", "moving_mean:0", "moving_variance:0"]
            group.attrs["weight_names"] = [f"{name}/{key}".encode() for key in keys]
            for key in keys:
                shape = by_name[own][key]
                value = rng.normal(0, 0.1, shape).astype(np.float32)
                first = value if first is None else first
                group[f"{name}/{key}"] = np.abs(value) + 1 if key == "moving_variance:0" else value
        file.attrs["layer_names"] = names
    found = zoo.load_backbone(f"keras:inceptionv3={tmp_path / 'old.h5'}", preprocess="keras:inceptionv3", image_size=96)
    kernel = next(value for name, value in found.module.state_dict().items() if value.ndim == 4)
    assert first is not None
    np.testing.assert_array_equal(kernel.numpy(), first.transpose(3, 2, 0, 1))


@pytest.mark.parametrize("name", ["inceptionv3", "mobilenetv3small"])
def test_names_of_layers_do_not_depend_on_what_keras_made_before(name):
    """Keras numbers through all networks of a process; the numbering of who uses it goes on as it was."""
    _needs_keras()
    import keras

    keras.backend.clear_session()
    first = applications.config_of(applications.named(name), 96)
    mine = [keras.layers.Conv2D(1, 1).name for _ in range(2)]
    assert applications.config_of(applications.named(name), 96) == first
    assert keras.layers.Conv2D(1, 1).name not in mine
