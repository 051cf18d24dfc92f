"""Files of weights as training scripts leave them: what they say of the network and its images is obeyed."""

from __future__ import annotations

from argparse import Namespace

import pytest
import timm
import torch

from burnish.backbones import files, zoo
from burnish.backbones.keras import configs
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
    [{"mean": "0.5"}, {"mean": (1e30,) * 3}, {"crop_pct": "all"}, {"input_size": (3, 64, 32)}, {"interpolation": 7}],
)
def test_settings_of_images_that_cannot_be_are_refused_in_a_sentence(tmp_path, args):
    saved(tmp_path / "a.pth", "resnet10t", args=args)
    with pytest.raises((BadWeights, files.UnknownModel), match=r"image settings cannot be used|another shape"):
        zoo.load_backbone(str(tmp_path / "a.pth"))


@pytest.mark.parametrize(("name", "size"), [("vit_tiny_r_s16_p8_384", 384), ("hiera_tiny_224", 224)])
def test_places_do_not_tell_the_size_where_patches_overlap_or_are_cut_from_maps(name, size):
    with torch.device("meta"):
        state = timm.create_model(name, num_classes=0).state_dict()
    assert files._size_of(state) is None
    with torch.device("meta"):
        plain = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=size).state_dict()
    assert files._size_of(plain) == size


def test_a_vit_of_timms_script_is_of_the_size_that_its_places_tell(tmp_path):
    saved(tmp_path / "a.pth", "vit_tiny_patch16_224", img_size=96)
    assert zoo.load_backbone(str(tmp_path / "a.pth")).preprocess.size == 96


@pytest.mark.parametrize("value", [1.0, 1, 0, -2])
@pytest.mark.parametrize("nested", [False, True])
def test_a_number_on_the_left_of_an_operator_is_read_as_keras_2_writes_it(value, nested):
    call = ["_CONSTANT_VALUE", -1, value, {"y": ["before", 0, 0], "name": None}]
    order, words = configs._arguments([call] if nested else call, "Subtract")
    assert order == [value, configs._Reference("before")] and not words
    assert list(configs._walk([call])) == [value, configs._Reference("before")]
