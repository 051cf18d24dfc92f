"""Where Python offers what it does on macOS and on Windows: the same answers as here. See `other_systems` for what is pretended."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import burnish
from burnish.positioned import read_at, read_into, write_at

CODE = """
import sys
from burnish import cli
home, packed, images = sys.argv[3:]
tiny = ["--model", "random:test_resnet", "--image-size", "32", "--epochs", "1", "--budget", "none", "--method", "norms", "--precision", "float32", "-q"]
for where in ("first", "again"):  # decoded anew, and from the cache
    cli.main(["fit", packed, *tiny, "--cache", f"{home}/cache", "--out", f"{home}/{where}"])
    cli.main(["predict", f"{home}/{where}", images, "--csv", f"{home}/{where}.csv"])
cli.main(["doctor"])
"""


@pytest.fixture(scope="module")
def packed(shapes, tmp_path_factory):
    return Path(shutil.make_archive(str(tmp_path_factory.mktemp("packed") / "shapes"), "zip", shapes))


@pytest.fixture(scope="module")
def here(packed, shapes, tmp_path_factory):
    """What is predicted on this system."""
    home = tmp_path_factory.mktemp("here")
    tiny = {
        "model": "random:test_resnet",
        "image_size": 32,
        "epochs": 1,
        "budget": None,
        "method": "norms",
        "precision": "float32",
    }
    result = burnish.fit(packed, out=home / "run", cache=home / "cache", **tiny)
    return [(one.path, one.label, one.probability) for one in result.predict(shapes)]


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_a_fit_and_what_it_predicts_are_the_same_where_the_system_offers_less(system, packed, here, shapes, tmp_path):
    command = [sys.executable, Path(__file__).with_name("other_systems.py"), system, CODE, tmp_path, packed, shapes]
    found = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    assert "sha256" in found.stdout and "GB free in" in found.stdout
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".pixels"}
    first, again = ((tmp_path / f"{name}.csv").read_text().splitlines() for name in ("first", "again"))
    assert first == again and len(first) == 1 + len(here)
    for line, (_, label, probability) in zip(first[1:], here, strict=True):
        assert line.split(",")[1] == label and float(line.split(",")[2]) == pytest.approx(probability, abs=1e-4)


def test_a_file_is_read_and_written_at_its_places_without_calls_for_it(tmp_path, monkeypatch):
    def all_three() -> tuple[bytes, bytes, int, bytes]:
        with open(tmp_path / "file", "w+b", buffering=0) as file:
            written = write_at(file.fileno(), b"0123456789", 2)
            into = memoryview(bytearray(6)).cast("B", (2, 3))
            came = read_into(file.fileno(), into, 8)
            return read_at(file.fileno(), 4, 1), into.tobytes(), came + 100 * written, (tmp_path / "file").read_bytes()

    as_here = all_three()
    assert as_here == (b"\x00012", b"6789\x00\x00", 1004, b"\x00\x000123456789")
    for name in ("pread", "preadv", "pwrite"):
        monkeypatch.delattr("os." + name)
    assert all_three() == as_here
