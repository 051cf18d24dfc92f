"""Why a request is not answered, and the bytes of an answer: JSON that is plain text wherever it ends up (P10)."""

from __future__ import annotations

import json
from typing import Any

from burnish.record.folder import plain

RETRY_SECONDS = 1  # after which a client may ask again; a full queue is worked off in about that time
# Of every answer. None may be shown in a frame, read by another site, or taken for what it is not.
HEADERS = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Refusal(Exception):
    """A request that is not answered: the HTTP status, and a sentence that says what came, what was expected, what to do.

    ends: whether the connection is closed with it, so that nothing behind it is taken for a request.
    """

    def __init__(self, status: int, sentence: str, *, ends: bool = False) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.ends = status, sentence, ends

    @property
    def headers(self) -> dict[str, str]:
        """Besides those of every answer."""
        again = {"retry-after": str(RETRY_SECONDS)} if self.status == 503 else {}
        return {**again, **({"connection": "close"} if self.ends else {})}

    @property
    def body(self) -> bytes:
        """{"error": sentence}"""
        return json_bytes({"error": self.sentence})


def json_bytes(value: Any) -> bytes:
    """Plain values as JSON in ASCII: what a terminal, a log or a page would act on is escaped."""
    text = json.dumps(plain(value), allow_nan=False)
    return text.translate({ord(char): f"\\u{ord(char):04x}" for char in "<>&\x7f"}).encode()


def length(headers: list[tuple[bytes, bytes]], status: int, body: bytes) -> dict[str, Any]:
    """The ASGI message that begins an answer of these headers and this body."""
    return {
        "type": "http.response.start",
        "status": status,
        "headers": [*headers, (b"content-length", b"%d" % len(body))],
    }
