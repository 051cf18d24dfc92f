"""10,000 damaged images in 14 encodings, and decompression bombs, through the one decoder.

    BURNISH_TEST_DATA=… python benchmarks/mutated.py > benchmarks/results/mutated.json

Every image is decoded and its header looked at, in a process of its own for each encoding and each bomb; printed are the
numbers used and named, the slowest, crashes and hangs over 5 s, and for bombs seconds and growth of memory.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import resource
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

N, SEED, HANG = 10_000, 0, 5.0
# ruff: noqa: E501
ENCODINGS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "JPEG": ("RGB", "JPEG", {"quality": 85}), "JPEG progressive": ("RGB", "JPEG", {"progressive": True}),
    "JPEG CMYK": ("CMYK", "JPEG", {}), "JPEG grey": ("L", "JPEG", {}), "PNG": ("RGB", "PNG", {}), "PNG alpha": ("RGBA", "PNG", {}),
    "PNG palette": ("P", "PNG", {}), "PNG 16-bit": ("I;16", "PNG", {}), "WebP": ("RGB", "WEBP", {}),
    "WebP lossless": ("RGB", "WEBP", {"lossless": True}), "BMP": ("RGB", "BMP", {}), "GIF": ("P", "GIF", {}),
    "TIFF deflate": ("RGB", "TIFF", {"compression": "tiff_adobe_deflate"}), "PPM": ("RGB", "PPM", {}),
}  # fmt: skip


def sources() -> list[Image.Image]:
    """Real images where they are at hand, and noise."""
    root = os.environ.get("BURNISH_TEST_DATA")
    files = sorted(Path(root).rglob("*.jpg"))[::400][:8] if root else []
    rng = np.random.default_rng(SEED)
    made = [Image.fromarray(rng.integers(0, 256, (60 + 9 * k, 90, 3), np.uint8)) for k in range(4)]
    return [Image.open(file).convert("RGB") for file in files] + made


def encoded(image: Image.Image, mode: str, kind: str, options: dict[str, Any]) -> bytes:
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    out = io.BytesIO()
    (image if mode == "I;16" else image.convert(mode)).save(out, kind, **options)
    return out.getvalue()


def mutated(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """(what was done, the bytes)."""
    body, at = bytearray(data), int(rng.integers(1, len(data)))
    length = int(rng.integers(1, max(2, len(data) // 8)))
    kind = ("truncated", "bits", "zeroed", "repeated", "header", "random", "appended")[int(rng.integers(7))]
    if kind == "truncated":
        body = body[:at]
    elif kind == "bits":
        for place in rng.integers(0, len(body), int(rng.integers(1, 65))):
            body[place] ^= 1 << int(rng.integers(8))
    elif kind == "zeroed":
        body[at : at + length] = bytes(len(body[at : at + length]))
    elif kind == "repeated":
        body[at:at] = body[max(0, at - length) : at]
    elif kind == "header":
        heads = (b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF", b"BM", b"II*\x00", b"P6\n", b"%PDF")
        head = heads[int(rng.integers(len(heads)))]
        body[: len(head)] = head
    elif kind == "random":
        body[at : at + length] = rng.bytes(len(body[at : at + length]))
    else:
        body += rng.bytes(length)
    return kind, bytes(body)


def run_encoding(name: str, count: int, answer: Any) -> None:
    """In a process of its own: decode so many mutants of one encoding."""
    from burnish.data.catalog import Catalog
    from burnish.data.looks import look_at
    from burnish.data.pixels import decode
    from burnish.errors import UnreadableImage

    rng, images, found, reasons, slowest = (
        np.random.default_rng([SEED, len(name), count]),
        sources(),
        Counter(),
        Counter(),
        0.0,
    )

    class One:
        data = b""

        def image(self, path: str) -> bytes:
            return self.data

    holder = One()
    catalog = Catalog(Path("x"), ("x",), np.zeros(1, np.int64), ("a",), (None,), None, (), "x", holder)
    originals = [encoded(image, *ENCODINGS[name]) for image in images]
    for number in range(count):
        kind, holder.data = mutated(originals[number % len(originals)], rng)
        began = time.monotonic()
        try:
            decode(holder.data)
            found["used"] += 1
        except UnreadableImage as error:
            found["named"] += 1
            reasons[error.reason.split("(")[0].split(":")[0].strip()] += 1
        look_at(catalog, np.zeros(1, np.int64), workers=1)
        seconds = time.monotonic() - began
        slowest, found["hangs"] = max(slowest, seconds), found["hangs"] + (seconds > HANG)
        found[f"mutation {kind}"] += 1
    answer.put({**found, "reasons": dict(reasons.most_common()), "slowest_seconds": slowest, "peak_mib": peak_mib()})


def peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def png(width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 2) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def zeros(size: int) -> bytes:
    return zlib.compress(bytes(size), 9)


def tiff(width: int, height: int, *, strip: bytes = b"x", compression: int = 8, next_ifd: int = 0) -> bytes:
    tags = ((256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, compression), (262, 3, 1), (273, 4, 8), (277, 3, 1),
            (278, 4, height), (279, 4, len(strip)))  # fmt: skip
    at = 8 + len(strip) + len(strip) % 2
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    padded = strip + b"\x00" * (len(strip) % 2)
    return (
        b"II*\x00"
        + struct.pack("<I", at)
        + padded
        + struct.pack("<H", len(tags))
        + entries
        + struct.pack("<I", next_ifd or 0)
    )


def gif_of_frames(count: int) -> bytes:
    out = io.BytesIO()
    frames = [Image.new("P", (64, 64), number % 255) for number in range(count)]
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    return out.getvalue()


def bmp(width: int, height: int) -> bytes:
    return (
        b"BM"
        + struct.pack("<IHHI", 60, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, 0, 0, 0, 0, 0)
        + b"\xff\x00" * 8
    )


def jpeg_of(width: int, height: int) -> bytes:
    data = bytearray(encoded(Image.new("RGB", (16, 16)), "RGB", "JPEG", {}))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


BOMBS: dict[str, Callable[[], bytes]] = {
    "PNG of 60,000 x 60,000": lambda: png(60_000, 60_000, chunk(b"IDAT", zeros(10_000))),
    "PNG of 2^31 - 1 pixels a side": lambda: png(2**31 - 1, 2**31 - 1, chunk(b"IDAT", b"x")),
    "PNG, 1 x 100,000,001": lambda: png(1, 100_000_001, chunk(b"IDAT", zeros(1000))),
    "PNG of 9,900 x 9,900, packed 1,000 : 1": lambda: png(9900, 9900, chunk(b"IDAT", zeros(9900 * (9900 + 1))), colour=0),
    "PNG with 500 MB in zTXt": lambda: png(8, 8, chunk(b"zTXt", b"k\x00\x00" + zeros(500_000_000)), chunk(b"IDAT", zeros(8 * 25))),
    "PNG with 500 MB in iCCP": lambda: png(8, 8, chunk(b"iCCP", b"k\x00\x00" + zeros(500_000_000)), chunk(b"IDAT", zeros(8 * 25))),
    "PNG with 500 MB of IDAT for 8 x 8": lambda: png(8, 8, chunk(b"IDAT", zeros(500_000_000))),
    "TIFF of 100,000 x 100,000": lambda: tiff(100_000, 100_000),
    "TIFF with a strip of 500 MB": lambda: tiff(64, 64, strip=zeros(500_000_000)),
    "TIFF whose directories form a circle": lambda: tiff(16, 16, strip=zeros(256), next_ifd=8 + len(zeros(256)) + len(zeros(256)) % 2),
    "GIF of 65,535 x 65,535": lambda: b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b",\x00\x00\x00\x00\xff\xff\xff\xff\x00\x08\x00;",
    "GIF of 3,000 frames": lambda: gif_of_frames(3000),
    "WebP of 16,383 x 16,383": lambda: b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8X" + struct.pack("<I", 10) + b"\x00" * 4 + b"\xfe\x3f\x00\xfe\x3f\x00" + b"\x00" * 8,
    "BMP of 100,000 x 100,000, run-length": lambda: bmp(100_000, 100_000),
    "PPM of 200,000 x 200,000": lambda: b"P6\n200000 200000\n255\nabc",
    "JPEG of 65,500 x 65,500": lambda: jpeg_of(65_500, 65_500),
}  # fmt: skip


def run_bomb(name: str, data: bytes, answer: Any) -> None:
    from burnish.data.pixels import decode
    from burnish.errors import UnreadableImage

    decode(encoded(Image.new("RGB", (8, 8)), "RGB", "PNG", {}))
    before, began = peak_mib(), time.monotonic()
    try:
        outcome = "decoded to " + " x ".join(map(str, decode(data).size))
    except UnreadableImage as error:
        outcome = error.reason
    answer.put({"outcome": outcome, "seconds": time.monotonic() - began, "growth_mib": peak_mib() - before})


def in_a_child(work: Callable[..., None], *words: Any, seconds: float) -> dict[str, Any]:
    """What the work answers, or how its process ended."""
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    child = context.Process(target=work, args=(*words, answer))
    child.start()
    try:
        return answer.get(timeout=seconds)
    except Exception:
        child.kill()
        return {"crash": f"no answer; exit status {child.exitcode}"}
    finally:
        child.join()


def main() -> None:
    from burnish.record.facts import machine

    share = [N // len(ENCODINGS) + (place < N % len(ENCODINGS)) for place in range(len(ENCODINGS))]
    found = {
        name: in_a_child(run_encoding, name, count, seconds=600) for name, count in zip(ENCODINGS, share, strict=True)
    }
    bombs = {name: in_a_child(run_bomb, name, make(), seconds=60) for name, make in BOMBS.items()}
    total = Counter({key: sum(one.get(key, 0) for one in found.values()) for key in ("used", "named", "hangs")})
    facts = {
        "benchmark": "mutated", "machine": machine(), "n": N, "seed": SEED, "total": dict(total),
        "crashes": [name for name, one in {**found, **bombs}.items() if "crash" in one],
        "slowest_seconds": max(one.get("slowest_seconds", 0.0) for one in found.values()),
        "encodings": found, "bombs": bombs,
        "worst_bomb": {key: max(one.get(key, 0) for one in bombs.values()) for key in ("seconds", "growth_mib")},
    }  # fmt: skip
    json.dump(facts, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
