"""Verbs that train: fit, compare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from burnish.recipe import SETTINGS
from burnish.verbs.options import (
    DATA,
    DEFAULT,
    CacheFolder,
    Json,
    Quarantine,
    Quiet,
    Strict,
    Workers,
    clock_for,
    number_or_auto,
    print_json,
)
from burnish.verbs.settings import values_of, with_settings
from burnish.verbs.stopping import going_on, how_to_go_on, leaving_in_time

if TYPE_CHECKING:
    from burnish.data.catalog import Catalog
    from burnish.recipe import Recipe
    from burnish.runtime import Clock


@with_settings("model", "arch", "preprocess", "method")
def fit(
    data: Annotated[str, typer.Argument(metavar="DATA", help=DATA)],
    budget: Annotated[
        str, typer.Option(help='Wall clock from start to exit: "90s", "10m", "1h30m", or "none"')
    ] = "10m",
    out: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="The run folder; one that died goes on (default: runs/NAME-N)"),
    ] = None,
    workers: Workers = "auto",
    cache: CacheFolder = "auto",
    strict: Strict = False,
    quarantine: Quarantine = None,
    quiet: Quiet = False,
    json_: Json = False,
    **settings: Any,
) -> None:
    """Tune a pretrained network on DATA, prove that it helped, save it."""
    from burnish.record.folder import RunFolder

    # Held before torch is imported: a second run into the same folder leaves at once.
    folder = RunFolder.open(out) if out is not None else RunFolder.free(data)
    with folder, going_on(folder.path):
        clock = clock_for(budget)
        recipe, catalog = _begun(
            data, quarantine, values_of(settings), folder.path, clock, quiet=quiet, to_stderr=json_
        )
        from burnish import api
        from burnish.bars import watcher_for

        with leaving_in_time(how_to_go_on(folder.path)), watcher_for(clock, quiet=quiet, to_stderr=json_) as watcher:
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


@with_settings(without=[name for name, setting in SETTINGS.items() if setting.in_compare])
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
    workers: Workers = "auto",
    cache: CacheFolder = "auto",
    strict: Strict = False,
    quarantine: Quarantine = None,
    quiet: Quiet = False,
    json_: Json = False,
    **settings: Any,
) -> None:
    """Race models and methods on DATA under one budget; a leaderboard with paired differences."""
    from burnish.record.folder import RunFolder

    folder = RunFolder.open(out) if out is not None else RunFolder.free(data)
    with folder, going_on(folder.path):
        clock = clock_for(budget)
        recipe, catalog = _begun(
            data, quarantine, values_of(settings), folder.path, clock, quiet=quiet, to_stderr=json_
        )
        from burnish import api
        from burnish.bars import watcher_for
        from burnish.screen import print_leaderboard

        with leaving_in_time(how_to_go_on(folder.path)), watcher_for(clock, quiet=quiet, to_stderr=json_) as watcher:
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
    from burnish.data.audit.quarantine import left_out_in_words, opened
    from burnish.recipe import recipe_from
    from burnish.watching import early_watcher, say_what_begins, told_if_slow

    recipe = recipe_from({**settings, "budget_seconds": clock.budget_seconds})
    with told_if_slow(f"reading {data}", early_watcher(clock, quiet=quiet, to_stderr=to_stderr)):
        catalog = opened(data, quarantine)
    besides = left_out_in_words(catalog, quarantine) if quarantine is not None else ""
    say_what_begins(
        len(catalog), len(catalog.classes), folder, clock, quiet=quiet, to_stderr=to_stderr, besides=besides
    )
    return recipe, catalog
