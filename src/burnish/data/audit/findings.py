"""What an audit says: the kinds of findings, and one finding."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from burnish.errors import cell

Level = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Kind:
    """One kind of finding, and what to do about it."""

    name: str
    level: Level  # "error": it spoils the training or the proof, and --strict stops; "note": it is dealt with
    title: str
    advice: str
    exclude: bool = False  # whether the list for --quarantine proposes to leave the images out


KINDS = {
    kind.name: kind
    for kind in (
        Kind("leak", "error", "Test or validation images that are also in train",
             "Take them out of one split: a score on images that were trained on proves nothing."),
        Kind("group_leak", "error", "Groups on both sides of a split",
             "Move each group to one split, or leave the splits out to have them drawn."),
        Kind("label_conflict", "error", "The same picture under different labels",
             "Look at each and keep one label: as it is, one of them is taught wrong. The list leaves out all of them.", True),
        Kind("unreadable", "error", "Files that cannot be read", "Replace or remove them. They are not used.", True),
        Kind("truncated", "error", "Truncated files", "Fetch them again. They are not used.", True),
        Kind("not_an_image", "error", "Files that are no images", "Remove them, or convert them. They are not used.", True),
        Kind("unread_format", "error", "Files in a format that is not read",
             "Save them as JPEG or PNG. They are not used.", True),
        Kind("label_error", "warning", "Labels that are likely wrong",
             "Look at the first ones and mend what is wrong; some are right and merely hard."),
        Kind("class_gap", "warning", "Classes that a split lacks",
             "Add images of the class there, or take the class out."),
        Kind("exact_duplicate", "warning", "Files with the same bytes", "Keep one of each.", True),
        Kind("near_duplicate", "warning", "Pictures that are nearly the same",
             "Keep one of each, or give them one group. Drawn splits keep them on one side."),
        Kind("blank", "warning", "Blank images", "Remove them.", True),
        Kind("narrow", "warning", "Images that use little of their range",
             "See whether they show what they should; if so, scale them all by one factor, so that the brightest are white."),
        Kind("outlier", "warning", "Images unlike all others", "See whether they belong to the set."),
        Kind("one_class", "warning", "Fewer than two classes",
             "Give each class a folder of its own: DATA/cat/1.jpg, DATA/dog/1.jpg."),
        Kind("classes_within", "warning", "Classes that hold the same folders",
             "Where those are the classes, put the images of each into one folder, or list them in a CSV with the columns "
             "path,label,group."),
        Kind("several_in_one", "warning", "Labels that may be several classes",
             "Separate classes with | where an image has several."),
        Kind("missing_label", "warning", "Classes that may stand for no label",
             "Fill in the labels, or take the images out."),
        Kind("thin_class", "warning", "Classes with few images", "Add images, or merge the class with another."),
        Kind("imbalance", "warning", "Unequal classes",
             "Add images of the small ones. burnish draws them more often, or weighs them more (--balance)."),
        Kind("stray_folder", "warning", "Folders that may be no class",
             "Move them out of the data folder if they are none."),
        Kind("twin_class", "warning", "Classes that may be one",
             "Give both one name: apart, a model learns to tell a class from itself."),
        Kind("tiny", "warning", "Tiny images", "Look for larger originals: little can be seen on them."),
        Kind("huge", "note", "Very large images", "Shrink them to save time; they are read as they are."),
        Kind("extreme_aspect", "warning", "Very long or tall images",
             "Crop them: a network sees the middle square, or a squeezed one."),
        Kind("wrong_suffix", "note", "Files whose suffix says another format",
             "Rename them; they are read by their content."),
        Kind("animated", "note", "Images of several frames or pages", "The first one alone is used."),
        Kind("odd_mode", "note", "Images of a rare colour mode", "They are converted to 8-bit RGB, as everywhere in burnish."),
        Kind("exif_rotated", "note", "Images that their EXIF turns", "They are turned upright, as everywhere in burnish."),
        Kind("ignored", "note", "Other files", "Nothing, if they are no images."),
    )
}  # fmt: skip
_ORDER = {name: place for place, name in enumerate(KINDS)}


@dataclass(frozen=True)
class Finding:
    """One case: a file, some files that are the same, a class, a group."""

    kind: str  # a name of KINDS
    paths: tuple[str, ...]  # of the catalogue; () for what is about classes
    evidence: str  # what was measured or compared
    subject: str = ""  # the class, group or folder it is about, where it is not about files
    rank: float = 0.0  # among those of its kind, the largest first

    @property
    def level(self) -> Level:
        """How bad it is."""
        return KINDS[self.kind].level

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def in_order(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The worst kinds first, and of each kind what ranks highest; equal ones by path."""
    return tuple(sorted(findings, key=lambda one: (_ORDER[one.kind], -one.rank, one.paths, one.subject)))


def counted(findings: Iterable[Finding]) -> dict[str, int]:
    """kind -> findings of it, the worst kinds first."""
    counts = Counter(one.kind for one in findings)
    return {name: counts[name] for name in KINDS if counts[name]}


def by_kind(findings: Sequence[Finding], *, cases: int) -> list[dict[str, Any]]:
    """A row for each kind that was found, the worst first: its name, title, level, advice, number, and the first cases."""
    rows = []
    for kind in KINDS.values():
        own = [one for one in findings if one.kind == kind.name]
        if own:
            rows.append(
                {
                    "name": kind.name,
                    "title": kind.title,
                    "level": kind.level,
                    "advice": kind.advice,
                    "count": len(own),
                    "cases": [one.to_json() for one in own[:cases]],
                }
            )
    return rows


def in_a_sentence(findings: Sequence[Finding]) -> str:
    """The worst kinds with their numbers; "" without findings above a note."""
    return in_words(counted(findings))


def in_words(found: Mapping[str, int], *, most: int = 4) -> str:
    """The same from kind -> number."""
    counts = {name: count for name, count in found.items() if name in KINDS and KINDS[name].level != "note"}
    words = [f"{count:,} {_PLURAL[name] if count != 1 else _SINGULAR[name]}" for name, count in counts.items()]
    left = len(words) - most
    more = f" and {left} more kind{'s' if left > 1 else ''}" if left > 0 else ""
    return ", ".join(words[:most]) + more


_SINGULAR = {name: name.replace("_", " ") for name in KINDS} | {
    "unreadable": "unreadable file", "truncated": "truncated file", "not_an_image": "file that is no image",
    "unread_format": "file in a format that is not read",
    "blank": "blank image", "tiny": "tiny image", "extreme_aspect": "very long image", "label_error": "likely label error",
    "class_gap": "case of a class missing in a split", "imbalance": "case of unequal classes",
    "thin_class": "class with few images",
    "near_duplicate": "set of near-duplicates", "exact_duplicate": "set of exact duplicates",
    "narrow": "image in a part of its range", "one_class": "class alone",
    "classes_within": "set of folders that all classes hold",
    "several_in_one": "label of perhaps several classes", "missing_label": "class that may stand for no label",
}  # fmt: skip
_PLURAL = {name: words + "s" for name, words in _SINGULAR.items()} | {
    "not_an_image": "files that are no images", "unread_format": "files in a format that is not read",
    "class_gap": "cases of classes missing in a split",
    "imbalance": "cases of unequal classes", "thin_class": "classes with few images",
    "near_duplicate": "sets of near-duplicates", "exact_duplicate": "sets of exact duplicates",
    "narrow": "images in a part of their range", "one_class": "classes alone",
    "classes_within": "sets of folders that all classes hold", "several_in_one": "labels of perhaps several classes",
    "missing_label": "classes that may stand for no label",
}  # fmt: skip


HEADER = ("kind", "level", "path", "exclude", "evidence", "with", "case")


def csv_of(findings: Sequence[Finding]) -> str:
    """Findings as CSV, a line a file; `exclude` is yes where --quarantine shall leave the file out.

    Of files that are the same the first is kept.
    """

    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(HEADER)
    for case, one in enumerate(findings, start=1):
        proposed = KINDS[one.kind].exclude
        keeps_first = one.kind == "exact_duplicate"
        for place, path in enumerate(one.paths or (one.subject,)):
            exclude = "yes" if proposed and one.paths and not (keeps_first and place == 0) else ""
            more = len(one.paths) - 2  # besides itself and the one that is named
            beside = one.paths[0 if place else 1] + (f" and {more} more" if more else "") if more >= 0 else ""
            table.writerow((one.kind, one.level, cell(path), exclude, cell(one.evidence), cell(beside), case))
    return text.getvalue()
