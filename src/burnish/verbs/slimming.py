"""The verb that makes a finished model smaller and faster, and what it prints."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Annotated, Any

import typer

from burnish.errors import pasted, shown
from burnish.verbs.options import DATA, Json, Quiet, Run, clock_for, print_json
from burnish.verbs.stopping import interrupted, leaving_in_time, nothing_written

_WIDTH = 80  # columns
_COLUMNS = ("original", "slim", "onnx_float32", "onnx")
_TITLES = {"original": "original", "slim": "slim", "onnx_float32": "ONNX float32", "onnx": "ONNX int8"}


def slim(
    run: Run,
    data: Annotated[
        str | None,
        typer.Argument(metavar="[DATA]", help=f"The run's own images (default: as its record says). {DATA}."),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="The new package (default: RUN-slim)")] = None,
    lose: Annotated[
        float, typer.Option(metavar="POINTS", help="Percentage points that may be lost at the most.")
    ] = 0.5,
    onnx: Annotated[
        str, typer.Option(help="An int8 ONNX file besides: auto (where its packages are installed), on or off")
    ] = "auto",
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Make a run's model smaller and faster; prove on its test images what was lost."""
    from burnish.disk import expanded
    from burnish.record.made import place_beside

    place = place_beside(expanded(run), out, "slim")  # told before torch is loaded
    from burnish import api
    from burnish.bars import watcher_for

    said = nothing_written(run, place)
    with (
        interrupted(said),
        leaving_in_time(said),
        watcher_for(clock_for(None), quiet=quiet, to_stderr=json_) as watcher,
    ):
        found = api.slim(run, data, place, lose=lose, onnx=onnx, watcher=watcher)
    print_json(found.facts) if json_ else _print(found.facts, found.folder)


def _print(facts: dict[str, Any], folder: Path) -> None:
    """The verdict, what each form takes, and where it is."""
    from burnish.measure.intervals import percent

    proofs = {"slim": facts["proof"], **({"onnx": facts["onnx"]["proof"]} if "proof" in facts["onnx"] else {})}
    print(textwrap.fill(facts["proof"]["sentence"], _WIDTH))
    if "onnx" in proofs:
        print(textwrap.fill(f"The int8 ONNX file: {proofs['onnx']['sentence']}", _WIDTH))
    shares = {"original": percent(facts["proof"]["original"]["value"])}
    shares |= {name: percent(one["slim"]["value"]) for name, one in proofs.items()}
    sizes = {name: f"{count / 1e6:.1f} MB" for name, count in facts["bytes"].items()}
    times = {name: f"{one:.1f} ms" for name, one in facts["milliseconds"].items()}
    columns = [name for name in _COLUMNS if name in times]
    print("\n" + " " * 16 + "".join(f"{_TITLES[name]:>15}" for name in columns))
    for title, cells in (("right on test", shares), ("size", sizes), ("time an image", times)):
        print(f"  {title:<14}" + "".join(f"{cells.get(name, ''):>15}" for name in columns))
    print()
    of, last = facts["of"], facts["slim"]
    _row("weights", f"{of['weights']} → {last['weights']}; images of {of['size']} → {last['size']} px")
    for note in facts["notes"]:
        _row("", note)
    threads = f"{facts['threads']} thread{'' if facts['threads'] == 1 else 's'}"
    _row("time", f"medians of {facts['calls']} calls, in turns, one image, {threads}, decoding apart")
    _row("ONNX", f"int8: {facts['onnx']['int8']}" if "int8" in facts["onnx"] else f"no file: {facts['onnx']['why']}")
    took = facts["milliseconds"]
    if "onnx" in took and took["onnx"] >= took["onnx_float32"]:
        _row("", "it is no faster here than the float32 file that burnish export writes")
    _row("details", shown(str(folder / "slim.json")))
    print(f"  next    burnish predict {pasted(folder)} IMAGES...")


def _row(title: str, text: str) -> None:
    """A line with a title, wrapped under itself."""
    print(textwrap.fill(shown(text), _WIDTH, initial_indent=f"  {title:<8}", subsequent_indent=" " * 10))
