"""Weights from the Hugging Face hub and from plain web addresses: cached, resumed where a connection broke, verified."""

from __future__ import annotations

import os
import queue
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import huggingface_hub
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils import get_session

from burnish.backbones.weights import MAX_WEIGHTS_BYTES, brief, sha256_of
from burnish.disk import cache_folder
from burnish.errors import BadWeights, UnknownModel, WeightsUnreachable, shown

FILES = ("model.safetensors", "pytorch_model.bin")  # what a repository may call its weights, the safer first
_PROBE_SECONDS = 4.0  # for one request to the hub; a name that does not resolve fails in milliseconds
_PROBE_DEADLINE_SECONDS = 8.0  # the resolver of the operating system does not obey the request's timeout
_TRIES = 5  # for a download, each going on where the last one broke off
_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 20.0
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


class NotThere(WeightsUnreachable):
    """The repository has no such file."""


def cached_on_disk(repository: str, filename: str) -> Path | None:
    """The file in the Hugging Face cache, or None."""
    repository, _, revision = repository.partition("@")
    found = huggingface_hub.try_to_load_from_cache(repository, filename, revision=revision or None)
    return Path(found) if isinstance(found, str) else None


def fetch(repository: str, filename: str) -> Path:
    """A file of a Hugging Face repository: from the cache, else from the network, verified.

    Without a network this fails within about ten seconds: one probe goes first, because the hub's client retries
    for 23 s on a machine without a resolver. WeightsUnreachable is half a
    sentence, "… are not in the cache, and …": the caller says whose weights, and what to do.
    """
    path = cached_on_disk(repository, filename)
    if path is None:
        if _told_offline():
            raise WeightsUnreachable("not in the cache, and HF_HUB_OFFLINE is set")
        if (reason := why_unreachable()) is not None:
            hub = huggingface_hub.constants.ENDPOINT
            raise WeightsUnreachable(f"not in the cache, and {hub} cannot be reached ({reason})")
        path = _download(repository, filename)
    digest = path.resolve().name  # a large file in the cache is named by its SHA-256
    if len(digest) == 64 and sha256_of(path) != digest:
        raise BadWeights(f"{shown(str(path))}: damaged in the cache (SHA-256 differs); delete it and run again")
    return path


def _download(repository: str, filename: str) -> Path:
    """The downloaded file's place in the cache; WeightsUnreachable when the hub refuses or breaks off."""
    repository, _, revision = repository.partition("@")
    try:
        path = huggingface_hub.hf_hub_download(
            repository, filename, revision=revision or None, etag_timeout=_PROBE_SECONDS
        )
        return Path(path)
    except hub_errors.LocalEntryNotFoundError as error:
        raise WeightsUnreachable(f"not in the cache, and the hub cannot be reached ({brief(error)})") from None
    except hub_errors.EntryNotFoundError:
        raise NotThere(f"not to be had: {repository} has no {filename}") from None
    except (hub_errors.RepositoryNotFoundError, hub_errors.RevisionNotFoundError, hub_errors.HFValidationError):
        raise UnknownModel(
            f"hf-hub:{shown(repository)}: no such repository on the hub, or it is private (then run: hf auth login)"
        ) from None
    except Exception as error:  # the client's tree of errors differs from version to version
        raise WeightsUnreachable(f"not here: the download broke off ({brief(error)})") from error


def _told_offline() -> bool:
    said = os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE")
    return said or huggingface_hub.constants.HF_HUB_OFFLINE


def why_unreachable() -> str | None:
    """None when the hub answers, whatever it answers; else the reason, after `_PROBE_DEADLINE_SECONDS` at most."""
    answers: queue.Queue[str | None] = queue.Queue()

    def ask() -> None:
        try:
            get_session().head(huggingface_hub.constants.ENDPOINT, timeout=_PROBE_SECONDS)
            answers.put(None)
        except Exception as error:  # requests or httpx, by version
            answers.put(brief(error))

    threading.Thread(target=ask, daemon=True).start()
    try:
        return answers.get(timeout=_PROBE_DEADLINE_SECONDS)
    except queue.Empty:
        return f"no answer in {_PROBE_DEADLINE_SECONDS:g} s"


def download(address: str) -> Path:
    """The file behind "https://HOST/FILE#sha256=HEX": from the cache, else from the network, its hash verified.

    A connection that breaks is taken up where it broke. UnknownModel without a hash, WeightsUnreachable when it cannot be
    had, BadWeights when the hash is another one.
    """
    url, _, fragment = address.partition("#")
    digest = fragment.removeprefix("sha256=").lower()
    parts = urllib.parse.urlsplit(url)
    if not _SHA256.fullmatch(digest):
        raise UnknownModel(
            f"{shown(address)}: weights from the web need their SHA-256, so that nobody can change them on the way; "
            f"say:  --model '{shown(url)}#sha256=…'  (the page that offers the file gives it, or: sha256sum FILE)"
        )
    if parts.scheme != "https" and parts.hostname not in ("127.0.0.1", "localhost", "::1"):
        raise UnknownModel(f"{shown(address)}: expected an address that begins with https://")
    name = re.sub(r"[^\w.\-]", "_", urllib.parse.unquote(parts.path.rpartition("/")[2]))[-120:] or "weights"
    path = cache_folder() / "models" / digest / name
    if path.is_file():
        if sha256_of(path) == digest:
            return path
        path.unlink()  # damaged in the cache
    if _told_offline():
        raise WeightsUnreachable(f"{shown(url)}: not in the cache, and HF_HUB_OFFLINE is set")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{name}.{os.getpid()}.part")
    try:
        _fetch_into(part, url)
        if (found := sha256_of(part)) != digest:
            raise BadWeights(
                f"{shown(url)}: what came has SHA-256 {found}, expected {digest}; it was thrown away: the file changed, "
                "or somebody changed it on the way"
            )
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


class _OnlySafer(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from https to http."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]
        if req.full_url.startswith("https://") and not newurl.startswith("https://"):
            raise urllib.error.URLError("is sent on to an address without https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _fetch_into(part: Path, url: str) -> None:
    """Download to the file; WeightsUnreachable when it breaks off `_TRIES` times without a byte in between."""
    opener, left = urllib.request.build_opener(_OnlySafer), _TRIES
    while True:
        have = part.stat().st_size if part.exists() else 0
        request = urllib.request.Request(
            url, headers={"User-Agent": "burnish", **({"Range": f"bytes={have}-"} if have else {})}
        )
        try:
            with opener.open(request, timeout=_TIMEOUT_SECONDS) as answer:
                goes_on = have and answer.status == 206
                expected = int(answer.headers.get("Content-Length") or -1)
                with open(part, "ab" if goes_on else "wb") as file:
                    got = 0
                    while chunk := answer.read(_CHUNK):
                        file.write(chunk)
                        got += len(chunk)
                        if file.tell() > MAX_WEIGHTS_BYTES:
                            raise BadWeights(f"{shown(url)}: more than {MAX_WEIGHTS_BYTES:,} bytes")
                if expected in (-1, got):
                    return
            reason = f"{got:,} of {expected:,} bytes came"
        except urllib.error.HTTPError as error:
            if error.code == 416 and have:  # nothing is left to fetch
                return
            if error.code < 500 and error.code != 429:
                raise WeightsUnreachable(
                    f"{shown(url)}: the server answers {error.code} {shown(error.reason)}"
                ) from None
            reason = f"the server answers {error.code}"
        except (OSError, ValueError) as error:  # broken connections, no resolver, bad answers
            reason = brief(error)
        now = part.stat().st_size if part.exists() else 0
        left = _TRIES if now > have else left - 1
        if left <= 0:
            raise WeightsUnreachable(f"{shown(url)}: cannot be fetched ({reason})")
        time.sleep(min(2.0, 0.1 * 2 ** (_TRIES - left)))


def of_repository(name: str) -> tuple[Path, Path]:
    """(config.json, weights) of "org/name" or "org/name@revision" on the hub."""
    if not re.fullmatch(r"[\w.\-]+/[\w.\-]+(@[\w.\-/]+)?", name):
        raise UnknownModel(f"hf-hub:{shown(name)}: expected hf-hub:ORG/NAME, or hf-hub:ORG/NAME@REVISION")
    try:
        config = fetch(name, "config.json")
    except WeightsUnreachable as error:
        raise WeightsUnreachable(f"hf-hub:{shown(name)}: its config.json is {error}") from None
    for place, file in enumerate(FILES):
        try:
            return config, fetch(name, file)
        except NotThere:
            if place + 1 == len(FILES):
                raise WeightsUnreachable(f"hf-hub:{shown(name)}: has none of {', '.join(FILES)}") from None
        except WeightsUnreachable as error:
            if place + 1 == len(FILES) or cached_on_disk(name, FILES[place + 1]) is None:
                raise WeightsUnreachable(f"hf-hub:{shown(name)}: its weights are {error}") from None
    raise AssertionError
