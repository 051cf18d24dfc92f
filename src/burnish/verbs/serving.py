"""The verb that answers over HTTP: serve."""

from __future__ import annotations

from typing import Annotated

import typer

from burnish.verbs.options import Device, Run


def serve(
    run: Run,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on; 0.0.0.0: whoever reaches this machine may ask")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any that is free")] = 8000,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="A name that requests may ask for, besides those of this machine; repeatable"
        ),
    ] = None,
    device: Device = "cpu",
    batch: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="IMAGES", help="Images that go through the network at a time (default: as in predict)"
        ),
    ] = None,
    most_bytes: Annotated[int, typer.Option(min=1, help="Of a request")] = 32_000_000,
    most_images: Annotated[int, typer.Option(min=1, help="Of a request")] = 32,
    most_pixels: Annotated[int, typer.Option(min=1, help="Of an image")] = 50_000_000,
    most_seconds: Annotated[float, typer.Option(min=1, help="For a request to come whole")] = 60.0,
    most_waiting: Annotated[int, typer.Option(min=1, help="Images in work at a time; more are told to come back")] = 64,
    most_connections: Annotated[
        int, typer.Option(min=1, help="Connections at a time; of one other address half")
    ] = 100,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No line for each request.")] = False,
) -> None:
    """Answer images over HTTP with a run's model, and with a page to drop them on, until Ctrl-C."""
    from burnish.ship.serve.limits import Limits
    from burnish.ship.serve.listening import bound

    limits = Limits(most_bytes, most_images, most_pixels, most_seconds, most_waiting, most_connections)
    with bound(host, port) as door:  # a port that is taken is told before PyTorch is loaded
        from burnish import api
        from burnish.watching import Lines

        api.serve(
            run, host=host, port=port, allow_host=allow_host or (), device=device, batch=batch, limits=limits,
            log=not quiet, watcher=Lines(), door=door,
        )  # fmt: skip
