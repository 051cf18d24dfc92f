"""What hardening came to: the run's own model and the hardened one on the same test images, as they are and corrupted (P5).

Beside both a control, where there is one: what plain views alone made of the run's own.

Nothing that is used here was used before: the kinds of corruption are none of those trained on or chosen by, and the test images
are looked at after every choice. An image comes under several kinds and severities; that is one draw, not several, so intervals
are by whole images, or by whole groups of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from burnish.backbones.classifier import Classifier
from burnish.data.corruptions import CORRUPTIONS, SEVERITIES
from burnish.data.perturbations import UNLIKE
from burnish.data.sample import in_turn
from burnish.granted import cores
from burnish.labels import right, several
from burnish.measure.bootstrap import Bootstrapped, bootstrapped, paired_shares, share
from burnish.measure.calibration import calibrated
from burnish.measure.grouped import count_of
from burnish.measure.intervals import holm
from burnish.run.harden.chosen import attacked
from burnish.run.harden.ground import Ground
from burnish.runtime import draws

Answering = Callable[
    [np.ndarray], list[np.ndarray]
]  # views uint8 [b s s 3] -> logits [b k] of the run's own, the hardened and the control
CELLS = tuple((kind, severity) for kind in CORRUPTIONS for severity in SEVERITIES)
_UNHURRIED = len(CORRUPTIONS)  # corruptions of each image, without a budget
_AT_ONCE = 64  # views in memory
_FEWEST = 30  # test images, whatever the clock says
_CLEAN_SHARE = 0.4  # of what the clock leaves, for the images as they are
_STEPS, _STARTS, _AT_A_TIME = 50, 2, 4  # of an attack; images attacked before the clock is looked at
_ATTACKED_SHARE, _UNHURRIED_ATTACKED = 0.7, 200  # of what the clock leaves then, for attacks; images without a budget
_TAIL_SECONDS = 1.0  # scores, writing the package, leaving
_ALL, _LIKE, _NEW = "all", "akin", "unlike"
_NAMES = ("before", "after", "control")


@dataclass(frozen=True)
class Reading:
    """How logits become answers."""

    temperature: float
    cut: float | np.ndarray  # from which probability on one of several classes is said

    def right(self, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """bool [b]; or float64 [b], 0 to 1, where an image may have several classes."""
        return right(calibrated(logits, self.temperature, several=several(labels)), labels, self.cut)


def prove(
    ground: Ground, models: Sequence[Classifier], answering: Answering, readings: Sequence[Reading], *, lose: float
) -> dict[str, Any]:
    """The models on as many test images and corruptions of them as the clock leaves time for, as plain values.

    models: the run's own, the hardened one, and where there is one a control.
    """
    material, bench = ground.material, ground.bench
    order = in_turn(material.catalog, material.test.ids, seed=bench.recipe.seed)
    bench.watcher.stage("test", total=len(order))
    clean = _clean(ground, order, answering, readings)
    order = order[: clean.shape[1]]
    attacks = {} if ground.epsilon is None else {"attacked": _attacked(ground, order, models, readings)}
    bench.watcher.stage("test, corrupted")
    seen = list(_corrupted(ground, order, answering, readings))
    groups = material.catalog.grouped(material.test.ids[order])
    whole = clean if several(material.test_labels) else clean.astype(bool)
    facts = {
        "n": len(order),
        "groups": None if groups is None else count_of(groups),
        "views": len(seen),
        "clean": _shares(whole, groups),
        **attacks,
        **_scores(seen, len(order), groups),
    }
    return {**facts, **judged(facts, lose=lose)}


def judged(facts: Mapping[str, Any], *, lose: float) -> dict[str, Any]:
    """What that proves: whether it is more robust, also than the control, and whether a clean loss of `lose` is ruled out."""
    found, clean = facts.get("attacked", facts["corrupted"][_ALL]), facts["clean"]["paired"]
    told = {"word": _word(found["paired"]), "lose": lose, "loss_ruled_out": bool(clean["low"] >= -lose)}
    if (new := facts["corrupted"].get(_NEW)) is not None:
        told["word_unlike"] = _word(new["paired"])
    return told if "beyond" not in found else {**told, "beyond_control": _word(found["beyond"])}


def _word(paired: Mapping[str, Any]) -> str:
    if paired["p"] >= 0.05 or paired["low"] <= 0.0 <= paired["high"]:
        return "not proven"
    return "more robust" if paired["difference"] > 0 else "less robust"


def _shares(right: np.ndarray, groups: np.ndarray | None) -> dict[str, Any]:
    """Of how right each model is on the same images, [models n]: the shares, and the paired differences to the hardened one."""
    told = {name: share(one, groups).to_json() for name, one in zip(_NAMES, right, strict=False)}
    told["paired"] = asdict(paired_shares(right[0], right[1], groups))
    return told if len(right) < 3 else {**told, "beyond": asdict(paired_shares(right[2], right[1], groups))}


def _clean(ground: Ground, order: np.ndarray, answering: Answering, readings: Sequence[Reading]) -> np.ndarray:
    """How right each is on the test images in that order, float64 [models n], of as many as the clock allows."""
    material, clock = ground.material, ground.bench.clock
    until, found, done = clock.elapsed() + _CLEAN_SHARE * clock.left(), list[np.ndarray](), 0
    while done < len(order) and (done < _FEWEST or clock.elapsed() < until):
        rows = order[done : done + _AT_ONCE]
        told, labels = answering(material.test.plain[rows]), material.test_labels[rows]
        found.append(np.stack([one.right(logits, labels) for one, logits in zip(readings, told, strict=True)]))
        ground.bench.watcher.advance(len(rows))
        done += len(rows)
    return np.concatenate(found, axis=1).astype(np.float64)


def _attacked(
    ground: Ground, order: np.ndarray, models: Sequence[Classifier], readings: Sequence[Reading]
) -> dict[str, Any]:
    """How right each is on test images that were changed against each by itself, of as many as the clock allows."""
    material, bench = ground.material, ground.bench
    assert ground.epsilon is not None
    some = order if bench.clock.budget_seconds is not None else order[:_UNHURRIED_ATTACKED]
    until, found, done = bench.clock.elapsed() + _ATTACKED_SHARE * bench.clock.left(), list[np.ndarray](), 0
    bench.watcher.stage("test, attacked", total=len(some))
    longest = 0.0
    while done < len(some) and (done < _AT_A_TIME or bench.clock.elapsed() + longest < until):
        began, rows = bench.clock.elapsed(), some[done : done + _AT_A_TIME]
        labels = material.test_labels[rows]
        told = [
            attacked(
                one, ground, material.test.plain, rows, labels, epsilon=ground.epsilon, starts=_STARTS, steps=_STEPS
            )
            for one in models
        ]
        found.append(np.stack([one.right(logits, labels) for one, logits in zip(readings, told, strict=True)]))
        bench.watcher.advance(len(rows))
        done += len(rows)
        longest = max(longest, bench.clock.elapsed() - began)
    whole = np.concatenate(found, axis=1)
    groups = material.catalog.grouped(material.test.ids[some[:done]])
    return {
        "epsilon": ground.epsilon,
        "steps": _STEPS,
        "starts": _STARTS,
        "n": whole.shape[1],
        **_shares(whole, groups),
    }


@dataclass(frozen=True)
class _Seen:
    """One image under one corruption."""

    image: int  # place in the order
    cell: int  # of CELLS
    right: tuple[float, ...]  # before, after, and of the control


def _corrupted(ground: Ground, order: np.ndarray, answering: Answering, readings: Sequence[Reading]) -> Iterator[_Seen]:
    """Images under corruptions, until the clock stops it: in each pass each image once, all kinds and severities as often."""
    material, bench = ground.material, ground.bench
    seed = bench.recipe.seed
    cells = draws(seed, "corruptions").permutation(len(CELLS))
    passes = len(CELLS) if bench.clock.budget_seconds is not None else _UNHURRIED
    pairs = [(at, int(cells[_cell(at, turn, len(order))])) for turn in range(passes) for at in range(len(order))]
    longest = 0.0

    def view(pair: tuple[int, int]) -> np.ndarray:
        row, (kind, severity) = int(order[pair[0]]), CELLS[pair[1]]
        path = material.catalog.paths[material.test.ids[row]]
        return CORRUPTIONS[kind](np.asarray(material.test.plain[row : row + 1]), [path], severity=severity, seed=seed)[
            0
        ]

    with ThreadPoolExecutor(cores()) as pool:
        for start in range(0, len(pairs), _AT_ONCE):
            if start and bench.clock.left() < longest + _TAIL_SECONDS:
                break
            began, some = time.monotonic(), pairs[start : start + _AT_ONCE]
            views, labels = np.stack(list(pool.map(view, some))), material.test_labels[order[[at for at, _ in some]]]
            right = [one.right(logits, labels) for one, logits in zip(readings, answering(views), strict=True)]
            for row, (at, cell) in enumerate(some):
                yield _Seen(at, cell, tuple(float(one[row]) for one in right))
            bench.watcher.advance(len(some))
            longest = max(0.9 * longest, time.monotonic() - began)


def _cell(at: int, turn: int, n: int) -> int:
    """Which corruption the image at that place of n is under in that pass: for no image twice in as many passes as there are.

    Any run of pairs, pass after pass, has all corruptions equally often, give or take one.
    """
    again = turn * math.gcd(n, len(CELLS)) // len(CELLS)  # rounds after which the same would come
    return (at + turn * n + again) % len(CELLS)


def _scores(seen: Sequence[_Seen], n: int, groups: np.ndarray | None) -> dict[str, Any]:
    """Each model's share and their differences: of all corruptions, of those unlike all that was trained on, and of each kind."""
    image, cell = np.array([one.image for one in seen]), np.array([one.cell for one in seen])
    right = np.array([one.right for one in seen]).T
    kinds = np.array([CELLS[one][0] for one in cell])
    severities = np.array([CELLS[one][1] for one in cell])
    unlike = np.isin(kinds, sorted(UNLIKE))
    parts = {_ALL: np.ones(len(seen), bool), _NEW: unlike, _LIKE: ~unlike}
    parts |= {f"kind {kind}": kinds == kind for kind in CORRUPTIONS}
    parts |= {f"severity {severity}": severities == severity for severity in SEVERITIES}
    sums = {
        name: [np.bincount(image, of * values, minlength=n) for values in (*right, np.ones(len(seen)))]
        for name, of in parts.items()
        if of.any()
    }
    told = {name: _told(np.array(hits), count, groups) for name, (*hits, count) in sums.items()}
    of_kinds = [name for name in told if name.startswith("kind ")]
    for name, p in zip(of_kinds, holm([told[name]["paired"]["p"] for name in of_kinds]), strict=True):
        told[name]["p_holm"] = p
    return {
        "corrupted": {name: told[name] for name in (_ALL, _NEW, _LIKE) if name in told},
        "kinds": {name.removeprefix("kind "): told[name] for name in of_kinds},
        "severities": {name.removeprefix("severity "): told[name] for name in told if name.startswith("severity ")},
    }


def _told(hits: np.ndarray, count: np.ndarray, groups: np.ndarray | None) -> dict[str, Any]:
    """Of sums [models n] and counts [n] by image: the shares, their intervals and the paired differences, by whole images."""
    known = count > 0
    hits, count = hits[:, known], count[known]
    of = None if groups is None else np.unique(groups[known], return_inverse=True)[1]
    sums = {**dict(zip(_NAMES, hits, strict=False)), "paired": hits[1] - hits[0]}
    sums |= {"beyond": hits[1] - hits[2]} if len(hits) > 2 else {}

    def statistics(weights: np.ndarray) -> dict[str, np.ndarray]:
        whole = weights @ count
        with np.errstate(invalid="ignore", divide="ignore"):
            return {name: weights @ values / whole for name, values in sums.items()}

    found: dict[str, Bootstrapped] = bootstrapped(statistics, len(count), groups=of)
    told = {name: one.interval().to_json() if name in _NAMES else asdict(one.paired()) for name, one in found.items()}
    return {**told, "views": int(count.sum())}
