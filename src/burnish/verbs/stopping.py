"""Who stops a run: what is said, and that it ends soon."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import burnish
from burnish.errors import Interrupted, pasted, shown

_PATIENCE_SECONDS = 7.0  # of the ten that a run has to leave; systems that shut down kill after ten
STOPS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
AGAIN = "interrupted before it was done; say the same again"
_SHOW_CURSOR = "\x1b[?25h"  # which a bar has hidden


@contextmanager
def going_on(folder: Path) -> Iterator[None]:
    """Who stops a run is told how to go on with it."""
    with interrupted(how_to_go_on(folder)):
        yield


def how_to_go_on(folder: Path) -> str:
    """What is told whoever stops a run."""
    return (
        f"interrupted; what was saved is kept, and a package that is there can predict. To go on, say the same again with "
        f"--out {pasted(folder)}"
    )


def nothing_written(run: Path, place: Path) -> str:
    """What is told whoever stops what would be made of a run."""
    return f"interrupted; {shown(str(run))} is as it was, and nothing was written to {shown(str(place))}"


@contextmanager
def interrupted(said: str) -> Iterator[None]:
    """Who stops the program is told that."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(said) from None


@contextmanager
def leaving_in_time(said: str) -> Iterator[None]:
    """Within it, who stops the program has it end in seconds, even in the midst of one long step.

    Python sees a signal between two instructions of its own, and the gradient of a large network is one: a minute of a
    ViT-Large on two cores. So a thread is told too, and ends the process when Python has not. What is on disk is whole at any
    instant (P9). To be entered after torch is loaded: another thread would stand in the way (`imports.load_libraries`). Who was
    told to stop before, and did not notice, does so here.
    """
    if burnish.told_to_stop:
        raise KeyboardInterrupt
    if not burnish.own_process or os.name == "nt":  # there a pipe cannot be told
        yield
        return
    hears, tells = os.pipe()
    os.set_blocking(tells, False)
    before, left = signal.set_wakeup_fd(tells, warn_on_full_buffer=False), threading.Event()
    threading.Thread(target=_leave_unless, args=(left, hears, said), daemon=True).start()
    try:
        yield
    finally:
        left.set()
        signal.set_wakeup_fd(before)
        os.close(tells)


def _leave_unless(left: threading.Event, hears: int, said: str) -> None:
    """End the process some seconds after a signal to stop came, unless it has left what it was in by then."""
    with open(hears, "rb", buffering=0) as signals:
        came = signals.read(1)
        while came and came[0] not in STOPS:
            came = signals.read(1)
        if came and not left.wait(_PATIENCE_SECONDS):
            with suppress(OSError, AttributeError, ValueError):  # nobody is there to read it
                print(f"{_SHOW_CURSOR if sys.stderr.isatty() else ''}burnish: {said}", file=sys.stderr, flush=True)
            os._exit(Interrupted.exit_code)
