"""What hardening stands on: the run's model, and the very images and sides of the split that made it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from burnish.backbones.assembly import assembled
from burnish.backbones.classifier import Classifier
from burnish.backbones.reading.weights import sha256_of
from burnish.backbones.spec import Backbone
from burnish.choose.gathering import stored_side
from burnish.choose.material import Bench, Material
from burnish.data.cache import Pixels, gone, read_pixels
from burnish.data.catalog import Catalog, Splits
from burnish.data.sources import Data
from burnish.disk import text_of
from burnish.errors import NotARun, NotEnoughData, RecipeError, shown, spoilt
from burnish.granted import cores
from burnish.recipe import Recipe
from burnish.record.folder import HARDENED, RECIPE
from burnish.run.further import added_to
from burnish.run.outset import Facilities
from burnish.runtime import Clock, Watcher
from burnish.ship.bundle import WEIGHTS, Bundle, package_folder, read_bundle
from burnish.train.around import pick_device
from burnish.use.own import is_frozen, own_images


@dataclass(frozen=True)
class Ground:
    """A run's model, its own images, and where the work is done."""

    run: Path
    bundle: Bundle
    material: Material
    bench: Bench
    frozen: bool  # whether the run fitted a head alone
    epsilon: float | None = (
        None  # of 255, where it is hardened against small changes made to mislead it, not corruptions
    )

    @cached_property
    def classifier(self) -> Classifier:
        """The run's model, in eval mode; its weights stay as they are."""
        return self.bundle.classifier()

    @property
    def val_labels(self) -> np.ndarray:
        """int64 [v], or bool [v k]."""
        return self.material.labels[self.material.val_rows]


def ground_of(
    run: Path,
    data: Data | None,
    *,
    epsilon: float | None = None,
    seed: int | None,
    device: str,
    clock: Clock,
    watcher: Watcher,
    facilities: Facilities,
) -> Ground:
    """The ground of a finished run; NotARun, DataError or RecipeError where it, its images or its network are not fit for it."""
    if (run / HARDENED).is_file():
        raise RecipeError(
            f"{shown(str(run))} was made by burnish harden, and its test images have told what that came to; harden the run that "
            "it was made of, with more time or another --seed"
        )
    bundle = read_bundle(run)
    frozen = is_frozen(bundle)
    if not frozen and (added := added_to(bundle)):
        raise RecipeError(
            f"{shown(str(run))} holds a network with {added} beside its layers, which cannot be trained further; "
            "harden a run of full, lora or a frozen method"
        )
    if frozen and epsilon is not None:
        raise RecipeError(
            f"{shown(str(run))} fitted a head to a network that stayed as it was, and attacks come through the network; "
            "harden it against corruptions, or a run of --method full against attacks"
        )
    watcher.stage("images")
    catalog, splits = own_images(run, data)
    _require_sides(run, splits)
    recipe = _recipe_of(run, seed)
    bench = Bench(
        recipe, _backbone_of(run, bundle, frozen=frozen), pick_device(device), clock, watcher, facilities.workers,
        facilities.store,
    )  # fmt: skip
    return Ground(run, bundle, _material(catalog, splits, bundle, bench, crops=not frozen), bench, frozen, epsilon)


def _require_sides(run: Path, splits: Splits) -> None:
    """NotEnoughData where there is nothing to choose by, or nothing to prove it on."""
    for side, what in (
        (splits.val, "validation images, by which to choose"),
        (splits.test, "test images, for the proof"),
    ):
        if not len(side):
            raise NotEnoughData(
                f"{shown(str(run))} has no {what}; expected a run with train, val and test images, as burnish fit draws "
                "them where each class has some images"
            )


def _recipe_of(run: Path, seed: int | None) -> Recipe:
    """The run's settings, where its folder tells them, less what has kinds of corruption in it that the proof is by.

    TrivialAugment turns, pales and brightens, cutmix lays a part of one image over another.
    """
    try:
        recipe = Recipe.from_toml(text_of(run / RECIPE)) if (run / RECIPE).is_file() else Recipe()
    except (OSError, ValueError) as error:
        raise NotARun(f"{shown(str(run / RECIPE))} cannot be read ({spoilt(error)})") from None
    augment = "plain" if recipe.augment == "trivial" else recipe.augment
    return replace(recipe, augment=augment, cutmix=0.0, seed=recipe.seed if seed is None else seed)


def _backbone_of(run: Path, bundle: Bundle, *, frozen: bool) -> Backbone:
    """The run's network with its stages; of a frozen one, whose stages nothing asks for, without."""
    trunk, source = bundle.classifier().trunk, f"run {run}"
    if not frozen:
        sha256 = sha256_of(package_folder(run) / WEIGHTS)
        return assembled(bundle.base_model, trunk, bundle.preprocess, bundle.architecture, source=source, sha256=sha256)
    changes = tuple(bundle.architecture.get("changes", ()))
    return Backbone(
        bundle.base_model, trunk, bundle.width, (), bundle.preprocess, bundle.licence, bundle.base_sha256, source,
        bundle.architecture, changes=changes,
    )  # fmt: skip


def _material(catalog: Catalog, splits: Splits, bundle: Bundle, bench: Bench, *, crops: bool) -> Material:
    """All the run's images, decoded; crops: with whole images for training views."""
    preprocess = bundle.preprocess
    side = stored_side(catalog, preprocess.size / preprocess.crop) if crops else None
    bench.watcher.stage("decode", total=len(catalog))
    began = bench.clock.elapsed()
    fitting, test = (
        _read(catalog, splits.fitting, bundle, bench, side),
        _read(catalog, splits.test, bundle, bench, None),
    )
    return Material(
        catalog=catalog,
        fitting=fitting,
        labels=catalog.labels[fitting.ids],
        is_val=np.isin(fitting.ids, splits.val),
        test=test,
        test_labels=catalog.labels[test.ids],
        preprocess=preprocess,
        decoded_per_second=len(catalog) / max(1e-3, bench.clock.elapsed() - began),
        findings=(),
        leaky=np.zeros(len(test.ids), bool),
        search_note="",
        due=len(test.ids),
        together=catalog.grouped(fitting.ids),
    )


def _read(catalog: Catalog, ids: np.ndarray, bundle: Bundle, bench: Bench, side: int | None) -> Pixels:
    """The plain views of these entries, and with `side` the whole images; UnreadableImage for one that is gone."""
    told = 0

    def on_progress(done: int) -> None:
        nonlocal told
        bench.watcher.advance(done - told)
        told = done

    found = read_pixels(
        catalog, ids, preprocess=bundle.preprocess, stored_side=side, workers=cores(), store=bench.store,
        on_progress=on_progress,
    )  # fmt: skip
    if found.named:
        raise gone(found.named[0].path, found.named[0].reason)
    return found
