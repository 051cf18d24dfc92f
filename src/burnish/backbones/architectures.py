"""Descriptions of networks as plain values that travel with a package, and the networks built from them (P8).

    {"library": "timm", "name": "resnet50", "kwargs": {}, "changes": [...]}

A description selects from tables in our code; it never names a module, a class or a path.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from burnish.backbones import cifar, timmed
from burnish.backbones.changing.changes import changed, check_changes, numbers_in
from burnish.backbones.keras import graph as keras
from burnish.backbones.reading import recognise
from burnish.backbones.spec import Backbone
from burnish.backbones.torchvision import networks as torchvisions
from burnish.errors import ModelError, UnknownModel, nearest, shown

_SMALL_PIXELS = 64  # enough for all but fixed-size networks, and quick


@dataclass(frozen=True)
class Library:
    """Where architectures of one kind come from."""

    check: Callable[[Any, Any], None]  # UnknownModel unless (name, kwargs) select one of them
    build: Callable[..., nn.Module]  # (name, kwargs, *, drop_path); headless, eval mode, random weights
    groups_of: Callable[[nn.Module, list[str]], list[list[str]]]  # names of weights in runs, input to output
    # (name, kwargs) -> how many it holds, nothing built; None: untold
    numbers_of: Callable[[Any, Any], int | None] = lambda name, kwargs: None
    has_fixed_size: Callable[[str], bool] = lambda name: False  # whether a network is built for one image size


LIBRARIES = {
    timmed.LIBRARY: Library(timmed.check, timmed.build, timmed.groups_of, timmed.numbers_of, timmed.has_fixed_size),
    torchvisions.LIBRARY: Library(
        torchvisions.check, torchvisions.build, torchvisions.groups_of, has_fixed_size=torchvisions.has_fixed_size
    ),
    cifar.LIBRARY: Library(cifar.check, cifar.build, cifar.groups_of),
    keras.LIBRARY: Library(keras.check, keras.build, keras.groups_of, keras.numbers_of),
}


def architecture_for_bundle(backbone: Backbone) -> dict[str, Any]:
    """What `rebuild` needs to build the backbone's module again, as plain JSON values."""
    changes = [*backbone.architecture.get("changes", []), *backbone.changes]
    return {**backbone.architecture, **({"changes": changes} if changes else {})}


def check_architecture(architecture: Any) -> None:
    """UnknownModel unless this is a description from `architecture_for_bundle`: names select from our tables only."""
    if not isinstance(architecture, dict) or set(architecture) - {"changes"} != {"library", "name", "kwargs"}:
        raise UnknownModel('the architecture is not described by "library", "name" and "kwargs"')
    library = architecture["library"]
    if not isinstance(library, str) or library not in LIBRARIES:
        close = nearest(str(library), LIBRARIES)
        raise UnknownModel(f"the architecture is of the library {shown(str(library))[:80]!r}, expected one of {close}")
    LIBRARIES[library].check(architecture["name"], architecture["kwargs"])
    check_changes(architecture.get("changes", []))


def built(architecture: dict[str, Any], *, seed: int = 0, drop_path: float = 0.0) -> nn.Module:
    """The headless module of a description, its changes made; random weights drawn from `seed`, eval mode.

    The global generators are left as they were.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also reseed the accelerators
        library = LIBRARIES[architecture["library"]]
        module = library.build(architecture["name"], architecture["kwargs"], drop_path=drop_path)
        return changed(module, architecture.get("changes", []))


def numbers_of(architecture: dict[str, Any]) -> int | None:
    """How many numbers a stored architecture would hold, at the least; None where that cannot be told. Nothing is built.

    UnknownModel when the description is not one of ours.
    """
    check_architecture(architecture)
    added = sum(numbers_in(change) for change in architecture.get("changes", []))
    own = LIBRARIES[architecture["library"]].numbers_of(architecture["name"], architecture["kwargs"])
    return added + (own or 0) or None


def refuse_few(architecture: dict[str, Any], held: int, label: str, *, times: int = 2) -> None:
    """BadWeights where a large architecture is described for weights that hold far fewer numbers than it has; nothing is built.

    times: how many times fewer, by the index of architectures, are too few; twenty by what the description's own options make.
    """
    check_architecture(architecture)
    name = str(architecture.get("name"))
    if not (architecture["library"] == timmed.LIBRARY and timmed.is_cut_small(name, architecture["kwargs"])):
        recognise.require_numbers(name, held, label, times=times)
    if (numbers := numbers_of(architecture)) is not None:
        recognise.refuse_few(name, held, numbers, label, times=20)


def rebuild(
    architecture: dict[str, Any], *, seed: int = 0, drop_path: float = 0.0, width: int | None = None, size: int = 224
) -> nn.Module:
    """The headless module of a stored architecture, weights still random (drawn from `seed`), eval mode; nothing is fetched.

    size: pixels of its images, for trying out changes. UnknownModel when the description is not one of ours; ModelError
    when its changes do not fit the network, or do not give features of this width.
    """
    check_architecture(architecture)
    changes, plain = architecture.get("changes", []), {**architecture, "changes": []}
    module = built(plain, seed=seed, drop_path=drop_path)
    if not changes:
        return module
    example = example_for(
        module, architecture["kwargs"].get("img_size", size), fixed="img_size" in architecture["kwargs"]
    )
    module = changed(module, changes)
    name = shown(str(architecture["name"]))
    try:
        with torch.no_grad():
            found = tuple(module(example).shape)
    except Exception as error:  # whatever a layer says to an input that is not for it
        raise ModelError(f"{name}: the changes do not fit the network ({shown(str(error))[:160]})") from None
    if width is not None and found != (1, width):
        raise ModelError(f"{name}: with its changes it gives {list(found)}, expected [1, {width}]")
    return module


def example_for(module: nn.Module, size: int, *, fixed: bool) -> Tensor:
    """A grey image [1 3 s s], as small as the network takes."""
    if not fixed:
        try:
            with torch.no_grad():
                module(small := torch.zeros(1, 3, min(_SMALL_PIXELS, size), min(_SMALL_PIXELS, size)))
            return small
        except (RuntimeError, AssertionError, ValueError):
            pass  # too small for this network: take the full size
    return torch.zeros(1, 3, size, size)
