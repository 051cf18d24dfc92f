"""P8: files of weights that were made to harm are refused by name, and nothing in them runs."""

import gzip
import io
import json
import os
import pickle
import random
import re
import struct
import sys
import tarfile
import time
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save

from burnish.backbones.zoo import load_backbone
from burnish.errors import BurnishError

h5py = pytest.importorskip("h5py")
SECONDS = 5
# What a payload would do; reading a file of weights does none of it.
FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "subprocess.Popen",
    "socket.connect",
    "os.remove",
    "os.mkdir",
)
_watching: list[list[str]] = []


def _hook(event, arguments):
    own = event == "subprocess.Popen" and str(arguments[1][-2]).endswith("keras/hdf5.py")  # burnish's reader of HDF5
    own = own or (
        event == "os.mkdir" and "torchinductor" in str(arguments[0])
    )  # of torch, when it first has to do with it
    if _watching and not own and (event.startswith(FORBIDDEN) or (event == "open" and "hostname" in str(arguments[0]))):
        _watching[-1].append(f"{event} {arguments!r}"[:200])


sys.addaudithook(_hook)


class Runs:
    """Pickles to a call."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def zipped(members, *, kind=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", kind) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return file.getvalue()


def torch_zip(instructions):
    return zipped([("a/data.pkl", instructions), ("a/version", "3")])


def saved(value, **options):
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def hdf5(write):
    file = io.BytesIO()
    with h5py.File(file, "w") as opened:
        write(opened)
    return file.getvalue()


def keras(layers, *, config=None):
    images = {
        "module": "keras.layers",
        "class_name": "InputLayer",
        "config": {"batch_shape": [None, 32, 32, 3], "name": "i"},
    }
    whole = {"module": "keras", "class_name": "Sequential", "config": {"name": "s", "layers": [images, *layers]}}
    text = json.dumps(whole) if config is None else config
    return zipped([("config.json", text), ("metadata.json", "{}"), ("model.weights.h5", hdf5(lambda file: None))])


def layer(kind, /, **config):
    more = {key: config.pop(key) for key in ("registered_name", "module") if key in config}
    return {"module": "keras.layers", "class_name": kind, "config": {"name": "x", **config}, **more}


def functional(layers, outputs):
    def entry(name, given):
        return {
            "class_name": "Activation", "name": name, "config": {"name": name, "activation": "relu"},
            "inbound_nodes": [[[one, 0, 0, {}]] for one in given],
        }  # fmt: skip

    images = {
        "class_name": "InputLayer",
        "name": "i",
        "config": {"name": "i", "batch_input_shape": [None, 8, 8, 3]},
        "inbound_nodes": [],
    }
    config = {
        "layers": [images, *(entry(*one) for one in layers)],
        "input_layers": [["i", 0, 0]],
        "output_layers": outputs,
    }
    return json.dumps({"class_name": "Functional", "config": config})


def lying_over():
    base = torch.zeros(4 * 2**20, dtype=torch.half)
    return saved({f"layer.{at}": base[at : at + 4 * 2**20 - 64] for at in range(64)})


def pickled(instructions):
    """A file of torch.save whose one pickle is these instructions."""
    empty = saved({})
    with zipfile.ZipFile(io.BytesIO(empty)) as archive:
        members = [(one.filename, archive.read(one)) for one in archive.infolist()]
    return zipped([(name, instructions if name.endswith("data.pkl") else data) for name, data in members])


def repeated_text(characters, times):
    """A text made into bytes again and again."""
    text = b"x" * characters
    begin = b"\x80\x02" + b"c_codecs\nencode\nq\x01" + b"X" + len(text).to_bytes(4, "little") + text + b"q\x02"
    word = b"X\x06\x00\x00\x00latin1q\x03"
    return pickled(begin + word + b"](" + times * b"h\x01h\x02h\x03\x86R" + b"e.")


def repeated_copies():
    begin = (
        b"\x80\x02"
        + b"cbuiltins\nset\nq\x01"
        + b"]q\x02("
        + b"".join(b"J" + n.to_bytes(4, "little") for n in range(50_000))
        + b"e"
    )
    return pickled(begin + b"](" + 2000 * b"h\x01h\x02\x85q\x07R" + b"e.")


def copies_hidden_by(nothing):
    """As `repeated_copies`, with instructions between that change nothing."""
    whole = repeated_copies()
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        return pickled(archive.read(name).replace(b"h\x01h\x02\x85", b"h\x01h\x02" + nothing + b"\x85"))


def numbers_of_nothing():
    """numpy makes a number of any size where it is told its kind alone."""
    kind = Runs(np.dtype, [("a", "f4", (50_000_000,))])
    return torch_zip(pickle.dumps([Runs(np.float64(0).__reduce__()[0], kind) for _ in range(3)], protocol=2))


def overlapping():
    """Two entries in the list of contents for one place in the file."""
    data = bytearray(zipped([("a.pth", b"x" * 50), ("b.pth", b"y" * 50)]))
    second = data.rfind(b"PK\x01\x02")
    data[second + 42 : second + 46] = struct.pack("<I", 0)
    return bytes(data)


def two_names():
    data = bytearray(zipped([("good.pth", b"x" * 50)]))
    data[30:38] = b"evil.pth"
    return bytes(data)


def link_in_zip():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        info = zipfile.ZipInfo("model.pth")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/hostname")
    return file.getvalue()


def encrypted():
    data = bytearray(zipped([("m.pth", b"x" * 50)]))
    for magic, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.find(magic) + place] |= 1
    return bytes(data)


def tar_of(*members, mode="w:gz"):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def member(name, kind=tarfile.REGTYPE, to=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    return info


def external(file):
    file["x"] = h5py.ExternalLink("/etc/hostname", "/")


def soft(file):
    file["x"] = h5py.SoftLink("/y")


def own_member(file):
    group = file.create_group("g")
    group["g"] = group


def outside(file):
    file.create_dataset("a/kernel:0", shape=(4,), dtype="f4", external=[("/etc/hostname", 0, 16)])


def virtual(file):
    layout = h5py.VirtualLayout(shape=(4,), dtype="f4")
    layout[:] = h5py.VirtualSource("/etc/hostname", "x", shape=(4,))
    file.create_virtual_dataset("a/kernel:0", layout)


def huge(file):
    file.create_dataset("a/kernel:0", shape=(10**6, 10**6), dtype="f4", chunks=(100, 100))


def words(file):
    file.create_dataset("a/kernel:0", shape=(10**5,), dtype=h5py.string_dtype())


def with_lambda(file):
    file.attrs["model_config"] = json.dumps(
        {
            "class_name": "Sequential",
            "config": {"layers": [{"class_name": "Lambda", "config": {"name": "x", "function": ["4wE=", None, None]}}]},
        }
    )


NINE = [layer("Dense", units=60_000, name=f"d{number}") for number in range(3)]
SMALL = {"layer1.weight": torch.ones(2, 2), "layer1.bias": torch.ones(2)}
# name → (file name, bytes, what the message must say); the call is made when the test runs, in its own folder.
KINDS = {
    **{
        f"a pickle that calls system, protocol {protocol}": (
            "m.pth", lambda canary, p=protocol: pickle.dumps({"a": Runs(os.system, f"touch {canary}")}, protocol=p), "posix system"
        )
        for protocol in (2, 3, 4, 5)
    },
    "a pickle in text": ("m.pth", lambda canary: pickle.dumps(Runs(os.system, f"touch {canary}"), protocol=0), "no file of weights"),
    "INST": ("m.pth", lambda canary: b"\x80\x02(S'touch %s'\nios\nsystem\n." % canary.encode(), "INST"),
    "OBJ": ("m.pth", lambda canary: b"\x80\x02(cos\nsystem\nS'touch x'\no.", "OBJ"),
    "a name put together while reading": ("m.pth", lambda canary: b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94h\x00h\x01\x93.", "os system"),
    "a name from nowhere": ("m.pth", lambda canary: b"\x80\x04\x93.", "put together"),
    "eval": ("m.pth", lambda canary: torch_zip(pickle.dumps(Runs(eval, f"open({canary!r}, 'w')"), protocol=4)), "builtins eval"),
    "exec": ("m.pth", lambda canary: torch_zip(pickle.dumps(Runs(exec, "import os"), protocol=2)), "exec"),
    "getattr": ("m.pth", lambda canary: torch_zip(pickle.dumps(Runs(getattr, "a", "b"), protocol=2)), "getattr"),
    "an import": ("m.pth", lambda canary: torch_zip(pickle.dumps(Runs(__import__, "antigravity"), protocol=2)), "__import__"),
    "a folder made": ("m.safetensors", lambda canary: pickle.dumps(Runs(os.mkdir, canary)), "posix mkdir"),
    "a legacy file whose fourth pickle calls": (
        "m.pt",
        lambda canary: saved(SMALL, _use_new_zipfile_serialization=False).replace(b"ccollections\nOrderedDict", b"cposix\nsystem")
        if b"ccollections\nOrderedDict" in saved(SMALL, _use_new_zipfile_serialization=False)
        else saved({"a": Runs(os.system, "true")}, _use_new_zipfile_serialization=False),
        "posix system",
    ),
    "a whole model": ("m.pt", lambda canary: saved(torch.nn.Linear(2, 2)), "torch.nn.modules.linear Linear"),
    "TorchScript": ("m.pt", lambda canary: zipped([("a/data.pkl", b"\x80\x02}."), ("a/code/x.py", b""), ("a/constants.pkl", b"")]), "TorchScript"),
    "a torch.export archive": ("m.pt2", lambda canary: zipped([("a/archive_format", b"pt2"), ("a/data.pkl", b"")]), "torch.export"),
    "two programs in one": ("m.pt", lambda canary: zipped([("a/data.pkl", b""), ("b/data.pkl", b"")]), "2 files data.pkl"),
    "a quantised tensor": ("m.pt", lambda canary: saved({"a": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)}), "rebuild_qtensor"),
    "a sparse tensor": ("m.pt", lambda canary: saved({"a": torch.eye(3).to_sparse()}), "sparse"),
    "more numbers than there are": ("m.pt", lambda canary: saved({"a.b": torch.zeros(1).expand(10**12), "c": torch.ones(2)}), "claims"),
    "tensors that lie over each other": ("m.pt", lambda canary: lying_over(), "lie over each other"),
    "a long text used again and again": ("m.pt", lambda canary: repeated_text(1_000_000, 2000), "used again and again"),
    "a short text used again and again": ("m.pt", lambda canary: repeated_text(4096, 10_000), "used again and again"),
    "sets again and again, hidden by adding nothing": ("m.pt", lambda canary: copies_hidden_by(b"(e"), "again and again"),
    "sets again and again, hidden by adding one": ("m.pt", lambda canary: copies_hidden_by(b"K\x01a"), "again and again"),
    "sets again and again, hidden by a mark": ("m.pt", lambda canary: copies_hidden_by(b"0h\x02"), "again and again"),
    "sets again and again, hidden": ("m.pt", lambda canary: copies_hidden_by(b"\x80\x02"), "again and again"),
    "large numbers of numpy's out of nothing": ("m.pt", lambda canary: numbers_of_nothing(), "put together of others"),
    "a list made into sets again and again": ("m.pt", lambda canary: repeated_copies(), "again and again"),
    "gigabytes of an architecture from a few bytes": (
        "m.safetensors", lambda canary: save(SMALL, {"architecture": "vit_7b_patch16_dinov3"}), "is for another network"),
    "numbers that are none": ("m.pt", lambda canary: saved({f"layer{n}.weight": torch.full((2, 2), float("nan")) for n in range(3)}), "arch"),
    "no weights": ("m.pt", lambda canary: saved({"epoch": 3}), "no weights by name"),
    "a bomb": ("m.zip", lambda canary: zipped([("m.pth", bytes(300_000_000))], kind=zipfile.ZIP_DEFLATED), "bomb"),
    "members that overlap": ("m.zip", lambda canary: overlapping(), "overlap|two names"),
    "two names for one member": ("m.zip", lambda canary: two_names(), "two names"),
    "two members of one name": ("m.zip", lambda canary: zipped([("m.pth", b"x"), ("m.pth", b"y")]), "two members"),
    "a member that climbs out": ("m.zip", lambda canary: zipped([("../m.pth", b"x")]), "climbs out"),
    "an absolute member": ("m.zip", lambda canary: zipped([("/tmp/m.pth", b"x")]), "climbs out"),
    "a link in a zip": ("m.zip", lambda canary: link_in_zip(), "link"),
    "an encrypted member": ("m.zip", lambda canary: encrypted(), "encrypted"),
    "an archive in an archive": ("m.zip", lambda canary: zipped([("inner.zip", zipped([("m.txt", b"x")]))]), "archive in an archive"),
    "two models": ("m.zip", lambda canary: zipped([("a.safetensors", save(SMALL)), ("b.safetensors", save(SMALL))]), "more than one model"),
    "no model": ("m.zip", lambda canary: zipped([("readme.txt", b"x")]), "without a model"),
    "a zip cut short": ("m.zip", lambda canary: zipped([("a.pth", b"x" * 5000)])[:-300], "damaged|cut short|no file"),
    "a link in a tar": ("m.tar.gz", lambda canary: tar_of((member("m.pth", tarfile.SYMTYPE, "/etc/hostname"), b"")), "link"),
    "a hard link in a tar": ("m.tar", lambda canary: tar_of((member("m.pth", tarfile.LNKTYPE, "/etc/hostname"), b""), mode="w"), "link"),
    "a device in a tar": ("m.tar", lambda canary: tar_of((member("m.pth", tarfile.CHRTYPE), b""), mode="w"), "link or a device"),
    "a tar that climbs out": ("m.tar.gz", lambda canary: tar_of((member("../../m.pth"), b"x")), "climbs out"),
    "a bomb in a tar": ("m.tar.gz", lambda canary: tar_of((member("m.pth"), bytes(200_000_000))), "bomb"),
    "a tar cut within a member": ("m.tar", lambda canary: tar_of((member("m.pth"), os.urandom(20_000)), mode="w")[:9000], "damaged|cut short"),
    "a packed tar cut within a long member": (
        "m.tar.gz", lambda canary: tar_of((member("m.pth"), os.urandom(3_000_000)))[:2_000_000], "damaged|cut short"),
    "a tar cut short": ("m.tar.gz", lambda canary: tar_of((member("m.pth"), os.urandom(20_000)))[:9000], "damaged|cut short"),
    "a header of 4 exabytes": ("m.safetensors", lambda canary: struct.pack("<Q", 2**62) + b"{}", "header length is wrong|cut short"),
    "tensors that overlap": ("m.safetensors", lambda canary: _safetensors([0, 16], [8, 24]), "damaged safetensors"),
    "a tensor beyond the end": ("m.safetensors", lambda canary: _safetensors([0, 16], [16, 10**12]), "damaged safetensors"),
    "a Lambda": ("m.keras", lambda canary: keras([layer("Lambda", function={"class_name": "__lambda__", "config": {"code": "4wE="}})]), "Lambda"),
    "a class of the module os": ("m.keras", lambda canary: keras([layer("system", module="os")]), "module os"),
    "eval as a layer": ("m.keras", lambda canary: keras([layer("eval", module="builtins")]), "module builtins"),
    "a registered class": ("m.keras", lambda canary: keras([layer("Dense", units=3, registered_name="Evil>Dense")]), "Evil>Dense"),
    "an unknown layer": ("m.keras", lambda canary: keras([layer("Mystery")]), "Mystery"),
    "an activation that is a function": (
        "m.keras", lambda canary: keras([layer("Dense", units=2, activation={"class_name": "function", "config": "os.system", "registered_name": "os.system"})]), "activation"
    ),
    "an option that would be built": ("m.keras", lambda canary: keras([layer("Reshape", target_shape={"class_name": "eval", "config": {}})]), "not plain"),
    "layers of ten billion weights": ("m.keras", lambda canary: keras([layer("Flatten"), *NINE, layer("Dense", units=2, name="o")]), "weights, expected at most"),
    "maps of terabytes": ("m.keras", lambda canary: keras([layer("UpSampling2D", size=[64, 64], name=f"u{n}") for n in range(3)]), "gives a tensor of"),
    "a padding of nearly nothing": ("m.keras", lambda canary: keras([layer("ZeroPadding2D", padding=10**9)]), "expected one or two whole numbers"),
    "a quantised layer": ("m.keras", lambda canary: keras([layer("Flatten"), layer("Dense", units=2, dtype={"class_name": "QuantizedDTypePolicy", "config": {"mode": "int8", "source_name": "float32"}}), layer("Dense", units=2, name="o")]), "quantised"),
    "a config nested for ever": ("m.keras", lambda canary: keras([], config="[" * 100_000 + "]" * 100_000), "no JSON"),
    "a config of 300 MB": ("m.keras", lambda canary: zipped([("config.json", b" " * 300_000_000), ("model.weights.h5", b"x")], kind=zipfile.ZIP_DEFLATED), "bomb"),
    "layers in a circle": ("m.keras", lambda canary: keras([], config=functional([("a", ["b"]), ("b", ["a"])], [["a", 0, 0]])), "none of them gives"),
    "two outputs": ("m.keras", lambda canary: keras([], config=functional([("a", ["i"]), ("b", ["i"])], [["a", 0, 0], ["b", 0, 0]])), "2 outputs"),
    "layers of one name": ("m.keras", lambda canary: keras([], config=functional([("a", ["i"]), ("a", ["i"])], [["a", 0, 0]])), "two layers called"),
    "a model of a class": ("m.keras", lambda canary: keras([], config='{"module": "evil", "class_name": "Net", "config": {}}'), "module evil"),
    "nothing in it": ("m.keras", lambda canary: keras([]), "no layers"),
    "a link to another file": ("m.h5", lambda canary: hdf5(external), "another file"),
    "a soft link": ("m.h5", lambda canary: hdf5(soft), "another place"),
    "a group in itself": ("m.h5", lambda canary: hdf5(own_member), "hold themselves"),
    "numbers from another file": ("m.h5", lambda canary: hdf5(outside), "another file"),
    "a virtual dataset": ("m.h5", lambda canary: hdf5(virtual), "another file"),
    "terabytes that are not there": ("m.h5", lambda canary: hdf5(huge), "claims"),
    "words for numbers": ("m.h5", lambda canary: hdf5(words), "no numbers"),
    "a Lambda in HDF5": ("m.h5", lambda canary: hdf5(with_lambda), "Lambda"),
    "a web page": ("m.pth", lambda canary: b"<!doctype html><title>404</title>", "web page"),
    "a pointer of Git LFS": ("m.pth", lambda canary: b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
    "nothing": ("m.pth", lambda canary: b"", "empty"),
    "noise": ("m.pth", lambda canary: random.Random(0).randbytes(4096), "no file of weights"),
    "a gzip of nothing but zeros": ("m.tar.gz", lambda canary: gzip.compress(bytes(100_000_000)), "without a model|bomb"),
}  # fmt: skip


def _safetensors(first, second):
    header = json.dumps(
        {
            name: {"dtype": "F32", "shape": [2, 2], "data_offsets": where}
            for name, where in (("a", first), ("b", second))
        }
    )
    return struct.pack("<Q", len(header)) + header.encode() + bytes(32)


def loaded(path):
    return load_backbone(str(path), preprocess="none" if path.suffix in (".keras", ".h5") else None)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_made_to_harm_is_refused_by_name_and_nothing_in_it_runs(kind, tmp_path):
    name, data, words = KINDS[kind]
    path, canary = tmp_path / name, tmp_path / "canary"
    path.write_bytes(data(str(canary)))
    seen: list[str] = []
    _watching.append(seen)
    began = time.monotonic()
    try:
        with pytest.raises(BurnishError) as error:
            loaded(path)
    finally:
        _watching.pop()
    assert time.monotonic() - began < SECONDS
    assert re.search(words, str(error.value)), str(error.value)
    assert len(str(error.value)) < 1000
    assert not seen
    assert sorted(one.name for one in tmp_path.iterdir()) == [name]


def test_the_watch_sees_what_a_payload_would_do(tmp_path):
    seen: list[str] = []
    _watching.append(seen)
    try:
        os.system("true")
        os.mkdir(tmp_path / "canary")
    finally:
        _watching.pop()
    assert [line.split()[0] for line in seen] == ["os.system", "os.mkdir"]


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "m.pth")
    with pytest.raises(BurnishError, match="not a plain file"):
        loaded(tmp_path / "m.pth")


def sound_files():
    from burnish.backbones.cifar import CifarResNet

    state = {f"module.{name}": one for name, one in CifarResNet(8, "pad").state_dict().items()}
    safe = save({name: one.contiguous() for name, one in state.items()})
    net = [layer("Conv2D", filters=4, kernel_size=[3, 3], name="c"), layer("GlobalAveragePooling2D", name="g")]

    def arrays(file):
        file["layers/conv2d/vars/0"] = np.ones((3, 3, 3, 4), "f4")
        file["layers/conv2d/vars/1"] = np.ones(4, "f4")

    whole = json.loads(zipfile.ZipFile(io.BytesIO(keras(net))).read("config.json"))
    net_file = zipped([("config.json", json.dumps(whole)), ("model.weights.h5", hdf5(arrays))])

    def old(file):
        file.attrs["model_config"] = json.dumps(whole)
        file["model_weights/c/c/kernel:0"] = np.ones((3, 3, 3, 4), "f4")
        file["model_weights/c/c/bias:0"] = np.ones(4, "f4")

    return {
        "m.pth": saved({"state_dict": state}), "m.pt": saved(state, _use_new_zipfile_serialization=False), "m.safetensors": safe,
        "m.zip": zipped([("m.safetensors", safe)], kind=zipfile.ZIP_DEFLATED), "m.tar.gz": tar_of((member("m.safetensors"), safe)),
        "m.keras": net_file, "m.h5": hdf5(old),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["m.pth", "m.pt", "m.safetensors", "m.zip", "m.tar.gz", "m.keras", "m.h5"])
def test_a_damaged_file_loads_or_is_refused_in_a_sentence(name, tmp_path):
    sound, draws = sound_files()[name], random.Random(0)
    path = tmp_path / name
    path.write_bytes(sound)
    loaded(path)
    for number in range(24 if name in ("m.h5", "m.keras") else 60):  # each of those is read in a process of its own
        data = bytearray(sound)
        if number % 6 == 5:
            del data[draws.randrange(len(data)) :]
        for _ in range(draws.choice((1, 1, 4, 64))):
            if data:
                # Half of the blows fall on the beginning, where headers are.
                data[draws.randrange(min(len(data), 600) if draws.random() < 0.5 else len(data))] = draws.randrange(256)
        path.write_bytes(data)
        try:
            loaded(path)
        except BurnishError as error:
            assert len(str(error)) < 2000
