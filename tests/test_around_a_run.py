"""What may happen around a run: when it began, whose folder it is, what it finds when it is taken up, what it is asked."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import burnish
from burnish import api, cli, doctor, watching
from burnish.backbones.zoo import load_backbone
from burnish.choose.ledger import check_origin, origin_of, states_of_other_versions
from burnish.errors import BurnishError, RecipeError, RunError
from burnish.record.folder import RunFolder
from burnish.reports.board import Board
from burnish.run.journal import Journal
from burnish.runtime import Nobody, process_began
from burnish.train.checkpoint import write_checkpoint

TINY = {"model": "random:test_resnet", "image_size": 32, "budget": None, "method": "probe", "cache": "off"}
PROGRAM = [sys.executable, "-m", "burnish"]
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


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="the system does not tell when a process began")
def test_the_seconds_of_a_run_hold_none_of_what_a_shell_waited_for(shapes, tmp_path):
    fit = [*PROGRAM, "fit", str(shapes), *WORDS, "--quiet", "--out", str(tmp_path / "run")]
    began = time.monotonic()
    subprocess.run(["sh", "-c", 'sleep 6; exec "$@"', "sh", *fit], check=True, capture_output=True)
    whole = time.monotonic() - began
    seconds = json.loads((tmp_path / "run" / "result.json").read_text())["seconds"]
    assert 0.0 < seconds < whole - 4.5  # one second is allowed for the start of Python


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


@pytest.mark.parametrize("content", ["4711", "4711 on host"])
def test_a_number_in_the_lock_of_somebody_elses_folder_stays(content, tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    (tmp_path / ".lock").write_text(content)
    with pytest.raises(RunError, match="is not empty"):
        RunFolder.open(tmp_path)
    assert (tmp_path / ".lock").read_text() == content


@pytest.mark.parametrize("content", ["", "123", "123 on host"])
def test_a_lock_of_a_dead_run_is_taken(content, tmp_path):
    (tmp_path / ".lock").write_text(content)
    with RunFolder.open(tmp_path):
        assert (tmp_path / ".lock").read_text().startswith(f"{os.getpid()} on ")


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
    before = {"weights": "a", "preprocess": "b", "device": "cpu", "processor": "", "torch": "2", "threads": "4"}
    watcher = SimpleNamespace(say=told.append)
    check_origin(before, {**before, "threads": "2"}, tmp_path, watcher)
    assert len(told) == 1 and "OMP_NUM_THREADS=4" in told[0]
    check_origin(before, before, tmp_path, watcher)
    assert len(told) == 1


def test_another_card_is_said(tmp_path):
    told, here = [], {"weights": "a", "preprocess": "b", "device": "cuda", "torch": "2", "threads": "4"}
    watcher = SimpleNamespace(say=told.append)
    now = {**here, "processor": "NVIDIA L4"}
    check_origin({**here, "processor": "NVIDIA H200"}, now, tmp_path, watcher)
    assert told == ["the run began on NVIDIA H200, this is NVIDIA L4: its last bits may differ"]
    check_origin(now, now, tmp_path, watcher)
    assert len(told) == 1


def test_what_a_state_keeps_of_its_origin_names_the_threads():
    backbone = load_backbone("random:test_resnet")
    assert origin_of(backbone, torch.device("cpu"))["threads"] == str(torch.get_num_threads())


def test_without_a_temporary_folder_a_run_says_so_at_once(shapes, tmp_path, monkeypatch):
    def none():
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    with pytest.raises(RunError, match="set TMPDIR"):
        api.fit(shapes, out=tmp_path / "run", **TINY)
    found = doctor._space()
    assert "broken" in str(found) and "TMPDIR" in found.remedy


def test_the_doctor_names_the_extras_of_the_package_and_how_to_have_one(monkeypatch):
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    assert set(doctor._EXTRAS) == set(project["optional-dependencies"]) - {"dev"}
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name in ("optuna", "onnx") else object())
    found = doctor._extras()
    assert (
        found.state == "fine"
        and found.found == "data, keras, serve, models, mlflow; not installed: onnx, openvino, search"
    )
    assert "pip install 'burnish[onnx]'" in found.remedy
    monkeypatch.setattr(doctor, "find_spec", lambda name: object())
    assert doctor._extras().remedy == ""


def test_without_a_temporary_folder_nothing_is_made_and_the_doctor_says_the_rest(shapes, tmp_path, monkeypatch):
    def none():
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    with pytest.raises(RunError, match="no temporary folder"):
        api.fit(shapes, out=tmp_path / "run", **TINY)
    assert not (tmp_path / "run").exists()
    found = doctor.examine()
    assert [one.state for one in found if one.what == "disk"] == ["broken"] and len(found) > 5


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
        lambda: api.fit(shapes, out=tmp_path / "run", **{**TINY, "cache": ""}),
        lambda: api.fit(shapes, out=tmp_path / "run", **TINY, quarantine=""),
    ):
        with pytest.raises(BurnishError, match=r"(?i)name .*is empty"):
            call()


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


@pytest.mark.parametrize("option", ["--cache", "--against", "--quarantine", "--arch", "--pool"])
@pytest.mark.parametrize("joined", [False, True])
def test_a_variable_of_the_shell_that_is_not_set_is_told_and_not_passed_over(
    option, joined, shapes, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    said = [f"{option}="] if joined else [option, ""]
    with pytest.raises(SystemExit) as leaving:
        cli.main(["fit", str(shapes), "--quiet", *said])
    assert leaving.value.code == 2 and not list(tmp_path.iterdir())
    assert f"what is said after {option} is empty" in capsys.readouterr().err


def test_an_audit_without_a_name_is_not_written_to_the_current_folder(shapes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="empty"):
        api.audit(shapes, model=None, out="", cache="off")
    assert not list(tmp_path.iterdir())


def test_more_trainings_than_the_budget_can_hold_are_refused(shapes, tmp_path):
    with pytest.raises(RecipeError, match=r"100 trainings in 20 s .*--budget 500s"):
        api.fit(shapes, out=tmp_path / "run", **{**TINY, "budget": 20, "seeds": 100})


# ---- its threads -----------------------------------------------------------------------------------------------------


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


# ---- a folder that is taken away -------------------------------------------------------------------------------------


@pytest.mark.parametrize("instead", ["nothing", "another run"])
@pytest.mark.parametrize(
    "how", [shutil.rmtree, lambda path: path.rename(path.with_name("moved"))], ids=["removed", "renamed"]
)
def test_a_run_whose_folder_is_taken_away_ends_and_writes_into_no_other(how, instead, shapes, tmp_path):
    path = tmp_path / "run"

    class Taking(Nobody):
        def say(self, text):
            if text.startswith("epoch 1"):
                how(path)
                if instead == "another run":
                    others.append(RunFolder.open(path))
                    others[0].write("run.json", "theirs")

    others = []
    settings = {"model": "random:test_resnet", "image_size": 32, "budget": None, "epochs": 2, "cache": "off"}
    with pytest.raises(RunError, match="was removed or renamed while this run was at work in it"):
        api.fit(shapes, out=path, method="full", watcher=Taking(), **settings)
    if instead == "nothing":
        assert not path.exists()
    else:
        assert sorted(one.name for one in path.iterdir()) == [".lock", "run.json"]
        assert (path / "run.json").read_text() == "theirs"
        others[0].close()


def test_a_run_that_lost_its_lock_alone_goes_on(tmp_path):
    with RunFolder.open(tmp_path / "run") as folder:
        (folder.path / ".lock").unlink()
        folder.write("run.json", "{}")
        assert (folder.path / "run.json").is_file()
