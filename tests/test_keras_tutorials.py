"""Keras files as people save them who followed a page on the web: read, and written back, or refused with what to do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_backbones_keras import keras, layers, numbers, ops
from test_export_keras_changed import both, bundle_of
from test_keras_in_the_wild import seen, trunk_of

from burnish.backbones import zoo
from burnish.errors import BadWeights

SIZE = 16  # pixels


def pooled(tokens):
    return layers.GlobalAveragePooling1D()(tokens)


def start():
    """(images, tokens [16 8] of them)."""
    given = keras.Input((SIZE, SIZE, 3))
    maps = layers.Conv2D(8, 4, strides=4, activation="relu")(layers.Rescaling(1 / 255)(given))
    return given, maps, layers.Reshape((16, 8))(maps)


def attention():
    """Luong's and Bahdanau's, with and without scales and keys."""
    given, _, x = start()
    y = layers.Dense(8, name="keys")(x)
    several = [layers.Attention(use_scale=True)([x, y]), layers.AdditiveAttention()([x, y]), layers.Attention()([x, y, x]),
               layers.AdditiveAttention(use_scale=False)([x, y])]  # fmt: skip
    return given, pooled(layers.Concatenate()(several))


def grouped():
    given, _, x = start()
    x = layers.Add()([x, layers.GroupQueryAttention(6, 4, 2)(x, x)])
    return given, pooled(layers.RMSNormalization()(x))


def mobilevit():
    """Attention over two axes of tokens, as the page on MobileViT has it."""
    given, maps, _ = start()
    x = layers.Reshape((4, 4, 8))(maps)
    x = layers.Add()([x, layers.MultiHeadAttention(2, 8)(layers.LayerNormalization()(x), x)])
    x = layers.RMSNormalization()(layers.Reshape((4, 4, 8))(x))
    return given, layers.GlobalAveragePooling2D()(layers.Conv2D(6, 3, activation="swish")(x))


def external():
    """EANet's attention: a softmax over the tokens, then each divided by its sum."""
    given, _, x = start()
    y = ops.transpose(ops.reshape(x, (-1, 16, 2, 4)), axes=[0, 2, 1, 3])
    y = layers.Softmax(axis=2)(layers.Dense(3)(y))
    y = ops.divide(y, 1e-9 + ops.sum(y, axis=-1, keepdims=True))
    y = ops.reshape(ops.transpose(layers.Dense(4)(y), axes=[0, 2, 1, 3]), [-1, 16, 8])
    return given, pooled(layers.Add()([x, y]))


def gated():
    """Gates of channels (ECA) and of places (CBAM), a mean along one axis, and a feature vector of length 1."""
    given, x, _ = start()
    gate = layers.Conv1D(1, 3, padding="same", use_bias=False)(ops.expand_dims(layers.GlobalAveragePooling2D()(x), -1))
    gate = ops.expand_dims(ops.expand_dims(ops.squeeze(layers.Activation("sigmoid")(gate), -1), 1), 1)
    x = layers.Multiply()([x, gate])
    x = ops.pad(x, [[0, 0], [1, 2], [0, 1], [0, 0]])
    x = layers.MaxPooling2D(2)(
        ops.pad(x - 1, [[0, 0], [1, 0], [0, 1], [0, 0]], constant_values=-np.inf)
    )  # keras_hub's ResNets
    places = layers.Concatenate()([ops.mean(x, axis=-1, keepdims=True), ops.max(x, axis=-1, keepdims=True)])
    x = layers.Multiply()([x, layers.Conv2D(1, 3, padding="same", activation="sigmoid")(places)])
    rows = layers.Conv1D(5, 2, strides=2, dilation_rate=1)(ops.mean(x, axis=2))
    return given, ops.normalize(layers.Concatenate()([layers.Flatten()(rows), ops.max(x, axis=[1, 2])]), axis=-1)


def spectral():
    given = keras.Input((SIZE, SIZE, 3))
    x = layers.SpectralNormalization(layers.Conv2D(6, 3, strides=2, activation="relu"))(
        layers.Rescaling(1 / 255)(given)
    )
    return given, layers.SpectralNormalization(layers.Dense(5))(layers.GlobalAveragePooling2D()(x))


PAGES = [attention, grouped, mobilevit, external, gated, spectral]


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_it_gives_the_features_that_keras_gives(page, suffix, tmp_path):
    keras.utils.set_random_seed(1)
    backbone, images, expected = trunk_of(tmp_path / f"m.{suffix}", *page())
    assert np.abs(expected).max() > 1e-2
    np.testing.assert_allclose(seen(backbone, images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("page", PAGES)
def test_it_goes_back_to_keras(page, tmp_path):
    given, features = page()
    keras.Model(given, layers.Dense(2)(features)).save(tmp_path / "m.keras")
    found, expected = both(
        bundle_of(zoo.load_backbone(str(tmp_path / "m.keras"), preprocess="none")), tmp_path / "out.keras"
    )
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_grey_images_without_an_axis_for_channels_are_read(suffix, tmp_path):
    """The first page of all: Flatten on digits [28 28]."""
    digits = [
        keras.Input((12, 12)),
        layers.Flatten(),
        layers.Dense(6, activation="relu"),
        layers.Dropout(0.2),
        layers.Dense(3),
    ]
    model = keras.Sequential(digits)
    model.save(tmp_path / f"m.{suffix}")
    backbone = zoo.load_backbone(str(tmp_path / f"m.{suffix}"), preprocess="none")
    images = np.random.default_rng(0).uniform(0, 255, (2, 12, 12)).astype(np.float32)
    expected = numbers(keras.Model(model.inputs, model.layers[1].output), images)
    assert backbone.preprocess.size == 12 and any("made for grey images" in note for note in backbone.notes)
    np.testing.assert_allclose(seen(backbone, images[..., None]), expected, rtol=1e-4, atol=1e-4)
    found, expected = both(bundle_of(backbone), tmp_path / "out.keras")
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_images_that_are_resized_on_one_way_alone_keep_their_size(tmp_path):
    """The page on learning to resize: convolutions see the whole image beside a small one."""
    given = keras.Input((24, 24, 3))
    small = layers.Resizing(SIZE, SIZE)(given)
    x = layers.Resizing(SIZE, SIZE)(layers.Conv2D(3, 5, padding="same", activation="relu")(given))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(6, 3)(layers.Add()([small, x])))
    backbone, images, expected = trunk_of(tmp_path / "m.keras", given, x)
    assert backbone.preprocess.size == 24
    np.testing.assert_allclose(seen(backbone, images), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_a_registered_layer_of_the_page_is_refused_with_what_to_do(suffix, tmp_path):
    """Patches of the page on vision transformers."""

    @keras.saving.register_keras_serializable(package="Page")
    class Patches(layers.Layer):
        def call(self, images):
            return ops.reshape(images, (-1, 64, 12))

    given = keras.Input((SIZE, SIZE, 3))
    keras.Model(given, layers.Dense(2)(pooled(layers.Dense(4)(Patches()(given))))).save(tmp_path / f"m.{suffix}")
    with pytest.raises(
        BadWeights, match=r"the (registered )?class (Page>)?Patches.* so it was not built; .*copy the weights"
    ):
        zoo.load_backbone(str(tmp_path / f"m.{suffix}"), preprocess="none")


def test_attention_that_would_keep_too_many_numbers_is_refused():
    from burnish.backbones.keras import attention as kinds
    from burnish.backbones.keras.options import Unfit

    with pytest.raises(Unfit, match="keeps 4,294,967,296 numbers an image"):
        kinds.additive({"use_scale": True}, [(1, 4096, 256), (1, 4096, 256)])
    assert isinstance(kinds.additive({"use_scale": True}, [(1, 64, 8)] * 2).module, torch.nn.Module)
