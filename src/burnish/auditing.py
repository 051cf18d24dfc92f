"""The audit as a verb: decode every file, look for what would spoil a training or its proof, say what to do."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from burnish.backbones.fast.frozen import fold_for_inference
from burnish.backbones.fast.int8 import IMAGES
from burnish.backbones.spec import Backbone
from burnish.data.audit.findings import Finding, by_kind, counted, in_order, in_words
from burnish.data.audit.labels import label_findings, outlier_findings, undoubted
from burnish.data.audit.whole import audited, same_pictures
from burnish.data.cache import Pixels, read_pixels
from burnish.data.catalog import Catalog, Splits
from burnish.data.contents import is_redrawn
from burnish.data.deep import white_of
from burnish.data.looks import look_at
from burnish.data.sources.assemble import without
from burnish.data.split import held_together, make_splits
from burnish.data.store import PixelStore
from burnish.data.views import normalised
from burnish.errors import shown
from burnish.granted import cores
from burnish.labels import counts as counts_of
from burnish.labels import several
from burnish.methods.heads import choose_head
from burnish.record.facts import machine, version_of
from burnish.reports.cells import escaped, paragraph, table_of_cells
from burnish.runtime import Watcher, evenly
from burnish.terms import Preprocess
from burnish.train.around import pick_device
from burnish.train.features import batched, outputs, rounded_form, takes_half

# Of JPEGs larger than a few times this, a half or a quarter of the pixels is decoded: all of the file is still read.
_SMALL = Preprocess(size=64, crop=1.0, fit="squash")
_CASES_SHOWN = 60  # of a kind, with thumbnails
_CASES_IN_A_CELL, _PICTURES_OF_A_CASE = 3, 4  # of a kind, in a notebook
_FEWEST = 8  # images of a class that labels are doubted from: fewer say nothing


@dataclass(frozen=True, repr=False)
class Audit:
    """What is wrong with labelled images; `findings` has the worst first."""

    findings: tuple[Finding, ...]
    facts: dict[str, Any]  # counts, seconds, machine: the content of result.json
    thumbnails: dict[str, str]  # path -> data URI, of the images in the cases that are shown

    def __repr__(self) -> str:
        found = in_words(counted(self.findings)) or "nothing found that must be dealt with"
        return f"Audit({self.facts['counts']['scanned']:,} images: {found})"

    def _repr_html_(self) -> str:
        rows: list[tuple[str, ...]] = []
        for kind in by_kind(self.findings, cases=_CASES_IN_A_CELL):
            cases = "<br>".join(self._case(one) for one in kind["cases"])
            rows.append((f"{kind['count']:,}", escaped(kind["title"]), cases, escaped(kind["advice"])))
        names = ("cases", "what", "the first ones", "what to do")
        return paragraph(repr(self)) + (table_of_cells(names, rows) if rows else "")

    def _case(self, case: Mapping[str, Any]) -> str:
        """A case as HTML: its pictures where they are at hand, what it is about, the evidence."""
        pictures = [self.thumbnails[path] for path in case["paths"] if path in self.thumbnails]
        images = "".join(f'<img src="{escaped(picture)}" height="48"> ' for picture in pictures[:_PICTURES_OF_A_CASE])
        about = ", ".join(case["paths"][:_PICTURES_OF_A_CASE]) or case["subject"]
        return images + escaped(f"{about}: {case['evidence']}")

    def of(self, kind: str) -> list[Finding]:
        """The findings of one kind, such as "leak" or "label_error"."""
        return [one for one in self.findings if one.kind == kind]

    @property
    def errors(self) -> list[Finding]:
        """What spoils the training or the proof."""
        return [one for one in self.findings if one.level == "error"]


def run_audit(
    catalog: Catalog, backbone: Backbone | None, *, data: str, seed: int, store: PixelStore | None, watcher: Watcher
) -> Audit:
    """Everything that can be told; without a backbone all but likely label errors and images unlike all others."""
    began, ids = time.monotonic(), np.arange(len(catalog))
    watcher.stage("decode", total=len(ids))
    told = 0

    def on_progress(done: int) -> None:
        nonlocal told
        watcher.advance(done - told if done > told else 0)
        told = done

    preprocess, looks = _SMALL if backbone is None else backbone.preprocess, look_at(catalog, ids, workers=cores())
    preprocess = replace(preprocess, white=white_of(catalog, looks, ids)[0])
    pixels = read_pixels(
        catalog, ids, preprocess=preprocess, workers=cores(), store=store, looks=looks, on_progress=on_progress
    )
    decoded = time.monotonic() - began
    if not len(pixels.ids) and is_redrawn(catalog.contents):  # it is no data set of images
        without(catalog, pixels.named)
    watcher.stage("same pictures", total=len(pixels.ids))
    same, note = same_pictures(pixels, catalog.labels[pixels.ids], on_progress=watcher.advance)
    if note:
        watcher.say(note)
    splits = given_splits(catalog)
    findings = list(audited(catalog, splits, same).findings)
    if backbone is not None and len(pixels.ids):
        together = np.array(held_together(catalog, pixels.ids.tolist(), same.together(catalog)), np.int64)
        findings += _told_by_features(catalog, pixels, backbone, together, seed, pick_device("auto"), watcher)
    ordered = in_order(findings)
    facts = {
        "kind": "audit",
        "data": data,
        "source": catalog.source,
        "model": None if backbone is None else backbone.name,
        "counts": _counts(catalog, pixels),
        "splits": None if splits is None else {word: len(getattr(splits, word)) for word in ("train", "val", "test")},
        "found": counted(ordered),
        "findings": [one.to_json() for one in ordered],
        **_speed(len(pixels.ids), began, decoded),
        "machine": machine(),
        "burnish": version_of("burnish"),
    }
    return Audit(ordered, facts, _thumbnails(catalog, pixels, ordered))


def _counts(catalog: Catalog, pixels: Pixels) -> dict[str, int]:
    """How many images there are, of those that were used and those that were named; and classes."""
    named = len(catalog.named) + len(pixels.named)
    return {"scanned": catalog.scanned, "used": len(pixels.ids), "named": named, "classes": len(catalog.classes)}


def _speed(images: int, began: float, decode_seconds: float) -> dict[str, float]:
    """How long it took, in all and to decode, and how many images a second that is."""
    seconds = time.monotonic() - began
    return {"seconds": seconds, "decode_seconds": decode_seconds, "images_per_second": images / max(1e-9, seconds)}


def given_splits(catalog: Catalog) -> Splits | None:
    """The splits that the data gives; None where it gives none but train."""
    if not {"val", "test"} & set(catalog.splits):
        return None
    return make_splits(catalog, seed=0, test_fraction=0.0, val_fraction=0.0)


def _told_by_features(
    catalog: Catalog,
    pixels: Pixels,
    backbone: Backbone,
    together: np.ndarray,
    seed: int,
    device: Any,
    watcher: Watcher,
) -> Iterable[Finding]:
    """Likely label errors and outliers, by the frozen network's features; equals in together [n] are left out at once."""
    watcher.stage("features", total=len(pixels.ids))
    module, half = backbone.module.to(device), takes_half("auto", device)
    example = normalised(pixels.plain[evenly(len(pixels.ids), IMAGES)], backbone.preprocess).to(device)
    rounded = rounded_form(module, example, sees=len(pixels.ids), precision="auto", device=device)
    features = outputs(
        rounded[0] if rounded is not None else fold_for_inference(module, example[:2], half=half),
        batched(pixels.plain),
        preprocess=backbone.preprocess,
        device=device,
        half=half,
        on_progress=watcher.advance,
    )
    found = list(outlier_findings(catalog, pixels.ids, features))
    labels = catalog.labels[pixels.ids]
    if several(labels):
        return [*found, *_doubted_several(catalog, pixels.ids, features, labels, together, seed, watcher)]
    counts = np.bincount(labels, minlength=len(catalog.classes))
    rows = np.flatnonzero(counts[labels] >= _FEWEST)
    present = np.unique(labels[rows])
    if len(present) < 2:
        watcher.say(f"labels are not doubted: fewer than two classes have {_FEWEST} images")
        return found
    watcher.stage("likely label errors")
    number = np.full(len(catalog.classes), -1)
    number[present] = np.arange(len(present))
    choice = choose_head(
        features[rows], number[labels[rows]], classes=len(present), seed=seed, seconds_left=lambda: float("inf"),
        together=together[rows],
    )  # fmt: skip
    assert choice.probabilities is not None and choice.counted is not None
    probabilities = np.zeros((len(rows), len(catalog.classes)), np.float32)
    probabilities[:, present] = choice.probabilities
    watcher.say(f"a probe is right on {choice.accuracy:.1%} of the images, cross-validated")
    asked = choice.counted
    of = catalog, pixels.ids[rows][asked], probabilities[asked]
    if said := undoubted(*of):
        watcher.say(said)
    return [*found, *label_findings(*of)]


def _doubted_several(
    catalog: Catalog,
    ids: np.ndarray,
    features: np.ndarray,
    labels: np.ndarray,
    together: np.ndarray,
    seed: int,
    watcher: Watcher,
) -> Iterable[Finding]:
    """Likely label errors where an image may have several classes; rare classes are left out of the doubt."""
    common = np.flatnonzero(counts_of(labels, len(catalog.classes)) >= _FEWEST)
    if not len(common):
        watcher.say(f"labels are not doubted: no class has {_FEWEST} images")
        return []
    watcher.stage("likely label errors")
    choice = choose_head(
        features,
        labels[:, common],
        classes=len(common),
        seed=seed,
        seconds_left=lambda: float("inf"),
        together=together,
    )
    assert choice.probabilities is not None
    probabilities = labels.astype(np.float32)  # of a rare class, what is given
    probabilities[:, common] = choice.probabilities
    return label_findings(catalog, ids, probabilities)


def _thumbnails(catalog: Catalog, pixels: Pixels, findings: tuple[Finding, ...]) -> dict[str, str]:
    """Small pictures for the cases that the page shows."""
    shown_cases: dict[str, int] = {}
    wanted: set[str] = set()
    for one in findings:
        shown_cases[one.kind] = shown_cases.get(one.kind, 0) + 1
        if shown_cases[one.kind] <= _CASES_SHOWN and one.kind != "ignored":
            wanted.update(one.paths[:6])
    found = {}
    for row, entry in enumerate(pixels.ids):
        path = catalog.paths[entry]
        if path in wanted:
            aspect = float(pixels.aspects[row])
            size = (64, max(8, round(64 / aspect))) if aspect >= 1 else (max(8, round(64 * aspect)), 64)
            buffer = io.BytesIO()
            Image.fromarray(np.asarray(pixels.thumbs[row : row + 1])[0]).resize(size).save(buffer, "JPEG", quality=75)
            found[path] = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    return found


def strict_sentence(findings: Iterable[Finding], where: str) -> str:
    """Why a strict run stops."""
    errors = [one for one in findings if one.level == "error"]
    first = errors[0]
    subject = first.paths[0] if first.paths else first.subject
    return (
        f"the audit found {len(errors)} error{'s' if len(errors) > 1 else ''}, and --strict stops there; "
        f"the first: {first.kind.replace('_', ' ')}, "
        f"{shown(subject)}: {shown(first.evidence)}; all are in {shown(where)}"
    )
