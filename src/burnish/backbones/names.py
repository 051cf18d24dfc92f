"""The names that models go by."""

from __future__ import annotations

from burnish.backbones import timmed
from burnish.backbones.reading import weights
from burnish.backbones.torchvision import networks as torchvisions
from burnish.errors import UnknownModel, nearest, shown

EMBEDDED_NAMES = {
    alias: one.name for one in weights.EMBEDDED.values() for alias in (one.name, one.arch, f"lite{one.number}")
}


def unaliased(name: str) -> str:
    return weights.EMBEDDED[EMBEDDED_NAMES[name]].arch if name in EMBEDDED_NAMES else name


def checked_name(name: str) -> str:
    """The name itself; UnknownModel with the nearest names when timm's tables do not hold it."""
    if timmed.is_known(name):
        return name
    if name in ("random", "random:"):
        raise UnknownModel("random is said with a network, as in random:resnet50: it has no weights of its own")
    near = nearest(name, all_names(), alike=True)
    raise UnknownModel(f"no model {shown(name)!r}{f' (nearest: {near})' if near else ''}; see: burnish models")


def all_names() -> list[str]:
    return [*EMBEDDED_NAMES, *timmed.names(), *timmed.published_names(), *torchvisions.names()]
