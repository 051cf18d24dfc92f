"""Who looks on while a verb works: a progress bar on a terminal, lines elsewhere."""

from __future__ import annotations

import errno
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.text import Text

from burnish.errors import RecipeError, shown
from burnish.runtime import Clock, Nobody, Watcher, minutes, process_age_seconds

_SLOW_SECONDS = 1.5  # of silence, after which is said what is at work
Watching = Watcher | Literal["auto"] | None  # "auto": lines where somebody types, else nobody; None: nobody


def settled_watcher(watcher: Watching, clock: Clock | None = None) -> Watcher:
    """Who looks on at a call: with "auto" `Lines` in a notebook and at a prompt, and nobody in a script.

    clock: whose seconds stand before those lines. RecipeError for what is no watcher.
    """
    if watcher == "auto":
        # Python's prompt sets it, and so do IPython's and a notebook's kernel, for programs to tell that they are at one.
        return Lines(clock=clock) if hasattr(sys, "ps1") else Nobody()
    if watcher is None:
        return Nobody()
    says = all(callable(getattr(watcher, name, None)) for name in ("stage", "advance", "say"))
    if not says or isinstance(watcher, type):
        raise RecipeError(
            f'watcher is {shown(repr(watcher))[:80]}, expected burnish.Lines(), which prints lines, "auto", or None for silence'
        )
    return watcher


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


def say_what_begins(
    images: int, classes: int, folder: Path, clock: Clock, *, quiet: bool, to_stderr: bool, besides: str = ""
) -> None:
    """A line before torch is loaded, which takes seconds in which nothing else can be told.

    besides: what else there is to say of the images.

    No bar yet: its thread would stand in the way of loading lightly (`imports.load_libraries`).
    """
    besides = f" ({besides})" if besides else ""
    early_watcher(clock, quiet=quiet, to_stderr=to_stderr).say(
        f"{images:,} images of {classes:,} classes{besides}, into {folder}; loading PyTorch"
    )


def early_watcher(clock: Clock, *, quiet: bool, to_stderr: bool) -> Watcher:
    """Plain lines, on a terminal too, nothing with `quiet`: for what is done before torch is loaded."""
    stream = sys.stderr if to_stderr else sys.stdout
    return Nobody() if quiet or stream is None else Lines(stream, clock)


@contextmanager
def told_if_slow(what: str, watcher: Watcher) -> Iterator[None]:
    """A line with these words where the body takes longer than a second or so. Its thread has ended when the body has."""
    timer = threading.Timer(_SLOW_SECONDS, watcher.say, [what])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


@contextmanager
def _unless_gone() -> Iterator[None]:
    """A terminal that was closed, or a program that has read enough, is no reason to end what works without them."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EIO, errno.EPIPE):
            raise


class _Bar:
    """One bar for the running stage; facts scroll by above it."""

    def __init__(self, progress: Progress, clock: Clock | None) -> None:
        self.progress, self.clock = progress, clock
        self.task = progress.add_task("start", total=None)

    def stage(self, name: str, *, total: int | None = None, detail: str = "") -> None:
        with suppress(KeyError), _unless_gone():  # a task that could not be shown is none
            self.progress.remove_task(self.task)
            self.task = self.progress.add_task(f"{name}, {detail}" if detail else name, total=total)

    def advance(self, count: int) -> None:
        with suppress(KeyError), _unless_gone():  # a task that could not be shown is none
            self.progress.advance(self.task, count)

    def say(self, text: str) -> None:
        with suppress(KeyError), _unless_gone():  # a task that could not be shown is none
            self.progress.console.print(Text(_stamped(text, self.clock)))


class Lines:
    """A watcher that prints a line for each fact and stage, as in notebooks: burnish.fit(..., watcher=burnish.Lines()).

    stream: what to print to, the standard output without; clock: whose seconds stand before each line, its own without.
    """

    def __init__(self, stream: TextIO | None = None, clock: Clock | None = None) -> None:
        self.stream, self.clock, self.name = stream, clock or Clock.start(None, from_process_start=False), ""

    def stage(self, name: str, *, total: int | None = None, detail: str = "") -> None:
        """A new stage begins, or a new part of the running one."""
        if name != self.name:  # the parts of a stage say themselves when they are done
            self.say(f"{name}: {total} images" if total is not None else name)
        self.name = name

    def advance(self, count: int) -> None:
        """Not told."""

    def say(self, text: str) -> None:
        """A finished fact worth a line."""
        with _unless_gone():
            print(_stamped(text, self.clock), file=self.stream, flush=True)


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


def _stamped(text: str, clock: Clock | None) -> str:
    seconds = clock.elapsed() if clock is not None else process_age_seconds()
    return f"{seconds:6.1f} s  {shown(text)}"
