"""Whether heads are to see where in the image something is: the pyramid of `changing.taps`, asked of some of the images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from burnish.backbones.head import LINEAR
from burnish.labels import error_of_mean, grouped, several
from burnish.methods.heads import LINEAR_KINDS, HeadChoice, choose_head

# Images that are asked: of 101 classes 512 tell it wrong, 1,024 right (LOG.md).
_ASKED, _A_CLASS, _AT_MOST = 512, 10, 1024
_SHRINKAGES = (0.5, 0.1)  # of the heads that are compared


def images_asked(classes: int) -> int:
    """How many images at the most are asked."""
    return min(_AT_MOST, max(_ASKED, _A_CLASS * classes))


def pyramid_stays(
    features: np.ndarray,
    labels: np.ndarray,
    plainer: int,
    *,
    classes: int,
    seed: int,
    form: str = LINEAR,
    together: np.ndarray | None = None,
    seconds_left: Callable[[], float] = lambda: float("inf"),
) -> tuple[bool, dict[str, Any]]:
    """Whether heads are to see all of these features [n d], or the first `plainer` of them, which are without the pyramid.

    They are not where all are clearly worse: where the mean difference of the cross-validated log losses is more than its
    standard error. Where things lie anywhere in an image, their place says nothing and is learnt by heart; else it has never
    been worse (docs/measured.md), and on some hundred images chance would take it away too often. Where no seconds are left
    after one answer there is no other one, and the pyramid stays.

    labels, classes, seed, form, together: as of `choose_head`. Also {"with", "without"}, the losses, nats, "error" and "n".
    """

    def asked(width: int) -> HeadChoice:
        return quick_choice(
            features[:, :width], labels, classes=classes, seed=seed, form=form, together=together, seconds_left=seconds_left
        )  # fmt: skip

    within = asked(features.shape[1])
    told = {"with": within.loss, "without": None, "error": None, "n": len(labels)}
    if seconds_left() < 0:
        return True, told
    without = asked(plainer)
    worse, error = worse_by(within, without, together)
    return worse <= error, told | {"without": without.loss, "error": error}


def quick_choice(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    classes: int,
    seed: int,
    form: str = LINEAR,
    together: np.ndarray | None = None,
    seconds_left: Callable[[], float] = lambda: float("inf"),
) -> HeadChoice:
    """What a head that is soon fitted makes of features [n d], to compare them with others; arguments as of `choose_head`."""
    return choose_head(
        features, labels, classes=classes, seed=seed, form=form, seconds_left=seconds_left, together=together,
        kinds=LINEAR_KINDS if several(labels) else ("lda",), shrinkages=_SHRINKAGES,
    )  # fmt: skip


def worse_by(one: HeadChoice, other: HeadChoice, together: np.ndarray | None) -> tuple[float, float]:
    """How much larger the cross-validated log loss of `one` is than that of `other`, nats, and the standard error of that.

    together: int64 [n], equal for images that are no independent draws.
    """
    if not one.asked or one.judged is None:
        return 0.0, 0.0
    least = np.finfo(np.float64).tiny
    apart = (np.log(np.maximum(other.told, least)) - np.log(np.maximum(one.told, least)))[one.judged]
    groups = None if together is None else grouped(together[one.judged].tolist())
    return float(apart.mean()), error_of_mean(apart, groups)
