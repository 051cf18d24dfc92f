"""The main job, stage by stage in the order the data flows: from a catalogue to a proven, saved model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from burnish.backbones.spec import Backbone
from burnish.backbones.zoo import load_backbone
from burnish.choose.decide import Decision, keep_tuned, probe_contender, probe_decisions, tuned_contender
from burnish.choose.material import Bench, Material, gather
from burnish.choose.plan import plan, settled
from burnish.choose.probing import Probed, probe
from burnish.choose.proof import Contender, put_to_test
from burnish.choose.tuning import Candidate, Tuned, Tuning, start_head
from burnish.data.catalog import Catalog
from burnish.data.split import make_splits, write_splits
from burnish.errors import RecipeError
from burnish.facts import facts_of, verdict_of
from burnish.methods.base import Method
from burnish.methods.table import method_named
from burnish.recipe import Recipe
from burnish.report.board import Board
from burnish.report.page import render
from burnish.result import BOARD, HISTORY, RECIPE, REPORT, RESULT, SPLITS, RunFolder
from burnish.runtime import Clock, Stopwatch, Watcher, keep_freed_memory
from burnish.ship.bundle import Bundle, write_bundle
from burnish.train.loop import Epoch


def run_job(
    catalog: Catalog, recipe: Recipe, folder: RunFolder, *, clock: Clock, watcher: Watcher, data: str, command: str
) -> None:
    """Probe, save; tune, save when better; choose; prove on the test images; write the record and the report."""
    keep_freed_memory()
    method = method_named("full" if recipe.method == "auto" else recipe.method)
    watch = Stopwatch(watcher, clock)
    splits = make_splits(
        catalog, seed=recipe.seed, test_fraction=recipe.test_fraction, val_fraction=recipe.val_fraction
    )
    watch.stage("model")
    device = pick_device(recipe.device)
    bench = Bench(recipe, backbone_for(recipe), device, clock, watch)
    material, splits = gather(catalog, splits, bench)
    write_splits(folder.path / SPLITS, material.catalog, splits)

    probed = probe(material, bench)
    kept = probe_contender(probed, bench)
    contenders = [kept]
    save(folder, kept, material, bench)
    first_model_seconds = clock.elapsed()
    decisions = probe_decisions(probed)
    found = f"{probed.choice.accuracy:.1%} ± {probed.choice.standard_error:.1%} cross-validated"
    watch.say(f"probe saved at {first_model_seconds:.0f} s: {found}")

    journal = Journal(folder, watch)
    if method.trains:
        tuned, bench, reasons = tune_on_the_clock(method, probed, material, bench, folder, journal)
        decisions += reasons
        if tuned is not None:
            contenders.append(tuned_contender(tuned, material, method=method.name))
            keep, decision = keep_tuned(probed, tuned, method=method.name, asked_for=recipe.method != "auto")
            decisions.append(decision)
            kept = contenders[-1] if keep else kept
    bench = replace(
        bench, recipe=replace(bench.recipe, method=kept.name, epochs=len(journal.rows) or bench.recipe.epochs)
    )
    folder.write(RECIPE, bench.recipe.to_toml())
    save(folder, kept, material, bench)
    watch.say(decisions[-1].what + ": " + decisions[-1].why)

    tested = put_to_test(contenders, material, bench)
    watch.stage("report")
    verdict = verdict_of(tested, kept, seconds=clock.elapsed())
    facts = facts_of(
        tested=tested,
        kept=kept,
        verdict=verdict,
        decisions=decisions,
        history=journal.rows,
        stages_seconds=watch.so_far(),
        first_model_seconds=first_model_seconds,
        material=material,
        splits=splits,
        bench=bench,
        data=data,
        command=command,
    )
    folder.write_json(RESULT, facts)  # before all that only shows it
    folder.write(REPORT, render(facts))
    journal.close(facts)


def tune_on_the_clock(
    method: Method, probed: Probed, material: Material, bench: Bench, folder: RunFolder, journal: Journal
) -> tuple[Tuned | None, Bench, list[Decision]]:
    """Train as long as the clock allows; the best candidate, the bench with its settled recipe, and why.

    Whenever the moving average beats all that was saved before on the validation images, it becomes the package.
    """
    flip = Decision("flip: on" if probed.flip else "flip: off", probed.flip_reason)
    if len(material.val_rows) == 0:
        return None, bench, [flip, Decision("probe kept", "there are no validation images to choose by")]
    bench.watcher.stage("plan")
    tunable = method.prepare(bench.backbone, probed.train_head, bench.recipe)
    made = plan(
        tunable, material, bench, forward_per_second=probed.images_per_second, probe_size=probed.preprocess.size
    )
    why = Decision("schedule", made.reason, {"epochs": made.epochs, "reserve_seconds": made.reserve_seconds})
    bench = replace(
        bench,
        recipe=settled(bench.recipe, made, flip=probed.flip, peak=tunable.peak_learning_rate, device=bench.device),
    )
    folder.write(RECIPE, bench.recipe.to_toml())
    if made.schedule is None:
        return None, bench, [flip, why]
    bench.watcher.say(made.reason)
    bench.watcher.stage("tune")
    tunable = method.prepare(bench.backbone, start_head(probed, made, material, bench), bench.recipe)
    tuning = Tuning(tunable, made, probed, material, bench)
    saved = float(probed.val_right.mean())
    for epoch, candidate in tuning.epochs():
        journal.epoch(epoch, candidate)
        if candidate.accuracy > saved:
            saved = candidate.accuracy
            model = Tuned(tuning.classifier(candidate), candidate, (candidate,))
            save(folder, tuned_contender(model, material, method=method.name), material, bench)
    bench.watcher.stage("choose")
    reasons = [flip, why]
    if tuning.diverged is not None:
        reasons.append(Decision("training stopped early", tuning.diverged))
    return tuning.best(), bench, reasons


class Journal:
    """The history of a run, as JSON lines, TensorBoard scalars and lines for the onlooker."""

    def __init__(self, folder: RunFolder, watcher: Watcher) -> None:
        self.folder, self.watcher = folder, watcher
        self.rows: list[dict[str, Any]] = []
        self.board = Board(folder.path / BOARD)

    def epoch(self, epoch: Epoch, candidate: Candidate) -> None:
        """One epoch's line."""
        row = {
            "epoch": epoch.number,
            "seconds": epoch.seconds,
            "size": epoch.size,
            "lr": epoch.learning_rate,
            "progress": epoch.progress,
            "steps": epoch.steps,
            "train_loss": epoch.train_loss,
            "val_accuracy": candidate.accuracy,
            "val_loss": candidate.loss,
            "images_per_second": epoch.images_per_second,
        }
        self.rows.append(row)
        self.folder.append(HISTORY, row)
        self.board.scalars(
            epoch.steps,
            {
                "train/loss": epoch.train_loss,
                "train/learning_rate": epoch.learning_rate,
                "train/images_per_second": epoch.images_per_second,
                "train/size": epoch.size,
                "val/accuracy": candidate.accuracy,
                "val/loss": candidate.loss,
            },
        )
        self.watcher.say(
            f"epoch {epoch.number} at {epoch.size} px: loss {epoch.train_loss:.3f}, "
            f"validation {candidate.accuracy:.1%}, {epoch.images_per_second:.0f} images/s"
        )

    def close(self, facts: dict[str, Any]) -> None:
        """Add what is known at the end (confusion matrix, settings) and finish the event files."""
        self.board.finish(facts)
        self.board.close()


def save(folder: RunFolder, contender: Contender, material: Material, bench: Bench) -> None:
    """Make this model the run's package."""
    bundle = Bundle.of(
        bench.backbone,
        contender.classifier,
        classes=material.catalog.classes,
        method=contender.name,
        preprocess=contender.preprocess,
        temperature=contender.temperature,
        facts={"validation_accuracy": contender.validation_accuracy},
    )
    write_bundle(folder.path, bundle)


def backbone_for(recipe: Recipe) -> Backbone:
    """The pretrained network; one that takes a single image size is built for the recipe's."""
    backbone = load_backbone(recipe.model, seed=recipe.seed)
    if backbone.one_size and recipe.image_size not in ("auto", backbone.preprocess.size):
        return load_backbone(recipe.model, seed=recipe.seed, image_size=recipe.image_size)
    return backbone


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" takes the accelerator that is there. RecipeError when it is not."""
    if name == "auto":
        return torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise RecipeError(f"device {name!r} cannot be used ({first}); see: burnish doctor") from None
    return device
