"""The smallest network that is told by its tensors."""

from __future__ import annotations

from pathlib import Path

import torch


def smallest_network(folder: Path) -> dict[str, torch.Tensor]:
    """The smallest network that is told by its tensors."""
    from burnish.backbones import cifar

    torch.manual_seed(0)
    return cifar.build("cifar_resnet8", {"shortcut": "pad"}).state_dict()


def valid_safetensors(folder: Path) -> Path:
    from safetensors.torch import save_file

    save_file(smallest_network(folder), folder / "valid.safetensors")
    return folder / "valid.safetensors"


def smallest_bytes(folder: Path) -> bytes:
    return valid_safetensors(folder).read_bytes()
