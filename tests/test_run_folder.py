"""A run's folder and its files as they are found: links, pipes, damage, and folders that are named from home."""

from __future__ import annotations

import json
import os

import pytest

from burnish import api
from burnish.disk import write_whole
from burnish.errors import NotARun, RunError
from burnish.record.folder import PICTURES, PREDICTIONS, RESULT, SPLITS, RunFolder, read_facts, read_pictures, sides_in

TINY = {"model": "random:test_resnet", "image_size": 32, "budget": None, "method": "probe", "cache": "off"}


@pytest.fixture(scope="module")
def run(shapes, tmp_path_factory):
    return api.fit(shapes, out=tmp_path_factory.mktemp("again") / "run", **TINY)


def test_a_page_does_not_follow_a_link_in_a_run(run, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    page = run.folder / "report.html"
    page.unlink()
    page.symlink_to(precious)
    assert api.report(run.folder) == page
    assert precious.read_text() == "mine" and not page.is_symlink() and page.read_text().startswith("<!doctype html>")
    assert page.stat().st_mode & 0o777 == 0o666 & ~_umask()
    link = tmp_path / "named.html"
    precious.write_text("<!doctype html>an older page")
    link.symlink_to(precious)
    api.report(run.folder, out=link)
    assert link.is_symlink() and precious.read_text() == page.read_text(), "a link that is named is meant"


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with a name")
def test_a_pipe_among_a_runs_files_is_not_waited_for(run, tmp_path):
    for name in (PICTURES, SPLITS, PREDICTIONS, RESULT):
        os.mkfifo(tmp_path / name)
    assert read_pictures(tmp_path) == {}
    with pytest.raises(NotARun, match="is not a plain file"):
        sides_in(tmp_path / SPLITS)
    with pytest.raises(NotARun):
        read_facts(tmp_path)
    os.mkfifo(tmp_path / "page")
    write_whole(tmp_path / "page", "text")
    assert (tmp_path / "page").read_text() == "text"


@pytest.mark.parametrize(
    "text", ["path,label,split\na,b", "path,label,split\na,b,tr\n", "name\na\n", "", "\0\n", "path,split\n"]
)
def test_a_table_of_splits_that_was_cut_short_or_changed_is_a_sentence(text, tmp_path):
    (tmp_path / SPLITS).write_text(text)
    with pytest.raises(NotARun, match=r"splits\.csv is damaged .* which images the run learnt from"):
        sides_in(tmp_path / SPLITS)


def test_facts_that_are_nested_too_deeply_are_a_sentence(tmp_path):
    (tmp_path / RESULT).write_text("[" * 200_000)
    with pytest.raises(NotARun, match="cannot be read"):
        read_facts(tmp_path)


def test_settings_of_any_length_are_said_in_short(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"head": "a" * 100_000, "b" * 100_000: [1] * 10_000}))
    (tmp_path / ".lock").touch()
    with (
        RunFolder.open(tmp_path) as folder,
        pytest.raises(RunError, match=r"head was 'aaa.*… and is 'linear'") as caught,
    ):
        folder.begin({"head": "linear"})
    assert len(str(caught.value)) < 1500


@pytest.mark.parametrize("text", ["", "{", "{}", "[1]"])
def test_a_damaged_comparison_is_said_in_a_sentence(text, shapes, tmp_path):
    told = {"image_size": 32, "budget": None, "cache": "off"}
    race = {"models": ["random:test_resnet"], "methods": ["probe"], "out": tmp_path / "race", **told}
    api.compare(shapes, **race)
    (tmp_path / "race" / "compare.json").write_text(text)
    with pytest.raises(NotARun, match=r"compare\.json is not as burnish writes it"):
        api.compare(shapes, **race)


def test_a_home_folder_is_found_wherever_a_folder_is_named(shapes, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    found = api.fit(shapes, out="~/run", **{**TINY, "cache": "~/kept"})
    assert found.folder == tmp_path / "run" and (tmp_path / "kept").is_dir() and not (tmp_path / "~").exists()
    assert api.open_run("~/run").facts == found.facts
    assert api.evaluate("~/run", shapes).scores.accuracy.n == 60
    assert api.report("~/run", out="~/page.html") == tmp_path / "page.html"
    with RunFolder.of("~/other", "data") as folder:
        assert folder.path == tmp_path / "other"
