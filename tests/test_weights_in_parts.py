"""Files in which a network's weights are in parts: of a norm and a direction, of a LoRA."""

from __future__ import annotations

import json

import pytest
import timm
import torch
import torchvision
from networks import images, seen, settled
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune

from burnish.backbones.zoo import load_backbone
from burnish.errors import BadWeights

torch.set_num_threads(1)


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
