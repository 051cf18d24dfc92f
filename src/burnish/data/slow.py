"""Small files that would be decoded for minutes or hours, told by their bytes before a decoder sees them."""

from __future__ import annotations

import re
import struct

_MOST_SCANS = 100  # of a JPEG; encoders write 1 to 12, and a scan of 64 million pixels takes 16 ms however short it is
# Other parts of one; an ICC profile has 255 at most, 100 MB of others 1,600; Pillow joins them one by one
_MOST_PIECES = 4000
_MOST_BETWEEN = (
    2**20
)  # bytes between parts before the first scan, which Pillow goes through one by one: 20 MB took 14 s
_MOST_CHUNKS = 100_000  # of a PNG; 32 MB of empty ones took 13 s, and a writer's have 4 kB and more
_MOST_PACKED = 1000  # texts and profiles of a PNG, each unpacked to 1 MB at most: 20,000 in 20 MB took over a minute
_MOST_BLOCKS = 100_000  # of a GIF before its first frame; 15 million of a byte took 1.3 GB
_MOST_STRIPS = (
    400_000  # and tiles of a TIFF; 100 million pixels have 390,000 of the smallest size; 5 million took a minute
)
_MOST_COMMENTS = 1000  # of an image in one of the formats of Netpbm, which are looked for again from each of them
_MOST_TEXT_BYTES = 8 * 2**20  # of numbers written as text; 40 MB take 15 s
_HEADER_BYTES = 2**16
# Of a BMP whose pixels are told by runs, which Pillow goes through in Python: 98 million pixels took 14 s, 40 MB of runs 8
_MOST_RUN_PIXELS, _MOST_RUN_BYTES = 2**24, 2**23
_PACKED_CHUNKS = (b"iCCP", b"zTXt", b"iTXt")
_STRIPS = (273, 324)  # TIFF's tags of where strips and tiles begin
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")  # of a part of a JPEG; not what stands within a scan
_END, _SCAN = 0xD9, 0xDA


def why_slow(data: bytes) -> str | None:
    """Why the bytes of an image are not given to a decoder; None where they may be."""
    if data[:2] == b"\xff\xd8":
        return _why_slow_jpeg(data)
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return _why_slow_png(data)
    if data[:4] == b"GIF8":
        return _why_slow_gif(data)
    if data[:2] in (b"II", b"MM"):
        return _why_slow_tiff(data)
    if data[:2] == b"BM":
        return _why_slow_bmp(data)
    if data[:1] == b"P" and data[1:2] in (b"1", b"2", b"3", b"4", b"5", b"6"):
        return _why_slow_netpbm(data, text=data[1:2] in (b"1", b"2", b"3"))
    return None


def _why_slow_jpeg(data: bytes) -> str | None:
    # Counting bytes is quick, and seldom leads to the exact count.
    if data.count(b"\xff\xda") <= _MOST_SCANS and data.count(b"\xff") <= _MOST_PIECES:
        return None
    scans = parts = between = 0
    at = 2
    while scans <= _MOST_SCANS and parts <= _MOST_PIECES:
        found = _MARKER.search(data, at)
        between += 0 if scans else (len(data) if found is None else found.start()) - at
        if between > _MOST_BETWEEN:
            return f"a JPEG of over {_MOST_BETWEEN:,} bytes that belong to none of its parts, which would take minutes to read"
        if found is None or (data[found.end() - 1] == _END and scans):  # before a scan an end ends nothing
            return None
        at = found.end()
        if data[at - 1] == _END:
            continue
        scans, parts = (scans + 1, parts) if data[at - 1] == _SCAN else (scans, parts + 1)
        if scans == 1 and data.count(b"\xff\xda", at) == 0:
            return None  # the last scan, and nothing of interest behind it
        at += max(2, int.from_bytes(data[at : at + 2], "big"))
    if scans > _MOST_SCANS:
        return f"a JPEG of over {_MOST_SCANS} scans, which would take minutes to read"
    return f"a JPEG of over {_MOST_PIECES:,} parts, which would take minutes to read"


def _why_slow_png(data: bytes) -> str | None:
    # Counting bytes is quick, and seldom leads to the exact count; an empty chunk has 12.
    if len(data) <= 12 * _MOST_CHUNKS and sum(map(data.count, _PACKED_CHUNKS)) <= _MOST_PACKED:
        return None
    at, packed = 8, 0
    for _ in range(_MOST_CHUNKS):
        packed += data[at + 4 : at + 8] in _PACKED_CHUNKS
        if packed > _MOST_PACKED:
            return f"a PNG of over {_MOST_PACKED:,} texts and colour profiles, which would take minutes to read"
        at += 12 + int.from_bytes(data[at : at + 4], "big")
        if at >= len(data):
            return None
    return f"a PNG of over {_MOST_CHUNKS:,} chunks, which would take minutes to read"


def _why_slow_gif(data: bytes) -> str | None:
    if len(data) <= _MOST_BLOCKS:
        return None
    at = 13 + (3 << ((data[10] & 7) + 1) if data[10] & 0x80 else 0)  # behind the palette
    inside = False  # an extension, whose blocks each say how long they are; one of no bytes is the last
    for _ in range(_MOST_BLOCKS):
        first = data[at : at + 1]
        if not first or (not inside and first in b",;"):
            return None
        if inside:
            at, inside = at + 1 + first[0], first != b"\0"
        else:
            at, inside = at + (2 if first == b"!" else 1), first == b"!"
    return f"a GIF of over {_MOST_BLOCKS:,} blocks before its first picture, which would take gigabytes to read"


def _why_slow_tiff(data: bytes) -> str | None:
    if len(data) <= _MOST_STRIPS:  # each has a number of a byte at least
        return None
    order, big = "<" if data[:1] == b"I" else ">", data[2] == 43  # BigTIFF, of longer numbers
    place, number, tag = (order + kind for kind in (("Q", "Q", "HHQ8x") if big else ("I", "H", "HHI4x")))
    try:
        (at,) = struct.unpack_from(place, data, 8 if big else 4)
        (tags,) = struct.unpack_from(number, data, at)
    except (struct.error, OverflowError):
        return None
    at, size = at + struct.calcsize(number), struct.calcsize(tag)
    for begin in range(at, min(at + min(tags, 2**16) * size, len(data) - size + 1), size):
        kind, _, many = struct.unpack_from(tag, data, begin)
        if kind in _STRIPS and many > _MOST_STRIPS:
            return f"a TIFF of over {_MOST_STRIPS:,} strips or tiles, which would take minutes to read"
    return None


def _why_slow_bmp(data: bytes) -> str | None:
    if len(data) < 34 or struct.unpack_from("<I", data, 14)[0] < 40:  # an older header, which has no runs
        return None
    width, height, _, _, packing = struct.unpack_from("<iiHHI", data, 18)
    if packing not in (1, 2) or (abs(width * height) <= _MOST_RUN_PIXELS and len(data) <= _MOST_RUN_BYTES):
        return None
    most = f"{_MOST_RUN_PIXELS // 2**20} million pixels or {_MOST_RUN_BYTES // 2**20} MB"
    return f"a BMP packed by runs of over {most}; save it in another way"


def _why_slow_netpbm(data: bytes, *, text: bool) -> str | None:
    looked_at = data if text else data[:_HEADER_BYTES]
    if looked_at.count(b"\n#" if not text else b"#") > _MOST_COMMENTS:
        return f"an image with over {_MOST_COMMENTS:,} comments, which would take minutes to read"
    if text and len(data) > _MOST_TEXT_BYTES:
        return f"over {_MOST_TEXT_BYTES // 2**20} MB of numbers written as text; save it in another format"
    return None
