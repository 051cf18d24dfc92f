"""What a file of weights is, told by its content, not its name; archives are looked into in place."""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import os
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from torch import Tensor

from burnish import archives
from burnish.backbones.reading import arrays, pickles, shards, weights
from burnish.disk import MAX_JSON_BYTES, read_plain_json
from burnish.errors import BadWeights, UnknownModel, shown

Kind = Literal["safetensors", "torch", "keras", "h5", "npz"]
_OF_TRAINERS = ("training_args.bin", "optimizer.bin", "scheduler.bin", "optimizer.pt", "scheduler.pt", "scaler.pt")
SUFFIXES = (
    ".safetensors",
    ".pt",
    ".pth",
    ".th",
    ".bin",
    ".ckpt",
    ".h5",
    ".hdf5",
    ".keras",
    ".npz",
    ".zip",
    ".tar",
    ".gz",
    ".tgz",
)
_HDF5 = b"\x89HDF\r\n\x1a\n"
_ALONE = {b"\x1f\x8b": ("gzip", "gunzip"), b"BZh": ("bzip2", "bunzip2"), b"\xfd7zXZ\x00": ("xz", "unxz")}
_BEGIN = 512  # bytes by which a tar is told from other files
_CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
PROCESSOR = "processor_config.json"  # where transformers 5 keeps the same of models for images and texts


@dataclass(frozen=True)
class Opened:
    """A file that holds one model, in memory."""

    kind: Kind
    data: bytes  # none where the weights came out of several files
    label: str  # what errors call it
    sha256: str  # of the file on disk
    config: dict[str, Any] = field(default_factory=dict)  # of the config.json beside it, {} without one
    where: str = ""  # the member of the archive it lay in
    name: str = ""  # the file's, without its folder, or that member's
    packed: int = 0  # bytes of the file on disk
    beside: Callable[[], dict[str, Any]] = dict  # reads what transformers says of images beside it; BadWeights
    held: Mapping[str, Tensor] | None = field(
        default=None, repr=False
    )  # the weights, where they came out of several files

    @property
    def images(self) -> dict[str, Any]:
        """What a preprocessor_config.json of transformers says, {} without one; BadWeights where it is damaged.

        Only those ask whom it is for.
        """
        return self.beside()


def open_file(path: Path) -> Opened:
    """The model in a file, or the only one in an archive or a folder; BadWeights when there is not just one.

    Nothing in it is run or followed; it is held in memory whole.
    """
    if (index := shards.index_in(path)) is not None:
        return _of_several(index)
    if os.path.isdir(path):  # which says no, too, where a name is too long for any file
        path = _only_one_in(path)
    shards.refuse_one_of_several(path)
    data, label = weights.bytes_of(path), shown(str(path))
    digest = hashlib.sha256(data).hexdigest()
    kind = kind_of(data, label)
    if kind is not None:
        preprocessor = partial(_told_of_images, partial(config_beside, path))
        return Opened(
            kind, data, label, digest, config_beside(path), name=path.name, packed=len(data), beside=preprocessor
        )
    _refuse_packed_alone(data, label)
    if (told := _part_of_tensorflow(path)) is not None:
        raise BadWeights(f"{label}: {told}")
    if data[:2] == b"PK" or archives.is_tar(data):
        return _inside(data, label, digest)
    kinds = "safetensors, a PyTorch checkpoint, Keras's .keras or .h5, NumPy's .npz, or a zip or tar archive with one of these"
    unknown = f"is no file of weights that burnish knows; expected {kinds}"
    raise BadWeights(f"{label}: {weights.what_it_is(data[:4096], len(data)) or unknown}")


def _of_several(index: Path) -> Opened:
    """The weights that an index says lie in several files of its folder, as one; BadWeights, with what is amiss."""
    found, beside = shards.together(index), config_beside(index)
    images, label = partial(_told_of_images, partial(config_beside, index)), shown(str(index.parent))
    return Opened(
        "safetensors",
        b"",
        label,
        found.sha256,
        beside,
        name=index.name,
        packed=found.bytes,
        beside=images,
        held=found.tensors,
    )


def _refuse_packed_alone(data: bytes, label: str) -> None:
    """BadWeights where a file of weights was packed as it is, without an archive around it."""
    packed = next((kind for begin, kind in _ALONE.items() if data.startswith(begin)), None)
    if packed is None:
        return
    try:
        begin = archives.unpacked(io.BytesIO(data), len(data), label).read(_BEGIN)
    except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error):  # damaged, which is said when it is read
        return
    kind, unpack = packed
    pickled = begin[:1] == b"\x80" and begin[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    if pickled or begin.startswith((b"PK\x03\x04", _HDF5)) or (begin[8:9] == b"{" and not archives.is_tar(begin)):
        raise BadWeights(f"{label}: is {kind} with one file, no tar; run {unpack}, and give the file that comes out")


def kind_of(data: bytes, label: str, *, packed: int | None = None) -> Kind | None:
    """What the bytes are, None for archives and for what is no model. packed: of the file on disk, where they lay in one."""
    if data[:8] == _HDF5:
        return "h5"
    if data[:2] == b"PK":
        archive = archives.Zip(data, label, packed=packed)
        if pickles.is_torch_zip(archive):
            return "torch"
        if arrays.is_npz(archive):
            return "npz"
        return "keras" if {"config.json", "model.weights.h5"} <= set(archive.members) else None
    if data[:1] == b"\x80" and data[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "torch"
    return "safetensors" if weights.is_safetensors(data) else None


def config_beside(path: Path, name: str = _CONFIG) -> dict[str, Any]:
    """timm's config.json in the folder of a weights file, {} without one; BadWeights when it is damaged."""
    config = path.parent / name
    if not config.is_file():
        return {}
    try:
        return read_plain_json(config)
    except (OSError, ValueError) as error:
        advice = "mend it, or move the weights to another folder and say --model NAME=FILE"
        raise BadWeights(f"{shown(str(config))}: {error}; {advice}") from None


def _told_of_images(read: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """What preprocessor_config.json says, else the part on images of processor_config.json. read: a file of that name."""
    if told := read(PREPROCESSOR):
        return told
    inner = read(PROCESSOR).get("image_processor")
    return inner if isinstance(inner, dict) else {}


def _inside(data: bytes, label: str, digest: str) -> Opened:
    """The only model in an archive."""
    if data[:2] == b"PK":
        archive = archives.Zip(data, label)
        members = (archives.Member(name, archive.read(name)) for name in archive.members)
    else:
        members = archives.members_of_tar(data, label)
    found: list[Opened] = []
    configs: dict[str, bytes] = {}
    for member in members:
        place = PurePosixPath(member.name)
        if "__MACOSX" in place.parts or place.name.startswith("._"):
            continue
        if place.name in (_CONFIG, PREPROCESSOR, PROCESSOR):
            configs[str(place)] = member.data
        inner = f"{label} ({shown(member.name)})"
        kind = kind_of(member.data, inner, packed=len(data))
        if kind is not None:
            found.append(Opened(kind, member.data, inner, digest, {}, member.name, place.name, len(data)))
            if len(found) > 1:
                names = ", ".join(shown(one.where[:120]) for one in found)
                raise BadWeights(f"{label}: an archive with more than one model ({names}, …); expected exactly one")
        elif member.data[:2] == b"PK" or archives.is_tar(member.data):
            raise BadWeights(f"{inner}: an archive in an archive, which is not opened; unpack the outer one first")
    if not found:
        raise BadWeights(f"{label}: an archive without a model; expected one of {', '.join(SUFFIXES[:9])} inside")
    one, folder = found[0], PurePosixPath(found[0].where).parent
    if one.kind == "keras":
        return one
    preprocessor = partial(_told_of_images, lambda name: _config_in(configs, folder / name, one.label))
    return replace(one, config=_config_in(configs, folder / _CONFIG, one.label), beside=preprocessor)


def _config_in(configs: Mapping[str, bytes], place: PurePosixPath, label: str) -> dict[str, Any]:
    """What a member of an archive says, {} where it is not there; BadWeights when it is damaged."""
    data = configs.get(str(place))
    if data is None:
        return {}
    try:
        values = json.loads(data) if len(data) <= MAX_JSON_BYTES else None
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise BadWeights(f"{label}: the {place.name} beside it is no JSON object, or too long; mend it or take it out")
    return values


def _only_one_in(folder: Path) -> Path:
    """The one file of weights in a folder; a .safetensors file comes before its twin in another format."""
    names = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and path.name not in _OF_TRAINERS and path.is_file()
    )
    safe = [path for path in names if path.suffix.lower() == ".safetensors"]
    found = safe or names
    if not found:
        raise UnknownModel(f"{shown(str(folder))}: {_without_weights(folder)}")
    if len(found) != 1:
        listed = f" ({', '.join(shown(path.name) for path in found[:4])})"
        if any(re.search(r"-of-\d+\.", path.name) for path in found):
            raise UnknownModel(
                f"{shown(str(folder))}: its weights lie in {len(found)} files{listed}, and no index beside them says which "
                "belong together (model.safetensors.index.json, pytorch_model.bin.index.json); fetch that, too"
            )
        raise UnknownModel(
            f"{shown(str(folder))}: a folder with {len(found)} files of weights{listed}; name one of them"
        )
    return found[0]


def _part_of_tensorflow(path: Path) -> str | None:
    """What a file of TensorFlow's is that means nothing alone, and what to do; None for others."""
    if path.name in ("saved_model.pb", "keras_metadata.pb"):
        return "belongs to " + weights.saved_model((path.parent / "keras_metadata.pb").is_file()).removeprefix("is ")
    of_checkpoint = path.name.endswith(".index") or re.search(r"\.data-\d{5}-of-\d{5}$", path.name)
    return "belongs to " + weights.TENSORFLOW_CHECKPOINT.removeprefix("is ") if of_checkpoint else None


def _without_weights(folder: Path) -> str:
    """What a folder is in which no file of weights was found, and what to do."""
    held = sorted(path.name for path in folder.iterdir())
    if "saved_model.pb" in held:
        return weights.saved_model("keras_metadata.pb" in held)
    if "Manifest.json" in held and "Data" in held:
        return (
            "is a Core ML package, a program, which is not run; give the weights of the network that it was made from"
        )
    if any(name.endswith(".data-00000-of-00001") for name in held):
        return weights.TENSORFLOW_CHECKPOINT
    if {"_METADATA", "manifest.ocdbt"} & set(held) or "flax_model.msgpack" in held:
        return "holds weights of JAX, which are not read; bring them to PyTorch, and save them as .safetensors"
    if any(name.endswith(".distcp") for name in held):
        return (
            "is a checkpoint of torch.distributed, in parts; bring it into one file:  "
            "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER weights.pth"
        )
    listed = (
        f"holds {', '.join(shown(name) for name in held[:3])}{', …' if len(held) > 3 else ''}" if held else "is empty"
    )
    return (
        f"a folder without a file of weights (it {listed}); expected one that ends in {', '.join(SUFFIXES[:9])}; "
        "where its name ends otherwise, name the file itself"
    )
