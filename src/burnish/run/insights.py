"""What comes beside the proof: pictures of mistakes with what the model looked at, their nearest training images, cost."""

from __future__ import annotations

import base64
import io
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from burnish.backbones.changing.anatomy import macs_of
from burnish.backbones.fast.frozen import fold_for_inference
from burnish.choose.features import plain_at
from burnish.choose.limits import Sample, features_of
from burnish.choose.material import Bench, Material
from burnish.choose.proof import Contender, Tested
from burnish.data.views import normalised
from burnish.errors import ModelError, UnreadableImage
from burnish.labels import classes_of
from burnish.measure.cost import latency, peak_memory_bytes
from burnish.record.cases import cases_of, first_of_each, names_of, told
from burnish.reports.explain import maps, overlay, sanity

_NEAR = 3  # training images beside a mistake
_SIDE, _SMALL = 160, 72  # pixels, of a picture and of a neighbour
_LEAST_SECONDS = 1.5  # left on the clock, below which no pictures are made
_LAST_SECONDS = 1.5  # what follows the pictures: what things cost, the page
_SHUFFLED = 1.2e-7  # seconds in which a weight is put elsewhere: 86 million took 8.9
_FOLDING = 12.0  # passes of the plain network that making its fast form and trying it out take, and some to spare
# Passes of the fast form that a picture takes: forward and backward through the plain network, and its nearest images.
_PASSES = 6.0


def pictures_of(
    tested: Tested, material: Material, bench: Bench, sample: Sample | None, *, images_per_second: float
) -> dict[str, Any]:
    """Pictures of the cases as data URIs, by path, with maps and neighbours; plain values, {"late": True} when the clock is out.

    As many as there is time for, of each kind the first; images_per_second: forward, by the fast form of the kept network.
    {"cases": [{… of `cases.told`, thumbnail, heat, near: [{path, label, thumbnail}]}], "without": how many of them have no
    pictures, "sanity": …, "looked_among": …}
    """
    kept = tested.contender
    cases = cases_of(tested, material.test_labels)
    if not cases:
        return {}
    left = bench.clock.left()
    if left < _LEAST_SECONDS:
        return {"late": True}
    rest = []
    if bench.clock.budget_seconds is not None:
        whole = cases
        cases = first_of_each(whole, most=max(1, int((left - _LAST_SECONDS) * images_per_second / _PASSES)))
        rest = [told(case, tested, material) for case in whole if case not in cases]
    bench.watcher.stage("explanations", total=len(cases))
    rows = np.array([case.row for case in cases])
    if kept.preprocess == material.preprocess:
        pixels = np.stack([material.test.plain[row : row + 1][0] for row in rows])
    else:
        try:
            views = plain_at(material, material.test.ids[rows], kept.preprocess, bench)
        except UnreadableImage as error:  # since the proof; pictures are not worth a run
            bench.watcher.say(f"no pictures of single images: {error}")
            return {}
        pixels = np.asarray(views[: len(rows)])
    heats, check = _heats(kept, pixels, np.array([case.about for case in cases]), bench)
    near = _neighbours(kept, pixels, material, bench, sample) if sample is not None else [[] for _ in cases]
    found = []
    for at, case in enumerate(cases):
        heat = None if heats is None else data_uri(overlay(pixels[at], heats[at]), _SIDE)
        pictured = {"thumbnail": data_uri(pixels[at], _SIDE), "heat": heat, "near": near[at]}
        found.append(told(case, tested, material) | pictured)
    return {
        "cases": [*found, *rest],
        "without": len(rest),
        "sanity": check,
        "looked_among": 0 if sample is None else len(sample.rows),
    }


def cost_of(kept: Contender, bench: Bench, *, package: Path) -> dict[str, Any]:
    """Weights, multiply-adds, bytes, and the speed of the fast form on the processor for one image and for many."""
    classifier, cpu = kept.classifier.to("cpu"), torch.device("cpu")
    size = kept.preprocess.size
    example, began = torch.zeros(2, 3, size, size), time.monotonic()
    found: dict[str, Any] = {
        "parameters": sum(one.numel() for one in classifier.parameters()),
        "tuned_parameters": kept.moved,
        "macs": macs_of(classifier, example[:1]),
        "package_bytes": sum(one.stat().st_size for one in package.rglob("*") if one.is_file()),
        "image_size": size,
        "peak_memory_bytes": peak_memory_bytes(),
        "threads": torch.get_num_threads(),
    }
    one_pass = time.monotonic() - began  # of one image through the plain network
    if bench.clock.left() < max(1.0, _FOLDING * one_pass):
        classifier.to(bench.device)
        return {**found, "late": True}
    fast = fold_for_inference(classifier, example)
    classifier.to(bench.device)
    allowed = 0.5 if bench.clock.budget_seconds is not None and bench.clock.budget_seconds < 60 else 1.0
    one = normalised(np.zeros((1, size, size, 3), np.uint8), kept.preprocess).to(cpu)
    many = one.expand(16, -1, -1, -1).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        single = latency(lambda: fast(one), seconds=allowed, left=bench.clock.left())
        # Of these the median alone is told.
        batch = latency(lambda: fast(many), seconds=0.4 * allowed, left=bench.clock.left()) if single else None
    if single is None or batch is None:
        return {**found, "late": True}
    return {**found, "latency": single.to_json(), "images_per_second": len(many) / batch.p50_seconds}


def data_uri(pixels: np.ndarray, side: int) -> str:
    """A small JPEG of uint8 [h w 3] as a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR).save(buffer, "JPEG", quality=78)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _heats(
    kept: Contender, pixels: np.ndarray, answers: np.ndarray, bench: Bench
) -> tuple[np.ndarray | None, dict[str, Any] | None]:
    """(maps [b s s] for the answered classes, whether they change with the weights); None where the network has none."""
    classifier = kept.classifier.to(bench.device)
    images, targets = normalised(pixels, kept.preprocess).to(bench.device), torch.from_numpy(answers)
    try:
        heats = maps(classifier, images, targets)
        bench.watcher.advance(len(heats))
        if _SHUFFLED * sum(one.numel() for one in classifier.parameters()) > bench.clock.left() - _LAST_SECONDS:
            return heats, None
        check = sanity(classifier, images, targets, seed=bench.recipe.seed)
    except torch.AcceleratorError:  # after which the device is of no more use
        raise
    except (ModelError, RuntimeError):  # a network whose forward pass does not bear hooks or gradients
        return None, None
    return heats, {"similarity": check.similarity, "images": check.images, "passed": check.passed}


def _neighbours(
    kept: Contender, pixels: np.ndarray, material: Material, bench: Bench, sample: Sample
) -> list[list[dict[str, Any]]]:
    """The training images of the sample whose features have the smallest angle to each image's."""
    features = features_of(kept, pixels, bench)
    centre = sample.features.mean(0)
    ours, theirs = (_unit(one - centre) for one in (features, sample.features))
    order = np.argsort(-(ours @ theirs.T), axis=1, kind="stable")[:, :_NEAR]
    fitting, catalog = material.fitting, material.catalog
    return [
        [
            {
                "path": catalog.paths[fitting.ids[sample.rows[at]]],
                "label": names_of(classes_of(material.labels, int(sample.rows[at])), catalog.classes),
                "thumbnail": data_uri(fitting.plain[sample.rows[at] : sample.rows[at] + 1][0], _SMALL),
            }
            for at in row
        ]
        for row in order
    ]


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
