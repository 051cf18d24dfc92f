"""A tuned model in use: image files in, named classes with probabilities out, in bounded memory."""

from __future__ import annotations

import csv
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import Any, TextIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from burnish.backbones.classifier import Both
from burnish.backbones.fast.frozen import fold_for_inference
from burnish.data.pixels import enough, view
from burnish.data.views import normalised
from burnish.disk import expanded
from burnish.errors import BadWeights, UnreadableImage, brief, cell
from burnish.granted import cores
from burnish.labels import SEPARATOR
from burnish.measure.calibration import calibrated
from burnish.ship.answering import LIKELIEST, Answering, Asked, Prediction
from burnish.ship.bundle import Bundle, read_bundle
from burnish.ship.images import ImageLike, Images, listed, name_of, opened
from burnish.train.around import enough_memory, pick_device, settled_torch
from burnish.train.features import at_once, batched, outputs

_USUAL_PIXELS = 512**2  # up to which a batch of images goes through at once
UNKNOWN = "unknown"  # shown in the place of an answer that is declined
NO_NUMBER = "the network's answer to it is not a number"
_MAKING = threading.Lock()


class Predictor:
    """A package, opened: the same decoder and Preprocess as in the run that made it (P1).

    device: what computes, "cpu", "auto", "cuda", …; in float32 on all of them, so that answers differ in their last digits alone.
    """

    def __init__(self, bundle: Bundle, device: str = "cpu") -> None:
        self.bundle, self.device = bundle, pick_device(device)
        together = at_once(self.device)
        self.batch = max(
            1, min(together, together * _USUAL_PIXELS // bundle.preprocess.size**2)
        )  # large images in turn
        self._fast: nn.Module | None = None
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        """What a pickle holds: the package. The fast form of its network is made again, and on the processor: wherever it is
        opened there is one.
        """
        return {**vars(self), "_fast": None, "device": torch.device("cpu")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _process=os.getpid())

    def __repr__(self) -> str:
        bundle = self.bundle
        return f"Predictor({len(bundle.classes):,} classes: {bundle.method} on {bundle.base_model}, {self.device})"

    @classmethod
    def open(cls, folder: str | os.PathLike[str], device: str = "cpu") -> Predictor:
        """The predictor of a run folder or a package folder. RecipeError where the device cannot be used."""
        return cls(read_bundle(expanded(folder)), device)

    def predict(
        self,
        images: Images,
        *,
        top: int = 1,
        reject: float | None = None,
        sets: float | None = None,
        find: Mapping[str, float] | None = None,
    ) -> list[Prediction]:
        """One Prediction an image, in order; an unreadable one carries its `problem`. The settings are those of `Asked`.

        Folders, archives and tables of images are `burnish.predict`'s, which takes a package's folder as well as a run's.

        An array [h w 3], [3 h w] or [h w] is one image; a list, or an array [n h w 3], [n 3 h w] or [n h w], is several. As
        [3 h w] is one in colour, three grey images are given as a list.
        """
        return list(self.stream(images, asked=Asked(top, reject, sets, find or {})))

    def probabilities(self, images: Images) -> NDArray[np.float64]:
        """float64 [n k] in the order of `bundle.classes`, a batch at a time; raises UnreadableImage on the first bad image."""
        rows = [np.zeros((0, len(self.bundle.classes)))]
        for chunk in _chunks(listed(images), self.batch):
            found, _, problems = self._answers(chunk)
            for problem in problems:
                if problem is not None:
                    raise problem
            rows.append(found)
        return np.concatenate(rows)

    def features(self, images: Images) -> NDArray[np.float32]:
        """float32 [n d], what the head sees of each image, a batch at a time; raises UnreadableImage on the first bad one."""
        rows = [np.zeros((0, self.bundle.width), np.float32)]
        for chunk in _chunks(listed(images), self.batch):
            pixels = self.pixels(chunk)
            for one in pixels:
                if isinstance(one, UnreadableImage):
                    raise one
            rows.append(self.of_pixels(np.stack([one for one in pixels if not isinstance(one, UnreadableImage)]))[1])
        return np.concatenate(rows)

    def stream(
        self,
        images: Images,
        *,
        asked: Asked = LIKELIEST,
        names: Sequence[str] | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> Iterator[Prediction]:
        """Predictions one by one; no more than a batch of images is asked for ahead. names: what the images are called.

        RecipeError, at once, when the package cannot say what is asked.
        """
        return self._stream(listed(images), asked.settled(self.bundle), names, on_progress)

    def _stream(
        self,
        images: Iterable[ImageLike],
        answering: Answering,
        names: Sequence[str] | None,
        on_progress: Callable[[int], None] | None,
    ) -> Iterator[Prediction]:
        done = 0
        for chunk in _chunks(images, self.batch):
            found, strange, problems = self._answers(chunk)
            called = [name_of(image) for image in chunk] if names is None else names[done : done + len(chunk)]
            done += len(chunk)
            for at, (name, problem) in enumerate(zip(called, problems, strict=True)):
                if problem is not None:
                    yield Prediction(name, (), (), problem.reason)
                    continue
                yield answering.prediction(name, found[at], strange=None if strange is None else bool(strange[at]))
            if on_progress is not None:
                on_progress(len(chunk))

    def pixels(self, images: Sequence[ImageLike]) -> list[np.ndarray | UnreadableImage]:
        """The plain view uint8 [s s 3] of each image, or why it cannot be read."""
        preprocess = self.bundle.preprocess

        def one(image: ImageLike) -> np.ndarray | UnreadableImage:
            try:
                return view(opened(image, at_least=enough(preprocess)), preprocess)
            except UnreadableImage as error:
                return error

        if len(images) == 1:  # as a web service asks: threads take longer to begin than a photograph to decode
            return [one(images[0])]
        with ThreadPoolExecutor(cores()) as pool:
            return list(pool.map(one, images))

    def of_pixels(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(probabilities float64 [n k], features float32 [n d]) of plain views uint8 [n s s 3]."""
        logits, features = self.logits_of(pixels)
        return calibrated(logits, self.bundle.temperature, several=self.bundle.several), features

    def judged(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """(probabilities float64 [n k], whether each is unlike the training images bool [n]) of plain views uint8 [n s s 3].

        The second is None where the package cannot tell.
        """
        found, features = self.of_pixels(pixels)
        familiarity = self.bundle.familiarity
        return found, None if familiarity is None else familiarity.strange(features, found)

    def logits_of(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(logits float32 [n k], features float32 [n d]) of plain views uint8 [n s s 3]: before the temperature."""
        with settled_torch(cuda=self.device.type == "cuda"), enough_memory(self.bundle.base_model):
            # Forked: the parent's threads are not here, and OpenMP would wait for them for ever.
            if self._process != os.getpid():
                torch.set_num_threads(1)
                self._process = os.getpid()
            told = outputs(
                self._module(pixels), list(batched(pixels)), preprocess=self.bundle.preprocess, device=self.device
            )
        logits, features = np.split(told, [len(self.bundle.classes)], axis=1)
        return logits, features

    def _answers(
        self, images: Sequence[ImageLike]
    ) -> tuple[np.ndarray, np.ndarray | None, list[UnreadableImage | None]]:
        """Probabilities [b k] and strangeness beyond the limit [b], zero for images that could not be read; and the reasons."""
        read = self.pixels(images)
        problems = [one if isinstance(one, UnreadableImage) else None for one in read]
        good = [row for row, problem in enumerate(problems) if problem is None]
        found = np.zeros((len(images), len(self.bundle.classes)))
        strange = None if self.bundle.familiarity is None else np.zeros(len(images), bool)
        if good:
            batch = np.stack([one for one in read if not isinstance(one, UnreadableImage)])
            found[good], unlike = self.judged(batch)
            if strange is not None and unlike is not None:
                strange[good] = unlike
            for row in np.array(good)[~np.isfinite(found[good]).all(1)]:
                problems[row] = UnreadableImage(name_of(images[row]), NO_NUMBER)
        return found, strange, problems

    def _module(self, pixels: np.ndarray) -> nn.Module:
        """The fast form of the network, made on first use, by one thread: tracing changes all modules meanwhile."""
        if self._fast is not None:
            return self._fast
        with _MAKING:
            if self._fast is not None:
                return self._fast
            whole = Both(self.bundle.classifier()).to(self.device)
            example = normalised(pixels[:2], self.bundle.preprocess).to(self.device)
            try:
                self._fast = fold_for_inference(whole, example)
            except (torch.OutOfMemoryError, torch.AcceleratorError):  # of which the package is not to blame
                raise
            except RuntimeError as error:
                raise BadWeights(
                    f"the package's network cannot be run on its images of {self.bundle.preprocess.size} pixels "
                    f"({brief(error)}); it is damaged, make it again with burnish fit"
                ) from None
        return self._fast


def _chunks(images: Iterable[ImageLike], count: int) -> Iterator[list[ImageLike]]:
    """So many at a time."""
    left = iter(images)
    while chunk := list(islice(left, count)):
        yield chunk


def write_csv(
    file: TextIO, predictions: Iterable[Prediction], *, top: int, several: bool = False, with_sets: bool = False
) -> None:
    """Rows path,label,probability[,label2,probability2…],problem; text that a spreadsheet would run is quoted (P10).

    An answer that is declined has the label "unknown" and the reason as its problem; with_sets: a column `set`, as a|b.
    several: the classes that are said come first, as a|b in a column labels; label and probability are of the likeliest.
    """
    writer = csv.writer(file, lineterminator="\n")
    header = (
        [name for rank in range(1, top + 1) for name in (f"label{rank}", f"probability{rank}")]
        if top > 1
        else ["label", "probability"]
    )
    writer.writerow(["path", *(["labels"] if several else []), *header, *(["set"] if with_sets else []), "problem"])
    for prediction in predictions:
        if prediction.declined is not None:
            prediction = replace(prediction, classes=(UNKNOWN, *prediction.classes[1:]))
        cells: list[str] = [cell(SEPARATOR.join(prediction.labels or ()))] if several else []
        for rank in range(top):
            known = rank < len(prediction.classes)
            cells += [cell(prediction.classes[rank]), f"{prediction.probabilities[rank]:.6f}"] if known else ["", ""]
        told = [cell(SEPARATOR.join(prediction.set or ()))] if with_sets else []
        writer.writerow([cell(prediction.path), *cells, *told, prediction.problem or prediction.declined or ""])
