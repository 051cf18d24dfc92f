"""What a setting takes and what it is for, as data: the checks of `Recipe`, its help and the options of the command line."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from burnish.errors import shown

TRAINING: Final = "How it trains"
PROOF: Final = "What it is held against"
SURGERY: Final = "How the network is changed (names: burnish models NAME --stages)"


@dataclass(frozen=True)
class Takes:
    """Which values are allowed, and the words for them."""

    holds: Callable[[Any], bool]
    expected: str


@dataclass(frozen=True)
class Setting:
    """What is known of one field of a recipe.

    help: what the option is for, or "" where the command line has none of this name. panel: the heading that the option stands
    under. metavar: what stands for its value. trains: whether it acts on training alone, and so on nothing where none of the
    network is trained. in_compare: what to say instead where models and methods are compared; "" where it is the same there.
    """

    takes: Takes
    help: str = ""
    panel: str | None = None
    metavar: str | None = None
    trains: bool = False
    in_compare: str = ""

    def problem(self, name: str, value: Any) -> str | None:
        """What is wrong with that value, as a clause; None where it is allowed."""
        try:
            fine = self.takes.holds(value)
        except TypeError:
            fine = False
        if fine:
            return None
        told = shown(repr(value))
        told = told if len(told) <= 200 else f"{told[:60]}… (a {type(value).__name__})"
        return f"{name} is {told}, expected {self.takes.expected}"


def setting(default: Any, takes: Takes, help: str = "", **more: Any) -> Any:
    """A dataclass field with that default and a `Setting`, which `more` are fields of."""
    return field(default=default, metadata={"setting": Setting(takes, help, **more)})


def text(expected: str, holds: Callable[[str], bool] = lambda _: True) -> Takes:
    """A string of which holds is true."""
    return Takes(lambda value: isinstance(value, str) and holds(value), expected)


def words(*allowed: str) -> Takes:
    """One of a few words."""
    *first, last = (f'"{word}"' for word in allowed)
    return Takes(lambda value: isinstance(value, str) and value in allowed, f"{', '.join(first)} or {last}")


def whole(low: int, high: int, expected: str = "") -> Takes:
    """A whole number in that range, both ends in it."""
    said = expected or f"a whole number from {low:,} to {high:,}"
    return Takes(lambda v: isinstance(v, int) and not isinstance(v, bool) and low <= v <= high, said)


def real(low: float, high: float, *, unit: str = "a number", above: bool = False, below: bool = False) -> Takes:
    """A finite number in that range; above, below: without its lower or upper end."""

    def holds(value: Any) -> bool:
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
            return False
        return (low < value if above else low <= value) and (value < high if below else value <= high)

    upper = "and below" if below else "and at most" if above else "to"
    return Takes(holds, f"{unit} {'above' if above else 'from'} {low:g} {upper} {high:g}")


def either(allowed: tuple[str, ...], takes: Takes) -> Takes:
    """One of a few words, or what else is taken."""
    said = ", ".join(f'"{word}"' for word in allowed)
    return Takes(
        lambda value: (isinstance(value, str) and value in allowed) or takes.holds(value), f"{said} or {takes.expected}"
    )
