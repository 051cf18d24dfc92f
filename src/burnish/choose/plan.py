"""How the time is spent: sizes, epochs, what is frozen, and what is kept back for the proof, from measured rates."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from burnish.choose.material import Bench, Material
from burnish.choose.rates import Rates
from burnish.choose.sizes import sizes_up_to, takes
from burnish.errors import RecipeError
from burnish.methods.base import Tunable
from burnish.recipe import Recipe
from burnish.train.loop import Schedule, steps_an_epoch
from burnish.train.objective import has_batch_norm

BATCH = 32  # images a step: AdamW at 1e-3 is stable there, and 2 cores are busy
EPOCHS_WANTED = 8.0  # before a larger image size is worth more than more passes
_FEW_EPOCHS = 3.5  # below that of the whole network, more passes over its upper part are looked for (LOG.md)
# Shorter trainings than both lost to frozen heads by 6 to 16 points each time (LOG.md). What was asked for, and what gets more of
# the budget than this share, which would go to waste, is made from half an epoch and a few steps on.
_LEAST_EPOCHS, _LEAST_STEPS = 2.0, 200
_ASKED_EPOCHS, _ASKED_STEPS = 0.5, 5
_IDLE_SHARE = 0.1
# Twice what is usual for sets of a thousand images (VTAB-1k, arXiv:1910.04867); the rest is given back.
EPOCHS_AT_MOST = 200
# Without a clock nothing stops a run but its length: passes over a thousand images, and over however many.
_UNHURRIED_EPOCHS, _UNHURRIED_AT_LEAST = 100, 10
# Of the progress: small images first, the final size last (EfficientNetV2, arXiv:2104.00298, section 4).
_LARGE_FROM = 0.6
VIEWS_AT_MOST = 8  # augmented views of each image whose activations are kept
_STEP_AT_LEAST = 1.5  # seconds of a training step over those of a float32 forward pass: 3 in float32, half in bfloat16
STEPS_TO_TIME = 8  # what measuring costs
_STEPS_AT_PEAK = 100
_EASING = 0.65


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The settled schedule of the trained method; it holds no clock time, so that it can be followed again."""

    batch: int  # images a step
    sizes: tuple[tuple[float, int], ...]  # (from this progress on, pixels)
    steps: int  # planned; 0: no time for a useful run
    epochs: float  # the same in passes over the training images
    freeze: int  # leading stages that stay as they are
    balanced: bool  # whether each class is drawn equally often
    views: int  # augmented views of each image whose activations at the freeze point are kept; 0: none are
    timed: bool  # whether the steps were planned to end on the clock
    most: int  # steps the run may grow to
    reserve_seconds: float  # kept back for choosing, proving and reporting
    step_seconds: dict[int, float]  # measured or scaled by area, by size
    epoch_seconds: float  # for validation and saving after an epoch
    reason: str

    @property
    def schedule(self) -> Schedule:
        """What the training loop needs of it."""
        return Schedule(self.batch, self.sizes, self.balanced)

    @property
    def final_size(self) -> int:
        """Pixels, of the last steps and of every use of the model."""
        return self.sizes[-1][1]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Plan:
        """The inverse of `to_json`."""
        sizes = tuple((float(start), int(size)) for start, size in values["sizes"])
        seconds = {int(size): float(value) for size, value in values["step_seconds"].items()}
        return cls(**{**values, "sizes": sizes, "step_seconds": seconds})


def plan(tunable_at: Callable[[int], Tunable], material: Material, bench: Bench, rates: Rates) -> Plan:
    """Fit sizes, epochs and a freeze point into what is left of the clock.

    tunable_at: the method's tunable with so many leading stages frozen. rates: measures steps on this machine.
    """
    if hopeless := _no_time(material, bench, rates):
        return hopeless
    first = tunable_at(0 if bench.recipe.freeze == "auto" else bench.recipe.freeze)
    made = _fitted(first, first.freeze, material, bench, rates)
    # Where the clock leaves the whole network few passes, its upper part gets more: activations below are kept. As much of it
    # learns as has enough of them, or what has most.
    free = bench.recipe.freeze == "auto" and first.freeze == 0 and not first.moves_statistics
    depth = len(bench.backbone.stages)
    for at in sorted({depth - max(1, depth // 2), depth - max(1, depth // 4)}):
        if not free or not made.timed or made.epochs >= _FEW_EPOCHS:
            break
        try:
            other = _fitted(tunable_at(at), at, material, bench, rates)
        except RecipeError:  # nothing of what the method moves lies so high
            continue
        made = max(made, other, key=lambda one: one.epochs if one.steps else 0.0)
    return made


def _no_time(material: Material, bench: Bench, rates: Rates) -> Plan | None:
    """The plan not to train, where even a guess from the forward rate leaves nothing: timing steps costs seconds itself."""
    recipe = bench.recipe
    size = _sizes(bench, rates)[0] if recipe.image_size == "auto" else recipe.image_size
    n = len(material.train_rows)
    batch = min(n, BATCH if recipe.batch_size == "auto" else recipe.batch_size)
    reserve = rates.reserve_seconds(material, size)
    left = bench.clock.left() - reserve
    step, epoch_steps = batch * _STEP_AT_LEAST / rates.whole(size), steps_an_epoch(n, batch)
    if not _is_too_short(bench, left / step - STEPS_TO_TIME, epoch_steps, left):
        return None
    sizes = ((0.0, size),)
    return Plan(
        batch=batch,
        sizes=sizes,
        steps=0,
        epochs=0.0,
        freeze=0,
        balanced=False,
        views=0,
        timed=True,
        most=0,
        reserve_seconds=reserve,
        step_seconds={},
        epoch_seconds=0.0,
        reason=_why_not(left),
    )


def least_steps(bench: Bench, epoch_steps: int, *, idle: bool = False) -> float:
    """Steps below which nothing is trained, where an epoch has so many; fewer where training, or its length, was asked for.

    idle: whether nothing else would make use of the time.
    """
    if idle or bench.asked or bench.recipe.epochs != "auto":
        return max(_ASKED_STEPS, _ASKED_EPOCHS * epoch_steps)
    return max(_ASKED_STEPS, min(_LEAST_STEPS, _LEAST_EPOCHS * epoch_steps))


def _is_too_short(bench: Bench, steps: float, epoch_steps: int, left: float) -> bool:
    """Whether nothing is trained, where so many steps fit in the seconds left."""
    idle = left > _IDLE_SHARE * (bench.clock.budget_seconds or math.inf)
    return steps < least_steps(bench, epoch_steps, idle=idle)


def _why_not(left: float) -> str:
    """Why nothing is trained in so many seconds."""
    return f"training would have {max(0.0, left):.0f} s, too few to be worth it: the probe is kept"


@dataclass(frozen=True, kw_only=True)
class _Room:
    """What the clock has room for with one freeze point."""

    material: Material
    bench: Bench
    rates: Rates
    freeze: int
    sizes: list[int]  # ascending
    step_seconds: dict[int, float]  # by size; none where there is no clock, for then nothing may depend on it (P7)
    epoch_steps: int
    most_steps: int

    def epochs(self, size: int, views: int) -> float:
        """Epochs that fit when `size` is the final one and activations of so many views are made first."""
        material, rates, freeze = self.material, self.rates, self.freeze
        if not self.step_seconds:
            return self.most_steps / self.epoch_steps
        between = _epoch_seconds(material, rates, size, freeze) / self.epoch_steps
        first = len(material.train_rows) * views * rates.keeping(size, freeze) if freeze else 0.0
        # The val images are there at the probe's size; at others they are made from the files when first asked for.
        others = {size, _smaller(self.sizes, size, freeze)} - {material.preprocess.size}
        first += len(others) * len(material.val_rows) / material.decoded_per_second
        left = self.bench.clock.left() - rates.reserve_seconds(material, size, freeze) - first
        step = _mixed_step(self.step_seconds, self.sizes, size, freeze)
        return min(left / (step + between) / self.epoch_steps, self.most_steps / self.epoch_steps)

    def worth(self, size: int) -> tuple[float, int]:
        """Epochs that fit, and the most views of which so many epochs make use."""
        views = 1 if self.freeze else 0
        while self.freeze and views < _views(self.epochs(size, views + 1)):
            views += 1
        return self.epochs(size, views), views


def _fitted(tunable: Tunable, freeze: int, material: Material, bench: Bench, rates: Rates) -> Plan:
    """The plan with this freeze point."""
    recipe, n = bench.recipe, len(material.train_rows)
    batch = min(n, BATCH if recipe.batch_size == "auto" else recipe.batch_size)
    per_epoch = steps_an_epoch(n, batch)
    _require_statistics(tunable, n, batch)
    sizes = _sizes(bench, rates) if recipe.image_size == "auto" else [recipe.image_size]
    endless = math.isinf(bench.clock.left())  # then nothing is timed, as nothing depends on it (P7)
    seconds = {} if endless else rates.steps(tunable, freeze, batch=batch, sizes=sizes)
    wanted = EPOCHS_WANTED if recipe.epochs == "auto" else float(recipe.epochs)
    auto = unhurried_epochs(n) if endless else EPOCHS_AT_MOST
    most = (auto if recipe.epochs == "auto" else recipe.epochs) * per_epoch
    room = _Room(
        material=material, bench=bench, rates=rates, freeze=freeze, sizes=sizes, step_seconds=seconds,
        epoch_steps=per_epoch, most_steps=most,
    )  # fmt: skip
    fits = {size: room.worth(size) for size in sizes}
    final = max([size for size, (epochs, _) in fits.items() if epochs >= wanted], default=sizes[0])
    epochs, views = fits[final]
    timed = epochs < most / per_epoch
    steps = int(epochs * per_epoch) if timed else most
    reserve = rates.reserve_seconds(material, final, freeze)
    smaller = _smaller(sizes, final, freeze)
    made = Plan(
        batch=batch,
        sizes=((0.0, final),) if smaller == final else ((0.0, smaller), (_LARGE_FROM, final)),
        steps=max(0, steps),
        epochs=max(0.0, steps / per_epoch),
        freeze=freeze,
        balanced=bench.recipe.balance == "sampling",
        views=views,
        timed=timed,
        most=most,
        reserve_seconds=reserve,
        step_seconds=seconds,
        epoch_seconds=_epoch_seconds(material, rates, final, freeze),
        reason="",
    )
    left = bench.clock.left() - reserve
    if timed and _is_too_short(bench, steps, per_epoch, left):
        return replace(made, steps=0, reason=_why_not(left))
    return replace(made, reason=_reason(made, seconds.get(sizes[0]), sizes[0], bench))


def _require_statistics(tunable: Tunable, images: int, batch: int) -> None:
    """RecipeError where BatchNorm is to learn its statistics from batches of one image."""
    if has_batch_norm(tunable.classifier) and tunable.moves_statistics and images // steps_an_epoch(images, batch) < 2:
        raise RecipeError(
            f"{images} training images in batches of {batch} leave batches of one, of which BatchNorm can learn no statistics; "
            "take a larger --batch-size"
        )


def unhurried_epochs(images: int) -> int:
    """Passes over so many training images where neither a budget nor the user says how many.

    100 over a thousand, as is usual for sets of that size (VTAB-1k, arXiv:1910.04867), at most; fewer over more, by the root of
    their number, so that steps still grow with the images; at least 10. The root is chosen, not measured.
    """
    return max(_UNHURRIED_AT_LEAST, min(_UNHURRIED_EPOCHS, round(_UNHURRIED_EPOCHS * math.sqrt(1000 / images))))


def _reason(made: Plan, measured: float | None, at: int, bench: Bench) -> str:
    """The plan in words; measured: seconds of a step, where it was timed."""
    how = ", then ".join(f"{size} px" for _, size in made.sizes)
    text = f"{'about ' if made.timed else ''}{made.epochs:.1f} epochs at {how}, {made.batch} images a step"
    text += "" if measured is None else f", which takes {measured:.2f} s at {at} px"
    if made.freeze:
        stages = [stage.name for stage in bench.backbone.stages[made.freeze :]]
        learns = f"{stages[0]} and what follows" if stages else "the head"
        text += f"; only {learns} learns, from kept activations"
    return text


def eased(peak: float, steps: int, *, pretrained: bool = True) -> float:
    """The peak learning rate for a run of so many steps: rising with them to `peak` at 100, then falling, to a tenth at least.

    AdamW moves a weight by about the rate at each step, whatever the gradient, so a run's reach grows with rate times
    steps, or with rate times their square root where gradients are noise. At one rate a long run leaves the pretrained
    weights behind and a short one does not get away from them (LOG.md); the exponent lies between the two cases. Below 100
    steps its first steps, all of full length, do damage that the rest has no time to mend (Ma and Yarats 2019,
    arXiv:1910.04209): the rate is what a warm-up over 100 steps would have reached. Random weights have nothing to lose, and
    keep their peak.
    """
    few = min(1.0, max(1, steps) / _STEPS_AT_PEAK)
    if not pretrained:
        return peak * few
    return peak * few * min(1.0, max(0.1, (_STEPS_AT_PEAK / max(1, steps)) ** _EASING))


def settled(
    recipe: Recipe, made: Plan, *, flip: bool, peak: float, half: bool, device: torch.device, pretrained: bool = True
) -> Recipe:
    """The recipe with what the plan decided; peak: the method's own learning rate, for about a hundred steps."""
    return replace(
        recipe,
        image_size=made.final_size,
        batch_size=made.batch,
        freeze=made.freeze,
        flip="on" if flip and (recipe.augment != "none" or recipe.flip == "on") else "off",
        learning_rate=eased(peak, made.steps, pretrained=pretrained)
        if recipe.learning_rate in ("auto", "race")
        else recipe.learning_rate,
        precision="bfloat16" if half else "float32",
        device=str(device),
    )


def _sizes(bench: Bench, rates: Rates) -> list[int]:
    """Sizes to train at, ascending, the network's own last; asked of the network once."""
    if rates.sizes is None:
        native = bench.backbone.preprocess.size
        some = sizes_up_to(native, one_size=bench.backbone.one_size)
        rates.sizes = [size for size in some if size == native or takes(bench, size)]
    return rates.sizes


def _smaller(sizes: list[int], final: int, freeze: int) -> int:
    """The size of the first steps: about 0.8 of the final one; kept activations are of one size."""
    return final if freeze else max((size for size in sizes if size <= 0.8 * final), default=final)


def _mixed_step(seconds: dict[int, float], sizes: list[int], final: int, freeze: int) -> float:
    """Mean seconds of a step when the first part of the steps is made at the smaller size."""
    return _LARGE_FROM * seconds[_smaller(sizes, final, freeze)] + (1.0 - _LARGE_FROM) * seconds[final]


def _views(epochs: float) -> int:
    """How many augmented views of each image are worth keeping: every second epoch sees new ones."""
    return max(1, min(VIEWS_AT_MOST, round(epochs / 2)))


def _epoch_seconds(material: Material, rates: Rates, size: int, freeze: int) -> float:
    """Seconds between two epochs: the validation images, and saving."""
    return len(material.val_rows) / rates.upper(size, freeze) + rates.saving_seconds
