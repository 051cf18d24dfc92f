"""The port: had before anything is loaded, and whose names it answers to."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket

from burnish.errors import RecipeError, RunError, shown
from burnish.ship.serve.guard import LOOPBACK

BACKLOG = (
    1024  # connections that the system takes before they are looked at; one it drops is tried again after a second
)


def bound(host: str, port: int) -> socket.socket:
    """A socket that holds the port and does not listen yet: 0 is any free one. RecipeError, RunError where it cannot be had."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
    except (OSError, UnicodeError, OverflowError):
        raise RecipeError(
            f"host is {host!r}, expected an address of this machine: 127.0.0.1 for itself alone, 0.0.0.0 for all"
        ) from None
    # With its protocol: asyncio sends at once only on what says it is TCP; else an answer waits 40 ms to be acknowledged.
    door = socket.socket(family, kind, protocol)
    try:
        if (
            os.name != "nt"
        ):  # there two programs could have one port then; here a port is free at once when a program has left
            door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind(address)
    except OSError as error:
        door.close()
        raise refused(error, host, port) from None
    return door


def listen(door: socket.socket, host: str) -> None:
    """Open the door; RunError where another program began to listen on the port since it was bound."""
    try:
        door.listen(BACKLOG)
    except OSError as error:
        raise refused(error, host, door.getsockname()[1]) from None


def refused(error: OSError, host: str, port: int) -> RecipeError | RunError:
    """Why a port cannot be had, as an error."""
    where = f"{shown(host)}:{port}"
    if error.errno == errno.EADDRINUSE:
        return RunError(f"{where} is taken by another program; name another with --port, or 0 for any free one")
    if error.errno == errno.EACCES:
        return RunError(f"{where} is not given to this user; name a port from 1024 on with --port")
    if error.errno == errno.EADDRNOTAVAIL:
        return RecipeError(f"host is {host!r}, which is no address of this machine; 127.0.0.1 is, and 0.0.0.0 for all")
    return RunError(f"{where} cannot be listened on ({error.strerror or error}); name another with --port or --host")


def is_of_this_machine(door: socket.socket) -> bool:
    """Whether none but this machine can reach it."""
    return ipaddress.ip_address(door.getsockname()[0].partition("%")[0]).is_loopback


def own_names(door: socket.socket, host: str, more: tuple[str, ...]) -> tuple[str, ...] | None:
    """The names that a request may ask for: those of this machine where none other can ask, and `more`; else None, any."""
    if is_of_this_machine(door):
        return (*LOOPBACK, host, door.getsockname()[0], *more)
    return more or None
