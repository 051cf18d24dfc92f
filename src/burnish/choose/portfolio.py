"""Which pretrained network: asked of this data, by frozen heads on a part of it, within a share of the clock.

Accuracy on ImageNet only says which networks are worth asking; what is measured on the run's own images decides.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from burnish.backbones.changing.taps import tapped
from burnish.backbones.fast.frozen import fold_for_inference
from burnish.backbones.spec import Backbone
from burnish.choose.decide import Decision
from burnish.choose.material import Bench
from burnish.choose.survey import images_per_second
from burnish.data.cache import read_pixels
from burnish.data.catalog import Catalog, Splits
from burnish.data.looks import Dataset
from burnish.data.split import held_together
from burnish.data.views import normalised
from burnish.errors import BurnishError
from burnish.granted import cores
from burnish.labels import grouped, leading, rank_within
from burnish.measure.gains import beats
from burnish.methods.heads import HeadChoice, choose_head
from burnish.runtime import draws, evenly
from burnish.train.features import batched, outputs, rounded_form, takes_half

_SHARE = 0.15  # of the budget, for asking all networks
_IMAGES = 1000  # at most, of the training images
_LEAST_IMAGES, _TIMED = 100, 16  # asked of at the least, and timed
_LEAST_OF_A_CLASS = 5  # of them
ELSEWHERE = "one that was fetched before is asked too: burnish fit DATA --model NAME fetches it (see: burnish models)"
_ONE_PASS = 0.35  # of the budget: a network that needs more to see all images once is not asked


@dataclass(frozen=True)
class Asked:
    """What a network's frozen head does on a part of the data."""

    name: str
    backbone: Backbone
    choice: HeadChoice
    images_per_second: float
    groups: np.ndarray | None = None  # int64 [n] from 0, of the images, the same for all; None: each is by itself

    @property
    def parameters(self) -> int:
        """Of the network without a head."""
        return sum(one.numel() for one in self.backbone.module.parameters())

    @property
    def accuracy(self) -> str:
        """In words, with its standard error."""
        return f"{self.choice.accuracy:.1%} ± {self.choice.standard_error:.1%}"


def pick_backbone(
    names: list[str], load: Callable[[str], Backbone], dataset: Dataset, bench: Bench
) -> tuple[str, Backbone, Decision]:
    """Name and network with the highest cross-validated accuracy; among those within a standard error of it the fastest.

    names: cheap ones first; load: name to Backbone, BurnishError where the recipe's method or options do not fit it. A
    network that cannot see all images in time is not asked, and after its share of the clock no further one is.
    """
    if len(names) == 1:
        only = Decision(f"model: {names[0]}", f"no other pretrained network is at hand; {ELSEWHERE}")
        return names[0], load(names[0]), only
    asked = _ask_all(names, load, dataset, bench)
    if not asked.answers and not asked.slow:
        assert asked.failed is not None
        raise asked.failed
    if not asked.answers:
        slow = asked.slow[0]
        return slow, load(slow), Decision(f"model: {slow}", "the budget allows no other to be asked")
    best = max(asked.answers, key=lambda one: one.choice.accuracy)
    close = [one for one in asked.answers if not _better(best, one)]
    # Without a budget nothing may depend on the clock, so that a run that died comes to the same network (P7).
    timed = bench.clock.budget_seconds is not None
    chosen = max(close, key=lambda one: one.images_per_second if timed else -one.parameters)
    return chosen.name, chosen.backbone, asked.decision(chosen)


@dataclass
class _Poll:
    """What came of asking all networks."""

    images: int = 0  # the same for all
    answers: list[Asked] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)  # names, each with the reason
    slow: list[str] = field(default_factory=list)  # names of those that the budget has no time for
    failed: BurnishError | None = None  # the first of those that could not be loaded

    def decision(self, chosen: Asked) -> Decision:
        """The choice with the numbers of all."""
        words = ", ".join(f"{one.name} {one.accuracy} at {one.images_per_second:.0f} images/s" for one in self.answers)
        rest = f"; not asked: {', '.join(self.left_out)}" if self.left_out else ""
        numbers = {
            one.name: {"accuracy": one.choice.accuracy, "images_per_second": one.images_per_second}
            for one in self.answers
        }
        return Decision(f"model: {chosen.name}", f"cross-validated on {self.images} images: {words}{rest}", numbers)


def _ask_all(names: list[str], load: Callable[[str], Backbone], dataset: Dataset, bench: Bench) -> _Poll:
    """Each network in turn, on the same images, until their share of the clock is over."""
    catalog, splits, _ = dataset
    ids, total = _part(catalog, splits, bench.recipe.seed), len(splits.train) + len(splits.val) + len(splits.test)
    until = bench.clock.elapsed() + _SHARE * (bench.clock.budget_seconds or math.inf)
    poll = _Poll()
    for name in names:
        if poll.answers and bench.clock.elapsed() >= until:
            poll.left_out.append(f"{name} (no time)")
            continue
        try:
            backbone = load(name)
        except BurnishError as error:  # of another make than the recipe needs, or damaged
            poll.left_out.append(f"{name} ({error})")
            poll.failed = poll.failed or error
            continue
        if not poll.answers and bench.clock.budget_seconds is not None:
            most = _affordable(backbone, ids, catalog, bench, seconds=(until - bench.clock.elapsed()) / 2)
            ids = _part(catalog, splits, bench.recipe.seed, most=most)
        bench.watcher.stage(f"asking {name}", total=len(ids))
        answer = _ask(name, backbone, ids, catalog, bench, total=total)
        if answer is None:
            poll.slow.append(name)
            poll.left_out.append(f"{name} (too slow for the budget)")
            continue
        poll.answers.append(answer)
        bench.watcher.say(f"{name}: {answer.accuracy} on {len(ids)} images")
    poll.images = len(ids)
    return poll


def _better(one: Asked, other: Asked) -> bool:
    """By more than a standard error of the paired difference on the same images."""
    return beats(one.choice.right, other.choice.right, groups=one.groups).clearly


def _affordable(backbone: Backbone, ids: np.ndarray, catalog: Catalog, bench: Bench, *, seconds: float) -> int:
    """How many images this network sees in so many seconds, decoding included; a few are timed."""
    few = ids[evenly(len(ids), _TIMED)]
    module, size = backbone.module.to(bench.device), backbone.preprocess.size
    if bench.device.type != "cpu":  # whose first pass of so many images loads and chooses its kernels
        with torch.inference_mode():
            module(torch.zeros(len(few), 3, size, size, device=bench.device)).cpu()
    began = time.monotonic()
    images = read_pixels(catalog, few, preprocess=backbone.preprocess, workers=cores(), store=bench.store).plain
    with torch.inference_mode():
        module(normalised(images[:_TIMED], backbone.preprocess).to(bench.device)).cpu()
    each = (time.monotonic() - began) / max(1, len(few))
    return min(_IMAGES, max(_LEAST_IMAGES, int(seconds / each)))


def _part(catalog: Catalog, splits: Splits, seed: int, *, most: int | None = None) -> np.ndarray:
    """Images of train and val, as many of each class as there are, up to a number in all.

    Of so many classes that hardly any image of each would fit, some classes are taken: with one image each nothing is left to
    learn from where another is left out.
    """
    ids, most = splits.fitting, most or _IMAGES
    if len(ids) <= most:
        return ids
    labels = leading(catalog.labels[ids])
    classes = np.unique(labels)
    if len(classes) * _LEAST_OF_A_CLASS > most:
        few = draws(seed, "portfolio classes").permutation(classes)[: most // _LEAST_OF_A_CLASS]
        ids = ids[np.isin(labels, few)]
    shuffled = draws(seed, "portfolio").permutation(ids)
    rank = rank_within(leading(catalog.labels[shuffled]))
    return np.sort(shuffled[np.argsort(rank, kind="stable")[:most]])


def _ask(name: str, backbone: Backbone, ids: np.ndarray, catalog: Catalog, bench: Bench, *, total: int) -> Asked | None:
    pixels = read_pixels(catalog, ids, preprocess=backbone.preprocess, workers=cores(), store=bench.store)
    images, labels = pixels.plain, catalog.labels[pixels.ids]
    half = takes_half(bench.recipe.precision, bench.device)
    here = replace(bench, backbone=backbone)
    first = images[: min(16, len(images))]
    example = normalised(first, backbone.preprocess).to(bench.device)
    backbone.module.to(bench.device)
    seen = backbone if bench.recipe.taps == "off" else tapped(backbone, example) or backbone
    trunk = fold_for_inference(seen.module.to(bench.device), example[:2], half=half)
    rate = images_per_second(trunk, first, here, half=half)
    if total / rate > _ONE_PASS * (bench.clock.budget_seconds or math.inf):
        return None
    rounded = rounded_form(
        seen.module, example, sees=len(images), precision=bench.recipe.precision, device=bench.device
    )
    features = outputs(
        trunk if rounded is None else rounded[0],
        batched(images),
        preprocess=backbone.preprocess,
        device=bench.device,
        half=half,
        on_progress=bench.watcher.advance,
    )
    count = len(catalog.classes)
    if not catalog.several:
        held, labels = np.unique(labels, return_inverse=True)
        count = len(held)
    together = None if catalog.groups is None else np.array(held_together(catalog, pixels.ids.tolist(), None))
    choice = choose_head(
        features, labels, classes=count, seed=bench.recipe.seed, seconds_left=lambda: math.inf, together=together
    )
    return Asked(name, backbone, choice, rate, None if together is None else grouped(together.tolist()))
