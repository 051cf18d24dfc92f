"""Temperature, ECE and the reliability diagram."""

from __future__ import annotations

import numpy as np
import pytest

from burnish.errors import NotEnoughData
from burnish.measure.calibration import adaptive_ece, calibrated, ece, nats, reliability, temperature
from burnish.measure.intervals import wilson


def drawn(n: int, k: int, *, sharpness: float, seed: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Logits [n k] that are `sharpness` times too sharp for labels drawn from them."""
    rng = np.random.default_rng(seed)
    logits = 2.0 * rng.normal(size=(n, k))
    labels = (logits + rng.gumbel(size=(n, k))).argmax(axis=1)  # the Gumbel trick: a draw from the softmax
    return sharpness * logits, labels


@pytest.mark.parametrize("sharpness", [0.4, 1.0, 3.0])
def test_temperature_finds_how_much_too_sharp_the_logits_are(sharpness: float) -> None:
    logits, labels = drawn(6000, 6, sharpness=sharpness)
    assert temperature(logits, labels) == pytest.approx(sharpness, rel=0.05)


def test_temperature_is_the_minimum_of_the_loss() -> None:
    logits, labels = drawn(300, 4, sharpness=2.5)
    best = temperature(logits, labels)
    others = [nats(logits / (best * factor), labels) for factor in (0.8, 0.98, 1.02, 1.2)]
    assert nats(logits / best, labels) <= min(others)


@pytest.mark.parametrize("n", [1, 2, 3, 10, 50])
@pytest.mark.parametrize("seed", range(20))
def test_temperature_is_never_worse_than_none(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(size=(n, 3)) * 10 ** rng.uniform(-2, 2), rng.integers(0, 3, n)
    assert nats(logits / temperature(logits, labels), labels) <= nats(logits, labels)


def test_temperature_makes_the_calibration_error_smaller() -> None:
    logits, labels = drawn(4000, 5, sharpness=3.0)
    before, after = ece(calibrated(logits), labels), ece(calibrated(logits, temperature(logits, labels)), labels)
    assert after < 0.03 < 0.1 < before


def test_all_right_and_too_modest_is_sharpened_to_the_rule_of_succession() -> None:
    labels = np.arange(98) % 4
    logits = 3.0 * np.eye(4)[labels]  # confidence 0.87, right 98 times of 98
    cold = temperature(logits, labels)
    assert calibrated(logits, cold).max(axis=1) == pytest.approx(99 / 100, abs=1e-3)


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (np.zeros((0, 3)), np.zeros(0, int)),
        (np.zeros((5, 1)), np.zeros(5, int)),
        (np.zeros((5, 3)), np.arange(5) % 3),
        (np.full((5, 3), np.nan), np.arange(5) % 3),
    ],
    ids=["no images", "one class", "outputs that say nothing", "not a number"],
)
def test_what_cannot_be_fitted_is_left_as_it_is(logits: np.ndarray, labels: np.ndarray) -> None:
    assert temperature(logits, labels) == 1.0


@pytest.mark.parametrize("kind", ["always wrong", "by chance"])
def test_answers_that_are_no_better_than_chance_are_said_with_little_confidence(kind: str) -> None:
    rng = np.random.default_rng(0)
    logits, labels = 3.0 * rng.standard_normal((200, 10)), rng.integers(0, 10, 200)
    if kind == "always wrong":
        logits, labels = -9.0 * np.eye(3), np.arange(3)
    hot = temperature(logits, labels)
    assert hot > 10.0 and nats(logits / hot, labels) < nats(logits, labels)


def test_the_adaptive_error_does_not_depend_on_the_order_of_images_that_are_equally_sure() -> None:
    probabilities, labels = np.tile([0.8, 0.2], (150, 1)), (np.arange(150) >= 120).astype(int)
    assert adaptive_ece(probabilities, labels) == pytest.approx(0.0, abs=1e-9)
    assert adaptive_ece(probabilities, labels[::-1]) == pytest.approx(0.0, abs=1e-9)


def test_calibrated_rows_are_probabilities_even_of_huge_logits() -> None:
    rows = calibrated(np.array([[1e4, 0.0], [-1e4, 3.0]]), 0.5)
    assert np.isfinite(rows).all() and rows.sum(axis=1) == pytest.approx(1.0)


def test_reliability_rows_hold_every_image_once_and_their_means() -> None:
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [1.0, 0.0], [0.5, 0.5]])
    rows = reliability(probabilities, np.array([0, 1, 0, 0, 1]), bins=5)
    assert [row["n"] for row in rows] == [0, 0, 2, 1, 2]
    assert (rows[2]["confidence"], rows[2]["accuracy"]) == pytest.approx((0.55, 0.5))  # 0.6 is in the range it ends
    assert rows[0]["confidence"] is None and rows[0]["accuracy"] is None


def test_calibration_error_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    labels = np.array([0, 1, 0, 0])
    assert ece(probabilities, labels) == pytest.approx(0.5 * abs(0.5 - 0.9) + 0.5 * abs(1.0 - 0.6))


def test_perfect_certainty_has_no_calibration_error() -> None:
    assert ece(np.eye(3), np.arange(3)) == 0.0


def test_calibration_error_of_no_images_is_an_error() -> None:
    with pytest.raises(NotEnoughData):
        ece(np.zeros((0, 3)), np.zeros(0, int))


def test_limits_of_the_reliability_diagram_count_patients_and_not_their_images() -> None:
    """Of 200 images of 10 patients, each of whom is right or wrong as a whole; the truth is 80 %."""
    held = {True: 0, False: 0}
    for seed in range(200):
        rng = np.random.default_rng(seed)
        patient = np.repeat(np.arange(10), 20)
        right = (rng.random(10) < 0.8)[patient]
        for by_patient in held:
            groups = patient if by_patient else None
            rows = reliability(np.tile([0.8, 0.2], (200, 1)), np.where(right, 0, 1), groups=groups)
            ((low, high),) = [row["limits"] for row in rows if row["limits"] is not None]
            held[by_patient] += low <= 0.8 <= high
    assert held[False] < 0.6 * 200 and held[True] > 0.9 * 200


def test_limits_of_the_reliability_diagram_count_images_and_not_their_classes() -> None:
    labels = np.repeat([True] * 8 + [False] * 2, 5).reshape(10, 5)  # an image has all of five classes, or none
    (row,) = [row for row in reliability(np.full((10, 5), 0.8), labels) if row["n"]]
    assert row["n"] == 50 and row["accuracy"] == pytest.approx(0.8)
    as_images = wilson(8, 10)
    assert row["limits"][0] <= as_images.low and row["limits"][1] >= as_images.high
