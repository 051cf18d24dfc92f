"""How well frozen heads tell images of another kind from their own: by distance alone, and with how much in doubt the answer is.

    BURNISH_TEST_DATA=… python benchmarks/strangers.py [--sizes 224 128] [--draws 3] > benchmarks/results/strangers.json

Own images: hand signs, Caltech-101 and digits, each in turn. Strangers: test images of the other two, five kinds of drawn images
(noise, one colour, a smooth gradient, text, shapes), Caltech-101 cut into sixteen parts in another order, and classes of one's
own that were left out (three of ten, several draws); the same where one's own are two classes alone. Of each the AUROC against
one's own test images and how many are beyond the limit that 95 % of one's own keep. Heads on all depths and on the last layer; no
clock is involved. One JSON object on stdout.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import string
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from sklearn.metrics import roc_auc_score
from torch import nn

from burnish.backbones.changing.taps import tapped
from burnish.backbones.fast.frozen import fold_for_inference
from burnish.backbones.zoo import load_backbone
from burnish.data.cache import Rows, read_pixels
from burnish.data.catalog import Catalog
from burnish.data.sources import open_source
from burnish.data.split import make_splits
from burnish.data.views import normalised
from burnish.granted import cores
from burnish.measure.calibration import calibrated
from burnish.measure.ood import Familiarity, entropies
from burnish.methods.base import Fitted
from burnish.methods.heads import choose_head
from burnish.record.facts import machine
from burnish.runtime import draws, evenly, keep_freed_memory
from burnish.terms import Preprocess
from burnish.train.features import batched, outputs

SETS = ("signs.csv", "caltech101.csv", "demo")
DRAWN, LEARNT_FROM, HELD_OUT, TESTED = 120, 4096, 1000, 700  # images, at most
FEWEST_HELD = 20
LEFT_OUT = 0.3  # of the classes
WAYS = (
    "distance",
    "with doubt",
    "bounded",
)  # by relative distance alone; with doubt; with what `usual` and `beside` bound


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[224])
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--model", default="efficientnet_lite0")
    asked = parser.parse_args()
    keep_freed_memory()
    rows = [row for size in asked.sizes for row in rows_at(size, asked.model, asked.draws)]
    means = {
        f"{size} px, {heads}, {few}, {how}": {
            what: mean(
                row[how][what]
                for row in rows
                if (row["size"], row["heads"], row["classes"] == 2) == (size, heads, few == "two classes")
            )
            for what in ("auroc", "beyond", "own_beyond")
        }
        for size in asked.sizes for heads in ("last layer", "all depths") for few in ("all classes", "two classes")
        for how in WAYS
    }  # fmt: skip
    told = {"benchmark": "strangers", "model": asked.model, "means": means, "rows": rows, "machine": machine()}
    print(json.dumps(told, indent=1))


def rows_at(size: int, model: str, draws_each: int) -> Iterator[dict[str, Any]]:
    """A row for each set, kind of heads and kind of strangers, at one size of images."""
    backbone = load_backbone(model)
    preprocess = replace(backbone.preprocess, size=size)
    catalogs = {
        name: open_source(name if name == "demo" else Path(os.environ["BURNISH_TEST_DATA"]) / name) for name in SETS
    }
    shown = pixels(catalogs["caltech101.csv"], np.arange(12), preprocess)
    deep = tapped(backbone, normalised(shown, preprocess))
    assert deep is not None
    trunk = fold_for_inference(deep.module, normalised(shown[:2], preprocess))
    parts = {name: parts_of(catalog, trunk, preprocess) for name, catalog in catalogs.items()}
    others = {name: features(trunk, drawn(draw, name, size), preprocess) for name, draw in KINDS.items()}
    caltech = catalogs["caltech101.csv"]
    test = make_splits(caltech, seed=0, test_fraction=0.2, val_fraction=0.15).test
    cut = np.stack([in_another_order(image, at) for at, image in enumerate(pixels(caltech, test[::6], preprocess))])
    others["sixteen parts"] = features(trunk, cut, preprocess)
    for own in SETS:
        theirs = {f"test images of {name}": parts[name]["test"][0] for name in SETS if name != own} | others
        for heads, width in (("last layer", backbone.width), ("all depths", deep.width)):
            for row in judged(parts[own], theirs, width, draws_each):
                yield tell({"size": size, "own": own, "heads": heads, **row})


def parts_of(catalog: Catalog, trunk: nn.Module, preprocess: Preprocess) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(features [n d], labels [n]) of train, val and test images."""
    splits = make_splits(catalog, seed=0, test_fraction=0.2, val_fraction=0.15)
    return {
        name: (features(trunk, pixels(catalog, ids, preprocess), preprocess), catalog.labels[ids])
        for name, ids in (("train", splits.train), ("val", splits.val), ("test", splits.test))
    }


def judged(
    parts: dict[str, tuple[np.ndarray, np.ndarray]], theirs: dict[str, np.ndarray], width: int, draws_each: int
) -> Iterator[dict[str, Any]]:
    """Of a head on the first so many features: a row for each kind of strangers."""
    (x, y), (held, held_y), (test, test_y) = ((one[:, :width], labels) for one, labels in parts.values())
    yield from rows_of(x, y, held, held_y, test, {name: one[:, :width] for name, one in theirs.items()})
    classes = np.unique(y)
    for draw in range(draws_each):
        left_out = draws(draw, "left out").choice(classes, max(2, round(LEFT_OUT * len(classes))), replace=False)
        kept, held_kept, test_kept = (~np.isin(labels, left_out) for labels in (y, held_y, test_y))
        unseen = {f"classes left out, draw {draw}": test[~test_kept]}
        yield from rows_of(x[kept], y[kept], held[held_kept], held_y[held_kept], test[test_kept], unseen)
        two = draws(draw, "two").choice(classes, 2, replace=False)
        kept, held_kept, test_kept = (np.isin(labels, two) for labels in (y, held_y, test_y))
        strangers = {name: one[:, :width] for name, one in theirs.items()} | {
            f"other classes, draw {draw}": test[~test_kept]
        }
        yield from rows_of(x[kept], y[kept], held[held_kept], held_y[held_kept], test[test_kept], strangers)


def rows_of(
    x: np.ndarray,
    y: np.ndarray,
    held: np.ndarray,
    held_y: np.ndarray,
    test: np.ndarray,
    theirs: dict[str, np.ndarray],
) -> Iterator[dict[str, Any]]:
    """As a run does: a head fitted to all but the test images, the limit set by val images and a head that has not seen them.

    Where there are fewer than twenty of those, by a third of the train images and nothing of doubt.
    """
    _, y = np.unique(np.r_[y, held_y], return_inverse=True)
    everything, classes = np.concatenate([x, held]), int(y.max()) + 1
    choice = choose_head(everything, y, classes=classes, seed=0, seconds_left=lambda: 1e9)
    assert choice.refit is not None
    apart = choice.refit(np.arange(len(x)))
    if len(held) >= FEWEST_HELD:
        by, shown = held[evenly(len(held), HELD_OUT)], evenly(len(x), LEARNT_FROM)
        doubt: np.ndarray | None = entropies(answers(apart, by))
    else:
        by, shown, doubt = x[1::3], np.setdiff1d(np.arange(len(x)), np.arange(len(x))[1::3]), None
    plain = Familiarity.of(x[shown], y[: len(x)][shown])
    bounded = plain.limited_by(by, doubt)
    known: dict[str, Familiarity] = dict(
        zip(WAYS, (unbounded(plain.limited_by(by)), unbounded(bounded), bounded), strict=True)
    )

    def strangeness(how: str, some: np.ndarray) -> np.ndarray:
        return known[how].strangeness(some, answers(choice.head, some))

    ours = {how: strangeness(how, test[evenly(len(test), TESTED)]) for how in known}
    for name, some in theirs.items():
        row: dict[str, Any] = {"strangers": name, "classes": classes, "n": [len(ours["distance"]), len(some)]}
        for how, familiarity in known.items():
            found = strangeness(how, some[evenly(len(some), TESTED)])
            truth = np.repeat([0, 1], [len(ours[how]), len(found)])
            row[how] = {
                "auroc": round(float(roc_auc_score(truth, np.r_[ours[how], found])), 4),
                "beyond": round(float((found > familiarity.limit).mean()), 4),
                "own_beyond": round(float((ours[how] > familiarity.limit).mean()), 4),
            }
        yield row


def unbounded(familiarity: Familiarity) -> Familiarity:
    """As before the distances had bounds."""
    return replace(familiarity, usual=math.inf, beside=math.inf)


def answers(head: Fitted, some: np.ndarray) -> np.ndarray:
    """Probabilities float64 [n k]."""
    return calibrated(head.logits(some))


def pixels(catalog: Catalog, ids: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """Plain views uint8 [n s s 3]."""
    rows = read_pixels(catalog, ids, preprocess=preprocess, workers=cores()).plain
    return np.concatenate(list(batched(rows)))


def features(trunk: nn.Module, images: Rows, preprocess: Preprocess) -> np.ndarray:
    """float32 [n d]."""
    return outputs(trunk, batched(images), preprocess=preprocess, device=torch.device("cpu"))


def drawn(draw: Callable[[np.random.Generator, int], np.ndarray], name: str, size: int) -> np.ndarray:
    """Images of one kind, uint8 [n s s 3]."""
    return np.stack([draw(draws(0, name, number), size) for number in range(DRAWN)])


def text(rng: np.random.Generator, size: int) -> np.ndarray:
    image = Image.new("RGB", (size, size), "white")
    for top in range(4, size, 10):
        line = "".join(rng.choice(list(string.ascii_lowercase + "   "), size // 6))
        ImageDraw.Draw(image).text((4, top), line, fill="black")
    return np.asarray(image)


def shapes(rng: np.random.Generator, size: int) -> np.ndarray:
    image = Image.new("RGB", (size, size), tuple(rng.integers(0, 256, 3).tolist()))
    pen = ImageDraw.Draw(image)
    for _ in range(6):
        left, top, wide, high = rng.integers(1, size, 4).tolist()
        put = pen.ellipse if rng.random() < 0.5 else pen.rectangle
        put([left, top, left + wide // 2, top + high // 2], fill=tuple(rng.integers(0, 256, 3).tolist()))
    return np.asarray(image)


def smooth(rng: np.random.Generator, size: int) -> np.ndarray:
    few = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
    return np.asarray(few.resize((size, size), Image.Resampling.BICUBIC))


KINDS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "noise": lambda rng, size: rng.integers(0, 256, (size, size, 3), np.uint8),
    "one colour": lambda rng, size: np.full((size, size, 3), rng.integers(0, 256, 3), np.uint8),
    "smooth": smooth,
    "text": text,
    "shapes": shapes,
}


def in_another_order(image: np.ndarray, number: int) -> np.ndarray:
    """The sixteen parts of an image [s s 3], s divisible by 4, shuffled."""
    side = len(image) // 4
    parts = image.reshape(4, side, 4, side, 3).swapaxes(1, 2).reshape(16, side, side, 3)
    mixed = parts[draws(0, "parts", number).permutation(16)].reshape(4, 4, side, side, 3)
    return mixed.swapaxes(1, 2).reshape(image.shape)


def tell(row: dict[str, Any]) -> dict[str, Any]:
    """It, said on stderr."""
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


if __name__ == "__main__":
    main()
