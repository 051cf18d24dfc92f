"""What a run's kept model and its frozen probe answered for each test image: predictions.csv, written and read."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from burnish.choose.material import Material
from burnish.choose.proof import Contender, Tested
from burnish.disk import text_of
from burnish.errors import NotARun, cell, shown, spoilt, uncelled
from burnish.labels import SEPARATOR, several
from burnish.record.folder import PREDICTIONS

_HEADER = ("path", "label", "answer", "confidence", "right", "probe_answer", "probe_confidence", "probe_right")
_MOST_CLASSES = 100  # with a column of probabilities each


@dataclass(frozen=True)
class Answers:
    """The test images of a run, and how right its kept model was on each."""

    paths: tuple[str, ...]
    labels: tuple[str, ...]  # of several classes an image, a|b
    right: np.ndarray  # bool [m], or float64 [m] of 0 to 1 with several classes an image
    groups: tuple[str, ...] | None = None  # where the data names groups of images
    contents: tuple[str, ...] | None = None  # hashes of their bytes, where they are known

    def of_contents(self, known: Mapping[str, str]) -> Answers:
        """With the content of each image, path -> hash."""
        return replace(self, contents=tuple(known.get(uncelled(path), "") for path in self.paths))


def table_of(tested: Sequence[Tested], kept: Contender, material: Material) -> str:
    """The table as CSV (RFC 4180): numbers and names, a row a test image.

    Then what the kept model makes of each class, in columns of their names, where there are not too many.
    """
    of_kept = next(one for one in tested if one.contender is kept)
    probe = tested[0]
    catalog, text = material.catalog, io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    groups = catalog.groups if material.test_groups is not None else None
    told = of_kept.probabilities[:, : len(catalog.classes) if len(catalog.classes) <= _MOST_CLASSES else 0]
    header = _HEADER if groups is None else (*_HEADER, "group")
    writer.writerow((*header, *map(_column, catalog.classes[: told.shape[1]])))
    columns = [_columns(one, material) for one in (of_kept, probe)]
    for row, entry in enumerate(material.test.ids):
        group = () if groups is None else (cell(groups[entry]),)
        named = (cell(catalog.paths[entry]), cell(catalog.label(entry)))
        chances = [f"{value:.6f}" for value in told[row]]
        writer.writerow((*named, *columns[0][row], *columns[1][row], *group, *chances))
    return text.getvalue()


def _column(name: str) -> str:
    """The heading of a class's column: its name, told apart from the other columns'."""
    return f"{name} (class)" if name in (*_HEADER, "group") else cell(name)


def read_answers(run: Path) -> Answers:
    """What `table_of` wrote into a run folder. NotARun when it is not there or damaged."""
    file = run / PREDICTIONS
    try:
        rows = list(csv.DictReader(io.StringIO(text_of(file), newline=""), strict=True))
        right = [row["right"] for row in rows]
        values = np.array([value == "1" for value in right]) if set(right) <= {"0", "1"} else np.array(right, float)
        groups = tuple(row["group"] for row in rows) if rows and "group" in rows[0] else None
        return Answers(tuple(row["path"] for row in rows), tuple(row["label"] for row in rows), values, groups)
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, ValueError) as error:
        raise NotARun(
            f"{shown(str(file))} cannot be read ({spoilt(error)}); expected the folder of a run that this "
            "version of burnish fit finished"
        ) from None


def _columns(tested: Tested, material: Material) -> list[tuple[str, str, str]]:
    """(answer, confidence, right) of each test image."""
    chances, classes = tested.probabilities, material.catalog.classes
    sure = [f"{value:.6f}" for value in chances.max(1)]
    if not several(material.test_labels):
        answers = [cell(classes[at]) for at in chances.argmax(1)]
        right = [str(int(value)) for value in tested.right]
        return list(zip(answers, sure, right, strict=True))
    answers = [cell(SEPARATOR.join(classes[at] for at in np.flatnonzero(row))) for row in tested.said]
    return list(zip(answers, sure, [f"{value:.6f}" for value in tested.right], strict=True))
