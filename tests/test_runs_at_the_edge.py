"""Runs at the edges of what is sensible: they end with an honest model, or with a sentence."""

import csv
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from burnish import api
from burnish.backbones.zoo import load_backbone
from burnish.errors import ModelError, NotEnoughData, RecipeError
from conftest import write_shapes

QUICK = {"model": "random:test_resnet", "budget": None, "epochs": 1, "image_size": 64}


@pytest.mark.parametrize("model", ["random:test_vit", "random:test_convnext", "random:test_efficientnet"])
def test_networks_of_every_kind_run_with_sizes_left_to_the_plan(model, shapes, tmp_path):
    run = api.fit(shapes, out=tmp_path / "run", model=model, method="full", budget=None, epochs=1)
    assert run.facts["kept"] == "full"
    assert run.verdict.tuned is not None


def test_a_network_of_one_size_is_built_for_the_size_that_is_asked_for(shapes, tmp_path):
    backbone = load_backbone("random:test_vit")
    assert backbone.one_size
    assert not load_backbone("random:test_resnet").one_size
    run = api.fit(shapes, out=tmp_path / "run", model="random:test_vit", budget=None, epochs=1, image_size=64)
    assert run.predictor.bundle.preprocess.size == 64
    assert run.predict([shapes / "red"])[0].label in run.classes


@pytest.mark.parametrize("method", ["auto", "probe", "full"])
def test_two_classes_of_three_images_are_enough(method, tmp_path):
    write_shapes(tmp_path / "data", images=3, classes=("a", "b"))
    run = api.fit(tmp_path / "data", out=tmp_path / "run", method=method, **QUICK)
    assert run.facts["counts"]["test"] == 2
    assert run.facts["counts"]["val"] == 2
    assert np.isfinite(run.predict_proba([tmp_path / "data" / "a" / "000.png"])).all()


@pytest.mark.parametrize("method", ["auto", "full"])
def test_classes_of_one_and_two_images_among_others_are_learnt_and_end_nothing(method, tmp_path):
    for count, classes in ((12, ("many", "more")), (2, ("many", "more", "two")), (1, ("many", "more", "two", "one"))):
        write_shapes(tmp_path / "data", images=count, classes=classes)
    run = api.fit(tmp_path / "data", out=tmp_path / "run", method=method, **QUICK)
    with open(tmp_path / "run" / "splits.csv", encoding="utf-8") as file:
        sides = [(row["label"], row["split"]) for row in csv.DictReader(file) if row["label"] in ("one", "two")]
    assert sorted(sides) == [("one", "train"), ("two", "test"), ("two", "train")]
    assert run.classes == ("many", "more", "one", "two")
    assert run.facts["findings"]["found"]["thin_class"] >= 2
    assert "test has no image of 'one'" in run.facts["splits"]["how"]


def test_one_picture_in_all_files_proves_nothing_and_is_a_sentence(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(8):
            Image.new("RGB", (20, 20), (100, 100, 100)).save(tmp_path / "data" / name / f"{number}.png")
    with pytest.raises(NotEnoughData, match="no readable test image that is not tied to the training images"):
        api.fit(tmp_path / "data", out=tmp_path / "run", **QUICK)


def test_the_same_images_in_two_classes_end_in_an_honest_model(tmp_path):
    write_shapes(tmp_path / "data", images=24, classes=("a", "b"))
    for file in list((tmp_path / "data" / "a").iterdir()):
        shutil.copy(file, tmp_path / "data" / "b" / file.name)
    run = api.fit(tmp_path / "data", out=tmp_path / "run", **QUICK)
    assert run.verdict.word != "better"
    assert run.facts["scores"]["probe"]["accuracy"]["value"] < 0.75
    assert run.facts["findings"]["found"]["label_conflict"] >= 20


def test_splits_given_without_validation_images_and_one_training_image_a_class(tmp_path):
    write_shapes(tmp_path / "data", images=4, classes=("a", "b"))
    with open(tmp_path / "data" / "few.csv", "w", encoding="utf-8") as file:
        file.write("path,label,split\na/000.png,a,train\nb/000.png,b,train\na/001.png,a,test\nb/001.png,b,test\n")
    run = api.fit(tmp_path / "data" / "few.csv", out=tmp_path / "run", **QUICK)
    assert run.facts["counts"] | {"scanned": 0} == {
        "scanned": 0,
        "used": 4,
        "named": 0,
        "skipped": 0,
        "train": 2,
        "val": 0,
        "test": 2,
    }
    assert run.facts["kept"] == "probe"


def test_very_uneven_classes_run(tmp_path):
    write_shapes(tmp_path / "data", images=60, classes=("many",))
    write_shapes(tmp_path / "data", images=3, classes=("many", "few"))
    run = api.fit(tmp_path / "data", out=tmp_path / "run", **QUICK)
    assert set(run.classes) == {"few", "many"}


def test_given_splits_are_kept_to_the_letter(shapes, tmp_path):
    rows = [(f"{c}/{n:03d}.png", c, ("train", "val", "test")[n % 3]) for c in ("blue", "red") for n in range(12)]
    manifest = shapes / "given.csv"
    try:
        manifest.write_text("path,label,split\n" + "".join(",".join(row) + "\n" for row in rows), encoding="utf-8")
        run = api.fit(manifest, out=tmp_path / "run", method="probe", **QUICK)
    finally:
        manifest.unlink()
    kept = {
        (row["path"], row["label"], row["split"])
        for row in csv.DictReader(open(run.folder / "splits.csv", encoding="utf-8"))
    }
    assert kept == set(rows)


def test_long_thin_and_tiny_images_run(tmp_path):
    for name, shape in (("a", (400, 3)), ("b", (1, 1))):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(5):
            pixels = np.random.default_rng(number).integers(0, 256, (*shape, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{number}.png")
    run = api.fit(tmp_path / "data", out=tmp_path / "run", **QUICK)
    assert run.facts["counts"]["used"] == 10


def test_features_that_are_not_numbers_are_a_sentence_naming_the_image(shapes, tmp_path, monkeypatch):
    from burnish.choose import features

    original = features.outputs

    def broken(*args, **kwargs):
        found = original(*args, **kwargs)
        if len(found) > 40:
            found[3] = np.nan
        return found

    monkeypatch.setattr(features, "outputs", broken)
    with pytest.raises(ModelError, match=r"not numbers for 1 of 4\d images \(first: blue/"):
        api.fit(shapes, out=tmp_path / "run", **QUICK)


def test_one_thread_or_two_decode_to_the_same_weights(shapes, tmp_path, monkeypatch):
    """P7: the result does not depend on how many workers there are."""
    from burnish.choose import features, gathering

    states = []
    for workers in (1, 4):
        monkeypatch.setattr(gathering, "cores", lambda workers=workers: workers)
        monkeypatch.setattr(features, "cores", lambda workers=workers: workers)
        run = api.fit(shapes, out=tmp_path / str(workers), method="full", **QUICK)
        states.append(run.predictor.bundle.state)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_notebook_that_has_gradients_off_and_another_dtype_trains_all_the_same(shapes, tmp_path):
    settings = {
        "model": "random:test_resnet",
        "method": "full",
        "budget": None,
        "epochs": 1,
        "image_size": 64,
        "cache": "off",
    }
    plain = api.fit(shapes, out=tmp_path / "plain", **settings)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad():
            odd = api.fit(shapes, out=tmp_path / "odd", **settings)
            assert not torch.is_grad_enabled()
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert odd.facts["scores"] == plain.facts["scores"]
    torch.set_default_dtype(torch.float64)
    try:
        again = odd.predict(shapes / "blue")
        api.audit(shapes, model="random:test_resnet", cache="off")
    finally:
        torch.set_default_dtype(torch.float32)
    assert [one.label for one in again] == [one.label for one in plain.predict(shapes / "blue")]
    assert [one["probabilities"] for one in map(vars, odd.predict(shapes / "blue"))] == [
        one["probabilities"] for one in map(vars, plain.predict(shapes / "blue"))
    ]


def test_settings_of_training_are_said_to_be_without_effect_where_nothing_is_trained(shapes, tmp_path):
    settings = {"model": "random:test_resnet", "method": "probe", "budget": None, "cache": "off"}
    run = api.fit(shapes, out=tmp_path / "run", mixup=0.2, epochs=20, **settings)
    (told,) = [one for one in run.facts["decisions"] if one["what"].startswith("without effect")]
    assert told["what"] == "without effect: --epochs, --mixup" and told["why"] == "probe trains nothing of the network"


@pytest.mark.parametrize("batch", [1, 2])
def test_from_scratch_batches_of_one_image_are_refused(batch, shapes, tmp_path):
    sides = ["train"] * 5 + ["val", "test"]  # 15 training images
    rows = [f"{name}/{at:03d}.png,{name},{side}" for name in ("red", "green", "blue") for at, side in enumerate(sides)]
    (shapes / "odd.csv").write_text("path,label,split\n" + "\n".join(rows))
    settings = {"method": "scratch", "budget": None, "epochs": 1, "batch_size": batch, "cache": "off"}
    with pytest.raises(RecipeError, match="leave batches of one, of which BatchNorm can learn no statistics"):
        api.fit(shapes / "odd.csv", out=tmp_path / "run", model="random:test_resnet", **settings)
    (shapes / "odd.csv").unlink()
