"""The contract that every method keeps on every kind of backbone: being in METHODS is enough to be tested here."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from burnish.backbones.zoo import load_backbone
from burnish.data.views import Augmentation
from burnish.errors import RecipeError
from burnish.methods.base import Head
from burnish.methods.heads import choose_head, fold_numbers
from burnish.methods.table import METHODS, method_named
from burnish.recipe import Recipe
from burnish.runtime import Nobody
from burnish.ship.bundle import Bundle, read_bundle, write_bundle
from burnish.train.activations import LiveActivations, kept_or_live
from burnish.train.averaging import Average, between
from burnish.train.checkpoint import read_checkpoint, restore_training, training_state, write_checkpoint
from burnish.train.inputs import PixelViews
from burnish.train.loop import Epoch, Schedule, Step, Training, tune
from burnish.train.parts import parts_for_training

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


def some_images(preprocess, *, seed=0, n=12):
    rng = np.random.default_rng(0)
    return PixelViews(
        stored=rng.integers(0, 255, (n, 48, 48, 3), np.uint8),
        rows=np.arange(n),
        aspects=np.ones(n, np.float32),
        labels=np.arange(n) % 3,
        ids=np.arange(n),
        paths=tuple(f"{i}.png" for i in range(n)),
        how=Augmentation(size=64),
        preprocess=preprocess,
        seed=seed,
    )


def begun(method, backbone, *, steps=3, seed=0, fold=True, recipe=None, workers=0, half=False):
    """(training, what iterates its events): a run of some steps at the backbone's own size."""
    recipe = recipe or Recipe()
    tunable = method.prepare(backbone, a_head(backbone), recipe)
    tunable.classifier.to(memory_format=torch.channels_last)
    size = backbone.preprocess.size
    example = torch.rand(2, 3, size, size)
    freeze = 0 if recipe.freeze == "auto" else recipe.freeze
    inputs = some_images(backbone.preprocess, seed=seed)
    if fold:
        parts = parts_for_training(tunable.classifier, backbone, freeze, example, half=half)
        module = parts.trained
        if parts.lower is not None:
            inputs, _ = kept_or_live(
                inputs,
                parts.lower,
                views=2,
                size=size,
                device=torch.device("cpu"),
                half=half,
                on_progress=lambda _: None,
            )
    else:
        module = tunable.classifier
    training = Training.start(tunable, total=steps, weight_decay=0.05)
    events = tune(
        training,
        inputs,
        Schedule(4, ((0.0, size),)),
        module=module,
        device=torch.device("cpu"),
        seed=seed,
        label_smoothing=0.1,
        half=half,
        workers=workers,
        watcher=Nobody(),
    )
    return training, events


def trained(method, backbone, **how):
    """A tunable after a few steps, its epochs, and the average of its weights."""
    training, events = begun(method, backbone, **how)
    epochs = [event for event in events if isinstance(event, Epoch)]
    return training.tunable, epochs, training.average


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


def same_weights(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize("freeze", [0, 2])
@pytest.mark.parametrize("network", ["test_resnet", "test_vit"])
def test_a_run_taken_up_after_any_step_comes_to_the_same_bits(network, freeze, tmp_path):
    """P7: weights, moving average and losses; batches made ahead by threads change nothing either."""
    method, recipe = METHODS["full"], Recipe(freeze=freeze)
    backbone = load_backbone(f"random:{network}", image_size=64)
    whole, events = begun(method, backbone, steps=7, recipe=recipe)
    told = [event.train_loss for event in events if isinstance(event, Epoch)]
    assert len(told) == 3
    for stop in range(7):
        first, events = begun(method, backbone, steps=7, recipe=recipe)
        losses, saved = [], False
        for event in events:
            losses += [event.train_loss] if isinstance(event, Epoch) else []
            if first.steps >= stop:
                facts, tensors = training_state(first)
                write_checkpoint(tmp_path, facts, tensors)
                saved = True
                break
        assert saved
        second, events = begun(method, backbone, steps=7, recipe=recipe, workers=stop % 3)
        restore_training(second, *read_checkpoint(tmp_path))
        losses += [event.train_loss for event in events if isinstance(event, Epoch)]
        assert losses == told
        assert same_weights(whole.tunable.classifier, second.tunable.classifier)
        assert all(torch.equal(a, b) for a, b in zip(whole.average.values, second.average.values, strict=True))


@pytest.mark.parametrize("network", ["test_resnet", "test_vit", "test_efficientnet", "test_convnext", "densenet121"])
def test_frozen_stages_stay_bit_identical_and_the_rest_learns_from_kept_activations(network):
    backbone = load_backbone(f"random:{network}", image_size=64)
    before = copy.deepcopy(backbone.module.state_dict())
    freeze = len(backbone.stages) - 1
    tunable, _, _ = trained(METHODS["full"], backbone, recipe=Recipe(freeze=freeze))
    frozen = {f"trunk.{name}" for stage in backbone.stages[:freeze] for name in stage.parameters}
    after = tunable.classifier.state_dict()
    assert all(torch.equal(after[name], before[name.removeprefix("trunk.")]) for name in frozen)
    moved = [
        name
        for name in tunable.movable()
        if not torch.equal(after[name], before.get(name.removeprefix("trunk."), after[name] + 1))
    ]
    assert len(moved) >= 0.9 * len(tunable.movable())


def test_without_room_activations_are_computed_in_each_step(monkeypatch):
    from burnish.train import activations

    backbone = load_backbone("random:test_resnet", image_size=64)
    kept, _, _ = trained(METHODS["full"], backbone, recipe=Recipe(freeze=2), steps=2)
    monkeypatch.setattr(activations, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(activations, "DISK_SHARE", 0.0)
    parts = parts_for_training(
        METHODS["full"].prepare(backbone, a_head(backbone), Recipe()).classifier,
        backbone,
        2,
        torch.rand(2, 3, 64, 64),
        half=False,
    )
    inputs, why = kept_or_live(
        some_images(backbone.preprocess),
        parts.lower,
        views=2,
        size=64,
        device=torch.device("cpu"),
        half=False,
        on_progress=lambda _: None,
    )
    assert isinstance(inputs, LiveActivations) and "no room" in why
    live, _, _ = trained(METHODS["full"], backbone, recipe=Recipe(freeze=2), steps=2)
    # float16 is what keeping them costs; the function is the same.
    for one, other in zip(kept.classifier.parameters(), live.classifier.parameters(), strict=True):
        assert torch.isclose(one, other, atol=5e-4).float().mean() > 0.9


def test_more_frozen_stages_than_there_are_is_an_error_that_names_them():
    backbone = load_backbone("random:test_resnet", image_size=64)
    with pytest.raises(RecipeError, match=r"freeze is 9, but test_resnet has 5 stages: stem, layer1"):
        METHODS["full"].prepare(backbone, a_head(backbone), Recipe(freeze=9))


def test_a_total_that_changes_between_steps_still_ends_at_rate_zero():
    training, events = begun(METHODS["full"], load_backbone("random:test_resnet", image_size=64), steps=9)
    for event in events:
        if isinstance(event, Step) and training.steps == 2:
            training.total = 5
    assert training.steps == 5 and training.progress == 1.0
    assert training.optimiser.param_groups[0]["lr"] > 0.0  # the last step was not for nothing


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
