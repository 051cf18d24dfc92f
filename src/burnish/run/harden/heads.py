"""A run that fitted a head to a frozen network: the head fitted anew, to features of perturbed views too."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from burnish.backbones import head as forms
from burnish.backbones.changing.taps import flat_width
from burnish.backbones.classifier import Classifier
from burnish.backbones.fast.frozen import fold_for_inference
from burnish.choose.familiar import frozen_familiarity
from burnish.data.cache import Rows
from burnish.data.perturbations import perturbed
from burnish.data.views import normalised
from burnish.measure.ood import Familiarity
from burnish.methods.base import Fitted, Head
from burnish.methods.folds import Folds
from burnish.methods.heads import LINEAR_KINDS, HeadChoice, choose_head
from burnish.run.harden.chosen import SHARES, Control, Look, name_of, perturbed_val
from burnish.run.harden.ground import Ground
from burnish.train.features import batched, outputs

# Perturbed views of each image whose features a head is fitted to. 413 hand signs, 87 others perturbed three times: 86.6 % right
# without, 96.6 % with one, 96.9 % with three.
_MOST_VIEWS = 4
_MOST_BYTES = 2**30  # of their features
_UNTIL = 0.35  # of what the clock leaves, for those features; heads and the proof have the rest
_HEADS = 0.15  # the same, for fitting heads
_CROSS_VALIDATING = 0.2  # of what is left then, for answers to images that a head has not seen
_AT_ONCE = 64  # images perturbed before the network sees them


class Heads:
    """Heads on one frozen network: ask for `looks`, then for what was chosen."""

    def __init__(self, ground: Ground) -> None:
        self.ground, self.trunk = ground, _fast_trunk(ground)
        clock = ground.bench.clock
        self._views_until = clock.elapsed() + _UNTIL * clock.left()
        self._heads_until = self._views_until + _HEADS * clock.left()
        self.plain = self._features(ground.material.fitting.plain, "features")
        self.perturbed = self._perturbed()
        views = "one perturbed view" if len(self.perturbed) == 1 else f"{len(self.perturbed)} perturbed views"
        self._note = f"a head on features of each image and of {views} of it"

    @property
    def note(self) -> str:
        """What was done, in words."""
        return self._note

    def looks(self) -> list[Look]:
        """The run's own kind of head, fitted without the validation images, the hardened one, and what lies between.

        The run's own head has learnt from the validation images too, so that they would not tell what it is worth.
        """
        rows, val = self.ground.material.train_rows, self.ground.material.val_rows
        own, hard = self._choice(rows, views=False), self._choice(rows, views=True)
        self.own_how, self.how = own.how, hard.how
        self._own_plain = own.head.logits(self.plain[val])
        self.ground.bench.watcher.stage("validation")
        views = [self._seen(view) for view in perturbed_val(self.ground)]
        mixable = _head_in(self.ground.classifier) is not None and _mixable(own.head, hard.head)
        shares = (0.0, *(SHARES if mixable else ()), 1.0)
        looks = []
        for share in shares:
            head = _between(own.head, hard.head, share)
            logits = np.stack([head.logits(view) for view in views])
            looks.append(Look(name_of(share), share, head.logits(self.plain[val]), logits))
        return looks

    def classifier(self, look: Look) -> Classifier:
        """The classifier with that head, fitted to the train and val images as the run's own was."""
        hard = self.how.fitted(*self._rows(np.arange(len(self.plain)), views=True), classes=self._classes)
        own = _head_in(self.ground.classifier)
        made = _between(own, hard, look.share) if own is not None and _mixable(own, hard) else hard
        return self._with(made)

    def control(self, lose: float) -> Control:
        """A head of the run's own kind, fitted anew to features of plain views alone; asked for after `looks`."""
        made = self.own_how.fitted(*self._rows(np.arange(len(self.plain)), views=False), classes=self._classes)
        return Control(self._with(made), self._own_plain, {"training": "a head fitted anew to plain views alone"})

    def _with(self, head: Fitted) -> Classifier:
        """The run's network under that head."""
        classifier = Classifier(self.ground.classifier.trunk, head.width, head.classes, head=head.form)
        head.fill(classifier.head)
        return classifier.eval()

    def held_out(self, look: Look) -> tuple[np.ndarray, np.ndarray]:
        """Cross-validated answers to the train and val images: of heads that have seen neither them nor their views.

        Of those whose class the others show; and of the val images alone where there is no time for it.
        """
        material, clock = self.ground.material, self.ground.bench.clock
        rows, labels = np.arange(len(self.plain)), material.labels
        folds = Folds.drawn(
            labels, classes=self._classes, seed=self.ground.bench.recipe.seed, together=material.tied(rows)
        )
        logits, began = np.zeros((len(rows), self._classes), np.float32), clock.elapsed()
        until = began + _CROSS_VALIDATING * clock.left()
        for done, held in enumerate(folds.held):
            if done and clock.elapsed() + (len(folds.held) - done) * (clock.elapsed() - began) / done > until:
                return material.val_rows, look.plain
            kept = np.setdiff1d(rows, held)
            own = self.own_how.fitted(*self._rows(kept, views=False), classes=self._classes)
            hard = self.how.fitted(*self._rows(kept, views=True), classes=self._classes)
            logits[held] = _between(own, hard, look.share).logits(self.plain[held])
        counted = np.flatnonzero(folds.counted)
        return counted, logits[counted]

    def familiarity(self, look: Look, classifier: Classifier) -> Familiarity | None:
        """What is like the training images; the network is the same, how sure the head is of them is not."""
        flat = self.plain[:, : flat_width(self.ground.bench.backbone)]
        return frozen_familiarity(flat, look.plain, self.ground.material)

    def answering(self, classifiers: list[Classifier]) -> Callable[[np.ndarray], list[np.ndarray]]:
        """What gives each classifier's logits [b k] of views uint8 [b s s 3]: the network is the same for all, and runs once."""
        heads = [one.head.cpu().eval() for one in classifiers]

        def answers(views: np.ndarray) -> list[np.ndarray]:
            features = torch.from_numpy(self._seen(views))
            with torch.inference_mode():
                return [head(features).numpy() for head in heads]

        return answers

    # ---- features ----------------------------------------------------------------------------------------------------

    @property
    def _classes(self) -> int:
        return len(self.ground.bundle.classes)

    def _seen(self, images: Rows, watch: Callable[[int], None] | None = None) -> np.ndarray:
        """Features float32 [n d]."""
        device, preprocess = self.ground.bench.device, self.ground.bundle.preprocess
        return outputs(self.trunk, batched(images), preprocess=preprocess, device=device, on_progress=watch)

    def _features(self, images: Rows, stage: str) -> np.ndarray:
        self.ground.bench.watcher.stage(stage, total=len(images))
        return self._seen(images, self.ground.bench.watcher.advance)

    def _perturbed(self) -> list[np.ndarray]:
        """Features [n d] of perturbed views of all fitting images, of one view in any case and of more while there is time."""
        fitting, bench = self.ground.material.fitting, self.ground.bench
        ids = np.arange(len(self.plain))  # not the catalogue's numbers, which follow the labels of test images too (P5)
        most = max(1, min(_MOST_VIEWS, math.floor(_MOST_BYTES / max(1, self.plain.nbytes)) - 1))
        found: list[np.ndarray] = []
        while len(found) < most:
            began, view, parts = time.monotonic(), len(found) + 1, []
            bench.watcher.stage("features, perturbed", total=len(ids), detail=f"view {view}")
            for rows in np.array_split(ids, math.ceil(len(ids) / _AT_ONCE)):
                plain = torch.from_numpy(np.ascontiguousarray(fitting.plain[rows]))
                parts.append(self._seen(perturbed(plain, rows, seed=bench.recipe.seed, epoch=view).numpy()))
                bench.watcher.advance(len(rows))
            found.append(np.concatenate(parts))
            if bench.clock.elapsed() + time.monotonic() - began > self._views_until:
                break
        return found

    # ---- heads -------------------------------------------------------------------------------------------------------

    def _rows(self, rows: np.ndarray, *, views: bool) -> tuple[np.ndarray, np.ndarray]:
        """(features, labels) of these fitting images; views: with those of their perturbed views."""
        labels, more = self.ground.material.labels[rows], self.perturbed if views else []
        return np.concatenate([one[rows] for one in (self.plain, *more)]), np.concatenate([labels] * (1 + len(more)))

    def _choice(self, rows: np.ndarray, *, views: bool) -> HeadChoice:
        """The head that cross-validation prefers; all views of an image, and of a group, are left out together."""
        bench, material = self.ground.bench, self.ground.material
        bench.watcher.stage("heads")
        features, labels = self._rows(rows, views=views)
        return choose_head(
            features, labels, classes=self._classes, seed=bench.recipe.seed,
            seconds_left=lambda: self._heads_until - bench.clock.elapsed(), form=_form_of(self.ground.classifier),
            kinds=LINEAR_KINDS if views or not _is_neighbours(self.ground.classifier) else (forms.NEIGHBOURS,),
            together=np.tile(material.sets(rows), 1 + len(self.perturbed)) if views else material.tied(rows),
        )  # fmt: skip


def _fast_trunk(ground: Ground) -> nn.Module:
    """The frozen network in its fast form."""
    trunk = ground.classifier.trunk.to(ground.bench.device)
    example = normalised(ground.material.fitting.plain[:2], ground.bundle.preprocess).to(ground.bench.device)
    return fold_for_inference(trunk, example)


def _form_of(classifier: Classifier) -> str:
    """The form of a head that is fitted in the place of its own."""
    return forms.COSINE if classifier.form == forms.COSINE else forms.LINEAR


def _is_neighbours(classifier: Classifier) -> bool:
    """Whether its head asks the nearest training images; a hardened one is linear, else all views would travel with it."""
    return classifier.form.startswith(forms.NEIGHBOURS)


def _head_in(classifier: Classifier) -> Head | None:
    """The classifier's head as numbers; None where it is not a plain linear one."""
    if classifier.form != forms.LINEAR:
        return None
    state = classifier.head.state_dict()
    return Head(state["weight"].cpu().numpy(), state["bias"].cpu().numpy())


def _mixable(one: Fitted, other: Fitted) -> bool:
    """Whether a weighted mean of their weights is a head, whose logits are the mean of theirs."""
    return isinstance(one, Head) and isinstance(other, Head) and one.form == other.form == forms.LINEAR


def _between(one: Fitted, other: Fitted, share: float) -> Fitted:
    """So far from one head to the other (WiSE-FT, arXiv:2109.01903)."""
    if share in (0.0, 1.0):
        return one if share == 0.0 else other
    assert isinstance(one, Head) and isinstance(other, Head)
    weight, bias = one.weight + share * (other.weight - one.weight), one.bias + share * (other.bias - one.bias)
    return replace(one, weight=weight.astype(np.float32), bias=bias.astype(np.float32))
