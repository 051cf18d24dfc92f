"""Promise P8 for foreign model files: what is not plain weights is refused in one sentence, soon, and none of it runs.

Each file is read by a process of its own, the reader, which notes whatever code could do (sys.addaudithook), how long it
took and how much memory. A file that hangs or crashes the reader costs that process only.
"""

from __future__ import annotations

import gzip
import io
import json
import marshal
import os
import pickle
import random
import re
import resource
import select
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

MOST_SECONDS = 5.0
MOST_MEGABYTES = 500
SCALED_MEGABYTES = 100
SCALED = 0.4  # seconds: for files that are a part of what they could be, so that a hang costs this test little


# ---- the reader ------------------------------------------------------------------------------------------------------

_RUNS = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty",
         "os.startfile", "pty.spawn", "socket.connect", "socket.getaddrinfo", "pickle.find_class", "ctypes.dlopen",
         "os.remove", "os.rename", "os.mkdir", "os.symlink", "os.link", "shutil.rmtree")  # fmt: skip


def serve() -> None:
    """Read the files whose paths come in, one JSON a line; answer each with what happened."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import h5py  # noqa: F401

    from burnish.backbones import zoo
    from burnish.errors import BurnishError

    torch.set_num_threads(1)
    seen: list[str] = []
    watching = False
    own_reader = str(Path(zoo.__file__).with_name("keras") / "hdf5.py")  # HDF5 is read in a process of burnish's own

    def watch(event: str, args: tuple[Any, ...]) -> None:
        if not watching:
            return
        if event in _RUNS and not (
            event == "subprocess.Popen" and list(args[1])[:-1] == [sys.executable, "-I", own_reader]
        ):
            seen.append(f"{event} {args!r}"[:200])
        elif event == "import" and str(args[0]).startswith("payload"):
            seen.append(f"import {args[0]}")
        elif event in ("compile", "exec", "marshal.loads"):
            what = args[0].co_consts if event == "exec" and hasattr(args[0], "co_consts") else args[0]
            if "canary" in repr(what):
                seen.append(event)
        elif event == "open":
            path, mode, flags = args
            if isinstance(path, int):  # a pipe
                return
            writes = any(char in (mode or "") for char in "wax+") or (flags or 0) & (
                os.O_WRONLY | os.O_RDWR | os.O_CREAT
            )
            if writes or "secret" in str(path) or str(path).startswith("/etc/"):
                seen.append(f"open {path} {mode or flags}")

    sys.addaudithook(watch)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(
        resource.RLIMIT_AS, (used + 8 * 2**30, used + 8 * 2**30)
    )  # a bomb shall not take the machine down
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        sys.path.insert(0, asked["folder"])
        before, begin = _memory(reset=True), _seconds()
        seen, watching = [], True
        answer: dict[str, Any] = {"outcome": "loaded", "message": ""}
        try:
            if asked["trusting"]:
                pickle.loads(Path(asked["path"]).read_bytes())
            else:
                backbone = zoo.load_backbone(asked["path"], preprocess=asked["preprocess"])
                answer["message"] = backbone.name
        except BurnishError as error:
            answer = {"outcome": "refused", "message": str(error)}
        except BaseException as error:
            place = error.__traceback__
            while (
                place is not None
                and place.tb_next is not None
                and "burnish" in place.tb_next.tb_frame.f_code.co_filename
            ):
                place = place.tb_next
            where = f"{Path(place.tb_frame.f_code.co_filename).name}:{place.tb_lineno}" if place else ""
            answer = {"outcome": "fell", "message": f"{type(error).__name__}: {str(error)[:300]} ({where})"}
        watching = False
        answer |= {"seconds": _seconds() - begin, "megabytes": _memory() - before, "seen": seen}
        del sys.path[0]
        print(json.dumps(answer), file=answers, flush=True)


def _seconds() -> float:
    """Of processor time, of this process and of those it waited for."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def _memory(*, reset: bool = False) -> float:
    """The most that this process had in memory since the last reset, in MB."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


class Reader:
    """The process that reads; it is started anew when a file was its end."""

    process: subprocess.Popen[str] | None = None

    def ask(
        self, path: Path, *, preprocess: str | None = None, trusting: bool = False, limit: float = 20.0
    ) -> dict[str, Any]:
        if self.process is None:
            env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
            self.process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                            stderr=subprocess.DEVNULL, text=True, env=env)  # fmt: skip
            assert self._answer(120) == "ready\n"
        asked = {"path": str(path), "folder": str(path.parent), "preprocess": preprocess, "trusting": trusting}
        assert self.process.stdin is not None
        print(json.dumps(asked), file=self.process.stdin, flush=True)
        line = self._answer(limit)
        if line:
            return json.loads(line)
        self.process.kill()
        code = self.process.wait()
        self.process = None
        what = "hung" if line is None else f"crashed (exit status {code})"
        return {"outcome": what, "message": "", "seconds": limit, "megabytes": 0, "seen": []}

    def _answer(self, limit: float) -> str | None:
        assert self.process is not None and self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], limit)
        return self.process.stdout.readline() if ready else None

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    pytest.importorskip("h5py", reason="h5py is not installed: pip install 'burnish[keras]'")
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("memory is measured as Linux tells it")
    one = Reader()
    folder = tmp_path_factory.mktemp("valid")
    for make in VALID.values():  # what is imported on first use is not the hostile files' doing
        path = make(folder)
        one.ask(path, preprocess=_preprocess(path))
    yield one
    one.close()


# ---- the table of kinds ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """One way to make a hostile file."""

    name: str
    make: Callable[[Path], Path]  # writes it into a folder; what to load
    found: str  # pattern of what the sentence names
    seconds: float = MOST_SECONDS  # of the reader's processor time
    megabytes: float = MOST_MEGABYTES  # more than it had before


_BROKEN = {
    "a pickle of millions of instructions": "pickletools takes 0.4 µs and more an instruction, and 256 MB are allowed",
}  # what src/ does not refuse as it should, until it is mended; parts of names


KINDS: list[Kind] = []


def kind(
    found: str, *, seconds: float = MOST_SECONDS, megabytes: float = MOST_MEGABYTES
) -> Callable[[Callable[[Path], Path]], Any]:
    def note(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
        name = make.__name__.strip("_").replace("_", " ")
        assert name not in {one.name for one in KINDS}
        KINDS.append(Kind(name, make, found, seconds, megabytes))
        return make

    return note


def _preprocess(path: Path) -> str | None:
    return "none" if path.suffix in (".keras", ".h5") or "keras" in path.name else None


def _written(folder: Path, name: str, data: bytes) -> Path:
    (folder / name).write_bytes(data)
    return folder / name


# ---- pickles ---------------------------------------------------------------------------------------------------------


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def _short(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


def _command(folder: Path) -> str:
    return f"touch {folder}/canary"


def _line(folder: Path) -> str:
    return f"__import__('os').system({_command(folder)!r})"


def _global(module: str, name: str, argument: Callable[[Path], str], folder: Path) -> bytes:
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + _text(argument(folder)) + b"\x85R."


def _getattr(folder: Path) -> bytes:
    module = b"c__builtin__\n__import__\n" + _text("os") + b"\x85R"
    return (
        b"\x80\x02c__builtin__\ngetattr\n" + module + _text("system") + b"\x86R" + _text(_command(folder)) + b"\x85R."
    )


def _stack_global(folder: Path) -> bytes:
    return b"\x80\x04" + _short("os") + _short("system") + b"\x93" + _text(_command(folder)) + b"\x85R."


def _memoised(folder: Path) -> bytes:
    names = _short("os") + b"\x940" + _short("system") + b"\x940" + _short("plain") + b"0"
    return b"\x80\x04" + names + b"h\x00h\x01\x93" + _text(_command(folder)) + b"\x85R."


def _covered(folder: Path) -> bytes:
    """Names of a harmless class are put on the stack after those that count, and taken off again."""
    names = _short("os") + _short("system") + _short("collections") + _short("OrderedDict") + b"00"
    return b"\x80\x04" + names + b"\x93" + _text(_command(folder)) + b"\x85R."


def _inst(folder: Path) -> bytes:
    return b"\x80\x02(" + _text(_command(folder)) + b"ios\nsystem\n."


def _obj(folder: Path) -> bytes:
    return b"\x80\x02(cos\nsystem\n" + _text(_command(folder)) + b"o."


def _state(folder: Path) -> bytes:
    """functools.partial, whose state holds the call."""
    return b"\x80\x02cfunctools\npartial\ncos\nsystem\n\x85R" + _text(_command(folder)) + b"\x85R."


def _own_module(folder: Path) -> bytes:
    (folder / "payload_module.py").write_text(f"open({str(folder / 'canary')!r}, 'w').close()\ndef run(x): pass\n")
    return b"\x80\x02cpayload_module\nrun\n" + _text("x") + b"\x85R."


def _plain_text(folder: Path) -> bytes:
    """Protocol 0 has no magic number."""
    return b"cos\nsystem\n(S'" + _command(folder).encode() + b"'\ntR."


LIVE: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "os.system by GLOBAL": (partial(_global, "os", "system", _command), "os system"),
    "posix.system by GLOBAL": (partial(_global, "posix", "system", _command), "posix system"),
    "eval": (partial(_global, "builtins", "eval", _line), "builtins eval"),
    "exec": (partial(_global, "__builtin__", "exec", _line), "__builtin__ exec"),
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


def _legacy(folder: Path, payload: bytes, *, magic: bytes = b"") -> bytes:
    """A file of torch before 1.6, whose fourth pickle is the payload."""
    begin = magic or pickle.dumps(0x1950A86A20F9469CFC6C, 2)
    sizes = {"short": 2, "int": 4, "long": 4}
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": sizes}
    return begin + pickle.dumps(1001, 2) + pickle.dumps(system, 2) + payload + pickle.dumps([], 2)


def _torch_zip(
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
    KINDS.append(Kind(_name, lambda folder, make=_payload: _written(folder, "hostile.pth", make(folder)), _found))
    if _payload is not _plain_text:
        KINDS.append(
            Kind(
                f"{_name} in a file of torch.save",
                lambda folder, make=_payload: _torch_zip(folder, make(folder)),
                _found,
            )
        )
        KINDS.append(
            Kind(
                f"{_name} in the fourth pickle of an old file of torch.save",
                lambda folder, make=_payload: _written(folder, "hostile.pt", _legacy(folder, make(folder))),
                _found,
            )
        )


@kind("nt system")
def windows_system(folder):
    return _written(folder, "hostile.pth", _global("nt", "system", _command, folder))


@kind("os system")
def an_old_file_whose_first_pickle_is_spelled_otherwise(folder):
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2)[:-1] + b"q\x00."
    return _written(folder, "hostile.pth", _legacy(folder, LIVE["os.system by GLOBAL"][0](folder), magic=magic))


@kind("os system|two members|differ only in the case")  # the harmless one may be read
def two_pickles_whose_names_differ_by_case(folder):
    plain = pickle.dumps({"a.b": 1.0}, 2)
    return _torch_zip(folder, plain, more={"DATA.PKL": LIVE["os.system by GLOBAL"][0](folder)})


@kind("the instruction EXT1")
def a_class_by_extension_code(folder):
    return _written(folder, "hostile.pth", b"\x80\x02\x82\x01.")


@kind("torch.nn.modules.linear Linear")
def a_pickled_module(folder):
    torch.save(nn.Sequential(nn.Linear(2, 2)), folder / "hostile.pth")
    return folder / "hostile.pth"


@kind("is TorchScript, a program")
def torchscript(folder):
    more = {"code/__torch__.py": b"class M(Module):\n  pass\n", "constants.pkl": b"\x80\x02)."}
    return _torch_zip(folder, b"\x80\x02c__torch__\nM\n)\x81.", more=more)


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
    return _torch_zip(folder, program.replace(b"K\x04\x85", b"J\xff\xff\xff\x7f\x85"), storage=b"\0" * 16)


@kind("", megabytes=SCALED_MEGABYTES)
def a_bytearray_of_any_size(folder):
    return _torch_zip(folder, b"\x80\x02cbuiltins\nbytearray\nJ\x00\x00\x00\x0a\x85R.")


@kind("", megabytes=SCALED_MEGABYTES)
def a_text_doubled_until_it_fills_the_memory(folder):
    calls, ends = b"c_codecs\nencode\n" * 17, (_text("hex") + b"\x86R") * 16
    return _torch_zip(folder, b"\x80\x02" + calls + _text("x" * 2048) + _text("latin1") + b"\x86R" + ends + b".")


@kind("", megabytes=SCALED_MEGABYTES)
def a_scalar_of_any_size(folder):
    kind = b"cnumpy\ndtype\n" + _text("V167772160") + b"\x85R"
    return _torch_zip(folder, b"\x80\x02cnumpy.core.multiarray\nscalar\n" + kind + b"\x85R.")


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
    return _torch_zip(folder, pickle.dumps({f"n{number}": inner for number in range(1_500)}, 2))


@kind("", seconds=SCALED)
def a_pickle_of_millions_of_instructions(folder):
    return _torch_zip(folder, b"\x80\x02" + b"N0" * 2**20 + b"N.")


@kind("damaged pickle|nested|cannot be read|many keys")
def a_pickle_nested_a_hundred_thousand_deep(folder):
    return _written(folder, "hostile.pth", b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".")


@kind("damaged pickle")
def a_pickle_that_claims_a_text_of_four_gigabytes(folder):
    return _written(folder, "hostile.pth", b"\x80\x04X\xff\xff\xff\xffabc.")


@kind("alloc|memory|claims|cannot be read")
def an_old_file_whose_storage_is_claimed_to_have_a_trillion_numbers(folder):
    storage = (
        b"(("
        + _text("storage")
        + b"ctorch\nFloatStorage\n"
        + _text("0")
        + _text("cpu")
        + b"\x8a\x06\x00\x00\x00\x00\x00\x01NtQ"
    )
    return _written(folder, "hostile.pth", _legacy(folder, b"\x80\x02" + storage + b"0N."))


# ---- archives --------------------------------------------------------------------------------------------------------


def _zip(
    folder: Path, entries: list[tuple[str, bytes]], *, name: str = "hostile.zip", packed: int = zipfile.ZIP_STORED
) -> Path:
    with zipfile.ZipFile(folder / name, "w", packed) as archive:
        for inner, data in entries:
            archive.writestr(zipfile.ZipInfo(inner), data, packed)
    return folder / name


def _weights(folder: Path) -> bytes:
    return valid_safetensors(folder).read_bytes()


@kind("a bomb")
def a_zip_of_zeros(folder):
    with (
        zipfile.ZipFile(folder / "hostile.zip", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a.pth", "w") as file,
    ):
        for _ in range(100):
            file.write(bytes(2**20))
    return folder / "hostile.zip"


@kind("a bomb")
def a_zip_bomb_in_a_file_of_torch_save(folder):
    return _torch_zip(folder, b"\x80\x02" + b"N0" * 2**24 + b"N.")


@kind("members overlap")
def a_zip_whose_members_overlap(folder):
    """As David Fifield's (2019): the first one's bytes are the second one, its header included."""

    def entry(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(
                "<4s5H3I2H", b"PK\x03\x04", 20, 0, 0, 0, 33, zlib.crc32(data), len(data), len(data), len(name), 0
            )
            + name
        )

    kernel = _weights(folder)
    second = entry(b"b.bin", kernel)
    first = entry(b"a.bin", second + kernel)
    listed = b"".join(
        struct.pack(
            "<4s6H3I5H2I",
            b"PK\x01\x02",
            20,
            20,
            0,
            0,
            0,
            33,
            zlib.crc32(data),
            len(data),
            len(data),
            5,
            0,
            0,
            0,
            0,
            0,
            at,
        )
        + name
        for name, data, at in ((b"a.bin", second + kernel, 0), (b"b.bin", kernel, len(first)))
    )
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 2, 2, len(listed), len(first + second + kernel), 0)
    return _written(folder, "hostile.zip", first + second + kernel + listed + end)


@kind("two members called 'a.safetensors'")
@pytest.mark.filterwarnings("ignore:Duplicate name")
def a_zip_with_two_members_of_one_name(folder):
    data = _weights(folder)
    path = _zip(folder, [("a.safetensors", data), ("b.safetensors", data)])
    return _written(folder, "hostile.zip", path.read_bytes().replace(b"b.safetensors", b"a.safetensors"))


for _inner in ("../x.pth", "a/../../x.pth", "/etc/x.pth", "C:/x.pth", "..\\x.pth"):
    KINDS.append(
        Kind(
            f"a zip with the member {_inner}",
            lambda folder, inner=_inner: _zip(folder, [(inner, _weights(folder))]),
            "climbs out of the archive",
        )
    )


@kind("is a link or a device")
def a_zip_with_a_symbolic_link(folder):
    with zipfile.ZipFile(folder / "hostile.zip", "w") as archive:
        info = zipfile.ZipInfo("model.pth")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/hostname")
    return folder / "hostile.zip"


@kind("two names for one member")
def a_zip_with_another_name_in_its_second_list(folder):
    data = _zip(folder, [("aa.safetensors", _weights(folder))]).read_bytes()
    return _written(folder, "hostile.zip", data.replace(b"aa.safetensors", b"bb.safetensors", 1))


@kind("is encrypted")
def an_encrypted_zip(folder):
    data = bytearray(_zip(folder, [("a.safetensors", _weights(folder))]).read_bytes())
    data[6] |= 1
    data[data.rindex(b"PK\x01\x02") + 8] |= 1
    return _written(folder, "hostile.zip", bytes(data))


@kind("packed in a way that is not read")
def a_zip_packed_with_lzma(folder):
    return _zip(folder, [("a.safetensors", _weights(folder))], packed=zipfile.ZIP_LZMA)


@kind("an archive in an archive")
def a_zip_in_a_zip(folder):
    inner = _zip(folder, [("a.safetensors", _weights(folder))]).read_bytes()
    return _zip(folder, [("inner.zip", inner)])


@kind("an archive in an archive")
def a_tar_in_a_zip(folder):
    return _zip(folder, [("inner.tar.gz", valid_tar(folder).read_bytes())])


@kind("a damaged zip archive|cut short")
def a_truncated_zip(folder):
    data = _zip(folder, [("a.safetensors", _weights(folder))]).read_bytes()
    return _written(folder, "hostile.zip", data[: len(data) * 2 // 3])


@kind("is damaged")
def a_zip_whose_checksum_is_wrong(folder):
    data = bytearray(_zip(folder, [("a.safetensors", _weights(folder))]).read_bytes())
    data[200_000] ^= 1
    return _written(folder, "hostile.zip", bytes(data))


@kind("more than one model")
def a_zip_with_two_models(folder):
    return _zip(folder, [("a.safetensors", _weights(folder)), ("b.safetensors", _weights(folder))])


@kind("has a name of over 4,096 characters")
def a_zip_with_two_models_of_names_without_end(folder):
    return _zip(folder, [(f"{one * 60_000}.safetensors", _weights(folder)) for one in "ab"])


@kind("more than one model")
def a_zip_with_two_models_of_very_long_names(folder):
    return _zip(folder, [(f"{one * 4_000}.safetensors", _weights(folder)) for one in "ab"])


@kind("an archive without a model")
def a_zip_without_a_model(folder):
    return _zip(folder, [("payload.py", b"import os"), ("__init__.py", b"")])


@kind(r"members, expected at most 100,000")
def a_zip_of_too_many_members(folder):
    listed = b"".join(
        struct.pack("<4s6H3I5H2I", b"PK\x01\x02", 20, 20, 0, 0, 0, 33, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0)
        + f"{number:06d}".encode()
        for number in range(110_000)
    )
    count, size = 110_000, len(listed)
    far = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, 0)
    place = struct.pack("<4sIQI", b"PK\x06\x07", 0, size, 1)
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return _written(folder, "hostile.zip", listed + far + place + end)


def _tar(folder: Path, info: tarfile.TarInfo, data: bytes = b"", *, mode: str = "w", name: str = "hostile.tar") -> Path:
    with tarfile.open(folder / name, mode) as archive:
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return folder / name


def _tar_of_type(kind: bytes, folder: Path) -> Path:
    info = tarfile.TarInfo("model.pth")
    info.type, info.linkname = kind, "/etc/hostname"
    return _tar(folder, info)


for _what, _type in (
    ("a symbolic link", tarfile.SYMTYPE), ("a hard link", tarfile.LNKTYPE), ("a character device", tarfile.CHRTYPE),
    ("a block device", tarfile.BLKTYPE), ("a fifo", tarfile.FIFOTYPE),
):  # fmt: skip
    KINDS.append(Kind(f"a tar with {_what}", partial(_tar_of_type, _type), "model.pth is a link or a device"))
for _inner in ("../x.safetensors", "/tmp/x.safetensors"):
    KINDS.append(
        Kind(
            f"a tar with the member {_inner}",
            lambda folder, inner=_inner: _tar(folder, tarfile.TarInfo(inner), _weights(folder)),
            "climbs out of the archive",
        )
    )


@kind("a bomb")
def a_gzip_of_zeros(folder):
    return _tar(folder, tarfile.TarInfo("a.pth"), bytes(24 * 2**20), mode="w:gz", name="hostile.tar.gz")


@kind("a bomb")
def a_tar_of_zeros_packed_with_bzip2(folder):
    return _tar(folder, tarfile.TarInfo("a.pth"), bytes(24 * 2**20), mode="w:bz2", name="hostile.tar")


@kind("damaged tar archive|cut short")
def a_truncated_tar(folder):
    data = valid_tar(folder).read_bytes()
    return _written(folder, "hostile.tar.gz", data[: len(data) // 2])


@kind("two members called 'a.safetensors'")
def a_tar_with_two_members_of_one_name(folder):
    with tarfile.open(folder / "hostile.tar", "w") as archive:
        for _ in range(2):
            info = tarfile.TarInfo("a.safetensors")
            info.size = 4
            archive.addfile(info, io.BytesIO(b"abcd"))
    return folder / "hostile.tar"


@kind("damaged tar archive|cut short|link or a device")
def a_tar_whose_member_has_a_negative_size(folder):
    with tarfile.open(folder / "hostile.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("a.safetensors")
        info.size, info.pax_headers = 0, {"size": "-1024"}
        archive.addfile(info)
    return folder / "hostile.tar"


@kind("damaged tar archive")
def a_gzip_of_text(folder):
    return _written(folder, "hostile.gz", gzip.compress(b"hello"))


# ---- safetensors -----------------------------------------------------------------------------------------------------


def _safetensors(folder: Path, header: bytes | dict[str, Any], data: bytes = b"", *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    return _written(folder, "hostile.safetensors", size.to_bytes(8, "little") + text + data)


def _tensor(shape: list[int], begin: int, end: int, kind: str = "F32") -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}


@kind("header length is wrong")
def safetensors_with_a_header_of_a_million_terabytes(folder):
    return _safetensors(folder, {"a.b": _tensor([1], 0, 4)}, bytes(4), length=2**60)


@kind("damaged safetensors file")
def safetensors_whose_tensors_overlap(folder):
    return _safetensors(folder, {"a.b": _tensor([2], 0, 8), "a.c": _tensor([2], 4, 12)}, bytes(12))


@kind("damaged safetensors file")
def safetensors_with_a_negative_shape(folder):
    return _safetensors(folder, {"a.b": _tensor([-1], 0, 4)}, bytes(4))


@kind("damaged safetensors file")
def safetensors_of_more_numbers_than_bytes(folder):
    return _safetensors(folder, {"a.b": _tensor([10**6, 10**6], 0, 4)}, bytes(4))


@kind("damaged safetensors file")
def safetensors_whose_shape_overflows(folder):
    return _safetensors(folder, {"a.b": _tensor([2**32, 2**32, 2**32], 0, 4)}, bytes(4))


@kind("damaged safetensors file")
def safetensors_nested_a_hundred_thousand_deep(folder):
    return _safetensors(folder, b'{"a":' * 100_000 + b"1" + b"}" * 100_000)


@kind("damaged safetensors file")
def safetensors_of_an_unknown_kind_of_number(folder):
    return _safetensors(folder, {"a.b": _tensor([1], 0, 4, "Q32")}, bytes(4))


@kind("no model 'os.system'")
def safetensors_that_name_a_program_as_their_architecture(folder):
    metadata = {"architecture": "os.system", "__reduce__": _line(folder)}
    return _safetensors(
        folder, {"__metadata__": metadata, "a.b": _tensor([1], 0, 4), "a.c": _tensor([1], 4, 8)}, bytes(8)
    )


# ---- Keras -----------------------------------------------------------------------------------------------------------


def _layer(kind: str, name: str, *inputs: str, calls: int = 1, **options: Any) -> dict[str, Any]:
    more = {key: options.pop(key) for key in ("module", "registered_name") if key in options}
    nodes = [[[one, 0, 0, {}] for one in inputs]] * calls if inputs else []
    return {"class_name": kind, "name": name, "config": {"name": name, **options}, "inbound_nodes": nodes, **more}


def _images(size: Any = 32, *, name: str = "images") -> dict[str, Any]:
    return _layer("InputLayer", name, batch_shape=[None, size, size, 3])


def _model(*layers: dict[str, Any], outputs: tuple[str, ...] = ()) -> dict[str, Any]:
    ends = outputs or (layers[-1]["name"],)
    config = {
        "name": "net",
        "layers": list(layers),
        "input_layers": [["images", 0, 0]],
        "output_layers": [[one, 0, 0] for one in ends],
    }
    return {"class_name": "Functional", "config": config}


def _chain(*layers: dict[str, Any], size: Any = 32) -> dict[str, Any]:
    """Each layer takes what the one before it gives."""
    before = "images"
    for one in layers:
        one["inbound_nodes"] = [[[before, 0, 0, {}]]]
        before = one["name"]
    return _model(_images(size), *layers)


def _conv(name: str = "conv", **options: Any) -> dict[str, Any]:
    return _layer("Conv2D", name, **{"filters": 4, "kernel_size": [3, 3], **options})


def _arrays(fill: Callable[[Any], None] | None = None) -> bytes:
    import h5py

    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 4)).astype(np.float32)
        file["layers/conv2d/vars/0"], file["layers/conv2d/vars/1"] = kernel, np.zeros(4, np.float32)
        if fill is not None:
            fill(file)
    return stream.getvalue()


def _keras(folder: Path, config: Any, fill: Callable[[Any], None] | None = None) -> Path:
    text = config if isinstance(config, bytes) else json.dumps(config).encode()
    with zipfile.ZipFile(folder / "hostile.keras", "w") as archive:
        archive.writestr("metadata.json", '{"keras_version": "3.0.0"}')
        archive.writestr("config.json", text, zipfile.ZIP_DEFLATED if len(text) > 2**20 else zipfile.ZIP_STORED)
        archive.writestr("model.weights.h5", _arrays(fill))
    return folder / "hostile.keras"


def _lambda(folder: Path) -> dict[str, Any]:
    code = marshal.dumps(compile(f"open({str(folder / 'canary')!r}, 'w')", "canary", "eval"))
    import base64

    inner = {
        "class_name": "__lambda__",
        "config": {"code": base64.b64encode(code).decode(), "defaults": None, "closure": None},
    }
    return _layer("Lambda", "payload", function=inner, module="keras.layers")


@kind("payload is a Lambda, which holds code")
def keras_with_a_lambda(folder):
    return _keras(folder, _chain(_conv(), _lambda(folder)))


@kind("payload is a Lambda, which holds code")
def h5_with_a_lambda(folder):
    import h5py

    with h5py.File(folder / "hostile.h5", "w") as file:
        file.attrs["model_config"] = json.dumps(_chain(_conv(), _lambda(folder)))
    return folder / "hostile.h5"


@kind("payload calls 'os.system'")
def keras_with_a_function_of_the_system(folder):
    return _keras(folder, _chain(_conv(), _layer("TFOpLambda", "payload", function="os.system")))


@kind("registered class payload>Layer")
def keras_with_a_registered_class(folder):
    return _keras(folder, _chain(_conv(), _layer("Layer", "own", registered_name="payload>Layer")))


@kind("class system of the module os")
def keras_with_a_class_of_os(folder):
    return _keras(folder, _chain(_conv(), _layer("system", "own", module="os", command=_command(folder))))


@kind("class eval of the module builtins")
def keras_with_eval_as_the_model(folder):
    model = {"module": "builtins", "class_name": "eval", "config": _line(folder)}
    return _keras(folder, model)


@kind("class Payload, whose code is not in the file")
def keras_with_a_model_of_its_own_class(folder):
    return _keras(folder, {**_chain(_conv()), "class_name": "Payload"})


@kind("class get_file, which is not read")
def keras_with_a_utility_of_keras_as_a_layer(folder):
    return _keras(folder, _chain(_conv(), _layer("get_file", "own", module="keras.utils", origin="http://127.0.0.1/x")))


@kind("own is of the class TorchModuleWrapper, which is not read")
def keras_with_a_torch_module(folder):
    return _keras(
        folder, _chain(_conv(), _layer("TorchModuleWrapper", "own", module="keras.layers", torch_module="gAI="))
    )


@kind("conv: activation is .*payload")
def keras_with_a_function_as_an_activation(folder):
    own = {"class_name": "function", "module": "payload_module", "config": "payload", "registered_name": "payload"}
    return _keras(folder, _chain(_conv(activation=own)))


@kind("conv has the option .*which is not plain")
def keras_with_an_object_as_an_option(folder):
    own = {"class_name": "system", "module": "os", "config": {"command": _command(folder)}}
    return _keras(folder, _chain(_conv(filters=own)))


@kind("is no JSON")
def keras_with_a_config_nested_a_hundred_thousand_deep(folder):
    return _keras(folder, b'{"config":' * 100_000 + b"1" + b"}" * 100_000)


@kind("a bomb|config.json has")
def keras_with_a_config_of_seventy_megabytes(folder):
    return _keras(folder, b'{"config": "' + b"a" * (70 * 2**20) + b'"}')


@kind("units is '1000000000'")
def keras_with_a_billion_units(folder):
    return _keras(
        folder, _chain(_layer("Flatten", "flat"), _layer("Dense", "dense", units=10**9), _layer("ReLU", "last"))
    )


@kind("", megabytes=SCALED_MEGABYTES)
def keras_with_millions_of_weights_that_the_file_lacks(folder):
    wide = _conv("wide", filters=3200, kernel_size=2)
    return _keras(folder, _chain(_conv("first", filters=3200, kernel_size=1), wide))


@kind("wide|shape|invalid|reshape")
def keras_with_a_reshape_to_a_trillion(folder):
    return _keras(folder, _chain(_conv(), _layer("Reshape", "wide", target_shape=[2**20, 2**20, 1])))


@kind("gives a tensor of [0-9,]+ numbers")
def keras_with_padding_upon_padding(folder):
    pads = [_layer("ZeroPadding2D", f"pad{number}", padding=[[512, 512], [512, 512]]) for number in range(40)]
    return _keras(folder, _chain(_conv(), *pads))


@kind("gives a tensor of [0-9,]+ numbers")
def keras_that_enlarges_and_enlarges(folder):
    return _keras(
        folder, _chain(_conv(), *[_layer("UpSampling2D", f"up{number}", size=[64, 64]) for number in range(4)])
    )


@kind("", megabytes=SCALED_MEGABYTES)
def keras_that_enlarges_without_measure(folder):
    wide = _layer("UpSampling2D", "up", size=[64, 64])
    return _keras(folder, _chain(_conv(kernel_size=1), wide, _layer("UpSampling2D", "more", size=[2, 2])),
                  lambda file: _replace(file, "layers/conv2d/vars/0", np.zeros((1, 1, 3, 4), np.float32)))  # fmt: skip


def _replace(file: Any, name: str, data: Any) -> None:
    del file[name]
    file[name] = data


@kind("expected 1 to 4096|pixels")
def keras_for_images_of_a_billion_pixels(folder):
    return _keras(folder, _chain(_conv(), size=10**9))


@kind("expected 1 to 4096|pixels")
def keras_for_images_of_more_pixels_than_there_are_numbers(folder):
    return _keras(folder, _chain(_conv(), size=10**30))


@kind("expected 1 to 4096|pixels")
def keras_for_images_of_negative_size(folder):
    return _keras(folder, _chain(_conv(), size=-32))


@kind("take what none of them gives")
def keras_with_a_cycle_of_layers(folder):
    return _keras(folder, _model(_images(), _layer("Add", "a", "images", "b"), _layer("ReLU", "b", "a")))


@kind("1 inputs and 2 outputs")
def keras_with_two_outputs(folder):
    return _keras(
        folder, _model(_images(), _layer("ReLU", "a", "images"), _layer("ReLU", "b", "a"), outputs=("a", "b"))
    )


@kind("is called 2 times")
def keras_with_a_layer_called_twice(folder):
    return _keras(folder, _model(_images(), _layer("PReLU", "a", "images", calls=2)))


@kind("two layers called a")
def keras_with_two_layers_of_one_name(folder):
    return _keras(folder, _model(_images(), _layer("ReLU", "a", "images"), _layer("ReLU", "a", "images")))


@kind("has a layer called")
def keras_with_a_layer_called_like_a_terminal_command(folder):
    return _keras(folder, _chain(_conv("\x1b]0;owned\x07\n")))


@kind("too deep")
def keras_with_models_in_models(folder):
    inner: dict[str, Any] = _layer("ReLU", "last")
    for number in range(50):
        inner = {"class_name": "Sequential", "name": f"m{number}", "config": {"name": f"m{number}", "layers": [inner]}}
    return _keras(folder, inner)


@kind("input|dense|layer")
def keras_whose_classifier_takes_nothing(folder):
    dense = _layer("Dense", "dense", units=5)
    dense["inbound_nodes"] = [[]]
    return _keras(folder, _model(_images(), _conv() | {"inbound_nodes": [[["images", 0, 0, {}]]]}, dense))


@kind("no layers|nothing|layer")
def keras_of_a_classifier_alone(folder):
    return _keras(
        folder,
        {
            "class_name": "Sequential",
            "config": {"name": "net", "layers": [_images(), _layer("Dense", "dense", units=5)]},
        },
    )


@kind("has no layers|config is not one")
def keras_of_no_layers(folder):
    return _keras(folder, {"class_name": "Sequential", "config": {"name": "net", "layers": []}})


@kind("config is not one|config is no|has no layers")
def keras_whose_config_is_numbers(folder):
    return _keras(folder, {"class_name": "Functional", "config": 7})


@kind("", seconds=4.0)
def keras_of_many_layers_from_the_last_to_the_first(folder):
    layers = [_layer("ReLU", f"a{number}", f"a{number - 1}" if number else "images") for number in range(500)]
    last = _layer("Conv2D", "missing", "a499", filters=1, kernel_size=9)
    return _keras(folder, _model(last, *layers[::-1], _images(), outputs=("missing",)))


@kind("", megabytes=SCALED_MEGABYTES)
def keras_with_a_config_of_millions_of_objects(folder):
    padding = {"noise": random.Random(0).randbytes(80_000).hex()}
    text = b'{"config": [' + b"{}," * (2 * 2**20) + b'{}], "more": ' + json.dumps(padding).encode() + b"}"
    return _keras(folder, text)


@kind("missing|has no kernel")
def keras_without_the_weights_of_a_layer(folder):
    return _keras(folder, _chain(_conv(), _conv("missing")))


@kind("NaN or infinite")
def keras_with_infinite_weights(folder):
    return _keras(
        folder, _chain(_conv()), lambda file: _replace(file, "layers/conv2d/vars/1", np.full(4, np.inf, np.float32))
    )


# ---- HDF5 ------------------------------------------------------------------------------------------------------------


def _fifo(folder: Path) -> str:
    """Whoever opens it waits for ever: HDF5's own opening of files is seen by no audit hook."""
    os.mkfifo(folder / "secret.h5")
    return str(folder / "secret.h5")


@kind("layers/x is a link to another file")
def h5_with_an_external_link(folder):
    import h5py

    return _keras(
        folder, _chain(_conv()), lambda file: file.__setitem__("layers/x", h5py.ExternalLink(_fifo(folder), "/a"))
    )


@kind("layers/x is a link to another place")
def h5_with_a_soft_link(folder):
    import h5py

    return _keras(folder, _chain(_conv()), lambda file: file.__setitem__("layers/x", h5py.SoftLink("/layers")))


@kind("vars/0 takes its numbers from another file")
def h5_whose_numbers_lie_in_another_file(folder):
    def fill(file: Any) -> None:
        del file["layers/conv2d/vars/0"]
        file.create_dataset("layers/conv2d/vars/0", (3, 3, 3, 4), "f4", external=[(_fifo(folder), 0, 432)])

    return _keras(folder, _chain(_conv()), fill)


@kind("vars/0 takes its numbers from another file")
def h5_whose_numbers_are_a_view_of_another_file(folder):
    import h5py

    def fill(file: Any) -> None:
        del file["layers/conv2d/vars/0"]
        layout = h5py.VirtualLayout((3, 3, 3, 4), "f4")
        layout[...] = h5py.VirtualSource(_fifo(folder), "a", (3, 3, 3, 4))
        file.create_virtual_dataset("layers/conv2d/vars/0", layout)

    return _keras(folder, _chain(_conv()), fill)


@kind("holds no numbers|has no|vars/0")
def h5_of_lists_of_any_length(folder):
    import h5py

    def fill(file: Any) -> None:
        del file["layers/conv2d/vars/0"]
        file.create_dataset("layers/conv2d/vars/0", (3, 3, 3, 4), h5py.vlen_dtype(np.float32))

    return _keras(folder, _chain(_conv()), fill)


@kind("holds no numbers|has no|vars/0")
def h5_of_references(folder):
    import h5py

    def fill(file: Any) -> None:
        file.create_dataset("layers/other", (10_000,), h5py.ref_dtype)

    return _keras(folder, _chain(_conv()), fill)


@kind("nested too deeply, or hold themselves")
def h5_with_a_group_that_holds_itself(folder):
    return _keras(folder, _chain(_conv()), lambda file: file["layers"].__setitem__("again", file["layers"]))


@kind("", seconds=SCALED)
def h5_whose_groups_hold_the_next_one_twice(folder):
    def fill(file: Any) -> None:
        for depth in range(12):
            group, below = file.require_group(f"g{depth}"), file.require_group(f"g{depth + 1}")
            group["a"], group["b"] = below, below

    return _keras(folder, _chain(_conv()), fill)


@kind("claims [0-9,]+ bytes")
def h5_that_claims_a_trillion_numbers(folder):
    def fill(file: Any) -> None:
        file.create_dataset("layers/other", (10**6, 10**6), "f4", chunks=(1024, 1024))

    return _keras(folder, _chain(_conv()), fill)


@kind("", megabytes=SCALED_MEGABYTES)
def h5_of_six_hundred_megabytes_that_were_never_written(folder):
    def fill(file: Any) -> None:
        file.create_dataset("layers/dense/vars/0", (3072, 50_000), "f4", chunks=(1024, 1024))
        file.create_dataset("layers/dense/vars/1", (50_000,), "f4", chunks=(1024,))

    dense = _layer("Dense", "dense", units=50_000)
    return _keras(folder, _chain(_layer("Flatten", "flat"), dense, _layer("ReLU", "last")), fill)


@kind("config")
def h5_whose_config_is_a_number(folder):
    import h5py

    with h5py.File(folder / "hostile.h5", "w") as file:
        file.attrs["model_config"], file["layers/dense/kernel"] = 7, np.zeros(4, np.float32)
    return folder / "hostile.h5"


@kind("HDF5|layer|root|own")
def h5_with_weights_at_the_root(folder):
    import h5py

    with h5py.File(folder / "hostile.h5", "w") as file:
        file["kernel"] = np.zeros(4, np.float32)
    return folder / "hostile.h5"


@kind("layer_names|damaged|layers")
def h5_whose_list_of_layers_is_a_number(folder):
    import h5py

    with h5py.File(folder / "hostile.h5", "w") as file:
        file.attrs["layer_names"], file["dense/kernel"] = 7, np.zeros(4, np.float32)
    return folder / "hostile.h5"


@kind("layer_names|damaged|layers")
def h5_whose_list_of_layers_names_nothing(folder):
    import h5py

    with h5py.File(folder / "hostile.h5", "w") as file:
        file.attrs["layer_names"], file["dense/kernel"] = [b"", b"/", b"../..", b"\xff"], np.zeros(4, np.float32)
    return folder / "hostile.h5"


@kind("config|damaged|layers")
def h5_whose_config_is_an_empty_attribute(folder):
    import h5py

    with h5py.File(folder / "hostile.h5", "w") as file:
        file.attrs["model_config"], file["dense/kernel"] = h5py.Empty("S10"), np.zeros(4, np.float32)
    return folder / "hostile.h5"


# ---- what is no model, and what lies beside one ----------------------------------------------------------------------


@kind("is a web page")
def a_web_page(folder):
    return _written(folder, "hostile.pth", b"\n<!DOCTYPE html><html><script>alert(1)</script></html>")


@kind("is a Git LFS pointer")
def a_pointer_of_git_lfs(folder):
    return _written(
        folder, "hostile.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    )


@kind("the file is empty")
def an_empty_file(folder):
    return _written(folder, "hostile.pth", b"")


@kind("is not a plain file")
def a_fifo(folder):
    os.mkfifo(folder / "hostile.pth")
    return folder / "hostile.pth"


@kind("is not a plain file")
def a_device(folder):
    (folder / "hostile.pth").symlink_to("/dev/zero")
    return folder / "hostile.pth"


@kind("no such file|not a plain file|cannot be read")
def a_link_to_itself(folder):
    (folder / "hostile.pth").symlink_to("hostile.pth")
    return folder / "hostile.pth"


@kind("a folder without a file of weights")
def a_folder_without_weights(folder):
    (folder / "inner.pth").mkdir()
    os.mkfifo(folder / "inner.pth" / "a.pth")
    return folder / "inner.pth"


@kind("no file of weights that burnish knows")
def a_python_program(folder):
    return _written(folder, "hostile.pt", f"import os\n{_line(folder)}\n".encode())


@kind("no file of weights that burnish knows")
def a_program_of_the_machine(folder):
    return _written(folder, "hostile.bin", b"\x7fELF" + bytes(60))


def _beside(config: Any, folder: Path) -> Path:
    text = config if isinstance(config, bytes) else json.dumps(config).encode()
    (folder / "config.json").write_bytes(text)
    return valid_safetensors(folder)


for _what, _config, _found in (
    ("names a program", {"architecture": "os.system"}, "os.system"),
    ("names a path", {"architecture": "../../etc/passwd"}, "etc"),
    ("names control characters", {"architecture": "\x1b[2Jresnet18"}, "resnet18"),
    ("is nested a hundred thousand deep", b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
    ("holds NaN", b'{"architecture": NaN}', "not JSON"),
    ("wants images of a billion pixels",
     {"architecture": "resnet18", "pretrained_cfg": {"input_size": [3, 10**9, 10**9]}}, "1 to 4096|resnet18"),
    ("says numbers where words should be",
     {"architecture": "resnet18", "pretrained_cfg": {"crop_mode": 5, "mean": "abc"}}, "resnet18"),
    ("says words where numbers should be",
     {"architecture": "resnet18", "pretrained_cfg": {"crop_pct": "1e400", "std": [[], {}, None]}}, "resnet18"),
    ("says lists where words should be",
     {"architecture": "resnet18", "pretrained_cfg": {"interpolation": ["bicubic"], "crop_mode": {}}}, "resnet18"),
):  # fmt: skip
    KINDS.append(Kind(f"a config.json that {_what}", partial(_beside, _config), _found))


# ---- valid files, to be damaged --------------------------------------------------------------------------------------


def _small(folder: Path) -> dict[str, torch.Tensor]:
    """The smallest network that is told by its tensors."""
    from burnish.backbones import cifar

    torch.manual_seed(0)
    return cifar.build("cifar_resnet8", {"shortcut": "pad"}).state_dict()


def valid_safetensors(folder: Path) -> Path:
    from safetensors.torch import save_file

    save_file(_small(folder), folder / "valid.safetensors")
    return folder / "valid.safetensors"


def valid_torch(folder: Path) -> Path:
    torch.save({"state_dict": _small(folder), "args": {"lr": 0.1}}, folder / "valid.pth")
    return folder / "valid.pth"


def valid_legacy(folder: Path) -> Path:
    torch.save(_small(folder), folder / "legacy.pth", _use_new_zipfile_serialization=False)
    return folder / "legacy.pth"


def valid_keras(folder: Path) -> Path:
    _keras(folder, _chain(_conv(), _layer("GlobalAveragePooling2D", "pool"))).rename(folder / "valid.keras")
    return folder / "valid.keras"


def valid_h5(folder: Path) -> Path:
    import h5py

    with h5py.File(folder / "valid.h5", "w") as file:
        file.attrs["model_config"] = json.dumps(_chain(_conv(), _layer("GlobalAveragePooling2D", "pool")))
        file.create_group("model_weights").attrs["layer_names"] = [b"conv"]
        group = file.create_group("model_weights/conv")
        group.attrs["weight_names"] = [b"conv/kernel:0", b"conv/bias:0"]
        group["conv/kernel:0"] = np.random.default_rng(0).normal(size=(3, 3, 3, 4)).astype(np.float32)
        group["conv/bias:0"] = np.zeros(4, np.float32)
    return folder / "valid.h5"


def valid_zip(folder: Path) -> Path:
    return _zip(folder, [("net/model.safetensors", _weights(folder)), ("net/config.json", b"{}")], name="valid.zip")


def valid_tar(folder: Path) -> Path:
    data = _weights(folder)
    return _tar(folder, tarfile.TarInfo("net/model.safetensors"), data, mode="w:gz", name="valid.tar.gz")


VALID: dict[str, Callable[[Path], Path]] = {
    "a file of torch.save": valid_torch, "an old file of torch.save": valid_legacy, "safetensors": valid_safetensors,
    "Keras's zip": valid_keras, "Keras's HDF5": valid_h5, "a zip": valid_zip, "a tar": valid_tar,
}  # fmt: skip


# ---- the promises ----------------------------------------------------------------------------------------------------


def _table() -> Iterator[Any]:
    for one in KINDS:
        reason = next((words for name, words in _BROKEN.items() if one.name.startswith(name)), "")
        marks = [pytest.mark.xfail(strict=True, reason=reason)] if reason else []
        yield pytest.param(one, id=one.name, marks=marks)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("one", list(_table()))
def test_a_hostile_file_is_refused_in_one_sentence_soon_and_runs_nothing(one, tmp_path, reader):
    path = one.make(tmp_path)
    answer = reader.ask(path, preprocess=_preprocess(path))
    assert not answer["seen"]
    assert not (tmp_path / "canary").exists()
    assert answer["outcome"] == "refused", answer
    message = answer["message"]
    assert answer["seconds"] < one.seconds, answer
    assert answer["megabytes"] < one.megabytes, answer
    assert message.isprintable() and len(message) < 1200, f"{len(message)} characters: {message[:300]}"
    assert re.search(one.found, message), message


@pytest.mark.parametrize("name", LIVE)
def test_the_payloads_would_run_where_a_pickle_is_trusted_and_the_watch_sees_it(name, tmp_path, reader):
    path = _written(tmp_path, "hostile.pth", LIVE[name][0](tmp_path))
    answer = reader.ask(path, trusting=True)
    assert (tmp_path / "canary").exists()
    assert any(event.startswith("pickle.find_class") for event in answer["seen"])
    assert any(event.startswith(("os.system", "import payload_module", "open ")) for event in answer["seen"]), answer


@pytest.mark.parametrize("name", VALID)
def test_the_files_that_are_damaged_below_are_read_when_they_are_whole(name, tmp_path, reader):
    path = VALID[name](tmp_path)
    answer = reader.ask(path, preprocess=_preprocess(path))
    assert answer["outcome"] == "loaded" and not answer["seen"], answer


def test_the_table_has_every_kind_once():
    names = [one.name for one in KINDS]
    assert len(set(names)) == len(names) >= 35


DAMAGES = 56  # of each kind of file; fewer where each costs a process


def _damaged(data: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, mostly where the structure lies, or the file cut short."""
    if rng.random() < 0.25:
        return data[
            : rng.choice(
                (rng.randrange(len(data)), rng.randrange(min(len(data), 600)), len(data) - rng.randrange(1, 300))
            )
        ]
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        near = rng.choice(
            (
                rng.randrange(len(data)),
                rng.randrange(min(len(data), 2000)),
                len(data) - 1 - rng.randrange(min(len(data), 2000)),
            )
        )
        changed[near] = rng.choice((0, 255, 128, changed[near] ^ (1 << rng.randrange(8)), rng.randrange(256)))
    return bytes(changed)


@pytest.mark.parametrize("name", VALID)
def test_a_damaged_file_is_read_or_refused_and_nothing_else(name, tmp_path, reader):
    path = VALID[name](tmp_path)
    data, rng = path.read_bytes(), random.Random(f"damage {name}")
    wrong = []
    for number in range(12 if _preprocess(path) else DAMAGES):
        path.write_bytes(_damaged(data, rng))
        answer = reader.ask(path, preprocess=_preprocess(path), limit=10)
        well = answer["outcome"] in ("loaded", "refused") and not answer["seen"]
        if not well or answer["megabytes"] >= MOST_MEGABYTES or not answer["message"].isprintable():
            wrong.append((number, answer))
    assert not wrong, wrong[:3]


if __name__ == "__main__":
    serve()
