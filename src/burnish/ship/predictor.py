"""A tuned model in use: image files in, named classes with probabilities out, in bounded memory."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from PIL import Image
from torch import nn

from burnish.backbones.frozen import fold_for_inference
from burnish.data.contents import png_of
from burnish.data.pixels import decode, enough, view
from burnish.data.sources.scan import scan
from burnish.data.views import normalised
from burnish.errors import DataError, UnreadableImage, shown
from burnish.labels import SEPARATOR
from burnish.labels import probabilities as probabilities_of
from burnish.runtime import cores
from burnish.ship.bundle import Bundle, read_bundle
from burnish.train.features import BATCH, outputs

ImageLike = str | os.PathLike[str] | bytes | Image.Image | np.ndarray | Callable[[], Path | bytes]


@dataclass(frozen=True)
class Prediction:
    """The answer for one image, or why there is none."""

    path: str
    classes: tuple[str, ...]  # names, most probable first
    probabilities: tuple[float, ...]  # of those, each 0 to 1
    problem: str | None = None  # set when the image could not be read; then the other two are empty
    labels: tuple[str, ...] | None = (
        None  # where an image may have several classes: those that are said, most probable first
    )

    @property
    def label(self) -> str | None:
        """The most probable class; where an image may have several, those that are said, as a|b."""
        if self.labels is not None:
            return SEPARATOR.join(self.labels)
        return self.classes[0] if self.classes else None

    @property
    def probability(self) -> float | None:
        """Of the most probable class."""
        return self.probabilities[0] if self.probabilities else None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class Predictor:
    """A package, opened: the same decoder and Preprocess as in the run that made it (P1)."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self._fast: nn.Module | None = None

    @classmethod
    def open(cls, folder: Path) -> Predictor:
        """The predictor of a run folder or a package folder."""
        return cls(read_bundle(folder))

    def predict(self, images: Sequence[ImageLike], *, top: int = 1) -> list[Prediction]:
        """One Prediction an image, in order; an unreadable one carries its `problem`."""
        return list(self.stream(images, top=top))

    def probabilities(self, images: Sequence[ImageLike]) -> np.ndarray:
        """float64 [n k] in the order of `bundle.classes`; raises UnreadableImage on the first bad image."""
        found, problems = self._probabilities(list(images))
        for problem in problems:
            if problem is not None:
                raise problem
        return found

    def stream(
        self,
        images: Sequence[ImageLike],
        *,
        top: int = 1,
        names: Sequence[str] | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> Iterator[Prediction]:
        """Predictions one by one; no more than a batch of pixels is in memory. names: what the images are called."""
        classes = self.bundle.classes
        for start in range(0, len(images), BATCH):
            chunk = images[start : start + BATCH]
            found, problems = self._probabilities(chunk)
            called = [_name(image) for image in chunk] if names is None else names[start : start + BATCH]
            for name, row, problem in zip(called, found, problems, strict=True):
                if problem is not None:
                    yield Prediction(name, (), (), problem.reason)
                    continue
                order = np.argsort(-row, kind="stable")
                best, cuts = order[: max(1, top)], self.bundle.thresholds
                said = None if cuts is None else tuple(classes[index] for index in order if row[index] >= cuts[index])
                chances = tuple(float(row[index]) for index in best)
                yield Prediction(name, tuple(classes[index] for index in best), chances, labels=said)
            if on_progress is not None:
                on_progress(len(chunk))

    def _probabilities(self, images: Sequence[ImageLike]) -> tuple[np.ndarray, list[UnreadableImage | None]]:
        """Probabilities [b k], zero rows for images that could not be read, and the reasons."""
        preprocess = self.bundle.preprocess

        def pixels(image: ImageLike) -> np.ndarray | UnreadableImage:
            try:
                return view(opened(image, at_least=enough(preprocess)), preprocess)
            except UnreadableImage as error:
                return error

        with ThreadPoolExecutor(cores()) as pool:
            read = list(pool.map(pixels, images))
        problems = [one if isinstance(one, UnreadableImage) else None for one in read]
        good = [row for row, problem in enumerate(problems) if problem is None]
        found = np.zeros((len(images), len(self.bundle.classes)))
        if good:
            batch = np.stack([one for one in read if not isinstance(one, UnreadableImage)])
            logits = outputs(self._module(batch), [batch], preprocess=preprocess, device=torch.device("cpu"))
            scaled = logits.astype(np.float64) / self.bundle.temperature
            found[good] = probabilities_of(scaled, several=self.bundle.several)
        return found, problems

    def _module(self, pixels: np.ndarray) -> nn.Module:
        """The fast form of the network, made on first use."""
        if self._fast is None:
            self._fast = fold_for_inference(self.bundle.classifier(), normalised(pixels[:2], self.bundle.preprocess))
        return self._fast


def opened(image: ImageLike, *, at_least: int | None = None) -> Image.Image:
    """The upright RGB image of a path, of the bytes of a file, of a Pillow image or of a uint8 array [h w 3] or [h w]."""
    if callable(image):
        image = image()
    if isinstance(image, bytes):
        return decode(image, at_least=at_least)
    if isinstance(image, (Image.Image, np.ndarray)):
        return decode(png_of(image, "array"), at_least=at_least)
    return decode(Path(image), at_least=at_least)


def expand(paths: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Image files from files and folders (searched through, in order of name); DataError when one is not there."""
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found = [path / name for name in sorted(scan(path).images)]
            if not found:
                raise DataError(f"{shown(str(path))} holds no image files")
            files += found
        elif os.path.lexists(path):
            files.append(path)
        else:
            raise DataError(f"there is no {shown(str(path))}; expected image files or folders")
    return files


def write_csv(file: TextIO, predictions: Iterable[Prediction], *, top: int, several: bool = False) -> None:
    """Rows path,label,probability[,label2,probability2…],problem; text that a spreadsheet would run is quoted (P10).

    several: the classes that are said come first, as a|b in a column labels; label and probability are of the likeliest.
    """
    writer = csv.writer(file, lineterminator="\n")
    header = (
        [name for rank in range(1, top + 1) for name in (f"label{rank}", f"probability{rank}")]
        if top > 1
        else ["label", "probability"]
    )
    writer.writerow(["path", *(["labels"] if several else []), *header, "problem"])
    for prediction in predictions:
        cells: list[str] = [_cell(SEPARATOR.join(prediction.labels or ()))] if several else []
        for rank in range(top):
            known = rank < len(prediction.classes)
            cells += [_cell(prediction.classes[rank]), f"{prediction.probabilities[rank]:.6f}"] if known else ["", ""]
        writer.writerow([_cell(prediction.path), *cells, prediction.problem or ""])


def _cell(text: str) -> str:
    """The text, with an apostrophe before what a spreadsheet would take for a formula."""
    text = text.encode("utf-8", "backslashreplace").decode().replace("\r", "\\r")  # csv leaves a bare one unquoted
    return "'" + text if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def _name(image: ImageLike) -> str:
    if isinstance(image, (str, os.PathLike)):
        return os.fspath(image)
    return f"<{type(image).__name__}>"
