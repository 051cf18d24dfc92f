"""Where a program's words go: terminals that go away, pipes that are closed, Ctrl-C, and what a terminal would act on."""

from __future__ import annotations

import errno
import io
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from test_around_a_run import WORDS

import burnish
from burnish import api, bars, cli, watching
from burnish.choose.decide import ASKED_FOR
from burnish.doctor import Check
from burnish.errors import Interrupted, brief
from burnish.methods.table import METHODS
from burnish.run import job
from burnish.runtime import Clock
from burnish.screen import print_doctor, print_evaluation, print_methods, print_verdict
from burnish.verbs import stopping
from burnish.verbs.options import print_json

TINY = {"model": "random:test_resnet", "image_size": 32, "budget": None, "method": "probe", "cache": "off"}
PROGRAM = [sys.executable, "-m", "burnish"]


# ---- lines and bars --------------------------------------------------------------------------------------------------


class Gone(io.StringIO):
    def __init__(self, number):
        super().__init__()
        self.number = number

    def write(self, text):
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize(("lasts", "said"), [(0.0, ""), (1.0, "reading photos")])
def test_what_lasts_before_torch_is_loaded_is_said_and_its_thread_has_ended(lasts, said, monkeypatch, capsys):
    """A table of 150,000 lines was read for 33 s beside other programs, and nothing was said."""
    monkeypatch.setattr(watching, "_SLOW_SECONDS", 0.2)
    threads, clock = threading.active_count(), Clock.start(None, from_process_start=False)
    with watching.told_if_slow("reading photos", watching.early_watcher(clock, quiet=False, to_stderr=False)):
        time.sleep(lasts)
    assert threading.active_count() == threads
    with watching.told_if_slow("never", watching.early_watcher(clock, quiet=True, to_stderr=False)):
        time.sleep(0.3)
    told = capsys.readouterr().out
    assert (said in told if said else not told) and "never" not in told


def test_a_terminal_that_goes_away_ends_no_run(shapes, tmp_path):
    found = api.fit(shapes, out=tmp_path / "run", watcher=watching.Lines(Gone(errno.EIO)), **TINY)
    assert found.report.is_file()
    with pytest.raises(OSError, match="No space"):
        watching.Lines(Gone(errno.ENOSPC)).say("a fact")


def test_a_command_to_be_pasted_is_quoted(shapes, tmp_path, capsys):
    folder = tmp_path / "my run"
    print_verdict(api.fit(shapes, out=folder, **TINY))
    assert capsys.readouterr().out.endswith(f"  next    burnish predict '{folder}' IMAGES...\n")
    with pytest.raises(Interrupted, match=f"say the same again with --out '{folder}'$"), stopping.going_on(folder):
        raise KeyboardInterrupt


def test_lines_tell_each_stage_once_and_each_fact(capsys):
    lines = burnish.Lines()
    lines.stage("decode", total=3)
    lines.stage("decode", total=3, detail="the rest")
    lines.advance(3)
    lines.say("done")
    told = [line.split(" s  ")[1] for line in capsys.readouterr().out.splitlines()]
    assert told == ["decode: 3 images", "done"]


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
    yield stream, bars._Bar(progress, None)
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


# ---- a whole program -------------------------------------------------------------------------------------------------


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


def test_a_folder_that_is_gone_is_a_sentence(tmp_path):
    (tmp_path / "here").mkdir()
    command = f'cd "{tmp_path}/here" && rmdir "{tmp_path}/here" && exec "{sys.executable}" -m burnish methods'
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert done.returncode == 2 and "is gone" in done.stderr and "Traceback" not in done.stderr


# ---- Ctrl-C ----------------------------------------------------------------------------------------------------------


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


def test_whoever_presses_ctrl_c_again_has_left_already(monkeypatch, capsys):
    before = {number: signal.getsignal(number) for number in stopping.STOPS}
    try:
        with pytest.raises(SystemExit):
            cli._leave("a sentence", 130)
        assert all(signal.getsignal(number) is one for number, one in before.items()), "other programs have their own"
        monkeypatch.setattr(burnish, "own_process", True)
        with pytest.raises(SystemExit):
            cli._leave("a sentence", 130)
        assert {signal.getsignal(number) for number in before} == {signal.SIG_IGN}
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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


@pytest.mark.parametrize(
    ("module", "words"), [("typer", ["--version"]), ("torch", ["fit", "demo", "--budget", "none"])]
)
def test_ctrl_c_that_python_swallows_while_it_loads_modules_is_heard_all_the_same(module, words, tmp_path):
    code = (
        "import os, signal, sys\n"
        "class Pressed:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == {module!r}:\n"
        "            try: os.kill(os.getpid(), signal.SIGINT)\n"
        "            except KeyboardInterrupt: pass\n"
        "sys.meta_path.insert(0, Pressed())\n"
        "from burnish import __main__ as program\n"
        f"sys.argv = ['burnish', *{words!r}]\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "program.run()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 130 and "interrupted" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("after", [0.1, 0.3, 0.4, 1.2])
def test_ctrl_c_twice_at_any_moment_of_the_start_leaves_no_traceback(after, tmp_path):
    words = [*PROGRAM, "fit", "demo", "--out", str(tmp_path / "run"), "--budget", "none"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    if after > 1.0:
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
    try:
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    began = after < 0.4 and process.returncode in (-signal.SIGINT, 1)  # Python itself was not up on a busy machine
    assert process.returncode == 130 or began
    assert began or "Traceback" not in error


# A step without an instruction of Python's, as a backward pass: the signal's handler is not called in it.
LONG_STEP = """
import hashlib, os, signal, sys, threading
from pathlib import Path
import burnish
from burnish import cli
from burnish.verbs import stopping
burnish.own_process, stopping._PATIENCE_SECONDS = True, 0.5
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.default_int_handler)
threading.Timer(0.2, os.kill, (os.getpid(), getattr(signal, sys.argv[1]))).start()
with stopping.going_on(Path("runs/a")), stopping.leaving_in_time(stopping.how_to_go_on(Path("runs/a"))):
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_who_stops_a_run_in_the_midst_of_a_long_step_need_not_wait_for_its_end(name):
    done = subprocess.run([sys.executable, "-c", LONG_STEP, name], capture_output=True, text=True, timeout=60)
    assert done.returncode == 130
    assert f"say the same again with --out {os.path.join('runs', 'a')}" in done.stderr


# A second signal while what torch and others have registered to be done at the exit is done.
TWICE = """
import atexit, os, signal, sys, time
import burnish.__main__ as program
from burnish import cli
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # both may be ignored where the tests run
signal.signal(signal.SIGINT, signal.default_int_handler)
def runs(words):
    os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    while True:
        time.sleep(0.05)  # another thread may have got it
atexit.register(lambda: os.kill(os.getpid(), getattr(signal, sys.argv[1])))
cli._run = runs
program.run()
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_whoever_stops_it_twice_is_told_once(name):
    done = subprocess.run([sys.executable, "-c", TWICE, name], capture_output=True, text=True, timeout=60)
    assert done.returncode == 130
    assert done.stderr.startswith("burnish: interrupted") and len(done.stderr.splitlines()) == 1


def test_a_program_that_nohup_began_does_not_hear_that_the_terminal_is_gone():
    code = "import os, signal, burnish.cli as cli, burnish.__main__ as program; signal.signal(signal.SIGHUP, signal.SIG_IGN); "
    code += "cli._run = lambda words: os.kill(os.getpid(), signal.SIGHUP); program.run()"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_whoever_leaves_in_time_is_not_ended_and_nothing_is_left_of_the_watch(monkeypatch):
    ended, threads = [], threading.active_count()
    monkeypatch.setattr(burnish, "own_process", True)
    monkeypatch.setattr(stopping, "_PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(os, "_exit", ended.append)
    with pytest.raises(Interrupted), stopping.going_on(Path("a")), stopping.leaving_in_time("a"):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    waited = time.monotonic() + 5
    while threading.active_count() > threads and time.monotonic() < waited:
        time.sleep(0.01)
    assert threading.active_count() == threads and signal.set_wakeup_fd(-1) == -1
    time.sleep(0.3)
    assert not ended


# ---- JSON ------------------------------------------------------------------------------------------------------------


def test_a_method_kept_because_it_was_asked_for_is_told_in_80_columns(shapes, tmp_path, capsys, monkeypatch):
    real = job.keep_tuned

    def kept(*given, **more):
        _, decision = real(*given, **more)
        return True, replace(decision, numbers={**decision.numbers, ASKED_FOR: True})

    monkeypatch.setattr(job, "keep_tuned", kept)
    run = api.fit(
        shapes,
        model="random:test_resnet",
        method="lora:rank=4",
        budget=None,
        epochs=1,
        image_size=64,
        out=tmp_path / "run",
    )
    print_verdict(run)
    out = capsys.readouterr().out
    assert "because --method asked for it: on the validation images it was not better" in " ".join(out.split())
    assert all(len(line) <= 80 for line in out.splitlines() if str(tmp_path) not in line)


def test_what_other_seeds_came_to_is_told_where_they_took_their_time(shapes, tmp_path, capsys):
    found = api.fit(shapes, out=tmp_path / "run", **TINY)
    seeds = {"runs": [], "model": "tuned", "n": 3, "mean": 0.951, "sd": 0.0123}
    for told, spread in ((seeds, True), ({**seeds, "model": None, "mean": None, "sd": None}, False)):
        print_verdict(replace(found, facts={**found.facts, "seeds": told}))
        out = capsys.readouterr().out
        assert ("seeds   3 trainings: 95.1 % on average, standard deviation 1.2 points" in out) == spread


def test_an_evaluation_by_groups_fits_80_columns(shapes, tmp_path, capsys):
    run = api.fit(shapes, out=tmp_path / "run", **TINY)
    print_evaluation(replace(api.evaluate(run.folder, shapes), groups=1234))
    out = capsys.readouterr().out
    assert "1,234" in out and max(map(len, out.splitlines())) <= 80


def defects(root, sound, spoilt):
    """Class folders of grey squares, of which some have a bright corner."""
    for at in range(sound + spoilt):
        pixels = np.random.default_rng(at).integers(90, 150, (32, 32, 3), np.uint8)
        pixels[:8, :8] += np.uint8(100 * (at >= sound))
        folder = root / ("defect" if at >= sound else "sound")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{at}.png")
    return root


def test_where_most_images_are_of_one_class_it_is_told_what_always_saying_it_comes_to(tmp_path, capsys):
    run = api.fit(defects(tmp_path / "parts", 60, 9), out=tmp_path / "run", **TINY)
    print_verdict(run)
    told = capsys.readouterr().out
    counts = {one["name"]: one["n"] for one in run.facts["scores"]["probe"]["per_class"]}
    for row in ("always sound  ", *(f"recall, {counts[name]} images of {name}  " for name in counts)):
        assert f"  {row}" in told
    assert "not proven to be better than always the commonest class" in " ".join(told.split())  # of so few images
    assert all(len(line) <= 80 for line in told.splitlines() if str(tmp_path) not in line)


def test_where_classes_are_about_even_always_saying_one_is_not_spoken_of(shapes, tmp_path, capsys):
    print_verdict(api.fit(shapes, out=tmp_path / "run", **TINY))
    assert "always" not in capsys.readouterr().out


@pytest.mark.parametrize("char", ["\x9b", "\u202e", "\u2066", "\x7f", "\u200f", "\U000e0001"])
def test_json_for_a_terminal_has_nothing_in_it_that_the_terminal_would_act_on(char, capsys):
    value = {f"Ünï{char}": [f"日本{char}31m", '"\\\n\t'], "n": 1.5}
    print_json(value)
    told = capsys.readouterr().out
    assert char not in told and "Ünï" in told and "日本" in told
    assert json.loads(told) == value


def test_json_to_an_output_that_is_closed(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    print_json({"a": 1})


# ---- 80 columns ------------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_an_error_is_broken_between_words_on_a_terminal_and_nowhere_else(stream, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(sys, "stderr", stream())
    text = "a/name/of/a/file/that/is/longer/than/a/line.jpg is no image; " + "take another one, " * 5 + "or none"
    with pytest.raises(SystemExit):
        cli._leave(f"{text}\n  a line to copy that is longer than the terminal", 2)
    told = sys.stderr.getvalue().splitlines()
    assert told[-1] == "  a line to copy that is longer than the terminal"
    assert " ".join(told[:-1]) == f"burnish: {text}" and (len(told) > 2) == (stream is Terminal)
    assert all(len(line) <= 40 or "/" in line for line in told[:-1]) or stream is io.StringIO


def test_methods_and_checks_fit_80_columns(capsys):
    print_methods(list(METHODS.values()), full=False)
    print_doctor([Check("versions", ", ".join(f"package{number} 1.2.3" for number in range(12)))])
    told = capsys.readouterr().out.splitlines()
    assert max(map(len, told)) <= 80 and sum("package" in line for line in told) > 1


@pytest.mark.parametrize(
    ("text", "said"),
    [("\n\nno kernel\nTraceback", "no kernel"), ("bad\x1b[2J device", "bad\\x1b[2J device"), (" \n", "RuntimeError")],
)
def test_of_an_error_of_another_library_the_first_line_stands_in_a_sentence(text, said):
    assert brief(RuntimeError(text)) == said
    assert len(brief(RuntimeError("long " * 100))) <= 160
