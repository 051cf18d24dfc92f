"""Run folders and model files from elsewhere: what is read back is plain, what is written stays where it belongs."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import shutil
import struct
import zipfile
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from burnish import api
from burnish.backbones import timmed
from burnish.backbones.keras.arrays import Arrays
from burnish.backbones.reading import pickles, weights
from burnish.backbones.reading.opened import open_file
from burnish.choose.ledger import Ledger
from burnish.disk import read_plain_json, write_bytes_whole, write_version
from burnish.errors import BadWeights, NotARun, RunError
from burnish.record import folder as run_folder
from burnish.record.folder import PICTURES, RESULT, RunFolder
from burnish.run import seeds
from burnish.run.race.state import ARMS, MODELS
from burnish.runtime import Clock, Nobody
from burnish.ship.bundle import VERSIONS
from burnish.ship.predictor import Predictor
from burnish.train.checkpoint import STATE, write_checkpoint
from burnish.train.features import BATCH
from conftest import write_shapes

TINY = {"model": "random:test_resnet", "image_size": 32, "budget": None, "method": "probe", "cache": "off"}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A small data folder."""
    root = tmp_path_factory.mktemp("from-elsewhere") / "data"
    write_shapes(root, images=8)
    return root


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    """A finished run."""
    return api.fit(images, out=tmp_path_factory.mktemp("from-elsewhere") / "run", **TINY)


def _handed_over(run, place):
    """A folder of which only the beginning of a run is known."""
    place.mkdir()
    (place / "run.json").write_bytes((run.folder / "run.json").read_bytes())
    return place


@pytest.mark.parametrize(
    "name", ["packages", "state", "state/versions", "state/versions/0001", "tensorboard", "search.log", "arms", "seeds"]
)
def test_a_link_where_a_run_writes_is_refused_and_nothing_behind_it_changes(name, run, images, tmp_path):
    victim = tmp_path / "Pictures"
    for year in ("2019", "2020"):
        (victim / year).mkdir(parents=True)
        (victim / year / "photo.jpg").write_bytes(b"a photo")
    hand = _handed_over(run, tmp_path / "hand")
    (hand / name).parent.mkdir(parents=True, exist_ok=True)
    (hand / name).symlink_to(victim)
    with pytest.raises(RunError, match="is a link, which burnish did not make"):
        api.fit(images, out=hand, **TINY)
    assert sorted(path.name for path in victim.iterdir()) == ["2019", "2020"]
    assert (victim / "2019" / "photo.jpg").read_bytes() == b"a photo"


def test_a_link_in_the_place_of_a_run_within_a_run_is_refused(run, images, tmp_path):
    shutil.copytree(run.folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "state", ignore_errors=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "new" / "seeds").mkdir(parents=True)
    (tmp_path / "new" / "seeds" / "1").symlink_to(tmp_path / "elsewhere")
    asked = json.loads((run.folder / "run.json").read_text())
    (tmp_path / "new" / "run.json").write_text(json.dumps({**asked, "seeds": 2}))
    with pytest.raises(RunError, match="is a link, which burnish did not make"):
        api.fit(images, out=tmp_path / "new", seeds=2, **TINY)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_all_folders_of_a_run_are_looked_at():
    assert set(run_folder._FOLDERS) == {VERSIONS, STATE, run_folder.BOARD, ARMS, MODELS, seeds.FOLDER}


def test_a_pipe_among_a_state_is_not_waited_for(run, images, tmp_path):
    hand = _handed_over(run, tmp_path / "hand")
    (hand / "state" / "versions" / "0001").mkdir(parents=True)
    os.mkfifo(hand / "state" / "versions" / "0001" / "facts.json")
    with pytest.raises(RunError, match="no plain file"):
        api.fit(images, out=hand, **TINY)


def test_a_draft_is_never_written_through_a_link_of_a_known_name(tmp_path):
    (tmp_path / "bashrc").write_text("mine")
    for name in (".package.json.tmp", ".current.json.tmp"):
        (tmp_path / name).symlink_to(tmp_path / "bashrc")
    write_bytes_whole(tmp_path / "package.json", b"new")
    write_version(tmp_path, {"facts.json": b"{}"}, versions="versions", pointer="current.json")
    assert (tmp_path / "bashrc").read_text() == "mine"
    assert (tmp_path / "package.json").read_bytes() == b"new"


def test_versions_do_not_follow_a_link_and_leave_what_is_not_theirs(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "versions").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="link"):
        write_version(tmp_path, {"facts.json": b"{}"}, versions="versions", pointer="current.json")
    (tmp_path / "versions").unlink()
    for year in ("2019", "2020"):
        (tmp_path / "versions" / year).mkdir(parents=True)
        (tmp_path / "versions" / year / "photo.jpg").write_bytes(b"a photo")
    for _ in range(3):
        write_version(tmp_path, {"facts.json": b"{}"}, versions="versions", pointer="current.json")
    assert sorted(path.name for path in (tmp_path / "versions").iterdir()) == ["2019", "2020", "2023"]


@pytest.mark.parametrize(
    ("key", "value"), [("seconds", -1e9), ("seconds", 10**400), ("seconds", True), ("sittings", -3), ("parts", [])]
)
def test_a_state_that_counts_its_time_wrongly_is_none(key, value, tmp_path):
    facts = {"seconds": 3.0, "sittings": 1, "parts": {}}
    write_checkpoint(tmp_path, facts, {})
    assert Ledger(tmp_path, Clock(0.0, 20.0), Nobody()).resumed
    write_checkpoint(tmp_path, {**facts, key: value}, {})
    ledger = Ledger(tmp_path, Clock(0.0, 20.0), Nobody())
    assert not ledger.resumed and ledger.parts == {} and ledger.sittings == 1


def test_what_was_asked_of_a_run_is_read_as_plain_json(run, tmp_path):
    for text in ("[" * 200_000, "[[1, 2]]", '{"a": NaN}'):
        hand = _handed_over(run, tmp_path / str(len(text)))
        (hand / "run.json").write_text(text)
        with RunFolder.open(hand) as folder, pytest.raises(RunError, match="cannot be read"):
            folder.begin({"method": "probe"})


@pytest.mark.parametrize(
    ("file", "place", "value"),
    [
        (PICTURES, ("cases",), True),
        (RESULT, ("verdict",), 7),
        (RESULT, ("calibration",), [1]),
        (RESULT, ("decisions",), "x"),
        (RESULT, ("verdict", "tuned"), "many"),
    ],
)
def test_a_report_of_changed_facts_is_refused_in_a_sentence(file, place, value, run, tmp_path):
    hand = tmp_path / "run"
    hand.mkdir()
    for name in (RESULT, PICTURES):
        (hand / name).write_bytes((run.folder / name).read_bytes())
    facts = json.loads((hand / file).read_text())
    inner = facts
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    (hand / file).write_text(json.dumps(facts))
    with pytest.raises(NotARun):
        api.report(hand)


def test_a_json_file_that_is_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ValueError, match="plain file"):
        read_plain_json(tmp_path / "config.json")


# ---- model files -----------------------------------------------------------------------------------------------------


def _zip_of_zeros(count):
    """A file of torch.save whose single storage of zeros is packed to next to nothing."""
    buffer = io.BytesIO()
    torch.save({"a.weight": torch.zeros(count), "b.weight": torch.zeros(2)}, buffer)
    packed = io.BytesIO()
    with zipfile.ZipFile(buffer) as plain, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as out:
        for name in plain.namelist():
            out.writestr(name, plain.read(name))
    return packed.getvalue()


def test_what_unpacks_twice_is_measured_by_the_file_on_disk(tmp_path):
    inner = _zip_of_zeros(12_000_000)
    padded = io.BytesIO(inner)
    with zipfile.ZipFile(padded, "a") as out:
        out.writestr("archive/pad", bytes(300_000))  # by which the inner one alone is no bomb
    assert 200 * len(padded.getvalue()) > 48_000_000
    with zipfile.ZipFile(tmp_path / "nested.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as out:
        out.writestr("model.pth", padded.getvalue())
    assert 200 * (tmp_path / "nested.zip").stat().st_size < 48_000_000
    with pytest.raises(BadWeights, match="bomb"):
        found = open_file(tmp_path / "nested.zip")
        pickles.read_torch(found.data, found.label, packed=found.packed)


@pytest.mark.parametrize("kind", ["integers", "tuples", "a set of a tuple", "a set of a list", "pairs"])
def test_keys_made_to_have_one_hash_are_refused_before_they_are_put_together(kind):
    if kind == "integers":
        value = {k * (2**61 - 1): 0 for k in range(1, 2000)}
    elif kind == "tuples":
        value = {tuple(-1 - (number >> bit & 1) for bit in range(14)): 0 for number in range(2**14)}
    else:
        members = [tuple(-1 - (number >> bit & 1) for bit in range(14)) for number in range(2**14)]
        value = {
            "a set of a tuple": _Made(set, tuple(members)),
            "a set of a list": _Made(set, members),
            "pairs": _Made(OrderedDict, [(one, 0) for one in members]),
        }[kind]
    with pytest.raises(BadWeights, match="plain weights never need"):
        pickles.refuse_programs(pickle.dumps(value, 2), "m.pth", several=False)


class _Made:
    """Is pickled as the call of a class on one value."""

    def __init__(self, kind, value):
        self.call = (kind, (value,))

    def __reduce__(self):
        return self.call


def test_the_numbers_of_a_training_script_are_still_read():
    record = {
        "state": {number: {"step": number} for number in range(20_000)},
        "python": random.getstate(),
        "losses": [0.5] * 50_000,
        "names": [f"layer.{number}" for number in range(50_000)],
        "seed": 2**63,
        "epochs": [(number, 0.5) for number in range(20_000)],
        "times": [1_700_000_000_000_000_000 + number for number in range(500)],
        "hooks": [OrderedDict() for _ in range(100)],
    }
    pickles.refuse_programs(pickle.dumps(record, 2), "m.pth", several=False)


def test_a_dictionary_whose_attribute_hides_its_method_is_read_as_the_dictionary_it_is(tmp_path):
    state = OrderedDict(a=torch.ones(2))
    state._metadata = {"": {"version": 1}}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    kept = pickles.read_torch(buffer.getvalue(), "m.pth")
    assert kept._metadata == {"": {"version": 1}}
    made = b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00itemsK\x05sb."
    found = pickles.read_torch(_old_file(made), "m.pth")
    assert list(found.items()) == []


def _old_file(pickled):
    """As torch before 1.6 wrote it: magic number, protocol, machine, what was saved, no storages."""
    first = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
    system = pickle.dumps({"protocol_version": 1001, "little_endian": True, "type_sizes": {}}, 2)
    return first + pickle.dumps(1001, 2) + system + pickled + pickle.dumps([], 2)


def test_a_header_of_too_many_tensors_is_counted_before_it_is_read():
    header = json.dumps(
        {f"t{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(60_000)}
    ).encode()
    with pytest.raises(BadWeights, match="60,000 tensors"):
        weights.tensors_of(struct.pack("<Q", len(header)) + header, "m.safetensors")


def test_a_file_that_has_no_size_is_not_read_without_an_end():
    with pytest.raises(BadWeights, match="told"):
        weights.bytes_of(Path("/proc/self/status"))


@pytest.fixture
def h5(tmp_path):
    """Writes an HDF5 file by a function and gives its bytes."""
    h5py = pytest.importorskip("h5py")

    def made(write):
        with h5py.File(tmp_path / "m.h5", "w") as file:
            write(file)
        return (tmp_path / "m.h5").read_bytes()

    return made


def test_numbers_that_were_never_written_are_refused(h5):
    data = h5(lambda file: file.create_dataset("a/kernel", (1000, 1000), "f4", chunks=(10, 1000)))
    with pytest.raises(BadWeights, match="never written"):
        Arrays(data, "m.h5")


def test_a_chunk_far_larger_than_its_numbers_counts_whole(h5):
    def write(file):
        file.create_dataset(
            "a/kernel", data=np.ones(4, "f4"), maxshape=(None,), chunks=(50_000_000,), compression="gzip"
        )

    with pytest.raises(BadWeights, match="claims 200,000,000"):
        Arrays(h5(write), "m.h5")


def test_a_dataset_of_many_names_is_read_once_and_an_archive_s_size_counts(h5):
    def write(file):
        file["a/kernel"] = np.zeros(2**20, "f4")
        for number in range(20):
            file[f"a/kernel{number}"] = file["a/kernel"]

    data = h5(write)
    assert len(Arrays(data, "m.h5").datasets) == 21
    with pytest.raises(BadWeights, match=r"claims .* in a file of 1,000"):
        Arrays(data, "m.h5", packed=1000)


@pytest.mark.parametrize("name", ["test_resnet.", "."])
def test_a_name_with_an_empty_tag_is_not_known(name):
    assert not timmed.is_known(name)
    assert timmed.is_known("test_resnet")


def test_large_images_go_through_in_turn(run):
    predictor = Predictor.open(run.folder)
    assert predictor.batch == BATCH
    large = replace(predictor.bundle, preprocess=replace(predictor.bundle.preprocess, size=2048))
    assert Predictor(large).batch == max(1, BATCH // 16)
