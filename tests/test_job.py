"""The main job end to end on small images and a tiny network; the promises that only a whole run can break."""

import csv
import hashlib
import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import burnish
from burnish import api
from burnish.choose.part import first_model_due
from burnish.errors import BurnishError, NoSuchName, NotARun, NotEnoughData, RunBusy, RunError
from burnish.recipe import Recipe
from burnish.run.again import command_of
from burnish.runtime import Clock, Nobody
from conftest import write_shapes

TINY = {"model": "random:test_resnet", "budget": None, "epochs": 2, "image_size": 64}


@pytest.fixture(scope="module")
def run(shapes, tmp_path_factory):
    """One finished run with both methods."""
    return api.fit(shapes, out=tmp_path_factory.mktemp("runs") / "run", **TINY)


def test_the_run_folder_holds_everything_and_each_part_opens_alone(run):
    folder = run.folder
    assert Recipe.from_toml((folder / "recipe.toml").read_text()).image_size == 64
    assert "auto" not in (folder / "recipe.toml").read_text().replace('method = "auto"', "").replace(
        'epochs = "auto"', ""
    )
    rows = list(csv.DictReader(open(folder / "splits.csv", encoding="utf-8", newline="")))
    assert {row["split"] for row in rows} == {"train", "val", "test"}
    assert hashlib.sha256((folder / "splits.csv").read_bytes()).hexdigest() == run.facts["splits"]["sha256"]
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in history] == [1, 2]
    assert history[-1]["lr"] == 0.0
    assert json.loads((folder / "result.json").read_text())["kept"] in ("probe", "full")
    assert "<h1" in (folder / "report.html").read_text(encoding="utf-8")
    assert list((folder / "tensorboard").glob("events.out.tfevents.*"))


def test_scanned_is_used_plus_named(run, shapes):
    counts = run.facts["counts"]
    assert counts["scanned"] == counts["used"] + counts["named"] == 60
    assert counts["used"] == counts["train"] + counts["val"] + counts["test"]


def test_the_verdict_is_that_of_the_test_predictions(run, shapes):
    """The same image gives the same logits through the run's own test, `evaluate` and `predict` (P1)."""
    rows = [row for row in csv.DictReader(open(run.folder / "splits.csv", encoding="utf-8")) if row["split"] == "test"]
    files = [shapes / row["path"] for row in rows]
    right = [answer.label == row["label"] for answer, row in zip(run.predict(files), rows, strict=True)]
    role = "probe" if run.facts["kept"] == "probe" else "tuned"
    assert np.mean(right) == run.facts["verdict"][role]["value"]
    probabilities = run.predict_proba(files)
    singly = np.concatenate([run.predict_proba([file]) for file in files])
    assert np.abs(probabilities - singly).max() < 1e-5


def test_evaluate_agrees_with_predict(run, shapes, tmp_path):
    found = run.evaluate(shapes)
    answers = run.predict([shapes])
    assert found.scores.accuracy.n == len(answers) == 60
    by_path = {
        Path(answer.path).relative_to(shapes).parts[0] + "/" + Path(answer.path).name: answer.label
        for answer in answers
    }
    right = sum(name.split("/")[0] == label for name, label in by_path.items())
    assert found.scores.accuracy.value == pytest.approx(right / 60)


def test_both_models_answered_the_same_test_images(run):
    verdict = run.verdict
    assert verdict.tuned is not None
    assert verdict.probe.n == verdict.tuned.n == verdict.paired.n == run.facts["counts"]["test"]


def test_a_run_opens_again_and_predicts_alike(run, shapes):
    again = burnish.open_run(run.folder)
    file = next(shapes.glob("red/*.png"))
    assert (again.predict_proba([file]) == run.predict_proba([file])).all()
    assert again.classes == ("blue", "green", "red")


def test_predict_takes_files_folders_bytes_pictures_and_arrays(run, shapes):
    file = next(shapes.glob("red/*.png"))
    picture = Image.open(file)
    answers = run.predict([file, file.read_bytes(), picture, np.asarray(picture)], top=3)
    assert len({answer.classes for answer in answers}) == 1
    assert np.ptp([answer.probability for answer in answers]) < 1e-6
    assert len(run.predict([shapes / "red"])) == 20


def test_an_unreadable_image_is_answered_with_its_problem_and_the_others_are_not_lost(run, shapes, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"")
    good = next(shapes.glob("red/*.png"))
    answers = run.predict([good, bad, good])
    assert [answer.problem is None for answer in answers] == [True, False, True]
    assert "empty" in answers[1].problem


def test_evaluate_refuses_a_class_the_model_does_not_know(run, tmp_path):
    write_shapes(tmp_path / "other", images=2, classes=("blue", "green", "reed"))
    with pytest.raises(NoSuchName, match=r"'reed' that the model does not know \(nearest: red"):
        run.evaluate(tmp_path / "other")


def test_evaluate_matches_classes_by_name_not_by_place(run, tmp_path):
    """P2: a set with only some of the classes must not be shifted."""
    write_shapes(tmp_path / "all", images=6)
    os.rename(tmp_path / "all" / "blue", tmp_path / "gone")
    part = run.evaluate(tmp_path / "all")
    answers = run.predict([tmp_path / "all"])
    right = np.mean([Path(answer.path).parent.name == answer.label for answer in answers])
    assert part.scores.accuracy.value == pytest.approx(right)


def test_one_seed_gives_bit_identical_weights_and_another_does_not(run, shapes, tmp_path):
    assert run.facts["recipe"]["seed"] == 0
    again, other = (api.fit(shapes, out=tmp_path / str(seed), seed=seed, **TINY) for seed in (0, 1))
    weights = [
        next((one.folder / "packages").glob("*/weights.safetensors")).read_bytes() for one in (run, again, other)
    ]
    assert weights[0] == weights[1] != weights[2]
    assert run.facts["verdict"]["paired"] == again.facts["verdict"]["paired"]


def test_a_probe_leaves_the_trunk_bit_identical(shapes, tmp_path):
    from burnish.backbones.zoo import load_backbone

    run = api.fit(shapes, out=tmp_path / "run", method="probe", model="random:test_resnet", budget=None)
    trunk = load_backbone("random:test_resnet").module.state_dict()
    for name, value in trunk.items():
        assert torch.equal(run.predictor.bundle.state[f"trunk.{name}"], value), name
    assert run.verdict.word == "probe only"
    assert run.facts["kept"] == "probe"


def test_method_full_keeps_the_tuned_model(shapes, tmp_path):
    run = api.fit(shapes, out=tmp_path / "run", method="full", **TINY)
    assert run.facts["kept"] == "full"
    assert run.predictor.bundle.method == "full"


def test_bad_images_are_named_and_the_rest_is_used(tmp_path):
    root = tmp_path / "data"
    write_shapes(root, images=12)
    (root / "red" / "000.png").write_bytes(b"")
    (root / "red" / "001.png").write_bytes((root / "red" / "002.png").read_bytes()[:200])
    (root / "red" / "notes.txt").write_text("hello")
    (root / ".ipynb_checkpoints").mkdir()
    (root / ".ipynb_checkpoints" / "x.png").write_bytes((root / "red" / "002.png").read_bytes())
    run = api.fit(root, out=tmp_path / "run", method="probe", model="random:test_resnet", budget=None)
    named = {one["path"] for one in run.facts["named"]}
    assert {"red/000.png", "red/001.png", "red/notes.txt"} <= named
    assert any(path.startswith(".ipynb_checkpoints") for path in named)
    assert run.facts["counts"]["used"] == 34
    assert run.classes == ("blue", "green", "red")
    paths = {row["path"] for row in csv.DictReader(open(run.folder / "splits.csv", encoding="utf-8"))}
    assert len(paths) == 34
    assert "red/000.png" not in paths


def test_a_class_whose_every_image_is_broken_is_an_error_that_names_it(tmp_path):
    root = tmp_path / "data"
    write_shapes(root, images=6)
    for file in (root / "red").iterdir():
        file.write_bytes(b"broken")
    with pytest.raises(NotEnoughData, match=r"All 6 images of class 'red' cannot be used"):
        api.fit(root, out=tmp_path / "run", method="probe", model="random:test_resnet", budget=None)
    assert not (tmp_path / "run").exists(), "a run that came to nothing leaves no folder"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_enough(tmp_path):
    root = tmp_path / "data"
    write_shapes(root, images=6)
    for folder in [root, *root.iterdir()]:
        folder.chmod(0o555)
    try:
        api.fit(root, out=tmp_path / "run", method="probe", model="random:test_resnet", budget=None)
    finally:
        for folder in [root, *root.iterdir()]:
            folder.chmod(0o755)


def test_the_data_folder_is_never_written_to(shapes, tmp_path):
    def picture():
        return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in [shapes, *shapes.rglob("*")]}

    before = picture()
    run = api.fit(shapes, out=tmp_path / "run", method="probe", model="random:test_resnet", budget=None)
    run.evaluate(shapes)
    assert picture() == before


def test_a_finished_run_is_never_done_again(run, shapes):
    """The same command finds it finished; another one is refused, naming what differs."""
    before = (run.folder / "result.json").read_bytes()
    again = api.fit(shapes, out=run.folder, **TINY)
    assert again.facts == run.facts
    with pytest.raises(RunError, match=r"holds a finished run, asked for otherwise: epochs was 2 and is 3; seed was 0"):
        api.fit(shapes, out=run.folder, **{**TINY, "epochs": 3, "seed": 1})
    assert (run.folder / "result.json").read_bytes() == before
    assert burnish.open_run(run.folder).facts["kept"] == run.facts["kept"]


def test_a_folder_with_other_things_in_it_is_refused(shapes, tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(RunError, match="is not empty"):
        api.fit(shapes, out=tmp_path, **TINY)
    assert sorted(path.name for path in tmp_path.iterdir()) in (["precious.txt"], [".lock", "precious.txt"])


def test_a_folder_in_use_is_refused_naming_the_holder(tmp_path):
    from burnish.record.folder import RunFolder

    code = "import sys,time\nfrom pathlib import Path\nfrom burnish.record.folder import RunFolder\n"
    code += "f=RunFolder.open(Path(sys.argv[1]))\nprint('held',flush=True)\ntime.sleep(30)"
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == "held"
        began = time.monotonic()
        with pytest.raises(RunBusy, match=rf"in use by process {holder.pid}"):
            RunFolder.open(tmp_path / "run")
        assert time.monotonic() - began < 2
    finally:
        holder.kill()
        holder.wait()
    RunFolder.open(tmp_path / "run").close()  # a dead holder holds nothing


def test_what_is_not_a_run_is_said_so(tmp_path, run):
    with pytest.raises(NotARun, match="no run folder"):
        burnish.open_run(tmp_path / "nothing")
    with pytest.raises(NotARun, match=r"has no result\.json"):
        burnish.open_run(tmp_path)
    (tmp_path / "result.json").write_text("{broken")
    with pytest.raises(NotARun, match="cannot be read"):
        burnish.open_run(tmp_path)


def test_changed_weights_are_refused(run, tmp_path, shapes):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(run.folder, copy)
    weights = next((copy / "packages").glob("*/weights.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    with pytest.raises(BurnishError, match="SHA-256"):
        burnish.open_run(copy)


def test_a_full_disk_is_a_sentence_and_what_was_saved_stays(shapes, tmp_path, monkeypatch):
    from burnish import disk
    from burnish.record import folder as run_folder

    original = run_folder.RunFolder.write_json

    def full(self, name, value):
        raise OSError(28, "No space left on device")

    def guarded(self, name, value):
        if name != "result.json":
            return original(self, name, value)
        with disk.plain_disk_errors(self.path):
            full(self, name, value)

    monkeypatch.setattr(run_folder.RunFolder, "write_json", guarded)
    with pytest.raises(RunError, match="the disk is full"):
        api.fit(shapes, out=tmp_path / "run", method="probe", model="random:test_resnet", budget=None)
    monkeypatch.setattr(run_folder.RunFolder, "write_json", original)
    answers = api.predict(tmp_path / "run", [next(shapes.glob("red/*.png"))])
    assert answers[0].label in ("blue", "green", "red")


def test_a_loss_that_is_no_number_keeps_the_last_good_model(shapes, tmp_path):
    run = api.fit(shapes, out=tmp_path / "run", **{**TINY, "learning_rate": 1.0, "epochs": 2, "label_smoothing": 0.0})
    assert run.facts["kept"] in ("probe", "full")
    assert np.isfinite(run.predict_proba([next(shapes.glob("red/*.png"))])).all()


def test_test_images_are_scored_after_the_last_choice(shapes, tmp_path, monkeypatch):
    """P5: the package is final, and no decision is left, when test labels are first compared."""
    from burnish.choose import proof
    from burnish.run import job

    order = []
    for module, name in ((job, "save"), (job, "put_to_test"), (job, "keep_tuned")):
        original = getattr(module, name)

        def wrapped(*args, original=original, name=name, **kwargs):
            order.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, wrapped)
    api.fit(shapes, out=tmp_path / "run", **TINY)
    assert order.count("put_to_test") == 1
    assert order[-1] == "put_to_test"
    assert proof.put_to_test is not None


def test_shuffled_test_labels_change_no_choice(shapes, tmp_path):
    """P5 from the outside: the same images with other test labels give the same model."""
    rows = [
        (f"{name}/{n:03d}.png", name, "test" if n < 5 else "train")
        for name in ("blue", "green", "red")
        for n in range(20)
    ]
    other = {"blue": "green", "green": "red", "red": "blue"}
    states = []
    for variant in (False, True):
        manifest = shapes.parent / f"labels-{variant}.csv"
        with open(manifest, "w", encoding="utf-8") as file:
            file.write("path,label,split\n")
            for path, label, split in rows:
                file.write(f"shapes/{path},{other[label] if variant and split == 'test' else label},{split}\n")
        run = api.fit(manifest, out=tmp_path / str(variant), **TINY)
        states.append(run.predictor.bundle.state)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_report_is_written_anew_from_the_facts(run):
    before = (run.folder / "report.html").read_text(encoding="utf-8")
    (run.folder / "report.html").unlink()
    assert api.report(run.folder).read_text(encoding="utf-8") == before


def test_a_budget_that_leaves_no_training_keeps_the_probe_and_says_so(shapes, tmp_path):
    run = api.fit(shapes, out=tmp_path / "run", model="random:test_resnet", budget=0.5, flip="on")
    assert run.facts["kept_role"] == "probe"
    assert any("the probe is kept" in one["why"] for one in run.facts["decisions"])


def test_the_clock_is_wall_time_since_the_start():
    clock = Clock.start(10.0, from_process_start=False)
    time.sleep(0.05)
    assert 9.0 < clock.left() < 9.96
    assert Clock.start(None, from_process_start=False).left() == float("inf")
    assert Clock.start(10.0, from_process_start=True).elapsed() > 0.1


def test_package_files_can_be_read_by_others_as_the_umask_allows(run):
    for name in ("result.json", "splits.csv", "recipe.toml"):
        assert (run.folder / name).stat().st_mode & stat.S_IRGRP, name


@pytest.mark.parametrize("from_step", [1, 4])
def test_a_diverged_run_stops_names_the_step_and_keeps_the_last_good_model(from_step, shapes, tmp_path, monkeypatch):
    from burnish.train import loop

    step, calls = loop.step, []

    def failing(module, optimiser, views, labels, objective, number, *rest):
        if len(labels) > 12 and optimiser.param_groups[0]["lr"] > 0:  # not the timing steps, whose rate is zero
            calls.append(1)
            if len(calls) >= from_step:
                return float("nan")
        return step(module, optimiser, views, labels, objective, number, *rest)

    monkeypatch.setattr(loop, "step", failing)
    run = api.fit(shapes, out=tmp_path / "run", **{**TINY, "epochs": 4, "batch_size": 24})
    assert len(calls) == from_step, "training went on after the loss was no number"
    said = next(one["why"] for one in run.facts["decisions"] if one["what"] == "training stopped early")
    assert f"the loss became nan at step {from_step} (learning rate" in said
    assert ".png" in said
    assert np.isfinite(run.predict_proba([next(shapes.glob("red/*.png"))])).all()


def test_the_command_in_the_report_gives_the_same_recipe(monkeypatch, tmp_path):
    import shlex

    from burnish import cli

    recipe = Recipe(
        model="random:test_resnet", method="full", budget_seconds=90.0, epochs=3, seed=4, image_size=64, batch_size=8,
        learning_rate=2e-4, freeze=1, stage_decay=0.5, weight_decay=0.01, label_smoothing=0.2, flip="on", val_fraction=0.3,
        test_fraction=0.25, device="cpu",
    )  # fmt: skip
    asked = {}

    def noted(catalog, recipe, *, data, **others):
        asked.update(recipe=recipe, data=data, images=len(catalog))
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "fit_catalog", noted)
    monkeypatch.chdir(tmp_path)
    write_shapes(tmp_path / "my photos", images=12)
    with pytest.raises(SystemExit):
        cli.main(shlex.split(command_of("my photos/", recipe))[1:])
    assert asked == {"recipe": recipe, "data": "my photos/", "images": 36}


def test_a_model_is_there_before_the_best_head_is_found_where_that_takes_long(shapes, tmp_path, monkeypatch):
    from burnish.choose import instalments

    answered = []

    class Asking(Nobody):
        def say(self, text):
            if text.startswith("a first model is saved"):
                answered.append(api.predict(tmp_path / "run", [shapes / "red"])[0].label)

    monkeypatch.setattr(instalments, "_NEAR", -1.0)
    run = api.fit(shapes, out=tmp_path / "run", watcher=Asking(), **TINY)
    assert answered == ["red"]
    assert 0 < run.facts["first_model_seconds"] < run.facts["seconds"]
    assert [first_model_due(budget) for budget in (None, 30.0, 600.0)] == [60.0, 15.0, 60.0]
