"""What a model withstood, for a terminal of 80 columns, as a CSV, and as a page with pictures of what each severity is."""

from __future__ import annotations

import base64
import csv
import io
import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
from PIL import Image

from burnish.data.corruptions import CORRUPTIONS, SEVERITIES
from burnish.data.handling import HANDLINGS, STATES
from burnish.errors import shown
from burnish.measure.attack import CALLS, FAR, STARTS, STEPS
from burnish.measure.intervals import Interval, percent
from burnish.measure.robustness import State
from burnish.measure.verdict import difference_in_words
from burnish.measure.withstood import Attacked, Controls, Corrupted, Handled, Robustness
from burnish.reports.explain import png
from burnish.reports.plain import plain_page
from burnish.reports.words import Say, words_in

_WIDTH = 80  # columns
_SMALL, _LARGE = 96, 256  # pixels: up to the first every one is kept, beyond the second a picture is made smaller
BEGINS = "kind,name,severity"  # what the CSV begins with
_INTERVALS = ("score", "ece", "unfamiliar", "answered", "right_of_answered")


def lines(found: Robustness) -> list[str]:
    """The tables for a terminal, each line of 80 columns at the most."""
    told: list[str] = []
    if found.corrupted is not None:
        told += _corrupted_lines(found.corrupted, found)
    if found.files is not None:
        told += ["", *_file_lines(found.files, found)]
    if found.attacked is not None:
        told += ([""] if told else []) + _attacked_lines(found.attacked, found)
    if found.groups:
        told += _wrapped("intervals are of the groups that the data names, not of images")
    return told


def _corrupted_lines(part: Corrupted, found: Robustness) -> list[str]:
    told = [f"{found.score} on corrupted images: {_count(part.clean, part.of)}", ""]
    told += [f"{'%, severity':<16}{''.join(f'{one:>6}' for one in SEVERITIES)}   mean  {'points to clean':<22}"]
    for name in CORRUPTIONS:
        each = "".join(f"{_short(part.states[name, one].score)}" for one in SEVERITIES)
        told.append(f"{name:<16}{each}{_short(part.kinds[name].score, 7)}  {_drop(part.kinds[name])}")
    told = [line.rstrip() for line in told]
    worst = part.states[part.worst]
    told += ["", f"{'clean':<16}{_interval(part.clean.score)}", f"{'mean of all':<16}{_interval(part.mean.score)}"]
    told += [f"{'':<16}{_drop(part.mean)} points to clean"]
    told += [f"{'lowest':<16}{_interval(worst.score)}", f"{'':<16}{part.worst[0]}, severity {part.worst[1]}"]
    told += [f"{'ECE, %':<16}{_both(part.clean.ece, part.mean.ece)}"]
    if part.clean.unfamiliar is not None and part.mean.unfamiliar is not None:
        told += [f"{'unfamiliar, %':<16}{_both(part.clean.unfamiliar, part.mean.unfamiliar)}"]
    if part.clean.answered is not None and part.mean.answered is not None:
        told += [f"{'answered, %':<16}{_both(part.clean.answered, part.mean.answered)}"]
    if part.clean.right_of_answered is not None and part.mean.right_of_answered is not None:
        told += [f"{'  right, %':<16}{_both(part.clean.right_of_answered, part.mean.right_of_answered)}"]
        told += _wrapped(f"answered is what predict --reject {found.reject:g} answers, right the share of that")
    return told


def _file_lines(part: Handled, found: Robustness) -> list[str]:
    told = [f"{found.score} where the files of the same images were handled otherwise", ""]
    told += [f"{'figure: %':<16}{'':<36}  points to clean"]
    for name, one in HANDLINGS.items():
        each = "".join(f"{f'{figure:g}: {_bare(part.states[name, figure].score.value)}':<12}" for figure in one.figures)
        told.append(f"{name:<16}{each:<36}  {_drop(part.kinds[name])}".rstrip())
    name, figure = part.worst
    told += ["", f"{'lowest':<16}{_interval(part.states[name, figure].score)}", f"{'':<16}{name}, {figure:g}"]
    return [*told, *_wrapped("figures: " + "; ".join(f"{name}: {one.means}" for name, one in HANDLINGS.items()))]


def _attacked_lines(part: Attacked, found: Robustness) -> list[str]:
    told = [f"{found.score} on attacked images: {_count(part.clean, part.of)}"]
    told += _wrapped(
        "each value of the square that the network sees changed by at most epsilon of 255; "
        f"APGD: {STEPS} steps, {STARTS} starts; noise: as large, a control"
    )
    told += ["", f"{'epsilon':>7} {'noise':>7}{'FGSM':>7}{'APGD':>7}  {'under all, %':<22} points to clean"]
    for row in part.rows:
        mark = " " if row.whole else "*"
        each = "".join(_short(one.score, 7) for one in (row.noise, row.fgsm, row.apgd))
        limits = f"{_bare(row.all.score.value)} ({_bare(row.all.score.low)} to {_bare(row.all.score.high)})"
        told.append(f"{row.epsilon:>7g}{mark}{each}  {limits:<22} {_drop(row.all)}".rstrip())
    told += ["", f"{'clean':<16}{_interval(part.clean.score)}"]
    if not all(row.whole for row in part.rows):
        told += _wrapped(
            "* less than one step of a file's values: it tells of the network, no file holds such an image"
        )
    return [*told, *_wrapped(control_sentence(part.controls))]


def control_sentence(controls: Controls, say: Say = str) -> str:
    """Whether the attack can be believed to find what there is; say: from English to the page's language."""

    def counted(one: Interval) -> dict[str, Any]:
        return {"some": round(one.value * one.n), "all": one.n, "epsilon": f"{FAR:g}"}

    facts = say("%(some)s of %(all)s images have no slope") % counted(controls.flat)
    if controls.far is not None and controls.far.n:
        facts += say(", %(some)s of %(all)s withstand %(epsilon)s/255") % counted(controls.far)
    facts += say(", %(n)s fall to noise or one step and not to APGD") % {"n": controls.by_less}
    if controls.wavering:
        told = {"some": controls.wavering, "all": controls.flat.n, "calls": CALLS}
        facts += (
            say(", %(some)s of %(all)s are answered otherwise when asked again (slopes are means of %(calls)s)") % told
        )
    if controls.passed:
        return say("Controls of the attack passed: %(facts)s.") % {"facts": facts}
    return say("Careful, gradients may be masked, and then these shares are too high: %(facts)s.") % {"facts": facts}


def csv_of(found: Robustness) -> str:
    """A row for each state, shares from 0 to 1, each with its limits and the images it is of."""
    columns = [f"{name}{end}" for name in _INTERVALS for end in ("", "_low", "_high", "_n")]
    file = io.StringIO()
    writer = csv.DictWriter(
        file,
        [*BEGINS.split(","), "figure", "epsilon", *columns, "drop", "drop_low", "drop_high", "drop_p"],
        lineterminator="\n",
    )
    writer.writeheader()
    for row in _rows(found):
        writer.writerow(row)
    return file.getvalue()


def _rows(found: Robustness) -> Iterator[dict[str, Any]]:
    if (part := found.corrupted) is not None:
        yield {"kind": "corrupted", "name": "clean", **_cells(part.clean)}
        for (name, severity), state in part.states.items():
            figure = CORRUPTIONS[name].figures[severity - 1]
            yield {"kind": "corrupted", "name": name, "severity": severity, "figure": figure, **_cells(state)}
        for name, state in part.kinds.items():
            yield {"kind": "corrupted", "name": name, "severity": "mean", **_cells(state)}
        yield {"kind": "corrupted", "name": "mean", "severity": "mean", **_cells(part.mean)}
    if (handled := found.files) is not None:
        for (name, figure), state in handled.states.items():
            yield {"kind": "file", "name": name, "figure": figure, **_cells(state)}
        for name, state in handled.kinds.items():
            yield {"kind": "file", "name": name, "figure": "mean", **_cells(state)}
    if (part := found.attacked) is not None:
        yield {"kind": "attacked", "name": "clean", "epsilon": 0, **_cells(part.clean)}
        for row in part.rows:
            for name in ("noise", "fgsm", "apgd", "all"):
                yield {"kind": "attacked", "name": name, "epsilon": row.epsilon, **_cells(getattr(row, name))}


def _cells(state: State) -> dict[str, Any]:
    cells: dict[str, Any] = {}
    for name in _INTERVALS:
        if (one := getattr(state, name)) is not None and one.n:
            cells |= {name: one.value, f"{name}_low": one.low, f"{name}_high": one.high, f"{name}_n": one.n}
    if state.drop is not None:
        told = asdict(state.drop)
        cells |= {"drop": told["difference"], **{f"drop_{key}": told[key] for key in ("low", "high", "p")}}
    return cells


def page_of(found: Robustness, lang: str = "en") -> str:
    """One self-contained HTML page, in English (en) or Chinese (zh): each state as a picture, with its score below."""
    say = words_in(lang)

    def drop(state: State) -> str:
        return _drop(state).replace(" to ", say(" to "))

    corrupted = None if found.corrupted is None else {
        "part": found.corrupted, "clean_picture": _picture(found.corrupted.example),
        "worst": say(found.corrupted.worst[0].replace("_", " ")),
        "rows": [
            {
                "name": say(name.replace("_", " ")), "means": say(one.means), "drop": drop(found.corrupted.kinds[name]),
                "mean": found.corrupted.kinds[name].score,
                "cells": [
                    {
                        "picture": _picture(one(found.corrupted.example[None], ["example"], severity=severity)[0]),
                        "figure": one.figures[severity - 1], "score": found.corrupted.states[name, severity].score,
                    }
                    for severity in SEVERITIES
                ],
            }
            for name, one in CORRUPTIONS.items()
        ],
    }  # fmt: skip
    files = None if found.files is None else [
        {
            "name": say(name.replace("_", " ")), "means": say(one.means), "drop": drop(found.files.kinds[name]),
            "cells": [
                {
                    "picture": _picture(found.files.examples[STATES.index((name, figure))]), "figure": figure,
                    "score": found.files.states[name, figure].score,
                }
                for figure in one.figures
            ],
        }
        for name, one in HANDLINGS.items()
    ]  # fmt: skip
    attacked = None if found.attacked is None else {
        "pictures": [_picture(one) for one in (*found.attacked.example, _difference(*found.attacked.example))],
        "controls": control_sentence(found.attacked.controls, say),
        "rows": [{"row": row, "drop": drop(row.all)} for row in found.attacked.rows],
        "part": found.attacked, "largest": int(np.abs(np.subtract(*found.attacked.example, dtype=np.int64)).max()),
    }  # fmt: skip
    return plain_page("robust.html", lang).render(
        lang="zh-Hans" if lang == "zh" else lang,
        found=found,
        corrupted=corrupted,
        files=files,
        attacked=attacked,
        severities=SEVERITIES,
        steps=STEPS,
        starts=STARTS,
    )


def _difference(clean: np.ndarray, other: np.ndarray) -> np.ndarray:
    """What was added, about grey, as strong as can be shown; uint8 [s s 3]."""
    away = other.astype(np.float32) - clean
    return np.rint(128 + away * (127 / max(1.0, float(np.abs(away).max())))).astype(np.uint8)


def _picture(pixels: np.ndarray) -> str:
    """A view as an address that holds it: of a small one every pixel, else a JPEG, half a PNG of noise."""
    if len(pixels) <= _SMALL:
        return "data:image/png;base64," + base64.b64encode(png(pixels)).decode()
    image, file = Image.fromarray(pixels), io.BytesIO()
    if len(pixels) > _LARGE:
        image = image.resize((_LARGE, _LARGE), Image.Resampling.BOX)
    image.save(file, "JPEG", quality=90, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _count(clean: State, of: int) -> str:
    n = clean.score.n
    return f"all {n:,}" if n == of else f"an even part, {n:,} of {of:,} (--most N takes more)"


def _bare(share: float) -> str:
    return percent(share).removesuffix(" %") if share == share else "-"


def _short(interval: Interval, width: int = 6) -> str:
    return f"{_bare(interval.value):>{width}}"


def _interval(interval: Interval) -> str:
    return f"{percent(interval.value):>7}   95 % interval {percent(interval.low)} to {percent(interval.high)}"


def _drop(state: State) -> str:
    """In points, with its limits: short, for a table."""
    return "" if state.drop is None else difference_in_words(asdict(state.drop)).replace(" points", "")


def _both(clean: Interval, mean: Interval) -> str:
    def one(interval: Interval) -> str:
        return f"{_bare(interval.value)} ({_bare(interval.low)} to {_bare(interval.high)})"

    return f"{one(clean)} clean, {one(mean)} corrupted"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(shown(text), _WIDTH, break_long_words=False, break_on_hyphens=False)
