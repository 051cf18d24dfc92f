"""Attention beyond that of plain transformers: biases that learn, blocks given more than tokens, layers with a follower of their own."""

import copy

import pytest
import torch
from test_methods import a_head, images_for, trained
from torch import nn

from burnish.backbones import zoo
from burnish.backbones.changing.surgery import operated
from burnish.errors import RecipeError
from burnish.methods.table import METHODS
from burnish.recipe import Recipe

BIASED = {"levit_128s": 64, "tiny_vit_5m_224": 32, "efficientvit_m0": 64, "efficientformerv2_s0": 64}  # pixels


# ---- attention biases of LeViT and its like --------------------------------------------------------------------------


def biased(name):
    """Random weights; norms that begin at zero, and would let nothing of an attention through, at one."""
    backbone = zoo.load_backbone(f"random:{name}", image_size=BIASED[name])
    with torch.no_grad():
        for layer in backbone.module.modules():
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                layer.weight.fill_(1.0)
    return backbone


def moved_to(module):
    """As every method moves it to where it is trained."""
    return module.cpu().to(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", BIASED)
def test_attention_biases_learn_in_a_full_run(name):
    backbone = biased(name)
    start = backbone.module.state_dict()
    tunable, _, _ = trained(METHODS["full"], backbone, steps=2, fold=False)
    found = tunable.classifier.trunk.state_dict()
    offsets = [key for key in start if key.endswith("attention_biases") and start[key].shape[1] > 1]
    assert offsets  # of one place there is nothing to learn: its softmax is 1
    assert [key for key in offsets if torch.equal(found[key], start[key])] == []


@pytest.mark.parametrize("prepared", [lambda module: module, copy.deepcopy, moved_to], ids=["built", "copied", "moved"])
def test_biases_that_are_loaded_are_those_that_are_used(prepared):
    backbone = biased("levit_128s")
    module, images = prepared(backbone.module), images_for(backbone)
    rng = torch.Generator().manual_seed(0)
    state = {
        key: torch.randn(value.shape, generator=rng) if key.endswith("attention_biases") else value.clone()
        for key, value in module.state_dict().items()
    }
    other = prepared(biased("levit_128s").module)
    other.load_state_dict(state)
    with torch.no_grad():
        before = module(images)
        assert torch.equal(module(images), before)
        module.load_state_dict(state)
        after = module(images)
        assert torch.equal(after, other(images)) and not torch.allclose(after, before, rtol=1e-2, atol=0.0)


@pytest.mark.parametrize("prepared", [lambda module: module, moved_to], ids=["built", "moved"])
def test_a_network_that_has_seen_images_with_gradients_can_be_copied(prepared):
    backbone = biased("levit_128s")
    module, images = prepared(backbone.module), images_for(backbone)
    with torch.enable_grad():
        given = module(images)
    twin = copy.deepcopy(module)
    with torch.no_grad():
        assert torch.equal(twin(images), given)


# ---- layers taken out and put in -------------------------------------------------------------------------------------


HANDED_MORE = {  # networks whose blocks are given positions, or the size of the map, beside the tokens
    "eva02_tiny_patch14_224": (28, "4", "blocks.0=linear"),
    "pvt_v2_b0": (32, "1,1,1,1", "stages.1.blocks.0=linear"),
    "xcit_nano_12_p16_224": (32, "3,1", "blocks.1=linear"),
}


@pytest.mark.parametrize("name", HANDED_MORE)
def test_blocks_that_are_given_more_than_tokens_are_taken_out_and_followed(name):
    size, depth, insert = HANDED_MORE[name]
    backbone = zoo.load_backbone(f"random:{name}", image_size=size)
    images = images_for(backbone)
    with torch.no_grad():
        whole = backbone.module(images)
        for how in ({"depth": depth}, {"insert": insert}, {"depth": depth, "insert": insert}):
            changed = operated(backbone, **how)
            module = zoo.rebuild(zoo.architecture_for_bundle(changed), width=changed.width, size=size)
            module.load_state_dict(changed.module.state_dict())
            found = changed.module(images)
            assert torch.equal(module(images), found)
            # what is put in starts as the identity, and what is taken out is missed
            assert torch.allclose(found, whole, atol=1e-4) == ("depth" not in how)


@pytest.mark.parametrize("insert", ["patch_embed=linear", "patch_embed=linear,blocks.0=linear", "p*=linear"])
def test_a_layer_whose_follower_the_network_cannot_use_is_refused_in_a_sentence(insert):
    """test_vit asks its patches for their grid."""
    backbone = zoo.load_backbone("random:test_vit", image_size=32)
    with pytest.raises(RecipeError, match=r"does not run with these changes.*grid_size"):
        operated(backbone, insert=insert)


# ---- prompts ---------------------------------------------------------------------------------------------------------


def test_prompts_are_refused_where_the_last_blocks_give_the_class_token_alone():
    backbone = zoo.load_backbone("random:cait_xxs24_224", image_size=32)
    with pytest.raises(RecipeError, match=r"no blocks that take any number of tokens"):
        METHODS["prompt"].prepare(backbone, a_head(backbone), Recipe())
