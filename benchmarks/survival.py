"""`kill -9` of a fit's process group at random instants, again and again; is what it comes to bit for bit the same?

usage: survival.py [--kills 60] [--seed 0] [--model random:test_resnet] [--data DATA] [--freeze 0] -- fit options
One run is left alone. Others are killed at instants drawn evenly over its length, started again with the same command,
some killed a second time while they are taken up; then weights, history and test scores are compared with the first.
One JSON object on stdout.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="demo")
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", default="0,2", help="numbers of loader workers, taken in turn")
    parser.add_argument("options", nargs="*", default=["--epochs", "3", "--budget", "none"])
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(survive(asked, Path(folder)), indent=1))


def survive(asked: argparse.Namespace, home: Path) -> dict:
    """The whole experiment in `home`."""
    workers = [int(number) for number in asked.workers.split(",")]
    command = [sys.executable, "-m", "burnish", "fit", asked.data, "--quiet", *asked.options]
    environment = {**os.environ, "BURNISH_CACHE": str(home / "cache")}
    alone, began = home / "alone", time.monotonic()
    subprocess.run([*command, "--out", str(alone), "--cache", "off"], check=True, env=environment, capture_output=True)
    seconds, expected = time.monotonic() - began, fingerprint(alone)
    rng, runs, kills, number = random.Random(asked.seed), [], 0, 0
    while kills < asked.kills:
        run, count = home / f"run-{number}", workers[number % len(workers)]
        whole = [*command, "--out", str(run), "--workers", str(count)]
        instants, number = [], number + 1
        # One death anywhere; then, every third time, two more while it is being taken up.
        for attempt in range(3 if number % 3 == 0 else 1):
            instant = rng.uniform(0.0, seconds if attempt == 0 else 0.5 * seconds)
            if killed(whole, instant, environment):
                instants.append(round(instant, 2))
        kills += len(instants)
        done = subprocess.run(whole, env=environment, capture_output=True, text=True)
        same = done.returncode == 0 and fingerprint(run) == expected
        runs.append({"workers": count, "killed_at_seconds": instants, "exit": done.returncode, "identical": same})
        print(json.dumps(runs[-1]), file=sys.stderr, flush=True)
        if done.returncode:
            print(done.stderr, file=sys.stderr)
    from burnish.record.facts import machine

    return {
        "benchmark": "survival",
        "data": asked.data,
        "options": asked.options,
        "seed": asked.seed,
        "uninterrupted_seconds": round(seconds, 1),
        "kills": kills,
        "runs": len(runs),
        "identical": sum(run["identical"] for run in runs),
        "machine": machine(),
        "each": runs,
    }


def killed(command: list[str], instant: float, environment: dict[str, str]) -> bool:
    """Start it as a process group of its own and kill all of it after so many seconds; False when it ended before."""
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        process.wait(instant)
        return False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True


def fingerprint(run: Path) -> dict[str, str]:
    """Hashes of what must not differ: the package's weights and temperature, the history, the scores on test."""
    package = run / json.loads((run / "package.json").read_text())["current"]
    facts = json.loads((run / "result.json").read_text())
    parts = {
        "weights": (package / "weights.safetensors").read_bytes(),
        "temperature": repr(json.loads((package / "bundle.json").read_text())["temperature"]).encode(),
        "history": (run / "history.jsonl").read_bytes() if (run / "history.jsonl").exists() else b"",
        "scores": json.dumps(facts["scores"]).encode(),
        "mistakes": json.dumps(facts["mistakes"]).encode(),
        "splits": (run / "splits.csv").read_bytes(),
    }
    return {name: hashlib.sha256(data).hexdigest() for name, data in parts.items()}


if __name__ == "__main__":
    main()
