"""Images that come in groups tell less than as many apart, and intervals and p say so."""

from __future__ import annotations

import csv
import itertools

import numpy as np
import pytest

import burnish
from burnish.errors import NotEnoughData
from burnish.measure.bootstrap import bootstrapped, mean_interval, paired_shares, resampled, share
from burnish.measure.grouped import chance_of_signs, images_worth, paired_of_groups, wilson_of_groups
from burnish.measure.intervals import paired, wilson
from burnish.measure.scores import score
from burnish.measure.verdict import Verdict, judge, judge_several
from burnish.record.answers import read_answers
from burnish.reports.runs import side_by_side
from burnish.reports.words import verdict_in
from conftest import write_shapes


@pytest.mark.parametrize("seed", range(20))
def test_the_chance_of_signs_is_that_of_all_of_them_counted(seed):
    sums = np.random.default_rng(seed).integers(-4, 5, 9)
    every = [abs(np.dot(signs, sums)) for signs in itertools.product((1, -1), repeat=len(sums))]
    assert chance_of_signs(sums) == pytest.approx(np.mean(np.array(every) >= abs(sums.sum())), abs=1e-12)


def test_groups_of_one_image_have_mcnemars_p_and_nearly_wilsons_limits():
    rng = np.random.default_rng(0)
    first, second, alone = rng.random(400) < 0.8, rng.random(400) < 0.85, np.arange(400)
    found, plain = paired_of_groups(first, second, alone), paired(first, second)
    assert found.p == pytest.approx(plain.p, abs=1e-12)
    assert (found.difference, found.only_first, found.only_second) == (
        plain.difference,
        plain.only_first,
        plain.only_second,
    )
    assert (found.low, found.high) == pytest.approx((plain.low, plain.high), abs=1e-3)
    one, other = wilson_of_groups(first, alone), wilson(int(first.sum()), 400)
    assert (one.value, one.low, one.high, one.n) == pytest.approx((other.value, other.low, other.high, 400), abs=1e-3)


def test_images_that_are_all_alike_in_a_group_are_worth_one_a_group():
    right = np.random.default_rng(1).random(50) < 0.7
    groups = np.repeat(np.arange(50), 20)
    worth = images_worth(np.repeat(right, 20).astype(float), groups)
    assert worth == pytest.approx(images_worth(right.astype(float), np.arange(50))) and 45 < worth <= 50
    assert images_worth(np.ones(1000), groups) == 50  # no spread to judge by
    found = wilson_of_groups(np.ones(1000, bool), groups)
    assert (found.value, found.n, found.high) == (1.0, 1000, 1.0)
    assert found.low == pytest.approx(wilson(50, 50).low)


def test_a_single_group_proves_nothing():
    first, second, one = np.zeros(300, bool), np.ones(300, bool), np.zeros(300, np.int64)
    found = judge(first, second, seconds=1.0, groups=one)
    assert found.word == "not proven" and found.paired.p == 1.0 and found.paired.low < 0.0
    assert judge(first, second, seconds=1.0).word == "better"
    assert share(second, one).low < 0.3
    loss = mean_interval(np.arange(4.0), groups=np.zeros(4, np.int64))
    assert (loss.low, loss.high) == (0.0, 3.0)


def test_intervals_hold_what_they_promise_where_images_agree_within_groups():
    """30 groups of 10, in each of which all but a tenth of the images are right or wrong together."""
    rng, held, alarms = np.random.default_rng(0), {True: [], False: []}, {True: [], False: []}
    groups = np.repeat(np.arange(30), 10)
    for _ in range(400):
        first, second, right = (
            np.where(rng.random(300) < 0.1, rng.random(300) < 0.8, (rng.random(30) < 0.8)[groups]) for _ in range(3)
        )
        for by in (True, False):
            one = share(right, groups if by else None)
            held[by].append(one.low <= 0.8 <= one.high)
            alarms[by].append(judge(first, second, seconds=0.0, groups=groups if by else None).word != "not proven")
    assert np.mean(held[False]) < 0.7 and np.mean(alarms[False]) > 0.3
    assert np.mean(held[True]) > 0.93 and np.mean(alarms[True]) < 0.06


def test_draws_are_of_whole_groups():
    groups = np.array([0, 0, 1, 2, 2, 2])
    found = resampled(lambda weights: {"one": weights[:, 0] - weights[:, 1], "all": weights.sum(1)}, 6, groups=groups)
    assert not found["one"].any() and set(found["all"]) > {3.0, 9.0}
    values = np.array([1.0, 1.0, 0.0, 0.5, 0.5, 0.5])
    by = bootstrapped(lambda weights: {"m": weights @ values / weights.sum(1)}, 6, groups=groups)["m"]
    assert len(by.without) == 3 and sorted(by.without) == pytest.approx(sorted([1.5 / 4, 3.5 / 5, 2 / 3]))
    soft = paired_shares(values, values[::-1].copy(), groups)
    assert soft.groups == 3 and share(values, groups).n == 6


def test_scores_of_groups_are_the_same_and_less_sure():
    rng = np.random.default_rng(0)
    labels = np.repeat(rng.integers(0, 3, 40), 10)
    logits = rng.standard_normal((40, 3)).repeat(10, 0) + 2.0 * np.eye(3)[labels]
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    apart, by = score(chances, labels, list("abc")), score(chances, labels, list("abc"), np.repeat(np.arange(40), 10))
    for name in ("balanced_accuracy", "macro_f1", "auroc", "log_loss", "brier"):
        one, other = apart.intervals[name], by.intervals[name]
        assert one.value == other.value and other.high - other.low > 2.0 * (one.high - one.low)
    assert by.accuracy.value == apart.accuracy.value and by.accuracy.low < apart.accuracy.low - 0.05


def test_several_classes_an_image_are_judged_by_group():
    rng = np.random.default_rng(0)
    labels = rng.random((10, 4)).repeat(12, 0) < 0.4
    probe, tuned = rng.random((10, 4)).repeat(12, 0), rng.random((10, 4)).repeat(12, 0)
    groups = np.repeat(np.arange(10), 12)
    by, apart = (judge_several(labels, probe, tuned + labels * 0.3, seconds=1.0, groups=one) for one in (groups, None))
    assert by.probe.high - by.probe.low > apart.probe.high - apart.probe.low
    assert by.groups == by.paired.groups == 10 and "paired bootstrap of groups" in by.sentence()


def test_the_verdict_says_so_and_comes_back(tmp_path):
    groups = np.repeat(np.arange(3), 4)
    found = judge(np.zeros(12, bool), np.arange(12) < 8, seconds=1.0, groups=groups)
    assert "12 test images of 3 groups" in found.sentence() and "exact test of groups p = " in found.sentence()
    assert "（3 组）" in verdict_in("zh", found) and "按组" in verdict_in("zh", found)
    assert Verdict.from_json(found.to_json()) == found
    old = {key: value for key, value in found.to_json().items() if key != "groups"}
    old["paired"] = {key: value for key, value in old["paired"].items() if key != "groups"}
    assert Verdict.from_json(old).groups is None


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A table whose images come in groups of four, and one without its groups."""
    root = tmp_path_factory.mktemp("grouped")
    write_shapes(root, images=24)
    for name in ("grouped", "plain"):
        with open(root / f"{name}.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "label", *(["group"] if name == "grouped" else [])])
            for path in sorted(root.glob("*/*.png")):
                group = f"{path.parent.name} {int(path.stem) // 4}"
                row = [path.relative_to(root).as_posix(), path.parent.name]
                writer.writerow([*row, *([group] if name == "grouped" else [])])
    return root


def test_a_run_on_grouped_images_is_proved_by_group(table, tmp_path, capsys):
    settings = {"model": "random:test_resnet", "budget": None, "epochs": 1, "image_size": 32, "method": "full"}
    run = burnish.fit(table / "grouped.csv", out=tmp_path / "run", baselines="all", **settings)
    verdict, told = run.verdict, read_answers(run.folder)
    count = len(set(told.groups))
    assert verdict.groups == count and verdict.probe.n == len(told.right) == 4 * count
    of = np.unique(told.groups, return_inverse=True)[1]
    kept = run.facts["scores"][run.facts["kept_role"]]["accuracy"]
    assert kept == pytest.approx(wilson_of_groups(told.right, of).to_json())
    assert {one["paired"]["groups"] for one in run.facts["baselines"]} == {count}
    found = burnish.evaluate(run.folder, table / "grouped.csv")
    assert found.groups == 18 and burnish.evaluate(run.folder, table / "plain.csv").groups is None
    rows, n = side_by_side([("a", run.facts, told), ("b", run.facts, told)])
    assert n == 4 * count and rows[1].difference["groups"] == count
    assert rows[0].accuracy.to_json() == pytest.approx(kept)

    held = run.predictor.bundle.held_out
    assert held is not None and np.bincount(held.groups).tolist() == [4] * (len(held) // 4)
    assert run.facts["declining"]["held_out_groups"] == len(held) // 4
    assert "each of which counts as one" in run.report.read_text(encoding="utf-8")

    plain = burnish.fit(table / "plain.csv", out=tmp_path / "plain", **settings)
    assert plain.predictor.bundle.held_out is not None and not len(plain.predictor.bundle.held_out.groups)
    assert plain.verdict.groups is None and read_answers(plain.folder).groups is None
    pages = [(one.folder / "report.html").read_text(encoding="utf-8") for one in (run, plain)]
    assert ["count images, not groups" in page for page in pages] == [True, False]


def test_images_that_are_all_of_one_group_are_refused_before_any_work(table, tmp_path, monkeypatch):
    rows = list(csv.reader((table / "grouped.csv").open(newline="")))
    with open(table / "one.csv", "w", newline="") as file:
        csv.writer(file).writerows([rows[0], *([path, label, "all"] for path, label, _ in rows[1:])])
    monkeypatch.setattr("burnish.choose.gathering.Reading", lambda *_, **__: pytest.fail("images were decoded"))
    with pytest.raises(NotEnoughData, match="the same group"):
        burnish.fit(table / "one.csv", out=tmp_path / "run", model="random:test_resnet", budget=None, epochs=1)
