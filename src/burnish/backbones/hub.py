"""Weights from the Hugging Face hub and from plain web addresses: cached, resumed where a connection broke, verified."""

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import huggingface_hub
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils import get_session, tqdm

from burnish.backbones.weights import MAX_WEIGHTS_BYTES, brief, sha256_of
from burnish.disk import MAX_JSON_BYTES, cache_folder, locked, plain_disk_errors
from burnish.errors import BadWeights, UnknownModel, WeightsUnreachable, shown
from burnish.runtime import Silent, TooMuch, unless_silent

T = TypeVar("T")
# Told of a file that comes: bytes so far, and in all (0: nobody knows). What it raises ends the fetching; what came is kept.
OnBytes = Callable[[int, int], None]
FILES = ("model.safetensors", "pytorch_model.bin")  # what a repository may call its weights, the safer first
_PROBE_SECONDS = 4.0  # for one request to the hub; a name that does not resolve fails in milliseconds
_PROBE_DEADLINE_SECONDS = 8.0  # the resolver of the operating system does not obey the request's timeout
_TRIES = 5  # for a download, each going on where the last one broke off
_CHUNK = 1 << 20
_PROGRESS = 1 << 16  # bytes more that make a try worth another
_TIMEOUT_SECONDS = 4.0  # of silence within one try
_SILENT_SECONDS = 12.0  # without a byte more, then it is given up
_ELSEWHERE = "set BURNISH_CACHE to a folder with room that can be written to"
_A_DAY = 86_400.0  # seconds
_PART_OF = ".part"  # the end of the name of a file that has not come whole
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_PART = r"[A-Za-z0-9_](?:[\w.\-]{0,94}[A-Za-z0-9_])?"
_REPOSITORY = re.compile(rf"{_PART}/{_PART}(?<!\.git)(?:@{_PART}(?:/{_PART})*)?", re.ASCII)
_ADDRESS = re.compile(r"https?:/", re.IGNORECASE)
_SHA256, _BEGINNING = re.compile(r"[0-9a-fA-F]{64}"), re.compile(r"[0-9a-f]{8,64}")


class NotThere(WeightsUnreachable):
    """The repository has no such file."""


def cached_on_disk(repository: str, filename: str) -> Path | None:
    """The file in the Hugging Face cache, or None."""
    repository, _, revision = repository.partition("@")
    try:
        found = huggingface_hub.try_to_load_from_cache(repository, filename, revision=revision or None)
    except hub_errors.HFValidationError as error:
        raise UnknownModel(f"hf-hub:{shown(repository)}: is no name of a repository ({brief(error)})") from None
    return Path(found) if isinstance(found, str) else None


def fetch(repository: str, filename: str, on_bytes: OnBytes | None = None) -> Path:
    """A file of a Hugging Face repository: from the cache, else from the network, verified.

    Without a network this fails within about ten seconds: one probe goes first, because the hub's client retries
    for 23 s on a machine without a resolver. WeightsUnreachable is half a
    sentence, "… are not in the cache, and …": the caller says whose weights, and what to do.
    """
    path = cached_on_disk(repository, filename)
    if path is None:
        if told_offline():
            raise WeightsUnreachable("not in the cache, and HF_HUB_OFFLINE is set")
        if (reason := why_unreachable()) is not None:
            hub = huggingface_hub.constants.ENDPOINT
            raise WeightsUnreachable(f"not in the cache, and {_shown(hub)} cannot be reached ({reason})")
        path = _download(repository, filename, on_bytes)
    blob = path.resolve()
    digest = blob.name  # a large file in the cache is named by its SHA-256
    if len(digest) == 64 and sha256_of(path) != digest:
        where = shown(str(path))
        try:
            for one in {path, blob}:
                one.unlink(missing_ok=True)
        except OSError as error:
            raise BadWeights(
                f"{where}: is damaged in the cache, and cannot be deleted ({error.strerror}); delete it"
            ) from None
        raise BadWeights(f"{where}: was damaged in the cache (SHA-256 differs) and is deleted; run again")
    return path


def _download(repository: str, filename: str, on_bytes: OnBytes | None) -> Path:
    """The downloaded file's place in the cache; WeightsUnreachable when the hub refuses, breaks off or falls silent."""
    blobs = (
        Path(huggingface_hub.constants.HF_HUB_CACHE)
        / f"models--{repository.partition('@')[0].replace('/', '--')}"
        / "blobs"
    )

    size = [0]
    came = _telling(
        lambda: sum(_size_of(path) for path in blobs.glob("*.incomplete")) if blobs.is_dir() else 0, size, on_bytes
    )

    most = MAX_JSON_BYTES if filename.endswith(".json") else MAX_WEIGHTS_BYTES
    # The hub's client waits minutes for a server that hangs, and hours for one that asks it to.
    silent = f"not here: the hub sent nothing for {_SILENT_SECONDS:g} s; try again"
    return _unless_silent(lambda: _downloaded(repository, filename, size), came, least=1, silent=silent, most=most)


def _telling(came: Callable[[], int], size: list[int], on_bytes: OnBytes | None) -> Callable[[], int]:
    """`came`, bytes so far, which whoever looks on is told of as well; size: holds the bytes in all, 0 until they are known."""

    def told() -> int:
        found = came()
        if on_bytes is not None:
            on_bytes(found, size[0])
        return found

    return told


def _unless_silent(
    work: Callable[[], T], came: Callable[[], int], *, least: int, silent: str, most: int = MAX_WEIGHTS_BYTES
) -> T:
    """What `work` gives or raises; WeightsUnreachable where hardly anything comes any more, or too much.

    came: bytes so far, of which `least` more must come within _SILENT_SECONDS; else the sentence `silent` is said.
    """
    try:
        return unless_silent(work, came, least=least, most=most, seconds=_SILENT_SECONDS)
    except Silent:
        raise WeightsUnreachable(silent) from None
    except TooMuch:
        raise WeightsUnreachable(f"not here: the hub sends more than the {most:,} bytes that are read") from None


def _downloaded(repository: str, filename: str, told: list[int]) -> Path:
    """The file's place; what goes wrong is raised in our words. told: takes the bytes in all as soon as they are known."""
    repository, _, revision = repository.partition("@")
    named = f"{repository}@{revision}" if revision else repository
    told[0] = size = _told_size(repository, filename, revision)
    if size > MAX_WEIGHTS_BYTES:
        raise BadWeights(f"{named}: its {filename} has {size:,} bytes, expected at most {MAX_WEIGHTS_BYTES:,}")
    try:
        path = huggingface_hub.hf_hub_download(
            repository, filename, revision=revision or None, etag_timeout=_PROBE_SECONDS, tqdm_class=_NoBar
        )
        return Path(path)
    except hub_errors.LocalEntryNotFoundError as error:
        raise WeightsUnreachable(f"not in the cache, and the hub cannot be reached ({brief(error)})") from None
    except hub_errors.EntryNotFoundError:
        raise NotThere(f"not to be had: {named} has no {filename}") from None
    except hub_errors.RevisionNotFoundError:
        raise UnknownModel(f"hf-hub:{shown(named)}: the repository has no revision {shown(revision)}") from None
    except (hub_errors.RepositoryNotFoundError, hub_errors.HFValidationError):
        raise UnknownModel(
            f"hf-hub:{shown(named)}: no such repository on the hub, or it is private (then run: hf auth login)"
        ) from None
    except Exception as error:  # the client's tree of errors differs from version to version
        raise WeightsUnreachable(f"not here: the download broke off ({brief(error)})") from None


class _NoBar(tqdm):
    """No bar of the hub's client beside ours."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "disable": True})


def _told_size(repository: str, filename: str, revision: str) -> int:
    """Bytes, as the hub tells before they come; 0 where it does not."""
    try:
        url = huggingface_hub.hf_hub_url(repository, filename, revision=revision or None)
        return huggingface_hub.get_hf_file_metadata(url, timeout=_PROBE_SECONDS).size or 0
    except Exception:  # the download meets it again, tries anew where that helps, and says what it was
        return 0


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # it was finished and renamed meanwhile
        return 0


def told_offline() -> bool:
    said = os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE")
    return said or huggingface_hub.constants.HF_HUB_OFFLINE


def why_unreachable() -> str | None:
    """None when the hub answers, whatever it answers; else the reason, after `_PROBE_DEADLINE_SECONDS` at most."""
    try:
        unless_silent(
            lambda: get_session().head(huggingface_hub.constants.ENDPOINT, timeout=_PROBE_SECONDS),
            lambda: 0, least=1, most=0, seconds=_PROBE_DEADLINE_SECONDS,
        )  # fmt: skip
    except Silent:
        return f"no answer in {_PROBE_DEADLINE_SECONDS:g} s"
    except Exception as error:  # requests or httpx, by version
        return brief(error)
    return None


def download(address: str, *, beginning: bool = False, on_bytes: OnBytes | None = None) -> Path:
    """The file behind "https://HOST/FILE#sha256=HEX": from the cache, else from the network, its hash verified.

    beginning: the address has 8 or more digits of the hash, as the names of torchvision's files have. A connection that breaks
    is taken up where it broke, also by a later process. UnknownModel without a hash, WeightsUnreachable when it cannot be had,
    BadWeights when the hash is another one.
    """
    url, _, fragment = address.partition("#")
    digest = fragment.removeprefix("sha256=").lower()
    try:
        parts = urllib.parse.urlsplit(url)
        host, _ = parts.hostname, parts.port
        if not host:
            raise ValueError
    except ValueError:
        raise UnknownModel(f"{_shown(address)}: is not an address") from None
    if not (_BEGINNING if beginning else _SHA256).fullmatch(digest):
        raise UnknownModel(
            f"{_shown(address)}: weights from the web need their SHA-256, so that nobody can change them on the way; "
            f"say:  --model '{_shown(url)}#sha256=…'  (the page that offers the file gives it, or: sha256sum FILE)"
        )
    if parts.scheme != "https" and host not in _LOOPBACK:
        raise UnknownModel(f"{_shown(address)}: expected an address that begins with https://")
    if not url.isascii() or any(char.isspace() or not char.isprintable() for char in url):
        raise UnknownModel(f"{_shown(address)}: is not an address (write spaces and other characters as %20 and so on)")
    name = re.sub(r"[^\w.\-]", "_", urllib.parse.unquote(parts.path.rpartition("/")[2])).lstrip(".")[-120:]
    name = "weights" if name in ("", "config.json") else name
    path = cache_folder() / "models" / digest / name
    if path.is_file():
        if sha256_of(path).startswith(digest):
            return path
        with plain_disk_errors(path, _ELSEWHERE):
            path.unlink()  # damaged in the cache
    if told_offline():
        raise WeightsUnreachable(f"{_shown(url)}: not in the cache, and HF_HUB_OFFLINE is set")
    with plain_disk_errors(cache_folder(), _ELSEWHERE):
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{name}.*"):  # by a process that was killed
            if time.time() - left.stat().st_mtime > _A_DAY:
                left.unlink(missing_ok=True)
    with _part_of(path) as part:
        before = part.stat().st_size
        _fetch_into(part, url, on_bytes)
        if before and not sha256_of(part).startswith(digest):  # what an earlier process left was not of this file
            with plain_disk_errors(path, _ELSEWHERE):
                os.truncate(part, 0)
            _fetch_into(part, url, on_bytes)
        if not (found := sha256_of(part)).startswith(digest):
            part.unlink(missing_ok=True)
            raise BadWeights(
                f"{_shown(url)}: what came has SHA-256 {found}, expected {digest}; it was thrown away: the file changed, "
                "or somebody changed it on the way"
            )
        with plain_disk_errors(path, _ELSEWHERE):
            os.replace(part, path)
    return path


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
        if part.suffix != _PART_OF or _size_of(part) < _PROGRESS:
            part.unlink(missing_ok=True)


def _held(part: Path) -> int | None:
    """A descriptor on the file, locked; None where another process is at it or has just finished, or where it is a link."""
    try:
        held = os.open(part, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return None
    if locked(held) and part.exists() and os.path.samestat(os.fstat(held), os.stat(part)):
        return held
    os.close(held)
    return None


def public(model: str) -> str:
    """A model's name as it may be written down: of an address no user, password, query or hash."""
    told = _ADDRESS.search(model)
    return model if told is None else model[: told.start()] + _shown(model[told.start() :])


def _shown(url: str) -> str:
    """An address as an error may say it, also one that is none: no user, password, query or hash."""
    try:
        parts = urllib.parse.urlsplit(url)
        if parts.netloc:
            return shown(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}")
    except ValueError:
        pass
    scheme, _, rest = url.partition(":")
    return shown(f"{scheme}://{rest.lstrip('/').partition('?')[0].partition('#')[0].rpartition('@')[2]}")


class _OnlySafer(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from https to http."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]
        there = urllib.parse.urlsplit(newurl)
        plain = there.scheme == "http" and there.hostname in _LOOPBACK and not req.full_url.startswith("https://")
        if there.scheme != "https" and not plain:
            raise urllib.error.URLError("is sent on to an address without https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _fetch_into(part: Path, url: str, on_bytes: OnBytes | None) -> None:
    """Download to the file; WeightsUnreachable when it breaks off `_TRIES` times, or is silent, without getting further."""
    opener, left, most, last = urllib.request.build_opener(_OnlySafer), _TRIES, part.stat().st_size, time.monotonic()
    size = [0]
    came = _telling(lambda: part.stat().st_size, size, on_bytes)
    while True:
        have = part.stat().st_size
        try:
            slow = f"{_shown(url)}: the server sends less than {_PROGRESS:,} bytes in {_SILENT_SECONDS:g} s; try again"
            reason = _unless_silent(
                lambda have=have: _fetched(opener, part, url, have, size),
                came,
                least=_PROGRESS,
                silent=slow,
            )
            if reason is None:
                return
        except urllib.error.HTTPError as error:
            if error.code == 416 and have:  # nothing is left to fetch
                return
            if error.code < 500 and error.code != 429:
                # The server's own words may hold an address with a signature.
                code = f"{error.code} {http.client.responses.get(error.code, '')}".strip()
                raise WeightsUnreachable(f"{_shown(url)}: the server answers {code}") from None
            reason = f"the server answers {error.code}"
        except http.client.InvalidURL:  # which says all of it
            raise UnknownModel(f"{_shown(url)}: is not an address") from None
        except (
            OSError,
            ValueError,
            http.client.HTTPException,
        ) as error:  # broken connections, no resolver, bad answers
            reason = brief(error)
        now = part.stat().st_size
        if now >= most + _PROGRESS:
            most, left, last = now, _TRIES, time.monotonic()
        left -= 1
        if left <= 0 or time.monotonic() - last >= _TIMEOUT_SECONDS:
            raise WeightsUnreachable(f"{_shown(url)}: cannot be fetched ({reason})")
        time.sleep(min(2.0, 0.1 * 2 ** (_TRIES - left)))


def _fetched(opener: urllib.request.OpenerDirector, part: Path, url: str, have: int, told: list[int]) -> str | None:
    """Go on from `have` bytes; None when the whole file is there, else what is lacking. told: takes the bytes in all."""
    headers = {"User-Agent": "burnish", **({"Range": f"bytes={have}-"} if have else {})}
    with opener.open(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_SECONDS) as answer:
        goes_on = bool(have) and answer.status == 206
        expected, got = int(answer.headers.get("Content-Length") or -1), 0
        with open(part, "ab" if goes_on else "wb", buffering=0) as file:  # its size tells how far this is
            if file.tell() + expected > MAX_WEIGHTS_BYTES:
                raise BadWeights(f"{_shown(url)}: has {expected:,} bytes, expected at most {MAX_WEIGHTS_BYTES:,}")
            told[0] = file.tell() + max(0, expected)
            while chunk := answer.read1(_CHUNK):
                with plain_disk_errors(part.parent, _ELSEWHERE):
                    _write(file, chunk)
                got += len(chunk)
                if file.tell() > MAX_WEIGHTS_BYTES:
                    raise BadWeights(f"{_shown(url)}: more than {MAX_WEIGHTS_BYTES:,} bytes")
    return None if expected in (-1, got) else f"{got:,} of {expected:,} bytes came"


def _write(file: io.FileIO, chunk: bytes) -> None:
    """All of it: a disk that is nearly full takes a part."""
    left = memoryview(chunk)
    while len(left):
        left = left[file.write(left) or 0 :]


def of_repository(name: str, on_bytes: OnBytes | None = None) -> tuple[Path, Path]:
    """(config.json, weights) of "org/name" or "org/name@revision" on the hub."""
    if not _REPOSITORY.fullmatch(name) or ".." in name or "--" in name.partition("@")[0]:
        raise UnknownModel(f"hf-hub:{shown(name)}: expected hf-hub:ORG/NAME, or hf-hub:ORG/NAME@REVISION")
    try:
        config = fetch(name, "config.json")
    except WeightsUnreachable as error:
        raise WeightsUnreachable(f"hf-hub:{shown(name)}: its config.json is {error}") from None
    for place, file in enumerate(FILES):
        try:
            return config, fetch(name, file, on_bytes)
        except NotThere:
            if place + 1 == len(FILES):
                raise WeightsUnreachable(f"hf-hub:{shown(name)}: has none of {', '.join(FILES)}") from None
        except WeightsUnreachable as error:
            if place + 1 == len(FILES) or cached_on_disk(name, FILES[place + 1]) is None:
                raise WeightsUnreachable(f"hf-hub:{shown(name)}: its weights are {error}") from None
    raise AssertionError
