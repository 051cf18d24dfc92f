"""The contract that every method keeps on every kind of backbone: being in METHODS is enough to be tested here."""

import copy
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import pytest
import timm
import torch
from torch import nn

from burnish.backbones.changing.blocks import blocks_of
from burnish.backbones.changing.lowrank import LowRank, merged
from burnish.backbones.changing.taps import tapped
from burnish.backbones.classifier import Classifier
from burnish.backbones.spec import Backbone, Stage
from burnish.backbones.zoo import load_backbone
from burnish.data.views import Augmentation
from burnish.errors import RecipeError
from burnish.methods.base import Head, Tunable, assembled, attends, by_decay
from burnish.methods.table import METHODS, method_named
from burnish.recipe import Recipe
from burnish.runtime import Nobody
from burnish.ship.bundle import Bundle, read_bundle, write_bundle
from burnish.terms import Preprocess
from burnish.train.activations import LiveActivations, kept_or_live
from burnish.train.averaging import Average, between
from burnish.train.checkpoint import read_checkpoint, restore_training, training_state, write_checkpoint
from burnish.train.inputs import PixelViews, batch_of
from burnish.train.loop import Epoch, Schedule, Step, Training, tune
from burnish.train.objective import Objective
from burnish.train.parts import UpperForm, let_drop, parts_for_training

BACKBONES = (
    "test_resnet",  # one of its four blocks is a bottleneck
    "resnet14t",  # all of them are
    "test_efficientnet",
    "test_vit",
    "test_vit3",
    "test_convnext",
    "densenet121",
    "tf_efficientnet_lite0",
)
SIZE = 32  # pixels, side of the images
TRANSFORMERS = ("test_vit3",)  # that take any number of tokens, and can be traced
UNTRACEABLE = ("test_vit",)  # they look at the size of their images
VARIANTS = (
    "adapter:form=parallel:bottleneck=4", "lora:rank=2:where=*.attn.*", "top:stage=blocks.4", "gradual:over=0.2",
    "l2sp:pull=5",
)  # fmt: skip
CLASSES = 3
SEED = 7  # of the methods' own draws; the pretrained weights of these networks are drawn from 0


# Trained whole alone: all that trains parts of a network is shown of their kinds on smaller ones, of DenseNets in test_contract.py.
WHOLE_ALONE = ("resnet14t", "densenet121")


def fits(method, network):
    """Whether the network has what the method trains, and is here to show it."""
    kind = method.partition(":")[0]
    if network in WHOLE_ALONE and method != "full":
        return False
    if kind == "prompt":
        return network in TRANSFORMERS
    return kind != "adapter" or network not in UNTRACEABLE


LARGE = ("tf_efficientnet_lite0",)  # the usual one: on it, methods that others stand for take their time
PAIRS = [
    pytest.param(
        (network, method),
        id=f"{network}-{method}",
        marks=[pytest.mark.slow] if network in LARGE and method != "full" else [],
    )
    for network in BACKBONES
    for method in (*METHODS, *(VARIANTS if network == "test_vit3" else ()))
    if fits(method, network)
]


@lru_cache(maxsize=2)
def network_named(name, seed=0, drop_path=0.0):
    """Random weights, scales as after training: at their first values (0, 1e-6) some let next to nothing through."""
    backbone = load_backbone(f"random:{name}", image_size=SIZE, seed=seed, drop_path=drop_path)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in backbone.module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_(0, 0.1, generator=rng)
                layer.running_var.uniform_(0.5, 1.5, generator=rng)
                layer.weight.uniform_(0.5, 1.5, generator=rng)
                layer.bias.normal_(0, 0.1, generator=rng)
        for key, parameter in backbone.module.named_parameters():
            if key.endswith("gamma"):
                parameter.uniform_(0.5, 1.5, generator=rng)
    return backbone


def images_for(backbone, *, n=2, seed=0):
    size = backbone.preprocess.size
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def given(network, method):
    """The backbone as the method is given it: with taps where its head sees all depths."""
    backbone = network_named(network)
    if method != "multiprobe":
        return backbone
    found = tapped(backbone, images_for(backbone, n=4, seed=5))
    return found or backbone  # a network that cannot be traced has the last layer alone


def a_head(backbone, *, seed=0):
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(CLASSES, backbone.width)).astype(np.float32) / backbone.width**0.5
    return Head(weight, rng.normal(size=CLASSES).astype(np.float32))


def some_images(preprocess, *, seed=0, n=12):
    rng = np.random.default_rng(0)
    return PixelViews(
        stored=rng.integers(0, 255, (n, 48, 48, 3), np.uint8),
        rows=np.arange(n),
        aspects=np.ones(n, np.float32),
        labels=np.arange(n) % 3,
        ids=np.arange(n),
        paths=tuple(f"{i}.png" for i in range(n)),
        how=Augmentation(size=SIZE),
        preprocess=preprocess,
        seed=seed,
    )


def begun(
    method,
    backbone,
    *,
    steps=3,
    fold=True,
    recipe=None,
    workers=0,
    objective=None,
    dropout=0.0,
    drop_path=0.0,
    tunable=None,
):
    """(training, what iterates its events): a run of some steps at the backbone's own size."""
    objective = objective or Objective(label_smoothing=0.1)
    tunable = tunable or method.prepare(backbone, a_head(backbone), recipe or Recipe(seed=SEED))
    tunable.classifier.to(memory_format=torch.channels_last)
    inputs, half = some_images(backbone.preprocess, seed=objective.seed), objective.half
    if fold:
        parts = parts_for_training(
            tunable.classifier,
            tunable.backbone,
            tunable.freeze,
            images_for(backbone),
            half=half,
            moves_statistics=tunable.moves_statistics,
        )
        module = parts.trained
        if parts.lower is not None:
            inputs, _, _ = kept_or_live(
                inputs,
                parts.lower,
                views=2,
                size=backbone.preprocess.size,
                device=torch.device("cpu"),
                half=half,
                on_progress=lambda _: None,
            )
    else:
        module = tunable.classifier
    let_drop(tunable.classifier, dropout, drop_path)
    training = Training.start(tunable, total=steps, weight_decay=0.05)
    events = tune(
        training,
        inputs,
        Schedule(4, ((0.0, backbone.preprocess.size),)),
        module=module,
        device=torch.device("cpu"),
        objective=objective,
        workers=workers,
        watcher=Nobody(),
    )
    return training, events


def trained(method, backbone, **how):
    """A tunable after a few steps, its epochs, and the average of its weights."""
    training, events = begun(method, backbone, **how)
    epochs = [event for event in events if isinstance(event, Epoch)]
    return training.tunable, epochs, training.average


@dataclass(frozen=True)
class Run:
    """A method on a network: as prepared, and after three steps where it makes any."""

    network: str
    method: str
    backbone: Backbone
    backbone_before: dict[str, torch.Tensor]
    tunable: Tunable  # after the steps
    start: Classifier  # before them

    @property
    def kind(self):
        return self.method.partition(":")[0]

    @cached_property
    def tuned(self):
        """The classifier after the steps, in the form it was prepared in."""
        classifier = copy.deepcopy(self.start)
        classifier.load_state_dict(self.tunable.classifier.state_dict())
        return classifier.eval()


def run_of(network, name):
    backbone, method = given(network, name), method_named(name)
    before = {key: value.clone() for key, value in backbone.module.state_dict().items()}
    tunable = method.prepare(backbone, a_head(backbone), Recipe(seed=SEED))
    start = copy.deepcopy(tunable.classifier)
    if method.trains:
        trained(method, backbone, tunable=tunable)
    return Run(network, name, backbone, before, tunable, start)


@pytest.fixture(scope="module", params=PAIRS)
def run(request):
    return run_of(*request.param)


@pytest.fixture(scope="module", params=BACKBONES)
def backbone(request):
    return network_named(request.param)


# ---- before the first step -------------------------------------------------------------------------------------------


def test_the_function_before_the_first_step_is_that_of_the_probe(run):
    images, head = images_for(run.backbone), a_head(run.backbone)
    with torch.no_grad():
        found, plain = run.start(images), run.backbone.module(images)
        features = plain @ torch.from_numpy(head.weight).T + torch.from_numpy(head.bias)
        if run.kind in ("prompt", "scratch"):  # as their docstrings say; what they are is tested below
            assert not torch.allclose(found, features, atol=1e-3)
        else:
            assert torch.equal(found, assembled(run.backbone, head)(images))
            assert torch.allclose(found, features, atol=1e-5)


def test_prompts_change_the_function_of_the_probe_a_little():
    """At the size these networks are made for, ten tokens stand beside 197."""
    backbone = load_backbone("random:vit_tiny_patch16_224")
    images = images_for(backbone)
    tunable = METHODS["prompt"].prepare(backbone, a_head(backbone), Recipe(seed=SEED))
    with torch.no_grad():
        found, expected = tunable.classifier(images), assembled(backbone, a_head(backbone))(images)
    assert 1e-4 < (found - expected).abs().max() / expected.abs().max() < 0.1


@pytest.mark.parametrize(
    ("name", "drawn"),
    [
        ("lora", "low_down"),
        ("adapter", "down.weight"),
        ("prompt", "tokens"),
        ("scratch", ".weight"),
        ("scratch", "embed"),
    ],
)
def test_what_is_drawn_for_a_method_follows_from_the_seed_alone(name, drawn):
    backbone, prepared = network_named("test_vit3"), []
    for number, seed in enumerate((3, 3, 4)):
        torch.manual_seed(number)
        prepared.append(METHODS[name].prepare(backbone, a_head(backbone), Recipe(seed=seed)).classifier)
    assert same_weights(prepared[0], prepared[1])
    one, _, other = (dict(classifier.named_parameters()) for classifier in prepared)
    random = [key for key in one if drawn in key and "norm" not in key]
    assert random
    assert not any(torch.equal(one[key], other[key]) for key in random)


@pytest.mark.parametrize("network", ["test_resnet", "test_vit"])
def test_scratch_knows_nothing_of_the_pretrained_weights_and_the_probes_head(network):
    one, other = network_named(network), network_named(network, 1)
    assert not same_weights(one.module, other.module)
    recipe = Recipe(seed=SEED)
    first = METHODS["scratch"].prepare(one, a_head(one), recipe)
    second = METHODS["scratch"].prepare(other, a_head(other, seed=1), recipe)
    for name, value in first.classifier.state_dict().items():
        assert torch.equal(value, second.classifier.state_dict()[name]), name
    assert (second.backbone.source, second.backbone.sha256) == ("random", "")


def test_scratch_begins_from_the_plain_network_where_the_probe_had_taps():
    backbone = network_named("test_resnet")
    deep = tapped(backbone, images_for(backbone, n=4))
    tunable = METHODS["scratch"].prepare(deep, a_head(deep), Recipe(seed=SEED))
    plain = METHODS["scratch"].prepare(backbone, a_head(backbone), Recipe(seed=SEED))
    assert tunable.backbone.changes == ()
    assert same_weights(tunable.classifier, plain.classifier)


@pytest.mark.parametrize("name", METHODS)
def test_preparing_twice_shares_nothing(name):
    backbone = network_named("test_vit3")
    one = METHODS[name].prepare(backbone, a_head(backbone), Recipe(seed=SEED))
    two = METHODS[name].prepare(backbone, a_head(backbone), Recipe(seed=SEED))
    before = copy.deepcopy(two.classifier.state_dict())
    pretrained = copy.deepcopy(backbone.module.state_dict())
    with torch.no_grad():
        for parameter in one.classifier.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(value, before[key]) for key, value in two.classifier.state_dict().items())
    assert all(torch.equal(value, pretrained[key]) for key, value in backbone.module.state_dict().items())


# ---- what moves ------------------------------------------------------------------------------------------------------


def test_what_may_move_moves_and_all_else_is_bit_identical(run):
    """P3, BatchNorm statistics included, except from scratch, where they must move."""
    before, after = run.start.state_dict(), run.tunable.classifier.state_dict()
    moving = set(run.tunable.moving())
    assert bool(moving) == METHODS[run.kind].trains
    assert list(after) == list(before)
    still = {key for key in before if torch.equal(before[key], after[key])}
    counters = {key for key in before if key.endswith("num_batches_tracked") and run.tunable.moves_statistics}
    assert still >= set(before) - moving - counters, "a frozen part moved"
    assert len(moving - still) >= 0.9 * len(moving)  # a bias before a normalisation has no gradient
    for key, value in run.backbone.module.state_dict().items():
        assert torch.equal(value, run.backbone_before[key]), "the backbone that was given has changed"


def test_frozen_batchnorm_statistics_do_not_move_and_those_of_scratch_do(run):
    before, after = run.start.state_dict(), run.tunable.classifier.state_dict()
    statistics = [key for key in before if key.endswith(("running_mean", "running_var"))]
    moved = [key for key in statistics if not torch.equal(before[key], after[key])]
    assert moved == (statistics if run.kind == "scratch" else [])
    if any(isinstance(layer, nn.BatchNorm2d) for layer in run.backbone.module.modules()):
        assert statistics


def test_each_method_moves_the_parameters_that_its_name_says(run):
    names, movable = {key for key, _ in run.start.named_parameters()}, run.tunable.movable()
    head, trunk = {"head.weight", "head.bias"}, {key for key in movable if not key.startswith("head.")}
    assert movable <= names
    if run.kind in ("probe", "multiprobe"):
        assert movable == set()
        return
    assert head <= movable
    stages = run.backbone.stages
    if run.kind == "top":
        at = 5 if run.method == "top:stage=blocks.4" else len(stages) - max(1, len(stages) // 4)
        upper = {f"trunk.{key}" for stage in stages[at:] for key in stage.parameters}
        assert trunk == upper & names
        assert run.tunable.freeze == at
    elif run.kind == "norms":
        layers = {key.rpartition(".")[0] for key in trunk}
        kinds = {type(run.start.get_submodule(layer)).__name__ for layer in layers}
        assert all("Norm" in kind for kind in kinds)
        assert {key for key in names if key.startswith("trunk.") and "norm" in key.lower()} <= trunk
    elif run.kind == "bitfit":
        assert trunk == {key for key in names - head if key.endswith("bias")}
    elif run.kind == "lora":
        assert trunk
        assert trunk == {key for key in names if key.endswith(("low_up", "low_down"))}
        if "attn" in run.method:
            assert all(".attn." in key for key in trunk) and len(trunk) == 2 * 2 * len(blocks_of(run.backbone.module))
    elif run.kind in ("adapter", "prompt"):
        assert trunk
        assert trunk == {key for key in names if key.startswith(f"trunk.{run.kind}s.")}
    else:
        assert movable == names


def test_frozen_parameters_ask_for_no_gradient(run):
    """Else each step would compute what it throws away."""
    if not METHODS[run.kind].trains:
        return
    movable = run.tunable.movable()
    for key, parameter in run.tunable.classifier.named_parameters():
        assert parameter.requires_grad == (key in movable), key
        assert key in movable or parameter.grad is None, key


def test_the_low_rank_pair_wakes_up_one_after_the_other():
    """B is zero, so the first step has no gradient for A; from the second on both learn."""
    backbone = network_named("test_resnet")
    tunable = METHODS["lora"].prepare(backbone, a_head(backbone), Recipe(seed=SEED))
    training, events = begun(METHODS["lora"], backbone, tunable=tunable)
    start, moved = copy.deepcopy(tunable.classifier.state_dict()), {}
    for event in events:
        if isinstance(event, Step):
            now = tunable.classifier.state_dict()
            moved[training.steps] = {key for key in now if not torch.equal(now[key], start[key])}
    up, down = ({key for key in start if key.endswith(part)} for part in ("low_up", "low_down"))
    assert up and down
    assert moved[1] >= up and not moved[1] & down
    assert moved[2] >= up | down


def test_gradual_and_full_with_every_stage_awake_are_the_same_run():
    backbone = network_named("test_resnet")
    full, _, _ = trained(METHODS["full"], backbone)
    gradual, _, _ = trained(method_named("gradual:over=0"), backbone)
    later, _, _ = trained(METHODS["gradual"], backbone)
    assert same_weights(full.classifier, gradual.classifier)
    assert not same_weights(full.classifier, later.classifier)


@pytest.mark.parametrize("name", ["l2sp:pull=0.5", "surgical"])
def test_methods_that_steer_a_full_run_come_to_other_weights(name):
    backbone = network_named("test_resnet")
    full, _, _ = trained(METHODS["full"], backbone)
    other, _, _ = trained(method_named(name), backbone)
    assert not same_weights(full.classifier, other.classifier)


@pytest.mark.parametrize("name", ["lora", "adapter", "norms", "bitfit", "gradual"])
def test_with_frozen_stages_nothing_of_them_moves(name):
    backbone = network_named("test_resnet")
    freeze = len(backbone.stages) - 2
    recipe = Recipe(seed=SEED, freeze=freeze)
    tunable = METHODS[name].prepare(backbone, a_head(backbone), recipe)
    before = copy.deepcopy(tunable.classifier.state_dict())
    trained(METHODS[name], backbone, tunable=tunable)
    assert tunable.freeze == freeze
    after = tunable.classifier.state_dict()
    below = {f"trunk.{key}" for stage in backbone.stages[:freeze] for key in stage.parameters}
    assert not below & tunable.movable()
    still = {key for key in before if torch.equal(before[key], after[key])}
    assert still == set(before) - tunable.movable()


@pytest.mark.parametrize(
    ("name", "network"),
    [
        *((name, network) for name in ("full", "lora", "adapter") for network in ("test_resnet", "test_vit3")),
        ("prompt", "test_vit3"),
    ],
)
def test_what_is_trained_and_looked_at_on_kept_activations_is_the_classifier(name, network):
    """Cut above the frozen stages, with the weights of a few steps; once unmerged for steps, once merged for candidates."""
    backbone = network_named(network)
    tunable = METHODS[name].prepare(backbone, a_head(backbone), Recipe(seed=SEED, freeze=2))
    shell, images = copy.deepcopy(tunable.classifier), images_for(backbone, n=3, seed=1)
    trained(METHODS[name], backbone, tunable=tunable)
    shell.load_state_dict(tunable.classifier.state_dict())
    with torch.no_grad():
        expected = shell(images)
        twin = copy.deepcopy(shell)
        parts = parts_for_training(twin, tunable.backbone, tunable.freeze, images_for(backbone), half=False)
        assert parts.lower is not None
        activations = parts.exact(images)
        torch.testing.assert_close(parts.trained(activations), expected, rtol=1e-3, atol=1e-4)
        upper = UpperForm().of(merged(shell), tunable.backbone, tunable.freeze, images_for(backbone))
        torch.testing.assert_close(upper(activations), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("network", "name"), [("test_vit3", "prompt"), ("test_resnet", "adapter")])
def test_what_is_added_stands_above_the_frozen_stages(network, name):
    backbone = network_named(network)
    whole = METHODS[name].prepare(backbone, a_head(backbone), Recipe())
    upper = METHODS[name].prepare(backbone, a_head(backbone), Recipe(freeze=3))
    (all_of_them,), (some,) = whole.backbone.changes, upper.backbone.changes
    assert some["layers"] == all_of_them["layers"][-len(some["layers"]) :]
    assert len(some["layers"]) < len(all_of_them["layers"])


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].trains])
def test_bfloat16_steps_leave_float32_weights_that_moved_and_frozen_ones_that_did_not(name):
    backbone = network_named("test_vit3" if name == "prompt" else "test_resnet")
    tunable = METHODS[name].prepare(backbone, a_head(backbone), Recipe(seed=SEED))
    before = copy.deepcopy(tunable.classifier.state_dict())
    trained(METHODS[name], backbone, tunable=tunable, objective=Objective(half=True))
    after, moving = tunable.classifier.state_dict(), tunable.moving()
    for key, value in after.items():
        assert value.dtype == before[key].dtype
        assert torch.isfinite(value).all(), key
        if key not in moving and not key.endswith("num_batches_tracked"):
            assert torch.equal(value, before[key]), key
    assert not torch.equal(after["head.weight"], before["head.weight"])


# ---- saved and merged ------------------------------------------------------------------------------------------------


def test_it_saves_and_loads_to_the_same_logits(run, tmp_path):
    images, tuned = images_for(run.backbone, seed=1), merged(run.tuned)
    classes = ("a", "b", "c")
    write_bundle(tmp_path, Bundle.of(run.tunable.backbone, tuned, classes=classes, method=run.method))
    again = read_bundle(tmp_path).classifier()
    with torch.no_grad():
        logits = again(images)
        assert torch.equal(logits, tuned(images))
        if METHODS[run.kind].trains:
            assert not torch.allclose(logits, run.start(images), atol=1e-4)


def test_merging_gives_plain_layers_of_the_same_function(run):
    images, tuned = images_for(run.backbone, seed=1), run.tuned
    before = copy.deepcopy(tuned.state_dict())
    plain = merged(tuned)
    assert not any(isinstance(layer, LowRank) for layer in plain.modules())
    if run.kind != "lora":
        assert plain is tuned
        return
    assert any(isinstance(layer, LowRank) for layer in tuned.modules())
    assert list(plain.state_dict()) == list(assembled(run.backbone, a_head(run.backbone)).state_dict())
    untouched = {key: value for key, value in plain.state_dict().items() if f"{key[:-7]}.low_up" not in before}
    assert all(torch.equal(value, before[key]) for key, value in untouched.items() if not key.startswith("head."))
    with torch.no_grad():
        found, expected = plain(images), tuned(images)
        start = assembled(run.backbone, Head(tuned.head.weight.numpy(), tuned.head.bias.numpy()))
        assert not torch.allclose(expected, start(images), atol=1e-4), "the correction does nothing"
    assert (found - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max().item())
    assert all(torch.equal(value, before[key]) for key, value in tuned.state_dict().items()), "merging wrote into it"


@pytest.mark.parametrize("name", ["full", "lora", "adapter"])
def test_a_network_with_taps_is_trained_saved_and_loaded_too(name, tmp_path):
    plain = network_named("test_resnet")
    backbone = tapped(plain, images_for(plain, n=4, seed=5))
    tunable = METHODS[name].prepare(backbone, a_head(backbone), Recipe(seed=SEED))
    shell, images = copy.deepcopy(tunable.classifier), images_for(backbone, seed=1)
    with torch.no_grad():
        assert torch.equal(shell(images), assembled(backbone, a_head(backbone))(images))
    trained(METHODS[name], backbone, tunable=tunable)
    shell.load_state_dict(tunable.classifier.state_dict())
    write_bundle(tmp_path, Bundle.of(tunable.backbone, merged(shell), classes=("a", "b", "c"), method=name))
    with torch.no_grad():
        assert torch.equal(read_bundle(tmp_path).classifier()(images), merged(shell)(images))


# ---- what a network lacks --------------------------------------------------------------------------------------------


def handmade(*layers):
    """A network of one's own as a backbone, a stage a layer; 3 channels in, 8 features out."""
    module = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for layer in module:
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()
    stages = tuple(
        Stage(name, tuple(f"{name}.{key}" for key in layer.state_dict()))
        for name, layer in module.named_children()
        if layer.state_dict()
    )
    return Backbone("handmade", module, 8, stages, Preprocess(size=32), "unknown", "", "random")


def plain_convolutions(*, bias=True):
    """As VGG: convolutions one after the other, no blocks, no normalisation."""
    return handmade(
        nn.Conv2d(3, 4, 3, padding=1, bias=bias), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 8, 3, padding=1, bias=bias)
    )


@pytest.mark.parametrize(
    ("name", "backbone", "words"),
    [
        ("prompt", lambda: network_named("test_resnet"), ["test_resnet", "vit_small_patch16_224", "full, lora or norms"]),
        ("prompt", lambda: network_named("test_convnext"), ["test_convnext", "vit_small_patch16_224"]),
        ("prompt", lambda: network_named("densenet121"), ["densenet121", "vit_small_patch16_224"]),
        ("prompt", lambda: network_named("tf_efficientnet_lite0"), ["vit_small_patch16_224"]),
        ("prompt", lambda: network_named("test_vit"), ["test_vit", "lora or norms"]),
        ("prompt", plain_convolutions, ["handmade", "vit_small_patch16_224"]),
        ("norms", plain_convolutions, ["handmade has no normalisation", "layers with weights: Conv2d"]),
        ("bitfit", lambda: plain_convolutions(bias=False), ["handmade has no bias", "full, norms or lora"]),
        ("lora:where=nothing*", lambda: network_named("test_resnet"), ["'nothing*'", "nearest: ", "conv"]),
        ("lora:where=blocks.*.att.*", lambda: network_named("test_vit"), ["'blocks.*.att.*'", "nearest: blocks."]),
        ("top:stage=nosuch", lambda: network_named("test_resnet"), ["'nosuch'", "stem, layer1.0, layer2.0", "from 1 to 5"]),
        ("top:stage=6", lambda: network_named("test_resnet"), ["'6'", "stem, layer1.0, layer2.0", "from 1 to 5"]),
        ("top:stage=0", lambda: network_named("test_resnet"), ["'0'", "from 1 to 5"]),
        ("top:stage=-1", lambda: network_named("test_resnet"), ["'-1'", "stem, layer1.0, layer2.0"]),
        ("adapter", plain_convolutions, ["handmade", "no repeated blocks", "full, lora or norms"]),
        ("adapter:form=parallel", plain_convolutions, ["handmade", "no repeated blocks"]),
        ("adapter:form=parallel", lambda: network_named("resnet14t"), ["form parallel", "its blocks: layer1.0, layer2.0"]),
        ("adapter:form=parallel", lambda: network_named("test_efficientnet"), ["its blocks: blocks.1.0, blocks.2.0"]),
    ],
)  # fmt: skip
def test_a_method_that_finds_nothing_to_train_says_what_there_is(name, backbone, words):
    backbone = backbone()
    with pytest.raises(RecipeError) as problem:
        method_named(name).prepare(backbone, a_head(backbone), Recipe())
    for word in words:
        assert word in str(problem.value)


@pytest.mark.parametrize("name", ["lora", "norms", "bitfit", "adapter"])
def test_with_all_stages_frozen_there_is_nothing_to_train_and_that_is_said(name):
    backbone = network_named("test_resnet")
    with pytest.raises(RecipeError, match=r"test_resnet"):
        METHODS[name].prepare(backbone, a_head(backbone), Recipe(freeze=5))


@pytest.mark.parametrize("name", ["full", "lora", "bitfit", "top", "gradual", "surgical", "l2sp"])
def test_a_network_of_ones_own_is_trained_by_what_fits_it(name):
    backbone = plain_convolutions()
    tunable, _, _ = trained(METHODS[name], backbone)
    start = METHODS[name].prepare(backbone, a_head(backbone), Recipe(seed=SEED)).classifier
    moved = {
        key for key, value in tunable.classifier.state_dict().items() if not torch.equal(value, start.state_dict()[key])
    }
    assert moved == tunable.movable()


def test_more_frozen_stages_than_there_are_is_an_error_that_names_them():
    backbone = network_named("test_resnet")
    for name in set(METHODS) - {"probe", "multiprobe", "scratch"}:
        with pytest.raises(RecipeError, match=r"freeze is 9, but test_resnet has 5 stages: stem, layer1"):
            METHODS[name].prepare(backbone, a_head(backbone), Recipe(freeze=9))
    with pytest.raises(RecipeError, match=r"freeze is 2, but from scratch nothing is worth freezing"):
        METHODS["scratch"].prepare(backbone, a_head(backbone), Recipe(freeze=2))


# ---- names and options -----------------------------------------------------------------------------------------------


def test_an_unknown_method_is_named_with_the_nearest():
    with pytest.raises(RecipeError, match=r"no method 'prob' \(nearest: probe"):
        method_named("prob")


def test_options_are_read_from_the_name():
    method = method_named("lora:rank=4:where=*.attn.*:alpha=2.5")
    assert (method.rank, method.where, method.alpha) == (4, "*.attn.*", 2.5)
    assert method_named("lora") == METHODS["lora"]
    assert method_named("lora:rank=8") == METHODS["lora"]
    assert METHODS["lora"].rank == 8, "the table itself has changed"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lora:rnk=4", r"no option 'rnk=4' \(its options: rank=8, alpha=16\.0, where=\*\)"),
        ("lora:rank", r"no option 'rank' \(its options: rank=8"),
        ("full:rank=4", r"full has no option 'rank=4' \(its options: none\)"),
        ("lora:name=full", r"no option 'name=full'"),
        ("lora:rank=four", r"rank of lora is 'four', expected a whole number"),
        ("lora:rank=2.5", r"rank of lora is '2\.5', expected a whole number"),
        ("gradual:over=half", r"over of gradual is 'half', expected a number"),
    ],
)
def test_an_option_that_is_not_one_is_an_error_that_lists_what_there_is(name, words):
    with pytest.raises(RecipeError, match=words):
        method_named(name)


@pytest.mark.parametrize(
    "name",
    [
        "lora:rank=0", "lora:rank=-1", "lora:rank=5000", "lora:alpha=0", "lora:alpha=-1", "adapter:bottleneck=0",
        "adapter:bottleneck=5000", "adapter:form=sideways", "prompt:tokens=0", "prompt:tokens=5000", "gradual:over=1.5",
        "gradual:over=-0.1", "gradual:over=nan", "l2sp:pull=0", "l2sp:pull=-1", "l2sp:pull=nan", "l2sp:pull=1000",
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused_with_what_came(name):
    backbone = network_named("test_vit3")
    with pytest.raises(RecipeError, match=r"expected"):
        method_named(name).prepare(backbone, a_head(backbone), Recipe())


# ---- training --------------------------------------------------------------------------------------------------------


def test_training_twice_with_one_seed_is_bit_identical():
    backbone = network_named("test_resnet")
    one, _, _ = trained(METHODS["full"], backbone)
    two, _, _ = trained(METHODS["full"], backbone)
    other, _, _ = trained(METHODS["full"], backbone, objective=Objective(seed=1))
    assert all(torch.equal(a, b) for a, b in zip(one.classifier.parameters(), two.classifier.parameters(), strict=True))
    assert not torch.equal(one.classifier.head.weight, other.classifier.head.weight)


def test_folded_training_is_unfolded_training():
    backbone = network_named("test_resnet")
    folded, _, _ = trained(METHODS["full"], backbone, steps=2)
    plain, _, _ = trained(METHODS["full"], backbone, steps=2, fold=False)
    for name, value in plain.classifier.named_parameters():
        # Adam divides by the gradient's own size, so rounding shows where a gradient is nearly zero: compare the bulk.
        close = torch.isclose(dict(folded.classifier.named_parameters())[name], value, atol=2e-4)
        assert close.float().mean() > 0.97, name


def test_a_batch_in_pieces_is_the_whole_batch(monkeypatch):
    from burnish.train import objective

    backbone = network_named("test_resnet")
    whole, _, _ = trained(METHODS["full"], backbone, steps=2)
    monkeypatch.setattr(objective, "PIXELS_AT_ONCE", SIZE * SIZE)
    assert objective._pieces(backbone.module, torch.empty(4, 3, SIZE, SIZE)) == 4
    pieces, _, _ = trained(METHODS["full"], backbone, steps=2)
    for one, other in zip(whole.classifier.parameters(), pieces.classifier.parameters(), strict=True):
        assert torch.isclose(one, other, atol=2e-4).float().mean() > 0.97


def same_weights(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


MIXED = Objective(label_smoothing=0.1, mixup=0.4, cutmix=1.0, sam=0.05)
RESUMED = {
    "full resnet": ("full", "test_resnet", {"steps": 7}),
    "full resnet, 2 frozen": ("full", "test_resnet", {"steps": 7, "recipe": Recipe(freeze=2)}),
    "full vit, 2 frozen": ("full", "test_vit", {"recipe": Recipe(freeze=2)}),
    "gradual": ("gradual:over=0.9", "test_resnet", {}),
    "surgical": ("surgical", "test_resnet", {}),
    "lora": ("lora:rank=2", "test_resnet", {}),
    "l2sp": ("l2sp:pull=20", "test_resnet", {}),
    "adapter": ("adapter", "test_resnet", {}),
    "prompt": ("prompt", "test_vit3", {}),
    "drop path": ("full", "test_resnet", {"drop_path": 0.5}),
    "mixed, SAM, dropout, scratch": ("scratch", "test_resnet", {"objective": MIXED, "dropout": 0.3}),
    "mixed, SAM, dropout, frozen": ("top", "test_resnet", {"objective": MIXED, "dropout": 0.3}),
}


@pytest.mark.parametrize("case", RESUMED)
def test_a_run_taken_up_after_any_step_comes_to_the_same_bits(case, tmp_path):
    """P7: weights, statistics, moving average and losses; batches made ahead by threads change nothing either."""
    name, network, how = RESUMED[case]
    method, backbone = method_named(name), network_named(network, drop_path=how.get("drop_path", 0.0))
    steps = how.get("steps", 5)
    how = {**how, "steps": steps}
    whole, events = begun(method, backbone, **how)
    told, saved = [], {}
    for event in events:
        told += [event.train_loss] if isinstance(event, Epoch) else []
        if isinstance(event, Epoch) and steps < 7:
            continue  # once is enough for the instant after an epoch is told; the one before it is a step's
        (tmp_path / str(len(saved))).mkdir()
        write_checkpoint(tmp_path / str(len(saved)), *training_state(whole))
        saved[whole.steps, isinstance(event, Epoch)] = len(told)
    assert len(told) == -(-steps // 3)
    assert len(saved) >= steps
    for number, ((stop, _), count) in enumerate(saved.items()):
        torch.manual_seed(number)  # another process's generator stands elsewhere
        second, events = begun(method, backbone, workers=number % 3, **how)
        restore_training(second, *read_checkpoint(tmp_path / str(number)))
        assert second.steps == stop
        losses = [event.train_loss for event in events if isinstance(event, Epoch)]
        assert losses == told[count:]
        assert second.steps == steps
        found, expected = second.tunable.moving(), whole.tunable.moving()
        assert list(found) == list(expected) == whole.average.names
        assert all(torch.equal(found[key], expected[key]) for key in expected)
        assert all(torch.equal(a, b) for a, b in zip(whole.average.values, second.average.values, strict=True))
        assert [group["rate"] for group in second.optimiser.param_groups] == [
            group["rate"] for group in whole.optimiser.param_groups
        ]


def test_drop_paths_act_in_training_steps_and_not_in_what_is_scored():
    plain, dropping = network_named("test_resnet"), network_named("test_resnet", drop_path=0.5)
    images = images_for(plain)
    with torch.no_grad():
        assert torch.equal(plain.module(images), dropping.module(images))
    without, _, _ = trained(METHODS["full"], dropping)
    acting, _, _ = trained(METHODS["full"], dropping, drop_path=0.5)
    assert same_weights(without.classifier, trained(METHODS["full"], plain)[0].classifier)
    assert not same_weights(without.classifier, acting.classifier)


@pytest.mark.parametrize("network", ["test_resnet", "test_vit", "test_efficientnet", "test_convnext", "densenet121"])
def test_frozen_stages_stay_bit_identical_and_the_rest_learns_from_kept_activations(network):
    backbone = network_named(network)
    before = copy.deepcopy(backbone.module.state_dict())
    freeze = len(backbone.stages) - 1
    tunable, _, _ = trained(METHODS["full"], backbone, recipe=Recipe(freeze=freeze))
    frozen = {f"trunk.{name}" for stage in backbone.stages[:freeze] for name in stage.parameters}
    after = tunable.classifier.state_dict()
    assert all(torch.equal(after[name], before[name.removeprefix("trunk.")]) for name in frozen)
    moved = [
        name
        for name in tunable.movable()
        if not torch.equal(after[name], before.get(name.removeprefix("trunk."), after[name] + 1))
    ]
    assert len(moved) >= 0.9 * len(tunable.movable())


def test_without_room_activations_are_computed_in_each_step(monkeypatch):
    from burnish.train import activations

    backbone = network_named("test_resnet")
    kept, _, _ = trained(METHODS["full"], backbone, recipe=Recipe(freeze=2), steps=2)
    monkeypatch.setattr(activations, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(activations, "DISK_SHARE", 0.0)
    parts = parts_for_training(
        METHODS["full"].prepare(backbone, a_head(backbone), Recipe()).classifier,
        backbone,
        2,
        images_for(backbone),
        half=False,
    )
    inputs, _, why = kept_or_live(
        some_images(backbone.preprocess),
        parts.lower,
        views=2,
        size=SIZE,
        device=torch.device("cpu"),
        half=False,
        on_progress=lambda _: None,
    )
    assert isinstance(inputs, LiveActivations) and "no room" in why
    live, _, _ = trained(METHODS["full"], backbone, recipe=Recipe(freeze=2), steps=2)
    # float16 is what keeping them costs; the function is the same.
    for one, other in zip(kept.classifier.parameters(), live.classifier.parameters(), strict=True):
        assert torch.isclose(one, other, atol=5e-4).float().mean() > 0.9


def test_a_run_taken_up_trains_on_as_many_views_as_it_began_with(monkeypatch):
    from burnish.train import activations

    backbone = network_named("test_resnet")
    whole = METHODS["full"].prepare(backbone, a_head(backbone), Recipe()).classifier
    parts = parts_for_training(whole, backbone, 2, images_for(backbone), half=False)

    def inputs_of(views, settled):
        return kept_or_live(
            some_images(backbone.preprocess), parts.lower, views=views, size=SIZE, device=torch.device("cpu"), half=False,
            on_progress=lambda _: None, settled=settled,
        )  # fmt: skip

    began, held, _ = inputs_of(2, None)
    assert held == 2
    more, held, _ = inputs_of(8, 2)  # there is more room by now
    assert held == 2 and np.array_equal(more.views, began.views)
    with monkeypatch.context() as patch:
        patch.setattr(activations, "IN_MEMORY_BYTES", 0)
        patch.setattr(activations, "DISK_SHARE", 0.0)  # there is none
        live, held, why = inputs_of(8, 2)
    assert held == 2 and why and isinstance(live, LiveActivations)
    rows = np.array([5, 0, 5 + 12, 7 + 24])  # of the second and third time too
    for epoch in (1, 2, 3):
        expected = batch_of(began, rows, epoch=epoch, size=SIZE)
        assert torch.allclose(batch_of(live, rows, epoch=epoch, size=SIZE), expected, atol=2e-3)
        assert not torch.allclose(expected[0], expected[2], atol=2e-3)
    live, held, _ = inputs_of(8, 0)  # it began without any: views of every epoch are new
    assert held == 0 and isinstance(live, LiveActivations) and not live.views


def test_whoever_multiplies_by_a_corrected_weight_himself_gets_the_correction_and_its_gradient():
    """As the attention of SwinV2, BEiT and EVA does, which never calls its layer."""
    layer = LowRank(nn.Linear(5, 6), 2, 4.0, torch.Generator().manual_seed(0))
    with torch.no_grad():
        layer.low_up.normal_(generator=torch.Generator().manual_seed(1))
    given = torch.randn(3, 5, generator=torch.Generator().manual_seed(2))
    by_hand = nn.functional.linear(given, layer.weight, layer.bias)
    assert torch.allclose(by_hand, layer(given), atol=1e-6)
    by_hand.sum().backward()
    assert layer.low_down.grad.any() and layer.low_up.grad.any()
    assert list(dict(layer.named_parameters())) == ["weight", "bias", "low_down", "low_up"]
    assert torch.equal(layer.state_dict()["weight"], layer.frozen)
    other = copy.deepcopy(layer)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(given), layer(given))
    assert torch.allclose(layer.plain()(given), layer(given), atol=1e-6)


def test_a_total_that_changes_between_steps_still_ends_at_rate_zero():
    training, events = begun(METHODS["full"], network_named("test_resnet"), steps=9)
    for event in events:
        if isinstance(event, Step) and training.steps == 2:
            training.total = 5
    assert training.steps == 5 and training.progress == 1.0
    assert training.optimiser.param_groups[0]["lr"] > 0.0  # the last step was not for nothing


@pytest.mark.parametrize("name", ["full", "scratch"])
def test_every_parameter_of_a_whole_tunable_is_in_one_group(name, backbone):
    tunable = METHODS[name].prepare(backbone, a_head(backbone), Recipe())
    listed = [key for group in tunable.groups for key in group.parameters]
    assert sorted(listed) == sorted(key for key, _ in tunable.classifier.named_parameters())


@pytest.mark.parametrize("name", ["full", "gradual", "l2sp"])
def test_earlier_stages_learn_more_slowly_and_vectors_do_not_decay(name, backbone):
    tunable = METHODS[name].prepare(backbone, a_head(backbone), Recipe(stage_decay=0.5))
    rates = list(dict.fromkeys(group.rate for group in tunable.groups))
    assert rates[-1] == 1.0
    assert rates == sorted(rates)
    assert len(rates) > 1
    parameters = dict(tunable.classifier.named_parameters())
    for group in tunable.groups:
        kernels = [
            key
            for key in group.parameters
            if parameters[key].ndim > 1 and not key.endswith(("_token", "_embed", "latent"))
        ]
        assert kernels == (list(group.parameters) if group.decays else [])


def test_tokens_and_positions_do_not_decay_nor_what_has_a_number_a_channel():
    class Trunk(nn.Module):
        def __init__(self):
            super().__init__()
            self.cls_token, self.pos_embed = nn.Parameter(torch.zeros(1, 1, 8)), nn.Parameter(torch.zeros(1, 5, 8))
            self.temperature, self.lora = nn.Parameter(torch.zeros(4, 1, 1)), nn.Parameter(torch.zeros(1, 8))
            self.kernel = nn.Parameter(torch.zeros(8, 3, 1, 1))

        def no_weight_decay(self):
            return {"pos_embed"}

    classifier = Classifier(Trunk(), 8, 3)
    groups = by_decay("all", [name for name, _ in classifier.named_parameters()], classifier)
    decaying = {name for group in groups if group.decays for name in group.parameters}
    assert decaying == {"trunk.lora", "trunk.kernel", "head.weight"}
    assert sum(len(group.parameters) for group in groups) == 7


def test_later_stages_begin_to_learn_first_in_a_gradual_run(backbone):
    tunable = method_named("gradual:over=0.5").prepare(backbone, a_head(backbone), Recipe())
    starts = list(dict.fromkeys(group.starts for group in tunable.groups if not group.name.startswith("head")))
    assert starts == sorted(starts, reverse=True)
    assert (starts[0], starts[-1]) == (0.5, 0.0)
    assert len(starts) == len(backbone.stages)
    assert all(group.starts == 0.0 for group in tunable.groups if group.name.startswith("head"))


def test_the_rate_is_exactly_zero_at_the_end_and_steps_are_as_planned():
    _, epochs, _ = trained(METHODS["full"], network_named("test_resnet"), steps=5)
    assert epochs[-1].steps == 5
    assert epochs[-1].progress == 1.0
    assert epochs[-1].learning_rate == 0.0
    assert epochs[-1].last
    assert [epoch.last for epoch in epochs[:-1]] == [False] * (len(epochs) - 1)


@pytest.mark.parametrize("name", ["full", "lora"])
def test_transformers_get_a_lower_rate_than_convolutions(name):
    vit, resnet = network_named("test_vit"), network_named("test_resnet")
    rates = [METHODS[name].prepare(one, a_head(one), Recipe()).peak_learning_rate for one in (vit, resnet)]
    assert rates[0] < rates[1]
    assert name != "full" or rates[0] < 5e-4 <= rates[1]


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].trains])
def test_a_learning_rate_in_the_recipe_is_the_peak(name):
    backbone = network_named("test_vit3")
    tunable = METHODS[name].prepare(backbone, a_head(backbone), Recipe(learning_rate=0.0123))
    assert tunable.peak_learning_rate == pytest.approx(0.0123)
    assert max(group.rate for group in tunable.groups) == 1.0


def test_the_average_of_one_weight_is_that_weight():
    backbone = network_named("test_resnet")
    for name in ("full", "scratch"):
        tunable = METHODS[name].prepare(backbone, a_head(backbone), Recipe())
        average = Average(tunable)
        average.follow(tunable)
        state = tunable.classifier.state_dict()
        assert average.state().keys() == tunable.moving().keys()
        for key, value in average.state().items():
            assert torch.equal(value, state[key])
    assert any(key.endswith("running_var") for key in average.state())


def test_between_gives_both_ends_and_the_middle():
    start, end = {"w": torch.tensor([0.0, 2.0])}, {"w": torch.tensor([4.0, 2.0])}
    assert torch.equal(between(start, end, 0.0)["w"], start["w"])
    assert torch.equal(between(start, end, 1.0)["w"], end["w"])
    assert torch.equal(between(start, end, 0.5)["w"], torch.tensor([2.0, 2.0]))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vit_tiny_patch16_224", True), ("cait_xxs24_224", True), ("convit_tiny", True), ("coat_tiny", True),
        ("xcit_nano_12_p16_224", True), ("swin_tiny_patch4_window7_224", True), ("resnet18", False),
        ("resnest14d", False), ("skresnet18", False), ("efficientnet_lite0", False), ("convnext_atto", False),
    ],
)  # fmt: skip
def test_transformers_are_told_from_networks_that_weigh_their_channels(name, expected):
    with torch.device("meta"):
        trunk = timm.create_model(name)
    assert attends(trunk) == expected
