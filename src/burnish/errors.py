"""Every error a user can meet.

BurnishError                      one sentence: what came, what was expected, what to do
├── DataError                     the images or their labels
│   ├── UnreadableImage           one file; carries `path` and `reason`
│   └── NotEnoughData             too few classes or images for what was asked
├── ModelError                    the pretrained network
│   ├── UnknownModel              no such name; lists the nearest
│   ├── WeightsUnreachable        a known name whose weights are not here
│   └── BadWeights                a file that is not what it should be, or is not safe to read
├── NoSuchName                    no layer, stage, class or option of that name; lists the nearest
├── RecipeError                   one or more bad settings, all in one message
│   └── NoKerasModel              a Keras setting for a model that needs none
├── Diverged                      the loss stopped being a number (of `train.loop`)
├── RunError                      the run folder
│   ├── RunBusy                   another run holds it
│   └── NotARun                   it is not a run, or it is damaged
└── Interrupted                   Ctrl-C or SIGTERM; the partial run stays usable
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import itertools
import json
import os
import re
import shlex
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path


class BurnishError(Exception):
    """Something the user can mend; `exit_code` is the status the command line leaves with."""

    exit_code = 2

    def _render_traceback_(self) -> list[str]:
        """What IPython and notebooks print: the sentence, after the lines of the user's own code that led to it.

        With BURNISH_DEBUG, as on the command line, the whole traceback.
        """
        if os.environ.get("BURNISH_DEBUG"):
            return "".join(traceback.format_exception(self)).splitlines()
        frames = itertools.takewhile(_is_of_others, traceback.extract_tb(self.__traceback__))
        own = [
            one for one in frames if "IPython" not in Path(one.filename).parts and one.filename != contextlib.__file__
        ]
        lines = [f"line {one.lineno}: {one.line}" for one in own]
        return [*lines, f"{type(self).__name__}: {self}"]


def _is_of_others(frame: traceback.FrameSummary) -> bool:
    """Whether a frame of a traceback is no code of this package."""
    return not Path(frame.filename).is_relative_to(Path(__file__).parent)


class DataError(BurnishError):
    """The images or their labels are not as they must be."""


class UnreadableImage(DataError):
    """One image file that cannot be used; `path` and `reason` name it."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{shown(str(path))}: {reason}")
        self.path, self.reason = str(path), reason


class NotEnoughData(DataError):
    """Too few classes, or too few images of one, for what was asked."""


class ModelError(BurnishError):
    """The pretrained network cannot be had or used."""


class UnknownModel(ModelError):
    """No model of that name."""


class WeightsUnreachable(ModelError):
    """The architecture is known; its pretrained weights are neither here nor reachable."""


class BadWeights(ModelError):
    """A weights file that is damaged, foreign, or unsafe to read."""


class NoSuchName(BurnishError):
    """No layer, stage, class or option of that name."""


class RecipeError(BurnishError):
    """One or more settings are wrong; the message lists them all."""


class NoKerasModel(RecipeError):
    """`preprocess` was said of a model that says itself how its images are prepared."""


class RunError(BurnishError):
    """The run folder cannot be used as asked."""


class RunBusy(RunError):
    """Another process is writing to the run folder."""


class NotARun(RunError):
    """The folder is not a burnish run, or parts of it are missing or changed."""


class Interrupted(BurnishError):
    """The user or the system asked to stop; what was finished is kept."""

    exit_code = 130


_REFUSED = re.compile(
    r"DefaultCPUAllocator: (can't allocate|not enough) memory|std::bad_alloc|could not (create|execute) a primitive$|"
    "failed to map segment from shared object|can't start new thread"
)  # torch on Linux and on Windows, C++, oneDNN, the loader of libraries, and threads, whose stacks are memory


def is_short_of_memory(error: BaseException) -> bool:
    """Whether the system refused this process memory, by what Python and the libraries below it say of that."""
    numbered = isinstance(error, OSError) and error.errno == errno.ENOMEM
    return numbered or isinstance(error, MemoryError) or _REFUSED.search(str(error)) is not None


def nearest(name: str, choices: Iterable[str], *, limit: int = 5, alike: bool = False) -> str:
    """The choices most like `name`, nearest first, as 'a, b, c'; all of them when there are few.

    alike: none where nothing resembles it, as among so many that the first ones tell nothing.
    """
    names = sorted(set(choices))
    close = difflib.get_close_matches(name, names, n=limit, cutoff=0.4)
    if not close and not alike:
        close = names[:limit]
    return ", ".join(shown(choice) for choice in close)


def shown(text: str) -> str:
    """`text` made safe for a terminal line: control and invisible characters escaped, nothing else changed (P10)."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "backslashreplace").decode() for char in text
    )


def some(names: Sequence[object], *, quote: str = "'", most: int = 20) -> str:
    """Names in a sentence, safe in it: 'a', 'b' and 998 more, long ones cut; "none" where there are none."""
    told = [f"{quote}{shown(text if len(text) <= 60 else text[:60] + '…')}{quote}" for text in map(str, names[:most])]
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return f"{', '.join(told)}{more}" if told else "none"


def brief(error: BaseException) -> str:
    """The first line of an error of another library, short enough for a sentence, and safe in it."""
    lines = str(error).strip().splitlines()
    # Cut again: escaped, a byte is four characters.
    return shown(lines[0][:160])[:160] if lines else type(error).__name__


def spoilt(error: Exception, *, ours: bool = True) -> str:
    """What is wrong with a file that burnish wrote, by the error that reading it raised: a clause, safe in a sentence.

    ours: whether the words of a ValueError are. Those of Python's other errors tell programmers something, and users nothing.
    """
    if isinstance(error, OSError):
        return error.strerror or "it cannot be read"
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8 text"
    if isinstance(error, json.JSONDecodeError):
        return f"it is not JSON from line {error.lineno}, column {error.colno}"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, KeyError) and error.args:
        return f"{shown(str(error.args[0])[:80])!r} is missing or unknown"
    if isinstance(error, (TypeError, AttributeError, LookupError, ArithmeticError)) or not (ours and str(error)):
        return "an entry is of another kind than expected"
    return shown(" ".join(str(error).split())[:300])


def pasted(path: str | Path) -> str:
    """A path as it stands in a command that is printed to be copied: quoted where a shell would take it apart."""
    return shlex.quote(shown(str(path)))


FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet takes for the beginning of one

_RETURN, _LITERALLY = "\N{SYMBOL FOR CARRIAGE RETURN}", "\N{SYMBOL FOR ESCAPE}"
_NUMBER = re.compile(r"[+-]?[0-9]+([.,][0-9]+)?")  # which is no formula: classes are called -1 and +1


def cell(text: str) -> str:
    """`text` made safe for a spreadsheet: an apostrophe before what it would take for a formula (P10)."""
    text = text.encode("utf-8", "backslashreplace").decode()
    # csv leaves a bare carriage return unquoted. Not as a backslash and an r, which paths of Windows hold.
    text = re.sub(f"[{_RETURN}{_LITERALLY}]", lambda found: _LITERALLY + found[0], text).replace("\r", _RETURN)
    return "'" + text if _is_formula(text.lstrip("'")) else text


def uncelled(text: str) -> str:
    """The inverse of `cell`, for names without bytes that are no characters."""
    text = text[1:] if text.startswith("'") and _is_formula(text.lstrip("'")) else text
    return re.sub(f"{_LITERALLY}(.)|{_RETURN}", lambda found: found[1] or "\r", text)


def _is_formula(text: str) -> bool:
    return text.startswith(FORMULA) and not _NUMBER.fullmatch(text)
