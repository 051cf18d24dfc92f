"""The fields of a recipe as options of the command line."""

from __future__ import annotations

from collections.abc import Callable, Collection
from inspect import Parameter, Signature, signature
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import typer

from burnish.recipe import SETTINGS, Recipe
from burnish.verbs.options import DEFAULT, number_or_auto

Verb = TypeVar("Verb", bound=Callable[..., None])
_KINDS = get_type_hints(Recipe)


def with_settings(*first: str, without: Collection[str] = ()) -> Callable[[Verb], Verb]:
    """Gives typer an option for each setting of a recipe in place of a verb's `**settings`.

    Those named first stand before the verb's own `budget`, the others behind its `out`. without: settings that it has none for.
    """
    others = [name for name, one in SETTINGS.items() if one.help and name not in (*first, *without)]

    def given(verb: Verb) -> Verb:
        options: list[Parameter] = []
        for own in signature(verb, eval_str=True).parameters.values():
            if own.name == "budget":
                options += map(_option, first)
            if own.kind is not Parameter.VAR_KEYWORD:
                options.append(own)
            if own.name == "out":
                options += map(_option, others)
        vars(verb)["__signature__"] = Signature(options)
        return verb

    return given


def values_of(settings: dict[str, Any]) -> dict[str, Any]:
    """What was given with those options; where a word may stand for a number, the number is read."""
    return {name: number_or_auto(value, kind) if (kind := _number(name)) else value for name, value in settings.items()}


def _option(name: str) -> Parameter:
    setting, kind = SETTINGS[name], _KINDS[name]
    names = [f"--{name}"] if kind is bool else []  # else typer would make a --no-NAME too
    option = typer.Option(*names, help=setting.help, metavar=setting.metavar, rich_help_panel=setting.panel)
    # Words, and numbers that a word may stand for, come as text: `Recipe` says what is wrong with them.
    annotation = Annotated[str if get_args(kind) else kind, option]
    return Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=getattr(DEFAULT, name), annotation=annotation)


def _number(name: str) -> type | None:
    """The kind of number that a word may stand for."""
    return next((kind for kind in get_args(_KINDS[name]) if kind in (int, float)), None)
