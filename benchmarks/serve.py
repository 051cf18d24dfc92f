"""What a service adds to `predict`: requests a second and their latency, with one client and with eight.

usage: serve.py RUN IMAGES [--seconds 5] [--rounds 5]
Each request is one image, over a connection that is kept. Clients and service share the machine, as threads of two processes.
`predict` is asked in this process: for one image after another, and for all of them together. All take turns, round after round,
so that what else the machine does meets each of them; the processor's time of a request is told too, which it meets least. One
JSON object on stdout.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from burnish import api  # loads PyTorch as the program does: its threads wait briefly
from burnish.record.facts import machine
from burnish.ship.images import expand
from burnish.ship.predictor import Predictor

_CLIENTS, _MOST_IMAGES = (1, 8), 256


class Round(NamedTuple):
    """One turn of one way of asking."""

    taken: list[float]  # seconds of each answer; of images that go through together since the one before
    seconds: float
    processor_seconds: float  # of the process that answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    images = [Path(str(file)).read_bytes() for file in expand([asked.images])[:_MOST_IMAGES]]
    predictor = api.open_run(asked.run).predictor
    command = [sys.executable, "-m", "burnish", "serve", str(asked.run), "--port", "0", "--quiet"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            port = port_of(process)
            ways: dict[str, Callable[[float], list[float]]] = {
                "predict_one_by_one": lambda seconds: alone(predictor, images, seconds),
                "predict_together": lambda seconds: together(predictor, images, seconds),
                **{f"serve_clients_{n}": lambda seconds, n=n: clients(n, port, images, seconds) for n in _CLIENTS},
            }
            for way in ways.values():
                way(1.0)
            load = os.getloadavg()[0]
            rounds = {name: list[Round]() for name in ways}
            for _ in range(asked.rounds):
                for name, way in ways.items():
                    of = process.pid if name.startswith("serve") else os.getpid()
                    began, spent = time.perf_counter(), processor_seconds(of)
                    taken = way(asked.seconds)
                    rounds[name].append(Round(taken, time.perf_counter() - began, processor_seconds(of) - spent))
        finally:
            process.terminate()
    told = {"images": len(images), "mean_bytes": float(np.mean([len(one) for one in images])), "load_before": load}
    found = {name: summary(each, latency=name != "predict_together") for name, each in rounds.items()}
    print(json.dumps({"benchmark": "serve", "machine": machine(), **told, "seconds": asked.seconds, **found}, indent=1))


def port_of(process: subprocess.Popen[str]) -> int:
    """The port that a service says it listens on."""
    assert process.stdout is not None
    line = process.stdout.readline()
    told = re.search(r":(\d+)/", line)
    assert told is not None, line
    return int(told[1])


def alone(predictor: Predictor, images: list[bytes], seconds: float) -> list[float]:
    """Seconds of each answer, of `predict` asked for one image after another."""
    taken, until = [], time.perf_counter() + seconds
    while (now := time.perf_counter()) < until:
        predictor.predict(images[len(taken) % len(images)])
        taken.append(time.perf_counter() - now)
    return taken


def together(predictor: Predictor, images: list[bytes], seconds: float) -> list[float]:
    """Seconds between answers of `predict` asked for all images, batch by batch."""
    taken, until = [], time.perf_counter() + seconds
    last = time.perf_counter()
    for _ in predictor.stream(itertools.cycle(images)):
        taken.append((now := time.perf_counter()) - last)
        last = now
        if now > until:
            break
    return taken


def clients(count: int, port: int, images: list[bytes], seconds: float) -> list[float]:
    """Seconds of each answer, of the service asked over loopback by so many at a time."""
    taken: list[list[float]] = [[] for _ in range(count)]
    until = time.perf_counter() + seconds

    def client(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        at = number * len(images) // count
        while (now := time.perf_counter()) < until:
            connection.request("POST", "/predict", images[at % len(images)])
            answer = connection.getresponse()
            body = answer.read()
            assert answer.status == 200, body
            taken[number].append(time.perf_counter() - now)
            at += 1
        connection.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(count)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    return [second for each in taken for second in each]


def processor_seconds(process: int) -> float:
    """What a process has had of the processors so far; of Linux."""
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def summary(rounds: list[Round], *, latency: bool) -> dict[str, object]:
    """Of the rounds of one way of asking. latency: whether each answer was waited for by itself."""
    p50, p99 = np.quantile([second for one in rounds for second in one.taken], (0.5, 0.99))
    answers = sum(len(one.taken) for one in rounds)
    return {
        "requests": answers,
        "requests_per_second": [len(one.taken) / one.seconds for one in rounds],
        **({"p50_milliseconds": 1e3 * float(p50), "p99_milliseconds": 1e3 * float(p99)} if latency else {}),
        "processor_milliseconds": 1e3 * sum(one.processor_seconds for one in rounds) / answers,
    }


if __name__ == "__main__":
    main()
