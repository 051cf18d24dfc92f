"""Promises of exported archives of torch.export: PyTorch alone gives the probabilities that burnish gives, or nothing is written."""

import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

from burnish import api, cli
from burnish.backbones import zoo
from burnish.backbones.classifier import Classifier
from burnish.data.views import normalised
from burnish.errors import RecipeError, RunError
from burnish.ship import exported
from burnish.ship.bundle import Bundle
from burnish.ship.pt2 import export_pt2
from conftest import finished_once

CASES = {
    "taps": {"method": "multiprobe"},
    "nearest neighbours": {"method": "probe:head=knn"},
    "changed": {
        "method": "adapter",
        "depth": "1,1,1,1",
        "pool": "catavgmax",
        "insert": "layer2=conv:3",
        "head": "mlp:16",
    },
}
ALONE = """
import sys, json

class Nowhere:
    def find_spec(self, name, *rest):
        if name.split(".")[0] in ("burnish", "timm"):
            raise ImportError(name)

sys.meta_path.insert(0, Nowhere())
import numpy, torch

more = {"burnish": "", "licence": ""}
module = torch.export.load(sys.argv[1], extra_files=more).module()
images = torch.from_numpy(numpy.load(sys.argv[2]))
numpy.save(sys.argv[3], module(images).numpy())
print(json.dumps([json.loads(more["burnish"]), more["licence"]]))
"""


@pytest.fixture(scope="module")
def runs(shapes, tmp_path_factory):
    return finished_once(CASES, shapes, tmp_path_factory.mktemp("runs"))


def package(name, **more):
    backbone = zoo.load_backbone(f"random:{name}")
    classifier = Classifier.over(backbone, 3)
    with torch.no_grad():
        classifier.head.weight.normal_(generator=torch.Generator().manual_seed(0))
    return Bundle.of(backbone, classifier, classes=("a", "b", "c\udcff"), method="full", **more)


def answers(path, images):
    return torch.export.load(path).module()(torch.from_numpy(images)).numpy()


@pytest.mark.parametrize("case", CASES)
def test_the_archive_says_of_image_files_what_predict_says(case, runs, shapes, tmp_path):
    photos, result = sorted(shapes.rglob("*.png"))[::10], api.open_run(runs(case))
    expected, pixels = result.predict_proba(photos), np.stack(result.predictor.pixels(photos))
    prepared = normalised(pixels, result.predictor.bundle.preprocess).contiguous().numpy()
    assert np.abs(answers(api.export(runs(case), tmp_path / "own.pt2"), prepared) - expected).max() <= 1e-4
    assert np.ptp(expected, axis=0).max() > 1e-3  # or all would be alike whatever the file held
    if case == "taps":
        path = api.export(runs(case), tmp_path / "pixels.pt2", input="pixels")
        assert np.abs(answers(path, pixels) - expected).max() <= 1e-4


def test_a_process_without_burnish_and_timm_opens_it_and_learns_what_it_means(tmp_path):
    bundle = package("test_vit", temperature=1.7)
    path = export_pt2(bundle, tmp_path / "one.pt2")
    side = bundle.preprocess.size
    images = np.random.default_rng(0).normal(size=(3, 3, side, side)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    words = [sys.executable, "-c", ALONE, str(path), str(tmp_path / "images.npy"), str(tmp_path / "found.npy")]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, timeout=300, check=True)
    with torch.no_grad():
        expected = (bundle.classifier()(torch.from_numpy(images)) / 1.7).softmax(1).numpy()
    assert np.abs(np.load(tmp_path / "found.npy") - expected).max() <= 1e-4
    assert np.ptp(expected) > 1e-2
    told, licence = json.loads(done.stdout)
    assert told == json.loads((tmp_path / "one.pt2.json").read_text())
    assert told["classes"] == ["a", "b", "c\udcff"] and licence == bundle.licence


# LeViT looks the biases of its attention up in each pass.
@pytest.mark.parametrize("name", ["levit_128s", "test_convnext"])
def test_networks_of_other_families_take_any_number_of_images(name, tmp_path):
    bundle = package(name)
    path, side = export_pt2(bundle, tmp_path / "one.pt2"), bundle.preprocess.size
    images = np.random.default_rng(0).normal(size=(3, 3, side, side)).astype(np.float32)
    with torch.no_grad():
        expected = bundle.classifier()(torch.from_numpy(images)).softmax(1).numpy()
    module = torch.export.load(path).module()
    for few in (images, images[:1]):
        assert np.abs(module(torch.from_numpy(few)).numpy() - expected[: len(few)]).max() <= 1e-4


def test_of_several_classes_an_image_each_has_a_probability_of_its_own(tmp_path):
    bundle = package("test_resnet", thresholds=(0.2, 0.5, 0.7))
    path, images = export_pt2(bundle, tmp_path / "one.pt2"), np.zeros((2, 3, 160, 160), np.float32)
    with torch.no_grad():
        assert np.allclose(answers(path, images), bundle.classifier()(torch.from_numpy(images)).sigmoid(), atol=1e-4)
    assert json.loads((tmp_path / "one.pt2.json").read_text())["thresholds"] == [0.2, 0.5, 0.7]


def test_nothing_in_the_archive_is_a_pickle_or_names_a_folder_of_who_wrote_it(tmp_path):
    with zipfile.ZipFile(export_pt2(package("test_resnet"), tmp_path / "one.pt2")) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    assert any("weights" in name for name in members) and any(name.endswith("model.json") for name in members)
    for name, data in members.items():
        assert not name.endswith(".pkl") and data[:2] not in (b"PK", b"\x80\x02", b"\x80\x04"), name
    told = b"".join(data for name, data in members.items() if name.endswith(".json"))
    for place in (os.path.dirname(torch.__file__), os.path.dirname(exported.__file__), str(tmp_path)):
        assert place.encode() not in told


def test_the_file_is_called_as_the_run_is_and_an_earlier_export_is_replaced(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cli.main(["export", str(runs("taps")), "--to", "pt2", "--input", "pixels"])
    before = (tmp_path / "taps.pt2").read_bytes()
    cli.main(["export", str(runs("taps")), "--out", "taps.pt2"])
    assert capsys.readouterr().out.split() == ["taps.pt2", "taps.pt2"]
    assert sorted(one.name for one in tmp_path.iterdir()) == ["taps.pt2", "taps.pt2.json"]
    assert (tmp_path / "taps.pt2").read_bytes() != before


@pytest.mark.parametrize(
    ("out", "more", "message"),
    [
        ("model.bin", {"to": "pt2"}, r"ends in \.pt2"),
        ("taken.pt2", {}, "is no earlier export"),
        ("model.pt2", {"input": "bytes"}, "expected prepared or pixels"),
    ],
)
def test_what_cannot_be_written_is_told_and_nothing_is_lost(out, more, message, runs, tmp_path):
    (tmp_path / "taken.pt2").write_bytes(b"something of mine")
    with pytest.raises(RecipeError, match=message):
        api.export(runs("taps"), tmp_path / out, **more)
    assert [(one.name, one.read_bytes()) for one in tmp_path.iterdir()] == [("taken.pt2", b"something of mine")]


def test_a_file_that_answers_otherwise_is_not_written(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(exported, "_TOLERANCE", -1.0)
    with pytest.raises(RunError, match="other probabilities than burnish"):
        api.export(runs("taps"), tmp_path / "one.pt2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("step", "message"), [("export", "cannot export"), ("load", "cannot read back")])
def test_what_pytorch_cannot_do_is_told_in_a_sentence(step, message, runs, tmp_path, monkeypatch):
    def refuses(*_, **__):
        raise KeyError("no such operator\nand a long trace")

    monkeypatch.setattr(torch.export, step, refuses)
    with pytest.raises(RunError, match=rf"{message} .*test_resnet \('no such operator"):
        api.export(runs("taps"), tmp_path / "one.pt2")
    assert list(tmp_path.iterdir()) == []
