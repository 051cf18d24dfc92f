"""From the open port to the last answer: uvicorn, and the signals that stop it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import burnish
from burnish.errors import Interrupted, RunError
from burnish.runtime import Watcher
from burnish.ship.serve.connection import connections_within
from burnish.ship.serve.guard import HEADER_BYTES, Guard
from burnish.ship.serve.limits import Limits
from burnish.ship.serve.listening import BACKLOG

_PATIENCE_SECONDS = 7  # for what is in work when the service is stopped, of the ten in which it must have left
_HARD_SECONDS = 9.5
_STOPS = (signal.SIGINT, signal.SIGTERM)


def answer_until_stopped(
    app: Guard, door: socket.socket, *, limits: Limits, stop: threading.Event | None, watcher: Watcher
) -> None:
    """Answer on a socket that listens, until SIGINT, SIGTERM or `stop`; what is in work then is finished within seven seconds.

    A second signal ends it at once. Signals come to the main thread alone; in another, `stop` is the way to end it. watcher: told
    of what goes wrong beside all requests, such as that the system gives no more connections.
    """
    import uvicorn

    class Server(uvicorn.Server):
        """With signals that end it and nothing more: uvicorn's own raises them once more when it has left."""

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            if threading.current_thread() is not threading.main_thread():
                yield
                return
            before = {number: signal.signal(number, self.handle_exit) for number in _STOPS}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

        async def on_tick(self, counter: int) -> bool:
            self.should_exit = self.should_exit or (stop is not None and stop.is_set())
            return await super().on_tick(counter)

        def handle_exit(self, sig: int, frame: Any) -> None:
            if self.should_exit:
                _leave_at_once()
            self.should_exit = True
            if burnish.own_process:
                last = threading.Timer(_HARD_SECONDS, os._exit, (Interrupted.exit_code,))
                last.daemon = True
                last.start()

    config = uvicorn.Config(
        app, loop="asyncio", http=connections_within(limits), ws="none", lifespan="off", log_config=None,
        log_level="critical", access_log=False, proxy_headers=False, server_header=False, backlog=BACKLOG,
        h11_max_incomplete_event_size=HEADER_BYTES, timeout_graceful_shutdown=_PATIENCE_SECONDS,
    )  # fmt: skip
    with door, asyncio.Runner() as runner:
        runner.get_loop().set_exception_handler(lambda loop, what: watcher.say(_beside_requests(what)))
        runner.run(Server(config).serve(sockets=[door]))


def _beside_requests(what: dict[str, Any]) -> str:
    """What asyncio tells of an error that belongs to no request, in one line."""
    return f"{what.get('message', 'an error')}: {what.get('exception', '')!r}"[:300]


def require_no_loop() -> None:
    """RunError in a thread that has an event loop, which answering would stop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RunError(
        "an event loop runs in this thread, as in a notebook; start it beside: stop = threading.Event(); "
        "threading.Thread(target=burnish.serve, args=[run], kwargs={'stop': stop}).start(), and stop.set() ends it"
    )


def _leave_at_once() -> None:
    """End this process, or raise KeyboardInterrupt in one that is not burnish's own."""
    if burnish.own_process:
        os._exit(Interrupted.exit_code)
    raise KeyboardInterrupt
