"""A folder that is made of a run: where it goes, and that it is there whole or not at all."""

import os
from pathlib import Path

import pytest

from burnish.errors import NotARun, RunError
from burnish.record.made import made_whole, place_beside


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/one").mkdir(parents=True)
    return tmp_path / "runs/one"


def test_it_goes_beside_the_run_under_the_name_that_was_given(run):
    assert place_beside(Path("runs/one"), None, "slim") == Path("runs/one-slim")
    os.chdir(run)
    assert place_beside(Path("."), None, "slim") == run.resolve().with_name("one-slim")
    assert place_beside(run, "elsewhere", "slim") == Path("elsewhere")
    with pytest.raises(NotARun, match="no such folder"):
        place_beside(run / "nothing", None, "slim")
    with pytest.raises(RunError, match="the name of the folder is empty"):
        place_beside(run, "", "slim")


@pytest.mark.parametrize(
    ("file", "told"),
    [("slim.json", "an earlier slim"), ("hardened.json", "an earlier hardened"), ("mine.txt", "is there already")],
)
def test_nothing_is_written_over(file, told, run):
    place = run.with_name("one-slim")
    place.mkdir()
    assert place_beside(run, None, "slim") == place  # which is empty
    (place / file).touch()
    with pytest.raises(RunError, match=told):
        place_beside(run, None, "slim")


def test_it_is_there_whole_at_the_end(run):
    place = run.with_name("made")
    with made_whole(place) as draft:
        (draft / "file").touch()
        assert not place.exists()
    assert [one.name for one in place.iterdir()] == ["file"]
    assert sorted(one.name for one in run.parent.iterdir()) == ["made", "one"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_after_an_error(error, run):
    with pytest.raises(error), made_whole(run.with_name("made")) as draft:
        (draft / "file").touch()
        raise error
    assert [one.name for one in run.parent.iterdir()] == ["one"]


def test_what_appeared_there_meanwhile_stays(run):
    place = run.with_name("made")
    with pytest.raises(RunError, match="is there already"), made_whole(place):
        place.mkdir()
        (place / "mine").touch()
    assert [one.name for one in place.iterdir()] == ["mine"] and len(list(run.parent.iterdir())) == 2


def test_a_place_that_cannot_be_is_told_before_the_work(run):
    (run / "file").touch()
    with pytest.raises(RunError, match="file"), made_whole(run / "file/made"):
        pytest.fail("the work began")
