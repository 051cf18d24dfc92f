"""Training steps whose batch goes through in pieces: BatchNorm folded for each piece, and once for all of them.

usage: folded_once.py [MODEL] [--sizes 128,160,224] [--steps 14]        one JSON object on stdout
The gradient of 32 images, as training takes it on a CPU. Both ways in turn in one process, so that a machine that changes its
speed changes both; medians. `differs`: the largest difference of a gradient, as a fraction of the largest of that parameter.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from contextlib import nullcontext

BATCH = 32


def main() -> None:
    from burnish.record.facts import machine
    from burnish.runtime import keep_freed_memory

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="efficientnet_lite0")
    parser.add_argument("--sizes", default="128,160,224")
    parser.add_argument("--steps", type=int, default=14)
    asked = parser.parse_args()
    keep_freed_memory()
    rows = [measured(asked.model, int(size), asked.steps) for size in asked.sizes.split(",")]
    print(json.dumps({"benchmark": "folded_once", "model": asked.model, "batch": BATCH, "seed": 0, "rows": rows,
                      "machine": machine()}, indent=1))  # fmt: skip


def measured(model: str, size: int, steps: int) -> dict:
    """Images per second both ways."""
    import torch
    from torch import nn

    from burnish.backbones.fast.fold import fold_trainable
    from burnish.backbones.zoo import load_backbone
    from burnish.train import objective as steps_of

    torch.manual_seed(0)
    backbone = load_backbone(model)
    network = nn.Sequential(backbone.module, nn.Linear(backbone.width, 10)).to(memory_format=torch.channels_last).eval()
    network.requires_grad_(True)
    images = torch.randn(BATCH, 3, size, size).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (BATCH,))
    folded = fold_trainable(network, images[:1])
    optimiser = torch.optim.AdamW(folded.parameters(), 1e-6)
    aim, once = steps_of.Objective(), steps_of.folded_once

    def step(way: str) -> float:
        steps_of.folded_once = once if way == "once" else lambda module: nullcontext()
        began = time.perf_counter()
        steps_of.backward(folded, optimiser, images, labels, aim, 0)
        return time.perf_counter() - began

    gradients = {}
    for way in ("each", "once"):
        step(way)
        gradients[way] = [one.grad.clone() for one in folded.parameters() if one.grad is not None]
    seconds: dict[str, list[float]] = {"each": [], "once": []}
    for number in range(steps):
        for way in ("each", "once") if number % 2 else ("once", "each"):
            seconds[way].append(step(way))
    found = {way: BATCH / statistics.median(times) for way, times in seconds.items()}
    differs = max(
        float((one - other).abs().max() / other.abs().max().clamp(min=1e-12))
        for one, other in zip(gradients["once"], gradients["each"], strict=True)
    )
    return {
        "size": size,
        "pieces": steps_of._pieces(folded, images),
        "steps": steps,
        "images_per_second": {way: round(rate, 1) for way, rate in found.items()},
        "times": round(found["once"] / found["each"], 3),
        "differs": differs,
    }


if __name__ == "__main__":
    main()
