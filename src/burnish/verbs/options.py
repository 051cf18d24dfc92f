"""Options that several verbs share, and how their values are read and printed."""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from burnish.disk import expanded
from burnish.recipe import Recipe, parse_budget
from burnish.record.folder import no_run, plain
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
Seed = Annotated[int, typer.Option(help="Seed of the random splits, order and augmentation")]
ValFraction = Annotated[float, typer.Option(help="Share of the training images to validate on, if the data has no val")]
TestFraction = Annotated[float, typer.Option(help="Share of all images to test on, if the data has no test")]
Precision = Annotated[str, typer.Option(help="Number format of training: float32, bfloat16, or auto")]
Device = Annotated[str, typer.Option(help="Where it runs: auto (a GPU where there is one), cpu, cuda, cuda:1, mps")]
Workers = Annotated[str, typer.Option(help="Threads that make batches ahead, or auto; changes no result")]
CacheFolder = Annotated[str, typer.Option(metavar="DIR|off", help="Where decoded pixels are kept between runs")]
HeadForm = Annotated[
    str, typer.Option(help="Classifier on the features: linear, mlp:512, cosine", rich_help_panel=SURGERY)
]
Pooling = Annotated[
    str, typer.Option(help="From maps to features: avg, max, avgmax, catavgmax, token", rich_help_panel=SURGERY)
]
Dropout = Annotated[float, typer.Option(help="Dropout rate of the features before the head", rich_help_panel=TRAINING)]
DropPath = Annotated[
    float, typer.Option(help="Rate at which residual branches are skipped (stochastic depth)", rich_help_panel=TRAINING)
]
Depth = Annotated[str, typer.Option(help="Blocks to keep of each group, e.g. 2,2,4,1", rich_help_panel=SURGERY)]
Remove = Annotated[str, typer.Option(help="Layers to take out, by name pattern, with commas", rich_help_panel=SURGERY)]
Insert = Annotated[
    str, typer.Option(help="PATTERN=LAYER, e.g. layer3=dropout:0.1; also conv:3, batchnorm, …", rich_help_panel=SURGERY)
]
Epochs = Annotated[str, typer.Option(help="Passes over the training images, or auto: as many as the budget holds")]
BatchSize = Annotated[str, typer.Option(help="Images in each training step, or auto")]
LearningRate = Annotated[
    str, typer.Option(help="Peak learning rate of the head and the last stage; auto; or race: short trials of three")
]
Freeze = Annotated[str, typer.Option(help="Number of leading stages to keep frozen, or auto: as the budget asks")]
StageDecay = Annotated[
    float, typer.Option(help="Layer-wise decay: each earlier stage learns at this fraction of the next one's rate")
]
WeightDecay = Annotated[float, typer.Option(help="Weight decay of AdamW, on matrices and kernels")]
LabelSmoothing = Annotated[float, typer.Option(help="Share of the target that goes to all classes alike, 0 to 1")]
Flip = Annotated[str, typer.Option(help="Mirror images in training: on, off, or auto (asks the probe)")]
Augment = Annotated[
    str,
    typer.Option(
        help="Augmentation of training images: plain, trivial (TrivialAugment), none", rich_help_panel=TRAINING
    ),
]
Mixup = Annotated[float, typer.Option(help="Blend images, alpha of the Beta distribution", rich_help_panel=TRAINING)]
CutMix = Annotated[
    float, typer.Option(help="Paste rectangles, alpha of the Beta distribution", rich_help_panel=TRAINING)
]
Sam = Annotated[float, typer.Option(help="Radius of sharpness-aware steps, e.g. 0.05", rich_help_panel=TRAINING)]
Balance = Annotated[
    str,
    typer.Option(help="How unequal classes are evened out: none, sampling, loss, or auto", rich_help_panel=TRAINING),
]
Average = Annotated[
    str, typer.Option(help="Average of the weights over the training steps: ema or none", rich_help_panel=TRAINING)
]
Soup = Annotated[
    str,
    typer.Option(help="Average the weights of the best epochs too (model soup): on or off", rich_help_panel=TRAINING),
]
Strict = Annotated[bool, typer.Option("--strict", help="Stop when the audit of the data finds an error")]
Prepared = Annotated[
    str, typer.Option(help="How a Keras file wants its images: keras:resnet50, caffe, tf, torch, none")
]
Quarantine = Annotated[
    Path | None, typer.Option(metavar="FILE", help="A CSV of images to leave out, such as audit.csv")
]
ImageSize = Annotated[str, typer.Option(help="Side of the images in pixels, or auto")]
CropMode = Annotated[
    str, typer.Option(help="What is made of a long image: center (crop), squash, or auto: the better on a part")
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


def recipe_settings(given: dict[str, Any]) -> dict[str, Any]:
    """Those of a verb's options that are settings of a recipe, with their values read."""
    found = {name: given[name] for name in given if name in _SETTINGS}
    return {name: number_or_auto(value, _KINDS[name]) if name in _KINDS else value for name, value in found.items()}


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
