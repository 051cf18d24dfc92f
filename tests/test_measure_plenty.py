"""Scores of thousands of test images: limits without draws, in time that the plan knows."""

from types import SimpleNamespace

import numpy as np
import pytest

from burnish.choose.rates import page_seconds
from burnish.measure import bootstrap
from burnish.measure.bootstrap import Ranking, bootstrapped, mean_interval
from burnish.measure.scores import score
from burnish.measure.verdict import judge_several

K = 4


def answers(n, *, seed=0, strength=3.0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, K, n)
    logits = 1.5 * rng.normal(size=(n, K)) + strength * np.eye(K)[labels]
    chances = np.exp(logits - logits.max(1, keepdims=True))
    return chances / chances.sum(1, keepdims=True), labels


def test_limits_without_draws_are_about_those_with_draws(monkeypatch):
    chances, labels = answers(3200)
    plenty = score(chances, labels, list("abcd")).intervals
    monkeypatch.setattr(bootstrap, "_PLENTY", 10**9)
    drawn = score(chances, labels, list("abcd")).intervals
    for name in ("balanced_accuracy", "macro_f1", "auroc"):
        one, other = plenty[name], drawn[name]
        assert one.value == other.value and one.low < one.value < one.high
        assert (one.high - one.low) == pytest.approx(other.high - other.low, rel=0.35), name


def test_nothing_is_drawn_of_plenty(monkeypatch):
    monkeypatch.setattr(
        bootstrap, "resampled", lambda *_, **__: pytest.fail("draws of thousands of images take minutes")
    )
    chances, labels = answers(bootstrap._PLENTY)
    found = bootstrapped(lambda weights: {"m": weights @ (chances.argmax(1) == labels) / weights.sum(1)}, len(labels))[
        "m"
    ]
    share = (chances.argmax(1) == labels).mean()
    error = np.sqrt(share * (1 - share) / len(labels))
    limits = found.interval()
    assert found.value == pytest.approx(share) and (limits.high - limits.low) / 3.92 == pytest.approx(error, rel=0.25)


def test_a_score_of_plenty_that_is_whole_has_the_limit_of_as_many_images():
    found = bootstrapped(lambda weights: {"m": np.ones(len(weights))}, 5000)["m"].interval()
    assert found.value == found.high == 1.0 and 0.999 < found.low < 1.0


def test_equal_models_are_seldom_called_unlike_where_nothing_is_drawn():
    unlike = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        labels = rng.random((bootstrap._PLENTY, 2)) < 0.3
        probe, tuned = (np.clip(0.3 * labels + rng.random(labels.shape), 0, 1.3) / 1.3 for _ in range(2))
        unlike += judge_several(labels, probe, tuned, seconds=1.0).word != "not proven"
    assert unlike <= 5  # 1.5 are expected


def test_a_better_model_is_found_where_nothing_is_drawn():
    rng = np.random.default_rng(0)
    labels = rng.random((bootstrap._PLENTY, 2)) < 0.3
    noise = rng.random(labels.shape)
    probe, tuned = (np.clip(by * labels + noise, 0, 2) / 2 for by in (0.3, 0.5))
    found = judge_several(labels, probe, tuned, seconds=1.0)
    assert found.word == "better" and found.paired is not None and found.paired.p < 1e-3


@pytest.mark.parametrize("n", [3, 40])
def test_two_models_that_are_right_on_all_leave_open_what_their_number_leaves_open(n):
    labels = np.arange(2 * n).reshape(n, 2) % 3 == 0
    labels[0, :] = True
    perfect = labels.astype(float)
    found = judge_several(labels, perfect, perfect, seconds=1.0)
    assert found.word == "not proven" and found.paired is not None
    assert found.paired.low < -1 / (n + 4) and found.paired.high > 1 / (n + 4)


def test_many_of_a_kind_are_ordered_and_few_compared_to_the_same_area():
    rng = np.random.default_rng(0)
    scores, kind = np.round(rng.random(3000), 2), rng.random(3000) < 0.4
    ordered = Ranking(scores, kind)
    compared = Ranking(scores, kind)
    assert not ordered.compares
    compared.compares = True
    weights = rng.integers(0, 3, (5, 3000)).astype(np.float32)
    assert np.allclose(ordered.area(weights), compared.area(weights))
    assert np.allclose(ordered.average_precision(weights), compared.average_precision(weights))


def test_the_mean_of_a_million_losses_is_not_drawn_a_thousand_times(monkeypatch):
    drawn = []
    real = bootstrap.resampled
    monkeypatch.setattr(bootstrap, "resampled", lambda *given, **how: drawn.append(how["times"]) or real(*given, **how))
    mean_interval(np.random.default_rng(0).exponential(size=20_000))
    assert drawn == [500]


@pytest.mark.parametrize(("n", "k", "least"), [(10_000, 10, 1.5), (30_000, 50, 10.0), (300, 10, 0.0)])
def test_the_plan_knows_what_scores_take(n, k, least):
    material = SimpleNamespace(catalog=SimpleNamespace(classes=range(k)), several=False)
    seconds = page_seconds(material, n) - page_seconds(material, 0)
    assert least <= seconds < 3 * least + 0.1
