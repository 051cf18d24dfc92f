"""burnish as a scikit-learn estimator on images: `ImageClassifier().fit(images, labels).predict(images)`."""

from __future__ import annotations

import inspect
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, Unpack

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import NotFittedError

from burnish import api
from burnish.data.sources import require_usable
from burnish.data.sources.assemble import class_name
from burnish.data.sources.python import open_python
from burnish.data.sources.scan import is_utf8
from burnish.errors import DataError, NotEnoughData, shown
from burnish.recipe import Recipe, Settings, parse_budget, recipe_from, unknown_among
from burnish.runtime import Watcher

_SETTINGS = [field for field in fields(Recipe) if field.name != "budget_seconds"]
_IMAGES = "paths [n], or images: arrays [n h w 3] or [n h w] of uint8 or of floats from 0 to 1, or a list of them or of Pillow's"


class ImageClassifier(ClassifierMixin, BaseEstimator):
    """An image classifier with scikit-learn's interface; X holds n images, or their paths, and y [n] their classes.

    X: a list or array of paths, an array [n h w 3], [n 3 h w] or [n h w] of uint8 or of floats from 0 to 1, or a list of such
    images or of Pillow's. They are split by burnish into those it trains on, chooses by and proves on (`test_fraction` of them,
    so that `result_.verdict` means something). The parameters are those of `burnish.fit` but quarantine, by the same
    names; nobody watches by default. out: the run folder; None keeps the run in a temporary one for as long as the estimator
    lives.

    After fit: classes_ [k], result_ (a `burnish.Result`), n_features_in_ (1: an image).
    """

    def __init__(
        self,
        *,
        budget: str | float | None = "10m",
        out: str | os.PathLike[str] | None = None,
        cache: str | os.PathLike[str] = "auto",
        workers: int | Literal["auto"] = "auto",
        strict: bool = False,
        watcher: Watcher | None = None,
        **settings: Unpack[Settings],
    ) -> None:
        self.budget, self.out, self.cache = budget, out, cache
        self.workers: int | Literal["auto"] = workers
        self.strict, self.watcher = strict, watcher
        known = {field.name: field.default for field in _SETTINGS}
        if unknown := unknown_among(settings, known):
            raise TypeError(f"ImageClassifier: {unknown}")
        for name, usual in known.items():
            setattr(self, name, settings.get(name, usual))

    def fit(self, X: Any, y: Any) -> ImageClassifier:
        """Tune on images X [n] with classes y [n]."""
        images, labels = _images(X), np.asarray(y)
        if labels.ndim != 1 or len(labels) != len(images):
            raise ValueError(f"y has shape {labels.shape}, expected ({len(images)},): one class for each image in X")
        texts = _texts(labels)
        if len(set(texts)) < 2:
            raise NotEnoughData(f"y holds {len(set(texts))} class, expected at least two")
        settings = {field.name: getattr(self, field.name) for field in _SETTINGS}
        recipe = recipe_from({**settings, "budget_seconds": parse_budget(self.budget)})
        catalog = open_python((images, texts))
        if catalog.several:
            raise ValueError("labels in y are divided by bars (a|b): images of several classes are for burnish.fit")
        require_usable(catalog)
        self._home = tempfile.TemporaryDirectory(prefix="burnish-") if self.out is None else None
        out = self.out if self._home is None else os.path.join(self._home.name, "run")
        self.result_ = api.fit_catalog(
            catalog, recipe, out=str(out), data=f"{len(images)} images", again=f"{self!r}.fit(X, y)", cache=self.cache,
            workers=self.workers, strict=self.strict, watcher=self.watcher,
        )  # fmt: skip
        self.classes_ = np.unique(labels)  # sorted as scikit-learn expects it; the run sorts names
        place = {class_name(name): at for at, name in enumerate(self.result_.classes)}
        self._columns = [place[class_name(str(label))] for label in self.classes_]
        self.n_features_in_ = 1
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """float64 [n k], columns in the order of classes_."""
        if not hasattr(self, "result_"):
            raise NotFittedError("this ImageClassifier is not fitted yet; call fit first")
        return self.result_.predict_proba(list(_images(X)))[:, self._columns]

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each image [n]."""
        return self.classes_[self.predict_proba(X).argmax(1)] if hasattr(self, "classes_") else self.predict_proba(X)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string, tags.input_tags.two_d_array, tags.input_tags.one_d_array = True, False, True
        tags.input_tags.three_d_array = True
        tags.no_validation = True  # images are judged when they are opened
        return tags


def _with_all_settings(init: Any) -> inspect.Signature:
    """The signature by which scikit-learn knows an estimator's parameters, with each of `Settings` by its name."""
    own = [one for one in inspect.signature(init).parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    more = [inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default) for one in _SETTINGS]
    return inspect.Signature([*own, *more])


ImageClassifier.__init__.__signature__ = _with_all_settings(ImageClassifier.__init__)  # pyright: ignore[reportFunctionMemberAccess]


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


def _images(X: Any) -> Sequence[Any]:
    """The images of X one by one, paths as absolute ones."""
    X = X.to_numpy() if hasattr(X, "iloc") else X
    shape = tuple(getattr(X, "shape", ()))
    if len(shape) == 3 and shape[2] in (3, 4):
        raise ValueError(f"X has shape {shape}, as one image has, expected {_IMAGES}; give X[None]")
    if len(shape) == 2 and shape[1] == 1:  # a column of paths
        X, shape = X[:, 0], shape[:1]
    listed = len(shape) == 1 or isinstance(X, (list, tuple))
    if (listed or len(shape) > 2) and len(X) == 0:
        raise NotEnoughData("X is empty, expected images or their paths")
    if len(shape) > 2:
        return X
    if not listed or not all(_may_be_image(one) for one in X):
        more = "; rows of pixels become images by X.reshape(len(X), height, width)" if shape[1:] > (3,) else ""
        raise DataError(f"X {f'has shape {shape}' if shape else f'is a {type(X).__name__}'}, expected {_IMAGES}{more}")
    return [Path(os.path.abspath(one)) if isinstance(one, (str, os.PathLike)) else one for one in X]


def _may_be_image(one: Any) -> bool:
    """Whether it is a path, the bytes of a file, or has the two sides of an image."""
    return isinstance(one, (str, os.PathLike, bytes, Image.Image)) or len(getattr(one, "shape", ())) > 1
