"""A run's model over HTTP: small, and safe against whoever can reach it.

limits      how much is taken of whom
refusal     why a request is not answered, and the bytes of an answer
bodies      what of a body is held, and how long it may take to come
asking      from a request to images, and what is asked of them
batches     images that wait, answered together by one thread
guard       who may ask at all, the headers of every answer, the log
service     the answers: /predict, /model, /health and the page
listening   the port, and whose names it answers to
connection  how many connections, and how long one may take
server      from the open port to the last answer

`application(run)` is an ASGI application for a server of your own. It is imported when it is first used: a port that is taken is
told before PyTorch is loaded.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from burnish.imports import load_libraries

if TYPE_CHECKING:
    from burnish.ship.serve.service import application

__all__ = ["application"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'burnish.ship.serve' has no attribute {name!r}")
    load_libraries()
    return getattr(importlib.import_module("burnish.ship.serve.service"), name)
