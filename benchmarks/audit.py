"""How much of what is planted the audit finds, what it reports besides, and how fast it is; one JSON object on stdout.

usage: audit.py [duplicates] [leaks] [labels] [scanning] [speed]        default: all, in this order
`signs` and `caltech101` are found in $BURNISH_TEST_DATA and only read; copies with planted faults go to a temporary folder.
Duplicates and leaks: random subsets, 3 seeds; each planted picture comes from an image of its own. A planted pair is found
when both are in one finding. A false pair is one that is reported and neither planted nor, between the images that its two
come from, reported by the same audit on the unchanged subset. Labels: a share of them changed to another class at random.
Speed: the audit without a network in this process, medians of 3 after a warm-up. Scanning: each case in a process of its own.
"""

from __future__ import annotations

import csv
import functools
import importlib
import itertools
import json
import math
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from burnish.data.audit.labels import suspects
from burnish.data.looks import look_at
from burnish.data.sources import open_source
from burnish.granted import cores
from burnish.runtime import Nobody

SHARED = Path(os.environ.get("BURNISH_TEST_DATA", "."))
SEEDS = (0, 1, 2)
SUBSETS = {"signs": 1000, "caltech101": 1500}  # images
OF_A_KIND = 150
EXACT = tuple(f"exact, {label} class, {split} split" for label in ("same", "other") for split in ("same", "other"))
NEAR: dict[str, dict[str, tuple[float, float]]] = {  # kind -> what is drawn, from and to
    "resized": {"scale": (0.4, 1.6)},
    "JPEG quality": {"quality": (40, 90)},
    "cropped": {"right": (0, 1), "down": (0, 1)},
    "mirrored": {"mirror": (1, 1)},
    "slight colour": {"brightness": (0.9, 1.1), "contrast": (0.9, 1.1), "saturation": (0.85, 1.15)},
    "mirrored + cropped + JPEG 60": {"mirror": (1, 1), "right": (0, 1), "down": (0, 1), "quality": (60, 60)},
}
ENHANCED = {"brightness": ImageEnhance.Brightness, "contrast": ImageEnhance.Contrast, "saturation": ImageEnhance.Color}
LABEL_SETS = (("signs", None), ("caltech101", 30), ("caltech101", None))  # and so many classes, drawn for each seed
FLIPS = (0.20, 0.05)
SCORES = ("precision_at_flipped", "list_precision", "list_recall", "flipped_that_probe_believes")
SMALL, ROWS, FOLDERS = 100_000, 1_000_000, 1_000  # files in 100 class folders; rows of a CSV of files in 1,000 folders
Pair = tuple[str, str]


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        return print(json.dumps(opened(Path(sys.argv[2]))))
    asked = sys.argv[1:] or list(PARTS)
    if set(asked) - set(PARTS):
        sys.exit(f"unknown part: {' '.join(asked)}; expected some of {', '.join(PARTS)}")
    from burnish.record.facts import machine

    out: dict[str, Any] = {"benchmark": "audit", "machine": machine()}
    with tempfile.TemporaryDirectory(prefix="burnish-audit-") as folder:
        for part in (part for part in PARTS if part in asked):
            out[part] = PARTS[part](Path(folder))
    print(json.dumps(out, indent=1))


def told(found: Any) -> None:
    print(time.strftime("%H:%M:%S"), json.dumps(found), file=sys.stderr, flush=True)


class Row(NamedTuple):
    path: str
    label: str
    split: str


class Plant(NamedTuple):
    """A picture that was put beside the one it was made from."""

    kind: str
    row: Row
    source: Row
    how: dict[str, float]  # what was drawn
    pair: Pair


class Reported(NamedTuple):
    """What the audit says of one copy."""

    plants: list[Plant]
    origin: dict[str, str]  # path of a plant -> of its source
    images: int
    duplicates: set[Pair]  # every two files of one finding
    conflicts: set[Pair]  # the same of conflicts of labels
    leaks: list[Pair]  # (evaluated image, image that it is also)


class Run(NamedTuple):
    """One subset and one seed: what is reported of it unchanged, with exact copies, and with near-duplicates."""

    name: str
    seed: int
    unchanged: Reported
    exact: Reported
    near: Reported

    def what(self, report: Reported, pair: Pair) -> str:
        """Whether a reported pair is planted, natural or false."""
        come = ordered(*(report.origin.get(path, path) for path in pair))
        return "planted" if come[0] == come[1] else "natural" if come in self.unchanged.duplicates else "false"


@functools.cache
def runs_of_planted(home: Path) -> list[Run]:
    return [run_of_planted(home, name, seed) for name in SUBSETS for seed in SEEDS]


def run_of_planted(home: Path, name: str, seed: int) -> Run:
    rng = random.Random(f"{name} {seed}")
    rows = subset(name, SUBSETS[name], rng)
    both = planted(rows, {kind: {} for kind in EXACT}, rng), planted(rows, NEAR, rng)
    run = Run(name, seed, *(reported(home, rows, plants) for plants in ([], *both)))
    told([name, seed, summed([run])["found"]])
    return run


def subset(name: str, count: int, rng: random.Random) -> list[Row]:
    with open(SHARED / f"{name}.csv", newline="") as file:
        return sorted(rng.sample([Row(**line) for line in csv.DictReader(file)], count))


def planted(rows: list[Row], kinds: dict[str, Any], rng: random.Random) -> list[Plant]:
    """Where each picture goes; near-duplicates take turns with same and other class and split."""
    names = [kind for kind in kinds for _ in range(OF_A_KIND)]
    classes, plants = sorted({row.label for row in rows}), []
    for place, (kind, source) in enumerate(zip(names, rng.sample(rows, len(names)), strict=True)):
        turn = EXACT.index(kind) if kind in EXACT else place % 4
        label = source.label if turn < 2 else rng.choice([one for one in classes if one != source.label])
        split = source.split if turn % 2 == 0 else {"train": "test", "test": "train"}[source.split]
        row = Row(f"planted/{label}/{place:04d}.jpg", label, split)
        how = {word: round(rng.uniform(*ends), 3) for word, ends in kinds[kind].items()}
        plants.append(Plant(kind, row, source, how, ordered(row.path, source.path)))
    return plants


def reported(home: Path, rows: list[Row], plants: list[Plant]) -> Reported:
    """A copy of the rows with the plants, audited through the public call."""
    from burnish.api import audit

    listed = [*rows, *(plant.row for plant in plants)]
    with tempfile.TemporaryDirectory(dir=home) as folder:
        copy = Path(folder)
        for row in listed:
            (copy / row.path).parent.mkdir(parents=True, exist_ok=True)
        for how, source, row in [({}, row, row) for row in rows] + [
            (plant.how, plant.source, plant.row) for plant in plants
        ]:
            make(how, SHARED / source.path, copy / row.path)
        (copy / "data.csv").write_text("path,label,split\n" + "".join(",".join(row) + "\n" for row in listed))
        found = audit(copy / "data.csv", model=None, cache="off")
    assert found.facts["counts"]["used"] == len(listed), found.facts["counts"]
    origin = {plant.row.path: plant.source.path for plant in plants}
    duplicates = pairs_of([*found.of("exact_duplicate"), *found.of("near_duplicate")])
    leaks = [(one.paths[0], one.paths[1]) for one in found.of("leak")]
    return Reported(plants, origin, len(listed), duplicates, pairs_of(found.of("label_conflict")), leaks)


def pairs_of(findings: list[Any]) -> set[Pair]:
    return {ordered(*pair) for one in findings for pair in itertools.combinations(one.paths, 2)}


def ordered(*pair: str) -> Pair:
    return min(pair), max(pair)


def make(how: dict[str, float], source: Path, target: Path) -> None:
    """The planted file; JPEG quality 95 where nothing else is drawn."""
    if not how:
        shutil.copyfile(source, target)
        return
    with Image.open(source) as opened:
        image = ImageOps.exif_transpose(opened).convert("RGB")
    if "scale" in how:
        width, height = (max(8, round(side * how["scale"])) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    if "mirror" in how:
        image = ImageOps.mirror(image)
    if "right" in how:  # 95 % of each side, at a random place
        width, height = round(0.95 * image.width), round(0.95 * image.height)
        left, top = round(how["right"] * (image.width - width)), round(how["down"] * (image.height - height))
        image = image.crop((left, top, left + width, top + height))
    for word, enhance in ENHANCED.items():
        image = enhance(image).enhance(how.get(word, 1.0))
    image.save(target, "JPEG", quality=round(how.get("quality", 95)))


def duplicates(home: Path) -> dict[str, Any]:
    runs = runs_of_planted(home)
    sets = {name: summed([run for run in runs if run.name == name]) for name in SUBSETS}
    single = [{"set": run.name, "seed": run.seed, **summed([run]), **listed(run)} for run in runs]
    out = {"goals": "exact 100 %; near at least 95 % at no more than 1 % false pairs", "images": SUBSETS}
    return {**out, "of_each_kind": OF_A_KIND, **sets, "both": summed(runs), "runs": single}


def summed(runs: list[Run]) -> dict[str, Any]:
    held = [(p.kind, p.pair in report.duplicates) for run in runs for report in run[3:] for p in report.plants]
    kinds = {kind: statistics.fmean(found for own, found in held if own == kind) for kind in (*EXACT, *NEAR)}
    kinds |= {word: statistics.fmean(kinds[kind] for kind in own) for word, own in (("exact", EXACT), ("near", NEAR))}
    sums = Counter(run.what(run.near, pair) for run in runs for pair in run.near.duplicates)
    possible = sum(math.comb(run.near.images, 2) for run in runs)
    return {
        "found": {kind: round(share, 4) for kind, share in kinds.items()},
        "pairs_beside_near_plants": {word: sums[word] for word in ("planted", "natural", "false")},
        "false_share_of_reported": sums["false"] / max(1, sums.total()),
        "false_per_million_possible": 1e6 * sums["false"] / possible,
    }


def listed(run: Run) -> dict[str, Any]:
    natural = sorted(run.unchanged.duplicates)
    false = sorted(pair for pair in run.near.duplicates if run.what(run.near, pair) == "false")
    missed = [[p.kind, p.source.path, p.how] for p in run.near.plants if p.pair not in run.near.duplicates]
    come = [[run.near.origin.get(path, path) for path in pair] for pair in false]
    return {"natural_pairs": len(natural), "some_natural": natural[:5], "false_come_from": come, "missed": missed}


def leaks(home: Path) -> dict[str, Any]:
    """Planted pairs across train and test whose evaluated image is reported with the other; and those of two classes."""
    out: dict[str, Any] = {"goals": "100 % of the exact ones"}
    for word in ("exact", "near"):
        found, conflicts, false = [], [], 0
        for run, report in ((run, getattr(run, word)) for run in runs_of_planted(home)):
            across = [p for p in report.plants if p.row.split != p.source.split]
            named = [sorted((p.row, p.source), key=lambda row: row.split) for p in across]  # test, train
            found += [(first.path, second.path) in report.leaks for first, second in named]
            conflicts += [p.pair in report.conflicts for p in report.plants if p.row.label != p.source.label]
            false += sum(run.what(report, pair) == "false" for pair in report.leaks)
        shares = {"found": statistics.fmean(found), "label_conflicts_found": statistics.fmean(conflicts)}
        out[word] = {"planted": len(found), **shares, "false": false}
    return out


def labels(home: Path) -> dict[str, Any]:
    means, cases = [], []
    for (name, classes), share in itertools.product(LABEL_SETS, FLIPS):
        own = [label_case(home, name, classes, share, seed) for seed in SEEDS]
        means.append({"set": name, "classes": own[0]["classes"], "flipped_share": share,
                      **{score: statistics.fmean(one[score] for one in own) for score in SCORES}})  # fmt: skip
        told(means[-1])
        cases += own
    return {"goal": "at 20 %, precision at least 0.8 among as many as were flipped", "means": means, "cases": cases}


def label_case(home: Path, name: str, classes: int | None, share: float, seed: int) -> dict[str, Any]:
    """precision_at_flipped: of all images ranked by margin, the first as many as were flipped; list: the audit's findings."""
    from burnish.api import audit

    rng = np.random.default_rng([seed, round(1000 * share)])
    catalog = open_source(SHARED / f"{name}.csv", for_training=False)
    drawn = rng.choice(len(catalog.classes), classes or len(catalog.classes), replace=False)
    kept = np.flatnonzero(np.isin(catalog.labels, drawn))
    present, true = np.unique(catalog.labels[kept], return_inverse=True)
    given, flipped = true.copy(), rng.choice(len(kept), round(share * len(kept)), replace=False)
    given[flipped] = (true[flipped] + rng.integers(1, len(present), len(flipped))) % len(present)
    paths = tuple(catalog.paths[entry] for entry in kept)
    wrong = replace(catalog, paths=paths, labels=given, classes=tuple(catalog.classes[one] for one in present),
                    splits=(None,) * len(kept))  # fmt: skip
    began = time.monotonic()
    module = importlib.import_module("burnish.auditing")
    with mock.patch.object(module, "label_findings", wraps=module.label_findings) as heard:
        found = audit(wrong, cache=str(home / "pixels"), seed=seed)
    _, ids, probabilities = heard.call_args.args  # out of fold, as the audit made them
    _, margin = suspects(given[ids], probabilities)
    is_flipped, guess = np.isin(ids, flipped), probabilities.argmax(1)
    top = np.argsort(-margin, kind="stable")[: len(flipped)]
    doubted = {one.paths[0] for one in found.of("label_error")}
    hits = len(doubted & {paths[row] for row in flipped})
    return {
        "set": name, "classes": len(present), "images": len(kept), "seed": seed, "flipped_share": share,
        "flipped": len(flipped), "precision_at_flipped": float(is_flipped[top].mean()), "listed": len(doubted),
        "list_precision": hits / max(1, len(doubted)), "list_recall": hits / len(flipped),
        "flipped_that_probe_believes": float((guess == given[ids])[is_flipped].mean()),
        "probe_accuracy_on_true": float((guess == true[ids]).mean()), "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip


def scanning(home: Path) -> dict[str, Any]:
    """Everything lies in the disk's cache: it was written just before."""

    def child(data: Path) -> dict[str, Any]:
        command = [sys.executable, __file__, "--child", str(data)]
        return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=900).stdout)

    out: dict[str, Any] = {"goals": "100,000 small files in 60 s; a CSV of 1,000,000 rows in 1 GB"}
    fill(home / "small", folders=100, per_folder=SMALL // 100)
    out["folders"] = [child(home / "small") for _ in SEEDS]
    shutil.rmtree(home / "small")
    names = fill(home / "wide", folders=FOLDERS, per_folder=ROWS // FOLDERS)
    rows = "".join(f"{name},{name.partition('/')[0]}\n" for name in names)
    (home / "wide" / "data.csv").write_text("path,label\n" + rows)
    out |= {"csv": child(home / "wide" / "data.csv"), "the_same_files_as_folders": child(home / "wide")}
    told(out)
    shutil.rmtree(home / "wide")
    return out


def fill(root: Path, *, folders: int, per_folder: int) -> list[str]:
    """Tiny PNGs, one written for each place in a folder and linked into all; their paths."""
    rng, names = np.random.default_rng(0), []
    for folder, place in itertools.product(range(folders), range(per_folder)):
        name = f"class{folder:04d}/image_{place:05d}.png"
        names.append(name)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if folder == 0:
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(root / name)
        else:
            os.link(root / names[place], root / name)
    return names


def opened(data: Path) -> dict[str, Any]:
    """Seconds and peak memory of opening; of few images also the seconds of hashing and of looking at headers."""

    def peak_mib() -> int:  # not getrusage, whose figure begins with the parent's
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024

    before, began = peak_mib(), time.monotonic()
    catalog = open_source(data, for_training=False)
    seconds = round(time.monotonic() - began, 2)
    out = {"images": len(catalog), "seconds": seconds, "peak_mib": peak_mib(), "peak_mib_before": before}
    began = time.monotonic()
    if len(catalog) <= SMALL:
        assert (look_at(catalog, np.arange(len(catalog)), workers=cores()).headers["width"] == 8).all()
        out["hash_and_header_seconds"] = round(time.monotonic() - began, 2)
    return out


class Marks(Nobody):
    """A watcher that keeps when each stage began, and when it was first and last told of an image."""

    def __init__(self) -> None:
        self.began, self.first, self.last, self._stage = {}, {}, {}, ""

    def stage(self, name: str, *, total: int | None = None, detail: str = "") -> None:
        self._stage, self.began[name] = name, time.monotonic()

    def advance(self, count: int) -> None:
        self.last[self._stage] = time.monotonic()
        self.first.setdefault(self._stage, self.last[self._stage])


def speed(home: Path) -> dict[str, Any]:
    for row in subset("caltech101", 3000, random.Random(0)):
        kept, resized = (home / form / row.path.partition("/")[2] for form in ("as it is", "300 x 200"))
        for target in (kept, resized):
            target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(SHARED / row.path, kept)
        with Image.open(kept) as image:
            image.convert("RGB").resize((300, 200), Image.Resampling.BICUBIC).save(resized, "JPEG", quality=90)
    for _ in range(40):
        time.sleep(10 if os.getloadavg()[0] >= 0.7 else 0)  # the last minute's
    out: dict[str, Any] = {"goal": "300 images per second on 2 cores", "load_before": os.getloadavg()}
    for form in ("as it is", "300 x 200"):
        one_audit(home / form)  # a warm-up
        runs = sorted((one_audit(home / form) for _ in SEEDS), key=lambda run: run["seconds"])
        out[f"caltech101, {form}"] = {**runs[1], "all_seconds": [run["seconds"] for run in runs]}
    return {**out, "load_after": os.getloadavg()}


def one_audit(root: Path) -> dict[str, Any]:
    from burnish.api import audit

    marks, began = Marks(), time.monotonic()
    result = audit(root, model=None, cache="off", watcher=marks)
    ended, images = time.monotonic(), result.facts["counts"]["used"]
    decode, same = marks.began["decode"], marks.began["same pictures"]
    told_all = decode + result.facts["seconds"]
    stages = {"open": decode - began, "hash and headers": marks.first["decode"] - decode,
              "decode": same - marks.first["decode"], "candidates for twins": marks.last["same pictures"] - same,
              "laying twins over each other, and findings": told_all - marks.last["same pictures"],
              "thumbnails": ended - told_all}  # fmt: skip
    seconds = ended - began
    return {"images": images, "seconds": seconds, "images_per_second": images / seconds, "stage_seconds": stages}


PARTS = {part.__name__: part for part in (duplicates, leaks, labels, scanning, speed)}

if __name__ == "__main__":
    main()
