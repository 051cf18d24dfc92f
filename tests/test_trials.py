"""Short runs that settle a learning rate, or more settings, before the real one."""

import sys

import pytest

from burnish import api
from burnish.choose import trials
from burnish.errors import RecipeError

TINY = {"model": "random:test_resnet", "epochs": 2, "image_size": 64, "budget": None, "method": "full"}


def what(run):
    return [one["what"] for one in run.facts["decisions"]]


def test_a_race_tries_every_factor_and_the_record_says_which_won(shapes, tmp_path):
    run = api.fit(shapes, out=tmp_path / "run", learning_rate="race", **TINY)
    (decision,) = [one for one in run.facts["decisions"] if one["what"].startswith("learning rate: ")]
    assert decision["why"].count("nats") == len(trials.FACTORS)
    usual = api.fit(shapes, out=tmp_path / "usual", **TINY).facts["recipe"]["learning_rate"]
    factor = float(decision["what"].split()[2])
    assert factor in trials.FACTORS
    assert run.facts["recipe"]["learning_rate"] == pytest.approx(factor * usual)


def test_the_same_race_comes_to_the_same_bits(shapes, tmp_path):
    one, two = (api.fit(shapes, out=tmp_path / name, learning_rate="race", **TINY) for name in ("one", "two"))
    told = [[d for d in run.facts["decisions"] if d["what"].startswith("learning rate")] for run in (one, two)]
    assert told[0] == told[1] != []
    first, second = (next((run.folder / "packages").glob("*/weights.safetensors")) for run in (one, two))
    assert first.read_bytes() == second.read_bytes()


def test_a_search_without_optuna_says_what_to_install(shapes, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(RecipeError, match=r"pip install 'burnish\[search\]'"):
        api.fit(shapes, out=tmp_path / "run", search=True, **TINY)


def test_a_search_starts_from_the_defaults_and_settles_what_it_found(shapes, tmp_path, monkeypatch):
    pytest.importorskip("optuna")
    monkeypatch.setattr(trials, "_TRIALS_WITHOUT_BUDGET", 3)
    run = api.fit(shapes, out=tmp_path / "run", search=True, **TINY)
    (decision,) = [one for one in run.facts["decisions"] if one["what"].startswith("settings from a search")]
    assert "of 3" in decision["why"]
    for key in ("stage_decay", "weight_decay", "label_smoothing", "mixup"):
        assert run.facts["recipe"][key] == pytest.approx(decision["numbers"][key])
    assert (tmp_path / "run" / "search.log").is_file()
