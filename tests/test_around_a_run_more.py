"""What may happen around a run, part two: the terminal of a whole program, two Ctrl-Cs, files of other programs, copies of results."""

from __future__ import annotations

import copy
import errno
import io
import json
import os
import pickle
import pty
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from rich.console import Console
from rich.progress import Progress
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import burnish
from burnish import api, cli, doctor, watching
from burnish.backbones.zoo import load_backbone
from burnish.choose.ledger import origin_of
from burnish.errors import RecipeError, RunError
from burnish.recipe import Recipe
from burnish.reports.board import Board
from burnish.result import RunFolder
from burnish.seeds import require_time_for_seeds
from burnish.sklearn import ImageClassifier

TINY = {"model": "random:test_resnet", "image_size": 32, "budget": None, "method": "probe", "cache": "off"}
WORDS = [
    "--model",
    "random:test_resnet",
    "--image-size",
    "32",
    "--budget",
    "none",
    "--method",
    "probe",
    "--cache",
    "off",
]
PROGRAM = [sys.executable, "-m", "burnish"]


@pytest.fixture(scope="module")
def run(shapes, tmp_path_factory):
    return api.fit(shapes, out=tmp_path_factory.mktemp("around") / "run", **TINY)


# ---- when it began ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="the system does not tell when a process began")
def test_the_seconds_of_a_run_hold_none_of_what_a_shell_waited_for(shapes, tmp_path):
    fit = [*PROGRAM, "fit", str(shapes), *WORDS, "--quiet", "--out", str(tmp_path / "run")]
    began = time.monotonic()
    subprocess.run(["sh", "-c", 'sleep 6; exec "$@"', "sh", *fit], check=True, capture_output=True)
    whole = time.monotonic() - began
    seconds = json.loads((tmp_path / "run" / "result.json").read_text())["seconds"]
    assert 0.0 < seconds < whole - 4.5  # one second is allowed for the start of Python


# ---- whose folder it is ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["4711", "4711 on host"])
def test_a_number_in_the_lock_of_somebody_elses_folder_stays(content, tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    (tmp_path / ".lock").write_text(content)
    with pytest.raises(RunError, match="is not empty"):
        RunFolder.open(tmp_path)
    assert (tmp_path / ".lock").read_text() == content


def test_a_lock_that_is_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / ".lock")
    told = []

    def opening():
        try:
            RunFolder.open(tmp_path)
        except RunError as error:
            told.append(str(error))

    thread = threading.Thread(target=opening, daemon=True)
    thread.start()
    thread.join(3.0)
    waits = thread.is_alive()
    if waits:
        (tmp_path / ".lock").write_text("x")
        thread.join()
    assert not waits and "no file of burnish" in told[0]


# ---- where its words go ----------------------------------------------------------------------------------------------


class Leaving(io.StringIO):
    """A stream that works until it is told to fail."""

    number = 0

    def write(self, text):
        if self.number:
            raise OSError(self.number, os.strerror(self.number))
        return super().write(text)


@pytest.fixture
def terminal():
    """A terminal that can be told to fail, and a bar on it."""
    stream = Leaving()
    progress = Progress(console=Console(file=stream, force_terminal=True, width=80), auto_refresh=False)
    progress.start()
    yield stream, watching._Bar(progress, None)
    stream.number = 0
    progress.stop()


@pytest.mark.parametrize("name", ["advance", "say"])
def test_a_bar_outlives_its_terminal_and_no_other_trouble(name, terminal, monkeypatch):
    stream, bar = terminal
    call = {"advance": lambda: bar.advance(1), "say": lambda: bar.say("a fact")}[name]
    monkeypatch.setattr(bar.progress, "advance", lambda *_: bar.progress.refresh())  # which else waits until it is time
    stream.number = errno.EIO
    call()
    call()
    stream.number = errno.ENOSPC
    with pytest.raises(OSError, match="No space"):
        call()


def test_a_bar_on_a_full_disk_says_so_at_its_next_stage(terminal):
    stream, bar = terminal
    stream.number = errno.ENOSPC
    with pytest.raises(OSError, match="No space"):
        bar.stage("decode", total=3)


def test_a_bar_whose_terminal_is_gone_comes_to_its_next_stage(terminal):
    stream, bar = terminal
    stream.number = errno.EIO
    bar.stage("decode", total=3)


def test_a_bar_whose_terminal_is_gone_comes_to_all_later_stages(terminal):
    stream, bar = terminal
    stream.number = errno.EIO
    for name in ("decode", "probe", "report"):
        bar.stage(name)


def test_a_program_whose_terminal_was_closed_comes_to_its_result(shapes, tmp_path):
    master, slave = pty.openpty()
    fit = [*PROGRAM, "fit", str(shapes), *WORDS, "--out", str(tmp_path / "run")]
    plain = {key: value for key, value in os.environ.items() if key not in ("FORCE_COLOR", "TTY_COMPATIBLE")}
    plain["TERM"] = "xterm-256color"
    process = subprocess.Popen(fit, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, env=plain)
    os.close(slave)
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "run.json").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    os.close(master)  # which hangs up
    process.wait(timeout=120)
    assert (tmp_path / "run" / "result.json").is_file() and (tmp_path / "run" / "report.html").is_file()


def test_a_program_whose_reader_has_read_enough_comes_to_its_result(shapes, tmp_path):
    fit = [*PROGRAM, "fit", str(shapes), *WORDS, "--out", str(tmp_path / "run")]
    process = subprocess.Popen(fit, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()  # as `| head -1` does
    assert process.wait(timeout=120) == 141
    assert process.stderr.read() == b""
    assert (tmp_path / "run" / "result.json").is_file() and (tmp_path / "run" / "report.html").is_file()


@pytest.mark.parametrize("number", [errno.EACCES, errno.ECONNRESET])
def test_other_errors_of_the_system_are_no_closed_terminal(number, monkeypatch):
    monkeypatch.setattr(cli, "app", lambda **_: (_ for _ in ()).throw(OSError(number, os.strerror(number))))
    with pytest.raises(SystemExit) as leaving:
        cli.main(["methods"])
    assert leaving.value.code == 70


def test_a_file_that_the_disk_does_not_give_is_no_closed_terminal(monkeypatch):
    broken = OSError(errno.EIO, os.strerror(errno.EIO), "photo.png")
    monkeypatch.setattr(cli, "app", lambda **_: (_ for _ in ()).throw(broken))
    with pytest.raises(SystemExit) as leaving:
        cli.main(["methods"])
    assert leaving.value.code == 70


def test_whoever_presses_ctrl_c_again_has_left_already(monkeypatch, capsys):
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit):
            cli._leave("a sentence", 130)
        assert signal.getsignal(signal.SIGINT) is before, "other programs have their own"
        monkeypatch.setattr(burnish, "own_process", True)
        with pytest.raises(SystemExit):
            cli._leave("a sentence", 130)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("module", ["burnish.runtime", "burnish.cli", "typer", "numpy"])
def test_ctrl_c_while_the_program_is_loaded_is_130_without_a_traceback(module):
    code = (
        "import sys\n"
        "class Pressed:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == {module!r}: raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Pressed())\n"
        "from burnish import __main__ as program\n"
        "program.run()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 130 and "Traceback" not in done.stderr


@pytest.mark.parametrize("after", [0.1, 0.3, 0.4, 1.2])
def test_ctrl_c_twice_at_any_moment_of_the_start_leaves_no_traceback(after, tmp_path):
    words = [*PROGRAM, "fit", "demo", "--out", str(tmp_path / "run"), "--budget", "none"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    if after > 1.0:
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    began = after < 0.4 and process.returncode in (-signal.SIGINT, 1)  # Python itself was not up on a busy machine
    assert process.returncode == 130 or began
    assert began or "Traceback" not in error


# ---- what it finds ---------------------------------------------------------------------------------------------------


def test_what_a_state_keeps_of_its_origin_names_the_threads():
    backbone = load_backbone("random:test_resnet")
    assert origin_of(backbone, torch.device("cpu"))["threads"] == str(torch.get_num_threads())


def test_without_a_temporary_folder_nothing_is_made_and_the_doctor_says_the_rest(shapes, tmp_path, monkeypatch):
    def none():
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    with pytest.raises(RunError, match="no temporary folder"):
        api.fit(shapes, out=tmp_path / "run", **TINY)
    assert not (tmp_path / "run").exists()
    found = doctor.examine()
    assert [one.state for one in found if one.what == "disk"] == ["broken"] and len(found) > 5


def test_a_new_event_file_brings_the_rows_of_before_again(shapes, tmp_path, monkeypatch):
    real, tried = Board._write, []

    def write(self, summary, step):
        if any(value.tag == "train/loss" for value in summary.value):
            tried.append(step)
            if len(tried) == 2:
                raise RunError("the disk is full")
        real(self, summary, step)

    monkeypatch.setattr(Board, "_write", write)
    out = io.StringIO()
    settings = {**TINY, "method": "full", "epochs": 3}
    api.fit(shapes, out=tmp_path / "run", **settings, watcher=watching.Lines(out))
    files = sorted(
        (tmp_path / "run" / "tensorboard").glob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime
    )
    assert len(files) == 2
    steps = [[one.step for one in EventAccumulator(str(file)).Reload().Scalars("train/loss")] for file in files]
    assert len(steps[0]) == 1 and len(steps[1]) == 3
    assert steps[1] == sorted(set(tried)) and steps[0] == steps[1][:1]
    assert len((tmp_path / "run" / "history.jsonl").read_text().splitlines()) == 3
    assert out.getvalue().count("could not be written") == 1


def test_a_disk_that_refuses_every_line_is_told_once(shapes, tmp_path, monkeypatch):
    def refused(*_):
        raise RunError("the disk is full")

    monkeypatch.setattr(Board, "_write", refused)
    out = io.StringIO()
    found = api.fit(
        shapes, out=tmp_path / "run", **{**TINY, "method": "full", "epochs": 2}, watcher=watching.Lines(out)
    )
    assert out.getvalue().count("could not be written") == 1
    assert found.report.is_file()


# ---- what it is asked ------------------------------------------------------------------------------------------------


def test_compare_takes_no_empty_name(shapes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="name of the run's folder is empty"):
        api.compare(shapes, models=["random:test_resnet"], methods=["probe"], out="", budget=None, cache="off")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("verb", ["fit", "audit"])
def test_an_empty_name_on_the_command_line_is_not_the_current_folder(verb, shapes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [*WORDS, "--quiet"] if verb == "fit" else ["--model", "none", "--quiet"]
    with pytest.raises(SystemExit) as leaving:
        cli.main([verb, str(shapes), *words, "--out", ""])
    assert leaving.value.code == 2 and not list(tmp_path.iterdir())


def test_an_audit_without_a_name_is_not_written_to_the_current_folder(shapes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="empty"):
        api.audit(shapes, model=None, out="", cache="off")
    assert not list(tmp_path.iterdir())


def test_a_budget_that_holds_the_trainings_is_not_refused():
    for budget, seeds in ((60.0, 2), (10.0, 2), (None, 100), (2.0, 1)):
        require_time_for_seeds(Recipe(seeds=seeds, budget_seconds=budget))
    with pytest.raises(RecipeError, match=r"2 trainings in 9 s .*--budget 10s"):
        require_time_for_seeds(Recipe(seeds=2, budget_seconds=9.0))


# ---- what it gives ---------------------------------------------------------------------------------------------------


def copied_by_joblib(one):
    file = io.BytesIO()
    joblib.dump(one, file)
    file.seek(0)
    return joblib.load(file)


@pytest.mark.parametrize(
    "copied", [lambda one: pickle.loads(pickle.dumps(one)), copied_by_joblib, copy.deepcopy],
    ids=["pickle", "joblib", "deepcopy"],
)  # fmt: skip
@pytest.mark.parametrize("size", [(40, 32), (64, 64)])
def test_a_copy_of_a_result_that_has_predicted_gives_the_same_answers(copied, size, run):
    images = list(np.random.default_rng(0).integers(0, 256, (20, *size, 3), np.uint8))
    before = run.predict_proba(images)
    again = copied(run)
    np.testing.assert_allclose(again.predict_proba(images), before, atol=1e-6)
    np.testing.assert_array_equal(run.predict_proba(images), before)  # the one that was copied as well
    assert again.facts == run.facts and again.classes == run.classes


@pytest.mark.slow
def test_another_process_predicts_with_a_pickled_result(run, shapes, tmp_path):
    image = str(shapes / "red" / "000.png")
    wanted = run.predict_proba([image])[0]
    (tmp_path / "result.pickle").write_bytes(pickle.dumps(run))
    code = "import pickle, json, sys; one = pickle.load(open(sys.argv[1], 'rb')); "
    code += "print(json.dumps(one.predict_proba([sys.argv[2]])[0].tolist()))"
    words = [sys.executable, "-c", code, str(tmp_path / "result.pickle"), image]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == pytest.approx(wanted.tolist(), abs=1e-6)


@pytest.mark.parametrize(
    ("kept", "copied"), [(True, copied_by_joblib), (False, lambda one: pickle.loads(pickle.dumps(one)))],
    ids=["joblib, a folder", "pickle, a temporary folder"],
)  # fmt: skip
def test_an_estimator_can_be_pickled_after_it_predicted(kept, copied, shapes, tmp_path):
    paths = sorted(map(str, shapes.rglob("*.png")))
    out = str(tmp_path / "run") if kept else None
    fitted = ImageClassifier(model="random:test_resnet", method="probe", budget=None, out=out)
    fitted.fit(paths, [Path(path).parent.name for path in paths])
    before = fitted.predict_proba(paths[:7])
    again = copied(fitted)
    np.testing.assert_allclose(again.predict_proba(paths[:7]), before, atol=1e-6)
    assert (again.predict(paths) == fitted.predict(paths)).all()


def test_a_folder_with_markup_in_its_name_is_shown_as_text(run):
    odd = replace(run, folder=Path("runs/<b>bold</b>&co"))
    assert "<b>" not in odd._repr_html_() and "&lt;b&gt;bold" in odd._repr_html_() and "&amp;co" in odd._repr_html_()


def test_what_is_shown_holds_no_control_characters(run):
    odd = replace(run, folder=Path("runs/a\x1b[31mred\nnext"), facts={**run.facts, "kept": "a\x1b[0m"})
    for text in (repr(odd), odd._repr_html_()):
        assert "\x1b" not in text and "\n" not in text


def test_the_package_shows_its_public_names_and_no_others():
    assert sorted(dir(burnish)) == sorted([*burnish.__all__, "__version__"])
    assert all(getattr(burnish, name) is not None for name in dir(burnish))
