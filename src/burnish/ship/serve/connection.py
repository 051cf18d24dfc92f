"""Connections: how many, and how long one may take to say what it wants; uvicorn limits neither."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any

from burnish.ship.serve.guard import HEADER_BYTES, with_own
from burnish.ship.serve.limits import Limits
from burnish.ship.serve.refusal import Refusal

_LINGER_SECONDS = 3.0  # in which the rest of a refused body is thrown away, so that the sender comes to read why
_LONGEST_ANSWER_SECONDS = 600.0  # of a request, with its wait and with who does not take the answer
# Pieces of a body that come whatever they hold, and bytes of a piece on average beyond those: h11 takes 40 µs for each, in the
# one thread that serves all; 256 kB of a byte a piece held up the others for 2 to 14 s.
_FREE_PIECES, _PIECE_BYTES = 4096, 64
_TINY = "the body comes in pieces of a few bytes; send it as a whole, or in larger ones"
_NO_HTTP = f"what came is no HTTP request, or has more than {HEADER_BYTES:,} bytes of headers; see GET /"
_REASONS = {400: "Bad Request", 408: "Request Timeout", 503: "Service Unavailable"}


def connections_within(limits: Limits) -> Any:
    """uvicorn's HTTP/1.1 connection with the limits of `Watched`."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    return type("Connection", (Watched, H11Protocol), {"limits": limits})


class Watched:
    """What a connection of uvicorn has besides: one timer.

    Headers must have come within a third of the time of a body, however they are dripped. Of a body that is refused three more
    seconds are thrown away, so that its sender comes to read why. One connection too many, of all or of one address, is told so,
    one of many more is closed; who does not take an answer is dropped. Bodies in pieces of a few bytes are refused.
    """

    limits: Limits
    client: tuple[str, int] | None  # who has it
    conn: Any  # of h11: what either side is at
    cycle: Any  # the last request, None before the first
    connections: set[Any]
    loop: Any
    transport: Any
    _timer: Any = None
    _state = ""  # what the timer is for
    _too_many = ""  # why it is told to come back
    _wrong = _NO_HTTP  # why what comes is not understood
    _pieces = _piece_bytes = 0  # of the body that comes

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)  # type: ignore[misc]
        self.conn.next_event = self._counted(self.conn.next_event)
        most, own = self.limits.connections, self.limits.of_one_address
        mine = neighbourhood_of(self.client)
        beside = [one for one in self.connections if mine is not None and neighbourhood_of(one.client) == mine]
        if len(self.connections) > 4 * most or len(beside) > 2 * own:
            transport.abort()
            return
        if sum(not one._too_many for one in self.connections) > most:
            self._too_many = f"{most} connections are open, the most at a time"
        elif sum(not one._too_many for one in beside) > own:
            self._too_many = f"{own} connections of your address are open, the most of one"
        self._time("headers", self.limits.header_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        self._time("", None)
        super().connection_lost(exc)  # type: ignore[misc]

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._too_many:
            self._leave(503, f"{self._too_many}; ask again in a second")
            return
        super().data_received(data)  # type: ignore[misc]
        self._look()

    def _counted(self, next_event: Callable[[], Any]) -> Callable[[], Any]:
        """What h11 finds next in what has come; where a body is in too many pieces, an error as for what is no HTTP."""
        from h11 import Data, RemoteProtocolError, Request

        def counting() -> Any:
            event = next_event()
            if isinstance(event, Request):
                self._pieces = self._piece_bytes = 0
            if not isinstance(event, Data):
                return event
            self._pieces, self._piece_bytes = self._pieces + 1, self._piece_bytes + len(event.data)
            if self._pieces > _FREE_PIECES and self._piece_bytes < _PIECE_BYTES * self._pieces:
                self._wrong = _TINY
                raise RemoteProtocolError(_TINY)
            return event

        return counting

    def on_response_complete(self) -> None:
        super().on_response_complete()  # type: ignore[misc]
        self._look()

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.get_write_buffer_size():  # it has asked, and does not read
            self.transport.abort()
        else:
            super().timeout_keep_alive_handler()  # type: ignore[misc]

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP; uvicorn's own words are plain text."""
        begun = self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete
        if begun or repr(self.conn.our_state) not in ("IDLE", "SEND_RESPONSE"):
            self.transport.abort()  # in the midst of a body whose answer has begun
        else:
            self._leave(400, self._wrong)

    def _leave(self, status: int, sentence: str) -> None:
        self.transport.write(_written(status, sentence))
        self.transport.close()

    def _look(self) -> None:
        """Set the timer for what is waited for now."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._time("answer", _LONGEST_ANSWER_SECONDS)
        elif repr(self.conn.their_state) == "SEND_BODY" or self.transport.get_write_buffer_size():
            self._time("rest", _LINGER_SECONDS)
        elif self.cycle is None or self.conn.trailing_data[0]:
            self._time("headers", self.limits.header_seconds)
        else:
            self._time("", None)  # between requests, where uvicorn waits for five seconds

    def _time(self, state: str, seconds: float | None) -> None:
        """One timer, begun when a state is entered: what comes drop by drop does not begin it anew."""
        if state == self._state:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._state = state
        self._timer = None if seconds is None else self.loop.call_later(seconds, self._late)

    def _late(self) -> None:
        if self._state == "headers" and not self.transport.is_closing():
            self._leave(
                408, f"the headers had not come whole after {self.limits.header_seconds:g} s; send them at once"
            )
            self.loop.call_later(_LINGER_SECONDS, self.transport.abort)
        else:
            self.transport.abort()


def neighbourhood_of(client: tuple[str, int] | None) -> Any:
    """What counts as one address: of IPv6 the network that one customer has.

    None of this machine's own: a proxy asks for many.
    """
    try:
        address = ipaddress.ip_address(client[0].partition("%")[0]) if client else None
    except ValueError:
        return None
    address = getattr(address, "ipv4_mapped", None) or address
    if address is None or address.is_loopback:
        return None
    return address if address.version == 4 else ipaddress.ip_network((address, 64), strict=False)


def _written(status: int, sentence: str) -> bytes:
    """A refusal as it goes over the wire, with which the connection ends."""
    refusal = Refusal(status, sentence)
    headers = {"content-type": "application/json", "connection": "close", **refusal.headers}
    own = [(name.encode(), value.encode()) for name, value in headers.items()]
    lines = [name + b": " + value for name, value in with_own([*own, (b"content-length", b"%d" % len(refusal.body))])]
    return b"\r\n".join([f"HTTP/1.1 {status} {_REASONS[status]}".encode(), *lines, b"", refusal.body])
