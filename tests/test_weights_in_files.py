"""How weights lie in files: in numbers of half or double length, and in several files of one folder."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import timm
import torch
from safetensors.torch import save_file

from burnish.backbones.zoo import load_backbone
from burnish.errors import BadWeights, UnknownModel

torch.set_num_threads(1)

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return timm.create_model("resnet10t", num_classes=0).eval()


def seen(module):
    with torch.no_grad():
        return module(IMAGES)


def save(state, path, *, form="torch"):
    if form == "safetensors":
        save_file({name: one.clone() for name, one in state.items()}, path)
    else:
        torch.save(dict(state), path, _use_new_zipfile_serialization=form == "torch")


# ---- numbers of other lengths ----------------------------------------------------------------------------------------

FORMS = ("safetensors", "torch", "torch before 1.6")


def to(state, kind, names=None):
    return {
        name: one.to(kind) if one.is_floating_point() and (names is None or name in names) else one
        for name, one in state.items()
    }


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_half_or_double_length_give_what_the_same_values_give_in_float32(kind, form, network, tmp_path):
    saved = to(network.state_dict(), kind)
    save(saved, tmp_path / "a", form=form)
    backbone, same = load_backbone(str(tmp_path / "a")), timm.create_model("resnet10t", num_classes=0).eval()
    same.load_state_dict(to(saved, torch.float32))
    assert torch.equal(seen(backbone.module), seen(same))
    assert {one.dtype for one in backbone.module.parameters()} == {torch.float32}


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_weights_in_float8_are_refused_since_their_scale_lies_elsewhere(kind, network, tmp_path):
    name = "layer1.0.conv1.weight"
    save(to(network.state_dict(), kind, [name]), tmp_path / "a", form="safetensors")
    with pytest.raises(BadWeights, match=rf"layer1\.0\.conv1\.weight is in {str(kind)[6:]}.*to float32"):
        load_backbone(str(tmp_path / "a"))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.int32])
def test_weights_in_whole_numbers_are_refused_by_name(kind, form, network, tmp_path):
    save(to(network.state_dict(), kind, ["layer1.0.conv1.weight"]), tmp_path / "a", form=form)
    with pytest.raises(BadWeights, match=rf"\(layer1\.0\.conv1\.weight in {str(kind)[6:]}\): save them in float32"):
        load_backbone(str(tmp_path / "a"))


def test_a_number_too_large_for_float32_is_refused_and_not_made_infinite(network, tmp_path):
    state = to(network.state_dict(), torch.float64)
    state["layer1.0.conv1.weight"][0, 0, 0, 0] = 1e300
    save(state, tmp_path / "a")
    with pytest.raises(BadWeights, match=r"NaN or infinite values \(layer1\.0\.conv1\.weight\)"):
        load_backbone(str(tmp_path / "a"))


# ---- several files ---------------------------------------------------------------------------------------------------


def in_several(folder, state, *, suffix="safetensors", **index):
    """The weights as transformers saves large ones."""
    names, whole = list(state), "model" if suffix == "safetensors" else "pytorch_model"
    files = {f"{whole}-00001-of-00002.{suffix}": names[:50], f"{whole}-00002-of-00002.{suffix}": names[50:]}
    for file, held in files.items():
        save({name: state[name] for name in held}, folder / file, form="safetensors" if whole == "model" else "torch")
    told = {name: file for file, held in files.items() for name in held}
    place = folder / f"{whole}.{suffix}.index.json"
    place.write_text(json.dumps({"metadata": {}, "weight_map": {**told, **index}}))
    return [folder / file for file in files], place


@pytest.mark.parametrize("given", ["folder", "index"])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_weights_in_several_files_are_read_as_one(suffix, given, network, tmp_path):
    _, index = in_several(tmp_path, to(network.state_dict(), torch.bfloat16), suffix=suffix)
    torch.save({"lr": 0.1}, tmp_path / "training_args.bin")
    backbone = load_backbone(str(tmp_path if given == "folder" else index))
    torch.testing.assert_close(seen(backbone.module), seen(network), rtol=0.1, atol=0.1)
    assert backbone.name == "resnet10t" and len(backbone.sha256) == 64


@pytest.mark.parametrize(
    ("index", "sentence"),
    [
        ({"a": "../model.safetensors"}, r"does not say in which.*'\.\./model\.safetensors'"),
        ({"a": "/etc/model.safetensors"}, "does not say in which"),
        ({"a": "model.pkl"}, "does not say in which"),
        ({"a": 3}, "does not say in which"),
        ({"a": "model-00001-of-00002.safetensors"}, r"of the 51 tensors .* says are in it, it lacks 1 \(a, …\)"),
        ({"a": "model-00003-of-00003.safetensors"}, "no such file, and .* names it as one of 3"),
        ({"conv1.0.weight": "model-00002-of-00002.safetensors"}, r"holds 1 others \(conv1\.0\.weight"),
    ],
)
def test_an_index_that_names_what_is_not_there_or_lies_elsewhere_is_refused(index, sentence, network, tmp_path):
    in_several(tmp_path, network.state_dict(), **index)
    with pytest.raises(BadWeights, match=sentence):
        load_backbone(str(tmp_path))


@pytest.mark.parametrize("text", ["{}", '{"weight_map": []}', '{"weight_map": {}}', "[", '{"weight_map": {"a": "b"}'])
def test_an_index_that_is_none_is_refused(text, network, tmp_path):
    _, index = in_several(tmp_path, network.state_dict())
    index.write_text(text)
    with pytest.raises(BadWeights, match=r"index\.json: "):
        load_backbone(str(tmp_path))


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_file_too_few_too_many_or_under_anothers_name_is_said(suffix, network, tmp_path):
    (first, second), _ = in_several(tmp_path, network.state_dict(), suffix=suffix)
    data = first.read_bytes(), second.read_bytes()
    more = second.with_name(second.name.replace("00002", "00003"))
    more.write_bytes(data[1])
    with pytest.raises(BadWeights, match=r"holds (pytorch_)?model-00003-of-00003\.\w+, which .* does not name"):
        load_backbone(str(tmp_path))
    more.unlink()
    first.write_bytes(data[1]), second.write_bytes(data[0])
    with pytest.raises(BadWeights, match=r"it lacks 50 \(.*\) and holds .*renamed, or is of another model"):
        load_backbone(str(tmp_path))
    first.write_bytes(data[0][:-9]), second.write_bytes(data[1])
    with pytest.raises(BadWeights, match=r"00001-of-00002.*(damaged|cut short|deceive)"):
        load_backbone(str(tmp_path))
    first.unlink()
    with pytest.raises(BadWeights, match=r"00001-of-00002\.\w+: no such file"):
        load_backbone(str(tmp_path))


def test_one_of_several_files_is_not_taken_for_all(network, tmp_path):
    (first, _), index = in_several(tmp_path, network.state_dict())
    with pytest.raises(BadWeights, match=r"is one of 2 files that hold the weights together; give their folder"):
        load_backbone(str(first))
    index.unlink()
    with pytest.raises(UnknownModel, match=r"in 2 files .* and no index beside them says which belong together"):
        load_backbone(str(tmp_path))


def test_a_part_that_would_run_code_is_refused_as_any_file_is(network, tmp_path):
    (first, _), _ = in_several(tmp_path, network.state_dict(), suffix="bin")
    torch.save(network, first)
    with pytest.raises(BadWeights, match=r"00001-of-00002\.bin: asks for .*could run code"):
        load_backbone(str(tmp_path))


PEAK = """
import resource, sys
from burnish.backbones.zoo import load_backbone
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
load_backbone(sys.argv[1])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted in kilobytes there")
def test_weights_in_several_files_take_the_memory_of_the_tensors_the_network_and_one_file(tmp_path):
    state = timm.create_model("resnet50", num_classes=0).state_dict()
    names, whole = list(state), 4 * sum(one.numel() for one in state.values()) / 1024
    told = {name: f"model-{place // 40:05}-of-00008.safetensors" for place, name in enumerate(names)}
    for file in set(told.values()):
        save({name: state[name] for name in names if told[name] == file}, tmp_path / file, form="safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": told}))
    peak = int(subprocess.run([sys.executable, "-c", PEAK, str(tmp_path)], capture_output=True, check=True).stdout)
    assert peak < 2.6 * whole
