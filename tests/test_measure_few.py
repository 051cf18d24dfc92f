"""What is said where few images, few groups, or few images of a class were tested."""

from __future__ import annotations

import numpy as np
import pytest

from burnish.measure.bootstrap import paired_shares, share
from burnish.measure.held_out import HeldOut, declining
from burnish.measure.intervals import percent
from burnish.measure.scores import score
from burnish.measure.several import score_several
from burnish.measure.verdict import judge, judge_several, points


def sure(answers, k=2, chance=0.9):
    """Probabilities [n k] that are for these answers."""
    return (1.0 - chance) / k + chance * np.eye(k)[np.asarray(answers)]


def several(n, rng, groups=None, gain=0.0):
    labels = np.zeros((n, 4), bool)
    while not labels.any(0).all():
        labels = rng.random((n, 4)) < 0.4
    models = []
    for _ in range(2):
        noise = 1.2 * rng.standard_normal((n, 4))
        noise += 0.0 if groups is None else 1.2 * rng.standard_normal((groups.max() + 1, 4))[groups]
        models.append(1.0 / (1.0 + np.exp(-(2.0 * labels - 1.0 + noise))))
    return labels, models[0], np.clip(models[1] + gain * (labels - 0.5), 1e-6, 1.0 - 1e-6)


def test_of_one_group_or_one_image_nothing_is_proven():
    groups = np.zeros(300, np.int64)
    verdict = judge_several(*several(300, np.random.default_rng(0), groups), seconds=1.0, groups=groups)
    assert verdict.word == "not proven" and verdict.paired.p == 1.0
    assert (verdict.probe.low, verdict.probe.high) == (0.0, 1.0)
    found = paired_shares(np.array([0.5]), np.array([1.0]))
    assert found.p == 1.0 and found.low <= 0.0 <= found.high
    assert (share(np.array([0.5])).low, share(np.array([0.5])).high) == (0.0, 1.0)


@pytest.mark.parametrize("groups, images", [(3, 20), (6, 20), (None, 5), (None, 12)])
def test_equal_models_of_several_classes_are_seldom_called_unlike_however_few_are_tested(groups, images):
    rng, called = np.random.default_rng(1), 0
    of = None if groups is None else np.repeat(np.arange(groups), images)
    for _ in range(60):
        made = several(images if of is None else len(of), rng, of)
        called += judge_several(*made, seconds=1.0, groups=of).word != "not proven"
    assert called <= 8  # of 60; 3 are meant, and 9 or more would come by chance once in 300 times


def test_a_model_that_is_better_in_every_group_is_found():
    rng, of = np.random.default_rng(2), np.repeat(np.arange(12), 20)
    words = [judge_several(*several(240, rng, of, gain=0.4), seconds=1.0, groups=of).word for _ in range(10)]
    assert words.count("better") >= 9


def test_a_class_of_three_images_that_are_all_right_leaves_much_open():
    truth = np.repeat([0, 1], [300, 3])
    answers = truth.copy()
    answers[:6] = 1
    found = score(sure(answers), truth, ("many", "few"))
    recall, f1 = found.intervals["balanced_accuracy"], found.intervals["macro_f1"]
    assert recall.value == pytest.approx(0.99, abs=0.001) and recall.low < 0.80
    assert f1.low < f1.value - 0.2
    assert found.intervals["auroc"].low < 0.80


def test_classes_of_many_images_are_as_sure_as_their_draws_say():
    rng = np.random.default_rng(3)
    truth = np.repeat(np.arange(4), 100)
    answers = np.where(rng.random(400) < 0.9, truth, (truth + 1) % 4)
    recall = score(sure(answers, 4), truth, "abcd").intervals["balanced_accuracy"]
    assert 0.04 < recall.high - recall.low < 0.08


def test_scarce_classes_leave_much_open_where_an_image_has_several():
    rng = np.random.default_rng(4)
    labels = np.stack([rng.random(300) < 0.5, np.arange(300) < 3], 1)
    chances = np.clip(labels * 0.8 + 0.1 + 0.05 * rng.standard_normal((300, 2)), 0.0, 1.0)
    found = score_several(chances, labels, ("many", "few"))
    for interval in (found.mean_average_precision, found.auroc, found.macro_f1):
        assert interval.low < 0.8 <= interval.value


@pytest.mark.parametrize("count", [1, 2, 4])
def test_mean_recall_of_few_groups_is_as_open_as_their_accuracy(count):
    rng, groups = np.random.default_rng(5), np.repeat(np.arange(count), 60)
    truth = np.tile(np.arange(4), 15 * count)
    right = rng.random(len(truth)) < np.linspace(0.75, 0.95, count)[groups]
    found = score(sure(np.where(right, truth, (truth + 1) % 4), 4), truth, "abcd", groups)
    recall, accuracy = found.intervals["balanced_accuracy"], found.accuracy
    assert recall.high - recall.low >= 0.5 * (accuracy.high - accuracy.low) > 0.05


def test_what_is_declined_follows_groups_and_counts_what_is_unlike_the_training_images():
    rng, groups = np.random.default_rng(6), np.repeat(np.arange(10), 30)
    truth = rng.integers(0, 2, 300)
    right = rng.random(300) < rng.beta(4.0, 0.5, 10)[groups]
    chances = sure(np.where(right, truth, 1 - truth))
    held_out = HeldOut.of(sure(np.zeros(300, np.int64)), np.zeros(300, np.int64))
    plain, by_group = declining(held_out, chances, truth), declining(held_out, chances, truth, groups=groups)
    for one, other in zip(plain["answers"], by_group["answers"], strict=True):
        assert one["answered"] == other["answered"] == 300
        assert other["accuracy"]["high"] - other["accuracy"]["low"] > one["accuracy"]["high"] - one["accuracy"]["low"]
    assert by_group["sets"][0]["covered"]["low"] <= plain["sets"][0]["covered"]["low"]
    strange = np.arange(300) < 120
    for one in declining(held_out, chances, truth, strange=strange, groups=groups)["answers"]:
        assert one["answered"] == one["accuracy"]["n"] == 180
    assert declining(held_out, chances, truth, strange=np.ones(300, bool))["answers"][0]["answered"] == 0


def test_no_share_or_difference_is_rounded_to_a_whole_one_or_to_nothing():
    assert (percent(2999 / 3000), percent(1 / 3000), percent(1.0)) == ("99.9 %", "0.1 %", "100.0 %")
    assert [points(one) for one in (0.0, 0.0004, -0.00002, 0.012, -0.11)] == [
        "+0.0",
        "+0.04",
        "-0.002",
        "+1.2",
        "-11.0",
    ]
    first, second = np.ones(50_000, bool), np.ones(50_000, bool)
    first[:22] = second[22:24] = False
    said = judge(first, second, seconds=1.0).sentence()
    assert "(+0.04 points, 95 % interval +0.0" in said and "+0.0 to" not in said


def test_the_verdict_and_the_table_tell_one_interval_of_several_classes():
    rng = np.random.default_rng(3)
    labels = np.stack([rng.random(60) < 0.5, np.arange(60) % 20 == 0], 1)  # of one class three images alone
    chances = np.clip(labels * 0.4 + rng.random((60, 2)) * 0.6, 0, 1)
    verdict = judge_several(labels, chances, chances[::-1].copy(), seconds=1.0)
    table = score_several(chances, labels, classes=["a", "b"]).mean_average_precision
    assert (verdict.probe.low, verdict.probe.high) == pytest.approx((table.low, table.high))
    assert verdict.probe.high - verdict.probe.low > 0.3
