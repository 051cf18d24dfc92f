"""What a step minimises: mixing, SAM, class weights, dropout, order of images, and what methods do to rates and weights."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from stepping import gradient
from torch import nn

from burnish.backbones.classifier import Classifier
from burnish.backbones.spec import Backbone, Stage
from burnish.backbones.zoo import load_backbone
from burnish.choose.aim import augmentation_of, balance_for, objective_of
from burnish.data.trivial import _OPERATIONS, trivial
from burnish.data.views import Augmentation, augmented
from burnish.methods.base import Group, Head, Tunable
from burnish.methods.table import METHODS, method_named
from burnish.recipe import Recipe
from burnish.runtime import Nobody
from burnish.terms import Preprocess
from burnish.train.inputs import PixelViews, batch_of
from burnish.train.loop import WARM_UP, Schedule, Step, Training, _order, learning_rate_factor, optimiser_for, tune
from burnish.train.objective import Objective, draws_in_training, step
from burnish.train.parts import let_drop, parts_for_training

CLASSES, FEATURES = 3, 5


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(n=6, side=8, seed=0):
    return torch.randn(n, 3, side, side, generator=seeded(seed))


def rows(n=6, seed=0):
    return torch.randn(n, FEATURES, generator=seeded(seed))


def truth(n=6):
    return torch.arange(n) % CLASSES


def linear(seed=0):
    """A linear model on rows, its optimiser plain gradient descent."""
    model = nn.Linear(FEATURES, CLASSES)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=seeded(seed))
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def on_pictures(seed=0):
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, CLASSES))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1, generator=seeded(seed))
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def flat(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def gradients(model):
    return [parameter.grad.clone() for parameter in model.parameters()]


def global_states():
    return torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()


def same_states(one, two):
    return torch.equal(one[0], two[0]) and (one[1] == two[1]).all() and one[2] == two[2]


# ---- the plain loss --------------------------------------------------------------------------------------------------


def test_the_loss_is_the_mean_cross_entropy_and_the_gradient_is_its():
    model, optimiser = linear()
    found = gradient(model, optimiser, rows(), truth(), Objective(label_smoothing=0.1), 0)
    expected = F.cross_entropy(model(rows()), truth(), label_smoothing=0.1)
    assert found == pytest.approx(expected.item(), rel=1e-6)
    wanted = torch.autograd.grad(expected, list(model.parameters()))
    for one, other in zip(gradients(model), wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_class_weights_weigh_the_loss_of_their_class():
    weights = (0.5, 2.0, 0.25)
    model, optimiser = linear()
    found = gradient(model, optimiser, rows(), truth(), Objective(class_weights=weights), 0)
    each = F.cross_entropy(model(rows()), truth(), reduction="none")
    expected = (each * torch.tensor(weights)[truth()]).mean()
    assert found == pytest.approx(expected.item(), rel=1e-6)
    wanted = torch.autograd.grad(expected, list(model.parameters()))
    for one, other in zip(gradients(model), wanted, strict=True):
        torch.testing.assert_close(one, other)
    assert found != pytest.approx(each.mean().item(), rel=1e-3)


@pytest.mark.parametrize("label", [0, 1])
def test_smoothed_labels_under_class_weights_are_still_learnt_as_they_are(label):
    """With torch's own `weight` the frequent one of two classes at 1 to 50 would be taught to be called the rare one."""
    objective = Objective(label_smoothing=0.1, class_weights=(0.51, 25.5))
    shares = np.linspace(0.01, 0.99, 99)  # said of the true class
    losses = [
        objective.loss(
            torch.tensor([[share, 1 - share] if label == 0 else [1 - share, share]]).log(), torch.tensor([label])
        )
        for share in shares
    ]
    assert shares[int(torch.stack(losses).argmin())] == pytest.approx(0.95)


def test_a_rare_image_that_comes_again_within_an_epoch_is_another_view():
    labels = np.array([0] * 12 + [1] * 2)
    order = _order(labels, 3, 1, balanced=True)
    assert (np.bincount(labels[order % 14]) == [7, 7]).all()
    assert len(set(order.tolist())) == 14  # a row, or a row of a later turn
    turns = order[labels[order % 14] == 1] // 14
    assert sorted(np.bincount(turns)) == [1, 2, 2, 2]
    views = PixelViews(
        stored=np.random.default_rng(0).integers(0, 255, (14, 24, 24, 3), np.uint8), rows=np.arange(14),
        aspects=np.ones(14, np.float32), labels=labels, ids=np.arange(14), paths=tuple(map(str, range(14))),
        how=Augmentation(size=16), preprocess=Preprocess(size=16), seed=0,
    )  # fmt: skip
    one, again, other = (batch_of(views, np.array([row]), epoch=1, size=16) for row in (13, 13 + 14, 13 + 28))
    assert not torch.equal(one, again) and not torch.equal(again, other)
    assert torch.equal(one, batch_of(views, np.array([13]), epoch=1, size=16))
    assert not any(torch.equal(again, batch_of(views, np.array([13]), epoch=epoch, size=16)) for epoch in range(1, 9))


def test_the_class_weights_of_a_recipe_have_the_mean_one_and_fall_with_frequency():
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    found = objective_of(Recipe(balance="loss"), labels, classes=3, half=False)
    assert np.mean([found.class_weights[label] for label in labels]) == pytest.approx(1.0)
    assert found.class_weights[0] * 60 == pytest.approx(found.class_weights[2] * 10)
    assert objective_of(Recipe(balance="sampling"), labels, classes=3, half=False).class_weights is None
    missing = objective_of(Recipe(balance="loss"), labels, classes=4, half=False)
    assert np.isfinite(missing.class_weights).all()


def test_the_objective_has_what_the_recipe_says():
    recipe = Recipe(seed=5, label_smoothing=0.2, mixup=0.3, cutmix=0.4, sam=0.06)
    found = objective_of(recipe, half=True)
    assert found == Objective(seed=5, label_smoothing=0.2, half=True, mixup=0.3, cutmix=0.4, sam=0.06)


@pytest.mark.parametrize(
    ("counts", "said", "settled"),
    [
        ([10, 1], "auto", "sampling"),
        ([9, 1], "auto", "none"),
        ([50, 0], "auto", "sampling"),
        ([100, 1], "none", "none"),
        ([5, 5], "loss", "loss"),
    ],
)
def test_the_balance_is_settled_from_ten_to_one(counts, said, settled):
    labels = np.repeat(np.arange(len(counts)), counts)
    assert balance_for(Recipe(balance=said), labels, classes=len(counts)) == settled


def test_a_step_without_a_finite_loss_changes_nothing():
    for broken in (float("nan"), float("inf")):
        for objective in (Objective(), Objective(sam=0.05)):
            model, optimiser = linear()
            before, given = flat(model.parameters()), rows()
            given[2, 0] = broken
            assert not np.isfinite(step(model, optimiser, given, truth(), objective, 0))
            assert torch.equal(flat(model.parameters()), before)


# ---- mixup and cutmix ------------------------------------------------------------------------------------------------


def test_mixup_blends_each_image_with_its_partner():
    objective = Objective(mixup=1.0)
    for number in range(20):
        views, partner, own = objective.mixed(pictures(), number)
        assert sorted(partner) == list(range(6))
        assert 0.0 <= own <= 1.0
        torch.testing.assert_close(views, own * pictures() + (1 - own) * pictures()[torch.from_numpy(partner)])


def test_cutmix_pastes_one_rectangle_of_the_partner_and_the_share_is_that_of_the_pixels():
    objective, pasted = Objective(cutmix=1.0), 0
    for number in range(40):
        views, partner, own = objective.mixed(pictures(side=9), number)
        other = pictures(side=9)[torch.from_numpy(partner)]
        for row in range(6):
            if partner[row] == row:
                assert torch.equal(views[row], pictures(side=9)[row])
                continue
            changed = (views[row] != pictures(side=9)[row]).all(0)
            assert torch.equal(views[row][:, changed], other[row][:, changed])
            assert torch.equal(views[row][:, ~changed], pictures(side=9)[row][:, ~changed])
            assert own == pytest.approx(1 - changed.float().mean().item())
            if changed.any():
                pasted += 1
                high, wide = (int(changed.any(axis).sum()) for axis in (1, 0))
                assert int(changed.sum()) == high * wide, "not a rectangle"
    assert pasted > 50


def test_cutmix_blends_maps_whose_channels_come_last():
    """A rectangle of Swin's [b h w c] would be cut out of its channels."""
    maps = torch.randn(4, 7, 7, 24, generator=torch.Generator().manual_seed(0))
    for number in range(10):
        views, partner, own = Objective(cutmix=1.0).mixed(maps, number)
        torch.testing.assert_close(views, own * maps + (1 - own) * maps[torch.from_numpy(partner)])


@pytest.mark.parametrize(
    "objective",
    [
        Objective(mixup=1.0),
        Objective(cutmix=1.0),
        Objective(mixup=0.5, cutmix=0.5, label_smoothing=0.1),
        Objective(mixup=1.0, class_weights=(0.5, 2.0, 0.25)),
    ],
    ids=["mixup", "cutmix", "both, smoothed", "weighted"],
)
def test_the_loss_of_mixed_images_is_shared_between_both_labels(objective):
    weight = None if objective.class_weights is None else torch.tensor(objective.class_weights)
    for number in range(8):
        model, optimiser = on_pictures()
        found = gradient(model, optimiser, pictures(), truth(), objective, number)
        views, partner, own = objective.mixed(pictures(), number)

        def entropy(labels, model=model, views=views):
            smoothing = objective.label_smoothing
            each = F.cross_entropy(model(views), labels, weight=weight, label_smoothing=smoothing, reduction="none")
            return each.sum() / len(views)

        expected = own * entropy(truth()) + (1 - own) * entropy(truth()[torch.from_numpy(partner)])
        assert found == pytest.approx(expected.item(), rel=1e-5)
        wanted = torch.autograd.grad(expected, list(model.parameters()))
        for one, other in zip(gradients(model), wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_with_both_a_coin_decides_in_each_step():
    objective = Objective(mixup=1.0, cutmix=1.0)
    cut = 0
    for number in range(200):
        views, partner, _ = objective.mixed(pictures(n=2), number)
        if partner[0] == 1:
            kept = (views[0] == pictures(n=2)[0]) | (views[0] == pictures(n=2)[1])
            cut += bool(kept.all())
    swapped = sum(objective.mixed(pictures(n=2), number)[1][0] == 1 for number in range(200))
    assert 0.35 < cut / swapped < 0.65


@pytest.mark.parametrize("alpha", [0.1, 1.0, 8.0])
@pytest.mark.parametrize("how", ["mixup", "cutmix"])
def test_the_shares_follow_the_beta_distribution(how, alpha):
    objective = Objective(**{how: alpha})
    views = torch.zeros(2, 1, 64, 64)
    found = np.array([objective.mixed(views, number)[2] for number in range(600)])
    spread = 0.25 / (2 * alpha + 1)  # the variance of Beta(alpha, alpha)
    assert found.mean() == pytest.approx(0.5, abs=0.07)
    assert found.var() == pytest.approx(spread, rel=0.3, abs=0.003)


def test_what_is_mixed_follows_from_the_seed_and_the_step_alone():
    objective = Objective(seed=3, mixup=1.0, cutmix=1.0)
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    before, first = global_states(), objective.mixed(pictures(), 7)
    assert same_states(before, global_states()), "a global generator has moved"
    torch.manual_seed(2)
    np.random.seed(2)
    random.seed(2)
    again = objective.mixed(pictures(), 7)
    assert torch.equal(first[0], again[0]) and (first[1] == again[1]).all() and first[2] == again[2]
    assert objective.mixed(pictures(), 8)[2] != first[2]
    assert replace(objective, seed=4).mixed(pictures(), 7)[2] != first[2]


def test_mixing_does_not_write_into_the_images_it_is_given():
    given = pictures()
    for number in range(10):
        Objective(mixup=1.0, cutmix=1.0).mixed(given, number)
    assert torch.equal(given, pictures())


def test_without_mixing_and_for_a_single_image_nothing_is_mixed():
    for objective, given in ((Objective(), pictures()), (Objective(mixup=1.0, cutmix=1.0), pictures(n=1))):
        views, partner, own = objective.mixed(given, 0)
        assert views is given
        assert (partner, own) == (None, 1.0)


def test_rows_of_features_are_blended_where_a_rectangle_cannot_be_cut():
    """Kept activations of a transformer are tokens [b n c]."""
    given = torch.randn(6, 4, 5, generator=seeded())
    for number in range(10):
        views, partner, own = Objective(cutmix=1.0).mixed(given, number)
        torch.testing.assert_close(views, own * given + (1 - own) * given[torch.from_numpy(partner)])


def test_a_mixed_batch_in_pieces_is_the_whole_batch(monkeypatch):
    from burnish.train import objective as module_of

    how, found = Objective(mixup=1.0, label_smoothing=0.1), []
    for pixels in (10**9, 2 * 8 * 8):
        monkeypatch.setattr(module_of, "PIXELS_AT_ONCE", pixels)
        model, optimiser = on_pictures()
        found.append((gradient(model, optimiser, pictures(), truth(), how, 3), *gradients(model)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    for one, other in zip(found[0][1:], found[1][1:], strict=True):
        torch.testing.assert_close(one, other)


# ---- SAM -------------------------------------------------------------------------------------------------------------


def test_a_sam_step_is_the_step_by_hand():
    radius, rate = 0.05, 0.1
    model, optimiser = linear()
    weights = [parameter.detach().clone().requires_grad_() for parameter in model.parameters()]

    def loss(matrix, bias):
        return F.cross_entropy(rows() @ matrix.T + bias, truth())

    first = torch.autograd.grad(loss(*weights), weights)
    norm = flat(first).norm()
    climbed = [
        (one + radius * slope / norm).detach().requires_grad_() for one, slope in zip(weights, first, strict=True)
    ]
    assert (flat(climbed) - flat(weights)).norm().item() == pytest.approx(radius, rel=1e-5)
    second = torch.autograd.grad(loss(*climbed), climbed)
    clip = min(1.0, 1.0 / (flat(second).norm().item() + 1e-6))
    told = step(model, optimiser, rows(), truth(), Objective(sam=radius), 0)
    assert told == pytest.approx(loss(*weights).item(), rel=1e-6), "the loss that is told is that before climbing"
    for parameter, one, slope in zip(model.parameters(), weights, second, strict=True):
        torch.testing.assert_close(parameter.detach(), one - rate * clip * slope, rtol=1e-5, atol=1e-6)
    plain, descent = linear()
    step(plain, descent, rows(), truth(), Objective(), 0)
    assert not torch.allclose(flat(plain.parameters()), flat(model.parameters()), atol=1e-5)


def test_sam_puts_the_weights_back_to_the_bit():
    model, _ = linear()
    before = flat(model.parameters())
    step(model, torch.optim.SGD(model.parameters(), lr=0.0), rows(), truth(), Objective(sam=0.7), 0)
    assert torch.equal(flat(model.parameters()), before)


def test_sam_climbs_on_the_same_images_and_the_same_dropout():
    """Else the two gradients were of different functions."""
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * 8 * 8, CLASSES)).train()
    seen = []
    model[1].register_forward_hook(lambda _layer, given, found: seen.append((given[0].clone(), found.detach().clone())))
    how = Objective(sam=0.05, mixup=1.0, cutmix=1.0)
    step(model, torch.optim.SGD(model.parameters(), lr=0.1), pictures(), truth(), how, 4)
    assert len(seen) == 2
    assert torch.equal(seen[0][0], seen[1][0])
    assert torch.equal(seen[0][1], seen[1][1])


def test_sam_moves_only_what_learns():
    model = nn.Sequential(nn.Linear(FEATURES, 4), nn.Linear(4, CLASSES))
    model[0].requires_grad_(False)
    seen = []
    model[0].register_forward_hook(lambda layer, _given, _found: seen.append(layer.weight.clone()))
    step(model, torch.optim.SGD(model[1].parameters(), lr=0.1), rows(), truth(), Objective(sam=0.5), 0)
    assert len(seen) == 2 and torch.equal(seen[0], seen[1])


# ---- dropout ---------------------------------------------------------------------------------------------------------


def dropping():
    """A classifier on rows whose dropout acts."""
    classifier = Classifier(nn.Identity(), FEATURES, CLASSES)
    with torch.no_grad():
        classifier.head.weight.normal_(generator=seeded())
        classifier.head.bias.zero_()
    classifier.eval()
    let_drop(classifier, 0.5, 0.0)
    return classifier, torch.optim.SGD(classifier.parameters(), lr=0.1)


def test_dropout_is_the_same_for_the_same_step_and_another_for_another():
    losses = {}
    for number in (3, 4):
        for seed in (0, 1):
            told = []
            for state in (1, 2):
                torch.manual_seed(state)
                classifier, optimiser = dropping()
                before = global_states()
                told.append(gradient(classifier, optimiser, rows(), truth(), Objective(seed=seed), number))
                assert same_states(before, global_states()), "a global generator has moved"
            assert told[0] == told[1]
            losses[number, seed] = told[0]
    assert len(set(losses.values())) == 4
    classifier, optimiser = dropping()
    classifier.eval()
    assert gradient(classifier, optimiser, rows(), truth(), Objective(), 3) not in losses.values()


def test_the_pieces_of_a_batch_drop_differently(monkeypatch):
    from burnish.train import objective as module_of

    monkeypatch.setattr(module_of, "PIXELS_AT_ONCE", 1)
    classifier, optimiser = dropping()
    seen = []
    classifier.dropout.register_forward_hook(lambda _layer, _given, found: seen.append(found == 0))
    gradient(classifier, optimiser, torch.ones(6, FEATURES), truth(), Objective(), 0)
    assert len(seen) == 6
    assert any(not torch.equal(seen[0], other) for other in seen[1:])


class DropPath(nn.Module):
    """Named as timm's."""

    def __init__(self):
        super().__init__()
        self.drop_prob = 0.5

    def forward(self, given):
        return given * (torch.rand(len(given), 1) > 0.5) if self.training else given


def trunk_that_drops():
    return nn.Sequential(nn.Linear(FEATURES, FEATURES), DropPath(), nn.Dropout(0.1), nn.BatchNorm1d(FEATURES))


@pytest.mark.parametrize("freeze", [None, 0, 2])
@pytest.mark.parametrize(("dropout", "drop_path"), [(0.0, 0.0), (0.3, 0.0), (0.0, 0.2), (0.3, 0.2)])
def test_only_the_dropout_before_the_head_and_the_drop_paths_act_when_they_are_asked_for(dropout, drop_path, freeze):
    """In the classifier, in its folded form, and in what is trained above frozen stages."""
    if freeze is None:
        classifier = Classifier(trunk_that_drops(), FEATURES, CLASSES).eval()
        trained = classifier
    else:
        backbone = load_backbone("random:test_resnet", image_size=64, drop_path=0.2)
        classifier = Classifier.over(backbone, CLASSES)
        trained = parts_for_training(classifier, backbone, freeze, torch.rand(2, 3, 64, 64), half=False).trained
        assert (trained is classifier) == (freeze == 0)
    let_drop(classifier, dropout, drop_path)
    acting = {layer for layer in trained.modules() if layer.training and draws_in_training(layer)}
    assert not any(layer.training for layer in trained.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm))
    paths = {layer for layer in trained.modules() if type(layer).__name__ == "DropPath"}
    assert paths
    assert acting == ({classifier.dropout} if dropout else set()) | (paths if drop_path else set())
    if dropout:
        assert classifier.dropout.p == dropout


def test_drop_paths_are_the_same_for_the_same_step():
    told = []
    for state, number in ((1, 3), (2, 3), (1, 4)):
        classifier = Classifier(trunk_that_drops(), FEATURES, CLASSES).eval()
        with torch.no_grad():
            for parameter in classifier.parameters():
                parameter.normal_(generator=seeded())
        let_drop(classifier, 0.0, 0.5)
        torch.manual_seed(state)
        optimiser = torch.optim.SGD(classifier.parameters(), lr=0.1)
        told.append(gradient(classifier, optimiser, rows(), truth(), Objective(), number))
    assert told[0] == told[1] != told[2]


# ---- the order of images ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [[50, 3, 7], [100, 1], [4, 4, 4], [1, 1, 30, 2], [9, 0, 5]])
def test_drawn_in_balance_the_classes_are_within_one_of_each_other(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    for epoch in (1, 2, 3):
        order = _order(labels, 0, epoch, balanced=True)
        assert len(order) == len(labels)
        found = np.bincount(labels[order % len(labels)], minlength=len(counts))[np.array(counts) > 0]
        assert found.max() - found.min() <= 1


def test_drawn_in_balance_every_image_of_a_rare_class_is_used_and_as_often_as_the_others_of_it():
    labels = np.repeat([0, 1, 2], [60, 7, 3])
    for epoch in range(1, 6):
        times = np.bincount(_order(labels, 0, epoch, balanced=True) % 70, minlength=len(labels))
        for rare in (1, 2):
            members = times[labels == rare]
            assert members.min() >= 1
            assert members.max() - members.min() <= 1
        assert times[labels == 0].max() == 1, "an image of the large class came twice while others were left out"


def test_over_epochs_all_images_of_a_large_class_get_their_turn():
    labels = np.repeat([0, 1], [40, 4])
    seen = {int(row) % 44 for epoch in range(1, 12) for row in _order(labels, 0, epoch, balanced=True)}
    assert seen == set(range(44))


def test_out_of_balance_each_image_comes_once():
    labels = np.repeat([0, 1], [40, 4])
    for epoch in (1, 2):
        assert sorted(_order(labels, 0, epoch, balanced=False)) == list(range(44))


@pytest.mark.parametrize("balanced", [False, True])
def test_the_order_follows_from_seed_and_epoch(balanced):
    labels = np.repeat([0, 1], [40, 4])
    first = _order(labels, 0, 1, balanced=balanced)
    assert (first == _order(labels, 0, 1, balanced=balanced)).all()
    assert (first != _order(labels, 0, 2, balanced=balanced)).any()
    assert (first != _order(labels, 1, 1, balanced=balanced)).any()


def test_classes_drawn_in_balance_are_mixed_and_not_in_blocks():
    labels = np.repeat([0, 1], [400, 20])
    drawn = labels[_order(labels, 0, 1, balanced=True) % 420]
    assert 0.4 < (drawn[:-1] != drawn[1:]).mean() < 0.6


# ---- what methods do in the loop -------------------------------------------------------------------------------------


def small_backbone():
    """Three stages of one linear layer each, on flattened pixels."""
    module = nn.Sequential(
        nn.Flatten(), nn.Linear(48, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, FEATURES)
    )
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.4, generator=seeded(int(parameter.numel())))
    stages = tuple(Stage(f"stage{i}", (f"{name}.weight", f"{name}.bias")) for i, name in enumerate(("1", "3", "5")))
    return Backbone("small", module.eval(), FEATURES, stages, Preprocess(size=4), "unknown", "", "random")


class Given:
    """Training images that are there already."""

    def __init__(self, n=12):
        self.labels = np.arange(n) % CLASSES
        self.images = torch.randn(n, 3, 4, 4, generator=seeded(1))

    def __len__(self):
        return len(self.labels)

    def name(self, row, /):
        return f"{row}.png"

    def parts(self, rows, /, *, epoch, size):
        return (self.images[torch.from_numpy(rows % len(self))],)

    def whole(self, parts, /):
        return parts[0]


def prepared(name, **settings):
    head = np.random.default_rng(0).normal(size=(CLASSES, FEATURES)).astype(np.float32)
    recipe = Recipe(learning_rate=0.01, **settings)
    return method_named(name).prepare(small_backbone(), Head(head, np.zeros(CLASSES, np.float32)), recipe)


def running(name, *, steps=9, weight_decay=0.0, objective=None, **settings):
    """(training, what iterates its events), three steps an epoch."""
    training = Training.start(prepared(name, **settings), total=steps, weight_decay=weight_decay)
    events = tune(
        training,
        Given(),
        Schedule(4, ((0.0, 4),)),
        module=training.tunable.classifier,
        device=torch.device("cpu"),
        objective=objective or Objective(),
        watcher=Nobody(),
    )
    return training, events


def finished(name, **how):
    training, events = running(name, **how)
    list(events)
    return {key: value.detach().clone() for key, value in training.tunable.classifier.named_parameters()}


TRUNK = [f"trunk.{layer}.{kind}" for layer in "135" for kind in ("weight", "bias")]


def test_l2sp_pulls_the_matrices_of_the_trunk_towards_their_start():
    start = dict(prepared("full").classifier.named_parameters())
    free, pulled, hard = (finished(name) for name in ("full", "l2sp:pull=5", "l2sp:pull=100"))

    def way(found, key):
        return (found[key] - start[key]).norm().item()

    for key in TRUNK:
        if key.endswith("weight"):
            assert 0 < way(pulled, key) < way(free, key)
            assert way(hard, key) < 0.5 * way(free, key)


def test_a_step_of_l2sp_is_the_step_of_full_and_then_the_pull_by_hand():
    rate, pull = 0.01, 5.0
    steps = {}
    for name in ("full", f"l2sp:pull={pull}"):
        training, events = running(name, steps=2)
        start = {key: value.detach().clone() for key, value in training.tunable.classifier.named_parameters()}
        next(events)
        groups = {id(p): group for group in training.optimiser.param_groups for p in group["params"]}
        steps[name] = {
            key: (value.detach().clone(), groups[id(value)]["lr"])
            for key, value in training.tunable.classifier.named_parameters()
        }
    for key, (free, lr) in steps["full"].items():
        pulled, _ = steps[f"l2sp:pull={pull}"][key]
        assert 0 < lr <= rate
        expected = free + min(1.0, lr * pull) * (start[key] - free)
        if key.startswith("trunk.") and key.endswith("weight"):
            torch.testing.assert_close(pulled, expected)
            assert not torch.equal(pulled, free)
        else:
            assert torch.equal(pulled, free), "neither vectors nor the head are pulled"


def test_where_l2sp_pulls_to_the_start_weights_do_not_decay_to_zero():
    groups = optimiser_for(prepared("l2sp"), weight_decay=0.3).param_groups
    assert {group["weight_decay"] for group in groups if group["starts"]} == {0.0}
    (head,) = (group for group in groups if group["is_head"] and group["weight_decay"])
    assert head["weight_decay"] == 0.3 and head["starts"] == []
    assert sum(bool(group["starts"]) for group in groups) == 3
    for group in groups:
        assert not group["starts"] or all(
            torch.equal(one, start) for one, start in zip(group["params"], group["starts"], strict=True)
        )


def test_a_stage_has_no_gradient_before_its_time_and_moves_after_it():
    training, events = running("gradual:over=0.5", steps=9)
    start = {key: value.detach().clone() for key, value in training.tunable.classifier.named_parameters()}
    begins = {key: group.starts for group in training.tunable.groups for key in group.parameters}
    assert {begins["trunk.1.weight"], begins["trunk.3.weight"], begins["trunk.5.weight"]} == {0.5, 0.25, 0.0}
    progress, slept, woke = 0.0, set(), set()
    for event in events:
        if not isinstance(event, Step):
            continue
        for key, value in training.tunable.classifier.named_parameters():
            if progress < begins[key]:
                slept.add(key)
                assert value.grad is None
                assert torch.equal(value, start[key])
            else:
                woke.add(key)
                assert value.grad is not None
        progress = training.progress
    assert {key for key in slept if key.endswith("weight")} == {"trunk.1.weight", "trunk.3.weight"}
    assert woke == set(start)
    assert all(not torch.equal(value, start[key]) for key, value in training.tunable.classifier.named_parameters())


def test_auto_rgn_rates_are_shares_of_the_largest_and_the_head_keeps_its_own():
    training, events = running("surgical", steps=9)
    seen = set()
    for event in events:
        if isinstance(event, Step):
            rates = [group["rate"] for group in training.optimiser.param_groups if not group["is_head"]]
            assert all(0.0 <= rate <= 1.0 for rate in rates)
            assert max(rates) == 1.0
            assert all(group["rate"] == 1.0 for group in training.optimiser.param_groups if group["is_head"])
            seen.add(tuple(rates))
    assert len(seen) == 3, "the rates are taken anew in each epoch, and only there"


def test_auto_rgn_rates_are_the_relative_gradients_by_hand():
    training, events = running("surgical", steps=3)
    twin = prepared("surgical").classifier
    next(events)
    given, order = Given(), _order(Given().labels, 0, 1, balanced=False)
    batch = np.array_split(order, 3)[0]
    loss = F.cross_entropy(twin(batch_of(given, batch, epoch=1, size=4)), torch.from_numpy(given.labels[batch]))
    loss.backward()
    own = dict(twin.named_parameters())
    relative = {
        group.name: (
            flat([own[key].grad for key in group.parameters]).norm()
            / flat([own[key] for key in group.parameters]).norm()
        ).item()
        for group in training.tunable.groups
        if not group.name.startswith("head")
    }
    most = max(relative.values())
    for group, live in zip(training.tunable.groups, training.optimiser.param_groups, strict=True):
        if not group.name.startswith("head"):
            assert live["rate"] == pytest.approx(relative[group.name] / most, rel=1e-4)


def test_a_group_without_a_gradient_rests_in_auto_rgn():
    classifier = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(48, FEATURES)), FEATURES, CLASSES)
    nn.init.eye_(classifier.head.weight)  # a zero head gives the trunk no gradient
    classifier.trunk.add_module("unused", nn.Linear(2, 2))
    classifier.trunk.forward = lambda images: classifier.trunk[1](classifier.trunk[0](images))
    groups = [
        Group("used", ("trunk.1.weight",), 1.0, True),
        Group("unused", ("trunk.unused.weight",), 1.0, True),
        Group("head", ("head.weight",), 1.0, True),
    ]
    tunable = Tunable(classifier.eval(), small_backbone(), tuple(groups), 0.01, by_gradient=True)
    training = Training.start(tunable, total=2, weight_decay=0.1)
    before = classifier.trunk.unused.weight.detach().clone()
    events = tune(
        training, Given(), Schedule(4, ((0.0, 4),)), module=classifier, device=torch.device("cpu"), objective=Objective(),
        watcher=Nobody(),
    )  # fmt: skip
    list(events)
    assert [group["rate"] for group in training.optimiser.param_groups] == [1.0, 0.0, 1.0]
    assert torch.equal(classifier.trunk.unused.weight, before)


def test_the_groups_learn_at_their_fraction_of_the_schedules_rate():
    training, events = running("full", steps=6, stage_decay=0.5)
    next(events)
    factor = learning_rate_factor(0.5 / 6)
    assert 0 < factor < 1 and WARM_UP > 0.5 / 6
    for group, live in zip(training.tunable.groups, training.optimiser.param_groups, strict=True):
        assert live["lr"] == pytest.approx(0.01 * group.rate * factor)
    assert {group.rate for group in training.tunable.groups} == {0.25, 0.5, 1.0}


def test_a_balanced_run_gives_each_class_its_part_in_every_epoch():
    training = Training.start(prepared("full"), total=6, weight_decay=0.0)
    given = Given()
    given.labels = np.repeat([0, 1, 2], [9, 2, 1])
    seen = []
    parts = given.parts
    given.parts = lambda rows, **where: (seen.extend(rows), parts(rows, **where))[1]
    list(
        tune(
            training, given, Schedule(4, ((0.0, 4),), balanced=True), module=training.tunable.classifier,
            device=torch.device("cpu"), objective=Objective(), watcher=Nobody(),
        )
    )  # fmt: skip
    assert len(seen) == 24
    for epoch in (seen[:12], seen[12:]):
        assert np.bincount(given.labels[np.array(epoch) % 12]).tolist() == [4, 4, 4]


LACKING = {"norms", "adapter", "prompt", "scratch"}  # this network has neither norms nor blocks nor a name in timm


@pytest.mark.parametrize("name", sorted({name for name in METHODS if METHODS[name].trains} - LACKING))
def test_objectives_of_every_kind_leave_finite_weights(name):
    how = Objective(label_smoothing=0.1, mixup=0.5, cutmix=0.5, sam=0.1, class_weights=(0.5, 1.0, 2.0))
    found = finished(name, objective=how)
    start = dict(prepared(name).classifier.named_parameters())
    assert all(torch.isfinite(value).all() for value in found.values())
    assert not torch.equal(found["head.weight"], start["head.weight"])


# ---- TrivialAugment --------------------------------------------------------------------------------------------------


def a_picture(height=20, width=28, seed=0):
    return torch.randint(0, 256, (3, height, width), generator=seeded(seed), dtype=torch.uint8)


@pytest.mark.parametrize("shape", [(20, 28), (1, 1), (2, 64), (32, 32)])
def test_trivial_augmentation_keeps_kind_and_shape(shape):
    for seed in range(60):
        found = trivial(a_picture(*shape), np.random.default_rng(seed))
        assert (found.dtype, found.shape) == (torch.uint8, (3, *shape))


@pytest.mark.parametrize("number", range(len(_OPERATIONS)))
@pytest.mark.parametrize("strength", [-1.0, -0.3, 0.0, 0.3, 1.0])
def test_each_operation_keeps_kind_and_shape_at_every_strength(number, strength):
    for image in (a_picture(), torch.zeros(3, 9, 9, dtype=torch.uint8), torch.full((3, 9, 9), 255, dtype=torch.uint8)):
        before = image.clone()
        found = _OPERATIONS[number](image, strength)
        assert (found.dtype, found.shape) == (torch.uint8, image.shape)
        assert torch.equal(image, before), "it wrote into the image"


def test_trivial_augmentation_follows_from_its_generator_alone():
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    before = global_states()
    first = [trivial(a_picture(), np.random.default_rng(seed)) for seed in range(30)]
    assert same_states(before, global_states()), "a global generator has moved"
    torch.manual_seed(2)
    np.random.seed(2)
    random.seed(2)
    again = [trivial(a_picture(), np.random.default_rng(seed)) for seed in range(30)]
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_trivial_augmentation_draws_operations_of_every_kind():
    found = {trivial(a_picture(), np.random.default_rng(seed)).numpy().tobytes() for seed in range(100)}
    assert len(found) > 60
    assert a_picture().numpy().tobytes() in found, "leaving the image as it is is one of the operations"


def test_at_strength_zero_geometry_and_colour_leave_the_image_as_it_is():
    for number in range(9):
        assert (_OPERATIONS[number](a_picture(), 0.0).int() - a_picture().int()).abs().max() <= 1, number


def views(how, *, ids=(0, 1, 2)):
    stored = np.random.default_rng(0).integers(0, 256, (3, 24, 24, 3), np.uint8)
    numbers = np.array(ids)
    return augmented(
        stored[numbers],
        np.ones(len(ids), np.float32),
        numbers,
        seed=0,
        epoch=1,
        how=how,
        preprocess=Preprocess(size=16),
    )


def test_views_with_trivial_augmentation_do_not_depend_on_their_batch():
    how = Augmentation(size=16, trivial=True)
    assert torch.equal(views(how)[2], views(how, ids=(2,))[0])
    assert views(how).shape == (3, 3, 16, 16)
    assert not torch.equal(views(how), views(replace(how, trivial=False)))


def test_the_recipe_says_how_views_differ_from_their_images():
    assert augmentation_of(Recipe(augment="plain"), size=64, flip=True) == Augmentation(size=64, flip=True)
    assert augmentation_of(Recipe(augment="trivial"), size=64, flip=False) == Augmentation(size=64, trivial=True)
    plain = views(augmentation_of(Recipe(augment="none"), size=24, flip=False))
    stored = np.random.default_rng(0).integers(0, 256, (3, 24, 24, 3), np.uint8)
    preprocess = Preprocess(size=16)
    mean, std = torch.tensor(preprocess.mean)[:, None, None], torch.tensor(preprocess.std)[:, None, None]
    expected = (torch.from_numpy(stored).permute(0, 3, 1, 2) / 255.0 - mean) / std
    torch.testing.assert_close(plain.contiguous(), expected, atol=1e-4, rtol=1e-4)


def test_where_a_device_has_no_memory_for_the_batch_its_parts_give_the_same_gradient():
    class Small(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.calls = torch.nn.Linear(4, 3), []

        def forward(self, x):
            self.calls.append(len(x))
            if len(x) > 4:
                raise torch.OutOfMemoryError("out of memory")
            return self.layer(x)

    torch.manual_seed(0)
    module, views, labels = Small(), torch.randn(12, 4), torch.arange(12) % 3
    optimiser = torch.optim.AdamW(module.parameters())
    loss = gradient(module, optimiser, views, labels, Objective(), 1)
    found = module.layer.weight.grad.clone()
    assert module.calls == [12, 6, 3, 3, 3, 3]
    whole = torch.nn.functional.cross_entropy(module.layer(views), labels)
    module.layer.zero_grad()
    whole.backward()
    assert loss == pytest.approx(whole.item()) and torch.allclose(found, module.layer.weight.grad, atol=1e-6)
    module.calls.clear()
    gradient(module, optimiser, views, labels, Objective(), 2)
    assert module.calls == [3, 3, 3, 3], "it is remembered"
    assert optimiser.param_groups[0]["pieces"] == 4
    module.calls.clear()
    too_large = torch.nn.Sequential(module, torch.nn.BatchNorm1d(3))
    with pytest.raises(torch.OutOfMemoryError):  # statistics of a part are not those of the batch
        gradient(too_large, torch.optim.AdamW(too_large.parameters()), views, labels, Objective(), 1)
