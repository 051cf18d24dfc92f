"""A model made the package of a run."""

from __future__ import annotations

from burnish.choose.material import Material
from burnish.choose.proof import Contender
from burnish.record.folder import RunFolder
from burnish.record.learnt import FURTHER
from burnish.ship.bundle import Bundle, write_bundle


def save(folder: RunFolder, contender: Contender, material: Material) -> None:
    """Make this model the run's package. RunError where the disk refuses, or the folder is no longer held."""
    folder.require_held()
    bundle = Bundle.of(
        contender.backbone,
        contender.classifier,
        classes=material.catalog.classes,
        method=contender.name,
        preprocess=contender.preprocess,
        temperature=contender.temperature,
        held_out=contender.held_out,
        familiarity=contender.familiarity,
        thresholds=None if contender.thresholds is None else tuple(map(float, contender.thresholds)),
        facts={
            "validation_accuracy": contender.validation_accuracy,
            **({FURTHER: True} if contender.backbone.learnt is not None else {}),
        },
    )
    write_bundle(folder.path, bundle)
