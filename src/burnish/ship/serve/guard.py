"""What stands before all routes: who may ask, the headers of every answer, one line in the log for each request."""

from __future__ import annotations

import time
import urllib.parse
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from burnish.errors import shown
from burnish.runtime import Watcher
from burnish.ship.serve.bodies import Gone
from burnish.ship.serve.refusal import HEADERS, Refusal, length

_LONGEST_TARGET = 200  # characters of an address in the log
HEADER_BYTES = 16_384  # of a request's headers; browsers send a tenth of that
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Guard:
    """An ASGI application around another.

    hosts: the names of this service that a request may ask for; None for any. A page of another site whose name is made to
    point to this machine (DNS rebinding) asks for its own name, and is refused. watcher: told a line for each request.
    """

    def __init__(self, inner: Any, *, hosts: Sequence[str] | None, watcher: Watcher) -> None:
        self._inner, self._watcher = inner, watcher
        self._hosts = None if hosts is None else {name.lower() for name in hosts}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        began, answered = time.monotonic(), 0

        async def sending(message: Any) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = message["status"]
                message = {**message, "headers": with_own(message["headers"])}
            await send(message)

        told = ""
        try:
            self._require_own(scope)
            await self._inner(scope, receive, sending)
        except Refusal as refusal:
            await _send(sending, refusal)
        except Gone:
            told = "who asked has left"
        except Exception as error:  # it has been answered; what it was, this log tells, and the asker is not told
            told = f"{type(error).__name__}: {shown(str(error))[:300]}"
            if not answered:
                await _send(sending, Refusal(500, "something unforeseen happened; the service's log says what kind"))
        finally:
            with suppress(OSError):  # a log that cannot be written is no reason to answer nobody
                self._watcher.say(_line(scope, answered, time.monotonic() - began, told))

    def _require_own(self, scope: Any) -> None:
        """Refusal of a request that a page of another site has made."""
        headers = [(name.lower(), value.decode("latin-1")) for name, value in scope["headers"]]
        if (
            sum(len(name) + len(value) for name, value in headers) > HEADER_BYTES
        ):  # that came at once, before any server counts
            raise Refusal(400, f"the headers have more than {HEADER_BYTES:,} bytes, the most; send fewer")
        if {b"content-length", b"transfer-encoding"} <= {name for name, _ in headers}:
            # A proxy may go by the one and this server by the other: what it took for a body would be a request of another's
            # (RFC 9112, 6.1).
            raise Refusal(
                400,
                "the body's length is told twice, by Content-Length and by Transfer-Encoding; send one of them",
                ends=True,
            )
        named = [value for name, value in headers if name == b"host"]
        host = named[0] if len(named) == 1 else ""
        if self._hosts is not None and _name_of(host) not in self._hosts:
            raise Refusal(
                400,
                f"the host {host[:80]!r} is no name of this service; ask for one that is, or start it with --allow-host",
            )
        if scope["method"] in ("GET", "HEAD"):
            return
        origins = [value for name, value in headers if name == b"origin"]
        foreign = any(_place_of(one) != host.lower() for one in origins)
        sites = {value for name, value in headers if name == b"sec-fetch-site"}
        if foreign or not sites <= {"same-origin", "none"}:
            raise Refusal(403, "a page of another site may not ask this service; use its own page, or a program")


def with_own(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers of an answer, and those of every answer that it does not set itself."""
    there = {name.lower() for name, _ in headers}
    own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
    return [*headers, *(one for one in own if one[0] not in there)]


async def _send(send: Any, refusal: Refusal) -> None:
    headers = {"content-type": "application/json", **refusal.headers}
    body = refusal.body
    await send(length([(name.encode(), value.encode()) for name, value in headers.items()], refusal.status, body))
    await send({"type": "http.response.body", "body": body})


def _place_of(origin: str) -> str:
    """The host and port of an Origin header; "" where it has none, as "null" of a page in a box."""
    try:
        return urllib.parse.urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _name_of(host: str) -> str:
    """The name in a Host header, without its port; "" where it is none."""
    try:
        return urllib.parse.urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _line(scope: Any, status: int, seconds: float, told: str) -> str:
    """What the log says of a request; names in it are escaped by `shown`, and cut (P10)."""
    asker = shown(str((scope.get("client") or ("-",))[0]))
    query = scope.get("query_string", b"").decode("latin-1")
    target = shown(scope["path"] + (f"?{query}" if query else ""))
    target = target if len(target) <= _LONGEST_TARGET else f"{target[: _LONGEST_TARGET - 1]}…"
    said = f"{asker}  {shown(scope['method'][:20])} {target}  {status or '-'}  {1e3 * seconds:.0f} ms"
    return f"{said}  {told}" if told else said
