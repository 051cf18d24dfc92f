"""The job of hardening, stage by stage: train, choose, prove, write."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from burnish.backbones.classifier import Classifier
from burnish.data.sources import Data
from burnish.disk import write_whole
from burnish.measure.ood import Familiarity
from burnish.measure.reading import Calibrated
from burnish.record.folder import HARDENED, plain
from burnish.record.made import copy_learnt
from burnish.run.harden.chosen import Control, Look, choose
from burnish.run.harden.ground import Ground, ground_of
from burnish.run.harden.heads import Heads
from burnish.run.harden.network import Network
from burnish.run.harden.proven import Answering, Reading, prove
from burnish.run.outset import Facilities
from burnish.runtime import Clock, Watcher, keep_freed_memory
from burnish.ship.bundle import Bundle, write_bundle
from burnish.train.around import settled_torch

_STAYS = "original stays"


class Hardening(Protocol):
    """Other weights for a run's model, at work since it was made."""

    @property
    def note(self) -> str: ...  # what was done, in words
    def looks(self) -> list[Look]:
        """Sets of weights, the run's own first, and what each says of the validation images."""
        ...

    def classifier(self, look: Look) -> Classifier:
        """The model with those weights."""
        ...

    def control(self, lose: float) -> Control | None:
        """What plain views alone would have made of the model; None where that was not asked or there was no time for it."""
        ...

    def held_out(self, look: Look) -> tuple[np.ndarray, np.ndarray]:
        """(rows of `fitting` int64 [m], logits float32 [m k] of those): answers to images that were not learnt from."""
        ...

    def familiarity(self, look: Look, classifier: Classifier) -> Familiarity | None:
        """What is like the training images to it."""
        ...

    def answering(self, classifiers: list[Classifier]) -> Answering:
        """What gives the logits of several models of one view."""
        ...


@settled_torch()
def run_harden(
    run: Path,
    data: Data | None,
    out: Path,
    *,
    lose: float,
    epsilon: float | None,
    control: bool,
    seed: int | None,
    device: str,
    clock: Clock,
    watcher: Watcher,
    facilities: Facilities,
) -> dict[str, Any]:
    """Harden the run's model, and write the package and the facts of it into the folder `out`; returns the facts."""
    keep_freed_memory()
    ground = ground_of(
        run, data, epsilon=epsilon, seed=seed, device=device, clock=clock, watcher=watcher, facilities=facilities
    )
    hardening: Hardening = Heads(ground) if ground.frozen else Network(ground, controlled=control)
    watcher.say(hardening.note)
    looks = hardening.looks()
    chosen, candidates = choose(looks, ground, lose=lose)
    watcher.say(_said(chosen, candidates, "perturbed" if epsilon is None else "attacked"))
    facts: dict[str, Any] = {
        "run": str(run), "method": ground.bundle.method, "training": hardening.note, "chosen": chosen.name,
        "candidates": candidates, "lose": lose, "epsilon": epsilon, "seed": ground.bench.recipe.seed,
    }  # fmt: skip
    if chosen is looks[0]:
        facts |= {"word": _STAYS, "seconds": clock.elapsed()}
        _write(out, ground, ground.bundle, facts)
        return facts
    held = hardening.control(lose)
    if clock.left() <= 0:
        watcher.say(
            "the budget is used up before the proof, which is therefore late and of few images; give it more time"
        )
    classifier = hardening.classifier(chosen)
    bundle = _bundle(ground, chosen, classifier, hardening)
    own = ground.bundle
    readings = [
        Reading(one.temperature, 0.5 if one.thresholds is None else np.array(one.thresholds)) for one in (own, bundle)
    ]
    models = [ground.classifier, classifier]
    if held is not None:
        watcher.say(f"control: {held.facts['training']}")
        read = Calibrated.of(held.plain, ground.val_labels)
        models, readings = [*models, held.classifier], [*readings, Reading(read.temperature, read.cut)]
    facts |= {"control": None if held is None else held.facts}
    facts |= prove(ground, models, hardening.answering(models), readings, lose=lose)
    facts["seconds"] = clock.elapsed()
    _write(out, ground, bundle, facts)
    return facts


def _said(chosen: Look, candidates: list[dict[str, Any]], kind: str) -> str:
    """The choice in a sentence; kind: of the validation images that it was made by."""
    first, told = candidates[0], next(one for one in candidates if one["name"] == chosen.name)
    if told is first:
        return f"the run's own weights stay: none are clearly better on {kind} validation images and keep what plain ones have"
    return (
        f"{told['name']} is kept: {told['perturbed']:.1%} of {kind} validation images right against {first['perturbed']:.1%}, "
        f"of plain ones {told['clean']:.1%} against {first['clean']:.1%}"
    )


def _bundle(ground: Ground, chosen: Look, classifier: Classifier, hardening: Hardening) -> Bundle:
    """The run's package with other weights; what it knows of itself is of answers to images that it has not learnt from."""
    rows, logits = hardening.held_out(chosen)
    material, own = ground.material, ground.bundle
    labels, groups = material.labels[rows], material.catalog.grouped(material.fitting.ids[rows])
    read = Calibrated.of(logits, labels, groups)
    return replace(
        own,
        state={name: tensor.detach().cpu().clone() for name, tensor in classifier.state_dict().items()},
        head=classifier.form,
        temperature=read.temperature,
        thresholds=read.kept_thresholds,
        held_out=read.held_out,
        familiarity=hardening.familiarity(chosen, classifier),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        facts={**own.facts, "hardened": {"share": chosen.share}},
    )


def _write(folder: Path, ground: Ground, bundle: Bundle, facts: dict[str, Any]) -> None:
    """The package, what it learnt from, and the facts."""
    write_bundle(folder, bundle)
    copy_learnt(ground.run, folder)
    write_whole(folder / HARDENED, json.dumps(plain(facts), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
