"""Promises of the int8 ONNX file beside a slim package: it is judged as the package is, and says what it means."""

import json

import numpy as np
import pytest

from burnish import api
from burnish.data.views import normalised
from burnish.errors import ModelError, RunError
from burnish.record.folder import sides_in
from burnish.ship import onnx as onnx_files
from burnish.ship import slim_onnx
from burnish.ship.bundle import read_bundle
from burnish.use import slimming
from burnish.verbs import slimming as verbs_slimming
from conftest import write_shapes

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install 'burnish[onnx]'")
pytest.importorskip("onnxscript")
runtime = pytest.importorskip("onnxruntime")

TINY = {"model": "random:test_resnet", "image_size": 64, "budget": None, "cache": "off"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("slim") / "photos"
    write_shapes(root, images=40)
    return root


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    return api.fit(photos, out=tmp_path_factory.mktemp("runs") / "run", method="full", epochs=1, **TINY).folder


@pytest.fixture(scope="module")
def made(run):
    return api.slim(run, lose=30, onnx="on")


def test_the_file_answers_what_its_proof_says_and_means_what_is_beside_it(made, run, photos):
    tests = sorted(photos / path for path, side in sides_in(run / "splits.csv").items() if side == "test")
    bundle, predictor = read_bundle(made.folder), slimming.Predictor(read_bundle(made.folder))
    images = normalised(np.stack(predictor.pixels(tests)), bundle.preprocess).contiguous().numpy()
    session = runtime.InferenceSession(made.onnx, providers=["CPUExecutionProvider"])
    found = session.run(None, {"images": images})[0]
    proof = made.facts["onnx"]["proof"]
    hits = [bundle.classes[at] == path.parent.name for at, path in zip(found.argmax(1), tests, strict=True)]
    assert proof["slim"]["value"] == pytest.approx(np.mean(hits)) and proof["slim"]["n"] == len(tests)
    original = [one.label for one in api.predict(run, tests)]
    same = [bundle.classes[at] == label for at, label in zip(found.argmax(1), original, strict=True)]
    assert proof["agreement"]["value"] == pytest.approx(np.mean(same))
    told = json.loads((made.folder / "model.onnx.json").read_text())
    assert told["classes"] == list(bundle.classes) and told["preprocess"] == bundle.preprocess.to_json()
    assert found.sum(1) == pytest.approx(1.0, abs=1e-4) and np.ptp(found, axis=0).max() > 1e-3


@pytest.mark.parametrize(("int8", "said"), [(2.0, True), (1.0, False)])
def test_where_it_is_no_faster_than_a_float32_file_that_is_said(int8, said, made, capsys):
    took = {**made.facts["milliseconds"], "onnx": int8, "onnx_float32": 1.5}
    verbs_slimming._print({**made.facts, "milliseconds": took}, made.folder)
    assert ("no faster here than the float32 file" in capsys.readouterr().out) == said


def test_weights_and_activations_are_int8_in_it(made):
    model = onnx.load(made.onnx)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("QuantizeLinear") > 5
    whole = [one for one in model.graph.initializer if one.data_type == onnx.TensorProto.INT8 and len(one.dims) == 4]
    scales = {one.name: one.dims for one in model.graph.initializer}
    assert whole and any(
        list(scales.get(one.name.replace("_quantized", "_scale"), [])) == [one.dims[0]] for one in whole
    )
    assert made.facts["bytes"]["onnx"] < 0.5 * made.facts["bytes"]["onnx_float32"]
    assert set(made.facts["milliseconds"]) == {"original", "slim", "onnx", "onnx_float32"}


def test_a_form_that_loses_too_much_is_not_taken_and_the_next_is(run, tmp_path, monkeypatch):
    forms = slim_onnx.int8_forms

    def first_broken(data, calibration, *, base_model):
        words, good = next(forms(data, calibration, base_model=base_model))
        yield "broken", b"broken"
        yield words, good

    def answering(data):
        return (lambda images: np.full((len(images), 3), 1 / 3)) if data == b"broken" else slim_onnx.session(data)

    monkeypatch.setattr(slimming, "int8_forms", first_broken)
    monkeypatch.setattr(slimming, "session", answering)
    found = api.slim(run, out=tmp_path / "one", lose=30)
    steps = found.facts["onnx"]["steps"]
    assert [step["int8"] for step in steps] == ["broken", "all layers but the head"]
    assert [step["allowed"] for step in steps] == [False, True]


def test_where_every_form_loses_too_much_there_is_no_file(run, tmp_path, monkeypatch):
    monkeypatch.setattr(slimming, "session", lambda data: lambda images: np.full((len(images), 3), 1 / 3))
    found = api.slim(run, out=tmp_path / "one", lose=5)
    assert found.onnx is None and not (found.folder / "model.onnx").exists()
    assert found.facts["onnx"]["why"] == "every form of it lost too much" and len(found.facts["onnx"]["steps"]) >= 3


def test_without_its_packages_there_is_no_file_and_it_is_said_or_refused(run, tmp_path, monkeypatch):
    def missing():
        raise ModelError("this needs onnxruntime; run: pip install 'burnish[onnx]'")

    monkeypatch.setattr(slimming, "onnx_runtime", missing)
    with pytest.raises(ModelError, match="pip install"):
        api.slim(run, out=tmp_path / "one", onnx="on")
    found = api.slim(run, out=tmp_path / "one", lose=30)
    assert found.onnx is None and "pip install 'burnish[onnx]'" in found.facts["onnx"]["why"]


def test_a_network_that_onnx_runtime_cannot_make_int8_is_told(run):
    with pytest.raises(RunError, match="cannot make an int8 file of a-network"):
        next(slim_onnx.int8_forms(b"no model", np.zeros((2, 3, 64, 64), np.float32), base_model="a-network"))


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet"])
def test_networks_of_other_families_have_forms(name, tmp_path, photos):
    found = api.fit(
        photos, out=tmp_path / "run", method="probe", **{**TINY, "model": f"random:{name}", "image_size": "auto"}
    )
    bundle = read_bundle(found.folder)
    side = bundle.preprocess.size
    images = np.random.default_rng(0).normal(size=(4, 3, side, side)).astype(np.float32)
    forms = list(slim_onnx.int8_forms(onnx_files.onnx_of(bundle), images, base_model=name))
    assert len(forms) == (4 if name == "test_efficientnet" else 3)
    for _, data in forms:
        assert np.isfinite(slim_onnx.session(data)(images)).all()
