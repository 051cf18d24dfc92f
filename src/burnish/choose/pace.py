"""A time-planned run kept on its deadline: how many steps it is to have, revised from what steps take (P6).

The number of steps is changed only where the state is saved, so that a run that died follows the plan it saved to the
same bits (P7).
"""

from __future__ import annotations

import time

from burnish.train.loop import Schedule, Training

_RECENT = 0.2  # weight of the newest step in the moving mean: one slow step does not end a run early


class Pace:
    """What steps and the work between them take, and what that means for the rest of the run."""

    def __init__(
        self,
        schedule: Schedule,
        *,
        until: float,
        most: int,
        step_seconds: dict[int, float],
        epoch_seconds: float,
        epoch_steps: int,
    ) -> None:
        """until: when the last step shall end, by time.monotonic(). most: steps at most. step_seconds: expected, by size.

        epoch_seconds: expected for what is done between epochs of `epoch_steps` steps: validation, saving.
        """
        self.schedule, self.until, self.most = schedule, until, most
        self.step_seconds = dict(step_seconds)
        self.between_seconds = epoch_seconds / max(1, epoch_steps)  # a step's share of the work between epochs
        self.epoch_steps = epoch_steps
        self._seen: set[int] = set()

    def saw_step(self, size: int, seconds: float) -> None:
        """One step was made."""
        before = self.step_seconds.get(size)
        if before is None or size not in self._seen:
            self.step_seconds[size] = seconds if before is None else 0.5 * (before + seconds)
            self._seen.add(size)
        else:
            self.step_seconds[size] = (1.0 - _RECENT) * before + _RECENT * seconds

    def saw_between(self, seconds: float) -> None:
        """An epoch's validation and saving took so long."""
        self.between_seconds += 0.5 * (seconds / max(1, self.epoch_steps) - self.between_seconds)

    def seconds_ahead(self, training: Training) -> float:
        """Expected until the run's last step ends."""
        return (training.total - training.steps) * self._mean_step(training.progress)

    def seconds_late(self, training: Training) -> float:
        """By how much the run would miss its deadline; negative when it would end before it."""
        return time.monotonic() + self.seconds_ahead(training) - self.until

    def total(self, training: Training) -> int:
        """The steps the run is to have, so that the last one ends on the deadline."""
        left = self.until - time.monotonic()
        ahead = int(left / self._mean_step(training.progress))  # rounded down: late costs more than early
        return min(self.most, training.steps + max(1, ahead))

    def _mean_step(self, progress: float) -> float:
        """Mean seconds of the steps that are left, their share of the work between epochs included."""
        starts = [max(start, progress) for start, _ in self.schedule.sizes] + [1.0]
        left = max(1e-9, 1.0 - progress)
        mean, known = 0.0, max(self.step_seconds.values(), default=1.0)
        for (_, size), start, end in zip(self.schedule.sizes, starts[:-1], starts[1:], strict=True):
            mean += max(0.0, end - start) / left * self.step_seconds.get(size, known)
        return max(1e-6, mean + self.between_seconds)
