"""How many of the images there is time for: what they take, the part that fits, and a smaller one where all takes longer (P6)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from burnish.backbones.changing.taps import flat_width
from burnish.backbones.spec import Backbone
from burnish.choose.material import Bench
from burnish.choose.where import images_asked
from burnish.data.audit.labels import distances
from burnish.data.sample import Part, Taken, fewest_of, is_late
from burnish.methods.linear import least_seconds, seconds_a_flop
from burnish.runtime import Clock

# Where there is no time for all images: what is kept for the rest, and the share of the time that test images may take.
LEAST_TAIL_SECONDS, _TEST_SHARE = 4.0, 1 / 3
_FEWEST_TESTED = 100
_OVERRUN = 0.05  # of the budget, that a few images of each class may take beyond what there is time for
_NEARLY_ALL = 0.97  # of the images: then all are taken, for what they take is not known as well as that
_MORE_SHARE = 0.02  # of the budget, for decoding test images that are looked at if time is left over
_COMPARING = 0.05  # of the budget, for pairs that look alike
FIRST_SAVED = 1.0  # seconds: what the first model's head and its saving take besides what LDA alone does
_SLOW = 1.15  # times as long as planned; below that what images take is not known well enough
_SHORTEST_ROUND, _ROUND_SHARE, _LONGEST_ROUND = 1.5, 0.04, 8.0  # seconds at the machine's pace, and of the budget
_LEAST_OF_ROUND = 16  # images, as many as go through a network at a time
_LEAST_WINDOW, _WINDOW_SHARE = 2.0, 0.1  # seconds, and of the budget, that the pace is taken over
# By when a finished model is on disk (P6), or in half of a shorter budget; and how much later than planned images may be through.
_FIRST_SECONDS, _FIRST_LATE = 60.0, 1.4


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
    training: float = 0.0  # what it needs at the least, for which test images are left out; infinite: nothing trains

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
        return first + self.both_heads(images) + asked + self.flop * distances(images, max(self.last, self.all))

    def both_heads(self, images: int) -> float:
        """Those on the last layer and on all depths alone."""
        return self._fitted(images, sorted({self.last, self.all}))

    def until_proven(self, images: int, test: int) -> float:
        """So many images to fit, their heads, so many test images and what comes after them."""
        return self.seen(images) + self.heads(images) + test * (self.decoding + self.scoring) + LEAST_TAIL_SECONDS

    def late(self, fewest: int, more: int, budget_seconds: float, slower: float = 1.0) -> bool:
        """Whether `more` images instead of the `fewest` would make a run late by more than is granted."""
        longer = self.seen(more - fewest) + self.heads(more) - self.heads(fewest)
        return slower * longer > _OVERRUN * budget_seconds

    def _fitted(self, images: int, widths: list[int]) -> float:
        return least_seconds(images, widths, self.flop, classes=self.classes)


def settled_part(clock: Clock, costs: Costs, fitting: int, test: int) -> Part | None:
    """How many of so many images to fit and to test on there is time for; None: all."""
    budget = clock.budget_seconds

    def fitted(n: int) -> float:
        return costs.seen(n) + costs.heads(n)

    part = part_for(
        fitting, test, _for_images(clock.left(), costs), fitted, costs.decoding + costs.scoring, training=costs.training
    )
    if part is None or budget is None:
        return part
    if is_late(part, costs.classes):
        first, least = (min(fitting, count) for count in fewest_of(costs.classes))
        return replace(part, few=costs.late(max(first, part.fitting), least, budget))
    return with_more(part, test, costs.decoding, budget_seconds=budget) if costs.proves else part


def _for_images(left: float, costs: Costs, slower: float = 1.0) -> float:
    """Of so many seconds, those for images and heads, as they were planned where all takes so many times as long."""
    return (left - 2 * costs.comparing) / slower - LEAST_TAIL_SECONDS


def first_model_due(budget_seconds: float | None) -> float:
    """Seconds by which a finished model is on disk."""
    return _FIRST_SECONDS if budget_seconds is None else min(_FIRST_SECONDS, 0.5 * budget_seconds)


def part_for(
    fitting: int, test: int, seconds: float, fitted: Callable[[int], float], tested: float, *, training: float
) -> Part | None:
    """How many of the images to fit and to test on can be seen in so many seconds, some of both at the least; None: (nearly) all.

    fitted: what so many images to fit take in all; tested: what a test image takes. training: what that needs at the least: where
    test images alone are too many it gets what a third of them leave, if that is enough.
    """
    if fitted(fitting) + test * tested <= seconds:
        return None
    least = min(test, _FEWEST_TESTED)
    tests = min(test, max(least, int(_TEST_SHARE * seconds / tested)))
    most = most_within(seconds - tests * tested, fitting, fitted)
    if most == fitting and seconds - fitted(most) - tests * tested < training:
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


@dataclass(frozen=True)
class Done:
    """How far a run is with the images it takes."""

    looked: int  # images to fit that are decoded and that the network has told of
    test: int  # test images that are decoded
    saved: bool  # whether a first model is


class Pace:
    """How many images there is time for, asked again as a run goes: other programs may want the processor since it was timed.

    Images to fit, and then test images, are taken in rounds of some seconds in the order of `Taken.order`. Nothing is left out
    before its turn comes: a machine that is free again takes what a busy one would not have.
    """

    def __init__(self, costs: Costs, clock: Clock, *, thins: bool) -> None:
        """thins: whether images may be left out at all."""
        self.costs, self.clock, self.thins = costs, clock, thins
        budget = clock.budget_seconds or math.inf
        self._round = min(_LONGEST_ROUND, max(_SHORTEST_ROUND, _ROUND_SHARE * budget))
        self.window = max(_LEAST_WINDOW, _WINDOW_SHARE * budget)  # seconds
        self._marks = [(clock.elapsed(), 0.0)]  # on the clock, and what all until then was to take

    def took(self, planned: float) -> None:
        """What was to take so many seconds is done."""
        self._marks.append((self.clock.elapsed(), self._marks[-1][1] + planned))

    @property
    def slower(self) -> float:
        """How many times as long as planned all took of late: in the last tenth of the budget and what was begun before it."""
        now, planned = self._marks[-1]
        earlier = [mark for mark in self._marks[:-1] if mark[0] <= now - self.window]
        since, before = earlier[-1] if earlier else self._marks[0]
        return (now - since) / (planned - before) if planned > before else 1.0

    @property
    def tail_seconds(self) -> float:
        """What comes after the heads takes so much longer than on the machine that was timed."""
        return LEAST_TAIL_SECONDS * (self.slower - 1.0) if self.slower >= _SLOW else 0.0

    def to_fit(self, taken: Taken, done: Done) -> int:
        """How many of the images to fit are to be looked at by the end of the next round; no more than are: that was all."""
        order, costs = taken.order, self.costs
        count = len(order.fitting)
        if self.clock.budget_seconds is None:
            return count
        part = self._still(taken, done, count)
        most = count if part is None else max(done.looked, min(count, max(part.fitting, self._fewest(taken, done))))
        wanted = self._in_a_round(done.looked, most, costs.decoding + costs.seeing)
        return min(most, max(order.first, wanted))

    def to_test(self, taken: Taken, done: Done) -> int:
        """How many test images are to be decoded by the end of the next round."""
        count = len(taken.order.test)
        if self.clock.budget_seconds is None:
            return count
        part = self._still(taken, done, done.looked)
        most = count if part is None else max(done.test, part.test)
        return self._in_a_round(done.test, most, self.costs.decoding)

    def first_is_due(self, taken: Taken, done: Done) -> bool:
        """Whether a first model would be late after one more round."""
        budget = self.clock.budget_seconds
        if budget is None:
            return False
        more = self.to_fit(taken, done)
        planned = self.costs.seen(more - done.looked) + self.costs.quick_head(more) + FIRST_SAVED
        left = first_model_due(budget) - self.clock.elapsed()
        return _FIRST_LATE * max(1.0, self.slower) * planned > left

    def settled(self, taken: Taken, done: Done) -> Taken:
        """What is taken in the end: of images to fit those that were looked at."""
        fitting, test = len(taken.order.fitting), len(taken.order.test)
        part = self._still(taken, done, done.looked)
        if part is None and (done.looked, done.test) == (fitting, test):
            return taken
        counted = min(done.test, test - taken.spare if part is None else part.test)
        few = done.looked < taken.order.least
        return replace(taken, part=Part(done.looked, counted, done.test - counted, few))

    def _fewest(self, taken: Taken, done: Done) -> int:
        """How many images to fit are looked at whatever they take."""
        order, budget = taken.order, self.clock.budget_seconds or math.inf
        first = max(order.first, done.looked)
        return (
            first if order.least > first and self.costs.late(first, order.least, budget, self.slower) else order.least
        )

    def _in_a_round(self, done: int, most: int, takes: float) -> int:
        """How many are done after the next round, if one takes so many seconds; the last may be half as long again."""
        size = max(_LEAST_OF_ROUND, int(self._round / (max(1.0, self.slower) * takes)))
        return most if done + 1.5 * size >= most else done + size - size % _LEAST_OF_ROUND

    def _still(self, taken: Taken, done: Done, fitting: int) -> Part | None:
        """How many of so many images to fit, and of the test images, there is time for at the pace of late; None: all."""
        slower, costs = self.slower, self.costs
        if not self.thins or self.clock.budget_seconds is None or slower < _SLOW:
            return None

        def fitted(n: int) -> float:
            more, n = max(0, n - done.looked), max(n, done.looked)
            return costs.seen(more) + costs.heads(n) - (costs.quick_head(n) if done.saved else 0.0)

        left = _for_images(self.clock.left(), costs, slower) + costs.decoding * done.test
        test = max(1, len(taken.order.test) - taken.spare)
        return part_for(fitting, test, left, fitted, costs.decoding + costs.scoring, training=costs.training)
