"""Maps of where a run's model looks, as PNG files; and whether images are unlike those it was trained on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from burnish.data.views import normalised
from burnish.disk import plain_disk_errors, replacing
from burnish.errors import NoSuchName, NotEnoughData, RecipeError, UnreadableImage, nearest, shown
from burnish.measure.bootstrap import Ranking, bootstrapped
from burnish.reports.explain import WAYS, Sanity, maps, overlay, png, sanity
from burnish.ship.images import ImageLike, name_of
from burnish.ship.predictor import NO_NUMBER, Predictor
from burnish.train.features import BATCH


@dataclass(frozen=True)
class Explained:
    """One image with its map."""

    path: str
    file: str | None  # the PNG; None when the image could not be read
    target: str | None  # the class that the map speaks for
    probability: float | None  # of it
    problem: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def _lies_in(image: Path, folder: Path) -> bool:
    """Whether the pictures would come to lie among the images, where the next run takes them for such."""
    return image.absolute().parent == folder.absolute() or image.resolve().is_relative_to(folder.resolve())


def explained(
    predictor: Predictor,
    images: Sequence[ImageLike],
    folder: Path,
    *,
    target: str | None = None,
    how: str = "grad-cam",
) -> tuple[list[Explained], Sanity | None]:
    """Write image and overlay side by side into `folder` for each image; (rows, whether the maps tell of the weights).

    target: the class to look for; None: the likeliest of each image. how: a name of WAYS. NoSuchName when the model has no such
    class, ModelError when its network keeps no places apart or, for a rollout, is no vision transformer.
    """
    if how not in WAYS:
        raise RecipeError(f"how is {shown(repr(how))}, expected {' or '.join(WAYS)}; nearest: {nearest(how, WAYS)}")
    if how == "rollout" and target is not None:
        raise RecipeError("rollout shows what is looked at for any class; leave the class out, or use grad-cam")
    bundle, classifier = predictor.bundle, predictor.bundle.classifier()
    if target is not None and target not in bundle.classes:
        raise NoSuchName(f"the model has no class {shown(repr(target))}; nearest: {nearest(target, bundle.classes)}")
    among = next((one for one in images if isinstance(one, Path) and _lies_in(one, folder)), None)
    if among is not None:
        raise RecipeError(
            f"{shown(str(folder))} holds {shown(among.name)}, which is to be explained; name another folder with --out"
        )
    with plain_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    rows: list[Explained] = []
    check: Sanity | None = None
    for start in range(0, len(images), BATCH):
        chunk = images[start : start + BATCH]
        read = predictor.pixels(chunk)
        pixels = [one for one in read if isinstance(one, np.ndarray)]
        pictures: Iterator[tuple[np.ndarray | None, int, float]] = iter(())
        if pixels:
            plain = np.stack(pixels)
            chances, _ = predictor.of_pixels(plain)
            wanted = chances.argmax(1) if target is None else np.full(len(plain), bundle.classes.index(target))
            prepared, targets = normalised(plain, bundle.preprocess), torch.from_numpy(wanted)
            heats = maps(classifier, prepared, targets, way=WAYS[how])
            both = [_beside(*one) for one in zip(plain, heats, chances, strict=True)]
            sound = torch.tensor([one is not None for one in both])
            if check is None and sound.any():
                check = sanity(classifier, prepared[sound], targets[sound], way=WAYS[how])
            pictures = zip(both, wanted.tolist(), chances[np.arange(len(plain)), wanted].tolist(), strict=True)
        for number, (image, one) in enumerate(zip(chunk, read, strict=True), start=start + 1):
            if isinstance(one, UnreadableImage):
                rows.append(Explained(name_of(image), None, None, None, one.reason))
                continue
            picture, label, chance = next(pictures)
            if picture is None:
                rows.append(Explained(name_of(image), None, None, None, NO_NUMBER))
                continue
            file = folder / f"{number:04d}-{_plain(Path(name_of(image)).stem)}-{_plain(bundle.classes[label])}.png"
            # With a draft of its own: two may explain into one folder.
            with plain_disk_errors(file), replacing(file, follows=False) as stream:
                stream.buffer.write(png(picture))
            rows.append(Explained(name_of(image), str(file), bundle.classes[label], chance))
    return rows, check


def _beside(plain: np.ndarray, heat: np.ndarray, chances: np.ndarray) -> np.ndarray | None:
    """An image [s s 3] and, to its right, itself under its map [s s]; None where the map or an answer is not a number."""
    fine = np.isfinite(heat).all() and np.isfinite(chances).all()
    return np.concatenate([plain, overlay(plain, heat)], axis=1) if fine else None


def strangers(predictor: Predictor, inside: Sequence[ImageLike], outside: Sequence[ImageLike]) -> dict[str, Any]:
    """How well the package tells images of another kind (outside) from those of its own (inside); plain values.

    AUROC with a bootstrap interval, and the share of each that is beyond the package's limit. RecipeError when the package holds
    no features, NotEnoughData when either has no readable image.
    """
    familiarity = predictor.bundle.familiarity
    if familiarity is None:
        raise RecipeError(
            "the package cannot tell what is unlike its training images: it was made from too few, or by an older burnish; "
            "make it again with burnish fit"
        )
    scores = [_strangeness(predictor, images) for images in (inside, outside)]
    for one, what in zip(scores, ("the data", "the other data"), strict=True):
        if not len(one):
            raise NotEnoughData(f"{what} holds no readable image")
    every, strange = np.concatenate(scores), np.repeat([False, True], [len(one) for one in scores])
    ranking = Ranking(every, strange)
    found = bootstrapped(lambda weights: {"auroc": ranking.area(weights)}, len(every))["auroc"]
    return {
        "auroc": found.interval().to_json(),
        "inside": {"n": len(scores[0]), "beyond_limit": float((scores[0] > familiarity.limit).mean())},
        "outside": {"n": len(scores[1]), "beyond_limit": float((scores[1] > familiarity.limit).mean())},
    }


def _strangeness(predictor: Predictor, images: Sequence[ImageLike]) -> np.ndarray:
    """Of the images that can be read, float64 [n]."""
    familiarity, found = predictor.bundle.familiarity, []
    assert familiarity is not None
    for start in range(0, len(images), BATCH):
        read = predictor.pixels(images[start : start + BATCH])
        pixels = [one for one in read if isinstance(one, np.ndarray)]
        if pixels:
            probabilities, features = predictor.of_pixels(np.stack(pixels))
            found.append(familiarity.strangeness(features, probabilities))
    return np.concatenate(found) if found else np.zeros(0)


def _plain(text: str) -> str:
    """A name that is safe in a file name everywhere."""
    return re.sub(r"[^\w.-]+", "_", text, flags=re.ASCII)[:60].strip(".") or "_"
