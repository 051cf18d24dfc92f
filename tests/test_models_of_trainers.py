"""Files of those who train networks without labels, or for other ends: their networks are read as they were, or refused."""

from __future__ import annotations

import io
import pickle
import re
import zipfile

import numpy as np
import pytest
import timm
import torch
import torchvision
from networks import images, seen, settled
from test_models_of_others import as_authors_convnext, renamed
from torch import nn

from burnish.backbones.zoo import load_backbone
from burnish.errors import BadWeights, UnknownModel

torch.set_num_threads(1)


def network_of(name, **options):
    """A network of timm's as after training, its features its output."""
    torch.manual_seed(0)
    network = settled(timm.create_model(name, num_classes=0, **options))
    changed = {key: one + 0.1 * torch.randn_like(one) for key, one in network.named_parameters()}
    network.load_state_dict({**network.state_dict(), **{key: one.detach() for key, one in changed.items()}})
    return network


def assert_reads(path, network, size, *, arch=None):
    backbone, given = load_backbone(str(path), arch=arch), images(size)
    torch.testing.assert_close(seen(backbone.module, given), seen(network, given), rtol=1e-4, atol=1e-4)
    assert not any("random" in note for note in backbone.notes)
    return backbone


# ---- tables of places --------------------------------------------------------------------------------------------------


def table(side, width, *, rows_first):
    """The fixed table of places of MoCo v3 (rows first) or MAE."""
    rows, columns = torch.meshgrid(torch.arange(side).float(), torch.arange(side).float(), indexing="ij")
    steps = 10000.0 ** -(torch.arange(width // 4) / (width // 4))
    halves = [torch.outer(one.flatten(), steps) for one in ((rows, columns) if rows_first else (columns, rows))]
    places = torch.cat([wave(half) for half in halves for wave in (torch.sin, torch.cos)], 1)
    return torch.cat([torch.zeros(1, width), places])[None]


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_224"])
def test_a_transformer_with_the_table_of_moco_v3_has_its_twelve_heads_whoever_kept_it(name, tmp_path):
    network = network_of(name, num_heads=12)
    network.pos_embed.data.copy_(table(14, network.embed_dim, rows_first=True))
    state = {f"backbone.{key}": one for key, one in network.state_dict().items()}
    torch.save({"state_dict": {**state, "classifier.weight": torch.rand(3, 3)}}, tmp_path / "a.ckpt")
    backbone = assert_reads(tmp_path / "a.ckpt", network, 224)
    assert any("12 heads" in note for note in backbone.notes)
    assert backbone.preprocess.mean == pytest.approx((0.485, 0.456, 0.406))


def test_one_with_the_table_of_mae_is_said_to_be_taken_to_have_the_usual_heads(tmp_path):
    network = network_of("vit_tiny_patch16_224")
    network.pos_embed.data.copy_(table(14, network.embed_dim, rows_first=False))
    torch.save({"model": network.state_dict()}, tmp_path / "a.pth")
    assert any("taken to have 3 heads" in note for note in assert_reads(tmp_path / "a.pth", network, 224).notes)
    network.pos_embed.data.normal_()
    torch.save({"model": network.state_dict()}, tmp_path / "a.pth")
    assert not any("heads" in note for note in assert_reads(tmp_path / "a.pth", network, 224).notes)


# ---- DINO and its like ---------------------------------------------------------------------------------------------------


def test_of_an_encoder_and_its_target_the_target_is_read(tmp_path):
    encoder, target = network_of("test_resnet"), network_of("test_resnet")
    settled(encoder).conv1[0].weight.data.mul_(2.0)
    saved = {"encoder": encoder, "predictor": nn.Linear(3, 3), "target_encoder": target}
    torch.save(
        {key: {f"module.{name}": v for name, v in one.state_dict().items()} for key, one in saved.items()},
        tmp_path / "a",
    )
    assert_reads(tmp_path / "a", target, 64)


@pytest.mark.parametrize("spelled", ["masked_embed", "mask_token", "groups"])
def test_a_transformer_is_read_beside_what_its_training_alone_needed(spelled, tmp_path):
    network = network_of("test_vit")
    state, beside = network.state_dict(), {}
    if spelled == "groups":  # as DINOv2 trains: blocks in groups, counted through
        state = renamed(state, [(r"^blocks\.(\d+)\.", lambda told: f"blocks.{int(told[1]) // 2}.{told[1]}.")])
        beside = {f"dino_head.mlp.{number}.weight": torch.rand(3, 3) for number in (0, 2, 4)}
    else:
        state |= {spelled: torch.rand(1, 64)}
    torch.save({"teacher": {**{f"backbone.{name}": one for name, one in state.items()}, **beside}}, tmp_path / "a.pth")
    assert_reads(tmp_path / "a.pth", network, 160)


def as_dino_v3(network):
    """timm's tensors of a DINOv3 under its authors' names."""
    found = {}
    for name, one in network.state_dict().items():
        if name.endswith("q_bias"):
            value = network.state_dict()[name.replace("q_bias", "v_bias")]
            found[name.replace("q_bias", "qkv.bias")] = torch.cat([one, torch.rand_like(one), value])
            found[name.replace("q_bias", "qkv.bias_mask")] = torch.cat([one * 0 + 1, one * 0, one * 0 + 1])
        elif not name.endswith(("k_bias", "v_bias")):
            found[name] = one
    rules = [
        (r"\.gamma_(\d)", r".ls\1.gamma"),
        (r"^reg_token", "storage_tokens"),
        (r"\.fc1_g\.", ".w1."),
        (r"\.fc1_x\.", ".w2."),
    ]
    extra = {"mask_token": torch.rand(1, network.embed_dim), "rope_embed.periods": 100.0 ** (torch.arange(16) / 16)}
    return renamed(found, rules) | extra


@pytest.mark.parametrize("place", ["", "teacher.backbone."])
def test_a_dinov3_of_its_authors_gives_its_class_token(place, tmp_path):
    network = network_of("vit_tiny_patch16_dinov3_qkvb", global_pool="token")
    torch.save({f"{place}{name}": one for name, one in as_dino_v3(network).items()}, tmp_path / "a.pth")
    assert_reads(tmp_path / "a.pth", network, 64)


def test_a_dinov3_with_other_periods_is_not_read_as_the_published_one(tmp_path):
    network = timm.create_model("vit_tiny_patch16_dinov3_qkvb", num_classes=0)
    state = as_dino_v3(network) | {"rope_embed.periods": 1000.0 ** (torch.arange(16) / 16)}
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(UnknownModel):
        load_backbone(str(tmp_path / "a.pth"))


def linear(state):
    """Convolutions of one pixel as linear layers, which all of them are in files of the authors and of OpenMMLab."""
    return {
        name: one.flatten(1) if re.search("pwconv|pointwise", name) and one.ndim == 4 else one
        for name, one in state.items()
    }


def test_a_convnext_of_dinov3_has_its_last_norm_twice(tmp_path):
    network = network_of("convnext_atto")
    state = linear(as_authors_convnext(network.state_dict()))
    twice = {f"norms.3.{kind}": state[f"norm.{kind}"] for kind in ("weight", "bias")}
    torch.save({**state, **twice}, tmp_path / "a.pth")
    assert_reads(tmp_path / "a.pth", network, 64)


# ---- networks without their names, or without their top -------------------------------------------------------------------


@pytest.mark.parametrize("begin", [2, 3, 4])
def test_the_children_of_a_small_resnet_are_told_wherever_its_stages_begin(begin, tmp_path):
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=10)
    network.conv1, network.maxpool, network.fc = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity(), nn.Identity()
    settled(network)
    left = {2: (nn.ReLU, nn.Identity), 3: (nn.Identity,), 4: ()}[begin]
    children = nn.Sequential(*(one for one in list(network.children())[:-1] if not isinstance(one, left)))
    state = {f"backbone.{name.replace('downsample', 'shortcut')}": one for name, one in children.state_dict().items()}
    torch.save({"state_dict": {**state, "projection_head.weight": torch.rand(3, 3)}}, tmp_path / "a.ckpt")
    assert assert_reads(tmp_path / "a.ckpt", network, 32).preprocess.size == 32


@pytest.mark.parametrize("kind", ["numbers", "another head"])
def test_the_convolutions_of_a_vgg_give_the_mean_of_their_last_map(kind, tmp_path):
    torch.manual_seed(0)
    layers = settled(torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["A"], batch_norm=True))
    state = layers.state_dict()
    if kind == "another head":
        state = {f"features.{name}": one for name, one in state.items()}
        state |= {"classifier.0.weight": torch.rand(8, 512), "classifier.6.weight": torch.rand(3, 8)}
    torch.save(state, tmp_path / "a.pth")
    backbone = assert_reads(tmp_path / "a.pth", lambda given: layers(given).mean((2, 3)), 64)
    assert backbone.name == "vgg11_bn" and any("mean of its last map" in note for note in backbone.notes)


# ---- OpenMMLab -------------------------------------------------------------------------------------------------------------


_RESNET_C = [  # MMPretrain's, which keeps a convolution and its norm as one
    (r"^bn1\.", "stem.2.bn."),
    (r"^conv1\.([14])\.", lambda told: f"stem.{int(told[1]) // 3}.bn."),
    (r"^conv1\.([036])\.", lambda told: f"stem.{int(told[1]) // 3}.conv."),
]
_RESNET_D = [
    (r"^bn1\.", "stem.7."),
    (r"^conv1\.(\d)", r"stem.\1"),
    (r"^layer1\.0\.downsample\.(\d)", lambda told: f"layer1.0.downsample.{int(told[1]) - 1}"),
]
_VIT = [
    (r"^patch_embed\.proj\.", "patch_embed.projection."),
    (r"\.norm(\d)\.", r".ln\1."),
    (r"^norm\.", "ln1."),
    (r"\.mlp\.fc1\.", ".ffn.layers.0.0."),
    (r"\.mlp\.fc2\.", ".ffn.layers.1."),
    (r"^blocks\.", "layers."),
]
_SWIN = [
    (r"^norm\.", "norm3."),
    (r"\.attn\.", ".attn.w_msa."),
    (r"^layers\.(\d)\.downsample\.", lambda told: f"stages.{int(told[1]) - 1}.downsample."),
    (r"^layers\.", "stages."),
    *(rule for rule in _VIT if "mlp" in rule[0] or "patch" in rule[0]),
]
_CONVNEXT = [
    (r"^stem\.", "downsample_layers.0."),
    (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
    (r"\.blocks\.", "."),
    (r"\.conv_dw\.", ".depthwise_conv."),
    (r"\.mlp\.fc(\d)\.", r".pointwise_conv\1."),
    (r"\.mlp\.grn\.weight", ".grn.gamma"),
    (r"\.mlp\.grn\.bias", ".grn.beta"),
    (r"^head\.norm\.", "norm3."),
]
_OUTER = {"conv_stem": "conv1.conv", "bn1": "conv1.bn", "conv_head": "conv2.conv", "bn2": "conv2.bn"}


def as_mobilenet_v2(state):
    found = {}
    for name, one in state.items():
        parts = name.split(".")
        if parts[0] != "blocks":
            found[f"{_OUTER[parts[0]]}.{parts[1]}"] = one
            continue
        order = ["conv_pw", "conv_dw", "conv_pwl"] if parts[1] != "0" else ["conv_dw", "conv_pw"]
        layer = int(parts[3][2]) - 1 if parts[3].startswith("bn") else order.index(parts[3])
        kind = "bn" if parts[3].startswith("bn") else "conv"
        found[f"layer{int(parts[1]) + 1}.{parts[2]}.conv.{layer}.{kind}.{parts[4]}"] = one
    return found


def as_mobilenet_v3(state):
    """Blocks are counted through; the first of all does not expand. The layer above the pooling is not the backbone's there."""
    places = list(dict.fromkeys(".".join(name.split(".")[1:3]) for name in state if name.startswith("blocks.")))
    found = {}
    for name, one in state.items():
        parts = name.split(".")
        if parts[0] in ("conv_stem", "bn1"):
            found[f"layer0.{'conv' if parts[0] == 'conv_stem' else 'bn'}.{parts[1]}"] = one
        elif parts[0] == "blocks":
            layer = f"layer{places.index('.'.join(parts[1:3])) + 1}"
            first = ["depthwise_conv", "linear_conv"] if places[0] == ".".join(parts[1:3]) else None
            order = first or ["expand_conv", "depthwise_conv", "linear_conv"]
            kinds = {
                "conv_dw": "depthwise_conv",
                "conv_pw": order[0] if first is None else "linear_conv",
                "conv_pwl": "linear_conv",
            }
            if parts[3] == "se":
                inner = f"se.{'conv1' if parts[4] == 'conv_reduce' else 'conv2'}.conv"
            elif places[-1] == ".".join(parts[1:3]):
                inner = "bn" if parts[3].startswith("bn") else "conv"
            else:
                inner = f"{order[int(parts[3][2]) - 1]}.bn" if parts[3].startswith("bn") else f"{kinds[parts[3]]}.conv"
            found[f"{layer}.{inner}.{parts[-1]}"] = one
    return found


def as_swin(state):
    """Merged places are taken channel by channel, as nn.Unfold takes them."""
    found = {}
    for name, one in renamed(state, _SWIN).items():
        if ".downsample." in name:  # [o 4c] by places, columns first
            one = one.unflatten(-1, (2, 2, -1)).movedim(-1, -3).transpose(-1, -2).flatten(-3)
        found[name] = one
    return found


@pytest.mark.parametrize(
    ("name", "size", "spelled"),
    [
        ("resnet26d", 64, lambda state: renamed(state, _RESNET_D)),
        ("resnet18d", 64, lambda state: renamed(state, _RESNET_C)),
        ("seresnet18", 64, lambda state: renamed(state, [(r"\.se\.fc(\d)\.", r".se_layer.conv\1.conv.")])),
        ("vit_tiny_patch16_224", 224, lambda state: renamed(state, _VIT)),
        ("swin_tiny_patch4_window7_224", 224, as_swin),
        ("convnextv2_atto", 64, lambda state: linear(renamed(state, _CONVNEXT))),
        ("mobilenetv2_100", 64, as_mobilenet_v2),
    ],
)
def test_a_network_of_openmmlab_is_read_as_it_keeps_it(name, size, spelled, tmp_path):
    network, prefix = network_of(name), "module.backbone." if name == "seresnet18" else "backbone."
    state = {f"{prefix}{key}": one for key, one in spelled(network.state_dict()).items()}
    beside = {f"{prefix.replace('backbone', 'head')}fc.weight": torch.rand(3, 3)}
    torch.save({"meta": {"epoch": 100, "CLASSES": ["a"]}, "state_dict": {**state, **beside}}, tmp_path / "a.pth")
    assert assert_reads(tmp_path / "a.pth", network, size).name == name


@pytest.mark.parametrize("name", ["mobilenetv3_small_100", "mobilenetv3_large_100"])
def test_a_mobilenet_v3_of_openmmlab_gives_the_mean_of_its_last_map(name, tmp_path):
    network = network_of(name, bn_eps=1e-3)
    state = {f"backbone.{key}": one for key, one in as_mobilenet_v3(network.state_dict()).items()}
    torch.save({"state_dict": {**state, "head.layers.0.fc.weight": torch.rand(3, 3)}}, tmp_path / "a.pth")
    backbone = assert_reads(tmp_path / "a.pth", lambda given: network.forward_features(given).mean((2, 3)), 64)
    assert backbone.name == name


# ---- NumPy's archives ------------------------------------------------------------------------------------------------------


def packed(arrays):
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def as_googles(state):
    """timm's tensors of a vision transformer as JAX keeps them."""
    outer = {"cls_token": "cls", "pos_embed": "Transformer/posembed_input/pos_embedding"}
    layers = {
        "patch_embed.proj": "embedding",
        "norm": "Transformer/encoder_norm",
        "norm1": "LayerNorm_0",
        "norm2": "LayerNorm_2",
        "attn.proj": "MultiHeadDotProductAttention_1/out",
        "mlp.fc1": "MlpBlock_3/Dense_0",
        "mlp.fc2": "MlpBlock_3/Dense_1",
    }
    found = {"pre_logits/kernel": np.zeros((3, 3), np.float32), "head/kernel": np.zeros((3, 3), np.float32)}
    for name, tensor in state.items():
        told, one = re.match(r"blocks\.(\d+)\.", name), tensor.numpy()
        begin, rest = (f"Transformer/encoderblock_{told[1]}/", name[told.end() :]) if told else ("", name)
        layer, _, kind = rest.rpartition(".")
        if name in outer:
            found[outer[name]] = one
        elif layer == "attn.qkv":
            for word, part in zip(("query", "key", "value"), np.split(one, 3), strict=True):
                place = f"{begin}MultiHeadDotProductAttention_1/{word}/"
                heads = part.T.reshape(-1, 3, 64) if kind == "weight" else part.reshape(3, 64)
                found[place + ("kernel" if kind == "weight" else kind)] = heads
        else:
            scale = "scale" if "norm" in layer else "kernel"
            turned = one.transpose(2, 3, 1, 0) if one.ndim == 4 else one.T
            turned = turned.reshape(3, 64, -1) if rest == "attn.proj.weight" else turned
            found[f"{begin}{layers[layer]}/{scale if kind == 'weight' else kind}"] = turned
    return found


@pytest.mark.parametrize("target", ["", "opt/target/"])
def test_a_vision_transformer_of_google_is_read_from_its_npz(target, tmp_path):
    network = network_of("vit_tiny_patch16_224")
    arrays = {f"{target}{name}": one for name, one in as_googles(network.state_dict()).items()}
    (tmp_path / "Ti_16.npz").write_bytes(packed(arrays))
    backbone = assert_reads(tmp_path / "Ti_16.npz", network, 224)
    assert backbone.preprocess.mean == (0.5, 0.5, 0.5)


def test_arrays_of_any_network_are_read_by_name(tmp_path):
    network = network_of("test_resnet")
    arrays = {
        name: np.asfortranarray(one.numpy()).astype(">f4" if one.ndim else "i8")
        for name, one in network.state_dict().items()
    }
    (tmp_path / "a.npz").write_bytes(packed(arrays))
    assert_reads(tmp_path / "a.npz", network, 64)


def of_shape(text):
    """An archive with an array whose header says that shape."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {text}, }}".ljust(117).encode() + b"\n"
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(4))
        archive.writestr("b.c.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(4))
    return stream.getvalue()


def changed_heads():
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=1)
    arrays = as_googles(network.state_dict())
    word = "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel"
    return packed({**arrays, word: arrays[word].reshape(192, 12, 16)})


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (lambda: packed({"a.b": np.array([{}, {}], dtype=object), "b.c": np.zeros(3)}), "an array of object"),
        (lambda: packed({"a.b": np.zeros(3, "V2"), "b.c": np.zeros(3)}), r"an array of \|V2"),
        (lambda: of_shape("(9,)"), r"claims \[9\] numbers and holds 4 bytes"),
        (lambda: of_shape("(-1, -1)"), r"claims \[-1, -1\] numbers"),
        (lambda: of_shape("(" + "1, " * 20 + ")"), "claims .* numbers"),
        (lambda: of_shape("(__import__('os'),)"), "a damaged array"),
        (changed_heads, "12 heads of attention, which none of its width"),
    ],
)
def test_arrays_that_are_no_weights_are_refused(data, sentence, tmp_path):
    (tmp_path / "a.npz").write_bytes(data())
    with pytest.raises(BadWeights, match=sentence):
        load_backbone(str(tmp_path / "a.npz"))


# ---- what is refused, and how ----------------------------------------------------------------------------------------------


def pickled(protocol):
    weights = {name: one.numpy() for name, one in timm.create_model("test_resnet").state_dict().items()}
    return pickle.dumps({"model": weights, "matching_heuristics": True}, protocol=protocol)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (pickled(2), "NumPy's arrays, as PaddlePaddle and detectron2 keep them.*numpy.savez"),
        (pickled(4), "NumPy's arrays"),
        (b"\x82\xaaclassifier\x82\xa4bias" + bytes(99), "is MessagePack, as Flax"),
        (b"\x08\x04\x12\xa4\x01\x0a\x30\x0a\x05image" + bytes(99), "is Core ML, a program"),
        (b"\x08\x08\x12\x07pytorch\x1a\x052.1.0" + bytes(99), "is ONNX, a program"),
        (b'<?xml version="1.0"?>\n<net name="x" version="11">', "is OpenVINO's, a program"),
        (b"GGUF\x03\x00\x00\x00" + bytes(99), "is GGUF"),
        (b"\x93NUMPY\x01\x00v\x00" + bytes(99), "one array of NumPy's"),
    ],
)
def test_a_file_of_others_is_said_to_be_what_it_is(data, sentence, tmp_path):
    (tmp_path / "weights").write_bytes(data)
    with pytest.raises(BadWeights, match=sentence):
        load_backbone(f"{tmp_path}/weights")


@pytest.mark.parametrize(
    ("held", "sentence"),
    [
        (("Manifest.json", "Data/a"), "is a Core ML package"),
        (("model.ckpt.index", "model.ckpt.data-00000-of-00001"), "is a checkpoint of TensorFlow"),
        (("_METADATA", "d/a"), "holds weights of JAX"),
        (("config.json", "flax_model.msgpack"), "holds weights of JAX"),
    ],
)
def test_a_folder_of_others_is_said_to_be_what_it_is(held, sentence, tmp_path):
    for name in held:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    with pytest.raises(UnknownModel, match=sentence):
        load_backbone(str(tmp_path))


def test_a_resnet_of_caffe_is_known_by_norms_without_statistics(tmp_path):
    state = timm.create_model("resnet26", num_classes=0).state_dict()
    torch.save(state, tmp_path / "begun.pth")
    assert load_backbone(str(tmp_path / "begun.pth")).name == "resnet26"
    learnt = {
        name: torch.rand_like(one) if "bn" in name and name.endswith("weight") else one for name, one in state.items()
    }
    torch.save(learnt, tmp_path / "caffes.pth")
    with pytest.raises(BadWeights, match=r"no statistics, as those of ResNets that were Caffe's.*style='pytorch'"):
        load_backbone(str(tmp_path / "caffes.pth"))


def test_a_transformer_that_norms_twice_is_not_read_as_one_that_norms_once(tmp_path):
    state = renamed(timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict(), _VIT)
    both = {"ln2.weight": torch.ones(192), "ln2.bias": torch.zeros(192)}
    torch.save({f"backbone.{name}": one for name, one in {**state, **both}.items()}, tmp_path / "a.pth")
    for arch in (None, "vit_tiny_patch16_224"):
        with pytest.raises(UnknownModel if arch is None else BadWeights):
            load_backbone(str(tmp_path / "a.pth"), arch=arch)
