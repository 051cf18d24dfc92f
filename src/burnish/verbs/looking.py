"""Verbs that look: audit, models, methods, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from burnish.verbs.options import (
    DATA,
    DEFAULT,
    CacheFolder,
    Json,
    Quarantine,
    Quiet,
    clock_for,
    number_or_auto,
    print_json,
)
from burnish.verbs.stopping import AGAIN, interrupted, leaving_in_time


def audit(
    data: Annotated[str, typer.Argument(metavar="DATA", help=DATA)],
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="For audit.html, audit.csv and result.json")
    ] = None,
    model: Annotated[
        str, typer.Option(help="Whose features judge labels and outliers, or none, which is faster")
    ] = DEFAULT.model,
    arch: Annotated[str, typer.Option(help="Architecture of a model file that does not say it")] = DEFAULT.arch,
    preprocess: Annotated[
        str, typer.Option(help="How a Keras file wants its images, e.g. keras:resnet50")
    ] = DEFAULT.preprocess,
    strict: Annotated[bool, typer.Option("--strict", help="Leave with 1 when there is an error")] = False,
    quarantine: Quarantine = None,
    seed: Annotated[int, typer.Option(help="Seed of the cross-validation that doubts labels")] = DEFAULT.seed,
    cache: CacheFolder = "auto",
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Look for what is wrong with labelled images: bad files, duplicates, leaks between splits, wrong labels."""
    from burnish import api
    from burnish.bars import watcher_for
    from burnish.screen import print_audit

    watching = watcher_for(clock_for(None), quiet=quiet, to_stderr=json_)
    with interrupted(AGAIN), leaving_in_time(AGAIN), watching as watcher:
        found = api.audit(
            data, model=model, arch=arch, preprocess=preprocess, out=out, quarantine=quarantine, seed=seed, cache=cache,
            watcher=watcher,
        )  # fmt: skip
    if json_:
        print_json(found.facts)
    else:
        print_audit(found, out)
    if strict and found.errors:
        raise typer.Exit(1)


def models(
    query: Annotated[
        str, typer.Argument(help="Part of a name or a family, a pattern such as 'resnet*', or with --stages a model")
    ] = "",
    stages: Annotated[bool, typer.Option("--stages", help="Show the stages and blocks of this one model.")] = False,
    arch: Annotated[
        str, typer.Option(help="With --stages: architecture of a file that does not say it")
    ] = DEFAULT.arch,
    preprocess: Annotated[
        str, typer.Option(help="With --stages: how a Keras file wants its images")
    ] = DEFAULT.preprocess,
    image_size: Annotated[str, typer.Option(help="With --stages: side of the images in pixels")] = "auto",
    json_: Json = False,
) -> None:
    """List pretrained networks and where their weights are, or the stages of one."""
    from burnish import api
    from burnish.screen import print_anatomy, print_models

    if stages:
        size = number_or_auto(image_size, int)
        found = api.anatomy(query or DEFAULT.model, arch=arch, preprocess=preprocess, image_size=size)
        print_json(found.to_json()) if json_ else print_anatomy(found)
        return
    rows = api.models(query)
    if json_:
        from dataclasses import asdict

        print_json([asdict(row) for row in rows])
    else:
        print_models(rows, query)


def methods(
    name: Annotated[str | None, typer.Argument(help="One method, in full.")] = None, json_: Json = False
) -> None:
    """List the fine-tuning methods, or describe one."""
    from burnish import api
    from burnish.screen import print_methods

    found = api.methods(name)
    if json_:
        print_json([{"name": one.name, "summary": one.summary, "when": one.when, "paper": one.paper} for one in found])
    else:
        print_methods(found, full=name is not None)


def doctor(json_: Json = False) -> None:
    """Say what this machine has, what works, and what to fix."""
    from burnish import doctor as checks
    from burnish.screen import print_doctor

    found = checks.examine()
    if json_:
        print_json([one.to_json() for one in found])
    else:
        print_doctor(found)
    if any(one.state == "broken" for one in found):
        raise typer.Exit(1)
