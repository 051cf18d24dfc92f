"""A run that dies at any instant goes on to the same bits (P7), and its folder is never torn (P9)."""

import contextlib
import errno
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from burnish import api, disk
from burnish.backbones.fast.half import has_half
from burnish.choose.ledger import Ledger
from burnish.choose.tuning import Tuning
from burnish.errors import NotEnoughData, RunError
from burnish.record import folder as run_folder
from burnish.reports import board
from burnish.run import job
from burnish.screen import print_verdict
from burnish.train import checkpoint, loop
from conftest import write_shapes

# 36 training images: three steps an epoch, twelve in all. The precision is said, for "auto" asks the clock.
RUN = {
    "model": "random:test_resnet", "budget": None, "epochs": 4, "image_size": 64, "batch_size": 12, "method": "full",
    "precision": "float32",
}  # fmt: skip
NURSERY = """
import os, sys, torch
torch.set_num_threads(1)
from burnish import api
from burnish.choose.ledger import Ledger
from burnish.measure import cost
cost._LATENCY_RUNS = 5  # as conftest has it
torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])  # which imports as much as burnish does
Ledger.due = lambda self: True  # a state after each step
for line in sys.stdin:
    asked = eval(line)
    if isinstance(asked, int):
        ended, status = os.waitpid(child, asked)
        print(os.waitstatus_to_exitcode(status) if ended else None, flush=True)
        continue
    child = os.fork()
    if child == 0:
        os.setsid()
        os.environ["BURNISH_CACHE"], data, folder, settings = asked
        api.fit(data, out=folder, **settings)
        os._exit(0)
    print(child, flush=True)
"""


class Death(BaseException):
    """Stands for a kill: nothing in the program expects it."""


class Lines:
    """A watcher that keeps what is said."""

    def __init__(self):
        self.said = []

    def stage(self, name, *, total=None, detail=""):
        pass

    def advance(self, count):
        pass

    def say(self, text):
        self.said.append(text)


@pytest.fixture(scope="module")
def alone(shapes, tmp_path_factory):
    """The folder of a run to which nothing happened."""
    folder = tmp_path_factory.mktemp("runs") / "alone"
    api.fit(shapes, out=folder, cache="off", **RUN)
    return folder


@pytest.fixture(scope="module")
def expected(alone):
    """What a run comes to when nothing happens to it."""
    return fingerprint(alone)


@pytest.fixture
def eager(monkeypatch):
    """The state is saved after each step instead of each few seconds."""
    monkeypatch.setattr(Ledger, "due", lambda self: True)


def fingerprint(run):
    """What must not differ by a bit."""
    package = run / json.loads((run / "package.json").read_text())["current"]
    facts = json.loads((run / "result.json").read_text())
    return {
        "weights": (package / "weights.safetensors").read_bytes(),
        "temperature": json.loads((package / "bundle.json").read_text())["temperature"],
        "history": (run / "history.jsonl").read_bytes(),
        "splits": (run / "splits.csv").read_bytes(),
        "recipe": (run / "recipe.toml").read_bytes(),
        **{name: facts[name] for name in ("scores", "mistakes", "kept")},
    }


def assert_same(run, expected):
    found = fingerprint(run)
    differing = [name for name in expected if found[name] != expected[name]]
    assert not differing


def dies_at_step(patched, number):
    """The run dies as it is about to make this training step; steps made only for timing do not count."""
    step, made = loop.step, []

    def deadly(module, optimiser, *rest):
        if optimiser.param_groups[0]["lr"] > 0:
            made.append(1)
            if len(made) == number:
                raise Death
        return step(module, optimiser, *rest)

    patched.setattr(loop, "step", deadly)


@contextlib.contextmanager
def died(shapes, folder, monkeypatch, *, at_step):
    """A run that died there, in `folder`."""
    with monkeypatch.context() as patched:
        dies_at_step(patched, at_step)
        with pytest.raises(Death):
            api.fit(shapes, out=folder, **RUN)
    yield


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# ---- killed ----------------------------------------------------------------------------------------------------------


class Begun:
    """A run in a process group of its own."""

    def __init__(self, nursery, *asked):
        self.nursery, self.code = nursery, None
        self.pid = self._ask(asked)

    def poll(self):
        """How it ended; None while it has not."""
        if self.code is None:
            self.code = self._ask(os.WNOHANG)
        return self.code

    def wait(self, seconds=10.0):
        give_up = time.monotonic() + seconds
        while self.poll() is None:
            assert time.monotonic() < give_up, "the run hangs"
            time.sleep(0.01)
        return self.code

    def _ask(self, what):
        print(repr(what), file=self.nursery.stdin, flush=True)
        return eval(self.nursery.stdout.readline())


@pytest.fixture(scope="module")
def nursery():
    """A process that has imported all that a run needs, and gives birth to runs: ten imports would take a minute."""
    process = subprocess.Popen(
        [sys.executable, "-c", NURSERY], env={**os.environ, "HF_HUB_OFFLINE": "1"}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    yield process
    process.kill()
    process.communicate()


@pytest.fixture
def begun(nursery, tmp_path):
    """Begins a run in another process."""
    return lambda data, folder, settings: Begun(nursery, str(tmp_path / "cache"), str(data), str(folder), settings)


def killed_when(process, condition, *, seconds=60.0):
    """kill -9 of the process group as soon as the condition holds; False when it ended before."""
    give_up = time.monotonic() + seconds
    while process.poll() is None and not condition():
        assert time.monotonic() < give_up, "the run hangs"
        time.sleep(0.002)
    if process.poll() is not None:
        return False
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return True


def lines_of(file):
    with contextlib.suppress(OSError):
        return len(file.read_bytes().splitlines())
    return 0


def test_a_run_killed_again_and_again_comes_to_the_same_bits(shapes, tmp_path, expected, begun):
    folder = tmp_path / "run"
    instants = [
        lambda: (folder / "splits.csv").exists(),
        lambda: lines_of(folder / "history.jsonl") >= 2,
    ]
    for number, condition in enumerate(instants):
        assert killed_when(begun(shapes, folder, RUN), condition), f"the run ended before instant {number}"
    api.fit(shapes, out=folder, **RUN)
    assert_same(folder, expected)
    assert json.loads((folder / "result.json").read_text())["sittings"] >= 2
    assert not (folder / "state").exists()


@pytest.mark.slow
def test_a_run_killed_at_many_instants_comes_to_the_same_bits(shapes, tmp_path, expected, begun):
    began = time.monotonic()
    assert begun(shapes, tmp_path / "whole", RUN).wait(120) == 0
    seconds = time.monotonic() - began
    rng = np.random.default_rng(0)
    for number in range(3):  # benchmarks/survival.py kills sixty times
        folder, settings = tmp_path / f"run-{number}", {**RUN, "workers": 2 * (number % 2)}
        for _ in range(1 + number % 3):
            until = time.monotonic() + rng.uniform(0.3, 1.0) * seconds
            killed_when(begun(shapes, folder, settings), lambda until=until: time.monotonic() >= until)
        assert begun(shapes, folder, settings).wait(120) == 0
        assert_same(folder, expected)


STEPS = [4, *(pytest.param(step, marks=pytest.mark.slow) for step in (1, 2, 3, 5, 9, 12))]


@pytest.mark.parametrize("at_step", STEPS)
def test_a_run_that_died_at_a_step_comes_to_the_same_bits(at_step, shapes, tmp_path, expected, monkeypatch, eager):
    with died(shapes, tmp_path / "run", monkeypatch, at_step=at_step):
        lines = Lines()
        api.fit(shapes, out=tmp_path / "run", watcher=lines, **RUN)
        assert_same(tmp_path / "run", expected)
    assert any(text.startswith("going on with the run in ") for text in lines.said)


def test_files_that_were_removed_since_the_death_are_there_in_the_end(shapes, tmp_path, alone, expected, monkeypatch):
    folder = tmp_path / "run"
    with died(shapes, folder, monkeypatch, at_step=4):
        for name in ("splits.csv", "audit.csv", "recipe.toml"):
            (folder / name).unlink(missing_ok=True)
        api.fit(shapes, out=folder, **RUN)
        assert_same(folder, expected)
        assert (folder / "audit.csv").read_bytes() == (alone / "audit.csv").read_bytes()


def test_a_run_that_died_where_its_images_grow_comes_to_the_same_bits(tmp_path, monkeypatch):
    """The last step of an epoch stands where the next size begins: the epoch is told at the size that it was trained at."""
    write_shapes(tmp_path / "shapes", images=8)
    settings = {**RUN, "image_size": "auto", "epochs": 5}
    api.fit(tmp_path / "shapes", out=tmp_path / "whole", cache="off", **settings)
    rows = [json.loads(line) for line in (tmp_path / "whole" / "history.jsonl").read_text().splitlines()]
    assert rows[2]["size"] < rows[3]["size"] and rows[2]["progress"] >= 0.6
    real, calls = Tuning.looked_at, []

    def deadly(self, *rest):
        calls.append(rest)
        if len(calls) == 3:
            raise Death
        return real(self, *rest)

    with monkeypatch.context() as patched, pytest.raises(Death):
        patched.setattr(Ledger, "due", lambda self: True)
        patched.setattr(Tuning, "looked_at", deadly)
        api.fit(tmp_path / "shapes", out=tmp_path / "run", cache="off", **settings)
    api.fit(tmp_path / "shapes", out=tmp_path / "run", cache="off", **settings)
    assert_same(tmp_path / "run", fingerprint(tmp_path / "whole"))


@pytest.mark.slow
def test_a_run_that_died_without_a_state_since_the_plan_comes_to_the_same_bits(shapes, tmp_path, expected, monkeypatch):
    """Nothing saved in training: it is begun again, from the same plan."""
    monkeypatch.setattr(Ledger, "due", lambda self: False)
    with died(shapes, tmp_path / "run", monkeypatch, at_step=7):
        api.fit(shapes, out=tmp_path / "run", workers=2, **RUN)
        assert_same(tmp_path / "run", expected)


WRITES = {
    "write_json": (run_folder.RunFolder, "write_json"), "write": (run_folder.RunFolder, "write"),
    "write_version": (checkpoint, "write_version"), "sync_folder": (disk, "sync_folder"), "save": (job, "save"),
    "put_to_test": (job, "put_to_test"), "finish": (job, "finish"),
}  # fmt: skip


def dies_at_call(patched, name, number, *, after):
    """The run dies before or after the number-th such call; returns the list that grows with each."""
    place, attribute = WRITES[name]
    original, calls = getattr(place, attribute), []

    def deadly(*args, **kwargs):
        calls.append(1)
        dies = len(calls) == number
        if dies and not after:
            raise Death
        value = original(*args, **kwargs)
        if dies:
            raise Death
        return value

    patched.setattr(place, attribute, deadly)
    return calls


@pytest.fixture(scope="module")
def calls_made(shapes, tmp_path_factory):
    """How often a whole run makes each of those calls."""
    with pytest.MonkeyPatch.context() as patched:
        calls = {name: dies_at_call(patched, name, None, after=False) for name in WRITES}
        api.fit(shapes, out=tmp_path_factory.mktemp("runs") / "counted", cache="off", **RUN)
    assert all(calls.values())
    return {name: len(made) for name, made in calls.items()}


ANY = ("write", "write_version")  # whose last call is among all of them
LAST = [
    pytest.param(name, after, marks=[] if (name, after) == ("write_json", True) else pytest.mark.slow)
    for name in WRITES
    for after in (False, True)
    if name not in ANY
]


@pytest.mark.parametrize(("name", "after"), LAST)
def test_a_run_that_died_at_its_last_such_call_comes_to_the_same_bits(
    name, after, calls_made, shapes, tmp_path, expected, monkeypatch
):
    """What is nearest to the end has the most to lose."""
    with monkeypatch.context() as patched:
        dies_at_call(patched, name, calls_made[name], after=after)
        with pytest.raises(Death):
            api.fit(shapes, out=tmp_path / "run", **RUN)
    api.fit(shapes, out=tmp_path / "run", **RUN)
    assert_same(tmp_path / "run", expected)
    assert not (tmp_path / "run" / "state").exists()
    assert "<h1" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("name", ANY)
def test_a_run_that_died_at_any_write_comes_to_the_same_bits(name, calls_made, shapes, tmp_path, expected, monkeypatch):
    """Before one, after the next, and so on; before and after the last."""
    last = calls_made[name]
    for number, after in [*((one, one % 2 == 0) for one in range(1, last + 1)), (last, last % 2 == 1)]:
        run = tmp_path / f"run-{number}-{after}"
        with monkeypatch.context() as patched:
            dies_at_call(patched, name, number, after=after)
            with pytest.raises(Death):
                api.fit(shapes, out=run, **RUN)
        api.fit(shapes, out=run, **RUN)
        assert_same(run, expected)


@pytest.mark.slow
@pytest.mark.skipif(not has_half(), reason="this processor does not multiply bfloat16 in hardware")
def test_a_run_in_bfloat16_that_died_comes_to_the_same_bits(shapes, tmp_path, monkeypatch, eager):
    half = {**RUN, "precision": "bfloat16", "epochs": 2, "freeze": 2}
    api.fit(shapes, out=tmp_path / "alone", **half)
    with monkeypatch.context() as patched:
        dies_at_step(patched, 4)
        with pytest.raises(Death):
            api.fit(shapes, out=tmp_path / "run", **half)
    api.fit(shapes, out=tmp_path / "run", **half)
    assert_same(tmp_path / "run", fingerprint(tmp_path / "alone"))


@pytest.mark.parametrize("freeze", [0, 3])
def test_a_run_with_a_budget_follows_the_plan_it_saved(shapes, tmp_path, monkeypatch, eager, freeze):
    """What the clock allowed is settled before the first step: two that go on from one death come to the same bits."""
    timed = {**RUN, "budget": 250, "freeze": freeze}
    with monkeypatch.context() as patched:
        dies_at_step(patched, 5)
        with pytest.raises(Death):
            api.fit(shapes, out=tmp_path / "one", **timed)
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    said = [Lines(), Lines()]
    for name, watcher in zip(("one", "other"), said, strict=True):
        api.fit(shapes, out=tmp_path / name, watcher=watcher, **timed)
    assert all(any(text.startswith("going on with the run") for text in one.said) for one in said)
    assert_same(tmp_path / "other", fingerprint(tmp_path / "one"))


@pytest.mark.parametrize("refused", ["history", "TensorBoard"])
def test_a_disk_that_refuses_the_history_costs_only_that(refused, shapes, tmp_path, monkeypatch):
    def full(*_, **__):
        raise RunError("cannot write: the disk is full")

    if refused == "history":
        monkeypatch.setattr(run_folder.RunFolder, "write_rows", full)
    else:
        monkeypatch.setattr(board.Board, "_write", full)
    watcher = Lines()
    api.fit(shapes, out=tmp_path / "run", watcher=watcher, **{**RUN, "epochs": 2})
    assert (tmp_path / "run" / "report.html").is_file()
    assert len([text for text in watcher.said if "history could not be written" in text]) == 1


# ---- a write that fails ----------------------------------------------------------------------------------------------


FAULTS = {
    "full": lambda: OSError(errno.ENOSPC, "No space left on device"),
    "broken": lambda: OSError(errno.EIO, "Input/output error"),
    "dead": Death,
}
CALLS = ("fsync", "rename", "replace", "open", "mkdir", "chmod", "unlink", "rmdir", "close", "scandir")


def failing_at(patched, call, fault, number, *, after):
    """The number-th call of it fails, before or after it has done its work; returns the list that grows with each."""
    if call == "write":
        return failing_writes(patched, fault, number)
    original, calls = getattr(os, call), []

    def failing(*args, **kwargs):
        calls.append(1)
        if len(calls) != number:
            return original(*args, **kwargs)
        if after:
            original(*args, **kwargs)
        raise fault()

    patched.setattr(os, call, failing)
    return calls


def failing_writes(patched, fault, number):
    """The number-th file opened for writing takes half of what it is given."""
    opened, with_handle, calls = open, os.fdopen, []

    def torn(file):
        calls.append(1)
        if len(calls) != number:
            return file
        write = file.write

        class Torn:
            def write(self, data):
                write(data[: len(data) // 2])
                file.flush()
                raise fault()

            def __enter__(self):
                return self

            def __exit__(self, *problem):
                file.close()

        return Torn()

    patched.setattr(disk, "open", lambda *args, **kwargs: torn(opened(*args, **kwargs)), raising=False)
    patched.setattr(os, "fdopen", lambda *args, **kwargs: torn(with_handle(*args, **kwargs)))
    return calls


def state(number):
    tensors = {"a": torch.full((3, 5), float(number)), "b:c": torch.arange(4) + number}
    return {"number": number, "losses": [number / 3] * 4}, tensors


def assert_is_state(found, numbers):
    """One of these states, whole."""
    assert found is not None, "no state is left"
    facts, tensors = found
    assert facts["number"] in numbers
    wanted, values = state(facts["number"])
    assert facts == wanted
    assert tensors.keys() == values.keys()
    assert all(torch.equal(tensors[name], values[name]) for name in values)


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("call", ["write", *CALLS])
def test_a_state_is_the_old_one_or_the_new_one_whichever_call_fails(call, after, fault, tmp_path, monkeypatch):
    if call == "write" and after:
        pytest.skip("a torn write has one form")
    number, made = 0, 10**9
    while number < made:
        number += 1
        run = tmp_path / f"run-{number}"
        run.mkdir()
        for before in (1, 2, 3):
            checkpoint.write_checkpoint(run, *state(before))
        with monkeypatch.context() as patched:
            calls = failing_at(patched, call, fault, number, after=after)
            problem = None
            try:
                checkpoint.write_checkpoint(run, *state(4))
            except (RunError, Death) as error:
                problem = error
        made = len(calls)
        assert_is_state(checkpoint.read_checkpoint(run), (3, 4))
        if problem is None:
            assert_is_state(checkpoint.read_checkpoint(run), (4,))
        elif isinstance(problem, RunError):
            words = {"full": "the disk is full", "broken": "Input/output error"}
            assert any(word in str(problem) for word in words.values())
        checkpoint.write_checkpoint(run, *state(5))
        assert_is_state(checkpoint.read_checkpoint(run), (5,))
        left = {path.name for path in (run / "state").rglob("*") if path.name.startswith(".")}
        assert not left, "what a failed write left is removed by the next one"
        checkpoint.drop_checkpoints(run)
        assert list(run.iterdir()) == []


def test_each_of_those_calls_is_made_while_a_state_is_written(tmp_path, monkeypatch):
    """Else the test above would test nothing."""
    for call in ("write", "fsync", "rename", "replace", "open", "mkdir", "rmdir", "unlink"):
        run = tmp_path / call
        run.mkdir()
        for before in (1, 2):
            checkpoint.write_checkpoint(run, *state(before))
        with monkeypatch.context() as patched:
            calls = failing_at(patched, call, Death, None, after=False)
            checkpoint.write_checkpoint(run, *state(3))
        assert calls, call


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("call", ["write", "fsync", "replace", "open", "chmod", "close"])
def test_a_file_is_the_old_one_or_the_new_one_whichever_call_fails(call, after, fault, tmp_path, monkeypatch):
    old, new = "old ü\n" * 3000, "new ü\n" * 5000
    number, made = 0, 10**9
    while number < made:
        number += 1
        file = tmp_path / "file.txt"
        disk.write_whole(file, old)
        with monkeypatch.context() as patched:
            calls = failing_at(patched, call, fault, number, after=after)
            problem = None
            try:
                disk.write_whole(file, new)
            except (RunError, Death) as error:
                problem = error
        made = len(calls)
        found = file.read_text(encoding="utf-8")
        assert found in ((old, new) if problem else (new,))
        if isinstance(problem, RunError):
            assert "what was saved is kept" in str(problem)
        strange = [
            path.name for path in tmp_path.iterdir() if path != file and disk.left_behind(path.name) != "file.txt"
        ]
        assert not strange
        if fault is not Death and not (call == "open" and after):  # there the file was made and its name never known
            assert list(tmp_path.iterdir()) == [file]
        for path in set(tmp_path.iterdir()) - {file}:
            path.unlink()


def test_a_state_that_cannot_be_saved_is_said_once_and_the_run_ends_right(
    shapes, tmp_path, expected, monkeypatch, eager
):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_version", full)
    lines = Lines()
    api.fit(shapes, out=tmp_path / "run", watcher=lines, **RUN)
    told = [text for text in lines.said if "the state could not be saved" in text]
    assert len(told) == 1
    assert "the disk is full" in told[0]
    assert_same(tmp_path / "run", expected)


@pytest.mark.slow
def test_a_disk_that_was_full_for_a_while_costs_only_the_states_of_that_while(
    shapes, tmp_path, expected, monkeypatch, eager
):
    write, calls = checkpoint.write_version, []

    def sometimes(*args, **kwargs):
        calls.append(1)
        if 4 <= len(calls) <= 8:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(*args, **kwargs)

    monkeypatch.setattr(checkpoint, "write_version", sometimes)
    with died(shapes, tmp_path / "run", monkeypatch, at_step=6):
        api.fit(shapes, out=tmp_path / "run", **RUN)
        assert_same(tmp_path / "run", expected)


# ---- a damaged state -------------------------------------------------------------------------------------------------


def damage(file, *, where):
    data = bytearray(file.read_bytes())
    if where == "a digit":  # the text stays JSON and says something else
        at = data.index(b'"progress": 0.') + len(b'"progress": 0.')
        data[at] = ord("1") if data[at] != ord("1") else ord("2")
    elif where == "cut":
        del data[len(data) // 2 :]
    elif where == "empty":
        data.clear()
    else:
        data[{"first": 0, "middle": len(data) // 2, "last": -1}[where]] ^= 0x08
    file.write_bytes(data)


DAMAGES = [("tensors.safetensors", where) for where in ("first", "middle", "last", "cut", "empty")]
DAMAGES += [("facts.json", where) for where in ("first", "last", "cut", "empty", "a digit")]


@pytest.fixture(scope="module")
def dead(shapes, tmp_path_factory):
    """A run that died at its eighth step, with the states after its sixth and seventh."""
    folder = tmp_path_factory.mktemp("runs") / "dead"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Ledger, "due", lambda self: True)
        dies_at_step(patched, 8)
        with pytest.raises(Death):
            api.fit(shapes, out=folder, cache="off", **RUN)
    return folder


@pytest.mark.parametrize(("name", "where"), DAMAGES, ids=[f"{name} {where}" for name, where in DAMAGES])
def test_a_damaged_state_is_noticed_and_the_one_before_taken(name, where, dead, tmp_path):
    shutil.copytree(dead, tmp_path / "run")
    sound = checkpoint.read_checkpoint(tmp_path / "run")
    newest, before = disk.versions_of(tmp_path / "run" / "state", versions="versions")
    assert sound[0]["parts"]["tuning"]["training"]["steps"] == 7
    damage(newest / name, where=where)
    found = checkpoint.read_checkpoint(tmp_path / "run")
    assert found is not None
    assert found[0]["parts"]["tuning"]["training"]["steps"] == 6
    assert found[0] == json.loads((before / "facts.json").read_text())["facts"]


@pytest.mark.parametrize(("name", "where"), [("tensors.safetensors", "middle"), ("facts.json", "a digit")])
def test_a_run_whose_newest_state_is_damaged_comes_to_the_same_bits(name, where, dead, shapes, tmp_path, expected):
    shutil.copytree(dead, tmp_path / "run")
    damage(disk.versions_of(tmp_path / "run" / "state", versions="versions")[0] / name, where=where)
    api.fit(shapes, out=tmp_path / "run", **RUN)
    assert_same(tmp_path / "run", expected)


@pytest.mark.slow
def test_a_run_whose_every_state_is_damaged_begins_again_to_the_same_bits(dead, shapes, tmp_path, expected):
    shutil.copytree(dead, tmp_path / "run")
    for version in disk.versions_of(tmp_path / "run" / "state", versions="versions"):
        damage(version / "tensors.safetensors", where="cut")
    api.fit(shapes, out=tmp_path / "run", **RUN)
    assert_same(tmp_path / "run", expected)


# ---- asked for otherwise ---------------------------------------------------------------------------------------------


def test_going_on_with_other_settings_is_refused_naming_each(dead, shapes, tmp_path, expected):
    shutil.copytree(dead, tmp_path / "run")
    before = contents(tmp_path / "run")
    with pytest.raises(RunError) as refused:
        api.fit(shapes, out=tmp_path / "run", **{**RUN, "epochs": 5, "seed": 3, "batch_size": 8})
    said = str(refused.value)
    assert "holds a run that is not finished, asked for otherwise: " in said
    for part in ("batch_size was 12 and is 8", "epochs was 4 and is 5", "seed was 0 and is 3"):
        assert part in said
    assert said.count(" was ") == 3
    assert "say the same again to go on with it, or name another folder with --out" in said
    after = contents(tmp_path / "run")
    assert {name: data for name, data in after.items() if name != ".lock"} == {
        name: data for name, data in before.items() if name != ".lock"
    }
    api.fit(shapes, out=tmp_path / "run", **RUN)
    assert_same(tmp_path / "run", expected)


CHANGED = (
    r"the images or labels changed since the run in .* began; restore them to go on with it, or name another folder"
)


def test_going_on_with_a_changed_image_is_refused_and_with_the_old_one_it_goes_on(dead, shapes, tmp_path, expected):
    shutil.copytree(dead, tmp_path / "run")
    shutil.copytree(shapes, tmp_path / "shapes")
    image = tmp_path / "shapes" / "red" / "003.png"
    old = image.read_bytes()
    image.write_bytes((shapes / "red" / "004.png").read_bytes())
    with pytest.raises(RunError, match=CHANGED):
        api.fit(tmp_path / "shapes", out=tmp_path / "run", **RUN)
    image.write_bytes(old)
    api.fit(tmp_path / "shapes", out=tmp_path / "run", **RUN)
    assert_same(tmp_path / "run", expected)


@pytest.mark.parametrize("change", ["added", "removed", "moved to another class"])
def test_going_on_with_other_images_is_refused(change, dead, shapes, tmp_path):
    shutil.copytree(dead, tmp_path / "run")
    root = Path(shutil.copytree(shapes, tmp_path / "shapes"))
    if change == "added":
        shutil.copy(root / "red" / "003.png", root / "red" / "999.png")
    elif change == "removed":
        (root / "red" / "003.png").unlink()
    else:
        (root / "red" / "003.png").rename(root / "blue" / "999.png")
    with pytest.raises(RunError, match=CHANGED):
        api.fit(root, out=tmp_path / "run", **RUN)


def test_going_on_with_changed_labels_is_refused(shapes, tmp_path, monkeypatch, eager):
    rows = [[f"{name}/{number:03d}.png", name] for name in ("blue", "green", "red") for number in range(20)]
    file = shapes / ".." / "labels.csv"

    def written(swap):
        labelled = [list(row) for row in rows]
        if swap:
            labelled[0][1], labelled[25][1] = labelled[25][1], labelled[0][1]
        file.write_text("path,label\n" + "".join(f"{shapes.name}/{path},{label}\n" for path, label in labelled))

    written(False)
    with died(file, tmp_path / "run", monkeypatch, at_step=3):
        written(True)
        with pytest.raises(RunError, match=CHANGED):
            api.fit(file, out=tmp_path / "run", **RUN)


def test_a_finished_run_is_returned_untouched(alone, shapes, monkeypatch):
    before = contents(alone)
    monkeypatch.setattr("burnish.api.run_job", lambda *args, **kwargs: pytest.fail("it was done again"))
    lines = Lines()
    again = api.fit(shapes, out=alone, watcher=lines, **RUN)
    assert contents(alone) == before
    assert any("is finished: nothing is left to do" in text for text in lines.said)
    assert again.facts == json.loads(before["result.json"])


# ---- stopped by a signal; two at once --------------------------------------------------------------------------------

LONG = {**RUN, "epochs": 2000}


def test_a_stopped_run_leaves_with_130_can_predict_and_goes_on_and_a_second_one_is_refused_meanwhile(shapes, tmp_path):
    options = [
        "--model", RUN["model"], "--budget", "none", "--epochs", "2000", "--image-size", "64", "--batch-size", "12",
        "--method", "full", "--precision", "float32",
    ]  # fmt: skip
    command = [sys.executable, "-m", "burnish", "fit", str(shapes), "--quiet", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    stops = {signal.SIGTERM: tmp_path / "term", signal.SIGINT: tmp_path / "int"}
    running = {
        number: subprocess.Popen(
            [*command, "--out", str(folder)], env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        for number, folder in stops.items()
    }
    try:
        waited = time.monotonic() + 90
        for number, folder in stops.items():
            while lines_of(folder / "history.jsonl") < 2:
                assert running[number].poll() is None, running[number].stderr.read()
                assert time.monotonic() < waited, "the run hangs"
                time.sleep(0.02)
        holder, folder = running[signal.SIGTERM], stops[signal.SIGTERM]
        assert (folder / ".lock").read_text() == f"{holder.pid} on {platform.node()}"
        second = [command[0], "-X", "importtime", *command[1:], "--out", str(folder)]
        refused = subprocess.run(second, env=environment, capture_output=True, text=True, timeout=30)
        said = [line for line in refused.stderr.splitlines() if not line.startswith("import time:")]
        assert refused.returncode == 2
        assert len(said) == 1
        own = f"process {holder.pid} on {platform.node()}"
        assert f"is in use by {own}; wait for it, or name another folder with --out" in said[0]
        imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in refused.stderr.splitlines()}
        assert "burnish" in imported
        assert not {"torch", "timm", "torchvision"} & imported
        assert holder.poll() is None, "the holder was disturbed"

        for number, process in running.items():
            process.send_signal(number)
            assert process.wait(10) == 130
            assert "interrupted; what was saved is kept" in process.stderr.read()
    finally:
        for process in running.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            process.stderr.close()

    for folder in stops.values():
        answers = api.predict(folder, [shapes / "red"])
        assert {answer.problem for answer in answers} == {None}
        assert len(answers) == 20

        class Watching(Lines):
            def say(self, text):
                super().say(text)
                if text.startswith("epoch "):
                    raise Death

        watching = Watching()
        with pytest.raises(Death):
            api.fit(shapes, out=folder, watcher=watching, **LONG)
        assert watching.said[0].startswith("going on with the run in ")


# ---- a loss that is no number ----------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_stops_training_and_is_told_with_step_files_and_rate(
    shapes, tmp_path, monkeypatch, capsys
):
    step, made, lines = loop.step, [], Lines()

    def diverging(module, optimiser, *rest):
        if optimiser.param_groups[0]["lr"] > 0:
            made.append(max(group["lr"] for group in optimiser.param_groups))
            if len(made) == 3:
                return float("nan")
        return step(module, optimiser, *rest)

    monkeypatch.setattr(loop, "step", diverging)
    run = api.fit(shapes, out=tmp_path / "run", watcher=lines, **RUN)
    assert len(made) == 3, "training went on"
    (said,) = [one["why"] for one in run.facts["decisions"] if one["what"] == "training stopped early"]
    assert f"the loss became nan at step 3 (learning rate {made[-1]:.2g}; images " in said
    named = said.partition("; images ")[2].rstrip(")").split(", ")
    assert len(named) == 5
    assert named[-1] == "…"
    assert all((shapes / name).is_file() for name in named[:-1])
    assert f"training stopped early: {said}" in lines.said, "whoever looks on is not told"
    print_verdict(run)
    assert "training stopped early: the loss became nan at step 3" in " ".join(capsys.readouterr().out.split())
    for tensor in run.predictor.bundle.state.values():
        assert torch.isfinite(tensor).all()
    assert np.isfinite(run.predict_proba([shapes / "red" / "000.png"])).all()


@pytest.mark.slow
def test_a_run_that_diverged_and_then_died_comes_to_the_same_bits(shapes, tmp_path, monkeypatch, eager):
    def diverging(patched, at):
        step = loop.step

        def failing(module, optimiser, *rest):  # as a real one: nothing moves in that step, and it comes again
            made = max((int(state["step"]) for state in optimiser.state.values()), default=0)
            if optimiser.param_groups[0]["lr"] > 0 and made == at:
                return float("nan")
            return step(module, optimiser, *rest)

        patched.setattr(loop, "step", failing)

    diverging(monkeypatch, 7)
    api.fit(shapes, out=tmp_path / "alone", **RUN)
    with monkeypatch.context() as patched:
        patched.setattr("burnish.run.job.put_to_test", lambda *args, **kwargs: (_ for _ in ()).throw(Death()))
        with pytest.raises(Death):
            api.fit(shapes, out=tmp_path / "run", **RUN)
    api.fit(shapes, out=tmp_path / "run", **RUN)
    assert_same(tmp_path / "run", fingerprint(tmp_path / "alone"))


# ---- what lies in the folder -----------------------------------------------------------------------------------------


def test_half_written_files_of_a_dead_run_are_removed_when_it_goes_on(dead, shapes, tmp_path, expected):
    folder = tmp_path / "run"
    shutil.copytree(dead, folder)
    torn = [
        folder / f".{name}.abcd_f9h"
        for name in ("recipe.toml", "history.jsonl", "result.json", "report.html", "run.json")
    ]
    for file in torn:
        file.write_text("half")
    draft = folder / "state" / "versions" / ".0099.tmp"
    draft.mkdir()
    (draft / "tensors.safetensors").write_bytes(b"half")
    foreign = folder / ".config.settings"
    foreign.write_text("mine")
    api.fit(shapes, out=folder, **RUN)
    assert not any(file.exists() for file in torn)
    assert foreign.read_text() == "mine"
    assert not (folder / "state").exists()
    assert_same(folder, expected)


def test_a_folder_where_the_very_first_write_was_torn_is_taken(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".run.json.abcdefgh").write_text("{")
    (folder / ".lock").write_text("123")
    with run_folder.RunFolder.open(folder) as held:
        assert held.begin({"seed": 1}) is False
        assert {path.name for path in folder.iterdir()} == {".lock", "run.json"}
        assert (folder / ".lock").read_text() == f"{os.getpid()} on {platform.node()}"
        held.write("splits.csv", "")
    with run_folder.RunFolder.open(folder) as held:
        assert held.begin({"seed": 1}) is True


@pytest.mark.parametrize("name", [".config.settings", ".recipe.toml.ABCDEFGH", "recipe.toml.abcdefgh", ".x.abcdefgh"])
def test_a_foreign_file_is_never_touched_and_its_folder_is_refused(name, shapes, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / name).write_text("mine")
    with pytest.raises(RunError, match=r"is not empty \(.* is in it\); name another folder with --out"):
        api.fit(shapes, out=folder, **RUN)
    assert (folder / name).read_text() == "mine"
    assert {path.name for path in folder.iterdir()} <= {name, ".lock"}


def test_a_run_into_an_empty_folder_that_comes_to_nothing_leaves_no_trace(tmp_path):
    write_shapes(tmp_path / "data", images=3)
    for file in (tmp_path / "data").rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(NotEnoughData):
        api.fit(tmp_path / "data", out=tmp_path / "run", **RUN)
    assert not (tmp_path / "run").exists()
