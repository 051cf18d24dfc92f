"""Files of networks that other libraries build on those we know: what was changed about them is obeyed, or said."""

from __future__ import annotations

import json
import re

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from timm.models.byobnet import checkpoint_filter_fn
from torch import nn
from torch.nn.utils import prune

from burnish.backbones.architectures import architecture_for_bundle, rebuild
from burnish.backbones.fast.frozen import fold_for_inference
from burnish.backbones.reading import recognise
from burnish.backbones.transformers import clip
from burnish.backbones.zoo import load_backbone
from burnish.errors import BadWeights, UnknownModel

torch.set_num_threads(1)


def settled(network):
    """In eval mode, its statistics as after training."""
    draws = torch.Generator().manual_seed(7)
    for name, buffer in network.named_buffers():
        if name.endswith("running_var"):
            buffer.copy_(torch.rand(buffer.shape, generator=draws) + 0.5)
        elif name.endswith("running_mean"):
            buffer.copy_(torch.randn(buffer.shape, generator=draws) * 0.1)
    return network.eval()


def images(size=32):
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def seen(module, given):
    with torch.no_grad():
        return module(given)


# ---- networks that segment -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["fcn_resnet50", "deeplabv3_resnet50"])
def segmenting(request):
    torch.manual_seed(0)
    options = {"weights": None, "weights_backbone": None, "aux_loss": True}
    return settled(torchvision.models.get_model(request.param, **options))


def test_a_resnet_that_was_made_to_segment_is_dilated_as_it_was(segmenting, tmp_path):
    torch.save(segmenting.state_dict(), tmp_path / "a.pth")
    backbone, given = load_backbone(str(tmp_path / "a.pth")), images()
    expected = seen(segmenting.backbone, given)["out"].mean((2, 3))
    torch.testing.assert_close(seen(backbone.module, given), expected)
    torch.testing.assert_close(seen(fold_for_inference(backbone.module, given), given), expected, rtol=1e-3, atol=1e-4)
    assert any("dilated, as it was made to segment" in note for note in backbone.notes)
    again = rebuild(architecture_for_bundle(backbone))
    again.load_state_dict(backbone.module.state_dict())
    torch.testing.assert_close(seen(again, given), expected)


def test_one_that_is_named_is_read_as_named_and_said_to_be_made_otherwise(segmenting, tmp_path):
    torch.save(segmenting.state_dict(), tmp_path / "a.pth")
    backbone = load_backbone(str(tmp_path / "a.pth"), arch="resnet50")
    assert backbone.architecture["kwargs"] == {}
    assert any("was made to segment" in note and "read without" in note for note in backbone.notes)


@pytest.mark.parametrize(
    "head", ["decoder.aspp.convs.0.0.weight", "decoder.fpa.mid.0.conv.weight", "decode_head.a.weight"]
)
def test_a_network_beside_another_head_for_segmentation_is_said_to_be_read_without_dilation(head, tmp_path):
    state = torchvision.models.resnet18().state_dict()
    place = "backbone." if head.startswith("decode_") else "encoder."
    torch.save({**{f"{place}{name}": one for name, one in state.items()}, head: torch.rand(3, 3)}, tmp_path / "a.pth")
    backbone = load_backbone(str(tmp_path / "a.pth"))
    assert any("was made to segment" in note and "read without" in note for note in backbone.notes)


@pytest.mark.parametrize("beside", ["classifier.0.weight", "decoder.blocks.0.conv1.0.weight"])
def test_a_network_beside_what_is_never_dilated_is_read_without_a_word_of_it(beside, tmp_path):
    state = torchvision.models.resnet18().state_dict()
    torch.save(
        {**{f"encoder.{name}": one for name, one in state.items()}, beside: torch.rand(3, 3)}, tmp_path / "a.pth"
    )
    assert not any("segment" in note for note in load_backbone(str(tmp_path / "a.pth")).notes)


# ---- ResNets for small images ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", [None, "resnet18"])
@pytest.mark.parametrize("words", [("downsample", "fc"), ("shortcut", "linear")], ids=["torchvision", "others"])
@pytest.mark.parametrize("prefix", ["", "model.backbone."])
def test_a_resnet_with_the_first_layer_of_cifar_is_read_with_it(arch, words, prefix, tmp_path):
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=10)
    network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    state = settled(network).state_dict()
    spelled = {name.replace("downsample", words[0]).replace("fc.", f"{words[1]}."): one for name, one in state.items()}
    torch.save({f"{prefix}{name}": one for name, one in spelled.items()}, tmp_path / "a.pth")
    network.fc = nn.Identity()
    backbone = load_backbone(str(tmp_path / "a.pth"), arch=arch)
    assert (backbone.name, backbone.preprocess.size) == ("resnet18", 32)
    torch.testing.assert_close(seen(backbone.module, images()), seen(network, images()))
    again = rebuild(architecture_for_bundle(backbone))
    again.load_state_dict(backbone.module.state_dict())
    torch.testing.assert_close(seen(again, images()), seen(network, images()))


def test_such_a_file_does_not_make_another_network_of_the_one_that_is_named(tmp_path):
    network = torchvision.models.resnet18()
    network.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    torch.save(network.state_dict(), tmp_path / "a.pth")
    with pytest.raises(UnknownModel, match="no first layer of 7 × 7"):
        load_backbone(str(tmp_path / "a.pth"), arch="test_vit")


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


# ---- weights in several files ----------------------------------------------------------------------------------------


def in_parts(folder, state, **index):
    """The weights as transformers saves large ones."""
    names = list(state)
    parts = {"model-00001-of-00002.safetensors": names[:50], "model-00002-of-00002.safetensors": names[50:]}
    for file, held in parts.items():
        save_file({name: state[name].clone() for name in held}, folder / file)
    told = {name: file for file, held in parts.items() for name in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {**told, **index}}))


def test_weights_in_several_files_are_read_as_one(tmp_path):
    torch.manual_seed(0)
    network = settled(timm.create_model("resnet10t", num_classes=0))
    in_parts(tmp_path, network.state_dict())
    torch.save({"lr": 0.1}, tmp_path / "training_args.bin")
    backbone = load_backbone(str(tmp_path))
    torch.testing.assert_close(seen(backbone.module, images()), seen(network, images()))
    assert len(backbone.sha256) == 64


@pytest.mark.parametrize(
    ("index", "sentence"),
    [
        ({"a": "../model.safetensors"}, "does not say in which"),
        ({"a": "/etc/model.safetensors"}, "does not say in which"),
        ({"a": "model.bin"}, "does not say in which"),
        ({"a": 3}, "does not say in which"),
        ({"a": "model-00001-of-00002.safetensors"}, "are not in its files"),
        ({"a": "model-00003-of-00003.safetensors"}, "no such file"),
    ],
)
def test_an_index_that_names_what_is_not_there_or_lies_elsewhere_is_refused(index, sentence, tmp_path):
    in_parts(tmp_path, timm.create_model("resnet10t", num_classes=0).state_dict(), **index)
    with pytest.raises(BadWeights, match=sentence):
        load_backbone(str(tmp_path))


# ---- networks that give maps ------------------------------------------------------------------------------------------


def mean_of_last_map(network, given):
    last = seen(network, given)[-1]
    return last.mean((1, 2) if last.shape[1] == last.shape[2] else (2, 3))


@pytest.mark.parametrize(
    ("name", "size", "named", "prefix"),
    [
        *(("test_efficientnet", 64, named, prefix) for named in (False, True) for prefix in ("", "encoder.model.")),
        ("mobilenetv3_small_050", 64, True, ""),
        ("mobilenetv3_small_050", 64, False, "encoder.model."),
        ("mobilenetv4_conv_small_035", 64, False, ""),
        ("test_convnext", 64, True, "encoder.model."),
        ("test_convnext", 64, False, ""),
        ("densenet121", 64, False, ""),
        ("swin_tiny_patch4_window7_224", 224, False, ""),
    ],
)
def test_a_network_that_timm_made_to_give_maps_is_read_up_to_the_last_of_them(name, size, named, prefix, tmp_path):
    torch.manual_seed(0)
    network = settled(timm.create_model(name, features_only=True))
    beside = {f"decoder.blocks.{number}.weight": torch.rand(3, 3) for number in range(40)} if prefix else {}
    torch.save({**{f"{prefix}{key}": one for key, one in network.state_dict().items()}, **beside}, tmp_path / "a.pth")
    backbone, given = load_backbone(str(tmp_path / "a.pth"), arch=name if named else None), images(size)
    torch.testing.assert_close(seen(backbone.module, given), mean_of_last_map(network, given), rtol=1e-4, atol=1e-5)
    assert not any("random" in note for note in backbone.notes)
    again = rebuild(architecture_for_bundle(backbone), width=backbone.width)
    again.load_state_dict(backbone.module.state_dict())
    torch.testing.assert_close(seen(again, given), seen(backbone.module, given))


def test_a_network_whose_last_kernel_is_missing_is_refused_however_much_else_is_there(tmp_path):
    state = timm.create_model("hgnet_tiny", num_classes=0).state_dict()
    del state["head.last_conv.0.weight"]
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(BadWeights, match=r"190 of 191 tensors match.*head\.last_conv"):
        load_backbone(str(tmp_path / "a.pth"), arch="hgnet_tiny")


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


# ---- weights in parts -------------------------------------------------------------------------------------------------

NORMED = {
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "weight_norm": nn.utils.weight_norm,
    "weight_norm of all at once": lambda layer: nn.utils.weight_norm(layer, dim=None),
    "weight_norm as a parametrization": nn.utils.parametrizations.weight_norm,
    "spectral_norm": nn.utils.spectral_norm,
    "spectral_norm as a parametrization": nn.utils.parametrizations.spectral_norm,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
@pytest.mark.parametrize("arch", [None, "resnet18"])
@pytest.mark.parametrize("how", NORMED)
def test_weights_in_parts_are_put_together_as_the_network_would(how, arch, tmp_path):
    torch.manual_seed(0)
    network = settled(torchvision.models.resnet18(num_classes=7))
    for layer in (network.conv1, network.layer1[0].conv2, network.layer4[1].conv1):
        NORMED[how](layer)
    network.eval()
    torch.save({f"module.{name}": one for name, one in network.state_dict().items()}, tmp_path / "a.pth")
    network.fc = nn.Identity()
    backbone = load_backbone(str(tmp_path / "a.pth"), arch=arch)
    torch.testing.assert_close(seen(backbone.module, images()), seen(network, images()), rtol=1e-4, atol=1e-5)


def test_a_parametrization_of_ones_own_is_not_guessed_at(tmp_path):
    class Doubled(nn.Module):
        def forward(self, given):
            return 2 * given

    network = torchvision.models.resnet18()
    nn.utils.parametrize.register_parametrization(network.conv1, "weight", Doubled())
    torch.save(network.state_dict(), tmp_path / "a.pth")
    with pytest.raises(BadWeights, match=r"holds conv1\.weight in parts"):
        load_backbone(str(tmp_path / "a.pth"), arch="resnet18")


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("arch", [None, "test_vit"])
def test_a_lora_of_peft_is_to_be_merged_first_and_not_left_out(whole, arch, tmp_path):
    state, lora = timm.create_model("test_vit", num_classes=0).state_dict(), {}
    for name in [one for one in state if one.endswith("attn.qkv.weight")]:
        layer = name.removesuffix(".weight")
        adapter = ".default" if whole else ""
        lora |= {f"{layer}.lora_{side}{adapter}.weight": torch.rand(4, 4) for side in "AB"}
    if whole:
        lora |= {name.replace(".qkv.", ".qkv.base_layer."): one for name, one in state.items()}
    save_file({f"base_model.model.{name}": one for name, one in lora.items()}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8}))
    with pytest.raises(BadWeights, match=r"holds a LoRA .*merge_and_unload"):
        load_backbone(str(tmp_path), arch=arch)


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
    found = {}
    for name, one in state.items():
        for pattern, new in rules:
            name = re.sub(pattern, new, name)
        found[name] = one
    return found


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
    assert clip.chosen(names, clip.told_by({"model_cfg": {"quick_gelu": True}})) == "resnet50_clip"
    theirs = checkpoint_filter_fn({f"visual.{name.removeprefix(prefix)}": one for name, one in state.items()}, network)
    assert all(theirs[name] is one for name, one in found.items())


def test_the_activation_of_a_clip_is_read_beside_it_and_said_where_it_is_only_taken_to_be_so():
    pair = ["vit_base_patch32_clip_224", "vit_base_patch32_clip_quickgelu_224"]
    assert [clip.chosen(pair, clip.told_by({"model_cfg": {"quick_gelu": quick}})) for quick in (False, True)] == pair
    assert f"--arch {pair[1]}" in clip.activation_taken(pair[0])
    assert clip.activation_taken(pair[1]) == clip.activation_taken("resnet50_clip") == ""


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
    found = {}
    for name, one in state.items():
        for pattern, new in rules:
            name = re.sub(pattern, new, name)
        found[name] = one[None, None, None] if ".grn." in name else one
    return found


def as_authors_swin(state):
    found = {}
    for name, one in state.items():
        name = re.sub(r"^layers\.(\d)\.downsample", lambda told: f"layers.{int(told[1]) - 1}.downsample", name)
        found[name.replace("head.fc.", "head.")] = one
    tables = [name for name in found if name.endswith("bias_table")]
    index = {name.replace("bias_table", "index"): torch.zeros(49, 49, dtype=torch.int64) for name in tables}
    return {**found, **index, "layers.0.blocks.1.attn_mask": torch.zeros(64, 49, 49)}


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize(
    ("name", "spelled", "size"),
    [
        ("convnext_atto", as_authors_convnext, 64),
        ("convnextv2_atto", as_authors_convnext, 64),
        ("swin_tiny_patch4_window7_224", as_authors_swin, 224),
    ],
)
def test_a_network_is_read_as_its_authors_keep_it(name, spelled, size, named, tmp_path):
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=7).eval()
    state = {key: one + 0.1 * torch.randn_like(one) for key, one in network.state_dict().items()}
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


@pytest.mark.parametrize("key", ["cfg", "config"])
def test_a_resnet_in_the_style_of_caffe_is_refused_and_not_read_as_the_usual_one(key, tmp_path):
    state = {f"backbone.{name}": one for name, one in torchvision.models.resnet18().state_dict().items()}
    for style in ("pytorch", "caffe"):
        meta = {key: f"model = dict(backbone=dict(type='ResNet', depth=18, style='{style}'))"}
        torch.save({"meta": meta, "state_dict": state}, tmp_path / f"{style}.pth")
    assert load_backbone(str(tmp_path / "pytorch.pth")).name == "resnet18"
    with pytest.raises(BadWeights, match=r"style='caffe'.*style='pytorch'"):
        load_backbone(str(tmp_path / "caffe.pth"))
