"""A race of models and methods: what it writes, what it tells, how it goes on after a death, and when it sees the test images."""

import contextlib
import csv
import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from burnish import api, screen
from burnish.choose.evidence import Evidence
from burnish.choose.ledger import Ledger
from burnish.errors import DataError, RecipeError, RunError
from burnish.measure.intervals import paired, wilson
from burnish.recipe import Recipe
from burnish.record import folder as run_folder
from burnish.reports.leaderboard import csv_of, page_of
from burnish.run import planned
from burnish.run.race import arms, frozen, rounds, tested
from burnish.run.race.state import Race
from burnish.runtime import Clock, Nobody
from burnish.screen import print_leaderboard
from burnish.ship.bundle import read_bundle
from burnish.train import loop
from burnish.train.checkpoint import read_checkpoint
from conftest import burnish, write_shapes

MODELS = ["random:test_resnet", "random:test_efficientnet"]
# One epoch: the clock never decides how much is trained, so that nothing here depends on the machine's speed.
SMALL = {"epochs": 1, "image_size": 64, "batch_size": 12, "precision": "float32", "budget": 300}


class Lines:
    """A watcher that keeps what is said."""

    def __init__(self):
        self.said = []

    def stage(self, name, *, total=None, detail=""):
        pass

    def advance(self, count):
        pass

    def say(self, text):
        self.said.append(text)


class Interrupting(Lines):
    """Ctrl-C as lines like this have been said so often."""

    def __init__(self, pattern, *, at):
        super().__init__()
        self.pattern, self.left = pattern, at

    def say(self, text):
        super().say(text)
        if re.search(self.pattern, text):
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt


@pytest.fixture(scope="module")
def unclear(shapes, tmp_path_factory):
    """The shapes under labels drawn at random: all are wrong somewhere, and on different images."""
    rng = np.random.default_rng(5)
    rows = [f"{name}/{number:03d}.png" for name in ("blue", "green", "red") for number in range(20)]
    file = shapes.parent / "unclear.csv"
    names = np.array(["one", "two", "three"])[rng.permutation(np.arange(60) % 3)]
    file.write_text(
        "path,label\n" + "".join(f"{shapes.name}/{row},{name}\n" for row, name in zip(rows, names, strict=True))
    )
    return file


METHODS = ["probe", "multiprobe", "full", "norms"]


@pytest.fixture(scope="module", autouse=True)
def every_round():
    """Rounds are made though one epoch is all that they may have, which would be trained once."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(rounds, "is_whole", lambda ledger, *, asked: False)
        yield


@pytest.fixture(scope="module")
def race(unclear, tmp_path_factory):
    """(facts, folder, what was said) of a race of both models with four methods: two rounds of training."""
    folder, watcher = tmp_path_factory.mktemp("races") / "race", Lines()
    facts = api.compare(unclear, models=MODELS, methods=METHODS, out=folder, watcher=watcher, **SMALL)
    return facts, folder, watcher.said


def test_a_notebook_shows_a_comparison_as_a_table_and_it_knows_its_folder(race):
    facts, folder, _ = race
    assert (
        json.loads(json.dumps(facts)) == json.loads((folder / "compare.json").read_text(encoding="utf-8"))
        and facts.folder == folder
    )
    page = facts._repr_html_()
    assert page.count("<tr>") == 1 + len(facts["rows"]) and "leaderboard.html" in page
    assert repr(facts) == f"Leaderboard({folder}: {facts['chosen']} chosen, of {len(facts['rows'])} combinations)"
    odd = api.Leaderboard({**facts, "rows": [{**facts["rows"][0], "model": "<b>"}]}, folder)
    assert "<b>" not in odd._repr_html_() and "&lt;b&gt;" in odd._repr_html_()
    assert pickle.loads(pickle.dumps(facts)).folder == folder


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def finalists(facts):
    return [row for row in facts["rows"] if row["test"] is not None]


# ---- what it writes --------------------------------------------------------------------------------------------------


def test_every_combination_has_one_row_and_exactly_one_is_chosen(race):
    facts, _, _ = race
    assert sorted((row["model"], row["method"]) for row in facts["rows"]) == sorted(
        (model, method) for model in MODELS for method in METHODS
    )
    (chosen,) = [row for row in facts["rows"] if row["chosen"]]
    assert facts["chosen"] == chosen["name"] == f"{chosen['model']} · {chosen['method']}"


def test_a_trained_arm_tells_how_it_was_trained_and_the_choice_its_numbers(race):
    facts, folder, _ = race
    for row in facts["rows"]:
        told = [one["what"] for one in row["decisions"]]
        assert ("schedule" in told) == (row["method"] in ("full", "norms"))
    (why,) = [one for one in facts["decisions"] if one["what"] == f"{facts['chosen']} chosen"]
    (chosen,) = [row for row in facts["rows"] if row["chosen"]]
    assert why["numbers"]["accuracy"] == chosen["validation"] and why["numbers"]["n"] == chosen["validation_n"]
    assert any(
        why["numbers"]["next"] == row["name"] and f"{row['validation']:.1%}" in why["why"] for row in facts["rows"]
    )
    assert "<details>" in (folder / "leaderboard.html").read_text(encoding="utf-8")


def test_settings_that_an_arm_has_no_use_for_stand_in_its_row(unclear, tmp_path):
    facts = api.compare(
        unclear,
        models=MODELS[:1],
        methods=["probe", "norms"],
        out=tmp_path / "race",
        mixup=0.2,
        **SMALL,
    )
    told = {row["method"]: [one["what"] for one in row["decisions"]] for row in facts["rows"]}
    idle = {method: [what for what in told[method] if what.startswith("without effect")] for method in told}
    assert "--mixup" in idle["probe"][0] and not idle["norms"]


def test_where_time_is_short_the_networks_whose_frozen_heads_are_best_are_trained_first():
    def looked(accuracy):
        kept = SimpleNamespace(choice=SimpleNamespace(accuracy=accuracy))
        return SimpleNamespace(probes=SimpleNamespace(kept=lambda taps: kept))

    field = [
        arms.Arm(model, method, at) for at, (model, method) in enumerate((m, x) for m in "ab" for x in ("x", "y", "z"))
    ]
    race = SimpleNamespace(recipe=Recipe(budget_seconds=60.0), looked={"a": looked(0.7), "b": looked(0.9)})
    ordered = rounds._by_promise(race, field)
    assert [(arm.model, arm.method) for arm in ordered] == [(m, x) for x in ("x", "y", "z") for m in "ba"]
    race.recipe = Recipe(budget_seconds=None)
    assert rounds._by_promise(race, field) == field


def test_json_csv_and_page_tell_the_same_rows(race):
    facts, folder, _ = race
    assert json.loads((folder / "compare.json").read_text(encoding="utf-8")) == json.loads(json.dumps(facts))
    rows = list(csv.DictReader(io.StringIO((folder / "leaderboard.csv").read_text(encoding="utf-8"))))
    assert [row["name"] for row in rows] == [row["name"] for row in facts["rows"]]
    assert [row["chosen"] for row in rows] == [str(row["chosen"]) for row in facts["rows"]]
    for row, told in zip(facts["rows"], rows, strict=True):
        assert told["test"] == ("" if row["test"] is None else str(row["test"]["value"]))
    page = (folder / "leaderboard.html").read_text(encoding="utf-8")
    assert page.count("<tr") == len(facts["rows"]) + 1
    assert f"<h1><bdi>{facts['chosen']}</bdi> was chosen</h1>" in page


def test_every_arm_that_came_to_an_end_has_a_package_that_predicts(race, shapes):
    facts, folder, _ = race
    ended = [row for row in facts["rows"] if row["package"]]
    assert {row["method"] for row in ended} == set(METHODS)
    for row in ended:
        assert (folder / row["package"]).parent == folder / "arms"
        answers = api.predict(folder / row["package"], [shapes / "red"])
        assert len(answers) == 20
        assert {answer.label for answer in answers} <= {"one", "two", "three"}


def test_the_differences_are_those_of_the_packages_own_answers_on_the_same_test_images(race, unclear):
    facts, folder, _ = race
    splits = {
        tuple(
            (row["path"], row["label"]) for row in csv.DictReader(file.open(encoding="utf-8")) if row["split"] == "test"
        )
        for file in (folder / "models").glob("*/splits.csv")
    }
    (test,) = splits  # the same for both models
    right = {}
    for row in finalists(facts):
        answers = api.predict(folder / row["package"], [unclear.parent / path for path, _ in test])
        right[row["name"]] = np.array([answer.label == label for answer, (_, label) in zip(answers, test, strict=True)])
    assert len(right) == tested.FINALISTS
    assert len({tuple(one) for one in right.values()}) > 1, "the data tells no two arms apart: this test shows nothing"
    for row in finalists(facts):
        own = right[row["name"]]
        assert row["test"] == wilson(int(own.sum()), own.size).to_json()
        assert row["difference"] == asdict(paired(right[facts["chosen"]], own))
        assert row["p"] >= row["difference"]["p"] and row["separable"] == (row["p"] < 0.05)
        assert 0 < row["auroc"] <= 1 and row["log_loss"] > 0 and row["brier"] >= 0
    assert facts["counts"]["test"] == len(test)


def test_a_loser_says_why_it_was_cut_and_the_decision_names_it(race):
    facts, _, said = race
    losers = [row for row in facts["rows"] if row["test"] is None]
    assert len(losers) == 2
    behind = [row for row in losers if row["state"] == "cut: behind after round 1"]
    assert len(behind) == 2, [row["state"] for row in losers]
    (decision,) = [one for one in facts["decisions"] if one["what"].startswith("cut after round 1: ")]
    assert all(row["name"] in decision["what"] for row in behind)
    assert "validation below" in decision["why"]
    second = [text.partition(": round 2")[0] for text in said if ": round 2, " in text]
    assert len(second) == 2
    assert not {row["name"] for row in behind} & set(second), "an arm that was cut was trained again"


def test_a_finished_race_is_returned_without_work_and_asked_otherwise_it_is_refused(race, unclear, monkeypatch):
    facts, folder, _ = race
    before = contents(folder)
    monkeypatch.setattr(api, "run_compare", lambda *args, **kwargs: pytest.fail("it was done again"))
    again = api.compare(unclear, models=MODELS, methods=METHODS, out=folder, **SMALL)
    assert again == json.loads(json.dumps(facts))
    with pytest.raises(
        RunError, match=r"asked for otherwise: compare_methods was .*'norms'.* and is .*; seed was 0 and is 1"
    ):
        api.compare(unclear, models=MODELS, methods=["probe"], out=folder, **{**SMALL, "seed": 1})
    assert contents(folder) == before


# ---- the simplest of the best ----------------------------------------------------------------------------------------


def arm(state, right, loss=1.0):
    evidence = Evidence(np.array(right, bool), np.full(len(right), loss))
    return arms.Arm("m", "x", 0, evidence=evidence, state=state)


def test_a_frozen_arm_within_a_standard_error_of_the_best_is_chosen_and_one_beyond_it_is_not():
    best = arm("trained", [1] * 19 + [0])
    close, far = arm("frozen", [0] * 2 + [1] * 18), arm("frozen", [0] * 8 + [1] * 11 + [0])
    assert arms.simplest_of_the_best([best, close, far]) is close
    assert arms.simplest_of_the_best([best, far]) is best


def test_a_trained_arm_never_replaces_the_best():
    best, equal = arm("trained", [1, 1, 0]), arm("trained", [1, 1, 0], loss=2.0)
    assert arms.simplest_of_the_best([best, equal]) is best
    frozen = arm("frozen", [1, 1, 1])
    assert arms.simplest_of_the_best([frozen, best, equal]) is frozen


# ---- arms that cannot run --------------------------------------------------------------------------------------------


def test_an_arm_whose_method_fits_no_layer_is_told_as_failed_and_the_race_goes_on(shapes, tmp_path):
    watcher = Lines()
    facts = api.compare(
        shapes, models=MODELS[:1], methods=["probe", "prompt", "full"], out=tmp_path / "race", watcher=watcher, **SMALL
    )
    rows = {row["method"]: row for row in facts["rows"]}
    assert rows["prompt"]["state"].startswith("failed: ")
    assert "has no blocks that take any number of tokens" in rows["prompt"]["state"]
    assert rows["prompt"]["package"] is rows["prompt"]["test"] is None
    assert any(text.startswith("random:test_resnet · prompt is left out: ") for text in watcher.said)
    assert rows["full"]["state"] == "trained"
    assert rows["probe"]["test"] is not None and rows["full"]["test"] is not None
    page = (tmp_path / "race" / "leaderboard.html").read_text(encoding="utf-8")
    assert "failed: " in page


def test_without_validation_images_frozen_arms_are_told_apart_by_cross_validation(tmp_path):
    """All would stand equal, and the first that was named be called the best, with -0.0 %."""
    write_shapes(tmp_path, images=12)
    rows = ["path,label,split"]
    for name in ("blue", "green", "red"):
        rows += [f"{name}/{n:03d}.png,{name},{'test' if n >= 10 else 'train'}" for n in (0, 10, 11)]
    (tmp_path / "list.csv").write_text("\n".join(rows))
    watcher = Lines()
    facts = api.compare(
        tmp_path / "list.csv", models=MODELS, methods=["probe"], out=tmp_path / "race", watcher=watcher,
        **{**SMALL, "budget": None},
    )  # fmt: skip
    assert facts["counts"]["val"] == 0
    assert {row["validation"] for row in facts["rows"]} == {None} and {
        row["validation_n"] for row in facts["rows"]
    } == {0}
    said = {
        text.partition(" ·")[0]: float(text.rpartition(" ")[2].rstrip("%"))
        for text in watcher.said
        if "cross-validation" in text
    }
    assert len(said) == len(MODELS)
    chosen = next(row["model"] for row in facts["rows"] if row["chosen"])
    assert said[chosen] == max(said.values())


def test_multiprobe_of_a_network_without_depths_to_see_is_not_the_probe_once_more(shapes, tmp_path):
    settings = {**SMALL, "image_size": "auto", "budget": None}
    facts = api.compare(
        shapes, models=["random:test_vit"], methods=["probe", "multiprobe"], out=tmp_path / "race", **settings
    )
    states = {row["method"]: row["state"] for row in facts["rows"]}
    assert states["probe"] == "frozen"
    assert states["multiprobe"].startswith("failed: heads are to see all depths, but test_vit has no blocks to tap")


def test_rounds_of_an_arm_with_a_long_name_have_folders_of_their_own(tmp_path):
    with run_folder.RunFolder.open(tmp_path / "race") as folder:
        race = SimpleNamespace(folder=folder)
        paths = []
        for end in ("", "-1", "-2"):
            with Race.subfolder(race, "arms", f"01-{'long' * 40}-full", Recipe(), end=end) as own:
                paths.append(own.path)
                own.write("splits.csv", "")
    assert len(set(paths)) == 3


def test_a_race_killed_while_it_looks_keeps_its_clock_and_what_it_looked_at(shapes, tmp_path, monkeypatch):
    real, models = frozen.look, ["random:test_resnet", "random:test_efficientnet"]

    def second(*args, **options):
        if (tmp_path / "race" / "models" / "01-random-test_resnet" / "package.json").exists():
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(frozen, "look", second)
    with pytest.raises(KeyboardInterrupt):
        api.compare(shapes, models=models, methods=["probe"], out=tmp_path / "race", **SMALL)
    ledger = Ledger(tmp_path / "race", Clock(time.monotonic(), 300.0), Nobody())
    assert ledger.get("looked")[0]["count"] == 60
    assert ledger.clock.elapsed() > 0.1


@pytest.mark.parametrize("place", ["look", "train"])
def test_an_arm_that_nobody_foresaw_to_fail_is_told_and_the_race_goes_on(place, shapes, tmp_path, monkeypatch):
    """A foreign network's own assertion ended the race, and did so again whenever it was taken up."""
    real = frozen.backbone_for

    def backbone_for(recipe, **more):
        if recipe.model == MODELS[1]:
            raise AssertionError("height must be a multiple of 8")
        return real(recipe, **more)

    def failing(*args, **given):
        raise AssertionError("height must be a multiple of 8")

    if place == "look":
        monkeypatch.setattr(frozen, "backbone_for", backbone_for)
    else:
        monkeypatch.setattr(rounds, "tune_on_the_clock", failing)
    watcher = Lines()
    methods = ["probe"] if place == "look" else ["probe", "norms"]
    facts = api.compare(shapes, models=MODELS, methods=methods, out=tmp_path / "race", watcher=watcher, **SMALL)
    failed = [row for row in facts["rows"] if row["state"].startswith("failed")]
    assert {row["model"] for row in failed} == ({MODELS[1]} if place == "look" else set(MODELS))
    assert "something unforeseen happened (AssertionError: height must be a multiple of 8)" in failed[0]["state"]
    assert facts["chosen"] and any("is left out: something unforeseen" in text for text in watcher.said)


def test_a_fixed_length_is_trained_once(shapes, tmp_path, monkeypatch):
    """Rounds with more time would make the same steps again."""
    monkeypatch.setattr(rounds, "is_whole", planned.is_whole)
    made, real = [], rounds.tune_on_the_clock

    def noted(method, *rest):
        made.append(method.name)
        return real(method, *rest)

    monkeypatch.setattr(rounds, "tune_on_the_clock", noted)
    facts = api.compare(
        shapes,
        models=MODELS[:1],
        methods=["full", "norms", "bitfit"],
        out=tmp_path / "race",
        **SMALL,
    )
    assert sorted(made) == ["bitfit", "full", "norms"]
    assert len([row for row in facts["rows"] if row["test"]]) == 3


def test_long_paths_are_told_apart_in_80_columns():
    rows = [
        {"model": f"/home/me/checkpoints/resnet50_imagenet_run{n}/best.pth", "method": method}
        for n in (1, 2)
        for method in ("probe", "lora:rank=4,where=qkv")
    ]
    told = [screen._arm_name(row, 44) for row in rows]
    assert len(set(told)) == 4 and all(len(one) <= 44 for one in told)
    assert told[0].endswith("run1/best.pth · probe")


def test_all_arms_failing_is_an_error_that_names_the_first_reason(shapes, tmp_path):
    with pytest.raises(RecipeError, match=r"no arm of the race came to an end; the first: .* has no blocks that take"):
        api.compare(shapes, models=MODELS[:1], methods=["prompt"], out=tmp_path / "race", **SMALL)
    assert not (tmp_path / "race" / "compare.json").exists()


def test_an_unknown_method_is_refused_with_the_nearest_name_before_anything_runs(shapes, tmp_path):
    with pytest.raises(RecipeError, match=r"no method 'ful' \(nearest: full"):
        api.compare(shapes, models=MODELS, methods=["probe", "ful"], out=tmp_path / "race", **SMALL)
    assert not (tmp_path / "race").exists()


@pytest.mark.parametrize("alone", [{"models": MODELS[0]}, {"methods": "probe"}])
def test_a_name_alone_is_not_taken_for_its_letters(alone, shapes, tmp_path):
    ((called, name),) = alone.items()
    with pytest.raises(RecipeError, match=rf"{called} is '{name}', expected a list: {called}=\['{name}'\]"):
        api.compare(shapes, **{"models": MODELS, "methods": ["probe"], **alone}, out=tmp_path / "race", **SMALL)
    assert not (tmp_path / "race").exists()


@pytest.mark.parametrize("missing", [{"models": []}, {"methods": []}])
def test_a_race_of_nothing_is_refused(missing, shapes, tmp_path):
    with pytest.raises(RecipeError, match="at least one model and one method"):
        api.compare(shapes, **{"models": MODELS, "methods": ["probe"], **missing}, out=tmp_path / "race", **SMALL)
    assert not (tmp_path / "race").exists()


def test_an_unknown_model_is_left_out_with_its_reason(shapes, tmp_path):
    models = ["random:test_resnte", "random:test_resnet"]
    facts = api.compare(shapes, models=models, methods=["probe", "multiprobe"], out=tmp_path / "race", **SMALL)
    states = {(row["model"], row["method"]): row["state"] for row in facts["rows"]}
    for method in ("probe", "multiprobe"):
        assert states[models[0], method].startswith("failed: ")
        assert "no model 'test_resnte' (nearest: test_resnet" in states[models[0], method]
        assert states[models[1], method] == "frozen"


def test_no_known_model_is_an_error_and_leaves_no_folder(shapes, tmp_path):
    with pytest.raises(RecipeError, match=r"none of the models can be used; the first: .*test_resnte"):
        api.compare(shapes, models=["random:test_resnte"], methods=["probe"], out=tmp_path / "race", **SMALL)
    assert not (tmp_path / "race").exists()


def test_images_in_quarantine_take_no_part(shapes, tmp_path):
    out = sorted(path.relative_to(shapes) for path in (shapes / "red").iterdir())[:5]
    (tmp_path / "list.csv").write_text("path\n" + "\n".join(map(str, out)) + "\n")
    facts = api.compare(
        shapes, models=MODELS[:1], methods=["probe"], quarantine=tmp_path / "list.csv", out=tmp_path / "race", **SMALL
    )
    whole = api.compare(shapes, models=MODELS[:1], methods=["probe"], out=tmp_path / "whole", **SMALL)
    assert sum(facts["counts"].values()) == sum(whole["counts"].values()) - 5


def test_a_strict_race_stops_at_what_the_audit_finds(shapes, tmp_path):
    shutil.copytree(shapes, tmp_path / "data")
    (tmp_path / "data" / "red" / "broken.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="strict"):
        api.compare(tmp_path / "data", models=MODELS, methods=["probe"], strict=True, out=tmp_path / "race", **SMALL)
    facts = api.compare(tmp_path / "data", models=MODELS[:1], methods=["probe"], out=tmp_path / "other", **SMALL)
    assert facts["chosen"]


def test_networks_are_changed_and_trained_as_the_options_say(shapes, tmp_path):
    settings = {**SMALL, "insert": "layer3=conv:3", "augment": "trivial"}
    facts = api.compare(shapes, models=MODELS[:1], methods=["probe", "full"], out=tmp_path / "race", **settings)
    plain = api.compare(shapes, models=MODELS[:1], methods=["probe"], out=tmp_path / "plain", **SMALL)
    changed, as_it_was = (
        next(row["parameters"] for row in one["rows"] if row["method"] == "probe") for one in (facts, plain)
    )
    assert changed > as_it_was
    assert "--insert layer3=conv:3" in facts["command"] and "--augment trivial" in facts["command"]


def test_frozen_stages_stay_as_they_are_in_every_arm_and_too_many_leave_it_out(shapes, tmp_path):
    settings = {**SMALL, "freeze": 4}  # of stem, layer1 to layer4
    facts = api.compare(shapes, models=MODELS[:1], methods=["probe", "full"], out=tmp_path / "race", **settings)
    assert "--freeze 4" in facts["command"]
    frozen, trained = (
        read_bundle(tmp_path / "race" / row["package"]).classifier().state_dict()
        for row in sorted(facts["rows"], key=lambda row: row["method"] == "full")
    )
    moved = {name.partition(".layer")[2][:1] for name in trained if not torch.equal(frozen[name], trained[name])}
    assert "4" in moved and not moved & {"1", "2", "3"}
    with pytest.raises(RecipeError, match="freeze is 9, but test_resnet has 5 stages: stem, layer1"):
        api.compare(shapes, models=MODELS[:1], methods=["full"], out=tmp_path / "none", **{**SMALL, "freeze": 9})


def test_names_said_twice_race_once(shapes, tmp_path):
    facts = api.compare(shapes, models=MODELS[:1] * 2, methods=["probe", "probe"], out=tmp_path / "race", **SMALL)
    assert len(facts["rows"]) == 1


def test_an_arm_that_fails_in_its_training_is_told_and_the_race_goes_on(shapes, tmp_path, monkeypatch):
    real = rounds.tune_on_the_clock

    def failing(method, *rest):
        if method.name == "norms":
            raise RecipeError("nothing of it fits")
        return real(method, *rest)

    monkeypatch.setattr(rounds, "tune_on_the_clock", failing)
    facts = api.compare(shapes, models=MODELS[:1], methods=["full", "norms"], out=tmp_path / "race", **SMALL)
    states = {row["method"]: row["state"] for row in facts["rows"]}
    assert states == {"full": "trained", "norms": "failed: nothing of it fits"}


def test_local_files_race_with_networks_by_name(shapes, tmp_path):
    """And what is said of Keras files does not keep the others out."""
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "mine.pth")
    models = [MODELS[0], f"test_resnet={tmp_path / 'mine.pth'}"]
    facts = api.compare(shapes, models=models, methods=["probe"], out=tmp_path / "race", preprocess="tf", **SMALL)
    assert [row["state"] for row in facts["rows"]] == ["frozen", "frozen"]
    assert {row["model"] for row in facts["rows"]} == set(models)


def test_several_classes_an_image_cannot_be_balanced_and_that_is_told_at_once(tmp_path):
    (tmp_path / "set").mkdir()
    with open(tmp_path / "set" / "labels.csv", "w") as table:
        table.write("path,labels\n")
        for number in range(12):
            table.write(f"{number}.png,{('a|b', 'a', 'b')[number % 3]}\n")
            Image.new("RGB", (8, 8), (20 * number, 0, 0)).save(tmp_path / "set" / f"{number}.png")
    with pytest.raises(RecipeError, match="balance is loss"):
        api.compare(
            tmp_path / "set" / "labels.csv",
            models=MODELS[:1],
            methods=["full"],
            balance="loss",
            out=tmp_path / "race",
            **SMALL,
        )


def test_what_a_killed_race_spent_on_frozen_heads_is_still_told(unclear, tmp_path):
    asked = {**TWO_TRAINED, "out": tmp_path / "race"}
    with pytest.raises(KeyboardInterrupt):
        api.compare(unclear, watcher=Interrupting(r": round \d+, ", at=1), **asked)
    facts, _ = read_checkpoint(tmp_path / "race")
    (spent,) = facts["parts"]["looking"].values()
    rows = api.compare(unclear, **asked)["rows"]
    assert spent > 0 and [row["seconds"] for row in rows if row["method"] == "probe"] == [spent]


# ---- killed ----------------------------------------------------------------------------------------------------------

TWO_TRAINED = {"models": MODELS[:1], "methods": ["probe", "full", "norms"], **SMALL}


@pytest.fixture(scope="module")
def undisturbed(unclear, tmp_path_factory):
    """The facts of a race to which nothing happened."""
    return api.compare(unclear, out=tmp_path_factory.mktemp("races") / "undisturbed", **TWO_TRAINED)


@pytest.mark.parametrize("at", ["^epoch 1 ", r": round \d+, "], ids=["in its training", "as it begins"])
def test_a_race_killed_in_its_second_arm_goes_on_to_the_same_rows_and_trains_no_finished_arm_again(
    at, unclear, tmp_path, undisturbed
):
    asked = {**TWO_TRAINED, "out": tmp_path / "race"}
    with pytest.raises(KeyboardInterrupt):
        api.compare(unclear, watcher=Interrupting(at, at=2), **asked)
    (done,) = (tmp_path / "race" / "arms").glob("*/outcome.json")
    before, written = done.read_bytes(), done.stat().st_mtime_ns
    assert not (tmp_path / "race" / "compare.json").exists()
    watcher = Lines()
    facts = api.compare(unclear, watcher=watcher, **asked)
    assert (done.read_bytes(), done.stat().st_mtime_ns) == (before, written)
    rounds = [text.partition(": round")[0] for text in watcher.said if ": round " in text]
    assert rounds == [f"{MODELS[0]} · norms"], "only the arm that was not finished trains"
    assert len(facts["rows"]) == 3
    kept = ("name", "state", "chosen", "validation", "test", "difference", "package")
    assert [[row[key] for key in kept] for row in facts["rows"]] == [
        [row[key] for key in kept] for row in undisturbed["rows"]
    ]


def test_a_race_killed_when_time_was_short_goes_on(shapes, tmp_path, monkeypatch):
    """The last training is given what is left of the clock: another number after a death, for the same arm."""
    monkeypatch.setattr(rounds, "_LEAST_SECONDS", 200.0)  # of 300: one arm at most, with all there is
    asked = {"models": MODELS, "methods": ["full"], "out": tmp_path / "race", **SMALL}
    with pytest.raises(KeyboardInterrupt):
        api.compare(shapes, watcher=Interrupting("^epoch 1 ", at=1), **asked)
    facts = api.compare(shapes, **asked)
    assert sorted(row["state"] for row in facts["rows"]) == ["cut: no time was left to train it", "trained"]


def test_an_arm_that_was_not_trained_says_how_much_time_was_too_little_for_it(shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(rounds, "_LEAST_SECONDS", 1000.0)  # of 300
    facts = api.compare(shapes, models=MODELS[:1], methods=["probe", "full"], out=tmp_path / "race", **SMALL)
    (cut,) = (row["state"] for row in facts["rows"] if row["state"].startswith("cut"))
    assert re.fullmatch(r"cut: 2\d\d s were left, too few to train it", cut)


def test_a_race_killed_as_its_leaderboard_was_written_writes_it_when_called_again(shapes, tmp_path, monkeypatch):
    asked = {"models": MODELS[:1], "methods": ["probe"], "out": tmp_path / "race", **SMALL}
    with monkeypatch.context() as patched:
        patched.setattr(api, "csv_of", lambda facts: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            api.compare(shapes, **asked)
    api.compare(shapes, **asked)
    assert (tmp_path / "race" / "leaderboard.csv").is_file()
    assert (tmp_path / "race" / "leaderboard.html").is_file()


SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from burnish import api
api.compare(sys.argv[1], out=sys.argv[2], **eval(sys.argv[3]))
"""


@pytest.mark.slow
def test_kill_9_of_a_race_at_any_instant_goes_on_to_the_same_leaderboard(unclear, tmp_path):
    """The whole process group dies, four times in a race of two models and two trained methods without a limit of time."""
    asked = {
        "models": MODELS,
        "methods": ["probe", "full", "norms"],
        **SMALL,
        "budget": None,
        "cache": str(tmp_path / "c"),
    }

    def started(folder):
        command = [sys.executable, "-c", SCRIPT, str(unclear), str(folder), repr(asked)]
        return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    began = time.monotonic()
    alone = started(tmp_path / "alone")
    assert alone.wait(timeout=300) == 0, alone.stderr.read()
    whole, rng, deaths = time.monotonic() - began, np.random.default_rng(3), 0
    for share in (0.9, 0.7, 0.5, 0.4):
        process = started(tmp_path / "race")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=rng.uniform(0.3, share) * whole)
        deaths += process.poll() is None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert deaths > 1
    last = started(tmp_path / "race")
    assert last.wait(timeout=300) == 0, last.stderr.read()
    kept = ("name", "state", "chosen", "validation", "test", "difference", "p", "auroc", "log_loss", "brier", "package")
    found = [json.loads((tmp_path / name / "compare.json").read_text())["rows"] for name in ("alone", "race")]
    assert [[row[key] for key in kept] for row in found[1]] == [[row[key] for key in kept] for row in found[0]]
    assert [name for name in contents(tmp_path / "race") if name.endswith((".part", ".tmp"))] == []


def test_a_race_without_a_limit_of_time_trains_the_epochs_it_is_told(shapes, tmp_path):
    facts = api.compare(
        shapes, models=MODELS[:1], methods=["probe", "full"], out=tmp_path / "race", **{**SMALL, "budget": None}
    )
    assert {row["method"]: row["state"] for row in facts["rows"]} == {"probe": "frozen", "full": "trained"}
    assert facts["budget_seconds"] is None


def test_a_race_without_a_limit_of_time_trains_each_arm_once(shapes, tmp_path):
    """A second round would come to the same bits."""
    lines, settings = Lines(), {**SMALL, "budget": None}
    api.compare(
        shapes, models=MODELS[:1], methods=["full", "norms", "bitfit"], out=tmp_path / "race", watcher=lines, **settings
    )
    assert sum(": round " in text for text in lines.said) == 3


def test_a_device_without_enough_memory_for_one_arm_does_not_end_the_race(shapes, tmp_path, monkeypatch):
    real = rounds.tune_on_the_clock

    def failing(method, *rest):
        if method.name == "norms":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(method, *rest)

    monkeypatch.setattr(rounds, "tune_on_the_clock", failing)
    facts = api.compare(shapes, models=MODELS[:1], methods=["full", "norms"], out=tmp_path / "race", **SMALL)
    states = {row["method"]: row["state"] for row in facts["rows"]}
    assert states["full"] == "trained"
    assert states["norms"].startswith(
        "failed: random:test_resnet needs more memory than the device has; take a smaller"
    )


# ---- the test images -------------------------------------------------------------------------------------------------


def test_no_test_image_is_scored_before_the_last_training_and_choice(shapes, tmp_path, monkeypatch):
    """P5."""
    order = []

    def noting(module, name):
        original = getattr(module, name)

        def noted(*args, **kwargs):
            order.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, noted)

    noting(loop, "step")
    for module, name in (
        (frozen, "save"), (rounds, "save"), (tested, "simplest_of_the_best"), (tested, "put_to_test"),
    ):  # fmt: skip
        noting(module, name)
    facts = api.compare(shapes, models=MODELS, methods=["probe", "full"], out=tmp_path / "race", **SMALL)
    first = order.index("put_to_test")
    assert set(order[:first]) == {"step", "save", "simplest_of_the_best"}
    assert order[first:] == ["put_to_test"] * len(finalists(facts)), "each finalist is scored once, and nothing follows"


def test_shuffled_test_labels_change_no_choice(shapes, tmp_path):
    """P5 from the outside."""
    other = {"blue": "green", "green": "red", "red": "blue"}
    found = []
    for variant in (False, True):
        file = shapes.parent / f"raced-{variant}.csv"
        with file.open("w", encoding="utf-8") as out:
            out.write("path,label,split\n")
            for name in other:
                for n in range(20):
                    split = "test" if n < 5 else "val" if n < 9 else "train"
                    label = other[name] if variant and split == "test" else name
                    out.write(f"shapes/{name}/{n:03d}.png,{label},{split}\n")
        facts = api.compare(file, models=MODELS[:1], methods=["probe", "full"], out=tmp_path / str(variant), **SMALL)
        found.append({row["name"]: (row["chosen"], row["state"], row["validation"]) for row in facts["rows"]})
        accuracies = [row["test"]["value"] for row in finalists(facts)]
        assert (max(accuracies) < 0.5) == variant, "the labels were not shuffled"
    assert found[0] == found[1]


# ---- the page and the table ------------------------------------------------------------------------------------------

HOSTILE = '=1+1"><script>alert(1)</script><img src=x onerror=alert(1)>{{ facts }}'


def row(**changes):
    """One made-up row of the leaderboard."""
    return {
        "name": "m · full", "model": "m", "method": "full", "state": "trained", "validation": 0.9, "validation_n": 10,
        "seconds": 12.0, "chosen": False, "package": "arms/01", "test": wilson(8, 10).to_json(),
        "difference": asdict(paired(np.ones(10, bool), np.arange(10) < 8)), "separable": False, "p": 0.5,
        "auroc": 0.95, "log_loss": 0.4, "brier": 0.2, "images_per_second": 50.0, "parameters": 1000, **changes,
    }  # fmt: skip


def made_up(rows, **changes):
    """The facts of a race that never was."""
    return {
        "kind": "compare", "data": "photos", "command": "burnish compare photos", "rows": rows, "chosen": rows[0]["name"],
        "decisions": [], "counts": {"train": 40, "val": 10, "test": 10}, "classes": 3, "budget_seconds": 60.0,
        "seconds": 50.0, "machine": {"cores": 2, "torch": "2.10"}, **changes,
    }  # fmt: skip


class Page(HTMLParser):
    """The tags of a page, and its visible text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def hostile_page():
    first = row(name=HOSTILE, model=HOSTILE, method=HOSTILE, chosen=True)
    cut = row(name="b", state=f"cut: {HOSTILE}", test=None, difference=None, separable=None, images_per_second=None)
    decision = {"what": HOSTILE, "why": HOSTILE, "numbers": {}}
    return page_of(made_up([first, cut], data=HOSTILE, command=HOSTILE, decisions=[decision]))


def test_hostile_names_are_shown_as_text_on_the_page():
    page = Page(hostile_page())
    assert {tag for tag, _ in page.tags} & {"script", "img"} == set()
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    # title, heading, data in words, model, method, cut state, what and why of the decision, command, a point's title twice
    assert page.text.count(HOSTILE) >= 10


def test_the_page_allows_nothing_from_outside_and_refers_to_nothing():
    page = Page(hostile_page())
    policies = [
        attributes["content"]
        for tag, attributes in page.tags
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert len(policies) == 1
    assert "default-src 'none'" in policies[0]
    assert "script-src" not in policies[0]
    references = {"src", "href", "srcset", "data", "action", "xlink:href", "poster"}
    assert [(tag, name) for tag, attributes in page.tags for name in attributes if name in references] == []
    assert not {tag for tag, _ in page.tags} & {"link", "iframe", "object", "embed", "base", "form"}
    text = hostile_page().lower()
    assert "@import" not in text
    assert "url(" not in text


@pytest.mark.parametrize("first", ["=", "+", "-", "@", "\t"])
def test_text_that_a_spreadsheet_would_run_is_quoted_in_the_csv(first):
    text = csv_of(made_up([row(name=f"{first}cmd|' /C calc'!A0", state=f"{first}1+1", chosen=True)]))
    (found,) = csv.DictReader(io.StringIO(text, newline=""))
    assert found["name"] == f"'{first}cmd|' /C calc'!A0"
    assert found["state"] == f"'{first}1+1"
    assert float(found["difference"]) == -0.2, "a negative number stays a number"


def test_a_carriage_return_in_a_name_stays_in_its_cell():
    (found,) = csv.DictReader(io.StringIO(csv_of(made_up([row(name="\ra\rb", chosen=True)])), newline=""))
    assert found["name"] == "\u240da\u240db"
    assert found["package"] == "arms/01"


def test_commas_quotes_and_lines_in_names_stay_one_cell():
    name = 'a,b "c"\nd'
    (found,) = csv.DictReader(io.StringIO(csv_of(made_up([row(name=name, chosen=True)])), newline=""))
    assert found["name"] == name
    assert found["package"] == "arms/01"


def test_a_difference_is_told_in_points_with_its_chance_and_whether_it_is_separable():
    from burnish.reports.leaderboard import sentence

    assert sentence(row(chosen=True)) == "chosen on validation"
    assert sentence(row(test=None, state="cut: behind after round 1")) == "cut: behind after round 1"
    told = sentence(row())
    assert told.startswith("-20.0 points (")
    assert told.endswith(": not separable")
    assert "not separable" not in sentence(row(separable=True))


# ---- the command line ------------------------------------------------------------------------------------------------


def test_the_help_fits_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = burnish("compare", "--help", capsys=capsys)
    assert code == 0
    assert "Usage" in out
    assert max(map(len, out.splitlines())) <= 80


def test_the_command_prints_the_leaderboard_and_json_when_asked(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_shapes(tmp_path / "shapes", images=10)
    words = ["compare", "shapes", "--models", ", ".join(MODELS), "--methods", "probe"]
    words += ["--budget", "2h", "--out", "race"]
    code, out, err = burnish(*words, capsys=capsys)
    assert (code, err) == (0, "")
    assert "was chosen, on " in out
    assert "burnish predict race/arms/" in out
    code, out, _ = burnish(*words, "--json", capsys=capsys)
    facts = json.loads(out)
    assert code == 0
    assert facts["folder"] == "race"
    assert {row["name"] for row in facts["rows"]} == {f"{model} · probe" for model in MODELS}
    assert {"folder": "race", **json.loads((tmp_path / "race" / "compare.json").read_text())} == facts


def test_the_printed_leaderboard_fits_80_columns(capsys):
    chosen, cut = row(chosen=True), row(state="cut: " + "long " * 40, test=None, difference=None)
    facts = made_up([chosen, row(name="a/very" * 20), cut], counts={"train": 4000, "val": 1000, "test": 1000})
    print_leaderboard(facts, Path("race"))
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


@pytest.mark.parametrize("several", [True, False])
def test_the_printed_leaderboard_calls_the_jaccard_index_so(several, capsys):
    print_leaderboard(made_up([row(chosen=True)], several=several), Path("race"))
    assert ("classes right by image (Jaccard)" in capsys.readouterr().out) is several


def test_a_wrong_method_on_the_command_line_leaves_with_2_and_no_folder(shapes, tmp_path, capsys):
    code, out, err = burnish("compare", shapes, "--methods", "probe,ful", "--out", tmp_path / "race", capsys=capsys)
    assert code == 2 and out.count("\n") == 1  # what began
    assert re.fullmatch(r"burnish: no method 'ful' \(nearest: full.*\n", err)
    assert not (tmp_path / "race").exists()
