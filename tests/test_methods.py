"""The contract that every method keeps on every kind of backbone: being in METHODS is enough to be tested here."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from burnish.backbones.fold import fold_trainable
from burnish.backbones.zoo import load_backbone
from burnish.errors import RecipeError
from burnish.methods.base import Head
from burnish.methods.heads import choose_head, fold_numbers
from burnish.methods.table import METHODS, method_named
from burnish.recipe import Recipe
from burnish.runtime import Nobody
from burnish.ship.bundle import Bundle, read_bundle, write_bundle
from burnish.train.averaging import Average, between
from burnish.train.loop import Schedule, TrainingImages, tune

BACKBONES = ("test_resnet", "test_efficientnet", "test_vit", "test_convnext", "densenet121", "tf_efficientnet_lite0")
CLASSES = 3


@pytest.fixture(scope="module", params=BACKBONES)
def backbone(request):
    size = 160 if request.param == "test_vit" else 64
    return load_backbone(f"random:{request.param}", image_size=None if request.param == "test_vit" else size)


def a_head(backbone):
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(CLASSES, backbone.width)).astype(np.float32) / backbone.width**0.5
    return Head(weight, rng.normal(size=CLASSES).astype(np.float32))


def some_images(count=8, side=48):
    rng = np.random.default_rng(1)
    return TrainingImages(
        rng.integers(0, 256, (count, side, side, 3), np.uint8),
        np.arange(count),
        np.ones(count, np.float32),
        np.arange(count) % CLASSES,
        np.arange(count),
        tuple(f"{number}.png" for number in range(count)),
    )


def trained(method, backbone, *, steps=3, fold=True, seed=0):
    """The tunable after a few steps."""
    tunable = method.prepare(backbone, a_head(backbone), Recipe())
    average = Average(tunable)
    size = backbone.preprocess.size
    module = tunable.classifier
    if fold:
        module = fold_trainable(module, torch.rand(2, 3, size, size), inplace=True)
    schedule = Schedule(4, ((0.0, size),), until=None, steps=steps, step_seconds={})
    epochs = list(
        tune(
            tunable,
            some_images(),
            schedule,
            module=module,
            average=average,
            preprocess=backbone.preprocess,
            device=torch.device("cpu"),
            seed=seed,
            flip=False,
            weight_decay=0.05,
            label_smoothing=0.1,
            watcher=Nobody(),
        )
    )
    return tunable, epochs, average


@pytest.mark.parametrize("name", METHODS)
def test_the_function_before_the_first_step_is_that_of_the_probe(name, backbone):
    head = a_head(backbone)
    tunable = METHODS[name].prepare(backbone, head, Recipe())
    images = torch.rand(2, 3, backbone.preprocess.size, backbone.preprocess.size)
    with torch.no_grad():
        expected = backbone.module(images) @ torch.from_numpy(head.weight).T + torch.from_numpy(head.bias)
        assert torch.allclose(tunable.classifier(images), expected, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_what_may_move_moves_and_all_else_is_bit_identical(name, backbone):
    """P3, BatchNorm statistics included."""
    method = METHODS[name]
    before = {
        key: value.clone()
        for key, value in method.prepare(backbone, a_head(backbone), Recipe()).classifier.state_dict().items()
    }
    original = {key: value.clone() for key, value in backbone.module.state_dict().items()}
    if not method.trains:
        tunable = method.prepare(backbone, a_head(backbone), Recipe())
        assert tunable.movable() == frozenset()
    else:
        tunable, _, _ = trained(method, backbone)
        assert tunable.movable()
    after = tunable.classifier.state_dict()
    assert list(after) == list(before)
    still = {key for key in before if torch.equal(before[key], after[key])}
    assert still >= set(before) - tunable.movable(), "a frozen part moved"
    moved = tunable.movable() - still
    assert len(moved) >= 0.9 * len(tunable.movable())  # a bias before a normalisation has no gradient
    for key, value in backbone.module.state_dict().items():
        assert torch.equal(value, original[key]), "the backbone that was given has changed"


@pytest.mark.parametrize("name", METHODS)
def test_it_saves_and_loads_to_the_same_logits(name, backbone, tmp_path):
    tunable = METHODS[name].prepare(backbone, a_head(backbone), Recipe())
    write_bundle(tmp_path, Bundle.of(backbone, tunable.classifier, classes=("a", "b", "c"), method=name))
    again = read_bundle(tmp_path).classifier()
    images = torch.rand(2, 3, backbone.preprocess.size, backbone.preprocess.size)
    with torch.no_grad():
        assert torch.equal(again(images), tunable.classifier(images))


def test_training_twice_with_one_seed_is_bit_identical():
    backbone = load_backbone("random:test_resnet", image_size=64)
    one, _, _ = trained(METHODS["full"], backbone)
    two, _, _ = trained(METHODS["full"], backbone)
    other, _, _ = trained(METHODS["full"], backbone, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(one.classifier.parameters(), two.classifier.parameters(), strict=True))
    assert not torch.equal(one.classifier.head.weight, other.classifier.head.weight)


def test_folded_training_is_unfolded_training():
    backbone = load_backbone("random:test_resnet", image_size=64)
    folded, _, _ = trained(METHODS["full"], backbone, steps=2)
    plain, _, _ = trained(METHODS["full"], backbone, steps=2, fold=False)
    for name, value in plain.classifier.named_parameters():
        # Adam divides by the gradient's own size, so rounding shows where a gradient is nearly zero: compare the bulk.
        close = torch.isclose(dict(folded.classifier.named_parameters())[name], value, atol=2e-4)
        assert close.float().mean() > 0.97, name


def test_a_batch_in_pieces_is_the_whole_batch(monkeypatch):
    from burnish.train import loop

    backbone = load_backbone("random:test_resnet", image_size=64)
    whole, _, _ = trained(METHODS["full"], backbone, steps=2)
    monkeypatch.setattr(loop, "PIXELS_AT_ONCE", 64 * 64)
    pieces, _, _ = trained(METHODS["full"], backbone, steps=2)
    for one, other in zip(whole.classifier.parameters(), pieces.classifier.parameters(), strict=True):
        assert torch.isclose(one, other, atol=2e-4).float().mean() > 0.97


def test_every_parameter_of_a_full_tunable_is_in_one_group(backbone):
    tunable = METHODS["full"].prepare(backbone, a_head(backbone), Recipe())
    listed = [name for group in tunable.groups for name in group.parameters]
    assert sorted(listed) == sorted(name for name, _ in tunable.classifier.named_parameters())


def test_earlier_stages_learn_more_slowly_and_vectors_do_not_decay(backbone):
    tunable = METHODS["full"].prepare(backbone, a_head(backbone), Recipe(stage_decay=0.5))
    rates = list(dict.fromkeys(group.rate for group in tunable.groups))
    assert rates[-1] == 1.0
    assert rates == sorted(rates)
    parameters = dict(tunable.classifier.named_parameters())
    for group in tunable.groups:
        assert all((parameters[name].ndim > 1) == group.decays for name in group.parameters)


def test_the_rate_is_exactly_zero_at_the_end_and_steps_are_as_planned():
    _, epochs, _ = trained(METHODS["full"], load_backbone("random:test_resnet", image_size=64), steps=5)
    assert epochs[-1].steps == 5
    assert epochs[-1].progress == 1.0
    assert epochs[-1].learning_rate == 0.0
    assert epochs[-1].last
    assert [epoch.last for epoch in epochs[:-1]] == [False] * (len(epochs) - 1)


def test_transformers_get_a_lower_rate_than_convolutions():
    vit, resnet = (load_backbone(f"random:{name}") for name in ("test_vit", "test_resnet"))
    rates = [METHODS["full"].prepare(one, a_head(one), Recipe()).peak_learning_rate for one in (vit, resnet)]
    assert rates[0] < 5e-4 <= rates[1]


def test_an_unknown_method_is_named_with_the_nearest():
    with pytest.raises(RecipeError, match=r"no method 'prob' \(nearest: probe"):
        method_named("prob")


def test_the_average_of_one_weight_is_that_weight():
    tunable = METHODS["full"].prepare(
        load_backbone("random:test_resnet", image_size=64), a_head(load_backbone("random:test_resnet")), Recipe()
    )
    average = Average(tunable)
    average.follow(tunable)
    for name, value in average.state().items():
        assert torch.equal(value, dict(tunable.classifier.named_parameters())[name])


def test_between_gives_both_ends_and_the_middle():
    start, end = {"w": torch.tensor([0.0, 2.0])}, {"w": torch.tensor([4.0, 2.0])}
    assert torch.equal(between(start, end, 0.0)["w"], start["w"])
    assert torch.equal(between(start, end, 1.0)["w"], end["w"])
    assert torch.equal(between(start, end, 0.5)["w"], torch.tensor([2.0, 2.0]))


# ---- heads -----------------------------------------------------------------------------------------------------------


def clusters(n=240, d=20, k=4, spread=1.0, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % k
    centres = rng.normal(size=(k, d)) * 1.2
    return (centres[labels] + spread * rng.normal(size=(n, d))).astype(np.float32), labels


def test_the_head_beats_chance_by_far_and_its_accuracy_is_out_of_fold():
    features, labels = clusters()
    choice = choose_head(features, labels, classes=4, seed=0, seconds_left=lambda: 60)
    assert choice.accuracy > 0.8
    assert len(choice.right) == len(labels)
    noise = np.random.default_rng(5).normal(size=features.shape).astype(np.float32)
    blind = choose_head(noise, labels, classes=4, seed=0, seconds_left=lambda: 60)
    assert blind.accuracy < 0.4, (
        "the accuracy of a head on noise must be about chance: it is measured on images left out"
    )


def test_without_time_there_is_still_a_head():
    features, labels = clusters()
    choice = choose_head(features, labels, classes=4, seed=0, seconds_left=lambda: -1.0)
    assert choice.kind == "lda"
    assert (choice.head.logits(features).argmax(1) == labels).mean() > 0.8


@pytest.mark.parametrize(("n", "d"), [(60, 200), (400, 20)])
def test_lda_agrees_with_scikit_learns_shrinkage(n, d):
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    from burnish.methods.heads import _fitted

    features, labels = clusters(n=n, d=d)
    scaled = (features - features.mean(0)) / np.sqrt(np.square(features - features.mean(0)).mean())
    head = _fitted("lda", 0.2, 1.0, torch.from_numpy(features), torch.from_numpy(labels), 4)
    # scikit-learn divides the pooled covariance by n, burnish by n - k: the same once shrunk by a matching amount.
    reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.2).fit(scaled, labels)
    ours, theirs = head.logits(features), reference.decision_function(scaled)
    assert (ours.argmax(1) == theirs.argmax(1)).mean() > 0.99


def test_a_logistic_head_matches_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    from burnish.methods.heads import _fitted

    features, labels = clusters(n=400, d=10, spread=2.0)
    penalty = 0.01
    head = _fitted("logistic", penalty, 1.0, torch.from_numpy(features), torch.from_numpy(labels), 4)
    spread = np.sqrt(np.square(features - features.mean(0)).mean())
    scaled = (features - features.mean(0)) / spread
    reference = LogisticRegression(C=1 / (penalty * len(labels)), max_iter=2000, tol=1e-8).fit(scaled, labels)
    ours = F.softmax(torch.from_numpy(head.logits(features)), 1).numpy()
    assert np.abs(ours - reference.predict_proba(scaled)).max() < 0.01


def test_folds_are_stratified_and_depend_on_the_seed_alone():
    labels = np.repeat(np.arange(5), 12)
    fold = fold_numbers(labels, folds=4, seed=3)
    assert all((np.bincount(fold[labels == label], minlength=4) == 3).all() for label in range(5))
    assert (fold == fold_numbers(labels, folds=4, seed=3)).all()
    assert (fold != fold_numbers(labels, folds=4, seed=4)).any()


def test_preparing_twice_shares_nothing(backbone):
    one = METHODS["full"].prepare(backbone, a_head(backbone), Recipe())
    two = METHODS["full"].prepare(backbone, a_head(backbone), Recipe())
    before = copy.deepcopy(two.classifier.state_dict())
    with torch.no_grad():
        for parameter in one.classifier.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(value, before[name]) for name, value in two.classifier.state_dict().items())
