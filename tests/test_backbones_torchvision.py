"""torchvision's networks that timm lacks: the same features under their own names, images as their weights saw them, and
torchvision's weights fetched by name."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import pytest
import torch
import torchvision
from test_backbones_hub import web as web
from torch import nn

import burnish
from burnish.backbones.architectures import architecture_for_bundle, rebuild
from burnish.backbones.fast.cut import cut
from burnish.backbones.fast.frozen import fold_for_inference
from burnish.backbones.torchvision import images as torchvision_images
from burnish.backbones.torchvision import networks as torchvisions
from burnish.backbones.zoo import load_backbone, models
from burnish.errors import BadWeights, UnknownModel, WeightsUnreachable

torch.set_num_threads(1)

HALF = (0.5, 0.5, 0.5)
LAST = {
    "alexnet": "classifier.6",
    "maxvit_t": "classifier.5",
    "swin_v2_t": "head",
}  # else fc
QUICK = ["alexnet", "squeezenet1_0", "squeezenet1_1", "googlenet", "shufflenet_v2_x0_5", "mnasnet0_5"]
SLOW = ["shufflenet_v2_x1_0", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0", "mnasnet0_75", "mnasnet1_0", "mnasnet1_3",
        "maxvit_t"]  # fmt: skip


def torchvisions_own(name, classes=5):
    """torchvision's network with its statistics drawn too, as after training."""
    options = {"init_weights": False} if name == "googlenet" else {}
    draws = torch.Generator().manual_seed(7)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = torchvision.models.get_model(name, weights=None, num_classes=classes, **options).eval()
    for key, buffer in network.named_buffers():
        if key.endswith("running_var"):
            buffer.copy_(torch.rand(buffer.shape, generator=draws) * 0.2 + 0.1)
        elif key.endswith("running_mean"):
            buffer.copy_(torch.randn(buffer.shape, generator=draws) * 0.05)
    return network


def features_of(network, name, images):
    """What torchvision's network gives its last layer; of a SqueezeNet, whose last layer is a convolution, its mean."""
    if name.startswith("squeezenet"):
        return network.features(images).mean((2, 3))
    given = []
    last = network.classifier[1] if name.startswith("mnasnet") else network.get_submodule(LAST.get(name, "fc"))
    handle = last.register_forward_pre_hook(lambda layer, inputs: given.append(inputs[0]))
    network(images)
    handle.remove()
    return given[0]


@pytest.mark.parametrize("name", [*QUICK, "swin_v2_t", *(pytest.param(one, marks=pytest.mark.slow) for one in SLOW)])
def test_a_state_dict_is_recognised_and_gives_the_same_features(tmp_path, name):
    network = torchvisions_own(name)
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{key}": one for key, one in network.state_dict().items()}}, tmp_path / "a"
    )
    found = load_backbone(str(tmp_path / "a"))
    images = torch.randn(2, 3, found.preprocess.size, found.preprocess.size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, given = features_of(network, name, images), found.module(images)
    assert found.name == name
    assert expected.std() > 0
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert {key for stage in found.stages for key in stage.parameters} == set(found.module.state_dict())
    again = rebuild(architecture_for_bundle(found))
    again.load_state_dict(found.module.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(again(images), given)


def test_every_one_is_told_from_every_other_and_its_trunk_has_just_its_tensors():
    """Swin V2 S and B, deeper and wider than T, which is under test above, are seen only here."""
    for name in torchvisions.names():
        options = {"init_weights": False} if name == "googlenet" else {}
        with torch.device("meta"):
            network = torchvision.models.get_model(name, weights=None, **options)
        shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
        assert torchvisions.recognised(shapes) == name
        with torch.device("meta"):
            trunk = torchvisions.build(name, torchvisions.described(name)["kwargs"])
        own = {key: tuple(tensor.shape) for key, tensor in trunk.state_dict().items()}
        assert own == {key: shapes.get(key) for key in own}
        assert all(key.startswith(("classifier.", "fc.", "head.", "aux")) for key in shapes.keys() - own.keys())
    for name in ("vgg11", "resnet18", "mobilenet_v2", "swin_t", "densenet121", "inception_v3"):
        with torch.device("meta"):
            network = torchvision.models.get_model(name, weights=None)
        assert torchvisions.recognised({key: tuple(one.shape) for key, one in network.state_dict().items()}) is None


@pytest.mark.parametrize(
    ("name", "arch"), [("swin_t", "swin_tiny"), ("regnet_x_400mf", "regnetx_004"), ("regnet_y_400mf", "regnety_004")]
)
def test_torchvisions_swin_and_regnet_are_recognised_and_give_the_same_features(tmp_path, name, arch):
    import torchvision

    torch.manual_seed(0)
    made = getattr(torchvision.models, name)(weights=None).eval()
    for layer in made.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
    torch.save(made.state_dict(), tmp_path / "m.pth")
    backbone = load_backbone(str(tmp_path / "m.pth"))
    assert backbone.name.startswith(arch)
    setattr(made, "head" if name == "swin_t" else "fc", torch.nn.Identity())
    views = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(backbone.module.eval()(views), made(views))


@pytest.mark.parametrize("name", QUICK)
def test_it_is_folded_and_cut_without_another_result(name):
    found = load_backbone(f"random:{name}", image_size=96)
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = found.module(images)
        folded = fold_for_inference(found.module, images)
        torch.testing.assert_close(folded(images), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
        parts = cut(found.module, found.stages, len(found.stages) // 2, images)
        assert parts is not None
        torch.testing.assert_close(parts.upper(parts.lower(images)), expected)


def test_googlenet_gets_images_as_its_weights_saw_them(tmp_path):
    network = torchvisions_own("googlenet")
    network.transform_input = True  # as torchvision builds it for its weights
    torch.save(network.state_dict(), tmp_path / "googlenet.pth")
    found = load_backbone(str(tmp_path / "googlenet.pth"))
    assert (found.preprocess.mean, found.preprocess.std) == (HALF, HALF)
    pixels = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(one)[:, None, None] for one in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        expected = features_of(network, "googlenet", (pixels - mean) / std)
        torch.testing.assert_close(found.module((pixels - 0.5) / 0.5), expected, rtol=1e-3, atol=1e-5)


def test_a_grey_first_layer_is_adapted(tmp_path):
    network = torchvisions_own("squeezenet1_1")
    network.features[0] = nn.Conv2d(1, 64, 3, 2)
    torch.save(network.state_dict(), tmp_path / "grey.pth")
    assert load_backbone(str(tmp_path / "grey.pth")).name == "squeezenet1_1"


def test_a_changed_one_is_refused(tmp_path):
    network = torchvisions_own("squeezenet1_1")
    network.features[12].expand3x3 = nn.Conv2d(64, 300, 3, padding=1)
    torch.save(network.state_dict(), tmp_path / "other.pth")
    with pytest.raises(BadWeights, match="squeezenet1_1"):
        load_backbone(str(tmp_path / "other.pth"))


def test_a_maxvit_takes_sizes_that_its_windows_divide():
    assert load_backbone("random:maxvit_t").one_size
    with pytest.raises(UnknownModel, match="224 pixels a side"):
        load_backbone("random:maxvit_t", image_size=256)


@pytest.mark.parametrize("name, kwargs", [("resnet18", {}), ("alexnet", {"img_size": 224}), ("maxvit_t", {"img_size": 225}),
                                          ("maxvit_t", {"img_size": "224"}), (["alexnet"], {}), ("alexnet", None)])  # fmt: skip
def test_other_descriptions_are_refused(name, kwargs):
    with pytest.raises(UnknownModel):
        rebuild({"library": "torchvision", "name": name, "kwargs": kwargs})


def test_stochastic_depth_acts_where_it_is_asked_for():
    plain, dropping = (
        load_backbone("random:swin_v2_t", image_size=64),
        load_backbone("random:swin_v2_t", image_size=64, drop_path=0.5),
    )
    assert any(type(layer).__name__ == "StochasticDepth" and layer.p > 0.3 for layer in dropping.module.modules())
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(plain.module(images), dropping.module(images))


# ---- weights by name -------------------------------------------------------------------------------------------------


@pytest.fixture
def published(web, tmp_path, monkeypatch):
    """torchvision's weights of SqueezeNet 1.1 and ResNet-18 on a server of this machine, in files named after their hash."""
    monkeypatch.setenv("BURNISH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def offer(name, damaged=False):
        kept = io.BytesIO()
        torch.save(torchvisions_own(name, 1000).state_dict(), kept)
        content = kept.getvalue()
        digest = hashlib.sha256(content).hexdigest()[:8]
        path = f"/models/{name}-{digest}.pth"
        web.files[path] = content[:-1] + b"?" if damaged else content
        address = f"{web.address}{path}#{digest}"
        monkeypatch.setattr(torchvision_images, "address_of", lambda said: address if said == name else None)
        return content, f"{name}-{digest}.pth"

    return offer


@pytest.mark.parametrize("said, name", [("squeezenet1_1", "squeezenet1_1"), ("torchvision/resnet18", "resnet18")])
def test_torchvisions_weights_are_fetched_by_name_once(published, web, said, name):
    published(name)
    found = load_backbone(said)
    assert found.name == name
    assert found.source.startswith(web.address)
    assert found.preprocess.interpolation == "bilinear"  # as torchvision has it, not timm
    web.files.clear()
    assert load_backbone(said).sha256 == found.sha256


def test_what_is_not_what_its_name_says_is_thrown_away(published):
    published("squeezenet1_1", damaged=True)
    with pytest.raises(BadWeights, match="has SHA-256"):
        load_backbone("squeezenet1_1")


def test_what_torch_has_fetched_is_taken_and_without_a_network_it_is_said_what_to_bring(published, web, tmp_path):
    content, file = published("squeezenet1_1")
    web.files.clear()
    with pytest.raises(WeightsUnreachable, match=f"--model {file}"):
        load_backbone("squeezenet1_1")
    kept = tmp_path / "torch" / "hub" / "checkpoints" / file
    kept.parent.mkdir(parents=True)
    kept.write_bytes(content)
    assert load_backbone("squeezenet1_1").name == "squeezenet1_1"
    kept.write_bytes(content[:-1] + b"?")
    with pytest.raises(WeightsUnreachable):
        load_backbone("squeezenet1_1")


def test_every_classifier_of_torchvisions_has_an_address_with_a_hash():
    for name in torchvision_images.classifiers():
        address = torchvision_images.address_of(name)
        assert (
            address is not None
            and address.startswith("https://download.pytorch.org/")
            and len(address.split("#")[1]) >= 8
        )
    assert torchvision_images.address_of("fasterrcnn_resnet50_fpn") is None


def test_they_are_listed():
    assert {row.name for row in models("torchvision/")} >= {"torchvision/alexnet", "torchvision/resnet50"}
    assert [row.where for row in models("squeezenet1_1")] in (["torchvision"], ["cached"])


def test_one_is_tuned_and_its_package_opens(shapes, tmp_path):
    result = burnish.fit(
        shapes,
        model="random:squeezenet1_1",
        method="full",
        image_size=64,
        epochs=1,
        budget="none",
        out=tmp_path / "run",
    )
    answers = burnish.predict(tmp_path / "run", [np.zeros((64, 64, 3), np.uint8)])
    assert result is not None and len(answers) == 1
