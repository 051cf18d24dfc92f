"""The answers of a service: a run's model asked over HTTP, by the decoder and the network that `burnish predict` asks (P1)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from burnish.data.pixels import count_pixels
from burnish.disk import expanded
from burnish.errors import BurnishError, ModelError, NotARun, RecipeError, UnreadableImage
from burnish.granted import cores
from burnish.measure.verdict import Verdict
from burnish.record.folder import read_facts
from burnish.reports.served import page, page_policy
from burnish.runtime import Nobody, Watcher
from burnish.ship.answering import Answering, Asked, Prediction
from burnish.ship.predictor import NO_NUMBER, Predictor
from burnish.ship.serve.asking import Sent, asked_of, files_of, kind_of, raw_image
from burnish.ship.serve.batches import Batches
from burnish.ship.serve.bodies import Bodies, Gone
from burnish.ship.serve.guard import Guard
from burnish.ship.serve.limits import Limits
from burnish.ship.serve.refusal import Refusal, json_bytes

T = TypeVar("T")

_EXTRA = "pip install 'burnish[serve]'"
_KEPT_QUESTIONS = 64  # of which the limits are kept: to find those of one takes up to a second


def application(
    run: str | os.PathLike[str],
    *,
    device: str = "cpu",
    batch: int | None = None,
    limits: Limits | None = None,
    hosts: Sequence[str] | None = None,
    watcher: Watcher | None = None,
) -> Any:
    """An ASGI application that answers with a run's model, loaded and warmed; for a server of your own, such as uvicorn's.

    run: a run folder, or a package folder copied from one. device: as for `predict`. batch: images that go through the
    network at a time at the most; None: as many as in `predict`. hosts: the names that a request's Host
    header may have, without ports; None for any, as behind a proxy that sees to it. watcher: told of each request.
    limits: how much is taken of whom. Time for headers and the number of connections are the server's own to limit.
    ModelError where the packages for it are not installed; errors of `predict` where the run or the device cannot be used.
    """
    require_extra()
    predictor = Predictor.open(expanded(run), device)
    service = Service(predictor, record_of(expanded(run)), limits or Limits(), together=batch)
    service.warm()
    return service.guarded(hosts=hosts, watcher=watcher or Nobody())


def require_extra() -> None:
    """ModelError where the packages that a service needs are not installed."""
    try:
        import python_multipart  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ModelError(f"serving needs {error.name}, which is not installed; run: {_EXTRA}") from None


def record_of(folder: Path) -> dict[str, Any] | None:
    """What the run's record says of the model that is served; None beside a package that was copied alone."""
    try:
        facts = read_facts(folder)
        verdict = Verdict.from_json(facts["verdict"])
        role = str(facts["kept_role"])
        scores = dict(facts["scores"].get(role) or {})
        return {
            "verdict": verdict.sentence(),
            "score": verdict.score,
            "test": (verdict.tuned if role == "tuned" and verdict.tuned is not None else verdict.probe).to_json(),
            "scores": {name: scores.get(name) for name in ("balanced_accuracy", "macro_f1", "log_loss", "auroc")},
        }
    except (NotARun, KeyError, TypeError, ValueError, AttributeError):
        return None


class Service:
    """A predictor and what stands before it: bodies, decoding threads, batches."""

    def __init__(
        self, predictor: Predictor, record: Mapping[str, Any] | None, limits: Limits, *, together: int | None = None
    ) -> None:
        self.predictor, self.record, self.limits = predictor, record, limits
        self._together = together or predictor.batch
        self.batches = Batches(predictor.judged, together=self._together, waiting=limits.waiting)
        self._bodies = Bodies(limits)
        self._decoding = ThreadPoolExecutor(cores(), thread_name_prefix="decode")
        self._settled = lru_cache(_KEPT_QUESTIONS)(self._settle)

    def warm(self) -> None:
        """Make the fast form of the network, and have it answer one image and a full batch; what is wrong with it is told now.

        By the thread that is going to compute: torch's own threads are others for each that asks, and where another had warmed up
        the first request took 115 to 136 ms, the second mostly 60.
        """
        side = self.predictor.bundle.preprocess.size
        for count in (1, self._together):
            for answer in self.batches.submit([np.zeros((side, side, 3), np.uint8)] * count):
                answer.result()

    def guarded(self, *, hosts: Sequence[str] | None, watcher: Watcher) -> Guard:
        """The whole ASGI application."""
        from starlette.applications import Starlette
        from starlette.exceptions import HTTPException
        from starlette.routing import Route

        routes = [
            Route("/predict", self._predict, methods=["POST"]),
            Route("/model", self._model, methods=["GET"]),
            Route("/health", self._health, methods=["GET"]),
            Route("/", self._page, methods=["GET"]),
        ]
        handlers: dict[Any, Any] = {
            Refusal: _refused,
            BurnishError: _mistaken,
            HTTPException: _unknown,
            Exception: _unforeseen,
        }
        inner = Starlette(routes=routes, exception_handlers=handlers)
        inner.router.redirect_slashes = False  # to an address made of what the request says its host is
        return Guard(inner, hosts=hosts, watcher=watcher)

    def close(self) -> None:
        """Take no more images; what is in work is answered."""
        self.batches.close()
        self._decoding.shutdown(wait=False)

    # ---- the routes ------------------------------------------------------------------------------------------------

    async def _predict(self, request: Any) -> Any:
        """POST /predict: a list of predictions, one an image."""
        asked = asked_of(request.query_params.multi_items())
        boundary = kind_of(request.headers.get("content-type", ""), request.headers.get("content-encoding", ""))
        with self.batches.room(1):  # else nothing need be read
            answering = await self._answering(asked)
        async with self._bodies.of(request) as body:
            sent = (
                raw_image(body) if boundary is None else await asyncio.to_thread(files_of, body, boundary, self.limits)
            )
            with self.batches.room(len(sent)):
                return _json(await _unless_gone(request, self._answers(sent, answering)))

    async def _health(self, request: Any) -> Any:
        """GET /health: that it answers, and how many images are in work."""
        return _json({"status": "ok", "images_in_work": self.batches.inside})

    async def _model(self, request: Any) -> Any:
        """GET /model: what the model is."""
        return _json(self.model())

    async def _page(self, request: Any) -> Any:
        """GET /: the page, in Chinese where that is what the browser asks for first, or ?lang=zh says so."""
        from starlette.responses import Response

        wanted = request.query_params.get("lang") or request.headers.get("accept-language", "")
        lang = "zh" if wanted.lower().startswith("zh") else "en"
        headers = {"content-security-policy": page_policy(), "vary": "accept-language"}
        return Response(page(self.model(), self._most(), lang), media_type="text/html", headers=headers)

    def model(self) -> dict[str, Any]:
        """What the model is: plain values, without a path of this machine."""
        bundle = self.predictor.bundle
        from_held_out = bundle.held_out is not None and not bundle.several
        return {
            "classes": list(bundle.classes),
            "several": bundle.several,
            "method": bundle.method,
            "base_model": without_folders(bundle.base_model),
            "base_sha256": bundle.base_sha256,
            "licence": bundle.licence,
            "preprocess": bundle.preprocess.to_json(),
            "created": bundle.created,
            "burnish_version": bundle.burnish_version,
            "tells": {
                "reject": from_held_out,
                "sets": from_held_out,
                "find": bundle.held_out is not None and from_held_out and bool(len(bundle.held_out.label)),
                "unfamiliar": bundle.familiarity is not None,
            },
            "limits": self._most(),
            "record": self.record,
        }

    def _most(self) -> dict[str, int]:
        return {"bytes": self.limits.bytes, "images": self.limits.images, "pixels": self.limits.pixels}

    # ---- an answer -------------------------------------------------------------------------------------------------

    async def _answering(self, asked: Asked) -> Answering:
        """What is asked, settled for this package; RecipeError or NoSuchName where it cannot say so."""
        key = (asked.top, asked.reject, asked.sets, tuple(asked.find.items()))
        return await asyncio.to_thread(self._settled, *key)

    def _settle(
        self, top: int, reject: float | None, sets: float | None, find: tuple[tuple[str, float], ...]
    ) -> Answering:
        return Asked(top, reject, sets, dict(find)).settled(self.predictor.bundle)

    async def _answers(self, sent: list[Sent], answering: Answering) -> list[dict[str, Any]]:
        """One prediction an image. Refusal where none of them can be read: 413 where that is for their size, else 422."""
        loop = asyncio.get_running_loop()
        read = await asyncio.gather(*(loop.run_in_executor(self._decoding, self._read, one) for one in sent))
        if len(refused := [one for one in read if isinstance(one, Refusal)]) == len(read):
            raise refused[0]
        good = [one for one in read if isinstance(one, np.ndarray)]
        judged = iter(await asyncio.gather(*map(asyncio.wrap_future, self.batches.submit(good))))
        rows = []
        for (name, _), one in zip(sent, read, strict=True):
            found, strange = (None, None) if isinstance(one, Refusal) else next(judged)
            if found is None or not np.isfinite(found).all():
                reason = one.sentence if isinstance(one, Refusal) else NO_NUMBER
                rows.append(Prediction(name, (), (), reason).to_json())
            else:
                rows.append(answering.prediction(name, found, strange=strange).to_json())
        return rows

    def _read(self, sent: Sent) -> np.ndarray | Refusal:
        """The plain view uint8 [s s 3] of an image, or why there is none."""
        try:
            if count_pixels(sent.content) > self.limits.pixels:
                return Refusal(413, f"more pixels than the {self.limits.pixels:,} that are taken; send a smaller image")
        except UnreadableImage as error:
            return Refusal(422, error.reason)
        read = self.predictor.pixels([sent.content])[0]
        return Refusal(422, read.reason) if isinstance(read, UnreadableImage) else read


def without_folders(name: str) -> str:
    """A network's name; of a file its own name alone, for its folders are nobody's business."""
    kind, divided, path = name.rpartition("=")
    return f"{kind}{divided}{os.path.basename(path.replace(os.sep, '/'))}" if os.path.isabs(path) else name


async def _unless_gone(request: Any, work: Awaitable[T]) -> T:
    """What the work comes to; Gone, and the work given up, where who asked leaves meanwhile."""
    task = asyncio.ensure_future(work)
    left = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Gone
        return task.result()
    finally:
        task.cancel()
        left.cancel()


def _json(value: Any) -> Any:
    from starlette.responses import Response

    return Response(json_bytes(value), media_type="application/json")


async def _refused(request: Any, refusal: Refusal) -> Any:
    from starlette.responses import Response

    return Response(refusal.body, refusal.status, refusal.headers, media_type="application/json")


async def _mistaken(request: Any, error: BurnishError) -> Any:
    """What is asked and cannot be told, or a network that has no memory."""
    status = 400 if isinstance(error, RecipeError) or not isinstance(error, ModelError) else 503
    return await _refused(request, Refusal(status, str(error)))


async def _unknown(request: Any, error: Any) -> Any:
    """An address that there is not, or not by that method."""
    told = {404: "there is no such address", 405: f"{request.method[:20]} is not answered here"}
    sentence = (
        f"{told.get(error.status_code, 'that is not answered')}; expected POST /predict, GET /, /model or /health"
    )
    response = await _refused(request, Refusal(error.status_code, sentence))
    response.headers.update(error.headers or {})
    return response


async def _unforeseen(request: Any, error: Exception) -> Any:
    return await _refused(request, Refusal(500, "something unforeseen happened; the service's log says what kind"))
