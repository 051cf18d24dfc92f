"""Peak memory of `burnish predict` on 100 and on 10,000 images; one JSON object on stdout.

usage: predict_memory.py RUN IMAGES        the folder's images are linked as often as it takes to make 10,000
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CODE = """
import resource, sys
from burnish import cli
try:
    cli.main(sys.argv[1:])
except SystemExit as left:
    assert not left.code, left.code
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, file=sys.stderr)
"""


def main() -> None:
    from burnish.record.facts import machine

    run, images = sys.argv[1], sorted(path for path in Path(sys.argv[2]).rglob("*") if path.is_file())
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for count in (100, 10_000):
            home = Path(folder) / str(count)
            home.mkdir()
            for number, image in zip(range(count), itertools.cycle(images), strict=False):
                os.link(image, home / f"{number:05d}{image.suffix}") if _same_disk(image, home) else (
                    home / f"{number:05d}{image.suffix}"
                ).write_bytes(image.read_bytes())
            began = time.monotonic()
            done = subprocess.run(
                [sys.executable, "-c", CODE, "predict", run, str(home), "--csv", str(home) + ".csv"],
                capture_output=True,
                text=True,
                check=True,
            )
            rows = (Path(str(home) + ".csv").read_text().count("\n")) - 1
            found.append(
                {
                    "images": count,
                    "answers": rows,
                    "peak_memory_mb": int(done.stderr.split()[-1]),
                    "seconds": round(time.monotonic() - began, 1),
                }
            )
    print(json.dumps({"benchmark": "predict_memory", "machine": machine(), "cases": found}, indent=1))


def _same_disk(image: Path, home: Path) -> bool:
    return image.stat().st_dev == home.stat().st_dev and os.access(image.parent, os.W_OK)


if __name__ == "__main__":
    main()
