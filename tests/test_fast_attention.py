"""The gradient of attention in bfloat16: that of float32 as near as torch's own, within its place and nowhere else."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from burnish.backbones.classifier import Classifier
from burnish.backbones.fast import attention
from burnish.backbones.fast.attention import attention_gradients, fast_attention_gradients
from burnish.backbones.fast.half import has_half
from burnish.backbones.zoo import load_backbone
from burnish.train.objective import Objective, backward

needs_half = pytest.mark.skipif(not has_half(), reason="this processor does not multiply bfloat16 in hardware")


@pytest.fixture
def asked(monkeypatch):
    """How often the products were asked for gradients."""
    calls = []

    def counted(*given, **how):
        calls.append(given[1].shape)
        return attention_gradients(*given, **how)

    monkeypatch.setattr(attention, "attention_gradients", counted)
    return calls


def drawn(*shape, spread=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(shape, generator=generator)).bfloat16()


def gradients(query, key, value, upstream, *, half, **how):
    given = [one.detach().clone().requires_grad_() for one in (query, key, value)]
    with fast_attention_gradients(half=half):
        out = F.scaled_dot_product_attention(*given, **how)
        return torch.autograd.grad(out, given, upstream.to(out.dtype))


def apart(found, exact):
    return [((one.float() - other).norm() / other.norm()).item() for one, other in zip(found, exact, strict=True)]


SHAPES = [(2, 3, 197, 197, 64), (5, 1, 1, 7, 8), (3, 2, 49, 49, 32), (1, 2, 30, 10, 16)]


@pytest.mark.parametrize(("shape", "spread", "scale"), list(itertools.product(SHAPES, (0.3, 4.0), (None, 0.5))))
def test_gradients_are_as_near_those_of_float32_as_torchs_own(asked, shape, spread, scale):
    images, heads, queries, keys, width = shape
    query = drawn(images, heads, queries, width, spread=spread)
    key, value = (drawn(images, heads, keys, width, spread=spread, seed=seed) for seed in (1, 2))
    upstream = drawn(images, heads, queries, width, seed=3)
    exact = gradients(query.float(), key.float(), value.float(), upstream, half=True, scale=scale)
    assert not asked
    own = apart(gradients(query, key, value, upstream, half=False, scale=scale), exact)
    assert not asked
    found = apart(gradients(query, key, value, upstream, half=True, scale=scale), exact)
    assert len(asked) == 1
    assert all(ours < max(1.6 * theirs, 0.012) for ours, theirs in zip(found, own, strict=True)), (found, own)


def test_many_images_go_through_in_parts_and_give_the_same(monkeypatch):
    query, key, value, upstream = (drawn(5, 2, 20, 8, seed=seed) for seed in range(4))
    whole = gradients(query, key, value, upstream, half=True)
    for most in (1, 2 * 2 * 20 * 20):
        monkeypatch.setattr(attention, "_AT_ONCE", most)
        parts = gradients(query, key, value, upstream, half=True)
        assert all(torch.allclose(one, other, atol=1e-2) for one, other in zip(parts, whole, strict=True))


@pytest.mark.parametrize("how", [{"is_causal": True}, {"attn_mask": torch.ones(20, 20, dtype=torch.bool).tril()}])
def test_what_is_masked_stays_torchs(asked, how):
    query, key, value, upstream = (drawn(2, 2, 20, 8, seed=seed) for seed in range(4))
    found = gradients(query, key, value, upstream, half=True, **how)
    own = gradients(query, key, value, upstream, half=False, **how)
    assert not asked
    assert all(torch.equal(one, other) for one, other in zip(found, own, strict=True))


def test_afterwards_and_after_an_error_it_is_torchs_again(asked):
    query, key, value, upstream = (drawn(2, 2, 20, 8, seed=seed) for seed in range(4))
    with pytest.raises(ZeroDivisionError), fast_attention_gradients(half=True), fast_attention_gradients(half=True):
        raise ZeroDivisionError
    gradients(query, key, value, upstream, half=False)
    assert not asked


def test_a_torch_that_cannot_say_which_kernel_it_has_is_left_alone(asked, monkeypatch):
    monkeypatch.delattr(torch.library, "get_kernel")
    query, key, value, upstream = (drawn(2, 2, 20, 8, seed=seed) for seed in range(4))
    assert all(one.isfinite().all() for one in gradients(query, key, value, upstream, half=True))
    assert not asked


def test_multihead_attention_of_torch_takes_it_too(asked):
    layer = nn.MultiheadAttention(16, 2, batch_first=True)
    tokens = torch.randn(3, 9, 16, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16), fast_attention_gradients(half=True):
        layer(tokens, tokens, tokens, need_weights=False)[0].float().square().mean().backward()
    assert len(asked) == 1


@needs_half
@pytest.mark.parametrize("half", [True, False])
def test_steps_of_training_take_it_where_they_are_in_bfloat16(asked, half):
    backbone = load_backbone("random:vit_tiny_patch16_224", image_size=32)
    net = Classifier(backbone.module, backbone.width, 3)
    views = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels, learnt = torch.tensor([0, 1, 2, 0]), list(net.parameters())
    optimiser = torch.optim.AdamW(learnt, 1e-3)
    losses = backward(net, optimiser, views, labels, Objective(half=half), 0)
    assert losses.isfinite().all()
    assert len(asked) == (12 if half else 0)
