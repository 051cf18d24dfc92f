"""Verbs that train: fit, compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from burnish.verbs.options import (
    DATA,
    DEFAULT,
    PROOF,
    SURGERY,
    TRAINING,
    CacheFolder,
    Device,
    Dropout,
    DropPath,
    HeadForm,
    ImageSize,
    Json,
    Pooling,
    Precision,
    Prepared,
    Quarantine,
    Quiet,
    Seed,
    TestFraction,
    ValFraction,
    Workers,
    number_or_auto,
    print_json,
)


def fit(
    data: Annotated[str, typer.Argument(metavar="DATA", help=DATA)],
    model: Annotated[
        str, typer.Option(help="A name from: burnish models, a file, hf-hub:ORG/NAME, URL#sha256=…, or auto")
    ] = DEFAULT.model,
    arch: Annotated[str, typer.Option(help="Of a file that does not say it, e.g. resnet50")] = DEFAULT.arch,
    preprocess: Prepared = DEFAULT.preprocess,
    method: Annotated[
        str, typer.Option(help="auto, or a name from: burnish methods, e.g. lora:rank=4")
    ] = DEFAULT.method,
    budget: Annotated[
        str, typer.Option(help='Wall clock from start to exit: "90s", "10m", "1h30m", or "none"')
    ] = "10m",
    out: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="The run folder; one that died goes on  [default: runs/NAME-N]"),
    ] = None,
    epochs: Annotated[str, typer.Option(help="Passes over the training images, or auto: as many as fit")] = "auto",
    seed: Seed = DEFAULT.seed,
    image_size: ImageSize = "auto",
    batch_size: Annotated[str, typer.Option(help="Images a step, or auto")] = "auto",
    learning_rate: Annotated[
        str, typer.Option(help="Peak, of the head and the last stage, or auto, or race: short trials of three")
    ] = "auto",
    freeze: Annotated[
        str, typer.Option(help="Leading stages that stay as they are, or auto: as the clock asks")
    ] = "auto",
    head: HeadForm = DEFAULT.head,
    pool: Pooling = DEFAULT.pool,
    depth: Annotated[
        str, typer.Option(help="Blocks to keep of each group, e.g. 2,2,4,1", rich_help_panel=SURGERY)
    ] = DEFAULT.depth,
    remove: Annotated[
        str, typer.Option(help="Layers to take out, by name pattern, with commas", rich_help_panel=SURGERY)
    ] = DEFAULT.remove,
    insert: Annotated[
        str,
        typer.Option(help="PATTERN=LAYER, e.g. layer3=dropout:0.1; also conv:3, batchnorm, …", rich_help_panel=SURGERY),
    ] = DEFAULT.insert,
    taps: Annotated[str, typer.Option(help="Heads see all depths of the network: on, off, or auto")] = DEFAULT.taps,
    stage_decay: Annotated[
        float, typer.Option(help="Each earlier stage learns at this fraction")
    ] = DEFAULT.stage_decay,
    weight_decay: Annotated[float, typer.Option(help="Of AdamW, on matrices and kernels")] = DEFAULT.weight_decay,
    label_smoothing: Annotated[float, typer.Option(help="Fraction, 0 to 1")] = DEFAULT.label_smoothing,
    augment: Annotated[
        str, typer.Option(help="Of training images: plain, trivial (TrivialAugment), none", rich_help_panel=TRAINING)
    ] = DEFAULT.augment,
    mixup: Annotated[
        float, typer.Option(help="Blend images, alpha of the Beta distribution", rich_help_panel=TRAINING)
    ] = DEFAULT.mixup,
    cutmix: Annotated[
        float, typer.Option(help="Paste rectangles, alpha of the Beta distribution", rich_help_panel=TRAINING)
    ] = DEFAULT.cutmix,
    sam: Annotated[
        float, typer.Option(help="Radius of sharpness-aware steps, e.g. 0.05", rich_help_panel=TRAINING)
    ] = DEFAULT.sam,
    dropout: Dropout = DEFAULT.dropout,
    drop_path: DropPath = DEFAULT.drop_path,
    balance: Annotated[
        str, typer.Option(help="Of unequal classes: none, sampling, loss, or auto", rich_help_panel=TRAINING)
    ] = DEFAULT.balance,
    average: Annotated[
        str, typer.Option(help="Of weights in training: ema or none", rich_help_panel=TRAINING)
    ] = DEFAULT.average,
    soup: Annotated[
        str, typer.Option(help="Average the best epochs too: on or off", rich_help_panel=TRAINING)
    ] = DEFAULT.soup,
    search: Annotated[
        bool,
        typer.Option("--search", help="Try other settings in 60 % of the time (Optuna)", rich_help_panel=TRAINING),
    ] = DEFAULT.search,
    flip: Annotated[str, typer.Option(help="Mirror images in training: on, off, or auto (asks the probe)")] = "auto",
    val_fraction: ValFraction = DEFAULT.val_fraction,
    test_fraction: TestFraction = DEFAULT.test_fraction,
    precision: Precision = DEFAULT.precision,
    device: Device = DEFAULT.device,
    workers: Workers = "auto",
    cache: CacheFolder = "auto",
    strict: Annotated[bool, typer.Option("--strict", help="Stop when the audit of the data finds an error")] = False,
    quarantine: Quarantine = None,
    baselines: Annotated[
        str, typer.Option(help="none, probe, or all: also from scratch, in half the time", rich_help_panel=PROOF)
    ] = DEFAULT.baselines,
    against: Annotated[
        str, typer.Option(metavar="RUN", help="Compare with the model of an earlier run", rich_help_panel=PROOF)
    ] = DEFAULT.against,
    seeds: Annotated[
        int, typer.Option(help="Train so often, from other seeds, in shares of the budget", rich_help_panel=PROOF)
    ] = DEFAULT.seeds,
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Tune a pretrained network on DATA, prove that it helped, save it."""
    settings = {
        "model": model,
        "arch": arch,
        "preprocess": preprocess,
        "method": method,
        "epochs": number_or_auto(epochs, int),
        "seed": seed,
        "image_size": number_or_auto(image_size, int),
        "batch_size": number_or_auto(batch_size, int),
        "learning_rate": number_or_auto(learning_rate, float),
        "freeze": number_or_auto(freeze, int),
        "pool": pool,
        "depth": depth,
        "remove": remove,
        "insert": insert,
        "head": head,
        "taps": taps,
        "augment": augment,
        "mixup": mixup,
        "cutmix": cutmix,
        "sam": sam,
        "dropout": dropout,
        "drop_path": drop_path,
        "balance": balance,
        "average": average,
        "soup": soup,
        "search": search,
        "stage_decay": stage_decay,
        "weight_decay": weight_decay,
        "label_smoothing": label_smoothing,
        "flip": flip,
        "val_fraction": val_fraction,
        "test_fraction": test_fraction,
        "precision": precision,
        "device": device,
        "baselines": baselines,
        "against": against,
        "seeds": seeds,
    }
    from burnish.result import RunFolder

    # Held before torch is imported: a second run into the same folder leaves at once.
    folder = RunFolder.open(out) if out is not None else RunFolder.free(data)
    with folder:
        from burnish import api
        from burnish.screen import watcher_for

        clock = api.clock_for(budget)
        with watcher_for(clock, quiet=quiet, to_stderr=json_) as watcher:
            result = api.fit(
                data,
                budget=budget,
                out=folder,
                cache=cache,
                workers=number_or_auto(workers, int),
                strict=strict,
                quarantine=quarantine,
                watcher=watcher,
                clock=clock,
                **settings,
            )
        if json_:
            print_json({"run": str(result.folder), **result.facts})
        else:
            from burnish.screen import print_verdict

            print_verdict(result)


def compare(
    data: Annotated[str, typer.Argument(metavar="DATA", help=DATA)],
    models: Annotated[str, typer.Option(help="Names or files, with commas; as --model of fit")] = DEFAULT.model,
    methods: Annotated[
        str, typer.Option(help="Names with commas, with options as lora:rank=4; see: burnish methods")
    ] = "probe,multiprobe,full",
    budget: Annotated[str, typer.Option(help="Wall clock for all of them together")] = "30m",
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="A comparison that died there goes on  [default: runs/NAME-N]")
    ] = None,
    preprocess: Prepared = DEFAULT.preprocess,
    image_size: ImageSize = "auto",
    head: HeadForm = DEFAULT.head,
    pool: Pooling = DEFAULT.pool,
    dropout: Dropout = DEFAULT.dropout,
    drop_path: DropPath = DEFAULT.drop_path,
    seed: Seed = DEFAULT.seed,
    val_fraction: ValFraction = DEFAULT.val_fraction,
    test_fraction: TestFraction = DEFAULT.test_fraction,
    precision: Precision = DEFAULT.precision,
    device: Device = DEFAULT.device,
    workers: Workers = "auto",
    cache: CacheFolder = "auto",
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Race models and methods on DATA under one budget; a leaderboard with paired differences."""
    from burnish.result import RunFolder

    folder = RunFolder.open(out) if out is not None else RunFolder.free(data)
    with folder:
        from burnish import api
        from burnish.screen import print_leaderboard, watcher_for

        clock = api.clock_for(budget)
        with watcher_for(clock, quiet=quiet, to_stderr=json_) as watcher:
            facts = api.compare(
                data,
                models=[name.strip() for name in models.split(",") if name.strip()],
                methods=[name.strip() for name in methods.split(",") if name.strip()],
                budget=budget,
                out=folder,
                cache=cache,
                workers=number_or_auto(workers, int),
                watcher=watcher,
                clock=clock,
                preprocess=preprocess,
                image_size=number_or_auto(image_size, int),
                head=head,
                pool=pool,
                dropout=dropout,
                drop_path=drop_path,
                seed=seed,
                val_fraction=val_fraction,
                test_fraction=test_fraction,
                precision=precision,
                device=device,
            )
        if json_:
            print_json({"folder": str(folder.path), **facts})
        else:
            print_leaderboard(facts, folder.path)
