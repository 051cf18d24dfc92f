"""METHODS: the list that the command line, the docs and the contract tests read."""

from __future__ import annotations

from burnish.errors import RecipeError, nearest, shown
from burnish.methods.base import Method
from burnish.methods.full import Full
from burnish.methods.probe import Probe

METHODS: dict[str, Method] = {method.name: method for method in (Probe(), Full())}


def method_named(name: str) -> Method:
    """The method of that name; RecipeError with the nearest names."""
    if name not in METHODS:
        choices = ["auto", *METHODS]
        raise RecipeError(f"no method {shown(name)!r} (nearest: {nearest(name, choices)}); see: burnish methods")
    return METHODS[name]
