"""Proof people can see: what a score is worth, when to decline, what is unfamiliar, what things cost, what the report shows."""

import csv
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from importlib.resources import files

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import log_loss, roc_auc_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_compare import Lines
from test_report_page import HOSTILE, Page, facts_of
from torch import nn

from burnish import api
from burnish.backbones.classifier import Classifier
from burnish.backbones.zoo import load_backbone
from burnish.choose.evidence import Evidence
from burnish.choose.more_data import learning_curve
from burnish.data.audit.findings import KINDS
from burnish.errors import (
    BadWeights,
    Interrupted,
    ModelError,
    NoSuchName,
    NotARun,
    NotEnoughData,
    RecipeError,
    RunError,
)
from burnish.measure import cost
from burnish.measure.bootstrap import Ranking
from burnish.measure.calibration import adaptive_ece
from burnish.measure.cost import Energy, latency
from burnish.measure.held_out import HeldOut, declining, sets
from burnish.measure.intervals import holm
from burnish.measure.ood import Familiarity, entropies, principal
from burnish.measure.scores import score
from burnish.methods.heads import HeadKind
from burnish.record.answers import read_answers
from burnish.record.folder import RunFolder, read_facts, read_pictures
from burnish.reports import explain as explain_module
from burnish.reports.chinese import CHINESE, FINDINGS
from burnish.reports.explain import grad_cam, maps, overlay, sanity
from burnish.reports.page import render
from burnish.reports.rollout import rollout
from burnish.run import seeds
from burnish.run.seeds import _score_of as seeds_told
from burnish.run.seeds import summed_up
from burnish.ship.answering import Asked
from burnish.ship.bundle import read_bundle, write_bundle
from burnish.ship.predictor import Predictor

TINY = {"model": "random:test_resnet", "budget": None, "epochs": 2, "image_size": 64}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run on enough images that everything in the report has something to show."""
    from conftest import write_shapes

    root = tmp_path_factory.mktemp("proof")
    write_shapes(root / "shapes", images=110)
    return api.fit(root / "shapes", out=root / "run", **TINY)


def answers(n: int = 400, k: int = 5, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(probabilities [n k], labels [n]) of a model that is right about three times of four, with equal ones among them."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, k, n)
    logits = rng.standard_normal((n, k)).round(1)
    logits[np.arange(n), labels] += 1.5
    chances = np.exp(logits)
    return chances / chances.sum(1, keepdims=True), labels


# ---- scores ----------------------------------------------------------------------------------------------------------


def test_scores_equal_scikit_learn_and_lie_in_their_intervals():
    chances, labels = answers()
    found = score(chances, labels, list("abcde"))
    assert found.auroc == pytest.approx(roc_auc_score(labels, chances, multi_class="ovr", average="macro"), abs=1e-9)
    assert found.log_loss == pytest.approx(log_loss(labels, chances), abs=1e-9)
    for name, one in found.intervals.items():
        assert one.low < getattr(found, name) == one.value < one.high, name
    assert set(found.intervals) == {"balanced_accuracy", "macro_f1", "log_loss", "brier", "auroc"}


def test_both_ways_of_ranking_agree(monkeypatch):
    chances, labels = answers(300)
    weights = np.random.default_rng(1).integers(0, 3, (7, 300)).astype(np.float32)
    quick = Ranking(chances[:, 0], labels == 0)
    monkeypatch.setattr("burnish.measure.bootstrap._MOST_COMPARED", 0)
    sorted_one = Ranking(chances[:, 0], labels == 0)
    assert quick.compares and not sorted_one.compares
    assert np.allclose(quick.area(weights), sorted_one.area(weights), rtol=0, atol=1e-12)
    assert np.allclose(quick.average_precision(weights), sorted_one.average_precision(weights), rtol=0, atol=1e-6)


def test_holm_corrects_as_in_the_textbook():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.7]) == [0.7] and holm([0.6, 0.9]) == [1.0, 1.0]


def test_adaptive_bins_hold_equally_many_images():
    chances, labels = answers(150)
    order = np.argsort(chances.max(1), kind="stable")
    sure, hit = chances.max(1)[order], (chances.argmax(1) == labels)[order]
    gaps = [abs(sure[at : at + 10].mean() - hit[at : at + 10].mean()) for at in range(0, 150, 10)]
    assert adaptive_ece(chances, labels) == pytest.approx(np.mean(gaps), abs=1e-12)


# ---- when to decline, and sets -----------------------------------------------------------------------------------------


def test_the_threshold_goes_as_low_as_held_out_images_show_it_to_be_right_enough():
    held = HeldOut(np.linspace(0.99, 0.5, 50), np.r_[np.ones(30, bool), np.zeros(20, bool)], np.linspace(0.99, 0.5, 50))
    found = held.threshold(0.9)
    assert found is not None
    # of answers that are right 90 times of 100 none is wrong in 30 in 4 % of draws, one at the most in 31 in 17 %
    assert (held.confidence >= found).sum() == 30
    assert held.threshold(0.99) is None
    with pytest.raises(RecipeError, match=r"the 50 held-out images of this package can show 92\.6% at the most"):
        held.rejecting(0.99)
    for wrong in (0.0, 1.0, 1.5):
        with pytest.raises(RecipeError, match="expected the accuracy wanted"):
            held.threshold(wrong)


def test_sets_hold_the_true_class_as_often_as_was_asked():
    """Split conformal: coverage over many draws of held-out and new images is at least the wanted one, and not far above."""
    for wanted in (0.8, 0.9, 0.95):
        inside = []
        for seed in range(60):
            chances, labels = answers(500, seed=seed)
            held = HeldOut.of(chances[:250], labels[:250])
            found = chances[250:] >= held.cut(wanted)
            inside.append(found[np.arange(250), labels[250:]].mean())
        assert wanted - 0.01 <= np.mean(inside) <= wanted + 0.02
    assert HeldOut.of(*answers(8)).cut(0.99) == 0.0  # too few to say: every class


def test_a_set_is_never_empty():
    chances = np.array([[0.4, 0.35, 0.25]])
    assert sets(chances, 0.9).tolist() == [[True, False, False]]


def test_declining_says_what_thresholds_do_on_other_images():
    chances, labels = answers(2000)
    held = HeldOut.of(chances[:1000], labels[:1000])
    told = declining(held, chances[1000:], labels[1000:])
    first = told["answers"][0]
    assert first["accuracy"]["value"] > 0.92 and 0 < first["answered"] < 1000
    sure = chances[1000:].max(1)
    assert first["answered"] == (sure >= first["threshold"]).sum()
    assert told["curve"][-1] == [1.0, pytest.approx((chances[1000:].argmax(1) == labels[1000:]).mean())]
    assert json.loads(json.dumps(told)) == told


LABELS = ([3], [-1], [0.5], [0, 1], ["x"], [None], [[0]], "x", [10**400])


def test_held_out_images_travel_in_the_package_and_damage_is_refused(run, tmp_path):
    bundle = read_bundle(run.folder)
    assert bundle.held_out is not None and bundle.familiarity is not None
    write_bundle(tmp_path / "p", bundle)
    again = read_bundle(tmp_path / "p")
    assert again.held_out is not None and np.allclose(again.held_out.own, bundle.held_out.own)
    assert again.familiarity is not None and again.familiarity.limit == pytest.approx(bundle.familiarity.limit)
    broken = replace(bundle.familiarity, mean=bundle.familiarity.mean[:-1])
    write_bundle(tmp_path / "q", replace(bundle, familiarity=broken))
    with pytest.raises((BadWeights, NotARun), match="familiarity"):
        read_bundle(tmp_path / "q")
    one = {"confidence": [0.9], "right": [1], "own": [0.1]}
    wrong = (
        {"right": []},
        {**one, "confidence": [2.0]},
        {"confidence": "x"},
        *({**one, "label": bad} for bad in LABELS),
    )
    for values in wrong:
        with pytest.raises(ValueError, match="held_out"):
            HeldOut.from_json(values, classes=3)


def test_predict_declines_and_names_sets(run, tmp_path):
    shapes = run.folder.parent / "shapes"
    noise = tmp_path / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save(noise)
    images = [shapes / "red" / "000.png", noise]
    held = read_bundle(run.folder).held_out
    assert held is not None
    wanted = next(one for one in (0.95, 0.9, 0.8, 0.7) if held.threshold(one) is not None)
    red, strange = run.predict(images, reject=wanted, sets=0.9, top=3)
    assert red.set and red.label in (red.classes[0], None)
    assert strange.unfamiliar and strange.declined == "unlike the training images" and strange.label is None
    api.write_predictions(tmp_path / "p.csv", run.predictor, [str(noise)], asked=Asked(reject=wanted, sets=0.9))
    (row,) = csv.DictReader(open(tmp_path / "p.csv", encoding="utf-8"))
    assert row["label"] == "unknown" and row["problem"] == "unlike the training images" and row["set"]
    with pytest.raises(RecipeError, match="expected how often"):
        run.predict(images, sets=1.0)
    bare = replace(read_bundle(run.folder), held_out=None, familiarity=None)
    write_bundle(tmp_path / "bare", bare)
    with pytest.raises(RecipeError, match="the package holds no held-out images"):
        api.predict(tmp_path / "bare", images, reject=0.9)
    assert api.predict(tmp_path / "bare", images)[1].unfamiliar is None


# ---- what is unfamiliar ------------------------------------------------------------------------------------------------


def test_strange_features_are_told_from_familiar_ones():
    rng = np.random.default_rng(0)
    centres = 4 * rng.standard_normal((5, 40))
    labels = rng.integers(0, 5, 600)
    own = centres[labels] + rng.standard_normal((600, 40))
    found = Familiarity.of(own[:400], labels[:400]).limited_by(own[400:500])
    new = own[500:]
    other = 4 * rng.standard_normal((100, 40)) + rng.standard_normal((100, 40))
    sure = np.eye(5)[np.zeros(100, int)]
    told = found.strangeness(np.r_[new, other], np.r_[sure, sure])
    assert roc_auc_score(np.r_[np.zeros(100), np.ones(100)], told) > 0.99
    assert found.strange(new, sure).mean() < 0.15 and found.strange(other, sure).mean() > 0.9
    again = Familiarity.from_arrays(found.arrays(), 40)
    assert np.allclose(again.strangeness(new, sure), told[:100], rtol=1e-4)
    with pytest.raises(ValueError, match="another shape"):
        Familiarity.from_arrays(found.arrays(), 39)
    for name in ("mean", "axes", "centres", "limit", "doubt", "usual", "beside"):
        with pytest.raises(ValueError, match="another shape"):
            Familiarity.from_arrays({**found.arrays(), name: np.float32(1.0).reshape(())}, 40)


def test_features_that_look_familiar_under_an_answer_in_doubt_are_strange():
    """As those of a stranger that lies between the classes; packages of before know nothing of doubt."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 600)
    own = 4 * rng.standard_normal((5, 40))[labels] + rng.standard_normal((600, 40))
    sure = 0.96 * np.eye(5)[labels] + 0.008  # 0.2 nats
    torn = np.where(rng.random((600, 1)) < 0.1, 0.2, sure)  # one answer of ten, 1.6 nats, among one's own images
    plain = Familiarity.of(own[:400], labels[:400]).limited_by(own[400:500])
    found = Familiarity.of(own[:400], labels[:400]).limited_by(own[400:500], entropies(torn[400:500]))
    new, answers = own[500:], torn[500:]
    assert plain.doubt == 0.0 < found.doubt
    assert np.array_equal(plain.strangeness(new, sure[500:]), plain.strangeness(new, answers))
    assert found.strange(new, answers).mean() < 0.2, "as many as are meant, or about so"
    before, after = (found.strangeness(new, one[500:]) for one in (sure, np.full((600, 5), 0.2)))
    np.testing.assert_allclose(after - before, found.doubt * (np.log(5) - entropies(sure[500:])))
    kept = Familiarity.from_arrays(found.arrays(), 40)
    assert kept.doubt == pytest.approx(found.doubt) and kept.limit == pytest.approx(found.limit)
    earlier = {name: one for name, one in found.arrays().items() if name != "doubt"}
    assert Familiarity.from_arrays(earlier, 40).doubt == 0.0


def test_what_is_as_far_from_all_images_as_from_each_class_is_strange():
    """As a blank page is where there are two classes: their images lie in few directions, and it lies far out in all."""
    rng = np.random.default_rng(0)
    within = np.r_[np.linspace(1, 0.2, 60), np.full(140, 0.01)]  # spread in a direction
    labels = rng.integers(0, 2, 260)
    centres = np.zeros((2, 200))
    centres[1, 0] = 4.0
    own = (centres[labels] + rng.standard_normal((260, 200)) * within).astype(np.float32)
    found = Familiarity.of(own[:100], labels[:100]).limited_by(own[100:160])
    far, beside = centres[0].copy(), centres[0].copy()
    far[1:60] = 3 * within[1:60]  # in the directions of one's own images, but in all of them at once
    beside[60:] = 0.1  # where no image of one's own has ever been
    strangers, sure = np.stack([far, beside]).astype(np.float32), np.eye(2)[np.zeros(100, int)]
    assert found.strange(strangers, sure[:2]).all() and found.strange(own[160:], sure).mean() < 0.15
    told = found.strangeness(np.r_[own[160:], strangers], np.r_[sure, sure[:2]])
    assert told[-2:].min() > np.quantile(told[:-2], 0.95)
    before = {name: one for name, one in found.arrays().items() if name not in ("usual", "beside")}
    earlier = Familiarity.from_arrays(before, 200)
    by_both, by_relation = (one.strangeness(strangers, sure[:2]) for one in (found, earlier))
    assert by_relation[0] < 0.2 * by_both[0] and by_relation[1] < found.limit, "packages of before answer as they did"
    kept = Familiarity.from_arrays(found.arrays(), 200)
    assert np.allclose(kept.strangeness(strangers, sure[:2]), by_both, rtol=1e-4)


def test_features_in_as_many_directions_as_they_have_are_not_strange_by_rounding():
    rng = np.random.default_rng(0)
    own = (100 + rng.standard_normal((300, 12))).astype(np.float32)
    found = Familiarity.of(own[:200], np.arange(200) % 3).limited_by(own[200:250])
    assert found.beside == 0.0 and found.strange(own[250:], np.ones((50, 1))).mean() < 0.2


@pytest.mark.parametrize("each", [1, 2, 40])
def test_strangers_are_told_where_a_class_has_as_few_images_as_one(each):
    """Nothing is known of how images of one class vary then, and a class is no single point."""
    rng = np.random.default_rng(0)
    centres, labels = rng.standard_normal((80, 400)), np.arange(80).repeat(each)
    own, new = (centres[labels] + 0.3 * rng.standard_normal((len(labels), 400)) for _ in range(2))
    other = rng.standard_normal((200, 400)) + 0.3 * rng.standard_normal((200, 400))
    held = centres[:40] + 0.3 * rng.standard_normal((40, 400))
    found = Familiarity.of(own.astype(np.float32), labels).limited_by(held)
    assert abs(found.limit) < 1e3
    ours, theirs = (found.strangeness(one, np.ones((len(one), 1))) for one in (new, other))
    assert roc_auc_score(np.repeat([0, 1], [len(ours), 200]), np.r_[ours, theirs]) > 0.99


def test_directions_are_those_of_a_decomposition_and_images_all_alike_have_one():
    rng = np.random.default_rng(0)
    for shape in ((30, 200), (200, 30)):
        rows = rng.standard_normal(shape) * np.linspace(1, 5, shape[1])
        x = rows - rows.mean(0)
        _, _, expected = np.linalg.svd(x, full_matrices=False)
        axes = principal(x)
        rank = min(shape[0] - 1, shape[1])  # centring takes one of the rows
        assert axes.shape == (shape[1], min(rank, 64))
        np.testing.assert_allclose(np.abs(expected[: axes.shape[1]] @ axes), np.eye(axes.shape[1]), atol=1e-7)
    alike = Familiarity.of(np.ones((50, 10), np.float32), np.arange(50) % 2).limited_by(np.ones((20, 10)))
    assert alike.axes.shape == (10, 1) and not alike.strange(np.ones((5, 10)), np.ones((5, 1))).any()
    with np.errstate(all="raise"):
        other = np.linspace(1, 3, 10)[None]
        assert (
            alike.strange(other, np.ones((1, 1))).all() and np.isfinite(alike.strangeness(other, np.ones((1, 1)))).all()
        )


def test_where_no_held_out_answer_is_in_doubt_a_shade_of_it_is_not_all_that_counts():
    rng = np.random.default_rng(0)
    labels, features = rng.integers(0, 3, 300), rng.standard_normal((300, 10))
    found = Familiarity.of(features[:200], labels[:200]).limited_by(features[200:], np.zeros(100))
    assert np.isfinite(found.doubt) and found.doubt > 0.0
    assert found.doubt * 1e-4 < 0.1 * abs(found.limit), "a ten-thousandth of a nat"


def test_evaluate_tells_other_images_apart(run, tmp_path):
    for number in range(30):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    told = api.ood(run.folder, run.folder.parent / "shapes", tmp_path)
    assert told["auroc"]["value"] > 0.9 and told["auroc"]["low"] <= told["auroc"]["value"] <= told["auroc"]["high"]
    assert told["inside"]["n"] == 330 and told["outside"]["n"] == 30
    assert told["outside"]["beyond_limit"] > told["inside"]["beyond_limit"]


# ---- would more images help, and cost ----------------------------------------------------------------------------------


def test_the_learning_curve_rises_to_what_was_reached_and_leads_on():
    from types import SimpleNamespace

    rng = np.random.default_rng(3)
    labels = rng.integers(0, 4, 600)
    features = (0.35 * np.eye(4)[labels] @ rng.standard_normal((4, 30)) + rng.standard_normal((600, 30))).astype(
        np.float32
    )
    catalog = SimpleNamespace(classes=("a", "b", "c", "d"))
    rows = {"train_rows": np.arange(400), "val_rows": np.arange(400, 600), "labels": labels, "catalog": catalog}
    rows["tied"], rows["sets"] = lambda rows: None, lambda rows: np.arange(len(rows))
    how = HeadKind("lda", 0.5, 1.0)

    def refit(some):
        return how.fitted(features[some], labels[some], classes=4)

    whole = refit(rows["train_rows"]).logits(features[400:]).argmax(1) == labels[400:]
    told = learning_curve(features, SimpleNamespace(**rows), refit, whole, seed=0, seconds_left=1e9)
    assert told is not None
    shares = [one["accuracy"] for one in told["points"]]
    assert shares[0] < shares[-1] and [one["images"] for one in told["points"]][-1] == 400
    for one in told["ahead"]:
        assert one["low"] <= one["accuracy"] <= one["high"] and one["accuracy"] >= shares[-1]
    assert [one["factor"] for one in told["ahead"]] == [2.0, 4.0]
    again = learning_curve(features, SimpleNamespace(**rows), refit, whole, seed=0, seconds_left=1e9)
    assert again == told
    assert learning_curve(features, SimpleNamespace(**rows), refit, whole, seed=0, seconds_left=0.0) is None
    assert learning_curve(features, SimpleNamespace(**rows), refit, whole, seed=0, seconds_left=1e-6) is None
    few = {**rows, "val_rows": np.arange(400, 420)}
    assert learning_curve(features, SimpleNamespace(**few), refit, whole, seed=0, seconds_left=1e9) is None
    one_each = {**rows, "train_rows": np.unique(labels[:400], return_index=True)[1]}  # every share is the same four
    assert learning_curve(features, SimpleNamespace(**one_each), refit, whole, seed=0, seconds_left=1e9) is None


def test_energy_is_what_the_counters_gained_and_survives_their_overflow(tmp_path):
    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    (tmp_path / "intel-rapl:0:0").mkdir()  # a part of the package, which must not count twice
    (zone / "max_energy_range_uj").write_text("1000000")
    (zone / "energy_uj").write_text("900000")
    energy = Energy(tmp_path)
    (zone / "energy_uj").write_text("400000")
    assert energy.joules() == pytest.approx(0.5)
    assert Energy(tmp_path / "none").joules() is None


@pytest.mark.parametrize(("most", "seconds", "runs"), [(100, 60.0, 100), (100, 0.0, 5), (5, 60.0, 5)])
def test_latency_counts_its_calls(most, seconds, runs, monkeypatch):
    monkeypatch.setattr(cost, "_LATENCY_RUNS", most)  # which conftest makes few
    calls = []
    found = latency(lambda: calls.append(1), seconds=seconds)
    assert found.runs == len(calls) - 2 == runs and 0 <= found.p50_seconds <= found.p99_seconds


def test_a_run_says_what_it_costs(run):
    told = run.facts["cost"]
    assert told["parameters"] >= told["tuned_parameters"] > 0 and told["macs"] > 0
    assert told["package_bytes"] > 4 * told["parameters"] * 0.9
    assert told["latency"]["p50_seconds"] <= told["latency"]["p99_seconds"] and told["images_per_second"] > 0


# ---- explanations ------------------------------------------------------------------------------------------------------


class TwoColours(nn.Module):
    """Features: how much red, how much blue."""

    def __init__(self) -> None:
        super().__init__()
        self.colours = nn.Conv2d(3, 2, 3, padding=1, bias=False)
        self.colours.weight.data.zero_()
        self.colours.weight.data[0, 0] = self.colours.weight.data[1, 2] = 1.0
        self.positive = nn.ReLU(inplace=True)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.positive(self.colours(images)).mean((2, 3))


def test_the_map_lies_where_the_class_is():
    classifier = Classifier(TwoColours(), 2, 2).eval()
    classifier.head.weight.data.copy_(torch.tensor([[1.0, -0.1], [-0.1, 1.0]]))
    image = torch.zeros(1, 3, 32, 32)
    image[:, 0, 4:12, 4:12] = 1.0  # red, top left
    image[:, 2, 20:28, 20:28] = 1.0  # blue, bottom right
    for target, (top, left) in ((0, (4, 4)), (1, (20, 20))):
        heat = grad_cam(classifier, image, torch.tensor([target]))[0]
        inside = heat[top : top + 8, left : left + 8]
        assert heat.shape == (32, 32) and heat.max() == pytest.approx(1.0)
        assert inside.sum() > 0.6 * heat.sum()
    assert not image.requires_grad and all(one.grad is None for one in classifier.parameters())


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
def test_every_family_has_maps_that_change_with_the_weights(name):
    backbone = load_backbone(f"random:{name}")
    classifier = Classifier.over(backbone, classes=3)
    torch.manual_seed(0)
    nn.init.normal_(classifier.head.weight)
    size = backbone.preprocess.size
    images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1))
    targets = classifier(images).argmax(1)
    heats = grad_cam(classifier, images, targets)
    assert heats.shape == (4, size, size) and heats.min() >= 0 and heats.max() <= 1
    assert heats.any()
    check = sanity(classifier, images, targets)
    assert check.images == 4 and -1 <= check.similarity <= 1


@pytest.mark.parametrize("at_once", [1, 2, 100])
def test_maps_of_many_images_are_those_of_each(at_once, monkeypatch):
    backbone = load_backbone("random:test_resnet")
    classifier, size = Classifier.over(backbone, classes=3).eval(), backbone.preprocess.size
    torch.manual_seed(0)
    nn.init.normal_(classifier.head.weight)
    images = torch.randn(5, 3, size, size, generator=torch.Generator().manual_seed(1))
    targets, counts = classifier(images).argmax(1), []
    classifier.register_forward_pre_hook(lambda layer, given: counts.append(len(given[0])))
    monkeypatch.setattr(explain_module, "_PIXELS_AT_ONCE", at_once * size * size)
    heats, check = maps(classifier, images, targets), sanity(classifier, images, targets)
    assert max(counts) == min(at_once, 5) and check.images == 4 and heats.any()
    for row in range(5):
        one = grad_cam(classifier, images[row : row + 1], targets[row : row + 1])[0]
        assert np.allclose(heats[row], one, atol=1e-4)


def test_rollout_follows_the_attention_that_the_layers_give():
    """By hand: with the attention of each layer as timm computes it without its fused kernel."""
    backbone = load_backbone("random:test_vit")
    classifier, size = Classifier.over(backbone, classes=3), backbone.preprocess.size
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    given, expected = [], None
    layers = [one for one in classifier.trunk.modules() if type(one).__name__ == "Attention"]
    for layer in layers:
        layer.fused_attn = False
        layer.attn_drop.register_forward_hook(lambda own, inputs, out: given.append(out.detach()))
    heat = rollout(classifier, images, torch.zeros(2, dtype=torch.long))
    for one in given:
        mean = one.mean(1)
        step = (mean + torch.eye(mean.shape[-1])) / 2
        expected = step if expected is None else step @ expected
    grid = math.isqrt(expected.shape[-1] - 1)
    by_hand = expected[:, 0, 1:].reshape(2, grid, grid)
    assert len(given) == len(layers) > 2 and heat.shape == (2, size, size)
    assert heat.min() == 0.0 and heat.max() == pytest.approx(1.0)
    small = heat[:, size // grid // 2 :: size // grid, size // grid // 2 :: size // grid]
    for ours, theirs in zip(small, by_hand.numpy(), strict=True):
        assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.95
    with pytest.raises(ModelError, match="use --how grad-cam"):
        rollout(Classifier(TwoColours(), 2, 2), images, torch.zeros(2, dtype=torch.long))


def test_explain_by_rollout_is_for_transformers(run, tmp_path):
    image = run.folder.parent / "shapes" / "red" / "001.png"
    with pytest.raises(ModelError, match="needs a vision transformer"):
        api.explain(run.folder, [image], out=tmp_path / "a", how="rollout")
    with pytest.raises(RecipeError, match="how is 'rolout', expected grad-cam or rollout"):
        api.explain(run.folder, [image], out=tmp_path / "b", how="rolout")
    with pytest.raises(RecipeError, match="for any class; leave the class out"):
        api.explain(run.folder, [image], out=tmp_path / "c", how="rollout", target="red")


def test_overlays_keep_the_image_where_nothing_is_hot():
    pixels = np.full((8, 8, 3), 200, np.uint8)
    heat = np.zeros((8, 8))
    heat[0, 0] = 1.0
    found = overlay(pixels, heat)
    assert found.shape == pixels.shape and found[0, 0, 0] > found[4, 4, 0] - 60
    assert np.abs(found[0, 0].astype(int) - found[4, 4].astype(int)).sum() > 50


def test_explain_writes_a_picture_an_image_and_names_the_unreadable(run, tmp_path):
    shapes = run.folder.parent / "shapes"
    (tmp_path / "bad.png").write_bytes(b"no image")
    rows, check = api.explain(run.folder, [shapes / "red" / "001.png", tmp_path / "bad.png"], out=tmp_path / "out")
    assert check is not None and rows[1].problem and rows[1].file is None
    with Image.open(str(rows[0].file)) as picture:
        assert picture.size == (2 * picture.height, picture.height)
    (one,), _ = api.explain(run.folder, [shapes / "red" / "001.png"], out=tmp_path / "out2", target="blue")
    assert one.target == "blue" and one.file and one.file.endswith("-blue.png")
    with pytest.raises(NoSuchName, match=r"no class 'blu'; nearest: .*blue"):
        api.explain(run.folder, [shapes / "red" / "001.png"], out=tmp_path / "out3", target="blu")


def test_explain_names_images_to_which_the_networks_answer_is_not_a_number(run, tmp_path):
    bundle = read_bundle(run.folder)
    state = {name: one * float("nan") if one.ndim == 4 else one for name, one in bundle.state.items()}
    predictor = Predictor(replace(bundle, state=state))
    image = run.folder.parent / "shapes" / "red" / "001.png"
    rows, check = api.explain(run.folder, [image], out=tmp_path / "out", predictor=predictor)
    assert check is None and not list((tmp_path / "out").iterdir())
    assert (rows[0].file, rows[0].problem) == (None, "the network's answer to it is not a number")


# ---- the report --------------------------------------------------------------------------------------------------------


def test_the_report_shows_all_of_it(run):
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    text = Page(page).text()
    for part in (
        "Commonest class",
        "When it should say",
        "Parameters",
        "AUROC",
        "predict --reject",
    ):
        assert part in text, part
    assert ("Would more images help?" in text) == (run.facts["more_data"] is not None)
    pictures = read_pictures(run.folder)
    assert pictures["cases"] and all(one["thumbnail"].startswith("data:image/jpeg") for one in pictures["cases"])
    assert any(one["heat"] for one in pictures["cases"]) and all(one["near"] for one in pictures["cases"])


def test_every_word_of_the_page_is_translated():
    words, source = set(), files("burnish.reports")
    for part in [source / "page.html", *(source / "sections").iterdir()]:
        words |= set(re.findall(r'_\("([^"]+)"', part.read_text(encoding="utf-8")))
    python = "".join((source / name).read_text(encoding="utf-8") for name in ("page.py", "drawn.py"))
    words |= set(re.findall(r'say\(\s*"([^"]+)"', python)) | set(
        re.findall(r'"(?:majority|scratch)": "([^"]+)"', python)
    )
    assert len(words) > 100
    assert not words - CHINESE.keys()
    assert not CHINESE.keys() - words, "translations of nothing"


def test_placeholders_are_the_same_in_both_languages():
    for english, chinese in CHINESE.items():
        found = [set(re.findall(r"%\((\w+)\)s", text)) for text in (english, chinese)]
        assert found[0] == found[1], english


def test_every_kind_of_finding_is_translated():
    kinds = KINDS.values()
    assert {one.title for one in kinds} | {one.advice for one in kinds} | {
        one.level for one in kinds
    } == FINDINGS.keys()


def test_the_page_says_how_many_of_its_own_images_are_strange(run):
    facts = read_facts(run.folder)
    told = facts["familiarity"]
    assert told["beyond"]["n"] == facts["counts"]["test"] and told["meant"] == pytest.approx(0.05)
    rows = [row for row in csv.DictReader(open(run.folder / "splits.csv", encoding="utf-8")) if row["split"] == "test"]
    found = run.predict([run.folder.parent / "shapes" / row["path"] for row in rows])
    assert sum(bool(one.unfamiliar) for one in found) == round(told["beyond"]["value"] * len(rows))
    assert "lie beyond the limit that is meant for 5.0 %" in Page(render(facts)).text()
    told["beyond"] |= {"low": 0.01, "value": 0.05, "high": 0.2}
    assert "differ from the training images" not in Page(render(facts)).text()
    told["beyond"] |= {"low": 0.2, "value": 0.3, "high": 0.4}
    assert "differ from the training images" in Page(render(facts)).text()


def test_what_the_clock_left_out_is_said(run):
    facts = read_facts(run.folder)
    facts["mistakes"] = [
        {"path": "a.png", "kind": "mistake", "label": "red", "predicted": "blue", "about": None, "confidence": 0.9}
    ]
    facts["cost"]["late"] = True
    text = Page(render(facts, {"late": True})).text()
    assert "The clock left no time for pictures of them" in text and "no time to measure how fast" in text
    assert "The clock left" not in Page((run.folder / "report.html").read_text(encoding="utf-8")).text()


def test_the_limit_is_kept_by_as_many_new_images_as_it_says():
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(3), 60)
    kept = []
    for _ in range(200):
        train, held, new = (
            3.0 * np.eye(12)[labels[:count]] + rng.standard_normal((count, 12)) for count in (180, 39, 60)
        )
        kept.append(1.0 - Familiarity.of(train, labels).limited_by(held).strange(new, np.ones((60, 1))).mean())
    assert 0.94 <= np.mean(kept) <= 0.98


def test_the_chinese_page_speaks_chinese_and_keeps_names(run, tmp_path):
    path = api.report(run.folder, lang="zh", out=tmp_path / "zh.html")
    page = path.read_text(encoding="utf-8")
    text = Page(page).text()
    assert '<html lang="zh-Hans">' in page and "逐类结果" in text and "blue" in text
    assert ("微调" in text or "冻结探针" in text) and "Class by class" not in text
    with pytest.raises(RecipeError, match="lang is 'klingon', expected en or zh"):
        api.report(run.folder, lang="klingon")


def hostile_pictures() -> dict:
    picture = "data:image/png;base64,AAAA"
    near = [{"path": name, "label": name, "thumbnail": "javascript:alert(1)"} for name in HOSTILE]
    case = {"kind": "mistake", "confidence": 0.5, "thumbnail": picture, "heat": HOSTILE[1], "near": near}
    cases = [{**case, "path": name, "label": name, "predicted": name} for name in HOSTILE]
    return {"cases": cases, "sanity": None, "looked_among": 3}


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_hostile_names_make_no_element(lang):
    sixty = tuple(f"{name}{number}" for number in range(6) for name in HOSTILE)[:60]
    facts = facts_of(60, names=sixty)
    facts["baselines"] = [
        {"key": "against", "name": HOSTILE[1], "accuracy": facts["verdict"]["probe"],
         "paired": {"difference": 0.1, "low": 0.0, "high": 0.2, "p": 0.01}}
    ]  # fmt: skip
    html = render(facts, hostile_pictures(), lang=lang)
    page = Page(html)
    assert page.count("script") == 1 and page.count("style") == 1
    assert all(not name.startswith("on") for _, attributes in page.elements for name in attributes)
    sources = {attributes.get("src") for tag, attributes in page.elements if tag == "img"}
    assert sources == {"data:image/png;base64,AAAA"}
    assert "\x1b" not in html and "\u202e" not in html


def test_an_old_result_without_the_new_facts_still_renders(run):
    facts = read_facts(run.folder)
    for key in ("declining", "baselines", "more_data", "cost", "task"):
        facts.pop(key)
    for one in facts["scores"].values():
        one.pop("auroc"), one.pop("intervals")
    assert "<h1" in render(facts)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_a_browser_draws_the_page_without_a_complaint(run, tmp_path):
    command = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--dump-dom",
        "--enable-logging=stderr", f"--user-data-dir={tmp_path}/browser", (run.folder / "report.html").as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr
    assert "Class by class" in done.stdout and "</html>" in done.stdout


# ---- several runs, baselines, seeds ------------------------------------------------------------------------------------


def test_predictions_are_kept_and_pair_runs(run, tmp_path):
    told = read_answers(run.folder)
    facts = run.facts["scores"][run.facts["kept_role"]]["accuracy"]
    assert len(told.paths) == facts["n"] and told.right.mean() == pytest.approx(facts["value"])
    other = tmp_path / "other"
    shutil.copytree(run.folder, other)
    rows = list(csv.reader(open(other / "predictions.csv", encoding="utf-8")))
    for row in rows[1:16]:
        row[4] = "0"
    with open(other / "predictions.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows[:-3])  # and three images fewer
    page, found, n = api.report_runs([run.folder, other], out=tmp_path / "runs.html")
    assert n == facts["n"] - 3 and found[0].difference is None
    assert found[1].difference is not None and found[1].difference["only_second"] == 0
    assert found[1].p == found[1].difference["p"]
    assert Page(page.read_text(encoding="utf-8")).count("script") == 0
    with pytest.raises(RecipeError, match="at least two different"):
        api.report_runs([run.folder, run.folder])
    (other / "predictions.csv").write_text("path,label,right\nelse.png,a,1\n", encoding="utf-8")
    with pytest.raises(NotEnoughData, match="no test image in common"):
        api.report_runs([run.folder, other])
    (other / "predictions.csv").unlink()
    with pytest.raises(NotARun, match=r"predictions\.csv cannot be read"):
        api.report_runs([run.folder, other])


def test_each_test_image_is_told_with_the_probability_of_every_class(run):
    with open(run.folder / "predictions.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        chances = {name: float(row[name]) for name in run.classes}
        assert sum(chances.values()) == pytest.approx(1, abs=1e-5)
        assert max(chances, key=chances.get) == row["answer"] and chances[row["answer"]] == float(row["confidence"])


def test_a_class_named_like_a_column_takes_nothing_from_it(shapes, tmp_path):
    for old, new in zip(sorted(one.name for one in shapes.iterdir()), ("=1+1", "group", "right"), strict=True):
        shutil.copytree(shapes / old, tmp_path / "data" / new)
    named = api.fit(tmp_path / "data", out=tmp_path / "run", **{**TINY, "method": "probe"})
    told = read_answers(named.folder)
    assert told.groups is None and set(told.labels) == {"'=1+1", "group", "right"} and told.right.dtype == bool
    with open(named.folder / "predictions.csv", newline="", encoding="utf-8") as file:
        assert next(csv.reader(file))[-3:] == ["'=1+1", "group (class)", "right (class)"]


def test_all_baselines_and_an_earlier_run_are_held_against_the_kept_model(shapes, tmp_path):
    first = api.fit(shapes, out=tmp_path / "first", **{**TINY, "method": "probe"})
    second = api.fit(shapes, out=tmp_path / "second", **TINY, baselines="all", against=str(first.folder))
    found = {one["key"]: one for one in second.facts["baselines"]}
    assert set(found) == {"majority", "scratch", "against"}
    assert set(second.facts["validation"]) == {"probe", "full"} and second.facts["validation"]["full"] > 0
    test = sum(row["split"] == "test" for row in csv.DictReader(open(second.folder / "splits.csv", encoding="utf-8")))
    assert all(one["accuracy"]["n"] == test for one in found.values())  # same data, same seed: same test images
    before = read_answers(first.folder)
    assert found["against"]["accuracy"]["value"] == pytest.approx(before.right.mean())
    text = Page((second.folder / "report.html").read_text(encoding="utf-8")).text()
    assert "Trained from scratch" in text and "the earlier run" in text


def test_a_probe_alone_is_held_against_training_from_scratch_too(shapes, tmp_path):
    found = api.fit(shapes, out=tmp_path / "run", **{**TINY, "method": "probe"}, baselines="all")
    assert {one["key"] for one in found.facts["baselines"]} == {"majority", "scratch"}
    assert found.facts["kept"] == "probe" and set(found.facts["scores"]) == {"probe", "scratch"}
    none = api.fit(shapes, out=tmp_path / "none", **{**TINY, "method": "probe"}, baselines="none")
    assert none.facts["baselines"] == []


def test_test_images_that_the_earlier_run_learnt_from_are_left_out(shapes, tmp_path):
    first = api.fit(shapes, out=tmp_path / "first", **{**TINY, "method": "probe", "seed": 5})
    second = api.fit(shapes, out=tmp_path / "second", **{**TINY, "method": "probe"}, against=str(first.folder))
    sides = [
        {row["path"]: row["split"] for row in csv.DictReader(open(one.folder / "splits.csv", encoding="utf-8"))}
        for one in (first, second)
    ]
    fresh = [path for path, side in sides[1].items() if side == "test" and sides[0][path] == "test"]
    told = [one for one in second.facts["baselines"] if one["key"] == "against"]
    assert [one["accuracy"]["n"] for one in told] == ([len(fresh)] if fresh else [])
    assert all("that it learnt from are left out" in one["name"] for one in told)


def test_an_earlier_run_of_other_classes_is_refused_before_any_work(run, tmp_path):
    from conftest import write_shapes

    write_shapes(tmp_path / "other", images=4, classes=("cat", "dog"))
    with pytest.raises(RunError, match=r"that run has other classes .* leave --against out"):
        api.fit(tmp_path / "other", out=tmp_path / "run", **TINY, against=str(run.folder))
    assert not (tmp_path / "run").exists()


def test_other_seeds_train_on_the_same_splits(shapes, tmp_path):
    found = api.fit(shapes, out=tmp_path / "run", **TINY, seeds=3)
    told = found.facts["seeds"]
    assert [one["seed"] for one in told["runs"]] == [0, 1, 2]
    accuracies = [one["accuracy"] for one in told["runs"]]
    assert told["mean"] == pytest.approx(np.mean(accuracies)) and told["sd"] == pytest.approx(
        np.std(accuracies, ddof=1)
    )
    first = (found.folder / "splits.csv").read_text()
    for seed in (1, 2):
        assert (found.folder / "seeds" / str(seed) / "splits.csv").read_text() == first
    histories = {(folder / "history.jsonl").read_text() for folder in (found.folder, found.folder / "seeds" / "1")}
    assert len(histories) == 2  # another seed, another training
    assert "other seeds" in (found.folder / "report.html").read_text(encoding="utf-8")
    commands = [
        json.loads((found.folder / "seeds" / seed / "result.json").read_text())["command"] for seed in ("1", "2")
    ]
    assert ["--seed 1 " in commands[0], "--seed 2 " in commands[1]] == [True, True], commands
    again = api.fit(shapes, out=tmp_path / "run", **TINY, seeds=3)
    assert again.facts["seeds"] == told


def test_trainings_are_summed_up_with_their_own_kind_alone():
    """A run without time to train reports its frozen heads: no training, and no part of the spread between trainings."""

    def run(model, accuracy):
        return {"seed": 0, "accuracy": accuracy, "model": model}

    three = summed_up([run("tuned", 0.9), run("tuned", 0.8), run("probe", 0.1)])
    assert (three["model"], three["n"], three["mean"]) == ("tuned", 2, pytest.approx(0.85))
    frozen = summed_up([run("probe", 0.9), run("tuned", 0.1), run("probe", 0.9)])
    assert (frozen["model"], frozen["n"], frozen["mean"], frozen["sd"]) == ("probe", 2, pytest.approx(0.9), 0.0)
    mixed = summed_up([run("probe", 0.9), run("tuned", 0.1)])
    assert (mixed["model"], mixed["n"], mixed["mean"], mixed["sd"]) == (None, 0, None, None)


def test_seeds_of_frozen_heads_are_not_called_trainings(shapes, tmp_path):
    found = api.fit(shapes, out=tmp_path / "run", **{**TINY, "method": "probe", "image_size": 128}, seeds=2)
    assert (found.facts["seeds"]["model"], found.facts["seeds"]["n"]) == ("probe", 2)
    page = (found.folder / "report.html").read_text(encoding="utf-8")
    assert "With 2 of the seeds nothing was trained" in page and "the tuned model reached" not in page
    idle = [one["what"] for one in found.facts["decisions"] if one["what"].startswith("without effect")]
    assert idle and "--image-size" not in idle[0]  # which frozen heads see


def test_further_seeds_of_other_weights_are_no_same_training(shapes, tmp_path, monkeypatch):
    real = seeds.read_facts

    def other(path):
        facts = real(path)
        return (
            {**facts, "model": {**facts["model"], "sha256": path.name}} if path.parent.name == seeds.FOLDER else facts
        )

    monkeypatch.setattr(seeds, "read_facts", other)
    with pytest.raises(RunError, match="weights of the network changed since the first training"):
        api.fit(shapes, out=tmp_path / "run", **{**TINY, "method": "probe", "image_size": 128}, seeds=2)


def test_of_several_classes_the_seeds_tell_what_the_verdict_tells():
    facts = {"scores": {"probe": {"accuracy": {"value": 0.1}, "mean_average_precision": {"value": 0.9}}}}
    assert seeds_told(3, facts) == {"seed": 3, "accuracy": 0.9, "model": "probe"}


def test_further_seeds_choose_as_the_first_did_and_are_not_called_finished(shapes, tmp_path, monkeypatch):
    real, asked, lines = Evidence.of_frozen, [], Lines()

    def noted(probed, material):
        found = real(probed, material)
        asked.append(found.beside is not None)
        return found

    monkeypatch.setattr(Evidence, "of_frozen", noted)
    api.fit(shapes, out=tmp_path / "run", **TINY)
    result = tmp_path / "run" / "result.json"
    assert asked == [True]
    # As a death in the second training leaves it.
    monkeypatch.setattr(RunFolder, "begin", lambda *args, **kinds: None)
    api.fit(shapes, out=tmp_path / "run", **TINY, seeds=2, watcher=lines)
    assert asked == [True, True] and len(json.loads(result.read_text())["seeds"]["runs"]) == 2
    assert not any("nothing is left to do" in text for text in lines.said)


# ---- TensorBoard and MLflow --------------------------------------------------------------------------------------------


def test_tensorboard_reads_everything_back(run):
    events = EventAccumulator(str(run.folder / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    scalars, images = set(events.Tags()["scalars"]), set(events.Tags()["images"])
    assert {"train/loss", "train/gradient_norm", "val/accuracy", "learning_rate/head", "test/accuracy"} <= scalars
    assert {"train/views", "val/confusion", "test/confusion"} <= images
    assert len(events.Images("val/confusion")) == 2 and events.Scalars("train/gradient_norm")[0].value > 0
    folder = run.folder / "tensorboard"
    rows = (folder / "features.tsv").read_text().splitlines()
    assert len(rows) == len((folder / "labels.tsv").read_text().splitlines()) > 0
    assert "features.tsv" in (folder / "projector_config.pbtxt").read_text()


def test_the_projector_of_tensorboard_finds_the_features(run):
    from google.protobuf import text_format
    from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

    text = (run.folder / "tensorboard" / "projector_config.pbtxt").read_text()
    config = text_format.Parse(text, ProjectorConfig())
    (one,) = config.embeddings
    with Image.open(run.folder / "tensorboard" / one.sprite.image_path) as sheet:
        side = one.sprite.single_image_dim[0]
        count = len((run.folder / "tensorboard" / one.tensor_path).read_text().splitlines())
        assert (sheet.width // side) * (sheet.height // side) >= count


def test_board_serves_this_machine_alone(run, tmp_path):
    twin = tmp_path / "a" / run.folder.name
    shutil.copytree(run.folder / "tensorboard", twin / "tensorboard")
    spec = api.board([run.folder, twin])[api.board([run.folder, twin]).index("--logdir_spec") + 1]
    assert [one.partition(":")[0] for one in spec.split(",")] == [twin.name, f"{twin.name} (2)"], (
        "or one would not be shown"
    )
    twin.rename(tmp_path / "a,b")
    with pytest.raises(NotARun, match="no commas"):
        api.board([run.folder, tmp_path / "a,b"])
    command = api.board([run.folder], port=7007)
    assert command[:3] == [sys.executable, "-P", "-c"] and "tensorboard.main" in command[3]
    assert command[command.index("--host") + 1] == "127.0.0.1" and command[command.index("--port") + 1] == "7007"
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotARun, match="no TensorBoard events"):
        api.board([tmp_path / "empty"])


def test_board_runs_no_file_of_the_working_folder(run, tmp_path):
    for name in ("json.py", "numpy.py", "site.py", "tensorboard.py"):
        (tmp_path / name).write_text("raise SystemExit('a file of the working folder was run')")
    done = subprocess.run([*api.board([run.folder]), "--version_tb"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip()[0].isdigit(), done.stderr


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is another thing there")
def test_ctrl_c_while_tensorboard_starts_is_no_traceback(run):
    python, *rest = api.board([run.folder])
    with subprocess.Popen([python, "-X", "importtime", *rest], stderr=subprocess.PIPE, text=True) as starting:
        assert any("tensorboard" in line for line in iter(starting.stderr.readline, ""))  # it is being imported
        starting.send_signal(signal.SIGINT)
        said = starting.communicate(timeout=60)[1]
    assert starting.returncode == Interrupted.exit_code and "Traceback" not in said


class Onlooker:
    """A watcher that remembers what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def stage(self, name: str, *, total: int | None = None, detail: str = "") -> None:
        pass

    def advance(self, count: int) -> None:
        pass

    def say(self, text: str) -> None:
        self.said.append(text)


def test_mlflow_takes_a_run_where_it_is_there(run, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    from burnish.run.tracking import track

    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    onlooker = Onlooker()
    track(run.folder, run.facts, onlooker)
    if onlooker.said and "maintenance mode" in onlooker.said[0]:
        pytest.skip("this MLflow keeps no file store")
    assert onlooker.said == []
    (kept,) = mlflow.search_runs(experiment_names=["burnish"], output_format="list")
    assert kept.data.metrics["test/probe/accuracy"] == pytest.approx(run.facts["scores"]["probe"]["accuracy"]["value"])
    assert kept.data.params["model"] == "random:test_resnet"


def test_a_tracking_server_that_fails_costs_a_line_and_not_the_run(run, monkeypatch):
    from types import ModuleType

    from burnish.run import tracking

    fake = ModuleType("mlflow")

    def broken(name: str) -> None:
        raise ConnectionError("refused")

    fake.set_experiment = broken  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    monkeypatch.setattr(tracking, "wanted", lambda: True)
    onlooker = Onlooker()
    tracking.track(run.folder, run.facts, onlooker)
    assert onlooker.said == ["MLflow did not take the run (ConnectionError: refused)"]


def test_nothing_is_tracked_unasked(monkeypatch):
    from burnish.run import tracking

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert not tracking.wanted()
    assert os.environ.get("MLFLOW_TRACKING_URI") is None
