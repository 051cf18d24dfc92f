"""Keras files as people's own networks leave them: they give the features that Keras gives."""

from __future__ import annotations

import numpy as np
import pytest
from test_backbones_keras import keras, layers, numbers, ops, run

from burnish import api
from burnish.backbones import zoo
from burnish.errors import BadWeights


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


def test_a_layer_with_weights_called_twice_is_refused(tmp_path):
    given, layer = keras.Input((16, 16, 3)), layers.Conv2D(3, 3, padding="same")
    with pytest.raises(BadWeights, match="is called 2 times, expected once"):
        trunk_of(tmp_path / "m.keras", given, layers.GlobalAveragePooling2D()(layer(layer(given))))


def test_a_function_as_activation_is_refused_with_what_to_say_instead(tmp_path):
    def swish(x):  # of the user's own
        return x * ops.sigmoid(2 * x)

    given = keras.Input((16, 16, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, activation=swish)(given))
    with pytest.raises(
        BadWeights, match=r"a function called 'swish', whose code is not in the file; .*activation='swish'"
    ):
        trunk_of(tmp_path / "m.keras", given, x)


def test_a_network_with_two_outputs_says_how_to_save_its_trunk(tmp_path):
    given = keras.Input((16, 16, 3))
    x = layers.GlobalAveragePooling2D(name="pool")(layers.Conv2D(4, 3)(given))
    network = keras.Model(given, [layers.Dense(2)(x), layers.Dense(3)(x)])
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
