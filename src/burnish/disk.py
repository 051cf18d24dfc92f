"""Writing files so that the old content or the new one is there, and saying in a sentence what the system refused (P9)."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from burnish.errors import RunError, shown


def write_whole(path: Path, text: str) -> None:
    """Replace a file by a new one with this content, in one step."""
    with plain_disk_errors(path.parent):
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


@contextmanager
def plain_disk_errors(path: Path) -> Iterator[None]:
    """Say in a sentence what the operating system refused."""
    try:
        yield
    except OSError as error:
        reasons = {
            errno.ENOSPC: "the disk is full",
            errno.EDQUOT: "the disk quota is used up",
            errno.EROFS: "it is read-only",
        }
        reason = reasons.get(error.errno or 0, error.strerror or str(error))
        raise RunError(
            f"cannot write to {shown(str(path))}: {reason}; make room or name another folder with --out (what was saved is kept)"
        ) from None
