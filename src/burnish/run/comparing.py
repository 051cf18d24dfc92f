"""A race of models and methods under one clock, and one look at the test images for those that are left.

What costs least is asked first: every model's frozen heads by cross-validation; then short trainings of all that could
still win; then longer ones of the better half. Choices are made on the validation images alone, which are the same for all.
"""

from __future__ import annotations

from typing import Any

from burnish.choose.aim import balance_for
from burnish.choose.ledger import Ledger
from burnish.data.catalog import Catalog
from burnish.recipe import Recipe
from burnish.record.facts import machine
from burnish.record.folder import COMPARED, RunFolder
from burnish.run.outset import Facilities
from burnish.run.race.arms import Arm
from burnish.run.race.frozen import freeze
from burnish.run.race.rounds import train
from burnish.run.race.state import Race
from burnish.run.race.tested import score
from burnish.runtime import Clock, Watcher, keep_freed_memory
from burnish.train.around import settled_torch


@settled_torch()
def run_compare(
    catalog: Catalog,
    recipe: Recipe,
    folder: RunFolder,
    *,
    models: list[str],
    methods: list[str],
    clock: Clock,
    watcher: Watcher,
    facilities: Facilities,
    data: str,
    command: str,
) -> dict[str, Any]:
    """Race all combinations; the leaderboard as plain values, also written to the folder.

    An arm that cannot run (a method that fits no layer of the model) is told and left out; all failing is an error.
    """
    keep_freed_memory()
    balance_for(recipe, catalog.labels, classes=len(catalog.classes))  # what cannot be balanced is refused at once
    ledger = Ledger(folder.path, clock, watcher)
    arms = [Arm(model, method, place) for place, (model, method) in enumerate((m, x) for m in models for x in methods)]
    race = Race(catalog, recipe, folder, ledger, watcher, facilities, arms)
    freeze(race)
    train(race)
    rows = score(race)
    facts = {
        "kind": "compare",
        "data": data,
        "command": command,
        "rows": rows,
        "chosen": next((row["name"] for row in rows if row["chosen"]), None),
        "decisions": [decision.to_json() for decision in race.decisions],
        "counts": race.counts(),
        "classes": len(catalog.classes),
        "several": catalog.several,
        "budget_seconds": recipe.budget_seconds,
        "seconds": ledger.clock.elapsed(),
        "machine": machine(),
    }
    folder.write_json(COMPARED, facts)
    return facts
