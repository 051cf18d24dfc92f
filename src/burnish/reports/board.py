"""A run for TensorBoard: event files of tensorboard's own records, without torch or tensorflow."""

from __future__ import annotations

import io
import os
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.text.metadata import create_summary_metadata
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util.tensor_util import make_tensor_proto

from burnish.errors import shown
from burnish.measure.scores import matrix_from
from burnish.measure.verdict import Verdict
from burnish.record.folder import plain, plain_disk_errors

_MATRIX_PIXELS = 640  # least side of the confusion image
_MOST_COUNTED = 25  # classes; in a larger matrix a cell has no room for its count
_MOST_PICTURED = 640  # classes, a pixel each
_HIT, _MISS = (31, 95, 139), (180, 84, 26)  # colours, RGB, of right and wrong answers: the report's


class Board:
    """Writes the event file of one run, row by row; what was written is on disk when a method returns.

    In this thread: tensorboard's EventFileWriter has one of its own, whose traceback is all that a user sees of a full disk.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._step = folder, 0
        with plain_disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            # TensorBoard takes files by "tfevents", in the order of their names.
            name = f"events.out.tfevents.{time.time_ns():020d}.{platform.node()}.{os.getpid()}"
            self._file = RecordWriter(open(folder / name, "xb"))  # noqa: SIM115  # closed with the board
        self._add(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def __enter__(self) -> Board:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        """Numbers by tag, such as {"val/accuracy": 0.91}; those that are None or not a number are left out."""
        finite = {tag: float(value) for tag, value in values.items() if value is not None and np.isfinite(value)}
        self._step = max(self._step, step)
        self._write(Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in finite.items()]), step)

    def images(self, tag: str, pixels: np.ndarray, step: int = 0) -> None:
        """Images uint8 [n s s 3] as one sheet."""
        across = int(np.ceil(np.sqrt(len(pixels))))
        side = pixels.shape[1]
        sheet = np.zeros((-(-len(pixels) // across) * side, across * side, 3), np.uint8)
        for at, one in enumerate(pixels):
            top, left = at // across * side, at % across * side
            sheet[top : top + side, left : left + side] = one
        self._write(Summary(value=[_picture(tag, Image.fromarray(sheet))]), step)

    def confusion(self, tag: str, answers: np.ndarray, labels: np.ndarray, classes: int, step: int) -> None:
        """The confusion matrix of answers [n] against labels [n]; of more classes than a picture can show, nothing."""
        if classes > _MOST_PICTURED:
            return
        matrix = np.bincount(labels * classes + answers, minlength=classes * classes).reshape(classes, classes)
        self._write(Summary(value=[_image(tag, matrix)]), step)

    def finish(self, facts: Mapping[str, Any]) -> None:
        """What is known at the end: test scores, confusion matrix, recipe. The facts are those of `page.render`."""
        facts = plain(dict(facts))
        scores = facts.get("scores") or {}
        self.scalars(self._step, {f"test/accuracy/{role}": one["accuracy"]["value"] for role, one in scores.items()})
        several = {
            role: one["mean_average_precision"] for role, one in scores.items() if "mean_average_precision" in one
        }
        self.scalars(self._step, {f"test/mAP/{role}": one["value"] for role, one in several.items()})
        kept = scores.get("probe" if facts.get("kept_role", facts.get("kept")) == "probe" else "tuned") or next(
            iter(scores.values()), None
        )
        if kept is not None:
            self.scalars(self._step, {"test/accuracy": kept["accuracy"]["value"]})
            if kept.get("confusion") and len(kept["per_class"]) <= _MOST_PICTURED:
                self._write(Summary(value=[_image("test/confusion", matrix_from(kept["confusion"]))]), self._step)
            self._write(Summary(value=[_text("test/classes", _class_lines(kept["per_class"]))]), self._step)
        if facts.get("verdict"):
            sentence = Verdict.from_json(facts["verdict"]).sentence()
            self._write(Summary(value=[_text("verdict", [sentence])]), self._step)
        if facts.get("recipe"):
            settings = {name: _setting(value) for name, value in facts["recipe"].items()}
            lines = [f"{name} = {value}" for name, value in settings.items()]
            self._write(Summary(value=[_text("recipe", lines)]), self._step)
            self._write(hparams_pb(settings), self._step)

    def close(self) -> None:
        """Finish the file; closing twice does nothing."""
        with plain_disk_errors(self._folder):
            self._file.close()

    def _write(self, summary: Summary, step: int) -> None:
        self._add(Event(wall_time=time.time(), step=step, summary=summary))

    def _add(self, event: Event) -> None:
        with plain_disk_errors(self._folder):
            self._file.write(event.SerializeToString())
            self._file.flush()


def board_of_compare(folder: Path, facts: Mapping[str, Any]) -> None:
    """One line of the HParams tab for each arm of a comparison that saw the test images."""
    for number, row in enumerate(facts["rows"], start=1):
        if row["test"] is None:
            continue
        with Board(folder / f"{number:02d}") as board:
            board._write(Summary(value=[_text("arm", [row["name"]])]), 0)
            board._write(hparams_pb({"model": row["model"], "method": row["method"]}), 0)
            values = {
                "test/accuracy": row["test"]["value"],
                "val/accuracy": row["validation"],
                "seconds": row["seconds"],
            }
            board.scalars(0, values)


def confusion_image(confusion: np.ndarray) -> Image.Image:
    """A picture of counts [k k], row: label, column: prediction; stronger colour: larger share of the row."""
    k = len(confusion)
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    strength = np.sqrt(share)[..., None]  # the root keeps a few mistakes visible among many right answers
    colours = np.where(np.eye(k, dtype=bool)[..., None], _HIT, _MISS)
    pixels = np.uint8(255.0 + strength * (colours - 255.0))
    cell = max(1, _MATRIX_PIXELS // max(k, 1))
    picture = Image.fromarray(pixels).resize((k * cell, k * cell), Image.Resampling.NEAREST)
    if k <= _MOST_COUNTED:
        pen = ImageDraw.Draw(picture)
        for row, column in np.argwhere(confusion):
            ink = "white" if strength[row, column, 0] > 0.6 else "black"
            at = ((column + 0.5) * cell, (row + 0.5) * cell)
            pen.text(at, str(confusion[row, column]), fill=ink, anchor="mm", font_size=min(28, cell * 0.4))
    return picture


def _setting(value: Any) -> bool | int | float | str:
    """A recipe's value as one of the kinds that the HParams tab can hold."""
    return value if isinstance(value, (bool, int, float, str)) else "none" if value is None else str(value)


def _image(tag: str, confusion: np.ndarray) -> Summary.Value:
    return _picture(tag, confusion_image(confusion))


def _picture(tag: str, picture: Image.Image) -> Summary.Value:
    file = io.BytesIO()
    picture.save(file, "PNG")
    height, width = picture.height, picture.width
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=file.getvalue())
    return Summary.Value(tag=tag, image=image)


def _text(tag: str, lines: Sequence[str]) -> Summary.Value:
    """Lines as an indented Markdown block, where no name can be markup (P10)."""
    block = "\n".join("    " + shown(line) for line in lines)
    tensor = make_tensor_proto([block.encode("utf-8", "backslashreplace")], dtype=None, shape=[1])
    metadata = create_summary_metadata(display_name=None, description=None)
    return Summary.Value(tag=f"{tag}/text_summary", tensor=tensor, metadata=metadata)


def _class_lines(per_class: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line a class, in the order of the confusion matrix."""
    return [f"{row:4d}  {one['hits']:5d} of {one['n']:5d} right  {one['name']}" for row, one in enumerate(per_class)]
