"""What may be done to an architecture, as plain values that travel with a package and select from this table only (P8)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from burnish.backbones.changing import adapters, surgery, taps
from burnish.errors import ModelError, UnknownModel, nearest, shown

_MOST_LAYERS = 4096
_MOST_CHANGES = 8
_MOST_NUMBERS = 2**28  # of what a change adds: a gigabyte


@dataclass(frozen=True)
class _Kind:
    """One kind of change."""

    apply: Callable[[nn.Module, dict[str, Any]], nn.Module]
    entries: dict[str, Callable[[Any], bool]]  # besides "kind": what each must be
    optional: frozenset[str] = frozenset()  # of the entries: those that may be missing


def _names(value: Any) -> bool:
    return (
        isinstance(value, list)
        and 0 < len(value) <= _MOST_LAYERS
        and all(isinstance(name, str) and 0 < len(name) <= 500 for name in value)
    )


def _numbers(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, list)
        and 0 < len(value) <= _MOST_LAYERS
        and all(type(number) is int and low <= number <= high for number in value)
    )


KINDS: dict[str, _Kind] = {
    taps.KIND: _Kind(
        taps.with_taps,
        {"layers": _names, "channels": _numbers(1, 3), "pyramid": _numbers(0, 65_536)},
        optional=frozenset({"pyramid"}),
    ),
    adapters.ADAPTERS: _Kind(
        adapters.with_adapters,
        {
            "layers": _names,
            "channels": _numbers(1, 3),
            "widths": _numbers(1, 65_536),
            "bottleneck": lambda value: type(value) is int and 1 <= value <= 4096,
            "form": lambda value: value in adapters.FORMS,
        },
    ),
    adapters.PROMPTS: _Kind(
        adapters.with_prompts,
        {
            "layers": _names,
            "widths": _numbers(1, 65_536),
            "tokens": lambda value: type(value) is int and 1 <= value <= 4096,
        },
    ),
    surgery.DROP: _Kind(surgery.without_layers, {"layers": _names}),
    surgery.INSERT: _Kind(
        surgery.with_layers,
        {"layers": _names, "channels": _numbers(1, 3), "widths": _numbers(1, 65_536), "layer": surgery.is_layer},
    ),
}


def numbers_in(change: dict[str, Any]) -> int:
    """How many numbers a change puts into the network, at the least."""
    widths = change.get("widths", [])
    if change["kind"] == surgery.INSERT:
        return sum(surgery.numbers_in(change["layer"], width) for width in widths)
    return sum(widths) * (2 * change.get("bottleneck", 0) + change.get("tokens", 0))


def check_changes(changes: Any) -> None:
    """UnknownModel unless this is a list of changes that the table knows, every entry as it must be."""
    if not isinstance(changes, list) or len(changes) > _MOST_CHANGES:
        raise UnknownModel(f"the changes to the architecture are not a list of at most {_MOST_CHANGES}")
    for change in changes:
        kind = change.get("kind") if isinstance(change, dict) else None
        if not isinstance(kind, str) or kind not in KINDS:
            close = nearest(str(kind), list(KINDS))
            raise UnknownModel(f"no kind of change {shown(repr(kind))} to an architecture (nearest: {close})")
        entries = KINDS[kind].entries
        missing = entries.keys() - change.keys() - KINDS[kind].optional
        unknown = change.keys() - entries.keys() - {"kind"}
        bad = {key for key, fine in entries.items() if key in change and not fine(change[key])}
        wrong = sorted(missing | unknown | bad)
        if wrong:
            raise UnknownModel(
                f"the change {kind!r} has entries that are missing, unknown or wrong: {', '.join(map(shown, wrong))}"
            )
        if len(set(change["layers"])) != len(change["layers"]):
            raise UnknownModel(f"the change {kind!r} names a layer twice")
        if kind == surgery.INSERT and sum(49 * width**2 for width in change["widths"]) > _MOST_NUMBERS:
            raise UnknownModel(f"the change {kind!r} would add more than a gigabyte of weights")
        if numbers_in(change) > _MOST_NUMBERS:
            raise UnknownModel(f"the change {kind!r} would add more than a gigabyte of weights")
        lengths = {len(value) for value in change.values() if isinstance(value, list)}
        if len(lengths) > 1:
            raise UnknownModel(f"the change {kind!r} has lists of different lengths")


def changed(trunk: nn.Module, changes: Sequence[dict[str, Any]]) -> nn.Module:
    """The trunk with these changes made, in their order; ModelError when one does not fit it."""
    for change in changes:
        try:
            trunk = KINDS[change["kind"]].apply(trunk, change)
        except Exception as error:  # tracing and replacing meet whatever the foreign network does
            raise ModelError(
                f"the change {change['kind']!r} does not fit the architecture ({shown(str(error))[:200]})"
            ) from None
    return trunk.eval()
