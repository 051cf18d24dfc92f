"""burnish as a scikit-learn estimator on image paths: `ImageClassifier().fit(paths, labels).predict(paths)`."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import NotFittedError

from burnish import api
from burnish.data.sources import require_usable
from burnish.data.sources.assemble import class_name
from burnish.data.sources.python import open_paths
from burnish.data.sources.scan import is_utf8
from burnish.errors import DataError, NotEnoughData, shown
from burnish.recipe import parse_budget, recipe_from


class ImageClassifier(ClassifierMixin, BaseEstimator):
    """An image classifier with scikit-learn's interface; X is a list or array [n] of image paths, y their classes.

    The images of X are split by burnish into those it trains on, chooses by and proves on (`test_fraction` of them, so that
    `result_.verdict` means something). out: the run folder; None keeps the run in a temporary one for as long as the estimator
    lives. The other parameters are those of `burnish.fit`.

    After fit: classes_ [k], result_ (a `burnish.Result`), n_features_in_ (1: a path).
    """

    def __init__(
        self,
        *,
        model: str = "efficientnet_lite0",
        method: str = "auto",
        budget: str | float | None = "10m",
        seed: int = 0,
        test_fraction: float = 0.2,
        val_fraction: float = 0.15,
        out: str | None = None,
    ) -> None:
        self.model = model
        self.method = method
        self.budget = budget
        self.seed = seed
        self.test_fraction = test_fraction
        self.val_fraction = val_fraction
        self.out = out

    def fit(self, X: Any, y: Any) -> ImageClassifier:
        """Tune on images X [n] (paths) with classes y [n]."""
        paths, labels = _paths(X), np.asarray(y)
        if labels.ndim != 1 or len(labels) != len(paths):
            raise ValueError(f"y has shape {labels.shape}, expected ({len(paths)},): one class for each path in X")
        texts = _texts(labels)
        if len(set(texts)) < 2:
            raise NotEnoughData(f"y holds {len(set(texts))} class, expected at least two")
        recipe = recipe_from(
            {
                "model": self.model,
                "method": self.method,
                "budget_seconds": parse_budget(self.budget),
                "seed": self.seed,
                "test_fraction": self.test_fraction,
                "val_fraction": self.val_fraction,
            }
        )
        catalog = open_paths(paths, texts)
        if catalog.several:
            raise ValueError("labels in y are divided by bars (a|b): images of several classes are for burnish.fit")
        require_usable(catalog)
        self._home = tempfile.TemporaryDirectory(prefix="burnish-") if self.out is None else None
        out = self.out if self._home is None else os.path.join(self._home.name, "run")
        self.result_ = api.fit_catalog(catalog, recipe, out=str(out), data=f"{len(paths)} paths")
        self.classes_ = np.unique(labels)  # sorted as scikit-learn expects it; the run sorts names
        place = {class_name(name): at for at, name in enumerate(self.result_.classes)}
        self._columns = [place[class_name(str(label))] for label in self.classes_]
        self.n_features_in_ = 1
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """float64 [n k], columns in the order of classes_."""
        if not hasattr(self, "result_"):
            raise NotFittedError("this ImageClassifier is not fitted yet; call fit first")
        return self.result_.predict_proba([str(path) for path in _paths(X)])[:, self._columns]

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each image [n]."""
        return self.classes_[self.predict_proba(X).argmax(1)] if hasattr(self, "classes_") else self.predict_proba(X)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string, tags.input_tags.two_d_array, tags.input_tags.one_d_array = True, False, True
        tags.no_validation = True  # paths are judged when they are opened
        return tags


def _texts(labels: np.ndarray) -> list[str]:
    """Class names of y; ValueError for what is none, or one name written in two ways."""
    texts: dict[str, str] = {}
    for label in labels.tolist():
        fraction = isinstance(label, float) and not math.isfinite(label)
        if label is None or fraction or isinstance(label, bytes) or str(label) == "" or not is_utf8(str(label)):
            raise ValueError(f"y holds {shown(repr(label))[:40]}, expected class names or numbers")
        if texts.setdefault(class_name(str(label)), str(label)) != str(label):
            raise ValueError(
                f"y writes the class {shown(str(label))!r} in two ways (Unicode); bring them into one form"
            )
    return [class_name(str(label)) for label in labels.tolist()]


def _paths(X: Any) -> list[Path]:
    """Absolute paths of X [n] or [n 1]."""
    array = np.asarray(X, dtype=object)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or not all(isinstance(one, (str, os.PathLike)) for one in array):
        raise DataError(f"X has shape {array.shape}, expected a list of image paths [n]")
    if len(array) == 0:
        raise NotEnoughData("X is empty, expected image paths")
    return [Path(os.path.abspath(one)) for one in array]
