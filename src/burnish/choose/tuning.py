"""The trained stage: a gradient method from the probe's head, on the clock, and the candidates it leaves."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from burnish.backbones.classifier import Classifier
from burnish.backbones.fold import fold_for_inference, fold_trainable
from burnish.choose.material import Bench, Material
from burnish.choose.plan import Plan
from burnish.choose.probing import Probed, plain_at
from burnish.data.cache import Rows
from burnish.data.views import Augmentation, augmented, normalised
from burnish.methods.base import Head, Tunable
from burnish.terms import Preprocess
from burnish.train.averaging import Average, State, between
from burnish.train.features import BATCH, autocast, batched, outputs
from burnish.train.loop import Diverged, Epoch, TrainingImages, tune

_WISE_SHARES = (0.25, 0.5, 0.75)  # of the way from the pretrained weights to the tuned ones


@dataclass(frozen=True)
class Candidate:
    """One set of weights, looked at on the validation images."""

    name: str  # "tuned (EMA)", "tuned (last)", "WiSE 0.50"
    state: State  # of the movable parameters
    accuracy: float  # on val, fraction
    loss: float  # on val, nats
    preprocess: Preprocess  # at the size it was looked at, and is to be used at
    logits: np.ndarray  # float32 [v k]


@dataclass(frozen=True)
class Tuned:
    """The best of the trained candidates, as a classifier."""

    classifier: Classifier
    best: Candidate
    candidates: tuple[Candidate, ...]


class Tuning:
    """The state of a tuning run: iterate it for epochs, then ask for `best`. Only this object changes."""

    def __init__(
        self, tunable: Tunable, made: Plan, probed: Probed, material: Material, bench: Bench
    ) -> None:
        assert made.schedule is not None
        self.tunable, self.plan = tunable, made
        self.material, self.bench, self.flip = material, bench, probed.flip
        tunable.classifier.to(bench.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.start = {name: value.detach().clone() for name, value in tunable.classifier.named_parameters()}
        self.average = Average(tunable)
        self.shell = copy.deepcopy(tunable.classifier)  # evaluates other weights without touching those in training
        self.val_plain: dict[int, Rows] = {}  # by size
        self.diverged: str | None = None
        self.latest: Candidate | None = None  # the moving average after the latest epoch
        self.top: Candidate | None = None  # after the best epoch so far

    def epochs(self) -> Iterator[tuple[Epoch, Candidate]]:
        """Train; after each epoch, what the moving average is worth on the validation images."""
        recipe, fitting, rows = self.bench.recipe, self.material.fitting, self.material.train_rows
        assert self.plan.schedule is not None and fitting.stored is not None
        images = TrainingImages(
            fitting.stored,
            rows,
            fitting.aspects[rows],
            self.material.labels[rows],
            fitting.ids[rows],
            tuple(self.material.catalog.paths[index] for index in fitting.ids[rows]),
        )
        example = normalised(fitting.plain[:2], self.bench.backbone.preprocess).to(self.bench.device)
        module = fold_trainable(self.tunable.classifier, example, inplace=True)
        try:
            for epoch in tune(
                self.tunable,
                images,
                self.plan.schedule,
                module=module,
                average=self.average,
                preprocess=self.bench.backbone.preprocess,
                device=self.bench.device,
                seed=recipe.seed,
                flip=self.flip,
                weight_decay=recipe.weight_decay,
                label_smoothing=recipe.label_smoothing,
                watcher=self.bench.watcher,
            ):
                # At the size of its last steps: a network that has seen 128 px alone fails at 192.
                self.latest = self.looked_at("tuned (EMA)", self.average.state(), epoch.size)
                if self.top is None or self.latest.accuracy >= self.top.accuracy:
                    self.top = replace(self.latest, name=f"epoch {epoch.number} (EMA)")
                yield epoch, self.latest
        except Diverged as error:
            self.diverged = str(error)

    def best(self) -> Tuned:
        """The candidate with the highest validation accuracy; among equals the one with the least loss.

        An epoch before the end counts only when it is better by more than a standard error: of many noisy epochs the
        best looks better than it is, but a run that went wrong late must not lose what it had.
        """
        end = self.average.state()
        size = self.latest.preprocess.size if self.latest else self.plan.final_size
        candidates = [self.latest or self.looked_at("tuned (EMA)", end, size)]
        for share in _WISE_SHARES:
            candidates.append(self.looked_at(f"WiSE {share:.2f}", between(self.start, end, share), size))
        best = max(candidates, key=lambda candidate: (candidate.accuracy, -candidate.loss))
        if self.top is not None and self.top.accuracy > best.accuracy + _standard_error(best):
            candidates.append(self.top)
            best = self.top
        return Tuned(self.classifier(best), best, tuple(candidates))

    def classifier(self, candidate: Candidate) -> Classifier:
        """A classifier of its own with the candidate's weights, in eval mode, on the CPU."""
        made = copy.deepcopy(self.shell)
        made.load_state_dict({**made.state_dict(), **candidate.state})
        return made.eval().cpu()

    def looked_at(self, name: str, state: State, size: int) -> Candidate:
        """The candidate of that name with its validation logits, accuracy and loss at `size` pixels."""
        preprocess = replace(self.bench.backbone.preprocess, size=size)
        if size not in self.val_plain:
            ids = self.material.fitting.ids[self.material.val_rows]
            self.val_plain[size] = plain_at(self.material, ids, preprocess)
        labels = self.material.labels[self.material.val_rows]
        self.shell.load_state_dict({**self.shell.state_dict(), **state})
        logits = logits_of(self.shell, self.val_plain[size], preprocess, self.bench)
        loss = F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels)).item()
        return Candidate(name, state, float((logits.argmax(1) == labels).mean()), loss, preprocess, logits)


def _standard_error(candidate: Candidate) -> float:
    """Of the candidate's accuracy, as if it were the middle of its rule-of-succession range: never zero."""
    n = len(candidate.logits)
    share = (candidate.accuracy * n + 1) / (n + 2)
    return float(np.sqrt(share * (1 - share) / n))


def start_head(probed: Probed, made: Plan, material: Material, bench: Bench) -> Head:
    """The probe's head fitted anew to what the first steps will see: one augmented view a training image, at their size.

    At another size than the probe's the features differ so much that the probe's own head starts at a loss above chance
    (hand signs, head from 224 px: 2.8 nats at 128 px; fitted there: 1.7).
    """
    assert made.schedule is not None
    rows, fitting, stored = material.train_rows, material.fitting, material.fitting.stored
    size = made.schedule.size_at(0.0)
    how, preprocess = Augmentation(size=size, flip=probed.flip), replace(bench.backbone.preprocess, size=size)
    assert stored is not None
    trunk: nn.Module | None = None
    features = []
    for chunk in np.array_split(rows, max(1, len(rows) // BATCH)):
        views = augmented(
            stored[chunk],
            fitting.aspects[chunk],
            fitting.ids[chunk],
            seed=bench.recipe.seed,
            epoch=0,
            how=how,
            preprocess=preprocess,
        ).to(bench.device)
        trunk = trunk or fold_for_inference(bench.backbone.module.to(bench.device), views[:2])
        with torch.inference_mode(), autocast(bench.device):
            features.append(trunk(views).float().cpu().numpy())
    return probed.choice.refitted(
        np.concatenate(features), material.labels[rows], classes=len(material.catalog.classes)
    )


def logits_of(classifier: Classifier, images: Rows, preprocess: Preprocess, bench: Bench) -> np.ndarray:
    """Logits float32 [n k] of plain images, by the fast form of the network."""
    if len(images) == 0:
        return np.zeros((0, classifier.head.out_features), np.float32)
    example = normalised(images[:2], preprocess).to(bench.device)
    fast = fold_for_inference(classifier.to(bench.device), example)
    return outputs(fast, batched(images), preprocess=preprocess, device=bench.device)
