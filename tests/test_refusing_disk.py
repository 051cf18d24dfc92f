"""A disk that refuses while a run goes on: training goes on, everything is written when there is room again, and it is said once."""

from __future__ import annotations

import io
import tempfile
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from burnish import api, watching
from burnish.choose.ledger import Ledger, states_of_other_versions
from burnish.data import contents
from burnish.data.contents import Spool
from burnish.errors import RunError
from burnish.record.folder import RunFolder
from burnish.reports.board import Board
from burnish.run import trained as trained_stage
from burnish.runtime import Clock, Nobody
from conftest import Told

TINY = {"model": "random:test_resnet", "image_size": 32, "budget": None, "method": "probe", "cache": "off"}


# ---- packages and states ---------------------------------------------------------------------------------------------


def test_training_goes_on_where_a_better_model_cannot_be_saved(monkeypatch):
    def full(*_):
        raise RunError("the disk is full")

    told, refused = Told(), []
    bench = SimpleNamespace(watcher=told, recipe=SimpleNamespace(method="full"))
    tuning = SimpleNamespace(
        bench=bench, material=None, tunable=SimpleNamespace(backbone=None), classifier=lambda candidate: None
    )
    monkeypatch.setattr(trained_stage, "tuned_contender", lambda *_, **__: None)
    monkeypatch.setattr(trained_stage, "save", full)
    for _ in range(2):
        assert not trained_stage._is_saved(SimpleNamespace(), tuning, None, told=refused)
    assert told.lines == ["the better model could not be saved, training goes on: the disk is full"]
    monkeypatch.setattr(trained_stage, "save", lambda *_: None)
    assert trained_stage._is_saved(SimpleNamespace(), tuning, None, told=refused)


def test_a_run_whose_packages_are_refused_while_it_trains_comes_to_its_end(shapes, tmp_path, monkeypatch):
    """And to the same weights and scores."""
    settings = {**TINY, "method": "full", "epochs": 4}
    monkeypatch.setattr(trained_stage, "_is_saved", lambda *_, told: bool(told.append(None)))
    found = api.fit(shapes, out=tmp_path / "run", **settings)
    monkeypatch.undo()
    assert found.facts["scores"] == api.fit(shapes, out=tmp_path / "other", **settings).facts["scores"]


def test_a_part_that_a_disk_takes_is_not_all(monkeypatch):
    class Slow(io.BytesIO):
        def write(self, data):
            return super().write(bytes(data)[:100])

    held = Slow()
    monkeypatch.setattr(contents, "IN_MEMORY_BYTES", 10)
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: held)
    spool = Spool()
    first, second = spool.add(bytes(range(256))), spool.add(b"x" * 300)
    assert (first, second) == ((0, 256), (256, 300)) and held.getvalue() == bytes(range(256)) + b"x" * 300


def test_a_state_folder_that_cannot_be_listed_is_said(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("burnish.train.checkpoint.versions_of", refused)
    with pytest.raises(RunError, match="Input/output error"), states_of_other_versions(tmp_path):
        Ledger(tmp_path, Clock.start(None, from_process_start=False), Nobody())


def test_a_folder_of_a_comparison_that_cannot_be_begun_is_let_go(shapes, tmp_path, monkeypatch):
    real = RunFolder.begin

    def refused(self, asked, **options):
        if self.path.parent.name == "arms" or "models" in self.path.parts:
            raise RunError("the disk is full")
        return real(self, asked, **options)

    settings = {**TINY, "models": ["random:test_resnet"], "methods": ["probe"]}
    del settings["model"], settings["method"]
    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "begin", refused)
        with pytest.raises(RunError, match="the disk is full"):
            api.compare(shapes, out=tmp_path / "race", **settings)
    assert api.compare(shapes, out=tmp_path / "race", **settings)["rows"]


# ---- the board -------------------------------------------------------------------------------------------------------


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
