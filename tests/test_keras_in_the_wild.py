"""Keras files as people's own networks leave them: they give the features that Keras gives."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest
from test_backbones_keras import keras, layers, numbers, ops, run

from burnish import api
from burnish.backbones import zoo
from burnish.backbones.keras.entries import Reference, arguments, class_of
from burnish.backbones.keras.options import Unfit
from burnish.errors import BadWeights, BurnishError, RecipeError


def trunk_of(path, given, features):
    """The backbone of a classifier on these features, and images [2 16 16 c] of 0 to 255 with what Keras gives for them."""
    keras.Model(given, layers.Dense(2)(features)).save(path)
    backbone = zoo.load_backbone(str(path), preprocess="none")
    images = np.random.default_rng(0).uniform(0, 255, (2, *given.shape[1:])).astype(np.float32)
    return backbone, images, numbers(keras.Model(given, features), images)


def seen(backbone, images):
    """The features of pixels of 0 to 255; grey ones have the same number for each colour."""
    mean, std = np.float32(backbone.preprocess.mean), np.float32(backbone.preprocess.std)
    return run(backbone, ((np.broadcast_to(images, (*images.shape[:3], 3)) / 255 - mean) / std).astype(np.float32))


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_a_network_for_grey_images_gives_what_keras_gives(suffix, tmp_path):
    given = keras.Input((16, 16, 1))
    x = layers.Conv2D(4, 3, activation="relu")(layers.Rescaling(1 / 255)(given))
    backbone, images, expected = trunk_of(tmp_path / f"grey.{suffix}", given, layers.GlobalAveragePooling2D()(x))
    np.testing.assert_allclose(seen(backbone, images), expected, rtol=1e-4, atol=1e-5)
    assert any("made for grey images" in note for note in backbone.notes)


def test_a_network_for_grey_images_is_tuned_and_goes_back_to_keras(tmp_path, shapes):
    network = keras.Sequential(
        [keras.Input((16, 16, 1)), layers.Rescaling(1 / 255), layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(3)]
    )
    network.save(tmp_path / "grey.keras")
    result = api.fit(
        shapes,
        model=str(tmp_path / "grey.keras"),
        preprocess="none",
        method="full",
        epochs=1,
        budget=None,
        out=tmp_path / "run",
    )
    exported = api.export(result.folder, tmp_path / "tuned.keras", input="pixels")  # which compares the probabilities
    assert keras.saving.load_model(exported).input_shape == (None, 16, 16, 3)


def test_a_network_of_crops_and_shared_layers_is_tuned_and_goes_back_to_keras(tmp_path, shapes):
    given, dense = keras.Input((16, 20, 3)), layers.Dense(4, name="gate")
    x = layers.Conv2D(4, 3)(layers.Resizing(10, 11)(layers.CenterCrop(14, 16)(layers.ReLU()(given))))
    gates = [dense(layers.GlobalAveragePooling2D()(x)), dense(layers.GlobalMaxPooling2D()(x))]
    keras.Model(given, layers.Dense(3)(layers.Add()(gates))).save(tmp_path / "m.keras")
    result = api.fit(
        shapes,
        model=str(tmp_path / "m.keras"),
        preprocess="none",
        method="full",
        head="cosine",
        epochs=1,
        budget=None,
        out=tmp_path / "run",
    )
    exported = api.export(result.folder, tmp_path / "tuned.keras", input="pixels")  # which compares the probabilities
    again = zoo.load_backbone(str(exported), preprocess="none")
    assert again.width == 4 and again.preprocess.size == 20


def test_layers_that_only_augment_are_nothing_in_use(tmp_path):
    given = keras.Input((16, 16, 3))
    x = layers.RandomErasing()(layers.RandomGrayscale()(layers.RandomFlip()(given)))
    x = layers.RandomColorJitter((0, 255), 0.1, 0.1, 0.1, 0.1)(x)
    x = layers.RandomShear(0.1)(layers.RandomHue(0.1)(layers.RandomSharpness(0.1)(layers.RandomGaussianBlur()(x))))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(x))
    backbone, images, expected = trunk_of(tmp_path / "m.keras", given, x)
    np.testing.assert_allclose(seen(backbone, images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_a_layer_without_weights_may_be_called_again_and_again(suffix, tmp_path):
    given, relu, pool = keras.Input((16, 16, 3)), layers.ReLU(), layers.MaxPooling2D()
    before = relu(layers.Conv2D(4, 3)(given))
    x = relu(layers.Conv2D(4, 3, padding="same")(pool(before)))
    x = layers.Concatenate()([layers.Conv2D(4, 3, padding="same")(pool(x)), layers.Conv2D(2, 5)(pool(before))])
    backbone, images, expected = trunk_of(tmp_path / f"m.{suffix}", given, layers.GlobalAveragePooling2D()(relu(x)))
    np.testing.assert_allclose(seen(backbone, images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_layers_and_models_with_weights_may_be_called_twice(suffix, tmp_path):
    """As an attention over channels calls its dense layers on the mean and on the maximum."""
    given, inner = keras.Input((16, 16, 3)), keras.Input((16, 16, 3))
    model = keras.Model(inner, layers.BatchNormalization(name="norm")(layers.Conv2D(3, 3, padding="same")(inner)))
    x, dense = model(layers.Rescaling(1 / 255)(model(given))), layers.Dense(3, name="gate")
    gates = [dense(layers.GlobalAveragePooling2D()(x)), dense(layers.GlobalMaxPooling2D()(x))]
    x = layers.Multiply()([x, layers.Reshape((1, 1, 3))(layers.Add()(gates))])
    backbone, images, expected = trunk_of(tmp_path / f"m.{suffix}", given, layers.GlobalAveragePooling2D()(x))
    np.testing.assert_allclose(seen(backbone, images), expected, rtol=1e-4, atol=1e-4)
    note = next(one for one in backbone.notes if "called several times" in one)
    assert "tuned apart for each call" in note and "gate" in note and "norm" in note


def test_keras_2_counts_the_calls_of_a_model_from_one(tmp_path):
    """tf_keras 2.21 writes ["model", 1, 0, {}] for the first of two calls."""
    given, inner = keras.Input((16, 16, 3)), keras.Input((16, 16, 3))
    model = keras.Model(inner, layers.Conv2D(3, 3, padding="same")(inner), name="model")
    x = layers.Concatenate(name="both")([model(given), model(layers.Rescaling(2.0, name="scaled")(given))])
    backbone, images, expected = trunk_of(tmp_path / "m.keras", given, layers.GlobalAveragePooling2D()(x))
    with zipfile.ZipFile(tmp_path / "m.keras") as made:
        parts = {name: made.read(name) for name in made.namelist()}
    config = json.loads(parts["config.json"])
    for layer in config["config"]["layers"]:
        if layer["name"] == "both":
            layer["inbound_nodes"] = [[["model", 1, 0, {}], ["model", 2, 0, {}]]]
    with zipfile.ZipFile(tmp_path / "old.keras", "w") as file:
        for name, data in {**parts, "config.json": json.dumps(config).encode()}.items():
            file.writestr(name, data)
    assert b"model" in parts["config.json"]
    old = zoo.load_backbone(str(tmp_path / "old.keras"), preprocess="none")
    np.testing.assert_allclose(seen(old, images), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(seen(old, images), seen(backbone, images))


def test_a_bias_of_tensorflows_preprocessing_is_read():
    """As Keras 2 writes preprocess_input inside a network."""
    call = ["images", 0, 0, {"bias": [-103.9, -116.8, -123.7], "data_format": "NHWC"}]
    order, options = arguments([call], "Add")
    assert order == [Reference("images", 0), [-103.9, -116.8, -123.7]] and options == {}
    with pytest.raises(Unfit, match="data_format"):
        arguments([[*call[:3], {**call[3], "data_format": "NCHW"}]], "Add")


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_a_network_for_oblong_images_is_given_squares_that_it_squeezes(suffix, tmp_path):
    given = keras.Input((12, 20, 3))
    x = layers.Flatten()(layers.Conv2D(4, 3, strides=4)(layers.Rescaling(1 / 255)(given)))
    model = keras.Model(given, layers.Dense(2)(x))
    model.save(tmp_path / f"m.{suffix}")
    backbone = zoo.load_backbone(str(tmp_path / f"m.{suffix}"), preprocess="none")
    assert backbone.preprocess.size == 20 and backbone.one_size
    images = np.random.default_rng(0).uniform(0, 255, (2, 20, 20, 3)).astype(np.float32)
    squeezed = keras.ops.convert_to_numpy(layers.Resizing(12, 20)(images))
    np.testing.assert_allclose(seen(backbone, images), numbers(keras.Model(given, x), squeezed), rtol=1e-4, atol=1e-4)
    assert any("made for images of 12 × 20 pixels" in note for note in backbone.notes)
    with pytest.raises(RecipeError, match="20 pixels only, not 40"):
        zoo.load_backbone(str(tmp_path / f"m.{suffix}"), preprocess="none", image_size=40)


def test_crops_and_resizing_within_a_network_are_read(tmp_path):
    given = keras.Input((32, 32, 3))
    x = layers.Resizing(20, 14)(layers.CenterCrop(21, 24)(layers.Rescaling(1 / 255)(given)))
    x = layers.RandomCrop(12, 12)(layers.Resizing(12, 12, interpolation="nearest")(layers.Conv2D(4, 3)(x)))
    x = layers.UnitNormalization()(layers.GlobalAveragePooling2D()(x))
    backbone, images, expected = trunk_of(tmp_path / "m.keras", given, x)
    assert backbone.preprocess.size == 32
    np.testing.assert_allclose(seen(backbone, images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("crop", "sentence"),
    [
        (lambda: layers.CenterCrop(40, 40), r"cuts 40 × 40 out of 32 × 32; give larger images"),
        (lambda: layers.Resizing(8, 8, interpolation="bicubic"), "bilinear or nearest"),
        (lambda: layers.Resizing(8, 9, crop_to_aspect_ratio=True), "without cutting and padding"),
    ],
)
def test_crops_and_resizing_that_would_be_another_function_are_refused(crop, sentence, tmp_path):
    given = keras.Input((32, 32, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(crop()(layers.ReLU()(given))))
    with pytest.raises(BurnishError, match=sentence):
        trunk_of(tmp_path / "m.keras", given, x)


@pytest.mark.parametrize("form", ["several outputs", "several dropouts"])
def test_several_heads_on_the_same_features_are_left_out_together(form, tmp_path):
    given = keras.Input((16, 16, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(layers.Rescaling(1 / 255)(given)))
    if form == "several outputs":
        outputs = [
            layers.Dense(2, name="a", activation="softmax")(x),
            layers.Dense(1, name="b")(layers.Dropout(0.1)(x)),
        ]
    else:
        head = layers.Dense(3, name="a")
        outputs = layers.Average()([head(layers.Dropout(rate)(x)) for rate in (0.1, 0.2)])
    keras.Model(given, outputs).save(tmp_path / "m.keras")
    backbone = zoo.load_backbone(str(tmp_path / "m.keras"), preprocess="none")
    images = np.random.default_rng(0).uniform(0, 255, (2, 16, 16, 3)).astype(np.float32)
    np.testing.assert_allclose(seen(backbone, images), numbers(keras.Model(given, x), images), rtol=1e-4, atol=1e-5)
    wanted = "a, b" if form == "several outputs" else "a"
    assert f"its head, the layer {wanted}, is left out" in backbone.notes


def test_a_last_layer_with_an_activation_of_its_own_gives_features(tmp_path):
    given = keras.Input((16, 16, 3))
    x = layers.Flatten()(layers.Conv2D(4, 3)(given))
    model = keras.Model(given, layers.Activation("relu")(layers.Dense(8)(x)))
    model.save(tmp_path / "m.keras")
    assert zoo.load_backbone(str(tmp_path / "m.keras"), preprocess="none").width == 8


def test_a_quantised_layer_is_refused_unless_it_is_the_head(tmp_path):
    given = keras.Input((16, 16, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(layers.Rescaling(1 / 255)(given)))
    model = keras.Model(given, layers.Dense(2, name="top")(layers.Dense(8, name="mid")(x)))
    model.get_layer("top").quantize("int8")
    model.save(tmp_path / "top.keras")
    assert zoo.load_backbone(str(tmp_path / "top.keras"), preprocess="none").width == 8
    model.get_layer("mid").quantize("int8")
    for suffix in ("keras", "h5"):
        model.save(tmp_path / f"all.{suffix}")
        with pytest.raises(BadWeights, match=r"its layer mid is quantised \(int8\); save the model before that"):
            zoo.load_backbone(str(tmp_path / f"all.{suffix}"), preprocess="none")


def test_a_model_of_keras_hub_says_how_its_plain_layers_are_saved():
    with pytest.raises(
        Unfit, match=r"ResNetBackbone of the module keras_hub.*keras.Model\(backbone.input, backbone.output\)"
    ):
        class_of({"class_name": "ResNetBackbone", "module": "keras_hub.src.models.resnet.resnet_backbone"})
    with pytest.raises(
        Unfit, match=r"ViTEncoder of the module keras_hub.*layers of its own, so take it from timm by name"
    ):
        class_of({"class_name": "ViTEncoder", "module": "keras_hub.src.models.vit.vit_layers"})
    with pytest.raises(Unfit, match=r"not built$"):
        class_of({"class_name": "system", "module": "os"})


@pytest.mark.parametrize("registered", [True, False])
def test_a_model_of_a_class_of_ones_own_is_read_when_what_the_refusal_says_is_done(registered, tmp_path):
    class Subclassed(keras.Model):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.conv, self.pool, self.out = layers.Conv2D(4, 3), layers.GlobalAveragePooling2D(), layers.Dense(2)

        def call(self, inputs):
            return self.out(self.pool(self.conv(inputs)))

    if registered:
        keras.saving.register_keras_serializable("own")(Subclassed)
    model, pixels = Subclassed(), np.random.default_rng(0).uniform(0, 255, (2, 16, 16, 3)).astype(np.float32)
    numbers(model, pixels)
    model.save(tmp_path / "own.keras")
    with pytest.raises(BadWeights, match=r"keras.Model\(images, model.call\(images\)\).save"):
        zoo.load_backbone(str(tmp_path / "own.keras"), preprocess="none")
    images = keras.Input((16, 16, 3))
    keras.Model(images, model.call(images)).save(tmp_path / "model.keras")
    backbone = zoo.load_backbone(str(tmp_path / "model.keras"), preprocess="none")
    expected = numbers(keras.Sequential([model.conv, model.pool]), pixels)
    np.testing.assert_allclose(seen(backbone, pixels), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        ("__main__", r"its layer \w+ is of the class Mine, whose code is not in the file"),
        ("mine.net", "module mine.net"),
    ],
)
def test_a_layer_of_ones_own_class_is_called_by_its_name(module, sentence, tmp_path):
    class Mine(layers.Layer):
        def call(self, inputs):
            return 2 * inputs

    Mine.__module__ = module
    given = keras.Input((16, 16, 3))
    with pytest.raises(BadWeights, match=sentence):
        trunk_of(tmp_path / "m.keras", given, layers.GlobalAveragePooling2D()(Mine()(layers.Conv2D(4, 3)(given))))


def test_a_function_as_activation_is_refused_with_what_to_say_instead(tmp_path):
    def swish(x):  # of the user's own
        return x * ops.sigmoid(2 * x)

    given = keras.Input((16, 16, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, activation=swish)(given))
    with pytest.raises(
        BadWeights, match=r"a function called 'swish', whose code is not in the file; .*activation='swish'"
    ):
        trunk_of(tmp_path / "m.keras", given, x)


def test_a_network_whose_two_outputs_come_of_other_features_says_how_to_save_its_trunk(tmp_path):
    given = keras.Input((16, 16, 3))
    x = layers.GlobalAveragePooling2D(name="pool")(layers.Conv2D(4, 3)(given))
    network = keras.Model(given, [layers.Dense(2)(x), layers.Dense(3)(layers.Dense(3)(x))])
    network.save(tmp_path / "m.keras")
    with pytest.raises(BadWeights, match=r"1 inputs and 2 outputs, .*keras.Model\(model.inputs\[0\]"):
        zoo.load_backbone(str(tmp_path / "m.keras"), preprocess="none")
    keras.Model(network.inputs[0], network.get_layer("pool").output).save(tmp_path / "trunk.keras")
    assert zoo.load_backbone(str(tmp_path / "trunk.keras"), preprocess="none").width == 4


@pytest.mark.parametrize("form", ["sequential", "functional", "subclass"])
def test_of_weights_alone_a_network_within_a_model_with_a_head_of_ones_own_is_read(form, tmp_path):
    network = keras.applications.MobileNet(weights=None, include_top=False, input_shape=(32, 32, 3), pooling="avg")
    given = keras.Input((32, 32, 3))
    if form == "sequential":
        whole = keras.Sequential(
            [given, layers.Rescaling(1 / 127.5, offset=-1), network, layers.Dense(8), layers.Dense(3)]
        )
    elif form == "functional":
        x = network(layers.Rescaling(1 / 127.5, offset=-1)(given), training=False)
        whole = keras.Model(given, layers.Dense(3)(layers.Dropout(0.2)(x)))
    else:

        class Own(keras.Model):
            def __init__(self):
                super().__init__()
                self.below, self.above = network, layers.Dense(3)

            def call(self, inputs):
                return self.above(self.below(inputs))

        whole = Own()
        whole(np.zeros((1, 32, 32, 3), np.float32))
    whole.save_weights(tmp_path / "a.weights.h5")
    backbone = zoo.load_backbone(str(tmp_path / "a.weights.h5"), preprocess="keras:mobilenet", image_size=32)
    images = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype(np.float32)
    np.testing.assert_allclose(seen(backbone, images), numbers(network, images / 127.5 - 1), rtol=1e-3, atol=1e-5)
    assert any("the layers around that network are left out" in note for note in backbone.notes)
