"""All choices of a run as one frozen value; reads and writes TOML; "auto" is settled once, before the first step."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import tomli_w

from burnish.errors import RecipeError, nearest, shown

Auto = Literal["auto"]
_OF_TRAINING = (
    "epochs", "batch_size", "learning_rate", "freeze", "stage_decay", "weight_decay", "label_smoothing", "augment", "mixup",
    "cutmix", "sam", "balance", "average", "soup", "flip", "dropout", "drop_path",
)  # fmt: skip
DEVICES = "auto, cpu, cuda, cuda:N (a number), mps or xpu"
_DEVICE = re.compile(r"auto|(cpu|cuda|mps|xpu)(:\d{1,3})?")
_UNIT_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True)
class Recipe:
    """The settings of `fit`. A field that may be "auto" is a plain value once the run has settled it."""

    model: str = "efficientnet_lite0"
    arch: str = ""  # of a file of weights; "": as it or the config.json beside it says, or its tensors tell
    preprocess: str = ""  # how a Keras file's images were prepared: keras:resnet50, caffe, tf, torch, none
    method: str = "auto"
    budget_seconds: float | None = 600.0  # wall clock, from process start to exit; None: no limit
    epochs: int | Auto = "auto"  # passes over the training images; "auto": as many as the budget holds, 200 at most
    seed: int = 0
    image_size: int | Auto = "auto"  # pixels, side of the training crops
    # What of a long image the network sees: its middle square, or all of it squashed to one. "auto": as the network was made for,
    # and where that is less than half of the middle image's area, as some of them tell.
    crop_mode: Literal["auto", "center", "squash"] = "auto"
    batch_size: int | Auto = "auto"  # images per optimiser step
    # Peak, of the head and the last stage; "race": short trials
    learning_rate: float | Literal["auto", "race"] = "auto"
    # Leading stages that stay as they are (see `burnish models`); "auto": as the clock asks
    freeze: int | Auto = "auto"
    pool: str = ""  # what makes features of maps: "avg", "max", "avgmax", "catavgmax", "token"; "": as it was
    depth: str = ""  # blocks to keep of each group, such as "2,2,4,1"; the last of a group go
    remove: str = ""  # patterns of names of layers to take out, with commas
    insert: str = ""  # PATTERN=LAYER with commas: a new layer after each that matches
    head: str = "linear"  # on the features: "linear", "mlp:512" (a hidden layer of 512 units), "cosine"
    taps: Literal["auto", "on", "off"] = "auto"  # heads see all depths of the network; "auto": cross-validation decides
    stage_decay: float = 0.75  # each earlier stage learns at this fraction of the next one's rate
    weight_decay: float = 0.05
    label_smoothing: float = 0.1  # fraction, 0 to 1
    # Of training images: crops and colour; TrivialAugment too; none
    augment: Literal["plain", "trivial", "none"] = "plain"
    mixup: float = 0.0  # alpha of the Beta distribution that two images are blended by; 0: never
    cutmix: float = 0.0  # the same for a pasted rectangle
    sam: float = 0.0  # radius of sharpness-aware steps, which take twice the time; 0: plain ones
    dropout: float = 0.0  # of the features before the head, fraction
    drop_path: float = 0.0  # of residual branches, rising with depth to this fraction
    balance: Literal["auto", "none", "sampling", "loss"] = "auto"  # of unequal classes; "auto": sampling from 1 : 10 on
    search: bool = False  # spend part of the time on trials of other settings (needs Optuna)
    average: Literal["ema", "none"] = "ema"  # of the weights while training
    soup: Literal["on", "off"] = "off"  # average the best epochs as long as validation improves
    flip: Literal["auto", "on", "off"] = "auto"  # mirror images left to right while training
    val_fraction: float = 0.15  # of the training images, when the data names no val split
    test_fraction: float = 0.2  # of all images, when the data names no test split
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # of training and frozen features; scores are float32
    device: str = "auto"  # "cpu", "cuda", "cuda:1", "mps"
    # In the report; "all": trained from scratch too, for half the time
    baselines: Literal["none", "probe", "all"] = "probe"
    against: str = ""  # the folder of an earlier run whose model is to be compared on the same test images
    seeds: int = 1  # trainings, each from its own seed and with its share of the budget

    def __post_init__(self) -> None:
        problems = [problem for check in _CHECKS if (problem := check.problem(getattr(self, check.field)))]
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


# What other tools call it, and what it is here.
_ELSEWHERE = {
    "model": ("arch_name", "backbone", "base_model", "checkpoint", "network", "pretrained", "weights"),
    "budget": ("max_time", "time", "time_limit", "time_limit_seconds", "timeout"),
    "out": ("exp_name", "name", "output", "output_dir", "project", "save_dir"),
    "epochs": ("max_epochs", "n_epochs", "num_epochs", "num_train_epochs"),
    "image_size": ("img_size", "imgsz", "input_size", "resolution", "size"),
    "batch_size": ("batch", "bs", "per_device_train_batch_size", "train_batch_size"),
    "learning_rate": ("base_lr", "lr", "lr0", "max_lr"),
    "weight_decay": ("wd",),
    "freeze": ("freeze_layers", "frozen", "unfreeze"),
    "label_smoothing": ("smoothing",),
    "dropout": ("drop", "drop_rate"),
    "drop_path": ("drop_path_rate", "stochastic_depth"),
    "balance": ("class_weight", "class_weights", "oversample", "weighted_sampler"),
    "average": ("ema", "model_ema"),
    "augment": ("aa", "augmentation", "augmentations", "auto_augment", "autoaugment"),
    "flip": ("fliplr", "hflip"),
    "val_fraction": ("val_split", "valid_pct", "validation_split"),
    "test_fraction": ("test_size", "test_split"),
    "precision": ("amp", "bf16", "dtype", "fp16", "half", "mixed_precision"),
    "device": ("accelerator", "cuda", "gpu", "gpus"),
    "workers": ("dataloader_num_workers", "num_workers"),
    "seed": ("random_seed", "random_state"),
}
_NEEDLESS = {
    "AdamW is the optimiser of all methods": ("momentum", "opt", "optim", "optimizer"),
    "the rate rises, then falls to zero exactly at the end": (
        "cos_lr", "lr_scheduler", "lr_scheduler_type", "sched", "scheduler", "warmup", "warmup_epochs", "warmup_steps",
    ),
    "the weights' average at the end is kept, or an epoch that is clearly better on validation": (
        "early_stopping", "patience", "save_best",
    ),
    "the same command with the same out goes on where a run stopped": ("resume", "resume_from_checkpoint"),
}  # fmt: skip


def is_device(name: str) -> bool:
    """Whether that is what a device may be called."""
    return bool(_DEVICE.fullmatch(name))


def known_elsewhere(word: str, *, option: bool = False) -> str:
    """What a setting of another tool is here, as a clause; "" for a word that none has. option: as the command line says it."""
    word = word.lstrip("-").replace("-", "_").lower()
    here = next((name for name, words in _ELSEWHERE.items() if word in words), None)
    if here is not None:
        return f"here it is {'--' + here.replace('_', '-') if option else here}"
    return next((why for why, words in _NEEDLESS.items() if word in words), "")


def recipe_from(values: dict[str, Any]) -> Recipe:
    """A recipe from keyword values; an unknown key is an error that names the nearest ones."""
    known = [field.name for field in fields(Recipe)]
    said = [name.removesuffix("_seconds") for name in known]  # the budget is given under that name, with its unit
    unknown = [
        f"no setting {shown(key)!r} ({known_elsewhere(key) or f'nearest: {nearest(key, said, limit=3)}'})"
        for key in values
        if key not in known
    ]
    if unknown:
        raise RecipeError("; ".join(unknown))
    return Recipe(**values)


def unused_in(recipe: Recipe, *, one_size: bool = True) -> list[str]:
    """Settings of training that are not at their defaults, as options: of no use where nothing is trained.

    one_size: whether the network is built for the image size that is asked for; else that is one of them.
    """
    usual, names = Recipe(), _OF_TRAINING if one_size else (*_OF_TRAINING, "image_size")
    return [f"--{name.replace('_', '-')}" for name in names if getattr(recipe, name) != getattr(usual, name)]


def parse_budget(budget: str | float | None) -> float | None:
    """Seconds from "90s", "10m", "1h30m", a number of seconds, or "none" (no limit)."""
    if budget is None or budget == "none":
        return None
    if isinstance(budget, (int, float)) and not isinstance(budget, bool):
        seconds = float(budget)
    else:
        text = str(budget).strip().lower()
        parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", text)
        if not parts or "".join(number + unit for number, unit in parts) != text.replace(" ", ""):
            number = re.fullmatch(r"\d+(\.\d+)?", text) and float(text) > 0
            hint = f' (do you mean "{text}s" or "{text}m"?)' if number else ""
            raise RecipeError(
                f'budget is {shown(str(budget))!r}, expected a time with a unit such as "90s", "10m", "1h30m", or "none"{hint}'
            )
        seconds = sum(float(number) * _UNIT_SECONDS[unit] for number, unit in parts)
    if not (math.isfinite(seconds) and seconds > 0):
        raise RecipeError(f'budget is {shown(str(budget))!r}, expected more than zero seconds, or "none"')
    return seconds


@dataclass(frozen=True)
class _Check:
    """One constraint as data: the field, the test, and the words for what was expected."""

    field: str
    holds: Callable[[Any], bool]
    expected: str

    def problem(self, value: Any) -> str | None:
        try:
            fine = self.holds(value)
        except TypeError:
            fine = False
        if fine:
            return None
        told = shown(repr(value))
        told = told if len(told) <= 200 else f"{told[:60]}… (a {type(value).__name__})"
        return f"{self.field} is {told}, expected {self.expected}"


def _is_head(value: Any) -> bool:
    return value in ("linear", "cosine") or (isinstance(value, str) and bool(re.fullmatch(r"mlp:[1-9]\d{0,4}", value)))


def _is_depth(value: Any) -> bool:
    return value == "" or (isinstance(value, str) and bool(re.fullmatch(r"[1-9]\d{0,3}(,[1-9]\d{0,3})*", value)))


def _whole(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _real(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


_CHECKS = (
    _Check("model", lambda v: isinstance(v, str) and v != "", "a model name or file (see: burnish models)"),
    _Check("arch", lambda v: isinstance(v, str), "a name (see: burnish models)"),
    _Check("preprocess", lambda v: isinstance(v, str), "keras:resnet50, caffe, tf, torch or none"),
    _Check("method", lambda v: isinstance(v, str) and v != "", "a method name (see: burnish methods)"),
    _Check("budget_seconds", lambda v: v is None or (_real(v) and v > 0), "more than zero seconds, or none"),
    _Check("epochs", lambda v: v == "auto" or _whole(v, 1, 100_000), '"auto" or a whole number from 1 to 100,000'),
    _Check("seed", lambda v: _whole(v, 0, 2**63 - 1), "a whole number from 0"),
    _Check("image_size", lambda v: v == "auto" or _whole(v, 16, 1024), '"auto" or 16 to 1024 pixels'),
    _Check("crop_mode", lambda v: v in ("auto", "center", "squash"), '"auto", "center" or "squash"'),
    _Check("batch_size", lambda v: v == "auto" or _whole(v, 1, 65_536), '"auto" or a whole number from 1 to 65,536'),
    _Check(
        "learning_rate",
        lambda v: v in ("auto", "race") or (_real(v) and 0 < v <= 1),
        '"auto", "race" or a number above 0 and at most 1',
    ),
    _Check("freeze", lambda v: v == "auto" or _whole(v, 0, 1000), '"auto" or a whole number of stages from 0'),
    _Check("pool", lambda v: isinstance(v, str), '"avg", "max", "avgmax", "catavgmax" or "token"'),
    _Check("depth", _is_depth, 'whole numbers with commas, such as "2,2,4,1"'),
    _Check("remove", lambda v: isinstance(v, str), "patterns of layers' names, with commas"),
    _Check("insert", lambda v: isinstance(v, str), "PATTERN=LAYER, with commas"),
    _Check("head", _is_head, '"linear", "mlp:512" (or another width) or "cosine"'),
    _Check("taps", lambda v: v in ("auto", "on", "off"), '"auto", "on" or "off"'),
    _Check("stage_decay", lambda v: _real(v) and 0 < v <= 1, "a number above 0 and at most 1"),
    _Check("weight_decay", lambda v: _real(v) and 0 <= v < 1, "a number from 0 and below 1"),
    _Check("label_smoothing", lambda v: _real(v) and 0 <= v < 1, "a fraction from 0 and below 1"),
    _Check("augment", lambda v: v in ("plain", "trivial", "none"), '"plain", "trivial" or "none"'),
    _Check("mixup", lambda v: _real(v) and 0 <= v <= 10, "a number from 0 to 10"),
    _Check("cutmix", lambda v: _real(v) and 0 <= v <= 10, "a number from 0 to 10"),
    _Check("sam", lambda v: _real(v) and 0 <= v <= 1, "a number from 0 to 1"),
    _Check("dropout", lambda v: _real(v) and 0 <= v < 1, "a fraction from 0 and below 1"),
    _Check("drop_path", lambda v: _real(v) and 0 <= v < 1, "a fraction from 0 and below 1"),
    _Check("balance", lambda v: v in ("auto", "none", "sampling", "loss"), '"auto", "none", "sampling" or "loss"'),
    _Check("average", lambda v: v in ("ema", "none"), '"ema" or "none"'),
    _Check("search", lambda v: isinstance(v, bool), "true or false"),
    _Check("soup", lambda v: v in ("on", "off"), '"on" or "off"'),
    _Check("flip", lambda v: v in ("auto", "on", "off"), '"auto", "on" or "off"'),
    _Check("val_fraction", lambda v: _real(v) and 0 < v < 0.9, "a fraction above 0 and below 0.9"),
    _Check("test_fraction", lambda v: _real(v) and 0 < v < 0.9, "a fraction above 0 and below 0.9"),
    _Check("precision", lambda v: v in ("auto", "float32", "bfloat16"), '"auto", "float32" or "bfloat16"'),
    _Check("baselines", lambda v: v in ("none", "probe", "all"), '"none", "probe" or "all"'),
    _Check("against", lambda v: isinstance(v, str), "the folder of a run"),
    _Check("seeds", lambda v: _whole(v, 1, 100), "a whole number from 1 to 100"),
    _Check("device", lambda v: isinstance(v, str) and is_device(v), DEVICES),
)
