"""The program: python -m burnish, and the command burnish."""

from __future__ import annotations

import atexit
import os
import sys

_code = 1  # what the process leaves with; an exception that nobody caught


def _at_once() -> None:
    """End the process here. Taking down torch's thousands of modules one by one is 1 to 2 s of nothing."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):  # a closed pipe, which Python has words and an exit code for
        return
    os._exit(_code)


def run() -> None:
    """`cli.main`, and the exit without ceremony; whatever others registered to be done at the exit is done before."""
    global _code
    atexit.register(_at_once)  # first registered, last called
    from burnish.cli import main

    try:
        main()
        _code = 0
    except SystemExit as leaving:
        _code = leaving.code if isinstance(leaving.code, int) else 0 if leaving.code is None else 1
        raise


if __name__ == "__main__":
    run()
