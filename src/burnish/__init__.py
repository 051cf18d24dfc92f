"""burnish: from a folder of labelled images and a pretrained network to the best classifier a time budget allows.

    >>> import burnish
    >>> result = burnish.fit("photos/", budget="10m")
    >>> print(result.verdict.sentence())
    >>> result.predict(["new.jpg"])[0].label

The names below are imported when they are first used, so that `import burnish` costs milliseconds.
"""

from __future__ import annotations

import gc
import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from burnish import sklearn as sklearn
    from burnish.api import (
        Audit,
        Evaluation,
        Hardened,
        Leaderboard,
        Prediction,
        Predictor,
        Result,
        Robustness,
        Slimmed,
        Verdict,
        audit,
        compare,
        evaluate,
        explain,
        export,
        fit,
        fit_recipe,
        harden,
        ood,
        open_run,
        predict,
        report,
        report_runs,
        robustness,
        serve,
        slim,
    )
    from burnish.errors import BurnishError
    from burnish.recipe import Recipe
    from burnish.watching import Lines

__version__ = "0.1.0"
own_process = False  # whether this is the program burnish, and no notebook or script that uses it
told_to_stop = False  # whether that program was: while modules are loaded Python may swallow the exception
began: float | None = None  # when that program began, by time.monotonic()
_HOMES = {"BurnishError": "burnish.errors", "Lines": "burnish.watching", "Recipe": "burnish.recipe"}
_MODULES = ("api", "sklearn")
__all__ = [
    "Audit",
    "BurnishError",
    "Evaluation",
    "Hardened",
    "Leaderboard",
    "Lines",
    "Prediction",
    "Predictor",
    "Recipe",
    "Result",
    "Robustness",
    "Slimmed",
    "Verdict",
    "audit",
    "compare",
    "evaluate",
    "explain",
    "export",
    "fit",
    "fit_recipe",
    "harden",
    "ood",
    "open_run",
    "predict",
    "report",
    "report_runs",
    "robustness",
    "serve",
    "slim",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES and name not in __all__:
        here = importlib.import_module("burnish.elsewhere").verb_elsewhere(name)
        raise AttributeError(
            f"module 'burnish' has no attribute {name!r}{f'; here it is burnish.{here}' if here else ''}"
        )
    if name in _MODULES:
        return _loaded(f"burnish.{name}")
    return getattr(_loaded(_HOMES.get(name, "burnish.api")), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__", "sklearn"]


def _loaded(name: str) -> ModuleType:
    """The module, imported without a look for garbage: the million objects that torch and timm make on their way stay."""
    if name in sys.modules:
        return sys.modules[name]
    looks = gc.isenabled()
    gc.disable()
    try:
        if name == "burnish.api":
            _say_what_is_waited_for()
            importlib.import_module("burnish.imports").load_libraries()
        return importlib.import_module(name)
    finally:
        if looks:
            gc.enable()
        if own_process:  # of another program's objects nothing is said here
            gc.freeze()


def _say_what_is_waited_for() -> None:
    """Where somebody types: the first call would be silent for the seconds that PyTorch takes to load."""
    if hasattr(sys, "ps1") and "torch" not in sys.modules:
        print("burnish: loading PyTorch", flush=True)
