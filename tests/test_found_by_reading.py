"""What readings of the code found wrong: biases that learn, packages of a few kB, deep greys, what a step leaves behind."""

import copy
import io
import json
import os
import struct

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from test_bundle import _rewrite
from test_methods import a_head, images_for, trained
from torch import nn

from burnish import api
from burnish import trained as trained_stage
from burnish.backbones import zoo
from burnish.backbones.classifier import Classifier
from burnish.backbones.surgery import operated
from burnish.choose.aim import augmentation_of
from burnish.choose.plan import settled
from burnish.data.contents import file_of
from burnish.data.pixels import decode
from burnish.errors import BadWeights, NotARun, RecipeError
from burnish.measure.held_out import HeldOut
from burnish.methods.table import METHODS, method_named
from burnish.recipe import Recipe
from burnish.ship.bundle import Bundle, read_bundle, write_bundle
from burnish.terms import Preprocess
from burnish.train.objective import PIXELS_AT_ONCE, Objective, _pieces, step
from burnish.verbs.options import print_json
from conftest import write_shapes

os.environ.setdefault("KERAS_BACKEND", "torch")
BIASED = {"levit_128s": 64, "tiny_vit_5m_224": 32, "efficientvit_m0": 64, "efficientformerv2_s0": 64}  # pixels
HUGE = 10**400


# ---- attention biases of LeViT and its like -------------------------------------------------------------------------


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


# ---- packages that ask for more than they hold ----------------------------------------------------------------------


def a_package(folder, **changes):
    """A sound one of a small network; then changed, its hash made to fit."""
    backbone = zoo.load_backbone("random:cifar_resnet20")
    held = HeldOut(np.array([0.9, 0.8]), np.array([True, False]), np.array([0.9, 0.1]))
    classes = ("a", "b", "c")
    bundle = Bundle.of(backbone, Classifier.over(backbone, 3), classes=classes, method="probe", held_out=held)
    write_bundle(folder, bundle)
    _rewrite(folder, **changes)
    return bundle


def of_few_numbers(architecture, width):
    """A package with a head and one weight more."""
    state = {"trunk.a": torch.zeros(1), "head.weight": torch.zeros(2, width), "head.bias": torch.zeros(2)}
    return Bundle(architecture, ("a", "b"), Preprocess(size=32), state, width, "probe", "x", "", "unknown")


def node(kind, name, given, **options):
    return {"name": name, "kind": kind, "inputs": [given], "options": options}


SEVEN = {"kind": "insert", "layers": ["layer1"], "channels": [1], "widths": [2300], "layer": "conv:7"}  # of 259,210,000
KERAS_NODES = [
    node("GlobalAveragePooling2D", "pool", "input"),
    node("Dense", "one", "pool", units=46_000),
    node("Dense", "two", "one", units=46_000),
]
GIANTS = {
    "a table of all pairs of patches": (
        {"library": "timm", "name": "resmlp_36_224", "kwargs": {"img_size": 2048}},
        384,
    ),
    "layers of Keras": (
        {
            "library": "keras",
            "name": "x",
            "kwargs": {"nodes": KERAS_NODES, "constants": {}, "size": 32, "bgr": False},
        },
        46_000,
    ),
    "layers put in": ({"library": "timm", "name": "test_resnet", "kwargs": {}, "changes": [SEVEN] * 4}, 384),
}


@pytest.mark.parametrize("kind", GIANTS)
def test_a_package_of_a_few_kilobytes_is_not_built_into_gigabytes(kind, tmp_path, monkeypatch):
    write_bundle(tmp_path, of_few_numbers(*GIANTS[kind]))
    monkeypatch.setattr(zoo, "rebuild", lambda *_, **__: pytest.fail("it is being built"))
    with pytest.raises((BadWeights, NotARun), match=r"it is for another network"):
        read_bundle(tmp_path).classifier()


def test_a_file_of_two_numbers_is_not_built_into_gigabytes_by_the_size_in_its_config(tmp_path, monkeypatch):
    from safetensors.torch import save_file

    from burnish.backbones import files

    save_file({"a.b": torch.zeros(1), "a.c": torch.zeros(1)}, tmp_path / "model.safetensors")
    told = {"architecture": "resmlp_36_224", "pretrained_cfg": {"input_size": [3, 1024, 1024]}}
    (tmp_path / "config.json").write_text(json.dumps(told))
    monkeypatch.setattr(files, "built", lambda *_, **__: pytest.fail("it is being built"))
    with pytest.raises(BadWeights):
        zoo.load_backbone(str(tmp_path / "model.safetensors"))


def held_out_of(number):
    return {"held_out": {"confidence": [number, 0.8], "right": [1, 0], "own": [0.9, 0.1]}}


def preprocess_of(entry, number):
    return {"preprocess": {**Preprocess(size=32).to_json(), entry: [number, 0.5, 0.5]}}


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": HUGE}, held_out_of(HUGE), preprocess_of("mean", HUGE), preprocess_of("std", HUGE),
        {"head": {"kind": "linear", "width": HUGE}}, {"head": {"kind": "linear", "width": 2**62}},
        {"head": {"kind": "linear", "width": -1}},
    ],
    ids=["temperature", "held out", "mean", "std", "width", "width in 64 bits", "width below zero"],
)  # fmt: skip
def test_numbers_that_no_float_holds_are_refused_in_a_sentence(changes, tmp_path):
    a_package(tmp_path / "run", **changes)
    with pytest.raises((NotARun, BadWeights)):
        read_bundle(tmp_path / "run")


def test_of_two_hundred_thousand_classes_the_one_named_twice_is_found_and_told_briefly(tmp_path):
    """Each name compared with all the others would take hours."""
    count, long = 200_000, "z" * 5000
    names = [str(number) for number in range(count - 2)]
    state = {"trunk.a": torch.zeros(1), "head.weight": torch.zeros(count, 1), "head.bias": torch.zeros(count)}
    bundle = of_few_numbers({"library": "timm", "name": "test_resnet", "kwargs": {}}, 1)
    bundle = Bundle(**{**vars(bundle), "classes": (*names, long, "y"), "state": state})
    write_bundle(tmp_path, bundle)
    _rewrite(tmp_path, classes=[*names, long, long])
    with pytest.raises(BadWeights, match=r"'zzz.* is named twice") as problem:
        read_bundle(tmp_path)
    assert len(str(problem.value)) < len(str(tmp_path)) + 300


# ---- what is written down -------------------------------------------------------------------------------------------


def held_with(confidence):
    count = len(confidence)
    return HeldOut(confidence, np.arange(count) % 10 > 0, confidence)


def written(held):
    return HeldOut.from_json(json.loads(json.dumps(held.to_json())))


@pytest.mark.parametrize(
    "confidence",
    [
        np.random.default_rng(0).uniform(0.3, 1.0, 2000),
        1.0 - np.random.default_rng(1).uniform(0.0, 3e-7, 500),
        np.array([1.0, 1.0 - 2.0**-53, 1.0 - 2.0**-24, 0.5, 0.3, 0.0]),
        np.nextafter([0.8506242, 0.9127555, 0.9350724], 0.0),
    ],
    ids=["drawn", "all but sure", "ends", "just below seven digits"],
)
def test_no_image_falls_below_the_threshold_that_its_own_confidence_became(confidence):
    again = written(held_with(confidence))
    assert (again.confidence <= confidence).all() and (confidence - again.confidence < 2e-7).all()


def test_what_was_answered_before_the_package_was_written_is_answered_after():
    rng = np.random.default_rng(3)
    held = HeldOut.of(rng.dirichlet([8.0, 0.5, 0.5], 600), np.zeros(600, np.int64))
    for wanted in (0.8, 0.9, 0.95):
        own, kept = held.threshold(wanted), written(held).threshold(wanted)
        assert own is not None and kept is not None and own - 2e-7 < kept <= own


def test_a_package_that_is_read_and_written_again_keeps_its_confidences():
    once = written(held_with(np.random.default_rng(0).uniform(0.0, 1.0, 500)))
    assert np.array_equal(written(once).confidence, once.confidence)


@pytest.mark.parametrize("char", ["\x9b", "\u202e", "\u2066", "\x7f", "\u200f", "\U000e0001"])
def test_json_for_a_terminal_has_nothing_in_it_that_the_terminal_would_act_on(char, capsys):
    value = {f"Ünï{char}": [f"日本{char}31m", '"\\\n\t'], "n": 1.5}
    print_json(value)
    told = capsys.readouterr().out
    assert char not in told and "Ünï" in told and "日本" in told
    assert json.loads(told) == value


# ---- deep greys of TIFF ---------------------------------------------------------------------------------------------


def deep_tiff(values, *, bits, white_is_zero, orientation):
    """A little-endian TIFF of integers [h w], written by hand: Pillow writes no such."""
    data = values.astype("<u2").tobytes()
    if bits == 12:  # two of them in three bytes, from the highest bit on
        data = b"".join(((a << 12) | b).to_bytes(3, "big") for a, b in values.reshape(-1, 2).tolist())
    height, width = values.shape
    tags = [(256, 3, width), (257, 3, height), (258, 3, bits), (259, 3, 1), (262, 3, 0 if white_is_zero else 1), (273, 4, 8),
            (274, 3, orientation), (277, 3, 1), (278, 3, height), (279, 4, len(data))]  # fmt: skip
    table = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, kind, 1, one) for tag, kind, one in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + table + struct.pack("<I", 0)


@pytest.mark.parametrize("orientation", [1, 2, 3, 6, 8])
@pytest.mark.parametrize(("bits", "white_is_zero"), [(12, False), (16, True), (16, False)])
def test_a_deep_grey_handed_over_by_pillow_is_what_its_file_is(bits, white_is_zero, orientation):
    """Opened from memory: turned ones of 16 bits that Pillow maps from the disk it gives in disorder."""
    values = np.random.default_rng(0).integers(0, 2**bits, (6, 8))
    values[0, :2] = 0, 2**bits - 1
    content = deep_tiff(values, bits=bits, white_is_zero=white_is_zero, orientation=orientation)
    upright = {1: values, 2: values[:, ::-1], 3: values[::-1, ::-1], 6: np.rot90(values, -1), 8: np.rot90(values)}
    expected = np.rint(upright[orientation] * 255 / (2**bits - 1))
    expected = 255 - expected if white_is_zero else expected
    found = np.asarray(decode(content))[:, :, 0].astype(int)
    assert found.shape == expected.shape and np.abs(found - expected).max() <= 1
    with Image.open(io.BytesIO(content)) as opened:
        assert np.array_equal(np.asarray(decode(file_of(opened, "a.tif")))[:, :, 0], found)


def test_an_ordinary_file_handed_over_by_pillow_is_what_it_is_on_disk(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(deep_tiff(np.array([[0, 2048, 4095, 1000]]), bits=12, white_is_zero=False, orientation=1))
    with Image.open(path) as opened:
        assert np.array_equal(np.asarray(decode(file_of(opened, "a.tif"))), np.asarray(decode(path)))


# ---- layers taken out and put in ------------------------------------------------------------------------------------

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


# ---- methods --------------------------------------------------------------------------------------------------------


def test_prompts_are_refused_where_the_last_blocks_give_the_class_token_alone():
    backbone = zoo.load_backbone("random:cait_xxs24_224", image_size=32)
    with pytest.raises(RecipeError, match=r"no blocks that take any number of tokens"):
        METHODS["prompt"].prepare(backbone, a_head(backbone), Recipe())


def test_a_gradual_run_whose_first_stage_would_begin_at_its_end_is_refused():
    backbone = zoo.load_backbone("random:test_resnet", image_size=32)
    with pytest.raises(RecipeError, match=r"over is 1\.0, expected"):
        method_named("gradual:over=1").prepare(backbone, a_head(backbone), Recipe())
    tunable = method_named("gradual:over=0.99").prepare(backbone, a_head(backbone), Recipe())
    assert max(group.starts for group in tunable.groups) == pytest.approx(0.99)


def test_the_record_of_a_run_from_scratch_says_that_it_is_computed_in_float32(tmp_path, monkeypatch):
    """BatchNorm learns its statistics there, and does so in float32, whatever was asked for. The run ends with its plan."""
    recipes = []

    def until_here(*given, **how):
        recipes.append(settled(*given, **how))
        raise RecipeError("enough")

    monkeypatch.setattr(trained_stage, "settled", until_here)
    write_shapes(tmp_path / "shapes", images=8)
    with pytest.raises(RecipeError, match=r"enough"):
        api.fit(
            tmp_path / "shapes", out=tmp_path / "run", model="random:test_resnet", method="scratch", image_size=32, epochs=1,
            budget=None, taps="off", precision="bfloat16",
        )  # fmt: skip
    assert [recipe.precision for recipe in recipes] == ["float32"]


@pytest.mark.parametrize(("asked", "mirrored"), [("auto", False), ("on", True)])
def test_without_augmentation_an_image_is_mirrored_only_where_that_was_asked_for(asked, mirrored):
    how = augmentation_of(Recipe(augment="none", flip=asked), size=32, flip=True)
    assert how.flip == mirrored
    assert augmentation_of(Recipe(flip=asked), size=32, flip=True).flip  # where there is some, as the probe found


# ---- steps ----------------------------------------------------------------------------------------------------------


def with_statistics():
    """(a small network whose BatchNorm learns its statistics, plain gradient descent)."""
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=rng)
    return model.train(), torch.optim.SGD(model.parameters(), lr=0.1)


def rows(count=12):
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(1)), torch.arange(count) % 3


def test_after_a_step_of_sam_statistics_are_those_of_a_plain_step():
    (plain, first), (sharp, second) = with_statistics(), with_statistics()
    step(plain, first, *rows(), Objective(), 0)
    step(sharp, second, *rows(), Objective(sam=0.5), 0)
    assert sharp[1].num_batches_tracked == 1
    for own, other in zip(sharp.buffers(), plain.buffers(), strict=True):
        assert torch.equal(own, other)
    assert not torch.equal(sharp[0].weight, plain[0].weight)  # but the weights are not


@pytest.mark.parametrize("objective", [Objective(), Objective(sam=0.5)], ids=["plain", "sam"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_a_step_that_gives_no_numbers_leaves_all_as_it_was(value, objective):
    model, optimiser = with_statistics()
    step(model, optimiser, *rows(), objective, 0)
    before = {key: one.clone() for key, one in model.state_dict().items()}
    images, labels = rows()
    images[0] = value
    assert not np.isfinite(step(model, optimiser, images, labels, objective, 1))
    for key, one in model.state_dict().items():
        assert torch.equal(one, before[key]), key


def test_kept_tokens_take_as_many_pieces_as_images_of_as_many_numbers():
    module = nn.Linear(2, 2)
    for images in (8, 24, 64):
        views, tokens = torch.empty(images, 3, 224, 224), torch.empty(images, 196, 768)
        assert views.numel() == tokens.numel()
        assert _pieces(module, tokens) == _pieces(module, views) == -(-images * 224**2 // PIXELS_AT_ONCE)


@pytest.mark.parametrize("sam", [0.0, 0.05])
def test_the_loss_that_is_told_of_several_labels_is_the_mean_over_classes_as_that_of_validation_is(sam):
    """And a step is as it was: its gradient is that of the sum over classes."""
    model, _ = with_statistics()
    model.eval()
    images, labels = rows()[0], (torch.arange(36).reshape(12, 3) % 5 == 0)
    expected = F.binary_cross_entropy_with_logits(model(images), labels.float())
    weights = model[3].weight.clone()
    (gradient,) = torch.autograd.grad(3 * expected, [model[3].weight])
    told = step(model, torch.optim.SGD([model[3].weight], lr=1e-3), images, labels, Objective(sam=sam), 0)
    assert told == pytest.approx(expected.item(), rel=1e-6)
    if not sam:
        shortened = gradient / max(1.0, gradient.norm().item())
        torch.testing.assert_close(model[3].weight.detach(), weights - 1e-3 * shortened, rtol=0, atol=1e-6)


# ---- Keras ----------------------------------------------------------------------------------------------------------


def test_a_network_with_the_names_of_the_layers_around_it_and_learnt_scaling_is_written_for_keras(tmp_path):
    keras = pytest.importorskip("keras", reason="keras is not installed: pip install 'burnish[keras]'")
    from burnish.ship.keras import export_keras

    layers = keras.layers
    given = keras.Input((32, 32, 3), name="images")
    x = layers.Normalization(mean=None, name="prepare")(given)
    x = layers.Conv2D(4, 3, strides=4, activation="relu", name="hidden")(x)
    x = layers.Conv2D(6, 3, name="predictions")(x)
    model = keras.Model(given, layers.GlobalAveragePooling2D(name="tap_0")(x))
    model.get_layer("prepare").adapt(np.random.default_rng(0).normal(3.0, 2.0, (8, 32, 32, 3)).astype(np.float32))
    model.save(tmp_path / "own.keras")
    backbone = zoo.load_backbone(str(tmp_path / "own.keras"), preprocess="none")
    classifier = Classifier.over(backbone, 3)
    with torch.no_grad():
        classifier.head.weight.normal_(generator=torch.Generator().manual_seed(0))
    bundle = Bundle.of(backbone, classifier, classes=("a", "b", "c"), method="probe")
    written = keras.models.load_model(export_keras(bundle, tmp_path / "out.keras"))
    images = np.random.default_rng(1).uniform(0, 6, (2, 32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        features = torch.from_numpy(np.array(keras.ops.convert_to_numpy(model(images))))
        expected = classifier.head(features).softmax(1).numpy()
    assert np.allclose(keras.ops.convert_to_numpy(written(images)), expected, atol=1e-4)
