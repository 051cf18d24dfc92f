"""All choices of a run as one frozen value; reads and writes TOML; "auto" is settled once, before the first step."""

from __future__ import annotations

import math
import os
import re
import tomllib
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypedDict

import tomli_w

from burnish.elsewhere import known_elsewhere
from burnish.errors import RecipeError, nearest, shown
from burnish.settings import PROOF, SURGERY, TRAINING, Setting, Takes, either, real, setting, text, whole, words

Auto = Literal["auto"]
DEVICES = "auto, cpu, cuda, cuda:N (a number), mps or xpu"
_DEVICE = re.compile(r"auto|(cpu|cuda|mps|xpu)(:\d{1,3})?")
_HEAD = re.compile(r"linear|cosine|mlp:[1-9]\d{0,4}")
_DEPTH = re.compile(r"|[1-9]\d{0,3}(,[1-9]\d{0,3})*")
_UNIT = re.compile(r"s(ecs?|econds?)?|m(ins?|inutes?)?|h(rs?|ours?)?|d(ays?)?")
_UNIT_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_AUTO = ("auto",)
_FIT_ALONE = "it is of fit alone"
_BUDGET = real(0, math.inf, above=True)


def is_device(name: str) -> bool:
    """Whether that is what a device may be called."""
    return bool(_DEVICE.fullmatch(name))


@dataclass(frozen=True)
class Recipe:
    """The settings of `fit`: what each takes, and what for. What may be "auto" is a plain value once the run has settled it."""

    model: str = setting(
        "efficientnet_lite0",
        text(
            'a model name or file (see: burnish models; of a module the file that holds its state_dict, as "best.pth")',
            bool,
        ),
        "A name from: burnish models, a file, an earlier RUN, hf-hub:ORG/NAME, URL#sha256=…, or auto",
        in_compare="say models",
    )
    arch: str = setting(  # "": as the file or the config.json beside it says, or its tensors tell
        "",
        text("a name (see: burnish models)"),
        "Architecture of a model file that does not say it, e.g. resnet50",
        in_compare="say NAME=FILE among the models",
    )
    preprocess: str = setting(
        "",
        text("keras:resnet50, caffe, tf, torch or none"),
        "How a Keras file wants its images: keras:resnet50, caffe, tf, torch, none",
    )
    method: str = setting(
        "auto",
        text("a method name (see: burnish methods)", bool),
        "auto, or a name from: burnish methods, e.g. lora:rank=4",
        in_compare="say methods",
    )
    budget_seconds: float | None = setting(  # wall clock, from process start to exit; None: no limit
        600.0,
        Takes(lambda v: v is None or _BUDGET.holds(v), "more than zero seconds, or none"),
        in_compare="say budget",
    )
    epochs: int | Auto = setting(  # 200 at most where the clock decides
        "auto",
        either(_AUTO, whole(1, 100_000)),
        "Passes over the training images, or auto: as many as the budget holds",
        trains=True,
    )
    seed: int = setting(0, whole(0, 2**63 - 1), "Seed of the random splits, order and augmentation")
    image_size: int | Auto = setting(  # of the training crops
        "auto", either(_AUTO, whole(16, 1024, "16 to 1024 pixels")), "Side of the images in pixels, or auto"
    )
    # Its middle square, or all of it squashed to one. "auto": as the network was made for, and where that is less than half of
    # the middle image's area, as some of them tell.
    crop_mode: Literal["auto", "center", "squash"] = setting(
        "auto",
        words("auto", "center", "squash"),
        "What is made of a long image: center (crop), squash, or auto: the better on a part",
    )
    batch_size: int | Auto = setting(
        "auto", either(_AUTO, whole(1, 65_536)), "Images in each training step, or auto", trains=True
    )
    learning_rate: float | Literal["auto", "race"] = setting(
        "auto",
        either(("auto", "race"), real(0, 1, above=True)),
        "Peak learning rate of the head and the last stage; auto; or race: short trials of three",
        trains=True,
    )
    freeze: int | Auto = setting(
        "auto",
        either(_AUTO, whole(0, 1000, "a whole number of stages from 0 to 1,000")),
        "Number of leading stages to keep frozen, or auto: as the budget asks",
        trains=True,
    )
    head: str = setting(
        "linear",
        text('"linear", "mlp:512" (or another width) or "cosine"', lambda v: bool(_HEAD.fullmatch(v))),
        "Classifier on the features: linear, mlp:512, cosine",
        panel=SURGERY,
    )
    pool: str = setting(  # "": as it was
        "",
        text('"avg", "max", "avgmax", "catavgmax" or "token"'),
        "From maps to features: avg, max, avgmax, catavgmax, token",
        panel=SURGERY,
    )
    depth: str = setting(  # the last of a group go
        "",
        text('whole numbers with commas, such as "2,2,4,1"', lambda v: bool(_DEPTH.fullmatch(v))),
        "Blocks to keep of each group, e.g. 2,2,4,1",
        panel=SURGERY,
    )
    remove: str = setting(
        "",
        text("patterns of layers' names, with commas"),
        "Layers to take out, by name pattern, with commas",
        panel=SURGERY,
    )
    insert: str = setting(  # after each layer that matches
        "",
        text("PATTERN=LAYER, with commas"),
        "PATTERN=LAYER, e.g. layer3=dropout:0.1; also conv:3, batchnorm, …",
        panel=SURGERY,
    )
    taps: Literal["auto", "on", "off"] = setting(  # "auto": cross-validation decides
        "auto",
        words("auto", "on", "off"),
        "Heads see all depths of the network: on, off, or auto",
        in_compare="say multiprobe or probe among the methods",
    )
    stage_decay: float = setting(
        0.75,
        real(0, 1, above=True),
        "Layer-wise decay: each earlier stage learns at this fraction of the next one's rate",
        trains=True,
    )
    weight_decay: float = setting(
        0.05, real(0, 1, below=True), "Weight decay of AdamW, on matrices and kernels", trains=True
    )
    label_smoothing: float = setting(
        0.1,
        real(0, 1, unit="a fraction", below=True),
        "Share of the target that goes to all classes alike, 0 to 1",
        trains=True,
    )
    augment: Literal["plain", "trivial", "none"] = setting(  # "plain": crops and colour
        "plain",
        words("plain", "trivial", "none"),
        "Augmentation of training images: plain, trivial (TrivialAugment), none",
        panel=TRAINING,
        trains=True,
    )
    mixup: float = setting(
        0.0, real(0, 10), "Blend images, alpha of the Beta distribution", panel=TRAINING, trains=True
    )
    cutmix: float = setting(
        0.0, real(0, 10), "Paste rectangles, alpha of the Beta distribution", panel=TRAINING, trains=True
    )
    sam: float = setting(  # which take twice the time; 0: plain ones
        0.0, real(0, 1), "Radius of sharpness-aware steps, e.g. 0.05", panel=TRAINING, trains=True
    )
    dropout: float = setting(
        0.0,
        real(0, 1, unit="a fraction", below=True),
        "Dropout rate of the features before the head",
        panel=TRAINING,
        trains=True,
    )
    drop_path: float = setting(  # rising with depth to this fraction
        0.0,
        real(0, 1, unit="a fraction", below=True),
        "Rate at which residual branches are skipped (stochastic depth)",
        panel=TRAINING,
        trains=True,
    )
    balance: Literal["auto", "none", "sampling", "loss"] = setting(  # "auto": sampling from 1 : 10 on
        "auto",
        words("auto", "none", "sampling", "loss"),
        "How unequal classes are evened out: none, sampling, loss, or auto",
        panel=TRAINING,
        trains=True,
    )
    average: Literal["ema", "none"] = setting(
        "ema",
        words("ema", "none"),
        "Average of the weights over the training steps: ema or none",
        panel=TRAINING,
        trains=True,
    )
    soup: Literal["on", "off"] = setting(  # as long as validation improves
        "off",
        words("on", "off"),
        "Average the weights of the best epochs too (model soup): on or off",
        panel=TRAINING,
        trains=True,
    )
    search: bool = setting(
        False,
        Takes(lambda v: isinstance(v, bool), "true or false"),
        "Try other settings in 60 % of the time (Optuna)",
        panel=TRAINING,
        in_compare=_FIT_ALONE,
    )
    flip: Literal["auto", "on", "off"] = setting(
        "auto",
        words("auto", "on", "off"),
        "Mirror images in training: on, off, or auto (asks the probe)",
        trains=True,
    )
    val_fraction: float = setting(
        0.15,
        real(0, 0.9, unit="a fraction", above=True, below=True),
        "Share of the training images to validate on, if the data has no val",
    )
    test_fraction: float = setting(
        0.2,
        real(0, 0.9, unit="a fraction", above=True, below=True),
        "Share of all images to test on, if the data has no test",
    )
    precision: Literal["auto", "float32", "bfloat16"] = setting(  # of training and frozen features; scores are float32
        "auto", words("auto", "float32", "bfloat16"), "Number format: float32, bfloat16, or auto (whichever is fast)"
    )
    device: str = setting(
        "auto",
        text(DEVICES, is_device),
        "Where it runs: auto (a GPU where there is one), cpu, cuda, cuda:1, mps",
    )
    baselines: Literal["none", "probe", "all"] = setting(
        "probe",
        words("none", "probe", "all"),
        "none: the frozen probe alone; probe: the commonest class too; all: also from scratch, in half the time",
        panel=PROOF,
        in_compare=_FIT_ALONE,
    )
    against: str = setting(  # on the same test images
        "",
        text("the folder of a run"),
        "Compare with the model of an earlier run",
        panel=PROOF,
        metavar="RUN",
        in_compare=_FIT_ALONE,
    )
    seeds: int = setting(
        1,
        whole(1, 100),
        "Repeat the training with this many seeds, in shares of the budget",
        panel=PROOF,
        in_compare=_FIT_ALONE,
    )

    def __post_init__(self) -> None:
        problems = [said for name, one in SETTINGS.items() if (said := one.problem(name, getattr(self, name)))]
        if problems:
            raise RecipeError("; ".join(problems))

    def to_toml(self) -> str:
        """The recipe as TOML text; an absent limit is written as the word "none"."""
        values = {key: "none" if value is None else value for key, value in asdict(self).items()}
        return tomli_w.dumps(values)

    @classmethod
    def from_toml(cls, text: str) -> Recipe:
        """The inverse of `to_toml`; missing keys take their defaults, all mistakes come in one RecipeError."""
        try:
            values = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise RecipeError(f"the recipe is not TOML: {error}") from None
        return recipe_from(
            {key: None if key == "budget_seconds" and value == "none" else value for key, value in values.items()}
        )


class Settings(TypedDict, total=False):
    """The fields of `Recipe` but for the budget, for type checkers and whoever completes as they write; any may be left out."""

    model: str
    arch: str
    preprocess: str
    method: str
    epochs: int | Auto
    seed: int
    image_size: int | Auto
    crop_mode: Literal["auto", "center", "squash"]
    batch_size: int | Auto
    learning_rate: float | Literal["auto", "race"]
    freeze: int | Auto
    head: str
    pool: str
    depth: str
    remove: str
    insert: str
    taps: Literal["auto", "on", "off"]
    stage_decay: float
    weight_decay: float
    label_smoothing: float
    augment: Literal["plain", "trivial", "none"]
    mixup: float
    cutmix: float
    sam: float
    dropout: float
    drop_path: float
    balance: Literal["auto", "none", "sampling", "loss"]
    average: Literal["ema", "none"]
    soup: Literal["on", "off"]
    search: bool
    flip: Literal["auto", "on", "off"]
    val_fraction: float
    test_fraction: float
    precision: Literal["auto", "float32", "bfloat16"]
    device: str
    baselines: Literal["none", "probe", "all"]
    against: str
    seeds: int


SETTINGS: dict[str, Setting] = {field.name: field.metadata["setting"] for field in fields(Recipe)}


def recipe_from(values: dict[str, Any]) -> Recipe:
    """A recipe from keyword values, a path as its text; an unknown key is an error that names the nearest ones."""
    if unknown := unknown_among(values):
        raise RecipeError(unknown)
    return Recipe(
        **{name: os.fspath(value) if isinstance(value, os.PathLike) else value for name, value in values.items()}
    )


def unknown_among(names: Iterable[str], known: Collection[str] = SETTINGS) -> str:
    """Each of these that is no setting, with what it is here or the nearest ones, as a clause; "" where all are known."""
    said = [name.removesuffix("_seconds") for name in SETTINGS]  # the budget is given under that name, with its unit
    return "; ".join(
        f"no setting {shown(name)!r} ({known_elsewhere(name) or f'nearest: {nearest(name, said, limit=3)}'})"
        for name in names
        if name not in known
    )


def unused_in(recipe: Recipe) -> list[str]:
    """Settings of training that are not at their defaults, as options: of no use where nothing is trained."""
    usual, names = Recipe(), [name for name in SETTINGS if SETTINGS[name].trains]
    return [f"--{name.replace('_', '-')}" for name in names if getattr(recipe, name) != getattr(usual, name)]


def parse_budget(budget: str | float | None) -> float | None:
    """Seconds from "90s", "10m", "1h30m", a number of seconds, or "none" (no limit)."""
    if budget is None or budget == "none":
        return None
    if isinstance(budget, (int, float)) and not isinstance(budget, bool):
        seconds = float(budget)
    else:
        text = str(budget).strip().lower()
        parts = re.findall(r"(\d+(?:\.\d+)?) *([a-z]+)", text)
        rest = re.sub(r"(\d+(?:\.\d+)?) *([a-z]+)", "", text).strip()
        if not parts or rest or any(not _UNIT.fullmatch(unit) for _, unit in parts):
            number = re.fullmatch(r"\d+(\.\d+)?", text) and float(text) > 0
            hint = f' (do you mean "{text}s" or "{text}m"?)' if number else ""
            raise RecipeError(
                f'budget is {shown(str(budget))!r}, expected a time with a unit such as "90s", "10m", "1h30m", or "none"{hint}'
            )
        seconds = sum(float(number) * _UNIT_SECONDS[unit[0]] for number, unit in parts)
    if not (math.isfinite(seconds) and seconds > 0):
        raise RecipeError(f'budget is {shown(str(budget))!r}, expected more than zero seconds, or "none"')
    return seconds
