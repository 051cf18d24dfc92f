"""torchvision's architectures that timm lacks: AlexNet, SqueezeNet, GoogLeNet, ShuffleNet V2, MNASNet, MaxViT, Swin V2.

    alexnet, squeezenet1_0, squeezenet1_1        arXiv:1404.5997, 1602.07360
    googlenet                                    arXiv:1409.4842; without its two heads at the side
    shufflenet_v2_x0_5, x1_0, x1_5, x2_0         arXiv:1807.11164
    mnasnet0_5, 0_75, 1_0, 1_3                   arXiv:1807.11626
    maxvit_t; swin_v2_t, s, b                    arXiv:2204.01697, 2111.09883

A network is torchvision's own layers in a row, under torchvision's names, less what gives the classes.
"""

from __future__ import annotations

import importlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from burnish.backbones.layers import is_drop_path
from burnish.backbones.stages import by_layer
from burnish.errors import UnknownModel, nearest, shown

LIBRARY = "torchvision"
_Shape = tuple[int, ...]


@dataclass(frozen=True)
class _Family:
    """What networks of one kind have in common."""

    heads: tuple[str, ...]  # beginnings of names of weights that the trunk is without
    layers: Callable[[Any], dict[str, nn.Module]]  # of torchvision's module, in order, names and all
    kwargs: Mapping[str, Any]  # for torchvision's constructor
    partition: int = 0  # pixels that the side of its images is a multiple of, 0 where any will do


def _pooled(layers: dict[str, nn.Module]) -> dict[str, nn.Module]:
    return {**layers, "pooled": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(1)}


def _without_last(head: nn.Sequential) -> nn.Sequential:
    return nn.Sequential(*list(head)[:-1])


def _alexnet(whole: Any) -> dict[str, nn.Module]:
    hidden = _without_last(whole.classifier)
    return {"features": whole.features, "avgpool": whole.avgpool, "flat": nn.Flatten(1), "classifier": hidden}


def _features(whole: Any) -> dict[str, nn.Module]:
    return _pooled({"features": whole.features})


def _children(whole: Any) -> dict[str, nn.Module]:
    """All layers before the pooling and the classifier."""
    return _pooled({name: layer for name, layer in whole.named_children() if name not in ("avgpool", "dropout", "fc")})


def _mnasnet(whole: Any) -> dict[str, nn.Module]:
    return _pooled({"layers": whole.layers})


def _maxvit(whole: Any) -> dict[str, nn.Module]:
    """The hidden layer of the classifier stays, as in timm's form of it."""
    return {"stem": whole.stem, "blocks": nn.Sequential(*whole.blocks), "classifier": _without_last(whole.classifier)}


def _swin(whole: Any) -> dict[str, nn.Module]:
    return {name: layer for name, layer in whole.named_children() if name != "head"}


_FAMILIES = {
    "alexnet": _Family(("classifier.6.",), _alexnet, {}),
    "squeezenet": _Family(("classifier.",), _features, {}),
    "googlenet": _Family(("fc.", "aux1.", "aux2."), _children, {"aux_logits": False, "init_weights": False}),
    "shufflenet": _Family(("fc.",), _children, {}),
    "mnasnet": _Family(("classifier.",), _mnasnet, {}),
    "maxvit": _Family(("classifier.5.",), _maxvit, {}, 224),
    "swin": _Family(("head.",), _swin, {}),
}
# Shapes that tell an architecture from all others; None stands for any number (of colours, say).
_SIGNS: dict[str, dict[str, tuple[int | None, ...]]] = {
    "alexnet": {"features.0.weight": (64, None, 11, 11), "features.10.weight": (256, 256, 3, 3)},
    "squeezenet1_0": {"features.0.weight": (96, None, 7, 7), "features.3.squeeze.weight": (16, 96, 1, 1)},
    "squeezenet1_1": {"features.0.weight": (64, None, 3, 3), "features.3.squeeze.weight": (16, 64, 1, 1)},
    "googlenet": {"inception3a.branch1.conv.weight": (64, 192, 1, 1), "inception5b.branch1.conv.weight": (384, 832, 1, 1)},
    **{
        f"shufflenet_v2_x{name}": {"stage2.0.branch2.0.weight": (half, 24, 1, 1), "conv5.0.weight": (last, 8 * half, 1, 1)}
        for name, half, last in (("0_5", 24, 1024), ("1_0", 58, 1024), ("1_5", 88, 1024), ("2_0", 122, 2048))
    },
    **{
        f"mnasnet{name}": {"layers.0.weight": (first, None, 3, 3), "layers.8.0.layers.0.weight": (3 * inside, inside, 1, 1)}
        for name, first, inside in (("0_5", 16, 8), ("0_75", 24, 16), ("1_0", 32, 16), ("1_3", 40, 24))
    },
    "maxvit_t": {"blocks.0.layers.0.layers.MBconv.layers.conv_a.0.weight": (256, 64, 1, 1)},
    **{
        f"swin_v2_{name}": {"features.0.0.weight": (width, None, 4, 4), f"features.5.{last}.attn.cpb_mlp.0.weight": (512, 2)}
        for name, width, last in (("t", 96, 5), ("s", 96, 17), ("b", 128, 17))
    },
}  # fmt: skip


def names() -> list[str]:
    """All of these architectures."""
    return list(_SIGNS)


def is_known(name: str) -> bool:
    """Whether it is the name of one of them."""
    return name in _SIGNS


def head_prefixes(name: str) -> tuple[str, ...]:
    """Beginnings of the names of weights that the trunk is without."""
    return _family(name).heads


def has_fixed_size(name: str) -> bool:
    """Whether the network is built for one image size."""
    return bool(_family(name).partition)


def recognised(shapes: Mapping[str, _Shape]) -> str | None:
    """The name of the network with tensors of these names and shapes; None when they are of another kind."""
    found = [name for name, signs in _SIGNS.items() if all(_is(shapes.get(key), sign) for key, sign in signs.items())]
    return found[-1] if found else None  # a Swin V2-S has all that tells a V2-T


def described(name: str, image_size: int | None = None) -> dict[str, Any]:
    """The plain description of a network; image_size counts only where it has one size."""
    sized = image_size is not None and has_fixed_size(name)
    return {"library": LIBRARY, "name": name, "kwargs": {"img_size": image_size} if sized else {}}


def check(name: Any, kwargs: Any) -> None:
    """UnknownModel unless these describe such a network."""
    if not isinstance(name, str) or not is_known(name):
        close = nearest(str(name)[:80], names())
        raise UnknownModel(f"no architecture {shown(str(name))[:80]!r} of torchvision's here (nearest: {close})")
    partition = _family(name).partition
    if not isinstance(kwargs, dict) or not set(kwargs) <= ({"img_size"} if partition else set()):
        raise UnknownModel(f"{name}: the architecture has options that burnish does not know")
    size = kwargs.get("img_size", partition)
    if partition and (type(size) is not int or size not in range(partition, 1025, partition)):
        raise UnknownModel(
            f"{name}: its images are {partition} pixels a side, or 2, 3 or 4 times that, not {shown(repr(size))[:40]}"
        )


def build(name: str, kwargs: dict[str, Any], *, drop_path: float = 0.0) -> nn.Module:
    """The headless module in eval mode, its weights drawn from the global generator."""
    family = _family(name)
    options = dict(family.kwargs)
    if "img_size" in kwargs:
        options["input_size"] = (kwargs["img_size"],) * 2
    whole = importlib.import_module("torchvision.models").get_model(name, weights=None, **options)
    module = nn.Sequential(OrderedDict(family.layers(whole))).eval()
    branches: list[Any] = [layer for layer in module.modules() if is_drop_path(layer)]
    if drop_path and not branches:
        raise UnknownModel(f"{name}: has no drop path")
    most = max((layer.p for layer in branches), default=0.0)
    for layer in branches:  # torchvision's constructors fix how often the last one is dropped
        layer.p *= drop_path / most
    return module


def groups_of(module: nn.Module, names: list[str]) -> list[list[str]]:
    """One a layer, and one for each part of a series."""
    return by_layer(names)


def _family(name: str) -> _Family:
    return next(family for begins, family in _FAMILIES.items() if name.startswith(begins))


def _is(shape: _Shape | None, sign: tuple[int | None, ...]) -> bool:
    if shape is None or len(shape) != len(sign):
        return False
    return all(wanted in (None, side) for side, wanted in zip(shape, sign, strict=True))
