"""Networks of Keras that ask for too much memory or work, or have layers with odd names: refused in a sentence, or right."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from hostile.keras import chained, conv, images_of_size, keras_file, layer, model_of, put_in_place
from loading import GIVEN, refused
from test_hdf5_hostile import POOL

from burnish.backbones import zoo
from burnish.backbones.keras import graph
from burnish.backbones.keras.configs import Parsed, _Parser
from burnish.backbones.keras.options import Unfit
from burnish.errors import UnknownModel


def _net(*nodes: tuple[str, str, dict[str, Any], list[str]], size: int = 224) -> dict[str, Any]:
    """A network as a package describes it."""
    names = ("name", "kind", "options", "inputs")
    return {
        "nodes": [dict(zip(names, node, strict=True)) for node in nodes],
        "constants": {},
        "size": size,
        "bgr": False,
    }


# ---- memory ----------------------------------------------------------------------------------------------------------


def _wide(file: Any) -> None:
    put_in_place(file, "layers/conv2d/vars/0", np.zeros((1, 1, 3, 512), np.float32))
    put_in_place(file, "layers/conv2d/vars/1", np.zeros(512, np.float32))


def _branches(count: int) -> dict[str, Any]:
    wide = conv(filters=512, kernel_size=[1, 1]) | {"inbound_nodes": [[["images", 0, 0, {}]]]}
    arms = [layer("ReLU", f"arm{number}", "conv") for number in range(count)]
    add = layer("Add", "add")
    add["inbound_nodes"] = [[[one["name"], 0, 0, {}] for one in arms]]
    return model_of(images_of_size(224), wide, *arms, add, layer("GlobalAveragePooling2D", "pool", "add"))


def test_branches_that_are_all_kept_at_one_time_are_refused(tmp_path):
    pytest.importorskip("h5py", reason="h5py is not installed: pip install 'burnish[keras]'")
    sentence = refused(keras_file(tmp_path, _branches(30), _wide))
    assert "536,870,912 numbers to be kept at one time" in sentence and "arm" in sentence


def test_layers_one_after_the_other_are_not_kept_all():
    wide = ("conv", "Conv2D", {"filters": 512, "kernel_size": [1, 1]}, ["input"])
    chain = [(f"r{n}", "ReLU", {}, [f"r{n - 1}" if n else "conv"]) for n in range(40)]
    assert graph.blank("net", _net(wide, *chain, ("pool", "GlobalAveragePooling2D", {}, ["r39"])))


# ---- work ------------------------------------------------------------------------------------------------------------


def test_a_convolution_as_wide_as_the_images_is_refused_for_its_work(tmp_path):
    pytest.importorskip("h5py", reason="h5py is not installed: pip install 'burnish[keras]'")
    options = {"filters": 1, "kernel_size": [511, 511], "padding": "same", "use_bias": False}
    pool = ("pool", "GlobalAveragePooling2D", {}, ["conv"])
    with pytest.raises(UnknownModel, match="multiply-adds"):
        graph.blank("net", _net(("conv", "Conv2D", options, ["input"]), pool, size=4096))

    def fill(file: Any) -> None:
        put_in_place(file, "layers/conv2d/vars/0", np.zeros((511, 511, 3, 1), np.float32))

    sentence = refused(keras_file(tmp_path, chained(conv(**options), layer(*POOL), size=4096), fill))
    assert re.search(r"the work for one image to \S+ multiply-adds, expected at most", sentence)


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_a_pooling_as_wide_as_the_images_is_refused_for_its_work(padding):
    options = {"pool_size": [511, 511], "strides": [1, 1], "padding": padding}
    with pytest.raises(UnknownModel, match="multiply-adds"):
        graph.blank(
            "net",
            _net(("q", "MaxPooling2D", options, ["input"]), ("p", "GlobalAveragePooling2D", {}, ["q"]), size=4096),
        )


def test_attention_over_a_million_places_is_refused_for_its_work():
    flat = ("r", "Reshape", {"target_shape": [1024**2, 3]}, ["input"])
    attends = ("m", "MultiHeadAttention", {"num_heads": 1, "key_dim": 8}, ["r", "r"])
    with pytest.raises(UnknownModel, match="multiply-adds"):
        graph.blank("net", _net(flat, attends, ("p", "GlobalAveragePooling1D", {}, ["m"]), size=1024))


def test_the_work_of_all_layers_counts_together():
    part = {"filters": 64, "kernel_size": [15, 15], "padding": "same"}
    layers = [(f"c{number}", "Conv2D", part, [f"c{number - 1}" if number else "input"]) for number in range(60)]
    pool = ("pool", "GlobalAveragePooling2D", {}, ["c9"])
    assert graph.blank("net", _net(*layers[:10], pool, size=224))
    with pytest.raises(UnknownModel, match="the work for one image"):
        graph.blank("net", _net(*layers, pool, size=224))


# ---- names, sizes, constants -----------------------------------------------------------------------------------------


NAMES = (
    "training",
    "forward",
    "_buffers",
    "_modules",
    "_forward_hooks",
    "plan",
    "over",
    "images",
    "body",
    "bgr",
    "call_super_init",
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", ["alone", "in a block", "as its end"])
def test_a_layer_may_have_the_name_of_what_a_network_of_torch_has_itself(name, place, tmp_path):
    pytest.importorskip("h5py", reason="h5py is not installed: pip install 'burnish[keras]'")
    given = {"inbound_nodes": [[["images" if name != "images" else "input_1", 0, 0, {}]]]}

    def named(own: str) -> dict[str, Any]:
        first, images = conv("conv", padding="same") | given, images_of_size(name=given["inbound_nodes"][0][0][0])
        if place == "alone":
            layers = [conv(own, padding="same") | given, layer("ReLU", "last", own)]
        elif place == "in a block":
            layers = [first, layer("ReLU", own, "conv"), layer("Add", "last", "conv", own)]
        else:
            layers = [
                first,
                layer("ReLU", "relu", "conv"),
                layer("Add", own, "conv", "relu"),
                layer("ReLU", "last", own),
            ]
        net = model_of(images, *layers, layer("GlobalAveragePooling2D", "pool", "last"))
        net["config"]["input_layers"] = [[images["name"], 0, 0]]
        return net

    found = []
    for own in (name, "plain"):
        backbone = zoo.load_backbone(str(keras_file(tmp_path, named(own))), preprocess="none")
        with torch.no_grad():
            found.append(backbone.module(GIVEN))
            assert torch.equal(backbone.module.train()(GIVEN), found[-1]) and backbone.module.training
            assert not backbone.module.eval().training
    assert torch.equal(found[0], found[1]) and found[0].abs().sum() > 0


def test_a_network_of_a_fixed_size_takes_its_own_size_alone(tmp_path):
    first = ("a", "Conv2D", {"filters": 8, "kernel_size": [3, 3], "strides": [8, 8], "padding": "same"}, ["input"])
    second = ("b", "Conv2D", {"filters": 16, "kernel_size": [3, 3], "strides": [4, 4], "padding": "same"}, ["a"])
    fixed = _net(first, second, ("p", "AveragePooling2D", {"pool_size": [7, 7]}, ["b"]), ("f", "Flatten", {}, ["p"]))
    assert [graph.takes_size(graph.blank("net", fixed), "net", fixed, size) for size in (224, 256, 448)] == [
        True,
        True,
        False,
    ]
    free = _net(first, second, ("p", "GlobalAveragePooling2D", {}, ["b"]))
    assert [graph.takes_size(graph.blank("net", free), "net", free, size) for size in (224, 256, 448)] == [
        True,
        True,
        True,
    ]


@pytest.mark.parametrize("units", [3, 10**12, -5])
def test_a_classifier_on_bare_pixels_is_no_network_to_tune(units, tmp_path):
    pytest.importorskip("h5py", reason="h5py is not installed: pip install 'burnish[keras]'")
    net = chained(layer("Flatten", "flat"), layer("Dense", "d", units=units, activation="softmax"))
    assert "no layer below its classifier, the layer d, has weights" in refused(keras_file(tmp_path, net))
    assert "no layer has weights" in refused(keras_file(tmp_path, chained(layer("GlobalAveragePooling2D", "pool"))))


def test_images_of_a_size_that_a_keras_file_cannot_take_are_refused(tmp_path):
    pytest.importorskip("h5py", reason="h5py is not installed: pip install 'burnish[keras]'")
    small = conv(strides=[32, 32], padding="same")
    net = chained(small, layer("AveragePooling2D", "pool", pool_size=[7, 7]), layer("Flatten", "flat"), size=224)
    path = keras_file(tmp_path, net)
    assert zoo.load_backbone(str(path), preprocess="none").width == 4
    assert "448" in refused(path, image_size=448)


@pytest.mark.parametrize("value", [10**400, float("inf"), float("nan"), [1.0, float("nan")], "1", None])
def test_a_constant_that_is_no_number_is_refused(value):
    with pytest.raises(Unfit, match="no number"):
        _Parser(Parsed([], [], []))._constant("add", value)
