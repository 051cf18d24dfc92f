"""The progress bar on a terminal. Apart from `watching`, so that scripts and notebooks do not load what draws it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.text import Text

from burnish.runtime import Clock, Nobody, Watcher, minutes
from burnish.watching import Lines, stamped, unless_gone


@contextmanager
def watcher_for(clock: Clock | None, *, quiet: bool, to_stderr: bool) -> Iterator[Watcher]:
    """A progress bar on a terminal, plain lines elsewhere, nothing with `quiet`."""
    stream = sys.stderr if to_stderr else sys.stdout
    if quiet or stream is None:  # closed
        yield Nobody()
    elif stream.isatty():
        console = Console(file=stream, highlight=False, markup=False, emoji=False)
        with Progress(*_columns(clock), console=console, transient=True) as progress:
            yield _Bar(progress, clock)
    else:
        yield Lines(stream, clock or Clock.start(None, from_process_start=True))


class _Bar:
    """One bar for the running stage; facts scroll by above it."""

    def __init__(self, progress: Progress, clock: Clock | None) -> None:
        self.progress, self.clock = progress, clock
        self.task = progress.add_task("start", total=None)

    def stage(self, name: str, *, total: int | None = None, detail: str = "") -> None:
        with suppress(KeyError), unless_gone():  # a task that could not be shown is none
            self.progress.remove_task(self.task)
            self.task = self.progress.add_task(f"{name}, {detail}" if detail else name, total=total)

    def advance(self, count: int) -> None:
        with suppress(KeyError), unless_gone():  # a task that could not be shown is none
            self.progress.advance(self.task, count)

    def say(self, text: str) -> None:
        with suppress(KeyError), unless_gone():  # a task that could not be shown is none
            self.progress.console.print(Text(stamped(text, self.clock)))


class _Rate(ProgressColumn):
    """Images per second of the running stage."""

    def render(self, task: Task) -> Text:
        if not task.speed:
            return Text("")
        return Text(f"{task.speed:.0f} images/s")


class _Left(ProgressColumn):
    """Time left of the budget."""

    def __init__(self, clock: Clock | None) -> None:
        super().__init__()
        self.clock = clock

    def render(self, task: Task) -> Text:
        if self.clock is None or self.clock.budget_seconds is None:
            return Text("")
        return Text(f"{minutes(max(0.0, self.clock.left()))} left")


def _columns(clock: Clock | None) -> tuple[ProgressColumn, ...]:
    text = TextColumn("{task.description}", markup=False)
    return (SpinnerColumn(), text, BarColumn(bar_width=24), _Rate(), _Left(clock))
