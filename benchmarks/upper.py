"""What the whole network or its upper part is worth after steps that take as long; one JSON object on stdout.

usage: upper.py DATA [--variants 0:47 4:82 6:135 ...] [--seeds 0] [--size 128]

DATA as of `burnish fit`, or a table under BURNISH_TEST_DATA. A variant is FREEZE:STEPS: with so many leading stages frozen, and
activations of as many views kept as a plan of so many steps keeps, EfficientNet-Lite0 makes so many steps of 32 images. The usual
variants take about 50 and 95 s each on two cores with AVX2. Test images are looked at by all variants, which no run does.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from burnish import api
from burnish.backbones.fast.frozen import FastForm
from burnish.choose import plan
from burnish.choose.answers import logits_of
from burnish.choose.features import plain_at
from burnish.choose.plan import Plan, settled
from burnish.choose.start import start_head
from burnish.choose.tuning import Tuning
from burnish.labels import right
from burnish.methods.base import Method, blank_tunable
from burnish.record.facts import machine
from burnish.run import trained
from burnish.run.probed import Looked
from burnish.train.loop import steps_an_epoch

_USUAL = ["0:47", "4:82", "6:135", "0:95", "4:172", "6:270"]


class _Done(Exception):
    """All variants were trained; what follows in the run is not wanted."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--variants", nargs="+", default=_USUAL)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--size", type=int, default=128)
    asked = parser.parse_args()
    there = Path(os.environ.get("BURNISH_TEST_DATA", ".")) / asked.data
    data, rows = str(there) if there.exists() else asked.data, []

    def instead(method: Method, looked: Looked, _: Any) -> None:
        for variant in asked.variants:
            freeze, steps = map(int, variant.split(":"))
            row = made_so(freeze, steps, asked.size, method, looked)
            rows.append({"set": Path(asked.data).stem, "seed": looked.bench.recipe.seed, **row})
        raise _Done

    trained.planned = instead  # type: ignore[assignment]
    for seed in asked.seeds:
        with tempfile.TemporaryDirectory() as folder, contextlib.suppress(_Done):
            api.fit(
                data,
                budget=None,
                epochs=2,
                method="full",
                seed=seed,
                image_size=asked.size,
                out=Path(folder) / "run",
            )
    print(json.dumps({"benchmark": "upper", "runs": rows, "machine": machine()}, indent=1))


def made_so(freeze: int, steps: int, size: int, method: Method, looked: Looked) -> dict[str, Any]:
    """One variant: its seconds, and how right it is on validation and test images."""
    probes, material, bench = looked.probes, looked.material, looked.bench
    per_epoch = steps_an_epoch(len(material.train_rows), plan.BATCH)
    epochs = steps / per_epoch
    views = plan._views(epochs) if freeze else 0
    sizes = ((0.0, size),)
    made = Plan(
        batch=plan.BATCH,
        sizes=sizes,
        steps=steps,
        epochs=epochs,
        freeze=freeze,
        balanced=False,
        views=views,
        timed=False,
        most=steps,
        reserve_seconds=0.0,
        step_seconds={},
        epoch_seconds=0.0,
        reason="as asked",
    )
    recipe = replace(bench.recipe, freeze=freeze)
    blank = blank_tunable(method, bench.backbone, recipe, classes=len(material.catalog.classes))
    recipe = settled(recipe, made, flip=probes.flip, peak=blank.peak_learning_rate, half=False, device=bench.device)
    bench = replace(bench, recipe=recipe)
    began = time.monotonic()
    head = start_head(probes, made, material, bench)
    headed = time.monotonic()
    tuning = Tuning(method.prepare(bench.backbone, head, recipe), made, probes, material, bench)
    for _ in tuning.events():
        pass
    ended = time.monotonic()
    best = tuning.best()
    assert best is not None
    preprocess = replace(bench.backbone.preprocess, size=size)
    images = plain_at(material, material.test.ids, preprocess, bench)
    tested = right(logits_of(best.classifier, images, preprocess, bench, FastForm()), material.test_labels)
    return {
        "freeze": freeze,
        "steps": steps,
        "epochs": round(epochs, 2),
        "views": views,
        "head_seconds": round(headed - began, 1),
        "training_seconds": round(ended - headed, 1),
        "weights": best.best.name,
        "validation": round(best.best.accuracy, 4),
        "validation_loss": round(best.best.loss, 4),
        "validation_images": len(material.val_rows),
        "test": round(float(tested.mean()), 4),
        "test_images": len(tested),
    }


if __name__ == "__main__":
    main()
