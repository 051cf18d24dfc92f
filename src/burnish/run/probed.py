"""From the catalogue to frozen heads and a first saved model: survey, decode, probe; or what an earlier sitting settled of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from burnish.auditing import strict_sentence
from burnish.choose.decide import probe_contender
from burnish.choose.features import fitting_features
from burnish.choose.gathering import gather
from burnish.choose.holdout import first_splits
from burnish.choose.instalments import Instalments
from burnish.choose.ledger import Ledger, check_origin, origin_of, probes_from, probes_parts
from burnish.choose.material import Bench, Material
from burnish.choose.probing import Probed, Probes, probe
from burnish.choose.survey import Surveyed, survey
from burnish.data.audit.findings import csv_of, in_order
from burnish.data.catalog import Catalog, Splits
from burnish.data.looks import Dataset
from burnish.data.sample import Part, Taken, is_late
from burnish.data.split import write_splits
from burnish.errors import DataError, RunError, shown
from burnish.recipe import Recipe
from burnish.record.folder import AUDIT_TABLE, SPLITS, RunFolder
from burnish.run.packed import save
from burnish.runtime import Watcher, minutes


def looked_at(
    catalog: Catalog, recipe: Recipe, ledger: Ledger, watcher: Watcher, *, all_of_them: bool = False
) -> Dataset:
    """`first_splits` of as many files as an earlier sitting looked at, where there was one and it had these images; noted."""
    whole, known = catalog.digest, ledger.get("looked")
    count = len(catalog) if all_of_them else None
    if count is None and known is not None and isinstance(known[0], dict) and known[0]["of"] == whole:
        count = int(known[0]["count"])
    dataset = first_splits(catalog, recipe, watcher, known=count)
    ledger.put("looked", {"count": len(dataset.catalog), "of": whole})
    return dataset


@dataclass(frozen=True)
class Looked:
    """What a network's look at the images came to: what all later work rests on."""

    bench: Bench
    material: Material
    splits: Splits  # of the images that can be used
    probes: Probes


def look(
    dataset: Dataset,
    bench: Bench,
    folder: RunFolder,
    ledger: Ledger,
    *,
    trains: bool,
    strict: bool = False,
    thins: bool = True,
) -> Looked:
    """Survey, decode, probe; the probe is saved as the first model. In a later sitting what was settled is read back.

    strict: whether errors that the audit finds stop the run. thins: whether images may be left out where the budget has no time
    for all.
    """
    known = ledger.get("probed")
    if known is not None:
        return _taken_up(dataset, bench, folder, *known, strict=strict)
    surveyed = survey(dataset, bench, trains=trains, thins=thins)

    def saves(probed: Probed, material: Material) -> None:
        save(folder, probe_contender(probed), material)

    first = Instalments(
        _taken(dataset, surveyed, bench), surveyed, bench,
        thins=thins, early=not strict, save=saves if bench.proves else None,  # nothing is saved before a strict run's audit
    )  # fmt: skip
    material, splits, taken = gather(
        first.taken, bench, surveyed.preprocess,
        trains=surveyed.trains, looking=first, decoded_per_second=surveyed.decoded_per_second,
    )  # fmt: skip
    write_splits(folder.path / SPLITS, material.catalog, splits)
    folder.write(AUDIT_TABLE, csv_of(material.findings))
    if strict:
        _refuse_errors(material, folder)
    seen = first.fits_all(material, fitting_features(material, surveyed, bench, first.seen()))
    probes = probe(material, seen, surveyed, bench, tail_seconds=first.pace.tail_seconds)
    del seen
    folder.write(AUDIT_TABLE, csv_of(in_order([*material.findings, *probes.findings])))
    probed = probes.kept(bench.recipe.taps, bench.recipe.method)
    save(folder, probe_contender(probed), material)
    seconds = bench.clock.elapsed()
    _settle(ledger, surveyed, probes, material, splits, bench, taken.part, first_model_seconds=first.seconds or seconds)
    bench.watcher.say(f"probe saved at {seconds:.0f} s: {probed.choice.words}")
    return Looked(bench, material, splits, probes)


def _taken(dataset: Dataset, surveyed: Surveyed, bench: Bench) -> Taken:
    """The images that there is time for; what is left out is said."""
    part = surveyed.part
    taken, before = Taken(dataset, part, bench.recipe.seed), len(dataset.catalog)
    catalog = taken.dataset.catalog
    if len(catalog) < before:
        bench.watcher.say(
            f"{before - len(catalog):,} of {before:,} images are left out: the budget has no time for all"
        )
    if part is not None and is_late(part, len(catalog.classes)):
        end = bench.clock.elapsed() + surveyed.costs.until_proven(len(taken.order.fitting), len(taken.order.test))
        bench.watcher.say(
            "the few images that each class needs take longer than the budget: the run will end late, after about "
            f"{minutes(end)}"
        )
    return taken


def _settle(
    ledger: Ledger,
    surveyed: Surveyed,
    probes: Probes,
    material: Material,
    splits: Splits,
    bench: Bench,
    part: Part | None,
    *,
    first_model_seconds: float,
) -> None:
    """Make durable what a later sitting goes on from."""
    facts, tensors = probes_parts(probes)
    ledger.put(
        "probed",
        {
            "probed": facts,
            "trains": surveyed.trains,
            "data": [material.content, splits.sha256],
            "origin": origin_of(bench.backbone, bench.device),
            "first_model_seconds": first_model_seconds,
            "part": None if part is None else asdict(part),
            "decoded_per_second": surveyed.decoded_per_second,
        },
        tensors,
    )
    ledger.write()


def _taken_up(
    dataset: Dataset,
    bench: Bench,
    folder: RunFolder,
    settled: dict[str, Any],
    tensors: dict[str, Tensor],
    *,
    strict: bool,
) -> Looked:
    """What an earlier sitting settled; RunError where the images, the labels or the network are others now."""
    check_origin(settled["origin"], origin_of(bench.backbone, bench.device), folder.path, bench.watcher)
    part = part_in(settled)
    probes = probes_from(settled["probed"], tensors, bench.backbone)
    material, splits, _ = gather(
        Taken(dataset, part, bench.recipe.seed), bench, probes.last.preprocess, trains=settled["trains"],
        decoded_per_second=settled.get("decoded_per_second"),
    )  # fmt: skip
    if [material.content, splits.sha256] != settled["data"]:
        raise RunError(
            f"the images or labels changed since the run in {shown(str(folder.path))} began; "
            "restore them to go on with it, or name another folder with --out"
        )
    _write_missing(folder, material, splits, probes)
    bench.watcher.say(
        f"going on with the run in {shown(str(folder.path))}, which was stopped after {bench.clock.elapsed():.0f} s of work"
    )
    if strict:  # the sitting before may not have been
        _refuse_errors(material, folder)
    return Looked(bench, material, splits, probes)


def _refuse_errors(material: Material, folder: RunFolder) -> None:
    """DataError where the audit found what --strict stops at."""
    if any(one.level == "error" for one in material.findings):
        raise DataError(strict_sentence(material.findings, str(folder.path / AUDIT_TABLE)))


def _write_missing(folder: RunFolder, material: Material, splits: Splits, probes: Probes) -> None:
    """The files of a first sitting that somebody removed since."""
    if not (folder.path / SPLITS).exists():
        write_splits(folder.path / SPLITS, material.catalog, splits)
    if not (folder.path / AUDIT_TABLE).exists():
        folder.write(AUDIT_TABLE, csv_of(in_order([*material.findings, *probes.findings])))


def part_in(probed: dict[str, Any]) -> Part | None:
    """The part of the images that the ledger's `probed` was made from; None: all."""
    return None if probed.get("part") is None else Part(**probed["part"])
