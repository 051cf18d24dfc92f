"""What a run tells while it trains: JSON lines, TensorBoard scalars, lines for the onlooker."""

from __future__ import annotations

import shutil
from typing import Any

from burnish.choose.ledger import Ledger
from burnish.choose.tuning import Candidate
from burnish.reports.board import Board
from burnish.result import BOARD, HISTORY, RunFolder
from burnish.runtime import Watcher
from burnish.train.loop import Epoch


class Journal:
    """The history of a run, as JSON lines, TensorBoard scalars and lines for the onlooker.

    history.jsonl holds no times: a run that died and went on writes the same bytes as one that did not.
    """

    def __init__(self, folder: RunFolder, watcher: Watcher, ledger: Ledger) -> None:
        self.folder, self.watcher = folder, watcher
        known = ledger.get("tuning")
        self.rows: list[dict[str, Any]] = list(known[0]["rows"]) if known is not None else []
        shutil.rmtree(folder.path / BOARD, ignore_errors=True)  # what was written after the last state is told again
        self.board = Board(folder.path / BOARD)
        for row in self.rows:
            self._show(row)
        if ledger.resumed:
            self._write()

    def epoch(self, epoch: Epoch, candidate: Candidate) -> None:
        """One epoch's line."""
        row = {
            "epoch": epoch.number,
            "seconds": epoch.seconds,
            "size": epoch.size,
            "lr": epoch.learning_rate,
            "progress": epoch.progress,
            "steps": epoch.steps,
            "train_loss": epoch.train_loss,
            "val_accuracy": candidate.accuracy,
            "val_loss": candidate.loss,
            "images_per_second": epoch.images_per_second,
        }
        self.rows.append(row)
        self._write()
        self._show(row)
        self.watcher.say(
            f"epoch {epoch.number} at {epoch.size} px: loss {epoch.train_loss:.3f}, "
            f"validation {candidate.accuracy:.1%}, {epoch.images_per_second:.0f} images/s"
        )

    def close(self, facts: dict[str, Any]) -> None:
        """Add what is known at the end (confusion matrix, settings) and finish the event files."""
        self.board.finish(facts)
        self.board.close()

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
                "val/accuracy": row["val_accuracy"],
                "val/loss": row["val_loss"],
            },
        )


_TIMES = ("seconds", "images_per_second")
