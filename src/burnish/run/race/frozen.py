"""The frozen part of a race: each network looks at the images once, for the heads of all its arms."""

from __future__ import annotations

import math
import time
from dataclasses import replace

from burnish.backbones.reading.hub import public
from burnish.choose.decide import idle_in, part_decision, probe_contender
from burnish.choose.evidence import Evidence
from burnish.choose.ledger import Ledger
from burnish.choose.material import Bench, Material
from burnish.choose.probing import check_heads, on_all_depths, special_heads
from burnish.choose.survey import no_taps
from burnish.data.looks import write_digests
from burnish.data.sample import thinned
from burnish.data.split import write_splits
from burnish.errors import BurnishError, DataError, NoKerasModel, RecipeError, RunError
from burnish.methods.base import blank_tunable
from burnish.methods.table import method_named
from burnish.record.folder import IMAGES, SPLITS
from burnish.record.learnt import note_learnt
from burnish.run.fetching import Fetching
from burnish.run.further import tuned_before
from burnish.run.outset import backbone_for, detail_for, framing_for, taps_for, whitened
from burnish.run.packed import save
from burnish.run.probed import Looked, look, part_in
from burnish.run.race.arms import Arm
from burnish.run.race.state import ARMS, MODELS, Race
from burnish.train.around import enough_memory, pick_device

_TRAINING_SHARE, _LOOKING_SHARE = 1 / 2, 2 / 3  # of the time left, for frozen heads: before training, and without any


def freeze(race: Race) -> None:
    """Every model's frozen heads; one pass over the images a model, with and without taps."""
    for number, model in enumerate(dict.fromkeys(arm.model for arm in race.arms)):
        own = [arm for arm in race.arms if arm.model == model]
        spent, left_out, began = race.known("looking"), race.known("left out"), time.monotonic()
        try:
            if model in left_out:  # by an earlier sitting: what was too slow then is not tried anew
                raise RecipeError(left_out[model])
            with enough_memory(model):
                race.looked[model] = _look(race, model, number)
        except (DataError, RunError):  # no model could be raced on them, or on a disk like this
            raise
        except Exception as error:  # whatever a foreign network does: the others are raced
            race.leave_out(model, own, error)
            if isinstance(error, BurnishError):  # else it may have been the machine's affair, and is asked again
                race.ledger.put("left out", {**left_out, model: str(error)})
            continue
        spent.setdefault(model, time.monotonic() - began)  # by the sitting that looked
        race.ledger.put("looking", spent)
        race.ledger.write()  # the seconds spent are not given back by a death
        for arm in own:
            if not _fits(race, arm):
                continue
            if not method_named(arm.method).trains:
                _settle_frozen(race, arm, spent[model])
            _tell_idle(race, arm)
    if not race.looked:
        raise RecipeError(f"none of the models can be used; the first: {race.arms[0].why}")
    write_digests(race.folder.path / IMAGES, race.dataset)


def _fits(race: Race, arm: Arm) -> bool:
    """Whether the method can be used on its network: one that would train nothing of it has no part in the race."""
    bench, classes = race.looked[arm.model].bench, len(race.catalog.classes)
    try:
        check_heads(arm.method, several=race.catalog.several, taps=race.recipe.taps)
        if on_all_depths(arm.method, race.recipe_of(arm)) and race.looked[arm.model].probes.deep is None:
            raise RecipeError(no_taps(bench.backbone.name))
        blank_tunable(method_named(arm.method), bench.backbone, race.recipe_of(arm), classes=classes)
    except Exception as error:  # a method may meet anything in a foreign network
        race.leave_out(arm.name, [arm], error)
        return False
    return True


def _tell_idle(race: Race, arm: Arm) -> None:
    """Settings of the command that this arm has no use for."""
    idle = idle_in(race.recipe_of(arm), method_named(arm.method))
    arm.idle = [] if idle is None else [idle]  # in its row: the other arms may have a use for them


def _look(race: Race, model: str, number: int) -> Looked:
    """Survey, decode and probe with one model; in a folder of its own, taken up after a death."""
    own = [arm for arm in race.arms if arm.model == model]
    bench = _bench(race, model, own, budget_seconds=_share_of_clock(race, number))
    race.decisions += tuned_before(bench.backbone, race.dataset, race.watcher)
    note_learnt(race.folder, [bench.backbone, *(one.bench.backbone for one in race.looked.values())])
    race.ledger.write()  # which files are looked at, before there is anything that depends on it
    with race.subfolder(MODELS, f"{number + 1:02d}-{public(model)}", bench.recipe) as folder:
        ledger = Ledger(folder.path, bench.clock, race.watcher)
        ledger.clock = bench.clock  # seconds of earlier sittings are counted once, by the race's own ledger
        bench, white = whitened(race.dataset, bench, ledger)
        bench, framing = framing_for(race.dataset, bench, ledger)
        bench, detail = detail_for(race.dataset, bench, ledger)
        race.decisions += [replace(one, what=f"{public(model)}: {one.what}") for one in (*framing, *detail)]
        race.decisions += white if not race.looked else []  # the same for all
        trains = any(method_named(arm.method).trains for arm in own)
        # All models see the same images: where there is no time for all of them, those that the first has time for.
        looked = look(
            race.dataset, bench, folder, ledger,
            trains=trains, strict=race.facilities.strict, thins=not race.looked,
        )  # fmt: skip
    write_splits(race.folder.path / SPLITS, looked.material.catalog, looked.splits)  # which all models have
    if race.looked:
        _require_same_sides(race, looked.material)
    else:
        if looked.material.catalog.skipped:
            race.decisions.append(part_decision(looked.material))
        part = part_in(ledger.parts["probed"])
        race.dataset = thinned(race.dataset, part, seed=race.recipe.seed)
    return looked


def _bench(race: Race, model: str, own: list[Arm], *, budget_seconds: float | None) -> Bench:
    """The network, its device and its share of the clock; own: its arms."""
    wanted = {taps_for(race.recipe_of(arm)) for arm in own}
    recipe = replace(race.recipe, model=model, taps="off" if wanted == {"off"} else "auto")
    fetching = Fetching(model, race.ledger.clock, race.watcher)
    try:
        backbone = backbone_for(recipe, on_bytes=fetching)
    except NoKerasModel:  # what was said of the Keras files among the models
        recipe = replace(recipe, preprocess="")
        backbone = backbone_for(recipe, on_bytes=fetching)
    heads = special_heads([arm.method for arm in own], several=race.catalog.several)
    clock = replace(race.ledger.clock, budget_seconds=budget_seconds)
    return Bench(
        recipe, backbone, pick_device(recipe.device), clock, race.watcher,
        race.facilities.workers, race.facilities.store, heads, proves=False, deep="on" in wanted,
    )  # fmt: skip


def _share_of_clock(race: Race, number: int) -> float | None:
    """Seconds on the race's clock at which this model's look is to be over; None where the clock has no end.

    Half of what is left is for training, or where there is none a third for the test images; the rest for the models still to
    be seen.
    """
    left, waiting = race.ledger.clock.left(), len({arm.model for arm in race.arms}) - number
    if not math.isfinite(left):
        return None
    training = any(method_named(arm.method).trains for arm in race.arms)
    return race.ledger.clock.elapsed() + left * (_TRAINING_SHARE if training else _LOOKING_SHARE) / waiting


def _require_same_sides(race: Race, material: Material) -> None:
    """RecipeError for a model that is not asked about the very images that the others are.

    Large JPEGs are decoded as the network's size needs it, so two pictures may be the same to one and not to another.
    """
    first = next(iter(race.looked.values())).material
    for one, other in ((first.test.ids, material.test.ids), (first.val_ids, material.val_ids)):
        if [first.catalog.paths[row] for row in one] != [material.catalog.paths[row] for row in other]:
            raise RecipeError(
                "at its image size other pictures count as the same, so its validation or test images are not those of "
                "the other models; give the data splits of its own"
            )


def _settle_frozen(race: Race, arm: Arm, seconds: float) -> None:
    looked = race.looked[arm.model]
    probed = looked.probes.kept(taps_for(race.recipe_of(arm)), arm.method)
    known = len(looked.material.val_rows) > 0
    arm.evidence = (
        Evidence.of_frozen(probed, looked.material) if known else Evidence.out_of_fold(probed, looked.material)
    )
    arm.becomes("frozen")
    arm.seconds = seconds
    with race.subfolder(ARMS, arm.slug, race.recipe_of(arm)) as folder:
        save(folder, probe_contender(probed), looked.material)
        arm.package = folder.path
    race.watcher.say(f"{arm.name}: {'validation' if known else 'cross-validation'} {arm.accuracy:.1%}")
