"""Frozen features in 8 bits: exact where rounding loses nothing, near float32 elsewhere, and only where the processor gains."""

import copy
import io
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from burnish.backbones.fast import int8
from burnish.backbones.fast.frozen import FrozenConv, PackedLinear, fold_for_inference
from burnish.backbones.fast.int8 import Grid, Int8Conv, Int8Linear, has_fast_int8, int8_count, int8_form
from burnish.backbones.zoo import load_backbone
from burnish.train.features import takes_int8

needs_int8 = pytest.mark.skipif(not has_fast_int8(), reason="this processor is not fastest in 8 bits")
CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")  # `Grid.rounded` expects that it may go


def pictures(count, side, seed=0):
    """Smooth network inputs that differ from each other."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 5, 5, generator=generator) + torch.randn(count, 3, 1, 1, generator=generator)
    return F.interpolate(coarse, side, mode="bilinear").contiguous(memory_format=torch.channels_last)


def whole(shape, least, most, seed):
    return torch.randint(least, most + 1, shape, generator=torch.Generator().manual_seed(seed)).float()


def conv_of_whole_numbers(channels, out, kernel, *, groups=1, kind=nn.Conv2d, **settings):
    """A convolution whose weights lose nothing in 8 bits: whole numbers, one of each channel 127."""
    conv = kind(channels, out, kernel, groups=groups, **settings)
    weight = whole(conv.weight.shape, -127, 126, seed=1)
    weight.flatten(1)[:, 0] = 127
    conv.weight.data, conv.bias.data = weight, whole((out,), -500, 500, seed=2)
    return conv.eval().requires_grad_(False)


@pytest.mark.parametrize(("least", "most"), [(0.0, 6.0), (-3.0, 5.0), (1.0, 2.0), (-2.0, -1.0), (0.0, 0.0)])
def test_a_grid_holds_zero_and_rounds_to_the_nearest_of_its_values(least, most):
    grid = Grid.over(least, most)
    values = (
        torch.linspace(min(least, 0.0), max(most, 0.0), 1001)
        .view(1, 7, 11, 13)
        .contiguous(memory_format=torch.channels_last)
    )
    found = grid.rounded(values)
    assert found.dtype == torch.uint8 and found.stride() == values.stride()
    assert grid.rounded(torch.zeros(1)).item() == grid.zero
    assert ((found.float() - grid.zero) * grid.scale - values).abs().max() <= 1.001 * grid.scale


def test_without_pytorchs_own_pass_the_bytes_are_the_same(monkeypatch):
    grid, values = Grid.over(-3.0, 5.0), torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0)) * 4
    expected = grid.rounded(values)
    monkeypatch.delattr(torch, "quantize_per_tensor")
    found = grid.rounded(values)
    # Dividing and multiplying by the inverse may round a value in the middle of two differently.
    assert (found.int() - expected.int()).abs().max() <= 1
    assert (found == expected).float().mean() > 0.99


@needs_int8
@pytest.mark.parametrize("zero", [0, 100])
@pytest.mark.parametrize(
    ("channels", "out", "kernel", "settings"),
    [
        (8, 16, 1, {}),
        (8, 16, 3, {"padding": 1}),
        (8, 16, 3, {"padding": 1, "stride": 2, "dilation": 2}),
        (16, 16, 3, {"padding": 1, "groups": 16}),
        (16, 16, 5, {"padding": 2, "stride": 2, "groups": 16}),
        (16, 32, 3, {"padding": 1, "groups": 4}),
    ],
)
def test_a_convolution_of_whole_numbers_is_exact(channels, out, kernel, settings, zero):
    conv = conv_of_whole_numbers(channels, out, kernel, **settings)
    images = whole((2, channels, 13, 11), -zero, 255 - zero, seed=3).contiguous(memory_format=torch.channels_last)
    found = Int8Conv(conv, Grid(1.0, zero), None)(images)
    assert torch.equal(found, conv(images))


@needs_int8
@pytest.mark.parametrize("groups", [1, 8])
@pytest.mark.parametrize("side", [12, 13])
def test_so_is_one_padded_as_tensorflow_does(groups, side):
    from timm.layers import Conv2dSame

    conv = conv_of_whole_numbers(8, 8, 3, groups=groups, kind=Conv2dSame, stride=2)
    images = whole((2, 8, side, side), -90, 165, seed=3).contiguous(memory_format=torch.channels_last)
    assert torch.equal(Int8Conv(conv, Grid(1.0, 90), None)(images), conv(images))


@needs_int8
@pytest.mark.parametrize("act", [nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU, nn.Identity])
def test_activations_and_bytes_that_come_out_are_those_of_float32(act):
    conv = nn.Conv2d(8, 16, 3, padding=1).requires_grad_(False)
    norm = nn.BatchNorm2d(16).eval()
    layer = FrozenConv(conv, norm, act(), fused=True)
    images = pictures(2, 16).repeat(1, 3, 1, 1)[:, :8].contiguous(memory_format=torch.channels_last)
    expected = layer(images)
    given, gives = (Grid.over(one.min().item(), one.max().item()) for one in (images, expected))
    found, rounded = Int8Conv(layer, given, None)(images), Int8Conv(layer, given, gives)(images)
    assert found.dtype == torch.float32 and rounded.dtype == torch.uint8
    assert (found - expected).norm() <= 0.02 * expected.norm()
    read = (rounded.float() - gives.zero) * gives.scale
    found = found.clamp(-gives.zero * gives.scale, (255 - gives.zero) * gives.scale)  # what bytes can say
    assert (read - found).abs().max() <= 1.1 * gives.scale
    assert (read - found).abs().mean() <= 0.6 * gives.scale


@needs_int8
@pytest.mark.parametrize("gelu", [False, True])
def test_a_linear_layer_with_one_large_channel_needs_it_evened_out(gelu):
    generator = torch.Generator().manual_seed(0)
    linear, inputs = nn.Linear(64, 32), torch.randn(50, 64, generator=generator)
    inputs[:, 3] *= 200
    layer = PackedLinear(linear.requires_grad_(False), gelu=gelu)
    expected = layer(inputs)
    most = inputs.abs().amax(0)
    even = int8._evened(most, layer.weight)
    plain = Int8Linear(layer, Grid.over(-most.max().item(), most.max().item()), None, None)(inputs)
    top = (most / even).max().item()
    evened = Int8Linear(layer, Grid.over(-top, top), None, even)(inputs)

    def off(found):
        return ((found - expected).norm() / expected.norm()).item()

    assert off(evened) < 0.02 < off(plain)


@needs_int8
@pytest.mark.parametrize(
    ("name", "least"),
    [("efficientnet_lite0", 48), ("random:resnet18", 19), ("random:test_vit", 5), ("random:test_convnext", 4)],
)
def test_features_are_near_those_of_float32_whatever_the_batch(name, least):
    backbone = load_backbone(name)
    side = backbone.preprocess.size if backbone.one_size else 96
    before = {key: tensor.clone() for key, tensor in backbone.module.state_dict().items()}
    made = int8_form(backbone.module, pictures(12, side))
    assert made is not None
    form, apart = made
    assert int8_count(form) >= least and 0 < apart <= int8.TOLERANCE
    plain, others = fold_for_inference(backbone.module, pictures(2, side)), pictures(7, side, seed=1)
    with torch.inference_mode():
        expected, found = plain(others), form(others)
        alone = torch.cat([form(one[None]) for one in others])
    assert found.dtype == torch.float32
    assert int8._spread_apart(found, expected) <= 1.5 * int8.TOLERANCE
    assert torch.allclose(found, alone, atol=1e-3 * found.abs().max().item())
    assert all(torch.equal(tensor, before[key]) for key, tensor in backbone.module.state_dict().items())


@needs_int8
def test_means_put_right_bring_the_features_nearer(monkeypatch):
    module, images = load_backbone("efficientnet_lite0").module, pictures(12, 96)
    _, apart = int8_form(module, images)
    monkeypatch.setattr(int8, "_means_put_right", lambda made, means, images: int8.evaluated(made, images))
    monkeypatch.setattr(int8, "TOLERANCE", float("inf"))
    _, without = int8_form(module, images)
    assert apart < 0.7 * without


@needs_int8
def test_a_form_can_be_copied_and_sent():
    form, _ = int8_form(load_backbone("random:resnet18").module, pictures(12, 64))
    images, file = pictures(3, 64), io.BytesIO()
    with torch.inference_mode():
        expected = form(images)
        assert torch.equal(copy.deepcopy(form)(images), expected)
        torch.save(form, file)
        file.seek(0)
        assert torch.equal(torch.load(file, weights_only=False)(images), expected)


@needs_int8
def test_a_network_that_8_bits_would_change_too_much_has_no_such_form(monkeypatch):
    monkeypatch.setattr(int8, "TOLERANCE", 1e-6)
    assert int8_form(load_backbone("random:resnet18").module, pictures(12, 64)) is None


@needs_int8
def test_nor_has_one_without_such_layers_or_that_looks_into_those_replaced():
    class Nosy(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)
            self.second = nn.Conv2d(8, 8, 3)

        def forward(self, images):
            return (
                F.conv2d(self.conv(images), self.second.weight, self.second.bias).mean((2, 3)) + self.second.stride[0]
            )

    assert int8_form(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), pictures(12, 32)) is None
    assert int8_form(Nosy(), pictures(12, 32)) is None


def test_where_the_processor_gains_nothing_by_it_there_is_none(monkeypatch):
    monkeypatch.setattr(int8, "has_fast_half", lambda: True)
    assert not has_fast_int8()
    assert int8_form(load_backbone("random:resnet18").module, pictures(12, 64)) is None


@pytest.mark.parametrize(
    ("precision", "device", "fast", "taken"),
    [("auto", CPU, True, True), ("auto", CPU, False, False), ("float32", CPU, True, False), ("bfloat16", CPU, True, False),
     ("auto", torch.device("cuda"), True, False)],
)  # fmt: skip
def test_8_bits_are_taken_where_nobody_named_a_number_format(monkeypatch, precision, device, fast, taken):
    from burnish.train import features

    monkeypatch.setattr(features, "has_fast_int8", lambda: fast)
    assert takes_int8(precision, device) == taken


def test_the_decision_says_what_is_gained_and_lost():
    from burnish.choose.decide import _rounded

    told = _rounded({"images_per_second": 333.4, "float32_images_per_second": 190.2, "apart": 0.0961})
    assert told.what == "frozen features in 8 bits"
    assert told.why.startswith("333 images/s against 190 in float32, of which they are 10% of their spread apart")
    assert SimpleNamespace(**told.numbers).apart == 0.0961
