"""bfloat16 on the CPU: exact gradients, outputs near float32, float32 where there is no hardware for it."""

import copy

import pytest
import torch
import torch.nn.functional as F

from burnish.backbones.fast import half
from burnish.backbones.fast.convolved import Convolution
from burnish.backbones.fast.fold import FoldedConv, plainly_convolved
from burnish.backbones.fast.frozen import fold_for_inference, is_half
from burnish.backbones.fast.half import HALF_TOLERANCE, fold_trainable_half, has_half
from burnish.backbones.zoo import load_backbone
from burnish.train.features import takes_half

needs_half = pytest.mark.skipif(not has_half(), reason="this processor does not multiply bfloat16 in hardware")


@needs_half
@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18", "mobilenetv2_100"])
def test_under_autocast_gradients_are_near_those_of_plain_autocast(name):
    backbone = load_backbone(f"random:{name}")
    images = torch.rand(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    fast = fold_trainable_half(backbone.module, images)
    assert not any(layer.plain for layer in fast.modules() if isinstance(layer, FoldedConv))
    plain = copy.deepcopy(fast)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fast(images).float().square().mean().backward()
        with plainly_convolved(plain):
            plain(images).float().square().mean().backward()
    one, other = (torch.cat([p.grad.flatten() for p in net.parameters()]) for net in (fast, plain))
    assert F.cosine_similarity(one, other, dim=0) > 0.98


@needs_half
@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "tf_efficientnet_lite0"])
def test_half_features_are_near_float32_at_every_size_and_batch(name):
    backbone = load_backbone(f"random:{name}")
    size = backbone.preprocess.size
    quick = fold_for_inference(backbone.module, torch.rand(2, 3, size, size), half=True)
    assert is_half(quick)
    shapes = [(3, size)] if backbone.one_size else [(3, size), (1, 127), (5, 160)]
    for batch, side in shapes:
        images = torch.rand(batch, 3, side, side)
        with torch.inference_mode():
            found, expected = copy.deepcopy(quick)(images), backbone.module(images)
        assert found.dtype == torch.float32
        assert (found - expected).abs().max() <= 2 * HALF_TOLERANCE * expected.abs().max()


def test_without_the_hardware_nothing_is_half(monkeypatch):
    from burnish.backbones.fast import frozen

    monkeypatch.setattr(frozen, "has_half", lambda: False)
    monkeypatch.setattr(half, "has_half", lambda: False)
    backbone = load_backbone("random:test_efficientnet")
    images = torch.rand(2, 3, 64, 64)
    assert not is_half(fold_for_inference(backbone.module, images, half=True))
    monkeypatch.setattr(Convolution, "forward", staticmethod(lambda ctx, images, *rest: 2 * images))
    folded = fold_trainable_half(backbone.module, images)
    assert torch.equal(folded(images), backbone.module.eval()(images))


@needs_half
def test_a_half_form_that_is_wrong_is_not_used(monkeypatch):
    from burnish.backbones.fast import frozen

    backbone = load_backbone("random:test_efficientnet")
    images = torch.rand(2, 3, 64, 64)
    own = Convolution.forward

    def wrong(ctx, images, *rest):
        out = own(ctx, images, *rest)
        return out if images.dtype == torch.float32 else 2 * out

    monkeypatch.setattr(Convolution, "forward", staticmethod(wrong))
    folded = fold_trainable_half(backbone.module, images)
    layers = [layer for layer in folded.modules() if isinstance(layer, FoldedConv)]
    assert layers and all(layer.plain for layer in layers)
    monkeypatch.setattr(frozen._Half, "forward", lambda self, images: 2 * self.inner(images.to(torch.bfloat16)).float())
    assert not is_half(fold_for_inference(backbone.module, images, half=True))


@pytest.mark.parametrize(
    ("instructions", "amx", "intel", "fast"),
    [(True, False, True, False), (True, True, True, True), (True, False, False, True), (False, False, False, False)],
    ids=["Intel without AMX", "Intel", "AMD", "none"],
)
def test_half_is_taken_where_it_is_faster_than_float32(monkeypatch, instructions, amx, intel, fast):
    """An Emerald Rapids whose AMX a virtual machine hides has the instructions, and is slower with them."""
    answers = {"_is_avx512_bf16_supported": instructions, "_is_amx_tile_supported": amx}
    monkeypatch.setattr(half, "_says", answers.__getitem__)
    monkeypatch.setattr(half, "_is_intel", lambda: intel)
    assert half.has_fast_half() is fast and takes_half("auto", torch.device("cpu")) is fast
    assert takes_half("bfloat16", torch.device("cpu")) and not takes_half("float32", torch.device("cpu"))
    assert half.has_half() is instructions


def test_whose_processor_it_is_is_read_from_what_the_system_tells(tmp_path, monkeypatch):
    for name, vendor in (("intel", "GenuineIntel"), ("amd", "AuthenticAMD")):
        (tmp_path / name).write_text(f"processor : 0\nvendor_id : {vendor}\n")
        assert half._is_intel(tmp_path / name) is (name == "intel")
    monkeypatch.setattr("platform.processor", lambda: "Intel64 Family 6 Model 207 Stepping 2, GenuineIntel")
    assert half._is_intel(tmp_path / "none")
