"""A finished model held against damaged images: what befalls photographs, and what is made so that it errs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from burnish.data.catalog import Catalog
from burnish.data.corruptions import CORRUPTIONS, SEVERITIES
from burnish.data.handling import HANDLINGS, STATES, handled_views, whole
from burnish.data.pixels import quiet
from burnish.data.sample import in_turn
from burnish.data.sources import Data, called
from burnish.disk import expanded, write_whole
from burnish.errors import NotEnoughData, RecipeError, UnreadableImage, shown
from burnish.granted import cores
from burnish.measure.attack import CALLS, EPSILONS, FAR, Ball, Target, fgsm, signs, strongest
from burnish.measure.calibration import calibrated
from burnish.measure.intervals import wilson
from burnish.measure.robustness import State, Subjects, Told, state_of
from burnish.measure.verdict import ACCURACY, MEAN_AP
from burnish.measure.withstood import Attacked, Controls, Corrupted, Handled, Robustness, Struck
from burnish.record.learnt import FURTHER, learnt_among
from burnish.reports.robust import BEGINS, csv_of, page_of
from burnish.reports.words import words_in
from burnish.runtime import Watcher
from burnish.ship.answering import Asked
from burnish.ship.predictor import NO_NUMBER, Predictor
from burnish.train.around import enough_memory, settled_torch
from burnish.train.features import BATCH
from burnish.use.evaluating import labelled, numbers_of
from burnish.use.finished import refuse_others
from burnish.watching import Watching, settled_watcher, told_if_slow

SECONDS = 300.0  # for either, where it is not said how many images; a batch is finished
_MOST_BYTES = 2**27  # of views of handled files at once
_FAR_IMAGES = 8  # named rightly, that are tried at FAR at least: of large squares a batch is a single one
_LARGEST = 64.0  # of 255: beyond that an image is another one


def robustness(
    run: str | os.PathLike[str],
    data: Data,
    *,
    corrupted: bool = True,
    attacked: bool = False,
    epsilons: Sequence[float] | None = None,
    most: int | None = None,
    reject: float | None = None,
    seed: int = 0,
    table: str | os.PathLike[str] | None = None,
    page: str | os.PathLike[str] | None = None,
    lang: str = "en",
    watcher: Watching = "auto",
    device: str = "cpu",
    predictor: Predictor | None = None,
) -> Robustness:
    """What is left of a run's score where labelled images are damaged, each paired with itself undamaged.

    corrupted: by what befalls photographs, in five severities (`data.corruptions`), and by what happens to their files before
    the network's square is cut from them (`data.handling`). attacked: by changes of at most `epsilons`,
    of 255 (None: 0.5, 1, 2, 4), in each value, that make the model err (`measure.attack`). Of data with splits the test images
    are taken, else all; of them an even part of each class: `most`, or as many as five minutes allow for either. reject: the
    accuracy wanted of answers, as for `predict`: what is then still answered, and how much of that is right. table, page: files
    to be written, CSV and HTML. lang: "en" or "zh", of the page.
    Errors as for `evaluate`; RecipeError where the package cannot say what is asked, or nothing is.
    """
    words_in(lang)
    asked = _asked(EPSILONS if epsilons is None else epsilons, most)
    if not corrupted and not attacked:
        raise RecipeError("nothing is asked: corrupted and attacked are both False, expected one of them or both")
    for file, begins in ((table, BEGINS.encode()), (page, b"<!doctype html")):
        if file is not None:
            _require_place(expanded(file), begins)
    predictor, watcher = predictor or Predictor.open(expanded(run), device), settled_watcher(watcher)
    bundle = predictor.bundle
    threshold = _threshold(predictor, reject, corrupted=corrupted)
    if attacked and not bundle.several and len(bundle.classes) < 2:
        raise RecipeError("attacked: the model knows one class, and cannot be led to another; leave attacked out")
    with told_if_slow(f"reading {called(data)}", watcher):
        catalog, rows, truth = labelled(data, bundle)
    order = [rows[place] for place in in_turn(catalog, np.array(rows, np.int64), seed=seed)]
    images = _Images(predictor, catalog, order, truth, most, called(data))
    damaged, files = _corrupted(images, threshold, seed, watcher) if corrupted else (None, None)
    struck = _attacked(images, asked, seed, watcher) if attacked else None
    found = Robustness(
        data=called(data),
        score=MEAN_AP if bundle.several else ACCURACY,
        corrupted=damaged,
        files=files,
        attacked=struck,
        named=[{"path": one.path, "reason": one.reason} for one in catalog.named]
        + [{"path": path, "reason": reason} for path, reason in images.named.items()],
        groups=catalog.grouped(rows) is not None,
        reject=reject,
        learnt=learnt_among(expanded(run), catalog, np.array(rows, np.int64), further=bool(bundle.facts.get(FURTHER)))[
            0
        ],
    )
    for file, made in ((table, csv_of), (page, partial(page_of, lang=lang))):
        if file is not None:
            write_whole(expanded(file), made(found), follows=True)
    return found


def _require_place(file: Path, begins: bytes) -> None:
    """RecipeError where a file cannot be written in the end: it is told before minutes of work."""
    refuse_others(file, begins)
    folder = file.absolute().parent
    if file == Path("-"):
        raise RecipeError("the name of the file is -; name a file, what goes to the standard output is --json")
    if file.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        why = "is a folder" if file.is_dir() else f"has no folder {shown(str(folder))} that can be written to"
        raise RecipeError(f"{shown(str(file))} {why}; name another file")


def _asked(epsilons: Sequence[float], most: int | None) -> list[float]:
    """The epsilons, rising, each once; RecipeError for what cannot be meant."""
    wrong = [one for one in epsilons if not 0.0 < one <= _LARGEST]
    if wrong or not epsilons:
        came = f"{wrong[0]:g}" if wrong else "empty"
        raise RecipeError(
            f"epsilon is {came}, expected by how much of 255 each value may change, above 0 and up to {_LARGEST:g}, "
            f"such as {', '.join(f'{one:g}' for one in EPSILONS)}"
        )
    if most is not None and most < 1:
        raise RecipeError(f"most is {most}, expected how many images to ask about, 1 or more")
    return sorted(set(map(float, epsilons)))


def _threshold(predictor: Predictor, reject: float | None, *, corrupted: bool) -> float | None:
    """The confidence from which on answers are given, as for `predict`."""
    if reject is None:
        return None
    if not corrupted:
        raise RecipeError("reject is of corrupted images; ask for those too, or leave reject out")
    return Asked(reject=reject).settled(predictor.bundle).least


@dataclass(frozen=True)
class _Batch:
    """Some of the images: their places in the catalogue, names to draw by, plain views, labels."""

    rows: list[int]
    ids: list[str]
    pixels: np.ndarray  # uint8 [b s s 3]
    labels: np.ndarray  # int64 [b] or bool [b k]


@dataclass
class _Images:
    """The labelled images in an order of which every beginning is an even part, read a batch at a time."""

    predictor: Predictor
    catalog: Catalog
    order: list[int]  # catalogue rows
    truth: dict[int, list[str]]
    most: int | None
    called: str
    named: dict[str, str] = field(default_factory=dict)

    def batches(self, count: int, watcher: Watcher, stage: str) -> Iterator[_Batch]:
        """So many at once, until they or `most` are through, or SECONDS are over where that is not said."""
        asked = self.order if self.most is None else self.order[: self.most]
        watcher.stage(stage, total=len(asked))
        began = time.monotonic()
        for start in range(0, len(asked), count):
            if start and self.most is None and time.monotonic() - began > SECONDS:
                return
            rows = asked[start : start + count]
            if (batch := self._read(rows)) is not None:
                yield batch
            watcher.advance(len(rows))

    def _read(self, rows: list[int]) -> _Batch | None:
        """Those that can be read and answered."""
        found = self.predictor.pixels([partial(self.catalog.image, row) for row in rows])
        for row, one in zip(rows, found, strict=True):
            if isinstance(one, UnreadableImage):
                self.named[self.catalog.paths[row]] = one.reason
        good = [(row, one) for row, one in zip(rows, found, strict=True) if isinstance(one, np.ndarray)]
        if not good:
            return None
        rows, pixels = [row for row, _ in good], np.stack([one for _, one in good])
        sound = [bool(np.isfinite(row).all()) for row in self.predictor.of_pixels(pixels)[0]]
        self.named |= {self.catalog.paths[row]: NO_NUMBER for row, fine in zip(rows, sound, strict=True) if not fine}
        kept = [row for row, fine in zip(rows, sound, strict=True) if fine]
        labels = numbers_of([self.truth[row] for row in kept], self.predictor.bundle)
        return _Batch(kept, [self.catalog.paths[row] for row in kept], pixels[sound], labels) if kept else None

    def subjects(self, batches: Sequence[_Batch]) -> Subjects:
        """Those of some batches; NotEnoughData where there are none."""
        if not batches:
            first = next((f" (first: {shown(path)}: {shown(why)})" for path, why in self.named.items()), "")
            raise NotEnoughData(f"{shown(self.called)}: none of its {len(self.order)} images could be read{first}")
        rows = [row for batch in batches for row in batch.rows]
        return Subjects(np.concatenate([batch.labels for batch in batches]), self.catalog.grouped(rows))


def _corrupted(images: _Images, threshold: float | None, seed: int, watcher: Watcher) -> tuple[Corrupted, Handled]:
    """Every corruption at every severity, and all that happens to files, of a batch of images after the other."""
    began, batches, files = time.monotonic(), list[_Batch](), _Files(images, seed)
    clean, parts = list[Told](), {(name, severity): list[Told]() for name in CORRUPTIONS for severity in SEVERITIES}
    example: np.ndarray | None = None
    for batch in images.batches(BATCH, watcher, "corrupted images"):
        example = batch.pixels[0].copy() if example is None else example
        clean += _told(images.predictor, [batch.pixels], batch.labels)
        for name, one in CORRUPTIONS.items():
            damaged = [one(batch.pixels, batch.ids, severity=severity, seed=seed) for severity in SEVERITIES]
            for severity, told in zip(SEVERITIES, _told(images.predictor, damaged, batch.labels), strict=True):
                parts[name, severity].append(told)
        files.add(batch)
        batches.append(_without_pixels(batch))
    subjects = images.subjects(batches)
    assert example is not None
    before, after = Told.joined(clean), {key: Told.joined(told) for key, told in parts.items()}
    watcher.stage("intervals")

    def state(found: Sequence[Told]) -> State:
        return state_of(found, subjects, clean=before, threshold=threshold)

    damaged = Corrupted(
        of=len(images.order),
        clean=state_of([before], subjects, threshold=threshold),
        states={key: state([told]) for key, told in after.items()},
        kinds={name: state([after[name, severity] for severity in SEVERITIES]) for name in CORRUPTIONS},
        mean=state(list(after.values())),
        threshold=threshold,
        seconds=time.monotonic() - began,
        example=example,
    )
    return damaged, files.handled(state)


@dataclass
class _Files:
    """What the packaged model says of files that were handled otherwise, a batch at a time."""

    images: _Images
    seed: int
    parts: dict[tuple[str, float], list[Told]] = field(default_factory=lambda: {one: [] for one in STATES})
    examples: np.ndarray | None = None

    def add(self, batch: _Batch) -> None:
        """Each file is decoded once; of large squares a few images at a time, so that memory stays bounded."""
        some = max(1, _MOST_BYTES // (len(STATES) * batch.pixels[0].nbytes))
        with ThreadPoolExecutor(cores()) as pool, quiet():
            for at in range(0, len(batch.rows), some):
                views = np.stack(list(pool.map(self._views, batch.rows[at : at + some])), axis=1)
                self.examples = views[:, 0].copy() if self.examples is None else self.examples
                told = _told(self.images.predictor, list(views), batch.labels[at : at + some])
                for one, said in zip(STATES, told, strict=True):
                    self.parts[one].append(said)

    def _views(self, row: int) -> np.ndarray:
        """uint8 [states s s 3] of the file at a row of the catalogue."""
        path, preprocess = self.images.catalog.paths[row], self.images.predictor.bundle.preprocess
        picture = whole(self.images.catalog.image(row), path, white=preprocess.white)
        return handled_views(picture, path, preprocess, seed=self.seed)

    def handled(self, state: Callable[[Sequence[Told]], State]) -> Handled:
        """The scores; state: of what was said in one state or several."""
        told = {one: Told.joined(parts) for one, parts in self.parts.items()}
        assert self.examples is not None
        return Handled(
            states={one: state([said]) for one, said in told.items()},
            kinds={name: state([told[name, figure] for figure in one.figures]) for name, one in HANDLINGS.items()},
            examples=self.examples,
        )


def _told(predictor: Predictor, states: Sequence[np.ndarray], labels: np.ndarray) -> list[Told]:
    """What the packaged model says of the same images in several states, plain views uint8 [b s s 3] each.

    Together, for whether 16 images are unfamiliar takes as long as whether 80 are (heads on all depths: 0.2 s, the network 0.15).
    """
    bundle = predictor.bundle
    probabilities, strange = predictor.judged(np.concatenate(states))
    cut = None if bundle.thresholds is None else np.array(bundle.thresholds)
    parts = [slice(at * len(labels), (at + 1) * len(labels)) for at in range(len(states))]
    return [Told.of(probabilities[one], labels, None if strange is None else strange[one], cut) for one in parts]


def _without_pixels(batch: _Batch) -> _Batch:
    """So that memory stays bounded; no view of the pixels, which would hold them."""
    return _Batch(batch.rows, batch.ids, np.zeros((0, 0, 0, 3), np.uint8), batch.labels)


@dataclass
class _Struck:
    """What the plain network says of each kind of points at one epsilon, a batch at a time."""

    noise: list[Told] = field(default_factory=list)
    fgsm: list[Told] = field(default_factory=list)
    apgd: list[Told] = field(default_factory=list)


def _attacked(images: _Images, epsilons: list[float], seed: int, watcher: Watcher) -> Attacked:
    """Every epsilon, of a batch of images after the other; gradients go through the plain network, not its folded form."""
    began, bundle, batches = time.monotonic(), images.predictor.bundle, list[_Batch]()
    with settled_torch(cuda=images.predictor.device.type == "cuda"), enough_memory(bundle.base_model):
        target = Target(bundle.classifier(), bundle.preprocess, images.predictor.device)
        clean, struck, flat = list[Told](), {one: _Struck() for one in epsilons}, 0
        tried, withstood, wavering = 0, 0, 0
        example: tuple[np.ndarray, np.ndarray] | None = None
        for batch in images.batches(target.at_once, watcher, "attacked images"):
            points, labels = _tensors(batch, target)
            if drawing := int(target.wavers(points).sum()):
                wavering, target = wavering + drawing, target.over(CALLS)
            flat += int((target.look(points, labels)[2].abs().amax((1, 2, 3)) == 0).sum())
            clean.append(_said(target, points, batch, images.predictor))
            worst = _strike(target, points, labels, batch, struck, images.predictor, seed)
            if example is None:
                example = batch.pixels[0].copy(), worst[0].round().to(torch.uint8).cpu().numpy()
            if not bundle.several and tried < _FAR_IMAGES:
                of, stood = _far(target, points, labels, batch, seed)
                tried, withstood = tried + of, withstood + stood
            batches.append(_without_pixels(batch))
    subjects, before = images.subjects(batches), Told.joined(clean)
    assert example is not None
    rows = tuple(_row(one, told, before, subjects) for one, told in struck.items())
    return Attacked(
        of=len(images.order),
        clean=state_of([before], subjects),
        rows=rows,
        controls=Controls(
            flat=wilson(flat, len(before.right)),
            far=None if bundle.several else wilson(withstood, tried),
            by_less=0 if subjects.several else _by_less(struck[epsilons[-1]], before),
            wavering=wavering,
        ),
        seconds=time.monotonic() - began,
        example=example,
    )


def _tensors(batch: _Batch, target: Target) -> tuple[torch.Tensor, torch.Tensor]:
    """(points [b s s 3], labels [b] or [b k]) where the network is."""
    points = torch.from_numpy(batch.pixels).to(target.device).float()
    return points, torch.from_numpy(batch.labels).to(target.device)


def _said(target: Target, points: torch.Tensor, batch: _Batch, predictor: Predictor) -> Told:
    """What the plain network says of points [b s s 3]."""
    bundle = predictor.bundle
    chances = calibrated(target.logits(points).cpu().numpy(), bundle.temperature, several=bundle.several)
    return Told.of(chances, batch.labels, cut=None if bundle.thresholds is None else np.array(bundle.thresholds))


def _strike(
    target: Target, points: torch.Tensor, labels: torch.Tensor, batch: _Batch, struck: dict[float, _Struck],
    predictor: Predictor, seed: int,
) -> torch.Tensor:  # fmt: skip
    """All attacks on one batch, added to `struck`; the strongest points at the largest epsilon."""
    worst = points
    for epsilon, told in struck.items():
        ball = Ball(points, epsilon)
        worst = strongest(target, ball, labels, batch.ids, worst, seed=seed)
        told.noise.append(_said(target, signs(ball, batch.ids, seed=seed), batch, predictor))
        told.fgsm.append(_said(target, fgsm(target, ball, labels), batch, predictor))
        told.apgd.append(_said(target, worst, batch, predictor))
    return worst


def _far(target: Target, points: torch.Tensor, labels: torch.Tensor, batch: _Batch, seed: int) -> tuple[int, int]:
    """(images of a batch that are named rightly, those of them which are at FAR too)."""
    sound = torch.nonzero(target.loss(points, labels) < 0.0)[:, 0]
    if not len(sound):
        return 0, 0
    ids = [batch.ids[row] for row in sound.tolist()]
    ball = Ball(points[sound], FAR)
    found = strongest(target, ball, labels[sound], ids, points[sound], seed=seed)
    return len(sound), int((target.loss(found, labels[sound]) <= 0.0).sum())


def _row(epsilon: float, struck: _Struck, clean: Told, subjects: Subjects) -> Struck:
    """The scores at one epsilon."""
    noise, fgsm, climb = (Told.joined(one) for one in (struck.noise, struck.fgsm, struck.apgd))
    every = climb if subjects.several else replace(climb, right=noise.right & fgsm.right & climb.right)
    states = [state_of([one], subjects, clean=clean) for one in (noise, fgsm, climb, every)]
    return Struck(epsilon, Ball(torch.empty(0), epsilon).whole, *states)


def _by_less(struck: _Struck, clean: Told) -> int:
    """Images that noise or a single step loses and the climb does not."""
    noise, fgsm, climb = (Told.joined(one).right for one in (struck.noise, struck.fgsm, struck.apgd))
    return int((clean.right & climb & ~(noise & fgsm)).sum())
