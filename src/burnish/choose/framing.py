"""What of a long image the network sees: the middle square, or all of it squashed to a square, as some of the images tell."""

from __future__ import annotations

from dataclasses import dataclass, replace

from burnish.backbones.spec import Backbone
from burnish.choose.asking import compared, needed, seen_both_ways
from burnish.choose.decide import Decision, Settled
from burnish.choose.material import Bench
from burnish.choose.sizes import sizes_up_to, takes
from burnish.data.looks import Dataset, share_seen
from burnish.terms import Preprocess

CENTER, SQUASH = "center", "squash"  # timm's words
_ASKED_BELOW = 0.5  # of its area that is seen of the middle image; of photographs of 4:3 it is 0.57, of 16:9 0.43


@dataclass(frozen=True)
class Framing(Settled):
    """How long images are framed, and why where that was a choice."""

    crop_mode: str  # CENTER or SQUASH
    decision: Decision | None = None

    @classmethod
    def of(cls, preprocess: Preprocess) -> Framing:
        """As this preprocessing has it."""
        return cls(SQUASH if preprocess.fit == "squash" else CENTER)


def framed(backbone: Backbone, crop_mode: str) -> Backbone:
    """The backbone with this framing of long images."""
    fit = "squash" if crop_mode == SQUASH else "crop"
    return replace(backbone, preprocess=replace(backbone.preprocess, fit=fit))


def settle_framing(dataset: Dataset, bench: Bench) -> Framing:
    """What the recipe says; else as the network was made for, unless that is the middle, which is less than half of the middle
    image's area, and a quick head tells that all is better.

    All is better where the mean difference of the cross-validated log losses is more than its standard error. Train and val
    images are asked in turn while a small part of the time lasts, or a larger one until there are 64 or half of them; where so
    many cannot be, the middle stays, and it is said why.
    """
    catalog, splits, looks = dataset
    native = bench.backbone.preprocess
    if bench.recipe.crop_mode != "auto":
        return Framing(bench.recipe.crop_mode)
    share = share_seen(looks.at(splits.fitting).headers, native)
    if native.fit == "squash" or share >= _ASKED_BELOW:
        return Framing.of(native)
    bench.watcher.stage("framing")
    size = sizes_up_to(native.size, one_size=bench.backbone.one_size)[0]  # what is asked is not how fine an image is
    size = size if size == native.size or takes(bench, size) else native.size
    ways = replace(native, size=size, fit="crop"), replace(native, size=size, fit="squash")
    seen = seen_both_ways(catalog, splits, bench, ways)
    if not seen.finite:  # weights that give no numbers are refused after the first pass
        return Framing(CENTER)
    told = compared(seen, catalog, bench) if len(seen.rows) >= needed(len(splits.fitting)) else None
    if told is None:
        late = seen.late or bench.clock.elapsed() > seen.until
        why = "there is no time to ask" if late else "there are too few images to ask"
        bench.watcher.say(
            f"the network sees the middle square of an image, here {share:.0%} of its area as a rule, and {why} whether that is "
            "enough: where the ends tell the classes apart, say --crop-mode squash"
        )
        return Framing(CENTER)
    middle, whole, worse, error = told
    mode = SQUASH if worse > error else CENTER
    sees = "all of it, squashed to a square" if mode == SQUASH else "its middle square"
    why = (
        f"the middle square is {share:.0%} of an image as a rule; a quick head has {middle.accuracy:.1%} right by it and "
        f"{whole.accuracy:.1%} by all, {middle.loss:.3f} and {whole.loss:.3f} nats, cross-validated on {middle.asked} images"
    )
    numbers = {"share": share, "middle": middle.loss, "whole": whole.loss, "error": error, "n": middle.asked}
    decision = Decision(f"of a long image the network sees {sees}", why, numbers)
    bench.watcher.say(f"{decision.what}: {why}")
    return Framing(mode, decision)
