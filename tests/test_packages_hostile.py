"""Packages that deceive: they ask for more than they hold, or their hashes fit what they should not hold."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from test_backbones_hub import assert_a_sentence
from test_bundle import _rewrite

from burnish.backbones import zoo
from burnish.backbones.classifier import Classifier
from burnish.errors import BadWeights, NotARun, UnreadableImage
from burnish.measure.held_out import HeldOut
from burnish.ship import bundle as bundles
from burnish.ship.bundle import Bundle, read_bundle, write_bundle
from burnish.ship.predictor import Predictor
from burnish.terms import Preprocess

# ---- packages that ask for more than they hold -----------------------------------------------------------------------


HUGE = 10**400


def a_package(folder, **changes):
    """A sound one of a small network; then changed, its hash made to fit."""
    backbone = zoo.load_backbone("random:cifar_resnet20")
    held = HeldOut(np.array([0.9, 0.8]), np.array([True, False]), np.array([0.9, 0.1]))
    classes = ("a", "b", "c")
    bundle = Bundle.of(backbone, Classifier.over(backbone, 3), classes=classes, method="probe", held_out=held)
    write_bundle(folder, bundle)
    _rewrite(folder, **changes)
    return bundle


def of_few_numbers(architecture, width):
    """A package with a head and one weight more."""
    state = {"trunk.a": torch.zeros(1), "head.weight": torch.zeros(2, width), "head.bias": torch.zeros(2)}
    return Bundle(architecture, ("a", "b"), Preprocess(size=32), state, width, "probe", "x", "", "unknown")


def node(kind, name, given, **options):
    return {"name": name, "kind": kind, "inputs": [given], "options": options}


SEVEN = {"kind": "insert", "layers": ["layer1"], "channels": [1], "widths": [2300], "layer": "conv:7"}  # of 259,210,000
KERAS_NODES = [
    node("GlobalAveragePooling2D", "pool", "input"),
    node("Dense", "one", "pool", units=46_000),
    node("Dense", "two", "one", units=46_000),
]
GIANTS = {
    "a table of all pairs of patches": (
        {"library": "timm", "name": "resmlp_36_224", "kwargs": {"img_size": 2048}},
        384,
    ),
    "layers of Keras": (
        {
            "library": "keras",
            "name": "x",
            "kwargs": {"nodes": KERAS_NODES, "constants": {}, "size": 32, "bgr": False},
        },
        46_000,
    ),
    "layers put in": ({"library": "timm", "name": "test_resnet", "kwargs": {}, "changes": [SEVEN] * 4}, 384),
}


@pytest.mark.parametrize("kind", GIANTS)
def test_a_package_of_a_few_kilobytes_is_not_built_into_gigabytes(kind, tmp_path, monkeypatch):
    write_bundle(tmp_path, of_few_numbers(*GIANTS[kind]))
    monkeypatch.setattr(zoo, "rebuild", lambda *_, **__: pytest.fail("it is being built"))
    with pytest.raises((BadWeights, NotARun), match=r"it is for another network"):
        read_bundle(tmp_path).classifier()


def test_a_file_of_two_numbers_is_not_built_into_gigabytes_by_the_size_in_its_config(tmp_path, monkeypatch):
    from safetensors.torch import save_file

    from burnish.backbones import files

    save_file({"a.b": torch.zeros(1), "a.c": torch.zeros(1)}, tmp_path / "model.safetensors")
    told = {"architecture": "resmlp_36_224", "pretrained_cfg": {"input_size": [3, 1024, 1024]}}
    (tmp_path / "config.json").write_text(json.dumps(told))
    monkeypatch.setattr(files, "built", lambda *_, **__: pytest.fail("it is being built"))
    with pytest.raises(BadWeights):
        zoo.load_backbone(str(tmp_path / "model.safetensors"))


def held_out_of(number):
    return {"held_out": {"confidence": [number, 0.8], "right": [1, 0], "own": [0.9, 0.1]}}


def preprocess_of(entry, number):
    return {"preprocess": {**Preprocess(size=32).to_json(), entry: [number, 0.5, 0.5]}}


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": HUGE}, held_out_of(HUGE), preprocess_of("mean", HUGE), preprocess_of("std", HUGE),
        {"head": {"kind": "linear", "width": HUGE}}, {"head": {"kind": "linear", "width": 2**62}},
        {"head": {"kind": "linear", "width": -1}},
    ],
    ids=["temperature", "held out", "mean", "std", "width", "width in 64 bits", "width below zero"],
)  # fmt: skip
def test_numbers_that_no_float_holds_are_refused_in_a_sentence(changes, tmp_path):
    a_package(tmp_path / "run", **changes)
    with pytest.raises((NotARun, BadWeights)):
        read_bundle(tmp_path / "run")


def test_of_two_hundred_thousand_classes_the_one_named_twice_is_found_and_told_briefly(tmp_path):
    """Each name compared with all the others would take hours."""
    count, long = 200_000, "z" * 5000
    names = [str(number) for number in range(count - 2)]
    state = {"trunk.a": torch.zeros(1), "head.weight": torch.zeros(count, 1), "head.bias": torch.zeros(count)}
    bundle = of_few_numbers({"library": "timm", "name": "test_resnet", "kwargs": {}}, 1)
    bundle = Bundle(**{**vars(bundle), "classes": (*names, long, "y"), "state": state})
    write_bundle(tmp_path, bundle)
    _rewrite(tmp_path, classes=[*names, long, long])
    with pytest.raises(BadWeights, match=r"'zzz.* is named twice") as problem:
        read_bundle(tmp_path)
    assert len(str(problem.value)) < len(str(tmp_path)) + 300


# ---- packages that are forged ----------------------------------------------------------------------------------------


PICTURE = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    backbone = zoo.load_backbone("random:cifar_resnet8")
    made = Bundle.of(backbone, Classifier.over(backbone, classes=2), classes=("a", "b"), method="full")
    folder = tmp_path_factory.mktemp("package") / "run"
    write_bundle(folder, made)
    return bundles.package_folder(folder)


@pytest.fixture
def forged(package, tmp_path):
    """Gives a package with other tensors and other values in its description, and hashes that fit."""

    def make(*, tensors: dict[str, torch.Tensor] | None = None, **values: Any) -> Path:
        folder = shutil.copytree(package, tmp_path / "forged")
        weights, described = folder / "weights.safetensors", folder / "bundle.json"
        state = safetensors.torch.load(weights.read_bytes()) | (tensors or {})
        data = safetensors.torch.save({name: one.contiguous() for name, one in state.items()})
        weights.write_bytes(data)
        told = json.loads(described.read_text()) | values
        told["members"] = {weights.name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}}
        told["sha256"] = bundles._digest(told)
        described.write_text(json.dumps(told))
        return folder

    return make


def tensor_of(package: Path, name: str) -> torch.Tensor:
    return safetensors.torch.load((package / "weights.safetensors").read_bytes())[name]


def test_a_package_forged_with_nothing_changed_predicts(forged):
    (one,) = Predictor.open(forged()).predict([PICTURE])
    assert one.problem is None and one.probability >= 0.5


KINDS = {
    "float8": torch.float8_e4m3fn, "float8 of another form": torch.float8_e5m2, "float16": torch.float16,
    "bfloat16": torch.bfloat16, "float64": torch.float64, "complex": torch.complex64, "bool": torch.bool, "int": torch.int32,
}  # fmt: skip


@pytest.mark.parametrize("name", ["trunk.conv1.weight", "head.weight"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_of_another_kind_of_number_is_refused(kind, name, package, forged):
    folder = forged(tensors={name: tensor_of(package, name).to(KINDS[kind])})
    with pytest.raises((NotARun, BadWeights)) as error:
        Predictor.open(folder).predict([PICTURE])
    assert_a_sentence(error)
    assert name in str(error.value) and "kind" in str(error.value)


@pytest.mark.parametrize("width", [63, 65, 1])
def test_a_head_of_another_width_than_its_trunk_is_refused(width, forged):
    folder = forged(tensors={"head.weight": torch.zeros(2, width)}, head={"kind": "linear", "width": width})
    with pytest.raises((NotARun, BadWeights), match="damaged, make it again with burnish fit") as error:
        Predictor.open(folder).predict([PICTURE])
    assert_a_sentence(error)


def test_images_larger_than_any_network_sees_are_refused(package, forged):
    told = json.loads((package / "bundle.json").read_text())["preprocess"]
    with pytest.raises(NotARun, match=r"images of 4096 pixels a side, expected at most 2,048") as error:
        Predictor.open(forged(preprocess=told | {"size": 4096}))
    assert_a_sentence(error)


@pytest.mark.parametrize("name", ["trunk.conv1.weight", "head.weight"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_an_answer_that_is_no_number_is_a_problem_and_no_probability(name, package, forged):
    large = torch.full_like(tensor_of(package, name), 3e38)
    predictor = Predictor.open(forged(tensors={name: large}))
    missing = Path("no such image.png")
    first, second, third = predictor.predict([PICTURE, missing, PICTURE])
    for one in (first, third):
        assert one.problem is not None and "not a number" in one.problem
        assert one.classes == one.probabilities == () and one.label is None
    assert second.problem is not None and "not a number" not in second.problem
    with pytest.raises(UnreadableImage, match="not a number"):
        predictor.probabilities([PICTURE])
