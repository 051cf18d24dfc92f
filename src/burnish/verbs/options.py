"""Options that several verbs share, and how their values are read and printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from burnish.errors import Interrupted, shown
from burnish.recipe import Recipe, parse_budget
from burnish.runtime import Clock

DEFAULT = Recipe()
TRAINING = "How it trains"
PROOF = "What it is held against"
SURGERY = "How the network is changed (names: burnish models NAME --stages)"
DATA = (
    "Class folders, train/val/test folders of them, a table path,label[,split][,group] (.csv .tsv .jsonl .parquet), a .zip "
    "or .tar of folders, WebDataset shards, hf:ORG/NAME, torchvision:NAME, or: demo"
)

_SETTINGS = {field.name for field in fields(Recipe)}
_KINDS: dict[str, type] = {"epochs": int, "image_size": int, "batch_size": int, "freeze": int, "learning_rate": float}

# Options that fit and compare share.
Seed = Annotated[int, typer.Option(help="Of splits, order and augmentation")]
ValFraction = Annotated[float, typer.Option(help="Of the training images, if the data has no val")]
TestFraction = Annotated[float, typer.Option(help="Of all images, if the data has no test")]
Precision = Annotated[str, typer.Option(help="Of training: float32, bfloat16, or auto")]
Device = Annotated[str, typer.Option(help="auto (cuda where there is one, else cpu), cpu, cuda, cuda:1, mps")]
Workers = Annotated[str, typer.Option(help="Threads that make batches ahead, or auto; changes no result")]
CacheFolder = Annotated[str, typer.Option(metavar="DIR|off", help="Where decoded pixels are kept between runs")]
HeadForm = Annotated[str, typer.Option(help="On the features: linear, mlp:512, cosine", rich_help_panel=SURGERY)]
Pooling = Annotated[
    str, typer.Option(help="From maps to features: avg, max, avgmax, catavgmax, token", rich_help_panel=SURGERY)
]
Dropout = Annotated[float, typer.Option(help="Of the features before the head", rich_help_panel=TRAINING)]
DropPath = Annotated[float, typer.Option(help="Of residual branches (stochastic depth)", rich_help_panel=TRAINING)]
Depth = Annotated[str, typer.Option(help="Blocks to keep of each group, e.g. 2,2,4,1", rich_help_panel=SURGERY)]
Remove = Annotated[str, typer.Option(help="Layers to take out, by name pattern, with commas", rich_help_panel=SURGERY)]
Insert = Annotated[
    str, typer.Option(help="PATTERN=LAYER, e.g. layer3=dropout:0.1; also conv:3, batchnorm, …", rich_help_panel=SURGERY)
]
Epochs = Annotated[str, typer.Option(help="Passes over the training images, or auto: as many as fit, 200 at most")]
BatchSize = Annotated[str, typer.Option(help="Images a step, or auto")]
LearningRate = Annotated[
    str, typer.Option(help="Peak, of the head and the last stage, or auto, or race: short trials of three")
]
Freeze = Annotated[str, typer.Option(help="Leading stages that stay as they are, or auto: as the clock asks")]
StageDecay = Annotated[float, typer.Option(help="Each earlier stage learns at this fraction")]
WeightDecay = Annotated[float, typer.Option(help="Of AdamW, on matrices and kernels")]
LabelSmoothing = Annotated[float, typer.Option(help="Fraction, 0 to 1")]
Flip = Annotated[str, typer.Option(help="Mirror images in training: on, off, or auto (asks the probe)")]
Augment = Annotated[
    str, typer.Option(help="Of training images: plain, trivial (TrivialAugment), none", rich_help_panel=TRAINING)
]
Mixup = Annotated[float, typer.Option(help="Blend images, alpha of the Beta distribution", rich_help_panel=TRAINING)]
CutMix = Annotated[
    float, typer.Option(help="Paste rectangles, alpha of the Beta distribution", rich_help_panel=TRAINING)
]
Sam = Annotated[float, typer.Option(help="Radius of sharpness-aware steps, e.g. 0.05", rich_help_panel=TRAINING)]
Balance = Annotated[
    str, typer.Option(help="Of unequal classes: none, sampling, loss, or auto", rich_help_panel=TRAINING)
]
Average = Annotated[str, typer.Option(help="Of weights in training: ema or none", rich_help_panel=TRAINING)]
Soup = Annotated[str, typer.Option(help="Average the best epochs too: on or off", rich_help_panel=TRAINING)]
Strict = Annotated[bool, typer.Option("--strict", help="Stop when the audit of the data finds an error")]
Prepared = Annotated[str, typer.Option(help="Of a Keras file: keras:resnet50, caffe, tf, torch, none")]
Quarantine = Annotated[
    Path | None, typer.Option(metavar="FILE", help="A CSV of images to leave out, such as audit.csv")
]
ImageSize = Annotated[str, typer.Option(help="Pixels, side of the training crops, or auto")]
CropMode = Annotated[str, typer.Option(help="Of a long image: center, squash, or auto, as a part of them tells")]

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


def recipe_settings(given: dict[str, Any]) -> dict[str, Any]:
    """Those of a verb's options that are settings of a recipe, with their values read."""
    found = {name: given[name] for name in given if name in _SETTINGS}
    return {name: number_or_auto(value, _KINDS[name]) if name in _KINDS else value for name, value in found.items()}


def clock_for(budget: str | None) -> Clock:
    """A clock that has run since the process started."""
    return Clock.start(parse_budget(budget), from_process_start=True)


def print_json(value: Any) -> None:
    from burnish.result import plain

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


@contextmanager
def going_on(folder: Path) -> Iterator[None]:
    """Who stops a run is told how to go on with it."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted; what was saved is kept, and a package that is there can predict. To go on, say the same again with  "
            f"--out {shown(str(folder))}"
        ) from None
