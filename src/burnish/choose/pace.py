"""A time-planned run kept on its deadline: how many steps it is to have, revised from what steps take (P6).

The number of steps is changed only where the state is saved, so that a run that died follows the plan it saved to the
same bits (P7).
"""

from __future__ import annotations

import time

from burnish.train.loop import Schedule, Training

# Least weight of the newest step in the mean: a machine may be slow for some seconds, and steps that are struck off then
# because all that follows is expected to be as slow do not come back, for by then the run is over.
_RECENT = 0.05
# Of what steps take less or more than planned, these shares are believed of what follows the last one: a machine that was slow
# when the run was planned is quicker in all, but one that changes its speed changes it again. The test images, most of what
# follows, can be cut by the clock itself (`proof`); steps that were struck off for them are lost.
_QUICKER, _SLOWER = 0.5, 0.75
# Than planned, of what follows: one early step that stood still must not take all the time that is left
_MOST_SLOWER = 2.0
_GIVEN_BACK = 0.25  # of what is kept back, at most
# A step that takes so many times what those before it took stood still: the process or its machine was stopped, a disk hung. What
# is lost is lost, and tells nothing of the next; so a lasting change is believed within some steps, not at once.
_STALL, _TRUSTED = 4.0, 2
# Times as early as a run may be late before its plan is made anew between two saves: a save costs time itself.
_EARLY = 3.0


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
        reserve_seconds: float = 0.0,
    ) -> None:
        """until: when the last step shall end, by time.monotonic(). most: steps at most. step_seconds: expected, by size.

        epoch_seconds: expected for what is done between epochs of `epoch_steps` steps: validation, saving. reserve_seconds:
        expected for what follows the last step; where steps take longer than expected, that will too, and somewhat less
        where they take less.
        """
        self.schedule, self.until, self.most = schedule, until, most
        self.step_seconds = dict(step_seconds)
        self.between_seconds = epoch_seconds / max(1, epoch_steps)  # a step's share of the work between epochs
        self.epoch_steps, self.reserve_seconds = epoch_steps, reserve_seconds
        self._planned, self._latest = dict(step_seconds), 0
        self._met: set[int] = set()  # sizes of which a step was made
        self._seen: dict[int, int] = {}  # steps that tell, by size
        self._told: set[int] = set()  # sizes of epochs whose validation was seen
        self._told_often = False  # more than the plan's guess is known of it

    def saw_step(self, size: int, seconds: float) -> None:
        """One step was made. The first at a size makes its buffers and chooses its kernels: it tells nothing of the next."""
        before = self.step_seconds.get(size)
        if size not in self._met and before is not None:
            self._met.add(size)
            return
        self._latest = size
        seen = self._seen[size] = self._seen.get(size, 0) + 1
        if before is not None and seen > _TRUSTED:
            seconds = min(seconds, _STALL * before)
        # The plan's own timing counts as one step.
        weight = 1.0 if before is None else max(_RECENT, 1.0 / (seen + 1))
        self.step_seconds[size] = (1.0 - weight) * (before or 0.0) + weight * seconds

    def saw_between(self, size: int, seconds: float) -> None:
        """An epoch's validation and saving took so long; the first at a size, which makes its images, tells nothing."""
        if size in self._told:
            most = max(_STALL * self.between_seconds * self.epoch_steps, _STALL * self.step_seconds.get(size, 0.0))
            seconds = min(seconds, most) if self._told_often else seconds
            self._told_often = True
            self.between_seconds += 0.5 * (seconds / max(1, self.epoch_steps) - self.between_seconds)
        self._told.add(size)

    @property
    def slowness(self) -> float:
        """How many times longer than planned steps take, told by those at the size of the latest.

        Other work on the machine, or a processor that has grown hot.
        """
        planned = self._planned.get(self._latest, 0.0)
        return self.step_seconds[self._latest] / planned if planned else 1.0

    @property
    def deadline(self) -> float:
        """When the last step shall end, by time.monotonic(): earlier where all is slower than planned, or later.

        Timed in a quiet moment, what follows the training would be taken for quicker than it will be; timed in a busy one, for
        slower. Less is kept back only where the size of the latest steps was timed, which is the smallest: others are scaled.
        """
        given_back = _GIVEN_BACK if self._planned and self._latest == min(self._planned) else 0.0
        more = min(_MOST_SLOWER, self.slowness - 1.0)
        return self.until - max(-given_back, (_SLOWER if more > 0 else _QUICKER) * more) * self.reserve_seconds

    def seconds_ahead(self, training: Training) -> float:
        """Expected until the run's last step ends."""
        return (training.total - training.steps) * self._mean_step(training.progress)

    def seconds_late(self, training: Training) -> float:
        """By how much the run would miss its deadline; negative when it would end before it."""
        return time.monotonic() + self.seconds_ahead(training) - self.deadline

    def is_off(self, training: Training, seconds: float) -> bool:
        """Whether the run would be so late, or so much too early, that its plan is made anew before the next save is due.

        Too early too: where a slow stretch had steps struck off, they come back when it is over.
        """
        late = self.seconds_late(training)
        return late > seconds or (late < -_EARLY * seconds and self.total(training) > training.total)

    def total(self, training: Training) -> int:
        """The steps the run is to have, so that the last one ends on the deadline."""
        left = self.deadline - time.monotonic()
        ahead = int(left / self._mean_step(training.progress))  # rounded down: late costs more than early
        return min(self.most, training.steps + max(1, ahead))

    def _mean_step(self, progress: float) -> float:
        """Mean seconds of the steps that are left, their share of the work between epochs included."""
        starts = [max(start, progress) for start, _ in self.schedule.sizes] + [1.0]
        left = max(1e-9, 1.0 - progress)
        mean, known, slowness = 0.0, max(self.step_seconds.values(), default=1.0), max(1.0, self.slowness)
        for (_, size), start, end in zip(self.schedule.sizes, starts[:-1], starts[1:], strict=True):
            expected = self.step_seconds.get(size, known) * (1.0 if size in self._seen else slowness)
            mean += max(0.0, end - start) / left * expected
        return max(1e-6, mean + self.between_seconds)
