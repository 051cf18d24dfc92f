"""Verbs that use a finished run: evaluate, predict, report, explain, board, export."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from burnish.errors import RecipeError, shown
from burnish.verbs.options import DATA, Device, Json, Quiet, Run, clock_for, print_json
from burnish.verbs.stopping import AGAIN, interrupted, leaving_in_time
from burnish.verbs.stressing import (
    Attacked,
    Corrupted,
    Epsilon,
    Language,
    Most,
    Page,
    Reject,
    Table,
    print_robustness,
    require_damage,
)


def evaluate(
    run: Run,
    data: Annotated[str, typer.Argument(metavar="DATA", help=DATA + ". Of data with splits, the test images.")],
    ood: Annotated[
        str | None,
        typer.Option(metavar="OTHER", help="Images of another kind: how well are they told from DATA? (AUROC)"),
    ] = None,
    corrupted: Corrupted = False,
    attacked: Attacked = False,
    epsilon: Epsilon = None,
    most: Most = None,
    reject: Reject = None,
    csv: Table = None,
    page: Page = None,
    lang: Language = "en",
    device: Device = "cpu",
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Score a run's model on other labelled images; with --corrupted or --attacked on damaged ones too."""
    require_damage(corrupted, attacked, epsilon=epsilon, most=most, reject=reject, csv=csv, page=page, lang=lang)
    from burnish import api
    from burnish.bars import watcher_for
    from burnish.disk import expanded
    from burnish.screen import print_evaluation
    from burnish.ship.predictor import Predictor

    watching = watcher_for(clock_for(None), quiet=quiet, to_stderr=json_)
    with interrupted(AGAIN), leaving_in_time(AGAIN), watching as watcher:
        predictor = Predictor.open(expanded(run), device)
        told = None if ood is None else api.ood(run, data, ood, predictor=predictor)
        robust = None  # first, so that what it cannot be asked is told at once
        if corrupted or attacked:
            robust = api.robustness(
                run, data, corrupted=corrupted, attacked=attacked, epsilons=epsilon, most=most, reject=reject,
                table=csv, page=page, lang=lang, watcher=watcher, predictor=predictor,
            )  # fmt: skip
        found = api.evaluate(run, data, watcher=watcher, predictor=predictor)
    if json_:
        print_json(
            {
                "scores": found.scores.to_json(),
                "named": found.named,
                "learnt": found.learnt,
                "learnt_known": found.learnt_known,
                "groups": found.groups,
                "ood": told,
                **({} if robust is None else {"robustness": robust.to_json()}),
            }
        )
    else:
        print_evaluation(found, told)
        if robust is not None:
            print_robustness(robust, csv, page)


def predict(
    run: Run,
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGES...", help="Image files; folders, archives, tables of them."),
    ],
    csv: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the answers there as CSV; -: on the standard output.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many classes to name for each image.")] = 1,
    reject: Annotated[
        float | None,
        typer.Option(metavar="ACCURACY", help="Answer where this accuracy can be kept, e.g. 0.99; else say unknown."),
    ] = None,
    sets: Annotated[
        float | None,
        typer.Option(metavar="COVERAGE", help="Name a set of classes that holds the true one at this rate, e.g. 0.95."),
    ] = None,
    find: Annotated[
        list[str] | None,
        typer.Option(metavar="CLASS=SHARE", help="Find this share of a class, e.g. crack=0.95, likeliest or not."),
    ] = None,
    device: Device = "cpu",
    json_: Json = False,
) -> None:
    """Name the class of each image."""
    from burnish import api
    from burnish.disk import expanded
    from burnish.screen import print_predictions
    from burnish.ship.answering import Asked, shares
    from burnish.ship.predictor import Predictor

    if csv is not None and json_:
        raise RecipeError("predict writes its answers as CSV or as JSON: say --csv FILE or --json")
    unreadable, asked = 0, Asked(top, reject, sets, shares(find or []))
    with interrupted(AGAIN), leaving_in_time(AGAIN):
        predictor = Predictor.open(expanded(run), device)
        if csv is not None:
            unreadable = api.write_predictions(csv, predictor, images, asked=asked)
        elif json_:
            rows = list(api.predict_stream(run, images, asked=asked, predictor=predictor))
            unreadable = sum(row.problem is not None for row in rows)
            print_json([row.to_json() for row in rows])
        else:
            stream = api.predict_stream(run, images, asked=asked, predictor=predictor)
            unreadable = print_predictions(stream)
    if unreadable:
        typer.echo(f"{unreadable} of the images could not be read", err=True)
        raise typer.Exit(1)


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="A finished run; or several, to be compared.")],
    lang: Annotated[str, typer.Option(help="Language of the page of one run: en or zh")] = "en",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The page (default: RUN/report.html; of several runs.html)")
    ] = None,
    json_: Json = False,
) -> None:
    """Write a run's report anew; or several runs side by side, paired on the same test images."""
    from burnish import api

    if len(runs) == 1:
        page = api.report(runs[0], lang=lang, out=out)
        print_json({"page": str(page)}) if json_ else typer.echo(shown(str(page)))
        return
    if lang != "en":
        raise typer.BadParameter("is for the page of one run; several are compared in English", param_hint="--lang")
    page, rows, n = api.report_runs(runs, out=out or "runs.html")
    if json_:
        from dataclasses import asdict

        print_json({"page": str(page), "images": n, "runs": [asdict(row) for row in rows]})
    else:
        from burnish.screen import print_runs

        print_runs(rows, n, page)


def explain(
    run: Run,
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGES...", help="Image files; folders, archives, tables of them."),
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the PNG files go.")] = Path("explained"),
    target: Annotated[
        str | None, typer.Option("--class", metavar="NAME", help="The class to look for (default: the likeliest)")
    ] = None,
    how: Annotated[
        str, typer.Option(help="grad-cam: what speaks for the class; rollout: what a vision transformer looks at")
    ] = "grad-cam",
    json_: Json = False,
) -> None:
    """Show where in each image the model found its answer, as PNG files."""
    from burnish import api
    from burnish.screen import print_explained

    with interrupted(AGAIN), leaving_in_time(AGAIN):
        rows, check = api.explain(run, images, out=out, target=target, how=how)
    if json_:
        told = None if check is None else {"similarity": check.similarity, "passed": check.passed}
        print_json({"images": [row.to_json() for row in rows], "sanity": told})
    else:
        print_explained(rows, check)
    if any(row.problem for row in rows):
        raise typer.Exit(1)


def board(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Runs, or a folder of runs.")],
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port to listen on, on this machine alone (127.0.0.1)")
    ] = 6006,
) -> None:
    """Show runs in TensorBoard, until Ctrl-C."""
    from burnish import api

    command = api.board(runs, port=port)
    typer.echo(f"http://127.0.0.1:{port}/  (Ctrl-C ends it)")
    sys.stdout.flush()
    os.execv(command[0], command)


def export(
    run: Run,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to write it, e.g. model.onnx (default: the run's name)")
    ] = None,
    to: Annotated[
        str,
        typer.Option(
            help="The format: onnx; openvino; pt2 (torch.export); hub (a folder for timm and transformers); keras (.keras "
            "or .h5, of models that came from a Keras file); auto: as FILE ends"
        ),
    ] = "auto",
    input: Annotated[
        str, typer.Option(help="What the file takes: prepared (as the network did) or pixels (RGB, 0 to 255)")
    ] = "prepared",
) -> None:
    """Write a run's model for other programs: ONNX, OpenVINO, torch.export, timm and transformers, or Keras again."""
    from burnish import api

    typer.echo(shown(str(api.export(run, out, to=to, input=input))))
