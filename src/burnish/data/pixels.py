"""The one decoder: from an image file to upright RGB pixels, and from those to squares (P1, P4, P8).

    decode ──► PIL image, upright, RGB ──► view    what the network sees when measuring and predicting
                                       └─► stored  the whole image, squashed, from which training crops are cut
    read_all decodes each file of a catalogue once and renders it in every form that is asked for.

Colours are taken as sRGB; an embedded ICC profile is not applied, as where the public weights were trained.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from burnish.data.catalog import Catalog, Named
from burnish.data.contents import is_drawn, plain_grey
from burnish.data.file import MAX_BYTES, TOO_LARGE, Refused, content_of, digest_of, is_hash
from burnish.data.file import content as _content
from burnish.data.formats import image_of, not_an_image
from burnish.data.netpbm import whitened
from burnish.data.slow import why_slow
from burnish.data.upright import as_rgb, orientation_of, upright, widen_colour_key
from burnish.errors import UnreadableImage, shown
from burnish.terms import WHITES, Preprocess

T = TypeVar("T")

MAX_PIXELS = 100_000_000  # of an image, checked on the header: 300 MB once decoded
_LARGE_PIXELS = 16_000_000  # decoding an image of 100 million pixels may take 2 GB, one of these a third of one
# Whose decoders hold copies of their own: 49 million pixels of WebP take 750 MB before they are an image
_COSTLY = {"WEBP": 2, "AVIF": 2}

DECODER = 5  # counted up when the same file would give other pixels, so that kept ones are not used
# A JPEG is decoded at a half, a quarter or an eighth while that leaves so many times the pixels needed
DRAFT_MARGIN = 2

Rendering = Callable[[Image.Image], np.ndarray]

_FAX = (2, 3, 4)  # TIFF's numbers of the packings of fax machines (CCITT)
_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
# An image longer than this many times its width is cut to its centre before it is enlarged: the plain view shows only
# the middle square, and a strip of 1 x 1,000,000 pixels would otherwise be enlarged to 256 x 256,000,000.
_LONGEST = 64


class Target(Protocol):
    """What rows are written to, such as an array [n s s 3]."""

    def __setitem__(self, row: int, pixels: np.ndarray, /) -> None: ...


@dataclass(frozen=True)
class Decoded:
    """The images of some catalogue entries, in the order of the entries asked for."""

    views: Mapping[str, Target]  # name -> uint8 [n s s 3]; the row of an unreadable image is as it was
    sizes: np.ndarray  # int32 [n 2], width and height of the upright image in pixels; zero where unreadable
    good: np.ndarray  # bool [n], False where unreadable
    named: tuple[Named, ...]  # the unreadable files, in order


class Need(NamedTuple):
    """What decoding must leave of an image."""

    side: int  # pixels of the short side
    white: int = WHITES[-1]  # as `Preprocess.white`


def decode(source: Path | bytes, *, name: str | None = None, at_least: Need | None = None) -> Image.Image:
    """The upright RGB image in a file, or in the bytes of one; transparency is laid over white.

    An image that would be transparent everywhere is taken for one whose alpha was never set: its colours count.

    `name` is what the error calls it. 16-bit and integer greys 0 to 65535 (or to the
    number that is white) and float greys 0 to 1 become 0 to 255.
    at_least: what is needed of it (see `enough`); a much larger JPEG is then decoded at a half, a quarter or an eighth, which is
    several times faster.
    Raises UnreadableImage, with the reason in plain words; nothing else, whatever the bytes are.
    """
    label = name if name is not None else "image in memory" if isinstance(source, bytes) else str(source)
    with quiet():
        return decode_aloud(source, label, at_least)


def decode_picture(picture: Image.Image, name: str, *, at_least: Need | None = None) -> Image.Image:
    """`decode` of an image in memory, as `picture_of` gives it: the pixels that a file of it has, without writing one.

    That would take most of a second for 12 million pixels, twenty times as long as a JPEG of them.
    """
    try:
        _require_size(picture)
        with quiet(), _room_for(picture.width * picture.height):
            return as_rgb(picture, WHITES[-1] if at_least is None else at_least.white)
    except Exception as error:  # as in `decode_aloud`
        raise UnreadableImage(name, _reason(error, b"")) from None


def count_pixels(data: bytes, *, name: str = "image in memory") -> int:
    """How many pixels the header of an image's bytes tells of, without decoding them; some number beyond `MAX_PIXELS` for more.

    Raises UnreadableImage for what is none or is not read anyway.
    """
    try:
        if (reason := why_slow(data)) is not None:
            raise Refused(reason)
        with quiet():
            image = image_of(data)
            return image.width * image.height
    except Image.DecompressionBombError:
        return MAX_PIXELS + 1
    except Exception as error:  # as in `decode_aloud`
        raise UnreadableImage(name, _reason(error, data)) from None


def enough(preprocess: Preprocess) -> Need:
    """What the plain view is made from.

    Whoever makes a plain view decodes for it alone, so that all get the same bits (P1); `DRAFT_MARGIN` leaves enough for
    the stored squares too, which are at most twice as large.
    """
    side = preprocess.size if preprocess.fit == "squash" else round(preprocess.size / preprocess.crop)
    return Need(side, preprocess.white)


def largest_grey(data: bytes) -> int:
    """The largest number in an image of greys deeper than 8 bits; that of 16 where its own header says how deep they are.

    0 for floats, whose white is 1. Raises UnreadableImage.
    """
    try:
        image = _opened(data, None)
        with _room_for(image.width * image.height):
            plain = plain_grey(image, getattr(image, "tag_v2", {}))
            return WHITES[-1] if plain is not image else 0 if image.mode == "F" else int(np.asarray(image).max())
    except Exception as error:  # as in `decode_aloud`
        raise UnreadableImage("image", _reason(error, data)) from None


def view(image: Image.Image, preprocess: Preprocess) -> np.ndarray:
    """The plain view of an upright RGB image: uint8 [s s 3], as `Preprocess` documents it.

    Equal, bit for bit, to torchvision's Resize and CenterCrop on the same image.
    """
    size, how = preprocess.size, _RESAMPLING[preprocess.interpolation]
    if preprocess.fit == "squash":
        return np.array(image.resize((size, size), how))
    image = _centre_of_strip(image)
    short, long = sorted(image.size)
    short_after = round(size / preprocess.crop)
    long_after = int(short_after * long / short)
    width, height = (short_after, long_after) if image.width <= image.height else (long_after, short_after)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.array(image.resize((width, height), how).crop((left, top, left + size, top + size)))


def stored(image: Image.Image, side: int) -> np.ndarray:
    """The whole image squashed to a square, bilinear, antialiased: uint8 [side side 3]; the caller keeps its shape."""
    return np.array(image.resize((side, side), Image.Resampling.BILINEAR))


def read_all(
    catalog: Catalog,
    indices: np.ndarray,
    renderings: Mapping[str, Rendering],
    out: Mapping[str, Target],
    *,
    at_least: Need | None = None,
    workers: int,
    done_before: int = 0,
    digests: Sequence[str] | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Decoded:
    """Decode the entries `indices` [n] once each and write every rendering of them into `out`.

    renderings: name -> what to make of an upright RGB image, e.g. {"plain": lambda image: view(image, preprocess)}.
    out: the same names -> where row i, of indices[i], is written: uint8 [n s s 3] or what takes such rows.
    at_least: as for `decode`. digests: of each file's bytes, as they were at the first look; one that changed since is bad,
    but for the items of a data set in Python, which may be drawn anew each time.
    on_progress is told the number of files done, those done before included, after each; what
    it raises stops the reading.
    The result does not depend on `workers` (threads; Pillow decodes outside the interpreter lock).
    """
    sizes, good = np.zeros((len(indices), 2), np.int32), np.zeros(len(indices), bool)

    def read(row: int) -> Named | None:
        index = int(indices[row])
        try:
            source = catalog.image(index)
            if digests is not None and is_hash(digests[row]) and not is_drawn(catalog.contents):
                source = content_of(source) if isinstance(source, Path) else source
                if digest_of(source) != digests[row]:
                    return Named(catalog.paths[index], "it changed while it was read; run again")
            image = decode_aloud(source, catalog.paths[index], at_least)
        except UnreadableImage as error:
            return Named(catalog.paths[index], error.reason)
        if digests is not None and not is_hash(digests[row]) and not is_drawn(catalog.contents):
            return Named(catalog.paths[index], "it could not be read when it was first looked at; run again")
        for name, rendering in renderings.items():
            out[name][row] = rendering(image)
        sizes[row], good[row] = image.size, True
        return None

    named = []
    with quiet():
        for done, problem in enumerate(one_by_one(read, len(indices), workers=workers), start=done_before + 1):
            if problem is not None:
                named.append(problem)
            if on_progress is not None:
                on_progress(done)
    return Decoded({name: out[name] for name in renderings}, sizes, good, tuple(named))


def one_by_one(work: Callable[[int], T], count: int, *, workers: int) -> Iterator[T]:
    """work(0), work(1), … from a pool of threads, in order, with few waiting at any time: an interrupt ends it soon."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    waiting: deque[Future[T]] = deque()
    try:
        for row in range(count):
            waiting.append(pool.submit(work, row))
            if len(waiting) >= 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing of Pillow's is printed inside: what it warns of (large images, odd tags) is judged by our own limits.

    Warning filters and loggers belong to the process, so threads may leave these behind; they silence Pillow alone.
    """
    logger = logging.getLogger("PIL")
    before = logger.level
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            logger.setLevel(before)


def decode_aloud(source: Path | bytes, label: str, at_least: Need | None) -> Image.Image:
    """`decode` that lets Pillow speak: for many threads within one `quiet`."""
    data = b""
    try:
        data = source if isinstance(source, bytes) else _content(source)
        if len(data) > MAX_BYTES:
            raise Refused(TOO_LARGE)
        image = _opened(data, None if at_least is None else at_least.side)
        with _room_for(image.width * image.height * _COSTLY.get(image.format or "", 1)):
            image.load()
            white = WHITES[-1] if at_least is None else at_least.white
            return upright(as_rgb(image, white), orientation_of(image))
    except Exception as error:  # a codec may raise anything on hostile bytes; all of it means the same to the user
        raise UnreadableImage(label, _reason(error, data)) from None


class _Room:
    """Lets so many pixels of large images be decoded at a time as one image may have; small ones are not counted."""

    def __init__(self) -> None:
        self.held, self.changed = 0, threading.Condition()

    @contextmanager
    def __call__(self, pixels: int) -> Iterator[None]:
        counted = pixels if pixels > _LARGE_PIXELS else 0
        if counted:
            with self.changed:
                self.changed.wait_for(lambda: not self.held or self.held + counted <= MAX_PIXELS)
                self.held += counted
        try:
            yield
        finally:
            if counted:
                with self.changed:
                    self.held -= counted
                    self.changed.notify_all()


_room_for = _Room()


def _opened(data: bytes, at_least: int | None) -> Image.Image:
    """The first frame of an image file's content, not yet decoded; a large JPEG is going to be in part."""
    if not data:
        raise Refused("the file is empty (0 bytes)")
    if (reason := why_slow(data)) is not None:
        raise Refused(reason)
    image = image_of(data)
    _require_size(image)
    if image.format == "TIFF" and _has_deep_planes(image.tag_v2):  # type: ignore[attr-defined]
        raise Refused("its colours lie apart, each of 16 bits: save it with 8 bits, or with its colours together")
    if image.format == "TIFF" and _is_undecided(image.tag_v2):  # type: ignore[attr-defined]
        raise Refused("a TIFF of greys that does not say whether 0 is black or white: save it again")
    image = whitened(image, data)
    widen_colour_key(image)
    if at_least is not None and min(image.size) >= 2 * DRAFT_MARGIN * at_least:
        side = DRAFT_MARGIN * at_least
        # JPEG alone knows how; of the scales it takes the least that leaves `side` both ways
        image.draft(None, (side, side))
    return image


def _require_size(image: Image.Image) -> None:
    """Refused where there are too many pixels to be read, or none."""
    if image.width * image.height > MAX_PIXELS:
        raise Refused(f"{image.width} x {image.height} pixels, more than the {MAX_PIXELS:,} that are read")
    if 0 in image.size:
        raise Refused("it has no pixels")


def _has_deep_planes(tags: Mapping[int, Any]) -> bool:
    """Whether a TIFF is one whose numbers Pillow takes for others: planes of more than 8 bits, not packed."""
    apart = tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2 and tags.get(TiffImagePlugin.COMPRESSION, 1) == 1
    bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
    return apart and len(bits) > 1 and max(bits) > 8


def _is_undecided(tags: Mapping[int, Any]) -> bool:
    """Whether a TIFF of greys lacks the tag that says which number is black; Pillow takes 0 for white. In a fax it is."""
    packing = tags.get(TiffImagePlugin.COMPRESSION, 1)
    return TiffImagePlugin.PHOTOMETRIC_INTERPRETATION not in tags and packing not in _FAX


def _reason(error: Exception, data: bytes) -> str:
    """Why these bytes are not read, in plain words."""
    if isinstance(error, Refused):
        return str(error)
    if isinstance(error, UnidentifiedImageError):
        return not_an_image(data)
    if isinstance(error, Image.DecompressionBombError):
        return f"more pixels than the {MAX_PIXELS:,} that are read"
    if isinstance(error, MemoryError):
        return "too large for the free memory"
    text = " ".join(shown(str(error)).split())[:120]
    if "truncated" in text.lower():
        return "truncated: the image data ends too early"
    return f"damaged: it cannot be decoded ({text or type(error).__name__})"


def _centre_of_strip(image: Image.Image) -> Image.Image:
    """The image, or of one longer than `_LONGEST` times its width the centre."""
    most = _LONGEST * min(image.size)
    if max(image.size) <= most:
        return image
    width, height = min(image.width, most), min(image.height, most)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
