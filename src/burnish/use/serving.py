"""A finished run's model as a service over HTTP."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Sequence

from burnish.disk import expanded
from burnish.errors import shown
from burnish.runtime import Nobody
from burnish.ship.predictor import Predictor
from burnish.ship.serve.limits import Limits
from burnish.ship.serve.listening import bound, is_of_this_machine, listen, own_names
from burnish.ship.serve.server import answer_until_stopped, require_no_loop
from burnish.ship.serve.service import Service, record_of, require_extra
from burnish.watching import Watching, settled_watcher


def serve(
    run: str | os.PathLike[str],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    allow_host: Sequence[str] = (),
    device: str = "cpu",
    batch: int | None = None,
    limits: Limits | None = None,
    log: bool = True,
    watcher: Watching = "auto",
    stop: threading.Event | None = None,
    door: socket.socket | None = None,
) -> None:
    """Answer images over HTTP with a run's model, until Ctrl-C or SIGTERM: POST /predict, GET /, /model, /health.

    run: a run folder, or a package folder copied from one. host: the address to listen on, by default of this machine alone.
    port: 0 for any free one. allow_host: names that requests may ask for in their Host header, besides those of this machine;
    where others can ask too, any name is taken unless some are given. device: as for `predict`. batch: images that go through the
    network at a time at the most; None: as many as in `predict`, and only so the same answers to the last digit. limits: how much
    is taken of whom. watcher: told when it is ready, with the address, and with log of each request. stop: ends it too, as
    beside the main thread, where no signal comes. door: a socket that is bound already, in the place of host and port.

    The model answers once before the port opens. For a server of your own there is `burnish.ship.serve.application`.
    RunError where the port is taken, ModelError where the packages for it are not installed, errors of `predict` for the run.
    """
    require_extra()
    require_no_loop()
    limits, watcher, began = limits or Limits(), settled_watcher(watcher), time.monotonic()
    door = door or bound(host, port)
    with door:
        predictor = Predictor.open(expanded(run), device)
        service = Service(predictor, record_of(expanded(run)), limits, together=batch)
        service.warm()
        classes, where = len(service.predictor.bundle.classes), door.getsockname()
        hosts = own_names(door, host, tuple(allow_host))
        app = service.guarded(hosts=hosts, watcher=watcher if log else Nobody())
        listen(door, host)
        name = f"[{where[0]}]" if ":" in where[0] else where[0]
        watcher.say(
            f"http://{name}:{where[1]}/  {classes:,} classes, {shown(service.predictor.bundle.method)}; loaded and warmed in "
            f"{time.monotonic() - began:.1f} s"
            f"{'' if is_of_this_machine(door) else '; whoever reaches this machine may ask'} (Ctrl-C ends it)"
        )
        try:
            answer_until_stopped(app, door, limits=limits, stop=stop, watcher=watcher)
        finally:
            service.close()
    watcher.say("stopped")
