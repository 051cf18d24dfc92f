"""What `auto` asks before it trains: whether it is worth it, and how."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from burnish import api
from burnish.choose.signals import Signals, method_of, worth_trying
from burnish.recipe import Recipe
from burnish.run import trained
from burnish.screen import print_verdict

TRANSFORMER = {"model": "random:test_vit", "budget": None, "epochs": 2, "device": "cpu"}

USUAL = Signals(images=2_000, a_class=200, least=180, left_out=2_300, wrong=100.0, distance=0.5, transformer=False)


def tried(signals: Signals, recipe: Recipe | None = None, *, fits: bool = True) -> str:
    return worth_trying(signals, recipe or Recipe(), fits=lambda name: fits)[0]


def test_a_convolutional_network_is_tuned_whole():
    assert tried(USUAL) == tried(replace(USUAL, a_class=3, distance=None)) == "full"


@pytest.mark.parametrize(("distance", "rank"), [(0.0, 4), (0.3, 8), (None, 8), (0.7, 16), (1.0, 32)])
def test_a_transformer_with_few_images_a_class_gets_corrections_of_a_rank_by_distance(distance, rank):
    few = replace(USUAL, transformer=True, a_class=30, distance=distance)
    assert tried(few) == f"lora:rank={rank}"


def test_a_transformer_with_many_images_or_one_that_lora_does_not_fit_is_tuned_whole():
    assert tried(replace(USUAL, transformer=True, a_class=101)) == "full"
    assert tried(replace(USUAL, transformer=True, a_class=100)) == "lora:rank=16"
    assert tried(replace(USUAL, transformer=True, a_class=30), fits=False) == "full"


def test_nothing_is_trained_where_nothing_was_wrong():
    assert tried(replace(USUAL, wrong=0.0)) == "probe"
    assert tried(replace(USUAL, wrong=0.1)) == "full", "of several classes a part may be wrong"
    why = worth_trying(replace(USUAL, wrong=0.0), Recipe(), fits=lambda name: True)[1]
    assert why.what == "nothing is trained" and "all 2300 images" in why.why and why.numbers["wrong"] == 0.0


@pytest.mark.parametrize(
    "asked", [{"epochs": 3}, {"learning_rate": "race"}, {"search": True}, {"mixup": 0.2}, {"image_size": 64}]
)
def test_who_names_settings_of_training_gets_it(asked):
    assert tried(replace(USUAL, wrong=0.0), Recipe(**asked)) == "full"


def test_rates_by_stage_that_are_asked_for_are_not_ignored():
    few = replace(USUAL, transformer=True, a_class=30)
    assert tried(few, Recipe(stage_decay=0.9)) == "full"


def test_other_seeds_learn_what_the_first_tried():
    _, decision = worth_trying(replace(USUAL, transformer=True, a_class=30), Recipe(), fits=lambda name: True)
    tried_one = {"decisions": [{"what": "head: lda"}, decision.to_json()], "kept": "multiprobe"}
    assert method_of(tried_one).startswith("lora:rank=")
    assert method_of({"decisions": [{"what": "nothing is trained"}], "kept": "multiprobe"}) == "multiprobe"


# ---- in a run ------------------------------------------------------------------------------------------------------------


def test_easy_images_end_a_run_early_and_it_says_why(tmp_path, capsys):
    for channel, name in enumerate(("green", "red")):
        (tmp_path / "plain" / name).mkdir(parents=True)
        for number in range(30):
            pixels = np.zeros((48, 48, 3), np.uint8)
            pixels[..., channel] = 150 + number
            pixels[..., 2] = 2 * number
            Image.fromarray(pixels).save(tmp_path / "plain" / name / f"{number}.png")
    run = api.fit(tmp_path / "plain", model="random:test_resnet", budget=120.0, out=tmp_path / "run", device="cpu")
    last = run.facts["decisions"][-1]
    assert last["what"] == "nothing is trained" and last["numbers"]["wrong"] == 0.0
    assert run.facts["kept_role"] == "probe" and not run.facts["history"]
    assert run.facts["seconds"] < 100.0
    print_verdict(run)
    out = capsys.readouterr().out
    asked = run.facts["counts"]["train"] + run.facts["counts"]["val"]
    assert f"nothing is trained: the frozen heads were right on all {asked} images" in " ".join(out.split())
    assert "validation images" not in out, "none was chosen on"
    assert all(len(line) <= 80 for line in out.splitlines() if str(tmp_path) not in line)


@pytest.fixture(scope="module")
def whole(shapes, tmp_path_factory):
    """A finished run of a small transformer."""
    return api.fit(shapes, out=tmp_path_factory.mktemp("signals") / "whole", **TRANSFORMER)


def test_auto_trains_a_transformer_by_small_corrections(whole, shapes):
    what = [one["what"] for one in whole.facts["decisions"]]
    assert sum(one.startswith("lora:rank=") and one.endswith(" is worth trying") for one in what) == 1
    assert len(whole.facts["history"]) == 2
    assert whole.predict([str(next((shapes / "red").glob("*.png")))])[0].label in ("blue", "green", "red")
    recipe = Recipe.from_toml((whole.folder / "recipe.toml").read_text())
    assert recipe.method in ("probe", "multiprobe") or recipe.method.startswith("lora:rank=")
    assert set(whole.facts["validation"]) - {"probe", "multiprobe"} == {
        one.removesuffix(" is worth trying") for one in what if one.endswith(" is worth trying")
    }


def test_a_run_that_died_goes_on_with_the_same_corrections(whole, shapes, tmp_path, monkeypatch):
    def dies(*_, **__):
        raise RuntimeError("killed")

    real = trained.Tuning.best
    monkeypatch.setattr(trained.Tuning, "best", dies)
    with pytest.raises(RuntimeError, match="killed"):
        api.fit(shapes, out=tmp_path / "run", **TRANSFORMER)
    monkeypatch.setattr(trained.Tuning, "best", real)
    again = api.fit(shapes, out=tmp_path / "run", **TRANSFORMER)
    assert again.facts["sittings"] == 2
    assert again.facts["scores"] == whole.facts["scores"] and again.facts["kept"] == whole.facts["kept"]
