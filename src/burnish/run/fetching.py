"""What a run does while its network comes over the network: it says so, and gives up what would come too late."""

from __future__ import annotations

import time

from burnish.backbones.reading.hub import public
from burnish.errors import WeightsUnreachable, shown
from burnish.runtime import Clock, Watcher, minutes

_JUDGED_AFTER = 3.0  # seconds, from when on the speed says when the rest will be there


class Fetching:
    """Told of bytes that come, as `load_backbone` tells them: says how long it takes, once.

    WeightsUnreachable where that is longer than what is left of the budget: no model could be made in time.
    """

    def __init__(self, model: str, clock: Clock, watcher: Watcher) -> None:
        self.model, self.clock, self.watcher = shown(public(model)), clock, watcher
        self._began, self._had, self._said = time.monotonic(), -1, False

    def __call__(self, came: int, size: int) -> None:
        now = time.monotonic()
        if self._had < 0 or came < self._had:  # the first word of it, or it begins anew
            self._began, self._had = now, came
        seconds, got = now - self._began, came - self._had
        if seconds < _JUDGED_AFTER or not size or not got:
            return
        left, rate = seconds * max(0, size - came) / got, got / seconds
        speed = f"{rate / 1e6:.1f} MB/s" if rate >= 1e5 else f"{rate / 1e3:.1f} kB/s"
        if left > self.clock.left():
            raise WeightsUnreachable(
                f"{self.model} would not be here before the budget ends: at {speed} the {(size - came) / 1e6:,.0f} MB that are "
                f"lacking take about {minutes(left)}, and {minutes(max(0.0, self.clock.left()))} are left; what came is kept, so "
                f"the same command goes on with it; without a budget: burnish models MODEL --stages"
            )
        if not self._said:
            self._said = True
            self.watcher.say(f"fetching {self.model}: {size / 1e6:,.0f} MB, about {minutes(left)} more at {speed}")
