"""Files of weights as training scripts leave them: what they say of the network and its images is obeyed."""

from __future__ import annotations

import json
from argparse import Namespace

import numpy as np
import pytest
import timm
import torch
from hostile.smallest import smallest_network
from loading import features, refused
from safetensors.torch import save_file

from burnish.backbones import file_images, files, zoo
from burnish.backbones.keras import entries
from burnish.backbones.reading import recognise
from burnish.backbones.zoo import load_backbone
from burnish.errors import BadWeights

_IMAGES = {"mean": None, "std": None, "crop_pct": None, "input_size": None, "img_size": None, "interpolation": ""}


def saved(path, name, *, args=None, **options):
    """A checkpoint as timm's train.py writes it, and the network that it is of."""
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=7, **options).eval()
    with torch.no_grad():
        for one in network.buffers():
            one.add_(0.01 * torch.rand_like(one)) if one.is_floating_point() else None
    kept = Namespace(**{**_IMAGES, "model": name, "gp": None, "model_kwargs": {}, "bn_eps": None, **(args or {})})
    torch.save({"arch": name, "state_dict": network.state_dict(), "args": kept}, path)
    return network


def told(network, size=64):
    """Features [2 d] of a network, and the images they are of."""
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return network.forward_head(network.forward_features(images), pre_logits=True), images


def test_the_pooling_that_timms_script_was_given_is_the_networks(tmp_path):
    network = saved(tmp_path / "a.pth.tar", "resnet10t", args={"gp": "max"}, global_pool="max")
    features, images = told(network)
    found = zoo.load_backbone(str(tmp_path / "a.pth.tar"))
    with torch.no_grad():
        torch.testing.assert_close(found.module(images), features)


def test_the_epsilon_that_timms_script_was_given_is_the_networks(tmp_path):
    network = saved(tmp_path / "a.pth", "test_efficientnet", args={"bn_eps": 0.05}, bn_eps=0.05)
    features, images = told(network)
    found = zoo.load_backbone(str(tmp_path / "a.pth"))
    with torch.no_grad():
        torch.testing.assert_close(found.module(images), features)


@pytest.mark.parametrize("args", [{"model_kwargs": {"act_layer": "silu"}}, {"gp": "avgmaxc2"}, {"gp": ["max"]}])
def test_what_cannot_be_built_so_is_refused_by_name(tmp_path, args):
    saved(tmp_path / "a.pth", "resnet10t", args=args)
    name = next(iter(args.get("model_kwargs", {"global_pool": 0})))
    with pytest.raises(BadWeights, match=f"builds the network with {name}="):
        zoo.load_backbone(str(tmp_path / "a.pth"))


def test_images_are_prepared_as_timms_script_was_told(tmp_path):
    args = {
        "mean": (0.5, 0.5, 0.5),
        "std": [0.5, 0.5, 0.5],
        "img_size": 160,
        "crop_pct": 1.0,
        "interpolation": "bicubic",
    }
    saved(tmp_path / "a.pth", "resnet18", args=args)
    found = zoo.load_backbone(str(tmp_path / "a.pth")).preprocess
    assert (found.size, found.crop, found.interpolation, found.mean) == (160, 1.0, "bicubic", (0.5,) * 3)


def test_a_file_that_says_it_is_timms_has_timms_images_and_another_torchvisions(tmp_path):
    network = saved(tmp_path / "timm.pth", "resnet18")
    torch.save(network.state_dict(), tmp_path / "resnet18.pth")
    usual = timm.data.resolve_data_config({}, model=network)
    timms, bare = (zoo.load_backbone(str(tmp_path / name)).preprocess for name in ("timm.pth", "resnet18.pth"))
    assert (timms.interpolation, timms.crop) == (usual["interpolation"], usual["crop_pct"])
    assert (bare.interpolation, bare.crop) == ("bilinear", 0.875)


@pytest.mark.parametrize(
    "args",
    [
        {"mean": torch.zeros(3)},
        {"std": {}, "mean": [[0.5]] * 3},
        {"crop_pct": torch.ones(2)},
        {"crop_mode": "border"},
        {"mean": "0.5"},
        {"mean": (1e30,) * 3},
        {"crop_pct": "all"},
        {"input_size": (3, 64, 32)},
        {"interpolation": 7},
    ],
)
def test_settings_of_images_that_cannot_be_are_refused_in_a_sentence(tmp_path, args):
    saved(tmp_path / "a.pth", "resnet10t", args=args)
    with pytest.raises((BadWeights, files.UnknownModel), match=r"image settings cannot be used|another shape"):
        zoo.load_backbone(str(tmp_path / "a.pth"))


def test_one_mean_for_all_colours_is_read_as_timm_reads_it(tmp_path):
    saved(tmp_path / "a.pth", "resnet10t", args={"mean": [0.5], "std": (0.25,), "crop_mode": "squash"})
    found = zoo.load_backbone(str(tmp_path / "a.pth")).preprocess
    assert (found.mean, found.std, found.fit) == ((0.5,) * 3, (0.25,) * 3, "squash")


def test_the_arguments_of_an_older_timm_are_obeyed_too(tmp_path):
    network = timm.create_model("resnet10t", num_classes=7, global_pool="max")
    args = Namespace(model="resnet10t", gp="max")
    torch.save({"arch": "resnet10t", "state_dict": network.state_dict(), "args": args}, tmp_path / "a.pth")
    assert zoo.load_backbone(str(tmp_path / "a.pth")).architecture["kwargs"] == {"global_pool": "max"}


@pytest.mark.parametrize("value", [torch.zeros(3), [[[1]]], {"a": 1}, "x" * 10_000])
def test_options_that_are_no_plain_values_are_refused_by_name_whatever_they_are(tmp_path, value):
    saved(tmp_path / "a.pth", "resnet10t", args={"model_kwargs": {"act_layer": value}})
    with pytest.raises(BadWeights, match=r"builds the network with act_layer=.{0,2}<"):
        zoo.load_backbone(str(tmp_path / "a.pth"))


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("vit_tiny_r_s16_p8_224", 224),
        ("vit_tiny_r_s16_p8_384", 384),
        *((f"hiera_{size}_224", 224) for size in ("tiny", "small", "base", "base_plus")),
    ],
)
def test_places_do_not_tell_the_size_where_patches_overlap_or_are_cut_from_maps(name, size):
    with torch.device("meta"):
        state = timm.create_model(name, num_classes=0).state_dict()
    assert file_images.size_of(state) is None
    with torch.device("meta"):
        plain = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=size).state_dict()
    assert file_images.size_of(plain) == size


def test_a_vit_of_timms_script_is_of_the_size_that_its_places_tell(tmp_path):
    saved(tmp_path / "a.pth", "vit_tiny_patch16_224", img_size=96)
    assert zoo.load_backbone(str(tmp_path / "a.pth")).preprocess.size == 96


@pytest.mark.parametrize("value", [1.0, 1, 0, -2])
@pytest.mark.parametrize("nested", [False, True])
def test_a_number_on_the_left_of_an_operator_is_read_as_keras_2_writes_it(value, nested):
    call = ["_CONSTANT_VALUE", -1, value, {"y": ["before", 0, 0], "name": None}]
    order, words = entries.arguments([call] if nested else call, "Subtract")
    assert order == [value, entries.Reference("before")] and not words
    assert list(entries._walk([call])) == [value, entries.Reference("before")]


def old(kind, name, *calls, **config):
    """A layer as Keras 2 writes it."""
    return {"class_name": kind, "config": {"name": name, **config}, "name": name, "inbound_nodes": list(calls)}


def old_model(path, *layers, weights=()):
    """A file of Keras 2 for images of 8 pixels; weights: of the last of these layers that has some, by their names."""
    h5py = pytest.importorskip("h5py")
    images = old("InputLayer", "images", batch_input_shape=[None, 8, 8, 3])
    ends = {"input_layers": [["images", 0, 0]], "output_layers": [[layers[-1]["name"], 0, 0]]}
    config = {"class_name": "Functional", "config": {"name": "model", "layers": [images, *layers], **ends}}
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"], file.attrs["backend"] = "2.15.0", "tensorflow"
        file.attrs["model_config"] = json.dumps(config)
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = [one["name"].encode() for one in [images, *layers]]
        for layer in layers:
            own = group.create_group(layer["name"])
            names = (
                [f"{layer['name']}/{name}" for name in weights] if layer["class_name"] == "BatchNormalization" else []
            )
            own.attrs["weight_names"] = [name.encode() for name in names]
            for name in names:
                own[name] = np.full(3, weights[name.partition("/")[2]], np.float32)
    return str(path)


@pytest.mark.parametrize("value", [1.0, 3, 0, -2.5])
def test_a_number_less_a_tensor_of_keras_2_has_the_right_values(tmp_path, value):
    call = ["_CONSTANT_VALUE", -1, value, {"y": ["images", 0, 0], "name": None}]
    path = old_model(
        tmp_path / "m.h5",
        old("TFOpLambda", "less", call, function="math.subtract"),
        old("BatchNormalization", "bn", [["less", 0, 0, {}]], epsilon=0.0),
        old("GlobalAveragePooling2D", "pool", [["bn", 0, 0, {}]]),
        weights={"gamma:0": 2.0, "beta:0": 1.0, "moving_mean:0": 0.0, "moving_variance:0": 1.0},
    )
    found = zoo.load_backbone(path, preprocess="none")
    pixels = np.random.default_rng(0).uniform(0, 255, (2, 8, 8, 3)).astype(np.float32)
    mean, std = np.float32(found.preprocess.mean), np.float32(found.preprocess.std)
    with torch.no_grad():
        features = found.module(torch.from_numpy((pixels / 255 - mean) / std).permute(0, 3, 1, 2))
    np.testing.assert_allclose(features.numpy(), (2 * (value - pixels) + 1).mean((1, 2)), rtol=1e-4)


def test_the_size_of_a_vit_is_told_behind_a_prefix_too(tmp_path):
    state = timm.create_model("vit_tiny_patch16_224", num_classes=7, img_size=64).state_dict()
    torch.save({f"module.{name}": one for name, one in state.items()}, tmp_path / "a.pth")
    assert zoo.load_backbone(str(tmp_path / "a.pth")).preprocess.size == 64


def test_averaged_patches_without_a_norm_after_that_do_not_pass_for_those_with_one(tmp_path):
    args = {"gp": "avg", "model_kwargs": {"fc_norm": False}}
    saved(tmp_path / "a.pth", "vit_tiny_patch16_224", args=args, img_size=64, global_pool="avg", fc_norm=False)
    with pytest.raises(BadWeights, match=r"missing \(fc_norm.weight"):
        zoo.load_backbone(str(tmp_path / "a.pth"))


def test_a_volo_with_its_two_heads_is_recognised():
    with torch.device("meta"):
        state = timm.create_model("volo_d1_224", num_classes=7).state_dict()
    shapes = {name: tuple(one.shape) for name, one in state.items()}
    assert recognise.recognised_without_head(shapes, file_images.HEADS) == ["volo_d1_224"]


# ---- the size of the images, by places and patches -------------------------------------------------------------------


def test_the_size_that_a_transformers_places_are_for_is_its_own(tmp_path):
    import timm

    torch.manual_seed(0)
    made = timm.create_model("test_vit", num_classes=5, img_size=192).eval()
    torch.save(made.state_dict(), tmp_path / "vit192.pth")
    backbone = load_backbone(str(tmp_path / "vit192.pth"))
    assert backbone.preprocess.size == 192
    views = torch.randn(1, 3, 192, 192)
    with torch.no_grad():
        own = made.forward_head(made.forward_features(views), pre_logits=True)
        assert torch.equal(backbone.module.eval()(views), own)
    assert load_backbone(str(tmp_path / "vit192.pth"), image_size=160).preprocess.size == 160


def test_patches_of_another_size_are_another_network(tmp_path):
    """timm would resample the kernel, and every tensor would match."""
    own = zoo.load_backbone("random:vit_tiny_patch16_224").module.state_dict()
    own["patch_embed.proj.weight"] = torch.nn.functional.interpolate(own["patch_embed.proj.weight"], (32, 32))
    own["pos_embed"] = torch.zeros(1, 50, own["pos_embed"].shape[2])
    torch.save(own, tmp_path / "a.pth")
    with pytest.raises(BadWeights, match=r"patch_embed\.proj\.weight has"):
        zoo.load_backbone(f"vit_tiny_patch16_224={tmp_path / 'a.pth'}")


def test_another_image_size_is_still_the_same_network(tmp_path):
    own = zoo.load_backbone("random:vit_tiny_patch16_224").module.state_dict()
    own["pos_embed"] = torch.zeros(1, 50, own["pos_embed"].shape[2])  # of 7 × 7 patches
    torch.save(own, tmp_path / "a.pth")
    assert zoo.load_backbone(f"vit_tiny_patch16_224={tmp_path / 'a.pth'}").width == 192


# ---- what scripts do to weights, and write beside them ---------------------------------------------------------------


ALTERED = {
    "halved": lambda tensor: tensor.half(),
    "averaged": lambda tensor: 0.5 * tensor + 0.5 * tensor,
    "with counters of one number": lambda tensor: tensor.reshape(1) if tensor.ndim == 0 else tensor,
}


@pytest.mark.parametrize("how", ALTERED)
@pytest.mark.parametrize("arch", [None, "test_resnet"], ids=["told by its tensors", "named"])
def test_weights_altered_entry_by_entry_load_with_the_counters_of_batches_left_out(how, arch, tmp_path):
    state = zoo.load_backbone(f"random:{arch}").module.state_dict() if arch else smallest_network(tmp_path)
    altered = {name: ALTERED[how](tensor) for name, tensor in state.items()}
    counters = [name for name in state if name.endswith("num_batches_tracked")]
    assert counters and all(altered[name].is_floating_point() or altered[name].shape == (1,) for name in counters)
    torch.save(altered, tmp_path / "altered.pth")
    expected = {name: altered[name].float() if state[name].is_floating_point() else state[name] for name in state}
    torch.save(expected, tmp_path / "plain.pth")
    options = {} if arch is None else {"arch": arch}
    assert torch.equal(features(tmp_path / "altered.pth", **options), features(tmp_path / "plain.pth", **options))


def test_weights_of_another_kind_or_shape_are_refused_all_the_same(tmp_path):
    state = smallest_network(tmp_path)
    torch.save({**state, "conv1.weight": state["conv1.weight"].to(torch.int8)}, tmp_path / "a.pth")
    assert "conv1.weight" in refused(tmp_path / "a.pth")
    torch.save({**state, "bn1.weight": state["bn1.weight"][None]}, tmp_path / "b.pth")
    refused(tmp_path / "b.pth")


@pytest.mark.parametrize(
    "beside", ["training_args.bin", "optimizer.bin", "scheduler.bin", "optimizer.pt", "scheduler.pt", "scaler.pt"]
)
def test_what_a_trainer_writes_beside_the_weights_is_not_taken_for_them(beside, tmp_path):
    torch.save(smallest_network(tmp_path), tmp_path / "pytorch_model.bin")
    expected = features(tmp_path / "pytorch_model.bin")
    torch.save({"lr": 0.1}, tmp_path / beside)
    assert torch.equal(features(tmp_path), expected)


@pytest.mark.parametrize("name", ["MODEL.SAFETENSORS", "Model.Safetensors", "MODEL.PTH"])
def test_weights_are_found_in_a_folder_whatever_the_case_of_their_name(name, tmp_path):
    state = smallest_network(tmp_path)
    torch.save(state, tmp_path / "plain.pth")
    expected = features(tmp_path / "plain.pth")
    (tmp_path / "folder").mkdir()
    if name.endswith("PTH"):
        torch.save(state, tmp_path / "folder" / name)
    else:
        save_file(state, tmp_path / "folder" / name)
        torch.save(dict(list(state.items())[:3]), tmp_path / "folder" / "model.pth")  # the twin that comes second
    assert torch.equal(features(tmp_path / "folder"), expected)


@pytest.mark.parametrize(
    "told",
    [{"crop_pct": 0.004}, {"mean": [1e7, 0, 0]}, {"mean": [123.675, 116.28, 103.53], "std": [58.4, 57.1, 57.4]},
     {"input_size": [3, True, True]}],
)  # fmt: skip
def test_a_config_beside_the_weights_cannot_ask_for_it_either(tmp_path, told):
    from burnish.backbones.architectures import built
    from burnish.backbones.timmed import architecture

    torch.save(built(architecture("test_resnet", None)).state_dict(), tmp_path / "m.pth")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_resnet", "pretrained_cfg": told}))
    with pytest.raises(BadWeights, match="image settings cannot be used"):
        load_backbone(str(tmp_path / "m.pth"))


def small(**options):
    """A ResNet whose statistics are as after training, and its features of two images."""
    torch.manual_seed(1)
    network = timm.create_model("resnet10t", **options).eval()
    with torch.no_grad():
        for name, one in network.named_buffers():
            one.uniform_(0.5, 2.0) if name.endswith("running_var") else None
    return network, *told(network)


def seen(backbone, images):
    with torch.no_grad():
        return backbone.module(images)


def under(prefix, state):
    return {f"{prefix}{name}": one for name, one in state.items()}


@pytest.mark.parametrize("prefix", ["cnn.", "model.my_net.", "net._feature_blocks."])
def test_a_backbone_under_any_name_among_other_layers_is_recognised(prefix, tmp_path):
    network, expected, images = small()
    beside = {f"head.{number}.weight": torch.rand(3, 3) for number in range(12)}
    torch.save({"state_dict": {**beside, **under(prefix, network.state_dict())}}, tmp_path / "a.pth")
    backbone = load_backbone(str(tmp_path / "a.pth"))
    torch.testing.assert_close(seen(backbone, images), expected)


def test_the_encoder_of_a_network_that_segments_is_recognised(tmp_path):
    network, expected, images = small(num_classes=0)
    decoder = {f"decoder.blocks.{number}.conv.weight": torch.rand(3, 3, 3, 3) for number in range(60)}
    torch.save({**under("encoder.", network.state_dict()), **decoder}, tmp_path / "a.pth")
    backbone = load_backbone(str(tmp_path / "a.pth"))
    torch.testing.assert_close(seen(backbone, images), expected)
    assert any("what lies under encoder.; 60 tensors beside that are left unused" in note for note in backbone.notes)


@pytest.mark.parametrize(
    ("taken", "left"),
    [
        ("ema_model.", "online_model."),
        ("teacher_backbone.", "student_backbone."),
        ("online_encoder.net.", "target.net."),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_of_a_network_and_its_average_the_average_is_taken_else_the_first(taken, left, first, tmp_path):
    network, expected, images = small()
    mine = under(taken, network.state_dict())
    other = under(left, {name: 2 * one for name, one in network.state_dict().items()})
    if taken.startswith("online") and not first:
        pytest.skip("neither is called an average: the first is taken")
    torch.save({**mine, **other} if first else {**other, **mine}, tmp_path / "a.pth")
    torch.testing.assert_close(seen(load_backbone(str(tmp_path / "a.pth")), images), expected)


@pytest.mark.parametrize("prefix", ["student_backbone.", "teacher.vit."])
def test_a_transformer_of_a_teacher_or_student_saw_imagenets_colours(prefix, tmp_path):
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    state = {**under(prefix, network.state_dict()), "head.weight": torch.rand(3, 3), "head.bias": torch.rand(3)}
    torch.save({"state_dict": state}, tmp_path / "a.ckpt")
    assert load_backbone(str(tmp_path / "a.ckpt")).preprocess.mean == pytest.approx((0.485, 0.456, 0.406))


@pytest.mark.parametrize("word", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
def test_what_wraps_single_layers_is_taken_out_of_their_names(word, tmp_path):
    network, expected, images = small()
    state = {name.replace("layer2.0.", f"layer2.0.{word}."): one for name, one in network.state_dict().items()}
    assert set(state) != set(network.state_dict())
    torch.save(state, tmp_path / "a.pth")
    torch.testing.assert_close(seen(load_backbone(str(tmp_path / "a.pth")), images), expected)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "convnext_atto"])
@pytest.mark.parametrize("turned", [False, True])
def test_a_network_for_grey_images_is_recognised_whatever_the_order_of_its_tensors(name, turned, tmp_path):
    torch.manual_seed(1)
    network = timm.create_model(name, in_chans=1).eval()
    grey, state = torch.rand(2, 1, 64, 64), list(network.state_dict().items())
    torch.save(dict(reversed(state) if turned else state), tmp_path / "a.pth")
    with torch.no_grad():
        expected = network.forward_head(network.forward_features(grey), pre_logits=True)
    backbone = load_backbone(str(tmp_path / "a.pth"))
    torch.testing.assert_close(seen(backbone, grey.expand(-1, 3, -1, -1)), expected, rtol=1e-4, atol=1e-5)


def test_a_file_of_mae_with_its_decoder_is_recognised(tmp_path):
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    decoder = {f"decoder_blocks.{number}.norm1.weight": torch.rand(8) for number in range(8)}
    extra = {"mask_token": torch.rand(1, 1, 8), "decoder_pos_embed": torch.rand(1, 197, 8), **decoder}
    torch.save({"model": {**network.state_dict(), **extra}}, tmp_path / "mae.pth")
    backbone = load_backbone(str(tmp_path / "mae.pth"))
    assert backbone.name == "vit_tiny_patch16_224" and backbone.preprocess.mean[0] == pytest.approx(0.485)


def test_one_half_of_a_model_for_images_and_texts_is_not_taken_for_a_plain_network(tmp_path):
    """It learnt on images less CLIP's mean, which its architecture alone does not tell."""
    network, _, _ = small(num_classes=0)
    words = {f"transformer.{number}.weight": torch.rand(2, 2) for number in range(40)}
    image = under("visual.trunk.", network.state_dict())
    torch.save({**image, **words, "logit_scale": torch.tensor(4.6)}, tmp_path / "a.pth")
    backbone = load_backbone(str(tmp_path / "a.pth"))
    assert backbone.preprocess.mean[0] == pytest.approx(0.48145466) and "OpenCLIP" in " ".join(backbone.notes)
