"""Networks of keras.applications: told by the names, the widths and the order of their layers."""

from __future__ import annotations

import os
import re
from typing import Any

import numpy as np
import pytest

from burnish.backbones import zoo
from burnish.backbones.keras import applications
from burnish.errors import UnknownModel


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
    found = applications.recognised(layers, widths=lambda layer: {width} if layer == "top_conv" else set())
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


@pytest.mark.parametrize(("name", "alpha", "width"), [("MobileNet", 0.5, 512), ("MobileNetV2", 0.35, 1280)])
def test_a_narrower_mobilenets_weights_alone_are_read_at_their_width(name, alpha, width, tmp_path):
    _needs_keras()
    keras = applications.keras_module()
    model = getattr(keras.applications, name)(weights=None, input_shape=(64, 64, 3), alpha=alpha)
    model.save_weights(tmp_path / "a.weights.h5")
    backbone = zoo.load_backbone(str(tmp_path / "a.weights.h5"), preprocess="tf", image_size=64)
    assert backbone.width == width and f"{alpha} times as wide as usual (alpha)" in backbone.notes


@pytest.mark.parametrize("outputs", [0, 3, 10**9])
def test_a_width_that_no_mobilenet_has_is_not_built(outputs):
    assert applications.scale_of(applications.named("mobilenetv2"), lambda layer: {outputs}) == 1.0


def test_weights_alone_of_todays_keras_tell_networks_of_the_same_names_by_their_widths(tmp_path):
    _needs_keras()
    keras = applications.keras_module()
    keras.applications.EfficientNetB1(weights=None, input_shape=(32, 32, 3)).save_weights(tmp_path / "a.weights.h5")
    backbone = zoo.load_backbone(str(tmp_path / "a.weights.h5"), preprocess="none", image_size=32)
    assert backbone.name == "keras_efficientnetb1"


def test_a_network_that_keras_makes_with_tensorflow_alone_is_to_be_saved_whole():
    assert applications.mode_named("keras:NASNetMobile") is applications.MODES["tf"]  # for whole models
    with pytest.raises(UnknownModel, match=r"with TensorFlow alone.*model.save\('model.keras'\)"):
        applications.named("NASNetMobile")
    with pytest.raises(UnknownModel, match=r"burnish knows no network keras:resnet5000.*resnet50"):
        applications.named("resnet5000")
