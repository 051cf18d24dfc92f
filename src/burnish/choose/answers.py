"""What a classifier answers to plain images, by the fast form of its network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
from torch import nn

from burnish.backbones.classifier import Both, Classifier
from burnish.backbones.fast.frozen import FastForm, fold_for_inference
from burnish.choose.material import Bench
from burnish.data.cache import Rows
from burnish.data.views import normalised
from burnish.terms import Preprocess
from burnish.train.features import BATCH, batched, outputs

_FOLDED_FROM = 2000  # images on an accelerator, where folding saves little of a pass and takes up to half a second
_BATCHES_AT_ONCE = 64  # whose features are in memory together
Answers = Callable[[Rows], Iterator[tuple[np.ndarray, np.ndarray]]]


def logits_of(classifier: Classifier, images: Rows, preprocess: Preprocess, bench: Bench, fast: FastForm) -> np.ndarray:
    """Logits float32 [n k] of plain images, by the fast form of the network where that pays for making it."""
    if len(images) == 0:
        return np.zeros((0, classifier.classes), np.float32)
    form: nn.Module = classifier.to(bench.device).eval()
    if len(images) > (BATCH if bench.device.type == "cpu" else _FOLDED_FROM):
        form = fast.of(form, normalised(images[:2], preprocess).to(bench.device))
    return outputs(form, batched(images), preprocess=preprocess, device=bench.device)


def answers_in(classifier: Classifier, preprocess: Preprocess, bench: Bench) -> Answers:
    """What gives (logits [b k], features [b d]), float32, of plain images, a thousand at a time, and that time and again: the
    fast form of the network is made once, by the first images; its weights must not change after that.
    """
    fast: nn.Module | None = None

    def answers(images: Rows) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        nonlocal fast
        if not len(images):
            return
        if fast is None:
            example = normalised(images[:2], preprocess).to(bench.device)
            fast = fold_for_inference(Both(classifier.to(bench.device)), example)
        batches = batched(images)
        while len(both := outputs(fast, islice(batches, _BATCHES_AT_ONCE), preprocess=preprocess, device=bench.device)):
            yield both[:, : classifier.classes], both[:, classifier.classes :]

    return answers
