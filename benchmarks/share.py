"""What share of training goes into making views and into saving; one JSON object on stdout.

usage: share.py DATA [--sizes 128,224] [--epochs 2] [--budget none] [--model efficientnet_lite0]
Each size is a `burnish fit` in a process of its own with pixels decoded before, `--workers 0`: a batch of views is made when
the step asks for it, so its seconds count whole. Views: reading stored pixels, cutting, turning, colouring; their share is that
of the steps. Saves: each write of the run's state, and of its package where an epoch was better, while it trains, the flush of
the disk with it; their share is that of the time from the first batch to the last, validation within it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]), sys.argv[3:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--sizes", default="128,224")
    parser.add_argument("--epochs", default="2")
    parser.add_argument("--budget", default="none")
    parser.add_argument("--model", default="efficientnet_lite0")
    asked = parser.parse_args()
    from burnish.imports import settle_threads
    from burnish.record.facts import machine

    environment = dict(os.environ)
    settle_threads(environment)
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for size in asked.sizes.split(","):
            out = Path(folder) / size
            command = [
                sys.executable, __file__, "--child", str(out), "fit", asked.data, "--model", asked.model, "--method", "full",
                "--image-size", size, "--epochs", asked.epochs, "--budget", asked.budget, "--workers", "0",
                "--cache", f"{folder}/cache", "--out", f"{out}-run", "--quiet",
            ]  # fmt: skip
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True, env=environment)
            runs.append({"size": int(size), **json.loads(out.read_text())})
            print(json.dumps(runs[-1]), file=sys.stderr, flush=True)
    told = {"benchmark": "share", "data": os.path.basename(asked.data), "model": asked.model, "batch": 32}
    print(
        json.dumps(
            {**told, "epochs": asked.epochs, "budget": asked.budget, "machine": machine(), "runs": runs}, indent=1
        )
    )


def child(out: Path, command: list[str]) -> None:
    """The command, with the calls that make views and that save timed while it trains."""
    import burnish.cli as cli
    import burnish.run.trained as trained
    import burnish.train.loop as loop
    from burnish.choose.ledger import Ledger

    views, steps = timed(loop.Ahead, "get"), timed(loop, "step")
    saves, packages = timed(Ledger, "write"), timed(trained, "save")
    try:
        cli.main(command)
    except SystemExit as left:
        assert not left.code, left.code
    first, last = views[0][0], views[-1][1]
    inside = [(begin, end) for begin, end in (*saves, *packages) if first <= begin <= last]
    out.write_text(json.dumps({
        "steps": len(steps),
        "steps_seconds": total(views) + total(steps),
        "views_seconds": total(views),
        "views_share": total(views) / (total(views) + total(steps)),
        "training_seconds": last - first,
        "saves": len(inside),
        "saves_seconds": total(inside),
        "saves_share": total(inside) / (last - first),
    }))  # fmt: skip


def timed(room: Any, name: str) -> list[tuple[float, float]]:
    """(begin, end) of each call, in seconds, of the function of that name in a class or module; filled as they come."""
    plain, spans = getattr(room, name), []

    def noted(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return plain(*args, **kwargs)
        finally:
            spans.append((began, time.perf_counter()))

    setattr(room, name, noted)
    return spans


def total(spans: list[tuple[float, float]]) -> float:
    """Seconds."""
    return sum(end - begin for begin, end in spans)


if __name__ == "__main__":
    main()
