"""Folds of cross-validation: what belongs together is left out together, and what cannot be asked is not counted."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import burnish
from burnish.choose import probing
from burnish.choose.evidence import Evidence
from burnish.labels import cross_entropies
from burnish.methods.folds import Folds, fold_numbers
from burnish.methods.heads import HeadKind, choose_head
from burnish.methods.pooled import pooled


def choose(features, labels, **more):
    return choose_head(
        features, labels, classes=int(labels.max()) + 1, seed=0, **{"seconds_left": lambda: float("inf"), **more}
    )


def filmed(classes=5, groups=8, frames=6, d=24, seed=0):
    """Features of frames: those of one film are nearly the same, and tell little of their class."""
    rng = np.random.default_rng(seed)
    centre = rng.normal(size=(classes, d))
    film = centre[:, None] + 3.0 * rng.normal(size=(classes, groups, d))
    features = film[:, :, None] + 0.05 * rng.normal(size=(classes, groups, frames, d))
    labels = np.repeat(np.arange(classes), groups * frames)
    together = np.repeat(np.arange(classes * groups), frames)
    return features.reshape(-1, d).astype(np.float32), labels, together


def clusters(classes, each, d=32, spread=1.0, seed=1):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), each)
    features = rng.normal(size=(classes, d))[labels] * 2 + spread * rng.normal(size=(len(labels), d))
    return features.astype(np.float32), labels


def test_images_that_belong_together_are_in_one_fold_and_folds_stay_even():
    _, labels, together = filmed()
    fold = fold_numbers(labels, folds=4, seed=0, together=together)
    assert all(len(np.unique(fold[together == one])) == 1 for one in np.unique(together))
    assert all((np.bincount(fold[labels == label], minlength=4) == 12).all() for label in range(5))


def test_single_images_level_what_sets_of_images_left():
    labels = np.zeros(20, np.int64)
    together = np.concatenate([np.zeros(5, np.int64), np.arange(1, 16)])
    fold = fold_numbers(labels, folds=4, seed=0, together=together)
    assert (np.bincount(fold) == 5).all() and len(np.unique(fold[:5])) == 1


def test_without_ties_every_image_is_drawn_by_itself():
    labels = np.repeat(np.arange(7), 9)
    alone = fold_numbers(labels, folds=5, seed=2, together=np.arange(63))
    assert (alone == fold_numbers(labels, folds=5, seed=2)).all()
    sizes = [np.bincount(alone[labels == label], minlength=5) for label in range(7)]
    assert all(one.max() - one.min() <= 1 for one in sizes) and np.ptp(np.bincount(alone)) <= 1


@pytest.mark.parametrize("kinds", [("lda", "logistic"), ("knn",)])
def test_cross_validation_of_films_tells_what_new_films_show(kinds):
    features, labels, together = filmed()
    new, new_labels, _ = filmed(groups=80, frames=1)  # of the same classes: their centres are drawn first
    blind = choose(features, labels, kinds=kinds)
    seeing = choose(features, labels, kinds=kinds, together=together)
    true = (seeing.head.logits(new).argmax(1) == new_labels).mean()
    assert blind.accuracy > 0.95  # from other frames of the same film
    assert abs(seeing.accuracy - true) < 0.2 and true < 0.7


def test_a_rare_class_does_not_cut_the_folds_of_all_others():
    labels = np.concatenate([np.repeat(np.arange(4), 50), [4], [5, 5]])
    drawn = Folds.drawn(labels, classes=6, seed=0)
    assert len(drawn.held) == 5
    assert np.flatnonzero(~drawn.counted).tolist() == [200]  # of two images one is left to learn from


def test_single_images_tell_nothing_of_themselves_and_take_nothing_from_the_others():
    features, labels = clusters(20, 15)
    singles, own = clusters(20, 1, seed=9)
    whole = np.concatenate([features, singles]), np.concatenate([labels, own + 20])
    alone, beside = choose(features, labels), choose(*whole)
    assert beside.alone == 0 and beside.asked == 320 and beside.instead == 20
    assert "20 for classes of one image" in beside.words
    assert alone.accuracy - beside.right[:300].mean() < 0.02
    assert beside.counted.tolist() == [True] * 300 + [False] * 20
    # What left-out heads said of the others names none of the classes that they had not seen in that fold.
    assert np.isfinite(cross_entropies(np.log(beside.probabilities[:300] + 1e-30), labels)).all()


def test_classes_cut_to_one_image_stand_for_those_that_have_no_more():
    labels = np.concatenate([np.repeat(np.arange(5), 6), np.arange(5, 12)])
    together = np.arange(len(labels))
    together[1] = together[0]  # a near-duplicate
    drawn = Folds.drawn(labels, classes=12, seed=0, together=together)
    assert drawn.judged.all() and (~drawn.counted).sum() == 7 and len(drawn.cuts) == 2
    assert sorted(np.concatenate([cut.alone for cut in drawn.cuts])) == list(range(30, 37))
    for cut in drawn.cuts:
        counts = np.bincount(labels[cut.shown], minlength=12)
        assert (counts[5:] == 1).all() and set(counts[:5]) == {1, 6}, "all classes are shown, some of them by one image"
        assert (counts[labels[cut.instead]] == 1).all() and not np.isin(cut.instead, cut.shown).any()
        assert not np.isin(together[cut.instead], together[cut.shown]).any()
    assert not Folds.drawn(labels[:30], classes=5, seed=0).cuts, "only where a class has no more"


@pytest.mark.parametrize("kinds", [("lda", "logistic"), ("lda",)])
def test_a_few_large_classes_do_not_take_the_images_of_all_that_have_one(kinds):
    """Three classes of 30 images and twelve of one: what chose a head by the 90 alone was right on 12 and 0 % of the others' images."""
    rng = np.random.default_rng(4)
    centre = rng.normal(size=(15, 400))
    labels = np.concatenate([np.repeat(np.arange(3), 30), np.arange(3, 15)])

    def drawn(labels):
        return (centre[labels] + 2.0 * rng.normal(size=(len(labels), 400))).astype(np.float32)

    choice = choose(drawn(labels), labels, kinds=kinds)
    few, shares = np.repeat(np.arange(3, 15), 20), np.repeat(labels, 10)
    assert (choice.head.logits(drawn(few)).argmax(1) == few).mean() > 0.6
    new = (choice.head.logits(drawn(shares)).argmax(1) == shares).mean()
    assert abs(choice.accuracy - new) < 3 * choice.standard_error + 0.03, "what is said of it holds"


@pytest.mark.parametrize(
    ("kinds", "most"), [(("lda", "logistic"), 2.6), (("lda",), 3.0), (("logistic",), 2.6), (("knn",), 3.0)]
)
def test_one_image_a_class_makes_a_head_that_is_useful_and_not_certain(kinds, most):
    features, labels = clusters(20, 1, spread=0.0)
    new, true = clusters(20, 30)
    choice = choose(features, labels, kinds=kinds)
    assert choice.asked == 0 and "not cross-validated" in choice.words and not choice.right.any()
    logits = choice.head.logits(new)
    assert (logits.argmax(1) == true).mean() > 0.8
    assert cross_entropies(logits, true).mean() < most
    assert np.isfinite(choice.loss)


def test_one_group_that_has_all_of_a_class_is_not_counted():
    features, labels, together = filmed(classes=3, groups=3)
    together[labels == 2] = together[labels == 2][0]
    drawn = Folds.drawn(labels, classes=3, seed=0, together=together)
    assert (drawn.counted == (labels != 2)).all()
    choice = choose(features, labels, together=together)
    assert choice.alone == 0 and choice.instead == (labels == 2).sum()


def test_heads_of_two_depths_are_averaged_by_the_images_that_count():
    features, labels = clusters(12, 10, d=40, spread=3.0)
    labels = np.concatenate([labels, np.arange(12, 20)])
    features = np.concatenate([features, clusters(8, 1, d=40, seed=5)[0]])
    simple, deep = choose(features[:, :20], labels), choose(features, labels)
    found = pooled(simple, deep, labels)
    assert found is None or (found.instead == 8 and found.loss < min(simple.loss, deep.loss))
    lone, other = np.arange(6), clusters(6, 1)[0]
    assert pooled(choose(other[:, :8], lone), choose(other, lone), lone) is None


def test_neighbours_end_their_search_by_the_clock():
    features, labels = clusters(10, 120)
    late, all_of_it = (
        choose(features, labels, kinds=("knn",), seconds_left=lambda: 0.0),
        choose(features, labels, kinds=("knn",)),
    )
    assert late.probabilities.shape == (1200, 10) and abs(late.accuracy - all_of_it.accuracy) < 0.02
    assert late.how.kind == "knn" and isinstance(late.how, HeadKind)


def test_the_standard_error_of_films_is_of_films():
    features, labels, together = filmed(groups=12)
    found, alone = choose(features, labels, together=together), choose(features, labels)
    by_image = found.right.std() / np.sqrt(len(labels))
    assert alone.standard_error == pytest.approx(alone.right.std() / np.sqrt(len(labels)))
    assert 1.5 * by_image < found.standard_error < 0.5 / np.sqrt(60), "six frames of a film are nearly one"
    assert f"{found.standard_error:.1%}" in found.words


def write_films(folder):
    """A table of 48 images of 12 films, of which two have a picture in common."""
    rng = np.random.default_rng(0)
    lines, blot = ["path,label,group"], None
    for number in range(48):
        film, label = number // 4, "ab"[(number // 4) % 2]
        pixels = rng.integers(0, 255, (40, 40, 3), np.uint8)
        if number in (0, 8):  # one picture in two films of a class
            blot = pixels if blot is None else blot
            pixels = blot
        Image.fromarray(pixels).save(folder / f"{number}.png")
        lines.append(f"{number}.png,{label},film{film}")
    (folder / "labels.csv").write_text("\n".join(lines))
    return folder / "labels.csv"


def test_a_tuned_model_is_judged_by_the_films_of_the_validation_images(tmp_path, monkeypatch):
    asked, real = [], Evidence.against

    def watched(self, simpler):
        asked.append((len(simpler.right), simpler.groups))
        return real(self, simpler)

    monkeypatch.setattr(Evidence, "against", watched)
    result = burnish.fit(
        write_films(tmp_path), model="random:test_resnet", method="full", epochs=1, image_size=64, budget=None,
        out=tmp_path / "run",
    )  # fmt: skip
    assert len(asked) > 3, "candidates against the first, and the tuned model against the frozen one"
    for count, groups in asked:
        assert count == result.facts["counts"]["val"] == len(groups)
        assert 0 < groups.max() + 1 <= count / 4


def test_a_run_leaves_groups_and_same_pictures_out_together(tmp_path, monkeypatch):
    seen = []

    def watched(features, labels, **how):
        seen.append((len(labels), how["together"]))
        return choose_head(features, labels, **how)

    monkeypatch.setattr(probing, "choose_head", watched)
    result = burnish.fit(
        write_films(tmp_path),
        model="random:test_resnet",
        method="probe",
        budget=None,
        out=tmp_path / "run",
        taps="off",
    )
    n, together = seen[-1]
    assert n == result.facts["counts"]["train"] + result.facts["counts"]["val"] and together is not None
    sizes = np.unique(together, return_counts=True)[1]
    assert set(sizes.tolist()) <= {4, 8}
