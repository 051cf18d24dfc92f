"""A convolution and its activation as one step: what it gives and all its gradients are those of one after the other."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from burnish.backbones.fast import convolved
from burnish.backbones.fast.convolved import Convolution, How, how_of
from burnish.backbones.fast.fold import FoldedConv, FoldedNorm, fold_trainable, plainly_convolved
from burnish.backbones.zoo import load_backbone

ACTS = {None: lambda values: values, "relu": F.relu, "hardtanh": F.relu6}


def drawn(*shape, seed=0, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(shape, generator=generator, dtype=torch.float64)


def compared(how, images, weight, bias, *, tolerance):
    """In the number format of the images against float64."""
    given = [one.detach().clone().requires_grad_() for one in (images, weight, bias)]
    exact = [one.detach().double().requires_grad_() for one in given]
    (top, left), (bottom, right) = how.before, how.behind
    padded = F.pad(exact[0], (left, right, top, bottom))
    expected = ACTS[how.act](F.conv2d(padded, *exact[1:], how.stride, 0, how.dilation, how.groups))
    found = Convolution.apply(*given, how)
    assert found.dtype == images.dtype and found.shape == expected.shape
    # Where rounding decides which side of a corner it is on, nothing is asked.
    clear = (expected.abs() > 0.05) & ((expected - 6).abs() > 0.05) if how.act else torch.ones_like(expected)
    upstream = (drawn(*expected.shape, seed=9) * clear).to(images.dtype)
    wanted = torch.autograd.grad(expected, exact, upstream.double())
    gradients = torch.autograd.grad(found, given, upstream)
    for one, other in zip((found, *gradients), (expected, *wanted), strict=True):
        assert one.dtype == images.dtype and one.shape == other.shape
        apart = (one.detach().double() - other.detach()).norm() / other.detach().norm().clamp(min=1e-9)
        assert apart <= tolerance, apart


FORMATS = [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.02)]
IDS = ["float64", "float32", "bfloat16"]
DEPTHWISE = [
    (kernel, stride, side, before, more, act)
    for kernel, stride, side in itertools.product((3, 4, 5, 7), (1, 2), (7, 8, 13, 14))
    for before, more in sorted({(0, 0), (kernel // 2, 0), ((kernel - 1) // 2, 1 - kernel % 2), ((kernel - 2) // 2, 1)})
    for act in ((None, "relu", "hardtanh") if kernel == 3 else ("hardtanh",))
]


@pytest.mark.parametrize("wide", [False, True], ids=["", "AVX-512"])
@pytest.mark.parametrize(("kind", "tolerance"), FORMATS, ids=IDS)
def test_depthwise(kind, tolerance, wide, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512" if wide else "AVX2")
    for kernel, stride, side, before, more, act in DEPTHWISE:
        how = How((stride,) * 2, (before,) * 2, (before + more,) * 2, (1, 1), 6, True, act)
        images, weight = drawn(3, 6, side, side + 2), drawn(6, 1, kernel, kernel, seed=1)
        compared(how, images.to(kind), weight.to(kind), drawn(6, seed=2).to(kind), tolerance=tolerance)


@pytest.mark.parametrize("uneven", [(0, 1), (1, 0)])
def test_rows_and_columns_may_be_padded_differently(uneven):
    for kind, tolerance in FORMATS:
        how = How((2, 2), (1, 1), (1 + uneven[0], 1 + uneven[1]), (1, 1), 4, True, "relu")
        images, weight = drawn(2, 4, 9 + uneven[0], 9 + uneven[1]), drawn(4, 1, 5, 5, seed=1)
        compared(how, images.to(kind), weight.to(kind), drawn(4, seed=2).to(kind), tolerance=tolerance)


@pytest.mark.parametrize(("kind", "tolerance"), FORMATS, ids=IDS)
@pytest.mark.parametrize("act", ["relu", "hardtanh"])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
def test_dense_and_grouped(kind, tolerance, act, last):
    for groups, kernel, stride, dilation in itertools.product((1, 2), ((1, 1), (3, 3), (1, 7)), (1, 2), (1, 2)):
        padding = tuple(side // 2 * dilation for side in kernel)
        how = How((stride, stride), padding, padding, (dilation, dilation), groups, False, act)
        images, weight = drawn(2, 4, 14, 13).to(kind), drawn(6, 4 // groups, *kernel, seed=1).to(kind)
        if last:
            images = images.contiguous(memory_format=torch.channels_last)
        compared(how, images, weight, drawn(6, seed=2).to(kind), tolerance=tolerance)


def test_only_the_gradients_that_are_asked_for_are_computed(monkeypatch):
    asked = []
    own = convolved._aten

    def told(*given):
        asked.append(given[-1])
        return own(*given)

    monkeypatch.setattr(convolved, "_aten", told)
    how = How((1, 1), (1, 1), (1, 1), (1, 1), 1, False, "relu")
    weight, bias = drawn(2, 3, 3, 3).requires_grad_(), drawn(2)
    Convolution.apply(drawn(1, 3, 5, 5), weight, bias, how).sum().backward()
    assert asked == [[False, True, False]] and weight.grad is not None


@pytest.mark.parametrize(
    ("conv", "act", "taken"),
    [
        (nn.Conv2d(4, 8, 3), nn.ReLU(), True),
        (nn.Conv2d(4, 8, 3), nn.ReLU6(), True),
        (nn.Conv2d(4, 8, 3), None, False),
        (nn.Conv2d(4, 8, 3), nn.SiLU(), False),
        (nn.Conv2d(4, 8, 3), nn.Hardtanh(0.0, 6.0), False),
        (nn.Conv2d(4, 8, 3, padding="same"), nn.ReLU(), False),
        (nn.Conv2d(4, 8, 3, padding=1, padding_mode="reflect"), nn.ReLU(), False),
        (nn.Conv2d(4, 4, 3, groups=4), None, True),
        (nn.Conv2d(4, 4, 3, groups=4, padding=3), nn.ReLU(), False),
        (nn.Conv2d(4, 4, (3, 5), groups=4), nn.ReLU(), True),
        (nn.Conv2d(4, 8, 3, groups=4), nn.ReLU(), True),
        (nn.LazyConv2d(4, 3), nn.ReLU(), False),
    ],
)
def test_what_is_taken(conv, act, taken):
    assert (how_of(conv, act, (14, 14)) is not None) is taken


class Plain(nn.Module):
    """ReLU as a layer of its own, one that two share, and one inside what is added up."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3 if place == 0 else 8, 8, 3, padding=1, bias=False) for place in range(5))
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(5))
        self.first, self.shared, self.swish, self.last = nn.ReLU(inplace=True), nn.ReLU(), nn.SiLU(), nn.ReLU6()
        for seed, norm in enumerate(self.norms):
            norm.running_mean += 0.3 * drawn(8, seed=seed).float()
            norm.running_var *= 1.5

    def forward(self, images):
        normed = lambda place, given: self.norms[place](self.convs[place](given))  # noqa: E731
        images = self.first(normed(0, images))
        images = self.shared(self.shared(normed(1, images)) + normed(2, images))
        return self.last(normed(4, self.swish(normed(3, images)))).mean((2, 3))


def test_a_network_keeps_its_gradients_names_and_state_and_activations_that_two_share():
    plain = Plain().eval()
    images = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    folded = fold_trainable(plain, images)
    done = [layer._act[0] for layer in folded.modules() if isinstance(layer, FoldedConv)]
    assert [type(one) for one in done] == [nn.ReLU, type(None), type(None), type(None), nn.ReLU6]
    assert type(folded.first) is nn.Identity and type(folded.shared) is nn.ReLU and type(folded.swish) is nn.SiLU
    assert type(plain.first) is nn.ReLU
    assert list(folded.state_dict()) == list(plain.state_dict())
    for net in (plain, folded):
        net(images).square().sum().backward()
    for (name, one), (_, other) in zip(folded.named_parameters(), plain.named_parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-4, atol=1e-4 * float(other.grad.abs().max())), name
    with plainly_convolved(folded):
        assert torch.allclose(folded(images), plain(images), atol=1e-5)


@pytest.mark.parametrize(
    "name", ["tf_efficientnet_lite0", "resnet18", "mobilenetv2_100", "test_efficientnet", "regnetx_002"]
)
def test_families_keep_their_gradients(name):
    backbone = load_backbone(f"random:{name}")
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    images = images.contiguous(memory_format=torch.channels_last)
    plain, folded = backbone.module.eval(), fold_trainable(backbone.module, images)
    for net in (plain, folded):
        net(images).square().mean().backward()
    for (which, one), (_, other) in zip(folded.named_parameters(), plain.named_parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-3, atol=1e-3 * float(other.grad.abs().max())), which


def test_a_wrong_output_is_not_used_and_activations_come_back(monkeypatch):
    own = Convolution.forward
    monkeypatch.setattr(Convolution, "forward", staticmethod(lambda ctx, *given: 1.01 * own(ctx, *given)))
    plain = Plain().eval()
    images = torch.rand(2, 3, 12, 12)
    folded = fold_trainable(plain, images)
    assert not any(isinstance(layer, FoldedConv | FoldedNorm) for layer in folded.modules())
    assert type(folded.first) is nn.ReLU and torch.equal(folded(images), plain(images))
