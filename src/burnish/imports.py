"""torchvision and timm, imported without torch's compiler, which both load for a decorator and a question that a run seldom asks.

That takes a quarter of the time in which a command starts (LOG.md). What needs the compiler loads it as ever.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from functools import wraps
from types import ModuleType
from typing import Any

from burnish.granted import threads_to_take

# Turns a thread of libgomp waits busily for the others before it sleeps; its own default is 300,000 (1 ms).
_SPINS = "3000"
_LIBRARIES = ("torchvision", "timm")
_COMPILER, _ASKED = "torch._dynamo", "torch._dynamo.utils"


def settle_threads(environment: MutableMapping[str, str]) -> None:
    """How many threads torch has, and how they wait; to be called before it is loaded."""
    taken = threads_to_take(environment)
    if taken is not None:
        environment["OMP_NUM_THREADS"] = str(taken)
    wait_briefly(environment)


def wait_briefly(environment: MutableMapping[str, str]) -> None:
    """Let torch's threads give the cores away soon after they have nothing to do; to be called before torch is loaded.

    Beside one other busy program two threads that wait for each other by spinning held each other up so much that a head
    took 7 to 33 s; so it takes 3, and 1.5 alone either way. Alone, networks are 2 to 3 % slower. What the user has set stays.
    """
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", _SPINS)


def load_libraries() -> None:
    """Import both, as lightly as can be; where anything is unexpected, as usual.

    Beside other threads as usual too: one of them may want the compiler meanwhile.
    """
    if "torch" not in sys.modules:
        settle_threads(os.environ)
    importlib.import_module("torch")
    if "IPython" in sys.modules:
        _load_bars_quietly()
    for name in _LIBRARIES:
        if name not in sys.modules and _COMPILER not in sys.modules and threading.active_count() == 1:
            try:
                with _stand_in():
                    importlib.import_module(name)
            except Exception:  # a version that asks more of the compiler
                for part in [part for part in sys.modules if part.partition(".")[0] == name]:
                    del sys.modules[part]
        importlib.import_module(name)


def _load_bars_quietly() -> None:
    """The bars that timm's hub client imports, without their complaint that a notebook lacks widgets: none is shown here."""
    with warnings.catch_warnings(), suppress(ImportError):
        warnings.filterwarnings("ignore", message="IProgress not found")
        importlib.import_module("tqdm.auto")


@contextmanager
def _stand_in() -> Iterator[None]:
    """While it lasts, what they name of the compiler are functions that load the real one when they are called."""
    compiler, asked = ModuleType(_COMPILER), ModuleType(_ASKED)
    compiler.__path__ = []
    vars(compiler).update(utils=asked, disable=_disable)
    vars(asked).update(is_compile_supported=_is_compile_supported)
    sys.modules |= {_COMPILER: compiler, _ASKED: asked}
    try:
        yield
    finally:
        for name, module in ((_COMPILER, compiler), (_ASKED, asked)):
            if sys.modules.get(name) is module:
                del sys.modules[name]


def _is_compile_supported(device_type: str) -> Any:
    return importlib.import_module(_ASKED).is_compile_supported(device_type)


def _disable(function: Callable[..., Any] | None = None, *how: Any, **more: Any) -> Any:
    """A function that is not to be compiled, as a decorator or with arguments first."""
    if function is None:
        return lambda given: _disable(given, *how, **more)
    real: list[Callable[..., Any]] = []

    @wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        if not real:
            real.append(importlib.import_module(_COMPILER).disable(function, *how, **more))
        return real[0](*args, **kwargs)

    return called
