"""Promises of exported Keras files of networks that were changed: Keras gives what burnish gives, changes and all."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from test_backbones_keras import h5py, keras, layers, numbers
from test_export_keras import SIZE, models  # noqa: F401  # a fixture

from burnish.backbones import zoo
from burnish.backbones.changing.taps import tapped
from burnish.backbones.classifier import Classifier
from burnish.errors import RecipeError, RunError
from burnish.methods.base import Head
from burnish.methods.table import method_named
from burnish.recipe import Recipe
from burnish.ship.bundle import Bundle
from burnish.ship.keras import export_keras

CLASSES = ("a", "b", "c")


def drawn(module, seed=0):
    """The module with every small number in it drawn anew: a change that is zero, or the identity, would not be seen."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, one in [*module.named_parameters(), *module.named_buffers()]:
            if one.is_floating_point():
                wide = name.endswith(("running_var", "norm.weight", "scale"))
                one.copy_(
                    torch.rand(one.shape, generator=rng) + 0.5 if wide else torch.randn(one.shape, generator=rng) / 5
                )
    return module


def bundle_of(backbone, classifier=None):
    """A package of the backbone under a head that is drawn."""
    classifier = classifier or Classifier.over(backbone, len(CLASSES))
    drawn(classifier.head)
    return Bundle.of(backbone, classifier.eval(), classes=CLASSES, method="full")


def both(bundle, path, images=3):
    """(what Keras makes of images with the file, what burnish makes of them)."""
    size = bundle.preprocess.size
    given = torch.randn(images, 3, size, size, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected = bundle.classifier()(given).softmax(1).numpy()
    model = keras.saving.load_model(export_keras(bundle, path))
    return numbers(model, np.ascontiguousarray(given.permute(0, 2, 3, 1).numpy())), expected


@pytest.mark.parametrize(
    ("network", "method"),
    [("resnet", "adapter:bottleneck=3"), ("resnet", "adapter:form=parallel"), ("vit", "adapter"), ("vit", "prompt:tokens=3")],
)  # fmt: skip
def test_what_a_method_put_into_the_network_is_written_for_keras(models, tmp_path, network, method):  # noqa: F811
    backbone = zoo.load_backbone(str(models / f"{network}.keras"), preprocess="none")
    head = Head(np.zeros((3, backbone.width), np.float32), np.zeros(3, np.float32), "linear")
    tunable = method_named(method).prepare(backbone, head, Recipe())
    drawn(
        tunable.classifier.trunk.get_submodule(
            method.partition(":")[0].replace("adapter", "adapters").replace("prompt", "prompts")
        )
    )
    bundle = bundle_of(tunable.backbone, tunable.classifier)
    found, expected = both(bundle, tmp_path / "out.keras")
    np.testing.assert_allclose(found, expected, atol=1e-4)
    plain = {**bundle.architecture, "changes": []}
    state = {
        name: one for name, one in bundle.state.items() if not name.startswith(("trunk.adapters", "trunk.prompts"))
    }
    without, _ = both(dataclasses.replace(bundle, architecture=plain, state=state), tmp_path / "plain.keras")
    assert np.abs(without - expected).max() > 1e-3, "the change would not be seen"


@pytest.mark.parametrize(
    "insert",
    [
        "body.stem_conv=batchnorm,body.stem_conv_relu=conv:3,body.add_?=linear,body.add_?.*_1_bn=layernorm",
        "body.stem_conv=gelu,body.stem_conv_relu=layernorm,body.add_?=batchnorm,body.add_?.*_1_bn=conv:1",
        "body.stem_conv=conv:5,body.stem_conv=dropout:0.3,body.stem_conv=relu,body.add_?=silu,body.add_?.*_1_bn=linear",
    ],
)
def test_layers_that_were_put_in_are_written_for_keras(models, tmp_path, insert):  # noqa: F811
    """Behind a convolution and before its activation, behind that, behind a block and within one."""
    backbone = zoo.load_backbone(str(models / "resnet.keras"), preprocess="none", insert=insert)
    for name, one in backbone.module.named_modules():
        if name.endswith(".added"):
            drawn(one)
    found, expected = both(bundle_of(backbone), tmp_path / "out.keras")
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_layers_with_the_names_that_keras_gives_operators_are_written_beside_some(tmp_path):
    """In a new process the first sum of two tensors is called add, as a layer of the network may be."""
    keras.utils.clear_session()
    given = keras.Input((SIZE, SIZE, 3))
    assert given * 0.5 + given is not None  # so that the operators below are the second ones
    x = layers.Conv2D(4, 5, strides=4)(given) * 0.5
    x = layers.Add(name="multiply")([x, layers.Conv2D(4, 3, padding="same")(x)]) + x
    x = layers.Add(name="add")([x, layers.Conv2D(4, 3, padding="same", name="mean_1")(x)])
    keras.Model(given, layers.Dense(2)(layers.GlobalAveragePooling2D()(x))).save(tmp_path / "m.keras")
    bundle = bundle_of(zoo.load_backbone(str(tmp_path / "m.keras"), preprocess="none"))
    keras.utils.clear_session()
    found, expected = both(bundle, tmp_path / "out.keras")
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_an_activation_that_was_taken_out_of_its_layer_stays_out(models, tmp_path):  # noqa: F811
    backbone = zoo.load_backbone(str(models / "resnet.keras"), preprocess="none", remove="body.stem_conv_relu")
    found, expected = both(bundle_of(backbone), tmp_path / "out.keras")
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_change_within_a_layer_of_keras_is_refused_by_name(models, tmp_path):  # noqa: F811
    backbone = zoo.load_backbone(str(models / "vit.keras"), preprocess="none", insert="*attention*.proj=relu")
    with pytest.raises(
        RecipeError, match=r"changed at body\.\S+\.proj, for which no Keras layer stands alone.*--to onnx"
    ):
        export_keras(bundle_of(backbone), tmp_path / "out.keras")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("activation", ["layer", "option"])
def test_the_hard_sigmoid_of_keras_2_is_written_in_layers_of_today(tmp_path, activation):
    given = keras.Input((SIZE, SIZE, 3))
    x = layers.Conv2D(4, 5, strides=4, activation=None if activation == "layer" else "hard_sigmoid")(given)
    x = layers.Activation("hard_sigmoid" if activation == "layer" else "relu")(x)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(x))
    keras.Model(given, layers.Dense(2)(x)).save(tmp_path / "old.h5")
    with h5py.File(tmp_path / "old.h5", "r+") as file:
        file.attrs["keras_version"] = "2.11.0"
    found, expected = both(
        bundle_of(zoo.load_backbone(str(tmp_path / "old.h5"), preprocess="none")), tmp_path / "out.keras"
    )
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_block_that_is_one_layer_is_read_by_heads_before_its_activation(tmp_path):
    """A separable convolution holds two: a block by itself, and its activation a step behind it."""
    given = keras.Input((SIZE, SIZE, 3))
    x = layers.Conv2D(4, 5, strides=4, activation="relu")(given)
    for name in ("one", "two"):
        x = layers.SeparableConv2D(6, 3, padding="same", activation="relu", name=name)(x)
    keras.Model(given, layers.Dense(2)(layers.GlobalAveragePooling2D()(x))).save(tmp_path / "m.keras")
    backbone = zoo.load_backbone(str(tmp_path / "m.keras"), preprocess="none")
    deep = tapped(backbone, torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)))
    assert deep is not None and deep.changes[0]["layers"] == ["body.one", "body.two"]
    found, expected = both(bundle_of(deep), tmp_path / "out.keras")
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_operators_on_numbers_and_a_pooling_of_the_usual_size_are_written(tmp_path, suffix):
    """As MobileNetV3 and DenseNet have them."""
    given = keras.Input((SIZE, SIZE, 3))
    x = 1.5 - layers.Conv2D(4, 5, strides=4)((given - np.array([0.1, 0.2, 0.3], np.float32)) / 2.0)
    x = layers.Multiply()([x, layers.ReLU(6.0)(x + 3.0) * (1.0 / 6.0)])
    x = layers.AveragePooling2D(2)(layers.Rescaling(1.0, offset=0.5)(x))
    keras.Model(given, layers.Dense(2)(layers.GlobalAveragePooling2D()(x))).save(tmp_path / "m.keras")
    found, expected = both(
        bundle_of(zoo.load_backbone(str(tmp_path / "m.keras"), preprocess="none")), tmp_path / f"out{suffix}"
    )
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_what_keras_does_not_open_again_is_not_written(models, tmp_path):  # noqa: F811
    """Keras 3.15 writes an operator on a constant to .h5, and does not read it."""
    bundle = bundle_of(zoo.load_backbone(str(models / "vit.keras"), preprocess="none"))
    with pytest.raises(RunError, match=r"does not open again what it wrote as \.h5.*ends in \.keras"):
        export_keras(bundle, tmp_path / "out.h5")
    assert list(tmp_path.iterdir()) == []
