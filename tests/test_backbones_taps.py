"""Promises of backbones.changing.taps, and of the changes that travel with a package."""

import copy
from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from torch import nn

from burnish.backbones import architectures, zoo
from burnish.backbones.changing.blocks import blocks_of
from burnish.backbones.changing.changes import changed, check_changes
from burnish.backbones.changing.taps import Taps, tapped, tapped_as, with_taps
from burnish.backbones.fast.fold import TOLERANCE, agree
from burnish.backbones.fast.frozen import fold_for_inference
from burnish.backbones.spec import Backbone, Stage
from burnish.errors import ModelError, UnknownModel
from burnish.terms import Preprocess

# Network and the side of its images, pixels.
NETWORKS = {
    "test_resnet": 64,
    "resnet14t": 64,
    "densenet121": 64,
    "test_efficientnet": 64,
    "test_convnext": 64,
    "vit_tiny_patch16_224": 64,
    "swin_tiny_patch4_window7_224": 56,
}


@lru_cache(maxsize=2)
def network_named(name):
    return zoo.load_backbone(f"random:{name}", image_size=NETWORKS[name])


def images(size, *, n=6, seed=0):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=NETWORKS)
def both(request):
    """(backbone, the same with taps)."""
    backbone = network_named(request.param)
    found = tapped(backbone, images(NETWORKS[request.param]))
    assert found is not None, "this network can be traced"
    return backbone, found


def parts_of(backbone, deep, given):
    """What the taps add, one tensor [b c] each: mean and maximum of each block."""
    layers = deep.changes[0]["layers"]
    seen = {}
    handles = [
        backbone.module.get_submodule(name).register_forward_hook(
            lambda _l, _i, out, name=name: seen.update({name: out})
        )
        for name in layers
    ]
    with torch.no_grad():
        backbone.module(given)
    for handle in handles:
        handle.remove()
    parts = []
    for name, channel in zip(layers, deep.changes[0]["channels"], strict=True):
        flat = seen[name].movedim(channel, -1).flatten(1, -2)
        parts += [flat.mean(1), flat.amax(1)]
    return parts


# ---- what they give --------------------------------------------------------------------------------------------------


def test_the_trunks_own_features_come_first_and_are_equal(both):
    backbone, deep = both
    given = images(backbone.preprocess.size, n=3, seed=1)
    with torch.no_grad():
        found, plain = deep.module(given), backbone.module(given)
    assert found.shape == (3, deep.width)
    assert deep.width > backbone.width
    torch.testing.assert_close(found[:, : backbone.width], plain, rtol=1e-5, atol=1e-6)


def test_the_rest_is_mean_and_maximum_of_each_block_times_its_scale(both):
    backbone, deep = both
    given = images(backbone.preprocess.size, n=3, seed=1)
    scale = deep.module.get_submodule("taps").scale
    expected = torch.cat([scale[i] * part for i, part in enumerate(parts_of(backbone, deep, given))], 1)
    with torch.no_grad():
        torch.testing.assert_close(deep.module(given)[:, backbone.width :], expected, rtol=1e-4, atol=1e-5)


def test_names_and_values_of_the_weights_are_the_trunks(both):
    backbone, deep = both
    plain, wider = backbone.module.state_dict(), deep.module.state_dict()
    assert set(wider) - set(plain) == {"taps.scale"}
    assert all(torch.equal(wider[name], value) for name, value in plain.items())
    assert [
        name for name, _ in deep.module.named_parameters() if name not in dict(backbone.module.named_parameters())
    ] == []
    assert {id(p) for p in deep.module.parameters()} == {id(p) for p in backbone.module.parameters()}, "copies"
    assert deep.plain is backbone


def test_scales_give_each_part_the_spread_of_the_first(both):
    backbone, deep = both
    given = images(backbone.preprocess.size)  # those the scales were taken from
    with torch.no_grad():
        found = deep.module(given)

    def spread(part):
        return (part - part.mean(0)).square().mean().sqrt().item()

    own, start = spread(found[:, : backbone.width]), backbone.width
    parts = parts_of(backbone, deep, given)
    assert own > 0
    alive = 0
    for part in parts:
        there = spread(found[:, start : start + part.shape[1]])
        start += part.shape[1]
        if spread(part) > 1e-5 * own:
            alive += 1
            assert own / 1.05 < there < own * 1.05
    assert start == deep.width
    assert alive >= 0.8 * len(parts)
    other = images(backbone.preprocess.size, n=12, seed=9)
    with torch.no_grad():
        assert 0.2 < spread(deep.module(other)[:, backbone.width :]) / own < 5.0


def test_the_blocks_are_those_of_the_network_in_order_the_last_one_among_them(both):
    backbone, deep = both
    blocks, layers = blocks_of(backbone.module), deep.changes[0]["layers"]
    assert layers == [name for name in blocks if name in set(layers)]
    assert layers[-1] == blocks[-1]


def test_the_given_backbone_is_as_it_was():
    backbone = network_named("test_resnet")
    before = copy.deepcopy(backbone.module.state_dict())
    found = tapped(backbone, images(64))
    assert not any(layer.training for layer in found.module.modules())
    assert all(torch.equal(value, before[name]) for name, value in backbone.module.state_dict().items())
    assert not any(layer._forward_hooks for layer in backbone.module.modules()), "a hook was left behind"
    assert backbone.changes == ()


def test_no_global_random_number_is_drawn():
    backbone = network_named("test_resnet")
    before = torch.get_rng_state()
    assert tapped(backbone, images(64)) is not None
    assert torch.equal(before, torch.get_rng_state())


# ---- which blocks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_most", [5000, 2000, 1000, 400, 192])
def test_the_width_that_is_allowed_is_kept(at_most):
    backbone = network_named("test_convnext")
    found = tapped(backbone, images(64), width_at_most=at_most)
    assert found is not None
    assert found.changes[0]["layers"][-1] == blocks_of(backbone.module)[-1]
    with torch.no_grad():
        assert found.module(images(64)).shape[1] == found.width <= at_most


def test_a_smaller_width_takes_every_second_third_block():
    backbone = network_named("test_convnext")
    blocks = blocks_of(backbone.module)
    whole = tapped(backbone, images(64))
    fewer = tapped(backbone, images(64), width_at_most=whole.width - 1)
    assert whole.changes[0]["layers"] == blocks
    assert fewer.changes[0]["layers"] == blocks[::-1][::2][::-1]


def test_a_width_that_not_even_one_block_fits_gives_none():
    backbone = network_named("test_resnet")
    assert tapped(backbone, images(64), width_at_most=backbone.width + 1) is None
    assert tapped(backbone, images(64), width_at_most=0) is None


def test_above_a_stage_only_blocks_from_there_on_are_used():
    backbone = network_named("test_resnet")  # a stem, then one block a stage
    for above in range(len(backbone.stages)):
        found = tapped(backbone, images(64), above=above)
        allowed = {name for stage in backbone.stages[above:] for name in stage.parameters}
        layers = found.changes[0]["layers"]
        assert all(any(name.startswith(f"{layer}.") for name in allowed) for layer in layers)
        assert len(layers) == min(4, len(backbone.stages) - above)
    assert tapped(backbone, images(64), above=len(backbone.stages)) is None


def test_taps_of_a_backbone_with_taps_start_from_the_plain_one():
    backbone = network_named("test_resnet")
    once = tapped(backbone, images(64), above=2)
    twice = tapped(once, images(64), above=4)
    assert len(twice.changes) == 1
    assert twice.changes[0]["layers"] == ["layer4.0"]
    assert twice.plain is backbone
    with torch.no_grad():
        assert torch.equal(twice.module(images(64)), tapped(backbone, images(64), above=4).module(images(64)))


# ---- again -----------------------------------------------------------------------------------------------------------


def test_taps_that_were_chosen_before_give_the_same_bits(both):
    backbone, deep = both
    given = images(backbone.preprocess.size, n=3, seed=2)
    again = tapped_as(backbone, deep.changes[0], deep.module.get_submodule("taps").scale.clone())
    with torch.no_grad():
        assert torch.equal(again.module(given), deep.module(given))
    assert (again.width, again.changes, again.plain) == (deep.width, deep.changes, backbone)
    assert not again.module.training


def test_a_network_built_anew_from_its_description_gives_the_same_output(both):
    backbone, deep = both
    architecture = zoo.architecture_for_bundle(deep)
    given = images(backbone.preprocess.size, n=3, seed=2)
    module = zoo.rebuild(architecture)
    module.load_state_dict(deep.module.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(module(given), deep.module(given))
        assert not torch.equal(zoo.rebuild(architecture, seed=1)(given), deep.module(given))


def test_the_description_is_plain_json(both):
    import json

    architecture = zoo.architecture_for_bundle(both[1])
    assert json.loads(json.dumps(architecture, allow_nan=False)) == architecture
    zoo.check_architecture(json.loads(json.dumps(architecture)))


def test_the_fast_frozen_form_agrees_with_it(both):
    backbone, deep = both
    size = backbone.preprocess.size
    fast = fold_for_inference(deep.module, images(size, n=2))
    for other in (images(size, n=3, seed=3), images(size, n=1, seed=4)):
        with torch.inference_mode():
            assert agree(fast(other), deep.module(other), tolerance=2 * TOLERANCE)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext"])
def test_other_sizes_of_images_go_through_where_the_network_takes_them(name):
    deep = tapped(network_named(name), images(64))
    with torch.no_grad():
        for size in (96, 80):
            found, plain = deep.module(images(size, n=2)), deep.plain.module(images(size, n=2))
            assert found.shape == (2, deep.width)
            torch.testing.assert_close(found[:, : deep.plain.width], plain, rtol=1e-5, atol=1e-6)


# ---- networks that have none -----------------------------------------------------------------------------------------


def handmade(module, width):
    stages = tuple(
        Stage(name, tuple(f"{name}.{key}" for key in layer.state_dict())) for name, layer in module.named_children()
    )
    return Backbone("handmade", module.eval(), width, stages, Preprocess(size=32), "unknown", "", "random")


def block():
    return nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))


class Residual(nn.Module):
    """A stem and three blocks; `fails` says what makes it hard to trace."""

    def __init__(self, fails=""):
        super().__init__()
        self.fails = fails
        self.stem = nn.Conv2d(3, 4, 3)
        self.blocks = nn.ModuleList([Block() for _ in range(3)])

    def forward(self, x):
        x = self.stem(x)
        if self.fails == "branches" and x.sum() > 0:
            x = x + 1
        for layer in self.blocks:
            x = x + layer(x) if self.fails == "dead" else layer(x)
        if self.fails == "twice":
            x = self.blocks[0](x)
        return x.mean((2, 3))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return x + self.two(self.one(x).relu())


def test_a_network_without_blocks_has_no_taps():
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    assert tapped(handmade(nn.Sequential(*layers), 8), images(32)) is None


@pytest.mark.slow
def test_vgg_has_no_taps():
    backbone = zoo.load_backbone("random:vgg11")
    assert tapped(backbone, images(224, n=1)) is None


@pytest.mark.parametrize("fails", ["branches", "twice"])
def test_a_forward_pass_that_cannot_be_traced_gives_none(fails):
    assert tapped(handmade(Residual(), 4), images(32)) is not None
    assert tapped(handmade(Residual(fails), 4), images(32)) is None


def test_a_network_of_timm_that_cannot_be_traced_gives_none():
    backbone = zoo.load_backbone("random:test_vit", image_size=64)  # it looks at the size of its images
    assert blocks_of(backbone.module)
    assert tapped(backbone, images(64)) is None


class Dead(Block):
    def forward(self, x):
        return x * 0


def test_a_block_that_gives_nothing_has_scale_zero_and_the_others_are_as_they_would_be():
    module = Residual("dead")
    module.blocks[1] = Dead()
    found = tapped(handmade(module, 4), images(32))
    scale = found.module.get_submodule("taps").scale
    assert scale[2:4].tolist() == [0.0, 0.0]
    assert (torch.cat([scale[:2], scale[4:]]) > 0).all()
    with torch.no_grad():
        assert torch.isfinite(found.module(images(32))).all()


# ---- hostile descriptions --------------------------------------------------------------------------------------------

TAPS = {"kind": "taps", "layers": ["layer1.0", "layer2.0"], "channels": [1, 1]}
ADAPTERS = {
    "kind": "adapters", "layers": ["layer1.0"], "channels": [1], "widths": [32], "bottleneck": 4, "form": "post",
}  # fmt: skip
PROMPTS = {"kind": "prompts", "layers": ["blocks.0"], "widths": [64], "tokens": 3}


@pytest.mark.parametrize("change", [TAPS, ADAPTERS, PROMPTS], ids=lambda change: change["kind"])
def test_sound_changes_pass_the_check(change):
    check_changes([change])
    check_changes([])


HOSTILE = {
    "a word": "taps",
    "a dictionary": TAPS,
    "nothing": None,
    "a number": 3,
    "a list of words": ["taps"],
    "a list of lists": [[TAPS]],
    "no kind": [{"layers": ["layer1.0"], "channels": [1]}],
    "unknown kind": [{**TAPS, "kind": "tap"}],
    "kind of another type": [{**TAPS, "kind": ["taps"]}],
    "kind that is a dunder": [{**TAPS, "kind": "__class__"}],
    "missing entry": [{"kind": "taps", "layers": ["layer1.0"]}],
    "unknown entry": [{**TAPS, "code": "import os"}],
    "layers a word": [{**TAPS, "layers": "layer1.0"}],
    "no layers": [{**TAPS, "layers": [], "channels": []}],
    "layers numbers": [{**TAPS, "layers": [1, 2]}],
    "a layer without a name": [{**TAPS, "layers": ["", "layer1.0"]}],
    "a layer with a huge name": [{**TAPS, "layers": ["x" * 10**6, "layer1.0"]}],
    "too many layers": [{**TAPS, "layers": ["layer1.0"] * 10**5, "channels": [1] * 10**5}],
    "channels too few": [{**TAPS, "channels": [1]}],
    "channels too many": [{**TAPS, "channels": [1, 1, 1]}],
    "a channel that is none": [{**TAPS, "channels": [0, 1]}],
    "a huge channel": [{**TAPS, "channels": [10**30, 1]}],
    "a negative channel": [{**TAPS, "channels": [-1, 1]}],
    "a channel that is true": [{**TAPS, "channels": [True, 1]}],
    "a channel that is a fraction": [{**TAPS, "channels": [1.0, 1]}],
    "a channel that is not a number": [{**TAPS, "channels": [float("nan"), 1]}],
    "a huge width": [{**ADAPTERS, "widths": [10**12]}],
    "a width of nothing": [{**ADAPTERS, "widths": [0]}],
    "a huge bottleneck": [{**ADAPTERS, "bottleneck": 10**9}],
    "a bottleneck of nothing": [{**ADAPTERS, "bottleneck": 0}],
    "a bottleneck that is true": [{**ADAPTERS, "bottleneck": True}],
    "a bottleneck in words": [{**ADAPTERS, "bottleneck": "4"}],
    "unknown form": [{**ADAPTERS, "form": "sideways"}],
    "a form of another type": [{**ADAPTERS, "form": ["post"]}],
    "huge tokens": [{**PROMPTS, "tokens": 10**9}],
    "tokens of nothing": [{**PROMPTS, "tokens": 0}],
    "a sound one, then a bad one": [TAPS, {**TAPS, "kind": "exec"}],
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_changes_are_refused_before_anything_is_built(case, monkeypatch):
    monkeypatch.setattr(architectures, "built", lambda *rest, **named: pytest.fail("something was built"))
    architecture = {"library": "timm", "name": "test_resnet", "kwargs": {}, "changes": HOSTILE[case]}
    with pytest.raises(UnknownModel) as problem:
        zoo.rebuild(architecture)
    assert len(str(problem.value)) < 2000


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({**TAPS, "layers": ["layer1.0", "layer9.0"]}, "layer9.0 is not run exactly once"),
        ({**TAPS, "layers": ["layer1.0", "layer1.0.conv1"]}, "layer1.0 is not run exactly once"),
        ({**TAPS, "layers": ["layer1.0", "__class__"]}, "__class__ is not run exactly once"),
        ({**TAPS, "layers": ["layer1.0", "forward"]}, "forward is not run exactly once"),
        ({**ADAPTERS, "layers": ["layer9.0"]}, "layer9.0 is not run exactly once"),
        ({**PROMPTS, "layers": ["blocks.0"]}, "blocks.0 is not run exactly once"),
    ],
)
def test_changes_that_do_not_fit_the_network_are_refused_with_what_is_wrong(change, words):
    architecture = {"library": "timm", "name": "test_resnet", "kwargs": {}, "changes": [change]}
    with pytest.raises(ModelError, match=rf"the change '{change['kind']}' does not fit the architecture") as problem:
        zoo.rebuild(architecture)
    assert words in str(problem.value)


def test_a_network_that_cannot_be_traced_is_refused():
    architecture = {"library": "timm", "name": "test_vit", "kwargs": {"img_size": 64}, "changes": [PROMPTS]}
    with pytest.raises(ModelError, match="does not fit the architecture"):
        zoo.rebuild(architecture)


def test_changes_are_made_in_their_order_and_the_result_is_in_eval_mode():
    module = network_named("test_resnet").module
    adapters = {**ADAPTERS, "widths": [module.get_submodule("layer1.0.conv2").out_channels]}
    made = changed(module, [{**TAPS}, adapters])
    assert isinstance(made.get_submodule("taps"), Taps)
    assert isinstance(made.get_submodule("adapters"), nn.ModuleList)
    assert not any(layer.training for layer in made.modules())
    with torch.no_grad():
        assert torch.equal(made(images(64)), with_taps(module, TAPS).eval()(images(64)))  # adapters begin at zero


def test_a_package_of_a_network_with_taps_needs_its_scales(tmp_path):
    from burnish.backbones.classifier import Classifier
    from burnish.errors import BadWeights
    from burnish.ship.bundle import Bundle

    deep = tapped(network_named("test_resnet"), images(64))
    bundle = Bundle.of(deep, Classifier.over(deep, 2), classes=("a", "b"), method="multiprobe")
    assert bundle.classifier() is not None
    state = {name: value for name, value in bundle.state.items() if name != "trunk.taps.scale"}
    with pytest.raises(BadWeights, match=r"1 missing, 0 unexpected"):
        replace(bundle, state=state).classifier()
    other = {**bundle.state, "trunk.taps.scale": torch.ones(3)}
    with pytest.raises(BadWeights, match=r"1 of another shape"):
        replace(bundle, state=other).classifier()
