"""The arrays in a Keras file's HDF5 part, found by layer; links that leave the file are never followed (P8)."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from burnish.backbones.keras.options import Variable
from burnish.errors import BadWeights, ModelError, shown

_MOST_OBJECTS = 200_000
_DEEPEST = 32
_MOST_BYTES = 8 * 2**30
_TRAINING = ("optimizer_weights", "optimizer", "_optimizer")
_EXTRA = "pip install 'burnish[keras]'"


class Arrays:
    """All datasets of an HDF5 file in memory; none is read before its layer asks for that shape."""

    def __init__(self, data: bytes, label: str) -> None:
        """BadWeights when it is damaged, or holds links, other files' data, or more than it can."""
        try:
            import h5py
        except ImportError:
            raise ModelError(f"{label}: Keras files need the package h5py; run: {_EXTRA}") from None
        self.label, self._h5py = label, h5py
        with self._readable():
            self.file: Any = h5py.File(io.BytesIO(data), "r")
            self.datasets: dict[str, Any] = dict(self._walk(self.file, "", 0, [_MOST_OBJECTS]))
        total = sum(math.prod(one.shape) * one.dtype.itemsize for one in self.datasets.values())
        if total > _MOST_BYTES:
            raise BadWeights(f"{label}: claims {total:,} bytes of weights, expected at most {_MOST_BYTES:,}")

    def config(self) -> Any:
        """The text of the model's config, None in a file of weights alone."""
        with self._readable():
            found = self.file.attrs.get("model_config")
        if isinstance(found, bytes):
            found = found.decode("utf-8", "replace")
        return found if isinstance(found, str) else None

    def layer_names(self) -> list[str]:
        """Layers that have weights, by name, whichever way the file is laid out; [] where it keeps no names."""
        with self._readable():
            return self._names()

    def _names(self) -> list[str]:
        names: dict[str, None] = {}
        for path in self.datasets:
            parts = path.split("/")
            if parts[0] in _TRAINING:
                continue
            if "vars" in parts:
                name = self.file["/".join(parts[: parts.index("vars") + 1])].attrs.get("name")
                names |= {str(name): None} if name is not None else {}
            else:
                names[parts[-2]] = None
        grouped = self._group_names(self.file) or self._group_names(self.file.get("model_weights", {}))
        return grouped or list(names)

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """Whatever the library says of damage, as a sentence."""
        try:
            yield
        except BadWeights:
            raise
        except Exception as error:  # it raises many kinds
            raise BadWeights(f"{self.label}: a damaged HDF5 file ({shown(str(error))[:120]}); fetch it again") from None

    def _group_names(self, root: Any) -> list[str]:
        """Names of the top layers that have weights, as .h5 files of whole models list them."""
        names = _words(root, "layer_names") if hasattr(root, "attrs") else []
        return [name for name in names if name in root and _words(root[name], "weight_names")]

    def find(self, layer: str, modern: str, variable: Variable, place: int, among: int) -> np.ndarray:
        """The array of one variable, float32, in Keras's shape.

        layer: its name; modern: where newer files keep its weights; place, among: which of the layer's variables it is,
        and how many there are. BadWeights when it is not there, or has another shape.
        """
        with self._readable():
            path = self._modern(modern, variable) or self._legacy(layer, variable, place, among)
        if path is None:
            raise BadWeights(f"{self.label}: has no {variable.legacy} for the layer {shown(layer)}")
        found = self.datasets[path]
        if tuple(found.shape) != tuple(variable.shape):
            raise BadWeights(
                f"{self.label}: {shown(path)} has {list(found.shape)}, the layer {shown(layer)} takes {list(variable.shape)}"
            )
        try:
            values = np.asarray(found[()], np.float32)
        except Exception as error:
            raise BadWeights(f"{self.label}: {shown(path)} cannot be read ({shown(str(error))[:100]})") from None
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

    def _legacy(self, layer: str, variable: Variable, place: int, among: int) -> str | None:
        """model_weights/LAYER/…/LAYER/kernel:0, by name; where names tell nothing, by order in the layer's group."""
        for name in variable.legacy.split("|"):
            wanted, found = name.split("/"), []
            for path in self.datasets:
                parts = path.split("/")
                if parts[0] in _TRAINING:
                    continue
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
            names = self._weight_names(group)
            if len(names) == among:
                path = f"{group}/{names[place]}"
                return path if path in self.datasets else None
        return None

    def _weight_names(self, group: str) -> list[str]:
        return _words(self.file[group], "weight_names") if group in self.file else []

    def _walk(self, group: Any, path: str, depth: int, budget: list[int]) -> Iterator[tuple[str, Any]]:
        """Every dataset by its path; each link is looked at before it is followed."""
        h5py, label = self._h5py, self.label
        if depth > _DEEPEST:
            raise BadWeights(f"{label}: an HDF5 file whose groups are nested too deeply, or hold themselves")
        for name in group:
            budget[0] -= 1
            if budget[0] < 0:
                raise BadWeights(f"{label}: an HDF5 file of more than {_MOST_OBJECTS:,} parts")
            inner = f"{path}/{name}" if path else name
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                kind = "another file" if isinstance(link, h5py.ExternalLink) else "another place"
                raise BadWeights(f"{label}: {shown(inner)} is a link to {kind}, which is not followed")
            one = group[name]
            if isinstance(one, h5py.Group):
                yield from self._walk(one, inner, depth + 1, budget)
            elif isinstance(one, h5py.Dataset):
                if one.external or one.is_virtual:
                    raise BadWeights(
                        f"{label}: {shown(inner)} takes its numbers from another file, which is not followed"
                    )
                if one.shape is None or one.dtype.kind not in "fiub":
                    if one.dtype.kind in "OSU" and one.size is not None and one.size <= 4096:
                        continue  # a few words, such as a vocabulary; never read
                    raise BadWeights(f"{label}: {shown(inner)} holds no numbers ({one.dtype})")
                yield inner, one
            else:
                raise BadWeights(f"{label}: {shown(inner)} is of a kind that is not read")


def plain(name: str) -> str:
    """A layer's name as all versions of Keras spell it."""
    return name.replace("/", "_").lower()


def _words(group: Any, key: str) -> list[str]:
    """A list of names in an attribute, which is cut in pieces where it is long."""
    pieces = (
        [key] if key in group.attrs else [f"{key}{number}" for number in range(1000) if f"{key}{number}" in group.attrs]
    )
    names = [name for piece in pieces for name in group.attrs[piece]]
    return [name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name) for name in names]


def stacked(names: Sequence[str]) -> str:
    """The first few names, for a sentence."""
    return ", ".join(shown(name) for name in names[:4]) + (", …" if len(names) > 4 else "")
