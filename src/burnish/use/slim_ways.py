"""How a finished model can be made cheaper, and the cheapest of those ways that loses too little to matter.

What is judged is always answers to images that the judged part has not learnt from. Of a tuned model these are the run's
validation images. A frozen head learnt from those too: so each way has the head fitted anew to what its own trunk gives, and
its cross-validated answers are compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from burnish.backbones.changing import taps
from burnish.backbones.head import LINEAR, NEIGHBOURS
from burnish.backbones.head import made as made_head
from burnish.choose.familiar import FEWEST
from burnish.data.catalog import Catalog, Splits
from burnish.errors import NotEnoughData, UnreadableImage
from burnish.labels import cross_entropies, leading, numbered, right
from burnish.measure.calibration import calibrated
from burnish.measure.cost import interleaved
from burnish.measure.held_out import HeldOut
from burnish.measure.kept import Step, may_take
from burnish.measure.ood import Familiarity, entropies
from burnish.measure.reading import Calibrated
from burnish.measure.several import thresholds_for
from burnish.methods.heads import HeadChoice, choose_head
from burnish.methods.pooled import pooled
from burnish.methods.probe import heads_of
from burnish.methods.table import method_named
from burnish.runtime import Watcher, evenly
from burnish.ship.bundle import Bundle
from burnish.ship.predictor import Predictor
from burnish.ship.slim_weights import BYTE, HALF, packed, unpacked
from burnish.train.features import BATCH
from burnish.use.own import is_frozen

_MOST_JUDGED = 2000  # validation images: they rule out a loss of 0.2 points where all are right
_MOST_FAMILIAR = 1000  # training images that tell what is familiar
_TOGETHER = 64  # images that are decoded at a time
_KEPT_BYTES = 2**29  # of plain views: 3,500 images of 224 px
_STEP, _LEAST_SIDE, _LEAST_SHARE = 32, 32, 0.4  # pixels, pixels, of the size that the run saw
_FASTER = 0.95  # of the time that a smaller size may take: else it would cost accuracy for nothing


@dataclass(frozen=True, eq=False)
class Tried:
    """One way, ready to be used, and what it answered to the images that judge it."""

    bundle: Bundle
    right: np.ndarray  # bool [n], or of several classes an image float64 [n], 0 to 1
    losses: np.ndarray  # float64 [n], nats
    groups: np.ndarray | None  # int64 [n]
    features: np.ndarray = field(repr=False)  # float32 [m d], of the rows that were asked
    unsure: np.ndarray | None = None  # float64 [v], entropies of its answers to the validation images


@dataclass(frozen=True, eq=False)
class Chosen:
    """The way that was taken, and what was found of each that was tried."""

    tried: Tried
    original: Tried  # the same network in float32 at its own size, judged alike
    steps: list[dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Asking:
    """The images that the ways are asked about, and how."""

    catalog: Catalog
    splits: Splits
    watcher: Watcher
    seed: int = 0
    # The last plain views that were asked for and fit in memory: several ways see images of one size
    _views: dict[Any, np.ndarray] = field(default_factory=dict, repr=False)

    def answered(self, bundle: Bundle, rows: np.ndarray, stage: str) -> tuple[np.ndarray, np.ndarray]:
        """(logits float64 [n k], features float32 [n d]) of these entries, from their files (P1); or UnreadableImage."""
        predictor, logits, features = Predictor(bundle), [], []
        for pixels in self.seen(bundle, rows, stage):
            told = predictor.logits_of(pixels)
            logits.append(told[0].astype(np.float64))
            features.append(told[1])
        return np.concatenate(logits), np.concatenate(features)

    def seen(self, bundle: Bundle, rows: np.ndarray, stage: str) -> Iterator[np.ndarray]:
        """Plain views uint8 [b s s 3] of these entries, some at a time; UnreadableImage for the first that cannot be read."""
        self.watcher.stage(stage, total=len(rows))
        preprocess = bundle.preprocess
        key, kept = (preprocess, rows.tobytes()), list[np.ndarray]()
        held = self._views.get(key)
        keeps = held is None and 3 * len(rows) * preprocess.size**2 <= _KEPT_BYTES
        for start in range(0, len(rows), _TOGETHER):
            part = rows[start : start + _TOGETHER]
            pixels = self._read(bundle, part) if held is None else held[start : start + _TOGETHER]
            kept += [pixels] if keeps else []
            yield pixels
            self.watcher.advance(len(part))
        if keeps:
            self._views.clear()
            self._views[key] = np.concatenate(kept)

    def _read(self, bundle: Bundle, rows: np.ndarray) -> np.ndarray:
        found = Predictor(bundle).pixels([partial(self.catalog.image, int(row)) for row in rows])
        for row, one in zip(rows, found, strict=True):
            if isinstance(one, UnreadableImage):
                raise UnreadableImage(self.catalog.name(int(row)), one.reason)
        return np.stack([one for one in found if not isinstance(one, UnreadableImage)])


def judged_rows(bundle: Bundle, splits: Splits) -> np.ndarray:
    """The entries that ways are judged by, int64; NotEnoughData where there are none."""
    rows = splits.fitting if is_frozen(bundle) else splits.val[evenly(len(splits.val), _MOST_JUDGED)]
    if not len(rows):
        raise NotEnoughData(
            "the run has no validation images, so that nothing tells which way of making its model smaller loses too much; "
            "fit again with --val-fraction 0.2"
        )
    return rows


def choose(bundle: Bundle, asking: Asking, *, lose: float) -> Chosen:
    """The cheapest way that may be taken: weights in the fewest bytes first, then smaller images, from the largest on.

    Of those up to the first that is refused, so that none is tried until one passes by luck. lose: fraction.
    """
    rows, size = judged_rows(bundle, asking.splits), bundle.preprocess.size
    way: Callable[[Bundle, np.ndarray, Asking], Tried] = _headed if is_frozen(bundle) else _calibrated
    original = way(bundle, rows, asking)
    best, steps = original, list[dict[str, Any]]()

    def taken(candidate: Bundle, more: dict[str, Any]) -> Tried | None:
        tried = way(candidate, rows, asking)
        pairs = (original.right, tried.right), (original.losses, tried.losses)
        found: Step = may_take(*pairs, lose=lose, groups=original.groups)
        steps.append({**_told(candidate), **more, **found.to_json()})
        asking.watcher.say(f"{_named(candidate)}: {'taken' if found.allowed else 'not taken'}, {found.why}")
        return tried if found.allowed else None

    for stored in (BYTE, HALF):
        tried = taken(stored_so(bundle, stored), {})
        if tried is not None:
            best = tried
            break
    for smaller in sizes_below(size):
        candidate = at_size(stored_so(bundle, best.bundle.stored), smaller)
        faster, refused = _faster(bundle, candidate)
        if refused:
            steps.append({**_told(candidate), **faster, "allowed": False, "why": refused})
            asking.watcher.say(f"{_named(candidate)}: not taken, {refused}")
            continue
        tried = taken(candidate, faster)
        if tried is None:
            break
        best = tried
    return Chosen(best, original, steps)


def stored_so(bundle: Bundle, stored: str) -> Bundle:
    """The package with weights that are stored in fewer bytes, as they are read back."""
    return replace(bundle, state=unpacked(packed(bundle.state, stored)), stored=stored)


def at_size(bundle: Bundle, size: int) -> Bundle:
    """The package with images of another size, in pixels."""
    return replace(bundle, preprocess=replace(bundle.preprocess, size=size))


def sizes_below(size: int) -> list[int]:
    """Smaller sizes that are worth a try, in pixels, the largest first: multiples of the stride of the usual trunks."""
    least = max(_LEAST_SIDE, math.ceil(_LEAST_SHARE * size))
    return [side for side in range(size - 1, least - 1, -1) if side % _STEP == 0]


def _told(bundle: Bundle) -> dict[str, Any]:
    return {"size": bundle.preprocess.size, "weights": bundle.stored}


def _named(bundle: Bundle) -> str:
    return f"{bundle.stored} weights at {bundle.preprocess.size} px"


def _faster(bundle: Bundle, smaller: Bundle) -> tuple[dict[str, Any], str]:
    """(milliseconds of both an image, why the smaller size is none to try): what it gains is measured, not assumed."""
    size, before = smaller.preprocess.size, bundle.preprocess.size
    try:
        with torch.no_grad():
            smaller.classifier()(torch.zeros(1, 3, size, size))
    except Exception:  # whatever a foreign forward pass says
        return {}, f"the network takes no images of {size} px"
    one, other = Predictor(bundle), Predictor(smaller)
    grey = {side: np.full((BATCH, side, side, 3), 127, np.uint8) for side in (size, before)}
    found = interleaved(
        {"original": lambda: one.logits_of(grey[before]), "smaller": lambda: other.logits_of(grey[size])}, seconds=0.5
    )
    least = {name: 1e3 * float(found[name].min()) / BATCH for name in found}
    told = {"milliseconds": least["smaller"], "milliseconds_original": least["original"]}
    if least["smaller"] > _FASTER * least["original"]:
        return told, f"{least['smaller']:.1f} ms an image here, {BATCH} together; the original {least['original']:.1f}"
    return told, ""


# ---- a tuned network -------------------------------------------------------------------------------------------------


def _calibrated(bundle: Bundle, rows: np.ndarray, asking: Asking) -> Tried:
    """The package with temperature, thresholds and held-out answers from the validation images."""
    labels, groups = asking.catalog.labels[rows], asking.catalog.grouped(rows)
    logits, features = asking.answered(bundle, rows, f"validation, {_named(bundle)}")
    read = Calibrated.of(logits, labels, groups)
    ready = replace(bundle, temperature=read.temperature, held_out=read.held_out, thresholds=read.kept_thresholds)
    hits = right(read.probabilities, labels, read.cut)
    unsure = None if bundle.several else entropies(read.probabilities)
    return Tried(ready, hits, cross_entropies(logits / read.temperature, labels), groups, features, unsure)


# ---- a frozen one ----------------------------------------------------------------------------------------------------


def _headed(bundle: Bundle, rows: np.ndarray, asking: Asking) -> Tried:
    """The package with its head fitted anew to what its trunk gives now, as `fit` does, and what is cross-validated of it."""
    catalog, labels = asking.catalog, asking.catalog.labels[rows]
    _, features = asking.answered(bundle, rows, f"features, {_named(bundle)}")
    together = None if catalog.groups is None else numbered([catalog.groups[row] for row in rows])
    asking.watcher.stage(f"heads, {_named(bundle)}")
    choice = _head_for(bundle, features, labels, together, asking)
    head = made_head(choice.head.form, bundle.width, len(bundle.classes))
    choice.head.fill(head)
    state = {name: one for name, one in bundle.state.items() if not name.startswith("head.")}
    state |= {f"head.{name}": one.detach().clone() for name, one in head.state_dict().items()}
    known, groups = choice.probabilities, catalog.grouped(rows)
    assert known is not None and choice.judged is not None and choice.refit is not None
    held_out, cut = None, None
    if bundle.several:
        cut = tuple(map(float, thresholds_for(known, labels)))
    elif choice.asked:
        judged = choice.judged
        held_out = HeldOut.of(known[judged], labels[judged], catalog.grouped(rows[judged]))
    ready = replace(
        stored_so(replace(bundle, state=state, head=choice.head.form), bundle.stored),
        temperature=1.0, held_out=held_out, thresholds=cut,
    )  # fmt: skip
    val = np.isin(rows, asking.splits.val)
    unsure = None
    if val.any() and not val.all() and not bundle.several:
        unsure = entropies(calibrated(choice.refit(np.flatnonzero(~val)).logits(features[val])))
    return Tried(ready, choice.right, -np.log(np.maximum(choice.told, 1e-12)), groups, features, unsure)


def _head_for(
    bundle: Bundle, features: np.ndarray, labels: np.ndarray, together: np.ndarray | None, asking: Asking
) -> HeadChoice:
    """The head that cross-validation prefers, of the kinds that the run's method has; of all depths averaged with the last's."""
    kinds, keep = heads_of(method_named(bundle.method))

    def chosen(seen: np.ndarray) -> HeadChoice:
        return choose_head(
            seen, labels, classes=len(bundle.classes), seed=asking.seed, seconds_left=lambda: math.inf,
            form=LINEAR if bundle.head.startswith(NEIGHBOURS) else bundle.head, kinds=kinds, keep=keep, together=together,
        )  # fmt: skip

    deep, own = chosen(features), _own_width(bundle)
    if own == bundle.width or keep < 1.0:
        return deep
    both = pooled(chosen(features[:, :own]), deep, labels)
    return deep if both is None else both.by_groups(together)


def _own_width(bundle: Bundle) -> int:
    """How many of the features are those of the last layer, which come first."""
    trunk = bundle.classifier().trunk
    try:
        tap = trunk.get_submodule("taps")
    except AttributeError:
        return bundle.width
    if not isinstance(tap, taps.Taps):
        return bundle.width
    widths: list[int] = []
    handle = tap.register_forward_pre_hook(lambda _, given: widths.append(given[0].shape[1]))
    with torch.no_grad():
        trunk(torch.zeros(1, 3, bundle.preprocess.size, bundle.preprocess.size))
    handle.remove()
    return widths[0]


# ---- what is familiar ------------------------------------------------------------------------------------------------


def with_familiarity(tried: Tried, asking: Asking) -> tuple[Bundle, str]:
    """(the package with what is familiar told anew, why it cannot be told: ""): of features that the run's are no longer.

    From training images, with the limit that validation images set, as `fit` has it.
    """
    bundle, splits = tried.bundle, asking.splits
    if bundle.familiarity is None:
        return bundle, ""
    train = splits.train[evenly(len(splits.train), _MOST_FAMILIAR)]
    if len(splits.val) < FEWEST // 2 or len(train) < FEWEST:
        few = f"{len(train)} training and {len(splits.val)} validation images are too few to say anew what is familiar"
        return replace(bundle, familiarity=None), few
    width = len(bundle.familiarity.mean)
    if is_frozen(bundle):
        place = {int(row): at for at, row in enumerate(splits.fitting)}
        ours, others = (_rows_of(tried.features, rows, place) for rows in (train, splits.val))
    else:
        ours, others = asking.answered(bundle, train, "what is familiar")[1], tried.features
    found = _as_stored(Familiarity.of(ours[:, :width], leading(asking.catalog.labels[train])))
    return replace(bundle, familiarity=found.limited_by(others[:, :width], tried.unsure)), ""


def _as_stored(familiarity: Familiarity) -> Familiarity:
    """With directions as the package keeps them, in float16, so that the limit is drawn by what is read back."""
    return replace(familiarity, axes=familiarity.axes.astype(np.float16).astype(np.float32))


def _rows_of(features: np.ndarray, rows: Sequence[int] | np.ndarray, place: dict[int, int]) -> np.ndarray:
    return features[[place[int(row)] for row in rows]]
