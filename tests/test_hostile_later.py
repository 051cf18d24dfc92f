"""Files, servers and packages that deceive by what is beside the weights, and sound ones that look as odd as they do."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import pathlib
import re
import shutil
import struct
import time
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.torch import save_file
from test_backbones_hostile import (
    _chain,
    _conv,
    _images,
    _keras,
    _layer,
    _legacy,
    _model,
    _replace,
    _small,
    _text,
    _torch_zip,
    _written,
)
from test_backbones_hub import (
    assert_a_sentence,
    clock,  # noqa: F401  # the fixture
    raw,
    status,
    web,  # noqa: F401  # the fixture
)

from burnish import cli
from burnish.backbones import hub, zoo
from burnish.backbones.classifier import Classifier
from burnish.backbones.keras import graph
from burnish.backbones.keras.arrays import Arrays
from burnish.backbones.keras.options import Variable
from burnish.backbones.pickles import read_torch
from burnish.errors import (
    BadWeights,
    BurnishError,
    ModelError,
    NotARun,
    UnknownModel,
    UnreadableImage,
    WeightsUnreachable,
)
from burnish.ship import bundle as bundles
from burnish.ship.bundle import Bundle, write_bundle
from burnish.ship.predictor import Predictor

SECRET = "hunter2"  # of a test server that asks for none
GIVEN = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def saved(value: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, **options)
    return stream.getvalue()


def refused(path: Path, **options: Any) -> str:
    """The sentence with which a file is refused."""
    keras = path.suffix in (".keras", ".h5")
    with pytest.raises(BurnishError) as error:
        zoo.load_backbone(str(path), preprocess="none" if keras else None, **options)
    assert_a_sentence(error)
    return str(error.value)


def features(path: Path, **options: Any) -> torch.Tensor:
    backbone = zoo.load_backbone(str(path), **options)
    size = backbone.preprocess.size
    with torch.no_grad():
        return backbone.module(torch.nn.functional.interpolate(GIVEN, (size, size)))


# ---- a file of torch.save with a second name -------------------------------------------------------------------------


def second_name(name: str, other: str, *, behind: bytes = b"") -> zipfile.ZipInfo:
    """A member that readers who heed the extra field 0x7075 call `other`."""
    said = struct.pack("<BL", 1, zlib.crc32(name.encode())) + other.encode()
    info = zipfile.ZipInfo(name)
    info.extra = behind + struct.pack("<HH", 0x7075, len(said)) + said
    return info


MINUTES = struct.pack("<HHBL", 0x5455, 5, 1, 0)  # a time, as zip of Info-ZIP notes it
EVIL, PLAIN = b"\x80\x02cbuiltins\nbytearray\nK\x08\x85R.", b"\x80\x02}."


@pytest.mark.parametrize("behind", [b"", MINUTES], ids=["first", "behind a time"])
@pytest.mark.parametrize("first, second", [(EVIL, PLAIN), (PLAIN, EVIL)], ids=["for torch", "for Python"])
def test_a_member_that_some_readers_call_otherwise_is_two_names_for_one_member(first, second, behind, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr(second_name("archive/data.pkl", "archive/other", behind=behind), first)
        archive.writestr(second_name("archive/harmless", "archive/data.pkl", behind=behind), second)
        archive.writestr("archive/version", "3\n")
    assert "two names for one member" in refused(tmp_path / "a.pth")


def test_members_with_other_extra_fields_are_read(tmp_path):
    state = _small(tmp_path)
    torch.save(state, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as whole, zipfile.ZipFile(tmp_path / "b.pth", "w") as copy:
        for name in whole.namelist():
            info = zipfile.ZipInfo(name)
            info.extra = MINUTES
            copy.writestr(info, whole.read(name))
    assert torch.equal(features(tmp_path / "a.pth"), features(tmp_path / "b.pth"))


# ---- pickles ---------------------------------------------------------------------------------------------------------

DEEP = {
    "one in one": b")" + b"\x85" * 300,
    "of what lies above a mark": b"(" * 300 + b"K\x01" + b"t" * 300,
    "beside numbers": b")" + b"K\x01\x86" * 300,
    "beside two numbers": b")" + b"K\x01K\x01\x87" * 300,
    "half of it kept and fetched": b")" + b"\x85" * 150 + b"q\x070K\x010h\x07" + b"\x85" * 150,
    "half of it within a copy": b")" + b"\x85" * 150 + b"2\x86" + b"\x85" * 150,
}


@pytest.mark.parametrize("how", DEEP)
@pytest.mark.parametrize("older", [False, True], ids=["zip", "before 1.6"])
def test_tuples_in_tuples_without_end_are_no_key_of_a_dictionary(how, older, tmp_path):
    program = b"\x80\x02}" + DEEP[how] + b"K\x01s."
    path = _written(tmp_path, "a.pth", _legacy(tmp_path, program)) if older else _torch_zip(tmp_path, program)
    assert re.search(r"tuples in tuples, over \d+ deep", refused(path))


def test_tuples_of_some_depth_are_read(tmp_path):
    kept: Any = ()
    for number in range(100):
        kept = (kept, number)
    assert read_torch(saved({"a": torch.ones(2), "kept": kept, kept: 1}), "x")["kept"] == kept


KIND = b"cnumpy\ndtype\n(" + _text("%s") + b"\x89\x88tRq\x05"
MINUS = b"J\xff\xff\xff\xff"


def numpy_kind(name: str) -> bytes:
    return KIND.replace(_text("%s"), _text(name))


def of_itself() -> bytes:
    """The state says that the kind is a pair of itself."""
    return numpy_kind("V16") + b"(K\x03" + _text("|") + b"h\x05K\x02\x85\x86NN" + MINUS + MINUS + b"K\x00tb"


def of_another() -> bytes:
    """The state says that a field of it is of another kind, far behind its end."""
    fields = b"}" + _text("a") + b"cnumpy\ndtype\n" + _text("f8") + b"\x85RJ\xff\xff\xff\x7f\x86s"
    return numpy_kind("V8") + b"(K\x03" + _text("|") + b"N" + _text("a") + b"\x85" + fields + b"K\x08K\x01K\x00tb"


def of_a_state_that_was_kept() -> bytes:
    """The same state, made before and fetched again."""
    state = b"(K\x03" + _text("|") + b"h\x05K\x02\x85\x86NN" + MINUS + MINUS + b"K\x00tq\x060"
    return numpy_kind("V16") + b"0" + state + b"h\x05h\x06b"


def called_with_a_list() -> bytes:
    return b"cnumpy\ndtype\n](" + _text("a") + _text("f4") + b"J\x00\x00\x00\x03\x87e\x85R"


@pytest.mark.parametrize("make", [of_itself, of_another, of_a_state_that_was_kept, called_with_a_list])
def test_a_kind_of_numbers_that_is_told_by_another_is_refused(make, tmp_path):
    path = _torch_zip(tmp_path, b"\x80\x02}" + _text("a") + make() + b"s.")
    assert "put together of others" in refused(path)


@pytest.mark.parametrize("older", [False, True], ids=["zip", "before 1.6"])
def test_numbers_of_numpy_beside_the_weights_are_read(older, tmp_path):
    kept = {
        "loss": np.float64(0.5), "best": np.float64(0.25), "accuracies": [np.float64(0.1), np.float64(0.2)],
        "lr": np.float32(0.125), "epoch": np.int64(7), "step": np.int32(70), "done": np.bool_(True),
    }  # fmt: skip
    whole = {"state_dict": _small(tmp_path), **kept}
    data = saved(whole, _use_new_zipfile_serialization=not older)
    found = read_torch(data, "x")
    assert {key: found[key] for key in kept} == kept
    plain = tmp_path / "plain.pth"
    torch.save(_small(tmp_path), plain)
    assert torch.equal(features(_written(tmp_path, "a.pth", data)), features(plain))


# ---- sound, and odd --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PosixPath", "WindowsPath"])
@pytest.mark.parametrize("module", ["pathlib", "pathlib._local"])
def test_a_path_beside_the_weights_is_read_as_a_text(module, kind, tmp_path):
    path = f"c{module}\n{kind}\n".encode() + b"(" + _text("/") + _text("data") + _text("flowers") + b"tR"
    found = read_torch(_torch_zip(tmp_path, b"\x80\x02}" + _text("data") + path + b"s.").read_bytes(), "x")
    assert found == {"data": "/data/flowers"} and type(found["data"]) is str


def test_paths_and_versions_beside_the_weights_do_not_hinder(tmp_path):
    state = _small(tmp_path)
    torch.save(state, tmp_path / "plain.pth")
    more = {"output": pathlib.PosixPath("/data/runs/7"), "here": pathlib.PosixPath("."), "torch": torch.__version__}
    torch.save({"state_dict": state, **more}, tmp_path / "a.pth")
    found = read_torch((tmp_path / "a.pth").read_bytes(), "x")
    assert found["output"] == "/data/runs/7" and found["torch"] == str(torch.__version__)
    assert torch.equal(features(tmp_path / "a.pth"), features(tmp_path / "plain.pth"))


LONG_PATHS = {
    "one text": _text("x" * 4097) + b"\x85",
    "of two parts": _text("x" * 2100) + _text("y" * 2100) + b"\x86",
    "of no texts": b"K\x01\x85",
}


@pytest.mark.parametrize("how", LONG_PATHS)
def test_a_path_that_can_be_none_is_refused(how, tmp_path):
    path = _torch_zip(tmp_path, b"\x80\x02}" + _text("a") + b"cpathlib\nPosixPath\n" + LONG_PATHS[how] + b"Rs.")
    assert "a path that is none" in refused(path)


ALTERED = {
    "halved": lambda tensor: tensor.half(),
    "averaged": lambda tensor: 0.5 * tensor + 0.5 * tensor,
    "with counters of one number": lambda tensor: tensor.reshape(1) if tensor.ndim == 0 else tensor,
}


@pytest.mark.parametrize("how", ALTERED)
@pytest.mark.parametrize("arch", [None, "test_resnet"], ids=["told by its tensors", "named"])
def test_weights_altered_entry_by_entry_load_with_the_counters_of_batches_left_out(how, arch, tmp_path):
    state = zoo.load_backbone(f"random:{arch}").module.state_dict() if arch else _small(tmp_path)
    altered = {name: ALTERED[how](tensor) for name, tensor in state.items()}
    counters = [name for name in state if name.endswith("num_batches_tracked")]
    assert counters and all(altered[name].is_floating_point() or altered[name].shape == (1,) for name in counters)
    torch.save(altered, tmp_path / "altered.pth")
    expected = {name: altered[name].float() if state[name].is_floating_point() else state[name] for name in state}
    torch.save(expected, tmp_path / "plain.pth")
    options = {} if arch is None else {"arch": arch}
    assert torch.equal(features(tmp_path / "altered.pth", **options), features(tmp_path / "plain.pth", **options))


def test_weights_of_another_kind_or_shape_are_refused_all_the_same(tmp_path):
    state = _small(tmp_path)
    torch.save({**state, "conv1.weight": state["conv1.weight"].to(torch.int8)}, tmp_path / "a.pth")
    assert "conv1.weight" in refused(tmp_path / "a.pth")
    torch.save({**state, "bn1.weight": state["bn1.weight"][None]}, tmp_path / "b.pth")
    refused(tmp_path / "b.pth")


# ---- names of files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("begin", ["", "resnet18=", "{}/"], ids=["alone", "named", "in a folder"])
@pytest.mark.parametrize("length", [300, 5000])
def test_a_name_too_long_for_any_file_is_no_model(begin, length, tmp_path):
    with pytest.raises(ModelError) as error:
        zoo.load_backbone(begin.format(tmp_path) + "a" * length + ".pth")
    assert str(error.value).isprintable() and "Traceback" not in str(error.value)


@pytest.mark.parametrize("begin", ["resnet18={}/", "~/"], ids=["named in a folder", "at home"])
def test_a_name_too_long_behind_an_architecture_or_at_home_is_no_model(begin, tmp_path):
    with pytest.raises(ModelError):
        zoo.load_backbone(begin.format(tmp_path) + "a" * 300 + ".pth")


def test_a_model_of_three_hundred_characters_is_one_sentence_on_the_command_line(shapes, tmp_path, capsys):
    with pytest.raises(SystemExit) as leaving:
        cli.main(["fit", str(shapes), "--model", "a" * 300, "--out", str(tmp_path / "run")])
    error = capsys.readouterr().err
    assert leaving.value.code == 2 and "Traceback" not in error
    assert "a" * 40 in error.replace("\n", "") and len(error) < 600


@pytest.mark.parametrize(
    "beside", ["training_args.bin", "optimizer.bin", "scheduler.bin", "optimizer.pt", "scheduler.pt", "scaler.pt"]
)
def test_what_a_trainer_writes_beside_the_weights_is_not_taken_for_them(beside, tmp_path):
    torch.save(_small(tmp_path), tmp_path / "pytorch_model.bin")
    expected = features(tmp_path / "pytorch_model.bin")
    torch.save({"lr": 0.1}, tmp_path / beside)
    assert torch.equal(features(tmp_path), expected)


@pytest.mark.parametrize("name", ["MODEL.SAFETENSORS", "Model.Safetensors", "MODEL.PTH"])
def test_weights_are_found_in_a_folder_whatever_the_case_of_their_name(name, tmp_path):
    state = _small(tmp_path)
    torch.save(state, tmp_path / "plain.pth")
    expected = features(tmp_path / "plain.pth")
    (tmp_path / "folder").mkdir()
    if name.endswith("PTH"):
        torch.save(state, tmp_path / "folder" / name)
    else:
        save_file(state, tmp_path / "folder" / name)
        torch.save(dict(list(state.items())[:3]), tmp_path / "folder" / "model.pth")  # the twin that comes second
    assert torch.equal(features(tmp_path / "folder"), expected)


# ---- HDF5 ------------------------------------------------------------------------------------------------------------


def _h5(path: Path, fill: Any, config: Any = None) -> Path:
    h5py = pytest.importorskip("h5py", reason="h5py is not installed: pip install 'burnish[keras]'")
    with h5py.File(path, "w") as file:
        if config is not None:
            file.attrs["model_config"] = json.dumps(config)
        fill(file)
    return path


POOL = ("GlobalAveragePooling2D", "pool")


@pytest.mark.parametrize("name", ["a" * 1001, "/".join("b" * 340 for _ in range(3)), "c" * 60_000])
def test_a_path_of_thousands_of_characters_in_hdf5_is_refused(name, tmp_path):
    def fill(file: Any) -> None:
        file["conv/conv/kernel:0"] = np.zeros((3, 3, 3, 4), np.float32)
        file["conv/conv/bias:0"] = np.zeros(4, np.float32)
        file[name] = np.zeros(2, np.float32)

    sentence = refused(_h5(tmp_path / "a.h5", fill, _chain(_conv(), _layer(*POOL))))
    assert re.search(r"a name of [\d,]{5,} characters", sentence)
    with pytest.raises(BadWeights, match="a name of"):
        Arrays(_h5(tmp_path / "b.h5", fill).read_bytes(), "x")


def test_a_path_of_hundreds_of_characters_in_hdf5_is_read(tmp_path):
    path = _h5(tmp_path / "a.h5", lambda file: file.__setitem__("/".join("b" * 99 for _ in range(9)), np.ones(2)))
    assert len(Arrays(path.read_bytes(), "x").datasets) == 1


def _bfloat16(file: Any, name: str, shape: tuple[int, ...]) -> None:
    """As Keras writes it: numbers of two bytes of no kind, and a word that says which."""
    if name in file:
        del file[name]
    file.create_dataset(name, data=np.zeros(shape, "V2"))
    file[name].attrs["dtype"] = "bfloat16"


def test_bfloat16_in_hdf5_is_called_by_its_name(tmp_path):
    net = _chain(_conv(), _layer(*POOL))
    pytest.importorskip("h5py", reason="h5py is not installed: pip install 'burnish[keras]'")
    newer = _keras(tmp_path, net, lambda file: _bfloat16(file, "layers/conv2d/vars/0", (3, 3, 3, 4)))
    assert "layers/conv2d/vars/0 holds bfloat16" in refused(newer) and "float32" in refused(newer)
    older = _h5(tmp_path / "a.h5", lambda file: _bfloat16(file, "model_weights/conv/conv/kernel:0", (3, 3, 3, 4)), net)
    assert "kernel:0 holds bfloat16" in refused(older)


# ---- the arrays of many layers ---------------------------------------------------------------------------------------

KEYS = ("gamma", "beta", "moving_mean", "moving_variance")
LAYERS = 500


class Counted(dict):
    """A dictionary that counts how often it is gone through."""

    walks = 0

    def __iter__(self):
        self.walks += 1
        return super().__iter__()


def many(file: Any, layers: int = LAYERS) -> None:
    """Each layer's numbers are its own, under an outer group of another name."""
    for number in range(layers):
        group = file.create_group(f"w/x{number}/b{number}")
        for place, key in enumerate(KEYS):
            group[f"{key}:0"] = np.full(3, number + place / 4, np.float32)


def test_the_arrays_of_a_layer_are_found_without_going_through_all(tmp_path):
    arrays = Arrays(_h5(tmp_path / "a.h5", many).read_bytes(), "x")
    arrays.datasets = Counted(arrays.datasets)
    for number in range(LAYERS):
        for place, key in enumerate(KEYS):
            variable = Variable(key, "", key, (3,))
            found = arrays.find(f"b{number}", f"b{number}", "", variable, place, len(KEYS))
            np.testing.assert_array_equal(found, np.full(3, number + place / 4, np.float32))
    assert arrays.datasets.walks == 0


def test_a_model_of_many_layers_under_other_groups_has_the_numbers_of_each(tmp_path):
    norms = [_layer("BatchNormalization", f"b{number}") for number in range(50)]
    path = _h5(tmp_path / "a.h5", lambda file: many(file, 50), _chain(*norms, _layer(*POOL), size=8))
    state = zoo.load_backbone(str(path), preprocess="none").module.state_dict()
    means = [tensor for name, tensor in state.items() if name.endswith("running_mean")]
    assert [tensor.tolist() for tensor in means] == [[number + 0.5] * 3 for number in range(50)]


@pytest.mark.parametrize("root", ["", "model_weights/"])
def test_of_layers_of_one_name_that_of_its_own_group_is_found(root, tmp_path):
    def fill(file: Any) -> None:
        for place, outer in enumerate(("first", "second")):
            file[f"{root}{outer}/conv/kernel:0"] = np.full(2, place, np.float32)
        file[f"{root}alone/deep/er/conv/kernel:0"] = np.full(2, 7, np.float32)

    arrays = Arrays(_h5(tmp_path / "a.h5", fill).read_bytes(), "x")
    variable = Variable("kernel", "", "kernel", (2,))
    for outer, expected in (("first", 0), ("second", 1), ("alone", 7)):
        assert arrays.find("conv", outer, "", variable, 0, 1).tolist() == [expected] * 2


# ---- networks of Keras -----------------------------------------------------------------------------------------------


def _net(*nodes: tuple[str, str, dict[str, Any], list[str]], size: int = 224) -> dict[str, Any]:
    """A network as a package describes it."""
    names = ("name", "kind", "options", "inputs")
    return {
        "nodes": [dict(zip(names, node, strict=True)) for node in nodes],
        "constants": {},
        "size": size,
        "bgr": False,
    }


def _wide(file: Any) -> None:
    _replace(file, "layers/conv2d/vars/0", np.zeros((1, 1, 3, 512), np.float32))
    _replace(file, "layers/conv2d/vars/1", np.zeros(512, np.float32))


def _branches(count: int) -> dict[str, Any]:
    wide = _conv(filters=512, kernel_size=[1, 1]) | {"inbound_nodes": [[["images", 0, 0, {}]]]}
    arms = [_layer("ReLU", f"arm{number}", "conv") for number in range(count)]
    add = _layer("Add", "add")
    add["inbound_nodes"] = [[[one["name"], 0, 0, {}] for one in arms]]
    return _model(_images(224), wide, *arms, add, _layer("GlobalAveragePooling2D", "pool", "add"))


def test_branches_that_are_all_kept_at_one_time_are_refused(tmp_path):
    pytest.importorskip("h5py", reason="h5py is not installed: pip install 'burnish[keras]'")
    sentence = refused(_keras(tmp_path, _branches(30), _wide))
    assert "536,870,912 numbers to be kept at one time" in sentence and "arm" in sentence


def test_layers_one_after_the_other_are_not_kept_all():
    wide = ("conv", "Conv2D", {"filters": 512, "kernel_size": [1, 1]}, ["input"])
    chain = [(f"r{n}", "ReLU", {}, [f"r{n - 1}" if n else "conv"]) for n in range(40)]
    assert graph.blank("net", _net(wide, *chain, ("pool", "GlobalAveragePooling2D", {}, ["r39"])))


def test_a_convolution_as_wide_as_the_images_is_refused_for_its_work(tmp_path):
    pytest.importorskip("h5py", reason="h5py is not installed: pip install 'burnish[keras]'")
    options = {"filters": 1, "kernel_size": [511, 511], "padding": "same", "use_bias": False}
    pool = ("pool", "GlobalAveragePooling2D", {}, ["conv"])
    with pytest.raises(UnknownModel, match="multiply-adds"):
        graph.blank("net", _net(("conv", "Conv2D", options, ["input"]), pool, size=4096))

    def fill(file: Any) -> None:
        _replace(file, "layers/conv2d/vars/0", np.zeros((511, 511, 3, 1), np.float32))

    sentence = refused(_keras(tmp_path, _chain(_conv(**options), _layer(*POOL), size=4096), fill))
    assert re.search(r"the work for one image to \S+ multiply-adds, expected at most", sentence)


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_a_pooling_as_wide_as_the_images_is_refused_for_its_work(padding):
    options = {"pool_size": [511, 511], "strides": [1, 1], "padding": padding}
    with pytest.raises(UnknownModel, match="multiply-adds"):
        graph.blank(
            "net",
            _net(("q", "MaxPooling2D", options, ["input"]), ("p", "GlobalAveragePooling2D", {}, ["q"]), size=4096),
        )


def test_attention_over_a_million_places_is_refused_for_its_work():
    flat = ("r", "Reshape", {"target_shape": [1024**2, 3]}, ["input"])
    attends = ("m", "MultiHeadAttention", {"num_heads": 1, "key_dim": 8}, ["r", "r"])
    with pytest.raises(UnknownModel, match="multiply-adds"):
        graph.blank("net", _net(flat, attends, ("p", "GlobalAveragePooling1D", {}, ["m"]), size=1024))


def test_the_work_of_all_layers_counts_together():
    part = {"filters": 64, "kernel_size": [15, 15], "padding": "same"}
    layers = [(f"c{number}", "Conv2D", part, [f"c{number - 1}" if number else "input"]) for number in range(60)]
    pool = ("pool", "GlobalAveragePooling2D", {}, ["c9"])
    assert graph.blank("net", _net(*layers[:10], pool, size=224))
    with pytest.raises(UnknownModel, match="the work for one image"):
        graph.blank("net", _net(*layers, pool, size=224))


NAMES = (
    "training",
    "forward",
    "_buffers",
    "_modules",
    "_forward_hooks",
    "plan",
    "over",
    "images",
    "body",
    "bgr",
    "call_super_init",
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", ["alone", "in a block", "as its end"])
def test_a_layer_may_have_the_name_of_what_a_network_of_torch_has_itself(name, place, tmp_path):
    pytest.importorskip("h5py", reason="h5py is not installed: pip install 'burnish[keras]'")
    given = {"inbound_nodes": [[["images" if name != "images" else "input_1", 0, 0, {}]]]}

    def named(own: str) -> dict[str, Any]:
        first, images = _conv("conv", padding="same") | given, _images(name=given["inbound_nodes"][0][0][0])
        if place == "alone":
            layers = [_conv(own, padding="same") | given, _layer("ReLU", "last", own)]
        elif place == "in a block":
            layers = [first, _layer("ReLU", own, "conv"), _layer("Add", "last", "conv", own)]
        else:
            layers = [
                first,
                _layer("ReLU", "relu", "conv"),
                _layer("Add", own, "conv", "relu"),
                _layer("ReLU", "last", own),
            ]
        net = _model(images, *layers, _layer("GlobalAveragePooling2D", "pool", "last"))
        net["config"]["input_layers"] = [[images["name"], 0, 0]]
        return net

    found = []
    for own in (name, "plain"):
        backbone = zoo.load_backbone(str(_keras(tmp_path, named(own))), preprocess="none")
        with torch.no_grad():
            found.append(backbone.module(GIVEN))
            assert torch.equal(backbone.module.train()(GIVEN), found[-1]) and backbone.module.training
            assert not backbone.module.eval().training
    assert torch.equal(found[0], found[1]) and found[0].abs().sum() > 0


def test_a_network_of_a_fixed_size_takes_its_own_size_alone(tmp_path):
    first = ("a", "Conv2D", {"filters": 8, "kernel_size": [3, 3], "strides": [8, 8], "padding": "same"}, ["input"])
    second = ("b", "Conv2D", {"filters": 16, "kernel_size": [3, 3], "strides": [4, 4], "padding": "same"}, ["a"])
    fixed = _net(first, second, ("p", "AveragePooling2D", {"pool_size": [7, 7]}, ["b"]), ("f", "Flatten", {}, ["p"]))
    assert [graph.takes_size("net", fixed, 16, size) for size in (224, 256, 448)] == [True, True, False]
    free = _net(first, second, ("p", "GlobalAveragePooling2D", {}, ["b"]))
    assert [graph.takes_size("net", free, 16, size) for size in (224, 256, 448)] == [True, True, True]


def test_images_of_a_size_that_a_keras_file_cannot_take_are_refused(tmp_path):
    pytest.importorskip("h5py", reason="h5py is not installed: pip install 'burnish[keras]'")
    small = _conv(strides=[32, 32], padding="same")
    net = _chain(small, _layer("AveragePooling2D", "pool", pool_size=[7, 7]), _layer("Flatten", "flat"), size=224)
    path = _keras(tmp_path, net)
    assert zoo.load_backbone(str(path), preprocess="none").width == 4
    assert "448" in refused(path, image_size=448)


# ---- servers ---------------------------------------------------------------------------------------------------------


def now_and_then(beginning: bytes, *, every: float = 0.02, at_once: int = 1):
    """After this beginning of an answer, a few bytes now and then until the test is over."""

    def trouble(answer: Any, content: bytes, start: int) -> None:
        answer.wfile.write(beginning)
        for place in range(0, len(content), at_once):
            if answer.server.over.wait(every):
                return
            answer.wfile.write(content[place : place + at_once])

    return trouble


@pytest.fixture
def hurried(monkeypatch):
    """What a server must send in a while, and the while, made small."""
    monkeypatch.setattr(hub, "_SILENT_SECONDS", 0.4)
    monkeypatch.setattr(hub, "_PROGRESS", 100)


def address_of(server: Any, content: bytes, path: str = "/file") -> str:
    server.files[path] = content
    return f"{server.address}{path}#sha256={hashlib.sha256(content).hexdigest()}"


LENGTH = b"HTTP/1.0 200 OK\r\nContent-Length: 100000\r\n\r\n"


@pytest.mark.parametrize("begin", [LENGTH, b"HTTP/1.0 200 OK\r\n\r\n"], ids=["of a known length", "of none"])
def test_a_server_that_sends_a_byte_now_and_then_is_given_up(begin, web, hurried, tmp_path):  # noqa: F811
    address = address_of(web, bytes(200))  # four seconds
    web.troubles["GET", "/file"] = itertools.repeat(now_and_then(begin))
    began = time.monotonic()
    with pytest.raises(WeightsUnreachable, match=r"sends less than 100 bytes in 0\.4 s") as error:
        hub.download(address)
    assert time.monotonic() - began < 5
    assert_a_sentence(error)
    assert not [path for path in (tmp_path / "own").rglob("*") if path.is_file()]


EARLIER = {
    "headers": b"HTTP/1.0 200 OK\r\nA: ",
    "lines between chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;",
}


@pytest.mark.parametrize("what", EARLIER)
def test_a_server_that_sends_other_things_than_content_now_and_then_is_given_up(what, web, hurried, monkeypatch):  # noqa: F811
    monkeypatch.setattr(hub, "_TRIES", 1)
    address = address_of(web, bytes(75))
    web.troubles["GET", "/file"] = itertools.repeat(now_and_then(EARLIER[what]))  # 1.5 s, and again where it is asked
    began = time.monotonic()
    with pytest.raises(WeightsUnreachable):
        hub.download(address)
    assert time.monotonic() - began < 1.2


def test_a_server_that_is_slow_and_steady_is_waited_for(web, hurried):  # noqa: F811
    content = bytes(range(256)) * 40
    address = address_of(web, content)
    begin = LENGTH.replace(b"100000", str(len(content)).encode())
    web.troubles["GET", "/file"] = iter([now_and_then(begin, every=0.03, at_once=256)])
    began = time.monotonic()
    assert hub.download(address).read_bytes() == content
    assert time.monotonic() - began > 2 * hub._SILENT_SECONDS and len(web.seen) == 1


def _offline(server: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def _trouble(answer: Any):
    return lambda server, monkeypatch: server.troubles.__setitem__(("GET", PATH), itertools.repeat(answer))


def _too_large(server: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(hub, "MAX_WEIGHTS_BYTES", 10)


def _trickles(server: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(hub, "_SILENT_SECONDS", 0.2)
    _trouble(now_and_then(LENGTH, every=0.1, at_once=25))(server, monkeypatch)


PATH = f"/file?token={SECRET}"
FAILS = {
    "is offline": _offline,
    "asks for a login": _trouble(status(401)),
    "has no such file": _trouble(status(404)),
    "is busy": _trouble(status(503)),
    "breaks off": _trouble(raw(b"")),
    "does not speak HTTP": _trouble(raw(b"garbage\r\n\r\n")),
    "sends another file": lambda server, monkeypatch: server.files.__setitem__(PATH, b"another"),
    "offers too much": _too_large,
    "sends too much": lambda server, monkeypatch: (
        _too_large(server, monkeypatch),
        _trouble(raw(b"HTTP/1.0 200 OK\r\n\r\n" + bytes(100)))(server, monkeypatch),
    ),
    "trickles": _trickles,
    "sends on to another": _trouble(status(302, Location="http://example.invalid/")),
}


@pytest.mark.parametrize("how", FAILS)
def test_a_token_in_an_address_is_not_said_where_its_server_fails(how, web, monkeypatch):  # noqa: F811
    address = address_of(web, bytes(1000), PATH)
    FAILS[how](web, monkeypatch)
    with pytest.raises(ModelError) as error:
        hub.download(address)
    assert_a_sentence(error)
    assert SECRET not in str(error.value) and f"{web.address}/file" in str(error.value)


def test_a_password_in_an_address_is_not_said(web, monkeypatch):  # noqa: F811
    address = address_of(web, bytes(1000), PATH).replace("http://", f"http://me:{SECRET}@")
    with pytest.raises(ModelError) as reached:
        hub.download(address)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError) as offline:
        hub.download(address)
    for error in (reached, offline):
        assert_a_sentence(error)
        assert SECRET not in str(error.value) and f"{web.address}/file" in str(error.value)


HASH = "#sha256=" + "0" * 64
# Addresses that are refused before anything is asked for.
MISTAKEN = {
    "a password before a host without a port": f"http://me:{SECRET}@127.0.0.1/file{HASH}",
    "no hash": f"https://me:{SECRET}@example.invalid/file?token={SECRET}",
    "no https": f"http://me:{SECRET}@example.invalid/file?token={SECRET}{HASH}",
    "a space": f"https://example.invalid/a file?token={SECRET}{HASH}",
    "a port that is none": f"https://me:{SECRET}@example.invalid:x/file{HASH}",
    "brackets": f"https://me:{SECRET}@[example.invalid/file{HASH}",
}


@pytest.mark.parametrize("what", MISTAKEN)
def test_a_secret_in_an_address_with_a_mistake_is_not_said(what, web):  # noqa: F811
    with pytest.raises(ModelError) as error:
        hub.download(MISTAKEN[what])
    assert SECRET not in str(error.value)


def test_a_run_from_an_address_with_a_token_tells_it_in_nothing_that_is_passed_on(web, shapes, tmp_path, capsys):  # noqa: F811
    state = zoo.load_backbone("random:test_resnet", image_size=64).module.state_dict()
    path = f"/weights/net.safetensors?token={SECRET}"
    address = address_of(web, safetensors.torch.save(state), path)
    words = ["--arch", "test_resnet", "--image-size", "64", "--epochs", "1", "--budget", "none", "--method", "probe"]
    folder = tmp_path / "run"
    cli.main(["fit", str(shapes), "--model", address, *words, "--out", str(folder), "--cache", "off"])
    assert [one for one in web.seen if one[1] == path]
    shared = [path for path in folder.rglob("*") if path.is_file() and path.name not in ("run.json", "recipe.toml")]
    assert {"report.html", "result.json"} <= {path.name for path in shared}
    assert any("tfevents" in path.name for path in shared)
    assert [str(path.relative_to(folder)) for path in shared if SECRET.encode() in path.read_bytes()] == []
    result = json.loads((folder / "result.json").read_text())
    assert result["recipe"]["model"] == f"{web.address}/weights/net.safetensors"


# ---- packages --------------------------------------------------------------------------------------------------------

PICTURE = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    backbone = zoo.load_backbone("random:cifar_resnet8")
    made = Bundle.of(backbone, Classifier.over(backbone, classes=2), classes=("a", "b"), method="full")
    folder = tmp_path_factory.mktemp("package") / "run"
    write_bundle(folder, made)
    return bundles.package_folder(folder)


@pytest.fixture
def forged(package, tmp_path):
    """Gives a package with other tensors and other values in its description, and hashes that fit."""

    def make(*, tensors: dict[str, torch.Tensor] | None = None, **values: Any) -> Path:
        folder = shutil.copytree(package, tmp_path / "forged")
        weights, described = folder / "weights.safetensors", folder / "bundle.json"
        state = safetensors.torch.load(weights.read_bytes()) | (tensors or {})
        data = safetensors.torch.save({name: one.contiguous() for name, one in state.items()})
        weights.write_bytes(data)
        told = json.loads(described.read_text()) | values
        told["members"] = {weights.name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}}
        told["sha256"] = bundles._digest(told)
        described.write_text(json.dumps(told))
        return folder

    return make


def tensor_of(package: Path, name: str) -> torch.Tensor:
    return safetensors.torch.load((package / "weights.safetensors").read_bytes())[name]


def test_a_package_forged_with_nothing_changed_predicts(forged):
    (one,) = Predictor.open(forged()).predict([PICTURE])
    assert one.problem is None and one.probability >= 0.5


KINDS = {
    "float8": torch.float8_e4m3fn, "float8 of another form": torch.float8_e5m2, "float16": torch.float16,
    "bfloat16": torch.bfloat16, "float64": torch.float64, "complex": torch.complex64, "bool": torch.bool, "int": torch.int32,
}  # fmt: skip


@pytest.mark.parametrize("name", ["trunk.conv1.weight", "head.weight"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_of_another_kind_of_number_is_refused(kind, name, package, forged):
    folder = forged(tensors={name: tensor_of(package, name).to(KINDS[kind])})
    with pytest.raises((NotARun, BadWeights)) as error:
        Predictor.open(folder).predict([PICTURE])
    assert_a_sentence(error)
    assert name in str(error.value) and "kind" in str(error.value)


@pytest.mark.parametrize("width", [63, 65, 1])
def test_a_head_of_another_width_than_its_trunk_is_refused(width, forged):
    folder = forged(tensors={"head.weight": torch.zeros(2, width)}, head={"kind": "linear", "width": width})
    with pytest.raises((NotARun, BadWeights), match="damaged, make it again with burnish fit") as error:
        Predictor.open(folder).predict([PICTURE])
    assert_a_sentence(error)


def test_images_larger_than_any_network_sees_are_refused(package, forged):
    told = json.loads((package / "bundle.json").read_text())["preprocess"]
    with pytest.raises(NotARun, match=r"images of 4096 pixels a side, expected at most 2,048") as error:
        Predictor.open(forged(preprocess=told | {"size": 4096}))
    assert_a_sentence(error)


@pytest.mark.parametrize("name", ["trunk.conv1.weight", "head.weight"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_an_answer_that_is_no_number_is_a_problem_and_no_probability(name, package, forged):
    large = torch.full_like(tensor_of(package, name), 3e38)
    predictor = Predictor.open(forged(tensors={name: large}))
    missing = Path("no such image.png")
    first, second, third = predictor.predict([PICTURE, missing, PICTURE])
    for one in (first, third):
        assert one.problem is not None and "not a number" in one.problem
        assert one.classes == one.probabilities == () and one.label is None
    assert second.problem is not None and "not a number" not in second.problem
    with pytest.raises(UnreadableImage, match="not a number"):
        predictor.probabilities([PICTURE])
