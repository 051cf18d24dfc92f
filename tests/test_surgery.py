"""Promises of heads, of layers taken out and put in, and of the anatomy of a network: what stays is as it was."""

import copy
import json
import os
from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import nn

from burnish import api
from burnish.backbones import head as heads
from burnish.backbones import zoo
from burnish.backbones.changing.anatomy import anatomy
from burnish.backbones.changing.changes import check_changes
from burnish.backbones.changing.surgery import InsertedDropout, depths, operated, removable
from burnish.backbones.classifier import Classifier
from burnish.errors import ModelError, NoSuchName, NotARun, RecipeError, RunError, UnknownModel
from burnish.methods.base import Head
from burnish.methods.table import METHODS
from burnish.recipe import Recipe
from burnish.ship.bundle import Bundle, read_bundle, write_bundle
from burnish.train.parts import let_drop
from conftest import burnish

os.environ.setdefault("KERAS_BACKEND", "torch")
TINY = {"model": "random:test_resnet", "epochs": 1, "image_size": 64, "budget": None}
NETWORKS = {"resnet18": 64, "tf_efficientnet_lite0": 64, "test_vit": 32, "cifar_resnet20": 32, "keras:mobilenetv2": 64}
# What --depth, --remove and --insert are told for each; all of it can be done.
DEPTH = {
    "resnet18": "2,1,1,1", "tf_efficientnet_lite0": None, "test_vit": "4", "cifar_resnet20": "2,1,3",
    "keras:mobilenetv2": "1,1,3,1",
}  # fmt: skip
INSERT = {  # a layer that gives maps, or tokens
    "resnet18": "layer2.*", "tf_efficientnet_lite0": "blocks.2.*", "test_vit": "blocks.*", "cifar_resnet20": "layer?.0",
    "keras:mobilenetv2": "body.block_*_add",
}  # fmt: skip
MAPS = [name for name in NETWORKS if name != "test_vit"]


@lru_cache(maxsize=8)
def network(name):
    """Random weights, statistics of BatchNorm as after training."""
    if name.startswith("keras:"):
        pytest.importorskip("keras", reason="keras is not installed: pip install 'burnish[keras]'")
    backbone = zoo.load_backbone(f"random:{name}", image_size=NETWORKS.get(name))
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in backbone.module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_(0, 0.1, generator=rng)
                layer.running_var.uniform_(0.5, 1.5, generator=rng)
                layer.weight.uniform_(0.5, 1.5, generator=rng)
                layer.bias.normal_(0, 0.1, generator=rng)
    return backbone


def images_for(backbone, n=2):
    size = backbone.preprocess.size
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def features(backbone, images=None):
    with torch.no_grad():
        return backbone.module(images_for(backbone) if images is None else images)


def assert_stages_hold_all_once(backbone):
    names = [name for stage in backbone.stages for name in stage.parameters]
    assert sorted(names) == sorted(backbone.module.state_dict())
    assert all(stage.parameters for stage in backbone.stages)


def assert_builds_again(backbone):
    description = json.loads(json.dumps(zoo.architecture_for_bundle(backbone), allow_nan=False))
    module = zoo.rebuild(description, seed=9, width=backbone.width, size=backbone.preprocess.size)
    module.load_state_dict(backbone.module.state_dict())
    with torch.no_grad():
        assert torch.equal(module(images_for(backbone)), features(backbone))


def depth_of(name):
    """For EfficientNet as many as there are, the last group's last block gone."""
    counts = [len(group) for group in depths(network(name))]
    return DEPTH[name] or ",".join(map(str, [max(1, count - 1) for count in counts]))


def assert_untouched(name, before):
    state = network(name).module.state_dict()
    assert list(state) == list(before)
    assert all(torch.equal(state[key], before[key]) for key in before)


# ---- heads -----------------------------------------------------------------------------------------------------------


def a_linear_head(width, classes, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(size=(classes, width)).astype(np.float32)), torch.from_numpy(
        rng.normal(size=classes).astype(np.float32)
    )


@pytest.mark.parametrize("form", ["linear", "mlp:10", "mlp:16", "mlp:512", "cosine"])
def test_a_head_starts_as_the_linear_head_does(form):
    weight, bias = a_linear_head(24, 5)
    given = torch.randn(32, 24, generator=torch.Generator().manual_seed(3)) * 3
    head = heads.made(form, 24, 5)
    head.start_as(weight, bias, torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, expected = head(given), heads.seen_by(form, given) @ weight.T + bias
    assert expected.abs().max() > 1
    assert (found - expected).abs().max() <= 1e-4


def test_what_a_hidden_layer_draws_follows_from_its_generator_alone():
    weight, bias = a_linear_head(24, 5)
    before, made = torch.random.get_rng_state(), []
    for seed in (1, 1, 2):
        head = heads.made("mlp:32", 24, 5)
        head.start_as(weight, bias, torch.Generator().manual_seed(seed))
        made.append(head.state_dict()["hidden.weight"])
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_all_units_of_a_hidden_layer_can_learn():
    weight, bias = a_linear_head(24, 5)
    head = heads.made("mlp:32", 24, 5)
    head.start_as(weight, bias, torch.Generator().manual_seed(1))
    head(torch.randn(8, 24)).logsumexp(1).sum().backward()
    assert (head.out.weight.grad.abs().sum(0) > 0).all()


def test_a_cosine_head_does_not_ask_how_long_the_features_are():
    weight, bias = a_linear_head(24, 5)
    head = heads.made("cosine", 24, 5)
    head.start_as(weight, bias, torch.Generator())
    given = torch.randn(8, 24)
    torch.testing.assert_close(head(given), head(given * 100), rtol=1e-4, atol=1e-4)


def test_a_hidden_layer_too_narrow_for_the_classes_is_refused_with_what_would_do():
    heads.made("mlp:10", 24, 5)
    with pytest.raises(RecipeError, match="say mlp:10 or more"):
        heads.made("mlp:9", 24, 5)


@pytest.mark.parametrize(
    "form", ["mlp", "mlp:0", "mlp:-4", "mlp:1.5", "mlp:999999", "Linear", "", "cosine:3", None, 3, ["linear"]]
)
def test_a_head_that_is_none_is_refused_with_what_there_is(form):
    with pytest.raises(RecipeError, match="expected linear, mlp:WIDTH"):
        heads.made(form, 24, 5)
    with pytest.raises(RecipeError, match="head"):
        Recipe(head=form)


@pytest.mark.parametrize("form", ["linear", "mlp:16", "cosine"])
def test_a_package_with_a_head_opens_again_and_gives_the_same_logits(tmp_path, form):
    backbone = network("cifar_resnet20")
    classifier = Classifier.over(backbone, 3, form)
    classifier.head.start_as(*a_linear_head(backbone.width, 3), torch.Generator().manual_seed(1))
    write_bundle(tmp_path / "run", Bundle.of(backbone, classifier, classes=("a", "b", "c"), method="full"))
    opened = read_bundle(tmp_path / "run")
    assert opened.head == form
    with torch.no_grad():
        assert torch.equal(opened.classifier()(images_for(backbone)), classifier(images_for(backbone)))


@pytest.mark.parametrize("kind", ["mlp:4", "mlp:64", "cosine", "os.system", "mlp:99999999999", None, {"mlp": 16}])
def test_a_hostile_kind_of_head_in_a_package_is_refused(tmp_path, kind):
    """The file's hash is made to fit, as somebody hostile would."""
    from test_bundle import _rewrite

    backbone = network("cifar_resnet20")
    classifier = Classifier.over(backbone, 3, "mlp:16")
    classifier.head.start_as(*a_linear_head(backbone.width, 3), torch.Generator().manual_seed(1))
    write_bundle(tmp_path / "run", Bundle.of(backbone, classifier, classes=("a", "b", "c"), method="full"))
    _rewrite(tmp_path / "run", head={"kind": kind, "width": backbone.width})
    with pytest.raises((NotARun, RunError, ModelError, RecipeError), match="head"):
        read_bundle(tmp_path / "run").classifier()


@pytest.mark.parametrize("form", [pytest.param("mlp:16", marks=pytest.mark.slow), "cosine"])
def test_a_run_with_that_head_predicts(shapes, tmp_path, form):
    api.fit(shapes, out=tmp_path / "run", method="full", head=form, **TINY)
    found = api.predict(tmp_path / "run", [shapes / "red" / "000.png"], top=3)[0]
    assert sum(found.probabilities) == pytest.approx(1, abs=1e-5)
    assert read_bundle(tmp_path / "run").head == form


# ---- taken out -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_fewer_blocks_leave_all_other_weights_bit_identical(name):
    backbone = network(name)
    before = {key: value.clone() for key, value in backbone.module.state_dict().items()}
    wanted = [int(count) for count in depth_of(name).split(",")]
    gone = [block for count, group in zip(wanted, depths(backbone), strict=True) for block in group[count:]]
    found = operated(backbone, depth=depth_of(name))
    left = found.module.state_dict()
    assert gone and not any(key.startswith(f"{block}.") for key in left for block in gone)
    assert set(before) - set(left) == {key for key in before if key.startswith(tuple(f"{block}." for block in gone))}
    assert all(torch.equal(left[key], before[key]) for key in left)
    assert not torch.allclose(features(found), features(backbone), atol=1e-4)
    assert found.uncut is backbone.module
    assert [len(group) for group in depths(found)] == wanted
    assert_untouched(name, before)
    assert_stages_hold_all_once(found)
    assert_builds_again(found)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_block_that_is_said_to_be_removable_is(name):
    backbone = network(name)
    blocks = removable(backbone)
    assert blocks
    for block in (blocks[0], blocks[-1]):
        found = operated(backbone, remove=block)
        assert not any(key.startswith(f"{block}.") for key in found.module.state_dict())
        assert_stages_hold_all_once(found)
        assert_builds_again(found)


def test_full_depth_and_nothing_to_do_give_the_network_itself():
    backbone = network("resnet18")
    assert operated(backbone) is backbone
    assert operated(backbone, depth="2,2,2,2").module is backbone.module


def test_the_function_is_that_of_the_blocks_that_are_left():
    backbone = network("resnet18")
    found = operated(backbone, depth="1,2,2,2")
    module, images = copy.deepcopy(backbone.module), images_for(backbone)
    module.layer1 = module.layer1[:1]
    with torch.no_grad():
        assert torch.equal(found.module(images), module(images))


def test_removing_takes_patterns_with_commas_and_what_lies_inside_goes_too():
    backbone = network("resnet18")
    found = operated(backbone, remove="layer1.1, layer[34].1, layer1.1.conv1")
    assert found.architecture["changes"] == [{"kind": "drop", "layers": ["layer1.1", "layer3.1", "layer4.1"]}]


@pytest.mark.parametrize("depth", ["2,2", "2,2,2,3", "0,2,2,2", "a,b,c,d", "2,2,2,2,2", "-1,2,2,2", "2;2;2;2"])
def test_a_depth_that_the_network_does_not_have_is_refused_with_the_one_it_has(depth):
    with pytest.raises(RecipeError, match="resnet18 has the depth 2,2,2,2"):
        operated(network("resnet18"), depth=depth)


def test_a_block_that_others_need_is_refused_with_those_that_can_go():
    with pytest.raises(RecipeError, match=r"layer2\.0 cannot be removed.*what can be: layer1\.0, layer1\.1, layer2\.1"):
        operated(network("resnet18"), remove="layer2.0")
    with pytest.raises(RecipeError, match=r"what can be: blocks\.0, blocks\.1"):
        operated(network("test_vit"), remove="patch_embed")


@pytest.mark.parametrize("how", [{"remove": "layer9.*"}, {"insert": "layer9.*=relu"}])
def test_a_name_that_matches_nothing_is_refused_with_the_nearest_and_the_blocks(how):
    with pytest.raises(NoSuchName, match=r"layer9.*nearest: .*layer.*its blocks: layer1\.0"):
        operated(network("resnet18"), **how)


# ---- put in ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        (name, layer)
        for name in NETWORKS
        for layer in ("linear", "batchnorm", "conv:1", "conv:3", "conv:7")
        if layer == "linear" or (name in MAPS and (layer in ("batchnorm", "conv:3") or name == "cifar_resnet20"))
    ],
)
def test_layers_that_start_as_the_identity_leave_the_features(name, layer):
    backbone = network(name)
    before = {key: value.clone() for key, value in backbone.module.state_dict().items()}
    found = operated(backbone, insert=f"{INSERT[name]}={layer}")
    expected = features(backbone)
    tolerance = 1e-4 if layer == "batchnorm" else 1e-5  # it divides by sqrt(1 + 1e-5) each time
    assert (features(found) - expected).abs().max() <= tolerance * max(1, expected.abs().max())
    state = found.module.state_dict()
    assert len(state) > len(before)
    old = {key.replace(".layer.", "."): key for key in state if ".added." not in key}
    assert set(old) == {key.replace(".layer.", ".") for key in before}
    assert all(torch.equal(state[old[key.replace(".layer.", ".")]], before[key]) for key in before)
    assert_untouched(name, before)
    assert_stages_hold_all_once(found)
    assert_builds_again(found)


@pytest.mark.parametrize(
    ("name", "layer"),
    [*((name, "layernorm") for name in NETWORKS), *(("test_vit", layer) for layer in ("gelu", "relu", "silu"))],
)
def test_layers_that_change_the_function_build_again_too(name, layer):
    found = operated(network(name), insert=f"{INSERT[name]}={layer}")
    assert torch.isfinite(features(found)).all()
    assert_stages_hold_all_once(found)
    assert_builds_again(found)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_dropout_that_was_put_in_acts_in_training_alone_and_can_be_repeated(name):
    found = operated(network(name), insert=f"{INSERT[name]}=dropout:0.5")
    classifier, images = Classifier.over(found, 3), images_for(found)
    assert torch.equal(features(found), features(network(name)))
    assert_stages_hold_all_once(found)
    with torch.no_grad():
        plain = classifier.features(images)
        let_drop(classifier, 0.0, 0.0)
        drawn = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            drawn.append(classifier.features(images))
        assert torch.equal(drawn[0], drawn[1])
        assert not torch.allclose(drawn[0], drawn[2], atol=1e-4)
        assert not torch.allclose(drawn[0], plain, atol=1e-4)
        assert all(
            layer.training == isinstance(layer, InsertedDropout)
            for layer in classifier.modules()
            if not list(layer.children())
        )
        assert torch.equal(classifier.eval().features(images), plain)


def test_new_layers_stand_in_the_stage_of_the_layer_they_follow():
    found = operated(network("resnet18"), insert="layer2.*=linear,maxpool=conv:3")
    stage_of = {name: stage.name for stage in found.stages for name in stage.parameters}
    assert stage_of["layer2.0.added.inner.weight"] == "layer2"
    assert stage_of["layer2.1.added.inner.weight"] == "layer2"
    assert [stage.name for stage in found.stages] == ["stem", "layer1", "layer2", "layer3", "layer4"]


def test_new_layers_after_one_without_weights_stand_in_the_stage_they_run_in():
    found = operated(network("resnet18"), insert="maxpool=conv:3")
    stage_of = {name: stage.name for stage in found.stages for name in stage.parameters}
    assert stage_of["maxpool.added.weight"] in ("stem", "layer1")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("layer1.0", "expected PATTERN=LAYER"),
        ("layer1.0=lstm", "no layer 'lstm' to insert; expected dropout:0.2, batchnorm"),
        ("layer1.0=dropout:1.5", "no layer 'dropout:1.5'"),
        ("layer1.0=dropout:nan", "no layer 'dropout:nan'"),
        ("layer1.0=conv:4", "no layer 'conv:4'"),
        ("layer1.0=conv:x", "no layer 'conv:x'"),
        ("global_pool=relu", "no layer that gives maps or tokens"),
    ],
)
def test_a_layer_that_cannot_be_put_in_is_refused_with_what_can(words, sentence):
    with pytest.raises(RecipeError, match=sentence):
        operated(network("resnet18"), insert=words)


def test_convolutions_among_tokens_are_refused_with_the_reason():
    with pytest.raises(RecipeError, match="after layers that give maps"):
        operated(network("test_vit"), insert="blocks.0=conv:3")


@pytest.mark.parametrize("name", NETWORKS)
def test_taking_out_and_putting_in_are_done_in_one(name):
    backbone = network(name)
    found = operated(backbone, depth=depth_of(name), insert=f"{INSERT[name]}=linear,{INSERT[name]}=gelu")
    assert [change["kind"] for change in found.architecture["changes"]] == ["drop", "insert", "insert"]
    assert_stages_hold_all_once(found)
    assert_builds_again(found)


def test_drop_path_and_pooling_go_together_with_depth():
    plain = zoo.load_backbone("random:test_vit", image_size=32, seed=1)
    found = zoo.load_backbone("random:test_vit", image_size=32, seed=1, drop_path=0.3, depth="4", pool="avg")
    paths = [layer for layer in found.module.modules() if type(layer).__name__ == "DropPath"]
    assert len(paths) == 2 * 3  # the first block's is an identity
    state, kept = plain.module.state_dict(), found.module.state_dict()
    shared = [key for key in kept if key in state]
    assert shared and all(torch.equal(kept[key], state[key]) for key in shared)
    assert_stages_hold_all_once(found)
    classifier = Classifier.over(found, 3)
    let_drop(classifier, 0.0, 0.3)
    torch.manual_seed(0)
    with torch.no_grad():
        assert not torch.equal(classifier.features(images_for(found, 8)), features(found, images_for(found, 8)))


def test_methods_train_a_network_that_was_changed():
    found = operated(network("cifar_resnet20"), depth="2,2,2", insert="layer1.0=conv:3,layer2.0=linear")
    weight, bias = a_linear_head(found.width, 3)
    for name in ("full", "lora", "adapter"):
        tunable = METHODS[name].prepare(found, Head(weight.numpy(), bias.numpy()), Recipe(seed=1))
        with torch.no_grad():
            expected = features(found) @ weight.T + bias
            assert torch.allclose(tunable.classifier(images_for(found)), expected, atol=1e-4), name


# ---- hostile descriptions --------------------------------------------------------------------------------------------

INSERTED = {"kind": "insert", "layers": ["layer1.0"], "channels": [1], "widths": [16], "layer": "conv:3"}


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "drop"},
        {"kind": "drop", "layers": []},
        {"kind": "drop", "layers": "layer1.0"},
        {"kind": "drop", "layers": [""]},
        {"kind": "drop", "layers": [3]},
        {"kind": "drop", "layers": ["a" * 501]},
        {"kind": "drop", "layers": ["layer1.0", "layer1.0"]},
        {"kind": "drop", "layers": ["layer1.0"], "with": "os.system"},
        {**INSERTED, "layer": "os.system"},
        {**INSERTED, "layer": "conv:1000001"},
        {**INSERTED, "layer": ["relu"]},
        {**INSERTED, "layer": "dropout:" + "0" * 100},
        {**INSERTED, "channels": [4]},
        {**INSERTED, "channels": [True]},
        {**INSERTED, "widths": [0]},
        {**INSERTED, "widths": [10**9]},
        {**INSERTED, "widths": [65_536]},
        {**INSERTED, "widths": [16, 16]},
        {**INSERTED, "module": "os"},
        {"kind": "replace", "layers": ["layer1.0"]},
    ],
)
def test_a_hostile_change_in_a_description_is_refused(change):
    with pytest.raises(UnknownModel):
        check_changes([change])
    with pytest.raises(UnknownModel):
        zoo.rebuild({**zoo.architecture_for_bundle(network("cifar_resnet20")), "changes": [change]})


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "drop", "layers": ["layer9.0"]},
        {"kind": "drop", "layers": ["__class__"]},
        {"kind": "drop", "layers": ["layer2.0"]},
        {"kind": "drop", "layers": ["layer1"], "_": None},
        {**INSERTED, "layers": ["layer9"]},
        {**INSERTED, "widths": [17]},
        {**INSERTED, "channels": [3]},
        {**INSERTED, "layers": ["layer1.0.__init__"]},
    ],
)
def test_a_change_that_does_not_fit_the_network_is_refused(change):
    with pytest.raises(ModelError):
        zoo.rebuild({**zoo.architecture_for_bundle(network("cifar_resnet20")), "changes": [change]}, width=64, size=32)


def test_the_changes_that_these_are_made_from_are_fine():
    check_changes([INSERTED, {"kind": "drop", "layers": ["layer1.0"]}])


# ---- anatomy ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_and_multiply_adds_of_the_stages_add_up(name):
    backbone = network(name)
    found = anatomy(backbone)
    assert found.parameters == sum(one.numel() for one in backbone.module.parameters())
    assert sum(stage.parameters for stage in found.stages) == found.parameters
    assert sum(stage.macs for stage in found.stages) == found.macs > 0
    assert [stage.name for stage in found.stages] == [stage.name for stage in backbone.stages]
    assert [stage.number for stage in found.stages] == list(range(1, len(found.stages) + 1))
    blocks = [block for stage in found.stages for block in stage.blocks]
    assert blocks == [block for group in depths(backbone) for block in group]
    assert set(found.removable) <= set(blocks)
    assert found.depth == ",".join(str(len(group)) for group in depths(backbone))
    assert json.loads(json.dumps(found.to_json()))["width"] == backbone.width
    operated(backbone, depth=found.depth)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_that_was_changed_is_taken_apart_too(name):
    found = operated(network(name), depth=depth_of(name), insert=f"{INSERT[name]}=linear")
    parts = anatomy(found)
    assert sum(stage.parameters for stage in parts.stages) == parts.parameters
    assert sum(stage.macs for stage in parts.stages) == parts.macs


def test_resnet18_costs_what_is_printed_of_it():
    found = anatomy(zoo.load_backbone("random:resnet18"))
    assert found.macs == pytest.approx(1.81e9, rel=0.01)
    assert found.parameters == 11_176_512
    assert found.depth == "2,2,2,2"
    assert [stage.output for stage in found.stages[1:]] == [(64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7)]


def test_half_the_blocks_cost_less():
    backbone = network("resnet18")
    whole, half = anatomy(backbone), anatomy(operated(backbone, depth="1,1,1,1"))
    assert half.macs < 0.65 * whole.macs
    assert half.parameters < whole.parameters


def test_the_api_takes_a_network_apart_after_the_changes_that_fit_takes():
    found = api.anatomy("random:resnet18", image_size=64, depth="1,2,2,2", insert="layer1.0=conv:3")
    assert found.depth == "1,2,2,2"
    assert found.stages[1].name == "layer1"
    assert any("layer1.0" in block for block in found.stages[1].blocks)


def test_a_network_is_taken_apart_at_the_size_that_was_asked_for():
    assert api.anatomy("random:resnet18", image_size=64).size == 64


def test_the_command_line_shows_stages_and_blocks(capsys):
    code, out, _ = burnish("models", "random:resnet18", "--stages", "--image-size", "64", capsys=capsys)
    assert code == 0
    for words in (
        "resnet18",
        "11.2 M parameters",
        "512 features",
        "layer4",
        "--freeze N",
        "--depth 2,2,2,2",
        "layer1.0",
    ):
        assert words in out
    code, out, _ = burnish("models", "random:resnet18", "--stages", "--json", "--image-size", "64", capsys=capsys)
    assert code == 0
    facts = json.loads(out)
    assert [stage["name"] for stage in facts["stages"]] == ["stem", "layer1", "layer2", "layer3", "layer4"]
    assert sum(stage["parameters"] for stage in facts["stages"]) == facts["parameters"] == 11_176_512


def test_the_command_line_shows_parameters_and_cost_of_many_models(capsys):
    code, out, _ = burnish("models", "resnet50", capsys=capsys)
    assert code == 0
    assert "M par." in out
    assert "23.5" in next(line for line in out.splitlines() if line.startswith("resnet50."))
    _, out, _ = burnish("models", "resnet50", "--json", capsys=capsys)
    row = next(row for row in json.loads(out) if row["name"].startswith("resnet50."))
    assert row["parameters"] == 23_508_032
    assert row["macs"] == pytest.approx(4.1e9, rel=0.03)


def test_the_command_line_refuses_a_depth_in_a_sentence(shapes, tmp_path, capsys):
    code, _, err = burnish(
        "fit", shapes, "--model", "random:resnet18", "--image-size", "64", "--depth", "9", "--epochs", "1",
        "--budget", "none", "--out", tmp_path / "run", capsys=capsys,
    )  # fmt: skip
    assert code == 2
    assert "resnet18 has the depth 2,2,2,2" in err.replace("\n", " ")


# ---- whole runs ------------------------------------------------------------------------------------------------------


def test_a_run_with_fewer_blocks_says_how_far_the_features_moved_and_its_package_predicts(shapes, tmp_path):
    settings = {**TINY, "model": "random:cifar_resnet20", "image_size": 32}
    api.fit(shapes, out=tmp_path / "run", method="full", depth="2,3,1", insert="layer1.0=dropout:0.2", **settings)
    facts = json.loads((tmp_path / "run" / "result.json").read_text("utf-8"))
    told = [one for one in facts["decisions"] if one["what"] == "network changed"]
    assert len(told) == 1
    alike = told[0]["values"]["cosine_similarity"] if "values" in told[0] else json.dumps(told[0])
    assert "cosine similarity" in told[0]["why"]
    assert isinstance(alike, str) or -1 <= alike <= 1
    bundle = read_bundle(tmp_path / "run")
    assert [change["kind"] for change in bundle.architecture["changes"]] == ["drop", "insert"]
    assert not any(name.startswith(("trunk.layer1.2.", "trunk.layer3.1.")) for name in bundle.state)
    found = api.predict(tmp_path / "run", [shapes / "red" / "000.png"], top=3)[0]
    assert sum(found.probabilities) == pytest.approx(1, abs=1e-5)
    bundle.classifier()


def test_a_run_whose_network_was_not_changed_says_nothing(shapes, tmp_path):
    api.fit(shapes, out=tmp_path / "run", method="probe", **TINY)
    facts = json.loads((tmp_path / "run" / "result.json").read_text("utf-8"))
    assert not any(one["what"] == "network changed" for one in facts["decisions"])
