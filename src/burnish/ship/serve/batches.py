"""Micro-batching: images that wait are answered together, by the one thread that computes."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager

import numpy as np

from burnish.ship.serve.refusal import RETRY_SECONDS, Refusal

# float64 [n k], and bool [n] or None, of uint8 [n s s 3]
Compute = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]
Judged = tuple[np.ndarray, bool | None]  # of one image: float64 [k], and whether it is unlike the training images


class Batches:
    """A bounded queue before a network: nothing is waited for, what has come while a batch was computed is the next batch.

    compute: from images [n s s 3] to (probabilities [n k], whether each is strange [n] or None). together: images of a batch at
    the most. waiting: images that may be in work at a time, from before they are decoded to their answer.

    Images of a request that comes alone are batched as `burnish predict` batches them, and get the same bits.
    """

    def __init__(self, compute: Compute, *, together: int, waiting: int) -> None:
        self._compute, self._together, self._waiting = compute, together, waiting
        self._line: deque[tuple[np.ndarray, Future[Judged]]] = deque()
        self._changed = threading.Condition()
        self._inside, self._closed = 0, False
        self._process = 0  # that the thread belongs to: of a forked one there is none

    @property
    def inside(self) -> int:
        """Images in work."""
        return self._inside

    @contextmanager
    def room(self, images: int) -> Iterator[None]:
        """A place for so many images until they are answered; Refusal 503 where there is none."""
        with self._changed:
            if self._closed:
                raise Refusal(503, "the service is being stopped; ask again when it is back")
            if self._inside + images > self._waiting:
                raise Refusal(
                    503,
                    f"{self._inside} images are in work, and {self._waiting} are the most at a time; ask again in "
                    f"{RETRY_SECONDS} s",
                )
            self._inside += images
        try:
            yield
        finally:
            with self._changed:
                self._inside -= images

    def submit(self, images: list[np.ndarray]) -> list[Future[Judged]]:
        """The answers to come of uint8 [s s 3]; one that is cancelled while it waits is not computed."""
        answers: list[Future[Judged]] = [Future() for _ in images]
        with self._changed:
            if self._process != os.getpid():
                self._process = os.getpid()
                threading.Thread(target=self._work, name="burnish serve", daemon=True).start()
            self._line.extend(zip(images, answers, strict=True))
            self._changed.notify()
        return answers

    def close(self) -> None:
        """No more images are taken; those in work are answered."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _work(self) -> None:
        """Batch after batch, to the end of the process or until it is closed and nothing waits."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._line or self._closed)
                if not self._line:
                    self._process = 0
                    return
                taken = [self._line.popleft() for _ in range(min(self._together, len(self._line)))]
            wanted = [(image, answer) for image, answer in taken if answer.set_running_or_notify_cancel()]
            if wanted:
                self._answer(*zip(*wanted, strict=True))

    def _answer(self, images: tuple[np.ndarray, ...], answers: tuple[Future[Judged], ...]) -> None:
        try:
            found, strange = self._compute(np.stack(images))
        except BaseException as error:  # it is the askers' to see; the thread lives on
            for answer in answers:
                answer.set_exception(error)
            return
        for at, answer in enumerate(answers):
            answer.set_result((found[at], None if strange is None else bool(strange[at])))
