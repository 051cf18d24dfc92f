"""Files of networks that were built otherwise than usual: for maps, for small images, in another style: obeyed, or said."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from networks import images, seen, settled
from torch import nn

from burnish.backbones.architectures import architecture_for_bundle, rebuild
from burnish.backbones.fast.frozen import fold_for_inference
from burnish.backbones.zoo import load_backbone
from burnish.errors import BadWeights, UnknownModel

torch.set_num_threads(1)


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
    "head",
    [
        "decoder.aspp.convs.0.0.weight",
        "decoder.fpa.mid.0.conv.weight",
        "decode_head.a.weight",
        "classifier.aspp.convs.0.0.weight",
        "aspp.aspp1.atrous_conv.weight",
    ],
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


def test_a_network_that_was_padded_otherwise_to_segment_is_refused_unless_it_is_named(tmp_path):
    state = timm.create_model("legacy_xception").state_dict()
    beside = {"segmentation_head.0.weight": torch.rand(1, 16, 3, 3), "segmentation_head.0.bias": torch.rand(1)}
    torch.save({**{f"encoder.{name}": one for name, one in state.items()}, **beside}, tmp_path / "a.pth")
    with pytest.raises(UnknownModel, match=r"segmentation_models_pytorch pads it otherwise.*--arch legacy_xception"):
        load_backbone(str(tmp_path / "a.pth"))
    notes = load_backbone(str(tmp_path / "a.pth"), arch="legacy_xception").notes
    assert any("its features differ" in note for note in notes)


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
        ("hgnet_tiny", 64, False, ""),
        ("hgnetv2_b0", 64, True, ""),
        ("fastvit_t8", 64, False, "encoder.model."),
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
    state = timm.create_model("lcnet_035", num_classes=0).state_dict()
    del state["conv_head.weight"]
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(BadWeights, match=r"144 of 145 tensors match.*conv_head\.weight"):
        load_backbone(str(tmp_path / "a.pth"), arch="lcnet_035")


# ---- ResNets in the style of Caffe --------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["cfg", "config"])
def test_a_resnet_in_the_style_of_caffe_is_refused_and_not_read_as_the_usual_one(key, tmp_path):
    state = {f"backbone.{name}": one for name, one in torchvision.models.resnet18().state_dict().items()}
    for style in ("pytorch", "caffe"):
        meta = {key: f"model = dict(backbone=dict(type='ResNet', depth=18, style='{style}'))"}
        torch.save({"meta": meta, "state_dict": state}, tmp_path / f"{style}.pth")
    assert load_backbone(str(tmp_path / "pytorch.pth")).name == "resnet18"
    with pytest.raises(BadWeights, match=r"style='caffe'.*style='pytorch'"):
        load_backbone(str(tmp_path / "caffe.pth"))
