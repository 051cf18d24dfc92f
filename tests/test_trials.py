"""Short runs that settle a learning rate, or more settings, before the real one."""

import errno
import io
import json
import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from burnish import api
from burnish.backbones.zoo import load_backbone
from burnish.choose import plan, search, trials
from burnish.choose.tuning import Tuning
from burnish.errors import RecipeError, RunError
from burnish.recipe import Recipe
from burnish.run import planned, trained
from burnish.runtime import Nobody
from burnish.watching import Lines
from conftest import write_shapes

TINY = {"model": "random:test_resnet", "epochs": 2, "image_size": 64, "budget": None, "method": "full"}


def what(run):
    return [one["what"] for one in run.facts["decisions"]]


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Images where it does not matter what is found in them."""
    root = tmp_path_factory.mktemp("few") / "shapes"
    write_shapes(root, images=10)
    return root


@pytest.fixture
def brief(monkeypatch):
    """Trials are of three steps instead of twelve."""
    monkeypatch.setattr(trials, "_LEAST", 3)


def test_a_race_tries_every_factor_and_the_record_says_which_won(few, tmp_path, brief):
    run = api.fit(few, out=tmp_path / "run", learning_rate="race", **TINY)
    (decision,) = [one for one in run.facts["decisions"] if one["what"].startswith("learning rate: ")]
    assert decision["why"].count("nats") == len(trials.FACTORS)
    usual = api.fit(few, out=tmp_path / "usual", **TINY).facts["recipe"]["learning_rate"]
    factor = float(decision["what"].split()[2])
    assert factor in trials.FACTORS
    assert run.facts["recipe"]["learning_rate"] == pytest.approx(factor * usual)


def test_the_same_race_comes_to_the_same_bits(few, tmp_path, brief):
    one, two = (api.fit(few, out=tmp_path / name, learning_rate="race", **TINY) for name in ("one", "two"))
    told = [[d for d in run.facts["decisions"] if d["what"].startswith("learning rate")] for run in (one, two)]
    assert told[0] == told[1] != []
    first, second = (next((run.folder / "packages").glob("*/weights.safetensors")) for run in (one, two))
    assert first.read_bytes() == second.read_bytes()


def test_a_run_without_time_for_trials_trains_with_the_usual_settings(shapes, tmp_path, monkeypatch):
    """Three trials of twelve steps and their validation would cost more than a plan of twenty steps has."""
    real = planned.plan
    monkeypatch.setattr(planned, "plan", lambda *args: replace(real(*args), timed=True, steps=20, most=20))
    monkeypatch.setattr(trials.Trials, "run", lambda *args: pytest.fail("a trial was made"))
    run = api.fit(shapes, out=tmp_path / "run", learning_rate="race", **TINY)
    (decision,) = [one for one in run.facts["decisions"] if one["what"] == "settings: the usual ones"]
    assert "time for 20 steps; 3 trials of 12 steps pay from 72 on" in decision["why"]
    assert run.facts["kept"] and run.facts["recipe"]["learning_rate"] < 1
    assert trials.too_short(plan_of(71, timed=True), 3) is not None
    assert trials.too_short(plan_of(72, timed=True), 3) is trials.too_short(plan_of(5, timed=False), 3) is None


def test_a_race_ends_when_its_share_of_the_clock_is_spent(monkeypatch):
    """What a trial costs beside its steps (activations, validation images) is known when one has been made."""
    now, tried = [10.0], []
    clock = SimpleNamespace(elapsed=lambda: now[0], left=lambda: 60.0 - now[0])

    def run(self, recipe, *, named):
        tried.append(recipe.learning_rate)
        now[0] += 9.0
        return trials.Tried(np.full(9, 1.0 / recipe.learning_rate), 0.5, named)

    monkeypatch.setattr(trials.Trials, "run", run)
    bench = SimpleNamespace(clock=clock, recipe=Recipe(), watcher=Nobody())
    material = SimpleNamespace(val_rows=np.arange(9), val_groups=None)
    made = replace(plan_of(100, timed=True), reserve_seconds=10.0)  # 40 seconds for training, 16 for the race
    asked, kept = trials.Trials(None, made, 1e-3, None, None, material, bench), []
    factor, decision = trials.race(asked, known=None, keep=lambda state: kept.append(json.loads(json.dumps(state))))
    assert len(tried) == 1 and factor == trials.FACTORS[0] == 1.0
    assert decision.why.startswith("1 trials of")
    clock.left = lambda: 1000.0
    assert trials.race(asked, known=None, keep=kept.append)[0] == 3.0 and len(tried) == 4
    # A later sitting makes no trial again, and ends when the first would have.
    assert trials.race(asked, known=kept[0], keep=kept.append)[0] == 1.0 and len(tried) == 4


def test_of_trials_that_are_alike_the_usual_settings_are_taken():
    """Of many candidates one looks better by chance."""
    draw = np.random.default_rng(0)
    usual = trials.Tried(draw.random(80), 0.9, {"factor": 1.0})
    chance = trials.Tried(usual.losses + draw.normal(0.0, 0.5, 80) - 0.01, 0.9, {"factor": 3.0})
    better = trials.Tried(usual.losses - draw.random(80), 0.9, {"factor": 0.3})
    assert trials.clearly_least([usual]) is trials.clearly_least([usual, chance]) is usual
    assert trials.clearly_least([usual, chance, better]) is better
    none = trials.Tried(np.full(80, 1e6), 0.0, {"factor": 3.0})
    assert trials.clearly_least([usual, none]) is usual and trials.clearly_least([none, usual]) is usual


def test_what_the_recipe_names_is_not_searched(few, tmp_path, monkeypatch, brief):
    """Nor changed by a search that takes other settings than the usual ones, as this one does whatever the trials gave."""
    pytest.importorskip("optuna")
    monkeypatch.setattr(search, "_TRIALS_WITHOUT_BUDGET", 2)
    monkeypatch.setattr(search, "clearly_least", lambda tried, groups: tried[-1])
    real, seen = trials.Trials.run, []

    def watched(self, recipe, **given):
        seen.append((recipe.mixup, recipe.weight_decay))
        return real(self, recipe, **given)

    monkeypatch.setattr(trials.Trials, "run", watched)
    run = api.fit(few, out=tmp_path / "run", search=True, mixup=1.0, weight_decay=0.8, **TINY)
    assert [*seen, (run.facts["recipe"]["mixup"], run.facts["recipe"]["weight_decay"])] == [(1.0, 0.8)] * 3
    (decision,) = [one for one in run.facts["decisions"] if one["what"].startswith("settings from a search")]
    assert set(decision["numbers"]) == {"rate", "stage_decay", "label_smoothing"}


def test_a_search_is_refused_at_once_without_optuna(shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(search.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match="pip install 'burnish"):
        api.fit(shapes, out=tmp_path / "run", search=True, **TINY)
    assert not (tmp_path / "run").exists(), "nothing was looked at"


def plan_of(steps, *, timed):
    return plan.Plan(
        batch=32,
        sizes=((0.0, 64),),
        steps=steps,
        epochs=1.0,
        freeze=0,
        balanced=False,
        views=0,
        timed=timed,
        most=steps,
        reserve_seconds=1.0,
        step_seconds={64: 0.1},
        epoch_seconds=0.1,
        reason="",
    )


@pytest.mark.parametrize("method", ["adapter", "lora"])
def test_trials_are_of_the_network_that_is_trained(method, few, tmp_path, monkeypatch, brief):
    """Where the plan freezes stages, so do the trials: what is put into the trunk stands above the cut."""
    real, frozen, seen = planned.plan, 2, []

    def plan(tunable_at, material, bench, rates):
        return real(tunable_at, material, replace(bench, recipe=replace(bench.recipe, freeze=frozen)), rates)

    class Watched(Tuning):
        def __init__(self, tunable, *rest):
            seen.append(tunable.freeze)
            super().__init__(tunable, *rest)

    monkeypatch.setattr(planned, "plan", plan)
    monkeypatch.setattr(trials, "Tuning", Watched)
    run = api.fit(few, out=tmp_path / "run", learning_rate="race", **{**TINY, "method": method})
    assert seen == [frozen] * len(trials.FACTORS) and run.facts["recipe"]["freeze"] == frozen


def test_weights_that_give_no_numbers_are_not_used(few, tmp_path, monkeypatch):
    real = Tuning._val_logits

    def overflowing(self, preprocess):
        return np.full_like(real(self, preprocess), np.nan)

    monkeypatch.setattr(Tuning, "_val_logits", overflowing)
    run = api.fit(few, out=tmp_path / "run", **TINY)
    assert run.facts["kept"] != "full" and list(run.facts["scores"]) == ["probe"]
    assert "the trained weights are not used" in what(run)


def test_with_all_stages_frozen_the_head_alone_learns(few, tmp_path):
    stages = len(load_backbone(TINY["model"]).stages)
    run = api.fit(few, out=tmp_path / "run", freeze=stages, **TINY)
    (schedule,) = [one for one in run.facts["decisions"] if one["what"] == "schedule"]
    assert "only the head learns" in schedule["why"]


def test_a_search_without_optuna_says_what_to_install(shapes, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(RecipeError, match=r"pip install 'burnish\[search\]'"):
        api.fit(shapes, out=tmp_path / "run", search=True, **TINY)


def test_a_search_starts_from_the_defaults_and_settles_what_it_found(shapes, tmp_path, monkeypatch):
    pytest.importorskip("optuna")
    monkeypatch.setattr(search, "_TRIALS_WITHOUT_BUDGET", 3)
    run = api.fit(shapes, out=tmp_path / "run", search=True, **TINY)
    (decision,) = [one for one in run.facts["decisions"] if one["what"].startswith("settings from a search")]
    assert "of 3" in decision["why"]
    for key in ("stage_decay", "weight_decay", "label_smoothing", "mixup"):
        assert run.facts["recipe"][key] == pytest.approx(decision["numbers"][key])
    assert (tmp_path / "run" / "search.log").is_file()


def test_a_search_leaves_alone_what_the_method_does_not_have(few, tmp_path, monkeypatch, brief):
    pytest.importorskip("optuna")
    monkeypatch.setattr(search, "_TRIALS_WITHOUT_BUDGET", 1)
    run = api.fit(few, out=tmp_path / "run", search=True, stage_decay=0.9, **{**TINY, "method": "norms", "epochs": 1})
    (decision,) = [one for one in run.facts["decisions"] if one["what"] == "settings: the usual ones"]
    assert "rate" in decision["numbers"] and "stage_decay" not in decision["numbers"]
    assert run.facts["recipe"]["stage_decay"] == 0.9
    (told,) = [one for one in run.facts["decisions"] if one["what"] == "without effect: --stage-decay"]
    assert told["why"] == "norms has one learning rate for all stages"


def dies_in_trial(number, data, out, monkeypatch):
    """A search that dies in that trial; the list of its trials, to which those of later runs are added."""
    real, made = trials.Trials.run, []

    class Died(BaseException):
        pass

    def dying(self, recipe, **given):
        made.append(recipe)
        if len(made) == number:
            raise Died
        return real(self, recipe, **given)

    monkeypatch.setattr(trials.Trials, "run", dying)
    with pytest.raises(Died):
        api.fit(data, out=out, search=True, **TINY)
    return made


def test_a_search_that_died_proposes_what_it_would_have_proposed(few, tmp_path, monkeypatch, brief):
    """And a trial that death cut short does not count."""
    pytest.importorskip("optuna")
    monkeypatch.setattr(search, "_TRIALS_WITHOUT_BUDGET", 4)
    whole = api.fit(few, out=tmp_path / "whole", search=True, **TINY)
    made = dies_in_trial(3, few, tmp_path / "run", monkeypatch)
    journal = tmp_path / "run" / "search.log"
    with open(journal, "ab") as file:  # as a full disk, or a death at a write, leaves it
        file.write(b'{"op_code": 6, "trial')
    (tmp_path / "run" / "search.log.lock").symlink_to("nowhere")
    again = api.fit(few, out=tmp_path / "run", search=True, **TINY)
    assert len(made) == 5, "two, the one that died, and two more"
    told = [[d for d in run.facts["decisions"] if d["what"].startswith("settings")] for run in (whole, again)]
    assert told[0] == told[1] != []
    first, second = (next((run.folder / "packages").glob("*/weights.safetensors")) for run in (whole, again))
    assert first.read_bytes() == second.read_bytes()


def test_a_clock_that_is_set_forward_makes_no_trial_longer(few, tmp_path, monkeypatch, brief):
    """A search that goes on would end, for want of time for one more."""
    optuna = pytest.importorskip("optuna")
    dies_in_trial(2, few, tmp_path / "run", monkeypatch)
    journal = tmp_path / "run" / "search.log"
    ends, count = re.subn(r'("datetime_complete": ?")\d{4}', r"\g<1>2999", journal.read_text())
    assert count
    journal.write_text(ends)
    images = SimpleNamespace(val_rows=np.arange(len(_losses(journal))))
    record = search._Record(journal, SimpleNamespace(material=images, bench=SimpleNamespace(watcher=Nobody())))
    (done,) = record.finished()
    assert done.state == optuna.trial.TrialState.COMPLETE and done.duration.days > 300_000
    assert 0.0 < record.longest_seconds() < 600.0


def _losses(journal):
    """Of the images in the first trial that a journal holds."""
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    return next(line["user_attr"]["losses"] for line in lines if "losses" in line.get("user_attr", {}))


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: [b"\x00\x00\n", *lines[1:]],
        lambda lines: [lines[0], b"[]\n", *lines[1:]],
        lambda lines: [line.replace(b'"losses":[', b'"losses":["a",') for line in lines],
        lambda lines: [
            line.replace(b'"until"', b'"till"').replace(b'"steps":', b'"steps":"many","x":') for line in lines
        ],
    ],
)
def test_a_search_whose_record_is_damaged_begins_anew_and_says_so(few, tmp_path, monkeypatch, brief, damage):
    pytest.importorskip("optuna")
    monkeypatch.setattr(search, "_TRIALS_WITHOUT_BUDGET", 2)
    made, told = dies_in_trial(2, few, tmp_path / "run", monkeypatch), io.StringIO()
    journal = tmp_path / "run" / "search.log"
    journal.write_bytes(b"".join(damage(journal.read_bytes().splitlines(keepends=True))))
    api.fit(few, out=tmp_path / "run", search=True, watcher=Lines(told), **TINY)
    assert "search.log, is damaged" in told.getvalue()
    assert len(made) == 4, "one and the one that died, and both again"


def test_a_disk_that_is_full_in_a_search_is_a_sentence(few, tmp_path, monkeypatch, brief):
    """Optuna makes an assertion of it, and the search goes on where there is room again."""
    optuna = pytest.importorskip("optuna")
    monkeypatch.setattr(search, "_TRIALS_WITHOUT_BUDGET", 2)
    backend = optuna.storages.journal.JournalFileBackend
    real, calls = backend.append_logs, []

    def full(self, logs):
        calls.append(1)
        if len(calls) > 12:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, logs)

    with monkeypatch.context() as patched:
        patched.setattr(backend, "append_logs", full)
        with pytest.raises(RunError, match=r"search\.log: the disk is full; make room"):
            api.fit(few, out=tmp_path / "run", search=True, **TINY)
    assert len(calls) > 12
    run = api.fit(few, out=tmp_path / "run", search=True, **TINY)
    assert any("of 2" in decision["why"] for decision in run.facts["decisions"])


def test_a_trial_keeps_no_more_views_than_it_sees(shapes, tmp_path, monkeypatch):
    seen = []

    class Enough(BaseException):
        pass

    def tried(*_):
        raise Enough

    class Watched(Tuning):
        def __init__(self, tunable, made, *rest):
            seen.append((made.views, made.steps))
            super().__init__(tunable, made, *rest)

    monkeypatch.setattr(trials, "Tuning", Watched)
    monkeypatch.setattr(trained, "train", tried)
    with pytest.raises(Enough):
        api.fit(
            shapes, out=tmp_path / "run", learning_rate="race",
            **{**TINY, "method": "top", "epochs": 12, "batch_size": 4},
        )  # fmt: skip
    assert len(seen) == len(trials.FACTORS)
    assert {views for views, _ in seen} <= {1, 2}


@pytest.mark.parametrize("settings", [{"search": True}, {"learning_rate": "race"}])
def test_frozen_heads_have_no_settings_to_try(shapes, tmp_path, settings):
    with pytest.raises(RecipeError, match="multiprobe trains nothing"):
        api.fit(shapes, out=tmp_path / "run", **{**TINY, "method": "multiprobe"}, **settings)


def test_a_method_that_only_moves_what_lies_low_is_not_given_up_where_time_is_short(few, tmp_path, monkeypatch):
    """The plan looks for more epochs with the lower stages frozen; there this method has nothing to move."""
    asked = []
    real = plan._fitted

    def short(tunable, freeze, *rest):
        asked.append(freeze)
        return replace(real(tunable, freeze, *rest), epochs=1.0, timed=True)

    monkeypatch.setattr(plan, "_fitted", short)
    run = api.fit(few, out=tmp_path / "run", **{**TINY, "method": "lora:where=layer1*", "budget": 300})
    assert asked == [0] and run.facts["recipe"]["freeze"] == 0
