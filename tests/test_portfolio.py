"""--model auto: which of the networks at hand, asked of a part of the data within a share of the clock."""

import json
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from burnish import api
from burnish.backbones.zoo import load_backbone
from burnish.choose import portfolio
from burnish.choose.material import Bench
from burnish.choose.portfolio import Asked, pick_backbone
from burnish.data.looks import Dataset, look_at
from burnish.data.sources import open_source
from burnish.data.split import make_splits
from burnish.errors import RecipeError
from burnish.methods.base import Head
from burnish.methods.heads import HeadChoice, HeadKind
from burnish.recipe import Recipe
from burnish.run import outset, trained
from burnish.runtime import Clock, Nobody

NAMES = ["random:test_resnet", "random:test_efficientnet"]


@pytest.fixture(scope="module")
def data(shapes):
    catalog = open_source(shapes)
    splits = make_splits(catalog, seed=0, test_fraction=0.2, val_fraction=0.15)
    return Dataset(catalog, splits, look_at(catalog, np.arange(len(catalog)), workers=1))


@pytest.fixture(scope="module")
def seeing():
    return load_backbone("random:test_resnet")


@pytest.fixture(scope="module")
def colour_blind():
    """The same network, to which the three classes look alike: it sees the sum of the channels' pixel values."""
    backbone = load_backbone("random:test_resnet")
    first = next(layer for layer in backbone.module.modules() if isinstance(layer, torch.nn.Conv2d))
    grey = first.weight.data.mean(1, keepdim=True)
    first.weight.data = grey * torch.tensor(backbone.preprocess.std).view(1, 3, 1, 1)
    return backbone


def bench(backbone, *, budget=None, started=None, **settings):
    """Where networks are asked; started: seconds ago."""
    clock = Clock(time.monotonic() - (started or 0.0), budget)
    return Bench(
        Recipe(model="auto", budget_seconds=budget, **settings), backbone, torch.device("cpu"), clock, Nobody()
    )


def choice(right):
    """A head that is right on these images when they are left out."""
    right = np.array(right, bool)
    accuracy = float(right.mean())
    error = float(np.sqrt(accuracy * (1 - accuracy) / len(right)))
    head = Head(np.zeros((3, 4), np.float32), np.zeros(3, np.float32))
    return HeadChoice(
        head=head,
        how=HeadKind("lda", 0.1, 1.0),
        accuracy=accuracy,
        standard_error=error,
        loss=1.0,
        right=right,
        told=right.astype(float),
    )


def picked(found, data, seeing, monkeypatch, *, names=None, groups=None, **on):
    """The name chosen and the decision, when asking gives what `found` says: name to (right, images per second) or None."""
    asked = []

    def ask(name, backbone, ids, catalog, bench, *, total):
        asked.append(name)
        return None if found[name] is None else Asked(name, backbone, choice(found[name][0]), found[name][1], groups)

    monkeypatch.setattr(portfolio, "_ask", ask)
    networks = {name: replace(seeing, name=name) for name in found}
    _, backbone, decision = pick_backbone(names or list(found), networks.__getitem__, data, bench(seeing, **on))
    assert decision.what == f"model: {backbone.name}", "the network that is returned is not the one that is told"
    return backbone.name, decision, asked


# ---- the rule --------------------------------------------------------------------------------------------------------

GOOD, WORSE = [1] * 38 + [0] * 2, [0] * 12 + [1] * 26 + [0] * 2
AS_GOOD = [0] * 2 + [1] * 37 + [0]  # one image fewer, three where the two differ


def test_the_better_network_is_taken_though_it_is_slower(data, seeing, monkeypatch):
    name, decision, _ = picked({"fast": (WORSE, 900.0), "slow": (GOOD, 20.0)}, data, seeing, monkeypatch)
    assert name == "slow"
    assert "fast 65.0%" in decision.why
    assert "slow 95.0%" in decision.why
    assert decision.numbers == {
        "fast": {"accuracy": 0.65, "images_per_second": 900.0},
        "slow": {"accuracy": 0.95, "images_per_second": 20.0},
    }


@pytest.mark.parametrize("order", [1, -1])
def test_of_networks_within_a_standard_error_of_the_best_the_fastest_is_taken(order, data, seeing, monkeypatch):
    found = {"best": (GOOD, 20.0), "close": (AS_GOOD, 50.0), "closer": (GOOD, 30.0), "far": (WORSE, 900.0)}
    name, _, asked = picked(found, data, seeing, monkeypatch, names=list(found)[::order], budget=1000.0)
    assert name == "close"
    assert asked == list(found)[::order]


def test_the_difference_is_paired_not_that_of_two_intervals(data, seeing, monkeypatch):
    """Six images worse, and right nowhere that the other is not: the intervals overlap, the pairs do not."""
    worse = [0] * 6 + GOOD[6:]
    one, other = choice(GOOD), choice(worse)
    assert one.accuracy - one.standard_error < other.accuracy + 2 * other.standard_error
    assert picked({"fast": (worse, 900.0), "slow": (GOOD, 20.0)}, data, seeing, monkeypatch)[0] == "slow"


def test_images_of_one_group_are_one_witness(data, seeing, monkeypatch):
    """The six are frames of one film: the other network may be worse on that film alone."""
    found = {"fast": ([0] * 6 + GOOD[6:], 900.0), "slow": (GOOD, 20.0)}
    films = np.r_[np.zeros(6, int), np.arange(1, len(GOOD) - 5)]
    assert picked(found, data, seeing, monkeypatch, groups=films, budget=1e6)[0] == "fast"
    assert picked(found, data, seeing, monkeypatch, groups=np.arange(len(GOOD)), budget=1e6)[0] == "slow"


def test_a_network_too_slow_for_the_budget_is_named_and_not_taken(data, seeing, monkeypatch):
    name, decision, _ = picked({"slow": None, "other": (WORSE, 50.0)}, data, seeing, monkeypatch, budget=60.0)
    assert name == "other"
    assert "not asked: slow (too slow for the budget)" in decision.why


def test_when_all_are_too_slow_the_first_is_taken(data, seeing, monkeypatch):
    name, decision, _ = picked({"cheap": None, "dear": None}, data, seeing, monkeypatch, budget=60.0)
    assert name == "cheap"
    assert decision.why == "the budget allows no other to be asked"


def test_after_its_share_of_the_clock_no_further_network_is_asked_and_that_is_told(data, seeing, monkeypatch):
    monkeypatch.setattr(portfolio, "_SHARE", 0.0)
    found = {"first": (WORSE, 50.0), "second": (GOOD, 50.0), "third": (GOOD, 50.0)}
    name, decision, asked = picked(found, data, seeing, monkeypatch, budget=60.0)
    assert (name, asked) == ("first", ["first"])
    assert "not asked: second (no time), third (no time)" in decision.why


# ---- asking ----------------------------------------------------------------------------------------------------------


def test_a_network_that_sees_more_is_chosen_by_its_cross_validated_head_though_it_is_slower(
    data, seeing, colour_blind, monkeypatch
):
    rates = {id(seeing): 100.0, id(colour_blind): 1000.0}
    monkeypatch.setattr(portfolio, "images_per_second", lambda trunk, images, here, half: rates[id(here.backbone)])
    networks = {"blind": colour_blind, "seeing": seeing}
    _, backbone, decision = pick_backbone(list(networks), networks.__getitem__, data, bench(seeing, taps="off"))
    assert backbone is seeing
    assert decision.numbers["seeing"]["accuracy"] > 0.9
    assert decision.numbers["blind"]["accuracy"] < 0.7
    assert decision.numbers["blind"]["images_per_second"] == 1000.0


@pytest.mark.parametrize("faster", ["one", "other"])
def test_of_two_equal_networks_the_faster_is_taken(faster, data, monkeypatch):
    networks = {name: load_backbone("random:test_resnet") for name in ("one", "other")}
    quick = networks[faster]
    monkeypatch.setattr(
        portfolio, "images_per_second", lambda trunk, images, here, half: 200.0 if here.backbone is quick else 100.0
    )
    _, backbone, decision = pick_backbone(list(networks), networks.__getitem__, data, bench(quick, budget=1000.0))
    assert decision.numbers["one"]["accuracy"] == decision.numbers["other"]["accuracy"]
    assert backbone is quick


def test_a_network_that_cannot_see_all_images_in_time_is_measured_but_not_asked(data, seeing, monkeypatch):
    slow = load_backbone("random:test_resnet")
    rate = {id(slow): 60 / (0.35 * 100.0) * 0.99, id(seeing): 60 / (0.35 * 100.0) * 1.01}  # 60 images, 100 s
    monkeypatch.setattr(portfolio, "images_per_second", lambda trunk, images, here, half: rate[id(here.backbone)])
    monkeypatch.setattr(portfolio, "_SHARE", 1.0)
    networks = {"slow": slow, "seeing": seeing}
    _, backbone, decision = pick_backbone(list(networks), networks.__getitem__, data, bench(seeing, budget=100.0))
    assert backbone is seeing
    assert list(decision.numbers) == ["seeing"]
    assert "not asked: slow (too slow for the budget)" in decision.why


def test_the_only_network_is_taken_without_being_asked(data, seeing, monkeypatch):
    monkeypatch.setattr(portfolio, "_ask", lambda *args, **given: pytest.fail("it was asked"))
    _, backbone, decision = pick_backbone(["only"], {"only": seeing}.__getitem__, data, bench(seeing, budget=100.0))
    assert backbone is seeing
    assert decision.what == "model: only" and decision.why.startswith("no other pretrained network is at hand")


def test_within_a_budget_all_are_asked_of_as_many_images_as_it_has_time_for(data, seeing, monkeypatch):
    seen = []

    def ask(name, backbone, ids, catalog, bench, *, total):
        seen.append(ids)
        return Asked(name, backbone, choice(GOOD), 10.0)

    monkeypatch.setattr(portfolio, "_ask", ask)
    monkeypatch.setattr(portfolio, "_LEAST_IMAGES", 9)
    networks = {"one": seeing, "other": seeing}
    for budget, count in ((1e-6, 9), (1e9, len(data[1].fitting)), (None, len(data[1].fitting))):
        seen.clear()
        here = bench(seeing, budget=budget)
        here = replace(here, clock=SimpleNamespace(budget_seconds=budget, elapsed=lambda: 0.0))
        pick_backbone(list(networks), networks.__getitem__, data, here)
        assert [len(ids) for ids in seen] == [count, count] and (seen[0] == seen[1]).all()


def test_no_test_image_is_asked_of(data, seeing, monkeypatch):
    splits = data.splits
    read, original = [], portfolio.read_pixels

    def noted(catalog, ids, **options):
        read.extend(ids)
        return original(catalog, ids, **options)

    monkeypatch.setattr(portfolio, "read_pixels", noted)
    pick_backbone(["one", "other"], {"one": seeing, "other": seeing}.__getitem__, data, bench(seeing))
    assert sorted(read) == sorted(2 * [*splits.train, *splits.val])


def test_of_many_images_a_part_is_asked_in_which_rare_classes_are_whole(data, monkeypatch):
    catalog, splits, _ = data
    ids = np.sort(np.concatenate([splits.train, splits.val]))
    rare = ids[catalog.labels[ids] == 2][:4]
    train = np.sort(np.concatenate([ids[catalog.labels[ids] != 2], rare]))
    few = replace(splits, train=train, val=train[:0])
    monkeypatch.setattr(portfolio, "_IMAGES", 20)
    part = portfolio._part(catalog, few, 0)
    assert len(part) == len(set(part)) == 20
    assert set(rare) <= set(part)
    assert np.bincount(catalog.labels[part]).tolist() == [8, 8, 4]
    assert (portfolio._part(catalog, few, 0) == part).all()
    assert (portfolio._part(catalog, few, 1) != part).any()


# ---- in a run --------------------------------------------------------------------------------------------------------

AUTO = {"model": "auto", "budget": None, "epochs": 1, "image_size": 64, "batch_size": 12, "precision": "float32"}


class Death(BaseException):
    """Stands for a kill."""


def test_of_very_many_classes_some_are_asked_of_with_enough_images_each(data, monkeypatch):
    catalog, splits, _ = data
    count = len(catalog)
    many = replace(
        catalog, labels=np.arange(count) % (count // 2), classes=tuple(f"{n:04d}" for n in range(count // 2))
    )
    monkeypatch.setattr(portfolio, "_IMAGES", 20)
    monkeypatch.setattr(portfolio, "_LEAST_OF_A_CLASS", 2)
    part = portfolio._part(many, splits, 0)
    held = np.unique(many.labels[part], return_counts=True)[1]
    assert len(part) <= 20 and len(held) <= 10 and held.max() == 2


def test_a_run_with_model_auto_tells_its_choice_and_names_the_network_in_recipe_and_package(
    shapes, tmp_path, monkeypatch
):
    monkeypatch.setattr(outset, "portfolio", lambda: NAMES)
    run = api.fit(shapes, out=tmp_path / "run", method="probe", **AUTO)
    told = run.facts["decisions"][0]
    name = told["what"].removeprefix("model: ")
    assert name in NAMES
    assert set(told["numbers"]) == set(NAMES)
    counts = run.facts["counts"]
    assert f"cross-validated on {counts['train'] + counts['val']} images: " in told["why"]
    assert Recipe.from_toml((run.folder / "recipe.toml").read_text()).model == name
    assert run.facts["decisions"][0] == json.loads((run.folder / "result.json").read_text())["decisions"][0]
    assert {answer.problem for answer in run.predict([shapes / "red"])} == {None}


@pytest.mark.parametrize("network", NAMES)
def test_a_run_that_died_keeps_the_network_it_chose_and_does_not_ask_again(network, shapes, tmp_path, monkeypatch):
    rates = {name: 100.0 + 100.0 * (name == network) for name in NAMES}  # both are right on all, so the faster is taken
    real = portfolio._ask

    def ask(name, *rest, **options):
        return replace(real(name, *rest, **options), images_per_second=rates[name])

    monkeypatch.setattr(outset, "portfolio", lambda: NAMES)
    with monkeypatch.context() as patched:
        patched.setattr(portfolio, "_ask", ask)
        patched.setattr(trained, "train", lambda *rest: (_ for _ in ()).throw(Death()))
        with pytest.raises(Death):
            api.fit(shapes, out=tmp_path / "run", method="full", **{**AUTO, "budget": 300})
    monkeypatch.setattr(outset, "pick_backbone", lambda *rest: pytest.fail("the networks were asked again"))
    run = api.fit(shapes, out=tmp_path / "run", method="full", **{**AUTO, "budget": 300})
    assert run.facts["decisions"][0]["what"] == f"model: {network}"
    assert set(run.facts["decisions"][0]["numbers"]) == set(NAMES)
    assert Recipe.from_toml((run.folder / "recipe.toml").read_text()).model == network
    assert run.predictor.bundle.base_model.removeprefix("random:") == network.removeprefix("random:")


def test_model_auto_without_a_network_on_the_machine_says_what_to_install(shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(outset, "portfolio", lambda: [])
    with pytest.raises(RecipeError, match=r"model auto finds no network on this machine; run: pip install "):
        api.fit(shapes, out=tmp_path / "run", method="probe", **AUTO)
    assert not (tmp_path / "run").exists()
