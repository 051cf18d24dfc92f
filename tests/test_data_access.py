"""Places and files that cannot be looked at, have no name or no end: said in a sentence, and never waited for."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import burnish
from burnish.data.cache import typical_side
from burnish.data.file import MAX_BYTES
from burnish.data.pixels import decode
from burnish.data.sources import open_source
from burnish.errors import DataError, UnreadableImage
from burnish.ship.images import expand
from images import write_images

QUICK = {"model": "random:test_resnet", "budget": None, "image_size": 64, "seed": 0, "cache": "off"}


def forbid(monkeypatch, place: Path | str) -> None:
    """What root never sees: the system does not tell what lies below a place."""
    real = os.stat

    def stat(path, *rest, **options):
        if isinstance(path, (str, os.PathLike)) and str(path).startswith(str(place)):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *rest, **options)

    monkeypatch.setattr(os, "stat", stat)


def test_a_place_that_one_may_not_look_at_is_told_as_such(tmp_path, monkeypatch):
    write_images(tmp_path / "secret", {"a": 3, "b": 3})
    forbid(monkeypatch, tmp_path / "secret")
    with pytest.raises(DataError, match=r"cannot be looked at: Permission denied\. Check"):
        open_source(tmp_path / "secret")


def test_a_folder_that_one_may_list_but_not_enter_is_told_as_such(tmp_path, monkeypatch):
    write_images(tmp_path / "secret", {"a": 3, "b": 3})
    forbid(monkeypatch, f"{tmp_path}/secret/.")
    with pytest.raises(DataError, match=r"cannot be listed: Permission denied\. Check"):
        open_source(tmp_path / "secret")


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_a_name_that_no_file_can_have_is_not_there(tmp_path, name):
    with pytest.raises(DataError, match="There is no"):
        open_source(str(tmp_path / name))
    with pytest.raises(DataError, match="there is no"):
        expand([tmp_path / name])


def test_a_file_name_that_is_half_a_character_is_told_with_its_line(tmp_path):
    write_images(tmp_path, {"a": 3})
    lines = [json.dumps({"path": f"a/{number:03d}.png", "label": "a"}) for number in range(3)]
    (tmp_path / "list.jsonl").write_text("\n".join([*lines, json.dumps({"path": "\udce9.jpg", "label": "b"})]))
    with pytest.raises(DataError, match="line 4"):
        open_source(tmp_path / "list.jsonl")


def test_bytes_beyond_the_limit_are_refused_as_files_are():
    with pytest.raises(UnreadableImage, match="larger than 100 MB"):
        decode(bytes(MAX_BYTES + 1))


# ---- pipes -----------------------------------------------------------------------------------------------------------


def test_a_run_file_that_is_a_pipe_is_not_waited_for(tmp_path):
    if not hasattr(os, "mkfifo"):
        pytest.skip("no pipes here")
    write_images(tmp_path, {"a": 3, "b": 3})
    os.mkfifo(tmp_path / "a" / "run.json")
    assert len(open_source(tmp_path)) == 6


@contextmanager
def unstuck(pipe: Path, *, after: float) -> Iterator[list[float]]:
    """Lets go whoever waits for the pipe after so many seconds; the list is empty where nobody did."""
    over, waited = threading.Event(), []

    def let_go() -> None:
        if over.wait(after):
            return
        while not over.wait(0.05):
            with suppress(OSError):  # nobody waits
                os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
                waited.append(after)

    guard = threading.Thread(target=let_go, daemon=True)
    guard.start()
    try:
        yield waited
    finally:
        over.set()
        guard.join()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_among_the_paths_is_named_and_not_waited_for(shapes, tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    files = [*sorted(shapes.rglob("*.png")), tmp_path / "pipe.jpg"]
    labels = [*(file.parent.name for file in files[:-1]), "red"]
    with unstuck(tmp_path / "pipe.jpg", after=3) as waited:
        assert typical_side(open_source((files, labels))) == 40
        assert not waited
        run = burnish.fit((files, labels), method="full", epochs=1, out=tmp_path / "run", **QUICK)
    assert not waited
    (named,) = run.facts["named"]
    assert Path(named["path"]).name == "pipe.jpg" and named["reason"] == "a pipe, not an image file"
