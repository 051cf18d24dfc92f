"""Promises of backbones.fast.fold: the same function, the same gradients, the same names; only faster."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from burnish.backbones import zoo
from burnish.backbones.fast import fold, frozen

torch.set_num_threads(1)

# name, how many of its BatchNorms follow a convolution, how many activations the CPU kernel can take over
FAMILIES = [
    ("tf_efficientnet_lite0", 49, 33),
    ("resnet18", 20, 9),
    ("resnet50", 53, 33),
    ("densenet121", 59, 59),
    ("mobilenetv3_small_050", 34, 23),
    ("mobilenetv4_conv_small", 46, 30),
    ("regnetx_002", 44, 27),
    ("ghostnet_100", 80, 34),
    ("levit_128s", 4, 3),
    ("resnetv2_50", 32, 32),
    ("convnext_atto", 0, 0),
    ("vit_tiny_patch16_224", 0, 0),
    ("nfnet_l0", 0, 0),
]
ON_CPU = torch.backends.mkldnn.is_available()


def _lived_in(module: nn.Module) -> nn.Module:
    """BatchNorms as after training; at their first values folding would have next to nothing to do."""
    generator = torch.Generator().manual_seed(1)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            with torch.no_grad():
                layer.running_mean.normal_(0, 0.1, generator=generator)
                layer.running_var.uniform_(0.5, 1.5, generator=generator)
                if layer.affine:
                    layer.weight.uniform_(0.5, 1.5, generator=generator)
                    layer.bias.normal_(0, 0.1, generator=generator)
    return module


def _network(name: str) -> tuple[nn.Module, torch.Tensor]:
    backbone = zoo.load_backbone(f"random:{name}")
    side = 224 if name in ("vit_tiny_patch16_224", "levit_128s") else 64
    return _lived_in(backbone.module), torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def _far(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize(("name", "pairs", "activations"), FAMILIES)
def test_folded_networks_compute_the_same_function(name, pairs, activations):
    module, images = _network(name)
    state = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    trainable, quick = fold.fold_trainable(module, images[:1]), frozen.fold_for_inference(module, images[:1])
    others = torch.rand(images.shape, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        expected = module(others)
        assert _far(trainable(others), expected) < 1e-4
        assert _far(quick(others), expected) < 1e-4
        assert torch.equal(quick(others), quick(others))
    assert fold.folded_count(trainable) == frozen.frozen_count(quick) == pairs
    assert list(trainable.state_dict()) == list(state)
    assert all(torch.equal(tensor, state[key]) for key, tensor in trainable.state_dict().items())
    assert all(torch.equal(tensor, state[key]) for key, tensor in module.state_dict().items())
    assert fold.folded_count(module) == 0
    if ON_CPU:
        taken = [layer.attribute for layer in quick.modules() if isinstance(layer, frozen.FrozenConv)]
        assert sum(attribute not in (None, "none") for attribute in taken) == activations
    assert not any(parameter.requires_grad for parameter in quick.parameters())
    assert not any(layer.training for layer in quick.modules())


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18", "mobilenetv3_small_050"])
def test_gradients_of_every_parameter_are_those_of_the_unfolded_module(name):
    module, images = _network(name)
    module, images = module.double(), images.double()
    folded = fold.fold_trainable(module, images)
    assert fold.folded_count(folded) > 0
    weights = torch.rand(module(images).shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (module(images) * weights).sum().backward()
    (folded(images) * weights).sum().backward()
    expected = dict(module.named_parameters())
    for key, parameter in folded.named_parameters():
        assert expected[key].grad is not None, key
        assert _far(parameter.grad, expected[key].grad) < 1e-9, key


def test_training_moves_parameters_and_never_statistics_whatever_the_mode():
    module, images = _network("resnet18")
    folded = fold.fold_trainable(module, images).train()
    optimiser = torch.optim.SGD(folded.parameters(), lr=0.1)
    before = copy.deepcopy(folded.state_dict())
    for _ in range(2):
        optimiser.zero_grad()
        folded(images).square().mean().backward()
        optimiser.step()
    for key, tensor in folded.state_dict().items():
        moved = not torch.equal(tensor, before[key])
        assert moved != any(part in key for part in ("running_", "num_batches")), key
    module.load_state_dict(folded.state_dict(), strict=True)
    with torch.no_grad():
        assert _far(folded.eval()(images), module.eval()(images)) < 1e-4


def test_a_state_dict_of_the_unfolded_module_can_be_loaded():
    module, images = _network("resnet18")
    folded = fold.fold_trainable(module, images)
    other = _lived_in(zoo.load_backbone("random:resnet18", seed=7).module)
    folded.load_state_dict(other.state_dict(), strict=True)
    with torch.no_grad():
        assert _far(folded(images), other(images)) < 1e-4


def test_a_copy_shares_nothing_and_in_place_keeps_the_parameter_objects():
    module, images = _network("resnet18")
    parameters = dict(module.named_parameters())
    copied = fold.fold_trainable(module, images)
    assert not {id(p) for p in copied.parameters()} & {id(p) for p in parameters.values()}
    twice = copy.deepcopy(copied)
    with torch.no_grad():
        twice.bn1.weight.add_(1.0)
        assert _far(twice(images), copied(images)) > 1e-3  # the copy's convolution reads the copy's BatchNorm
    same = fold.fold_trainable(module, images, inplace=True)
    assert same is module
    assert all(parameter is parameters[key] for key, parameter in same.named_parameters())


def test_modes_are_put_back():
    module, images = _network("resnet18")
    module.train()
    module.layer2.eval()
    modes = [layer.training for layer in module.modules()]
    fold.conv_bn_pairs(module, images)
    frozen.fold_for_inference(module, images)
    assert [layer.training for layer in module.modules()] == modes
    assert [layer.training for layer in fold.fold_trainable(module, images).modules()] == modes


def test_pairs_come_in_the_order_they_run():
    module, images = _network("tf_efficientnet_lite0")
    pairs = fold.conv_bn_pairs(module, images)
    assert pairs[0] == ("conv_stem", "bn1")
    assert pairs[1] == ("blocks.0.0.conv_dw", "blocks.0.0.bn1")
    assert pairs[-1] == ("conv_head", "bn2")


# ---- what must not be folded -----------------------------------------------------------------------------------------


class _Net(nn.Module):
    """A convolution and a BatchNorm, and `how` they are used."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.conv, self.bn, self.bn2 = how, nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        if how == "no statistics":
            self.bn = nn.BatchNorm2d(4, track_running_stats=False)
        if how == "not affine":
            self.bn = nn.BatchNorm2d(4, affine=False)
        if how == "standardised":
            self.conv = _Standardised(3, 4, 3)
        if how == "own norm":
            self.bn = _OwnNorm(4)
        if how == "parametrised":
            nn.utils.parametrizations.weight_norm(self.conv)
        if how == "hooked":
            self.conv.register_forward_hook(lambda layer, inputs, output: output * 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        if self.how == "relu between":
            y = y.relu()
        if self.how == "changed in place":
            y.add_(1)
        z = self.bn(y)
        if self.how == "also read elsewhere":
            z = z + y
        if self.how == "conv twice":
            z = z + self.bn2(self.conv(x + 1))
        if self.how == "bn twice":
            z = self.bn(z)
        return z


class _Standardised(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight / self.weight.std(dim=(1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias)


class _OwnNorm(nn.BatchNorm2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * 3


@pytest.mark.parametrize(
    "how",
    [
        "relu between",
        "changed in place",
        "also read elsewhere",
        "conv twice",
        "bn twice",
        "no statistics",
        "standardised",
        "own norm",
        "hooked",
    ],
)
def test_what_cannot_be_folded_is_left_and_stays_right(how):
    module = _lived_in_or_fresh(_Net(how)).eval()
    images = torch.rand(2, 3, 8, 8)
    assert fold.conv_bn_pairs(module, images) == []
    with torch.no_grad():
        assert _far(fold.fold_trainable(module, images)(images), module(images)) < 1e-6
        assert _far(frozen.fold_for_inference(module, images)(images), module(images)) < 1e-5


def _lived_in_or_fresh(module: nn.Module) -> nn.Module:
    return module if getattr(module, "how", "") == "no statistics" else _lived_in(module)


@pytest.mark.parametrize("how", ["plain", "not affine", "parametrised"])
def test_biases_missing_affines_and_parametrisations_stay_right(how):
    module = _lived_in(_Net(how)).eval()
    images = torch.rand(2, 3, 8, 8)
    folded = fold.fold_trainable(module, images)
    assert fold.folded_count(folded) == (how != "parametrised")
    with torch.no_grad():
        assert _far(folded(images), module(images)) < 1e-5
        assert _far(frozen.fold_for_inference(module, images)(images), module(images)) < 1e-5
    assert list(folded.state_dict()) == list(module.state_dict())


def test_a_fold_that_fails_its_check_falls_back(monkeypatch):
    module, images = _network("resnet18")
    layers = dict(module.named_modules())
    for room in (fold, frozen):
        monkeypatch.setattr(room, "folded_weight", lambda conv, norm: (conv.weight * 1.01, norm.bias))
    assert fold.folded_count(fold.fold_trainable(module, images)) == 0
    assert frozen.frozen_count(frozen.fold_for_inference(module, images)) == 0
    assert fold.folded_count(fold.fold_trainable(module, images, inplace=True)) == 0
    assert all(layer is layers[name] for name, layer in module.named_modules())
    with torch.no_grad():
        assert _far(frozen.fold_for_inference(module, images)(images), module(images)) < 1e-5


def test_a_kernel_that_is_wrong_is_not_used(monkeypatch):
    module, images = _network("resnet18")
    monkeypatch.setitem(frozen.FUSED, nn.ReLU, "sigmoid")
    quick = frozen.fold_for_inference(module, images)
    assert frozen.frozen_count(quick) == 20
    assert not any(isinstance(layer, frozen.FrozenConv) and layer.attribute for layer in quick.modules())


@pytest.mark.parametrize("side", [31, 32, 33, 40, 57])
def test_tensorflow_padding_is_right_at_every_size(side):
    module, _ = _network("tf_efficientnet_lite0")
    small = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
    small.load_state_dict(module.state_dict())
    quick = frozen.fold_for_inference(module, torch.rand(1, 3, 64, 64))
    images = torch.rand(1, 3, side, side + 3)
    with torch.no_grad():
        assert _far(quick(images), small(images)) < 1e-4


def test_a_frozen_network_also_runs_in_other_number_formats():
    module, images = _network("resnet18")
    quick = frozen.fold_for_inference(module, images).double()
    with torch.no_grad():
        assert _far(quick(images.double()), module.double()(images.double())) < 1e-5


# ---- given other weights -----------------------------------------------------------------------------------------------


def _moved(module: nn.Module) -> nn.Module:
    """The same object with all its weights changed a little, statistics too."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for value in (*module.parameters(), *module.buffers()):
            if value.is_floating_point():
                value.mul_(1.0 + 0.1 * torch.rand(value.shape, generator=generator))
    return module


@pytest.mark.skipif(not ON_CPU, reason="this machine's PyTorch has no oneDNN")
@pytest.mark.parametrize("name", [name for name, *_ in FAMILIES if name != "levit_128s"])
def test_a_form_that_is_given_other_weights_is_the_one_made_anew(name):
    module, example = _network(name)
    form = frozen.FastForm()
    first = form.of(module, example)
    before = first(example)
    again = form.of(_moved(module), example)
    assert again is first and _far(before, module.eval()(example)) > 1e-3
    assert torch.equal(again(example), frozen.fold_for_inference(module, example)(example))
    assert torch.equal(form.of(copy.deepcopy(module), example)(example), again(example)), "another of its structure"


class _Own(nn.Module):
    """A layer whose function hangs on more than its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.factor = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x)) * self.factor


@pytest.mark.skipif(not ON_CPU, reason="this machine's PyTorch has no oneDNN")
def test_a_form_that_cannot_be_given_them_is_made_anew(monkeypatch):
    example = torch.rand(2, 3, 16, 16)
    form, own = frozen.FastForm(), _lived_in(_Own()).eval()
    first = form.of(own, example)
    own.factor = 2.0
    assert form.of(own, example) is not first and _far(form.of(own, example)(example), own(example)) < 1e-5
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.PReLU()).eval()
    assert _far(form.of(other, example)(example), other(example)) < 1e-5, "another network"
    wider = nn.Sequential(nn.Conv2d(3, 8, 3), nn.PReLU()).eval()
    assert _far(form.of(wider, example)(example), wider(example)) < 1e-5
    with torch.no_grad():
        wider[0].weight.fill_(float("nan"))
    assert not torch.isfinite(form.of(wider, example)(example)).all(), "and gives what the network gives"
    monkeypatch.setattr(frozen, "_HELD_BYTES", 10)
    kept = frozen.FastForm()
    assert kept.of(other, example) is not kept.of(other, example), "a large one is not held"


class _Blocks(nn.Module):
    """Convolutions with and without a bias, one of which is frozen."""

    def __init__(self):
        super().__init__()
        self.one, self.first = nn.Conv2d(3, 8, 3, bias=True), nn.BatchNorm2d(8)
        self.two, self.second = nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.BatchNorm2d(8)
        self.three, self.third = nn.Conv2d(8, 6, 1, bias=False), nn.BatchNorm2d(6)
        self.three.requires_grad_(False), self.third.requires_grad_(False)
        for norm in (self.first, self.second, self.third):
            (
                nn.init.uniform_(norm.running_var, 0.5, 2.0),
                nn.init.normal_(norm.running_mean),
                nn.init.normal_(norm.weight),
            )

    def forward(self, images):
        return self.third(self.three(self.second(self.two(self.first(self.one(images)).relu())).relu()))


def test_what_is_folded_once_for_several_batches_has_the_gradient_of_all():
    torch.manual_seed(0)
    network = _Blocks().eval()
    images = torch.randn(9, 3, 12, 12)
    folded = fold.fold_trainable(network, images[:1])
    assert fold.folded_count(folded) == 3
    wanted = torch.autograd.grad(
        network(images).square().sum(), [one for one in network.parameters() if one.requires_grad]
    )
    with fold.folded_once(folded):
        for start in range(0, 9, 4):
            folded(images[start : start + 4]).square().sum().backward()
        calls = [one.grad for one in folded.parameters()]
    assert calls == [None] * len(calls)  # all of it comes at the end
    for name, parameter in folded.named_parameters():
        if not parameter.requires_grad:
            assert parameter.grad is None, name
    found = [one.grad for one in folded.parameters() if one.requires_grad]
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-4)
    before = [one.clone() for one in found]
    folded(images).square().sum().backward()  # folds anew, and adds to what is there
    assert all(torch.allclose(one, 2 * was, rtol=1e-3, atol=1e-3) for one, was in zip(found, before, strict=True))


def test_an_error_while_folded_once_leaves_no_gradient_and_no_weights_behind():
    network = _Blocks().eval()
    folded = fold.fold_trainable(network, torch.randn(1, 3, 12, 12))
    with pytest.raises(RuntimeError, match="on purpose"), fold.folded_once(folded):
        folded(torch.randn(2, 3, 12, 12)).sum().backward()
        raise RuntimeError("on purpose")
    assert all(one.grad is None for one in folded.parameters())
    with torch.no_grad():
        folded.one.weight.mul_(2.0)
        assert not torch.equal(folded(torch.ones(1, 3, 12, 12)), network(torch.ones(1, 3, 12, 12)))
