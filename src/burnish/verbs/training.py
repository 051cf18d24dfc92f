"""Verbs that train: fit, compare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from burnish.verbs.options import (
    DATA,
    DEFAULT,
    PROOF,
    TRAINING,
    Augment,
    Average,
    Balance,
    BatchSize,
    CacheFolder,
    CropMode,
    CutMix,
    Depth,
    Device,
    Dropout,
    DropPath,
    Epochs,
    Flip,
    Freeze,
    HeadForm,
    ImageSize,
    Insert,
    Json,
    LabelSmoothing,
    LearningRate,
    Mixup,
    Pooling,
    Precision,
    Prepared,
    Quarantine,
    Quiet,
    Remove,
    Sam,
    Seed,
    Soup,
    StageDecay,
    Strict,
    TestFraction,
    ValFraction,
    WeightDecay,
    Workers,
    clock_for,
    number_or_auto,
    print_json,
    recipe_settings,
)
from burnish.verbs.stopping import going_on, leaving_in_time

if TYPE_CHECKING:
    from burnish.data.catalog import Catalog
    from burnish.recipe import Recipe
    from burnish.runtime import Clock


def fit(
    data: Annotated[str, typer.Argument(metavar="DATA", help=DATA)],
    model: Annotated[
        str,
        typer.Option(
            help="A name from: burnish models, a file, an earlier RUN, hf-hub:ORG/NAME, URL#sha256=…, or auto"
        ),
    ] = DEFAULT.model,
    arch: Annotated[
        str, typer.Option(help="Architecture of a model file that does not say it, e.g. resnet50")
    ] = DEFAULT.arch,
    preprocess: Prepared = DEFAULT.preprocess,
    method: Annotated[
        str, typer.Option(help="auto, or a name from: burnish methods, e.g. lora:rank=4")
    ] = DEFAULT.method,
    budget: Annotated[
        str, typer.Option(help='Wall clock from start to exit: "90s", "10m", "1h30m", or "none"')
    ] = "10m",
    out: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="The run folder; one that died goes on (default: runs/NAME-N)"),
    ] = None,
    epochs: Epochs = "auto",
    seed: Seed = DEFAULT.seed,
    image_size: ImageSize = "auto",
    crop_mode: CropMode = DEFAULT.crop_mode,
    batch_size: BatchSize = "auto",
    learning_rate: LearningRate = "auto",
    freeze: Freeze = "auto",
    head: HeadForm = DEFAULT.head,
    pool: Pooling = DEFAULT.pool,
    depth: Depth = DEFAULT.depth,
    remove: Remove = DEFAULT.remove,
    insert: Insert = DEFAULT.insert,
    taps: Annotated[str, typer.Option(help="Heads see all depths of the network: on, off, or auto")] = DEFAULT.taps,
    stage_decay: StageDecay = DEFAULT.stage_decay,
    weight_decay: WeightDecay = DEFAULT.weight_decay,
    label_smoothing: LabelSmoothing = DEFAULT.label_smoothing,
    augment: Augment = DEFAULT.augment,
    mixup: Mixup = DEFAULT.mixup,
    cutmix: CutMix = DEFAULT.cutmix,
    sam: Sam = DEFAULT.sam,
    dropout: Dropout = DEFAULT.dropout,
    drop_path: DropPath = DEFAULT.drop_path,
    balance: Balance = DEFAULT.balance,
    average: Average = DEFAULT.average,
    soup: Soup = DEFAULT.soup,
    search: Annotated[
        bool,
        typer.Option("--search", help="Try other settings in 60 % of the time (Optuna)", rich_help_panel=TRAINING),
    ] = DEFAULT.search,
    flip: Flip = "auto",
    val_fraction: ValFraction = DEFAULT.val_fraction,
    test_fraction: TestFraction = DEFAULT.test_fraction,
    precision: Precision = DEFAULT.precision,
    device: Device = DEFAULT.device,
    workers: Workers = "auto",
    cache: CacheFolder = "auto",
    strict: Strict = False,
    quarantine: Quarantine = None,
    baselines: Annotated[
        str,
        typer.Option(
            help="none: the frozen probe alone; probe: the commonest class too; all: also from scratch, in half the time",
            rich_help_panel=PROOF,
        ),
    ] = DEFAULT.baselines,
    against: Annotated[
        str, typer.Option(metavar="RUN", help="Compare with the model of an earlier run", rich_help_panel=PROOF)
    ] = DEFAULT.against,
    seeds: Annotated[
        int,
        typer.Option(help="Repeat the training with this many seeds, in shares of the budget", rich_help_panel=PROOF),
    ] = DEFAULT.seeds,
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Tune a pretrained network on DATA, prove that it helped, save it."""
    settings = recipe_settings(locals())
    from burnish.record.folder import RunFolder

    # Held before torch is imported: a second run into the same folder leaves at once.
    folder = RunFolder.open(out) if out is not None else RunFolder.free(data)
    with folder, going_on(folder.path):
        clock = clock_for(budget)
        recipe, catalog = _begun(data, quarantine, settings, folder.path, clock, quiet=quiet, to_stderr=json_)
        from burnish import api
        from burnish.watching import watcher_for

        with leaving_in_time(folder.path), watcher_for(clock, quiet=quiet, to_stderr=json_) as watcher:
            result = api.fit_catalog(
                catalog,
                recipe,
                out=folder,
                data=data,
                quarantine=quarantine,
                cache=cache,
                workers=number_or_auto(workers, int),
                strict=strict,
                watcher=watcher,
                clock=clock,
            )
        if json_:
            print_json({"run": str(result.folder), **result.facts})
        else:
            from burnish.screen import print_verdict

            print_verdict(result)


def compare(
    data: Annotated[str, typer.Argument(metavar="DATA", help=DATA)],
    models: Annotated[
        str, typer.Option(help="Names or files, with commas; as --model of fit, but not auto")
    ] = DEFAULT.model,
    methods: Annotated[
        str, typer.Option(help="Names with commas, with options as lora:rank=4; see: burnish methods")
    ] = "probe,multiprobe,full",
    budget: Annotated[str, typer.Option(help="Wall clock for all of them together")] = "30m",
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="A comparison that died there goes on (default: runs/NAME-N)")
    ] = None,
    preprocess: Prepared = DEFAULT.preprocess,
    epochs: Epochs = "auto",
    image_size: ImageSize = "auto",
    crop_mode: CropMode = DEFAULT.crop_mode,
    batch_size: BatchSize = "auto",
    learning_rate: LearningRate = "auto",
    freeze: Freeze = "auto",
    head: HeadForm = DEFAULT.head,
    pool: Pooling = DEFAULT.pool,
    depth: Depth = DEFAULT.depth,
    remove: Remove = DEFAULT.remove,
    insert: Insert = DEFAULT.insert,
    stage_decay: StageDecay = DEFAULT.stage_decay,
    weight_decay: WeightDecay = DEFAULT.weight_decay,
    label_smoothing: LabelSmoothing = DEFAULT.label_smoothing,
    augment: Augment = DEFAULT.augment,
    mixup: Mixup = DEFAULT.mixup,
    cutmix: CutMix = DEFAULT.cutmix,
    sam: Sam = DEFAULT.sam,
    balance: Balance = DEFAULT.balance,
    average: Average = DEFAULT.average,
    soup: Soup = DEFAULT.soup,
    flip: Flip = DEFAULT.flip,
    dropout: Dropout = DEFAULT.dropout,
    drop_path: DropPath = DEFAULT.drop_path,
    seed: Seed = DEFAULT.seed,
    val_fraction: ValFraction = DEFAULT.val_fraction,
    test_fraction: TestFraction = DEFAULT.test_fraction,
    precision: Precision = DEFAULT.precision,
    device: Device = DEFAULT.device,
    workers: Workers = "auto",
    cache: CacheFolder = "auto",
    strict: Strict = False,
    quarantine: Quarantine = None,
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Race models and methods on DATA under one budget; a leaderboard with paired differences."""
    settings = recipe_settings(locals())
    from burnish.record.folder import RunFolder

    folder = RunFolder.open(out) if out is not None else RunFolder.free(data)
    with folder, going_on(folder.path):
        clock = clock_for(budget)
        recipe, catalog = _begun(data, quarantine, settings, folder.path, clock, quiet=quiet, to_stderr=json_)
        from burnish import api
        from burnish.screen import print_leaderboard
        from burnish.watching import watcher_for

        with leaving_in_time(folder.path), watcher_for(clock, quiet=quiet, to_stderr=json_) as watcher:
            facts = api.compare_catalog(
                catalog,
                recipe,
                models=[name.strip() for name in models.split(",") if name.strip()],
                methods=[name.strip() for name in methods.split(",") if name.strip()],
                out=folder,
                data=data,
                quarantine=quarantine,
                cache=cache,
                workers=number_or_auto(workers, int),
                strict=strict,
                watcher=watcher,
                clock=clock,
            )
        if json_:
            print_json({"folder": str(folder.path), **facts})
        else:
            print_leaderboard(facts, folder.path)


def _begun(
    data: str,
    quarantine: Path | None,
    settings: dict[str, Any],
    folder: Path,
    clock: Clock,
    *,
    quiet: bool,
    to_stderr: bool,
) -> tuple[Recipe, Catalog]:
    """The recipe and the images, and a line on them: what is wrong with either is told before torch is loaded."""
    from burnish.data.audit.quarantine import opened
    from burnish.recipe import recipe_from
    from burnish.watching import say_what_begins

    recipe = recipe_from({**settings, "budget_seconds": clock.budget_seconds})
    catalog = opened(data, quarantine)
    say_what_begins(len(catalog), len(catalog.classes), folder, clock, quiet=quiet, to_stderr=to_stderr)
    return recipe, catalog
