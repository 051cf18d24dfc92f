"""argv to verb to printed page. No logic lives here, and torch is imported only when a verb runs."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from burnish.errors import BurnishError, Interrupted, shown
from burnish.recipe import Recipe
from burnish.runtime import keep_freed_memory

app = typer.Typer(
    name="burnish",
    help="From a folder of labelled images and a pretrained network to the best classifier a time budget allows, with proof.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_DEFAULT = Recipe()
_TRAINING = "How it trains"
_PROOF = "What it is held against"
_SURGERY = "How the network is changed (names: burnish models NAME --stages)"
_DATA = (
    "Class folders, train/val/test folders of them, a table path,label[,split][,group] (.csv .tsv .jsonl .parquet), a .zip "
    "or .tar of folders, WebDataset shards, hf:ORG/NAME, torchvision:NAME, or: demo"
)

# Options that fit and compare share.
Seed = Annotated[int, typer.Option(help="Of splits, order and augmentation")]
ValFraction = Annotated[float, typer.Option(help="Of the training images, if the data has no val")]
TestFraction = Annotated[float, typer.Option(help="Of all images, if the data has no test")]
Precision = Annotated[str, typer.Option(help="Of training: float32, bfloat16, or auto")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps")]
Workers = Annotated[str, typer.Option(help="Threads that make batches ahead, or auto; changes no result")]
CacheFolder = Annotated[str, typer.Option(metavar="DIR|off", help="Where decoded pixels are kept between runs")]
HeadForm = Annotated[str, typer.Option(help="On the features: linear, mlp:512, cosine", rich_help_panel=_SURGERY)]
Pooling = Annotated[
    str, typer.Option(help="From maps to features: avg, max, avgmax, catavgmax, token", rich_help_panel=_SURGERY)
]
Dropout = Annotated[float, typer.Option(help="Of the features before the head", rich_help_panel=_TRAINING)]
DropPath = Annotated[float, typer.Option(help="Of residual branches (stochastic depth)", rich_help_panel=_TRAINING)]
Prepared = Annotated[str, typer.Option(help="Of a Keras file: keras:resnet50, caffe, tf, torch, none")]
Quarantine = Annotated[
    Path | None, typer.Option(metavar="FILE", help="A CSV of images to leave out, such as audit.csv")
]
ImageSize = Annotated[str, typer.Option(help="Pixels, side of the training crops, or auto")]

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or a package folder copied from one.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only the result.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON; progress goes to stderr.")]


def _number_or_auto(text: str, kind: type) -> Any:
    """The option's value: "auto" stays a word, anything else is a number or a mistake for Recipe to name."""
    if text == "auto":
        return text
    try:
        return kind(text)
    except ValueError:
        return text


@app.command()
def fit(
    data: Annotated[str, typer.Argument(metavar="DATA", help=_DATA)],
    model: Annotated[
        str, typer.Option(help="A name from: burnish models, a file, hf-hub:ORG/NAME, URL#sha256=…, or auto")
    ] = _DEFAULT.model,
    arch: Annotated[str, typer.Option(help="Of a file that does not say it, e.g. resnet50")] = _DEFAULT.arch,
    preprocess: Prepared = _DEFAULT.preprocess,
    method: Annotated[
        str, typer.Option(help="auto, or a name from: burnish methods, e.g. lora:rank=4")
    ] = _DEFAULT.method,
    budget: Annotated[
        str, typer.Option(help='Wall clock from start to exit: "90s", "10m", "1h30m", or "none"')
    ] = "10m",
    out: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="The run folder; one that died goes on  [default: runs/NAME-N]"),
    ] = None,
    epochs: Annotated[str, typer.Option(help="Passes over the training images, or auto: as many as fit")] = "auto",
    seed: Seed = _DEFAULT.seed,
    image_size: ImageSize = "auto",
    batch_size: Annotated[str, typer.Option(help="Images a step, or auto")] = "auto",
    learning_rate: Annotated[
        str, typer.Option(help="Peak, of the head and the last stage, or auto, or race: short trials of three")
    ] = "auto",
    freeze: Annotated[
        str, typer.Option(help="Leading stages that stay as they are, or auto: as the clock asks")
    ] = "auto",
    head: HeadForm = _DEFAULT.head,
    pool: Pooling = _DEFAULT.pool,
    depth: Annotated[
        str, typer.Option(help="Blocks to keep of each group, e.g. 2,2,4,1", rich_help_panel=_SURGERY)
    ] = _DEFAULT.depth,
    remove: Annotated[
        str, typer.Option(help="Layers to take out, by name pattern, with commas", rich_help_panel=_SURGERY)
    ] = _DEFAULT.remove,
    insert: Annotated[
        str,
        typer.Option(
            help="PATTERN=LAYER, e.g. layer3=dropout:0.1; also conv:3, batchnorm, …", rich_help_panel=_SURGERY
        ),
    ] = _DEFAULT.insert,
    taps: Annotated[str, typer.Option(help="Heads see all depths of the network: on, off, or auto")] = _DEFAULT.taps,
    stage_decay: Annotated[
        float, typer.Option(help="Each earlier stage learns at this fraction")
    ] = _DEFAULT.stage_decay,
    weight_decay: Annotated[float, typer.Option(help="Of AdamW, on matrices and kernels")] = _DEFAULT.weight_decay,
    label_smoothing: Annotated[float, typer.Option(help="Fraction, 0 to 1")] = _DEFAULT.label_smoothing,
    augment: Annotated[
        str, typer.Option(help="Of training images: plain, trivial (TrivialAugment), none", rich_help_panel=_TRAINING)
    ] = _DEFAULT.augment,
    mixup: Annotated[
        float, typer.Option(help="Blend images, alpha of the Beta distribution", rich_help_panel=_TRAINING)
    ] = _DEFAULT.mixup,
    cutmix: Annotated[
        float, typer.Option(help="Paste rectangles, alpha of the Beta distribution", rich_help_panel=_TRAINING)
    ] = _DEFAULT.cutmix,
    sam: Annotated[
        float, typer.Option(help="Radius of sharpness-aware steps, e.g. 0.05", rich_help_panel=_TRAINING)
    ] = _DEFAULT.sam,
    dropout: Dropout = _DEFAULT.dropout,
    drop_path: DropPath = _DEFAULT.drop_path,
    balance: Annotated[
        str, typer.Option(help="Of unequal classes: none, sampling, loss, or auto", rich_help_panel=_TRAINING)
    ] = _DEFAULT.balance,
    average: Annotated[
        str, typer.Option(help="Of weights in training: ema or none", rich_help_panel=_TRAINING)
    ] = _DEFAULT.average,
    soup: Annotated[
        str, typer.Option(help="Average the best epochs too: on or off", rich_help_panel=_TRAINING)
    ] = _DEFAULT.soup,
    search: Annotated[
        bool,
        typer.Option("--search", help="Try other settings in 60 % of the time (Optuna)", rich_help_panel=_TRAINING),
    ] = _DEFAULT.search,
    flip: Annotated[str, typer.Option(help="Mirror images in training: on, off, or auto (asks the probe)")] = "auto",
    val_fraction: ValFraction = _DEFAULT.val_fraction,
    test_fraction: TestFraction = _DEFAULT.test_fraction,
    precision: Precision = _DEFAULT.precision,
    device: Device = _DEFAULT.device,
    workers: Workers = "auto",
    cache: CacheFolder = "auto",
    strict: Annotated[bool, typer.Option("--strict", help="Stop when the audit of the data finds an error")] = False,
    quarantine: Quarantine = None,
    baselines: Annotated[
        str, typer.Option(help="none, probe, or all: also from scratch, in half the time", rich_help_panel=_PROOF)
    ] = _DEFAULT.baselines,
    against: Annotated[
        str, typer.Option(metavar="RUN", help="Compare with the model of an earlier run", rich_help_panel=_PROOF)
    ] = _DEFAULT.against,
    seeds: Annotated[
        int, typer.Option(help="Train so often, from other seeds, in shares of the budget", rich_help_panel=_PROOF)
    ] = _DEFAULT.seeds,
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Tune a pretrained network on DATA, prove that it helped, save it."""
    settings = {
        "model": model,
        "arch": arch,
        "preprocess": preprocess,
        "method": method,
        "epochs": _number_or_auto(epochs, int),
        "seed": seed,
        "image_size": _number_or_auto(image_size, int),
        "batch_size": _number_or_auto(batch_size, int),
        "learning_rate": _number_or_auto(learning_rate, float),
        "freeze": _number_or_auto(freeze, int),
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
                workers=_number_or_auto(workers, int),
                strict=strict,
                quarantine=quarantine,
                watcher=watcher,
                clock=clock,
                **settings,
            )
        if json_:
            _print_json({"run": str(result.folder), **result.facts})
        else:
            from burnish.screen import print_verdict

            print_verdict(result)


@app.command()
def compare(
    data: Annotated[str, typer.Argument(metavar="DATA", help=_DATA)],
    models: Annotated[str, typer.Option(help="Names or files, with commas; as --model of fit")] = _DEFAULT.model,
    methods: Annotated[
        str, typer.Option(help="Names with commas, with options as lora:rank=4; see: burnish methods")
    ] = "probe,multiprobe,full",
    budget: Annotated[str, typer.Option(help="Wall clock for all of them together")] = "30m",
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="A comparison that died there goes on  [default: runs/NAME-N]")
    ] = None,
    preprocess: Prepared = _DEFAULT.preprocess,
    image_size: ImageSize = "auto",
    head: HeadForm = _DEFAULT.head,
    pool: Pooling = _DEFAULT.pool,
    dropout: Dropout = _DEFAULT.dropout,
    drop_path: DropPath = _DEFAULT.drop_path,
    seed: Seed = _DEFAULT.seed,
    val_fraction: ValFraction = _DEFAULT.val_fraction,
    test_fraction: TestFraction = _DEFAULT.test_fraction,
    precision: Precision = _DEFAULT.precision,
    device: Device = _DEFAULT.device,
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
                workers=_number_or_auto(workers, int),
                watcher=watcher,
                clock=clock,
                preprocess=preprocess,
                image_size=_number_or_auto(image_size, int),
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
            _print_json({"folder": str(folder.path), **facts})
        else:
            print_leaderboard(facts, folder.path)


@app.command()
def audit(
    data: Annotated[str, typer.Argument(metavar="DATA", help=_DATA)],
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="For audit.html, audit.csv and result.json")
    ] = None,
    model: Annotated[
        str, typer.Option(help="Whose features judge labels and outliers, or none, which is faster")
    ] = _DEFAULT.model,
    strict: Annotated[bool, typer.Option("--strict", help="Leave with 1 when there is an error")] = False,
    quarantine: Quarantine = None,
    seed: Seed = _DEFAULT.seed,
    cache: CacheFolder = "auto",
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Look for what is wrong with labelled images: bad files, duplicates, leaks between splits, wrong labels."""
    from burnish import api
    from burnish.screen import print_audit, watcher_for

    with watcher_for(None, quiet=quiet, to_stderr=json_) as watcher:
        found = api.audit(data, model=model, out=out, quarantine=quarantine, seed=seed, cache=cache, watcher=watcher)
    if json_:
        _print_json(found.facts)
    else:
        print_audit(found, out)
    if strict and found.errors:
        raise typer.Exit(1)


@app.command()
def evaluate(
    run: Run,
    data: Annotated[str, typer.Argument(metavar="DATA", help=_DATA + ". Of data with splits, the test images.")],
    ood: Annotated[
        str | None,
        typer.Option(metavar="OTHER", help="Images of another kind: how well are they told from DATA? (AUROC)"),
    ] = None,
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Score a run's model on other labelled images."""
    from burnish import api
    from burnish.screen import print_evaluation, watcher_for

    with watcher_for(None, quiet=quiet, to_stderr=json_) as watcher:
        told = None if ood is None else api.ood(run, data, ood)
        found = api.evaluate(run, data, watcher=watcher)
    if json_:
        _print_json({"scores": found.scores.to_json(), "named": found.named, "ood": told})
    else:
        print_evaluation(found, told)


@app.command()
def predict(
    run: Run,
    images: Annotated[list[str], typer.Argument(metavar="IMAGES...", help="Image files or folders of them.")],
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the answers there as CSV.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many classes to name for each image.")] = 1,
    reject: Annotated[
        float | None,
        typer.Option(metavar="ACCURACY", help="Answer only what is right so often, e.g. 0.99; else say unknown."),
    ] = None,
    sets: Annotated[
        float | None,
        typer.Option(metavar="COVERAGE", help="Name a set of classes that holds the true one so often, e.g. 0.95."),
    ] = None,
    json_: Json = False,
) -> None:
    """Name the class of each image."""
    from burnish import api
    from burnish.screen import print_predictions
    from burnish.ship.predictor import Predictor

    unreadable = 0
    predictor = Predictor.open(Path(run))
    if csv is not None:
        unreadable = api.write_predictions(csv, predictor, images, top=top, reject=reject, sets=sets)
    elif json_:
        rows = list(api.predict_stream(run, images, top=top, reject=reject, sets=sets, predictor=predictor))
        unreadable = sum(row.problem is not None for row in rows)
        _print_json([row.to_json() for row in rows])
    else:
        stream = api.predict_stream(run, images, top=top, reject=reject, sets=sets, predictor=predictor)
        unreadable = print_predictions(stream)
    if unreadable:
        typer.echo(f"{unreadable} of the images could not be read", err=True)
        raise typer.Exit(1)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="A finished run; or several, to be compared.")],
    lang: Annotated[str, typer.Option(help="Of the page of one run: en or zh")] = "en",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The page  [default: RUN/report.html; of several runs.html]")
    ] = None,
    json_: Json = False,
) -> None:
    """Write a run's report anew; or several runs side by side, paired on the same test images."""
    from burnish import api

    if len(runs) == 1:
        typer.echo(shown(str(api.report(runs[0], lang=lang, out=out))))
        return
    page, rows, n = api.report_runs(runs, out=out or "runs.html")
    if json_:
        from dataclasses import asdict

        _print_json({"page": str(page), "images": n, "runs": [asdict(row) for row in rows]})
    else:
        from burnish.screen import print_runs

        print_runs(rows, n, page)


@app.command()
def explain(
    run: Run,
    images: Annotated[list[str], typer.Argument(metavar="IMAGES...", help="Image files or folders of them.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the PNG files go.")] = Path("explained"),
    target: Annotated[
        str | None, typer.Option("--class", metavar="NAME", help="The class to look for  [default: the likeliest]")
    ] = None,
    how: Annotated[
        str, typer.Option(help="grad-cam: what speaks for the class; rollout: what a vision transformer looks at")
    ] = "grad-cam",
    json_: Json = False,
) -> None:
    """Show where in each image the model found its answer, as PNG files."""
    from burnish import api
    from burnish.screen import print_explained

    rows, check = api.explain(run, images, out=out, target=target, how=how)
    if json_:
        told = None if check is None else {"similarity": check.similarity, "passed": check.passed}
        _print_json({"images": [row.to_json() for row in rows], "sanity": told})
    else:
        print_explained(rows, check)
    if any(row.problem for row in rows):
        raise typer.Exit(1)


@app.command()
def board(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Runs, or a folder of runs.")],
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of this machine alone (127.0.0.1)")] = 6006,
) -> None:
    """Show runs in TensorBoard, until Ctrl-C."""
    from burnish import api

    command = api.board(runs, port=port)
    typer.echo(f"http://127.0.0.1:{port}/  (Ctrl-C ends it)")
    sys.stdout.flush()
    os.execv(command[0], command)


@app.command()
def export(
    run: Run,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to write it, e.g. model.keras")],
    to: Annotated[str, typer.Option(help="The format: keras")] = "keras",
    input: Annotated[
        str, typer.Option(help="What the file takes: prepared (as the original did) or pixels (RGB, 0 to 255)")
    ] = "prepared",
) -> None:
    """Write a run's model for another framework (keras: for models that came from a Keras file)."""
    from burnish import api

    typer.echo(shown(str(api.export(run, out, to=to, input=input))))


@app.command()
def models(
    query: Annotated[
        str, typer.Argument(help="Part of a name or a family, a pattern such as 'resnet*', or with --stages a model")
    ] = "",
    stages: Annotated[bool, typer.Option("--stages", help="Show the stages and blocks of this one model.")] = False,
    arch: Annotated[str, typer.Option(help="With --stages: of a file that does not say it")] = _DEFAULT.arch,
    preprocess: Annotated[str, typer.Option(help="With --stages: of a Keras file")] = _DEFAULT.preprocess,
    image_size: Annotated[str, typer.Option(help="With --stages: pixels")] = "auto",
    json_: Json = False,
) -> None:
    """List pretrained networks and where their weights are, or the stages of one."""
    from burnish import api
    from burnish.screen import print_anatomy, print_models

    if stages:
        size = _number_or_auto(image_size, int)
        found = api.anatomy(query or _DEFAULT.model, arch=arch, preprocess=preprocess, image_size=size)
        _print_json(found.to_json()) if json_ else print_anatomy(found)
        return
    rows = api.models(query)
    if json_:
        from dataclasses import asdict

        _print_json([asdict(row) for row in rows])
    else:
        print_models(rows, query)


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="One method, in full.")] = None, json_: Json = False
) -> None:
    """List the fine-tuning methods, or describe one."""
    from burnish import api
    from burnish.screen import print_methods

    found = api.methods(name)
    if json_:
        _print_json([{"name": one.name, "summary": one.summary, "when": one.when, "paper": one.paper} for one in found])
    else:
        print_methods(found, full=name is not None)


@app.command()
def doctor(json_: Json = False) -> None:
    """Say what this machine has, what works, and what to fix."""
    from burnish import doctor as checks
    from burnish.screen import print_doctor

    found = checks.examine()
    if json_:
        _print_json([one.to_json() for one in found])
    else:
        print_doctor(found)
    if any(one.state == "broken" for one in found):
        raise typer.Exit(1)


@app.callback(invoke_without_command=True)
def top(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback with an error.")] = False,  # read by `main`
) -> None:
    if version:
        from burnish import __version__

        typer.echo(f"burnish {__version__}")
        raise typer.Exit


def main(argv: list[str] | None = None) -> None:
    """Run the command line and leave with 0, 1 (some images unreadable), 2 (a mistake) or 130 (interrupted)."""
    signal.signal(signal.SIGTERM, _terminated)
    keep_freed_memory()
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words or bool(os.environ.get("BURNISH_DEBUG"))
    if "--debug" in words:  # accepted anywhere on the line
        words = ["--debug", *(word for word in words if word != "--debug")]
    try:
        code = app(args=words, standalone_mode=False)
        if code == Interrupted.exit_code:  # typer has caught the KeyboardInterrupt
            raise KeyboardInterrupt
        if isinstance(code, int) and code:  # a verb that left with typer.Exit
            sys.exit(code)
    except BurnishError as error:
        _leave(str(error), error.exit_code, error if debug else None)
    except KeyboardInterrupt:
        said = "interrupted; what was saved is kept: a run folder that has a package can predict and evaluate"
        _leave(said, Interrupted.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        complaint = getattr(error, "format_message", None)  # typer's own errors: a wrong option, a missing argument
        if callable(complaint):
            _leave(f"{complaint()} (see: burnish --help)", 2, error if debug else None)
        if debug:
            raise
        came = f"{type(error).__name__}: {error}"
        _leave(f"something unforeseen happened ({came}); run again with --debug and report it", 70)


def _terminated(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _leave(text: str, code: int, error: BaseException | None = None) -> None:
    """Print one sentence to stderr and leave; where an error is given, its traceback before it."""
    if error is not None:
        import traceback

        traceback.print_exception(error)
    lines = [shown(line) for line in text.splitlines()]  # an error may hold a few lines to copy
    print("burnish: " + "\n".join(lines), file=sys.stderr)
    sys.exit(code)


def _print_json(value: Any) -> None:
    from burnish.result import plain

    json.dump(plain(value), sys.stdout, ensure_ascii=False, indent=1, allow_nan=False)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
