"""Findings on single files: what cannot be read, what is not what it says, what shows nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

import numpy as np

from burnish.data.audit.findings import Finding
from burnish.data.cache import Pixels
from burnish.data.catalog import Catalog, Named
from burnish.data.contrast import spread_of
from burnish.data.formats import FORMATS
from burnish.data.looks import MODES

_SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jfif", ".mpo"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm"),
    "AVIF": (".avif",),
}
_USUAL_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")
_TINY, _HUGE = 32, 50_000_000  # pixels: of the short side, and of all
_LONGEST = 4.0  # times the short side
_BLANK, _NEARLY = 1.5, 4.0  # standard deviation of grey, of 255
_MARK = 32  # greys, of 255, by which a pixel of a blank image differs at most: what differs more is a scratch or a line
_DEEP = "; 12 bits in a file of 16 look black"


def file_findings(catalog: Catalog, pixels: Pixels) -> Iterator[Finding]:
    """All findings on single files of the catalogue; pixels: of its readable images."""
    for one in (*catalog.named, *pixels.named):
        kind = _kind_of(one)
        if kind is not None:
            yield Finding(kind, (one.path,), one.reason)
    headers, (spread, farthest) = pixels.looks.headers, _spreads(pixels)
    blank = (spread < _NEARLY) & (farthest < _MARK)
    deep = np.isin(headers["mode"], [MODES.index(mode) for mode in MODES if mode.startswith(("I", "F"))])
    narrow = _narrow(catalog, pixels, blank, deep)
    for row, entry in enumerate(pixels.ids):
        path, header = catalog.paths[entry], headers[row]
        yield from _on_header(path, header)
        if blank[row]:
            words = "blank" if spread[row] < _BLANK else "nearly blank"
            kind = "narrow" if narrow[row] else "blank"
            beside = "; so are most of its class" if catalog.labels.ndim == 1 else "; so are most images"
            more = _DEEP if deep[row] else beside if narrow[row] else ""
            yield Finding(
                kind, (path,), f"{words}: its greys spread by {spread[row]:.1f} of 255{more}", rank=-spread[row]
            )


def _narrow(catalog: Catalog, pixels: Pixels, blank: np.ndarray, deep: np.ndarray) -> np.ndarray:
    """bool [n]: which of the blank ones may show something: of more than 8 bits, or of a class of which most are blank."""
    labels = catalog.labels[pixels.ids]
    if labels.ndim == 2:
        return blank & (deep | (blank.mean() > 0.5))
    of_class = np.bincount(labels, minlength=len(catalog.classes))
    share = np.bincount(labels, blank, len(catalog.classes)) / np.maximum(1, of_class)
    return blank & (deep | ((share > 0.5) & (of_class > 2))[labels])


def _spreads(pixels: Pixels) -> tuple[np.ndarray, np.ndarray]:
    """The standard deviation of grey in each image [n], and how far its farthest grey lies from the middle one, of 255."""
    return spread_of(np.asarray(pixels.contrasts[: len(pixels.ids)]))


def _on_header(path: str, header: np.void) -> Iterator[Finding]:
    kind = FORMATS[header["format"]] if header["format"] >= 0 else None
    width, height = int(header["width"]), int(header["height"])
    suffix = PurePosixPath(path).suffix.lower()
    if (
        kind is not None
        and suffix
        and suffix not in _SUFFIXES[kind]
        and any(suffix in one for one in _SUFFIXES.values())
    ):
        yield Finding("wrong_suffix", (path,), f"{kind} content under the suffix {suffix}")
    if header["frames"]:
        yield Finding("animated", (path,), "more than one frame")
    mode = MODES[header["mode"]] if header["mode"] >= 0 else "another"
    if kind is not None and mode not in _USUAL_MODES:
        yield Finding("odd_mode", (path,), f"{kind} of mode {mode}")
    if header["orientation"] in range(2, 9):
        yield Finding("exif_rotated", (path,), f"EXIF orientation {int(header['orientation'])}")
    if width and height:
        short, long = sorted((width, height))
        said = f"{width} × {height} pixels"
        if short < _TINY:
            yield Finding("tiny", (path,), said, rank=-short)
        if width * height > _HUGE:
            yield Finding("huge", (path,), said, rank=width * height)
        if long > _LONGEST * short:
            yield Finding("extreme_aspect", (path,), f"{said}, 1 : {long / short:.1f}", rank=long / short)


def _kind_of(named: Named) -> str | None:
    """The kind of finding that a file that is not used makes; None for what other findings tell."""
    reason = named.reason
    if reason.startswith("left out by "):
        return None
    if reason == "a folder without images":
        return "stray_folder"
    if reason.startswith("truncated"):
        return "truncated"
    if reason.startswith("not an image: ignored"):
        return "ignored"
    if " is not read: save it as" in reason:
        return "unread_format"
    if reason.startswith("not an image"):
        return "not_an_image"
    if "symbolic link" in reason or reason.startswith(("listed again", "an image beside the class folders")):
        return "ignored"
    return "unreadable"
