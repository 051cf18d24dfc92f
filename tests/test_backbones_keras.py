"""Promises of Keras files: the network that Keras saved gives the numbers that Keras gives, or a sentence says why not."""

import json
import os
import random
import struct
import sys
import zipfile
from functools import cached_property

import numpy as np
import pytest
import torch
from PIL import Image

from burnish import api
from burnish.backbones import zoo
from burnish.backbones.changing.taps import tapped
from burnish.backbones.fast.cut import cut
from burnish.backbones.fast.fold import fold_trainable, folded_count
from burnish.backbones.fast.frozen import fold_for_inference
from burnish.backbones.keras import applications
from burnish.backbones.keras.layers import KINDS
from burnish.data.pixels import decode, view
from burnish.data.views import normalised
from burnish.errors import BadWeights, ModelError, RecipeError, UnknownModel
from burnish.ship.bundle import read_bundle

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras", reason="keras is not installed: pip install 'burnish[keras]'")
h5py = pytest.importorskip("h5py")
layers, ops = keras.layers, keras.ops

SIZE = 64  # pixels
CLASSES = 5


# ---- the networks, made and run by Keras -----------------------------------------------------------------------------


def _residual(x, width, stride, name):
    shortcut = x
    if stride > 1 or x.shape[-1] != width:
        shortcut = layers.Conv2D(width, 1, strides=stride, name=f"{name}_0_conv")(x)
        shortcut = layers.BatchNormalization(epsilon=1.001e-5, name=f"{name}_0_bn")(shortcut)
    x = layers.Conv2D(width, 3, strides=stride, padding="same", use_bias=False, name=f"{name}_1_conv")(x)
    x = layers.BatchNormalization(epsilon=1.001e-5, name=f"{name}_1_bn")(x)
    x = layers.Activation("relu", name=f"{name}_1_relu")(x)
    x = layers.Conv2D(width, 3, padding="same", name=f"{name}_2_conv")(x)
    x = layers.BatchNormalization(epsilon=1.001e-5, name=f"{name}_2_bn")(x)
    return layers.Activation("relu", name=f"{name}_out")(layers.Add(name=f"{name}_add")([shortcut, x]))


def _resnet_trunk(given):
    x = layers.ZeroPadding2D(((3, 3), (3, 3)), name="conv1_pad")(given)
    x = layers.Conv2D(8, 7, strides=2, name="conv1_conv")(x)
    x = layers.BatchNormalization(name="conv1_bn")(x)
    x = layers.MaxPooling2D(3, strides=2, padding="same", name="pool1_pool")(layers.Activation("relu")(x))
    for stage, width in ((2, 8), (3, 16), (4, 24)):
        for block in (1, 2):
            stride = 2 if block == 1 and stage > 2 else 1
            x = _residual(x, width, stride, f"conv{stage}_block{block}")
    return layers.GlobalAveragePooling2D(name="avg_pool")(x)


def resnet():
    given = keras.Input((SIZE, SIZE, 3))
    return keras.Model(given, layers.Dense(CLASSES, activation="softmax")(_resnet_trunk(given)), name="little_resnet")


def vit():
    width, count = 24, (SIZE // 16) ** 2
    given = keras.Input((SIZE, SIZE, 3))
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(given)
    x = layers.Conv2D(width, 16, strides=16, name="patches")(x)
    x = layers.Reshape((count, width))(x)
    x = layers.Add()(
        [x, layers.Embedding(count, width, name="baked")(np.arange(count)[None])]
    )  # Keras keeps a constant
    numbers = ops.multiply(ops.mean(x, axis=-1), 0.0) + np.arange(count, dtype=np.float32)
    x = layers.Add()([x, layers.Embedding(count, width, name="positions")(numbers)])
    for number in range(3):
        y = layers.LayerNormalization(epsilon=1e-6, name=f"norm_{number}_1")(x)
        y = layers.MultiHeadAttention(3, 8, value_dim=6, dropout=0.1, name=f"attention_{number}")(y, y)
        x = layers.Add()([x, y])
        y = layers.LayerNormalization(epsilon=1e-6, name=f"norm_{number}_2")(x)
        y = layers.Dense(2 * width, activation="gelu", name=f"wide_{number}")(y)
        y = layers.Dense(width, name=f"narrow_{number}")(layers.Dropout(0.1)(y))
        x = layers.Add()([x, y])
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization(epsilon=1e-6)(x))
    return keras.Model(given, layers.Dense(CLASSES)(x), name="little_vit")


def nested():
    given = keras.Input((SIZE, SIZE, 3))
    base = keras.Model(given, _resnet_trunk_maps(given), name="base")
    augmentation = keras.Sequential(
        [
            layers.RandomFlip("horizontal"),
            layers.RandomRotation(0.1),
            layers.RandomZoom(0.1),
            layers.RandomContrast(0.1),
        ],
        name="augmentation",
    )
    return keras.Sequential(
        [keras.Input((SIZE, SIZE, 3)), augmentation, layers.Rescaling(1 / 255), base, layers.GlobalAveragePooling2D(),
         layers.Dropout(0.2), layers.Dense(CLASSES, activation="softmax")]
    )  # fmt: skip


def _resnet_trunk_maps(given):
    x = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(given)
    x = layers.ReLU(max_value=6.0)(layers.BatchNormalization()(x))
    for number, width in enumerate((12, 12, 16)):
        x = _residual(x, width, 2, f"block{number}")
    return x


def operators():
    """The preprocessing of keras.applications inside the network, as operators: true_divide and subtract."""
    given = keras.Input((SIZE, SIZE, 3))
    x = keras.applications.mobilenet_v2.preprocess_input(given)
    x = _resnet_trunk_maps(x)
    return keras.Model(given, layers.Dense(CLASSES)(layers.GlobalAveragePooling2D()(x)), name="with_operators")


def constants():
    """The same with a mean and a standard deviation for each channel."""
    given = keras.Input((SIZE, SIZE, 3))
    x = _resnet_trunk_maps(
        (given / 255.0 - np.array([0.5, 0.4, 0.3], np.float32)) / np.array([0.2, 0.3, 0.1], np.float32)
    )
    return keras.Model(given, layers.Dense(CLASSES)(layers.GlobalAveragePooling2D()(x)), name="with_constants")


def odd():
    """Maps of all the kinds of layers that are left."""
    given = keras.Input((SIZE, SIZE, 3))
    x = layers.Rescaling([1 / 100, 1 / 110, 1 / 120], offset=[-1.0, -0.9, -1.1])(given)
    x = layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[1.0, 1.2, 0.9])(x)
    x = layers.SeparableConv2D(6, 3, strides=2, padding="same", depth_multiplier=2, activation="elu")(x)
    x = layers.GaussianNoise(0.1)(x)
    x = layers.DepthwiseConv2D((3, 5), padding="same", depth_multiplier=2)(x)
    x = layers.PReLU(shared_axes=[1, 2])(x)
    x = layers.BatchNormalization(scale=False)(x)
    one = layers.MaxPooling2D(3, strides=2, padding="same")(x)
    two = layers.AveragePooling2D(2, padding="same")(x)
    three = layers.Conv2D(4, 4, strides=2, padding="same", groups=2, activation="leaky_relu")(x)
    x = layers.Concatenate()([one, two, three])
    x = layers.GroupNormalization(groups=7)(x)
    x = layers.Conv2D(12, (3, 2), dilation_rate=2, padding="same", activation="silu")(x)
    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    gate = layers.Dense(4, activation="mish")(gate)
    gate = layers.Dense(12, activation="sigmoid")(gate)
    x = layers.Multiply()([x, gate])
    flat = layers.Dense(12, activation="sigmoid")(
        layers.GlobalAveragePooling2D()(x)
    )  # its axes are added behind the images'
    x = layers.Average()([layers.Multiply()([flat, x]), x, flat])
    x = layers.LayerNormalization()(x)
    x = layers.Cropping2D(((1, 2), (0, 1)))(x)
    x = layers.ZeroPadding2D(((0, 3), (2, 1)))(x)
    x = layers.LeakyReLU(negative_slope=0.1)(layers.Conv2D(8, 3, strides=2, dilation_rate=1)(x))
    up = layers.UpSampling2D(2)(x)
    bilinear = layers.UpSampling2D((2, 2), interpolation="bilinear")(x)
    x = layers.Average()([up, bilinear])
    x = layers.AveragePooling2D(2)(layers.BatchNormalization(center=False)(x))
    x = layers.Conv2DTranspose(8, 3, strides=2)(x)
    x = layers.ELU(alpha=0.7)(x)
    x = layers.Dropout(0.2)(x)
    a, b = layers.Conv2D(8, 1, activation="tanh")(x), layers.Conv2D(8, 1, activation="hard_silu")(x)
    x = layers.Subtract()([layers.Maximum()([a, b]), layers.Minimum()([a, layers.ReLU(max_value=0.5)(b)])])
    x = layers.Concatenate()([x, layers.Softmax()(a)])
    x = layers.GaussianDropout(0.1)(layers.Identity()(x))
    largest = layers.GlobalMaxPooling2D()(x)
    mean = ops.mean(x, axis=(1, 2))
    x = layers.Concatenate()([largest, mean])
    x = layers.Dense(16, activation="relu")(layers.BatchNormalization()(x))
    return keras.Model(given, layers.Dense(CLASSES)(layers.LayerNormalization()(x)), name="odd")


def tokens():
    """Layers on tokens, permutations, and a Flatten, which ties the network to one size."""
    given = keras.Input((SIZE, SIZE, 3))
    x = layers.Conv2D(6, 8, strides=8, activation="softplus")(layers.Rescaling(1 / 255)(given))
    x = layers.Permute((3, 1, 2))(x)
    x = layers.Permute((2, 3, 1))(x)
    x = ops.transpose(x, (0, 2, 1, 3))
    x = ops.reshape(x, (-1, 64, 6))
    x = layers.BatchNormalization()(x)
    x = layers.Permute((2, 1))(x)
    x = layers.Dense(32, activation="selu")(x)
    x = layers.Permute((2, 1))(x)
    y = layers.MultiHeadAttention(2, 4, use_bias=False)(x, x, x)
    x = layers.Add()([x, y, ops.multiply(x, 0.5), x - 0.25, layers.GlobalMaxPooling1D()(y)])
    x = layers.Concatenate(axis=1)([x, layers.ReLU(negative_slope=0.2)(x)])
    pooled = layers.GlobalMaxPooling1D()(x)
    maps = layers.Activation("exponential")(layers.Reshape((8, 8, 6))(x))
    maps = layers.Conv2D(4, 3, strides=2, activation="hard_sigmoid")(maps)
    x = layers.Concatenate()([pooled, layers.Flatten()(maps)])
    return keras.Model(given, layers.Dense(CLASSES)(x), name="tokens")


def adapted():
    """A Normalization that has learnt its numbers, and a plain chain without blocks."""
    norm = layers.Normalization()
    norm.adapt(np.random.default_rng(3).uniform(0, 255, (4, 8, 8, 3)).astype(np.float32))
    parts = [keras.Input((SIZE, SIZE, 3)), norm]
    for width in (8, 12, 16):
        parts += [layers.Conv2D(width, 3, padding="same", activation="relu"), layers.MaxPooling2D()]
    return keras.Sequential([*parts, layers.Flatten(), layers.Dense(10, activation="relu"), layers.Dense(CLASSES)])


def applied():
    """What networks of keras.applications have of their own, and operators: slices, stacks, activations."""
    from keras.src.applications.convnext import LayerScale, StochasticDepth
    from keras.src.applications.inception_resnet_v2 import CustomScaleLayer

    given = keras.Input((SIZE, SIZE, 3))
    x = keras.applications.resnet50.preprocess_input(given)  # reverses the channels one by one
    x = x / 64.0
    x = ops.concatenate(
        [x[:, 2:-2, 1::2][:, ::2], ops.stack([x[:, 4::2, -32:, 0], x[:, 4::2, 32:, 1]], axis=3)], axis=-1
    )
    x = ops.relu(layers.Conv2D(8, 3, strides=2, padding="same")(x))
    y = layers.Dense(8)(keras.activations.gelu(layers.Dense(16)(layers.LayerNormalization(epsilon=1e-6)(x))))
    x = x + StochasticDepth(0.3)(LayerScale(0.5, 8)(y))
    x = CustomScaleLayer(0.2)([x, ops.silu(layers.Conv2D(8, 3, padding="same")(x))])
    x = ops.leaky_relu(layers.Conv2D(12, 3, strides=2, activation="relu")(x), negative_slope=0.3)
    tokens = ops.reshape(keras.activations.elu(x), (-1, x.shape[1] * x.shape[2], 12))
    tokens = LayerScale(0.5, 12)(ops.tanh(layers.LayerNormalization()(tokens)))
    first, rest = tokens[:, 0], layers.GlobalAveragePooling1D()(tokens[:, 1:])
    return keras.Model(given, layers.Dense(CLASSES)(layers.Concatenate()([first, rest])), name="applied")


def application(name):
    return getattr(keras.applications, name)(weights=None, input_shape=(SIZE, SIZE, 3))


MAKERS = {
    "resnet": resnet, "vit": vit, "nested": nested, "operators": operators, "constants": constants, "odd": odd,
    "tokens": tokens, "adapted": adapted, "applied": applied,
}  # fmt: skip
APPLICATIONS = ("MobileNetV2", "ResNet50", "EfficientNetB0", "VGG16", "DenseNet121", "MobileNet", "MobileNetV3Small",
                "ConvNeXtTiny")  # fmt: skip


class Reference:
    """A model in memory, its files, and what it makes of some images."""

    def __init__(self, name, folder):
        self.name, self.folder = name, folder
        keras.utils.set_random_seed(1)
        self.model = MAKERS[name]() if name in MAKERS else application(name)
        seasoned(self.model)
        self.images = np.random.default_rng(5).uniform(0, 255, (3, SIZE, SIZE, 3)).astype(np.float32)
        last = [layer for layer in self.model.layers if layer.get_weights()][-1]
        self.expected = numbers(keras.Model(self.model.inputs, last.input), self.images)

    def file(self, suffix):
        path = self.folder / f"{self.name}{suffix}"
        if not path.exists():
            self.model.save_weights(path) if suffix == ".weights.h5" else self.model.save(path)
        return path

    @cached_property
    def backbone(self):
        """What its .keras file is read as, for tests that change nothing of it."""
        return self.load()

    def load(self, suffix=".keras", **how):
        return zoo.load_backbone(str(self.file(suffix)), **{"preprocess": "none", **how})


def numbers(model, images):
    """What Keras gives; a classifier that is a 1 × 1 convolution has a pixel's axes."""
    with torch.no_grad():
        found = keras.ops.convert_to_numpy(model(torch.from_numpy(images), training=False))
    return found.reshape(len(images), -1)


def seasoned(model):
    """No weight stays at its first value: norms, biases and statistics as after training."""
    rng = np.random.default_rng(2)
    for variable in model.weights:
        shape, name = tuple(variable.shape), variable.name
        if name in ("gamma", "moving_variance"):
            variable.assign(rng.uniform(0.6, 1.4, shape).astype(np.float32))
        elif name in ("beta", "bias", "moving_mean", "alpha"):
            variable.assign(rng.normal(0, 0.1, shape).astype(np.float32))


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    """References by name, each made once, when it is first asked for."""
    folder, made = tmp_path_factory.mktemp("keras"), {}

    def of(name):
        if name not in made:
            python, old, new = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
            made[name] = Reference(name, folder)
            random.setstate(python), np.random.set_state(old), torch.random.set_rng_state(new)
        return made[name]

    return of


def run(backbone, images):
    with torch.no_grad():
        return backbone.module(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()


def assert_same_function(backbone, reference):
    found, expected = run(backbone, reference.images), reference.expected
    assert found.shape == expected.shape == (len(found), backbone.width)
    assert expected.std() > 1e-4
    assert np.abs(found - expected).max() <= 1e-4 * max(1.0, np.abs(expected).max())


def assert_stages_hold_all_once(backbone):
    names = [name for stage in backbone.stages for name in stage.parameters]
    assert sorted(names) == sorted(backbone.module.state_dict())
    assert len({stage.name for stage in backbone.stages}) == len(backbone.stages)


# ---- the same numbers ------------------------------------------------------------------------------------------------

# Of the networks of keras.applications; the others take seconds each. All layers of LARGE ones are in smaller ones' .h5.
LARGE = ("ResNet50", "VGG16", "DenseNet121", "ConvNeXtTiny")
FAST = (("MobileNetV2", ".keras"), ("MobileNetV2", ".weights.h5"))
FILES = [
    pytest.param(name, suffix, marks=[] if name in MAKERS or (name, suffix) in FAST else [pytest.mark.slow])
    for name in (*MAKERS, *APPLICATIONS)
    for suffix in (
        ".keras",
        *([".h5"] if name not in LARGE else []),
        *([".weights.h5"] if name in APPLICATIONS else []),
    )
]


@pytest.mark.parametrize(("name", "suffix"), FILES)
def test_a_file_gives_the_features_that_keras_gives(references, name, suffix):
    reference = references(name)
    if suffix == ".keras":
        backbone = reference.backbone
    else:
        backbone = reference.load(suffix, **({"image_size": SIZE} if suffix == ".weights.h5" else {}))
    assert_same_function(backbone, reference)
    assert backbone.preprocess.size == SIZE
    assert len(backbone.sha256) == 64
    assert backbone.source == f"file {reference.file(suffix)}"
    assert_stages_hold_all_once(backbone)


def test_every_kind_of_layer_in_the_table_is_in_one_of_these_networks(references):
    """All but the ones that Keras 2 alone writes, layers that do nothing in use, and those that have tests of their own.

    Those are in test_keras_in_the_wild.py and test_keras_tutorials.py.
    """
    seen = set()
    for name in MAKERS:
        seen |= {node["kind"] for node in references(name).backbone.architecture["kwargs"]["nodes"]}
    free = {kind for kind in KINDS if KINDS[kind] is KINDS["Identity"]}
    assert set(KINDS) - seen - free <= {
        "op:BGR", "SpatialDropout2D", "Resizing", "CenterCrop", "RandomCrop", "UnitNormalization",
        "Attention", "AdditiveAttention", "GroupQueryAttention", "RMSNormalization", "Conv1D", "op:Sum", "op:Max",
        "op:Normalize", "op:ExpandDims", "op:Squeeze", "op:Pad",
    }  # fmt: skip


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_network_that_resizes_its_images_takes_them_at_that_size(suffix, tmp_path):
    given = keras.Input((128, 128, 3))
    trunk = layers.Conv2D(8, 3, strides=2)(layers.Resizing(SIZE, SIZE)(given))
    model = keras.Model(given, layers.Dense(3)(layers.GlobalAveragePooling2D()(layers.ReLU()(trunk))))
    model.save(tmp_path / f"m{suffix}")
    backbone = zoo.load_backbone(str(tmp_path / f"m{suffix}"), preprocess="none")
    assert backbone.preprocess.size == SIZE
    images = np.random.default_rng(5).uniform(0, 255, (2, SIZE, SIZE, 3)).astype(np.float32)
    rest = keras.Sequential([keras.Input((SIZE, SIZE, 3)), *model.layers[2:-1]])
    assert np.allclose(run(backbone, images), numbers(rest, images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["vit", "nested", "odd", "constants"])
def test_the_description_is_plain_and_gives_the_same_function_again(references, name):
    reference = references(name)
    backbone = reference.backbone
    description = json.loads(json.dumps(zoo.architecture_for_bundle(backbone), allow_nan=False))
    module = zoo.rebuild(description, seed=4, width=backbone.width, size=SIZE)
    module.load_state_dict(backbone.module.state_dict())
    images = torch.from_numpy(reference.images).permute(0, 3, 1, 2)
    with torch.no_grad():
        assert torch.equal(module(images), backbone.module(images))


@pytest.mark.parametrize("name", ["resnet", pytest.param("MobileNetV2", marks=pytest.mark.slow), "vit"])
def test_stages_follow_each_other_from_input_to_output(references, name):
    backbone = references(name).load()
    assert backbone.stages[0].name == "stem"
    assert len(backbone.stages) >= 4
    stage_of = {key: number for number, stage in enumerate(backbone.stages) for key in stage.parameters}
    visited = []
    for path, layer in backbone.module.named_modules():
        own = [stage_of[f"{path}.{key}"] for key in layer._parameters if f"{path}.{key}" in stage_of]
        if own:
            layer.register_forward_pre_hook(lambda _layer, _inputs, own=own: visited.extend(own))
    run(backbone, references(name).images[:1])
    assert visited == sorted(visited)
    assert set(visited) == set(range(len(backbone.stages)))


@pytest.mark.parametrize(
    ("name", "only"),
    [
        ("resnet", False),
        pytest.param("MobileNetV2", False, marks=pytest.mark.slow),
        ("odd", False),
        ("nested", False),
        ("tokens", True),
        ("adapted", True),
        ("vit", True),
    ],
)
def test_networks_say_whether_they_take_images_of_other_sizes(references, name, only):
    """A Flatten, or a table of positions, ties a network to one size; so does a Resizing inside."""
    backbone = references(name).backbone
    assert backbone.one_size is only
    larger = torch.zeros(1, 3, SIZE + 32, SIZE + 32)
    if not only:
        assert backbone.module(larger).shape == (1, backbone.width)


def test_a_convolutional_network_is_loaded_for_other_sizes(references):
    backbone = references("resnet").load(image_size=96)
    assert backbone.preprocess.size == 96
    assert not backbone.one_size


@pytest.mark.parametrize("name", ["vit", "adapted"])
def test_a_network_of_one_size_refuses_another_in_a_sentence(references, name):
    with pytest.raises(RecipeError, match="64 pixels only, not 96"):
        references(name).load(image_size=96)


def little(tmp_path, *between):
    """A backbone of a convolution and these layers, and what Keras gives for an image."""
    given = keras.Input((16, 16, 3))
    x = layers.Conv2D(4, 3)(given)
    for layer in between:
        x = layer(x)
    x = layers.GlobalAveragePooling2D()(x) if len(x.shape) == 4 else layers.GlobalAveragePooling1D()(x)
    model = keras.Model(given, layers.Dense(2)(x))
    model.save(tmp_path / "little.keras")
    backbone = zoo.load_backbone(str(tmp_path / "little.keras"), preprocess="none")
    images = np.random.default_rng(0).normal(0, 1, (2, 16, 16, 3)).astype(np.float32)
    np.testing.assert_allclose(run(backbone, images), numbers(keras.Model(given, x), images), rtol=1e-4, atol=1e-5)
    return backbone


def test_dropout_of_whole_maps_is_read(tmp_path):
    little(tmp_path, layers.SpatialDropout2D(0.2))


def test_a_resizing_to_the_size_that_images_have_is_read(tmp_path):
    little(tmp_path, layers.Resizing(14, 14))


@pytest.mark.parametrize("kind", ["attention", "square"])
def test_a_layer_that_takes_one_tensor_twice_may_stand_alone(tmp_path, kind):
    """Attention of tokens to themselves, without a way around it."""
    if kind == "square":
        little(tmp_path, lambda x: layers.Multiply()([x, x]), layers.ReLU())
    else:
        attention = layers.MultiHeadAttention(2, 4)
        little(tmp_path, layers.Reshape((196, 4)), lambda x: attention(x, x), layers.ReLU())


@pytest.mark.parametrize(("size", "kernel", "stride"), [(8, (2, 3), (2, 2)), (7, (3, 3), (2, 2)), (9, (4, 2), (3, 1))])
def test_an_average_at_the_border_is_over_real_pixels_as_in_tensorflow(size, kernel, stride):
    """By hand: Keras's own torch backend averages over copies of the border."""
    options = {
        **KINDS["AveragePooling2D"].options,
        "pool_size": list(kernel),
        "strides": list(stride),
        "padding": "same",
    }
    image = np.random.default_rng(0).normal(size=(size, size))
    layer = KINDS["AveragePooling2D"].make(options, [(1, 1, size, size)]).module
    starts = []
    for axis in range(2):
        count = -(-size // stride[axis])
        before = max((count - 1) * stride[axis] + kernel[axis] - size, 0) // 2
        starts.append([number * stride[axis] - before for number in range(count)])
    expected = [
        [image[max(row, 0) : row + kernel[0], max(column, 0) : column + kernel[1]].mean() for column in starts[1]]
        for row in starts[0]
    ]
    np.testing.assert_allclose(layer(torch.from_numpy(image)[None, None])[0, 0].numpy(), expected, rtol=1e-6)


# ---- preprocessing ---------------------------------------------------------------------------------------------------


def test_how_the_images_were_prepared_must_be_said(references):
    for suffix in (".keras", ".h5"):
        with pytest.raises(RecipeError, match="--preprocess"):
            references("resnet").load(suffix, preprocess=None)


def test_an_unknown_way_of_preparing_lists_what_there_is(references):
    with pytest.raises(UnknownModel, match="caffe, tf, torch, none"):
        references("resnet").load(preprocess="imagenet")
    with pytest.raises(UnknownModel, match=r"nearest: .*resnet50"):
        references("resnet").load(preprocess="keras:resnet5")


@pytest.mark.parametrize(
    ("word", "module"),
    [
        ("keras:resnet50", "resnet50"), pytest.param("keras:VGG16", "vgg16", marks=pytest.mark.slow), ("caffe", "resnet50"), pytest.param("tf", "mobilenet_v2", marks=pytest.mark.slow),
        ("keras:mobilenetv2", "mobilenet_v2"), pytest.param("keras:xception", "xception", marks=pytest.mark.slow), ("torch", "densenet"),
        pytest.param("keras:densenet121", "densenet", marks=pytest.mark.slow), ("none", None), pytest.param("keras:efficientnetb0", "efficientnet", marks=pytest.mark.slow),
        pytest.param("keras:mobilenetv3small", "mobilenet_v3", marks=pytest.mark.slow), pytest.param("keras:resnet50v2", "resnet_v2", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_the_network_sees_what_keras_applications_would_show_it(tmp_path, word, module):
    """An identity in front of a Flatten: the features are the image as the network sees it."""
    size = 12
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (size, size, 3), np.uint8)).save(tmp_path / "a.png")
    given = keras.Input((size, size, 3))
    first = layers.Conv2D(3, 1, use_bias=False)
    model = keras.Model(given, layers.Dense(2)(layers.Flatten()(first(given))))
    first.set_weights([np.eye(3, dtype=np.float32).reshape(1, 1, 3, 3)])
    model.save(tmp_path / "eye.keras")
    backbone = zoo.load_backbone(str(tmp_path / "eye.keras"), preprocess=word)
    pixels = view(decode(tmp_path / "a.png"), backbone.preprocess)
    with torch.no_grad():
        seen = backbone.module(normalised(pixels[None], backbone.preprocess))[0].numpy()
    raw = np.array(Image.open(tmp_path / "a.png")).astype(np.float32)
    wanted = raw if module is None else getattr(keras.applications, module).preprocess_input(raw.copy())
    np.testing.assert_allclose(seen, wanted.reshape(-1), rtol=1e-5, atol=1e-4)


def test_the_whole_image_is_seen_as_keras_resizes_it(references):
    assert references("resnet").backbone.preprocess.fit == "squash"


@pytest.mark.parametrize("name", sorted(applications.APPLICATIONS))
def test_every_application_in_the_table_is_one_of_keras(name):
    assert callable(getattr(keras.applications, applications.APPLICATIONS[name].attribute))


# ---- weights alone ---------------------------------------------------------------------------------------------------


def legacy_weights(model, path):
    """Weights alone as Keras 2 wrote them."""
    from keras.src.legacy.saving import legacy_h5_format

    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)
    return path


def test_weights_alone_in_the_old_form_are_recognised_by_their_layers_names(references, tmp_path):
    reference = references("MobileNetV2")
    path = legacy_weights(reference.model, tmp_path / "w.h5")
    backbone = zoo.load_backbone(str(path), preprocess="none", image_size=SIZE)
    assert_same_function(backbone, reference)
    assert any("told by its layers' names" in note for note in backbone.notes)


@pytest.mark.slow
def test_weights_without_the_top_are_recognised_too(tmp_path):
    model = keras.applications.MobileNetV2(weights=None, input_shape=(SIZE, SIZE, 3), include_top=False, pooling="avg")
    seasoned(model)
    model.save_weights(tmp_path / "notop.weights.h5")
    backbone = zoo.load_backbone(str(tmp_path / "notop.weights.h5"), preprocess="none", image_size=SIZE)
    images = np.random.default_rng(5).uniform(0, 255, (2, SIZE, SIZE, 3)).astype(np.float32)
    expected = numbers(model, images)
    np.testing.assert_allclose(run(backbone, images), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_weights_alone_are_read_as_the_architecture_that_was_said_and_not_as_another(references):
    reference = references("MobileNetV2")
    assert_same_function(reference.load(".weights.h5", image_size=SIZE, arch="keras:MobileNetV2"), reference)
    with pytest.raises(BadWeights):
        reference.load(".weights.h5", image_size=SIZE, arch="keras:mobilenet")
    with pytest.raises(UnknownModel, match="keras:resnet50"):
        reference.load(".weights.h5", image_size=SIZE, arch="resnet50")
    with pytest.raises(UnknownModel, match="nearest"):
        reference.load(".weights.h5", image_size=SIZE, arch="keras:mobilnet2")


def test_weights_alone_of_a_network_nobody_knows_say_what_to_do(references):
    with pytest.raises(UnknownModel, match="--arch") as caught:
        references("resnet").load(".weights.h5")
    assert "model.save(" in str(caught.value)


# ---- the file of Keras 2 ---------------------------------------------------------------------------------------------


def old_layer(kind, name, inbound, **config):
    config = {"name": name, "trainable": True, "dtype": "float32", **config}
    return {"class_name": kind, "config": config, "name": name, "inbound_nodes": inbound}


def initializer(kind="GlorotUniform"):
    return {"class_name": kind, "config": {"seed": None} if kind == "GlorotUniform" else {}}


@pytest.fixture
def keras_2(tmp_path):
    """An .h5 file as Keras 2 wrote it, by hand; and its arrays."""
    rng = np.random.default_rng(8)
    arrays = {
        "conv/kernel:0": rng.normal(0, 0.3, (3, 3, 3, 4)), "conv/bias:0": rng.normal(0, 0.3, (4,)),
        "bn/gamma:0": rng.uniform(0.5, 1.5, 4), "bn/beta:0": rng.normal(0, 1, 4),
        "bn/moving_mean:0": rng.normal(0, 1, 4), "bn/moving_variance:0": rng.uniform(0.5, 1.5, 4),
        "dw/depthwise_kernel:0": rng.normal(0, 0.3, (3, 3, 4, 1)),
        "head/kernel:0": rng.normal(0, 1, (4, 2)), "head/bias:0": rng.normal(0, 1, 2),
    }  # fmt: skip
    arrays = {name: value.astype(np.float32) for name, value in arrays.items()}
    call = lambda name: [[[name, 0, 0, {}]]]  # noqa: E731
    conv = {
        "strides": [2, 2], "padding": "same", "data_format": "channels_last", "dilation_rate": [1, 1], "groups": 1,
        "activation": "linear", "bias_initializer": initializer("Zeros"), "kernel_regularizer": None,
        "bias_regularizer": None, "activity_regularizer": None, "kernel_constraint": None, "bias_constraint": None,
        "kernel_size": [3, 3], "kernel_initializer": initializer(),
    }  # fmt: skip
    norm = {"axis": [3], "momentum": 0.99, "epsilon": 0.001, "center": True, "scale": True,
            "beta_initializer": initializer("Zeros"), "gamma_initializer": initializer("Ones")}  # fmt: skip
    depthwise = {**conv, "strides": [1, 1], "use_bias": False, "depth_multiplier": 1, "filters": None,
                 "depthwise_initializer": initializer(), "depthwise_regularizer": None, "depthwise_constraint": None}  # fmt: skip
    del depthwise["filters"]
    config = {
        "class_name": "Functional",
        "config": {
            "name": "model_1", "trainable": True,
            "layers": [
                {"class_name": "InputLayer", "name": "input_1", "inbound_nodes": [],
                 "config": {"batch_input_shape": [None, 16, 16, 3], "dtype": "float32", "sparse": False, "ragged": False, "name": "input_1"}},
                old_layer("Conv2D", "conv", call("input_1"), filters=4, use_bias=True, **conv),
                old_layer("BatchNormalization", "bn", call("conv"), **norm),
                old_layer("ReLU", "relu", call("bn"), max_value=6.0, negative_slope=0.0, threshold=0.0),
                old_layer("DepthwiseConv2D", "dw", call("relu"), **depthwise),
                old_layer("LeakyReLU", "leaky", call("dw"), alpha=0.25),
                old_layer("Add", "add", [[["relu", 0, 0, {}], ["leaky", 0, 0, {}]]]),
                old_layer("GlobalAveragePooling2D", "pool", call("add"), data_format="channels_last", keepdims=False),
                old_layer("Dropout", "dropout", call("pool"), rate=0.5, noise_shape=None, seed=None),
                old_layer("Dense", "head", call("dropout"), units=2, activation="softmax", use_bias=True,
                          kernel_initializer=initializer(), bias_initializer=initializer("Zeros"), kernel_regularizer=None),
            ],
            "input_layers": [["input_1", 0, 0]], "output_layers": [["head", 0, 0]],
        },
    }  # fmt: skip
    path = tmp_path / "old.h5"
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"], file.attrs["backend"] = "2.11.0", "tensorflow"
        file.attrs["model_config"] = json.dumps(config)
        group = file.create_group("model_weights")
        names = [layer["config"]["name"] for layer in config["config"]["layers"]]
        group.attrs["layer_names"] = [name.encode() for name in names]
        for name in names:
            own = [key for key in arrays if key.startswith(f"{name}/")]
            inner = group.create_group(name)
            inner.attrs["weight_names"] = [key.encode() for key in own]
            for key in own:
                inner[key] = arrays[key]
    return path, arrays


def test_a_file_of_keras_2_gives_the_right_numbers(keras_2):
    path, arrays = keras_2
    backbone = zoo.load_backbone(str(path), preprocess="none")
    images = np.random.default_rng(1).normal(0, 1, (2, 16, 16, 3)).astype(np.float32)
    kernel, mean = arrays["conv/kernel:0"], arrays["bn/moving_mean:0"]
    padded = np.pad(images, ((0, 0), (0, 1), (0, 1), (0, 0)))  # TensorFlow's "same" with a stride of 2
    maps = np.zeros((2, 8, 8, 4), np.float32) + arrays["conv/bias:0"]
    for row in range(3):
        for column in range(3):
            maps += padded[:, row : row + 16 : 2, column : column + 16 : 2] @ kernel[row, column]
    maps = (maps - mean) / np.sqrt(arrays["bn/moving_variance:0"] + 1e-3) * arrays["bn/gamma:0"] + arrays["bn/beta:0"]
    maps = np.clip(maps, 0, 6)
    padded, depth = np.pad(maps, ((0, 0), (1, 1), (1, 1), (0, 0))), arrays["dw/depthwise_kernel:0"][..., 0]
    found = sum(
        padded[:, row : row + 8, column : column + 8] * depth[row, column] for row in range(3) for column in range(3)
    )
    features = (maps + np.where(found > 0, found, 0.25 * found)).mean((1, 2))
    np.testing.assert_allclose(run(backbone, images), features, rtol=1e-4, atol=1e-5)
    assert backbone.width == 4
    assert backbone.preprocess.size == 16
    assert any("head" in note for note in backbone.notes)


@pytest.mark.parametrize(
    ("layer", "sentence"),
    [
        (
            old_layer("Lambda", "code", [[["conv", 0, 0, {}]]], function=["4wEA", None, None]),
            "Lambda, which holds code",
        ),
        (old_layer("Attention3000", "x", [[["conv", 0, 0, {}]]]), "Attention3000, which is not read"),
        ({**old_layer("Mine", "x", [[["conv", 0, 0, {}]]]), "module": "os.path"}, "which could be any code"),
        (
            {**old_layer("Dense", "x", [[["conv", 0, 0, {}]]]), "registered_name": "mine>Dense"},
            "whose code is not in the file",
        ),
    ],
)
def test_a_config_that_asks_for_code_is_refused_in_a_sentence(keras_2, layer, sentence):
    path, _ = keras_2
    with h5py.File(path, "a") as file:
        config = json.loads(file.attrs["model_config"])
        config["config"]["layers"].insert(2, layer)
        config["config"]["layers"][3]["inbound_nodes"] = [[[layer["name"], 0, 0, {}]]]
        file.attrs["model_config"] = json.dumps(config)
    with pytest.raises(BadWeights, match=sentence):
        zoo.load_backbone(str(path), preprocess="none")


def test_a_link_out_of_the_file_is_not_followed(keras_2, tmp_path):
    path, arrays = keras_2
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["secret"] = arrays["conv/kernel:0"]
    with h5py.File(path, "a") as file:
        del file["model_weights/conv/conv/kernel:0"]
        file["model_weights/conv/conv/kernel:0"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "secret")
    with pytest.raises(BadWeights, match="link to another file, which is not followed"):
        zoo.load_backbone(str(path), preprocess="none")


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("conv/conv/kernel:0", np.full((3, 3, 3, 4), np.nan, np.float32), "NaN or infinite"),
        ("conv/conv/kernel:0", np.zeros((3, 3, 3, 5), np.float32), r"\[3, 3, 3, 5\]"),
        ("dw/dw/depthwise_kernel:0", None, "depthwise_kernel"),
    ],
)
def test_arrays_that_are_missing_or_wrong_are_named(keras_2, name, value, sentence):
    path, _ = keras_2
    with h5py.File(path, "a") as file:
        del file[f"model_weights/{name}"]
        if value is not None:
            file[f"model_weights/{name}"] = value
    with pytest.raises(BadWeights, match=sentence):
        zoo.load_backbone(str(path), preprocess="none")


def test_layers_of_two_models_in_a_model_that_share_their_names_keep_their_own_weights(tmp_path):
    """An .h5 file has a group for each of the outer layers; inside it, names repeat."""

    def block(name, given, width):
        inner = keras.Input(given)
        x = layers.Conv2D(width, 3, padding="same", name="conv")(inner)
        return keras.Model(inner, layers.BatchNormalization(name="norm")(x), name=name)

    model = keras.Sequential(
        [keras.Input((SIZE, SIZE, 3)), block("first", (SIZE, SIZE, 3), 3), block("second", (SIZE, SIZE, 3), 3),
         layers.Conv2D(3, 1, name="conv"), layers.GlobalAveragePooling2D(), layers.Dense(2)]
    )  # fmt: skip
    seasoned(model)
    images = np.random.default_rng(5).uniform(0, 1, (2, SIZE, SIZE, 3)).astype(np.float32)
    expected = numbers(keras.Sequential(model.layers[:-1]), images)
    for suffix in (".h5", ".keras"):
        model.save(tmp_path / f"twins{suffix}")
        backbone = zoo.load_backbone(str(tmp_path / f"twins{suffix}"), preprocess="none")
        np.testing.assert_allclose(run(backbone, images), expected, rtol=1e-4, atol=1e-5)


def test_what_the_group_of_a_layer_lacks_is_not_taken_from_another(keras_2):
    path, arrays = keras_2
    with h5py.File(path, "a") as file:
        del file["model_weights/conv/conv/kernel:0"]
        file["model_weights/elsewhere/conv/kernel:0"] = arrays["conv/kernel:0"]
    with pytest.raises(BadWeights, match="has no kernel for the layer conv"):
        zoo.load_backbone(str(path), preprocess="none")


@pytest.mark.parametrize(("version", "slope"), [("2.11.0", 0.2), ("3.5.0", 1 / 6)])
@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_a_hard_sigmoid_is_that_of_the_keras_that_wrote_the_file(tmp_path, version, slope, suffix):
    given = keras.Input((8, 8, 3))
    x = layers.Activation("hard_sigmoid")(layers.Conv2D(3, 1, use_bias=False, name="conv")(given))
    model = keras.Model(given, layers.Dense(2)(layers.Flatten()(x)))
    model.get_layer("conv").set_weights([np.eye(3, dtype=np.float32).reshape(1, 1, 3, 3)])
    path = tmp_path / f"made{suffix}"
    model.save(path)
    if suffix == ".h5":
        with h5py.File(path, "a") as file:
            file.attrs["keras_version"] = version
    else:
        with zipfile.ZipFile(path) as made:
            parts = {name: made.read(name) for name in made.namelist()}
        parts["metadata.json"] = json.dumps({**json.loads(parts["metadata.json"]), "keras_version": version}).encode()
        with zipfile.ZipFile(path, "w") as file:
            for name, data in parts.items():
                file.writestr(name, data)
    backbone = zoo.load_backbone(str(path), preprocess="none")
    images = np.linspace(-4, 4, 192, dtype=np.float32).reshape(1, 8, 8, 3)
    np.testing.assert_allclose(run(backbone, images)[0], np.clip(slope * images.ravel() + 0.5, 0, 1), atol=1e-6)


def test_corrections_beside_the_weights_are_refused(tmp_path):
    given = keras.Input((SIZE, SIZE, 3))
    dense = layers.Dense(4, name="wide")
    model = keras.Model(given, layers.Dense(2)(dense(layers.Flatten()(layers.AveragePooling2D(16)(given)))))
    dense.enable_lora(2)
    model.save(tmp_path / "tuned.h5")
    with pytest.raises(BadWeights, match="lora_kernel_a is a correction beside the weights"):
        zoo.load_backbone(str(tmp_path / "tuned.h5"), preprocess="none")


def test_an_axis_left_open_is_that_of_the_places(tmp_path):
    """Reshape((-1, c)) of maps gives a row a place, as patches of a transformer are made."""
    given = keras.Input((SIZE, SIZE, 3))
    x = layers.Reshape((-1, 6))(layers.Conv2D(6, 16, strides=16)(given))
    model = keras.Model(given, layers.Dense(2)(layers.GlobalAveragePooling1D()(layers.Dense(5)(x))))
    model.save(tmp_path / "open.keras")
    backbone = zoo.load_backbone(str(tmp_path / "open.keras"), preprocess="none")
    images = np.random.default_rng(5).uniform(0, 1, (2, SIZE, SIZE, 3)).astype(np.float32)
    expected = numbers(keras.Model(given, model.layers[-1].input), images)
    np.testing.assert_allclose(run(backbone, images), expected, rtol=1e-4, atol=1e-5)


def test_a_transposed_convolution_with_dilation_is_refused(tmp_path):
    given = keras.Input((SIZE, SIZE, 3))
    x = layers.Conv2DTranspose(4, 3, dilation_rate=2, padding="same")(given)
    keras.Model(given, layers.Dense(2)(layers.GlobalAveragePooling2D()(x))).save(tmp_path / "wide.keras")
    with pytest.raises((BadWeights, UnknownModel), match="without dilation"):
        zoo.load_backbone(str(tmp_path / "wide.keras"), preprocess="none")


def test_a_small_file_that_claims_gigabytes_is_refused_before_they_are_read(keras_2):
    path, _ = keras_2
    with h5py.File(path, "a") as file:
        shape, chunks = (20_000, 20_000), (1000, 20_000)
        file.create_dataset("model_weights/conv/large", shape, np.float32, chunks=chunks, compression="gzip")
    with pytest.raises(BadWeights, match=r"claims 1,6\d\d,\d{3},\d{3} bytes of weights in a file of"):
        zoo.load_backbone(str(path), preprocess="none")


def test_an_attribute_of_one_long_text_many_times_takes_no_memory(keras_2):
    """225 kB of such a file could take any number of gigabytes."""
    path, _ = keras_2
    long, times = "x" * 2**24, 800
    with h5py.File(path, "a") as file:
        del file["model_weights"].attrs["layer_names"]
        names = [long, *(f"{at:08d}" for at in range(times))]
        file["model_weights"].attrs.create("layer_names", names, dtype=h5py.string_dtype())
    data = path.read_bytes()
    at = data.find(struct.pack("<I", len(long)))  # length, address and place of the text among the references
    reference = data[at : at + 16]
    while data[at : at + 4] == struct.pack("<I", len(long)) and data[at + 16 : at + 20] != struct.pack("<I", 8):
        at = data.find(struct.pack("<I", len(long)), at + 1)
        reference = data[at : at + 16]
    assert data[at + 16 : at + 20] == struct.pack("<I", 8)
    path.write_bytes(data[:at] + reference * (times + 1) + data[at + 16 * (times + 1) :])
    with pytest.raises(BadWeights, match=r"far more memory than its size explains|damaged HDF5|crash"):
        zoo.load_backbone(str(path), preprocess="none")


def test_too_many_names_are_refused(keras_2):
    path, _ = keras_2
    with h5py.File(path, "a") as file:
        del file["model_weights"].attrs["layer_names"]
        for at in range(2):
            file["model_weights"].attrs[f"layer_names{at}"] = np.full(60_000, b"a", "S1")
    with pytest.raises(BadWeights, match="lists 120,000 names in layer_names"):
        zoo.load_backbone(str(path), preprocess="none")


@pytest.mark.slow
def test_the_scale_that_keras_gives_an_efficientnet_with_its_weights_is_not_lost(tmp_path, monkeypatch):
    """Keras puts a layer without weights in where it makes the network with the weights of ImageNet; a file of weights has none."""
    from keras.src.applications import efficientnet

    path, size = tmp_path / "b0.weights.h5", 64
    plain = keras.applications.EfficientNetB0(weights=None, include_top=False, input_shape=(size, size, 3))
    norm = next(layer for layer in plain.layers if layer.__class__.__name__ == "Normalization")
    norm.set_weights(
        [np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32), np.array(0)]
    )
    plain.save_weights(path)
    monkeypatch.setattr(efficientnet.file_utils, "get_file", lambda *args, **kinds: str(path))
    whole = keras.applications.EfficientNetB0(include_top=False, pooling="avg", input_shape=(size, size, 3))
    images = np.random.default_rng(0).uniform(0, 255, (3, size, size, 3)).astype(np.float32)
    expected = keras.ops.convert_to_numpy(whole(images, training=False))
    backbone = zoo.load_backbone(str(path), preprocess="keras:efficientnetb0", image_size=size)
    np.testing.assert_allclose(run(backbone, images), expected, rtol=1e-3, atol=1e-4)
    without = keras.ops.convert_to_numpy(keras.layers.GlobalAveragePooling2D()(plain(images, training=False)))
    assert np.abs(without - expected).max() > 10 * np.abs(run(backbone, images) - expected).max()


# ---- what is done with a network -------------------------------------------------------------------------------------


def test_a_network_is_cut_folded_and_tapped_as_any_other(references):
    backbone, example = references("resnet").load(), torch.rand(2, 3, SIZE, SIZE) * 255
    with torch.no_grad():
        expected = backbone.module(example)
        for at in range(1, len(backbone.stages)):
            halves = cut(backbone.module, backbone.stages, at, example)
            assert halves is not None, at
            torch.testing.assert_close(halves.upper(halves.lower(example)), expected)
        folded = fold_trainable(backbone.module, example)
        assert folded_count(folded) == 15  # 1 + 2 · 6 convolutions, two shortcuts
        torch.testing.assert_close(folded(example), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            fold_for_inference(backbone.module, example)(example), expected, rtol=1e-4, atol=1e-4
        )
        deep = tapped(backbone, example)
        assert deep is not None and deep.width > backbone.width
        torch.testing.assert_close(deep.module(example)[:, : backbone.width], expected)
        again = zoo.rebuild(json.loads(json.dumps(zoo.architecture_for_bundle(deep))), width=deep.width, size=SIZE)
        again.load_state_dict(deep.module.state_dict())
        torch.testing.assert_close(again(example), deep.module(example))


def test_pooling_is_chosen_as_for_any_other(references):
    reference = references("resnet")
    backbone = reference.load(pool="max")
    pool = next(layer for layer in reference.model.layers if layer.name == "avg_pool")
    expected = numbers(keras.Model(reference.model.inputs, layers.GlobalMaxPooling2D()(pool.input)), reference.images)
    np.testing.assert_allclose(run(backbone, reference.images), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(RecipeError, match="avg or max"):
        reference.load(pool="token")


def test_a_fit_leaves_frozen_stages_and_all_statistics_bit_identical(references, shapes, tmp_path):
    reference = references("resnet")
    api.fit(
        shapes, out=tmp_path / "run", model=str(reference.file(".keras")), preprocess="none", method="full", freeze=2,
        epochs=1, budget=None,
    )  # fmt: skip
    backbone = reference.load()
    before, after = backbone.module.state_dict(), read_bundle(tmp_path / "run").state
    frozen = {name for stage in backbone.stages[:2] for name in stage.parameters}
    moved = {name for name in before if not torch.equal(before[name], after[f"trunk.{name}"])}
    assert frozen and not frozen & moved
    assert moved and all("running_" not in name for name in moved)
    assert {name for name in before if name.endswith(".weight")} - frozen <= moved


def test_loading_leaves_the_global_generators_alone(references):
    path, weights = references("resnet").file(".keras"), references("MobileNetV2").file(".weights.h5")
    states = random.getstate(), np.random.get_state()[1].copy(), torch.random.get_rng_state()
    zoo.load_backbone(str(path), preprocess="caffe")
    zoo.load_backbone(str(weights), preprocess="tf", image_size=SIZE)
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert torch.equal(torch.random.get_rng_state(), states[2])


def test_random_weights_follow_from_the_seed_and_leave_the_generators_alone():
    one, same, other = (
        zoo.load_backbone("random:keras:mobilenet", image_size=SIZE, seed=seed).module.state_dict()
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


# ---- without the packages --------------------------------------------------------------------------------------------


def test_without_h5py_a_sentence_says_what_to_install(references, monkeypatch):
    path = references("resnet").file(".keras")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ModelError, match=r"pip install 'burnish\[keras\]'"):
        zoo.load_backbone(str(path), preprocess="none")


def test_without_keras_whole_models_are_read_and_weights_alone_say_what_to_install(references, monkeypatch):
    reference = references("resnet")
    whole, weights = reference.file(".keras"), references("MobileNetV2").file(".weights.h5")
    monkeypatch.setitem(sys.modules, "keras", None)
    assert_same_function(zoo.load_backbone(str(whole), preprocess="none"), reference)
    for name in (str(weights), "random:keras:mobilenetv2"):
        with pytest.raises(ModelError, match=r"pip install 'burnish\[keras\]'"):
            zoo.load_backbone(name, preprocess="none", image_size=SIZE)


@pytest.mark.parametrize(
    "key",
    [("...", [None, None, -1]), ([None, None, None], 2), ("...", 1), ([None, None, None], [4, None, -2], [1, 3, None]),
     ([None, None, None], -1, "..."), ("...",), ([None, None, None], [None, -1, None], [None, None, None], [None, None, -2])],
)  # fmt: skip
def test_a_slice_takes_what_numpy_takes(key):
    """Also backwards, which Keras's torch backend cannot, and TensorFlow's preprocess_input for ResNet and VGG does."""
    from burnish.backbones.keras.moves import inward, op_get_item, outward

    maps = torch.arange(2 * 5 * 6 * 3.0).reshape(2, 5, 6, 3)
    index = tuple(... if one == "..." else slice(*one) if isinstance(one, list) else one for one in key)
    expected = maps.numpy()[index]
    found = op_get_item({"key": list(key)}, [(1, 3, 5, 6)]).module(inward(maps))
    assert np.array_equal(outward(found).numpy(), expected)


def test_slices_that_take_images_or_nothing_are_refused():
    from burnish.backbones.keras.moves import op_get_item
    from burnish.backbones.keras.options import Unfit

    for key in ([0], [[1, None, None]], [[None] * 3, 9], [[None] * 3, [3, 3, None]], ["...", "..."], [[None] * 3, [None, None, 0]],
                [[None] * 3] * 5, [[None] * 3, "x"], 3, [[None] * 3, 0, 0, 0]):  # fmt: skip
        with pytest.raises(Unfit):
            op_get_item({"key": key}, [(1, 3, 5, 6)])
