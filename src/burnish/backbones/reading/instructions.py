"""The instructions of a pickle, looked through without being followed: what they ask for, and what would take without end."""

from __future__ import annotations

import io
import pickletools
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

LONG_TEXT = 4096
_MOST_FETCHED = 16 * 2**20  # characters of texts that are used again, together
_BYTES_AS = "latin1"  # the codec by which protocol 2 writes bytes; others make much of little, or take hours
_MOST_COPIES = 16
_DEEPEST_TUPLE, _LONG_TUPLE = 200, 32  # what rebuilds a tensor takes seven
_MOST_LARGE, _MOST_ODD = 1000, 10_000
_MOST_AGAIN = 10**7  # values within tuples that are used again, counted each time, as their hash does
_MODULUS = 2**61 - 1  # of the hashes of whole numbers: below it no two are the same
_NUMBERS = ("NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4")
_HASHED_WELL = ("text", "latin1", "number", "harmless")
_HARMLESS = ("FLOAT", "BINFLOAT", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET")
_CALLED = ("function", "encode", "kind", "kinds", "hashing")
_REFUSED_OPCODES = {"EXT1", "EXT2", "EXT4", "INST", "OBJ", "PERSID"}


class Unusual(Exception):
    """Instructions that no writer of weights uses."""


class Uncallable(Unusual):
    """A call of what is no class and no function; known once all names are, which say more."""


def globals_in(stream: io.BytesIO) -> Iterator[str]:
    """ "module attribute" of each global the next pickle of the stream asks for. Unusual, and whatever pickletools raises."""
    stack = _Stack()
    try:
        yield from _asked(stream, stack)
    finally:  # torch would write out whatever is called, lists in lists without end; damaged or not
        if stack.uncallable:
            raise Uncallable("a call of what is no function")


def _asked(stream: io.BytesIO, stack: _Stack) -> Iterator[str]:
    strings: list[str] = []  # the latest texts, as STACK_GLOBAL takes two of them
    memo: dict[int, str] = {}
    fetched: Counter[int] = Counter()
    fetched_length = 0
    copied = 0  # calls on a single value that was there before
    place = 0
    latest: str | None = None
    taken = False
    for opcode, argument, _ in pickletools.genops(stream):
        name = opcode.name
        if name in _REFUSED_OPCODES:
            raise Unusual(f"the instruction {name}")
        taken = taken or name in ("POP", "POP_MARK")
        if stack.copies(opcode, argument):
            copied += 1
            if copied > _MOST_COPIES:
                raise Unusual("a value made into another again and again")
        if name == "GLOBAL":
            yield str(argument)
            stack.name(str(argument))
            latest = None
        elif name == "STACK_GLOBAL":
            if len(strings) < 2 or taken:  # what was put aside need not be the name
                guess = " ".join(strings[-2:])[:80]
                raise Unusual(f"a class whose name is put together while it is read (STACK_GLOBAL, such as {guess!r})")
            yield f"{strings[-2]} {strings[-1]}"
            stack.name(f"{strings[-2]} {strings[-1]}")
            latest = None
        elif _is_text(name):
            latest = str(argument)
            strings.append(latest)
        elif name == "MEMOIZE":
            if latest is not None:
                memo[place] = latest
            place += 1
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            if latest is not None:
                memo[_whole(argument)] = latest
            place = max(place, _whole(argument) + 1)
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            latest = memo.get(_whole(argument))
            if latest is not None:
                strings.append(latest)
                fetched[_whole(argument)] += len(latest) > LONG_TEXT
                fetched_length += len(latest)
                if fetched[_whole(argument)] > 1 or fetched_length > _MOST_FETCHED:
                    raise Unusual("a long text that is used again and again")
        elif name not in ("FRAME", "PROTO"):
            latest = None
        if len(strings) > 64:
            del strings[:-8]


def _whole(argument: Any) -> int:
    return int(argument)


def _is_text(name: str) -> bool:
    return "UNICODE" in name or name in ("STRING", "BINSTRING", "SHORT_BINSTRING")


class _Measure(NamedTuple):
    """How deep tuples lie in a value, and how many values it holds with itself, each as often as it is there."""

    depth: int
    size: int


_SINGLE = _Measure(0, 1)


def _together(members: list[_Measure]) -> int:
    """The size of a value with these members."""
    return 1 + sum(one.size for one in members)


class _Stack:
    """What lies on the stack while a pickle is read, a word for each value.

    "new", "before" (it was fetched again), "one before" (a tuple of one such), "mark"; "text", the text "latin1" as such, and
    "bytes" for a tuple of the two; "encode" for the function that makes bytes of them, "kind" for a kind of storage; "number"
    for whole numbers, truth values and None, "plain" for a tuple of such and texts; "kinds" for numpy's kinds of numbers, and
    "numpy" for one of them; "hashing" for set, OrderedDict and Counter; "harmless" for what has no hash, or one that cannot be
    chosen; "function" for any other class or function. Beside it, how deep tuples lie in a tuple, and how many values lie in it
    when each is counted as often as it is there: a hash follows them down without a limit.
    """

    # The lowest value they take stays there.
    _KEEPING = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")
    # What stays known of a value that is fetched again
    _LASTING = (
        "text",
        _BYTES_AS,
        "numpy",
        *_CALLED,
    )

    def __init__(self) -> None:
        self.tags: list[str] = []
        self.measures: list[_Measure] = []
        self.memo: dict[int, tuple[str, _Measure]] = {}
        # Whole numbers of many bits; keys and members of sets, and members of lists, that are not plain.
        self.large = self.odd = self.listed = 0
        self.again = 0  # values within what is used again
        self.uncallable = False  # whether something is called that is no class and no function

    def name(self, wanted: str) -> None:
        """The value on top is this class or function."""
        module, _, attribute = wanted.rpartition(" ")
        if self.tags and module == "_codecs":
            self.tags[-1] = "encode"
        elif self.tags and attribute.endswith("Storage"):
            self.tags[-1] = "kind"
        elif self.tags and (module in ("builtins", "__builtin__", "collections")) and attribute != "complex":
            self.tags[-1] = "hashing"
        elif self.tags and (module == "numpy.dtypes" or wanted == "numpy dtype"):
            self.tags[-1] = "kinds"
        elif self.tags:
            self.tags[-1] = "function"

    def copies(self, opcode: Any, argument: Any) -> bool:
        """Follow one instruction; whether it makes something of a value that was there before. Raises Unusual."""
        name, wanted = opcode.name, opcode.stack_before
        if name in _NUMBERS and isinstance(argument, int) and abs(argument) >= _MODULUS:
            self.large += 1
            if self.large > _MOST_LARGE:
                raise Unusual("many numbers of 61 bits and more")
        if name == "MEMOIZE" or name.endswith("PUT"):
            known = (self.tags[-1], self.measures[-1]) if self.tags else ("new", _SINGLE)
            self.memo[len(self.memo) if name == "MEMOIZE" else _whole(argument)] = known
            return False
        if name in ("PROTO", "FRAME", "STOP"):
            return False
        inside: list[str] = []
        measures: list[_Measure] = []  # of all that is taken
        if pickletools.markobject in wanted:
            while self.tags and (tag := self.tags.pop()) != "mark":
                inside.append(tag)
                measures.append(self.measures.pop())
            del self.measures[len(self.tags) :]
            inside.reverse()
            wanted = wanted[: wanted.index(pickletools.markobject)]
        count = min(len(wanted), len(self.tags))
        taken = self.tags[len(self.tags) - count :]
        measures += self.measures[len(self.tags) - count :]
        del self.tags[len(self.tags) - count :], self.measures[len(self.measures) - count :]
        self._refuse_calls(name, taken, inside)
        self._count_odd(name, taken, inside)
        if name == "MARK":
            self._push("mark")
        elif name == "DUP":
            self._push_again("before", *measures)
            self._push_again("before", *measures)
        elif name.endswith("GET"):
            self._push_again(*self.memo.get(_whole(argument), ("before", _SINGLE)))
        elif name in self._KEEPING:
            for tag in taken[:1]:
                self._push(tag)
        elif name in ("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            depth = max((one.depth for one in measures), default=0)
            if depth >= _DEEPEST_TUPLE:
                raise Unusual(f"tuples in tuples, over {_DEEPEST_TUPLE} deep")
            self._push(_tuple_of(inside if name == "TUPLE" else taken), _Measure(depth + 1, _together(measures)))
        elif _is_text(name):
            self._push(_BYTES_AS if argument == _BYTES_AS else "text")
        elif name in ("REDUCE", "NEWOBJ"):  # what is made of a tuple may hold all of it
            self._push("numpy" if taken[:1] == ["kinds"] else "new", _Measure(0, _together(measures)))
        else:
            for _ in opcode.stack_after:
                self._push("number" if name in _NUMBERS else "harmless" if name in _HARMLESS else "new")
        return name in ("REDUCE", "NEWOBJ", "BUILD") and taken[1:] in (["one before"], ["before"])

    def _count_odd(self, name: str, taken: list[str], inside: list[str]) -> None:
        """Unusual where a dictionary, a set or a list is given many members whose hashes can be made to be one."""
        made = name in ("REDUCE", "NEWOBJ") and taken[:1] == ["hashing"]
        if made and taken[1:] != ["plain"] and self.listed > _MOST_ODD:  # of more than nothing
            raise Unusual("many members that are neither texts nor numbers, of which a set is made")
        if name == "SETITEM":
            members = taken[1:2]
        elif name in ("SETITEMS", "DICT"):
            members = inside[::2]
        elif name in ("ADDITEMS", "FROZENSET"):
            members = [*taken[1:], *inside]
        elif name in ("APPEND", "APPENDS", "LIST") or (name == "TUPLE" and len(inside) > _LONG_TUPLE):
            # They are hashed only where a set or a dictionary is made of them.
            self.listed += sum(tag not in _HASHED_WELL for tag in (*taken[1:], *inside))
            return
        else:
            return
        self.odd += sum(tag not in _HASHED_WELL for tag in members)
        if self.odd > _MOST_ODD:
            raise Unusual("many keys or members that are neither texts nor numbers")

    def _push(self, tag: str, measure: _Measure | None = None) -> None:
        self.tags.append(tag)
        self.measures.append(measure or _SINGLE)

    def _push_again(self, tag: str, measure: _Measure = _SINGLE) -> None:
        """A value that was there before. Unusual where those come to more than a hash gets through."""
        self.again += measure.size - 1
        if self.again > _MOST_AGAIN:
            raise Unusual("tuples that hold others again and again")
        self._push(tag if tag in self._LASTING else "before", measure)

    def _refuse_calls(self, name: str, taken: list[str], inside: list[str]) -> None:
        """Unusual where a kind of storage is called, or the function that makes bytes is used in any other way than that."""
        if name in ("REDUCE", "NEWOBJ") and (not taken or taken[0] not in _CALLED):
            self.uncallable = True
        if name in ("REDUCE", "NEWOBJ", "BUILD") and taken[:1] == ["kind"]:
            raise Unusual("a call that makes numbers out of nothing")
        if (
            name in ("REDUCE", "NEWOBJ", "BUILD")
            and taken[:1] in (["kinds"], ["numpy"])
            and taken[1:] not in (["plain"], ["bytes"])
        ):
            raise Unusual("a kind of numpy's numbers that is put together of others")
        if "encode" in inside or ("encode" in taken and (name, taken) != ("REDUCE", ["encode", "bytes"])):
            raise Unusual(f"a text in another coding than {_BYTES_AS}")


def _tuple_of(members: list[str]) -> str:
    """The word for a tuple of values that are known by theirs."""
    if members == ["before"]:
        return "one before"
    if members in (["text", _BYTES_AS], [_BYTES_AS, _BYTES_AS]):
        return "bytes"
    return "plain" if {"number", "text", _BYTES_AS}.issuperset(members) else "new"
