"""Images per second of a backbone, forward and in training: plain, folded, and with glibc told to keep its memory.

usage: fold.py [MODEL] [--sizes 128,224]        one JSON object on stdout; ratios are within this one process pair
The allocator cannot be set back, so each setting runs in a process of its own, in turn.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="efficientnet_lite0")
    parser.add_argument("--sizes", default="128,224")
    parser.add_argument("--child", choices=["kept", "returned"])
    asked = parser.parse_args()
    if asked.child:
        print(
            json.dumps(measure(asked.model, [int(size) for size in asked.sizes.split(",")], keep=asked.child == "kept"))
        )
        return
    found = {}
    for memory in ("returned", "kept"):
        command = [sys.executable, __file__, asked.model, "--sizes", asked.sizes, "--child", memory]
        found[memory] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    from burnish.record.facts import machine

    print(
        json.dumps(
            {"benchmark": "fold", "model": asked.model, "batch": 32, "images_per_second": found, "machine": machine()},
            indent=1,
        )
    )


def measure(model: str, sizes: list[int], *, keep: bool) -> dict:
    """Medians over 7 repeats after 2 warm-ups, by size and form."""
    import torch

    from burnish.backbones.fast.fold import fold_trainable
    from burnish.backbones.fast.frozen import fold_for_inference
    from burnish.backbones.zoo import load_backbone
    from burnish.runtime import keep_freed_memory

    if keep:
        keep_freed_memory()
    trunk = load_backbone(model).module
    out = {}
    for size in sizes:
        plain_input = torch.randn(32, 3, size, size, generator=torch.Generator().manual_seed(0))
        images = plain_input.contiguous(memory_format=torch.channels_last)
        last = copy.deepcopy(trunk).to(memory_format=torch.channels_last).eval()
        out[str(size)] = {
            "forward contiguous": forward_rate(trunk, plain_input),
            "forward channels_last": forward_rate(last, images),
            "forward folded": forward_rate(fold_for_inference(trunk, images[:2]), images),
            "training contiguous": training_rate(copy.deepcopy(trunk), plain_input),
            "training channels_last": training_rate(copy.deepcopy(last), images),
            "training folded": training_rate(fold_trainable(last, images[:2]), images),
        }
    return out


def forward_rate(module, images) -> float:
    """Images per second without gradient."""
    import torch

    with torch.inference_mode():
        return rate(lambda: module(images), len(images))


def training_rate(module, images) -> float:
    """Images per second of forward, backward and an AdamW step."""
    import torch

    optimiser = torch.optim.AdamW(module.parameters(), 1e-6, fused=True)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        module(images).square().mean().backward()
        optimiser.step()

    return rate(step, len(images))


def rate(work, images: int) -> float:
    """Median images per second of 7 repeats after 2 warm-ups."""
    seconds = []
    for _ in range(9):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return round(images / statistics.median(seconds[2:]), 1)


if __name__ == "__main__":
    main()
