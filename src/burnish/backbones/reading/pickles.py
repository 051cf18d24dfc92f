"""PyTorch's own files, read without running what is in them (P8).

A .pth is a pickle, which is a program. Its instructions are looked through first, without being followed: every class
and function that they ask for is named, and only those that rebuild plain tensors and values are allowed. Only then does
torch's restricted reader (`weights_only=True`) follow them.
"""

from __future__ import annotations

import argparse
import io
import struct
from typing import Any

import numpy as np
import torch

from burnish.archives import Zip
from burnish.backbones.reading.instructions import LONG_TEXT, Uncallable, Unusual, globals_in
from burnish.errors import BadWeights, shown

# What tensors that are no plain numbers in memory ask for, and what those are.
_NOT_DENSE = {
    **dict.fromkeys((
        "torch._utils _rebuild_qtensor", "torch QInt8Storage", "torch QUInt8Storage", "torch QInt32Storage",
        "torch per_tensor_affine", "torch per_channel_affine", "torch per_channel_affine_float_qparams",
    ), "quantised"),
    **dict.fromkeys(("torch._utils _rebuild_sparse_tensor", "torch._utils _rebuild_sparse_csr_tensor"), "sparse"),
    **dict.fromkeys(("torch ComplexFloatStorage", "torch ComplexDoubleStorage"), "complex"),
    "torch._utils _rebuild_meta_tensor_no_storage": "without values (on the meta device)",
}  # fmt: skip
_OF_ARRAYS = {"numpy ndarray", "numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct",
              "numpy.core.numeric _frombuffer", "numpy._core.numeric _frombuffer"}  # fmt: skip
_MAX_PICKLE_BYTES = 256 * 2**20  # the instructions alone; the tensors lie beside them
_STORAGES = {f"{kind}Storage" for kind in (
    "Float", "Half", "BFloat16", "Double", "Long", "Int", "Short", "Char", "Byte", "Bool",
)}  # fmt: skip
_ALLOWED = {
    "collections": {"OrderedDict", "Counter"},
    "builtins": {"set", "complex"},
    "__builtin__": {"set", "complex"},
    "torch": {*_STORAGES, "Size", "device", *(str(one).removeprefix("torch.") for one in (
        torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8,
        torch.uint8, torch.bool,
    ))},
    "torch.storage": {"UntypedStorage", "TypedStorage"},  # named beside tensors; a call makes numbers out of nothing
    "torch.serialization": {"_get_layout"},
    "torch._utils": {"_rebuild_tensor_v2", "_rebuild_tensor", "_rebuild_parameter"},
    "torch.nn.parameter": {"Parameter"},
    # Plain records of a training run, kept beside the weights; they come out as values and are not used.
    "argparse": {"Namespace"},
    "numpy": {"dtype"},
    "numpy.core.multiarray": {"scalar"},
    "numpy._core.multiarray": {"scalar"},
    "numpy.dtypes": {"Float64DType", "Float32DType", "Int64DType", "Int32DType", "BoolDType"},
    "_codecs": {"encode"},
    "pathlib": {"PosixPath", "WindowsPath"},
    "pathlib._local": {"PosixPath", "WindowsPath"},
    "torch.torch_version": {"TorchVersion"},
    "fastcore.foundation": {"L"},  # fastai keeps an optimiser's settings in such lists
}  # fmt: skip


def _scalar(kind: np.dtype, content: Any) -> Any:
    """A number of numpy's; their own function makes one of any size out of nothing but its kind."""
    if not isinstance(kind, np.dtype) or kind.kind not in "fiubc" or kind.itemsize > 32:
        # Of anything else the type alone: written out, lists in lists may have no end.
        raise ValueError(f"a number of the kind {kind if isinstance(kind, np.dtype) else type(kind).__name__}")
    return _NUMPY_SCALAR(kind, content)


class _Text(str):
    """What a text of torch's own kind comes out as."""

    def __new__(cls, text: Any) -> _Text:
        if not isinstance(text, str) or len(text) > LONG_TEXT:  # str() would write out lists in lists without end
            raise ValueError("a version that is none")
        return super().__new__(cls, text)


class _Dropped:
    """What a record of another library's, kept beside the weights and not used, comes out as: nothing of it is kept."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        """What was in it stays behind."""


def _path(*parts: Any) -> str:
    """A path, as a text; none is opened."""
    if not all(isinstance(one, str) for one in parts) or sum(map(len, parts)) > LONG_TEXT:
        raise ValueError("a path that is none")
    return "/".join(parts).replace("//", "/")


_NUMPY_SCALAR: Any = np.float64(0).__reduce__()[0]
_INERT: list[Any] = [
    argparse.Namespace, np.dtype, np.float64, np.float32, np.int64, type(np.dtype("float64")), type(np.dtype("float32")),
    type(np.dtype("int64")), type(np.dtype("int32")), type(np.dtype("bool")),
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
    (_Text, "torch.torch_version.TorchVersion"),
    (_Dropped, "fastcore.foundation.L"),
    *((_path, f"{module}.{kind}Path") for module in ("pathlib", "pathlib._local") for kind in ("Posix", "Windows")),
]  # fmt: skip
_STATES = ("state_dict", "model_state_dict")  # where Lightning and others keep the weights beside what else they keep
_ADVICE = "write the weights alone, on a machine where you trust it:  torch.save(model.state_dict(), 'weights.pth')"


def read_torch(data: bytes, label: str, *, packed: int | None = None) -> Any:
    """What a PyTorch file holds: dictionaries, lists, numbers and tensors on the CPU, nested as they were saved.

    label: what errors call the file; packed: its bytes on disk, where it lay in another. BadWeights, naming what was found,
    when it asks for anything else, is a program (TorchScript, torch.export), or is damaged; no code of the file has run then.
    """
    zipped = data[:4] == b"PK\x03\x04"  # as torch tells them; all else is followed as one pickle after another
    if zipped:
        _refuse_two_readings(data, label)
    archive = Zip(data, label, packed=packed) if zipped else None
    if archive is not None and any(archive.is_renamed(name) for name in archive.members):
        raise BadWeights(f"{label}: a zip archive with two names for one member, made to deceive")
    refuse_programs(data if archive is None else _instructions(archive), label, several=not zipped)
    if archive is not None:
        archive.refuse_damage()  # torch looks at no checksum
    try:
        with torch.serialization.safe_globals(_INERT):
            return _without_attributes(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True))
    except Exception as error:  # torch's readers raise half a dozen kinds for damaged files
        reason = " ".join(str(error).partition("WeightsUnpickler error:")[2].split()) or str(error).partition("\n")[0]
        if reason.startswith("unexpected EOF"):
            raise BadWeights(
                f"{label}: a PyTorch file that was cut short ({shown(reason)[:80]}); fetch it again"
            ) from None
        if reason.startswith("Unsupported operand"):
            reason = (
                "it is written with a newer pickle protocol than torch's own; save it again without pickle_protocol"
            )
        raise BadWeights(
            f"{label}: a PyTorch file that cannot be read without trusting it ({shown(reason)[:160]}); {_ADVICE}"
        ) from None


def _without_attributes(saved: Any) -> Any:
    """The same, its dictionaries without attributes of their own: one called "items" would stand before the method."""
    waiting, seen = [saved], set[int]()
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        if isinstance(one, (dict, list, tuple, set)):
            seen.add(id(one))
        if isinstance(one, dict):
            for name in [name for name in getattr(one, "__dict__", ()) if name != "_metadata"]:
                delattr(one, name)
            waiting += [*dict.keys(one), *dict.values(one)]
        elif isinstance(one, (list, tuple, set)):
            waiting += one
        elif isinstance(one, argparse.Namespace):
            seen.add(id(one))
            waiting += vars(one).values()
    return saved


def is_torch_zip(archive: Zip) -> bool:
    """Whether the archive is what `torch.save` writes, or one of PyTorch's kinds of program."""
    return any(name.split("/")[-1] in ("data.pkl", "archive_format") for name in archive.members)


def _refuse_two_readings(data: bytes, label: str) -> None:
    """BadWeights where torch might find another table of contents in the zip than Python does.

    Torch goes where the record at the end points; Python takes the table that stands before that record.
    """
    at = len(data) - _END.size
    sound = at >= 0 and data[at : at + 4] == b"PK\x05\x06"
    if sound:
        *_, size, offset, comment = _END.unpack_from(data, at)
        sound, locator = comment == 0, at - _LOCATOR.size
        if sound and locator >= 0 and data[locator : locator + 4] == b"PK\x06\x07":
            at = locator - _END64.size
            _, _, there, _ = _LOCATOR.unpack_from(data, locator)
            sound = at >= 0 and there == at and data[at : at + 4] == b"PK\x06\x06"
            if sound:
                *_, size64, offset64 = _END64.unpack_from(data, at)
                sound = size in (size64, 2**32 - 1) and offset in (offset64, 2**32 - 1)
                size, offset = size64, offset64
        sound = sound and offset + size == at
    if not sound:
        raise BadWeights(
            f"{label}: a zip archive whose table of contents is not where its end says; damaged, or made to deceive"
        )


# What stands at the end of a zip archive, of one that may be larger than 4 GB too (APPNOTE.TXT 4.3.14 to 4.3.16).
_END, _LOCATOR, _END64 = struct.Struct("<4s4H2IH"), struct.Struct("<4sIQI"), struct.Struct("<4sQ2H2I4Q")


def _instructions(archive: Zip) -> bytes:
    """The one pickle in a file of torch.save."""
    names = archive.members
    inside = {name.partition("/")[2] for name in names}
    if any(name.startswith("code/") for name in inside) or "constants.pkl" in inside:
        raise BadWeights(f"{archive.label}: is TorchScript, a program, which is not run; {_ADVICE}")
    if "archive_format" in inside or any(name.startswith("models/") for name in inside):
        raise BadWeights(f"{archive.label}: is a torch.export archive, a program, which is not run; {_ADVICE}")
    if len({name.casefold() for name in names}) < len(names):  # torch looks members up so
        raise BadWeights(f"{archive.label}: two of its members differ only in the case of their names; {_ADVICE}")
    found = [name for name in names if name.split("/")[-1] == "data.pkl"]
    if len(found) != 1:
        raise BadWeights(f"{archive.label}: holds {len(found)} files data.pkl, expected one; {_ADVICE}")
    return archive.read(found[0], at_most=_MAX_PICKLE_BYTES)


def refuse_programs(data: bytes, label: str, *, several: bool) -> None:
    """BadWeights, naming them, when the pickle asks for classes or functions beyond those of plain weights.

    several: whether pickles may follow each other, as in files of torch before 1.6; what follows them is tensors.
    """
    asked: dict[str, None] = {}
    stream = io.BytesIO(data)
    try:
        # Magic number, protocol, machine, what was saved, keys of the tensors' bytes, which follow and are no pickle.
        for number in range(5 if several else 1):
            try:
                for name in globals_in(stream):
                    asked[name] = None
            except Unusual:
                raise
            except Exception:
                if number == 0:
                    raise
                break
    except Unusual as error:
        if not isinstance(error, Uncallable) or all(map(_allowed, asked)):
            raise BadWeights(
                f"{label}: is a pickle with {error}, which plain weights never need; it was not opened"
            ) from None
    except Exception as error:  # pickletools meets anything in a damaged file
        raise BadWeights(f"{label}: a damaged pickle ({shown(str(error))[:120]}); fetch the file again") from None
    strangers = [name for name in asked if not _allowed(name)]
    if strangers:
        if set(strangers) <= _OF_ARRAYS:
            raise BadWeights(
                f"{label}: is a pickle of NumPy's arrays, as PaddlePaddle and detectron2 keep them, which is not opened; on a "
                "machine where you trust it, load it, and write its arrays by name:  numpy.savez('weights.npz', **arrays)"
            )
        if all(_is_number_kind(name) for name in strangers):
            kinds = ", ".join(name.removeprefix("torch ") for name in strangers if name.startswith("torch "))
            raise BadWeights(
                f"{label}: holds numbers of a kind that is not read ({kinds or 'none of the usual'}); save the weights in float32"
            )
        odd = dict.fromkeys(_NOT_DENSE[name] for name in strangers if name in _NOT_DENSE)
        if odd and all(name in _NOT_DENSE or _is_number_kind(name) for name in strangers):
            asked_for = ", ".join(name.rpartition(" ")[2] for name in strangers[:3])
            raise BadWeights(f"{label}: is {' and '.join(odd)} ({asked_for}); save the weights dense in float32")
        listed = ", ".join(shown(name[:80]) for name in strangers[:3]) + (", …" if len(strangers) > 3 else "")
        raise BadWeights(f"{label}: asks for {listed}, which could run code, so it was not opened; {_advice_for(data)}")


def _advice_for(data: bytes) -> str:
    """How to write the weights alone: out of the file itself, where its pickle has them under a usual name."""
    key = next((one for one in _STATES if any(begin + one.encode() in data for begin in _begins(len(one)))), None)
    if key is None:
        return _ADVICE
    kept = f"torch.load(path, weights_only=False)['{key}']"
    return f"write the weights alone, on a machine where you trust it:  torch.save({kept}, 'weights.pth')"


def _begins(length: int) -> tuple[bytes, bytes]:
    """How pickles of the usual protocols begin a text of so many letters."""
    return b"X" + length.to_bytes(4, "little"), b"\x8c" + bytes([length])


def _is_number_kind(name: str) -> bool:
    """Whether it is one of torch's rarer kinds of numbers, or what makes tensors of them."""
    module, _, attribute = name.rpartition(" ")
    is_kind = (
        module == "torch" and attribute.isidentifier() and isinstance(getattr(torch, attribute, None), torch.dtype)
    )
    return is_kind or name == "torch._utils _rebuild_tensor_v3"


def _allowed(name: str) -> bool:
    module, _, attribute = name.rpartition(" ")
    return attribute in _ALLOWED.get(module, ())
