"""Images per second against plain PyTorch (eager, float32, contiguous): frozen features, training, the top from activations.

usage: speed.py [MODEL ...]        one JSON object on stdout; default: Lite0, ResNet-50 and ViT-S/16
224 px, 32 images, medians of 5 after 2 warm-ups. Each row is a process of its own, one after another on one machine. Plain
PyTorch's forward pass depends on what its process did before, so it is timed in a fresh one and after training.
"""

from __future__ import annotations

import copy
import json
import os
import statistics
import subprocess
import sys
import time

MODELS = ("efficientnet_lite0", "random:resnet50", "random:vit_small_patch16_224")
SIZE, BATCH = 224, 32


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(FORMS[sys.argv[3]](sys.argv[2])))
        return
    from burnish.imports import settle_threads
    from burnish.record.facts import machine

    cases = []
    for model in sys.argv[1:] or MODELS:
        found: dict = {}
        for form in ("plain forward", "plain training", "burnish", "gemm"):
            command = [sys.executable, __file__, "--child", model, form]
            environment = dict(os.environ)
            if form == "burnish":  # as its command line does
                settle_threads(environment)
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
            found |= json.loads(done.stdout)
        cases.append({"model": model, **found, "ratios": ratios(found)})
        print(json.dumps(cases[-1]), file=sys.stderr, flush=True)
    settings = {"size": SIZE, "batch": BATCH, "n": 5, "unit": "images per second, medians"}
    print(json.dumps({"benchmark": "speed", **settings, "machine": machine(), "cases": cases}, indent=1))


def ratios(found: dict) -> dict:
    """What the issue asks for."""
    after = max(found["plain_forward_fresh"], found["plain_forward_after_training"])
    out = {
        "features over fresh plain forward": found["features"] / found["plain_forward_fresh"],
        "features over plain forward after training": found["features"] / after,
        "float32 features over plain forward after training": found["features_float32"] / after,
        "one image over plain forward of one image": found["one_image"] / found["plain_one_image"],
        "training over plain training": found["training"] / found["plain_training"],
        "float32 features, share of the float32 GEMM limit": found["features_float32"]
        * found["gflop_per_image"]
        / found["gemm_float32_gflops"],
        "top two stages over plain training of all": found["top_two_stages"] / found["plain_training"],
        "top two stages over burnish's training of all": found["top_two_stages"] / found["training"],
    }
    return {name: round(value, 2) for name, value in out.items()}


def plain_forward(model: str) -> dict:
    import torch

    trunk, images = trunk_of(model).module, pictures()
    with torch.inference_mode():
        found = {"plain_forward_fresh": rate(lambda: trunk(images), BATCH)}
        return {**found, "plain_one_image": rate(lambda: trunk(images[:1]), 1)}


def plain_training(model: str) -> dict:
    import torch

    trunk, images = trunk_of(model).module, pictures()
    found = {"plain_training": rate(step_of(trunk, images, half=False), BATCH)}
    with torch.inference_mode():
        return {**found, "plain_forward_after_training": rate(lambda: trunk(images), BATCH)}


def burnish(model: str) -> dict:
    import torch

    from burnish.backbones.fast.frozen import fold_for_inference
    from burnish.backbones.fast.int8 import IMAGES, int8_form
    from burnish.runtime import keep_freed_memory
    from burnish.train.features import takes_half, takes_int8
    from burnish.train.parts import parts_for_training

    keep_freed_memory()
    backbone = trunk_of(model)
    half = takes_half("auto", torch.device("cpu"))
    images = pictures().contiguous(memory_format=torch.channels_last)
    found: dict = {"half": half}
    for name, form in (("features", half), ("features_float32", False)):
        frozen = fold_for_inference(backbone.module, images[:2], half=form)
        with torch.inference_mode():
            found[name] = rate(lambda frozen=frozen: frozen(images), BATCH)
            found[name.replace("features", "one_image")] = rate(lambda frozen=frozen: frozen(images[:1]), 1)
    found["bits"] = 16 if half else 32
    rounded = int8_form(backbone.module, images[:IMAGES]) if takes_int8("auto", torch.device("cpu")) else None
    if rounded is not None:
        with torch.inference_mode():
            found |= {"features": rate(lambda: rounded[0](images), BATCH), "bits": 8}
    # The classifier's head costs nothing beside the trunk; it is left out on both sides.
    for name, freeze in (("training", 0), ("top_two_stages", len(backbone.stages) - 2)):
        net = classifier_of(backbone)
        parts = parts_for_training(net, backbone, freeze, images[:2], half=half)
        inputs = images
        if parts.lower is not None:
            with torch.no_grad():
                inputs = parts.lower(images).clone()
        found[name] = rate(step_of(parts.trained, inputs, half=half), BATCH)
    found["freeze"], found["stages"] = freeze, [stage.name for stage in backbone.stages]
    return found


def gemm(model: str) -> dict:
    """The machine's matrix product, and the operations of the network's convolutions and linear layers."""
    import torch

    from burnish.train.features import takes_half

    kinds = (torch.float32, torch.bfloat16) if takes_half("auto", torch.device("cpu")) else (torch.float32,)
    found = {}  # bfloat16 without instructions of its own takes minutes a product
    for kind in kinds:
        a = torch.rand(2048, 2048).to(kind)
        per_second = rate(lambda a=a: torch.mm(a, a), 1)
        found[f"gemm_{str(kind).removeprefix('torch.')}_gflops"] = round(per_second * 2 * 2048**3 / 1e9, 1)
    trunk, count = trunk_of(model).module, 0

    def seen(layer, inputs, output) -> None:
        nonlocal count
        count += 2 * output.numel() * layer.weight[0].numel()

    for layer in trunk.modules():
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
            layer.register_forward_hook(seen)
    with torch.no_grad():
        trunk(pictures()[:1])
    return {**found, "gflop_per_image": round(count / 1e9, 3)}


FORMS = {"plain forward": plain_forward, "plain training": plain_training, "burnish": burnish, "gemm": gemm}


def trunk_of(model: str):
    from burnish.backbones.zoo import load_backbone

    return load_backbone(model)


def classifier_of(backbone):
    import torch

    from burnish.backbones.classifier import Classifier

    net = Classifier(copy.deepcopy(backbone.module), backbone.width, 10).eval()  # its head is random: gradients flow
    return net.to(memory_format=torch.channels_last)


def pictures():
    """Smooth network inputs: of noise a network's features in 8 bits are too far off to be used."""
    import torch

    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(BATCH, 3, 7, 7, generator=generator) + torch.randn(BATCH, 3, 1, 1, generator=generator)
    return torch.nn.functional.interpolate(coarse, SIZE, mode="bilinear")


def step_of(module, images, *, half: bool):
    """Forward, backward and a fused AdamW step."""
    import torch

    from burnish.backbones.fast.attention import fast_attention_gradients
    from burnish.train.features import autocast

    copied = module if half else copy.deepcopy(module)
    optimiser = torch.optim.AdamW([one for one in copied.parameters() if one.requires_grad], 1e-6, fused=True)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        with fast_attention_gradients(half=half):
            with autocast(images.device, half):
                out = copied(images)
            out.float().square().mean().backward()
        optimiser.step()

    return step


def rate(work, count: int) -> float:
    """Median times a second of 5 repeats after 2 warm-ups, times `count`."""
    seconds = []
    for _ in range(7):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return round(count / statistics.median(seconds[2:]), 1)


if __name__ == "__main__":
    main()
