"""How many of the images there is time for: what they take, the part that fits, and a smaller one where all takes longer (P6)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from burnish.backbones.changing.taps import flat_width
from burnish.backbones.spec import Backbone
from burnish.choose.gathering import Done
from burnish.choose.material import Bench
from burnish.choose.where import images_asked
from burnish.data.audit.labels import distances
from burnish.data.sample import Part, Taken, is_late
from burnish.methods.linear import least_seconds, seconds_a_flop
from burnish.runtime import Clock, Watcher

# Where there is no time for all images: what is kept for the rest, and the share of the time that test images may take.
LEAST_TAIL_SECONDS, _TEST_SHARE = 4.0, 1 / 3
_FEWEST_TESTED = 100
_NEARLY_ALL = 0.97  # of the images: then all are taken, for what they take is not known as well as that
_MORE_SHARE = 0.02  # of the budget, for decoding test images that are looked at if time is left over
_COMPARING = 0.05  # of the budget, for pairs that look alike
FIRST_SAVED = 1.0  # seconds: what the first model's head and its saving take besides what LDA alone does
_SLOW = 1.15  # times as long as planned; below that what images take is not known well enough


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What images and heads take on this machine, in seconds."""

    decoding: float  # of an image, in bulk
    comparing: float  # of pairs that look alike, in all
    flop: float
    classes: int
    last: int  # features of the last layer
    all: int  # features of all depths
    flat: int | None  # of all depths without where in the image they are, where that is asked
    proves: bool  # whether a first head is saved before the others are looked for
    seeing: float = 0.0  # of an image's features
    scoring: float = 0.0  # of a test image by the network in float32

    @classmethod
    def of(cls, backbone: Backbone, bench: Bench, *, classes: int, decoding: float) -> Costs:
        """backbone: with its taps."""
        flat, comparing = flat_width(backbone), _COMPARING * (bench.clock.budget_seconds or 0.0)
        return cls(
            decoding=decoding, comparing=comparing, flop=seconds_a_flop(), classes=classes, last=bench.backbone.width,
            all=backbone.width, flat=flat if flat < backbone.width else None, proves=bench.proves,
        )  # fmt: skip

    def seen(self, images: int) -> float:
        """Decoding so many images and their features."""
        return images * (self.decoding + self.seeing)

    def quick_head(self, images: int) -> float:
        """The head that is saved first."""
        return self._fitted(images, [self.last])

    def heads(self, images: int) -> float:
        """All heads that are asked, and what the audit asks of their features."""
        first = self.quick_head(images) if self.proves else 0.0
        where = [] if self.flat is None else [self.all, self.flat]
        asked = self._fitted(min(images, images_asked(self.classes)), where)
        return (
            first
            + self._fitted(images, sorted({self.last, self.all}))
            + asked
            + self.flop * distances(images, max(self.last, self.all))
        )

    def _fitted(self, images: int, widths: list[int]) -> float:
        return least_seconds(images, widths, self.flop, classes=self.classes)


def settled_part(clock: Clock, costs: Costs, fitting: int, test: int, *, trains: bool) -> Part | None:
    """How many of so many images to fit and to test on there is time for; None: all."""
    budget = clock.budget_seconds

    def fitted(n: int) -> float:
        return costs.seen(n) + costs.heads(n)

    part = part_for(
        fitting, test, _for_images(clock.left(), costs), fitted, costs.decoding + costs.scoring, trains=trains
    )
    if part is not None and costs.proves and budget is not None and not is_late(part, costs.classes):
        part = with_more(part, test, costs.decoding, budget_seconds=budget)
    return part


def _for_images(left: float, costs: Costs) -> float:
    """Of so many seconds, those for images and heads."""
    return left - 2 * costs.comparing - LEAST_TAIL_SECONDS


def part_for(
    fitting: int, test: int, seconds: float, fitted: Callable[[int], float], tested: float, *, trains: bool
) -> Part | None:
    """How many of the images to fit and to test on can be seen in so many seconds, some of both at the least; None: (nearly) all.

    fitted: what so many images to fit take in all; tested: what a test image takes. trains: whether what is left is wanted for
    training, where test images alone are too many.
    """
    if fitted(fitting) + test * tested <= seconds:
        return None
    least = min(test, _FEWEST_TESTED)
    tests = min(test, max(least, int(_TEST_SHARE * seconds / tested)))
    most = most_within(seconds - tests * tested, fitting, fitted)
    if most == fitting and not trains:
        tests = min(test, max(tests, int((seconds - fitted(most)) / tested)))
    return Part(max(1, most), tests) if most + tests < _NEARLY_ALL * (fitting + test) else None


def with_more(part: Part, test: int, decoding: float, *, budget_seconds: float) -> Part:
    """With up to as many test images again, for a proof that is early, as far as decoding them takes little of the budget.

    test: how many there are; decoding: seconds an image.
    """
    return replace(part, more=min(test - part.test, part.test, int(_MORE_SHARE * budget_seconds / decoding)))


def most_within(seconds: float, count: int, takes: Callable[[int], float]) -> int:
    """The largest n up to `count` for which takes(n), which grows with n, is no more than so many seconds; 0 if there is none."""
    low, high = 0, count
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if takes(middle) <= seconds else (low, middle - 1)
    return low


@dataclass(frozen=True, kw_only=True)
class Fewer:
    """Which images a run still takes, asked again as it goes: other programs may want the processor since it was timed."""

    costs: Costs
    trains: bool
    first_is_saved: bool  # whether a first model is, once images are looked at
    clock: Clock
    watcher: Watcher
    since: float  # on the clock: when the costs were known

    def __call__(self, taken: Taken, done: Done) -> Taken:
        """All, or where what is done took longer than planned as many as there is time for at that pace: at the least those that
        the network has told of.
        """
        if self.clock.budget_seconds is None:
            return taken
        costs, seen = self.costs, done.looked
        planned = costs.seen(seen) + costs.decoding * (done.fitting - seen + done.test)
        if self.first_is_saved:
            planned += costs.quick_head(seen) + FIRST_SAVED
        slower = (self.clock.elapsed() - self.since) / planned
        if slower < _SLOW:
            return taken

        def fitted(n: int) -> float:
            more = max(0, n - seen)
            return costs.seen(more) - costs.decoding * min(more, done.fitting - seen) + costs.heads(max(n, seen))

        splits = taken.dataset.splits
        fitting, test = len(splits.fitting), len(splits.test)
        tested = costs.scoring + (0.0 if done.test else costs.decoding)
        left = _for_images(self.clock.left() / slower, costs)
        part = part_for(fitting, max(1, test - taken.spare), left, fitted, tested, trains=self.trains)
        if part is None:
            return taken
        # What is decoded is there, if time should be left over.
        part = Part(max(part.fitting, seen), part.test, test - part.test if done.test else 0)
        found = replace(taken, part=part)
        if gone := len(taken.dataset.catalog) - len(found.dataset.catalog):
            self.watcher.say(
                f"{gone:,} more images are left out: all takes {slower:.1f} times as long as when this machine was timed"
            )
        return found
