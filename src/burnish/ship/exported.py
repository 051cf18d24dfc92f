"""What exports to other formats have in common: where they go, what is written beside them, what they must answer."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from burnish.data.views import normalised
from burnish.disk import plain_disk_errors, read_plain_json, replacing, write_whole
from burnish.errors import RecipeError, RunError, shown
from burnish.ship.bundle import Bundle

PREPARED, PIXELS = "prepared", "pixels"
IN, OUT = "images", "probabilities"  # of an exported graph
WORDS = {
    PREPARED: "float32 [n 3 size size], (RGB / 255 - mean) / std, resized as preprocess says",
    PIXELS: "uint8 [n size size 3], RGB, resized as preprocess says; mean and std are applied inside",
}
_ALWAYS_TOLD = {"classes", "input", "output", "preprocess"}  # in the .json beside an export
_TOLERANCE = 1e-4  # of probabilities, between burnish and the other framework, on images of noise


def require_input(given: str) -> None:
    """RecipeError where that is not what a file can take."""
    if given not in (PREPARED, PIXELS):
        raise RecipeError(f"input is {shown(given)!r}, expected {PREPARED} or {PIXELS}")


def require_new(path: Path, suffix: str, *, input: str) -> None:
    """RecipeError where a file cannot take that, cannot be called so, or is there and is no earlier export."""
    require_input(input)
    require_place(path, suffix)
    require_ours(path)


def require_place(path: Path, suffix: str) -> None:
    """RecipeError where a file of that kind is not called so, or something would be written over that is no earlier export."""
    if path.suffix != suffix:
        raise RecipeError(f"{shown(str(path))}: expected a file name that ends in {suffix}")
    if not path.parent.is_dir():
        raise RecipeError(
            f"{shown(str(path))}: there is no folder {shown(str(path.parent))}; make it, or name another file"
        )
    if path.is_dir():
        raise RecipeError(f"{shown(str(path))} is a folder; name a file")
    beside = told_beside(path)
    if not os.path.lexists(beside):
        return
    try:
        if read_plain_json(beside).keys() >= _ALWAYS_TOLD:
            return
    except (OSError, ValueError):
        pass
    raise RecipeError(f"{shown(str(beside))} would be written over, and is no earlier export; choose another name")


def told_beside(path: Path) -> Path:
    """The .json of an export: a name of its own, so that exports of one model in several formats may lie together."""
    return path.with_name(f"{path.name}.json")


def require_ours(path: Path, *, beside: Path | None = None) -> None:
    """RecipeError where a file is there and no .json beside it, as each earlier export has; beside: that of another file."""
    if path.is_file() and path.stat().st_size and not (beside or told_beside(path)).is_file():
        raise RecipeError(f"{shown(str(path))} is there and is no earlier export; name another file, or remove it")


def write_with_meaning(path: Path, data: bytes, bundle: Bundle, words: str) -> None:
    """The bytes to a file, and what they mean to the .json beside it. RunError where the disk refuses."""
    with plain_disk_errors(path.parent), replacing(path) as file:
        file.buffer.write(data)
        file.flush()
        # Before the file is there: without its .json it would not be known again as an export after a death in between.
        write_meaning(path, bundle, words)


def write_meaning(path: Path, bundle: Bundle, words: str) -> None:
    """The .json beside an export: what somebody who uses it must know. words: of its input."""
    write_whole(told_beside(path), json.dumps(meaning(bundle, words), indent=1) + "\n", follows=True)


def meaning(bundle: Bundle, words: str) -> dict[str, Any]:
    """Classes, input, output and preprocessing as plain values."""
    preprocess = bundle.preprocess.to_json()
    told = {"classes": list(bundle.classes), "input": words, "output": "probabilities", "preprocess": preprocess}
    return told if bundle.thresholds is None else {**told, "thresholds": list(bundle.thresholds)}


def noise(bundle: Bundle, images: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images to compare by: (uint8 [n s s 3], the same prepared float32 [n 3 s s], what burnish answers float32 [n k]).

    RunError where that is no number: the other framework would be blamed for it.
    """
    size, preprocess = bundle.preprocess.size, bundle.preprocess
    draws = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 256, (images, size, size, 3), generator=draws, dtype=torch.uint8)
    prepared = ((raw.float() / 255 - torch.tensor(preprocess.mean)) / torch.tensor(preprocess.std)).permute(0, 3, 1, 2)
    with torch.no_grad():
        logits = bundle.classifier()(prepared) / bundle.temperature
        answers = logits.sigmoid() if bundle.several else logits.softmax(1)
    if not answers.isfinite().all():
        raise RunError(
            "the model's own answers to images of noise are no numbers: its weights, its BatchNorm statistics or its temperature "
            "are out of range; nothing was written; fit it again, or ask whoever made the package"
        )
    return raw.numpy(), prepared.contiguous().numpy(), answers.numpy()


def require_equal(framework: str, found: np.ndarray, expected: np.ndarray) -> None:
    """RunError unless these are the probabilities [n k] that burnish gives."""
    difference = float(np.abs(found - expected).max()) if found.shape == expected.shape else float("nan")
    if not difference <= _TOLERANCE:
        raise RunError(
            f"{framework} gives other probabilities than burnish (by {difference:.2g}); nothing was written; please report it"
        )


def asked(bundle: Bundle, *, input: str) -> tuple[np.ndarray, np.ndarray]:
    """(images of `noise` as a file takes them, what burnish answers float32 [n k])."""
    raw, prepared, expected = noise(bundle)
    return raw if input == PIXELS else prepared, expected


def require_same(
    framework: str, answers: Callable[[np.ndarray], np.ndarray], images: np.ndarray, expected: np.ndarray
) -> None:
    """`require_equal` of one of the images and of all: a file takes any number of them."""
    for few in (slice(0, 1), slice(None)):
        require_equal(framework, answers(images[few]), expected[few])


def as_utf8(value: str) -> str:
    """Text as UTF-8 can hold it: names may have bytes that are no characters."""
    return value.encode("utf-8", "backslashreplace").decode()


class Whole(nn.Module):
    """From what a file takes to probabilities [n k]: "prepared" images float32 [n 3 s s], or pixels uint8 [n s s 3]."""

    def __init__(self, bundle: Bundle, *, pixels: bool) -> None:
        super().__init__()
        self.classifier, self.preprocess = bundle.classifier(), bundle.preprocess
        self.temperature, self.several, self.pixels = bundle.temperature, bundle.several, pixels
        # Its constants are kept for the whole process: made first while it is traced, they would hold no numbers.
        normalised(torch.zeros(1, 1, 1, 3, dtype=torch.uint8), self.preprocess)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        logits = self.classifier(normalised(images, self.preprocess) if self.pixels else images) / self.temperature
        return logits.sigmoid() if self.several else logits.softmax(1)


@contextmanager
def quiet() -> Iterator[None]:
    """What an exporter has to say of its own steps, in between, is for who works on it."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(None):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
