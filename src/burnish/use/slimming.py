"""A finished model made smaller and faster, with proof on the run's test images of what that cost."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from burnish.backbones.reading.weights import sha256_of
from burnish.data.sources import Data
from burnish.data.views import normalised
from burnish.disk import expanded, write_whole
from burnish.errors import ModelError, NotEnoughData, RecipeError, RunError, shown
from burnish.labels import log_losses, right
from burnish.measure.calibration import calibrated
from burnish.measure.cost import interleaved
from burnish.measure.kept import Kept, judge_kept, may_take
from burnish.record.facts import machine
from burnish.record.folder import SLIM, plain
from burnish.record.made import copy_learnt, made_whole, place_beside
from burnish.runtime import evenly
from burnish.ship.bundle import WEIGHTS, Bundle, package_folder, read_bundle, write_bundle
from burnish.ship.onnx import onnx_of, onnx_runtime, write_onnx
from burnish.ship.predictor import Predictor
from burnish.ship.slim_onnx import Answers, int8_forms, session
from burnish.train.features import batched
from burnish.use.own import is_frozen, own_images
from burnish.use.slim_ways import Asking, Chosen, choose, judged_rows, with_familiarity
from burnish.watching import Watching, settled_watcher, told_if_slow

MODEL = "model.onnx"
_FORMAT, _VERSION = "burnish-slim", 1
_CALIBRATED_BY = 96  # training images that show the range of activations
_MOST_JUDGED = 1000  # images that an int8 file is chosen by
_ONNX = ("auto", "on", "off")


@dataclass(frozen=True)
class Slimmed:
    """A smaller package and what it cost, as `slim.json` in its folder tells it."""

    folder: Path
    facts: dict[str, Any]  # the content of slim.json

    @property
    def sentence(self) -> str:
        """Whether anything was lost, in plain words."""
        return str(self.facts["proof"]["sentence"])

    @property
    def onnx(self) -> Path | None:
        """The int8 ONNX file, where there is one."""
        return self.folder / MODEL if self.facts["onnx"].get("file") else None

    def __repr__(self) -> str:
        return f"Slimmed({shown(str(self.folder))}: {self.sentence})"

    def __fspath__(self) -> str:
        """Its folder: what takes the path of a run takes this too."""
        return os.fspath(self.folder)


@dataclass(frozen=True, eq=False)
class _Int8:
    """An ONNX file that was chosen, and what was found of each form; without data none was."""

    steps: list[dict[str, Any]]
    why: str = ""  # there is none
    plain: bytes = b""  # the float32 file that it was made of
    data: bytes = b""
    words: str = ""  # which layers are int8


def slim(
    run: str | os.PathLike[str],
    data: Data | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    lose: float = 0.5,
    onnx: str = "auto",
    watcher: Watching = "auto",
) -> Slimmed:
    """Make a run's model smaller and faster, into a package that every verb takes, and prove on its test images what that cost.

    Weights are stored as float16 or int8, images are seen smaller, and with the extra `onnx` an int8 ONNX file is made besides,
    in so far as validation images (of frozen heads: cross-validation) rule out that more than `lose` percentage points are lost.
    The run's test images are then answered by both, once. data: where the run's images are, by default what its record names.
    out: the new folder, by default RUN-slim. onnx: "auto" makes the file where the packages for it are there; "on", "off".
    Times are of this machine's processor. RecipeError for a setting that cannot be, RunError where `out` is taken, NotARun,
    DataError and RecipeError as `use.own.own_images`, NotEnoughData without validation or test images, ModelError where onnx
    is "on" and its packages are missing. Nothing is left of a call that was interrupted.
    """
    watcher, folder = settled_watcher(watcher), expanded(run)
    _require(lose=lose, onnx=onnx)
    place = place_beside(folder, out, "slim")
    bundle, margin = read_bundle(folder), lose / 100.0
    _refuse_hardened_heads(folder, bundle)
    with told_if_slow("reading the run's images", watcher):
        catalog, splits = own_images(folder, data)
    _require_test(splits.test)
    asking = Asking(catalog, splits, watcher)
    watcher.say(f"{len(judged_rows(bundle, splits)):,} images to choose by, {len(splits.test):,} to prove it on")
    with made_whole(place) as draft:  # from here on, so that a place that cannot be written to is told before the work
        chosen = choose(bundle, asking, lose=margin)
        made, notes = _ready(bundle, chosen, asking, folder)
        file = _int8_of(made, chosen, asking, lose=margin, onnx=onnx)
        _write_package(draft, made, file, folder)
        proof = _proved(bundle, read_bundle(draft), file, asking, lose=margin)
        sizes = {"original": _bytes_in(folder), "slim": _bytes_in(draft), **_bytes_of(file)}
        facts = _facts(made, chosen, {"lose": lose, "notes": notes, **proof, "bytes": sizes})
        write_whole(draft / SLIM, json.dumps(facts, indent=1) + "\n")
    return Slimmed(place, facts)


# ---- what is asked ---------------------------------------------------------------------------------------------------


def _require(*, lose: float, onnx: str) -> None:
    """RecipeError for settings that cannot be; ModelError for a file that cannot be made."""
    if not isinstance(lose, (int, float)) or not 0.0 < lose < 100.0:
        raise RecipeError(f"lose is {shown(repr(lose))}, expected percentage points above 0 and below 100, such as 0.5")
    if onnx not in _ONNX:
        raise RecipeError(f"onnx is {shown(repr(onnx))}, expected one of {', '.join(_ONNX)}")
    if onnx == "on":
        onnx_runtime()


def _refuse_hardened_heads(folder: Path, bundle: Bundle) -> None:
    """RecipeError for a frozen model that burnish harden made: all its robustness is in a head that would be fitted anew here.

    On images as they are, for those judge the ways: of 80 corrupted hand signs 68.1 % were right, then 62.5, before both 63.1.
    """
    told = bundle.facts.get("hardened")
    if is_frozen(bundle) and isinstance(told, dict) and told.get("share"):
        raise RecipeError(
            f"{shown(str(folder))} has a head that was hardened, and slim would undo that, for it fits heads anew to images as "
            "they are; do it the other way round: burnish slim of the run that it was made of, then burnish harden of that, "
            "with the data named after it, which keeps the small weights"
        )


def _require_test(rows: np.ndarray) -> None:
    if not len(rows):
        raise NotEnoughData(
            "the run holds no test images, so that nobody could say what a smaller model loses; fit with a test split, or export "
            "the model as it is (burnish export RUN --to onnx)"
        )


# ---- the package -----------------------------------------------------------------------------------------------------


def _ready(bundle: Bundle, chosen: Chosen, asking: Asking, folder: Path) -> tuple[Bundle, list[str]]:
    """(the package as it is to be written, with its history; what of it was made anew or left out)."""
    notes: list[str] = []
    if chosen.tried is chosen.original:
        made = bundle
        notes.append("nothing cheaper was taken: the package is the run's own")
    else:
        made, dropped = with_familiarity(chosen.tried, asking)
        anew = "the head was fitted anew, and" if is_frozen(bundle) else "the temperature was fitted anew, and"
        notes.append(f"{anew} held-out answers are the smaller model's own")
        if dropped:
            notes.append(f"the package no longer tells unfamiliar images: {dropped}")
        if bundle.held_out is not None and made.held_out is None:
            notes.append("the package holds no held-out answers any more: predict cannot --reject, --sets or --find")
    earlier = bundle.facts.get("slim")
    history = {
        "of": {
            "run": str(folder),
            "base_model": bundle.base_model,
            "weights_sha256": sha256_of(package_folder(folder) / WEIGHTS),
            "weights": bundle.stored,
            "size": bundle.preprocess.size,
            "created": bundle.created,
        },
        "weights": made.stored,
        "size": made.preprocess.size,
        **({"before": earlier} if earlier is not None else {}),
    }
    return replace(made, created=_now(), facts={**bundle.facts, "slim": history}), notes


def _write_package(draft: Path, made: Bundle, file: _Int8, folder: Path) -> None:
    """The package, what its model learnt from, and the ONNX file."""
    write_bundle(draft, made)
    copy_learnt(folder, draft)
    if file.data:
        write_onnx(draft / MODEL, file.data, made)


def _facts(made: Bundle, chosen: Chosen, found: Mapping[str, Any]) -> dict[str, Any]:
    """The content of slim.json, plain values."""
    history = made.facts["slim"]
    last = {key: history[key] for key in ("weights", "size")}
    head = {"format": _FORMAT, "version": _VERSION, "created": made.created, "of": history["of"], "slim": last}
    return plain({**head, "steps": chosen.steps, **found, "machine": machine()})


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _bytes_in(folder: Path) -> int:
    """Of the package's files."""
    return sum(one.stat().st_size for one in package_folder(folder).iterdir() if one.is_file())


def _bytes_of(file: _Int8) -> dict[str, int]:
    return {"onnx": len(file.data), "onnx_float32": len(file.plain)} if file.data else {}


# ---- an int8 ONNX file -----------------------------------------------------------------------------------------------


def _int8_of(bundle: Bundle, chosen: Chosen, asking: Asking, *, lose: float, onnx: str) -> _Int8:
    """The fastest form of the file that may be taken."""
    if onnx == "off":
        return _Int8([], "it was not asked for")
    try:
        onnx_runtime()
        asking.watcher.stage("ONNX")
        data = onnx_of(bundle)
    except (ModelError, RunError) as error:
        if onnx == "on":
            raise
        return _Int8([], str(error))
    rows, hits, losses = _known(bundle, chosen, asking)
    labels, groups, steps = asking.catalog.labels[rows], asking.catalog.grouped(rows), list[dict[str, Any]]()
    train = asking.splits.train[evenly(len(asking.splits.train), _CALIBRATED_BY)]
    calibration = np.concatenate([_prepared(one, bundle) for one in asking.seen(bundle, train, "calibration")])
    try:
        for words, made in int8_forms(data, calibration, base_model=bundle.base_model):
            after = _answered(session(made), bundle, asking, rows, f"answers, ONNX: {words}")
            pairs = (hits, right(after, labels, _cut(bundle))), (losses, log_losses(after, labels))
            step = may_take(*pairs, lose=lose, groups=groups)
            steps.append({"int8": words, "bytes": len(made), **step.to_json()})
            asking.watcher.say(f"int8 ONNX, {words}: {'taken' if step.allowed else 'not taken'}, {step.why}")
            if step.allowed:
                return _Int8(steps, "", data, made, words)
    except RunError as error:
        return _Int8(steps, str(error))
    return _Int8(steps, "every form of it lost too much")


def _known(bundle: Bundle, chosen: Chosen, asking: Asking) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(entries, how right, log losses [n]) of what an ONNX file is judged against: what the original said of validation images.

    Of a frozen head that is the package itself, on images that it has learnt from, for its cross-validated answers are those of
    other heads. The rounding of activations has learnt from none; what it costs is a little understated all the same.
    """
    rows = judged_rows(bundle, asking.splits)
    if not is_frozen(bundle):
        return rows, chosen.original.right, chosen.original.losses
    rows = rows[evenly(len(rows), _MOST_JUDGED)]
    labels = asking.catalog.labels[rows]
    logits, _ = asking.answered(bundle, rows, "answers, the package")
    chances = calibrated(logits, bundle.temperature, several=bundle.several)
    return rows, right(chances, labels, _cut(bundle)), log_losses(chances, labels)


def _cut(bundle: Bundle) -> float | np.ndarray:
    """From which probability on each class is said, of several an image."""
    return 0.0 if bundle.thresholds is None else np.array(bundle.thresholds)


def _answered(answers: Answers, bundle: Bundle, asking: Asking, rows: np.ndarray, stage: str) -> np.ndarray:
    """Probabilities float64 [n k] that an ONNX file gives for these entries."""
    found = []
    for pixels in asking.seen(bundle, rows, stage):
        # Few at a time, as the runtime keeps memory for the largest batch that it has met.
        found += [answers(_prepared(part, bundle)).astype(np.float64) for part in batched(pixels)]
    return np.concatenate(found)


def _prepared(pixels: np.ndarray, bundle: Bundle) -> np.ndarray:
    """Network inputs float32 [n 3 s s] of plain views uint8 [n s s 3]."""
    return normalised(pixels, bundle.preprocess).contiguous().numpy()


# ---- the proof -------------------------------------------------------------------------------------------------------


def _proved(original: Bundle, made: Bundle, file: _Int8, asking: Asking, *, lose: float) -> dict[str, Any]:
    """What the test images say of the package, and of the ONNX file, against the original; and what an image takes with each."""
    rows, found = asking.splits.test, {}
    for name, bundle in (("original", original), ("slim", made)):
        logits, _ = asking.answered(bundle, rows, f"test, {name}")
        found[name] = calibrated(logits, bundle.temperature, several=bundle.several)
    if file.data:
        found["onnx"] = _answered(session(file.data), made, asking, rows, "test, ONNX")
    cuts = {"original": _cut(original), "slim": _cut(made), "onnx": _cut(made)}
    told = {name: _judged(found, name, cuts, asking, lose=lose) for name in found if name != "original"}
    onnx = {"why": file.why, "steps": file.steps}
    if file.data:
        onnx |= {"file": MODEL, "int8": file.words, "proof": told["onnx"].to_json()}
    return {"proof": told["slim"].to_json(), "onnx": onnx, **_timed(original, made, file, asking)}


def _judged(
    found: Mapping[str, np.ndarray], name: str, cuts: Mapping[str, Any], asking: Asking, *, lose: float
) -> Kept:
    """One of the models against the original."""
    rows = asking.splits.test
    labels, groups = asking.catalog.labels[rows], asking.catalog.grouped(rows)
    first, second = (right(found[one], labels, cuts[one]) for one in ("original", name))
    if asking.catalog.several:
        same = ((found["original"] >= cuts["original"]) == (found[name] >= cuts[name])).all(1)
    else:
        same = found["original"].argmax(1) == found[name].argmax(1)
    return judge_kept(first, second, same, lose=lose, groups=groups)


def _timed(original: Bundle, made: Bundle, file: _Int8, asking: Asking) -> dict[str, Any]:
    """Milliseconds of one decoded image, the median of calls in turn; and on how many threads."""
    calls: dict[str, Callable[[], object]] = {}
    for name, bundle in (("original", original), ("slim", made)):
        (pixels,) = asking.seen(bundle, asking.splits.test[:1], "time")
        calls[name] = partial(Predictor(bundle).logits_of, pixels)
    if file.data:
        (pixels,) = asking.seen(made, asking.splits.test[:1], "time")
        image = _prepared(pixels, made)
        for name, data in (("onnx", file.data), ("onnx_float32", file.plain)):
            calls[name] = partial(session(data), image)
    found = interleaved(calls)
    return {
        "milliseconds": {name: 1e3 * float(np.median(one)) for name, one in found.items()},
        "calls": len(found["original"]),
        "threads": torch.get_num_threads(),
    }
