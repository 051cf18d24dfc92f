"""The head on the last layer and the one on all depths, averaged where cross-validation likes that better."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from burnish.choose.decide import _head_in_words
from burnish.labels import cross_entropies, right
from burnish.methods import heads
from burnish.methods.heads import LINEAR_KINDS, HeadChoice, HeadKind, choose_head
from burnish.methods.pooled import mixed, pooled

WIDTH, DEEP, CLASSES = 24, 72, 6


def drawn(count, *, seed=0, noise=1.0, deep_noise=2.0):
    """Features [n d] whose first columns tell the class well, and the others too, but with noise of their own."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    centres = np.random.default_rng(7).normal(size=(CLASSES, DEEP))
    spread = np.where(np.arange(DEEP) < WIDTH, noise, deep_noise)
    return (centres[labels] + spread * 2.0 * rng.normal(size=(count, DEEP))).astype(np.float32), labels


def chosen(features, labels, **options) -> HeadChoice:
    return choose_head(features, labels, classes=CLASSES, seed=0, seconds_left=lambda: 1e9, **options)


def pair(features, labels, **options):
    return chosen(features[:, :WIDTH], labels, **options), chosen(features, labels, **options)


def test_two_linear_heads_are_one_linear_head():
    features, labels = drawn(120)
    last, deep = pair(features, labels)
    one = mixed(last.head, deep.head, 0.25)
    expected = 0.75 * last.head.logits(features[:, :WIDTH]) + 0.25 * deep.head.logits(features)
    assert one.width == DEEP and one.form == deep.head.form
    np.testing.assert_allclose(one.logits(features), expected, atol=1e-4)


def test_the_average_is_taken_where_cross_validation_likes_it_better_and_is_better_on_others():
    ahead = []
    for seed in range(5):
        features, labels = drawn(60, seed=seed)
        last, deep = pair(features, labels)
        found = pooled(last, deep, labels)
        if found is None:
            continue
        base = min(last, deep, key=lambda one: one.loss)
        assert found.loss < base.loss and found.accuracy >= base.accuracy and found.how.share in (0.25, 0.5)
        others, truth = drawn(3000, seed=100 + seed)
        before = base.head.logits(others[:, : base.head.width])
        ahead.append(cross_entropies(before, truth).mean() - cross_entropies(found.head.logits(others), truth).mean())
    assert len(ahead) >= 2 and np.mean(ahead) > 0


def test_what_is_told_of_it_is_what_it_says_out_of_fold():
    features, labels = drawn(60)
    found = pooled(*pair(features, labels), labels)
    assert found is not None and found.probabilities is not None
    np.testing.assert_allclose(found.probabilities.sum(1), 1.0, atol=1e-5)
    assert (right(found.probabilities, labels) == found.right).all()
    np.testing.assert_allclose(found.told, found.probabilities[np.arange(len(labels)), labels], rtol=1e-4)
    assert found.loss == pytest.approx(-np.log(found.told).mean(), rel=1e-4)


def test_fitted_anew_on_some_images_it_is_the_average_of_both_fitted_anew():
    features, labels = drawn(60)
    last, deep = pair(features, labels)
    found = pooled(last, deep, labels)
    rows = np.arange(0, 60, 2)
    expected = mixed(last.refit(rows), deep.refit(rows), found.how.share)
    assert (found.refit(rows).weight == expected.weight).all()


def test_no_average_where_all_depths_alone_are_better_by_far_or_the_two_are_no_linear_heads():
    features, labels = drawn(400, noise=8.0, deep_noise=0.5)
    assert pooled(*pair(features, labels), labels) is None
    features, labels = drawn(60)
    last, deep = pair(features, labels)
    assert pooled(last, replace(deep, probabilities=None), labels) is None
    assert pooled(last, chosen(features, labels, kinds=("knn",)), labels) is None
    assert pooled(*pair(features, labels, form="cosine"), labels) is None


def test_labels_with_several_classes_can_be_averaged_too():
    averaged = 0
    for seed in range(4):
        features, first = drawn(60, seed=seed, noise=0.6, deep_noise=1.2)
        labels = np.zeros((60, CLASSES), bool)
        labels[np.arange(60), first] = True
        labels[::3, 0] = True
        last, deep = pair(features, labels)
        base, found = min(last, deep, key=lambda one: one.loss), pooled(last, deep, labels)
        if found is not None:
            averaged += 1
            assert found.loss < base.loss and found.accuracy >= base.accuracy
            assert found.probabilities.shape == labels.shape and (found.probabilities <= 1).all()
    assert averaged == 4


# ---- LDA and logistic regression on the same features ----------------------------------------------------------------


def noisy(count, *, seed):
    """Images of which some lie far from what their class has in common, and of a fifth the label is wrong."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    centres = np.random.default_rng(7).normal(size=(CLASSES, 40))
    far = np.exp(0.6 * rng.normal(size=(count, 1)))
    wrong = rng.random(count) < 0.2
    features = (centres[labels] + far * rng.normal(size=(count, 40))).astype(np.float32)
    return features, np.where(wrong, (labels + rng.integers(1, CLASSES, count)) % CLASSES, labels)


@pytest.fixture(scope="module")
def kinds_averaged():
    """(the choice, LDA alone, logistic regression alone, features, labels) where the two kinds are averaged."""
    found = []
    for seed in range(8):
        features, labels = noisy(90, seed=seed)
        choice = chosen(features, labels)
        if choice.how.beside is not None:
            found.append(
                (choice, *(chosen(features, labels, kinds=(kind,)) for kind in LINEAR_KINDS), features, labels)
            )
    assert len(found) >= 3, "of eight sets"
    return found


def test_the_two_kinds_are_averaged_where_that_has_the_lower_cross_validated_loss(kinds_averaged):
    for choice, lda, logistic, features, labels in kinds_averaged:
        better = min(lda, logistic, key=lambda one: one.loss)
        assert choice.loss < better.loss and choice.accuracy >= better.accuracy
        expected = 0.5 * (lda.head.logits(features) + logistic.head.logits(features))
        np.testing.assert_allclose(choice.head.logits(features), expected, atol=1e-3)
        told = np.exp(-cross_entropies(np.log(choice.probabilities), labels))
        np.testing.assert_allclose(choice.told, told, rtol=1e-3)
        assert choice.loss == pytest.approx(-np.log(choice.told).mean(), abs=1e-4)


def test_their_average_is_better_on_images_that_none_has_seen(kinds_averaged):
    ahead = []
    for place, (choice, lda, logistic, *_) in enumerate(kinds_averaged):
        others, truth = noisy(3000, seed=200 + place)
        better = min(lda, logistic, key=lambda one: one.loss)
        before, now = (cross_entropies(one.head.logits(others), truth).mean() for one in (better, choice))
        ahead.append(before - now)
    assert np.mean(ahead) > 0


def test_their_average_is_fitted_again_and_read_back_as_it_was(kinds_averaged):
    choice, _, _, features, labels = kinds_averaged[0]
    anew = choice.how.fitted(features, labels, classes=CLASSES)
    np.testing.assert_array_equal(anew.logits(features), choice.head.logits(features))
    assert HeadKind.of(json.loads(json.dumps(asdict(choice.how)))) == choice.how
    plain = replace(choice.how, beside=None)
    known = asdict(plain)
    del known["beside"]  # as runs have it that began before
    assert HeadKind.of(known) == plain


def test_of_many_images_the_better_kind_is_taken_alone(kinds_averaged, monkeypatch):
    choice, lda, logistic, features, labels = kinds_averaged[0]
    monkeypatch.setattr(heads, "_FEW", len(labels))
    assert chosen(features, labels).how == min(lda, logistic, key=lambda one: one.loss).how != choice.how


def test_the_average_of_two_kinds_is_told_in_words():
    how = HeadKind("lda", 0.5, 3.0, beside=HeadKind("logistic", 0.1, 1.0))
    assert _head_in_words(how) == "half lda, strength 0.5, half logistic, strength 0.1"
    with_last = _head_in_words(replace(how, share=0.25))
    assert (
        with_last == "half lda, strength 0.5, half logistic, strength 0.1, averaged with 75% of the last layer's head"
    )
