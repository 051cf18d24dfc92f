"""The verb that makes a finished model more robust: harden."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Annotated

import typer

from burnish.errors import pasted, shown
from burnish.verbs.options import DATA, CacheFolder, Device, Json, Quiet, Run, clock_for, print_json
from burnish.verbs.stopping import interrupted, leaving_in_time, nothing_written

_WIDTH = 80  # columns


def harden(
    run: Run,
    data: Annotated[
        str | None, typer.Argument(metavar="[DATA]", help="The run's images, where they lie elsewhere now. " + DATA)
    ] = None,
    budget: Annotated[str, typer.Option(help='Wall clock from start to exit: "90s", "5m", or "none"')] = "5m",
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="The package, in a folder of its own (default: RUN-hard)")
    ] = None,
    against: Annotated[
        str, typer.Option(help="corruptions; or attacks: changes too small to see, made to mislead (of tuned networks)")
    ] = "corruptions",
    epsilon: Annotated[float, typer.Option(help="How far attacks may change each value, of 255")] = 1.0,
    lose: Annotated[float, typer.Option(help="Points of accuracy on clean images that the choice may cost")] = 0.5,
    control: Annotated[
        bool,
        typer.Option(
            "--control", help="Train as long on plain views too: is it the perturbed ones? (of tuned networks)"
        ),
    ] = False,
    seed: Annotated[int | None, typer.Option(help="Of all that is drawn (default: the run's)")] = None,
    device: Device = "cpu",
    cache: CacheFolder = "auto",
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Make RUN's model more robust against noise, blur, weather and poor files; prove it, and what it costs.

    It trains on the run's own images, perturbed in ways that the proof does not use, and chooses by its validation images. The
    proof is on its test images under 18 kinds of corruption, paired, with intervals. RUN stays as it is.
    """
    from burnish.disk import expanded
    from burnish.record.made import place_beside

    clock, place = clock_for(budget), place_beside(expanded(run), out, "hard")  # told before torch is loaded
    from burnish import api
    from burnish.bars import watcher_for
    from burnish.reports.hardening import lines_of
    from burnish.runtime import minutes

    said = nothing_written(run, place)
    with interrupted(said), leaving_in_time(said), watcher_for(clock, quiet=quiet, to_stderr=json_) as watcher:
        found = api.harden(
            run, data, budget=budget, out=place, against=against, epsilon=epsilon, lose=lose,
            control=control, seed=seed, device=device, cache=cache, watcher=watcher,
            clock=clock,
        )  # fmt: skip
    if json_:
        print_json({"package": str(found.folder), **found.facts})
        return
    typer.echo(textwrap.fill(shown(found.sentence()), _WIDTH))
    lines = lines_of(found.facts)  # none where the run's own weights stay
    for line in ["", *lines] if lines else []:
        typer.echo(shown(line))
    of = "" if clock.budget_seconds is None else f" of {minutes(clock.budget_seconds)}"
    typer.echo(f"\n  package {shown(str(found.folder))}\n  time    {minutes(found.facts['seconds'])}{of}")
    typer.echo(f"  next    burnish predict {pasted(found.folder)} IMAGES...")
