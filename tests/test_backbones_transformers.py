"""Files of Hugging Face transformers, DINO, DINOv2, torchvision and of networks in a row: the same features, the right images."""

from __future__ import annotations

import json
import re
from argparse import Namespace
from functools import lru_cache

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from burnish.backbones.transformers import names as transformers_names
from burnish.backbones.zoo import load_backbone
from burnish.errors import BadWeights, UnknownModel

IMAGENET, HALF = (0.485, 0.456, 0.406), (0.5, 0.5, 0.5)


@lru_cache(maxsize=1)
def small_network(name):
    """A network of timm's without head, every number of it drawn; nobody writes into it, and the next test may want the same."""
    draws = torch.Generator().manual_seed(5)
    network = timm.create_model(name, num_classes=0).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws) * 0.05 + (parameter.ndim == 1))
        for key, buffer in network.named_buffers():
            if key.endswith("running_var"):
                buffer.copy_(torch.rand(buffer.shape, generator=draws) + 0.5)
            elif key.endswith("running_mean"):
                buffer.copy_(torch.randn(buffer.shape, generator=draws) * 0.1)
    return network


def _split(name, tensor, words, to):
    """A layer of queries, keys and values as three."""
    return {to.format(word): part for word, part in zip(words, tensor.chunk(3), strict=True)}


def _vit(state, *, new, prefix="vit."):
    """timm's names as transformers has them, in files and, since version 5, in memory."""
    found = {}
    inner = {"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.output.dense",
             "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}  # fmt: skip
    if new:
        inner |= {"attn.proj": "attention.o_proj", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    outer = {"cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings"}
    for name, tensor in state.items():
        if told := re.fullmatch(r"blocks\.(\d+)\.attn\.qkv\.(\w+)", name):
            words = ("q_proj", "k_proj", "v_proj") if new else ("attention.query", "attention.key", "attention.value")
            layer = f"layers.{told[1]}" if new else f"encoder.layer.{told[1]}"
            found |= _split(name, tensor, words, f"{prefix}{layer}.attention.{{}}.{told[2]}")
        elif told := re.fullmatch(r"blocks\.(\d+)\.(.*)\.(\w+)", name):
            layer = f"layers.{told[1]}" if new else f"encoder.layer.{told[1]}"
            found[f"{prefix}{layer}.{inner[told[2]]}.{told[3]}"] = tensor
        elif name.startswith("patch_embed.proj."):
            found[f"{prefix}embeddings.patch_embeddings.projection.{name[17:]}"] = tensor
        else:
            found[prefix + outer.get(name, name.replace("norm.", "layernorm."))] = tensor
    return {**found, "classifier.weight": torch.zeros(3, 192), "classifier.bias": torch.zeros(3)}


def resnet_of_transformers(state):
    found = {}
    for name, tensor in state.items():
        if told := re.fullmatch(r"(conv|bn)1\.(\w+)", name):
            found[f"resnet.embedder.embedder.{'convolution' if told[1] == 'conv' else 'normalization'}.{told[2]}"] = (
                tensor
            )
        elif told := re.fullmatch(r"layer(\d)\.(\d)\.(conv|bn)(\d)\.(\w+)", name):
            kind = "convolution" if told[3] == "conv" else "normalization"
            place = f"resnet.encoder.stages.{int(told[1]) - 1}.layers.{told[2]}.layer.{int(told[4]) - 1}"
            found[f"{place}.{kind}.{told[5]}"] = tensor
        else:
            told = re.fullmatch(r"layer(\d)\.(\d)\.downsample\.(\d)\.(\w+)", name)
            kind = ("convolution", "normalization")[int(told[3])]
            found[f"resnet.encoder.stages.{int(told[1]) - 1}.layers.{told[2]}.shortcut.{kind}.{told[4]}"] = tensor
    return {**found, "classifier.1.weight": torch.zeros(3, 512), "classifier.1.bias": torch.zeros(3)}


def _convnext(state):
    rules = {"conv_dw": "dwconv", "norm": "layernorm", "mlp.fc1": "pwconv1", "mlp.fc2": "pwconv2"}
    found = {}
    for name, tensor in state.items():
        if told := re.fullmatch(r"stages\.(\d)\.blocks\.(\d)\.(.*)\.(\w+)", name):
            found[f"convnext.encoder.stages.{told[1]}.layers.{told[2]}.{rules[told[3]]}.{told[4]}"] = tensor
        elif told := re.fullmatch(r"stages\.(\d)\.blocks\.(\d)\.gamma", name):
            found[f"convnext.encoder.stages.{told[1]}.layers.{told[2]}.layer_scale_parameter"] = tensor
        else:
            name = name.replace("head.norm.", "layernorm.").replace("stem.0.", "embeddings.patch_embeddings.")
            name = name.replace("stem.1.", "embeddings.layernorm.").replace(".downsample.", ".downsampling_layer.")
            found["convnext." + name.replace("stages.", "encoder.stages.")] = tensor
    return found


def _swin(state):
    rules = {"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.output.dense",
             "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}  # fmt: skip
    found = {}
    for name, tensor in state.items():
        if told := re.fullmatch(r"(layers\.\d\.blocks\.\d)\.attn\.qkv\.(\w+)", name):
            words = ("query", "key", "value")
            found |= _split(name, tensor, words, f"swin.encoder.{told[1]}.attention.self.{{}}.{told[2]}")
        elif name.endswith("relative_position_bias_table"):
            found[f"swin.encoder.{name.replace('.attn.', '.attention.self.')}"] = tensor
        elif told := re.fullmatch(r"(layers\.\d\.blocks\.\d)\.(.*)\.(\w+)", name):
            found[f"swin.encoder.{told[1]}.{rules[told[2]]}.{told[3]}"] = tensor
        elif told := re.fullmatch(r"layers\.(\d)\.downsample\.(.*)", name):
            found[f"swin.encoder.layers.{int(told[1]) - 1}.downsample.{told[2]}"] = tensor
        else:
            name = name.replace("patch_embed.proj.", "embeddings.patch_embeddings.projection.")
            name = name.replace("patch_embed.norm.", "embeddings.norm.")
            found["swin." + re.sub(r"^norm\.", "layernorm.", name)] = tensor
    return found


def _same(backbone, network, *, size=224):
    images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, expected = backbone.module(images), network(images)
    assert found.std() > 1e-4
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def _same_weights(backbone, network):
    found, expected = backbone.module.state_dict(), network.state_dict()
    assert found.keys() == expected.keys()
    for name, one in expected.items():
        torch.testing.assert_close(found[name], one)


CASES = {
    "vit": ("vit_tiny_patch16_224", lambda state: _vit(state, new=False), HALF, "squash"),
    "vit in memory": ("vit_tiny_patch16_224", lambda state: _vit(state, new=True), HALF, "squash"),
    "resnet": ("resnet18", resnet_of_transformers, IMAGENET, "crop"),
    "convnext": ("convnext_tiny", _convnext, IMAGENET, "crop"),
    "swin": ("swin_tiny_patch4_window7_224", _swin, IMAGENET, "crop"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_model_of_transformers_gives_the_features_of_its_network(case, tmp_path):
    name, renamed, mean, fit = CASES[case]
    network = small_network(name)
    save_file(
        {key: one.contiguous().clone() for key, one in renamed(network.state_dict()).items()},
        tmp_path / "model.safetensors",
    )
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": case.split()[0], "architectures": ["X"], "image_size": 7})
    )
    backbone = load_backbone(str(tmp_path))
    assert backbone.name == name
    assert (backbone.preprocess.mean, backbone.preprocess.fit, backbone.preprocess.size) == (mean, fit, 224)
    assert "named as transformers names its layers" in backbone.notes
    _same(backbone, network)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"size": {"height": 256, "width": 256}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True, "resample": 3},
         (224, 0.875, "crop", "bicubic", IMAGENET)),
        ({"size": {"height": 224, "width": 224}, "resample": 2, "image_mean": HALF, "image_std": HALF},
         (224, 1.0, "squash", "bilinear", HALF)),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.95, "resample": 3}, (224, 0.95, "crop", "bicubic", IMAGENET)),
        ({"size": 224, "do_normalize": False}, (224, 1.0, "squash", "bilinear", (0.0, 0.0, 0.0))),
    ],
)  # fmt: skip
def test_the_preprocessor_beside_a_model_is_obeyed(told, expected, tmp_path):
    save_file(resnet_of_transformers(small_network("resnet18").state_dict()), tmp_path / "model.safetensors")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(told))
    found = load_backbone(str(tmp_path)).preprocess
    assert (found.size, found.crop, found.fit, found.interpolation, found.mean) == expected


@pytest.mark.parametrize(
    "text", ['{"size": 1e9, "image_mean": "x"}', '{"image_mean": [1e30, 0, 0]}', '{"size": {"height": 4000}}', "[", '{"a": NaN}']
)  # fmt: skip
def test_a_preprocessor_that_cannot_be_used_is_refused(text, tmp_path):
    save_file(resnet_of_transformers(small_network("resnet18").state_dict()), tmp_path / "model.safetensors")
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(BadWeights):
        load_backbone(str(tmp_path))


def _clip(state):
    """timm's names as transformers has CLIP's, with what belongs to texts."""
    outer = {"cls_token": "embeddings.class_embedding", "pos_embed": "embeddings.position_embedding.weight",
             "patch_embed.proj.weight": "embeddings.patch_embedding.weight"}  # fmt: skip
    found = {"logit_scale": torch.ones(()), "text_model.embeddings.token_embedding.weight": torch.zeros(5, 3),
             "visual_projection.weight": torch.zeros(3, 192)}  # fmt: skip
    for name, tensor in state.items():
        if told := re.fullmatch(r"blocks\.(\d+)\.attn\.qkv\.(\w+)", name):
            words = ("q_proj", "k_proj", "v_proj")
            found |= _split(name, tensor, words, f"vision_model.encoder.layers.{told[1]}.self_attn.{{}}.{told[2]}")
        elif told := re.fullmatch(r"blocks\.(\d+)\.(.*)", name):
            inner = told[2].replace("norm", "layer_norm").replace("attn.proj", "self_attn.out_proj")
            found[f"vision_model.encoder.layers.{told[1]}.{inner}"] = tensor
        else:
            plain = re.sub(r"^norm\.", "post_layernorm.", name).replace("norm_pre.", "pre_layrnorm.")
            shaped = tensor.flatten() if name == "cls_token" else tensor[0] if name == "pos_embed" else tensor
            found[f"vision_model.{outer.get(name, plain)}"] = shaped
    return found


def _openclip(state):
    found = {"positional_embedding": torch.zeros(5, 3), "text_projection": torch.zeros(3, 3), "logit_scale": torch.ones(()),
             "visual.proj": torch.zeros(192, 3), "transformer.resblocks.0.attn.in_proj_weight": torch.zeros(9, 3)}  # fmt: skip
    rules = [("blocks.", "transformer.resblocks."), (".norm", ".ln_"), ("attn.qkv.", "attn.in_proj_"), ("attn.proj", "attn.out_proj"),
             ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"), ("norm_pre", "ln_pre"), ("patch_embed.proj", "conv1"),
             ("pos_embed", "positional_embedding"), ("cls_token", "class_embedding")]  # fmt: skip
    for name, tensor in state.items():
        shaped = tensor.flatten() if name == "cls_token" else tensor[0] if name == "pos_embed" else tensor
        for before, after in rules:
            name = name.replace(before, after)
        found[f"visual.{re.sub('^norm', 'ln_post', name)}"] = shaped
    return found


QUICK, PLAIN = "vit_base_patch32_clip_quickgelu_224", "vit_base_patch32_clip_224"


@pytest.mark.parametrize(
    "name, renamed, config",
    [
        (QUICK, _clip, {"model_type": "clip"}),
        (QUICK, _clip, {"model_type": "clip_vision_model", "hidden_act": "quick_gelu"}),
        (PLAIN, _clip, {"model_type": "clip", "vision_config": {"hidden_act": "gelu"}}),
        (PLAIN, _openclip, {}),
    ],
)
def test_the_image_half_of_clip_gives_the_features_of_its_network(name, renamed, config, tmp_path):
    network = small_network(name)
    saved = {key: one.contiguous().clone() for key, one in renamed(network.state_dict()).items()}
    save_file(saved, tmp_path / "model.safetensors")
    if config:
        (tmp_path / "config.json").write_text(json.dumps(config))
    backbone = load_backbone(str(tmp_path))
    assert backbone.name == name
    assert backbone.preprocess.mean == pytest.approx((0.4815, 0.4578, 0.4082), abs=1e-3)
    assert (backbone.preprocess.size, backbone.preprocess.crop, backbone.preprocess.fit) == (224, 1.0, "crop")
    _same(backbone, network)


def test_a_clip_with_an_activation_that_timm_has_not_for_it_is_refused(tmp_path):
    state = {
        key: one.contiguous().clone()
        for key, one in _clip(small_network("vit_medium_patch16_clip_224").state_dict()).items()
    }
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(UnknownModel, match="activation"):
        load_backbone(str(tmp_path))


def test_a_model_of_transformers_that_is_not_read_is_named(tmp_path):
    save_file({f"pvt.layer.{n}.weight": torch.zeros(2) for n in range(20)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "pvt"}')
    with pytest.raises(UnknownModel, match=r"a pvt of transformers, which is not read; of those ViT, .*SigLIP, BEiT"):
        load_backbone(str(tmp_path))


def test_names_that_only_look_like_it_are_none():
    assert transformers_names.translated({"encoder.stages.0.layers.0.dwconv": torch.zeros(1)}) is None
    lone = {"encoder.layer.0.attention.attention.query.weight": torch.zeros(2, 2),
            "embeddings.patch_embeddings.projection.weight": torch.zeros(1)}  # fmt: skip
    assert transformers_names.translated(lone) is None


@pytest.mark.parametrize("marked", [False, True])
def test_dinov2_with_registers_of_transformers(marked, tmp_path):
    network = small_network("vit_small_patch14_reg4_dinov2")
    state = network.state_dict()
    state["pos_embed"] = torch.cat([torch.full((1, 1, 384), 0.25), state["pos_embed"]], 1)
    state["cls_token"] = state["cls_token"] - 0.25
    scales = {name: state.pop(name) for name in [*state] if name.endswith("gamma")}
    registers = state.pop("reg_token")
    plain = _vit(state, new=False, prefix="dinov2_with_registers.")
    renamed = {
        name.replace("layernorm_before", "norm1").replace("layernorm_after", "norm2"): one
        for name, one in plain.items()
    }
    renamed = {re.sub(r"intermediate\.dense", "mlp.fc1", name): one for name, one in renamed.items()}
    renamed = {re.sub(r"(layer\.\d+)\.output\.dense", r"\1.mlp.fc2", name): one for name, one in renamed.items()}
    for name, one in scales.items():
        told = re.fullmatch(r"blocks\.(\d+)\.ls(\d)\.gamma", name)
        renamed[f"dinov2_with_registers.encoder.layer.{told[1]}.layer_scale{told[2]}.lambda1"] = one
    renamed["dinov2_with_registers.embeddings.register_tokens"] = registers
    if marked:
        renamed["dinov2_with_registers.embeddings.mask_token"] = torch.zeros(1, 384)
    save_file({name: one.contiguous().clone() for name, one in renamed.items()}, tmp_path / "model.safetensors")
    backbone = load_backbone(str(tmp_path))
    assert backbone.name == "vit_small_patch14_reg4_dinov2" and backbone.preprocess.mean == IMAGENET
    _same_weights(backbone, network)


@pytest.mark.parametrize("registers", [False, True])
def test_dinov2_as_its_authors_keep_it(registers, tmp_path):
    network = small_network("vit_small_patch14_reg4_dinov2" if registers else "vit_small_patch14_dinov2")
    state = {**network.state_dict(), "mask_token": torch.zeros(1, 384)}
    if registers:
        state["register_tokens"] = state.pop("reg_token")
        state["pos_embed"] = torch.cat([torch.full((1, 1, 384), 0.25), state["pos_embed"]], 1)
        state["cls_token"] = state["cls_token"] - 0.25
    torch.save(state, tmp_path / "dinov2.pth")
    backbone = load_backbone(str(tmp_path / "dinov2.pth"), image_size=98)
    assert backbone.preprocess.mean == IMAGENET
    full = load_backbone(str(tmp_path / "dinov2.pth"))
    _same_weights(full, network)
    if registers:  # once, for images of 518 pixels take their time
        _same(full, network, size=518)


@pytest.mark.parametrize(
    ("file", "wrapped", "mean"),
    [
        ("dino_deitsmall16_pretrain.pth", lambda state: state, IMAGENET),
        ("mae_pretrain_vit_small.pth", lambda state: {"model": state}, IMAGENET),
        ("a.pth", lambda state: {"teacher": {f"backbone.{key}": one for key, one in state.items()}}, IMAGENET),
        ("a.pth", lambda state: {"model": state, "args": Namespace(arch="vit_small")}, IMAGENET),
        ("a.pth", lambda state: {"model": state}, HALF),
        ("dinosaurs.pth", lambda state: state, HALF),
    ],
)
def test_plain_transformers_of_dino_and_the_like_saw_imagenets_colours(file, wrapped, mean, tmp_path):
    torch.save(wrapped(small_network("vit_small_patch16_224").state_dict()), tmp_path / file)
    assert load_backbone(str(tmp_path / file)).preprocess.mean == mean


@pytest.mark.parametrize("name", ["efficientnet_v2_s", "swin_t", "vit_b_32"])
def test_torchvisions_networks_see_images_as_torchvision_prepares_them(name, tmp_path):
    with torch.device("meta"):
        shapes = torchvision.models.get_model(name).state_dict()
    torch.save({key: torch.zeros(one.shape, dtype=one.dtype) for key, one in shapes.items()}, tmp_path / "best.pth")
    found = load_backbone(str(tmp_path / "best.pth")).preprocess
    wanted = next(iter(torchvision.models.get_model_weights(name))).transforms()
    assert found.size == wanted.crop_size[0]
    assert found.crop == pytest.approx(wanted.crop_size[0] / wanted.resize_size[0])
    assert found.interpolation == wanted.interpolation.value


def _fastais_head():
    layers = [
        nn.BatchNorm1d(1024),
        nn.Linear(1024, 512, bias=False),
        nn.BatchNorm1d(512),
        nn.Linear(512, 5, bias=False),
    ]
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), *layers)


@pytest.mark.parametrize("kind", ["row", "row with a head", "lightning", "fastai"])
def test_a_resnet_without_its_names_is_known(kind, tmp_path):
    network = small_network("resnet18")
    children = [
        network.conv1,
        network.bn1,
        network.act1,
        network.maxpool,
        *(getattr(network, f"layer{n}") for n in range(1, 5)),
    ]
    row = nn.Sequential(*children)
    if kind == "row with a head":
        saved = nn.Sequential(*children, nn.AdaptiveAvgPool2d(1), nn.Linear(512, 4)).state_dict()
    elif kind == "lightning":
        saved = {"state_dict": {f"feature_extractor.{key}": one for key, one in row.state_dict().items()}}
    elif kind == "fastai":
        saved = {"model": nn.Sequential(row, _fastais_head()).state_dict(), "opt": {}}
    else:
        saved = row.state_dict()
    torch.save(saved, tmp_path / "m.pth")
    backbone = load_backbone(str(tmp_path / "m.pth"))
    assert backbone.name == "resnet18"
    _same(backbone, network)
