"""burnish: from a folder of labelled images and a pretrained network to the best classifier a time budget allows.

    >>> import burnish
    >>> result = burnish.fit("photos/", budget="10m")
    >>> print(result.verdict.sentence())
    >>> result.predict(["new.jpg"])[0].label

The names below are imported when they are first used, so that `import burnish` costs milliseconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from burnish.api import (
        Evaluation,
        Result,
        audit,
        compare,
        evaluate,
        explain,
        fit,
        fit_recipe,
        ood,
        open_run,
        predict,
        report,
        report_runs,
    )
    from burnish.errors import BurnishError
    from burnish.recipe import Recipe

__version__ = "0.1.0"
_HOMES = {"BurnishError": "burnish.errors", "Recipe": "burnish.recipe"}
__all__ = [
    "BurnishError",
    "Evaluation",
    "Recipe",
    "Result",
    "audit",
    "compare",
    "evaluate",
    "explain",
    "fit",
    "fit_recipe",
    "ood",
    "open_run",
    "predict",
    "report",
    "report_runs",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'burnish' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES.get(name, "burnish.api")), name)
