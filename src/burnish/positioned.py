"""Reading and writing at a place of an open file, by any number of threads, also where no call of the system does (Windows)."""

from __future__ import annotations

import os
import threading

BINARY = getattr(os, "O_BINARY", 0)  # for os.open: without it Windows takes every file for text
_TURN = threading.Lock()  # where a file has one place alone, which all threads move


def read_at(number: int, length: int, place: int) -> bytes:
    """Those bytes of the file with that descriptor, fewer at its end. Raises OSError."""
    if hasattr(os, "pread"):
        return os.pread(number, length, place)
    with _TURN:
        os.lseek(number, place, os.SEEK_SET)
        return os.read(number, length)


def read_into(number: int, into: memoryview, place: int) -> int:
    """Fill `into` from there; how many bytes came. Raises OSError."""
    if hasattr(os, "preadv"):
        return os.preadv(number, [into], place)
    found = read_at(number, into.nbytes, place)
    into.cast("B")[: len(found)] = found
    return len(found)


def write_at(number: int, data: bytes | memoryview, place: int) -> int:
    """Write there; how many bytes the system took, which may be a part. Raises OSError."""
    if hasattr(os, "pwrite"):
        return os.pwrite(number, data, place)
    with _TURN:
        os.lseek(number, place, os.SEEK_SET)
        return os.write(number, data)
