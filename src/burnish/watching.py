"""Who looks on while a verb works, with plain lines; a terminal has the bar of `bars`."""

from __future__ import annotations

import errno
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TextIO

from burnish.errors import RecipeError, shown
from burnish.runtime import Clock, Nobody, Watcher, process_age_seconds

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
def unless_gone() -> Iterator[None]:
    """A terminal that was closed, or a program that has read enough, is no reason to end what works without them."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EIO, errno.EPIPE):
            raise


class Lines:
    """A watcher that prints a line for each fact and stage, as in notebooks: burnish.fit(..., watcher=burnish.Lines()).

    stream: what to print to, the standard output without; clock: whose seconds stand before each line, its own without.
    """

    def __init__(self, stream: TextIO | None = None, clock: Clock | None = None) -> None:
        self.stream, self.clock, self.name = stream, clock or Clock.start(None, from_process_start=False), ""

    def stage(self, name: str, *, total: int | None = None, detail: str = "") -> None:
        """A new stage begins, or a new part of the running one."""
        if name != self.name:  # the parts of a stage say themselves when they are done
            self.say(name if total is None else f"{name}: {total:,} image{'' if total == 1 else 's'}")
        self.name = name

    def advance(self, count: int) -> None:
        """Not told."""

    def say(self, text: str) -> None:
        """A finished fact worth a line."""
        with unless_gone():
            print(stamped(text, self.clock), file=self.stream, flush=True)


def stamped(text: str, clock: Clock | None) -> str:
    seconds = clock.elapsed() if clock is not None else process_age_seconds()
    return f"{seconds:6.1f} s  {shown(text)}"
