"""A folder that is made of a run: where it goes, and that it is there whole or not at all."""

import os
import signal
import subprocess
import sys
import time
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


def another(place: Path) -> tuple[subprocess.Popen, Path]:
    """A process that has begun to make that folder, and its draft."""
    code = "import sys, time; from pathlib import Path; from burnish.record.made import made_whole\n"
    code += "with made_whole(Path(sys.argv[1])) as draft: (draft / 'inside').mkdir(); (draft / 'file').touch(); time.sleep(99)"
    process = subprocess.Popen([sys.executable, "-c", code, str(place)])
    draft, until = place.with_name(f".{place.name}.{process.pid}.tmp"), time.monotonic() + 60
    while not (draft / "file").exists() and time.monotonic() < until:
        time.sleep(0.02)
    return process, draft


def test_what_a_killed_process_left_is_removed_and_a_living_one_is_left_alone(run):
    dead, of_dead = another(run.with_name("made"))
    living, of_living = another(run.with_name("made"))
    try:
        dead.send_signal(signal.SIGKILL)
        dead.wait()
        assert (of_dead / "file").exists()
        with made_whole(run.with_name("made")):
            assert not of_dead.exists() and (of_living / "file").exists()
    finally:
        living.kill()
        living.wait()


def dead_number() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_draft_whose_lock_is_held_stays_though_its_number_is_dead(run):
    """As where another container makes it on the same disk, whose processes have numbers of their own."""
    fcntl = pytest.importorskip("fcntl")
    draft = run.with_name(f".made.{dead_number()}.tmp")
    draft.mkdir()
    held = os.open(draft, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with made_whole(run.with_name("made")):
        assert draft.exists()
    os.close(held)
    with made_whole(run.with_name("other")):
        assert draft.exists()  # of another place
    (run.with_name("made")).rmdir()
    with made_whole(run.with_name("made")):
        assert not draft.exists()


def test_links_and_names_like_a_draft_are_neither_followed_nor_removed(run):
    mine, number = run.with_name("mine"), dead_number()
    mine.mkdir()
    (mine / "photo").touch()
    link = run.with_name(f".made.{number}.tmp")
    link.symlink_to(mine, target_is_directory=True)
    others = [
        run.with_name(name) for name in (".made.x.tmp", f".made.{number}.tmp.tmp", f".made2.{number}.tmp", ".made..tmp")
    ]
    for one in others:
        one.mkdir()
    inside = run.with_name(f".two.{number}.tmp")
    inside.mkdir()
    (inside / "link").symlink_to(mine, target_is_directory=True)
    for name in ("made", "two"):
        with made_whole(run.with_name(name)):
            pass
    assert link.is_symlink() and all(one.is_dir() for one in others) and not inside.exists()
    assert (mine / "photo").exists()
