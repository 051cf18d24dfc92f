"""The ResNets that He et al. trained on CIFAR (2015, arXiv:1512.03385, section 4.2): three stages of 16, 32, 64 channels.

Their checkpoints are common and no library of models holds them. Names are those of the usual reimplementations.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from burnish.errors import UnknownModel, shown
from burnish.terms import Preprocess

LIBRARY = "cifar"
WIDTHS = (16, 32, 64)
HEADS = ("linear.", "fc.")
PREPROCESS = Preprocess(size=32, crop=1.0, interpolation="bicubic")
_SHORTCUTS = ("pad", "shortcut", "downsample")  # option A, and option B under its two usual names
_NAME = re.compile(r"cifar_resnet(\d{1,4})")


class _Pad(nn.Module):
    """Option A: every second pixel, and zeros for the new channels; no weights."""

    def __init__(self, more: int) -> None:
        super().__init__()
        self.more = more

    def forward(self, images: Tensor) -> Tensor:
        return F.pad(images[:, :, ::2, ::2], (0, 0, 0, 0, self.more // 2, self.more - self.more // 2))


class _Block(nn.Module):
    """Two 3 × 3 convolutions and a shortcut."""

    def __init__(self, inside: int, outside: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.act2 = nn.ReLU()
        self._name = "shortcut" if shortcut == "pad" else shortcut
        way: nn.Module = nn.Sequential()
        if stride != 1 or inside != outside:
            plain = nn.Conv2d(inside, outside, 1, stride, bias=False)
            way = _Pad(outside - inside) if shortcut == "pad" else nn.Sequential(plain, nn.BatchNorm2d(outside))
        self.add_module(self._name, way)

    def forward(self, images: Tensor) -> Tensor:
        within = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(images)))))
        return self.act2(within + self._modules[self._name](images))  # type: ignore[misc]


class CifarResNet(nn.Module):
    """Images [b 3 s s] to features [b 64]; depth 6 n + 2."""

    def __init__(self, depth: int, shortcut: str) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.act1 = nn.ReLU()
        inside = WIDTHS[0]
        for number, width in enumerate(WIDTHS, start=1):
            members = []
            for place in range(blocks):
                members.append(_Block(inside, width, 2 if place == 0 and number > 1 else 1, shortcut))
                inside = width
            self.add_module(f"layer{number}", nn.Sequential(*members))

    def forward(self, images: Tensor) -> Tensor:
        within = self.act1(self.bn1(self.conv1(images)))
        for name in ("layer1", "layer2", "layer3"):
            within = self._modules[name](within)  # type: ignore[misc]
        return within.mean((2, 3))


def recognised(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
    """The description of the network with these tensors; None when they are of another kind."""
    if shapes.get("conv1.weight") != (16, 3, 3, 3) or "layer3.0.conv2.weight" not in shapes:
        return None
    if "layer1.0.conv3.weight" in shapes or "layer4.0.conv1.weight" in shapes:
        return None
    blocks = len({name.split(".")[1] for name in shapes if name.startswith("layer1.")})
    name = f"cifar_resnet{6 * blocks + 2}"
    options = [word for word in _SHORTCUTS if f"layer2.0.{word}.0.weight" in shapes]
    return described(name, options[0] if options else "pad") if is_known(name) else None


def described(name: str, shortcut: str = "pad") -> dict[str, Any]:
    """The plain description of cifar_resnet20, 32, …"""
    return {"library": LIBRARY, "name": name, "kwargs": {"shortcut": shortcut}}


def is_known(name: str) -> bool:
    """Whether it is the name of such a network."""
    found = _NAME.fullmatch(name)
    return found is not None and 8 <= int(found[1]) <= 1202 and (int(found[1]) - 2) % 6 == 0


def check(name: Any, kwargs: Any) -> None:
    """UnknownModel unless these describe such a network."""
    if not isinstance(name, str) or not is_known(name):
        raise UnknownModel(
            f"no architecture {shown(str(name))[:80]!r}: expected cifar_resnet20, 32, 44, 56, … (6 n + 2)"
        )
    if not isinstance(kwargs, dict) or set(kwargs) != {"shortcut"} or kwargs["shortcut"] not in _SHORTCUTS:
        raise UnknownModel(f"{name}: expected one option, shortcut, of {', '.join(_SHORTCUTS)}")


def build(name: str, kwargs: dict[str, Any], *, drop_path: float = 0.0) -> nn.Module:
    """The headless module in eval mode, its weights drawn from the global generator."""
    if drop_path:
        raise UnknownModel(f"{name}: has no drop path")
    return CifarResNet(int(name.removeprefix("cifar_resnet")), kwargs["shortcut"]).eval()


def groups_of(module: nn.Module, names: list[str]) -> list[list[str]]:
    """Stem and the three stages."""
    heads = ("layer1.", "layer2.", "layer3.")
    groups = [[name for name in names if not name.startswith(heads)]]
    return groups + [[name for name in names if name.startswith(head)] for head in heads]
