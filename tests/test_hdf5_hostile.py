"""HDF5 made to harm or merely odd: long names, kinds of numbers by another name, and arrays found without going through all."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hostile.keras import chained, conv, keras_file, layer, put_in_place
from loading import refused

from burnish.backbones import zoo
from burnish.backbones.keras import arrays
from burnish.backbones.keras.arrays import Arrays
from burnish.backbones.keras.options import Variable
from burnish.errors import BadWeights, ModelError


def _h5(path: Path, fill: Any, config: Any = None) -> Path:
    h5py = pytest.importorskip("h5py", reason="h5py is not installed: pip install 'burnish[keras]'")
    with h5py.File(path, "w") as file:
        if config is not None:
            file.attrs["model_config"] = json.dumps(config)
        fill(file)
    return path


POOL = ("GlobalAveragePooling2D", "pool")


# ---- names and kinds of numbers --------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize(
    ("sent", "kind", "sentence"),
    [
        (
            signal.SIGKILL,
            ModelError,
            r"m\.h5: the process .* was ended from outside \(SIGKILL\), .* where memory runs out",
        ),
        (
            signal.SIGSEGV,
            BadWeights,
            r"m\.h5: its HDF5 part makes the HDF5 library crash; it is damaged, or made to harm",
        ),
    ],
)
def test_a_file_is_blamed_for_a_crash_of_its_reader_and_not_for_what_ended_it(
    sent, kind, sentence, tmp_path, monkeypatch
):
    pytest.importorskip("h5py")
    (tmp_path / "reader.py").write_text(
        f"import os, resource\nresource.setrlimit(4, (0, 0))\nos.kill(os.getpid(), {int(sent)})"
    )
    monkeypatch.setattr(arrays, "_READER", str(tmp_path / "reader.py"))
    with pytest.raises(ModelError, match=sentence) as told:
        Arrays(b"any", "m.h5")
    assert type(told.value) is kind


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EAGAIN])
def test_a_system_that_starts_no_reader_is_told_and_the_file_is_not_blamed(number, monkeypatch):
    pytest.importorskip("h5py")

    def refused(*words: Any, **options: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(arrays.subprocess, "run", refused)
    with pytest.raises(ModelError, match=r"m\.h5: no process could be started .* memory") as told:
        Arrays(b"any", "m.h5")
    assert type(told.value) is ModelError


@pytest.mark.parametrize("name", ["a" * 1001, "/".join("b" * 340 for _ in range(3)), "c" * 60_000])
def test_a_path_of_thousands_of_characters_in_hdf5_is_refused(name, tmp_path):
    def fill(file: Any) -> None:
        file["conv/conv/kernel:0"] = np.zeros((3, 3, 3, 4), np.float32)
        file["conv/conv/bias:0"] = np.zeros(4, np.float32)
        file[name] = np.zeros(2, np.float32)

    sentence = refused(_h5(tmp_path / "a.h5", fill, chained(conv(), layer(*POOL))))
    assert re.search(r"a name of [\d,]{5,} characters", sentence)
    with pytest.raises(BadWeights, match="a name of"):
        Arrays(_h5(tmp_path / "b.h5", fill).read_bytes(), "x")


def test_a_path_of_hundreds_of_characters_in_hdf5_is_read(tmp_path):
    path = _h5(tmp_path / "a.h5", lambda file: file.__setitem__("/".join("b" * 99 for _ in range(9)), np.ones(2)))
    assert len(Arrays(path.read_bytes(), "x").datasets) == 1


@pytest.mark.parametrize("shape", [(2, 3), (6,), ()])
def test_bfloat16_in_hdf5_is_read(shape, tmp_path):
    """As Keras writes it: numbers of two bytes of no kind."""
    values = torch.linspace(-3, 3, max(1, int(np.prod(shape)))).reshape(shape).bfloat16()
    raw = np.frombuffer(values.view(torch.int16).numpy().tobytes(), "V2").reshape(shape)
    arrays = Arrays(_h5(tmp_path / "a.h5", lambda file: file.create_dataset("a", data=raw)).read_bytes(), "x")
    np.testing.assert_array_equal(arrays.datasets["a"], values.float().numpy())


def test_a_layer_whose_weights_are_whole_numbers_is_quantised(tmp_path):
    pytest.importorskip("h5py", reason="h5py is not installed: pip install 'burnish[keras]'")
    whole = np.ones((3, 3, 3, 4), np.int8)
    path = keras_file(
        tmp_path,
        chained(conv(), layer(*POOL)),
        lambda file: put_in_place(file, "layers/conv2d/vars/0", whole),
    )
    assert "vars/0 holds whole numbers, so the layer conv is quantised" in refused(path)


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
    norms = [layer("BatchNormalization", f"b{number}") for number in range(50)]
    path = _h5(tmp_path / "a.h5", lambda file: many(file, 50), chained(*norms, layer(*POOL), size=8))
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
