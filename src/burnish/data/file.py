"""The bytes of an image file: read without waiting for what is none, and the hash that they are known by."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path

from burnish.errors import UnreadableImage
from burnish.positioned import BINARY

MAX_BYTES = 100_000_000  # of a file
TOO_LARGE = f"larger than {MAX_BYTES // 1_000_000} MB, the most that is read"
UNREAD = "unread "  # how the place of a file begins that stands for its hash


class Refused(Exception):
    """Why an image is not read, in plain words."""


def digest_of(data: bytes) -> str:
    """The hash by which a file's bytes are known."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def is_hash(digest: str) -> bool:
    """Whether it is of a file's bytes, and not the place of one that could not be read."""
    return bool(digest) and not digest.startswith(UNREAD)


def content_of(path: Path) -> bytes:
    """The bytes of a regular file; UnreadableImage for a pipe or device, without waiting for it, and for what is too large."""
    try:
        return content(path)
    except Refused as reason:
        raise UnreadableImage(path, str(reason)) from None


def content(path: Path) -> bytes:
    """The same; raises Refused."""
    flags = os.O_RDONLY | BINARY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        with open(path, "rb", opener=lambda name, _: os.open(name, flags)) as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise Refused(f"{_kind(mode)}, not an image file")
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise Refused(_why_not_opened(error)) from None
    except ValueError:  # a zero byte in the name
        raise Refused("no such file") from None
    if len(data) > MAX_BYTES:
        raise Refused(TOO_LARGE)
    return data


def _kind(mode: int) -> str:
    """What a file is that is not a regular one."""
    kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))
    return next((words for test, words in kinds if test(mode)), "a device")


def _why_not_opened(error: OSError) -> str:
    """An operating system's refusal in plain words."""
    words = {
        errno.ENOENT: "no such file",
        errno.ENOTDIR: "no such file",
        errno.EISDIR: "a folder, not an image file",
        errno.ENXIO: "a socket or device, not an image file",
        errno.EACCES: "no permission to read it",
        errno.EPERM: "no permission to read it",
        errno.ELOOP: "a symbolic link that leads in a circle",
    }
    return words.get(error.errno or 0, f"cannot be read: {error.strerror or error}")
