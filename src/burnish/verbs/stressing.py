"""What evaluate says of damaged images: its options, and how they are shown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from burnish.errors import RecipeError, shown

if TYPE_CHECKING:
    from burnish.measure.withstood import Robustness

Corrupted = Annotated[
    bool,
    typer.Option(
        "--corrupted",
        help="Score them damaged too: noise, blur, fog, low light …; files saved again, turned, cropped …",
    ),
]
Attacked = Annotated[
    bool, typer.Option("--attacked", help="Score them changed so that the model errs (FGSM, APGD), unseen by an eye.")
]
Epsilon = Annotated[
    list[float] | None,
    typer.Option(
        metavar="VALUE", help="With --attacked: by how much of 255; may be said again (default: 0.5, 1, 2, 4)."
    ),
]
Most = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Damage so many images, an even part (default: as many as five minutes allow for either)."
    ),
]
Reject = Annotated[
    float | None, typer.Option(metavar="ACCURACY", help="With --corrupted: what predict --reject still answers.")
]
Table = Annotated[Path | None, typer.Option(metavar="FILE", help="Write what damage leaves as CSV.")]
Page = Annotated[Path | None, typer.Option(metavar="FILE", help="Write it as an HTML page, with pictures.")]

Language = Annotated[str, typer.Option(help="Language of the page: en or zh.")]


def require_damage(corrupted: bool, attacked: bool, *, lang: str = "en", **options: object) -> None:
    """RecipeError for an option that says how where nothing is asked."""
    said = next((name for name, value in options.items() if value is not None), None)
    if said is not None and not (corrupted or attacked):
        raise RecipeError(f"--{said} is of damaged images; say --corrupted or --attacked with it")
    if lang != "en" and options.get("page") is None:
        raise RecipeError("--lang is of the page; say --page FILE with it")
    if options.get("epsilon") is not None and not attacked:
        raise RecipeError("--epsilon is of attacked images; say --attacked with it")
    if options.get("reject") is not None and not corrupted:
        raise RecipeError(
            "--reject is of corrupted images here; say --corrupted with it (of new images: burnish predict)"
        )


def print_robustness(found: Robustness, table: Path | None, page: Path | None) -> None:
    """Both tables, and where the rest was written."""
    from burnish.reports.robust import lines

    print()
    for line in lines(found):
        print(line)
    for name, file in (("table", table), ("page", page)):
        if file is not None:
            print(f"  {name:<8}{shown(str(file))}")
