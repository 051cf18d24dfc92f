"""Choices between two models: the paired difference, and what else is known of the images."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from burnish.choose.evidence import Evidence, clearly_best
from burnish.labels import error_of_mean
from burnish.measure.gains import Beside, beats, gain_of


def drawn(seed: int, n: int = 80, of: int = 500) -> tuple[np.ndarray, Beside]:
    """Gains of a model that is good where the other is bad, on some of the images that the other is known on."""
    rng = np.random.default_rng(seed)
    hard = rng.beta(0.3, 3.0, of)  # what the simpler model lacks on each image
    gains = 0.8 * hard + rng.normal(0.0, 0.05, of) - 0.1
    rows = np.sort(rng.choice(of, n, replace=False))
    return gains[rows], Beside(1.0 - hard, rows)


def test_without_anything_beside_it_is_the_mean_and_its_error():
    gains = np.array([1.0, 0.0, 0.0, -1.0, 1.0, 1.0])
    found = gain_of(gains)
    assert found.difference == found.paired == gains.mean()
    assert found.error == pytest.approx(gains.std(ddof=1) / np.sqrt(6))


def test_the_error_of_counts_is_mcnemars_with_one_image_more():
    after, before = np.array([1, 1, 1, 0, 1, 1, 0], bool), np.array([0, 0, 1, 1, 1, 0, 0], bool)
    found = beats(after, before)
    assert found.difference == pytest.approx(2 / 7)
    assert found.error == pytest.approx(np.sqrt(3 + 1 + 1) / 7)
    assert not beats(np.array([True]), np.array([False])).clearly, "a single image decides nothing"
    assert not beats(np.zeros(0, bool), np.zeros(0, bool)).clearly


def test_what_is_known_of_all_images_makes_the_error_smaller_and_keeps_it_honest():
    hard = np.random.default_rng(0).beta(0.3, 3.0, 2_000_000).mean()
    truth, plain, better, told = 0.8 * hard - 0.1, [], [], []
    for seed in range(600):
        gains, beside = drawn(seed)
        found = gain_of(gains, beside)
        plain.append(found.paired - truth)
        better.append(found.difference - truth)
        told.append(found.error)
    assert np.std(better) < 0.6 * np.std(plain)
    assert abs(np.mean(better)) < 3.0 * np.std(better) / np.sqrt(600), "no bias"
    assert np.mean(told) == pytest.approx(np.std(better), rel=0.1)
    assert np.mean(np.abs(better) < told) == pytest.approx(0.68, abs=0.06)


def test_what_has_nothing_to_do_with_the_gains_changes_little():
    rng = np.random.default_rng(1)
    for _ in range(20):
        gains, beside = rng.normal(0.1, 1.0, 80), Beside(rng.random(500), np.arange(80))
        found = gain_of(gains, beside)
        assert abs(found.difference - found.paired) < found.error
        assert found.error == pytest.approx(gain_of(gains).error, rel=0.15)


@pytest.mark.parametrize("values", [np.ones(100), np.r_[np.ones(12), np.zeros(88)]])
def test_images_that_are_all_as_hard_change_nothing(values: np.ndarray):
    gains = np.arange(12.0)
    assert gain_of(gains, Beside(values, np.arange(12))) == gain_of(gains)


def test_few_images_are_taken_as_they_are():
    gains = np.array([0.1, 0.2, 0.4])
    assert gain_of(gains, Beside(np.arange(9.0) / 9, np.array([1, 4, 7]))) == gain_of(gains)


def test_a_model_that_is_right_where_it_is_hard_gains_where_the_compared_images_were_easier_than_most():
    before, after = np.r_[False, False, np.ones(38, bool)], np.ones(40, bool)
    after[20] = False  # two hard ones gained, an easy one lost
    told = np.r_[0.2, 0.3, np.full(38, 0.95), np.full(100, 0.95), np.full(30, 0.25)]  # of 170 images 32 are hard
    found = beats(after, before, Beside(told, np.arange(40)))
    assert found.paired == pytest.approx(1 / 40) and not beats(after, before).clearly
    assert found.difference > 0.1 and found.clearly


def test_a_single_image_decides_nothing():
    """Eleven of twelve are alike; the one that is told badly alone is gained."""
    told, gained = np.full(60, 0.89), np.zeros(12, bool)
    told[:12], told[0], gained[0] = 0.99, 0.1, True
    found = beats(gained | (np.arange(12) > 0), np.arange(12) > 0, Beside(told, np.arange(12)))
    assert not found.clearly


@pytest.mark.parametrize(("splits", "known"), [((None,) * 4, True), (("train", "train", "val", "val"), False)])
def test_validation_images_that_the_data_gives_are_not_taken_for_a_draw(splits: tuple, known: bool):
    logits = np.array([[2.0, 0.0], [0.0, 2.0]], np.float32)
    probed = SimpleNamespace(val_logits=logits, choice=SimpleNamespace(told=np.array([0.9, 0.8, 0.7, 0.6])))
    material = SimpleNamespace(
        labels=np.array([0, 1, 0, 1]),
        val_rows=np.array([2, 3]),
        catalog=SimpleNamespace(splits=splits, val_drawn=False),
        val_groups=None,
    )
    evidence = Evidence.of_frozen(probed, material)
    assert evidence.right.tolist() == [True, True]
    assert (evidence.beside is not None) == known


# ---- of images in groups --------------------------------------------------------------------------------------------------


def test_images_of_groups_of_one_are_images():
    rng = np.random.default_rng(2)
    gains, beside = drawn(3)
    before, after = rng.random(80) < 0.7, rng.random(80) < 0.8
    apart = rng.permutation(80)
    for known in (None, beside):
        assert gain_of(gains, known, apart).error == pytest.approx(gain_of(gains, known).error)
        assert gain_of(gains, known, apart).difference == pytest.approx(gain_of(gains, known).difference)
        assert beats(after, before, known, apart).error == pytest.approx(beats(after, before, known).error)


def test_copies_of_images_prove_no_more_than_the_images():
    rng = np.random.default_rng(4)
    before, after, groups = rng.random(40) < 0.7, rng.random(40) < 0.8, np.repeat(np.arange(40), 15)
    once, often = beats(after, before), beats(after.repeat(15), before.repeat(15), groups=groups)
    assert (often.difference, often.error) == pytest.approx((once.difference, once.error))
    gains = rng.normal(0.1, 1.0, 40)
    assert gain_of(gains.repeat(15), groups=groups).error == pytest.approx(gain_of(gains).error)
    assert error_of_mean(gains.repeat(15), groups) == pytest.approx(error_of_mean(gains)) == gains.std() / np.sqrt(40)


def test_a_single_group_decides_nothing():
    films = np.repeat(np.arange(6), 20)
    before, after = np.zeros(120, bool), films == 3
    assert beats(after, before).clearly and not beats(after, before, groups=films).clearly
    told = np.where(films == 3, 0.1, 0.9)  # and it is the hard one
    assert not beats(after, before, Beside(told, np.arange(120)), films).clearly
    one = np.zeros(120, int)
    assert not beats(~before, before, groups=one).clearly and not gain_of(np.ones(120), groups=one).clearly
    assert error_of_mean(after, one) == pytest.approx(after.std()), "worth one image"


def test_equal_models_are_told_apart_no_more_often_where_images_come_in_groups():
    """Twenty groups of ten; what one model gains on an image it mostly gains on all of its group."""
    groups, by_image, by_group, honest = np.repeat(np.arange(20), 10), 0, 0, []
    for seed in range(1000):
        rng = np.random.default_rng(seed)
        gains = rng.normal(0.0, 1.0, 20)[groups] + rng.normal(0.0, 0.5, 200)
        by_image += gain_of(gains).clearly
        found = gain_of(gains, groups=groups)
        by_group += found.clearly
        honest.append(found.error)
    assert by_image > 350 and by_group == pytest.approx(160, abs=35), "of 1,000: beyond one standard error on one side"
    assert np.mean(honest) == pytest.approx(np.sqrt((1.0 + 0.25 / 10) / 20), rel=0.05)


def test_the_choice_between_models_counts_groups_of_the_validation_images():
    """Ten films of eight frames; the tuned model is better on two of them, and worse on none."""
    films = np.repeat(np.arange(10), 8)
    frozen = np.where((films < 2)[:, None], [[-1.0, 1.0]], [[2.0, -2.0]]).astype(np.float32)
    tuned = np.full((80, 2), [2.0, -2.0], np.float32)

    def chosen(together):
        material = SimpleNamespace(
            labels=np.zeros(80, int),
            val_rows=np.arange(80),
            catalog=SimpleNamespace(splits=("train", "val"), val_drawn=False),
            val_groups=together,
        )
        probed = SimpleNamespace(val_logits=frozen)
        return Evidence.of(tuned, material).against(Evidence.of_frozen(probed, material))

    alone, by_film = chosen(None), chosen(films)
    assert by_film.right.error > 2.5 * alone.right.error
    assert alone.right.difference == by_film.right.difference == pytest.approx(0.2)


# ---- of several candidates ------------------------------------------------------------------------------------------------


def looked_at(right: list[int], losses: list[float]) -> Evidence:
    return Evidence(np.array(right, bool), np.array(losses, float))


def test_of_several_candidates_the_first_is_taken_unless_another_is_clearly_better():
    first = looked_at([1] * 24 + [0] * 8, [0.3] * 24 + [1.5] * 8)
    two_more = looked_at([1] * 26 + [0] * 6, [0.32] * 24 + [0.6, 0.6] + [1.5] * 6)  # two more right of 32
    one_more = looked_at([1] * 25 + [0] * 7, [0.3] * 25 + [1.5] * 7)
    assert clearly_best([first]) == 0
    assert clearly_best([first, one_more]) == 0, "a single image decides nothing, in log loss neither"
    assert clearly_best([first, two_more]) == 1
    assert clearly_best([first, one_more, two_more]) == 2


def test_fewer_right_are_never_taken_for_a_lower_loss():
    first = looked_at([1] * 40, [0.2] * 40)
    sharper = looked_at([1] * 38 + [0] * 2, [0.001] * 38 + [0.9] * 2)
    assert sharper.losses.mean() < first.losses.mean()
    assert clearly_best([first, sharper]) == 0


def test_a_count_is_never_turned_to_its_contrary_by_what_is_known_of_others():
    """Twenty images on which the frozen head is sure, of 144 with a few that it is not: tuned is worse on what both saw."""
    rng, turned = np.random.default_rng(0), 0
    for _ in range(400):
        told = rng.beta(60, 1, 144)
        hard = rng.random(144) < 0.03
        told[hard] = rng.uniform(0.05, 0.6, hard.sum())
        before, after = np.ones(144, bool), rng.random(144) < 0.8
        rows = rng.choice(144, 20, replace=False)
        turned += beats(after[rows], before[rows], Beside(told, rows)).difference > 0
    assert turned == 0


def test_a_slope_is_not_carried_far_from_where_it_was_seen():
    near, gains = np.linspace(0.98, 1.0, 20), np.linspace(-0.2, 0.1, 20)
    beside = Beside(np.r_[near, np.full(20, 0.2)], np.arange(20))
    assert gain_of(gains, beside) == gain_of(gains)
