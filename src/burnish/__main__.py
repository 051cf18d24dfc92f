"""The program: python -m burnish, and the command burnish."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import time
from contextlib import suppress
from typing import Any, NoReturn

import burnish
from burnish.imports import settle_threads

_INTERRUPTED = 130
_code = 1  # what the process leaves with; an exception that nobody caught


def _at_once() -> None:
    """End the process here. Taking down torch's thousands of modules one by one is 1 to 2 s of nothing."""
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except (OSError, ValueError):  # a closed pipe, which Python has words and an exit code for
        return
    os._exit(_code)


def _stopped(number: int, frame: Any) -> NoReturn:
    burnish.told_to_stop = True
    raise KeyboardInterrupt


def run() -> None:
    """`cli.main`, and the exit without ceremony; whatever others registered to be done at the exit is done before."""
    global _code
    first_line = time.monotonic(), time.process_time()
    signal.signal(signal.SIGTERM, _stopped)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # who began this may have it ignored
        signal.signal(signal.SIGINT, _stopped)
    hangs_up = getattr(signal, "SIGHUP", None)  # which Windows has not, and nohup has ignored
    if hangs_up is not None and signal.getsignal(hangs_up) == signal.SIG_DFL:
        signal.signal(hangs_up, _stopped)
    settle_threads(os.environ)
    atexit.register(_at_once)  # first registered, last called
    burnish.own_process = True
    try:
        from burnish.runtime import process_began

        burnish.began = process_began(*first_line)
        from burnish.cli import main, no_longer_stopped

        main()
        _code = 0
        no_longer_stopped()
    except SystemExit as leaving:
        _code = leaving.code if isinstance(leaving.code, int) else 0 if leaving.code is None else 1
        raise
    except KeyboardInterrupt:  # before anything could be done, or while what was done is said
        _code = _INTERRUPTED
        with suppress(OSError, AttributeError):  # nobody is there to read it
            print("burnish: interrupted", file=sys.stderr, flush=True)
        sys.exit(_code)


if __name__ == "__main__":
    run()
