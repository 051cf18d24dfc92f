"""What may happen around a run: who started it, whose folder it is, where its words go, what it finds when it is taken up."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from types import SimpleNamespace

import pytest

import burnish
from burnish import api, cli, doctor, watching
from burnish.choose.ledger import check_origin, states_of_other_versions
from burnish.errors import BurnishError, RecipeError, RunError
from burnish.journal import Journal
from burnish.reports.board import Board
from burnish.result import RunFolder
from burnish.runtime import process_began
from burnish.train.checkpoint import write_checkpoint

TINY = {"model": "random:test_resnet", "image_size": 32, "budget": None, "method": "probe", "cache": "off"}
PROGRAM = [sys.executable, "-m", "burnish"]


@pytest.fixture(scope="module")
def run(shapes, tmp_path_factory):
    return api.fit(shapes, out=tmp_path_factory.mktemp("around") / "run", **TINY)


# ---- when it began ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="the system does not tell when a process began")
def test_what_a_shell_waited_for_before_it_became_burnish_is_none_of_its_time():
    told = "import burnish, time; from burnish.runtime import process_age_seconds as age; "
    told += "from burnish import __main__ as program; import burnish.cli; burnish.cli.main = lambda: print(age()); program.run()"
    done = subprocess.run(
        ["sh", "-c", f'sleep 3; exec {sys.executable} -c "{told}"'], capture_output=True, text=True, check=True
    )
    assert 0.0 < float(done.stdout) < 2.9


def test_a_process_is_as_old_as_its_processor_time_and_a_second_allow():
    now = time.monotonic()
    assert now - process_began(now, 0.5) <= 1.5 + 1e-6
    assert process_began(now - 2.0, 0.0) <= now - 2.0


# ---- whose folder it is ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["precious", "1 2", "process 1 on a", "12 in b"])
def test_a_lock_that_burnish_did_not_write_is_left_as_it_is(content, tmp_path):
    (tmp_path / ".lock").write_text(content)
    with pytest.raises(RunError, match="no file of burnish"):
        RunFolder.open(tmp_path)
    assert (tmp_path / ".lock").read_text() == content


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "mine.txt").write_text("")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to("../mine.txt")
    with pytest.raises(RunError, match="is a link"):
        RunFolder.open(tmp_path / "run")
    assert (tmp_path / "mine.txt").read_text() == ""


@pytest.mark.parametrize("lock", [None, ""])
def test_somebody_elses_folder_is_left_as_it_was(lock, tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    if lock is not None:
        (tmp_path / ".lock").write_text(lock)
    with pytest.raises(RunError, match="is not empty"):
        RunFolder.open(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["mine.txt", *([] if lock is None else [".lock"])]
    )
    assert lock is None or (tmp_path / ".lock").read_text() == lock


@pytest.mark.parametrize("content", ["", "123", "123 on host"])
def test_a_lock_of_a_dead_run_is_taken(content, tmp_path):
    (tmp_path / ".lock").write_text(content)
    with RunFolder.open(tmp_path):
        assert (tmp_path / ".lock").read_text().startswith(f"{os.getpid()} on ")


# ---- where its words go ----------------------------------------------------------------------------------------------


class Gone(io.StringIO):
    def __init__(self, number):
        super().__init__()
        self.number = number

    def write(self, text):
        raise OSError(self.number, os.strerror(self.number))


def test_a_terminal_that_goes_away_ends_no_run(shapes, tmp_path):
    found = api.fit(shapes, out=tmp_path / "run", watcher=watching.Lines(Gone(errno.EIO)), **TINY)
    assert found.report.is_file()
    with pytest.raises(OSError, match="No space"):
        watching.Lines(Gone(errno.ENOSPC)).say("a fact")


def test_lines_tell_each_stage_once_and_each_fact(capsys):
    lines = burnish.Lines()
    lines.stage("decode", total=3)
    lines.stage("decode", total=3, detail="the rest")
    lines.advance(3)
    lines.say("done")
    told = [line.split(" s  ")[1] for line in capsys.readouterr().out.splitlines()]
    assert told == ["decode: 3 images", "done"]


def test_a_lost_terminal_at_the_end_is_a_closed_pipe(monkeypatch):
    monkeypatch.setattr(cli, "app", lambda **_: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
    monkeypatch.setattr(cli, "_no_more_output", lambda: None)
    with pytest.raises(SystemExit) as leaving:
        cli.main(["methods"])
    assert leaving.value.code == 141


def test_an_error_that_nobody_can_read_still_has_its_code(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Gone(errno.EIO))
    with pytest.raises(SystemExit) as leaving:
        cli._leave("a sentence", 2)
    assert leaving.value.code == 2


@pytest.mark.parametrize("after", [0.2, 0.5, 0.8])
def test_ctrl_c_in_the_first_moments_leaves_no_traceback(after, tmp_path):
    words = [*PROGRAM, "fit", "demo", "--out", str(tmp_path / "run"), "--budget", "none"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    began = after < 0.4 and process.returncode in (-signal.SIGINT, 1)  # Python itself was not up on a busy machine
    assert process.returncode == 130 or began
    assert began or "Traceback" not in error


def test_a_folder_that_is_gone_is_a_sentence(tmp_path):
    (tmp_path / "here").mkdir()
    command = f'cd "{tmp_path}/here" && rmdir "{tmp_path}/here" && exec "{sys.executable}" -m burnish methods'
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert done.returncode == 2 and "is gone" in done.stderr and "Traceback" not in done.stderr


# ---- what it finds ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyError("special"), TypeError("unexpected keyword 'new'")])
def test_a_state_of_another_version_is_a_sentence(error, tmp_path):
    with pytest.raises(type(error)), states_of_other_versions(tmp_path):
        raise error
    write_checkpoint(tmp_path, {"seconds": 1.0}, {})
    with (
        pytest.raises(RunError, match=r"another version of burnish; remove .*state") as told,
        states_of_other_versions(tmp_path),
    ):
        raise error
    assert told.value.__cause__ is error


def test_a_run_goes_on_from_no_state_that_it_cannot_read(shapes, tmp_path):
    from burnish.train.checkpoint import STATE, read_checkpoint

    class Enough(Exception):
        pass

    class Stops(burnish.Lines):
        def say(self, text):
            if text.startswith("epoch 2"):
                raise Enough

    settings = {**TINY, "method": "full", "epochs": 4, "watcher": None}
    with pytest.raises(Enough), pytest.MonkeyPatch.context() as patch:
        patch.setattr("burnish.choose.ledger.Ledger.due", lambda self: True)
        api.fit(shapes, out=tmp_path / "run", **{**settings, "watcher": Stops(io.StringIO())})
    facts, tensors = read_checkpoint(tmp_path / "run")
    del facts["parts"]["probed"]["probed"]
    write_checkpoint(tmp_path / "run", facts, tensors)
    with pytest.raises(RunError, match="another version"):
        api.fit(shapes, out=tmp_path / "run", **settings)
    assert (tmp_path / "run" / STATE).is_dir()


def test_another_number_of_threads_is_said(tmp_path):
    told = []
    before = {"weights": "a", "preprocess": "b", "device": "cpu", "torch": "2", "threads": "4"}
    watcher = SimpleNamespace(say=told.append)
    check_origin(before, {**before, "threads": "2"}, tmp_path, watcher)
    assert len(told) == 1 and "OMP_NUM_THREADS=4" in told[0]
    check_origin({key: value for key, value in before.items() if key != "threads"}, before, tmp_path, watcher)
    check_origin(before, before, tmp_path, watcher)
    assert len(told) == 1


def test_without_a_temporary_folder_a_run_says_so_at_once(shapes, tmp_path, monkeypatch):
    def none():
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    with pytest.raises(RunError, match="set TMPDIR"):
        api.fit(shapes, out=tmp_path / "run", **TINY)
    found = doctor._space()
    assert "broken" in str(found) and "TMPDIR" in found.remedy


def test_tensorboard_goes_on_when_a_disk_has_room_again(shapes, tmp_path, monkeypatch):
    real, refused = Board.scalars, []

    def scalars(self, step, values):
        if "train/loss" in values and not refused:
            refused.append(step)
            raise RunError("the disk is full")
        real(self, step, values)

    shown = []
    monkeypatch.setattr(Board, "scalars", scalars)
    show = Journal._show
    monkeypatch.setattr(Journal, "_show", lambda self, row: (show(self, row), shown.append(row["epoch"]))[0])
    out = io.StringIO()
    api.fit(shapes, out=tmp_path / "run", **{**TINY, "method": "full", "epochs": 3}, watcher=watching.Lines(out))
    assert refused and shown == [1, 2, 3]
    assert out.getvalue().count("the history could not be written") == 1


# ---- what it is asked ------------------------------------------------------------------------------------------------


def test_an_empty_name_is_not_the_current_folder(run, shapes, tmp_path, monkeypatch):
    monkeypatch.chdir(shapes)
    for call in (
        lambda: api.fit("", out=tmp_path / "run", **TINY),
        lambda: api.audit("", model=None, cache="off"),
        lambda: api.predict(run.folder, [""]),
        lambda: api.predict(run.folder, ""),
        lambda: api.evaluate(run.folder, ""),
        lambda: api.fit(shapes, out="", **TINY),
    ):
        with pytest.raises(BurnishError, match=r"(?i)name .*is empty"):
            call()


def test_more_trainings_than_the_budget_can_hold_are_refused(shapes, tmp_path):
    with pytest.raises(RecipeError, match=r"100 trainings in 20 s .*--budget 500s"):
        api.fit(shapes, out=tmp_path / "run", **{**TINY, "budget": 20, "seeds": 100})


# ---- what it gives ---------------------------------------------------------------------------------------------------


def test_a_result_can_be_pickled_after_it_predicted(run, shapes):
    image = shapes / "red" / "000.png"
    first = run.predict([image])[0]
    again = pickle.loads(pickle.dumps(run))
    assert again.predict([image])[0].probabilities == pytest.approx(first.probabilities, abs=1e-6)


def test_what_is_shown_of_a_result_is_short_and_safe(run, shapes):
    from dataclasses import replace

    assert len(repr(run)) < 400 and run.verdict.sentence() in repr(run)
    assert len(repr(run.evaluate(shapes))) < 200 and "accuracy" in repr(run.evaluate(shapes))
    odd = replace(run, facts={**run.facts, "kept": "<b>"})
    assert "<b>" not in odd._repr_html_() and "&lt;b&gt;" in odd._repr_html_()


def test_the_names_of_the_package_are_what_it_is_for():
    assert {"fit", "predict", "open_run", "Result", "Lines"} <= set(dir(burnish))
    assert not {"gc", "sys", "importlib", "own_process"} & set(dir(burnish))


@pytest.mark.parametrize(
    ("set_by_user", "turns"), [({}, "3000"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None), ({"GOMP_SPINCOUNT": "7"}, "7")]
)
def test_threads_of_a_program_that_imports_burnish_wait_briefly(set_by_user, turns):
    left = {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    code = "import burnish, json, os; burnish.fit; print(json.dumps(os.environ.get('GOMP_SPINCOUNT')))"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**left, **set_by_user}, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == turns
