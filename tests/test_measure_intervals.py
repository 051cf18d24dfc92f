"""Intervals and paired comparisons: against published numbers, against scipy, and by simulated coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from burnish.errors import NotEnoughData
from burnish.measure.intervals import Interval, paired, wilson

COVERAGE_TOLERANCE = 0.015


def pairs(both: int, only_first: int, only_second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    first = np.repeat([True, True, False, False], [both, only_first, only_second, neither])
    second = np.repeat([True, False, True, False], [both, only_first, only_second, neither])
    return first, second


def test_wilson_gives_the_limits_that_newcombe_1998_prints_for_81_of_263() -> None:
    interval = wilson(81, 263)
    assert interval.value == 81 / 263
    assert (round(interval.low, 4), round(interval.high, 4)) == (0.2553, 0.3662)


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (1, 1), (0, 20), (20, 20), (3, 7), (1541, 1562)])
def test_wilson_agrees_with_scipy(hits: int, n: int) -> None:
    expected = binomtest(hits, n).proportion_ci(0.95, method="wilson")
    interval = wilson(hits, n)
    assert interval.low == pytest.approx(expected.low, abs=1e-12)
    assert interval.high == pytest.approx(expected.high, abs=1e-12)


def test_no_images_leave_a_share_unknown() -> None:
    interval = wilson(0, 0)
    assert math.isnan(interval.value)
    assert (interval.low, interval.high, interval.n) == (0.0, 1.0, 0)
    assert interval.to_json()["value"] is None
    assert math.isnan(Interval.from_json(interval.to_json()).value)


@pytest.mark.parametrize(("hits", "n"), [(-1, 3), (4, 3)])
def test_impossible_counts_are_refused(hits: int, n: int) -> None:
    with pytest.raises(ValueError, match="expected 0 <= hits <= n"):
        wilson(hits, n)


@pytest.mark.parametrize("share", [0.6, 0.9, 0.97])
def test_wilson_covers_the_truth_in_95_of_100_samples(share: float) -> None:
    hits = np.random.default_rng(7).binomial(300, share, size=4000)
    limits = {int(one): wilson(int(one), 300) for one in np.unique(hits)}
    covered = np.mean([limits[int(one)].low <= share <= limits[int(one)].high for one in hits])
    assert covered == pytest.approx(0.95, abs=COVERAGE_TOLERANCE)


def test_paired_interval_gives_the_limits_that_newcombe_1998_prints() -> None:
    first, second = pairs(36, 2, 12, 0)
    result = paired(first, second)
    assert result.difference == pytest.approx(0.2)
    assert (round(result.low, 4), round(result.high, 4)) == (0.0569, 0.3404)
    assert (result.only_first, result.only_second, result.n) == (2, 12, 50)


@pytest.mark.parametrize("cells", [(0.80, 0.03, 0.10, 0.07), (0.90, 0.02, 0.03, 0.05), (0.40, 0.20, 0.20, 0.20)])
def test_paired_interval_covers_the_truth_in_95_of_100_samples(cells: tuple[float, ...]) -> None:
    tables = np.random.default_rng(11).multinomial(400, cells, size=2000)
    truth = cells[2] - cells[1]
    results = [paired(*pairs(*(int(cell) for cell in table))) for table in tables]
    assert np.mean([one.low <= truth <= one.high for one in results]) == pytest.approx(0.95, abs=COVERAGE_TOLERANCE)


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 5), (5, 0), (3, 9), (20, 20), (1, 30)])
def test_mcnemar_p_is_the_binomial_test_on_the_disagreements(only_first: int, only_second: int) -> None:
    result = paired(*pairs(50, only_first, only_second, 4))
    assert result.p == pytest.approx(binomtest(only_second, only_first + only_second, 0.5).pvalue, rel=1e-12)


def test_mcnemar_keeps_its_five_percent_when_nothing_differs() -> None:
    tables = np.random.default_rng(13).multinomial(300, (0.8, 0.06, 0.06, 0.08), size=1500)
    false_alarms = np.mean([paired(*pairs(*(int(cell) for cell in table))).p < 0.05 for table in tables])
    assert 0.01 < false_alarms <= 0.05 + 0.01  # the exact test is on the safe side


@pytest.mark.parametrize("both", [0, 17, 40])
def test_equal_answers_give_no_difference_and_p_one(both: int) -> None:
    result = paired(*pairs(both, 0, 0, 40 - both))
    assert (result.difference, result.p) == (0.0, 1.0)
    assert result.low < 0.0 < result.high or result.low == result.high == 0.0


@pytest.mark.parametrize("cells", [(0, 0, 1, 0), (0, 9, 0, 0), (1, 0, 0, 0), (0, 3, 3, 0), (30, 0, 1, 0)])
def test_paired_limits_stay_within_minus_one_and_one_around_the_difference(cells: tuple[int, ...]) -> None:
    result = paired(*pairs(*cells))
    assert -1.0 <= result.low <= result.difference <= result.high <= 1.0


def test_swapping_the_models_turns_the_interval_round() -> None:
    first, second = pairs(60, 4, 11, 5)
    there, back = paired(first, second), paired(second, first)
    assert (back.difference, back.p) == (-there.difference, there.p)
    assert (back.low, back.high) == pytest.approx((-there.high, -there.low))


def test_paired_without_images_says_what_is_missing() -> None:
    with pytest.raises(NotEnoughData, match="no test images to compare"):
        paired(np.zeros(0, bool), np.zeros(0, bool))


def test_paired_refuses_different_images() -> None:
    with pytest.raises(ValueError, match="two of the same"):
        paired(np.ones(3, bool), np.ones(4, bool))
