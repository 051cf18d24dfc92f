"""The first stage: features of the frozen trunk, a head on them, and what they tell about the data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from burnish.backbones.changing.taps import KIND as TAPS
from burnish.backbones.changing.taps import flat, flat_width
from burnish.backbones.spec import Backbone
from burnish.choose.familiar import frozen_familiarity
from burnish.choose.features import Seen
from burnish.choose.material import Bench, Material
from burnish.choose.mirroring import mirrored_at_most, settle_flip
from burnish.choose.more_data import learning_curve
from burnish.choose.rates import LEAST_TESTED, proof_seconds
from burnish.choose.survey import Surveyed
from burnish.choose.where import images_asked, pyramid_stays
from burnish.data.audit.findings import Finding, in_order
from burnish.data.audit.labels import label_findings, outlier_findings, undoubted
from burnish.data.sample import part_of
from burnish.errors import RecipeError
from burnish.labels import right, several
from burnish.measure.held_out import HeldOut
from burnish.measure.ood import Familiarity
from burnish.measure.several import thresholds_for
from burnish.methods.base import Fitted
from burnish.methods.heads import LINEAR_KINDS, HeadChoice, Seconds, choose_head
from burnish.methods.pooled import mixed, mixture, pooled
from burnish.methods.probe import heads_of
from burnish.methods.table import method_named
from burnish.recipe import Recipe
from burnish.runtime import Clock
from burnish.terms import Preprocess

_LDA_ALONE, _ON_ALL_DEPTHS = ("lda",), "multiprobe"
_WHERE_SHARE = 0.08  # of the time left, for the first of two answers about the pyramid
_SHARE, _DEEP_SHARE = 0.6, 0.7  # of the time left, for finding heads; of that for those on all depths
_MUCH_LESS = 0.5  # of what heads are planned to take: then those on all depths are left out
_HEADS_AT_LEAST = 0.15  # of the time left: where a proof on all test images would take more than the rest, it gives way
_LATE = 0.05  # of the budget, behind which the audit's last question is left out


@dataclass(frozen=True)
class Probed:
    """The frozen trunk with a fitted head."""

    name: str  # the method: "probe" on the last layer alone, "multiprobe" on all depths; with its options
    backbone: Backbone  # what the head is fitted to: for multiprobe with taps
    preprocess: Preprocess  # at the size the features were taken
    choice: HeadChoice  # fitted to train and val images; its settings and accuracy come from cross-validation
    train_head: Fitted  # the same settings, fitted to the train images alone
    val_right: np.ndarray  # bool [v], or float64 [v], 0 to 1: how right train_head is on the val images
    val_logits: np.ndarray  # float32 [v k], of train_head
    held_out: HeldOut | None = None  # by cross-validation, with one class an image
    thresholds: np.ndarray | None = None  # float64 [k], with several classes: from which probability on one is said
    familiarity: Familiarity | None = None  # what is like the training images, where it is the frozen model to be used

    @property
    def on_all_depths(self) -> bool:
        """Whether the head sees all depths."""
        return bool(self.backbone.changes) and self.backbone.changes[-1]["kind"] == TAPS


@dataclass(frozen=True, kw_only=True)
class Probes:
    """What the frozen network tells about the data."""

    last: Probed  # on the last layer alone, linear: training starts from its kind of head
    deep: Probed | None  # on all depths, where they are wanted and can be had; it may be averaged with `last`
    deep_loss: float | None  # cross-validated log loss, nats, of the head on all depths alone
    flip: bool  # whether mirror images may be trained on
    flip_reason: str
    images_per_second: float  # of the trunk, forward, in float32 as for scores
    size_reason: str  # why the probe sees smaller images than the network was made for, "" when it does not
    rounded: dict[str, float] | None = None  # what features in 8 bits gain and cost, as `Surveyed.rounded`
    more_data: dict[str, Any] | None = None  # what more images would do, as `choose.more_data` tells it
    findings: tuple[Finding, ...] = ()  # of the audit: labels that are likely wrong, images unlike all others
    special: dict[str, Probed] = field(default_factory=dict)  # heads of a kind that a method's options name, by method
    where: dict[str, Any] | None = None  # whether heads on all depths see where something is: `settle_where`

    def kept(self, taps: str, method: str = "auto") -> Probed:
        """The frozen model to be used: as asked for, or ("auto") the one with the lower cross-validated loss."""
        if method in self.special:
            return self.special[method]
        if self.deep is None or taps == "off":
            return self.last
        return self.deep if taps == "on" or self.deep.choice.loss < self.last.choice.loss else self.last

    def with_in_place_of(self, old: Probed, new: Probed) -> Probes:
        """With another in the place of one of them."""
        last, deep = new if self.last is old else self.last, new if self.deep is old else self.deep
        special = {name: new if one is old else one for name, one in self.special.items()}
        return replace(self, last=last, deep=deep, special=special)


def quick_head(features: np.ndarray, material: Material, surveyed: Surveyed, bench: Bench) -> Probed:
    """The quickest head there is on the last layer, for a model that another one replaces soon.

    features: float32 [n d], of the images to fit, by that layer alone or by it before others.
    """
    plain = surveyed.backbone.plain or surveyed.backbone
    seconds = _from_now(bench.clock, 0.0, 0.0)
    return _headed("probe", plain, features[:, : plain.width], material, surveyed, bench, seconds)


def probe(material: Material, seen: Seen, surveyed: Surveyed, bench: Bench, *, tail_seconds: float = 0.0) -> Probes:
    """Fit heads to frozen features of the size that the survey settled: of the last layer, and of all depths.

    seen: what the trunk told of the images to fit. tail_seconds: to be left for what comes after it, besides the proof.
    """
    features, rate = seen.features, seen.images_per_second
    bench.watcher.stage("probe")
    # What the test images and the page will take is not for searching; the deeper head is asked first.
    until = bench.clock.elapsed() + _for_heads(material, seen, surveyed, bench, tail_seconds=tail_seconds)
    backbone, where = _with_depths(surveyed, features, material, bench, seconds_left=until - bench.clock.elapsed())
    plain = backbone.plain or backbone
    end = until - bench.clock.elapsed()
    search = min(_SHARE * (bench.clock.left() - tail_seconds), end)
    seconds = _from_now(bench.clock, search, end)
    of_deep = _from_now(bench.clock, _DEEP_SHARE * search, _DEEP_SHARE * end)
    deep: Probed | None = None
    if backbone.changes:
        seen_by_deep = features[:, : backbone.width]
        deep = _headed(_ON_ALL_DEPTHS, backbone, seen_by_deep, material, surveyed, bench, of_deep)
    last = _headed("probe", plain, features[:, : plain.width], material, surveyed, bench, seconds)
    deep_loss = None if deep is None else deep.choice.loss
    if deep is not None:
        deep = _averaged(last, deep, material)
    special: dict[str, Probed] = {}
    for name in bench.heads:
        base = backbone if deep is not None and on_all_depths(name, bench.recipe) else plain
        special[name] = _headed(name, base, features[:, : base.width], material, surveyed, bench, seconds)
    asked = deep or last
    most = mirrored_at_most(rate, bench.clock.budget_seconds)
    flip, reason = settle_flip(material, surveyed, bench, asked.train_head, asked.val_right, most=most)
    headed = [last, *([deep] if deep is not None else []), *special.values()]
    better = min(headed, key=lambda one: one.choice.loss)
    assert better.choice.refit is not None
    curve = learning_curve(
        features[:, : better.choice.head.width], material, better.choice.refit, better.val_right,
        seed=bench.recipe.seed, seconds_left=bench.clock.left() if seconds.left() > 0 else 0.0,
    )  # fmt: skip
    findings = _told_by(
        material, features[:, : flat_width(backbone)], better.choice, bench, late=_is_late(bench.clock, seconds)
    )
    # Features and what each image was told are not held on to: they may be gigabytes, and nobody asks for them again.
    last, kept_deep = _settled(last), None if deep is None else _settled(deep)
    special = {name: _settled(one) for name, one in special.items()}
    found = Probes(
        last=last,
        deep=kept_deep,
        deep_loss=deep_loss,
        flip=flip,
        flip_reason=reason,
        images_per_second=rate,
        size_reason=surveyed.size_reason,
        rounded=surveyed.rounded,
        more_data=curve,
        findings=findings,
        special=special,
        where=where,
    )
    kept = found.kept(bench.recipe.taps, bench.recipe.method)
    # Where in the image something is tells strangers apart less well than what it is (LOG.md).
    familiar = frozen_familiarity(features[:, : flat_width(kept.backbone)], kept.val_logits, material)
    return found.with_in_place_of(kept, replace(kept, familiarity=familiar))


def _for_heads(material: Material, seen: Seen, surveyed: Surveyed, bench: Bench, *, tail_seconds: float) -> float:
    """Seconds for finding heads: what a proof on all test images leaves; where that is little, a part of what a smaller one does.

    Heads on all depths are worth more than intervals that are a third narrower (LOG.md).
    """
    budget, left = bench.clock.budget_seconds, bench.clock.left() - tail_seconds
    passes = material.due / seen.images_per_second
    beside, least = (left - proof_seconds(share * passes, budget, material) for share in (1.0, LEAST_TESTED))
    wanted = max(_HEADS_AT_LEAST * left, surveyed.costs.both_heads(len(seen.features)))
    return max(beside, min(wanted, least))


def _with_depths(
    surveyed: Surveyed, features: np.ndarray, material: Material, bench: Bench, *, seconds_left: float
) -> tuple[Backbone, dict[str, Any] | None]:
    """As `settle_where`; without its taps where the quickest heads on them, which nobody asked for by name, would end a run far
    too late."""
    backbone, costs = surveyed.backbone, surveyed.costs
    wanted = bench.deep or bench.recipe.taps != "auto" or not backbone.changes
    if wanted or seconds_left >= _MUCH_LESS * costs.both_heads(len(features)):
        return settle_where(backbone, features, material, bench)
    bench.watcher.say("heads on all depths of the network are not asked: the budget has no time for them")
    return backbone.plain or backbone, None


def settle_where(
    backbone: Backbone, features: np.ndarray, material: Material, bench: Bench
) -> tuple[Backbone, dict[str, Any] | None]:
    """The backbone with its pyramid, or without it where some of the images tell that heads are clearly worse with it.

    features [n d]: of the fitting images. Also what `pyramid_stays` tells; None where there is no pyramid to ask about. The
    first of two answers may take a small part of the time left.
    """
    if flat_width(backbone) == backbone.width:
        return backbone, None
    catalog, classes = material.catalog, len(material.catalog.classes)
    rows = part_of(catalog, material.fitting.ids, images_asked(classes), seed=bench.recipe.seed)
    until = bench.clock.elapsed() + _WHERE_SHARE * bench.clock.left()
    stays, told = pyramid_stays(
        features[rows], material.labels[rows], flat_width(backbone), classes=classes, seed=bench.recipe.seed,
        form=bench.recipe.head, together=material.tied(rows), seconds_left=lambda: until - bench.clock.elapsed(),
    )  # fmt: skip
    return backbone if stays else flat(backbone), told


def _settled(probed: Probed) -> Probed:
    """Without what only choosing needs, as a run that is taken up has it."""
    return replace(probed, choice=replace(probed.choice, refit=None, probabilities=None, counted=None))


def special_heads(methods: Iterable[str], *, several: bool) -> tuple[str, ...]:
    """Those of these methods that choose among other kinds of heads than all linear ones, as far as the labels allow them.

    several: whether an image may have any number of classes.
    """
    kinds = {name: heads_of(method_named(name)) for name in methods if name != "auto"}
    usual = (LINEAR_KINDS, 1.0)
    return tuple(name for name, own in kinds.items() if own != usual and not (several and own[0] == _LDA_ALONE))


def check_heads(method: str, *, several: bool, taps: str = "auto") -> None:
    """RecipeError for a method whose kind of head needs one class an image where there may be several, or depths without taps."""
    if taps == "off" and method.partition(":")[0] == _ON_ALL_DEPTHS:
        raise RecipeError(
            f"{method} looks at all depths of the network, and taps are off; say probe, or leave taps out"
        )
    if several and method != "auto" and heads_of(method_named(method))[0] == _LDA_ALONE:
        raise RecipeError(f"{method} needs one class an image; say head=logistic or head=knn")


def on_all_depths(method: str, recipe: Recipe) -> bool:
    """Whether this frozen method's head sees all depths of the network."""
    return recipe.taps == "on" or method.partition(":")[0] == _ON_ALL_DEPTHS


def _told_by(
    material: Material, features: np.ndarray, choice: HeadChoice, bench: Bench, *, late: bool
) -> tuple[Finding, ...]:
    """What the features [n d] of the fitting images, and a head's out-of-fold probabilities, say about them."""
    found: list[Finding] = []
    if late:
        bench.watcher.say("images unlike all others are not looked for: the budget has no time for that")
    else:
        found += outlier_findings(material.catalog, material.fitting.ids, features)
    if choice.probabilities is not None and choice.counted is not None:
        asked = choice.counted  # of the others, the only ones of their class, no head has learnt what they could be
        of = material.catalog, material.fitting.ids[asked], choice.probabilities[asked]
        if said := undoubted(*of):
            bench.watcher.say(said)
        found += label_findings(*of)
    return in_order(found)


def _headed(
    name: str,
    backbone: Backbone,
    features: np.ndarray,
    material: Material,
    surveyed: Surveyed,
    bench: Bench,
    seconds: Seconds,
) -> Probed:
    """The best head on these features [n d] of the fitting images."""
    kinds, keep = heads_of(method_named(name))
    choice = choose_head(
        features,
        material.labels,
        classes=len(material.catalog.classes),
        seed=bench.recipe.seed,
        seconds_left=seconds.left,
        seconds_to_end=seconds.to_end,
        form=bench.recipe.head,
        kinds=kinds,
        keep=keep,
        together=material.together,
    )
    assert choice.refit is not None
    train_head = choice.refit(material.train_rows)
    logits = train_head.logits(features[material.val_rows])
    return _told_of(name, backbone, surveyed.preprocess, choice, train_head, logits, material)


def _from_now(clock: Clock, search: float, end: float) -> Seconds:
    """So many seconds for the search of a head, and for all of it."""
    began = clock.elapsed()
    return Seconds(lambda: began + search - clock.elapsed(), lambda: began + end - clock.elapsed())


def _is_late(clock: Clock, seconds: Seconds) -> bool:
    """Whether what is left is so much less than the proof needs that the run would end late for more questions."""
    return clock.budget_seconds is not None and seconds.to_end() < -_LATE * clock.budget_seconds


def _told_of(
    name: str,
    backbone: Backbone,
    preprocess: Preprocess,
    choice: HeadChoice,
    train_head: Fitted,
    val_logits: np.ndarray,
    material: Material,
) -> Probed:
    """A head that was chosen, with what its answers about images that it had not learnt from tell."""
    labels, known = material.labels, choice.probabilities
    assert known is not None
    val_right = right(val_logits, labels[material.val_rows])
    held_out, cut = None, None
    if several(labels):
        cut = thresholds_for(known, labels)
    elif choice.asked:
        # Of a class of one image no head has answered that had seen another, unless one stands for it.
        judged = choice.judged
        held_out = HeldOut.of(known[judged], labels[judged], material.catalog.grouped(material.fitting.ids[judged]))
    return Probed(name, backbone, preprocess, choice, train_head, val_right, val_logits, held_out, cut)


def _averaged(last: Probed, deep: Probed, material: Material) -> Probed:
    """The head on all depths averaged with the one on the last layer, where cross-validation likes that better; else itself."""
    choice = pooled(last.choice, deep.choice, material.labels)
    if choice is None:
        return deep
    share = choice.how.share
    head, logits = mixed(last.train_head, deep.train_head, share), mixture(last.val_logits, deep.val_logits, share)
    choice = choice.by_groups(material.together)
    return _told_of(deep.name, deep.backbone, deep.preprocess, choice, head, logits, material)
