"""Pickles in files of weights: those that take without end or lie about their numbers are refused, sound odd ones are read."""

from __future__ import annotations

import pathlib
import re
import sys
import types
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hostile.kinds import written
from hostile.pickles import old_file, text_of, torch_zip
from hostile.smallest import smallest_network
from loading import features, refused, saved

from burnish.backbones import zoo
from burnish.backbones.reading.pickles import read_torch

# ---- tuples and numbers ----------------------------------------------------------------------------------------------


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
    path = written(tmp_path, "a.pth", old_file(tmp_path, program)) if older else torch_zip(tmp_path, program)
    assert re.search(r"tuples in tuples, over \d+ deep", refused(path))


def test_tuples_of_some_depth_are_read(tmp_path):
    kept: Any = ()
    for number in range(100):
        kept = (kept, number)
    assert read_torch(saved({"a": torch.ones(2), "kept": kept, kept: 1}), "x")["kept"] == kept


# Each tuple holds the one before twice: of the last one a hash would visit 2 ** 40 members.
DOUBLED = {
    "kept and fetched": b"K\x01\x85q\x00" + b"".join(b"h%ch%c\x86q%c" % (n, n, n + 1) for n in range(40)),
    "above a mark": b"K\x01\x85q\x00" + b"".join(b"(h%ch%ctq%c" % (n, n, n + 1) for n in range(40)),
    "as a size": b"K\x01\x85q\x00" + b"".join(b"h%ch%c\x86q%c" % (n, n, n + 1) for n in range(40)) + b"0ctorch\nSize\nh\x28\x85R",
}  # fmt: skip


@pytest.mark.parametrize("how", DOUBLED)
@pytest.mark.parametrize("older", [False, True], ids=["zip", "before 1.6"])
def test_tuples_that_hold_others_twice_and_twice_again_are_no_key_of_a_dictionary(how, older, tmp_path):
    program = b"\x80\x02}" + DOUBLED[how] + b"K\x01s."
    path = written(tmp_path, "a.pth", old_file(tmp_path, program)) if older else torch_zip(tmp_path, program)
    assert "tuples that hold others again and again" in refused(path)


def test_one_tuple_in_many_places_is_read():
    shared = tuple(range(5000))
    kept = {"first": shared, "more": [shared] * 500, "pairs": [(shared, shared), (shared, 1)], shared: 1}
    assert read_torch(saved({"a": torch.ones(2), "kept": kept}), "x")["kept"] == kept


# Each list holds the one before twice: as a text the last one would have 2 ** 40 brackets.
LISTS = b"]q\x00" + b"".join(b"](h%ch%ceq%c" % (n, n, n + 1) for n in range(40))
WRITTEN_OUT = {
    "a version": (b"ctorch.torch_version\nTorchVersion\nh\x28\x85R", "a version that is none"),
    "a version made anew": (b"ctorch.torch_version\nTorchVersion\nh\x28\x85\x81", "a version that is none"),
    "a kind of numbers": (b"cnumpy.core.multiarray\nscalar\nh\x28K\x01\x86R", "a number of the kind list"),
    "what is called": (b"h\x28)R", "a call of what is no function"),
    "what is made anew": (b"h\x28)\x81", "a call of what is no function"),
    "what is called in a pickle that is damaged behind": (b"h\x28)R\xff\xff", "a call of what is no function"),
    "a tuple that is called": (b"h\x28\x85)R", "a call of what is no function"),
}


@pytest.mark.parametrize("how", WRITTEN_OUT)
@pytest.mark.parametrize("older", [False, True], ids=["zip", "before 1.6"])
def test_lists_that_hold_others_twice_and_twice_again_are_not_written_out(how, older, tmp_path):
    asked, found = WRITTEN_OUT[how]
    program = b"\x80\x02" + LISTS + asked + b"."
    path = written(tmp_path, "a.pth", old_file(tmp_path, program)) if older else torch_zip(tmp_path, program)
    assert found in refused(path)


KIND = b"cnumpy\ndtype\n(" + text_of("%s") + b"\x89\x88tRq\x05"
MINUS = b"J\xff\xff\xff\xff"


def numpy_kind(name: str) -> bytes:
    return KIND.replace(text_of("%s"), text_of(name))


def of_itself() -> bytes:
    """The state says that the kind is a pair of itself."""
    return numpy_kind("V16") + b"(K\x03" + text_of("|") + b"h\x05K\x02\x85\x86NN" + MINUS + MINUS + b"K\x00tb"


def of_another() -> bytes:
    """The state says that a field of it is of another kind, far behind its end."""
    fields = b"}" + text_of("a") + b"cnumpy\ndtype\n" + text_of("f8") + b"\x85RJ\xff\xff\xff\x7f\x86s"
    return numpy_kind("V8") + b"(K\x03" + text_of("|") + b"N" + text_of("a") + b"\x85" + fields + b"K\x08K\x01K\x00tb"


def of_a_state_that_was_kept() -> bytes:
    """The same state, made before and fetched again."""
    state = b"(K\x03" + text_of("|") + b"h\x05K\x02\x85\x86NN" + MINUS + MINUS + b"K\x00tq\x060"
    return numpy_kind("V16") + b"0" + state + b"h\x05h\x06b"


def called_with_a_list() -> bytes:
    return b"cnumpy\ndtype\n](" + text_of("a") + text_of("f4") + b"J\x00\x00\x00\x03\x87e\x85R"


@pytest.mark.parametrize("make", [of_itself, of_another, of_a_state_that_was_kept, called_with_a_list])
def test_a_kind_of_numbers_that_is_told_by_another_is_refused(make, tmp_path):
    path = torch_zip(tmp_path, b"\x80\x02}" + text_of("a") + make() + b"s.")
    assert "put together of others" in refused(path)


@pytest.mark.parametrize("older", [False, True], ids=["zip", "before 1.6"])
def test_numbers_of_numpy_beside_the_weights_are_read(older, tmp_path):
    kept = {
        "loss": np.float64(0.5), "best": np.float64(0.25), "accuracies": [np.float64(0.1), np.float64(0.2)],
        "lr": np.float32(0.125), "epoch": np.int64(7), "step": np.int32(70), "done": np.bool_(True),
    }  # fmt: skip
    whole = {"state_dict": smallest_network(tmp_path), **kept}
    data = saved(whole, _use_new_zipfile_serialization=not older)
    found = read_torch(data, "x")
    assert {key: found[key] for key in kept} == kept
    plain = tmp_path / "plain.pth"
    torch.save(smallest_network(tmp_path), plain)
    assert torch.equal(features(written(tmp_path, "a.pth", data)), features(plain))


# ---- paths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PosixPath", "WindowsPath"])
@pytest.mark.parametrize("module", ["pathlib", "pathlib._local"])
def test_a_path_beside_the_weights_is_read_as_a_text(module, kind, tmp_path):
    path = f"c{module}\n{kind}\n".encode() + b"(" + text_of("/") + text_of("data") + text_of("flowers") + b"tR"
    found = read_torch(torch_zip(tmp_path, b"\x80\x02}" + text_of("data") + path + b"s.").read_bytes(), "x")
    assert found == {"data": "/data/flowers"} and type(found["data"]) is str


def test_paths_and_versions_beside_the_weights_do_not_hinder(tmp_path):
    state = smallest_network(tmp_path)
    torch.save(state, tmp_path / "plain.pth")
    more = {"output": pathlib.PosixPath("/data/runs/7"), "here": pathlib.PosixPath("."), "torch": torch.__version__}
    torch.save({"state_dict": state, **more}, tmp_path / "a.pth")
    found = read_torch((tmp_path / "a.pth").read_bytes(), "x")
    assert found["output"] == "/data/runs/7" and found["torch"] == str(torch.__version__)
    assert torch.equal(features(tmp_path / "a.pth"), features(tmp_path / "plain.pth"))


LONG_PATHS = {
    "one text": text_of("x" * 4097) + b"\x85",
    "of two parts": text_of("x" * 2100) + text_of("y" * 2100) + b"\x86",
    "of no texts": b"K\x01\x85",
}


@pytest.mark.parametrize("how", LONG_PATHS)
def test_a_path_that_can_be_none_is_refused(how, tmp_path):
    path = torch_zip(tmp_path, b"\x80\x02}" + text_of("a") + b"cpathlib\nPosixPath\n" + LONG_PATHS[how] + b"Rs.")
    assert "a path that is none" in refused(path)


# ---- records of other libraries --------------------------------------------------------------------------------------


def test_what_fastai_saves_with_its_optimiser_is_read(tmp_path, monkeypatch):
    """learn.save("m") keeps the optimiser's settings in lists of fastcore's own class, whatever they hold."""

    class L:
        def __init__(self, items: list[Any]) -> None:
            self.items = items

    L.__module__, L.__qualname__ = "fastcore.foundation", "L"
    monkeypatch.setitem(sys.modules, "fastcore", types.ModuleType("fastcore"))
    monkeypatch.setitem(sys.modules, "fastcore.foundation", types.SimpleNamespace(L=L))
    network = timm.create_model("resnet10t")
    optimiser = {"state": [{"step": 3}], "hypers": L([{"wd": 0.01, "lr": 1e-3}])}
    torch.save({"model": network.state_dict(), "opt": optimiser}, tmp_path / "m.pth")
    monkeypatch.undo()
    kept = read_torch((tmp_path / "m.pth").read_bytes(), "x")["opt"]["hypers"]
    assert not hasattr(kept, "items") and not hasattr(kept, "__dict__")
    assert zoo.load_backbone(str(tmp_path / "m.pth")).name == "resnet10t"


@pytest.mark.parametrize("program", [b"cfastcore.foundation\nL\nK\x01\x85R.", b"cfastcore.foundation\nL\n)\x81K\x01a."])
def test_such_a_record_takes_no_arguments_and_no_members(program, tmp_path):
    assert "cannot be read without trusting it" in refused(torch_zip(tmp_path, b"\x80\x02" + program))


@pytest.mark.parametrize("older", [False, True], ids=["zip", "older"])
@pytest.mark.parametrize("key", ["state_dict", "model_state_dict"])
def test_classes_among_the_settings_beside_a_state_are_left_behind_by_what_the_advice_says(key, older, tmp_path):
    settings = {"optimizer": torch.optim.Adam, "loss": torch.nn.CrossEntropyLoss()}
    content = {key: {"model.a.weight": torch.zeros(2)}, "hyper_parameters": settings}
    torch.save(content, tmp_path / "a.ckpt", _use_new_zipfile_serialization=not older)
    told = refused(tmp_path / "a.ckpt")
    assert "asks for torch.optim.adam Adam" in told
    advice = told.rpartition(":  ")[2]
    assert advice == f"torch.save(torch.load(path, weights_only=False)['{key}'], 'weights.pth')"


def test_a_whole_network_is_told_to_save_its_state(tmp_path):
    torch.save({"net": torch.nn.Linear(2, 2)}, tmp_path / "a.pth")
    assert refused(tmp_path / "a.pth").endswith("torch.save(model.state_dict(), 'weights.pth')")
