"""argv to verb, errors to exit codes; torch is imported only when a verb runs."""

from __future__ import annotations

import errno
import io
import itertools
import os
import shutil
import signal
import sys
import textwrap
import threading
from contextlib import suppress
from typing import Annotated, Any, NoReturn

import typer

import burnish
from burnish.elsewhere import known_elsewhere, option_elsewhere, pair_elsewhere, verb_elsewhere
from burnish.errors import BurnishError, Interrupted, is_short_of_memory, shown
from burnish.runtime import keep_freed_memory, require_alone
from burnish.verbs.hardening import harden
from burnish.verbs.looking import audit, doctor, methods, models
from burnish.verbs.serving import serve
from burnish.verbs.slimming import slim
from burnish.verbs.stopping import STOPS
from burnish.verbs.training import compare, fit
from burnish.verbs.using import board, evaluate, explain, export, predict, report

app = typer.Typer(
    name="burnish",
    help="From a folder of labelled images and a pretrained network to the best classifier a time budget allows, with proof.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_VERBS = (
    fit, compare, audit, evaluate, predict, report, explain, board, export, harden, slim, serve, models, methods, doctor,
)  # fmt: skip
for _verb in _VERBS:
    app.command()(_verb)


@app.callback(invoke_without_command=True)
def top(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback with an error.")] = False,  # read by `main`
) -> None:
    if version:
        from burnish import __version__

        typer.echo(f"burnish {__version__}")
        raise typer.Exit


def main(argv: list[str] | None = None) -> None:
    """Run the command line and leave: 0, 1 images unreadable, 2 a mistake, 70 unforeseen, 130 interrupted, 141 unread."""
    for stream in (sys.stdout, sys.stderr):  # a pipe on Windows knows few letters; a run must not die of one
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        os.getcwd()
    except OSError:
        _leave("the folder that this was started in is gone; change to another one and say the same again", 2)
    keep_freed_memory()
    words = list(sys.argv[1:] if argv is None else argv)
    if empty := _empty(words):
        _leave(f"what is said after {empty} is empty; say something, or leave {empty} away", 2)
    if pair := pair_elsewhere(words[1:]):
        _leave(
            f"{shown(pair)} is no option here, and no file; options are written as --epochs 3, and data, runs and images "
            "stand by themselves (see: burnish --help)",
            2,
        )
    debug = "--debug" in words or bool(os.environ.get("BURNISH_DEBUG"))
    if "--debug" in words:  # accepted anywhere on the line
        words = ["--debug", *(word for word in words if word != "--debug")]
    try:
        if burnish.told_to_stop:
            raise KeyboardInterrupt
        require_alone(os.environ)
        _run(words)
    except BurnishError as error:
        _leave(str(error), error.exit_code, error if debug else None)
    except KeyboardInterrupt:
        said = "interrupted; what was saved is kept: a run folder that has a package can predict and evaluate"
        _leave(said, Interrupted.exit_code)
    except BrokenPipeError:
        _leave_unread()
    except SystemExit as leaving:
        if isinstance(leaving.__context__, BrokenPipeError):  # typer has caught it
            _leave_unread()
        raise
    except Exception as error:
        _leave_for(error, words, debug=debug)


def _run(words: list[str]) -> None:
    """The verb of these words, to the end of what it prints."""
    code = app(args=words, standalone_mode=False)
    if sys.stdout is not None:  # closed, or of a program without a console
        sys.stdout.flush()  # so that what the system refuses is told here
    if code == Interrupted.exit_code:  # typer has caught the KeyboardInterrupt
        raise KeyboardInterrupt
    if isinstance(code, int) and code:  # a verb that left with typer.Exit
        sys.exit(code)


def _leave_for(error: Exception, words: list[str], *, debug: bool) -> NoReturn:
    """Leave because of what is no error of burnish: what typer complains of, what the system refuses, what nobody foresaw."""
    traced, refused = error if debug else None, error.errno if isinstance(error, OSError) else None
    if refused in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        _no_more_output()
        full = (
            "the disk is full; make room"
            if refused != errno.EFBIG
            else "it is larger than allowed; allow more (ulimit -f)"
        )
        _leave(f"the output could not be written: {full} and say the same again", 2)
    if refused == errno.EIO and getattr(error, "filename", None) is None:  # a terminal that is gone
        _leave_unread()
    if callable(getattr(error, "format_message", None)):  # typer's own errors: a wrong option, a missing argument
        complaint = _complaint(error, words)
        if not complaint:  # the program's name alone: its help was shown
            sys.exit(2)
        _leave(complaint, 2, traced)
    came = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if is_short_of_memory(error):
        remedy = "close other programs, or allow this one more (ulimit -v tells a limit), and say the same again"
        _leave(f"the system refused this process more memory ({came}); {remedy}", 2, traced)
    if debug:
        raise error
    _leave(f"something unforeseen happened ({came}); run again with --debug and report it", 70)


def _complaint(error: Any, words: list[str]) -> str:
    """What typer complains of, with what a word of other tools is here; "" where it has nothing to say."""
    complaint, context = str(error.format_message()), getattr(error, "ctx", None)
    if not complaint:
        return ""
    verb = "burnish" if context is None else context.command_path
    option = str(getattr(error, "option_name", ""))
    trains = verb.endswith((" fit", " compare"))
    elsewhere = known_elsewhere(option, option=True) if trains else option_elsewhere(verb.split()[-1], option)
    if verb.endswith(" compare"):
        elsewhere = elsewhere.replace("--model", "--models")
    wrong = f"No such option: {option}; {elsewhere}" if elsewhere else _of_verbs(_of_values(error, complaint), words)
    return f"{wrong} (see: {verb} --help)"


def _empty(words: list[str]) -> str | None:
    """The first option whose value is empty: a variable of the shell that is not set, never what is meant.

    As a folder it would be the one that this was started in, and as an earlier run none at all, without a word.
    """
    pairs = itertools.pairwise([*words, "more"])
    said = (word[:-1] if word.endswith("=") else word if after == "" else "" for word, after in pairs)
    return next((option for option in said if option.startswith("--") and "=" not in option), None)


_NUMBERS = {"int_parsing": "a whole number", "float_parsing": "a number"}


def _of_values(error: Exception, complaint: str) -> str:
    """The complaint; of a value that is no number, or beyond its range, with what came beside what was expected."""
    told = getattr(error.__cause__, "errors", None)  # typer has its options read by pydantic
    if not callable(told):
        return complaint
    first: Any = told()
    first = first[0]
    wanted = _NUMBERS.get(first["type"]) or first["msg"].removeprefix("Input should be ")
    return f"{complaint.partition(': ')[0]}: {shown(str(first['input']))!r}, expected {wanted}"


def _of_verbs(complaint: str, words: list[str]) -> str:
    """The complaint, and for a verb of other tools what it is here."""
    if not complaint.startswith("No such command"):
        return complaint
    said, *rest = [word for word in words if not word.startswith("-")] or [""]
    if said == "help":
        known = {str(one.callback.__name__) for one in app.registered_commands if one.callback is not None}
        return f"No such command 'help'; say burnish {rest[0] if rest and rest[0] in known else 'fit'} --help"
    here = "models" if said in ("list", "zoo") else verb_elsewhere(said)
    if here == "open_run":
        return f"No such command {said!r}; the verbs take a run by its folder, as in: burnish predict RUN IMAGES"
    return f"No such command {said!r}; here it is: burnish {here}" if here else complaint


def _leave_unread() -> NoReturn:
    """Nobody reads the output any more."""
    _no_more_output()
    sys.exit(141)


def _no_more_output() -> None:
    """What is still to be written to stdout goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno() if sys.__stdout__ is not None else 1)


def no_longer_stopped() -> None:
    """Signals to stop are not heard from here on: the program leaves, and one that came then would be a traceback."""
    for number in STOPS if burnish.own_process else ():
        signal.signal(number, signal.SIG_IGN)


def _filled(text: str) -> str:
    """One line as the lines of a terminal, broken between words; elsewhere, as in logs, as it is."""
    if sys.stderr is None or not sys.stderr.isatty():
        return text
    width = max(20, shutil.get_terminal_size().columns)
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


def _leave(text: str, code: int, error: BaseException | None = None) -> NoReturn:
    """Print one sentence to stderr and leave; where an error is given, its traceback before it."""
    no_longer_stopped()  # whoever presses Ctrl-C twice has left already
    if error is not None:
        import traceback

        traceback.print_exception(error)
    first, *rest = [shown(line) for line in text.splitlines()] or [""]  # an error may hold a few lines to copy
    with suppress(OSError):  # nobody is there to read it
        print("\n".join([_filled(f"burnish: {first}"), *rest]), file=sys.stderr)
    if burnish.own_process and any(
        not one.daemon and one is not threading.main_thread() for one in threading.enumerate()
    ):
        with suppress(OSError, AttributeError):  # a fetch that was given up, whose threads nobody waits for
            sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
