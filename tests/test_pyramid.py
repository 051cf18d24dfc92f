"""Heads that see where in an image something is: what the pyramid gives, when it is taken, and that it travels with the model."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from burnish import api
from burnish.backbones import zoo
from burnish.backbones.changing.changes import changed, check_changes
from burnish.backbones.changing.taps import PYRAMID_AT_MOST, differences, flat, flat_width, tapped, tapped_as
from burnish.backbones.fast.fold import TOLERANCE, agree
from burnish.backbones.fast.frozen import fold_for_inference
from burnish.choose.decide import probe_decisions
from burnish.choose.probing import settle_where
from burnish.choose.where import worse_by
from burnish.errors import ModelError, UnknownModel
from burnish.measure.ood import Familiarity
from burnish.methods.heads import HeadKind
from burnish.recipe import Recipe
from burnish.runtime import Clock
from burnish.ship.bundle import read_bundle

NETWORKS = {
    "test_resnet": 64,
    "densenet121": 64,
    "test_efficientnet": 64,
    "test_convnext": 64,
    "swin_tiny_patch4_window7_224": 112,
}


def network_named(name):
    return zoo.load_backbone(f"random:{name}", image_size=NETWORKS[name])


def images(size, *, n=6, seed=0):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=NETWORKS)
def deep(request):
    """A backbone whose taps have a pyramid."""
    found = tapped(network_named(request.param), images(NETWORKS[request.param]), pyramid_at_most=PYRAMID_AT_MOST)
    assert found is not None and any(found.changes[0]["pyramid"])
    return found


# ---- what it gives ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (7, 7), (2, 3), (5, 2), (1, 1)])
def test_differences_are_those_of_the_means_of_halves_and_quarters(rows, columns):
    maps = torch.randn(3, rows, columns, 5, generator=torch.Generator().manual_seed(rows))
    half, part = (rows + 1) // 2, (columns + 1) // 2

    def mean(piece):
        return piece.flatten(1, 2).mean(1)

    top, bottom, left, right = maps[:, :half], maps[:, rows - half :], maps[:, :, :part], maps[:, :, columns - part :]
    diagonal = mean(top[:, :, :part]) + mean(bottom[:, :, columns - part :])
    other = mean(top[:, :, columns - part :]) + mean(bottom[:, :, :part])
    expected = [mean(left) - mean(right), mean(top) - mean(bottom), 0.5 * (diagonal - other)]
    for found, wanted in zip(differences(maps), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_mirrored_map_turns_the_sign_of_what_is_beside_and_a_turned_one_swaps():
    maps = torch.randn(2, 6, 6, 4, generator=torch.Generator().manual_seed(0))
    across, down, diagonal = differences(maps)
    mirrored = differences(maps.flip(2))
    torch.testing.assert_close(mirrored[0], -across)
    torch.testing.assert_close(mirrored[1], down)
    torch.testing.assert_close(mirrored[2], -diagonal)
    swapped = differences(maps.transpose(1, 2))
    torch.testing.assert_close(swapped[0], down)
    torch.testing.assert_close(swapped[2], diagonal)


def test_bfloat16_maps_are_averaged_in_float32():
    """In bfloat16 means of about 100 differ by steps of a half, and 0.1 would be lost."""
    maps = torch.full((1, 8, 8, 1), 100.0)
    maps[:, :, :4] += torch.tensor([0.0, 0.5]).repeat(16).view(1, 8, 4, 1)  # a mean of 100.25
    across, _, _ = differences(maps.bfloat16())
    assert across.dtype == torch.bfloat16
    assert across.item() == pytest.approx(0.25, rel=0.01)


def test_the_other_features_come_first_and_are_those_without_it(deep):
    given = images(deep.preprocess.size, n=3, seed=1)
    plainer = flat(deep)
    assert "pyramid" not in plainer.changes[0] and plainer.plain is deep.plain
    assert flat(plainer) is plainer
    with torch.no_grad():
        found, without = deep.module(given), plainer.module(given)
    assert found.shape == (3, deep.width) and without.shape == (3, plainer.width)
    assert torch.equal(found[:, : plainer.width], without)
    layers, channels, pyramid = (deep.changes[0][key] for key in ("layers", "channels", "pyramid"))
    seen = {}
    handles = [
        deep.plain.module.get_submodule(name).register_forward_hook(
            lambda _l, _i, out, name=name: seen.update({name: out})
        )
        for name in layers
    ]
    with torch.no_grad():
        deep.plain.module(given)
    for handle in handles:
        handle.remove()
    scale = deep.module.get_submodule("taps").scale
    expected = [
        scale[2 * place] * part
        for place, (name, channel, there) in enumerate(zip(layers, channels, pyramid, strict=True))
        if there
        for part in differences(seen[name].movedim(channel, -1))
    ]
    torch.testing.assert_close(found[:, plainer.width :], torch.cat(expected, 1), rtol=1e-4, atol=1e-5)


def test_it_is_of_the_last_blocks_and_no_wider_than_half_of_the_rest(deep):
    pyramid = deep.changes[0]["pyramid"]
    there = [channels > 0 for channels in pyramid]
    assert there == sorted(there) and there[-1], "the last blocks, one after the other"
    added, rest = deep.width - flat(deep).width, flat(deep).width
    assert deep.width <= PYRAMID_AT_MOST
    assert added == 3 * sum(pyramid) and (added <= rest / 2 or sum(there) == 1)


@pytest.mark.parametrize("less", [0, 1])
def test_the_width_that_is_allowed_is_kept(less):
    backbone = network_named("test_resnet")
    plainer = tapped(backbone, images(64))
    one = (
        plainer.width + 3 * 96
    )  # its last block gives 96 channels; with the one before it the share would be too large
    found = tapped(backbone, images(64), pyramid_at_most=one - less)
    assert found.changes[0].get("pyramid") == (None if less else [0, 0, 0, 96])
    assert found.width == (plainer.width if less else one)


def test_tokens_have_none():
    backbone = zoo.load_backbone("random:vit_tiny_patch16_224", image_size=64)
    found = tapped(backbone, images(64), pyramid_at_most=PYRAMID_AT_MOST)
    assert found is not None and "pyramid" not in found.changes[0]
    assert flat(found) is found


def test_nobody_has_one_who_does_not_ask_for_it():
    assert "pyramid" not in tapped(network_named("test_resnet"), images(64)).changes[0]


# ---- again -----------------------------------------------------------------------------------------------------------


def test_it_is_built_again_to_the_same_bits(deep):
    given = images(deep.preprocess.size, n=2, seed=2)
    again = tapped_as(deep.plain, deep.changes[0], deep.module.get_submodule("taps").scale.clone())
    rebuilt = zoo.rebuild(zoo.architecture_for_bundle(deep))
    rebuilt.load_state_dict(deep.module.state_dict(), strict=True)
    assert again.width == deep.width
    with torch.no_grad():
        assert torch.equal(again.module(given), deep.module(given))
        assert torch.equal(rebuilt(given), deep.module(given))


def test_the_fast_form_agrees_and_so_does_another_size(deep):
    size = deep.preprocess.size
    fast = fold_for_inference(deep.module, images(size, n=2))
    with torch.inference_mode():
        assert agree(fast(images(size, n=3, seed=3)), deep.module(images(size, n=3, seed=3)), tolerance=2 * TOLERANCE)
        if not deep.plain.one_size:
            assert deep.module(images(size + 32, n=1)).shape == (1, deep.width)


@pytest.mark.parametrize(
    "pyramid", [[96], [0, 0, 0, 70_000], [0, 0, 0, True], [0, 0, 0, "96"], "0001", [0, 0, 0, -1], None]
)
def test_a_description_that_is_wrong_is_refused(pyramid):
    layers = ["layer1.0", "layer2.0", "layer3.0", "layer4.0"]
    change = {"kind": "taps", "layers": layers, "channels": [1, 1, 1, 1]}
    check_changes([change])  # as earlier versions wrote it
    check_changes([{**change, "pyramid": [0, 0, 0, 96]}])
    with pytest.raises(UnknownModel):
        check_changes([{**change, "pyramid": pyramid}])


@pytest.mark.parametrize(("name", "channels"), [("vit_tiny_patch16_224", 192), ("test_resnet", 95)])
def test_one_of_tokens_or_of_other_channels_is_refused(name, channels):
    backbone = zoo.load_backbone(f"random:{name}", image_size=64)
    change = tapped(backbone, images(64)).changes[0]
    change = {**change, "pyramid": [0] * (len(change["layers"]) - 1) + [channels]}
    check_changes([change])
    with torch.no_grad(), pytest.raises((ModelError, ValueError), match=f"{channels} channels"):
        changed(backbone.module, [change])(images(64))


# ---- whether heads see it --------------------------------------------------------------------------------------------


def asked(deep, *, tells, budget=None, elapsed=None, classes=4, n=160, several=False, seed=0):
    """What comes of features of which those of the pyramid tell the class, or are noise as the others are not."""
    draws, rest = np.random.default_rng(seed), flat(deep).width
    labels = draws.integers(0, classes, n)
    features = draws.normal(size=(n, deep.width)).astype(np.float32)
    centres = 2 * draws.normal(size=(classes, deep.width)).astype(np.float32)
    if tells:
        features[:, rest:] += centres[labels, rest:]
    else:
        features[:, :rest] += 0.1 * centres[labels, :rest]
        features[:, rest:] *= 3.0
    if several:
        labels = labels[:, None] == np.arange(classes)
    catalog = SimpleNamespace(
        classes=tuple(map(str, range(classes))), labels=labels, paths=tuple(f"{i}.png" for i in range(n))
    )
    fitting = SimpleNamespace(ids=np.arange(n))
    material = SimpleNamespace(catalog=catalog, fitting=fitting, labels=labels, tied=lambda rows: None)
    clock = Clock.start(budget, from_process_start=False)
    if elapsed is not None:
        clock = replace(clock, started=clock.started - elapsed)
    return settle_where(deep, features, material, SimpleNamespace(recipe=Recipe(), clock=clock))


@pytest.fixture(scope="module")
def little():
    found = tapped(network_named("test_resnet"), images(64), pyramid_at_most=PYRAMID_AT_MOST)
    assert found is not None
    return found


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("tells", [True, False])
def test_cross_validation_says_whether_it_is_seen(little, tells, several):
    chosen, told = asked(little, tells=tells, several=several)
    assert (chosen is little) == tells
    assert chosen.width == (little if tells else flat(little)).width
    assert (told["with"] < told["without"]) == tells
    assert told["n"] == 160


def test_few_images_of_many_are_asked(little):
    assert asked(little, tells=True, n=700)[1]["n"] == 512


def test_without_time_for_a_second_answer_it_stays(little):
    chosen, told = asked(little, tells=False, budget=30.0, elapsed=29.999)
    assert chosen is little
    assert told["without"] is None


def test_one_image_a_class_tells_nothing_and_it_stays(little):
    draws = np.random.default_rng(0)
    catalog = SimpleNamespace(classes=("a", "b"), labels=np.arange(2), paths=("a.png", "b.png"))
    material = SimpleNamespace(
        catalog=catalog, fitting=SimpleNamespace(ids=np.arange(2)), labels=np.arange(2), tied=lambda rows: None
    )
    bench = SimpleNamespace(recipe=Recipe(), clock=Clock.start(None, from_process_start=False))
    chosen, told = settle_where(little, draws.normal(size=(2, little.width)).astype(np.float32), material, bench)
    assert told["with"] == told["without"] and chosen is little


def test_a_difference_within_its_standard_error_does_not_take_it_away():
    draws = np.random.default_rng(0)
    told = draws.uniform(0.2, 0.9, 200)

    def choice(told):
        return SimpleNamespace(told=told, asked=len(told), judged=np.ones(len(told), bool))

    noise = np.exp(draws.normal(0.0, 0.3, 200))
    worse, error = worse_by(choice(told), choice(told * noise), None)
    assert worse == pytest.approx(np.log(noise).mean())
    assert error == pytest.approx(np.log(noise).std() / np.sqrt(200), rel=0.01)
    pairs = np.repeat(np.arange(100), 2)
    assert worse_by(choice(told), choice(told * np.repeat(noise[::2], 2)), pairs)[1] > 1.2 * error
    assert worse_by(choice(told), choice(np.zeros(200)), None)[0] < -100.0, (
        "a probability of zero is a large loss, no error"
    )


@pytest.mark.parametrize(("where", "words"), [
    ({"with": 0.2, "without": 0.3, "error": 0.01, "n": 512}, "no worse: with"),
    ({"with": 0.3, "without": 0.29, "error": 0.02, "n": 512}, "not clearly worse: with"),
    ({"with": 0.4, "without": 0.3, "error": 0.02, "n": 512}, "clearly worse: with"),
])  # fmt: skip
def test_the_decision_says_how_clear_it_is(little, where, words):
    backbone = flat(little) if words.startswith("clearly") else little
    assert decided(backbone, where).why.startswith(words)


def write_spots(root, *, where, images=24):
    """A bright spot on noise, left or right; where: whether that is the class, or the colour is and the spot lies anywhere."""
    draws = np.random.default_rng(0)
    for place, name in enumerate(("one", "other")):
        (root / name).mkdir(parents=True)
        for number in range(images):
            pixels = draws.integers(0, 60, (64, 64, 3), np.uint8)
            left = 8 + 32 * (place if where else int(draws.integers(2))) + int(draws.integers(0, 8))
            top = int(draws.integers(0, 48))
            pixels[top : top + 14, left : left + 14, : 3 if where else 2 * place + 1] = 230
            Image.fromarray(pixels).save(root / name / f"{number:03d}.png")
    return root


def test_a_run_whose_classes_are_places_sees_them_says_so_and_its_package_does(tmp_path):
    data = write_spots(tmp_path / "data", where=True, images=48)
    settings = {"model": "random:test_resnet", "method": "multiprobe", "budget": None}
    run = api.fit(data, out=tmp_path / "run", **settings)
    (told,) = (one for one in run.facts["decisions"] if "where something is" in one["what"])
    assert told["what"].startswith("heads see where") and "cross-validated on" in told["why"]
    assert told["numbers"]["with"] < told["numbers"]["without"]
    rest = flat_width(tapped(network_named("test_resnet"), images(64), pyramid_at_most=PYRAMID_AT_MOST))
    bundle = read_bundle(tmp_path / "run")
    assert bundle.familiarity is not None and len(bundle.familiarity.mean) == rest < bundle.width
    assert bundle.familiarity.axes.any(axis=1).mean() > 0.6, "some channels give nothing"
    again = api.open_run(tmp_path / "run")
    paths = [data / "one" / "000.png", data / "other" / "000.png"]
    assert again.predict_proba(paths).argmax(1).tolist() == [0, 1]


def test_what_is_familiar_does_not_look_at_it(little):
    draws = np.random.default_rng(0)
    features = draws.normal(size=(90, little.width)).astype(np.float32)
    labels, rest = np.arange(90) % 3, flat_width(little)
    found = Familiarity.of(features[:60, :rest], labels[:60]).limited_by(features[60:])
    moved = features.copy()
    moved[:, rest:] = 100.0
    sure = np.ones((90, 1))
    np.testing.assert_allclose(found.strangeness(moved, sure), found.strangeness(features[:, :rest], sure))
    again = Familiarity.from_arrays(found.arrays(), little.width)
    np.testing.assert_allclose(again.strangeness(moved, sure), found.strangeness(features, sure), rtol=1e-5)


def decided(backbone, where):
    """The decision about the pyramid."""
    choice = SimpleNamespace(
        how=HeadKind("lda", 0.5, 1.0), words="", accuracy=0.5,
        standard_error=0.1, loss=0.4, asked=8, right=np.ones(8, bool), alone=0, instead=0,
    )  # fmt: skip
    probed = SimpleNamespace(choice=choice, on_all_depths=True, backbone=backbone, preprocess=backbone.preprocess)
    probes = SimpleNamespace(last=probed, size_reason="", rounded=None, where=where)
    (told,) = (one for one in probe_decisions(probes, probed) if "where" in one.what)
    return told


def test_the_decision_says_what_was_not_asked(little):
    told = decided(little, {"with": 0.3, "without": None, "error": None, "n": 512})
    assert told.why == "there was no time to ask whether it helps"
