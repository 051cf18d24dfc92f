"""SigLIP, BEiT, Swin V2, DINOv3, I-JEPA, Hiera, EfficientNet, RegNet, BiT, MobileNet, MobileViT, LeViT, PVT V2 of transformers.

Each test renames the weights of a network of timm's as transformers names them, apart from the code under test. The names
were checked against models that transformers 5.24 built and saved with save_pretrained, whose features burnish gives to
1e-5; where those in its memory are others (BEiT, DINOv3), both are here.
"""

from __future__ import annotations

import json
import re

import pytest
import timm
import torch
from safetensors.torch import save_file
from test_backbones_transformers import _vit as as_vit
from test_backbones_transformers import small_network

from burnish.backbones.transformers import configs
from burnish.backbones.transformers import images as transformers_images
from burnish.backbones.transformers import names as transformers_names
from burnish.backbones.zoo import load_backbone
from burnish.errors import BadWeights, UnknownModel

IMAGENET, HALF = (0.485, 0.456, 0.406), (0.5, 0.5, 0.5)


def replaced(name, *pairs):
    for before, after in pairs:
        name = name.replace(before, after)
    return name


def blank(name):
    """The weights of a network of timm's, all of them 0, for tests that never see what it computes."""
    with torch.device("meta"):
        shapes = timm.create_model(name, num_classes=0).state_dict()
    return {key: torch.zeros(one.shape, dtype=one.dtype) for key, one in shapes.items()}


def saved(folder, state, config=None, preprocessor=None):
    """A folder as save_pretrained leaves it."""
    save_file({name: one.contiguous().clone() for name, one in state.items()}, folder / "model.safetensors")
    for name, told in (("config.json", config), ("preprocessor_config.json", preprocessor)):
        if told is not None:
            (folder / name).write_text(json.dumps(told))
    return str(folder)


def assert_features(backbone, network, size, *, turned=False):
    images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, expected = backbone.module(images), network(images.flip(1) if turned else images)
    assert found.std() > 1e-4
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def siglip(state, prefix="vision_model."):
    found = {}
    for name, tensor in state.items():
        if told := re.fullmatch(r"blocks\.(\d+)\.attn\.qkv\.(\w+)", name):
            for word, part in zip("qkv", tensor.chunk(3), strict=True):
                found[f"{prefix}encoder.layers.{told[1]}.self_attn.{word}_proj.{told[2]}"] = part
        elif told := re.fullmatch(r"attn_pool\.q\.(\w+)", name):
            found[f"{prefix}head.attention.in_proj_{told[1]}"] = torch.cat([tensor, state[f"attn_pool.kv.{told[1]}"]])
        elif not name.startswith("attn_pool.kv."):
            new = replaced(name, ("blocks.", "encoder.layers."), (".attn.proj.", ".self_attn.out_proj."), (".norm1.", ".layer_norm1."),
                           (".norm2.", ".layer_norm2."), ("attn_pool.latent", "head.probe"), ("attn_pool.proj.", "head.attention.out_proj."),
                           ("attn_pool.norm.", "head.layernorm."), ("attn_pool.mlp.", "head.mlp."),
                           ("pos_embed", "embeddings.position_embedding.weight"), ("patch_embed.proj.", "embeddings.patch_embedding."))  # fmt: skip
            new = re.sub(r"^norm\.", "post_layernorm.", new)
            found[prefix + new] = tensor[0] if name == "pos_embed" else tensor
    return found


OF_TEXTS = {"logit_scale": torch.ones(1), "logit_bias": torch.ones(1), "text_model.final_layer_norm.weight": torch.ones(5),
            "text_model.embeddings.token_embedding.weight": torch.zeros(5, 3), "text_model.head.bias": torch.zeros(3)}  # fmt: skip
CLASSIFIER = {"classifier.weight": torch.zeros(3, 768), "classifier.bias": torch.zeros(3)}


def test_the_image_half_of_siglip_pools_by_attention(tmp_path):
    name = "vit_base_patch32_siglip_256"
    network = small_network(name)
    told = {"size": {"height": 256, "width": 256}, "resample": 3, "image_mean": HALF, "image_std": HALF}
    config = {"model_type": "siglip", "vision_config": {"num_attention_heads": 12}}
    backbone = load_backbone(saved(tmp_path, {**siglip(network.state_dict()), **OF_TEXTS}, config, told))
    assert backbone.name == name and backbone.architecture["kwargs"]["act_layer"] == "gelu_tanh"
    found = backbone.preprocess
    assert (found.size, found.fit, found.interpolation, found.mean) == (256, "squash", "bicubic", HALF)
    assert not [note for note in backbone.notes if "unused" in note or "missing" in note]
    assert_features(backbone, network, 256)


def small_vit(name):
    """The weights of a network of timm's, of two narrow blocks, for tests of their names."""
    return timm.create_model(name, num_classes=0, embed_dim=48, depth=2, num_heads=4).state_dict()


def assert_the_same_weights(one, other):
    """Two spellings of one network are read as the same weights."""
    found, expected = transformers_names.translated(one), transformers_names.translated(other)
    assert found is not None and expected is not None and found[1] == expected[1]
    assert found[0].keys() == expected[0].keys()
    assert all(torch.equal(tensor, expected[0][name]) for name, tensor in found[0].items())


def test_the_image_half_of_siglip_is_the_same_alone_under_either_name():
    state = small_vit("vit_base_patch32_siglip_256")
    for prefix in ("", "vision_model."):
        assert_the_same_weights(siglip(state, prefix), {**siglip(state), **OF_TEXTS})


def test_the_processor_of_images_and_texts_is_obeyed_where_no_other_file_speaks_of_images(tmp_path):
    """As transformers 5 saves that of SigLIP or CLIP."""
    state = regnet(blank("regnetx_002"))
    inner = {"size": {"height": 160, "width": 160}, "image_mean": HALF, "image_std": HALF, "resample": 3}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": inner, "processor_class": "X"}))
    assert load_backbone(saved(tmp_path, state)).preprocess.size == 160
    inner["size"] = {"height": 192, "width": 192}
    assert load_backbone(saved(tmp_path, state, None, inner)).preprocess.size == 192
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "processor_config.json").write_text('{"image_processor": [3]}')
    assert load_backbone(str(tmp_path)).preprocess.size == 224


def test_a_classifier_of_siglip_sees_the_mean_of_the_patches(tmp_path):
    network = small_network("vit_base_patch32_siglip_256")
    config = {"model_type": "siglip", "architectures": ["SiglipForImageClassification"]}
    backbone = load_backbone(saved(tmp_path, {**siglip(network.state_dict()), **CLASSIFIER}, config))
    assert backbone.name == "vit_base_patch32_siglip_gap_256"
    mean = timm.create_model(backbone.name, num_classes=0).eval()
    mean.load_state_dict({name: one for name, one in network.state_dict().items() if not name.startswith("attn_pool.")})
    assert_features(backbone, mean, 256)


def test_the_activation_of_siglip_is_that_of_its_config(tmp_path):
    network = timm.create_model("vit_base_patch32_siglip_256", num_classes=0, act_layer="gelu").eval()
    config = {"model_type": "siglip_vision_model", "hidden_act": "gelu"}
    backbone = load_backbone(saved(tmp_path, siglip(network.state_dict()), config))
    assert backbone.architecture["kwargs"]["act_layer"] == "gelu"
    assert_features(backbone, network, 256)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"hidden_act": "relu"}, "hidden_act relu"),
        ({"hidden_act": None}, "hidden_act None"),
        ({"layer_norm_eps": 0.1}, "layer_norm_eps 0.1"),
        ({"num_attention_heads": 16}, "16 heads"),
    ],
)
def test_a_siglip_that_computes_otherwise_is_refused(config, said, tmp_path):
    state = blank("vit_base_patch32_siglip_256")
    with pytest.raises(UnknownModel, match=said):
        load_backbone(saved(tmp_path, siglip(state), {"model_type": "siglip_vision_model", **config}))


def test_siglip_2_for_images_of_any_shape_is_not_read():
    state = {"vision_model.embeddings.patch_embedding.weight": torch.zeros(768, 768), "vision_model.post_layernorm.weight": torch.ones(768),
             "vision_model.embeddings.position_embedding.weight": torch.zeros(256, 768)}  # fmt: skip
    assert transformers_names.translated(state) is None


def beit(state, *, prefix="beit.", new=False, shared=False):
    found = {}
    for name, tensor in state.items():
        told = re.fullmatch(r"blocks\.(\d+)\.(.*)", name)
        if told is None:
            new_name = replaced(
                name,
                ("patch_embed.proj.", "embeddings.patch_embeddings.projection."),
                ("cls_token", "embeddings.cls_token"),
            )
            found[prefix + re.sub(r"^norm\.", "layernorm.", new_name.replace("fc_norm.", "pooler.layernorm."))] = tensor
            continue
        layer = f"{prefix}layers.{told[1]}." if new else f"{prefix}encoder.layer.{told[1]}."
        inner = f"{layer}attention." if new else f"{layer}attention.attention."
        query, key, value = ("q_proj", "k_proj", "v_proj") if new else ("query", "key", "value")
        if told[2] == "attn.qkv.weight":
            for word, part in zip((query, key, value), tensor.chunk(3), strict=True):
                found[f"{inner}{word}.weight"] = part
        elif told[2] in ("attn.q_bias", "attn.v_bias"):
            found[f"{inner}{query if 'q_' in told[2] else value}.bias"] = tensor
        elif told[2].endswith("table"):
            if shared:
                where = f"{prefix}shared_position_bias." if new else f"{prefix}encoder.relative_position_bias."
            else:
                where = f"{layer}relative_position_bias." if new else f"{inner}relative_position_bias."
            found[f"{where}relative_position_bias_table"] = tensor
        else:
            outer = [("attn.proj.", "attention.output.dense."), ("norm1", "layernorm_before"), ("norm2", "layernorm_after"),
                     ("gamma_", "lambda_"), ("mlp.fc1.", "intermediate.dense."), ("mlp.fc2.", "output.dense.")]  # fmt: skip
            if new:
                outer[0], outer[4:] = ("attn.proj.", "attention.o_proj."), []
            found[layer + replaced(told[2], *outer)] = tensor
    return {**found, **CLASSIFIER}


def test_beit_takes_the_mean_of_its_patches(tmp_path):
    network = small_network("beit_base_patch16_224")
    backbone = load_backbone(saved(tmp_path, beit(network.state_dict()), {"model_type": "beit", "image_size": 224}))
    assert backbone.name == "beit_base_patch16_224"
    assert (backbone.preprocess.size, backbone.preprocess.fit, backbone.preprocess.mean) == (224, "squash", HALF)
    assert_features(backbone, network, 224)


@pytest.mark.parametrize(("prefix", "new", "shared"), [("beit.", True, True), ("data2vec_vision.", False, False)])
def test_a_beit_as_it_is_in_memory_with_one_table_and_a_data2vec_are_read_as_beits(prefix, new, shared):
    state = small_vit("beit_base_patch16_224")
    if shared:
        state |= {key: state[f"blocks.0.{key[9:]}"] for key in state if key.endswith("position_bias_table")}
    assert_the_same_weights(beit(state, prefix=prefix, new=new, shared=shared), beit(state))


def test_a_beit_that_norms_its_tokens_gives_its_class_token(tmp_path):
    network = timm.create_model("beit_base_patch16_224", num_classes=0, global_pool="token").eval()
    network.norm.bias.data.fill_(0.25)
    backbone = load_backbone(saved(tmp_path, beit(network.state_dict()), {"model_type": "beit"}))
    assert backbone.architecture["kwargs"]["global_pool"] == "token"
    assert_features(backbone, network, 224)


def swin_v2(state):
    found = {}
    for name, tensor in state.items():
        if told := re.fullmatch(r"layers\.(\d)\.downsample\.(.*)", name):
            found[f"swinv2.encoder.layers.{int(told[1]) - 1}.downsample.{told[2]}"] = tensor
        elif told := re.fullmatch(r"(layers\.\d\.blocks\.\d+)\.attn\.(.*)", name):
            inner = f"swinv2.encoder.{told[1]}.attention."
            if told[2] == "qkv.weight":
                for word, part in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                    found[f"{inner}self.{word}.weight"] = part
            else:
                new = replaced(told[2], ("q_bias", "self.query.bias"), ("v_bias", "self.value.bias"), ("proj.", "output.dense."),
                               ("cpb_mlp.", "self.continuous_position_bias_mlp."), ("logit_scale", "self.logit_scale"))  # fmt: skip
                found[inner + new] = tensor
        else:
            new = replaced(name, ("norm1", "layernorm_before"), ("norm2", "layernorm_after"), ("mlp.fc1.", "intermediate.dense."),
                           ("mlp.fc2.", "output.dense."), ("patch_embed.proj.", "embeddings.patch_embeddings.projection."),
                           ("patch_embed.norm.", "embeddings.norm."), ("layers.", "encoder.layers."))  # fmt: skip
            found["swinv2." + re.sub(r"^norm\.", "layernorm.", new)] = tensor
    return {**found, **CLASSIFIER}


@pytest.mark.parametrize("window", [8, 16])
def test_swin_v2_has_the_windows_of_its_config(window, tmp_path):
    name = f"swinv2_tiny_window{window}_256"
    network = small_network(name)
    config = {"model_type": "swinv2", "window_size": window, "image_size": 256, "pretrained_window_sizes": [0, 0, 0, 0]}
    backbone = load_backbone(saved(tmp_path, swin_v2(network.state_dict()), config))
    assert backbone.name == name
    assert (backbone.preprocess.size, backbone.preprocess.fit, backbone.preprocess.mean) == (256, "squash", IMAGENET)
    assert_features(backbone, network, 256)


@pytest.mark.parametrize(
    ("config", "said"),
    [(None, "without its config.json"), ({"window_size": 12, "pretrained_window_sizes": [6]}, "window_size"), ({"window_size": "8"}, "window_size"),
     ({"window_size": 8, "pretrained_window_sizes": {}}, "window8"), ({"window_size": 8, "layer_norm_eps": []}, "layer_norm_eps")],
)  # fmt: skip
def test_a_swin_v2_whose_windows_are_not_timms_is_refused(config, said, tmp_path):
    state = swin_v2(blank("swinv2_tiny_window8_256"))
    path = saved(tmp_path, state, None if config is None else {"model_type": "swinv2", **config})
    if said == "window8":  # none were there before
        assert said in load_backbone(path).name
        return
    with pytest.raises(UnknownModel, match=said):
        load_backbone(path)


def dino_v3(state, prefix):
    found = {"embeddings.mask_token": torch.zeros(1, 1, 384)}
    gated = any(".fc1_g." in name for name in state)
    for name, tensor in state.items():
        told = re.fullmatch(r"blocks\.(\d+)\.(.*)", name)
        if told is None:
            found[replaced(name, ("patch_embed.proj.", "embeddings.patch_embeddings."), ("cls_token", "embeddings.cls_token"),
                           ("reg_token", "embeddings.register_tokens"))] = tensor  # fmt: skip
        elif told[2] == "attn.qkv.weight":
            for word, part in zip("qkv", tensor.chunk(3), strict=True):
                found[f"{prefix}layer.{told[1]}.attention.{word}_proj.weight"] = part
        else:
            new = replaced(told[2], ("attn.q_bias", "attention.q_proj.bias"), ("attn.v_bias", "attention.v_proj.bias"),
                           ("attn.proj.", "attention.o_proj."), ("gamma_1", "layer_scale1.lambda1"), ("gamma_2", "layer_scale2.lambda1"),
                           ("mlp.fc1_g.", "mlp.gate_proj."), ("mlp.fc1_x." if gated else "mlp.fc1.", "mlp.up_proj."),
                           ("mlp.fc2.", "mlp.down_proj."))  # fmt: skip
            found[f"{prefix}layer.{told[1]}.{new}"] = tensor
    return found


@pytest.mark.parametrize(
    ("name", "prefix"), [("vit_small_patch16_dinov3_qkvb", ""), ("vit_small_plus_patch16_dinov3_qkvb", "model.")]
)
def test_dinov3_gives_its_class_token(name, prefix, tmp_path):
    source = small_network(name)
    network = timm.create_model(name, num_classes=0, global_pool="token").eval()
    network.load_state_dict(source.state_dict())
    told = {"size": {"height": 224, "width": 224}, "resample": 2, "image_mean": IMAGENET, "rescale_factor": 1 / 255}
    state = dino_v3(source.state_dict(), prefix)
    backbone = load_backbone(saved(tmp_path, state, {"model_type": "dinov3_vit", "rope_theta": 100.0}, told))
    assert backbone.name == name
    assert (backbone.preprocess.size, backbone.preprocess.fit, backbone.preprocess.mean) == (224, "squash", IMAGENET)
    assert_features(backbone, network, 224)


def dino_convnext(state):
    rules = [("stem.", "stages.0.downsample_layers."), (".downsample.", ".downsample_layers."), (".conv_dw.", ".depthwise_conv."),
             (".mlp.fc", ".pointwise_conv"), (".norm.", ".layer_norm.")]  # fmt: skip
    return {
        replaced(name.replace("head.norm.", "layer_norm."), *rules).replace(".blocks.", ".layers."): one
        for name, one in state.items()
    }


def regnet(state):
    found = {}
    for name, tensor in state.items():
        squeezes = any(".se." in one for one in state)
        told = re.fullmatch(r"s(\d)\.b(\d+)\.(.*)", name)
        if told is None:
            new = name.replace("stem.", "embedder.embedder.")
        else:
            inner = replaced(told[3], ("downsample.", "shortcut."), ("conv1.", "layer.0."), ("conv2.", "layer.1."),
                             ("conv3.", "layer.3." if squeezes else "layer.2."), ("se.fc1.", "layer.2.attention.0."),
                             ("se.fc2.", "layer.2.attention.2."))  # fmt: skip
            new = f"encoder.stages.{int(told[1]) - 1}.layers.{int(told[2]) - 1}.{inner}"
        found[f"regnet.{replaced(new, ('conv.', 'convolution.'), ('bn.', 'normalization.'))}"] = tensor
    return {**found, "classifier.1.weight": torch.zeros(3, 368), "classifier.1.bias": torch.zeros(3)}


def efficientnet(state):
    found, number = {}, -1
    full = {"conv_pw": "expansion.expand_conv", "bn1": "expansion.expand_bn", "conv_dw": "depthwise_conv.depthwise_conv",
            "bn2": "depthwise_conv.depthwise_norm", "conv_pwl": "projection.project_conv", "bn3": "projection.project_bn"}  # fmt: skip
    short = {"conv_dw": full["conv_dw"], "bn1": full["bn2"], "conv_pw": full["conv_pwl"], "bn2": full["bn3"]}
    squeeze = {"se.conv_reduce": "squeeze_excite.reduce", "se.conv_expand": "squeeze_excite.expand"}
    outer = {
        "conv_stem": "embeddings.convolution",
        "bn1": "embeddings.batchnorm",
        "conv_head": "encoder.top_conv",
        "bn2": "encoder.top_bn",
    }
    seen = None
    for name, tensor in state.items():
        told = re.fullmatch(r"blocks\.(\d)\.(\d+)\.(.*)\.(\w+)", name)
        if told is None:
            layer, _, kind = name.rpartition(".")
            found[f"efficientnet.{outer[layer]}.{kind}"] = tensor
            continue
        number, seen = number + (told.group(1, 2) != seen), told.group(1, 2)
        layer = (squeeze | (full if f"blocks.{told[1]}.{told[2]}.conv_pwl.weight" in state else short))[told[3]]
        found[f"efficientnet.encoder.blocks.{number}.{layer}.{told[4]}"] = tensor
    return {**found, **CLASSIFIER}


def mobilenet_v2(state):
    found, number, seen = {}, -1, None
    inner = {"conv_pw": "expand_1x1.convolution", "bn1": "expand_1x1.normalization", "conv_dw": "conv_3x3.convolution",
             "bn2": "conv_3x3.normalization", "conv_pwl": "reduce_1x1.convolution", "bn3": "reduce_1x1.normalization"}  # fmt: skip
    outer = {"conv_stem": "conv_stem.first_conv.convolution", "bn1": "conv_stem.first_conv.normalization",
             "blocks.0.0.conv_dw": "conv_stem.conv_3x3.convolution", "blocks.0.0.bn1": "conv_stem.conv_3x3.normalization",
             "blocks.0.0.conv_pw": "conv_stem.reduce_1x1.convolution", "blocks.0.0.bn2": "conv_stem.reduce_1x1.normalization",
             "conv_head": "conv_1x1.convolution", "bn2": "conv_1x1.normalization"}  # fmt: skip
    for name, tensor in state.items():
        layer, _, kind = name.rpartition(".")
        if layer in outer:
            found[f"mobilenet_v2.{outer[layer]}.{kind}"] = tensor
            continue
        told = re.fullmatch(r"blocks\.(\d)\.(\d)\.(\w+)", layer)
        number, seen = number + (told.group(1, 2) != seen), told.group(1, 2)
        found[f"mobilenet_v2.layer.{number}.{inner[told[3]]}.{kind}"] = tensor
    return {**found, **CLASSIFIER}


def mobilenet_v1(state):
    found, number, seen = {}, -1, None
    inner = {
        "conv_dw": (0, "convolution"),
        "bn1": (0, "normalization"),
        "conv_pw": (1, "convolution"),
        "bn2": (1, "normalization"),
    }
    outer = {"conv_stem": "conv_stem.convolution", "bn1": "conv_stem.normalization"}
    for name, tensor in state.items():
        layer, _, kind = name.rpartition(".")
        if layer in outer:
            found[f"mobilenet_v1.{outer[layer]}.{kind}"] = tensor
            continue
        told = re.fullmatch(r"blocks\.(\d)\.(\d)\.(\w+)", layer)
        number, seen = number + (told.group(1, 2) != seen), told.group(1, 2)
        step, word = inner[told[3]]
        found[f"mobilenet_v1.layer.{2 * number + step}.{word}.{kind}"] = tensor
    return {**found, **CLASSIFIER}


def mobilevit(state, prefix="mobilevit."):
    found = {}
    for name, tensor in state.items():
        if told := re.fullmatch(r"stages\.(\d)\.1\.transformer\.(\d)\.attn\.qkv\.(\w+)", name):
            for word, part in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                found[
                    f"{prefix}encoder.layer.{told[1]}.transformer.layer.{told[2]}.attention.attention.{word}.{told[3]}"
                ] = part
            continue
        new = replaced(name, ("conv1_1x1.", "expand_1x1."), ("conv2_kxk.", "conv_3x3."), ("conv3_1x1.", "reduce_1x1."), ("stem.", "conv_stem."),
                       ("final_conv.", "conv_1x1_exp."), (".conv.", ".convolution."), (".bn.", ".normalization."))  # fmt: skip
        if told := re.fullmatch(r"stages\.([234])\.0\.(.*)", new):
            new = f"encoder.layer.{told[1]}.downsampling_layer.{told[2]}"
        elif told := re.fullmatch(r"stages\.([234])\.1\.(.*)", new):
            inner = replaced(
                told[2],
                ("conv_proj.", "conv_projection."),
                ("conv_fusion.", "fusion."),
                ("conv_1x1.", "conv_1x1.convolution."),
            )
            inner = re.sub(r"^norm\.", "layernorm.", re.sub(r"transformer\.(\d)\.", r"transformer.layer.\1.", inner))
            wide = prefix == "mobilevitv2."
            inner = replaced(inner, (".norm1.", ".layernorm_before."), (".norm2.", ".layernorm_after."),
                             (".attn.proj.", ".attention.output.dense."), (".attn.qkv_proj.", ".attention.qkv_proj.convolution."),
                             (".attn.out_proj.", ".attention.out_proj.convolution."),
                             (".mlp.fc1.", ".ffn.conv1.convolution." if wide else ".intermediate.dense."),
                             (".mlp.fc2.", ".ffn.conv2.convolution." if wide else ".output.dense."))  # fmt: skip
            new = f"encoder.layer.{told[1]}.{inner}"
        else:
            new = re.sub(r"^stages\.([01])\.(\d)\.", r"encoder.layer.\1.layer.\2.", new)
        found[prefix + new] = tensor
    return {**found, **CLASSIFIER}


def levit(state):
    found = {}
    depths = {0: 2, 1: 3}  # of levit_128s, where what makes the map smaller stands after the blocks
    for name, tensor in state.items():
        new = replaced(name, (".attn_downsample.q.ln.", ".attn_downsample.queries."), (".attn_downsample.kv.", ".attn_downsample.keys_values."),
                       (".qkv.", ".queries_keys_values."), (".proj.ln.", ".projection."), (".ln1.", ".linear_up."), (".ln2.", ".linear_down."),
                       (".bn.", ".batch_norm."))  # fmt: skip
        if told := re.fullmatch(r"stages\.(\d)\.blocks\.(\d)\.(attn|mlp)\.(.*)", new):
            new = f"encoder.stages.{told[1]}.layers.{2 * int(told[2]) + (told[3] == 'mlp')}.module.{told[4]}"
        elif told := re.fullmatch(r"stages\.(\d)\.downsample\.(attn_downsample|mlp)\.(.*)", new):
            stage, mlp = int(told[1]) - 1, told[2] == "mlp"
            new = f"encoder.stages.{stage}.layers.{2 * depths[stage] + mlp}.{'module.' if mlp else ''}{told[3]}"
        else:
            new = re.sub(r"^stem\.conv(\d)\.", r"patch_embeddings.embedding_layer_\1.", new).replace(
                ".linear.", ".convolution."
            )
        found[f"levit.{new}"] = tensor
    heads = {f"{head}.batch_norm.weight": torch.ones(384) for head in ("classifier", "classifier_distill")}
    return {
        **found,
        **heads,
        "levit.encoder.stages.0.layers.0.module.attention_bias_idxs": torch.zeros(196, 196, dtype=torch.int64),
    }


def bit(state):
    rules = [("stem.conv.", "embedder.convolution."), ("stages.", "encoder.stages."), (".blocks.", ".layers.")]
    return {
        **{f"bit.{replaced(name, *rules)}": one for name, one in state.items()},
        "classifier.1.weight": torch.zeros(3, 2048),
    }


def pvt_v2(state):
    found = {}
    for name, tensor in state.items():
        new = re.sub(r"^patch_embed\.", "stages.0.downsample.", name)
        new = re.sub(r"^stages\.(\d)\.", r"encoder.layers.\1.", new)
        new = re.sub(r"\.blocks\.(\d)\.norm(\d)\.", r".blocks.\1.layer_norm_\2.", new)
        new = replaced(new, (".downsample.proj.", ".patch_embedding.proj."), (".downsample.norm.", ".patch_embedding.layer_norm."),
                       (".attn.norm.", ".attention.layer_norm."), (".attn.sr.", ".attention.spatial_reduction."), (".attn.q.", ".attention.query."),
                       (".attn.", ".attention."), (".mlp.fc1.", ".mlp.dense1."), (".mlp.fc2.", ".mlp.dense2."), (".dwconv.", ".dwconv.dwconv."))  # fmt: skip
        new = "pvt_v2." + re.sub(r"^(encoder\.layers\.\d)\.norm\.", r"\1.layer_norm.", new)
        if ".kv." in new:
            for word, part in zip(("key", "value"), tensor.chunk(2), strict=True):
                found[new.replace(".kv.", f".{word}.")] = part
        else:
            found[new] = tensor
    return {**found, **CLASSIFIER}


def hiera(state):
    found, ends = {}, (1, 3, 10, 12)  # of hiera_tiny_224
    for name, tensor in state.items():
        if told := re.fullmatch(r"blocks\.(\d+)\.(.*)", name):
            block = int(told[1])
            stage = sum(block >= end for end in ends)
            inner = replaced(told[2], ("norm1.", "layernorm_before."), ("norm2.", "layernorm_after."))
            new = f"encoder.stages.{stage}.layers.{block - (0, *ends)[stage]}.{inner}"
        else:
            new = replaced(name, ("pos_embed", "embeddings.position_embeddings"), ("head.norm.", "pooler.layernorm."),
                           ("patch_embed.proj.", "embeddings.patch_embeddings.projection."))  # fmt: skip
        found[f"hiera.{new}"] = tensor
    return {**found, **CLASSIFIER}


def test_ijepa_takes_the_mean_of_its_patches():
    state = timm.create_model("vit_base_patch16_gap_224", num_classes=0, embed_dim=48, depth=2).state_dict()
    translated = transformers_names.translated(as_vit(state, new=False, prefix="ijepa."))
    assert translated is not None and translated[1] == "ijepa"
    assert translated[0].keys() == state.keys() and all(
        torch.equal(translated[0][name], one) for name, one in state.items()
    )


SAME = {"pad_type": "same", "bn_eps": 1e-3}
CASES = {
    "regnet x": ("regnetx_002", regnet, {"model_type": "regnet"}, {}, "crop"),
    "regnet y": ("regnety_002", regnet, {"model_type": "regnet", "hidden_act": "relu"}, {}, "crop"),
    "efficientnet": ("tf_efficientnet_b0", efficientnet,
                     {"model_type": "efficientnet", "image_size": 224, "depthwise_padding": []}, {}, "squash"),
    "efficientnet of another eps": ("tf_efficientnet_b0", efficientnet, {"model_type": "efficientnet", "batch_norm_eps": 0.01}, {"bn_eps": 0.01}, "squash"),
    "mobilenet v2": ("mobilenetv2_100", mobilenet_v2, {"model_type": "mobilenet_v2"}, SAME, "crop"),
    "mobilenet v2 padded evenly": ("mobilenetv2_035", mobilenet_v2, {"model_type": "mobilenet_v2", "tf_padding": False, "layer_norm_eps": 1e-5},
                                   {"bn_eps": 1e-5}, "crop"),
    "mobilenet v1": ("mobilenetv1_100", mobilenet_v1, {"model_type": "mobilenet_v1", "image_size": 224}, SAME, "crop"),
    "levit": ("levit_128s", levit, {"model_type": "levit", "num_attention_heads": [4, 6, 8]}, {}, "crop"),
    "bit": ("resnetv2_50x1_bit", bit, {"model_type": "bit", "global_padding": None}, {}, "crop"),
    "pvt v2": ("pvt_v2_b0", pvt_v2, {"model_type": "pvt_v2", "linear_attention": False}, {}, "squash"),
    "hiera": ("hiera_tiny_224", hiera, {"model_type": "hiera", "query_stride": [2, 2]}, {}, "crop"),
    "dinov3's convnext": ("convnext_atto", dino_convnext, {"model_type": "dinov3_convnext"}, {}, "squash"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_network_with_convolutions_gives_its_features(case, tmp_path):
    name, renamed, config, options, fit = CASES[case]
    source = small_network(name)
    network = timm.create_model(name, num_classes=0, **options).eval()
    network.load_state_dict(source.state_dict())
    backbone = load_backbone(saved(tmp_path, renamed(source.state_dict()), config))
    assert backbone.name == name and backbone.preprocess.fit == fit
    assert {key: backbone.architecture["kwargs"].get(key) for key in options} == options
    assert not [note for note in backbone.notes if "missing" in note]
    assert_features(backbone, network, 224)


@pytest.mark.parametrize(("name", "prefix"), [("mobilevit_xxs", "mobilevit."), ("mobilevitv2_050", "mobilevitv2.")])
@pytest.mark.parametrize("flips", [None, True, False])
def test_mobilevit_saw_blue_first_unless_its_preprocessor_says_otherwise(name, prefix, flips, tmp_path):
    network = small_network(name)
    told = {
        "size": {"shortest_edge": 288},
        "crop_size": {"height": 256, "width": 256},
        "do_center_crop": True,
        "image_mean": HALF,
    }
    told = None if flips is None else {**told, "do_flip_channel_order": flips}
    config = {"model_type": prefix[:-1], "image_size": 256, "num_attention_heads": 4}
    backbone = load_backbone(saved(tmp_path, mobilevit(network.state_dict(), prefix), config, told))
    assert backbone.name == name
    found = backbone.preprocess
    assert (found.size, found.fit, found.mean, found.std) == (256, "crop", (0.0,) * 3, (1.0,) * 3)
    assert found.crop == pytest.approx(256 / 288)
    assert_features(backbone, network, 256, turned=flips is not False)


@pytest.mark.parametrize(
    ("config", "said"),
    [({"depthwise_padding": [2], "image_size": 224}, "depthwise_padding"), ({"hidden_act": "relu"}, "hidden_act"), ({"pooling_type": "max"}, "pooling_type"),
     ({"strides": [1, 2, 2, 2, 1, 1, 1]}, "strides"), ({"batch_norm_eps": "small"}, "batch_norm_eps")],
)  # fmt: skip
def test_an_efficientnet_that_computes_otherwise_is_refused(config, said, tmp_path):
    state = efficientnet(blank("tf_efficientnet_b0"))
    with pytest.raises(UnknownModel, match=said):
        load_backbone(saved(tmp_path, state, {"model_type": "efficientnet", **config}))


FAMILIES = {
    "regnety_002": (regnet, "regnet"), "tf_efficientnet_b0": (efficientnet, "efficientnet"), "mobilenetv2_035": (mobilenet_v2, "mobilenet_v2"),
    "mobilevit_xxs": (mobilevit, "mobilevit"), "levit_128s": (levit, "levit"), "pvt_v2_b0": (pvt_v2, "pvt_v2"), "hiera_tiny_224": (hiera, "hiera"),
    "vit_small_patch16_dinov3_qkvb": (lambda state: dino_v3(state, ""), "dinov3_vit"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("harm", ["a missing tensor", "another shape", "one too many"])
def test_a_file_that_is_not_whole_is_refused(name, harm, tmp_path):
    """No weight of it is dropped without a word."""
    renamed, kind = FAMILIES[name]
    state = renamed(blank(name))
    inner = [key for key in state if key.endswith(".weight") and state[key].ndim >= 2 and "classifier" not in key]
    middle = inner[len(inner) // 2]
    if harm == "a missing tensor":
        del state[middle]
    elif harm == "another shape":
        state[middle] = torch.zeros(3, 3)
    else:
        state[middle.replace(".weight", ".another")] = torch.zeros(3)
    with pytest.raises((UnknownModel, BadWeights), match=rf"a {kind} of transformers, but its \d+ tensors fit none"):
        load_backbone(saved(tmp_path, state, {"model_type": kind}))


@pytest.mark.parametrize(
    ("family", "told", "expected"),
    [
        ("efficientnet", {"image_mean": IMAGENET, "image_std": (0.5, 0.4, 0.3), "resample": 0}, (IMAGENET, (0.25, 0.16, 0.09))),
        ("efficientnet", {"image_mean": IMAGENET, "image_std": (0.5, 0.4, 0.3), "include_top": False}, (IMAGENET, (0.5, 0.4, 0.3))),
        ("efficientnet", {"do_normalize": False, "rescale_factor": 1 / 127.5, "rescale_offset": True, "include_top": False}, (HALF, HALF)),
        ("dinov3", {"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [127.5] * 3}, (HALF, HALF)),
        ("levit", {"image_mean": IMAGENET, "image_std": HALF}, (IMAGENET, HALF)),
    ],
)  # fmt: skip
def test_images_are_scaled_as_the_preprocessor_says(family, told, expected):
    found = transformers_images.images_of({"size": {"height": 224, "width": 224}, **told}, family)
    assert found["mean"] == pytest.approx(expected[0]) and found["std"] == pytest.approx(expected[1])


def test_levits_preprocessor_resizes_to_more_than_it_says():
    told = {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True}
    found = transformers_images.images_of(told, "levit")
    assert (found["input_size"], found["crop_pct"]) == ((3, 224, 224), 0.875)


@pytest.mark.parametrize("epsilon", [0.5, "1e-6", True, None, -1e-6, float("nan"), [1e-6], 10**400])
@pytest.mark.parametrize(("family", "key"), [("vit", "layer_norm_eps"), ("swin", "layer_norm_eps"), ("efficientnet", "batch_norm_eps"), ("mobilenet", "layer_norm_eps")])  # fmt: skip
def test_an_epsilon_that_changes_what_is_computed_or_is_none_is_refused(family, key, epsilon):
    with pytest.raises(UnknownModel, match=f"says {key}"):
        configs._checked(family, {key: epsilon}, "it")
    for usual in (1e-12, 1e-6, 1e-5):
        configs._checked(family, {key: usual}, "it")
