"""Pickles, and files of torch.save, that ask for what runs or never ends."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hostile.kinds import KINDS, SCALED, SCALED_MEGABYTES, Kind, kind, written


def text_of(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def _short(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


def command_in(folder: Path) -> str:
    return f"touch {folder}/canary"


def line_of(folder: Path) -> str:
    return f"__import__('os').system({command_in(folder)!r})"


def _global(module: str, name: str, argument: Callable[[Path], str], folder: Path) -> bytes:
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + text_of(argument(folder)) + b"\x85R."


def _getattr(folder: Path) -> bytes:
    module = b"c__builtin__\n__import__\n" + text_of("os") + b"\x85R"
    return (
        b"\x80\x02c__builtin__\ngetattr\n"
        + module
        + text_of("system")
        + b"\x86R"
        + text_of(command_in(folder))
        + b"\x85R."
    )


def _stack_global(folder: Path) -> bytes:
    return b"\x80\x04" + _short("os") + _short("system") + b"\x93" + text_of(command_in(folder)) + b"\x85R."


def _memoised(folder: Path) -> bytes:
    names = _short("os") + b"\x940" + _short("system") + b"\x940" + _short("plain") + b"0"
    return b"\x80\x04" + names + b"h\x00h\x01\x93" + text_of(command_in(folder)) + b"\x85R."


def _covered(folder: Path) -> bytes:
    """Names of a harmless class are put on the stack after those that count, and taken off again."""
    names = _short("os") + _short("system") + _short("collections") + _short("OrderedDict") + b"00"
    return b"\x80\x04" + names + b"\x93" + text_of(command_in(folder)) + b"\x85R."


def _inst(folder: Path) -> bytes:
    return b"\x80\x02(" + text_of(command_in(folder)) + b"ios\nsystem\n."


def _obj(folder: Path) -> bytes:
    return b"\x80\x02(cos\nsystem\n" + text_of(command_in(folder)) + b"o."


def _state(folder: Path) -> bytes:
    """functools.partial, whose state holds the call."""
    return b"\x80\x02cfunctools\npartial\ncos\nsystem\n\x85R" + text_of(command_in(folder)) + b"\x85R."


def _own_module(folder: Path) -> bytes:
    (folder / "payload_module.py").write_text(f"open({str(folder / 'canary')!r}, 'w').close()\ndef run(x): pass\n")
    return b"\x80\x02cpayload_module\nrun\n" + text_of("x") + b"\x85R."


def _plain_text(folder: Path) -> bytes:
    """Protocol 0 has no magic number."""
    return b"cos\nsystem\n(S'" + command_in(folder).encode() + b"'\ntR."


LIVE: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "os.system by GLOBAL": (partial(_global, "os", "system", command_in), "os system"),
    "posix.system by GLOBAL": (partial(_global, "posix", "system", command_in), "posix system"),
    "eval": (partial(_global, "builtins", "eval", line_of), "builtins eval"),
    "exec": (partial(_global, "__builtin__", "exec", line_of), "__builtin__ exec"),
    "getattr of an import": (_getattr, "__builtin__ getattr, __builtin__ __import__"),
    "os.system by STACK_GLOBAL": (_stack_global, "os system"),
    "os.system by STACK_GLOBAL of memoised names": (_memoised, "os system"),
    "os.system by STACK_GLOBAL under covered names": (_covered, "(os system|STACK_GLOBAL|Unsupported operand 147)"),
    "os.system by INST": (_inst, "the instruction INST"),
    "os.system by OBJ": (_obj, "the instruction OBJ"),
    "os.system in functools.partial": (_state, "functools partial, os system"),
    "a module beside the file": (_own_module, "payload_module run"),
    "os.system in a pickle of text": (_plain_text, "no file of weights that burnish knows"),
}  # fmt: skip


def old_file(folder: Path, payload: bytes, *, magic: bytes = b"") -> bytes:
    """A file of torch before 1.6, whose fourth pickle is the payload."""
    begin = magic or pickle.dumps(0x1950A86A20F9469CFC6C, 2)
    sizes = {"short": 2, "int": 4, "long": 4}
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": sizes}
    return begin + pickle.dumps(1001, 2) + pickle.dumps(system, 2) + payload + pickle.dumps([], 2)


def torch_zip(
    folder: Path,
    payload: bytes,
    *,
    name: str = "hostile.pth",
    storage: bytes = b"\0" * 4,
    more: dict[str, bytes] | None = None,
) -> Path:
    entries = {"data.pkl": payload, "byteorder": b"little", "data/0": storage, "version": b"3\n", **(more or {})}
    with zipfile.ZipFile(folder / name, "w") as archive:
        for inner, data in entries.items():
            packed = zipfile.ZIP_DEFLATED if len(data) > 2**20 and inner == "data.pkl" else zipfile.ZIP_STORED
            archive.writestr(f"archive/{inner}", data, packed)
    return folder / name


for _name, (_payload, _found) in LIVE.items():
    KINDS.append(Kind(_name, lambda folder, make=_payload: written(folder, "hostile.pth", make(folder)), _found))
    if _payload is not _plain_text:
        KINDS.append(
            Kind(
                f"{_name} in a file of torch.save",
                lambda folder, make=_payload: torch_zip(folder, make(folder)),
                _found,
            )
        )
        KINDS.append(
            Kind(
                f"{_name} in the fourth pickle of an old file of torch.save",
                lambda folder, make=_payload: written(folder, "hostile.pt", old_file(folder, make(folder))),
                _found,
            )
        )


@kind("nt system")
def windows_system(folder):
    return written(folder, "hostile.pth", _global("nt", "system", command_in, folder))


@kind("os system")
def an_old_file_whose_first_pickle_is_spelled_otherwise(folder):
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2)[:-1] + b"q\x00."
    return written(folder, "hostile.pth", old_file(folder, LIVE["os.system by GLOBAL"][0](folder), magic=magic))


@kind("os system|two members|differ only in the case")  # the harmless one may be read
def two_pickles_whose_names_differ_by_case(folder):
    plain = pickle.dumps({"a.b": 1.0}, 2)
    return torch_zip(folder, plain, more={"DATA.PKL": LIVE["os.system by GLOBAL"][0](folder)})


@kind("the instruction EXT1")
def a_class_by_extension_code(folder):
    return written(folder, "hostile.pth", b"\x80\x02\x82\x01.")


@kind("torch.nn.modules.linear Linear")
def a_pickled_module(folder):
    torch.save(nn.Sequential(nn.Linear(2, 2)), folder / "hostile.pth")
    return folder / "hostile.pth"


@kind("is TorchScript, a program")
def torchscript(folder):
    more = {"code/__torch__.py": b"class M(Module):\n  pass\n", "constants.pkl": b"\x80\x02)."}
    return torch_zip(folder, b"\x80\x02c__torch__\nM\n)\x81.", more=more)


@kind("is a torch.export archive, a program")
def torch_export(folder):
    with zipfile.ZipFile(folder / "hostile.pt2", "w") as archive:
        archive.writestr("net/archive_format", "pt2")
        archive.writestr("net/models/model.json", "{}")
        archive.writestr("net/data/weights/model.pt", LIVE["os.system by GLOBAL"][0](folder))
    return folder / "hostile.pt2"


@kind("numpy")
def an_array_of_objects(folder):
    torch.save({"a.b": np.array([OrderedDict], object)}, folder / "hostile.pth")
    return folder / "hostile.pth"


@kind(r"is quantised \(_rebuild_qtensor.*dense in float32")
def a_quantised_tensor(folder):
    torch.save({"a.b": torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8)}, folder / "hostile.pth")
    return folder / "hostile.pth"


@kind(r"is sparse \(_rebuild_sparse_tensor.*dense in float32")
def a_sparse_tensor(folder):
    torch.save({"a.b": torch.eye(3).to_sparse()}, folder / "hostile.pth")
    return folder / "hostile.pth"


@kind("without values.*dense in float32")
def a_tensor_without_values(folder):
    torch.save({"a.b": torch.empty(4, device="meta")}, folder / "hostile.pth")
    return folder / "hostile.pth"


@kind(r"a\.b claims \[1000000, 1000000\] numbers")
def a_tensor_that_claims_more_than_its_storage(folder):
    torch.save({"a.b": torch.zeros(1).as_strided((10**6, 10**6), (0, 0))}, folder / "hostile.pth")
    return folder / "hostile.pth"


@kind("out of bounds|cannot be read")
def a_tensor_beyond_its_storage(folder):
    torch.save({"a.b": torch.zeros(4)}, folder / "valid.pth")
    with zipfile.ZipFile(folder / "valid.pth") as archive:
        program = archive.read("valid/data.pkl")
    assert program.count(b"K\x04\x85") == 1
    return torch_zip(folder, program.replace(b"K\x04\x85", b"J\xff\xff\xff\x7f\x85"), storage=b"\0" * 16)


@kind("", megabytes=SCALED_MEGABYTES)
def a_bytearray_of_any_size(folder):
    return torch_zip(folder, b"\x80\x02cbuiltins\nbytearray\nJ\x00\x00\x00\x0a\x85R.")


@kind("", megabytes=SCALED_MEGABYTES)
def a_text_doubled_until_it_fills_the_memory(folder):
    calls, ends = b"c_codecs\nencode\n" * 17, (text_of("hex") + b"\x86R") * 16
    return torch_zip(folder, b"\x80\x02" + calls + text_of("x" * 2048) + text_of("latin1") + b"\x86R" + ends + b".")


@kind("", megabytes=SCALED_MEGABYTES)
def a_scalar_of_any_size(folder):
    kind = b"cnumpy\ndtype\n" + text_of("V167772160") + b"\x85R"
    return torch_zip(folder, b"\x80\x02cnumpy.core.multiarray\nscalar\n" + kind + b"\x85R.")


@kind("", megabytes=SCALED_MEGABYTES)
def half_precision_under_many_names(folder):
    """Each name becomes a copy in full precision."""
    one = torch.zeros(2**22, dtype=torch.float16)
    torch.save({f"a.{number}": one for number in range(12)}, folder / "hostile.pth")
    return folder / "hostile.pth"


@kind("", seconds=SCALED)
def a_name_of_thousands_of_wrappers(folder):
    torch.save({"0." * 2_500 + "weight": torch.zeros(1)}, folder / "hostile.pth")
    return folder / "hostile.pth"


@kind("", seconds=SCALED)
def one_dictionary_under_many_names(folder):
    inner = dict.fromkeys((f"k{number}" for number in range(1_500)), 0)
    return torch_zip(folder, pickle.dumps({f"n{number}": inner for number in range(1_500)}, 2))


@kind("", seconds=SCALED)
def a_pickle_of_millions_of_instructions(folder):
    return torch_zip(folder, b"\x80\x02" + b"N0" * 2**20 + b"N.")


@kind("damaged pickle|nested|cannot be read|many keys")
def a_pickle_nested_a_hundred_thousand_deep(folder):
    return written(folder, "hostile.pth", b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".")


@kind("damaged pickle")
def a_pickle_that_claims_a_text_of_four_gigabytes(folder):
    return written(folder, "hostile.pth", b"\x80\x04X\xff\xff\xff\xffabc.")


@kind("alloc|memory|claims|cannot be read")
def an_old_file_whose_storage_is_claimed_to_have_a_trillion_numbers(folder):
    storage = (
        b"(("
        + text_of("storage")
        + b"ctorch\nFloatStorage\n"
        + text_of("0")
        + text_of("cpu")
        + b"\x8a\x06\x00\x00\x00\x00\x00\x01NtQ"
    )
    return written(folder, "hostile.pth", old_file(folder, b"\x80\x02" + storage + b"0N."))
