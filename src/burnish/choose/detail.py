"""How fine an image the network sees: at the size it was made for, or finer where images are large, as some of them tell."""

from __future__ import annotations

from dataclasses import dataclass, replace

from burnish.backbones.spec import Backbone
from burnish.choose.asking import Seen, compared, needed, seen_both_ways
from burnish.choose.decide import Decision, Settled
from burnish.choose.material import Bench
from burnish.choose.sizes import takes
from burnish.data.looks import Dataset, short_side

_FINER, _AT_LEAST = (2.0, 1.5), 1.4  # times the network's own size: what is tried, and what is worth trying
_STEP = 32  # pixels, the stride of the usual trunks
_CLEAR = 1.5  # standard errors: finer images take as many times the time as they have pixels
_IMAGES, _A_CLASS = 160, 4  # that are asked, or so many of each class: finer ones take long
_MOST = 0.35  # of the time left, for seeing all images so fine


@dataclass(frozen=True)
class Detail(Settled):
    """The largest size that images are seen at, and why where that was a choice."""

    size: int  # pixels
    decision: Decision | None = None


def as_fine(backbone: Backbone, size: int) -> Backbone:
    """The backbone that sees images of this size, in pixels."""
    return replace(backbone, preprocess=replace(backbone.preprocess, size=size))


def settle_detail(dataset: Dataset, bench: Bench) -> Detail:
    """The network's own size, unless images are clearly larger, there is time for finer ones, and a quick head tells that these
    are better.

    They are where more are right, and the mean difference of the cross-validated log losses is more than 1.5 of its standard
    errors. The finest for which there is time is asked. Networks that are built for one size, and sizes that the recipe names,
    stay.
    """
    native = bench.backbone.preprocess
    sizes = _worth_trying(dataset, bench)
    if not sizes:
        return Detail(native.size)
    bench.watcher.stage("detail")
    finer, seen, fast = _asked(dataset, bench, sizes)
    if not seen.finite:  # weights that give no numbers are refused after the first pass
        return Detail(native.size)
    enough = len(seen.rows) >= needed(len(dataset.splits.fitting))
    told = compared(seen, dataset.catalog, bench) if fast and enough else None
    if told is None:
        slow = seen.late or not fast
        why = f"there is no time to see all at {finer} px" if slow else "there are too few images to ask"
        bench.watcher.say(
            f"the network sees images at {native.size} px, and they have more; {why}: where small things tell the classes "
            f"apart, say --image-size {finer}{' and give it longer' if slow else ''}"
        )
        return Detail(native.size)
    own, fine, worse, error = told
    size = finer if fine.accuracy > own.accuracy and worse > _CLEAR * error else native.size
    why = (
        f"a quick head has {own.accuracy:.1%} right at {native.size} px and {fine.accuracy:.1%} at {finer} px, "
        f"{own.loss:.3f} and {fine.loss:.3f} nats, cross-validated on {own.asked} images"
    )
    numbers = {"size": finer, "own": own.loss, "finer": fine.loss, "error": error, "n": own.asked}
    decision = Decision(f"images are seen at {size} px", why, numbers)
    bench.watcher.say(f"{decision.what}: {why}")
    return Detail(size, decision)


def _asked(dataset: Dataset, bench: Bench, sizes: list[int]) -> tuple[int, Seen, bool]:
    """What images tell at the finest of these sizes for which there is time, and whether there is for any."""
    native, (finest, *coarser) = bench.backbone.preprocess, sizes
    most = _MOST * bench.clock.left() / (len(dataset.splits.fitting) + len(dataset.splits.test))
    ways = native, replace(native, size=finest)
    images = max(_IMAGES, _A_CLASS * len(dataset.catalog.classes))
    seen = seen_both_ways(
        dataset.catalog,
        dataset.splits,
        bench,
        ways,
        most_images=images,
        most_seconds=most,
        longer=False,
        deep=True,  # what is small in an image is in the maxima of its maps, not in the means of the last one (LOG.md)
    )
    if seen.seconds > most and coarser:
        return _asked(dataset, bench, coarser)
    return finest, seen, seen.seconds <= most


def _worth_trying(dataset: Dataset, bench: Bench) -> list[int]:
    """The finer sizes, in pixels, that images have the detail for, the finest first."""
    native, recipe = bench.backbone.preprocess, bench.recipe
    if recipe.image_size != "auto" or bench.backbone.one_size:
        return []
    has = short_side(dataset.looks.at(dataset.splits.fitting).headers) * (native.crop if native.fit == "crop" else 1.0)
    sizes = {int(min(times * native.size, has)) // _STEP * _STEP for times in _FINER}
    return [size for size in sorted(sizes, reverse=True) if size >= _AT_LEAST * native.size and takes(bench, size)]
