"""The network of an earlier run, to be tuned further: `--model runs/flowers-1`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from burnish.backbones.assembly import assembled, dropping, pooling
from burnish.backbones.changing import adapters, taps
from burnish.backbones.changing.surgery import operated
from burnish.backbones.reading.weights import sha256_of
from burnish.backbones.spec import Backbone
from burnish.backbones.zoo import is_name
from burnish.choose.decide import Decision
from burnish.data.contents import is_redrawn
from burnish.data.looks import Dataset
from burnish.disk import expanded
from burnish.errors import BadWeights, BurnishError, ModelError, NotARun, RecipeError, shown
from burnish.recipe import Recipe
from burnish.record.folder import read_facts
from burnish.record.learnt import FURTHER, learnt_from
from burnish.runtime import Watcher
from burnish.ship.bundle import FACTS, POINTER, WEIGHTS, Bundle, package_folder, read_bundle

_ADDED = {adapters.ADAPTERS: "adapters", adapters.PROMPTS: "prompts"}  # which are no layers of the network


def is_run(model: str) -> bool:
    """Whether a model's name is the folder of a run or of a package; a network's own name is none, whatever lies there."""
    if not any(mark in model for mark in "/\\") and is_name(model):
        return False
    try:
        folder = expanded(model)
        return any((folder / name).is_file() for name in (FACTS, POINTER))
    except (OSError, ValueError):  # too long for any folder
        return False


def backbone_of_run(recipe: Recipe) -> Backbone:
    """The tuned network that `recipe.model`, a folder, holds, less its head; images are prepared as that run did.

    BadWeights where the package is damaged; RecipeError where it is no other network than the run began with, or where the
    recipe asks for what cannot be done to it.
    """
    folder, called = Path(expanded(recipe.model)), shown(recipe.model)
    try:
        bundle = read_bundle(folder)
        _refuse_unfit(bundle, recipe)
        _, learnt = learnt_from(folder, further=bool(bundle.facts.get(FURTHER)))
    except NotARun as error:  # a run's folder is a model here
        raise BadWeights(str(error)) from None
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
    backbone = operated(backbone, depth=recipe.depth, remove=recipe.remove, insert=recipe.insert)
    return replace(backbone, learnt=learnt)


def _refuse_unfit(bundle: Bundle, recipe: Recipe) -> None:
    """RecipeError for a package whose network is no other than its run began with, or has more than its own layers."""
    called, kinds = shown(recipe.model), [change["kind"] for change in bundle.architecture.get("changes", [])]
    if taps.KIND in kinds or bundle.method.partition(":")[0] in ("probe", "multiprobe"):
        began = shown(_began_with(Path(expanded(recipe.model)), bundle))
        raise RecipeError(f"{called} kept frozen heads on {began}, whose weights are as they were; name that model")
    if added := added_to(bundle):
        raise RecipeError(
            f"{called} holds a network with {added} beside its layers, which cannot be tuned further; tune with full or lora"
        )
    for name in ("arch", "preprocess"):
        if getattr(recipe, name):
            raise RecipeError(f"{name} is for files of weights; {called} says itself what its network is")


def added_to(bundle: Bundle) -> str:
    """What a package's network has beside its layers, in a word; "" where nothing."""
    kinds = [change["kind"] for change in bundle.architecture.get("changes", [])]
    return next((words for kind, words in _ADDED.items() if kind in kinds), "")


def _began_with(folder: Path, bundle: Bundle) -> str:
    """What the run's own model was, as its user named it."""
    try:
        return str(read_facts(folder)["recipe"]["model"])
    except (BurnishError, KeyError, TypeError):  # a package alone
        return bundle.base_model


def tuned_before(backbone: Backbone, dataset: Dataset, watcher: Watcher) -> list[Decision]:
    """That the network has been tuned before, and whether these images are new to it.

    RecipeError where images are among those: cross-validation, choices and the test would all be too hopeful. Their
    content tells.
    """
    learnt, (catalog, _, looks) = backbone.learnt, dataset
    if learnt is None:
        return []
    seen = [path for path, digest in zip(catalog.paths, looks.digests, strict=True) if digest in learnt.hashes]
    if seen:
        raise RecipeError(
            f"{len(seen)} of the {len(catalog)} images are among those that the network of {shown(backbone.source)} has learnt "
            f"from (first: {shown(seen[0])}), so that neither cross-validation nor a test on them would prove anything; leave "
            "them out (--quarantine takes that run's splits.csv), or begin with the network as it was published"
        )
    what, why = f"begins with a tuned network, {backbone.source}", f"; {'; '.join(backbone.notes)}"
    if learnt.known and not is_redrawn(catalog.contents):
        return [Decision(what, f"none of these images is among the {len(learnt.hashes)} that it has learnt from{why}")]
    unknown = (
        "it is not known which images it has learnt from: where some of these are among them, nothing here is proven"
    )
    watcher.say(f"{shown(backbone.source)}: {unknown}")
    return [Decision(what, f"{unknown}{why}")]
