"""The network of an earlier run, to be tuned further: `--model runs/flowers-1`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from burnish.backbones import adapters, taps
from burnish.backbones.assembly import assembled, dropping, pooling
from burnish.backbones.spec import Backbone
from burnish.backbones.surgery import operated
from burnish.backbones.weights import sha256_of
from burnish.data.catalog import Catalog, Splits
from burnish.data.looks import Looks
from burnish.disk import expanded
from burnish.errors import ModelError, RecipeError, shown
from burnish.recipe import Recipe
from burnish.runtime import Watcher
from burnish.ship.bundle import FACTS, POINTER, WEIGHTS, package_folder, read_bundle
from burnish.using import learnt_from

_ADDED = {adapters.ADAPTERS: "adapters", adapters.PROMPTS: "prompts"}  # which are no layers of the network


def is_run(model: str) -> bool:
    """Whether a model's name is the folder of a run or of a package."""
    try:
        folder = expanded(model)
        return any((folder / name).is_file() for name in (FACTS, POINTER))
    except OSError:  # too long for any folder
        return False


def backbone_of_run(recipe: Recipe) -> Backbone:
    """The tuned network that `recipe.model`, a folder, holds, less its head; images are prepared as that run did.

    NotARun, BadWeights where the package is damaged; RecipeError where it is no other network than the run began with, or
    where the recipe asks for what cannot be done to it.
    """
    folder = Path(expanded(recipe.model))
    bundle, called = read_bundle(folder), shown(recipe.model)
    kinds = [change["kind"] for change in bundle.architecture.get("changes", [])]
    if taps.KIND in kinds or bundle.method in ("probe", "multiprobe"):
        raise RecipeError(
            f"{called} kept frozen heads on {shown(bundle.base_model)}, whose weights are as they were; name that network"
        )
    if added := next((words for kind, words in _ADDED.items() if kind in kinds), ""):
        raise RecipeError(
            f"{called} holds a network with {added} beside its layers, which cannot be tuned further; tune with full or lora"
        )
    for name in ("arch", "preprocess"):
        if getattr(recipe, name):
            raise RecipeError(f"{name} is for files of weights; {called} says itself what its network is")
    backbone = assembled(
        bundle.base_model,
        bundle.classifier().trunk,
        bundle.preprocess,
        bundle.architecture,
        source=f"run {recipe.model}",
        sha256=sha256_of(package_folder(folder) / WEIGHTS),
    )
    if backbone.one_size and recipe.image_size not in ("auto", backbone.preprocess.size):
        raise RecipeError(
            f"the network in {called} takes images of {backbone.preprocess.size} pixels alone; leave --image-size at auto"
        )
    tuned = (
        f"tuned before, with {shown(bundle.method)} on {len(bundle.classes)} classes, at {bundle.preprocess.size} px"
    )
    backbone = replace(backbone, licence=bundle.licence, notes=(tuned,))
    try:
        backbone = pooling(backbone, recipe.pool) if recipe.pool else backbone
        backbone = dropping(backbone, recipe.drop_path) if recipe.drop_path else backbone
    except (ModelError, RuntimeError) as error:  # of a network with layers taken out or put in
        raise RecipeError(f"neither pool nor drop_path can be set of {called} ({shown(str(error))[:120]})") from None
    return operated(backbone, depth=recipe.depth, remove=recipe.remove, insert=recipe.insert)


def refuse_learnt(model: str, catalog: Catalog, splits: Splits, looks: Looks, watcher: Watcher) -> None:
    """RecipeError where the test images are not new to a run's network that is tuned further: they would prove nothing.

    looks: of the catalogue's entries, whose content tells; where it is not known what the network has learnt from, that is said.
    """
    if not is_run(model):
        return
    _, contents = learnt_from(Path(expanded(model)))
    if not contents:
        watcher.say(
            f"{shown(model)}: it is not known which images its network has learnt from; the test must have none of them"
        )
        return
    seen = [entry for entry in splits.test if looks.digests[entry] in contents]
    if seen:
        raise RecipeError(
            f"{len(seen)} of the {len(splits.test)} test images are among those that {shown(model)} has learnt from (first: "
            f"{shown(catalog.paths[seen[0]])}), so they would prove nothing; say the --seed and the fractions of that run, or "
            "keep other images for the test"
        )
