"""The settings of `fit` and `compare` by name, for type checkers and for whoever completes as they write."""

from __future__ import annotations

from typing import Literal, TypedDict

from burnish.recipe import Auto


class Settings(TypedDict, total=False):
    """The fields of `Recipe`, which says what each does, but for the budget; any may be left out."""

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
    pool: str
    depth: str
    remove: str
    insert: str
    head: str
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
    search: bool
    average: Literal["ema", "none"]
    soup: Literal["on", "off"]
    flip: Literal["auto", "on", "off"]
    val_fraction: float
    test_fraction: float
    precision: Literal["auto", "float32", "bfloat16"]
    device: str
    baselines: Literal["none", "probe", "all"]
    against: str
    seeds: int
