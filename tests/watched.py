"""A process of its own that reads files of models, and is watched while it does.

It notes whatever code could do (sys.addaudithook), how long it took and how much memory. A file that hangs or crashes it costs
that process only.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import resource
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile.kinds import preprocess_of
from hostile.valid import VALID

_RUNS = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty",
         "os.startfile", "pty.spawn", "socket.connect", "socket.getaddrinfo", "pickle.find_class", "ctypes.dlopen",
         "os.remove", "os.rename", "os.mkdir", "os.symlink", "os.link", "shutil.rmtree")  # fmt: skip


def serve() -> None:
    """Read the files whose paths come in, one JSON a line; answer each with what happened."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import h5py  # noqa: F401

    from burnish.backbones import zoo
    from burnish.errors import BurnishError

    torch.set_num_threads(1)
    seen: list[str] = []
    watching = False
    own_reader = str(Path(zoo.__file__).with_name("keras") / "hdf5.py")  # HDF5 is read in a process of burnish's own

    def watch(event: str, args: tuple[Any, ...]) -> None:
        if not watching:
            return
        if event in _RUNS and not (
            event == "subprocess.Popen" and list(args[1])[:-1] == [sys.executable, "-I", own_reader]
        ):
            seen.append(f"{event} {args!r}"[:200])
        elif event == "import" and str(args[0]).startswith("payload"):
            seen.append(f"import {args[0]}")
        elif event in ("compile", "exec", "marshal.loads"):
            what = args[0].co_consts if event == "exec" and hasattr(args[0], "co_consts") else args[0]
            if "canary" in repr(what):
                seen.append(event)
        elif event == "open":
            path, mode, flags = args
            if isinstance(path, int):  # a pipe
                return
            writes = any(char in (mode or "") for char in "wax+") or (flags or 0) & (
                os.O_WRONLY | os.O_RDWR | os.O_CREAT
            )
            if writes or "secret" in str(path) or str(path).startswith("/etc/"):
                seen.append(f"open {path} {mode or flags}")

    sys.addaudithook(watch)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(
        resource.RLIMIT_AS, (used + 8 * 2**30, used + 8 * 2**30)
    )  # a bomb shall not take the machine down
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        sys.path.insert(0, asked["folder"])
        before, begin = _memory(reset=True), _seconds()
        seen, watching = [], True
        answer: dict[str, Any] = {"outcome": "loaded", "message": ""}
        try:
            if asked["trusting"]:
                pickle.loads(Path(asked["path"]).read_bytes())
            else:
                backbone = zoo.load_backbone(asked["path"], preprocess=asked["preprocess"])
                answer["message"] = backbone.name
        except BurnishError as error:
            answer = {"outcome": "refused", "message": str(error)}
        except BaseException as error:
            place = error.__traceback__
            while (
                place is not None
                and place.tb_next is not None
                and "burnish" in place.tb_next.tb_frame.f_code.co_filename
            ):
                place = place.tb_next
            where = f"{Path(place.tb_frame.f_code.co_filename).name}:{place.tb_lineno}" if place else ""
            answer = {"outcome": "fell", "message": f"{type(error).__name__}: {str(error)[:300]} ({where})"}
        watching = False
        answer |= {"seconds": _seconds() - begin, "megabytes": _memory() - before, "seen": seen}
        del sys.path[0]
        print(json.dumps(answer), file=answers, flush=True)


def _seconds() -> float:
    """Of processor time, of this process and of those it waited for."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def _memory(*, reset: bool = False) -> float:
    """The most that this process had in memory since the last reset, in MB."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


class Reader:
    """The process that reads; it is started anew when a file was its end."""

    process: subprocess.Popen[str] | None = None

    def ask(
        self, path: Path, *, preprocess: str | None = None, trusting: bool = False, limit: float = 20.0
    ) -> dict[str, Any]:
        if self.process is None:
            env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
            self.process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                            stderr=subprocess.DEVNULL, text=True, env=env)  # fmt: skip
            assert self._answer(120) == "ready\n"
        asked = {"path": str(path), "folder": str(path.parent), "preprocess": preprocess, "trusting": trusting}
        assert self.process.stdin is not None
        print(json.dumps(asked), file=self.process.stdin, flush=True)
        line = self._answer(limit)
        if line:
            return json.loads(line)
        self.process.kill()
        code = self.process.wait()
        self.process = None
        what = "hung" if line is None else f"crashed (exit status {code})"
        return {"outcome": what, "message": "", "seconds": limit, "megabytes": 0, "seen": []}

    def _answer(self, limit: float) -> str | None:
        assert self.process is not None and self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], limit)
        return self.process.stdout.readline() if ready else None

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    pytest.importorskip("h5py", reason="h5py is not installed: pip install 'burnish[keras]'")
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("memory is measured as Linux tells it")
    one = Reader()
    folder = tmp_path_factory.mktemp("valid")
    for make in VALID.values():  # what is imported on first use is not the hostile files' doing
        path = make(folder)
        one.ask(path, preprocess=preprocess_of(path))
    yield one
    one.close()


if __name__ == "__main__":
    serve()
