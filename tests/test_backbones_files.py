"""Promises of files of weights: whatever a training script saved gives the network it saved, or a sentence."""

from __future__ import annotations

import argparse
import bz2
import copy
import gzip
import io
import json
import lzma
import os
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from burnish.backbones import zoo
from burnish.backbones.architectures import architecture_for_bundle, rebuild
from burnish.backbones.reading import weights
from burnish.backbones.torchvision.images import preprocess_of
from burnish.backbones.torchvision.names import translated
from burnish.data.pixels import decode, view
from burnish.data.views import normalised
from burnish.errors import BadWeights, RecipeError, UnknownModel
from images import noise

torch.set_num_threads(1)

# torchvision's name, and timm's of the same function.
TORCHVISION = {
    "resnet18": "resnet18",
    "densenet121": "densenet121",
    "efficientnet_b0": "efficientnet_b0",
    "efficientnet_b5": "efficientnet_b5",
    "efficientnet_v2_s": "efficientnetv2_s",
    "mobilenet_v2": "mobilenetv2_100",
    "mobilenet_v3_small": "mobilenetv3_small_100",
    "mobilenet_v3_large": "mobilenetv3_large_100",
    "convnext_tiny": "convnext_tiny",
}


def images(size, *, n=3, seed=0, channels=3):
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def seasoned(module, given):
    """The module as if trained: no weight is left at its start, statistics of BatchNorm are those of real activations.

    Convolutions are made small, so that the variances are and the epsilon of a norm counts.
    """
    generator = torch.Generator().manual_seed(7)
    norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    with torch.no_grad():
        for layer in module.modules():
            if norms and isinstance(layer, nn.Conv2d):
                layer.weight.mul_(0.2)
        for parameter in module.parameters():
            if parameter.ndim == 1 or parameter.std() < 1e-5:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        module.eval()
        for layer in norms:
            layer.train()
            layer.momentum = 1.0
        module(given)
        for layer in norms:
            layer.running_mean.add_(0.1 * layer.running_var.sqrt() * torch.randn(len(layer.bias), generator=generator))
    return module.eval()


def features_of(module, given):
    """What the last linear layer of a classifier gets."""
    seen = []
    last = [layer for layer in module.modules() if isinstance(layer, nn.Linear)][-1]
    handle = last.register_forward_pre_hook(lambda _layer, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        module(given)
    handle.remove()
    return seen[0]


def assert_same_function(backbone, expected, given):
    with torch.no_grad():
        found = backbone.module(given)
    assert found.shape == expected.shape == (len(given), backbone.width)
    assert expected.std() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def torchvision_model(name):
    return seasoned(torchvision.models.get_model(name, weights=None, num_classes=5), images(64, n=4, seed=1))


@pytest.fixture(scope="module")
def resnet18():
    return torchvision_model("resnet18")


@pytest.fixture(scope="module")
def small():
    """MobileNetV3: its names are others in timm."""
    return torchvision_model("mobilenet_v3_small")


@pytest.fixture(scope="module")
def small_file(tmp_path_factory, small):
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.save(small.state_dict(), path)
    return path


# ---- torchvision -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*TORCHVISION, pytest.param("vgg11_bn", marks=pytest.mark.slow)])
def test_a_state_dict_of_torchvision_is_recognised_and_gives_the_same_features(tmp_path, name):
    module = torchvision_model(name)
    torch.save(module.state_dict(), tmp_path / "model.pth")
    backbone = zoo.load_backbone(str(tmp_path / "model.pth"))
    (tmp_path / "model.pth").unlink()
    assert backbone.name == TORCHVISION.get(name, name)
    assert backbone.source == f"file {tmp_path / 'model.pth'}"
    assert not any(layer.training for layer in backbone.module.modules())
    assert any(f"{backbone.name}, told by names and shapes" in note for note in backbone.notes)
    assert not any("missing" in note or "unused" in note for note in backbone.notes), backbone.notes
    given = images(64)
    assert_same_function(backbone, features_of(module, given), given)


def test_a_vision_transformer_of_torchvision_is_recognised_and_gives_the_same_features(tmp_path):
    module = seasoned(torchvision.models.vit_b_16(num_classes=5), images(224, n=1))
    torch.save(module.state_dict(), tmp_path / "model.pth")
    backbone = zoo.load_backbone(str(tmp_path / "model.pth"))
    (tmp_path / "model.pth").unlink()
    assert (backbone.name, backbone.one_size) == ("vit_base_patch16_224", True)
    given = images(224, n=1, seed=1)
    assert_same_function(backbone, features_of(module, given), given)


@pytest.mark.parametrize("name", ["vgg11_bn", "vgg16", "vgg19_bn"])
def test_a_vgg_of_torchvision_has_the_names_and_shapes_of_timms(name):
    """Its function is under test in the slow tests: it has 130 million weights."""
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name, weights=None).state_dict()
        ours = timm.create_model(name).state_dict()
    found, options = translated(theirs)
    assert {key: one.shape for key, one in found.items()} == {key: one.shape for key, one in ours.items()}
    assert options == {}


@pytest.mark.parametrize(
    ("name", "expected"),
    [("efficientnet_b4", 1e-5), ("efficientnet_b5", 1e-3), ("mobilenet_v3_large", 1e-3)],
)
def test_the_epsilon_that_torchvision_trained_with_comes_along(tmp_path, name, expected):
    module = torchvision.models.get_model(name, weights=None)
    torch.save(module.state_dict(), tmp_path / "model.pth")
    found = zoo.load_backbone(f"{TORCHVISION.get(name, name)}={tmp_path / 'model.pth'}")

    def epsilons(one):
        return {layer.eps for layer in one.modules() if isinstance(layer, nn.BatchNorm2d)}

    assert epsilons(found.module) == epsilons(module) == {expected}
    assert epsilons(zoo.rebuild(zoo.architecture_for_bundle(found))) == {expected}


# ---- what training scripts write around the weights ------------------------------------------------------------------


def prefixed(state, prefix):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def spoilt(state):
    return {name: tensor + 1 for name, tensor in state.items()}


WRAPPINGS = {
    "a training state of data parallel": lambda state: {"epoch": 9, "state_dict": prefixed(state, "module.")},
    "under model": lambda state: {"model": state, "best": 0.9, "classes": ["a", "b"]},
    "averaged weights first": lambda state: {"state_dict": spoilt(state), "state_dict_ema": state},
    "averaged weights last": lambda state: {"state_dict_ema": prefixed(state, "module."), "state_dict": spoilt(state)},
    "a compiled backbone": lambda state: prefixed(state, "_orig_mod.module.backbone."),
    "lightning": lambda state: {"state_dict": prefixed(state, "model."), "hyper_parameters": {"lr": 0.1}, "loops": {}},
    "parameters, no counters": lambda state: {
        name: nn.Parameter(tensor, requires_grad=False)
        for name, tensor in state.items()
        if not name.endswith("num_batches_tracked")
    },
    "half precision": lambda state: {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()
    },
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("network", ["resnet18", "small"])
def test_weights_are_found_within_what_a_script_saved(tmp_path, request, network, wrapping):
    module = request.getfixturevalue(network)
    saved = WRAPPINGS[wrapping](module.state_dict())
    torch.save(saved, tmp_path / "model.pth")
    backbone = zoo.load_backbone(str(tmp_path / "model.pth"))
    assert backbone.name == {"resnet18": "resnet18", "small": "mobilenetv3_small_100"}[network]
    assert all(parameter.dtype == torch.float32 for parameter in backbone.module.parameters())
    if wrapping == "half precision":
        module = copy.deepcopy(module)
        module.load_state_dict(saved)
    given = images(64)
    assert_same_function(backbone, features_of(module, given), given)


@pytest.mark.parametrize("arch", [None, "test_vit"])
@pytest.mark.parametrize(
    ("last", "kept"),
    [
        ("model.", "ema_model.module."),
        ("student.", "teacher."),
        ("student_backbone.", "teacher_backbone."),
        ("net.", "model_ema."),
    ],
)
def test_of_a_network_and_its_average_the_average_is_read_whether_named_or_told(last, kept, arch, tmp_path):
    torch.manual_seed(0)
    module = timm.create_model("test_vit", num_classes=0).eval()
    state, counts = module.state_dict(), {"ema_model.n_averaged": torch.tensor(3)} if "ema_model" in kept else {}
    other = {name: tensor + 1.0 for name, tensor in state.items()}
    torch.save({"state_dict": {**prefixed(other, last), **prefixed(state, kept), **counts}}, tmp_path / "a.ckpt")
    given = torch.rand(1, 3, 160, 160)
    assert_same_function(zoo.load_backbone(str(tmp_path / "a.ckpt"), arch=arch), module(given).detach(), given)


@pytest.mark.parametrize(
    ("arch", "other"),
    [("resnet18", "resnet34"), ("test_vit", "deeper"), ("test_vit", "scaled")],
)
def test_a_deeper_or_otherwise_changed_network_is_not_cut_to_the_one_that_is_named(arch, other, tmp_path):
    if arch == "resnet18":
        state = torchvision_model(other).state_dict()
    else:
        given = {"deeper": {"depth": 12}, "scaled": {"init_values": 1e-5}}[other]
        state = timm.create_model(arch, **given).state_dict()
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(BadWeights, match=f"does not fit {arch}"):
        zoo.load_backbone(f"{arch}={tmp_path / 'model.pth'}")


@pytest.mark.parametrize(
    ("arch", "named", "prefix"),
    [
        *(("test_vit", named, prefix) for named in (True, False) for prefix in ("", "module.")),
        ("vit_tiny_patch16_224", False, ""),
        ("deit_tiny_patch16_224", True, ""),
        ("deit_tiny_patch16_224", False, "module."),
        ("vit_tiny_patch16_224.augreg_in21k", True, "module."),
    ],
)
def test_a_transformer_that_means_its_patches_is_told_by_its_norm(arch, named, prefix, tmp_path):
    """As timm builds it with global_pool avg: no `norm` but an `fc_norm`. The usual form of it would give other features."""
    network = timm.create_model(arch.partition(".")[0], global_pool="avg", num_classes=7, pretrained=False).eval()
    for layer in network.modules():
        if isinstance(layer, torch.nn.LayerNorm):
            torch.nn.init.uniform_(layer.weight, 0.5, 1.5)
    state = network.state_dict()
    assert "fc_norm.weight" in state and "norm.weight" not in state
    torch.save(prefixed(state, prefix), tmp_path / "model.pth")
    path = str(tmp_path / "model.pth")
    backbone = zoo.load_backbone(f"{arch}={path}" if named else path)
    assert any("mean of its patches" in note for note in backbone.notes)
    assert backbone.architecture["kwargs"]["global_pool"] == "avg"
    given = images(backbone.preprocess.size)
    assert_same_function(backbone, features_of(network, given), given)
    again = rebuild(architecture_for_bundle(backbone))
    again.load_state_dict(backbone.module.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(again(given), backbone.module(given))


def test_a_form_that_the_named_transformer_does_not_have_is_another_network(tmp_path):
    network = timm.create_model("deit_tiny_patch16_224", global_pool="avg")
    torch.save(network.state_dict(), tmp_path / "model.pth")
    with pytest.raises(BadWeights, match="does not fit deit_tiny_distilled"):
        zoo.load_backbone(f"deit_tiny_distilled_patch16_224={tmp_path / 'model.pth'}")


def test_of_two_equal_encoders_the_first_is_taken_in_every_process(tmp_path, resnet18):
    """Whatever order a process gives to sets of names. The other processes choose alone: building takes them seconds."""
    other = {name: value + 1 if value.is_floating_point() else value for name, value in resnet18.state_dict().items()}
    both = prefixed(resnet18.state_dict(), "module.encoder_q.") | prefixed(other, "module.encoder_k.")
    torch.save(both, tmp_path / "model.pth")
    backbone = zoo.load_backbone(f"resnet18={tmp_path / 'model.pth'}")
    assert torch.equal(next(backbone.module.parameters()), resnet18.conv1.weight)
    code = (
        "import sys, torch; from burnish.backbones.reading import checkpoint, matching\n"
        "state, _ = checkpoint.weights_in(torch.load(sys.argv[1], weights_only=True), 'it')\n"
        "wanted = {name[17:]: value for name, value in state.items() if '_q.' in name and '_q.fc.' not in name}\n"
        "first, *rest = checkpoint.unwrapped(state)\n"
        "found = matching.fitted(first, wanted, is_head=lambda name: name.startswith('fc.'), others=rest)\n"
        "print(found.prefix, found.matched == found.expected, float(found.state['conv1.weight'].double().sum()))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "model.pth")],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in (2, 4)  # with which a set of the two has the second first
    }
    assert found == {f"module.encoder_q. True {float(resnet18.conv1.weight.detach().double().sum())}\n"}


def test_an_average_of_the_parameters_alone_gives_way_to_the_whole_network(tmp_path, resnet18):
    average = {name: value.detach() + 1 for name, value in resnet18.named_parameters()}
    torch.save({"state_dict": resnet18.state_dict(), "ema": average}, tmp_path / "model.pth")
    backbone = zoo.load_backbone(f"resnet18={tmp_path / 'model.pth'}")
    assert torch.equal(next(backbone.module.parameters()), resnet18.conv1.weight)


def test_torchvisions_inception_gets_images_as_its_weights_saw_them():
    found = preprocess_of("inception_v3", "0" * 64)
    assert found.mean == found.std == (0.5, 0.5, 0.5)


def test_the_notes_say_where_the_weights_lay_and_what_was_taken_off(tmp_path, resnet18):
    torch.save({"epoch": 9, "state_dict": prefixed(resnet18.state_dict(), "module.")}, tmp_path / "model.pth")
    notes = zoo.load_backbone(str(tmp_path / "model.pth")).notes
    assert "100 of 100 tensors match (under state_dict, without module.)" in notes


@pytest.mark.parametrize("network", ["resnet18", "small"])
def test_a_file_of_torch_before_1_6_is_read(tmp_path, request, network):
    module = request.getfixturevalue(network)
    torch.save({"model": module.state_dict()}, tmp_path / "model.pt", _use_new_zipfile_serialization=False)
    backbone = zoo.load_backbone(str(tmp_path / "model.pt"))
    given = images(64)
    assert_same_function(backbone, features_of(module, given), given)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_training_checkpoint_of_timm_is_read(tmp_path, zipped):
    module = seasoned(timm.create_model("mobilenetv3_small_050", num_classes=5), images(64, n=4, seed=1))
    optimiser = torch.optim.AdamW(module.parameters())
    module(images(64, n=1)).sum().backward()
    optimiser.step()
    averaged = {
        name: tensor * 0.9 if tensor.is_floating_point() else tensor for name, tensor in module.state_dict().items()
    }
    saved = {
        "epoch": 3, "arch": "mobilenetv3_small_050", "version": 2, "state_dict": module.state_dict(),
        "optimizer": optimiser.state_dict(), "state_dict_ema": averaged, "amp_scaler": {"scale": 65536.0},
        "args": argparse.Namespace(lr=0.1, model="mobilenetv3_small_050", mean=None, opt_betas=[0.9, 0.99], size=(3, 64)),
        "metric": np.float64(77.1), "loss": np.float32(0.5), "step": np.int64(4),
    }  # fmt: skip
    torch.save(saved, tmp_path / "last.pth.tar", _use_new_zipfile_serialization=zipped)
    backbone = zoo.load_backbone(f"mobilenetv3_small_050={tmp_path / 'last.pth.tar'}")
    assert any("under state_dict_ema" in note for note in backbone.notes)
    for name, tensor in backbone.module.state_dict().items():
        assert torch.equal(tensor, averaged[name])


# ---- the ResNets of CIFAR --------------------------------------------------------------------------------------------


class Shrink(nn.Module):
    """Option A of He et al. 2015: every second pixel, zeros before and after the channels."""

    def __init__(self, planes):
        super().__init__()
        self.planes = planes

    def forward(self, x):
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.planes // 4, self.planes // 4), "constant", 0)


class Basic(nn.Module):
    def __init__(self, inside, planes, stride, option):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, planes, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, kernel_size=3, stride=1, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        changes = stride != 1 or inside != planes
        if option == "downsample":
            self.downsample = self.projection(inside, planes, stride) if changes else None
        else:
            self.shortcut = nn.Sequential()
            if changes:
                self.shortcut = Shrink(planes) if option == "pad" else self.projection(inside, planes, stride)

    @staticmethod
    def projection(inside, planes, stride):
        return nn.Sequential(nn.Conv2d(inside, planes, 1, stride=stride, bias=False), nn.BatchNorm2d(planes))

    def forward(self, x):
        way = self.downsample if hasattr(self, "downsample") else self.shortcut
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + (x if way is None else way(x)))


class Cifar(nn.Module):
    def __init__(self, depth, option, head):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, kernel_size=3, stride=1, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        blocks = (depth - 2) // 6
        self.layer1 = self.stage(16, 16, blocks, 1, option)
        self.layer2 = self.stage(16, 32, blocks, 2, option)
        self.layer3 = self.stage(32, 64, blocks, 2, option)
        self.add_module(head, nn.Linear(64, 10))
        self.head = [self._modules[head]]

    @staticmethod
    def stage(inside, planes, blocks, stride, option):
        first = Basic(inside, planes, stride, option)
        return nn.Sequential(first, *(Basic(planes, planes, 1, option) for _ in range(blocks - 1)))

    def forward(self, x):
        out = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.head[0](F.avg_pool2d(out, out.size(3)).flatten(1))


@pytest.mark.parametrize(
    ("depth", "option", "head", "prefix"),
    [
        (20, "pad", "linear", "module."),
        (56, "pad", "linear", "module."),
        (20, "shortcut", "linear", "module."),
        (20, "downsample", "fc", ""),
        (56, "downsample", "fc", "module."),
    ],
)
def test_a_resnet_of_cifar_is_recognised_and_gives_the_same_features(tmp_path, depth, option, head, prefix):
    torch.manual_seed(depth)
    module = seasoned(Cifar(depth, option, head), images(32, n=8, seed=1))
    saved = {"state_dict": prefixed(module.state_dict(), prefix), "best_prec1": 91.7}
    torch.save(saved, tmp_path / "resnet.th")
    backbone = zoo.load_backbone(str(tmp_path / "resnet.th"))
    assert (backbone.name, backbone.width) == (f"cifar_resnet{depth}", 64)
    assert (backbone.preprocess.size, backbone.one_size) == (32, False)
    assert [stage.name for stage in backbone.stages] == ["stem", "layer1", "layer2", "layer3"]
    names = [name for stage in backbone.stages for name in stage.parameters]
    assert sorted(names) == sorted(backbone.module.state_dict())
    given = images(32)
    assert_same_function(backbone, features_of(module, given), given)


def test_a_resnet_of_cifar_has_its_name_and_takes_a_size(tmp_path):
    module = Cifar(20, "shortcut", "linear")
    torch.save(module.state_dict(), tmp_path / "model.pth")
    backbone = zoo.load_backbone(f"cifar_resnet20={tmp_path / 'model.pth'}", image_size=48)
    assert (backbone.name, backbone.preprocess.size) == ("cifar_resnet20", 48)
    assert backbone.architecture["kwargs"] == {"shortcut": "shortcut"}
    assert zoo.load_backbone("random:cifar_resnet32").width == 64
    with pytest.raises(BadWeights, match=r"does not fit cifar_resnet56"):
        zoo.load_backbone(f"cifar_resnet56={tmp_path / 'model.pth'}")
    with pytest.raises(RecipeError, match="no residual branches that could be dropped"):
        zoo.load_backbone("random:cifar_resnet20", drop_path=0.1)


# ---- colours ---------------------------------------------------------------------------------------------------------


def with_first_layer(module, channels):
    """The module with a first convolution of so many channels."""
    module = copy.deepcopy(module)
    name, old = next((name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Conv2d))
    new = nn.Conv2d(channels, old.out_channels, old.kernel_size, old.stride, old.padding, bias=False)
    new.weight.data.mul_(0.2)
    parent, _, own = name.rpartition(".")
    setattr(module.get_submodule(parent), own, new)
    return module.eval()


@pytest.mark.parametrize("network", ["resnet18", "small"])
def test_a_first_layer_for_grey_images_is_adapted(tmp_path, request, network):
    module = with_first_layer(request.getfixturevalue(network), 1)
    torch.save({"state_dict": prefixed(module.state_dict(), "module.")}, tmp_path / "model.pth")
    arch = {"resnet18": "resnet18", "small": "mobilenetv3_small_100"}[network]
    backbone = zoo.load_backbone(str(tmp_path / "model.pth"), arch=arch)
    assert any("grey images" in note for note in backbone.notes)
    given = images(64, channels=1)
    assert_same_function(backbone, features_of(module, given), given.expand(-1, 3, -1, -1))


@pytest.mark.parametrize("network", ["resnet18", "small"])
def test_a_first_layer_for_rgba_images_is_adapted(tmp_path, request, network):
    module = with_first_layer(request.getfixturevalue(network), 4)
    torch.save(module.state_dict(), tmp_path / "model.pth")
    arch = {"resnet18": "resnet18", "small": "mobilenetv3_small_100"}[network]
    backbone = zoo.load_backbone(str(tmp_path / "model.pth"), arch=arch)
    assert any("RGBA images" in note for note in backbone.notes)
    given = images(64)
    expected = features_of(module, torch.cat([given, torch.zeros_like(given[:, :1])], 1))
    assert_same_function(backbone, expected, given)


def test_a_first_layer_for_other_channels_is_refused(tmp_path, resnet18):
    torch.save(with_first_layer(resnet18, 6).state_dict(), tmp_path / "model.pth")
    with pytest.raises(
        BadWeights, match=r"1 have another shape \(conv1\.weight has \[64, 6, 7, 7\], expected \[64, 3,"
    ):
        zoo.load_backbone(str(tmp_path / "model.pth"), arch="resnet18")


# ---- another image size ----------------------------------------------------------------------------------------------


def test_a_transformer_trained_at_another_size_keeps_its_function_there(tmp_path):
    module = seasoned(timm.create_model("vit_tiny_patch16_224", img_size=96, num_classes=5), images(96, n=1))
    torch.save(module.state_dict(), tmp_path / "model.pth")
    backbone = zoo.load_backbone(str(tmp_path / "model.pth"), image_size=96)
    assert backbone.name == "vit_tiny_patch16_224"
    assert torch.equal(backbone.module.pos_embed, module.pos_embed)
    given = images(96)
    assert_same_function(backbone, features_of(module, given), given)


def test_position_embeddings_of_another_size_are_interpolated(tmp_path):
    module = seasoned(timm.create_model("vit_tiny_patch16_224", img_size=96, num_classes=5), images(96, n=1))
    torch.save({"model": prefixed(module.state_dict(), "module.")}, tmp_path / "model.pth")
    backbone = zoo.load_backbone(str(tmp_path / "model.pth"), image_size=128)
    module.set_input_size(img_size=128)
    given = images(128)
    assert_same_function(backbone, features_of(module, given), given)
    assert not any("missing" in note for note in backbone.notes)


@pytest.mark.parametrize("size", [64, 96])
def test_a_transformer_with_torchvisions_names_may_have_any_size(tmp_path, size):
    module = torchvision.models.VisionTransformer(
        image_size=64, patch_size=16, num_layers=12, num_heads=3, hidden_dim=192, mlp_dim=768, num_classes=5
    )
    seasoned(module, images(64, n=1))
    torch.save(module.state_dict(), tmp_path / "model.pth")
    backbone = zoo.load_backbone(f"vit_tiny_patch16_224={tmp_path / 'model.pth'}", image_size=size)
    given = images(size)
    if size == 64:
        assert_same_function(backbone, features_of(module, given), given)
    else:
        old = module.encoder.pos_embedding.detach()
        grid = old[:, 1:].reshape(1, 4, 4, 192).permute(0, 3, 1, 2)
        wider = F.interpolate(grid, size=(6, 6), mode="bicubic", antialias=True).flatten(2).mT
        torch.testing.assert_close(backbone.module.pos_embed, torch.cat([old[:, :1], wider], 1))


# ---- what does not fit -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "arch"),
    [("tf_efficientnet_lite0-0aa007d2.pth", "tf_efficientnet_lite0"), ("best.pth", "efficientnet_lite0"),
     ("efficientnet_lite0_of_tf_efficientnet_lite0.pth", "efficientnet_lite0"), ("tf_efficientnet_lite01.pth", "efficientnet_lite0")],
)  # fmt: skip
def test_of_networks_with_the_same_tensors_the_name_of_the_file_tells(file, arch, tmp_path):
    torch.save(timm.create_model("tf_efficientnet_lite0").state_dict(), tmp_path / file)
    backbone = zoo.load_backbone(str(tmp_path / file))
    assert backbone.name == arch and f"{arch}, told by names and shapes" in backbone.notes[0]
    assert ("by the name of the file" in backbone.notes[0]) == (file not in ("best.pth", "tf_efficientnet_lite01.pth"))


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.uint16])
def test_rare_kinds_of_numbers_are_no_code(kind, tmp_path):
    torch.save({"conv1.weight": torch.zeros(4, 3, 3, 3).to(kind), "b": torch.zeros(4)}, tmp_path / "model.pth")
    with pytest.raises(BadWeights, match=rf"holds numbers of a kind that is not read \({str(kind)[6:]}\)"):
        zoo.load_backbone(str(tmp_path / "model.pth"), arch="resnet18")


@pytest.mark.parametrize(("kind", "size"), [("F4", 4), ("F6_E2M3", 6), ("F8_E8M0", 8)])
def test_kinds_of_numbers_that_torch_has_not_are_no_damage(kind, size, tmp_path):
    header = json.dumps({"a": {"dtype": kind, "shape": [8], "data_offsets": [0, size]}}).encode()
    (tmp_path / "m.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(size))
    with pytest.raises(BadWeights, match=rf"holds numbers of a kind that is not read \({kind}\)"):
        zoo.load_backbone(str(tmp_path / "m.safetensors"), arch="resnet18")


def test_a_file_that_nothing_tells_asks_for_the_architecture(tmp_path):
    torch.save(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)).state_dict(), tmp_path / "m.pth")
    with pytest.raises(UnknownModel, match=r"9 tensors .*--arch"):
        zoo.load_backbone(str(tmp_path / "m.pth"))
    with pytest.raises(BadWeights, match=r"0 of 100 tensors match, expected 95%; 100 of 100 tensors are missing"):
        zoo.load_backbone(str(tmp_path / "m.pth"), arch="resnet18")
    with pytest.raises(UnknownModel, match=r"no model 'resnet19' \(nearest: .*resnet18"):
        zoo.load_backbone(str(tmp_path / "m.pth"), arch="resnet19")


def test_missing_tensors_are_told_down_to_95_percent_and_refused_below(tmp_path, resnet18):
    state = dict(resnet18.state_dict())
    gone = [name for name in state if name.startswith("layer4.1.") and "num_batches" not in name][:6]
    for name in gone[:5]:
        del state[name]
    torch.save(state, tmp_path / "model.pth")
    backbone = zoo.load_backbone(str(tmp_path / "model.pth"), arch="resnet18")
    assert f"95 of 100 tensors match; 5 are missing and stay random ({', '.join(gone[:3])}, …)" in backbone.notes
    again = zoo.load_backbone(str(tmp_path / "model.pth"), arch="resnet18")
    for name, tensor in backbone.module.state_dict().items():
        assert torch.equal(tensor, again.module.state_dict()[name] if name in gone else state[name])

    del state[gone[5]]
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(
        BadWeights, match=r"94 of 100 tensors match, expected 95%; 6 of 100 tensors are missing"
    ) as caught:
        zoo.load_backbone(str(tmp_path / "model.pth"), arch="resnet18")
    assert gone[0] in str(caught.value)


KEPT_IN_PARTS = {
    "weight_norm": ("weight_g", "weight_v"),
    "pruning": ("weight_orig", "weight_mask"),
    "a parametrization": ("parametrizations.weight.original0", "parametrizations.weight.original1"),
}


@pytest.mark.parametrize("layer", ["conv1", "layer2.0.conv1"])
@pytest.mark.parametrize("how", KEPT_IN_PARTS)
def test_weights_kept_in_parts_are_to_be_folded_first_and_not_left_random(how, layer, tmp_path, resnet18):
    state = {f"module.{name}": tensor for name, tensor in resnet18.state_dict().items()}
    kept = state.pop(f"module.{layer}.weight")
    state |= {f"module.{layer}.{part}": kept for part in KEPT_IN_PARTS[how]}
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(BadWeights, match=rf"holds {layer}\.weight in parts .*fold them into one first .*prune\.remove"):
        zoo.load_backbone(str(tmp_path / "model.pth"), arch="resnet18")


@pytest.mark.parametrize("place", ["data/0", "data/1"])
def test_a_file_of_torch_whose_tensors_do_not_match_their_checksum_is_refused(place, tmp_path, resnet18):
    torch.save(resnet18.state_dict(), tmp_path / "m.pth")
    data = bytearray((tmp_path / "m.pth").read_bytes())
    with zipfile.ZipFile(tmp_path / "m.pth") as archive:
        info = next(one for one in archive.infolist() if one.filename.endswith(place))
    data[info.header_offset + 1000 if place == "data/0" else info.header_offset + 128] ^= 1
    (tmp_path / "m.pth").write_bytes(data)
    with pytest.raises(BadWeights, match=rf"its .*/{place} is damaged \(Bad CRC-32"):
        zoo.load_backbone(str(tmp_path / "m.pth"), arch="resnet18")


@pytest.mark.parametrize("share", [0.3, 0.99])
def test_an_old_file_of_torch_that_was_cut_short_is_to_be_fetched_again(share, tmp_path, resnet18):
    torch.save(resnet18.state_dict(), tmp_path / "m.pth", _use_new_zipfile_serialization=False)
    data = (tmp_path / "m.pth").read_bytes()
    (tmp_path / "m.pth").write_bytes(data[: int(share * len(data))])
    with pytest.raises(BadWeights, match=r"was cut short .*; fetch it again"):
        zoo.load_backbone(str(tmp_path / "m.pth"))


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_a_packed_file_that_is_no_archive_is_to_be_unpacked(pack, tmp_path, resnet18):
    torch.save(resnet18.state_dict(), tmp_path / "m.pth")
    data = (tmp_path / "m.pth").read_bytes()[:100_000]
    (tmp_path / "m.pth.gz").write_bytes(pack(data))
    with pytest.raises(BadWeights, match=r"with one file, no tar; run (gunzip|bunzip2|unxz)"):
        zoo.load_backbone(str(tmp_path / "m.pth.gz"))


def test_numbers_of_no_use_are_told_without_advice_on_the_architecture(tmp_path, resnet18):
    state = dict(resnet18.state_dict())
    torch.save({**state, "conv1.weight": torch.full_like(state["conv1.weight"], torch.nan)}, tmp_path / "nan.pth")
    whole = {name: tensor.char() if tensor.ndim == 4 else tensor for name, tensor in state.items()}
    torch.save(whole, tmp_path / "whole.pth")
    for name, found in (
        ("nan", r"1 tensors with NaN or infinite values \(conv1"),
        ("whole", "20 tensors hold another kind"),
    ):
        with pytest.raises(BadWeights, match=found) as error:
            zoo.load_backbone(str(tmp_path / f"{name}.pth"), arch="resnet18")
        assert "--arch" not in str(error.value) and "does not fit" not in str(error.value)


def test_complex_weights_are_told_as_such(tmp_path):
    torch.save({"a.b": torch.ones(4, dtype=torch.complex64)}, tmp_path / "m.pth")
    with pytest.raises(BadWeights, match=r"is complex \(ComplexFloatStorage\); save the weights dense in float32"):
        zoo.load_backbone(str(tmp_path / "m.pth"))


def test_a_whole_module_is_a_program_and_says_what_to_save_instead(tmp_path, small):
    torch.save(small, tmp_path / "model.pth")
    with pytest.raises(
        BadWeights, match=r"asks for torchvision\.models.*MobileNetV3.*torch\.save\(model\.state_dict\(\)"
    ):
        zoo.load_backbone(str(tmp_path / "model.pth"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, resnet18, value):
    state = copy.deepcopy(resnet18.state_dict())
    state["layer2.0.bn1.weight"][3] = value
    torch.save({"state_dict": prefixed(state, "module.")}, tmp_path / "model.pth")
    with pytest.raises(BadWeights, match=r"1 tensors with NaN or infinite values \(layer2\.0\.bn1\.weight\)"):
        zoo.load_backbone(str(tmp_path / "model.pth"))


def test_a_tensor_that_is_not_dense_or_claims_more_than_is_there_is_refused(tmp_path, resnet18):
    state = dict(resnet18.state_dict())
    for strange in (state["conv1.weight"].to_sparse(), torch.zeros(1).expand(64, 3, 7, 7)):
        torch.save({**state, "conv1.weight": strange}, tmp_path / "model.pth")
        with pytest.raises(BadWeights):
            zoo.load_backbone(str(tmp_path / "model.pth"))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_was_cut_short_is_refused(tmp_path, small, share, zipped):
    path = tmp_path / "model.pth"
    torch.save(small.state_dict(), path, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(BadWeights):
        zoo.load_backbone(str(path), arch="mobilenetv3_small_100")


# ---- names of files, archives, folders -------------------------------------------------------------------------------


def test_a_file_is_known_by_its_content_not_its_name(tmp_path, small, small_file):
    for name in ("a.pth", "b.pt", "c.bin", "d.ckpt"):
        save_file(small.state_dict(), tmp_path / name)
        assert zoo.load_backbone(str(tmp_path / name)).name == "mobilenetv3_small_100"
    (tmp_path / "e.safetensors").write_bytes(small_file.read_bytes())
    backbone = zoo.load_backbone(str(tmp_path / "e.safetensors"))
    assert backbone.name == "mobilenetv3_small_100"
    assert backbone.sha256 == weights.sha256_of(small_file)


def packed(path, members):
    """An archive of the kind that its name says."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture(scope="module")
def pth(tmp_path_factory):
    """The bytes of a small model."""
    path = tmp_path_factory.mktemp("pth") / "model.pth"
    torch.manual_seed(4)
    torch.save({"state_dict": Cifar(20, "pad", "linear").state_dict()}, path)
    return path.read_bytes()


ARCHIVES = ["release.zip", "release.tar.gz", "release.tar", "release.tgz"]


@pytest.mark.parametrize("name", ARCHIVES)
def test_the_only_model_in_an_archive_is_read_in_place(tmp_path, name, pth):
    around = {"release/README.md": b"# A model\n", "__MACOSX/release/._model.pth": b"\0\5\x16\7" + b"\0" * 90}
    path = packed(tmp_path / name, {**around, "release/model.pth": pth})
    backbone = zoo.load_backbone(str(path))
    assert (backbone.name, backbone.sha256) == ("cifar_resnet20", weights.sha256_of(path))
    stored = torch.load(io.BytesIO(pth), weights_only=True)["state_dict"]
    assert all(torch.equal(tensor, stored[key]) for key, tensor in backbone.module.state_dict().items())
    assert list(tmp_path.iterdir()) == [path], "something was unpacked"


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_with_two_models_or_none_is_refused(tmp_path, name, pth):
    path = packed(tmp_path / name, {"a/one.pth": pth, "a/two.pth": pth})
    with pytest.raises(BadWeights, match=r"more than one model \(a/one\.pth, a/two\.pth, …\); expected exactly one"):
        zoo.load_backbone(str(path))
    path = packed(tmp_path / name, {"README.md": b"# A model\n", "class.txt": b"cat\ndog\n"})
    with pytest.raises(BadWeights, match="an archive without a model"):
        zoo.load_backbone(str(path))


@pytest.mark.parametrize("name", ARCHIVES)
def test_the_config_beside_the_model_in_an_archive_counts(tmp_path, name, small_file):
    told = {"mean": [0.1, 0.2, 0.3], "input_size": [3, 96, 96]}
    config = json.dumps({"architecture": "mobilenetv3_small_100", "pretrained_cfg": told}).encode()
    members = {"other/config.json": b"{", "m/model.pth": small_file.read_bytes(), "m/config.json": config}
    backbone = zoo.load_backbone(str(packed(tmp_path / name, members)))
    assert (backbone.preprocess.size, backbone.preprocess.mean) == (96, (0.1, 0.2, 0.3))


@pytest.mark.parametrize("member", ["../model.pth", "/model.pth", "a/../../model.pth"])
@pytest.mark.parametrize("name", ["release.zip", "release.tar"])
def test_an_archive_with_a_member_that_climbs_out_is_refused(tmp_path, name, member, pth):
    with pytest.raises(BadWeights, match="climbs out"):
        zoo.load_backbone(str(packed(tmp_path / name, {member: pth})))


def test_an_archive_in_an_archive_is_not_opened(tmp_path, pth):
    inner = packed(tmp_path / "inner.zip", {"model.pth": pth}).read_bytes()
    with pytest.raises(BadWeights, match="an archive in an archive"):
        zoo.load_backbone(str(packed(tmp_path / "outer.tar", {"inner.zip": inner})))


@pytest.mark.parametrize(
    ("held", "sentence"),
    [
        (["saved_model.pb", "variables"], r"is a TensorFlow SavedModel, a program, .*model.save\('model.keras'\)"),
        (
            ["saved_model.pb", "keras_metadata.pb"],
            r"SavedModel of Keras 2, .*tf_keras.models.load_model\(FOLDER\).save",
        ),
        (["__0_0.distcp", ".metadata"], "of torch.distributed, in parts; .* dcp_to_torch FOLDER weights.pth"),
        (
            ["model.pkl", "README.md"],
            r"without a file of weights \(it holds README.md, model.pkl\); .*name the file itself",
        ),
        ([], r"without a file of weights \(it is empty\)"),
    ],
)
def test_a_folder_without_weights_is_told_as_what_it_is(held, sentence, tmp_path):
    for name in held:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UnknownModel, match=sentence):
        zoo.load_backbone(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "beside", "sentence"),
    [
        ("saved_model.pb", "variables", r"belongs to a TensorFlow SavedModel, a program"),
        ("saved_model.pb", "keras_metadata.pb", r"belongs to a TensorFlow SavedModel of Keras 2, .*tf_keras"),
        ("ckpt.index", "ckpt.data-00000-of-00001", r"belongs to a checkpoint of TensorFlow, .*load_weights"),
        ("ckpt.data-00000-of-00001", "ckpt.index", r"belongs to a checkpoint of TensorFlow, .*load_weights"),
    ],
)
def test_a_file_out_of_what_tensorflow_keeps_in_several_says_what_to_do(name, beside, sentence, tmp_path):
    for one in (name, beside):
        (tmp_path / one).write_bytes(b"\x08\x01\x12\x07\x0a\x05x")  # as ONNX and Core ML may begin too
    with pytest.raises(BadWeights, match=sentence):
        zoo.load_backbone(str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "begins", "sentence"),
    [
        ("m.tflite", b"\x1c\x00\x00\x00TFL3", "is TensorFlow Lite, a program"),
        ("m.onnx", b"\x08\x0a\x12\x07pytorch", "is ONNX, a program"),
        ("m.onnx", b"\x08\x0d\x3a\x80\x01", "is ONNX, a program"),
        ("model.json", b'{\n  "metadata": {}', "is JSON, which holds no weights; give the file"),
    ],
)
def test_what_other_tools_made_of_a_network_is_told_as_such(name, begins, sentence, tmp_path):
    (tmp_path / name).write_bytes(begins + bytes(100))
    with pytest.raises(BadWeights, match=sentence):
        zoo.load_backbone(str(tmp_path / name))


def test_a_folder_with_one_file_of_weights_is_that_file(tmp_path, pth, small):
    folder = tmp_path / "run 3"
    folder.mkdir()
    with pytest.raises(UnknownModel, match="a folder without a file of weights"):
        zoo.load_backbone(str(folder))
    (folder / "model.pth").write_bytes(pth)
    (folder / "log.txt").write_text("epoch 1")
    assert zoo.load_backbone(str(folder)).name == "cifar_resnet20"
    (folder / "last.pth").write_bytes(pth)
    with pytest.raises(UnknownModel, match=r"a folder with 2 files of weights \(last\.pth, model\.pth\); name one"):
        zoo.load_backbone(str(folder))
    save_file(small.state_dict(), folder / "model.safetensors")
    assert zoo.load_backbone(str(folder)).name == "mobilenetv3_small_100"


# ---- packages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["pad", "shortcut", "downsample"])
def test_a_resnet_of_cifar_is_built_again_from_its_description(tmp_path, option):
    torch.save(seasoned(Cifar(20, option, "fc"), images(32, n=8)).state_dict(), tmp_path / "model.pth")
    backbone = zoo.load_backbone(str(tmp_path / "model.pth"))
    assert_built_again(backbone, images(32))
    assert backbone.architecture["library"] == "cifar"


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "densenet121"])
def test_a_model_of_torchvision_is_built_again_from_its_description(tmp_path, name):
    torch.save(torchvision_model(name).state_dict(), tmp_path / "model.pth")
    backbone = zoo.load_backbone(str(tmp_path / "model.pth"))
    assert_built_again(backbone, images(64))
    assert backbone.architecture["library"] == "timm"


def test_a_transformer_of_another_size_is_built_again_from_its_description(tmp_path):
    module = timm.create_model("vit_tiny_patch16_224", img_size=96, num_classes=5)
    torch.save(module.state_dict(), tmp_path / "model.pth")
    assert_built_again(zoo.load_backbone(str(tmp_path / "model.pth"), image_size=64), images(64))


def assert_built_again(backbone, given):
    description = json.loads(json.dumps(zoo.architecture_for_bundle(backbone), allow_nan=False))
    module = zoo.rebuild(description, seed=5)
    with torch.no_grad():
        assert not torch.equal(module(given), backbone.module(given))
        module.load_state_dict(backbone.module.state_dict(), strict=True)
        assert torch.equal(module(given), backbone.module(given))
    assert not any(layer.training for layer in module.modules())


# ---- images as torchvision prepares them ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenet_v3_small", "efficientnet_b0"])
def test_a_bare_torchvision_file_sees_the_same_pixels_as_in_torchvision(name, tmp_path):
    torch.save(torchvision.models.get_model(name, weights=None).state_dict(), tmp_path / "model.pth")
    preprocess = zoo.load_backbone(str(tmp_path / "model.pth")).preprocess
    noise(300, 217, seed=3).save(tmp_path / "image.png")
    reference = torchvision.models.get_model_weights(name).IMAGENET1K_V1.transforms()
    wanted = reference(Image.open(tmp_path / "image.png"))
    ours = normalised(view(decode(tmp_path / "image.png"), preprocess)[None], preprocess)[0]
    assert (wanted - ours).abs().max() < 1e-5


def test_a_published_file_is_known_by_the_beginning_of_its_hash():
    second = torchvision.models.ResNet50_Weights.IMAGENET1K_V2
    found = preprocess_of("resnet50", second.url.rpartition("-")[2][:8] + "0" * 56)
    assert found is not None and round(found.size / found.crop) == second.transforms().resize_size[0]
    assert preprocess_of("no_such_network", "0" * 64) is None


def test_a_word_that_is_no_architecture_does_not_hide_the_one_that_is(tmp_path):
    saved = {
        "arch": "my-best-model",
        "args": {"model": "resnet18"},
        "state_dict": torchvision.models.resnet18().state_dict(),
    }
    torch.save(saved, tmp_path / "model.pth")
    assert zoo.load_backbone(str(tmp_path / "model.pth")).name == "resnet18"


def test_what_timms_config_builds_a_network_with_is_built_or_named(tmp_path):
    """The same tensors make another network there."""
    torch.manual_seed(0)
    network = seasoned(timm.create_model("test_resnet", num_classes=5, global_pool="max"), images(64))
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    args = {"num_classes": 5, "global_pool": "max", "drop_rate": 0.1}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_resnet", "model_args": args}))
    backbone = zoo.load_backbone(str(tmp_path) + os.sep)
    network.reset_classifier(0, "max")
    with torch.no_grad():
        torch.testing.assert_close(backbone.module(images(64)), network(images(64)))
    (tmp_path / "config.json").write_text(
        json.dumps({"architecture": "test_resnet", "model_args": {"act_layer": "silu"}})
    )
    with pytest.raises(BadWeights, match="builds the network with act_layer=silu, which burnish does not"):
        zoo.load_backbone(str(tmp_path) + os.sep)
