"""The head that training starts from."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from burnish.backbones.fast.frozen import fold_for_inference
from burnish.choose.material import Bench, Material, views_of
from burnish.choose.plan import EPOCHS_WANTED, Plan
from burnish.choose.probing import Probes
from burnish.data.sample import part_of
from burnish.methods.base import Head, needs_linear
from burnish.train.features import at_once, autocast
from burnish.train.inputs import Ahead

_IMAGES = 512  # and 8 of a class: what the first head is fitted to where the passes are few (LOG.md)


def start_head(probes: Probes, made: Plan, material: Material, bench: Bench) -> Head:
    """The probe's head fitted anew to what the first steps will see: one augmented view a training image, at their size.

    At another size than the probe's the features differ so much that the probe's own head starts at a loss above chance
    (hand signs, head from 224 px: 2.8 nats at 128 px; fitted there: 1.7). Where the passes are few, a pass over all images
    would be dear, and some do.
    """
    size, given = made.schedule.size_at(0.0), views_of(material, bench, flip=probes.flip)
    rows = np.arange(len(given))
    if made.epochs < EPOCHS_WANTED:
        entries = material.fitting.ids[material.train_rows]
        rows = part_of(material.catalog, entries, _IMAGES, seed=bench.recipe.seed)
    trunk: nn.Module | None = None
    half = bench.recipe.precision == "bfloat16"
    features = []
    chunks = np.array_split(rows, max(1, math.ceil(len(rows) / at_once(bench.device))))
    with Ahead(given, bench.device, bench.workers) as ahead:
        for place in range(len(chunks)):
            views = ahead.get(chunks, place, epoch=0, size=size)
            trunk = trunk or fold_for_inference(bench.backbone.module.to(bench.device), views[:2], half=half)
            with torch.inference_mode(), autocast(bench.device, half and bench.device.type != "cpu"):
                features.append(trunk(views).float().cpu().numpy())
    how, classes = probes.last.choice.how, len(material.catalog.classes)
    return needs_linear(how.fitted(np.concatenate(features), given.labels[rows], classes=classes))
