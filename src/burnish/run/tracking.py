"""A finished run in MLflow, where it is installed and MLFLOW_TRACKING_URI says where to; nothing else of burnish needs it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from burnish.record.folder import AUDIT_TABLE, PREDICTIONS, RECIPE, REPORT, RESULT
from burnish.runtime import Watcher

VARIABLE = "MLFLOW_TRACKING_URI"
_LONGEST = 500  # characters of a parameter that MLflow takes everywhere
_FILES = (RESULT, RECIPE, REPORT, AUDIT_TABLE, PREDICTIONS)


def wanted() -> bool:
    """Whether runs are to be tracked."""
    return bool(os.environ.get(VARIABLE)) and importlib.util.find_spec("mlflow") is not None


def track(folder: Path, facts: Mapping[str, Any], watcher: Watcher) -> None:
    """Settings, scores, history and files of a finished run, in the experiment "burnish" or $MLFLOW_EXPERIMENT_NAME.

    A server that refuses is told, and the run stands all the same.
    """
    if not wanted():
        return
    try:
        import mlflow  # pyright: ignore[reportMissingImports]  # an extra

        if not os.environ.get("MLFLOW_EXPERIMENT_NAME"):
            mlflow.set_experiment("burnish")
        with mlflow.start_run(run_name=folder.name):
            mlflow.log_params({key: str(value)[:_LONGEST] for key, value in facts["recipe"].items()})
            mlflow.set_tags(
                {"verdict": facts["verdict"]["sentence"][:_LONGEST], "kept": facts["kept"], "data": facts["data"]}
            )
            for row in facts["history"]:
                values = {key: float(value) for key, value in row.items() if key != "steps" and value is not None}
                mlflow.log_metrics(values, step=int(row["steps"]))
            mlflow.log_metrics(dict(_metrics(facts)))
            for name in _FILES:
                if (folder / name).is_file():
                    mlflow.log_artifact(str(folder / name))
    except Exception as error:  # a tracking server may fail in many ways, and none of them is the run's fault
        watcher.say(f"MLflow did not take the run ({type(error).__name__}: {str(error)[:200]})")


def _metrics(facts: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of the test images, by model."""
    for role, scores in facts["scores"].items():
        for key, value in scores.items():
            number = value.get("value") if isinstance(value, dict) and "value" in value else value
            if isinstance(number, (int, float)) and not isinstance(number, bool):
                yield f"test/{role}/{key}", float(number)
    yield "seconds", float(facts["seconds"])
