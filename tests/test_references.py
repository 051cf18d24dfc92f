"""Scores, intervals and p values against the libraries that statisticians use, to 1e-9.

The values of statsmodels 0.15.0 are written down here: proportion_confint(…, method="wilson"), mcnemar(…, exact=True) and
multipletests(…, method="holm").
"""

import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    f1_score,
    log_loss,
    roc_auc_score,
    top_k_accuracy_score,
)

from burnish.measure.bootstrap import Ranking, mean_interval
from burnish.measure.intervals import holm, paired, wilson
from burnish.measure.scores import score

WILSON = (
    (0, 7, 0.0, 0.3543304350666875),
    (1, 1, 0.2065493143772374, 1.0),
    (47, 50, 0.8378290831116182, 0.979385029651026),
    (997, 1000, 0.9912169859464969, 0.9989792161188614),
    (3, 9144, 0.00011158429504614953, 0.0009642387682410503),
    (250, 500, 0.4563412653024843, 0.5436587346975157),
)
MCNEMAR = (
    (0, 1, 1.0),
    (3, 9, 0.14599609375),
    (12, 12, 1.0),
    (41, 17, 0.0022325516199429235),
    (1, 30, 2.9802322387695312e-08),
)
HOLM = ((0.001, 0.04, 0.03, 0.2, 0.011, 0.8), (0.006, 0.12, 0.12, 0.4, 0.055, 0.8))


@pytest.mark.parametrize(("hits", "n", "low", "high"), WILSON)
def test_wilson_is_that_of_statsmodels_and_scipy(hits, n, low, high):
    found = wilson(hits, n)
    assert found.low == pytest.approx(low, abs=1e-9) and found.high == pytest.approx(high, abs=1e-9)
    theirs = binomtest(hits, n).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


@pytest.mark.parametrize(("only_first", "only_second", "p"), MCNEMAR)
def test_mcnemar_is_that_of_statsmodels(only_first, only_second, p):
    first = np.r_[np.ones(100 + only_first, bool), np.zeros(only_second + 50, bool)]
    second = np.r_[np.ones(100, bool), np.zeros(only_first, bool), np.ones(only_second, bool), np.zeros(50, bool)]
    assert paired(first, second).p == pytest.approx(p, rel=1e-9)


def test_holm_is_that_of_statsmodels():
    assert holm(list(HOLM[0])) == pytest.approx(HOLM[1], abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_those_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    k, n = 7, 500
    labels = rng.choice(k, n, p=rng.dirichlet(np.ones(k)) * 0.65 + 0.05)
    logits = rng.standard_normal((n, k)).round(1)
    logits[np.arange(n), labels] += 1.0
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    found, every = score(chances, labels, list("abcdefg")), list(range(k))
    answers = chances.argmax(1)
    assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, answers), abs=1e-9)
    assert found.macro_f1 == pytest.approx(f1_score(labels, answers, average="macro"), abs=1e-9)
    assert found.log_loss == pytest.approx(log_loss(labels, chances, labels=every), abs=1e-9)
    assert found.brier == pytest.approx(
        sum(brier_score_loss(labels == one, chances[:, one]) for one in every), abs=1e-9
    )
    assert found.auroc == pytest.approx(roc_auc_score(labels, chances, multi_class="ovr", labels=every), abs=1e-9)
    distinct = chances + 1e-9 * rng.random(chances.shape)  # equal ones are ordered otherwise there
    again = score(distinct / distinct.sum(1, keepdims=True), labels, list("abcdefg"))
    assert again.top5 is not None
    assert again.top5.value == pytest.approx(top_k_accuracy_score(labels, distinct, k=5, labels=every), abs=1e-9)
    ranking = Ranking(chances[:, 0], labels == 0)
    once = np.ones((1, n), np.float32)
    assert ranking.average_precision(once)[0] == pytest.approx(
        average_precision_score(labels == 0, chances[:, 0]), abs=1e-9
    )


def test_bootstrap_t_limits_hold_a_long_tailed_mean_where_percentiles_fall_short():
    rng = np.random.default_rng(0)
    held, short = [], []
    for seed in range(300):
        values = rng.exponential(1.0, 30)
        found = mean_interval(values, seed=seed)
        assert found.low < found.value == values.mean() < found.high <= values.max()
        held.append(found.low <= 1.0 <= found.high)
        plain = bootstrap((values,), np.mean, n_resamples=300, method="percentile", rng=seed).confidence_interval
        short.append(plain.low <= 1.0 <= plain.high)
    assert np.mean(held) > np.mean(short) + 0.015 and np.mean(held) > 0.92


def test_the_mean_of_equal_values_is_known_exactly():
    found = mean_interval(np.full(9, 0.25))
    assert (found.low, found.value, found.high) == (0.25, 0.25, 0.25)
    assert mean_interval(np.array([0.5])).n == 1


def test_what_lies_far_from_all_others_counts_in_the_limits_of_a_mean():
    """A third of the draws of 30 have not one of the far value, and no spread: they tell of the long side, and count."""
    found = mean_interval(np.array([0.0] * 29 + [5.0]))
    assert (found.low, found.value, found.high) == (0.0, pytest.approx(1 / 6), 5.0)
    mirrored = mean_interval(np.array([5.0] * 29 + [0.0]))
    assert (mirrored.low, mirrored.high) == (pytest.approx(0.0), pytest.approx(5.0))


@pytest.mark.parametrize("apart", [1e-6, 1e-8, 1e-11, 1e-16])
def test_values_that_differ_by_little_have_limits_like_any_others(apart):
    values = np.random.default_rng(0).random(30)
    there, here = mean_interval(2.0 + apart * values), mean_interval(values)
    assert there.low <= there.value <= there.high
    if apart > 1e-12:
        assert (there.low - 2.0) / apart == pytest.approx(here.low, rel=0.01)
        assert (there.high - 2.0) / apart == pytest.approx(here.high, rel=0.01)
