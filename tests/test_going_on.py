"""What a run is gone on with: the same weights and device, a state that can be read, and what earlier sittings settled."""

import builtins
import contextlib
import errno
import io
import json
import os
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from burnish import api
from burnish.backbones.reading import weights
from burnish.backbones.zoo import load_backbone
from burnish.choose import tuning as tunings
from burnish.choose.ledger import check_origin, origin_of
from burnish.choose.limits import familiar_to
from burnish.choose.plan import Plan
from burnish.choose.tuning import Tuning
from burnish.errors import DataError, RunError
from burnish.methods.base import Head
from burnish.methods.table import method_named
from burnish.recipe import Recipe
from burnish.record.folder import RunFolder
from burnish.run import job, probed, trained
from burnish.runtime import Nobody
from burnish.ship.bundle import read_bundle, write_bundle
from burnish.train import checkpoint
from burnish.train.activations import live_activations, plain_activations
from conftest import write_shapes

ARCH = "test_resnet"
RUN = {"arch": ARCH, "budget": None, "image_size": 64, "method": "probe", "precision": "float32", "cache": "off"}
CPU = torch.device("cpu")


class Death(BaseException):
    """Stands for a kill: nothing in the program expects it."""


class Lines(Nobody):
    """A watcher that keeps what is said."""

    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


def dies(*_, **__):
    raise Death


def test_a_setting_that_an_older_version_did_not_have_is_the_usual_one(tmp_path):
    with RunFolder.open(tmp_path / "run") as held:
        held.begin({"seed": 3, "device": "cuda"})
        held.write("splits.csv", "")
    with RunFolder.open(tmp_path / "run") as held:
        assert held.begin({"seed": 3, "mixup": 0.0, "device": "cpu"}), "the device is the state's own affair"
        with pytest.raises(RunError, match=r"mixup was 0\.0 and is 0\.5"):
            held.begin({"seed": 3, "mixup": 0.5, "device": "cuda"})


def weights_of(seed):
    """Weights of one small architecture."""
    return load_backbone(f"random:{ARCH}", seed=seed).module.state_dict()


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A run with a model file to which nothing happened, in alone/; and what a death would have left of it: in probed/ as
    its probe was saved, in unproved/ before it looked at the test images. One of its images cannot be read.
    """
    root = tmp_path_factory.mktemp("told")
    write_shapes(root / "data", images=14)
    (root / "data" / "red" / "broken.png").write_bytes(b"no image")
    torch.save(weights_of(0), root / "model.pth")

    def left(function, name):
        def copying(*args, **kwargs):
            shutil.copytree(root / "alone", root / name)
            return function(*args, **kwargs)

        return copying

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(job, "choose", left(job.choose, "probed"))
        patched.setattr(job, "put_to_test", left(job.put_to_test, "unproved"))
        fit(root, root / "alone")
    return root


def fit(root, run, **more):
    return api.fit(root / "data", out=run, model=str(root / "model.pth"), **{**RUN, **more})


@pytest.fixture
def run(told, tmp_path):
    """The folder of a run that died when its probe was saved."""
    return shutil.copytree(told / "probed", tmp_path / "run")


@contextlib.contextmanager
def dying(monkeypatch, name):
    """Within it a run dies as it comes there."""
    with monkeypatch.context() as patched, pytest.raises(Death):
        patched.setattr(job if hasattr(job, name) else probed, name, dies)
        yield


def fingerprint(run):
    """What must not differ by a bit."""
    package = run / json.loads((run / "package.json").read_text())["current"]
    facts = json.loads((run / "result.json").read_text())
    written = {name: (run / name).read_bytes() for name in ("splits.csv", "recipe.toml", "predictions.csv")}
    told = {name: facts[name] for name in ("scores", "mistakes", "kept")}
    return {"weights": (package / "weights.safetensors").read_bytes(), **written, **told}


def contents(folder):
    """All files but the lock, which says who held the folder last."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# ---- other weights, another device -----------------------------------------------------------------------------------


def test_other_weights_are_refused_and_with_the_old_ones_the_run_comes_to_the_same_bits(told, run):
    model, before, lines = told / "model.pth", contents(run), Lines()
    old = model.read_bytes()
    try:
        torch.save(weights_of(1), model)
        with pytest.raises(RunError, match=r"the weights of the network changed since the run in .* began"):
            fit(told, run)
    finally:
        model.write_bytes(old)
    assert contents(run) == before and read_bundle(run).method == "probe"
    fit(told, run, watcher=lines)
    assert any(text.startswith("going on with the run in ") for text in lines.said)
    assert fingerprint(run) == fingerprint(told / "alone")


@pytest.mark.parametrize("kind", ["a file", "random weights"])
def test_where_a_network_comes_from_is_told_by_its_weights_alone(kind, tmp_path):
    def origin(seed, name):
        if kind == "a file":
            save_file(weights_of(seed), tmp_path / f"{name}.safetensors")
            backbone = load_backbone(str(tmp_path / f"{name}.safetensors"), arch=ARCH)
        else:
            backbone = load_backbone(f"random:{ARCH}", seed=seed)
        if kind == "random weights" and name == "again":  # a network that has run may lie otherwise in memory
            backbone.module.to(memory_format=torch.channels_last)
        return origin_of(backbone, CPU)

    first, again, other = origin(0, "first"), origin(0, "again"), origin(1, "other")
    assert first == again and first["device"] == "cpu"
    assert len(first["weights"]) == len(other["weights"]) == 64
    check_origin(first, again, tmp_path, Lines())
    with pytest.raises(RunError, match="weights of the network changed"):
        check_origin(first, other, tmp_path, Lines())


def test_another_device_is_refused_and_another_torch_is_said(told, run, monkeypatch):
    here = probed.origin_of

    def otherwise(**values):
        monkeypatch.setattr(probed, "origin_of", lambda *args: {**here(*args), **values})

    before, lines = contents(run), Lines()
    otherwise(device="cuda")
    with pytest.raises(RunError, match=r"began on cpu, this is cuda, .*say --device cpu where there is one"):
        fit(told, run)
    assert contents(run) == before
    otherwise(torch="9.9.9")
    with dying(monkeypatch, "choose"):
        fit(told, run, watcher=lines)
    said = [text for text in lines.said if "torch" in text]
    assert said == [f"the run began with torch {torch.__version__}, this is 9.9.9: its last bits may differ"]
    assert any(text.startswith("going on with the run in ") for text in lines.said)


# ---- a state that cannot be read -------------------------------------------------------------------------------------


@contextlib.contextmanager
def unreadable(monkeypatch, *files):
    """Within it the disk does not give these files."""
    opened = io.open

    def opening(file, *args, **kwargs):
        if str(file) in map(str, files):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(file))
        return opened(file, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(io, "open", opening)
        patched.setattr(builtins, "open", opening)
        yield


def versions_in(run):
    """The folders of its states, newest first."""
    return sorted((run / "state" / "versions").iterdir(), reverse=True)


def saved(run, count):
    for number in range(1, count + 1):
        checkpoint.write_checkpoint(run, {"number": number}, {"a": torch.full((3,), float(number))})


def test_where_every_state_is_damaged_it_is_said_and_the_run_begins_anew(told, run, monkeypatch):
    versions, lines = versions_in(run), Lines()
    for version in versions:
        file = version / "tensors.safetensors"
        file.write_bytes(file.read_bytes()[:-1])
    with dying(monkeypatch, "survey"):  # which a run that goes on has behind it
        fit(told, run, watcher=lines)
    wanted = "what an earlier sitting saved is damaged, or of another version of burnish: the run begins anew"
    assert versions and lines.said.count(wanted) == 1
    assert read_bundle(run).method == "probe"


@pytest.mark.parametrize("name", ["facts.json", "tensors.safetensors"])
def test_states_that_the_disk_does_not_give_are_no_reason_to_begin_anew(name, tmp_path, monkeypatch):
    saved(tmp_path, 2)
    newest, older = versions_in(tmp_path)
    before = contents(tmp_path)
    with unreadable(monkeypatch, newest / name):
        facts, tensors = checkpoint.read_checkpoint(tmp_path)
        assert facts == {"number": 1} and tensors["a"].tolist() == [1.0, 1.0, 1.0]
    with (
        unreadable(monkeypatch, newest / name, older / name),
        pytest.raises(RunError, match=r"cannot be read .*try again"),
    ):
        checkpoint.read_checkpoint(tmp_path)
    assert contents(tmp_path) == before
    (older / name).write_bytes(b"{")  # the one that is refused may still be sound
    with unreadable(monkeypatch, newest / name), pytest.raises(RunError, match=r"\(Input/output error\)"):
        checkpoint.read_checkpoint(tmp_path)
    assert checkpoint.read_checkpoint(tmp_path)[0] == {"number": 2}


def test_a_run_whose_state_the_disk_does_not_give_waits_until_it_does(told, run, monkeypatch):
    before, lines = contents(run), Lines()
    files, words = (
        [version / "facts.json" for version in versions_in(run)],
        r"\(Input/output error\), so the run cannot go on",
    )
    with unreadable(monkeypatch, *files), pytest.raises(RunError, match=words):
        fit(told, run, watcher=lines)
    assert contents(run) == before and lines.said == []
    with dying(monkeypatch, "choose"):
        fit(told, run, watcher=lines)
    assert any(text.startswith("going on with the run in ") for text in lines.said)


def test_a_state_may_be_larger_than_any_model_file(tmp_path, monkeypatch):
    """Weights, their average and two moments of each: four times the network."""
    saved(tmp_path, 1)
    monkeypatch.setattr(weights, "MAX_WEIGHTS_BYTES", 8)
    facts, tensors = checkpoint.read_checkpoint(tmp_path)
    assert facts == {"number": 1} and torch.equal(tensors["a"], torch.ones(3))


# ---- strict, the lock, the pointer -----------------------------------------------------------------------------------


def test_strict_stops_a_run_that_began_without_it(told, run, monkeypatch):
    before = contents(run)
    with pytest.raises(DataError, match=r"--strict stops there; the first: not an image, red/broken\.png"):
        fit(told, run, strict=True)
    assert contents(run) == before
    with dying(monkeypatch, "choose"):
        fit(told, run)


@pytest.mark.parametrize("call", ["ftruncate", "write"])
def test_a_lock_that_cannot_be_written_is_let_go(call, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, full)
        with pytest.raises(RunError, match=r"cannot write to .*run: the disk is full"):
            RunFolder.open(tmp_path / "run")
    with RunFolder.open(tmp_path / "run") as held:
        assert (held.path / ".lock").read_text().startswith(f"{os.getpid()} on ")


@pytest.mark.parametrize("took_effect", [True, False])
def test_a_pointer_that_the_disk_says_it_did_not_move_names_a_whole_package(took_effect, told, tmp_path, monkeypatch):
    """A network's file system may say that a rename failed which took effect."""
    bundle, move = read_bundle(told / "alone"), os.replace
    write_bundle(tmp_path, replace(bundle, temperature=1.0))

    def failing(*args):
        if took_effect:
            move(*args)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", failing)
        with pytest.raises(RunError, match="the package could not be written"):
            write_bundle(tmp_path, replace(bundle, temperature=2.0))
    assert read_bundle(tmp_path).temperature == (2.0 if took_effect else 1.0)
    assert [path.name for path in sorted((tmp_path / "packages").iterdir())] == ["0001", "0002"][: 1 + took_effect]
    write_bundle(tmp_path, replace(bundle, temperature=3.0))
    assert read_bundle(tmp_path).temperature == 3.0
    assert len(list((tmp_path / "packages").iterdir())) == 1


# ---- what is familiar ------------------------------------------------------------------------------------------------


def test_how_many_images_are_familiar_is_settled_by_the_first_sitting(told, tmp_path, monkeypatch):
    run, asked = shutil.copytree(told / "unproved", tmp_path / "run"), []
    note = run / "state" / "familiar.json"
    noted = json.loads(note.read_text())
    assert noted["count"] == 1000  # without a budget
    note.write_text(json.dumps({**noted, "count": 57}))
    with monkeypatch.context() as patched:
        patched.setattr(job, "room_for_familiar", lambda *_, **__: pytest.fail("the clock was asked again"))
        patched.setattr(job, "familiar_to", lambda *_, most: asked.append(most) or dies())
        for _ in range(2):
            with pytest.raises(Death):
                fit(told, run)
    assert asked == [57, 57]
    note.write_text(json.dumps({**noted, "of": "other images"}))
    with dying(monkeypatch, "room_for_familiar"):
        fit(told, run)


def test_what_is_familiar_to_a_frozen_model_is_in_its_first_package_and_in_the_state(told, tmp_path, monkeypatch):
    """It needs no image twice, so the clock has no say in it."""
    write_shapes(tmp_path / "data", images=60)
    shutil.copy(told / "model.pth", tmp_path)
    with dying(monkeypatch, "choose"):
        fit(tmp_path, tmp_path / "run")
    first = read_bundle(tmp_path / "run").familiarity
    assert first is not None and first.doubt > 0.0 and np.isfinite(first.limit)
    monkeypatch.setattr(job, "room_for_familiar", lambda *_, **__: 40)
    fit(tmp_path, tmp_path / "run")
    again = read_bundle(tmp_path / "run").familiarity
    for name, array in first.arrays().items():
        np.testing.assert_array_equal(again.arrays()[name], array, err_msg=name)


def test_a_tuned_model_judges_what_is_familiar_by_images_it_has_not_learnt():
    """A dozen validation images will do; its training images would make all others look strange."""
    draw, backbone = np.random.default_rng(0), load_backbone(f"random:{ARCH}")
    preprocess = backbone.preprocess

    def found(role, vals, familiarity=None, most=1000):
        material = SimpleNamespace(
            train_rows=np.arange(vals, vals + 60), val_rows=np.arange(vals), labels=np.arange(vals + 60) % 3,
            preprocess=preprocess, fitting=SimpleNamespace(plain=draw.random((vals + 60, 5), np.float32)),
            tied=lambda _: None, sets=lambda rows: np.arange(len(rows)),
        )  # fmt: skip
        kept = SimpleNamespace(
            role=role, preprocess=preprocess, backbone=backbone, val_unsure=draw.random(vals), familiarity=familiarity,
            answers=lambda rows: [(None, rows)],
        )  # fmt: skip
        return familiar_to(kept, material, SimpleNamespace(watcher=Nobody()), most=most), material

    for vals in (0, 1, 9):
        assert found("tuned", vals)[0] == (None, None)
    for role, vals, by_val in (("tuned", 10, True), ("tuned", 12, True), ("probe", 12, False), ("probe", 20, True)):
        (familiarity, sample), material = found(role, vals)
        held = material.val_rows if by_val else material.train_rows[1::3]
        assert familiarity is not None and sample.held_rows.tolist() == held.tolist()
        assert (familiarity.doubt > 0.0) == by_val, "of training images no answer is known that did not learn from them"
        assert not set(sample.rows) & set(sample.held_rows)
    known = familiarity  # of a frozen model it is known from all images, and the clock has no say in it
    assert found("probe", 20, known, most=40)[0][0] is known is found("probe", 20, known, most=0)[0][0]


# ---- the parts of a network ------------------------------------------------------------------------------------------


@pytest.fixture
def tuning():
    """A network whose two lower stages are frozen, about to be trained on a few images."""
    backbone, draw = load_backbone(f"random:{ARCH}"), np.random.default_rng(0)
    recipe = Recipe(freeze=2, image_size=64, precision="float32", budget_seconds=None)
    head = Head(draw.normal(size=(3, backbone.width)).astype(np.float32), np.zeros(3, np.float32))
    made = Plan(
        batch=8,
        sizes=((0.0, 64),),
        steps=0,
        epochs=1.0,
        freeze=2,
        balanced=False,
        views=1,
        timed=False,
        most=0,
        reserve_seconds=1.0,
        step_seconds={64: 0.1},
        epoch_seconds=0.1,
        reason="",
    )
    preprocess = replace(backbone.preprocess, size=64)
    plain = draw.integers(0, 256, (80, 64, 64, 3), np.uint8)
    material = SimpleNamespace(
        fitting=SimpleNamespace(plain=plain, ids=np.arange(80)), val_rows=np.arange(5, 80), labels=np.arange(80) % 3,
        preprocess=preprocess,
    )  # fmt: skip
    clock = SimpleNamespace(budget_seconds=None)
    bench = SimpleNamespace(recipe=recipe, device=CPU, backbone=backbone, watcher=Nobody(), clock=clock)
    tunable = method_named("full").prepare(backbone, head, recipe)
    return Tuning(tunable, made, SimpleNamespace(flip=False), material, bench)


def test_activations_computed_anew_have_the_bits_of_those_that_are_kept():
    """Of maps and of tokens; they lie in memory alike, for that too may change the last bits of what follows."""
    torch.manual_seed(0)
    for lower, shape in ((nn.Conv2d(3, 7, 3), (3, 6, 4)), (nn.Linear(6, 7), (5, 6))):
        batches = [torch.randn(count, *shape) for count in (4, 4, 1)]
        kept = plain_activations(lower, iter(batches), CPU, count=9)
        live = list(live_activations(lower, iter(batches), CPU))
        assert len(kept) == len(live) == 3
        for one, other in zip(kept, live, strict=True):
            assert torch.equal(one, other) and one.stride() == other.stride()


def test_without_room_for_activations_the_validation_images_get_the_same_answers(tuning, monkeypatch):
    """The network as a whole would give others, in the last bits: few images do not pay for its fast form."""
    tuning.divide()
    assert tuning.parts.lower is not None
    material, rows = tuning.material, tuning.material.val_rows
    for count in (12, len(rows)):  # one batch and several
        material.val_rows = rows[:count]
        tuning.val.clear()
        usual = tuning._val_logits(material.preprocess)
        assert len(usual) == count and isinstance(tuning.val[64], list)
        tuning.val.clear()
        with monkeypatch.context() as patched:
            patched.setattr(tunings, "plain_activations", lambda *_, **__: None)
            for _ in range(2):  # the images are gone through again each time
                assert np.array_equal(tuning._val_logits(material.preprocess), usual)
        assert not isinstance(tuning.val[64], list)


def test_a_later_sitting_divides_the_network_before_it_takes_up_the_weights(tuning, monkeypatch):
    """Which fast forms give the same numbers is asked of the same weights in every sitting (P7)."""
    start, real, seen = {name: value.clone() for name, value in tuning.start.items()}, tunings.parts_for_training, []
    facts, tensors = tuning.state()
    tensors = {name: value + 1.0 if name.startswith("weights/") else value for name, value in tensors.items()}

    def parts(*args, **kwargs):
        seen.append({name: value.detach().clone() for name, value in tuning.tunable.moving().items()})
        return real(*args, **kwargs)

    monkeypatch.setattr(tunings, "parts_for_training", parts)
    ledger = SimpleNamespace(
        get=lambda part: ({**facts, "saved": 0.5}, tensors), put=lambda *_: None, write=lambda: None
    )
    journal, folder = SimpleNamespace(begin=lambda _: None, rows=[]), SimpleNamespace(require_held=lambda: None)
    trained.train(
        tuning, SimpleNamespace(val_right=np.ones(3)), SimpleNamespace(folder=folder, ledger=ledger, journal=journal)
    )
    assert len(seen) == 1 and all(torch.equal(seen[0][name], value) for name, value in start.items())
    assert not any(torch.equal(value, start[name]) for name, value in tuning.tunable.moving().items())
