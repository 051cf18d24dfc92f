"""A run's tuned network as the model of another run: the same weights and preprocessing, and a test that it has not seen."""

import shutil
from types import SimpleNamespace

import pytest
import torch

from burnish import api
from burnish.errors import BadWeights, RecipeError
from burnish.recipe import Recipe
from burnish.record.folder import sides_in
from burnish.record.learnt import learnt_from
from burnish.run.further import backbone_of_run, is_run
from burnish.run.outset import backbone_for
from burnish.ship.bundle import package_folder, read_bundle
from conftest import Told, write_shapes
from images import noise

TINY = {"model": "random:test_resnet", "image_size": 64, "epochs": 1, "budget": None, "cache": "off"}


def kept_tuned(patched):
    """The tuned model is kept, whatever one pass over a few images came to."""
    from burnish.run import job

    real = job.keep_tuned
    patched.setattr(job, "keep_tuned", lambda *given, **more: (True, real(*given, **more)[1]))


def others(home, *classes):
    """Twenty images of each class that are none of the shapes."""
    for number, name in enumerate(classes):
        (home / name).mkdir(parents=True)
        for image in range(20):
            noise(40, 32, seed=1000 * number + image).save(home / name / f"{image:03d}.png")


@pytest.fixture(scope="module")
def tuned(shapes, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patched:
        kept_tuned(patched)
        run = api.fit(shapes, out=tmp_path_factory.mktemp("runs") / "tuned", method="full", **TINY)
    assert run.facts["kept"] == "full"
    return run.folder


def test_the_network_is_that_of_the_package_and_sees_images_as_it_did(tuned):
    bundle, backbone = read_bundle(tuned), backbone_for(Recipe(model=str(tuned)))
    assert is_run(str(tuned)) and backbone.preprocess == bundle.preprocess and backbone.name == "test_resnet"
    views = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(backbone.module(views), bundle.classifier().trunk(views))
    assert backbone.sha256 and backbone.source == f"run {tuned}"


def test_a_run_is_tuned_further_on_other_images_and_other_classes(tuned, tmp_path):
    others(tmp_path / "more", "cyan", "pink")
    run = api.fit(tmp_path / "more", out=tmp_path / "run", method="full", **{**TINY, "model": str(tuned)})
    assert run.predictor.bundle.classes == ("cyan", "pink") and run.facts["model"]["source"] == f"run {tuned}"
    assert any("tuned before, with full on 3 classes" in note for note in run.facts["model"]["loading"])
    assert len(api.predict(run.folder, [str(next((tmp_path / "more").rglob("*.png")))])) == 1


def test_images_that_it_has_learnt_from_would_prove_nothing(tuned, shapes, tmp_path):
    with pytest.raises(
        RecipeError, match=r"45 of the 60 images are among those that .*tuned has learnt from \(first: "
    ):
        api.fit(shapes, out=tmp_path / "run", method="probe", **{**TINY, "model": str(tuned)})
    assert not (tmp_path / "run").exists()


def test_their_content_tells_and_the_list_of_that_run_leaves_them_out(tuned, shapes, tmp_path):
    renamed = tmp_path / "renamed"
    for file in shapes.rglob("*.png"):
        (renamed / file.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, renamed / file.parent.name / f"a{file.name}")
    with pytest.raises(RecipeError, match="are among those that"):
        api.compare(renamed, models=[str(tuned)], methods=["probe"], budget=None, out=tmp_path / "race", seed=1)
    more = tmp_path / "more"
    write_shapes(more, images=20)
    for name in ("blue", "green", "red"):
        for number in range(12):
            noise(seed=number).save(more / name / f"new{number}.png")
    api.fit(
        more, out=tmp_path / "run", method="probe", quarantine=tuned / "splits.csv", **{**TINY, "model": str(tuned)}
    )


def test_what_it_learnt_from_is_known_of_its_descendants_too(tuned, shapes, tmp_path, monkeypatch):
    kept_tuned(monkeypatch)
    others(tmp_path / "more", "cyan", "pink", "teal")
    second = api.fit(tmp_path / "more", out=tmp_path / "second", method="full", **{**TINY, "model": str(tuned)})
    assert any("none of these images is among the 45" in one["why"] for one in second.facts["decisions"])
    with pytest.raises(RecipeError, match="45 of the 60 images are among those"):
        api.fit(shapes, out=tmp_path / "third", method="probe", **{**TINY, "model": str(second.folder)})
    assert api.evaluate(second.folder, renamed_classes(shapes, tmp_path / "other")).learnt == 45
    for damaged in ("{", '{"known": true}'):
        (second.folder / "learnt.json").write_text(damaged)
        with pytest.raises(BadWeights, match=r"learnt\.json is damaged \([^']*\), .* remove that file to do without"):
            backbone_of_run(Recipe(model=str(second.folder)))
    (second.folder / "learnt.json").unlink()
    assert not backbone_of_run(Recipe(model=str(second.folder))).learnt.known


def renamed_classes(shapes, home):
    """The shapes under the names of other classes."""
    for name, other in (("blue", "cyan"), ("green", "pink"), ("red", "teal")):
        shutil.copytree(shapes / name, home / other)
    return home


def test_of_a_package_alone_it_is_said_that_nobody_knows(tuned, shapes, tmp_path):
    shutil.copytree(package_folder(tuned), tmp_path / "package")
    told = Told()
    run = api.fit(
        shapes, out=tmp_path / "run", method="probe", watcher=told, **{**TINY, "model": str(tmp_path / "package")}
    )
    assert any("it is not known which images it has learnt from" in line for line in told.lines)
    assert any("it is not known which images" in one["why"] for one in run.facts["decisions"])


def test_the_arms_of_a_comparison_know_what_they_learnt_from(shapes, tmp_path):
    facts = api.compare(
        shapes, models=["random:test_resnet"], methods=["probe", "full"], budget=None, epochs=1, image_size=64,
        out=tmp_path / "race", cache="off",
    )  # fmt: skip
    arm = next(row["package"] for row in facts["rows"] if row["method"] == "full")
    assert backbone_of_run(Recipe(model=str(tmp_path / "race" / arm))).learnt.known
    with pytest.raises(RecipeError, match="45 of the 60 images are among those"):
        api.fit(shapes, out=tmp_path / "run", method="probe", **{**TINY, "model": str(tmp_path / "race" / arm)})


def test_a_networks_own_name_is_none_of_a_folder(tuned, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tuned, tmp_path / "efficientnet_lite0")
    shutil.copytree(tuned, tmp_path / "mine")
    assert is_run("mine") and is_run("./efficientnet_lite0") and not is_run("efficientnet_lite0")


def test_a_damaged_run_is_left_out_of_a_comparison(tuned, shapes, tmp_path):
    shutil.copytree(tuned, tmp_path / "copy")
    (package_folder(tmp_path / "copy") / "bundle.json").write_text("{")
    facts = api.compare(
        shapes, models=["random:test_resnet", str(tmp_path / "copy")], methods=["probe"], budget=None, image_size=64,
        out=tmp_path / "race", cache="off",
    )  # fmt: skip
    assert [row["state"].partition(":")[0] for row in facts["rows"]] == ["frozen", "failed"]


def test_weights_that_are_damaged_are_refused(tuned, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tuned, copy)
    weights = package_folder(copy) / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(BadWeights):
        backbone_of_run(Recipe(model=str(copy)))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"arch": "resnet18"}, "arch is for files of weights"),
        ({"preprocess": "tf"}, "preprocess is for files of weights"),
    ],
)
def test_what_is_of_files_is_refused(tuned, setting, words):
    with pytest.raises(RecipeError, match=words):
        backbone_of_run(Recipe(model=str(tuned), **setting))


def test_layers_can_be_taken_out_of_it(tuned):
    whole, cut = backbone_for(Recipe(model=str(tuned))), backbone_for(Recipe(model=str(tuned), remove="layer1.0"))
    assert len(cut.module.state_dict()) < len(whole.module.state_dict()) and cut.uncut is not None


@pytest.mark.parametrize("method", ["probe", "probe:head=knn", "multiprobe"])
def test_frozen_heads_lead_to_the_network_itself(shapes, tmp_path, method):
    run = api.fit(shapes, out=tmp_path / "run", method=method, **TINY)
    with pytest.raises(RecipeError, match="kept frozen heads on random:test_resnet, whose weights are as they were"):
        backbone_for(Recipe(model=str(run.folder)))


def test_adapters_are_no_layers_of_the_network(tuned, monkeypatch):
    bundle = read_bundle(tuned)
    changed = SimpleNamespace(
        architecture={**bundle.architecture, "changes": [{"kind": "adapters"}]},
        method="adapter",
        base_model="test_resnet",
    )
    monkeypatch.setattr("burnish.run.further.read_bundle", lambda folder: changed)
    with pytest.raises(RecipeError, match="adapters beside its layers"):
        backbone_of_run(Recipe(model=str(tuned)))


def against(run):
    """The comparison with an earlier run that a run's facts tell."""
    return next(one for one in run.facts["baselines"] if one["key"] == "against")


def test_what_an_earlier_run_learnt_from_before_is_left_out_of_the_comparison_with_it(
    tuned, shapes, tmp_path, monkeypatch
):
    """It was tuned further on images of the same classes; those that its network had learnt from are no test of it."""
    kept_tuned(monkeypatch)
    others(tmp_path / "more", "blue", "green", "red")
    second = api.fit(tmp_path / "more", out=tmp_path / "second", method="full", **{**TINY, "model": str(tuned)})
    told = against(
        api.fit(shapes, out=tmp_path / "third", method="probe", **{**TINY, "seed": 3}, against=str(second.folder))
    )
    learnt, _ = learnt_from(tuned)
    tested = [path for path, side in sides_in(tmp_path / "third" / "splits.csv").items() if side == "test"]
    fresh = sum(path not in learnt for path in tested)
    assert 0 < fresh < len(tested) and told["accuracy"]["n"] == fresh
    assert f"({len(tested) - fresh} test images that it learnt from are left out)" in told["name"]


def test_an_earlier_run_knows_its_images_under_other_names(tuned, shapes, tmp_path):
    for file in shapes.rglob("*.png"):
        (tmp_path / "renamed" / file.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, tmp_path / "renamed" / file.parent.name / f"a{file.name}")
    told = against(
        api.fit(tmp_path / "renamed", out=tmp_path / "run", method="probe", **{**TINY, "seed": 3}, against=str(tuned))
    )
    assert told["accuracy"]["n"] < 15 and "that it learnt from are left out)" in told["name"]
    shutil.copytree(package_folder(tuned), tmp_path / "package")
    alone = api.fit(shapes, out=tmp_path / "other", method="probe", **TINY, against=str(tmp_path / "package"))
    assert "(it is not known whether it learnt from some of these images)" in against(alone)["name"]
