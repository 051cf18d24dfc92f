"""Promises of backbones.fast.cut: two halves that are the whole, made of the trunk's own layers, or None."""

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from burnish.backbones.classifier import Classifier
from burnish.backbones.fast.cut import Cut, cut
from burnish.backbones.spec import Backbone, Stage
from burnish.backbones.zoo import load_backbone
from burnish.train.parts import UpperForm, parts_for_training

# Network and the side of its images, pixels; all of these can be divided at every stage.
DIVISIBLE = {
    "test_resnet": 64,
    "test_efficientnet": 64,
    "test_efficientnet_ln": 64,
    "test_efficientnet_gn": 64,
    "test_convnext": 64,
    "test_byobnet": 64,
    "test_mambaout": 64,
    "test_nfnet": 64,
    "vit_tiny_patch16_224": 64,
    "deit_tiny_distilled_patch16_224": 64,
    "densenet121": 64,
    "swin_tiny_patch4_window7_224": 112,
    "mobilenetv3_small_050": 64,
    "regnetx_002": 64,
    "tf_efficientnet_lite0": 64,
}
# Their forward pass asks for the size of the images (a position embedding that is resampled), or hands two values on.
INDIVISIBLE = {"test_vit": 160, "xcit_nano_12_p16_224": 64}


def built(name):
    """The network with random weights, for images of its size above."""
    found, size = load_backbone(f"random:{name}"), {**DIVISIBLE, **INDIVISIBLE}[name]
    return load_backbone(f"random:{name}", image_size=size) if found.one_size else found


@dataclass(frozen=True)
class Network:
    """A network, cut at each stage in turn: cuts[0] after the first."""

    backbone: Backbone
    size: int
    cuts: list[Cut | None]


SLOW = ("swin_tiny_patch4_window7_224", "deit_tiny_distilled_patch16_224", "densenet121")


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in DIVISIBLE]
)
def network(request):
    backbone, size = built(request.param), DIVISIBLE[request.param]
    places = range(1, len(backbone.stages))
    return Network(backbone, size, [cut(backbone.module, backbone.stages, at, images(2, size)) for at in places])


def images(count, size, *, seed=0):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def parameters_of(backbone, stages):
    """The parameters of these stages, buffers left out."""
    names = {name for stage in stages for name in stage.parameters}
    return {id(value) for name, value in backbone.module.named_parameters() if name in names}


def ids(module):
    return {id(parameter) for parameter in module.parameters()}


def stages_of(module):
    """One stage a top-level layer, in order."""
    by_layer = {}
    for name in module.state_dict():
        by_layer.setdefault(name.partition(".")[0], []).append(name)
    return [Stage(layer, tuple(names)) for layer, names in by_layer.items()]


# ---- networks of timm ------------------------------------------------------------------------------------------------


def test_at_every_stage_the_halves_are_the_whole_for_other_batches_and_sizes(network):
    others = [images(3, network.size, seed=1), images(1, network.size, seed=2)]
    others += [] if network.backbone.one_size else [images(2, network.size + 32, seed=3)]
    with torch.no_grad():
        expected = [network.backbone.module(other) for other in others]
        for at, halves in enumerate(network.cuts, start=1):
            assert halves is not None, f"at {at} of {len(network.backbone.stages)}"
            for other, whole in zip(others, expected, strict=True):
                torch.testing.assert_close(halves.upper(halves.lower(other)), whole, rtol=1e-5, atol=1e-6)


def test_the_halves_hold_the_trunks_own_parameters_on_the_right_side(network):
    for at, halves in enumerate(network.cuts, start=1):
        above = parameters_of(network.backbone, network.backbone.stages[at:])
        assert ids(halves.lower) | ids(halves.upper) == ids(network.backbone.module)
        assert not ids(halves.lower) & above, f"what is to learn lies in the frozen half, at {at}"
        assert above <= ids(halves.upper), f"at {at}"


def test_a_half_holds_no_parameter_of_the_other(network):
    for at, halves in enumerate(network.cuts, start=1):
        assert not ids(halves.lower) & ids(halves.upper), f"at {at}"


def test_the_upper_half_does_not_change_the_activations_it_is_given(network):
    """They are kept and given again: an activation function that works in place must not write into them."""
    for at, halves in enumerate(network.cuts, start=1):
        with torch.no_grad():
            activations = halves.lower(images(2, network.size, seed=4))
            before = activations.clone()
            halves.upper(activations)
        assert torch.equal(activations, before), f"at {at}"


def test_only_the_upper_half_gets_gradients(network):
    stages = network.backbone.stages
    at = len(stages) // 2
    halves = network.cuts[at - 1]
    with torch.no_grad():
        activations = halves.lower(images(2, network.size, seed=5))
    assert not activations.requires_grad
    halves.upper(activations).square().sum().backward()
    found = {key: value.grad for key, value in network.backbone.module.named_parameters() if value.grad is not None}
    network.backbone.module.zero_grad(set_to_none=True)
    parameters = {key for key, _ in network.backbone.module.named_parameters()}
    assert set(found) == {name for stage in stages[at:] for name in stage.parameters} & parameters
    assert any(gradient.any() for gradient in found.values())


@pytest.mark.parametrize("name", ["test_resnet", "vit_tiny_patch16_224"])
def test_a_weight_that_is_changed_in_a_half_is_changed_in_the_trunk(name):
    backbone, size = built(name), DIVISIBLE[name]
    halves = cut(backbone.module, backbone.stages, 2, images(2, size))
    assert halves is not None
    with torch.no_grad():
        before = backbone.module(images(2, size))
        for half in (halves.lower, halves.upper):
            for parameter in half.parameters():
                parameter.mul_(0.9)
        after = backbone.module(images(2, size))
        assert not torch.allclose(before, after, rtol=1e-3)
        torch.testing.assert_close(halves.upper(halves.lower(images(2, size))), after, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "vit_tiny_patch16_224"])
def test_nothing_is_cut_at_either_end(name):
    backbone, size = built(name), DIVISIBLE[name]
    assert cut(backbone.module, backbone.stages, 0, images(2, size)) is None
    assert cut(backbone.module, backbone.stages, len(backbone.stages), images(2, size)) is None


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_cutting_leaves_the_trunk_as_it_was(name):
    backbone = built(name)
    module, stages = backbone.module, backbone.stages
    module.train()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()
    modes = {key: layer.training for key, layer in module.named_modules()}
    state = {key: value.clone() for key, value in module.state_dict().items()}
    layers = [id(layer) for layer in module.modules()]
    for at in range(len(stages) + 1):
        cut(module, stages, at, images(2, DIVISIBLE[name]))
    assert {key: layer.training for key, layer in module.named_modules()} == modes
    assert [id(layer) for layer in module.modules()] == layers
    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())
    assert set(modes.values()) == {True, False}


@pytest.mark.parametrize("name", INDIVISIBLE)
def test_a_network_of_timm_that_can_hardly_be_divided_gives_none_or_what_is_right(name):
    backbone, size = built(name), INDIVISIBLE[name]
    with torch.no_grad():
        for at in range(1, len(backbone.stages)):
            halves = cut(backbone.module, backbone.stages, at, images(2, size))
            if halves is not None:
                other = images(3, size, seed=1)
                torch.testing.assert_close(
                    halves.upper(halves.lower(other)), backbone.module(other), rtol=1e-5, atol=1e-6
                )


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext", "vit_tiny_patch16_224"])
def test_what_is_trained_on_kept_activations_is_the_classifier(name):
    """Folded and cut, for training and for looking at candidates: the same logits as the plain network's."""
    size, backbone = DIVISIBLE[name], built(name)
    for freeze in (1, 2, len(backbone.stages) - 1):
        classifier = Classifier.over(backbone, 3)
        nn.init.normal_(classifier.head.weight, std=0.1, generator=torch.Generator().manual_seed(0))
        other = images(3, size, seed=6)
        with torch.no_grad():
            expected, shell = classifier(other), copy.deepcopy(classifier)
            parts = parts_for_training(classifier, backbone, freeze, images(2, size), half=False)
            assert parts.lower is not None
            activations = parts.lower(other)
            torch.testing.assert_close(parts.trained(activations), expected, rtol=1e-3, atol=1e-4)
            upper = UpperForm().of(shell, backbone, freeze, images(2, size))
            torch.testing.assert_close(upper(activations), expected, rtol=1e-3, atol=1e-4)


# ---- networks that cannot be divided ---------------------------------------------------------------------------------


class Toy(nn.Module):
    """Three layers on feature maps; subclasses wire them."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first = nn.Conv2d(3, 3, 3, padding=1)
            self.second = nn.Conv2d(3, 3, 3, padding=1)
            self.third = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return self.third(self.second(self.first(x))).mean((2, 3))


class SkipFromImages(Toy):
    def forward(self, x):
        return (self.third(self.second(self.first(x))) + x).mean((2, 3))


class SkipFromFirst(Toy):
    def forward(self, x):
        first = self.first(x)
        return (self.third(self.second(first)) + first).mean((2, 3))


class SizeOfImages(Toy):
    def forward(self, x):
        height = x.shape[2]
        return self.third(self.second(self.first(x))).sum((2, 3)) / height


class Branches(Toy):
    def forward(self, x):
        x = self.first(x)
        if x.mean() > 0:
            x = x + 1
        return self.third(self.second(x)).mean((2, 3))


class Backwards(Toy):
    """The layers named last come first."""

    def forward(self, x):
        return self.first(self.second(self.third(x))).mean((2, 3))


class Twice(Toy):
    """The first layer is used again at the end."""

    def forward(self, x):
        return self.first(self.third(self.second(self.first(x)))).mean((2, 3))


class Noise(Toy):
    def forward(self, x):
        x = self.first(x)
        return self.third(self.second(x + torch.rand_like(x))).mean((2, 3))


class Two(Toy):
    def forward(self, x):
        first = self.first(x)
        both = (first, first * 2)
        return self.third(self.second(both[0]) + both[1]).mean((2, 3))


class OfTheBatch(Toy):
    """What crosses is one value for the whole batch."""

    def forward(self, x):
        return self.third(self.second(self.first(x).mean(0, keepdim=True))).mean((2, 3)).expand(len(x), 3)


class AnyArguments(Toy):
    def forward(self, *args, **kwargs):
        return super().forward(args[0])


class Fails(Toy):
    def forward(self, x):
        raise RuntimeError("this network is broken")


class NotANumber(Toy):
    def forward(self, x):
        return super().forward(x) * float("nan")


class Numpy(Toy):
    def forward(self, x):
        return super().forward(torch.from_numpy(x.detach().numpy().copy()))


class Counts(Toy):
    """Python's own numbers of the images."""

    def forward(self, x):
        return super().forward(x) / float(len(x))


CLEFT = [SkipFromImages, SizeOfImages, Branches, Backwards, Noise, Fails, NotANumber, Numpy, Counts]


@pytest.mark.parametrize("kind", CLEFT)
@pytest.mark.parametrize("at", [1, 2])
def test_a_forward_pass_that_cannot_be_divided_gives_none(kind, at):
    toy = kind()
    assert cut(toy, stages_of(toy), at, images(2, 8)) is None


@pytest.mark.parametrize("kind", [Toy, SkipFromFirst, Twice, Two, OfTheBatch, AnyArguments])
@pytest.mark.parametrize("at", [1, 2])
def test_what_is_divided_is_right_and_never_an_error(kind, at):
    toy = kind()
    stages = stages_of(toy)
    halves = cut(toy, stages, at, images(2, 8))
    if kind is Toy:
        assert halves is not None
    if (kind, at) == (OfTheBatch, 1):
        assert halves is None
    if halves is not None:
        above = {id(toy.get_parameter(name)) for stage in stages[at:] for name in stage.parameters}
        assert above <= ids(halves.upper)
        assert not above & ids(halves.lower)
        with torch.no_grad():
            for other in (images(5, 8, seed=1), images(2, 12, seed=2)):
                torch.testing.assert_close(halves.upper(halves.lower(other)), toy(other))


def test_a_border_is_moved_below_what_has_no_weights_rather_than_through_two_values():
    """After the first layer only its own value crosses, though it is read twice above."""
    toy = SkipFromFirst()
    halves = cut(toy, stages_of(toy), 1, images(2, 8))
    assert halves is not None
    assert torch.equal(halves.lower(images(2, 8)), toy.first(images(2, 8)))
    assert ids(halves.lower) == ids(toy.first)


def test_dropout_above_the_border_follows_the_mode_of_the_half():
    class Dropping(Toy):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x):
            return self.third(self.drop(self.second(self.first(x)))).mean((2, 3))

    toy = Dropping().eval()
    halves = cut(toy, stages_of(toy), 1, images(2, 8))
    assert halves is not None
    with torch.no_grad():
        activations = halves.lower(images(2, 8))
        assert torch.equal(halves.upper(activations), toy(images(2, 8)))
        halves.upper.train()
        assert not torch.equal(halves.upper(activations), halves.upper(activations))


def test_no_global_random_number_is_drawn():
    toy = Toy()
    before = torch.get_rng_state()
    cut(toy, stages_of(toy), 1, images(2, 8))
    assert torch.equal(torch.get_rng_state(), before)
