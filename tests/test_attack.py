"""Attacks: what they may change, that they find what there is, and that they say where they cannot."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from burnish.backbones import zoo
from burnish.measure.attack import Ball, Target, apgd, fgsm, signs, strongest
from burnish.terms import Preprocess

SIDE = 24
PLAIN = Preprocess(size=SIDE, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
HERE = torch.device("cpu")


class Linear(nn.Module):
    """A plane between two classes, whose distance from any image is known."""

    def __init__(self):
        super().__init__()
        rng = np.random.default_rng(0)
        self.weight = nn.Parameter(torch.from_numpy(rng.standard_normal((3, SIDE, SIDE)).astype(np.float32)))

    def forward(self, images):
        across = (images * self.weight).sum((1, 2, 3))
        return torch.stack([across, -across], 1)


class Bent(nn.Module):
    """Two layers of convolutions and a head: not a plane."""

    def __init__(self, classes=4):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2), nn.GELU(), nn.Conv2d(8, 8, 3, stride=2), nn.GELU(), nn.Flatten(), nn.LazyLinear(classes)
        )  # fmt: skip
        self.layers(torch.zeros(1, 3, SIDE, SIDE))
        for one in self.parameters():
            one.data = torch.randn(one.shape, generator=generator) / max(1, one[0].numel()) ** 0.5

    def forward(self, images):
        return self.layers(images)


class Sure(nn.Module):
    """Hides the way: its answer does not change by little, so it has no slope."""

    def forward(self, images):
        bright = (images.mean((1, 2, 3)) * 4).round()
        return torch.stack([bright, 1 - bright], 1)


class Ripples(nn.Module):
    """A plane whose slope points the wrong way at every whole value, though the answers to whole values are those of the plane."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.from_numpy(np.random.default_rng(0).standard_normal((3, SIDE, SIDE))).float())

    def forward(self, images):
        values = images * 255
        across = ((values - 1.5 * torch.sin(2 * math.pi * values) / (2 * math.pi)) * self.weight).sum((1, 2, 3)) / 1000
        return torch.stack([across, -across], 1)


class Between(nn.Module):
    """Wrong wherever a value is no whole one, and right about every file."""

    def forward(self, images):
        off = torch.sin(math.pi * images * 255).square().mean((1, 2, 3))
        return torch.stack([torch.full_like(off, 0.1), off], 1)


class Trap(nn.Module):
    """Red leads to the likeliest other class, which never wins; blue to another one, which does."""

    def forward(self, images):
        red, blue = (images[:, channel].mean((1, 2)) * 255 - 100 for channel in (0, 2))
        return torch.stack([torch.zeros_like(red), -0.1 - torch.exp(-red), blue - 3], 1)


class Noisy(nn.Module):
    """A plane, seen through noise that is drawn in each call."""

    def __init__(self, noise):
        super().__init__()
        self.plane, self.noise = Linear(), noise

    def forward(self, images):
        return self.plane(images + self.noise * torch.randn(images.shape))


class FromFileToFile(Target):
    """Slopes are those at whole values, wherever they are asked for."""

    def look(self, points, labels, *, smooth=False):
        return super().look(points.round(), labels, smooth=smooth)


def images(count=6, side=SIDE):
    return torch.from_numpy(np.random.default_rng(1).integers(0, 256, (count, side, side, 3))).float()


def target_of(network, preprocess=PLAIN):
    return Target(network, preprocess, HERE)


def answers(target, points):
    return target.logits(points).argmax(1)


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 1.5, 4.0])
def test_an_attack_changes_no_value_by_more_than_epsilon_and_what_it_finds_could_be_a_file(epsilon):
    target, clean = target_of(Bent()), images()
    labels, ids, ball = answers(target, clean), list("abcdef"), Ball(clean, epsilon)
    for points in (signs(ball, ids, seed=0), fgsm(target, ball, labels), apgd(target, ball, labels, ids, steps=6)):
        assert float((points - clean).abs().max()) <= epsilon
        assert float(points.min()) >= 0.0 and float(points.max()) <= 255.0
        assert torch.equal(points, points.round()) == (epsilon >= 1.0)
        assert not torch.equal(points, clean)


def test_of_a_plane_the_attack_finds_the_nearest_image_beyond_it_and_nothing_before():
    """Of a linear network one whole step against the slope is the best there is: the climb must come as far, and no farther."""
    target, clean = target_of(Linear()), images(8).clamp(16, 239)
    labels = answers(target, clean)
    loss, _, slope = target.look(clean, labels)
    nearest = -loss / slope.abs().sum((1, 2, 3))  # in values: by so much each must change
    for epsilon in (float(nearest.median().floor()), float(nearest.median().ceil()), 16.0):
        best = target.loss(fgsm(target, Ball(clean, epsilon), labels), labels)
        found = target.loss(apgd(target, Ball(clean, epsilon), labels, list(range(8))), labels)
        assert torch.equal(found > 0, best > 0)
        lost = (epsilon > nearest) & (torch.abs(epsilon - nearest) > 1e-3)
        assert torch.equal(found > 0, lost)


def test_a_climb_comes_farther_than_one_step_and_noise_less_far():
    target, clean = target_of(Bent(10)), images(24)
    labels, ids, ball = answers(target, clean), list(range(24)), Ball(clean, 3.0)
    noise, step = (target.loss(points, labels) for points in (signs(ball, ids, seed=0), fgsm(target, ball, labels)))
    climb = target.loss(strongest(target, ball, labels, ids, clean), labels)
    assert (noise > 0).sum() < (step > 0).sum() <= (climb > 0).sum()
    assert not ((step > 0) & (climb <= 0)).any()


def test_an_attack_depends_on_seed_and_image_and_not_on_the_batch():
    target, clean = target_of(Bent()), images(3)
    labels = answers(target, clean)
    together = apgd(target, Ball(clean, 2.0), labels, ["a", "b", "c"], steps=5)
    alone = apgd(target, Ball(clean[1:2], 2.0), labels[1:2], ["b"], steps=5)
    assert (
        together[1] == alone[0]
    ).float().mean() > 0.99  # sums of another batch round otherwise: a slope near 0 turns
    assert not torch.equal(alone, apgd(target, Ball(clean[1:2], 2.0), labels[1:2], ["b"], steps=5, seed=1))
    assert not torch.equal(alone, apgd(target, Ball(clean[1:2], 2.0), labels[1:2], ["b"], steps=5, start=1))


def test_a_climb_through_fractions_breaks_files_that_one_from_file_to_file_does_not():
    plain, clean = Preprocess(size=SIDE, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)), images(16).clamp(16, 239)
    target, ids, ball = target_of(Ripples(), plain), list(range(16)), Ball(clean, 8.0)
    labels = answers(target, clean)
    found = apgd(target, ball, labels, ids, steps=20)
    whole = apgd(FromFileToFile(target.network, plain, HERE), ball, labels, ids, steps=20)
    assert torch.equal(found, found.round()) and float((found - clean).abs().max()) <= 8.0
    assert not (target.loss(whole, labels) > 0).any() and (target.loss(found, labels) > 0).sum() >= 8


def test_what_counts_is_the_file_and_not_the_fraction_beside_it():
    plain, clean = Preprocess(size=SIDE, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)), images(3)
    target, labels = target_of(Between(), plain), torch.zeros(3, dtype=torch.int64)
    assert (target.loss(clean + 0.5, labels) > 0).all()
    found = strongest(target, Ball(clean, 2.0), labels, [0, 1, 2], clean, steps=8)
    assert torch.equal(found, found.round()) and (target.loss(found, labels) < 0).all()
    assert (target.loss(strongest(target, Ball(clean, 0.5), labels, [0, 1, 2], clean, steps=8), labels) > 0).all()


def test_a_likely_class_that_cannot_win_does_not_hide_another_that_can():
    plain = Preprocess(size=SIDE, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    target, clean = target_of(Trap(), plain), torch.full((2, SIDE, SIDE, 3), 101.0)
    labels, ids, ball = answers(target, clean), [0, 1], Ball(clean, 4.0)
    margin = apgd(target, ball, labels, ids, smooth=False, steps=20)
    assert not labels.any() and (target.loss(margin, labels) <= 0).all()
    assert (target.loss(apgd(target, ball, labels, ids, steps=20), labels) > 0).all()
    assert (target.loss(strongest(target, ball, labels, ids, clean, steps=20), labels) > 0).all()


def test_a_network_that_draws_noise_is_told_and_its_slope_is_a_mean():
    clean = images(4)
    noisy, plain = target_of(Noisy(2.0)), target_of(Linear())
    labels = answers(plain, clean)
    assert noisy.wavers(clean).all() and not plain.wavers(clean).any() and not target_of(Bent()).wavers(clean).any()
    assert not target_of(Noisy(1e-7)).wavers(clean).any()
    apart = [(one.loss(clean, labels) - plain.loss(clean, labels)).abs().mean() for one in (noisy, noisy.over(200))]
    assert apart[1] < 0.5 * apart[0]
    assert torch.allclose(plain.over(3).look(clean, labels)[2], plain.look(clean, labels)[2], atol=1e-6)


def test_what_is_lost_at_a_smaller_epsilon_stays_lost():
    target, clean = target_of(Bent(10)), images(12)
    labels, ids, worst, before = answers(target, clean), list(range(12)), clean, torch.zeros(12, dtype=torch.bool)
    for epsilon in (1.0, 2.0, 4.0):
        worst = strongest(target, Ball(clean, epsilon), labels, ids, worst, starts=1)
        lost = target.loss(worst, labels) > 0
        assert not (before & ~lost).any() and float((worst - clean).abs().max()) <= epsilon
        before = lost
    assert before.any()


def test_a_network_without_slopes_is_seen_to_have_none():
    target = target_of(Sure())
    loss, _, slope = target.look(images(), torch.zeros(6, dtype=torch.int64))
    assert not slope.any() and torch.isfinite(loss).all()


def test_with_several_classes_an_image_the_sum_of_their_losses_is_raised():
    target, clean = target_of(Bent(3)), images(5)
    labels = target.logits(clean) > 0
    before = target.loss(clean, labels)
    after = target.loss(strongest(target, Ball(clean, 4.0), labels, list(range(5)), clean), labels)
    assert (after > before).all()


@pytest.mark.parametrize("name", ["random:test_resnet", "random:test_vit"])
def test_convolutions_and_transformers_are_attacked_and_stay_as_they_were(name):
    backbone = zoo.load_backbone(name, image_size=32, seed=0)
    size = backbone.preprocess.size
    head = nn.Linear(backbone.width, 5)
    network = nn.Sequential(copy.deepcopy(backbone.module), head)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    target, clean = target_of(network, backbone.preprocess), images(2, size)
    labels, ids = answers(target, clean), [0, 1]
    loss, _, slope = target.look(clean, labels)
    found = target.loss(apgd(target, Ball(clean, 8.0), labels, ids, steps=5), labels)
    assert slope.abs().amax((1, 2, 3)).min() > 0 and (found > loss).all()
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
