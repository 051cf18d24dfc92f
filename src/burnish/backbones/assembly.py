"""A module with what must travel with it: a backbone; and the same weights with drop path, or another pooling."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from burnish.backbones import timmed
from burnish.backbones.architectures import LIBRARIES, built, example_for
from burnish.backbones.keras import loader as keras
from burnish.backbones.layers import is_drop_path
from burnish.backbones.spec import Backbone
from burnish.backbones.stages import stages_of, steps_of
from burnish.errors import ModelError, RecipeError, UnknownModel, shown
from burnish.terms import Preprocess


def dropping(backbone: Backbone, drop_path: float) -> Backbone:
    """The same weights in a network with stochastic depth (Huang et al. 2016, arXiv:1603.09382)."""
    try:
        module = built(backbone.architecture, drop_path=drop_path)
    except UnknownModel:  # its constructor does not know the word
        module = nn.Identity()
    if not any(is_drop_path(layer) for layer in module.modules()):
        raise RecipeError(f"{backbone.name} has no residual branches that could be dropped; leave drop_path at 0")
    module.load_state_dict(backbone.module.state_dict())
    return replace(backbone, module=module)


def pooling(backbone: Backbone, pool: str) -> Backbone:
    """The same weights with another way from maps, or tokens, to features."""
    description, library = backbone.architecture, backbone.architecture["library"]
    if library == keras.LIBRARY:
        return keras.pooling(backbone, pool)
    if library != timmed.LIBRARY or pool not in timmed.POOLS:
        known = timmed.POOLS if library == timmed.LIBRARY else ("avg",)
        raise RecipeError(f"pool is {shown(pool)!r}, expected one of {', '.join(known)} for {backbone.name}")
    description = {**description, "kwargs": {**description["kwargs"], "global_pool": pool}}
    try:
        module = built(description)
        own = backbone.module.state_dict()
        # A transformer normalises before it picks a token, and after it averages them.
        spelled = {name: name.replace("fc_norm.", "norm.") for name in module.state_dict() if name not in own}
        spelled |= {name: name.replace("norm.", "fc_norm.") for name in spelled if spelled[name] not in own}
        module.load_state_dict({name: own[spelled.get(name, name)] for name in module.state_dict()})
        found = assembled(backbone.name, module, backbone.preprocess, description, source=backbone.source)
    except (ModelError, KeyError, RuntimeError, AssertionError, ValueError) as error:
        raise RecipeError(f"pool {pool} does not suit {backbone.name} ({shown(str(error))[:120]})") from None
    return replace(found, sha256=backbone.sha256, licence=backbone.licence, notes=backbone.notes)


def assembled(
    name: str,
    module: nn.Module,
    preprocess: Preprocess,
    description: dict[str, Any],
    *,
    source: str,
    sha256: str = "",
) -> Backbone:
    """The backbone, its width and stages read from one forward pass."""
    ours = description["library"] == timmed.LIBRARY
    library = LIBRARIES[description["library"]]
    one_size = library.has_fixed_size(name)
    example = example_for(module, preprocess.size, fixed=one_size)
    steps, width = steps_of(module, example)
    if ours and width not in (told := timmed.told_widths(module, width, description["kwargs"])):
        raise ModelError(f"{name}: gives {width} features, timm says {sorted(told)}; please report it")
    groups = library.groups_of(module, list(module.state_dict()))
    stages = stages_of(module, groups, steps)
    licence = timmed.licence_of(name) if ours else "unknown"
    return Backbone(name, module, width, stages, preprocess, licence, sha256, source, description, one_size)
