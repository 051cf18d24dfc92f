"""Weights from the Hugging Face hub: cached, verified; and what any download is watched by."""

from __future__ import annotations

import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import huggingface_hub
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils import get_session, tqdm

from burnish.backbones.reading import shards
from burnish.backbones.reading.weights import MAX_WEIGHTS_BYTES, sha256_of
from burnish.disk import MAX_JSON_BYTES
from burnish.errors import BadWeights, UnknownModel, WeightsUnreachable, brief, shown
from burnish.runtime import Silent, TooMuch, unless_silent

T = TypeVar("T")
# Told of a file that comes: bytes so far, and in all (0: nobody knows). What it raises ends the fetching; what came is kept.
OnBytes = Callable[[int, int], None]
_INDEX = ".index.json"  # of weights in several files
# What a repository may call its weights, the safer first.
FILES = tuple(f"{name}{end}" for name in ("model.safetensors", "pytorch_model.bin") for end in ("", _INDEX))
_PROBE_SECONDS = 4.0  # for one request to the hub; a name that does not resolve fails in milliseconds
_PROBE_DEADLINE_SECONDS = 8.0  # the resolver of the operating system does not obey the request's timeout
SILENT_SECONDS = 12.0  # without a byte more, then it is given up
_PART = r"[A-Za-z0-9_](?:[\w.\-]{0,94}[A-Za-z0-9_])?"
_REPOSITORY = re.compile(rf"{_PART}/{_PART}(?<!\.git)(?:@{_PART}(?:/{_PART})*)?", re.ASCII)
_ADDRESS = re.compile(r"https?:/", re.IGNORECASE)


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
            raise WeightsUnreachable(f"not in the cache, and {shown_address(hub)} cannot be reached ({reason})")
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
    came = telling(
        lambda: sum(size_of(path) for path in blobs.glob("*.incomplete")) if blobs.is_dir() else 0, size, on_bytes
    )

    most = MAX_JSON_BYTES if filename.endswith(".json") else MAX_WEIGHTS_BYTES
    # The hub's client waits minutes for a server that hangs, and hours for one that asks it to.
    silent = f"not here: the hub sent nothing for {SILENT_SECONDS:g} s; try again"
    return unless_server_is_silent(
        lambda: _downloaded(repository, filename, size), came, least=1, silent=silent, most=most
    )


def telling(came: Callable[[], int], size: list[int], on_bytes: OnBytes | None) -> Callable[[], int]:
    """`came`, bytes so far, which whoever looks on is told of as well; size: holds the bytes in all, 0 until they are known."""

    def told() -> int:
        found = came()
        if on_bytes is not None:
            on_bytes(found, size[0])
        return found

    return told


def unless_server_is_silent(
    work: Callable[[], T], came: Callable[[], int], *, least: int, silent: str, most: int = MAX_WEIGHTS_BYTES
) -> T:
    """What `work` gives or raises; WeightsUnreachable where hardly anything comes any more, or too much.

    came: bytes so far, of which `least` more must come within SILENT_SECONDS; else the sentence `silent` is said.
    """
    try:
        return unless_silent(work, came, least=least, most=most, seconds=SILENT_SECONDS)
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
        told = huggingface_hub.get_hf_file_metadata(url, timeout=_PROBE_SECONDS).size
        return max(0, told or 0)
    except Exception:  # the download meets it again, tries anew where that helps, and says what it was
        return 0


def size_of(path: Path) -> int:
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


def public(model: str) -> str:
    """A model's name as it may be written down: of an address no user, password, query or hash."""
    told = _ADDRESS.search(model)
    return model if told is None else model[: told.start()] + shown_address(model[told.start() :])


def shown_address(url: str) -> str:
    """An address as an error may say it, also one that is none: no user, password, query or hash."""
    try:
        parts = urllib.parse.urlsplit(url)
        if parts.netloc:
            return shown(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}")
    except ValueError:
        pass
    scheme, _, rest = url.partition(":")
    return shown(f"{scheme}://{rest.lstrip('/').partition('?')[0].partition('#')[0].rpartition('@')[2]}")


def of_repository(name: str, on_bytes: OnBytes | None = None) -> tuple[Path, Path]:
    """(config.json, weights, or the index of several files with them) of "org/name" or "org/name@revision" on the hub."""
    if not _REPOSITORY.fullmatch(name) or ".." in name or "--" in name.partition("@")[0]:
        raise UnknownModel(f"hf-hub:{shown(name)}: expected hf-hub:ORG/NAME, or hf-hub:ORG/NAME@REVISION")
    try:
        config = fetch(name, "config.json")
    except WeightsUnreachable as error:
        raise WeightsUnreachable(f"hf-hub:{shown(name)}: its config.json is {error}") from None
    for place, file in enumerate(FILES):
        try:
            return config, _with_its_parts(name, fetch(name, file, on_bytes), on_bytes)
        except NotThere:
            if place + 1 == len(FILES):
                raise WeightsUnreachable(
                    f"hf-hub:{shown(name)}: has none of {', '.join(FILES[::2])}, nor an index of several files"
                ) from None
        except WeightsUnreachable as error:
            if not any(cached_on_disk(name, later) for later in FILES[place + 1 :]):
                raise WeightsUnreachable(f"hf-hub:{shown(name)}: its weights are {error}") from None
    raise AssertionError


def _with_its_parts(name: str, path: Path, on_bytes: OnBytes | None) -> Path:
    """The file; where it is the index of several, those were fetched as well.

    WeightsUnreachable is half a sentence, as of `fetch`.
    """
    parts = shards.files_of(path) if path.name.endswith(_INDEX) else []
    for place, part in enumerate(parts, start=1):
        try:
            fetch(name, part, on_bytes)
        except NotThere:
            raise WeightsUnreachable(f"not whole: it has no {shown(part)}, which {path.name} names") from None
        except WeightsUnreachable as error:
            raise WeightsUnreachable(f"in {len(parts)} files, and file {place} is {error}") from None
    return path
