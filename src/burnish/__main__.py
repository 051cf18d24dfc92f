"""The program: python -m burnish, and the command burnish."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import MutableMapping

import burnish

# Turns a thread of libgomp waits busily for the others before it sleeps; its own default is 300,000 (1 ms).
_SPINS = "3000"
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


def wait_briefly(environment: MutableMapping[str, str]) -> None:
    """Let torch's threads give the cores away soon after they have nothing to do; to be called before torch is loaded.

    Beside one other busy program two threads that wait for each other by spinning held each other up so much that a head
    took 7 to 33 s; so it takes 3, and 1.5 alone either way. Alone, networks are 2 to 3 % slower. What the user has set stays.
    """
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", _SPINS)


def run() -> None:
    """`cli.main`, and the exit without ceremony; whatever others registered to be done at the exit is done before."""
    global _code
    wait_briefly(os.environ)
    atexit.register(_at_once)  # first registered, last called
    burnish.own_process = True
    from burnish.cli import main

    try:
        main()
        _code = 0
    except SystemExit as leaving:
        _code = leaving.code if isinstance(leaving.code, int) else 0 if leaving.code is None else 1
        raise


if __name__ == "__main__":
    run()
