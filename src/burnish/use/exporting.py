"""A run's model written for other programs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from burnish.disk import expanded, read_plain_json
from burnish.measure.intervals import Interval, percent
from burnish.measure.verdict import MEAN_AP, Verdict, tested_in_words
from burnish.record.folder import HARDENED, RESULT, SLIM
from burnish.reports.hardening import sentence_of
from burnish.ship.bundle import read_bundle
from burnish.ship.card import NOTHING, Record, escaped
from burnish.ship.exported import PREPARED
from burnish.ship.formats import format_for
from burnish.use.finished import as_written


def export(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    to: str = "auto",
    input: str = PREPARED,
) -> Path:
    """Write a run's model in another format; returns the file. Its classes and preprocessing are in the .json beside it.

    to: "onnx", which takes any number of images; "openvino" (.xml and .bin) and "pt2" (torch.export), which do as well; "keras",
    for models that came from a Keras file: a .keras or .h5 file that Keras and TensorFlow open; "hub": a folder that timm and
    Hugging Face transformers open; "auto": as the name of `out` ends. out: by default the run's name, in the working folder.
    input: what the file takes, "prepared" images as the network did, or "pixels" of 0 to 255. Each is written only where the
    other framework gives the probabilities that burnish gives.
    """
    folder, path = expanded(run), None if out is None else expanded(out)
    format = format_for(to, path)
    path = path or Path(f"{folder.resolve().name}{format.suffix}")
    bundle = read_bundle(folder)
    if format.recorded:
        return format.write(bundle, path, input=input, record=_record(folder))
    return format.write(bundle, path, input=input)


def _record(folder: Path) -> Record:
    """What lies beside a package says of it: of a run, or of what `slim` or `harden` made of one; nothing beside one alone."""
    readers: dict[str, Callable[[dict[str, Any]], Record]] = {
        RESULT: _of_run,
        SLIM: lambda facts: Record((escaped(str(facts["proof"]["sentence"])),)),
        HARDENED: lambda facts: Record((escaped(sentence_of(facts)),)),
    }
    for name, read in readers.items():
        if (folder / name).is_file():
            with as_written(folder, files=name):
                return read(read_plain_json(folder / name))
    return NOTHING


def _of_run(facts: dict[str, Any]) -> Record:
    """The kept model's scores on the test images, and whether tuning helped."""
    verdict, scores = Verdict.from_json(facts["verdict"]), facts["scores"].get(facts["kept_role"])
    sentences = [verdict.sentence()]
    if scores is not None:
        several = verdict.score == MEAN_AP
        found = Interval.from_json(scores["mean_average_precision" if several else "accuracy"])
        said = f"Mean average precision {percent(found.value)}" if several else f"{percent(found.value)} right"
        images = tested_in_words(int(scores["n"]), verdict.groups)
        sentences.insert(
            0,
            f"{said} on {images} (95 % interval {percent(found.low)} to {percent(found.high)}), which were kept apart.",
        )
    return Record(tuple(sentences), str(facts["model"]["source"]))
