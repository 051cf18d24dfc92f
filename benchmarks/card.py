"""What an accelerator does with burnish's training loop and frozen pass, and what each of its parts is worth there.

usage: card.py [MODEL ...] [--device cuda] [--batches 32,128] [--sizes 128,224] [--steps 60] [--stored 2048]
One JSON object on stdout; a row on stderr as it is ready. Random images, seed 0; images per second are medians of steps after
the first fifth of them, views made as in a run. Ways, one after another in each row, the usual one first and last:
`usual`; `launched`: no recorded steps; `cut here`: a processor's threads cut the views; `contiguous`: channels first;
`any kernel`: cuDNN may choose convolutions that add in no fixed order. `fed`: batches a second that are made and sent, without
a network. It runs on a processor too (--device cpu), which shows that it runs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from dataclasses import replace

MODELS = ("efficientnet_lite0", "random:resnet50", "random:vit_small_patch16_224")
WAYS = ("usual", "launched", "cut here", "contiguous", "any kernel", "usual")


def main() -> None:
    import torch

    from burnish.record.facts import machine
    from burnish.runtime import keep_freed_memory

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batches", default="32,128")
    parser.add_argument("--sizes", default="128,224")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--stored", type=int, default=2048)
    parser.add_argument("--workers", type=int, default=4)
    asked = parser.parse_args()
    keep_freed_memory()
    device, rows = torch.device(asked.device), []
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    for model in asked.models:
        for size in map(int, asked.sizes.split(",")):
            for batch in map(int, asked.batches.split(",")):
                row = {"model": model, "size": size, "batch": batch}
                rows.append(row | measured(model, size, batch, device, asked))
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    settings = {name: value for name, value in vars(asked).items() if name not in ("models", "device")}
    print(json.dumps({"benchmark": "card", "card": name, **settings, "machine": machine(), "rows": rows}, indent=1))


def measured(model: str, size: int, batch: int, device, asked) -> dict:
    """Images per second of the frozen pass, of feeding alone and of training each way; what the device held at most."""
    import torch

    from burnish.backbones.zoo import load_backbone
    from burnish.train.around import settled_torch
    from burnish.train.features import takes_half

    backbone = load_backbone(model, image_size=size) if "vit" in model else load_backbone(model)
    half = takes_half("auto", device)
    found: dict = {"half": half}
    with settled_torch():
        views = random_views(backbone.preprocess, size, asked.stored)
        found["frozen"] = frozen(backbone, views, size, device, half=half)
        found["fed"] = {way: fed(replace(views, cuts_there=way == "there"), size, batch, device, asked)
                        for way in ("there", "here")}  # fmt: skip
        found["training"] = [{"way": way} | trained(backbone, views, size, batch, device, way, asked, half=half)
                             for way in WAYS]  # fmt: skip
    if device.type == "cuda":
        found["most_gb"] = round(torch.cuda.max_memory_allocated(device) / 1e9, 2)
        torch.cuda.reset_peak_memory_stats(device)
    return found


def random_views(preprocess, size: int, count: int):
    """Training views of random images."""
    import numpy as np

    from burnish.data.views import Augmentation
    from burnish.train.inputs import PixelViews

    side = round(size * 1.15)
    stored = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)
    ids = np.arange(count)
    return PixelViews(
        stored, ids, np.ones(count, np.float32), ids % 10, ids, tuple(map(str, ids)), Augmentation(size),
        replace(preprocess, size=size), seed=0, cuts_there=True,
    )  # fmt: skip


def frozen(backbone, views, size: int, device, *, half: bool) -> float:
    """Images per second from bytes to features in memory, the second of two passes."""
    from burnish.backbones.fast.frozen import fold_for_inference
    from burnish.data.views import normalised
    from burnish.train.features import batched, outputs

    plain = views.stored[:, :size, :size]
    preprocess = views.preprocess
    trunk = fold_for_inference(backbone.module.to(device), normalised(plain[:2], preprocess).to(device), half=half)
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        outputs(trunk, batched(plain), preprocess=preprocess, device=device, half=half)
        seconds.append(time.perf_counter() - began)
    backbone.module.cpu()
    return round(len(plain) / seconds[-1], 1)


def fed(views, size: int, batch: int, device, asked) -> float:
    """Images per second that are made and sent."""
    import numpy as np

    from burnish.train.inputs import Ahead

    batches = [np.arange(at, at + batch) % len(views) for at in range(0, batch * asked.steps, batch)]
    ends = []
    with Ahead(views, device, asked.workers) as ahead:
        for place in range(len(batches)):
            ahead.get(batches, place, epoch=1, size=size).sum().item()
            ends.append(time.perf_counter())
    first = len(ends) // 5
    return round(batch * (len(ends) - 1 - first) / (ends[-1] - ends[first]), 1)


def trained(backbone, views, size: int, batch: int, device, way: str, asked, *, half: bool) -> dict:
    """Images per second of the loop's steps, the seconds of its first one, and its last loss."""
    import torch

    from burnish.choose.aim import objective_of
    from burnish.data.views import normalised
    from burnish.methods.base import blank_tunable
    from burnish.methods.table import method_named
    from burnish.recipe import Recipe
    from burnish.runtime import Nobody
    from burnish.train.loop import Epoch, Schedule, Training, tune
    from burnish.train.parts import parts_for_training
    from burnish.train.recorded import VARIABLE

    os.environ[VARIABLE] = "off" if way == "launched" else "on"
    torch.backends.cudnn.deterministic = way != "any kernel"
    tunable = blank_tunable(method_named("full"), backbone, Recipe(), classes=10)
    layout = torch.contiguous_format if way == "contiguous" else torch.channels_last
    tunable.classifier.to(device).to(memory_format=layout)
    example = normalised(views.stored[:2, :size, :size], views.preprocess).to(device)
    parts = parts_for_training(tunable.classifier, backbone, 0, example, half=half)
    training = Training.start(tunable, total=asked.steps, weight_decay=0.05)
    seconds, loss = [], float("nan")
    for event in tune(
        training, replace(views, cuts_there=way != "cut here"), Schedule(batch, ((0.0, size),)), module=parts.trained,
        device=device, objective=objective_of(Recipe(), half=half), workers=asked.workers, watcher=Nobody(),
    ):  # fmt: skip
        if isinstance(event, Epoch):
            loss = event.train_loss
        else:
            seconds.append(event.seconds)
    settled = seconds[len(seconds) // 5 :]
    rate = round(batch / statistics.median(settled), 1)
    return {"images_per_second": rate, "first_step_seconds": round(seconds[0], 3), "last_epoch_loss": round(loss, 3)}


if __name__ == "__main__":
    main()
