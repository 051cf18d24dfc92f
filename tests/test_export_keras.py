"""Promises of exported Keras files: Keras gives the probabilities that burnish gives, or nothing is written."""

import json
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_backbones_keras import keras_2  # noqa: F401  # a fixture

from burnish import api
from burnish.backbones import zoo
from burnish.backbones.classifier import Classifier
from burnish.backbones.zoo import load_backbone
from burnish.errors import RecipeError
from burnish.ship.bundle import Bundle, read_bundle

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras", reason="keras is not installed: pip install 'burnish[keras]'")
pytest.importorskip("h5py")
layers = keras.layers

SIZE = 32  # pixels
CASES = {  # the network, its preprocessing, the method, the head
    "probe": ("resnet", "caffe", "probe", "linear"),
    "multiprobe": ("resnet", "tf", "multiprobe", "linear"),
    "full": ("resnet", "keras:resnet50", "full", "linear"),
    "mlp": ("resnet", "torch", "full", "mlp:16"),
    "cosine": ("resnet", "none", "full", "cosine"),
    "vit": ("vit", "tf", "full", "linear"),
    "nested": ("nested", "none", "full", "linear"),
    "applied": ("applied", "none", "full", "linear"),
}
# keras.applications with that preprocessing
PREPARE = {
    "caffe": "resnet50",
    "keras:resnet50": "resnet50",
    "tf": "mobilenet_v2",
    "torch": "densenet",
    "none": "efficientnet",
}


def residual(x, width, stride, name):
    y = layers.Conv2D(width, 3, strides=stride, padding="same", use_bias=False, name=f"{name}_1_conv")(x)
    y = layers.Activation("relu")(layers.BatchNormalization(name=f"{name}_1_bn")(y))
    y = layers.BatchNormalization(name=f"{name}_2_bn")(
        layers.Conv2D(width, 3, padding="same", name=f"{name}_2_conv")(y)
    )
    shortcut = layers.Conv2D(width, 1, strides=stride, name=f"{name}_0_conv")(x) if stride > 1 else x
    return layers.Activation("relu")(layers.Add()([shortcut, y]))


def maps(given):
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu", name="stem_conv")(given)
    for number, stride in enumerate((2, 1, 2)):
        x = residual(x, 8 * (number + 1) if stride > 1 else x.shape[-1], stride, f"block{number}")
    return x


def resnet():
    given = keras.Input((SIZE, SIZE, 3))
    return keras.Model(given, layers.Dense(7)(layers.GlobalAveragePooling2D()(maps(given))), name="little_resnet")


def applied():
    """Layers inside keras.applications, and operators, which are written as public layers."""
    from keras.src.applications.convnext import LayerScale, StochasticDepth
    from keras.src.applications.inception_resnet_v2 import CustomScaleLayer

    given = keras.Input((SIZE, SIZE, 3))
    x = keras.applications.vgg16.preprocess_input(given)[:, 1:-1, ::2] / 64.0
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu")(x)
    x = x + StochasticDepth(0.1)(LayerScale(0.5, 8)(layers.Dense(8, activation="gelu")(x)))
    x = CustomScaleLayer(0.2)([x, layers.Conv2D(8, 3, padding="same")(x)])
    x = layers.Conv2D(12, 3, strides=2, activation="relu")(keras.ops.silu(x))
    return keras.Model(given, layers.Dense(4)(layers.GlobalAveragePooling2D()(x)), name="applied")


def nested():
    given = keras.Input((SIZE, SIZE, 3))
    return keras.Sequential(
        [keras.Input((SIZE, SIZE, 3)), layers.RandomFlip(), layers.RandomRotation(0.1), layers.GaussianNoise(0.1),
         layers.Dropout(0.0), layers.Activation("linear"), layers.Rescaling(1 / 127.5, offset=-1),
         keras.Model(given, maps(given)), layers.GlobalAveragePooling2D(), layers.Dense(16, activation="relu"), layers.Dense(2)],
        name="nested",
    )  # fmt: skip


def vit():
    given = keras.Input((SIZE, SIZE, 3))
    x = layers.Reshape((16, 24))(layers.Conv2D(24, 8, strides=8)(given))
    x = layers.Add()([x, layers.Embedding(16, 24)(np.arange(16)[None])])
    for _ in range(2):
        y = layers.LayerNormalization(epsilon=1e-6)(x)
        x = layers.Add()([x, layers.MultiHeadAttention(2, 12, value_dim=8)(y, y)])
        y = layers.Dense(48, activation="gelu")(layers.LayerNormalization(epsilon=1e-6)(x))
        x = layers.Add()([x, layers.Dense(24)(y)])
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization(epsilon=1e-6)(x))
    return keras.Model(given, layers.Dense(3)(x), name="little_vit")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Keras files by name."""
    folder = tmp_path_factory.mktemp("models")
    for make in (resnet, nested, vit, applied):
        keras.utils.set_random_seed(1)
        keras.utils.clear_session()  # layers are called by how many came before
        model, rng = make(), np.random.default_rng(2)
        for variable in model.weights:
            if variable.name in ("gamma", "moving_variance"):
                variable.assign(rng.uniform(0.6, 1.4, tuple(variable.shape)).astype(np.float32))
            elif variable.name in ("beta", "bias", "moving_mean"):
                variable.assign(rng.normal(0, 0.1, tuple(variable.shape)).astype(np.float32))
        model.save(folder / f"{make.__name__}.keras")
    return folder


@pytest.fixture(scope="module")
def runs(models, shapes, tmp_path_factory):
    """A finished run of a case, made when it is first asked for."""
    folder, made = tmp_path_factory.mktemp("runs"), {}

    def of(case, **more):
        key = f"{case}-{'-'.join(more)}"
        if key not in made:
            network, preprocess, method, head = CASES[case]
            api.fit(
                shapes, out=folder / key, model=str(models / f"{network}.keras"), preprocess=preprocess, method=method,
                head=head, epochs=1, budget=None, **more,
            )  # fmt: skip
            made[key] = folder / key
        return made[key]

    return of


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    """An image of the network's size, so that nothing is resized."""
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    pixels = np.random.default_rng(4).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    pixels[..., 0] //= 2
    Image.fromarray(pixels).save(path)
    return path


def probabilities(run, photo):
    """What burnish says, in the order of the classes."""
    found = api.predict(run, [photo], top=3)[0]
    named = dict(zip(found.classes, found.probabilities, strict=True))
    return np.array([named[name] for name in read_bundle(run).classes])


def raw(photo):
    return np.array(Image.open(photo)).astype(np.float32)[None]


def listing(folder):
    return {path: path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("input", ["prepared", "pixels"])
def test_keras_gives_the_probabilities_that_burnish_gives(runs, photo, tmp_path, case, input):
    run = runs(case)
    path = api.export(run, tmp_path / "out.keras", input=input)
    assert path == tmp_path / "out.keras"
    images = raw(photo)
    if input == "prepared":
        images = getattr(keras.applications, PREPARE[CASES[case][1]]).preprocess_input(images)
    model = keras.models.load_model(path)
    with torch.no_grad():
        found = keras.ops.convert_to_numpy(model(torch.from_numpy(np.ascontiguousarray(images)), training=False))[0]
    expected = probabilities(run, photo)
    assert np.abs(found - expected).max() <= 1e-4
    assert found.sum() == pytest.approx(1, abs=1e-5)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["out.keras", "out.keras.json"]


@pytest.mark.parametrize("case", ["mlp", "multiprobe", "nested"])
def test_a_file_in_the_older_format_gives_the_same(runs, photo, tmp_path, case):
    run = runs(case)
    path = api.export(run, tmp_path / "out.h5", input="pixels")
    with torch.no_grad():
        found = keras.ops.convert_to_numpy(keras.models.load_model(path)(torch.from_numpy(raw(photo)), training=False))[
            0
        ]
    assert np.abs(found - probabilities(run, photo)).max() <= 1e-4
    assert sorted(one.name for one in tmp_path.iterdir()) == ["out.h5", "out.h5.json"]
    assert api.export(run, path) == path, "an earlier export may be written over"


def test_the_json_beside_it_says_what_the_file_takes_and_gives(runs, tmp_path):
    for input, words in (("prepared", "BGR"), ("pixels", "0 to 255")):
        api.export(runs("full"), tmp_path / "out.keras", input=input)
        facts = json.loads((tmp_path / "out.keras.json").read_text("utf-8"))
        assert facts["classes"] == ["blue", "green", "red"]
        assert words in facts["input"]
        assert facts["output"] == "probabilities"
        assert facts["preprocess"]["size"] == SIZE


def test_a_model_of_several_classes_gives_each_its_own_probability(runs, photo, tmp_path):
    from dataclasses import replace

    from burnish.ship.keras import export_keras
    from burnish.ship.predictor import Predictor

    bundle = replace(read_bundle(runs("probe")), thresholds=(0.5, 0.4, 0.3), held_out=None, temperature=300.0)
    file = export_keras(bundle, tmp_path / "several.keras", input="pixels")
    found = np.asarray(
        keras.ops.convert_to_numpy(keras.models.load_model(file)(torch.from_numpy(raw(photo)), training=False).detach())
    )
    expected = Predictor(bundle).probabilities([photo])
    assert np.abs(found - expected).max() < 1e-4
    assert abs(float(expected.sum()) - 1.0) > 1e-3  # no softmax
    assert json.loads(file.with_suffix(".keras.json").read_text())["thresholds"] == [0.5, 0.4, 0.3]


def test_the_example_of_the_docs_says_what_predict_says(runs, tmp_path, monkeypatch):
    """From the file of a large photograph, which is decoded in part."""
    page = (Path(__file__).parents[1] / "docs" / "models.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```py\n(.*?)```", page, re.DOTALL)
    rows = np.random.default_rng(6).integers(0, 256, (5 * SIZE, 6 * SIZE, 3), np.uint8)
    Image.fromarray(rows).save(tmp_path / "photo.jpg", quality=95)
    api.export(runs("full"), tmp_path / "tuned.keras", input="pixels")
    monkeypatch.chdir(tmp_path)
    said: dict = {}
    exec(code.replace("photos/cat/1.jpg", "photo.jpg"), said)
    assert np.abs(said["chances"] - probabilities(runs("full"), tmp_path / "photo.jpg")).max() <= 1e-4
    assert said["answer"] == api.predict(runs("full"), [tmp_path / "photo.jpg"])[0].label


def test_what_was_exported_can_be_tuned_again(runs, photo, tmp_path):
    """The features that burnish reads from its own file give its logits through the last layer."""
    path = api.export(runs("full"), tmp_path / "out.keras")
    again, bundle = load_backbone(str(path), preprocess="caffe"), read_bundle(runs("full"))
    images = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(again.module(images), bundle.classifier().features(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("case", "depth"), [("mlp", "1,1"), pytest.param("multiprobe", "1,1", marks=pytest.mark.slow), ("vit", "1,1")]
)
def test_a_block_that_was_taken_out_stays_out(runs, photo, tmp_path, case, depth):
    run = runs(case, depth=depth)
    assert read_bundle(run).architecture["changes"][0]["kind"] == "drop"
    path = api.export(run, tmp_path / "out.keras", input="pixels")
    model = keras.models.load_model(path)
    with torch.no_grad():
        found = keras.ops.convert_to_numpy(model(torch.from_numpy(raw(photo)), training=False))[0]
    assert np.abs(found - probabilities(run, photo)).max() <= 1e-4


def test_exporting_twice_gives_the_same_numbers(runs, photo, tmp_path):
    run, path = runs("probe"), tmp_path / "out.keras"
    states = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    api.export(run, path)
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    first = [weight.copy() for weight in keras.models.load_model(path).get_weights()]
    api.export(run, path)
    for one, two in zip(first, keras.models.load_model(path).get_weights(), strict=True):
        assert np.array_equal(one, two)


@pytest.mark.parametrize(
    ("name", "how", "sentence"),
    [
        (
            "out.bin",
            {},
            "does not tell the format; say --to onnx, keras, pt2, openvino or hub, .*in .onnx, .keras, .h5,",
        ),
        ("out.h5", {}, "out.h5 is there and is no earlier export"),
        ("out.keras", {}, "out.keras is there and is no earlier export"),
        ("new.h5", {"to": "pt2"}, "ends in .pt2"),
        ("out.keras", {"to": "onnx9"}, "onnx9.*keras"),
        ("out.keras", {"input": "tensor"}, "prepared or pixels"),
    ],
)
def test_what_cannot_be_written_is_refused_and_the_folder_is_as_it_was(runs, tmp_path, name, how, sentence):
    run, path = runs("probe"), tmp_path / name
    path.write_bytes(b"older")
    before = listing(tmp_path), listing(run)
    with pytest.raises(RecipeError, match=sentence):
        api.export(run, path, **how)
    assert (listing(tmp_path), listing(run)) == before


def test_a_model_that_did_not_come_from_keras_is_refused(shapes, tmp_path):
    api.fit(
        shapes, out=tmp_path / "run", model="random:test_resnet", image_size=64, method="probe", budget=None, epochs=1
    )
    (tmp_path / "out").mkdir()
    with pytest.raises(RecipeError, match="not from a Keras file"):
        api.export(tmp_path / "run", tmp_path / "out" / "out.keras")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_file_of_keras_2_is_written_again(keras_2, shapes, photo, tmp_path):  # noqa: F811
    api.fit(
        shapes, out=tmp_path / "run", model=str(keras_2[0]), preprocess="none", method="probe", taps="off", budget=None
    )
    (tmp_path / "out").mkdir()
    model = keras.models.load_model(api.export(tmp_path / "run", tmp_path / "out" / "out.keras"))
    small = tmp_path / "small.png"
    Image.open(photo).resize((16, 16)).save(small)
    found = keras.ops.convert_to_numpy(model(raw(small), training=False))[0]
    assert np.abs(found - probabilities(tmp_path / "run", small)).max() <= 1e-4


def test_no_file_but_an_earlier_export_is_written_over(runs, tmp_path):
    run = runs("probe")
    (tmp_path / "result.keras.json").write_text('{"kept": "probe"}')
    with pytest.raises(RecipeError, match=r"result\.keras\.json would be written over, and is no earlier export"):
        api.export(run, tmp_path / "result.keras")
    assert [one.name for one in tmp_path.iterdir()] == ["result.keras.json"]


def test_a_network_with_the_names_of_the_layers_around_it_and_learnt_scaling_is_written_for_keras(tmp_path):
    keras = pytest.importorskip("keras", reason="keras is not installed: pip install 'burnish[keras]'")
    from burnish.ship.keras import export_keras

    layers = keras.layers
    given = keras.Input((32, 32, 3), name="images")
    x = layers.Normalization(mean=None, name="prepare")(given)
    x = layers.Conv2D(4, 3, strides=4, activation="relu", name="hidden")(x)
    x = layers.Conv2D(6, 3, name="predictions")(x)
    model = keras.Model(given, layers.GlobalAveragePooling2D(name="tap_0")(x))
    model.get_layer("prepare").adapt(np.random.default_rng(0).normal(3.0, 2.0, (8, 32, 32, 3)).astype(np.float32))
    model.save(tmp_path / "own.keras")
    backbone = zoo.load_backbone(str(tmp_path / "own.keras"), preprocess="none")
    classifier = Classifier.over(backbone, 3)
    with torch.no_grad():
        classifier.head.weight.normal_(generator=torch.Generator().manual_seed(0))
    bundle = Bundle.of(backbone, classifier, classes=("a", "b", "c"), method="probe")
    written = keras.models.load_model(export_keras(bundle, tmp_path / "out.keras"))
    images = np.random.default_rng(1).uniform(0, 6, (2, 32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        features = torch.from_numpy(np.array(keras.ops.convert_to_numpy(model(images))))
        expected = classifier.head(features).softmax(1).numpy()
    assert np.allclose(keras.ops.convert_to_numpy(written(images)), expected, atol=1e-4)


# ---- TensorFlow ------------------------------------------------------------------------------------------------------

TENSORFLOW = """
import os, sys, json
os.environ["KERAS_BACKEND"] = "tensorflow"
import numpy as np, keras
model = keras.models.load_model(sys.argv[1])
images = np.load(sys.argv[2])
if sys.argv[3] != "pixels":
    images = getattr(keras.applications, sys.argv[3]).preprocess_input(images)
assert keras.backend.backend() == "tensorflow"
print(json.dumps(np.asarray(model(images, training=False))[0].tolist()))
"""


def of_tensorflow(path, photo, how, folder):
    """What TensorFlow says to the photo with the file at the path."""
    python = os.environ.get("BURNISH_TENSORFLOW")
    if not python:
        pytest.skip("set BURNISH_TENSORFLOW to the python of an environment that has tensorflow-cpu")
    np.save(folder / "images.npy", raw(photo))
    said = subprocess.run(
        [python, "-c", TENSORFLOW, str(path), str(folder / "images.npy"), how],
        capture_output=True, text=True, timeout=240, env={"PATH": os.environ["PATH"], "HOME": str(folder)},
    )  # fmt: skip
    assert said.returncode == 0, said.stderr[-2000:]
    return np.array(json.loads(said.stdout.splitlines()[-1]))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("input", ["prepared", "pixels"])
def test_tensorflow_gives_the_probabilities_that_burnish_gives(runs, photo, tmp_path, case, input):
    run = runs(case)
    path = api.export(run, tmp_path / "out.keras", input=input)
    how = "pixels" if input == "pixels" else PREPARE[CASES[case][1]]
    found = of_tensorflow(path, photo, how, tmp_path)
    assert np.abs(found - probabilities(run, photo)).max() <= 1e-4


@pytest.mark.slow
def test_tensorflow_opens_a_changed_network_in_the_older_format(runs, photo, tmp_path):
    run = runs("mlp", depth="1,1")
    found = of_tensorflow(api.export(run, tmp_path / "out.h5", input="pixels"), photo, "pixels", tmp_path)
    assert np.abs(found - probabilities(run, photo)).max() <= 1e-4
