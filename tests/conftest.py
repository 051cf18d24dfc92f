"""Fixtures shared by the tests: small labelled folders, small networks, real images where the machine has them."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from burnish import api, cli
from burnish.measure import cost
from burnish.runtime import Nobody

# One thread: the networks are tiny, and results do not depend on how many cores the machine has.
torch.set_num_threads(1)
# A shell's background job ignores Ctrl-C, and so would the programs that tests begin in order to interrupt them.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """What was imported stays: looking through half a million such objects again and again took 1 s of 28."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test, and no fixture of a module, reads or writes the user's caches, nor asks a network."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("BURNISH_CACHE", str(tmp_path_factory.getbasetemp() / "burnish-cache"))
        patched.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="session", autouse=True)
def hurried() -> Iterator[None]:
    """A run asks its model five times for an answer, not for 1.4 s, to say what one takes: the number is as good here.

    And writes without waiting for the disk, whose plug no test can pull; what runs in a process of its own does wait.
    """
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cost, "_LATENCY_RUNS", 5)
        patched.setattr(os, "fsync", os.fstat)  # which refuses a closed file as fsync does
        yield


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders red, green, blue with 20 noisy 40 × 32 images each."""
    root = tmp_path_factory.mktemp("data") / "shapes"
    write_shapes(root, images=20)
    return root


@pytest.fixture
def images(tmp_path):
    """A folder of its own, whose files may be changed."""
    write_shapes(tmp_path / "images", images=12)
    return tmp_path / "images"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images that $BURNISH_TEST_DATA names; skips without it."""
    named = os.environ.get("BURNISH_TEST_DATA")
    if not named or not (Path(named) / "signs.csv").is_file():
        pytest.skip("real images are not here: set BURNISH_TEST_DATA to the folder that holds signs.csv")
    return Path(named)


def write_shapes(root: Path, *, images: int, classes: tuple[str, ...] = ("blue", "green", "red")) -> None:
    """Images that a network can tell apart by colour, drawn from their own names."""
    for channel, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(images):
            rng = np.random.default_rng([channel, number])
            pixels = rng.integers(0, 120, (32, 40, 3), np.uint8)
            pixels[..., channel % 3] += 90
            Image.fromarray(pixels).save(root / name / f"{number:03d}.png")


def burnish(*words, capsys):
    """Exit code, stdout and stderr of one command line, run in this process."""
    try:
        cli.main([str(word) for word in words])
        code = 0
    except SystemExit as leaving:
        code = leaving.code or 0
    out, err = capsys.readouterr()
    return code, out, err


def fit_in_a_process(data: Path, *words: str, cwd: Path | None = None) -> subprocess.Popen[str]:
    """`burnish fit` of a small network, whose run does not end by itself, as a program of its own."""
    small = ["--model", "random:test_resnet", "--image-size", "64", "--budget", "none", "--epochs", "100000"]
    command = [sys.executable, "-m", "burnish", "fit", str(data), *small, *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd)


class Told(Nobody):
    """A watcher that keeps what is said."""

    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


def finished_once(cases, data, folder):
    """A function of a case's name: the folder of a finished run with those settings, made when it is first asked for."""
    made = {}

    def of(case):
        if case not in made:
            settings = {"model": "random:test_resnet", "image_size": 64, "epochs": 1, "budget": None, **cases[case]}
            made[case] = api.fit(data, out=folder / case.replace(" ", "-"), **settings).folder
        return made[case]

    return of
