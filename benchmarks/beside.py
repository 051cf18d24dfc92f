"""Does a budget hold beside other busy programs? Wall time of `burnish fit`, with libgomp's own waiting and with burnish's.

usage: beside.py DATA [--budget 1m] [--method multiprobe] [--n 2] [--others 1] [--after 0] [--before SRC]
one JSON object on stdout
The others train a small convolutional network on all cores, without end. They begin before the run, or so many seconds after it:
then it was planned for a quiet machine. --before: the `src` of another version, in the place of libgomp's waiting. Forms are
taken in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager

LIBGOMP = "300000"  # turns, its default where there are no more threads than cores
BUSY = """
import torch
from torch import nn
layers = [part for _ in range(8) for part in (nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())]
network, images = nn.Sequential(*layers), torch.randn(16, 32, 56, 56)
while True:
    network(images).square().mean().backward()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--budget", default="1m")
    parser.add_argument("--method", default="multiprobe")
    parser.add_argument("--n", type=int, default=2)
    parser.add_argument("--others", type=int, default=1)
    parser.add_argument("--after", type=float, default=0.0)
    parser.add_argument("--before")
    asked = parser.parse_args()
    from burnish.record.facts import machine

    plain = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    other, how = "libgomp's default", {"GOMP_SPINCOUNT": LIBGOMP}
    if asked.before:
        other, how = "the version before", {"PYTHONPATH": asked.before}
    forms = {
        "alone": ({}, 0),
        "beside, burnish": ({}, asked.others),
        f"alone, {other}": (how, 0),
        f"beside, {other}": (how, asked.others),
    }
    runs: dict[str, list[dict]] = {name: [] for name in forms}
    for _ in range(asked.n):
        for name, (extra, others) in forms.items():
            with busy(others, asked.after, plain):
                runs[name].append(one(asked, {**plain, **extra}))
            print(name, runs[name][-1], file=sys.stderr, flush=True)
    medians = {name: statistics.median(run["seconds"] for run in each) for name, each in runs.items()}
    told = {"benchmark": "beside", "data": os.path.basename(asked.data), "budget": asked.budget, "method": asked.method,
            "others": asked.others, "after": asked.after}  # fmt: skip
    print(json.dumps({**told, "n": asked.n, "machine": machine(), "median_seconds": medians, "runs": runs}, indent=1))


def one(asked: argparse.Namespace, environment: dict[str, str]) -> dict:
    """A run with a cache of its own: seconds from process start to exit, and what it kept."""
    with tempfile.TemporaryDirectory() as home:
        command = [
            sys.executable,
            "-m",
            "burnish",
            "fit",
            asked.data,
            "--budget",
            asked.budget,
            "--method",
            asked.method,
        ]
        began = time.monotonic()
        done = subprocess.run(
            [*command, "--json", "--cache", "off", "--out", f"{home}/run"],
            check=True, capture_output=True, text=True, env=environment,
        )  # fmt: skip
        seconds = time.monotonic() - began
        facts = json.loads(done.stdout)
        accuracy = facts["scores"][facts["kept_role"]]["accuracy"]["value"]
        counts = {name: facts["counts"][name] for name in ("train", "val", "test", "skipped")}
        return {"seconds": round(seconds, 1), "accuracy": accuracy, **counts, "stages": facts["stages_seconds"]}


@contextmanager
def busy(others: int, after: float, environment: dict[str, str]):
    """So many busy programs, until the end of the block: from its beginning on, or so many seconds later."""
    processes: list[subprocess.Popen] = []
    over = threading.Event()

    def begin() -> None:
        if not over.wait(after):
            processes.extend(subprocess.Popen([sys.executable, "-c", BUSY], env=environment) for _ in range(others))

    thread = threading.Thread(target=begin)
    thread.start()
    if not after:
        thread.join()
        time.sleep(3.0 if others else 0.0)
    try:
        yield
    finally:
        over.set()
        thread.join()
        for process in processes:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
