"""The arrays in a Keras file's HDF5 part, found by layer."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from copy import copy
from typing import Any

import numpy as np

from burnish.backbones.keras import hdf5
from burnish.backbones.keras.options import Variable
from burnish.errors import BadWeights, ModelError, shown

_READER = hdf5.__file__
_SECONDS, _SLOWEST = 60.0, 20e6  # and bytes a second; a file that takes longer is made to
# By these signals no fault of a library ends a process: the system, a scheduler or a person sent them.
_ENDED = [
    getattr(signal, name) for name in ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGXCPU") if hasattr(signal, name)
]
_LONGEST_VARIABLE = 4  # parts of a variable's name
_NESTED = re.compile(r"(.+/)(?:layers|_layer_checkpoint_dependencies)/[^/]+/(?:.+/)?vars/\d+$")  # the layer of a layer
_EXTRA = "pip install 'burnish[keras]'"


class Arrays:
    """All datasets of an HDF5 file, read by a process of its own."""

    def __init__(self, data: bytes, label: str, *, packed: int | None = None) -> None:
        """BadWeights when it is damaged, or holds links, other files' data, or more than it can.

        packed: bytes of the file on disk, where this was packed in another.
        """
        if importlib.util.find_spec("h5py") is None:
            raise ModelError(f"{label}: Keras files need the package h5py; run: {_EXTRA}")
        self.label = label
        facts, numbers = _read(data, label, min(len(data), packed or len(data)))
        self.config: str | None = facts["config"]  # the text of the model's config, None in a file of weights alone
        self.version: str = facts["version"]  # of the Keras that wrote it, "" where a file within another says it
        self.names: dict[str, str] = facts["names"]  # what newer files call the layer behind a group
        self.layers: dict[str, list[str]] = facts["layers"]  # older files' lists of layers
        self.weights: dict[str, list[str]] = facts["weights"]  # and of each layer's arrays
        self.datasets: dict[str, np.ndarray] = {}
        place = 0
        self.whole = {path for path, _, whole in facts["datasets"] if whole}  # those of whole numbers
        for path, shape, _ in facts["datasets"]:
            count = math.prod(shape)
            self.datasets[path] = np.frombuffer(numbers, np.float32, count, place).reshape(shape)
            place += 4 * count
        self._index()

    def _index(self) -> None:
        """Make what datasets are found by."""
        # Paths by their last part, and by the last word of what stands before the last one, two and three of them.
        self._called: dict[tuple[int, str, str], list[str]] = {}
        for path in self.datasets:
            parts = path.split("/")
            for count in range(1, min(len(parts), _LONGEST_VARIABLE) + 1):
                word = _last_word(plain("/".join(parts[:-count])))
                self._called.setdefault((count, parts[-1].partition(":")[0], word), []).append(path)
        heads = (path.split("/", 2) for path in self.datasets)
        # The outermost two
        self._groups = {group for head in heads for group in ("/".join(head[:1]), "/".join(head[:2]))[: len(head) - 1]}

    def of_the_network(self) -> tuple[Arrays, str]:
        """(the arrays of a network that is itself a layer of the file's model, where it lies: "layers/functional/"); (self, "")
        where it is the model. So newer files of weights keep what is trained further below a head of one's own.
        """
        beginnings = Counter(told[1] if (told := _NESTED.match(path)) else "" for path in self.datasets)
        place, count = beginnings.most_common(1)[0] if beginnings else ("", 0)
        if not place or 2 * count <= len(self.datasets):
            return self, ""
        inner = copy(self)
        inner.datasets = {
            path.removeprefix(place): one for path, one in self.datasets.items() if path.startswith(place)
        }
        inner.whole = {path.removeprefix(place) for path in self.whole if path.startswith(place)}
        inner.names = {path.removeprefix(place): one for path, one in self.names.items() if path.startswith(place)}
        inner._index()
        return inner, place

    def layer_names(self) -> list[str]:
        """Layers that have weights, by name, whichever way the file is laid out; [] where it keeps no names."""
        for root, names in self.layers.items():
            listed = [name for name in names if f"{root}/{name}".lstrip("/") in self.weights]
            if listed:
                return listed
        found: dict[str, None] = {}
        for path in self.datasets:
            parts = path.split("/")
            if "vars" in parts:
                name = self.names.get("/".join(parts[: parts.index("vars") + 1]))
                found |= {name: None} if name is not None else {}
            elif len(parts) > 1:
                found[parts[-2]] = None
        return list(found)

    def widths(self, layer: str) -> set[int]:
        """How many outputs the arrays of that layer have, whichever way the file is laid out."""

        def is_of(path: str) -> bool:
            parts = path.split("/")
            return layer in parts or self.names.get("/".join(parts[:-1])) == layer

        return {one.shape[-1] for path, one in self.datasets.items() if one.ndim and is_of(path)}

    def hold(self, values: Sequence[float]) -> bool:
        """Whether one of the arrays is just these few numbers."""
        few = (one.ravel() for one in self.datasets.values() if one.size == len(values))
        return any(np.allclose(one, values, atol=1e-4) for one in few)

    def find(self, layer: str, outer: str, modern: str, variable: Variable, place: int, among: int) -> np.ndarray:
        """The array of one variable, float32, in Keras's shape.

        layer: its name; outer: that of the outermost layer it belongs to; modern: where newer files keep its weights;
        place, among: which of the layer's variables it is, and how many there are. BadWeights when it is not there, or
        has another shape.
        """
        path = self._modern(modern, variable) or self._legacy(layer, outer, variable, place, among)
        if path is None:
            raise BadWeights(f"{self.label}: has no {variable.legacy} for the layer {shown(layer)}")
        values = self.datasets[path]
        if values.shape != tuple(variable.shape):
            raise BadWeights(
                f"{self.label}: {shown(path)} has {list(values.shape)}, the layer {shown(layer)} takes {list(variable.shape)}"
            )
        if path in self.whole:
            raise BadWeights(
                f"{self.label}: {shown(path)} holds whole numbers, so the layer {shown(layer)} is quantised; "
                "save the model before that"
            )
        if not np.isfinite(values).all():
            raise BadWeights(f"{self.label}: {shown(path)} holds NaN or infinite values")
        return values

    def _modern(self, modern: str, variable: Variable) -> str | None:
        if not modern:
            return None
        older = modern.replace("layers/", "_layer_checkpoint_dependencies/")
        inner = variable.modern
        for path in (modern + inner, modern + "_" + inner, older + inner, older + "_" + inner):
            if path in self.datasets:
                return path
        return None

    def _legacy(self, layer: str, outer: str, variable: Variable, place: int, among: int) -> str | None:
        """model_weights/OUTER/…/LAYER/kernel:0, by name; where names tell nothing, by order in the layer's group.

        Two models in a model may have layers of one name: where there is a group of the outer one, only that is looked in.
        """
        groups = (f"model_weights/{outer}", outer)
        within = tuple(f"{group}/" for group in groups if group in self._groups)
        for name in variable.legacy.split("|"):
            wanted, found = name.split("/"), []
            for path in self._called.get((len(wanted), wanted[-1], _last_word(plain(layer))), []):
                if within and not path.startswith(within):
                    continue
                parts = path.split("/")
                last = [part.partition(":")[0] for part in parts]
                # Keras 2 called some layers "conv1/conv" and "Conv_1" that Keras 3 calls "conv1_conv" and "conv_1".
                above = plain("/".join(parts[: -len(wanted)]))
                if last[-len(wanted) :] == wanted and (above == plain(layer) or above.endswith(f"_{plain(layer)}")):
                    found.append(path)
            own = [path for path in found if path.split("/")[-len(wanted) - 1] == layer]
            if found:
                return min(own or found, key=len)
        for root in ("model_weights", ""):
            group = f"{root}/{layer}" if root else layer
            names = self.weights.get(group, [])
            if len(names) == among:
                path = f"{group}/{names[place]}"
                return path if path in self.datasets else None
        return None


def _read(data: bytes, label: str, packed: int) -> tuple[dict[str, Any], memoryview]:
    """What the reader says of the file, and the numbers."""
    patience = _SECONDS + len(data) / _SLOWEST
    try:
        done = subprocess.run(
            [sys.executable, "-I", _READER, str(packed)], input=data, capture_output=True, timeout=patience, check=False
        )
    except subprocess.TimeoutExpired:
        raise BadWeights(
            f"{label}: its HDF5 part was not read in {patience:.0f} s; it is damaged, or made to harm"
        ) from None
    except OSError as error:
        raise ModelError(
            f"{label}: no process could be started that reads its HDF5 part ({error.strerror or error}). Close other programs, "
            "or run again where there is more memory and more processes are allowed."
        ) from None
    if -done.returncode in _ENDED:
        raise ModelError(
            f"{label}: the process that reads its HDF5 part was ended from outside ({signal.Signals(-done.returncode).name}), as "
            "the system does where memory runs out. Close other programs, or run again where there is more."
        )
    if done.returncode != 0 or len(done.stdout) < 8:
        raise BadWeights(f"{label}: its HDF5 part makes the HDF5 library crash; it is damaged, or made to harm")
    length = int.from_bytes(done.stdout[:8], "little")
    facts = json.loads(done.stdout[8 : 8 + length])
    if "refused" in facts:
        raise BadWeights(f"{label}: {shown(facts['refused'])}")
    return facts, memoryview(done.stdout)[8 + length :]


def _last_word(name: str) -> str:
    return name.rpartition("_")[2]


def plain(name: str) -> str:
    """A layer's name as all versions of Keras spell it."""
    return name.replace("/", "_").lower()


def stacked(names: Sequence[str]) -> str:
    """The first few names, for a sentence."""
    return ", ".join(shown(name) for name in names[:4]) + (", …" if len(names) > 4 else "")
