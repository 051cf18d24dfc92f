"""Promises of exported ONNX files: ONNX Runtime gives the probabilities that burnish gives, or nothing is written."""

import itertools
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from burnish import api, cli
from burnish.backbones import zoo
from burnish.backbones.classifier import Classifier
from burnish.data.views import _there, normalised
from burnish.errors import ModelError, RecipeError, RunError
from burnish.ship import exported
from burnish.ship.bundle import Bundle, read_bundle, write_bundle
from burnish.ship.onnx import export_onnx
from conftest import finished_once

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install 'burnish[onnx]'")
pytest.importorskip("onnxscript")
runtime = pytest.importorskip("onnxruntime")

CASES = {
    "taps": {"method": "multiprobe"},
    "nearest neighbours": {"method": "probe:head=knn"},
    "adapters": {"method": "adapter", "head": "cosine"},
    "changed": {"method": "full", "depth": "1,1,1,1", "pool": "catavgmax", "insert": "layer2=conv:3", "head": "mlp:16"},
}


@pytest.fixture(scope="module")
def runs(shapes, tmp_path_factory):
    return finished_once(CASES, shapes, tmp_path_factory.mktemp("runs"))


def answers(path, images):
    return runtime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"images": images})[0]


def package(classifier, backbone, **more):
    with torch.no_grad():
        classifier.head.weight.normal_(generator=torch.Generator().manual_seed(0))
    return Bundle.of(backbone, classifier, classes=("a", "b", "c"), method="full", **more)


@pytest.fixture(scope="module")
def files(runs, tmp_path_factory):
    """The folder with two exports of one run: prepared.onnx and pixels.onnx."""
    folder = tmp_path_factory.mktemp("exports")
    for given in ("prepared", "pixels"):
        api.export(runs("taps"), folder / f"{given}.onnx", input=given)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_onnx_runtime_says_of_image_files_what_predict_says(case, runs, files, shapes, tmp_path):
    photos, result = sorted(shapes.rglob("*.png"))[::10], api.open_run(runs(case))
    expected, pixels = result.predict_proba(photos), np.stack(result.predictor.pixels(photos))
    prepared = normalised(pixels, result.predictor.bundle.preprocess).contiguous().numpy()
    path = files / "prepared.onnx" if case == "taps" else api.export(runs(case), tmp_path / "own.onnx")
    assert np.abs(answers(path, prepared) - expected).max() <= 1e-4
    assert np.ptp(expected, axis=0).max() > 1e-3  # or all would be alike whatever the file held
    if case == "taps":
        assert np.abs(answers(files / "pixels.onnx", pixels) - expected).max() <= 1e-4


# The second one's attention has a bias, with which PyTorch's fused one cannot be taken apart.
@pytest.mark.parametrize("name", ["test_vit", "vit_relpos_small_patch16_224", "test_convnext"])
def test_networks_of_other_families_are_written_for_any_number_of_images(name, tmp_path):
    backbone = zoo.load_backbone(f"random:{name}")
    bundle = package(Classifier.over(backbone, 3), backbone, temperature=1.7)
    path = export_onnx(bundle, tmp_path / "one.onnx")
    side = backbone.preprocess.size
    images = np.random.default_rng(0).normal(size=(3, 3, side, side)).astype(np.float32)
    with torch.no_grad():
        expected = (bundle.classifier()(torch.from_numpy(images)) / 1.7).softmax(1).numpy()
    for few in (images, images[:1]):
        assert np.abs(answers(path, few) - expected[: len(few)]).max() <= 1e-4
    assert np.ptp(expected) > 1e-2


def test_of_several_classes_an_image_each_has_a_probability_of_its_own(tmp_path):
    backbone = zoo.load_backbone("random:test_resnet", image_size=64)
    bundle = package(Classifier.over(backbone, 3), backbone, thresholds=(0.2, 0.5, 0.7))
    found = answers(export_onnx(bundle, tmp_path / "one.onnx"), np.zeros((2, 3, 64, 64), np.float32))
    with torch.no_grad():
        assert np.allclose(found, bundle.classifier()(torch.zeros(2, 3, 64, 64)).sigmoid().numpy(), atol=1e-4)
    assert json.loads((tmp_path / "one.onnx.json").read_text())["thresholds"] == [0.2, 0.5, 0.7]


def test_after_an_export_the_same_process_predicts(runs, shapes, tmp_path):
    """The numbers that images are prepared with, made while the network was traced, were kept, and held nothing."""
    run = runs("taps")
    _there.cache_clear()
    api.export(run, tmp_path / "one.onnx", input="pixels")
    found = api.predict(run, sorted(shapes.rglob("*.png"))[:2])
    assert [one.problem for one in found] == [None, None]


def test_the_file_says_what_it_means_and_needs_no_other(runs, files):
    path = files / "pixels.onnx"
    model, bundle = onnx.load(path, load_external_data=False), read_bundle(runs("taps"))
    onnx.checker.check_model(model, full_check=True)
    told = {one.key: one.value for one in model.metadata_props}
    assert json.loads(told["burnish"]) == json.loads((files / "pixels.onnx.json").read_text())
    assert json.loads(told["burnish"])["classes"] == list(bundle.classes)
    assert "uint8 [n size size 3]" in json.loads(told["burnish"])["input"]
    assert not any(one.external_data for one in model.graph.initializer)
    assert "/" not in "".join(node.doc_string for node in model.graph.node)  # no paths of who wrote it
    assert str(path.home()).encode() not in path.read_bytes()
    assert {one.name for one in files.iterdir()} == {
        f"{name}.{kind}" for name in ("pixels", "prepared") for kind in ("onnx", "onnx.json")
    }


def test_without_a_name_the_file_is_called_as_the_run_is(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cli.main(["export", str(runs("taps")), "--to", "onnx"])
    assert capsys.readouterr().out.split() == ["taps.onnx"]
    assert (tmp_path / "taps.onnx").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("out", "more", "message"),
    [
        ("model.bin", {}, "does not tell the format; say --to onnx, keras, pt2, openvino or hub"),
        (None, {}, "neither --to nor --out is given"),
        (
            "model.onnx",
            {"to": "tflite"},
            "'tflite' is not known; expected onnx, keras, pt2, openvino or hub; onnx is what leads there",
        ),
        ("model.bin", {"to": "onnx"}, r"ends in \.onnx"),
        ("model.onnx", {"input": "bytes"}, "input is 'bytes', expected prepared or pixels"),
        ("nowhere/model.onnx", {}, "there is no folder"),
        ("folder.onnx", {}, "is a folder; name a file"),
        ("taken.onnx", {}, "is no earlier export"),
        ("own.onnx", {}, r"own\.onnx\.json would be written over"),
        ("model.keras", {}, "not from a Keras file.*--to onnx"),
    ],
)
def test_what_cannot_be_written_is_told_and_nothing_is_lost(out, more, message, runs, tmp_path):
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "taken.onnx").write_bytes(b"something of mine")
    (tmp_path / "own.onnx.json").write_text('{"mine": 1}')
    before = {one.name: one.read_bytes() for one in tmp_path.iterdir() if one.is_file()}
    with pytest.raises(RecipeError, match=message):
        api.export(runs("taps"), None if out is None else tmp_path / out, **more)
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir() if one.is_file()} == before


def test_an_earlier_export_is_replaced(runs, files, tmp_path):
    for kind in ("onnx", "onnx.json"):
        (tmp_path / f"one.{kind}").write_bytes((files / f"pixels.{kind}").read_bytes())
    api.export(runs("taps"), tmp_path / "one.onnx")
    assert (tmp_path / "one.onnx").read_bytes() != (files / "pixels.onnx").read_bytes()


def test_exports_of_one_name_in_several_formats_each_keep_what_they_mean(runs, tmp_path):
    for format, given in (("onnx", "pixels"), ("pt2", "prepared")):
        api.export(runs("taps"), tmp_path / f"one.{format}", input=given)
    told = [json.loads((tmp_path / f"one.{format}.json").read_text())["input"] for format in ("onnx", "pt2")]
    assert told == [exported.WORDS["pixels"], exported.WORDS["prepared"]]
    (tmp_path / "one.xml").write_bytes(b"something of mine")
    with pytest.raises(RecipeError, match=r"one\.xml is there and is no earlier export"):
        api.export(runs("taps"), tmp_path / "one.xml")


def test_a_file_that_answers_otherwise_is_not_written(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(exported, "_TOLERANCE", -1.0)
    with pytest.raises(RunError, match="other probabilities than burnish"):
        api.export(runs("taps"), tmp_path / "one.onnx")
    assert list(tmp_path.iterdir()) == []


def test_after_a_death_between_its_two_files_the_same_export_is_written(runs, tmp_path, monkeypatch):
    class Died(BaseException):
        pass

    def dies_after(number):
        done = itertools.count(1)

        def replace(*paths, real=os.replace):
            real(*paths)
            if next(done) == number:
                raise Died

        return replace

    with monkeypatch.context() as patched, pytest.raises(Died):
        patched.setattr(os, "replace", dies_after(1))
        api.export(runs("taps"), tmp_path / "one.onnx")
    assert len(list(tmp_path.iterdir())) == 1
    api.export(runs("taps"), tmp_path / "one.onnx")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["one.onnx", "one.onnx.json"]


def test_a_model_whose_own_answers_are_no_numbers_is_told_so_and_no_other_framework_is_blamed(tmp_path):
    backbone = zoo.load_backbone("random:test_resnet")
    made = Bundle.of(backbone, Classifier.over(backbone, classes=2), classes=("a", "b"), method="full")
    state = {name: -one if name.endswith("running_var") else one for name, one in made.state.items()}
    write_bundle(tmp_path / "run", Bundle(**{**vars(made), "state": state}))
    with pytest.raises(RunError, match=r"own answers .* are no numbers"):
        api.export(tmp_path / "run", tmp_path / "one.onnx")
    assert not list(tmp_path.glob("one.*"))


def test_a_licence_of_bytes_that_are_no_characters_is_written_escaped(tmp_path):
    backbone = zoo.load_backbone("random:test_resnet")
    made = Bundle.of(backbone, Classifier.over(backbone, classes=2), classes=("a", "b\udcff"), method="full")
    write_bundle(tmp_path / "run", Bundle(**{**vars(made), "licence": "mine \udcff"}))
    api.export(tmp_path / "run", tmp_path / "one.onnx")
    told = {one.key: one.value for one in onnx.load(tmp_path / "one.onnx").metadata_props}
    assert told["licence"] == r"mine \udcff"
    assert json.loads(told["burnish"])["classes"] == ["a", "b\udcff"]


def test_a_network_that_the_exporter_cannot_write_is_told_in_a_sentence(runs, tmp_path, monkeypatch):
    def refuses(*_, **__):
        raise RuntimeError("no such operator\nand a long trace")

    monkeypatch.setattr(torch.onnx, "export", refuses)
    with pytest.raises(RunError, match=r"cannot write .*as ONNX \(no such operator\)"):
        api.export(runs("taps"), tmp_path / "one.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_onnx_runtime_cannot_run_is_told_in_a_sentence_and_not_written(runs, tmp_path, monkeypatch):
    def refuses(*_, **__):
        raise KeyError("no kernel for Erf(18)")

    monkeypatch.setattr(runtime, "InferenceSession", refuses)
    with pytest.raises(RunError, match=r"ONNX Runtime cannot run .*no kernel for Erf"):
        api.export(runs("taps"), tmp_path / "one.onnx")
    assert list(tmp_path.iterdir()) == []


def test_without_the_packages_what_to_install_is_said(runs, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(ModelError, match=r"needs onnxruntime; run: pip install 'burnish\[onnx\]'"):
        api.export(runs("taps"), tmp_path / "one.onnx")


def test_an_image_cut_by_hand_as_the_json_says_gets_the_same_answer(runs, files, shapes):
    """What a program without burnish does: Pillow and the numbers beside the file."""
    how = json.loads((files / "prepared.onnx.json").read_text())["preprocess"]
    file, size = next(shapes.rglob("*.png")), how["size"]
    image = Image.open(file).convert("RGB")
    scale = size / how["crop"] / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    array = np.asarray(image.crop((left, top, left + size, top + size)), np.float32) / 255
    array = ((array - how["mean"]) / how["std"]).astype(np.float32).transpose(2, 0, 1)[None]
    expected = api.open_run(runs("taps")).predict_proba([file])
    assert np.abs(answers(files / "prepared.onnx", array) - expected).max() < 0.02
