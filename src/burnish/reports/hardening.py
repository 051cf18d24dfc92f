"""What hardening came to, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from burnish.measure.intervals import percent
from burnish.measure.verdict import chance, difference_in_words, tested_in_words

_OPENINGS = {
    "more robust": "More robust",
    "not proven": "Not proven that it is more robust",
    "less robust": "Less robust",
}
STAYS, ORIGINAL = "original stays", "the run's own"
_BEYOND = {
    "more robust": "proven to be of the {kind} views",
    "not proven": "not proven that the {kind} views did it",
    "less robust": "without the {kind} views it would be better",
}


def sentence_of(facts: Mapping[str, Any]) -> str:
    """The verdict with its numbers."""
    attacked = facts.get("epsilon") is not None
    if facts["word"] == STAYS:
        return (
            f"The run's own weights stay: on {'attacked' if attacked else 'perturbed'} validation images nothing was clearly "
            "better that keeps what plain ones have; the test images were not looked at."
        )
    found, clean = facts["attacked"] if attacked else facts["corrupted"]["all"], facts["clean"]
    under = f"under {len(facts['kinds'])} kinds of corruption"
    if attacked:
        under = f"under attacks within {facts['epsilon']:g} of 255 ({found['n']:,} images)"
    images = tested_in_words(facts["n"], facts["groups"])
    return (
        f"{_OPENINGS[facts['word']]}: {percent(found['after']['value'])} right {under}, "
        f"{percent(found['before']['value'])} before ({difference_in_words(found['paired'])}, {chance(found['paired']['p'])}; "
        f"{images}); as they are {percent(clean['after']['value'])}, {percent(clean['before']['value'])} before "
        f"({difference_in_words(clean['paired'])}): a loss of more than {100 * facts['lose']:g} points is "
        f"{'ruled out' if facts['loss_ruled_out'] else 'not ruled out'}.{_unlike_in_words(facts)}{_control_in_words(facts)}"
    )


def _unlike_in_words(facts: Mapping[str, Any]) -> str:
    """What it came to under the kinds that resemble nothing in training: a gain under kin alone is no more than that."""
    if facts.get("epsilon") is not None or "word_unlike" not in facts:
        return ""
    found, proven = facts["corrupted"]["unlike"], facts["word_unlike"] != "not proven"
    return (
        f" Under those of them unlike any trained on {percent(found['after']['value'])}, "
        f"{percent(found['before']['value'])} before ({difference_in_words(found['paired'])}, "
        f"{chance(found['paired']['p'])}){'' if proven else ': not proven'}."
    )


def _control_in_words(facts: Mapping[str, Any]) -> str:
    """What plain views alone came to, and so what the perturbed ones did; or that nobody asked."""
    attacked = facts.get("epsilon") is not None
    if facts.get("control") is None:
        return " What as much training on plain views would have brought is not known; --control asks it."
    found, clean = facts["attacked"] if attacked else facts["corrupted"]["all"], facts["clean"]
    told = _BEYOND[facts["beyond_control"]].format(kind="attacked" if attacked else "perturbed")
    stays = ", of which the run's own weights were the best" if facts["control"].get("chosen") == ORIGINAL else ""
    return (
        f" Control, {facts['control']['training']}{stays}: {percent(found['control']['value'])}; the hardened one "
        f"{difference_in_words(found['beyond'])}, {chance(found['beyond']['p'])}, {told}; on images as they are "
        f"{percent(clean['control']['value'])}, the hardened one {difference_in_words(clean['beyond'])}."
    )


def lines_of(facts: Mapping[str, Any]) -> list[str]:
    """A table of what was right before and after, in shares of the images, with 95 % intervals of the difference."""
    if facts["word"] == STAYS:
        return []
    rows = [("as they are", facts["clean"])]
    if "attacked" in facts:
        rows.append((f"attacked within {facts['epsilon']:g} of 255", facts["attacked"]))
    rows += [("corrupted", facts["corrupted"]["all"])]
    titles = (("unlike", "kinds unlike any trained on"), ("akin", "kinds akin to those trained on"))
    rows += [(title, facts["corrupted"][name]) for name, title in titles if name in facts["corrupted"]]
    rows += [(f"  {kind}", told) for kind, told in facts["kinds"].items()]
    lines = _table(rows, "before", "paired")
    if facts.get("control") is not None:
        lines += ["", *_table([row for row in rows if not row[0].startswith(" ")], "control", "beyond")]
    return lines


def _table(rows: Sequence[tuple[str, Mapping[str, Any]]], other: str, paired: str) -> list[str]:
    """The hardened model beside another, row by row."""
    return [
        f"{'':<32}{other:>8}  {'after':>8}   difference, points",
        *(
            f"{title:<32}{percent(told[other]['value']):>8}  {percent(told['after']['value']):>8}   "
            f"{difference_in_words(told[paired]).replace(' points', '')}"
            for title, told in rows
        ),
    ]
