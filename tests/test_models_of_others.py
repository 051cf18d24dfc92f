"""Files of networks that other libraries build on those we know: what was changed about them is obeyed, or said."""

from __future__ import annotations

import json
import re

import pytest
import timm
import torch
from networks import images, seen, settled
from timm.models.byobnet import checkpoint_filter_fn

from burnish.backbones import file_images
from burnish.backbones.reading import authors, recognise
from burnish.backbones.transformers import clip, openclip
from burnish.backbones.zoo import load_backbone
from burnish.errors import UnknownModel

torch.set_num_threads(1)


# ---- efficientnet_pytorch --------------------------------------------------------------------------------------------


def as_efficientnet_pytorch(state):
    """timm's tensors of an EfficientNet-B0 under the names of efficientnet_pytorch."""
    outer = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
    inner = {"conv_dw": "_depthwise_conv", "se.conv_reduce": "_se_reduce", "se.conv_expand": "_se_expand"}
    first = {**inner, "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
    rest = {
        **inner,
        "conv_pw": "_expand_conv",
        "bn1": "_bn0",
        "bn2": "_bn1",
        "conv_pwl": "_project_conv",
        "bn3": "_bn2",
    }
    begins, found = (0, 1, 3, 5, 8, 11, 15), {}
    for name, tensor in state.items():
        parts = name.split(".")
        if parts[0] == "blocks":
            block = begins[int(parts[1])] + int(parts[2])
            layer = (rest if int(parts[1]) else first)[".".join(parts[3:-1])]
            found[f"_blocks.{block}.{layer}.{parts[-1]}"] = tensor
        else:
            found[f"{outer[parts[0]]}.{parts[1]}"] = tensor
    return found


@pytest.mark.parametrize("arch", [None, "tf_efficientnet_b0"])
@pytest.mark.parametrize("prefix", ["", "module.", "encoder."])
def test_the_efficientnets_of_efficientnet_pytorch_are_read_with_the_padding_of_theirs(arch, prefix, tmp_path):
    torch.manual_seed(0)
    network = settled(timm.create_model("tf_efficientnet_b0", num_classes=7))
    state = as_efficientnet_pytorch(network.state_dict())
    decoder = {f"decoder.blocks.{number}.conv.weight": torch.rand(3, 3, 3, 3) for number in range(9)}
    beside = decoder if prefix == "encoder." else {}
    torch.save({**{f"{prefix}{name}": one for name, one in state.items()}, **beside}, tmp_path / "a.pth")
    backbone, given = load_backbone(str(tmp_path / "a.pth"), arch=arch), images(64)
    expected = seen(lambda given: network.forward_head(network.forward_features(given), pre_logits=True), given)
    torch.testing.assert_close(seen(backbone.module, given), expected, rtol=1e-4, atol=1e-5)


# ---- OpenCLIP --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", [None, "convnext_atto"])
def test_a_convnext_of_openclip_is_read_and_sees_the_colours_of_clip(arch, tmp_path):
    torch.manual_seed(0)
    network = timm.create_model("convnext_atto", num_classes=0).eval()
    texts = {
        "logit_scale": torch.tensor(1.0),
        "text_projection": torch.rand(3, 3),
        "visual.head.proj.weight": torch.rand(3, 3),
    }
    state = {**texts, **{f"visual.trunk.{name}": one for name, one in network.state_dict().items()}}
    torch.save(state, tmp_path / "a.pt")
    backbone, given = load_backbone(str(tmp_path / "a.pt"), arch=arch), images()
    torch.testing.assert_close(seen(backbone.module, given), seen(network, given))
    assert backbone.preprocess.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    assert backbone.preprocess.crop == 1.0 and any("OpenCLIP's image half" in note for note in backbone.notes)


# How open_clip_torch 3.3.0 prepares the images of its own weights (its table of them): mean, std, fit, interpolation.
OPENCLIPS = {
    "vit_pe_core_tiny_patch16_384": (0.5, 0.5, "squash", "bilinear"),
    "vit_base_patch16_siglip_224": (0.5, 0.5, "squash", "bicubic"),
    "vit_base_mci_224": (0.0, 1.0, "center", "bilinear"),
    "fastvit_mci0": (0.0, 1.0, "center", "bilinear"),
    "fastvit_mci3": (0.48145466, 0.26862954, "center", "bilinear"),
    "eva02_base_patch16_clip_224": (0.48145466, 0.26862954, "center", "bicubic"),
    "vitamin_small_224": (0.48145466, 0.26862954, "center", "bicubic"),
}


@pytest.mark.parametrize("name", OPENCLIPS)
def test_image_halves_of_openclip_that_are_timms_are_told_and_see_what_they_were_taught_on(name):
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=0 if "siglip" in name else 8)
    state = {f"visual.trunk.{key}": one for key, one in network.state_dict().items()}
    found = openclip.trunk([{**state, "logit_scale": torch.tensor(1.0)}])
    assert found is not None and openclip.trunk([state]) is None
    shapes = {key: tuple(one.shape) for key, one in found.items()}
    assert recognise.recognised_without_head(shapes, file_images.HEADS) == [name]
    how = openclip.images_of(name, {})
    said = (how["mean"][0], how["std"][0], how["crop_mode"], how["interpolation"])
    assert said == OPENCLIPS[name] and how["crop_pct"] == 1.0


def test_such_an_image_half_gives_what_it_gives_there_before_its_projection(tmp_path):
    torch.manual_seed(0)
    network = settled(timm.create_model("fastvit_mci0", num_classes=8))
    state = {f"module.visual.trunk.{key}": one for key, one in network.state_dict().items()}
    torch.save({"state_dict": {**state, "module.logit_scale": torch.tensor(1.0)}, "epoch": 3}, tmp_path / "epoch_3.pt")
    backbone, given = load_backbone(str(tmp_path / "epoch_3.pt")), images(64)
    expected = seen(lambda given: network.forward_head(network.forward_features(given), pre_logits=True), given)
    torch.testing.assert_close(seen(backbone.module, given), expected, rtol=1e-4, atol=1e-5)
    assert (backbone.name, backbone.preprocess.size, backbone.preprocess.mean[0]) == ("fastvit_mci0", 256, 0.0)
    assert any("as OpenCLIP prepares those of its own weights" in note for note in backbone.notes)


def test_what_openclip_says_of_images_beside_the_file_is_obeyed(tmp_path):
    state = timm.create_model("convnext_atto", num_classes=0).state_dict()
    torch.save(
        {**{f"visual.trunk.{name}": one for name, one in state.items()}, "logit_scale": torch.tensor(1.0)},
        tmp_path / "a.pt",
    )
    told = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5], "interpolation": "bilinear", "resize_mode": "squash"}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {}, "preprocess_cfg": told}))
    backbone = load_backbone(str(tmp_path / "a.pt"))
    how = backbone.preprocess
    assert (how.mean, how.std, how.fit, how.interpolation) == ((0.1, 0.2, 0.3), (0.5,) * 3, "squash", "bilinear")
    assert any("as its config says" in note for note in backbone.notes)


@pytest.mark.parametrize("arch", [None, "vit_base_patch32_clip_224"])
@pytest.mark.parametrize(
    ("odd", "sentence"),
    [
        (
            {"visual.attn_pool.query": torch.rand(256, 8), "visual.ln_pre.weight": torch.rand(8)},
            "CoCa of OpenCLIP, .* 256 queries",
        ),
        ({"visual.ln_post.weight": torch.rand(8)}, "CLIPA of OpenCLIP, .*ln_pre"),
    ],
)
def test_image_halves_of_openclip_that_pool_otherwise_are_refused_by_name_and_not_read_as_a_clip(
    odd, sentence, arch, tmp_path
):
    state = {"visual.class_embedding": torch.rand(8), "visual.conv1.weight": torch.rand(8, 3, 4, 4)}
    torch.save({f"module.{name}": one for name, one in {**state, **odd}.items()}, tmp_path / "a.pt")
    with pytest.raises(UnknownModel, match=sentence):
        load_backbone(str(tmp_path / "a.pt"), arch=arch)


def renamed(state, rules):
    """The tensors under the names that patterns and what they become, one after the other, make of theirs."""
    found = {}
    for name, one in state.items():
        for pattern, new in rules:
            name = re.sub(pattern, new, name)
        found[name] = one
    return found


# ---- OpenCLIP, by what tells of it -------------------------------------------------------------------------------------


def as_openclips_resnet(state):
    """timm's tensors of a CLIP ResNet under OpenCLIP's names."""
    rules = [
        (r"^stem\.conv(\d)\.(conv|bn)\.", r"\2\1."),
        (r"\.conv(\d)_\w+\.(conv|bn)\.", r".\2\1."),
        (r"\.shortcut\.conv\.(conv|bn)\.", lambda told: f".downsample.{int(told[1] == 'bn')}."),
        (r"^stages\.(\d)\.", lambda told: f"layer{int(told[1]) + 1}."),
        (r"^head\.pos_embed", "attnpool.positional_embedding"),
        (r"^head\.([qkv])\.", r"attnpool.\1_proj."),
        (r"^head\.proj\.", "attnpool.c_proj."),
    ]
    return renamed(state, rules)


@pytest.mark.parametrize("prefix", ["", "visual."])
def test_a_resnet_of_openclip_is_told_by_its_tensors_and_named_as_timm_names_it(prefix):
    with torch.device("meta"):
        network = timm.create_model("resnet50_clip", num_classes=1024)
    state = {f"{prefix}{name}": one for name, one in as_openclips_resnet(network.state_dict()).items()}
    state |= {"logit_scale": torch.tensor(1.0)} if prefix else {}
    found = clip.translated(state)
    expected = {name: one for name, one in network.state_dict().items() if not name.startswith("head.proj.")}
    assert found is not None and found.keys() == expected.keys()
    assert all(found[name].shape == one.shape for name, one in expected.items())
    names = recognise.recognised({name: tuple(one.shape) for name, one in found.items()})
    assert clip.chosen(names, openclip.told_by({"model_cfg": {"quick_gelu": True}})) == "resnet50_clip"
    theirs = checkpoint_filter_fn({f"visual.{name.removeprefix(prefix)}": one for name, one in state.items()}, network)
    assert all(theirs[name] is one for name, one in found.items())


def test_the_activation_of_a_clip_is_read_beside_it_and_said_where_it_is_only_taken_to_be_so():
    pair = ["vit_base_patch32_clip_224", "vit_base_patch32_clip_quickgelu_224"]
    assert [
        clip.chosen(pair, openclip.told_by({"model_cfg": {"quick_gelu": quick}})) for quick in (False, True)
    ] == pair
    assert f"--arch {pair[1]}" in clip.activation_taken(pair[0])
    assert clip.activation_taken(pair[1]) == clip.activation_taken("resnet50_clip") == ""


# ---- MoCo v3 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", [None, "vit_small_patch16_224"])
@pytest.mark.parametrize("kind", ["two encoders", "one after training"])
def test_the_small_transformer_of_moco_v3_has_its_twelve_heads_and_saw_imagenets_colours(kind, arch, tmp_path):
    torch.manual_seed(0)
    network = timm.create_model("vit_small_patch16_224", num_classes=0, num_heads=12).eval()
    state = {name: one + 0.1 * torch.randn_like(one) for name, one in network.state_dict().items()}
    network.load_state_dict(state)
    if kind == "two encoders":
        twins = {"base_encoder": state, "momentum_encoder": {name: one + 1.0 for name, one in state.items()}}
        state = {f"module.{word}.{name}": one for word, held in twins.items() for name, one in held.items()}
        state["module.base_encoder.head.0.weight"] = torch.rand(8, 384)
    saved = {"state_dict": state, "epoch": 300} | ({"arch": "vit_small"} if kind == "one after training" else {})
    torch.save(saved, tmp_path / "a.pth.tar")
    backbone, given = load_backbone(str(tmp_path / "a.pth.tar"), arch=arch), images(224)
    torch.testing.assert_close(seen(backbone.module, given), seen(network, given), rtol=1e-4, atol=1e-5)
    assert arch or backbone.preprocess.mean == pytest.approx((0.485, 0.456, 0.406))
    assert any("12 heads" in note for note in backbone.notes)


# ---- ConvNeXt and Swin as their authors keep them ------------------------------------------------------------------------


def as_authors_convnext(state):
    rules = [
        (r"^stem\.", "downsample_layers.0."),
        (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
        (r"\.blocks\.(\d+)\.", r".\1."),
        (r"\.conv_dw\.", ".dwconv."),
        (r"\.mlp\.grn\.weight", ".grn.gamma"),
        (r"\.mlp\.grn\.bias", ".grn.beta"),
        (r"\.mlp\.fc", ".pwconv"),
        (r"^head\.norm\.", "norm."),
        (r"^head\.fc\.", "head."),
    ]
    found = renamed(state, rules)
    return {name: one[None, None, None] if ".grn." in name else one for name, one in found.items()}


def as_authors_swin(state):
    found = {}
    for name, one in state.items():
        name = re.sub(r"^layers\.(\d)\.downsample", lambda told: f"layers.{int(told[1]) - 1}.downsample", name)
        found[name.replace("head.fc.", "head.")] = one
    tables = [name for name in found if name.endswith("bias_table")]
    index = {name.replace("bias_table", "index"): torch.zeros(49, 49, dtype=torch.int64) for name in tables}
    return {**found, **index, "layers.0.blocks.1.attn_mask": torch.zeros(64, 49, 49)}


def as_authors_mobileone(state):
    """As Apple's files have it, and as an encoder of segmentation_models_pytorch 0.6.0 has it."""
    rules = [
        (r"^stem\.", "stage0."),
        (r"^stages\.(\d)\.", lambda told: f"stage{int(told[1]) + 1}."),
        (r"\.conv_kxk\.", ".rbr_conv."),
        (r"\.conv_scale\.", ".rbr_scale."),
        (r"\.identity\.", ".rbr_skip."),
        (r"\.attn\.fc1\.", ".se.reduce."),
        (r"\.attn\.fc2\.", ".se.expand."),
        (r"^head\.fc\.", "linear."),
    ]
    return renamed(state, rules)


@pytest.mark.parametrize("name", ["mobileone_s0", "mobileone_s4"])
def test_a_mobileone_has_the_names_of_its_authors_files_in_both_directions(name):
    with torch.device("meta"):
        state = timm.create_model(name, num_classes=7).state_dict()
    spelled = as_authors_mobileone(state)
    assert not spelled.keys() & state.keys() and authors.translated(spelled) == (state, {})


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize(
    ("name", "spelled", "size"),
    [
        ("convnext_atto", as_authors_convnext, 64),
        ("convnextv2_atto", as_authors_convnext, 64),
        ("swin_tiny_patch4_window7_224", as_authors_swin, 224),
        ("mobileone_s1", as_authors_mobileone, 64),
    ],
)
def test_a_network_is_read_as_its_authors_keep_it(name, spelled, size, named, tmp_path):
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=7).eval()
    changed = {key: one + 0.1 * torch.randn_like(one) for key, one in network.named_parameters()}
    state = {**network.state_dict(), **{key: one.detach() for key, one in changed.items()}}
    network.load_state_dict(state)
    torch.save({"model": spelled(state)}, tmp_path / "a.pth")
    backbone, given = load_backbone(str(tmp_path / "a.pth"), arch=name if named else None), images(size)
    expected = seen(lambda given: network.forward_head(network.forward_features(given), pre_logits=True), given)
    torch.testing.assert_close(seen(backbone.module, given), expected, rtol=1e-4, atol=1e-5)
    assert backbone.name == name and not any("missing" in note for note in backbone.notes)
    assert backbone.preprocess.crop == timm.data.resolve_data_config({}, model=network)["crop_pct"]


@pytest.mark.parametrize("name", ["inception_next_atto", "cpubone_nano"])
def test_a_network_whose_head_keeps_layers_of_its_own_is_told_with_its_classifier(name, tmp_path):
    torch.manual_seed(0)
    network = settled(timm.create_model(name, num_classes=7))
    torch.save({f"module.{key}": one for key, one in network.state_dict().items()}, tmp_path / "a.pth")
    backbone, given = load_backbone(str(tmp_path / "a.pth")), images(64)
    expected = seen(lambda given: network.forward_head(network.forward_features(given), pre_logits=True), given)
    torch.testing.assert_close(seen(backbone.module, given), expected, rtol=1e-4, atol=1e-5)
    assert backbone.name == name
