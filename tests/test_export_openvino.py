"""Promises of exported OpenVINO files: its CPU plugin gives the probabilities that burnish gives, or nothing is written."""

import errno
import json
import os
import sys

import numpy as np
import pytest
import torch

from burnish import api, cli
from burnish.backbones import zoo
from burnish.backbones.classifier import Classifier
from burnish.errors import ModelError, RecipeError, RunError
from burnish.ship import exported
from burnish.ship.bundle import Bundle, write_bundle
from burnish.ship.openvino import export_openvino

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


def package(name="test_resnet", **more):
    backbone = zoo.load_backbone(f"random:{name}", image_size=64 if name == "test_resnet" else None)
    classifier = Classifier.over(backbone, 3)
    with torch.no_grad():
        classifier.head.weight.normal_(generator=torch.Generator().manual_seed(0))
    return Bundle.of(backbone, classifier, classes=("a", "b", "c\udcff"), method="full", **more)


@pytest.fixture
def openvino():
    return pytest.importorskip("openvino", reason="openvino is not installed: pip install 'burnish[openvino]'")


@pytest.mark.parametrize(
    ("name", "given"), [("test_resnet", "prepared"), ("test_resnet", "pixels"), ("test_vit", "prepared")]
)
def test_openvino_says_what_burnish_says_for_any_number_of_images(name, given, openvino, tmp_path):
    bundle = package(name, temperature=1.7)
    raw, prepared, expected = exported.noise(bundle)
    path, images = export_openvino(bundle, tmp_path / "one.xml", input=given), raw if given == "pixels" else prepared
    network = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for few in (images, images[:1]):
        assert np.abs(network({"images": few})["probabilities"] - expected[: len(few)]).max() <= 1e-4
    assert np.ptp(expected) > 1e-2


def test_the_weights_stay_float32_and_the_graph_says_what_it_means(openvino, tmp_path):
    bundle = package()
    path = export_openvino(bundle, tmp_path / "one.xml")
    numbers = sum(one.numel() for name, one in bundle.state.items() if name.endswith("weight") and one.ndim > 1)
    assert (tmp_path / "one.bin").stat().st_size >= 4 * numbers and 'element_type="f16"' not in path.read_text()
    told = json.loads(openvino.Core().read_model(path).get_rt_info(["burnish"]).astype(str))
    assert told == json.loads((tmp_path / "one.xml.json").read_text()) and told["classes"] == ["a", "b", "c\udcff"]
    assert str(tmp_path) not in path.read_text()


def test_the_files_are_called_as_the_run_is_and_an_earlier_export_is_replaced(openvino, tmp_path, monkeypatch, capsys):
    write_bundle(tmp_path / "run", package())
    monkeypatch.chdir(tmp_path)
    cli.main(["export", "run", "--to", "openvino", "--input", "pixels"])
    before = (tmp_path / "run.xml").read_bytes()
    cli.main(["export", "run", "--out", "run.xml"])
    assert capsys.readouterr().out.split() == ["run.xml", "run.xml"]
    assert sorted(one.name for one in tmp_path.iterdir()) == ["run", "run.bin", "run.xml", "run.xml.json"]
    assert (tmp_path / "run.xml").read_bytes() != before


def test_a_disk_that_is_full_in_the_midst_of_replacing_leaves_the_earlier_export(openvino, tmp_path, monkeypatch):
    path = export_openvino(package(), tmp_path / "one.xml")
    before = {one.name: one.read_bytes() for one in tmp_path.iterdir()}

    def full(*given):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("burnish.ship.openvino.write_meaning", full)
    with pytest.raises(RunError, match="the disk is full"):
        export_openvino(package(), path, input="pixels")
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("out", "message"),
    [("model.bin", r"ends in \.xml"), ("taken.xml", r"taken\.bin is there and is no earlier export")],
)
def test_what_cannot_be_written_is_told_and_nothing_is_lost(out, message, tmp_path):
    (tmp_path / "taken.bin").write_bytes(b"something of mine")
    with pytest.raises(RecipeError, match=message):
        export_openvino(package(), tmp_path / out)
    assert [(one.name, one.read_bytes()) for one in tmp_path.iterdir()] == [("taken.bin", b"something of mine")]


def test_without_the_package_what_to_install_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    write_bundle(tmp_path / "run", package())
    with pytest.raises(ModelError, match=r"needs openvino; run: pip install 'burnish\[openvino\]'"):
        api.export(tmp_path / "run", tmp_path / "one.xml")
    assert not list(tmp_path.glob("one.*"))


def test_files_that_answer_otherwise_are_not_written(openvino, tmp_path, monkeypatch):
    bundle, seen = package(), []

    def judged(framework, *rest, real=exported.require_same):
        seen.append(framework)
        if framework == "OpenVINO":
            monkeypatch.setattr(exported, "_TOLERANCE", -1.0)
        real(framework, *rest)

    monkeypatch.setattr("burnish.ship.openvino.require_same", judged)
    with pytest.raises(RunError, match="OpenVINO gives other probabilities than burnish"):
        export_openvino(bundle, tmp_path / "one.xml")
    assert seen == ["OpenVINO"] and list(tmp_path.iterdir()) == []


def test_what_openvino_cannot_read_is_told_in_a_sentence(openvino, tmp_path, monkeypatch):
    monkeypatch.setattr("burnish.ship.openvino.onnx_of", lambda *_, **__: b"no graph")
    with pytest.raises(RunError, match=r"OpenVINO cannot read what PyTorch's exporter made of test_resnet \("):
        export_openvino(package(), tmp_path / "one.xml")
    assert list(tmp_path.iterdir()) == []
