"""The bytes of a request's body: so many at the most, within so many seconds, and so many of all requests together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from burnish.ship.serve.limits import Limits
from burnish.ship.serve.refusal import Refusal


class Gone(Exception):
    """Who asked has left; nobody waits for the answer."""


class Bodies:
    """All bodies that are held, within the limits."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self._held = limits, 0

    @asynccontextmanager
    async def of(self, request: Any) -> AsyncIterator[bytes]:
        """The body of a Starlette request, held as long as this lasts.

        Refusal: 413 where it is too large, told before it is read where its length is said; 408 where it comes too slowly; 503
        where too many are held. Gone where the sender leaves.
        """
        held = _Held(self, self._limits)
        self._refuse_declared(request.headers.get("content-length", ""))
        try:
            try:
                async with asyncio.timeout(self._limits.seconds):
                    body = await held.whole(request.receive)
            except TimeoutError:
                raise Refusal(
                    408, f"the body had not come whole after {self._limits.seconds:g} s; send a smaller image"
                ) from None
            yield body
        finally:
            self._held -= held.bytes

    def _refuse_declared(self, declared: str) -> None:
        """Refusal 413 for a Content-Length that is too large; the server sees to it that it is a number, and true."""
        if declared.isdecimal() and int(declared[:20]) > self._limits.bytes:
            raise self.too_large(f"{int(declared[:20]):,} bytes")

    def too_large(self, came: str) -> Refusal:
        return Refusal(413, f"the body has {came}, {self._limits.bytes:,} are the most; send fewer or smaller images")

    def take(self, count: int) -> None:
        """So many bytes more are held; Refusal 503 where that is too much."""
        if self._held + count > self._limits.held_bytes:
            raise Refusal(503, "too many images are being sent at once; ask again in a second")
        self._held += count


class _Held:
    """One body as it comes."""

    def __init__(self, bodies: Bodies, limits: Limits) -> None:
        self._bodies, self._limits, self.bytes = bodies, limits, 0

    async def whole(self, receive: Any) -> bytes:
        pieces: list[bytes] = []
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Gone
            piece = message.get("body", b"")
            if self.bytes + len(piece) > self._limits.bytes:
                raise self._bodies.too_large(f"more than {self.bytes:,} bytes")
            self._bodies.take(len(piece))
            self.bytes += len(piece)
            pieces.append(piece)
            if not message.get("more_body", False):
                return b"".join(pieces)
