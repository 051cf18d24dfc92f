"""Promises of exported folders for the hub: timm and transformers open them as they are, and give the probabilities of burnish."""

import contextlib
import io
import json
import math
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open

from burnish import api, cli
from burnish.backbones import zoo
from burnish.backbones.classifier import Classifier
from burnish.errors import NotARun, RecipeError, RunError
from burnish.record import made
from burnish.ship import exported, hub
from burnish.ship.bundle import Bundle, write_bundle
from burnish.ship.card import Record, card_of, escaped
from burnish.ship.hub import _crop_pct, export_hub
from burnish.terms import Preprocess
from conftest import finished_once

# The last one's images would be of 54.7 pixels before 52 are cut from them: timm takes 54 of that, and burnish 55.
CASES = {
    "full": {"method": "full"},
    "last layer": {"method": "probe"},
    "lora": {"method": "lora:rank=2", "crop_mode": "squash"},
    "odd": {"method": "probe", "image_size": 52},
}
FENCE = r"```python\n(.*?)```"


@pytest.fixture(scope="module")
def runs(shapes, tmp_path_factory):
    return finished_once(CASES, shapes, tmp_path_factory.mktemp("runs"))


def package(name, *, image_size=None, head="linear", classes=("a", "b", "c"), **more):
    backbone = zoo.load_backbone(f"random:{name}", image_size=image_size)
    classifier = Classifier.over(backbone, len(classes), head)
    with torch.no_grad():
        for parameter in classifier.head.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    return Bundle.of(backbone, classifier, classes=classes, method="full", **more)


def example(card, place):
    """The first example of a card as a program for that folder and image."""
    code = re.findall(FENCE, card, re.DOTALL)[0]
    return code.replace("hf-hub:OWNER/NAME", f"local-dir:{place[0]}").replace("photo.jpg", str(place[1]))


@pytest.mark.parametrize("case", CASES)
def test_timm_says_of_image_files_what_predict_says(case, runs, shapes, tmp_path):
    """From the file on: opened by Pillow, prepared by timm's own transform as the folder says."""
    photos, folder = sorted(shapes.rglob("*.png"))[::10], api.export(runs(case), tmp_path / "out", to="hub")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    with torch.no_grad():
        images = torch.stack([prepare(Image.open(photo).convert("RGB")) for photo in photos])
        found = model(images).softmax(1).numpy()
    expected = api.open_run(runs(case)).predict_proba(photos)
    assert np.abs(found - expected).max() <= 1e-5
    assert np.ptp(expected, axis=0).max() > 1e-3  # or all would be alike whatever the folder held
    assert model.pretrained_cfg["label_names"] == ["blue", "green", "red"]


def test_the_example_of_the_card_says_what_predict_says_and_its_score_is_the_record_s(runs, shapes, tmp_path):
    folder, photo = api.export(runs("full"), tmp_path / "out", to="hub"), next(shapes.glob("red/*.png"))
    card, said = (folder / "README.md").read_text(), io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(example(card, (folder, photo)), {})
    label, probability = said.getvalue().split()
    answer = api.predict(runs("full"), photo)[0]
    assert label == answer.label and float(probability) == pytest.approx(answer.probability, abs=1e-5)
    facts = api.open_run(runs("full")).facts
    found = facts["scores"][facts["kept_role"]]
    assert f"{100 * found['accuracy']['value']:.1f} % right on {found['n']} test images (95 % interval" in card
    assert facts["verdict"]["sentence"] in card


def test_transformers_opens_the_folder_and_gives_the_same(runs, shapes, tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install transformers")
    folder, photo = api.export(runs("odd"), tmp_path / "out", to="hub"), next(shapes.glob("red/*.png"))
    found = transformers.pipeline("image-classification", model=str(folder))(str(photo))
    answer = api.predict(runs("odd"), photo)[0]
    assert found[0]["label"] == answer.label and found[0]["score"] == pytest.approx(answer.probability, abs=1e-5)


# A class token, two classifiers that are averaged (LeViT's with norms in them), one that is a convolution.
@pytest.mark.parametrize(
    "name", ["test_resnet", "test_vit", "levit_128s", "deit_tiny_distilled_patch16_224", "resnetv2_18"]
)
def test_networks_of_other_families_give_burnish_s_probabilities(name, tmp_path):
    bundle = package(name, temperature=1.7)
    folder, side = export_hub(bundle, tmp_path / "out"), bundle.preprocess.size
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = (bundle.classifier()(images) / 1.7).softmax(1)
        found = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(images).softmax(1)
    assert (found - expected).abs().max() <= 1e-4
    assert expected.max() - expected.min() > 1e-2


def test_another_image_size_of_a_network_with_one_size_is_in_the_folder(tmp_path):
    folder = export_hub(package("test_vit", image_size=96), tmp_path / "out")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert timm.data.resolve_model_data_config(model)["input_size"] == (3, 96, 96)
    assert model(torch.zeros(1, 3, 96, 96)).shape == (1, 3)


def test_of_several_classes_an_image_the_sigmoids_are_the_probabilities(tmp_path):
    bundle = package("test_resnet", image_size=64, thresholds=(0.2, 0.5, 0.7), temperature=2.0)
    folder, images = export_hub(bundle, tmp_path / "out"), torch.zeros(1, 3, 64, 64)
    with torch.no_grad():
        found = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(images).sigmoid()
        assert torch.allclose(found, (bundle.classifier()(images) / 2.0).sigmoid(), atol=1e-5)
    assert json.loads((folder / "config.json").read_text())["problem_type"] == "multi_label_classification"
    card = (folder / "README.md").read_text()
    assert "sigmoid()[0]" in card and "- c, said from a probability of 0.700 on" in card


def test_timm_resizes_to_the_pixels_that_burnish_resizes_to():
    for size in (64, 160, 224, 240, 288, 336, 384, 448):
        for crop in (0.7, 0.78, 0.875, 0.9, 0.92, 0.935, 0.95, 0.965, 1.0):
            told = _crop_pct(Preprocess(size=size, crop=crop))
            assert math.floor(size / told) == round(size / crop)
            assert round(size / told) == round(size / crop)  # as burnish reads it back
            assert told == pytest.approx(crop, abs=2.0 / size)


def test_the_folder_holds_weights_under_timm_s_names_and_no_pickle(runs, tmp_path):
    folder = api.export(runs("full"), tmp_path / "out", to="hub")
    assert sorted(one.name for one in folder.iterdir()) == [
        "README.md",
        "burnish.json",
        "config.json",
        "model.safetensors",
    ]
    with safe_open(folder / "model.safetensors", "pt") as file:
        names, more = set(file.keys()), file.metadata()
    assert names == set(timm.create_model("test_resnet", num_classes=3).state_dict()) and more == {"format": "pt"}


def test_burnish_tunes_the_network_of_the_folder_further(runs, shapes, tmp_path):
    folder = api.export(runs("full"), tmp_path / "out", to="hub")
    backbone = zoo.load_backbone(str(folder))
    wanted = api.open_run(runs("full")).predictor.bundle
    assert backbone.preprocess == wanted.preprocess
    assert all(torch.equal(one, wanted.state[f"trunk.{name}"]) for name, one in backbone.module.state_dict().items())


@pytest.mark.parametrize(
    ("bundle", "message"),
    [
        (lambda: package("test_resnet", head="cosine"), "a head by cosine.* --to onnx or --to pt2.*--head linear"),
        (lambda: package("test_resnet", head="mlp:16"), r"a head with a hidden layer \(mlp:16\)"),
        (lambda: package("cifar_resnet20"), "is a network that timm has not.* --to onnx or --to pt2$"),
        (lambda: package("keras:mobilenet"), "that timm has not.*, or with --to keras"),
        (lambda: package("crossvit_tiny_240"), "has no plain linear classifier on these features"),
    ],
)
def test_what_is_no_plain_network_of_timm_s_is_refused_with_what_to_do(bundle, message, tmp_path):
    with pytest.raises(RecipeError, match=message):
        export_hub(bundle(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "multiprobe"}, "a head on all depths of the network.*fit again with --method full, lora or probe"),
        ({"method": "adapter"}, "adapters.*fit again with --method lora or full"),
        ({"method": "probe", "remove": "layer1.0"}, "layers taken out.*neither --depth nor --remove"),
        ({"method": "probe", "insert": "layer2=conv:3"}, "layers put in.*no --insert"),
    ],
)
def test_a_changed_network_is_refused_with_the_setting_that_gives_a_plain_one(settings, message, shapes, tmp_path):
    usual = {"model": "random:test_resnet", "image_size": 64, "epochs": 1, "budget": None}
    run = api.fit(shapes, out=tmp_path / "run", **usual, **settings).folder
    with pytest.raises(RecipeError, match=message):
        api.export(run, tmp_path / "out", to="hub")
    assert not (tmp_path / "out").exists()


# ---- the place -------------------------------------------------------------------------------------------------------


def test_without_a_name_the_folder_is_called_as_the_run_is_and_an_earlier_export_is_replaced(
    runs, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    cli.main(["export", str(runs("last layer")), "--to", "hub"])
    before = (tmp_path / "last-layer-hub/model.safetensors").read_bytes()
    cli.main(["export", str(runs("full")), "--to", "hub", "--out", "last-layer-hub"])
    assert capsys.readouterr().out.split() == ["last-layer-hub", "last-layer-hub"]
    assert [one.name for one in tmp_path.iterdir()] == ["last-layer-hub"]
    assert (tmp_path / "last-layer-hub/model.safetensors").read_bytes() != before


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives two folders each other's name in one step")
def test_a_death_in_the_midst_of_replacing_an_earlier_export_leaves_one_of_the_two(tmp_path, monkeypatch):
    """At every call that removes or renames something: what is found then is whole, under its name."""
    first, second = (package("test_resnet", image_size=64, classes=("a", "b", last)) for last in "cd")
    folder = export_hub(first, tmp_path / "out")
    seen = []

    def looking(called):
        def look(*given, **more):
            seen.append(hub._not_ours(folder) or json.loads((folder / "config.json").read_text())["label_names"][2])
            return called(*given, **more)

        return look

    for module, name in ((os, "unlink"), (os, "rmdir"), (os, "rename"), (os, "replace"), (shutil, "rmtree")):
        monkeypatch.setattr(module, name, looking(getattr(module, name)))
    export_hub(second, folder)
    assert set(seen) == {"c", "d"} and [one.name for one in tmp_path.iterdir()] == ["out"]
    assert json.loads((folder / "config.json").read_text())["label_names"] == ["a", "b", "d"]


def test_a_system_that_cannot_exchange_folders_replaces_an_earlier_export_too(tmp_path, monkeypatch):
    first, second = (package("test_resnet", image_size=64, classes=("a", "b", last)) for last in "cd")
    folder = export_hub(first, tmp_path / "out")
    monkeypatch.setattr(made.ctypes, "CDLL", lambda *given, **more: None)
    export_hub(second, folder)
    assert json.loads((folder / "config.json").read_text())["label_names"] == ["a", "b", "d"]
    assert [one.name for one in tmp_path.iterdir()] == ["out"]


def test_what_is_put_into_the_folder_while_another_export_is_made_is_not_lost(tmp_path, monkeypatch):
    bundle = package("test_resnet", image_size=64)
    folder = export_hub(bundle, tmp_path / "out")

    def meanwhile(*given, real=hub._answers):
        (folder / "notes.txt").write_text("mine")
        return real(*given)

    monkeypatch.setattr(hub, "_answers", meanwhile)
    with pytest.raises(RecipeError, match=r"notes\.txt in it is not as an earlier export wrote it"):
        export_hub(bundle, folder)
    assert (folder / "notes.txt").read_text() == "mine" and (folder / "model.safetensors").is_file()


@pytest.mark.parametrize("name", ["README.md", "notes.txt", ".git"])
def test_what_somebody_has_changed_or_put_into_the_folder_is_not_written_over(name, tmp_path):
    bundle = package("test_resnet", image_size=64)
    folder = export_hub(bundle, tmp_path / "out")
    (folder / name).write_text("my own words")
    before = {one.name: one.read_bytes() for one in folder.iterdir()}
    with pytest.raises(RecipeError, match=f"{re.escape(name)} in it is not as an earlier export wrote it"):
        export_hub(bundle, folder)
    assert {one.name: one.read_bytes() for one in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("out", "more", "message"),
    [
        ("model.onnx", {}, "expected the name of a folder"),
        ("file", {}, "is no folder"),
        ("nowhere/out", {}, "there is no folder"),
        ("photos", {}, "mine.jpg in it is not as an earlier export wrote it"),
        ("out", {"input": "pixels"}, "prepare images themselves"),
        ("out", {"input": "bytes"}, "expected prepared or pixels"),
    ],
)
def test_what_cannot_be_written_is_told_and_nothing_is_lost(out, more, message, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/mine.jpg").write_text("mine")
    with pytest.raises(RecipeError, match=message):
        export_hub(package("test_resnet", image_size=64), tmp_path / out, **more)
    assert sorted(str(one.relative_to(tmp_path)) for one in tmp_path.rglob("*")) == [
        "file",
        "photos",
        "photos/mine.jpg",
    ]


def test_the_working_folder_itself_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match="is the folder that this was started in"):
        export_hub(package("test_resnet", image_size=64), Path("."))


def test_a_folder_that_answers_otherwise_is_not_left(tmp_path, monkeypatch):
    monkeypatch.setattr(exported, "_TOLERANCE", -1.0)
    with pytest.raises(RunError, match="timm gives other probabilities than burnish"):
        export_hub(package("test_resnet", image_size=64), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_timm_does_not_open_is_told_in_a_sentence(tmp_path, monkeypatch):
    def refuses(name, **given):
        if name.startswith("local-dir:"):
            raise KeyError("no such thing\nand a long trace")
        return create(name, **given)

    create = timm.create_model
    bundle = package("test_resnet", image_size=64)
    monkeypatch.setattr(timm, "create_model", refuses)
    with pytest.raises(RunError, match=r"timm does not open .*test_resnet \('no such thing"):
        export_hub(bundle, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# ---- the card --------------------------------------------------------------------------------------------------------


def test_no_name_of_a_class_is_markup_in_the_card_and_config_json_has_it_as_it_is(tmp_path):
    classes = ("<script>alert(1)</script>", "[a](https://b)|`c`", "*x*\n# y\udcff")
    folder = export_hub(package("test_resnet", image_size=64, classes=classes), tmp_path / "out")
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert json.loads((folder / "config.json").read_text())["label_names"] == list(classes)
    assert r"- \<script\>alert\(1\)" in card and not re.search(r"(?<!\\)<", card)
    assert r"\[a\]\(https\:" in card and r"\*x\*\\n\# y\\udcff" in card
    assert escaped("plain name") == "plain name"


@pytest.mark.parametrize(
    ("licence", "lines"),
    [
        ("Apache-2.0", ['license: "apache-2.0"']),
        ("Seer License\n", ['license: "other"', 'license_name: "seer-license"']),
        ("unknown", []),
    ],
)
def test_the_front_of_the_card_says_the_licence_in_the_hub_s_words(licence, lines):
    bundle = Bundle(**{**vars(package("test_resnet", image_size=64)), "licence": licence})
    front = card_of(bundle, Record()).split("---\n")[1].splitlines()
    assert [line for line in front if line.startswith("license")] == lines
    assert 'library_name: "timm"' in front and "- transformers" in front


@pytest.mark.parametrize(
    ("source", "base"),
    [
        ("hub", "timm/test_resnet.r160_in1k"),
        ("hf-hub:me/mine@v2", "me/mine"),
        ("file /home/me/best.pth", None),
        ("random", None),
    ],
)
def test_the_base_model_is_named_where_the_weights_came_from_the_hub_alone(source, base):
    card = card_of(package("test_resnet", image_size=64), Record(source=source))
    assert re.findall(r'^base_model: "(.*)"$', card, re.MULTILINE) == ([] if base is None else [base])
    assert "/home/me" not in card


def test_a_package_that_was_copied_alone_is_said_to_have_no_test_on_record(runs, tmp_path):
    package_alone = next((runs("full") / "packages").iterdir())
    card = (api.export(package_alone, tmp_path / "out", to="hub") / "README.md").read_text()
    assert "No test of this model is on record" in card and "% right" not in card


def test_what_slim_proved_is_in_the_card_and_no_markup_and_a_damaged_record_is_told(tmp_path):
    write_bundle(tmp_path / "run", package("test_resnet", image_size=64))
    (tmp_path / "run/slim.json").write_text('{"proof": {"sentence": "Proven <b>that</b> 0.5 points"}}')
    card = (api.export(tmp_path / "run", tmp_path / "out", to="hub") / "README.md").read_text()
    assert r"Proven \<b\>that\</b\> 0\.5 points" in card
    (tmp_path / "run/slim.json").write_text('{"proof": 7}')
    with pytest.raises(NotARun, match=r"slim\.json is not as burnish writes it"):
        api.export(tmp_path / "run", tmp_path / "other", to="hub")
    assert not (tmp_path / "other").exists()
