"""Options that several verbs share, and how their values are read and printed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from burnish.disk import expanded
from burnish.recipe import SETTINGS, Recipe, parse_budget
from burnish.record.folder import no_run, plain
from burnish.runtime import Clock

DEFAULT = Recipe()
DATA = (
    "Class folders, train/val/test folders of them, a table path,label[,split][,group] (.csv .tsv .jsonl .parquet), a .zip "
    "or .tar of folders, WebDataset shards, hf:ORG/NAME, torchvision:NAME, or: demo"
)

Device = Annotated[str, typer.Option(help=SETTINGS["device"].help)]

# Options that fit and compare share, beside the settings of a recipe.
Workers = Annotated[str, typer.Option(help="Threads that make batches ahead, or auto; changes no result")]
CacheFolder = Annotated[str, typer.Option(metavar="DIR|off", help="Where decoded pixels are kept between runs")]
Strict = Annotated[bool, typer.Option("--strict", help="Stop when the audit of the data finds an error")]
Quarantine = Annotated[
    Path | None, typer.Option(metavar="FILE", help="A CSV of images to leave out, such as audit.csv")
]


def _there(run: Path) -> Path:
    """The same; NotARun where there is nothing, told before torch is loaded."""
    if not expanded(run).exists():
        raise no_run(run)
    return run


Run = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run folder, or a package folder copied from one.", callback=_there)
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only the result.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON; progress goes to stderr.")]


def number_or_auto(text: str, kind: type) -> Any:
    """The option's value: "auto" stays a word, anything else is a number or a mistake for Recipe to name."""
    if text == "auto":
        return text
    try:
        return kind(text)
    except ValueError:
        return text


def clock_for(budget: str | None) -> Clock:
    """A clock that has run since the process started."""
    return Clock.start(parse_budget(budget), from_process_start=True)


def print_json(value: Any) -> None:
    text = json.dumps(plain(value), ensure_ascii=False, indent=1, allow_nan=False)
    if sys.stdout is None:  # closed by who started it
        return
    # What a terminal would act on or turn around is escaped as JSON has it; letters stay readable (P10).
    sys.stdout.write("".join(char if _told_as_it_is(char) else json.dumps(char)[1:-1] for char in text) + "\n")


def _told_as_it_is(char: str) -> bool:
    """Whether a character may stand in the output: it can be seen there, and written there."""
    try:
        char.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return char.isprintable() or char == "\n"
