"""Reads an HDF5 file in a process of its own: a damaged one can crash the HDF5 library, and it shall crash alone (P8).

Run as a script by `arrays`: the file comes on standard input; out come eight bytes with the length of a JSON text, that
text, and the float32 numbers of all datasets one after the other. Links that leave the file are never followed. It imports
nothing of burnish, and torch neither.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import sys
from collections.abc import Iterator
from typing import Any

TRAINING = ("optimizer_weights", "optimizer", "_optimizer")  # groups that are not of the network
_MOST_OBJECTS, _MOST_NAMES = 200_000, 65_536
_DEEPEST, _LONGEST = 32, 1000  # groups; characters of a path
_MOST_BYTES = 8 * 2**30
_MOST_RATIO = 200  # numbers over the file's bytes: more is a bomb
_RATIO_FROM_BYTES = 64 * 2**20
_BFLOAT16 = "|V2"  # two bytes of no kind: as Keras writes what HDF5 has no kind for


class Refused(Exception):
    """What is wrong with the file, one clause."""


def read(data: bytes, packed: int) -> tuple[dict[str, Any], list[bytes | memoryview]]:
    """(config, names and shapes; the numbers of each dataset) of a file's bytes. packed: those of the file on disk."""
    import h5py
    import numpy as np

    file = h5py.File(io.BytesIO(data), "r")
    datasets, names = [], {}
    blobs: list[bytes | memoryview] = []
    _limit_memory(2 * len(data))
    found = list(_walk(h5py, file, "", 0, [_MOST_OBJECTS], set()))
    total = sum(_room_for(one) for _, one in found)
    if total > min(_MOST_BYTES, max(_RATIO_FROM_BYTES, _MOST_RATIO * packed)):
        raise Refused(f"claims {total:,} bytes of weights in a file of {packed:,}")
    unwritten = next((path for path, one in found if one.size and not one.id.get_storage_size()), None)
    if unwritten is not None:
        raise Refused(f"{unwritten} has numbers that were never written")
    _limit_memory(total + 2 * len(data))
    held: dict[int, Any] = {}  # by the dataset's place in the file: it may have many names
    for path, one in found:
        if path.split("/")[0] not in TRAINING:
            place = _address(h5py, one)
            if place not in held:
                held[place] = _floats(np, one)
            values = held[place]
            datasets.append([path, list(one.shape), one.dtype.kind in "iub"])
            blobs.append(values.data.cast("B") if values.size else b"")
    for path in {path.rpartition("/")[0] for path, _ in found}:
        name = file[path].attrs.get("name") if path else None
        if path.rpartition("/")[2] == "vars" and name is not None:
            names[path] = _text(name)
    config = file.attrs.get("model_config")
    facts = {
        "config": None if config is None else _text(config),
        "version": _text(file.attrs.get("keras_version", "")),
        "datasets": datasets,
        "names": names,
        "layers": {root: _listed(file[root] if root else file, "layer_names") for root in _roots(file)},
        "weights": {
            path.lstrip("/"): words
            for root in _roots(file)
            for name in dict.fromkeys(_listed(file[root] if root else file, "layer_names"))
            if (path := f"{root}/{name}").lstrip("/") in file
            and (words := _listed(file[path.lstrip("/")], "weight_names"))
        },
    }
    return facts, blobs


def _address(h5py: Any, one: Any) -> int:
    """Where in the file a group or a dataset lies, under whatever names."""
    return h5py.h5o.get_info(one.id).addr


def _room_for(one: Any) -> int:
    """The bytes that reading a dataset takes: as float32, whatever they are, and in whole chunks, where it has such."""
    size = max(4, one.dtype.itemsize)
    if not one.chunks:
        return math.prod(one.shape) * size
    return math.prod(-(-length // chunk) * chunk for length, chunk in zip(one.shape, one.chunks, strict=True)) * size


def _floats(np: Any, one: Any) -> Any:
    """A dataset's numbers as float32."""
    values = one[()]
    if one.dtype.str == _BFLOAT16:  # the upper half of a float32
        values = (np.frombuffer(values.tobytes(), "<u2").astype("<u4") << 16).view("<f4").reshape(one.shape)
    return np.ascontiguousarray(values, np.float32)


def _roots(file: Any) -> list[str]:
    """Where layers may be listed: the file itself, or the part of a whole model."""
    return [root for root in ("", "model_weights") if not root or root in file]


def _listed(group: Any, key: str) -> list[str]:
    """A list of names in an attribute, which is cut in pieces where it is long."""
    if key in group.attrs:
        pieces = [key]
    else:
        numbered = (f"{key}{number}" for number in range(1000))
        pieces = list(itertools.takewhile(lambda piece: piece in group.attrs, numbered))
    counts = [math.prod(group.attrs.get_id(piece).shape or ()) for piece in pieces]
    if sum(counts) > _MOST_NAMES:
        raise Refused(f"lists {sum(counts):,} names in {key}")
    return [_text(name) for piece in pieces for name in group.attrs[piece]]


def _limit_memory(more: int) -> None:
    """So many bytes more than now, and a gigabyte: a short list may name one long text any number of times."""
    try:
        import resource

        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        most, hard = now + 2 * more + 2**30, resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    except (ImportError, OSError, ValueError):  # a system without such limits
        pass


def _text(value: Any) -> str:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return text.encode("utf-8", "replace").decode()


def _walk(h5py: Any, group: Any, path: str, depth: int, budget: list[int], seen: set[int]) -> Iterator[tuple[str, Any]]:
    """Every dataset by its path; each link is looked at before it is followed."""
    if depth > _DEEPEST:
        raise Refused("an HDF5 file whose groups are nested too deeply, or hold themselves")
    for name in group:
        budget[0] -= 1
        if budget[0] < 0:
            raise Refused(f"an HDF5 file of more than {_MOST_OBJECTS:,} parts")
        inner = f"{path}/{name}" if path else name
        if len(inner) > _LONGEST:
            raise Refused(f"an HDF5 file with a name of {len(inner):,} characters ({inner[:40]}…)")
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            kind = "another file" if isinstance(link, h5py.ExternalLink) else "another place"
            raise Refused(f"{inner} is a link to {kind}, which is not followed")
        one = group[name]
        if isinstance(one, h5py.Group):
            address = _address(h5py, one)
            if address in seen:
                raise Refused("an HDF5 file whose groups are nested too deeply, or hold themselves")
            seen.add(address)
            yield from _walk(h5py, one, inner, depth + 1, budget, seen)
        elif isinstance(one, h5py.Dataset):
            if one.external or one.is_virtual:
                raise Refused(f"{inner} takes its numbers from another file, which is not followed")
            if name.startswith("lora_"):
                raise Refused(
                    f"{inner} is a correction beside the weights; save the model as .keras, which merges them"
                )
            if one.shape is not None and (one.dtype.kind in "fiub" or one.dtype.str == _BFLOAT16):
                yield inner, one
            elif one.dtype.kind not in "OSU" or one.size is None or one.size > 4096:  # a few words are never read
                raise Refused(f"{inner} holds no numbers ({one.dtype})")
        else:
            raise Refused(f"{inner} is of a kind that is not read")


def main() -> None:
    try:
        facts, blobs = read(sys.stdin.buffer.read(), int(sys.argv[1]))
    except Refused as error:
        facts, blobs = {"refused": str(error)}, []
    except MemoryError:
        facts, blobs = (
            {"refused": "an HDF5 file whose texts or numbers take far more memory than its size explains"},
            [],
        )
    except Exception as error:  # the library raises many kinds for damaged files
        facts, blobs = (
            {"refused": f"a damaged HDF5 file ({type(error).__name__}: {str(error)[:120]}); fetch it again"},
            [],
        )
    text = json.dumps(facts).encode()
    text += b" " * (-(8 + len(text)) % 64)  # so that the numbers behind it are aligned
    for part in (len(text).to_bytes(8, "little"), text, *blobs):
        sys.stdout.buffer.write(part)


if __name__ == "__main__":
    main()
