"""Promises of backbones.zoo: a name gives the right network, with all that must travel with it."""

from __future__ import annotations

import json
import random
import re
import socket
import time
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from burnish.backbones import cifar, timmed, zoo
from burnish.backbones.reading import hub, weights
from burnish.backbones.stages import stages_of, steps_of
from burnish.backbones.zoo import load_backbone
from burnish.errors import BadWeights, BurnishError, ModelError, RecipeError, UnknownModel, WeightsUnreachable
from burnish.terms import Preprocess

torch.set_num_threads(1)

FAMILIES = [
    "resnet18",
    "densenet121",
    "tf_efficientnet_lite0",
    "mobilenetv3_small_050",
    "mobilenetv4_conv_small",
    "convnext_atto",
    "vit_tiny_patch16_224",
    "deit_tiny_patch16_224",
    "regnetx_002",
    "resnetv2_50",
    "levit_128s",
    "swin_tiny_patch4_window7_224",
]


@pytest.fixture(scope="module")
def lite0():
    return zoo.load_backbone("efficientnet_lite0")


@pytest.fixture(scope="module")
def resnet18_file(tmp_path_factory):
    """A timm ResNet-18 with a head of five classes, as timm would save it."""
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    torch.manual_seed(3)
    save_file(timm.create_model("resnet18", num_classes=5).state_dict(), path)
    return path


def _no_network(*args, **kwargs):
    raise OSError("no network in this test")


# ---- the embedded model ----------------------------------------------------------------------------------------------


def test_the_default_model_comes_with_all_that_must_travel(lite0):
    assert (lite0.name, lite0.width, lite0.source) == ("tf_efficientnet_lite0", 1280, "embedded")
    assert (lite0.licence, lite0.sha256) == ("Apache-2.0", weights.EMBEDDED["efficientnet_lite0"].sha256)
    assert lite0.preprocess == Preprocess(224, 0.875, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "crop")
    assert not any(layer.training for layer in lite0.module.modules())
    assert zoo.models("lite0")[0].parameters == sum(p.numel() for p in lite0.module.parameters())


def test_the_two_ways_of_naming_the_embedded_weights_agree(lite0):
    by_rule = weights.read_embedded()
    by_order = timm.create_model("tf_efficientnet_lite0", num_classes=1000).state_dict()
    assert list(by_rule) == list(by_order)
    assert [t.shape for t in by_rule.values()] == [t.shape for t in by_order.values()]
    for name, tensor in lite0.module.state_dict().items():
        assert torch.equal(tensor, by_rule[name])


def test_the_embedded_features_tell_real_images_apart(lite0):
    """Trained weights in the wrong places give nearly the same features for everything."""
    grid = torch.linspace(-1, 1, 224)
    smooth = (grid[:, None] * grid[None, :]).expand(1, 3, 224, 224)
    stripes = torch.sin(grid * 60)[:, None].expand(224, 224).expand(1, 3, 224, 224)
    with torch.no_grad():
        features = lite0.module(torch.cat([smooth, stripes, smooth * 0.9]))
    near, far = (torch.cosine_similarity(features[0], features[i], dim=0).item() for i in (2, 1))
    assert near > 0.9 > 0.6 > far


@pytest.mark.parametrize("alias", ["lite0", "tf_efficientnet_lite0"])
def test_aliases_give_the_same_backbone(lite0, alias):
    other = zoo.load_backbone(alias, image_size=160)
    assert replace(other, module=lite0.module, preprocess=lite0.preprocess) == lite0
    assert other.preprocess.size == 160


# ---- stages ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_stages_hold_every_name_once_and_follow_execution(name):
    backbone = zoo.load_backbone(f"random:{name}")
    names = [name for stage in backbone.stages for name in stage.parameters]
    assert sorted(names) == sorted(backbone.module.state_dict())
    assert len({stage.name for stage in backbone.stages}) == len(backbone.stages) >= 4
    assert backbone.stages[0].name == "stem"
    assert backbone.width == zoo.load_backbone(f"random:{name}").width

    stage_of = {name: index for index, stage in enumerate(backbone.stages) for name in stage.parameters}
    visited: list[int] = []
    handles = [
        layer.register_forward_pre_hook(
            lambda layer, inputs, path=path: visited.extend(
                stage_of[f"{path}.{own}"] for own in layer._parameters if f"{path}.{own}" in stage_of
            )
        )
        for path, layer in backbone.module.named_modules()
        if path
    ]
    with torch.no_grad():
        backbone.module(torch.zeros(1, 3, backbone.preprocess.size, backbone.preprocess.size))
    for handle in handles:
        handle.remove()
    assert visited == sorted(visited)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet50", ["stem", "layer1", "layer2", "layer3", "layer4"]),
        ("tf_efficientnet_lite0", ["stem", *(f"blocks.{i}" for i in range(7))]),
        ("vit_tiny_patch16_224", ["stem", *(f"blocks.{i}" for i in range(12))]),
        ("convnext_atto", ["stem", *(f"stages.{i}" for i in range(4))]),
    ],
)
def test_stages_are_named_as_the_architecture_names_its_blocks(name, expected):
    assert [stage.name for stage in zoo.load_backbone(f"random:{name}").stages] == expected


def test_groups_out_of_order_are_merged_until_they_follow_execution():
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.Conv2d(4, 4, 1), torch.nn.Conv2d(4, 4, 1))
    module.add_module("end", torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()))
    module.group_matcher = lambda coarse: lambda name: {"0": 1, "1": 0, "2": 2}[name[0]]  # type: ignore[assignment]
    steps, width = steps_of(module, torch.zeros(1, 3, 2, 2))
    stages = stages_of(module, timmed.groups_of(module, list(module.state_dict())), steps)
    assert width == 4
    assert [set(stage.parameters) for stage in stages] == [
        {"0.weight", "0.bias", "1.weight", "1.bias"},
        {"2.weight", "2.bias"},
    ]


def test_a_series_of_stages_is_divided_where_timm_does_not_say_how():
    assert [stage.name for stage in load_backbone("random:poolformer_s12", image_size=64).stages] == [
        "stem", "stages.0", "stages.1", "stages.2", "stages.3",
    ]  # fmt: skip


# ---- random weights --------------------------------------------------------------------------------------------------


def test_random_weights_depend_on_the_seed_alone_and_no_global_generator_moves():
    torch.manual_seed(11)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    first = zoo.load_backbone("random:resnet18", seed=5)
    torch.rand(3)
    second = zoo.load_backbone("resnet18", pretrained=False, seed=5)
    other = zoo.load_backbone("random:resnet18", seed=6)
    torch.manual_seed(11)
    assert torch.equal(torch.get_rng_state(), before[0])
    zoo.load_backbone("efficientnet_lite0")
    zoo.rebuild(zoo.architecture_for_bundle(first))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])
    assert (first.source, first.sha256) == ("random", "")
    for name, tensor in first.module.state_dict().items():
        assert torch.equal(tensor, second.module.state_dict()[name])
    assert not torch.equal(first.module.conv1.weight, other.module.conv1.weight)


def test_another_image_size_reaches_networks_built_for_one_size():
    backbone = zoo.load_backbone("random:vit_tiny_patch16_224", image_size=96)
    assert backbone.preprocess.size == 96
    with torch.no_grad():
        assert backbone.module(torch.zeros(1, 3, 96, 96)).shape == (1, 192)
    again = zoo.rebuild(zoo.architecture_for_bundle(backbone))
    again.load_state_dict(backbone.module.state_dict(), strict=True)


@pytest.mark.parametrize("size", [64])
def test_images_too_small_for_a_network_are_refused_in_a_sentence(size):
    with pytest.raises(BurnishError, match=r"cannot be run on images of 64 pixels"):
        zoo.load_backbone("random:inception_v3", image_size=size)


# ---- names -----------------------------------------------------------------------------------------------------------


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UnknownModel, match=r"no model 'resnet51' \(nearest: .*resnet50.*see: burnish models"):
        zoo.load_backbone("resnet51")
    with pytest.raises(UnknownModel, match=r"no model 'resnet50.nonsense'"):
        zoo.load_backbone("resnet50.nonsense")
    with pytest.raises(UnknownModel, match="nearest"):
        zoo.load_backbone("random:efficientnet_lite00")
    with pytest.raises(UnknownModel, match="efficientnet"):
        zoo.models("eficientnet")


@pytest.mark.parametrize(
    "name",
    [
        "local-dir:/tmp", "random:hf-hub:a/b", "timm/hf-hub:a/b", "a\x1b[0m", "hf-hub:model", "hf-hub:a/b/c",
        "hf-hub:../../etc/passwd", "hf-hub:a/b?x=1", "hf-hub:a/b@", "hf-hub:a/\x1b[0m",
    ],
)  # fmt: skip
def test_a_name_that_would_make_timm_fetch_elsewhere_is_refused(name):
    with pytest.raises(UnknownModel) as caught:
        zoo.load_backbone(name)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("begin", ["", "resnet18=", "{}/"], ids=["alone", "named", "in a folder"])
@pytest.mark.parametrize("length", [300, 5000])
def test_a_name_too_long_for_any_file_is_no_model(begin, length, tmp_path):
    with pytest.raises(ModelError) as error:
        zoo.load_backbone(begin.format(tmp_path) + "a" * length + ".pth")
    assert str(error.value).isprintable() and "Traceback" not in str(error.value)


@pytest.mark.parametrize("begin", ["resnet18={}/", "~/"], ids=["named in a folder", "at home"])
def test_a_name_too_long_behind_an_architecture_or_at_home_is_no_model(begin, tmp_path):
    with pytest.raises(ModelError):
        zoo.load_backbone(begin.format(tmp_path) + "a" * 300 + ".pth")


def test_models_lists_the_embedded_one_first_and_the_rest_by_pattern():
    rows = zoo.models()
    assert len(rows) > 1000
    assert (rows[0].name, rows[0].where) == ("efficientnet_lite0", "embedded")
    assert [row.name for row in rows[1:3]] == ["efficientnet_lite1", "efficientnet_lite2"]
    assert all(row.where == "embedded" or row.where.startswith("pip install ") for row in rows[1:3])
    assert {row.where for row in rows[3:]} <= {"cached", "hub", "torchvision"}
    found = zoo.models("resnet50.a[123]_in1k")
    assert [row.name for row in found] == ["resnet50.a1_in1k", "resnet50.a2_in1k", "resnet50.a3_in1k"]
    assert found[0].licence == "apache-2.0"


# ---- the hub ---------------------------------------------------------------------------------------------------------


def test_without_a_network_weights_fail_fast_and_say_how_to_bring_them(monkeypatch, tmp_path):
    monkeypatch.setattr(socket, "getaddrinfo", _no_network)
    monkeypatch.setattr(socket.socket, "connect", _no_network)
    started = time.monotonic()
    with pytest.raises(WeightsUnreachable) as caught:
        zoo.load_backbone("resnet50")
    assert time.monotonic() - started < 10
    sentence = str(caught.value)
    assert "hf download timm/resnet50.a1_in1k model.safetensors" in sentence
    assert "--model resnet50.a1_in1k=resnet50.a1_in1k/model.safetensors" in sentence
    assert "efficientnet_lite0" in sentence


def test_a_resolver_that_hangs_does_not_hang_us(monkeypatch):
    monkeypatch.setattr(hub, "get_session", lambda: time.sleep(5))
    monkeypatch.setattr(hub, "_PROBE_DEADLINE_SECONDS", 0.2)
    monkeypatch.setattr(hub, "cached_on_disk", lambda repository, filename: None)
    monkeypatch.setattr(hub, "_download", lambda repository, filename: pytest.fail("tried a download"))
    monkeypatch.setattr(hub.huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    started = time.monotonic()
    with pytest.raises(WeightsUnreachable, match=r"no answer in 0.2 s"):
        zoo.load_backbone("resnet50")
    assert time.monotonic() - started < 3


def test_weights_in_the_cache_need_no_network(monkeypatch, resnet18_file):
    monkeypatch.setattr(hub, "cached_on_disk", lambda repository, filename: resnet18_file)
    monkeypatch.setattr(hub, "why_unreachable", lambda: pytest.fail("asked the network"))
    backbone = zoo.load_backbone("resnet18.a1_in1k")
    assert (backbone.name, backbone.source, backbone.licence) == ("resnet18.a1_in1k", "hub", "apache-2.0")
    assert backbone.sha256 == weights.sha256_of(resnet18_file)


@pytest.fixture
def someone(monkeypatch, tmp_path, resnet18_file):
    """A repository in the cache, as timm's push_to_hf_hub writes it; the test may change its files."""
    (tmp_path / "model.safetensors").write_bytes(resnet18_file.read_bytes())
    told = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "input_size": [3, 96, 96], "crop_pct": 1.0}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet18", "pretrained_cfg": told}))

    def cached(repository, filename):
        assert repository in ("someone/model", "someone/model@v2")
        return tmp_path / filename if (tmp_path / filename).is_file() else None

    monkeypatch.setattr(hub, "cached_on_disk", cached)
    monkeypatch.setattr(hub, "why_unreachable", lambda: pytest.fail("asked the network"))
    return tmp_path


@pytest.mark.parametrize("name", ["hf-hub:someone/model", "hf_hub:someone/model@v2"])
def test_a_repository_of_anybody_gives_architecture_preprocessing_and_weights(someone, resnet18_file, name):
    backbone = zoo.load_backbone(name)
    assert (backbone.name, backbone.source) == ("resnet18", name.replace("hf_hub:", "hf-hub:"))
    assert (backbone.preprocess.size, backbone.preprocess.mean) == (96, (0.1, 0.2, 0.3))
    assert backbone.sha256 == weights.sha256_of(resnet18_file)
    stored = weights.read_safetensors(resnet18_file)
    assert all(torch.equal(tensor, stored[key]) for key, tensor in backbone.module.state_dict().items())


def test_a_repository_with_a_pytorch_file_alone_is_read_too(someone, resnet18_file):
    torch.save(weights.read_safetensors(resnet18_file), someone / "pytorch_model.bin")
    (someone / "model.safetensors").unlink()
    backbone = zoo.load_backbone("hf-hub:someone/model")
    assert backbone.sha256 == weights.sha256_of(someone / "pytorch_model.bin")


def test_a_repository_of_another_library_says_what_it_found_and_how_to_go_on(someone):
    (someone / "config.json").write_text(json.dumps({"architectures": ["ResNetForImageClassification"]}))
    with pytest.raises(UnknownModel, match=r"hf-hub:someone/model: .*ResNetForImageClassification.*--arch"):
        zoo.load_backbone("hf-hub:someone/model")
    assert zoo.load_backbone("hf-hub:someone/model", arch="resnet18").name == "resnet18"


def test_a_repository_that_is_not_in_the_cache_needs_a_network(monkeypatch):
    monkeypatch.setattr(hub, "cached_on_disk", lambda repository, filename: None)
    with pytest.raises(WeightsUnreachable, match=r"^hf-hub:someone/model: its config\.json is not in the cache"):
        zoo.load_backbone("hf-hub:someone/model")


# ---- files -----------------------------------------------------------------------------------------------------------


def test_a_file_is_loaded_under_the_name_that_is_said(resnet18_file):
    backbone = zoo.load_backbone(f"resnet18={resnet18_file}")
    assert backbone.source == f"file {resnet18_file}"
    stored = weights.read_safetensors(resnet18_file)
    for name, tensor in backbone.module.state_dict().items():
        assert torch.equal(tensor, stored[name])
    assert "fc.weight" not in backbone.module.state_dict()


def test_a_file_that_says_its_architecture_is_loaded_by_its_path(tmp_path, resnet18_file):
    path = tmp_path / "x.safetensors"
    save_file(weights.read_safetensors(resnet18_file), path, metadata={"architecture": "resnet18"})
    assert zoo.load_backbone(str(path)).name == "resnet18"
    save_file(weights.read_safetensors(resnet18_file), path, metadata={"architecture": "os.system"})
    told = zoo.load_backbone(str(path))
    assert told.name == "resnet18"
    assert "says that it is 'os.system', which is not known here: told by its tensors" in told.notes


def test_a_config_beside_the_file_gives_name_and_preprocessing(tmp_path, resnet18_file):
    path = tmp_path / "model.safetensors"
    path.write_bytes(resnet18_file.read_bytes())
    told = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "input_size": [3, 160, 160], "crop_pct": 0.9}
    config = {
        "architecture": "resnet18",
        "pretrained_cfg": {**told, "interpolation": "bilinear", "crop_mode": "squash"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    backbone = zoo.load_backbone(str(path))
    assert backbone.preprocess == Preprocess(160, 0.9, "bilinear", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "squash")
    with pytest.raises(BadWeights, match=r"you say resnet34, the config\.json beside it says resnet18"):
        zoo.load_backbone(f"resnet34={path}")


@pytest.mark.parametrize(
    "settings",
    [
        {"mean": [0.1, 0.2]},
        {"std": [0, 0, 0]},
        {"crop_pct": "x"},
        {"interpolation": ["bicubic"]},
        {"input_size": [3, 1e9, 1e9]},
        {"mean": "abc"},
        {"input_size": 5},
        {"input_size": "abc"},
        {"crop_mode": "border"},
        {"crop_pct": "nan"},
        {"crop_pct": "1e999"},
    ],
)
def test_a_config_with_impossible_settings_is_refused_in_a_sentence(tmp_path, resnet18_file, settings):
    path = tmp_path / "model.safetensors"
    path.write_bytes(resnet18_file.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet18", "pretrained_cfg": settings}))
    with pytest.raises(BadWeights, match="image settings cannot be used"):
        zoo.load_backbone(str(path))


def test_a_damaged_config_is_refused(tmp_path, resnet18_file):
    path = tmp_path / "model.safetensors"
    path.write_bytes(resnet18_file.read_bytes())
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BadWeights, match=r"config\.json"):
        zoo.load_backbone(str(path))


def test_a_file_that_says_nothing_is_recognised_by_names_and_shapes(resnet18_file):
    backbone = zoo.load_backbone(str(resnet18_file))
    assert backbone.name == "resnet18"
    assert backbone.notes[0].startswith("resnet18, told by names and shapes")
    assert backbone.notes[1:] == (
        "100 of 100 tensors match",
        "taken to have seen images of 224 px, crop 0.95, bicubic, mean 0.485, 0.456, 0.406",
    )


def test_a_cifar_network_is_recognised_up_to_its_deepest():
    def shapes(blocks: int) -> dict[str, tuple[int, ...]]:
        names = {f"layer1.{number}.conv1.weight": (16, 16, 3, 3) for number in range(blocks)}
        return {"conv1.weight": (16, 3, 3, 3), "layer3.0.conv2.weight": (64, 64, 3, 3), **names}

    assert cifar.recognised(shapes(200)) is not None
    assert cifar.recognised(shapes(201)) is None


def test_a_file_that_nothing_tells_says_how_to_name_it(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"one.weight": torch.ones(2, 2), "two.weight": torch.ones(2)}, path)
    with pytest.raises(UnknownModel, match=r"2 tensors \((one|two)\.weight, (one|two)\.weight, …\).*--arch"):
        zoo.load_backbone(str(path))


def test_an_architecture_said_twice_must_be_the_same(resnet18_file):
    assert zoo.load_backbone(f"resnet18={resnet18_file}", arch="resnet18").name == "resnet18"
    with pytest.raises(RecipeError, match=r"resnet18.*--arch says resnet34"):
        zoo.load_backbone(f"resnet18={resnet18_file}", arch="resnet34")


def test_weights_of_another_architecture_are_refused_with_counts_and_examples(resnet18_file):
    counts = r"100 of 180 tensors match, expected 95%; 80 of 180 tensors are missing \(layer1\.2\.conv1"
    with pytest.raises(BadWeights, match=rf"does not fit resnet34: {counts}.*--arch"):
        zoo.load_backbone(f"resnet34={resnet18_file}")
    with pytest.raises(BadWeights, match=r"another shape \(layer1\.0\.conv1\.weight has \[64, 64, 3, 3\], expected"):
        zoo.load_backbone(f"resnet50={resnet18_file}")


def test_a_network_without_weights_of_its_first_layer_is_refused(tmp_path, resnet18_file):
    state = weights.read_safetensors(resnet18_file)
    del state["conv1.weight"]
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(BadWeights, match=r"99 of 100 tensors match, .*missing \(conv1\.weight\)"):
        zoo.load_backbone(f"resnet18={tmp_path / 'x.safetensors'}")


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_one_tensor_missing_or_too_much_is_told_and_the_rest_is_loaded(tmp_path, resnet18_file, change):
    state = weights.read_safetensors(resnet18_file)
    name = "layer1.0.conv1.weight" if change == "missing" else "layer9.weight"
    if change == "missing":
        del state[name]
        counts = rf"99 of 100 tensors match; 1 are missing and stay random \({name}\)"
    else:
        state[name] = torch.ones(1)
        counts = rf"100 of 100 tensors match; 1 are left unused \({name}\)"
    path = tmp_path / "x.safetensors"
    save_file(state, path)
    backbone = zoo.load_backbone(f"resnet18={path}")
    assert any(re.fullmatch(counts, note) for note in backbone.notes), backbone.notes
    for key, tensor in backbone.module.state_dict().items():
        assert key == name or torch.equal(tensor, state[key])


@pytest.mark.parametrize("change", ["shape", "nan", "integers"])
def test_one_tensor_that_does_not_fit_is_named(tmp_path, resnet18_file, change):
    state = weights.read_safetensors(resnet18_file)
    name = "layer1.0.conv1.weight"
    if change == "shape":
        state[name] = state[name][:1].clone()
    elif change == "nan":
        state[name][0] = float("nan")
    else:
        state[name] = state[name].to(torch.int64)
    path = tmp_path / "x.safetensors"
    save_file(state, path)
    with pytest.raises(BadWeights, match=name):
        zoo.load_backbone(f"resnet18={path}")


def test_a_checkpoint_without_weights_by_name_says_what_it_holds(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "model.pth")
    for name in (f"resnet18={tmp_path / 'model.pth'}", str(tmp_path / "model.pth")):
        with pytest.raises(BadWeights, match=r"holds a dictionary with a and no weights by name.*state_dict"):
            zoo.load_backbone(name)


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(BadWeights, match=r"[Nn]o such file"):
        zoo.load_backbone("resnet18=/no/such/file.safetensors")
    with pytest.raises(BadWeights, match=r"[Nn]o such file"):
        zoo.load_backbone("/no/such/file.pth")


# ---- rebuilding ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["efficientnet_lite0", "random:resnet18", "random:vit_tiny_patch16_224", "random:cifar_resnet20"]
)
def test_a_stored_architecture_is_built_again(name):
    backbone = zoo.load_backbone(name)
    architecture = json.loads(json.dumps(zoo.architecture_for_bundle(backbone)))
    module = zoo.rebuild(architecture)
    module.load_state_dict(backbone.module.state_dict(), strict=True)
    images = torch.rand(1, 3, backbone.preprocess.size, backbone.preprocess.size)
    with torch.no_grad():
        assert torch.equal(module(images), backbone.module(images))


@pytest.mark.parametrize(
    "architecture",
    [
        {},
        {"library": "os", "name": "resnet18", "kwargs": {}},
        {"library": "timm", "name": "hf-hub:a/b", "kwargs": {}},
        {"library": "timm", "name": "resnet18.a1_in1k", "kwargs": {}},
        {"library": "timm", "name": ["resnet18"], "kwargs": {}},
        {"library": "timm", "name": "resnet18", "kwargs": {"checkpoint_path": "/x"}},
        {"library": "timm", "name": "resnet18", "kwargs": {"img_size": 10**9}},
        {"library": "timm", "name": "resnet18", "kwargs": {"img_size": True}},
        {"library": "timm", "name": "resnet18", "kwargs": {}, "pretrained": True},
        {"library": "timm", "name": "resnet18", "kwargs": {"bn_eps": 0}},
        {"library": "timm", "name": "resnet18", "kwargs": {"bn_eps": float("nan")}},
        {"library": "timm", "name": "resnet18", "kwargs": {"in_chans": 10**6}},
        {"library": "cifar", "name": "resnet18", "kwargs": {"shortcut": "pad"}},
        {"library": "cifar", "name": "cifar_resnet21", "kwargs": {"shortcut": "pad"}},
        {"library": "cifar", "name": "cifar_resnet9998", "kwargs": {"shortcut": "pad"}},
        {"library": "cifar", "name": "cifar_resnet20", "kwargs": {}},
        {"library": "cifar", "name": "cifar_resnet20", "kwargs": {"shortcut": "__class__"}},
        {"library": "cifar", "name": "cifar_resnet20", "kwargs": {"shortcut": ["pad"]}},
        "resnet18",
    ],
)
def test_an_architecture_selects_from_the_table_and_nothing_else(architecture):
    with pytest.raises(UnknownModel):
        zoo.rebuild(architecture)
