"""What the kept model is held against besides the frozen probe: training from scratch, and the model of an earlier run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from burnish.backbones.spec import Learnt
from burnish.choose.aim import balance_for
from burnish.choose.decide import Decision, tuned_contender
from burnish.choose.ledger import Ledger
from burnish.choose.material import Bench, Material
from burnish.choose.plan import Plan, plan, settled
from burnish.choose.probing import Probes
from burnish.choose.proof import Contender, Tested
from burnish.choose.rates import Rates
from burnish.choose.tuning import Tuning
from burnish.data.contents import is_redrawn
from burnish.disk import expanded
from burnish.errors import RecipeError, RunError, shown
from burnish.methods.base import Tunable, blank_head, blank_tunable
from burnish.methods.table import method_named
from burnish.recipe import Recipe, recipe_from
from burnish.record.facts import baseline
from burnish.record.learnt import FURTHER, learnt_from
from burnish.runtime import Clock
from burnish.ship.bundle import Bundle, read_bundle

_SCRATCH = method_named("scratch")
_NO_MEMORY = "the device has no memory for its batches"
# Of the steps that fit: they are made without a look at the clock, so that a run taken up makes the same.
_CAREFUL = 0.9


@dataclass(frozen=True)
class Earlier:
    """The kept model of an earlier run."""

    name: str  # its folder
    bundle: Bundle
    paths: frozenset[str]  # that it was trained on or chosen by; none where they are not known
    learnt: Learnt  # what is in those, and in what its network had learnt from before

    def has_learnt_from(self, material: Material) -> tuple[np.ndarray, bool]:
        """Which test images it has learnt from, bool [m], and whether those are known to be all.

        By what is in them, under any name; where that cannot be told, by path, which tells nothing of an earlier tuning.
        """
        catalog, test = material.catalog, material.test
        if self.learnt.hashes and not is_redrawn(catalog.contents):
            return np.array([one in self.learnt.hashes for one in test.looks.digests], bool), self.learnt.known
        known = not self.bundle.facts.get(FURTHER) and not self.paths.isdisjoint(catalog.paths)
        return np.array([catalog.paths[entry] in self.paths for entry in test.ids], bool), known


def earlier(run: str, classes: tuple[str, ...], *, several: bool) -> Earlier:
    """The model of a run that this one is to be held against; RunError unless it tells the very same classes."""
    folder = expanded(run)
    bundle = read_bundle(folder)
    if set(bundle.classes) != set(classes) or bundle.several != several:
        strange = sorted(set(bundle.classes) ^ set(classes))[:3]
        why = (
            f"other classes ({', '.join(map(shown, strange))}, …)"
            if strange
            else "another task (one class an image, or several)"
        )
        raise RunError(f"against {shown(run)}: that run has {why}, so the two cannot be compared; leave --against out")
    paths, learnt = learnt_from(Path(folder), further=bool(bundle.facts.get(FURTHER)))
    return Earlier(run, bundle, frozenset(paths), learnt)


def earlier_contender(one: Earlier, bench: Bench, classes: tuple[str, ...]) -> Contender:
    """The earlier model, with its classes in the order of this run's."""
    bundle, order = one.bundle, [one.bundle.classes.index(name) for name in classes]
    state = dict(bundle.state)
    for name in [name for name in state if name.startswith(("head.weight", "head.bias", "head.scale", "head.out."))]:
        state[name] = state[name][order]
    if "head.votes" in state:
        state["head.votes"] = state["head.votes"][:, order]
    classifier = replace(bundle, state=state).classifier()
    cut = None if bundle.thresholds is None else np.array(bundle.thresholds)[order]
    return Contender(
        name=bundle.method,
        role="against",
        backbone=bench.backbone,
        classifier=classifier,
        preprocess=bundle.preprocess,
        temperature=bundle.temperature,
        validation_accuracy=0.0,
        thresholds=cut,
    )


def earlier_baseline(one: Earlier, tested: Tested, kept: Tested, material: Material) -> dict[str, Any] | None:
    """The comparison, on the test images that the earlier run did not learn from; None when it learnt from all."""
    learnt, known = one.has_learnt_from(material)
    fresh = ~learnt
    if not fresh.any():
        return None
    notes = [f"{int(learnt.sum())} test images that it learnt from are left out"] if learnt.any() else []
    if not known:  # as of a package alone
        notes.append(f"it is not known whether it learnt from some of {'the others' if notes else 'these images'}")
    note = f" ({'; '.join(notes)})" if notes else ""
    groups = material.catalog.grouped(material.test.ids[fresh])
    return baseline("against", f"the earlier run {one.name}{note}", tested.right[fresh], kept.right[fresh], groups)


def half_for(clock: Clock, *, reserve_seconds: float) -> Clock:
    """A clock that leaves half of what is left, but for the reserve, to a training that follows."""
    if clock.budget_seconds is None:
        return clock
    spare = max(0.0, clock.left() - reserve_seconds)
    return replace(clock, budget_seconds=clock.budget_seconds - spare / 2)


def from_scratch(probes: Probes, material: Material, bench: Bench, ledger: Ledger) -> tuple[Contender | None, Decision]:
    """The network trained from random weights for what is left of the clock, and how that went.

    A run that is taken up makes the same steps again.
    """
    if not len(material.val_rows):
        return _not_trained("there are no validation images to choose by")
    bench.watcher.stage("from scratch")
    bench = replace(bench, recipe=_scratch_recipe(bench, material), asked=True)
    settled_before = ledger.get("scratch")
    if settled_before is not None:
        made, recipe = Plan.from_json(settled_before[0]["plan"]), recipe_from(settled_before[0]["recipe"])
    else:
        try:
            made, recipe = _scratch_plan(probes, material, bench, ledger)
        except RecipeError as error:
            return _not_trained(str(error))
        except torch.OutOfMemoryError:
            return _not_trained(_NO_MEMORY)
    if not made.steps:
        return _not_trained(made.reason)
    bench = replace(bench, recipe=recipe)
    zero = blank_head(bench.backbone, recipe, classes=len(material.catalog.classes))
    tuning = Tuning(_SCRATCH.prepare(bench.backbone, zero, recipe), made, probes, material, bench)
    try:
        for _ in tuning.events():
            pass
    except torch.OutOfMemoryError:  # statistics of a part of a batch would be others
        return _not_trained(_NO_MEMORY)
    if tuning.diverged is not None:
        return _not_trained(tuning.diverged)
    best = tuning.best()
    if best is None:
        return _not_trained("the network gives no numbers with any of the trained weights")
    contender = replace(tuned_contender(best, material, method="scratch"), role="scratch")
    why = f"{made.steps} steps at {made.final_size} px: validation {contender.validation_accuracy:.1%}"
    return contender, Decision("trained from scratch, as a baseline", why)


def _not_trained(why: str) -> tuple[None, Decision]:
    return None, Decision("not trained from scratch", why)


def _scratch_recipe(bench: Bench, material: Material) -> Recipe:
    """The run's recipe for random weights: all of the network learns, at a rate and size of its own."""
    recipe, classes = bench.recipe, len(material.catalog.classes)
    return replace(
        recipe,
        method="scratch",
        learning_rate="auto",
        freeze=0,
        search=False,
        epochs=recipe.epochs if bench.clock.budget_seconds is None else "auto",
        balance=balance_for(recipe, material.labels[material.train_rows], classes=classes),
        image_size="auto",
        precision="auto",
    )


def _scratch_plan(probes: Probes, material: Material, bench: Bench, ledger: Ledger) -> tuple[Plan, Recipe]:
    """The plan for what is left of the clock, and the recipe that it settles; made durable.

    Raises RecipeError where the settings allow no training, torch.OutOfMemoryError where the device has no memory for it.
    """

    def blank(recipe: Recipe) -> Tunable:
        return blank_tunable(_SCRATCH, bench.backbone, recipe, classes=len(material.catalog.classes))

    rates = Rates(material, bench, forward_per_second=probes.images_per_second, at=probes.last.preprocess.size)
    made = plan(lambda freeze: blank(replace(bench.recipe, freeze=freeze)), material, bench, rates)
    made = replace(made, steps=int(made.steps * (_CAREFUL if made.timed else 1.0)))
    peak = blank(bench.recipe).peak_learning_rate
    recipe = settled(bench.recipe, made, flip=probes.flip, peak=peak, half=False, device=bench.device, pretrained=False)
    ledger.put("scratch", {"plan": made.to_json(), "recipe": asdict(recipe)})
    ledger.write()
    return made, recipe
