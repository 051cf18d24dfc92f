"""Weights from plain web addresses: cached, resumed where a connection broke, verified by their SHA-256."""

from __future__ import annotations

import errno
import http.client
import io
import os
import re
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from burnish.backbones.reading import hub
from burnish.backbones.reading.weights import MAX_WEIGHTS_BYTES, sha256_of
from burnish.disk import cache_folder, locked, plain_disk_errors
from burnish.errors import BadWeights, UnknownModel, WeightsUnreachable, brief
from burnish.positioned import BINARY

_TRIES = 5  # for a download, each going on where the last one broke off
_CHUNK = 1 << 20
_PROGRESS = 1 << 16  # bytes more that make a try worth another
_TIMEOUT_SECONDS = 4.0  # of silence within one try
_ELSEWHERE = "set BURNISH_CACHE to a folder with room that can be written to"
_A_DAY = 86_400.0  # seconds
_PART_OF = ".part"  # the end of the name of a file that has not come whole
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_SHA256, _BEGINNING = re.compile(r"[0-9a-fA-F]{64}"), re.compile(r"[0-9a-f]{8,64}")


def download(address: str, *, beginning: bool = False, on_bytes: hub.OnBytes | None = None) -> Path:
    """The file behind "https://HOST/FILE#sha256=HEX": from the cache, else from the network, its hash verified.

    beginning: the address has 8 or more digits of the hash, as the names of torchvision's files have. A connection that breaks
    is taken up where it broke, also by a later process. UnknownModel without a hash, WeightsUnreachable when it cannot be had,
    BadWeights when the hash is another one.
    """
    wanted = _Wanted.of(address, beginning=beginning)
    path = cache_folder() / "models" / wanted.digest / wanted.name
    if path.is_file():
        if wanted.is_in(path):
            return path
        with plain_disk_errors(path, _ELSEWHERE):
            path.unlink()  # damaged in the cache
    said = hub.shown_address(wanted.url)
    if hub.told_offline():
        raise WeightsUnreachable(f"{said}: not in the cache, and HF_HUB_OFFLINE is set")
    _make_room_for(path)
    with _part_of(path) as part:
        before = part.stat().st_size
        _fetch_into(part, wanted.url, on_bytes)
        if before and not wanted.is_in(part):  # what an earlier process left was not of this file
            with plain_disk_errors(path, _ELSEWHERE):
                os.truncate(part, 0)
            _fetch_into(part, wanted.url, on_bytes)
        if not wanted.is_in(part):
            came = sha256_of(part)
            part.unlink(missing_ok=True)
            raise BadWeights(
                f"{said}: what came has SHA-256 {came}, expected {wanted.digest}; it was thrown away: the file changed, "
                "or somebody changed it on the way"
            )
        with plain_disk_errors(path, _ELSEWHERE):
            os.replace(part, path)
    return path


@dataclass(frozen=True)
class _Wanted:
    """A file on the web, as its address tells."""

    url: str
    digest: str  # SHA-256 in hex, or how it begins
    name: str  # of the file in the cache

    @classmethod
    def of(cls, address: str, *, beginning: bool) -> _Wanted:
        """UnknownModel for what is no address, has no hash or no https; beginning: whether a part of the hash will do."""
        said, (url, _, fragment) = hub.shown_address(address), address.partition("#")
        digest = fragment.removeprefix("sha256=").lower()
        try:
            parts = urllib.parse.urlsplit(url)
            host, _ = parts.hostname, parts.port
            if not host:
                raise ValueError
        except ValueError:
            raise UnknownModel(f"{said}: is not an address") from None
        if not (_BEGINNING if beginning else _SHA256).fullmatch(digest):
            raise UnknownModel(
                f"{said}: weights from the web need their SHA-256, so that nobody can change them on the way; "
                f"say:  --model '{hub.shown_address(url)}#sha256=…'  (the page that offers the file gives it, or: sha256sum FILE)"
            )
        if parts.scheme != "https" and host not in _LOOPBACK:
            raise UnknownModel(f"{said}: expected an address that begins with https://")
        if not url.isascii() or any(char.isspace() or not char.isprintable() for char in url):
            raise UnknownModel(f"{said}: is not an address (write spaces and other characters as %20 and so on)")
        name = re.sub(r"[^\w.\-]", "_", urllib.parse.unquote(parts.path.rpartition("/")[2])).lstrip(".")[-120:]
        return cls(url, digest, "weights" if name in ("", "config.json") else name)

    def is_in(self, path: Path) -> bool:
        """Whether the file at `path` is the one."""
        return sha256_of(path).startswith(self.digest)


def _make_room_for(path: Path) -> None:
    """The folder of a file to come, without what processes that were killed left of it a day ago or more."""
    with plain_disk_errors(cache_folder(), _ELSEWHERE):
        path.parent.mkdir(parents=True, exist_ok=True)
        for draft in path.parent.glob(f".{path.name}.*"):
            if time.time() - draft.stat().st_mtime > _A_DAY:
                draft.unlink(missing_ok=True)


@contextmanager
def _part_of(path: Path) -> Iterator[Path]:
    """Where the file's bytes come to, beside it, for this process alone: what an earlier one left of them is gone on with.

    Where another process is at it, a draft of its own, which is not kept.
    """
    part = path.with_name(f".{path.name}{_PART_OF}")
    with plain_disk_errors(path, _ELSEWHERE):
        held = _held(part)
        if held is None:
            held, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            part = Path(draft)
    try:
        yield part
    finally:
        os.close(held)
        if part.suffix != _PART_OF or hub.size_of(part) < _PROGRESS:
            part.unlink(missing_ok=True)


def _held(part: Path) -> int | None:
    """A descriptor on the file, locked; None where another process is at it or has just finished, or where it is a link."""
    try:
        held = os.open(part, os.O_RDWR | os.O_CREAT | BINARY | getattr(os, "O_NOFOLLOW", 0), 0o600)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return None
    if locked(held) and part.exists() and os.path.samestat(os.fstat(held), os.stat(part)):
        return held
    os.close(held)
    return None


class _OnlySafer(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from https to http."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]
        there = urllib.parse.urlsplit(newurl)
        plain = there.scheme == "http" and there.hostname in _LOOPBACK and not req.full_url.startswith("https://")
        if there.scheme != "https" and not plain:
            raise urllib.error.URLError("is sent on to an address without https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _fetch_into(part: Path, url: str, on_bytes: hub.OnBytes | None) -> None:
    """Download to the file; WeightsUnreachable when it breaks off `_TRIES` times, or is silent, without getting further."""
    opener, left, most, last = urllib.request.build_opener(_OnlySafer), _TRIES, part.stat().st_size, time.monotonic()
    said, size = hub.shown_address(url), [0]
    came = hub.telling(lambda: part.stat().st_size, size, on_bytes)
    while True:
        have = part.stat().st_size
        try:
            slow = f"{said}: the server sends less than {_PROGRESS:,} bytes in {hub.SILENT_SECONDS:g} s; try again"
            reason = hub.unless_server_is_silent(
                lambda have=have: _fetched(opener, part, url, have, size), came, least=_PROGRESS, silent=slow
            )
            if reason is None:
                return
        except urllib.error.HTTPError as error:
            if error.code == 416 and have:  # nothing is left to fetch
                return
            if error.code < 500 and error.code != 429:
                # The server's own words may hold an address with a signature.
                code = f"{error.code} {http.client.responses.get(error.code, '')}".strip()
                raise WeightsUnreachable(f"{said}: the server answers {code}") from None
            reason = f"the server answers {error.code}"
        except http.client.InvalidURL:  # which says all of it
            raise UnknownModel(f"{said}: is not an address") from None
        except (
            OSError,
            ValueError,
            http.client.HTTPException,
        ) as error:  # broken connections, no resolver, bad answers
            reason = "it answers no HTTP" if type(error) is http.client.BadStatusLine else brief(error)
        now = part.stat().st_size
        if now >= most + _PROGRESS:
            most, left, last = now, _TRIES, time.monotonic()
        left -= 1
        if left <= 0 or time.monotonic() - last >= _TIMEOUT_SECONDS:
            raise WeightsUnreachable(f"{said}: cannot be fetched ({reason})")
        time.sleep(min(2.0, 0.1 * 2 ** (_TRIES - left)))


def _fetched(opener: urllib.request.OpenerDirector, part: Path, url: str, have: int, told: list[int]) -> str | None:
    """Go on from `have` bytes; None when the whole file is there, else what is lacking. told: takes the bytes in all."""
    headers = {"User-Agent": "burnish", **({"Range": f"bytes={have}-"} if have else {})}
    with opener.open(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_SECONDS) as answer:
        goes_on = bool(have) and answer.status == 206
        # Content-Length as Python reads it, None where it is none: a text, or below nothing.
        expected, got = -1 if answer.length is None else answer.length, 0
        with open(part, "ab" if goes_on else "wb", buffering=0) as file:  # its size tells how far this is
            if file.tell() + expected > MAX_WEIGHTS_BYTES:
                raise BadWeights(
                    f"{hub.shown_address(url)}: has {expected:,} bytes, expected at most {MAX_WEIGHTS_BYTES:,}"
                )
            told[0] = file.tell() + max(0, expected)
            while chunk := answer.read1(_CHUNK):
                with plain_disk_errors(part.parent, _ELSEWHERE):
                    _write(file, chunk)
                got += len(chunk)
                if file.tell() > MAX_WEIGHTS_BYTES:
                    raise BadWeights(f"{hub.shown_address(url)}: more than {MAX_WEIGHTS_BYTES:,} bytes")
    return None if expected in (-1, got) else f"{got:,} of {expected:,} bytes came"


def _write(file: io.FileIO, chunk: bytes) -> None:
    """All of it: a disk that is nearly full takes a part."""
    left = memoryview(chunk)
    while len(left):
        left = left[file.write(left) or 0 :]
