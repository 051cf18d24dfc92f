"""Scores: against scikit-learn, with absent classes, and on outputs that are none."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from sklearn import metrics

from burnish.errors import DataError, ModelError, NotEnoughData
from burnish.labels import right
from burnish.measure.scores import matrix_from, score

EXACT = 1e-12


def sample(n: int, k: int, *, label_classes: int | None = None) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Probabilities, labels (of the first `label_classes` classes only) and names."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, label_classes or k, n)
    logits = rng.normal(size=(n, k)) + 2.0 * np.eye(k)[labels]
    exponentials = np.exp(logits)
    return exponentials / exponentials.sum(axis=1, keepdims=True), labels, [f"class {i}" for i in range(k)]


@pytest.mark.parametrize(("k", "label_classes"), [(2, 2), (3, 3), (10, 10), (10, 7), (40, 31)])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_score_equals_scikit_learn(k: int, label_classes: int) -> None:
    probabilities, labels, names = sample(500, k, label_classes=label_classes)
    predictions, every = probabilities.argmax(axis=1), np.arange(k)
    ours = score(probabilities, labels, names)
    assert ours.accuracy.value == pytest.approx(metrics.accuracy_score(labels, predictions), abs=EXACT)
    assert ours.balanced_accuracy == pytest.approx(metrics.balanced_accuracy_score(labels, predictions), abs=EXACT)
    assert ours.macro_f1 == pytest.approx(metrics.f1_score(labels, predictions, average="macro"), abs=EXACT)
    assert ours.log_loss == pytest.approx(metrics.log_loss(labels, probabilities, labels=every), abs=EXACT)
    assert ours.brier == pytest.approx(np.mean(np.sum((probabilities - np.eye(k)[labels]) ** 2, axis=1)), abs=EXACT)
    assert np.array_equal(ours.confusion, metrics.confusion_matrix(labels, predictions, labels=every))
    precision, recall, _, counts = metrics.precision_recall_fscore_support(
        labels, predictions, labels=every, zero_division=np.nan
    )
    assert [one.n for one in ours.per_class] == counts.tolist()
    assert np.allclose([one.precision for one in ours.per_class], precision, atol=EXACT, rtol=0, equal_nan=True)
    assert np.allclose([one.recall.value for one in ours.per_class], recall, atol=EXACT, rtol=0, equal_nan=True)


def test_top_five_equals_scikit_learn_and_is_absent_up_to_five_classes() -> None:
    probabilities, labels, names = sample(400, 12)
    expected = metrics.top_k_accuracy_score(labels, probabilities, k=5, labels=np.arange(12))
    ours = score(probabilities, labels, names).top5
    assert ours is not None
    assert ours.value == pytest.approx(expected, abs=EXACT)
    probabilities, labels, names = sample(50, 5)
    assert score(probabilities, labels, names).top5 is None


def test_equal_probabilities_rank_as_argmax_has_them() -> None:
    probabilities, labels = np.full((6, 6), 1 / 6), np.arange(6)
    scores = score(probabilities, labels, list("abcdef"))
    assert scores.accuracy.value == pytest.approx(1 / 6)
    assert scores.top5 is not None and scores.top5.value == pytest.approx(5 / 6)


def test_a_class_without_images_has_an_unknown_recall_and_counts_in_no_mean_of_recalls() -> None:
    scores = score(np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), np.array([0, 1]), ["a", "b", "absent"])
    absent = scores.per_class[2]
    assert math.isnan(absent.recall.value) and math.isnan(absent.precision) and absent.n == 0
    assert (scores.balanced_accuracy, scores.macro_f1, scores.accuracy.value) == (1.0, 1.0, 1.0)


def test_a_wrong_certainty_costs_a_finite_loss() -> None:
    assert score(np.array([[1.0, 0.0]]), np.array([1]), ["a", "b"]).log_loss == pytest.approx(36.04, abs=0.01)


def test_scores_are_json_without_not_a_number() -> None:
    probabilities, labels, names = sample(60, 8, label_classes=4)
    values = json.loads(json.dumps(score(probabilities, labels, names).to_json(), allow_nan=False))
    assert values["per_class"][7]["recall"]["value"] is None
    assert np.sum(values["confusion"]) == values["n"] == 60
    assert set(values["per_class"][0]) == {"name", "n", "hits", "predicted", "recall", "precision"}


def test_float32_probabilities_are_scored_like_float64() -> None:
    probabilities, labels, names = sample(200, 6)
    assert score(probabilities.astype(np.float32), labels, names).log_loss == pytest.approx(
        score(probabilities, labels, names).log_loss, abs=1e-6
    )


def test_right_says_image_by_image_what_accuracy_counts() -> None:
    probabilities, labels, names = sample(100, 4)
    assert right(probabilities, labels).mean() == score(probabilities, labels, names).accuracy.value


@pytest.mark.parametrize("bad", [[math.nan, 0.5], [1.5, -0.5], [0.3, 0.3], [math.inf, 0.0]])
def test_outputs_that_are_no_probabilities_are_an_error_and_not_a_score(bad: list[float]) -> None:
    with pytest.raises(ModelError, match=r"outputs for 1 of 2 images are not probabilities \(the first is image 1\)"):
        score(np.array([[0.5, 0.5], bad]), np.array([0, 1]), ["a", "b"])


def test_labels_outside_the_classes_are_an_error() -> None:
    with pytest.raises(DataError, match="labels go from 0 to 2, expected 0 to 1"):
        score(np.full((2, 2), 0.5), np.array([0, 2]), ["a", "b"])


def test_no_images_are_an_error() -> None:
    with pytest.raises(NotEnoughData, match="no images to score"):
        score(np.zeros((0, 2)), np.zeros(0, int), ["a", "b"])


def test_shapes_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match="for 3 classes"):
        score(np.full((2, 2), 0.5), np.array([0, 1]), ["a", "b", "c"])


def test_the_matrix_of_very_many_classes_is_kept_by_its_cells():
    classes = 600
    rng = np.random.default_rng(0)
    labels = np.arange(classes)
    chances = np.full((classes, classes), 0.4)
    chances[labels, np.where(rng.random(classes) < 0.5, labels, 7)] = 600.0
    chances /= chances.sum(1, keepdims=True)
    found = score(chances, labels, [f"c{number}" for number in labels])
    plain = json.loads(json.dumps(found.to_json()["confusion"]))
    assert plain["classes"] == classes and len(plain["cells"]) == classes
    np.testing.assert_array_equal(matrix_from(plain), found.confusion)
    few = score(np.eye(3)[[0, 1, 1]], np.array([0, 1, 2]), ["a", "b", "c"])
    np.testing.assert_array_equal(matrix_from(few.to_json()["confusion"]), few.confusion)


def test_scores_of_images_that_are_all_right_are_not_certain():
    """Draws of four right answers are four right answers: what is not known of a fifth must still be said."""
    found = score(np.eye(2)[[0, 0, 1, 1]] * 0.8 + 0.1, np.array([0, 0, 1, 1]), ("a", "b"))
    for name, interval in found.intervals.items():
        if interval.value == 1.0:
            assert (interval.low, interval.high) == (pytest.approx(0.510, abs=1e-3), 1.0), name
    assert found.intervals["auroc"].value == 1.0
