"""Speed and memory of network families, from timm and from Keras, as burnish runs them: frozen features and training.

usage: families.py [MODEL ...] [--size 224] [--batch 16] [--repeats 5]       one JSON object on stdout

Each model runs in a process of its own, so that peak memory is its own; random weights, which do not change the speed.
Training is a step on all layers with BatchNorm frozen (folded), as the method full does it. "keras layers" is the same
Keras network run by Keras's own layers on its torch backend, with the plain loop that a Keras user would get on it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

MODELS = (
    "efficientnet_lite0", "random:resnet50", "random:densenet121", "random:vit_small_patch16_224", "random:keras:resnet50",
    "random:keras:densenet121", "keras layers:resnet50",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--child", action="store_true")
    asked = parser.parse_args()
    if asked.child:
        print(json.dumps(measured(asked.models[0], asked.size, asked.batch, asked.repeats)))
        return
    found = {}
    for model in asked.models:
        options = ["--child", "--size", str(asked.size), "--batch", str(asked.batch), "--repeats", str(asked.repeats)]
        done = subprocess.run([sys.executable, __file__, model, *options], capture_output=True, text=True)
        found[model] = (
            json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {"error": done.stderr[-300:]}
        )
        print(model, found[model], file=sys.stderr)
    from burnish.record.facts import machine

    settings = {"size": asked.size, "batch": asked.batch, "repeats": asked.repeats}
    print(json.dumps({"benchmark": "families", **settings, "models": found, "machine": machine()}, indent=1))


def measured(model: str, size: int, batch: int, repeats: int) -> dict[str, float]:
    """Medians, images per second, and the peak of memory in MB."""
    import torch

    if model.startswith("keras layers:"):
        features, step = keras_layers(model.partition(":")[2], size, batch)
    else:
        features, step = ours(model, size, batch)
    images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
    forward = rate(lambda: features(images), batch, repeats)
    training = rate(lambda: step(images), batch, repeats)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"features_per_second": forward, "training_per_second": training, "peak_mb": round(peak)}


def ours(model: str, size: int, batch: int):
    """The frozen form, and a step on the folded form, as the engine has them."""
    import torch

    from burnish.backbones.classifier import Classifier
    from burnish.backbones.fast.fold import fold_trainable
    from burnish.backbones.fast.frozen import fold_for_inference
    from burnish.backbones.zoo import load_backbone
    from burnish.runtime import keep_freed_memory

    keep_freed_memory()
    backbone = load_backbone(model)
    example = torch.randn(2, 3, size, size).contiguous(memory_format=torch.channels_last)
    frozen = fold_for_inference(backbone.module, example)
    classifier = Classifier.over(backbone, 10).to(memory_format=torch.channels_last)
    trained = fold_trainable(classifier, example, inplace=True)
    return inferring(frozen), stepping(trained, batch)


def keras_layers(name: str, size: int, batch: int):
    """The network of keras.applications with Keras's own layers, BatchNorm frozen, in a plain torch loop."""
    os.environ["KERAS_BACKEND"] = "torch"
    import keras
    import torch

    from burnish.backbones.keras.applications import named

    make = getattr(keras.applications, named(name).attribute)
    model = make(weights=None, classes=10, input_shape=(size, size, 3), classifier_activation=None)

    def logits(images: torch.Tensor) -> torch.Tensor:
        return model(images.permute(0, 2, 3, 1), training=False)

    return inferring(logits), stepping(logits, batch, [one.value for one in model.trainable_variables])


def inferring(network):
    import torch

    def run(images: torch.Tensor) -> None:
        with torch.inference_mode():
            network(images.contiguous(memory_format=torch.channels_last))

    return run


def stepping(network, batch: int, parameters=None):
    import torch

    chosen = list(parameters if parameters is not None else network.parameters())
    optimiser = torch.optim.AdamW(chosen, lr=1e-4)
    labels = torch.arange(batch) % 10

    def run(images: torch.Tensor) -> None:
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(images.contiguous(memory_format=torch.channels_last)), labels)
        loss.backward()
        optimiser.step()

    return run


def rate(run, count: int, repeats: int) -> float:
    """Images per second, the median after two warm-ups."""
    times = []
    for number in range(repeats + 2):
        began = time.perf_counter()
        run()
        if number >= 2:
            times.append(time.perf_counter() - began)
    return round(count / statistics.median(times), 2)


if __name__ == "__main__":
    main()
