"""Options that several verbs share, and how their values are read and printed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from burnish.recipe import Recipe

DEFAULT = Recipe()
TRAINING = "How it trains"
PROOF = "What it is held against"
SURGERY = "How the network is changed (names: burnish models NAME --stages)"
DATA = (
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
HeadForm = Annotated[str, typer.Option(help="On the features: linear, mlp:512, cosine", rich_help_panel=SURGERY)]
Pooling = Annotated[
    str, typer.Option(help="From maps to features: avg, max, avgmax, catavgmax, token", rich_help_panel=SURGERY)
]
Dropout = Annotated[float, typer.Option(help="Of the features before the head", rich_help_panel=TRAINING)]
DropPath = Annotated[float, typer.Option(help="Of residual branches (stochastic depth)", rich_help_panel=TRAINING)]
Prepared = Annotated[str, typer.Option(help="Of a Keras file: keras:resnet50, caffe, tf, torch, none")]
Quarantine = Annotated[
    Path | None, typer.Option(metavar="FILE", help="A CSV of images to leave out, such as audit.csv")
]
ImageSize = Annotated[str, typer.Option(help="Pixels, side of the training crops, or auto")]

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or a package folder copied from one.")]
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


def print_json(value: Any) -> None:
    from burnish.result import plain

    json.dump(plain(value), sys.stdout, ensure_ascii=False, indent=1, allow_nan=False)
    sys.stdout.write("\n")
