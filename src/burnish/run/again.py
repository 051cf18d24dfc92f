"""The command line, or the call in Python, that does a run again."""

from __future__ import annotations

import os
import shlex
from dataclasses import fields

from burnish.recipe import Recipe


def command_of(data: str | os.PathLike[str], recipe: Recipe, quarantine: str | os.PathLike[str] | None = None) -> str:
    """The command line that does this again."""
    return shlex.join(["burnish", "fit", str(data), *settings_of(recipe), *leaving_out(quarantine)])


def call_of(recipe: Recipe) -> str:
    """The call that does this again with images that are handed over in Python."""
    default = Recipe()
    changed = [field.name for field in fields(Recipe) if getattr(recipe, field.name) != getattr(default, field.name)]
    words = [f"{name}={getattr(recipe, name)!r}" for name in changed if name != "budget_seconds"]
    return f"burnish.fit({', '.join(['images', f'budget={recipe.budget_seconds!r}', *words])})"


def settings_of(recipe: Recipe) -> list[str]:
    """The options that say what differs from the defaults."""
    words, default = [], Recipe()
    for name in (field.name for field in fields(Recipe) if field.name != "budget_seconds"):
        value = getattr(recipe, name)
        if name == "search" and value:
            words.append("--search")
        elif value != getattr(default, name):
            words += [f"--{name.replace('_', '-')}", str(value)]
    words += ["--budget", "none" if recipe.budget_seconds is None else f"{recipe.budget_seconds:.12g}s"]
    return words


def leaving_out(quarantine: str | os.PathLike[str] | None) -> list[str]:
    return [] if quarantine is None else ["--quarantine", str(quarantine)]
