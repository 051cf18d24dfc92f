"""METHODS: the list that the command line, the docs and the contract tests read."""

from __future__ import annotations

from dataclasses import replace

from burnish.errors import RecipeError, nearest, shown
from burnish.methods.adapter import Adapter
from burnish.methods.base import Method, options_of
from burnish.methods.bitfit import BitFit
from burnish.methods.full import Full
from burnish.methods.gradual import Gradual
from burnish.methods.l2sp import L2SP
from burnish.methods.lora import LoRA
from burnish.methods.norms import Norms
from burnish.methods.probe import MultiProbe, Probe
from burnish.methods.prompt import Prompt
from burnish.methods.scratch import Scratch
from burnish.methods.surgical import Surgical
from burnish.methods.top import Top

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Probe(),
        MultiProbe(),
        Full(),
        Top(),
        Gradual(),
        Norms(),
        BitFit(),
        LoRA(),
        Adapter(),
        Prompt(),
        L2SP(),
        Surgical(),
        Scratch(),
    )
}


_BY_STAGE = ("full", "top", "gradual", "l2sp")


def learns_by_stage(method: Method) -> bool:
    """Whether earlier stages learn more slowly, by the recipe's `stage_decay`; the others have one rate."""
    return method.name in _BY_STAGE


def method_named(name: str) -> Method:
    """The method of that name, with its options where they are given: lora:rank=4:where=*.attn.*

    RecipeError with the nearest names, or the options there are.
    """
    kind, *given = name.split(":")
    if kind == "auto":
        raise RecipeError(
            "auto is how fit chooses: frozen heads first (probe, multiprobe), then full or lora, kept when better; here name "
            "methods themselves; see: burnish methods"
        )
    if kind not in METHODS:
        choices = ["auto", *METHODS]
        raise RecipeError(f"no method {shown(kind)!r} (nearest: {nearest(kind, choices)}); see: burnish methods")
    method = METHODS[kind]
    known, changes = options_of(method), {}
    for part in given:
        key, equals, text = part.partition("=")
        if not equals or key not in known:
            there = ", ".join(f"{option}={value}" for option, value in known.items()) or "none"
            raise RecipeError(f"the method {kind} has no option {shown(part)!r} (its options: {there})")
        try:
            changes[key] = type(known[key])(text)
        except ValueError:
            what = "a whole number" if isinstance(known[key], int) else "a number"
            raise RecipeError(f"the option {key} of {kind} is {shown(text)!r}, expected {what}") from None
    return replace(method, **changes)  # type: ignore[type-var]
