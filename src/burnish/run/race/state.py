"""A race as it stands: its arms, what is known of their networks, and what was decided."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from burnish.choose.decide import Decision
from burnish.choose.ledger import Ledger
from burnish.choose.material import Material
from burnish.data.catalog import Catalog
from burnish.errors import BurnishError, brief, shown
from burnish.recipe import Recipe
from burnish.record.folder import RunFolder
from burnish.run.outset import Facilities
from burnish.run.probed import Looked, looked_at
from burnish.run.race.arms import Arm
from burnish.runtime import Watcher

ARMS, MODELS = "arms", "models"  # its subfolders


class Race:
    """The race as it stands; only this object and its arms change."""

    def __init__(
        self,
        catalog: Catalog,
        recipe: Recipe,
        folder: RunFolder,
        ledger: Ledger,
        watcher: Watcher,
        facilities: Facilities,
        arms: list[Arm],
    ) -> None:
        self.recipe, self.folder, self.ledger = recipe, folder, ledger
        self.watcher, self.facilities, self.arms = watcher, facilities, arms
        self.dataset = looked_at(catalog, recipe, ledger, watcher)
        self.looked: dict[str, Looked] = {}  # by model, whose arms share it
        self.decisions: list[Decision] = []

    @property
    def catalog(self) -> Catalog:
        """The images, and only those that there is time for once a model has looked at them."""
        return self.dataset.catalog

    def leave_out(self, name: str, arms: list[Arm], error: Exception) -> None:
        """Say why, and note it of these arms."""
        unforeseen = f"something unforeseen happened ({type(error).__name__}: {brief(error)})"
        why = str(error) if isinstance(error, BurnishError) else unforeseen
        for arm in arms:
            arm.becomes("failed", why)
        self.watcher.say(f"{shown(name)} is left out: {why}")

    def known(self, part: str) -> dict[str, Any]:
        """A part of the ledger that is a table, to be added to."""
        found = self.ledger.get(part)
        return dict(found[0]) if found is not None else {}

    def subfolder(self, kind: str, name: str, recipe: Recipe, *, end: str = "") -> RunFolder:
        """Hold a folder of the race's own; `end` stands at the end of its name, however long the model's is."""
        slug = "".join(char if char.isalnum() or char in "-_." else "-" for char in name)[:80]
        folder = self.folder.within(kind, slug + end)
        try:
            folder.begin(asdict(recipe))
        except BaseException:  # nobody else would let it go
            folder.close()
            raise
        return folder

    def recipe_of(self, arm: Arm) -> Recipe:
        return replace(self.recipe, model=arm.model, method=arm.method)

    @property
    def material(self) -> Material:
        """Of any of the networks: the images are the same."""
        return next(iter(self.looked.values())).material

    def counts(self) -> dict[str, int]:
        """Images by split."""
        material = self.material
        return {
            "train": len(material.train_rows),
            "val": len(material.val_rows),
            "test": len(material.test_labels),
            "skipped": material.catalog.skipped,
        }
