"""The facts of one run as plain values: what result.json holds and the report shows."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch

from burnish.backbones.reading.hub import public
from burnish.choose.decide import Decision
from burnish.choose.material import Bench, Material
from burnish.choose.proof import Contender, Tested
from burnish.data.audit.findings import Finding, by_kind, counted
from burnish.data.catalog import Splits
from burnish.granted import cores
from burnish.labels import counts, several
from burnish.measure.bootstrap import paired_shares, share
from burnish.measure.calibration import adaptive_ece, ece, reliability
from burnish.measure.finding import finding
from burnish.measure.held_out import declining
from burnish.measure.ood import FAMILIAR
from burnish.measure.scores import Scores, score
from burnish.measure.several import SeveralScores, score_several
from burnish.measure.verdict import Verdict, judge, judge_several
from burnish.recipe import Recipe
from burnish.record.cases import cases_of, told

_LIBRARIES = ("torch", "torchvision", "timm", "numpy", "pillow", "scikit-learn", "safetensors")
_CASES_KEPT = 12  # of a kind of finding
_SCORED = ("probe", "tuned", "scratch")


def verdict_of(tested: list[Tested], material: Material, *, seconds: float) -> Verdict:
    """Tuned against probe on the same test images; only the probe when nothing was tuned."""
    probe, tuned = tested[0], next((one for one in tested if one.contender.role == "tuned"), None)
    if material.several:
        found = None if tuned is None else tuned.probabilities
        return judge_several(
            material.test_labels, probe.probabilities, found, seconds=seconds, groups=material.test_groups
        )
    found = None if tuned is None else tuned.right
    return judge(probe.right, found, seconds=seconds, groups=material.test_groups)


def facts_of(
    *,
    tested: list[Tested],
    kept: Contender,
    verdict: Verdict,
    decisions: list[Decision],
    history: list[dict[str, Any]],
    first_model_seconds: float,
    sittings: int,
    material: Material,
    findings: Sequence[Finding],
    baselines: Sequence[dict[str, Any]],
    more_data: dict[str, Any] | None,
    splits: Splits,
    bench: Bench,
    data: str,
    command: str,
) -> dict[str, Any]:
    """Everything worth keeping about a finished run."""
    labels, classes, groups = material.test_labels, material.catalog.classes, material.test_groups
    of_kept = next(one for one in tested if one.contender is kept)
    # Pages are passed on; what going on needs is in run.json and recipe.toml.
    model, called = bench.recipe.model, public(bench.recipe.model)
    return {
        "title": f"{data}: {kept.name} on {kept.backbone.name}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "burnish": version_of("burnish"),
        "data": data,
        "verdict": verdict.to_json(),
        "kept": kept.name,
        "kept_role": kept.role,
        "task": "several classes an image" if material.several else "one class an image",
        "scores": {
            _role(one): scores_of(one, labels, classes, groups).to_json() for one in tested if _role(one) in _SCORED
        },
        "image_sizes": {_role(one): one.contender.preprocess.size for one in tested if _role(one) in _SCORED},
        "validation": {
            one.contender.name: one.contender.validation_accuracy
            for one in tested
            if one.contender.role in ("probe", "tuned")
        },
        "decisions": [decision.to_json() for decision in decisions],
        "history": history,
        **_about_data(material, splits, findings),
        "leaky": _without_leaky(of_kept, material),
        "calibration": _calibration(of_kept, labels, groups),
        "declining": _declining(of_kept, labels, groups),
        "finding": _finding(of_kept, material),
        "baselines": [*_majority(material, of_kept, bench.recipe), *_scratch(tested, of_kept, groups), *baselines],
        "more_data": more_data,
        "familiarity": _beyond(of_kept, groups),
        "mistakes": _mistakes(of_kept, material),
        "model": _about_model(kept),
        "first_model_seconds": first_model_seconds,
        "sittings": sittings,  # processes that worked on the run: more than one when it was taken up after a death
        "budget_seconds": bench.recipe.budget_seconds,
        "recipe": {**asdict(bench.recipe), "model": called},
        "machine": machine(bench.device),
        "command": command.replace(model, called),
    }


def _about_data(material: Material, splits: Splits, findings: Sequence[Finding]) -> dict[str, Any]:
    """How many images there are, for what they were used, what is wrong with them."""
    catalog = material.catalog
    used = len(material.labels) + len(material.test_labels)
    return {
        "counts": {
            "scanned": catalog.scanned - material.untested,
            "used": used,
            "named": len(catalog.named),
            "skipped": material.skipped,
            "train": len(material.train_rows),
            "val": len(material.val_rows),
            "test": len(material.test_labels),
        },
        "named": [asdict(named) for named in catalog.named],
        "findings": {
            "found": counted(findings),
            "kinds": by_kind(findings, cases=_CASES_KEPT),
            "search": material.search_note,
        },
        "class_counts": _class_counts(material),
        "classes": list(catalog.classes),
        "splits": {"how": splits.how, "sha256": splits.sha256},
    }


def _about_model(kept: Contender) -> dict[str, Any]:
    """The kept network: where it is from, how it sees images, how large it is."""
    backbone = kept.backbone
    return {
        "name": backbone.name,
        "licence": backbone.licence,
        "sha256": backbone.sha256,
        "source": backbone.source,
        "loading": list(backbone.notes),
        "width": backbone.width,
        "parameters": sum(parameter.numel() for parameter in kept.classifier.parameters()),
        "preprocess": kept.preprocess.to_json(),
        "temperature": kept.temperature,
    }


def machine(device: torch.device | None = None) -> dict[str, Any]:
    """What this was run with; device: on which, where that is known."""
    cuda = torch.cuda.is_available() and (device is None or device.type == "cuda")
    return {
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": cores(),
        **({"accelerator": torch.cuda.get_device_name(device)} if cuda else {}),
        "python": sys.version.split()[0],
        **{name: version_of(name) for name in _LIBRARIES},
    }


def version_of(package: str) -> str:
    """The installed version, "none" when it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def scores_of(
    tested: Tested, labels: np.ndarray, classes: Sequence[str], groups: np.ndarray | None
) -> Scores | SeveralScores:
    """All scores of one contender."""
    if several(labels):
        return score_several(tested.probabilities, labels, classes, tested.contender.thresholds, groups)
    return score(tested.probabilities, labels, classes, groups)


def _role(tested: Tested) -> str:
    return tested.contender.role


def _class_counts(material: Material) -> list[dict[str, Any]]:
    """Images by class and split."""
    k = len(material.catalog.classes)
    columns = {
        "train": counts(material.labels[material.train_rows], k),
        "val": counts(material.labels[material.val_rows], k),
        "test": counts(material.test_labels, k),
    }
    return [
        {"name": name, **{split: int(found[index]) for split, found in columns.items()}}
        for index, name in enumerate(material.catalog.classes)
    ]


def _scratch(tested: list[Tested], kept: Tested, groups: np.ndarray | None) -> list[dict[str, Any]]:
    """The same network without its pretraining."""
    found = [one for one in tested if one.contender.role == "scratch"]
    return [
        baseline("scratch", "the same network from random weights, as long a training", one.right, kept.right, groups)
        for one in found
    ]


def _majority(material: Material, kept: Tested, recipe: Recipe) -> list[dict[str, Any]]:
    """The answer that knows no image: the class that most training images have."""
    if material.several or recipe.baselines == "none":
        return []
    most = int(np.bincount(material.labels[material.train_rows]).argmax())
    name = material.catalog.classes[most]
    said = f"always the commonest class, {name}"
    return [baseline("majority", said, material.test_labels == most, kept.right, material.test_groups)]


def baseline(
    key: str, name: str, right: np.ndarray, kept_right: np.ndarray, groups: np.ndarray | None
) -> dict[str, Any]:
    """A simpler answer on the same test images, of these groups, and what the kept model has over it."""
    facts = paired_shares(right, kept_right, groups)
    return {"key": key, "name": name, "accuracy": share(right, groups).to_json(), "paired": asdict(facts)}


def _calibration(tested: Tested, labels: np.ndarray, groups: np.ndarray | None) -> dict[str, Any]:
    """Expected calibration error without and with the temperature, and the reliability diagram with it."""
    t = tested.contender.temperature
    known = np.maximum(tested.probabilities, 1e-300)
    raw = np.power(known, t)  # softmax(z) from softmax(z / t), up to its sum
    raw /= (
        raw + np.power(np.maximum(1.0 - tested.probabilities, 1e-300), t)
        if several(labels)
        else raw.sum(1, keepdims=True)
    )
    return {
        "temperature": t,
        "ece_before": ece(raw, labels),
        "ece_after": ece(tested.probabilities, labels),
        "adaptive_ece_before": adaptive_ece(raw, labels),
        "adaptive_ece_after": adaptive_ece(tested.probabilities, labels),
        "reliability": reliability(tested.probabilities, labels, groups=groups),
    }


def _without_leaky(tested: Tested, material: Material) -> dict[str, Any] | None:
    """Accuracy on the test images that nothing in train or val nearly shows; None when that is all of them."""
    count = int(material.leaky.sum())
    if not count:
        return None
    rest = ~material.leaky
    right, groups = tested.right[rest], material.catalog.grouped(material.test.ids[rest])
    accuracy = share(right, groups).to_json() if len(right) else None
    return {"images": count, "accuracy_without": accuracy}


def _mistakes(tested: Tested, material: Material) -> list[dict[str, Any]]:
    """The wrong answers given with most confidence; of several classes an image, those that cost most loss."""
    found = [one for one in cases_of(tested, material.test_labels) if one.kind == "mistake"]
    return [told(one, tested, material) for one in found]


def _beyond(tested: Tested, groups: np.ndarray | None) -> dict[str, Any] | None:
    """How many of the run's own test images lie beyond what its package calls familiar."""
    familiarity, strange = tested.contender.familiarity, _strange(tested)
    if familiarity is None or strange is None:
        return None
    return {"limit": familiarity.limit, "meant": 1.0 - FAMILIAR, "beyond": share(strange, groups).to_json()}


def _strange(tested: Tested) -> np.ndarray | None:
    """Which test images lie beyond what is familiar, bool [n]."""
    familiarity = tested.contender.familiarity
    return None if familiarity is None or tested.strangeness is None else tested.strangeness > familiarity.limit


def _declining(tested: Tested, labels: np.ndarray, groups: np.ndarray | None) -> dict[str, Any] | None:
    """What `predict --reject` and `--sets` do on the test images."""
    held_out = tested.contender.held_out
    if held_out is None:
        return None
    return declining(held_out, tested.probabilities, labels, strange=_strange(tested), groups=groups)


def _finding(tested: Tested, material: Material) -> dict[str, Any] | None:
    """Of two classes how well the one with fewer training images is found; of equals the second."""
    classes = material.catalog.classes
    if material.several or len(classes) != 2:
        return None
    first, second = counts(material.labels, 2)
    sought = 0 if first < second else 1
    found = finding(
        tested.probabilities,
        material.test_labels,
        sought=sought,
        held_out=tested.contender.held_out,
        groups=material.test_groups,
    )
    return {"class": classes[sought], "other": classes[1 - sought], **found}
