"""What a run tells while it trains: JSON lines, TensorBoard scalars, lines for the onlooker."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from burnish.choose.ledger import Ledger
from burnish.choose.limits import Sample
from burnish.choose.material import Material
from burnish.choose.tuning import Candidate, Tuning
from burnish.errors import RunError
from burnish.record.folder import BOARD, HISTORY, RunFolder
from burnish.reports.board import Board
from burnish.reports.projector import write_projector
from burnish.runtime import Watcher
from burnish.train.loop import Epoch


class Journal:
    """The history of a run, as JSON lines, TensorBoard scalars and lines for the onlooker.

    history.jsonl holds no times: a run that died and went on writes the same bytes as one that did not.
    """

    def __init__(self, folder: RunFolder, watcher: Watcher, ledger: Ledger) -> None:
        self.folder, self.watcher, self._warned = folder, watcher, False
        known = ledger.get("tuning")
        self.rows: list[dict[str, Any]] = list(known[0]["rows"]) if known is not None else []
        shutil.rmtree(folder.path / BOARD, ignore_errors=True)  # what was written after the last state is told again
        self._board: Board | None = None
        with self._if_the_disk_allows():
            for row in self.rows:
                self._show(row)
            if ledger.resumed:
                self._write()

    @property
    def board(self) -> Board:
        """TensorBoard's file; RunError where the disk refuses it."""
        self._board = self._board or Board(self.folder.path / BOARD)
        return self._board

    def begin(self, tuning: Tuning) -> None:
        """What training starts from: some views of the images."""
        if not self.rows:
            with self._if_the_disk_allows():
                self.board.images("train/views", tuning.sample(_VIEWS_SHOWN))

    def epoch(self, epoch: Epoch, candidate: Candidate, tuning: Tuning) -> None:
        """One epoch's line, the learning rate of each group, what is taken for what on the validation images."""
        row = {
            "epoch": epoch.number,
            "seconds": epoch.seconds,
            "size": epoch.size,
            "lr": epoch.learning_rate,
            "progress": epoch.progress,
            "steps": epoch.steps,
            "train_loss": epoch.train_loss,
            "val_accuracy": candidate.accuracy,
            "val_loss": candidate.loss if math.isfinite(candidate.loss) else None,
            "images_per_second": epoch.images_per_second,
            "gradient_norm": epoch.gradient_norm,
        }
        self.rows.append(row)
        material = tuning.material
        with self._if_the_disk_allows():
            self._write()
            self._caught_up()
            self._show(row)
            self.board.scalars(epoch.steps, {f"learning_rate/{name}": rate for name, rate in tuning.rates().items()})
            if not material.several:
                labels, classes = material.labels[material.val_rows], len(material.catalog.classes)
                self.board.confusion("val/confusion", candidate.logits.argmax(1), labels, classes, epoch.steps)
        self.watcher.say(
            f"epoch {epoch.number} at {epoch.size} px: loss {epoch.train_loss:.3f}, "
            f"validation {candidate.accuracy:.1%}, {epoch.images_per_second:.0f} images/s"
        )

    def features(self, sample: Sample, material: Material) -> None:
        """The features of held-out images, for the embedding projector."""
        rows = sample.held_rows
        labels = [material.catalog.label(entry) for entry in material.fitting.ids[rows]]
        with self._if_the_disk_allows():
            write_projector(
                self.folder.path / BOARD, sample.held_features, labels, np.asarray(material.fitting.plain[rows])
            )

    def close(self, facts: dict[str, Any]) -> None:
        """Add what is known at the end (confusion matrix, settings) and finish the event files."""
        with self._if_the_disk_allows():
            self.board.finish(facts)
        with self._if_the_disk_allows():
            self.board.close()

    @contextmanager
    def _if_the_disk_allows(self) -> Iterator[None]:
        """A disk that refuses the history is told once; the run goes on, and later lines bring the whole history."""
        try:
            yield
        except RunError as error:
            if not self._warned:
                self.watcher.say(f"the history could not be written: {error}")
            self._warned, self._board = True, None  # a file that was refused once takes nothing more

    def _caught_up(self) -> None:
        """A new file of TensorBoard's, after the disk refused one, with what it is to show from before."""
        if self._warned and self._board is None:
            for row in self.rows[:-1]:
                self._show(row)

    def _write(self) -> None:
        timeless = [{key: value for key, value in row.items() if key not in _TIMES} for row in self.rows]
        self.folder.write_rows(HISTORY, timeless)

    def _show(self, row: dict[str, Any]) -> None:
        self.board.scalars(
            row["steps"],
            {
                "train/loss": row["train_loss"],
                "train/learning_rate": row["lr"],
                "train/images_per_second": row["images_per_second"],
                "train/size": row["size"],
                "train/gradient_norm": row.get("gradient_norm"),
                "val/accuracy": row["val_accuracy"],
                "val/loss": row["val_loss"],
            },
        )


_TIMES = ("seconds", "images_per_second")
_VIEWS_SHOWN = 16


@dataclass(frozen=True)
class Record:
    """Where a run is written down."""

    folder: RunFolder
    ledger: Ledger  # what it goes on from
    journal: Journal  # what it tells while it trains

    @classmethod
    def of(cls, folder: RunFolder, ledger: Ledger, watcher: Watcher) -> Record:
        """With a journal that goes on where the ledger stands."""
        return cls(folder, ledger, Journal(folder, watcher, ledger))
