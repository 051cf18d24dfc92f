"""The first stage: features of the frozen trunk, a head on them, and what they tell about the data."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np

from burnish.backbones.fold import fold_for_inference
from burnish.choose.material import Bench, Material
from burnish.data.cache import Rows, read_pixels
from burnish.data.views import normalised
from burnish.errors import ModelError, shown
from burnish.methods.base import Head
from burnish.methods.heads import HeadChoice, choose_head
from burnish.methods.table import method_named
from burnish.runtime import cores
from burnish.terms import Preprocess
from burnish.train.features import batched, outputs

# A probe at full size is worth more than a few epochs, and less than many: on photographs of 101 classes the probe
# gains 1.4 points from 160 to 224 px; on hand signs 8 epochs at 128 px gain 5 over the probe at 224 px (LOG.md).
_EPOCHS_WORTH_A_SMALLER_PROBE = 6.0
_TRAINING_COST = 3.2  # of a forward pass: forward, backward and step, measured 2.9 to 3.4 on Lite0 and ResNets
_TAIL_SECONDS = 12.0  # fitting heads, planning, report
_MOST_OF_CLOCK = 0.85
_STEP = (
    32  # pixels between sizes: the stride of the usual trunks, so that no row of the last feature map is half padding
)


@dataclass(frozen=True)
class Probed:
    """The frozen trunk with fitted heads."""

    preprocess: Preprocess  # at the size the features were taken
    choice: HeadChoice  # fitted to train and val images; its settings and accuracy come from cross-validation
    train_head: Head  # the same settings, fitted to the train images alone
    val_right: np.ndarray  # bool [v]: whether train_head is right on the val images
    val_logits: np.ndarray  # float32 [v k], of train_head
    flip: bool  # whether mirror images may be trained on
    flip_reason: str
    images_per_second: float  # of the trunk, forward
    size_reason: str  # why the probe sees smaller images than the network was made for, "" when it does not


def probe(material: Material, bench: Bench) -> Probed:
    """Fit heads to frozen features; on a clock too short for the full image size, at a smaller one."""
    preprocess, rate, size_reason = settle_size(material, bench)
    features, rate = fitting_features(material, bench, preprocess, rate)
    labels, classes = material.labels, len(material.catalog.classes)
    bench.watcher.stage("probe")
    late = 0.6 * (bench.clock.budget_seconds or float("inf"))
    choice = choose_head(
        features, labels, classes=classes, seed=bench.recipe.seed, seconds_left=lambda: late - bench.clock.elapsed()
    )
    train, val = material.train_rows, material.val_rows
    train_head = choice.refitted(features[train], labels[train], classes=classes)
    logits = train_head.logits(features[val])
    right = logits.argmax(1) == labels[val]
    flip, reason = settle_flip(material, bench, preprocess, train_head, right)
    return Probed(preprocess, choice, train_head, right, logits, flip, reason, rate, size_reason)


def fitting_features(material: Material, bench: Bench, preprocess: Preprocess, rate: float) -> tuple[np.ndarray, float]:
    """Features [n d] of all train and val images, and the images per second that took."""
    images: Rows = material.fitting.plain
    if preprocess != bench.backbone.preprocess:
        images = plain_at(material, material.fitting.ids, preprocess)
    bench.watcher.stage(f"features, {preprocess.size} px", total=len(images))
    began = time.monotonic()
    trunk = fold_for_inference(bench.backbone.module.to(bench.device), _example(images, preprocess, bench))
    features = outputs(
        trunk, batched(images), preprocess=preprocess, device=bench.device, on_progress=bench.watcher.advance
    )
    refuse_unreal(features, material, bench)
    return features, len(images) / max(1e-9, time.monotonic() - began) if len(images) else rate


def refuse_unreal(features: np.ndarray, material: Material, bench: Bench) -> None:
    """ModelError naming the first image whose features are not finite numbers."""
    bad = np.flatnonzero(~np.isfinite(features).all(1))
    if len(bad):
        path = material.catalog.paths[material.fitting.ids[bad[0]]]
        raise ModelError(
            f"{bench.backbone.name} gives features that are not numbers for {len(bad)} of {len(features)} images "
            f"(first: {shown(path)}); its weights are damaged or do not fit its preprocessing: choose another model"
        )


def plain_at(material: Material, ids: np.ndarray, preprocess: Preprocess) -> Rows:
    """Plain views of some catalogue entries at another size, from the files: what `predict` would see (P1)."""
    return read_pixels(material.catalog, ids, preprocess=preprocess, workers=cores()).plain


def settle_size(material: Material, bench: Bench) -> tuple[Preprocess, float, str]:
    """The Preprocess for the probe, images per second, and why it is not at the network's own size ("" when it is)."""
    native = bench.backbone.preprocess
    images = material.fitting.plain[:32]
    trunk = fold_for_inference(bench.backbone.module.to(bench.device), _example(images, native, bench))
    seconds = []
    for _ in range(2):
        began = time.monotonic()
        outputs(trunk, [images], preprocess=native, device=bench.device)
        seconds.append(time.monotonic() - began)
    rate, left = len(images) / min(seconds), bench.clock.left()
    trains = method_named("full" if bench.recipe.method == "auto" else bench.recipe.method).trains
    count = len(material.labels) + len(material.test_labels)
    size = affordable_size(
        native.size,
        rate,
        seconds_left=left,
        images=count,
        train=len(material.train_rows) if trains else 0,
        one_size=bench.backbone.one_size,
    )
    rate_there = rate * (native.size / size) ** 2
    reason = ""
    if count / rate_there > left:
        reason = (
            f"the budget is too small for a probe, which takes {count / rate_there:.0f} s more: it is made all the same"
        )
    elif size != native.size:
        reason = f"at {native.size} px all images would take {count / rate:.0f} s of the {left:.0f} s left"
    if reason:
        bench.watcher.say(f"the probe sees {size} px: {reason}")
    return replace(native, size=size), rate_there, reason


def affordable_size(
    native: int, rate: float, *, seconds_left: float, images: int, train: int, one_size: bool = False
) -> int:
    """Pixels a side for the probe.

    The largest size, the network's own first, that leaves time for some epochs of training; if none does, the largest at
    which all images can be seen at all. rate: images per second forward at `native`; train: images to train on, 0 if none.
    """
    sizes = [size for size in range(native, 0, -_STEP) if size == native or (size >= 0.57 * native and not one_size)]
    smallest = sizes[-1]
    for size in sizes if train else ():
        left = seconds_left - _TAIL_SECONDS - images / (rate * (native / size) ** 2)
        if left * rate * (native / smallest) ** 2 / _TRAINING_COST >= _EPOCHS_WORTH_A_SMALLER_PROBE * train:
            return size
    for size in sizes:
        if images / (rate * (native / size) ** 2) <= _MOST_OF_CLOCK * seconds_left - 0.5 * _TAIL_SECONDS:
            return size
    return smallest


def settle_flip(
    material: Material, bench: Bench, preprocess: Preprocess, head: Head, right: np.ndarray
) -> tuple[bool, str]:
    """Whether mirroring keeps the label, asked of the probe: is it as right on mirrored val images as on plain ones?

    Mirrored hands, digits and letters lose far more than one standard error; photographs of things lose nothing.
    """
    if bench.recipe.flip != "auto":
        return bench.recipe.flip == "on", "as the recipe says"
    rows = material.val_rows
    if len(rows) == 0:
        return False, "no validation images to ask"
    images = material.fitting.plain[rows]
    if preprocess != bench.backbone.preprocess:
        images = plain_at(material, material.fitting.ids[rows], preprocess)[:]
    trunk = fold_for_inference(bench.backbone.module.to(bench.device), _example(images, preprocess, bench))
    mirrored = (np.ascontiguousarray(chunk[:, :, ::-1]) for chunk in batched(images))
    features = outputs(trunk, mirrored, preprocess=preprocess, device=bench.device)
    mirrored_right = head.logits(features).argmax(1) == material.labels[rows]
    drop = right.astype(float) - mirrored_right
    error = drop.std() / np.sqrt(len(drop))
    flip = bool(drop.mean() <= error)
    words = "mirroring keeps the label" if flip else "mirroring changes the label"
    return (
        flip,
        f"{words}: the probe is right on {mirrored_right.mean():.1%} of mirrored and {right.mean():.1%} of plain val images",
    )


def _example(images: Rows, preprocess: Preprocess, bench: Bench):
    """Two network inputs [2 3 s s], to check faster forms of the network on."""
    return normalised(images[:2], preprocess).to(bench.device)
